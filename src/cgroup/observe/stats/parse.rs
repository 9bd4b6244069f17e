//! Parsers for the control files, and the choice of files for each value. Nothing is opened here: [`Files`] returns a
//! file's text.
//!
//! Kernels may add lines and keys anywhere. So every value is found by its key, and unknown text is ignored.

use std::collections::BTreeMap;
use std::time::Duration;

use procfs::process::Stat;

use super::{Cpu, Io, Memory, Pids, Pressure, Process, Stall};
use crate::cgroup::fs::field;
use crate::error::Result;

/// Returns the text of a file in one directory; `None` if the file does not exist.
pub(super) type Files<'a> = &'a dyn Fn(&str) -> Result<Option<String>>;

/// v1 shows "no limit" as the largest number of whole pages, just below 2^63.
const NO_LIMIT_V1: u64 = 1 << 62;

/// Reads the v2 memory controller.
pub(super) fn memory_v2(files: Files<'_>) -> Result<Memory> {
    let Some(usage) = files("memory.current")? else { return Ok(Memory::default()) };
    let one = |file: &str| Ok(files(file)?.as_deref().and_then(number));
    let stat = files("memory.stat")?.unwrap_or_default();
    let events = files("memory.events")?.unwrap_or_default();
    Ok(Memory {
        usage: number(&usage),
        peak: one("memory.peak")?,
        limit: one("memory.max")?,
        rss: field(&stat, "anon"),
        cache: field(&stat, "file"),
        mapped: field(&stat, "file_mapped"),
        inactive_file: field(&stat, "inactive_file"),
        swap: one("memory.swap.current")?,
        swap_peak: one("memory.swap.peak")?,
        kernel: field(&stat, "kernel"),
        kernel_peak: None,
        faults: field(&stat, "pgfault"),
        major_faults: field(&stat, "pgmajfault"),
        limit_hits: field(&events, "max"),
        oom_kills: field(&events, "oom_kill"),
    })
}

/// Reads the v1 memory controller. Its `memory.stat` has every value twice: for the cgroup alone, and (`total_*`)
/// including nested cgroups. The other files include nested cgroups, except for `oom_kill` in `memory.oom_control`.
pub(super) fn memory_v1(files: Files<'_>) -> Result<Memory> {
    let Some(usage) = files("memory.usage_in_bytes")? else { return Ok(Memory::default()) };
    let one = |file: &str| Ok(files(file)?.as_deref().and_then(number));
    let stat = files("memory.stat")?.unwrap_or_default();
    let control = files("memory.oom_control")?.unwrap_or_default();
    Ok(Memory {
        usage: number(&usage),
        peak: one("memory.max_usage_in_bytes")?,
        limit: one("memory.limit_in_bytes")?.filter(|limit| *limit < NO_LIMIT_V1),
        rss: field(&stat, "total_rss"),
        cache: field(&stat, "total_cache"),
        mapped: field(&stat, "total_mapped_file"),
        inactive_file: field(&stat, "total_inactive_file"),
        swap: field(&stat, "total_swap"),
        swap_peak: None,
        kernel: one("memory.kmem.usage_in_bytes")?,
        kernel_peak: one("memory.kmem.max_usage_in_bytes")?,
        faults: field(&stat, "total_pgfault"),
        major_faults: field(&stat, "total_pgmajfault"),
        limit_hits: one("memory.failcnt")?,
        oom_kills: field(&control, "oom_kill"),
    })
}

/// Reads `cpu.stat` of v2, which has CPU times even without the cpu controller.
pub(super) fn cpu_v2(files: Files<'_>) -> Result<Cpu> {
    let stat = files("cpu.stat")?.unwrap_or_default();
    let micros = |key| field(&stat, key).map(Duration::from_micros);
    Ok(Cpu {
        total: micros("usage_usec"),
        user: micros("user_usec"),
        system: micros("system_usec"),
        periods: field(&stat, "nr_periods"),
        throttled_periods: field(&stat, "nr_throttled"),
        throttled: micros("throttled_usec"),
    })
}

/// Reads the v1 cpuacct controller. `cpuacct.usage_user` and `cpuacct.usage_sys` are not used: they need not add up to
/// the total, and kernels before Linux 5.17 swap the two.
pub(super) fn cpuacct_v1(files: Files<'_>, hertz: u64) -> Result<Cpu> {
    let Some(usage) = files("cpuacct.usage")? else { return Ok(Cpu::default()) };
    let stat = files("cpuacct.stat")?.unwrap_or_default();
    let time = |key| field(&stat, key).and_then(|n| ticks(n, hertz));
    let total = number(&usage).map(Duration::from_nanos);
    Ok(Cpu { total, user: time("user"), system: time("system"), ..Cpu::default() })
}

/// Adds the throttling counters of the v1 cpu controller to `cpu`.
pub(super) fn throttling_v1(files: Files<'_>, cpu: Cpu) -> Result<Cpu> {
    let stat = files("cpu.stat")?.unwrap_or_default();
    Ok(Cpu {
        periods: field(&stat, "nr_periods"),
        throttled_periods: field(&stat, "nr_throttled"),
        throttled: field(&stat, "throttled_time").map(Duration::from_nanos),
        ..cpu
    })
}

