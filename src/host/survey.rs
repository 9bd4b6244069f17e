//! Facts about this host that one spec depends on: its user, and the paths that it names. Finding them changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::fstat;
use nix::sys::statfs::{
    DEBUGFS_MAGIC, FsType, PROC_SUPER_MAGIC, SECURITYFS_MAGIC, SYSFS_MAGIC, TRACEFS_MAGIC, fstatfs,
};
use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::Host;
use crate::error::{Error, Result};
use crate::ids::Identity;
use crate::ns::{self, Network};
use crate::rootfs::lower::own_sources;
use crate::rootfs::names::Dns;
use crate::rootfs::private;
use crate::rootfs::probe::Node;
use crate::rootfs::probe::Owner;
use crate::rootfs::reach::Reach;
use crate::rootfs::source::{self, HeldSources, HostFile, SourceError};
use crate::rootfs::{self, ChrootEnv, FileKind, Method};
use crate::spec::{Device, Policy, SandboxSpec, Stdio};
use crate::step;
use crate::step::wire::FDS;
use crate::sys;
use crate::sys::mountinfo::Mount;

/// Facts about the user and the paths of one spec.
#[derive(Clone, Debug)]
pub(crate) struct Survey {
    /// The ids that the task runs with.
    pub identity: Identity,
    /// The kind of each path of the host that the spec refers to; `None` if the path does not exist.
    pub kinds: BTreeMap<PathBuf, Option<FileKind>>,
    /// The host paths that the spec names, held open.
    pub sources: HeldSources,
    /// Type and numbers of the sources that are devices.
    pub nodes: BTreeMap<PathBuf, Node>,
    /// Paths whose kind could not be determined, with the reason.
    pub unseen: BTreeMap<PathBuf, String>,
    /// Whether the path of the network to join is a namespace, or why that could not be determined.
    pub network: Result<bool, String>,
    /// The network namespace to join, held open.
    pub namespace: Option<Arc<OwnedFd>>,
    /// Owner and mode of the sources.
    pub owners: BTreeMap<PathBuf, Owner>,
    /// The paths of the sources with symbolic links resolved, if they differ.
    pub real: BTreeMap<PathBuf, PathBuf>,
    /// The existing directories that are left out of every root (`chroot_skip`).
    pub skip: Vec<Skip>,
    /// The mount points of the host inside the sources, with their kind. Only filled if the root may be populated by
    /// overlays.
    pub mounts: BTreeMap<PathBuf, FileKind>,
    /// The user namespace of an idmapped mount of `/etc` in which no file has an owner; `None` if there can be none.
    pub users: Option<Arc<OwnedFd>>,
    /// Whether the caller may use real-time priorities (`RLIMIT_RTPRIO`).
    pub real_time: bool,
    /// The sources that are a procfs, or show a process in one.
    pub procfs: BTreeSet<PathBuf>,
    /// The sources that show a file system with files of the kernel, with its type (`proc`, `sysfs` and others).
    pub kernel: BTreeMap<PathBuf, String>,
    /// Whether the network namespace to join is the caller's own.
    pub own_network: bool,
    /// Which of the spec's root directory and the directory of temporary roots are on a file system mounted noexec.
    pub noexec: BTreeSet<PathBuf>,
    /// Descriptors of the caller that the task inherits and that give access to the host, each with its name for
    /// messages (`stdin`, `descriptor 3`).
    pub streams: Vec<(String, Stream)>,
    /// The host's `resolv.conf`; empty if the spec has no `dns`.
    pub resolv_conf: String,
    /// The paths that were opened, or looked for.
    pub looked: BTreeSet<PathBuf>,
    /// Whether one of them may be on a file system that another process or machine serves.
    pub served: bool,
}

/// The kind of a descriptor that the caller passes to the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    File,
    Dir,
    Terminal,
    /// A block device.
    Disk,
    /// Another character device, except null, zero, full, random and urandom.
    Device,
}

