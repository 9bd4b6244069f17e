//! Spec and host into a plan, in the order of a sandbox's life. The one place where domains meet:
//! whatever one of them must know of another is an argument that this page passes.
//!
//! It is pure: it validates, resolves, orders, chooses and degrades, and it touches nothing. Everything
//! that can be refused without asking the kernel is refused here.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::caps::{self, CapSet, Sets};
use crate::cgroup::{self, CgroupName, CgroupPath, Layout};
use crate::error::{Error, Result};
use crate::host::{Host, Survey, chroot_env};
use crate::ids::{self, Identity};
use crate::ns::{self, IsolationMode, Namespaces, Network};
use crate::plan::wire::{Dup, Op};
use crate::plan::{self, Encoded, Handed, IdMaps, Plan, Step};
use crate::report::{Control, Report};
use crate::rootfs::lower::Request;
use crate::rootfs::populate::{self, TempRoot, populate};
use crate::rootfs::{self, ChrootEnv, Kind, Method, Populated, Volume, check_path};
use crate::spec::{Policy, SandboxSpec, Stdio};

mod checks;
#[cfg(test)]
mod tests;

/// A plan with what the parent needs beside it.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub plan: Plan,
    pub cgroup: Layout,
    /// What to build before the clone.
    pub root: RootWork,
}

/// The parent's work on the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootWork {
    /// Where a temporary directory is made, when one is needed.
    pub temp: Option<PathBuf>,
    /// The directory that becomes the root; `None` for a tmpfs.
    pub dir: Option<PathBuf>,
    /// What is linked or copied into it, and how.
    pub populate: Option<(Method, ChrootEnv)>,
}

impl RootWork {
    /// Fills the directory that becomes the root, when it is to be filled.
    pub(crate) fn build(&self, temp: Option<&TempRoot>) -> Result<Option<Populated>> {
        let (Some((method, env)), Some(dir)) = (&self.populate, &self.dir) else { return Ok(None) };
        let given;
        let root = match temp {
            Some(temp) => temp.fd(),
            None => {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                given = nix::fcntl::open(dir, flags, Mode::empty())
                    .map_err(Error::prepare(format!("openat({dir:?}, O_PATH|O_DIRECTORY)")))?;
                given.as_fd()
            }
        };
        populate(root, env, *method, &[]).map(Some)
    }
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
    let identity = identity(policy, host, &survey.identity, namespaces.user)?;
    let mut report = Report::default();
    let sets = capabilities(policy, spec, host, identity, namespaces.user, &mut report)?;
    spec.limits.validate()?;
    let reaper = spec.init && namespaces.pid == IsolationMode::Private;
    let cgroup = cgroup(policy, spec, host, &id, reaper, namespaces.pid, &mut report)?;
    let (root, entries) = root_work(policy, spec, survey, &id, &mut report)?;
    let volumes = volumes(spec, survey)?;
    checks::devices(spec, survey)?;

    let mut handed = vec![Handed::Stdio(0), Handed::Stdio(1), Handed::Stdio(2)];
    let request = Request {
        root: &spec.root,
        dir: root.dir.as_deref(),
        entries: &entries,
        volumes: &volumes,
        devices: &spec.devices,
        work_dir: spec.work_dir.as_deref(),
        masked: &host.masked,
        read_only: &host.read_only,
        null: null_streams(spec),
        pivot: !policy.no_pivot_root,
        privileged: !namespaces.user,
        nodes: !namespaces.user && CapSet::from_name("mknod").is_some_and(|cap| host.held.contains(cap)),
        own_pid: namespaces.pid == IsolationMode::Private,
        own_ipc: namespaces.ipc == IsolationMode::Private,
        new_net: namespaces.network == Network::None,
        nosuid: spec.no_new_privs,
    };
    let visible = request.shows_cgroups(&host.cgroup_mounts());
    let namespaces = Namespaces { cgroup: spec.cgroup_namespace.unwrap_or(visible), ..namespaces };
    let maps = namespaces.user.then(|| id_maps(host, identity));

