//! Device rules, and the list of a task.

use std::fmt;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

use crate::notation::InvalidValue;

bitflags::bitflags! {
    /// Access to a device node. The bits are those that the kernel passes to an eBPF program (`BPF_DEVCG_ACC_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Access: u32 {
        /// Make a node with `mknod(2)`.
        const MKNOD = 1;
        /// Open the device for reading.
        const READ = 2;
        /// Open the device for writing.
        const WRITE = 4;
    }
}

impl Access {
    /// Parses any of the letters `r`, `w` and `m`, in any order.
    ///
    /// # Errors
    /// [`InvalidValue`] if the text is empty or has any other character.
    pub fn parse(text: &str) -> Result<Access, InvalidValue> {
        let wrong =
            || InvalidValue::new(format!("invalid device access {text:?}: must consist of r, w and m"));
        let letters = text.chars().map(|c| match c {
            'r' => Some(Access::READ),
            'w' => Some(Access::WRITE),
            'm' => Some(Access::MKNOD),
            _ => None,
        });
        let access: Access = letters.collect::<Option<_>>().ok_or_else(wrong)?;
        if access.is_empty() { Err(wrong()) } else { Ok(access) }
    }
}

impl Serialize for Access {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Access {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Access::parse(&text).map_err(de::Error::custom)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = [(Access::READ, "r"), (Access::WRITE, "w"), (Access::MKNOD, "m")];
        letters.into_iter().filter(|(bit, _)| self.contains(*bit)).try_for_each(|(_, c)| f.write_str(c))
    }
}

/// Kind of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceKind {
    /// A character device.
    Char,
    /// A block device.
    Block,
}

/// Rule of a device list: a set of devices, and the access to them that is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceRule {
    /// The kind of device.
    pub kind: DeviceKind,
    /// Major number, which selects the driver. `None` matches any.
    pub major: Option<u32>,
    /// Minor number. `None` matches any.
    pub minor: Option<u32>,
    /// Access that is allowed. A single rule must allow all of the access that a request asks for: two rules that each
    /// allow a part of it do not.
    pub access: Access,
}

impl DeviceRule {
    const fn char(major: u32, minor: Option<u32>) -> DeviceRule {
        DeviceRule { kind: DeviceKind::Char, major: Some(major), minor, access: Access::all() }
    }

    const fn mknod(kind: DeviceKind) -> DeviceRule {
        DeviceRule { kind, major: None, minor: None, access: Access::MKNOD }
    }

    /// Whether the rule matches this device.
    fn covers(&self, kind: DeviceKind, major: u32, minor: u32) -> bool {
        let fits = |asked: Option<u32>, number| asked.is_none_or(|asked| asked == number);
        self.kind == kind && fits(self.major, major) && fits(self.minor, minor)
    }
}

/// Writes the rule as the v1 controller reads it: `c 1:3 rwm`, `b *:* m`.
impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let kind = if self.kind == DeviceKind::Char { 'c' } else { 'b' };
        write!(f, "{kind} {}:{} {}", number(self.major), number(self.minor), self.access)
    }
}