/// A directory that is left out of every root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Skip {
    /// Its path with symbolic links resolved.
    pub path: PathBuf,
    /// Its device and inode numbers.
    pub id: (u64, u64),
}

impl Survey {
    /// Opens the paths. `identity` is the user of the spec.
    pub(crate) fn take(
        policy: &Policy,
        spec: &SandboxSpec,
        host: &Host,
        identity: Identity,
        reach: &Reach<'_>,
    ) -> Result<Survey> {
        let paths = spec.volumes.len().saturating_add(spec.devices.len());
        if paths > FDS as usize {
            let field = if spec.volumes.len() > spec.devices.len() { "volumes" } else { "devices" };
            return Err(Error::spec(field, step::too_many()));
        }
        let env = chroot_env(policy, spec);
        let namespace = match &spec.network {
            Network::Path(path) if path.is_absolute() => namespace(path, reach)?,
            _ => Ok(None),
        };
        let network = namespace.as_ref().map(Option::is_some).map_err(String::clone);
        let skip: Vec<Skip> = policy
            .chroot_skip
            .iter()
            .filter_map(|path| skip(path, reach).transpose())
            .collect::<Result<_>>()?;
        let overlays = matches!(spec.root.populate, Method::Overlay | Method::Auto);
        let look = overlays || !skip.is_empty();
        let mounts = if look { mounts()? } else { Vec::new() };
        let (mut sources, mut unseen) = (BTreeMap::new(), BTreeMap::new());
        let own = own_sources(host.privileged(), nodes(host));
        let looked: BTreeSet<PathBuf> = given(policy, spec, &env).chain(own.iter().cloned()).collect();
        for path in &looked {
            let refused = hold(path.clone(), reach, &mut sources, &mut unseen)?;
            // No field of the spec names those that every sandbox needs.
            match refused.filter(|_| own.contains(path)) {
                Some(SourceError::Io(e)) => return Err(unopened(path, e)),
                Some(SourceError::Planted { .. }) | None => {}
            }
        }
        let etc = sources
            .get(Path::new(private::TOP))
            .filter(|_| matches!(spec.root.populate, Method::Auto | Method::Bind));
        let users = etc.map(|etc| host.private.users_for(etc.fd())).transpose()?.flatten();
        let of_root = env.keys().filter_map(|path| Some((path.clone(), sources.get(path)?.real.clone())));
        let mounts_within =
            if overlays { points(&mounts, &of_root.collect(), reach)? } else { BTreeMap::new() };
        for path in mounts_within.keys() {
            hold(path.clone(), reach, &mut sources, &mut unseen)?;
        }
        let shown = shown(spec, &env).into_iter().map(|path| Ok((path.clone(), kind(&path, reach)?)));
        let mut kinds = shown.collect::<Result<BTreeMap<PathBuf, Option<FileKind>>>>()?;
        kinds.extend(sources.iter().map(|(path, source)| (path.clone(), Some(source.look.kind))));
        let owners = sources.iter().map(|(path, source)| (path.clone(), source.look.owner)).collect();
        let nodes =
            sources.iter().filter_map(|(path, source)| Some((path.clone(), source.look.node?))).collect();
        let bases = spec.root.path.iter().cloned().chain([temp_dir(policy)]);
        let noexec = bases.filter(|base| sources.get(base).is_some_and(is_noexec)).collect();
        let of_proc = sources.iter().filter(|(_, source)| is_of_processes(source));
        let procfs = of_proc.map(|(path, _)| path.clone()).collect();
        let kernel = kernel(spec, &sources)?;
        let own_network =
            namespace.as_ref().is_ok_and(|ns| ns.as_ref().is_some_and(|ns| ns::probe::is_own_network(ns)));
        let real = sources.iter().filter(|(path, source)| **path != source.real);
        let real = real.map(|(path, source)| (path.clone(), source.real.clone())).collect();
        kinds.extend(names(spec, &env, reach)?);
        Ok(Survey {
            identity,
            kinds,
            sources,
            nodes,
            unseen,
            network,
            namespace: namespace.ok().flatten(),
            owners,
            skip: elsewhere(skip, &mounts, reach),
            mounts: mounts_within,
            users,
            procfs,
            kernel,
            own_network,
            real_time: may_use_real_time(),
            real,
            noexec,
            streams: streams(spec),
            looked,
            served: reach.has_asked(),
            resolv_conf: if spec.dns.is_some() { resolv_conf(&spec.network) } else { String::new() },
        })
    }

