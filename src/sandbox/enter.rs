//! Runs another command in a running task.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::random_id;
use crate::compile::enter::enter;
use crate::error::{Error, Result};
use crate::host;
use crate::ids::lookup_until;
use crate::spawn::{self, Given};
use crate::spec::ExecSpec;
use crate::task::Task;

/// How long a process may take to join a running task and execute its command. The task can stop it before the exec
/// (SIGSTOP), or block it by a file system of its own.
const START: Duration = Duration::from_secs(60);

/// How long to wait for the end of the task if the error of an exec may be due to it.
const END: Duration = Duration::from_secs(5);

impl Task {
    /// Runs another command in the task, with the task's namespaces, root, user, groups, capabilities, `no_new_privs`,
    /// system call filter, Landlock rules and limits. Returns after `execve(2)` has succeeded.
    ///
    /// The returned value stands for the command and the processes that it starts: they have a cgroup of their own below
    /// the task's. [`wait`](Task::wait), [`kill`](Task::kill), [`stop`](Task::stop) and [`stats`](Task::stats) refer to
    /// them only, and a drop kills them only. They end when the task ends. When the caller ends, the command ends, and what
    /// it has left behind ends with the task. In the host's PID namespace the command does not end with the caller, and
    /// without a cgroup not with the task either.
    ///
    /// The command has a Landlock domain of its own, if the task has one. The kernel then refuses that either traces the
    /// other (`ptrace(2)`), and, in the host's PID namespace, that one signals the other.
    ///
    /// If the task is [frozen](Task::freeze) during the call, the call waits for the thaw as long as it waits for the
    /// command: 60 seconds, or the deadline of the command. On v1 a process that entered a frozen task ends when the task is
    /// thawed.
    ///
    /// Uses pidfds as namespaces (`setns(2)`, Linux 5.8). Costs no more than a spawn, whatever the root.
    ///
    /// ```no_run
    /// use cofferdam::{ExecSpec, Sandbox, Stdio};
    ///
    /// let task = Sandbox::command("sleep").arg("60").spawn()?;
    /// let ps = task.exec(&ExecSpec::command("ps").args(["aux"]).stdout(Stdio::Inherit))?;
    /// println!("{}", ps.wait()?);
    /// task.stop("TERM".parse()?, std::time::Duration::from_secs(5), Default::default())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Spec`] for an invalid field. [`Error::Denied`] for a user that the policy denies. [`Error::Unsupported`] for
    /// another user in a user namespace, and for a deadline without a PID namespace of the task. [`Error::Exec`] if the
    /// command is not found or cannot be executed. [`Error::Task`] if the task was [detached](Task::detach), with `ESRCH` if
    /// it has ended, with `EBUSY` if it is [frozen](Task::freeze), and with `Unsupported` if the task was
    /// [recovered](crate::Sandbox::recover) and another build of the library spawned it, or if it is itself an additional
    /// command. [`Error::Prepare`] with `TimedOut` if the command is not executed within 60 seconds, or before its deadline:
    /// the task can stop the process, and the caller can freeze it. [`Error::Prepare`] and [`Error::Setup`] with the refused
    /// step. The task itself does not change.
    pub fn exec(&self, spec: &ExecSpec) -> Result<Task> {
        spawn::check_streams(spec.streams())?;
        self.owned("exec")?;
        self.check_alive()?;
        let enclosure = self.enclosure()?;
        if self.frozen().unwrap_or(false) {
            // A kill freezes a v1 cgroup for a moment.
            if self.is_killed() {
                self.wait_end(Some(END))?;
                self.check_alive()?;
            }
            return Err(Error::task("exec in a frozen task")(Errno::EBUSY));
        }
        let start = spec.deadline.map_or(START, |deadline| deadline.min(START));
        let begun = Instant::now();
        let user =
            spec.user.as_deref().map(|user| lookup_until(user, begun.checked_add(start))).transpose()?;
        let inherited = host::inherited(spec.streams(), std::iter::empty());
        let plan = enter(enclosure, spec, user, &inherited, &format!("exec-{}", random_id()))?;
        let streams = spawn::streams(spec.streams());
        let start = start.saturating_sub(begun.elapsed());
        let given =
            Given { streams, running: Some(self.enclosed()?), start: Some(start), ..Given::default() };
        // The end of the task explains every other error.
        let spawned = self.while_entering(|| spawn::spawn(&plan, given));
        let spawned = spawned.or_else(|e| {
            if spawn::joined_too_late(&e) {
                self.wait_if_ending(END)?;
            }
            self.check_alive().and(Err(e))
        })?;
        Task::joined(enclosure, spawned)
    }

    /// # Errors
    /// [`Error::Task`] with `ESRCH` if the task has ended.
    fn check_alive(&self) -> Result<()> {
        match self.status()? {
            Some(status) => {
                Err(Error::task(format!("exec in a task that has ended: {status}"))(Errno::ESRCH))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
