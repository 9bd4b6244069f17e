//! Proves that nothing is mounted on any part of a tree, from the mount table of the calling thread.
//!
//! The tree is given by the descriptor of its parent. The kernel shows the parent's path (the link in `/proc`) and the
//! mount that it was opened through (`statx(2)`, Linux 5.8). The mount table says which directory of which file system
//! that mount shows. Two kinds of mounts are found:
//!
//! - mounts at the tree or below it, whose parent is that mount;
//! - mounts on directories of the tree whose parent is another mount of the same file system, for example at another
//!   path. The removal itself would notice these only when it reaches the directory.
//!
//! If anything cannot be read or parsed, or is inconsistent, there is no proof.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};

use super::{Left, Leftovers};
use crate::sys::fs::mount_id;
use crate::sys::mountinfo::Mount;

/// The mount table of the thread, because a thread may have its own mount namespace and root.
const TABLE: &str = "/proc/thread-self/mountinfo";

/// Returns an error with all mounts at `name` in `parent` or below, or with the call whose failure leaves that unknown.
pub(super) fn nothing_is_mounted(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Leftovers> {
    let link = PathBuf::from(format!("/proc/thread-self/fd/{}", parent.as_raw_fd()));
    let facts = MountFacts {
        path: std::fs::read_link(&link),
        mount: mount_id(parent),
        // Read last, so that it is as recent as possible.
        table: std::fs::read(TABLE),
        link,
    };
    match facts.mounts_at(name, |path| leads_to(path, parent).unwrap_or(false)) {
        Ok(mounts) if mounts.is_empty() => Ok(()),
        Ok(mounts) => Err(Leftovers(mounts.into_iter().map(|at| Left::stays(at, Errno::EBUSY)).collect())),
        Err(left) => Err(Leftovers(vec![left])),
    }
}

/// Whether `path` leads to the directory `dir`, on the same mount.
fn leads_to(path: &Path, dir: BorrowedFd<'_>) -> nix::Result<bool> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let there = open(path, flags, Mode::empty())?;
    let (a, b) = (fstat(&there)?, fstat(dir)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) && mount_id(there.as_fd())? == mount_id(dir)?)
}

/// What the kernel shows about the parent and the mounts.
struct MountFacts {
    /// The link in `/proc` that shows the path of the parent.
    link: PathBuf,
    path: io::Result<PathBuf>,
    mount: nix::Result<Option<u64>>,
    table: io::Result<Vec<u8>>,
}

impl MountFacts {
    /// Returns the mount points at `name` or below, as paths that begin with `name`. Mount points outside of the tree
    /// are absolute paths. `leads_back` returns whether a path leads to the parent.
    fn mounts_at(&self, name: &OsStr, leads_back: impl FnOnce(&Path) -> bool) -> Result<Vec<PathBuf>, Left> {
        let unread = |call, path: &Path, errno| Left { path: path.into(), errno, call };
        let parent = self.path.as_ref().map_err(|e| unread("readlink", &self.link, errno(e)))?;
        let text = self.table.as_ref().map_err(|e| unread("read", Path::new(TABLE), errno(e)))?;
        let id = self.mount.and_then(|id| id.ok_or(Errno::ENOSYS));
        let id = id.map_err(|errno| unread("statx", &self.link, errno))?;
        let lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let mounts: Option<Vec<Mount>> = lines.map(Mount::parse).collect();
        let mounts = mounts.ok_or_else(|| unread("read", Path::new(TABLE), Errno::EBADMSG))?;
        let table = MountTable::new(&mounts, id);
        // The table does not list the parent's mount if it is in another mount namespace or detached, or if the
        // thread's root is a directory that is not a mount point. Only in the last case does the path lead to the
        // parent.
        if table.own(parent).is_none() && !leads_back(parent) {
            return Err(unread("read", Path::new(TABLE), Errno::EXDEV));
        }
        Ok(table.mounted(parent, name))
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// All mounts, and the id of the mount that the tree is on.
struct MountTable<'a> {
    mounts: BTreeMap<u64, &'a Mount>,
    id: u64,
}

impl<'a> MountTable<'a> {
    fn new(mounts: &'a [Mount], id: u64) -> Self {
        let known = mounts.iter().filter_map(|mount| Some((u64::try_from(mount.id).ok()?, mount)));
        MountTable { mounts: known.collect(), id }
    }

    /// The mount that the tree is on, if `parent` is a path on it.
    fn own(&self, parent: &Path) -> Option<&'a Mount> {
        self.mounts.get(&self.id).copied().filter(|own| parent.starts_with(&own.point))
    }

    /// See [`MountFacts::mounts_at`]. A mount on top of another listed one is left out.
    fn mounted(&self, parent: &Path, name: &OsStr) -> Vec<PathBuf> {
        let tree = parent.join(name);
        // The file system that contains the tree, and the path of the tree in it.
        let in_fs = self.own(parent).and_then(|own| Some((&own.device, path_in_fs(own, &tree)?)));
        let is_in = |mount: &Mount| {
            let on = u64::try_from(mount.parent).ok()?;
            if on == self.id {
                return Some(mount.point.starts_with(&tree));
            }
            let (on, (device, tree)) = (self.mounts.get(&on)?, in_fs.as_ref()?);
            Some(on.device == **device && path_in_fs(on, &mount.point)?.starts_with(tree))
        };
        let found = self.mounts.values().filter(|mount| is_in(mount) == Some(true));
        let mut found: Vec<PathBuf> =
            found.map(|mount| path_from_parent(&mount.point, parent, &tree)).collect();
        // Sorted by component, so that the paths below one follow it directly.
        found.sort();
        found.dedup_by(|next, kept| next.starts_with(kept));
        found
    }
}

