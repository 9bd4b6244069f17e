//! A temporary root directory that exists as long as its sandbox.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use serde::{Deserialize, Serialize};

use crate::rootfs::directory::{DIR, DIR_NOFOLLOW, make_private, open_made};
use crate::rootfs::teardown::remove_tree;
use crate::step::Kernel;
use crate::sys::fs::{born, is_at};
use crate::sys::lock::{Lock, Locked, any_holder, flock};
use crate::sys::proc_pids;
use crate::{Error, Result};

mod stale;

pub(crate) use stale::{OwnedRoot, StaleRoot};

/// How often the directory is made again because another process has removed it as stale right after it was made.
const RACES: u32 = 16;

/// An empty directory for a root, at `BASE/cofferdam-NAME/root`.
///
/// The root has mode 0755, because every user of the sandbox must be able to enter `/`. The directory above it has mode
/// 0700, so that no other user of the host can access its content, for example setuid files or an incomplete root.
/// Dropping this value removes both directories and everything in them.
///
/// The owner holds a lock on the directory above (`flock(2)`). A directory without a lock is stale, unless a detached
/// task runs in it: the file `detached` names its first process. The next root of that name replaces a stale one.
#[derive(Debug)]
pub(crate) struct TempRoot {
    base: OwnedFd,
    around: PathBuf,
    name: OsString,
    root: OwnedFd,
    /// The directory above. It is locked, if its file system has locks.
    lock: Held,
    gone: bool,
}

/// What no two root directories have in common, if their file system keeps the time of birth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootId {
    device: u64,
    inode: u64,
    /// Seconds and nanoseconds.
    born: Option<(i64, u32)>,
}

impl RootId {
    fn of(root: BorrowedFd<'_>) -> io::Result<RootId> {
        let st = fstat(root)?;
        // A filter around the caller may refuse statx(2).
        let born = born(root).unwrap_or_default();
        Ok(RootId { device: st.st_dev, inode: st.st_ino, born })
    }
}

impl TempRoot {
    /// Makes a temporary root in `base`, at [`path_in`](TempRoot::path_in), and removes a stale one of that name. Returns
    /// `None` if `kernel` only records calls.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the refused call. Its source is `ResourceBusy` if the name is in use, and
    /// `AlreadyExists` if the directory belongs to another user.
    pub(crate) fn create(kernel: &Kernel, base: &Path, name: &str) -> Result<Option<TempRoot>> {
        let around = around(base, name);
        let name = around.file_name().map(OsString::from).unwrap_or_default();
        let opened = || open(base, DIR, Mode::empty()).map(Some);
        let opened = kernel.call(|| format!("openat({base:?}, O_DIRECTORY)"), None, opened)?;
        let made = || opened.as_ref().map(|dir| make_around(dir.as_fd(), &name, &around)).transpose();
        let lock = kernel.call(|| format!("mkdirat({base:?}, {name:?}, 0700)"), None, made)?;
        // Made by `make_around`, because another process may take the new directory for stale before it is locked.
        kernel.call(|| format!("flock({around:?}, LOCK_EX|LOCK_NB)"), (), || nix::Result::Ok(()))?;
        let root = || lock.as_ref().map(|lock| make_root(lock.as_fd())).transpose();
        let root = kernel.call(|| format!("mkdirat({around:?}, \"root\", 0700)"), None, root);
        match (root, opened, lock) {
            (Ok(Some(root)), Some(base), Some(lock)) => {
                Ok(Some(TempRoot { base, around, name, root, lock, gone: false }))
            }
            (Err(refused), Some(base), _) => {
                // Return the first error. If this fails, at most an empty directory stays.
                let _ = remove_tree(base.as_fd(), &name);
                Err(refused)
            }
            (root, ..) => root.map(|_| None),
        }
    }

