//! Names below a hierarchy's mount point. A wrong one would be a write outside of it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What one directory name may be: long enough for any identifier, and with room for a suffix.
const NAME_MAX: usize = 200;

/// Files that every directory of a v1 hierarchy has, besides those that begin with `cgroup.`.
const RESERVED: [&str; 3] = ["notify_on_release", "release_agent", "tasks"];

/// The name of a task's own cgroup, unique among the tasks that live below the same parent.
///
/// One path component of at most 200 bytes, no control characters, not beginning with a dot, and none of the
/// kernel's own files that every cgroup has (`tasks`, `cgroup.procs`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupName(String);

impl CgroupName {
    /// Takes `name` if it can be one directory name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(name: &str) -> Result<CgroupName, String> {
        component(name).map(|()| CgroupName(name.to_owned()))
    }
}

/// The parent of tasks' cgroups: a path relative to the hierarchies' mount points, the same in all of them.
///
/// Empty means the crate's own: `cofferdam.slice` on v2 and `cofferdam` on v1, made when it is needed and
/// removed with its last task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupPath(String);

impl CgroupPath {
    /// Takes `path` if it stays below the mount point: no `..`, `.` or empty component. A leading
    /// slash means the mount point, as in `/proc/self/cgroup`, and not the file system's root.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(path: &str) -> Result<CgroupPath, String> {
        let relative = path.strip_prefix('/').unwrap_or(path);
        if relative.starts_with("sys/fs/cgroup") {
            return Err(format!("{path:?} is not relative to the mount points of the hierarchies"));
        }
        if path.len() > 2048 {
            return Err("the path is longer than 2048 bytes".to_owned());
        }
        if !relative.is_empty() {
            relative.split('/').try_for_each(component)?;
        }
        Ok(CgroupPath(relative.to_owned()))
    }

    /// Whether this is the crate's own parent.
    pub fn is_default(&self) -> bool {
        self.0.is_empty()
    }
}

fn component(name: &str) -> Result<(), String> {
    let why = if name.is_empty() {
        "is empty"
    } else if name.len() > NAME_MAX {
        "is longer than 200 bytes"
    } else if name.starts_with('.') {
        "begins with a dot"
    } else if name.contains('/') || name.contains(char::is_control) {
        "has a slash or a control character"
    } else if name.starts_with("cgroup.") || RESERVED.contains(&name) {
        "is a name of the kernel's"
    } else {
        return Ok(());
    };
    Err(format!("{name:?} {why}"))
}

/// Every directory from `base` (left out) down to `base` + `path`, the highest first.
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
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
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
    fn names() {
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
    fn paths() {
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
    fn levels_go_down() {
        let found = levels(Path::new("/cg"), "a/b.slice");
        assert_eq!(found, [Path::new("/cg/a"), Path::new("/cg/a/b.slice")]);
        assert!(levels(Path::new("/cg"), "").is_empty());
        assert!(levels(Path::new("/cg"), "/").is_empty());
    }
}
