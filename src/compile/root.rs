//! What is built before the clone, and what is mounted of the host: the root's directory, its entries,
//! and the volumes.

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::method;
use crate::error::{Error, Result};
use crate::host::{Host, Survey, chroot_env, temp_dir};
use crate::report::{Control, Report};
use crate::rootfs::lower::Entry;
use crate::rootfs::populate::{self, TempRoot, populate_held};
use crate::rootfs::source::{HeldSources, HostFile};
use crate::rootfs::{self, names};
use crate::rootfs::{
    ChrootEnv, FileKind, Method, Options, Populated, Progress, Skipped, Source, Volume, check_path,
};
use crate::spec::{Policy, SandboxSpec};

/// The parent's work on the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootWork {
    /// Where a temporary directory is made, when one is needed.
    pub temp: Option<PathBuf>,
    /// The directory that becomes the root; `None` for a tmpfs.
    pub dir: Option<PathBuf>,
    /// How it is populated: never `auto`.
    pub method: Method,
    /// What is linked or copied into it, when that is the method.
    pub env: ChrootEnv,
    /// What is mounted in it, when that is the method.
    pub mounted: Vec<Source>,
    /// What the compiler left out.
    pub skipped: Vec<Skipped>,
    /// Directories to be left empty, by device and inode.
    pub skip: Vec<(u64, u64)>,
    /// See [`Options`].
    pub setuid: bool,
    /// See [`Options`].
    pub max_entries: Option<u64>,
    /// See [`Options`].
    pub max_bytes: Option<u64>,
}

impl RootWork {
    /// Fills the directory that becomes the root, when it is to be filled, and says what stands in the root.
    pub(crate) fn build(
        &self,
        held: &HeldSources,
        temp: Option<&TempRoot>,
        progress: Option<&(dyn Fn(Progress) + Sync)>,
    ) -> Result<Option<Populated>> {
        if self.method == Method::None {
            return Ok(None);
        }
        let mut done = match &self.dir {
            Some(dir) if self.method.walks() => self.fill(dir, held, temp, progress)?,
            _ => Populated { sources: self.mounted.clone(), ..Populated::default() },
        };
        done.skipped.extend(self.skipped.iter().cloned());
        done.skipped.sort();
        Ok(Some(done))
    }

    fn fill(
        &self,
        dir: &Path,
        held: &HeldSources,
        temp: Option<&TempRoot>,
        progress: Option<&(dyn Fn(Progress) + Sync)>,
    ) -> Result<Populated> {
        let gone = || Error::prepare(format!("openat2({dir:?}, O_PATH)"))(Errno::ENOENT);
        let given = || held.get(dir).map(HostFile::fd).ok_or_else(gone);
        let root = temp.map_or_else(given, |temp| Ok(temp.fd()))?;
        let RootWork { method, ref skip, setuid, max_entries, max_bytes, .. } = *self;
        let options = Options { method, setuid, skip, max_entries, max_bytes, progress, fingerprint: false };
        populate_held(root, &self.env, held, &options)
    }
}

pub(super) fn work(
    policy: &Policy,
    spec: &SandboxSpec,
    host: &Host,
    survey: &Survey,
    id: &str,
    report: &mut Report,
) -> Result<(RootWork, Vec<Entry>)> {
    let root = &spec.root;
    for (field, path) in [("root", &root.path), ("upper", &root.upper)] {
        path.as_ref().map_or(Ok(()), |path| directory(field, path, survey))?;
    }
    if root.populate == Method::None && root.path.is_none() {
        return Err(Error::spec(
            "root",
            "populate \"none\" needs the path of a directory to be used as it is",
        ));
    }
    if root.populate == Method::Bind && root.writable {
        return Err(Error::spec("root", "populate \"bind\" cannot be writable: ask for overlay, or auto"));
    }
    let env = if root.populate == Method::None { ChrootEnv::new() } else { chroot_env(policy, spec) };
    populate::validate(&env)?;
    if let Some((source, why)) = env.keys().find_map(|s| survey.unseen.get_key_value(s)) {
        return Err(Error::spec("chroot_env", format!("{source:?}: {why}")));
    }
    let (entries, skipped) = entries(&env, survey);
    // The default list is a list of what a host may have; one that somebody wrote means what it says.
    let written = !spec.root.chroot_env.is_empty() || !policy.chroot_env.is_empty();
    for Skipped { path, why } in skipped.iter().filter(|_| written) {
        report.note(Control::HOST_FILES, format!("left out of the root: {path:?} {why}"));
    }
    let method = method::choose(spec, host, survey, &env, &entries, report)?;
    super::conflicts::executable(policy, spec, survey, method)?;
    super::conflicts::kinds(spec, survey, &env)?;
    let base = survey.real(&temp_dir(policy)).to_path_buf();
    let temp = (method.walks() && root.path.is_none()).then_some(base);
    let dir = root.path.clone().or_else(|| temp.as_deref().map(|base| TempRoot::path_in(base, id)));
    let kept = entries.iter().map(|e| e.source.clone());
    let env = env.into_iter().filter(|(source, _)| method.walks() && kept.clone().any(|k| k == *source));
    let both = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
    let work = RootWork {
        temp,
        dir,
        method,
        env: env.collect(),
        mounted: if method.walks() {
            Vec::new()
        } else {
            entries.iter().map(|e| mounted(e, method)).collect()
        },
        skipped,
        skip: survey.skip.iter().map(|skip| skip.id).collect(),
        setuid: root.setuid,
        max_entries: both(root.max_entries, policy.max_entries),
        max_bytes: both(root.max_bytes, policy.max_bytes),
    };
    Ok((work, entries))
}

