//! Init as PID 1: a child executes the command, and PID 1 reaps processes and reports the task's exit status.
//!
//! Without this, the task itself would be PID 1. The kernel drops signals to PID 1 that have the default disposition:
//! `abort()` and `kill -TERM $$` would do nothing. Orphans would stay zombies.
//!
//! If the operator has a `state_dir`, PID 1 also holds a file, to which it writes the exit status before it reports it to
//! the parent. So the status is known after the parent has ended. The task cannot reach the descriptor: its process closes
//! it before it executes the command, and PID 1 is not dumpable.
//!
//! Without a PID namespace the process that stays is not PID 1 of one, and does the same. If the command itself is to be
//! PID 1, the process that stays is outside of the PID namespace ([`fork_outside`]). A process that enters a running task
//! forks in a similar way ([`fork_inside`]). In this file the process that stays is called PID 1 in all four cases.
//!
//! Before the child executes the command, it waits until PID 1 has given up its descriptors, ids, capabilities, bounding
//! set and the plan ([`await_parent`]). So PID 1 never has more privileges than the task: a task that takes control of
//! PID 1 gains no privilege and finds no secret in its memory. Until then the child goes on with its own steps. Only the process outside of the PID namespace, which the task cannot see, keeps `CAP_KILL`: the task may
//! have any user, and the end of the process that stays does not end the namespace.

use crate::call::{At, CallFailed, Done, NextCall};
use crate::clock::Clock;
use crate::credentials::{drop_bounding, set_ids};
use crate::log::Log;
use crate::reap_filter::{NO_CHILD, filter};
use crate::state::Init;
use crate::sys::{self, Errno, PollFd};
use crate::uapi::{
    CAP_KILL, CLONE_NEWPID, ECONNRESET, EPIPE, POLLIN, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL,
    PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, SIGKILL,
};
use crate::wire::{EXIT_RECORD_AT, End, ExitRecord, FAILED, Record};

/// Credentials of PID 1 after the fork.
pub struct Left {
    /// User id of PID 1.
    pub uid: u32,
    /// Group id of PID 1.
    pub gid: u32,
    /// Whether PID 1 drops its supplementary groups.
    pub set_groups: bool,
    /// The bounding set that the fork has inherited.
    pub bounding: u64,
}

/// Indices of the pidfds of the caller that the parent of the task's main process watches. An index beyond the table
/// means none.
pub struct Watched {
    /// The parent exits when the caller ends.
    pub caller: u32,
    /// Until the caller lets the command go, the parent exits when the caller ends.
    pub gate: u32,
}

/// Forks. Returns in the child. In PID 1, reaps until the task ends and does not return, unless a call is refused before
/// the child may execute the command.
pub fn fork_and_reap(init: &mut Init, watched: Watched, left: Left) -> Done {
    match fork(init, watched, &mut NextCall::from(0))? {
        Forked::Child => Ok(()),
        Forked::Parent(parent) => {
            let give_up_privileges = || {
                drop_bounding(left.bounding, 4)?;
                let mut next = NextCall::from(5);
                left.set_ids(&mut next)?;
                drop_capabilities(0, NO_CHILD, &mut next)
            };
            parent.let_continue(init, 3, give_up_privileges)?;
            parent.reap(init, NO_CHILD)
        }
    }
}

/// As [`fork_and_reap`], but the child is PID 1 of a new PID namespace, and its parent is outside of it. The end of the
/// parent does not end the namespace, so the parent kills the child before it exits. The child runs the steps that mount
/// the sandbox: a proc file system shows the PID namespace of the process that mounts it.
pub fn fork_outside(init: &mut Init, watched: Watched, left: Left) -> Done {
    // The root is replaced later. The kernel then moves this process too, unless its working directory is elsewhere.
    sys::chdir(c"/").at(0)?;
    sys::unshare(CLONE_NEWPID).at(1)?;
    match fork(init, watched, &mut NextCall::from(2))? {
        Forked::Child => {
            // The session of the parent is outside of the namespace: getsid(2) would return 0.
            sys::setsid().at(5)
        }
        Forked::Parent(parent) => {
            let pid = parent.pid;
            let give_up_privileges = || {
                drop_bounding(left.bounding, 7)?;
                let mut next = NextCall::from(8);
                sys::prctl(PR_SET_KEEPCAPS, 1, 0).at(next.index())?;
                left.set_ids(&mut next)?;
                drop_capabilities(1 << CAP_KILL, pid, &mut next)
            };
            parent.let_continue(init, 6, give_up_privileges)?;
            parent.reap(init, pid)
        }
    }
}

