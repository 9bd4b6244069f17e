//! The request for a sandbox as plain data: the operator's [`Policy`] and the author's [`SandboxSpec`].
//!
//! Both are serde data with public fields. When they are deserialised, an absent field has its default, an unknown
//! field is an error, and every error names its field. Values that depend on the host (users, capabilities, paths) are
//! checked when a sandbox is planned. A wrong value is then an [`Error::Spec`] with the name of its field.
//!
//! Minor versions add fields: write literals with `..Default::default()`.
//!
//! [`Error::Spec`]: crate::Error::Spec
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cgroup::devices::Access;
use crate::cgroup::{CgroupPath, LimitEnv, Limits, RequiredControllers};
use crate::filter::Filter;
use crate::ids::IdRanges;
use crate::notation;
use crate::ns::{IsolationMode, Network};
use crate::report::Require;
use crate::rootfs::{ChrootEnv, Dns, HostsEntry, Root, TaskDirs, Volume, check_path};

mod exec;
mod fd;
mod rlimit;

pub use exec::{ExecSpec, WindowSize};
pub use fd::{CallerFd, Fd, Stdio};
pub use rlimit::{Resource, Rlimit};

/// The operator's half of a request: defaults for every task, and limits on what a spec may ask for.
///
/// ```
/// use cofferdam::Policy;
///
/// let policy = Policy { denied_host_uids: "0,10-15,22".parse()?, ..Policy::default() };
/// assert_eq!(policy, serde_json::from_str(r#"{"denied_host_uids": "0,10-15,22"}"#)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct Policy {
    /// PID namespace of a task whose spec has no `pid_mode`. Private by default.
    pub default_pid_mode: IsolationMode,
    /// IPC namespace of a task whose spec has no `ipc_mode`. Private by default.
    pub default_ipc_mode: IsolationMode,
    /// Whether a task may share the host's PID namespace. True by default, as in the `exec` driver.
    pub allow_host_pid: bool,
    /// Whether a task may share the host's IPC namespace. True by default, as in the `exec` driver.
    pub allow_host_ipc: bool,
    /// Whether a task may use a network: the host's, or one that it joins. True by default. If false, a spec must ask
    /// for [`Network::None`].
    pub allow_network: bool,
    /// Whether a spec may choose a system call filter other than the default profile, or none. True by default.
    pub allow_filters: bool,
    /// The controls that must hold for every task, in addition to the [`require`](SandboxSpec::require) of its spec. If
    /// both are absent, [`Require::Asked`] applies.
    pub require: Option<Require>,
    /// Whether the root is entered by `chroot(2)`. For hosts whose `/` is the initial ramfs, where `pivot_root(2)`
    /// fails with `EINVAL`. False by default.
    pub no_pivot_root: bool,
    /// The capabilities that a task may have, by name, or `all`. If absent, the 13 of
    /// [`CapSet::DEFAULT`](crate::caps::CapSet::DEFAULT). An empty list allows none.
    pub allow_caps: Option<Vec<String>>,
    /// Whether user 0 has the capabilities 0 to 37 regardless of all lists, as the user `root` has in the `exec`
    /// driver. False by default: the lists apply to root too.
    pub root_keeps_caps: bool,
    /// User ids that no task may run as. Serialised as a list of ranges: `"0,10-15,22"`.
    pub denied_host_uids: IdRanges,
    /// Group ids that no task may have, as its primary group or as a supplementary one.
    pub denied_host_gids: IdRanges,
    /// The map that populates a root whose spec has none: host path to path in the root. If empty, the list of the
    /// `exec` driver.
    pub chroot_env: ChrootEnv,
    /// Directories of the host that stay empty wherever they are below a source of a `chroot_env`, for example the
    /// directory with the driver's state and the tasks' roots. They are compared by device and inode number, so other
    /// paths to them count too.
    pub chroot_skip: Vec<PathBuf>,
    /// Maximum number of entries that populating one root makes, directories included. No limit if absent.
    pub max_entries: Option<u64>,
    /// Maximum size in bytes of all populated files of one root together. No limit if absent.
    #[serde(deserialize_with = "notation::optional_size_from")]
    pub max_bytes: Option<u64>,
    /// The cgroup that contains the cgroup of every sandbox, relative to the root of the hierarchy. If empty,
    /// `cofferdam.slice` on v2 and `cofferdam` on v1. CPU reservations are valid among the sandboxes of one parent:
    /// sandboxes with different parents do not see each other's.
    ///
    /// An unprivileged caller needs a cgroup that it may write, and both the caller and this parent must be below that
    /// cgroup. To own the parent is not enough. To start a process in another cgroup, the caller must be able to write
    /// `cgroup.procs` of the lowest common ancestor of both cgroups; otherwise the kernel fails with `EACCES`. So run a
    /// driver below the cgroup that is delegated to it, not beside it.
    pub cgroup_parent: CgroupPath,
    /// Whether tasks avoid the CPUs that other tasks below `cgroup_parent` have reserved with [`Limits::cores`]. True
    /// by default.
    ///
    /// On v1 every task must enter a cpuset for this, which takes 0.2 ms per spawn, and 0.6 ms if no other task runs.
    /// If false, `cores` on v1 confine only the task that asks for them, and the report says that other tasks may run
    /// on these CPUs. On v2 this field has no effect: other tasks always avoid reserved CPUs.
    pub core_partitions: bool,
    /// The controllers that this host must have before any limit is set. If one is missing, no limit is set, and the
    /// report names the controller. [`RequiredControllers::Minimal`] by default.
    pub required_controllers: RequiredControllers,
    /// Directories of the host that must contain every file and directory that a spec names: the sources of volumes,
    /// devices and its own `chroot_env`, its root, `upper`, `alloc` and `local`. Paths are compared after symbolic
    /// links are resolved. Any other path is [`Denied`](crate::Error::Denied). If empty, every path is allowed. The
    /// operator's own `chroot_env` and the default list are not checked.
    pub allowed_source_roots: Vec<PathBuf>,
    /// Whether a spec may have [`volumes`](SandboxSpec::volumes). True by default.
    pub volumes_enabled: bool,
    /// Whether a spec may ask for features that change the host: a volume with
    /// [`Propagation::Bidirectional`](crate::Propagation::Bidirectional), and a linked root that is
    /// [`writable`](Root::writable). False by default.
    pub allow_privileged: bool,
    /// Directory for temporary roots. If absent, `TMPDIR`, or `/tmp` if that is not an absolute path. Hard links need it to
    /// be on the file system of their sources.
    pub temp_dir: Option<PathBuf>,
    /// Directory of the host for exit records (`ID.exit`) and logs (`ID.log`). If it is set, PID 1 of a task, or a process
    /// that stays if init is not PID 1 ([`init`](SandboxSpec::init)), writes the exit status to the file `ID.exit` in it. So
    /// the status is known after the end of the caller: see [`Sandbox::recover`](crate::Sandbox::recover). Removing the task
    /// removes both files.
    ///
    /// Drivers that share this directory must share `temp_dir` and `cgroup_parent` too: see
    /// [`StaleSandbox`](crate::StaleSandbox).
    ///
    /// The directory must exist, and no task may be able to write to it. A directory that every user may write to
    /// is refused, unless it is sticky (`chmod(2)`). It must be an absolute path. If absent, the status of a task that ends
    /// without its caller is lost.
    pub state_dir: Option<PathBuf>,
    /// Size of the ring in which the [log](Stdio::Log) of a task is kept, in bytes: the newest entries. Each of them takes
    /// 16 bytes more than it has. 16 MiB by default; 64 KiB to 1 TiB. Less if the caller's limit of file sizes is lower
    /// (`RLIMIT_FSIZE`). With a limit below 64 KiB, any spawn may fail: the plan is passed to init in a file.
    ///
    /// If the file system of the state directory is full, the log lacks what could not be written.
    pub log_size: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            default_pid_mode: IsolationMode::Private,
            default_ipc_mode: IsolationMode::Private,
            allow_host_pid: true,
            allow_host_ipc: true,
            allow_network: true,
            allow_filters: true,
            require: None,
            no_pivot_root: false,
            allow_caps: None,
            root_keeps_caps: false,
            denied_host_uids: IdRanges::default(),
            denied_host_gids: IdRanges::default(),
            chroot_env: ChrootEnv::new(),
            chroot_skip: Vec::new(),
            max_entries: None,
            max_bytes: None,
            cgroup_parent: CgroupPath::default(),
            core_partitions: true,
            required_controllers: RequiredControllers::Minimal,
            allowed_source_roots: Vec::new(),
            volumes_enabled: true,
            allow_privileged: false,
            temp_dir: None,
            state_dir: None,
            log_size: 16 << 20,
        }
    }
}

