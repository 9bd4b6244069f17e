//! A running task: wait, signal, kill, change limits, freeze, statistics, events, and removal at the end.
//!
//! A task is referred to by pidfds (`pidfd_open(2)`), never by a PID that the kernel may reuse. Its exit status comes
//! from init over a socket that the task cannot access, or from `waitid(2)` if it runs without init.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{ChildStderr, ChildStdin, ChildStdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use crate::cgroup::Limits;
use crate::cgroup::stats::{Process, Stats};
use crate::error::{Error, Result};
use crate::plan::{Enclosure, Plan};
use crate::report::{Control, Report};
use crate::rootfs::Populated;
use crate::status::{ExitStatus, Lost, Rusage, Signal};
use crate::sys;

mod child;
mod detach;
mod group;
mod handle;
mod log;
mod owned;
mod pruner;
mod reaper;
mod record;
mod recover;
mod replace;
mod root;
mod samples;
mod shared;
mod stale;
mod stop;
mod terminal;
mod undo;
mod wait;
mod writer;

pub(crate) use child::{Child, end, ends_within, reap};
pub use handle::TaskHandle;
pub use log::{Log, LogEntry, LogStream};
pub use pruner::{PruneOptions, Pruned, Pruner};
pub(crate) use record::RecordFile;
pub(crate) use replace::replace;
pub use root::EndedRoot;
pub use samples::{Sample, Samples};
use shared::Shared;
pub use stale::StaleSandbox;
pub use stop::SignalTarget;
pub use terminal::Terminal;
pub(crate) use undo::Undo;
pub use wait::Output;

/// The caller's ends of the pipes that are the task's standard streams.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub stdin: Option<ChildStdin>,
    pub stdout: Option<ChildStdout>,
    pub stderr: Option<ChildStderr>,
    pub terminal: Option<OwnedFd>,
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

/// The cloned process, and its exit status when it has ended.
#[derive(Debug)]
struct Ending {
    child: Child,
    status: Option<ExitStatus>,
    /// When it ended; `None` as long as that is unknown.
    ended: Option<SystemTime>,
    usage: Option<Rusage>,
    /// Whether the first process to kill was sent a SIGKILL while it lived.
    killed: bool,
    /// Whether the first process to kill is the main process, and not init.
    kills_main: bool,
    /// Whether the task was detached: nothing is killed or removed by this value.
    detached: bool,
}

/// A task that runs or has run in a sandbox.
///
/// All methods take `&self`, so one thread may wait while another one signals. Dropping the value kills every process of
/// the task and removes its cgroup, its temporary root, its exit record and its log, unless the task survives its driver
/// ([`DieWith::Survive`](crate::DieWith::Survive)), was [detached](Task::detach) or was
/// [recovered](crate::Sandbox::recover): then dropping the value kills and removes nothing.
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
    /// Held for short operations only.
    shared: Arc<Shared>,
    /// Held for writing by the one thread that removes, and for reading while processes join the task.
    teardown: RwLock<()>,
    streams: Mutex<Streams>,
    populated: Option<Populated>,
    /// Whether the root is a temporary directory.
    temporary: bool,
    /// The steps by which another process joins the task.
    enclosure: Enclosure,
    /// The build of the library that spawned the task, if it is another one: this init may read the steps of `enclosure`
    /// in another way.
    other_build: Option<String>,
    /// Whether the process has joined another task.
    joined: bool,
    /// Whether processes have joined the task, as far as this process knows.
    entered: AtomicBool,
    /// Whether the task outlives this process and this value.
    survives: bool,
    /// Whether the processes were gone when the task was recovered. `init` and `main` then are no pidfds, but poll
    /// readable.
    gone: bool,
    /// The driver's own bytes, of the handle by which the task was recovered.
    data: Vec<u8>,
}

impl Task {
    /// The task that was spawned by `plan`, which outlives this process and this value if it `survives`.
    pub(crate) fn new(plan: &Plan, mut spawned: Spawned, survives: bool) -> Result<Self> {
        if survives {
            spawned.undo.claim_cgroup()?;
        }
        let report = std::mem::take(&mut spawned.report);
        let mut task = Task::of(plan.enclosure(report), spawned, false)?;
        task.survives = survives;
        Ok(task)
    }

    /// The process that has joined the task with this enclosure.
    pub(crate) fn joined(enclosure: &Enclosure, mut spawned: Spawned) -> Result<Self> {
        let report = std::mem::take(&mut spawned.report);
        spawned.child.has_started();
        Task::of(Enclosure { report, ..enclosure.clone() }, spawned, true)
    }

