//! The walk: one directory of the host and its counterpart in the root at a time, both by descriptor.
//!
//! A directory waits as a [`Job`] that holds its parent's descriptors; when too many are open at once (a tree
//! both deep and wide), it holds none and is found again from the top of its entry. Nothing recurses.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use nix::sys::statfs::{self, FsType, fstatfs};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::dest::{self, DIR, Giver, Owned};
use super::file::{self, Copier, Origin, Placed, Refused, Side, Target};
use super::{Method, Populated, add};
use crate::rootfs::pool;
use crate::sys::fs::{Dirents, Entry, Kind};
use crate::{Error, Result};

/// So many pairs of directories may be held open by those that wait.
const OPEN: usize = 64;

/// What holds for the whole population.
pub(super) struct Settings<'a> {
    root: BorrowedFd<'a>,
    method: Method,
    giver: Giver,
    /// Directories that are left out, by device and inode.
    avoid: Vec<(u64, u64)>,
}

impl<'a> Settings<'a> {
    pub(super) fn new(root: BorrowedFd<'a>, method: Method, skip: &[(u64, u64)]) -> Result<Self> {
        let st = fstat(root).map_err(Error::prepare(format!("fstat({})", dest::shown(Path::new("")))))?;
        let avoid = skip.iter().copied().chain([(st.st_dev, st.st_ino)]).collect();
        Ok(Settings { root, method, giver: Giver::new(), avoid })
    }
}

/// Brings one source of the map into the root.
pub(super) fn entry(by: &Settings<'_>, source: &Path, to: &Path, done: &mut Populated) -> Result<()> {
    let to = dest::relative(to);
    let refused = |call: &str, errno: Errno| Error::prepare(format!("{call}({source:?})"))(errno);
    // O_PATH opens nothing that could answer: neither a fifo nor a device.
    let found = match open(source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(fd) => fd,
        Err(errno @ (Errno::ENOENT | Errno::ENOTDIR)) => {
            done.skip(source.into(), errno.desc());
            return Ok(());
        }
        Err(errno) => return Err(refused("open", errno)),
    };
    let st = fstat(&found).map_err(|e| refused("fstat", e))?;
    match Kind::of_mode(st.st_mode) {
        Kind::Dir => tree(by, source, &found, &st, &to, done),
        Kind::File => single(by, source, &to, done),
        kind => {
            done.skip(source.into(), kind.name());
            Ok(())
        }
    }
}

/// A source that is a file.
fn single(by: &Settings<'_>, source: &Path, to: &Path, done: &mut Populated) -> Result<()> {
    let Some(name) = to.file_name().and_then(|n| CString::new(n.as_bytes()).ok()) else {
        return Err(Error::prepare(format!("linkat({source:?}, {})", dest::shown(to)))(Errno::EISDIR));
    };
    let dir = parent(by, source, to, done)?;
    let from = Origin { dir: AT_FDCWD, name: source, follow: true };
    let target = Target { dir: dir.as_fd(), name: &name, fresh: false };
    let placed = match by.method {
        Method::Link => file::link(from, target),
        _ => Ok(None),
    };
    let placed = match placed {
        Ok(None) => Copier::new().copy(from, target, by.giver),
        Ok(Some(placed)) => Ok(placed),
        Err(refused) => Err(refused),
    };
    let placed = placed.map_err(|r| tell(r, source, to))?;
    count(done, placed, Kind::File, || source.into());
    Ok(())
}

fn parent(by: &Settings<'_>, source: &Path, to: &Path, done: &mut Populated) -> Result<OwnedFd> {
    let (dir, made, disowned) = dest::parent(by.root, to, source, by.giver)?;
    add(&mut done.dirs, made);
    add(&mut done.disowned, disowned);
    Ok(dir)
}

