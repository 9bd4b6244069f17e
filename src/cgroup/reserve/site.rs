//! The directories in which the CPU reservations of a parent cgroup are recorded.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cgroup::detect::place::{in_hierarchy, in_tree};
use crate::cgroup::detect::{Detection, Hierarchy, Version};
use crate::cgroup::name::CgroupPath;

/// The two directories for leaves in the v2 tree.
pub(in crate::cgroup) const SHARE_V2: &str = "share.slice";
pub(in crate::cgroup) const RESERVE_V2: &str = "reserve.slice";

/// The paths of the CPU reservations below one parent cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Site {
    pub version: Version,
    /// The directory whose CPUs are divided. A lock on it protects the reservations.
    pub parent: PathBuf,
    /// v1: the directories below the mount point, down to `parent`, if the crate creates them itself. The last task in
    /// the shared cpuset removes them.
    pub own: Vec<PathBuf>,
    /// v1: the directory whose children are the tasks' unit cgroups, in which processes are found and killed.
    pub tasks: Option<PathBuf>,
}

impl Site {
    /// The site of `parent` on this host, or the reason why CPUs cannot be reserved.
    pub fn find(detection: &Detection, parent: &CgroupPath) -> Result<Site, String> {
        detection.can_limit()?;
        match detection.limits_on {
            Version::V2 => {
                let parent = in_tree(detection, parent)?.dir().to_owned();
                Ok(Site { version: Version::V2, parent, own: Vec::new(), tasks: None })
            }
            Version::V1 => Ok(Site::in_v1(detection, own_cpuset(detection)?, parent)),
        }
    }

    /// The site of `parent` in the cpuset hierarchy `cpuset` of v1.
    pub fn in_v1(detection: &Detection, cpuset: &Hierarchy, parent: &CgroupPath) -> Site {
        let tree = in_tree(detection, parent).ok().map(|tree| tree.dir().join(SHARE_V2));
        let freezer = || {
            let freezer = detection.v1.get("freezer").filter(|h| h.writable)?;
            in_hierarchy(freezer, parent).pop()
        };
        let tasks = tree.or_else(freezer);
        let levels = in_hierarchy(cpuset, parent);
        let dir = levels.last().unwrap_or(&cpuset.mount).clone();
        let own = if parent.is_default() { levels } else { Vec::new() };
        Site { version: Version::V1, parent: dir, own, tasks }
    }

    /// The cgroup that contains the tasks without a reservation.
    pub fn share(&self) -> PathBuf {
        self.parent.join(if self.version == Version::V2 { SHARE_V2 } else { "share" })
    }

    /// The directory of reservations. It exists while there is a reservation.
    pub fn reserve(&self) -> PathBuf {
        self.parent.join(if self.version == Version::V2 { RESERVE_V2 } else { "reserve" })
    }

    /// The file that lists the CPUs that the parent may use.
    pub fn effective(&self) -> PathBuf {
        let file =
            if self.version == Version::V2 { "cpuset.cpus.effective" } else { "cpuset.effective_cpus" };
        self.parent.join(file)
    }

    /// The name of the task whose cgroup is `leaf`.
    pub fn name(leaf: &Path) -> String {
        let name = leaf.file_name().unwrap_or_default().to_string_lossy();
        // Only the v2 tree adds the suffix `.scope`. In a v1 hierarchy it is part of the task's name.
        let slice = leaf.parent().and_then(Path::file_name);
        let in_tree = [SHARE_V2, RESERVE_V2].iter().any(|name| slice == Some(name.as_ref()));
        name.strip_suffix(".scope").filter(|_| in_tree).unwrap_or(&name).to_owned()
    }
}

/// The v1 cpuset hierarchy, if CPUs can be reserved in it, or the reason why not. The hierarchy must have no other
/// controller. Otherwise a task would need a cgroup of its own there for its limits, and so could not be in the shared
/// cpuset.
pub(in crate::cgroup) fn own_cpuset(detection: &Detection) -> Result<&Hierarchy, String> {
    let hierarchy = detection
        .v1
        .get("cpuset")
        .filter(|h| h.writable)
        .ok_or("the cpuset controller of cgroup v1 is not available")?;
    let beside = |(name, h): &(&String, &Hierarchy)| *name != "cpuset" && h.mount == hierarchy.mount;
    let others: Vec<&str> = detection.v1.iter().filter(beside).map(|(name, _)| name.as_str()).collect();
    if others.is_empty() {
        return Ok(hierarchy);
    }
    Err(format!(
        "other tasks may use these CPUs: cpuset is mounted together with {}, so CPUs cannot be reserved",
        others.join(", ")
    ))
}
