//! The file of a task's log. Part of `wire`, so compiled into the library and into init.
//!
//! The file has a header and a ring of bytes. The ring has entries, one after another, each with a head. Positions of
//! entries count all bytes that were ever written, so the place of position `n` in the ring is `n` modulo its size. PID 1
//! moves `start` past the oldest entries before it overwrites them, and `end` after it has written an entry. A reader
//! that finds `start` moved past what it has read knows that it was overwritten.

use super::Malformed;

/// The header of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogHeader {
    /// Size of the ring in bytes.
    pub size: u64,
    /// Position of the oldest entry.
    pub start: u64,
    /// Position after the newest entry.
    pub end: u64,
}

/// Length of an encoded [`LogHeader`]. The ring begins there.
pub const LOG_HEADER: usize = 32;

/// First bytes of the file, the last of which is the version of the format.
const MAGIC: u64 = u64::from_be_bytes(*b"cfd-log\x01");

impl LogHeader {
    /// Encodes the header: magic, size, start, end.
    pub fn encode(self) -> [u8; LOG_HEADER] {
        let mut bytes = [0; LOG_HEADER];
        let fields = [MAGIC.to_be(), self.size.to_le(), self.start.to_le(), self.end.to_le()];
        let fields = fields.into_iter().flat_map(u64::to_ne_bytes);
        bytes.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
        bytes
    }

    /// Decodes the header.
    ///
    /// # Errors
    /// [`Malformed`] for another file, and for positions that cannot be.
    pub fn decode(bytes: &[u8; LOG_HEADER]) -> Result<Self, Malformed> {
        let mut words = bytes.as_chunks::<8>().0.iter();
        let mut word = || words.next().copied().ok_or(Malformed);
        let magic = u64::from_be_bytes(word()?);
        let [size, start, end] = [word()?, word()?, word()?].map(u64::from_le_bytes);
        let held = end.checked_sub(start).ok_or(Malformed)?;
        if magic != MAGIC || held > size { Err(Malformed) } else { Ok(LogHeader { size, start, end }) }
    }

    /// The ranges of the file that hold `len` bytes from a position on: the second one is empty unless the first one
    /// reaches the end of the ring. `None` if the ring is smaller.
    pub fn ranges(self, position: u64, len: usize) -> Option<[(u64, usize); 2]> {
        let place = position.checked_rem(self.size)?;
        let until_end = usize::try_from(self.size.saturating_sub(place)).unwrap_or(usize::MAX);
        let first = len.min(until_end);
        let header = LOG_HEADER as u64;
        (len as u64 <= self.size)
            .then(|| [(header.saturating_add(place), first), (header, len.saturating_sub(first))])
    }
}

/// The head of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogHead {
    /// 1 for the standard output, 2 for the standard error.
    pub stream: u8,
    /// Number of bytes after the head, at most [`LOG_ENTRY`].
    pub len: u16,
    /// When they were read from the task: seconds and nanoseconds since the epoch.
    pub time: (u64, u32),
}

/// Length of an encoded [`LogHead`].
pub const LOG_HEAD: usize = 16;

/// Maximum number of bytes in an entry.
pub const LOG_ENTRY: usize = 4096;

impl LogHead {
    /// Encodes the head: stream, zero, length, nanoseconds, seconds; little-endian.
    pub fn encode(self) -> [u8; LOG_HEAD] {
        let ([l0, l1], [n0, n1, n2, n3]) = (self.len.to_le_bytes(), self.time.1.to_le_bytes());
        let [s0, s1, s2, s3, s4, s5, s6, s7] = self.time.0.to_le_bytes();
        [self.stream, 0, l0, l1, n0, n1, n2, n3, s0, s1, s2, s3, s4, s5, s6, s7]
    }

    /// Decodes the head.
    ///
    /// # Errors
    /// [`Malformed`] unless [`encode`](Self::encode) could have written `bytes`.
    pub fn decode(bytes: [u8; LOG_HEAD]) -> Result<Self, Malformed> {
        let [stream, zero, l0, l1, n0, n1, n2, n3, s0, s1, s2, s3, s4, s5, s6, s7] = bytes;
        let time =
            (u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]), u32::from_le_bytes([n0, n1, n2, n3]));
        let head = LogHead { stream, len: u16::from_le_bytes([l0, l1]), time };
        let valid =
            matches!(stream, 1 | 2) && zero == 0 && head.len as usize <= LOG_ENTRY && time.1 < 1_000_000_000;
        if valid { Ok(head) } else { Err(Malformed) }
    }

    /// Length of the entry with its head.
    pub fn total(self) -> u64 {
        (LOG_HEAD as u64).saturating_add(self.len.into())
    }
}
