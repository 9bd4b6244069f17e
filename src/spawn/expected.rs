//! Checks the records that init sends. A task with `CAP_SYS_PTRACE` can take the socket from a process that enters it, or
//! from PID 1 right after the exec, and send records with descriptors of its choice. The caller signals the processes
//! that these descriptors refer to.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::step::InitStep;
use crate::step::wire::Op;
use crate::sys;
use crate::task::Child;

/// Number of `CAP_SYS_PTRACE`.
const SYS_PTRACE: u32 = 19;

/// The records with a descriptor that are to come. Init sends each once. It sends those of the copy and of the terminal
/// before a process of the task can trace it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    copy: bool,
    terminal: bool,
    command: bool,
    /// How many of the two descriptors of prepared mounts.
    prepared: u8,
    at_gate: bool,
    /// Whether a process of the task may trace init.
    traced: bool,
}

impl Expected {
    pub(super) fn of(plan: &Plan) -> Expected {
        let mut expected = Expected {
            copy: false,
            terminal: false,
            command: false,
            prepared: 0,
            at_gate: false,
            traced: true,
        };
        for op in plan.init.iter().filter_map(InitStep::op) {
            match op {
                Op::CloneInto { .. } => expected.copy = true,
                Op::Terminal { .. } => expected.terminal = true,
                Op::Fork { .. } | Op::ForkOutside { .. } | Op::ForkInside { .. } => expected.command = true,
                Op::SendPrepared {} => expected.prepared = 2,
                Op::Gate { .. } => expected.at_gate = true,
                Op::Bounding { keep, .. } => expected.traced = keep & (1 << SYS_PTRACE) != 0,
                _ => {}
            }
        }
        expected
    }

    /// What is left to come when the command has passed the gate.
    pub(super) fn after_gate(self) -> Expected {
        Expected { copy: false, terminal: false, at_gate: false, ..self }
    }

    /// The pidfd of the process that waits at the gate, if it is a child of init.
    ///
    /// # Errors
    /// As [`invalid`].
    pub(super) fn at_gate(&mut self, fd: Option<OwnedFd>, child: &Child) -> Result<Option<OwnedFd>> {
        match (std::mem::take(&mut self.at_gate), self.command) {
            (true, true) => self.command(fd, child),
            (true, false) => Ok(None),
            (false, _) => Err(invalid()),
        }
    }

    /// Whether a process of init's program stays beside the command.
    pub(super) fn stays(&self) -> bool {
        self.command
    }

    /// Whether init is to continue in a copy, and has not sent its pidfd.
    pub(super) fn copies(&self) -> bool {
        self.copy
    }

    /// The pidfd of the copy in which init continues.
    ///
    /// # Errors
    /// As [`invalid`].
    pub(super) fn copy(&mut self, fd: Option<OwnedFd>) -> Result<OwnedFd> {
        let expected = std::mem::take(&mut self.copy);
        fd.filter(|_| expected).ok_or_else(invalid)
    }

    /// The prepared mount namespace, then its table of mounts.
    ///
    /// # Errors
    /// As [`invalid`].
    pub(super) fn prepared(&mut self, fd: Option<OwnedFd>) -> Result<OwnedFd> {
        self.prepared = self.prepared.checked_sub(1).ok_or_else(invalid)?;
        fd.ok_or_else(invalid)
    }

    /// The caller's end of the pseudo-terminal.
    ///
    /// # Errors
    /// As [`invalid`].
    pub(super) fn terminal(&mut self, fd: Option<OwnedFd>) -> Result<OwnedFd> {
        let expected = std::mem::take(&mut self.terminal);
        fd.filter(|_| expected).ok_or_else(invalid)
    }

    /// The pidfd of the command, which is a child of init. `None` if the caller has no descriptor left for it.
    ///
    /// # Errors
    /// As [`invalid`].
    pub(super) fn command(&self, fd: Option<OwnedFd>, child: &Child) -> Result<Option<OwnedFd>> {
        if let (true, Some(fd)) = (self.traced, &fd) {
            let own = sys::is_child(fd.as_fd(), child.pidfd());
            let own =
                own.map_err(Error::prepare("read(\"/proc/PID/stat\"), for the parent of the command"))?;
            if !own {
                return Err(invalid());
            }
        }
        if self.command { Ok(fd) } else { Err(invalid()) }
    }
}

/// The error for a record that init does not send.
pub(super) fn invalid() -> Error {
    let why = "init does not send this record: a task with CAP_SYS_PTRACE may have sent it";
    Error::prepare("recvmsg(status)")(io::Error::new(io::ErrorKind::InvalidData, why))
}
