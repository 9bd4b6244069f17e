//! The exit status of a task, and the signals that can be sent to it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::notation::InvalidValue;

/// The exit status of a task. `Display` prints `exit status 1` or `signal 9 (out of memory)`.
///
/// [`kind`](Self::kind) says in one value why the task ended.
///
/// ```
/// use cofferdam::{ExitKind, ExitStatus};
///
/// fn verdict(status: ExitStatus) -> String {
///     match status.kind() {
///         ExitKind::Exited(0) => "accepted".into(),
///         ExitKind::Exited(code) => format!("exit code {code}"),
///         ExitKind::OomKilled => "out of memory".into(),
///         ExitKind::Killed => "time limit exceeded".into(),
///         other => format!("{other:?}"),
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
    /// Whether the kernel wrote a core dump (`core(5)`).
    pub core_dumped: bool,
    /// Whether the signal was a SIGKILL of this library: [`Task::kill`], the end of the grace time of [`Task::stop`], or
    /// [`Task::release`].
    ///
    /// [`Task::kill`]: crate::Task::kill
    /// [`Task::stop`]: crate::Task::stop
    /// [`Task::release`]: crate::Task::release
    pub killed: bool,
    /// The deadline at which the task was killed. `None` if it was not killed at one.
    pub deadline: Option<Deadline>,
    /// Whether the kernel's OOM killer had killed at least one process of the task when the main process ended, by any
    /// memory limit. The process may be a child that the main process survived, so this can come with any code or
    /// signal.
    ///
    /// It comes from the counter of the task's cgroup, and is false if kills are not counted. [`Task::oom`] has the
    /// details.
    ///
    /// [`Task::oom`]: crate::Task::oom
    pub oom_killed: bool,
    /// Why the status is unknown. Then `code` and `signal` are `None`.
    pub lost: Option<Lost>,
}

/// Why a task ended, as one value: [`ExitStatus::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitKind {
    /// The main process exited with this code, 0 to 255.
    Exited(i32),
    /// A signal killed the main process.
    Signalled {
        /// The number of the signal (`signal(7)`).
        signal: i32,
        /// Whether the kernel wrote a core dump (`core(5)`).
        core_dumped: bool,
    },
    /// SIGKILL killed the main process, and the OOM killer had killed a process of the task.
    OomKilled,
    /// This library killed the task: see [`ExitStatus::killed`].
    Killed,
    /// The task was killed at one of its deadlines.
    Deadline(Deadline),
    /// The status is unknown.
    Lost(Lost),
}

/// A limit of time at which PID 1 kills a task. Serialised as `"wall"` or `"cpu"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Deadline {
    /// The time since the start of the command: [`SandboxSpec::deadline`](crate::SandboxSpec::deadline).
    Wall,
    /// The CPU time of the whole task: [`SandboxSpec::cpu_deadline`](crate::SandboxSpec::cpu_deadline).
    Cpu,
}

/// Why an exit status is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Lost {
    /// The caller ignores `SIGCHLD`, or another of its threads reaped the task (`waitpid(-1)`). Init has not sent the
    /// status, because there is no init or another process killed it.
    Reaped,
    /// A recovered task has ended, and there is no exit record: the policy had no
    /// [`state_dir`](crate::Policy::state_dir), the process that writes the record was killed, or the task was released
    /// before.
    Unrecorded,
    /// As [`Unrecorded`](Lost::Unrecorded), and another process has the PID now.
    PidReused,
    /// The task ran before the machine was rebooted (`boot_id` in `proc_sys_kernel(5)`), and there is no exit record.
    Rebooted,
    /// The task's cgroup was removed or made again, so it cannot be known whether its process is still confined. Nothing
    /// is signalled.
    CgroupRemoved,
    /// The exit record is damaged or incomplete, as after a loss of power.
    Torn,
    /// The command was never executed: its driver ended while it stored the task's handle
    /// ([`Sandbox::spawn_with`](crate::Sandbox::spawn_with)), or the execution was refused.
    NotExecuted,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lost::Reaped => f.write_str("the caller ignores SIGCHLD or reaps unknown children"),
            Lost::Unrecorded => f.write_str("the task has ended without an exit record"),
            Lost::PidReused => {
                f.write_str("the task has ended without an exit record, and its PID is another process's now")
            }
            Lost::Rebooted => f.write_str("the machine was rebooted, and there is no exit record"),
            Lost::CgroupRemoved => f.write_str("the task's cgroup was removed"),
            Lost::NotExecuted => f.write_str("the command was never executed"),
            Lost::Torn => f.write_str("the exit record is damaged or incomplete"),
        }
    }
}

