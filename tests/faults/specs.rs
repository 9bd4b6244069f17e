//! The specs of the matrix. Together their plans have every operation that this machine can run. Their commands do not
//! end by themselves: a caller that misses that the command runs hangs.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam::cgroup::CgroupPath;
use cofferdam::filter::Filter;
use cofferdam::{
    CallerFd, Device, Dns, ExecSpec, Host, HostsEntry, IsolationMode, Limits, Method, Network, Policy,
    Require, Resource, Rlimit, Root, Sandbox, Secrets, StaleSandbox, Stdio, TaskDirs, Volume, WindowSize,
};

/// A sandbox, and what is done with it.
pub struct Spec {
    pub name: &'static str,
    sandbox: Sandbox,
    pub act: Act,
}

/// What the caller does while calls fail.
pub enum Act {
    Spawn,
    /// Spawns a command that waits until the caller has its handle.
    Gate,
    /// Spawns on mounts that are prepared, with a plan that is kept.
    SpawnPrepared,
    /// Prepares the mounts.
    Prepare,
    /// Executes another command in a task.
    Exec(ExecSpec),
}

impl Act {
    /// The steps of init that are missing in the printed plan, which is that of a task that makes its mounts itself. Of those
    /// that it has, some are not made.
    pub fn more_steps(&self) -> &'static str {
        match self {
            Act::SpawnPrepared => ON_PREPARED,
            Act::Prepare => PREPARING,
            _ => "",
        }
    }
}

const PREPARING: &str = r#"
# open the mount namespace
  openat("/proc/self/ns/mnt", O_RDONLY)
  openat("/proc/self/mountinfo", O_RDONLY)
# mount points of the task's own mounts
  mkdirat(root, "/tmp", 0755)
  mkdirat(root, "/dev/pts", 0755)
  mkdirat(root, "/dev/shm", 0755)
  mkdirat(root, "/dev/mqueue", 0755)
  mkdirat(root, "/proc", 0755)
# send the mount namespace
  sendmsg(the parent, the mount namespace)
  sendmsg(the parent, its table of mounts)
"#;

const ON_PREPARED: &str = r#"
# enter a copy of the prepared mounts
  setns(prepared mounts, CLONE_NEWNS)
  unshare(CLONE_NEWNS)
  openat("/", O_PATH)
  openat2(root, "/dev", RESOLVE_IN_ROOT|RESOLVE_NO_SYMLINKS)
  openat2(root, "/proc", RESOLVE_IN_ROOT|RESOLVE_NO_SYMLINKS)
  openat2(root, "/sys", RESOLVE_IN_ROOT|RESOLVE_NO_SYMLINKS)
# enter the root
  chdir("/")
"#;

impl Spec {
    pub fn sandbox(&self) -> Sandbox {
        self.sandbox.clone()
    }
}

