//! The modes that mark an entry of the root as unfinished.
//!
//! A directory or a copied file is made with such a mode: sticky, and no permissions for group and others. It gets its
//! final mode last. So a process that is killed at any point leaves no entry that could be taken for complete, and the
//! next population knows which entries it must make again. This costs no additional call. A temporary name and
//! `renameat2`, or `O_TMPFILE` and `linkat`, would cost a tenth to a fifth of the time of copying.

use nix::sys::stat::{FileStat, Mode};

use crate::sys::fs::DirentKind;

/// Mode of an unfinished directory. The umask may remove permission bits of the owner.
pub(super) const UNFINISHED_DIR: Mode = Mode::S_ISVTX.union(Mode::S_IRWXU);

/// Mode of an unfinished file. Its owner must be able to set extended attributes.
pub(super) const UNFINISHED_FILE: Mode = Mode::S_ISVTX.union(Mode::S_IWUSR);

/// Mode of an unfinished directory whose access control list may have changed the permission bits. The sticky bit and
/// the set-user-id bit together mark it. The latter has no meaning for a directory.
pub(super) const UNFINISHED_DIR_WITH_ACL: Mode = UNFINISHED_DIR.union(Mode::S_ISUID);

/// Whether the mode of `st` marks an unfinished directory or file.
pub(super) fn is_marked(st: &FileStat) -> bool {
    match DirentKind::of_mode(st.st_mode) {
        DirentKind::Dir => st.st_mode & 0o5077 == 0o1000 || st.st_mode & 0o5000 == 0o5000,
        // An access control list may have changed the permission bits.
        DirentKind::File => st.st_mode & 0o7000 == 0o1000 && st.st_nlink == 1,
        _ => false,
    }
}
