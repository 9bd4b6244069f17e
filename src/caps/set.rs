//! A set of capabilities, and their names.

use std::fmt;
use std::str::FromStr;

use caps::Capability;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::notation::InvalidValue;

/// A set of capabilities; bit *n* is capability number *n* of `linux/capability.h`.
///
/// Names are those of `capabilities(7)` in lower case and without `cap_`. When they are read, case, the prefix and
/// surrounding blanks do not matter. A capability that is newer than this crate's table of names is named by its
/// number: `41`, or `CAP_41` in upper case. A number is accepted only if the capability has no name, so each capability
/// has exactly one name.
///
/// ```
/// use cofferdam::caps::CapSet;
///
/// let set = CapSet::from_names(["Sys_Time", "CAP_CHOWN"]).unwrap();
/// assert_eq!(set.to_string(), "chown,sys_time");
/// assert_eq!(set.names_upper(), ["CAP_CHOWN", "CAP_SYS_TIME"]);
/// assert_eq!(format!("{set:x}"), "2000001");
/// assert_eq!(CapSet::from_bits(1 << 41).to_string(), "41");
/// ```
///
/// A set is serialised as the list of its names.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct CapSet(u64);

impl CapSet {
    /// No capability.
    pub const EMPTY: CapSet = CapSet(0);

    /// The default capabilities of a task: `audit_write`, `chown`, `dac_override`, `fowner`, `fsetid`, `kill`, `mknod`,
    /// `net_bind_service`, `setfcap`, `setgid`, `setpcap`, `setuid`, `sys_chroot`. It is the default of container
    /// engines, without `net_raw`.
    pub const DEFAULT: CapSet = CapSet(0xa804_05fb);

    /// Capabilities 0 to 37, `chown` to `audit_read`: all capabilities before Linux 5.8.
    pub const LEGACY_ROOT: CapSet = CapSet::up_to(37);

    /// The set with this bit mask, as `/proc/PID/status` prints it.
    pub const fn from_bits(bits: u64) -> CapSet {
        CapSet(bits)
    }

    /// The bit mask.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// All capabilities with numbers from 0 to `last`, inclusive; all 64 if `last` is above 63.
    pub const fn up_to(last: u8) -> CapSet {
        let unused = 63_u32.saturating_sub(last as u32);
        match u64::MAX.checked_shr(unused) {
            Some(bits) => CapSet(bits),
            None => CapSet::EMPTY,
        }
    }

    /// The set of the one capability with this number; `None` if it is above 63.
    pub const fn from_number(number: u8) -> Option<CapSet> {
        match 1_u64.checked_shl(number as u32) {
            Some(bits) => Some(CapSet(bits)),
            None => None,
        }
    }

    /// The set of the one capability with this name; `None` if there is no such capability.
    ///
    /// `all` is not a name here: it depends on the kernel's capabilities, which [`parse`](super::parse) takes as an
    /// argument.
    pub fn from_name(name: &str) -> Option<CapSet> {
        CapSet::from_normalised(&normalise(name))
    }

    /// The set of the capabilities with these names.
    ///
    /// # Errors
    /// [`InvalidValue`] with the first name that is not a capability.
    pub fn from_names<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Result<CapSet, InvalidValue> {
        names.into_iter().try_fold(CapSet::EMPTY, |set, name| {
            let one = CapSet::from_name(name.as_ref())
                .ok_or_else(|| InvalidValue::new(format!("{:?} is not a capability", name.as_ref())))?;
            Ok(set.union(one))
        })
    }

    /// Like [`CapSet::from_name`], for a name that [`normalise`] returned: a second prefix is not removed.
    pub(super) fn from_normalised(name: &str) -> Option<CapSet> {
        let upper = format!("CAP_{}", name.to_ascii_uppercase());
        match Capability::from_str(&upper) {
            Ok(capability) => CapSet::from_number(capability.index()),
            Err(_) => {
                let number: u8 = name.parse().ok()?;
                let unnamed = CapSet::from_number(number).filter(|_| !is_named(number));
                unnamed.filter(|_| number.to_string() == name)
            }
        }
    }

    /// The capabilities in either set.
    pub const fn union(self, other: CapSet) -> CapSet {
        CapSet(self.0 | other.0)
    }

    /// The capabilities in both sets.
    pub const fn intersection(self, other: CapSet) -> CapSet {
        CapSet(self.0 & other.0)
    }

    /// The capabilities in this set but not in the other.
    pub const fn difference(self, other: CapSet) -> CapSet {
        CapSet(self.0 & !other.0)
    }

    /// Whether all of `other` is in this set.
    pub const fn contains(self, other: CapSet) -> bool {
        other.difference(self).is_empty()
    }

    /// Whether the capability of this name is in the set; false for an unknown name.
    pub(crate) fn has(self, name: &str) -> bool {
        CapSet::from_name(name).is_some_and(|cap| self.contains(cap))
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The numbers of the capabilities, ascending.
    pub fn numbers(self) -> impl Iterator<Item = u8> {
        (0..64).filter(move |&n| CapSet::from_number(n).is_some_and(|one| self.contains(one)))
    }

    /// The names in lower case and without prefix, sorted alphabetically: `chown`, `sys_time`.
    pub fn names(self) -> Vec<String> {
        let named = caps::all();
        let name = |n: u8| match named.iter().find(|c| c.index() == n) {
            Some(capability) => normalise(&capability.to_string()),
            None => n.to_string(),
        };
        let mut names: Vec<String> = self.numbers().map(name).collect();
        names.sort_unstable();
        names
    }

    /// The names as `capabilities(7)` writes them, sorted alphabetically: `CAP_CHOWN`, `CAP_SYS_TIME`.
    pub fn names_upper(self) -> Vec<String> {
        self.names().iter().map(|name| format!("CAP_{}", name.to_ascii_uppercase())).collect()
    }
}

/// Returns the form in which names are compared and printed. Only ASCII letters change case: otherwise the Kelvin sign
/// (U+212A), for example, would become `k` and pass for a letter of a name.
pub(super) fn normalise(name: &str) -> String {
    let name = name.trim().to_ascii_lowercase();
    name.strip_prefix("cap_").unwrap_or(&name).to_owned()
}

fn is_named(number: u8) -> bool {
    caps::all().iter().any(|capability| capability.index() == number)
}

impl fmt::Display for CapSet {
    /// The names separated by commas; an empty string for the empty set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(","))
    }
}

