//! The shared cpuset of v1: the one cgroup of all tasks without a reservation, while any task has one.
//!
//! On v2 a task is below the shared cpuset from its birth. On v1 it enters no cpuset while no processor is reserved.
//! The first reservation moves the tasks that run. That waits for every processor to pass a quiet state, some
//! milliseconds, so a task that is born later enters by itself.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::cgroup::fs::{call, existing, inherit, make_parent, open_dir, pids, write};
use crate::cgroup::reserve::locked::{Division, Reservations};
use crate::error::{Error, Result};
use crate::step::Kernel;

/// Passes over the tasks, at most: each finds the processes that were forked meanwhile.
const PASSES: u32 = 1000;

/// Makes the shared cpuset, if it does not exist, and gives it the unreserved processors. `files` are those of its
/// parents that must have a value first.
///
/// # Errors
/// [`Error::Prepare`] with the call.
pub(in crate::cgroup) fn make_share(
    kernel: &Kernel,
    locked: &Reservations<'_>,
    division: &Division,
    files: &[PathBuf],
) -> Result<()> {
    files.iter().try_for_each(|file| inherit(kernel, file))?;
    let share = locked.site.share();
    make_parent(kernel, &share)?;
    inherit(kernel, &share.join("cpuset.mems"))?;
    let usable = if division.exists { division.usable.clone() } else { locked.usable(kernel)? };
    locked.write_cpusets(kernel, &Division { usable, ..division.clone() })
}

/// Moves the processes of all tasks without a reservation into the shared cpuset, until none is left outside.
///
/// # Errors
/// [`Error::Prepare`] with the call; `TimedOut` if processes are forked faster than they are moved.
pub(in crate::cgroup) fn move_tasks(
    kernel: &Kernel,
    locked: &Reservations<'_>,
    division: &Division,
) -> Result<()> {
    // Which tasks run is not known when a plan is made.
    if kernel.records() {
        return Ok(());
    }
    let mut made = false;
    for _ in 0..PASSES {
        let tasks = locked.sharing(division)?;
        if tasks.is_empty() {
            return Ok(());
        }
        if !made {
            make_share(kernel, locked, division, &[])?;
            made = true;
        }
        let file = locked.site.share().join("cgroup.procs");
        let inside: HashSet<i32> = processes(&locked.site.share())?.into_iter().collect();
        let mut outside = Vec::new();
        for task in tasks {
            outside.extend(processes(&task)?.into_iter().filter(|pid| *pid > 0 && !inside.contains(pid)));
        }
        if outside.is_empty() {
            return Ok(());
        }
        for pid in outside {
            match write(kernel, &file, &pid.to_string()) {
                // It has ended.
                Err(Error::Prepare { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => {}
                moved => moved?,
            }
        }
    }
    let step = call::open_write(&locked.site.share().join("cgroup.procs"));
    Err(Error::Prepare { step, source: io::ErrorKind::TimedOut.into() })
}

/// The processes in a cgroup and below; none if it does not exist.
fn processes(dir: &Path) -> Result<Vec<i32>> {
    let list = || -> io::Result<Vec<i32>> {
        let Some(dir) = existing(open_dir(dir))? else { return Ok(Vec::new()) };
        let found = existing(pids(dir.as_fd()))?.unwrap_or_default();
        Ok(found.into_iter().map(nix::unistd::Pid::as_raw).collect())
    };
    list().map_err(Error::prepare(call::open_dir(dir)))
}
