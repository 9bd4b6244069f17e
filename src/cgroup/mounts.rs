//! Where the cgroup hierarchies are, from the text of `/proc/self/mountinfo` and `/proc/self/cgroup`.
//!
//! Nothing is assumed about paths: hierarchies are found by file system type, wherever they are mounted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use procfs::process::MountInfo;

/// One visible mount of a cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    pub path: PathBuf,
    /// The directory of the hierarchy that is mounted, as seen from the reader's cgroup namespace.
    pub root: String,
    pub read_only: bool,
}

/// Where everything is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Located {
    pub v2: Option<Mounted>,
    /// The caller's own cgroup below the v2 mount point; `/` is the mount point. `None` when it is elsewhere.
    pub own: Option<String>,
    /// Controllers of v1 by name; co-mounted ones have the same path.
    pub v1: BTreeMap<String, Mounted>,
}

/// Reads `/proc/self/mountinfo` and `/proc/self/cgroup` (`proc(5)`, `cgroups(7)`). Of several mounts of one
/// hierarchy the first that shows all of it is taken, else the first.
pub(super) fn locate(mountinfo: &str, self_cgroup: &str) -> Located {
    let entries: Vec<Entry> = mountinfo.lines().filter_map(Entry::parse).collect();
    let visible = |kind: &'static str| {
        let all = &entries;
        all.iter().filter(move |e| e.fs_type == kind && !e.is_hidden(all))
    };
    let mut found = Located::default();
    for entry in visible("cgroup2") {
        if found.v2.as_ref().is_none_or(|known| known.root != "/" && entry.root == "/") {
            found.v2 = Some(entry.mounted());
        }
    }
    let controllers = v1_controllers(self_cgroup);
    for entry in visible("cgroup") {
        for name in entry.super_options.iter().filter(|option| controllers.contains(option.as_str())) {
            let known = found.v1.get(name.as_str());
            if known.is_none_or(|known| known.root != "/" && entry.root == "/") {
                found.v1.insert(name.clone(), entry.mounted());
            }
        }
    }
    found.own = found.v2.as_ref().and_then(|v2| relative(&v2.root, v2_path(self_cgroup)?));
    found
}

/// The controllers that are bound to v1 hierarchies: what stands between the colons of `4:cpu,cpuacct:/`.
fn v1_controllers(self_cgroup: &str) -> BTreeSet<&str> {
    let lists = self_cgroup.lines().filter_map(|line| line.split(':').nth(1));
    lists.flat_map(|list| list.split(',')).filter(|name| !name.is_empty() && !name.contains('=')).collect()
}

/// The caller's v2 cgroup: the path in `0::/path`.
fn v2_path(self_cgroup: &str) -> Option<&str> {
    self_cgroup
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(|path| path.trim_end_matches(" (deleted)"))
}

/// `path` as seen from a mount of `root`. Both come from the same cgroup namespace.
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

/// The fields of one line of mountinfo that matter here.
#[derive(Debug)]
struct Entry {
    id: i32,
    parent: i32,
    root: String,
    path: PathBuf,
    read_only: bool,
    fs_type: String,
    super_options: BTreeSet<String>,
}

impl Entry {
    fn parse(line: &str) -> Option<Self> {
        let info = MountInfo::from_line(line).ok()?;
        let read_only = info.mount_options.contains_key("ro") || info.super_options.contains_key("ro");
        Some(Entry {
            id: info.mnt_id,
            parent: info.pid,
            root: unescape(&info.root),
            path: PathBuf::from(unescape(info.mount_point.to_str()?)),
            read_only,
            fs_type: info.fs_type,
            super_options: info.super_options.into_keys().collect(),
        })
    }

    /// Whether another mount lies over this one or over a directory on the way to it.
    ///
    /// Whatever is mounted on the same parent at a shorter path hides this mount, and whatever is stacked
    /// upon this mount's root has it as its parent. The same must hold for the parents.
    fn is_hidden(&self, all: &[Entry]) -> bool {
        let over = |mount: &Entry, other: &Entry| {
            // What is stacked on the process's own root is never entered: lookups start below it.
            let beside =
                other.id != mount.id && other.parent == mount.parent && other.path.parent().is_some();
            let on_top = other.parent == mount.id && other.id != mount.id && other.path == mount.path;
            on_top || (beside && mount.path.starts_with(&other.path))
        };
        let mut at = Some(self);
        // A tree is never deeper than it has members; the bound guards against a cycle in a forged text.
        for _ in all {
            let Some(mount) = at else { return false };
            let up = all.iter().find(|e| e.id == mount.parent && e.id != mount.id);
            let is_root = up.is_none() && !std::ptr::eq(mount, self);
            if !is_root && all.iter().any(|e| over(mount, e)) {
                return true;
            }
            at = up;
        }
        false
    }

    fn mounted(&self) -> Mounted {
        Mounted { path: self.path.clone(), root: self.root.clone(), read_only: self.read_only }
    }
}

/// Undoes the octal escapes of mountinfo (`\040` is a blank).
fn unescape(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let escaped = after.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok());
        match escaped.filter(u8::is_ascii) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::*;

    fn mounted(path: &str) -> Mounted {
        Mounted { path: path.into(), root: "/".into(), read_only: false }
    }

    #[test]
    fn this_kind_of_machine() {
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
    fn custom_mount_point_with_a_blank() {
        let text = "50 20 0:40 / /mnt/my\\040groups rw - cgroup2 none rw,nsdelegate\n";
        let found = locate(text, "0::/a.slice/b.scope\n");
        assert_eq!(found.v2, Some(mounted("/mnt/my groups")));
        assert_eq!(found.own.as_deref(), Some("/a.slice/b.scope"));
    }

    #[test]
    fn mount_of_a_part() {
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
    fn what_is_covered_is_not_there() {
        for (text, expected) in [
            // Stacked on one path: the later has the earlier as its parent.
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
            // A later mount on a directory above, on the same parent.
            (
                "31 23 0:28 / /sys/fs/cgroup/unified rw - cgroup2 a rw\n\
                 40 23 0:50 / /sys/fs rw - tmpfs b rw\n",
                None,
            ),
            // Its parent is covered.
            (
                "31 23 0:28 / /sys/fs/cgroup rw - tmpfs a rw\n\
                 32 31 0:29 / /sys/fs/cgroup/unified rw - cgroup2 b rw\n\
                 33 31 0:30 / /sys/fs/cgroup rw - tmpfs c rw\n",
                None,
            ),
            // The root is listed last, is its own parent's only child, and hides nothing that stands on it.
            (
                "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 a rw\n\
                 23 1 0:2 / / rw - ext4 r rw\n",
                Some("/sys/fs/cgroup"),
            ),
            // The whole mount and a bind mount of a part of it.
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

    #[test]
    fn escapes() {
        for (field, expected) in
            [("a\\040b", "a b"), ("\\134\\011", "\\\t"), ("\\9", "\\9"), ("\\", "\\"), ("é\\04é", "é\\04é")]
        {
            assert_eq!(unescape(field), expected);
        }
    }
}
