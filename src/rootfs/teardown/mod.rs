//! Removing a tree that a task could write, without ever leaving it.
//!
//! What stands below a root after a task has run is the task's work: links to anywhere, directories nested
//! thousands deep. And somebody else may have mounted something there that is alive. So nothing is unlinked
//! before the mount table says that nothing is mounted on any part of the tree (`proof`); then removal goes by
//! directory descriptor and opens every directory with `RESOLVE_NO_XDEV` and without following links, so that
//! a mount that comes in between is not entered either. Every refusal is collected with its path; one refusal
//! does not stop the rest. What is gone already is success.
//!
//! Several threads go first and remove what gives way (`crew`). If anything did not, one thread goes over what
//! is left, with patience, and notes why it stays (`branch`). Both hold a bounded number of descriptors and do
//! not recurse, whatever the depth. Nothing is unmounted: the mounts of a sandbox live in the sandbox's own
//! mount namespace and end with it.

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
mod crew;
mod dir;
mod proof;

/// So many paths are spelled out in one error message.
const SPELLED: usize = 64;

/// Removes `name` in `parent` and all that is below it: one name, of a directory or of anything else.
///
/// What is not there, or goes away meanwhile, is success: any number of threads and processes may remove the
/// same tree at once. No link is followed and no mount entered. The caller's thread and at most three that
/// live no longer than the call do the work, holding at most some 300 descriptors together; where the limit
/// is lower, two are enough.
///
/// Nothing at all is unlinked while anything is mounted at `name` or below it, in the mount namespace of the calling
/// thread, whoever mounted it. That is read from `/proc/thread-self/mountinfo` (Linux 3.17), so it takes a
/// `/proc`, and a `parent` that is reached through a mount of that namespace, at a path shorter than
/// 4096 bytes: without the proof nothing is removed. Mounts of other namespaces do not show. The kernel takes them
/// off a directory that is removed, and their content stays. A mount that comes after the proof is not
/// entered; it stays, and so does what leads to it, while the rest goes.
///
/// Needs `openat2` (Linux 5.6), or else and `statx` with mount ids (5.8), without which no directory is
/// entered. A caller who is not root gives itself the permission bits of its own directories.
///
/// # Errors
/// Everything that was left and why: `EBUSY` for a mount, `EINVAL` for what is not one plain name. See
/// [`Leftovers`]. Calling it again goes on with what is left.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Leftovers> {
    let bytes = name.as_bytes();
    let one = match CString::new(bytes) {
        Ok(one) if !matches!(bytes, b"" | b"." | b"..") && !bytes.contains(&b'/') => one,
        _ => return Err(Leftovers(vec![Left::stays(name.into(), Errno::EINVAL)])),
    };
    // What is not there needs no proof. Any other answer will come again.
    if fstatat(parent, &*one, AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_NO_AUTOMOUNT) == Err(Errno::ENOENT) {
        return Ok(());
    }
    proof::nothing_is_mounted(parent, name)?;
    remove_unproven(parent, &one)
}

/// The removal itself, for which any mount is one that came too late.
fn remove_unproven(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Leftovers> {
    let me = geteuid().as_raw();
    if crew::remove(parent, name, me) {
        return Ok(());
    }
    match branch::remove(parent, name, me) {
        left if left.is_empty() => Ok(()),
        left => Err(Leftovers(left)),
    }
}

/// What a removal left behind, and why. Never empty.
///
/// A directory that is left only because something below it was is not listed, and of mounts upon mounts only the
/// lowest. Printed, it is all of the paths with their reasons.
#[derive(Debug, PartialEq, Eq)]
pub struct Leftovers(Vec<Left>);

/// One path and the call that was refused.
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
    /// Each path, with the kernel's answer.
    ///
    /// Paths begin with the name that was to be removed. An absolute one is not in the tree: it is the mount point of
    /// something that is mounted on a part of the tree by way of another mount (`EBUSY`), or the file in
    /// `/proc` without which there is no proof that nothing is mounted (`EXDEV` where `parent` is not in
    /// the calling thread's mount namespace).
    pub fn iter(&self) -> impl Iterator<Item = (&Path, io::Error)> {
        self.0.iter().map(|left| (&*left.path, left.errno.into()))
    }

    /// As the crate's error, with all paths, shown below `parent`. The cause is the first one's.
    pub(crate) fn into_error(self, parent: &Path) -> Error {
        let first = self.0.first().map_or(Errno::UnknownErrno, |left| left.errno);
        let calls = self.0.iter().take(SPELLED).map(|left| {
            let call = format!("{}({:?})", left.call, parent.join(&left.path));
            if left.errno == first { call } else { format!("{call} = {:?}", left.errno) }
        });
        let mut step = calls.collect::<Vec<_>>().join(", ");
        if let Some(more) = self.0.len().checked_sub(SPELLED).filter(|more| *more > 0) {
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
