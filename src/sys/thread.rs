//! Threads of the crate in the caller's process.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use nix::sys::signal::{SigSet, SigmaskHow};

/// Starts a thread in which no signal handler of the caller ever runs: it inherits the mask of this one, in which all
/// signals are blocked meanwhile.
///
/// # Errors
/// The line of the refused call, and the errno.
pub(crate) fn start<T: Send + 'static>(
    thread: Builder,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, (&'static str, io::Error)> {
    let mask = SigSet::all()
        .thread_swap_mask(SigmaskHow::SIG_BLOCK)
        .map_err(|e| ("pthread_sigmask(SIG_BLOCK)", e.into()))?;
    let thread = thread.spawn(work);
    // It cannot fail: the mask is a former mask of this thread.
    let _ = mask.thread_set_mask();
    thread.map_err(|e| ("clone(thread)", e))
}

/// How work that has a time limit ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Done<T> {
    InTime(T),
    /// It has not ended in time, and its thread is left behind until it does.
    Late,
    /// So many threads are left behind already that no other was started.
    Crowded,
    /// No thread could be started.
    NoThread,
}

/// How many threads may be left behind. Each has a stack, of which it uses little.
const MOST_LEFT: usize = 16;

/// The threads that are left behind now. A number and not a list with a lock: a process that is forked from the caller while
/// another thread had the lock could never take it.
static LEFT: AtomicUsize = AtomicUsize::new(0);

/// Does work that may take any time, in a thread, and waits for its end at most until then. The thread has ended when this
/// returns [`Done::InTime`].
pub(crate) fn within<T: Send + 'static>(
    until: Instant,
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Done<T> {
    if LEFT.load(Ordering::Relaxed) >= MOST_LEFT {
        return Done::Crowded;
    }
    // The later one of the two that set it knows that the other has ended or gone.
    let over = Arc::new(AtomicBool::new(false));
    let (done, (send, receive)) = (Arc::clone(&over), mpsc::channel());
    let thread = start(Builder::new().name(name.into()), move || {
        let _ = send.send(work());
        if done.swap(true, Ordering::AcqRel) {
            LEFT.fetch_sub(1, Ordering::Relaxed);
        }
    });
    let Ok(thread) = thread else { return Done::NoThread };
    let left = until.saturating_duration_since(Instant::now());
    match receive.recv_timeout(left) {
        Ok(value) => {
            let _ = thread.join();
            Done::InTime(value)
        }
        // The work has panicked.
        Err(RecvTimeoutError::Disconnected) => Done::NoThread,
        Err(RecvTimeoutError::Timeout) => {
            LEFT.fetch_add(1, Ordering::Relaxed);
            if !over.swap(true, Ordering::AcqRel) {
                return Done::Late;
            }
            LEFT.fetch_sub(1, Ordering::Relaxed);
            receive.recv().map_or(Done::NoThread, Done::InTime)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon(ms: u64) -> Instant {
        Instant::now().checked_add(Duration::from_millis(ms)).unwrap()
    }

    /// One test: the threads that are left behind are counted for the whole process.
    #[test]
    fn late_work_leaves_a_bounded_number_of_threads_which_end_with_it() {
        assert_eq!(within(soon(60_000), "test", || 7), Done::InTime(7));
        let (go, wait) = mpsc::channel::<()>();
        let wait = Arc::new(std::sync::Mutex::new(wait));
        let hang = || {
            let wait = Arc::clone(&wait);
            move || wait.lock().unwrap().recv().unwrap_or_default()
        };
        for _ in 0..MOST_LEFT {
            assert_eq!(within(soon(1), "test", hang()), Done::Late);
        }
        assert_eq!(within(soon(1), "test", hang()), Done::Crowded);
        drop(go);
        let until = soon(60_000);
        while LEFT.load(Ordering::Relaxed) > 0 {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(within(soon(60_000), "test", || 8), Done::InTime(8));
    }

    #[test]
    fn no_signal_is_delivered_to_a_thread_of_the_crate_and_the_mask_of_the_caller_stays() {
        let before = SigSet::thread_get_mask().unwrap();
        let mask = start(Builder::new(), || SigSet::thread_get_mask().unwrap()).unwrap().join().unwrap();
        assert!(mask.contains(nix::sys::signal::Signal::SIGUSR1));
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }
}
