//! What is asked for, as plain data: the operator's [`Policy`] and the task's [`SandboxSpec`].
//!
//! Both are serde data with public fields. Names of modes, users, capabilities and ranges are strings
//! here and are read when a sandbox is planned, so that a wrong one is an [`Error::Spec`] that names
//! its field, whichever way it came in. A field of a domain (limits, volumes, network) has the type
//! that the domain gives it.
//!
//! [`Error::Spec`]: crate::Error::Spec
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cgroup::{LimitEnv, Limits};
use crate::filter::Filter;
use crate::ns::Network;
use crate::report::Control;
use crate::rootfs::{ChrootEnv, Device, Dns, HostsEntry, Root, TaskDirs, Volume};

/// The operator's half: defaults for every task, and what no task may pass.
///
/// ```
/// let policy = cofferdam::Policy { denied_host_uids: "0,10-15,22".into(), ..Default::default() };
/// assert_eq!(policy.default_pid_mode, "private");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// PID namespace of a task that asks for none: `private` (the default) or `host`.
    pub default_pid_mode: String,
    /// IPC namespace of a task that asks for none: `private` (the default) or `host`.
    pub default_ipc_mode: String,
    /// Whether a task may share the host's PID namespace. True by default, as the `exec` driver has it.
    pub allow_host_pid: bool,
    /// Whether a task may share the host's IPC namespace. True by default, as the `exec` driver has it.
    pub allow_host_ipc: bool,
    /// Whether a task may see a network: the host's, or one that it joins. True by default; turned off, a task must ask
    /// for [`Network::None`].
    pub allow_network: bool,
    /// Whether a task may choose another system call filter than the default profile, or none. True by default.
    pub allow_filters: bool,
    /// What must hold for every task without reservation, beside what its own
    /// [`require`](SandboxSpec::require) asks for. `Control::all()` is all that the task asks for.
    pub require: Option<Control>,
    /// Enter the root by `chroot(2)`: for hosts whose `/` is a ramdisk, where `pivot_root(2)` is EINVAL.
    pub no_pivot_root: bool,
    /// The capabilities that a task may have, by name, `all` included; the 13 of
    /// [`CapSet::DEFAULT`](crate::caps::CapSet::DEFAULT) when absent. An empty list allows none.
    pub allow_caps: Option<Vec<String>>,
    /// Gives user 0 the 38 capabilities 0 to 37 whatever the lists say, as the `exec` driver does for
    /// the user `root`. Off by default: root obeys the lists like anyone else.
    pub root_keeps_caps: bool,
    /// User ids that no task may run as: ids and ranges, `"0,10-15,22"`.
    pub denied_host_uids: String,
    /// Group ids that no task may be a member of, supplementary ones included.
    pub denied_host_gids: String,
    /// What a root is populated with when its spec does not say: host path to path in the root. Empty
    /// means the `exec` driver's list.
    pub chroot_env: ChrootEnv,
    /// Directories of the host that are left empty wherever they are met below a source of a `chroot_env`: where
    /// the driver keeps its own state and its tasks' roots, say. They are known by device and inode, however they
    /// are spelled.
    pub chroot_skip: Vec<PathBuf>,
    /// The most entries that populating one root may make; no limit when absent.
    pub max_entries: Option<u64>,
    /// The most bytes that the populated files of one root may have together; no limit when absent.
    pub max_bytes: Option<u64>,
    /// The cgroup below which every sandbox gets its own, relative to the root of the hierarchy.
    /// Empty means `cofferdam.slice` on version 2 and `cofferdam` on version 1. Processors are reserved below one
    /// parent: sandboxes with different ones do not keep off each other's.
    ///
    /// Without root the caller must itself be somewhere below a cgroup that it may write, and this be below the
    /// same one: to own this one is not enough. The kernel lets a process be started from one cgroup into another
    /// only by who may write `cgroup.procs` of the lowest cgroup that is above both, and answers `EACCES`. So a
    /// driver is put below the cgroup that is delegated to it, not beside it.
    pub cgroup_parent: String,
    /// Whether tasks keep off the processors that other tasks below `cgroup_parent` reserve with
    /// [`Limits::cores`]. True by default. On version 1 every task must enter a cpuset for that, which costs each
    /// spawn 0.2 ms, and 0.6 where no other task runs. Turned off, `cores` hold the task that asks for them
    /// there, and the report says that others are not kept off. On version 2 it changes nothing: others are
    /// always kept off.
    pub core_partitions: bool,
    /// The controllers that this host must have before any limit is set; if one is lacking none is, and the report
    /// names it. `minimal` (the default): what limits are made of, freezer, memory, cpu and cpuset on version 1,
    /// cpuset, cpu, io, memory and pids on version 2. `documented`: all 12 of the table in the `exec`
    /// driver's documentation; [`Required`](crate::cgroup::Required) says what that means for each.
    pub required_controllers: String,
    /// Directories of the host below which every file or directory that a task names must lie, by its path without
    /// symbolic links: the sources of volumes, devices and its own `chroot_env`, its root, `upper`, `alloc` and `local`.
    /// Anything else is [`Denied`](crate::Error::Denied). Empty means anywhere. The operator's own `chroot_env` and the
    /// default list are not held to it.
    pub allowed_source_roots: Vec<PathBuf>,
    /// Whether a task may have [`volumes`](SandboxSpec::volumes). True by default.
    pub volumes_enabled: bool,
    /// Whether a task may ask for what acts on the host by its nature: a volume with
    /// [`Propagation::Bidirectional`](crate::Propagation::Bidirectional), and a linked root that is
    /// [`writable`](Root::writable). False by default.
    pub allow_privileged: bool,
    /// Where temporary roots are made; the system's temporary directory when empty. Links need it on
    /// the file system of what is linked.
    pub temp_dir: PathBuf,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            default_pid_mode: "private".into(),
            default_ipc_mode: "private".into(),
            allow_host_pid: true,
            allow_host_ipc: true,
            allow_network: true,
            allow_filters: true,
            require: None,
            no_pivot_root: false,
            allow_caps: None,
            root_keeps_caps: false,
            denied_host_uids: String::new(),
            denied_host_gids: String::new(),
            chroot_env: ChrootEnv::new(),
            chroot_skip: Vec::new(),
            max_entries: None,
            max_bytes: None,
            cgroup_parent: String::new(),
            core_partitions: true,
            required_controllers: "minimal".into(),
            allowed_source_roots: Vec::new(),
            volumes_enabled: true,
            allow_privileged: false,
            temp_dir: PathBuf::new(),
        }
    }
}

