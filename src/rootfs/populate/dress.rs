//! What an entry gets beside its content: owner, attributes, times and, last of all, its mode.
//!
//! The mode says whether an entry is finished. Until then a directory or a file that was made here has one that
//! finished ones do not have, and it has that from the call on that makes it: sticky, and nothing for group and
//! others. So who is killed at any point leaves nothing that could be taken for complete, and the
//! next run knows what it has to do again. This costs no call more than a copy needs anyway; a temporary name
//! and `renameat2`, or `O_TMPFILE` and `linkat`, cost a tenth to a fifth of the time that copying takes.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, geteuid};

use super::attributes::{Attributes, Buffers};
use super::refused::{Refused, Side, refused};
use crate::sys::fs::Kind;

/// The mode of a directory that is not finished. The umask may take bits of the owner's.
pub(super) const UNFINISHED_DIR: Mode = Mode::S_ISVTX.union(Mode::S_IRWXU);

/// That of a file. Its owner must be able to set attributes.
pub(super) const UNFINISHED_FILE: Mode = Mode::S_ISVTX.union(Mode::S_IWUSR);

/// Both bits are in the mode of a directory whose access control list is set already, and nothing else is
/// missing but its mode. The set-user-id bit of a directory means nothing.
pub(super) const MARKED: Mode = UNFINISHED_DIR.union(Mode::S_ISUID);

/// User and group.
pub(super) type Ids = (u32, u32);

/// Whether an entry has the owner of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owned {
    AsSource,
    ByCaller,
}

/// What an entry could not be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dressed {
    pub(super) owned: Owned,
    pub(super) attributes: Attributes,
}

/// Gives entries what they get.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dresser {
    me: Uid,
    setuid: bool,
}

impl Dresser {
    pub(super) fn new(setuid: bool) -> Self {
        Dresser { me: geteuid(), setuid }
    }

    /// Whether `st`, of an entry in the root, is what a population left that was killed; `like` is what its
    /// source is like.
    pub(super) fn unfinished(self, st: &FileStat, like: &FileStat) -> bool {
        let marked = match Kind::of_mode(st.st_mode) {
            Kind::Dir => st.st_mode & 0o5077 == 0o1000 || st.st_mode & 0o5000 == 0o5000,
            // An access control list may have changed the lower bits.
            Kind::File => st.st_mode & 0o7000 == 0o1000 && st.st_nlink == 1,
            _ => false,
        };
        marked && self.ours(st, like)
    }

    /// Whether the owner of an entry in the root speaks for a population that made it.
    pub(super) fn ours(self, st: &FileStat, like: &FileStat) -> bool {
        st.st_uid == self.me.as_raw() || st.st_uid == like.st_uid
    }

    /// Gives a directory what `like` says, all twelve bits, when nothing more is made in it. `source` is where
    /// its attributes come from, and `now` its owner where that is known.
    pub(super) fn dir(
        self,
        fd: BorrowedFd<'_>,
        now: Option<Ids>,
        source: Option<BorrowedFd<'_>>,
        like: &FileStat,
        buffers: &mut Buffers,
    ) -> Result<Dressed, Refused> {
        let owned = self.own(fd, now, like)?;
        // A directory has no capabilities.
        let attributes = match source {
            Some(source) => buffers.copy(source, fd, false)?,
            None => Attributes::Kept,
        };
        self.finish(fd, like, like.st_mode)?;
        Ok(Dressed { owned, attributes })
    }

    /// The same for a copied file.
    pub(super) fn file(
        self,
        fd: BorrowedFd<'_>,
        now: Option<Ids>,
        source: BorrowedFd<'_>,
        like: &FileStat,
        buffers: &mut Buffers,
    ) -> Result<Dressed, Refused> {
        let owned = self.own(fd, now, like)?;
        let attributes = buffers.copy(source, fd, self.setuid)?;
        // A program that runs as its owner must not run as the caller because that could not be given away.
        let bits = match (self.setuid, owned) {
            (true, Owned::AsSource) => 0o7777,
            _ => 0o777,
        };
        self.finish(fd, like, like.st_mode & bits)?;
        Ok(Dressed { owned, attributes })
    }

    /// For a parent that has no source.
    pub(super) fn plain(self, fd: BorrowedFd<'_>) -> Result<Dressed, Refused> {
        fchmod(fd, Mode::from_bits_truncate(0o755)).map_err(refused("fchmod", Side::Dest))?;
        Ok(Dressed { owned: Owned::AsSource, attributes: Attributes::Kept })
    }

    /// Times, which the mode does not change, and the mode, with which it is finished.
    fn finish(self, fd: BorrowedFd<'_>, like: &FileStat, mode: u32) -> Result<(), Refused> {
        let (access, modification) = times(like);
        futimens(fd, &access, &modification).map_err(refused("futimens", Side::Dest))?;
        fchmod(fd, Mode::from_bits_truncate(mode)).map_err(refused("fchmod", Side::Dest))
    }

    fn own(self, fd: BorrowedFd<'_>, now: Option<Ids>, like: &FileStat) -> Result<Owned, Refused> {
        let now = match now {
            Some(now) => now,
            None => ids(&fstat(fd).map_err(refused("fstat", Side::Dest))?),
        };
        let chown = || fchown(fd.as_fd(), Some(Uid::from_raw(like.st_uid)), Some(Gid::from_raw(like.st_gid)));
        self.own_by(now, like, chown).map_err(refused("fchown", Side::Dest))
    }

    /// Gives the owner of `like` to what has the owner `now` and what `chown` reaches.
    pub(super) fn own_by(
        self,
        now: Ids,
        like: &FileStat,
        chown: impl FnOnce() -> nix::Result<()>,
    ) -> nix::Result<Owned> {
        if now == ids(like) {
            return Ok(Owned::AsSource);
        }
        if !self.me.is_root() {
            return Ok(Owned::ByCaller);
        }
        match chown() {
            Ok(()) => Ok(Owned::AsSource),
            // No CAP_CHOWN, or a user namespace that does not map the owner.
            Err(Errno::EPERM | Errno::EINVAL) => Ok(Owned::ByCaller),
            Err(errno) => Err(errno),
        }
    }
}

pub(super) fn ids(st: &FileStat) -> Ids {
    (st.st_uid, st.st_gid)
}

/// Access and modification time.
pub(super) fn times(st: &FileStat) -> (TimeSpec, TimeSpec) {
    (TimeSpec::new(st.st_atime, st.st_atime_nsec), TimeSpec::new(st.st_mtime, st.st_mtime_nsec))
}
