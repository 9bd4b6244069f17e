//! Where a test has its sandboxes: temporary roots, exit records, and a parent cgroup that no other test has.

use std::os::fd::AsFd;
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

/// A temporary directory that can also be removed when a sandbox of an unprivileged user has written an overlay to it: the
/// kernel makes the overlay's work directory with mode 000.
pub struct Overlays(tempfile::TempDir);

impl Overlays {
    pub fn new() -> Overlays {
        Overlays(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Overlays {
    fn drop(&mut self) {
        let path = self.0.path();
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && let Ok(parent) = std::fs::File::open(parent)
            && let Err(left) = cofferdam::rootfs::remove_tree(parent.as_fd(), name)
        {
            eprintln!("{left}");
        }
    }
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
