//! Walks the directories of one source by descriptor, with several threads.
//!
//! The walk reads the host and hashes what it reads. A [`Visitor`] decides what is made of each entry. Each directory
//! is queued as a [`WalkJob`] that holds its parent open. If too many directories are open, as in a tree that is both
//! deep and wide, a job holds nothing, and the parent is opened again from the top of the source. There is no
//! recursion.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, openat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

use super::dest;
use super::error::{CallError, Side, failed};
use super::host::{self, Opened, Part};
use crate::rootfs::directory::DIR;
use crate::rootfs::hash::PathHash;
use crate::rootfs::workers;
use crate::sys::fs::{Dirent, DirentKind, Dirents};
use crate::{Error, Result};

/// Maximum number of directories, each with its counterpart, that queued jobs hold open.
const MAX_OPEN: usize = 64;

/// Decides what is made of the entries that a walk meets. All threads share it.
pub(super) trait Visitor: Sync {
    /// The counterpart of a directory of the source, for example a directory of the root. Both are held open together.
    type Counterpart: Send + Sync;
    /// What is known about a subdirectory between reading its name and opening it.
    type Note: Send;
    /// State of one worker thread.
    type Worker: Send;

    fn worker(&self) -> Self::Worker;

    /// Opens the counterpart of `dir`, which is about to be read, in `parent`, the counterpart of its parent directory.
    /// `parent` is `None` at the top of the source. Returns `None` to skip the directory.
    fn open(
        &self,
        parent: Option<&Self::Counterpart>,
        dir: &Met<'_, Self::Note>,
        worker: &mut Self::Worker,
    ) -> Result<Option<Self::Counterpart>, CallError>;

    /// Opens the counterpart of the directory `at` again, from the top.
    fn reopen(&self, at: &Path) -> Result<Self::Counterpart, CallError>;

    /// Makes an entry. Returns `Some` for a subdirectory that is to be walked.
    fn entry(
        &self,
        dir: &WalkDir<'_, Self::Counterpart>,
        entry: NamedEntry<'_>,
        at: &Path,
        worker: &mut Self::Worker,
    ) -> Result<Option<Self::Note>, CallError>;

    /// Called if an entry was removed, or became something else, after its name was read. For a subdirectory, `made` is
    /// the counterpart of its parent and its note.
    fn vanished(&self, at: &Path, made: Option<(&Self::Counterpart, &Self::Note)>, worker: &mut Self::Worker);

    /// Called after some entries of a directory were made.
    fn batch_done(&self);

    /// Called after all entries of a directory were made. `emptied` is the reason if its content is skipped.
    fn leave(
        &self,
        dir: &WalkDir<'_, Self::Counterpart>,
        met: (&Path, &FileStat),
        emptied: Option<&'static str>,
        worker: &mut Self::Worker,
    ) -> Result<(), CallError>;
}

/// A directory of the source that was opened.
pub(super) struct Met<'a, N> {
    /// Path from the top of the source; empty for the top itself.
    pub(super) at: &'a Path,
    pub(super) st: &'a FileStat,
    pub(super) note: &'a N,
}

/// An entry of a directory of the source.
#[derive(Clone, Copy)]
pub(super) struct NamedEntry<'a> {
    pub(super) name: &'a CStr,
    pub(super) kind: DirentKind,
    /// Its size, if sizes are needed.
    pub(super) size: Option<u64>,
}

/// The directory that is walked.
pub(super) struct SourceTree<'a> {
    pub(super) part: &'a Part<'a>,
    pub(super) top: &'a OwnedFd,
    /// Directories whose content is skipped, by device and inode.
    pub(super) avoid: &'a [(u64, u64)],
    /// The sizes of files are needed.
    pub(super) sizes: bool,
    /// Hash all entries.
    pub(super) fingerprint: bool,
}

impl SourceTree<'_> {
    /// Walks the tree. `top` is the note of the top directory. Returns the sum of the hashes, and the state of each
    /// worker.
    pub(super) fn walk<V: Visitor>(&self, visitor: &V, top: V::Note) -> Result<(u64, Vec<V::Worker>)> {
        let path = self.fingerprint.then(|| PathHash::of_source(self.part.source));
        let walk = Walk { tree: self, visitor, path, open: AtomicUsize::new(0) };
        let first = WalkJob { parent: None, at: PathBuf::new(), note: top };
        let state = || WalkWorker { dirents: Dirents::new(), sum: 0, own: visitor.worker() };
        let done =
            workers::run(workers::alone_at_first(), first, state, |job, worker| walk.work(job, worker))?;
        let sum = done.iter().fold(0_u64, |sum, worker| sum.wrapping_add(worker.sum));
        Ok((sum, done.into_iter().map(|worker| worker.own).collect()))
    }
}

