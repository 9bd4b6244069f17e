//! One file or symbolic link, from the host into the root.

use std::ffi::{CStr, CString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, copy_file_range, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, fstatat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, read, symlinkat, unlinkat, write};

use super::dest::{self, Giver, Owned};
use crate::sys::fs::{Kind, rename_noreplace};

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placed {
    Linked,
    Copied(u64, Owned),
    Symlinked(Owned),
    /// The name was taken.
    Kept,
    /// The source went away, or is something else now.
    Gone,
}

/// A call that the kernel refused, and on which side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused {
    pub(super) call: &'static str,
    pub(super) on: Side,
    pub(super) errno: Errno,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    Source,
    Dest,
    Both,
}

/// For `map_err`.
pub(super) fn refused(call: &'static str, on: Side) -> impl Fn(Errno) -> Refused {
    move |errno| Refused { call, on, errno }
}

/// Where an entry comes from.
pub(super) struct Origin<'a, P: ?Sized> {
    pub(super) dir: BorrowedFd<'a>,
    pub(super) name: &'a P,
    /// Whether a link at `name` stands for its target: only for what the map itself names.
    pub(super) follow: bool,
}

impl<P: ?Sized> Clone for Origin<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: ?Sized> Copy for Origin<'_, P> {}

/// Where it goes to.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) dir: BorrowedFd<'a>,
    pub(super) name: &'a CStr,
    /// The directory was made by this walk, so a copy need not look first whether the name is taken.
    pub(super) fresh: bool,
}

/// Whether an attempt to link says that a copy may do.
fn copy_instead(errno: Errno) -> bool {
    matches!(errno, Errno::EXDEV | Errno::EPERM | Errno::EMLINK | Errno::EOPNOTSUPP)
}

/// Makes a hard link; `None` if a copy is to be made instead.
pub(super) fn link<P: ?Sized + NixPath>(
    from: Origin<'_, P>,
    to: Target<'_>,
) -> Result<Option<Placed>, Refused> {
    let flags = if from.follow { AtFlags::AT_SYMLINK_FOLLOW } else { AtFlags::empty() };
    match linkat(from.dir, from.name, to.dir, to.name, flags) {
        Ok(()) => Ok(Some(Placed::Linked)),
        Err(Errno::EEXIST) => Ok(Some(Placed::Kept)),
        Err(errno) if copy_instead(errno) => Ok(None),
        // On which side? A tree that is in use loses files while it is read.
        Err(Errno::ENOENT) if gone(from) => Ok(Some(Placed::Gone)),
        Err(errno) => Err(Refused { call: "linkat", on: Side::Both, errno }),
    }
}

fn gone<P: ?Sized + NixPath>(from: Origin<'_, P>) -> bool {
    let flags = if from.follow { AtFlags::empty() } else { AtFlags::AT_SYMLINK_NOFOLLOW };
    fstatat(from.dir, from.name, flags) == Err(Errno::ENOENT)
}

/// Makes a symbolic link with the same text.
pub(super) fn symlink(from: Origin<'_, CStr>, to: Target<'_>, giver: Giver) -> Result<Placed, Refused> {
    let text = match readlinkat(from.dir, from.name) {
        Ok(text) => text,
        Err(Errno::ENOENT | Errno::EINVAL) => return Ok(Placed::Gone),
        Err(errno) => return Err(Refused { call: "readlinkat", on: Side::Source, errno }),
    };
    match symlinkat(text.as_os_str(), to.dir, to.name) {
        Ok(()) => {}
        Err(Errno::EEXIST) => return Ok(Placed::Kept),
        Err(errno) => return Err(Refused { call: "symlinkat", on: Side::Dest, errno }),
    }
    let source = match fstatat(from.dir, from.name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(st) => st,
        Err(Errno::ENOENT) => return Ok(Placed::Symlinked(Owned::ByCaller)),
        Err(errno) => return Err(Refused { call: "fstatat", on: Side::Source, errno }),
    };
    give_symlink(to, &source, giver).map(Placed::Symlinked).map_err(refused("fchownat", Side::Dest))
}

/// The owner of a link that was just made, by a descriptor that was seen to be a link with one name: whoever
/// put another file there meanwhile does not have it given away.
fn give_symlink(to: Target<'_>, source: &FileStat, giver: Giver) -> nix::Result<Owned> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(to.dir, to.name, flags, Mode::empty())?;
    let st = fstat(&fd)?;
    if Kind::of_mode(st.st_mode) != Kind::Symlink || st.st_nlink != 1 {
        return Ok(Owned::ByCaller);
    }
    giver.give_by(&st, source, || {
        let (uid, gid) = (Uid::from_raw(source.st_uid), Gid::from_raw(source.st_gid));
        fchownat(&fd, c"", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)
    })
}

/// What copying needs over and over.
pub(super) struct Copier {
    buf: Vec<u8>,
}

impl Copier {
    pub(super) fn new() -> Self {
        Copier { buf: Vec::new() }
    }

