//! Which call of an operation the kernel refused.

use crate::sys::Errno;

/// The kernel refused a call of an operation.
pub struct CallFailed {
    /// Index of the line that the plan prints for the call, among those of the operation.
    pub index: u8,
    /// The kernel's answer.
    pub errno: Errno,
}

/// What an operation comes to.
pub type Done = Result<(), CallFailed>;

/// Names the call that a result comes from.
pub trait At<T> {
    /// The call is on the line of this index (`src/step/render.rs`). A test makes every call of every operation fail
    /// and compares the line.
    fn at(self, index: u8) -> Result<T, CallFailed>;
}

/// The index of the next call, where how many come before it depends on the operation's fields.
pub struct NextCall(u8);

impl NextCall {
    /// Counts from `first`.
    pub fn from(first: u8) -> NextCall {
        NextCall(first)
    }

    /// The index of one more call.
    pub fn index(&mut self) -> u8 {
        let index = self.0;
        self.0 = index.wrapping_add(1);
        index
    }
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, index: u8) -> Result<T, CallFailed> {
        self.map_err(|errno| CallFailed { index, errno })
    }
}
