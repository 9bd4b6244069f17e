//! PID 1 that stays: the child executes the command, and this one reaps and tells how it ended.
//!
//! Without it the task itself would be PID 1, whose signals of default disposition the kernel drops:
//! `abort()` and `kill -TERM $$` would do nothing, and orphans would stay zombies.
//! Before it settles it gives up its capabilities, every descriptor but the socket, and the plan, so that a task
//! which takes it over has won nothing, and no secret stays in memory that may be written to swap.

use crate::arch::clone_onto;
use crate::sys::{self, PollFd};
use crate::wire::Record;
use crate::{FAILED, State, obey};

/// CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD.
const FLAGS: usize = 0x100 | 0x4000 | 0x1000 | 17;

#[repr(C, align(16))]
struct Stack([u8; 32 << 10]);
static mut STACK: Stack = Stack([0; 32 << 10]);

/// What the child is given.
#[repr(C)]
struct Baton {
    state: *mut State,
    next: usize,
}

/// Written by the child, read by the parent once the child is gone or has executed the command.
static FAILURE: core::sync::atomic::AtomicBool = core::sync::atomic::AtomicBool::new(false);

/// Ends after a refusal; in the child of a staying init it says so to the latter.
pub fn abandon() -> ! {
    FAILURE.store(true, core::sync::atomic::Ordering::Relaxed);
    sys::exit(FAILED)
}

extern "C" fn child(baton: *mut u8) -> ! {
    // SAFETY: `fork_and_stay` passes its own live Baton and is suspended while this runs.
    let (state, next) = unsafe {
        let baton = &*baton.cast::<Baton>();
        (&mut *baton.state, baton.next)
    };
    obey(state, next)
}

/// Clones the child that does the steps after `index`, and stays.
pub fn fork_and_stay(state: &mut State, index: usize) -> ! {
    // Before the task runs: as the same user it may lower the limit of our descriptors.
    let signals = sys::child_signals().unwrap_or(-1);
    let mut baton = Baton { state, next: index + 1 };
    let mut pidfd = -1;
    // SAFETY: STACK is used by this one child only, and CLONE_VM|CLONE_VFORK suspends us meanwhile.
    let pid = unsafe {
        let top = (&raw mut STACK).cast::<u8>().add(size_of::<Stack>());
        clone_onto(FLAGS, top, &mut pidfd, child, (&raw mut baton).cast())
    };
    if pid < 0 {
        state.tell(Record::Failed { step: index as u32, call: 0, errno: -pid as i32 });
        sys::exit(FAILED);
    }
    if FAILURE.load(core::sync::atomic::Ordering::Relaxed) {
        sys::exit(FAILED);
    }
    let status = state.status;
    let _ = sys::send_fd(status, &Record::Running.encode(), pidfd);
    // SAFETY: the child has memory of its own or is gone, and what follows uses two numbers only.
    unsafe { sys::unmap(state.plan) };
    shed(status, signals);
    stay(status, signals, pid as i32)
}

/// Gives up everything that reaping does not need.
fn shed(status: i32, signals: i32) {
    let mut first = 0;
    for kept in [status.min(signals), status.max(signals)] {
        if kept > first {
            let _ = sys::close_range(first, kept as u32 - 1);
        }
        first = kept + 1;
    }
    let _ = sys::close_range(first, u32::MAX);
    let _ = sys::prctl(47 /* PR_CAP_AMBIENT */, 4 /* CLEAR_ALL */, 0);
    let _ = sys::capset(0, 0);
    let _ = sys::prctl(38 /* PR_SET_NO_NEW_PRIVS */, 1, 0);
}

/// Reaps until the task ends. When the parent dies and has not let go, ends at once: the kernel then
/// kills the whole namespace.
fn stay(status: i32, signals: i32, task: i32) -> ! {
    const POLLIN: i16 = 1;
    let mut fds = [
        PollFd { fd: signals, events: POLLIN, revents: 0 },
        PollFd { fd: status, events: POLLIN, revents: 0 },
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
                Ok(1) => fds[1].fd = -1,
                _ => sys::exit(FAILED),
            }
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
