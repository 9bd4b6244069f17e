//! Methods of a task that wait for its end, and its removal.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{ChildStderr, ChildStdout};
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::child::Reaped;
use super::undo::both;
use super::{EndedRoot, Ending, ExitStatus, Lost, Rusage, Task};
use crate::error::{Error, Result};
use crate::rootfs::populate::TempRoot;
use crate::sys;

/// Maximum time to read what is left in the pipes after the last process of the task has ended.
const DRAIN: Duration = Duration::from_secs(1);

/// Bytes that one read takes from a pipe.
const BUFFER: usize = 16 << 10;

/// Maximum number of bytes that a pipe holds, by the default of `/proc/sys/fs/pipe-max-size`.
const HELD_MOST: usize = 1 << 20;

/// What a task has written, and its exit status: [`Task::wait_with_output`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output {
    /// The exit status.
    pub status: ExitStatus,
    /// The standard output, up to the limit. Empty if it was not piped or was taken.
    pub stdout: Vec<u8>,
    /// The standard error, up to the limit. Empty if it was not piped or was taken.
    pub stderr: Vec<u8>,
    /// Whether a part of the output is missing: the task wrote more than the limit to a stream, or a process outside of
    /// the task still holds a pipe.
    pub truncated: bool,
}

impl Ending {
    /// Reaps the cloned process if it has ended. Returns the exit status of the task; `None` while it runs. `record` reads
    /// the exit record, which is asked for if init has not sent the status.
    pub(super) fn reap(
        &mut self,
        record: impl FnOnce() -> Option<(ExitStatus, Option<SystemTime>)>,
        oom_killed: impl FnOnce() -> bool,
    ) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            let reaped = self.child.reap().map_err(Error::task("waitid(P_PIDFD)"))?;
            let Some(Reaped { status, ended, usage, recorded }) = reaped else { return Ok(None) };
            self.usage = usage;
            // Init writes the record before it sends the status. Our SIGKILL may have hit it between the two.
            let unsent = (!recorded).then(record).flatten();
            let unsent = unsent.filter(|(written, _)| written.lost.is_none() || status.lost.is_some());
            let (status, ended, recorded) =
                unsent.map_or((status, ended, recorded), |(status, time)| (status, time.or(ended), true));
            // If the caller ignores SIGCHLD, the kernel keeps no status. The process lived when it was sent the signal.
            let lost = status.lost.is_some_and(|why| why != Lost::Torn) && self.killed;
            let status = if lost { ExitStatus::signalled(libc::SIGKILL) } else { status };
            // If our SIGKILL hits init first, it records nothing.
            let ours = self.killed && (!recorded || self.kills_main);
            let killed = ours && status.signal == Some(libc::SIGKILL);
            self.ended = if killed { ended.or_else(|| Some(SystemTime::now())) } else { ended };
            self.status = Some(status.with_killed(killed || status.killed).with_oom_killed(oom_killed()));
        }
        Ok(self.status)
    }
}

/// How long a look for the end of a task that may be ending takes.
const MOMENT: Duration = Duration::from_millis(10);