fn directory(field: &'static str, path: &Path, survey: &Survey) -> Result<()> {
    check_path(field, path)?;
    match survey.kind(path) {
        Some(FileKind::Dir) => Ok(()),
        Some(_) => Err(Error::spec(field, format!("{path:?} is not a directory"))),
        None => Err(survey.absent(field, path)),
    }
}

fn mounted(entry: &Entry, method: Method) -> Source {
    let method = if entry.kind == FileKind::Dir { method } else { Method::Bind };
    Source { path: entry.source.clone(), target: entry.target.clone(), method }
}

/// What stands in the root, what holds others first, and what is left out of it.
fn entries(env: &ChrootEnv, survey: &Survey) -> (Vec<Entry>, Vec<Skipped>) {
    let (mut entries, mut skipped) = (Vec::new(), Vec::new());
    for (source, dest) in env {
        let real = survey.real(source);
        let why = match survey.kind(source) {
            None => "is not there",
            Some(FileKind::Device) => "is a device",
            Some(FileKind::Other) => "is a fifo or a socket",
            Some(_) if survey.skip.iter().any(|skip| skip.path == real) => "was to be left out",
            Some(kind) => {
                entries.push(Entry {
                    source: source.clone(),
                    real: real.to_path_buf(),
                    target: rootfs::in_root(dest),
                    kind,
                    owner: survey.owners.get(source).copied().unwrap_or_default(),
                    submounts: submounts(real, survey),
                    skip: survey.skip.iter().filter_map(|s| below(&s.path, real)).collect(),
                });
                continue;
            }
        };
        skipped.push(Skipped { path: source.clone(), why: why.into() });
    }
    entries.sort_by(|a, b| a.target.cmp(&b.target));
    (entries, skipped)
}

/// The path of `path` from `top` on, if it lies below.
fn below(path: &Path, top: &Path) -> Option<PathBuf> {
    path.strip_prefix(top).ok().filter(|rest| !rest.as_os_str().is_empty()).map(PathBuf::from)
}

/// The topmost mount points below `source`: what is mounted below those comes with them.
fn submounts(source: &Path, survey: &Survey) -> Vec<(PathBuf, FileKind)> {
    let mut found: Vec<(PathBuf, FileKind)> = Vec::new();
    // In the order of paths, what holds another comes before it.
    for (point, kind) in &survey.mounts {
        let Some(point) = below(point, source) else { continue };
        if !found.iter().any(|(outer, _)| point.starts_with(outer)) {
            found.push((point, *kind));
        }
    }
    found
}

pub(super) fn volumes(spec: &SandboxSpec, survey: &Survey) -> Result<Vec<(Volume, FileKind)>> {
    spec.volumes
        .iter()
        .map(|volume| {
            check_path("volumes", &volume.source)?;
            check_path("volumes", &volume.target)?;
            if volume.target == Path::new("/") || volume.target.starts_with("/proc") {
                let target = &volume.target;
                return Err(Error::spec("volumes", format!("nothing can be mounted at {target:?}")));
            }
            let kind = survey.kind(&volume.source);
            let kind = kind.ok_or_else(|| survey.absent("volumes", &volume.source))?;
            Ok((volume.clone(), kind))
        })
        .collect()
}

/// What the default list shows of `/etc` that other users may not read, by its path in the sandbox. A list that an author
/// or operator wrote means what it says.
pub(super) fn private(
    policy: &Policy,
    spec: &SandboxSpec,
    host: &Host,
    entries: &[Entry],
    report: &mut Report,
) -> Vec<(PathBuf, FileKind)> {
    let default = spec.root.chroot_env.is_empty() && policy.chroot_env.is_empty();
    let Some(etc) = entries.iter().find(|e| default && e.source == Path::new("/etc")) else {
        return Vec::new();
    };
    let volumes = spec.volumes.iter().map(|v| &v.target).chain(spec.devices.iter().map(|d| &d.target));
    let given: Vec<PathBuf> = volumes.map(|target| rootfs::in_root(target)).collect();
    let shown =
        host.private.iter().filter_map(|(path, kind)| Some((path.strip_prefix(&etc.source).ok()?, *kind)));
    let shown = shown.map(|(rest, kind)| (etc.target.join(rest), kind));
    let covered: Vec<(PathBuf, FileKind)> = shown
        .filter(|(at, _)| !given.iter().any(|given| at.starts_with(given) || given.starts_with(at)))
        .collect();
    if !covered.is_empty() {
        let names: Vec<String> = covered.iter().map(|(at, _)| at.display().to_string()).collect();
        let why = format!("covered, as other users may not read them on the host: {}", names.join(" "));
        report.note(Control::MASKED_PATHS, why);
    }
    covered
}

/// Files of the sandbox's own: path and content.
pub(super) fn files(spec: &SandboxSpec, survey: &Survey) -> Result<Vec<(&'static str, String)>> {
    let mut files = Vec::new();
    if let Some(dns) = &spec.dns {
        files.push((names::RESOLV_CONF, dns.render(&survey.resolv_conf)?));
    }
    if let Some(entries) = &spec.hosts {
        files.push((names::HOSTS, names::hosts(entries, spec.hostname.as_deref())?));
    }
    Ok(files)
}

/// Why the pages of a tmpfs may be written to swap, where they may.
pub(super) fn swappable(host: &Host, user_ns: bool) -> Option<String> {
    let (major, minor) = host.kernel;
    if host.kernel < (6, 4) {
        return Some(format!("noswap of tmpfs needs Linux 6.4, this is {major}.{minor}"));
    }
    user_ns.then(|| "noswap of tmpfs is refused in a user namespace".to_string())
}
