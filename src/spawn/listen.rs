//! Reads init's records, and tells why a process that was cloned has not executed its command.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::cgroup::Group;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::report::Report;
use crate::status::ExitStatus;
use crate::step::InitStep;
use crate::step::wire::{FAILED, Op, RECORD, Record, UNEXECUTED};
use crate::sys;
use crate::sys::fs::identify;
use crate::task::{self, Child};

use super::expected::{self, Expected};
use super::left::Marks;

/// What init has completed.
pub(super) enum Heard {
    /// The command runs. With the caller's end of the pseudo-terminal, if the plan opens one.
    Runs(Option<OwnedFd>),
    /// The command waits at the gate. With the caller's end of the pseudo-terminal, as above.
    AtGate(Option<OwnedFd>),
    /// The mount namespace is prepared, and init exits. With its table of mounts.
    Prepared(OwnedFd, OwnedFd),
}

/// What is known of the process that is listened to.
#[derive(Clone, Copy, Default)]
pub(super) struct Listening<'a> {
    /// When the wait fails.
    pub until: Option<Instant>,
    /// The cgroup of the process.
    pub group: Option<&'a Group>,
    /// The first process of the task that it joins.
    pub task: Option<BorrowedFd<'a>>,
    /// The program init.
    pub program: Option<BorrowedFd<'a>>,
    /// Whether the command was let go at the gate.
    pub gate_passed: bool,
}

/// How many processes a killed init leaves behind at most: its copy, and what that has forked.
const LEFT_BEHIND: usize = 2;

/// Reads init's records until its program is complete, or until the command waits at the gate.
pub(super) fn listen(
    plan: &Plan,
    child: &mut Child,
    report: &mut Report,
    listening: Listening<'_>,
) -> Result<Heard> {
    let all = Expected::of(plan);
    let mut expected = if listening.gate_passed { all.after_gate() } else { all };
    let heard = hear(plan, child, report, listening, &mut expected);
    if heard.is_err() && (expected.copies() || sys::adopts_orphans()) {
        // Only the caller can reap the copy that init may have made, and orphans that it has got.
        let marks = Marks::of(child.pidfd(), listening.group, listening.task, expected.copies());
        child.end();
        // It has no orphans of an init that does not end.
        if sys::has_ended(child.pidfd()).unwrap_or(false) {
            let left = (0..LEFT_BEHIND).map_while(|_| marks.find());
            left.for_each(|process| task::end(process.as_fd()));
        }
    }
    heard
}

fn hear(
    plan: &Plan,
    child: &mut Child,
    report: &mut Report,
    listening: Listening<'_>,
    expected: &mut Expected,
) -> Result<Heard> {
    let Listening { until, gate_passed, .. } = listening;
    let mut ready = gate_passed;
    let (mut terminal, mut namespace) = (None, None);
    loop {
        let mut buffer = [0u8; RECORD];
        if let Some(until) = until {
            // The copy has the socket open too, so the end of the socket does not show the end of init.
            let init = expected.copies().then(|| child.pidfd());
            let heard = child
                .status()
                .and_then(|status| sys::poll_either(status, init, until))
                .map_err(|e| unfinished(child, e))?;
            if !heard {
                return Err(init_died(child, expected));
            }
        }
        let (n, fd) = child
            .status()
            .and_then(|status| sys::recv_with_fd(status, &mut buffer, true))
            .map_err(|e| unheard(child, expected, "recvmsg(status)", e))?;
        if n == 0 {
            // End of the stream: the command was executed, or init died before the exec. A process of init that stays has
            // the stream open.
            return if ready && !expected.stays() && was_executed(child, listening)? {
                Ok(Heard::Runs(terminal))
            } else {
                Err(init_died(child, expected))
            };
        }
        match Record::decode(buffer.get(..n).unwrap_or_default()) {
            Ok(Record::Ready) => ready = true,
            Ok(Record::Running) => {
                child.runs_as(expected.command(fd, child)?);
                return Ok(Heard::Runs(terminal));
            }
            Ok(Record::Prepared) => {
                let fd = expected.prepared(fd)?;
                match namespace.take() {
                    None => namespace = Some(fd),
                    Some(namespace) => return Ok(Heard::Prepared(namespace, fd)),
                }
            }
            Ok(Record::AtGate) => {
                child.runs_as(expected.at_gate(fd, child)?);
                return Ok(Heard::AtGate(terminal));
            }
            Ok(Record::Terminal) => terminal = Some(expected.terminal(fd)?),
            Ok(Record::Copied { pid }) => {
                child.continues_as(expected.copy(fd.or_else(|| sys::own_child(pid)))?);
                let_continue(child)?;
            }
            Ok(Record::Failed { step, call, errno }) => return Err(refused(plan, step, call, errno)),
            Ok(Record::Degraded { step, call, errno }) => degrade(plan, report, step, call, errno)?,
            // Of a process that has ended before it executed the command.
            Ok(Record::Exited { status }) => return Err(child_died(ExitStatus::from_wait(status))),
            Ok(Record::Deadline | Record::CpuDeadline | Record::EndedAt { .. }) | Err(_) => {
                return Err(expected::invalid());
            }
        }
    }
}