impl Policy {
    /// For code that nobody has read: submissions to a judge, commands of an agent. No capability, no network, neither
    /// the host's PID nor its IPC namespace, and everything that is asked for must hold without reservation, or nothing
    /// runs. It sets no resource limit: those are the spec's, and required if they are asked for.
    ///
    /// ```no_run
    /// use cofferdam::{Network, Policy, Sandbox};
    /// let task = Sandbox::command("./solution").policy(&Policy::strict()).network(Network::None).spawn()?;
    /// assert!(task.report().weakened.is_empty() && task.report().missing.is_empty());
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    pub fn strict() -> Policy {
        Policy {
            allow_host_pid: false,
            allow_host_ipc: false,
            allow_network: false,
            allow_filters: false,
            require: Some(Control::all()),
            allow_caps: Some(Vec::new()),
            ..Policy::default()
        }
    }
}

/// Where one of the task's standard streams goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdio {
    /// The caller's stream of the same number. Of a regular file the task can also open the inode anew, through
    /// `/proc/self/fd`, for reading and writing, and change its mode and owner if it may: the report weakens
    /// `host_files`. A pipe gives nothing away.
    Inherit,
    /// `/dev/null`.
    #[default]
    Null,
    /// A pipe to the caller, in the [`Task`](crate::Task).
    Piped,
    /// A descriptor of the caller, by its number. It must stay open until `spawn` returns.
    Fd(i32),
}

/// A descriptor that the task gets beside its standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fd {
    /// Its number in the caller. It must stay open until `spawn` returns.
    pub from: i32,
    /// Its number in the task, 3 to 1023.
    pub to: u32,
}

/// A limit of `setrlimit(2)`. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rlimit {
    /// The soft limit, at most the hard one.
    pub soft: Option<u64>,
    /// The hard limit; to raise it above the caller's needs `CAP_SYS_RESOURCE`.
    pub hard: Option<u64>,
}

