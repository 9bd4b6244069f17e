//! What is asked for, as plain data: the operator's [`Policy`] and the task's [`SandboxSpec`].
//!
//! Both are serde data with public fields. A field that is absent when it is deserialised has its default, an unknown field
//! is an error, and every error names the field. What depends on the host (users, capabilities, paths) is checked when a
//! sandbox is planned: a wrong value is an [`Error::Spec`] with the name of its field.
//!
//! Fields are added in minor versions: write literals with `..Default::default()`.
//!
//! [`Error::Spec`]: crate::Error::Spec
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::cgroup::devices::Access;
use crate::cgroup::{CgroupPath, LimitEnv, Limits, Required};
use crate::filter::Filter;
use crate::ids::IdRanges;
use crate::notation;
use crate::ns::{IsolationMode, Network};
use crate::report::Require;
use crate::rootfs::{ChrootEnv, Dns, HostsEntry, Root, TaskDirs, Volume};

mod fd;
mod rlimit;

pub use fd::{CallerFd, Fd, Stdio};
pub use rlimit::{Resource, Rlimit};

/// The operator's half: defaults for every task, and what no task may pass.
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
    /// PID namespace of a task that asks for none. Private by default.
    pub default_pid_mode: IsolationMode,
    /// IPC namespace of a task that asks for none. Private by default.
    pub default_ipc_mode: IsolationMode,
    /// Whether a task may share the host's PID namespace. True by default, as the `exec` driver has it.
    pub allow_host_pid: bool,
    /// Whether a task may share the host's IPC namespace. True by default, as the `exec` driver has it.
    pub allow_host_ipc: bool,
    /// Whether a task may see a network: the host's, or one that it joins. True by default; turned off, a task must ask
    /// for [`Network::None`].
    pub allow_network: bool,
    /// Whether a task may choose another system call filter than the default profile, or none. True by default.
    pub allow_filters: bool,
    /// What must hold for every task, beside what its own [`require`](SandboxSpec::require) demands. Where neither says
    /// anything, it is [`Require::Asked`].
    pub require: Option<Require>,
    /// Enter the root by `chroot(2)`: for hosts whose `/` is a ramdisk, where `pivot_root(2)` is EINVAL.
    pub no_pivot_root: bool,
    /// The capabilities that a task may have, by name, `all` included; the 13 of
    /// [`CapSet::DEFAULT`](crate::caps::CapSet::DEFAULT) when absent. An empty list allows none.
    pub allow_caps: Option<Vec<String>>,
    /// Gives user 0 the 38 capabilities 0 to 37 whatever the lists say, as the `exec` driver does for
    /// the user `root`. Off by default: root obeys the lists like anyone else.
    pub root_keeps_caps: bool,
    /// User ids that no task may run as, `"0,10-15,22"` when serialised.
    pub denied_host_uids: IdRanges,
    /// Group ids that no task may be a member of, supplementary ones included.
    pub denied_host_gids: IdRanges,
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
    #[serde(deserialize_with = "notation::optional_size_from")]
    pub max_bytes: Option<u64>,
    /// The cgroup below which every sandbox gets its own, relative to the root of the hierarchy.
    /// Empty means `cofferdam.slice` on version 2 and `cofferdam` on version 1. Processors are reserved below one
    /// parent: sandboxes with different ones do not keep off each other's.
    ///
    /// Without root the caller must itself be somewhere below a cgroup that it may write, and this be below the
    /// same one: to own this one is not enough. The kernel lets a process be started from one cgroup into another
    /// only by who may write `cgroup.procs` of the lowest cgroup that is above both, and answers `EACCES`. So a
    /// driver is put below the cgroup that is delegated to it, not beside it.
    pub cgroup_parent: CgroupPath,
    /// Whether tasks keep off the processors that other tasks below `cgroup_parent` reserve with
    /// [`Limits::cores`]. True by default. On version 1 every task must enter a cpuset for that, which costs each
    /// spawn 0.2 ms, and 0.6 where no other task runs. Turned off, `cores` hold the task that asks for them
    /// there, and the report says that others are not kept off. On version 2 it changes nothing: others are
    /// always kept off.
    pub core_partitions: bool,
    /// The controllers that this host must have before any limit is set. If one is lacking, no limit is set at all, and the
    /// report names the controller. [`Required::Minimal`] by default.
    pub required_controllers: Required,
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
    /// Where temporary roots are made; the system's temporary directory when absent. Links need it on
    /// the file system of what is linked.
    pub temp_dir: Option<PathBuf>,
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
            required_controllers: Required::Minimal,
            allowed_source_roots: Vec::new(),
            volumes_enabled: true,
            allow_privileged: false,
            temp_dir: None,
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
            require: Some(Require::Full),
            allow_caps: Some(Vec::new()),
            ..Policy::default()
        }
    }
}

