//! Fills the root: one entry of the map after the other, outer destinations before inner ones.
//!
//! A source that is a directory is walked. Each directory of the host is read and its counterpart in the root is
//! filled, both by descriptor.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, openat};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::deferred::Deferred;
use super::error::{CallError, Side, failed};
use super::file::{FileWorker, Origin, Target};
use super::host::{self, AVOIDED, CHANGED, Found, Part};
use super::metadata::{Ids, ids};
use super::settings::Settings;
use super::twins::Twins;
use super::walk::{Met, NamedEntry, SourceTree, Visitor, WalkDir, os};
use super::{ChrootEnv, Method, Options, Populated, Source, add, dest, symlink};
use crate::Result;
use crate::rootfs::directory::{DIR, DIR_NOFOLLOW};
use crate::rootfs::hash::PathHash;
use crate::rootfs::source::HeldSources;
use crate::sys::fs::DirentKind;

const NOT_A_DIRECTORY: &str = "the destination exists and is not a directory";

/// Makes all sources of the map in the root.
pub(super) fn fill(
    root: BorrowedFd<'_>,
    map: &ChrootEnv,
    held: &HeldSources,
    options: &Options<'_>,
) -> Result<Populated> {
    let by = Settings::new(root, options)?;
    let mut done = by.nothing_done();
    let mut deferred = Deferred::default();
    let parts = host::parts(map, held, &by.avoid, |source, why, st| {
        if let (true, Some(st)) = (by.fingerprint, st) {
            done.add_hash(PathHash::of_source(source).entry(&st));
        }
        done.skip(source.into(), why);
    })?;
    for part in &parts {
        let mut one = by.nothing_done();
        if make_part(&by, part, held, &mut deferred, &mut one)? {
            let method = used(by.method, &one);
            done.sources.push(Source {
                path: part.source.into(),
                target: Path::new("/").join(&part.to),
                method,
            });
        }
        done.merge(one);
    }
    deferred.apply_all(&by, &mut done)?;
    by.meter.report_progress();
    Ok(done)
}

/// Makes one source in the root; `false` if it is skipped.
fn make_part(
    by: &Settings<'_>,
    part: &Part<'_>,
    held: &HeldSources,
    deferred: &mut Deferred,
    done: &mut Populated,
) -> Result<bool> {
    match host::open_source(part.source, held, &by.avoid)? {
        Found::Dir(dir, st) => make_tree(by, part, (&dir, st), deferred, done),
        Found::File(file, st) => make_single(by, part, (file, &st), deferred, done).map(|()| true),
        Found::Skip(why, _) => {
            done.skip(part.source.into(), why);
            Ok(false)
        }
    }
}