/// As [`fork_and_reap`], in a process that joins a running task: it has the task's ids and its bounding set already,
/// and its parent stays outside of the PID namespace, so its end does not end the child. The parent kills the child before
/// it exits. The kernel kills the child too (`PR_SET_PDEATHSIG`), unless the command has cleared that.
pub fn fork_inside(init: &mut Init, caller: u32) -> Done {
    match fork(init, Watched { caller, gate: u32::MAX }, &mut NextCall::from(0))? {
        Forked::Child => {
            // The parent is in no process group that the command can signal.
            sys::setsid().at(3)?;
            // If the parent has ended before, the child ends when it waits for the parent's byte.
            sys::prctl(PR_SET_PDEATHSIG, SIGKILL, 0).at(4).map(drop)
        }
        Forked::Parent(parent) => {
            let pid = parent.pid;
            parent.let_continue(init, 5, || drop_capabilities(0, pid, &mut NextCall::from(6)))?;
            parent.reap(init, pid)
        }
    }
}

/// The process after the fork.
enum Forked {
    Child,
    Parent(Parent),
}

/// What the parent of the task's main process holds.
struct Parent {
    /// The signalfd.
    signals: i32,
    /// A pidfd of the caller.
    caller: i32,
    /// A pidfd of the caller, if the child waits at the gate.
    gate: i32,
    /// The socket to the child.
    child: i32,
    /// A pidfd of the child.
    pidfd: i32,
    /// The child's PID.
    pid: i32,
}

fn fork(init: &mut Init, watched: Watched, next: &mut NextCall) -> Result<Forked, CallFailed> {
    let (caller, gate) = (init.take_fd(watched.caller), init.take_fd(watched.gate));
    let index = next.index();
    // Without a signalfd PID 1 blocks in wait4(2): it does not notice when the caller ends or the time is over, and copies
    // no stream to the log.
    let signals = match sys::open_child_signals() {
        Err(errno) if init.timer >= 0 || init.clock.timer >= 0 || init.log.file >= 0 => {
            return Err(errno).at(index);
        }
        opened => opened.unwrap_or(-1),
    };
    let (ours, theirs) = sys::socketpair().at(next.index())?;
    let mut pidfd = -1;
    let pid = sys::fork(&mut pidfd).at(next.index())?;
    if pid == 0 {
        sys::close(signals);
        sys::close(caller);
        sys::close(gate);
        sys::close(ours);
        init.of_pid1().into_iter().for_each(sys::close);
        init.pid1 = theirs;
        return Ok(Forked::Child);
    }
    sys::close(theirs);
    Ok(Forked::Parent(Parent { signals, caller, gate, child: ours, pidfd, pid }))
}

/// Waits until the parent has given up its privileges. If `tied`, the kernel kills this process when the parent ends. A
/// change of credentials would have cleared that.
pub fn await_parent(init: &Init, tied: bool) -> Done {
    let mut next = NextCall::from(0);
    if tied {
        sys::prctl(PR_SET_PDEATHSIG, SIGKILL, 0).at(next.index())?;
    }
    let index = next.index();
    await_byte(init).at(index)?;
    // A parent that was killed after it had sent the byte, and before this process was tied to it, kills nothing.
    if sys::has_hung_up(init.pid1).at(index)? {
        sys::exit(FAILED);
    }
    Ok(())
}

/// Waits at the gate until the parent passes the caller's byte on. The parent watches the caller.
pub fn await_let_go(init: &Init) -> Done {
    match sys::send(init.pid1, AT_GATE) {
        Err(EPIPE | ECONNRESET) => sys::exit(FAILED),
        sent => sent.at(0)?,
    }
    await_byte(init).at(2)
}

/// Waits for a byte of the parent. If the parent has ended, it has reported why, or its end does.
fn await_byte(init: &Init) -> Result<(), Errno> {
    match sys::recv(init.pid1, &mut [0u8; 1]) {
        Ok(0) | Err(ECONNRESET) => sys::exit(FAILED),
        received => received.map(drop),
    }
}

