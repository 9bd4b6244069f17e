//! One file or symbolic link, from the host into the root: by link, else by clone, else by copy.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, UtimensatFlags, fstat, fstatat, utimensat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};

use super::Method;
use super::copy::Copier;
use super::dress::{self, Dressed, Ids, Owned};
use super::refused::{Refused, Side, refused};
use super::walk::Settings;
use crate::sys::fs::{Kind, set_times};

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placed {
    /// A file of so many bytes, where that was asked for.
    Linked(Option<u64>),
    Cloned(u64, Dressed),
    Copied(u64, Dressed),
    /// A further name of a clone or a copy.
    Twin,
    /// A link of its own, or the host's.
    Symlinked(Owned),
    /// The name was taken.
    Kept,
    /// The source went away, or is something else now.
    Gone,
}

/// Where an entry comes from.
pub(super) struct Origin<'a, P: ?Sized> {
    pub(super) dir: BorrowedFd<'a>,
    pub(super) name: &'a P,
    /// Whether a link at `name` stands for its target: only for what the map itself names.
    pub(super) follow: bool,
}

impl<P: ?Sized> Clone for Origin<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: ?Sized> Copy for Origin<'_, P> {}

impl<P: ?Sized + NixPath> Origin<'_, P> {
    pub(super) fn stat(&self) -> nix::Result<FileStat> {
        let flags = if self.follow { AtFlags::empty() } else { AtFlags::AT_SYMLINK_NOFOLLOW };
        fstatat(self.dir, self.name, flags)
    }

    fn gone(&self) -> bool {
        self.stat() == Err(Errno::ENOENT)
    }
}

/// Where it goes to.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) dir: BorrowedFd<'a>,
    pub(super) name: &'a CStr,
    /// The owner of what is made in that directory, where that is known: then the directory is new, and no
    /// name is taken in it.
    pub(super) born: Option<Ids>,
}

/// Brings a regular file along. `size` is told where it is known.
pub(super) fn place<P: ?Sized + NixPath>(
    by: &Settings<'_>,
    from: Origin<'_, P>,
    to: Target<'_>,
    size: Option<u64>,
    copier: &mut Copier<'_>,
) -> Result<Placed, Refused> {
    if by.method == Method::Link {
        let linked = match link(from, to)? {
            // What has the name may be half a copy.
            Some(Placed::Kept) if !taken(by, from, to)? => link(from, to)?,
            linked => linked,
        };
        if let Some(linked) = linked {
            return match linked {
                Placed::Linked(_) => Ok(Placed::Linked(size)),
                other => Ok(other),
            };
        }
    }
    copier.place(by, from, to)
}

/// Whether an attempt to link says that a copy may do.
fn copy_instead(errno: Errno) -> bool {
    matches!(errno, Errno::EXDEV | Errno::EPERM | Errno::EMLINK | Errno::EOPNOTSUPP)
}

/// Makes a hard link; `None` if a copy is to be made instead.
fn link<P: ?Sized + NixPath>(from: Origin<'_, P>, to: Target<'_>) -> Result<Option<Placed>, Refused> {
    let flags = if from.follow { AtFlags::AT_SYMLINK_FOLLOW } else { AtFlags::empty() };
    match linkat(from.dir, from.name, to.dir, to.name, flags) {
        Ok(()) => Ok(Some(Placed::Linked(None))),
        Err(Errno::EEXIST) => Ok(Some(Placed::Kept)),
        Err(errno) if copy_instead(errno) => Ok(None),
        // On which side? A tree that is in use loses files while it is read.
        Err(Errno::ENOENT) if from.gone() => Ok(Some(Placed::Gone)),
        Err(errno) => Err(refused("linkat", Side::Both)(errno)),
    }
}

/// Whether the name is taken, be it by a dangling link. Half a copy that somebody left who was killed is removed.
pub(super) fn taken<P: ?Sized + NixPath>(
    by: &Settings<'_>,
    from: Origin<'_, P>,
    to: Target<'_>,
) -> Result<bool, Refused> {
    let st = match fstatat(to.dir, to.name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(st) => st,
        Err(Errno::ENOENT) => return Ok(false),
        Err(errno) => return Err(refused("fstatat", Side::Dest)(errno)),
    };
    let half = Kind::of_mode(st.st_mode) == Kind::File
        && from.stat().is_ok_and(|source| by.dresser.unfinished(&st, &source));
    if half {
        unlinkat(to.dir, to.name, UnlinkatFlags::NoRemoveDir).map_err(refused("unlinkat", Side::Dest))?;
    }
    Ok(!half)
}