/// Makes a source that is a file.
fn make_single(
    by: &Settings<'_>,
    part: &Part<'_>,
    (file, st): (BorrowedFd<'_>, &FileStat),
    deferred: &mut Deferred,
    done: &mut Populated,
) -> Result<()> {
    let (source, to) = (part.source, part.to.as_path());
    let fail = |e: CallError| e.about(source, to);
    let Some(name) = to.file_name().and_then(|n| CString::new(n.as_bytes()).ok()) else {
        return Err(fail(failed("linkat", Side::Both)(Errno::EISDIR)));
    };
    if by.fingerprint {
        done.add_hash(PathHash::of_source(source).entry(st));
    }
    let dir = deferred.make_parent(by, source, to, done)?;
    // This link in /proc leads to the open file, even if the path of the source leads elsewhere by now.
    let held = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let from = Origin { dir: AT_FDCWD, name: held.as_path(), follow: true };
    let target = Target { dir: dir.as_fd(), name: &name, born: None };
    let size = u64::try_from(st.st_size).ok();
    let outcome = FileWorker::new(None).make(by, from, target, size).map_err(fail)?;
    outcome.charge(&by.meter).map_err(fail)?;
    outcome.count(done, || source.into());
    Ok(())
}

/// The method that was used for a source: the requested one if it worked for any of its files, or if there are none.
/// Otherwise `Copy` if any file was copied, else `Reflink`.
fn used(requested: Method, one: &Populated) -> Method {
    match requested {
        Method::Link | Method::Reflink if one.linked > 0 => requested,
        Method::Link | Method::Reflink
            if one.copied > 0 && (requested == Method::Link || one.cloned == 0) =>
        {
            Method::Copy
        }
        Method::Link if one.cloned > 0 => Method::Reflink,
        requested => requested,
    }
}

/// Makes a source that is a directory; `false` if it is skipped.
fn make_tree(
    by: &Settings<'_>,
    part: &Part<'_>,
    (top, st): (&OwnedFd, FileStat),
    deferred: &mut Deferred,
    done: &mut Populated,
) -> Result<bool> {
    let (source, to) = (part.source, part.to.as_path());
    let fail = |e: CallError| e.about(source, to);
    let (made, dst) = match to.file_name() {
        None => (false, dest::open_dir(by.root, to)),
        Some(name) => {
            let dir = deferred.make_parent(by, source, to, done)?;
            let made = dest::make(dir.as_fd(), name).map_err(failed("mkdirat", Side::Dest)).map_err(fail)?;
            let dst = if made { dest::open_made(dir.as_fd(), name) } else { dest::open_dir(by.root, to) };
            (made, dst)
        }
    };
    let dst = match dst {
        Ok(fd) => fd,
        Err(Errno::ENOTDIR | Errno::ENOENT | Errno::ELOOP) if !made => {
            add(&mut done.kept, 1);
            done.skip(source.into(), NOT_A_DIRECTORY);
            return Ok(false);
        }
        Err(errno) => return Err(fail(failed("openat2", Side::Dest)(errno))),
    };
    if made {
        by.meter.add_entry().map_err(failed("mkdirat", Side::Dest)).map_err(fail)?;
    }
    let at = fstat(&dst).map_err(failed("fstat", Side::Dest)).map_err(fail)?;
    let mut avoid = by.avoid.clone();
    avoid.push((at.st_dev, at.st_ino));
    if avoid.contains(&(st.st_dev, st.st_ino)) {
        done.skip(source.into(), AVOIDED);
        return Ok(false);
    }
    let twins = Twins::new(dst.as_fd());
    let filler = Filler { by, part, top: &dst, twins: &twins };
    let sizes = by.method == Method::Link && by.meter.needs_sizes();
    let tree = SourceTree { part, top, avoid: &avoid, sizes, fingerprint: by.fingerprint };
    let (hash, workers) = tree.walk(&filler, Made { made, born: None })?;
    done.add_hash(hash);
    for worker in workers {
        done.merge(worker.done);
        deferred.extend(worker.deferred);
    }
    Ok(true)
}

/// Makes the entries that a walk of one source meets.
struct Filler<'a> {
    by: &'a Settings<'a>,
    part: &'a Part<'a>,
    /// The counterpart of the source in the root.
    top: &'a OwnedFd,
    twins: &'a Twins<'a>,
}

/// State of one worker thread.
struct FillWorker<'a> {
    files: FileWorker<'a>,
    done: Populated,
    /// Directories in which other entries of the map are made: path in the root, and path on the host.
    deferred: Vec<(PathBuf, PathBuf)>,
}

/// What is known about a directory of the root before it is opened.
struct Made {
    /// This population made it.
    made: bool,
    /// The owner that it was made with, if known.
    born: Option<Ids>,
}

/// A directory of the root.
struct RootDir {
    fd: OwnedFd,
    was: DirState,
}

/// State of a directory of the root when the walk opened it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DirState {
    /// Made by this population. New entries in it get this owner at first.
    New(Ids),
    /// Left unfinished by a killed population.
    Unfinished,
    /// Finished, or not made by a population.
    Existing,
}

impl DirState {
    fn born(self) -> Option<Ids> {
        match self {
            DirState::New(ids) => Some(ids),
            DirState::Unfinished | DirState::Existing => None,
        }
    }
}

impl<'a> Visitor for Filler<'a> {
    type Counterpart = RootDir;
    type Note = Made;
    type Worker = FillWorker<'a>;