    /// The kind of `path`; `None` if it does not exist.
    pub(crate) fn kind(&self, path: &Path) -> Option<FileKind> {
        self.kinds.get(path).copied().flatten()
    }

    /// The error for the missing source `path` of `field`.
    pub(crate) fn absent(&self, field: &'static str, path: &Path) -> Error {
        match self.unseen.get(path) {
            Some(why) => Error::spec(field, format!("{path:?}: {why}")),
            None => Error::spec(field, format!("{path:?} does not exist on the host")),
        }
    }

    /// `source` with symbolic links resolved.
    pub(crate) fn real<'a>(&'a self, source: &'a Path) -> &'a Path {
        self.real.get(source).map_or(source, PathBuf::as_path)
    }
}

/// Opens the network namespace at `path`; `None` if the file is not a namespace. The inner error says why it cannot be
/// opened.
fn namespace(path: &Path, reach: &Reach<'_>) -> Result<Result<Option<Arc<OwnedFd>>, String>> {
    let found = match open(path, reach)? {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(Err("it does not exist on the host".to_string())),
        Err(why) => return Ok(Err(why.to_string())),
    };
    match ns::probe::network_namespace(found.fd()) {
        Err(e) if is_of_the_caller(&e) => {
            Err(Error::prepare(format!("openat(opened {path:?}, O_RDONLY)"))(e))
        }
        opened => Ok(opened.map(|opened| opened.map(Arc::new)).map_err(|e| e.to_string())),
    }
}

/// Opens a path of the spec. The inner error says what is wrong with the path.
///
/// # Errors
/// [`Error::Prepare`] if the cause is not the path.
fn open(path: &Path, reach: &Reach<'_>) -> Result<Result<Option<HostFile>, SourceError>> {
    match source::open(path, reach) {
        Err(SourceError::Io(e)) if is_of_the_caller(&e) => Err(unopened(path, e)),
        opened => Ok(opened),
    }
}

/// The error for a path that cannot be opened, where the path is not the cause.
fn unopened(path: &Path, e: std::io::Error) -> Error {
    Error::prepare(format!("openat2({path:?}, O_PATH)"))(e)
}

/// The type of the file at a path of the spec. `None` if it does not exist or cannot be accessed.
///
/// # Errors
/// [`Error::Prepare`] if the cause is not the path.
fn kind(path: &Path, reach: &Reach<'_>) -> Result<Option<FileKind>> {
    match source::kind(path, reach) {
        Err(e) if is_of_the_caller(&e) => Err(unopened(path, e)),
        found => Ok(found.unwrap_or_default()),
    }
}

/// Whether a refusal says nothing about the path: the caller or the host lacks something, or a signal arrived.
fn is_of_the_caller(e: &std::io::Error) -> bool {
    use libc::{EAGAIN, EINTR, EMFILE, ENFILE, ENOMEM, ENOSPC, ENOSYS};
    // The file system of the path does not answer.
    e.kind() == std::io::ErrorKind::TimedOut
        || matches!(e.raw_os_error(), Some(EMFILE | ENFILE | ENOMEM | EINTR | EAGAIN | ENOSPC | ENOSYS))
}

