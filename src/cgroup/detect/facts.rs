//! Facts that are read from a host, the input of [`judge`](super::judge::judge).

use std::collections::BTreeSet;

use super::mounts::Located;
use super::top::Top;

/// Facts about a host, mostly as unparsed text.
pub(super) struct Facts<'a> {
    pub root: bool,
    /// Whether `/proc/self/mountinfo` could be read.
    pub proc: bool,
    pub located: Located,
    pub proc_cgroups: &'a str,
    /// Text of `cgroup.controllers` at the v2 mount point.
    pub offered: &'a str,
    /// Whether the v2 mount point is not the root of the whole tree, because of a cgroup namespace or a mount of a
    /// subtree.
    pub part: bool,
    pub swaps: &'a str,
    pub online: &'a str,
    /// CPUs that the root of the cpuset hierarchy, or the highest manageable v2 cgroup, may use. Blank if unknown.
    pub usable: &'a str,
    pub top: Option<Top>,
    pub v1_writable: BTreeSet<String>,
    pub accounted: Option<bool>,
}
