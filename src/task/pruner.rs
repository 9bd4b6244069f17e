//! Removes stale sandboxes at an interval, in a thread of its own.

use std::error::Error as _;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::StaleSandbox;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::spec::Policy;
use crate::sys::thread::start;

/// A thread that finds and removes [stale sandboxes](StaleSandbox) at an interval, for a driver that runs for long.
/// Dropping the value ends the thread.
///
/// The first pass is made at once. A panic in a closure ends the pass, and the next one is made as usual. The thread
/// blocks all signals, and wakes up for a pass only. It is the only thread of the value, except while the root of a
/// stale sandbox is removed. A process that is forked from the caller has no such thread.
///
/// ```no_run
/// use cofferdam::cgroup::CgroupPath;
/// use cofferdam::{Host, Policy, PruneOptions, Pruner};
/// use std::collections::BTreeSet;
/// use std::sync::{Arc, Mutex};
///
/// // Directories and a cgroup that no other driver has.
/// let policy = Policy {
///     state_dir: Some("/var/lib/driver/tasks".into()),
///     temp_dir: Some("/var/lib/driver/roots".into()),
///     cgroup_parent: CgroupPath::new("driver.slice")?,
///     ..Policy::default()
/// };
/// // The ids of all handles that the driver has stored. It adds an id before it spawns or detaches the task.
/// let stored: Arc<Mutex<BTreeSet<String>>> = Arc::default();
/// let ids = Arc::clone(&stored);
/// let claimed = move |id: &str| ids.lock().is_ok_and(|ids| ids.contains(id));
/// let pruner = Pruner::start(&policy, &Host::probe()?, PruneOptions::default(), claimed, |pruned| eprintln!("{pruned}"))?;
/// // … the driver runs …
/// drop(pruner);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Pruner {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
    /// The process that has the thread: a forked child has a copy of this value, but no thread.
    process: u32,
}

/// When a [`Pruner`] removes what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneOptions {
    /// Time from the end of a pass to the start of the next one, at least a second. A minute by default.
    pub interval: Duration,
    /// As in [`StaleSandbox::find`]. [`StaleSandbox::GRACE`] by default.
    pub grace: Duration,
}

impl Default for PruneOptions {
    fn default() -> Self {
        PruneOptions { interval: Duration::from_secs(60), grace: StaleSandbox::GRACE }
    }
}

/// What a [`Pruner`] has done.
#[derive(Debug)]
#[non_exhaustive]
pub enum Pruned {
    /// It has removed a stale sandbox.
    Removed(StaleSandbox),
    /// It could not remove a stale sandbox, or not all of it: [`StaleSandbox::remove`] returned this error. The next pass
    /// tries again.
    Left {
        /// What was found of the sandbox before.
        stale: StaleSandbox,
        /// Why it stays.
        error: Error,
    },
    /// It could not search the directories of the policy: [`StaleSandbox::find`] returned this error. The next pass tries
    /// again.
    Unsearched(Error),
}

impl std::fmt::Display for Pruned {
    /// One line: what was done, with the sandbox, and the cause if it failed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (what, error) = match self {
            Pruned::Removed(stale) => return write!(f, "removed {stale}"),
            Pruned::Left { stale, error } => (format!("cannot remove {stale}"), error),
            Pruned::Unsearched(error) => ("cannot search for stale sandboxes".to_owned(), error),
        };
        write!(f, "{what}: {error}")?;
        error.source().map_or(Ok(()), |cause| write!(f, ": {cause}"))
    }
}

/// The shortest interval.
const SHORTEST: Duration = Duration::from_secs(1);

/// Whether the thread is to end.
#[derive(Debug, Default)]
struct Stop {
    asked: Mutex<bool>,
    changed: Condvar,
}

impl Pruner {
    /// Starts the thread. `claimed` is called in it with the id of each sandbox, and once more right before a stale one is
    /// removed; a sandbox that it returns true for stays. So a driver claims an id before it spawns, recovers or detaches
    /// the task, and gives up the claim after it has released it. `pruned` is called in the thread too, with everything
    /// that was removed and everything that failed.
    ///
    /// # Errors
    /// [`Error::Task`] if the thread cannot be started.
    pub fn start(
        policy: &Policy,
        host: &Host,
        options: PruneOptions,
        claimed: impl Fn(&str) -> bool + Send + 'static,
        mut pruned: impl FnMut(Pruned) + Send + 'static,
    ) -> Result<Pruner> {
        let stop = Arc::new(Stop::default());
        let (policy, host, stopped) = (policy.clone(), host.clone(), Arc::clone(&stop));
        let work = move || {
            let interval = options.interval.max(SHORTEST);
            loop {
                // What a pass holds is released if a closure panics. The panic hook has printed the message.
                let pass = || pass(&policy, &host, options.grace, &claimed, &mut pruned, &stopped);
                let _ = std::panic::catch_unwind(AssertUnwindSafe(pass));
                if stopped.within(interval) {
                    break;
                }
            }
        };
        let thread = start(Builder::new().name("cofferdam-prune".into()), work)
            .map_err(|(call, e)| Error::task(call)(e))?;
        Ok(Pruner { stop, thread: Some(thread), process: std::process::id() })
    }
}

/// Removes what is stale now and not claimed.
fn pass(
    policy: &Policy,
    host: &Host,
    grace: Duration,
    claimed: &impl Fn(&str) -> bool,
    pruned: &mut impl FnMut(Pruned),
    stop: &Stop,
) {
    let found = match StaleSandbox::find(policy, host, grace, |id| stop.is_asked() || claimed(id)) {
        Ok(found) => found,
        Err(error) => return pruned(Pruned::Unsearched(error)),
    };
    for stale in found {
        if stop.is_asked() {
            return;
        }
        // The owner of the claims may have taken this one since the search.
        if !claimed(stale.id()) {
            pruned(match stale.remove() {
                Ok(()) => Pruned::Removed(stale),
                Err(error) => Pruned::Left { stale, error },
            });
        }
    }
}

impl Stop {
    fn asked(&self) -> MutexGuard<'_, bool> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_asked(&self) -> bool {
        *self.asked()
    }

    fn ask(&self) {
        *self.asked() = true;
        self.changed.notify_all();
    }

    /// Sleeps for `time`, or until the thread is to end. Returns whether it is.
    fn within(&self, time: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.asked(), time, |asked| !*asked);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for Pruner {
    /// Ends the thread and waits for its end: at once between two passes, and in a pass after the sandbox that is being
    /// looked at or removed. In one of the two closures it does not wait, because that is the thread.
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        self.stop.ask();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic of the drop of a panic's payload would be an error.
            let _ = thread.join();
        }
    }
}
