//! The flags of `run` and `explain`, and the policy and spec that are made from them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use cofferdam::cgroup::LimitEnv;
use cofferdam::filter::{Filter, Profile};
use cofferdam::{Network, Policy, SandboxSpec, ids, notation};

use crate::Failure;
use crate::values;

/// The command's `PATH`, unless `--env PATH=` sets another.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the sandbox and of its cgroup [default: a random one]
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Directory of the host that becomes / [default: a new one, removed when the task ends]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// How the root is populated from the host [default: bind]
    #[arg(long, value_name = "auto|bind|overlay|reflink|copy|link|none")]
    populate: Option<String>,
    /// Path of the host to put into the root (repeatable) [default: the list of Nomad's exec driver]
    #[arg(long, value_name = "SRC[:DST]")]
    chroot_env: Vec<String>,
    /// Let the task write to the root: to a private copy with auto, to the host's own files with link
    #[arg(long)]
    writable: bool,
    /// Directory for what the task writes to an overlay [default: a tmpfs, removed when the task ends]
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,
    /// Size of a tmpfs root, and of the tmpfs for what is written to an overlay [default: 64m]
    #[arg(long, value_name = "SIZE", value_parser = notation::size)]
    tmpfs_size: Option<u64>,
    /// Keep setuid bits and file capabilities of copied files
    #[arg(long)]
    keep_setuid: bool,
    /// Maximum number of files and directories when the root is populated
    #[arg(long, value_name = "N")]
    max_entries: Option<u64>,
    /// Maximum total size of files when the root is populated
    #[arg(long, value_name = "SIZE", value_parser = notation::size)]
    max_bytes: Option<u64>,
    /// Directory of the host to mount at /alloc
    #[arg(long, value_name = "DIR")]
    alloc: Option<PathBuf>,
    /// Directory of the host to mount at /local
    #[arg(long, value_name = "DIR")]
    local: Option<PathBuf>,
    /// Mount a tmpfs of this size at /secrets
    #[arg(long, value_name = "SIZE", value_parser = notation::size)]
    secrets: Option<u64>,
    /// Mount a tmpfs of this size at /tmp
    #[arg(long, value_name = "SIZE", value_parser = notation::size)]
    tmp: Option<u64>,
    /// Name server in /etc/resolv.conf (repeatable) [default: the file in the root]
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// Search domain in /etc/resolv.conf (repeatable)
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Resolver option in /etc/resolv.conf (repeatable)
    #[arg(long, value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Line of a generated /etc/hosts (repeatable)
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// PID namespace
    #[arg(long, value_name = "private|host")]
    pid: Option<String>,
    /// IPC namespace
    #[arg(long, value_name = "private|host")]
    ipc: Option<String>,
    /// Network [default: host]
    #[arg(long, value_name = "host|none|PATH")]
    net: Option<String>,
    /// Host name, in a UTS namespace of its own
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Use chroot instead of pivot_root, for hosts whose / is a ramdisk
    #[arg(long)]
    no_pivot_root: bool,
    /// Make the command itself PID 1 of a private PID namespace
    #[arg(long)]
    no_init: bool,
    /// User, and optionally a group [default: nobody]
    #[arg(short, long, value_name = "NAME|UID[:GID]")]
    user: Option<String>,
    /// Capabilities that --cap-add may add [default: the 13 default ones]
    #[arg(long, value_name = "LIST|all")]
    allow_caps: Option<String>,
    /// Capabilities to add
    #[arg(long, value_name = "LIST")]
    cap_add: Vec<String>,
    /// Capabilities to drop
    #[arg(long, value_name = "LIST")]
    cap_drop: Vec<String>,
    /// Kill the command after this time, such as 90s, 500ms or 2h
    #[arg(long, value_name = "TIME", value_parser = notation::duration)]
    deadline: Option<Duration>,
    /// Kill the command when it has used this CPU time, such as 90s, 500ms or 2h
    #[arg(long, value_name = "TIME", value_parser = notation::duration)]
    cpu_deadline: Option<Duration>,
    /// Give up if the command does not run after this time, such as 5s [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = notation::duration)]
    spawn_deadline: Option<Duration>,
    /// Let setuid programs gain privileges (no no_new_privs)
    #[arg(long)]
    allow_new_privs: bool,
    /// Let the command make user namespaces
    #[arg(long)]
    allow_user_ns: bool,
    /// User ids that the command must not run as
    #[arg(long, value_name = "RANGES")]
    deny_uids: Option<String>,
    /// Group ids that the command must not have
    #[arg(long, value_name = "RANGES")]
    deny_gids: Option<String>,
    /// File or directory of the host to mount (repeatable); other options: host-to-task, bidirectional
    #[arg(short, long, value_name = "SRC:DST[:ro]")]
    volume: Vec<String>,
    /// Device of the host to allow and mount (repeatable) [default access: rwm]
    #[arg(long, value_name = "SRC[:DST[:rwm]]")]
    device: Vec<String>,
    /// Device cgroup: require one, or use none [default: use one if the host allows it]
    #[arg(long, value_name = "yes|no")]
    device_cgroup: Option<String>,
    /// Environment variable (repeatable)
    #[arg(short, long, value_name = "K=V")]
    env: Vec<OsString>,
    /// Working directory, an absolute path
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// CPU shares; 1024 is the default of a cgroup
    #[arg(long, value_name = "N")]
    cpu_shares: Option<u64>,
    /// Run only when no other task wants the CPU
    #[arg(long)]
    cpu_idle: bool,
    /// CPUs to reserve for the task, such as 0-3,8
    #[arg(long, value_name = "LIST")]
    cores: Option<String>,
    /// With --cores: run on the reserved CPUs only, not on unreserved ones as well
    #[arg(long)]
    exclusive: bool,
    /// Memory limit in bytes, or with a suffix k, m or g
    #[arg(long, value_name = "SIZE", value_parser = notation::size)]
    memory: Option<u64>,
    /// Hard memory limit, if the task may use more than --memory
    #[arg(long, value_name = "SIZE|unlimited")]
    memory_max: Option<String>,
    /// Memory use above which the kernel throttles the task and reclaims its memory (cgroup v2)
    #[arg(long, value_name = "SIZE", value_parser = notation::size)]
    memory_high: Option<u64>,
    /// Swap limit in addition to --memory [default: off]
    #[arg(long, value_name = "SIZE|off|unlimited")]
    swap: Option<String>,
    /// Kill all processes of the task when it runs out of memory, not just one
    #[arg(long)]
    oom_group: bool,
    /// CPU time limit in each period, in microseconds
    #[arg(long, value_name = "QUOTA[/PERIOD[/BURST]]")]
    cpu_max: Option<String>,
    /// Maximum number of processes
    #[arg(long, value_name = "N")]
    pids_max: Option<u64>,
    /// I/O weight, 1 to 10000; 100 is the default of a cgroup
    #[arg(long, value_name = "N")]
    io_weight: Option<u16>,
    /// I/O limit of a block device (repeatable)
    #[arg(long, value_name = "MAJ:MIN,rbps|wbps|riops|wiops=N,...")]
    io_max: Vec<String>,
    /// Limit of huge pages of one size (repeatable)
    #[arg(long, value_name = "2MB=SIZE")]
    hugetlb: Vec<String>,
    /// Account for resources that are not limited too
    #[arg(long)]
    accounting: bool,
    /// Set environment variables with the limits: PREFIX is prepended as it is to CPU_LIMIT, MEMORY_LIMIT, ...
    #[arg(long, value_name = "PREFIX")]
    limit_env: Option<String>,
    /// Cgroup controllers that this host must have, or no limit is set [default: minimal]
    #[arg(long, value_name = "minimal|documented|asked")]
    required_controllers: Option<String>,
    /// System call filter: the default profile, none, or a profile in a JSON file
    #[arg(long, value_name = "default|none|FILE")]
    filter: Option<String>,
    /// Refuse system calls of 32-bit programs
    #[arg(long)]
    no_i386: bool,
    /// Controls that must be enforced, or the command is not run [default: asked]
    #[arg(long, value_name = "best_effort|asked|full|CONTROL,...")]
    require: Option<String>,
    /// Write the report as JSON; - is standard output, after the command has ended
    #[arg(long, value_name = "FILE|-")]
    pub report: Option<PathBuf>,
    /// Read the spec from a JSON file; flags override it
    #[arg(long, value_name = "FILE")]
    spec: Option<PathBuf>,
    /// Read the operator's policy from a JSON file; flags override it
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Command and arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    command: Vec<OsString>,
}

