//! Filling a root directory from the host: which directories, and by which method.
//!
//! A map says which file or directory of the host stands where in the root; `populate` makes it so by
//! hard links ([`Method::Link`]), clones ([`Method::Reflink`]) or copies ([`Method::Copy`]). The three are one chain
//! of attempts, which a method enters at its own: what cannot be linked is cloned, what cannot be cloned is
//! copied, file by file. It works by directory descriptor on both sides, so that no link that a task left in the
//! root leads it out of there, and asks the kernel nothing that `getdents64` has told already.
//! [`Method::Bind`] writes nothing, it is made of mounts, and [`Method::None`] takes the directory as it is;
//! for both this module has nothing to do.
//!
//! What the tree in the root is like:
//!
//! - Directories are made with the mode (all twelve bits), the owner, the times and the attributes of their source.
//!   A parent of a destination, which has no source, takes those of the source's parent while the names agree
//!   from the end upwards (`/run` for `/run/resolvconf`), else it is 0755 and the caller's. A directory that
//!   is there keeps its own.
//! - A linked file is the host's inode: its mode with the setuid bit, times, attributes and content. Who
//!   may write it in the root writes the host's file, so the root must be mounted read-only or the report
//!   must say that `HOST_FILES` is missing. Where the kernel refuses a link (`EXDEV`, `EPERM`, `EMLINK`)
//!   that one file is cloned or copied.
//! - A clone or a copy has the content, the holes, the owner, the permission bits and the times of its source, and
//!   of its extended attributes those of users (`user.*`) and the access control lists. The setuid, setgid and
//!   sticky bits and file capabilities are left out unless [`Options::setuid`] asks for them; a file that
//!   could not be given to its owner never has them. No other attribute comes along.
//!   An attribute that is refused is counted.
//! - Files of one source that are one inode stay one inode, linked or copied: the first name is copied, the others are
//!   linked to the copy. (A run that goes on where another was killed may copy such an inode a second time.)
//! - The owner is kept when the caller may give files away, which takes root; entries that had to become the
//!   caller's are counted.
//! - Symbolic links have the same text, owner and times (they are linked too, where that is the method and the
//!   file system can), and are never followed: neither in the host's tree nor in the root.
//!   Only the source itself that the map names may be a link; it stands for what it points to, be that a
//!   directory or a file, however the host is divided into file systems. A link on the way to a
//!   destination is resolved inside the root.
//! - Fifos, sockets and devices are skipped and listed, as are sources that are not there.
//! - Where destinations overlap, the more specific one wins, as with mounts: what stands there is its source and
//!   nothing of what a shorter one would have put at that path; directories are not merged. It counts by the
//!   names in the map, of sources that the host has; through a link in the root one may still come to stand in
//!   another's directory, and there the first by destination wins. No two destinations may be the same.
//! - What was in the root before stays, and directories that were there are added to.
//! - File systems mounted below a source are entered (their files are copied, as no link crosses a mount),
//!   but for the kernel's own, proc, sysfs, cgroup and the like, whose files are not files. Of those, of the
//!   root itself where it is met below a source, and of the directories that the caller names by device and inode,
//!   there is an empty directory with mode and owner, and they are listed.
//!
//! Who is killed at any point can go on: in the same root a second run comes to the tree that an undisturbed one
//! makes. Each directory and each copied file has, from the call that makes it to the one that finishes it, a
//! mode that says that it is not finished (`dress` says which, and why); there are no other names than the final
//! ones. A copy that is found unfinished is made again, a directory is gone through and finished. So no reader
//! but root can take half a file for a whole one, and a directory of the caller's that happens to be 01700
//! is taken for unfinished. (This is about processes; nothing is synced to survive a power cut.)
//!
//! Nobody else may write in the root meanwhile: what is made there gets its mode and owner by descriptor, but
//! a directory that another one is moved over before it is opened would be that other one. No more than two
//! walks run at a time in a process; others wait.
//!
//! The first refusal ends it with the path. What was made so far stays for the caller to remove, by
//! descriptor: a root that is half filled is not for use. The caller's umask neither matters nor changes.

#![forbid(unsafe_code)]

mod attributes;
mod copy;
mod dest;
mod dress;
mod entry;
mod file;
mod fingerprint;
mod gate;
mod host;
mod late;
mod meter;
mod refused;
mod temp;
mod twins;
mod walk;

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize, Serializer};

