//! Runs another process in a running task. The crate has no public function for this yet.

use crate::compile::enter::{EnterCommand, enter};
use crate::error::Result;
use crate::spawn::{self, Given};
use crate::task::{Spawned, Task};

/// Runs a command in the namespaces and cgroups of `task`, with its user, groups, capabilities and filters.
///
/// # Errors
/// [`Error`](crate::Error) with the refused step. The task itself does not change.
#[cfg_attr(not(test), expect(dead_code, reason = "the public way to it comes with exec"))]
pub(crate) fn run_in(task: &Task, command: &EnterCommand) -> Result<Spawned> {
    let plan = enter(task.enclosure(), command)?;
    task.with_group(|group| {
        let streams = spawn::streams(command.stdio.each_ref());
        spawn::spawn(&plan, Given { streams, running: Some((task.pidfd(), group)), ..Given::default() })
    })
}

#[cfg(test)]
mod tests;
