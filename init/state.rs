//! Init's state, and its reports to the parent and to PID 1.

use crate::clock::Clock;
use crate::log::Log;
use crate::sys;
use crate::wire::{FAILED, FDS, Program, Record, Str};

/// Init's state: descriptors, the program, and the command.
pub struct Init {
    /// The socket to the parent.
    pub status: i32,
    /// In the child of a staying PID 1, the socket to PID 1; else -1.
    pub pid1: i32,
    /// The timer of the task's deadline; -1 without one.
    pub timer: i32,
    /// The deadline, in nanoseconds.
    pub deadline: u64,
    /// The limit of the task's CPU time.
    pub clock: Clock,
    /// The file of the exit record; -1 without one.
    pub record: i32,
    /// The log of the standard streams.
    pub log: Log,
    /// Descriptors that the parent handed over; -1 once a step has taken one.
    pub fds: [i32; FDS as usize],
    /// The root of the sandbox. -1 before the step that mounts it.
    pub root: i32,
    /// The file system that overlays write to. -1 before the step that mounts it.
    pub upper: i32,
    /// The mounts at `/dev`, `/proc`, `/sys` and `/secrets`. Each is -1 before the step that mounts it. A process that
    /// can write to the root may move those directories meanwhile, but the descriptors still refer to the mounts.
    pub anchors: [i32; 4],
    /// The mount of the empty directory that masks are copies of. -1 before the step that mounts it.
    pub mask: i32,
    /// The mount namespace that is being prepared, and its table of mounts; -1 unless a step has opened them.
    pub prepared: [i32; 2],
    /// Index of the candidate that was found as the command, and its path.
    pub command: Option<(u8, Str<'static>)>,
    /// The arguments and the environment of the command, as `execve(2)` takes them.
    pub words: Option<(&'static [usize], &'static [usize])>,
    pub program: Program<'static>,
    /// The mapped bytes of the program.
    pub plan: &'static [u8],
}

impl Init {
    /// The state before the first step.
    pub fn new(status: i32, program: Program<'static>, plan: &'static [u8]) -> Init {
        let mut fds = [-1; FDS as usize];
        for (slot, fd) in fds.iter_mut().zip(program.fds.iter()) {
            *slot = fd as i32;
        }
        Init {
            status,
            pid1: -1,
            timer: -1,
            deadline: 0,
            clock: Clock::NONE,
            record: -1,
            log: Log::NONE,
            fds,
            root: -1,
            upper: -1,
            anchors: [-1; 4],
            mask: -1,
            prepared: [-1; 2],
            command: None,
            words: None,
            program,
            plan,
        }
    }

    /// The descriptors that PID 1 keeps and its child closes; -1 for what there is not.
    pub fn of_pid1(&self) -> [i32; 7] {
        let [stdout, stderr] = self.log.pipes;
        [self.timer, self.clock.timer, self.clock.counter, self.record, self.log.file, stdout, stderr]
    }

    /// Takes a descriptor out of the table, and leaves -1 in its place. -1 if the index has no descriptor.
    pub fn take_fd(&mut self, index: u32) -> i32 {
        match self.fds.get_mut(index as usize) {
            Some(fd) => core::mem::replace(fd, -1),
            None => -1,
        }
    }

    /// Descriptor of the sandbox's `/dev` mount; -1 before it is mounted.
    pub fn dev(&self) -> i32 {
        let [dev, ..] = self.anchors;
        dev
    }

    /// Sends a record to the parent. Errors are ignored: there is no other process to report to.
    pub fn send_record(&self, record: Record) {
        let _ = sys::send(self.status, &record.encode());
    }

    /// Exits after a refusal. The child of a staying PID 1 notifies PID 1 first, which waits for the child's exec.
    pub fn exit_failed(&self) -> ! {
        if self.pid1 >= 0 {
            let _ = sys::send(self.pid1, b"f");
        }
        sys::exit(FAILED)
    }
}
