//! Hard links inside one source: files that are one inode there become one inode in the root, also when copied.
//!
//! The first name of an inode is copied, and the others are linked to that copy. Each inode has a lock of its own, held
//! while its first name is copied, so that two threads never make two copies of it.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::AtFlags;
use nix::sys::stat::FileStat;
use nix::unistd::linkat;

use super::dest;
use super::file::Target;

/// Where the copy of an inode is, from the top of the source's counterpart on; `None` as long as there is none.
pub(super) type First = Arc<Mutex<Option<PathBuf>>>;

/// The inodes of one source that have more than one name, by device and inode number.
pub(super) struct Twins<'w> {
    top: BorrowedFd<'w>,
    firsts: Mutex<HashMap<(u64, u64), First>>,
}

impl<'w> Twins<'w> {
    /// Of a source whose counterpart is `top`.
    pub(super) fn new(top: BorrowedFd<'w>) -> Self {
        Twins { top, firsts: Mutex::default() }
    }

    /// The copy of the inode `st`, if that has several names.
    pub(super) fn of(&self, st: &FileStat) -> Option<First> {
        if st.st_nlink < 2 {
            return None;
        }
        let mut firsts = self.firsts.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(firsts.entry((st.st_dev, st.st_ino)).or_default()))
    }

    /// Links the copy at `first` to a further name; `false` if that cannot be and a copy is to be made.
    pub(super) fn link(&self, first: &Path, to: Target<'_>) -> bool {
        let (Some(up), Some(name)) = (first.parent(), first.file_name()) else { return false };
        let Ok(dir) = dest::open_plain(self.top, up) else { return false };
        linkat(&dir, name, to.dir, to.name, AtFlags::empty()).is_ok()
    }
}
