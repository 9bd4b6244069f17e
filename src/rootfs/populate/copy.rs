//! Clones and copies of regular files.
//!
//! A file is made under its own name, with a mode that says that it is not finished (see `dress`). It shares the
//! blocks of its source where that is wanted and the file system can, else it gets them copied, within the kernel
//! where that can do it, and without the holes.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{OFlag, copy_file_range, openat};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{UnlinkatFlags, Whence, ftruncate, lseek, read, unlinkat, write};

use super::attributes::Buffers;
use super::dress::UNFINISHED_FILE;
use super::file::{Origin, Placed, Target, taken};
use super::meter::Meter;
use super::refused::{Refused, Side, refused};
use super::twins::Twins;
use super::walk::Settings;
use super::{Method, add};
use crate::sys::fs::{Kind, clone_file};

/// So much is copied before the progress is told and the limit looked at.
const CHUNK: u64 = 16 << 20;

/// A file that claims to be empty is read to its end all the same, as those of the kernel are not; but not
/// further than this, as some have none.
const ENDLESS: u64 = 64 << 20;

/// What copying needs over and over.
pub(super) struct Copier<'w> {
    /// The inodes with several names, where the source is a directory.
    twins: Option<&'w Twins<'w>>,
    /// The directory that is being filled, from the top on.
    at: PathBuf,
    buf: Vec<u8>,
    pub(super) buffers: Buffers,
    /// Pairs of devices between which no file can be cloned.
    no_clones: Vec<(u64, u64)>,
    /// The device of the directory that is being filled.
    dest: Option<u64>,
}

impl<'w> Copier<'w> {
    pub(super) fn new(twins: Option<&'w Twins<'w>>) -> Self {
        let (buffers, no_clones) = (Buffers::new(), Vec::new());
        Copier { twins, at: PathBuf::new(), buf: Vec::new(), buffers, no_clones, dest: None }
    }

    /// The directory `at` comes to be filled.
    pub(super) fn enter(&mut self, at: &Path) {
        self.dest = None;
        self.at = at.into();
    }

    /// Clones or copies a regular file.
    pub(super) fn place<P: ?Sized + NixPath>(
        &mut self,
        by: &Settings<'_>,
        from: Origin<'_, P>,
        to: Target<'_>,
    ) -> Result<Placed, Refused> {
        if to.born.is_none() && taken(by, from, to)? {
            return Ok(Placed::Kept);
        }
        let Some((source, st)) = open_source(from)? else { return Ok(Placed::Gone) };
        let twin = self.twins.and_then(|twins| Some((twins, twins.of(&st)?)));
        let mut first = twin.as_ref().map(|(_, first)| first.lock().unwrap_or_else(PoisonError::into_inner));
        if let (Some((twins, _)), Some(Some(path))) = (&twin, first.as_deref())
            && twins.link(path, to)
        {
            return Ok(Placed::Twin);
        }
        let size = u64::try_from(st.st_size).unwrap_or(0);
        by.meter.fits(size).map_err(refused("copy_file_range", Side::Both))?;
        let Some(new) = New::create(to)? else { return Ok(Placed::Kept) };
        let (source, file) = (source.as_fd(), new.file.as_fd());
        let cloned = by.method != Method::Copy && self.clone(source, st.st_dev, file, to.dir)?;
        let bytes = match cloned {
            true => size,
            false => self.content(source, &st, file, &by.meter)?,
        };
        let rest = if cloned { size } else { size.saturating_sub(bytes) };
        by.meter.bytes(rest).map_err(refused("copy_file_range", Side::Both))?;
        let dressed = by.dresser.file(file, to.born, source, &st, &mut self.buffers)?;
        new.keep();
        if let Some(first) = first.as_deref_mut() {
            *first = Some(self.at.join(OsStr::from_bytes(to.name.to_bytes())));
        }
        Ok(if cloned { Placed::Cloned(bytes, dressed) } else { Placed::Copied(bytes, dressed) })
    }

    /// Makes `file` share the blocks of `source`; `false` if it has to be copied. What two file systems refuse
    /// once they are not asked again.
    fn clone(
        &mut self,
        source: BorrowedFd<'_>,
        from: u64,
        file: BorrowedFd<'_>,
        dir: BorrowedFd<'_>,
    ) -> Result<bool, Refused> {
        let to = match self.dest {
            Some(dev) => dev,
            None => fstat(dir).map_err(refused("fstat", Side::Dest))?.st_dev,
        };
        self.dest = Some(to);
        if self.no_clones.contains(&(from, to)) {
            return Ok(false);
        }
        match again(|| clone_file(source, file)) {
            Ok(()) => Ok(true),
            Err(Errno::EOPNOTSUPP | Errno::EXDEV | Errno::ENOTTY | Errno::ENOSYS) => {
                self.no_clones.push((from, to));
                Ok(false)
            }
            // This one file: one of swap space, say, or with other flags than the new one.
            Err(Errno::EINVAL | Errno::EPERM | Errno::EACCES | Errno::ETXTBSY | Errno::EBADF) => Ok(false),
            Err(errno) => Err(refused("ioctl FICLONE", Side::Both)(errno)),
        }
    }

    /// Copies what the file held when it was opened, so one that grows meanwhile has an end.
    fn content(
        &mut self,
        source: BorrowedFd<'_>,
        st: &FileStat,
        file: BorrowedFd<'_>,
        meter: &Meter<'_>,
    ) -> Result<u64, Refused> {
        match st.st_size {
            0 => self.stream(source, file, meter),
            // Blocks are of 512 bytes here, whatever the file system's are.
            size if st.st_blocks.saturating_mul(512) < size => self.extents(source, file, size, meter),
            size => self.range(source, file, 0, size, meter),
        }
    }

