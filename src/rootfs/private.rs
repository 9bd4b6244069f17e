//! Files of the host's `/etc` that other users cannot read, and how a root hides them.
//!
//! If the file system allows it, the root has an idmapped mount of `/etc` in which no file has an owner. Then no task can
//! read them, whatever its user and capabilities are, and whatever the host makes or replaces there. Otherwise each of
//! them is masked.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, fstatat};
use serde::{Serialize, Serializer};

use super::FileKind;
use super::directory::DIR_NOFOLLOW;
use crate::error::{Error, Result};
use crate::sys::fs::{self, Dirents};
use crate::sys::user_ns;

/// The directory with private files.
pub(crate) const TOP: &str = "/etc";

/// How the private files can be hidden. Serialised as whether an idmapped mount can hide them.
#[derive(Clone, Debug)]
pub(crate) struct Private {
    /// The user namespace of an idmapped mount; `None` if there can be none.
    users: Option<Arc<OwnedFd>>,
    /// The private files of a host that is described and not probed.
    described: Option<Vec<(PathBuf, FileKind)>>,
}

impl Private {
    /// Makes an idmapped mount of `/etc` that is attached nowhere, and drops it.
    ///
    /// # Errors
    /// The caller has too few descriptors or too little memory, so the host is not known.
    pub(crate) fn probe() -> Result<Private> {
        let users = match idmapped() {
            Ok(users) => Some(Arc::new(users)),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) => {
                return Err(Error::prepare(tree_call())(e));
            }
            Err(_) => None,
        };
        Ok(Private { users, described: None })
    }

    /// Whether `/etc` could be an idmapped mount when the host was probed.
    pub(crate) fn is_idmapped(&self) -> bool {
        self.users.is_some()
    }

    /// The user namespace of an idmapped mount of the directory `top`; `None` if it cannot be one now. The host may have
    /// mounted another file system below it.
    ///
    /// # Errors
    /// A refused call that says nothing about the file system.
    pub(crate) fn users_for(&self, top: BorrowedFd<'_>) -> Result<Option<Arc<OwnedFd>>> {
        let Some(users) = &self.users else { return Ok(None) };
        // The plan has other steps of these calls, for the mount that is attached.
        let tree = fs::clone_tree(top, true).map_err(Error::prepare(tree_call()))?;
        match fs::map_ids(tree.as_fd(), users.as_fd()) {
            Ok(()) => Ok(Some(Arc::clone(users))),
            Err(Errno::EINVAL) => Ok(None),
            Err(e) => Err(Error::prepare(format!("mount_setattr(a tree of {TOP:?}, MOUNT_ATTR_IDMAP)"))(e)),
        }
    }

    /// The private files and directories below `/etc`, each with its type. Lists them anew, since the host makes others.
    ///
    /// # Errors
    /// The refused call: a file that it did not show would have no mask.
    pub(crate) fn list(&self) -> Result<Vec<(PathBuf, FileKind)>> {
        self.described.clone().map_or_else(|| walk(Path::new(TOP)), Ok)
    }

    /// A host with these files and without idmapped mounts.
    #[cfg(test)]
    pub(crate) fn listed(list: &[(&str, FileKind)]) -> Private {
        let list = list.iter().map(|(path, kind)| (PathBuf::from(path), *kind));
        Private { users: None, described: Some(list.collect()) }
    }
}

impl Serialize for Private {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_bool(self.is_idmapped())
    }
}

/// The call that clones the mount tree, in strace's format.
fn tree_call() -> String {
    format!("open_tree({TOP:?}, OPEN_TREE_CLONE|AT_RECURSIVE)")
}

/// Creates the user namespace, and tries whether it can be that of a mount of `/etc`.
fn idmapped() -> io::Result<OwnedFd> {
    let top = open(TOP, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    // A caller that may not clone mount trees needs no namespace.
    let tree = fs::clone_tree(top.as_fd(), true)?;
    let users = user_ns::without_users()?;
    fs::map_ids(tree.as_fd(), users.as_fd())?;
    Ok(users)
}

/// Lists files below `top` that other users may not read, and directories that other users may not read or enter. Does
/// not list the content of such directories, nor anything that the caller cannot access, because the task cannot access
/// it either.
fn walk(top: &Path) -> Result<Vec<(PathBuf, FileKind)>> {
    let mut found = Vec::new();
    if let Some(dir) = shown(open(top, DIR_NOFOLLOW, Mode::empty()), || open_call(top))? {
        below(&dir, top, &mut Dirents::new(), &mut found)?;
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// `None` if the caller cannot access the file, or if it is gone or has become something else.
fn shown<T>(done: nix::Result<T>, call: impl FnOnce() -> String) -> Result<Option<T>> {
    match done {
        Err(Errno::EACCES | Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
        done => done.map(Some).map_err(|e| Error::prepare(call())(e)),
    }
}

fn open_call(dir: &Path) -> String {
    format!("openat({dir:?}, O_DIRECTORY)")
}

/// Adds the private entries below `dir` to `found`. Reads each directory completely before its subdirectories, so that
/// one buffer is enough.
fn below(dir: &OwnedFd, at: &Path, buffer: &mut Dirents, found: &mut Vec<(PathBuf, FileKind)>) -> Result<()> {
    let mut inner = Vec::new();
    while let Some(batch) =
        buffer.read(dir.as_fd()).map_err(|e| Error::prepare(format!("getdents64({at:?})"))(e))?
    {
        for entry in batch {
            if !matches!(entry.kind, fs::DirentKind::Dir | fs::DirentKind::File | fs::DirentKind::Unknown) {
                continue;
            }
            let path = || at.join(OsStr::from_bytes(entry.name.to_bytes()));
            let st = fstatat(dir, entry.name, AtFlags::AT_SYMLINK_NOFOLLOW);
            let Some(st) = shown(st, || format!("newfstatat({:?})", path()))? else { continue };
            match st.st_mode & libc::S_IFMT {
                libc::S_IFDIR if st.st_mode & 0o005 == 0o005 => inner.push((entry.name.to_owned(), path())),
                libc::S_IFDIR => found.push((path(), FileKind::Dir)),
                libc::S_IFREG if st.st_mode & 0o004 == 0 => found.push((path(), FileKind::File)),
                _ => {}
            }
        }
    }
    for (name, path) in inner {
        let next = openat(dir, name.as_c_str(), DIR_NOFOLLOW, Mode::empty());
        if let Some(next) = shown(next, || open_call(&path))? {
            below(&next, &path, buffer, found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_users_may_not_read_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in [("open", 0o644), ("group", 0o640), ("none", 0), ("others", 0o604)] {
            let path = dir.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        for (name, mode) in [("in", 0o755), ("in/shut", 0o711), ("in/blind", 0o754)] {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("file"), "").unwrap();
            std::fs::set_permissions(path.join("file"), std::fs::Permissions::from_mode(0o0)).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let found = walk(dir.path()).unwrap();
        let found: Vec<_> =
            found.iter().map(|(path, _)| path.strip_prefix(dir.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(found, ["group", "in/blind", "in/file", "in/shut", "none"]);
    }
}