/// Opens `path` and adds it to `sources`, or adds the reason why it cannot be opened to `unseen`, and returns it. A path
/// that does not exist is in neither.
fn hold(
    path: PathBuf,
    reach: &Reach<'_>,
    sources: &mut HeldSources,
    unseen: &mut BTreeMap<PathBuf, String>,
) -> Result<Option<SourceError>> {
    // `compile` refuses relative paths.
    if !path.is_absolute() {
        return Ok(None);
    }
    match open(&path, reach)? {
        Ok(found) => {
            sources.extend(found.map(|found| (path, found)));
            Ok(None)
        }
        Err(refused) => {
            unseen.insert(path, refused.to_string());
            Ok(Some(refused))
        }
    }
}

/// The paths of the host that a spec or its policy names.
fn given(policy: &Policy, spec: &SandboxSpec, env: &ChrootEnv) -> impl Iterator<Item = PathBuf> {
    let base = temp_dir(policy);
    let named = env.keys().chain(spec.sources().map(|(_, path)| path)).chain(&policy.allowed_source_roots);
    let paths: Vec<PathBuf> = named.chain([&base]).chain(&policy.state_dir).cloned().collect();
    paths.into_iter()
}

fn is_noexec(source: &HostFile) -> bool {
    fstatvfs(source.fd()).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_NOEXEC))
}

/// Whether the caller's limit of real-time priorities is above 0, or unknown.
pub(crate) fn may_use_real_time() -> bool {
    getrlimit(Resource::RLIMIT_RTPRIO).map_or(true, |(_, hard)| hard > 0)
}

/// The sources of the spec that show a file system with files of the kernel: their own, or one that is mounted below them.
/// Those in `/proc` and `/sys` are known by their path.
fn kernel(spec: &SandboxSpec, sources: &HeldSources) -> Result<BTreeMap<PathBuf, String>> {
    let known = |path: &Path| ["/proc", "/sys"].iter().any(|top| path.starts_with(top));
    let named = spec.sources().filter_map(|(_, path)| Some((path, sources.get(path)?)));
    let named: Vec<_> = named.filter(|(_, source)| !known(&source.real)).collect();
    // With thousands of mounts, reading the table takes as long as the spawn. Nothing can be mounted below a file.
    let has_dir = named.iter().any(|(_, source)| source.look.kind == FileKind::Dir);
    let table = if has_dir { mounts_of(&KERNEL.map(|(_, name)| name))? } else { Vec::new() };
    let of = |source: &HostFile| {
        let below = |mount: &&Mount| !known(&mount.point) && mount.point.starts_with(&source.real);
        let below = || table.iter().rfind(below).map(|mount| mount.fs_type.clone());
        kernel_fs(source).map(str::to_owned).or_else(below)
    };
    Ok(named.into_iter().filter_map(|(path, source)| Some((path.clone(), of(source)?))).collect())
}

/// The types of file systems with files of the kernel.
const KERNEL: [(FsType, &str); 6] = [
    (PROC_SUPER_MAGIC, "proc"),
    (SYSFS_MAGIC, "sysfs"),
    (DEBUGFS_MAGIC, "debugfs"),
    (TRACEFS_MAGIC, "tracefs"),
    (SECURITYFS_MAGIC, "securityfs"),
    (FsType(0x6265_6570), "configfs"),
];

/// The type of a source's own file system, if it has files of the kernel.
fn kernel_fs(source: &HostFile) -> Option<&'static str> {
    let found = fstatfs(source.fd()).ok()?.filesystem_type();
    KERNEL.iter().find(|(magic, _)| *magic == found).map(|(_, name)| *name)
}

/// Whether a source is the root of a procfs, or a file of one that belongs to a process.
fn is_of_processes(source: &HostFile) -> bool {
    const ROOT: u64 = 1;
    let of_process = |part: std::path::Component<'_>| {
        let name = part.as_os_str().as_encoded_bytes();
        matches!(name, b"self" | b"thread-self") || !name.is_empty() && name.iter().all(u8::is_ascii_digit)
    };
    kernel_fs(source) == Some("proc")
        && (fstat(source.fd()).is_ok_and(|st| st.st_ino == ROOT) || source.real.components().any(of_process))
}

