//! How many processes of a group the kernel killed for want of memory, and whose memory it was that ran out.
//!
//! Both come from counters, never from a signal or an exit code: 137 is also what `kill -9` leaves. The kernel
//! counts a victim before it sends the SIGKILL, so whoever has waited for the victim finds it counted.
//!
//! Version 2 counts for each cgroup how often its own limit made the kernel look for a victim
//! (`memory.events.local`, Linux 5.3), so the question is only which of these counters have grown.
//! Version 1 counts victims alone. There what cannot have been is ruled out: a cgroup that has never used as much as
//! its limit allows (`memory.max_usage_in_bytes`), or one above whose limit has refused nothing meanwhile
//! (`memory.failcnt`, which Linux 6.18 does not count any more), and the host if nobody had to find memory himself
//! (`allocstall` in `/proc/vmstat`). If more than one remains, nothing is said.
//!
//! The counters above the group are older than the task, so they are read when it is made: a file for each
//! level. Reference: `Documentation/admin-guide/cgroup-v2.rst`, `cgroup-v1/memory.rst`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::kill::field;
use super::place::Place;
use super::run::Group;

/// What the kernel's out-of-memory killer did to a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Oom {
    /// How many processes of the task it killed, at least 1. v2 `memory.events` `oom_kill`, those in cgroups
    /// that the task made included; v1 `memory.oom_control` `oom_kill` (Linux 4.13).
    pub kills: u64,
    /// How many times it killed the task as a whole, because `memory.oom.group` is set in its cgroup. v2
    /// `oom_group_kill` (Linux 5.17); `None` where that is not counted.
    pub group_kills: Option<u64>,
    /// Whose memory ran out.
    pub limit: OomLimit,
}

/// Whose memory ran out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OomLimit {
    /// The task's: its own limit, or one that it set itself below that. On v2 it is said also if a cgroup above ran
    /// out besides.
    Own,
    /// That of this cgroup above the task's, given by its directory: other tasks may have used it up.
    Ancestor(PathBuf),
    /// The host's, or the part of it that the task may allocate from (`cpuset.mems`).
    Host,
    /// It cannot be told: several ran out, or one may have that cannot be seen from here.
    Unknown,
}

impl fmt::Display for OomLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OomLimit::Own => f.write_str("its own limit"),
            OomLimit::Ancestor(path) => write!(f, "the limit of {}", path.display()),
            OomLimit::Host => f.write_str("the memory of the host"),
            OomLimit::Unknown => f.write_str("a limit that cannot be told"),
        }
    }
}

/// `2 killed for want of memory, by its own limit`.
impl fmt::Display for Oom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} killed for want of memory, by {}", self.kills, self.limit)
    }
}

/// The most victims that were ever read from a group's counter, which is gone with the cgroup.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally(Arc<AtomicU64>);

impl Tally {
    pub fn of(kills: u64) -> Tally {
        Tally(Arc::new(AtomicU64::new(kills)))
    }

    /// Adds what was read now, and says what is known.
    pub fn update(&self, kills: Option<u64>) -> u64 {
        let kills = kills.unwrap_or(0);
        self.0.fetch_max(kills, Ordering::SeqCst).max(kills)
    }
}

/// What was counted before the task was there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Baseline {
    /// Of the cgroups above the group's, the nearest first.
    above: Vec<(PathBuf, u64)>,
    /// Of the host; v1 only.
    stalls: Option<u64>,
}

impl Baseline {
    /// Reads what is there, which is nothing where the task's memory is not accounted.
    pub fn take(group: &Group) -> Baseline {
        match group.counters() {
            Some(Counters::V1(leaf)) => Baseline { above: above(leaf.path(), failures), stalls: stalls() },
            Some(Counters::V2(leaf)) => Baseline { above: above(leaf.path(), shortages), stalls: None },
            None => Baseline::default(),
        }
    }

    fn of(&self, path: &Path) -> Option<u64> {
        self.above.iter().find(|(known, _)| known == path).map(|(_, count)| *count)
    }
}

/// Where a group's memory is accounted.
pub(super) enum Counters<'a> {
    V1(Place<'a>),
    V2(Place<'a>),
}

impl Counters<'_> {
    /// The text of the file with the number of victims.
    fn read(&self) -> Option<String> {
        match self {
            Counters::V1(leaf) => leaf.read("memory.oom_control"),
            Counters::V2(leaf) => leaf.read("memory.events"),
        }
        .ok()
    }
}

