//! What init holds while it works, and how it reports.

use crate::sys;
use crate::wire::{FDS, Program, Record, Str};

/// What init holds while it works: descriptors only.
pub struct Init {
    /// The socket to the parent.
    pub status: i32,
    /// In the child of a staying init, the socket to that; else -1.
    pub pid1: i32,
    /// What the parent handed over; -1 once used up.
    pub fds: [i32; FDS as usize],
    /// The root of the sandbox, from the step that mounts it.
    pub root: i32,
    /// The tmpfs that overlays are written to, from the step that mounts it.
    pub upper: i32,
    /// What was mounted at `/dev`, `/proc`, `/sys` and `/secrets`, from then on: whoever can write the root may
    /// move those directories meanwhile, but not what is mounted there.
    pub anchors: [i32; 4],
    /// The command, once it is found: which candidate, and its path.
    pub command: Option<(u8, Str<'static>)>,
    /// The program.
    pub program: Program<'static>,
    /// The bytes of it.
    pub plan: &'static [u8],
}

/// Exit status when a step was refused or the plan is malformed. The parent has the record; this is for `ps`.
pub const FAILED: i32 = 125;

impl Init {
    /// The state before the first step.
    pub fn new(status: i32, program: Program<'static>, plan: &'static [u8]) -> Init {
        let mut fds = [-1; FDS as usize];
        for (slot, fd) in fds.iter_mut().zip(program.fds.iter()) {
            *slot = fd as i32;
        }
        Init { status, pid1: -1, fds, root: -1, upper: -1, anchors: [-1; 4], command: None, program, plan }
    }

    /// Takes a descriptor out of the table of those that were handed over.
    pub fn take_fd(&mut self, index: u32) -> i32 {
        match self.fds.get_mut(index as usize) {
            Some(fd) => core::mem::replace(fd, -1),
            None => -1,
        }
    }

    /// The sandbox's own `/dev`, once it is mounted.
    pub fn dev(&self) -> i32 {
        let [dev, ..] = self.anchors;
        dev
    }

    /// Sends a record to the parent. A failure has no one to be reported to.
    pub fn send_record(&self, record: Record) {
        let _ = sys::send(self.status, &record.encode());
    }

    /// Ends after a refusal. The child of a staying init says so to it, which waits for the child's exec.
    pub fn exit_failed(&self) -> ! {
        if self.pid1 >= 0 {
            let _ = sys::send(self.pid1, b"f");
        }
        sys::exit(FAILED)
    }
}
