//! Validated cgroup names and paths, relative to a hierarchy's mount point. Validation ensures that no write leaves the
//! mount point.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::notation::InvalidValue;

/// Maximum length of a cgroup name, in bytes. Long enough for any identifier, and leaves room for a suffix (`.scope`).
const NAME_MAX: usize = 200;

/// Kernel files of every v1 hierarchy whose names do not begin with `cgroup.` (`release_agent` is in the root only).
const RESERVED: [&str; 3] = ["notify_on_release", "release_agent", "tasks"];

/// Name of a task's own cgroup, unique among the tasks below the same parent.
///
/// One path component of at most 200 bytes, without control characters. It does not begin with a dot or with
/// `cgroup.`, and is not the name of another kernel file of cgroups (`tasks`, `notify_on_release`, `release_agent`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupName(String);

impl CgroupName {
    /// Validates `name` as a single directory name.
    ///
    /// # Errors
    /// A message that says what is wrong with the name.
    pub fn new(name: &str) -> Result<CgroupName, InvalidValue> {
        component(name).map(|()| CgroupName(name.to_owned()))
    }
}

/// Parent of the tasks' cgroups: a path relative to the mount point of each hierarchy, the same in all of them.
///
/// An empty path means the crate's own parent: `cofferdam.slice` on v2 and `cofferdam` on v1. It is made when it is
/// needed, and removed with its last task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupPath(String);

impl CgroupPath {
    /// Validates `path`: it must stay below the mount point, without `..`, `.` or empty components, and have at most
    /// 2048 bytes. As in `/proc/self/cgroup`, a leading slash means the mount point, not the file system's root.
    ///
    /// # Errors
    /// A message that says what is wrong with the path.
    pub fn new(path: &str) -> Result<CgroupPath, InvalidValue> {
        let relative = path.strip_prefix('/').unwrap_or(path);
        if relative.starts_with("sys/fs/cgroup") {
            let why = format!("{path:?} must be relative to the cgroup mount point, without /sys/fs/cgroup");
            return Err(InvalidValue::new(why));
        }
        if path.len() > 2048 {
            return Err(InvalidValue::new("the path is longer than 2048 bytes"));
        }
        if !relative.is_empty() {
            let wrong = |why| InvalidValue::new(format!("{path:?}: the part {why}"));
            relative.split('/').try_for_each(|part| component(part).map_err(wrong))?;
        }
        Ok(CgroupPath(relative.to_owned()))
    }

    /// Whether this is the crate's own parent, that is, whether the path is empty.
    pub fn is_default(&self) -> bool {
        self.0.is_empty()
    }
}

fn component(name: &str) -> Result<(), InvalidValue> {
    let why = if name.is_empty() {
        "is empty"
    } else if name.len() > NAME_MAX {
        "is longer than 200 bytes"
    } else if name.starts_with('.') {
        "begins with a dot"
    } else if name.contains('/') || name.contains(char::is_control) {
        "contains a slash or a control character"
    } else if name.starts_with("cgroup.") || RESERVED.contains(&name) {
        "is a file name of the kernel"
    } else {
        return Ok(());
    };
    Err(InvalidValue::new(format!("{name:?} {why}")))
}

/// Every directory from `base` (exclusive) down to `base` joined with `path`, the highest first.
pub(super) fn levels(base: &Path, path: &str) -> Vec<PathBuf> {
    path.split('/')
        .filter(|part| !part.is_empty())
        .scan(base.to_owned(), |at, part| {
            at.push(part);
            Some(at.clone())
        })
        .collect()
}

macro_rules! string_newtype {
    ($($type:ty),*) => {$(
        impl TryFrom<String> for $type {
            type Error = InvalidValue;
            fn try_from(text: String) -> Result<Self, InvalidValue> {
                Self::new(&text)
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.0
            }
        }
        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

string_newtype!(CgroupName, CgroupPath);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_name_is_one_component_of_at_most_200_bytes() {
        for good in ["x", "a1.web", "ünï", "with space", &"n".repeat(200)] {
            assert_eq!(CgroupName::new(good).unwrap().as_ref(), good);
        }
        for bad in
            ["", ".", "..", ".hidden", "a/b", "/a", "a\n", "a\0b", "tasks", "cgroup.procs", &"n".repeat(201)]
        {
            assert!(CgroupName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn cgroup_path_stays_below_the_mount_point() {
        for (given, kept) in
            [("", ""), ("/", ""), ("custom/path", "custom/path"), ("/custom.slice", "custom.slice")]
        {
            assert_eq!(CgroupPath::new(given).unwrap().as_ref(), kept);
        }
        for bad in [
            "..",
            "a/../b",
            "a//b",
            "//a",
            "a/",
            "./a",
            "a/.",
            "a/tasks",
            "/sys/fs/cgroup/custom.slice/path.scope",
            "/sys/fs/cgroup/pids/custom/path",
        ] {
            assert!(CgroupPath::new(bad).is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<CgroupPath>(r#""../x""#).is_err());
        assert_eq!(serde_json::to_string(&CgroupPath::new("/a/b").unwrap()).unwrap(), r#""a/b""#);
    }

    #[test]
    fn levels_lists_directories_from_the_highest_down() {
        let found = levels(Path::new("/cg"), "a/b.slice");
        assert_eq!(found, [Path::new("/cg/a"), Path::new("/cg/a/b.slice")]);
        assert!(levels(Path::new("/cg"), "").is_empty());
        assert!(levels(Path::new("/cg"), "/").is_empty());
    }
}