/// The flags of `run`: those that `explain` has too, and how the command is connected to the caller.
#[derive(clap::Args)]
pub(crate) struct Run {
    /// Run the task in the background and print its name; cofferdam logs prints its output
    #[arg(short, long, conflicts_with_all = ["tty", "interactive"])]
    pub detach: bool,
    /// Name of the task, as --id
    #[arg(long, value_name = "NAME", conflicts_with = "id")]
    pub name: Option<String>,
    /// If a task has the name, kill and remove it first
    #[arg(long)]
    pub replace: bool,
    /// Give the command a pseudo-terminal, whose output is printed; with -i, the caller's terminal is its input
    #[arg(short, long)]
    pub tty: bool,
    /// Use the caller's standard input, which is the default without -d and -t
    #[arg(short, long)]
    pub interactive: bool,
    #[command(flatten)]
    pub args: Args,
}

/// The flags of `explain`: those of `run`, and controllers to hide.
#[derive(clap::Args)]
pub(crate) struct Explain {
    /// Explain the plan for a host without this cgroup controller (repeatable)
    #[arg(long, value_name = "NAME")]
    pub without_controller: Vec<String>,
    #[command(flatten)]
    pub args: Args,
}

/// The policy of the file. Without one, the user of this program is the operator.
pub(crate) fn read_policy(file: Option<&PathBuf>) -> Result<Policy, Failure> {
    let own = || Policy { allow_privileged: true, ..Policy::default() };
    Ok(read_json("--policy", file)?.unwrap_or_else(own))
}