impl Parent {
    /// Closes every descriptor except its own. `index` is the index of the call's line.
    fn close_others(&self, init: &Init, index: u8) -> Done {
        let Parent { signals, caller, gate, child, pidfd, .. } = *self;
        let [a, b, c, d, e, f, g] = init.of_pid1();
        let mut kept = [init.status, signals, caller, gate, child, pidfd, a, b, c, d, e, f, g];
        kept.sort_unstable();
        let mut first = 0;
        for fd in kept {
            sys::close_range(first..fd).at(index)?;
            first = first.max(fd.saturating_add(1));
        }
        sys::close_from(first).at(index)
    }

    /// Gives up descriptors, privileges and the plan, then lets the child continue. If a call is refused, ends the child.
    /// `index` is the index of the line that closes the descriptors.
    fn let_continue(&self, init: &Init, index: u8, give_up_privileges: impl FnOnce() -> Done) -> Done {
        let done = self.close_others(init, index).and_then(|()| give_up_privileges()).and_then(|()| {
            // SAFETY: the child has its own copy of the mapping. From here on this process reads neither the plan nor the
            // lists and strings decoded from it, neither below nor in `run_steps` after a failure.
            unsafe { sys::unmap(init.plan) };
            sys::send(self.child, b"g").at(LAST_CALL)
        });
        if let Err(refused) = &done {
            // A child that was refused a step may have ended before it was sent the byte.
            let has_ended = matches!(refused.errno, EPIPE | ECONNRESET);
            if sys::kill(self.pid).is_ok() || has_ended {
                reap_until(self.pid);
            }
        }
        done
    }

    /// Reaps until the task ends. `kills` is the process to kill before it exits.
    fn reap(self, init: &Init, kills: i32) -> Done {
        let ends = Ends { status: init.status, caller: self.caller, record: init.record, kills };
        let gated = self.gate >= 0;
        // The caller waits for this record. No line prints the calls, so the error names the last one.
        let running = || match sys::send_fd(init.status, &Record::Running.encode(), self.pidfd) {
            // The caller has ended after it let the command go, which survives it.
            Err(_) if gated && self.caller < 0 => Ok(()),
            sent => sent,
        };
        let passed = if gated { ends.await_let_go(&self) } else { Ok(()) };
        // The time at the gate does not count.
        let restart = || match gated && init.timer >= 0 {
            true => sys::start_timer(init.timer, init.deadline),
            false => Ok(()),
        };
        let done = passed
            .and_then(|()| restart())
            .and_then(|()| ends.await_exec(self.child, self.pid, gated))
            .and_then(|()| running());
        if done.is_err() {
            ends.kill_main();
        }
        done.at(LAST_CALL)?;
        sys::close(self.pidfd);
        sys::close(self.child);
        let mut reaper = Reaper { ends, signals: self.signals, log: init.log, task: self.pid };
        reaper.run(init.timer, init.clock)
    }
}

/// Index past all lines of the operation. The parent prints the last line for it.
const LAST_CALL: u8 = u8::MAX;

impl Left {
    /// Changes to the ids. The groups come first: changing them needs a capability.
    fn set_ids(&self, next: &mut NextCall) -> Done {
        if self.set_groups {
            sys::setgroups(&[], 0).at(next.index())?;
        }
        set_ids(self.uid, self.gid, next)
    }
}

/// Drops all capabilities but those in `keep`, and loads the filter of a process that only reaps, and may kill the process
/// `kills`.
fn drop_capabilities(keep: u64, kills: i32, next: &mut NextCall) -> Done {
    sys::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0).at(next.index())?;
    sys::capset(keep, 0).at(next.index())?;
    sys::prctl(PR_SET_NO_NEW_PRIVS, 1, 0).at(next.index())?;
    // The error is ignored: a kernel that refuses this filter refuses the task's own filter too, and the plan says what
    // that means.
    let _ = sys::seccomp(filter(kills).as_flattened());
    Ok(())
}

/// Where PID 1 learns that the caller has ended, and where it reports the end of the task. -1 for what there is not.
#[derive(Clone, Copy)]
struct Ends {
    /// The socket to the parent.
    status: i32,
    /// A pidfd of the caller. Without one, PID 1 outlives the caller.
    caller: i32,
    /// The file of the exit record.
    record: i32,
    /// The process to kill before this one exits.
    kills: i32,
}

/// The state of the process that reaps.
struct Reaper {
    ends: Ends,
    /// The signalfd.
    signals: i32,
    log: Log,
    /// The PID of the main process.
    task: i32,
}

/// How many processes are reaped before this one looks at its descriptors again: orphans may end faster than it reaps them.
const IN_TURN: u32 = 64;

