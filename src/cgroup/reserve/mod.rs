//! CPU reservations: which processors each task has reserved, and the shared set that remains.
//!
//! The usable processors are divided among the tasks below one parent cgroup. A task with
//! [`Limits::cores`](super::Limits::cores) has those reserved. It also runs on the unreserved ones, unless it is
//! [`exclusive`](super::Limits::exclusive). All other tasks run on the unreserved ones, the shared set.
//!
//! **Without a reservation nothing is made, locked or searched.** A task that reserves none looks once whether the
//! directory of reservations exists, or a shared set that was written before. It holds its owner lock then. The first
//! reservation makes that directory before it looks for tasks with an owner, so one of the two sees the other. Then it
//! narrows the tasks that run: on v2 by the shared set above them, on v1 by moving their processes into it. On v1 a
//! process that was being born meanwhile is moved when the task looks again after the birth.
//!
//! **The cgroup tree is the record.** On v2 tasks live in `<parent>/share.slice/<name>.scope`, and those with a
//! reservation in `<parent>/reserve.slice/<name>.scope`. In the cpuset hierarchy of v1 a reservation is
//! `<parent>/reserve/<name>`, and while there is any, all other tasks are in `<parent>/share`. A cgroup with a
//! reservation has the extended attribute `user.cofferdam.cores` (Linux 5.7, in every hierarchy and for delegated
//! users). The shared set is what the parent may use, without what these attributes say. So a crash or a restart leaves
//! nothing that could disagree with the tree, and a reservation ends with its directory.
//!
//! **An owner lock shows that a cgroup is in use.** The owner of a task holds a shared `flock(2)` on the task's
//! cgroup. A cgroup without that lock and without processes is stale. It is removed when another task needs its
//! processors, and its processors count as unreserved before that.
//!
//! **Every change is made under a lock**, an exclusive `flock(2)` on the parent's directory. Its holder makes the files
//! agree with the records, whatever an interrupted process has left. Processors are taken from the shared set, and from
//! the tasks that use it, before the reservation's cgroup exists, and are given back after it is removed. The lock is
//! held for microseconds, by the first reservation of v1 for some milliseconds a process that it moves, and never while
//! processes are waited for. A process that may open the parent's directory can also hold the lock; after a minute that
//! is an error.
//!
//! **Refused** are a processor that is reserved already, with the name of its holder; a reservation that would leave
//! none for a running task without one; and such a task when none is left.
//!
//! On v2 the `cpuset` controller is enabled with the first reservation. `reserve.slice` has no `cpuset.cpus` of its
//! own, since the tasks in it use shared processors too.
//!
//! **A processor that goes offline** stays reserved. Operations divide what is left until it is back. v1 removes it
//! from every cpuset for good: it is back when the parent's `cpuset.cpus` is written. v1 also moves the processes of a
//! task that has no processor left to `reserve`, where they stay and run on any; while there are such processes no
//! cgroup counts as stale.
//!
//! Not done: reservations below other parents are unknown; no processors are chosen ([`CpuReservations::read`] is for a
//! scheduler that chooses); NUMA nodes are not considered (`cpuset.mems` is the parent's). Kernel threads and
//! processes outside of the parent run on any processor.
//!
//! Where no limits can be set there are no reservations. Where v1 has cpuset mounted together with other controllers, a
//! reservation does not keep other tasks off, and the report says so.

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

pub(super) use lock::{OwnerLock, hold_locked};
pub(crate) use op::JoinShare;
pub(super) use op::{Reserve, exchange, leave, look_again, own_again};
pub use partition::Partition;
pub(super) use record::Reserved;
pub(crate) use site::Site;
pub(super) use site::{RESERVE_V2, SHARE_V2, own_cpuset};

/// The reservations below one parent cgroup: what a scheduler must know before it gives out more.
///
/// They are read from the live cgroups, so they are right after a restart and whatever other processes do: a
/// reservation lasts as long as its owner or any of its processes. A task can come between reading and reserving;
/// [`Group::create`](super::Group::create) refuses then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuReservations {
    /// The processors that the parent cgroup may use and that are online.
    pub usable: CpuSet,
    /// The unreserved ones.
    pub share: CpuSet,
    /// The tasks that have the others, by name.
    pub holders: Vec<CpuHolder>,
}

/// A task with reserved processors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuHolder {
    /// The task's name, as its [`CgroupName`](super::CgroupName) was.
    pub name: String,
    /// What is reserved, with those that are offline now.
    pub cores: CpuSet,
    /// Whether the task runs on these only.
    pub exclusive: bool,
    /// Whether it has processes. A task without any is about to start or has just ended: its owner lives.
    pub populated: bool,
}

impl CpuReservations {
    /// Reads the reservations below the parent cgroup `parent`, as [`lower`](super::lower) finds it. Nothing is
    /// written; the lock is taken for a moment. A parent that does not exist has none.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there can be none. [`Error::Prepare`] with the call that was refused.
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
