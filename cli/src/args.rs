//! The flags of `run` and `explain`, and the policy and spec that they come to.

use std::ffi::OsString;
use std::fmt::Display;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use cofferdam::cgroup::LimitEnv;
use cofferdam::filter::{Filter, Profile};
use cofferdam::{Network, Policy, SandboxSpec, ids, notation};

use crate::Failure;
use crate::values;

/// Where a command finds its tools unless `--env PATH=` says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the sandbox, and of its cgroup [default: a random one]
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Directory that becomes / [default: a fresh one, gone at the end]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// How the root is populated from the host [default: bind]
    #[arg(long, value_name = "auto|bind|overlay|reflink|copy|link|none")]
    populate: Option<String>,
    /// What it is populated with (repeatable) [default: the exec driver's list]
    #[arg(long, value_name = "SRC[:DST]")]
    chroot_env: Vec<String>,
    /// Let the task write to the root: with auto what it writes is its own, with link it is the host's files
    #[arg(long)]
    writable: bool,
    /// Directory that an overlay is written to [default: a tmpfs, gone at the end]
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,
    /// Size of a tmpfs root, and of the tmpfs that an overlay is written to [default: 64m]
    #[arg(long, value_name = "SIZE", value_parser = notation::size)]
    tmpfs_size: Option<u64>,
    /// Copies keep setuid bits and file capabilities
    #[arg(long)]
    keep_setuid: bool,
    /// Most entries that populating the root may make
    #[arg(long, value_name = "N")]
    max_entries: Option<u64>,
    /// Most bytes that the populated files may have together
    #[arg(long, value_name = "SIZE", value_parser = notation::size)]
    max_bytes: Option<u64>,
    /// Directory of the host for /alloc
    #[arg(long, value_name = "DIR")]
    alloc: Option<PathBuf>,
    /// Directory of the host for /local
    #[arg(long, value_name = "DIR")]
    local: Option<PathBuf>,
    /// A tmpfs of this size at /secrets
    #[arg(long, value_name = "SIZE", value_parser = notation::size)]
    secrets: Option<u64>,
    /// A tmpfs of this size at /tmp
    #[arg(long, value_name = "SIZE", value_parser = notation::size)]
    tmp: Option<u64>,
    /// Name server in /etc/resolv.conf (repeatable) [default: the root's file as it is]
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// Domain that short names are looked for in (repeatable)
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Option of the resolver (repeatable)
    #[arg(long, value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Line of an /etc/hosts of the sandbox's own (repeatable)
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
    /// Enter the root by chroot, for hosts whose / is a ramdisk
    #[arg(long)]
    no_pivot_root: bool,
    /// Let the command itself be PID 1 of a private PID namespace
    #[arg(long)]
    no_init: bool,
    /// User, and optionally group [default: nobody]
    #[arg(long, value_name = "NAME|UID[:GID]")]
    user: Option<String>,
    /// Capabilities that the operator allows [default: 13]
    #[arg(long, value_name = "LIST|all")]
    allow_caps: Option<String>,
    /// Capabilities to add
    #[arg(long, value_name = "LIST")]
    cap_add: Vec<String>,
    /// Capabilities to drop
    #[arg(long, value_name = "LIST")]
    cap_drop: Vec<String>,
    /// Let setuid programs gain privileges
    #[arg(long)]
    allow_new_privs: bool,
    /// Let the command make user namespaces
    #[arg(long)]
    allow_user_ns: bool,
    /// User ids that are refused
    #[arg(long, value_name = "RANGES")]
    deny_uids: Option<String>,
    /// Group ids that are refused
    #[arg(long, value_name = "RANGES")]
    deny_gids: Option<String>,
    /// File or directory of the host (repeatable); more options: host-to-task, bidirectional
    #[arg(long, value_name = "SRC:DST[:ro]")]
    volume: Vec<String>,
    /// Device node of the host (repeatable) [default access: rwm]
    #[arg(long, value_name = "SRC[:DST[:rwm]]")]
    device: Vec<String>,
    /// Device cgroup: require one, or make none [default: where the host can]
    #[arg(long, value_name = "yes|no")]
    device_cgroup: Option<String>,
    /// Variable of the environment (repeatable)
    #[arg(long, value_name = "K=V")]
    env: Vec<OsString>,
    /// Working directory, absolute
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Share of the processors; 1024 is what a group has by default
    #[arg(long, value_name = "N")]
    cpu_shares: Option<u64>,
    /// Run only when no other task wants the processor
    #[arg(long)]
    cpu_idle: bool,
    /// Processors that are reserved for the task, as 0-3,8
    #[arg(long, value_name = "LIST")]
    cores: Option<String>,
    /// With --cores: these only, and not the unreserved ones as well
    #[arg(long)]
    exclusive: bool,
    /// Memory: bytes, or with k, m, g
    #[arg(long, value_name = "SIZE", value_parser = notation::size)]
    memory: Option<u64>,
    /// Hard memory limit of a task that may use more than --memory
    #[arg(long, value_name = "SIZE|unlimited")]
    memory_max: Option<String>,
    /// Memory above which the kernel slows the task down and reclaims its memory (v2)
    #[arg(long, value_name = "SIZE", value_parser = notation::size)]
    memory_high: Option<u64>,
    /// Swap beside --memory [default: off]
    #[arg(long, value_name = "SIZE|off|unlimited")]
    swap: Option<String>,
    /// Kill all of the task when its memory runs out, and not one process
    #[arg(long)]
    oom_group: bool,
    /// Processor time in each period, in microseconds
    #[arg(long, value_name = "QUOTA[/PERIOD[/BURST]]")]
    cpu_max: Option<String>,
    /// Number of processes
    #[arg(long, value_name = "N")]
    pids_max: Option<u64>,
    /// Share of block devices, 1 to 10000; 100 is what a group has by default
    #[arg(long, value_name = "N")]
    io_weight: Option<u16>,
    /// Most of a block device (repeatable)
    #[arg(long, value_name = "MAJ:MIN,rbps|wbps|riops|wiops=N,...")]
    io_max: Vec<String>,
    /// Huge pages (repeatable)
    #[arg(long, value_name = "2MB=SIZE")]
    hugetlb: Vec<String>,
    /// Count what is not limited too
    #[arg(long)]
    accounting: bool,
    /// Tell the command its limits in PREFIX_CPU_LIMIT, PREFIX_MEMORY_LIMIT ...; PREFIX ends as written
    #[arg(long, value_name = "PREFIX")]
    limit_env: Option<String>,
    /// Controllers that this host must have before any limit is set [default: minimal]
    #[arg(long, value_name = "minimal|documented|asked")]
    required_controllers: Option<String>,
    /// System calls: those of the default profile, all, or those of a profile in a file, as JSON
    #[arg(long, value_name = "default|none|FILE")]
    filter: Option<String>,
    /// Refuse the system calls of 32-bit programs
    #[arg(long)]
    no_i386: bool,
    /// What must hold, or nothing is run [default: asked]
    #[arg(long, value_name = "best_effort|asked|full|CONTROL,...")]
    require: Option<String>,
    /// Write the report, as JSON; - is standard output, once the command has ended
    #[arg(long, value_name = "FILE|-")]
    pub report: Option<PathBuf>,
    /// Read the spec from a file, as JSON; flags override it
    #[arg(long, value_name = "FILE")]
    spec: Option<PathBuf>,
    /// Read the operator's policy from a file, as JSON; flags override it
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Command and arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    command: Vec<OsString>,
}

