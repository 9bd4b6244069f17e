//! OOM kills: how many processes of a group the kernel's OOM killer killed, and whose memory ran out.
//!
//! Both come from counters, never from a signal or an exit code: 137 is also the status after `kill -9`. The kernel
//! counts a victim before it sends the SIGKILL, so the count is right once the victim was waited for.
//!
//! v2 counts for each cgroup how often its own limit made the kernel look for a victim (`memory.events.local`, Linux
//! 5.3). The cgroups whose counter has grown ran out. v1 only counts victims. There the cgroups that cannot have run
//! out are ruled out (`v1/oom`); if more than one remains, the answer is [`OomLimit::Unknown`].
//!
//! The counters above the group are older than the task, so they are read when the group is made: one file for each
//! level. Reference: `Documentation/admin-guide/cgroup-v2.rst`, `cgroup-v1/memory.rst`.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cgroup::fs::field;
use crate::cgroup::group::Group;
use crate::cgroup::group::baseline::{Counters, above, shortages};
use crate::cgroup::v1::oom::{failures, is_root, is_used_up, stalls};

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
    /// Unknown: several ran out, or one that cannot be seen from here may have.
    Unknown,
}

impl fmt::Display for OomLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OomLimit::Own => f.write_str("the task's memory limit"),
            OomLimit::Ancestor(path) => write!(f, "the memory limit of {}", path.display()),
            OomLimit::Host => f.write_str("the memory of the host"),
            OomLimit::Unknown => f.write_str("an unknown memory limit"),
        }
    }
}

/// `OOM-killed: 2 processes exceeded the task's memory limit`.
impl fmt::Display for Oom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.kills == 1 { "process" } else { "processes" };
        write!(f, "OOM-killed: {} {noun}", self.kills)?;
        match &self.limit {
            limit @ (OomLimit::Own | OomLimit::Ancestor(_)) => write!(f, " exceeded {limit}"),
            OomLimit::Host => f.write_str(", the host ran out of memory"),
            OomLimit::Unknown => f.write_str(", which limit is unknown"),
        }
    }
}

impl Group {
    /// Number of OOM kills in the group, by any limit.
    ///
    /// v2 `memory.events` (nested cgroups counted), v1 `memory.oom_control` (Linux 4.13; not counted). 0 when
    /// the memory controller is not in use. After [`remove`](Self::remove) it is what was last read.
    pub fn oom_kills(&self) -> u64 {
        let text = self.counters().and_then(|counters| counters.read());
        self.tally().update(text.and_then(|text| field(&text, "oom_kill")))
    }

    /// What the OOM killer did to the group so far, and whose memory ran out. `None` if it killed no process, or if
    /// kills are not counted: without a memory limit or [`Limits::accounting`](crate::cgroup::Limits::accounting) v1
    /// never counts them, and v2 only while another task in the same slice has the memory controller.
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

    /// Every cgroup whose memory may have run out, and the host. `shortages_of_leaf` is v2's own count of that for the
    /// leaf and below.
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
        let root = if v2 { top.parent().is_some_and(is_root_v2) } else { is_root(top) };
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

/// Whose memory ran out, if only one is left.
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
        // On v1, where only possibilities are known, no limit is left.
        (None, _) => OomLimit::Host,
        (Some(_), Some(_)) => OomLimit::Unknown,
    }
}

/// Whether this is the root of the v2 tree itself, and not that of a cgroup namespace or a mount of a part.
fn is_root_v2(dir: &Path) -> bool {
    dir.join("cgroup.procs").exists() && !dir.join("cgroup.events").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_limit_is_left_or_it_is_unknown() {
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
    fn the_serialised_form_is_stable() {
        let oom = Oom { kills: 2, group_kills: None, limit: OomLimit::Ancestor("/g".into()) };
        let json = r#"{"kills":2,"group_kills":null,"limit":{"ancestor":"/g"}}"#;
        assert_eq!(serde_json::to_string(&oom).unwrap(), json);
        assert_eq!(serde_json::from_str::<Oom>(json).unwrap(), oom);
    }

    #[test]
    fn messages_say_oom_killed_and_whose_memory_ran_out() {
        for (kills, limit, expected) in [
            (2, OomLimit::Own, "OOM-killed: 2 processes exceeded the task's memory limit"),
            (1, OomLimit::Own, "OOM-killed: 1 process exceeded the task's memory limit"),
            (1, OomLimit::Ancestor("/g".into()), "OOM-killed: 1 process exceeded the memory limit of /g"),
            (3, OomLimit::Host, "OOM-killed: 3 processes, the host ran out of memory"),
            (1, OomLimit::Unknown, "OOM-killed: 1 process, which limit is unknown"),
        ] {
            assert_eq!(Oom { kills, group_kills: None, limit }.to_string(), expected);
        }
    }
}