use crate::rootfs::source::{self, HeldSources};
use crate::sys::without_sigxfsz;
use crate::{Error, Result};

pub(crate) use fingerprint::fingerprint;
pub(crate) use temp::TempRoot;

/// How the host's files come into the root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The cheapest of the others that the request allows; the report says which, and why.
    Auto,
    /// Bind mounts, read-only: nothing is walked and nothing written.
    #[default]
    Bind,
    /// An overlay file system over each directory (Linux 3.18; 5.11 in a user namespace): writable, what is
    /// written goes to a tmpfs or to [`Root::upper`](crate::Root::upper), and the host is untouched.
    Overlay,
    /// Copies that share their blocks with the host's files until they are written (`FICLONE`, Linux 4.5,
    /// where the file system has it: btrfs, XFS, bcachefs), and plain copies elsewhere.
    Reflink,
    /// Copies.
    Copy,
    /// Hard links, and clones or else copies where the kernel refuses a link.
    Link,
    /// Nothing: the directory is the root as it is.
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

    /// Whether it walks the host's directories and writes files. The others are made of mounts, or of nothing.
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
    type Err = Error;

    fn from_str(s: &str) -> Result<Method> {
        Method::ALL.into_iter().find(|m| m.to_string() == s).ok_or_else(|| {
            let names = Method::ALL.map(|m| m.to_string()).join(", ");
            Error::spec("populate", format!("{s:?} is none of {names}"))
        })
    }
}

/// Source on the host, which may be a file or a directory, to destination in the root, which `/` may begin.
pub type ChrootEnv = BTreeMap<PathBuf, PathBuf>;

/// What a dynamically linked program of the host needs to run: the default map of Nomad's `exec` driver.
pub fn default_chroot_env() -> ChrootEnv {
    ["/bin", "/etc", "/lib", "/lib32", "/lib64", "/run/resolvconf", "/run/systemd/resolve", "/sbin", "/usr"]
        .into_iter()
        .map(|path| (path.into(), path.into()))
        .collect()
}

/// Checks a map without touching anything.
///
/// # Errors
/// [`Error::Spec`] for a source that is not absolute, for either side if it has a `..` or a NUL, and for two
/// sources with the same destination.
pub fn validate(map: &ChrootEnv) -> Result<()> {
    for (source, dest) in map {
        let complain = |what: &str| Err(Error::spec("chroot_env", format!("{source:?} -> {dest:?}: {what}")));
        if !source.is_absolute() {
            return complain("the source is not absolute");
        }
        for path in [source, dest] {
            if path.components().any(|c| c == Component::ParentDir) {
                return complain("a path has a ..");
            }
            if path.as_os_str().as_bytes().contains(&0) {
                return complain("a path has a NUL");
            }
        }
    }
    let mut taken = BTreeMap::new();
    for (source, dest) in map {
        let dest = dest::relative(dest);
        if let Some(other) = taken.insert(dest.clone(), source) {
            let both = format!("{other:?} and {source:?} both go to {:?}", Path::new("/").join(dest));
            return Err(Error::spec("chroot_env", both));
        }
    }
    Ok(())
}

/// How a population goes about it, beside its map.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// [`Link`](Method::Link), [`Reflink`](Method::Reflink) or [`Copy`](Method::Copy). With any other
    /// there is nothing to do.
    pub method: Method,
    /// Copies keep the setuid and setgid bits and the file capabilities of their source. Links and mounts show
    /// them anyway.
    pub setuid: bool,
    /// Directories, by device and inode, that are left empty wherever they are met below a source. The root
    /// itself always is.
    pub skip: &'a [(u64, u64)],
    /// The most entries that may be made, directories included.
    pub max_entries: Option<u64>,
    /// The most bytes that the files of the root may have together, however they came there.
    pub max_bytes: Option<u64>,
    /// Called now and then while the walk runs, from any of its threads, and at the end. It must not populate.
    pub progress: Option<&'a (dyn Fn(Progress) + Sync)>,
    /// Take a [fingerprint](Populated::fingerprint) of the sources.
    pub fingerprint: bool,
}

/// How far a population is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Entries made so far.
    pub entries: u64,
    /// Bytes in their files.
    pub bytes: u64,
}

