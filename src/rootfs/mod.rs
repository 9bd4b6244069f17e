//! The root of a sandbox: what the task sees as `/`, what is mounted in it, how it is entered, and how it is removed.
//!
//! There are three kinds of root:
//!
//! - A new tmpfs, with read-only bind mounts of host directories or with overlays of them. Read-only bind mounts are
//!   the default: nothing is copied, and the task cannot write to the host.
//! - A directory of the host, temporary by default, that is populated by hard links, copies or reflinks.
//! - A directory of the host that is used as it is.
//!
//! A spec describes it by [`Root`], [`Volume`], [`TaskDirs`], [`Dns`] and [`HostsEntry`]. A [`Template`] is a root that
//! is populated once and used by many sandboxes. [`populate`](populate()) and [`remove_tree`] are for drivers that
//! manage roots themselves.
//!
//! procfs, sysfs and a small `/dev` are mounted in it. Every writable mount except devpts is `nodev`, and `/dev` itself
//! is read-only once its nodes are made. So a device node that a task makes cannot be opened, with or without a device
//! cgroup.
//!
//! Every method ([`Method`]) gives the task the same tree: each source of the map at its destination. If one
//! destination is below another, the more specific one wins. The methods differ as follows:
//!
//! | | bind | overlay | reflink, copy | link |
//! |---|---|---|---|---|
//! | writable | no | yes | yes | no; with `writable` yes, and the task can then change the host's files |
//! | cost | one mount per entry | two mounts per entry | a walk, and the bytes | a walk |
//! | setuid bits, file capabilities | visible | visible | only with `setuid` | visible |
//! | other extended attributes | all | all | `user.*` and access control lists | all |
//! | file systems mounted below a source | visible | visible, read-only | copied | copied |
//! | a file as a source | read-only | read-only | writable | read-only unless `writable` |
//! | fifos and sockets below a source | visible | visible | skipped, listed | skipped, listed |
//! | devices below a source | cannot be opened | cannot be opened | skipped, listed | skipped, listed |
//! | a destination that is missing in another entry's source | refused | made | made | made |
//!
//! Visible setuid bits and file capabilities have no effect: every mount is `nosuid` unless the spec turns
//! `no_new_privs` off.
//!
//! Mount points are opened by descriptor and resolved inside the root (`RESOLVE_IN_ROOT`). Below `/proc`, `/sys` and
//! `/dev`, no symbolic link is followed.
//!
//! Modules, each of which imports only those before it: `hash`, `directory` and `workers`; `reach`, `probe`, `private`,
//! `source`, `prepared` and `teardown`; `populate`; `template` and `work`. Beside them, `lower` turns the root of a spec
//! into steps of a plan, with `dirs` and `names`. `changes` compares a root with its sources after the task has ended.
//!
//! This module does not decide which user and which capabilities the task has.
#![forbid(unsafe_code)]

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::notation;

pub(crate) mod changes;
mod directory;
mod dirs;
mod hash;
pub(crate) mod lower;
pub(crate) mod names;
pub(crate) mod populate;
pub(crate) mod prepared;
pub(crate) mod private;
pub(crate) mod probe;
pub(crate) mod reach;
pub(crate) mod source;
pub(crate) mod teardown;
pub mod template;
pub(crate) mod work;
mod workers;

pub use changes::{Change, ChangeKind};
pub use dirs::{Secrets, TaskDirs};
pub use names::{Dns, HostsEntry};
pub use populate::{
    Cancel, ChrootEnv, Method, Options, Populated, Progress, Skipped, Source, default_chroot_env, populate,
    validate,
};
pub(crate) use populate::{ProgressFn, Watch};
pub use teardown::{Leftovers, remove_tree};
pub use template::Template;

/// The root file system of a sandbox.
///
/// ```
/// use cofferdam::{Method, Root, Sandbox};
///
/// // The host's /usr and a toolchain, under an overlay: writes go to a tmpfs of at most 256 MiB.
/// let root = Root {
///     populate: Method::Overlay,
///     chroot_env: [("/usr".into(), "/usr".into()), ("/srv/toolchain".into(), "/opt".into())].into(),
///     tmpfs_size: Some(256 << 20),
///     ..Root::default()
/// };
/// // A directory that contains a complete root.
/// let given = Root { path: Some("/srv/images/alpine".into()), populate: Method::None, ..Root::default() };
/// # let _ = (Sandbox::command("make").root(root), given);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct Root {
    /// Absolute path of a directory of the host that becomes `/`. If absent, the root is new and is removed with the
    /// sandbox: a tmpfs for `bind` and `overlay`, a temporary directory for the other methods.
    pub path: Option<PathBuf>,
    /// The method that populates the root. The default is `bind`.
    pub populate: Method,
    /// Sources on the host and their destinations in the root. If empty, the operator's list is used. If that is empty
    /// too, the list of the `exec` driver is used: /bin /etc /lib /lib32 /lib64 /run/resolvconf /run/systemd/resolve
    /// /sbin /usr, without /run/systemd/resolve for a task without a network and `dns`.
    pub chroot_env: ChrootEnv,
    /// Lets the task write to the root; `auto` then chooses a writable method. With `link`, the task can change the
    /// host's own files, and the report lists `host_files` as missing. Overlays, copies and given directories are
    /// writable in any case. With `bind`, it is an error.
    pub writable: bool,
    /// Size limit in bytes of a tmpfs root, and of the tmpfs that an `overlay` writes to. If absent, 64 MiB. The pages
    /// of the tmpfs count as the task's memory.
    #[serde(deserialize_with = "notation::optional_size_from")]
    pub tmpfs_size: Option<u64>,
    /// Absolute path of a directory of the host that an `overlay` writes to. Its file system must support upper layers
    /// (`ext4`, `xfs`, `btrfs`, `tmpfs`; not another overlay). Without privileges it also needs `user.*` attributes
    /// (tmpfs: Linux 6.6), or the task cannot remove a directory of the host's (EIO). The directory stays when the
    /// sandbox ends, and the next sandbox that names it sees its content. [`remove_tree`] removes it. `rm -r` of an
    /// unprivileged user fails, because the kernel gives mode 000 to the overlay's work directory. While the caller of a
    /// sandbox that uses it lives and has not detached the task, a spawn of another one fails with `ResourceBusy`. If
    /// absent, the overlay writes to a tmpfs of its own.
    pub upper: Option<PathBuf>,
    /// Copies keep the setuid and setgid bits and the file capabilities of their source. These have no effect while
    /// `no_new_privs` is set.
    pub setuid: bool,
    /// Maximum number of entries that populating makes, directories included. The operator's limit applies too. No
    /// limit if absent.
    pub max_entries: Option<u64>,
    /// Maximum size in bytes of all populated files together, linked ones included. The operator's limit applies too.
    /// No limit if absent.
    #[serde(deserialize_with = "notation::optional_size_from")]
    pub max_bytes: Option<u64>,
}

