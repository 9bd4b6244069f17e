//! Removing a tree that a task could write, without ever leaving it.
//!
//! What stands below a root after a task has run is the task's work: links to anywhere, directories nested
//! thousands deep, and perhaps a mount that somebody made there and that is still alive. So removal goes by
//! directory descriptor, opens every directory with `RESOLVE_NO_XDEV` and without following links, and leaves
//! a mount, its content and the directories that lead to it where they are, saying so with `EBUSY`. Every
//! refusal is collected with its path; one refusal does not stop the rest. What is gone already is success.
//!
//! It holds a bounded number of descriptors and does not recurse, whatever the depth. It unmounts nothing:
//! the mounts of a sandbox live in the sandbox's own mount namespace and end with it.

#![forbid(unsafe_code)]

use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat, fstat};
use nix::unistd::{UnlinkatFlags, Whence, geteuid, lseek, unlinkat};

use crate::Error;
use crate::sys::fs::{Dirents, Kind, mount_id};

/// How many directories of the branch that is being removed stay open.
const OPEN: usize = 48;

/// How often a directory is read again that is not empty after all of its entries were removed, because
/// the file system skipped some while others went away, or because somebody still writes there.
const ROUNDS: u8 = 8;

/// Removes `name` in `parent` and all that is below it.
///
/// # Errors
/// Everything that was left, with its path from `name` on and why: `EBUSY` for a mount. A directory that is
/// left only because something below it was is not listed.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Leftovers> {
    let mut removal = Removal { parent, branch: Vec::new(), left: Vec::new(), me: geteuid().as_raw() };
    let bytes = name.as_bytes();
    match CString::new(bytes) {
        Ok(one) if !matches!(bytes, b"" | b"." | b"..") && !bytes.contains(&b'/') => removal.run(one),
        _ => removal.left.push((name.into(), Errno::EINVAL)),
    }
    if removal.left.is_empty() { Ok(()) } else { Err(Leftovers(removal.left)) }
}

/// What a removal left behind, and why. Never empty.
#[derive(Debug, PartialEq, Eq)]
pub struct Leftovers(Vec<(PathBuf, Errno)>);

impl Leftovers {
    /// As the crate's error; the paths are shown below `parent`.
    pub(crate) fn into_error(self, parent: &Path) -> Error {
        let errno = self.0.first().map_or(Errno::UnknownErrno, |(_, errno)| *errno);
        let path = self.0.first().map(|(path, _)| parent.join(path)).unwrap_or_default();
        let more = match self.0.len() {
            0 | 1 => String::new(),
            n => format!(" and {} more", n.saturating_sub(1)),
        };
        Error::Task { step: format!("unlinkat({path:?}){more}"), source: errno.into() }
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(i, (path, errno))| {
            write!(f, "{}{path:?}: {}", if i == 0 { "" } else { "; " }, errno.desc())
        })
    }
}

impl std::error::Error for Leftovers {}

struct Removal<'a> {
    parent: BorrowedFd<'a>,
    /// The directories from the top to the one that is being emptied.
    branch: Vec<Level>,
    left: Vec<(PathBuf, Errno)>,
    me: u32,
}

struct Level {
    name: CString,
    /// Open, or closed to bound the descriptors and known again by device and inode.
    dir: Handle,
    /// Its subdirectories that are still to be removed.
    todo: Vec<CString>,
    /// Something below had to stay.
    stays: bool,
    rounds: u8,
}

enum Handle {
    Open(OwnedFd),
    Closed { dev: u64, ino: u64 },
}

