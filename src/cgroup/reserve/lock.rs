//! The owner lock: a shared `flock(2)` on a task's cgroup, held while the task's owner lives.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;

use crate::cgroup::fs::{Backoff, call, hold, is_gone, open_dir};
use crate::error::{Error, Result};
use crate::step::Kernel;
use crate::sys::fs::is_at;
use crate::sys::lock::{Lock, Locked, flock};

/// A shared lock on one cgroup's directory, released on drop. Other processes treat a cgroup without this lock and
/// without processes as stale.
#[derive(Debug)]
pub(crate) struct OwnerLock {
    _held: Option<Locked>,
}

impl OwnerLock {
    /// Opens `dir` with a descriptor of its own and locks it.
    ///
    /// # Errors
    /// [`Error::Prepare`](crate::Error::Prepare) with the call; `TimedOut` if another process holds an exclusive lock
    /// for 5 seconds.
    pub fn take(kernel: &Kernel, dir: &Path) -> Result<OwnerLock> {
        Ok(OwnerLock { _held: hold_locked(kernel, dir)? })
    }

    /// Locks `dir` against an owner. `None` if the cgroup does not exist.
    ///
    /// # Errors
    /// `EWOULDBLOCK` if a process holds a lock on it, or it was removed meanwhile; otherwise the refused call.
    pub fn exclude(dir: &Path) -> io::Result<Option<Locked>> {
        let opened = crate::cgroup::fs::existing(open_dir(dir))?;
        opened.map(|opened| exclude_opened(opened, dir)).transpose()
    }

    /// Whether any process holds an owner lock on `dir`. False if the cgroup does not exist.
    ///
    /// Takes the exclusive lock for a moment to find out.
    pub fn is_held(dir: &Path) -> io::Result<bool> {
        let Some(dir) = crate::cgroup::fs::existing(open_dir(dir))? else { return Ok(false) };
        let held = flock(dir.as_fd(), Lock::ExclusiveNow).is_err();
        let _ = flock(dir.as_fd(), Lock::None);
        Ok(held)
    }
}

/// Locks the cgroup that was opened at `dir`. Before the lock, its owner may have removed it, and a new task may have made
/// another one at the same path. A removal goes by the path, so it would remove the new one.
fn exclude_opened(opened: OwnedFd, dir: &Path) -> io::Result<Locked> {
    let held = Locked::new(opened, Lock::ExclusiveNow)?;
    if is_at(held.as_fd(), AT_FDCWD, dir)? { Ok(held) } else { Err(Errno::EWOULDBLOCK.into()) }
}

/// Opens the directory of a cgroup that was just made, and takes the owner lock on it. Returns `None` if calls are only
/// recorded.
///
/// Until it is locked, a task of the same name takes it for stale, removes it and makes its own. So only one of them gets
/// the lock: each tries an exclusive one first, and changes it to the shared one.
///
/// # Errors
/// [`Error::Prepare`](crate::Error::Prepare) with the call; `ResourceBusy` if another task has or gets the cgroup.
pub(in crate::cgroup) fn hold_alone(kernel: &Kernel, dir: &Path) -> Result<Option<Locked>> {
    let taken = |mut error| {
        if let Error::Prepare { source, .. } = &mut error
            && is_gone(source)
        {
            *source = in_use(dir);
        }
        error
    };
    let fd = hold(kernel, dir).map_err(taken)?;
    let alone = || fd.map(|fd| lock_alone(fd.as_fd(), dir).map(|()| Locked::held(fd))).transpose();
    let Some(held) = kernel.call(|| call::lock(dir), None, alone)? else {
        kernel.call(|| call::lock_shared(dir), (), || Ok::<(), io::Error>(()))?;
        return Ok(None);
    };
    kernel.call(|| call::lock_shared(dir), (), || share(&held, dir))?;
    Ok(Some(held))
}

/// Changes an exclusive lock on `dir` to a shared one.
///
/// # Errors
/// `ResourceBusy` if another task has or gets the cgroup; otherwise the refused call.
fn share(held: &Locked, dir: &Path) -> io::Result<()> {
    // Between the two locks there is none: another process may look whether the cgroup has an owner, or remove it.
    loop {
        match held.change(Lock::SharedNow) {
            Err(Errno::EWOULDBLOCK) => lock_alone(held.as_fd(), dir)?,
            changed => break changed?,
        }
    }
    if is_at(held.as_fd(), AT_FDCWD, dir)? { Ok(()) } else { Err(in_use(dir)) }
}

