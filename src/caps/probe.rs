//! The capabilities that the kernel supports and that the caller holds. The parsers take text; only [`supported`] and
//! [`own`] read files.

use std::io;

use super::{CapSet, Sets};
use crate::error::Error;

const LAST_CAP: &str = "/proc/sys/kernel/cap_last_cap";
/// The status of the calling thread, as capabilities belong to threads (Linux 3.17).
const STATUS: &str = "/proc/thread-self/status";

/// All capabilities of the running kernel, including those that this crate has no name for.
///
/// Read from `/proc/sys/kernel/cap_last_cap` (Linux 3.2, `proc(5)`).
///
/// # Errors
/// [`Error::Prepare`] if the file cannot be read or parsed, for instance if `/proc` is not mounted.
pub fn supported() -> Result<CapSet, Error> {
    read(LAST_CAP, parse_last_cap).map(CapSet::up_to)
}

/// The capability sets of the calling thread.
///
/// Read from `/proc/thread-self/status` (Linux 3.17, `proc(5)`).
///
/// # Errors
/// [`Error::Prepare`] if the file cannot be read or parsed, for instance if `/proc` is not mounted.
pub fn own() -> Result<Sets, Error> {
    read(STATUS, parse_status)
}

fn read<T>(path: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, Error> {
    let value = std::fs::read_to_string(path)
        .and_then(|text| parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into()));
    value.map_err(Error::prepare(format!("read({path:?})")))
}

/// Parses the text of `/proc/sys/kernel/cap_last_cap`; `None` unless it is a number from 0 to 63.
pub fn parse_last_cap(text: &str) -> Option<u8> {
    text.trim().parse().ok().filter(|&number| CapSet::from_number(number).is_some())
}

/// Parses the five sets in the text of `/proc/PID/status`; `None` if a line is missing or is not a mask.
///
/// Kernels before Linux 4.3 have no ambient set and no line for it. The set is then empty.
///
/// ```
/// # use cofferdam::caps::{CapSet, parse_status};
/// let text = "Name:\tcat\nCapInh:\t0\nCapPrm:\t00000000a80405fb\nCapEff:\t400\nCapBnd:\t000001ffffffffff\n";
/// let sets = parse_status(text).unwrap();
/// assert_eq!((sets.permitted, sets.ambient), (CapSet::DEFAULT, CapSet::EMPTY));
/// ```
pub fn parse_status(text: &str) -> Option<Sets> {
    let line = |key| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let mask = |value: &str| u64::from_str_radix(value.trim(), 16).ok().map(CapSet::from_bits);
    Some(Sets {
        bounding: mask(line("CapBnd")?)?,
        permitted: mask(line("CapPrm")?)?,
        effective: mask(line("CapEff")?)?,
        inheritable: mask(line("CapInh")?)?,
        ambient: line("CapAmb").map_or(Some(CapSet::EMPTY), mask)?,
    })
}

#[cfg(test)]
mod tests {
    use caps::CapSet as Kind;

    use super::*;

    #[test]
    fn cap_last_cap_is_parsed() {
        let table = [
            ("40\n", Some(40)),
            ("0", Some(0)),
            ("63\n", Some(63)),
            ("64\n", None),
            ("256\n", None),
            ("-1\n", None),
            ("", None),
            ("forty\n", None),
        ];
        for (text, expect) in table {
            assert_eq!(parse_last_cap(text), expect, "{text:?}");
        }
    }

    #[test]
    fn the_five_sets_are_parsed() {
        let text = "Name:\tCapInh\nThreads:\t1\nCapInh:\t0000000000000001\nCapPrm:\t0000000000000002\n\
                    CapEff:\t0000000000000004\nCapBnd:\t0000000000000008\nCapAmb:\t0000000000000010\nSeccomp:\t0\n";
        let sets = parse_status(text).unwrap();
        let masks = [sets.inheritable, sets.permitted, sets.effective, sets.bounding, sets.ambient];
        assert_eq!(masks.map(CapSet::bits), [1, 2, 4, 8, 16]);
        for key in ["CapInh", "CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(parse_status(&text.replace(&format!("\n{key}"), "\nX")), None, "{key}");
        }
        assert_eq!(parse_status(&text.replace("\nCapAmb", "\nX")).unwrap().ambient, CapSet::EMPTY);
        assert_eq!(parse_status(&text.replace("0010", "001g")), None);
        assert_eq!(parse_status(""), None);
    }

    /// Compares the sets read from `/proc` with those of the system calls, which the `caps` crate makes.
    #[test]
    fn agrees_with_the_system_calls() {
        let through_calls = |kind| {
            let set = caps::read(None, kind).unwrap();
            CapSet::from_bits(set.iter().map(|capability| capability.bitmask()).sum())
        };
        let (sets, supported) = (own().unwrap(), supported().unwrap());
        let table = [
            (sets.bounding, Kind::Bounding),
            (sets.permitted, Kind::Permitted),
            (sets.effective, Kind::Effective),
            (sets.inheritable, Kind::Inheritable),
            (sets.ambient, Kind::Ambient),
        ];
        let named = CapSet::up_to(40);
        for (set, kind) in table {
            assert_eq!(set.intersection(named), through_calls(kind), "{kind:?}");
        }
        assert!(supported.contains(CapSet::DEFAULT) && supported.contains(sets.bounding));
    }

    #[test]
    fn errors_name_the_file() {
        let error = read("/proc/no such file", parse_last_cap).unwrap_err();
        assert_eq!(error.to_string(), "read(\"/proc/no such file\")");
    }
}