impl Group {
    /// How many processes of the group were killed for want of memory, whoever's limit it was.
    ///
    /// v2 `memory.events` (nested cgroups counted), v1 `memory.oom_control` (Linux 4.13; not counted). 0 when
    /// the memory controller is not in use. After [`remove`](Self::remove) it is what was last read.
    pub fn oom_kills(&self) -> u64 {
        let text = self.counters().and_then(|counters| counters.read());
        self.tally().update(text.and_then(|text| field(&text, "oom_kill")))
    }

    /// What the out-of-memory killer did to the group so far, and whose memory it was that ran out. `None` if it
    /// killed nobody, or if nobody counts: without a memory limit or
    /// [`Limits::accounting`](super::Limits::accounting) v1 never does, and v2 only while another task in the same slice
    /// has the memory controller.
    ///
    /// What is counted is final once the group is [empty](Self::wait_empty), and gone with the cgroups.
    pub fn oom(&self) -> Option<Oom> {
        let counters = self.counters()?;
        let text = counters.read()?;
        let kills = self.tally().update(field(&text, "oom_kill"));
        let (leaf, shortages) = match &counters {
            Counters::V1(leaf) => (leaf, None),
            Counters::V2(leaf) => (leaf, Some(field(&text, "oom").unwrap_or(0))),
        };
        (kills > 0).then(|| Oom {
            kills,
            group_kills: field(&text, "oom_group_kill"),
            limit: verdict(self.suspects(leaf.path(), shortages)),
        })
    }

    pub(super) fn counters(&self) -> Option<Counters<'_>> {
        self.v1("memory").map(Counters::V1).or_else(|| self.tree().map(Counters::V2))
    }

    /// Everybody whose memory may have run out; `shortages` is v2's own count of that for the leaf and below.
    fn suspects(&self, leaf: &Path, shortages_of_leaf: Option<u64>) -> Vec<(OomLimit, Said)> {
        let before = self.before();
        let v2 = shortages_of_leaf.is_some();
        let own = match shortages_of_leaf {
            Some(count) => Said::when(count > 0, Said::Yes),
            None => Said::when(is_used_up(leaf), Said::Perhaps),
        };
        let mut found = vec![(OomLimit::Own, own)];
        let mut top = leaf;
        for (path, now) in above(leaf, if v2 { shortages } else { failures }) {
            let then = before.of(&path);
            let said = match then {
                Some(then) if v2 => Said::when(now != then, Said::Yes),
                None if v2 => Said::when(now > 0, Said::Perhaps),
                _ => Said::when((then != Some(now) || now == 0) && is_used_up(&path), Said::Perhaps),
            };
            top = top.parent().unwrap_or(top);
            found.push((OomLimit::Ancestor(path), said));
        }
        let root = if v2 { top.parent().is_some_and(is_root_v2) } else { is_root_v1(top) };
        found.push((OomLimit::Unknown, Said::when(!root, Said::Perhaps)));
        let quiet = before.stalls.is_some() && before.stalls == stalls();
        found.push((OomLimit::Host, Said::when(v2 || !quiet, Said::Perhaps)));
        found
    }
}

/// What a counter says of whether the memory of its cgroup ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    No,
    Perhaps,
    Yes,
}

impl Said {
    fn when(condition: bool, said: Said) -> Said {
        if condition { said } else { Said::No }
    }
}

/// Who it was, or that it cannot be told.
fn verdict(suspects: Vec<(OomLimit, Said)>) -> OomLimit {
    // A cgroup that has run out has had one of its own processes killed.
    if suspects.contains(&(OomLimit::Own, Said::Yes)) {
        return OomLimit::Own;
    }
    let certain = suspects.iter().any(|(_, said)| *said == Said::Yes);
    let wanted = if certain { Said::Yes } else { Said::Perhaps };
    let mut left = suspects.into_iter().filter(|(_, said)| *said == wanted).map(|(limit, _)| limit);
    match (left.next(), left.next()) {
        (Some(limit), None) => limit,
        // On v1, where only possibilities are known, nobody is left: it was nobody's limit.
        (None, _) => OomLimit::Host,
        (Some(_), Some(_)) => OomLimit::Unknown,
    }
}

/// A counter of every cgroup above `leaf`, as far up as there is one.
fn above(leaf: &Path, counter: fn(&Path) -> Option<u64>) -> Vec<(PathBuf, u64)> {
    leaf.ancestors().skip(1).map_while(|dir| Some((dir.to_owned(), counter(dir)?))).collect()
}

/// How often a v2 cgroup's own limit made the kernel look for a victim.
fn shortages(dir: &Path) -> Option<u64> {
    field(&fs::read_to_string(dir.join("memory.events.local")).ok()?, "oom")
}

/// How often a v1 cgroup's own limits refused a charge. Most often something could be reclaimed then.
fn failures(dir: &Path) -> Option<u64> {
    let count = |file| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
    // The second one is not there without swap accounting. It is the first to refuse where it is not higher.
    Some(count("memory.failcnt")?.saturating_add(count("memory.memsw.failcnt").unwrap_or(0)))
}