    /// Opens and locks the temporary root that [`leave_to`](TempRoot::leave_to) left, if its root directory is this one. `None`
    /// if there is none. `alone`: nothing else has shown that the task of this root is the wanted one, so an inode number is
    /// not enough, which a later directory may have too.
    ///
    /// # Errors
    /// `ResourceBusy` if another process has it, or the refused call.
    pub(crate) fn reopen(base: &Path, name: &str, id: RootId, alone: bool) -> io::Result<Option<TempRoot>> {
        let around = around(base, name);
        let name = around.file_name().map(OsString::from).unwrap_or_default();
        let absent = |e: Errno| if e == Errno::ENOENT { Ok(None) } else { Err(io::Error::from(e)) };
        let base = match open(base, DIR, Mode::empty()) {
            Err(e) => return absent(e),
            Ok(base) => base,
        };
        let dir = match openat(&base, &*name, DIR_NOFOLLOW, Mode::empty()) {
            Err(e) => return absent(e),
            Ok(dir) => dir,
        };
        let root = match openat(&dir, "root", DIR_NOFOLLOW, Mode::empty()) {
            Err(e) => return absent(e),
            Ok(root) => root,
        };
        let same = RootId::of(root.as_fd())? == id && (id.born.is_some() || !alone);
        if !same || fstat(&root)?.st_uid != geteuid().as_raw() {
            return Ok(None);
        }
        let again = dir.try_clone()?;
        let lock = Held::lock(dir).map_err(|errno| match (errno, any_holder(again.as_fd())) {
            (Errno::EWOULDBLOCK, Some(pid)) => in_use(&format!("process {pid} has its root")),
            (Errno::EWOULDBLOCK, None) => in_use("another process has its root"),
            (errno, _) => errno.into(),
        })?;
        // Its owner may have removed it before it was locked.
        let there = is_at(lock.as_fd(), base.as_fd(), &*name)?;
        Ok(there.then_some(TempRoot { base, around, name, root, lock, gone: false }))
    }

    /// The identity of the root directory.
    ///
    /// # Errors
    /// The refused call.
    pub(crate) fn id(&self) -> io::Result<RootId> {
        RootId::of(self.root.as_fd())
    }

    /// Path of the root directory that [`create`](TempRoot::create) makes.
    pub(crate) fn path_in(base: &Path, name: &str) -> PathBuf {
        around(base, name).join("root")
    }

    /// The root directory.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Removes both directories now. May be called again: after success it does nothing, after a failure it tries
    /// again.
    ///
    /// # Errors
    /// [`Error::Task`](crate::Error::Task) with everything that could not be removed.
    pub(crate) fn close(&mut self) -> Result<()> {
        if !self.gone {
            remove_tree(self.base.as_fd(), &self.name)
                .map_err(|left| left.into_error(self.around.parent().unwrap_or(&self.around)))?;
            self.gone = true;
        }
        Ok(())
    }

    /// Keeps the directories, which then stay when this value is dropped, for the running process with this PID.
    pub(crate) fn leave_to(mut self, pid: Option<i32>) {
        if let Some(text) = pid.and_then(identity) {
            let flags =
                OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            // Without the file the root is stale as soon as the owner is gone.
            let file = openat(self.lock.as_fd(), DETACHED, flags, Mode::S_IRUSR | Mode::S_IWUSR);
            let _ = file.map(|file| nix::unistd::write(file, text.as_bytes()));
        }
        self.gone = true;
    }
}

/// Path of the private directory above the root.
fn around(base: &Path, name: &str) -> PathBuf {
    base.join(format!("cofferdam-{name}"))
}

impl Drop for TempRoot {
    fn drop(&mut self) {
        if !self.gone {
            // Best effort: a caller that needs the error calls `close`.
            let _ = remove_tree(self.base.as_fd(), &self.name);
        }
    }
}

/// Makes and locks the private directory. Removes a stale one of that name.
fn make_around(base: BorrowedFd<'_>, name: &OsStr, path: &Path) -> io::Result<Held> {
    for _ in 0..RACES {
        match mkdirat(base, name, Mode::S_IRWXU) {
            Err(Errno::EEXIST) => {
                remove_stale(base, name, path)?;
                continue;
            }
            made => made?,
        }
        match lock_made(base, name) {
            Ok(Some(held)) => return Ok(held),
            // Another process has taken the new directory for stale.
            Ok(None) | Err(Errno::ENOENT | Errno::EWOULDBLOCK) => {}
            Err(e) => {
                let _ = unlinkat(base, name, UnlinkatFlags::RemoveDir);
                return Err(e.into());
            }
        }
    }
    Err(in_use("other processes make it at the same time"))
}

/// Opens and locks the private directory that was just made. `None` if its name belongs to another directory now.
fn lock_made(base: BorrowedFd<'_>, name: &OsStr) -> nix::Result<Option<Held>> {
    let held = Held::lock(open_made(base, name, Mode::S_IRWXU)?)?;
    if !is_at(held.as_fd(), base, name)? {
        return Ok(None);
    }
    fchmod(held.as_fd(), Mode::S_IRWXU)?;
    Ok(Some(held))
}

/// The private directory, with a lock if its file system has locks. NFS needs a writable descriptor for an exclusive
/// lock, and a directory cannot have one.
#[derive(Debug)]
enum Held {
    Locked(Locked),
    Unlocked(OwnedFd),
}