    let mut init = Vec::new();
    if maps.is_some() {
        init.push(Step::new(Control::IDS, Op::Gate {}));
    }
    oom_score(spec, host, &mut report, &mut init)?;
    init.push(Step::new(Control::MOUNT_NS, Op::Session {}));
    let caller_fds = descriptors(spec, &mut handed)?;
    init.push(caller_fds);
    let lowered = ns::lower::lower(&namespaces, &mut handed, &mut report);
    init.extend(lowered.before);
    enter(&cgroup, &mut handed, &mut init);
    init.extend(lowered.after);
    init.extend(rootfs::lower::lower(&request, &mut report));
    if reaper {
        init.push(Step::new(Control::PID_NS, Op::Fork {}));
    }
    rlimits(spec, &mut report, &mut init)?;
    user_namespaces(spec, sets, &mut report, &mut init);
    credentials(spec, host, identity, sets, namespaces.user, &mut report, &mut init);
    weaken(policy, sets, namespaces.user, namespaces.pid, &mut report);
    let work_dir = spec.work_dir.as_deref().unwrap_or(Path::new("/"));
    init.push(Step::new(Control::ROOT_SWITCH, Op::Cwd { path: plan::path(work_dir) }));
    init.push(Step::new(Control::IDS, Op::Umask { mask: spec.umask }));
    let candidates = candidates(&spec.command);
    init.push(exec(spec, identity, &candidates));

    required(spec, &report)?;
    let plan = Plan {
        id,
        parent: parent_lines(&cgroup, &root, lowered.clone, maps.as_ref()),
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
    let user = !host.privileged();
    if let (true, Some(why)) = (user, &host.user_ns_forbidden) {
        let reason = format!("the caller lacks {} and may make no user namespace: {why}", host.lacking());
        return Err(Error::Unsupported { control: Control::MOUNT_NS, reason });
    }
    let network = spec.network.clone();
    if let (true, Network::Path(path)) = (user, &network) {
        let lacking = host.lacking();
        let reason =
            format!("{path:?} cannot be joined from a user namespace, and the caller lacks {lacking}");
        return Err(Error::Unsupported { control: Control::NET_NS, reason });
    }
    Ok(Namespaces { pid, ipc, network, uts: spec.hostname.clone(), cgroup: false, user })
}

/// Checks the ranges against what the task asks for, and against what it is on the host where a user
/// namespace maps one to the other.
fn identity<'a>(policy: &Policy, host: &Host, asked: &'a Identity, user_ns: bool) -> Result<&'a Identity> {
    let uids = ids::denied_uids(&policy.denied_host_uids)?;
    let gids = ids::denied_gids(&policy.denied_host_gids)?;
    ids::check(asked, &uids, &gids)?;
    if user_ns {
        let mut outside = asked.clone();
        (outside.uid, outside.gid, outside.groups) = (host.uid, host.gid, host.groups.clone());
        ids::check(&outside, &uids, &gids)?;
    }
    Ok(asked)
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
    id: &str,
    reaper: bool,
    pid: IsolationMode,
    report: &mut Report,
) -> Result<Layout> {
    let parent = CgroupPath::new(&policy.cgroup_parent).map_err(|why| Error::spec("cgroup_parent", why))?;
    let name = CgroupName::new(id).map_err(|why| Error::spec("id", why))?;
    let extra = u64::from(reaper);
    let mut layout = cgroup::lower(&spec.limits, &host.cgroups, &parent, &name, extra, false);
    let (kill, missing) = layout.missing.drain(..).partition::<Vec<_>, _>(|r| r.control == Control::KILL);
    layout.missing = missing;
    layout.tell(report);
    report.enforce(Control::KILL);
    if let (IsolationMode::Host, Some(reason)) = (pid, kill.first()) {
        let why =
            format!("only the main process is killed, it has no PID namespace and no cgroup: {}", reason.why);
        report.weaken(Control::KILL, why);
    }
    Ok(layout)
}

