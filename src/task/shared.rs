//! What a task shares with its [`Events`](crate::Events): its end, and what the spawn made.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Ending, ExitStatus, RecordFile, Undo};
use crate::cgroup::{Life, Subject};
use crate::error::Result;
use crate::report::Report;

/// The shared part of a task. The task empties it when it is dropped, and its events refer to it weakly.
#[derive(Debug)]
pub(super) struct Shared {
    /// Held for short operations only. Locked before `undo`.
    ending: Mutex<Ending>,
    /// What the spawn made. Locked for reading while the last processes are killed, and for writing while the cgroups
    /// are removed. The root is removed without a lock.
    undo: RwLock<Undo>,
    pub(super) life: Arc<Life>,
}

impl Shared {
    pub(super) fn new(ending: Ending, undo: Undo, report: &Report) -> Arc<Shared> {
        let (ending, undo) = (Mutex::new(ending), RwLock::new(undo));
        Arc::new(Shared { ending, undo, life: Life::new(report) })
    }

    pub(super) fn ending(&self) -> MutexGuard<'_, Ending> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn undo(&self) -> RwLockReadGuard<'_, Undo> {
        self.undo.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn undo_mut(&self) -> RwLockWriteGuard<'_, Undo> {
        self.undo.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reaps the task if it has ended, with the lock that is held already.
    pub(super) fn reap(&self, ending: &mut Ending) -> Result<Option<ExitStatus>> {
        let known = ending.status.is_some();
        let record = || self.undo().exit_record().and_then(RecordFile::read);
        let status = ending.reap(record, || self.undo().oom().is_some())?;
        if let Some(ExitStatus { killed: true, .. }) = status.filter(|_| !known) {
            // An error is ignored: this process knows the status, and another one then finds none.
            self.undo().exit_record().and_then(|record| record.write_killed().ok());
        }
        status.into_iter().for_each(|status| self.life.exited(status));
        Ok(status)
    }
}

impl Subject for Shared {
    fn exit_status(&self) -> Option<ExitStatus> {
        self.reap(&mut self.ending()).ok().flatten()
    }
}
