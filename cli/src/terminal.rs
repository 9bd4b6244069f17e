//! The caller's terminal, connected to the pseudo-terminal of a command.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::AsFd;

use cofferdam::{ExitStatus, Task, Terminal, WindowSize};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal as Number};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::Failure;
use crate::signals::{Signals, forward, is_in_background};

/// How much is copied at a time.
const CHUNK: usize = 16 << 10;

/// More bytes than the kernel keeps for the reader of a terminal.
const HELD_MOST: usize = 1 << 20;

/// The size of the pseudo-terminal of a command: that of the caller's terminal, or 24 times 80 without one.
///
/// # Errors
/// If the command is to read from standard input (`-i`), and that is not a terminal.
pub(crate) fn size(interactive: bool) -> Result<WindowSize, Failure> {
    if interactive && !io::stdin().is_terminal() {
        return Err(Failure::new(
            "-t: standard input is not a terminal (run it in one, or leave out -t or -i)",
        ));
    }
    let sizes = [
        rustix::termios::tcgetwinsize(io::stdin()),
        rustix::termios::tcgetwinsize(io::stdout()),
        rustix::termios::tcgetwinsize(io::stderr()),
    ];
    let size = sizes.into_iter().find_map(Result::ok);
    Ok(size.map_or(WindowSize { rows: 24, columns: 80 }, |size| WindowSize {
        rows: size.ws_row,
        columns: size.ws_col,
    }))
}

/// Waits for the end of a command. If it has a pseudo-terminal, copies from there to standard output meanwhile and, with
/// `interactive`, from standard input. `interactive` says also whether a command without one has the caller's standard
/// input.
///
/// Without `interactive`, the terminal of the caller keeps its mode, so its keys send signals to this process, which
/// forwards them.
pub(crate) fn wait(task: &Task, signals: &Signals, interactive: bool) -> Result<ExitStatus, Failure> {
    let failed = |e: io::Error| Failure::new(format!("-t: {e}"));
    let reads = interactive && io::stdin().is_terminal();
    let Some(terminal) = task.take_terminal() else { return signals.wait(task, reads) };
    let mut copy = Copy::new(terminal, interactive).map_err(failed)?;
    let raw = interactive.then(Raw::set).transpose().map_err(failed)?;
    while copy.some(task, signals).map_err(failed)? {
        while let Some(signal) = signals.next() {
            match signal {
                Number::SIGTSTP => {
                    raw.iter().for_each(Raw::restore);
                    signals.suspend(task, reads)?;
                    raw.iter().try_for_each(Raw::again).map_err(failed)?;
                    copy.resize();
                }
                Number::SIGWINCH => copy.resize(),
                signal => forward(task, signal)?,
            }
        }
    }
    copy.drain();
    drop(raw);
    Ok(task.wait()?)
}

/// The raw mode of the caller's terminal, until it is dropped. In the background, the mode is that of another job.
struct Raw(Termios);

impl Raw {
    fn set() -> io::Result<Raw> {
        let raw = Raw(tcgetattr(io::stdin())?);
        // In the background, the kernel stops this process until it is in the foreground (SIGTTOU).
        raw.make()?;
        // From now on, it would stop a process that came into the background right before it sets the mode.
        SigSet::from(Number::SIGTTOU).thread_block()?;
        Ok(raw)
    }

    /// Sets raw mode after a stop of this process.
    fn again(&self) -> io::Result<()> {
        if is_in_background() { Ok(()) } else { self.make() }
    }

    fn make(&self) -> io::Result<()> {
        let mut mode = self.0.clone();
        cfmakeraw(&mut mode);
        Ok(tcsetattr(io::stdin(), SetArg::TCSADRAIN, &mode)?)
    }

    fn restore(&self) {
        if is_in_background() {
            return;
        }
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.restore();
    }
}

