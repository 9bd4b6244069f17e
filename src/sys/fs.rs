//! Directory entries with the types that `getdents64(2)` returns, extended attributes, file clones, timestamps, mount
//! trees, mount ids, the identity of an open file, and the text of a file of the kernel.
//!
//! nix reads directories through the C library, which allocates and calls `fstat` once per directory. The crate's
//! directory walks read tens of thousands of directories, so [`Dirents`] uses one buffer and no extra call. The unsafe
//! blocks rely on the kernel writing no more bytes than the length that it is given.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{fstat, fstatat};
use nix::sys::time::TimeSpec;

/// The rest of a file of procfs or of a cgroup, which is usually short. The kernel does not know its size, so
/// `std::fs::read_to_string` makes twice as many calls: it asks for the size, and then reads in steps from 32 bytes on.
pub(crate) fn read_text(file: &File) -> io::Result<String> {
    let mut text = String::with_capacity(4096);
    file.take(u64::MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// The UTF-8 names in a directory. None if it does not exist.
pub(crate) fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
    names.filter_map(io::Result::transpose).collect()
}

/// As [`read_text`], of the file at `path`.
pub(crate) fn read_file(path: impl AsRef<Path>) -> io::Result<String> {
    read_text(&File::open(path)?)
}

/// Type of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DirentKind {
    Dir,
    File,
    Symlink,
    Fifo,
    Socket,
    Char,
    Block,
    /// The file system does not report the type; `fstatat` does.
    Unknown,
}

impl DirentKind {
    /// The type in the type bits of `st_mode`.
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

    /// The type in words, for messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            DirentKind::Dir => "a directory",
            DirentKind::File => "a regular file",
            DirentKind::Symlink => "a symbolic link",
            DirentKind::Fifo => "a fifo",
            DirentKind::Socket => "a socket",
            DirentKind::Char => "a character device",
            DirentKind::Block => "a block device",
            DirentKind::Unknown => "of unknown type",
        }
    }
}

/// One entry of a directory, never `.` or `..`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dirent<'a> {
    pub(crate) name: &'a CStr,
    pub(crate) kind: DirentKind,
}

/// A buffer that directories are read into. One buffer serves many directories.
pub(crate) struct Dirents(Box<[u8]>);

impl Dirents {
    /// A buffer of 32 KiB, as the C library uses.
    pub(crate) fn new() -> Self {
        Dirents(vec![0; 32 * 1024].into_boxed_slice())
    }

    /// Reads the next entries of `dir`. `None` at the end of the directory.
    pub(crate) fn read(&mut self, dir: BorrowedFd<'_>) -> nix::Result<Option<Batch<'_>>> {
        let n = getdents64(dir, &mut self.0)?;
        Ok(self.0.get(..n).filter(|b| !b.is_empty()).map(|rest| Batch { rest }))
    }
}

/// The entries that one call of `getdents64` returned.
pub(crate) struct Batch<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Batch<'a> {
    type Item = Dirent<'a>;

    /// Parses a `struct linux_dirent64`: inode (8 bytes), offset (8), record length (2), type (1), NUL-terminated name.
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
    // SAFETY: the kernel writes at most `buf.len()` bytes to `buf`, which is borrowed exclusively during the call;
    // every byte pattern is a valid `u8`.
    let n = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buf.as_mut_ptr(), buf.len()) };
    Errno::result(n).map(|n| usize::try_from(n).unwrap_or(0))
}

/// Writes the names of the extended attributes of `fd` to `buf`, each with a NUL after it. Returns their total length.
/// `ERANGE` if the buffer is too small.
pub(crate) fn flistxattr(fd: BorrowedFd<'_>, buf: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: the kernel writes at most `buf.len()` bytes to `buf`, which is borrowed exclusively during the call;
    // every byte pattern is a valid `u8`.
    let n = unsafe { libc::flistxattr(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) };
    Errno::result(n).map(|n| usize::try_from(n).unwrap_or(0))
}

