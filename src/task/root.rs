//! The root of a task that has ended, before it is removed.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::Task;
use crate::error::{Error, Result};
use crate::rootfs::Change;
use crate::rootfs::populate::TempRoot;

/// The root of a task whose processes have ended: see [`Task::wait_with_root`].
#[derive(Debug)]
pub struct EndedRoot<'a> {
    pub(super) temp: Option<&'a TempRoot>,
    pub(super) task: &'a Task,
}

impl EndedRoot<'_> {
    /// The directory of the host that is the root, to take files from; `None` for a root of mounts. What was mounted in
    /// it, volumes among them, is not there any more. Files in it belong to the task: do not follow its symbolic links,
    /// and do not execute its programs.
    pub fn path(&self) -> Option<&Path> {
        self.task.enclosure.root.dir.as_deref()
    }

    /// Which files differ from those that the root was populated with, sorted by path: for a root by copy, reflink or
    /// link, and for an overlay with an [`upper`](crate::Root::upper) directory. The upper directory has a directory for
    /// each overlay, named as its path with `%2F` for each slash after the first, and in that `upper` has the changed
    /// files.
    ///
    /// Contents are not compared: a file that was rewritten with its old size and times is not found. Directories are
    /// listed only if they were removed. The sources are looked at as they are now.
    ///
    /// # Errors
    /// [`Error::Task`]: `Unsupported` for any other root, else with the call that was refused.
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
