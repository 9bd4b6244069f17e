//! The program that the parent sends to init: steps in order. Part of `wire`, so compiled into the library and into
//! init.

use super::{FDS, Field, List, Malformed, Op, Sink};

/// A step of a program: an operation, and whether init continues if the kernel refuses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramStep<'a> {
    /// Whether init reports a refusal and continues. Otherwise init exits at the refusal.
    pub optional: bool,
    /// The operation.
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

/// A program: descriptors by number, and steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program<'a> {
    /// Number of the socket to the parent.
    pub status: u32,
    /// Numbers of the descriptors that the parent hands over. Steps refer to them by index. `u32::MAX` stands for a
    /// descriptor that is not needed.
    pub fds: List<'a, u32>,
    /// The steps, in order.
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
