//! How a task ended, and the signals that it can be sent.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a task ended.
///
/// ```
/// # use cofferdam::ExitStatus;
/// # fn show(status: ExitStatus) {
/// match (status.code, status.signal) {
///     (Some(0), _) => println!("success"),
///     (Some(code), _) => println!("exit {code}"),
///     (_, Some(signal)) => println!("signal {signal}, killed for memory: {}", status.oom_killed),
///     _ => println!("nobody knows"),
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExitStatus {
    /// The code that it exited with, 0 to 255.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel's out-of-memory killer took at least one process of the task, by the counter of its cgroup:
    /// whoever's limit it was, and also when that was a child whose death the task survived, so it may come
    /// with any code or signal. False where nobody counts: see [`Task::oom`](crate::Task::oom), which says more.
    pub oom_killed: bool,
    /// True when the status was lost: it was reaped by somebody else in the caller (a
    /// `waitpid(-1)`, an ignored `SIGCHLD`) and there was no init to ask. Then `code` and `signal` are
    /// both `None`. It is never made up.
    pub lost: bool,
}

impl ExitStatus {
    const NONE: ExitStatus = ExitStatus { code: None, signal: None, oom_killed: false, lost: false };

    pub(crate) fn exited(code: i32) -> Self {
        ExitStatus { code: Some(code), ..Self::NONE }
    }

    pub(crate) fn signalled(signal: i32) -> Self {
        ExitStatus { signal: Some(signal), ..Self::NONE }
    }

    pub(crate) fn lost() -> Self {
        ExitStatus { lost: true, ..Self::NONE }
    }

    /// From the word of `wait4(2)`.
    pub(crate) fn from_wait(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::exited((status >> 8) & 0xff),
            signal => Self::signalled(signal),
        }
    }

    /// Whether it exited with 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// As a shell says it in one number: the code, 128 plus the signal, or -1 when it was lost.
    pub fn shell_code(&self) -> i32 {
        match (self.code, self.signal) {
            (Some(code), _) => code,
            (None, Some(signal)) => signal.saturating_add(128),
            (None, None) => -1,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit status {code}")?,
            (None, Some(signal)) => write!(f, "signal {signal}")?,
            (None, None) => write!(f, "exit status lost")?,
        }
        if self.oom_killed { write!(f, " (out of memory)") } else { Ok(()) }
    }
}

/// A signal (`signal(7)`), by number or by name.
///
/// ```
/// # use cofferdam::Signal;
/// assert_eq!("SIGTERM".parse::<Signal>().unwrap(), Signal::TERM);
/// assert!("SIGNOPE".parse::<Signal>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Signal(i32);

impl Signal {
    /// `SIGHUP`.
    pub const HUP: Signal = Signal(libc::SIGHUP);
    /// `SIGINT`.
    pub const INT: Signal = Signal(libc::SIGINT);
    /// `SIGQUIT`.
    pub const QUIT: Signal = Signal(libc::SIGQUIT);
    /// `SIGKILL`.
    pub const KILL: Signal = Signal(libc::SIGKILL);
    /// `SIGUSR1`.
    pub const USR1: Signal = Signal(libc::SIGUSR1);
    /// `SIGUSR2`.
    pub const USR2: Signal = Signal(libc::SIGUSR2);
    /// `SIGTERM`.
    pub const TERM: Signal = Signal(libc::SIGTERM);

    /// The signal of this number, 1 to 64.
    pub fn new(number: i32) -> Option<Signal> {
        (1..=64).contains(&number).then_some(Signal(number))
    }

    /// Its number.
    pub fn number(self) -> i32 {
        self.0
    }
}

impl FromStr for Signal {
    type Err = String;

    /// A name with its `SIG`, in upper case.
    fn from_str(name: &str) -> Result<Self, String> {
        let signal =
            nix::sys::signal::Signal::from_str(name).map_err(|_| format!("unknown signal {name:?}"))?;
        Ok(Signal(signal as i32))
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match nix::sys::signal::Signal::try_from(self.0) {
            Ok(signal) => f.write_str(signal.as_str()),
            Err(_) => write!(f, "signal {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_of_wait_is_read() {
        assert_eq!(ExitStatus::from_wait(3 << 8), ExitStatus::exited(3));
        assert_eq!(ExitStatus::from_wait(15), ExitStatus::signalled(15));
        assert_eq!(ExitStatus::from_wait(0x80 | 6), ExitStatus::signalled(6));
        assert_eq!(ExitStatus::from_wait(3 << 8).shell_code(), 3);
        assert_eq!(ExitStatus::from_wait(15).shell_code(), 143);
        assert_eq!(ExitStatus::lost().shell_code(), -1);
    }

    #[test]
    fn signals_have_names() {
        assert_eq!("SIGKILL".parse(), Ok(Signal::KILL));
        assert_eq!(Signal::USR1.to_string(), "SIGUSR1");
        assert_eq!(Signal::new(40).unwrap().to_string(), "signal 40");
        assert!("sigterm".parse::<Signal>().is_err());
        assert_eq!(Signal::new(0), None);
    }
}
