//! The division of CPUs as set arithmetic.

use serde::{Deserialize, Serialize};

use super::super::set::CpuSet;

/// The CPUs of a parent cgroup, divided into those that its tasks share and those that are reserved.
///
/// This is arithmetic on sets: nothing is written, and no tasks are named. The caller checks first whether a
/// reservation is possible ([`CpuSet::is_subset`] of [`share`](Self::share)).
///
/// ```
/// # use cofferdam::cgroup::{CpuSet, Partition};
/// let mut partition = Partition::new(CpuSet::parse("0-7").unwrap());
/// partition.reserve(&CpuSet::parse("2-3").unwrap());
/// assert_eq!((partition.share.to_string(), partition.reserve.to_string()), ("0-1,4-7".into(), "2-3".into()));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// All CPUs to divide.
    pub usable: CpuSet,
    /// The shared set: the CPUs for tasks without a reservation.
    pub share: CpuSet,
    /// The reserved CPUs.
    pub reserve: CpuSet,
}

impl Partition {
    /// A partition without reservations: all CPUs are shared.
    pub fn new(usable: CpuSet) -> Partition {
        Partition { share: usable.clone(), usable, reserve: CpuSet::default() }
    }

    /// Moves CPUs from the shared set to the reserved ones. CPUs that are not usable are not reserved.
    pub fn reserve(&mut self, cores: &CpuSet) {
        self.share = self.share.difference(cores);
        self.reserve = self.reserve.union(&self.usable.intersection(cores));
    }

    /// Moves CPUs back to the shared set. CPUs that are not usable are not added to it.
    pub fn release(&mut self, cores: &CpuSet) {
        self.reserve = self.reserve.difference(cores);
        self.share = self.share.union(&self.usable.intersection(cores));
    }

    /// Adds a reservation that was made earlier, by a task that still lives. Same as [`reserve`](Self::reserve).
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
    fn a_partition_reserves_releases_and_restores_cpus() {
        let three = ["reserve 10,15,19", "reserve 12,13", "reserve 11,18"];
        let and = |more: &[&'static str]| [&three, more].concat();
        for (ops, expected) in [
            (vec!["restore 11,13", "restore 15-17", "restore 10,19"], ("12,14,18", "10-11,13,15-17,19")),
            (three[..2].to_vec(), ("11,14,16-18", "10,12-13,15,19")),
            (three.to_vec(), ("14,16-17", "10-13,15,18-19")),
            (and(&["release 12,13"]), ("12-14,16-17", "10-11,15,18-19")),
            (and(&["release 12,13", "release 10,15,19", "release 11,18"]), ("10-19", " ")),
            // CPUs that are not usable are neither reserved nor shared.
            (vec!["reserve 19-25"], ("10-18", "19")),
            (vec!["reserve 19-25", "release 19-25"], ("10-19", " ")),
            (vec!["reserve 0-99"], (" ", "1-19")),
        ] {
            check("1-19", "10-19", &ops, expected);
        }
        assert_eq!(Partition::new(set("0-3")).share, set("0-3"));
    }
}
