//! Comparison of the value that was written to a control file with the value that is read back.
//!
//! The kernel rounds memory down to pages, rewrites CPU lists in its own form, and shows a number for "no limit".

use crate::cgroup::set::CpuSet;

/// Whether the text `found` in `file` has the same meaning as the text that was `written` to it.
pub(super) fn agrees(file: &str, written: &str, found: &str) -> bool {
    let (written, found) = (written.trim(), found.trim());
    match file {
        "cpuset.cpus" | "cpuset.mems" => CpuSet::parse_lenient(written) == CpuSet::parse_lenient(found),
        "io.max" => has_line(found, written),
        _ if file.starts_with("blkio.throttle.") => written.ends_with(" 0") || has_line(found, written),
        "io.weight" | "io.bfq.weight" | "blkio.bfq.weight" => {
            found.lines().next().is_some_and(|line| line.strip_prefix("default ").unwrap_or(line) == written)
        }
        _ => same(written, found),
    }
}

/// Compares single values.
fn same(written: &str, found: &str) -> bool {
    written == found || (is_no_limit(written) && is_no_limit(found))
}

/// Whether a value is "no limit": `max`, -1 or, on v1, a large number that depends on the page size.
pub(in crate::cgroup) fn is_no_limit(text: &str) -> bool {
    text == "max" || text.parse::<u64>().is_ok_and(|n| n >= 1 << 62) || text == "-1"
}

/// Whether `found` has a line for the device of `written`, with all words of `written`. The kernel omits the line of a
/// device without limits, so a missing line agrees with `written` if every word of it is `KEY=max`.
fn has_line(found: &str, written: &str) -> bool {
    let Some((device, rest)) = written.split_once(' ') else { return false };
    let line = found.lines().find_map(|line| line.strip_prefix(device)?.strip_prefix(' '));
    match line {
        Some(line) => rest.split(' ').all(|word| line.split(' ').any(|has| has == word)),
        None => rest.split(' ').all(|word| word.ends_with("=max")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readback_accepts_equal_values_in_the_kernels_spelling() {
        for (file, written, found, expected) in [
            ("memory.max", "1048576", "1048576\n", true),
            ("memory.max", "1048577", "1048576\n", false),
            ("memory.max", "max", "max\n", true),
            ("memory.limit_in_bytes", "-1", "9223372036854771712\n", true),
            ("memory.limit_in_bytes", "4096", "9223372036854771712\n", false),
            ("cpu.cfs_quota_us", "-1", "-1\n", true),
            ("cpu.max", "50000 100000", "50000 100000\n", true),
            ("cpu.max", "50000 100000", "max 100000\n", false),
            ("cpuset.cpus", "0,1,2", "0-2\n", true),
            ("cpuset.cpus", " ", "\n", true),
            ("cpuset.cpus", "0-3", "0-2\n", false),
            ("io.weight", "200", "default 200\n8:0 100\n", true),
            ("io.weight", "200", "default 100\n", false),
            ("blkio.bfq.weight", "181", "181\n", true),
            (
                "io.max",
                "8:0 rbps=5 wbps=max riops=max wiops=max",
                "8:0 rbps=5 wbps=max riops=max wiops=max\n",
                true,
            ),
            (
                "io.max",
                "8:0 rbps=5 wbps=max riops=max wiops=max",
                "8:16 rbps=5 wbps=max riops=max wiops=max\n",
                false,
            ),
            ("io.max", "8:0 rbps=max wbps=max riops=max wiops=max", "", true),
            ("io.max", "8:0 rbps=5 wbps=max riops=max wiops=max", "", false),
            ("blkio.throttle.read_bps_device", "8:0 1048576", "8:0 1048576\n", true),
            ("blkio.throttle.read_bps_device", "8:0 1048576", "", false),
            ("blkio.throttle.read_bps_device", "8:0 0", "", true),
        ] {
            assert_eq!(agrees(file, written, found), expected, "{file}: {written:?} {found:?}");
        }
    }
}
