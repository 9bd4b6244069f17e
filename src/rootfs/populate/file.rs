//! Makes one file of the host in the root: by hard link, else by clone, else by copy.
//!
//! A clone or a copy is made under its final name, with a mode that marks it as unfinished (see `unfinished`).

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::attributes::{Attributes, Buffers};
use super::copy::{Copier, retry_on_eintr};
use super::error::{CallError, Side, failed};
use super::host::CHANGED;
use super::metadata::{Applied, Ids, Owned};
use super::settings::{Meter, Settings};
use super::twins::Twins;
use super::unfinished::UNFINISHED_FILE;
use super::{Method, Populated, add};
use crate::sys::fs::DirentKind;

/// How an entry was made in the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A hard link to the host's file, with its size if that is needed.
    Linked(Option<u64>),
    Cloned(u64, Applied),
    Copied(u64, Applied),
    /// Another name of a clone or a copy.
    Twin,
    /// A new symbolic link, or a hard link to the host's.
    Symlinked(Owned),
    /// The destination exists and stays as it is.
    Kept,
    /// The source was removed, or became something else.
    Gone,
}

impl Outcome {
    /// Counts the entry against the limits. The bytes of copies were counted as they were written.
    pub(super) fn charge(self, meter: &Meter<'_>) -> Result<(), CallError> {
        match self {
            Outcome::Linked(bytes) => meter
                .add_entry()
                .and_then(|()| meter.add_bytes(bytes.unwrap_or(0)))
                .map_err(failed("linkat", Side::Both)),
            Outcome::Twin => meter.add_entry().map_err(failed("linkat", Side::Dest)),
            Outcome::Copied(..) | Outcome::Cloned(..) => {
                meter.add_entry().map_err(failed("openat", Side::Dest))
            }
            Outcome::Symlinked(_) => meter.add_entry().map_err(failed("symlinkat", Side::Dest)),
            Outcome::Kept | Outcome::Gone => Ok(()),
        }
    }

    /// Counts the entry in the result.
    pub(super) fn count(self, done: &mut Populated, source: impl FnOnce() -> PathBuf) {
        match self {
            Outcome::Linked(bytes) => {
                add(&mut done.linked, 1);
                if let (Some(sum), Some(bytes)) = (&mut done.bytes_linked, bytes) {
                    add(sum, bytes);
                }
            }
            Outcome::Cloned(bytes, applied) => {
                add(&mut done.cloned, 1);
                add(&mut done.bytes_shared, bytes);
                applied.count(done);
            }
            Outcome::Copied(bytes, applied) => {
                add(&mut done.copied, 1);
                add(&mut done.bytes_copied, bytes);
                applied.count(done);
            }
            Outcome::Twin => add(&mut done.copied, 1),
            Outcome::Symlinked(owned) => {
                add(&mut done.symlinks, 1);
                Applied { owned, attributes: Attributes::Kept }.count(done);
            }
            Outcome::Kept => add(&mut done.kept, 1),
            Outcome::Gone => done.skip(source(), CHANGED),
        }
    }
}

/// The source of an entry.
pub(super) struct Origin<'a, P: ?Sized> {
    pub(super) dir: BorrowedFd<'a>,
    pub(super) name: &'a P,
    /// Follow a symbolic link at `name`: only for a source that the map names.
    pub(super) follow: bool,
}

impl<P: ?Sized> Clone for Origin<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: ?Sized> Copy for Origin<'_, P> {}

impl<P: ?Sized + NixPath> Origin<'_, P> {
    pub(super) fn stat(&self) -> nix::Result<FileStat> {
        let flags = if self.follow { AtFlags::empty() } else { AtFlags::AT_SYMLINK_NOFOLLOW };
        fstatat(self.dir, self.name, flags)
    }

    fn is_gone(&self) -> bool {
        self.stat() == Err(Errno::ENOENT)
    }
}

/// The destination of an entry.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) dir: BorrowedFd<'a>,
    pub(super) name: &'a CStr,
    /// The owner that a new file in `dir` gets, if known. It is known only if this population made `dir`, which then
    /// contains no entries of others.
    pub(super) born: Option<Ids>,
}