impl Task {
    /// Waits until the main process has ended, kills the remaining processes, and removes the cgroup, the temporary root,
    /// the exit record and the log. Every later call returns the same status.
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
        let status = self.await_end()?;
        self.remove()?;
        Ok(status)
    }

    /// Like [`wait`](Task::wait), and calls `look` with the root after the last process has ended and before the root
    /// is removed. `look` must not wait for this task or release it: that would block forever.
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
    /// As [`wait`](Task::wait). `look` is not called if a process or a cgroup of the task could not be removed, or if
    /// the root was removed before (`NotFound`).
    pub fn wait_with_root<T>(&self, look: impl FnOnce(&EndedRoot<'_>) -> T) -> Result<(ExitStatus, T)> {
        drop(self.take_stdin());
        let status = self.await_end()?;
        let seen = self.tear_down(|removed, temp| {
            if !removed {
                return Err(Error::task("look at the root")(nix::errno::Errno::EBUSY));
            }
            if temp.is_none() && self.temporary {
                let why = "an earlier wait or release has removed the root";
                let source = io::Error::new(io::ErrorKind::NotFound, why);
                return Err(Error::task("look at the root")(source));
            }
            Ok(look(&EndedRoot { temp, task: self }))
        })?;
        Ok((status, seen))
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
        let status = self.end_before(Instant::now().checked_add(timeout))?;
        if status.is_some() {
            self.remove()?;
        }
        Ok(status)
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
        self.wait_timeout(Duration::ZERO)
    }

    /// The exit status; `None` while the task runs. It does not wait for the task or for the removal of its root, but
    /// for an [`update`](Task::update) in another thread. It removes nothing: [`wait`](Task::wait) or
    /// [`release`](Task::release) do. Every later call returns the same status.
    ///
    /// ```no_run
    /// let task = cofferdam::Sandbox::command("make").spawn()?;
    /// match task.status()? {
    ///     Some(status) => println!("ended: {status}"),
    ///     None => println!("running"),
    /// }
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Task`] if the kernel refuses to wait (`waitid(2)`).
    pub fn status(&self) -> Result<Option<ExitStatus>> {
        self.reap()
    }

    /// Waits until the main process has ended, or for at most `timeout` if there is one. `None` if it still runs then.
    /// Unlike [`wait`](Task::wait), it kills no other process and removes nothing. Any number of threads may wait.
    ///
    /// ```no_run
    /// let task = cofferdam::Sandbox::command("make").spawn()?;
    /// let status = task.wait_end(None)?; // the root and the cgroup are still there
    /// println!("{status:?}, {:?} CPU time", task.stats()?.cpu.total);
    /// task.release()?;
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Task`] if the kernel refuses to wait (`waitid(2)`, `poll(2)`).
    pub fn wait_end(&self, timeout: Option<Duration>) -> Result<Option<ExitStatus>> {
        match timeout {
            Some(timeout) => self.end_before(Instant::now().checked_add(timeout)),
            None => self.await_end().map(Some),
        }
    }

    /// Waits for the end of the task if its first process is ending: it has exited or was sent a SIGKILL. At most `time`.
    pub(crate) fn wait_if_ending(&self, time: Duration) -> Result<()> {
        let start = Instant::now();
        // The kernel kills the processes of a cgroup one after the other, so the first process may be the last one.
        while self.wait_end(Some(MOMENT))?.is_none() && start.elapsed() < time {
            if start.elapsed() > MOMENT.saturating_mul(5) && sys::is_ending(self.init.as_fd()) == Some(false)
            {
                break;
            }
        }
        Ok(())
    }

    /// Kills every process of the task, and removes its cgroup, its temporary root, its exit record and its log. A drop does
    /// the same and ignores errors. Does nothing if it was done before.
    ///
    /// ```no_run
    /// let task = cofferdam::Sandbox::command("daemon").spawn()?;
    /// task.release()?;
    /// assert!(task.status()?.is_some());
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Task`] with the call that was refused. The next call tries again.
    pub fn release(&self) -> Result<()> {
        drop(self.take_stdin());
        if self.reap()?.is_none() {
            self.kill()?;
            self.await_end()?;
        }
        self.remove()
    }

    /// Like [`wait`](Task::wait), and reads the piped standard output and standard error meanwhile. It keeps at most
    /// `limit` bytes of each, and discards the rest, so the task never blocks.
    ///
    /// After `timeout`, if there is one, the task is killed, and the status says so ([`ExitStatus::killed`]). After the
    /// end of the main process, the remaining processes are killed, so none of them can hold a pipe open. If a process
    /// outside of the task does, reading ends after a second.
    ///
    /// ```no_run
    /// use cofferdam::{Sandbox, Stdio};
    /// use std::time::Duration;
    ///
    /// let task = Sandbox::command("make").stdout(Stdio::Piped).spawn()?;
    /// let output = task.wait_with_output(64 << 10, Some(Duration::from_secs(60)))?;
    /// println!("{}: {}", output.status, String::from_utf8_lossy(&output.stdout));
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Task`] if the kernel refuses to wait, or if a pipe cannot be read. If something cannot be removed, the next
    /// [`wait`](Task::wait) or [`release`](Task::release) returns that error.
    pub fn wait_with_output(&self, limit: usize, timeout: Option<Duration>) -> Result<Output> {
        drop(self.take_stdin());
        let mut pipes = Pipes::new(limit, self.take_stdout(), self.take_stderr())?;
        let mut deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let status = loop {
            if let Some(status) = self.reap()? {
                break status;
            }
            let Some(timeout) = left_until(deadline) else {
                self.kill()?;
                deadline = None;
                continue;
            };
            pipes.read_some(Some(self.init.as_fd()), timeout)?;
        };
        // The pipes close when the last process has ended.
        self.undo().end_processes();
        pipes.drain(Instant::now().checked_add(DRAIN))?;
        // The output would be lost with an error of the removal. The next wait or release returns it.
        let _ = self.remove();
        let ([stdout, stderr], truncated) = pipes.into_text();
        Ok(Output { status, stdout, stderr, truncated })
    }

    /// The resource usage of the processes that were reaped (`waitid(2)`): of init, the main process, and every process
    /// that one of them reaped. `None` before the end of the task, and if the caller ignores `SIGCHLD`.
    ///
    /// It needs no cgroup, so it is there for callers without privileges. If init was killed, which [`kill`](Task::kill)
    /// does, the kernel does not add the usage of the other processes. [`stats`](Task::stats) does, if the task has a
    /// cgroup.
    ///
    /// ```no_run
    /// let task = cofferdam::Sandbox::command("make").spawn()?;
    /// task.wait()?;
    /// if let Some(usage) = task.rusage() {
    ///     println!("{:?} user, {:?} system, {} page faults", usage.user, usage.system, usage.minor_faults);
    /// }
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    pub fn rusage(&self) -> Option<Rusage> {
        self.ending().usage
    }

    /// When the main process ended, by the host's clock (`CLOCK_REALTIME`). `None` until a wait, a
    /// [`status`](Task::status) or a kill has seen the end, and if the status is [`Lost`].
    ///
    /// The process of init that stays notes the time, also for a process that [recovers](crate::Sandbox::recover) the task
    /// later, if there is an exit record ([`state_dir`](crate::Policy::state_dir)). If none stays
    /// ([`init`](crate::SandboxSpec::init)), or if it was killed with the task, it is the time at which a process of the
    /// driver has seen the end.
    ///
    /// ```no_run
    /// let task = cofferdam::Sandbox::command("make").spawn()?;
    /// let status = task.wait()?;
    /// println!("{status} at {:?}", task.ended_at());
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    pub fn ended_at(&self) -> Option<SystemTime> {
        self.ending().ended
    }

    /// Reaps the task if it has ended.
    fn reap(&self) -> Result<Option<ExitStatus>> {
        self.reap_in(&mut self.ending())
    }

    /// As [`reap`](Self::reap), if the lock is held already.
    pub(super) fn reap_in(&self, ending: &mut Ending) -> Result<Option<ExitStatus>> {
        self.shared.reap(ending)
    }

    /// Waits for the end of the main process.
    pub(super) fn await_end(&self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.end_before(None)? {
                return Ok(status);
            }
        }
    }

    /// Waits for the end of the main process until `deadline`, or without limit.
    pub(super) fn end_before(&self, deadline: Option<Instant>) -> Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.reap()? {
                return Ok(Some(status));
            }
            let Some(timeout) = left_until(deadline) else { return Ok(None) };
            poll_all(&mut [PollFd::new(self.init.as_fd(), PollFlags::POLLIN)], timeout)?;
        }
    }

    /// Waits until the pidfd polls readable, or until `deadline`. Reaps nothing. Returns whether the task has ended.
    pub(super) fn ends_before(&self, deadline: Option<Instant>) -> Result<bool> {
        loop {
            let left = left_until(deadline);
            let mut fds = [PollFd::new(self.init.as_fd(), PollFlags::POLLIN)];
            poll_all(&mut fds, left.unwrap_or(PollTimeout::ZERO))?;
            let ended = fds.iter().any(|fd| fd.any().unwrap_or(true));
            if ended || left.is_none() {
                return Ok(ended);
            }
        }
    }

    /// Removes everything that the spawn made, after the end of the main process.
    fn remove(&self) -> Result<()> {
        self.tear_down(|_, _| Ok(()))
    }

    /// As [`remove`](Self::remove), and calls `look` before the root is removed, with whether the cgroups were removed,
    /// and with the root. If it returns an error, the root stays.
    fn tear_down<T>(&self, look: impl FnOnce(bool, Option<&TempRoot>) -> Result<T>) -> Result<T> {
        let _only = self.teardown.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.undo().end_processes();
        let cgroups = self.undo_mut().remove_cgroups();
        let mut root = self.undo_mut().take_root();
        let looked = look(cgroups.is_ok(), root.as_ref());
        let closed = match (&looked, &mut root) {
            (Ok(_), Some(root)) => root.close(),
            _ => Ok(()),
        };
        if let Some(root) = root.filter(|_| looked.is_err() || closed.is_err()) {
            self.undo_mut().temp_root(root);
        }
        let last = if looked.is_ok() { self.undo_mut().remove_last() } else { Ok(()) };
        // If the cgroups could not be removed, that is the cause.
        both(cgroups, closed).and(last).and(looked)
    }
}

