//! What a task has used: memory, processors, processes, devices, and how long it was made to wait.
//!
//! A [`Stats`] is one sample, taken by [`Group::stats`] or [`Task::stats`](crate::Task::stats). It is plain data:
//! rates come from two samples ([`Stats::cpu_percent`]).
//!
//! What a kernel does not have, or a controller that the task is not in would know, is `None`. A task is in the
//! controllers that its [`Limits`](crate::Limits) need; on v2 also in those that another task in the same slice
//! needs. So a task without a memory limit may have no memory counters, unless
//! [`Limits::accounting`](crate::Limits::accounting) is set. The v2 tree counts processor time and stalls without any
//! controller.
//!
//! Where each number comes from:
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
//! On a hybrid host memory, processes and devices are counted by v1, where the task is in those controllers; time
//! and stalls come from the tree, whose clock is finer than that of `cpuacct.stat`.
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

/// One sample of what a task has used. See the [module](self) for the file that each number is from.
///
/// Nested cgroups that the task made are counted in. So is the crate's own init, which is one process
/// and little memory. Times are serialised as `{"secs": 1, "nanos": 5000000}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Stats {
    /// When the sample was taken, on the clock `CLOCK_MONOTONIC`: it is the same for all processes of a host (of a
    /// time namespace) and begins anew when that boots.
    pub taken: Duration,
    /// Memory.
    pub memory: Memory,
    /// Processor time.
    pub cpu: Cpu,
    /// Processes and threads.
    pub pids: Pids,
    /// What went to and came from block devices, for each of them that something did; `None` when that is not counted.
    ///
    /// What is written through the page cache is counted by v2 where the file system supports it (ext4, xfs, btrfs),
    /// and by v1 only when it is synchronous. v1 of today's kernels counts a device only while a `blkio.throttle`
    /// limit is set on it.
    pub io: Option<Vec<Io>>,
    /// Time in which the task could not run for want of something. v2 only, Linux 4.20 with `CONFIG_PSI`.
    pub pressure: Pressures,
}

impl Stats {
    /// The processor time that was used since an `earlier` sample of the same task, in percent of one processor: 250.0
    /// is two and a half processors. `None` when either sample has no processor time, or no time lies between
    /// them; so a first sample has none.
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
    /// Schedulers that count in MHz multiply with the clock of one processor: `percent / 100.0 * mhz`.
    pub fn cpu_percent(&self, earlier: &Stats) -> Option<f64> {
        let wall = self.taken.checked_sub(earlier.taken).filter(|wall| !wall.is_zero())?;
        let used = self.cpu.total?.checked_sub(earlier.cpu.total?)?;
        Some(used.as_secs_f64() / wall.as_secs_f64() * 100.0)
    }
}

/// Memory of a task, in bytes where nothing else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Memory {
    /// All that is charged now, page cache and kernel memory included, swap not.
    pub usage: Option<u64>,
    /// The most that `usage` ever was.
    pub peak: Option<u64>,
    /// The hard limit of the task's own cgroup; `None` when there is none. One of a parent may be lower.
    pub limit: Option<u64>,
    /// Anonymous memory: heaps, stacks, private copies.
    pub rss: Option<u64>,
    /// Page cache, tmpfs and shared memory included.
    pub cache: Option<u64>,
    /// What of the cache is mapped into a process.
    pub mapped: Option<u64>,
    /// What of the cache was not used lately, and is the first to be given up when memory is short. `usage` less
    /// this is what many monitors call the working set.
    pub inactive_file: Option<u64>,
    /// Swap in use, and nothing but swap. `None` when the kernel does not account it.
    pub swap: Option<u64>,
    /// The most that `swap` ever was.
    pub swap_peak: Option<u64>,
    /// Kernel memory on behalf of the task: stacks, page tables, sockets, caches of names and inodes.
    pub kernel: Option<u64>,
    /// The most that `kernel` ever was. v1 only.
    pub kernel_peak: Option<u64>,
    /// Number of page faults.
    pub faults: Option<u64>,
    /// Number of page faults that had to read from a device.
    pub major_faults: Option<u64>,
    /// How often the limit was reached, and memory had to be reclaimed before it went on.
    pub limit_hits: Option<u64>,
    /// Number of OOM kills in the task, by any limit. v1 since Linux 4.13.
    pub oom_kills: Option<u64>,
}