/// A source that is a directory.
fn tree(
    by: &Settings<'_>,
    source: &Path,
    found: &OwnedFd,
    st: &FileStat,
    to: &Path,
    done: &mut Populated,
) -> Result<()> {
    if by.avoid.contains(&(st.st_dev, st.st_ino)) {
        done.skip(source.into(), AVOIDED);
        return Ok(());
    }
    let read = |e: Errno| Error::prepare(format!("openat({source:?})"))(e);
    let src = openat(found, c".", DIR, Mode::empty()).map_err(read)?;
    if kernels_own(src.as_fd()) {
        done.skip(source.into(), KERNELS);
        return Ok(());
    }
    let (made, dst) = match to.file_name() {
        None => (false, dest::open_dir(by.root, to)),
        Some(name) => {
            let dir = parent(by, source, to, done)?;
            let made = dest::make(dir.as_fd(), name)
                .map_err(|e| Error::prepare(format!("mkdirat({})", dest::shown(to)))(e))?;
            let dst = if made { dest::open_made(dir.as_fd(), name) } else { dest::open_dir(by.root, to) };
            (made, dst)
        }
    };
    let dst = match dst {
        Ok(fd) => fd,
        Err(Errno::ENOTDIR | Errno::ENOENT | Errno::ELOOP) if !made => {
            add(&mut done.kept, 1);
            done.skip(source.into(), TAKEN);
            return Ok(());
        }
        Err(errno) => return Err(Error::prepare(format!("openat2({})", dest::shown(to)))(errno)),
    };
    let at = fstat(&dst).map_err(|e| Error::prepare(format!("fstat({})", dest::shown(to)))(e))?;
    let mut avoid = by.avoid.clone();
    avoid.push((at.st_dev, at.st_ino));
    if avoid.contains(&(st.st_dev, st.st_ino)) {
        done.skip(source.into(), AVOIDED);
        return Ok(());
    }
    let walk = Walk { by, avoid, source, dest: to, src: &src, dst: &dst, open: AtomicUsize::new(0) };
    let first = Job { parent: None, at: PathBuf::new(), made };
    for worker in pool::run(first, Worker::new, |job, worker| walk.work(job, worker))? {
        done.merge(worker.done);
    }
    Ok(())
}

const AVOIDED: &str = "is the root, or was to be left out";
const KERNELS: &str = "is on a file system of the kernel's own";
const TAKEN: &str = "the root has something there that is no directory";
const CHANGED: &str = "went away while it was read";

/// One entry of the map, which all workers share.
struct Walk<'a> {
    by: &'a Settings<'a>,
    avoid: Vec<(u64, u64)>,
    source: &'a Path,
    dest: &'a Path,
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
    /// It was made by us, so mode and owner are ours to set.
    made: bool,
}

/// A directory of the host and its counterpart, both open.
struct Pair<'w> {
    src: OwnedFd,
    dst: OwnedFd,
    dev: u64,
    /// The counterpart was made by this walk.
    fresh: bool,
    open: &'w AtomicUsize,
}

impl Drop for Pair<'_> {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a thread has to itself.
struct Worker {
    dirents: Dirents,
    copier: Copier,
    done: Populated,
}

impl Worker {
    fn new() -> Self {
        Worker { dirents: Dirents::new(), copier: Copier::new(), done: Populated::default() }
    }
}

/// An opened directory of the host, or why it is left out.
enum Source {
    Open(OwnedFd, FileStat),
    Out(&'static str),
}

impl<'w> Walk<'w> {
    fn work(&'w self, job: Job<'w>, worker: &mut Worker) -> Result<Vec<Job<'w>>> {
        let fail = |r: Refused| self.tell(r, &job.at, None);
        let Some((pair, st)) = self.pair(&job, &mut worker.done).map_err(fail)? else {
            return Ok(Vec::new());
        };
        self.fill(&Arc::new(pair), &st, &job.at, worker)
    }