/// Writes the value of an extended attribute to `buf`. Returns its length. `ERANGE` if the buffer is too small.
pub(crate) fn fgetxattr(fd: BorrowedFd<'_>, name: &CStr, buf: &mut [u8]) -> nix::Result<usize> {
    let (to, room) = (buf.as_mut_ptr().cast(), buf.len());
    // SAFETY: as in `flistxattr`; the name is NUL-terminated and outlives the call.
    let n = unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), to, room) };
    Errno::result(n).map(|n| usize::try_from(n).unwrap_or(0))
}

/// Creates or replaces an extended attribute.
pub(crate) fn fsetxattr(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> nix::Result<()> {
    let from = value.as_ptr().cast();
    // SAFETY: the kernel reads the NUL-terminated name and `value.len()` bytes of the value; both outlive the call.
    let r = unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), from, value.len(), 0) };
    Errno::result(r).map(drop)
}

/// Makes `to` share the data blocks of `from` (`FICLONE`, Linux 4.5).
pub(crate) fn clone_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: the argument is a descriptor's number; the call takes no pointer.
    let r = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) };
    Errno::result(r).map(drop)
}

/// Creates a detached copy of the mount at `fd`; if `recursive`, also of the mounts below it (`open_tree(2)`, Linux
/// 5.2). Needs `CAP_SYS_ADMIN` over the caller's mount namespace, and `fd` must be in that namespace.
pub(crate) fn clone_tree(fd: BorrowedFd<'_>, recursive: bool) -> nix::Result<OwnedFd> {
    let recursive = if recursive { libc::AT_RECURSIVE.unsigned_abs() } else { 0 };
    let flags =
        libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH.unsigned_abs() | recursive;
    // SAFETY: the arguments are a descriptor's number, a NUL-terminated constant and flags.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, fd.as_raw_fd(), c"".as_ptr(), flags) };
    let tree = RawFd::try_from(Errno::result(tree)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just returned this descriptor, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(tree) })
}

/// Maps the ids of the files of a detached mount, and of the mounts below it, by a user namespace: they become idmapped
/// mounts (`mount_setattr(2)`, Linux 5.12). `EINVAL` if a file system does not support it.
pub(crate) fn map_ids(tree: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> nix::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_raw_fd().unsigned_abs().into(),
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    let (tree, size) = (tree.as_raw_fd(), size_of::<libc::mount_attr>());
    // SAFETY: the path is a NUL-terminated constant; the kernel reads the attributes, which outlive the call.
    let r = unsafe {
        libc::syscall(libc::SYS_mount_setattr, tree, c"".as_ptr(), flags, &raw const attributes, size)
    };
    Errno::result(r).map(drop)
}

/// Sets the access and modification time of the file that `fd` refers to, which may be a symbolic link. `fd` may be an
/// `O_PATH` descriptor (`AT_EMPTY_PATH`, Linux 5.8; `EINVAL` before).
pub(crate) fn set_times(fd: BorrowedFd<'_>, access: TimeSpec, modification: TimeSpec) -> nix::Result<()> {
    let times = [*access.as_ref(), *modification.as_ref()];
    // SAFETY: the path is a NUL-terminated constant; the kernel reads the two times, which outlive the call.
    let r = unsafe { libc::utimensat(fd.as_raw_fd(), c"".as_ptr(), times.as_ptr(), libc::AT_EMPTY_PATH) };
    Errno::result(r).map(drop)
}

/// Id of the mount that `fd` was opened through. `None` on kernels before 5.8.
pub(crate) fn mount_id(fd: BorrowedFd<'_>) -> nix::Result<Option<u64>> {
    let st = statx(fd, c"", libc::STATX_MNT_ID, 0)?;
    Ok((st.stx_mask & libc::STATX_MNT_ID != 0).then_some(st.stx_mnt_id))
}

/// What a file is, and the mount through which it was found: what a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    device: (u32, u32),
    inode: u64,
    /// `None` on kernels before 5.8.
    pub(crate) mount: Option<u64>,
    /// Type and permissions.
    pub(crate) mode: u32,
    /// User and group id.
    pub(crate) owner: (u32, u32),
    /// Major and minor number of a device node.
    pub(crate) node: (u32, u32),
}