/// Source, path in the sandbox, and kind, sorted so that what holds others comes first.
type Entries = Vec<(PathBuf, PathBuf, Kind)>;

fn root_work(
    policy: &Policy,
    spec: &SandboxSpec,
    survey: &Survey,
    id: &str,
    report: &mut Report,
) -> Result<(RootWork, Entries)> {
    let root = &spec.root;
    if let Some(path) = &root.path {
        check_path("root", path)?;
        match survey.kind(path) {
            Some(Kind::Dir) => {}
            Some(_) => return Err(Error::spec("root", format!("{path:?} is not a directory"))),
            None => return Err(Error::spec("root", format!("there is no directory {path:?}"))),
        }
    }
    if root.populate == Method::None && root.path.is_none() {
        return Err(Error::spec(
            "root",
            "populate \"none\" needs the path of a directory to be used as it is",
        ));
    }
    let env = if root.populate == Method::None { ChrootEnv::new() } else { chroot_env(policy, spec) };
    populate::validate(&env)?;
    let (env, absent): (ChrootEnv, ChrootEnv) =
        env.into_iter().partition(|(source, _)| survey.kind(source).is_some());
    // The default list is a list of what a host may have; one that somebody wrote means what it says.
    let written = !spec.root.chroot_env.is_empty() || !policy.chroot_env.is_empty();
    for source in absent.keys().filter(|_| written) {
        report.note(Control::HOST_FILES, format!("left out of the root: the host has no {source:?}"));
    }
    let mut entries: Entries = env
        .iter()
        .map(|(s, d)| (s.clone(), Path::new("/").join(d), survey.kind(s).unwrap_or(Kind::File)))
        .collect();
    entries.sort_by(|a, b| a.1.cmp(&b.1));
    let over_root = entries.iter().find(|(_, target, _)| target == Path::new("/"));
    if let (Method::Bind, Some((source, ..))) = (root.populate, over_root) {
        let why = format!("{source:?} cannot be bound over the new root: give it as the path of the root");
        return Err(Error::spec("chroot_env", why));
    }
    let writes = matches!(root.populate, Method::Link | Method::Copy);
    let base =
        if policy.temp_dir.as_os_str().is_empty() { std::env::temp_dir() } else { policy.temp_dir.clone() };
    let temp = (writes && root.path.is_none()).then_some(base);
    let dir = root.path.clone().or_else(|| temp.as_deref().map(|base| TempRoot::path_in(base, id)));
    let populate = writes.then_some((root.populate, env));
    Ok((RootWork { temp, dir, populate }, entries))
}

fn volumes(spec: &SandboxSpec, survey: &Survey) -> Result<Vec<(Volume, Kind)>> {
    if spec.volumes.len() > plan::wire::SLOTS as usize {
        return Err(Error::spec("volumes", format!("more than {} volumes", plan::wire::SLOTS)));
    }
    spec.volumes
        .iter()
        .map(|volume| {
            check_path("volumes", &volume.source)?;
            check_path("volumes", &volume.target)?;
            if volume.target == Path::new("/") || volume.target.starts_with("/proc") {
                let target = &volume.target;
                return Err(Error::spec("volumes", format!("nothing can be mounted at {target:?}")));
            }
            let kind = survey.kind(&volume.source).ok_or_else(|| {
                Error::spec("volumes", format!("there is no {:?} on the host", volume.source))
            })?;
            Ok((volume.clone(), kind))
        })
        .collect()
}

fn id_maps(host: &Host, identity: &Identity) -> IdMaps {
    IdMaps {
        uid: format!("{} {} 1\n", identity.uid, host.uid),
        gid: format!("{} {} 1\n", identity.gid, host.gid),
    }
}

