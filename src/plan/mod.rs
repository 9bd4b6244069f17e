//! The plan: what the parent does, what init does, and the report, as data.
//!
//! A plan is made by compiling a spec and touches nothing. It prints like strace, which is what the golden tests
//! compare and what `cofferdam explain` shows. Both halves are steps of one shape: an operation, the control that it
//! serves, what its refusal means, and the phase that it belongs to. The parent carries out its half with an undo list;
//! the undo list is the rollback of a failed spawn and the teardown of a task.
//!
//! What it does not do: decide (that is `compile`) or act (that is `spawn` and `init`).

use std::fmt;

use crate::cgroup::{CgroupOp, Cgroups};
use crate::error::{Error, Result};
use crate::report::{Control, Report};
use crate::step::wire::{self, Field, List, Op};
use crate::step::{Encoded, InitStep, Phase, call};

mod parent;

pub(crate) use parent::{EXECUTE_INIT, ParentOp, ParentStep, map_call};

/// What is done, in order, by whom, and what of the spec will hold.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The sandbox's name: that of its cgroup, and of its temporary root.
    pub id: String,
    /// What holds when every step succeeds.
    pub report: Report,
    /// What the parent does before the clone and beside init.
    pub(crate) parent: Vec<ParentStep>,
    /// What init does.
    pub(crate) init: Vec<InitStep>,
    /// The record of the cgroups that the parent's steps make.
    pub(crate) cgroups: Cgroups,
    /// The namespaces of the task that are not the caller's: `CLONE_NEW*` bits.
    pub(crate) namespaces: u32,
    /// The step of a process that joins the task's PID namespace, if that is not the caller's: it stays outside, and its
    /// child goes on inside.
    pub(crate) stays: Option<InitStep>,
    /// What must hold without reservation.
    pub(crate) must_hold: MustHold,
    /// The command, as the spec names it.
    pub(crate) command: String,
    /// Where it is looked for in the root, in order.
    pub(crate) candidates: Vec<String>,
}

/// What a process must do that joins the task later. It holds no file of the sandbox's own, and so no secret.
#[derive(Clone, Debug)]
pub(crate) struct Enclosure {
    /// The sandbox's name.
    pub id: String,
    /// What holds around the task.
    pub report: Report,
    /// The steps of init's of the phase [`Enter`](Phase::Enter), in order.
    pub steps: Vec<InitStep>,
    /// The record of the task's cgroups.
    pub cgroups: Cgroups,
    /// The namespaces of the task that are not the caller's: `CLONE_NEW*` bits.
    pub namespaces: u32,
    /// As in [`Plan`].
    pub stays: Option<InitStep>,
    /// As in [`Plan`].
    pub must_hold: MustHold,
}

/// What must hold, by the author's word and by the operator's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MustHold {
    /// What the author requires; `None`: whatever is not missing, but for `forgiven`.
    pub author: Option<Control>,
    /// What the operator requires.
    pub operator: Option<Control>,
    /// What may be missing where the author requires nothing by name.
    pub forgiven: Control,
}

impl MustHold {
    /// Refuses a report with less.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the controls that do not hold, and why.
    pub(crate) fn check(&self, report: &Report) -> Result<()> {
        let by_author = match self.author {
            None => report.missing.difference(self.forgiven),
            Some(some) => report.unmet(some),
        };
        let unmet = by_author | self.operator.map_or(Control::empty(), |some| report.unmet(some));
        if unmet.is_empty() {
            return Ok(());
        }
        // A remark on a control that was not asked for is no reason why it does not hold.
        let reason = match report.why(unmet & report.asked) {
            why if why.is_empty() => "the spec does not ask for it".to_string(),
            why => why,
        };
        Err(Error::Unsupported { control: unmet, reason })
    }
}

impl Plan {
    /// The descriptors that init is handed, by index.
    #[cfg(test)]
    pub(crate) fn handed(&self) -> impl Iterator<Item = &crate::step::Handed> {
        self.parent.iter().filter_map(|step| match &step.op {
            ParentOp::Hand(handed) => Some(handed),
            _ => None,
        })
    }

