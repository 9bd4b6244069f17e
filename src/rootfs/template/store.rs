//! The directory that templates lie in: its names, and who may do what when.
//!
//! - `lock-KEY`: held exclusively by who looks for a template of that key and fills one. It stays.
//! - `partial-KEY`: one that is being filled, by the holder of that lock, or was when somebody was killed.
//! - `template-KEY-GENERATION`: complete. Held by shared locks on the directory itself.
//! - `newest-KEY`: a symbolic link with the name of the one to be given next. Times would not do: two may be
//!   of the same tick of the clock, and clocks go back. It stays, and may lead nowhere.
//! - `removed-KEY-INODE`: one that is being removed, by who holds a lock on it, or was.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, fchmod, fchmodat, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, symlinkat, syncfs, unlinkat};

use crate::rootfs::check_path;
use crate::rootfs::teardown::remove_tree;
use crate::sys::fs::Dirents;
use crate::sys::lock::{Lock, Locked};
use crate::{Error, Result};

const DIR: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

/// The directory, open.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    fd: OwnedFd,
}

/// The name of a complete template.
pub(super) fn name(key: u64, generation: u64) -> String {
    format!("template-{key:016x}-{generation:016x}")
}

fn newest(key: u64) -> String {
    format!("newest-{key:016x}")
}

/// As the end of a name.
fn generation(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16)
}

fn partial(key: u64) -> String {
    format!("partial-{key:016x}")
}

fn removed(key: u64) -> String {
    format!("removed-{key:016x}-")
}

