//! The undo list: everything that a spawn made on the host, removed in reverse order. It is the rollback of a failed
//! spawn and the teardown of a task.

use std::io;

use super::record::{RecordFile, lock_cgroup};
use crate::cgroup::Group;
use crate::cgroup::Oom;
use crate::cgroup::stats::Stats;
use crate::error::{Error, Result};
use crate::rootfs::populate::TempRoot;
use crate::step::Kernel;
use crate::sys::lock::Locked;

/// The cause of the error of a step on a task that was detached.
pub(super) const DETACHED: &str = "the task was detached: recover it by its handle";

/// The undo list. Dropping it undoes everything, in the order of the fields: the processes in the cgroups use the root.
#[derive(Debug, Default)]
pub(crate) struct Undo {
    cgroups: Option<Box<Group>>,
    root: Option<TempRoot>,
    /// The lock on the directory that overlays write to. It is released last.
    upper: Option<Locked>,
    /// The file of the exit record. Its lock keeps other processes from recovering the task.
    record: Option<RecordFile>,
    /// Without that file, a lock on the task's cgroup does the same.
    claim: Option<Locked>,
    /// The OOM kills, as last read before the cgroups were removed.
    oom: Option<Oom>,
    /// The resource usage, read after the last process had ended.
    used: Option<Result<Stats, (String, io::Error)>>,
}

impl Undo {
    /// Adds a temporary root that was made.
    pub(crate) fn temp_root(&mut self, root: TempRoot) {
        self.root = Some(root);
    }

    /// Adds the file of the exit record.
    pub(crate) fn record(&mut self, record: RecordFile) {
        self.record = Some(record);
    }

    /// The file of the exit record, if there is one and it was not removed.
    pub(crate) fn exit_record(&self) -> Option<&RecordFile> {
        self.record.as_ref()
    }

    /// If the task has no exit record, locks its cgroup, so that no other process recovers it. Does nothing if this process
    /// has locked the cgroup already.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the refused call.
    pub(crate) fn claim_cgroup(&mut self) -> Result<()> {
        if let (None, None, Some(group)) = (self.exit_record(), &self.claim, self.group()) {
            self.claim = lock_cgroup(group).map_err(Error::prepare("flock(cgroup.procs)"))?;
        }
        Ok(())
    }

    /// Adds the lock on the directory that overlays write to.
    pub(crate) fn upper(&mut self, lock: Locked) {
        self.upper = Some(lock);
    }

    /// Releases the lock on the directory that overlays write to, and removes the exit record, unless something else could
    /// not be removed.
    ///
    /// # Errors
    /// [`Error::Task`] if the file of the record could not be removed. It then stays in the list.
    pub(super) fn remove_last(&mut self) -> Result<()> {
        if self.cgroups.is_none() && self.root.is_none() {
            self.upper = None;
            self.record.as_mut().map_or(Ok(()), RecordFile::remove)?;
            (self.record, self.claim) = (None, None);
        }
        Ok(())
    }

    /// Adds cgroups, which may not all exist yet.
    pub(crate) fn cgroups(&mut self, group: Group) {
        self.cgroups = Some(Box::new(group));
    }

    /// Takes cgroups that another process has removed out of the list, with the lock on them: it may be on those of a new
    /// task.
    pub(crate) fn lose_cgroups(&mut self) {
        self.leave_cgroups();
        self.claim = None;
    }

    fn leave_cgroups(&mut self) {
        if let Some(group) = self.cgroups.take() {
            group.into_paths();
        }
    }

    /// The cgroups; `None` if there are none or they were removed.
    pub(crate) fn group(&self) -> Option<&Group> {
        self.cgroups.as_deref()
    }

    /// Like [`group`](Self::group), for changes.
    pub(crate) fn group_mut(&mut self) -> Option<&mut Group> {
        self.cgroups.as_deref_mut()
    }

