//! Lists the files in the root of an ended task that differ from their sources.
//!
//! A copied root is compared with its sources: type, size, time of modification, mode, owner, and the target of a
//! symbolic link. Of an overlay, the upper layer is read: it contains everything that was written. Both are walked by
//! descriptor, and no symbolic link in them is followed. A directory is listed only if it was removed.
//!
//! Contents are not compared: a file that was rewritten with the same size and times is not listed.

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

/// Facts about a root that are kept until the task has ended, to list the changes then.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// [`Error::Task`] with the refused call. Its source is `ErrorKind::Unsupported` for a root that has no changes to
    /// list: bind mounts are read-only, `none` has no sources, and an overlay's tmpfs ends with the task.
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
        // The path on the host that corresponds to a path in the sandbox. The innermost destination decides.
        let source = |at: &Path| {
            let inner = |(from, to): &(&Path, PathBuf)| {
                Some((to.components().count(), below(from, at.strip_prefix(to).ok()?)))
            };
            sources.iter().filter_map(inner).max_by_key(|(depth, _)| *depth).map(|(_, from)| from)
        };
        let dir = |path: &Path| !self.mounts.contains(path);
        walk(root, Path::new("/"), |at, st, place| {
            if self.mounts.contains(at) {
                return Ok(false);
            }
            // A source that is a symbolic link stands for the file that it points to.
            let top = sources.iter().any(|(_, to)| to == at);
            let look = |from: &Path| match top {
                true => fstatat(AT_FDCWD, from, AtFlags::empty()),
                false => stat(AT_FDCWD, from.as_os_str()),
            };
            let like = source(at).map(|from| (look(&from), from));
            let kind = match like {
                Some((Ok(like), from)) => {
                    let same = self.same(st, &like, populated) && same_link(st, place, at, &from);
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
        // A source that is a file has no layer. Nor has a source that the overlay of another source shows.
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

/// Whether the directory `at` of the upper layer hides the content of the same directory in the lower layer
/// (`overlay.opaque`). `place` is the directory that contains it.
fn is_opaque(place: BorrowedFd<'_>, at: &Path) -> bool {
    let Some(name) = at.file_name() else { return false };
    let Ok(dir) = open(place, name, DIR_NOFOLLOW) else { return false };
    [c"trusted.overlay.opaque", c"user.overlay.opaque"].into_iter().any(|name| {
        let mut value = [0u8; 1];
        fgetxattr(dir.as_fd(), name, &mut value).is_ok_and(|n| n == 1 && value == *b"y")
    })
}

/// Adds the removals in an opaque directory `at` of the upper layer, which `place` contains: each entry of the lower
/// directory `from` that the opaque directory does not have.
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

/// Calls `visit` for each entry below the directory `top`, with its path, its metadata and the open directory that
/// contains it. Paths begin with `at`, which stands for `top`. Descends into a directory if `visit` returns true.
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

/// Opens a directory. With [`DIR_NOFOLLOW`], the path must stay below `dir` and no component may be a symbolic link.
/// With [`DIR`], which is for paths of the host, symbolic links are followed.
fn open(dir: impl AsFd, path: &OsStr, flags: OFlag) -> nix::Result<OwnedFd> {
    let beneath = if flags == DIR { ResolveFlag::empty() } else { RESOLVE };
    openat2(dir, path, OpenHow::new().flags(flags).resolve(beneath))
}

const RESOLVE: ResolveFlag = ResolveFlag::RESOLVE_BENEATH.union(ResolveFlag::RESOLVE_NO_SYMLINKS);

fn stat(dir: impl AsFd, path: &OsStr) -> nix::Result<FileStat> {
    fstatat(dir, path, AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// `rest` below `dir`. A path that ends with a slash would be that of a directory only.
fn below(dir: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { dir.to_path_buf() } else { dir.join(rest) }
}

/// Whether a path of the sandbox does not exist in the root.
fn is_absent(root: BorrowedFd<'_>, at: &Path) -> bool {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    matches!(openat2(root, at, how), Err(Errno::ENOENT | Errno::ENOTDIR))
}

/// Whether the symbolic link `at`, in the directory `place`, has the same target as the one at `from` on the host. True
/// for all other files.
fn same_link(st: &FileStat, place: BorrowedFd<'_>, at: &Path, from: &Path) -> bool {
    if DirentKind::of_mode(st.st_mode) != DirentKind::Symlink {
        return true;
    }
    let Some(name) = at.file_name() else { return false };
    readlinkat(place, name).ok() == nix::fcntl::readlink(from).ok()
}

/// Converts a destination to an absolute path in the sandbox.
fn in_sandbox(target: &Path) -> PathBuf {
    Path::new("/").join(target.strip_prefix("/").unwrap_or(target))
}
