//! Signals to this process, which are forwarded to the command that it waits for.
//!
//! The command has a session of its own, so the terminal sends the signals of its keys only to this process.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use cofferdam::{Error, ExitStatus, Signal, SignalTarget, Task};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal as Number, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{getpgrp, tcgetpgrp};

use crate::Failure;

/// The signals that ask this process to end.
const ENDING: [Number; 4] = [Number::SIGHUP, Number::SIGINT, Number::SIGQUIT, Number::SIGTERM];

/// The signals that are blocked and read from a signalfd.
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals.
    pub(crate) fn block() -> Result<Signals, Failure> {
        let set: SigSet = [
            Number::SIGHUP,
            Number::SIGINT,
            Number::SIGQUIT,
            Number::SIGTERM,
            Number::SIGUSR1,
            Number::SIGUSR2,
            Number::SIGTSTP,
            Number::SIGWINCH,
        ]
        .into_iter()
        .collect();
        set.thread_block().map_err(|e| Failure::new(format!("rt_sigprocmask: {e}")))?;
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map(Signals)
            .map_err(|e| Failure::new(format!("signalfd4: {e}")))
    }

    /// The next signal. `None` if there is none.
    pub(crate) fn next(&self) -> Option<Number> {
        let info = self.0.read_signal().ok().flatten()?;
        i32::try_from(info.ssi_signo).ok().and_then(|number| Number::try_from(number).ok())
    }

    /// Refuses to go on if a signal has arrived that asks this process to end.
    pub(crate) fn check_interrupted(&self) -> Result<(), Failure> {
        match std::iter::from_fn(|| self.next()).find(|signal| ENDING.contains(signal)) {
            Some(signal) => Err(Failure::new(format!("interrupted by {signal}: the task was removed"))),
            None => Ok(()),
        }
    }

    /// Waits for the end of the command, and forwards signals meanwhile. `reads` says whether the command reads the
    /// caller's terminal.
    pub(crate) fn wait(&self, task: &Task, reads: bool) -> Result<ExitStatus, Failure> {
        loop {
            if let Some(status) = task.try_wait()? {
                return Ok(status);
            }
            let mut fds =
                [PollFd::new(task.pidfd(), PollFlags::POLLIN), PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::NONE);
            while let Some(signal) = self.next() {
                match signal {
                    Number::SIGTSTP => self.suspend(task, reads)?,
                    // Without a pseudo-terminal, the command has no window.
                    Number::SIGWINCH => {}
                    signal => forward(task, signal)?,
                }
            }
        }
    }

    /// Stops the command and this process, as Ctrl-Z stops a foreground job. Returns when this process was continued and
    /// has continued the command. `reads` says whether the command reads the caller's terminal.
    ///
    /// The terminal stops a background job that reads it (SIGTTIN), but not the command, which is in another session. So
    /// a command that may read it is continued only in the foreground, or to get a signal that ends it.
    pub(crate) fn suspend(&self, task: &Task, reads: bool) -> Result<(), Failure> {
        if task.status()?.is_some() {
            return Ok(());
        }
        // Without a cgroup there is no freezer.
        let frozen = task.freeze().is_ok();
        if !frozen {
            send(task, Signal::STOP, SignalTarget::All)?;
            // A process that reads the terminal would still take what is typed for the shell.
            let begun = Instant::now();
            while !task.pid().is_none_or(is_stopped) && begun.elapsed() < STOPPING {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let mut arrived: Vec<Number> = Vec::new();
        let mut stop = |signal| {
            raise(signal).map_err(|e| Failure::new(format!("raise({signal}): {e}")))?;
            arrived.extend(std::iter::from_fn(|| self.next()));
            let ends = arrived.iter().any(|signal| ENDING.contains(signal));
            Ok::<_, Failure>(reads && !ends && is_in_background())
        };
        let mut again = stop(Number::SIGSTOP)?;
        while again {
            // The kernel does not stop an orphaned process group by SIGTTIN.
            again = stop(Number::SIGTTIN)? && stop(Number::SIGSTOP)?;
        }
        match frozen {
            true => task.thaw()?,
            false => send(task, Signal::CONT, SignalTarget::All)?,
        }
        // The caller of this function sets the size of the window.
        let is_own = |signal: &Number| matches!(signal, Number::SIGTSTP | Number::SIGWINCH);
        let mut forwarded = arrived.into_iter().filter(|signal| !is_own(signal));
        forwarded.try_for_each(|signal| forward(task, signal))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Forwards a signal. Those of the terminal's keys go to the process group of the command, as to a foreground job.
pub(crate) fn forward(task: &Task, signal: Number) -> Result<(), Failure> {
    let Some(number) = Signal::new(signal as i32) else { return Ok(()) };
    match signal {
        Number::SIGINT | Number::SIGQUIT => send(task, number, SignalTarget::Group),
        _ => Ok(task.signal(number)?),
    }
}

/// Whether standard input is the terminal of this process's session, and another job is in the foreground there.
pub(crate) fn is_in_background() -> bool {
    tcgetpgrp(std::io::stdin()).is_ok_and(|foreground| foreground != getpgrp())
}

/// Signals several processes, or the main process alone if the others cannot be found.
fn send(task: &Task, signal: Signal, target: SignalTarget) -> Result<(), Failure> {
    match task.signal_to(signal, target) {
        Err(Error::Task { source, .. }) if source.kind() == ErrorKind::Unsupported => {
            Ok(task.signal(signal)?)
        }
        sent => Ok(sent?),
    }
}

/// How long the processes of the command may take to stop.
const STOPPING: Duration = Duration::from_secs(1);

/// Whether a process and its descendants are stopped or have ended (`proc_pid_stat(5)`).
fn is_stopped(pid: i32) -> bool {
    let read = |file: String| std::fs::read_to_string(file).unwrap_or_default();
    let stat = read(format!("/proc/{pid}/stat"));
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    let children = read(format!("/proc/{pid}/task/{pid}/children"));
    matches!(state, None | Some('T' | 't' | 'Z' | 'X'))
        && children.split_whitespace().filter_map(|pid| pid.parse().ok()).all(is_stopped)
}
