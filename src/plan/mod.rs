//! The plan: what the parent does, what init does, and the report, as data.
//!
//! A plan is made by compiling a spec and touches nothing. It prints like strace, which is what the
//! golden tests compare and what `cofferdam explain` shows.
//!
//! What it does not do: decide (that is `compile`) or act (that is `spawn` and `init`).

use std::fmt;

use crate::report::Report;
use crate::step::wire::{self, Field, List, Op};
use crate::step::{Encoded, Handed, IdMaps, Step, call};

/// What is done, in order, by whom, and what of the spec will hold.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The sandbox's name: that of its cgroup, and of its temporary root.
    pub id: String,
    /// What the parent does before the clone and beside it, printed like strace.
    pub parent: Vec<String>,
    /// Namespaces made by the clone: `CLONE_NEW*` bits.
    pub namespaces: u32,
    /// The descriptors that init is handed, by index.
    pub handed: Vec<Handed>,
    /// What init does.
    pub init: Vec<Step>,
    /// The id maps that the parent writes, when there is a new user namespace.
    pub maps: Option<IdMaps>,
    /// Whether init stays as PID 1 and tells how the task ended.
    pub reaper: bool,
    /// The command, as the spec names it.
    pub command: String,
    /// Where it is looked for in the root, in order.
    pub candidates: Vec<String>,
    /// What holds when every step succeeds.
    pub report: Report,
}

impl Plan {
    /// Encodes the program for init: the socket's and the descriptors' numbers, and the steps.
    pub fn encode(&self, status: u32, fds: &[u32]) -> Vec<u8> {
        let fds = Encoded::of(fds.iter().copied());
        let mut steps = Vec::new();
        for step in &self.init {
            steps.push(u8::from(step.optional));
            steps.extend_from_slice(step.wire());
        }
        let count = u32::try_from(self.init.len()).unwrap_or(u32::MAX);
        let program = wire::Program { status, fds: fds.list(), steps: List::from_encoded(count, &steps) };
        let mut bytes = Vec::new();
        program.encode(&mut bytes);
        bytes
    }

    /// The line of a call of init's, for an error.
    pub(crate) fn call(&self, step: u32, index: u8) -> String {
        let op = usize::try_from(step).ok().and_then(|i| self.init.get(i)).and_then(Step::op);
        op.map_or_else(|| "decode the plan".to_string(), |op| call(&op, index))
    }
}

impl Plan {
    /// What a refusal by init means, where the errno alone does not tell.
    pub(crate) fn meaning(&self, step: u32, index: u8, errno: i32) -> Option<String> {
        let op = usize::try_from(step).ok().and_then(|i| self.init.get(i)).and_then(Step::op)?;
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
        for line in &self.parent {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "# init")?;
        for step in &self.init {
            let optional = if step.optional { " (may be refused)" } else { "" };
            writeln!(f, "# {}{optional}", step.title())?;
            for line in step.calls() {
                writeln!(f, "  {line}")?;
            }
        }
        Ok(())
    }
}
