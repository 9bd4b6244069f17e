//! Spec and host into a plan, in the order of a sandbox's life. The one place where domains meet:
//! whatever one of them must know of another is an argument that this page passes.
//!
//! It is pure: it validates, resolves, orders, chooses and degrades, and it touches nothing. Everything
//! that can be refused without asking the kernel is refused here.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::caps::{self, CapSet, Sets};
use crate::cgroup::{self, CgroupName, CgroupPath, Layout, Required};
use crate::error::{Error, Result};
use crate::host::{Host, Survey, nodes};
use crate::ids::Identity;
use crate::ns::{self, IsolationMode, Namespaces, Network};
use crate::plan::Plan;
use crate::report::{Control, Report};
use crate::rootfs::lower::Request;
use crate::rootfs::{self, Method};
use crate::spec::{Policy, SandboxSpec};
use crate::step::wire::Op;
use crate::step::{self, Handed, IdMaps, Step};
use identity::Mapping;

mod breaches;
mod checks;
mod conflicts;
pub(crate) mod devices;
mod filter;
mod identity;
mod landlock;
mod method;
mod process;
mod root;
mod sources;
#[cfg(test)]
mod tests;

/// A plan with what the parent needs beside it.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub plan: Plan,
    pub cgroup: Layout,
    /// What to build before the clone.
    pub root: root::RootWork,
}

/// Compiles. `id` is the sandbox's name where the spec has none.
pub(crate) fn compile(
    policy: &Policy,
    spec: &SandboxSpec,
    host: &Host,
    survey: &Survey,
    id: &str,
) -> Result<Compiled> {
    checks::kernel(host)?;
    checks::strings(spec)?;
    let id = checks::id(if spec.id.is_empty() { id } else { &spec.id })?;
    let namespaces = namespaces(policy, spec, host, survey)?;
    let identity = &survey.identity;
    let mut report = Report::default();
    let sets = capabilities(policy, spec, host, identity, namespaces.user, &mut report)?;
    let filters = filter::choose(policy, spec, sets, namespaces.pid)?;
    spec.limits.validate()?;
    let told = spec.limit_env.variables(&spec.limits)?;
    let reaper = spec.init && namespaces.pid == IsolationMode::Private;
    checks::devices(spec, survey)?;
    let cgroup = cgroup(policy, spec, host, survey, &id, namespaces.pid, &mut report)?;
    let (root, entries) = root::work(policy, spec, host, survey, &id, &mut report)?;
    let mapping =
        Mapping::of(host, identity, namespaces.user, root.dir.is_some() || spec.root.upper.is_some());
    identity::denied(policy, host, identity, mapping)?;
    let volumes = root::volumes(spec, survey)?;
    spec.task_dirs.validate(|path| survey.kind(path).ok_or_else(|| survey.absent("task_dirs", path)))?;
    conflicts::mounts(spec, &entries, &mut report)?;
    sources::allowed(policy, spec, survey)?;
    let files = root::files(spec, survey)?;
    let private = root::private(policy, spec, host, &entries, &mut report);
    let swappable = root::swappable(host, namespaces.user);

    let mut handed = vec![Handed::Stdio(0), Handed::Stdio(1), Handed::Stdio(2)];
    let request = Request {
        root: &spec.root,
        dir: root.dir.as_deref(),
        real: &survey.real,
        method: root.method,
        entries: &entries,
        task_dirs: &spec.task_dirs,
        user: (identity.uid, identity.gid),
        becomes: mapping == Mapping::Same,
        swappable: swappable.as_deref(),
        files: &files,
        volumes: &volumes,
        devices: &spec.devices,
        work_dir: spec.work_dir.as_deref(),
        masked: &host.masked,
        private: &private,
        proc_options: &host.proc_options,
        read_only: &host.read_only,
        null: process::null_streams(spec),
        pivot: !policy.no_pivot_root,
        privileged: !namespaces.user,
        nodes: nodes(host),
        own_pid: namespaces.pid == IsolationMode::Private,
        user_namespaces: spec.user_namespaces,
        own_ipc: namespaces.ipc == IsolationMode::Private,
        new_net: namespaces.network == Network::None,
        nosuid: spec.no_new_privs,
    };
    let visible = request.shows_cgroups(&host.cgroup_mounts());
    let namespaces = Namespaces { cgroup: spec.cgroup_namespace.unwrap_or(visible), ..namespaces };
    let maps = identity::maps(host, identity, mapping);

    let mut init = Vec::new();
    if maps.is_some() {
        init.push(Step::new(Control::IDS, Op::AwaitIdMaps {}));
    }
    process::oom_score(policy, spec, host, &mut report, &mut init)?;
    init.push(Step::new(Control::MOUNT_NS, Op::Session {}));
    init.push(Step::new(Control::MOUNT_NS, Op::Ordinary {}));
    let caller_fds = process::descriptors(spec, &mut handed)?;
    init.push(caller_fds);
    let lowered = ns::lower::lower(&namespaces, &mut handed, &mut report);
    init.extend(lowered.before);
    process::enter(&cgroup, &mut handed, &mut init);
    init.push(Step::new(Control::MOUNT_NS, Op::Affinity {}));
    init.extend(lowered.after);
    init.extend(rootfs::lower::lower(&request, &mut handed, &mut report));
    filters.common(policy, spec, &mut report, &mut init);
    if reaper {
        process::reaper(host, identity, mapping, &mut handed, &mut init);
    }
    process::rlimits(spec, &mut report, &mut init)?;
    // Last of all; but without no_new_privs both take CAP_SYS_ADMIN.
    let mut filter = filters.own(policy, spec, &mut report);
    let domain = landlock::Domain::of(host, spec, &namespaces, sets);
    if !spec.no_new_privs {
        init.extend(domain.step());
        init.extend(filter.take());
    }
    process::credentials(spec, host, identity, sets, mapping, &mut report, &mut init);
    sources::lead(policy, spec, host, survey, &mut report)?;
    sources::streams(survey, &mut report);
    breaches::shared(spec, sets, &namespaces, domain, &mut report);
    filters.tell(&namespaces, &mut report);
    breaches::weaken(policy, sets, &namespaces, (&filters, domain), &mut report);
    if spec.no_new_privs {
        init.extend(domain.step());
    }
    let work_dir = spec.work_dir.as_deref().unwrap_or(Path::new("/"));
    init.push(Step::new(Control::ROOT_SWITCH, Op::Cwd { path: step::path(work_dir) }));
    init.push(Step::new(Control::IDS, Op::Umask { mask: spec.umask }));
    let candidates = process::candidates(&spec.command);
    init.push(process::find(&candidates));
    init.extend(filter);
    init.push(process::exec(spec, told, identity));

    if handed.len() > step::wire::FDS as usize {
        let why = format!("more than {} files, directories and descriptors are handed over", step::wire::FDS);
        return Err(Error::spec("volumes", why));
    }
    required(policy, spec, &report)?;
    let plan = Plan {
        id,
        parent: parent_lines(&cgroup, &root, &handed, lowered.clone, maps.as_ref()),
        namespaces: lowered.clone,
        handed,
        init,
        maps,
        reaper,
        command: spec.command.clone(),
        candidates,
        report,
    };
    Ok(Compiled { plan, cgroup, root })
}

