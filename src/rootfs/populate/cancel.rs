//! The handle that ends a population from another thread.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Progress;

/// Ends the population of a root from another thread: [`Sandbox::cancel`](crate::Sandbox::cancel).
///
/// All clones are one handle. Once cancelled, it stays cancelled: a later spawn with it populates nothing.
///
/// ```no_run
/// use cofferdam::{Cancel, Error, Method, Sandbox};
///
/// let cancel = Cancel::new();
/// let sandbox = Sandbox::command("make").populate(Method::Copy).cancel(&cancel);
/// let spawning = std::thread::spawn(move || sandbox.spawn().map(drop));
/// cancel.cancel();
/// if let Ok(Err(Error::Cancelled)) = spawning.join() {
///     println!("cancelled; nothing is left");
/// }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A handle that is not cancelled.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Ends every population that has this handle. They stop before the next entry, or within a large file before the
    /// next 8 MiB. It does not wait for that.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The callback for the progress of a population. `Break` cancels the population.
pub(crate) type ProgressFn<'a> = dyn Fn(Progress) -> ControlFlow<()> + Sync + 'a;

/// How the caller of a population follows and ends it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Watch<'a> {
    pub progress: Option<&'a ProgressFn<'a>>,
    pub cancel: Option<&'a Cancel>,
}
