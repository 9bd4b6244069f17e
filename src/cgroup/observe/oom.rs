//! OOM kills: how many processes of a group the kernel's OOM killer killed, and which cgroup ran out of memory.
//!
//! Both come from counters, never from a signal or an exit code: `kill -9` also gives 137. The kernel counts a victim
//! before it sends SIGKILL, so the count is right once the victim has been waited for.
//!
//! v2 counts for each cgroup how often its own limit made the kernel look for a victim (`memory.events.local`, Linux
//! 5.3). The cgroups whose counter has grown ran out of memory. v1 counts victims only. There the module rules out the
//! cgroups that cannot have run out (`v1/oom`). If more than one remains, the result is [`OomLimit::Unknown`].
//!
//! The counters of the cgroups above are older than the task. Their values are therefore read when the group is
//! created: one file for each level. Reference: `Documentation/admin-guide/cgroup-v2.rst`, `cgroup-v1/memory.rst`.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cgroup::fs::field;
use crate::cgroup::group::Group;
use crate::cgroup::group::baseline::{Counters, above, shortages};
use crate::cgroup::v1::oom::{failures, is_root, is_used_up, stalls};

/// The OOM kills in one task, returned by [`Task::oom`](crate::Task::oom). `Display` prints
/// `OOM-killed: 2 processes exceeded the task's memory limit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Oom {
    /// Number of processes of the task that were OOM-killed, at least 1. v2: `oom_kill` in `memory.events`, including
    /// cgroups that the task created. v1: `oom_kill` in `memory.oom_control` (Linux 4.13).
    pub kills: u64,
    /// How often the whole task was OOM-killed at once, because its cgroup has `memory.oom.group`. v2: `oom_group_kill`
    /// (Linux 5.17). `None` if the kernel does not count it.
    pub group_kills: Option<u64>,
    /// The limit that was exceeded.
    pub limit: OomLimit,
}

/// The memory limit that caused an OOM kill. v2: Linux 5.3 (`memory.events.local`). On v1 it is often
/// [`Unknown`](Self::Unknown), because v1 counts only the victims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OomLimit {
    /// The limit of the task's cgroup, or of a nested cgroup that the task created. On v2 this is the result even if a
    /// cgroup above ran out of memory too.
    Own,
    /// The limit of a cgroup above the task's, given by its directory. Other tasks may have used the memory.
    Ancestor(PathBuf),
    /// No limit: the host ran out of memory, or the NUMA nodes that the task may allocate from (`cpuset.mems`).
    Host,
    /// Unknown: several cgroups ran out of memory, or a cgroup that this process cannot see may have.
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

/// Formats as `OOM-killed: 2 processes exceeded the task's memory limit`.
impl fmt::Display for Oom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.kills == 1 { "process" } else { "processes" };
        write!(f, "OOM-killed: {} {noun}", self.kills)?;
        match &self.limit {
            limit @ (OomLimit::Own | OomLimit::Ancestor(_)) => write!(f, " exceeded {limit}"),
            OomLimit::Host => f.write_str(", the host ran out of memory"),
            OomLimit::Unknown => f.write_str(" exceeded an unknown memory limit"),
        }
    }
}

impl Group {
    /// Number of OOM kills in the group, by any limit.
    ///
    /// v2: `memory.events`, including nested cgroups. v1: `memory.oom_control` (Linux 4.13), without nested cgroups. 0
    /// if the memory controller is not in use. After [`remove`](Self::remove) it returns the last value that was read.
    pub fn oom_kills(&self) -> u64 {
        let text = self.counters().and_then(|counters| counters.read());
        let [before, ..] = self.before().own;
        self.tally().update(text.and_then(|text| field(&text, "oom_kill")?.checked_sub(before)))
    }