/// The resource usage of the processes of a task that were reaped (`getrusage(2)`): [`Task::rusage`]. It needs no
/// cgroup.
///
/// The largest resident set size is not in it. The cloned process shares the caller's memory until it executes init, so
/// the kernel's number is at least the caller's own. [`Stats`](crate::Stats) has the peak of the task's cgroup.
///
/// [`Task::rusage`]: crate::Task::rusage
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Rusage {
    /// CPU time in user mode.
    pub user: Duration,
    /// CPU time in kernel mode.
    pub system: Duration,
    /// Page faults without I/O.
    pub minor_faults: u64,
    /// Page faults with I/O.
    pub major_faults: u64,
    /// Times that the file system had to read from a device.
    pub block_reads: u64,
    /// Times that the file system had to write to a device.
    pub block_writes: u64,
    /// Context switches because a process waited.
    pub voluntary_switches: u64,
    /// Context switches because the time slice ended or a process of higher priority ran.
    pub involuntary_switches: u64,
}

impl From<libc::rusage> for Rusage {
    fn from(usage: libc::rusage) -> Self {
        let count = |n: libc::c_long| n.max(0).cast_unsigned();
        let time = |t: libc::timeval| {
            let micros = Duration::from_micros(count(t.tv_usec));
            Duration::from_secs(count(t.tv_sec)).saturating_add(micros)
        };
        Rusage {
            user: time(usage.ru_utime),
            system: time(usage.ru_stime),
            minor_faults: count(usage.ru_minflt),
            major_faults: count(usage.ru_majflt),
            block_reads: count(usage.ru_inblock),
            block_writes: count(usage.ru_oublock),
            voluntary_switches: count(usage.ru_nvcsw),
            involuntary_switches: count(usage.ru_nivcsw),
        }
    }
}

impl ExitStatus {
    const NONE: ExitStatus = ExitStatus {
        code: None,
        signal: None,
        core_dumped: false,
        killed: false,
        deadline: None,
        oom_killed: false,
        lost: None,
    };

    /// The status of a task that exited with `code`, 0 to 255. For tests of code that takes a status.
    pub const fn exited(code: i32) -> Self {
        ExitStatus { code: Some(code), ..Self::NONE }
    }

    /// The status of a task that a signal killed.
    pub const fn signalled(signal: i32) -> Self {
        ExitStatus { signal: Some(signal), ..Self::NONE }
    }

    /// The status of a task whose status was lost.
    pub const fn lost(why: Lost) -> Self {
        ExitStatus { lost: Some(why), ..Self::NONE }
    }

    /// The same status with another [`oom_killed`](Self::oom_killed).
    pub const fn with_oom_killed(self, oom_killed: bool) -> Self {
        ExitStatus { oom_killed, ..self }
    }

    /// The same status with another [`killed`](Self::killed).
    pub const fn with_killed(self, killed: bool) -> Self {
        ExitStatus { killed, ..self }
    }

    /// The status of a task that was killed at a deadline.
    pub(crate) const fn at_deadline(deadline: Deadline) -> Self {
        ExitStatus { deadline: Some(deadline), ..Self::signalled(libc::SIGKILL) }
    }

