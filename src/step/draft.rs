//! A plan while it is compiled.

use super::wire::Op;
use super::{Enter, Handed, InitStep};
use crate::report::{Control, Report};

/// What the lowerings add to: the report, the steps of init, and the descriptors that those name.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub report: Report,
    /// The steps of init so far, in order.
    pub init: Vec<InitStep>,
    /// The descriptors that init is handed, by index.
    pub handed: Vec<Handed>,
}

impl Draft {
    /// Adds a step of init, once a task.
    pub(crate) fn build(&mut self, control: Control, op: Op<'_>) {
        self.init.push(InitStep::new(control, op));
    }

    /// Adds a step of init for every process that runs in the enclosure, the first one among them.
    pub(crate) fn enter(&mut self, at: Enter, control: Control, op: Op<'_>) {
        self.init.push(InitStep::new(control, op).entering(at));
    }

    /// Hands over a descriptor; its index.
    pub(crate) fn hand(&mut self, handed: Handed) -> u32 {
        let index = u32::try_from(self.handed.len()).unwrap_or(u32::MAX);
        self.handed.push(handed);
        index
    }
}
