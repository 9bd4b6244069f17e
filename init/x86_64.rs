//! What depends on the processor: the entry, the system call, the clone onto another stack, and the
//! numbers of the system calls.

use core::arch::{asm, global_asm};

global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call cofferdam_init",
    "ud2",
);

#[path = "x86_64_nr.rs"]
pub mod nr;

pub use nr::AUDIT_ARCH;

/// Dies of SIGILL.
pub fn fault() -> ! {
    // SAFETY: an undefined instruction touches nothing.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// A system call of up to six arguments.
///
/// # Safety
/// The arguments must be what the call wants: pointers valid for what the kernel reads or writes.
#[inline(always)]
pub unsafe fn syscall(nr: usize, a: [usize; 6]) -> isize {
    let ret: isize;
    // SAFETY: the kernel clobbers rcx and r11 only; the caller vouches for the arguments.
    unsafe {
        asm!("syscall", inlateout("rax") nr as isize => ret,
             in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    ret
}
