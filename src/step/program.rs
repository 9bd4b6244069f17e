//! The program that init is given: steps in order; part of `wire`, and so compiled into both.

use super::{FDS, Field, List, Malformed, Op, Sink};

/// A step: an operation, and whether init goes on when the kernel refuses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramStep<'a> {
    /// Whether init reports a refusal and goes on. Else it ends at the refusal.
    pub optional: bool,
    /// What to do.
    pub op: Op<'a>,
}

impl<'a> Field<'a> for ProgramStep<'a> {
    fn encode<S: Sink>(&self, sink: &mut S) {
        self.optional.encode(sink);
        self.op.encode(sink);
    }
    fn decode(input: &mut &'a [u8]) -> Result<Self, Malformed> {
        Ok(ProgramStep { optional: bool::decode(input)?, op: Op::decode(input)? })
    }
}

/// What init gets: the descriptors by number, and the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program<'a> {
    /// The socket to the parent.
    pub status: u32,
    /// Numbers of the descriptors handed over; the steps name them by index.
    pub fds: List<'a, u32>,
    /// What to do, in order.
    pub steps: List<'a, ProgramStep<'a>>,
}

impl<'a> Field<'a> for Program<'a> {
    fn encode<S: Sink>(&self, sink: &mut S) {
        self.status.encode(sink);
        self.fds.encode(sink);
        self.steps.encode(sink);
    }
    fn decode(input: &mut &'a [u8]) -> Result<Self, Malformed> {
        let program =
            Program { status: u32::decode(input)?, fds: List::decode(input)?, steps: List::decode(input)? };
        if input.is_empty() && program.fds.len() <= FDS as usize { Ok(program) } else { Err(Malformed) }
    }
}
