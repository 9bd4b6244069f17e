//! The memory counters of a group's cgroups, and their values from before the task.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::cgroup::fs::{Dir, field};
use crate::cgroup::v1::oom::{failures, stalls};
use crate::sys::fs::read_file;

/// The highest OOM kill count read so far. It stays when the cgroup is removed, and with it the kernel's counter.
#[derive(Clone, Debug, Default)]
pub(in crate::cgroup) struct Tally(Arc<AtomicU64>);

impl Tally {
    pub fn of(kills: u64) -> Tally {
        Tally(Arc::new(AtomicU64::new(kills)))
    }

    /// Records a count that was read now, and returns the highest one read so far.
    pub fn update(&self, kills: Option<u64>) -> u64 {
        let kills = kills.unwrap_or(0);
        self.0.fetch_max(kills, Ordering::SeqCst).max(kills)
    }
}

/// The cgroup in which a group's memory is accounted.
pub(in crate::cgroup) enum Counters<'a> {
    V1(Dir<'a>),
    V2(Dir<'a>),
}

impl Counters<'_> {
    /// Reads the file that has the number of OOM kills: `memory.oom_control` (v1) or `memory.events` (v2).
    pub fn read(&self) -> Option<String> {
        match self {
            Counters::V1(leaf) => leaf.read("memory.oom_control"),
            Counters::V2(leaf) => leaf.read("memory.events"),
        }
        .ok()
    }
}

/// The cgroup in which the memory of a process is accounted that has joined a task: the task's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cgroup) enum Joined {
    V1(PathBuf),
    V2(PathBuf),
}

impl Joined {
    pub fn counters(&self) -> Counters<'_> {
        match self {
            Joined::V1(path) => Counters::V1(Dir::new(path, None)),
            Joined::V2(path) => Counters::V2(Dir::new(path, None)),
        }
    }
}

/// Values of the memory counters from before the task was started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cgroup) struct Baseline {
    /// One counter for each cgroup above the group's, the nearest first.
    above: Vec<(PathBuf, u64)>,
    /// Number of direct reclaims on the host; v1 only.
    pub stalls: Option<u64>,
    /// `oom_kill`, `oom` and `oom_group_kill` of the group's own cgroup, if it is older than the group.
    #[serde(default)]
    pub own: [u64; 3],
}

impl Baseline {
    /// Reads the counters. They are empty if the task's memory is not accounted.
    pub fn take(counters: Option<&Counters<'_>>, joined: bool) -> Baseline {
        let (above, stalls) = match counters {
            Some(Counters::V1(leaf)) => (above(leaf.path(), failures), stalls()),
            Some(Counters::V2(leaf)) => (above(leaf.path(), shortages), None),
            None => return Baseline::default(),
        };
        let text = counters.filter(|_| joined).and_then(Counters::read).unwrap_or_default();
        let own = ["oom_kill", "oom", "oom_group_kill"].map(|name| field(&text, name).unwrap_or(0));
        Baseline { above, stalls, own }
    }

    /// The count from before the task for the cgroup at `path`; `None` if it was not read.
    pub fn of(&self, path: &Path) -> Option<u64> {
        self.above.iter().find(|(known, _)| known == path).map(|(_, count)| *count)
    }
}

/// Reads `counter` for each cgroup above `leaf`, upwards until one has no such counter.
pub(in crate::cgroup) fn above(leaf: &Path, counter: fn(&Path) -> Option<u64>) -> Vec<(PathBuf, u64)> {
    leaf.ancestors().skip(1).map_while(|dir| Some((dir.to_owned(), counter(dir)?))).collect()
}

/// How often a v2 cgroup reached its own limit and the kernel looked for a process to kill (`oom` in
/// `memory.events.local`).
pub(in crate::cgroup) fn shortages(dir: &Path) -> Option<u64> {
    field(&read_file(dir.join("memory.events.local")).ok()?, "oom")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_never_decreases() {
        let tally = Tally::default();
        assert_eq!(tally.update(Some(3)), 3);
        assert_eq!(tally.clone().update(None), 3);
        assert_eq!(tally.update(Some(2)), 3);
        assert_eq!(Tally::of(4).update(None), 4);
    }
}