/// The two directions.
struct Copy {
    terminal: Terminal,
    /// A duplicate of standard input, read without a buffer. `None` after its end, and if it is not read.
    input: Option<File>,
    /// What was read from the input, and is not written yet.
    pending: Vec<u8>,
    /// Whether a process has the other end of the pseudo-terminal open.
    open: bool,
}

impl Copy {
    fn new(terminal: Terminal, interactive: bool) -> io::Result<Copy> {
        let flags = OFlag::from_bits_retain(fcntl(&terminal, FcntlArg::F_GETFL)?);
        fcntl(&terminal, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let input = interactive.then(|| io::stdin().as_fd().try_clone_to_owned()).transpose()?;
        Ok(Copy { terminal, input: input.map(File::from), pending: Vec::new(), open: true })
    }

    /// Waits until something can be copied, or a signal arrives. Returns whether the command still runs.
    fn some(&mut self, task: &Task, signals: &Signals) -> io::Result<bool> {
        let [ended, _, shows, takes, typed] = self.poll(task, signals)?;
        if ended {
            return Ok(false);
        }
        if shows {
            self.open = self.show()?;
        }
        if takes {
            self.write()?;
        }
        if typed {
            self.read();
        }
        Ok(true)
    }

    /// Polls: the end of the command, a signal, output, room for input, input.
    fn poll(&self, task: &Task, signals: &Signals) -> io::Result<[bool; 5]> {
        let none = PollFlags::empty();
        let writes = if self.pending.is_empty() { none } else { PollFlags::POLLOUT };
        let mut fds = vec![
            PollFd::new(task.pidfd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        if self.open {
            fds.push(PollFd::new(self.terminal.as_fd(), PollFlags::POLLIN | writes));
        }
        let input = self.input.as_ref().filter(|_| self.open && self.pending.is_empty());
        fds.extend(input.map(|input| PollFd::new(input.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => return Ok([false; 5]),
            polled => polled?,
        };
        let seen: Vec<PollFlags> = fds.iter().map(|fd| fd.revents().unwrap_or(none)).collect();
        let any = |at: usize| seen.get(at).is_some_and(|events| !events.is_empty());
        let terminal = seen.get(2).copied().filter(|_| self.open).unwrap_or(none);
        let shows = terminal.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR);
        Ok([any(0), any(1), shows, terminal.contains(PollFlags::POLLOUT), any(3)])
    }

    /// Copies output. Returns false if no process has the other end open.
    fn show(&mut self) -> io::Result<bool> {
        let mut buffer = [0; CHUNK];
        match self.terminal.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(n) => {
                let mut out = io::stdout().lock();
                out.write_all(buffer.get(..n).unwrap_or_default())?;
                out.flush()?;
                Ok(true)
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(true),
            Err(e) => Err(e),
        }
    }

    fn read(&mut self) {
        let mut buffer = [0; CHUNK];
        let read = self.input.as_mut().map(|input| input.read(&mut buffer));
        match read {
            Some(Ok(n @ 1..)) => self.pending.extend_from_slice(buffer.get(..n).unwrap_or_default()),
            Some(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
            // The caller's terminal was closed. The kernel then sends SIGHUP.
            _ => self.input = None,
        }
    }

    fn write(&mut self) -> io::Result<()> {
        match self.terminal.write(&self.pending) {
            Ok(n) => drop(self.pending.drain(..n.min(self.pending.len()))),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Copies what the command has written before its end. Does not wait for other processes with the terminal, which may
    /// write to it without end.
    fn drain(&mut self) {
        for _ in 0..HELD_MOST / CHUNK {
            let mut fds = [PollFd::new(self.terminal.as_fd(), PollFlags::POLLIN)];
            let readable = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
            if !readable || !self.show().unwrap_or(false) {
                break;
            }
        }
    }

    fn resize(&self) {
        // The command may have ended.
        let _ = size(false).map(|size| self.terminal.resize(size));
    }
}