/// What `explain` has besides: a host that is less than this one.
#[derive(clap::Args)]
pub(crate) struct Explain {
    /// Explain it for a host without this controller (repeatable)
    #[arg(long, value_name = "NAME")]
    pub without_controller: Vec<String>,
    #[command(flatten)]
    pub args: Args,
}

impl Args {
    /// The operator's half of the flags.
    pub(crate) fn policy(&self) -> Result<Policy, Failure> {
        // Who runs a command without a policy is the operator.
        let own = || Policy { allow_privileged: true, ..Policy::default() };
        let mut policy: Policy = read_json(self.policy.as_ref())?.unwrap_or_else(own);
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
                spec.filter = read_json(Some(&file.into()))?.map_or(Filter::Default, Filter::Profile)
            }
        }
        if self.no_i386 {
            let profile = spec.filter.profile().ok_or_else(|| Failure::new("no_i386: there is no filter"))?;
            spec.filter = Filter::Profile(Profile { i386: false, ..profile });
        }
        Ok(())
    }

    /// The task's half.
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

    /// The spec of `--spec`, or an empty one. Streams that it says nothing of are this program's own.
    fn base(&self) -> Result<SandboxSpec, Failure> {
        let mut json: serde_json::Map<String, serde_json::Value> =
            read_json(self.spec.as_ref())?.unwrap_or_default();
        for stream in ["stdin", "stdout", "stderr"] {
            json.entry(stream).or_insert_with(|| "inherit".into());
        }
        serde_json::from_value(json.into()).map_err(|e| Failure::new(format!("spec: {e}")))
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
                return Err(Failure::new(format!("device_cgroup: {other:?} is neither yes nor no")));
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
            let mut parts = variable.as_bytes().splitn(2, |byte| *byte == b'=');
            let (Some(key), Some(value)) = (parts.next(), parts.next()) else {
                return Err(Failure::new(format!("env: {variable:?} is not K=V")));
            };
            spec.env.insert(OsString::from_vec(key.to_vec()), OsString::from_vec(value.to_vec()));
        }
        spec.env.entry("PATH".into()).or_insert_with(|| PATH.into());
        if let Some(term) = std::env::var_os("TERM") {
            spec.env.entry("TERM".into()).or_insert(term);
        }
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

/// The value of a flag. A wrong one is refused with the name of its field.
fn parsed<T: FromStr<Err: Display>>(field: &str, flag: &Option<String>) -> Result<Option<T>, Failure> {
    let value = flag.as_deref().map(str::parse).transpose();
    value.map_err(|e| Failure::new(format!("{field}: {e}")))
}

fn set<T>(field: &mut T, flag: Option<T>) {
    if let Some(value) = flag {
        *field = value;
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: Option<&PathBuf>) -> Result<Option<T>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let text = std::fs::read_to_string(path).map_err(|e| Failure::new(format!("{path:?}: {e}")))?;
    serde_json::from_str(&text).map(Some).map_err(|e| Failure::new(format!("{path:?}: {e}")))
}