    /// Converts the status word of `wait4(2)`.
    pub(crate) fn from_wait(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::exited((status >> 8) & 0xff),
            signal => ExitStatus { core_dumped: status & 0x80 != 0, ..Self::signalled(signal) },
        }
    }

    /// Why the task ended.
    pub fn kind(&self) -> ExitKind {
        match (self.lost, self.code, self.deadline, self.signal) {
            (Some(why), ..) => ExitKind::Lost(why),
            (None, Some(code), ..) => ExitKind::Exited(code),
            (None, None, Some(deadline), _) => ExitKind::Deadline(deadline),
            (None, None, None, _) if self.killed => ExitKind::Killed,
            (None, None, None, Some(libc::SIGKILL)) if self.oom_killed => ExitKind::OomKilled,
            (None, None, None, signal) => {
                ExitKind::Signalled { signal: signal.unwrap_or_default(), core_dumped: self.core_dumped }
            }
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
        if self.core_dumped {
            write!(f, " (core dumped)")?;
        }
        match self.deadline {
            Some(Deadline::Wall) => write!(f, " (deadline)")?,
            Some(Deadline::Cpu) => write!(f, " (CPU time deadline)")?,
            None => {}
        }
        if let Some(why) = self.lost {
            write!(f, " ({why})")?;
        }
        if self.oom_killed { write!(f, " (out of memory)") } else { Ok(()) }
    }
}

/// A signal (`signal(7)`), 1 to 64. Serialised by its name: `"SIGTERM"`.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
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
    /// `SIGALRM`.
    pub const ALRM: Signal = Signal(libc::SIGALRM);
    /// `SIGCONT`.
    pub const CONT: Signal = Signal(libc::SIGCONT);
    /// `SIGSTOP`.
    pub const STOP: Signal = Signal(libc::SIGSTOP);
    /// `SIGWINCH`.
    pub const WINCH: Signal = Signal(libc::SIGWINCH);

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

impl TryFrom<String> for Signal {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        text.parse()
    }
}

impl From<Signal> for String {
    fn from(signal: Signal) -> String {
        signal.to_string()
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
        let dumped = ExitStatus { core_dumped: true, ..ExitStatus::signalled(6) };
        assert_eq!(ExitStatus::from_wait(0x80 | 6), dumped);
        assert_eq!(dumped.kind(), ExitKind::Signalled { signal: 6, core_dumped: true });
        assert_eq!(ExitStatus::from_wait(3 << 8).shell_code(), 3);
        assert_eq!(ExitStatus::from_wait(15).shell_code(), 143);
        assert_eq!(ExitStatus::lost(Lost::Reaped).shell_code(), -1);
    }

    #[test]
    fn the_kind_of_an_exit_is_one_of_several_causes() {
        let killed = ExitStatus::signalled(9);
        assert_eq!(ExitStatus::exited(3).with_oom_killed(true).kind(), ExitKind::Exited(3));
        assert_eq!(killed.kind(), ExitKind::Signalled { signal: 9, core_dumped: false });
        assert_eq!(killed.with_oom_killed(true).kind(), ExitKind::OomKilled);
        assert_eq!(killed.with_oom_killed(true).with_killed(true).kind(), ExitKind::Killed);
        let term = ExitStatus::signalled(15).with_oom_killed(true);
        assert_eq!(term.kind(), ExitKind::Signalled { signal: 15, core_dumped: false });
        assert_eq!(ExitStatus::lost(Lost::Reaped).kind(), ExitKind::Lost(Lost::Reaped));
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
        assert_eq!(serde_json::to_string(&Signal::WINCH).unwrap(), "\"SIGWINCH\"");
        assert_eq!(serde_json::from_str::<Signal>("\"TERM\"").unwrap(), Signal::TERM);
        assert!(serde_json::from_str::<Signal>("\"NOPE\"").is_err());
        assert_eq!((Signal::new(0), Signal::new(65)), (None, None));
    }
}