impl Reaper {
    /// Reaps until the task ends, and copies what it writes to the log. Exits at once when the parent dies without having
    /// detached the task, unless the task is to survive it: the kernel then kills the whole PID namespace. It polls a pidfd
    /// of the parent beside the socket, since a fork of the parent may hold the socket open. When the time or the CPU time
    /// of the task is over, it reports that and exits too.
    fn run(&mut self, timer: i32, clock: Clock) -> ! {
        let Ends { status, caller, .. } = self.ends;
        let [stdout, stderr] = self.log.pipes;
        let polled = [self.signals, status, caller, timer, clock.timer, stdout, stderr];
        let mut fds = polled.map(|fd| PollFd { fd, events: POLLIN, revents: 0 });
        loop {
            let all = self.reap_ended(self.signals < 0);
            if sys::poll(&mut fds, all).is_err() {
                continue;
            }
            let [of_signals, of_status, of_caller, of_timer, of_clock, of_logs @ ..] = &mut fds;
            if of_timer.revents != 0 {
                self.end_at(Record::Deadline);
            }
            if of_clock.revents != 0 && clock.is_over() {
                self.end_at(Record::CpuDeadline);
            }
            if of_signals.revents != 0 {
                let _ = sys::read(self.signals, &mut [0u8; 128]);
            }
            for (index, of_log) in of_logs.iter_mut().enumerate() {
                if of_log.revents != 0 {
                    self.log.copy(index);
                    of_log.fd = self.log.pipes.get(index).copied().unwrap_or(-1);
                }
            }
            if of_status.revents != 0 {
                match sys::recv(status, &mut [0u8; 1]) {
                    // One byte from the parent detaches the task: it survives the parent.
                    Ok(1) => (of_status.fd, of_caller.fd) = (-1, -1),
                    _ if caller < 0 => of_status.fd = -1,
                    _ => self.end_with_caller(),
                }
            } else if of_caller.revents != 0 {
                self.end_with_caller();
            }
        }
    }

    /// Reaps processes that have ended: all, or [`IN_TURN`]. Returns whether they were all. If the task is among them, exits
    /// with its status.
    fn reap_ended(&mut self, block: bool) -> bool {
        for _ in 0..IN_TURN {
            match sys::wait_any(block) {
                Ok((0, _)) | Err(_) => return true,
                Ok((pid, Some(how))) if pid == self.task => self.exit_as(how),
                Ok(_) => {}
            }
        }
        false
    }

    /// Ends the task at a deadline: reports it, and exits.
    fn end_at(&mut self, deadline: Record) -> ! {
        self.exit_if_ended();
        self.ends.report(deadline);
        self.exit()
    }

    /// Ends the task because its caller has ended: records that it was killed, and exits.
    fn end_with_caller(&mut self) -> ! {
        self.exit_if_ended();
        self.ends.write_end(End::Killed);
        self.exit()
    }

    /// If the task has ended by itself before this process could end it, exits with its status.
    fn exit_if_ended(&mut self) {
        if let Some(how) = sys::wait_ended(self.task) {
            self.exit_as(how);
        }
    }

    /// Records the exit status of the task, and exits with it.
    fn exit_as(&mut self, how: i32) -> ! {
        self.ends.report(Record::Exited { status: how });
        self.log.drain();
        let signal = how & 0x7f;
        sys::exit(if signal == 0 { (how >> 8) & 0xff } else { 128 | signal })
    }

    fn exit(&mut self) -> ! {
        self.log.drain();
        self.ends.exit()
    }
}

/// Reaps processes that end, until `child` has ended. A zombie that nobody reaps would keep the task's PID 1 from ending.
fn reap_until(child: i32) {
    while sys::wait_any(true).is_ok_and(|(pid, how)| pid != child || how.is_none()) {}
}

/// What the child sends when it is at the gate. Another byte says that a step was refused.
const AT_GATE: &[u8; 1] = b"h";

/// Polls until one of the descriptors is readable.
fn poll_all(fds: [i32; 3]) -> [PollFd; 3] {
    let mut fds = fds.map(|fd| PollFd { fd, events: POLLIN, revents: 0 });
    while fds.iter().all(|fd| fd.revents == 0) {
        let _ = sys::poll(&mut fds, true);
    }
    let [_, status, caller] = fds;
    if caller.revents != 0 && status.revents == 0 {
        // The caller may have sent a byte after the kernel looked at the socket, and before it looked at the pidfd.
        let _ = sys::poll(&mut fds, true);
    }
    fds
}

