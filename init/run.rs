//! Runs a program: its steps in order, up to the one that executes the command.

use crate::state::Init;
use crate::step::run_op;
use crate::wire::{NO_STEP, Record};

/// Runs the steps. The last one executes the command, so there is no way back. A step that forks goes on in the child
/// and does not return in PID 1.
pub fn run_steps(init: &mut Init) -> ! {
    let steps = init.program.steps;
    for (number, step) in (0u32..).zip(steps.iter()) {
        if let Err(failed) = run_op(init, &step.op) {
            let (call, errno) = (failed.index, failed.errno);
            if !step.optional {
                init.send_record(Record::Failed { step: number, call, errno });
                init.exit_failed();
            }
            init.send_record(Record::Degraded { step: number, call, errno });
        }
    }
    init.send_record(Record::Failed { step: NO_STEP, call: 0, errno: 0 });
    init.exit_failed()
}
