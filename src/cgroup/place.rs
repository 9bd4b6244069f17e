//! One directory of a group, by descriptor where it is held and by path where it is not.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;

use super::kill::{read_at, write_at};

/// Where one controller of a group is, or its v2 cgroup.
///
/// The unit and the memory cgroup are held by descriptor, so that their counters can be read whatever has become
/// of their names; the others are found by path, for as long as the group has not been removed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    path: &'a Path,
    held: Option<BorrowedFd<'a>>,
}

impl<'a> Place<'a> {
    pub fn new(path: &'a Path, held: Option<BorrowedFd<'a>>) -> Place<'a> {
        Place { path, held }
    }

    /// The directory.
    pub fn path(&self) -> &'a Path {
        self.path
    }

    /// The text of a file in it.
    pub fn read(&self, file: &str) -> io::Result<String> {
        match self.held {
            Some(dir) => read_at(dir, file),
            None => read_at(AT_FDCWD, self.path.join(file)),
        }
    }

    /// Writes a file in it, with one `write(2)`.
    pub fn write(&self, file: &str, text: &str) -> io::Result<()> {
        match self.held {
            Some(dir) => write_at(dir, file, text),
            None => write_at(AT_FDCWD, self.path.join(file), text),
        }
    }

    /// Opens a file in it, close-on-exec.
    pub fn open(&self, file: &str, flags: OFlag) -> io::Result<OwnedFd> {
        let flags = flags | OFlag::O_CLOEXEC;
        Ok(match self.held {
            Some(dir) => openat(dir, file, flags, Mode::empty())?,
            None => openat(AT_FDCWD, &self.path.join(file), flags, Mode::empty())?,
        })
    }
}