impl Args {
    /// The operator's policy.
    pub(crate) fn policy(&self) -> Result<Policy, Failure> {
        let mut policy = read_policy(self.policy.as_ref())?;
        policy.no_pivot_root |= self.no_pivot_root;
        if let Some(list) = &self.deny_uids {
            policy.denied_host_uids = ids::denied_uids(list)?;
        }
        if let Some(list) = &self.deny_gids {
            policy.denied_host_gids = ids::denied_gids(list)?;
        }
        set(&mut policy.required_controllers, parsed("required_controllers", &self.required_controllers)?);
        if let Some(list) = &self.allow_caps {
            policy.allow_caps = Some(values::list(list));
        }
        Ok(policy)
    }

    fn filter(&self, spec: &mut SandboxSpec) -> Result<(), Failure> {
        match self.filter.as_deref() {
            None => {}
            Some("default") => spec.filter = Filter::Default,
            Some("none") => spec.filter = Filter::None,
            Some(file) => {
                let profile = read_json("--filter default, none or", Some(&file.into()))?;
                spec.filter = profile.map_or(Filter::Default, Filter::Profile);
            }
        }
        if self.no_i386 {
            let profile = spec
                .filter
                .profile()
                .ok_or_else(|| Failure::new("--no-i386 needs a system call filter, but --filter is none"))?;
            spec.filter = Filter::Profile(Profile { i386: false, ..profile });
        }
        Ok(())
    }