impl FileId {
    /// Whether both are the same file, through whatever mount.
    pub(crate) fn is_same_file(&self, other: &FileId) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// Identifies the file at `path`, symbolic links followed. An empty path is `fd` itself.
pub(crate) fn identify(fd: BorrowedFd<'_>, path: &CStr) -> nix::Result<FileId> {
    let st = statx(fd, path, libc::STATX_BASIC_STATS | libc::STATX_MNT_ID, 0)?;
    Ok(file_id(&st))
}

/// Identifies an open file by what the kernel has cached, without asking another process or machine. Whether its file system
/// is one of the kernel's own that nobody else serves. False if that is unknown.
pub(crate) fn look(fd: BorrowedFd<'_>) -> nix::Result<(FileId, bool)> {
    // Linux sets these bits for ext4, XFS, Btrfs and others, and for tmpfs since 6.0.
    const LOCAL: u64 = (libc::STATX_ATTR_IMMUTABLE | libc::STATX_ATTR_APPEND) as u64;
    let mask = libc::STATX_BASIC_STATS | libc::STATX_MNT_ID;
    let st = match statx(fd, c"", mask, libc::AT_STATX_DONT_SYNC) {
        // A filter around the caller refuses statx(2). The C library has a replacement only without the flag.
        Err(Errno::ENOSYS | Errno::EINVAL) => statx(fd, c"", mask, 0)?,
        st => st?,
    };
    Ok((file_id(&st), st.stx_attributes_mask & LOCAL != 0))
}

/// When an open file was made, in seconds and nanoseconds. `None` if its file system does not say.
pub(crate) fn born(fd: BorrowedFd<'_>) -> nix::Result<Option<(i64, u32)>> {
    let st = statx(fd, c"", libc::STATX_BTIME, 0)?;
    let time = (st.stx_btime.tv_sec, st.stx_btime.tv_nsec);
    Ok((st.stx_mask & libc::STATX_BTIME != 0).then_some(time))
}

fn file_id(st: &libc::statx) -> FileId {
    FileId {
        device: (st.stx_dev_major, st.stx_dev_minor),
        inode: st.stx_ino,
        mount: (st.stx_mask & libc::STATX_MNT_ID != 0).then_some(st.stx_mnt_id),
        mode: st.stx_mode.into(),
        owner: (st.stx_uid, st.stx_gid),
        node: (st.stx_rdev_major, st.stx_rdev_minor),
    }
}

fn statx(fd: BorrowedFd<'_>, path: &CStr, mask: u32, sync: i32) -> nix::Result<libc::statx> {
    let mut st = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_EMPTY_PATH | libc::AT_NO_AUTOMOUNT | sync;
    // SAFETY: the path is NUL-terminated; `st` has room for the one `struct statx` that the kernel writes.
    let r = unsafe { libc::statx(fd.as_raw_fd(), path.as_ptr(), flags, mask, st.as_mut_ptr()) };
    Errno::result(r)?;
    // SAFETY: `st` was zeroed and then written by the kernel; all its fields are integers, for which every value is
    // valid.
    Ok(unsafe { st.assume_init() })
}

/// Whether `name` in the directory `base` is the open file or directory, and not a symbolic link to it.
pub(crate) fn is_at<P: ?Sized + NixPath>(
    held: BorrowedFd<'_>,
    base: BorrowedFd<'_>,
    name: &P,
) -> nix::Result<bool> {
    let held = fstat(held)?;
    match fstatat(base, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => Ok(false),
        named => named.map(|st| (st.st_dev, st.st_ino) == (held.st_dev, held.st_ino)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn read_returns_every_entry_once_with_its_type() {
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
    fn truncated_or_malformed_record_ends_the_batch() {
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
    fn mount_id_differs_between_mounts_and_not_within_one() {
        let id = |p: &str| mount_id(File::open(p).unwrap().as_fd()).unwrap();
        assert_eq!(id("/proc/self"), id("/proc"));
        assert_ne!(id("/"), id("/proc"));
    }
}
