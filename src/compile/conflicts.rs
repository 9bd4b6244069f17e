//! Conflicts of mounts: two mounts at one path, a mount that hides another, a directory over a file. The error names
//! both.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::host::{Survey, temp_dir};
use crate::report::Control;
use crate::rootfs::lower::RootEntry;
use crate::rootfs::{self, ChrootEnv, FileKind, Method};
use crate::spec::{Policy, SandboxSpec};
use crate::step::Draft;

/// Something that is mounted in the root.
struct Placed {
    field: &'static str,
    what: String,
    at: PathBuf,
}

/// The mounts of a spec, in the order in which they are made.
fn placed(spec: &SandboxSpec) -> Vec<Placed> {
    let place = |field, what: String, at: &Path| Placed { field, what, at: rootfs::in_root(at) };
    let own = |at: &Path| place("volumes", format!("the sandbox's own {}", at.display()), at);
    let mut all: Vec<Placed> = ["/dev", "/proc", "/sys"].into_iter().map(|at| own(Path::new(at))).collect();
    all.extend(rootfs::lower::nodes().map(|node| own(&node)));
    let dirs = spec.task_dirs.targets();
    all.extend(dirs.map(|at| place("task_dirs", format!("{at} of task_dirs"), Path::new(at))));
    let volumes = spec.volumes.iter();
    all.extend(volumes.map(|v| place("volumes", format!("the volume {:?}", v.source), &v.target)));
    let devices = spec.devices.iter();
    all.extend(devices.map(|d| place("devices", format!("the device {:?}", d.source), d.place())));
    let files = rootfs::names::paths(spec.dns.is_some(), spec.hosts.is_some());
    all.extend(files.map(|at| place("volumes", format!("the sandbox's own {at}"), Path::new(at))));
    all
}

/// Refuses a mount that hides another part of the spec.
pub(super) fn mounts(spec: &SandboxSpec, entries: &[RootEntry], draft: &mut Draft) -> Result<()> {
    let placed = placed(spec);
    for (i, later) in placed.iter().enumerate() {
        let Some(earlier) = placed.iter().take(i).find(|earlier| earlier.at.starts_with(&later.at)) else {
            continue;
        };
        let why = match earlier.at == later.at {
            true => format!("{} and {} are both mounted at {:?}", earlier.what, later.what, later.at),
            false => format!(
                "{} at {:?} would hide {} at {:?}: list the outer mount first",
                later.what, later.at, earlier.what, earlier.at
            ),
        };
        return Err(Error::spec(later.field, why));
    }
    for RootEntry { source, target, .. } in entries {
        let over = placed.iter().find(|one| target.starts_with(&one.at));
        match over {
            None => {}
            Some(over) if over.field == "volumes" && over.what.starts_with("the volume") => {
                let why = format!("{} at {:?} hides {source:?} of chroot_env", over.what, over.at);
                draft.report.note(Control::HOST_FILES, why);
            }
            Some(over) => {
                let why = format!("{source:?} -> {target:?} would be hidden by {}", over.what);
                return Err(Error::spec("chroot_env", why));
            }
        }
    }
    Ok(())
}

/// Refuses to mount a directory over a file of the root, or a file over a directory.
pub(super) fn kinds(spec: &SandboxSpec, survey: &Survey, env: &ChrootEnv) -> Result<()> {
    for volume in &spec.volumes {
        // The contents of an earlier volume are not known.
        let within = |other: &&rootfs::Volume| *other != volume && volume.target.starts_with(&other.target);
        if spec.volumes.iter().any(|other| within(&other)) {
            continue;
        }
        let Some((_, path)) = rootfs::shown(env, &volume.target) else { continue };
        let (Some(here), Some(there)) = (survey.kind(&volume.source), survey.kind(&path)) else { continue };
        if (here == FileKind::Dir) != (there == FileKind::Dir) {
            let name = |kind| if kind == FileKind::Dir { "a directory" } else { "a file" };
            let why = format!(
                "{:?} is {}, and cannot be mounted over {:?}, which is {} ({path:?} on the host)",
                volume.source,
                name(here),
                volume.target,
                name(there),
            );
            return Err(Error::spec("volumes", why));
        }
    }
    Ok(())
}

/// Refuses to copy or link files into a root on a noexec file system.
pub(super) fn executable(policy: &Policy, spec: &SandboxSpec, survey: &Survey, method: Method) -> Result<()> {
    if !method.walks() {
        return Ok(());
    }
    let (field, base) = match &spec.root.path {
        Some(path) => ("root.path", path.clone()),
        None => ("temp_dir", temp_dir(policy)),
    };
    if survey.noexec.contains(&base) {
        let why = format!(
            "{base:?} is on a file system that is mounted noexec: no program in a root there can be executed"
        );
        return Err(Error::spec(field, why));
    }
    Ok(())
}
