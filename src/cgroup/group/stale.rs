//! Finds the cgroups of a sandbox whose owner is gone.
//!
//! Only directories that the crate has made for itself are listed: the slices of the v2 tree and, without such a tree, the
//! parent in the hierarchy of the v1 freezer, in which every task has its unit. A cgroup in another v1 hierarchy is found by
//! the name of a sandbox that is known from elsewhere.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::AT_FDCWD;

use super::super::detect::place::{in_hierarchy, in_tree};
use super::super::detect::{Detection, Version};
use super::super::fs::{existing, is_own, open_dir, pids, was_made};
use super::super::name::CgroupPath;
use super::super::reserve::{OwnerLock, RESERVE_V2, SHARE_V2, Site};
use super::{Group, Paths};
use crate::sys;
use crate::sys::fs::is_at;
use crate::sys::lock::{Locked, any_holder};

/// The suffix of a task's own cgroup in the v2 tree.
const SUFFIX: &str = ".scope";

impl Group {
    /// The names of all tasks that have a unit below `parent`, with an owner or without.
    pub(crate) fn names(detection: &Detection, parent: &CgroupPath) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        if let Some(dir) = freezer(detection, parent) {
            for entry in existing(std::fs::read_dir(&dir))?.into_iter().flatten() {
                let entry = entry?;
                names.extend(entry.file_name().to_str().filter(|_| is_own(&entry.path())).map(str::to_owned));
            }
        }
        for slice in slices(detection, parent) {
            for entry in existing(std::fs::read_dir(&slice))?.into_iter().flatten() {
                let name = entry?.file_name();
                names.extend(name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).map(str::to_owned));
            }
        }
        Ok(names)
    }

    /// Opens the cgroups of a sandbox and locks the unit against a new owner. `None` if there are none. Dropping the
    /// value removes nothing. `known` says whether the sandbox has left something else, which is locked and was made before
    /// `before`: so a v1 cgroup of its name is its own, and as old.
    ///
    /// # Errors
    /// `ResourceBusy` if the sandbox has an owner, or if it may have been made after `before`; otherwise the refused call.
    pub(crate) fn stale(
        detection: &Detection,
        parent: &CgroupPath,
        name: &str,
        known: bool,
        before: SystemTime,
    ) -> io::Result<Option<Group>> {
        let Some(paths) = paths(detection, parent, name, known) else { return Ok(None) };
        let busy = || io::Error::from(io::ErrorKind::ResourceBusy);
        for leaf in &paths.leaves {
            if OwnerLock::is_held(leaf)? || !known && may_be_younger(leaf, before)? {
                return Err(busy());
            }
        }
        let unit = match paths.unit.as_deref().map(OwnerLock::exclude) {
            None => None,
            // It was removed meanwhile.
            Some(Ok(None)) => return Ok(None),
            Some(Err(e)) if e.kind() == io::ErrorKind::WouldBlock => return Err(busy()),
            Some(locked) => locked?,
        };
        let mut group = Group::of(paths, unit, None);
        group.keep = true;
        Ok(Some(group))
    }

    /// Opens the cgroups of a sandbox that may have an owner. Locks nothing, and dropping the value removes nothing.
    /// `None` if there are none. `known` is as for [`stale`](Self::stale).
    ///
    /// # Errors
    /// The refused call.
    pub(crate) fn owned(
        detection: &Detection,
        parent: &CgroupPath,
        name: &str,
        known: bool,
    ) -> io::Result<Option<Group>> {
        let Some(paths) = paths(detection, parent, name, known) else { return Ok(None) };
        let unit = paths.unit.as_ref().map(|unit| existing(open_dir(unit))).transpose()?;
        let unit = match unit {
            // It was removed meanwhile.
            Some(None) => return Ok(None),
            unit => unit.flatten(),
        };
        // Dropping it unlocks what is not locked, which does nothing.
        let mut group = Group::of(paths, unit.map(Locked::held), None);
        group.keep = true;
        Ok(Some(group))
    }

    /// Whether the cgroups are there. If there is a unit, it is the one that was opened.
    pub(crate) fn is_there(&self) -> io::Result<bool> {
        let Some(unit) = &self.unit else { return Ok(self.paths.leaves.iter().any(|leaf| leaf.exists())) };
        let path = self.paths.unit.as_deref().unwrap_or(Path::new("/"));
        Ok(is_at(unit.as_fd(), AT_FDCWD, path)?)
    }

    /// The process that has locked the unit.
    pub(crate) fn owner_pid(&self) -> Option<i32> {
        self.unit.as_ref().and_then(|unit| any_holder(unit.as_fd()))
    }

    /// The directories that belong to the task alone.
    pub(crate) fn leaves(&self) -> &[PathBuf] {
        &self.paths.leaves
    }

    /// When the youngest cgroup of the group was made, or later: the kernel may forget the time and take the present.
    pub(crate) fn made(&self) -> io::Result<Option<SystemTime>> {
        let made = self.paths.leaves.iter().map(|leaf| std::fs::metadata(leaf)?.modified());
        Ok(made.collect::<io::Result<Vec<_>>>()?.into_iter().max())
    }

    /// The processes in any cgroup of the group.
    pub(crate) fn members(&self) -> io::Result<BTreeSet<i32>> {
        let mut found = BTreeSet::new();
        for leaf in &self.paths.leaves {
            if let Some(dir) = existing(open_dir(leaf))? {
                found.extend(pids(dir.as_fd())?.into_iter().map(nix::unistd::Pid::as_raw));
            }
        }
        Ok(found)
    }
}

