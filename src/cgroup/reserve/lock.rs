//! The owner lock: a shared `flock(2)` on a cgroup, as long as the task's owner lives.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;

use crate::cgroup::fs::{Backoff, call, hold, open_dir};
use crate::error::Result;
use crate::step::Kernel;
use crate::sys::lock::{Lock, Locked, flock};

/// Other processes take an unlocked cgroup without processes for stale.
#[derive(Debug)]
pub(crate) struct OwnerLock {
    _held: Option<Locked>,
}

impl OwnerLock {
    /// Locks the cgroup at `dir`, by a descriptor of its own.
    ///
    /// # Errors
    /// [`Error::Prepare`](crate::Error::Prepare) with the call.
    pub fn take(kernel: &Kernel, dir: &Path) -> Result<OwnerLock> {
        Ok(OwnerLock { _held: hold_locked(kernel, dir)? })
    }

    /// Whether an owner holds one on `dir`; false for a cgroup that does not exist.
    pub fn is_held(dir: &Path) -> io::Result<bool> {
        let Some(dir) = crate::cgroup::fs::existing(open_dir(dir))? else { return Ok(false) };
        let held = flock(dir.as_fd(), Lock::ExclusiveNow).is_err();
        let _ = flock(dir.as_fd(), Lock::None);
        Ok(held)
    }
}

/// How long others may hold a cgroup's lock alone. [`OwnerLock::is_held`] does so for a moment.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The longest pause between two attempts.
const PAUSE: Duration = Duration::from_millis(1);

/// Opens a cgroup's directory and takes the owner lock on it. A recorder has no descriptor.
///
/// # Errors
/// [`Error::Prepare`](crate::Error::Prepare) with the call; `TimedOut` if another process keeps the lock.
pub(in crate::cgroup) fn hold_locked(kernel: &Kernel, dir: &Path) -> Result<Option<Locked>> {
    let fd = hold(kernel, dir)?;
    kernel.call(|| call::lock_shared(dir), None, || fd.map(|fd| lock_shared(fd, TIMEOUT)).transpose())
}

/// Locks without waiting in the kernel, so that the wait can end.
fn lock_shared(dir: OwnedFd, timeout: Duration) -> io::Result<Locked> {
    let mut backoff = Backoff::new(timeout).at_most(PAUSE);
    loop {
        match flock(dir.as_fd(), Lock::SharedNow) {
            Err(Errno::EWOULDBLOCK) if backoff.pause() => {}
            Err(Errno::EWOULDBLOCK) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "another process keeps the cgroup locked",
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
    fn an_owner_waits_for_a_process_that_looks_for_owners() {
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
