//! Lists of id ranges such as `0,10-15`, with which operators deny ids.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A set of user or group ids, kept as intervals: `0-4294967295` costs as much as `0`.
///
/// The grammar is strict, because a misread element would leave an id allowed that was meant to be denied. The empty
/// string is the empty set. Otherwise elements are separated by commas. An element is one id, or two ids separated by
/// one `-`, the lower first. An id is decimal digits, at most 4294967295; leading zeros are allowed, signs and blanks
/// are not. Elements may overlap and repeat.
///
/// ```
/// use cofferdam::ids::IdRanges;
///
/// let denied = IdRanges::parse("10-15,0,16")?;
/// assert!(denied.contains(0) && denied.contains(12) && !denied.contains(1));
/// assert_eq!(denied.to_string(), "0,10-16");
/// assert!(IdRanges::parse("1-2-3").is_err());
/// # Ok::<(), cofferdam::ids::RangeError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdRanges {
    /// Lowest and highest id of each interval: sorted, and with at least one id between any two.
    intervals: Vec<(u32, u32)>,
}

impl IdRanges {
    /// Reads a list of ranges.
    ///
    /// # Errors
    /// [`RangeError`] for the first element that is not a range.
    pub fn parse(list: &str) -> Result<IdRanges, RangeError> {
        if list.is_empty() {
            return Ok(IdRanges::default());
        }
        let intervals = list.split(',').map(|element| {
            interval(element).map_err(|kind| RangeError { element: element.to_owned(), kind })
        });
        Ok(IdRanges { intervals: merge(intervals.collect::<Result<_, _>>()?) })
    }

    /// Whether `id` is in the set.
    pub fn contains(&self, id: u32) -> bool {
        let candidate = self.intervals.partition_point(|&(_, last)| last < id);
        self.intervals.get(candidate).is_some_and(|&(first, _)| first <= id)
    }

    /// Whether the set has no id at all.
    pub fn is_empty(&self) -> bool {
        self.intervals.is_empty()
    }

    /// The intervals that make up the set: ascending, with at least one id between any two.
    pub fn intervals(&self) -> impl Iterator<Item = RangeInclusive<u32>> + '_ {
        self.intervals.iter().map(|&(first, last)| first..=last)
    }
}

/// Parses one element: an id, or two ids separated by a `-`. A third id would be part of the second, which then is not
/// a number.
fn interval(element: &str) -> Result<(u32, u32), RangeErrorKind> {
    let (first, last) = element.split_once('-').unwrap_or((element, element));
    let (first, last) = (bound(first)?, bound(last)?);
    if first <= last { Ok((first, last)) } else { Err(RangeErrorKind::Reversed) }
}

/// Parses one id. `u32::from_str` accepts a leading `+`, so digits are checked first.
fn bound(text: &str) -> Result<u32, RangeErrorKind> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or(RangeErrorKind::Bound)
}

