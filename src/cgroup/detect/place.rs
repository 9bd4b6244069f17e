//! Directories of a task's cgroups, from the highest manageable cgroup down to the leaf's parent.

use std::path::{Path, PathBuf};

use super::{Detection, Hierarchy, Unified};
use crate::cgroup::name::{CgroupPath, levels};

/// Parents of the tasks' cgroups if the operator names none.
const OWN_PARENT_V2: &str = "cofferdam.slice";
const OWN_PARENT_V1: &str = "cofferdam";

/// A parent cgroup in the v2 tree.
pub(in crate::cgroup) struct TreeParent<'a> {
    pub v2: &'a Unified,
    /// The highest cgroup that the caller may manage.
    pub top: PathBuf,
    /// The cgroups below `top`, down to the parent.
    pub levels: Vec<PathBuf>,
}

impl TreeParent<'_> {
    /// Directory of the parent.
    pub fn dir(&self) -> &Path {
        self.levels.last().unwrap_or(&self.top)
    }
}

/// Finds `parent` in the v2 tree. The error says why it cannot be used.
pub(in crate::cgroup) fn in_tree<'a>(
    detection: &'a Detection,
    parent: &CgroupPath,
) -> Result<TreeParent<'a>, String> {
    let v2 = detection.v2.as_ref().ok_or("cgroup v2 is not mounted")?;
    let Some(name) = &v2.top else {
        return Err(v2.why.clone().unwrap_or_else(|| "no cgroup is delegated".to_owned()));
    };
    let top = levels(&v2.mount, name).pop().unwrap_or_else(|| v2.mount.clone());
    if parent.is_default() {
        let levels = levels(&top, OWN_PARENT_V2);
        return Ok(TreeParent { v2, top, levels });
    }
    let all = levels(&v2.mount, parent.as_ref());
    if !all.last().is_some_and(|parent| parent.starts_with(&top)) {
        return Err(format!(
            "cgroup /{parent} is not delegated: it is not below {name}, the highest cgroup that is writable"
        ));
    }
    let levels = all.into_iter().filter(|dir| *dir != top && dir.starts_with(&top)).collect();
    Ok(TreeParent { v2, top, levels })
}

/// The directories below the mount point of a v1 hierarchy, down to `parent`.
pub(in crate::cgroup) fn in_hierarchy(hierarchy: &Hierarchy, parent: &CgroupPath) -> Vec<PathBuf> {
    levels(&hierarchy.mount, if parent.is_default() { OWN_PARENT_V1 } else { parent.as_ref() })
}
