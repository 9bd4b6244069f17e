//! The book of reserved processors: which task has which for itself, and what is left for all others.
//!
//! Below one parent cgroup the usable processors are divided. A task with
//! [`Limits::cores`](super::Limits::cores) has them for itself, and runs on the unreserved ones as well unless
//! it is [`exclusive`](super::Limits::exclusive). All others run on what is unreserved, the share.
//!
//! **The tree is the book.** On v2 tasks live in `<parent>/share.slice/<name>.scope` and
//! `<parent>/reserve.slice/<name>.scope`; in the cpuset hierarchy of v1 in `<parent>/share`, all in that one
//! cgroup, and in `<parent>/reserve/<name>`. A cgroup with reserved processors has a record of them, the extended
//! attribute `user.cofferdam.cores` of its directory (Linux 5.7, in every hierarchy and for delegated users). The
//! share is always what the parent may use less what the records say. So there is nothing that
//! could disagree with the tree after a crash or a restart, and a reservation ends with its directory. An owner that
//! lives holds a shared lock on the directory. One without that lock and without processes was left behind, and is
//! removed when somebody needs what it holds; it is counted as unreserved before that.
//!
//! **Every change is made under a lock**, `flock(2)` on the parent's directory, whose holder makes the files say
//! what the records say, whoever was interrupted before. Processors are taken from the share, and from those
//! who use it, before the new cgroup is there, and are given back after the old one has gone: no task runs on
//! a processor that another one has for itself, at no time. The lock is held for some microseconds, and
//! never while processes are waited for. Who may open the parent's directory can also hold the lock; after 5
//! seconds that is an error.
//!
//! **What is refused**: a processor that is reserved already, by the name of its holder; a reservation that would
//! leave nothing for a task without one; and such a task when nothing is left.
//!
//! On v2 `cpuset` is enabled with the first reservation and not before. `reserve.slice` has no `cpuset.cpus`
//! of its own, since what is in it needs shared processors too.
//!
//! **A processor that goes offline** stays reserved; what is divided is what is left, with the next operation and
//! until it is back. v1 takes it from every cpuset, for good: it is back when the parent's `cpuset.cpus` is written,
//! or made anew because the last task ended. And v1 moves the processes of a task that has no processor left to
//! `reserve`, where they stay and run on anyone's; as long as there are any nothing counts as left behind.
//!
//! What it does not do: it knows of one parent only, and not of what is given out below another one; it chooses
//! no processors ([`CoreBook::read`] is for who does); it does not look at NUMA nodes (`cpuset.mems` is the
//! parent's). Kernel threads and processes outside of the parent run where they like.
//!
//! Where no limits can be set there is no book, and neither where v1 has cpuset mounted together with other
//! controllers: there a reservation does not keep others off, and is reported as weakened.

mod admit;
mod book;
mod files;
mod partition;
mod text;

#[cfg(test)]
mod live;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::layout::{Dir, Write};
use super::lower::{own_cpuset, tree_parents, v1_parents};
use super::name::CgroupPath;
use super::probe::{Detection, Version};
use super::set::CpuSet;
use crate::error::{Error, Result};
use crate::report::Control;

pub(super) use admit::{Pin, admit, exchange, leave};
pub use partition::Partition;

/// Who has which processors below one parent cgroup: what a scheduler must know before it gives out more.
///
/// Rebuilt from the live cgroups, so it is right after a restart and whatever other processes do: a reservation lasts
/// as long as its owner or any of its processes. A task can
/// come between reading and reserving; [`Group::create`](super::Group::create) refuses then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreBook {
    /// What there is to divide: the processors that the parent cgroup may use and that are online.
    pub usable: CpuSet,
    /// What is unreserved.
    pub share: CpuSet,
    /// Who has the others, by name.
    pub holders: Vec<Holder>,
}

/// A task that has processors for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The task's name, as its [`CgroupName`](super::CgroupName) was.
    pub name: String,
    /// What was reserved, those included that are offline now.
    pub cores: CpuSet,
    /// Whether the task runs on these only.
    pub exclusive: bool,
    /// Whether it has processes. One without is about to start or has just ended: its owner lives.
    pub populated: bool,
}

impl CoreBook {
    /// Reads the book of the parent cgroup `parent`, as [`lower`](super::lower) finds it. Nothing is
    /// written; the lock is taken for a moment. A parent that is not there has nothing reserved.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there is no book. [`Error::Prepare`] with the call that was refused.
    pub fn read(detection: &Detection, parent: &CgroupPath) -> Result<CoreBook> {
        let site = Site::find(detection, parent)
            .map_err(|reason| Error::Unsupported { control: Control::CPUSET, reason })?;
        match book::Book::open(&site)? {
            Some(book) => book.told(detection),
            None => {
                let usable = detection.online.clone();
                Ok(CoreBook { share: usable.clone(), usable, holders: Vec::new() })
            }
        }
    }
}

/// Where a book is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Site {
    pub version: Version,
    /// The directory that it divides the processors of, and whose lock guards it.
    pub parent: PathBuf,
}

impl Site {
    /// The book of `parent` on this host, or why there is none.
    fn find(detection: &Detection, parent: &CgroupPath) -> Result<Site, String> {
        detection.gate()?;
        let version = detection.limits_on;
        let (top, parents) = match version {
            Version::V2 => {
                let (_, top, parents) = tree_parents(detection, parent)?;
                (top, parents)
            }
            Version::V1 => {
                let hierarchy = own_cpuset(detection)?;
                (hierarchy.mount.clone(), v1_parents(hierarchy, parent))
            }
        };
        Ok(Site { version, parent: parents.last().unwrap_or(&top).clone() })
    }

    /// Where tasks without reserved processors are.
    pub fn share(&self) -> PathBuf {
        self.parent.join(if self.version == Version::V2 { SHARE_V2 } else { "share" })
    }

    /// Below which the others have their cgroups.
    pub fn reserve(&self) -> PathBuf {
        self.parent.join(if self.version == Version::V2 { RESERVE_V2 } else { "reserve" })
    }

    /// The file that says which processors a cgroup has in the end.
    fn effective(&self) -> PathBuf {
        let file =
            if self.version == Version::V2 { "cpuset.cpus.effective" } else { "cpuset.effective_cpus" };
        self.parent.join(file)
    }
}

/// The parents of leaves in the v2 tree.
pub(super) const SHARE_V2: &str = "share.slice";
pub(super) const RESERVE_V2: &str = "reserve.slice";

/// A task's seat: what is made for it under the lock of the book.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Seat {
    #[serde(flatten)]
    pub(super) site: Site,
    /// The directories down to the book's own, made before it is locked.
    pub(super) parents: Vec<Dir>,
    /// v2: in whose `cgroup.subtree_control` cpuset must be, the highest first.
    pub(super) enable: Vec<PathBuf>,
    /// v1: what the parents must have before anything may enter them.
    pub(super) inherit: Vec<Write>,
    /// The directory of the task; on v1 only if it has reserved processors.
    pub(super) leaf: Option<PathBuf>,
    /// What is reserved for it.
    pub(super) reserved: Option<Reserved>,
}

/// A reservation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Reserved {
    pub cores: CpuSet,
    pub exclusive: bool,
}

impl Seat {
    /// The cgroup of the cpuset hierarchy that a task of v1 enters.
    pub(super) fn place(&self) -> PathBuf {
        self.leaf.clone().unwrap_or_else(|| self.site.share())
    }
}
