//! Init: the static program that runs between the clone and the command.
//!
//! The parent executes it from a sealed memfd inside the new namespaces. Init maps the plan, runs its steps and
//! executes the command. If the plan says so, init stays as PID 1, reaps processes, and reports the task's exit status.
//! It has no allocator and no policy. At the first refused call of a mandatory step it sends a nine-byte record that
//! names the step, the call and the errno, and exits.
//!
//! Init is not a crate of the workspace: `build.rs` compiles it for the target and the library embeds it. Its files,
//! from the top: `run.rs` (the steps in order), `step.rs` (one operation), `reap.rs` with `reap_filter.rs` (PID 1),
//! `terminal.rs`, `files.rs`, `overlay.rs`, `mount.rs`, `credentials.rs`, `paths.rs`, `state.rs`, `clock.rs`, `log.rs`,
//! `call.rs`, `sys.rs` with `sys_mounts.rs` (system calls), `uapi.rs` (the kernel's constants), `mem.rs` (memcpy and its
//! kin). Each file imports only from files after it in this list. Code that depends on the processor is in `x86_64.rs`
//! and `x86_64_nr.rs`.
#![no_std]
#![no_main]
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

#[cfg(not(target_arch = "x86_64"))]
compile_error!("cofferdam's init knows x86_64 only: another processor needs a file beside init/x86_64.rs");
#[path = "x86_64.rs"]
mod arch;
mod call;
mod clock;
mod credentials;
mod files;
mod log;
mod mem;
mod mount;
mod overlay;
mod paths;
mod reap;
mod reap_filter;
mod run;
mod state;
mod step;
mod sys;
mod terminal;
mod uapi;
#[allow(dead_code, unused_imports)]
#[path = "../src/step/wire.rs"]
mod wire;

use state::Init;
use uapi::EINVAL;
use wire::{FAILED, Field, NO_STEP, Program, Record};

/// Entry point, called by `arch::_start` with the initial stack of the process.
#[unsafe(no_mangle)]
extern "C" fn cofferdam_init(stack: *const usize) -> ! {
    // SAFETY: the kernel puts argc on the initial stack, then argc pointers to NUL-terminated strings (elf(5)).
    let (plan, status) = unsafe {
        let argc = *stack;
        if argc != 3 {
            sys::exit(FAILED);
        }
        (number(*stack.add(2) as *const u8), number(*stack.add(3) as *const u8))
    };
    let mapped = sys::map(plan);
    sys::close(plan);
    let program = mapped.and_then(|bytes| Ok((Program::decode(&mut { bytes }).or(Err(EINVAL))?, bytes)));
    match program {
        Ok((program, bytes)) => run::run_steps(&mut Init::new(status, program, bytes)),
        Err(errno) => {
            let _ = sys::send(status, &Record::Failed { step: NO_STEP, call: 0, errno }.encode());
            sys::exit(FAILED)
        }
    }
}

/// Parses a decimal number, as the parent formats it.
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
        n = n.wrapping_mul(10).wrapping_add(i32::from(c & 0xf));
        // SAFETY: the byte at `text` was not the NUL, so the next byte belongs to the string.
        text = unsafe { text.add(1) };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    sys::exit(FAILED)
}
