//! Advisory locks on open files (`flock(2)`).
//!
//! nix's guard panics if unlocking fails; [`Locked`] does not.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

/// A lock operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    /// Shared lock; waits for an exclusive one.
    Shared,
    /// Shared lock; `EWOULDBLOCK` if another process holds an exclusive one.
    SharedNow,
    /// Exclusive lock; waits for all others.
    Exclusive,
    /// Exclusive lock; `EWOULDBLOCK` if there is another lock. On failure, a lock held before through the descriptor is
    /// lost.
    ExclusiveNow,
    /// Unlocks.
    None,
}

/// A descriptor that holds a lock until it is dropped.
///
/// Drop unlocks explicitly. Closing the descriptor is not enough: the lock belongs to the open file description, and a
/// child that another thread forks has a copy of every descriptor until it executes a program.
#[derive(Debug)]
pub(crate) struct Locked(OwnedFd);

impl Locked {
    /// Locks the open file description of `fd`.
    pub(crate) fn new(fd: OwnedFd, lock: Lock) -> nix::Result<Locked> {
        flock(fd.as_fd(), lock)?;
        Ok(Locked::held(fd))
    }

    /// Wraps a descriptor that already holds a lock.
    pub(crate) fn held(fd: OwnedFd) -> Locked {
        Locked(fd)
    }

    /// Changes the lock.
    pub(crate) fn change(&self, lock: Lock) -> nix::Result<()> {
        flock(self.as_fd(), lock)
    }
}

impl AsFd for Locked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = flock(self.as_fd(), Lock::None);
    }
}

/// Locks the open file description of `fd`, or changes the lock that it holds. Repeats the call on EINTR.
pub(crate) fn flock(fd: BorrowedFd<'_>, lock: Lock) -> nix::Result<()> {
    let operation = match lock {
        Lock::Shared => libc::LOCK_SH,
        Lock::SharedNow => libc::LOCK_SH | libc::LOCK_NB,
        Lock::Exclusive => libc::LOCK_EX,
        Lock::ExclusiveNow => libc::LOCK_EX | libc::LOCK_NB,
        Lock::None => libc::LOCK_UN,
    };
    loop {
        // SAFETY: the descriptor is borrowed, so it is open during the call; the call takes no pointer.
        match Errno::result(unsafe { libc::flock(fd.as_raw_fd(), operation) }) {
            Err(Errno::EINTR) => {}
            answer => return answer.map(drop),
        }
    }
}
