//! How the root of an ended task differs from what it was populated with.
//!
//! A copied root is compared with its sources: type, size, time of modification, mode and owner, and the target of a
//! symbolic link. An overlay keeps in its upper layer what was written to it. Both are walked by descriptor, and no
//! symbolic link is followed. Directories are listed only if they were removed.
//!
//! What it does not do: compare contents. A file that was rewritten with the same size and times is not found.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, fstatat};
use serde::{Deserialize, Serialize};

use super::directory::{DIR, DIR_NOFOLLOW};
use super::lower::layer_name;
use super::{Method, Populated};
use crate::error::{Error, Result};
use crate::sys::fs::{DirentKind, Dirents, fgetxattr};

/// A file of a root that differs from its source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Change {
    /// Its path in the sandbox.
    pub path: PathBuf,
    /// How it differs.
    pub kind: ChangeKind,
}

/// How a file differs from its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ChangeKind {
    /// The task has made it.
    Added,
    /// The task has changed its content or metadata.
    Modified,
    /// The task has removed it; of a removed directory only the top is listed.
    Removed,
}

/// What must be known of a root to compare it.
#[derive(Clone, Debug)]
pub(crate) struct RootRecord {
    pub method: Method,
    /// The directory of the host that is the root, if it is one.
    pub dir: Option<PathBuf>,
    /// The directory of the host that overlays are written to.
    pub upper: Option<PathBuf>,
    /// Whether copies keep setuid and setgid bits.
    pub setuid: bool,
    /// Paths in the sandbox where something is mounted.
    pub mounts: BTreeSet<PathBuf>,
}

impl RootRecord {
    /// The changes, sorted by path.
    ///
    /// # Errors
    /// [`Error::Task`] with the call that was refused; `Unsupported` for a root that cannot be written, and for an overlay
    /// that was written to a tmpfs, which ends with the task.
    pub(crate) fn changes(&self, root: Option<BorrowedFd<'_>>, populated: &Populated) -> Result<Vec<Change>> {
        let mut changes = match (self.method, root, &self.upper) {
            (Method::Copy | Method::Reflink | Method::Link, Some(root), _) => self.copied(root, populated)?,
            (Method::Overlay, _, Some(upper)) => overlaid(upper, populated)?,
            (method, ..) => {
                let why = format!("a root by {method} keeps no changes after the end of the task");
                let source = std::io::Error::new(std::io::ErrorKind::Unsupported, why);
                return Err(Error::Task { step: "compare the root with its sources".into(), source });
            }
        };
        changes.sort();
        Ok(changes)
    }

    fn copied(&self, root: BorrowedFd<'_>, populated: &Populated) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        let sources: Vec<(&Path, PathBuf)> =
            populated.sources.iter().map(|s| (s.path.as_path(), in_sandbox(&s.target))).collect();
        // The source of a path in the sandbox, by the innermost destination.
        let source = |at: &Path| {
            let inner = |(from, to): &(&Path, PathBuf)| {
                Some((to.components().count(), from.join(at.strip_prefix(to).ok()?)))
            };
            sources.iter().filter_map(inner).max_by_key(|(depth, _)| *depth).map(|(_, from)| from)
        };
        let dir = |path: &Path| !self.mounts.contains(path);
        walk(root, Path::new("/"), |at, st, place| {
            if self.mounts.contains(at) {
                return Ok(false);
            }
            let like = source(at).map(|from| (stat(AT_FDCWD, from.as_os_str()), from));
            let kind = match like {
                Some((Ok(like), from)) => {
                    let same = self.same(st, &like, populated) && same_link(st, place, &from);
                    (!same).then_some(ChangeKind::Modified)
                }
                _ => Some(ChangeKind::Added),
            };
            let is_dir = DirentKind::of_mode(st.st_mode) == DirentKind::Dir;
            if let Some(kind) = kind.filter(|_| !is_dir) {
                changes.push(Change { path: at.to_path_buf(), kind });
            }
            Ok(dir(at))
        })?;
        let skipped: BTreeSet<&Path> = populated.skipped.iter().map(|s| s.path.as_path()).collect();
        for (from, to) in &sources {
            let Ok(top) = open(AT_FDCWD, from.as_os_str(), DIR) else {
                if is_absent(root, to) && stat(AT_FDCWD, from.as_os_str()).is_ok() {
                    changes.push(Change { path: to.clone(), kind: ChangeKind::Removed });
                }
                continue;
            };
            walk(top.as_fd(), to, |at, st, _| {
                let on_host = at.strip_prefix(to).map(|rest| from.join(rest)).unwrap_or_default();
                let hidden = self.mounts.contains(at) || sources.iter().any(|(_, other)| other == at);
                let made = matches!(
                    DirentKind::of_mode(st.st_mode),
                    DirentKind::Dir | DirentKind::File | DirentKind::Symlink
                );
                if hidden || skipped.contains(on_host.as_path()) || !made {
                    return Ok(false);
                }
                let removed = is_absent(root, at);
                if removed {
                    changes.push(Change { path: at.to_path_buf(), kind: ChangeKind::Removed });
                }
                Ok(!removed)
            })?;
        }
        Ok(changes)
    }

