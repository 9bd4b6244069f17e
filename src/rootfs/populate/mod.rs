//! Populates a root directory with files and directories of the host.
//!
//! The map says which file or directory of the host is made where in the root. [`Method::Link`] makes hard links,
//! [`Method::Reflink`] clones and [`Method::Copy`] copies. A file that cannot be linked is cloned, and a file that
//! cannot be cloned is copied. Both sides are accessed by directory descriptor, so no symbolic link that a task left in
//! the root leads out of it. Types of entries come from `getdents64(2)` and cost no further call. [`Method::Bind`] and
//! [`Method::Overlay`] consist of mounts, and [`Method::None`] uses the directory as it is. This module does nothing
//! for these.
//!
//! The tree in the root:
//!
//! - A directory gets the mode (all twelve bits), owner and times of its source, its user attributes (`user.*`) and its
//!   access control lists. A parent directory of a destination has no source of its own. If it has the same name as the
//!   parent directory of the source, it gets that directory's metadata, and so on upwards: for `/run/resolvconf` at the
//!   same path, `/run` is made like the host's. Otherwise it gets mode 0755 and belongs to the caller. A directory that
//!   exists keeps its metadata.
//! - A linked file is the host's inode, with its mode (setuid bit included), times, attributes and content. A process
//!   that writes to it in the root writes to the host's file. So the root must be mounted read-only, or the report must
//!   list `HOST_FILES` as missing. A file whose link the kernel refuses (`EXDEV`, `EPERM`, `EMLINK`, `EOPNOTSUPP`) is
//!   cloned or copied.
//! - A clone or a copy gets the content, holes, owner, permission bits and times of its source. Of the extended
//!   attributes, it gets user attributes (`user.*`) and access control lists. Setuid, setgid and sticky bits and file
//!   capabilities are kept only with [`Options::setuid`]. Even then, the three bits are dropped if the owner could not
//!   be set. Attributes that the kernel or the file system refuses are counted.
//! - Hard links inside one source stay hard links. If they are copied, the first name is copied, and the other names
//!   are linked to that copy. A population that continues a killed one may copy such a file again.
//! - The owner is set if the caller may do so, which needs root. Entries that keep the caller as owner are counted.
//! - A symbolic link has the same text, owner and times. With [`Method::Link`], it is linked if the file system
//!   supports that. No symbolic link is followed, neither in the host's tree nor in the root, with two exceptions. A
//!   source that is a symbolic link stands for the file or directory that it points to. On the way to a destination,
//!   links are resolved inside the root.
//! - Fifos, sockets and devices are skipped and listed, and so are sources that do not exist.
//! - If one destination is below another, its source replaces what the outer source has there, as with mounts.
//!   Directories are not merged. Only the paths in the map count, and only entries whose source exists. If a symbolic
//!   link in the root leads one destination into another, the destination that sorts first wins. Two equal destinations
//!   are refused.
//! - Entries that exist in the root stay, and directories that exist are added to.
//! - File systems mounted below a source are entered. Their files are copied, because no hard link crosses a mount.
//!   Some directories are not entered: kernel file systems (proc, sysfs, cgroup and the like), the root itself if it is
//!   below a source, and directories in [`Options::skip`]. Each of these becomes an empty directory with mode and
//!   owner, and is listed.
//!
//! After a population was killed, another one may populate the same root again. It ends with the tree that an
//! undisturbed population makes. There are no temporary names. Each directory and each copied file has a mode that
//! marks it as unfinished, from the call that makes it to the call that finishes it (`unfinished` says which modes, and
//! why). An unfinished copy is made again, and an unfinished directory is walked and finished. Until its access control
//! list is set, only root can read an unfinished file. An existing entry with such a mode counts as unfinished if it
//! belongs to the caller or to the owner of its source. Nothing is synced to disk.
//!
//! No other process may write in the root during a population. New entries get mode and owner by descriptor. But if
//! another process renames a directory over a new one before that is opened, the other directory is opened. At most two
//! populations run at a time in a process; others wait.
//!
//! The first refusal ends the population with an error that names the path. Entries made so far stay for the caller to
//! remove. An incomplete root must not be used. The caller's umask has no effect and does not change.
//!
//! Modules, each of which imports only those before it: `cancel`, `error` and `unfinished`; `attributes` and `metadata`;
//! `settings`; `dest`, `host` and `twins`; `copy`, `file` and `symlink` (one entry); `walk` (one source);
//! `deferred`, `fill` and `fingerprint` (the map).

#![forbid(unsafe_code)]

