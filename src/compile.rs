//! Compiles a spec and the facts about a host into a plan, in the order in which a sandbox is built.
//!
//! The modules `ns`, `rootfs`, `caps`, `ids`, `cgroup` and `filter` (the domains) never import each other. If one of
//! them depends on another, `compile` passes the value as an argument.
//!
//! Compiling makes no system calls and changes nothing. It validates the spec, resolves defaults, orders the steps,
//! chooses methods, and adds to the report what cannot be enforced. Everything that can be refused without asking the
//! kernel is refused here.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::caps::{self, CapSet, Sets};
use crate::cgroup::{self, CgroupName, Cgroups, RequiredControllers};
use crate::error::{Error, Result};
use crate::host::{Host, Survey, nodes};
use crate::ids::{self, Identity};
use crate::ns::{self, IsolationMode, Namespaces, Network};
use crate::plan::{MustHold, ParentOp, ParentStep, Plan};
use crate::report::Control;
use crate::rootfs::changes::RootRecord;
use crate::rootfs::lower::{Part, RootRequest};
use crate::rootfs::work::BuildRoot;
use crate::rootfs::{self, Method};
use crate::spec::{Policy, SandboxSpec};
use crate::step::wire::Op;
use crate::step::{self, Draft, Enter, Handed, IdMaps, InitStep, Step};
pub(crate) use checks::spawn_deadline as check_deadline;
use identity::Mapping;
use stays::{Stay, Stays};

mod breaches;
mod checks;
mod conflicts;
mod devices;
pub(crate) mod enter;
mod filter;
mod identity;
mod landlock;
mod method;
mod prepare;
mod process;
mod root;
mod sources;
mod stays;
#[cfg(test)]
mod tests;