    /// The task's spec.
    pub(crate) fn spec(&self) -> Result<SandboxSpec, Failure> {
        let mut spec = self.base()?;
        if let Some((command, args)) = self.command.split_first() {
            spec.command = command.clone();
            spec.args = args.to_vec();
        }
        spec.id = self.id.clone().or(spec.id);
        spec.pid_mode = parsed("pid_mode", &self.pid)?.or(spec.pid_mode);
        spec.ipc_mode = parsed("ipc_mode", &self.ipc)?.or(spec.ipc_mode);
        spec.user = self.user.clone().or(spec.user);
        spec.hostname = self.hostname.clone().or(spec.hostname);
        spec.work_dir = self.workdir.clone().or(spec.work_dir);
        spec.deadline = self.deadline.or(spec.deadline);
        spec.spawn_deadline = self.spawn_deadline.or(spec.spawn_deadline);
        spec.cpu_deadline = self.cpu_deadline.or(spec.cpu_deadline);
        spec.init &= !self.no_init;
        spec.no_new_privs &= !self.allow_new_privs;
        spec.user_namespaces |= self.allow_user_ns;
        self.filter(&mut spec)?;
        spec.cap_add.extend(self.cap_add.iter().flat_map(|l| values::list(l)));
        spec.cap_drop.extend(self.cap_drop.iter().flat_map(|l| values::list(l)));
        match self.net.as_deref() {
            None => {}
            Some("host") => spec.network = Network::Host,
            Some("none") => spec.network = Network::None,
            Some(path) => spec.network = Network::Path(path.into()),
        }
        self.root(&mut spec)?;
        self.devices(&mut spec)?;
        self.task_dirs(&mut spec);
        self.names(&mut spec)?;
        self.environment(&mut spec)?;
        self.limits(&mut spec)?;
        spec.require = parsed("require", &self.require)?.or(spec.require);
        Ok(spec)
    }

    /// The spec of `--spec`, or an empty one. Standard streams that it does not mention are inherited from this
    /// program.
    fn base(&self) -> Result<SandboxSpec, Failure> {
        let mut json: serde_json::Map<String, serde_json::Value> =
            read_json("--spec", self.spec.as_ref())?.unwrap_or_default();
        for stream in ["stdin", "stdout", "stderr"] {
            json.entry(stream).or_insert_with(|| "inherit".into());
        }
        let file = self.spec.as_ref().map_or(String::new(), |path| format!("--spec {path:?}: "));
        serde_json::from_value(json.into()).map_err(|e| Failure::new(format!("{file}{e}")))
    }

    fn root(&self, spec: &mut SandboxSpec) -> Result<(), Failure> {
        spec.root.path = self.root.clone().or(spec.root.path.take());
        spec.root.writable |= self.writable;
        spec.root.setuid |= self.keep_setuid;
        spec.root.upper = self.upper.clone().or(spec.root.upper.take());
        spec.root.tmpfs_size = self.tmpfs_size.or(spec.root.tmpfs_size);
        spec.root.max_entries = self.max_entries.or(spec.root.max_entries);
        spec.root.max_bytes = self.max_bytes.or(spec.root.max_bytes);
        set(&mut spec.root.populate, parsed("populate", &self.populate)?);
        if !self.chroot_env.is_empty() {
            spec.root.chroot_env = self.chroot_env.iter().map(|e| values::pair(e)).collect();
        }
        for volume in &self.volume {
            spec.volumes.push(values::volume(volume).map_err(|e| Failure::new(format!("volume: {e}")))?);
        }
        Ok(())
    }

    fn devices(&self, spec: &mut SandboxSpec) -> Result<(), Failure> {
        for device in &self.device {
            spec.devices.push(values::device(device).map_err(|e| Failure::new(format!("devices: {e}")))?);
        }
        match self.device_cgroup.as_deref() {
            None => {}
            Some("yes") => spec.device_cgroup = Some(true),
            Some("no") => spec.device_cgroup = Some(false),
            Some(other) => {
                return Err(Failure::new(format!("--device-cgroup: {other:?} is neither yes nor no")));
            }
        }
        Ok(())
    }

    fn task_dirs(&self, spec: &mut SandboxSpec) {
        let dirs = &mut spec.task_dirs;
        dirs.alloc = self.alloc.clone().or(dirs.alloc.take());
        dirs.local = self.local.clone().or(dirs.local.take());
        dirs.tmp = self.tmp.or(dirs.tmp);
        if let Some(size) = self.secrets {
            dirs.secrets.get_or_insert_default().size = Some(size);
        }
    }