/// The directory that contains the temporary roots of sandboxes.
pub(crate) fn temp_dir(policy: &Policy) -> PathBuf {
    let system = || Some(std::env::temp_dir()).filter(|dir| dir.is_absolute());
    policy.temp_dir.clone().or_else(system).unwrap_or_else(|| "/tmp".into())
}

/// Whether the device nodes of `/dev` are made by mknod(2). Otherwise the host's nodes are bind-mounted.
pub(crate) fn nodes(host: &Host) -> bool {
    host.privileged() && host.held.has("mknod")
}

/// The paths of the host that the root shows at its mount points and at the working directory.
fn shown(spec: &SandboxSpec, env: &ChrootEnv) -> Vec<PathBuf> {
    let volumes = spec.volumes.iter().map(|v| &v.target);
    let devices = spec.devices.iter().map(Device::place);
    let targets = env.values().chain(volumes).chain(devices).chain(&spec.work_dir);
    targets.filter_map(|target| rootfs::shown(env, target).map(|(_, path)| path)).collect()
}

/// The descriptors of a spec that are files, directories or terminals.
pub(crate) fn streams(spec: &SandboxSpec) -> Vec<(String, Stream)> {
    let others = spec.fds.iter().map(|fd| (format!("descriptor {}", fd.to), fd.from.number()));
    inherited(spec.streams(), others)
}

/// The standard streams and other descriptors that are files, directories, terminals or devices of the caller.
pub(crate) fn inherited(
    standard: [(&str, &Stdio); 3],
    others: impl Iterator<Item = (String, RawFd)>,
) -> Vec<(String, Stream)> {
    let standard = (0..)
        .zip(standard)
        .filter_map(|(number, (name, stdio))| Some((name.to_string(), stdio.of_caller(number)?)));
    // The spawn refuses a descriptor that is not open.
    let open = standard.chain(others).filter_map(|(name, fd)| Some((name, sys::dup_number(fd).ok()?)));
    open.filter_map(|(name, fd)| {
        let st = fstat(&fd).ok()?;
        let stream = match st.st_mode & libc::S_IFMT {
            libc::S_IFREG => Stream::File,
            libc::S_IFDIR => Stream::Dir,
            libc::S_IFCHR if fd.is_terminal() => Stream::Terminal,
            libc::S_IFBLK => Stream::Disk,
            libc::S_IFCHR if !is_harmless(st.st_rdev) => Stream::Device,
            _ => return None,
        };
        Some((name, stream))
    })
    .collect()
}

/// Whether a character device is null, zero, full, random or urandom, which every task has.
fn is_harmless(device: libc::dev_t) -> bool {
    libc::major(device) == 1 && [3, 5, 7, 8, 9].contains(&libc::minor(device))
}

/// The kinds of the paths that the sandbox's own files cover. A dangling symbolic link can be covered like a file.
fn names(spec: &SandboxSpec, env: &ChrootEnv, reach: &Reach<'_>) -> Result<Vec<(PathBuf, Option<FileKind>)>> {
    let own = rootfs::names::paths(spec.dns.is_some(), spec.hosts.is_some());
    let shown = own.filter_map(|target| rootfs::shown(env, Path::new(target)).map(|(_, path)| path));
    shown
        .map(|path| {
            let link = || path.symlink_metadata().ok().map(|_| FileKind::Other);
            let kind = kind(&path, reach)?.or_else(link);
            Ok((path, kind))
        })
        .collect()
}

