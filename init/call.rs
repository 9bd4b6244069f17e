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
    fn at(self, index: usize) -> Result<T, CallFailed>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, index: usize) -> Result<T, CallFailed> {
        self.map_err(|errno| CallFailed { index: index as u8, errno })
    }
}
