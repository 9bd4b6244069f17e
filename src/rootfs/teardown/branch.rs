//! Thorough removal: one thread removes one branch at a time.
//!
//! It is slower than several threads. But it reports each path that stays, with the reason. It removes trees of any
//! depth, and reads a directory again that is not empty yet.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::unistd::{Whence, lseek};

use super::Left;
use super::dir::{open_child, open_up, rmdir, unlink, unlink_files};
use crate::sys::fs::Dirents;

/// Maximum number of directories of a branch that are open.
pub(super) const MAX_OPEN: usize = 48;

/// How often a directory is read again if it is not empty after all its entries were removed. The file system may skip
/// entries while others are removed, and another process may still write there.
const ROUNDS: u8 = 8;

/// Removes `name` in `parent` and everything below it, as user id `me`. Returns what stays.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &CStr, me: u32) -> Vec<Left> {
    let mut removal = Removal { parent, branch: Vec::new(), left: Vec::new(), me };
    removal.run(name.to_owned());
    removal.left
}

struct Removal<'a> {
    parent: BorrowedFd<'a>,
    /// The directories from the top to the current one, which is being emptied.
    branch: Vec<Level>,
    left: Vec<Left>,
    me: u32,
}

struct Level {
    name: CString,
    /// Open, or closed to limit the number of descriptors. A closed directory is identified by device and inode.
    dir: Handle,
    /// Its subdirectories that must still be removed.
    todo: Vec<CString>,
    /// Something below it stays.
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

    /// Opens the directory `name` in the current one and makes it the current one. Unlinks `name` if it is not a
    /// directory.
    fn enter(&mut self, name: CString, dirents: &mut Dirents) {
        let refused = match self.open(&name) {
            Ok(dir) => {
                let dir = Handle::Open(dir);
                self.branch.push(Level { name, dir, todo: Vec::new(), stays: false, rounds: ROUNDS });
                if let Some(up) = self.branch.len().checked_sub(MAX_OPEN) {
                    self.close(up);
                }
                return self.empty(dirents);
            }
            Err(Errno::ENOENT) => return,
            Err(Errno::ENOTDIR | Errno::ELOOP) => match self.here() {
                Some(here) => unlink(here, &name),
                None => Err(Errno::EBADF),
            },
            Err(Errno::EXDEV) => Err(Errno::EBUSY),
            Err(errno) => Err(errno),
        };
        if let Err(errno) = refused {
            self.add_leftover(Some(&name), errno);
        }
    }

    /// Opens `name` in the current directory. If no descriptor is free, closes directories above, from the top.
    fn open(&mut self, name: &CStr) -> nix::Result<OwnedFd> {
        let mut above = 0..self.branch.len().saturating_sub(1);
        loop {
            match open_child(self.here().ok_or(Errno::EBADF)?, name, self.me) {
                Err(errno @ (Errno::EMFILE | Errno::ENFILE)) => {
                    if !above.any(|i| self.close(i)) {
                        return Err(errno);
                    }
                }
                answer => return answer,
            }
        }
    }

    /// Unlinks everything in the current directory except subdirectories, which are queued.
    fn empty(&mut self, dirents: &mut Dirents) {
        let Some(Level { dir: Handle::Open(dir), .. }) = self.branch.last() else { return };
        let mut failed = Vec::new();
        let todo = unlink_files(dir.as_fd(), dirents, self.me, |name, errno| {
            failed.push((name.map(CStr::to_owned), errno));
        });
        if let Some(level) = self.branch.last_mut() {
            level.todo = todo;
        }
        for (name, errno) in failed {
            self.add_leftover(name.as_deref(), errno);
        }
    }

    /// Makes the parent the current directory. Removes the former current directory unless something in it stays.
    fn leave(&mut self, dirents: &mut Dirents) {
        let Some(mut level) = self.branch.pop() else { return };
        let Handle::Open(dir) = &level.dir else {
            return self.add_leftover(Some(&level.name), Errno::EBADF);
        };
        if let Err(errno) = self.reopen(dir.as_fd()) {
            self.add_leftover(Some(&level.name), errno);
            // Another process has moved the directory, so its parent is lost. The directories above stay.
            self.branch.clear();
            return;
        }
        if level.stays {
            self.keep_current();
            return;
        }
        let Some(here) = self.here() else { return };
        match rmdir(here, &level.name) {
            Ok(()) => {}
            Err(Errno::ENOTEMPTY | Errno::EEXIST) if level.rounds > 0 => {
                level.rounds = level.rounds.saturating_sub(1);
                let rewound = lseek(dir, 0, Whence::SeekSet);
                self.branch.push(level);
                match rewound {
                    Ok(_) => self.empty(dirents),
                    Err(errno) => self.add_leftover(None, errno),
                }
            }
            Err(errno) => self.add_leftover(Some(&level.name), errno),
        }
    }

    /// The current directory; the parent of the tree if there is none.
    fn here(&self) -> Option<BorrowedFd<'_>> {
        match self.branch.last() {
            None => Some(self.parent),
            Some(Level { dir: Handle::Open(dir), .. }) => Some(dir.as_fd()),
            Some(Level { dir: Handle::Closed { .. }, .. }) => None,
        }
    }

    /// Opens the current directory again if it was closed, as the parent of `child`.
    fn reopen(&mut self, child: BorrowedFd<'_>) -> nix::Result<()> {
        let Some(level) = self.branch.last_mut() else { return Ok(()) };
        let Handle::Closed { dev, ino } = level.dir else { return Ok(()) };
        let up = open_up(child)?;
        let st = fstat(&up)?;
        if (st.st_dev, st.st_ino) != (dev, ino) {
            return Err(Errno::ESTALE);
        }
        level.dir = Handle::Open(up);
        Ok(())
    }

    /// Closes the directory `i` of the branch. Returns `false` if it is closed already or cannot be closed.
    fn close(&mut self, i: usize) -> bool {
        let Some(level) = self.branch.get_mut(i) else { return false };
        let Handle::Open(dir) = &level.dir else { return false };
        let Ok(st) = fstat(dir) else { return false };
        level.dir = Handle::Closed { dev: st.st_dev, ino: st.st_ino };
        true
    }

    /// Notes that `name` in the current directory, or this directory itself, stays.
    fn add_leftover(&mut self, name: Option<&CStr>, errno: Errno) {
        let names = self.branch.iter().map(|level| &*level.name).chain(name);
        let path = names.map(|n| OsStr::from_bytes(n.to_bytes())).collect();
        self.left.push(Left::stays(path, errno));
        self.keep_current();
    }

    fn keep_current(&mut self) {
        if let Some(level) = self.branch.last_mut() {
            level.stays = true;
        }
    }
}
