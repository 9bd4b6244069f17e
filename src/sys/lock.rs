//! Advisory locks on open files (`flock(2)`), and who holds them.
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

/// PID of the process that has locked the file exclusively (`proc_locks(5)`), in the PID namespace of the mounted `/proc`.
/// `None` if it is not listed. The process may have ended, if a child that it forked has inherited the lock.
pub(crate) fn holder(fd: BorrowedFd<'_>) -> Option<i32> {
    lock_holder(fd, |mode| mode == "WRITE")
}

/// As [`holder`], of a process with a shared lock too.
pub(crate) fn any_holder(fd: BorrowedFd<'_>) -> Option<i32> {
    lock_holder(fd, |_| true)
}

fn lock_holder(fd: BorrowedFd<'_>, is: impl Fn(&str) -> bool) -> Option<i32> {
    let st = nix::sys::stat::fstat(fd).ok()?;
    let (major, minor) = (libc::major(st.st_dev), libc::minor(st.st_dev));
    let file = format!("{major:02x}:{minor:02x}:{}", st.st_ino);
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        // 1: FLOCK  ADVISORY  WRITE 4242 fe:00:131090 0 EOF
        let mut words = line.split_whitespace().skip(1);
        let (kind, _, mode) = (words.next()?, words.next()?, words.next()?);
        let pid = words.next()?.parse().ok().filter(|pid| *pid > 0)?;
        (kind == "FLOCK" && is(mode) && words.next()? == file).then_some(pid)
    })
}

/// The process that has locked the first byte of the file (`F_GETLK`), in the caller's PID namespace; 0 for a process outside
/// of it. `None` if it is not locked.
pub(crate) fn first_byte_holder(fd: BorrowedFd<'_>) -> nix::Result<Option<i32>> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 1,
        l_pid: 0,
    };
    nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETLK(&mut lock))?;
    Ok((i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid))
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
