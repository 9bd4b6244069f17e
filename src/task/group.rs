//! Methods of a task that use its cgroups: OOM kills, events, and the freezer.

use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::errno::Errno;

use super::Task;
use crate::cgroup::{EventOptions, Events, Freezer, Group, Oom, Subject};
use crate::error::{Error, Result};

/// The longest time that freezing a task may take.
const PATIENCE: Duration = Duration::from_secs(5);

impl Task {
    /// The OOM kills in the task so far, and the memory limit that was exceeded. `None` if no process was OOM-killed,
    /// or if kills are not counted.
    ///
    /// The numbers come from the task's memory cgroup (v2; v1: Linux 4.13). They are final after a [`wait`](Task::wait)
    /// has returned the exit status. Kills are counted if the task has a memory limit or
    /// [`Limits::accounting`](crate::Limits::accounting). Without these, v1 never counts them, and v2 counts them only
    /// while another task in the same slice uses the memory controller. An additional command ([`exec`](Task::exec)) uses
    /// the memory of its task: its value has the OOM kills in the whole task since the command was started.
    ///
    /// ```no_run
    /// use cofferdam::{Limits, OomLimit, Sandbox};
    ///
    /// let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
    /// let task = Sandbox::command("/local/solution").limits(limits).spawn()?;
    /// task.wait()?;
    /// match task.oom() {
    ///     Some(oom) if oom.limit == OomLimit::Own => println!("memory limit exceeded"),
    ///     Some(oom) => println!("{oom}: run it again"),
    ///     None => println!("no OOM kill"),
    /// }
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    pub fn oom(&self) -> Option<Oom> {
        self.undo().oom()
    }

    /// The events of the task: its start, controls that do not hold, changes of its limits, OOM kills, pressure above a
    /// threshold, the exit of its main process and of its last process. What happened before the call is reported too.
    ///
    /// Every call returns an independent value, which reports all events. It may be called after the end of the task, and
    /// for a task that was [recovered](crate::Sandbox::recover). The value does not block waiting for the task, killing it
    /// or dropping it.
    ///
    /// ```no_run
    /// use cofferdam::{Event, EventOptions, Sandbox};
    ///
    /// let task = Sandbox::command("make").spawn()?;
    /// for event in task.events(&EventOptions::default())? {
    ///     match event? {
    ///         Event::Oom { kills } => println!("{kills} processes OOM-killed"),
    ///         Event::Exited { status } => println!("{status}"),
    ///         other => println!("{other:?}"),
    ///     }
    /// }
    /// println!("{}", task.wait()?);
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Spec`] for an invalid threshold. [`Error::Task`] with the call that was refused. Its source is
    /// `Unsupported` if the task has no cgroup,
    /// or if pressure cannot be measured: the kernel has no PSI, or there is no v2 cgroup.
    pub fn events(&self, options: &EventOptions) -> Result<Events> {
        let undo = self.undo();
        let events = match undo.group() {
            // In place of the pidfd, a task that had ended before its recovery has no file of epoll(7).
            Some(group) => group.events((!self.gone).then(|| self.pidfd()), options)?,
            None => Events::gone(undo.oom().map_or(0, |oom| oom.kills))?,
        };
        let shared: Weak<dyn Subject> = Arc::downgrade(&self.shared) as _;
        events.of_task(&self.shared.life, shared)
    }

    /// Freezes every process of the task, and waits until all are frozen: v2 `cgroup.freeze` (Linux 5.2), v1
    /// `freezer.state`. Frozen processes use no CPU time, and keep their memory.
    ///
    /// A frozen task can be killed, dropped and detached; a detached task stays frozen. A [`signal`](Task::signal) has
    /// no effect before [`thaw`](Task::thaw), even if it ends the task, because init is frozen too. For the same reason a
    /// frozen task ends neither at its deadline nor with its driver. [`kill`](Task::kill) has effect at once, and
    /// a [`Pruner`](crate::Pruner) removes a frozen task that a killed driver has left.
    ///
    /// ```no_run
    /// use cofferdam::Sandbox;
    ///
    /// let task = Sandbox::command("make").spawn()?;
    /// task.freeze()?;
    /// let memory = task.stats()?.memory.usage; // does not change now
    /// task.thaw()?;
    /// println!("{memory:?} bytes; {}", task.wait()?);
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Task`] with the refused write. Its source is
    ///
    /// - `TimedOut` if freezing takes more than 5 seconds, because a process is in an uninterruptible wait. The task is
    ///   then thawed again.
    /// - `ESRCH` if the task has ended.
    /// - `Unsupported` if the task has no cgroup with all of its processes.
    ///
    /// Also if the task was [detached](Task::detach).
    pub fn freeze(&self) -> Result<()> {
        self.owned("freeze")?;
        match self.freezer()? {
            Some(freezer) => freezer.freeze(PATIENCE),
            None => Err(Error::task("freeze the cgroup")(Errno::ESRCH)),
        }
    }

    /// Thaws a frozen task. Does nothing if the task is not frozen or has ended.
    ///
    /// # Errors
    /// [`Error::Task`] with the refused write, with `Unsupported` if the task has no cgroup, or if the task was
    /// [detached](Task::detach).
    pub fn thaw(&self) -> Result<()> {
        self.owned("thaw")?;
        self.freezer()?.map_or(Ok(()), |freezer| freezer.thaw())
    }

    /// Whether every process of the task is frozen, by the task's own cgroup or by a cgroup above. False if the task
    /// has ended.
    ///
    /// # Errors
    /// [`Error::Task`] with the refused read, or with `Unsupported` if the task has no cgroup.
    pub fn frozen(&self) -> Result<bool> {
        self.freezer()?.map_or(Ok(false), |freezer| freezer.frozen())
    }

    /// The freezer, which is used without the lock, because freezing may take long. `None` if the task has ended.
    fn freezer(&self) -> Result<Option<Freezer>> {
        self.undo().group().map(Group::freezer).transpose()
    }
}
