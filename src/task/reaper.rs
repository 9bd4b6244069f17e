//! Reaps tasks that this process has spawned and no longer owns, so that none of them stays a zombie.
//!
//! One thread does that, from the first such task on. It waits for these processes only, by pidfd (`waitid(2)`), so the
//! caller's other children are the caller's. It blocks all signals. If the caller forks, the child has no such thread and
//! starts its own.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys;

/// How often the lock is tried. It is held for some instructions, except in a child that was forked meanwhile, where
/// it is held for ever.
const TRIES: u32 = 1000;

/// How long the thread sleeps if the kernel refuses to wait for so many processes.
const PAUSE: Duration = Duration::from_millis(100);

/// The thread, as its clients see it.
struct Reaper {
    /// The process that has the thread: a forked child has a copy of this value, but no thread.
    process: u32,
    new: Arc<Mutex<Vec<OwnedFd>>>,
    wake: UnixStream,
}

static REAPER: Mutex<Option<Reaper>> = Mutex::new(None);

/// Reaps the process when it ends. Errors are ignored: the process then is a zombie until the caller ends.
pub(crate) fn reap_later(pidfd: BorrowedFd<'_>) {
    let Ok(pidfd) = pidfd.try_clone_to_owned() else { return };
    for _ in 0..TRIES {
        match REAPER.try_lock() {
            Ok(mut reaper) => return hand_over(&mut reaper, pidfd),
            Err(std::sync::TryLockError::Poisoned(reaper)) => {
                return hand_over(&mut reaper.into_inner(), pidfd);
            }
            Err(std::sync::TryLockError::WouldBlock) => std::thread::yield_now(),
        }
    }
    let _ = start(vec![pidfd]);
}

fn hand_over(reaper: &mut Option<Reaper>, pidfd: OwnedFd) {
    match reaper.as_ref().filter(|reaper| reaper.process == std::process::id()) {
        Some(running) => {
            running.new.lock().unwrap_or_else(PoisonError::into_inner).push(pidfd);
            let _ = (&running.wake).write(&[1]);
        }
        None => *reaper = start(vec![pidfd]).ok(),
    }
}

fn start(pidfds: Vec<OwnedFd>) -> std::io::Result<Reaper> {
    let (wake, woken) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    let new = Arc::new(Mutex::new(pidfds));
    let queue = Arc::clone(&new);
    let thread = std::thread::Builder::new().name("cofferdam-reaper".into()).stack_size(64 << 10);
    sys::thread::start(thread, move || reap(&woken, &queue)).map_err(|(_, e)| e)?;
    Ok(Reaper { process: std::process::id(), new, wake })
}

/// Reaps until the other end of `woken` is closed and all processes are reaped.
fn reap(mut woken: &UnixStream, new: &Mutex<Vec<OwnedFd>>) {
    let (mut running, mut open) = (Vec::new(), true);
    while open || !running.is_empty() {
        running.append(&mut new.lock().unwrap_or_else(PoisonError::into_inner));
        running.retain(|pidfd: &OwnedFd| matches!(sys::wait_pidfd(pidfd.as_fd(), false, true), Ok(None)));
        let wake = open.then_some(woken.as_fd());
        let all = running.iter().map(AsFd::as_fd).chain(wake);
        let mut fds: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // The kernel refuses more descriptors than RLIMIT_NOFILE, which the caller may have lowered since.
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            std::thread::sleep(PAUSE);
        }
        let ended = |read: std::io::Result<usize>| matches!(read, Ok(0));
        open = open && !ended(woken.read(&mut [0u8; 64]));
    }
}