impl Policy {
    /// Checks the directories in which sandboxes have files.
    pub(crate) fn check_dirs(&self) -> crate::Result<()> {
        let dirs = [("temp_dir", &self.temp_dir), ("state_dir", &self.state_dir)];
        dirs.iter().try_for_each(|(field, dir)| dir.as_deref().map_or(Ok(()), |dir| check_path(field, dir)))
    }

    /// A policy for untrusted code, such as submissions to a judge or commands of an agent.
    ///
    /// It allows no capability, no network, no host PID or IPC namespace and no other filter than the default profile.
    /// It requires [`Require::Full`]: a spawn fails if any control that was asked for is weakened or missing. It sets
    /// no resource limit. The limits of a spec must hold as well.
    ///
    /// ```no_run
    /// use cofferdam::{Limits, Network, Policy, Sandbox};
    ///
    /// let task = Sandbox::command("/local/solution")
    ///     .policy(&Policy::strict())
    ///     .network(Network::None) // the default, the host's network, is denied
    ///     .limits(Limits { memory: Some(64 << 20), pids_max: Some(16), ..Limits::default() })
    ///     .spawn()?;
    /// assert!(task.report().weakened.is_empty() && task.report().missing.is_empty());
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    pub fn strict() -> Policy {
        Policy {
            allow_host_pid: false,
            allow_host_ipc: false,
            allow_network: false,
            allow_filters: false,
            require: Some(Require::Full),
            allow_caps: Some(Vec::new()),
            ..Policy::default()
        }
    }
}