/// One walk, which all workers share.
struct Walk<'a, V> {
    tree: &'a SourceTree<'a>,
    visitor: &'a V,
    /// The hash of the source's path, if entries are hashed.
    path: Option<PathHash>,
    /// Number of open directories.
    open: AtomicUsize,
}

struct WalkWorker<W> {
    dirents: Dirents,
    /// Sum of the hashes, which does not depend on the order of the threads.
    sum: u64,
    own: W,
}

impl<W> WalkWorker<W> {
    fn add_hash(&mut self, hash: u64) {
        self.sum = self.sum.wrapping_add(hash);
    }
}

/// A directory that is to be read.
struct WalkJob<'w, V: Visitor> {
    /// The directory that contains it. `None` at the top, and if too many directories were open.
    parent: Option<Arc<WalkDir<'w, V::Counterpart>>>,
    /// Path from the top of the source; empty for the top itself.
    at: PathBuf,
    note: V::Note,
}

/// An open directory of the source, and its metadata.
type OpenDir<'w, V> = (WalkDir<'w, <V as Visitor>::Counterpart>, FileStat);

/// An open directory of the source and its counterpart.
pub(super) struct WalkDir<'w, D> {
    pub(super) src: OwnedFd,
    dev: u64,
    pub(super) counterpart: D,
    open: &'w AtomicUsize,
}