/// The path in its file system of `path`, which is on `mount`.
fn path_in_fs(mount: &Mount, path: &Path) -> Option<PathBuf> {
    path.strip_prefix(&mount.point).ok().map(|below| mount.root.join(below))
}

fn path_from_parent(point: &Path, parent: &Path, tree: &Path) -> PathBuf {
    let below = point.starts_with(tree).then(|| point.strip_prefix(parent).ok()).flatten();
    below.unwrap_or(point).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
        20 1 8:1 / / rw - ext4 /dev/sda rw\n\
        21 20 0:5 / /proc rw - proc proc rw\n\
        30 20 0:9 /part /srv/my\\040roots rw shared:1 - tmpfs t rw\n\
        31 20 0:9 / /other rw - tmpfs t rw\n";

    fn facts(more: &str) -> MountFacts {
        MountFacts {
            link: "/proc/thread-self/fd/7".into(),
            path: Ok("/srv/my roots/base".into()),
            mount: Ok(Some(30)),
            table: Ok(format!("{MOUNTS}{more}").into()),
        }
    }

    fn mounted(more: &str) -> Vec<String> {
        let found =
            facts(more).mounts_at(OsStr::new("tree"), |_| panic!("its mount is in the table")).unwrap();
        found.iter().map(|path| path.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn mounts_in_the_tree_are_listed_and_others_are_not() {
        let roots = "/srv/my\\040roots";
        let none: [&str; 0] = [];
        assert_eq!(mounted(""), none);
        for (on, point, expected) in [
            (30, format!("{roots}/base/tree"), &["tree"][..]),
            (30, format!("{roots}/base/tree/a\\012b/\\134x"), &["tree/a\nb/\\x"]),
            (30, format!("{roots}/base/tree-2"), &[]),
            (30, format!("{roots}/base"), &[]),
            (30, format!("{roots}/tree"), &[]),
            (30, roots.into(), &[]),
            // Another mount of the same directory, and other directories with similar paths.
            (31, "/other/part/base/tree/x".into(), &["/other/part/base/tree/x"]),
            (31, "/other/part/base/tree".into(), &["/other/part/base/tree"]),
            (31, "/other/base/tree/x".into(), &[]),
            (20, format!("{roots}/base/tree/x"), &[]),
            (99, format!("{roots}/base/tree/x"), &[]),
        ] {
            assert_eq!(
                mounted(&format!("50 {on} 0:33 / {point} rw - xfs x rw\n")),
                expected,
                "{point} on {on}"
            );
        }
    }

    #[test]
    fn mounts_on_top_of_a_listed_mount_are_not_listed() {
        let at = "/srv/my\\040roots/base/tree";
        let lines = [(50, 30, "b"), (51, 50, "b/deep"), (52, 30, "a"), (53, 52, "a"), (54, 30, "a-b")];
        let text = lines.map(|(id, on, name)| format!("{id} {on} 0:9 /x {at}/{name} rw - tmpfs t rw\n"));
        assert_eq!(mounted(&text.concat()), ["tree/a", "tree/a-b", "tree/b"]);
        // A mount of a part of the tree in another part of it.
        let text = format!(
            "50 30 0:9 /part/base/tree/y {at}/b rw - tmpfs t rw\n51 50 0:7 / {at}/b/c rw - tmpfs t rw\n"
        );
        assert_eq!(mounted(&text), ["tree/b"]);
    }

    /// Covers a caller without `/proc`.
    #[test]
    fn missing_or_inconsistent_mount_facts_are_an_error() {
        let missing = || io::Error::from_raw_os_error(Errno::ENOENT as i32);
        let link = "/proc/thread-self/fd/7";
        let cases: [(MountFacts, &str, &str, Errno); 7] = [
            (MountFacts { table: Err(missing()), ..facts("") }, "read", TABLE, Errno::ENOENT),
            (MountFacts { path: Err(missing()), ..facts("") }, "readlink", link, Errno::ENOENT),
            (MountFacts { mount: Ok(None), ..facts("") }, "statx", link, Errno::ENOSYS),
            (MountFacts { mount: Err(Errno::EPERM), ..facts("") }, "statx", link, Errno::EPERM),
            (MountFacts { mount: Ok(Some(77)), ..facts("") }, "read", TABLE, Errno::EXDEV),
            (MountFacts { path: Ok("/srv/elsewhere".into()), ..facts("") }, "read", TABLE, Errno::EXDEV),
            (facts("50 30 0:33 / /srv\n"), "read", TABLE, Errno::EBADMSG),
        ];
        for (facts, call, path, errno) in cases {
            let left = facts.mounts_at(OsStr::new("tree"), |_| false);
            assert_eq!(left, Err(Left { path: path.into(), errno, call }));
        }
        assert!(
            MountFacts { table: Ok(Vec::new()), ..facts("") }
                .mounts_at(OsStr::new("tree"), |_| false)
                .is_err()
        );
    }

    #[test]
    fn an_unlisted_parent_mount_is_accepted_if_its_path_leads_back_to_it() {
        let unlisted = |more: &str| {
            let facts = MountFacts { mount: Ok(Some(77)), ..facts(more) };
            facts.mounts_at(OsStr::new("tree"), |path| path == Path::new("/srv/my roots/base")).unwrap()
        };
        assert_eq!(unlisted(""), [""; 0].map(PathBuf::from));
        let text = "50 77 0:33 / /srv/my\\040roots/base/tree/x rw - xfs x rw\n";
        assert_eq!(unlisted(text), ["tree/x"].map(PathBuf::from));
    }
}