/// A device node of the host that is bind-mounted in the sandbox.
///
/// ```
/// use cofferdam::{Device, Sandbox, cgroup::devices::Access};
///
/// let disk = Device { access: Access::READ, ..Device::new("/dev/loop0") };
/// let sandbox = Sandbox::command("fuse-mount").device(Device::new("/dev/fuse")).device(disk);
/// # let _ = sandbox;
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct Device {
    /// Absolute path of the node on the host.
    pub source: PathBuf,
    /// Absolute path in the sandbox. If empty, the same as `source`.
    pub target: PathBuf,
    /// The allowed access; all by default. Serialised as any of the letters `r`, `w` and `m`.
    ///
    /// Only a [device cgroup](SandboxSpec::device_cgroup) can enforce less than `rw`. Without one, the report says so.
    /// `m` has no effect, because the node is a bind mount; making nodes depends on `CAP_MKNOD`.
    #[serde(alias = "permissions")]
    pub access: Access,
}

impl Default for Device {
    fn default() -> Self {
        Device { source: PathBuf::new(), target: PathBuf::new(), access: Access::all() }
    }
}

impl Device {
    /// The node at `path`, at the same path in the sandbox, with all access.
    pub fn new(path: impl Into<PathBuf>) -> Device {
        Device { source: path.into(), ..Device::default() }
    }

    /// Path of the node in the sandbox.
    pub(crate) fn place(&self) -> &PathBuf {
        if self.target.as_os_str().is_empty() { &self.source } else { &self.target }
    }
}

/// What becomes of a task when the process that spawned it ends. Serialised as `"driver"` or `"survive"`.
///
/// ```
/// use cofferdam::{DieWith, Policy, Sandbox};
///
/// // The task goes on when the driver is killed or restarted, which then finds it again by its handle.
/// let policy = Policy { state_dir: Some("/var/lib/driver".into()), ..Policy::default() };
/// let sandbox = Sandbox::command("daemon").policy(&policy).die_with(DieWith::Survive);
/// # let _ = sandbox;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DieWith {
    /// PID 1 kills the task when the process that spawned it has ended, also by SIGKILL (`pidfd_open(2)`, Linux 5.3). A
    /// thread that ends does not matter, nor does a child that the process has forked. It needs a private PID namespace, and
    /// [`init`](SandboxSpec::init) or a [`state_dir`](Policy::state_dir): other tasks survive. A
    /// [frozen](crate::Task::freeze) task ends when it is thawed. The exit record of a task that ends so says that it was
    /// killed.
    #[default]
    Driver,
    /// The task goes on. Dropping its [`Task`](crate::Task) kills and removes nothing either. Another process gets it
    /// back by its [`TaskHandle`](crate::TaskHandle), and [`release`](crate::Task::release) ends it.
    ///
    /// Until the command is executed, a task ends with the caller in any case.
    Survive,
}

