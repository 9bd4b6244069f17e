//! Runs a program: its steps in order. The last step executes the command.

use crate::state::Init;
use crate::step::run_op;
use crate::wire::{NO_STEP, Record};

/// Runs the steps of the program. The last step executes the command, so this function never returns. After a step that
/// forks, only the child continues with the next step: PID 1 does not return from it.
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
