//! Creates the cgroups of a task: directories, the reservation, and what is held by descriptor.

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use super::super::fs::{self, DirOwner, NewDir, call, is_gone, is_own, open_dir, remove_tree};
use super::super::reserve::{JoinShare, OwnerLock, Reserve, hold_alone, hold_locked};
use super::kill::kill_all;
use super::{Group, TIMEOUT};
use crate::error::{Error, Result};
use crate::report::Reason;
use crate::step::Kernel;

/// How often creating the directories is tried again because another task has removed a parent meanwhile.
const RACES: u32 = 1000;

/// Whether the directory that contains `path` exists. If so, a directory of it that is gone was removed by another task.
fn exists_above(path: &Path) -> bool {
    path.parent().is_some_and(Path::exists)
}

impl Group {
    /// Creates all directories of one hierarchy. If another task removes a shared parent meanwhile, it starts again.
    /// Once the first leaf exists, its parents cannot be removed.
    pub(super) fn make_dirs(&mut self, kernel: &Kernel, dirs: &[NewDir]) -> Result<()> {
        let mut races = 0u32;
        let mut at = 0usize;
        while let Some(dir) = dirs.get(at) {
            match self.make_dir(kernel, dir) {
                Err(Error::Prepare { source, .. })
                    if (at > 0 || exists_above(&dir.path)) && is_gone(&source) && races < RACES =>
                {
                    races = races.saturating_add(1);
                    at = 0;
                    std::thread::yield_now();
                }
                made => {
                    made?;
                    at = at.saturating_add(1);
                }
            }
        }
        Ok(())
    }

