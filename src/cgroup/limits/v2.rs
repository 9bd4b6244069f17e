//! Limits of cgroup v2: limit, file and value. Reference: `Documentation/admin-guide/cgroup-v2.rst`.

use super::row::{Row, Terms, share_of_time, unlimited_swap};
use super::weight::shares_to_weight;
use super::{CpuMax, IoMax, Limits, bfq_weight};
use crate::report::{Control, Effect, Report};

/// The rows of v2. Their order matters for updates, on v1 and v2: the value of a later row may be the upper bound of an
/// earlier row of the same controller, as v1's limit of memory and swap is for its memory limit. The kernel requires
/// that the bound is raised before the bounded value, and lowered after it. So an update narrows limits from the first
/// row to the last, and widens them from the last to the first.
///
/// The destructuring names every field of [`Limits`], here, in the table of v1 and in [`Limits::validate`]. So a new
/// field does not compile without a decision in all three.
pub(super) fn rows(limits: &Limits, terms: &Terms) -> Vec<Row> {
    let Limits {
        cpu_shares,
        cpu_idle,
        cpu_max,
        cores: _,
        exclusive: _,
        memory: _,
        memory_max: _,
        memory_high,
        swap: _,
        oom_group,
        pids_max: _,
        io_weight,
        io_max,
        hugetlb: _,
        accounting: _,
    } = limits;
    let mut rows = cpu(*cpu_shares, *cpu_idle, *cpu_max);
    rows.extend(swap(limits, terms));
    rows.extend(memory(limits, *memory_high, *oom_group));
    rows.extend(io(*io_weight, io_max));
    rows
}

fn cpu(shares: Option<u64>, idle: bool, max: Option<CpuMax>) -> Vec<Row> {
    let quota =
        max.map_or_else(|| format!("max {}", CpuMax::PERIOD), |m| format!("{} {}", m.quota, m.period));
    let allows = max.map_or(u64::MAX, |max| share_of_time(max.quota, max.period));
    vec![
        Row::weight("cpu", Control::CPU, "cpu.weight", shares.map(shares_to_weight), 100),
        idle_row(idle),
        Row::new("cpu", Control::CPU_MAX, "cpu.max", quota, max.is_some()).allows(allows),
        burst_row("cpu.max.burst", max),
    ]
}

/// The row of `cpu.idle`. The kernel refuses to set the weight of an idle cgroup. So `cpu.idle` is cleared before the
/// weight is written, and set after it.
pub(in crate::cgroup) fn idle_row(idle: bool) -> Row {
    let row = Row::new("cpu", Control::CPU, "cpu.idle", u8::from(idle).to_string(), idle);
    let row = row.allows(if idle { 0 } else { u64::MAX });
    row.degrades("the kernel does not support cpu.idle (needs Linux 5.15)")
}

/// The row of the burst. The kernel refuses a burst above the quota. So an update sets the burst to 0 before it changes
/// the quota.
pub(in crate::cgroup) fn burst_row(file: &str, max: Option<CpuMax>) -> Row {
    let burst = max.map_or(0, |max| max.burst);
    let row = Row::new("cpu", Control::CPU_MAX, file, burst.to_string(), burst > 0).allows(burst);
    row.degrades("the kernel does not support a CPU burst (needs Linux 5.14)")
}

fn swap(limits: &Limits, terms: &Terms) -> Option<Row> {
    let swap = || Row::ceiling("memory", Control::SWAP, "memory.swap.max", limits.swap_bytes(), "max");
    match (terms.swap.accounted, terms.swap.active) {
        (Some(false), _) => None,
        (Some(true), _) => Some(swap()),
        (None, true) => Some(swap().degrades(NO_SWAP)),
        (None, false) => Some(swap().skips()),
    }
}

const NO_SWAP: &str = "the kernel does not account swap (no memory.swap.max)";

fn memory(limits: &Limits, high: Option<u64>, oom_group: bool) -> Vec<Row> {
    let memory = limits.memory_limits();
    let group = u8::from(oom_group).to_string();
    vec![
        Row::ceiling("memory", Control::MEMORY, "memory.max", memory.hard, "max"),
        Row::ceiling("memory", Control::MEMORY, "memory.high", high, "max"),
        Row::weight("memory", Control::MEMORY, "memory.low", memory.reserve, 0),
        Row::new("memory", Control::OOM_GROUP, "memory.oom.group", group, oom_group),
    ]
}

fn io(weight: Option<u16>, max: &[IoMax]) -> Vec<Row> {
    let bfq = weight.map(bfq_weight);
    let mut rows = vec![
        Row::weight("io", Control::IO, "io.bfq.weight", bfq, 100).skips(),
        Row::weight("io", Control::IO, "io.weight", weight.map(u64::from), 100)
            .degrades("the kernel does not support I/O weights (no io.weight)"),
    ];
    for max in max {
        let text = max.limits().map(|(name, _, value)| match value {
            Some(value) => format!("{name}={value}"),
            None => format!("{name}=max"),
        });
        let row = Row::new("io", Control::IO, "io.max", text.join(" "), true);
        rows.push(
            row.on(&max.device).degrades(
                "I/O limit not set (needs CONFIG_BLK_DEV_THROTTLING, and a whole device that exists)",
            ),
        );
    }
    rows
}

/// Adds to the report the limits that v2 cannot enforce, or only in part.
pub(super) fn remarks(limits: &Limits, terms: &Terms, report: &mut Report) {
    if limits.swap_bytes().is_some() && terms.swap.accounted == Some(false) {
        unlimited_swap(Effect::lost(Control::SWAP, NO_SWAP), terms.swap.active, report);
    }
}
