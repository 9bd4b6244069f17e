//! Compiles a device list into an eBPF program. The kernel runs the program for every open and mknod of a device in the
//! cgroup.
//!
//! The program is built as an array of instructions. It uses ten kinds of them, and jumps only forward. Loading costs 2
//! microseconds an instruction, so rules of the same kind and access share one check of the kind and one of the access.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use super::{Access, DeviceKind, DeviceRule};
use crate::error::Result;
use crate::step::Kernel;
use crate::sys::bpf::{self, Insn};

/// Registers. The kernel passes the context in register 1. After [`HEAD`] has read the context, the same register is
/// [`SCRATCH`].
const CONTEXT: u8 = 1;
const SCRATCH: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
/// Major and minor number in one, as in the kernel's `MKDEV`: 12 and 20 bits. Shares register 0 with [`VERDICT`], which
/// is set last.
const NUMBER: u8 = 0;
const MINOR_BITS: u32 = 20;
/// Return value: 1 allows the access, 0 refuses it.
const VERDICT: u8 = 0;

/// `dst = *(u32 *)(src + off)`.
const fn load(dst: u8, src: u8, off: i16) -> Insn {
    Insn::new(0x61, dst, src, off, 0)
}

/// `dst = src`. This instruction and the following ones work on 32 bits (32-bit jumps: Linux 5.1).
const fn copy(dst: u8, src: u8) -> Insn {
    Insn::new(0xbc, dst, src, 0, 0)
}

/// `dst = value`.
const fn set(dst: u8, value: u32) -> Insn {
    Insn::new(0xb4, dst, 0, 0, value)
}

/// `dst &= mask`.
const fn and(dst: u8, mask: u32) -> Insn {
    Insn::new(0x54, dst, 0, 0, mask)
}

/// `dst >>= bits`.
const fn shift(dst: u8, bits: u32) -> Insn {
    Insn::new(0x74, dst, 0, 0, bits)
}

/// `dst <<= bits`.
const fn shift_left(dst: u8, bits: u32) -> Insn {
    Insn::new(0x64, dst, 0, 0, bits)
}

/// `dst |= src`.
const fn or(dst: u8, src: u8) -> Insn {
    Insn::new(0x4c, dst, src, 0, 0)
}

/// `if dst != value`, jump past the end of the [`group`].
const fn unless(dst: u8, value: u32) -> Insn {
    Insn::new(UNLESS, dst, 0, 0, value)
}

/// `if dst == value`, jump to the last two instructions of the [`group`], which allow the access.
const fn when(dst: u8, value: u32) -> Insn {
    Insn::new(WHEN, dst, 0, 0, value)
}

const UNLESS: u8 = 0x56;
const WHEN: u8 = 0x16;

/// `return VERDICT`.
const EXIT: Insn = Insn::new(0x95, 0, 0, 0, 0);

/// Reads `struct bpf_cgroup_dev_ctx { u32 access_type, major, minor }` into registers. The low 16 bits of `access_type`
/// are the device type, the high 16 bits are the access.
const HEAD: [Insn; 9] = [
    load(KIND, CONTEXT, 0),
    copy(ACCESS, KIND),
    shift(ACCESS, 16),
    and(KIND, 0xffff),
    load(MAJOR, CONTEXT, 4),
    load(MINOR, CONTEXT, 8),
    copy(NUMBER, MAJOR),
    shift_left(NUMBER, MINOR_BITS),
    or(NUMBER, MINOR),
];

/// Maximum number of rules in a group. The offset of a jump has 16 bits, and must reach past the group.
const GROUP: usize = 1000;

/// Compiles `rules`: the program allows an access if a rule allows it.
pub(in crate::cgroup) fn program(rules: &[DeviceRule]) -> Vec<Insn> {
    let mut alike: BTreeMap<(DeviceKind, Access), Vec<Test>> = BTreeMap::new();
    for rule in rules {
        alike.entry((rule.kind, rule.access)).or_default().extend(test(rule));
    }
    let groups = alike.iter().flat_map(|(key, tests)| tests.chunks(GROUP).map(move |tests| (key, tests)));
    let groups = groups.flat_map(|((kind, access), tests)| group(*kind, *access, tests));
    HEAD.into_iter().chain(groups).chain([set(VERDICT, 0), EXIT]).collect()
}

/// Test of the device numbers: a register and the value that it must have, or `None` if any number matches.
type Test = Option<(u8, u32)>;