/// Looks up a directory of `chroot_skip`. `None` if it does not exist or is not a directory. If it cannot be examined,
/// that is an error, because the root could show it.
fn skip(path: &Path, reach: &Reach<'_>) -> Result<Option<Skip>> {
    reach.before(path).map_err(|e| unanswered(path, e))?;
    let found = path.canonicalize().and_then(|path| Ok((std::fs::metadata(&path)?, path)));
    match found {
        Ok((st, path)) => Ok(st.is_dir().then(|| Skip { path, id: (st.dev(), st.ino()) })),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::spec("chroot_skip", format!("{path:?}: {e}"))),
    }
}

fn mounts() -> Result<Vec<Mount>> {
    Mount::table().map_err(Error::prepare(format!("read({:?})", Mount::TABLE)))
}

fn mounts_of(types: &[&str]) -> Result<Vec<Mount>> {
    Mount::of_types(types).map_err(Error::prepare(format!("read({:?})", Mount::TABLE)))
}

/// The mount points in the sources. Other mount points are not examined: stat(2) blocks on a network file system whose
/// server is gone.
fn points(
    mounts: &[Mount],
    real: &BTreeMap<PathBuf, PathBuf>,
    reach: &Reach<'_>,
) -> Result<BTreeMap<PathBuf, FileKind>> {
    let mut points = BTreeMap::new();
    for mount in mounts.iter().filter(|mount| real.values().any(|top| mount.point.starts_with(top))) {
        reach.mount(mount).map_err(|e| unanswered(&mount.point, e))?;
        points.extend(rootfs::probe::kind(&mount.point).map(|kind| (mount.point.clone(), kind)));
    }
    Ok(points)
}

/// The error for a path whose file system does not answer.
fn unanswered(path: &Path, refused: std::io::Error) -> Error {
    Error::prepare(format!("statx({path:?})"))(refused)
}

/// Returns `skip`, and every other path at which another mount of the same file system shows one of these directories.
fn elsewhere(skip: Vec<Skip>, mounts: &[Mount], reach: &Reach<'_>) -> Vec<Skip> {
    let others = skip.iter().flat_map(|one| {
        let on = mounts.iter().filter(|m| one.path.starts_with(&m.point));
        // The innermost mount. Of several mounts at one mount point, the last.
        let on = on.max_by_key(|m| m.point.components().count());
        let within = on.and_then(|m| Some((m, m.root.join(one.path.strip_prefix(&m.point).ok()?))));
        within.into_iter().flat_map(move |(on, within)| {
            let same = mounts.iter().filter(move |m| m.device == on.device);
            same.filter_map(move |m| {
                self::skip(&m.point.join(within.strip_prefix(&m.root).ok()?), reach).ok()?
            })
            .filter(move |other| other.id == one.id && other.path != one.path)
        })
    });
    let others: Vec<Skip> = others.collect();
    skip.into_iter().chain(others).collect()
}

/// The host's `resolv.conf`. If it names only a stub resolver on the loopback interface, which another network
/// namespace cannot reach, it is systemd-resolved's list of upstream servers.
fn resolv_conf(network: &Network) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let text = read("/etc/resolv.conf");
    if *network == Network::Host || !Dns::parse(&text).is_local() {
        return text;
    }
    let upstream = read("/run/systemd/resolve/resolv.conf");
    if upstream.is_empty() { text } else { upstream }
}

/// The list that populates the root: the task's, else the operator's, else the default.
pub(crate) fn chroot_env(policy: &Policy, spec: &SandboxSpec) -> ChrootEnv {
    [&spec.root.chroot_env, &policy.chroot_env]
        .into_iter()
        .find(|env| !env.is_empty())
        .cloned()
        .unwrap_or_else(|| default_env(spec))
}

/// The default list. Without a network and without resolver settings of its own, the task does not get the directory with
/// the socket of the host's resolver.
fn default_env(spec: &SandboxSpec) -> ChrootEnv {
    let mut env = rootfs::populate::default_chroot_env();
    if spec.network == Network::None && spec.dns.is_none() {
        env.remove(Path::new(rootfs::names::RESOLVER));
    }
    env
}
