//! Who has which processors, as arithmetic.

use serde::{Deserialize, Serialize};

use super::super::set::CpuSet;

/// The processors of a parent cgroup, divided in those that all its tasks share and those that are reserved.
///
/// Plain sets, and no names: whether a reservation may be made is for the caller to ask first
/// ([`CpuSet::is_subset`] of [`share`](Self::share)). Nothing is written.
///
/// ```
/// # use cofferdam::cgroup::{CpuSet, Partition};
/// let mut partition = Partition::new(CpuSet::parse("0-7").unwrap());
/// partition.reserve(&CpuSet::parse("2-3").unwrap());
/// assert_eq!((partition.share.to_string(), partition.reserve.to_string()), ("0-1,4-7".into(), "2-3".into()));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// All that there are to divide.
    pub usable: CpuSet,
    /// Those that tasks without reserved processors run on.
    pub share: CpuSet,
    /// Those that are reserved.
    pub reserve: CpuSet,
}

impl Partition {
    /// Nothing is reserved yet.
    pub fn new(usable: CpuSet) -> Partition {
        Partition { share: usable.clone(), usable, reserve: CpuSet::default() }
    }

    /// Takes processors out of the share. Those that are not usable are not reserved either.
    pub fn reserve(&mut self, cores: &CpuSet) {
        self.share = self.share.difference(cores);
        self.reserve = self.reserve.union(&self.usable.intersection(cores));
    }

    /// Gives processors back to the share. Those that are not usable do not come into it.
    pub fn release(&mut self, cores: &CpuSet) {
        self.reserve = self.reserve.difference(cores);
        self.share = self.share.union(&self.usable.intersection(cores));
    }

    /// Takes in a reservation that was made before, by a task that still lives.
    pub fn restore(&mut self, cores: &CpuSet) {
        self.reserve(cores);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(list: &str) -> CpuSet {
        CpuSet::parse_lenient(list)
    }

    fn check(usable: &str, share: &str, ops: &[&str], expected: (&str, &str)) {
        let mut at = Partition { usable: set(usable), share: set(share), reserve: CpuSet::default() };
        for op in ops {
            match op.split_once(' ').unwrap() {
                ("reserve", cores) => at.reserve(&set(cores)),
                ("release", cores) => at.release(&set(cores)),
                ("restore", cores) => at.restore(&set(cores)),
                _ => unreachable!(),
            }
            assert!(at.share.intersection(&at.reserve).is_empty(), "{at:?}");
            assert!(at.reserve.is_subset(&at.usable), "{at:?}");
        }
        assert_eq!((&*at.share.to_string(), &*at.reserve.to_string()), expected, "{ops:?}");
    }

    #[test]
    fn reserving_releasing_and_restoring() {
        let three = ["reserve 10,15,19", "reserve 12,13", "reserve 11,18"];
        let and = |more: &[&'static str]| [&three, more].concat();
        for (ops, expected) in [
            (vec!["restore 11,13", "restore 15-17", "restore 10,19"], ("12,14,18", "10-11,13,15-17,19")),
            (three[..2].to_vec(), ("11,14,16-18", "10,12-13,15,19")),
            (three.to_vec(), ("14,16-17", "10-13,15,18-19")),
            (and(&["release 12,13"]), ("12-14,16-17", "10-11,15,18-19")),
            (and(&["release 12,13", "release 10,15,19", "release 11,18"]), ("10-19", " ")),
            // What is not usable goes nowhere.
            (vec!["reserve 19-25"], ("10-18", "19")),
            (vec!["reserve 19-25", "release 19-25"], ("10-19", " ")),
            (vec!["reserve 0-99"], (" ", "1-19")),
        ] {
            check("1-19", "10-19", &ops, expected);
        }
        assert_eq!(Partition::new(set("0-3")).share, set("0-3"));
    }
}