fn namespaces(policy: &Policy, spec: &SandboxSpec, host: &Host, survey: &Survey) -> Result<Namespaces> {
    let default = ("default_pid_mode", policy.default_pid_mode.as_str());
    let pid = ns::resolve_mode(("pid_mode", &spec.pid_mode), default, policy.allow_host_pid)?;
    let default = ("default_ipc_mode", policy.default_ipc_mode.as_str());
    let ipc = ns::resolve_mode(("ipc_mode", &spec.ipc_mode), default, policy.allow_host_ipc)?;
    checks::network(&spec.network, survey)?;
    if !policy.allow_network && spec.network != Network::None {
        let why = "network: this host's policy allows no network (allow_network is off): ask for \"none\"";
        return Err(Error::denied(why));
    }
    let user = !host.privileged();
    if let (true, Some(why)) = (user, &host.user_ns_forbidden) {
        let reason = format!("the caller {} and may make no user namespace: {why}", host.hindrance());
        return Err(Error::Unsupported { control: Control::MOUNT_NS, reason });
    }
    let network = spec.network.clone();
    if let (true, Network::Path(path)) = (user, &network) {
        let hindrance = host.hindrance();
        let reason = format!("{path:?} cannot be joined from a user namespace, and the caller {hindrance}");
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
    report: &mut Report,
) -> Result<Sets> {
    let allow = policy.allow_caps.as_deref();
    let asked = caps::calculate(allow, &spec.cap_add, &spec.cap_drop, host.supported)?;
    let sets = if policy.root_keeps_caps && identity.uid == 0 {
        report.note(
            Control::CAPS,
            "user 0 keeps capabilities 0 to 37 by the operator's policy, whatever the lists say",
        );
        Sets::legacy_root(host.supported)
    } else {
        Sets::for_uid(identity.uid, asked)
    };
    report.enforce(Control::CAPS);
    // In a user namespace of its own a task can have them all; they are good for nothing outside of it.
    let held = if user_ns { host.supported } else { host.held };
    let withheld = caps::withheld(sets.permitted, held);
    if !withheld.is_empty() {
        report.note(Control::CAPS, format!("the caller cannot grant what it does not hold: {withheld}"));
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
    pid: IsolationMode,
    report: &mut Report,
) -> Result<Layout> {
    let parent = CgroupPath::new(&policy.cgroup_parent).map_err(|why| Error::spec("cgroup_parent", why))?;
    let name = CgroupName::new(id).map_err(|why| Error::spec("id", why))?;
    let required = policy.required_controllers.parse::<Required>();
    let required = required.map_err(|why| Error::spec("required_controllers", why))?;
    let found = match host.cgroups.required == required {
        true => Cow::Borrowed(&host.cgroups),
        false => Cow::Owned(host.cgroups.requiring(required)),
    };
    let extra = u64::from(spec.init && pid == IsolationMode::Private);
    let rules = devices::rules(spec, host, survey);
    let list = rules.as_deref().unwrap_or_default();
    let mut layout = cgroup::lower(&cgroup::Request {
        extra_pids: extra,
        devices: list,
        partition: policy.core_partitions,
        ..cgroup::Request::new(&spec.limits, &found, &parent, &name)
    });
    let (kill, missing) = layout.missing.drain(..).partition::<Vec<_>, _>(|r| r.control == Control::KILL);
    let (filter, missing) = missing.into_iter().partition::<Vec<_>, _>(|r| r.control == Control::DEVICES);
    layout.missing = missing;
    layout.tell(report);
    let unfiltered = rules.as_ref().err().or_else(|| filter.first().map(|r| &r.why));
    devices::tell(spec, survey, list, &layout, unfiltered.map(String::as_str), report)?;
    report.enforce(Control::KILL);
    if let (IsolationMode::Host, Some(reason)) = (pid, kill.first()) {
        let why =
            format!("only the main process is killed, it has no PID namespace and no cgroup: {}", reason.why);
        report.weaken(Control::KILL, why);
    }
    Ok(layout)
}

/// Refuses unless what must hold will hold, by the author's word and by the operator's.
pub(crate) fn required(policy: &Policy, spec: &SandboxSpec, report: &Report) -> Result<()> {
    // Neither confines the task; and the kernel may forbid to lower the score below the caller's.
    let degrades = Control::RESOURCES | Control::OOM_SCORE;
    let unmet = match spec.require {
        // What the author asked to go without is not missing.
        None if spec.root.writable => report.missing.difference(degrades | Control::HOST_FILES),
        None => report.missing.difference(degrades),
        Some(some) => report.unmet(some),
    };
    let unmet = unmet | policy.require.map_or(Control::empty(), |some| report.unmet(some));
    if unmet.is_empty() {
        return Ok(());
    }
    // A remark on a control that nobody asked for is no reason why it does not hold.
    let reason = match report.why(unmet & report.asked) {
        why if why.is_empty() => "the spec does not ask for it".to_string(),
        why => why,
    };
    Err(Error::Unsupported { control: unmet, reason })
}

fn parent_lines(
    cgroup: &Layout,
    root: &root::RootWork,
    handed: &[Handed],
    clone: u32,
    maps: Option<&IdMaps>,
) -> Vec<String> {
    let call = match root.method {
        Method::Link => "linkat",
        Method::Reflink => "ioctl(FICLONE)",
        _ => "copy_file_range",
    };
    let open = |source: &PathBuf| format!("openat2({source:?}, O_PATH) # later {call} for each file of it");
    let mut lines: Vec<String> = root.env.keys().map(open).collect();
    if let (Some(base), Some(around)) = (&root.temp, root.dir.as_deref().and_then(Path::parent)) {
        let name = around.file_name().unwrap_or_default();
        lines.push(format!("mkdirat({base:?}, {name:?}, 0700)"));
        lines.push(format!("mkdirat({around:?}, \"root\", 0700)"));
    }
    lines.extend(cgroup.calls());
    lines.extend(handed.iter().filter_map(|handed| match handed {
        Handed::Tree { source, recursive } => Some(crate::spawn::line::tree(source, *recursive)),
        _ => None,
    }));
    use crate::spawn::line;
    lines.extend([line::SOCKET, line::PLAN, line::INIT].map(String::from));
    lines.push(line::clone(clone, cgroup.into.is_some()));
    lines.push(line::EXEC.into());
    if let Some(maps) = maps {
        if !maps.set_groups {
            lines.push("write(\"/proc/PID/setgroups\", \"deny\")".into());
        }
        lines.push(format!("write(\"/proc/PID/uid_map\", {:?})", maps.uid));
        lines.push(format!("write(\"/proc/PID/gid_map\", {:?})", maps.gid));
    }
    lines
}
