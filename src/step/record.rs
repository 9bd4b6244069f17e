//! What init tells the parent, byte for byte; part of `wire`, and so compiled into both.

use super::Malformed;

/// The step at which the plan itself, not one of its steps, is at fault.
pub const NO_STEP: u32 = 0x00ff_ffff;

/// What init tells the parent: nine bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// The kernel refused call `call` of step `step`; init has ended.
    Failed {
        /// Index of the step in the program.
        step: u32,
        /// Index of the call among those of the operation.
        call: u8,
        /// The kernel's answer.
        errno: i32,
    },
    /// The same, but the step is optional and init went on.
    Degraded {
        /// Index of the step in the program.
        step: u32,
        /// Index of the call among those of the operation.
        call: u8,
        /// The kernel's answer.
        errno: i32,
    },
    /// All steps are done; execve is next. The end of the stream after it means that it succeeded.
    Ready,
    /// The child of a staying init executed the command; its pidfd comes with the record.
    Running,
    /// The child of a staying init ended.
    Exited {
        /// The status as `wait4(2)` gives it.
        status: i32,
    },
}

/// Length of an encoded [`Record`].
pub const RECORD: usize = 9;

impl Record {
    /// The nine bytes: kind, step and call, errno.
    pub fn encode(self) -> [u8; RECORD] {
        let (kind, step, call, number) = match self {
            Record::Failed { step, call, errno } => (1, step, call, errno),
            Record::Degraded { step, call, errno } => (2, step, call, errno),
            Record::Ready => (3, 0, 0, 0),
            Record::Running => (4, 0, 0, 0),
            Record::Exited { status } => (5, 0, 0, status),
        };
        let [s0, s1, s2, _] = step.to_le_bytes();
        let [n0, n1, n2, n3] = number.to_le_bytes();
        [kind, s0, s1, s2, call, n0, n1, n2, n3]
    }

    /// The opposite of [`encode`](Record::encode).
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let [kind, s0, s1, s2, call, n0, n1, n2, n3] = *bytes else { return Err(Malformed) };
        let step = u32::from_le_bytes([s0, s1, s2, 0]);
        let errno = i32::from_le_bytes([n0, n1, n2, n3]);
        match kind {
            1 => Ok(Record::Failed { step, call, errno }),
            2 => Ok(Record::Degraded { step, call, errno }),
            3 => Ok(Record::Ready),
            4 => Ok(Record::Running),
            5 => Ok(Record::Exited { status: errno }),
            _ => Err(Malformed),
        }
    }
}
