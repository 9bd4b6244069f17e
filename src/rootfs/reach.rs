//! Finds out whether a path leads to a file system that another process or machine serves, and asks whether it answers.
//!
//! A call on such a file system waits for its server, without limit. The file systems of the kernel itself set attribute
//! bits by which `statx(2)` tells them from those, so a source on one of them costs no further call. For the others the
//! mount table has the type, and is read once for all sources.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::sys::stat::fstat;

use super::probe::Look;
use crate::sys::fs::{FileId, look};
use crate::sys::mountinfo::Mount;

/// Asks a file system whether it answers. The error is `TimedOut` if it does not.
pub(crate) type Ask<'a> = dyn Fn(&Path) -> io::Result<()> + 'a;

/// The file systems that are reached while the sources of one spec are opened.
pub(crate) struct Reach<'a> {
    ask: Option<&'a Ask<'a>>,
    /// The mounts of file systems that others serve.
    served: OnceCell<Vec<Mount>>,
    asked: Cell<bool>,
    /// The ids of the mounts that have answered.
    answered: RefCell<BTreeSet<i32>>,
}

impl<'a> Reach<'a> {
    /// Asks by this function.
    pub(crate) fn by(ask: &'a Ask<'a>) -> Reach<'a> {
        Reach { ask: Some(ask), ..Reach::unasked() }
    }

    /// Asks nothing, so the caller waits for a file system that does not answer.
    pub(crate) fn unasked() -> Reach<'a> {
        Reach { ask: None, served: OnceCell::new(), asked: Cell::new(false), answered: RefCell::default() }
    }

    /// Whether a source may be on a file system that others serve.
    pub(crate) fn has_asked(&self) -> bool {
        self.asked.get()
    }

    /// Returns when `path` can be looked up. Asks only if the host has mounts that others serve.
    ///
    /// # Errors
    /// `TimedOut` if its file system does not answer.
    pub(crate) fn before(&self, path: &Path) -> io::Result<()> {
        match self.served().is_empty() {
            true => Ok(()),
            false => self.ask(path, None),
        }
    }

    /// Type, owner and device of the open file `fd`, which was found at `path`.
    ///
    /// # Errors
    /// As [`before`](Self::before), or the refused call.
    pub(super) fn look(&self, fd: BorrowedFd<'_>, path: &Path) -> io::Result<Look> {
        let (id, local): (FileId, bool) = look(fd)?;
        if local || self.ask.is_none() {
            return Ok(Look::of_id(&id));
        }
        let mount = id.mount.and_then(|id| i32::try_from(id).ok());
        let found = self.served().iter().find(|served| mount.is_none_or(|mount| mount == served.id));
        if let Some(served) = found {
            self.ask(path, Some(served))?;
            return Ok(Look::of(&fstat(fd)?));
        }
        Ok(Look::of_id(&id))
    }

    /// Returns when the file system of a mount has answered, if others serve it.
    ///
    /// # Errors
    /// `TimedOut` if it does not answer.
    pub(crate) fn mount(&self, mount: &Mount) -> io::Result<()> {
        if is_served(&mount.fs_type) { self.ask(&mount.point, Some(mount)) } else { Ok(()) }
    }

    fn ask(&self, path: &Path, mount: Option<&Mount>) -> io::Result<()> {
        let Some(ask) = self.ask else { return Ok(()) };
        self.asked.set(true);
        let within = |served: &&Mount| path.starts_with(&served.point);
        let by_path = self.served().iter().filter(within).max_by_key(|m| m.point.as_os_str().len());
        if mount.or(by_path).is_some_and(|mount| self.answered.borrow().contains(&mount.id)) {
            return Ok(());
        }
        match ask(path) {
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                let why = match mount.or(by_path) {
                    Some(Mount { point, fs_type, .. }) => {
                        format!("the file system at {point:?} ({fs_type}) does not answer")
                    }
                    None => "its file system does not answer".into(),
                };
                Err(io::Error::new(io::ErrorKind::TimedOut, why))
            }
            asked => {
                self.answered.borrow_mut().extend(mount.or(by_path).map(|mount| mount.id));
                asked
            }
        }
    }

    fn served(&self) -> &[Mount] {
        self.served.get_or_init(|| {
            let mounts = Mount::table().unwrap_or_default();
            mounts.into_iter().filter(|mount| is_served(&mount.fs_type)).collect()
        })
    }
}

/// Whether another process or machine serves the file systems of this type.
fn is_served(fs_type: &str) -> bool {
    const TYPES: [&str; 17] = [
        "fuse", "fuseblk", "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "ceph", "afs", "autofs",
        "coda", "lustre", "orangefs", "ocfs2", "gfs2",
    ];
    TYPES.contains(&fs_type) || fs_type.starts_with("fuse.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_of_others_are_told_by_their_type() {
        for (fs_type, expected) in [
            ("fuse.sshfs", true),
            ("fuse", true),
            ("nfs4", true),
            ("fusectl", false),
            ("ext4", false),
            ("tmpfs", false),
        ] {
            assert_eq!(is_served(fs_type), expected, "{fs_type}");
        }
    }

    #[test]
    fn usual_sources_are_not_asked_for() {
        let ask = |path: &Path| -> io::Result<()> { panic!("{path:?} is asked for") };
        let reach = Reach::by(&ask);
        for path in ["/", "/usr", "/etc/passwd"] {
            assert!(super::super::source::open(Path::new(path), &reach).unwrap().is_some());
        }
        assert!(!reach.has_asked());
    }
}
