//! Fast removal: several worker threads remove one directory each.
//!
//! A job is a directory. A worker unlinks everything in it that is not a directory, and each subdirectory becomes a
//! job. The worker that removes the last subdirectory of a directory removes that directory too, and so on upwards. A
//! refusal is not analysed here: the directories that lead to it stay, and the result is `false`.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::branch;
use super::dir::{open_child, rmdir, unlink, unlink_files};
use crate::rootfs::workers;
use crate::sys::fs::Dirents;

/// Depth at which a whole branch becomes one job, which bounds the descriptors of waiting directories.
const MAX_DEPTH: usize = 24;

/// Maximum number of open directories that wait for their subdirectories. Beyond it, a branch is one job.
const MAX_OPEN: usize = 96;

/// Number of jobs and time: helper threads start only after both. Starting a thread takes a tenth of that time. The
/// time alone is not enough: one directory may contain thousands of files, and leaves no work for other threads.
const ALONE: (usize, Duration) = (4, Duration::from_micros(300));

/// Removes `name` in `parent` and everything below it, as user id `me`. Returns whether everything is removed.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &CStr, me: u32) -> bool {
    let open = AtomicUsize::new(0);
    let removal = ParallelRemoval { parent, me, open: &open, stays: AtomicBool::new(false) };
    let first = RemovalJob { up: None, name: name.to_owned(), depth: 0 };
    let (mut jobs, begun) = (0_usize, Instant::now());
    let alone = || {
        jobs = jobs.saturating_add(1);
        jobs < ALONE.0 || begun.elapsed() < ALONE.1
    };
    let done = workers::run(alone, first, Dirents::new, |job, dirents| Ok(removal.work(job, dirents)));
    done.is_ok() && !removal.stays.into_inner()
}

struct ParallelRemoval<'a> {
    parent: BorrowedFd<'a>,
    me: u32,
    /// Number of waiting directories.
    open: &'a AtomicUsize,
    /// Something could not be removed.
    stays: AtomicBool,
}

struct RemovalJob<'a> {
    up: Up<'a>,
    name: CString,
    depth: usize,
}

/// The parent directory in the tree; `None` for the top of the tree.
type Up<'a> = Option<Arc<WaitingDir<'a>>>;

/// A directory that waits until its subdirectories are removed.
struct WaitingDir<'a> {
    up: Up<'a>,
    name: CString,
    dir: OwnedFd,
    /// Number of its subdirectories that still exist.
    pending: AtomicUsize,
    open: &'a AtomicUsize,
}

impl Drop for WaitingDir<'_> {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<'a> ParallelRemoval<'a> {
    /// Empties a directory. Removes it if it has no subdirectories, otherwise returns these as jobs.
    fn work(&self, job: RemovalJob<'a>, dirents: &mut Dirents) -> Vec<RemovalJob<'a>> {
        if job.depth >= MAX_DEPTH || self.open.load(Ordering::Relaxed) >= MAX_OPEN {
            let left = branch::remove(self.within(&job.up), &job.name, self.me);
            return self.finish(job.up, if left.is_empty() { Ok(()) } else { Err(Errno::ENOTEMPTY) });
        }
        let dir = match open_child(self.within(&job.up), &job.name, self.me) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => return self.finish(job.up, Ok(())),
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                let gone = unlink(self.within(&job.up), &job.name);
                return self.finish(job.up, gone);
            }
            Err(errno) => return self.finish(job.up, Err(errno)),
        };
        let dirs =
            unlink_files(dir.as_fd(), dirents, self.me, |_, _| self.stays.store(true, Ordering::Relaxed));
        if dirs.is_empty() {
            drop(dir);
            let gone = rmdir(self.within(&job.up), &job.name);
            return self.finish(job.up, gone);
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        let RemovalJob { up, name, depth } = job;
        let node = WaitingDir { up, name, dir, pending: AtomicUsize::new(dirs.len()), open: self.open };
        let (up, depth) = (Some(Arc::new(node)), depth.saturating_add(1));
        dirs.into_iter().map(|name| RemovalJob { up: up.clone(), name, depth }).collect()
    }

    /// Counts the removal, or the failed removal, of an entry in `up`. Removes `up` and the directories above it if
    /// they are empty now.
    fn finish(&self, mut up: Up<'a>, mut gone: nix::Result<()>) -> Vec<RemovalJob<'a>> {
        while let Some(node) = up {
            if gone.is_err() || node.pending.fetch_sub(1, Ordering::AcqRel) != 1 {
                break;
            }
            gone = rmdir(self.within(&node.up), &node.name);
            up = node.up.clone();
        }
        if gone.is_err() {
            self.stays.store(true, Ordering::Relaxed);
        }
        Vec::new()
    }

    fn within<'b>(&'b self, up: &'b Up<'a>) -> BorrowedFd<'b> {
        up.as_ref().map_or(self.parent, |node| node.dir.as_fd())
    }
}
