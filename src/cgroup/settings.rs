//! Limits as the files of their controllers, in one table for both versions.
//!
//! What a task is born with and what an update changes come from the same lines: at birth those that limit
//! something are written, and an update writes those that differ.

use serde::{Deserialize, Serialize};

use super::layout::Need;
use super::limits::{CpuMax, Limits, PIDS_LIMIT};
use super::probe::{Swap, Version};
use super::weight::{clamp_shares, shares_to_weight};
use crate::report::{Control, Reason};

/// What one file, or one line of it, should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// The v1 or v2 name of the controller.
    pub controller: &'static str,
    pub control: Control,
    pub file: String,
    /// The device, where the file has a line for each.
    pub device: String,
    /// What is written, after the device.
    pub text: String,
    /// Whether it limits anything. What does not is what a new cgroup says by itself.
    pub limits: bool,
    /// How much it allows, to tell widening from narrowing; the same for what has no such order.
    pub allows: u64,
    pub need: Need,
}

impl Setting {
    /// What is written.
    pub fn line(&self) -> String {
        if self.device.is_empty() { self.text.clone() } else { format!("{} {}", self.device, self.text) }
    }

    fn optional(mut self, why: &str) -> Self {
        self.need = Need::Else(Reason { control: self.control, why: why.to_owned() });
        self
    }
}

/// What the table depends on beside the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Terms {
    pub version: Version,
    /// Where huge pages are counted.
    pub hugetlb: Version,
    pub swap: Swap,
    pub extra_pids: u64,
}

/// The table. What comes later in a controller may need room in what comes before: a limit may only grow after, and
/// only shrink before, those that enclose it. So narrowing goes down the list, and widening up.
pub(super) fn settings(limits: &Limits, terms: &Terms) -> Vec<Setting> {
    let mut list = Vec::new();
    match terms.version {
        Version::V1 => {
            cpu_v1(limits, &mut list);
            memory_v1(limits, terms, &mut list);
            io_v1(limits, &mut list);
        }
        Version::V2 => {
            cpu_v2(limits, &mut list);
            memory_v2(limits, terms, &mut list);
            io_v2(limits, &mut list);
        }
    }
    let pids = limits.pids_max.map(|max| max.saturating_add(terms.extra_pids).min(PIDS_LIMIT));
    list.push(ceiling("pids", Control::PIDS, "pids.max", pids, "max"));
    for (size, max) in &limits.hugetlb {
        let (file, none) = match terms.hugetlb {
            Version::V1 => (format!("hugetlb.{size}.limit_in_bytes"), "-1"),
            Version::V2 => (format!("hugetlb.{size}.max"), "max"),
        };
        list.push(ceiling("hugetlb", Control::HUGETLB, &file, Some(*max), none));
    }
    list
}

/// How much of a control holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Whole,
    Partly,
    Not,
}

/// Something about a control that its files do not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remark {
    pub held: Held,
    pub reason: Reason,
}

impl Remark {
    fn new(held: Held, control: Control, why: impl Into<String>) -> Remark {
        Remark { held, reason: Reason { control, why: why.into() } }
    }
}

/// What of the limits no file can hold, or only in part.
pub(super) fn remarks(limits: &Limits, terms: &Terms) -> Vec<Remark> {
    let mut list = Vec::new();
    let memory = limits.memory_limits();
    if memory.reserve.is_some() {
        // What is reserved is not guaranteed: without a hard limit nothing of the memory control is.
        let held = if memory.hard.is_some() { Held::Whole } else { Held::Partly };
        let means = match terms.version {
            Version::V1 => "memory.soft_limit_in_bytes, which the kernel tries to honour",
            Version::V2 => "memory.low, which counts as far as that of the parents does",
        };
        list.push(Remark::new(held, Control::MEMORY, format!("memory is reserved by {means}")));
    }
    if let Some(bytes) = limits.swap_bytes() {
        list.extend(swap_remark(bytes, memory.hard.is_some(), terms));
    }
    if limits.io_weight.is_some() {
        let why = "a weight counts only at devices with the BFQ scheduler, or on v2 with io.cost";
        list.push(Remark::new(Held::Partly, Control::IO, why));
    }
    if !limits.io_max.is_empty() && terms.version == Version::V1 {
        let why =
            "cgroup v1 throttles direct and synchronous access only, and nothing that is written back later";
        list.push(Remark::new(Held::Partly, Control::IO, why));
    }
    if limits.oom_group && terms.version == Version::V1 {
        let why = "cgroup v1 kills one process (memory.oom.group is of v2)";
        list.push(Remark::new(Held::Not, Control::OOM_GROUP, why));
    }
    list
}

