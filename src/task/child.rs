//! The cloned process of a task: reaping it, and what init says of the task's end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::reaper::reap_later;
use crate::status::{Deadline, ExitStatus, Lost, Rusage};
use crate::step::wire::{End, RECORD, Record};
use crate::sys::{self, Ended};

/// The cloned process, and the process that executes the command if it is another one. Dropping it kills and reaps the
/// cloned process.
#[derive(Debug)]
pub(crate) struct Child {
    init: OwnedFd,
    task: Option<OwnedFd>,
    /// The socket to init. `None` for a recovered task, which is no child of this process.
    status: Option<OwnedFd>,
    /// Why the status is unknown if a recovered task has ended without an exit record.
    lost: Lost,
    /// Whether the process was reaped or is no longer owned.
    left: bool,
    /// Whether the process has joined a task.
    joined: bool,
}

/// A cloned process that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reaped {
    pub status: ExitStatus,
    /// When it ended; `None` for a process that this one does not watch.
    pub ended: Option<SystemTime>,
    pub usage: Option<Rusage>,
    /// Whether the status is in init's record: the main process had ended before init did.
    pub recorded: bool,
}

impl Child {
    /// A process that was cloned, and that joins a task if `joined`.
    pub(crate) fn new(init: OwnedFd, status: OwnedFd, joined: bool) -> Self {
        Child { init, task: None, status: Some(status), lost: Lost::Reaped, left: false, joined }
    }

    /// The processes of a recovered task. `init` polls readable when it has ended. A drop does not kill it.
    pub(super) fn recovered(init: OwnedFd, task: Option<OwnedFd>, lost: Lost) -> Self {
        Child { init, task, status: None, lost, left: true, joined: false }
    }

