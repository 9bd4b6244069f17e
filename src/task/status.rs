//! How a task ended, and the signals that it can be sent.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::notation::InvalidValue;

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

    /// The status of a task that exited with `code`, 0 to 255: for tests of code that takes one.
    pub const fn exited(code: i32) -> Self {
        ExitStatus { code: Some(code), ..Self::NONE }
    }

    /// The status of a task that a signal ended.
    pub const fn signalled(signal: i32) -> Self {
        ExitStatus { signal: Some(signal), ..Self::NONE }
    }

    /// The status of a task whose status was lost.
    pub const fn lost() -> Self {
        ExitStatus { lost: true, ..Self::NONE }
    }

    /// The same status, of a task of which the OOM killer killed a process, or did not.
    pub const fn with_oom_killed(self, oom_killed: bool) -> Self {
        ExitStatus { oom_killed, ..self }
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
    type Err = InvalidValue;

    /// A name in upper case with or without `SIG`, `RTMIN+N` and `RTMAX-N` as the C library counts them, or a number from 1
    /// to 64.
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
    fn the_word_of_wait_is_read() {
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
