//! Resource usage of a task: memory, CPU time, processes, block I/O and pressure.
//!
//! A [`Stats`] is one sample, taken by [`Group::stats`] or [`Task::stats`](crate::Task::stats). It is plain data. Rates
//! are computed from two samples ([`Stats::cpu_percent`]).
//!
//! A value is `None` if the kernel does not have it, or if it needs a controller that the task is not in. A task is in
//! the controllers that its [`Limits`](crate::Limits) need, and on v2 also in those that another task in the same slice
//! needs. So a task without a memory limit may have no memory counters, unless
//! [`Limits::accounting`](crate::Limits::accounting) is set. The v2 tree counts CPU time and pressure without any
//! controller.
//!
//! The file and key of each value:
//!
//! | | cgroup v1 | cgroup v2 |
//! | --- | --- | --- |
//! | [`memory.usage`](Memory::usage) | `memory.usage_in_bytes` | `memory.current` |
//! | [`memory.peak`](Memory::peak) | `memory.max_usage_in_bytes` | `memory.peak` (5.19) |
//! | [`memory.limit`](Memory::limit) | `memory.limit_in_bytes` | `memory.max` |
//! | [`memory.rss`](Memory::rss) | `memory.stat` `total_rss` | `memory.stat` `anon` |
//! | [`memory.cache`](Memory::cache) | `memory.stat` `total_cache` | `memory.stat` `file` |
//! | [`memory.mapped`](Memory::mapped) | `memory.stat` `total_mapped_file` | `memory.stat` `file_mapped` |
//! | [`memory.inactive_file`](Memory::inactive_file) | `memory.stat` `total_inactive_file` | `memory.stat` `inactive_file` |
//! | [`memory.swap`](Memory::swap) | `memory.stat` `total_swap` | `memory.swap.current` |
//! | [`memory.swap_peak`](Memory::swap_peak) | | `memory.swap.peak` (6.5) |
//! | [`memory.kernel`](Memory::kernel) | `memory.kmem.usage_in_bytes` | `memory.stat` `kernel` (5.18) |
//! | [`memory.kernel_peak`](Memory::kernel_peak) | `memory.kmem.max_usage_in_bytes` | |
//! | [`memory.faults`](Memory::faults) | `memory.stat` `total_pgfault` | `memory.stat` `pgfault` |
//! | [`memory.major_faults`](Memory::major_faults) | `memory.stat` `total_pgmajfault` | `memory.stat` `pgmajfault` |
//! | [`memory.limit_hits`](Memory::limit_hits) | `memory.failcnt` | `memory.events` `max` |
//! | [`memory.oom_kills`](Memory::oom_kills) | `memory.oom_control` `oom_kill` | `memory.events` `oom_kill` |
//! | [`cpu.total`](Cpu::total) | `cpuacct.usage` | `cpu.stat` `usage_usec` |
//! | [`cpu.user`](Cpu::user) | `cpuacct.stat` `user` | `cpu.stat` `user_usec` |
//! | [`cpu.system`](Cpu::system) | `cpuacct.stat` `system` | `cpu.stat` `system_usec` |
//! | [`cpu.periods`](Cpu::periods) | `cpu.stat` `nr_periods` | `cpu.stat` `nr_periods` |
//! | [`cpu.throttled_periods`](Cpu::throttled_periods) | `cpu.stat` `nr_throttled` | `cpu.stat` `nr_throttled` |
//! | [`cpu.throttled`](Cpu::throttled) | `cpu.stat` `throttled_time` | `cpu.stat` `throttled_usec` |
//! | [`pids.current`](Pids::current) | `pids.current` | `pids.current` |
//! | [`pids.peak`](Pids::peak) | `pids.peak` (6.1) | `pids.peak` (6.1) |
//! | [`pids.limit`](Pids::limit) | `pids.max` | `pids.max` |
//! | [`pids.limit_hits`](Pids::limit_hits) | `pids.events` `max` | `pids.events` `max` |
//! | [`io`](Stats::io) | `blkio.throttle.io_service_bytes_recursive`, `blkio.throttle.io_serviced_recursive` | `io.stat` |
//! | [`pressure`](Stats::pressure) | | `cpu.pressure`, `memory.pressure`, `io.pressure`, `irq.pressure` (6.1) |
//!
//! On a hybrid host, memory, processes and block I/O are read from v1 if the task is in those controllers. CPU time and
//! pressure are read from the v2 tree, which has a finer clock than `cpuacct.stat`.
//!
//! Reference: the kernel's `Documentation/admin-guide/cgroup-v2.rst`, `cgroup-v1/memory.rst`,
//! `cgroup-v1/cpuacct.rst`, `cgroup-v1/blkio-controller.rst` and `Documentation/accounting/psi.rst`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cgroup::group::Group;
use crate::error::Result;