    /// The socket to init.
    ///
    /// # Errors
    /// `EPIPE` for a recovered task, which has none.
    pub(crate) fn status(&self) -> io::Result<BorrowedFd<'_>> {
        self.status.as_ref().map(AsFd::as_fd).ok_or_else(|| io::Error::from_raw_os_error(libc::EPIPE))
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.init.as_fd()
    }

    /// The process is replaced by its copy, which init has made before it exited.
    pub(crate) fn continues_as(&mut self, copy: OwnedFd) {
        if sys::wait_pidfd(self.pidfd(), true, true).is_err() {
            end(self.pidfd());
        }
        self.init = copy;
    }

    /// Sets the pidfd of the process that executes the command, as init has sent it.
    pub(crate) fn runs_as(&mut self, task: Option<OwnedFd>) {
        self.task = task;
    }

    /// The command of a process that has joined a task runs. If no process stays beside it, none is asked to end it.
    pub(super) fn has_started(&mut self) {
        self.joined &= self.task.is_some();
    }

    /// The process that executes the command.
    pub(crate) fn main(&self) -> BorrowedFd<'_> {
        self.task.as_ref().unwrap_or(&self.init).as_fd()
    }

    /// Whether an init stays beside the process that executes the command.
    pub(super) fn has_init(&self) -> bool {
        self.task.is_some()
    }

    /// Reaps the cloned process if it has ended. `None` while it runs.
    pub(crate) fn reap(&mut self) -> io::Result<Option<Reaped>> {
        if self.status.is_none() {
            return Ok(sys::has_ended(self.pidfd())?.then(|| Reaped {
                status: ExitStatus::lost(self.lost),
                ended: None,
                usage: None,
                recorded: false,
            }));
        }
        let ended = match sys::wait_pidfd(self.pidfd(), false, true) {
            Ok(None) => return Ok(None),
            Ok(ended) => ended,
            // Another thread reaped it, or the caller ignores SIGCHLD. Only init's record has the status.
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => None,
            Err(e) => return Err(e),
        };
        self.left = true;
        let (ended, usage) = (ended.map(|(ended, _)| ended), ended.map(|(_, usage)| Rusage::from(usage)));
        let recorded = self.record();
        self.kill_main();
        self.reap_orphan();
        let (recorded, time) = recorded.map_or((None, None), |(status, time)| (Some(status), time));
        let status = recorded.or(ended.map(ExitStatus::from)).unwrap_or(ExitStatus::lost(self.lost));
        let ended = Some(time.unwrap_or_else(SystemTime::now));
        Ok(Some(Reaped { status, ended, usage, recorded: recorded.is_some() }))
    }

    /// The exit status and the time of the end in init's records. `None` if init did not stay or was killed.
    fn record(&self) -> Option<(ExitStatus, Option<SystemTime>)> {
        loop {
            if let Some(end) = self.next_record()?.end() {
                let time = match self.next_record() {
                    Some(Record::EndedAt { nanoseconds }) => {
                        UNIX_EPOCH.checked_add(Duration::from_nanos(nanoseconds))
                    }
                    _ => None,
                };
                return Some((end.into(), time));
            }
        }
    }

    /// The next record that init has sent. `None` if there is none.
    fn next_record(&self) -> Option<Record> {
        let mut buffer = [0u8; RECORD];
        let (n, _) = sys::recv_with_fd(self.status().ok()?, &mut buffer, false).ok()?;
        Record::decode(buffer.get(..n)?).ok()
    }

    /// Kills the process and waits for its end, without reaping it. Whether it has ended.
    pub(super) fn kill(&self) -> bool {
        self.kill_main();
        if self.joined {
            // Init sees the end of the stream, kills and reaps the main process, and exits. If init were killed first, a
            // zombie would stay in the task's PID namespace until the host's init reaps it.
            let _ = self.status().and_then(sys::shut_down_sending);
            ends_within(self.pidfd(), REAPING);
        }
        kill(self.pidfd())
    }

    /// Kills and reaps the process, unless it was reaped or is no longer owned.
    pub(crate) fn end(&mut self) {
        if !self.left {
            let ended = self.kill();
            self.reap_killed(ended);
        }
    }

    /// Reaps the process, which was killed, unless it was reaped. If it has not `ended`, it is reaped later.
    pub(super) fn reap_killed(&mut self, ended: bool) {
        if !self.left {
            reap(self.pidfd(), ended);
            if self.joined {
                self.end_copy();
            }
            self.reap_orphan();
            self.left = true;
        }
    }

    /// Kills and reaps the copy in which init continued, if this process has not read of it. Init has ended.
    fn end_copy(&self) {
        let mut buffer = [0u8; RECORD];
        while let Ok((n, fd)) = self.status().and_then(|s| sys::recv_with_fd(s, &mut buffer, false)) {
            match Record::decode(buffer.get(..n).unwrap_or_default()) {
                Ok(Record::Copied { pid }) => {
                    let copy = fd.or_else(|| sys::own_child(pid));
                    copy.into_iter().for_each(|copy| end(copy.as_fd()));
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    /// Kills the process that executes the command. The end of init ends it too only if init is PID 1 of its PID namespace.
    fn kill_main(&self) {
        let _ = self.task.as_ref().map(|task| sys::pidfd_signal(task.as_fd(), libc::SIGKILL));
    }

    /// Reaps the process that executes the command, if init has ended before it, and the kernel has made it a child of this
    /// process: that is PID 1 of a PID namespace, or has asked for orphans (`PR_SET_CHILD_SUBREAPER`).
    fn reap_orphan(&self) {
        if let Some(main) = self.task.as_ref().map(AsFd::as_fd)
            && let Ok(None) = sys::wait_pidfd(main, false, true)
        {
            reap_later(main);
        }
    }

    /// Gives up the process: a drop does not kill it.
    pub(super) fn leave(&mut self) {
        self.left = true;
    }

    /// Whether the process was reaped or is no longer owned.
    pub(super) fn has_left(&self) -> bool {
        self.left
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

/// How long init may take to reap the main process, which was killed.
pub(super) const REAPING: Duration = Duration::from_secs(1);

/// How long to wait for the end of a process that was sent a SIGKILL. On v1 it does not end while a cgroup above is
/// frozen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Kills and reaps a process.
pub(crate) fn end(pidfd: BorrowedFd<'_>) {
    reap(pidfd, kill(pidfd));
}

/// Kills a process and waits for its end. Whether it has ended. If the kernel refuses the kill, it does not wait, because
/// the process may never end.
fn kill(pidfd: BorrowedFd<'_>) -> bool {
    let killed = match sys::pidfd_signal(pidfd, libc::SIGKILL) {
        Err(e) => e.raw_os_error() == Some(libc::ESRCH),
        Ok(()) => true,
    };
    killed && ends_within(pidfd, PATIENCE)
}

/// Reaps a process if it has `ended`. Otherwise, or if the kernel refuses to, it is reaped later.
pub(crate) fn reap(pidfd: BorrowedFd<'_>, ended: bool) {
    let reaped = || match sys::wait_pidfd(pidfd, true, true) {
        // The caller ignores SIGCHLD, or has reaped it.
        Err(e) => e.raw_os_error() == Some(libc::ECHILD),
        Ok(_) => true,
    };
    if !ended || !reaped() {
        reap_later(pidfd);
    }
}

/// Waits for the end of a process, which is not reaped. Whether it has ended.
pub(crate) fn ends_within(pidfd: BorrowedFd<'_>, time: Duration) -> bool {
    Instant::now().checked_add(time).is_none_or(|until| sys::poll_until(pidfd, until).is_ok())
}

impl From<Ended> for ExitStatus {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Code(code) => ExitStatus::exited(code),
            Ended::Signal { number, core_dumped } => {
                ExitStatus { core_dumped, ..ExitStatus::signalled(number) }
            }
        }
    }
}

impl From<End> for ExitStatus {
    fn from(end: End) -> Self {
        match end {
            End::Status(status) => ExitStatus::from_wait(status),
            End::Deadline => ExitStatus::at_deadline(Deadline::Wall),
            End::CpuDeadline => ExitStatus::at_deadline(Deadline::Cpu),
            End::NotExecuted => ExitStatus::lost(Lost::NotExecuted),
            End::Killed => ExitStatus::signalled(libc::SIGKILL).with_killed(true),
        }
    }
}