    /// Opens both sides of a job; `None` if it is left out, which is noted.
    fn pair(&'w self, job: &Job<'w>, done: &mut Populated) -> Result<Option<(Pair<'w>, FileStat)>, Refused> {
        let Some(name) = job.at.file_name() else {
            let src =
                openat(self.src, c".", DIR, Mode::empty()).map_err(file::refused("openat", Side::Source))?;
            let dst =
                openat(self.dst, c".", DIR, Mode::empty()).map_err(file::refused("openat", Side::Dest))?;
            let st = fstat(&src).map_err(file::refused("fstat", Side::Source))?;
            return Ok(Some((self.hold(src, dst, st.st_dev, job.made), st)));
        };
        let again;
        let parent = match &job.parent {
            Some(pair) => pair,
            None => {
                again = self.find(&job.at)?;
                &again
            }
        };
        let (src, st) = match self.source(parent, name)? {
            Source::Open(src, st) => (src, st),
            Source::Out(why) => {
                done.skip(self.source.join(&job.at), why);
                if job.made {
                    // It was made before we could know. An empty directory more does no harm.
                    let _ = unlinkat(&parent.dst, name, UnlinkatFlags::RemoveDir);
                }
                return Ok(None);
            }
        };
        let dst = match job.made {
            true => dest::open_made(parent.dst.as_fd(), name),
            false => openat(&parent.dst, name, DIR | OFlag::O_NOFOLLOW, Mode::empty()),
        };
        match dst {
            Ok(dst) => Ok(Some((self.hold(src, dst, st.st_dev, job.made), st))),
            Err(Errno::ENOTDIR | Errno::ELOOP) if !job.made => {
                add(&mut done.kept, 1);
                done.skip(self.source.join(&job.at), TAKEN);
                Ok(None)
            }
            Err(errno) => Err(Refused { call: "openat", on: Side::Dest, errno }),
        }
    }

