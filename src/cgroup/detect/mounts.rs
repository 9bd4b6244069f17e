//! Mount points of the cgroup hierarchies, from the texts of `/proc/self/mountinfo` and `/proc/self/cgroup`.
//!
//! No path is assumed: hierarchies are found by file system type, wherever they are mounted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::sys::mountinfo::Mount;

/// A visible mount of a cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    pub path: PathBuf,
    /// The directory of the hierarchy that is mounted, as a path in the caller's cgroup namespace.
    pub root: String,
    pub read_only: bool,
}

/// Mounts of the hierarchies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Located {
    pub v2: Option<Mounted>,
    /// The caller's v2 cgroup, as a path in which `/` is the cgroup at the mount point. `None` if it is not below the
    /// mount point.
    pub own: Option<String>,
    /// v1 controllers by name. Controllers that are mounted together have the same path.
    pub v1: BTreeMap<String, Mounted>,
}

/// Parses `/proc/self/mountinfo` and `/proc/self/cgroup` (`proc(5)`, `cgroups(7)`). If a hierarchy has several mounts,
/// takes the first that shows all of it, else the first.
pub(super) fn locate(mountinfo: &str, self_cgroup: &str) -> Located {
    let mounts: Vec<Mount> = mountinfo.lines().filter_map(|line| Mount::parse(line.as_bytes())).collect();
    let visible = |kind: &'static str| {
        let all = &mounts;
        all.iter().filter(move |m| m.fs_type == kind && !is_hidden(m, all)).map(|m| (m, mounted(m)))
    };
    let mut found = Located::default();
    for (_, here) in visible("cgroup2") {
        if found.v2.as_ref().is_none_or(|known| known.root != "/" && here.root == "/") {
            found.v2 = Some(here);
        }
    }
    let controllers = v1_controllers(self_cgroup);
    for (mount, here) in visible("cgroup") {
        for name in mount.super_options.iter().filter(|option| controllers.contains(option.as_str())) {
            let known = found.v1.get(name.as_str());
            if known.is_none_or(|known| known.root != "/" && here.root == "/") {
                found.v1.insert(name.clone(), here.clone());
            }
        }
    }
    found.own = found.v2.as_ref().and_then(|v2| relative(&v2.root, v2_path(self_cgroup)?));
    found
}

/// The controllers that are bound to v1 hierarchies: the second field of lines such as `4:cpu,cpuacct:/`.
fn v1_controllers(self_cgroup: &str) -> BTreeSet<&str> {
    let lists = self_cgroup.lines().filter_map(|line| line.split(':').nth(1));
    lists.flat_map(|list| list.split(',')).filter(|name| !name.is_empty() && !name.contains('=')).collect()
}

/// The caller's v2 cgroup: the path of the line `0::/path`.
fn v2_path(self_cgroup: &str) -> Option<&str> {
    self_cgroup
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(|path| path.trim_end_matches(" (deleted)"))
}

/// `path` relative to `root`, the mounted directory. Both are named as in the same cgroup namespace. `None` if `path`
/// is not below `root`.
fn relative(root: &str, path: &str) -> Option<String> {
    if path.split('/').any(|part| part == "..") {
        return None;
    }
    let below = if root == "/" { path } else { path.strip_prefix(root)? };
    match below {
        "" => Some("/".to_owned()),
        _ => below.starts_with('/').then(|| below.to_owned()),
    }
}

/// Whether another mount hides this one, because it covers this mount point or a directory above it.
///
/// There are two cases. A mount may be stacked on this one: it has the same mount point, and this mount is its parent.
/// Or a sibling (a mount with the same parent) of this mount or of one of its ancestors may cover it: the sibling's
/// mount point is that of this mount or ancestor, or a directory above it.
///
/// Mounts that are stacked on an ancestor are covered by the second case. Such a mount is the next ancestor on the path
/// down to this mount, and hides nothing, or it is a sibling of that next ancestor.
fn is_hidden(this: &Mount, all: &[Mount]) -> bool {
    let on_top = |other: &Mount| other.parent == this.id && other.id != this.id && other.point == this.point;
    if all.iter().any(on_top) {
        return true;
    }
    let beside = |mount: &Mount, other: &Mount| {
        // A mount that is stacked on the process's root hides nothing: path lookups start at the root below it.
        let beside = other.id != mount.id && other.parent == mount.parent && other.point.parent().is_some();
        beside && mount.point.starts_with(&other.point)
    };
    let mut at = Some(this);
    // A mount has fewer ancestors than there are mounts. The bound ends the loop if a forged text has a cycle.
    for _ in all {
        let Some(mount) = at else { return false };
        let up = all.iter().find(|e| e.id == mount.parent && e.id != mount.id);
        let is_root = up.is_none() && !std::ptr::eq(mount, this);
        if !is_root && all.iter().any(|e| beside(mount, e)) {
            return true;
        }
        at = up;
    }
    false
}