impl Removal<'_> {
    fn run(&mut self, name: CString) {
        let mut dirents = Dirents::new();
        self.enter(name, &mut dirents);
        while let Some(level) = self.branch.last_mut() {
            match level.todo.pop() {
                Some(name) => self.enter(name, &mut dirents),
                None => self.leave(&mut dirents),
            }
        }
    }

    /// Opens `name` in the current directory, removes what is no directory in it and notes what is; if it
    /// is no directory itself, removes it.
    fn enter(&mut self, name: CString, dirents: &mut Dirents) {
        let Some(here) = self.here() else {
            return self.refused(Some(&name), Errno::EBADF);
        };
        let opened = match open_same_mount(here, &name, ResolveFlag::RESOLVE_BENEATH) {
            Err(Errno::EACCES) if self.me != 0 && make_readable(here, &name, self.me).is_ok() => {
                open_same_mount(here, &name, ResolveFlag::RESOLVE_BENEATH)
            }
            opened => opened,
        };
        match opened {
            Ok(dir) => {
                let dir = Handle::Open(dir);
                self.branch.push(Level { name, dir, todo: Vec::new(), stays: false, rounds: ROUNDS });
                self.close_one();
                self.empty(dirents);
            }
            Err(Errno::ENOENT) => {}
            Err(Errno::ENOTDIR | Errno::ELOOP) => match unlinkat(here, &*name, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => self.refused(Some(&name), errno),
            },
            Err(Errno::EXDEV) => self.refused(Some(&name), Errno::EBUSY),
            Err(errno) => self.refused(Some(&name), errno),
        }
    }

    /// Unlinks everything in the current directory but directories.
    fn empty(&mut self, dirents: &mut Dirents) {
        let Some(Level { dir: Handle::Open(dir), .. }) = self.branch.last() else { return };
        let (mut todo, mut failed) = (Vec::new(), Vec::new());
        if self.me != 0 {
            make_writable(dir.as_fd(), self.me);
        }
        let read = loop {
            match dirents.read(dir.as_fd()) {
                Ok(None) => break Ok(()),
                Err(errno) => break Err(errno),
                Ok(Some(batch)) => {
                    for entry in batch {
                        if entry.kind == Kind::Dir {
                            todo.push(entry.name.to_owned());
                            continue;
                        }
                        match unlinkat(dir, entry.name, UnlinkatFlags::NoRemoveDir) {
                            Ok(()) | Err(Errno::ENOENT) => {}
                            Err(Errno::EISDIR) => todo.push(entry.name.to_owned()),
                            Err(errno) => failed.push((entry.name.to_owned(), errno)),
                        }
                    }
                }
            }
        };
        if let Some(level) = self.branch.last_mut() {
            level.todo = todo;
        }
        for (name, errno) in failed {
            self.refused(Some(&name), errno);
        }
        if let Err(errno) = read {
            self.refused(None, errno);
        }
    }

    /// Goes up, and removes the directory that it came from unless something in it stays.
    fn leave(&mut self, dirents: &mut Dirents) {
        let Some(mut level) = self.branch.pop() else { return };
        let Handle::Open(dir) = &level.dir else {
            return self.refused(Some(&level.name), Errno::EBADF);
        };
        if let Err(errno) = self.reopen(dir.as_fd()) {
            self.refused(Some(&level.name), errno);
            // The way up is lost, because somebody moved the directory: what is above stays.
            self.branch.clear();
            return;
        }
        if level.stays {
            self.mark();
            return;
        }
        let Some(here) = self.here() else { return };
        match unlinkat(here, &*level.name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(Errno::ENOTEMPTY | Errno::EEXIST) if level.rounds > 0 => {
                level.rounds = level.rounds.saturating_sub(1);
                let rewound = lseek(dir, 0, Whence::SeekSet);
                self.branch.push(level);
                match rewound {
                    Ok(_) => self.empty(dirents),
                    Err(errno) => self.refused(None, errno),
                }
            }
            Err(errno) => self.refused(Some(&level.name), errno),
        }
    }

    /// The directory that is being emptied, or the one that the top is in.
    fn here(&self) -> Option<BorrowedFd<'_>> {
        match self.branch.last() {
            None => Some(self.parent),
            Some(Level { dir: Handle::Open(dir), .. }) => Some(dir.as_fd()),
            Some(Level { dir: Handle::Closed { .. }, .. }) => None,
        }
    }

    /// Opens the last directory of the branch again, from its child, if it was closed on the way down.
    fn reopen(&mut self, child: BorrowedFd<'_>) -> nix::Result<()> {
        let Some(level) = self.branch.last_mut() else { return Ok(()) };
        let Handle::Closed { dev, ino } = level.dir else { return Ok(()) };
        let up = open_same_mount(child, c"..", ResolveFlag::empty())?;
        let st = fstat(&up)?;
        if (st.st_dev, st.st_ino) != (dev, ino) {
            return Err(Errno::ESTALE);
        }
        level.dir = Handle::Open(up);
        Ok(())
    }

    /// Closes the directory that is `OPEN` levels up.
    fn close_one(&mut self) {
        let Some(i) = self.branch.len().checked_sub(OPEN) else { return };
        let Some(level) = self.branch.get_mut(i) else { return };
        if let Handle::Open(dir) = &level.dir
            && let Ok(st) = fstat(dir)
        {
            level.dir = Handle::Closed { dev: st.st_dev, ino: st.st_ino };
        }
    }

    /// Notes that `name` in the current directory, or that directory, stays, and so what leads to it.
    fn refused(&mut self, name: Option<&CStr>, errno: Errno) {
        let names = self.branch.iter().map(|level| &*level.name).chain(name);
        let path = names.map(|n| OsStr::from_bytes(n.to_bytes())).collect();
        self.left.push((path, errno));
        self.mark();
    }

    fn mark(&mut self) {
        if let Some(level) = self.branch.last_mut() {
            level.stays = true;
        }
    }
}

