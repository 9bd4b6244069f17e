//! Counters of the v1 memory controller and of the host that show whose memory ran out.
//!
//! v1 counts OOM kills, but does not tell which limit caused them. The crate rules out:
//!
//! - a cgroup that has never used as much memory as its limit allows (`memory.max_usage_in_bytes`),
//! - a cgroup above the task whose limit has refused nothing meanwhile (`memory.failcnt`, no longer counted since
//!   Linux 6.18),
//! - the host, if no direct reclaim has happened meanwhile.

use std::path::Path;

use crate::sys::fs::read_file;

/// How often the cgroup's own limits refused a charge. In most cases the kernel could then reclaim memory.
pub(in crate::cgroup) fn failures(dir: &Path) -> Option<u64> {
    let count = |file| read_file(dir.join(file)).ok()?.trim().parse::<u64>().ok();
    // `memory.memsw.failcnt` does not exist without swap accounting. If the memsw limit is not higher than the memory
    // limit, it is the one that refuses.
    Some(count("memory.failcnt")?.saturating_add(count("memory.memsw.failcnt").unwrap_or(0)))
}

/// Whether the cgroup's peak usage reached its limit. The margin is the largest allocation that invokes the OOM killer:
/// 8 pages.
pub(in crate::cgroup) fn is_used_up(dir: &Path) -> bool {
    const NEAR: u64 = 8 << 12;
    let number = |file: &str| read_file(dir.join(file)).ok()?.trim().parse::<u64>().ok();
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

/// Whether `dir` is the root of a v1 hierarchy.
pub(in crate::cgroup) fn is_root(dir: &Path) -> bool {
    dir.join("release_agent").exists()
}

/// Number of direct reclaims on the host (`allocstall_*` in `/proc/vmstat`). It grows before any host-wide OOM kill.
pub(in crate::cgroup) fn stalls() -> Option<u64> {
    stalls_in(&read_file("/proc/vmstat").ok()?)
}

fn stalls_in(vmstat: &str) -> Option<u64> {
    let zones = vmstat.lines().filter_map(|line| line.strip_prefix("allocstall_")?.split_once(' '));
    zones.filter_map(|(_, count)| count.parse::<u64>().ok()).reduce(u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_reclaims_of_all_zones_are_added() {
        let vmstat =
            "nr_free_pages 9\nallocstall_dma 1\nallocstall_normal 20\nallocstall_movable 300\noom_kill 7\n";
        assert_eq!(stalls_in(vmstat), Some(321));
        assert_eq!(stalls_in("oom_kill 7\n"), None);
        assert!(stalls().is_some(), "this kernel has the counters");
    }
}
