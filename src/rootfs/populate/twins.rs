//! Hard links inside one source: names of one inode stay names of one inode when they are copied.
//!
//! The first name of an inode is copied, and the others are linked to that copy. Each inode has a lock of its own,
//! held while its first name is copied, so that two threads never copy it twice.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::AtFlags;
use nix::sys::stat::FileStat;
use nix::unistd::linkat;

use super::dest;

/// Path of the copy of an inode, from the top of the source's counterpart; `None` before it is made.
pub(super) type FirstCopy = Arc<Mutex<Option<PathBuf>>>;

/// The inodes of one source that have several names, by device and inode number.
pub(super) struct Twins<'w> {
    top: BorrowedFd<'w>,
    copies: Mutex<HashMap<(u64, u64), FirstCopy>>,
}

impl<'w> Twins<'w> {
    /// For a source whose counterpart is `top`.
    pub(super) fn new(top: BorrowedFd<'w>) -> Self {
        Twins { top, copies: Mutex::default() }
    }

    /// The copy of the inode of `st`. `None` if the inode has only one name.
    pub(super) fn copy_of(&self, st: &FileStat) -> Option<FirstCopy> {
        if st.st_nlink < 2 {
            return None;
        }
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(copies.entry((st.st_dev, st.st_ino)).or_default()))
    }

    /// Links the copy at `first` to `name` in `dir`. Returns `false` if that fails and a copy must be made.
    pub(super) fn link(&self, first: &Path, dir: BorrowedFd<'_>, name: &CStr) -> bool {
        let (Some(up), Some(first)) = (first.parent(), first.file_name()) else { return false };
        let Ok(from) = dest::open_no_links(self.top, up) else { return false };
        linkat(&from, first, dir, name, AtFlags::empty()).is_ok()
    }
}