/// The task's half: what to run, as whom, in which root, with which limits.
///
/// ```
/// use cofferdam::SandboxSpec;
/// let spec = SandboxSpec { command: "id".into(), user: "daemon".into(), ..Default::default() };
/// let json = serde_json::to_string(&spec).unwrap();
/// assert_eq!(serde_json::from_str::<SandboxSpec>(&json).unwrap(), spec);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SandboxSpec {
    /// The sandbox's name, for its cgroup and its temporary root: letters, digits, `.`, `_` and `-`,
    /// at most 128. A random one when empty. It must be unique among running sandboxes: processes in a
    /// cgroup of that name are taken for what an earlier one left behind, and killed.
    pub id: String,
    /// What to execute. It is looked up *inside the root*, with the user's own rights: below `/local`,
    /// then as it stands below `/`, and a name without a slash in /usr/local/bin, /usr/bin and /bin.
    /// `PATH` is not consulted.
    pub command: String,
    /// Its arguments, after the name, which is the absolute path that was found.
    pub args: Vec<String>,
    /// Its whole environment, but for `USER`, `LOGNAME` and `HOME`, which are the user's own and win.
    pub env: BTreeMap<String, String>,
    /// `NAME`, `UID`, `NAME:GROUP` or `UID:GID`, looked up on the host; `nobody` when empty.
    pub user: String,
    /// Absolute path inside the root; made, 0755, when it is absent; `/` when there is none.
    pub work_dir: Option<PathBuf>,
    /// `private`, `host`, or empty for the operator's default.
    pub pid_mode: String,
    /// `private`, `host`, or empty for the operator's default.
    pub ipc_mode: String,
    /// The network.
    pub network: Network,
    /// A host name of the task's own, at most 64 bytes, in a UTS namespace of its own.
    pub hostname: Option<String>,
    /// A cgroup namespace. By default one is made when a cgroup file system can be seen inside.
    pub cgroup_namespace: Option<bool>,
    /// Whether a small init stays as PID 1 of a private PID namespace: it reaps orphans, and the task
    /// is an ordinary process that signals reach; and when the caller dies without having
    /// [detached](crate::Task::detach) the task, it ends it. Without init, or in the host's PID namespace,
    /// the task itself is the process that was cloned, and outlives the caller. True by default.
    pub init: bool,
    /// Capabilities added to the default set; each must be within the operator's allow-list.
    pub cap_add: Vec<String>,
    /// Capabilities dropped from the default set before `cap_add` is added; `all` drops every one.
    pub cap_drop: Vec<String>,
    /// `PR_SET_NO_NEW_PRIVS`. True by default; turned off, setuid programs of the root work, within
    /// the bounding set.
    pub no_new_privs: bool,
    /// Whether the task may make user namespaces (`user_namespaces(7)`). Off by default: in one it has
    /// every capability, and can mount cgroups, whose files it may then write from outside of it. The default profile
    /// then allows to make namespaces and to mount, and never to join a namespace or to open by file handle.
    pub user_namespaces: bool,
    /// The root.
    pub root: Root,
    /// `/alloc`, `/local`, `/secrets` and `/tmp`.
    pub task_dirs: TaskDirs,
    /// An `/etc/resolv.conf` of the sandbox's own, mounted read-only. Without it the file is what the root has.
    pub dns: Option<Dns>,
    /// An `/etc/hosts` of the sandbox's own, mounted read-only, with these lines beside the loopback names and
    /// `hostname`. Without it the file is what the root has.
    pub hosts: Option<Vec<HostsEntry>>,
    /// Which system calls the task can make: those of the default profile when absent.
    pub filter: Filter,
    /// Files and directories of the host.
    pub volumes: Vec<Volume>,
    /// Device nodes of the host.
    pub devices: Vec<Device>,
    /// A device cgroup, which refuses every device but the [`devices`](Self::devices) above and null, zero,
    /// full, random, urandom, tty, ptmx and pts; nodes of any may be made. See [`cgroup::devices`](crate::cgroup::devices).
    ///
    /// It is the devices controller of cgroup v1 where that is mounted and root may write it, and an eBPF program
    /// elsewhere (v2, `CAP_SYS_ADMIN`). When absent there is one where the host can: devices are held
    /// without it too, by `nodev` mounts and a sealed `/dev`, and the report says by which means. `Some(true)`
    /// refuses to run without one; `Some(false)` makes none, for a cgroup's filter that is somebody else's.
    ///
    /// Standard streams and [`fds`](Self::fds) that are other devices can be used, but not opened anew: not
    /// `/dev/stdout` where it is a serial console.
    pub device_cgroup: Option<bool>,
    /// Resource limits, by cgroup.
    pub limits: Limits,
    /// The variables in which the task finds its limits; none by default.
    pub limit_env: LimitEnv,
    /// Resource limits, by `setrlimit(2)`: `nofile`, `core`, `memlock` ...
    pub rlimits: BTreeMap<String, Rlimit>,
    /// `oom_score_adj`, -1000 to 1000. 0 by default, whatever the caller's is.
    pub oom_score_adj: i32,
    /// The task's umask, 0022 by default.
    pub umask: u32,
    /// The task's standard input.
    pub stdin: Stdio,
    /// The task's standard output.
    pub stdout: Stdio,
    /// The task's standard error.
    pub stderr: Stdio,
    /// Further descriptors. All that is not named here or above is closed.
    pub fds: Vec<Fd>,
    /// What must hold, without reservation. When absent: every isolation control that is asked for
    /// must hold, if only in part; resource controls may be missing, all together, and the kernel may
    /// forbid to lower `oom_score`.
    pub require: Option<Control>,
}

impl Default for SandboxSpec {
    fn default() -> Self {
        SandboxSpec {
            id: String::new(),
            command: String::new(),
            args: Vec::new(),
            env: BTreeMap::new(),
            user: String::new(),
            work_dir: None,
            pid_mode: String::new(),
            ipc_mode: String::new(),
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
            oom_score_adj: 0,
            umask: 0o022,
            stdin: Stdio::Null,
            stdout: Stdio::Null,
            stderr: Stdio::Null,
            fds: Vec::new(),
            require: None,
        }
    }
}
