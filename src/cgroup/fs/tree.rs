//! Processes and removal of a cgroup and its descendants.
//!
//! Works on v1 and v2, and tells them apart by the files that exist.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::dir::{Dir, Type};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, UnlinkatFlags, unlinkat};

use super::{field, is_gone, open_dir, read_at};

/// Pauses for polling, until a timeout. The first pause is 50 microseconds, and each pause doubles the one before, up
/// to a maximum.
pub(in crate::cgroup) struct Backoff {
    start: Instant,
    timeout: Duration,
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// Pauses of at most 20 milliseconds.
    pub fn new(timeout: Duration) -> Self {
        let (next, longest) = (Duration::from_micros(50), Duration::from_millis(20));
        Backoff { start: Instant::now(), timeout, next, longest }
    }

    /// Pauses of at most `longest`.
    pub fn at_most(self, longest: Duration) -> Self {
        Backoff { longest, ..self }
    }

    /// Sleeps for the next pause. Returns false without sleeping after the timeout.
    pub fn pause(&mut self) -> bool {
        let left = self.timeout.saturating_sub(self.start.elapsed());
        if left.is_zero() {
            return false;
        }
        sleep(self.next.min(left));
        self.next = self.next.saturating_mul(2).min(self.longest);
        true
    }
}

/// The processes in `dir` and below, as process ids in the caller's PID namespace. The kernel lists a process outside
/// of that namespace as 0.
pub(in crate::cgroup) fn pids(dir: BorrowedFd<'_>) -> io::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for below in subtree(dir)? {
        match read_at(dir, below.join("cgroup.procs")) {
            Ok(text) => found.extend(text.lines().filter_map(|l| l.parse().ok()).map(Pid::from_raw)),
            Err(e) if is_gone(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// Whether a process is in `dir` or below. v2 says so in `cgroup.events`; v1 has no such file, so the subtree is
/// searched.
pub(in crate::cgroup) fn populated(dir: BorrowedFd<'_>) -> io::Result<bool> {
    match read_at(dir, "cgroup.events") {
        Ok(text) => Ok(field(&text, "populated") != Some(0)),
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(!pids(dir)?.is_empty()),
        Err(e) => Err(e),
    }
}

/// The cgroups of a subtree, relative to `dir`. The first is `dir` itself as the empty path; parents precede their
/// children.
pub(in crate::cgroup) fn subtree(dir: BorrowedFd<'_>) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    let mut next = 0usize;
    while let Some(parent) = found.get(next).cloned() {
        next = next.saturating_add(1);
        match directories(dir, &parent) {
            Ok(names) => found.extend(names),
            Err(e) if is_gone(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

fn directories(dir: BorrowedFd<'_>, parent: &Path) -> io::Result<Vec<PathBuf>> {
    let path = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY;
    let mut names = Vec::new();
    for entry in Dir::openat(dir, path, flags, Mode::empty())?.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if entry.file_type() == Some(Type::Directory) && !matches!(name, b"." | b"..") {
            names.push(parent.join(OsStr::from_bytes(name)));
        }
    }
    Ok(names)
}

/// Removes a cgroup and its descendants. Retries until the timeout while the kernel returns `EBUSY`: while a process is
/// in the cgroup, and for a moment after the last one has exited.
pub(in crate::cgroup) fn remove_tree(path: &Path, timeout: Duration) -> io::Result<()> {
    let mut backoff = Backoff::new(timeout);
    loop {
        let busy = match remove_dir(path) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY)) => e,
            done => return done,
        };
        // Usually the cgroup has no children. A child that is still busy is tried again in the next round.
        if let Ok(dir) = open_dir(path) {
            for below in subtree(dir.as_fd())?.iter().skip(1).rev() {
                let _ = unlinkat(dir.as_fd(), below, UnlinkatFlags::RemoveDir);
            }
        }
        if !backoff.pause() {
            // The children, removed above, may have been the only obstacle.
            return remove_dir(path).map_err(|_| busy);
        }
    }
}

/// `rmdir(2)`. Succeeds if the directory does not exist.
pub(in crate::cgroup) fn remove_dir(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir(path) {
        Err(e) if is_gone(&e) => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_ends_at_its_timeout() {
        let start = Instant::now();
        let mut backoff = Backoff::new(Duration::from_millis(3));
        while backoff.pause() {}
        assert!(start.elapsed() >= Duration::from_millis(3));
        assert!(!Backoff::new(Duration::ZERO).pause());
    }

    #[test]
    fn remove_tree_removes_descendants_and_accepts_a_missing_path() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("x");
        std::fs::create_dir_all(path.join("a/b/c")).unwrap();
        std::fs::create_dir_all(path.join("d")).unwrap();
        remove_tree(&path, Duration::from_secs(1)).unwrap();
        assert!(!path.exists());
        remove_tree(&path, Duration::ZERO).unwrap();
    }
}