/// Makes a directory, 0700, and opens it.
fn make<P: ?Sized + NixPath>(dir: BorrowedFd<'_>, name: &P) -> nix::Result<OwnedFd> {
    mkdirat(dir, name, Mode::S_IRWXU)?;
    let fd = match openat(dir, name, DIR, Mode::empty()) {
        // Not root, and a umask that takes the owner's own bits. Nobody else can have put something in its place.
        Err(Errno::EACCES) => {
            fchmodat(dir, name, Mode::S_IRWXU, FchmodatFlags::FollowSymlink)?;
            openat(dir, name, DIR, Mode::empty())?
        }
        answer => answer?,
    };
    fchmod(&fd, Mode::S_IRWXU)?;
    Ok(fd)
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<Store> {
        check_path("template", path)?;
        let step = |call: &str| format!("{call}({path:?})");
        let fd = match make(AT_FDCWD, path) {
            Ok(fd) => fd,
            // A link to it is as good as it.
            Err(Errno::EEXIST) => openat(AT_FDCWD, path, DIR.difference(OFlag::O_NOFOLLOW), Mode::empty())
                .map_err(Error::prepare(format!("openat({path:?}, O_DIRECTORY)")))?,
            Err(errno) => return Err(Error::prepare(step("mkdir"))(errno)),
        };
        let st = fstat(&fd).map_err(Error::prepare(step("fstat")))?;
        if st.st_uid != geteuid().as_raw() || st.st_mode & 0o077 != 0 {
            let (uid, mode) = (st.st_uid, st.st_mode & 0o7777);
            let why = format!("others may come into {path:?}: it is user {uid}'s, mode {mode:04o}");
            return Err(Error::spec("template", why));
        }
        Ok(Store { path: path.into(), fd })
    }

    /// The same directory, opened once more.
    pub(super) fn again(&self) -> Result<Store> {
        let fd = self.fd.try_clone().map_err(Error::prepare(format!("fcntl({:?}, F_DUPFD)", self.path)))?;
        Ok(Store { path: self.path.clone(), fd })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where one is being filled.
    pub(super) fn partial(&self, key: u64) -> PathBuf {
        self.path.join(partial(key))
    }

    fn step(&self, call: &str, name: &str) -> String {
        format!("{call}({:?})", self.path.join(name))
    }

    /// Waits until nobody else looks for a template of this key or fills one, and keeps it so until the
    /// descriptor is closed. Each call has an open file of its own, so threads wait for each other too.
    pub(super) fn turn(&self, key: u64) -> Result<Locked> {
        let name = format!("lock-{key:016x}");
        let flags = OFlag::O_RDONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // Readable whatever the umask takes: who makes it has it open by then, who comes later needs the bit.
        let fd = match openat(&self.fd, &*name, flags, Mode::S_IRUSR) {
            Err(Errno::EACCES) => {
                let _ = fchmodat(&self.fd, &*name, Mode::S_IRUSR, FchmodatFlags::FollowSymlink);
                openat(&self.fd, &*name, flags, Mode::S_IRUSR)
            }
            answer => answer,
        };
        let fd = fd.map_err(Error::prepare(self.step("openat", &name)))?;
        Locked::new(fd, Lock::Exclusive).map_err(Error::prepare(self.step("flock", &name)))
    }

    /// The newest complete one, held. The caller holds the lock on the key.
    pub(super) fn newest(&self, key: u64) -> Result<Option<(u64, Locked)>> {
        let prefix = format!("template-{key:016x}-");
        let mut found = Vec::new();
        for name in self.names(&prefix)? {
            let Some(generation) = name.strip_prefix(&prefix).and_then(generation) else { continue };
            if let Some(st) = self.look(&name).map_err(Error::prepare(self.step("fstatat", &name)))? {
                found.push((false, st.st_ctime, st.st_ctime_nsec, generation));
            }
        }
        // Who was killed right after it had filled one has not said so; one that was removed is none.
        let said = readlinkat(&self.fd, &*newest(key)).ok();
        let said = said.as_ref().and_then(|text| text.to_str()?.strip_prefix(&prefix).and_then(generation));
        found.iter_mut().for_each(|one| one.0 = said == Some(one.3));
        found.sort_unstable();
        for (.., generation) in found.into_iter().rev() {
            if let Some(held) = self.take(key, generation)? {
                return Ok(Some((generation, held)));
            }
        }
        Ok(None)
    }

    /// This generation, held; `None` if there is none, or was one that another one was just removing.
    pub(super) fn take(&self, key: u64, generation: u64) -> Result<Option<Locked>> {
        let name = name(key, generation);
        let fd = match openat(&self.fd, &*name, DIR, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(Error::prepare(self.step("openat", &name))(errno)),
        };
        let fd = Locked::new(fd, Lock::Shared).map_err(Error::prepare(self.step("flock", &name)))?;
        let named = self.is_named(fd.as_fd(), &name).map_err(Error::prepare(self.step("fstatat", &name)))?;
        Ok(named.then_some(fd))
    }

    /// Says that it is the newest. The caller holds the lock on the key.
    pub(super) fn renew(&self, key: u64, generation: u64) -> Result<()> {
        let (link, text) = (newest(key), name(key, generation));
        let made = format!("{link}.new");
        let step = |call: &str| self.step(call, &made);
        match unlinkat(&self.fd, &*made, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(Error::prepare(step("unlinkat"))(errno)),
        }
        symlinkat(&*text, &self.fd, &*made).map_err(Error::prepare(step("symlinkat")))?;
        renameat(&self.fd, &*made, &self.fd, &*link).map_err(Error::prepare(step("renameat")))
    }

    /// Removes what those left who were killed. The caller holds the lock on the key.
    pub(super) fn clean(&self, key: u64) -> Result<()> {
        self.clear(&partial(key))?;
        for name in self.names(&removed(key))? {
            let Ok(fd) = openat(&self.fd, &*name, DIR, Mode::empty()) else { continue };
            // Who removes it at this moment holds it.
            if let Ok(_held) = Locked::new(fd, Lock::ExclusiveNow) {
                self.clear(&name)?;
            }
        }
        Ok(())
    }

    /// An empty directory to be filled. The caller holds the lock on the key, and has cleaned.
    pub(super) fn begin(&self, key: u64) -> Result<OwnedFd> {
        let name = partial(key);
        make(self.fd.as_fd(), &*name).map_err(Error::prepare(self.step("mkdirat", &name)))
    }

    /// Gives `root`, which is complete, its name, and holds it. The caller holds the lock on the key.
    /// If there is one of that name already, that one is held and `root` removed.
    pub(super) fn publish(&self, key: u64, generation: u64, root: OwnedFd) -> Result<Locked> {
        let (from, to) = (partial(key), name(key, generation));
        let step = |call: &str| self.step(call, &from);
        fchmod(&root, Mode::from_bits_truncate(0o755)).map_err(Error::prepare(step("fchmod")))?;
        syncfs(&root).map_err(Error::prepare(step("syncfs")))?;
        let root = Locked::new(root, Lock::Shared).map_err(Error::prepare(step("flock")))?;
        loop {
            // Of what is there only an empty directory would be replaced.
            match renameat(&self.fd, &*from, &self.fd, &*to) {
                Ok(()) => return self.renew(key, generation).map(|()| root),
                Err(Errno::EEXIST | Errno::ENOTEMPTY) => {}
                Err(errno) => return Err(Error::prepare(step("renameat"))(errno)),
            }
            if let Some(there) = self.take(key, generation)? {
                self.clear(&from)?;
                self.renew(key, generation)?;
                return Ok(there);
            }
        }
    }

    /// Removes the generation whose root is `held`, exclusively. What somebody else has removed meanwhile is
    /// success.
    pub(super) fn remove(&self, key: u64, generation: u64, held: Locked) -> Result<()> {
        let from = name(key, generation);
        let step = |call: &str| self.step(call, &from);
        if !self.is_named(held.as_fd(), &from).map_err(Error::task(step("fstatat")))? {
            return Ok(());
        }
        let st = fstat(held.as_fd()).map_err(Error::task(step("fstat")))?;
        let to = format!("{}{:016x}", removed(key), st.st_ino);
        renameat(&self.fd, &*from, &self.fd, &*to).map_err(Error::task(step("renameat")))?;
        // Whoever waits to hold it may go on, and finds that it has another name. It still counts as in use
        // for who cleans.
        let _ = held.change(Lock::Shared);
        self.clear(&to)
    }

    fn clear(&self, name: &str) -> Result<()> {
        remove_tree(self.fd.as_fd(), name.as_ref()).map_err(|left| left.into_error(&self.path))
    }

    /// Whether `name` is what `fd` refers to.
    fn is_named(&self, fd: BorrowedFd<'_>, name: &str) -> nix::Result<bool> {
        let mine = fstat(fd)?;
        let there = self.look(name)?;
        Ok(there.is_some_and(|st| (st.st_dev, st.st_ino) == (mine.st_dev, mine.st_ino)))
    }

    fn look(&self, name: &str) -> nix::Result<Option<FileStat>> {
        match fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(st) => Ok(Some(st)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// The names that begin with `prefix`.
    fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let fail = |call: &str| Error::prepare::<Errno>(format!("{call}({:?})", self.path));
        let dir = openat(&self.fd, c".", DIR, Mode::empty()).map_err(fail("openat"))?;
        let (mut dirents, mut names) = (Dirents::new(), Vec::new());
        while let Some(batch) = dirents.read(dir.as_fd()).map_err(fail("getdents64"))? {
            let known = batch.filter(|e| e.name.to_bytes().starts_with(prefix.as_bytes()));
            names.extend(known.filter_map(|e| e.name.to_str().ok().map(String::from)));
        }
        Ok(names)
    }
}