    /// The OOM kills in the group so far, and the limit that was exceeded. `None` if no process was OOM-killed, or if
    /// kills are not counted.
    ///
    /// Kills are counted if the task has a memory limit or [`Limits::accounting`](crate::cgroup::Limits::accounting).
    /// Without these, v1 never counts them, and v2 counts them only while another task in the same slice uses the
    /// memory controller.
    ///
    /// The counts are final once the group is [empty](Self::wait_empty), and are lost when its cgroups are removed.
    pub fn oom(&self) -> Option<Oom> {
        let counters = self.counters()?;
        let text = counters.read()?;
        let since = |name: &str, before: u64| field(&text, name).map(|now| now.saturating_sub(before));
        let [kills, shortages, group_kills] = self.before().own;
        let kills = self.tally().update(since("oom_kill", kills));
        let (leaf, shortages) = match &counters {
            Counters::V1(leaf) => (leaf, None),
            Counters::V2(leaf) => (leaf, Some(since("oom", shortages).unwrap_or(0))),
        };
        (kills > 0).then(|| Oom {
            kills,
            group_kills: since("oom_group_kill", group_kills),
            limit: verdict(self.suspects(leaf.path(), shortages)),
        })
    }

    /// Every limit that may have been exceeded, with the evidence. `shortages_of_leaf` is the v2 count for the leaf and
    /// the cgroups below it.
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
                // v1. A count of 0 rules nothing out: Linux 6.18 no longer counts failures.
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

/// Whether a counter shows that its cgroup ran out of memory.
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

/// The limit that was exceeded, if only one is possible.
fn verdict(suspects: Vec<(OomLimit, Said)>) -> OomLimit {
    // The task's own limit was exceeded, so the kernel has chosen a victim in the task for it. At least that kill has
    // this cause.
    if suspects.contains(&(OomLimit::Own, Said::Yes)) {
        return OomLimit::Own;
    }
    let certain = suspects.iter().any(|(_, said)| *said == Said::Yes);
    let wanted = if certain { Said::Yes } else { Said::Perhaps };
    let mut left = suspects.into_iter().filter(|(_, said)| *said == wanted).map(|(limit, _)| limit);
    match (left.next(), left.next()) {
        (Some(limit), None) => limit,
        // Only on v1, where every suspect may be ruled out: no memory limit can have caused the kill.
        (None, _) => OomLimit::Host,
        (Some(_), Some(_)) => OomLimit::Unknown,
    }
}

/// Whether `dir` is the root of the v2 hierarchy itself, not the root of a cgroup namespace or of a mounted subtree.
fn is_root_v2(dir: &Path) -> bool {
    dir.join("cgroup.procs").exists() && !dir.join("cgroup.events").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oom_kill_is_ascribed_to_a_limit_only_if_one_is_possible() {
        use Said::{No, Perhaps, Yes};
        let above = |name: &str| OomLimit::Ancestor(name.into());
        // The group, two cgroups above it, a cgroup that cannot be seen, the host.
        for (said, expected) in [
            ([Yes, No, No, No, Perhaps], OomLimit::Own),
            ([Yes, Yes, No, No, Perhaps], OomLimit::Own),
            ([Yes, No, No, Perhaps, Perhaps], OomLimit::Own),
            ([No, Yes, No, No, Perhaps], above("/a")),
            ([No, No, Yes, Perhaps, Perhaps], above("/b")),
            ([No, Yes, Yes, No, Perhaps], OomLimit::Unknown),
            ([No, No, No, No, Perhaps], OomLimit::Host),
            ([No, No, No, Perhaps, Perhaps], OomLimit::Unknown),
            // A group that was reopened without a baseline.
            ([No, Perhaps, No, No, Perhaps], OomLimit::Unknown),
            // Cgroup v1.
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
            (1, OomLimit::Unknown, "OOM-killed: 1 process exceeded an unknown memory limit"),
        ] {
            assert_eq!(Oom { kills, group_kills: None, limit }.to_string(), expected);
        }
    }
}
