//! Directory entries with the types that the kernel tells along with the names, extended attributes, clones,
//! the times of links, and mount ids.
//!
//! nix reads directories through the C library, which allocates and asks `fstat` once per directory; a
//! walker that meets tens of thousands of them wants one buffer and no question asked twice. What the
//! wrappers rely on is only that the kernel writes no more than the length that it is given.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::time::TimeSpec;

/// What an entry of a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DirentKind {
    Dir,
    File,
    Symlink,
    Fifo,
    Socket,
    Char,
    Block,
    /// The file system does not tell with the name: ask `fstatat`.
    Unknown,
}

impl DirentKind {
    /// Of the type bits of a `st_mode`.
    pub(crate) fn of_mode(mode: libc::mode_t) -> DirentKind {
        match mode & libc::S_IFMT {
            libc::S_IFDIR => DirentKind::Dir,
            libc::S_IFREG => DirentKind::File,
            libc::S_IFLNK => DirentKind::Symlink,
            libc::S_IFIFO => DirentKind::Fifo,
            libc::S_IFSOCK => DirentKind::Socket,
            libc::S_IFCHR => DirentKind::Char,
            libc::S_IFBLK => DirentKind::Block,
            _ => DirentKind::Unknown,
        }
    }

    fn of_dirent(kind: u8) -> DirentKind {
        match kind {
            libc::DT_DIR => DirentKind::Dir,
            libc::DT_REG => DirentKind::File,
            libc::DT_LNK => DirentKind::Symlink,
            libc::DT_FIFO => DirentKind::Fifo,
            libc::DT_SOCK => DirentKind::Socket,
            libc::DT_CHR => DirentKind::Char,
            libc::DT_BLK => DirentKind::Block,
            _ => DirentKind::Unknown,
        }
    }

    /// As a person would call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            DirentKind::Dir => "a directory",
            DirentKind::File => "a regular file",
            DirentKind::Symlink => "a symbolic link",
            DirentKind::Fifo => "a fifo",
            DirentKind::Socket => "a socket",
            DirentKind::Char => "a character device",
            DirentKind::Block => "a block device",
            DirentKind::Unknown => "of no known type",
        }
    }
}

/// One entry of a directory, never `.` or `..`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dirent<'a> {
    pub(crate) name: &'a CStr,
    pub(crate) kind: DirentKind,
}

/// The buffer that directories are read into, one for many of them.
pub(crate) struct Dirents(Box<[u8]>);

impl Dirents {
    /// A buffer of the size that the C library uses.
    pub(crate) fn new() -> Self {
        Dirents(vec![0; 32 * 1024].into_boxed_slice())
    }

    /// The next entries of `dir`; `None` at its end.
    pub(crate) fn read(&mut self, dir: BorrowedFd<'_>) -> nix::Result<Option<Batch<'_>>> {
        let n = getdents64(dir, &mut self.0)?;
        Ok(self.0.get(..n).filter(|b| !b.is_empty()).map(|rest| Batch { rest }))
    }
}

/// The entries of one `getdents64`.
pub(crate) struct Batch<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Batch<'a> {
    type Item = Dirent<'a>;

    /// `struct linux_dirent64`: inode 8, offset 8, record length 2, type 1, name up to its NUL.
    fn next(&mut self) -> Option<Dirent<'a>> {
        loop {
            let len = u16::from_ne_bytes(self.rest.get(16..18)?.try_into().ok()?);
            let (record, rest) = self.rest.split_at_checked(usize::from(len))?;
            self.rest = rest;
            let kind = DirentKind::of_dirent(*record.get(18)?);
            let name = CStr::from_bytes_until_nul(record.get(19..)?).ok()?;
            if !matches!(name.to_bytes(), b"." | b"..") {
                return Some(Dirent { name, kind });
            }
        }
    }
}

fn getdents64(dir: BorrowedFd<'_>, buf: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: the kernel writes at most `buf.len()` bytes at `buf`, which is borrowed exclusively for
    // the length of the call, and every byte pattern is a valid `u8`.
    let n = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buf.as_mut_ptr(), buf.len()) };
    Errno::result(n).map(|n| usize::try_from(n).unwrap_or(0))
}

/// Writes the names of the extended attributes of `fd` to `buf`, each with a NUL behind it, and returns their
/// length; `ERANGE` if they are longer.
pub(crate) fn flistxattr(fd: BorrowedFd<'_>, buf: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: the kernel writes at most `buf.len()` bytes at `buf`, which is borrowed exclusively for
    // the length of the call, and every byte pattern is a valid `u8`.
    let n = unsafe { libc::flistxattr(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) };
    Errno::result(n).map(|n| usize::try_from(n).unwrap_or(0))
}