fn oom_score(spec: &SandboxSpec, host: &Host, report: &mut Report, init: &mut Vec<Step>) -> Result<()> {
    let value = spec.oom_score_adj;
    if !(-1000..=1000).contains(&value) {
        return Err(Error::spec("oom_score_adj", format!("{value} is not within -1000 to 1000")));
    }
    report.enforce(Control::OOM_SCORE);
    if value != host.oom_score_adj {
        let text = value.to_string();
        let op = Op::OomScore { value: plan::text(text.as_bytes()) };
        let step = Step::new(Control::OOM_SCORE, op);
        // Lowering it below the caller's minimum needs CAP_SYS_RESOURCE, and no file tells that minimum.
        let must = spec.require.is_some_and(|required| required.contains(Control::OOM_SCORE));
        init.push(if must { step } else { step.optional() });
    }
    Ok(())
}

/// The task's descriptors: the standard streams, then the declared ones.
fn descriptors(spec: &SandboxSpec, handed: &mut Vec<Handed>) -> Result<Step> {
    let mut map: BTreeMap<u32, u32> = (0..3).map(|n| (n, n)).collect();
    for fd in &spec.fds {
        if !(3..1024).contains(&fd.to) {
            return Err(Error::spec("fds", format!("{} is not within 3 to 1023", fd.to)));
        }
        if handed.len() >= 200 {
            return Err(Error::spec("fds", "more than 197 descriptors"));
        }
        let index = u32::try_from(handed.len()).unwrap_or(u32::MAX);
        if map.insert(fd.to, index).is_some() {
            return Err(Error::spec("fds", format!("two descriptors for number {}", fd.to)));
        }
        handed.push(Handed::Caller(fd.from));
    }
    for (field, stdio) in [("stdin", spec.stdin), ("stdout", spec.stdout), ("stderr", spec.stderr)] {
        if let Stdio::Fd(fd @ ..0) = stdio {
            return Err(Error::spec(field, format!("{fd} is no descriptor")));
        }
    }
    let map = Encoded::of(map.into_iter().map(|(to, from)| Dup { from, to }));
    Ok(Step::new(Control::MOUNT_NS, Op::Fds { map: map.list() }))
}

/// Which of 0, 1 and 2 are `/dev/null`, a bit each.
fn null_streams(spec: &SandboxSpec) -> u8 {
    let streams = [(spec.stdin, 1), (spec.stdout, 2), (spec.stderr, 4)];
    streams.into_iter().filter(|(stdio, _)| *stdio == Stdio::Null).map(|(_, bit)| bit).sum()
}

/// Version 1 cgroups are entered by init itself, which is single-threaded: its own `tasks` write waits
/// for no grace period.
fn enter(cgroup: &Layout, handed: &mut Vec<Handed>, init: &mut Vec<Step>) {
    for tasks in &cgroup.enter {
        let fd = u32::try_from(handed.len()).unwrap_or(u32::MAX);
        handed.push(Handed::Tasks(tasks.clone()));
        init.push(Step::new(Control::RESOURCES, Op::Enter { fd, path: plan::path(tasks) }));
    }
}

fn rlimits(spec: &SandboxSpec, report: &mut Report, init: &mut Vec<Step>) -> Result<()> {
    for (name, limit) in &spec.rlimits {
        let resource = checks::rlimit(name)?;
        let (soft, hard) = (limit.soft.unwrap_or(u64::MAX), limit.hard.unwrap_or(u64::MAX));
        if soft > hard {
            return Err(Error::spec("rlimits", format!("{name}: the soft limit is above the hard one")));
        }
        init.push(Step::new(Control::RLIMITS, Op::Rlimit { resource, soft, hard }));
        report.enforce(Control::RLIMITS);
    }
    Ok(())
}

