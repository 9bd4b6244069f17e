//! Chooses the method that populates the root, and refuses methods that cannot work.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::host::{Host, Survey};
use crate::report::Control;
use crate::rootfs::lower::RootEntry;
use crate::rootfs::{self, ChrootEnv, FileKind, Method};
use crate::spec::SandboxSpec;
use crate::step::Draft;

/// Returns the method that the spec asks for, or the one that `auto` stands for.
pub(super) fn choose(
    spec: &SandboxSpec,
    host: &Host,
    survey: &Survey,
    env: &ChrootEnv,
    entries: &[RootEntry],
    draft: &mut Draft,
) -> Result<Method> {
    let over_root = entries.iter().find(|e| e.target == Path::new("/"));
    let buried = buried(spec, survey, env, entries);
    let method = match spec.root.populate {
        Method::Auto => auto(spec, host, entries, over_root, buried.as_ref(), draft),
        method => method,
    };
    if let (Method::Bind | Method::Overlay, Some(RootEntry { source, .. })) = (method, over_root) {
        let why = format!("{source:?} cannot be mounted over the new root: use it as the path of the root");
        return Err(Error::spec("chroot_env", why));
    }
    if let (Method::Bind | Method::Overlay, Some(Buried { field, target, hidden: true, .. })) =
        (method, &buried)
    {
        let why = format!(
            "{target:?} cannot be created in the root: chroot_skip excludes it; populate by copy or auto"
        );
        return Err(Error::spec(field, why));
    }
    if let (Method::Bind, Some(Buried { field, target, source, .. })) = (method, buried) {
        let why = format!(
            "{target:?} cannot be created in the root: {source:?} is bound read-only and does not contain it; populate by overlay or auto"
        );
        return Err(Error::spec(field, why));
    }
    if let (Method::Overlay, Some(reason)) = (method, no_overlay(host, entries)) {
        return Err(Error::Unsupported { control: Control::HOST_FILES, reason });
    }
    if spec.root.upper.is_some() && method != Method::Overlay {
        let why = format!("it needs populate \"overlay\", but the root is populated by {method}");
        return Err(Error::spec("root.upper", why));
    }
    if let (Method::Overlay, Some(e)) =
        (method, entries.iter().find(|e| rootfs::lower::layer_name(&e.target).len() > 255))
    {
        let why = format!(
            "{:?} is too long for an overlay: the name of its layer would exceed 255 bytes",
            e.target
        );
        return Err(Error::spec("chroot_env", why));
    }
    if method == Method::Overlay {
        for RootEntry { target, .. } in entries.iter().filter(|e| e.kind != FileKind::Dir) {
            draft.report.note(
                Control::HOST_FILES,
                format!("{target:?} is read-only: only directories can have an overlay"),
            );
        }
    }
    Ok(method)
}

/// Chooses the cheapest method that fits the spec. It never chooses `link`, because links expose the host's own inodes:
/// the author must ask for that.
fn auto(
    spec: &SandboxSpec,
    host: &Host,
    entries: &[RootEntry],
    over_root: Option<&RootEntry>,
    buried: Option<&Buried>,
    draft: &mut Draft,
) -> Method {
    let writes = if let Some(upper) = &spec.root.upper {
        Some(format!("the task's writes go to {upper:?}"))
    } else if spec.root.writable {
        Some("it must be writable".to_string())
    } else if let Some(RootEntry { source, .. }) = over_root {
        Some(format!("{source:?} cannot be mounted over the root"))
    } else {
        buried.map(|Buried { target, .. }| format!("{target:?} must be created in it"))
    };
    let (method, why) = match writes {
        None => (Method::Bind, "it need not be writable".to_string()),
        Some(why) if over_root.is_some() => (Method::Reflink, why),
        Some(why) => match no_overlay(host, entries) {
            None if !buried.is_some_and(|b| b.hidden) => (Method::Overlay, why),
            None => (Method::Reflink, format!("{why}, and chroot_skip excludes a path that must be created")),
            Some(but) => (Method::Reflink, format!("{why}, and {but}")),
        },
    };
    draft.report.note(Control::HOST_FILES, format!("auto: the root is populated by {method}, because {why}"));
    method
}

/// The reason why the root cannot be populated by overlays; `None` if it can.
fn no_overlay(host: &Host, entries: &[RootEntry]) -> Option<String> {
    if !host.overlay {
        return Some("the kernel has no overlay file system".to_string());
    }
    let mounted = entries.iter().find(|e| e.kind == FileKind::Dir && !e.submounts.is_empty())?;
    // Mounts that came from another user namespace are locked, and cloning a tree without the mounts in it is refused
    // (EINVAL).
    let why = || {
        format!(
            "in a user namespace {:?} cannot have an overlay, because other file systems are mounted inside it",
            mounted.source
        )
    };
    (!host.privileged()).then(why)
}

/// A path that would have to be created inside an entry of the root. See [`buried`].
struct Buried {
    /// The field of the spec that needs the path.
    field: &'static str,
    target: PathBuf,
    /// The entry's source, a directory of the host.
    source: PathBuf,
    /// Whether `chroot_skip` excludes the path.
    hidden: bool,
}

/// The first mount point or directory that would have to be created inside an entry of the root, with that entry's
/// source. Paths inside mounts that cover the entries by then (volumes, task directories, /dev, /proc, /sys) are not
/// considered.
fn buried(spec: &SandboxSpec, survey: &Survey, env: &ChrootEnv, entries: &[RootEntry]) -> Option<Buried> {
    let volumes: Vec<&Path> = spec.volumes.iter().map(|v| v.target.as_path()).collect();
    let own = spec.task_dirs.targets().chain(["/dev", "/proc", "/sys"]);
    let mut over: Vec<&Path> = own.map(Path::new).collect();
    over.extend(&volumes);
    let own = over.len().saturating_sub(volumes.len());
    let before = |n: usize| over.get(..own.saturating_add(n)).unwrap_or_default();
    let devices = spec.devices.iter().map(|d| ("devices", d.place().as_path()));
    let names = rootfs::names::paths(spec.dns.is_some(), spec.hosts.is_some());
    let names = names.map(|name| (if name.ends_with("hosts") { "hosts" } else { "dns" }, Path::new(name)));
    let work_dir = spec.work_dir.as_deref().map(|dir| ("work_dir", dir));
    let targets = entries
        .iter()
        .map(|e| ("root.chroot_env", e.target.as_path(), &[][..]))
        .chain(volumes.iter().enumerate().map(|(n, target)| ("volumes", *target, before(n))))
        .chain(devices.chain(names).chain(work_dir).map(|(field, target)| (field, target, over.as_slice())));
    let uncovered = targets.filter(|(_, target, over)| !over.iter().any(|o| target.starts_with(o)));
    let mut uncovered = uncovered.map(|(field, target, _)| (field, target));
    uncovered.find_map(|(field, target)| {
        let (source, path) = rootfs::shown(env, target)?;
        let real = survey.real(source).join(path.strip_prefix(source).ok()?);
        let hidden = survey.skip.iter().any(|skip| real.starts_with(&skip.path));
        let within = survey.kind(source) == Some(FileKind::Dir) && (hidden || survey.kind(&path).is_none());
        within.then(|| Buried { field, target: target.to_path_buf(), source: source.to_path_buf(), hidden })
    })
}