    /// The temporary root; `None` if there is none or it was removed.
    pub(crate) fn root(&self) -> Option<&TempRoot> {
        self.root.as_ref()
    }

    /// The OOM kills in the task: current, or as last read.
    pub(crate) fn oom(&self) -> Option<Oom> {
        self.group().and_then(Group::oom).or_else(|| self.oom.clone())
    }

    /// The resource usage of the task: current, or as read after its end. `None` if the cgroups are not, or no longer, in the
    /// list.
    pub(crate) fn stats(&self) -> Result<Option<Stats>> {
        match (&self.used, self.group()) {
            (Some(Ok(used)), _) => Ok(Some(used.clone())),
            (Some(Err((step, source))), None) => Err(Error::Task {
                step: step.clone(),
                source: source.raw_os_error().map_or_else(
                    || io::Error::new(source.kind(), source.to_string()),
                    io::Error::from_raw_os_error,
                ),
            }),
            (_, Some(group)) => group.stats().map(Some),
            (None, None) => Ok(None),
        }
    }

    /// Kills all processes in the cgroups, and waits for their end.
    pub(crate) fn end_processes(&self) {
        if let Some(group) = self.group() {
            group.kill_and_wait(&Kernel::real());
        }
    }

    /// Removes the cgroups, whose processes have ended. Reads the OOM kills and the resource usage before.
    ///
    /// # Errors
    /// [`Error::Task`] with every directory that could not be removed. The cgroups then stay in the list.
    pub(crate) fn remove_cgroups(&mut self) -> Result<()> {
        let Some(group) = &mut self.cgroups else { return Ok(()) };
        self.oom = group.oom().or(self.oom.take());
        self.used.get_or_insert_with(|| match group.stats() {
            Ok(used) => Ok(used),
            Err(Error::Task { step, source }) => Err((step, source)),
            Err(e) => Err(("read the cgroup's counters".into(), io::Error::other(e.to_string()))),
        });
        group.remove()?;
        self.cgroups = None;
        Ok(())
    }

    /// Takes the temporary root out of the list.
    pub(crate) fn take_root(&mut self) -> Option<TempRoot> {
        self.root.take()
    }

    /// Empties the list without undoing anything, for a detached task whose first process has this PID.
    pub(crate) fn forget(&mut self, pid: Option<i32>) {
        self.upper = None;
        self.leave_cgroups();
        if let Some(root) = self.root.take() {
            root.leave_to(pid);
        }
        // Last: another process may recover the task from here on.
        self.claim = None;
        if let Some(record) = self.record.take() {
            record.leave();
        }
    }
}

/// Merges two results. The error has the source of the first one and the steps of both.
pub(super) fn both(one: Result<()>, other: Result<()>) -> Result<()> {
    match (one, other) {
        (Err(Error::Task { step, source }), Err(Error::Task { step: then, source: why })) => {
            Err(Error::Task { step: format!("{then} = {why}, {step}"), source })
        }
        (one, other) => one.and(other),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::io;

    use super::*;

    #[test]
    fn two_errors_are_merged_into_one_that_names_both_steps() {
        let fail = |step: &str, errno| Err(Error::task::<nix::errno::Errno>(step)(errno));
        let (group, root) = (nix::errno::Errno::EBUSY, nix::errno::Errno::EPERM);
        let error = both(fail("rmdir(\"/g\")", group), fail("unlinkat(\"/r\")", root)).unwrap_err();
        assert!(error.to_string().starts_with("unlinkat(\"/r\") = Operation not permitted"), "{error}");
        assert!(error.to_string().ends_with(", rmdir(\"/g\")"), "{error}");
        assert_eq!(error.source().unwrap().to_string(), io::Error::from(group).to_string());
        assert_eq!(both(Ok(()), fail("r", root)).unwrap_err().to_string(), "r");
        assert_eq!(both(fail("g", group), Ok(())).unwrap_err().to_string(), "g");
    }
}
