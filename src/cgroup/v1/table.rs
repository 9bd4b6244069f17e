//! The limits of cgroup v1 as control files and values. Reference: `Documentation/admin-guide/cgroup-v1/`.

use crate::cgroup::limits::row::{PERIOD, QUOTA, Row, Terms, share_of_time, unlimited_swap};
use crate::cgroup::limits::v2::{burst_row, idle_row};
use crate::cgroup::limits::weight::clamp_shares;
use crate::cgroup::limits::{CpuMax, IoMax, Limits, bfq_weight};
use crate::report::{Control, Effect, Report};
use crate::step::OnRefusal;

/// The rows for `limits`, in the same order as on v2. The destructuring names every field of [`Limits`], so a new field
/// does not compile without a decision here.
pub(in crate::cgroup) fn rows(limits: &Limits, terms: &Terms) -> Vec<Row> {
    let Limits {
        cpu_shares,
        cpu_idle,
        cpu_max,
        cores: _,
        exclusive: _,
        memory: _,
        memory_max: _,
        memory_high: _,
        swap: _,
        oom_group: _,
        pids_max: _,
        io_weight,
        io_max,
        hugetlb: _,
        accounting: _,
    } = limits;
    let mut rows = cpu(*cpu_shares, *cpu_idle, *cpu_max);
    rows.extend(memory(limits, terms));
    rows.extend(io(*io_weight, io_max));
    rows
}

fn cpu(shares: Option<u64>, idle: bool, max: Option<CpuMax>) -> Vec<Row> {
    let period = max.map_or(CpuMax::PERIOD, |max| max.period);
    let quota = max.map_or_else(|| "-1".to_owned(), |max| max.quota.to_string());
    let allows = max.map_or(u64::MAX, |max| share_of_time(max.quota, max.period));
    let shares = shares.map(|shares| clamp_shares(shares, None));
    vec![
        Row::weight("cpu", Control::CPU, "cpu.shares", shares, 1024),
        idle_row(idle),
        Row::new("cpu", Control::CPU_MAX, PERIOD, period.to_string(), period != CpuMax::PERIOD),
        Row::new("cpu", Control::CPU_MAX, QUOTA, quota, max.is_some()).allows(allows),
        burst_row("cpu.cfs_burst_us", max),
    ]
}

/// The limit of the buffers of TCP sockets, which `memory.limit_in_bytes` does not count.
const TCP: &str = "memory.kmem.tcp.limit_in_bytes";

fn memory(limits: &Limits, terms: &Terms) -> Vec<Row> {
    let memory = limits.memory_limits();
    let soft = Row::ceiling("memory", Control::MEMORY, "memory.soft_limit_in_bytes", memory.reserve, "-1");
    let mut rows = vec![
        Row::ceiling("memory", Control::MEMORY, "memory.limit_in_bytes", memory.hard, "-1"),
        soft.degrades("the kernel does not support memory.soft_limit_in_bytes (PREEMPT_RT)"),
    ];
    let tcp = Row::ceiling("memory", Control::MEMORY, TCP, memory.hard, "-1");
    let why = "the buffers of TCP sockets are not limited (no memory.kmem.tcp.limit_in_bytes: needs CONFIG_MEMCG_KMEM)";
    let on_refusal = OnRefusal::Degrade(vec![Effect::weakened(Control::MEMORY, why)]);
    rows.push(Row { on_refusal, ..tcp });
    if terms.swap.accounted == Some(true) {
        let together = memory.hard.and_then(|hard| Some(hard.saturating_add(limits.swap_bytes()?)));
        rows.push(Row::ceiling("memory", Control::SWAP, "memory.memsw.limit_in_bytes", together, "-1"));
    }
    if limits.swap_bytes() == Some(0) {
        // The previous value is inherited from the parent and not known, so it is never restored.
        rows.push(Row::new("memory", Control::SWAP, "memory.swappiness", "0", true).skips());
    }
    rows
}

fn io(weight: Option<u16>, max: &[IoMax]) -> Vec<Row> {
    let weight = Row::weight("blkio", Control::IO, "blkio.bfq.weight", weight.map(bfq_weight), 100);
    let mut rows = vec![weight.degrades("the kernel does not support I/O weights (no blkio.bfq.weight)")];
    for max in max {
        for (_, file, value) in max.limits() {
            let row = Row::ceiling("blkio", Control::IO, file, value, "0");
            rows.push(row.on(&max.device).degrades(
                "I/O limit not set (needs CONFIG_BLK_DEV_THROTTLING, a whole device that exists, and a task in the blkio hierarchy)",
            ));
        }
    }
    rows
}

/// Reports the limits that v1 has no file for, or can only enforce in part.
pub(in crate::cgroup) fn remarks(limits: &Limits, terms: &Terms, report: &mut Report) {
    let hard = limits.memory_limits().hard.is_some();
    if hard {
        let why = "the buffers of TCP sockets have a limit of their own, of the same size";
        report.note(Control::MEMORY, why);
    }
    if let Some(bytes) = limits.swap_bytes()
        && !(terms.swap.accounted == Some(true) && hard)
    {
        let why = match terms.swap.active && bytes == 0 {
            true => {
                "swap cannot be limited: no swap accounting or no hard memory limit (memory.swappiness=0 makes the kernel avoid swap)"
            }
            false => "swap cannot be limited: no swap accounting or no hard memory limit",
        };
        unlimited_swap(Effect::weakened(Control::SWAP, why), terms.swap.active, report);
    }
    if limits.memory_high.is_some() {
        let why = "cgroup v1 has no memory.high: the task is not throttled before it reaches a hard limit";
        match hard {
            true => report.weaken(Control::MEMORY, why),
            false => report.miss(Control::MEMORY, why),
        }
    }
    if !limits.io_max.is_empty() {
        let why = "cgroup v1 throttles only direct and synchronous I/O, not buffered writes (writeback)";
        report.weaken(Control::IO, why);
    }
    if limits.oom_group {
        report.miss(
            Control::OOM_GROUP,
            "cgroup v1 OOM-kills one process, not the whole task (memory.oom.group needs cgroup v2)",
        );
    }
}
