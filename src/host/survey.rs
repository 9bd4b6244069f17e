//! What the host says about the users and the paths of one spec. It looks and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::ids::{self, Identity};
use crate::ns::{self, Network};
use crate::rootfs::lower::Owner;
use crate::rootfs::names::Dns;
use crate::rootfs::probe::Node;
use crate::rootfs::{self, ChrootEnv, Kind, Method};
use crate::spec::{Policy, SandboxSpec};
use crate::sys::mountinfo::Mount;

/// The answers.
#[derive(Clone, Debug)]
pub(crate) struct Survey {
    /// Whom the task runs as.
    pub identity: Identity,
    /// What each path is that is to be bound, linked or copied; `None` when there is nothing.
    pub kinds: BTreeMap<PathBuf, Option<Kind>>,
    /// Those of them that are the host's `/`.
    pub host_root: BTreeSet<PathBuf>,
    /// What those of them stand for that are devices.
    pub nodes: BTreeMap<PathBuf, Node>,
    /// Why it is not known what a path is.
    pub unseen: BTreeMap<PathBuf, String>,
    /// Whether the network to be joined is a namespace.
    pub network: Result<bool, std::io::ErrorKind>,
    /// What the paths are like.
    pub owners: BTreeMap<PathBuf, Owner>,
    /// The sources of the root without links, where that matters.
    pub real: BTreeMap<PathBuf, PathBuf>,
    /// The directories that are left out of every root, those that there are.
    pub skip: Vec<Skip>,
    /// Where something is mounted on the host, where that matters, with what it is.
    pub mounts: BTreeMap<PathBuf, Kind>,
    /// The host's `resolv.conf`, where it matters.
    pub resolv_conf: String,
}

/// A directory that is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Skip {
    /// Without links.
    pub path: PathBuf,
    /// Device and inode.
    pub id: (u64, u64),
}

impl Survey {
    /// Looks up the user and looks at the paths.
    pub(crate) fn take(policy: &Policy, spec: &SandboxSpec) -> Result<Survey> {
        let identity = ids::lookup(&spec.user)?;
        let env = chroot_env(policy, spec);
        let network = match &spec.network {
            Network::Path(path) => ns::probe::is_namespace(path).map_err(|e| e.kind()),
            _ => Ok(true),
        };
        let skip: Vec<Skip> =
            policy.chroot_skip.iter().filter_map(|path| skip(path).transpose()).collect::<Result<_>>()?;
        let overlays = matches!(spec.root.populate, Method::Overlay | Method::Auto);
        let look = overlays || !skip.is_empty();
        let mounts = if look { mounts()? } else { Vec::new() };
        let real: BTreeMap<PathBuf, PathBuf> =
            env.keys().filter(|_| look).filter_map(|p| Some((p.clone(), p.canonicalize().ok()?))).collect();
        let (mut kinds, mut unseen, mut owners) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (mut nodes, mut host_root) = (BTreeMap::new(), BTreeSet::new());
        let root = std::fs::metadata("/").map(|st| (st.dev(), st.ino())).ok();
        for path in paths(spec, &env) {
            let found = rootfs::probe::look(&path).unwrap_or_else(|e| {
                unseen.insert(path.clone(), e.to_string());
                None
            });
            host_root.extend(found.filter(|found| Some(found.id) == root).map(|_| path.clone()));
            owners.extend(found.map(|found| (path.clone(), found.owner)));
            nodes.extend(found.and_then(|found| Some((path.clone(), found.node?))));
            kinds.insert(path, found.map(|found| found.kind));
        }
        kinds.extend(names(spec, &env));
        Ok(Survey {
            identity,
            kinds,
            host_root,
            nodes,
            unseen,
            network,
            owners,
            skip: elsewhere(skip, &mounts),
            mounts: if overlays { points(&mounts, &real) } else { BTreeMap::new() },
            real,
            resolv_conf: if spec.dns.is_some() { resolv_conf(&spec.network) } else { String::new() },
        })
    }

    /// What `path` is.
    pub(crate) fn kind(&self, path: &Path) -> Option<Kind> {
        self.kinds.get(path).copied().flatten()
    }

    /// The source of a root without links.
    pub(crate) fn real<'a>(&'a self, source: &'a Path) -> &'a Path {
        self.real.get(source).map_or(source, PathBuf::as_path)
    }
}