    fn of(enclosure: Enclosure, spawned: Spawned, joined: bool) -> Result<Self> {
        let Spawned { child, streams, undo, populated, .. } = spawned;
        let dup = |fd: BorrowedFd<'_>| {
            fd.try_clone_to_owned().map_err(Error::prepare("fcntl(pidfd, F_DUPFD_CLOEXEC)"))
        };
        // On an error, the child is killed before its cgroup and root are removed: locals are dropped in reverse order.
        let temporary = undo.root().is_some();
        let kills_main = joined || !enclosure.ends_with_init();
        let ending = Ending {
            child,
            status: None,
            ended: None,
            usage: None,
            killed: false,
            kills_main,
            detached: false,
        };
        let (init, main) = (dup(ending.child.pidfd())?, dup(ending.child.main())?);
        Ok(Task {
            init,
            main,
            shared: Shared::new(ending, undo, &enclosure.report),
            teardown: RwLock::new(()),
            streams: Mutex::new(streams),
            populated,
            temporary,
            enclosure,
            other_build: None,
            joined,
            entered: AtomicBool::new(false),
            survives: false,
            gone: false,
            data: Vec::new(),
        })
    }

    /// The steps by which another process joins the task.
    ///
    /// # Errors
    /// [`Error::Task`] if another build of the library spawned the task. Also if the process has itself joined a task: its
    /// pidfd is that of a process outside of the task's PID namespace, in which another one must not run.
    pub(crate) fn enclosure(&self) -> Result<&Enclosure> {
        if self.joined {
            let why = "an additional command cannot be entered: call it on the task itself";
            return Err(Error::task("exec")(io::Error::new(io::ErrorKind::Unsupported, why)));
        }
        let Some(other) = &self.other_build else { return Ok(&self.enclosure) };
        let why = format!("the task was spawned by another build of the library ({other})");
        Err(Error::task("exec")(io::Error::new(io::ErrorKind::Unsupported, why)))
    }

    /// A pidfd of the process whose namespaces are the task's.
    ///
    /// # Errors
    /// [`Error::Task`] with `ESRCH` if that process was gone when the task was recovered.
    pub(crate) fn enclosed(&self) -> Result<BorrowedFd<'_>> {
        if !self.enclosure.outside {
            return Ok(self.init.as_fd());
        }
        // The process that stays is in the PID namespace of the host.
        if self.ending().child.has_init() {
            return Ok(self.main.as_fd());
        }
        Err(Error::task("exec in a task that ends")(nix::errno::Errno::ESRCH))
    }

    /// Calls `f`, in which a process joins the task. The task's cgroups are not removed meanwhile. It can be frozen,
    /// thawed, changed and killed.
    pub(crate) fn while_entering<T>(&self, f: impl FnOnce() -> T) -> T {
        self.entered.store(true, Ordering::SeqCst);
        let _held = self.teardown.read().unwrap_or_else(PoisonError::into_inner);
        f()
    }

    /// The sandbox's name: [`SandboxSpec::id`](crate::SandboxSpec::id) or a random name.
    pub fn sandbox_id(&self) -> &str {
        &self.enclosure.id
    }

    /// The driver's own bytes, of the [handle](TaskHandle::with_data) by which the task was recovered. Empty for a task that
    /// was spawned.
    pub fn data(&self) -> &[u8] {
        &self.data
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

    /// Takes the caller's end of the task's pseudo-terminal. `None` if the task has none, or it was taken before.
    pub fn take_terminal(&self) -> Option<Terminal> {
        self.streams().terminal.take().map(Terminal::new)
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
    /// [`Error::Task`] with the file that could not be read, for example with `EMFILE`. A missing file is no error. The source
    /// is `NotFound` for a task whose cgroup was removed before it was recovered.
    pub fn stats(&self) -> Result<Stats> {
        let known = self.undo().stats()?;
        if let Some(stats) = known {
            return Ok(stats);
        }
        const STEP: &str = "read the cgroup's counters";
        self.owned(STEP)?;
        let why = "the cgroup was removed, and the counters with it";
        Err(Error::task(STEP)(io::Error::new(io::ErrorKind::NotFound, why)))
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
        match self.undo().group() {
            Some(group) => group.processes(),
            None => Ok(Vec::new()),
        }
    }

    fn undo(&self) -> RwLockReadGuard<'_, Undo> {
        self.shared.undo()
    }

    fn undo_mut(&self) -> RwLockWriteGuard<'_, Undo> {
        self.shared.undo_mut()
    }

    fn ending(&self) -> MutexGuard<'_, Ending> {
        self.shared.ending()
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
    /// write, with `ESRCH` if the task has ended, or if the task was [detached](Task::detach). The old limits then stay.
    pub fn update(&self, limits: &Limits) -> Result<Report> {
        self.owned("update")?;
        let (mut report, as_started) = match self.undo_mut().group_mut() {
            Some(group) => (group.update(limits)?, group.was_born_with_cores(limits)),
            None => return Err(Error::task("update")(io::Error::from_raw_os_error(libc::ESRCH))),
        };
        if as_started {
            report.weaken_as(self.report(), Control::CPUSET);
        }
        self.shared.life.updated(&report);
        Ok(report)
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let mut ending = self.ending();
        // The events get the status.
        let watched = Arc::weak_count(&self.shared) > 0 && !ending.detached;
        if watched {
            let _ = self.reap_in(&mut ending);
        }
        if self.survives && !ending.detached {
            if !ending.child.has_left() {
                reaper::reap_later(ending.child.pidfd());
            }
            ending.child.leave();
            self.undo_mut().forget(sys::proc_pid(self.init.as_fd()));
        }
        if !ending.child.has_left() {
            if watched {
                let _ = self.kill_first(&mut ending);
            }
            // A process that has joined a task is killed with its cgroup later: see `Child::kill`.
            if let Some(group) = self.undo().group().filter(|_| !self.joined) {
                let _ = group.kill();
            }
            let ended = ending.child.kill();
            if watched && ended {
                let _ = self.reap_in(&mut ending);
            }
            ending.child.reap_killed(ended);
        }
        // What is in the undo list is removed when it is dropped, which takes long: the locks are released before.
        let removed = std::mem::take(&mut *self.undo_mut());
        drop(ending);
        drop(removed);
    }
}
