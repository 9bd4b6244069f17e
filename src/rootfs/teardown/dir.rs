//! One directory of the tree: opened without leaving the tree, and rid of all that is no directory.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::sys::fs::{Dirents, Kind, mount_id};

/// Opens the directory `name` in `here`, of which the caller is about to remove what is in it. `ENOTDIR` or `ELOOP`
/// if it is something else, `EXDEV` if it is a mount.
pub(super) fn open_child(here: BorrowedFd<'_>, name: &CStr, me: u32) -> nix::Result<OwnedFd> {
    let open = || open_same_mount(here, name, ResolveFlag::RESOLVE_BENEATH);
    match open() {
        Err(Errno::EACCES) if me != 0 && make_readable(here, name, me).is_ok() => open(),
        opened => opened,
    }
}

/// Opens the directory that the directory `dir` is in.
pub(super) fn open_up(dir: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    open_same_mount(dir, c"..", ResolveFlag::empty())
}

/// Unlinks everything in `dir` but directories, which it returns. What cannot be unlinked is told to `failed`, with
/// no name if the directory cannot be read on.
pub(super) fn unlink_files(
    dir: BorrowedFd<'_>,
    dirents: &mut Dirents,
    me: u32,
    mut failed: impl FnMut(Option<&CStr>, Errno),
) -> Vec<CString> {
    let mut dirs = Vec::new();
    if me != 0 {
        make_writable(dir, me);
    }
    loop {
        let batch = match dirents.read(dir) {
            // Gone means that somebody else has removed it.
            Ok(None) | Err(Errno::ENOENT) => return dirs,
            Ok(Some(batch)) => batch,
            Err(errno) => {
                failed(None, errno);
                return dirs;
            }
        };
        for entry in batch {
            if entry.kind == Kind::Dir {
                dirs.push(entry.name.to_owned());
                continue;
            }
            match unlink(dir, entry.name) {
                Ok(()) => {}
                // The file system did not tell the kind.
                Err(Errno::EISDIR) => dirs.push(entry.name.to_owned()),
                Err(errno) => failed(Some(entry.name), errno),
            }
        }
    }
}

/// Removes the name of what is no directory. One that is gone already is fine.
pub(super) fn unlink(here: BorrowedFd<'_>, name: &CStr) -> nix::Result<()> {
    gone(unlinkat(here, name, UnlinkatFlags::NoRemoveDir))
}

/// Removes an empty directory. One that is gone already is fine.
pub(super) fn rmdir(here: BorrowedFd<'_>, name: &CStr) -> nix::Result<()> {
    gone(unlinkat(here, name, UnlinkatFlags::RemoveDir))
}

fn gone(answer: nix::Result<()>) -> nix::Result<()> {
    if answer == Err(Errno::ENOENT) { Ok(()) } else { answer }
}

/// Opens the directory `name` in `dir` if it is on the same mount and no link; `EXDEV` if it is a mount.
fn open_same_mount(dir: BorrowedFd<'_>, name: &CStr, more: ResolveFlag) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS | more;
    match openat2(dir, name, OpenHow::new().flags(flags).resolve(resolve)) {
        // Older than 5.6, or a filter that does not know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => {
            let fd = openat(dir, name, flags, Mode::empty())?;
            same_mount(dir, fd.as_fd())?;
            Ok(fd)
        }
        answer => answer,
    }
}

/// `EXDEV` unless the kernel says that both are on the same mount.
fn same_mount(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> nix::Result<()> {
    match (mount_id(a)?, mount_id(b)?) {
        (Some(a), Some(b)) if a == b => Ok(()),
        _ => Err(Errno::EXDEV),
    }
}

/// Who is not root needs the write and search bits of a directory to empty it. Only on one's own, and by
/// descriptor; a directory has no second name, so nothing outside of the tree is reached.
fn make_writable(dir: BorrowedFd<'_>, me: u32) {
    if let Ok(st) = fstat(dir)
        && st.st_uid == me
        && st.st_mode & 0o300 != 0o300
    {
        // Refused, the unlinks below will say so with their paths.
        let _ = fchmod(dir, Mode::from_bits_truncate(st.st_mode) | Mode::S_IRWXU);
    }
}

/// The same for a directory that cannot even be opened, by its path-only descriptor.
fn make_readable(dir: BorrowedFd<'_>, name: &CStr, me: u32) -> nix::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(dir, name, flags, Mode::empty())?;
    same_mount(dir, fd.as_fd())?;
    let st = fstat(&fd)?;
    if st.st_uid != me {
        return Err(Errno::EACCES);
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let mode = Mode::from_bits_truncate(st.st_mode) | Mode::S_IRWXU;
    fchmodat(AT_FDCWD, path.as_str(), mode, FchmodatFlags::FollowSymlink)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_directory_that_is_gone_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let fd = File::open(dir.path()).unwrap();
        dir.close().unwrap();
        let failed = |name: Option<&CStr>, errno: Errno| panic!("{name:?}: {errno}");
        assert!(unlink_files(fd.as_fd(), &mut Dirents::new(), 0, failed).is_empty());
        unlink(fd.as_fd(), c"x").unwrap();
        rmdir(fd.as_fd(), c"x").unwrap();
    }

    #[test]
    fn mounts_are_told_apart_without_openat2_too() {
        let open = |p: &str| File::open(p).unwrap();
        same_mount(open("/proc").as_fd(), open("/proc/self").as_fd()).unwrap();
        assert_eq!(same_mount(open("/").as_fd(), open("/proc").as_fd()), Err(Errno::EXDEV));
    }
}