    /// The pair that `at` is in, from the top.
    fn find(&'w self, at: &Path) -> Result<Arc<Pair<'w>>, Refused> {
        let up = at.parent().unwrap_or(Path::new(""));
        let src = dest::open_plain(self.src.as_fd(), up).map_err(file::refused("openat2", Side::Source))?;
        let dst = dest::open_plain(self.dst.as_fd(), up).map_err(file::refused("openat2", Side::Dest))?;
        let dev = fstat(&src).map_err(file::refused("fstat", Side::Source))?.st_dev;
        Ok(Arc::new(self.hold(src, dst, dev, false)))
    }

    fn source(&self, parent: &Pair<'_>, name: &OsStr) -> Result<Source, Refused> {
        let src = match openat(&parent.src, name, DIR | OFlag::O_NOFOLLOW, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(Source::Out(CHANGED)),
            Err(errno) => return Err(Refused { call: "openat", on: Side::Source, errno }),
        };
        let st = fstat(&src).map_err(file::refused("fstat", Side::Source))?;
        if self.avoid.contains(&(st.st_dev, st.st_ino)) {
            return Ok(Source::Out(AVOIDED));
        }
        if st.st_dev != parent.dev && kernels_own(src.as_fd()) {
            return Ok(Source::Out(KERNELS));
        }
        Ok(Source::Open(src, st))
    }

    fn hold(&'w self, src: OwnedFd, dst: OwnedFd, dev: u64, fresh: bool) -> Pair<'w> {
        self.open.fetch_add(1, Ordering::Relaxed);
        Pair { src, dst, dev, fresh, open: &self.open }
    }

    /// Places all entries of a directory, and gives it its mode when nothing more is made in it, as the
    /// mode may forbid that. Its subdirectories are made here too, and filled as jobs of their own.
    fn fill(
        &'w self,
        pair: &Arc<Pair<'w>>,
        st: &FileStat,
        at: &Path,
        worker: &mut Worker,
    ) -> Result<Vec<Job<'w>>> {
        let Worker { dirents, copier, done } = worker;
        let fail = |call, side| move |errno| self.tell(Refused { call, on: side, errno }, at, None);
        let mut jobs = Vec::new();
        while let Some(batch) = dirents.read(pair.src.as_fd()).map_err(fail("getdents64", Side::Source))? {
            for entry in batch {
                match self.place(pair, entry, copier).map_err(|r| self.tell(r, at, Some(entry.name)))? {
                    Step::Sub { made } => jobs.push((at.join(os(entry.name)), made)),
                    Step::Placed(kind, placed) => {
                        count(done, placed, kind, || self.source.join(at).join(os(entry.name)));
                    }
                    Step::Other(kind) => done.skip(self.source.join(at).join(os(entry.name)), kind.name()),
                }
            }
        }
        if pair.fresh {
            add(&mut done.dirs, 1);
            count_owned(done, self.by.giver.finish_dir(&pair.dst, st).map_err(fail("fchmod", Side::Dest))?);
        } else {
            add(&mut done.kept, 1);
        }
        let hold = self.open.load(Ordering::Relaxed) < OPEN;
        let parent = || hold.then(|| Arc::clone(pair));
        Ok(jobs.into_iter().map(|(at, made)| Job { parent: parent(), at, made }).collect())
    }

    fn place(&self, pair: &Pair<'_>, entry: Entry<'_>, copier: &mut Copier) -> Result<Step, Refused> {
        let from = Origin { dir: pair.src.as_fd(), name: entry.name, follow: false };
        let to = Target { dir: pair.dst.as_fd(), name: entry.name, fresh: pair.fresh };
        let kind = match entry.kind {
            Kind::Unknown => match fstatat(from.dir, from.name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(st) => Kind::of_mode(st.st_mode),
                Err(Errno::ENOENT) => return Ok(Step::Placed(Kind::Unknown, Placed::Gone)),
                Err(errno) => return Err(Refused { call: "fstatat", on: Side::Source, errno }),
            },
            kind => kind,
        };
        let link = self.by.method == Method::Link;
        Ok(match kind {
            Kind::Dir => {
                Step::Sub { made: dest::make(to.dir, to.name).map_err(file::refused("mkdirat", Side::Dest))? }
            }
            Kind::File | Kind::Symlink => {
                let placed = if link { file::link(from, to)? } else { None };
                Step::Placed(
                    kind,
                    match placed {
                        Some(placed) => placed,
                        None if kind == Kind::File => copier.copy(from, to, self.by.giver)?,
                        None => file::symlink(from, to, self.by.giver)?,
                    },
                )
            }
            kind => Step::Other(kind),
        })
    }

    fn tell(&self, refused: Refused, at: &Path, name: Option<&CStr>) -> Error {
        let (mut source, mut to) = (self.source.to_owned(), self.dest.to_owned());
        for name in [Some(at.as_os_str()), name.map(os)].into_iter().flatten().filter(|n| !n.is_empty()) {
            source.push(name);
            to.push(name);
        }
        tell(refused, &source, &to)
    }
}

enum Step {
    Sub { made: bool },
    Placed(Kind, Placed),
    Other(Kind),
}

fn os(name: &CStr) -> &OsStr {
    OsStr::from_bytes(name.to_bytes())
}

fn tell(refused: Refused, source: &Path, to: &Path) -> Error {
    let Refused { call, on, errno } = refused;
    Error::prepare(match on {
        Side::Source => format!("{call}({source:?})"),
        Side::Dest => format!("{call}({})", dest::shown(to)),
        Side::Both => format!("{call}({source:?}, {})", dest::shown(to)),
    })(errno)
}

fn count(done: &mut Populated, placed: Placed, kind: Kind, source: impl FnOnce() -> PathBuf) {
    match placed {
        Placed::Linked if kind == Kind::Symlink => add(&mut done.symlinks, 1),
        Placed::Linked => add(&mut done.linked, 1),
        Placed::Copied(bytes, owned) => {
            add(&mut done.copied, 1);
            add(&mut done.bytes_copied, bytes);
            count_owned(done, owned);
        }
        Placed::Symlinked(owned) => {
            add(&mut done.symlinks, 1);
            count_owned(done, owned);
        }
        Placed::Kept => add(&mut done.kept, 1),
        Placed::Gone => done.skip(source(), CHANGED),
    }
}

fn count_owned(done: &mut Populated, owned: Owned) {
    add(&mut done.disowned, u64::from(owned == Owned::ByCaller));
}

/// Whether a directory is on a file system whose files are the kernel's answers: copied, some never end and
/// some wait for ever.
fn kernels_own(dir: BorrowedFd<'_>) -> bool {
    const OWN: [FsType; 11] = [
        statfs::PROC_SUPER_MAGIC,
        statfs::SYSFS_MAGIC,
        statfs::CGROUP_SUPER_MAGIC,
        statfs::CGROUP2_SUPER_MAGIC,
        statfs::DEBUGFS_MAGIC,
        statfs::TRACEFS_MAGIC,
        statfs::SECURITYFS_MAGIC,
        statfs::SELINUX_MAGIC,
        statfs::BPF_FS_MAGIC,
        statfs::DEVPTS_SUPER_MAGIC,
        statfs::NSFS_MAGIC,
    ];
    fstatfs(dir).is_ok_and(|fs| OWN.contains(&fs.filesystem_type()))
}
