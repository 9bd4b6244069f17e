//! Where a test has its sandboxes: temporary roots, exit records, and a parent cgroup that no other test has.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use cofferdam::cgroup::CgroupPath;
use cofferdam::{Host, Policy};

/// A directory with the places `temp` and `state`, which other users may enter.
pub fn dirs() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["temp", "state"] {
        std::fs::DirBuilder::new().mode(0o711).create(dir.path().join(name)).unwrap();
    }
    dir
}

/// The policy of the drivers that share these places.
pub fn policy(dir: &Path) -> Policy {
    Policy {
        cgroup_parent: CgroupPath::new(&parent(dir)).unwrap(),
        temp_dir: Some(dir.join("temp")),
        state_dir: Some(dir.join("state")),
        ..Policy::default()
    }
}

/// The parent cgroup, in every hierarchy.
pub fn cgroups(dir: &Path) -> Vec<PathBuf> {
    let host = Host::probe().unwrap().cgroups;
    let mounts = host.v1.values().map(|v1| &v1.mount).chain(host.v2.as_ref().map(|v2| &v2.mount));
    mounts.map(|mount| mount.join(parent(dir))).collect()
}

/// What is in a directory.
pub fn below(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The name of the parent cgroup.
pub fn parent(dir: &Path) -> String {
    format!("cofferdam-places-{}", dir.file_name().unwrap().to_str().unwrap().trim_start_matches('.'))
}
