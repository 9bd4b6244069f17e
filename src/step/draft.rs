//! The draft of a plan, while it is compiled.

use super::wire::Op;
use super::{Enter, Handed, InitStep};
use crate::report::{Control, Report};

/// A draft of a plan. The `lower` functions of the rooms (`rootfs`, `ns`, `caps` and others) add to it: to the report,
/// to the steps of init, and to the descriptors that the steps refer to.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub report: Report,
    /// The steps of init so far, in order.
    pub init: Vec<InitStep>,
    /// The descriptors that the parent hands to init, by index.
    pub handed: Vec<Handed>,
}

impl Draft {
    /// Adds a step of init of the phase [`Build`](super::Phase::Build).
    pub(crate) fn build(&mut self, control: Control, op: Op<'_>) {
        self.init.push(InitStep::new(control, op));
    }

    /// Adds a step of init of the phase [`Enter`](super::Phase::Enter): for the first process of the enclosure and for
    /// each that joins it.
    pub(crate) fn enter(&mut self, at: Enter, control: Control, op: Op<'_>) {
        self.init.push(InitStep::new(control, op).entering(at));
    }

    /// Adds a descriptor that the parent hands to init. Returns its index.
    pub(crate) fn hand(&mut self, handed: Handed) -> u32 {
        let index = u32::try_from(self.handed.len()).unwrap_or(u32::MAX);
        self.handed.push(handed);
        index
    }
}
