//! Finds the temporary root of a sandbox whose owner is gone.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, open, openat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};
use nix::unistd::geteuid;

use super::{DETACHED, Held, around, detached, process_in};
use crate::Result;
use crate::rootfs::directory::{DIR, DIR_NOFOLLOW};
use crate::rootfs::teardown::{mounts_below, remove_tree};
use crate::sys::lock::any_holder;
use crate::sys::{self, fs::is_at};

/// How the name of a temporary root's private directory begins.
const PREFIX: &str = "cofferdam-";

/// A temporary root without an owner, locked by this process. Dropping it removes nothing.
#[derive(Debug)]
pub(crate) struct StaleRoot {
    base: OwnedFd,
    path: PathBuf,
    name: OsString,
    lock: Held,
}

impl StaleRoot {
    /// The names of all sandboxes that may have a temporary root in `base`, with an owner or without.
    ///
    /// # Errors
    /// The refused call.
    pub(crate) fn names(base: &Path) -> io::Result<Vec<String>> {
        let names = sys::fs::names(base)?;
        Ok(names.iter().filter_map(|name| name.strip_prefix(PREFIX)).map(str::to_owned).collect())
    }

    /// Opens and locks the temporary root. `None` if there is none, or if the directory of that name was not made by this
    /// crate and this user: it is private, and has a directory `root` and nothing else. Without `root` its owner was
    /// killed in between; that counts only if the sandbox is `known` from something else.
    ///
    /// # Errors
    /// `ResourceBusy` if it has an owner, or was made after `before`; otherwise the refused call.
    pub(crate) fn open(
        base: &Path,
        name: &str,
        known: bool,
        before: SystemTime,
    ) -> io::Result<Option<StaleRoot>> {
        let path = around(base, name);
        let name = path.file_name().map(OsString::from).unwrap_or_default();
        let base = match open(base, DIR, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(None),
            opened => opened?,
        };
        let Some(dir) = open_private(&base, &name, known)? else { return Ok(None) };
        // A lock, even a short one, on a directory that is being made would fail the spawn.
        if changed(&fstat(&dir)?) > before {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let lock = match Held::lock(dir) {
            Ok(lock @ Held::Locked(_)) => lock,
            // Without locks nobody can tell whether its owner lives.
            Ok(Held::Unlocked(_)) | Err(Errno::EWOULDBLOCK) => return Err(io::ErrorKind::ResourceBusy.into()),
            Err(e) => return Err(e.into()),
        };
        let there = is_at(lock.as_fd(), base.as_fd(), &*name)?;
        Ok(there.then_some(StaleRoot { base, path, name, lock }))
    }

    /// Path of the private directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// When the private directory was last changed.
    pub(crate) fn made(&self) -> io::Result<SystemTime> {
        Ok(changed(&fstat(&self.lock)?))
    }

    /// Device and inode number of the private directory.
    pub(crate) fn id(&self) -> io::Result<(u64, u64)> {
        let st = fstat(&self.lock)?;
        Ok((st.st_dev, st.st_ino))
    }

    /// A process that runs in the root.
    pub(crate) fn process(&self) -> io::Result<Option<i32>> {
        running(self.lock.as_fd())
    }

    /// The mounts in the caller's mount namespace at the directory or below it. If they cannot be known, what was
    /// refused is in the list.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        let above = self.path.parent().unwrap_or(&self.path);
        mounts_below(self.base.as_fd(), &self.name).into_iter().map(|path| above.join(path)).collect()
    }

    /// Removes the private directory and everything in it.
    ///
    /// # Errors
    /// [`Error::Task`](crate::Error::Task) with everything that could not be removed.
    pub(crate) fn remove(&self) -> Result<()> {
        remove_tree(self.base.as_fd(), &self.name)
            .map_err(|left| left.into_error(self.path.parent().unwrap_or(&self.path)))
    }
}

/// A temporary root that may have an owner. Nothing of it is locked.
#[derive(Debug)]
pub(crate) struct OwnedRoot {
    base: OwnedFd,
    name: OsString,
    dir: OwnedFd,
}

impl OwnedRoot {
    /// Opens the private directory. `None` if there is none, or if it was not made by this crate and this user.
    ///
    /// # Errors
    /// The refused call.
    pub(crate) fn look(base: &Path, name: &str) -> io::Result<Option<OwnedRoot>> {
        let name = around(base, name).file_name().map(OsString::from).unwrap_or_default();
        let base = match open(base, DIR, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(None),
            opened => opened?,
        };
        Ok(open_private(&base, &name, true)?.map(|dir| OwnedRoot { base, name, dir }))
    }

    /// A process that runs in the root.
    ///
    /// # Errors
    /// The refused call.
    pub(crate) fn process(&self) -> io::Result<Option<i32>> {
        running(self.dir.as_fd())
    }

    /// The process that has locked the directory.
    pub(crate) fn owner_pid(&self) -> Option<i32> {
        any_holder(self.dir.as_fd())
    }

    /// Whether the directory still has its name.
    ///
    /// # Errors
    /// The refused call.
    pub(crate) fn is_there(&self) -> io::Result<bool> {
        Ok(is_at(self.dir.as_fd(), self.base.as_fd(), &*self.name)?)
    }
}

/// Opens the private directory. `None` if there is none, or if it was not made by this crate and this user: it is
/// private, and has a directory `root` and nothing else. `known` is as for [`StaleRoot::open`].
fn open_private(base: &OwnedFd, name: &OsString, known: bool) -> io::Result<Option<OwnedFd>> {
    let dir = match openat(base, &**name, DIR_NOFOLLOW, Mode::empty()) {
        // Of another user, a file, or a symbolic link.
        Err(Errno::ENOENT | Errno::EACCES | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
        opened => opened?,
    };
    let st = fstat(&dir)?;
    let own = st.st_uid == geteuid().as_raw() && st.st_mode & 0o077 == 0 && is_marked(&dir, known)?;
    Ok(own.then_some(dir))
}

/// A process that runs in the root in this directory.
fn running(dir: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    match detached(dir) {
        Some(pid) => Ok(Some(pid)),
        None => process_in(dir),
    }
}

/// When the directory was last changed. A time out of range counts as now.
fn changed(st: &nix::sys::stat::FileStat) -> SystemTime {
    let seconds = st.st_mtime.try_into().map_or(Duration::ZERO, Duration::from_secs);
    let time = UNIX_EPOCH
        .checked_add(seconds.saturating_add(Duration::from_nanos(st.st_mtime_nsec.try_into().unwrap_or(0))));
    time.unwrap_or_else(SystemTime::now)
}

/// Whether the private directory has what this crate makes in it and nothing else.
fn is_marked(dir: &OwnedFd, known: bool) -> io::Result<bool> {
    let mut copy = nix::dir::Dir::openat(dir, c".", DIR_NOFOLLOW, Mode::empty())?;
    for entry in copy.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b".." | b"root") && name != DETACHED.as_bytes() {
            return Ok(false);
        }
    }
    match fstatat(dir, c"root", AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => Ok(known),
        root => {
            let root = root?;
            let is_dir = SFlag::from_bits_truncate(root.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
            Ok(is_dir && root.st_uid == geteuid().as_raw())
        }
    }
}
