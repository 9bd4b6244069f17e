//! A number that says whether the sources of a map are still what they were.
//!
//! It is the sum of a hash of each entry that a walk meets, whatever becomes of it: of its path, kind, mode,
//! owner, size, time of modification and inode; of a directory that is left empty not its size and time. So the order of the threads does not matter. What populating
//! itself changes, the link count and the time of change, has no part in it; nor has a change that leaves all of
//! these as they were, of an extended attribute, say.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::fcntl::openat;
use nix::sys::stat::{FileStat, Mode, fstat};

use super::dest::{self, DIR};
use super::file::Origin;
use super::host::{self, Found, Opened, Part};
use super::refused::{Refused, Side, refused};
use super::walk::os;
use super::{ChrootEnv, gate, validate};
use crate::Result;
use crate::rootfs::{pool, source};
use crate::sys::fs::{Dirents, Kind};

/// A path that is being hashed: FNV-1a.
#[derive(Clone, Copy)]
pub(super) struct Trail(u64);

impl Trail {
    /// A source of the map.
    pub(super) fn of(source: &Path) -> Trail {
        Trail(0xcbf2_9ce4_8422_2325).bytes(source.as_os_str().as_bytes()).bytes(&[0])
    }

    /// What is at the relative path `at`, which may be empty.
    pub(super) fn below(self, at: &Path) -> Trail {
        if at.as_os_str().is_empty() { self } else { self.bytes(b"/").bytes(at.as_os_str().as_bytes()) }
    }

    /// The entry `name`.
    pub(super) fn name(self, name: &CStr) -> Trail {
        self.bytes(b"/").bytes(name.to_bytes())
    }

    /// The entry that the path ends with.
    pub(super) fn ends_with(self, st: &FileStat) -> u64 {
        let mut trail = self.bytes(&[0]);
        for ids in [st.st_mode, st.st_uid, st.st_gid] {
            trail = trail.bytes(&ids.to_ne_bytes());
        }
        for number in [st.st_size, st.st_mtime, st.st_mtime_nsec] {
            trail = trail.bytes(&number.to_ne_bytes());
        }
        avalanche(trail.bytes(&st.st_ino.to_ne_bytes()).0)
    }

    /// The directory that the path ends with, which is left empty: what is in it does not matter, and its size
    /// and time tell about that alone.
    pub(super) fn ends_closed(self, st: &FileStat) -> u64 {
        let mut st = *st;
        (st.st_size, st.st_mtime, st.st_mtime_nsec) = (0, 0, 0);
        self.ends_with(&st)
    }

    fn bytes(self, bytes: &[u8]) -> Trail {
        Trail(bytes.iter().fold(self.0, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)))
    }
}

/// Spreads each bit over all others, as these hashes are added up (the end of MurmurHash3).
fn avalanche(mut h: u64) -> u64 {
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        h = (h ^ h >> 33).wrapping_mul(factor);
    }
    h ^ h >> 33
}

/// What [`Populated::fingerprint`](super::Populated::fingerprint) is as long as nobody changes the sources, by a
/// walk that places nothing. It does not know the root: where that is below a source, `skip` must name it.
///
/// # Errors
/// As `populate`, as far as it is about the sources.
pub(crate) fn fingerprint(map: &ChrootEnv, skip: &[(u64, u64)]) -> Result<u64> {
    validate(map)?;
    let _turn = gate::enter();
    let mut sum = 0_u64;
    let held = source::hold("chroot_env", map.keys())?;
    let parts = host::parts(map, &held, skip, |source, _, st| {
        if let Some(st) = st {
            sum = sum.wrapping_add(Trail::of(source).ends_with(&st));
        }
    })?;
    for part in &parts {
        let more = match host::look(part.source, &held, skip)? {
            Found::Dir(dir, _) => walk(part, skip, &dir)?,
            Found::File(_, st) => Trail::of(part.source).ends_with(&st),
            Found::Out(..) => 0,
        };
        sum = sum.wrapping_add(more);
    }
    Ok(sum)
}

