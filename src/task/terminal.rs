//! The caller's end of a task's pseudo-terminal.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::error::{Error, Result};
use crate::spec::WindowSize;
use crate::sys;

/// The caller's end of the pseudo-terminal of a task or of an additional command: what is written is the task's input,
/// and what the task writes is read. From [`Task::take_terminal`](crate::Task::take_terminal).
///
/// The task has the other end, which belongs to the `devpts` of the sandbox (`pty(7)`, `TIOCGPTPEER`, Linux 4.13). A
/// read returns 0 when the last process has closed it. A drop sends SIGHUP to the processes in the foreground.
///
/// ```no_run
/// use cofferdam::{Sandbox, WindowSize};
/// use std::io::{Read, Write};
///
/// let task = Sandbox::command("sh").terminal(WindowSize { rows: 24, columns: 80 }).spawn()?;
/// if let Some(mut terminal) = task.take_terminal() {
///     terminal.write_all(b"stty size; exit\n")?;
///     terminal.resize(WindowSize { rows: 50, columns: 132 })?;
///     let mut shown = String::new();
///     terminal.read_to_string(&mut shown)?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Terminal(File);

impl Terminal {
    pub(crate) fn new(end: OwnedFd) -> Self {
        Terminal(end.into())
    }

    /// Another handle, for a thread that reads while this one writes.
    ///
    /// # Errors
    /// The error of `fcntl(F_DUPFD_CLOEXEC)`.
    pub fn try_clone(&self) -> io::Result<Terminal> {
        self.0.try_clone().map(Terminal)
    }

    /// Sets the size of the window. The kernel sends SIGWINCH to the processes in the foreground.
    ///
    /// # Errors
    /// [`Error::Task`] with the refused `ioctl(TIOCSWINSZ)`.
    pub fn resize(&self, size: WindowSize) -> Result<()> {
        sys::set_window_size(self.0.as_fd(), size.rows, size.columns)
            .map_err(Error::task("ioctl(TIOCSWINSZ)"))
    }
}

impl Read for Terminal {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer) {
            // No process has the other end open any more.
            Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(0),
            read => read,
        }
    }
}

impl Write for Terminal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Terminal> for OwnedFd {
    fn from(terminal: Terminal) -> OwnedFd {
        terminal.0.into()
    }
}
