//! PID 1 that stays: the child executes the command, and this one reaps and tells how it ended.
//!
//! Without it the task itself would be PID 1, whose signals of default disposition the kernel drops:
//! `abort()` and `kill -TERM $$` would do nothing, and orphans would stay zombies.
//!
//! The child waits until PID 1 has given up its descriptors, ids, capabilities, bounding set and the plan. So at no
//! time is PID 1 stronger than the task: a task that takes it over wins nothing, and finds no secret in its memory.

use crate::step::{At, Refused, becomes, take_fd};
use crate::arch::nr;
use crate::sys::{self, PollFd};
use crate::wire::{Op, Record};
use crate::{FAILED, State, obey};

/// Ends the child after a refusal, and says so to the PID 1 that waits for its exec.
pub fn abandon(state: &State) -> ! {
    if state.pid1 >= 0 {
        let _ = sys::send(state.pid1, b"f");
    }
    sys::exit(FAILED)
}

/// Forks the child that does the steps after `index`, and stays.
pub fn fork_and_stay(state: &mut State, index: usize, op: &Op<'static>) -> ! {
    match fork(state, index, op) {
        Ok((signals, caller, child)) => stay(state.status, signals, caller, child),
        Err(Refused { call, errno }) => {
            state.tell(Record::Failed { step: index as u32, call, errno });
            sys::exit(FAILED)
        }
    }
}

/// Forks, sheds, lets the child go on and waits until it has executed the command. Gives the descriptor for SIGCHLD,
/// the caller's pidfd and the child's PID.
fn fork(state: &mut State, index: usize, op: &Op<'static>) -> Result<(i32, i32, i32), Refused> {
    let Op::Fork { caller, .. } = *op else { return Err(sys::EINVAL).at(0) };
    let caller = take_fd(state, caller);
    let signals = sys::child_signals().unwrap_or(-1);
    let (ours, theirs) = sys::socketpair().at(1)?;
    let mut pidfd = -1;
    let child = sys::fork(&mut pidfd).at(2)?;
    if child == 0 {
        sys::close(signals);
        sys::close(caller);
        sys::close(ours);
        state.pid1 = theirs;
        if sys::recv(theirs, &mut [0u8; 1]) != Ok(1) {
            sys::exit(FAILED);
        }
        obey(state, index + 1)
    }
    sys::close(theirs);
    shed(op, [state.status, signals, caller, ours, pidfd])?;
    // SAFETY: the child has a copy of its own; what follows reads neither the plan nor the program decoded from it.
    unsafe { sys::unmap(state.plan) };
    sys::send(ours, b"g").at(LAST_CALL)?;
    // A byte: a step was refused, and the child has told the parent. The end: exec closed the child's end. The parent may
    // go meanwhile.
    let mut fds = [ours, state.status, caller].map(|fd| PollFd { fd, events: POLLIN, revents: 0 });
    while fds.iter().all(|fd| fd.revents == 0) {
        let _ = sys::poll(&mut fds);
    }
    if fds[1].revents != 0 || fds[2].revents != 0 || sys::recv(ours, &mut [0u8; 1]) != Ok(0) {
        sys::exit(FAILED);
    }
    let _ = sys::send_fd(state.status, &Record::Running.encode(), pidfd);
    sys::close(pidfd);
    sys::close(ours);
    Ok((signals, caller, child))
}

const POLLIN: i16 = 1;

/// Index of the last line of the operation, however many come before it.
const LAST_CALL: usize = u8::MAX as usize;

/// Gives up everything that reaping does not need. Bounding set and groups come first: they take capabilities.
fn shed(op: &Op<'static>, mut kept: [i32; 5]) -> Result<(), Refused> {
    let Op::Fork { uid, gid, set_groups, last, .. } = *op else { return Err(sys::EINVAL).at(0) };
    kept.sort_unstable();
    let mut first = 0;
    for fd in kept {
        if fd > first {
            sys::close_range(first, fd as u32 - 1).at(3)?;
        }
        first = fd + 1;
    }
    sys::close_range(first, u32::MAX).at(3)?;
    for cap in 0..=last.min(63) {
        sys::prctl(24 /* PR_CAPBSET_DROP */, cap as usize, 0).at(4)?;
    }
    if set_groups {
        sys::setgroups(&[], 0).at(5)?;
    }
    let calls = 5 + usize::from(set_groups);
    becomes(uid, gid, calls)?;
    sys::prctl(47 /* PR_CAP_AMBIENT */, 4 /* CLEAR_ALL */, 0).at(calls + 3)?;
    sys::capset(0, 0).at(calls + 4)?;
    sys::prctl(38 /* PR_SET_NO_NEW_PRIVS */, 1, 0).at(calls + 5)?;
    // A kernel that refuses it refuses the task's own filter too, and the plan says what that means.
    let _ = sys::seccomp(&FILTER);
    Ok(())
}