    fn make_dir(&mut self, kernel: &Kernel, dir: &NewDir) -> Result<()> {
        let path = &dir.path;
        let known = self.paths.leaves.contains(path) || self.paths.parents.contains(path);
        match dir.owner {
            DirOwner::Task if known => {}
            DirOwner::Task => {
                match fs::make_leaf(kernel, path) {
                    Err(Error::Prepare { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                        self.clear(path)?;
                        fs::make_leaf(kernel, path)?;
                    }
                    made => made?,
                }
                self.paths.leaves.push(path.clone());
            }
            DirOwner::Crate => {
                fs::make_parent(kernel, path)?;
                if !known {
                    self.paths.parents.push(path.clone());
                }
            }
            DirOwner::Operator => {
                let new = fs::make_parent(kernel, path)?;
                fs::mark_made(kernel, path, new).inspect_err(|_| {
                    // Without the mark no task would ever remove it. Fails if another task is in it meanwhile.
                    if new {
                        let _ = fs::remove_dir(path);
                    }
                })?;
                if !known && (new || fs::was_made(path)) {
                    self.paths.parents.push(path.clone());
                }
            }
        }
        Ok(())
    }

    /// Creates the cgroup of a task with reserved CPUs. Returns why some of them cannot be used now.
    pub(super) fn reserve(&mut self, kernel: &Kernel, reserve: &Reserve) -> Result<Vec<Reason>> {
        let mut races = 0u32;
        loop {
            self.make_dirs(kernel, &reserve.parents)?;
            // From here on, dropping the group must give back the reservation.
            self.paths.reservation = Some(reserve.site.clone());
            match reserve.run(kernel, &mut self.paths.leaves) {
                Ok(Some(admitted)) => {
                    self.owner = Some(admitted.owner);
                    return Ok(admitted.shortfalls);
                }
                Ok(None) if races < RACES => {}
                Ok(None) => {
                    let step = call::open_dir(&reserve.site.parent);
                    return Err(Error::prepare::<io::Error>(step)(io::ErrorKind::NotFound.into()));
                }
                Err(Error::Prepare { source, .. })
                    if source.kind() == io::ErrorKind::AlreadyExists && races < RACES =>
                {
                    self.clear(&reserve.leaf)?;
                }
                Err(Error::Prepare { source, .. }) if is_gone(&source) && races < RACES => {}
                Err(e) => return Err(e),
            }
            races = races.saturating_add(1);
            std::thread::yield_now();
        }
    }

    pub(super) fn join_share(&mut self, kernel: &Kernel, share: &JoinShare) -> Result<()> {
        self.owner = share.run(kernel)?;
        Ok(())
    }

    /// Opens the unit and locks it. `reserved` says whether the unit was made, and locked, with a reservation of CPUs.
    pub(super) fn hold_unit(&mut self, kernel: &Kernel, path: &Path, reserved: bool) -> Result<()> {
        if reserved {
            self.unit = hold_locked(kernel, path)?;
            return Ok(());
        }
        self.unit = hold_alone(kernel, path).inspect_err(|refused| {
            if matches!(refused, Error::Prepare { source, .. } if source.kind() == io::ErrorKind::ResourceBusy) {
                // It is another task's.
                self.paths.leaves.retain(|leaf| leaf != path);
            }
        })?;
        Ok(())
    }

    pub(super) fn hold_memory(&mut self, kernel: &Kernel, path: &Path) -> Result<()> {
        self.memory = fs::hold(kernel, path)?;
        Ok(())
    }

    /// Records a line that the kernel refused.
    pub(super) fn note_refused(&mut self, file: &Path, text: &str) {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.paths.refused.push((name, text.to_owned()));
    }

    /// Removes the stale cgroup of an earlier task of the same name at `leaf`, if it exists.
    pub(super) fn remove_stale(&self, kernel: &Kernel, leaf: &Path) -> Result<()> {
        match fs::hold_existing(kernel, leaf)? {
            Some(_) => self.clear(leaf),
            None => Ok(()),
        }
    }

    /// Kills the processes of a stale task and removes its leaf. A task whose owner lives is not stale.
    ///
    /// The processes in the unit are killed first. Only the unit has the files to kill them at once or to freeze and
    /// thaw them; in another v1 hierarchy they could fork meanwhile. A unit that this group has created is skipped,
    /// because some kernels kill each process that is created in a cgroup that was killed before, see
    /// [`kill`](Self::kill).
    fn clear(&self, leaf: &Path) -> Result<()> {
        let unit = self.paths.unit.as_deref();
        let unit = unit.filter(|unit| *unit != leaf && !self.paths.leaves.iter().any(|made| made == unit));
        // Nobody takes the cgroups for its own before they are removed.
        let mut excluded = Vec::new();
        for path in unit.into_iter().chain([leaf]) {
            match OwnerLock::exclude(path) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let name = path.file_stem().unwrap_or_default().display();
                    let why = format!("a running task has the name {name}");
                    let source = io::Error::new(io::ErrorKind::ResourceBusy, why);
                    return Err(Error::Prepare { step: call::lock(path), source });
                }
                locked => excluded.extend(locked.map_err(Error::prepare(call::lock(path)))?),
            }
        }
        for path in unit.into_iter().chain([leaf]) {
            let dir = match open_dir(path) {
                Err(e) if is_gone(&e) => continue,
                dir => dir.map_err(Error::prepare(call::open_dir(path)))?,
            };
            kill_all(dir.as_fd(), TIMEOUT).map_err(Error::prepare(call::rmdir(path)))?;
        }
        remove_tree(leaf, TIMEOUT).map_err(Error::prepare(call::rmdir(leaf)))?;
        // The earlier task may have had other limits. Its processes are gone, so what is its own is empty.
        let left = |dirs: &&Vec<NewDir>| dirs.last().is_some_and(|leaf| is_own(&leaf.path));
        for dirs in self.paths.elsewhere.iter().filter(left) {
            let removable = |dir: &&NewDir| dir.owner != DirOwner::Operator || fs::was_made(&dir.path);
            for dir in dirs.iter().rev().filter(removable) {
                // Another task may be in a parent.
                let _ = fs::remove_dir(&dir.path);
            }
        }
        Ok(())
    }
}
