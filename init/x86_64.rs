//! Code that depends on the processor: the entry point, the system call instruction, and the system call numbers.

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

/// Ends the process by SIGILL.
pub fn fault() -> ! {
    // SAFETY: an undefined instruction accesses no memory.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// Makes a system call with up to six arguments.
///
/// # Safety
/// The arguments must be what the call expects: numbers, or pointers to memory that is valid for the kernel's reads and
/// writes.
#[inline(always)]
pub unsafe fn syscall(nr: usize, a: [usize; 6]) -> isize {
    let ret: isize;
    // SAFETY: the kernel clobbers rcx and r11 only; the caller guarantees that the arguments are valid.
    unsafe {
        asm!("syscall", inlateout("rax") nr as isize => ret,
             in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    ret
}
