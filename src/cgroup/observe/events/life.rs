//! Events of a task that do not come from its cgroup: the start, a control that does not hold, changed limits, the exit.
//!
//! As with the kernel's counters, they are states that are compared with what was reported. So every [`Events`] value
//! reports all of them, however late it is made, and nothing is kept for a value that is not read.
//!
//! [`Events`]: super::Events

use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Event;
use crate::error::{Error, Result};
use crate::report::Report;
use crate::status::ExitStatus;

/// A task whose exit status can be asked for.
pub(crate) trait Subject: Debug + Send + Sync {
    /// The exit status. `None` while the main process runs, and if the kernel refuses to wait.
    fn exit_status(&self) -> Option<ExitStatus>;
}

/// The states of a task that its events are made of.
#[derive(Debug)]
pub(crate) struct Life {
    degraded: Option<Event>,
    changes: Mutex<Changes>,
}

#[derive(Debug, Default)]
struct Changes {
    updates: u64,
    /// The report of the last update.
    report: Report,
    exited: Option<ExitStatus>,
    listeners: Vec<Weak<EventFd>>,
}

impl Life {
    /// The life of a task that has started with this report.
    pub(crate) fn new(report: &Report) -> Arc<Life> {
        let (weakened, missing) = (report.weakened, report.missing);
        let controls = weakened | missing;
        let degraded = || Event::Degraded { weakened, missing, why: report.why(controls) };
        Arc::new(Life {
            degraded: (!controls.is_empty()).then(degraded),
            changes: Mutex::new(Changes::default()),
        })
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a change of the limits, and wakes the listeners.
    pub(crate) fn updated(&self, report: &Report) {
        let mut changes = self.changes();
        changes.updates = changes.updates.saturating_add(1);
        changes.report = report.clone();
        changes.listeners.retain(|listener| {
            // The counter of the eventfd cannot be full: it is read at each event.
            listener.upgrade().is_some_and(|listener| listener.write(1).is_ok())
        });
    }

    /// Sets the exit status.
    pub(crate) fn exited(&self, status: ExitStatus) {
        self.changes().exited = Some(status);
    }
}

/// What one [`Events`](super::Events) value has reported of a life.
#[derive(Debug)]
pub(super) struct Follower {
    life: Arc<Life>,
    subject: Weak<dyn Subject>,
    notice: Arc<EventFd>,
    started: bool,
    degraded: bool,
    updates: u64,
    exited: bool,
}

impl Follower {
    pub(super) fn new(life: &Arc<Life>, subject: Weak<dyn Subject>) -> Result<Follower> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let notice = Arc::new(EventFd::from_flags(flags).map_err(Error::task("eventfd2"))?);
        life.changes().listeners.push(Arc::downgrade(&notice));
        let life = Arc::clone(life);
        Ok(Follower { life, subject, notice, started: false, degraded: false, updates: 0, exited: false })
    }

    /// Polls readable after a change of the limits.
    pub(super) fn notice(&self) -> &EventFd {
        &self.notice
    }

    /// The next event that does not wait for the end.
    pub(super) fn next(&mut self) -> Option<Event> {
        if !std::mem::replace(&mut self.started, true) {
            return Some(Event::Started);
        }
        if !std::mem::replace(&mut self.degraded, true) && self.life.degraded.is_some() {
            return self.life.degraded.clone();
        }
        let changes = self.life.changes();
        let updates = changes.updates.saturating_sub(self.updates);
        self.updates = changes.updates;
        (updates > 0).then(|| Event::LimitsUpdated { updates, report: changes.report.clone() })
    }

    /// The exit, if it has not been reported.
    pub(super) fn exit(&mut self) -> Option<Event> {
        if self.exited {
            return None;
        }
        let known = self.life.changes().exited;
        let status = known.or_else(|| self.subject.upgrade()?.exit_status())?;
        self.exited = true;
        Some(Event::Exited { status })
    }

    /// Whether the exit may still be reported.
    pub(super) fn awaits_exit(&self) -> bool {
        !self.exited && self.subject.strong_count() > 0
    }
}
