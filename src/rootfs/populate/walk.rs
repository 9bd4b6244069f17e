//! The walk: one directory of the host and its counterpart in the root at a time, both by descriptor.
//!
//! A directory waits as a [`Job`] that holds its parent's descriptors; when too many are open at once (a tree
//! both deep and wide), it holds none and is found again from the top of its entry. Nothing recurses.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::attributes::Attributes;
use super::copy::Copier;
use super::dest::{self, DIR};
use super::dress::{Dressed, Dresser, Ids, Owned, ids};
use super::file::{self, Origin, Placed, Target};
use super::fingerprint::Trail;
use super::host::{self, AVOIDED, CHANGED, Opened, Part};
use super::late::Late;
use super::meter::Meter;
use super::refused::{Refused, Side, refused};
use super::twins::Twins;
use super::{Method, Options, Populated, add};
use crate::rootfs::pool;
use crate::sys::fs::{Dirents, Entry, Kind};
use crate::{Error, Result};

/// So many pairs of directories may be held open by those that wait.
pub(super) const OPEN: usize = 64;

const TAKEN: &str = "the root has something there that is no directory";

/// What holds for the whole population.
pub(super) struct Settings<'a> {
    pub(super) root: BorrowedFd<'a>,
    pub(super) method: Method,
    pub(super) dresser: Dresser,
    pub(super) meter: Meter<'a>,
    pub(super) fingerprint: bool,
    /// Directories that are left out, by device and inode.
    pub(super) avoid: Vec<(u64, u64)>,
}

impl<'a> Settings<'a> {
    pub(super) fn new(root: BorrowedFd<'a>, options: &Options<'a>) -> Result<Self> {
        let st = fstat(root).map_err(Error::prepare(format!("fstat({})", dest::shown(Path::new("")))))?;
        let avoid = options.skip.iter().copied().chain([(st.st_dev, st.st_ino)]).collect();
        let Options { method, setuid, fingerprint, .. } = *options;
        let (dresser, meter) = (Dresser::new(setuid), Meter::new(options));
        Ok(Settings { root, method, dresser, meter, fingerprint, avoid })
    }
}

/// A source that is a directory. `false` if it is left out after all.
pub(super) fn tree(
    by: &Settings<'_>,
    part: &Part<'_>,
    found: (OwnedFd, FileStat),
    late: &mut Late,
    done: &mut Populated,
) -> Result<bool> {
    let (source, to) = (part.source, part.to.as_path());
    let (src, st) = found;
    let fail = |r: Refused| r.about(source, to);
    let (made, dst) = match to.file_name() {
        None => (false, dest::open_dir(by.root, to)),
        Some(name) => {
            let dir = late.parent(by, source, to, done)?;
            let made = dest::make(dir.as_fd(), name).map_err(refused("mkdirat", Side::Dest)).map_err(fail)?;
            let dst = if made { dest::open_made(dir.as_fd(), name) } else { dest::open_dir(by.root, to) };
            (made, dst)
        }
    };
    let dst = match dst {
        Ok(fd) => fd,
        Err(Errno::ENOTDIR | Errno::ENOENT | Errno::ELOOP) if !made => {
            add(&mut done.kept, 1);
            done.skip(source.into(), TAKEN);
            return Ok(false);
        }
        Err(errno) => return Err(fail(refused("openat2", Side::Dest)(errno))),
    };
    if made {
        by.meter.entry().map_err(refused("mkdirat", Side::Dest)).map_err(fail)?;
    }
    let at = fstat(&dst).map_err(refused("fstat", Side::Dest)).map_err(fail)?;
    let mut avoid = by.avoid.clone();
    avoid.push((at.st_dev, at.st_ino));
    if avoid.contains(&(st.st_dev, st.st_ino)) {
        done.skip(source.into(), AVOIDED);
        return Ok(false);
    }
    let trail = Trail::of(source);
    let walk = Walk { by, part, avoid, trail, src: &src, dst: &dst, open: AtomicUsize::new(0) };
    let first = Job { parent: None, at: PathBuf::new(), made, born: None };
    let twins = Twins::new(dst.as_fd());
    for worker in pool::run(first, || Worker::new(by, &twins), |job, worker| walk.work(job, worker))? {
        done.merge(worker.done);
        late.extend(worker.late);
    }
    Ok(true)
}

/// One entry of the map, which all workers share.
struct Walk<'a> {
    by: &'a Settings<'a>,
    part: &'a Part<'a>,
    avoid: Vec<(u64, u64)>,
    trail: Trail,
    src: &'a OwnedFd,
    dst: &'a OwnedFd,
    /// How many pairs are open.
    open: AtomicUsize,
}

