//! What a task's cgroups can do beside holding and killing it: tell of memory, tell of events, and stop it.

use std::time::Duration;

use nix::errno::Errno;

use super::Task;
use crate::cgroup::{EventOptions, Events, Freezer, Group, Oom};
use crate::error::{Error, Result};

/// How long a task may take to freeze.
const PATIENCE: Duration = Duration::from_secs(5);

impl Task {
    /// What the kernel's out-of-memory killer did to the task, and whose memory it was that ran out: by the
    /// counters of the task's memory cgroup, at any time. What it says is final once a [`wait`](Task::wait) has seen
    /// the end of the task: by then every process of the task is gone, and was counted if it was killed so.
    ///
    /// `None` if no process was killed so, or if nobody counts: without a memory limit or
    /// [`Limits::accounting`](crate::Limits::accounting) v1 never does, and v2 only while another task in the same
    /// slice has the memory controller.
    pub fn oom(&self) -> Option<Oom> {
        self.lock().undo.oom()
    }

    /// What happens to the task from now on: processes are OOM-killed, have to wait too long, or are
    /// all gone. What was killed before is told first.
    ///
    /// Any number of them may be had, also after the end, and each tells everything. None is in the way of anybody
    /// who waits for the task, kills it or drops it.
    ///
    /// # Errors
    /// [`Error::Spec`] for a threshold that is none. [`Error::Task`] with the call that was refused; `Unsupported` if
    /// the task has no cgroup (the report lacks [`Control::KILL`](crate::Control::KILL)), or a pressure cannot be
    /// known: the kernel has no PSI, or there is no v2 cgroup.
    ///
    /// ```no_run
    /// # use cofferdam::{Error, Sandbox, cgroup::{Event, EventOptions}};
    /// # fn main() -> Result<(), Error> {
    /// let task = Sandbox::command("make").spawn()?;
    /// for event in task.events(&EventOptions::default())? {
    ///     match event? {
    ///         Event::Oom { kills } => println!("{kills} OOM-killed: {:?}", task.oom()),
    ///         Event::Empty => println!("all are gone"),
    ///         other => println!("{other:?}"),
    ///     }
    /// }
    /// println!("{}", task.wait()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn events(&self, options: &EventOptions) -> Result<Events> {
        let inner = self.lock();
        match inner.undo.group() {
            Some(group) => group.events(Some(self.pidfd()), options),
            None => Events::gone(inner.undo.oom().map_or(0, |oom| oom.kills)),
        }
    }

    /// Stops every process of the task where it is, and waits until all have stopped: v2 `cgroup.freeze` (Linux
    /// 5.2), v1 `freezer.state`. They use no processor time then, keep their memory, and notice nothing but the
    /// time.
    ///
    /// A frozen task can be killed, dropped and detached; detached it stays frozen. What a [`signal`](Task::signal)
    /// does shows when the task is thawed, also if it ends it: the init of the sandbox stands still as well.
    /// [`kill`](Task::kill) does not wait for that.
    ///
    /// # Errors
    /// [`Error::Task`] with the write: `TimedOut` if it takes more than 5 seconds, because of a process that waits in
    /// the kernel and cannot be interrupted, and then the task is thawed again; `ESRCH` if the task is over;
    /// `Unsupported` if it has no cgroup (the report lacks [`Control::KILL`](crate::Control::KILL)).
    pub fn freeze(&self) -> Result<()> {
        match self.freezer()? {
            Some(freezer) => freezer.freeze(PATIENCE),
            None => Err(Error::task("freeze the cgroup")(Errno::ESRCH)),
        }
    }

    /// Lets a frozen task go on. For one that is not frozen, or that is over, it does nothing.
    ///
    /// # Errors
    /// [`Error::Task`] with the write; `Unsupported` if the task has no cgroup.
    pub fn thaw(&self) -> Result<()> {
        self.freezer()?.map_or(Ok(()), |freezer| freezer.thaw())
    }

    /// Whether every process of the task is stopped by a freezer, its own or one above.
    ///
    /// # Errors
    /// [`Error::Task`] with the read; `Unsupported` if the task has no cgroup.
    pub fn frozen(&self) -> Result<bool> {
        self.freezer()?.map_or(Ok(false), |freezer| freezer.frozen())
    }

    /// Taken out of the lock, since it may have to wait. `None` when the task is over.
    fn freezer(&self) -> Result<Option<Freezer>> {
        self.lock().undo.group().map(Group::freezer).transpose()
    }
}