impl<D> Drop for WalkDir<'_, D> {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<'w, V: Visitor> Walk<'w, V> {
    fn work(
        &'w self,
        job: WalkJob<'w, V>,
        worker: &mut WalkWorker<V::Worker>,
    ) -> Result<Vec<WalkJob<'w, V>>> {
        let fail = |e: CallError| self.error(e, &job.at, None);
        let Some((dir, st)) = self.open(&job, worker).map_err(fail)? else {
            return Ok(Vec::new());
        };
        self.read(&Arc::new(dir), &st, &job.at, worker)
    }

    /// Opens the directory of a job. `None` if it is not to be read.
    fn open(
        &'w self,
        job: &WalkJob<'w, V>,
        worker: &mut WalkWorker<V::Worker>,
    ) -> Result<Option<OpenDir<'w, V>>, CallError> {
        let WalkJob { at, note, .. } = job;
        let Some(name) = at.file_name() else {
            let src =
                openat(self.tree.top, c".", DIR, Mode::empty()).map_err(failed("openat", Side::Source))?;
            let st = fstat(&src).map_err(failed("fstat", Side::Source))?;
            self.hash(at, worker, |path| path.entry(&st));
            let counterpart = self.visitor.open(None, &Met { at, st: &st, note }, &mut worker.own)?;
            return Ok(counterpart.map(|counterpart| (self.hold(src, st.st_dev, counterpart), st)));
        };
        let reopened;
        let parent = match &job.parent {
            Some(parent) => &**parent,
            None => {
                reopened = self.reopen(at.parent().unwrap_or(Path::new("")))?;
                &reopened
            }
        };
        let (src, st, emptied) =
            match host::open_subdir(parent.src.as_fd(), parent.dev, name, self.tree.avoid)? {
                Opened::Dir(src, st) => (src, st, None),
                Opened::Emptied(src, st, why) => (src, st, Some(why)),
                Opened::Gone => {
                    self.visitor.vanished(at, Some((&parent.counterpart, note)), &mut worker.own);
                    return Ok(None);
                }
            };
        self.hash(at, worker, |path| match emptied {
            None => path.entry(&st),
            Some(_) => path.emptied_dir(&st),
        });
        let met = Met { at, st: &st, note };
        let Some(counterpart) = self.visitor.open(Some(&parent.counterpart), &met, &mut worker.own)? else {
            return Ok(None);
        };
        let dir = self.hold(src, st.st_dev, counterpart);
        if emptied.is_some() {
            self.visitor.leave(&dir, (at, &st), emptied, &mut worker.own)?;
            return Ok(None);
        }
        Ok(Some((dir, st)))
    }

    /// Opens the directory `at` again, from the top.
    fn reopen(&'w self, at: &Path) -> Result<WalkDir<'w, V::Counterpart>, CallError> {
        let src = dest::open_no_links(self.tree.top.as_fd(), at).map_err(failed("openat2", Side::Source))?;
        let counterpart = self.visitor.reopen(at)?;
        let dev = fstat(&src).map_err(failed("fstat", Side::Source))?.st_dev;
        Ok(self.hold(src, dev, counterpart))
    }

    fn hold(&'w self, src: OwnedFd, dev: u64, counterpart: V::Counterpart) -> WalkDir<'w, V::Counterpart> {
        self.open.fetch_add(1, Ordering::Relaxed);
        WalkDir { src, dev, counterpart, open: &self.open }
    }

    fn hash(&self, at: &Path, worker: &mut WalkWorker<V::Worker>, end: impl FnOnce(PathHash) -> u64) {
        if let Some(path) = self.path {
            worker.add_hash(end(path.join(at)));
        }
    }

    /// Reads a directory. Each subdirectory becomes a job.
    fn read(
        &'w self,
        dir: &Arc<WalkDir<'w, V::Counterpart>>,
        st: &FileStat,
        at: &Path,
        worker: &mut WalkWorker<V::Worker>,
    ) -> Result<Vec<WalkJob<'w, V>>> {
        let fail = |e: CallError| self.error(e, at, None);
        let others = self.tree.part.others.at(at);
        let path = self.path.map(|path| path.join(at));
        let hold = self.open.load(Ordering::Relaxed) < MAX_OPEN;
        let mut jobs = Vec::new();
        let WalkWorker { dirents, sum, own } = worker;
        while let Some(batch) = host::entries(dirents, dir.src.as_fd()).map_err(fail)? {
            for entry in batch {
                if others.is_some_and(|names| names.contains(os(entry.name))) {
                    continue;
                }
                match self.entry(dir, entry, (at, path), sum, own) {
                    Err(e) => return Err(self.error(e, at, Some(entry.name))),
                    Ok(None) => {}
                    Ok(Some(note)) => {
                        let parent = hold.then(|| Arc::clone(dir));
                        jobs.push(WalkJob { parent, at: at.join(os(entry.name)), note });
                    }
                }
            }
            self.visitor.batch_done();
        }
        self.visitor.leave(dir, (at, st), None, own).map_err(fail)?;
        Ok(jobs)
    }

    fn entry(
        &self,
        dir: &WalkDir<'_, V::Counterpart>,
        entry: Dirent<'_>,
        (at, path): (&Path, Option<PathHash>),
        sum: &mut u64,
        own: &mut V::Worker,
    ) -> Result<Option<V::Note>, CallError> {
        let Dirent { name, mut kind } = entry;
        let mut size = None;
        if self.must_stat(kind) {
            let st = match fstatat(&dir.src, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(st) => st,
                Err(Errno::ENOENT) => {
                    self.visitor.vanished(&at.join(os(name)), None, own);
                    return Ok(None);
                }
                Err(errno) => return Err(failed("fstatat", Side::Source)(errno)),
            };
            kind = DirentKind::of_mode(st.st_mode);
            size = u64::try_from(st.st_size).ok();
            // A directory is hashed when it is opened, because something may be mounted on it.
            if let (Some(path), false) = (path, kind == DirentKind::Dir) {
                *sum = sum.wrapping_add(path.join_name(name).entry(&st));
            }
        }
        self.visitor.entry(dir, NamedEntry { name, kind, size }, at, own)
    }

    /// Whether an entry needs `fstatat(2)`: for its type, its size or its hash.
    fn must_stat(&self, kind: DirentKind) -> bool {
        match kind {
            DirentKind::Unknown => true,
            DirentKind::Dir => false,
            DirentKind::File if self.tree.sizes => true,
            _ => self.path.is_some(),
        }
    }

    fn error(&self, error: CallError, at: &Path, name: Option<&CStr>) -> Error {
        let (mut source, mut to) = (self.tree.part.source.to_owned(), self.tree.part.to.clone());
        for name in [Some(at.as_os_str()), name.map(os)].into_iter().flatten().filter(|n| !n.is_empty()) {
            source.push(name);
            to.push(name);
        }
        error.about(&source, &to)
    }
}

pub(super) fn os(name: &CStr) -> &OsStr {
    OsStr::from_bytes(name.to_bytes())
}
