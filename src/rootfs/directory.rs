//! Helpers for directories by descriptor: open flags, opening a directory that was just made, and listing.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat, fstat, mkdirat};
use nix::unistd::geteuid;

use crate::sys::fs::{DirentKind, Dirents};
use crate::{Error, Result};

/// Flags for a directory that is read or filled.
pub(super) const DIR: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// [`DIR`], and the last component must not be a symbolic link.
pub(super) const DIR_NOFOLLOW: OFlag = DIR.union(OFlag::O_NOFOLLOW);

/// Opens the directory `name`, which the caller has just made with `mode`.
///
/// The umask may have removed permission bits of the owner. A caller other than root needs these to open the directory.
/// They are restored through an `O_PATH` descriptor, because a `chmod(2)` by name follows symbolic links.
pub(super) fn open_made<P: ?Sized + NixPath>(
    dir: BorrowedFd<'_>,
    name: &P,
    mode: Mode,
) -> nix::Result<OwnedFd> {
    match openat(dir, name, DIR_NOFOLLOW, Mode::empty()) {
        Err(Errno::EACCES) => {}
        Err(errno) => return Err(errno),
        Ok(fd) => {
            if !geteuid().is_root() && fstat(&fd)?.st_mode & 0o700 != 0o700 {
                fchmod(&fd, mode)?;
            }
            return Ok(fd);
        }
    }
    let path = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(dir, name, path, Mode::empty())?;
    chmod_path_fd(fd.as_fd(), mode)?;
    openat(dir, name, DIR_NOFOLLOW, Mode::empty())
}

/// `fchmod(2)` for an `O_PATH` descriptor, which `fchmod` itself refuses.
pub(super) fn chmod_path_fd(fd: BorrowedFd<'_>, mode: Mode) -> nix::Result<()> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    fchmodat(AT_FDCWD, link.as_str(), mode, FchmodatFlags::FollowSymlink)
}

/// Makes the directory `name` with mode 0700, whatever the umask, and opens it.
pub(super) fn make_private<P: ?Sized + NixPath>(dir: BorrowedFd<'_>, name: &P) -> nix::Result<OwnedFd> {
    mkdirat(dir, name, Mode::S_IRWXU)?;
    let fd = open_made(dir, name, Mode::S_IRWXU)?;
    fchmod(&fd, Mode::S_IRWXU)?;
    Ok(fd)
}

/// Names and types of all entries of `dir`. Errors name the directory as `path`.
pub(super) fn list(dir: BorrowedFd<'_>, path: &Path) -> Result<Vec<(CString, DirentKind)>> {
    let fail = |call: &str| Error::prepare::<Errno>(format!("{call}({path:?})"));
    // Opened again, because reading moves the offset of the open file.
    let dir = openat(dir, c".", DIR, Mode::empty()).map_err(fail("openat"))?;
    let (mut dirents, mut names) = (Dirents::new(), Vec::new());
    while let Some(batch) = dirents.read(dir.as_fd()).map_err(fail("getdents64"))? {
        names.extend(batch.map(|entry| (entry.name.to_owned(), entry.kind)));
    }
    Ok(names)
}
