//! Rows of v1 or v2 for a set of limits, and remarks on limits that the rows cannot enforce.

use super::row::{Row, Terms};
use super::{Limits, PIDS_LIMIT, v2};
use crate::cgroup::detect::{Swap, Version};
use crate::cgroup::v1;
use crate::report::{Control, Report};

/// Returns all rows, including those that limit nothing.
pub(in crate::cgroup) fn rows(limits: &Limits, terms: &Terms) -> Vec<Row> {
    let mut rows = match terms.version {
        Version::V1 => v1::table::rows(limits, terms),
        Version::V2 => v2::rows(limits, terms),
    };
    let pids = limits.pids_max.map(|max| max.saturating_add(terms.extra_pids).min(PIDS_LIMIT));
    rows.push(Row::ceiling("pids", Control::PIDS, "pids.max", pids, "max"));
    for (size, max) in &limits.hugetlb {
        let (file, none) = match terms.hugetlb {
            Version::V1 => (format!("hugetlb.{size}.limit_in_bytes"), "-1"),
            Version::V2 => (format!("hugetlb.{size}.max"), "max"),
        };
        rows.push(Row::ceiling("hugetlb", Control::HUGETLB, &file, Some(*max), none));
    }
    rows
}

/// Adds to the report the limits that no control file can enforce, or only in part.
pub(in crate::cgroup) fn remarks(limits: &Limits, terms: &Terms, report: &mut Report) {
    match terms.version {
        Version::V1 => {
            soft_memory(limits, "memory.soft_limit_in_bytes, which is best effort", report);
            v1::table::remarks(limits, terms, report);
        }
        Version::V2 => {
            soft_memory(limits, "memory.low, which is bounded by memory.low of the parent cgroups", report);
            v2::remarks(limits, terms, report);
        }
    }
    if limits.io_weight.is_some() {
        let why = "io_weight affects only devices with the BFQ scheduler or, on cgroup v2, with io.cost";
        report.weaken(Control::IO, why);
    }
}

/// Reports memory limits that do not stop a task. A reservation protects memory of the task, and `memory.high` slows
/// the task down, but only a hard limit enforces the memory control.
fn soft_memory(limits: &Limits, reserved_by: &str, report: &mut Report) {
    let memory = limits.memory_limits();
    let mut add = |why: String| match memory.hard {
        Some(_) => report.note(Control::MEMORY, why),
        None => report.weaken(Control::MEMORY, why),
    };
    if memory.reserve.is_some() {
        add(format!("memory is reserved by {reserved_by}"));
    }
    if limits.memory_high.is_some() && memory.hard.is_none() {
        add("memory.high throttles the task, it is not a hard limit".to_owned());
    }
}

impl Limits {
    /// Returns the controls that these limits ask for, a subset of [`Control::RESOURCES`].
    pub fn asked(&self) -> Control {
        let cores = if self.cores.is_empty() { Control::empty() } else { Control::CPUSET };
        self.rows_in_use().fold(cores, |set, row| set | row.control)
    }

    /// Whether these limits put the task in the memory controller.
    pub(in crate::cgroup) fn uses_memory(&self) -> bool {
        self.accounting || self.rows_in_use().any(|row| row.controller == "memory")
    }