    fn same(&self, st: &FileStat, like: &FileStat, populated: &Populated) -> bool {
        if (st.st_dev, st.st_ino) == (like.st_dev, like.st_ino) {
            return true;
        }
        let bits = if self.setuid { 0o7777 } else { 0o1777 };
        let kind = libc::S_IFMT | bits;
        let owner = populated.disowned > 0 || (st.st_uid, st.st_gid) == (like.st_uid, like.st_gid);
        let link = DirentKind::of_mode(st.st_mode) == DirentKind::Symlink;
        owner
            && st.st_mode & kind == like.st_mode & kind
            && st.st_size == like.st_size
            && (link || (st.st_mtime, st.st_mtime_nsec) == (like.st_mtime, like.st_mtime_nsec))
    }
}

/// The changes in the upper layers of overlays in `upper`.
fn overlaid(upper: &Path, populated: &Populated) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    let refused = |e: Errno| Error::task(format!("openat({upper:?}, O_DIRECTORY)"))(e);
    let layers = open(AT_FDCWD, upper.as_os_str(), DIR).map_err(refused)?;
    for source in &populated.sources {
        let target = in_sandbox(&source.target);
        let layer = PathBuf::from(OsStr::from_bytes(&layer_name(&target))).join("upper");
        // A file has no overlay, and neither has a source that another overlay shows.
        let Ok(top) = open(layers.as_fd(), layer.as_os_str(), DIR_NOFOLLOW) else { continue };
        walk(top.as_fd(), &target, |at, st, place| {
            let from = at.strip_prefix(&target).map(|rest| source.path.join(rest)).unwrap_or_default();
            let below = stat(AT_FDCWD, from.as_os_str()).is_ok();
            let kind = match DirentKind::of_mode(st.st_mode) {
                DirentKind::Dir => {
                    if below && is_opaque(place, at) {
                        replaced(&from, at, place, &mut changes)?;
                    }
                    return Ok(true);
                }
                _ if st.st_mode & libc::S_IFMT == libc::S_IFCHR && st.st_rdev == 0 => ChangeKind::Removed,
                _ if below => ChangeKind::Modified,
                _ => ChangeKind::Added,
            };
            changes.push(Change { path: at.to_path_buf(), kind });
            Ok(true)
        })?;
    }
    Ok(changes)
}

/// Whether the upper layer's directory `at` hides that of the lower layer (`overlay.opaque`).
fn is_opaque(place: BorrowedFd<'_>, at: &Path) -> bool {
    let Some(name) = at.file_name() else { return false };
    let Ok(dir) = open(place, name, DIR_NOFOLLOW) else { return false };
    [c"trusted.overlay.opaque", c"user.overlay.opaque"].into_iter().any(|name| {
        let mut value = [0u8; 1];
        fgetxattr(dir.as_fd(), name, &mut value).is_ok_and(|n| n == 1 && value == *b"y")
    })
}

