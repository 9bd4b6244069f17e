//! Counters of v1's memory controller, and of the host, that show whose memory ran out.
//!
//! v1 counts OOM kills, but not for which limit. A cgroup that has never used as much as its limit allows is ruled out
//! (`memory.max_usage_in_bytes`), so is one above whose limit has refused nothing meanwhile (`memory.failcnt`, which
//! Linux 6.18 does not count any more), and so is the host if no process had to reclaim memory itself.

use std::fs;
use std::path::Path;

/// How often a cgroup's own limits refused a charge. Most often something could be reclaimed then.
pub(in crate::cgroup) fn failures(dir: &Path) -> Option<u64> {
    let count = |file| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
    // The second file does not exist without swap accounting. Its limit refuses first where it is not higher.
    Some(count("memory.failcnt")?.saturating_add(count("memory.memsw.failcnt").unwrap_or(0)))
}

/// Whether a cgroup ever came to its limit, as near as the largest allocation that kills: 8 pages.
pub(in crate::cgroup) fn is_used_up(dir: &Path) -> bool {
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

/// Whether this is the root of a hierarchy.
pub(in crate::cgroup) fn is_root(dir: &Path) -> bool {
    dir.join("release_agent").exists()
}

/// Number of direct reclaims on the host (`allocstall_*` in `/proc/vmstat`). It grows before any host-wide OOM kill.
pub(in crate::cgroup) fn stalls() -> Option<u64> {
    stalls_in(&fs::read_to_string("/proc/vmstat").ok()?)
}

fn stalls_in(vmstat: &str) -> Option<u64> {
    let zones = vmstat.lines().filter_map(|line| line.strip_prefix("allocstall_")?.split_once(' '));
    zones.filter_map(|(_, count)| count.parse::<u64>().ok()).reduce(u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_of_all_zones_are_added() {
        let vmstat =
            "nr_free_pages 9\nallocstall_dma 1\nallocstall_normal 20\nallocstall_movable 300\noom_kill 7\n";
        assert_eq!(stalls_in(vmstat), Some(321));
        assert_eq!(stalls_in("oom_kill 7\n"), None);
        assert!(stalls().is_some(), "this kernel has the counters");
    }
}