/// Time until `deadline`, rounded up to a millisecond so that the last poll does not spin. `None` if it has passed.
fn left_until(deadline: Option<Instant>) -> Option<PollTimeout> {
    let Some(deadline) = deadline else { return Some(PollTimeout::NONE) };
    let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
    Some(PollTimeout::try_from(left.saturating_add(Duration::from_micros(999))).unwrap_or(PollTimeout::MAX))
}

/// `poll(2)`. Returns at once after a signal.
fn poll_all(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> Result<()> {
    match poll(fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(e) => Err(Error::task("poll(pidfd)")(e)),
    }
}

/// The pipes of standard output and standard error, with what was read from them.
struct Pipes {
    limit: usize,
    truncated: bool,
    streams: [(Option<File>, Vec<u8>); 2],
}

impl Pipes {
    /// The pipes do not block: a task that opens its pipe for reading could take the bytes between poll and read.
    fn new(limit: usize, stdout: Option<ChildStdout>, stderr: Option<ChildStderr>) -> Result<Pipes> {
        let pipes = [stdout.map(OwnedFd::from), stderr.map(OwnedFd::from)];
        for pipe in pipes.iter().flatten() {
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(Error::task("fcntl(pipe, F_SETFL)"))?;
        }
        Ok(Pipes { limit, truncated: false, streams: pipes.map(|pipe| (pipe.map(File::from), Vec::new())) })
    }

    fn are_open(&self) -> bool {
        self.streams.iter().any(|(pipe, _)| pipe.is_some())
    }

    /// Reads until the pipes are closed or the deadline has passed. Then it reads what the pipes hold, and no more: a
    /// process outside of the task may fill them without end.
    fn drain(&mut self, deadline: Option<Instant>) -> Result<()> {
        while let Some(left) = left_until(deadline).filter(|_| self.are_open()) {
            self.read_some(None, left)?;
        }
        let mut rounds = HELD_MOST / BUFFER;
        while self.are_open() && rounds > 0 && self.read_some(None, PollTimeout::ZERO)? {
            rounds = rounds.saturating_sub(1);
        }
        self.truncated |= self.are_open();
        Ok(())
    }

    /// Waits until a pipe or `other` is readable, and reads once from each readable pipe. Returns whether a pipe gave
    /// bytes or ended.
    fn read_some(&mut self, other: Option<BorrowedFd<'_>>, timeout: PollTimeout) -> Result<bool> {
        let pipes = self.streams.iter().filter_map(|(pipe, _)| pipe.as_ref().map(AsFd::as_fd));
        let mut fds: Vec<_> = pipes.chain(other).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        poll_all(&mut fds, timeout)?;
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect::<Vec<_>>().into_iter();
        let (mut buffer, mut progress) = ([0u8; BUFFER], false);
        for (pipe, text) in &mut self.streams {
            let Some(file) = pipe.as_mut() else { continue };
            if ready.next() != Some(true) {
                continue;
            }
            match file.read(&mut buffer) {
                Ok(0) => (*pipe, progress) = (None, true),
                Ok(n) => {
                    let read = buffer.get(..n).unwrap_or_default();
                    let kept = read.get(..self.limit.saturating_sub(text.len())).unwrap_or(read);
                    text.extend_from_slice(kept);
                    self.truncated |= kept.len() < n;
                    progress = true;
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(e) => return Err(Error::task("read(pipe)")(e)),
            }
        }
        Ok(progress)
    }

    fn into_text(self) -> ([Vec<u8>; 2], bool) {
        (self.streams.map(|(_, text)| text), self.truncated)
    }
}
