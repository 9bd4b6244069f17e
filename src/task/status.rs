//! The exit status of a task, and the signals that can be sent to it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::notation::InvalidValue;

/// The exit status of a task. `Display` prints `exit status 1` or `signal 9 (out of memory)`.
///
/// ```
/// use cofferdam::ExitStatus;
///
/// fn verdict(status: ExitStatus) -> String {
///     match (status.code, status.signal) {
///         _ if status.oom_killed => "out of memory".into(),
///         (Some(0), _) => "accepted".into(),
///         (Some(code), _) => format!("exit code {code}"),
///         (None, Some(signal)) => format!("killed by signal {signal}"),
///         (None, None) => "exit status lost".into(),
///     }
/// }
/// assert_eq!(verdict(ExitStatus::exited(1)), "exit code 1");
/// assert_eq!(ExitStatus::signalled(15).shell_code(), 143);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExitStatus {
    /// Exit code of the main process, 0 to 255. `None` if a signal killed it.
    pub code: Option<i32>,
    /// Number of the signal that killed the main process. `None` if it exited.
    pub signal: Option<i32>,
    /// Whether the kernel's OOM killer killed at least one process of the task, by any memory limit. The process may be
    /// a child that the main process survived, so this can come with any code or signal.
    ///
    /// It comes from the counter of the task's cgroup, and is false if kills are not counted. [`Task::oom`] has the
    /// details.
    ///
    /// [`Task::oom`]: crate::Task::oom
    pub oom_killed: bool,
    /// Whether the status is unknown. Then `code` and `signal` are `None`.
    ///
    /// It happens if the caller ignores `SIGCHLD` or another of its threads reaped the task (`waitpid(-1)`), and init
    /// has not sent the status: there is no init, or another process killed it.
    pub lost: bool,
}

impl ExitStatus {
    const NONE: ExitStatus = ExitStatus { code: None, signal: None, oom_killed: false, lost: false };

    /// The status of a task that exited with `code`, 0 to 255. For tests of code that takes a status.
    pub const fn exited(code: i32) -> Self {
        ExitStatus { code: Some(code), ..Self::NONE }
    }

    /// The status of a task that a signal killed.
    pub const fn signalled(signal: i32) -> Self {
        ExitStatus { signal: Some(signal), ..Self::NONE }
    }

    /// The status of a task whose status was lost.
    pub const fn lost() -> Self {
        ExitStatus { lost: true, ..Self::NONE }
    }

    /// The same status with another [`oom_killed`](Self::oom_killed).
    pub const fn with_oom_killed(self, oom_killed: bool) -> Self {
        ExitStatus { oom_killed, ..self }
    }

    /// Converts the status word of `wait4(2)`.
    pub(crate) fn from_wait(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::exited((status >> 8) & 0xff),
            signal => Self::signalled(signal),
        }
    }

    /// Whether the exit code is 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// The status as one number, as in a shell: the exit code, or 128 plus the signal. -1 if it is lost.
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

/// A signal (`signal(7)`), 1 to 64.
///
/// ```
/// use cofferdam::Signal;
///
/// for name in ["SIGTERM", "TERM", "15"] {
///     assert_eq!(name.parse::<Signal>()?, Signal::TERM);
/// }
/// assert_eq!("SIGRTMIN+3".parse::<Signal>()?.number(), 37);
/// assert!("SIGNOPE".parse::<Signal>().is_err());
/// # Ok::<(), cofferdam::InvalidValue>(())
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

    /// The signal with this number. `None` if the number is not 1 to 64.
    pub fn new(number: i32) -> Option<Signal> {
        (1..=64).contains(&number).then_some(Signal(number))
    }

    /// The number of the signal.
    pub fn number(self) -> i32 {
        self.0
    }
}

impl FromStr for Signal {
    type Err = InvalidValue;

    /// Parses a name in upper case with or without `SIG`, `RTMIN+N` or `RTMAX-N` as the C library counts them, or a
    /// number from 1 to 64.
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let name = text.strip_prefix("SIG").unwrap_or(text);
        let plain = |digits: &str| digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
        let real_time = |rest: &str, sign: char, base: i32| match rest {
            "" => Some(base),
            rest => {
                let offset: i32 = rest.strip_prefix(sign).and_then(plain)?;
                let number = if sign == '+' { base.checked_add(offset) } else { base.checked_sub(offset) }?;
                (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number).then_some(number)
            }
        };
        let number = if let Some(rest) = name.strip_prefix("RTMIN") {
            real_time(rest, '+', libc::SIGRTMIN())
        } else if let Some(rest) = name.strip_prefix("RTMAX") {
            real_time(rest, '-', libc::SIGRTMAX())
        } else if text.starts_with(|c: char| c.is_ascii_digit()) {
            plain(text)
        } else {
            nix::sys::signal::Signal::from_str(&format!("SIG{name}")).ok().map(|signal| signal as i32)
        };
        let wanted = "a name such as TERM or SIGTERM, SIGRTMIN+N, or a number from 1 to 64";
        let refused = || InvalidValue::new(format!("{text:?} is not a signal: {wanted}"));
        number.and_then(Signal::new).ok_or_else(refused)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (nix::sys::signal::Signal::try_from(self.0), self.0.checked_sub(libc::SIGRTMIN())) {
            (Ok(signal), _) => f.write_str(signal.as_str()),
            (Err(_), Some(0)) => f.write_str("SIGRTMIN"),
            (Err(_), Some(offset @ 1..)) => write!(f, "SIGRTMIN+{offset}"),
            (Err(_), _) => write!(f, "signal {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_status_word_is_converted_to_a_code_or_a_signal() {
        assert_eq!(ExitStatus::from_wait(3 << 8), ExitStatus::exited(3));
        assert_eq!(ExitStatus::from_wait(15), ExitStatus::signalled(15));
        assert_eq!(ExitStatus::from_wait(0x80 | 6), ExitStatus::signalled(6));
        assert_eq!(ExitStatus::from_wait(3 << 8).shell_code(), 3);
        assert_eq!(ExitStatus::from_wait(15).shell_code(), 143);
        assert_eq!(ExitStatus::lost().shell_code(), -1);
    }

    #[test]
    fn signals_are_parsed_from_names_and_numbers() {
        for (text, number) in [
            ("SIGKILL", 9),
            ("KILL", 9),
            ("9", 9),
            ("64", 64),
            ("SIGRTMIN", 34),
            ("RTMIN+3", 37),
            ("SIGRTMAX", 64),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(text.parse::<Signal>().unwrap().number(), number, "{text}");
        }
        let wrong = [
            "",
            "SIG",
            "sigterm",
            "SIGSIGTERM",
            "0",
            "65",
            "+9",
            "-9",
            "9 ",
            "SIG9",
            "RTMIN+31",
            "RTMIN-1",
            "RTMIN++1",
            "RTMAX-31",
            "RTMAX+1",
            "RTMIN+99999999999",
            "NOPE",
        ];
        for text in wrong {
            let refused = text.parse::<Signal>().unwrap_err().to_string();
            assert!(refused.starts_with(&format!("{text:?} is not a signal")), "{refused}");
        }
        for number in 1..=64 {
            let signal = Signal::new(number).unwrap();
            if number < 32 || number >= libc::SIGRTMIN() {
                assert_eq!(signal.to_string().parse(), Ok(signal));
            }
        }
        assert_eq!(Signal::USR1.to_string(), "SIGUSR1");
        assert_eq!((Signal::new(0), Signal::new(65)), (None, None));
    }
}
