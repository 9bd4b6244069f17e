//! Names the call of an operation that the kernel refused.

use crate::sys::Errno;

/// A refused call of an operation.
pub struct CallFailed {
    /// Index of the call's line among the lines that the plan prints for the operation.
    pub index: u8,
    /// The errno.
    pub errno: Errno,
}

/// Result of an operation.
pub type Done = Result<(), CallFailed>;

/// Adds the index of the call to a result.
pub trait At<T> {
    /// Marks the call with the index of its line in `src/step/render.rs`. A test makes every call of every operation
    /// fail and compares the line.
    fn at(self, index: u8) -> Result<T, CallFailed>;
}

/// Counter for the index of the next call, where the number of calls before it depends on the operation's fields.
pub struct NextCall(u8);

impl NextCall {
    /// Counts from `first`.
    pub fn from(first: u8) -> NextCall {
        NextCall(first)
    }

    /// Returns the index of the next call, and counts it.
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
