//! Reads the log of a task: what its standard streams have written, as PID 1 has copied it to a file.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::uio::pread;

use super::Task;
use crate::error::{Error, Result};
use crate::step::wire::{LOG_HEAD, LOG_HEADER, LogHead, LogHeader};

/// A part of the output of a task, as it was read from a pipe at once. It may be a part of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogEntry {
    /// The stream that it was written to.
    pub stream: LogStream,
    /// When it was read from the pipe.
    pub time: SystemTime,
    /// The bytes, at most 4096.
    pub bytes: Vec<u8>,
}

/// A standard stream that goes to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    /// The standard output.
    Stdout,
    /// The standard error.
    Stderr,
}

/// A reader of a task's [log](crate::Stdio::Log), from the oldest entry that the log still has. Any number of processes
/// may read a log while it is written, without recovering the task.
///
/// As an iterator, it ends after the newest entry. A later call returns what was written since. Entries are in the order
/// in which PID 1 read them. So two entries of different streams that were written at almost the same time may be exchanged.
///
/// ```no_run
/// use cofferdam::{Policy, Sandbox, Stdio};
///
/// let policy = Policy { state_dir: Some("/var/lib/driver".into()), ..Policy::default() };
/// let task = Sandbox::command("make").policy(&policy).stdout(Stdio::Log).stderr(Stdio::Log).spawn()?;
/// task.wait_end(None)?; // before `wait`, which removes the log
/// for entry in task.log()? {
///     print!("{}", String::from_utf8_lossy(&entry?.bytes));
/// }
/// task.release()?;
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Debug)]
pub struct Log {
    file: OwnedFd,
    path: PathBuf,
    /// Position of the next entry to read. `None` before the first read.
    next: Option<u64>,
    overwritten: u64,
}

impl Log {
    /// Opens the file of a log, `ID.log` in the [`state_dir`](crate::Policy::state_dir).
    ///
    /// # Errors
    /// [`Error::Task`] if it cannot be opened, or is not a log (`InvalidData`).
    pub fn open(path: impl AsRef<Path>) -> Result<Log> {
        let path = path.as_ref().to_owned();
        // O_NONBLOCK: a FIFO of that name must not block the caller.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = open(&path, flags, Mode::empty()).map_err(Error::task(format!("openat({path:?})")))?;
        let log = Log { file, path, next: None, overwritten: 0 };
        log.header()?;
        Ok(log)
    }

    /// Number of bytes that were overwritten before this value has read them, with 16 bytes for each entry.
    pub fn overwritten(&self) -> u64 {
        self.overwritten
    }

    /// The next entry. `None` if there is none yet.
    ///
    /// # Errors
    /// [`Error::Task`] with the refused call, or with `InvalidData` if the file was changed by something else.
    pub fn read(&mut self) -> Result<Option<LogEntry>> {
        loop {
            let header = self.header()?;
            let at = match self.next {
                Some(next) if next >= header.start => next,
                next => {
                    self.overwritten =
                        self.overwritten.saturating_add(header.start.saturating_sub(next.unwrap_or(0)));
                    header.start
                }
            };
            self.next = Some(at);
            if at >= header.end {
                return Ok(None);
            }
            let entry = self.entry(header, at)?;
            // PID 1 may have overwritten it meanwhile.
            if self.header()?.start > at {
                continue;
            }
            let (head, bytes) = entry.ok_or_else(|| self.invalid("an entry"))?;
            self.next = Some(at.saturating_add(head.total()));
            let stream = if head.stream == 1 { LogStream::Stdout } else { LogStream::Stderr };
            let time = UNIX_EPOCH.checked_add(Duration::new(head.time.0, head.time.1));
            return Ok(Some(LogEntry { stream, time: time.unwrap_or(UNIX_EPOCH), bytes }));
        }
    }

    /// The entry at a position. `None` if the bytes are none.
    fn entry(&self, header: LogHeader, at: u64) -> Result<Option<(LogHead, Vec<u8>)>> {
        let mut head = [0; LOG_HEAD];
        self.read_at(header, at, &mut head)?;
        let Ok(head) = LogHead::decode(head) else { return Ok(None) };
        let mut bytes = vec![0; head.len.into()];
        self.read_at(header, at.saturating_add(LOG_HEAD as u64), &mut bytes)?;
        let whole = at.saturating_add(head.total()) <= header.end;
        Ok(whole.then_some((head, bytes)))
    }

    fn header(&self) -> Result<LogHeader> {
        let mut bytes = [0; LOG_HEADER];
        self.fill(&mut bytes, 0)?;
        LogHeader::decode(&bytes).map_err(|_| self.invalid("its header"))
    }

    fn read_at(&self, header: LogHeader, position: u64, buffer: &mut [u8]) -> Result<()> {
        let ranges = header.ranges(position, buffer.len()).ok_or_else(|| self.invalid("an entry"))?;
        let mut rest = buffer;
        for (at, len) in ranges {
            let (part, others) = rest.split_at_mut_checked(len).ok_or_else(|| self.invalid("an entry"))?;
            self.fill(part, at)?;
            rest = others;
        }
        Ok(())
    }

    /// Reads the whole buffer. What is beyond the end of the file is zero: PID 1 has not written it.
    fn fill(&self, buffer: &mut [u8], at: u64) -> Result<()> {
        let refused = |e: Errno| Error::task(format!("pread64({:?})", self.path))(e);
        pread(&self.file, buffer, i64::try_from(at).unwrap_or(i64::MAX)).map_err(refused)?;
        Ok(())
    }

    fn invalid(&self, what: &str) -> Error {
        let why = format!("it is not the log of a task: {what} is invalid");
        Error::task(format!("read the log {:?}", self.path))(io::Error::new(io::ErrorKind::InvalidData, why))
    }
}

impl Iterator for Log {
    type Item = Result<LogEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

impl Task {
    /// Opens the [log](crate::Stdio::Log) of the task. Open it before [`wait`](Task::wait) or [`release`](Task::release),
    /// which remove it; the value can still be read afterwards. See [`Log`].
    ///
    /// # Errors
    /// [`Error::Task`] with `NotFound` if no stream of the task goes to a log, or if the task was released. Also if it was
    /// [detached](Task::detach): [`Log::open`] takes the path.
    pub fn log(&self) -> Result<Log> {
        self.owned("open the log")?;
        let path = self.undo().exit_record().map(|record| record.log_path());
        let path =
            path.ok_or_else(|| Error::task("open the log")(io::Error::from(io::ErrorKind::NotFound)))?;
        Log::open(path)
    }
}
