//! Detection of the host's cgroup hierarchies, their controllers, and where the caller may write.
//!
//! This file reads the kernel's files. `mounts` finds the hierarchies, and `top` the cgroup in which the caller may
//! make others. `judge` draws conclusions from both, `controllers` fills the table of controllers, and `required`
//! decides whether limits can be set. Only `top` changes anything on the host: it makes a cgroup below a delegated one,
//! and removes it at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};
use serde::{Deserialize, Serialize};

use self::facts::Facts;
use self::judge::judge;
use self::mounts::{Located, locate};
use self::top::{Top, writable};
use super::name::levels;
use super::set::CpuSet;
use crate::report::Control;

mod controllers;
mod facts;
mod judge;
mod mounts;
pub(super) mod place;
mod required;
mod top;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;

pub use controllers::{CONTROLLERS, Controller, Where};
pub use required::RequiredControllers;

/// Controllers that must be usable on cgroup v1; without any one of them no limit is set.
pub const V1_REQUIRED: [&str; 4] = ["cpu", "cpuset", "freezer", "memory"];

/// Controllers that must be usable on cgroup v2; without any one of them no limit is set.
pub const V2_REQUIRED: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// Which hierarchies are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Mode {
    /// Hierarchies with v1 controllers, and no v2 tree.
    V1,
    /// Only the v2 tree (the unified hierarchy).
    V2,
    /// Hierarchies with v1 controllers and a v2 tree, which may have some controllers too.
    Hybrid,
    /// Neither v1 controllers nor a v2 tree.
    Off,
}

/// Version of the cgroup interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Version {
    /// One hierarchy per controller: `Documentation/admin-guide/cgroup-v1/`.
    V1,
    /// The unified hierarchy: `Documentation/admin-guide/cgroup-v2.rst`.
    V2,
}

/// The v2 tree as the caller sees it. Cgroups are named by paths in which `/` is the cgroup at
/// [`mount`](Self::mount).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Unified {
    /// Mount point of the tree.
    pub mount: PathBuf,
    /// The cgroup that the caller is in. `None` if it is not below the mount point.
    pub own: Option<String>,
    /// The highest cgroup, from [`own`](Self::own) upwards, below which the caller may make cgroups and start processes
    /// in them. It is `/` for root and the delegated cgroup for other users. `None` without delegation.
    ///
    /// For a caller without root privileges, owning another cgroup is not enough. To start a process there, the kernel
    /// requires write access to `cgroup.procs` of the common ancestor of that cgroup and [`own`](Self::own). Otherwise
    /// it fails with `EACCES`.
    pub top: Option<String>,
    /// Controllers that cgroups below [`top`](Self::top) can have.
    pub controllers: BTreeSet<String>,
    /// Those of `controllers` that are already enabled in `cgroup.subtree_control` of `top`.
    pub enabled: BTreeSet<String>,
    /// Why there is no `top`, or why `top` cannot enable all of the controllers that it has.
    pub why: Option<String>,
}

/// A cgroup v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Hierarchy {
    /// Mount point. Controllers that are mounted together have the same one.
    pub mount: PathBuf,
    /// Whether the caller may make cgroups in it. Only root may, because v1 cannot be delegated safely.
    pub writable: bool,
}

/// State of swap on this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Swap {
    /// Whether the host has an active swap area (`/proc/swaps`).
    pub active: bool,
    /// Whether the memory controller accounts swap: v1 has `memory.memsw.limit_in_bytes`, v2 `memory.swap.max`. `None`
    /// if unknown, because no cgroup with a memory controller exists yet.
    pub accounted: Option<bool>,
}

/// What this host offers, and whether limits can be set on it.
///
/// This is a plain value: [`Detection::probe`] fills it once, and tests write it by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Detection {
    /// Which hierarchies are mounted.
    pub mode: Mode,
    /// The version that limits are set through, if they can be set. It is v1 if all of [`V1_REQUIRED`] are mounted
    /// there, or if some are and v2 lacks one of [`V2_REQUIRED`]. With [`RequiredControllers::Asked`] it is the version
    /// that lacks fewer of the controllers of the limits asked for; if both lack the same number, that of the first rule.
    pub limits_on: Version,
    /// The v2 tree, if one is mounted.
    pub v2: Option<Unified>,
    /// The v1 hierarchies by controller.
    pub v1: BTreeMap<String, Hierarchy>,
    /// One row for each of [`CONTROLLERS`], in that order.
    pub controllers: Vec<Controller>,
    /// The set of required controllers that `missing` and `reason` refer to; see [`requiring`](Self::requiring).
    pub required: RequiredControllers,
    /// The controls that the limits ask for. They matter only if `required` is [`RequiredControllers::Asked`].
    pub asked: Control,
    /// The required controllers that are missing, sorted. A single one prevents all limits.
    pub missing: Vec<String>,
    /// Why no limits can be set. `None` if they can.
    pub reason: Option<String>,
    /// The CPUs that a task can use.
    pub online: CpuSet,
    /// State of swap.
    pub swap: Swap,
}