/// A directory that is to be filled.
struct Job<'w> {
    /// The pair that it is in; `None` at the top and where too many were open.
    parent: Option<Arc<Pair<'w>>>,
    /// From the top on, with its own name last; empty at the top.
    at: PathBuf,
    /// It was made by this walk.
    made: bool,
    /// The owner that it was made with, where that is known.
    born: Option<Ids>,
}

/// A directory of the host and its counterpart, both open.
struct Pair<'w> {
    src: OwnedFd,
    dst: OwnedFd,
    dev: u64,
    state: State,
    open: &'w AtomicUsize,
}

/// What the counterpart was when the walk came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Made by this walk. What is made in it has that owner at first.
    New(Ids),
    /// Made by one that was killed.
    Resumed,
    /// Somebody else's.
    Found,
}

impl State {
    fn born(self) -> Option<Ids> {
        match self {
            State::New(ids) => Some(ids),
            State::Resumed | State::Found => None,
        }
    }
}

impl Drop for Pair<'_> {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a thread has to itself.
struct Worker<'w> {
    dirents: Dirents,
    copier: Copier<'w>,
    done: Populated,
    late: Vec<(PathBuf, PathBuf)>,
}

impl<'w> Worker<'w> {
    fn new(by: &Settings<'_>, twins: &'w Twins<'w>) -> Self {
        let done = Populated::begin(by);
        Worker { dirents: Dirents::new(), copier: Copier::new(Some(twins)), done, late: Vec::new() }
    }
}

impl<'w> Walk<'w> {
    fn work(&'w self, job: Job<'w>, worker: &mut Worker<'_>) -> Result<Vec<Job<'w>>> {
        let fail = |r: Refused| self.tell(r, &job.at, None);
        let Some((pair, st)) = self.pair(&job, worker).map_err(fail)? else {
            return Ok(Vec::new());
        };
        self.fill(&Arc::new(pair), &st, &job.at, worker)
    }

    /// Opens both sides of a job; `None` if nothing is to be put into it.
    fn pair(
        &'w self,
        job: &Job<'w>,
        worker: &mut Worker<'_>,
    ) -> Result<Option<(Pair<'w>, FileStat)>, Refused> {
        let Some(name) = job.at.file_name() else { return self.top(job).map(Some) };
        let again;
        let parent = match &job.parent {
            Some(pair) => pair,
            None => {
                again = self.find(&job.at)?;
                &again
            }
        };
        let (src, st, closed) = match host::enter(parent.src.as_fd(), parent.dev, name, &self.avoid)? {
            Opened::Dir(src, st) => (src, st, None),
            Opened::Closed(src, st, why) => (src, st, Some(why)),
            Opened::Gone => {
                worker.done.skip(self.part.source.join(&job.at), CHANGED);
                if job.made {
                    // It was made before we could know. An empty directory more does no harm.
                    let _ = unlinkat(&parent.dst, name, UnlinkatFlags::RemoveDir);
                }
                return Ok(None);
            }
        };
        let Some(dst) = counterpart(parent, name, job.made)? else {
            self.note(&st, &job.at, &mut worker.done);
            add(&mut worker.done.kept, 1);
            worker.done.skip(self.part.source.join(&job.at), TAKEN);
            return Ok(None);
        };
        let pair = self.hold(src, dst, &st, job)?;
        if let Some(why) = closed {
            if self.by.fingerprint {
                worker.done.mix(self.trail.below(&job.at).ends_closed(&st));
            }
            worker.done.skip(self.part.source.join(&job.at), why);
            self.finish(&pair, &st, &job.at, worker)?;
            return Ok(None);
        }
        Ok(Some((pair, st)))
    }

    fn top(&'w self, job: &Job<'w>) -> Result<(Pair<'w>, FileStat), Refused> {
        let src = openat(self.src, c".", DIR, Mode::empty()).map_err(refused("openat", Side::Source))?;
        let dst = openat(self.dst, c".", DIR, Mode::empty()).map_err(refused("openat", Side::Dest))?;
        let st = fstat(&src).map_err(refused("fstat", Side::Source))?;
        Ok((self.hold(src, dst, &st, job)?, st))
    }

    /// The pair that `at` is in, from the top.
    fn find(&'w self, at: &Path) -> Result<Arc<Pair<'w>>, Refused> {
        let up = at.parent().unwrap_or(Path::new(""));
        let src = dest::open_plain(self.src.as_fd(), up).map_err(refused("openat2", Side::Source))?;
        let dst = dest::open_plain(self.dst.as_fd(), up).map_err(refused("openat2", Side::Dest))?;
        let dev = fstat(&src).map_err(refused("fstat", Side::Source))?.st_dev;
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Pair { src, dst, dev, state: State::Found, open: &self.open }))
    }