/// Takes an exclusive lock on a directory that no task has. Waits for a process that only looks whether one has it.
fn lock_alone(fd: BorrowedFd<'_>, dir: &Path) -> io::Result<()> {
    let mut backoff = Backoff::new(TIMEOUT).at_most(PAUSE);
    let mut owned = false;
    loop {
        match flock(fd, Lock::ExclusiveNow) {
            Err(Errno::EWOULDBLOCK) => {}
            locked => return Ok(locked?),
        }
        // Beside the lock of an owner there is room for another shared one.
        let shared = flock(fd, Lock::SharedNow).is_ok();
        let _ = flock(fd, Lock::None);
        if shared && owned || !backoff.pause() {
            return Err(in_use(dir));
        }
        owned = shared;
    }
}

/// The error if another task has the name.
fn in_use(dir: &Path) -> io::Error {
    let name = dir.file_stem().unwrap_or_default().display();
    let why = format!("the id is in use: another task of the name {name} is started at the same time");
    io::Error::new(io::ErrorKind::ResourceBusy, why)
}

/// How long to wait for another process to release an exclusive lock. [`OwnerLock::is_held`] holds one for a moment.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The longest pause between two attempts to lock.
const PAUSE: Duration = Duration::from_millis(1);

/// Opens a cgroup's directory and takes the owner lock on it. Returns `None` if calls are only recorded.
///
/// # Errors
/// [`Error::Prepare`](crate::Error::Prepare) with the call; `TimedOut` if another process holds an exclusive lock for 5
/// seconds.
pub(in crate::cgroup) fn hold_locked(kernel: &Kernel, dir: &Path) -> Result<Option<Locked>> {
    let fd = hold(kernel, dir)?;
    kernel.call(|| call::lock_shared(dir), None, || fd.map(|fd| lock_shared(fd, TIMEOUT)).transpose())
}

/// Takes a shared lock by repeated `LOCK_NB` attempts, because a blocking `flock(2)` has no timeout.
fn lock_shared(dir: OwnedFd, timeout: Duration) -> io::Result<Locked> {
    let mut backoff = Backoff::new(timeout).at_most(PAUSE);
    loop {
        match flock(dir.as_fd(), Lock::SharedNow) {
            Err(Errno::EWOULDBLOCK) if backoff.pause() => {}
            Err(Errno::EWOULDBLOCK) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "another process holds an exclusive lock (flock) on the cgroup",
                ));
            }
            answer => {
                answer?;
                return Ok(Locked::held(dir));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taking_the_owner_lock_waits_for_an_exclusive_lock() {
        let dir = tempfile::tempdir().unwrap();
        let alone = Locked::new(open_dir(dir.path()).unwrap(), Lock::Exclusive).unwrap();
        let refused = lock_shared(open_dir(dir.path()).unwrap(), Duration::from_millis(5)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        std::thread::scope(|scope| {
            let owner = scope.spawn(|| OwnerLock::take(&Kernel::real(), dir.path()).unwrap());
            std::thread::sleep(Duration::from_millis(30));
            drop(alone);
            let owner = owner.join().unwrap();
            assert!(OwnerLock::is_held(dir.path()).unwrap());
            drop(owner);
            assert!(!OwnerLock::is_held(dir.path()).unwrap());
        });
        assert!(!OwnerLock::is_held(&dir.path().join("nothing")).unwrap());
    }

    #[test]
    fn a_cgroup_whose_name_another_one_has_got_is_not_locked_in_its_place() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("task");
        std::fs::create_dir(&dir).unwrap();
        let opened = || open_dir(&dir).unwrap();
        assert!(exclude_opened(opened(), &dir).is_ok());
        let old = opened();
        std::fs::remove_dir(&dir).unwrap();
        let gone = exclude_opened(old.try_clone().unwrap(), &dir).unwrap_err();
        std::fs::create_dir(&dir).unwrap();
        for refused in [gone, exclude_opened(old, &dir).unwrap_err()] {
            assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        }
        assert!(OwnerLock::exclude(&dir).unwrap().is_some());
    }
}
