//! A running task: wait for it, signal, change, freeze and kill it, ask what it uses and what happens to it, and take
//! away what it leaves.
//!
//! A task is held by pidfds (`pidfd_open(2)`), never by a number that the kernel may give to another
//! process. Its status comes from init over a socket that the task has never had, or from `waitid(2)`
//! where it runs without init.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{ChildStderr, ChildStdin, ChildStdout};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cgroup::stats::{Process, Stats};
use crate::cgroup::{Group, Limits};
use crate::error::{Error, Result};
use crate::plan::{Enclosure, Plan};
use crate::report::Report;
use crate::rootfs::Populated;
use crate::step::wire::{RECORD, Record};
use crate::sys::{self, Ended};

mod group;
mod root;
mod status;
mod undo;

pub use root::EndedRoot;
pub use status::{ExitStatus, Signal};
pub(crate) use undo::Undo;

/// The caller's ends of the pipes that stand for the task's standard streams.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub stdin: Option<ChildStdin>,
    pub stdout: Option<ChildStdout>,
    pub stderr: Option<ChildStderr>,
}

impl Streams {
    /// Keeps the caller's end of the pipe for stream `number` and gives the task's.
    pub(crate) fn keep(&mut self, number: u32, read: OwnedFd, write: OwnedFd) -> OwnedFd {
        match number {
            0 => {
                self.stdin = Some(write.into());
                return read;
            }
            1 => self.stdout = Some(read.into()),
            _ => self.stderr = Some(read.into()),
        }
        write
    }
}

/// What a spawn came to.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub child: Child,
    pub streams: Streams,
    pub undo: Undo,
    /// The plan's report, less what the kernel refused.
    pub report: Report,
    pub populated: Option<Populated>,
}

/// The process that was cloned, and the one that executes the command where they are two. Dropped, it
/// is killed and reaped.
#[derive(Debug)]
pub(crate) struct Child {
    init: OwnedFd,
    task: Option<OwnedFd>,
    status: OwnedFd,
    left: bool,
}

impl Child {
    pub(crate) fn new(init: OwnedFd, status: OwnedFd) -> Self {
        Child { init, task: None, status, left: false }
    }

    pub(crate) fn status(&self) -> BorrowedFd<'_> {
        self.status.as_fd()
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.init.as_fd()
    }

    /// The pidfd of the process that executes the command, which init has sent.
    pub(crate) fn runs_as(&mut self, task: Option<OwnedFd>) {
        self.task = task;
    }

    /// The process that executes the command.
    fn main(&self) -> BorrowedFd<'_> {
        self.task.as_ref().unwrap_or(&self.init).as_fd()
    }

    /// How the task ended, once it has; reaps. `None` while it runs.
    pub(crate) fn reap(&mut self) -> io::Result<Option<ExitStatus>> {
        let ended = match sys::wait_pidfd(self.pidfd(), false, true) {
            Ok(None) => return Ok(None),
            Ok(Some(ended)) => Some(ended),
            // Somebody else reaped it, or the caller ignores SIGCHLD: only init's word is left.
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => None,
            Err(e) => return Err(e),
        };
        self.left = true;
        Ok(Some(self.record().or(ended.map(ExitStatus::from)).unwrap_or_else(ExitStatus::lost)))
    }

    /// What init said about the end, if it stayed and was not killed itself.
    fn record(&self) -> Option<ExitStatus> {
        let mut buffer = [0u8; RECORD];
        loop {
            let (n, _) = sys::recv_with_fd(self.status(), &mut buffer, false).ok()?;
            match Record::decode(buffer.get(..n)?) {
                Ok(Record::Exited { status }) => return Some(ExitStatus::from_wait(status)),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.left {
            end(self.pidfd());
        }
    }
}

/// Kills and reaps. Where the kernel refuses the kill it is not waited for, which could take for ever.
fn end(pidfd: BorrowedFd<'_>) {
    let killed = match sys::pidfd_signal(pidfd, libc::SIGKILL) {
        Err(e) => e.raw_os_error() == Some(libc::ESRCH),
        Ok(()) => true,
    };
    let _ = sys::wait_pidfd(pidfd, killed, true);
}

#[derive(Debug)]
struct Inner {
    child: Child,
    undo: Undo,
    status: Option<ExitStatus>,
    /// Whether the first process was sent a SIGKILL while it lived.
    killed: bool,
}

impl Inner {
    /// How the task ended; `None` while it runs.
    fn reap(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            let status = self.child.reap().map_err(Error::task("waitid(P_PIDFD)"))?;
            // Where the caller ignores SIGCHLD the kernel keeps no status. The signal was sent while the process lived.
            let killed = self.killed.then(|| ExitStatus::signalled(libc::SIGKILL));
            self.status = status.map(|status| killed.filter(|_| status.lost).unwrap_or(status));
        }
        Ok(self.status)
    }

    /// Removes what the spawn has made, and reads from the cgroup whether the task was OOM-killed.
    fn tear_down(&mut self) -> Result<()> {
        let undone = self.undo.run();
        let oom_killed = self.undo.oom().is_some();
        self.status = self.status.map(|status| status.with_oom_killed(oom_killed));
        undone
    }
}

