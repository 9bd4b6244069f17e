//! The plan of an additional process in a running task. The process joins the task's namespaces and cgroups, takes the
//! same ids, capabilities and filters, and executes a command of its own.
//!
//! The plan consists of the steps that the task's own plan marks with [`Phase::Enter`], and a step that joins the
//! namespaces.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{checks, process};
use crate::cgroup::JoinShare;
use crate::error::Result;
use crate::plan::{Enclosure, ParentOp, Plan};
use crate::report::Control;
use crate::spec::Stdio;
use crate::step::wire::{Dup, Op};
use crate::step::{self, Draft, Encoded, Enter, Handed, InitStep, Phase, Step};

/// The command to execute in a running task.
#[derive(Clone, Debug, Default)]
pub(crate) struct EnterCommand {
    /// The command. It is looked up like a spec's command with the working directory `/`.
    pub command: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its environment, `KEY=value`.
    pub env: Vec<OsString>,
    /// Its standard input, output and error.
    pub stdio: [Stdio; 3],
}

/// Compiles the plan of the additional process.
///
/// # Errors
/// [`Error::Spec`](crate::Error::Spec) if a string contains a NUL byte.
pub(crate) fn enter(enclosure: &Enclosure, run: &EnterCommand) -> Result<Plan> {
    checks::no_nul("command", &run.command)?;
    run.args.iter().try_for_each(|arg| checks::no_nul("args", arg))?;
    run.env.iter().try_for_each(|variable| checks::no_nul("env", variable))?;
    let mut draft = Draft { report: enclosure.report.clone(), ..Draft::default() };
    let steps = |at| enclosure.steps.iter().filter(move |step| step.phase == Phase::Enter(at));
    steps(Enter::Outside).for_each(|step| outside(step, &run.stdio, &mut draft));
    let fd = draft.hand(Handed::Task);
    let join = Op::Join { fd, kind: enclosure.namespaces, path: step::text(b"the task") };
    draft.build(Control::MOUNT_NS, join);
    // setns(2) with a PID namespace affects only children: the process that joins stays outside, and its child is
    // inside.
    if let Some(Op::Fork { uid, gid, set_groups, last, .. }) = enclosure.stays.as_ref().and_then(InitStep::op)
    {
        let caller = draft.hand(Handed::CallerPidfd);
        draft.build(Control::PID_NS, Op::Fork { uid, gid, set_groups, last, caller });
    }
    draft.init.extend(steps(Enter::Inside).cloned());
    let candidates = process::candidates(&run.command, Path::new("/"), None)?;
    process::find(&candidates, &mut draft);
    draft.init.extend(steps(Enter::Last).cloned());
    let strings = |list: &[OsString]| Encoded::strings(list.iter().map(|text| text.as_bytes()));
    let (args, env) = (strings(&run.args), strings(&run.env));
    draft.build(Control::empty(), Op::Exec { args: args.list(), env: env.list() });

    let hand = |handed| Step::of(Control::MOUNT_NS, ParentOp::Hand(handed));
    let mut parent: Vec<_> = draft.handed.into_iter().map(hand).collect();
    let clone = ParentOp::Clone { namespaces: 0, into_cgroup: enclosure.cgroups.paths.into };
    let ops = [ParentOp::Channel, ParentOp::SealSteps, ParentOp::SealInit, clone, ParentOp::AwaitCommand];
    parent.extend(ops.map(|op| Step::of(Control::MOUNT_NS, op)));
    let check = |share: &JoinShare| Step::of(Control::CPUSET, ParentOp::CheckShare(share.clone()));
    parent.extend(enclosure.cgroups.share.as_ref().map(check));
    let Enclosure { id, cgroups, namespaces, stays, must_hold, root, .. } = enclosure.clone();
    Ok(Plan {
        id,
        report: draft.report,
        parent,
        init: draft.init,
        cgroups,
        namespaces,
        stays,
        must_hold,
        root,
        command: run.command.clone(),
        candidates,
    })
}

/// Adds a step that runs before the namespaces are joined. It gets the descriptors of the new process in place of the
/// task's.
fn outside(step: &InitStep, stdio: &[Stdio; 3], draft: &mut Draft) {
    match step.op() {
        Some(Op::Fds { .. }) => {
            let streams = stdio.iter().map(process::stream_source).zip(0..);
            let map = streams.map(|(from, to)| Dup { from: draft.hand(Handed::Stream(to, from)), to });
            let map = Encoded::of(map.collect::<Vec<_>>());
            draft.build(step.control, Op::Fds { map: map.list() });
        }
        Some(Op::Enter { path, may_be_absent, .. }) => {
            let tasks = step::to_path(path);
            let tasks_of = if may_be_absent { Handed::Share } else { Handed::Tasks };
            process::enter_one(tasks_of(tasks.clone()), &tasks, draft);
        }
        _ => draft.init.push(step.clone()),
    }
}
