//! CPU sets in the kernel's list format (`cpuset(7)`).

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::notation::InvalidValue;

/// Set of CPU numbers, stored as intervals: `0-4294967295` takes as much memory as `0`.
///
/// [`Display`](fmt::Display) writes the kernel's list format (`0-3,8`). The empty set is written as one space, because
/// the kernel ignores an empty write.
///
/// ```
/// use cofferdam::{CpuSet, Limits};
///
/// let cores: CpuSet = "0-3,8".parse()?;
/// assert_eq!((cores.len(), cores.to_string()), (5, "0-3,8".into()));
/// assert_eq!(cores.difference(&CpuSet::from_iter([1, 2])).to_string(), "0,3,8");
/// let limits = Limits { cores, exclusive: true, ..Limits::default() };
/// # let _ = limits;
/// # Ok::<(), cofferdam::InvalidValue>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuSet {
    /// Sorted, disjoint and not adjacent. Both bounds of an interval are inclusive.
    ranges: Vec<(u32, u32)>,
}

impl CpuSet {
    /// Parses a list such as `0-3,8`. Blanks, reversed or empty pieces and strides (`0-8:1/2`) are errors.
    ///
    /// # Errors
    /// A message that names the invalid piece.
    pub fn parse(list: &str) -> Result<CpuSet, InvalidValue> {
        list.split(',')
            .map(|piece| match range(piece) {
                Some((low, high)) if low <= high => Ok((low, high)),
                Some(_) => Err(InvalidValue::new(format!("CPU range {piece:?} is reversed"))),
                None => Err(InvalidValue::new(format!("{piece:?} is not a CPU number or range"))),
            })
            .collect::<Result<Vec<_>, _>>()
            .map(CpuSet::from_ranges)
    }

    /// Parses a list leniently, such as the text of a kernel file: trims blanks, swaps reversed bounds, and skips
    /// pieces that are not a number or a range.
    pub fn parse_lenient(list: &str) -> CpuSet {
        let pieces = list.split(',').filter_map(|piece| range(piece.trim()));
        CpuSet::from_ranges(pieces.map(|(a, b)| (a.min(b), a.max(b))).collect())
    }

    fn from_ranges(mut ranges: Vec<(u32, u32)>) -> CpuSet {
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (low, high) in ranges {
            match merged.last_mut() {
                Some((_, end)) if low <= end.saturating_add(1) => *end = high.max(*end),
                _ => merged.push((low, high)),
            }
        }
        CpuSet { ranges: merged }
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Number of CPUs in the set.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|(low, high)| u64::from(high.saturating_sub(*low)).saturating_add(1)).sum()
    }

    /// Iterates over the CPU numbers in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.ranges.iter().flat_map(|(low, high)| *low..=*high)
    }

    /// CPUs that are in either set.
    pub fn union(&self, other: &CpuSet) -> CpuSet {
        CpuSet::from_ranges(self.ranges.iter().chain(&other.ranges).copied().collect())
    }

    /// CPUs that are in this set but not in `other`.
    pub fn difference(&self, other: &CpuSet) -> CpuSet {
        let without = |left: Vec<(u32, u32)>, &(from, to): &(u32, u32)| {
            let pieces = left.into_iter().flat_map(|(low, high)| {
                let below = (low < from).then(|| (low, high.min(from.saturating_sub(1))));
                let above = (high > to).then(|| (low.max(to.saturating_add(1)), high));
                below.into_iter().chain(above)
            });
            pieces.collect()
        };
        CpuSet { ranges: other.ranges.iter().fold(self.ranges.clone(), without) }
    }

    /// Whether every CPU of this set is also in `other`.
    pub fn is_subset(&self, other: &CpuSet) -> bool {
        self.difference(other).is_empty()
    }

    /// CPUs that are in both sets.
    pub fn intersection(&self, other: &CpuSet) -> CpuSet {
        let both = self.ranges.iter().flat_map(|(low, high)| {
            other.ranges.iter().map(move |(from, to)| (*low.max(from), *high.min(to)))
        });
        CpuSet::from_ranges(both.filter(|(low, high)| low <= high).collect())
    }
}

/// Parses `7` or `3-5`, digits only: `u32::from_str` alone would also accept `+7`.
fn range(piece: &str) -> Option<(u32, u32)> {
    let number = |s: &str| if s.bytes().all(|b| b.is_ascii_digit()) { s.parse().ok() } else { None };
    match piece.split_once('-') {
        Some((low, high)) => Some((number(low.trim())?, number(high.trim())?)),
        None => number(piece).map(|n| (n, n)),
    }
    .filter(|_| !piece.contains(char::is_whitespace))
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str(" ");
        }
        for (i, (low, high)) in self.ranges.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if low == high { write!(f, "{comma}{low}")? } else { write!(f, "{comma}{low}-{high}")? }
        }
        Ok(())
    }
}