/// Before the credentials: a filter needs CAP_SYS_ADMIN, or no_new_privs, which is the author's to choose.
fn user_namespaces(spec: &SandboxSpec, sets: Sets, report: &mut Report, init: &mut Vec<Step>) {
    let admin = CapSet::from_name("sys_admin").is_some_and(|cap| sets.bounding.contains(cap));
    if !spec.user_namespaces && !admin {
        report.enforce(Control::NO_USER_NS);
        let step = Step::new(Control::NO_USER_NS, Op::NoUserNamespaces {});
        // A kernel without seccomp filters may refuse it, which only who asked for best effort goes with.
        let must = spec.require.is_none_or(|required| required.contains(Control::NO_USER_NS));
        init.push(if must { step } else { step.optional() });
        return;
    }
    let limits = report.enforced & Control::RESOURCES;
    let why = "the task can mount cgroups, and write their files as their owner or with CAP_DAC_OVERRIDE";
    match limits.is_empty() {
        true => report.note(Control::RESOURCES, why),
        false => report.weaken(limits, why),
    }
}

fn credentials(
    spec: &SandboxSpec,
    host: &Host,
    identity: &Identity,
    sets: Sets,
    user_ns: bool,
    report: &mut Report,
    init: &mut Vec<Step>,
) {
    let last = host.supported.numbers().last().unwrap_or(63);
    init.push(Step::new(Control::CAPS, Op::Bounding { keep: sets.bounding.bits(), last: u32::from(last) }));
    let groups = Encoded::of(identity.groups.iter().copied());
    let (uid, gid) = (identity.uid, identity.gid);
    let ids = Op::Ids { uid, gid, set_groups: u8::from(!user_ns), groups: groups.list() };
    init.push(Step::new(Control::IDS, ids));
    report.enforce(Control::IDS);
    if user_ns {
        let others = host.groups.iter().filter(|g| **g != host.gid).count();
        report.note(
            Control::IDS,
            format!("uid {uid} and gid {gid} inside are {} and {} outside", host.uid, host.gid),
        );
        if others > 0 {
            report.weaken(Control::IDS, "the caller's supplementary groups stay: setgroups(2) is denied to an unprivileged user namespace");
        }
        if identity.groups.iter().any(|g| *g != gid) {
            report.weaken(Control::IDS, "the user's supplementary groups are left out: only one group can be mapped without privileges");
        }
    }
    let (permitted, inheritable, ambient) =
        (sets.permitted.bits(), sets.inheritable.bits(), sets.ambient.bits());
    init.push(Step::new(Control::CAPS, Op::Caps { permitted, inheritable, ambient }));
    if spec.no_new_privs {
        init.push(Step::new(Control::NO_NEW_PRIVS, Op::NoNewPrivs {}));
        report.enforce(Control::NO_NEW_PRIVS);
    }
}

/// What a capability lets a task do to the enclosure itself.
const BREACHES: [(&str, Control, &str); 5] = [
    (
        "sys_admin",
        Control::from_bits_truncate(
            Control::HOST_FILES.bits()
                | Control::MASKED_PATHS.bits()
                | Control::DEVICES.bits()
                | Control::ROOT_SWITCH.bits(),
        ),
        "the task has CAP_SYS_ADMIN: it can remount what is read-only and mount the host's devices",
    ),
    (
        "dac_read_search",
        Control::ROOT_SWITCH,
        "the task has CAP_DAC_READ_SEARCH: open_by_handle_at(2) reaches files outside its root",
    ),
    ("sys_module", Control::all(), "the task has CAP_SYS_MODULE: it can load code into the kernel"),
    ("sys_rawio", Control::DEVICES, "the task has CAP_SYS_RAWIO: it can use the machine's ports"),
    ("sys_ptrace", Control::PID_NS, "the task has CAP_SYS_PTRACE: it can take over any process that it sees"),
];