/// Writes the value of one extended attribute to `buf` and returns its length; `ERANGE` if it is longer.
pub(crate) fn fgetxattr(fd: BorrowedFd<'_>, name: &CStr, buf: &mut [u8]) -> nix::Result<usize> {
    let (to, room) = (buf.as_mut_ptr().cast(), buf.len());
    // SAFETY: as in `flistxattr`; the name is NUL-terminated and outlives the call.
    let n = unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), to, room) };
    Errno::result(n).map(|n| usize::try_from(n).unwrap_or(0))
}

/// Sets one extended attribute, whether or not it is there.
pub(crate) fn fsetxattr(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> nix::Result<()> {
    let from = value.as_ptr().cast();
    // SAFETY: the kernel reads the NUL-terminated name and `value.len()` bytes of the value; both outlive
    // the call.
    let r = unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), from, value.len(), 0) };
    Errno::result(r).map(drop)
}

/// Makes `to` share the blocks of `from` (`FICLONE`, Linux 4.5).
pub(crate) fn clone_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: the argument is a descriptor's number; no memory is passed.
    let r = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) };
    Errno::result(r).map(drop)
}

/// A detached copy of the mount at `fd`, with what is mounted below it if `recursive` (`open_tree(2)`, Linux 5.2).
/// It needs `CAP_SYS_ADMIN` over the caller's mount namespace, in which `fd` must be.
pub(crate) fn clone_tree(fd: BorrowedFd<'_>, recursive: bool) -> nix::Result<OwnedFd> {
    let recursive = if recursive { libc::AT_RECURSIVE.unsigned_abs() } else { 0 };
    let flags =
        libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH.unsigned_abs() | recursive;
    // SAFETY: a descriptor's number, a NUL-terminated constant and flags.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, fd.as_raw_fd(), c"".as_ptr(), flags) };
    let tree = RawFd::try_from(Errno::result(tree)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just returned this descriptor to us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(tree) })
}

/// Sets access and modification time of what `fd`, which may be path-only, refers to, be it a symbolic link
/// (`AT_EMPTY_PATH`, Linux 5.8; `EINVAL` before).
pub(crate) fn set_times(fd: BorrowedFd<'_>, access: TimeSpec, modification: TimeSpec) -> nix::Result<()> {
    let times = [*access.as_ref(), *modification.as_ref()];
    // SAFETY: the path is a NUL-terminated constant and the two times outlive the call, which reads them.
    let r = unsafe { libc::utimensat(fd.as_raw_fd(), c"".as_ptr(), times.as_ptr(), libc::AT_EMPTY_PATH) };
    Errno::result(r).map(drop)
}

/// The id of the mount that `fd` was opened through; `None` where the kernel is older than 5.8.
pub(crate) fn mount_id(fd: BorrowedFd<'_>) -> nix::Result<Option<u64>> {
    let mut st = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a NUL-terminated constant and `st` has room for the one `struct statx` that
    // the kernel writes.
    let r = unsafe {
        libc::statx(fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_MNT_ID, st.as_mut_ptr())
    };
    Errno::result(r)?;
    // SAFETY: the kernel filled it in, and all its fields are integers, which the zeroes of before
    // were valid values of too.
    let st = unsafe { st.assume_init() };
    Ok((st.stx_mask & libc::STATX_MNT_ID != 0).then_some(st.stx_mnt_id))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn names_and_kinds_are_those_of_the_standard_library() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..2000 {
            std::fs::write(dir.path().join(format!("file-with-a-name-that-fills-the-buffer-{i}")), "")
                .unwrap();
        }
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("l")).unwrap();
        let fd = File::open(dir.path()).unwrap();
        let mut buf = Dirents::new();
        let mut seen = BTreeMap::new();
        while let Some(batch) = buf.read(fd.as_fd()).unwrap() {
            seen.extend(batch.map(|e| (e.name.to_str().unwrap().to_owned(), e.kind)));
        }
        assert_eq!(seen.len(), 2002);
        assert_eq!(seen["d"], DirentKind::Dir);
        assert_eq!(seen["l"], DirentKind::Symlink);
        assert_eq!(seen["file-with-a-name-that-fills-the-buffer-1999"], DirentKind::File);
    }

    #[test]
    fn a_cut_record_ends_the_batch() {
        for len in 0..40_usize {
            for reclen in [0_u16, 3, 19, 24, 40, 4096] {
                let mut bytes = vec![b'x'; len];
                for (i, b) in reclen.to_ne_bytes().into_iter().enumerate() {
                    if let Some(slot) = bytes.get_mut(16 + i) {
                        *slot = b;
                    }
                }
                assert_eq!(Batch { rest: &bytes }.count(), 0);
            }
        }
    }

    #[test]
    fn mounts_have_ids_of_their_own() {
        let id = |p: &str| mount_id(File::open(p).unwrap().as_fd()).unwrap();
        assert_eq!(id("/proc/self"), id("/proc"));
        assert_ne!(id("/"), id("/proc"));
    }
}