/// Processor time of a task, of all its processes since its start, those included that have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Cpu {
    /// All of it.
    pub total: Option<Duration>,
    /// What of it was spent in the program. v1 counts in steps of 10 ms, here and in `system`; the kernel apportions
    /// the total by samples, so the two are less exact than it.
    pub user: Option<Duration>,
    /// What of it was spent in the kernel.
    pub system: Option<Duration>,
    /// Number of periods in which a bandwidth limit was in force while the task wanted to run. `None` without the cpu
    /// controller, 0 without such a limit; likewise below.
    pub periods: Option<u64>,
    /// Number of those in which the limit was reached.
    pub throttled_periods: Option<u64>,
    /// Time that the task's processor queues stood still for that, summed over the processors.
    pub throttled: Option<Duration>,
}

/// Number of processes and threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Pids {
    /// How many there are.
    pub current: Option<u64>,
    /// The most that there ever were.
    pub peak: Option<u64>,
    /// How many there may be: [`Limits::pids_max`](crate::Limits::pids_max) and one for the crate's init. `None`
    /// when there is no limit.
    pub limit: Option<u64>,
    /// How often one more was refused because of it.
    pub limit_hits: Option<u64>,
}

/// What went to and came from one block device.
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

/// What the task had to wait for, by resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Pressures {
    /// A processor, throttling included.
    pub cpu: Pressure,
    /// Memory: reclaim, swapping in, reading back what was given up.
    pub memory: Pressure,
    /// Block devices.
    pub io: Pressure,
    /// Interrupts that took the processor away; it has no `some`. Needs `CONFIG_IRQ_TIME_ACCOUNTING`.
    pub irq: Pressure,
}

/// Stalls for want of one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Pressure {
    /// Time in which at least one thread of the task waited.
    pub some: Option<Stall>,
    /// Time in which all threads that were not idle waited at once. For the cpu since Linux 5.13.
    pub full: Option<Stall>,
}

/// Shares of time, and time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Stall {
    /// Percent of the last 10 seconds.
    pub avg10: f64,
    /// Percent of the last 60 seconds.
    pub avg60: f64,
    /// Percent of the last 300 seconds.
    pub avg300: f64,
    /// All of it since the start of the task.
    pub total: Duration,
}

/// One process of a task, from `/proc/PID/stat` (`proc_pid_stat(5)`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Process {
    /// Its id, as the caller's PID namespace numbers it.
    pub pid: i32,
    /// Its parent's; 0 when the caller cannot see that.
    pub parent: i32,
    /// The name of its main thread, at most 15 bytes, which the task may set to what it likes.
    pub name: String,
    /// `R` running, `S` sleeping, `D` in a wait that signals do not end, `T` stopped, `t` traced, `Z` ended and not
    /// yet waited for, `I` an idle kernel thread.
    pub state: char,
    /// Number of its threads.
    pub threads: u64,
    /// Processor time in the program, in steps of 10 ms.
    pub user: Duration,
    /// Processor time in the kernel, in steps of 10 ms.
    pub system: Duration,
    /// Bytes of memory in use, pages that it shares with others included; a little behind.
    pub rss: u64,
    /// Bytes of address space.
    pub address_space: u64,
    /// When it was started, since boot (`CLOCK_BOOTTIME`), in steps of 10 ms. With `pid` it identifies a process.
    pub started: Duration,
}

impl Group {
    /// What the task has used so far.
    ///
    /// Up to 20 files are read, one after another, so the numbers of one sample are some microseconds apart. That takes
    /// a tenth of a millisecond or a few: the kernel gathers its counters from all processors.
    ///
    /// # Errors
    /// [`Error::Task`](crate::Error::Task) with the file that could not be read, for want of descriptors or memory, or
    /// because it is not permitted. A file that is not there, or a group that was removed, is no error.
    pub fn stats(&self) -> Result<Stats> {
        read::stats(self)
    }

    /// The processes in the group that the caller can see, as they are while they are looked at. One file is read
    /// for each.
    ///
    /// Left out is who ends meanwhile, and who is hidden from the caller by `hidepid` of its `/proc`.
    ///
    /// # Errors
    /// [`Error::Task`](crate::Error::Task): `Unsupported` if the group has no cgroup to find them in, else with
    /// the file that could not be read.
    pub fn processes(&self) -> Result<Vec<Process>> {
        read::processes(self)
    }
}