/// The author's half of a request: the command, its user, its root, its namespaces and its limits.
///
/// [`Sandbox`](crate::Sandbox) has a builder method for each field.
///
/// ```
/// use cofferdam::SandboxSpec;
///
/// let spec = SandboxSpec { command: "id".into(), user: Some("daemon".into()), ..SandboxSpec::default() };
/// assert_eq!(spec, serde_json::from_str(r#"{"command": "id", "user": "daemon"}"#)?);
///
/// let wrong = serde_json::from_str::<SandboxSpec>(r#"{"command": "id", "limits": {"memory": "64q"}}"#);
/// assert!(wrong.is_err_and(|e| e.to_string().starts_with("limits.memory: ")));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct SandboxSpec {
    /// Name of the sandbox, which its cgroup and its temporary root are named after: 1 to 128 letters, digits, `.`, `_`
    /// and `-`, without a leading `.`. If absent, a random name.
    ///
    /// If a sandbox of that name runs, the spawn fails with `ResourceBusy`; if the policy has a
    /// [`state_dir`](Policy::state_dir), also if its owner is gone. Without one, the cgroups of a stale sandbox, whose owner
    /// is gone or has [detached](crate::Task::detach) it, are killed and removed. Both need a cgroup that the caller may
    /// use. A temporary root of that name is replaced if its owner is gone and no process has it as its root; otherwise
    /// the spawn fails with `ResourceBusy`.
    pub id: Option<String>,
    /// Whether the spawn ends the task that has this [`id`](Self::id), and takes its place. False by default; true needs
    /// an `id`. If no task has it, the spawn is as any other.
    ///
    /// The spawn first kills every process of the task, by its cgroup; without a cgroup, the process that writes the exit
    /// record and its descendants, or a process that has the temporary root as its root. It does so whichever process
    /// owns the task, and also if the task has no owner. It never touches what another user has made. The owner's
    /// [`wait`](crate::Task::wait) returns a kill by signal 9.
    ///
    /// While its owner lives, only the owner removes what the task has made. So the spawn waits for it to
    /// [`release`](crate::Task::release) the task, which a `wait` does too, and a drop, for at most 10 seconds and
    /// within its deadline. It removes what a dead owner, a detached task and a task that survives its driver have
    /// left. Then it makes the new task, and nothing that the old owner still does with its value affects that.
    ///
    /// If the task cannot be ended, the spawn fails and starts nothing. The old task may be killed by then. The cause is
    /// `ResourceBusy` if its owner, which the message names, does not release it; the calling process may be that owner.
    /// Of several concurrent spawns, each ends the task that has the id when it begins. Those that find the id taken
    /// meanwhile fail with `ResourceBusy`, as without `replace`.
    ///
    /// A task without a cgroup, an exit record and a temporary root is not found.
    pub replace: bool,
    /// The program to execute. Init looks it up *inside the root*, with the task's own rights:
    ///
    /// - An absolute path is used as it is.
    /// - A relative path with a slash is looked up below [`work_dir`](Self::work_dir), `/local` and `/`, in this order.
    /// - A name without a slash is looked up below `/local` and `/`, then in the directories of the `PATH` in
    ///   [`env`](Self::env), or in `/usr/local/bin:/usr/bin:/bin` if `env` has no `PATH`.
    ///
    /// If it is not found, [`Error::Exec`](crate::Error::Exec) lists these paths. The command has at most 4000
    /// bytes, and is looked up at no more than 200 paths.
    #[serde(with = "notation::os_string")]
    pub command: OsString,
    /// Arguments, without `argv[0]`, which is the absolute path that was found.
    #[serde(with = "notation::os_strings")]
    pub args: Vec<OsString>,
    /// The whole environment: the caller's is not inherited. `USER`, `LOGNAME` and `HOME` come from the host's user
    /// database unless they are set here. For a user that is not in it, or is given as `UID:GID`, `HOME` is `/`, and the
    /// other two are not set.
    #[serde(with = "notation::os_map")]
    pub env: BTreeMap<OsString, OsString>,
    /// `NAME`, `UID`, `NAME:GROUP` or `UID:GID`, looked up in the host's user database unless both are ids. If absent,
    /// `nobody`.
    pub user: Option<String>,
    /// Working directory, an absolute path inside the root. If it does not exist, it is made with mode 0755 by init, so
    /// it may belong to root. In a root of mounts it is removed with the root. If absent, `/`.
    pub work_dir: Option<PathBuf>,
    /// PID namespace (`pid_namespaces(7)`). If absent, the operator's default.
    pub pid_mode: Option<IsolationMode>,
    /// IPC namespace (`ipc_namespaces(7)`). If absent, the operator's default.
    pub ipc_mode: Option<IsolationMode>,
    /// Network namespace (`network_namespaces(7)`). The host's by default.
    pub network: Network,
    /// Host name, 1 to 64 bytes, in a new UTS namespace (`uts_namespaces(7)`). If absent, the host's.
    pub hostname: Option<String>,
    /// Whether the task has a new cgroup namespace (`cgroup_namespaces(7)`, Linux 4.6). If absent, it has one if the
    /// root shows a cgroup file system.
    pub cgroup_namespace: Option<bool>,
    /// Whether a small init stays as PID 1 of a private PID namespace. True by default.
    ///
    /// Init reaps orphans, and the task is PID 2, so the default actions of signals apply to it. If the caller dies
    /// without having [detached](crate::Task::detach) the task, init kills the task, unless it is to
    /// [survive](DieWith::Survive). Without init, or in the host's PID namespace, the cloned process itself executes the
    /// command. Without a [`state_dir`](Policy::state_dir) it then outlives the caller.
    ///
    /// With one, a process of init stays in these cases too. It reaps the command and writes its exit record. In the host's
    /// PID namespace it runs beside the command, which outlives the caller. If the command is PID 1 of a private one, it runs
    /// outside of that namespace, where the task does not see it: it also kills the task at its deadline and at the end of
    /// the caller, for which it keeps `CAP_KILL` and a filter that allows to kill only the command.
    pub init: bool,
    /// Capabilities that are added to the default set, by name, or `all`. The operator's allow-list must have each.
    pub cap_add: Vec<String>,
    /// Capabilities that are dropped from the default set before `cap_add` is added, by name, or `all`.
    pub cap_drop: Vec<String>,
    /// Whether `PR_SET_NO_NEW_PRIVS` is set (Linux 3.5). True by default. If false, setuid programs in the root can
    /// raise privileges, up to the bounding set.
    pub no_new_privs: bool,
    /// Whether the task may create user namespaces (`user_namespaces(7)`). False by default.
    ///
    /// In its own user namespace the task has every capability. It can mount a cgroup file system there, and write its
    /// files. If true, the default profile allows creating namespaces and mounting. It still refuses joining a
    /// namespace and opening by file handle.
    pub user_namespaces: bool,
    /// The root file system.
    pub root: Root,
    /// The directories `/alloc`, `/local`, `/secrets` and `/tmp`. None by default.
    pub task_dirs: TaskDirs,
    /// Content of a new `/etc/resolv.conf`, mounted read-only. If absent, the root's own file stays.
    pub dns: Option<Dns>,
    /// Lines of a new `/etc/hosts`, mounted read-only, in addition to the loopback names and `hostname`. If absent, the
    /// root's own file stays.
    pub hosts: Option<Vec<HostsEntry>>,
    /// System call filter (`seccomp(2)`). The default profile by default.
    pub filter: Filter,
    /// Files and directories of the host that are bind-mounted in the sandbox. Init is passed a descriptor for each of them,
    /// of `devices`, of the bound sources of the root and of `fds`: at most 512 in all, of which a sandbox needs up to 16
    /// itself.
    pub volumes: Vec<Volume>,
    /// Device nodes of the host that are bind-mounted in the sandbox.
    pub devices: Vec<Device>,
    /// Whether the task has a device cgroup: the kernel then refuses to open any device except
    /// [`devices`](Self::devices) and null, zero, full, random, urandom, tty, ptmx and pts. Nodes of any device may be
    /// made. See [`cgroup::devices`](crate::cgroup::devices).
    ///
    /// If absent, there is a device cgroup if the host supports one: the v1 `devices` controller if it is mounted and
    /// root can write it, else an eBPF program (v2, Linux 4.15; `CAP_SYS_ADMIN`, or `CAP_BPF` with
    /// `CAP_NET_ADMIN`). Without a device cgroup, devices are
    /// controlled by `nodev` mounts and a read-only `/dev`, and the report says so. `Some(true)` requires a device
    /// cgroup. `Some(false)` makes none, for cgroups whose device filter another program manages.
    ///
    /// The task can use standard streams and [`fds`](Self::fds) that are other devices, but cannot open them again:
    /// opening `/dev/stdout` fails if it is a serial console.
    pub device_cgroup: Option<bool>,
    /// Resource limits by cgroup.
    pub limits: Limits,
    /// Names of the environment variables that hold the limits. None by default.
    pub limit_env: LimitEnv,
    /// Resource limits by `setrlimit(2)`.
    pub rlimits: BTreeMap<Resource, Rlimit>,
    /// `oom_score_adj` of the task, -1000 to 1000 (`proc_pid_oom_score_adj(5)`). If absent, 0.
    ///
    /// Lowering the caller's minimum needs `CAP_SYS_RESOURCE`. If it is absent and the kernel refuses 0, the task keeps
    /// the caller's value, and the report says so.
    pub oom_score_adj: Option<i32>,
    /// The task's umask, at most 0777. 0022 by default. Serialised as a string of octal digits.
    #[serde(with = "notation::octal")]
    pub umask: u32,
    /// Standard input. `/dev/null` by default.
    pub stdin: Stdio,
    /// Standard output. `/dev/null` by default.
    pub stdout: Stdio,
    /// Standard error. `/dev/null` by default.
    pub stderr: Stdio,
    /// A pseudo-terminal of this size as the standard streams, which then must be left at their default. The command
    /// leads a session that the terminal controls. [`Task::take_terminal`](crate::Task::take_terminal) returns the
    /// caller's end. The task's end belongs to the sandbox's own `devpts`, so the task has no access to a terminal of the
    /// caller (`pty(7)`, Linux 4.13). None if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminal: Option<WindowSize>,
    /// Further descriptors of the caller that the task gets, at most 197. All other descriptors are closed.
    pub fds: Vec<Fd>,
    /// Time after which PID 1 kills the task, also if the caller has ended or has [detached](crate::Task::detach) it. It
    /// counts from the start of the command (`CLOCK_MONOTONIC`), not while the host is suspended. A frozen task is killed
    /// when it is thawed. More than 0 and less than 292 years. No deadline if absent. Serialised as seconds, or a string
    /// such as `"90s"`, `"500ms"` or `"2h"`.
    ///
    /// It needs a private PID namespace, and [`init`](Self::init) or a [`state_dir`](Policy::state_dir). Otherwise the control
    /// is missing, and the spawn fails unless it is best effort ([`Require`](crate::Require)).
    #[serde(with = "notation::optional_duration")]
    pub deadline: Option<Duration>,
    /// CPU time after which PID 1 kills the task, as with [`deadline`](Self::deadline): user and system time of all
    /// processes of the task, of those that have ended, and of init. It is the counter of the task's cgroup (`cpu.stat` of
    /// cgroup v2, `cpuacct.usage` of v1), so no process escapes it, whatever its session or parent.
    ///
    /// PID 1 sleeps as long as the task cannot reach the limit on all CPUs together, and at least 10 ms. So the task
    /// exceeds the limit by at most 10 ms on each CPU, plus one scheduler tick and the time until PID 1 runs. It needs
    /// the same as a deadline, and a cgroup v2 tree or the `cpuacct` controller of v1. It needs no
    /// controller of cgroup v2. No limit if absent. Serialised as [`deadline`](Self::deadline).
    #[serde(with = "notation::optional_duration")]
    pub cpu_deadline: Option<Duration>,
    /// Time after which an unfinished spawn fails with [`Error::Prepare`](crate::Error::Prepare) and `TimedOut`. The error
    /// names the step, and everything made is removed. Not 0; 60 seconds if absent. Serialised as
    /// [`deadline`](Self::deadline).
    ///
    /// It counts from the call, and covers what the spawn waits for: file systems of the sources that do not answer, a server
    /// of users (`nsswitch.conf(5)`) that does not, locks, cgroups, prepared mounts that another thread makes, and init. The
    /// time in which the root is populated by links or copies does not count, since that takes as long as there is to copy,
    /// and has [progress](crate::Sandbox::progress) and a [cancel](crate::Sandbox::cancel) of its own. The time in the
    /// function of [`spawn_with`](crate::Sandbox::spawn_with) does not count either.
    ///
    /// A user is looked up in a thread, which is left behind if it does not get an answer, and ends when it does. At most 16
    /// such threads are left. A user that is given as two ids is not looked up, and needs no thread.
    ///
    /// The time does not cover a file system that stops answering after the source was opened, while the root is populated,
    /// or one that is mounted below a directory that is copied or linked: the caller's thread waits for it. An init in a call that no signal ends is given up after 30 more seconds.
    #[serde(with = "notation::optional_duration")]
    pub spawn_deadline: Option<Duration>,
    /// What becomes of the task when the caller ends. [`DieWith::Driver`] by default.
    pub die_with: DieWith,
    /// The controls that must hold, or the spawn fails with [`Error::Unsupported`](crate::Error::Unsupported). If this
    /// and the operator's [`require`](Policy::require) are absent, [`Require::Asked`] applies.
    pub require: Option<Require>,
}

