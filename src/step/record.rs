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
    /// The command was found, and no process stays; only the filter and `execve(2)` are left. If the stream ends after this
    /// record, `execve(2)` succeeded, or the process was killed.
    Ready,
    /// The child of a staying PID 1 executed the command. Its pidfd comes with the record (`SCM_RIGHTS`).
    Running,
    /// The pseudo-terminal is open. The parent's end comes with the record (`SCM_RIGHTS`).
    Terminal,
    /// The command can be executed, and waits until the parent lets it go. The pidfd of the process that will execute it
    /// comes with the record (`SCM_RIGHTS`), if a process of init stays beside it.
    AtGate,
    /// The prepared mount namespace is complete, and init exits. The namespace comes with the record (`SCM_RIGHTS`).
    Prepared,
    /// Init continues in a copy, and has exited. The copy's pidfd comes with the record (`SCM_RIGHTS`), unless the kernel
    /// refused to send it. The copy waits for one byte.
    Copied {
        /// The PID of the copy, which is a child of the parent.
        pid: i32,
    },
    /// The time of the task is over, and PID 1 exits.
    Deadline,
    /// The task has used its CPU time, and PID 1 exits.
    CpuDeadline,
    /// The child of a staying PID 1 ended.
    Exited {
        /// The wait status, as `wait4(2)` returns it.
        status: i32,
    },
    /// When the task ended. It follows the record of the end.
    EndedAt {
        /// Nanoseconds since the epoch.
        nanoseconds: u64,
    },
}

/// Length of an encoded [`Record`].
pub const RECORD: usize = 9;

/// The end of a task, as PID 1 writes it to the file of the exit record. `Policy::state_dir` says where that file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitRecord {
    /// How the task ended.
    pub end: End,
    /// When it ended: seconds and nanoseconds since the epoch.
    pub time: (u64, u32),
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The wait status of the main process, as `wait4(2)` returns it.
    Status(i32),
    /// PID 1 ended the task at its deadline.
    Deadline,
    /// PID 1 ended the task when it had used its CPU time.
    CpuDeadline,
    /// The owner killed the task, and PID 1 with it: the owner writes this record. Or PID 1 ended the task because its
    /// caller had ended.
    Killed,
    /// The command was not executed: the owner ended before it let the command go, or the kernel refused a later step.
    NotExecuted,
}

/// Length of an encoded [`ExitRecord`].
pub const EXIT_RECORD: usize = 32;

/// Offset of the exit record in its file. Before it is what the parent wrote when it made the file.
pub const EXIT_RECORD_AT: u64 = 32;

/// First bytes of an exit record, the last of which is the version of the format.
const EXIT_MAGIC: [u8; 4] = *b"cfx\x01";

impl ExitRecord {
    /// Encodes the record: magic, kind, status, nanoseconds, seconds, check sum; little-endian.
    pub fn encode(self) -> [u8; EXIT_RECORD] {
        let mut bytes = [0u8; EXIT_RECORD];
        let (kind, status) = match self.end {
            End::Status(status) => (1u32, status),
            End::Deadline => (2, 0),
            End::CpuDeadline => (3, 0),
            End::Killed => (4, 0),
            End::NotExecuted => (5, 0),
        };
        let (seconds, nanoseconds) = self.time;
        let fields = EXIT_MAGIC
            .into_iter()
            .chain(kind.to_le_bytes())
            .chain(status.to_le_bytes())
            .chain(nanoseconds.to_le_bytes())
            .chain(seconds.to_le_bytes());
        bytes.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
        let sum = check_sum(&bytes).to_le_bytes();
        bytes.iter_mut().rev().zip(sum.into_iter().rev()).for_each(|(byte, field)| *byte = field);
        bytes
    }

    /// Decodes a record.
    ///
    /// # Errors
    /// [`Malformed`] unless [`encode`](Self::encode) could have written `bytes`.
    pub fn decode(bytes: &[u8; EXIT_RECORD]) -> Result<Self, Malformed> {
        let mut words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        let mut word = || words.next().ok_or(Malformed);
        let (_magic, kind, status, nanoseconds) = (word()?, word()?, word()?.cast_signed(), word()?);
        let seconds = u64::from(word()?) | u64::from(word()?) << 32;
        let end = match kind {
            1 => End::Status(status),
            2 => End::Deadline,
            3 => End::CpuDeadline,
            4 => End::Killed,
            _ => End::NotExecuted,
        };
        let record = ExitRecord { end, time: (seconds, nanoseconds) };
        if record.encode() == *bytes { Ok(record) } else { Err(Malformed) }
    }
}

/// Hash of all bytes but the last eight.
fn check_sum(bytes: &[u8; EXIT_RECORD]) -> u64 {
    bytes.iter().take(EXIT_RECORD - 8).fold(FNV, fnv)
}

/// Start of a 64-bit FNV-1a hash.
pub const FNV: u64 = 0xcbf2_9ce4_8422_2325;

/// Adds a byte to a 64-bit FNV-1a hash.
pub fn fnv(hash: u64, byte: &u8) -> u64 {
    (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
}

impl Record {
    /// The end of the task that the record reports. `None` for another record.
    pub fn end(self) -> Option<End> {
        match self {
            Record::Exited { status } => Some(End::Status(status)),
            Record::Deadline => Some(End::Deadline),
            Record::CpuDeadline => Some(End::CpuDeadline),
            Record::Failed { .. }
            | Record::Degraded { .. }
            | Record::Ready
            | Record::Running
            | Record::Terminal
            | Record::AtGate
            | Record::Prepared
            | Record::Copied { .. }
            | Record::EndedAt { .. } => None,
        }
    }

    /// Encodes the record: kind, step (three bytes), call, errno or status or PID; or kind and time; little-endian.
    pub fn encode(self) -> [u8; RECORD] {
        if let Record::EndedAt { nanoseconds } = self {
            let [a, b, c, d, e, f, g, h] = nanoseconds.to_le_bytes();
            return [11, a, b, c, d, e, f, g, h];
        }
        let (kind, step, call, number) = match self {
            Record::Failed { step, call, errno } => (1, step, call, errno),
            Record::Degraded { step, call, errno } => (2, step, call, errno),
            Record::Ready => (3, 0, 0, 0),
            Record::Running => (4, 0, 0, 0),
            Record::Exited { status } => (5, 0, 0, status),
            Record::Deadline => (6, 0, 0, 0),
            Record::CpuDeadline => (7, 0, 0, 0),
            Record::Terminal => (8, 0, 0, 0),
            Record::Copied { pid } => (9, 0, 0, pid),
            Record::Prepared => (10, 0, 0, 0),
            Record::EndedAt { .. } => (11, 0, 0, 0),
            Record::AtGate => (12, 0, 0, 0),
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
            9 => Ok(Record::Copied { pid: errno }),
            10 => Ok(Record::Prepared),
            11 => Ok(Record::EndedAt { nanoseconds: u64::from_le_bytes([s0, s1, s2, call, n0, n1, n2, n3]) }),
            12 => Ok(Record::AtGate),
            _ => Err(Malformed),
        }
    }
}