/// A device node of the host that the task gets.
///
/// ```
/// use cofferdam::{Device, cgroup::devices::Access};
///
/// let fuse = Device::new("/dev/fuse");
/// let disk = Device { access: Access::READ, ..Device::new("/dev/loop0") };
/// # let _ = (fuse, disk);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Device {
    /// Absolute path of the node on the host.
    pub source: PathBuf,
    /// Absolute path in the sandbox; the same as `source` when empty.
    pub target: PathBuf,
    /// What the task may do with it, any of `r`, `w` and `m` when serialised; all by default. Less than `rw` holds by the
    /// device cgroup only; where there is none the report says so. The node is bound, so `m` changes nothing: making nodes
    /// is up to `CAP_MKNOD`.
    #[serde(alias = "permissions")]
    pub access: Access,
}

impl Default for Device {
    fn default() -> Self {
        Device { source: PathBuf::new(), target: PathBuf::new(), access: Access::all() }
    }
}

impl Device {
    /// The node at `path`, at the same place in the sandbox, with all access.
    pub fn new(path: impl Into<PathBuf>) -> Device {
        Device { source: path.into(), ..Device::default() }
    }

    /// Where it is in the sandbox.
    pub(crate) fn place(&self) -> &PathBuf {
        if self.target.as_os_str().is_empty() { &self.source } else { &self.target }
    }
}

/// The task's half: what to run, as whom, in which root, with which limits.
///
/// ```
/// use cofferdam::SandboxSpec;
/// let spec = SandboxSpec { command: "id".into(), user: Some("daemon".into()), ..Default::default() };
/// let json = serde_json::to_string(&spec).unwrap();
/// assert_eq!(serde_json::from_str::<SandboxSpec>(&json).unwrap(), spec);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct SandboxSpec {
    /// The sandbox's name, for its cgroup and its temporary root: letters, digits, `.`, `_` and `-`, at most 128. A random
    /// one when absent. A name that a running sandbox has is refused. What a sandbox of that name left behind whose
    /// owner is gone is killed and removed.
    pub id: Option<String>,
    /// What to execute. It is looked up *inside the root*, with the task's own rights, as a shell does it: a path as it
    /// stands, relative to [`work_dir`](Self::work_dir), and a name without a slash in the directories of the `PATH` of
    /// [`env`](Self::env) (`/usr/local/bin:/usr/bin:/bin` without one). A name or a relative path is looked up below
    /// `/local` and `/` too, as the `exec` driver has it. If it is found nowhere, the error names the places.
    #[serde(with = "notation::os_string")]
    pub command: OsString,
    /// Its arguments, after the name, which is the absolute path that was found.
    #[serde(with = "notation::os_strings")]
    pub args: Vec<OsString>,
    /// Its whole environment. `USER`, `LOGNAME` and `HOME` are added from the host's user database unless they are given.
    #[serde(with = "notation::os_map")]
    pub env: BTreeMap<OsString, OsString>,
    /// `NAME`, `UID`, `NAME:GROUP` or `UID:GID`, looked up on the host; `nobody` when absent.
    pub user: Option<String>,
    /// Absolute path inside the root; made, 0755, when it is absent; `/` when there is none.
    pub work_dir: Option<PathBuf>,
    /// The PID namespace; the operator's default when absent.
    pub pid_mode: Option<IsolationMode>,
    /// The IPC namespace; the operator's default when absent.
    pub ipc_mode: Option<IsolationMode>,
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
    /// Resource limits, by `setrlimit(2)`.
    pub rlimits: BTreeMap<Resource, Rlimit>,
    /// `oom_score_adj`, -1000 to 1000. When absent it is 0, whatever the caller's is, unless the kernel forbids to lower
    /// it: then it is the caller's, and the report says so.
    pub oom_score_adj: Option<i32>,
    /// The task's umask, octal digits in a string when serialised. 0022 by default.
    #[serde(with = "notation::octal")]
    pub umask: u32,
    /// The task's standard input.
    pub stdin: Stdio,
    /// The task's standard output.
    pub stdout: Stdio,
    /// The task's standard error.
    pub stderr: Stdio,
    /// Further descriptors. All that is not named here or above is closed.
    pub fds: Vec<Fd>,
    /// What must hold, or the sandbox is refused. Where neither this nor the operator's [`require`](Policy::require) says
    /// anything, it is [`Require::Asked`].
    pub require: Option<Require>,
}

impl Default for SandboxSpec {
    fn default() -> Self {
        SandboxSpec {
            id: None,
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
            require: None,
        }
    }
}

impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        notation::with_field(d, |d| Policy::deserialize(d))
    }
}

impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        Policy::serialize(self, s)
    }
}

impl<'de> Deserialize<'de> for SandboxSpec {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        notation::with_field(d, |d| SandboxSpec::deserialize(d))
    }
}

impl Serialize for SandboxSpec {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        SandboxSpec::serialize(self, s)
    }
}