/// Whether a v1 cgroup ever came to its limit, as near as the largest allocation that kills: 8 pages.
fn is_used_up(dir: &Path) -> bool {
    const NEAR: u64 = 8 << 12;
    let number = |file: &str| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
    [
        ("memory.max_usage_in_bytes", "memory.limit_in_bytes"),
        ("memory.memsw.max_usage_in_bytes", "memory.memsw.limit_in_bytes"),
    ]
    .into_iter()
    .any(|(used, limit)| match (number(used), number(limit)) {
        (Some(used), Some(limit)) => used.saturating_add(NEAR) >= limit,
        _ => false,
    })
}

/// How often somebody had to find memory of the host himself, which comes before every kill for want of it.
pub(super) fn stalls() -> Option<u64> {
    stalls_in(&fs::read_to_string("/proc/vmstat").ok()?)
}

fn stalls_in(vmstat: &str) -> Option<u64> {
    let zones = vmstat.lines().filter_map(|line| line.strip_prefix("allocstall_")?.split_once(' '));
    zones.filter_map(|(_, count)| count.parse::<u64>().ok()).reduce(u64::saturating_add)
}

/// Whether this is the root of the v2 tree itself, and not that of a cgroup namespace or a mount of a part.
fn is_root_v2(dir: &Path) -> bool {
    dir.join("cgroup.procs").exists() && !dir.join("cgroup.events").exists()
}

fn is_root_v1(dir: &Path) -> bool {
    dir.join("release_agent").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_left_or_it_cannot_be_told() {
        use Said::{No, Perhaps, Yes};
        let above = |name: &str| OomLimit::Ancestor(name.into());
        // The group, two above it, what cannot be seen, the host.
        for (said, expected) in [
            ([Yes, No, No, No, Perhaps], OomLimit::Own),
            ([Yes, Yes, No, No, Perhaps], OomLimit::Own),
            ([Yes, No, No, Perhaps, Perhaps], OomLimit::Own),
            ([No, Yes, No, No, Perhaps], above("/a")),
            ([No, No, Yes, Perhaps, Perhaps], above("/b")),
            ([No, Yes, Yes, No, Perhaps], OomLimit::Unknown),
            ([No, No, No, No, Perhaps], OomLimit::Host),
            ([No, No, No, Perhaps, Perhaps], OomLimit::Unknown),
            // Found again without what was counted before.
            ([No, Perhaps, No, No, Perhaps], OomLimit::Unknown),
            // Version 1.
            ([Perhaps, No, No, No, No], OomLimit::Own),
            ([No, Perhaps, No, No, No], above("/a")),
            ([Perhaps, Perhaps, No, No, No], OomLimit::Unknown),
            ([Perhaps, No, No, No, Perhaps], OomLimit::Unknown),
            ([Perhaps, No, No, Perhaps, No], OomLimit::Unknown),
            ([No, No, No, No, No], OomLimit::Host),
            ([No, No, No, Perhaps, No], OomLimit::Unknown),
        ] {
            let places = [OomLimit::Own, above("/a"), above("/b"), OomLimit::Unknown, OomLimit::Host];
            assert_eq!(verdict(places.into_iter().zip(said).collect()), expected, "{said:?}");
        }
    }

    #[test]
    fn stalls_of_all_zones_are_added() {
        let vmstat =
            "nr_free_pages 9\nallocstall_dma 1\nallocstall_normal 20\nallocstall_movable 300\noom_kill 7\n";
        assert_eq!(stalls_in(vmstat), Some(321));
        assert_eq!(stalls_in("oom_kill 7\n"), None);
        assert!(stalls().is_some(), "this kernel has the counters");
    }

    #[test]
    fn a_tally_never_falls() {
        let tally = Tally::default();
        assert_eq!(tally.update(Some(3)), 3);
        assert_eq!(tally.clone().update(None), 3);
        assert_eq!(tally.update(Some(2)), 3);
        assert_eq!(Tally::of(4).update(None), 4);
    }

    #[test]
    fn the_serialised_form_is_stable() {
        let oom = Oom { kills: 2, group_kills: None, limit: OomLimit::Ancestor("/g".into()) };
        let json = r#"{"kills":2,"group_kills":null,"limit":{"ancestor":"/g"}}"#;
        assert_eq!(serde_json::to_string(&oom).unwrap(), json);
        assert_eq!(serde_json::from_str::<Oom>(json).unwrap(), oom);
        assert_eq!(oom.to_string(), "2 killed for want of memory, by the limit of /g");
    }
}
