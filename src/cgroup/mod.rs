//! Control groups: the resource limits of a task, and the handle by which all of it is killed.
//!
//! A [`Group`] is one leaf per task, in each hierarchy that is needed and in no other: the cgroup v2
//! tree wherever there is one (for `CLONE_INTO_CGROUP`, `cgroup.kill` and the events), and on a host whose
//! controllers are still v1 one directory for each controller that was asked to limit or count something, the
//! devices controller's, and the processors that all tasks share. Processors may be reserved for one task; the rules are in `cores`, and
//! [`CoreBook`] tells a scheduler who has which.
//!
//! The room has the crate's usual doors. [`Detection`] is what this host offers, a plain value that tests
//! fake. [`lower`] turns [`Limits`] and a detection into a [`Layout`]: directories, writes, and what of the
//! limits will hold; it touches nothing. [`Group::create`] obeys a layout, and takes everything back when
//! the kernel refuses a step.
//!
//! Limits are all or nothing: when one of the controllers that every host should have is missing
//! ([`V1_REQUIRED`], [`V2_REQUIRED`], or all twelve: [`Required`]) no limit is set at all, because a task that is held by half of its
//! limits looks confined and is not. The report names the controllers. Killing does not depend on that, and neither
//! do [`devices`].
//!
//! What it does not do: it talks to no systemd, it never moves the caller or any process that it did not
//! start, it mounts nothing, and it does not write into a cgroup that it did not create, with three exceptions:
//! on v2 the controllers that are asked for are enabled in `cgroup.subtree_control` from the highest cgroup
//! that may be written down to the parent of the leaf; on v1 an operator's parent whose `cpuset.cpus` and
//! `cpuset.mems` are blank gets those of its own parent; and when processors are reserved or given back, `cpuset.cpus`
//! of the share and of the other reserved leaves below the same parent are rewritten, under a lock. Detection makes
//! a cgroup where it may write, and removes it.
//!
//! Reference: `cgroups(7)`, and the kernel's `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/`.

#![forbid(unsafe_code)]

mod cores;
pub mod devices;
mod env;
mod events;
mod freeze;
mod kill;
mod layout;
mod limits;
mod lower;
mod name;
mod oom;
mod place;
mod probe;
mod readback;
mod run;
mod set;
mod settings;
pub mod stats;
mod update;
mod weight;
mod write;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod live;
#[cfg(test)]
mod stubborn;

pub use cores::{CoreBook, Holder, Partition, Seat};
pub use env::LimitEnv;
pub use events::{Event, EventOptions, Events, PressureResource, PressureThreshold};
pub(crate) use freeze::Freezer;
pub use layout::{Dir, Kind, Layout, Need, Value, Write};
pub use limits::{CpuMax, IoMax, Limits, MEMORY_MIN, MemoryMax, PIDS_LIMIT, SwapMax};
pub use lower::{Request, lower};
pub use name::{CgroupName, CgroupPath};
pub use oom::{Oom, OomLimit};
pub use probe::{
    CONTROLLERS, Controller, Detection, Hierarchy, Mode, Required, Swap, Unified, V1_REQUIRED, V2_REQUIRED,
    Version, Where,
};
pub use run::{Group, Paths};
pub use set::CpuSet;
pub use stats::Stats;
pub use update::Updated;
pub use weight::{SHARES_MAX, SHARES_MIN, clamp_shares, shares_to_weight};