/// Compiles a plan for the mounts of `part`. `id` is the sandbox's name if the spec has none.
///
/// # Errors
///
/// [`Error::Spec`] for an invalid spec, [`Error::Denied`] for what the policy does not allow, [`Error::Unsupported`]
/// for what this host cannot enforce.
pub(crate) fn compile(
    policy: &Policy,
    spec: &SandboxSpec,
    host: &Host,
    survey: &Survey,
    id: &str,
    part: Part,
) -> Result<Plan> {
    checks::kernel(host)?;
    checks::policy(policy)?;
    checks::tmpfs_sizes(spec)?;
    checks::spawn_deadline(spec)?;
    checks::strings(spec)?;
    checks::replace(spec)?;
    let id = checks::id(spec.id.as_deref().unwrap_or(id))?;
    let namespaces = namespaces(policy, spec, host, survey)?;
    let identity = &survey.identity;
    let mut draft = Draft::default();
    let sets = capabilities(policy, spec, host, identity, namespaces.user, &mut draft)?;
    let other_users = (!namespaces.user).then(|| identity::others(policy, host, identity, sets));
    let filters = filter::choose(policy, spec, sets, namespaces.pid)?;
    let must_hold = &must_hold(policy, spec);
    spec.limits.validate()?;
    let limits = spec.limit_env.variables(&spec.limits)?;
    checks::devices(spec, survey)?;
    let stays = Stays::of(policy, spec, host, namespaces.pid);
    let mut cgroups = cgroup(policy, spec, host, survey, &id, (namespaces.pid, stays), &mut draft)?;
    let built = root::work(policy, spec, host, survey, &id, &mut draft);
    let (root, entries) = built.map_err(|e| root::in_spec(e, spec))?;
    let mapping =
        Mapping::of(host, identity, namespaces.user, root.build.dir.is_some() || spec.root.upper.is_some());
    identity::denied(policy, host, identity, mapping)?;
    let volumes = root::volumes(spec, survey)?;
    spec.task_dirs.validate(|path| survey.kind(path).ok_or_else(|| survey.absent("task_dirs", path)))?;
    conflicts::mounts(spec, &entries, &mut draft)?;
    sources::allowed(policy, spec, survey)?;
    let files = root::files(spec, survey)?;
    let hidden = root::private(
        policy,
        spec,
        host,
        survey,
        (&entries, root.build.method, namespaces.user),
        &mut draft,
    )?;
    let swappable = root::swappable(host, namespaces.user);

    let places: Vec<(&Path, &Path)> =
        spec.devices.iter().map(|device| (device.source.as_path(), device.place().as_path())).collect();
    let cold = prepare::obstacle(policy, spec, (&namespaces, stays), sets, (&root.build, &entries));
    let request = RootRequest {
        root: &spec.root,
        dir: root.build.dir.as_deref(),
        real: &survey.real,
        method: root.build.method,
        entries: &entries,
        task_dirs: &spec.task_dirs,
        user: (identity.uid, identity.gid),
        becomes: mapping == Mapping::Same,
        swappable: swappable.as_deref(),
        files: &files,
        volumes: &volumes,
        devices: &places,
        work_dir: spec.work_dir.as_deref(),
        masked: &host.masked,
        private: hidden.masks(),
        unowned: hidden.unowned(),
        proc_options: &host.proc_options,
        read_only: &host.read_only,
        null: process::null_streams(spec.streams()),
        pivot: !policy.no_pivot_root,
        privileged: !namespaces.user,
        nodes: nodes(host),
        own_pid: namespaces.pid == IsolationMode::Private,
        pid1: stays == Stays::Pid1,
        user_namespaces: spec.user_namespaces,
        own_ipc: namespaces.ipc == IsolationMode::Private,
        new_net: namespaces.network == Network::None,
        host_net: namespaces.network == Network::Host,
        nosuid: spec.no_new_privs,
        prepares: cold.is_none(),
        part,
    };
    if part == Part::Common {
        return Ok(prepare::plan(&request, id));
    }
    let visible = request.shows_cgroups(&host.cgroup_mounts());
    let namespaces = Namespaces { cgroup: spec.cgroup_namespace.unwrap_or(visible), ..namespaces };
    let maps = identity::maps(host, identity, mapping);

    if maps.is_some() {
        draft.build(Control::IDS, Op::AwaitIdMaps {});
    }
    process::oom_score(spec, must_hold, &mut draft)?;
    draft.enter(Enter::Outside, Control::MOUNT_NS, Op::Session {});
    draft.enter(Enter::Outside, Control::MOUNT_NS, Op::ResetScheduling {});
    process::descriptors(spec, &mut draft)?;
    let mut clone = ns::lower::join(&namespaces, &mut draft);
    process::enter(&cgroups, &mut draft);
    draft.enter(Enter::Outside, Control::MOUNT_NS, Op::Affinity {});
    process::bounding(host, sets, &mut draft);
    let stay = Stay { policy, spec, host, identity, mapping, bounding: sets.bounding, id: &id, stays };
    let outside = stays == Stays::Outside;
    let mut files = stays::Files::default();
    if outside {
        clone &= !libc::CLONE_NEWPID.cast_unsigned();
        let timers = stays.timers(spec, &cgroups, &mut draft)?;
        draft.init.extend(timers);
        files = stay.lower(&mut draft)?;
    }
    ns::lower::unshare(&namespaces, &mut draft);
    if survey.own_network {
        draft.report.weaken(Control::NET_NS, "the network namespace to join is the caller's own");
    }
    rootfs::lower::lower(&request, &mut draft);
    // Before the common filter, which knows how a task without it defeats the deadline.
    let timers = if outside { Vec::new() } else { stays.timers(spec, &cgroups, &mut draft)? };
    let freezer = !namespaces.user && host.cgroups.v1.contains_key("freezer");
    filters.common(must_hold, freezer, &mut draft);
    draft.init.extend(timers);
    if !outside {
        files = stay.lower(&mut draft)?;
    }
    let private = namespaces.pid == IsolationMode::Private;
    let fork_inside = if private { filters.fork_inside(must_hold) } else { Vec::new() };
    process::rlimits(spec, survey, &mut draft)?;
    // The Landlock domain and the filter come last, after the credentials, if no_new_privs is set. Without it, either
    // needs CAP_SYS_ADMIN, so both come before that capability is dropped.
    let mut filter = filters.own(must_hold, spec, &mut draft);
    let shown = sources::showing_processes(policy, spec, survey);
    let domain = landlock::Domain::of(host, spec, &namespaces, sets, shown.is_some());
    if !spec.no_new_privs {
        draft.init.extend(domain.step());
        draft.init.extend(filter.take());
    }
    process::credentials(spec, host, identity, sets, mapping, &mut draft);
    sources::lead(policy, spec, host, survey, &mut draft)?;
    sources::streams(&survey.streams, &mut draft);
    breaches::shared(spec, sets, &namespaces, domain, &mut draft);
    breaches::shown(shown, &namespaces, domain, &mut draft);
    let same_user = identity::pid1(host, identity, mapping).0 == identity.uid;
    let real_time = breaches::real_time(spec, sets, namespaces.user, &filters);
    breaches::delays(sets, real_time, &filters, (same_user, outside), &mut draft);
    breaches::outruns(real_time, &mut draft);
    breaches::calls(&filters, stays, spec.streams().map(|(_, how)| how), &mut draft);
    let root_user = identity.uid == 0 || sets.bounding.has("setuid");
    breaches::unlimited(spec, sets, (namespaces.user, root_user), &mut draft);
    let user = (identity, same_user);
    breaches::silences(spec, sets, &namespaces, (&filters, domain, outside), user, &mut draft);
    breaches::scores(spec, host, stays, &mut draft);
    filters.leave_open(&namespaces, &mut draft);
    breaches::weaken(policy, sets, &namespaces, (&filters, domain, outside), &mut draft);
    if spec.no_new_privs {
        draft.init.extend(domain.step());
    }
    let work_dir = spec.work_dir.as_deref().unwrap_or(Path::new("/"));
    draft.enter(Enter::Inside, Control::ROOT_SWITCH, Op::Cwd { path: step::path(work_dir) });
    draft.enter(Enter::Inside, Control::IDS, Op::Umask { mask: spec.umask });
    draft.init.extend(process::terminal(spec.terminal, spec.streams())?.into_iter().flatten());
    let path = spec.env.get(OsStr::new("PATH")).map(OsString::as_os_str);
    let candidates = process::candidates(&spec.command, work_dir, path)?;
    process::find(&candidates, stays.any().then_some(stays != Stays::Pid1), &mut draft);
    draft.init.extend(filter);
    let mut env = spec.env.clone();
    env.extend(limits.into_iter().map(|(key, value)| (key.into(), value.into())));
    process::exec(&spec.args, &ids::environment(identity), &env, &mut draft);

    if draft.handed.len() > step::wire::FDS as usize {
        return Err(Error::spec("volumes", step::too_many()));
    }
    must_hold.check(&draft.report)?;
    let record = root_record(spec, &root.build, &draft);
    let Draft { report, init, handed } = draft;
    let log = files.log.map(|path| (path, policy.log_size));
    let replaced =
        spec.replace.then(|| ParentOp::Replace { id: id.clone(), unit: cgroups.paths.unit.clone() });
    let files = StateFiles { replaced, exit_record: files.exit_record, log };
    let parent = parent(files, &mut cgroups, root, handed, clone, maps);
    Ok(Plan {
        id,
        report,
        cold,
        masks_private: matches!(hidden, root::Hidden::Masked(_)),
        parent,
        init,
        cgroups,
        namespaces: namespaces.own(),
        outside,
        fork_inside,
        environment: ids::environment(identity),
        other_users,
        must_hold: *must_hold,
        root: Arc::new(record),
        command: spec.command.clone(),
        candidates,
    })
}