/// Reads the pids controller, whose files have the same names in both versions.
pub(super) fn pids(files: Files<'_>) -> Result<Pids> {
    let Some(current) = files("pids.current")? else { return Ok(Pids::default()) };
    let one = |file: &str| Ok(files(file)?.as_deref().and_then(number));
    Ok(Pids {
        current: number(&current),
        peak: one("pids.peak")?,
        limit: one("pids.max")?,
        limit_hits: files("pids.events")?.and_then(|events| field(&events, "max")),
    })
}

/// Reads `io.stat` of v2: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`, plus keys that I/O policies add.
///
/// The line of a device without counters is only its name, and some kernels omit the newline after it. A device with an
/// unknown name is `(unknown)`.
pub(super) fn io_v2(files: Files<'_>) -> Result<Option<Vec<Io>>> {
    let Some(text) = files("io.stat")? else { return Ok(None) };
    let mut found: BTreeMap<(u32, u32), Io> = BTreeMap::new();
    for line in text.lines() {
        let mut at = None;
        for word in line.split_ascii_whitespace() {
            let Some((key, value)) = word.split_once('=') else {
                at = device(word);
                continue;
            };
            let (Some((major, minor)), Some(value)) = (at, number(value)) else { continue };
            let io = found.entry((major, minor)).or_insert(Io { major, minor, ..Io::default() });
            match key {
                "rbytes" => io.read_bytes = value,
                "wbytes" => io.written_bytes = value,
                "rios" => io.reads = value,
                "wios" => io.writes = value,
                "dbytes" => io.discarded_bytes = value,
                "dios" => io.discards = value,
                _ => {}
            }
        }
    }
    Ok(Some(found.into_values().filter(is_used).collect()))
}

/// Reads the v1 blkio controller: lines like `8:0 Read 4096`. `None` if all counts are zero: the kernel lists a device
/// without I/O and a device that it does not count in the same way, with zeros or not at all.
pub(super) fn io_v1(files: Files<'_>) -> Result<Option<Vec<Io>>> {
    let mut found: BTreeMap<(u32, u32), Io> = BTreeMap::new();
    for (file, is_bytes) in
        [("blkio.throttle.io_service_bytes_recursive", true), ("blkio.throttle.io_serviced_recursive", false)]
    {
        let text = files(file)?.unwrap_or_default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(at), Some(what), Some(value)) =
                (words.next().and_then(device), words.next(), words.next().and_then(number))
            else {
                continue;
            };
            let io = found.entry(at).or_insert(Io { major: at.0, minor: at.1, ..Io::default() });
            match (what, is_bytes) {
                ("Read", true) => io.read_bytes = value,
                ("Write", true) => io.written_bytes = value,
                ("Discard", true) => io.discarded_bytes = value,
                ("Read", false) => io.reads = value,
                ("Write", false) => io.writes = value,
                ("Discard", false) => io.discards = value,
                _ => {}
            }
        }
    }
    let used: Vec<Io> = found.into_values().filter(is_used).collect();
    Ok((!used.is_empty()).then_some(used))
}

fn is_used(io: &Io) -> bool {
    *io != Io { major: io.major, minor: io.minor, ..Io::default() }
}

/// Parses a `*.pressure` file: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and a line `full` of the same form.
pub(super) fn pressure(text: &str) -> Pressure {
    let stall = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        let value = |key| line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let percent = |key| value(key)?.parse().ok().filter(|percent: &f64| percent.is_finite());
        Some(Stall {
            avg10: percent("avg10")?,
            avg60: percent("avg60")?,
            avg300: percent("avg300")?,
            total: Duration::from_micros(number(value("total")?)?),
        })
    };
    Pressure { some: stall("some"), full: stall("full") }
}

/// Converts the fields of `/proc/PID/stat`.
pub(super) fn process(stat: Stat, hertz: u64, page: u64) -> Process {
    let time = |n| ticks(n, hertz).unwrap_or_default();
    Process {
        pid: stat.pid,
        parent: stat.ppid,
        name: stat.comm,
        state: stat.state,
        threads: stat.num_threads.try_into().unwrap_or_default(),
        user: time(stat.utime),
        system: time(stat.stime),
        rss: stat.rss.saturating_mul(page),
        address_space: stat.vsize,
        started: time(stat.starttime),
    }
}

/// A single number, with or without a newline; `None` for `max`.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// A device number such as `8:16`.
fn device(word: &str) -> Option<(u32, u32)> {
    let (major, minor) = word.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Converts `n` clock ticks; `hertz` is `sysconf(_SC_CLK_TCK)`.
fn ticks(n: u64, hertz: u64) -> Option<Duration> {
    let nanos = u128::from(n).checked_mul(1_000_000_000)?.checked_div(u128::from(hertz))?;
    Some(Duration::from_nanos(nanos.try_into().ok()?))
}
