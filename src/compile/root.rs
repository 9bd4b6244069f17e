//! The root's directory, which the parent makes and populates before the clone, and what is mounted from the host: the
//! entries of the root and the volumes.

use std::path::{Path, PathBuf};

use super::checks::mount_point;
use super::method;
use crate::error::{Error, Result};
use crate::host::{Host, Survey, chroot_env, temp_dir};
use crate::ns::Network;
use crate::report::Control;
use crate::rootfs::lower::RootEntry;
use crate::rootfs::populate;
use crate::rootfs::work::{BuildRoot, MakeTempRoot};
use crate::rootfs::{
    self, ChrootEnv, FileKind, Method, Skipped, Source, Volume, check_path, check_path_at, names,
};
use crate::spec::{Device, Policy, SandboxSpec};
use crate::step::Draft;

/// What the parent does to make the root.
pub(super) struct RootWork {
    /// The directory of the host that overlays write to, if the spec names one.
    pub upper: Option<PathBuf>,
    /// The temporary directory to make, if one is needed.
    pub temp: Option<MakeTempRoot>,
    /// How that directory, or the directory that the spec names, is populated.
    pub build: BuildRoot,
}

pub(super) fn work(
    policy: &Policy,
    spec: &SandboxSpec,
    host: &Host,
    survey: &Survey,
    id: &str,
    draft: &mut Draft,
) -> Result<(RootWork, Vec<RootEntry>)> {
    let root = &spec.root;
    for (field, path) in [("root.path", &root.path), ("root.upper", &root.upper)] {
        path.as_ref().map_or(Ok(()), |path| directory(field, path, survey))?;
    }
    if root.populate == Method::None && root.path.is_none() {
        return Err(Error::spec(
            "root.path",
            "populate \"none\" needs the path of an existing root directory",
        ));
    }
    if root.populate == Method::Bind && root.writable {
        return Err(Error::spec(
            "root.writable",
            "populate \"bind\" cannot be writable: use overlay or auto",
        ));
    }
    let env = if root.populate == Method::None { ChrootEnv::new() } else { chroot_env(policy, spec) };
    populate::validate(&env)?;
    if let Some((source, why)) = env.keys().find_map(|s| survey.unseen.get_key_value(s)) {
        return Err(Error::spec("chroot_env", format!("{source:?}: {why}")));
    }
    let (entries, skipped) = entries(&env, survey);
    if spec.network != Network::Host && entries.iter().any(|e| e.source.starts_with(names::RESOLVER)) {
        draft.report.weaken(
            Control::NET_NS,
            "/run/systemd/resolve has the socket of the host's resolver: the task can look names up through it",
        );
    }
    // A host need not have all paths of the default list. A missing path is reported only if a policy or spec names it.
    let written = !spec.root.chroot_env.is_empty() || !policy.chroot_env.is_empty();
    for Skipped { path, why } in skipped.iter().filter(|_| written) {
        draft.report.note(Control::HOST_FILES, format!("left out of the root: {path:?} {why}"));
    }
    let method = method::choose(spec, host, survey, &env, &entries, draft)?;
    super::conflicts::executable(policy, spec, survey, method)?;
    super::conflicts::kinds(spec, survey, &env)?;
    let base = survey.real(&temp_dir(policy)).to_path_buf();
    let temp = (method.walks() && root.path.is_none()).then_some(base);
    let temp = temp.map(|base| MakeTempRoot { base, id: id.to_owned() });
    let dir = root.path.clone().or_else(|| temp.as_ref().map(MakeTempRoot::path));
    let kept = entries.iter().map(|e| e.source.clone());
    let env = env.into_iter().filter(|(source, _)| method.walks() && kept.clone().any(|k| k == *source));
    let both = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
    let build = BuildRoot {
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
    Ok((RootWork { upper: root.upper.clone(), temp, build }, entries))
}

/// The error with the full name of the field, if the map is the spec's own.
pub(super) fn in_spec(error: Error, spec: &SandboxSpec) -> Error {
    match error {
        Error::Spec { field: "chroot_env", message } if !spec.root.chroot_env.is_empty() => {
            Error::Spec { field: "root.chroot_env", message }
        }
        other => other,
    }
}

fn directory(field: &'static str, path: &Path, survey: &Survey) -> Result<()> {
    check_path(field, path)?;
    match survey.kind(path) {
        Some(FileKind::Dir) => Ok(()),
        Some(_) => Err(Error::spec(field, format!("{path:?} is not a directory"))),
        None => Err(survey.absent(field, path)),
    }
}

fn mounted(entry: &RootEntry, method: Method) -> Source {
    let method = if entry.kind == FileKind::Dir { method } else { Method::Bind };
    Source { path: entry.source.clone(), target: entry.target.clone(), method }
}

/// The entries of the root, outer directories first, and the sources that are left out.
fn entries(env: &ChrootEnv, survey: &Survey) -> (Vec<RootEntry>, Vec<Skipped>) {
    let (mut entries, mut skipped) = (Vec::new(), Vec::new());
    for (source, dest) in env {
        let real = survey.real(source);
        let why = match survey.kind(source) {
            None => "does not exist",
            Some(FileKind::Device) => "is a device",
            Some(FileKind::Other) => "is a fifo or a socket",
            Some(_) if survey.skip.iter().any(|skip| skip.path == real) => "is excluded by chroot_skip",
            Some(kind) => {
                entries.push(RootEntry {
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

/// `path` relative to `top`; `None` unless it lies below `top`.
fn below(path: &Path, top: &Path) -> Option<PathBuf> {
    path.strip_prefix(top).ok().filter(|rest| !rest.as_os_str().is_empty()).map(PathBuf::from)
}

/// The topmost mount points below `source`. Mounts below those are included in them.
fn submounts(source: &Path, survey: &Survey) -> Vec<(PathBuf, FileKind)> {
    let mut found: Vec<(PathBuf, FileKind)> = Vec::new();
    // In sorted order a directory comes before its contents.
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
        .enumerate()
        .map(|(number, volume)| {
            check_path_at("volumes", &format!("volumes[{number}].source"), &volume.source)?;
            mount_point("volumes", &format!("volumes[{number}].target"), &volume.target)?;
            let kind = survey.kind(&volume.source);
            let kind = kind.ok_or_else(|| survey.absent("volumes", &volume.source))?;
            Ok((volume.clone(), kind))
        })
        .collect()
}

/// How the root hides files of `/etc` that other users cannot read on the host. Paths are those in the sandbox.
pub(super) enum Hidden {
    /// `/etc` is shown as it is, or not at all.
    Nothing,
    /// An idmapped mount at this path has no owners.
    Unowned(PathBuf),
    /// The files and directories that are private now are masked.
    Masked(Vec<(PathBuf, FileKind)>),
}

impl Hidden {
    pub(super) fn unowned(&self) -> Option<&Path> {
        if let Hidden::Unowned(at) = self { Some(at) } else { None }
    }

    pub(super) fn masks(&self) -> &[(PathBuf, FileKind)] {
        if let Hidden::Masked(masks) = self { masks } else { &[] }
    }
}

/// How the root hides private files of `/etc`. It hides none unless `/etc` comes from the default list: a list of the
/// author or operator shows `/etc` as it is.
pub(super) fn private(
    policy: &Policy,
    spec: &SandboxSpec,
    host: &Host,
    survey: &Survey,
    (entries, method, user_ns): (&[RootEntry], Method, bool),
    draft: &mut Draft,
) -> Result<Hidden> {
    let default = spec.root.chroot_env.is_empty() && policy.chroot_env.is_empty();
    let Some(etc) = entries.iter().find(|e| default && e.source == Path::new(rootfs::private::TOP)) else {
        return Ok(Hidden::Nothing);
    };
    let mounts = spec.volumes.iter().map(|v| &v.target).chain(spec.devices.iter().map(Device::place));
    let mounts: Vec<PathBuf> = mounts.map(|target| rootfs::in_root(target)).collect();
    // Nobody could enter a private directory to reach the mount point in it.
    let entered = mounts
        .iter()
        .any(|target| target.strip_prefix(&etc.target).is_ok_and(|rest| rest.components().count() > 1));
    if method == Method::Bind && !user_ns && survey.users.is_some() && !entered {
        let why = "/etc is an idmapped mount in which no file has an owner, so its files are shown as those of user 65534, \
                   and no task can read what other users cannot read there";
        draft.report.note(Control::MASKED_PATHS, why);
        return Ok(Hidden::Unowned(etc.target.clone()));
    }
    masks(spec, host, (etc, method), mounts, draft).map(Hidden::Masked)
}

/// The private files and directories to mask. `given` are the paths at which the spec mounts something.
fn masks(
    spec: &SandboxSpec,
    host: &Host,
    (etc, method): (&RootEntry, Method),
    mut given: Vec<PathBuf>,
    draft: &mut Draft,
) -> Result<Vec<(PathBuf, FileKind)>> {
    // A generated file covers the host's.
    given.extend(names::paths(spec.dns.is_some(), spec.hosts.is_some()).map(PathBuf::from));
    let private = host.private_etc()?;
    let shown = private.iter().filter_map(|(path, kind)| Some((path.strip_prefix(&etc.source).ok()?, *kind)));
    let shown = shown.map(|(rest, kind)| (etc.target.join(rest), kind));
    let shown = shown.filter(|(at, _)| !given.iter().any(|given| at.starts_with(given)));
    // The mask of a directory has no place for a mount point.
    let (opened, covered): (Vec<_>, Vec<_>) =
        shown.partition(|(at, _)| given.iter().any(|given| given.starts_with(at)));
    for (at, _) in opened {
        let why = format!(
            "{} is not masked, because a volume or a device is mounted in it: its other files are shown too",
            at.display()
        );
        draft.report.weaken(Control::MASKED_PATHS, why);
    }
    if !covered.is_empty() {
        let names: Vec<String> = covered.iter().map(|(at, _)| at.display().to_string()).collect();
        let why = format!(
            "masked until the host replaces them, because other users cannot read them there: {}",
            names.join(" ")
        );
        draft.report.note(Control::MASKED_PATHS, why);
        // A task can move a directory that contains masked files, and the masks move along.
        let copied =
            matches!(method, Method::Copy | Method::Reflink) || method == Method::Link && spec.root.writable;
        if copied && spec.root.path.is_some() || spec.root.upper.is_some() {
            let why = "the root stays: if a task moves the directory of a masked file, the next task in this root sees the file";
            draft.report.weaken(Control::MASKED_PATHS, why);
        }
    }
    Ok(covered)
}

/// The files that the sandbox generates, `/etc/resolv.conf` and `/etc/hosts`: path and content.
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

/// The reason why pages of a tmpfs can be swapped out; `None` if they cannot.
pub(super) fn swappable(host: &Host, user_ns: bool) -> Option<String> {
    let (major, minor) = host.kernel;
    if host.kernel < (6, 4) {
        return Some(format!("the tmpfs option noswap needs Linux 6.4, this is {major}.{minor}"));
    }
    user_ns.then(|| "the tmpfs option noswap is not allowed in a user namespace".to_string())
}
