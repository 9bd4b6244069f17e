//! The plan of another process in a running task: it joins the task's namespaces and cgroups, takes the same ids,
//! capabilities and filters, and executes a command of its own.
//!
//! It is made of the steps that the task's own plan marks with [`Phase::Enter`](crate::step::Phase::Enter). What it adds
//! is the joining itself.

use super::process;
use crate::error::{Error, Result};
use crate::plan::{ParentOp, Plan};
use crate::report::Control;
use crate::spec::Stdio;
use crate::step::wire::{Dup, Op};
use crate::step::{self, Draft, Encoded, Handed, InitStep, Step};

/// What is executed in a running task.
#[derive(Clone, Debug, Default)]
pub(crate) struct EnterCommand {
    /// The command, looked for as that of a spec.
    pub command: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment, `KEY=value`.
    pub env: Vec<String>,
    /// Its standard input, output and error.
    pub stdio: [Stdio; 3],
}

/// Compiles. `kept` is what the task has left of its plan.
///
/// # Errors
/// [`Error::Spec`] for a string with a NUL byte.
pub(crate) fn enter(kept: &Plan, run: &EnterCommand) -> Result<Plan> {
    let mut strings = run.args.iter().chain(&run.env).chain([&run.command]);
    if let Some(wrong) = strings.find(|text| text.contains('\0')) {
        return Err(Error::spec("command", format!("{wrong:?} contains a NUL byte")));
    }
    let mut draft = Draft { report: kept.report.clone(), ..Draft::default() };
    // The process that joins a PID namespace stays outside of it. Its child is inside, and takes what confines it.
    let child = kept.init.iter().position(|step| step.op().is_some_and(|op| confines(&op)));
    let (before, own) = kept.init.split_at(child.unwrap_or(kept.init.len()));
    before.iter().for_each(|step| join(kept, step, run.stdio, &mut draft));
    if let Some(Op::Fork { uid, gid, set_groups, last, .. }) = kept.stays.as_ref().and_then(InitStep::op) {
        let caller = draft.hand(Handed::Driver);
        draft.enter(Control::PID_NS, Op::Fork { uid, gid, set_groups, last, caller });
    }
    // The task's filter is the last before the command is executed, where it can be.
    let (last, own) = match own.split_last() {
        Some((last, own)) if matches!(last.op(), Some(Op::Filter { .. })) => (Some(last), own),
        _ => (None, own),
    };
    draft.init.extend(own.iter().cloned());
    let candidates = process::candidates(&run.command);
    process::find(&candidates, &mut draft);
    draft.init.extend(last.cloned());
    let (args, env) = (Encoded::strings(&run.args), Encoded::strings(&run.env));
    draft.build(Control::empty(), Op::Exec { args: args.list(), env: env.list() });

    let hand = |handed| Step::of(Control::MOUNT_NS, ParentOp::Hand(handed));
    let mut parent: Vec<_> = draft.handed.into_iter().map(hand).collect();
    let into_cgroup = kept.cgroups.paths.into;
    let clone = ParentOp::Clone { namespaces: 0, into_cgroup };
    let ops = [ParentOp::Channel, ParentOp::SealSteps, ParentOp::SealInit, clone, ParentOp::AwaitCommand];
    parent.extend(ops.map(|op| Step::of(Control::MOUNT_NS, op)));
    Ok(Plan {
        report: draft.report,
        parent,
        init: draft.init,
        command: run.command.clone(),
        candidates,
        ..kept.clone()
    })
}

/// Adds a step that comes before the child, with descriptors of its own; and behind the last one that needs the host's
/// namespaces, the joining.
fn join(kept: &Plan, step: &InitStep, stdio: [Stdio; 3], draft: &mut Draft) {
    match step.op() {
        Some(Op::Fds { .. }) => {
            let streams = stdio.map(process::stream_source).into_iter().zip(0..);
            let map = streams.map(|(from, to)| Dup { from: draft.hand(Handed::Stream(to, from)), to });
            let map = Encoded::of(map.collect::<Vec<_>>());
            draft.enter(step.control, Op::Fds { map: map.list() });
        }
        Some(Op::Enter { path, may_be_absent, .. }) => {
            let tasks = step::to_path(path);
            let tasks_of = if may_be_absent { Handed::Share } else { Handed::Tasks };
            process::enter_one(tasks_of(tasks.clone()), &tasks, draft);
        }
        Some(Op::Affinity {}) => {
            draft.init.push(step.clone());
            let fd = draft.hand(Handed::Task);
            let path = step::text(b"the task");
            draft.enter(Control::MOUNT_NS, Op::Join { fd, kind: kept.namespaces, path });
        }
        _ => draft.init.push(step.clone()),
    }
}

/// What only the process takes that executes the command, and not the one that stays.
fn confines(op: &Op<'_>) -> bool {
    matches!(op, Op::Rlimit { .. } | Op::Landlock { .. } | Op::Filter { .. } | Op::Bounding { .. })
}
