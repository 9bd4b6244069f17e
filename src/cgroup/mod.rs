//! Control groups: the resource limits of a task, and the handle by which all of it is killed.
//!
//! A [`Group`] is one leaf per task, in each hierarchy that is needed and in no other: the cgroup v2
//! tree wherever there is one (for `CLONE_INTO_CGROUP`, `cgroup.kill` and the events), and on a host whose
//! controllers are still v1 one directory for each controller that was asked to limit or count something, the
//! devices controller's. Processors may be reserved for one task; the rules are in `reserve`, and
//! [`CpuReservations`] shows a scheduler which tasks have which.
//!
//! [`Detection`] is what this host offers, a plain value that tests fake. [`lower`] turns [`Limits`] and a detection
//! into [`Cgroups`], the steps of one task, and adds to a report what of the limits will hold; it touches nothing.
//! [`Group::create`] carries the steps out, and undoes them when the kernel refuses one.
//!
//! The modules are layers, each of which knows only those below it: `fs` (files and directories), `detect`, `limits`
//! (one table a version: limit, file, value), `reserve` (processors) and `devices`, `group` (make, enter, kill, freeze,
//! update), `observe` (stats, events, oom) and `lower`. `v1` has what only v1 needs.
//!
//! Limits are all or nothing: when one of the controllers that every host should have is missing
//! ([`V1_REQUIRED`], [`V2_REQUIRED`], or all twelve: [`Required`]) no limit is set at all, because a task that is held
//! by half of its limits looks confined and is not. The report names the controllers. Killing does not depend on that,
//! and neither do [`devices`].
//!
//! What it does not do: it does not use systemd, it mounts nothing, it never moves the caller, and it moves no process
//! that is not in a task's cgroup. On v1 the first reservation moves the processes of the tasks below the same parent
//! into the shared cpuset. It does not write into a cgroup that it did not create, with three exceptions. On v2 the
//! controllers that are asked for are enabled in `cgroup.subtree_control` from the highest cgroup that may be written
//! down to the parent of the leaf. On v1 an operator's parent whose `cpuset.cpus` and `cpuset.mems` are blank gets those
//! of its own parent. When processors are reserved or given back, `cpuset.cpus` of the shared set and of the other
//! reservations below the same parent are rewritten, under a lock. Detection makes a cgroup where it may write, and
//! removes it.
//!
//! Reference: `cgroups(7)`, and the kernel's `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/`.

#![forbid(unsafe_code)]

mod detect;
pub mod devices;
mod fs;
mod group;
mod layout;
mod limits;
mod lower;
mod name;
mod observe;
mod reserve;
mod set;
mod v1;

#[cfg(test)]
mod tests;

pub use detect::{
    CONTROLLERS, Controller, Detection, Hierarchy, Mode, Required, Swap, Unified, V1_REQUIRED, V2_REQUIRED,
    Version, Where,
};
pub(crate) use group::CgroupOp;
pub(crate) use group::freeze::Freezer;
pub use group::{Cgroups, Group, Paths};
pub use layout::Request;
pub use limits::env::LimitEnv;
pub use limits::weight::{SHARES_MAX, SHARES_MIN, clamp_shares, shares_to_weight};
pub use limits::{CpuMax, IoMax, Limits, MEMORY_MIN, MemoryMax, PIDS_LIMIT, SwapMax};
pub use lower::lower;
pub use name::{CgroupName, CgroupPath};
pub use observe::events::{Event, EventOptions, Events, PressureResource, PressureThreshold};
pub use observe::oom::{Oom, OomLimit};
pub use observe::stats;
pub use observe::stats::Stats;
pub(crate) use reserve::JoinShare;
pub use reserve::{CpuHolder, CpuReservations, Partition};
pub use set::CpuSet;
