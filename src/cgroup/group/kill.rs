//! Killing every process in a cgroup.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::freeze::Frozen;
use crate::cgroup::fs::{Backoff, pids, write_at};

/// Sends SIGKILL to every process in `dir` and below.
///
/// Writes `cgroup.kill` (Linux 5.14), which includes processes that are being forked, and returns at once. If that file
/// does not exist, this function freezes the cgroup (v1 freezer; v2 since 5.2) so that no process can fork, kills each
/// process, and thaws the cgroup so that they can die. It repeats this until no process is left or `timeout` has
/// passed. It never signals the caller, PID 1, or processes outside the caller's PID namespace (which are listed as 0).
///
/// # Errors
/// `TimedOut` if processes are left; otherwise the kernel's error. If writing `cgroup.kill` fails with `ENODEV`, the
/// cgroup was removed meanwhile, and the function succeeds.
pub(super) fn kill_all(dir: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    match write_at(dir, "cgroup.kill", "1") {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => kill_each(dir, timeout),
        done => done,
    }
}

pub(in crate::cgroup) fn kill_each(dir: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    let me = Pid::this();
    let mut backoff = Backoff::new(timeout);
    loop {
        let frozen = Frozen::new(dir);
        let mut targets = pids(dir)?;
        targets.retain(|pid| pid.as_raw() > 1 && *pid != me);
        for pid in &targets {
            match kill(*pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => return Err(e.into()),
            }
        }
        drop(frozen);
        if targets.is_empty() {
            return Ok(());
        }
        if !backoff.pause() {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}
