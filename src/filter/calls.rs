//! Names and numbers of the system calls, for both architectures that an x86_64 kernel runs.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

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
}

/// Name, number on x86_64, number on i386.
type Call = (&'static str, [Option<u32>; 2]);

static CALLS: LazyLock<Vec<Call>> = LazyLock::new(|| {
    let lines = include_str!("calls.txt").lines().filter(|line| !line.starts_with('#'));
    let call = |line: &'static str| {
        let mut words = line.split(' ');
        let name = words.next()?;
        let mut number = || words.next().and_then(|word| word.parse().ok());
        Some((name, [number(), number()]))
    };
    lines.filter_map(call).collect()
});

static BY_NAME: LazyLock<BTreeMap<&'static str, [Option<u32>; 2]>> = LazyLock::new(|| {
    // Inserted one by one: `collect` sorts first, which takes 8 KiB of stack.
    let mut map = BTreeMap::new();
    for (name, numbers) in CALLS.iter() {
        map.insert(*name, *numbers);
    }
    map
});

/// The number of a system call. `None` if the architecture has no call of that name.
pub fn number(arch: Arch, name: &str) -> Option<u32> {
    let [x86_64, i386] = BY_NAME.get(name)?;
    match arch {
        Arch::X86_64 => *x86_64,
        Arch::I386 => *i386,
    }
}

/// Whether any architecture has a system call of that name.
pub(crate) fn known(name: &str) -> bool {
    BY_NAME.contains_key(name)
}

/// The number and name of every system call of an architecture.
pub fn all(arch: Arch) -> impl Iterator<Item = (u32, &'static str)> {
    CALLS.iter().filter_map(move |(name, [x86_64, i386])| {
        let number = match arch {
            Arch::X86_64 => *x86_64,
            Arch::I386 => *i386,
        };
        Some((number?, *name))
    })
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
        assert_eq!(BY_NAME.len(), CALLS.len());
    }
}