fn swap_remark(bytes: u64, hard: bool, terms: &Terms) -> Option<Remark> {
    let Swap { active, accounted } = terms.swap;
    let (held, why) = match terms.version {
        Version::V1 if accounted == Some(true) && hard => return None,
        Version::V1 if active && bytes == 0 => (
            Held::Partly,
            "there is no limit that could be set on swap; memory.swappiness=0 makes the kernel avoid it",
        ),
        Version::V1 => (Held::Partly, "no limit could be set on swap"),
        Version::V2 if accounted != Some(false) => return None,
        Version::V2 => (Held::Not, "the kernel does not account swap (no memory.swap.max)"),
    };
    Some(match active {
        true => Remark::new(held, Control::SWAP, why),
        false => Remark::new(Held::Whole, Control::SWAP, format!("{why}, but the host has none")),
    })
}

/// What a control file is about.
pub(super) fn control_of(file: &str) -> Control {
    match file {
        "memory.swap.max" | "memory.memsw.limit_in_bytes" | "memory.swappiness" => Control::SWAP,
        "memory.oom.group" => Control::OOM_GROUP,
        "cpu.weight" | "cpu.shares" => Control::CPU,
        _ => match file.split('.').next() {
            Some("memory") => Control::MEMORY,
            Some("cpu") => Control::CPU_MAX,
            Some("cpuset") => Control::CPUSET,
            Some("pids") => Control::PIDS,
            Some("io" | "blkio") => Control::IO,
            Some("hugetlb") => Control::HUGETLB,
            _ => Control::empty(),
        },
    }
}

fn setting(controller: &'static str, control: Control, file: &str, text: String, limits: bool) -> Setting {
    let (file, device, need) = (file.to_owned(), String::new(), Need::Must);
    Setting { controller, control, file, device, text, limits, allows: 0, need }
}

/// A number that may not be exceeded; `none` is how the file spells that there is none.
fn ceiling(controller: &'static str, control: Control, file: &str, max: Option<u64>, none: &str) -> Setting {
    let text = max.map_or_else(|| none.to_owned(), |max| max.to_string());
    let allows = max.unwrap_or(u64::MAX);
    Setting { allows, ..setting(controller, control, file, text, max.is_some()) }
}

/// A weight, or what a new group has.
fn weight(controller: &'static str, control: Control, file: &str, value: Option<u64>, none: u64) -> Setting {
    setting(controller, control, file, value.unwrap_or(none).to_string(), value.is_some())
}

fn cpu_v1(limits: &Limits, list: &mut Vec<Setting>) {
    let shares = limits.cpu_shares.map(|shares| clamp_shares(shares, None));
    list.push(weight("cpu", Control::CPU, "cpu.shares", shares, 1024));
    let max = limits.cpu_max;
    let period = max.map_or(CpuMax::PERIOD, |max| max.period).to_string();
    let set = max.is_some_and(|max| max.period != CpuMax::PERIOD);
    list.push(setting("cpu", Control::CPU_MAX, PERIOD, period, set));
    let quota = max.map_or_else(|| "-1".to_owned(), |max| max.quota.to_string());
    let quota = setting("cpu", Control::CPU_MAX, QUOTA, quota, max.is_some());
    list.push(Setting { allows: share_of(max), ..quota });
    list.push(burst("cpu.cfs_burst_us", max));
}

fn cpu_v2(limits: &Limits, list: &mut Vec<Setting>) {
    list.push(weight("cpu", Control::CPU, "cpu.weight", limits.cpu_shares.map(shares_to_weight), 100));
    let max = limits.cpu_max;
    let text = max.map_or_else(|| format!("max {}", CpuMax::PERIOD), |m| format!("{} {}", m.quota, m.period));
    let quota = setting("cpu", Control::CPU_MAX, "cpu.max", text, max.is_some());
    list.push(Setting { allows: share_of(max), ..quota });
    list.push(burst("cpu.max.burst", max));
}

