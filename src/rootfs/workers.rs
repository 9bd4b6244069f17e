//! Worker threads for walks over directory trees, and the limit of concurrent walks in a process.
//!
//! A job is a directory to fill or to empty. The job queued last is taken first, so the number of queued jobs stays
//! near the depth of the tree times the number of entries in a directory, not near the size of the tree. The caller's
//! own thread is one of the workers. Helper threads end with the call, and a small tree never starts one.

use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// Jobs processed before helper threads start.
const ALONE: usize = 16;

/// Time after which helper threads start even after fewer jobs: a few times the cost of starting a thread.
const ALONE_TIME: Duration = Duration::from_micros(300);

/// Maximum number of threads of a walk. More only wait for each other in the file system.
const MAX_THREADS: usize = 4;

/// Maximum number of concurrent walks in a process.
///
/// A walk keeps several threads busy in the file system. If a driver starts twenty tasks at once and all walk, they
/// contend for the same locks there, and no task is ready before the last one is.
const MAX_WALKS: usize = 2;

/// Returns an `alone` predicate for [`run`] that suits most walks: false after [`ALONE`] jobs or after [`ALONE_TIME`].
pub(super) fn alone_at_first() -> impl FnMut() -> bool {
    let (mut left, began) = (ALONE, Instant::now());
    move || {
        left = left.saturating_sub(1);
        left > 0 && began.elapsed() < ALONE_TIME
    }
}

/// Processes `first` and all jobs that jobs return. Returns the state of each worker, made by `state`.
///
/// The caller's thread works alone as long as `alone` returns true. `alone` is called after each job.
///
/// # Errors
/// The first error of a job. No job is started after it.
pub(super) fn run<J, S>(
    mut alone: impl FnMut() -> bool,
    first: J,
    state: impl Fn() -> S + Sync,
    work: impl Fn(J, &mut S) -> Result<Vec<J>> + Sync,
) -> Result<Vec<S>>
where
    J: Send,
    S: Send,
{
    let pool = Pool {
        queue: Mutex::new(Queue { jobs: vec![first], busy: 0, waiting: 0, error: None }),
        ready: Condvar::new(),
    };
    let drain = |state: &mut S, more: &mut dyn FnMut() -> bool| {
        while let Some((job, busy)) = pool.take() {
            busy.end(work(job, state));
            if !more() {
                return;
            }
        }
    };
    let mut mine = state();
    drain(&mut mine, &mut alone);
    let mut states = thread::scope(|scope| {
        let help = || {
            let mut state = state();
            drain(&mut state, &mut || true);
            state
        };
        let helpers = if pool.lock().jobs.is_empty() { 0 } else { threads().saturating_sub(1) };
        // If the kernel refuses a thread, the others do its work.
        let helpers: Vec<_> = (0..helpers)
            .filter_map(|_| {
                thread::Builder::new().name("cofferdam-walk".into()).spawn_scoped(scope, help).ok()
            })
            .collect();
        drain(&mut mine, &mut || true);
        // A helper that panicked has left an error in the queue.
        helpers.into_iter().filter_map(|h| h.join().ok()).collect::<Vec<S>>()
    });
    states.push(mine);
    match pool.queue.into_inner().unwrap_or_else(PoisonError::into_inner).error {
        Some(error) => Err(error),
        None => Ok(states),
    }
}

/// Number of threads of a walk. Cached, as the standard library reads several files for the answer.
fn threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS)))
}

struct Pool<J> {
    queue: Mutex<Queue<J>>,
    ready: Condvar,
}

struct Queue<J> {
    jobs: Vec<J>,
    /// Number of workers that process a job and may return new ones.
    busy: usize,
    /// Number of workers that wait for a job.
    waiting: usize,
    error: Option<Error>,
}

impl<J> Pool<J> {
    fn lock(&self) -> MutexGuard<'_, Queue<J>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; `None` when there will be no more.
    fn take(&self) -> Option<(J, BusyWorker<'_, J>)> {
        let mut queue = self.lock();
        loop {
            if queue.error.is_some() {
                return None;
            }
            if let Some(job) = queue.jobs.pop() {
                queue.busy = queue.busy.saturating_add(1);
                return Some((job, BusyWorker { pool: self, result: None }));
            }
            if queue.busy == 0 {
                return None;
            }
            queue.waiting = queue.waiting.saturating_add(1);
            queue = self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.waiting = queue.waiting.saturating_sub(1);
        }
    }
}

/// Counts a worker as busy until it is dropped, so that no other worker waits for one that panicked.
struct BusyWorker<'a, J> {
    pool: &'a Pool<J>,
    result: Option<Result<Vec<J>>>,
}