    /// Copies a regular file: content, owner, permission bits, times, and only then its name.
    pub(super) fn copy<P: ?Sized + NixPath>(
        &mut self,
        from: Origin<'_, P>,
        to: Target<'_>,
        giver: Giver,
    ) -> Result<Placed, Refused> {
        let on_dest = |call| refused(call, Side::Dest);
        if !to.fresh && dest::exists(to.dir, to.name).map_err(on_dest("fstatat"))? {
            return Ok(Placed::Kept);
        }
        let Some((source, st)) = open_source(from)? else { return Ok(Placed::Gone) };
        let temp = Temp::new(to.dir).map_err(on_dest("openat"))?;
        let bytes = self.content(&source, &temp.file).map_err(refused("copy_file_range", Side::Both))?;
        let owned = giver.give(&temp.file, &st).map_err(on_dest("fchown"))?;
        let mode = Mode::from_bits_truncate(st.st_mode & 0o777);
        fchmod(&temp.file, mode).map_err(on_dest("fchmod"))?;
        let atime = TimeSpec::new(st.st_atime, st.st_atime_nsec);
        let mtime = TimeSpec::new(st.st_mtime, st.st_mtime_nsec);
        futimens(&temp.file, &atime, &mtime).map_err(on_dest("futimens"))?;
        match temp.name_it(to.name) {
            Ok(()) => Ok(Placed::Copied(bytes, owned)),
            Err(Errno::EEXIST) => Ok(Placed::Kept),
            Err(errno) => Err(Refused { call: "renameat2", on: Side::Dest, errno }),
        }
    }

    /// Copies all that there is to read, within the kernel if it can.
    fn content(&mut self, source: &OwnedFd, dest: &OwnedFd) -> nix::Result<u64> {
        let mut total = 0_u64;
        loop {
            match again(|| copy_file_range(source, None, dest, None, 1 << 30)) {
                // A file of size 0 may have content all the same: a kernel's file system makes such.
                Ok(0) if total == 0 => break,
                Ok(0) => return Ok(total),
                Ok(n) => super::add(&mut total, u64::try_from(n).unwrap_or(u64::MAX)),
                Err(
                    Errno::EXDEV
                    | Errno::EINVAL
                    | Errno::ENOSYS
                    | Errno::EOPNOTSUPP
                    | Errno::EPERM
                    | Errno::EBADF,
                ) => break,
                Err(errno) => return Err(errno),
            }
        }
        // From where the offsets of both are now.
        self.buf.resize(128 * 1024, 0);
        loop {
            let n = again(|| read(source, &mut self.buf))?;
            let mut rest = match self.buf.get(..n) {
                None | Some([]) => return Ok(total),
                Some(bytes) => bytes,
            };
            while !rest.is_empty() {
                let n = again(|| write(dest, rest))?;
                rest = rest.get(n..).unwrap_or_default();
                super::add(&mut total, u64::try_from(n).unwrap_or(u64::MAX));
            }
        }
    }
}

/// Opens a regular file to read it; `None` if it is gone or something else by now. `O_NONBLOCK` as that
/// may be a fifo, which must not be waited for.
fn open_source<P: ?Sized + NixPath>(from: Origin<'_, P>) -> Result<Option<(OwnedFd, FileStat)>, Refused> {
    let mut flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    if !from.follow {
        flags |= OFlag::O_NOFOLLOW;
    }
    let fd = match again(|| openat(from.dir, from.name, flags, Mode::empty())) {
        Ok(fd) => fd,
        Err(Errno::ENOENT | Errno::ELOOP | Errno::ENXIO) => return Ok(None),
        Err(errno) => return Err(Refused { call: "openat", on: Side::Source, errno }),
    };
    let st = fstat(&fd).map_err(refused("fstat", Side::Source))?;
    Ok((Kind::of_mode(st.st_mode) == Kind::File).then_some((fd, st)))
}

/// A file that is being written, under a name that nobody takes for a file of the tree; removed if it does
/// not come to have another.
struct Temp<'a> {
    dir: BorrowedFd<'a>,
    name: CString,
    file: OwnedFd,
    named: bool,
}

impl<'a> Temp<'a> {
    fn new(dir: BorrowedFd<'a>) -> nix::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut tries = 100_u8;
        loop {
            let n = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!(".cofferdam.{}.{n}", std::process::id());
            let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
            match openat(dir, &*name, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
                Ok(file) => return Ok(Temp { dir, name, file, named: false }),
                // Left by a process of the same id that was killed.
                Err(Errno::EEXIST) if tries > 0 => tries = tries.saturating_sub(1),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Gives it its name, unless that is taken.
    fn name_it(mut self, name: &CStr) -> nix::Result<()> {
        match rename_noreplace(self.dir, &self.name, name) {
            Err(Errno::EINVAL | Errno::ENOSYS) => {
                if dest::exists(self.dir, name)? {
                    return Err(Errno::EEXIST);
                }
                renameat(self.dir, &*self.name, self.dir, name)?;
            }
            answer => answer?,
        }
        self.named = true;
        Ok(())
    }
}

impl Drop for Temp<'_> {
    fn drop(&mut self) {
        if !self.named {
            // Best effort on the way out of a refusal; the teardown of the root removes it else.
            let _ = unlinkat(self.dir, &*self.name, UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// Asks again when a signal handler of the caller's ran in between.
fn again<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            answer => return answer,
        }
    }
}