    /// Encodes the program for init: the numbers of the socket and of the descriptors, and the steps. A descriptor that
    /// the parent found not to be needed has none, and init passes over the step that names it.
    pub(crate) fn encode(&self, status: u32, fds: &[Option<u32>]) -> Vec<u8> {
        let mut steps = Vec::new();
        for step in &self.init {
            steps.push(u8::from(step.may_be_refused()));
            steps.extend_from_slice(step.op.wire());
        }
        let count = u32::try_from(self.init.len()).unwrap_or(u32::MAX);
        let fds = Encoded::of(fds.iter().map(|fd| fd.unwrap_or(u32::MAX)));
        let program = wire::Program { status, fds: fds.list(), steps: List::from_encoded(count, &steps) };
        let mut bytes = Vec::new();
        program.encode(&mut bytes);
        bytes
    }

    /// What of the plan outlives the spawn. `report` is the one that the spawn ended with.
    pub(crate) fn enclosure(&self, report: Report) -> Enclosure {
        let steps = self.init.iter().filter(|step| matches!(step.phase, Phase::Enter(_))).cloned().collect();
        let cgroups = Cgroups { steps: Vec::new(), ..self.cgroups.clone() };
        Enclosure {
            id: self.id.clone(),
            report,
            steps,
            cgroups,
            namespaces: self.namespaces,
            stays: self.stays.clone(),
            must_hold: self.must_hold,
        }
    }

    /// The system calls that undo what the parent's steps make on the host: after the end of the task, and after a
    /// refusal as far as they were made.
    pub(crate) fn undo_calls(&self) -> Vec<String> {
        let ops: Vec<&CgroupOp> = self
            .parent
            .iter()
            .filter_map(|step| match &step.op {
                ParentOp::Cgroup(op) => Some(op),
                _ => None,
            })
            .collect();
        let mut lines = Cgroups::undo_calls(&ops, &self.cgroups.paths);
        lines.extend(self.parent.iter().filter_map(|step| match &step.op {
            ParentOp::TempRoot(make) => Some(make.undo_call()),
            _ => None,
        }));
        lines
    }

    /// The step of init with this number.
    pub(crate) fn init_step(&self, step: u32) -> Option<&InitStep> {
        self.init.get(usize::try_from(step).ok()?)
    }

    /// The line of a call of init's, for an error.
    pub(crate) fn call(&self, step: u32, index: u8) -> String {
        let op = self.init_step(step).and_then(InitStep::op);
        op.map_or_else(|| "decode the plan".to_string(), |op| call(&op, index))
    }

    /// What a refusal by init means, where the errno alone does not tell.
    pub(crate) fn meaning(&self, step: u32, index: u8, errno: i32) -> Option<String> {
        let op = self.init_step(step).and_then(InitStep::op)?;
        let Op::Bind { source, target, file_type, .. } = op else { return None };
        let moves = call(&op, index).starts_with("move_mount(");
        match errno {
            libc::ENOENT | libc::ELOOP if !moves => Some(format!(
                "{target:?} is, or lies below, a symbolic link that leads to nothing in the root"
            )),
            libc::EINVAL | libc::ENOTDIR if moves => {
                let (is, other) = match file_type {
                    wire::FileType::Dir => ("a directory", "none"),
                    wire::FileType::File => ("a file", "a directory"),
                };
                Some(format!("{source:?} is {is}, and {target:?} in the root is {other}"))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# parent")?;
        for step in &self.parent {
            print(f, step.phase, &step.op.title(), step.may_be_refused(), &step.op.calls())?;
        }
        writeln!(f, "# init")?;
        for step in &self.init {
            print(f, step.phase, &step.op.title(), step.may_be_refused(), &step.op.calls())?;
        }
        writeln!(f, "# release")?;
        self.undo_calls().iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// The title of a step with its phase, unless that is to build, then its calls.
fn print(
    f: &mut fmt::Formatter<'_>,
    phase: Phase,
    title: &str,
    may_be_refused: bool,
    calls: &[String],
) -> fmt::Result {
    let phase = match phase {
        Phase::Build => "",
        Phase::Prepare => " (prepare)",
        Phase::Enter(_) => " (enter)",
    };
    let refused = if may_be_refused { " (may be refused)" } else { "" };
    writeln!(f, "# {title}{phase}{refused}")?;
    calls.iter().try_for_each(|line| writeln!(f, "  {line}"))
}
