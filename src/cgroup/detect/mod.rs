//! What this host offers: which hierarchies, which controllers, and where the caller may write.
//!
//! Here the files are read. `mounts` finds the hierarchies, `top` the place where the caller may make cgroups,
//! `judge` says what all of it amounts to, `controllers` puts it into a table, and `required` decides whether that is
//! enough. Only `top` ever makes anything: a cgroup, removed at once, below a cgroup that was delegated.

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
pub use required::Required;

/// The controllers without which no limit is set on cgroup v1.
pub const V1_REQUIRED: [&str; 4] = ["cpu", "cpuset", "freezer", "memory"];

/// The controllers without which no limit is set on cgroup v2.
pub const V2_REQUIRED: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// Which hierarchies are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Hierarchies with controllers of v1, and no v2 tree.
    V1,
    /// The unified tree alone.
    V2,
    /// Controllers of v1 beside a v2 tree, which may have some controllers too.
    Hybrid,
    /// Neither.
    Off,
}

/// One of the two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Version {
    /// A hierarchy for each controller, `Documentation/admin-guide/cgroup-v1/`.
    V1,
    /// The unified hierarchy, `Documentation/admin-guide/cgroup-v2.rst`.
    V2,
}

/// The v2 tree as the caller sees it. Cgroups are named as below [`mount`](Self::mount), which is `/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unified {
    /// The mount point.
    pub mount: PathBuf,
    /// The cgroup that the caller is in; `None` when it is not below the mount point.
    pub own: Option<String>,
    /// The highest cgroup, on the way up from [`own`](Self::own), below which the caller may make cgroups
    /// and start processes into them: `/` for root, the delegated cgroup for others, `None` without delegation.
    ///
    /// That a cgroup elsewhere belongs to the caller is not enough without root: to start a process in it the
    /// kernel asks for the right to write `cgroup.procs` of the common ancestor of both, and says `EACCES`.
    pub top: Option<String>,
    /// The controllers that cgroups below [`top`](Self::top) can have.
    pub controllers: BTreeSet<String>,
    /// Those of them that are already enabled in `top`'s `cgroup.subtree_control`.
    pub enabled: BTreeSet<String>,
    /// Why there is no `top`, or why it cannot hand down all the controllers that it has.
    pub why: Option<String>,
}

/// A hierarchy of cgroup v1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hierarchy {
    /// The mount point; controllers mounted together share it.
    pub mount: PathBuf,
    /// Whether the caller may make cgroups there; v1 cannot be delegated safely, so only root may.
    pub writable: bool,
}

/// What is known of swap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swap {
    /// Whether any is in use by the host now (`/proc/swaps`).
    pub active: bool,
    /// Whether the memory controller accounts it: v1 has `memory.memsw.limit_in_bytes`, v2 `memory.swap.max`.
    /// `None`: not known before a cgroup with a memory controller exists.
    pub accounted: Option<bool>,
}

/// What this host offers, and whether it is enough.
///
/// A plain value: [`Detection::probe`] fills it once, tests write it by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Detection {
    /// Which hierarchies there are.
    pub mode: Mode,
    /// The interface that limits are set through, when they can be: v1 where all of [`V1_REQUIRED`] are there.
    pub limits_on: Version,
    /// The v2 tree.
    pub v2: Option<Unified>,
    /// The hierarchies of v1, by controller.
    pub v1: BTreeMap<String, Hierarchy>,
    /// A row for each of [`CONTROLLERS`], in that order.
    pub controllers: Vec<Controller>,
    /// The set that `missing` and `reason` are about; see [`requiring`](Self::requiring).
    pub required: Required,
    /// The required controllers that are not there, sorted. One is enough to turn limits off.
    pub missing: Vec<String>,
    /// Why no limits can be set; `None` when they can.
    pub reason: Option<String>,
    /// The processors that a task can be given.
    pub online: CpuSet,
    /// Swap.
    pub swap: Swap,
}

impl Detection {
    /// Reads this host. Whatever cannot be read is taken as not there.
    ///
    /// Where the caller may make cgroups in one that was delegated to it (it is not the root of the whole tree), a
    /// cgroup is made there and removed at once, to know.
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

    /// What the texts of `/proc/self/mountinfo` and `/proc/self/cgroup` say by themselves: where the
    /// hierarchies are. Nothing is asked of the kernel, so nothing is known to be writable, and no limits can be set.
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

    /// Whether limits can be set, and if not why.
    ///
    /// # Errors
    /// The reason; it names the missing controllers, sorted.
    pub fn can_limit(&self) -> Result<(), &str> {
        self.reason.as_deref().map_or(Ok(()), Err)
    }

    /// The controllers that a task's cgroup can have, in both hierarchies, sorted.
    pub fn available(&self) -> BTreeSet<&str> {
        let v1 = self.v1.iter().filter(|(_, h)| h.writable).map(|(name, _)| name.as_str());
        v1.chain(self.v2.iter().flat_map(|v2| v2.controllers.iter().map(String::as_str))).collect()
    }
}

/// Whether swap is accounted: looked up where there is a cgroup with a memory controller.
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

/// The text of a kernel file; nothing if it cannot be read.
fn read(path: impl AsRef<Path>) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
