//! Where a task's cgroups go: the directories from the highest that may be managed down to the leaf's parent.

use std::path::{Path, PathBuf};

use super::{Detection, Hierarchy, Unified};
use crate::cgroup::name::{CgroupPath, levels};

/// The crate's own parents.
const OWN_PARENT_V2: &str = "cofferdam.slice";
const OWN_PARENT_V1: &str = "cofferdam";

/// A parent cgroup in the v2 tree.
pub(in crate::cgroup) struct TreeParent<'a> {
    pub v2: &'a Unified,
    /// The highest cgroup that may be managed.
    pub top: PathBuf,
    /// Everything below it down to the parent.
    pub levels: Vec<PathBuf>,
}

impl TreeParent<'_> {
    /// The parent's directory.
    pub fn dir(&self) -> &Path {
        self.levels.last().unwrap_or(&self.top)
    }
}

/// Finds `parent` in the v2 tree, or why it cannot be used.
pub(in crate::cgroup) fn in_tree<'a>(
    detection: &'a Detection,
    parent: &CgroupPath,
) -> Result<TreeParent<'a>, String> {
    let v2 = detection.v2.as_ref().ok_or("there is no cgroup v2 tree")?;
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
        return Err(format!("cgroup /{parent} is not below {name}, the highest that may be written"));
    }
    let levels = all.into_iter().filter(|dir| *dir != top && dir.starts_with(&top)).collect();
    Ok(TreeParent { v2, top, levels })
}

/// Everything below the mount point of a v1 hierarchy down to `parent`.
pub(in crate::cgroup) fn in_hierarchy(hierarchy: &Hierarchy, parent: &CgroupPath) -> Vec<PathBuf> {
    levels(&hierarchy.mount, if parent.is_default() { OWN_PARENT_V1 } else { parent.as_ref() })
}
