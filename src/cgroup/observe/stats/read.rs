//! Finds and opens the files with a task's counters, and passes their text to the parsers.

use std::collections::BTreeSet;
use std::io;

use nix::fcntl::OFlag;
use nix::time::{ClockId, clock_gettime};
use procfs::process::Stat;
use procfs::{FromRead, ProcError};

use super::{Cpu, Io, Memory, Pids, Pressure, Pressures, Process, Stats, parse};
use crate::cgroup::fs::{Dir, call};
use crate::cgroup::group::Group;
use crate::error::{Error, Result};

pub(super) fn stats(group: &Group) -> Result<Stats> {
    let taken =
        clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(Error::task("clock_gettime(CLOCK_MONOTONIC)"))?;
    // Read right after the clock, because a rate divides the CPU time by it.
    let cpu = cpu(group)?;
    Ok(Stats {
        taken: taken.into(),
        memory: memory(group)?,
        cpu,
        pids: pids(group)?,
        io: devices(group)?,
        pressure: pressures(group)?,
    })
}

fn memory(group: &Group) -> Result<Memory> {
    match home(group, "memory", "memory.usage_in_bytes")? {
        Some(place) => parse::memory_v1(&|file| text(place, file)),
        None => parse::memory_v2(&|file| in_tree(group, file)),
    }
}

/// Prefers the CPU times of the v2 tree: it has them for every task, in microseconds.
fn cpu(group: &Group) -> Result<Cpu> {
    let mut cpu = parse::cpu_v2(&|file| in_tree(group, file))?;
    if cpu.total.is_none()
        && let Some(place) = home(group, "cpuacct", "cpuacct.usage")?
    {
        cpu = parse::cpuacct_v1(&|file| text(place, file), procfs::ticks_per_second())?;
    }
    if cpu.periods.is_none()
        && let Some(place) = home(group, "cpu", "cpu.stat")?
    {
        cpu = parse::throttling_v1(&|file| text(place, file), cpu)?;
    }
    Ok(cpu)
}

fn pids(group: &Group) -> Result<Pids> {
    match home(group, "pids", "pids.current")? {
        Some(place) => parse::pids(&|file| text(place, file)),
        None => parse::pids(&|file| in_tree(group, file)),
    }
}

fn devices(group: &Group) -> Result<Option<Vec<Io>>> {
    match home(group, "blkio", "blkio.throttle.io_serviced_recursive")? {
        Some(place) => parse::io_v1(&|file| text(place, file)),
        None => parse::io_v2(&|file| in_tree(group, file)),
    }
}

fn pressures(group: &Group) -> Result<Pressures> {
    let one = |file| -> Result<Pressure> {
        Ok(in_tree(group, file)?.map(|text| parse::pressure(&text)).unwrap_or_default())
    };
    Ok(Pressures {
        cpu: one("cpu.pressure")?,
        memory: one("memory.pressure")?,
        io: one("io.pressure")?,
        irq: one("irq.pressure")?,
    })
}

/// The task's directory with a v1 controller, found by testing for `file`. This is the controller's own directory, or
/// that of a controller that it is mounted together with.
fn home<'a>(group: &'a Group, controller: &str, file: &str) -> Result<Option<Dir<'a>>> {
    for place in group.v1(controller).into_iter().chain(group.v1_dirs()) {
        match place.open(file, OFlag::O_RDONLY) {
            Ok(_) => return Ok(Some(place)),
            Err(e) if is_absent(&e) => {}
            Err(e) => return Err(unread(place, file)(e)),
        }
    }
    Ok(None)
}

fn in_tree(group: &Group, file: &str) -> Result<Option<String>> {
    group.tree().map_or(Ok(None), |place| text(place, file))
}

/// The text of a file; `None` if the file does not exist.
fn text(place: Dir<'_>, file: &str) -> Result<Option<String>> {
    match place.read(file) {
        Ok(text) => Ok(Some(text)),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(unread(place, file)(e)),
    }
}

fn unread(place: Dir<'_>, file: &str) -> impl FnOnce(io::Error) -> Error {
    Error::task(call::open_read(&place.path().join(file)))
}

/// Whether the file does not exist in this kernel, its controller is not in use, the group was removed, or
/// (`EOPNOTSUPP`) PSI is off.
fn is_absent(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP))
}

pub(super) fn processes(group: &Group) -> Result<Vec<Process>> {
    let list = || group.pids().map_err(Error::task("openat(cgroup.procs)"));
    let (hertz, page) = (procfs::ticks_per_second(), procfs::page_size());
    let mut found = Vec::new();
    for pid in list()?.into_iter().filter(|pid| *pid > 0) {
        if let Some(stat) = look(pid)? {
            found.push(parse::process(stat, hertz, page));
        }
    }
    // The kernel may have reused a PID for a process outside the group, which this second list does not contain.
    let listed: BTreeSet<i32> = list()?.into_iter().collect();
    found.retain(|process| listed.contains(&process.pid));
    Ok(found)
}

/// The parsed `/proc/PID/stat`; `None` if the process has ended or is hidden.
fn look(pid: i32) -> Result<Option<Stat>> {
    let path = format!("/proc/{pid}/stat");
    let refused = |e: io::Error| Err(Error::task(call::open_read(path.as_ref()))(e));
    match Stat::from_file(&path) {
        Ok(stat) => Ok(Some(stat)),
        Err(ProcError::NotFound(_) | ProcError::PermissionDenied(_)) => Ok(None),
        Err(ProcError::Io(e, _)) if e.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(ProcError::Io(e, _)) => refused(e),
        Err(e) => refused(io::Error::new(io::ErrorKind::InvalidData, e.to_string())),
    }
}