/// Makes the directories in which the sandboxes of one driver are.
pub fn make_dirs(dir: &Path) {
    for name in ["temp", "state", "volume", "upper", "tree"] {
        std::fs::DirBuilder::new().mode(0o755).create(dir.join(name)).unwrap();
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn parent(dir: &Path) -> String {
    format!("cofferdam-faults-{}", dir.file_name().unwrap().to_str().unwrap().trim_start_matches('.'))
}

pub fn policy(dir: &Path) -> Policy {
    Policy {
        cgroup_parent: CgroupPath::new(&parent(dir)).unwrap(),
        temp_dir: Some(dir.join("temp")),
        state_dir: Some(dir.join("state")),
        allow_caps: Some(vec!["all".into()]),
        ..Policy::default()
    }
}

/// What is left of the sandboxes of a driver: files and cgroups.
pub fn left(dir: &Path) -> Vec<String> {
    let mut left = Vec::new();
    for name in ["temp", "state", "volume"] {
        let entries = std::fs::read_dir(dir.join(name)).unwrap();
        left.extend(entries.map(|entry| entry.unwrap().path().display().to_string()));
    }
    let host = cgroup_mounts();
    left.extend(
        host.into_iter()
            .map(|mount| mount.join(parent(dir)))
            .filter(|dir| dir.exists())
            .map(|dir| dir.display().to_string()),
    );
    left
}

/// The mount points of all hierarchies.
fn cgroup_mounts() -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroup = |line: &&str| line.contains(" - cgroup");
    text.lines().filter(cgroup).filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

/// The files of a small root with `sleep`.
const FILES: [&str; 3] = ["/bin/sleep", "/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"];

fn small(root: Root) -> Root {
    Root { chroot_env: FILES.map(|file| (file.into(), file.into())).into(), ..root }
}

/// The same with a directory, which is linked: its mount points are made in it.
fn linked(dir: &Path) -> Root {
    let mut root = small(Root { populate: Method::Link, ..Root::default() });
    root.chroot_env.insert(dir.join("tree"), "/tree".into());
    root
}

pub fn all(dir: &Path, host: &Host) -> Vec<Spec> {
    let privileged = host.lacking().is_empty();
    let policy = policy(dir);
    let base = |name: &str| {
        Sandbox::command("/bin/sleep")
            .arg("600")
            .policy(&policy)
            .host(host)
            .id(format!("faults-{name}"))
            .require(Require::BestEffort)
    };
    let spec = |name, sandbox| Spec { name, sandbox, act: Act::Spawn };
    let size = WindowSize { rows: 24, columns: 80 };
    let mut all = vec![
        spec("full", full(base("full"), dir)),
        spec(
            "plain",
            base("plain")
                .init(false)
                .pid_mode(IsolationMode::Host)
                .ipc_mode(IsolationMode::Host)
                .no_new_privs(false),
        ),
        spec(
            "copied",
            base("copied")
                .filter(Filter::None)
                .replace(true)
                .root(small(Root { populate: Method::Copy, ..Root::default() }))
                .work_dir("/new/dir"),
        ),
        spec(
            "linked",
            base("linked").root(linked(dir)).volume(Volume {
                source: "/bin/sleep".into(),
                target: "/tree/point".into(),
                read_only: true,
                ..Volume::default()
            }),
        ),
        spec(
            "overlay",
            base("overlay").root(Root { populate: Method::Overlay, ..Root::default() }).terminal(size),
        ),
        spec(
            "upper",
            base("upper").policy(&Policy { no_pivot_root: true, ..policy.clone() }).root(Root {
                populate: Method::Overlay,
                upper: Some(dir.join("upper")),
                ..Root::default()
            }),
        ),
    ];
    let gated = |name, sandbox| Spec { act: Act::Gate, ..spec(name, sandbox) };
    all.push(gated("gated", base("gated")));
    if privileged {
        all.push(gated("gated-outside", base("gated-outside").init(false)));
        let alone = Policy { state_dir: None, ..policy.clone() };
        all.push(gated("gated-alone", base("gated-alone").policy(&alone).init(false)));
        let net = Network::Path("/proc/self/ns/net".into());
        all.push(spec(
            "joined",
            base("joined").network(net).user("root").cap_add("sys_ptrace").cap_add("kill"),
        ));
        let cores = host.cgroups.online.iter().take(1).collect();
        let limits = Limits { cores, ..Limits::default() };
        all.push(spec("reserved", base("reserved").limits(limits)));
        // No process stays.
        let alone = Policy { state_dir: None, ..policy.clone() };
        all.push(spec("alone", base("alone").policy(&alone).init(false)));
        // A process stays outside of the PID namespace.
        all.push(spec("outside", base("outside").init(false)));
        for (name, act) in [("prepared", Act::SpawnPrepared), ("preparing", Act::Prepare)] {
            let sandbox = base(name).user("65534:65534").work_dir("/v").volume(Volume {
                source: dir.join("volume"),
                target: "/v".into(),
                ..Volume::default()
            });
            all.push(Spec { name, sandbox, act });
        }
    }
    let exec = ExecSpec::command("/bin/sleep").args(["600"]);
    for (name, exec) in
        [("exec", exec.clone().deadline(Duration::from_secs(600))), ("exec-terminal", exec.terminal(size))]
    {
        all.push(Spec { act: Act::Exec(exec), ..spec(name, base(name)) });
    }
    all
}

/// A spec with nearly every field.
fn full(sandbox: Sandbox, dir: &Path) -> Sandbox {
    let core = Rlimit { soft: Some(0), hard: Some(0) };
    let null = std::fs::File::open("/dev/null").unwrap();
    let limits =
        Limits { memory: Some(64 << 20), pids_max: Some(32), cpu_shares: Some(100), ..Limits::default() };
    let secrets = Secrets { files: [("key".to_owned(), "value".to_owned())].into(), ..Secrets::default() };
    let volume =
        Volume { source: dir.join("volume"), target: "/v".into(), read_only: true, ..Volume::default() };
    sandbox
        .limits(limits)
        .volume(volume)
        .device(Device { target: "/dev/sink".into(), ..Device::new("/dev/null") })
        .network(Network::None)
        .hostname("dam")
        .rlimit(Resource::Core, core)
        .oom_score_adj(500)
        .work_dir("/v")
        .dns(Dns { servers: vec!["192.0.2.1".into()], ..Dns::default() })
        .hosts([HostsEntry { address: "192.0.2.7".into(), names: vec!["db".into()] }])
        .task_dirs(TaskDirs { secrets: Some(secrets), tmp: Some(1 << 20), ..TaskDirs::default() })
        .stdin(CallerFd::duplicate(&null).unwrap())
        .stdout(Stdio::Log)
        .stderr(Stdio::Piped)
        .fd(CallerFd::duplicate(&null).unwrap(), 7)
        .deadline(Duration::from_secs(600))
        .cpu_deadline(Duration::from_secs(600))
}

/// Removes what the program has left when it was killed, as a driver does it. Whether nothing is left.
pub fn bury(dir: &Path) -> bool {
    let host = Host::probe().unwrap();
    let policy = policy(dir);
    let found = StaleSandbox::find(&policy, &host, Duration::ZERO, |_| false).unwrap_or_default();
    for stale in &found {
        let _ = stale.remove();
    }
    if !found.is_empty() || left(dir).iter().any(|path| !path.starts_with("/sys/")) {
        return false;
    }
    // The empty parents stay for the next sandbox in them.
    let parents: Vec<PathBuf> = cgroup_mounts().into_iter().map(|mount| mount.join(parent(dir))).collect();
    if !parents.iter().any(|parent| has_leaf(parent)) {
        parents.iter().for_each(|parent| remove_empty(parent));
    }
    left(dir).is_empty()
}

fn remove_empty(dir: &Path) {
    let children = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.for_each(|child| remove_empty(&child.path()));
    let _ = std::fs::remove_dir(dir);
}

/// Whether a sandbox has a cgroup at the directory or below.
fn has_leaf(dir: &Path) -> bool {
    let children = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut dirs = children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.any(|child| child.file_name().to_string_lossy().contains("faults-") || has_leaf(&child.path()))
}

/// Removes what a failed cell has left.
pub fn clean(dir: &Path) {
    let _ = bury(dir);
    for path in left(dir) {
        let _ = std::fs::remove_dir(path);
    }
}
