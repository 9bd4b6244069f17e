//! The owner lock: a shared `flock(2)` on a task's cgroup, held while the task's owner lives.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;

use crate::cgroup::fs::{Backoff, call, hold, open_dir};
use crate::error::Result;
use crate::step::Kernel;
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
}