impl Serialize for CpuSet {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if self.is_empty() { s.serialize_str("") } else { s.collect_str(self) }
    }
}

impl FromStr for CpuSet {
    type Err = InvalidValue;

    /// As [`CpuSet::parse`].
    fn from_str(list: &str) -> Result<Self, InvalidValue> {
        CpuSet::parse(list)
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(processors: I) -> Self {
        CpuSet::from_ranges(processors.into_iter().map(|number| (number, number)).collect())
    }
}

impl From<RangeInclusive<u32>> for CpuSet {
    /// The CPUs of a range. Empty if the start of the range is greater than its end.
    fn from(range: RangeInclusive<u32>) -> Self {
        let (low, high) = range.into_inner();
        CpuSet::from_ranges(if low <= high { vec![(low, high)] } else { Vec::new() })
    }
}

impl<'de> Deserialize<'de> for CpuSet {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let list = String::deserialize(d)?;
        if list.is_empty() { Ok(CpuSet::default()) } else { CpuSet::parse(&list) }
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lenient_parsing_swaps_bounds_and_skips_invalid_pieces() {
        for (text, expected) in [
            ("0", "0"),
            ("3-6", "3-6"),
            ("1,3-5,9,11-14", "1,3-5,9,11-14"),
            (" 4-2 , 9-9 , 11-7\n", "2-4,7-11"),
            ("banana", " "),
            ("", " "),
            ("0-1,banana,1-2,3", "0-3"),
            ("-1,+2,4-,5-6-7, 8", "8"),
            ("4294967295,4294967296", "4294967295"),
        ] {
            assert_eq!(CpuSet::parse_lenient(text).to_string(), expected, "{text:?}");
        }
    }

    #[test]
    fn strict_parsing_accepts_only_numbers_and_ranges() {
        for text in ["0", "1-3", "1,3-5,9,11-14", "0-4294967295"] {
            assert_eq!(CpuSet::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(CpuSet::parse("3,1-2,2").unwrap().to_string(), "1-3");
        for text in ["", " ", "banana", "3-1", "1,", "1, 2", "1\n", "+1", "-1", "0-8:1/2", "4294967296"] {
            assert!(CpuSet::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn intersection_has_the_cpus_of_both_sets() {
        for (a, b, expected) in [
            ("0-3", "0-1", "0-1"),
            ("2-3", "0-1", " "),
            ("0,2,4-9", "1-4,6-7,9", "2,4,6-7,9"),
            ("0-4294967295", "7", "7"),
        ] {
            let (a, b) = (CpuSet::parse(a).unwrap(), CpuSet::parse(b).unwrap());
            assert_eq!(a.intersection(&b).to_string(), expected);
            assert_eq!(a.intersection(&b), b.intersection(&a));
        }
    }

    #[test]
    fn union_and_difference_follow_set_algebra() {
        for (a, b, union, difference) in [
            ("0-3", "2-5", "0-5", "0-1"),
            ("0-3", "4", "0-4", "0-3"),
            ("0-9", "0,3-4,9", "0-9", "1-2,5-8"),
            ("1,5", "0-9", "0-9", " "),
            ("0-4294967295", "1-4294967294", "0-4294967295", "0,4294967295"),
            ("4294967295", "4294967295", "4294967295", " "),
            ("2-3", " ", "2-3", "2-3"),
            (" ", "2-3", "2-3", " "),
        ] {
            let (a, b) = (CpuSet::parse_lenient(a), CpuSet::parse_lenient(b));
            assert_eq!(a.union(&b).to_string(), union);
            assert_eq!(a.union(&b), b.union(&a));
            assert_eq!(a.difference(&b).to_string(), difference);
            assert_eq!(a.is_subset(&b), difference == " ");
            assert!(a.intersection(&a.difference(&b)) == a.difference(&b) && a.is_subset(&a.union(&b)));
        }
    }

    #[test]
    fn len_and_iter_agree_with_the_list() {
        for (list, all) in [("0", vec![0]), (" ", vec![]), ("1,3-5,9", vec![1, 3, 4, 5, 9])] {
            let set = CpuSet::parse_lenient(list);
            assert_eq!(set.iter().collect::<Vec<_>>(), all);
            assert_eq!(set.len(), all.len() as u64);
        }
        assert_eq!(CpuSet::parse("0-4294967295").unwrap().len(), 1 << 32);
    }

    #[test]
    fn it_can_be_stored() {
        for list in ["1,3-5", ""] {
            let set = CpuSet::parse_lenient(list);
            let json = serde_json::to_string(&set).unwrap();
            assert_eq!(json, format!("\"{list}\""));
            assert_eq!(serde_json::from_str::<CpuSet>(&json).unwrap(), set);
        }
        assert!(serde_json::from_str::<CpuSet>("\"banana\"").is_err());
    }
}