fn walk(part: &Part<'_>, skip: &[(u64, u64)], top: &OwnedFd) -> Result<u64> {
    let walk = Walk { part, skip, top, trail: Trail::of(part.source), open: AtomicUsize::new(0) };
    let first = Job { parent: None, at: PathBuf::new() };
    let state = || (Dirents::new(), 0_u64);
    let sums = pool::run(first, state, |job, (dirents, sum)| {
        let at = job.at.clone();
        walk.work(job, dirents, sum).map_err(|r| r.about(&part.source.join(at), Path::new("")))
    })?;
    Ok(sums.into_iter().fold(0, |all, (_, sum)| all.wrapping_add(sum)))
}

struct Walk<'a> {
    part: &'a Part<'a>,
    skip: &'a [(u64, u64)],
    top: &'a OwnedFd,
    trail: Trail,
    open: AtomicUsize,
}

/// A directory that is to be read, as in `walk`.
struct Job<'w> {
    parent: Option<Arc<Dir<'w>>>,
    at: PathBuf,
}

struct Dir<'w> {
    fd: OwnedFd,
    dev: u64,
    open: &'w AtomicUsize,
}

impl Drop for Dir<'_> {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<'w> Walk<'w> {
    fn work(&'w self, job: Job<'w>, dirents: &mut Dirents, sum: &mut u64) -> Result<Vec<Job<'w>>, Refused> {
        let on_source = |call| refused(call, Side::Source);
        let (fd, st) = match self.open(&job)? {
            Opened::Dir(fd, st) => (fd, st),
            Opened::Closed(_, st, _) => {
                *sum = sum.wrapping_add(self.trail.below(&job.at).ends_closed(&st));
                return Ok(Vec::new());
            }
            Opened::Gone => return Ok(Vec::new()),
        };
        let trail = self.trail.below(&job.at);
        *sum = sum.wrapping_add(trail.ends_with(&st));
        let dir = Arc::new(self.hold(fd, st.st_dev));
        let others = self.part.others.at(&job.at);
        let hold = self.open.load(Ordering::Relaxed) < super::walk::OPEN;
        let mut jobs = Vec::new();
        while let Some(batch) = host::entries(dirents, dir.fd.as_fd())? {
            for entry in batch {
                if others.is_some_and(|names| names.contains(os(entry.name))) {
                    continue;
                }
                let from = Origin { dir: dir.fd.as_fd(), name: entry.name, follow: false };
                let mut kind = entry.kind;
                if kind != Kind::Dir {
                    let st = match from.stat() {
                        Ok(st) => st,
                        Err(Errno::ENOENT) => continue,
                        Err(errno) => return Err(on_source("fstatat")(errno)),
                    };
                    kind = Kind::of_mode(st.st_mode);
                    if kind != Kind::Dir {
                        *sum = sum.wrapping_add(trail.name(entry.name).ends_with(&st));
                    }
                }
                if kind == Kind::Dir {
                    let parent = hold.then(|| Arc::clone(&dir));
                    jobs.push(Job { parent, at: job.at.join(os(entry.name)) });
                }
            }
        }
        Ok(jobs)
    }

    fn open(&'w self, job: &Job<'w>) -> Result<Opened, Refused> {
        let on_source = |call| refused(call, Side::Source);
        let Some(name) = job.at.file_name() else {
            let fd = openat(self.top, c".", DIR, Mode::empty()).map_err(on_source("openat"))?;
            let st = fstat(&fd).map_err(on_source("fstat"))?;
            return Ok(Opened::Dir(fd, st));
        };
        if let Some(dir) = &job.parent {
            return host::enter(dir.fd.as_fd(), dir.dev, name, self.skip);
        }
        let up = job.at.parent().unwrap_or(Path::new(""));
        let fd = dest::open_plain(self.top.as_fd(), up).map_err(on_source("openat2"))?;
        let dev = fstat(&fd).map_err(on_source("fstat"))?.st_dev;
        host::enter(fd.as_fd(), dev, name, self.skip)
    }

    fn hold(&'w self, fd: OwnedFd, dev: u64) -> Dir<'w> {
        self.open.fetch_add(1, Ordering::Relaxed);
        Dir { fd, dev, open: &self.open }
    }
}