    fn names(&self, spec: &mut SandboxSpec) -> Result<(), Failure> {
        if !(self.dns.is_empty() && self.dns_search.is_empty() && self.dns_option.is_empty()) {
            let dns = spec.dns.get_or_insert_default();
            dns.servers.extend(self.dns.iter().cloned());
            dns.searches.extend(self.dns_search.iter().cloned());
            dns.options.extend(self.dns_option.iter().cloned());
        }
        for host in &self.add_host {
            let entry = values::host(host).map_err(|e| Failure::new(format!("add-host: {e}")))?;
            spec.hosts.get_or_insert_default().push(entry);
        }
        Ok(())
    }

    fn environment(&self, spec: &mut SandboxSpec) -> Result<(), Failure> {
        for variable in &self.env {
            let (key, value) = self::variable(variable)?;
            spec.env.insert(key, value);
        }
        default_env(&mut spec.env);
        Ok(())
    }

    fn limits(&self, spec: &mut SandboxSpec) -> Result<(), Failure> {
        let limits = &mut spec.limits;
        limits.cpu_shares = self.cpu_shares.or(limits.cpu_shares);
        limits.cpu_idle |= self.cpu_idle;
        limits.memory = self.memory.or(limits.memory);
        limits.memory_high = self.memory_high.or(limits.memory_high);
        limits.pids_max = self.pids_max.or(limits.pids_max);
        limits.io_weight = self.io_weight.or(limits.io_weight);
        limits.oom_group |= self.oom_group;
        limits.accounting |= self.accounting;
        set(&mut limits.cores, parsed("cores", &self.cores)?);
        set(&mut limits.swap, parsed("swap", &self.swap)?);
        limits.memory_max = parsed("memory_max", &self.memory_max)?.or(limits.memory_max);
        let wrong = |flag: &'static str| move |e: String| Failure::new(format!("{flag}: {e}"));
        if let Some(max) = &self.cpu_max {
            limits.cpu_max = Some(values::cpu_max(max).map_err(wrong("cpu_max"))?);
        }
        for max in &self.io_max {
            limits.io_max.push(values::io_max(max).map_err(wrong("io_max"))?);
        }
        for max in &self.hugetlb {
            let (size, bytes) = values::hugetlb(max).map_err(wrong("hugetlb"))?;
            limits.hugetlb.insert(size, bytes);
        }
        if let Some(prefix) = &self.limit_env {
            spec.limit_env = LimitEnv::with_prefix(prefix);
        }
        limits.exclusive |= self.exclusive;
        Ok(())
    }
}

/// Parses `K=V`.
pub(crate) fn variable(text: &OsString) -> Result<(OsString, OsString), Failure> {
    let mut parts = text.as_bytes().splitn(2, |byte| *byte == b'=');
    match (parts.next(), parts.next()) {
        (Some(key), Some(value)) => {
            Ok((OsString::from_vec(key.to_vec()), OsString::from_vec(value.to_vec())))
        }
        _ => Err(Failure::new(format!("env: {text:?} is not K=V"))),
    }
}

/// Sets `PATH` and the caller's `TERM`, unless they are set.
pub(crate) fn default_env(env: &mut BTreeMap<OsString, OsString>) {
    env.entry("PATH".into()).or_insert_with(|| PATH.into());
    if let Some(term) = std::env::var_os("TERM") {
        env.entry("TERM".into()).or_insert(term);
    }
}

/// Parses the value of a flag. The error names the flag's field.
fn parsed<T: FromStr<Err: Display>>(field: &str, flag: &Option<String>) -> Result<Option<T>, Failure> {
    let value = flag.as_deref().map(str::parse).transpose();
    value.map_err(|e| Failure::new(format!("{field}: {e}")))
}

fn set<T>(field: &mut T, flag: Option<T>) {
    if let Some(value) = flag {
        *field = value;
    }
}

fn read_json<T: serde::de::DeserializeOwned>(
    flag: &str,
    path: Option<&PathBuf>,
) -> Result<Option<T>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let text = std::fs::read_to_string(path).map_err(|e| Failure::new(format!("{flag} {path:?}: {e}")))?;
    serde_json::from_str(&text).map(Some).map_err(|e| Failure::new(format!("{flag} {path:?}: {e}")))
}
