//! The root of a task that has ended, before it is removed.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::Task;
use crate::error::{Error, Result};
use crate::rootfs::Change;
use crate::rootfs::populate::TempRoot;

/// The root of a task whose processes have ended, passed to the closure of [`Task::wait_with_root`].
#[derive(Debug)]
pub struct EndedRoot<'a> {
    pub(super) temp: Option<&'a TempRoot>,
    pub(super) task: &'a Task,
}

impl EndedRoot<'_> {
    /// The directory of the host that is the root, for example to copy files from. `None` for a root of mounts
    /// ([`Bind`](crate::Method::Bind) and [`Overlay`](crate::Method::Overlay)).
    ///
    /// Mounts in the root, such as volumes, are gone. The files are not trustworthy: do not follow symbolic links in
    /// the root, and do not execute its programs.
    pub fn path(&self) -> Option<&Path> {
        self.task.enclosure.root.dir.as_deref()
    }

    /// The files that differ from the sources of the root, sorted by path. It works for a root by copy, reflink or
    /// link, and for an overlay with an [`upper`](crate::Root::upper) directory.
    ///
    /// The current sources are compared by type, size, time of modification, mode and owner, not by content. So a file
    /// that was rewritten with its old size and times is not found. Directories are listed only if they were removed.
    ///
    /// With an upper directory, only files below a destination of the map are listed. What the task writes elsewhere,
    /// in `/` itself, goes to a tmpfs and is lost.
    ///
    /// An upper directory contains a directory for each overlay, named by its path with `%2F` for each slash after the
    /// first. In that directory, `upper` contains the changed files.
    ///
    /// # Errors
    /// [`Error::Task`] with `Unsupported` for any other root, or with the call that was refused.
    pub fn changes(&self) -> Result<Vec<Change>> {
        let record = &self.task.enclosure.root;
        let given: Option<OwnedFd> = match (self.temp, &record.dir) {
            (None, Some(dir)) => {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let opened = open(dir, flags, Mode::empty());
                Some(opened.map_err(Error::task(format!("openat({dir:?}, O_PATH|O_DIRECTORY)")))?)
            }
            _ => None,
        };
        let root = self.temp.map(TempRoot::fd).or(given.as_ref().map(AsFd::as_fd));
        record.changes(root, self.task.populated.as_ref().unwrap_or(&Default::default()))
    }
}
