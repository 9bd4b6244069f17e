//! Opens one directory without leaving the tree, and unlinks everything in it that is not a directory.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::rootfs::directory::{DIR_NOFOLLOW, chmod_path_fd};
use crate::sys::fs::{DirentKind, Dirents, mount_id};

/// Opens the directory `name` in `here`, which the caller is about to empty. `ENOTDIR` or `ELOOP` if it is not a
/// directory, `EXDEV` if it is a mount.
pub(super) fn open_child(here: BorrowedFd<'_>, name: &CStr, me: u32) -> nix::Result<OwnedFd> {
    let open = || open_check_same_mount(here, name, ResolveFlag::RESOLVE_BENEATH);
    match open() {
        Err(Errno::EACCES) if me != 0 && make_readable(here, name, me).is_ok() => open(),
        opened => opened,
    }
}

/// Opens the parent of the directory `dir`.
pub(super) fn open_up(dir: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    open_check_same_mount(dir, c"..", ResolveFlag::empty())
}

/// Unlinks everything in `dir` but directories, whose names it returns. Calls `failed` for each name that cannot be
/// unlinked, and without a name if the directory cannot be read.
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
            // ENOENT: another process has removed the directory.
            Ok(None) | Err(Errno::ENOENT) => return dirs,
            Ok(Some(batch)) => batch,
            Err(errno) => {
                failed(None, errno);
                return dirs;
            }
        };
        for entry in batch {
            if entry.kind == DirentKind::Dir {
                dirs.push(entry.name.to_owned());
                continue;
            }
            match unlink(dir, entry.name) {
                Ok(()) => {}
                // The file system does not store the type with the name.
                Err(Errno::EISDIR) => dirs.push(entry.name.to_owned()),
                Err(errno) => failed(Some(entry.name), errno),
            }
        }
    }
}

/// Unlinks a name that is not a directory. Succeeds if it does not exist.
pub(super) fn unlink(here: BorrowedFd<'_>, name: &CStr) -> nix::Result<()> {
    absent_is_success(unlinkat(here, name, UnlinkatFlags::NoRemoveDir))
}

/// `rmdir(2)`. Succeeds if the directory does not exist.
pub(super) fn rmdir(here: BorrowedFd<'_>, name: &CStr) -> nix::Result<()> {
    absent_is_success(unlinkat(here, name, UnlinkatFlags::RemoveDir))
}

fn absent_is_success(answer: nix::Result<()>) -> nix::Result<()> {
    if answer == Err(Errno::ENOENT) { Ok(()) } else { answer }
}

/// Opens the directory `name` in `dir`, without following a symbolic link; `EXDEV` if it is on another mount.
fn open_check_same_mount(dir: BorrowedFd<'_>, name: &CStr, more: ResolveFlag) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS | more;
    match openat2(dir, name, OpenHow::new().flags(DIR_NOFOLLOW).resolve(resolve)) {
        // Linux before 5.6, or a seccomp filter that does not know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => {
            let fd = openat(dir, name, DIR_NOFOLLOW, Mode::empty())?;
            check_same_mount(dir, fd.as_fd())?;
            Ok(fd)
        }
        answer => answer,
    }
}

/// `EXDEV` unless the kernel shows that both are on the same mount.
fn check_same_mount(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> nix::Result<()> {
    match (mount_id(a)?, mount_id(b)?) {
        (Some(a), Some(b)) if a == b => Ok(()),
        _ => Err(Errno::EXDEV),
    }
}

/// Sets the owner's permission bits, which a caller other than root needs to empty a directory. Changes only a
/// directory of the caller, by descriptor. A directory has no second name, so nothing outside of the tree changes.
fn make_writable(dir: BorrowedFd<'_>, me: u32) {
    if let Ok(st) = fstat(dir)
        && st.st_uid == me
        && st.st_mode & 0o300 != 0o300
    {
        // If this is refused, the unlinks fail and are reported with their paths.
        let _ = fchmod(dir, Mode::from_bits_truncate(st.st_mode) | Mode::S_IRWXU);
    }
}

/// As [`make_writable`], for a directory that cannot be opened, by an `O_PATH` descriptor. `EACCES` if another user
/// owns it.
fn make_readable(dir: BorrowedFd<'_>, name: &CStr, me: u32) -> nix::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(dir, name, flags, Mode::empty())?;
    check_same_mount(dir, fd.as_fd())?;
    let st = fstat(&fd)?;
    if st.st_uid != me {
        return Err(Errno::EACCES);
    }
    chmod_path_fd(fd.as_fd(), Mode::from_bits_truncate(st.st_mode) | Mode::S_IRWXU)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn unlinking_in_a_removed_directory_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let fd = File::open(dir.path()).unwrap();
        dir.close().unwrap();
        let failed = |name: Option<&CStr>, errno: Errno| panic!("{name:?}: {errno}");
        assert!(unlink_files(fd.as_fd(), &mut Dirents::new(), 0, failed).is_empty());
        unlink(fd.as_fd(), c"x").unwrap();
        rmdir(fd.as_fd(), c"x").unwrap();
    }

    #[test]
    fn a_mount_is_detected_without_openat2() {
        let open = |p: &str| File::open(p).unwrap();
        check_same_mount(open("/proc").as_fd(), open("/proc/self").as_fd()).unwrap();
        assert_eq!(check_same_mount(open("/").as_fd(), open("/proc").as_fd()), Err(Errno::EXDEV));
    }
}