/// The test for a rule. `None` if no device can have the rule's numbers: majors have 12 bits, minors 20.
fn test(rule: &DeviceRule) -> Option<Test> {
    let fits = |number: Option<u32>, bits| number.is_none_or(|number| number >> bits == 0);
    let possible = fits(rule.major, 12) && fits(rule.minor, MINOR_BITS);
    possible.then_some(match (rule.major, rule.minor) {
        (Some(major), Some(minor)) => Some((NUMBER, major << MINOR_BITS | minor)),
        (Some(major), None) => Some((MAJOR, major)),
        (None, Some(minor)) => Some((MINOR, minor)),
        (None, None) => None,
    })
}

/// Instructions that allow the access if the device has `kind`, the request asks for no more than `access`, and one of
/// `tests` succeeds. Otherwise they jump past their end.
fn group(kind: DeviceKind, access: Access, tests: &[Test]) -> Vec<Insn> {
    let kind = match kind {
        DeviceKind::Block => 1,
        DeviceKind::Char => 2,
    };
    let mut group = vec![unless(KIND, kind)];
    if !access.is_all() {
        let beyond = access.complement().bits();
        group.extend([copy(SCRATCH, ACCESS), and(SCRATCH, beyond), unless(SCRATCH, 0)]);
    }
    // A test that matches any number makes the others redundant.
    let tests: Vec<(u8, u32)> = tests.iter().copied().collect::<Option<_>>().unwrap_or_default();
    if let Some(((register, value), others)) = tests.split_last() {
        group.extend(others.iter().map(|(register, value)| when(*register, *value)));
        group.push(unless(*register, *value));
    }
    group.extend([set(VERDICT, 1), EXIT]);
    // Offsets count from the instruction after the jump. WHEN jumps to the last two instructions, UNLESS past them.
    for (insn, behind) in group.iter_mut().rev().zip(0i16..) {
        match insn.code {
            UNLESS => insn.off = behind,
            WHEN => insn.off = behind.saturating_sub(2),
            _ => {}
        }
    }
    group
}

/// Loads the program and attaches it to the v2 cgroup at `path`, whose open directory is `cgroup`.
///
/// That requires `CAP_SYS_ADMIN`, or `CAP_BPF` and `CAP_NET_ADMIN` (Linux 5.8), in the initial user namespace, and a
/// kernel with `CONFIG_CGROUP_BPF`. No cgroup above may have a program that was attached as exclusive, with neither
/// `BPF_F_ALLOW_MULTI` nor `BPF_F_ALLOW_OVERRIDE`.
///
/// # Errors
/// [`Error::Prepare`](crate::Error::Prepare) with the refused call.
pub(in crate::cgroup) fn attach(
    kernel: &Kernel,
    cgroup: Option<BorrowedFd<'_>>,
    path: &Path,
    rules: &[DeviceRule],
) -> Result<()> {
    let program = program(rules);
    let load = || bpf::load_device(&program).map(Some);
    let loaded = kernel.call(|| load_call(program.len()), None, load)?;
    let attach = || match (cgroup, &loaded) {
        (Some(cgroup), Some(loaded)) => bpf::attach_device(cgroup, loaded.as_fd()),
        _ => Err(io::ErrorKind::NotFound.into()),
    };
    kernel.call(|| attach_call(path), (), attach)
}

fn load_call(length: usize) -> String {
    format!("bpf(BPF_PROG_LOAD, BPF_PROG_TYPE_CGROUP_DEVICE, {length} instructions)")
}

fn attach_call(path: &Path) -> String {
    format!("bpf(BPF_PROG_ATTACH, {path:?}, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI)")
}

#[cfg(test)]
mod tests {
    use super::super::{Access, rules};
    use super::*;

    /// Interprets the instructions that the compiler uses. Panics where the kernel's verifier would refuse the program.
    fn run(program: &[Insn], context: [u32; 3]) -> u32 {
        let mut registers: [Option<u32>; 11] = [None; 11];
        let mut at = 0;
        for _ in 0..program.len() {
            let Insn { code, registers: pair, off, imm } = program[at];
            let (dst, src) = (usize::from(pair & 15), usize::from(pair >> 4));
            at = at.checked_add(1).unwrap();
            match code {
                0x61 => {
                    // Register 1 is the context until something is written to it.
                    assert!(src == 1 && registers[1].is_none() && off % 4 == 0);
                    registers[dst] = Some(context[usize::try_from(off).unwrap() / 4]);
                }
                0xbc => registers[dst] = Some(registers[src].unwrap()),
                0xb4 => registers[dst] = Some(imm),
                0x54 => registers[dst] = Some(registers[dst].unwrap() & imm),
                0x74 => registers[dst] = Some(registers[dst].unwrap() >> imm),
                0x64 => registers[dst] = Some(registers[dst].unwrap() << imm),
                0x4c => registers[dst] = Some(registers[dst].unwrap() | registers[src].unwrap()),
                0x56 | 0x16 => {
                    if (registers[dst].unwrap() == imm) == (code == 0x16) {
                        at = at.checked_add(usize::try_from(off).unwrap()).unwrap();
                    }
                }
                0x95 => return registers[0].unwrap(),
                other => panic!("unknown instruction {other:#x}"),
            }
        }
        panic!("the program runs off its end");
    }

