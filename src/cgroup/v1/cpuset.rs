//! The shared cpuset of v1: one cgroup for all tasks without a reservation, which exists while any task has one.
//!
//! On v2 a task is below the shared cpuset from its start. On v1 a task enters no cpuset while no CPU is reserved, and
//! the first reservation moves the processes of the running tasks. For each moved process the kernel waits for an RCU
//! grace period, some milliseconds. So the first process of a task that starts later enters the shared cpuset itself.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::cgroup::fs::{call, existing, inherit, make_parent, open_dir, pids, write};
use crate::cgroup::reserve::Site;
use crate::cgroup::reserve::locked::{Division, Reservations};
use crate::error::{Error, Result};
use crate::report::{Control, Reason};
use crate::step::Kernel;

/// The maximum number of passes over the tasks. Each pass moves the processes that were forked during the last one.
const PASSES: u32 = 1000;

/// Creates the shared cpuset, if it does not exist, and gives it the unreserved CPUs. `files` are the cpuset files of
/// its parents that must have a value first.
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

/// Moves the processes of all tasks without a reservation into the shared cpuset, until none is outside. Returns a
/// reason if some cannot be moved: the kernel lists a process outside of the caller's PID namespace as 0.
///
/// # Errors
/// [`Error::Prepare`] with the call; `TimedOut` if processes fork faster than they are moved.
pub(in crate::cgroup) fn move_tasks(
    kernel: &Kernel,
    locked: &Reservations<'_>,
    division: &Division,
) -> Result<Option<Reason>> {
    // A plan cannot know which tasks will be running.
    if kernel.records() {
        return Ok(None);
    }
    let mut made = false;
    for _ in 0..PASSES {
        let tasks = locked.sharing(division)?;
        if tasks.is_empty() {
            return Ok(None);
        }
        if !made {
            make_share(kernel, locked, division, &[])?;
            made = true;
        }
        let file = locked.site.share().join("cgroup.procs");
        let inside: HashSet<i32> = processes(&locked.site.share())?.into_iter().collect();
        let (mut outside, mut hidden) = (Vec::new(), None);
        for task in tasks {
            let (visible, others): (Vec<i32>, Vec<i32>) =
                processes(&task)?.into_iter().partition(|pid| *pid > 0);
            outside.extend(visible.into_iter().filter(|pid| !inside.contains(pid)));
            hidden = hidden.or((!others.is_empty()).then_some(task));
        }
        if outside.is_empty() {
            return Ok(hidden.map(|task| {
                let why = format!(
                    "processes of {:?} are in a PID namespace that is not visible to the caller: they may run on the reserved CPUs",
                    Site::name(&task)
                );
                Reason { control: Control::CPUSET, why }
            }));
        }
        for pid in outside {
            match write(kernel, &file, &pid.to_string()) {
                // The process has exited.
                Err(Error::Prepare { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => {}
                moved => moved?,
            }
        }
    }
    let step = call::open_write(&locked.site.share().join("cgroup.procs"));
    Err(Error::Prepare { step, source: io::ErrorKind::TimedOut.into() })
}

/// The processes in a cgroup and below it. Empty if the cgroup does not exist.
fn processes(dir: &Path) -> Result<Vec<i32>> {
    let list = || -> io::Result<Vec<i32>> {
        let Some(dir) = existing(open_dir(dir))? else { return Ok(Vec::new()) };
        let found = existing(pids(dir.as_fd()))?.unwrap_or_default();
        Ok(found.into_iter().map(nix::unistd::Pid::as_raw).collect())
    };
    list().map_err(Error::prepare(call::open_dir(dir)))
}