impl Held {
    fn lock(dir: OwnedFd) -> nix::Result<Held> {
        match flock(dir.as_fd(), Lock::ExclusiveNow) {
            Ok(()) => Ok(Held::Locked(Locked::held(dir))),
            Err(Errno::EBADF | Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(Held::Unlocked(dir)),
            Err(e) => Err(e),
        }
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Held::Locked(lock) => lock.as_fd(),
            Held::Unlocked(dir) => dir.as_fd(),
        }
    }
}

/// Removes the directory of a sandbox whose owner is gone.
fn remove_stale(base: BorrowedFd<'_>, name: &OsStr, path: &Path) -> io::Result<()> {
    let dir = match openat(base, name, DIR_NOFOLLOW, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(()),
        opened => opened?,
    };
    let st = fstat(&dir)?;
    if st.st_uid != geteuid().as_raw() || st.st_mode & 0o077 != 0 {
        return Err(Errno::EEXIST.into());
    }
    let lock = match Held::lock(dir) {
        Err(Errno::EWOULDBLOCK) => return Err(in_use("its owner is alive")),
        // Nobody can tell whether its owner is alive.
        Ok(Held::Unlocked(_)) => return Err(Errno::EEXIST.into()),
        locked => locked?,
    };
    if let Some(pid) = detached(lock.as_fd()) {
        return Err(in_use(&format!("a detached task runs in it, with process {pid}")));
    }
    if let Some(pid) = process_in(lock.as_fd())? {
        return Err(in_use(&format!("it is the root of process {pid}")));
    }
    if !is_at(lock.as_fd(), base, name)? {
        return Ok(());
    }
    remove_tree(base, name).map_err(|left| match left.into_error(path.parent().unwrap_or(path)) {
        Error::Task { step, source } => {
            io::Error::new(source.kind(), format!("a stale root cannot be removed: {step}: {source}"))
        }
        other => io::Error::other(other.to_string()),
    })
}

fn in_use(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ResourceBusy, format!("the id is in use: {why}"))
}

/// A process whose root is the root in the private directory. Processes of other users are not seen, unless the caller
/// may trace them (`proc_pid_root(5)`).
fn process_in(around: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let Ok(root) = fstatat(around, "root", AtFlags::AT_SYMLINK_NOFOLLOW) else { return Ok(None) };
    let is_root = |pid: &i32| {
        let seen = std::fs::metadata(format!("/proc/{pid}/root"));
        seen.is_ok_and(|st| (st.dev(), st.ino()) == (root.st_dev, root.st_ino))
    };
    Ok(proc_pids()?.into_iter().find(is_root))
}

/// File in the private directory with the identity of the first process of a detached task.
const DETACHED: &str = "detached";

/// A living process, as text that no other process has: PID, start time, and boot.
fn identity(pid: i32) -> Option<String> {
    let stat = crate::sys::stat(pid).ok()?;
    // A zombie, which its parent has not reaped, runs no more.
    let start = Some(stat.starttime).filter(|_| !matches!(stat.state, 'Z' | 'X'))?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(format!("{pid} {start} {}", boot.trim()))
}

/// The first process of the detached task that was left in the private directory, if it is alive.
fn detached(around: BorrowedFd<'_>) -> Option<i32> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(around, DETACHED, flags, Mode::empty()).ok()?;
    let mut text = [0u8; 128];
    let n = nix::unistd::read(&file, &mut text).ok()?;
    let text = std::str::from_utf8(text.get(..n)?).ok()?;
    let pid = text.split(' ').next()?.parse().ok()?;
    (identity(pid)? == text).then_some(pid)
}

