//! Raw system calls by either table, and every call that the default profile refuses.

use cofferdam::filter::{Arch, GROUPS, number};
use nix::errno::Errno;

use super::attempts::Answer;
use crate::call;

/// By the table of i386, as a 64-bit process may: `int 0x80`. Arguments have 32 bits.
pub fn int80(number: u32, args: [u32; 4]) -> nix::Result<i64> {
    let answer: u64;
    // SAFETY: the kernel gets numbers; what it takes for pointers is no address of ours, or one of a buffer below 4 GiB
    // that outlives the call. rbx is kept by hand, as the compiler wants it for itself.
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

/// By the number of x32, which is that of x86_64 with the bit 30.
pub fn x32(number: i64, args: [u64; 3]) -> nix::Result<i64> {
    call!(number | 0x4000_0000, args[0], args[1], args[2])
}

/// Those of which even wrong arguments do something: a trap, a hang-up.
const LEFT_OUT: [&str; 4] = ["uprobe", "vhangup", "vm86", "vm86old"];

/// Each with arguments that no call takes. That is no EPERM and no ENOSYS, where it reaches the kernel: for want of a
/// capability that would be EPERM, so it says nothing about those.
pub fn refused_by_default() -> Vec<(String, String)> {
    let names = GROUPS.iter().flat_map(|group| group.calls).chain(&["clone3"]);
    let mut answers = Vec::new();
    for name in names.filter(|name| !LEFT_OUT.contains(name)) {
        if let Some(number) = number(Arch::X86_64, name) {
            let answer = call!(i64::from(number), 1, 1, 1, 1, 1, 1);
            answers.push(((*name).to_string(), Answer::reached(answer)));
        }
        if let Some(number) = number(Arch::I386, name) {
            answers.push((format!("{name} by int 0x80"), Answer::reached(int80(number, [1; 4]))));
        }
    }
    answers
}
