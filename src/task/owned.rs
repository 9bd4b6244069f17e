//! What there is of a sandbox that may have an owner: found, killed, and compared with what has its names now. Nothing is
//! locked, and nothing is removed.

use std::io;
use std::os::fd::AsFd;

use super::record::OwnedRecord;
use super::writer;
use crate::cgroup::Group;
use crate::error::{Error, Result};
use crate::rootfs::populate::OwnedRoot;
use crate::sys;
use crate::sys::lock::any_holder;

/// The parts of the sandbox, opened by this process.
#[derive(Debug)]
pub(super) struct Owned {
    pub record: Option<OwnedRecord>,
    pub group: Option<Group>,
    pub root: Option<OwnedRoot>,
}

impl Owned {
    /// Whether anything that was opened still has its name.
    pub(super) fn is_there(&self) -> io::Result<bool> {
        let Owned { record, group, root } = self;
        Ok(record.as_ref().map_or(Ok(false), OwnedRecord::is_there)?
            || group.as_ref().map_or(Ok(false), Group::is_there)?
            || root.as_ref().map_or(Ok(false), OwnedRoot::is_there)?)
    }

    /// Kills every process of the task: by the cgroup that was opened, else the process that writes the exit record with
    /// its descendants, else a process that has the root. Does not wait for their end.
    ///
    /// # Errors
    /// [`Error::Task`] with the refused call.
    pub(super) fn kill(&self) -> Result<()> {
        let Owned { record, group, root } = self;
        if let Some(group) = group.as_ref().filter(|group| group.paths().has_unit()) {
            return group.kill().map_err(Error::task("kill the cgroup"));
        }
        if let Some(record) = record {
            writer::kill(record.file.as_fd())?;
        }
        let killed = root.as_ref().map_or(Ok(()), kill_in);
        killed.map_err(Error::task("kill the processes in the root"))
    }

    /// A process that has locked a part of the sandbox.
    pub(super) fn owner_pid(&self) -> Option<i32> {
        let Owned { record, group, root } = self;
        let of_record = record.as_ref().and_then(|record| any_holder(record.file.as_fd()));
        let of_root = || root.as_ref().and_then(OwnedRoot::owner_pid);
        of_record.or_else(of_root).or_else(|| group.as_ref().and_then(Group::owner_pid))
    }
}

/// Kills a process that runs in the root.
fn kill_in(root: &OwnedRoot) -> io::Result<()> {
    let Some(pid) = root.process()? else { return Ok(()) };
    let process = match sys::pidfd_open(pid) {
        // EINVAL: the PID belongs to a thread now.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)) => return Ok(()),
        opened => opened?,
    };
    // The kernel may have reused the PID between the search and the open.
    if root.process()? != Some(pid) {
        return Ok(());
    }
    match sys::pidfd_signal(process.as_fd(), libc::SIGKILL) {
        Err(e) if e.raw_os_error() != Some(libc::ESRCH) => Err(e),
        _ => Ok(()),
    }
}