impl<J> BusyWorker<'_, J> {
    fn end(mut self, result: Result<Vec<J>>) {
        self.result = Some(result);
    }
}

impl<J> Drop for BusyWorker<'_, J> {
    fn drop(&mut self) {
        let panicked = || Err(Error::prepare("populate")(std::io::Error::other("a worker thread panicked")));
        let result = self.result.take().unwrap_or_else(panicked);
        let mut queue = self.pool.lock();
        queue.busy = queue.busy.saturating_sub(1);
        match result {
            Ok(jobs) => queue.jobs.extend(jobs),
            // Later errors may be consequences of the first.
            Err(error) => queue.error = queue.error.take().or(Some(error)),
        }
        // This thread takes one job itself at once, and a wake-up costs a system call even if no thread waits.
        let wake = queue.busy == 0 || queue.jobs.len() > 1 || queue.error.is_some();
        if wake && queue.waiting > 0 {
            self.pool.ready.notify_all();
        }
    }
}

/// The permits of this process.
static WALKS: ConcurrentLimit = ConcurrentLimit::new(MAX_WALKS);

/// Waits until fewer than [`MAX_WALKS`] permits are held in this process, and takes one.
pub(super) fn wait_for_permit() -> WalkPermit<'static> {
    WALKS.acquire()
}

/// As [`wait_for_permit`]. `None` if `stopped` returns true meanwhile, which is asked often.
pub(super) fn permit_unless(stopped: impl Fn() -> bool) -> Option<WalkPermit<'static>> {
    WALKS.acquire_unless(stopped)
}

/// Time between two checks for a cancel while no permit is free.
const PATIENCE: Duration = Duration::from_millis(20);

/// A counting semaphore.
struct ConcurrentLimit {
    free: Mutex<usize>,
    released: Condvar,
}

/// Permission to walk, until it is dropped.
pub(super) struct WalkPermit<'a>(&'a ConcurrentLimit);

impl ConcurrentLimit {
    const fn new(free: usize) -> Self {
        ConcurrentLimit { free: Mutex::new(free), released: Condvar::new() }
    }

    fn acquire(&self) -> WalkPermit<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.released.wait_while(free, |n| *n == 0).unwrap_or_else(PoisonError::into_inner);
        *free = free.saturating_sub(1);
        WalkPermit(self)
    }

    fn acquire_unless(&self, stopped: impl Fn() -> bool) -> Option<WalkPermit<'_>> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            if stopped() {
                return None;
            }
            let waited = self.released.wait_timeout(free, PATIENCE);
            free = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *free = free.saturating_sub(1);
        Some(WalkPermit(self))
    }
}

impl Drop for WalkPermit<'_> {
    fn drop(&mut self) {
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = free.saturating_add(1);
        self.0.released.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::arithmetic_side_effects)]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_job_is_processed_once() {
        let split = |n: u32, sum: &mut u64| {
            *sum += 1;
            Ok(if n == 0 { Vec::new() } else { vec![n - 1; 3] })
        };
        let sums = run(alone_at_first(), 7, || 0, split).unwrap();
        assert_eq!(sums.iter().sum::<u64>(), (3_u64.pow(8) - 1) / 2);
    }

    #[test]
    fn the_first_error_ends_the_walk() {
        let fail = |n: u32, _: &mut ()| match n {
            5000 => Err(Error::denied("enough")),
            n => Ok(vec![n + 1, n + 1]),
        };
        assert!(matches!(run(alone_at_first(), 0, || (), fail), Err(Error::Denied { .. })));
    }

    #[test]
    fn concurrent_walks_are_limited_and_a_panic_releases_the_permit() {
        let (limit, running, most) = (ConcurrentLimit::new(2), AtomicUsize::new(0), AtomicUsize::new(0));
        let walk = |i: u32| {
            let _permit = limit.acquire();
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(2));
            running.fetch_sub(1, Ordering::SeqCst);
            assert!(!i.is_multiple_of(5), "on purpose");
        };
        let panicked = std::thread::scope(|s| {
            let walk = &walk;
            let all: Vec<_> = (0..20).map(|i| s.spawn(move || walk(i))).collect();
            all.into_iter().map(|t| t.join()).filter(Result::is_err).count()
        });
        assert_eq!(panicked, 4);
        assert!(most.into_inner() <= 2);
        // All permits were released, and two can be held at a time.
        let _both = (limit.acquire(), limit.acquire());
        assert_eq!(*limit.free.lock().unwrap(), 0);
    }
}
