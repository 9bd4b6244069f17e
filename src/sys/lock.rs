//! Locks on open files, `flock(2)`.
//!
//! nix's guard panics when unlocking fails; [`Locked`] does not.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

/// What is asked of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    /// Held beside other shared ones; waits for one that excludes.
    Shared,
    /// Held beside other shared ones, or `EWOULDBLOCK`.
    SharedNow,
    /// Held alone; waits for all others.
    Exclusive,
    /// Held alone, or `EWOULDBLOCK`; then a lock that was held before through `fd` is gone too.
    ExclusiveNow,
    /// Given up.
    None,
}

/// A descriptor that holds a lock until it is dropped.
///
/// Closing alone does not unlock: a lock belongs to the open file, and a child that another thread forks holds a copy
/// of every descriptor until it executes a program.
#[derive(Debug)]
pub(crate) struct Locked(OwnedFd);

impl Locked {
    /// Locks the open file that `fd` refers to.
    pub(crate) fn new(fd: OwnedFd, lock: Lock) -> nix::Result<Locked> {
        flock(fd.as_fd(), lock)?;
        Ok(Locked::held(fd))
    }

    /// A descriptor that holds its lock already.
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

/// Locks the open file that `fd` refers to, or changes the lock that is held through it. Waits again when a signal handler of the caller's ran.
pub(crate) fn flock(fd: BorrowedFd<'_>, lock: Lock) -> nix::Result<()> {
    let operation = match lock {
        Lock::Shared => libc::LOCK_SH,
        Lock::SharedNow => libc::LOCK_SH | libc::LOCK_NB,
        Lock::Exclusive => libc::LOCK_EX,
        Lock::ExclusiveNow => libc::LOCK_EX | libc::LOCK_NB,
        Lock::None => libc::LOCK_UN,
    };
    loop {
        // SAFETY: the descriptor is borrowed and so open throughout; the call takes no memory.
        match Errno::result(unsafe { libc::flock(fd.as_raw_fd(), operation) }) {
            Err(Errno::EINTR) => {}
            answer => return answer.map(drop),
        }
    }
}