/// The facts that are kept to compare the root with its sources after the task has ended.
fn root_record(spec: &SandboxSpec, build: &BuildRoot, draft: &Draft) -> RootRecord {
    let mount = |step: &InitStep| match step.op()? {
        Op::Bind { target, .. } | Op::Mount { target, .. } => Some(step::to_path(target)),
        Op::MaskFile { path } | Op::MaskDir { path } => Some(step::to_path(path)),
        _ => None,
    };
    RootRecord {
        method: build.method,
        dir: build.dir.clone(),
        upper: spec.root.upper.clone(),
        setuid: build.setuid,
        mounts: draft.init.iter().filter_map(mount).collect(),
    }
}

/// The files of a task in the operator's `state_dir`.
struct StateFiles {
    /// The step that ends the task whose files are there.
    replaced: Option<ParentOp>,
    exit_record: Option<PathBuf>,
    /// The log, and the size of its ring.
    log: Option<(PathBuf, u64)>,
}

/// The parent's steps, in order.
fn parent(
    files: StateFiles,
    cgroups: &mut Cgroups,
    root: root::RootWork,
    handed: Vec<Handed>,
    namespaces: u32,
    maps: Option<IdMaps>,
) -> Vec<ParentStep> {
    let mut steps = Vec::new();
    let mut push = |control, op| steps.push(Step::of(control, op));
    let then = match root.build.method {
        Method::Link => "linkat",
        Method::Reflink => "ioctl(FICLONE)",
        _ => "copy_file_range",
    };
    // The sources were opened before there was a plan.
    if !root.build.env.is_empty() {
        let sources = root.build.env.keys().cloned().collect();
        push(Control::HOST_FILES, ParentOp::HoldSources { sources, then });
    }
    let StateFiles { replaced, exit_record, log } = files;
    replaced.into_iter().for_each(|op| push(Control::empty(), op));
    exit_record.into_iter().for_each(|path| push(Control::EXIT_RECORD, ParentOp::ExitRecord(path)));
    log.into_iter().for_each(|(path, size)| push(Control::empty(), ParentOp::Log { path, size }));
    root.upper.into_iter().for_each(|upper| push(Control::HOST_FILES, ParentOp::LockUpper(upper)));
    root.temp.into_iter().for_each(|make| push(Control::ROOT_SWITCH, ParentOp::TempRoot(make)));
    push(Control::HOST_FILES, ParentOp::BuildRoot(Box::new(root.build)));
    let clone = ParentOp::Clone { namespaces, into_cgroup: cgroups.paths.into };
    steps.extend(launch(cgroups, handed, clone, maps, ParentOp::AwaitCommand));
    steps
}