/// The error for an init that has not executed the command in time. It says what init does, as far as `/proc` shows it.
fn unfinished(child: &Child, e: io::Error) -> Error {
    let why = match sys::proc_pid(child.pidfd()) {
        Some(pid) if e.kind() == io::ErrorKind::TimedOut => {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            let children = children.unwrap_or_default();
            let all = [pid].into_iter().chain(children.split_whitespace().filter_map(|pid| pid.parse().ok()));
            let doing: Vec<String> = all.filter_map(doing).collect();
            io::Error::new(e.kind(), format!("init has not executed the command: {}", doing.join(", ")))
        }
        _ => e,
    };
    Error::prepare("wait for the command, which may be stopped or frozen")(why)
}

/// What a process does (`proc_pid_stat(5)`, `proc_pid_syscall(5)`).
fn doing(pid: i32) -> Option<String> {
    let state = match sys::stat(pid).ok()?.state {
        'T' | 't' => "is stopped by a signal",
        'D' => "waits uninterruptibly in the kernel",
        'R' => "runs",
        _ => "waits",
    };
    let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let number = call.split(' ').next().and_then(|number| number.parse::<u32>().ok());
    let call = number.map(|number| format!(" in system call {number}")).unwrap_or_default();
    Some(format!("process {pid} {state}{call}"))
}

fn refused(plan: &Plan, step: u32, call: u8, errno: i32) -> Error {
    let source = io::Error::from_raw_os_error(errno);
    let op = plan.init_step(step).and_then(InitStep::op);
    let found = match op {
        Some(Op::Find { .. }) => None,
        Some(Op::Exec { .. }) => plan.candidates.get(usize::from(call)),
        _ => {
            let source = match plan.meaning(step, call, errno) {
                Some(why) => io::Error::new(source.kind(), format!("{why} ({source})")),
                None => source,
            };
            return Error::Setup { step: plan.call(step, call), source };
        }
    };
    let (program, source) = match (found, errno) {
        (None, _) => {
            let (program, tried) = (plan.command.clone().into(), plan.candidates.clone());
            return Error::Exec { program, tried, source };
        }
        (Some(path), libc::ENOENT) => {
            let why = format!(
                "{path:?} exists, but its interpreter (#! line or ELF loader) does not exist in the root"
            );
            (path.clone(), io::Error::new(io::ErrorKind::NotFound, why))
        }
        (Some(path), _) => (path.clone(), source),
    };
    Error::Exec { program, tried: Vec::new(), source }
}

/// Handles a refused step after which init continued.
fn degrade(plan: &Plan, report: &mut Report, step: u32, call: u8, errno: i32) -> Result<()> {
    let source = io::Error::from_raw_os_error(errno);
    let refused = Error::Prepare { step: plan.call(step, call), source };
    match plan.init_step(step) {
        Some(step) => step.on_refusal.take(refused, report),
        None => Err(refused),
    }
}

