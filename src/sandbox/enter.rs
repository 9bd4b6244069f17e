//! Another process in a running task. What a driver calls comes later; this is the mechanism.

use crate::compile::enter::{EnterCommand, enter};
use crate::error::Result;
use crate::spawn::{self, Given};
use crate::task::{Spawned, Task};

/// Runs a command in the enclosure of `task`: in its namespaces and cgroups, as its user, with its capabilities and
/// filters.
///
/// # Errors
/// See [`Error`](crate::Error). The task is as it was.
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