/// Every path of the host that `compile` asks about.
fn paths(spec: &SandboxSpec, env: &ChrootEnv) -> BTreeSet<PathBuf> {
    let given = env
        .keys()
        .chain(spec.volumes.iter().map(|v| &v.source))
        .chain(spec.devices.iter().map(|d| &d.source))
        .chain(spec.root.path.iter())
        .chain(spec.root.upper.iter())
        .chain(spec.task_dirs.alloc.iter())
        .chain(spec.task_dirs.local.iter());
    let volumes = spec.volumes.iter().map(|v| &v.target);
    let devices = spec.devices.iter().map(|d| &d.target);
    let targets = env.values().chain(volumes).chain(devices).chain(&spec.work_dir);
    let shown = targets.filter_map(|target| rootfs::shown(env, target).map(|(_, path)| path));
    given.cloned().chain(shown).collect()
}

/// What is where the sandbox's own files go; a link that leads nowhere can be covered like any file.
fn names(spec: &SandboxSpec, env: &ChrootEnv) -> Vec<(PathBuf, Option<Kind>)> {
    let own = rootfs::names::paths(spec.dns.is_some(), spec.hosts.is_some());
    let shown = own.filter_map(|target| rootfs::shown(env, Path::new(target)).map(|(_, path)| path));
    shown
        .map(|path| {
            let link = || path.symlink_metadata().ok().map(|_| Kind::Other);
            let kind = rootfs::probe::kind(&path).or_else(link);
            (path, kind)
        })
        .collect()
}

/// `None` for one that is not there. One that cannot be looked at could be shown, so it is an error.
fn skip(path: &Path) -> Result<Option<Skip>> {
    let found = path.canonicalize().and_then(|path| Ok((std::fs::metadata(&path)?, path)));
    match found {
        Ok((st, path)) => Ok(st.is_dir().then(|| Skip { path, id: (st.dev(), st.ino()) })),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::spec("chroot_skip", format!("{path:?}: {e}"))),
    }
}

fn mounts() -> Result<Vec<Mount>> {
    const FILE: &str = "/proc/thread-self/mountinfo";
    let text = std::fs::read(FILE).map_err(Error::prepare(format!("read({FILE:?})")))?;
    Ok(text.split(|b| *b == b'\n').filter_map(Mount::parse).collect())
}

/// The mount points in the sources. No other is looked at: the server of one may be gone, and would be waited for.
fn points(mounts: &[Mount], real: &BTreeMap<PathBuf, PathBuf>) -> BTreeMap<PathBuf, Kind> {
    let points = mounts.iter().map(|mount| &mount.point);
    points
        .filter(|point| real.values().any(|top| point.starts_with(top)))
        .filter_map(|point| Some((point.clone(), rootfs::probe::kind(point)?)))
        .collect()
}

/// Besides, where else the same directories are seen: through other mounts of their file systems.
fn elsewhere(skip: Vec<Skip>, mounts: &[Mount]) -> Vec<Skip> {
    let others = skip.iter().flat_map(|one| {
        let on = mounts.iter().filter(|m| one.path.starts_with(&m.point));
        // The innermost one, and of those on one point the last.
        let on = on.max_by_key(|m| m.point.components().count());
        let within = on.and_then(|m| Some((m, m.root.join(one.path.strip_prefix(&m.point).ok()?))));
        within.into_iter().flat_map(move |(on, within)| {
            let same = mounts.iter().filter(move |m| m.device == on.device);
            same.filter_map(move |m| self::skip(&m.point.join(within.strip_prefix(&m.root).ok()?)).ok()?)
                .filter(move |other| other.id == one.id && other.path != one.path)
        })
    });
    let others: Vec<Skip> = others.collect();
    skip.into_iter().chain(others).collect()
}

/// The host's file; that of its resolver's own upstream servers where the file names a stub on the loopback
/// interface only, which another network namespace cannot reach.
fn resolv_conf(network: &Network) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let text = read("/etc/resolv.conf");
    if *network == Network::Host || !Dns::parse(&text).is_local() {
        return text;
    }
    let upstream = read("/run/systemd/resolve/resolv.conf");
    if upstream.is_empty() { text } else { upstream }
}

/// What the root is populated with: the task's list, the operator's, or the default.
pub(crate) fn chroot_env(policy: &Policy, spec: &SandboxSpec) -> ChrootEnv {
    [&spec.root.chroot_env, &policy.chroot_env]
        .into_iter()
        .find(|env| !env.is_empty())
        .cloned()
        .unwrap_or_else(rootfs::populate::default_chroot_env)
}