/// What PID 1 calls from then on, and nothing else: EPERM.
const CALLS: [usize; 11] = [
    nr::READ,
    nr::CLOSE,
    nr::MUNMAP,
    nr::SENDTO,
    nr::RECVFROM,
    nr::SENDMSG,
    nr::WAIT4,
    nr::PPOLL,
    nr::EXIT_GROUP,
    RT_SIGRETURN,
    RESTART_SYSCALL,
];
const RT_SIGRETURN: usize = 15;
/// What the kernel itself makes of a call that a stop interrupted.
const RESTART_SYSCALL: usize = 219;

/// An array of `struct sock_filter`: code, jump if true, jump if false, operand.
const FILTER: [u8; 8 * (CALLS.len() + 5)] = {
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let mut bytes = [0; 8 * (CALLS.len() + 5)];
    let over = CALLS.len() as u8;
    put(&mut bytes, 0, LOAD, [0, 0], 4); // the architecture
    put(&mut bytes, 1, EQUAL, [0, over + 1], 0xc000_003e);
    put(&mut bytes, 2, LOAD, [0, 0], 0); // the number
    let mut i = 0;
    while i < CALLS.len() {
        put(&mut bytes, 3 + i, EQUAL, [over - i as u8, 0], CALLS[i] as u32);
        i += 1;
    }
    put(&mut bytes, 3 + i, RETURN, [0, 0], 0x0005_0000 | 1); // EPERM
    put(&mut bytes, 4 + i, RETURN, [0, 0], 0x7fff_0000); // allow
    bytes
};

const fn put(bytes: &mut [u8], at: usize, code: u16, [yes, no]: [u8; 2], k: u32) {
    let ([a, b], [c, d, e, f]) = (code.to_ne_bytes(), k.to_ne_bytes());
    let instruction = [a, b, yes, no, c, d, e, f];
    let mut i = 0;
    while i < 8 {
        bytes[8 * at + i] = instruction[i];
        i += 1;
    }
}

/// Reaps until the task ends. When the parent dies and has not let go, ends at once: the kernel then
/// kills the whole namespace. The end of the socket alone does not tell: a fork of the parent may hold it open.
fn stay(status: i32, signals: i32, caller: i32, task: i32) -> ! {
    let mut fds = [
        PollFd { fd: signals, events: POLLIN, revents: 0 },
        PollFd { fd: status, events: POLLIN, revents: 0 },
        PollFd { fd: caller, events: POLLIN, revents: 0 },
    ];
    loop {
        reap_all(status, task, signals < 0);
        if sys::poll(&mut fds).is_err() {
            continue;
        }
        if fds[0].revents != 0 {
            let _ = sys::read(signals, &mut [0u8; 128]);
        }
        if fds[1].revents != 0 {
            match sys::recv(status, &mut [0u8; 1]) {
                // Any byte: the parent lets the task live on without it.
                Ok(1) => (fds[1].fd, fds[2].fd) = (-1, -1),
                _ => sys::exit(FAILED),
            }
        } else if fds[2].revents != 0 {
            sys::exit(FAILED);
        }
    }
}

fn reap_all(status: i32, task: i32, block: bool) {
    while let Ok((pid, how)) = sys::wait_any(block) {
        if pid == 0 {
            return;
        }
        if pid == task {
            let _ = sys::send(status, &Record::Exited { status: how }.encode());
            let signal = how & 0x7f;
            sys::exit(if signal == 0 { (how >> 8) & 0xff } else { 128 + signal });
        }
    }
}