fn mounted(mount: &Mount) -> Mounted {
    let root = mount.root.to_string_lossy().into_owned();
    Mounted { path: mount.point.clone(), root, read_only: mount.read_only }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::*;

    fn mounted(path: &str) -> Mounted {
        Mounted { path: path.into(), root: "/".into(), read_only: false }
    }

    #[test]
    fn hybrid_host_has_v1_hierarchies_and_a_v2_tree() {
        let found = locate(HYBRID_MOUNTS, HYBRID_SELF);
        assert_eq!(found.v2, Some(mounted("/sys/fs/cgroup/unified")));
        assert_eq!(found.own.as_deref(), Some("/"));
        let names: Vec<&str> = found.v1.keys().map(String::as_str).collect();
        assert_eq!(names, ["blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids"]);
        assert_eq!(found.v1.get("memory"), Some(&mounted("/sys/fs/cgroup/memory")));
    }

    #[test]
    fn co_mounted_controllers_have_one_path() {
        let found = locate(V1_MOUNTS, V1_SELF);
        assert_eq!(found.v2, None);
        assert_eq!(found.own, None);
        assert_eq!(found.v1.get("cpu"), Some(&mounted("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(found.v1.get("cpuacct"), found.v1.get("cpu"));
        assert!(!found.v1.contains_key("name=systemd"));
    }

    #[test]
    fn mount_point_with_an_escaped_blank_is_decoded() {
        let text = "50 20 0:40 / /mnt/my\\040groups rw - cgroup2 none rw,nsdelegate\n";
        let found = locate(text, "0::/a.slice/b.scope\n");
        assert_eq!(found.v2, Some(mounted("/mnt/my groups")));
        assert_eq!(found.own.as_deref(), Some("/a.slice/b.scope"));
    }

    #[test]
    fn own_cgroup_is_relative_to_the_mounted_directory() {
        let text = "50 20 0:40 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let found = locate(text, "0::/docker/abc/init\n");
        assert_eq!(found.own.as_deref(), Some("/init"));
        assert!(found.v2.unwrap().read_only);
        assert_eq!(locate(text, "0::/docker/abcd\n").own, None);
        assert_eq!(locate(text, "0::/docker/abc\n").own.as_deref(), Some("/"));
        let outside = "50 20 0:40 /.. /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        assert_eq!(locate(outside, "0::/\n").own, None);
        assert_eq!(locate(CGROUPNS_MOUNTS, "0::/../x\n").own, None);
    }

    #[test]
    fn covered_mounts_are_ignored() {
        for (text, expected) in [
            // Stacked at the same path: the earlier mount is the parent of the later one.
            (
                "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 a rw\n\
                 40 31 0:50 / /sys/fs/cgroup rw - tmpfs b rw\n",
                None,
            ),
            (
                "31 23 0:28 / /sys/fs/cgroup rw - tmpfs b rw\n\
                 40 31 0:50 / /sys/fs/cgroup rw - cgroup2 a rw\n",
                Some("/sys/fs/cgroup"),
            ),
            // A later mount on a directory above, with the same parent.
            (
                "31 23 0:28 / /sys/fs/cgroup/unified rw - cgroup2 a rw\n\
                 40 23 0:50 / /sys/fs rw - tmpfs b rw\n",
                None,
            ),
            // The tree bind-mounted over itself, as systemd's ProtectControlGroups= does.
            (
                "23 1 0:2 / / rw - ext4 r rw\n\
                 31 23 0:28 / /sys/fs/cgroup rw - cgroup2 a rw\n\
                 40 31 0:28 / /sys/fs/cgroup ro - cgroup2 a rw\n",
                Some("/sys/fs/cgroup"),
            ),
            // Three mounts at one path, and a tree that is mounted in the last.
            (
                "23 1 0:2 / / rw - ext4 r rw\n\
                 31 23 0:28 / /sys/fs/cgroup rw - cgroup2 a rw\n\
                 40 31 0:50 / /sys/fs/cgroup rw - tmpfs b rw\n\
                 41 40 0:51 / /sys/fs/cgroup rw - tmpfs c rw\n\
                 42 41 0:28 / /sys/fs/cgroup/unified rw - cgroup2 a rw\n",
                Some("/sys/fs/cgroup/unified"),
            ),
            // The same, but the tree is mounted in the second, which the third covers.
            (
                "23 1 0:2 / / rw - ext4 r rw\n\
                 31 23 0:28 / /sys/fs/cgroup rw - cgroup2 a rw\n\
                 40 31 0:50 / /sys/fs/cgroup rw - tmpfs b rw\n\
                 41 40 0:51 / /sys/fs/cgroup rw - tmpfs c rw\n\
                 42 40 0:28 / /sys/fs/cgroup/unified rw - cgroup2 a rw\n",
                None,
            ),
            // The parent mount is covered.
            (
                "31 23 0:28 / /sys/fs/cgroup rw - tmpfs a rw\n\
                 32 31 0:29 / /sys/fs/cgroup/unified rw - cgroup2 b rw\n\
                 33 31 0:30 / /sys/fs/cgroup rw - tmpfs c rw\n",
                None,
            ),
            // The root mount is listed last. It has no sibling and hides no mount below it.
            (
                "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 a rw\n\
                 23 1 0:2 / / rw - ext4 r rw\n",
                Some("/sys/fs/cgroup"),
            ),
            // A bind mount of a subtree, and a mount of the whole hierarchy.
            (
                "31 23 0:28 /x /srv/x rw - cgroup2 a rw\n\
                 32 23 0:28 / /sys/fs/cgroup rw - cgroup2 a rw\n",
                Some("/sys/fs/cgroup"),
            ),
            ("garbage\n31 23\n31 23 0:28 / /x rw - \n", None),
        ] {
            let found = locate(text, "0::/\n").v2.map(|m| m.path);
            assert_eq!(found, expected.map(PathBuf::from), "{text}");
        }
    }
}