mod attributes;
mod cancel;
mod copy;
mod deferred;
mod dest;
mod error;
mod file;
mod fill;
mod fingerprint;
mod host;
mod metadata;
mod settings;
mod symlink;
mod temp;
mod twins;
mod unfinished;
mod walk;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize, Serializer};

use crate::notation::InvalidValue;
use crate::rootfs::source::{self, HeldSources};
use crate::rootfs::workers;
use crate::sys::without_sigxfsz;
use crate::{Error, Result};

pub use cancel::Cancel;
pub(crate) use cancel::{ProgressFn, Watch};
pub(crate) use fingerprint::fingerprint;
pub(crate) use temp::{OwnedRoot, RootId, StaleRoot, TempRoot};

/// How the host's files are made available in the root. The [module](crate::rootfs) compares the methods.
///
/// ```
/// use cofferdam::{Method, Sandbox};
///
/// let read_only = Sandbox::command("id"); // the default: Method::Bind
/// let writable = Sandbox::command("make").populate(Method::Overlay);
/// assert_eq!("reflink".parse::<Method>()?, Method::Reflink);
/// # let _ = (read_only, writable);
/// # Ok::<(), cofferdam::InvalidValue>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Method {
    /// The cheapest of `Bind`, `Overlay` and `Reflink` that fits the spec. Never `Link`, which exposes the host's own
    /// files. The report says which one, and why.
    Auto,
    /// Read-only bind mounts: nothing is walked and nothing is written.
    #[default]
    Bind,
    /// An overlay file system over each directory (Linux 3.18; 5.11 in a user namespace). It is writable: writes go
    /// to a tmpfs or to [`Root::upper`](crate::Root::upper), never to the host.
    Overlay,
    /// Clones, which share blocks with the host's files until one of both is written (`FICLONE`, Linux 4.5, on btrfs,
    /// XFS and bcachefs). Copies on other file systems.
    Reflink,
    /// Copies.
    Copy,
    /// Hard links. A file that the kernel refuses to link is cloned or copied.
    Link,
    /// Nothing: the directory is used as it is.
    None,
}

impl Method {
    const ALL: [Method; 7] = [
        Method::Auto,
        Method::Bind,
        Method::Overlay,
        Method::Reflink,
        Method::Copy,
        Method::Link,
        Method::None,
    ];

    /// Whether the method walks the host's directories and writes files. The others use mounts, or do nothing.
    pub fn walks(self) -> bool {
        matches!(self, Method::Reflink | Method::Copy | Method::Link)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Auto => "auto",
            Method::Bind => "bind",
            Method::Overlay => "overlay",
            Method::Reflink => "reflink",
            Method::Copy => "copy",
            Method::Link => "link",
            Method::None => "none",
        })
    }
}

impl FromStr for Method {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Method, InvalidValue> {
        Method::ALL.into_iter().find(|m| m.to_string() == s).ok_or_else(|| {
            let names = Method::ALL.map(|m| m.to_string()).join(", ");
            InvalidValue::new(format!("{s:?} is not one of {names}"))
        })
    }
}

/// Maps each source, a file or directory of the host, to its destination in the root, with or without a leading `/`.
pub type ChrootEnv = BTreeMap<PathBuf, PathBuf>;

/// The default map of Nomad's `exec` driver: what a dynamically linked program of the host needs to run.
pub fn default_chroot_env() -> ChrootEnv {
    ["/bin", "/etc", "/lib", "/lib32", "/lib64", "/run/resolvconf", "/run/systemd/resolve", "/sbin", "/usr"]
        .into_iter()
        .map(|path| (path.into(), path.into()))
        .collect()
}

/// Checks a map without accessing the host.
///
/// # Errors
/// [`Error::Spec`] for a source that is not absolute, for a path with `..` or a NUL byte, and for two sources with
/// the same destination.
pub fn validate(map: &ChrootEnv) -> Result<()> {
    for (source, dest) in map {
        let complain = |what: &str| Err(Error::spec("chroot_env", format!("{source:?} -> {dest:?}: {what}")));
        if !source.is_absolute() {
            return complain("the source is not an absolute path");
        }
        for path in [source, dest] {
            if path.components().any(|c| c == Component::ParentDir) {
                return complain("a path must not contain \"..\"");
            }
            if path.as_os_str().as_bytes().contains(&0) {
                return complain("a path must not contain a NUL byte");
            }
        }
    }
    let mut taken = BTreeMap::new();
    for (source, dest) in map {
        let dest = dest::relative(dest);
        if let Some(other) = taken.insert(dest.clone(), source) {
            let both =
                format!("{other:?} and {source:?} have the same destination {:?}", Path::new("/").join(dest));
            return Err(Error::spec("chroot_env", both));
        }
    }
    Ok(())
}

