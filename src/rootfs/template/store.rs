//! The directory that contains templates: names, and locks.
//!
//! - `lock-KEY`: locked exclusively by a process that looks for a template of that key or fills one. It stays.
//! - `partial-KEY`: a template that the holder of that lock fills, or that a killed process left unfinished.
//! - `template-KEY-GENERATION`: a complete template. Its users hold shared locks on the directory itself.
//! - `newest-KEY`: a symbolic link to the newest template. Timestamps are not enough, because two templates may be of
//!   the same clock tick, and clocks can be set back. It stays, and may dangle.
//! - `removed-KEY-INODE`: a template that a process with a lock on it removes, or that a killed process left.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, fchmod, fchmodat, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, geteuid, symlinkat, syncfs, unlinkat};

use crate::rootfs::check_path;
use crate::rootfs::directory::{self, DIR, DIR_NOFOLLOW, make_private};
use crate::rootfs::teardown::remove_tree;
use crate::sys::fs::is_at;
use crate::sys::lock::{Lock, Locked};
use crate::{Error, Result};

/// The open directory that contains templates.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    fd: OwnedFd,
}

/// Name of a complete template.
pub(super) fn name(key: u64, generation: u64) -> String {
    format!("template-{key:016x}-{generation:016x}")
}

fn newest(key: u64) -> String {
    format!("newest-{key:016x}")
}

/// Parses the generation at the end of a name.
fn generation(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16)
}

fn partial(key: u64) -> String {
    format!("partial-{key:016x}")
}

