//! Finds out whether a path leads to a file system that another process or machine serves, and asks whether it answers.
//!
//! A call on such a file system waits for its server, without limit. The file systems of the kernel itself set attribute
//! bits by which `statx(2)` tells them from those, so a source on one of them costs no further call. For the others the
//! mount table has the type, and is read once for all sources.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Component, Path, PathBuf};

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
    /// The paths whose file systems have answered.
    paths: RefCell<BTreeSet<PathBuf>>,
}

impl<'a> Reach<'a> {
    /// Asks by this function.
    pub(crate) fn by(ask: &'a Ask<'a>) -> Reach<'a> {
        Reach { ask: Some(ask), ..Reach::unasked() }
    }

    /// Asks nothing, so the caller waits for a file system that does not answer.
    pub(crate) fn unasked() -> Reach<'a> {
        Reach {
            ask: None,
            served: OnceCell::new(),
            asked: Cell::new(false),
            answered: RefCell::default(),
            paths: RefCell::default(),
        }
    }

    /// Whether a source may be on a file system that others serve.
    pub(crate) fn has_asked(&self) -> bool {
        self.asked.get()
    }

    /// Returns when `path` can be looked up without following a symbolic link. Asks only if the host has mounts that others
    /// serve.
    ///
    /// # Errors
    /// `TimedOut` if its file system does not answer.
    pub(crate) fn before(&self, path: &Path) -> io::Result<()> {
        let known = match self.around(path) {
            _ if path.components().any(|part| part == Component::ParentDir) => false,
            None => true,
            // A lookup below an automount point mounts another file system.
            Some(mount) => mount.fs_type != "autofs" && self.answered.borrow().contains(&mount.id),
        };
        if known {
            return Ok(());
        }
        self.before_links(path)
    }

    /// As [`before`](Self::before), with symbolic links, which may lead to another file system.
    ///
    /// # Errors
    /// As [`before`](Self::before).
    pub(crate) fn before_links(&self, path: &Path) -> io::Result<()> {
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

    /// Asks by `path`, which leads to `mount` if that is given.
    fn ask(&self, path: &Path, mount: Option<&Mount>) -> io::Result<()> {
        let Some(ask) = self.ask else { return Ok(()) };
        self.asked.set(true);
        let answered = mount.is_some_and(|mount| self.answered.borrow().contains(&mount.id))
            || self.paths.borrow().contains(path);
        let asked = if answered { Ok(()) } else { ask(path) };
        match asked {
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                let why = match mount.or(self.around(path)) {
                    Some(Mount { point, fs_type, .. }) => {
                        format!("the file system at {point:?} ({fs_type}) does not answer")
                    }
                    None => "its file system does not answer".into(),
                };
                Err(io::Error::new(io::ErrorKind::TimedOut, why))
            }
            asked => {
                self.answered.borrow_mut().extend(mount.map(|mount| mount.id));
                self.paths.borrow_mut().insert(path.to_owned());
                asked
            }
        }
    }

    /// The innermost mount that others serve and that `path` lies in, by its names.
    fn around(&self, path: &Path) -> Option<&Mount> {
        let within = |served: &&Mount| path.starts_with(&served.point);
        self.served().iter().filter(within).max_by_key(|mount| mount.point.as_os_str().len())
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
    TYPES.contains(&fs_type) || fs_type.starts_with("fuse.") || fs_type.starts_with("fuseblk.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_of_others_are_told_by_their_type() {
        for (fs_type, expected) in [
            ("fuse.sshfs", true),
            ("fuse", true),
            ("fuseblk.ntfs", true),
            ("nfs4", true),
            ("fusectl", false),
            ("ext4", false),
            ("tmpfs", false),
        ] {
            assert_eq!(is_served(fs_type), expected, "{fs_type}");
        }
    }

    #[test]
    fn an_answer_counts_only_for_the_file_system_that_gave_it() {
        let mount = |id, point: &str, fs_type: &str| Mount {
            id,
            parent: 0,
            device: "0:1".into(),
            root: "/".into(),
            point: point.into(),
            read_only: false,
            fs_type: fs_type.into(),
            super_options: Vec::new(),
        };
        let asked = RefCell::new(Vec::new());
        let ask = |path: &Path| -> io::Result<()> {
            asked.borrow_mut().push(path.display().to_string());
            Ok(())
        };
        let reach = Reach::by(&ask);
        let mounts = vec![mount(1, "/nfs1", "nfs"), mount(2, "/nfs2", "nfs"), mount(3, "/net", "autofs")];
        let first = mounts[0].clone();
        reach.served.set(mounts).unwrap();
        let now = || std::mem::take(&mut *asked.borrow_mut()).join(" ");
        reach.mount(&first).unwrap();
        assert_eq!(now(), "/nfs1");
        reach.before(Path::new("/nfs1/a")).unwrap();
        assert_eq!(now(), "");
        // The link may lead to /nfs2.
        reach.before_links(Path::new("/nfs1/link")).unwrap();
        reach.before_links(Path::new("/nfs1/link")).unwrap();
        assert_eq!(now(), "/nfs1/link");
        reach.before(Path::new("/nfs2/a")).unwrap();
        reach.before(Path::new("/nfs2/b")).unwrap();
        assert_eq!(now(), "/nfs2/a /nfs2/b", "only a descriptor shows which mount has answered");
        reach.before(Path::new("/usr/a")).unwrap();
        reach.before(Path::new("/usr/../nfs2/c")).unwrap();
        assert_eq!(now(), "/usr/../nfs2/c");
        reach.ask(Path::new("/net/a"), Some(&mount(3, "/net", "autofs"))).unwrap();
        reach.before(Path::new("/net/b")).unwrap();
        assert_eq!(now(), "/net/a /net/b", "a lookup mounts another one");
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
