//! Methods of a task that send signals to its processes.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::unistd::{Pid, getpgid};

use super::child::{REAPING, ends_within};
use super::{Ending, ExitStatus, Signal, Task};
use crate::error::{Error, Result};
use crate::sys;

/// How often the processes are listed again to signal those that were forked meanwhile.
const ROUNDS: u32 = 8;

/// How many processes are held open at a time.
const BATCH: usize = 64;

/// The processes of a task that get a signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SignalTarget {
    /// The process that executes the command.
    #[default]
    Main,
    /// The processes in the process group of the main process (`setpgid(2)`).
    Group,
    /// All processes of the task, except init.
    All,
}

impl Task {
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
    /// [`Error::Task`] with the errno, for example `EPERM`, or if the task was [detached](Task::detach).
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.owned("signal")?;
        if self.gone { Ok(()) } else { send(&self.main, signal) }
    }

    /// Sends a signal to the main process, to its process group, or to all processes of the task. Processes that are
    /// forked while the signal is sent get it too, unless they fork faster than they can be listed: see
    /// [`kill`](Task::kill). Does nothing if the main process has ended.
    ///
    /// The processes are found by the task's cgroup or by its PID namespace, and signalled by pidfd
    /// (`pidfd_open(2)`, Linux 5.3). No other process gets the signal.
    ///
    /// ```no_run
    /// use cofferdam::{Sandbox, Signal, SignalTarget};
    ///
    /// let task = Sandbox::command("make").args(["-j4"]).spawn()?;
    /// task.signal_to(Signal::INT, SignalTarget::Group)?; // as Ctrl-C in a terminal
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Task`] with the refused call, or if the task was [detached](Task::detach). Its source is `Unsupported` for [`Group`](SignalTarget::Group) and
    /// [`All`](SignalTarget::All) if the task has neither a cgroup nor a PID namespace of its own.
    pub fn signal_to(&self, signal: Signal, target: SignalTarget) -> Result<()> {
        if target == SignalTarget::Main {
            return self.signal(signal);
        }
        self.owned("signal")?;
        let main = sys::find_pid(self.main.as_fd());
        let Some(main) = main.map_err(Error::task("read(\"/proc/self/fdinfo/PIDFD\")"))? else {
            let ended = sys::has_ended(self.main.as_fd()).map_err(Error::task("poll(pidfd)"))?;
            let why = "/proc does not show the main process: it is not mounted, or for another PID namespace";
            let hidden =
                || Error::task("signal the processes")(io::Error::new(io::ErrorKind::Unsupported, why));
            return if ended { Ok(()) } else { Err(hidden()) };
        };
        let group = match target {
            SignalTarget::Group => match getpgid(Some(Pid::from_raw(main))) {
                Ok(group) => Some(group),
                Err(nix::errno::Errno::ESRCH) => return Ok(()),
                Err(e) => return Err(Error::task("getpgid(main process)")(e)),
            },
            _ => None,
        };
        let init = sys::proc_pid(self.init.as_fd()).filter(|init| *init != main);
        let mut done = BTreeSet::from_iter(init);
        let depth = sys::pids(main).map(|pids| pids.len());
        for _ in 0..ROUNDS {
            // The processes of init that stay beside additional commands are outside of the task's PID namespace.
            let watches = |pid: &i32| sys::pids(*pid).is_some_and(|pids| Some(pids.len()) < depth);
            let (watchers, new): (Vec<i32>, Vec<i32>) =
                self.pids()?.difference(&done).copied().partition(watches);
            done.extend(watchers);
            if new.is_empty() {
                break;
            }
            for batch in new.chunks(BATCH) {
                let opened: Vec<_> =
                    batch.iter().filter_map(|pid| Some((*pid, open(*pid).transpose()?))).collect();
                // The kernel may have reused a PID between the first list and the open. A process that lives and whose
                // PID is in this second list is a process of the task; a signal to another one that has ended is lost.
                let listed = self.pids()?;
                for (pid, pidfd) in opened {
                    let of_group = || group.is_none() || getpgid(Some(Pid::from_raw(pid))).ok() == group;
                    let pidfd = pidfd?;
                    if listed.contains(&pid) && of_group() {
                        send(&pidfd, signal)?;
                    }
                }
            }
            done.extend(new);
        }
        Ok(())
    }

    /// Stops the task: sends `signal` to `target`, waits up to `grace` for the end of the main process, then kills
    /// every process of the task. Returns the exit status. Removes nothing: [`wait`](Task::wait) or
    /// [`release`](Task::release) do.
    ///
    /// ```no_run
    /// use cofferdam::{Sandbox, Signal, SignalTarget};
    /// use std::time::Duration;
    ///
    /// let task = Sandbox::command("nginx").spawn()?;
    /// let status = task.stop(Signal::TERM, Duration::from_secs(10), SignalTarget::Main)?;
    /// println!("{status}, killed: {}", status.killed);
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`kill`](Task::kill). If the signal cannot be sent, the task is killed at once.
    pub fn stop(&self, signal: Signal, grace: Duration, target: SignalTarget) -> Result<ExitStatus> {
        self.owned("stop")?;
        let ended = match self.status()? {
            None if self.signal_to(signal, target).is_ok() => {
                self.end_before(Instant::now().checked_add(grace))?
            }
            ended => ended,
        };
        self.kill()?;
        match ended {
            Some(status) => Ok(status),
            None => self.await_end(),
        }
    }

    /// Kills every process of the task: by its cgroup (`cgroup.kill`, Linux 5.14; before, by freezing it and killing
    /// each process), and by its PID namespace. It does not wait for their end: [`wait`](Task::wait) does. Only a task that
    /// was [entered](Task::exec) gets up to a second in which the processes that have joined it are reaped.
    ///
    /// ```no_run
    /// let task = cofferdam::Sandbox::command("sleep").arg("600").spawn()?;
    /// task.kill()?;
    /// assert_eq!(task.wait()?.signal, Some(9));
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Task`] with the call that was refused, or if the task was [detached](Task::detach).
    pub fn kill(&self) -> Result<()> {
        self.owned("kill")?;
        // A task that has ended is not killed by us, although a signal to it would succeed until it is reaped. The lock
        // is held, so that no other thread reaps it in between.
        let mut ending = self.ending();
        if self.reap_in(&mut ending)?.is_none() {
            self.kill_first(&mut ending).map_err(Error::task("pidfd_send_signal(SIGKILL)"))?;
        }
        drop(ending);
        // What has joined a task is reaped by a process outside of its PID namespace, before that is killed with the
        // cgroup. A zombie keeps PID 1 from ending, and the host's init may never reap it.
        if self.joined || self.entered.load(Ordering::SeqCst) {
            ends_within(self.pidfd(), REAPING);
        }
        match self.undo().group() {
            Some(group) if group.paths().has_unit() => group.kill().map_err(Error::task("kill the cgroup")),
            _ => Ok(()),
        }
    }

    /// Kills the process by whose end the task ends. The task was not reaped.
    pub(super) fn kill_first(&self, ending: &mut Ending) -> io::Result<()> {
        // Outside of a PID namespace, the process that stays records the end of the main process, and ends with it.
        let first = if ending.kills_main { &self.main } else { &self.init };
        match sys::pidfd_signal(first.as_fd(), libc::SIGKILL) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            sent => sent.map(|()| ending.killed = true),
        }
    }

    /// Whether this process has killed the task.
    pub(crate) fn is_killed(&self) -> bool {
        self.ending().killed
    }

    /// The processes of the task, as ids of the mounted `/proc`.
    fn pids(&self) -> Result<BTreeSet<i32>> {
        if let Some(group) = self.undo().group().filter(|group| group.paths().has_unit()) {
            let listed = group.pids().map_err(Error::task("openat(cgroup.procs)"))?;
            return Ok(listed.into_iter().filter(|pid| *pid > 0).collect());
        }
        if self.joined {
            let why =
                "the processes of an additional command are known only by a cgroup, and the task has none";
            let source = io::Error::new(io::ErrorKind::Unsupported, why);
            return Err(Error::task("find the processes of the command")(source));
        }
        self.pids_of_namespace()
    }

    /// The processes in the PID namespace of the task.
    fn pids_of_namespace(&self) -> Result<BTreeSet<i32>> {
        let step = "find the processes of the task";
        let Some(main) = self.pid() else { return Ok(BTreeSet::new()) };
        let own = sys::pid_namespace(main).filter(|own| Some(*own) != sys::pid_namespace("self"));
        // The main process may have ended meanwhile, and the kernel may have reused its PID.
        if self.pid() != Some(main) {
            return Ok(BTreeSet::new());
        }
        let own = own.ok_or_else(|| {
            let why = "the task has neither a cgroup nor a visible PID namespace of its own";
            Error::task(step)(io::Error::new(io::ErrorKind::Unsupported, why))
        })?;
        let pids = sys::proc_pids().map_err(Error::task(step))?;
        Ok(pids.into_iter().filter(|pid| sys::pid_namespace(pid) == Some(own)).collect())
    }
}

/// A pidfd of the process. `None` if it has ended.
fn open(pid: i32) -> Result<Option<OwnedFd>> {
    match sys::pidfd_open(pid) {
        Ok(pidfd) => match sys::proc_pid(pidfd.as_fd()) {
            Some(seen) if seen != pid => {
                let why = "/proc is mounted for another PID namespace than the caller's";
                Err(Error::task(format!("pidfd_open({pid})"))(io::Error::new(
                    io::ErrorKind::Unsupported,
                    why,
                )))
            }
            _ => Ok(Some(pidfd)),
        },
        // EINVAL: the PID belongs to a thread now.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)) => Ok(None),
        Err(e) => Err(Error::task(format!("pidfd_open({pid})"))(e)),
    }
}

/// Sends a signal. Does nothing if the process has ended.
fn send(pidfd: &OwnedFd, signal: Signal) -> Result<()> {
    match sys::pidfd_signal(pidfd.as_fd(), signal.number()) {
        Err(e) if e.raw_os_error() != Some(libc::ESRCH) => {
            Err(Error::task(format!("pidfd_send_signal({signal})"))(e))
        }
        _ => Ok(()),
    }
}