fn removed(key: u64) -> String {
    format!("removed-{key:016x}-")
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<Store> {
        check_path("template", path)?;
        let step = |call: &str| format!("{call}({path:?})");
        let fd = match make_private(AT_FDCWD, path) {
            Ok(fd) => fd,
            // A symbolic link to a directory is accepted.
            Err(Errno::EEXIST) => openat(AT_FDCWD, path, DIR, Mode::empty())
                .map_err(Error::prepare(format!("openat({path:?}, O_DIRECTORY)")))?,
            Err(errno) => return Err(Error::prepare(step("mkdir"))(errno)),
        };
        let st = fstat(&fd).map_err(Error::prepare(step("fstat")))?;
        if st.st_uid != geteuid().as_raw() || st.st_mode & 0o077 != 0 {
            let (uid, mode) = (st.st_uid, st.st_mode & 0o7777);
            let why = format!(
                "other users can access {path:?} (owner {uid}, mode {mode:04o}): it must belong to the caller and have mode 0700"
            );
            return Err(Error::spec("template", why));
        }
        Ok(Store { path: path.into(), fd })
    }

    /// Duplicates the descriptor.
    pub(super) fn duplicate(&self) -> Result<Store> {
        let fd = self.fd.try_clone().map_err(Error::prepare(format!("fcntl({:?}, F_DUPFD)", self.path)))?;
        Ok(Store { path: self.path.clone(), fd })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Path of the template that is being filled.
    pub(super) fn partial(&self, key: u64) -> PathBuf {
        self.path.join(partial(key))
    }

    fn step(&self, call: &str, name: &str) -> String {
        format!("{call}({:?})", self.path.join(name))
    }

    /// Waits for the exclusive lock on the key, which is held until the descriptor is closed. Each call opens the
    /// file anew, so threads of one process exclude each other too.
    pub(super) fn lock(&self, key: u64) -> Result<Locked> {
        let name = format!("lock-{key:016x}");
        let flags = OFlag::O_RDONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // The umask may remove the read bit. The process that makes the file gets a descriptor anyway; later ones need
        // the bit.
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

    /// Returns the newest complete template, with a shared lock on it. The caller holds the lock on the key.
    pub(super) fn newest(&self, key: u64) -> Result<Option<(u64, Locked)>> {
        let prefix = format!("template-{key:016x}-");
        let mut found = Vec::new();
        for name in self.names(&prefix)? {
            let Some(generation) = name.strip_prefix(&prefix).and_then(generation) else { continue };
            if let Some(st) = self.stat(&name).map_err(Error::prepare(self.step("fstatat", &name)))? {
                found.push((false, st.st_ctime, st.st_ctime_nsec, generation));
            }
        }
        // The link may dangle. It may also be out of date, if a process was killed right after it filled a template.
        let linked = readlinkat(&self.fd, &*newest(key)).ok();
        let linked =
            linked.as_ref().and_then(|text| text.to_str()?.strip_prefix(&prefix).and_then(generation));
        found.iter_mut().for_each(|one| one.0 = linked == Some(one.3));
        found.sort_unstable();
        for (.., generation) in found.into_iter().rev() {
            if let Some(held) = self.lock_shared(key, generation)? {
                return Ok(Some((generation, held)));
            }
        }
        Ok(None)
    }

    /// Returns a generation with a shared lock on it. `None` if it does not exist, or another process was removing it.
    pub(super) fn lock_shared(&self, key: u64, generation: u64) -> Result<Option<Locked>> {
        let name = name(key, generation);
        let fd = match openat(&self.fd, &*name, DIR_NOFOLLOW, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(Error::prepare(self.step("openat", &name))(errno)),
        };
        let fd = Locked::new(fd, Lock::Shared).map_err(Error::prepare(self.step("flock", &name)))?;
        let named = self.is_named(fd.as_fd(), &name).map_err(Error::prepare(self.step("fstatat", &name)))?;
        Ok(named.then_some(fd))
    }

    /// Makes `newest-KEY` point to a generation. The caller holds the lock on the key.
    pub(super) fn set_newest(&self, key: u64, generation: u64) -> Result<()> {
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

    /// Removes partial and removed templates of killed processes. The caller holds the lock on the key.
    pub(super) fn remove_stale(&self, key: u64) -> Result<()> {
        self.remove_name(&partial(key))?;
        for name in self.names(&removed(key))? {
            let Ok(fd) = openat(&self.fd, &*name, DIR_NOFOLLOW, Mode::empty()) else { continue };
            // If it is locked, another process removes it.
            if let Ok(_held) = Locked::new(fd, Lock::ExclusiveNow) {
                self.remove_name(&name)?;
            }
        }
        Ok(())
    }

    /// Makes the directory of a template that is to be filled. The caller holds the lock on the key, and no stale one
    /// exists.
    pub(super) fn make_partial(&self, key: u64) -> Result<OwnedFd> {
        let name = partial(key);
        make_private(self.fd.as_fd(), &*name).map_err(Error::prepare(self.step("mkdirat", &name)))
    }

    /// Renames the complete template `root` to its final name, and locks it. The caller holds the lock on the key. If a
    /// template of that name exists, locks that one and removes `root`.
    pub(super) fn publish(&self, key: u64, generation: u64, root: OwnedFd) -> Result<Locked> {
        let (from, to) = (partial(key), name(key, generation));
        let step = |call: &str| self.step(call, &from);
        fchmod(&root, Mode::from_bits_truncate(0o755)).map_err(Error::prepare(step("fchmod")))?;
        syncfs(&root).map_err(Error::prepare(step("syncfs")))?;
        let root = Locked::new(root, Lock::Shared).map_err(Error::prepare(step("flock")))?;
        loop {
            // A rename replaces an empty directory only.
            match renameat(&self.fd, &*from, &self.fd, &*to) {
                Ok(()) => return self.set_newest(key, generation).map(|()| root),
                Err(Errno::EEXIST | Errno::ENOTEMPTY) => {}
                Err(errno) => return Err(Error::prepare(step("renameat"))(errno)),
            }
            if let Some(there) = self.lock_shared(key, generation)? {
                self.remove_name(&from)?;
                self.set_newest(key, generation)?;
                return Ok(there);
            }
        }
    }

    /// Removes the generation whose root is `held`, with an exclusive lock. Succeeds if another process has removed it.
    pub(super) fn remove(&self, key: u64, generation: u64, held: Locked) -> Result<()> {
        let from = name(key, generation);
        let step = |call: &str| self.step(call, &from);
        if !self.is_named(held.as_fd(), &from).map_err(Error::task(step("fstatat")))? {
            return Ok(());
        }
        let st = fstat(held.as_fd()).map_err(Error::task(step("fstat")))?;
        let to = format!("{}{:016x}", removed(key), st.st_ino);
        renameat(&self.fd, &*from, &self.fd, &*to).map_err(Error::task(step("renameat")))?;
        // Processes that wait for a lock get it now and find that the name has changed. The shared lock keeps
        // `remove_stale` in other processes from removing it too.
        let _ = held.change(Lock::Shared);
        self.remove_name(&to)
    }

    fn remove_name(&self, name: &str) -> Result<()> {
        remove_tree(self.fd.as_fd(), name.as_ref()).map_err(|left| left.into_error(&self.path))
    }

    /// Whether `name` still refers to the directory of `fd`.
    fn is_named(&self, fd: BorrowedFd<'_>, name: &str) -> nix::Result<bool> {
        is_at(fd, self.fd.as_fd(), name)
    }

    fn stat(&self, name: &str) -> nix::Result<Option<FileStat>> {
        match fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(st) => Ok(Some(st)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Names that begin with `prefix`.
    fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let all = directory::list(self.fd.as_fd(), &self.path)?.into_iter();
        let known = all.filter(|(name, _)| name.to_bytes().starts_with(prefix.as_bytes()));
        Ok(known.filter_map(|(name, _)| name.into_string().ok()).collect())
    }
}
