//! Asks a file system that another process or machine serves whether it answers.
//!
//! A call on such a file system waits for its server. If the server does not answer, the caller's thread would not return,
//! and a thread cannot be given up. So a process of its own makes the call. It has none of the caller's descriptors. If it
//! does not end in time, it is killed. The kernel lets it end when the server answers or the file system is unmounted.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use super::clone;
use crate::sys;
use crate::task::{ends_within, reap};

/// How long to wait for the end of the process that was killed.
const END: Duration = Duration::from_millis(100);

/// Returns when the file system at `path` has answered, with success or an error.
///
/// # Errors
/// `TimedOut` if it has not answered then, or the refused call.
pub(crate) fn answers(path: &Path, until: Instant) -> io::Result<()> {
    let asked = clone::ask(path)?;
    let waited = sys::poll_until(asked.as_fd(), until);
    let ended = waited.is_ok() || {
        let _ = sys::pidfd_signal(asked.as_fd(), libc::SIGKILL);
        ends_within(asked.as_fd(), END)
    };
    reap(asked.as_fd(), ended);
    waited
}
