//! Killing everything in a cgroup, waiting for it to be gone, and removing the directories.
//!
//! All of it goes through a descriptor of the directory where there is one, so that a cgroup that was removed
//! and made anew by somebody else under the same name is never hit. Nothing here asks which version of cgroups
//! it deals with: the files that are there tell.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, UnlinkatFlags, unlinkat};

use super::freeze::Frozen;

/// Pauses that grow from 50 microseconds to 20 milliseconds, until the patience is over.
pub(super) struct Backoff {
    start: Instant,
    patience: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(patience: Duration) -> Self {
        Backoff { start: Instant::now(), patience, next: Duration::from_micros(50) }
    }

    /// Sleeps; false, without sleeping, when it has been long enough.
    pub fn pause(&mut self) -> bool {
        let left = self.patience.saturating_sub(self.start.elapsed());
        if left.is_zero() {
            return false;
        }
        sleep(self.next.min(left));
        self.next = self.next.saturating_mul(2).min(Duration::from_millis(20));
        true
    }
}

/// Opens a cgroup's directory.
pub(super) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY, Mode::empty())?)
}

/// The text of a file in or below `dir`.
pub(super) fn read_at(dir: BorrowedFd<'_>, file: impl AsRef<Path>) -> io::Result<String> {
    let fd = openat(dir, file.as_ref(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    File::from(fd).read_to_string(&mut text)?;
    Ok(text)
}

/// Writes a file in or below `dir`, with one `write(2)` if the kernel takes all of it.
pub(super) fn write_at(dir: BorrowedFd<'_>, file: impl AsRef<Path>, text: &str) -> io::Result<()> {
    let fd = openat(dir, file.as_ref(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    File::from(fd).write_all(text.as_bytes())
}

/// The number after `key` in the text of a file of `key value` lines (`memory.events`, `cgroup.events`).
pub(super) fn field(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value?.trim().parse().ok()
}

/// Sends SIGKILL to every process in `dir` and below.
///
/// One write to `cgroup.kill` (Linux 5.14) does it, and the kernel sees to those who fork meanwhile. Without it
/// the cgroup is frozen (v1 freezer, v2 since 5.2) so that nobody can fork, each process is killed, and it
/// is thawed so that they can die, until none is left; that takes at most `patience`. The caller, init and
/// processes of other PID namespaces (which are listed as 0) are never signalled.
pub(super) fn kill_all(dir: BorrowedFd<'_>, patience: Duration) -> io::Result<()> {
    match write_at(dir, "cgroup.kill", "1") {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => kill_each(dir, patience),
        done => done,
    }
}

pub(super) fn kill_each(dir: BorrowedFd<'_>, patience: Duration) -> io::Result<()> {
    let me = Pid::this();
    let mut backoff = Backoff::new(patience);
    loop {
        let frozen = Frozen::new(dir);
        let mut targets = pids(dir)?;
        targets.retain(|pid| pid.as_raw() > 1 && *pid != me);
        for pid in &targets {
            match kill(*pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => return Err(e.into()),
            }
        }
        drop(frozen);
        if targets.is_empty() {
            return Ok(());
        }
        if !backoff.pause() {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// The processes in `dir` and below.
pub(super) fn pids(dir: BorrowedFd<'_>) -> io::Result<Vec<Pid>> {
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

/// Whether a process is in `dir` or below: v2 says so, v1 must be searched.
pub(super) fn populated(dir: BorrowedFd<'_>) -> io::Result<bool> {
    match read_at(dir, "cgroup.events") {
        Ok(text) => Ok(field(&text, "populated") != Some(0)),
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(!pids(dir)?.is_empty()),
        Err(e) => Err(e),
    }
}

/// The cgroups of a subtree, relative to `dir`: itself as the empty path, and children after their parents.
pub(super) fn subtree(dir: BorrowedFd<'_>) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    let mut next = 0usize;
    while let Some(parent) = found.get(next).cloned() {
        next = next.saturating_add(1);
        match children(dir, &parent) {
            Ok(names) => found.extend(names),
            Err(e) if is_gone(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

fn children(dir: BorrowedFd<'_>, parent: &Path) -> io::Result<Vec<PathBuf>> {
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

/// Removes a cgroup and all below it, trying again as long as the kernel holds on to it.
///
/// `EBUSY` is the answer while a process is there, and for a moment after the last has gone.
pub(super) fn remove_tree(path: &Path, patience: Duration) -> io::Result<()> {
    let mut backoff = Backoff::new(patience);
    loop {
        let busy = match remove_dir(path) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY)) => e,
            done => return done,
        };
        // Usually there is nothing below; what cannot be removed yet is met again in the next round.
        if let Ok(dir) = open_dir(path) {
            for below in subtree(dir.as_fd())?.iter().skip(1).rev() {
                let _ = unlinkat(dir.as_fd(), below, UnlinkatFlags::RemoveDir);
            }
        }
        if !backoff.pause() {
            // What was below may have been all.
            return remove_dir(path).map_err(|_| busy);
        }
    }
}

/// `rmdir(2)`; it is well if it is gone already.
pub(super) fn remove_dir(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir(path) {
        Err(e) if is_gone(&e) => Ok(()),
        done => done,
    }
}

/// Whether an error says that the cgroup was removed: a name that is not there, or a directory that was one.
pub(super) fn is_gone(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        let events = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(field(events, "oom_kill"), Some(2));
        assert_eq!(field(events, "oom"), Some(3));
        assert_eq!(field("oom_kill_disable 0\nunder_oom 0\noom_kill 9\n", "oom_kill"), Some(9));
        assert_eq!(field("oom_kill_disable 0\nunder_oom 0\n", "oom_kill"), None);
        assert_eq!(field("oom_kill max\n", "oom_kill"), None);
        assert_eq!(field("", "oom_kill"), None);
    }

    #[test]
    fn patience_ends() {
        let start = Instant::now();
        let mut backoff = Backoff::new(Duration::from_millis(3));
        while backoff.pause() {}
        assert!(start.elapsed() >= Duration::from_millis(3));
        assert!(!Backoff::new(Duration::ZERO).pause());
    }

    #[test]
    fn a_subtree_is_removed_from_below() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("x");
        std::fs::create_dir_all(path.join("a/b/c")).unwrap();
        std::fs::create_dir_all(path.join("d")).unwrap();
        remove_tree(&path, Duration::from_secs(1)).unwrap();
        assert!(!path.exists());
        remove_tree(&path, Duration::ZERO).unwrap();
    }
}