impl Detection {
    /// Detects what this host offers. A file that cannot be read counts as absent.
    ///
    /// If the highest cgroup that the caller may manage is delegated, that is, not the root of the whole tree, this
    /// makes a cgroup in it and removes it at once. Permissions alone do not tell whether that works.
    pub fn probe() -> Detection {
        let mountinfo = read("/proc/self/mountinfo");
        let root = nix::unistd::geteuid().is_root();
        let mut located = locate(&mountinfo, &read("/proc/self/cgroup"));
        located.v2.take_if(|m| !is_fs(&m.path, CGROUP2_SUPER_MAGIC));
        located.v1.retain(|_, m| is_fs(&m.path, CGROUP_SUPER_MAGIC));
        let v2 = located.v2.as_ref();
        let top = v2.and_then(|m| Top::find(&m.path, located.own.as_deref(), root));
        let offered = v2.map(|m| read(m.path.join("cgroup.controllers"))).unwrap_or_default();
        let usable = match located.v1.get("cpuset") {
            Some(m) => read(m.path.join("cpuset.effective_cpus")),
            None => top.as_ref().map(|t| read(t.dir.join("cpuset.cpus.effective"))).unwrap_or_default(),
        };
        let v1_writable =
            located.v1.iter().filter(|(_, m)| writable(&m.path)).map(|(name, _)| name.clone()).collect();
        let accounted = swap_accounted(&located, top.as_ref());
        judge(&Facts {
            root,
            proc: !mountinfo.is_empty(),
            proc_cgroups: &read("/proc/cgroups"),
            offered: &offered,
            part: v2.is_some_and(|m| m.path.join("cgroup.events").exists()),
            swaps: &read("/proc/swaps"),
            online: &read("/sys/devices/system/cpu/online"),
            usable: &usable,
            located,
            top,
            v1_writable,
            accounted,
        })
    }

    /// Returns a detection from the texts of `/proc/self/mountinfo` and `/proc/self/cgroup` alone. It shows where the
    /// hierarchies are. No system call is made, so every hierarchy counts as not writable, and no limits can be set.
    ///
    /// ```
    /// # use cofferdam::cgroup::{Detection, Mode};
    /// let mounts = "26 22 0:23 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    /// let found = Detection::parse(mounts, "0::/init.scope\n");
    /// assert_eq!((found.mode, found.v2.unwrap().own.as_deref()), (Mode::V2, Some("/init.scope")));
    /// ```
    pub fn parse(mountinfo: &str, self_cgroup: &str) -> Detection {
        judge(&Facts {
            root: false,
            proc: !mountinfo.is_empty(),
            located: locate(mountinfo, self_cgroup),
            proc_cgroups: "",
            offered: "",
            part: false,
            swaps: "",
            online: "",
            usable: "",
            top: None,
            v1_writable: BTreeSet::new(),
            accounted: None,
        })
    }

    /// Whether limits can be set.
    ///
    /// # Errors
    /// The reason why not. It names the missing controllers, sorted.
    pub fn can_limit(&self) -> Result<(), &str> {
        self.reason.as_deref().map_or(Ok(()), Err)
    }

    /// The controllers that a task's cgroups can have, on v1 and v2 together, sorted.
    pub fn available(&self) -> BTreeSet<&str> {
        let v1 = self.v1.iter().filter(|(_, h)| h.writable).map(|(name, _)| name.as_str());
        v1.chain(self.v2.iter().flat_map(|v2| v2.controllers.iter().map(String::as_str))).collect()
    }
}

/// Whether the memory controller accounts swap. On v2 this looks for a cgroup with a memory controller: the caller's
/// own, or a child of `top`.
fn swap_accounted(located: &Located, top: Option<&Top>) -> Option<bool> {
    if let Some(memory) = located.v1.get("memory") {
        return Some(memory.path.join("memory.memsw.limit_in_bytes").exists());
    }
    if !Path::new("/proc/swaps").exists() {
        return Some(false);
    }
    let own = located.v2.as_ref().zip(located.own.as_deref());
    let own = own.and_then(|(v2, own)| levels(&v2.path, own).pop());
    let children = top.and_then(|top| fs::read_dir(&top.dir).ok()).into_iter().flatten();
    let children = children.filter_map(|entry| Some(entry.ok()?.path()));
    own.into_iter()
        .chain(children)
        .find(|dir| dir.join("memory.max").exists())
        .map(|dir| dir.join("memory.swap.max").exists())
}

fn is_fs(path: &Path, magic: FsType) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == magic)
}

/// Reads a kernel file. The text is empty if the file cannot be read.
fn read(path: impl AsRef<Path>) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