/// The parent's steps from the cgroups of a new process to its command. Takes the steps out of `cgroups`.
fn launch(
    cgroups: &mut Cgroups,
    handed: Vec<Handed>,
    clone: ParentOp,
    maps: Option<IdMaps>,
    wait: ParentOp,
) -> Vec<ParentStep> {
    let mut steps = Vec::new();
    for step in std::mem::take(&mut cgroups.steps) {
        let Step { op, control, on_refusal, phase } = step;
        steps.push(Step { op: ParentOp::Cgroup(op), control, on_refusal, phase });
    }
    let mut push = |control, op| steps.push(Step::of(control, op));
    handed.into_iter().for_each(|handed| push(Control::MOUNT_NS, ParentOp::Hand(handed)));
    push(Control::MOUNT_NS, ParentOp::Channel);
    push(Control::MOUNT_NS, ParentOp::SealSteps);
    push(Control::MOUNT_NS, ParentOp::SealInit);
    push(Control::MOUNT_NS, clone);
    maps.into_iter().for_each(|maps| push(Control::IDS, ParentOp::IdMaps(maps)));
    push(Control::MOUNT_NS, wait);
    cgroups.share.iter().for_each(|share| push(Control::CPUSET, ParentOp::CheckShare(share.clone())));
    steps
}

fn namespaces(policy: &Policy, spec: &SandboxSpec, host: &Host, survey: &Survey) -> Result<Namespaces> {
    let pid = ("pid_mode", spec.pid_mode);
    let pid = ns::resolve_mode(pid, policy.default_pid_mode, policy.allow_host_pid)?;
    let ipc = ("ipc_mode", spec.ipc_mode);
    let ipc = ns::resolve_mode(ipc, policy.default_ipc_mode, policy.allow_host_ipc)?;
    checks::network(&spec.network, survey)?;
    if !policy.allow_network && spec.network != Network::None {
        let why = "network: this host's policy does not allow a network (allow_network is off): use \"none\"";
        return Err(Error::denied(why));
    }
    let user = !host.privileged();
    if let (true, Some(why)) = (user, &host.user_ns_forbidden) {
        let reason = format!("the caller {} and cannot make a user namespace: {why}", host.hindrance());
        return Err(Error::Unsupported { control: Control::MOUNT_NS, reason });
    }
    let network = spec.network.clone();
    if let (true, Network::Path(path)) = (user, &network) {
        let hindrance = host.hindrance();
        let reason = format!(
            "{path:?} cannot be joined: the task would run in a user namespace, because the caller {hindrance}"
        );
        return Err(Error::Unsupported { control: Control::NET_NS, reason });
    }
    Ok(Namespaces { pid, ipc, network, uts: spec.hostname.clone(), cgroup: false, user })
}

