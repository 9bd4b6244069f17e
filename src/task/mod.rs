//! A running task: wait, signal, kill, change limits, freeze, statistics, events, and removal at the end.
//!
//! A task is referred to by pidfds (`pidfd_open(2)`), never by a PID that the kernel may reuse. Its exit status comes
//! from init over a socket that the task cannot access, or from `waitid(2)` if it runs without init.
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

/// The caller's ends of the pipes that are the task's standard streams.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub stdin: Option<ChildStdin>,
    pub stdout: Option<ChildStdout>,
    pub stderr: Option<ChildStderr>,
}

impl Streams {
    /// Keeps the caller's end of the pipe for stream `number` and returns the task's end.
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

/// The result of a spawn.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub child: Child,
    pub streams: Streams,
    pub undo: Undo,
    /// The plan's report, updated with the refused steps.
    pub report: Report,
    pub populated: Option<Populated>,
}

/// The cloned process, and the process that executes the command if it is another one. Dropping it kills and reaps the
/// cloned process.
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

    /// Sets the pidfd of the process that executes the command, as init has sent it.
    pub(crate) fn runs_as(&mut self, task: Option<OwnedFd>) {
        self.task = task;
    }

    /// The process that executes the command.
    fn main(&self) -> BorrowedFd<'_> {
        self.task.as_ref().unwrap_or(&self.init).as_fd()
    }

    /// Reaps the cloned process if it has ended, and returns the exit status of the task. `None` while it runs.
    pub(crate) fn reap(&mut self) -> io::Result<Option<ExitStatus>> {
        let ended = match sys::wait_pidfd(self.pidfd(), false, true) {
            Ok(None) => return Ok(None),
            Ok(Some(ended)) => Some(ended),
            // Another thread reaped it, or the caller ignores SIGCHLD. Only init's record has the status.
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => None,
            Err(e) => return Err(e),
        };
        self.left = true;
        Ok(Some(self.record().or(ended.map(ExitStatus::from)).unwrap_or_else(ExitStatus::lost)))
    }

    /// The exit status in init's record. `None` if init did not stay or was killed.
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

/// Kills and reaps a process. If the kernel refuses the kill, it does not wait, because the process may never end.
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
    /// Whether the cloned process was sent a SIGKILL while it lived.
    killed: bool,
}

impl Inner {
    /// The exit status of the task; `None` while it runs.
    fn reap(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            let status = self.child.reap().map_err(Error::task("waitid(P_PIDFD)"))?;
            // If the caller ignores SIGCHLD, the kernel keeps no status. The process lived when it was sent the signal.
            let killed = self.killed.then(|| ExitStatus::signalled(libc::SIGKILL));
            self.status = status.map(|status| killed.filter(|_| status.lost).unwrap_or(status));
        }
        Ok(self.status)
    }

    /// Removes everything that the spawn made. Reads from the cgroup whether a process was OOM-killed.
    fn tear_down(&mut self) -> Result<()> {
        let undone = self.undo.run();
        let oom_killed = self.undo.oom().is_some();
        self.status = self.status.map(|status| status.with_oom_killed(oom_killed));
        undone
    }
}

/// A task that runs or has run in a sandbox.
///
/// All methods except [`detach`](Task::detach) take `&self`, so one thread may wait while another one signals. Dropping
/// the value kills every process of the task and removes its cgroup and its temporary root.
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
/// println!("{text}{}", task.wait()?);
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
    /// The steps by which another process joins the task.
    enclosure: Enclosure,
}

