//! Init: the small static program between the clone and the command.
//!
//! The parent executes it from a sealed memfd inside the new namespaces. It maps the plan, obeys it
//! step by step and executes the command; where the plan says so it stays as PID 1, reaps, and tells
//! how the task ended. It allocates nothing, knows no policy, and ends at the first refusal with nine
//! bytes that say which call of which step it was.
//!
//! It is no crate of the workspace: `build.rs` compiles it for the target and the library embeds it.
//! What depends on the processor stands in `x86_64.rs`; what runs a step in `step.rs`.
#![no_std]
#![no_main]
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

#[cfg(not(target_arch = "x86_64"))]
compile_error!("cofferdam's init knows x86_64 only: another processor needs a file beside init/x86_64.rs");
#[path = "x86_64.rs"]
mod arch;
mod files;
mod mem;
mod overlay;
mod place;
mod reap;
mod step;
mod sys;
#[allow(dead_code, unused_imports)]
#[path = "../src/step/wire.rs"]
mod wire;

use wire::{FDS, Field, NO_STEP, Op, Program, Record};

/// What init holds while it works: descriptors only.
pub struct State {
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
    pub command: Option<(u8, wire::Str<'static>)>,
    /// The program.
    pub program: Program<'static>,
    /// The bytes of it.
    pub plan: &'static [u8],
}

impl State {
    /// Tells the parent; nobody is left to tell when that fails.
    pub fn tell(&self, record: Record) {
        let _ = sys::send(self.status, &record.encode());
    }
}

/// Exit status when the plan could not be obeyed. The parent has the record; this is for `ps`.
const FAILED: i32 = 125;

/// Entry, from `arch::_start`, with the initial stack of the process.
#[unsafe(no_mangle)]
extern "C" fn cofferdam_init(stack: *const usize) -> ! {
    // SAFETY: the kernel lays out argc, then argc pointers to NUL-terminated strings (elf(5)).
    let (plan, status) = unsafe {
        let argc = *stack;
        if argc != 3 {
            sys::exit(FAILED);
        }
        (number(*stack.add(2) as *const u8), number(*stack.add(3) as *const u8))
    };
    let mapped: &'static [u8] = sys::map(plan).unwrap_or(&[]);
    sys::close(plan);
    let mut input = mapped;
    let Ok(program) = Program::decode(&mut input) else {
        let _ = sys::send(status, &Record::Failed { step: NO_STEP, call: 0, errno: 0 }.encode());
        sys::exit(FAILED);
    };
    let mut fds = [-1; FDS as usize];
    for (slot, fd) in fds.iter_mut().zip(program.fds.iter()) {
        *slot = fd as i32;
    }
    let mut state =
        State { status, pid1: -1, fds, root: -1, upper: -1, anchors: [-1; 4], command: None, program, plan: mapped };
    obey(&mut state, 0)
}

/// Runs the steps from `first` on. The last one executes the command, so there is no way back.
pub fn obey(state: &mut State, first: usize) -> ! {
    let steps = state.program.steps;
    for (index, step) in steps.iter().enumerate().skip(first) {
        if let Op::Fork { .. } = step.op {
            reap::fork_and_stay(state, index, &step.op)
        }
        if let Err(refused) = step::run(state, &step.op) {
            let step_index = index as u32;
            let (call, errno) = (refused.call, refused.errno);
            if !step.optional {
                state.tell(Record::Failed { step: step_index, call, errno });
                reap::abandon(state);
            }
            state.tell(Record::Degraded { step: step_index, call, errno });
        }
    }
    state.tell(Record::Failed { step: NO_STEP, call: 0, errno: 0 });
    reap::abandon(state)
}

/// A decimal number, as the parent formats it.
///
/// # Safety
/// `text` must point to a NUL-terminated string.
unsafe fn number(mut text: *const u8) -> i32 {
    let mut n = 0i32;
    loop {
        // SAFETY: the caller promises a NUL-terminated string, and the loop stops at the NUL.
        let c = unsafe { *text };
        if !c.is_ascii_digit() {
            return n;
        }
        n = n.wrapping_mul(10).wrapping_add((c - b'0') as i32);
        // SAFETY: not at the NUL yet, so the next byte belongs to the string.
        text = unsafe { text.add(1) };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    sys::exit(FAILED)
}