fn capabilities(
    policy: &Policy,
    spec: &SandboxSpec,
    host: &Host,
    identity: &Identity,
    user_ns: bool,
    draft: &mut Draft,
) -> Result<Sets> {
    let allow = policy.allow_caps.as_deref();
    let asked = caps::calculate(allow, &spec.cap_add, &spec.cap_drop, host.supported)?;
    let sets = if policy.root_keeps_caps && identity.uid == 0 {
        draft.report.note(
            Control::CAPS,
            "user 0 keeps capabilities 0 to 37 whatever cap_add and cap_drop say (root_keeps_caps is on in this host's policy)",
        );
        Sets::legacy_root(host.supported)
    } else {
        Sets::for_uid(identity.uid, asked)
    };
    draft.report.enforce(Control::CAPS);
    // In a user namespace of its own, a task can hold every capability, which has no effect outside of that namespace.
    let held = if user_ns { host.supported } else { host.held };
    let withheld = caps::withheld(sets.permitted, held);
    if !withheld.is_empty() {
        draft.report.note(
            Control::CAPS,
            format!(
                "the task does not get capabilities that the caller lacks: {}",
                withheld.names_upper().join(", ")
            ),
        );
    }
    let keep = |set: CapSet| set.intersection(held);
    Ok(Sets {
        bounding: keep(sets.bounding),
        permitted: keep(sets.permitted),
        effective: keep(sets.effective),
        inheritable: keep(sets.inheritable),
        ambient: keep(sets.ambient),
    })
}

fn cgroup(
    policy: &Policy,
    spec: &SandboxSpec,
    host: &Host,
    survey: &Survey,
    id: &str,
    (pid, stays): (IsolationMode, Stays),
    draft: &mut Draft,
) -> Result<Cgroups> {
    let name = CgroupName::new(id).map_err(|why| Error::spec("id", why.to_string()))?;
    let required = policy.required_controllers;
    let asked = if required == RequiredControllers::Asked { spec.limits.asked() } else { Control::empty() };
    let found = match (host.cgroups.required, host.cgroups.asked) == (required, asked) {
        true => Cow::Borrowed(&host.cgroups),
        false => Cow::Owned(host.cgroups.requiring(required, asked)),
    };
    let rules = devices::rules(spec, host, survey, draft)?;
    let without_devices = devices::without(spec);
    let cgroups = cgroup::lower(
        &cgroup::Request {
            extra_pids: u64::from(stays.any()),
            devices: &rules,
            without_devices: &without_devices,
            own_pid: pid == IsolationMode::Private,
            cpu_time: spec.cpu_deadline.is_some() && stays.ends_task(),
            partition: policy.core_partitions,
            ..cgroup::Request::new(&spec.limits, &found, &policy.cgroup_parent, &name)
        },
        &mut draft.report,
    )?;
    devices::wider_than_declared(spec, survey, &rules, draft);
    Ok(cgroups)
}

/// The controls that the spec's author and the operator require, and those that may be missing unless they are named.
fn must_hold(policy: &Policy, spec: &SandboxSpec) -> MustHold {
    let mut forgiven = Control::empty();
    // Writing a score below the caller's minimum needs CAP_SYS_RESOURCE. If the spec asks for no score, a refusal is
    // tolerated.
    forgiven.set(Control::OOM_SCORE, spec.oom_score_adj.is_none());
    // In a writable root of hard links, the task can change the host's files: the author asked for that.
    forgiven.set(Control::HOST_FILES, spec.root.writable);
    // The operator asks for the record. If the author has chosen that no init stays, a process that writes it needs
    // CAP_KILL.
    forgiven.set(Control::EXIT_RECORD, !spec.init);
    MustHold { author: spec.require, operator: policy.require, forgiven }
}