/// A task that runs, or has run, in its sandbox.
///
/// All methods take `&self`: one thread may wait while another one signals. Dropping the value kills every process of the
/// task and removes its cgroup and its temporary root, unless it was [detached](Task::detach).
///
/// ```no_run
/// use cofferdam::{Sandbox, Stdio};
/// use std::io::Read;
///
/// let task = Sandbox::command("id").stdout(Stdio::Piped).spawn()?;
/// let mut text = String::new();
/// if let Some(mut stdout) = task.take_stdout() {
///     stdout.read_to_string(&mut text).ok();
/// }
/// let status = task.wait()?;
/// println!("{text}{status}");
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Debug)]
pub struct Task {
    /// Duplicates of the child's, so that waiting and signalling need no lock.
    init: OwnedFd,
    main: OwnedFd,
    inner: Mutex<Inner>,
    streams: Mutex<Streams>,
    populated: Option<Populated>,
    /// What a process must do that joins the task.
    enclosure: Enclosure,
}

impl Task {
    /// The task that was spawned by `plan`.
    pub(crate) fn new(plan: &Plan, spawned: Spawned) -> Result<Self> {
        let Spawned { child, streams, undo, report, populated } = spawned;
        let dup = |fd: BorrowedFd<'_>| {
            fd.try_clone_to_owned().map_err(Error::prepare("fcntl(pidfd, F_DUPFD_CLOEXEC)"))
        };
        // Together from here on, so that a refusal ends the child before it undoes what it uses.
        let inner = Inner { child, undo, status: None, killed: false };
        let (init, main) = (dup(inner.child.pidfd())?, dup(inner.child.main())?);
        let (inner, streams) = (Mutex::new(inner), Mutex::new(streams));
        Ok(Task { init, main, inner, streams, populated, enclosure: plan.enclosure(report) })
    }

    /// What a process must do that joins the task.
    pub(crate) fn enclosure(&self) -> &Enclosure {
        &self.enclosure
    }

    /// Calls `f` with the cgroups, as long as the task has any.
    pub(crate) fn with_group<T>(&self, f: impl FnOnce(Option<&Group>) -> T) -> T {
        f(self.lock().undo.group())
    }

    /// The sandbox's name: [`SandboxSpec::id`](crate::SandboxSpec::id), or the random one.
    pub fn sandbox_id(&self) -> &str {
        &self.enclosure.id
    }

    /// Takes the write end of the task's standard input, if that is a pipe and was not taken before. Otherwise
    /// [`wait`](Task::wait) closes it.
    pub fn take_stdin(&self) -> Option<ChildStdin> {
        self.streams().stdin.take()
    }

    /// Takes the read end of the task's standard output, if that is a pipe and was not taken before.
    pub fn take_stdout(&self) -> Option<ChildStdout> {
        self.streams().stdout.take()
    }

    /// Takes the read end of the task's standard error, if that is a pipe and was not taken before.
    pub fn take_stderr(&self) -> Option<ChildStderr> {
        self.streams().stderr.take()
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What holds around the task, and why the rest does not.
    pub fn report(&self) -> &Report {
        &self.enclosure.report
    }

    /// What stands in the root, and how it came there; `None` for a directory that was taken as it is.
    pub fn populated(&self) -> Option<&Populated> {
        self.populated.as_ref()
    }

    /// A descriptor that polls readable when the task has ended (`pidfd_open(2)`, Linux 5.3): for an
    /// event loop, which then calls [`try_wait`](Task::try_wait).
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.init.as_fd()
    }

    /// The process id of the task as the caller's PID namespace numbers it, while it runs. For
    /// display: a signal goes through [`signal`](Task::signal).
    pub fn pid(&self) -> Option<i32> {
        crate::sys::proc_pid(self.main.as_fd())
    }

    /// Waits until the task has ended, then removes its cgroup and its temporary root; processes that
    /// it left in them are killed. Says the same again when called again. A piped standard input that was not
    /// [taken](Task::take_stdin) is closed first. The other streams are not read: a task that fills a pipe waits for its
    /// reader.
    ///
    /// # Errors
    /// [`Error::Task`] when the kernel refuses to wait, or something of the sandbox could not be removed: every path is
    /// named then, for one the mount point of what somebody else has mounted in the temporary root, of which
    /// nothing is removed before that is gone. [`status`](Task::status) has the status by then, and another
    /// wait tries the removal again.
    pub fn wait(&self) -> Result<ExitStatus> {
        drop(self.take_stdin());
        loop {
            if let Some(status) = self.wait_until(None)? {
                return Ok(status);
            }
        }
    }

    /// As [`wait`](Task::wait), and calls `look` with the root after the last process has ended and before the root is
    /// removed.
    ///
    /// ```no_run
    /// use cofferdam::{Method, Sandbox};
    ///
    /// let task = Sandbox::command("make").args(["install"]).populate(Method::Copy).spawn()?;
    /// let (status, changes) = task.wait_with_root(|root| root.changes())?;
    /// for change in changes? {
    ///     println!("{:?} {}", change.kind, change.path.display());
    /// }
    /// # let _ = status;
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`wait`](Task::wait). `look` is not called if a process or a cgroup of the task could not be removed.
    pub fn wait_with_root<T>(&self, look: impl FnOnce(&EndedRoot<'_>) -> T) -> Result<(ExitStatus, T)> {
        drop(self.take_stdin());
        let status = loop {
            if let Some(status) = self.lock().reap()? {
                break status;
            }
            self.poll(PollTimeout::NONE)?;
        };
        let temp = self.lock().undo.run_but_root()?;
        let root = EndedRoot { temp: temp.as_ref(), task: self };
        let seen = look(&root);
        let mut inner = self.lock();
        if let Some(temp) = temp {
            inner.undo.temp_root(temp);
        }
        inner.tear_down()?;
        Ok((inner.status.unwrap_or(status), seen))
    }

    /// As [`wait`](Task::wait), for at most `timeout`; `None` when the task still runs.
    ///
    /// # Errors
    /// As [`wait`](Task::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<ExitStatus>> {
        self.wait_until(Instant::now().checked_add(timeout))
    }

    /// As [`wait`](Task::wait), without waiting for the task; `None` when it still runs. What the task leaves is
    /// removed by whoever first learns of its end, which takes as long as its root is large.
    ///
    /// # Errors
    /// As [`wait`](Task::wait).
    pub fn try_wait(&self) -> Result<Option<ExitStatus>> {
        let mut inner = self.lock();
        if inner.reap()?.is_some() {
            inner.tear_down()?;
        }
        Ok(inner.status)
    }

    /// How the task ended, once a wait has seen it, also when that wait failed because something of the sandbox could
    /// not be removed.
    pub fn status(&self) -> Option<ExitStatus> {
        self.lock().status
    }

    /// What the task has used so far: memory, processor time, processes, devices, and how long it had to wait for
    /// them. Once a wait has seen its end, what it had used by then, for ever.
    ///
    /// What the kernel does not count is `None`. That is decided by the cgroup's controllers, and so by the
    /// task's [`limits`](crate::SandboxSpec::limits): see [`cgroup::stats`](crate::cgroup::stats). Without usable
    /// cgroups everything is `None`.
    ///
    /// ```no_run
    /// use cofferdam::{Limits, Sandbox};
    /// use std::time::Duration;
    ///
    /// let limits = Limits { memory: Some(256 << 20), pids_max: Some(64), ..Limits::default() };
    /// let task = Sandbox::command("make").limits(limits).spawn()?;
    /// let mut last = task.stats()?;
    /// while task.wait_timeout(Duration::from_secs(1))?.is_none() {
    ///     let now = task.stats()?;
    ///     let (percent, memory) = (now.cpu_percent(&last), now.memory.usage);
    ///     println!("{:.0} % of a processor, {} bytes", percent.unwrap_or(0.0), memory.unwrap_or(0));
    ///     last = now;
    /// }
    /// println!("{:?} in all, {:?} bytes at most", task.stats()?.cpu.total, task.stats()?.memory.peak);
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Task`] with the file that could not be read, for want of descriptors for one. A file that is not there
    /// is no error.
    pub fn stats(&self) -> Result<Stats> {
        self.lock().undo.stats()
    }

    /// The processes of the task that the caller can see, the crate's own init among them. None once a
    /// wait has seen the end.
    ///
    /// # Errors
    /// [`Error::Task`]: `Unsupported` when the task has no cgroup that holds all its processes, else with the file that
    /// could not be read.
    pub fn processes(&self) -> Result<Vec<Process>> {
        let inner = self.lock();
        match inner.undo.group() {
            Some(group) if inner.status.is_none() => group.processes(),
            _ => Ok(Vec::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(Some(status));
            }
            let timeout = match deadline {
                None => PollTimeout::NONE,
                Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                    None => return Ok(None),
                    // Rounded up, so that the last poll does not spin.
                    Some(left) => PollTimeout::try_from(left.saturating_add(Duration::from_micros(999)))
                        .unwrap_or(PollTimeout::MAX),
                },
            };
            self.poll(timeout)?;
        }
    }

    /// Waits until the first process has ended, or the timeout has passed, or a signal has come.
    fn poll(&self, timeout: PollTimeout) -> Result<()> {
        let mut fds = [PollFd::new(self.init.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(e) => Err(Error::task("poll(pidfd)")(e)),
        }
    }

    /// Sends a signal to the task's main process (`pidfd_send_signal(2)`). To one that has ended it
    /// does nothing.
    ///
    /// # Errors
    /// [`Error::Task`] with the kernel's refusal, `EPERM` for one.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match sys::pidfd_signal(self.main.as_fd(), signal.number()) {
            Err(e) if e.raw_os_error() != Some(libc::ESRCH) => {
                Err(Error::task(format!("pidfd_send_signal({signal})"))(e))
            }
            _ => Ok(()),
        }
    }

    /// Kills every process of the task: by its cgroup where it has one (`cgroup.kill`, Linux 5.14, else
    /// freezing it first), and by ending its PID namespace. [`wait`](Task::wait) then returns soon.
    ///
    /// # Errors
    /// [`Error::Task`] with the kernel's refusal.
    pub fn kill(&self) -> Result<()> {
        let killed = match sys::pidfd_signal(self.init.as_fd(), libc::SIGKILL) {
            Err(e) if e.raw_os_error() != Some(libc::ESRCH) => {
                return Err(Error::task("pidfd_send_signal(SIGKILL)")(e));
            }
            sent => sent.is_ok(),
        };
        let mut inner = self.lock();
        inner.killed |= killed;
        match inner.undo.group() {
            Some(group) if group.paths().has_unit() => group.kill().map_err(Error::task("kill the cgroup")),
            _ => Ok(()),
        }
    }

    /// Sets other limits on the running task, as [`Group::update`](crate::cgroup::Group::update) describes: `limits`
    /// says all, and what it leaves unset is no longer limited. The [report](Task::report) stays that of the start.
    ///
    /// It may take as long as the kernel reclaims memory, and seconds where another process keeps the CPU reservations locked; other methods wait meanwhile, but for signals and the kill of the main process.
    ///
    /// # Errors
    /// [`Error::Spec`] and [`Error::Unsupported`] for limits that cannot be; [`Error::Task`] with the write that the
    /// kernel refused, or when the task has ended. The limits are as before then.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use cofferdam::{Sandbox, cgroup::Limits};
    /// let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
    /// let task = Sandbox::command("/bin/sleep").args(["60"]).limits(limits.clone()).spawn()?;
    /// let more = task.update(&Limits { memory: Some(128 << 20), ..limits })?;
    /// assert!(more.missing.is_empty(), "{more}");
    /// # Ok(())
    /// # }
    /// ```
    pub fn update(&self, limits: &Limits) -> Result<Report> {
        let mut inner = self.lock();
        match inner.undo.group_mut() {
            Some(group) => group.update(limits),
            None => Err(Error::task("update")(io::Error::from_raw_os_error(libc::ESRCH))),
        }
    }

    /// Lets the task live on without this value, and without the caller: nothing is killed or removed
    /// when either goes away. Whoever detaches a task removes its cgroup later, and its temporary root, which is
    /// `cofferdam-ID` in the operator's `temp_dir`. Once its last process is gone, the next who needs processors that
    /// it had reserved removes their cgroup, on version 2 with all that was counted.
    ///
    /// # Errors
    /// [`Error::Task`] when init cannot be told. The task is then still owned.
    pub fn detach(self) -> Result<()> {
        let mut inner = self.lock();
        if inner.child.task.is_some() {
            match sys::send(inner.child.status(), b"d") {
                // It has ended meanwhile.
                Err(e) if !matches!(e.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => {
                    return Err(Error::task("sendto(status)")(e));
                }
                _ => {}
            }
        }
        inner.child.left = true;
        inner.undo.forget();
        Ok(())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        if inner.child.left {
            return;
        }
        if let Some(group) = inner.undo.group() {
            let _ = group.kill();
        }
        end(self.init.as_fd());
        inner.child.left = true;
        let _ = inner.undo.run();
    }
}

impl From<Ended> for ExitStatus {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Code(code) => ExitStatus::exited(code),
            Ended::Signal(signal) => ExitStatus::signalled(signal),
        }
    }
}
