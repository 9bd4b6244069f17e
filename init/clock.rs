//! The limit of the task's CPU time: the counter of its cgroup, and a timer for the next reading of it.

use crate::sys::{self, Errno};
use crate::uapi::ENODATA;

/// The shortest time between two readings, in nanoseconds. The task can exceed its limit by this time on each CPU.
const SHORTEST: u64 = 10_000_000;

/// The limit, and how the CPU time is read.
#[derive(Clone, Copy)]
pub struct Clock {
    /// The timer, which expires when the CPU time is to be read; -1 without a limit.
    pub timer: i32,
    /// The counter's file, open for reading; -1 without a limit.
    pub counter: i32,
    /// The limit in nanoseconds.
    pub limit: u64,
    /// Nanoseconds for each unit of the counter.
    pub unit: u64,
    /// Maximum number of CPUs that the task runs on at once.
    pub processors: u64,
}

impl Clock {
    /// No limit.
    pub const NONE: Clock = Clock { timer: -1, counter: -1, limit: 0, unit: 0, processors: 1 };

    /// The CPU time in nanoseconds that is left. ENODATA if the file has no number.
    pub fn left(&self) -> Result<u64, Errno> {
        let mut text = [0u8; 64];
        let n = sys::pread(self.counter, &mut text, 0)?;
        let used = first_number(text.get(..n).unwrap_or_default()).ok_or(ENODATA)?;
        Ok(self.limit.saturating_sub(used.saturating_mul(self.unit)))
    }

    /// Starts the timer for the next reading. On all CPUs together, the task cannot use `left` in less time.
    pub fn start(&self, left: u64) -> Result<(), Errno> {
        let time = left.checked_div(self.processors).unwrap_or(0);
        sys::start_timer(self.timer, time.max(SHORTEST))
    }

    /// Whether the limit is reached. If not, starts the timer again. If the kernel has no
    /// memory for a reading, PID 1 reads again after the shortest time.
    pub fn is_over(&self) -> bool {
        let left = self.left().unwrap_or(1);
        left == 0 || self.start(left).is_err()
    }
}

/// The first decimal number in `text`.
fn first_number(text: &[u8]) -> Option<u64> {
    let mut number = None;
    for byte in text {
        match (number, byte.is_ascii_digit()) {
            (None, false) => {}
            (Some(_), false) => break,
            (so_far, true) => {
                number = Some(so_far.unwrap_or(0u64).wrapping_mul(10).wrapping_add(u64::from(byte & 0xf)));
            }
        }
    }
    number
}