/// Sends the byte that init waits for. If init has ended, its records say why.
pub(super) fn let_continue(child: &Child) -> Result<()> {
    match child.status().and_then(|status| sys::send(status, b"g")) {
        Err(e) if !matches!(e.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => {
            Err(Error::prepare("sendto(status)")(e))
        }
        _ => Ok(()),
    }
}

/// The error for a failed call on the socket: init has died, or the call failed for another reason.
fn unheard(child: &Child, expected: &Expected, call: &str, e: io::Error) -> Error {
    match e.raw_os_error() {
        Some(libc::EPIPE | libc::ECONNRESET) => init_died(child, expected),
        _ => Error::prepare(call)(e),
    }
}

/// The step of the error for an init that ended without a record.
pub(super) const DIED: &str = "init";

/// The error for an init that ended without a record.
fn init_died(child: &Child, expected: &Expected) -> Error {
    let source = match sys::wait_pidfd(child.pidfd(), true, false) {
        Ok(Some((sys::Ended::Signal { number: libc::SIGKILL, .. }, _))) => {
            io::Error::other(Killed { first: !expected.copies() })
        }
        Ok(Some((sys::Ended::Signal { number, .. }, _))) => {
            io::Error::other(format!("init was killed by signal {number}"))
        }
        Ok(Some((sys::Ended::Code(code), _))) => io::Error::other(format!("init exited with code {code}")),
        _ => io::Error::other("init has ended, its exit status is unknown"),
    };
    Error::Setup { step: DIED.into(), source }
}

/// The error for a child of init that has ended before it executed the command.
fn child_died(status: ExitStatus) -> Error {
    let source = match (status.code, status.signal) {
        (_, Some(libc::SIGKILL)) => io::Error::other(Killed { first: false }),
        (_, Some(number)) => io::Error::other(format!("init was killed by signal {number}")),
        (code, _) => io::Error::other(format!("init exited with code {}", code.unwrap_or_default())),
    };
    Error::Setup { step: DIED.into(), source }
}

/// Whether a process without a parent that stays has executed the command. It has closed the socket, which it does at the
/// exec, and at its end if it has executed nothing. Without a `/proc` that shows the process it is taken to have executed
/// the command.
///
/// If it has exited, its status tells the command from init. Otherwise its name does: init has the name [`UNEXECUTED`]. A
/// command can give itself that name, but it is another program.
///
/// # Errors
/// The refused call; `TimedOut` if the process has neither executed the command nor ended in time.
fn was_executed(child: &Child, listening: Listening<'_>) -> Result<bool> {
    let mut pid = None;
    loop {
        // The process is not reaped, so it has its name as long as it has ended. If the caller ignores SIGCHLD, the kernel
        // reaps it, and waitid(2) fails.
        let ended = match sys::wait_pidfd(child.pidfd(), false, false) {
            Ok(Some((sys::Ended::Code(code), _))) if code != FAILED => return Ok(true),
            Ok(ended) => ended.is_some(),
            Err(_) => sys::has_ended(child.pidfd()).map_err(Error::prepare("poll(pidfd)"))?,
        };
        if pid.is_none() {
            pid =
                sys::find_pid(child.pidfd()).map_err(Error::prepare("read(\"/proc/self/fdinfo/PIDFD\")"))?;
        }
        let Some(pid) = pid else { return Ok(true) };
        // At most 15 bytes and a newline, in any encoding.
        let mut name = [0u8; 32];
        let read = File::open(format!("/proc/{pid}/comm")).and_then(|mut file| file.read(&mut name));
        match read {
            Ok(n) if name.get(..n).and_then(|name| name.strip_suffix(b"\n")) == Some(UNEXECUTED) => {}
            Ok(_) => return Ok(true),
            Err(e) if sys::is_no_process(&e) => return Ok(true),
            Err(e) => return Err(Error::prepare("read(\"/proc/PID/comm\")")(e)),
        }
        if ended {
            return Ok(false);
        }
        if executes_another(pid, listening.program) {
            return Ok(true);
        }
        if listening.until.is_some_and(|until| Instant::now() > until) {
            return Err(unfinished(child, io::ErrorKind::TimedOut.into()));
        }
        // The kernel changes the name after it has closed the socket.
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Whether a living process executes another program than `init`. False if that cannot be seen.
fn executes_another(pid: i32, init: Option<BorrowedFd<'_>>) -> bool {
    let Ok(exe) = CString::new(format!("/proc/{pid}/exe")) else { return false };
    match (identify(nix::fcntl::AT_FDCWD, &exe), init.map(|init| identify(init, c""))) {
        (Ok(its), Some(Ok(init))) => !its.is_same_file(&init),
        _ => false,
    }
}

#[derive(Debug, thiserror::Error)]
#[error("init was killed by signal 9")]
pub(super) struct Killed {
    /// Whether it was the process that is created in the cgroup: the cloned one, or the copy in which it continues.
    pub first: bool,
}

/// Whether the end of the task that the process joins may be the cause: init or its child was killed with the task, or the
/// task's namespaces are gone. The kernel refuses a fork into a PID namespace that ends with `ENOMEM`, and the namespaces of
/// a process that ends with `ESRCH` or `EPERM`.
pub(crate) fn joined_too_late(error: &Error) -> bool {
    let (Error::Setup { step, source } | Error::Prepare { step, source }) = error else { return false };
    match source.raw_os_error() {
        Some(libc::EPERM) => step.starts_with("setns"),
        // The child that init has forked into the namespace is gone.
        Some(libc::EPIPE | libc::ECONNRESET) => step.starts_with("sendto(the child"),
        errno => step == DIED || matches!(errno, Some(libc::ESRCH | libc::ENOMEM)),
    }
}

/// Whether the spawn failed because init was killed by SIGKILL before the command was executed.
pub(super) fn was_killed(error: &Error) -> Option<&Killed> {
    let Error::Setup { source, .. } = error else { return None };
    source.get_ref()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    use super::*;

    /// A child with the name of an init that has not executed the command, and its program. It runs `script` when its
    /// standard input is closed.
    fn named_as_init(script: &str) -> (std::process::Child, Child, File) {
        let script = format!("printf /init >/proc/$$/comm; echo; read x; {script}");
        let mut shell = Command::new("sh");
        let mut shell =
            shell.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        shell.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let pid = i32::try_from(shell.id()).unwrap();
        let (ours, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let child = Child::new(sys::own_child(pid).unwrap(), ours.into(), false);
        (shell, child, File::open(format!("/proc/{pid}/exe")).unwrap())
    }

    #[test]
    fn a_command_with_the_name_of_init_is_told_from_init() {
        let (mut shell, child, program) = named_as_init("exit 3");
        let other = File::open("/proc/self/exe").unwrap();
        let soon = Instant::now().checked_add(Duration::from_millis(100));
        let listening = |program| Listening { until: soon, program: Some(program), ..Listening::default() };
        assert!(was_executed(&child, listening(other.as_fd())).unwrap());
        // A command with the program of init cannot be told from it. The wait ends nevertheless.
        let unknown = was_executed(&child, listening(program.as_fd())).unwrap_err();
        assert!(std::error::Error::source(&unknown).unwrap().to_string().contains("has not executed"));
        drop(shell.stdin.take());
        sys::wait_pidfd(child.pidfd(), true, false).unwrap();
        assert!(was_executed(&child, listening(program.as_fd())).unwrap(), "init exits with another code");
        shell.wait().unwrap();
        let (mut shell, child, program) = named_as_init(&format!("exit {FAILED}"));
        drop(shell.stdin.take());
        sys::wait_pidfd(child.pidfd(), true, false).unwrap();
        assert!(!was_executed(&child, listening(program.as_fd())).unwrap());
        shell.wait().unwrap();
    }
}