/// The burst may not be more than the quota at any time: an update takes it away before it changes the quota.
fn burst(file: &str, max: Option<CpuMax>) -> Setting {
    let burst = max.map_or(0, |max| max.burst);
    let burst =
        Setting { allows: burst, ..setting("cpu", Control::CPU_MAX, file, burst.to_string(), burst > 0) };
    burst.optional("the kernel knows no burst (Linux 5.14)")
}

/// Millionths of a processor.
fn share_of(max: Option<CpuMax>) -> u64 {
    max.map_or(u64::MAX, |max| share_of_time(max.quota, max.period))
}

fn share_of_time(quota: u64, period: u64) -> u64 {
    match quota {
        u64::MAX => u64::MAX,
        _ => quota.saturating_mul(1_000_000).checked_div(period).unwrap_or(u64::MAX),
    }
}

const PERIOD: &str = "cpu.cfs_period_us";
const QUOTA: &str = "cpu.cfs_quota_us";

fn memory_v1(limits: &Limits, terms: &Terms, list: &mut Vec<Setting>) {
    let memory = limits.memory_limits();
    list.push(ceiling("memory", Control::MEMORY, "memory.limit_in_bytes", memory.hard, "-1"));
    let soft = ceiling("memory", Control::MEMORY, "memory.soft_limit_in_bytes", memory.reserve, "-1");
    list.push(soft.optional("memory.soft_limit_in_bytes is refused by this kernel (PREEMPT_RT does that)"));
    if terms.swap.accounted == Some(true) {
        let together = memory.hard.and_then(|hard| Some(hard.saturating_add(limits.swap_bytes()?)));
        list.push(ceiling("memory", Control::SWAP, "memory.memsw.limit_in_bytes", together, "-1"));
    }
    let avoid =
        setting("memory", Control::SWAP, "memory.swappiness", "0".into(), limits.swap_bytes() == Some(0));
    // There is no telling what it was before, so it is never put back.
    list.extend(avoid.limits.then_some(Setting { need: Need::Try, ..avoid }));
}

fn memory_v2(limits: &Limits, terms: &Terms, list: &mut Vec<Setting>) {
    let memory = limits.memory_limits();
    if terms.swap.accounted != Some(false) {
        let swap = ceiling("memory", Control::SWAP, "memory.swap.max", limits.swap_bytes(), "max");
        list.push(match (terms.swap.accounted, terms.swap.active) {
            (Some(_), _) => swap,
            (None, true) => swap.optional("the kernel does not account swap (no memory.swap.max)"),
            (None, false) => Setting { need: Need::Try, ..swap },
        });
    }
    list.push(ceiling("memory", Control::MEMORY, "memory.max", memory.hard, "max"));
    list.push(weight("memory", Control::MEMORY, "memory.low", memory.reserve, 0));
    let group = u64::from(limits.oom_group);
    list.push(setting("memory", Control::OOM_GROUP, "memory.oom.group", group.to_string(), limits.oom_group));
}

fn io_v1(limits: &Limits, list: &mut Vec<Setting>) {
    let bfq = limits.io_weight.map(bfq_weight);
    let weight = weight("blkio", Control::IO, "blkio.bfq.weight", bfq, 100);
    list.push(weight.optional("the kernel weighs no block devices (no blkio.bfq.weight)"));
    for max in &limits.io_max {
        for (_, file, value) in max.limits() {
            let limit = ceiling("blkio", Control::IO, file, value, "0");
            let limit = limit.optional("the kernel throttles no block devices");
            list.push(Setting { device: max.device.clone(), ..limit });
        }
    }
}

fn io_v2(limits: &Limits, list: &mut Vec<Setting>) {
    let bfq = weight("io", Control::IO, "io.bfq.weight", limits.io_weight.map(bfq_weight), 100);
    list.push(Setting { need: Need::Try, ..bfq });
    let weight = weight("io", Control::IO, "io.weight", limits.io_weight.map(u64::from), 100);
    list.push(weight.optional("the kernel weighs no block devices (no io.weight)"));
    for max in &limits.io_max {
        let text = max.limits().map(|(name, _, value)| match value {
            Some(value) => format!("{name}={value}"),
            None => format!("{name}=max"),
        });
        let limit = setting("io", Control::IO, "io.max", text.join(" "), true);
        let limit = limit.optional("the kernel throttles no block devices");
        list.push(Setting { device: max.device.clone(), ..limit });
    }
}