    /// The data between the holes.
    fn extents(
        &mut self,
        source: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        size: i64,
        meter: &Meter<'_>,
    ) -> Result<u64, Refused> {
        let (mut at, mut total) = (0, 0);
        while at < size {
            let data = match lseek(source, at, Whence::SeekData) {
                Ok(data) => data,
                // Nothing but a hole from here on.
                Err(Errno::ENXIO) => break,
                Err(_) => {
                    add(&mut total, self.range(source, file, at, size, meter)?);
                    return Ok(total);
                }
            };
            let end = lseek(source, data, Whence::SeekHole).map_or(size, |end| end.min(size));
            if end <= data {
                break;
            }
            add(&mut total, self.range(source, file, data, end, meter)?);
            at = end;
        }
        // What was cut off meanwhile is not to come back as zeroes.
        let now = fstat(source).map_err(refused("fstat", Side::Source))?.st_size;
        ftruncate(file, size.min(now)).map_err(refused("ftruncate", Side::Dest))?;
        Ok(total)
    }

    /// The bytes from one offset to another, within the kernel if it can.
    fn range(
        &mut self,
        source: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        from: i64,
        to: i64,
        meter: &Meter<'_>,
    ) -> Result<u64, Refused> {
        let (mut read_at, mut write_at, mut total) = (from, from, 0);
        while read_at < to {
            let left = u64::try_from(to.saturating_sub(read_at)).unwrap_or(0);
            let len = usize::try_from(left.min(CHUNK)).unwrap_or(usize::MAX);
            match again(|| copy_file_range(source, Some(&mut read_at), file, Some(&mut write_at), len)) {
                // It is shorter by now, or of a kind that this call does not read.
                Ok(0) => break,
                Ok(n) => count(n, &mut total, meter)?,
                Err(
                    Errno::EXDEV
                    | Errno::EINVAL
                    | Errno::ENOSYS
                    | Errno::EOPNOTSUPP
                    | Errno::EPERM
                    | Errno::EBADF,
                ) => break,
                Err(errno) => return Err(refused("copy_file_range", Side::Both)(errno)),
            }
        }
        if read_at < to {
            add(&mut total, self.by_hand(source, file, read_at, to, meter)?);
        }
        Ok(total)
    }

    fn by_hand(
        &mut self,
        source: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        mut at: i64,
        to: i64,
        meter: &Meter<'_>,
    ) -> Result<u64, Refused> {
        self.buf.resize(128 * 1024, 0);
        let mut total = 0;
        while at < to {
            let most = usize::try_from(to.saturating_sub(at)).unwrap_or(usize::MAX).min(self.buf.len());
            let buf = self.buf.get_mut(..most).unwrap_or_default();
            let n = again(|| pread(source, buf, at)).map_err(refused("pread64", Side::Source))?;
            let mut rest = match buf.get(..n) {
                None | Some([]) => break,
                Some(bytes) => bytes,
            };
            while !rest.is_empty() {
                let n = again(|| pwrite(file, rest, at)).map_err(refused("pwrite64", Side::Dest))?;
                rest = rest.get(n..).unwrap_or_default();
                at = at.saturating_add(i64::try_from(n).unwrap_or(i64::MAX));
                count(n, &mut total, meter)?;
            }
        }
        Ok(total)
    }

    /// All that there is to read.
    fn stream(
        &mut self,
        source: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        meter: &Meter<'_>,
    ) -> Result<u64, Refused> {
        self.buf.resize(128 * 1024, 0);
        let mut total = 0;
        loop {
            let n = again(|| read(source, &mut self.buf)).map_err(refused("read", Side::Source))?;
            let mut rest = match self.buf.get(..n) {
                None | Some([]) => return Ok(total),
                Some(bytes) => bytes,
            };
            if total >= ENDLESS {
                return Err(refused("read", Side::Source)(Errno::EFBIG));
            }
            while !rest.is_empty() {
                let n = again(|| write(file, rest)).map_err(refused("write", Side::Dest))?;
                rest = rest.get(n..).unwrap_or_default();
                count(n, &mut total, meter)?;
            }
        }
    }
}

/// So many bytes more were copied.
fn count(n: usize, total: &mut u64, meter: &Meter<'_>) -> Result<(), Refused> {
    let n = u64::try_from(n).unwrap_or(u64::MAX);
    let chunks = |total: u64| total.checked_div(CHUNK);
    let before = chunks(*total);
    add(total, n);
    meter.bytes(n).map_err(refused("copy_file_range", Side::Both))?;
    if chunks(*total) != before {
        meter.tell();
    }
    Ok(())
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
        Err(errno) => return Err(refused("openat", Side::Source)(errno)),
    };
    let st = fstat(&fd).map_err(refused("fstat", Side::Source))?;
    Ok((Kind::of_mode(st.st_mode) == Kind::File).then_some((fd, st)))
}

/// A file that is being written; removed if it does not come to its end.
struct New<'a> {
    to: Target<'a>,
    file: OwnedFd,
    kept: bool,
}

impl<'a> New<'a> {
    /// `None` if the name is taken.
    fn create(to: Target<'a>) -> Result<Option<Self>, Refused> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match again(|| openat(to.dir, to.name, flags, UNFINISHED_FILE)) {
            Ok(file) => Ok(Some(New { to, file, kept: false })),
            Err(Errno::EEXIST) => Ok(None),
            Err(errno) => Err(refused("openat", Side::Dest)(errno)),
        }
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for New<'_> {
    fn drop(&mut self) {
        if !self.kept {
            // Best effort on the way out of a refusal; its mode tells what it is.
            let _ = unlinkat(self.to.dir, self.to.name, UnlinkatFlags::NoRemoveDir);
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