/// Options of a population, beside its map.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// [`Copy`](Method::Copy), the default, [`Reflink`](Method::Reflink) or [`Link`](Method::Link). All others are
    /// refused.
    pub method: Method,
    /// Copies keep the setuid and setgid bits and the file capabilities of their source. Links and mounts always show
    /// them.
    pub setuid: bool,
    /// Directories, by device and inode, that are left empty wherever they are below a source. The root itself is
    /// always left empty.
    pub skip: &'a [(u64, u64)],
    /// Maximum number of entries that are made, directories included.
    pub max_entries: Option<u64>,
    /// Maximum number of bytes in the files that are made, linked ones included.
    pub max_bytes: Option<u64>,
    /// Called several times during the population, from any of its threads, and at the end. It must not start a
    /// population. [`Break`](std::ops::ControlFlow::Break) cancels the population; at the end it has no effect.
    pub progress: Option<&'a (dyn Fn(Progress) -> ControlFlow<()> + Sync)>,
    /// A handle that cancels the population.
    pub cancel: Option<&'a Cancel>,
    /// Take a [fingerprint](Populated::fingerprint) of the sources.
    pub fingerprint: bool,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            method: Method::Copy,
            setuid: false,
            skip: &[],
            max_entries: None,
            max_bytes: None,
            progress: None,
            cancel: None,
            fingerprint: false,
        }
    }
}

/// Progress of a population.
///
/// ```no_run
/// use cofferdam::{Method, Progress, Sandbox};
/// use std::ops::ControlFlow;
///
/// let sandbox = Sandbox::command("make").populate(Method::Copy);
/// let progress = |now: Progress| {
///     eprint!("\r{} entries, {} bytes", now.entries, now.bytes);
///     if now.bytes < 1 << 30 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
/// };
/// let task = sandbox.progress(progress).spawn()?; // Error::Cancelled after 1 GiB
/// println!("{}", task.wait()?);
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Entries made so far.
    pub entries: u64,
    /// Bytes in their files.
    pub bytes: u64,
}

/// The result of a population.
///
/// ```no_run
/// use cofferdam::{Method, Sandbox};
///
/// let task = Sandbox::command("make").populate(Method::Reflink).spawn()?;
/// if let Some(done) = task.populated() {
///     println!("{} cloned, {} copied, {:?}", done.cloned, done.copied, done.elapsed);
///     for skipped in &done.skipped {
///         println!("without {:?}: {}", skipped.path, skipped.why);
///     }
/// }
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Populated {
    /// Each source of the map that was made in the root.
    pub sources: Vec<Source>,
    /// Directories made.
    pub dirs: u64,
    /// Regular files that are hard links to the host's.
    pub linked: u64,
    /// Regular files that share blocks with the host's.
    pub cloned: u64,
    /// Regular files that are copies, other names of a copy included.
    pub copied: u64,
    /// Symbolic links made.
    pub symlinks: u64,
    /// Entries that existed in the root and stayed.
    pub kept: u64,
    /// Directories, copies and symbolic links that belong to the caller, because it may not set their owner.
    pub disowned: u64,
    /// Directories and copies that lack an extended attribute of their source, because the file system of the root or
    /// the kernel refused it.
    pub attributes_lost: u64,
    /// Bytes in the linked files. Reading their sizes costs a fifth of the time of linking, so it is done only if
    /// there is a byte limit or a progress callback.
    pub bytes_linked: Option<u64>,
    /// Bytes in the files that share blocks with the host's.
    pub bytes_shared: u64,
    /// Bytes in the copies, without holes.
    pub bytes_copied: u64,
    /// Entries that were skipped, by source path.
    pub skipped: Vec<Skipped>,
    /// A hash of the sources' metadata, if [`Options::fingerprint`] is set.
    pub fingerprint: Option<u64>,
    /// Duration of the population.
    pub elapsed: Duration,
}

/// One source of the map that was made in the root.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Source {
    /// Its path on the host. Serialised, bytes that are not UTF-8 are replaced.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Its path in the root.
    #[serde(serialize_with = "lossy")]
    pub target: PathBuf,
    /// The method that was used. It differs from the requested one if that was refused for all files.
    pub method: Method,
}