/// What an opaque directory of the upper layer hides and does not have itself.
fn replaced(from: &Path, at: &Path, place: BorrowedFd<'_>, changes: &mut Vec<Change>) -> Result<()> {
    let (Ok(lower), Some(name)) = (open(AT_FDCWD, from.as_os_str(), DIR), at.file_name()) else {
        return Ok(());
    };
    walk(lower.as_fd(), at, |hidden, _, _| {
        let rest = Path::new(name).join(hidden.strip_prefix(at).unwrap_or(hidden));
        if stat(place, rest.as_os_str()) == Err(Errno::ENOENT) {
            changes.push(Change { path: hidden.to_path_buf(), kind: ChangeKind::Removed });
        }
        Ok(false)
    })
}

/// Calls `visit` with each entry below `top`, with its path below `at`, its metadata, and its directory. Descends where
/// `visit` says so.
fn walk(
    top: BorrowedFd<'_>,
    at: &Path,
    mut visit: impl FnMut(&Path, &FileStat, BorrowedFd<'_>) -> Result<bool>,
) -> Result<()> {
    let mut left = vec![PathBuf::new()];
    let mut dirents = Dirents::new();
    while let Some(relative) = left.pop() {
        let refused = |call: &str| Error::task(format!("{call}({:?})", at.join(&relative)));
        let name = if relative.as_os_str().is_empty() { OsStr::new(".") } else { relative.as_os_str() };
        let dir = open(top, name, DIR_NOFOLLOW).map_err(refused("openat2"))?;
        let mut names: Vec<CString> = Vec::new();
        while let Some(batch) = dirents.read(dir.as_fd()).map_err(refused("getdents64"))? {
            names.extend(batch.map(|entry| entry.name.to_owned()));
        }
        for name in names {
            let name = OsStr::from_bytes(name.to_bytes());
            // The host may remove a file of a source meanwhile.
            let Ok(st) = stat(dir.as_fd(), name) else { continue };
            let path = relative.join(name);
            let descend = visit(&at.join(&path), &st, dir.as_fd())?;
            if descend && DirentKind::of_mode(st.st_mode) == DirentKind::Dir {
                left.push(path);
            }
        }
    }
    Ok(())
}

/// Opens a directory below `dir`. Below a descriptor, no component may be a symbolic link.
fn open(dir: impl AsFd, path: &OsStr, flags: OFlag) -> nix::Result<OwnedFd> {
    let beneath = if flags == DIR { ResolveFlag::empty() } else { RESOLVE };
    openat2(dir, path, OpenHow::new().flags(flags).resolve(beneath))
}

const RESOLVE: ResolveFlag = ResolveFlag::RESOLVE_BENEATH.union(ResolveFlag::RESOLVE_NO_SYMLINKS);

fn stat(dir: impl AsFd, path: &OsStr) -> nix::Result<FileStat> {
    fstatat(dir, path, AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// Whether a path of the sandbox does not exist in the root.
fn is_absent(root: BorrowedFd<'_>, at: &Path) -> bool {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    matches!(openat2(root, at, how), Err(Errno::ENOENT | Errno::ENOTDIR))
}

/// Whether a symbolic link leads where that on the host does. Other files do.
fn same_link(st: &FileStat, place: BorrowedFd<'_>, from: &Path) -> bool {
    if DirentKind::of_mode(st.st_mode) != DirentKind::Symlink {
        return true;
    }
    let Some(name) = from.file_name() else { return false };
    readlinkat(place, name).ok() == nix::fcntl::readlink(from).ok()
}

/// A destination as an absolute path of the sandbox.
fn in_sandbox(target: &Path) -> PathBuf {
    Path::new("/").join(target.strip_prefix("/").unwrap_or(target))
}