/// 1 to 10000 as BFQ's 1 to 1000, where 100 stays 100.
fn bfq_weight(weight: u16) -> u64 {
    let weight = u64::from(weight);
    let above = weight.saturating_sub(100).saturating_mul(900).checked_div(9900).unwrap_or(0);
    weight.min(100).saturating_add(above)
}

/// What turns `old` into `new`, in an order in which the kernel takes each step and no limit is ever wider than before
/// and after: what widens first, what narrows last. With each change goes what takes it back.
pub(super) fn changes(old: &[Setting], new: &[Setting]) -> Vec<(Setting, Setting)> {
    let same = |a: &Setting, b: &Setting| a.file == b.file && a.device == b.device;
    // What only one of the lists knows is given back, or is a limit where none was.
    let gone =
        old.iter().filter(|was| was.limits && !new.iter().any(|now| same(was, now))).filter_map(|was| {
            let text = without_limit(was)?;
            let lifted = Setting { text, limits: false, allows: u64::MAX, ..was.clone() };
            Some((was.clone(), lifted))
        });
    let kept = new.iter().filter_map(|now| {
        let (was, new) = match old.iter().find(|was| same(was, now)) {
            Some(was) => (was.clone(), false),
            None => {
                let text = without_limit(now).unwrap_or_else(|| now.text.clone());
                (Setting { text, limits: false, allows: u64::MAX, ..now.clone() }, now.limits)
            }
        };
        (new || was.text != now.text).then(|| (was, now.clone()))
    });
    let all: Vec<(Setting, Setting)> = kept.chain(gone).collect();
    let is_burst = |s: &Setting| s.file.ends_with("burst") || s.file == "cpu.cfs_burst_us";
    // No quota may pass below a burst that is still there.
    let bursts = all.iter().filter(|(was, _)| is_burst(was) && was.limits);
    let none = bursts.map(|(was, now)| (was.clone(), Setting { text: "0".into(), ..now.clone() }));
    let mut ordered: Vec<(Setting, Setting)> = none.collect();
    let (wider, rest): (Vec<_>, Vec<_>) = all
        .into_iter()
        .filter(|(was, now)| !is_burst(was) || now.limits)
        .partition(|(was, now)| now.allows > was.allows && !is_burst(was));
    ordered.extend(wider.into_iter().rev());
    ordered.extend(rest);
    period_beside_quota(&mut ordered);
    ordered
}

/// v1 has two files for what v2 says in one. Of the two orders the one is taken in which the task never has more than
/// before and after; it may have less for a moment.
fn period_beside_quota(changes: &mut Vec<(Setting, Setting)>) {
    let find = |list: &[(Setting, Setting)], file: &str| list.iter().position(|(_, now)| now.file == file);
    let Some(at) = find(changes, PERIOD) else { return };
    if find(changes, QUOTA).is_none() {
        return;
    }
    let period = changes.remove(at);
    let Some(quota) = find(changes, QUOTA) else { return };
    let number = |s: &Setting| s.text.parse::<u64>().unwrap_or(u64::MAX);
    let most = changes.get(quota).map_or(u64::MAX, |(was, now)| was.allows.max(now.allows));
    let between = changes.get(quota).map(|(was, _)| share_of_time(number(was), number(&period.1)));
    let first = between.is_some_and(|share| share <= most);
    changes.insert(if first { quota } else { quota.saturating_add(1) }, period);
}