    fn hold(&'w self, src: OwnedFd, dst: OwnedFd, st: &FileStat, job: &Job<'_>) -> Result<Pair<'w>, Refused> {
        let state = match job.born {
            Some(born) => State::New(born),
            None => {
                let at = fstat(&dst).map_err(refused("fstat", Side::Dest))?;
                // The root itself is the caller's, whatever its mode.
                let root = job.at.as_os_str().is_empty() && self.part.to.as_os_str().is_empty();
                match (job.made, !root && self.by.dresser.unfinished(&at, st)) {
                    (true, _) => State::New(ids(&at)),
                    (false, true) => State::Resumed,
                    (false, false) => State::Found,
                }
            }
        };
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(Pair { src, dst, dev: st.st_dev, state, open: &self.open })
    }

    /// Takes a directory into the fingerprint.
    fn note(&self, st: &FileStat, at: &Path, done: &mut Populated) {
        if self.by.fingerprint {
            done.mix(self.trail.below(at).ends_with(st));
        }
    }

    /// Places all entries of a directory, and finishes it when nothing more is made in it. Its subdirectories
    /// are made here too, and filled as jobs of their own.
    fn fill(
        &'w self,
        pair: &Arc<Pair<'w>>,
        st: &FileStat,
        at: &Path,
        worker: &mut Worker<'_>,
    ) -> Result<Vec<Job<'w>>> {
        self.note(st, at, &mut worker.done);
        worker.copier.enter(at);
        let Worker { dirents, copier, done, .. } = &mut *worker;
        let fail = |r: Refused| self.tell(r, at, None);
        let others = self.part.others.at(at);
        let here = Here { pair, trail: self.by.fingerprint.then(|| self.trail.below(at)) };
        let hold = self.open.load(Ordering::Relaxed) < OPEN;
        let mut jobs = Vec::new();
        while let Some(batch) = host::entries(dirents, pair.src.as_fd()).map_err(fail)? {
            for entry in batch {
                if others.is_some_and(|names| names.contains(os(entry.name))) {
                    continue;
                }
                match self.place(&here, entry, copier, done) {
                    Err(r) => return Err(self.tell(r, at, Some(entry.name))),
                    Ok(Step::Sub { made }) => {
                        let parent = hold.then(|| Arc::clone(pair));
                        let born = pair.state.born().filter(|_| made);
                        jobs.push(Job { parent, at: at.join(os(entry.name)), made, born });
                    }
                    Ok(Step::Placed(placed)) => {
                        count(done, placed, || self.part.source.join(at).join(os(entry.name)));
                    }
                    Ok(Step::Other(kind)) => {
                        done.skip(self.part.source.join(at).join(os(entry.name)), kind.name());
                    }
                }
            }
            self.by.meter.tell();
        }
        self.finish(pair, st, at, worker).map_err(fail)?;
        Ok(jobs)
    }

    /// Finishes a directory that is ours, now or at the very end.
    fn finish(
        &self,
        pair: &Pair<'_>,
        st: &FileStat,
        at: &Path,
        worker: &mut Worker<'_>,
    ) -> Result<(), Refused> {
        let done = &mut worker.done;
        match pair.state {
            State::New(_) => add(&mut done.dirs, 1),
            State::Resumed | State::Found => add(&mut done.kept, 1),
        }
        if pair.state == State::Found {
            return Ok(());
        }
        if self.part.others.at(at).is_some() {
            worker.late.push((self.part.to.join(at), self.part.source.join(at)));
            return Ok(());
        }
        let (source, buffers) = (Some(pair.src.as_fd()), &mut worker.copier.buffers);
        let dressed = self.by.dresser.dir(pair.dst.as_fd(), pair.state.born(), source, st, buffers)?;
        count_dressed(done, dressed);
        Ok(())
    }

    fn place(
        &self,
        here: &Here<'_, '_>,
        entry: Entry<'_>,
        copier: &mut Copier<'_>,
        done: &mut Populated,
    ) -> Result<Step, Refused> {
        let Here { pair, trail } = here;
        let from = Origin { dir: pair.src.as_fd(), name: entry.name, follow: false };
        let to = Target { dir: pair.dst.as_fd(), name: entry.name, born: pair.state.born() };
        let (mut kind, mut size) = (entry.kind, None);
        if self.must_ask(kind) {
            let st = match from.stat() {
                Ok(st) => st,
                Err(Errno::ENOENT) => return Ok(Step::Placed(Placed::Gone)),
                Err(errno) => return Err(refused("fstatat", Side::Source)(errno)),
            };
            kind = Kind::of_mode(st.st_mode);
            size = u64::try_from(st.st_size).ok();
            // A directory is taken in when it is opened, as something may be mounted there.
            if let (Some(trail), false) = (trail, kind == Kind::Dir) {
                done.mix(trail.name(entry.name).ends_with(&st));
            }
        }
        let placed = match kind {
            Kind::Dir => return self.make(to),
            Kind::File => file::place(self.by, from, to, size, copier)?,
            Kind::Symlink => file::place_symlink(self.by, from, to)?,
            kind => return Ok(Step::Other(kind)),
        };
        meter(&self.by.meter, placed)?;
        Ok(Step::Placed(placed))
    }

    fn make(&self, to: Target<'_>) -> Result<Step, Refused> {
        let made = dest::make(to.dir, to.name).map_err(refused("mkdirat", Side::Dest))?;
        if made {
            self.by.meter.entry().map_err(refused("mkdirat", Side::Dest))?;
        }
        Ok(Step::Sub { made })
    }

    /// Whether an entry's kind, its size or all about it is to be asked for.
    fn must_ask(&self, kind: Kind) -> bool {
        match kind {
            Kind::Unknown => true,
            Kind::Dir => false,
            Kind::File if self.by.method == Method::Link && self.by.meter.asks_bytes() => true,
            _ => self.by.fingerprint,
        }
    }

    fn tell(&self, refused: Refused, at: &Path, name: Option<&CStr>) -> Error {
        let (mut source, mut to) = (self.part.source.to_owned(), self.part.to.clone());
        for name in [Some(at.as_os_str()), name.map(os)].into_iter().flatten().filter(|n| !n.is_empty()) {
            source.push(name);
            to.push(name);
        }
        refused.about(&source, &to)
    }
}

