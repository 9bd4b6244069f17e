//! Raw system calls of the i386 and x32 tables, and all calls that the default profile refuses.

use cofferdam::filter::{Action, Arch, GROUPS, number};
use nix::errno::Errno;

use super::attempts::Answer;
use crate::call;

/// Makes an i386 system call by `int 0x80`, which 64-bit processes may use too. Arguments have 32 bits.
pub fn int80(number: u32, args: [u32; 4]) -> nix::Result<i64> {
    let answer: u64;
    // SAFETY: an argument that the kernel takes for a pointer is either no address of this process, or a buffer below 4
    // GiB that outlives the call. rbx is saved by hand, because the compiler reserves it.
    unsafe {
        std::arch::asm!(
            "xchg {one}, rbx",
            "int 0x80",
            "xchg {one}, rbx",
            one = inout(reg) u64::from(args[0]) => _,
            inlateout("rax") u64::from(number) => answer,
            in("rcx") u64::from(args[1]),
            in("rdx") u64::from(args[2]),
            in("rsi") u64::from(args[3]),
            in("rdi") 0_u64,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    let answer = answer as u32 as i32;
    if (-4095..0).contains(&answer) { Err(Errno::from_raw(-answer)) } else { Ok(answer.into()) }
}

/// Makes an x32 system call: the number of x86_64 with bit 30 set.
pub fn x32(number: i64, args: [u64; 3]) -> nix::Result<i64> {
    call!(number | 0x4000_0000, args[0], args[1], args[2])
}

/// Left out, because even wrong arguments have an effect: a trap, a hang-up.
const LEFT_OUT: [&str; 4] = ["uprobe", "vhangup", "vm86", "vm86old"];

/// Makes each refused call with arguments that no call accepts, and returns the answers. A call that reaches the kernel
/// fails neither with EPERM nor with ENOSYS, unless it lacks a capability. So EPERM proves nothing for calls that need
/// one. Calls that the profile refuses with EINVAL fail with another error if they reach the kernel.
pub fn refused_by_default() -> Vec<(String, String)> {
    let names = GROUPS.iter().flat_map(|group| group.calls.iter().map(|name| (name, group.action)));
    let names = names.chain([(&"clone3", Action::Errno(libc::ENOSYS as u16))]);
    let mut answers = Vec::new();
    for (name, action) in names.filter(|(name, _)| !LEFT_OUT.contains(name)) {
        let judged = |answer: nix::Result<i64>| match answer {
            Err(Errno::EINVAL) if action == Action::Errno(libc::EINVAL as u16) => Answer::of(answer),
            answer => Answer::reached(answer),
        };
        if let Some(number) = number(Arch::X86_64, name) {
            answers.push(((*name).to_string(), judged(call!(i64::from(number), 1, 1, 1, 1, 1, 1))));
        }
        if let Some(number) = number(Arch::I386, name) {
            answers.push((format!("{name} by int 0x80"), judged(int80(number, [1; 4]))));
        }
    }
    answers
}
