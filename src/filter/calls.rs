//! Names and numbers of the system calls, for both architectures that an x86_64 kernel runs.

use serde::{Deserialize, Serialize};

use super::table::CALLS;

/// A system call table of the kernel. A 64-bit process may use both: `int 0x80` makes an i386 call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// The 64-bit table.
    #[serde(rename = "x86_64")]
    X86_64,
    /// The 32-bit table.
    I386,
}

impl Arch {
    /// Both architectures.
    pub const ALL: [Arch; 2] = [Arch::X86_64, Arch::I386];

    /// The `AUDIT_ARCH_*` value in `seccomp_data.arch` (`seccomp(2)`).
    pub const fn audit(self) -> u32 {
        match self {
            Arch::X86_64 => 0xc000_003e,
            Arch::I386 => 0x4000_0003,
        }
    }

    fn of(self, [x86_64, i386]: [Option<u32>; 2]) -> Option<u32> {
        match self {
            Arch::X86_64 => x86_64,
            Arch::I386 => i386,
        }
    }
}

/// Every number of the tables is below.
pub(super) const END: u32 = 512;

const _: () = {
    let mut rest = CALLS;
    while let [(_, [x86_64, i386]), behind @ ..] = rest {
        assert!(matches!((x86_64, i386), (None | Some(..END), None | Some(..END))));
        rest = behind;
    }
};

/// The numbers of a system call on x86_64 and on i386.
fn numbers(name: &str) -> Option<[Option<u32>; 2]> {
    let at = CALLS.binary_search_by(|(known, _)| known.cmp(&name)).ok()?;
    CALLS.get(at).map(|(_, numbers)| *numbers)
}

/// The number of a system call. `None` if the architecture has no call of that name.
pub fn number(arch: Arch, name: &str) -> Option<u32> {
    arch.of(numbers(name)?)
}

/// Whether any architecture has a system call of that name.
pub(crate) fn known(name: &str) -> bool {
    numbers(name).is_some()
}

/// The number and name of every system call of an architecture, in the order of the names.
pub fn all(arch: Arch) -> impl Iterator<Item = (u32, &'static str)> {
    CALLS.iter().filter_map(move |(name, numbers)| Some((arch.of(*numbers)?, *name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_numbers_match_the_kernel_headers() {
        for (name, x86_64, i386) in [
            ("read", Some(0), Some(3)),
            ("clone", Some(56), Some(120)),
            ("socketcall", None, Some(102)),
            ("arch_prctl", Some(158), Some(384)),
            ("setns", Some(308), Some(346)),
            ("clone3", Some(435), Some(435)),
            ("no_such_call", None, None),
        ] {
            assert_eq!((number(Arch::X86_64, name), number(Arch::I386, name)), (x86_64, i386), "{name}");
        }
        let libc = [
            ("openat2", libc::SYS_openat2),
            ("io_uring_setup", libc::SYS_io_uring_setup),
            ("keyctl", libc::SYS_keyctl),
            ("mseal", libc::SYS_mseal),
            ("userfaultfd", libc::SYS_userfaultfd),
        ];
        for (name, expected) in libc {
            assert_eq!(number(Arch::X86_64, name).map(i64::from), Some(expected), "{name}");
        }
    }

    #[test]
    fn no_number_has_two_names() {
        for arch in Arch::ALL {
            let mut numbers: Vec<u32> = all(arch).map(|(number, _)| number).collect();
            numbers.sort_unstable();
            assert!(numbers.len() > 350, "{arch:?}: {}", numbers.len());
            assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{arch:?}");
        }
    }

    #[test]
    fn calls_are_sorted_by_name() {
        assert!(CALLS.is_sorted_by(|(name, _), (next, _)| name < next));
    }
}
