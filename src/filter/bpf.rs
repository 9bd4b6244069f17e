//! The subset of classic BPF that the filters use (`Documentation/networking/filter.rst`).

use super::calls::Arch;
use super::profile::{Action, Call};

/// One instruction (`struct sock_filter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u16,
    /// Number of instructions to skip if the comparison holds.
    yes: u8,
    /// Number of instructions to skip if the comparison does not hold.
    no: u8,
    k: u32,
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const GO: u16 = 0x05;
pub(super) const EQUAL: u16 = 0x15;
pub(super) const GREATER: u16 = 0x25;
pub(super) const GREATER_EQUAL: u16 = 0x35;
const GIVE: u16 = 0x06;

impl Instruction {
    const fn plain(code: u16, k: u32) -> Instruction {
        Instruction { code, yes: 0, no: 0, k }
    }

    /// Loads the 32-bit word at offset `at` of `struct seccomp_data` into the accumulator.
    pub(super) const fn load(at: u32) -> Instruction {
        Instruction::plain(LOAD, at)
    }

    pub(super) const fn and(mask: u32) -> Instruction {
        Instruction::plain(AND, mask)
    }

    /// Skips `over` instructions.
    pub(super) const fn go(over: u32) -> Instruction {
        Instruction::plain(GO, over)
    }

    /// Ends the program with the return value `word`.
    pub(super) const fn give(word: u32) -> Instruction {
        Instruction::plain(GIVE, word)
    }

    pub(super) const fn jump(code: u16, k: u32, yes: u8, no: u8) -> Instruction {
        Instruction { code, yes, no, k }
    }

    pub(super) const fn jumps(self) -> bool {
        matches!(self.code, EQUAL | GREATER | GREATER_EQUAL)
    }

    pub(super) const fn to(self, yes: u8, no: u8) -> Instruction {
        Instruction { yes, no, ..self }
    }
}

/// A compiled filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program(pub(super) Vec<Instruction>);

impl Program {
    /// Number of instructions.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the program has no instructions. A compiled filter is never empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The program in the kernel's format: an array of `struct sock_filter`.
    pub fn bytes(&self) -> Vec<u8> {
        let one = |i: &Instruction| {
            let [a, b] = i.code.to_ne_bytes();
            let [c, d, e, f] = i.k.to_ne_bytes();
            [a, b, i.yes, i.no, c, d, e, f]
        };
        self.0.iter().flat_map(one).collect()
    }

    /// The kernel's action for a call: interprets the program as the kernel does.
    pub fn decide(&self, call: &Call) -> Action {
        let word = |at: u32| match at {
            0 => call.number,
            4 => call.arch.audit(),
            _ => {
                let arg = usize::try_from(at.saturating_sub(16) / 8).ok();
                let arg = arg.and_then(|n| call.args.get(n)).copied().unwrap_or_default();
                let arg = if call.arch == Arch::I386 { arg & 0xffff_ffff } else { arg };
                u32::try_from(if at.is_multiple_of(8) { arg & 0xffff_ffff } else { arg >> 32 })
                    .unwrap_or_default()
            }
        };
        let (mut at, mut accumulator) = (0_usize, 0_u32);
        // BPF jumps lead forward only, so the program ends.
        while let Some(instruction) = self.0.get(at) {
            let Instruction { code, yes, no, k } = *instruction;
            let branch = |holds: bool| usize::from(if holds { yes } else { no });
            let over = match code {
                LOAD => {
                    accumulator = word(k);
                    0
                }
                AND => {
                    accumulator &= k;
                    0
                }
                GO => usize::try_from(k).unwrap_or(usize::MAX),
                EQUAL => branch(accumulator == k),
                GREATER => branch(accumulator > k),
                GREATER_EQUAL => branch(accumulator >= k),
                _ => return Action::of(k),
            };
            at = at.saturating_add(over).saturating_add(1);
        }
        Action::Kill
    }
}