/// What a population did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Populated {
    /// What became of each source of the map that the host has.
    pub sources: Vec<Source>,
    /// Directories made.
    pub dirs: u64,
    /// Regular files that are hard links to the host's.
    pub linked: u64,
    /// Regular files that share their blocks with the host's.
    pub cloned: u64,
    /// Regular files that are copies, further names of one included.
    pub copied: u64,
    /// Symbolic links made.
    pub symlinks: u64,
    /// Entries that were in the root already and stayed.
    pub kept: u64,
    /// Directories, copies and symbolic links that are the caller's as it may not give them their owner.
    pub disowned: u64,
    /// Directories and copies without an extended attribute of their source, which the file system of the root
    /// or the kernel refused.
    pub attributes_lost: u64,
    /// The bytes in the linked files. Asking for them costs a fifth of the time that linking takes, so it is
    /// done only where there is a byte limit or somebody to tell the progress.
    pub bytes_linked: Option<u64>,
    /// The bytes in the files that share their blocks with the host's.
    pub bytes_shared: u64,
    /// The bytes in the copies, holes not counted.
    pub bytes_copied: u64,
    /// What was left out, by source path.
    pub skipped: Vec<Skipped>,
    /// What the sources were like, when it was asked for.
    pub fingerprint: Option<u64>,
    /// The time that it took.
    pub elapsed: Duration,
}

/// What became of one source of the map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Source {
    /// Its path on the host. Serialised, bytes that are not UTF-8 are replaced.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Its path in the root.
    #[serde(serialize_with = "lossy")]
    pub target: PathBuf,
    /// How it came there. Where the method of the request was refused for all of its files, the one that was
    /// used instead.
    pub method: Method,
}

/// A source that did not come into the root.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Skipped {
    /// Its path on the host. Serialised, bytes that are not UTF-8 are replaced.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Why.
    pub why: String,
}

fn lossy<S: Serializer>(path: &Path, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&path.to_string_lossy())
}

impl Populated {
    /// Nothing yet, with a place for what was asked for.
    fn begin(by: &walk::Settings<'_>) -> Self {
        Populated {
            bytes_linked: by.meter.asks_bytes().then_some(0),
            fingerprint: by.fingerprint.then_some(0),
            ..Populated::default()
        }
    }

    fn skip(&mut self, path: PathBuf, why: impl Into<String>) {
        self.skipped.push(Skipped { path, why: why.into() });
    }

    /// Takes an entry into the fingerprint.
    fn mix(&mut self, hash: u64) {
        self.fingerprint = self.fingerprint.map(|sum| sum.wrapping_add(hash));
    }

    /// Adds what another walker did.
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
        self.mix(other.fingerprint.unwrap_or(0));
        self.skipped.extend(other.skipped);
        self.sources.extend(other.sources);
    }
}

fn add(count: &mut u64, n: u64) {
    *count = count.saturating_add(n);
}

/// Fills the directory `root` as `map` says.
///
/// Nobody else may write in the root meanwhile. At most two run at a time in a process; a third waits, and so a
/// `progress` must not populate by itself. It takes some 200 descriptors and one thread a core, at most four.
///
/// Who is killed may populate the same root again, which finishes what was left. Until then a directory has mode
/// 01700 and a copied file 01200, and what is found with such a mode and of the caller's or the source's owner is
/// taken for unfinished: a file is removed and made again. All else that is in the root stays. Of two destinations
/// of which one lies in the other the longer one wins, whole.
///
/// # Errors
/// [`Error::Spec`] as of [`validate`], and for a method that does not [walk](Method::walks), before anything is
/// touched. Else [`Error::Prepare`] with the call that was refused and its paths, those in the root shown as
/// `ROOT "/usr/bin/x"`, or with the limit that was passed (`ErrorKind::QuotaExceeded`); what was made so far is
/// **there**, for the caller to remove ([`remove_tree`](crate::rootfs::remove_tree)) or to go on with.
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
        let why = format!("a directory is populated by link, reflink or copy, not by {}", options.method);
        return Err(Error::spec("populate", why));
    }
    let _turn = gate::enter();
    let began = Instant::now();
    // A file size limit of the caller's is an error, and no signal that ends it. The walkers inherit that.
    let masked = || Error::prepare("rt_sigprocmask(SIG_BLOCK, [XFSZ])");
    let mut done = without_sigxfsz(|| Ok(entry::all(root, map, held, options))).map_err(masked())??;
    done.sources.sort();
    done.skipped.sort();
    done.elapsed = began.elapsed();
    Ok(done)
}

#[cfg(test)]
pub(crate) mod tests;