/// An entry that was skipped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Skipped {
    /// Its path on the host. Serialised, bytes that are not UTF-8 are replaced.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// The reason.
    pub why: String,
}

fn lossy<S: Serializer>(path: &Path, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&path.to_string_lossy())
}

impl Populated {
    fn skip(&mut self, path: PathBuf, why: impl Into<String>) {
        self.skipped.push(Skipped { path, why: why.into() });
    }

    /// Adds the hash of an entry to the fingerprint.
    fn add_hash(&mut self, hash: u64) {
        self.fingerprint = self.fingerprint.map(|sum| sum.wrapping_add(hash));
    }

    /// Adds the result of another worker or another source.
    fn merge(&mut self, other: Populated) {
        for (mine, its) in [
            (&mut self.dirs, other.dirs),
            (&mut self.linked, other.linked),
            (&mut self.cloned, other.cloned),
            (&mut self.copied, other.copied),
            (&mut self.symlinks, other.symlinks),
            (&mut self.kept, other.kept),
            (&mut self.disowned, other.disowned),
            (&mut self.attributes_lost, other.attributes_lost),
            (&mut self.bytes_shared, other.bytes_shared),
            (&mut self.bytes_copied, other.bytes_copied),
        ] {
            add(mine, its);
        }
        if let (Some(mine), Some(its)) = (&mut self.bytes_linked, other.bytes_linked) {
            add(mine, its);
        }
        self.add_hash(other.fingerprint.unwrap_or(0));
        self.skipped.extend(other.skipped);
        self.sources.extend(other.sources);
    }
}

fn add(count: &mut u64, n: u64) {
    *count = count.saturating_add(n);
}

/// Populates the directory `root` with the sources of `map`.
///
/// No other process may write in the root during the population. At most two populations run at a time in a process and
/// others wait, so a `progress` callback must not start one. A population uses about 200 descriptors and one thread for
/// each CPU, at most four.
///
/// After a population was killed, another one may populate the same root again, which finishes the tree. Until then, an
/// unfinished directory has mode 01700 and an unfinished copy mode 01200; an access control list may change the
/// permission bits. So an existing entry that belongs to the caller or to the source's owner counts as unfinished if it
/// is a file with one name, the sticky bit and neither setuid nor setgid bit, or a directory with the sticky bit and
/// either the setuid bit or no permissions for group and others. Such a file is removed and made again, and such a
/// directory gets the metadata of its source. All other existing entries stay.
///
/// If one destination is below another, its source replaces what the outer source has there.
///
/// # Errors
/// [`Error::Spec`] as [`validate`], and for a method that does not [walk](Method::walks), before anything is made.
/// [`Error::Prepare`] with the refused call and its paths, those in the root as `ROOT "/usr/bin/x"`, or with the
/// exceeded limit (`ErrorKind::QuotaExceeded`). [`Error::Cancelled`] after a [`Cancel`] or a `Break` of the progress
/// callback. Then the entries made so far **stay**, for the caller to remove
/// ([`remove_tree`](crate::rootfs::remove_tree)) or to populate again.
pub fn populate(root: BorrowedFd<'_>, map: &ChrootEnv, options: &Options<'_>) -> Result<Populated> {
    validate(map)?;
    let held = source::hold("chroot_env", map.keys())?;
    populate_held(root, map, &held, options)
}

/// As [`populate`], from sources that are held open.
pub(crate) fn populate_held(
    root: BorrowedFd<'_>,
    map: &ChrootEnv,
    held: &HeldSources,
    options: &Options<'_>,
) -> Result<Populated> {
    validate(map)?;
    if !options.method.walks() {
        let why = format!("a directory can be populated by link, reflink or copy, not by {}", options.method);
        return Err(Error::spec("populate", why));
    }
    let _permit = match options.cancel {
        None => workers::wait_for_permit(),
        Some(cancel) => workers::permit_unless(|| cancel.is_cancelled()).ok_or(Error::Cancelled)?,
    };
    let began = Instant::now();
    // With SIGXFSZ blocked, exceeding RLIMIT_FSIZE causes an error (EFBIG) and no signal that kills the caller. Worker
    // threads inherit the mask.
    let masked = || Error::prepare("rt_sigprocmask(SIG_BLOCK, [XFSZ])");
    let mut done = without_sigxfsz(|| Ok(fill::fill(root, map, held, options))).map_err(masked())??;
    done.sources.sort();
    done.skipped.sort();
    done.elapsed = began.elapsed();
    Ok(done)
}

#[cfg(test)]
pub(crate) mod tests;
