//! The plan of a task whose command waits until the caller has stored the task's handle.

use super::{ParentOp, Plan};
use crate::error::{Error, Result};
use crate::report::Control;
use crate::step::wire::{FDS, Op};
use crate::step::{Handed, InitStep, Step, too_many};

impl Plan {
    /// This plan as [`Sandbox::spawn_with`](crate::Sandbox::spawn_with) runs it: with a gate before the execution of the
    /// command.
    ///
    /// ```no_run
    /// let plan = cofferdam::Sandbox::command("make").plan()?.gated()?;
    /// assert!(plan.to_string().contains("# wait until the caller lets the command go"));
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Spec`] if the spec passes so many descriptors that there is none left for the gate.
    pub fn gated(mut self) -> Result<Plan> {
        let count = self.handed().count();
        let Some(fd) = u32::try_from(count).ok().filter(|fd| *fd < FDS) else {
            return Err(Error::spec("volumes", too_many()));
        };
        let last = self.parent.iter().rposition(|step| matches!(step.op, ParentOp::Hand(_)));
        let hand = Step::of(Control::MOUNT_NS, ParentOp::Hand(Handed::CallerPidfd));
        self.parent.insert(last.map_or(0, |last| last.saturating_add(1)), hand);
        for step in &mut self.parent {
            if matches!(step.op, ParentOp::AwaitCommand) {
                step.op = ParentOp::AwaitGate;
            }
        }
        self.parent
            .extend([ParentOp::LetGo, ParentOp::AwaitCommand].map(|op| Step::of(Control::MOUNT_NS, op)));
        let mut stays = false;
        for step in &mut self.init {
            let op = match step.op() {
                Some(Op::Fork { uid, gid, set_groups, bounding, caller, .. }) => {
                    Op::Fork { uid, gid, set_groups, bounding, caller, gate: fd }
                }
                Some(Op::ForkOutside { uid, gid, set_groups, bounding, caller, .. }) => {
                    Op::ForkOutside { uid, gid, set_groups, bounding, caller, gate: fd }
                }
                _ => continue,
            };
            stays = true;
            *step = InitStep { phase: step.phase, ..InitStep::new(step.control, op) };
        }
        let gate = InitStep::new(Control::empty(), Op::Gate { caller: if stays { u32::MAX } else { fd } });
        let found = self
            .init
            .iter()
            .rposition(|step| matches!(step.op(), Some(Op::Find { .. } | Op::AwaitPid1 { .. })));
        self.init.insert(found.map_or(self.init.len(), |found| found.saturating_add(1)), gate);
        Ok(self)
    }
}