    fn worker(&self) -> FillWorker<'a> {
        let files = FileWorker::new(Some(self.twins));
        FillWorker { files, done: self.by.nothing_done(), deferred: Vec::new() }
    }

    fn open(
        &self,
        parent: Option<&RootDir>,
        dir: &Met<'_, Made>,
        worker: &mut FillWorker<'a>,
    ) -> Result<Option<RootDir>, CallError> {
        let fd = match (parent, dir.at.file_name()) {
            (Some(parent), Some(name)) => open_subdir(parent, name, dir.note.made)?,
            _ => Some(openat(self.top, c".", DIR, Mode::empty()).map_err(failed("openat", Side::Dest))?),
        };
        let Some(fd) = fd else {
            add(&mut worker.done.kept, 1);
            worker.done.skip(self.part.source.join(dir.at), NOT_A_DIRECTORY);
            return Ok(None);
        };
        let was = self.state(&fd, dir)?;
        worker.files.enter(dir.at);
        Ok(Some(RootDir { fd, was }))
    }

    fn reopen(&self, at: &Path) -> Result<RootDir, CallError> {
        let fd = dest::open_no_links(self.top.as_fd(), at).map_err(failed("openat2", Side::Dest))?;
        Ok(RootDir { fd, was: DirState::Existing })
    }

    fn entry(
        &self,
        dir: &WalkDir<'_, RootDir>,
        entry: NamedEntry<'_>,
        at: &Path,
        worker: &mut FillWorker<'a>,
    ) -> Result<Option<Made>, CallError> {
        let born = dir.counterpart.was.born();
        let from = Origin { dir: dir.src.as_fd(), name: entry.name, follow: false };
        let to = Target { dir: dir.counterpart.fd.as_fd(), name: entry.name, born };
        let source = || self.part.source.join(at).join(os(entry.name));
        let FillWorker { files, done, .. } = worker;
        let outcome = match entry.kind {
            DirentKind::Dir => return self.make_dir(to).map(Some),
            DirentKind::File => files.make(self.by, from, to, entry.size)?,
            DirentKind::Symlink => symlink::make(self.by, from, to)?,
            kind => {
                done.skip(source(), kind.name());
                return Ok(None);
            }
        };
        outcome.charge(&self.by.meter)?;
        outcome.count(done, source);
        Ok(None)
    }

    fn vanished(&self, at: &Path, made: Option<(&RootDir, &Made)>, worker: &mut FillWorker<'a>) {
        worker.done.skip(self.part.source.join(at), CHANGED);
        if let (Some((parent, Made { made: true, .. })), Some(name)) = (made, at.file_name()) {
            // The directory was made before its source vanished. If it cannot be removed, it stays empty.
            let _ = unlinkat(&parent.fd, name, UnlinkatFlags::RemoveDir);
        }
    }

    fn batch_done(&self) {
        self.by.meter.report_progress();
    }

    /// Applies the metadata of a directory that this or a killed population made, either now or, if it is deferred, at
    /// the end.
    fn leave(
        &self,
        dir: &WalkDir<'_, RootDir>,
        (at, st): (&Path, &FileStat),
        emptied: Option<&'static str>,
        worker: &mut FillWorker<'a>,
    ) -> Result<(), CallError> {
        let FillWorker { files, done, deferred } = worker;
        if let Some(why) = emptied {
            done.skip(self.part.source.join(at), why);
        }
        let RootDir { fd, was } = &dir.counterpart;
        match was {
            DirState::New(_) => add(&mut done.dirs, 1),
            DirState::Unfinished | DirState::Existing => add(&mut done.kept, 1),
        }
        if *was == DirState::Existing {
            return Ok(());
        }
        if self.part.others.at(at).is_some() {
            deferred.push((self.part.to.join(at), self.part.source.join(at)));
            return Ok(());
        }
        let (source, buffers) = (Some(dir.src.as_fd()), &mut files.buffers);
        self.by.metadata.apply_to_dir(fd.as_fd(), was.born(), source, st, buffers)?.count(done);
        Ok(())
    }
}

impl Filler<'_> {
    fn make_dir(&self, to: Target<'_>) -> Result<Made, CallError> {
        let made = dest::make(to.dir, to.name).map_err(failed("mkdirat", Side::Dest))?;
        if made {
            self.by.meter.add_entry().map_err(failed("mkdirat", Side::Dest))?;
        }
        Ok(Made { made, born: to.born.filter(|_| made) })
    }

    fn state(&self, fd: &OwnedFd, dir: &Met<'_, Made>) -> Result<DirState, CallError> {
        if let Some(born) = dir.note.born {
            return Ok(DirState::New(born));
        }
        let there = fstat(fd).map_err(failed("fstat", Side::Dest))?;
        // The root itself belongs to the caller and is never unfinished, whatever its mode.
        let root = dir.at.as_os_str().is_empty() && self.part.to.as_os_str().is_empty();
        Ok(match dir.note.made {
            true => DirState::New(ids(&there)),
            false if !root && self.by.metadata.is_unfinished(&there, dir.st) => DirState::Unfinished,
            false => DirState::Existing,
        })
    }
}

/// Opens the directory `name` in a directory of the root. `None` if it is something else.
fn open_subdir(parent: &RootDir, name: &OsStr, made: bool) -> Result<Option<OwnedFd>, CallError> {
    let fd = match made {
        true => dest::open_made(parent.fd.as_fd(), name),
        false => openat(&parent.fd, name, DIR_NOFOLLOW, Mode::empty()),
    };
    match fd {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::ENOTDIR | Errno::ELOOP) if !made => Ok(None),
        Err(errno) => Err(failed("openat", Side::Dest)(errno)),
    }
}
