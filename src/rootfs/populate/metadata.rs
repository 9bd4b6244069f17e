//! Applies an entry's metadata: owner, extended attributes, timestamps and, last, mode.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, geteuid};

use super::attributes::{Attributes, Buffers};
use super::error::{CallError, Side, failed};
use super::{Populated, add, unfinished};

/// User and group.
pub(super) type Ids = (u32, u32);

/// Whether an entry has the owner of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owned {
    AsSource,
    ByCaller,
}

/// Which metadata of its source an entry got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Applied {
    pub(super) owned: Owned,
    pub(super) attributes: Attributes,
}

impl Applied {
    /// Counts in `done` the metadata that could not be applied.
    pub(super) fn count(self, done: &mut Populated) {
        add(&mut done.disowned, u64::from(self.owned == Owned::ByCaller));
        add(&mut done.attributes_lost, u64::from(self.attributes == Attributes::Lost));
    }
}

/// Applies metadata on behalf of one caller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metadata {
    caller: Uid,
    /// Copies keep setuid and setgid bits and file capabilities.
    setuid: bool,
}

impl Metadata {
    pub(super) fn new(setuid: bool) -> Self {
        Metadata { caller: geteuid(), setuid }
    }

    /// Whether `st` is the metadata of an entry in the root that a killed population left unfinished. `like` is the
    /// metadata of the entry's source.
    pub(super) fn is_unfinished(self, st: &FileStat, like: &FileStat) -> bool {
        unfinished::is_marked(st) && self.is_ours(st, like)
    }

    /// Whether `st` has an owner that a population sets: the caller, or the source's owner in `like`.
    pub(super) fn is_ours(self, st: &FileStat, like: &FileStat) -> bool {
        st.st_uid == self.caller.as_raw() || st.st_uid == like.st_uid
    }

    /// Applies the metadata `like`, with all twelve mode bits, to a directory whose entries are all made. Copies the
    /// extended attributes of `source`. `now` is the present owner, if known.
    pub(super) fn apply_to_dir(
        self,
        fd: BorrowedFd<'_>,
        now: Option<Ids>,
        source: Option<BorrowedFd<'_>>,
        like: &FileStat,
        buffers: &mut Buffers,
    ) -> Result<Applied, CallError> {
        let owned = self.set_owner(fd, now, like)?;
        // A directory has no capabilities.
        let attributes = match source {
            Some(source) => buffers.copy(source, fd, false)?,
            None => Attributes::Kept,
        };
        set_times_and_mode(fd, like, like.st_mode)?;
        Ok(Applied { owned, attributes })
    }

    /// Applies the metadata `like` to a copied file.
    pub(super) fn apply_to_file(
        self,
        fd: BorrowedFd<'_>,
        now: Option<Ids>,
        source: BorrowedFd<'_>,
        like: &FileStat,
        buffers: &mut Buffers,
    ) -> Result<Applied, CallError> {
        let owned = self.set_owner(fd, now, like)?;
        let attributes = buffers.copy(source, fd, self.setuid)?;
        // A setuid program whose owner could not be set would run as the caller.
        let bits = match (self.setuid, owned) {
            (true, Owned::AsSource) => 0o7777,
            _ => 0o777,
        };
        set_times_and_mode(fd, like, like.st_mode & bits)?;
        Ok(Applied { owned, attributes })
    }

    /// Finishes a directory that has no source: mode 0755, owned by the caller.
    pub(super) fn apply_default(self, fd: BorrowedFd<'_>) -> Result<Applied, CallError> {
        fchmod(fd, Mode::from_bits_truncate(0o755)).map_err(failed("fchmod", Side::Dest))?;
        Ok(Applied { owned: Owned::AsSource, attributes: Attributes::Kept })
    }

    fn set_owner(self, fd: BorrowedFd<'_>, now: Option<Ids>, like: &FileStat) -> Result<Owned, CallError> {
        let now = match now {
            Some(now) => now,
            None => ids(&fstat(fd).map_err(failed("fstat", Side::Dest))?),
        };
        let chown = || fchown(fd.as_fd(), Some(Uid::from_raw(like.st_uid)), Some(Gid::from_raw(like.st_gid)));
        self.chown_if_needed(now, like, chown).map_err(failed("fchown", Side::Dest))
    }

    /// Calls `chown`, which sets the owner of `like`, unless the owner `now` is the same or the caller is not root.
    pub(super) fn chown_if_needed(
        self,
        now: Ids,
        like: &FileStat,
        chown: impl FnOnce() -> nix::Result<()>,
    ) -> nix::Result<Owned> {
        if now == ids(like) {
            return Ok(Owned::AsSource);
        }
        if !self.caller.is_root() {
            return Ok(Owned::ByCaller);
        }
        match chown() {
            Ok(()) => Ok(Owned::AsSource),
            // Not enough privileges (needs CAP_CHOWN), or the user namespace does not map the owner.
            Err(Errno::EPERM | Errno::EINVAL) => Ok(Owned::ByCaller),
            Err(errno) => Err(errno),
        }
    }
}

/// Sets timestamps, which `fchmod` does not change, and then the mode, which finishes the entry.
fn set_times_and_mode(fd: BorrowedFd<'_>, like: &FileStat, mode: u32) -> Result<(), CallError> {
    let (access, modification) = times(like);
    futimens(fd, &access, &modification).map_err(failed("futimens", Side::Dest))?;
    fchmod(fd, Mode::from_bits_truncate(mode)).map_err(failed("fchmod", Side::Dest))
}

pub(super) fn ids(st: &FileStat) -> Ids {
    (st.st_uid, st.st_gid)
}

/// Times of access and of modification.
pub(super) fn times(st: &FileStat) -> (TimeSpec, TimeSpec) {
    (TimeSpec::new(st.st_atime, st.st_atime_nsec), TimeSpec::new(st.st_mtime, st.st_mtime_nsec))
}