impl fmt::Debug for CapSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CapSet({self})")
    }
}

impl fmt::LowerHex for CapSet {
    /// The bit mask in hexadecimal, as in `/proc/PID/status`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

impl Serialize for CapSet {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.names())
    }
}

impl<'de> Deserialize<'de> for CapSet {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        CapSet::from_names(Vec::<String>::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_constants_have_13_and_38_capabilities() {
        let default = "audit_write,chown,dac_override,fowner,fsetid,kill,mknod,net_bind_service,setfcap,setgid,\
                       setpcap,setuid,sys_chroot";
        assert_eq!(CapSet::DEFAULT.to_string(), default);
        assert_eq!(CapSet::DEFAULT.numbers().count(), 13);
        assert_eq!(format!("{:x}", CapSet::LEGACY_ROOT), "3fffffffff");
        assert_eq!(CapSet::LEGACY_ROOT.numbers().count(), 38);
    }

    #[test]
    fn numbers_go_up_to_63() {
        let table = [(0, 1), (1, 0b11), (62, u64::MAX >> 1), (63, u64::MAX), (64, u64::MAX), (255, u64::MAX)];
        for (last, bits) in table {
            assert_eq!(CapSet::up_to(last).bits(), bits, "{last}");
        }
        assert_eq!(CapSet::from_number(63).map(CapSet::bits), Some(1 << 63));
        assert_eq!(CapSet::from_number(64), None);
    }

    #[test]
    fn names_are_normalised() {
        let table = [
            ("chown", "chown"),
            ("Cap_Chown", "chown"),
            ("CAP_CHOWN", "chown"),
            ("  chown\t", "chown"),
            ("all", "all"),
            ("ALL", "all"),
            ("CAP_ALL", "all"),
            ("cap_cap_chown", "cap_chown"),
            ("CAP_41", "41"),
            ("cap_", ""),
            (" ", ""),
        ];
        for (name, expect) in table {
            assert_eq!(normalise(name), expect, "{name:?}");
        }
    }

    #[test]
    fn unknown_names_are_refused() {
        // Numbers of named capabilities, other spellings of a number, and the Kelvin sign for a k.
        for name in [
            "",
            "all",
            "cap_cap_chown",
            "not_valid",
            "0",
            "40",
            "+41",
            "041",
            "64",
            "256",
            "-1",
            "\u{212a}ill",
        ] {
            assert_eq!(CapSet::from_name(name), None, "{name:?}");
        }
    }

    #[test]
    fn every_capability_has_one_name() {
        for number in 0..64 {
            let one = CapSet::from_number(number).unwrap();
            let (lower, upper) = (one.names(), one.names_upper());
            assert_eq!((lower.len(), upper.len()), (1, 1));
            assert_eq!(CapSet::from_name(&lower[0]), Some(one), "{lower:?}");
            assert_eq!(CapSet::from_name(&upper[0]), Some(one), "{upper:?}");
            assert_eq!(upper[0], format!("CAP_{}", lower[0].to_uppercase()));
        }
        assert_eq!(CapSet::from_bits(1 << 40 | 1 << 41).names(), ["41", "checkpoint_restore"]);
    }

    #[test]
    fn lists_are_sorted_in_both_forms() {
        let set = CapSet::from_names(["SYS_TIME", "chown"]).unwrap();
        assert_eq!(set.names_upper(), ["CAP_CHOWN", "CAP_SYS_TIME"]);
        assert_eq!(set.names(), ["chown", "sys_time"]);
    }

    /// The cases use letters as names. Each letter stands for a capability.
    #[test]
    fn unions_intersections_and_differences() {
        let name = |letter: &str| match letter.to_ascii_lowercase().as_str() {
            "a" => "CAP_AUDIT_READ",
            "b" => "bpf",
            "c" => "Chown",
            "d" => "dac_override",
            "e" => "fowner",
            "f" => "fsetid",
            "x" => "sys_time",
            "y" => "wake_alarm",
            other => panic!("{other}"),
        };
        let set = |letters: &[&str]| CapSet::from_names(letters.iter().map(|l| name(l))).unwrap();
        let a = set(&["A", "b", "C", "d", "e", "f"]);
        assert_eq!(set(&["B", "x", "Y", "a"]).difference(a), set(&["x", "y"]));
        assert_eq!(a.intersection(set(&["x", "B", "E", "y", "f"])), set(&["b", "e", "f"]));
        assert_eq!(set(&["a"]).union(set(&["b"])), set(&["a", "b"]));
        assert!(a.contains(CapSet::EMPTY) && a.contains(set(&["a", "f"])) && !a.contains(set(&["a", "x"])));
    }

    #[test]
    fn sets_are_serialised_as_names() {
        let set = CapSet::from_bits(1 << 45 | 0b11);
        let json = serde_json::to_string(&set).unwrap();
        assert_eq!(json, r#"["45","chown","dac_override"]"#);
        assert_eq!(serde_json::from_str::<CapSet>(&json).unwrap(), set);
        assert!(serde_json::from_str::<CapSet>(r#"["all"]"#).is_err());
    }
}
