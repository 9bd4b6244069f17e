//! Locks on open files, `flock(2)`.
//!
//! nix's guard unlocks when it is dropped and panics when that fails. Closing the descriptor unlocks too, and
//! cannot fail in a way that matters.

use std::os::fd::{AsRawFd, BorrowedFd};

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
    /// Given up. Closing does that too, but only when the last copy of the descriptor is closed, and another
    /// thread may be about to fork one away.
    None,
}

/// Locks the open file that `fd` refers to, or changes the lock that is held through it, until it is closed and so
/// are all copies of the descriptor.
/// Waits again when a signal handler of the caller's ran.
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