/// The deadline of a spawn whose spec has none.
const SPAWN_DEADLINE: Duration = Duration::from_secs(60);

impl SandboxSpec {
    /// How long a spawn may take.
    pub(crate) fn spawn_time(&self) -> Duration {
        self.spawn_deadline.unwrap_or(SPAWN_DEADLINE)
    }

    /// The paths of the host that become part of the root, with their fields.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        let volumes = self.volumes.iter().map(|v| ("volumes", &v.source));
        let devices = self.devices.iter().map(|d| ("devices", &d.source));
        let map = self.root.chroot_env.keys().map(|source| ("root.chroot_env", source));
        let root = self.root.path.iter().map(|path| ("root.path", path));
        let upper = self.root.upper.iter().map(|path| ("root.upper", path));
        let dirs = [&self.task_dirs.alloc, &self.task_dirs.local].into_iter().flatten();
        volumes.chain(devices).chain(map).chain(root).chain(upper).chain(dirs.map(|dir| ("task_dirs", dir)))
    }

    /// The standard streams, by number.
    pub(crate) fn streams(&self) -> [(&'static str, &Stdio); 3] {
        [("stdin", &self.stdin), ("stdout", &self.stdout), ("stderr", &self.stderr)]
    }
}

impl Default for SandboxSpec {
    fn default() -> Self {
        SandboxSpec {
            id: None,
            replace: false,
            command: OsString::new(),
            args: Vec::new(),
            env: BTreeMap::new(),
            user: None,
            work_dir: None,
            pid_mode: None,
            ipc_mode: None,
            network: Network::Host,
            hostname: None,
            cgroup_namespace: None,
            init: true,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            no_new_privs: true,
            user_namespaces: false,
            filter: Filter::Default,
            root: Root::default(),
            task_dirs: TaskDirs::default(),
            dns: None,
            hosts: None,
            volumes: Vec::new(),
            devices: Vec::new(),
            device_cgroup: None,
            limits: Limits::default(),
            limit_env: LimitEnv::default(),
            rlimits: BTreeMap::new(),
            oom_score_adj: None,
            umask: 0o022,
            stdin: Stdio::Null,
            stdout: Stdio::Null,
            stderr: Stdio::Null,
            fds: Vec::new(),
            deadline: None,
            terminal: None,
            cpu_deadline: None,
            spawn_deadline: None,
            die_with: DieWith::Driver,
            require: None,
        }
    }
}

notation::from_maps! { with_field
    Policy: "an object with the fields of a policy",
    SandboxSpec: "an object with the fields of a spec",
}

notation::from_maps! {
    Device: "an object with source, target and access",
}