/// State that one worker thread keeps between files.
pub(super) struct FileWorker<'w> {
    /// The inodes with several names, if the source is a directory.
    twins: Option<&'w Twins<'w>>,
    copier: Copier,
    pub(super) buffers: Buffers,
    /// The directory that is being filled, from the top of the source.
    at: PathBuf,
    /// Its device, if known.
    device: Option<u64>,
}

impl<'w> FileWorker<'w> {
    pub(super) fn new(twins: Option<&'w Twins<'w>>) -> Self {
        let (copier, buffers) = (Copier::default(), Buffers::new());
        FileWorker { twins, copier, buffers, at: PathBuf::new(), device: None }
    }

    /// Starts a new directory: the following files are made in the directory `at`.
    pub(super) fn enter(&mut self, at: &Path) {
        self.device = None;
        self.at = at.into();
    }

    /// Makes a regular file by the method of `by`, or by the next one that the kernel does not refuse. `size` is the
    /// size of the source, if known.
    pub(super) fn make<P: ?Sized + NixPath>(
        &mut self,
        by: &Settings<'_>,
        from: Origin<'_, P>,
        to: Target<'_>,
        size: Option<u64>,
    ) -> Result<Outcome, CallError> {
        if by.method == Method::Link {
            let linked = match link(from, to)? {
                // The destination may be an unfinished copy.
                Some(Outcome::Kept) if !remove_unfinished(by, from, to)? => link(from, to)?,
                linked => linked,
            };
            if let Some(linked) = linked {
                return match linked {
                    Outcome::Linked(_) => Ok(Outcome::Linked(size)),
                    other => Ok(other),
                };
            }
        }
        self.clone_or_copy(by, from, to)
    }

    fn clone_or_copy<P: ?Sized + NixPath>(
        &mut self,
        by: &Settings<'_>,
        from: Origin<'_, P>,
        to: Target<'_>,
    ) -> Result<Outcome, CallError> {
        if to.born.is_none() && remove_unfinished(by, from, to)? {
            return Ok(Outcome::Kept);
        }
        let Some((source, st)) = open_regular(from)? else { return Ok(Outcome::Gone) };
        let twin = self.twins.and_then(|twins| Some((twins, twins.copy_of(&st)?)));
        let mut first = twin.as_ref().map(|(_, first)| first.lock().unwrap_or_else(PoisonError::into_inner));
        if let (Some((twins, _)), Some(Some(path))) = (&twin, first.as_deref())
            && twins.link(path, to.dir, to.name)
        {
            return Ok(Outcome::Twin);
        }
        let size = u64::try_from(st.st_size).unwrap_or(0);
        by.meter.check_size(size).map_err(failed("copy_file_range", Side::Both))?;
        let Some(new) = NewFile::create(to)? else { return Ok(Outcome::Kept) };
        let (source, file) = (source.as_fd(), new.file.as_fd());
        let cloned = by.method != Method::Copy && self.clone_content(source, &st, file, to.dir)?;
        let bytes = match cloned {
            true => size,
            false => self.copier.copy(source, &st, file, &by.meter)?,
        };
        let rest = if cloned { size } else { size.saturating_sub(bytes) };
        by.meter.add_bytes(rest).map_err(failed("copy_file_range", Side::Both))?;
        let applied = by.metadata.apply_to_file(file, to.born, source, &st, &mut self.buffers)?;
        new.keep();
        if let Some(first) = first.as_deref_mut() {
            *first = Some(self.at.join(OsStr::from_bytes(to.name.to_bytes())));
        }
        Ok(if cloned { Outcome::Cloned(bytes, applied) } else { Outcome::Copied(bytes, applied) })
    }

    fn clone_content(
        &mut self,
        source: BorrowedFd<'_>,
        st: &FileStat,
        file: BorrowedFd<'_>,
        dir: BorrowedFd<'_>,
    ) -> Result<bool, CallError> {
        let device = match self.device {
            Some(device) => device,
            None => fstat(dir).map_err(failed("fstat", Side::Dest))?.st_dev,
        };
        self.device = Some(device);
        self.copier.clone(source, file, (st.st_dev, device))
    }
}