    /// The rows that limit something, on a host that has every controller.
    fn rows_in_use(&self) -> impl Iterator<Item = Row> {
        let swap = Swap { active: true, accounted: Some(true) };
        let terms = Terms { version: Version::V2, hugetlb: Version::V2, swap, extra_pids: 0 };
        rows(self, &terms).into_iter().filter(|row| row.limits)
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::changes;
    use super::super::{CpuMax, IoMax, MemoryMax, SwapMax};
    use super::*;

    const MB: u64 = 1 << 20;

    fn terms(version: Version) -> Terms {
        let swap = Swap { active: true, accounted: Some(true) };
        Terms { version, hugetlb: version, swap, extra_pids: 1 }
    }

    /// The rows that limit something, as `file = line`.
    fn text(limits: &Limits, version: Version) -> Vec<String> {
        let list = rows(limits, &terms(version));
        list.iter().filter(|s| s.limits).map(|s| format!("{} = {}", s.file, s.line())).collect()
    }

    fn all() -> Limits {
        Limits {
            cpu_shares: Some(512),
            cpu_max: Some(CpuMax { quota: 50_000, period: 200_000, burst: 10_000 }),
            memory: Some(64 * MB),
            memory_max: Some(MemoryMax::Bytes(128 * MB)),
            memory_high: Some(96 * MB),
            swap: SwapMax::Bytes(MB),
            oom_group: true,
            pids_max: Some(10),
            io_weight: Some(1000),
            io_max: vec![IoMax {
                device: "8:0".into(),
                read_bps: Some(MB),
                write_iops: Some(9),
                ..IoMax::default()
            }],
            hugetlb: [("2MB".to_owned(), 4 * MB)].into(),
            ..Limits::default()
        }
    }

    #[test]
    fn every_limit_is_written_to_its_file() {
        let v1 = [
            "cpu.shares = 512",
            "cpu.cfs_period_us = 200000",
            "cpu.cfs_quota_us = 50000",
            "cpu.cfs_burst_us = 10000",
            "memory.limit_in_bytes = 134217728",
            "memory.soft_limit_in_bytes = 67108864",
            "memory.kmem.tcp.limit_in_bytes = 134217728",
            "memory.memsw.limit_in_bytes = 135266304",
            "blkio.bfq.weight = 181",
            "blkio.throttle.read_bps_device = 8:0 1048576",
            "blkio.throttle.write_iops_device = 8:0 9",
            "pids.max = 11",
            "hugetlb.2MB.limit_in_bytes = 4194304",
        ];
        assert_eq!(text(&all(), Version::V1), v1);
        let v2 = [
            "cpu.weight = 59",
            "cpu.max = 50000 200000",
            "cpu.max.burst = 10000",
            "memory.swap.max = 1048576",
            "memory.max = 134217728",
            "memory.high = 100663296",
            "memory.low = 67108864",
            "memory.oom.group = 1",
            "io.bfq.weight = 181",
            "io.weight = 1000",
            "io.max = 8:0 rbps=1048576 wbps=max riops=max wiops=9",
            "pids.max = 11",
            "hugetlb.2MB.max = 4194304",
        ];
        assert_eq!(text(&all(), Version::V2), v2);
        assert!(text(&Limits::default(), Version::V1).is_empty());
        assert!(text(&Limits::default(), Version::V2).is_empty());
    }

    #[track_caller]
    fn change(old: &Limits, new: &Limits, version: Version, expected: &[&str]) {
        let (old, new) = (rows(old, &terms(version)), rows(new, &terms(version)));
        let found: Vec<String> = changes(&old, &new, |_| false)
            .iter()
            .map(|(_, now)| format!("{} = {}", now.file, now.line()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn wider_limits_are_written_first_and_memsw_is_never_below_memory() {
        let memory = |mb: u64| Limits { memory: Some(mb * MB), ..Limits::default() };
        let (small, large) = (memory(64), memory(128));
        change(&small, &small, Version::V1, &[]);
        change(
            &small,
            &large,
            Version::V1,
            &[
                "memory.memsw.limit_in_bytes = 134217728",
                "memory.kmem.tcp.limit_in_bytes = 134217728",
                "memory.limit_in_bytes = 134217728",
            ],
        );
        change(
            &large,
            &small,
            Version::V1,
            &[
                "memory.limit_in_bytes = 67108864",
                "memory.kmem.tcp.limit_in_bytes = 67108864",
                "memory.memsw.limit_in_bytes = 67108864",
            ],
        );
        let with_pids = Limits { pids_max: Some(5), ..large.clone() };
        change(
            &with_pids,
            &Limits { pids_max: Some(9), ..small.clone() },
            Version::V2,
            &["pids.max = 10", "memory.max = 67108864"],
        );
        change(
            &with_pids,
            &Limits::default(),
            Version::V2,
            &["pids.max = max", "memory.max = max", "memory.swap.max = max"],
        );
    }

    #[test]
    fn burst_never_exceeds_the_quota_during_a_change() {
        let max = |quota, burst| Limits {
            cpu_max: Some(CpuMax { burst, ..CpuMax::new(quota) }),
            ..Limits::default()
        };
        let narrow = ["cpu.max.burst = 0", "cpu.max = 10000 100000", "cpu.max.burst = 5000"];
        change(&max(90_000, 80_000), &max(10_000, 5000), Version::V2, &narrow);
        let widen = ["cpu.max.burst = 0", "cpu.max = 90000 100000", "cpu.max.burst = 80000"];
        change(&max(10_000, 5000), &max(90_000, 80_000), Version::V2, &widen);
        let lift = ["cpu.cfs_burst_us = 0", "cpu.cfs_quota_us = -1"];
        change(&max(10_000, 5000), &Limits::default(), Version::V1, &lift);
        let set = ["cpu.cfs_quota_us = 10000", "cpu.cfs_burst_us = 5000"];
        change(&Limits::default(), &max(10_000, 5000), Version::V1, &set);
    }

    #[test]
    fn device_and_page_size_lines_are_set_and_lifted() {
        let none = Limits::default();
        let some = Limits { io_max: all().io_max, hugetlb: all().hugetlb, ..none.clone() };
        let set = ["io.max = 8:0 rbps=1048576 wbps=max riops=max wiops=9", "hugetlb.2MB.max = 4194304"];
        change(&none, &some, Version::V2, &set);
        let lifted = ["hugetlb.2MB.max = max", "io.max = 8:0 rbps=max wbps=max riops=max wiops=max"];
        change(&some, &none, Version::V2, &lifted);
        let lifted = [
            "hugetlb.2MB.limit_in_bytes = -1",
            "blkio.throttle.write_iops_device = 8:0 0",
            "blkio.throttle.read_bps_device = 8:0 0",
        ];
        change(&some, &none, Version::V1, &lifted);
    }

    #[test]
    fn v1_cpu_time_never_exceeds_both_limits_during_a_change() {
        let max =
            |quota, period| Limits { cpu_max: Some(CpuMax { quota, period, burst: 0 }), ..Limits::default() };
        let period_first = ["cpu.cfs_period_us = 200000", "cpu.cfs_quota_us = 100000"];
        change(
            &max(200_000, 1_000_000),
            &max(100_000, 200_000),
            Version::V1,
            &["cpu.cfs_quota_us = 100000", "cpu.cfs_period_us = 200000"],
        );
        change(&max(100_000, 100_000), &max(100_000, 200_000), Version::V1, &["cpu.cfs_period_us = 200000"]);
        change(&max(50_000, 100_000), &max(100_000, 200_000), Version::V1, &period_first);
        // Writing the period first would give the task two CPUs instead of one.
        let quota_first = ["cpu.cfs_quota_us = 40000", "cpu.cfs_period_us = 50000"];
        change(&max(100_000, 100_000), &max(40_000, 50_000), Version::V1, &quota_first);
    }

    /// Applies the changes to a model of the files. All of them lead to the new state. After each of them, the reverse
    /// changes lead back to the old state.
    #[test]
    fn interrupted_change_can_be_taken_back_at_every_point() {
        use std::collections::BTreeMap;
        let less = Limits {
            cpu_max: Some(CpuMax::new(20_000)),
            memory: Some(MB),
            io_max: vec![IoMax { device: "8:16".into(), read_iops: Some(3), ..IoMax::default() }],
            ..Limits::default()
        };
        let states = [Limits::default(), less, all()];
        for version in [Version::V1, Version::V2] {
            for (old, new) in states.iter().flat_map(|a| states.iter().map(move |b| (a, b))) {
                let (old, new) = (rows(old, &terms(version)), rows(new, &terms(version)));
                // A file that was never written has the default, as a row that limits nothing.
                let files = |list: &[Row]| -> BTreeMap<(String, String), String> {
                    let lines = list.iter().filter(|s| s.limits && s.file != "memory.swappiness");
                    lines.map(|s| ((s.file.clone(), s.device.clone()), s.text.clone())).collect()
                };
                let set = |state: &mut BTreeMap<(String, String), String>, s: &Row| {
                    let key = (s.file.clone(), s.device.clone());
                    let none = s.text == "0" && s.file.contains("burst");
                    match s.limits && !none && s.file != "memory.swappiness" {
                        true => state.insert(key, s.text.clone()),
                        false => state.remove(&key),
                    };
                };
                let changes = changes(&old, &new, |_| false);
                for stop in 0..=changes.len() {
                    let mut state = files(&old);
                    changes[..stop].iter().for_each(|(_, now)| set(&mut state, now));
                    if stop == changes.len() {
                        assert_eq!(state, files(&new));
                    }
                    changes[..stop].iter().rev().for_each(|(was, _)| set(&mut state, was));
                    assert_eq!(state, files(&old), "back from {stop}");
                }
            }
        }
    }

    /// A limit that could not be reverted is in force, so the next update writes or lifts it.
    #[test]
    fn files_with_an_unknown_value_are_written_in_any_case() {
        let must = |s: &&Row| s.on_refusal == crate::step::OnRefusal::Fail && s.limits;
        for version in [Version::V1, Version::V2] {
            for new in [Limits::default(), all()] {
                let (old, new) = (rows(&all(), &terms(version)), rows(&new, &terms(version)));
                let changes = changes(&old, &new, |_| true);
                for row in old.iter().filter(must) {
                    let last = changes
                        .iter()
                        .rev()
                        .find(|(_, now)| (&now.file, &now.device) == (&row.file, &row.device));
                    let (_, now) = last.unwrap_or_else(|| panic!("{} is not written", row.file));
                    assert_eq!(
                        now.limits,
                        new.iter().any(|n| n.limits && n.file == row.file),
                        "{}",
                        row.file
                    );
                }
            }
        }
    }

    #[test]
    fn weight_is_written_only_while_the_cgroup_is_not_idle() {
        let shares = Limits { cpu_shares: Some(512), ..Limits::default() };
        let idle = Limits { cpu_idle: true, ..Limits::default() };
        change(&shares, &idle, Version::V2, &["cpu.weight = 100", "cpu.idle = 1"]);
        change(&idle, &shares, Version::V2, &["cpu.idle = 0", "cpu.weight = 59"]);
        change(&idle, &shares, Version::V1, &["cpu.idle = 0", "cpu.shares = 512"]);
    }

    #[track_caller]
    fn remarked(limits: &Limits, version: Version, expected: &str) {
        let mut report = Report::default();
        report.enforce(limits.asked());
        remarks(limits, &terms(version), &mut report);
        assert_eq!(report.to_string().trim_end(), expected.trim());
    }

    #[test]
    fn memory_high_without_a_hard_limit_is_not_enforced() {
        let high = Limits { memory_high: Some(64 * MB), ..Limits::default() };
        remarked(
            &high,
            Version::V2,
            "enforced  none\nweakened  memory\nmissing   none\n  memory: memory.high throttles the task, it is not a hard limit",
        );
        let both = Limits { memory: Some(128 * MB), swap: SwapMax::Unlimited, ..high.clone() };
        remarked(&both, Version::V2, "enforced  memory\nweakened  none\nmissing   none");
        for (limits, extent) in [(high, "missing "), (both, "weakened")] {
            let mut report = Report::default();
            report.enforce(limits.asked());
            remarks(&limits, &terms(Version::V1), &mut report);
            assert!(report.to_string().contains(&format!("{extent}  memory")), "{report}");
            assert!(report.why(Control::MEMORY).contains("cgroup v1 has no memory.high"), "{report}");
        }
    }
}