/// Says where the capabilities that were granted undo what is enforced.
fn weaken(policy: &Policy, sets: Sets, user_ns: bool, pid: IsolationMode, report: &mut Report) {
    let has = |name: &str| CapSet::from_name(name).is_some_and(|cap| sets.bounding.contains(cap));
    if policy.no_pivot_root && has("sys_chroot") {
        report.weaken(
            Control::ROOT_SWITCH,
            "no_pivot_root leaves the host's mounts below the root, and CAP_SYS_CHROOT lets the task out of a chroot",
        );
    } else if policy.no_pivot_root {
        report.note(
            Control::ROOT_SWITCH,
            "no_pivot_root leaves the host's mounts in the namespace, below the root",
        );
    }
    if pid == IsolationMode::Host && has("kill") && !user_ns {
        report.note(Control::PID_NS, "the task has CAP_KILL: it can end any process of the host");
    }
    if user_ns {
        // The mounts belong to the task's own user namespace; beyond it the capability is good for nothing.
        if has("sys_admin") {
            report.weaken(
                Control::HOST_FILES | Control::MASKED_PATHS,
                "the task has CAP_SYS_ADMIN in its user namespace: it can remount what is read-only and unmount what masks",
            );
        }
        return;
    }
    for (name, controls, why) in BREACHES.into_iter().filter(|(name, ..)| has(name)) {
        let controls = controls & report.asked;
        if !controls.is_empty() {
            report.weaken(controls, why);
        } else if name == "sys_ptrace" && pid == IsolationMode::Host {
            report.note(Control::PID_NS, why);
        }
    }
}

/// Where a command is looked for in the root: below `local/`, as it stands, and for a bare name in the
/// system's directories.
fn candidates(command: &str) -> Vec<String> {
    let relative = command.trim_start_matches('/');
    let mut paths = vec![format!("/local/{relative}"), format!("/{relative}")];
    if !command.contains('/') {
        paths.extend(["/usr/local/bin", "/usr/bin", "/bin"].map(|dir| format!("{dir}/{command}")));
    }
    paths
}

fn exec(spec: &SandboxSpec, identity: &Identity, candidates: &[String]) -> Step {
    let mut env = spec.env.clone();
    env.extend(ids::environment(identity));
    let env = Encoded::strings(env.iter().map(|(key, value)| format!("{key}={value}")));
    let (candidates, args) = (Encoded::strings(candidates), Encoded::strings(&spec.args));
    let op = Op::Exec { candidates: candidates.list(), args: args.list(), env: env.list() };
    Step::new(Control::empty(), op)
}

/// Refuses unless what must hold will hold.
pub(crate) fn required(spec: &SandboxSpec, report: &Report) -> Result<()> {
    // Neither confines the task; and the kernel may forbid to lower the score below the caller's.
    let degrades = Control::RESOURCES | Control::OOM_SCORE;
    let unmet = match spec.require {
        // What the author asked to go without is not missing.
        None if spec.root.writable => report.missing.difference(degrades | Control::HOST_FILES),
        None => report.missing.difference(degrades),
        Some(all) if all.is_all() => report.asked.difference(report.enforced),
        Some(some) => some.difference(report.enforced),
    };
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

fn parent_lines(cgroup: &Layout, root: &RootWork, clone: u32, maps: Option<&IdMaps>) -> Vec<String> {
    let mut lines = Vec::new();
    if let (Some(base), Some(around)) = (&root.temp, root.dir.as_deref().and_then(Path::parent)) {
        let name = around.file_name().unwrap_or_default();
        lines.push(format!("mkdirat({base:?}, {name:?}, 0700)"));
        lines.push(format!("mkdirat({around:?}, \"root\", 0700)"));
    }
    if let Some((method, env)) = &root.populate {
        let call = if *method == Method::Link { "linkat" } else { "copy_file_range" };
        lines.extend(env.keys().map(|s| format!("openat({s:?}) # then {call} for each file of it")));
    }
    lines.extend(cgroup.calls());
    use crate::spawn::line;
    lines.extend([line::SOCKET, line::PLAN, line::INIT].map(String::from));
    lines.push(line::clone(clone, cgroup.into.is_some()));
    lines.push(line::EXEC.into());
    if let Some(maps) = maps {
        lines.push("write(\"/proc/PID/setgroups\", \"deny\")".into());
        lines.push(format!("write(\"/proc/PID/uid_map\", {:?})", maps.uid));
        lines.push(format!("write(\"/proc/PID/gid_map\", {:?})", maps.gid));
    }
    lines
}