/// Whether an errno of `linkat(2)` means that a copy may succeed.
fn copy_instead(errno: Errno) -> bool {
    matches!(errno, Errno::EXDEV | Errno::EPERM | Errno::EMLINK | Errno::EOPNOTSUPP)
}

/// Makes a hard link; `None` if the kernel refuses it and a copy may succeed.
pub(super) fn link<P: ?Sized + NixPath>(
    from: Origin<'_, P>,
    to: Target<'_>,
) -> Result<Option<Outcome>, CallError> {
    let flags = if from.follow { AtFlags::AT_SYMLINK_FOLLOW } else { AtFlags::empty() };
    match linkat(from.dir, from.name, to.dir, to.name, flags) {
        Ok(()) => Ok(Some(Outcome::Linked(None))),
        Err(Errno::EEXIST) => Ok(Some(Outcome::Kept)),
        Err(errno) if copy_instead(errno) => Ok(None),
        // ENOENT does not say on which side. Files of a tree in use may be removed while it is read.
        Err(Errno::ENOENT) if from.is_gone() => Ok(Some(Outcome::Gone)),
        Err(errno) => Err(failed("linkat", Side::Both)(errno)),
    }
}

/// Removes an unfinished copy left by a killed process. Returns whether the destination exists then (a dangling
/// symlink counts).
fn remove_unfinished<P: ?Sized + NixPath>(
    by: &Settings<'_>,
    from: Origin<'_, P>,
    to: Target<'_>,
) -> Result<bool, CallError> {
    let st = match fstatat(to.dir, to.name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(st) => st,
        Err(Errno::ENOENT) => return Ok(false),
        Err(errno) => return Err(failed("fstatat", Side::Dest)(errno)),
    };
    let unfinished = DirentKind::of_mode(st.st_mode) == DirentKind::File
        && from.stat().is_ok_and(|source| by.metadata.is_unfinished(&st, &source));
    if unfinished {
        unlinkat(to.dir, to.name, UnlinkatFlags::NoRemoveDir).map_err(failed("unlinkat", Side::Dest))?;
    }
    Ok(!unfinished)
}

/// Opens a regular file to read it. `None` if it was removed or is no regular file any more. `O_NONBLOCK` is set,
/// because opening a fifo would wait.
fn open_regular<P: ?Sized + NixPath>(from: Origin<'_, P>) -> Result<Option<(OwnedFd, FileStat)>, CallError> {
    let mut flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    if !from.follow {
        flags |= OFlag::O_NOFOLLOW;
    }
    let fd = match retry_on_eintr(|| openat(from.dir, from.name, flags, Mode::empty())) {
        Ok(fd) => fd,
        Err(Errno::ENOENT | Errno::ELOOP | Errno::ENXIO) => return Ok(None),
        Err(errno) => return Err(failed("openat", Side::Source)(errno)),
    };
    let st = fstat(&fd).map_err(failed("fstat", Side::Source))?;
    Ok((DirentKind::of_mode(st.st_mode) == DirentKind::File).then_some((fd, st)))
}

/// A file that is being written. Dropping this value removes the file, unless [`keep`](NewFile::keep) was called.
struct NewFile<'a> {
    to: Target<'a>,
    file: OwnedFd,
    kept: bool,
}

impl<'a> NewFile<'a> {
    /// Makes the file. `None` if the name exists.
    fn create(to: Target<'a>) -> Result<Option<Self>, CallError> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match retry_on_eintr(|| openat(to.dir, to.name, flags, UNFINISHED_FILE)) {
            Ok(file) => Ok(Some(NewFile { to, file, kept: false })),
            Err(Errno::EEXIST) => Ok(None),
            Err(errno) => Err(failed("openat", Side::Dest)(errno)),
        }
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if !self.kept {
            // Best effort: if this fails, the mode of the file marks it as unfinished.
            let _ = unlinkat(self.to.dir, self.to.name, UnlinkatFlags::NoRemoveDir);
        }
    }
}
