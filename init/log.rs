//! PID 1 copies the standard streams of the task from pipes to a file, which keeps the newest entries.
//!
//! The task has the other ends of the pipes. It waits while they are full. What cannot be written to the file is lost:
//! the task goes on.

use crate::sys::{self, Errno};
use crate::uapi::{EAGAIN, EINTR, EINVAL, ENODATA};
use crate::wire::{LOG_ENTRY, LOG_HEAD, LOG_HEADER, LogHead, LogHeader};

/// How many entries of each stream are copied after the end of the task. A pipe holds no more by default.
const LEFT: usize = 32;

/// The file of the log, and the pipes; -1 for what there is not.
#[derive(Clone, Copy)]
pub struct Log {
    pub file: i32,
    /// The pipes of standard output and standard error.
    pub pipes: [i32; 2],
    header: LogHeader,
}

impl Log {
    /// No log.
    pub const NONE: Log = Log { file: -1, pipes: [-1; 2], header: LogHeader { size: 0, start: 0, end: 0 } };

    /// The log in this file. Reads its header.
    pub fn open(file: i32, pipes: [i32; 2]) -> Result<Log, Errno> {
        let mut bytes = [0; LOG_HEADER];
        if sys::pread(file, &mut bytes, 0)? != LOG_HEADER {
            return Err(ENODATA);
        }
        let header = LogHeader::decode(&bytes).map_err(|_| EINVAL)?;
        Ok(Log { file, pipes, header })
    }

    /// Copies one entry from the pipe with this index. Closes the pipe after its last byte. Returns whether anything was
    /// read.
    pub fn copy(&mut self, index: usize) -> bool {
        let Some(pipe) = self.pipes.get(index).copied().filter(|pipe| *pipe >= 0) else { return false };
        let mut buffer = [0u8; LOG_ENTRY];
        match sys::read(pipe, &mut buffer) {
            Err(EAGAIN | EINTR) => false,
            Ok(n @ 1..) => {
                let time = sys::now();
                let head = LogHead { stream: if index == 0 { 1 } else { 2 }, len: n as u16, time };
                let _ = self.append(head, buffer.get(..n).unwrap_or_default());
                true
            }
            _ => {
                sys::close(pipe);
                self.pipes.iter_mut().filter(|fd| **fd == pipe).for_each(|fd| *fd = -1);
                false
            }
        }
    }

    /// Copies what is in the pipes.
    pub fn drain(&mut self) {
        for index in 0..self.pipes.len() {
            for _ in 0..LEFT {
                if !self.copy(index) {
                    break;
                }
            }
        }
    }

    /// Adds an entry. Makes room for it first.
    fn append(&mut self, head: LogHead, bytes: &[u8]) -> Result<(), Errno> {
        let LogHeader { size, start, end } = self.header;
        let next = end.wrapping_add(head.total());
        let mut oldest = start;
        while next.wrapping_sub(oldest) > size {
            let mut bytes = [0; LOG_HEAD];
            self.each(oldest, LOG_HEAD, |at, range| {
                sys::pread(self.file, bytes.get_mut(range).unwrap_or_default(), at)
            })?;
            // If the head is not one, the ring starts anew.
            oldest = LogHead::decode(bytes).map_or(end, |head| oldest.wrapping_add(head.total()));
        }
        if oldest != start {
            self.header.start = oldest;
            self.write_header()?;
        }
        let encoded = head.encode();
        self.write(end, &encoded)?;
        self.write(end.wrapping_add(LOG_HEAD as u64), bytes)?;
        self.header.end = next;
        self.write_header()
    }

    fn write_header(&self) -> Result<(), Errno> {
        sys::pwrite(self.file, &self.header.encode(), 0).map(drop)
    }

    fn write(&self, position: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.each(position, bytes.len(), |at, range| {
            sys::pwrite(self.file, bytes.get(range).unwrap_or_default(), at)
        })
    }

    /// Calls `f` for each part of a range of the ring. Fails if it does not handle all bytes.
    fn each(
        &self,
        position: u64,
        len: usize,
        mut f: impl FnMut(u64, core::ops::Range<usize>) -> Result<usize, Errno>,
    ) -> Result<(), Errno> {
        let mut done = 0usize;
        for (at, len) in self.header.ranges(position, len).ok_or(EINVAL)? {
            if len > 0 && f(at, done..done.wrapping_add(len))? != len {
                return Err(ENODATA);
            }
            done = done.wrapping_add(len);
        }
        Ok(())
    }
}