/// Opens the directory `name` of the root; `None` if something else has that name.
fn counterpart(parent: &Pair<'_>, name: &OsStr, made: bool) -> Result<Option<OwnedFd>, Refused> {
    let dst = match made {
        true => dest::open_made(parent.dst.as_fd(), name),
        false => openat(&parent.dst, name, DIR | OFlag::O_NOFOLLOW, Mode::empty()),
    };
    match dst {
        Ok(dst) => Ok(Some(dst)),
        Err(Errno::ENOTDIR | Errno::ELOOP) if !made => Ok(None),
        Err(errno) => Err(refused("openat", Side::Dest)(errno)),
    }
}

/// The directory that is being filled.
struct Here<'a, 'w> {
    pair: &'a Pair<'w>,
    trail: Option<Trail>,
}

enum Step {
    Sub { made: bool },
    Placed(Placed),
    Other(Kind),
}

pub(super) fn os(name: &CStr) -> &OsStr {
    OsStr::from_bytes(name.to_bytes())
}

/// Counts what was made against the limits. The bytes of copies were counted as they came.
pub(super) fn meter(meter: &Meter<'_>, placed: Placed) -> Result<(), Refused> {
    match placed {
        Placed::Linked(bytes) => meter
            .entry()
            .and_then(|()| meter.bytes(bytes.unwrap_or(0)))
            .map_err(refused("linkat", Side::Both)),
        Placed::Twin => meter.entry().map_err(refused("linkat", Side::Dest)),
        Placed::Copied(..) | Placed::Cloned(..) => meter.entry().map_err(refused("openat", Side::Dest)),
        Placed::Symlinked(_) => meter.entry().map_err(refused("symlinkat", Side::Dest)),
        Placed::Kept | Placed::Gone => Ok(()),
    }
}

pub(super) fn count(done: &mut Populated, placed: Placed, source: impl FnOnce() -> PathBuf) {
    match placed {
        Placed::Linked(bytes) => {
            add(&mut done.linked, 1);
            if let (Some(sum), Some(bytes)) = (&mut done.bytes_linked, bytes) {
                add(sum, bytes);
            }
        }
        Placed::Cloned(bytes, dressed) => {
            add(&mut done.cloned, 1);
            add(&mut done.bytes_shared, bytes);
            count_dressed(done, dressed);
        }
        Placed::Copied(bytes, dressed) => {
            add(&mut done.copied, 1);
            add(&mut done.bytes_copied, bytes);
            count_dressed(done, dressed);
        }
        Placed::Twin => add(&mut done.copied, 1),
        Placed::Symlinked(owned) => {
            add(&mut done.symlinks, 1);
            count_dressed(done, Dressed { owned, attributes: Attributes::Kept });
        }
        Placed::Kept => add(&mut done.kept, 1),
        Placed::Gone => done.skip(source(), CHANGED),
    }
}

pub(super) fn count_dressed(done: &mut Populated, dressed: Dressed) {
    add(&mut done.disowned, u64::from(dressed.owned == Owned::ByCaller));
    add(&mut done.attributes_lost, u64::from(dressed.attributes == Attributes::Lost));
}
