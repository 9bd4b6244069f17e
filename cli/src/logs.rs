//! `logs`: prints what a task has written.

use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;

use cofferdam::{Log, LogEntry, LogStream};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Failure;
use crate::state::Store;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Wait for more until the task ends
    #[arg(short, long)]
    follow: bool,
    /// Name of a task
    #[arg(value_name = "NAME")]
    name: String,
}

/// Prints the log of a task: standard output to standard output, standard error to standard error.
pub(crate) fn logs(args: &Args) -> Result<ExitCode, Failure> {
    let store = Store::open()?;
    let task = store.recover(&args.name)?;
    let mut log = task.log().map_err(|e| Failure::of(&args.name, e))?;
    let pidfd = task.pidfd().try_clone_to_owned();
    let pidfd = pidfd.map_err(|e| Failure::new(format!("fcntl(pidfd, F_DUPFD_CLOEXEC): {e}")))?;
    // Another call may have the task while this one waits.
    drop(task);
    loop {
        // Looked at before the log is read, so nothing that was written before the end is missed.
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        let ended = matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..));
        if !print(&mut log)? || ended || !args.follow {
            return Ok(ExitCode::SUCCESS);
        }
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::from(100u8));
    }
}

/// Prints all entries that there are. False if standard output is closed.
fn print(log: &mut Log) -> Result<bool, Failure> {
    while let Some(LogEntry { stream, bytes, .. }) = log.read()? {
        let written = match stream {
            LogStream::Stdout => std::io::stdout().write_all(&bytes).and_then(|()| std::io::stdout().flush()),
            LogStream::Stderr => std::io::stderr().write_all(&bytes),
        };
        if written.is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}