/// The slices below `parent` that the crate has made for itself. Others may not list them, which distinguishes them from
/// a slice of systemd of the same name.
fn slices(detection: &Detection, parent: &CgroupPath) -> Vec<PathBuf> {
    let Ok(parent) = in_tree(detection, parent) else { return Vec::new() };
    let slices = [SHARE_V2, RESERVE_V2].map(|name| parent.dir().join(name));
    slices.into_iter().filter(|slice| is_private(slice)).collect()
}

/// Without a v2 tree, the directory of the units: the parent in the hierarchy of the v1 freezer. `None` if the crate has not
/// made it for itself.
fn freezer(detection: &Detection, parent: &CgroupPath) -> Option<PathBuf> {
    let hierarchy = detection.v1.get("freezer").filter(|_| in_tree(detection, parent).is_err())?;
    in_hierarchy(hierarchy, parent).pop().filter(|dir| is_private(dir))
}

/// Whether a cgroup may have been made after `before`. Its time alone does not say so: if the kernel has forgotten the
/// directory's inode, it takes the present. Its processes then do.
fn may_be_younger(leaf: &Path, before: SystemTime) -> io::Result<bool> {
    if std::fs::metadata(leaf)?.modified()? <= before {
        return Ok(false);
    }
    let Some(dir) = existing(open_dir(leaf))? else { return Ok(true) };
    let past = before.elapsed().unwrap_or_default();
    let is_older = |pid: nix::unistd::Pid| sys::age(pid.as_raw()).is_ok_and(|age| age > past);
    Ok(!pids(dir.as_fd())?.into_iter().any(is_older))
}

/// Whether the caller's user owns the directory and no other user may list it.
fn is_private(dir: &Path) -> bool {
    is_own(dir) && std::fs::symlink_metadata(dir).is_ok_and(|st| st.mode() & 0o066 == 0)
}

/// Whether a cgroup has children. True if that is unknown.
fn has_children(dir: &Path) -> bool {
    std::fs::read_dir(dir).map_or(true, |mut entries| {
        entries.any(|e| e.map_or(true, |e| e.file_type().is_ok_and(|t| t.is_dir())))
    })
}

/// The record of the sandbox's cgroups, as far as it is needed to kill and remove them.
fn paths(detection: &Detection, parent: &CgroupPath, name: &str, known: bool) -> Option<Paths> {
    let mut paths = Paths::default();
    let made = |dir: &PathBuf| parent.is_default() || was_made(dir);
    if let Ok(tree) = in_tree(detection, parent) {
        paths.parents.extend(tree.levels.iter().filter(|dir| made(dir)).cloned());
    }
    for slice in slices(detection, parent) {
        let leaf = slice.join(format!("{name}{SUFFIX}"));
        if is_own(&leaf) {
            paths.parents.extend(Some(slice).filter(|slice| !slice.ends_with(RESERVE_V2)));
            (paths.unit, paths.into) = (Some(leaf.clone()), true);
            paths.leaves.push(leaf);
        }
    }
    let unit = || freezer(detection, parent).is_some_and(|dir| is_own(&dir.join(name)));
    let known = known || !paths.leaves.is_empty() || unit();
    for (controller, hierarchy) in &detection.v1 {
        let above = in_hierarchy(hierarchy, parent);
        let Some(leaf) = above.last().filter(|_| known).map(|dir| dir.join(name)) else { continue };
        let in_tree = paths.into || above.last().is_some_and(|dir| is_private(dir));
        let of_site = controller == "cpuset" && ["share", "reserve"].contains(&name);
        let mine = in_tree && !of_site && is_own(&leaf) && !has_children(&leaf);
        if mine && !paths.leaves.contains(&leaf) {
            paths.parents.extend(above.into_iter().filter(made));
            paths.leaves.push(leaf.clone());
        }
        if mine && controller == "freezer" && !paths.into {
            paths.unit = Some(leaf);
        }
    }
    if let Ok(site) = Site::find(detection, parent)
        && known
    {
        let leaf = match site.version {
            Version::V2 => site.reserve().join(format!("{name}{SUFFIX}")),
            Version::V1 => site.reserve().join(name),
        };
        let reserved = is_own(&leaf);
        if reserved && !paths.leaves.contains(&leaf) {
            paths.leaves.push(leaf);
        }
        match (reserved, site.version) {
            (true, _) => paths.reservation = Some(site),
            (false, Version::V1) => paths.share = Some(site),
            (false, Version::V2) => {}
        }
    }
    (!paths.leaves.is_empty()).then_some(paths)
}
