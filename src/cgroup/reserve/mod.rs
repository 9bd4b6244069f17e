//! CPU reservations: which CPUs each task has reserved, and the shared set that remains.
//!
//! The usable CPUs are divided among the tasks below one parent cgroup. [`Limits::cores`](super::Limits::cores)
//! reserves CPUs for a task. The task also runs on the unreserved CPUs, unless it is
//! [`exclusive`](super::Limits::exclusive). All other tasks run on the unreserved CPUs, the shared set.
//!
//! **Cost without reservations.** While no task has a reservation, a new task does not take the lock of the
//! reservations, and creates no directory for them. Its owner takes the owner lock on the task's cgroup. It then checks
//! once whether a directory of reservations exists, or a shared set that an earlier reservation has left.
//!
//! **The first reservation** creates the directory of reservations before it searches for tasks with an owner. So of
//! two tasks that start at the same time, at least one sees the other. The reservation then confines the running tasks
//! to the shared set: on v2 through `share.slice` above them, on v1 by moving their processes into the shared cpuset.
//! On v1 a process may enter a task's cgroups during that move. The owner of that task therefore checks again
//! afterwards, and moves the process.
//!
//! **The cgroup tree is the record.** On v2 the cgroup of a task with a reservation is
//! `<parent>/reserve.slice/<name>.scope`, and that of any other task is `<parent>/share.slice/<name>.scope`. In the
//! cpuset hierarchy of v1 the cgroup of a task with a reservation is `<parent>/reserve/<name>`. While one exists, all
//! other tasks are in `<parent>/share`. A cgroup with a reservation has the extended attribute `user.cofferdam.cores`
//! (Linux 5.7, in every hierarchy and for delegated users). The shared set is computed: the CPUs that the parent may
//! use, minus the CPUs in these attributes. There is no other record that a crash or a restart could make inconsistent,
//! and a reservation ends when its directory is removed.
//!
//! **An owner lock shows that a cgroup is in use.** The owner of a task holds a shared `flock(2)` on the task's cgroup.
//! A cgroup without that lock and without processes is stale. Its CPUs count as unreserved, and it is removed when
//! another task needs them.
//!
//! **Every change is made under a lock**, an exclusive `flock(2)` on the parent's directory. The holder rewrites the
//! control files to match the records, and so completes the changes of an interrupted process. CPUs are taken from the
//! shared set before the reservation's cgroup is created, and given back after it is removed. The lock is held for
//! microseconds. The first reservation on v1 holds it for some milliseconds for each process that it moves. It is never
//! held while waiting for processes to exit. Any process that may open the parent's directory can hold the lock too;
//! waiting for it fails after one minute.
//!
//! **Refused requests.** A reservation is refused if a CPU is already reserved (the error names the holder), or if it
//! would leave no CPU for a running task without a reservation. A task without a reservation is refused if no CPU is
//! unreserved.
//!
//! On v2 the first reservation enables the `cpuset` controller. `reserve.slice` has no `cpuset.cpus` of its own,
//! because the tasks in it use shared CPUs too.
//!
//! **A CPU that goes offline** stays reserved. Until it is back online, operations divide the remaining CPUs. v1
//! removes an offline CPU from every cpuset and does not add it again. Once online, the CPU is usable only after it is
//! written to the parent's `cpuset.cpus`.
//! If all CPUs of a task are offline, v1 also moves the task's processes to `reserve`. They stay there and run on any
//! CPU, and meanwhile no cgroup counts as stale.
//!
//! **Out of scope.** Reservations below other parents are not considered. CPUs are not chosen: a scheduler chooses them
//! with [`CpuReservations::read`]. NUMA nodes are not considered (`cpuset.mems` is the parent's). Kernel threads and
//! processes outside the parent run on any CPU.
//!
//! If the host cannot set limits, no CPUs can be reserved. If v1 mounts cpuset together with other controllers, a
//! reservation does not keep other tasks off its CPUs, and the report says so.

mod lock;
pub(super) mod locked;
mod op;
mod partition;
mod record;
mod site;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use super::detect::Detection;
use super::name::CgroupPath;
use super::set::CpuSet;
use crate::error::{Error, Result};
use crate::report::Control;
use crate::step::Kernel;

pub(super) use lock::{OwnerLock, hold_alone, hold_locked};
pub(crate) use op::JoinShare;
pub(super) use op::{Reserve, exchange, leave, look_again, own_again};
pub use partition::Partition;
pub(super) use record::Reserved;
pub(crate) use site::Site;
pub(super) use site::{RESERVE_V2, SHARE_V2, own_cpuset};

/// The CPU reservations below one parent cgroup: what a scheduler needs to know before it assigns more CPUs.
///
/// They are read from the live cgroups, so they stay correct after a restart and whatever other processes do. A
/// reservation lasts as long as its owner or any of its processes. Another task may reserve CPUs between this read and
/// a reservation; [`Group::create`](super::Group::create) then returns an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CpuReservations {
    /// The online CPUs that the parent cgroup may use.
    pub usable: CpuSet,
    /// The shared set: the usable CPUs that are not reserved.
    pub share: CpuSet,
    /// The tasks with a reservation, sorted by name.
    pub holders: Vec<CpuHolder>,
}

/// A task with reserved CPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CpuHolder {
    /// The task's name: its [`CgroupName`](super::CgroupName).
    pub name: String,
    /// The reserved CPUs, including those that are offline now.
    pub cores: CpuSet,
    /// Whether the task runs on its reserved CPUs only.
    pub exclusive: bool,
    /// Whether the task has processes. A task without processes has an owner that lives: it is about to start or has
    /// just ended.
    pub populated: bool,
}

impl CpuReservations {
    /// Reads the reservations below the parent cgroup `parent`, which is resolved as in [`lower`](super::lower). Holds
    /// the lock for a moment and writes nothing. A parent that does not exist has no reservations.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if this host cannot reserve CPUs. [`Error::Prepare`] with the call that was refused.
    pub fn read(detection: &Detection, parent: &CgroupPath) -> Result<CpuReservations> {
        let site = Site::find(detection, parent)
            .map_err(|reason| Error::Unsupported { control: Control::CPUSET, reason })?;
        match locked::Reservations::open(&Kernel::real(), &site)? {
            Some(locked) => locked.to_public(detection),
            None => {
                let usable = detection.online.clone();
                Ok(CpuReservations { share: usable.clone(), usable, holders: Vec::new() })
            }
        }
    }
}
