//! What is read of a host, before anything is concluded from it.

use std::collections::BTreeSet;

use super::mounts::Located;
use super::top::Top;

/// The facts.
pub(super) struct Facts<'a> {
    pub root: bool,
    /// Whether `/proc/self/mountinfo` could be read.
    pub proc: bool,
    pub located: Located,
    pub proc_cgroups: &'a str,
    /// The text of `cgroup.controllers` at the v2 mount point.
    pub offered: &'a str,
    /// Whether the mount point is not the root of the whole tree: a cgroup namespace's, or a part that is mounted.
    pub part: bool,
    pub swaps: &'a str,
    pub online: &'a str,
    /// The processors that the hierarchy's root or the delegated cgroup may use; blank when unknown.
    pub usable: &'a str,
    pub top: Option<Top>,
    pub v1_writable: BTreeSet<String>,
    pub accounted: Option<bool>,
}
