//! So many walks at a time in one process, and no more: others wait.
//!
//! A walk keeps several threads busy in the file system; a driver that starts twenty tasks at once would have
//! them all wait for each other's locks there, and no task would be ready before the last one is.

use std::sync::{Condvar, Mutex, PoisonError};

/// Walks at a time.
const MOST: usize = 2;

static GATE: Gate = Gate::new(MOST);

/// Waits for a turn.
pub(super) fn enter() -> Turn<'static> {
    GATE.enter()
}

struct Gate {
    free: Mutex<usize>,
    left: Condvar,
}

/// The right to walk, until it is dropped.
pub(super) struct Turn<'a>(&'a Gate);

impl Gate {
    const fn new(free: usize) -> Self {
        Gate { free: Mutex::new(free), left: Condvar::new() }
    }

    fn enter(&self) -> Turn<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.left.wait_while(free, |n| *n == 0).unwrap_or_else(PoisonError::into_inner);
        *free = free.saturating_sub(1);
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = free.saturating_add(1);
        self.0.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn no_more_than_so_many_are_in_at_a_time_and_a_panic_lets_the_next_in() {
        let (gate, inside, most) = (Gate::new(2), AtomicUsize::new(0), AtomicUsize::new(0));
        let visit = |i: u32| {
            let _turn = gate.enter();
            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst).saturating_add(1), Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(2));
            inside.fetch_sub(1, Ordering::SeqCst);
            assert!(!i.is_multiple_of(5), "on purpose");
        };
        let panicked = std::thread::scope(|s| {
            let visit = &visit;
            let all: Vec<_> = (0..20).map(|i| s.spawn(move || visit(i))).collect();
            all.into_iter().map(|t| t.join()).filter(Result::is_err).count()
        });
        assert_eq!(panicked, 4);
        assert!(most.into_inner() <= 2);
        // All turns were given back, and two can be had at a time.
        let _both = (gate.enter(), gate.enter());
        assert_eq!(*gate.free.lock().unwrap(), 0);
    }
}
