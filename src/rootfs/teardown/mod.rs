//! Removes a tree that a task could write, without ever leaving it.
//!
//! After a task has run, its root contains what the task made: symbolic links to anywhere, and directories nested
//! thousands deep. Other processes may have mounted file systems there that are in use. So nothing is unlinked before
//! the mount table shows that nothing is mounted on any part of the tree (`proof`). Then the removal works by directory
//! descriptor. It opens every directory with `RESOLVE_NO_XDEV` and follows no symbolic link, so that a later mount is
//! not entered either. Every refusal is collected with its path, and the removal goes on. An entry that does not exist
//! any more counts as removed.
//!
//! Several threads remove everything they can (`threads`). If anything stays, one thread tries again and records why it
//! stays (`branch`). Both hold a bounded number of descriptors and do not recurse. Nothing is unmounted: the mounts of
//! a sandbox are in its own mount namespace and end with it.

#![forbid(unsafe_code)]

use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;
use nix::unistd::geteuid;

use crate::Error;

mod branch;
mod dir;
mod proof;
mod threads;

/// Maximum number of paths in one error message.
const MAX_PATHS: usize = 64;

/// Removes `name` in `parent` and everything below it. `name` is a single name, of a directory or of any other file.
///
/// Succeeds if it does not exist. Any number of threads and processes may remove the same tree at once. Follows no
/// symbolic link and enters no mount. The caller's thread and at most three helper threads, which end with the call,
/// hold about 300 descriptors at most. Two descriptors are enough if the limit is lower.
///
/// Removes nothing while anything is mounted at `name` or below it in the mount namespace of the calling thread. This
/// is read from `/proc/thread-self/mountinfo` (Linux 3.17). So it needs a `/proc`, and `parent` must be reached through
/// a mount of that namespace, at a path shorter than 4096 bytes; otherwise nothing is removed. Mounts in other
/// namespaces are not seen. The kernel detaches them when their mount point is removed, and their content stays. A
/// mount that is made after this check is not entered. It stays, and so do the directories that lead to it; everything
/// else is removed.
///
/// Needs `openat2` (Linux 5.6). Without it, `statx` with mount ids (Linux 5.8) is needed to enter a directory. If
/// the caller is not root, the permission bits of its own directories are changed so that they can be emptied.
///
/// # Errors
/// [`Leftovers`]: each path that stays and why, `EBUSY` for a mount, `EINVAL` if `name` is not a single name.
/// Another call continues with the rest.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Leftovers> {
    let bytes = name.as_bytes();
    let one = match CString::new(bytes) {
        Ok(one) if !matches!(bytes, b"" | b"." | b"..") && !bytes.contains(&b'/') => one,
        _ => return Err(Leftovers(vec![Left::stays(name.into(), Errno::EINVAL)])),
    };
    // A name that does not exist needs no check. Any other error will recur.
    if fstatat(parent, &*one, AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_NO_AUTOMOUNT) == Err(Errno::ENOENT) {
        return Ok(());
    }
    proof::nothing_is_mounted(parent, name)?;
    remove_unproven(parent, &one)
}

/// The mounts at `name` in `parent` or below it, as paths below `parent`. If they cannot be known, the refused path is in
/// the list.
pub(crate) fn mounts_below(parent: BorrowedFd<'_>, name: &OsStr) -> Vec<PathBuf> {
    match proof::nothing_is_mounted(parent, name) {
        Ok(()) => Vec::new(),
        Err(mounts) => mounts.iter().map(|(path, _)| path.to_owned()).collect(),
    }
}

/// Removes the tree without reading the mount table.
fn remove_unproven(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Leftovers> {
    let me = geteuid().as_raw();
    if threads::remove(parent, name, me) {
        return Ok(());
    }
    match branch::remove(parent, name, me) {
        left if left.is_empty() => Ok(()),
        left => Err(Leftovers(left)),
    }
}

/// The paths that could not be removed, and why. Never empty.
///
/// A directory that stays only because of something below it is not listed. If mounts are mounted on other mounts, only
/// the lowest is listed. `Display` prints all paths with their reasons.
#[derive(Debug, PartialEq, Eq)]
pub struct Leftovers(Vec<Left>);

/// One path and the refused call.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    path: PathBuf,
    errno: Errno,
    call: &'static str,
}

impl Left {
    fn stays(path: PathBuf, errno: Errno) -> Left {
        Left { path, errno, call: "unlinkat" }
    }
}

impl Leftovers {
    /// Each path with its error.
    ///
    /// Paths in the tree begin with the name that was to be removed. An absolute path is outside of the tree and says
    /// why nothing was removed:
    ///
    /// - `EBUSY`: a mount point on a directory of the tree, at another path that shows the same directory.
    /// - any other errno: a file in `/proc` that was needed to check for mounts. `EXDEV` means that `parent` is not in
    ///   the mount namespace of the calling thread.
    pub fn iter(&self) -> impl Iterator<Item = (&Path, io::Error)> {
        self.0.iter().map(|left| (&*left.path, left.errno.into()))
    }

    /// Converts to the crate's error, with paths below `parent`. Its source is the first error.
    pub(crate) fn into_error(self, parent: &Path) -> Error {
        let first = self.0.first().map_or(Errno::UnknownErrno, |left| left.errno);
        let calls = self.0.iter().take(MAX_PATHS).map(|left| {
            let call = format!("{}({:?})", left.call, parent.join(&left.path));
            if left.errno == first { call } else { format!("{call} = {:?}", left.errno) }
        });
        let mut step = calls.collect::<Vec<_>>().join(", ");
        if let Some(more) = self.0.len().checked_sub(MAX_PATHS).filter(|more| *more > 0) {
            step.push_str(&format!(" and {more} more"));
        }
        Error::Task { step, source: first.into() }
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(i, left)| {
            write!(f, "{}{:?}: {}", if i == 0 { "" } else { "; " }, left.path, left.errno.desc())
        })
    }
}

impl std::error::Error for Leftovers {}

#[cfg(test)]
pub(crate) mod tests;
