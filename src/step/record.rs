//! The records that init sends to the parent. Part of `wire`, so compiled into the library and into init.

use super::Malformed;

/// Step number of a failure that belongs to no step: init could not decode the program, or the program has no step that
/// executes the command.
pub const NO_STEP: u32 = 0x00ff_ffff;

/// A record that init sends to the parent: nine bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// The kernel refused call `call` of step `step`, and init has exited.
    Failed {
        /// Index of the step in the program.
        step: u32,
        /// Index of the call in the operation.
        call: u8,
        /// The errno.
        errno: i32,
    },
    /// The kernel refused call `call` of step `step`. The step is optional, and init continued.
    Degraded {
        /// Index of the step in the program.
        step: u32,
        /// Index of the call in the operation.
        call: u8,
        /// The errno.
        errno: i32,
    },
    /// The command was found; only the filter and `execve(2)` are left. If the stream ends after this record,
    /// `execve(2)` succeeded.
    Ready,
    /// The child of a staying PID 1 executed the command. Its pidfd comes with the record (`SCM_RIGHTS`).
    Running,
    /// The pseudo-terminal is open. The parent's end comes with the record (`SCM_RIGHTS`).
    Terminal,
    /// The time of the task is over, and PID 1 exits.
    Deadline,
    /// The task has used its CPU time, and PID 1 exits.
    CpuDeadline,
    /// The child of a staying PID 1 ended.
    Exited {
        /// The wait status, as `wait4(2)` returns it.
        status: i32,
    },
}

/// Length of an encoded [`Record`].
pub const RECORD: usize = 9;

impl Record {
    /// Encodes the record: kind, step (three bytes), call, errno or status; little-endian.
    pub fn encode(self) -> [u8; RECORD] {
        let (kind, step, call, number) = match self {
            Record::Failed { step, call, errno } => (1, step, call, errno),
            Record::Degraded { step, call, errno } => (2, step, call, errno),
            Record::Ready => (3, 0, 0, 0),
            Record::Running => (4, 0, 0, 0),
            Record::Exited { status } => (5, 0, 0, status),
            Record::Deadline => (6, 0, 0, 0),
            Record::CpuDeadline => (7, 0, 0, 0),
            Record::Terminal => (8, 0, 0, 0),
        };
        let [s0, s1, s2, _] = step.to_le_bytes();
        let [n0, n1, n2, n3] = number.to_le_bytes();
        [kind, s0, s1, s2, call, n0, n1, n2, n3]
    }

    /// Decodes a record.
    ///
    /// # Errors
    /// [`Malformed`] unless `bytes` are nine bytes that [`encode`](Record::encode) could have written.
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
            6 => Ok(Record::Deadline),
            7 => Ok(Record::CpuDeadline),
            8 => Ok(Record::Terminal),
            _ => Err(Malformed),
        }
    }
}
