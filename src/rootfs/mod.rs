//! What the task sees as `/`: where it comes from, what is mounted in it, how it is entered, and how
//! nothing of it stays behind.
//!
//! A root is a new tmpfs with read-only binds of host directories (the default: nothing is copied and
//! the host cannot be written) or with overlays over them, or a directory of the host that was populated by
//! linking, copying or reflinks, or one that is used as it is. The kernel's own file systems and a small `/dev`
//! are mounted in it. Every writable mount is `nodev` and `/dev` itself is sealed read-only, so that a device
//! node that a task makes cannot be opened, with or without a device cgroup.
//!
//! Whatever the method ([`Method`]), the task sees the same tree: that of the sources of the map, each at its
//! destination, where the more specific of two destinations wins. Where they differ:
//!
//! | | bind | overlay | reflink, copy | link |
//! |---|---|---|---|---|
//! | may be written | no | yes | yes | no; with `writable`, which gives the host's files away |
//! | costs | a mount an entry | two mounts an entry | a walk, and the bytes | a walk |
//! | setuid bits, file capabilities | shown | shown | with `setuid` only | shown |
//! | other extended attributes | all | all | `user.*` and access lists | all |
//! | file systems mounted below a source | shown | shown, read-only | copied | copied |
//! | a file as a source | read-only | read-only | yes | no |
//! | fifos, sockets, devices below a source | shown, the latter dead | shown, the latter dead | left out, listed | left out, listed |
//! | a destination that another entry does not have | refused | made | made | made |
//!
//! Shown setuid bits and file capabilities count for nothing: every mount is `nosuid` unless the spec turns
//! `no_new_privs` off.
//!
//! Mount points are found by descriptor, resolved inside the root and never outside of it; below
//! `/proc`, `/sys` and `/dev` no symbolic link is followed.
//!
//! Modules, each of which imports only those before it: `hash`, `directory` and `workers`; `probe`, `source` and
//! `teardown`; `populate`; `template`. Beside them `lower` turns a spec's root into steps of a plan, with `dirs`
//! and `names`.
//!
//! What it does not do: decide which user or capabilities see it.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

mod directory;
mod dirs;
mod hash;
pub(crate) mod lower;
pub(crate) mod names;
pub(crate) mod populate;
pub(crate) mod probe;
pub(crate) mod source;
pub(crate) mod teardown;
pub mod template;
pub(crate) mod work;
mod workers;

pub use dirs::{Secrets, TaskDirs};
pub use names::{Dns, HostsEntry};
pub use populate::{
    ChrootEnv, Method, Options, Populated, Progress, Skipped, Source, default_chroot_env, populate, validate,
};
pub use teardown::{Leftovers, remove_tree};
pub use template::Template;

/// The root of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Root {
    /// A directory of the host that becomes `/`, absolute. Without one the root is fresh and goes away
    /// with the sandbox: a tmpfs for `bind` and `overlay`, a temporary directory for the others.
    pub path: Option<PathBuf>,
    /// How it is populated. `bind` when nothing is said.
    pub populate: Method,
    /// What it is populated with. Empty means the operator's list, or where that is empty too the
    /// `exec` driver's: /bin /etc /lib /lib32 /lib64 /run/resolvconf /run/systemd/resolve /sbin /usr.
    pub chroot_env: ChrootEnv,
    /// Lets the task write to the root. `auto` then makes it something that may be written. What was linked is
    /// the host's own files: the report then shows `host_files` missing. Overlays, copies and given directories
    /// are writable anyway; for `bind` it is an error.
    pub writable: bool,
    /// Size limit of a tmpfs root in bytes, and of the tmpfs that an `overlay` is written to; 64 MiB when 0.
    /// Its pages count as the task's memory.
    pub tmpfs_size: u64,
    /// A directory of the host that an `overlay` is written to, absolute, on a file system that can be the upper
    /// layer of one (`ext4`, `xfs`, `btrfs`, `tmpfs`; not another overlay). What it holds by then is
    /// seen again by the next sandbox that names it; two at a time must not. It stays when the sandbox is
    /// gone. A tmpfs of its own when absent.
    pub upper: Option<PathBuf>,
    /// Copies keep the setuid and setgid bits and the file capabilities of their source. They count for nothing
    /// while `no_new_privs` holds.
    pub setuid: bool,
    /// The most entries that populating may make, directories included. The operator's limit holds beside it.
    pub max_entries: Option<u64>,
    /// The most bytes that the populated files may have together, linked ones included.
    pub max_bytes: Option<u64>,
}

/// How mounts travel between a volume and its source (`mount_namespaces(7)`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Propagation {
    /// Not at all (`rprivate`).
    #[default]
    Private,
    /// New mounts of the host appear in the task (`rslave`).
    HostToTask,
    /// Both ways (`rshared`); the source must be a shared mount.
    Bidirectional,
}

/// A file or directory of the host that the task gets at a path of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Volume {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the sandbox; made when it is absent.
    pub target: PathBuf,
    /// Read-only, with everything that is mounted below it (`mount_setattr(2)`, Linux 5.12).
    pub read_only: bool,
    /// How mounts travel.
    pub propagation: Propagation,
}

/// A device node of the host that the task gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Absolute path of the node on the host.
    pub source: PathBuf,
    /// Absolute path in the sandbox.
    pub target: PathBuf,
    /// Any of `r`, `w`, `m`. Narrower than `rw` holds by the device cgroup only; where there is none the report
    /// says so. The node is bound, so `m` changes nothing: making nodes is up to `CAP_MKNOD`.
    #[serde(default = "read_write")]
    pub permissions: String,
}

fn read_write() -> String {
    "rwm".into()
}

/// What kind of thing a path of the host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A directory.
    Dir,
    /// A regular file.
    File,
    /// A character or block device.
    Device,
    /// A fifo or a socket.
    Other,
}

/// Where the host has what a root that is populated with `env` shows at `target`, if that lies in the destination
/// of an entry and is not one itself: the source of the innermost such entry, and the path.
pub(crate) fn shown<'a>(env: &'a ChrootEnv, target: &Path) -> Option<(&'a Path, PathBuf)> {
    let target = in_root(target);
    env.iter()
        .filter_map(|(source, dest)| {
            let dest = in_root(dest);
            let rest = target.strip_prefix(&dest).ok().filter(|rest| !rest.as_os_str().is_empty())?;
            Some((dest.components().count(), source.as_path(), source.join(rest)))
        })
        .max_by_key(|(depth, ..)| *depth)
        .map(|(_, source, path)| (source, path))
}

/// A path of the root, absolute, without dots and slashes that say nothing.
pub(crate) fn in_root(path: &Path) -> PathBuf {
    Path::new("/").join(path).components().collect()
}

/// Refuses a path that is not absolute, climbs with `..`, or holds a NUL.
pub(crate) fn check_path(field: &'static str, path: &Path) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    if !path.is_absolute() {
        return Err(Error::spec(field, format!("{field} must be absolute but got relative path {path:?}")));
    }
    if path.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(Error::spec(field, format!("{path:?} must not contain \"..\"")));
    }
    let bytes = path.as_os_str().as_bytes();
    if bytes.contains(&0) {
        return Err(Error::spec(field, format!("{path:?} must not contain a NUL byte")));
    }
    if bytes.len() >= 4096 {
        return Err(Error::spec(field, "a path must be shorter than 4096 bytes".to_string()));
    }
    Ok(())
}