impl Serialize for DeviceRule {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// Rules that every list has: make any device node, and use the devices of the sandbox's `/dev`.
const DEFAULT: [DeviceRule; 10] = [
    DeviceRule::mknod(DeviceKind::Char),
    DeviceRule::mknod(DeviceKind::Block),
    // null, zero, full, random, urandom, tty, ptmx, pts
    DeviceRule::char(1, Some(3)),
    DeviceRule::char(1, Some(5)),
    DeviceRule::char(1, Some(7)),
    DeviceRule::char(1, Some(8)),
    DeviceRule::char(1, Some(9)),
    DeviceRule::char(5, Some(0)),
    DeviceRule::char(5, Some(2)),
    DeviceRule::char(136, None),
];

/// Returns the list of a task: the default rules and `declared`. Rules for the same device numbers are merged into one
/// that allows the access of all of them, as the v1 controller does.
///
/// ```
/// # use cofferdam::cgroup::devices::{Access, DeviceKind, DeviceRule, rules};
/// let fuse = DeviceRule { kind: DeviceKind::Char, major: Some(10), minor: Some(229), access: Access::all() };
/// let list: Vec<String> = rules([fuse]).iter().map(DeviceRule::to_string).collect();
/// assert_eq!(list[..3], ["c *:* m", "b *:* m", "c 1:3 rwm"]);
/// assert_eq!(list.last().unwrap(), "c 10:229 rwm");
/// ```
pub fn rules(declared: impl IntoIterator<Item = DeviceRule>) -> Vec<DeviceRule> {
    let mut list = DEFAULT.to_vec();
    for rule in declared {
        let key = |r: &DeviceRule| (r.kind, r.major, r.minor);
        match list.iter_mut().find(|known| key(known) == key(&rule)) {
            Some(known) => known.access |= rule.access,
            None => list.push(rule),
        }
    }
    list
}

/// Returns the union of the access that the rules of `list` allow to one device. A single request for all of it may
/// still be refused, because one rule must allow a request completely ([`DeviceRule::access`]).
pub fn allows(list: &[DeviceRule], kind: DeviceKind, major: u32, minor: u32) -> Access {
    list.iter().filter(|rule| rule.covers(kind, major, minor)).map(|rule| rule.access).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(kind: DeviceKind, major: u32, minor: u32, access: &str) -> DeviceRule {
        let access = Access::parse(access).unwrap();
        DeviceRule { kind, major: Some(major), minor: Some(minor), access }
    }

    #[test]
    fn default_list_allows_mknod_and_the_devices_of_dev() {
        let list: Vec<String> = rules([]).iter().map(DeviceRule::to_string).collect();
        let expected = [
            "c *:* m",
            "b *:* m",
            "c 1:3 rwm",
            "c 1:5 rwm",
            "c 1:7 rwm",
            "c 1:8 rwm",
            "c 1:9 rwm",
            "c 5:0 rwm",
            "c 5:2 rwm",
            "c 136:* rwm",
        ];
        assert_eq!(list, expected);
    }

    #[test]
    fn access_parses_in_any_order_and_prints_as_rwm() {
        for (text, printed) in
            [("r", "r"), ("w", "w"), ("m", "m"), ("wr", "rw"), ("mwr", "rwm"), ("rr", "r"), ("rm", "rm")]
        {
            assert_eq!(Access::parse(text).unwrap().to_string(), printed, "{text}");
        }
        for text in ["", "x", "rwx", "R", "r w"] {
            let refused = Access::parse(text).unwrap_err().to_string();
            assert_eq!(refused, format!("invalid device access {text:?}: must consist of r, w and m"));
        }
    }

    #[test]
    fn rules_for_the_same_numbers_are_merged() {
        let list = rules([
            rule(DeviceKind::Char, 10, 229, "r"),
            rule(DeviceKind::Block, 7, 0, "rw"),
            rule(DeviceKind::Char, 10, 229, "w"),
            rule(DeviceKind::Char, 1, 3, "r"),
            rule(DeviceKind::Block, 1, 3, "r"),
        ]);
        let added: Vec<String> = list.iter().skip(DEFAULT.len()).map(DeviceRule::to_string).collect();
        assert_eq!(added, ["c 10:229 rw", "b 7:0 rw", "b 1:3 r"]);
        assert_eq!(serde_json::to_string(list.last().unwrap()).unwrap(), "\"b 1:3 r\"");
    }

    #[test]
    fn allows_is_the_union_of_matching_rules() {
        let list = rules([rule(DeviceKind::Char, 10, 229, "r")]);
        for (kind, major, minor, allowed) in [
            (DeviceKind::Char, 10, 229, "rm"),
            (DeviceKind::Char, 1, 3, "rwm"),
            (DeviceKind::Char, 136, 77, "rwm"),
            (DeviceKind::Char, 1, 1, "m"),
            (DeviceKind::Block, 1, 3, "m"),
        ] {
            assert_eq!(allows(&list, kind, major, minor).to_string(), allowed, "{kind:?} {major}:{minor}");
        }
        assert!(allows(&[], DeviceKind::Char, 1, 3).is_empty());
    }
}
