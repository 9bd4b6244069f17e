//! Many threads, a directory each: the fast way, for all that gives way.
//!
//! A job is a directory: what is no directory in it is unlinked, and its subdirectories are the next jobs. Who is
//! done with the last of them removes the directory above, and so on upwards. What is refused is not looked
//! into here: the directories that lead to it stay, and the answer is that something did.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::branch;
use super::dir::{open_child, rmdir, unlink, unlink_files};
use crate::rootfs::pool;
use crate::sys::fs::Dirents;

/// Below so many levels a branch is one job, so that the descriptors of waiting directories stay few.
const DEEP: usize = 24;

/// So many directories wait with open descriptors for what is below them. More, and the next is done in one piece.
const OPEN: usize = 96;

/// So many directories the caller's thread does alone, and goes on for as long: other threads have to be worth their
/// start, which takes a tenth of that. Directories alone do not tell, as one may hold thousands of files.
const ALONE: (usize, Duration) = (4, Duration::from_micros(300));

/// Removes `name` in `parent` and all that is below it, as the user `me`; whether nothing of it is left.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &CStr, me: u32) -> bool {
    let open = AtomicUsize::new(0);
    let crew = Crew { parent, me, open: &open, stays: AtomicBool::new(false) };
    let first = Job { up: None, name: name.to_owned(), depth: 0 };
    let (mut jobs, begun) = (0_usize, Instant::now());
    let alone = || {
        jobs = jobs.saturating_add(1);
        jobs < ALONE.0 || begun.elapsed() < ALONE.1
    };
    let done = pool::run_alone(alone, first, Dirents::new, |job, dirents| Ok(crew.work(job, dirents)));
    done.is_ok() && !crew.stays.into_inner()
}

struct Crew<'a> {
    parent: BorrowedFd<'a>,
    me: u32,
    /// How many nodes there are.
    open: &'a AtomicUsize,
    /// Something does.
    stays: AtomicBool,
}

struct Job<'a> {
    up: Up<'a>,
    name: CString,
    depth: usize,
}

/// The directory that something is in; `None` for the top.
type Up<'a> = Option<Arc<Node<'a>>>;

/// A directory that waits until all below it is gone.
struct Node<'a> {
    up: Up<'a>,
    name: CString,
    dir: OwnedFd,
    /// How many of its subdirectories are still there. One that stays is never taken off.
    pending: AtomicUsize,
    open: &'a AtomicUsize,
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<'a> Crew<'a> {
    /// Empties a directory; returns what is to be done before it can be removed, if anything is.
    fn work(&self, job: Job<'a>, dirents: &mut Dirents) -> Vec<Job<'a>> {
        if job.depth >= DEEP || self.open.load(Ordering::Relaxed) >= OPEN {
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
        let Job { up, name, depth } = job;
        let node = Node { up, name, dir, pending: AtomicUsize::new(dirs.len()), open: self.open };
        let (up, depth) = (Some(Arc::new(node)), depth.saturating_add(1));
        dirs.into_iter().map(|name| Job { up: up.clone(), name, depth }).collect()
    }

    /// Takes note that something in `up` is gone, or that it is not, and removes the directories that are empty by
    /// that.
    fn finish(&self, mut up: Up<'a>, mut gone: nix::Result<()>) -> Vec<Job<'a>> {
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