mod parse;
mod read;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod live;
#[cfg(test)]
mod tests;

/// One sample of a task's resource usage. The [module](self) lists the file that each value is read from.
///
/// It includes the nested cgroups that the task created, and the crate's own init, which is one process and little
/// memory. Times are serialised as `{"secs": 1, "nanos": 5000000}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Stats {
    /// When the sample was taken, by `CLOCK_MONOTONIC`. That clock is the same for all processes of a host (of a time
    /// namespace) and restarts when the host boots.
    pub taken: Duration,
    /// Memory.
    pub memory: Memory,
    /// CPU time.
    pub cpu: Cpu,
    /// Processes and threads.
    pub pids: Pids,
    /// I/O on each block device that the task has used; `None` if it is not counted.
    ///
    /// v2 counts writes through the page cache if the file system supports it (ext4, xfs, btrfs); v1 counts only
    /// synchronous writes. On current kernels, v1 counts a device only while a `blkio.throttle` limit is set on it.
    pub io: Option<Vec<Io>>,
    /// Time in which the task was stalled for lack of a resource. v2 only, Linux 4.20 with `CONFIG_PSI`.
    pub pressure: Pressures,
}

impl Stats {
    /// CPU time used since an `earlier` sample of the same task, in percent of one CPU: 250.0 is two and a half CPUs.
    ///
    /// `None` if either sample has no CPU time, or if no time has passed between them. So the first sample of a task
    /// has no rate.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use cofferdam::Stats;
    /// let (mut earlier, mut later) = (Stats::default(), Stats::default());
    /// assert_eq!(later.cpu_percent(&earlier), None);
    /// (earlier.taken, earlier.cpu.total) = (Duration::from_secs(10), Some(Duration::from_secs(1)));
    /// (later.taken, later.cpu.total) = (Duration::from_secs(12), Some(Duration::from_secs(4)));
    /// assert_eq!(later.cpu_percent(&earlier), Some(150.0));
    /// ```
    ///
    /// A scheduler that counts in MHz multiplies by the clock rate of one CPU: `percent / 100.0 * mhz`.
    pub fn cpu_percent(&self, earlier: &Stats) -> Option<f64> {
        let wall = self.taken.checked_sub(earlier.taken).filter(|wall| !wall.is_zero())?;
        let used = self.cpu.total?.checked_sub(earlier.cpu.total?)?;
        Some(used.as_secs_f64() / wall.as_secs_f64() * 100.0)
    }
}

/// Memory of a task, in bytes unless stated otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Memory {
    /// All memory charged now, including page cache and kernel memory, without swap.
    pub usage: Option<u64>,
    /// The maximum of `usage` so far.
    pub peak: Option<u64>,
    /// The hard limit of the task's own cgroup; `None` if it has none. A parent's limit may be lower.
    pub limit: Option<u64>,
    /// Anonymous memory: heaps, stacks, private copies.
    pub rss: Option<u64>,
    /// Page cache, including tmpfs and shared memory.
    pub cache: Option<u64>,
    /// The part of `cache` that is mapped into processes.
    pub mapped: Option<u64>,
    /// The part of `cache` that was not used recently and is reclaimed first. Many monitors call `usage` minus this
    /// value the working set.
    pub inactive_file: Option<u64>,
    /// Swap in use, without memory. `None` if the kernel does not account swap.
    pub swap: Option<u64>,
    /// The maximum of `swap` so far.
    pub swap_peak: Option<u64>,
    /// Kernel memory charged to the task: stacks, page tables, sockets, dentry and inode caches.
    pub kernel: Option<u64>,
    /// The maximum of `kernel` so far. v1 only.
    pub kernel_peak: Option<u64>,
    /// Number of page faults.
    pub faults: Option<u64>,
    /// Number of page faults that read from a device.
    pub major_faults: Option<u64>,
    /// How often the limit was reached and the kernel had to reclaim memory.
    pub limit_hits: Option<u64>,
    /// Number of OOM kills in the task, by any limit. v1: Linux 4.13, without nested cgroups.
    pub oom_kills: Option<u64>,
}

