//! Directories waiting to be filled or emptied, and the threads that take them.
//!
//! The last that came is the first taken, which keeps the number of waiting directories near the depth of
//! the tree times its width and not near its size. The caller's own thread is one of the workers; helpers
//! live no longer than the call, and a small tree never sees one.

use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// So many jobs the caller's thread does alone, before others are started,
const ALONE: usize = 16;

/// unless it took this long by then: a few times what starting a thread costs.
const SOON: Duration = Duration::from_micros(300);

/// More threads than this only wait for each other in the file system.
const MOST: usize = 4;

/// Does `first`, and all jobs that come of it, and returns the states of the workers, which `state` made.
/// The first error ends it all.
pub(super) fn run<J, S>(
    first: J,
    state: impl Fn() -> S + Sync,
    work: impl Fn(J, &mut S) -> Result<Vec<J>> + Sync,
) -> Result<Vec<S>>
where
    J: Send,
    S: Send,
{
    let (mut left, began) = (ALONE, Instant::now());
    let alone = || {
        left = left.saturating_sub(1);
        left > 0 && began.elapsed() < SOON
    };
    run_alone(alone, first, state, work)
}

/// The same; the caller's thread is alone for as long as `alone` says after each job that it should be.
pub(super) fn run_alone<J, S>(
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
        while let Some((job, turn)) = pool.take() {
            turn.end(work(job, state));
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
        // A thread that the kernel refuses is one helper less.
        let helpers: Vec<_> = (0..helpers)
            .filter_map(|_| {
                thread::Builder::new().name("cofferdam-walk".into()).spawn_scoped(scope, help).ok()
            })
            .collect();
        drain(&mut mine, &mut || true);
        // One that panicked has said so in the queue, when its turn ended.
        helpers.into_iter().filter_map(|h| h.join().ok()).collect::<Vec<S>>()
    });
    states.push(mine);
    match pool.queue.into_inner().unwrap_or_else(PoisonError::into_inner).error {
        Some(error) => Err(error),
        None => Ok(states),
    }
}

/// Asked once, as the answer is read from half a dozen files.
fn threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| thread::available_parallelism().map_or(1, |n| n.get().min(MOST)))
}

struct Pool<J> {
    queue: Mutex<Queue<J>>,
    ready: Condvar,
}

struct Queue<J> {
    jobs: Vec<J>,
    /// How many are at work and may bring new jobs.
    busy: usize,
    /// How many sleep until there is something to do.
    waiting: usize,
    error: Option<Error>,
}

impl<J> Pool<J> {
    fn lock(&self) -> MutexGuard<'_, Queue<J>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; `None` when there will be no more.
    fn take(&self) -> Option<(J, Turn<'_, J>)> {
        let mut queue = self.lock();
        loop {
            if queue.error.is_some() {
                return None;
            }
            if let Some(job) = queue.jobs.pop() {
                queue.busy = queue.busy.saturating_add(1);
                return Some((job, Turn { pool: self, result: None }));
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

/// A worker's hold on the pool while it does a job, so that nobody waits for one that panicked.
struct Turn<'a, J> {
    pool: &'a Pool<J>,
    result: Option<Result<Vec<J>>>,
}

impl<J> Turn<'_, J> {
    fn end(mut self, result: Result<Vec<J>>) {
        self.result = Some(result);
    }
}

impl<J> Drop for Turn<'_, J> {
    fn drop(&mut self) {
        let panicked = || Err(Error::prepare("populate")(std::io::Error::other("a walker panicked")));
        let result = self.result.take().unwrap_or_else(panicked);
        let mut queue = self.pool.lock();
        queue.busy = queue.busy.saturating_sub(1);
        match result {
            Ok(jobs) => queue.jobs.extend(jobs),
            // The first refusal is the one to tell; those after it may follow from it.
            Err(error) => queue.error = queue.error.take().or(Some(error)),
        }
        // One job is for this thread, which comes for it at once; and to wake nobody costs a system call too.
        let news = queue.busy == 0 || queue.jobs.len() > 1 || queue.error.is_some();
        if news && queue.waiting > 0 {
            self.pool.ready.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::arithmetic_side_effects)]
    use super::*;

    #[test]
    fn every_job_is_done_once() {
        let split = |n: u32, sum: &mut u64| {
            *sum += 1;
            Ok(if n == 0 { Vec::new() } else { vec![n - 1; 3] })
        };
        let sums = run(7, || 0, split).unwrap();
        assert_eq!(sums.iter().sum::<u64>(), (3_u64.pow(8) - 1) / 2);
    }

    #[test]
    fn the_first_error_ends_it() {
        let fail = |n: u32, _: &mut ()| match n {
            5000 => Err(Error::denied("enough")),
            n => Ok(vec![n + 1, n + 1]),
        };
        assert!(matches!(run(0, || (), fail), Err(Error::Denied { .. })));
    }
}