impl Task {
    /// The task that was spawned by `plan`.
    pub(crate) fn new(plan: &Plan, spawned: Spawned) -> Result<Self> {
        let Spawned { child, streams, undo, report, populated } = spawned;
        let dup = |fd: BorrowedFd<'_>| {
            fd.try_clone_to_owned().map_err(Error::prepare("fcntl(pidfd, F_DUPFD_CLOEXEC)"))
        };
        // Moved into one value, so that an error below kills the child before its cgroup and root are removed.
        let inner = Inner { child, undo, status: None, killed: false };
        let (init, main) = (dup(inner.child.pidfd())?, dup(inner.child.main())?);
        let (inner, streams) = (Mutex::new(inner), Mutex::new(streams));
        Ok(Task { init, main, inner, streams, populated, enclosure: plan.enclosure(report) })
    }

    /// The steps by which another process joins the task.
    pub(crate) fn enclosure(&self) -> &Enclosure {
        &self.enclosure
    }

    /// Calls `f` with the task's cgroups; with `None` if they have been removed.
    pub(crate) fn with_group<T>(&self, f: impl FnOnce(Option<&Group>) -> T) -> T {
        f(self.lock().undo.group())
    }

    /// The sandbox's name: [`SandboxSpec::id`](crate::SandboxSpec::id) or a random name.
    pub fn sandbox_id(&self) -> &str {
        &self.enclosure.id
    }

    /// Takes the write end of the task's standard input. `None` if it is not piped or was taken before. If it is not
    /// taken, [`wait`](Task::wait) closes it.
    pub fn take_stdin(&self) -> Option<ChildStdin> {
        self.streams().stdin.take()
    }

    /// Takes the read end of the task's standard output. `None` if it is not piped or was taken before.
    pub fn take_stdout(&self) -> Option<ChildStdout> {
        self.streams().stdout.take()
    }

    /// Takes the read end of the task's standard error. `None` if it is not piped or was taken before.
    pub fn take_stderr(&self) -> Option<ChildStderr> {
        self.streams().stderr.take()
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The controls that were asked for, and which of them hold. It is final when the task has been spawned.
    pub fn report(&self) -> &Report {
        &self.enclosure.report
    }

    /// How the root was populated. `None` for a directory that is used as it is
    /// ([`Method::None`](crate::Method::None)).
    pub fn populated(&self) -> Option<&Populated> {
        self.populated.as_ref()
    }

    /// A pidfd, which polls readable when the task has ended (`pidfd_open(2)`, Linux 5.3). An event loop then calls
    /// [`try_wait`](Task::try_wait).
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.init.as_fd()
    }

    /// The PID of the main process, in the PID namespace of the mounted `/proc`. `None` after it was reaped, and
    /// without a `/proc`. The kernel reuses PIDs: use it for display only, and [`signal`](Task::signal) to signal.
    pub fn pid(&self) -> Option<i32> {
        crate::sys::proc_pid(self.main.as_fd())
    }

    /// Waits until the main process has ended, kills the remaining processes, and removes the cgroup and the temporary
    /// root. Every later call returns the same status.
    ///
    /// Closes a piped standard input that was not [taken](Task::take_stdin). Reads no output: a task that fills a pipe
    /// blocks until the caller reads from it.
    ///
    /// ```no_run
    /// let status = cofferdam::Sandbox::command("make").spawn()?.wait()?;
    /// println!("{status}: {}", if status.success() { "built" } else { "failed" });
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Task`] if the kernel refuses to wait, or if something could not be removed. It names every such path.
    /// If another process has mounted something in the temporary root, nothing in that root is removed.
    /// [`status`](Task::status) has the exit status, and the next wait tries the removal again.
    pub fn wait(&self) -> Result<ExitStatus> {
        drop(self.take_stdin());
        loop {
            if let Some(status) = self.wait_until(None)? {
                return Ok(status);
            }
        }
    }

    /// Like [`wait`](Task::wait), and calls `look` with the root after the last process has ended and before the root
    /// is removed.
    ///
    /// ```no_run
    /// use cofferdam::{Method, Sandbox};
    ///
    /// let task = Sandbox::command("make").args(["install"]).populate(Method::Copy).spawn()?;
    /// let (status, changes) = task.wait_with_root(|root| root.changes())?;
    /// for change in changes? {
    ///     println!("{:?} {}", change.kind, change.path.display());
    /// }
    /// println!("{status}");
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

    /// Like [`wait`](Task::wait), for at most `timeout`. `None` if the task still runs then. Killing the remaining
    /// processes and removing the root come after the timeout. It does not close a piped standard input.
    ///
    /// ```no_run
    /// let task = cofferdam::Sandbox::command("make").spawn()?;
    /// if task.wait_timeout(std::time::Duration::from_secs(60))?.is_none() {
    ///     task.kill()?;
    /// }
    /// println!("{}", task.wait()?); // signal 9 after a timeout
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`wait`](Task::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<ExitStatus>> {
        self.wait_until(Instant::now().checked_add(timeout))
    }

    /// Like [`wait`](Task::wait), without waiting for the task. `None` if it still runs. The first call after its end
    /// removes the cgroup and the temporary root, which takes time in proportion to the size of the root.
    ///
    /// ```no_run
    /// let task = cofferdam::Sandbox::command("make").spawn()?;
    /// let ended = task.try_wait()?.is_some(); // in an event loop: when `task.pidfd()` polls readable
    /// # let _ = ended;
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
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

    /// The exit status, if a wait has seen the end of the task. That wait may have failed to remove something.
    pub fn status(&self) -> Option<ExitStatus> {
        self.lock().status
    }

    /// The resource usage of the task so far: memory, CPU time, processes, block I/O and pressure. After a wait has
    /// seen the end of the task, the usage at that time.
    ///
    /// A value that is not counted is `None`. Which values are counted depends on the task's limits: see
    /// [`cgroup::stats`](crate::cgroup::stats). Without a cgroup, every value is `None`.
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
    ///     println!("{:.0} % of a CPU, {} bytes", percent.unwrap_or(0.0), memory.unwrap_or(0));
    ///     last = now;
    /// }
    /// println!("{:?} CPU time, peak {:?} bytes", task.stats()?.cpu.total, task.stats()?.memory.peak);
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Task`] with the file that could not be read, for example with `EMFILE`. A missing file is no error.
    pub fn stats(&self) -> Result<Stats> {
        self.lock().undo.stats()
    }

    /// The processes of the task that the caller can see, including the crate's init. Empty after a wait has seen the
    /// end.
    ///
    /// ```no_run
    /// let task = cofferdam::Sandbox::command("make").spawn()?;
    /// for process in task.processes()? {
    ///     println!("{} {} {} bytes", process.pid, process.name, process.rss);
    /// }
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Task`] with `Unsupported` if the task has no cgroup with all of its processes, or with the file that
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
                    // Rounded up to a millisecond, so that the last poll does not spin.
                    Some(left) => PollTimeout::try_from(left.saturating_add(Duration::from_micros(999)))
                        .unwrap_or(PollTimeout::MAX),
                },
            };
            self.poll(timeout)?;
        }
    }

    /// Waits until the cloned process has ended, the timeout has expired, or a signal has interrupted the wait.
    fn poll(&self, timeout: PollTimeout) -> Result<()> {
        let mut fds = [PollFd::new(self.init.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(e) => Err(Error::task("poll(pidfd)")(e)),
        }
    }

    /// Sends a signal to the main process of the task (`pidfd_send_signal(2)`, Linux 5.1). Does nothing if it has
    /// ended.
    ///
    /// ```no_run
    /// use cofferdam::{Sandbox, Signal};
    /// let task = Sandbox::command("nginx").spawn()?;
    /// task.signal(Signal::HUP)?;
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Task`] with the errno, for example `EPERM`.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match sys::pidfd_signal(self.main.as_fd(), signal.number()) {
            Err(e) if e.raw_os_error() != Some(libc::ESRCH) => {
                Err(Error::task(format!("pidfd_send_signal({signal})"))(e))
            }
            _ => Ok(()),
        }
    }

    /// Kills every process of the task: by its cgroup (`cgroup.kill`, Linux 5.14; before, by freezing it and killing
    /// each process), and by its PID namespace. It does not wait for their end: [`wait`](Task::wait) does.
    ///
    /// ```no_run
    /// let task = cofferdam::Sandbox::command("sleep").arg("600").spawn()?;
    /// task.kill()?;
    /// assert_eq!(task.wait()?.signal, Some(9));
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Task`] with the call that was refused.
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

    /// Replaces the limits of the running task and returns a report of the new ones. `limits` is complete: a limit that
    /// it leaves unset is lifted. [`Group::update`](crate::cgroup::Group::update) has the details.
    /// [`report`](Task::report) does not change.
    ///
    /// The call blocks while the kernel reclaims memory, and for up to seconds while another process holds the lock on
    /// the CPU reservations. Other methods block meanwhile, except `signal` and the kill of the main process.
    ///
    /// ```no_run
    /// use cofferdam::{Limits, Sandbox};
    /// let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
    /// let task = Sandbox::command("sleep").arg("60").limits(limits.clone()).spawn()?;
    /// let report = task.update(&Limits { memory: Some(128 << 20), ..limits })?;
    /// assert!(report.missing.is_empty(), "{report}");
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Spec`] and [`Error::Unsupported`] for limits that cannot be set. [`Error::Task`] with the refused
    /// write, or with `ESRCH` if the task has ended. The old limits then stay.
    pub fn update(&self, limits: &Limits) -> Result<Report> {
        let mut inner = self.lock();
        match inner.undo.group_mut() {
            Some(group) => group.update(limits),
            None => Err(Error::task("update")(io::Error::from_raw_os_error(libc::ESRCH))),
        }
    }

    /// Gives up ownership: the task runs on, also after the caller's end, and nothing is killed or removed.
    ///
    /// The caller must later remove the cgroup and the temporary root, `cofferdam-ID` in the operator's `temp_dir`. A
    /// spawn with the same [`id`](crate::SandboxSpec::id) takes the cgroups for stale, and kills what is in them. A
    /// cgroup with reserved CPUs is removed by the next task that needs these CPUs, once it has no processes.
    ///
    /// ```no_run
    /// let task = cofferdam::Sandbox::command("daemon").id("daemon-1").spawn()?;
    /// task.detach()?;
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Task`] if init cannot be notified. The task is then killed, as by a drop.
    pub fn detach(self) -> Result<()> {
        let mut inner = self.lock();
        if inner.child.task.is_some() {
            match sys::send(inner.child.status(), b"d") {
                // Init has ended meanwhile.
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