/// How a line of the table spells that nothing is limited; `None` where a new list always has the line.
fn without_limit(s: &Setting) -> Option<String> {
    match s.file.as_str() {
        "io.max" => Some("rbps=max wbps=max riops=max wiops=max".into()),
        file if file.starts_with("blkio.throttle.") => Some("0".into()),
        file if file.starts_with("hugetlb.") => {
            Some(if file.ends_with(".max") { "max" } else { "-1" }.into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::{IoMax, MemoryMax, SwapMax};
    use super::*;

    const MB: u64 = 1 << 20;

    fn terms(version: Version) -> Terms {
        let swap = Swap { active: true, accounted: Some(true) };
        Terms { version, hugetlb: version, swap, extra_pids: 1 }
    }

    /// All that limits something, as `file = line`.
    fn text(limits: &Limits, version: Version) -> Vec<String> {
        let list = settings(limits, &terms(version));
        list.iter().filter(|s| s.limits).map(|s| format!("{} = {}", s.file, s.line())).collect()
    }

    fn all() -> Limits {
        Limits {
            cpu_shares: Some(512),
            cpu_max: Some(CpuMax { quota: 50_000, period: 200_000, burst: 10_000 }),
            memory: Some(64 * MB),
            memory_max: Some(MemoryMax::Bytes(128 * MB)),
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
    fn every_limit_has_its_file() {
        let v1 = [
            "cpu.shares = 512",
            "cpu.cfs_period_us = 200000",
            "cpu.cfs_quota_us = 50000",
            "cpu.cfs_burst_us = 10000",
            "memory.limit_in_bytes = 134217728",
            "memory.soft_limit_in_bytes = 67108864",
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

    #[test]
    fn a_file_tells_its_control() {
        for version in [Version::V1, Version::V2] {
            for s in settings(&all(), &terms(version)) {
                assert_eq!(control_of(&s.file), s.control, "{}", s.file);
            }
        }
    }

    #[test]
    fn weights_of_bfq() {
        for (weight, bfq) in [(1, 1), (100, 100), (101, 100), (1000, 181), (10_000, 1000)] {
            assert_eq!(bfq_weight(weight), bfq, "{weight}");
        }
    }

    #[track_caller]
    fn change(old: &Limits, new: &Limits, version: Version, expected: &[&str]) {
        let (old, new) = (settings(old, &terms(version)), settings(new, &terms(version)));
        let found: Vec<String> =
            changes(&old, &new).iter().map(|(_, now)| format!("{} = {}", now.file, now.line())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_widens_comes_first_and_what_encloses_before_it() {
        let memory = |mb: u64| Limits { memory: Some(mb * MB), ..Limits::default() };
        let (small, large) = (memory(64), memory(128));
        change(&small, &small, Version::V1, &[]);
        change(
            &small,
            &large,
            Version::V1,
            &["memory.memsw.limit_in_bytes = 134217728", "memory.limit_in_bytes = 134217728"],
        );
        change(
            &large,
            &small,
            Version::V1,
            &["memory.limit_in_bytes = 67108864", "memory.memsw.limit_in_bytes = 67108864"],
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
    fn a_burst_is_never_more_than_the_quota() {
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
    fn lines_of_devices_and_page_sizes_come_and_go() {
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
    fn v1_never_has_more_time_than_before_and_after() {
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
        // The period first would make two processors of one.
        let quota_first = ["cpu.cfs_quota_us = 40000", "cpu.cfs_period_us = 50000"];
        change(&max(100_000, 100_000), &max(40_000, 50_000), Version::V1, &quota_first);
    }

    /// A model of the files: applied one after the other the changes end in the new state, and from wherever they
    /// stop their other halves lead back to the old one.
    #[test]
    fn every_change_knows_the_way_back() {
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
                let (old, new) = (settings(old, &terms(version)), settings(new, &terms(version)));
                // What limits nothing is what a file says that nobody has written.
                let files = |list: &[Setting]| -> BTreeMap<(String, String), String> {
                    let lines = list.iter().filter(|s| s.limits && s.file != "memory.swappiness");
                    lines.map(|s| ((s.file.clone(), s.device.clone()), s.text.clone())).collect()
                };
                let set = |state: &mut BTreeMap<(String, String), String>, s: &Setting| {
                    let key = (s.file.clone(), s.device.clone());
                    let none = s.text == "0" && s.file.contains("burst");
                    match s.limits && !none && s.file != "memory.swappiness" {
                        true => state.insert(key, s.text.clone()),
                        false => state.remove(&key),
                    };
                };
                let changes = changes(&old, &new);
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
}