    /// Decides by the list, as the kernel's documentation defines it: one rule must allow all of the requested access.
    fn decides(rules: &[DeviceRule], kind: DeviceKind, major: u32, minor: u32, access: u32) -> bool {
        rules.iter().any(|rule| {
            rule.kind == kind
                && (rule.major.is_none() || rule.major == Some(major))
                && (rule.minor.is_none() || rule.minor == Some(minor))
                && rule.access.bits() & access == access
        })
    }

    fn odd() -> Vec<DeviceRule> {
        let rule = |kind, major, minor, access| {
            let access = Access::parse(access).unwrap();
            DeviceRule { kind, major, minor, access }
        };
        vec![
            rule(DeviceKind::Char, Some(10), Some(229), "rwm"),
            rule(DeviceKind::Char, Some(10), Some(200), "r"),
            rule(DeviceKind::Char, Some(7), None, "w"),
            rule(DeviceKind::Block, Some(7), Some(0), "r"),
            rule(DeviceKind::Block, Some(7), Some(0), "w"),
            rule(DeviceKind::Block, None, Some(9), "rw"),
            rule(DeviceKind::Block, Some(4095), Some(0xf_ffff), "m"),
            rule(DeviceKind::Block, Some(u32::MAX), None, "rm"),
            rule(DeviceKind::Block, Some(4096), Some(0), "rwm"),
            rule(DeviceKind::Char, Some(0), Some(0x10_0000), "rwm"),
            rule(DeviceKind::Char, Some(4096), None, "wm"),
            rule(DeviceKind::Block, Some(8), None, "rwm"),
        ]
    }

    #[test]
    fn program_allows_exactly_what_the_list_allows() {
        // The kernel's majors have 12 bits, its minors 20.
        let majors = [0, 1, 5, 7, 8, 10, 136, 137, 4094, 4095];
        let minors = [0, 1, 2, 3, 5, 7, 8, 9, 11, 200, 229, 0xf_fffe, 0xf_ffff];
        let any = |kind| DeviceRule { kind, major: None, minor: None, access: Access::all() };
        let mut verdicts = [0u32; 2];
        let all = [rules(odd()), vec![any(DeviceKind::Char)]].concat();
        let many = (0..2500).map(|n| DeviceRule { major: Some(8), minor: Some(n), ..any(DeviceKind::Block) });
        for list in [
            vec![],
            rules([]),
            odd(),
            rules(odd()),
            vec![any(DeviceKind::Char)],
            vec![any(DeviceKind::Block)],
            all,
            many.collect(),
        ] {
            let program = program(&list);
            for (kind, bits) in [(DeviceKind::Block, 1), (DeviceKind::Char, 2)] {
                for (major, minor) in majors.iter().flat_map(|a| minors.iter().map(move |i| (*a, *i))) {
                    for access in 0..8 {
                        let verdict = run(&program, [access << 16 | bits, major, minor]);
                        let expected = u32::from(decides(&list, kind, major, minor, access));
                        assert_eq!(verdict, expected, "{kind:?} {major}:{minor} {access} of {list:?}");
                        verdicts[usize::try_from(verdict).unwrap()] += 1;
                    }
                }
            }
        }
        assert!(verdicts.iter().all(|n| *n > 1000), "{verdicts:?}");
    }

    #[test]
    fn instructions_have_the_kernels_layout_and_the_calls_are_printed() {
        assert_eq!(size_of::<Insn>(), 8);
        // ldxw r2, [r1]; mov w3, w2
        assert_eq!((HEAD[0].code, HEAD[0].registers), (0x61, 0x12));
        assert_eq!((HEAD[1].code, HEAD[1].registers), (0xbc, 0x23));
        let lengths = [(vec![], 11), (rules([]), 34)];
        for (list, length) in lengths {
            assert_eq!(program(&list).len(), length);
            let path = Path::new("/cg/x.scope");
            let expected = [
                format!("bpf(BPF_PROG_LOAD, BPF_PROG_TYPE_CGROUP_DEVICE, {length} instructions)"),
                "bpf(BPF_PROG_ATTACH, \"/cg/x.scope\", BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI)".to_owned(),
            ];
            let kernel = Kernel::recorder();
            attach(&kernel, None, path, &list).unwrap();
            assert_eq!(kernel.into_lines(), expected);
        }
    }
}