/// Mount propagation between a volume and its source (`mount_namespaces(7)`). Serialised as Nomad names it: `private`,
/// `host-to-task` or `bidirectional`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Propagation {
    /// No propagation (`rprivate`).
    #[default]
    Private,
    /// New mounts of the host appear in the sandbox (`rslave`).
    HostToTask,
    /// New mounts appear on both sides (`rshared`). The source must be a shared mount, and the policy must allow it
    /// ([`allow_privileged`](crate::Policy::allow_privileged)).
    Bidirectional,
}

/// A file or directory of the host that is bind-mounted in the sandbox.
///
/// ```
/// use cofferdam::{Sandbox, Volume};
///
/// let work = Volume::new("/srv/job/7", "/work");
/// let cache = Volume { read_only: true, ..Volume::new("/srv/cache", "/cache") };
/// let sandbox = Sandbox::command("make").volume(work).volume(cache).work_dir("/work");
/// # let _ = sandbox;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct Volume {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the sandbox. If it does not exist, it is made, unless a read-only bind mount of the root is
    /// above it.
    pub target: PathBuf,
    /// Whether the volume and all mounts below it are read-only (`mount_setattr(2)`, Linux 5.12). False by default.
    pub read_only: bool,
    /// Propagation of later mounts. None by default.
    pub propagation: Propagation,
}

impl Volume {
    /// The file or directory `source` of the host at `target` in the sandbox, writable, without propagation.
    pub fn new(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Volume {
        Volume { source: source.into(), target: target.into(), ..Volume::default() }
    }
}

/// Type of a file of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
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

/// Finds the entry of `env` that `target` belongs to: the innermost one whose destination is above `target`. Returns
/// its source, and the path on the host that appears at `target`. `None` if no destination is above `target`.
pub(crate) fn shown<'a>(env: &'a ChrootEnv, target: &Path) -> Option<(&'a Path, PathBuf)> {
    let target = in_root(target);
    let above = env.iter().filter_map(|(source, dest)| Some((source, below(&target, dest)?)));
    let (source, (_, rest)) = above.max_by_key(|(_, (depth, _))| *depth)?;
    Some((source, source.join(rest)))
}

/// The number of names in `top`, and `path` relative to it. `None` unless `path` lies below `top`. Both are in the root, and
/// `path` is normalized.
fn below<'a>(path: &'a Path, top: &Path) -> Option<(usize, &'a Path)> {
    let mut rest = path.components();
    rest.next();
    let names = top.components().filter(|part| !matches!(part, Component::RootDir | Component::CurDir));
    let mut depth = 0_usize;
    for name in names {
        if rest.next() != Some(name) {
            return None;
        }
        depth = depth.saturating_add(1);
    }
    let rest = rest.as_path();
    (!rest.as_os_str().is_empty()).then_some((depth, rest))
}

/// Normalizes a path in the root: absolute, without `.` and repeated slashes.
pub(crate) fn in_root(path: &Path) -> PathBuf {
    Path::new("/").join(path).components().collect()
}

/// Refuses a path that is empty or not absolute, contains `..` or a NUL byte, or has 4096 bytes or more.
pub(crate) fn check_path(field: &'static str, path: &Path) -> Result<()> {
    check_path_at(field, field, path)
}

/// As [`check_path`], for a path inside `field`. `place` begins with the name of the field: `volumes[0].source`.
pub(crate) fn check_path_at(field: &'static str, place: &str, path: &Path) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    let why = if bytes.is_empty() {
        format!("{place}: it must not be empty")
    } else if !path.is_absolute() {
        format!("{place} must be absolute but got relative path {path:?}")
    } else if path.components().any(|c| c == Component::ParentDir) {
        format!("{place}: {path:?} must not contain \"..\"")
    } else if bytes.contains(&0) {
        format!("{place}: {path:?} must not contain a NUL byte")
    } else if bytes.len() >= 4096 {
        format!("{place}: a path must be shorter than 4096 bytes")
    } else {
        return Ok(());
    };
    Err(Error::spec(field, why))
}

notation::from_maps! {
    Root: "an object with the fields of a root",
    Volume: "an object with source, target, read_only and propagation",
}