/// Brings a symbolic link along: the host's own, else one with the same text.
pub(super) fn place_symlink(
    by: &Settings<'_>,
    from: Origin<'_, CStr>,
    to: Target<'_>,
) -> Result<Placed, Refused> {
    if by.method == Method::Link
        && let Some(linked) = link(from, to)?
    {
        return Ok(match linked {
            Placed::Linked(_) => Placed::Symlinked(Owned::AsSource),
            Placed::Kept => again(by, from, to)?,
            other => other,
        });
    }
    let text = match readlinkat(from.dir, from.name) {
        Ok(text) => text,
        Err(Errno::ENOENT | Errno::EINVAL) => return Ok(Placed::Gone),
        Err(errno) => return Err(refused("readlinkat", Side::Source)(errno)),
    };
    match symlinkat(text.as_os_str(), to.dir, to.name) {
        Ok(()) => {}
        Err(Errno::EEXIST) => return again(by, from, to),
        Err(errno) => return Err(refused("symlinkat", Side::Dest)(errno)),
    }
    let like = match from.stat() {
        Ok(like) => like,
        Err(Errno::ENOENT) => return Ok(Placed::Symlinked(Owned::ByCaller)),
        Err(errno) => return Err(refused("fstatat", Side::Source)(errno)),
    };
    let owned = match to.born {
        Some(born) => dress_new(by, to, born, &like),
        None => dress_symlink(by, to, &like),
    };
    owned.map(Placed::Symlinked)
}

/// Owner and times of a link in a directory that nobody else can enter yet.
fn dress_new(by: &Settings<'_>, to: Target<'_>, born: Ids, like: &FileStat) -> Result<Owned, Refused> {
    let chown = || {
        let (uid, gid) = (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid));
        fchownat(to.dir, to.name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
    };
    let owned = by.dresser.own_by(born, like, chown).map_err(refused("fchownat", Side::Dest))?;
    let (access, modification) = dress::times(like);
    let nofollow = UtimensatFlags::NoFollowSymlink;
    timed(utimensat(to.dir, to.name, &access, &modification, nofollow)).map(|()| owned)
}

fn timed(answer: nix::Result<()>) -> Result<(), Refused> {
    match answer {
        // A kernel older than 5.8, or a file system whose links have no times.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM) => Ok(()),
        answer => answer.map_err(refused("utimensat", Side::Dest)),
    }
}

/// A link has no mode that says whether it is finished: one with the same text that is still the caller's gets
/// again what it should have.
fn again(by: &Settings<'_>, from: Origin<'_, CStr>, to: Target<'_>) -> Result<Placed, Refused> {
    let (Ok(text), Ok(like)) = (readlinkat(from.dir, from.name), from.stat()) else {
        return Ok(Placed::Kept);
    };
    let there = Origin { dir: to.dir, name: to.name, follow: false };
    if readlinkat(to.dir, to.name) == Ok(text) && there.stat().is_ok_and(|st| by.dresser.ours(&st, &like)) {
        dress_symlink(by, to, &like)?;
    }
    Ok(Placed::Kept)
}

/// Owner and times of a link, by a descriptor that was seen to be a link with one name: whoever put another
/// file there meanwhile does not have it given away.
fn dress_symlink(by: &Settings<'_>, to: Target<'_>, like: &FileStat) -> Result<Owned, Refused> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(to.dir, to.name, flags, Mode::empty()).map_err(refused("openat", Side::Dest))?;
    let st = fstat(&fd).map_err(refused("fstat", Side::Dest))?;
    if Kind::of_mode(st.st_mode) != Kind::Symlink || st.st_nlink != 1 {
        return Ok(Owned::ByCaller);
    }
    let chown = || {
        let (uid, gid) = (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid));
        fchownat(&fd, c"", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)
    };
    let owned = by.dresser.own_by(dress::ids(&st), like, chown).map_err(refused("fchownat", Side::Dest))?;
    let (access, modification) = dress::times(like);
    timed(set_times(fd.as_fd(), access, modification)).map(|()| owned)
}