/// CPU time of all processes of a task since its start, including those that have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Cpu {
    /// Total CPU time.
    pub total: Option<Duration>,
    /// CPU time in user mode. On v1 the unit of this value and of `system` is 10 ms. The kernel splits the total by
    /// sampling, so both are less exact than `total`.
    pub user: Option<Duration>,
    /// CPU time in kernel mode.
    pub system: Option<Duration>,
    /// Number of enforcement periods of a bandwidth limit in which the task was runnable. In this and the next two
    /// fields, `None` means that the task is not in the cpu controller, and 0 that it has no such limit.
    pub periods: Option<u64>,
    /// Number of periods in which the limit was reached.
    pub throttled_periods: Option<u64>,
    /// Time for which the task was throttled, summed over all CPUs.
    pub throttled: Option<Duration>,
}

/// Number of processes and threads, as counted by the pids controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Pids {
    /// Current number of processes and threads.
    pub current: Option<u64>,
    /// The maximum of `current` so far.
    pub peak: Option<u64>,
    /// Maximum number allowed: [`Limits::pids_max`](crate::Limits::pids_max) plus one for the crate's init. `None` if
    /// there is no limit.
    pub limit: Option<u64>,
    /// How often the limit refused a fork or a new thread.
    pub limit_hits: Option<u64>,
}

/// I/O on one block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Io {
    /// The device's major number.
    pub major: u32,
    /// The device's minor number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Number of reads.
    pub reads: u64,
    /// Number of writes.
    pub writes: u64,
    /// Bytes discarded (`TRIM`).
    pub discarded_bytes: u64,
    /// Number of discards.
    pub discards: u64,
}

/// Pressure stall information (PSI) of the task, by resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Pressures {
    /// CPU, including throttling.
    pub cpu: Pressure,
    /// Memory: reclaim, swap-in, and reading reclaimed pages back.
    pub memory: Pressure,
    /// Block I/O.
    pub io: Pressure,
    /// Interrupts that take CPU time from the task. It has no `some`. Linux 6.1 with `CONFIG_IRQ_TIME_ACCOUNTING`.
    pub irq: Pressure,
}

/// Stalls on one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Pressure {
    /// Time in which at least one thread of the task was stalled.
    pub some: Option<Stall>,
    /// Time in which all non-idle threads were stalled at once. For the CPU since Linux 5.13.
    pub full: Option<Stall>,
}

/// Stalled time, as averages and as a total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Stall {
    /// Percent of the last 10 seconds, as a running average.
    pub avg10: f64,
    /// Percent of the last 60 seconds, as a running average.
    pub avg60: f64,
    /// Percent of the last 300 seconds, as a running average.
    pub avg300: f64,
    /// Total since the start of the task.
    pub total: Duration,
}

/// One process of a task, from `/proc/PID/stat` (`proc_pid_stat(5)`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Process {
    /// The process id, in the caller's PID namespace.
    pub pid: i32,
    /// The parent's process id; 0 if the parent is outside the caller's PID namespace.
    pub parent: i32,
    /// The name of the main thread, at most 15 bytes. The task can set it to anything.
    pub name: String,
    /// The state: `R` running, `S` sleeping, `D` uninterruptible wait, `T` stopped, `t` traced, `Z` zombie (not yet
    /// waited for), `I` idle kernel thread.
    pub state: char,
    /// Number of threads.
    pub threads: u64,
    /// CPU time in user mode, in steps of 10 ms.
    pub user: Duration,
    /// CPU time in kernel mode, in steps of 10 ms.
    pub system: Duration,
    /// Resident memory in bytes, including pages shared with other processes. The kernel updates it with some delay.
    pub rss: u64,
    /// Size of the address space in bytes.
    pub address_space: u64,
    /// Start time since boot (`CLOCK_BOOTTIME`), in steps of 10 ms. Together with `pid` it identifies a process.
    pub started: Duration,
}

impl Group {
    /// Reads the task's resource usage.
    ///
    /// This reads up to 20 files one after another, so the values of one sample are some microseconds apart. It takes
    /// between a tenth of a millisecond and a few milliseconds, because the kernel collects its counters from all CPUs.
    ///
    /// # Errors
    /// [`Error::Task`](crate::Error::Task) with the file that could not be read: out of descriptors, out of memory or
    /// permission denied. A missing file or a removed group is no error.
    pub fn stats(&self) -> Result<Stats> {
        read::stats(self)
    }

    /// The processes in the group that the caller can see. Reads one file for each process, one after another.
    ///
    /// Processes that end meanwhile are left out. So are processes that the `hidepid` option of the caller's `/proc`
    /// hides.
    ///
    /// # Errors
    /// [`Error::Task`](crate::Error::Task): `Unsupported` if the group has no unit cgroup to find its processes in;
    /// otherwise with the file that could not be read.
    pub fn processes(&self) -> Result<Vec<Process>> {
        read::processes(self)
    }
}
