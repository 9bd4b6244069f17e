//! Code of the parent that depends on the processor: a system call without libc, and a `clone3` whose child runs in the
//! caller's memory.

use std::arch::asm;

/// Makes a system call with up to five arguments, and does not set the thread-local `errno`. The child of a `CLONE_VM`
/// clone shares the caller's thread-local storage and must not change it.
///
/// # Safety
/// The arguments must be what the call expects: numbers, or pointers to memory that is valid for the kernel's reads and
/// writes.
#[inline(always)]
pub(crate) unsafe fn syscall(number: libc::c_long, args: [usize; 5]) -> isize {
    let ret: isize;
    let [a, b, c, d, e] = args;
    // SAFETY: the kernel clobbers rcx and r11 only; the caller guarantees that the arguments are valid.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => ret,
             in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    ret
}

/// `clone3(2)` (Linux 5.3). The child calls `child(argument)`, which must not return, on the caller's stack below the
/// current frame. Returns in the parent only: the child's pid, or the negative errno.
///
/// # Safety
/// `args` must have a null stack, and `CLONE_VM|CLONE_VFORK`, so that the kernel suspends this thread until the child
/// has executed another program or ended; or neither of both, so that the child has its own memory. `child` must only
/// make raw system calls and access memory that is reachable from `argument`. All signals must be blocked.
pub(crate) unsafe fn clone3_vfork(
    args: &libc::clone_args,
    child: unsafe extern "C" fn(*mut libc::c_void) -> !,
    argument: *mut libc::c_void,
) -> isize {
    let ret: isize;
    // SAFETY: if parent and child share the stack, the parent is suspended until the child has left it. The child only
    // pushes below this frame (asm without `nostack` keeps the red zone free). The values that the parent reads
    // afterwards are in registers, of which each process has its own.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "and rsp, -16",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => ret,
            in("rdi") std::ptr::from_ref(args), in("rsi") size_of::<libc::clone_args>(),
            in("r12") child, in("r13") argument,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    ret
}