impl Ends {
    /// Waits until the child is at the gate, sends the caller its pidfd, and waits until the caller lets the command go.
    /// If the caller ends before, or the child does, the command is never executed: records that and exits.
    fn await_let_go(self, parent: &Parent) -> Result<(), Errno> {
        let Parent { gate, child, pid, pidfd, .. } = *parent;
        let watched = [child, self.status, gate];
        let mut byte = [0u8; 1];
        let [_, status, caller] = poll_all(watched);
        if status.revents != 0 || caller.revents != 0 {
            self.exit_unexecuted();
        }
        match sys::recv(child, &mut byte)? {
            0 => self.exit_if_unexecuted(pid, true),
            _ if byte != *AT_GATE => self.exit_unexecuted(),
            _ => sys::send_fd(self.status, &Record::AtGate.encode(), pidfd)?,
        }
        let [of_child, status, _] = poll_all(watched);
        if status.revents != 0 && sys::recv(self.status, &mut byte) == Ok(1) {
            sys::close(gate);
            return sys::send(child, b"g");
        }
        if of_child.revents != 0 {
            self.exit_if_unexecuted(pid, true);
        }
        self.exit_unexecuted()
    }

    /// Returns after the child has executed the command: exec closes the child's end of the socket. Exits if the child
    /// sends a byte (a step was refused, and the child has reported it to the parent), or if the parent is gone. If the
    /// child has ended before the exec, which closes the socket too, it sends the parent the status and exits.
    ///
    /// If the caller has let the command go (`gated`), a command that is to survive the caller goes on without it.
    fn await_exec(self, child: i32, pid: i32, gated: bool) -> Result<(), Errno> {
        let mut of_status = self.status;
        loop {
            let [_, status, caller] = poll_all([child, of_status, self.caller]);
            if status.revents != 0 && gated && self.caller < 0 {
                of_status = -1;
                continue;
            }
            if status.revents != 0 || caller.revents != 0 {
                self.exit();
            }
            break;
        }
        if sys::recv(child, &mut [0u8; 1])? != 0 {
            if gated { self.exit_unexecuted() } else { self.exit() }
        }
        self.exit_if_unexecuted(pid, gated);
        Ok(())
    }

    /// If the child has ended before the exec, sends the parent the status and exits.
    fn exit_if_unexecuted(self, pid: i32, gated: bool) {
        if let Some(status) = sys::wait_unexecuted(pid) {
            if gated {
                self.write_end(End::NotExecuted);
            }
            let _ = sys::send(self.status, &Record::Exited { status }.encode());
            sys::exit(FAILED);
        }
    }

    /// Exits although the child, which waits at the gate or was refused a step, has not executed the command.
    fn exit_unexecuted(self) -> ! {
        self.kill_main();
        self.write_end(End::NotExecuted);
        sys::exit(FAILED)
    }

    /// Exits before the main process has ended.
    fn exit(self) -> ! {
        self.kill_main();
        sys::exit(FAILED)
    }

    /// Kills the main process, if the kernel does not do it when this process exits.
    fn kill_main(self) {
        // The process has not been reaped, so its id is still its own. As PID 1 there is none to kill: the kernel kills
        // every process of the PID namespace.
        if self.kills != NO_CHILD && sys::kill(self.kills).is_ok() {
            reap_until(self.kills);
        }
    }

    /// Writes the end of the task to the file of the exit record, if there is one, and sends it to the parent. Errors are
    /// ignored: the parent may live although the file cannot be written, and a reader of the file finds no record.
    ///
    /// The record of a status is written to the disk as well. Otherwise that is left to the kernel, because the task runs
    /// until PID 1 exits.
    fn report(self, record: Record) {
        let time = record.end().map_or_else(sys::now, |end| self.write_end(end));
        let _ = sys::send(self.status, &record.encode());
        let (seconds, nanoseconds) = time;
        let nanoseconds = seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds.into());
        let _ = sys::send(self.status, &Record::EndedAt { nanoseconds }.encode());
    }

    /// Writes the end of the task to the file of the exit record, if there is one. Returns the time.
    fn write_end(self, end: End) -> (u64, u32) {
        let time = sys::now();
        if self.record >= 0 {
            let written = ExitRecord { end, time };
            let _ = sys::pwrite(self.record, &written.encode(), EXIT_RECORD_AT);
            if let End::Status(_) | End::NotExecuted = end {
                let _ = sys::fsync(self.record);
            }
        }
        time
    }
}
