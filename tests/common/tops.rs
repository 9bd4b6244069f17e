//! The cgroups below which the crate makes those of tasks.
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::path::PathBuf;

use cofferdam::Host;

/// The v2 cgroup below which this user may create cgroups, relative to the mount point.
pub fn top() -> String {
    let top = Host::probe().unwrap().cgroups.v2.and_then(|v2| v2.top).unwrap_or_default();
    top.trim_matches('/').to_owned()
}

/// The directories of all hierarchies in which cgroups are created.
pub fn tops() -> Vec<PathBuf> {
    let host = Host::probe().unwrap().cgroups;
    let v1: BTreeSet<PathBuf> = host.v1.into_values().map(|h| h.mount).collect();
    v1.into_iter().chain(host.v2.map(|v2| v2.mount.join(top()))).collect()
}