/// Makes the root in the private directory. Sets modes by descriptor, because the umask may remove any bit.
fn make_root(around: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let root = make_private(around, c"root")?;
    fchmod(&root, Mode::from_bits_truncate(0o755))?;
    Ok(root)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::sync::Mutex;

    use tempfile::tempdir;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn create(base: &Path, name: &str) -> Result<TempRoot> {
        TempRoot::create(&Kernel::real(), base, name).map(Option::unwrap)
    }

    #[test]
    fn a_temporary_root_is_private_and_is_removed_with_its_content() {
        let base = tempdir().unwrap();
        let roots: Mutex<Vec<(&str, TempRoot)>> = Mutex::default();
        std::thread::scope(|s| {
            for name in ["a", "b", "c", "d"] {
                let (roots, base) = (&roots, base.path());
                s.spawn(move || roots.lock().unwrap().push((name, create(base, name).unwrap())));
            }
        });
        let roots = roots.into_inner().unwrap();
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 4);
        let busy = create(base.path(), "a").unwrap_err();
        assert!(busy.to_string().starts_with("mkdirat("), "{busy}");
        let why = std::error::Error::source(&busy).unwrap().to_string();
        assert_eq!(why, "the id is in use: its owner is alive");
        for (i, (name, mut root)) in roots.into_iter().enumerate() {
            let path = TempRoot::path_in(base.path(), name);
            assert_eq!(mode(&path), 0o755);
            assert_eq!(mode(path.parent().unwrap()), 0o700);
            assert_eq!(nix::sys::stat::fstat(root.fd()).unwrap().st_ino, fs::metadata(&path).unwrap().ino());
            fs::create_dir_all(path.join("usr/lib")).unwrap();
            fs::write(path.join("usr/lib/x"), "").unwrap();
            if i % 2 == 0 {
                root.close().unwrap();
                // The name is free again. The closed root must not remove the next root of the same name.
                let next = create(base.path(), name).unwrap();
                root.close().unwrap();
                drop(root);
                assert_eq!(mode(&path), 0o755);
                drop(next);
            }
        }
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
        let error = create(&base.path().join("nowhere"), "x").unwrap_err();
        assert_eq!(error.to_string(), format!("openat({:?}, O_DIRECTORY)", base.path().join("nowhere")));
    }

    /// As a killed owner leaves it: nobody holds the lock.
    fn stale(base: &Path, name: &str) -> PathBuf {
        create(base, name).unwrap().leave_to(None);
        let path = TempRoot::path_in(base, name);
        fs::write(path.join("old"), "").unwrap();
        path
    }

    #[test]
    fn the_root_of_a_dead_owner_is_replaced() {
        let base = tempdir().unwrap();
        let path = stale(base.path(), "a");
        let root = create(base.path(), "a").unwrap();
        assert!(path.exists() && !path.join("old").exists());
        drop(root);
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[test]
    fn one_of_many_gets_a_stale_root_and_the_others_find_it_in_use() {
        let base = tempdir().unwrap();
        for _ in 0..20 {
            stale(base.path(), "a");
            let made: Mutex<Vec<Result<TempRoot>>> = Mutex::default();
            std::thread::scope(|s| {
                for _ in 0..6 {
                    s.spawn(|| {
                        let root = create(base.path(), "a");
                        made.lock().unwrap().push(root);
                    });
                }
            });
            let made = made.into_inner().unwrap();
            assert_eq!(made.iter().flatten().count(), 1, "{made:?}");
            for busy in made.iter().filter_map(|made| made.as_ref().err()) {
                let why = std::error::Error::source(busy).unwrap().to_string();
                assert!(why.starts_with("the id is in use: "), "{why}");
            }
        }
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_root_of_a_detached_task_is_in_use_while_its_process_lives() {
        let base = tempdir().unwrap();
        let mut task = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        create(base.path(), "a").unwrap().leave_to(i32::try_from(task.id()).ok());
        let busy = create(base.path(), "a").unwrap_err();
        let why = std::error::Error::source(&busy).unwrap().to_string();
        assert_eq!(why, format!("the id is in use: a detached task runs in it, with process {}", task.id()));
        task.kill().unwrap();
        task.wait().unwrap();
        drop(create(base.path(), "a").unwrap());
        // A process that has the PID now, but not the start time or the boot, is another one.
        let own = std::process::id();
        for stranger in [format!("{own} 1 x"), format!("{own} 1"), String::new()] {
            let path = stale(base.path(), "a");
            fs::write(path.parent().unwrap().join(DETACHED), stranger).unwrap();
            drop(create(base.path(), "a").unwrap());
        }
    }

    #[test]
    fn a_directory_that_others_can_enter_is_not_taken_for_stale() {
        let base = tempdir().unwrap();
        let other = base.path().join("cofferdam-a");
        fs::create_dir(&other).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
        let source = |e: &Error| {
            let source = std::error::Error::source(e).unwrap();
            source.downcast_ref::<io::Error>().unwrap().kind()
        };
        assert_eq!(source(&create(base.path(), "a").unwrap_err()), io::ErrorKind::AlreadyExists);
        fs::remove_dir(&other).unwrap();
        std::os::unix::fs::symlink("/", &other).unwrap();
        assert!(create(base.path(), "a").is_err());
        assert!(other.is_symlink() && Path::new("/proc").exists());
    }
}