/// Opens the directory `name` in `dir` if it is on the same mount and no link; `EXDEV` if it is a mount.
fn open_same_mount(dir: BorrowedFd<'_>, name: &CStr, more: ResolveFlag) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS | more;
    match openat2(dir, name, OpenHow::new().flags(flags).resolve(resolve)) {
        // Older than 5.6, or a filter that does not know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => {
            let fd = openat(dir, name, flags, Mode::empty())?;
            same_mount(dir, fd.as_fd())?;
            Ok(fd)
        }
        answer => answer,
    }
}

/// `EXDEV` unless the kernel says that both are on the same mount.
fn same_mount(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> nix::Result<()> {
    match (mount_id(a)?, mount_id(b)?) {
        (Some(a), Some(b)) if a == b => Ok(()),
        _ => Err(Errno::EXDEV),
    }
}

/// Who is not root needs the write and search bits of a directory to empty it. Only on one's own, and by
/// descriptor; a directory has no second name, so nothing outside of the tree is reached.
fn make_writable(dir: BorrowedFd<'_>, me: u32) {
    if let Ok(st) = fstat(dir)
        && st.st_uid == me
        && st.st_mode & 0o300 != 0o300
    {
        // Refused, the unlinks below will say so with their paths.
        let _ = fchmod(dir, Mode::from_bits_truncate(st.st_mode) | Mode::S_IRWXU);
    }
}

/// The same for a directory that cannot even be opened, by its path-only descriptor.
fn make_readable(dir: BorrowedFd<'_>, name: &CStr, me: u32) -> nix::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(dir, name, flags, Mode::empty())?;
    same_mount(dir, fd.as_fd())?;
    let st = fstat(&fd)?;
    if st.st_uid != me {
        return Err(Errno::EACCES);
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let mode = Mode::from_bits_truncate(st.st_mode) | Mode::S_IRWXU;
    fchmodat(AT_FDCWD, path.as_str(), mode, FchmodatFlags::FollowSymlink)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::sys::stat::mkdirat;

    use super::*;
    use crate::rootfs::populate::tests::{in_own_mount_ns, lacks_root};

    fn remove(dir: &Path, name: &str) -> Result<(), Leftovers> {
        remove_tree(fs::File::open(dir).unwrap().as_fd(), OsStr::new(name))
    }

    /// Directories one in the other, more than any path or recursion could hold, `width` at each level.
    pub(crate) fn deep(dir: &Path, depth: usize, width: usize) {
        let mut fd = OwnedFd::from(fs::File::open(dir).unwrap());
        for _ in 0..depth {
            for i in 0..width {
                mkdirat(&fd, format!("directory-{i}").as_str(), Mode::S_IRWXU).unwrap();
            }
            fd = openat(&fd, "directory-0", OFlag::O_RDONLY, Mode::empty()).unwrap();
        }
        openat(&fd, "leaf", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRWXU).unwrap();
    }

    #[test]
    fn a_tree_goes_and_its_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/canary"), "alive").unwrap();
        symlink("../outside", tree.join("out")).unwrap();
        symlink(dir.path().join("outside"), tree.join("a/b/out")).unwrap();
        for i in 0..3000 {
            fs::write(tree.join(format!("a/file-{i}")), "").unwrap();
        }
        remove(dir.path(), "tree").unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(dir.path().join("outside/canary")).unwrap(), "alive");
        remove(dir.path(), "tree").unwrap();
    }

    #[test]
    fn a_name_that_is_no_directory_goes_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        symlink("outside", dir.path().join("link")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        remove(dir.path(), "link").unwrap();
        remove(dir.path(), "file").unwrap();
        assert!(dir.path().join("outside").is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_name_is_one_name() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", ".", "..", "a/b", "/", "nul\0"] {
            let left = remove(dir.path(), name).unwrap_err();
            assert_eq!(left.0, [(PathBuf::from(name), Errno::EINVAL)]);
        }
        assert!(dir.path().exists());
    }

    #[test]
    fn depth_costs_neither_stack_nor_descriptors() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        fs::create_dir(dir.path().join("tree")).unwrap();
        deep(&dir.path().join("tree"), 5000, 2);
        let small = std::thread::Builder::new().stack_size(64 * 1024);
        let path = dir.path().to_owned();
        small.spawn(move || remove(&path, "tree").unwrap()).unwrap().join().unwrap();
        assert!(!dir.path().join("tree").exists());
    }

    #[test]
    fn a_live_mount_stays_with_what_leads_to_it() {
        if lacks_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        for d in ["a/b/mnt", "a/x/y", "a/b/z", "c/d"] {
            fs::create_dir_all(tree.join(d)).unwrap();
        }
        fs::create_dir_all(outside.join("deep/er")).unwrap();
        fs::write(outside.join("canary"), "alive").unwrap();
        fs::write(outside.join("deep/er/canary"), "alive").unwrap();
        fs::write(tree.join("a/b/file"), "").unwrap();
        fs::write(tree.join("c/plain"), "").unwrap();
        in_own_mount_ns(|| {
            let bind = |from: &Path, to: &str| {
                mount(Some(from), &tree.join(to), None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            };
            bind(&outside, "a/b/mnt");
            bind(&outside.join("canary"), "a/b/file");
            let mut left = remove(dir.path(), "tree").unwrap_err().0;
            left.sort_by(|a, b| a.0.cmp(&b.0));
            let busy = |p: &str| (PathBuf::from(p), Errno::EBUSY);
            assert_eq!(left, [busy("tree/a/b/file"), busy("tree/a/b/mnt")]);
            assert_eq!(fs::read_to_string(tree.join("a/b/mnt/deep/er/canary")).unwrap(), "alive");
            assert!(!tree.join("c").exists() && !tree.join("a/x").exists() && !tree.join("a/b/z").exists());
            // A mount at the top is not entered either.
            bind(&outside, "");
            assert_eq!(remove(dir.path(), "tree").unwrap_err().0, [busy("tree")]);
            for at in ["", "a/b/mnt", "a/b/file"] {
                umount2(&tree.join(at), MntFlags::UMOUNT_NOFOLLOW).unwrap();
            }
            remove(dir.path(), "tree").unwrap();
        });
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(outside.join("canary")).unwrap(), "alive");
    }

    #[test]
    fn mounts_are_told_apart_without_openat2_too() {
        let open = |p: &str| fs::File::open(p).unwrap();
        same_mount(open("/proc").as_fd(), open("/proc/self").as_fd()).unwrap();
        assert_eq!(same_mount(open("/").as_fd(), open("/proc").as_fd()), Err(Errno::EXDEV));
    }

    #[test]
    fn the_error_names_the_first_and_counts_the_rest() {
        let one = |p: &str| (PathBuf::from(p), Errno::EBUSY);
        let left = Leftovers(vec![one("t/a"), one("t/b"), one("t/c")]);
        assert_eq!(left.0.len(), 3);
        let error = left.into_error(Path::new("/base"));
        assert_eq!(error.to_string(), "unlinkat(\"/base/t/a\") and 2 more");
    }
}
