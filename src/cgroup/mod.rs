//! Control groups: the resource limits of a task, and the cgroups through which all of its processes are killed.
//!
//! Most callers need only [`Limits`] in a spec, and [`Task::update`](crate::Task::update),
//! [`stats`](crate::Task::stats), [`events`](crate::Task::events) and [`oom`](crate::Task::oom) of the task. The other
//! items are for drivers that manage cgroups themselves.
//!
//! ```no_run
//! use cofferdam::{CpuMax, Limits, Sandbox, SwapMax};
//!
//! let limits = Limits {
//!     memory: Some(512 << 20),
//!     swap: SwapMax::Bytes(64 << 20),
//!     cpu_max: Some(CpuMax::new(200_000)), // two CPUs
//!     pids_max: Some(128),
//!     ..Limits::default()
//! };
//! let task = Sandbox::command("make").limits(limits).spawn()?;
//! println!("{}: peak {:?} bytes", task.wait()?, task.stats()?.memory.peak);
//! # Ok::<(), cofferdam::Error>(())
//! ```
//!
//! A [`Group`] holds the cgroups of one task: one leaf in each hierarchy that the task needs. On a host with a cgroup
//! v2 tree there is always a leaf in that tree, for `CLONE_INTO_CGROUP`, `cgroup.kill` and events. On a host whose
//! controllers are on v1 there is also one directory for each controller that limits or counts something, or that holds
//! the device list. CPUs may be reserved for one task: `reserve` has the rules, and [`CpuReservations`] lists for a
//! scheduler which task has reserved which CPUs.
//!
//! [`Detection`] describes what this host offers. It is a plain value. [`lower`](lower())
//! turns [`Limits`] and a detection into [`Cgroups`], the steps of one task, and adds to a report which limits will
//! hold. It changes nothing on the host. [`Group::create`] runs the steps, and undoes them when the kernel refuses one.
//!
//! The modules are layers. Each one uses only those before it: `fs` (files and directories), `detect`, `limits` (one
//! table per version: limit, file, value), `reserve` (CPUs) and `devices`, `group` (make, enter, kill, freeze, update),
//! `observe` (stats, events, oom), `layout` (the builder of the steps) and `lower`. `v1` has the code of each layer
//! that only v1 needs.
//!
//! Limits are all or nothing. If a required controller is missing, no limit is set at all, because a task with half of
//! its limits looks confined and is not. The operator chooses the required controllers ([`RequiredControllers`]): by
//! default [`V1_REQUIRED`] or [`V2_REQUIRED`]. The report names the missing controllers. Killing and [`devices`] do not
//! depend on the required controllers.
//!
//! This module does not use systemd and mounts nothing. It never moves the caller, or a process that is not in a task's
//! cgroup. On v1 the first reservation moves the processes of the tasks below the same parent into the shared cpuset.
//! The module does not write into a cgroup that it did not create, with three exceptions:
//!
//! - On v2 it enables the requested controllers in `cgroup.subtree_control`, from the highest writable cgroup down to
//!   the parent of the leaf.
//! - On v1, if `cpuset.cpus` or `cpuset.mems` of an operator's parent cgroup is blank, it copies the value of that
//!   cgroup's own parent.
//! - When CPUs are reserved or released, it rewrites `cpuset.cpus` of the shared set and of the other reservations
//!   below the same parent, under a lock.
//!
//! In a delegated v2 cgroup, detection makes a cgroup and removes it at once.
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
    CONTROLLERS, Controller, Detection, Hierarchy, Mode, RequiredControllers, Swap, Unified, V1_REQUIRED,
    V2_REQUIRED, Version, Where,
};
pub(crate) use fs::is_own;
pub(crate) use group::freeze::Freezer;
pub(crate) use group::{CgroupOp, KeptParents};
pub use group::{Cgroups, Group, Paths};
pub use layout::Request;
pub use limits::env::LimitEnv;
pub use limits::weight::{SHARES_MAX, SHARES_MIN, clamp_shares, shares_to_weight};
pub use limits::{CpuMax, IoMax, Limits, MEMORY_MIN, MemoryMax, PIDS_LIMIT, SwapMax};
pub use lower::lower;
pub use name::{CgroupName, CgroupPath};
pub use observe::events::{Event, EventOptions, Events, PressureResource, PressureThreshold};
pub(crate) use observe::events::{Life, Subject};
pub use observe::oom::{Oom, OomLimit};
pub use observe::stats;
pub use observe::stats::Stats;
pub(crate) use reserve::JoinShare;
pub use reserve::{CpuHolder, CpuReservations, Partition};
pub use set::CpuSet;
