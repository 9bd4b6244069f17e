//! The filter of PID 1, which only reaps. The task can take control of a process with the same user.

use crate::arch::{self, nr};
use crate::uapi::{BPF_JUMP_IF_EQUAL, BPF_LOAD, BPF_RETURN, EPERM, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO};

/// No process has this id, and kill(2) takes it for no process group.
pub const NO_CHILD: i32 = i32::MIN;

/// System calls that PID 1 may make after the filter is loaded. All others fail with EPERM, except for kill(2) of one
/// process.
const CALLS: [usize; 16] = [
    nr::READ,
    nr::PREAD64,
    nr::CLOSE,
    nr::MUNMAP,
    nr::PWRITE64,
    nr::FSYNC,
    nr::CLOCK_GETTIME,
    nr::SENDTO,
    nr::RECVFROM,
    nr::SENDMSG,
    nr::WAIT4,
    nr::PPOLL,
    nr::TIMERFD_SETTIME,
    nr::EXIT_GROUP,
    nr::RT_SIGRETURN,
    nr::RESTART_SYSCALL,
];

/// The filter of PID 1, which may kill the process `kills`: an array of `struct sock_filter`.
pub fn filter(kills: i32) -> [[u8; 8]; CALLS.len() + 8] {
    let mut filter = FILTER;
    if let Some(check) = filter.get_mut(CHECK_PID) {
        *check = instruction(BPF_JUMP_IF_EQUAL, [1, 0], kills as u32);
    }
    filter
}

/// The index in [`FILTER`] of the instruction that checks whom kill(2) kills.
const CHECK_PID: usize = CALLS.len() + 5;

/// The filter, without the process that may be killed.
#[allow(
    clippy::indexing_slicing,
    reason = "the compiler evaluates it, and refuses an index that is out of range"
)]
const FILTER: [[u8; 8]; CALLS.len() + 8] = {
    let over = CALLS.len() as u8;
    let mut filter = [instruction(BPF_RETURN, [0, 0], SECCOMP_RET_ALLOW); CALLS.len() + 8];
    filter[0] = instruction(BPF_LOAD, [0, 0], 4); // seccomp_data.arch
    filter[1] = instruction(BPF_JUMP_IF_EQUAL, [0, over + 4], arch::AUDIT_ARCH);
    filter[2] = instruction(BPF_LOAD, [0, 0], 0); // seccomp_data.nr
    let mut i = 0;
    while i < CALLS.len() {
        filter[3 + i] = instruction(BPF_JUMP_IF_EQUAL, [over + 3 - i as u8, 0], CALLS[i] as u32);
        i += 1;
    }
    filter[3 + i] = instruction(BPF_JUMP_IF_EQUAL, [0, 2], nr::KILL as u32);
    filter[4 + i] = instruction(BPF_LOAD, [0, 0], 16); // seccomp_data.args[0]
    filter[CHECK_PID] = instruction(BPF_JUMP_IF_EQUAL, [1, 0], NO_CHILD as u32);
    filter[6 + i] = instruction(BPF_RETURN, [0, 0], SECCOMP_RET_ERRNO | EPERM as u32);
    filter
};

/// A `struct sock_filter`: code, jump if true, jump if false, operand.
const fn instruction(code: u16, [yes, no]: [u8; 2], operand: u32) -> [u8; 8] {
    let ([a, b], [c, d, e, f]) = (code.to_ne_bytes(), operand.to_ne_bytes());
    [a, b, yes, no, c, d, e, f]
}
