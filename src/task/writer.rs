//! The processes of a stale task without a cgroup. The process that writes the exit record locks its file, so the kernel
//! names it, and no other process can be taken for it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::child::ends_within;
use crate::error::{Error, Result};
use crate::sys;
use crate::sys::lock::first_byte_holder;

/// How long the processes may take to end.
const END: Duration = Duration::from_secs(5);

/// The process that writes the record in this file, and its descendants. Empty if it has ended, or is not visible.
pub(super) fn members(record: BorrowedFd<'_>) -> io::Result<BTreeSet<i32>> {
    Ok(match writer(record)? {
        Some((pid, _)) => descendants(pid)?,
        None => BTreeSet::new(),
    })
}

/// Kills the process that writes the record and its descendants, and waits for their end. Does nothing if it has ended.
///
/// # Errors
/// [`Error::Task`] with the refused call, or with `TimedOut`.
pub(super) fn kill(record: BorrowedFd<'_>) -> Result<()> {
    let step = "kill the process that writes the exit record";
    let Some((pid, writer)) = writer(record).map_err(Error::task(step))? else { return Ok(()) };
    let listed = || descendants(pid).map_err(Error::task(step));
    let opened: Vec<(i32, OwnedFd)> =
        listed()?.into_iter().filter_map(|pid| Some((pid, sys::pidfd_open(pid).ok()?))).collect();
    // The kernel may have reused a PID between the list and the open. A process that lives and is listed again is one of
    // the task. The writer is last, because it records how the command has ended.
    let again = listed()?;
    for (_, process) in opened.iter().filter(|(other, _)| *other != pid && again.contains(other)) {
        end(process)?;
    }
    end(&writer)?;
    let all = opened.iter().filter(|(other, _)| again.contains(other)).map(|(_, process)| process);
    if all.chain([&writer]).all(|process| ends_within(process.as_fd(), END)) {
        return Ok(());
    }
    Err(Error::task::<io::Error>(step)(io::ErrorKind::TimedOut.into()))
}

/// Sends a SIGKILL. Does nothing if the process has ended.
fn end(process: &OwnedFd) -> Result<()> {
    match sys::pidfd_signal(process.as_fd(), libc::SIGKILL) {
        Err(e) if e.raw_os_error() != Some(libc::ESRCH) => Err(Error::task("pidfd_send_signal(SIGKILL)")(e)),
        _ => Ok(()),
    }
}

/// The process that writes the record, with a pidfd. `None` if it has ended, or is not visible in the mounted `/proc`.
fn writer(record: BorrowedFd<'_>) -> io::Result<Option<(i32, OwnedFd)>> {
    let Some(pid) = first_byte_holder(record)?.filter(|pid| *pid > 0) else { return Ok(None) };
    let pidfd = match sys::pidfd_open(pid) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)) => return Ok(None),
        opened => opened?,
    };
    // It holds the lock until its end, so it is the process that was opened.
    let same = first_byte_holder(record)? == Some(pid) && sys::proc_pid(pidfd.as_fd()) == Some(pid);
    Ok(same.then_some((pid, pidfd)))
}

/// The process and its descendants, by the mounted `/proc`.
fn descendants(first: i32) -> io::Result<BTreeSet<i32>> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for pid in sys::proc_pids()? {
        // A process that has ended meanwhile has no file.
        if let Ok(stat) = sys::stat(pid) {
            children.entry(stat.ppid).or_default().push(pid);
        }
    }
    let mut found = BTreeSet::new();
    let mut next = vec![first];
    while let Some(pid) = next.pop() {
        if found.insert(pid) {
            next.extend(children.get(&pid).into_iter().flatten());
        }
    }
    Ok(found)
}