/// Sorts intervals and joins those that overlap or touch.
fn merge(mut intervals: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    intervals.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::with_capacity(intervals.len());
    for (first, last) in intervals {
        match merged.last_mut() {
            Some(previous) if first <= previous.1.saturating_add(1) => previous.1 = previous.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

impl fmt::Display for IdRanges {
    /// The shortest list that [`IdRanges::parse`] reads back to the same set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.intervals.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for IdRanges {
    type Err = RangeError;

    fn from_str(list: &str) -> Result<Self, RangeError> {
        IdRanges::parse(list)
    }
}

impl TryFrom<String> for IdRanges {
    type Error = RangeError;

    fn try_from(list: String) -> Result<Self, RangeError> {
        IdRanges::parse(&list)
    }
}

impl From<IdRanges> for String {
    fn from(ranges: IdRanges) -> String {
        ranges.to_string()
    }
}

/// An element of a list that is not a range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid range {element:?}: {kind}")]
pub struct RangeError {
    /// The element as it was given, between its commas.
    pub element: String,
    /// What is wrong with it.
    pub kind: RangeErrorKind,
}

/// What is wrong with an element of a list of ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeErrorKind {
    /// One side is empty, not a decimal number or above 4294967295, or there are more than two sides.
    #[error("range bound not valid")]
    Bound,
    /// The first id is greater than the last.
    #[error("lower bound cannot be greater than upper bound")]
    Reversed,
}

/// Reads the policy field `denied_host_uids`: the user ids that no task may run as.
///
/// # Errors
/// [`Error::Spec`] for that field, with the offending element.
///
/// ```
/// let e = cofferdam::ids::denied_uids("0,10-1").unwrap_err();
/// assert_eq!(
///     e.to_string(),
///     "denied_host_uids: invalid range deniedHostUIDs \"10-1\": lower bound cannot be greater than upper bound",
/// );
/// ```
pub fn denied_uids(list: &str) -> Result<IdRanges, Error> {
    denied("denied_host_uids", "deniedHostUIDs", list)
}

/// Reads the policy field `denied_host_gids`: the group ids that no task may have as its primary group or as a
/// supplementary one.
///
/// # Errors
/// [`Error::Spec`] for that field, with the offending element.
pub fn denied_gids(list: &str) -> Result<IdRanges, Error> {
    denied("denied_host_gids", "deniedHostGIDs", list)
}

/// `label` is the field's name in Nomad's drivers, which job authors know.
fn denied(field: &'static str, label: &str, list: &str) -> Result<IdRanges, Error> {
    IdRanges::parse(list).map_err(|RangeError { element, kind }| {
        Error::spec(field, format!("invalid range {label} {element:?}: {kind}"))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::arithmetic_side_effects)]

    use super::*;

    #[test]
    fn valid_lists_are_parsed() {
        let table = [
            ("", ""),
            ("1", "1"),
            ("0", "0"),
            ("0,10-15,22", "0,10-15,22"),
            ("7,7", "7"),
            ("007", "7"),
            ("00000000000000000007", "7"),
            ("4294967295", "4294967295"),
            ("5-5", "5"),
            ("1-10", "1-10"),
            ("0-4294967295", "0-4294967295"),
            ("0-4294967295,3,7-9", "0-4294967295"),
            ("5-9,1-3,4", "1-9"),
            ("1-5,3-9,20-30,25", "1-9,20-30"),
            ("4294967294-4294967295,0-1", "0-1,4294967294-4294967295"),
        ];
        for (list, expect) in table {
            assert_eq!(IdRanges::parse(list).unwrap().to_string(), expect, "{list:?}");
        }
    }

    #[test]
    fn invalid_lists_are_refused() {
        use RangeErrorKind::{Bound, Reversed};
        let table = [
            ("4294967296", "4294967296", Bound),
            ("1-100,,200-300", "", Bound),
            ("banana", "banana", Bound),
            ("banana-10", "banana-10", Bound),
            ("10-banana", "10-banana", Bound),
            (",", "", Bound),
            ("1,", "", Bound),
            (",1", "", Bound),
            (" ", " ", Bound),
            ("1, 2", " 2", Bound),
            (" 1", " 1", Bound),
            ("1 ", "1 ", Bound),
            ("1 - 2", "1 - 2", Bound),
            ("-5", "-5", Bound),
            ("5-", "5-", Bound),
            ("-", "-", Bound),
            ("+1", "+1", Bound),
            ("1-+2", "1-+2", Bound),
            ("0x10", "0x10", Bound),
            ("1_000", "1_000", Bound),
            ("1\0", "1\0", Bound),
            ("١", "١", Bound),
            // Nomad's validator accepts these, and then denies nothing.
            ("1-2-3", "1-2-3", Bound),
            ("1--3", "1--3", Bound),
            ("0,1-2-3,4", "1-2-3", Bound),
            ("10-1", "10-1", Reversed),
            ("1,10-1", "10-1", Reversed),
        ];
        for (list, element, kind) in table {
            let expect = RangeError { element: element.to_owned(), kind };
            assert_eq!(IdRanges::parse(list), Err(expect), "{list:?}");
        }
    }

    #[test]
    fn errors_name_the_policy_field() {
        let both = |uids, gids| denied_uids(uids).and_then(|_| denied_gids(gids)).map(drop);
        assert!(both("", "").is_ok());
        assert!(both("1-10", "1-10").is_ok());
        let table = [
            ("10-1", "", "denied_host_uids", "deniedHostUIDs"),
            ("", "10-1", "denied_host_gids", "deniedHostGIDs"),
        ];
        for (uids, gids, field, label) in table {
            let expect = format!(
                "{field}: invalid range {label} \"10-1\": lower bound cannot be greater than upper bound"
            );
            assert_eq!(both(uids, gids).unwrap_err().to_string(), expect);
        }
    }

    #[test]
    fn ranges_are_serialised_as_a_list() {
        let ranges = IdRanges::parse("3,1-2").unwrap();
        assert_eq!(serde_json::to_string(&ranges).unwrap(), "\"1-3\"");
        assert_eq!(serde_json::from_str::<IdRanges>("\"1-3\"").unwrap(), ranges);
        assert!(serde_json::from_str::<IdRanges>("\"1-2-3\"").is_err());
    }

    /// A linear congruential generator (Knuth's MMIX constants): the same cases on every run.
    struct Lcg(u64);

    impl Lcg {
        fn below(&mut self, bound: u32) -> u32 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 33) as u32 % bound
        }
    }

    #[test]
    fn agrees_with_a_naive_set() {
        const TOP: u32 = 64;
        let mut random = Lcg(1);
        for _ in 0..2000 {
            // Half of the lists are at the upper end of the ids, where arithmetic could overflow.
            let base = if random.below(2) == 0 { 0 } else { u32::MAX - (TOP - 1) };
            let mut naive = [false; TOP as usize];
            let mut elements = Vec::new();
            for _ in 0..random.below(8) {
                let first = random.below(TOP);
                let last = first + random.below(TOP - first).min(random.below(12));
                naive[first as usize..=last as usize].fill(true);
                elements.push(match first == last && random.below(2) == 0 {
                    true => format!("{}", base + first),
                    false => format!("{}-{}", base + first, base + last),
                });
            }
            let list = elements.join(",");
            let ranges = IdRanges::parse(&list).unwrap();
            for (offset, expect) in (0..TOP).zip(naive) {
                assert_eq!(ranges.contains(base + offset), expect, "{list} {}", base + offset);
            }
            assert!(!ranges.contains(base ^ 0x8000_0000));
            let printed = ranges.to_string();
            assert_eq!(IdRanges::parse(&printed), Ok(ranges.clone()), "{list} -> {printed}");
            let bounds: Vec<_> = ranges.intervals().collect();
            assert!(
                bounds.windows(2).all(|w| u64::from(*w[0].end()) + 1 < u64::from(*w[1].start())),
                "{printed}"
            );
        }
    }

    #[test]
    fn a_printed_list_parses_to_the_same_set() {
        const ALPHABET: &[u8] = b"0123456789,,--+ x";
        let (mut random, mut read) = (Lcg(2), 0);
        for _ in 0..20_000 {
            let list: String = (0..random.below(10))
                .map(|_| char::from(ALPHABET[random.below(ALPHABET.len() as u32) as usize]))
                .collect();
            if let Ok(ranges) = IdRanges::parse(&list) {
                assert_eq!(IdRanges::parse(&ranges.to_string()), Ok(ranges), "{list}");
                read += 1;
            }
        }
        assert!(read > 1000, "too few of the strings are lists: {read}");
    }
}
