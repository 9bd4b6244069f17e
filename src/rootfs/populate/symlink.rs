//! Makes one symbolic link of the host in the root: by hard link, else a new one with the same text.

use std::ffi::CStr;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, UtimensatFlags, fstat, utimensat};
use nix::unistd::{Gid, Uid, fchownat, symlinkat};

use super::Method;
use super::error::{CallError, Side, failed};
use super::file::{Origin, Outcome, Target, link};
use super::metadata::{self, Ids, Owned};
use super::settings::Settings;
use crate::sys::fs::{DirentKind, set_times};

pub(super) fn make(by: &Settings<'_>, from: Origin<'_, CStr>, to: Target<'_>) -> Result<Outcome, CallError> {
    if by.method == Method::Link
        && let Some(linked) = link(from, to)?
    {
        return Ok(match linked {
            Outcome::Linked(_) => Outcome::Symlinked(Owned::AsSource),
            Outcome::Kept => finish_existing(by, from, to)?,
            other => other,
        });
    }
    let text = match readlinkat(from.dir, from.name) {
        Ok(text) => text,
        Err(Errno::ENOENT | Errno::EINVAL) => return Ok(Outcome::Gone),
        Err(errno) => return Err(failed("readlinkat", Side::Source)(errno)),
    };
    match symlinkat(text.as_os_str(), to.dir, to.name) {
        Ok(()) => {}
        Err(Errno::EEXIST) => return finish_existing(by, from, to),
        Err(errno) => return Err(failed("symlinkat", Side::Dest)(errno)),
    }
    let like = match from.stat() {
        Ok(like) => like,
        Err(Errno::ENOENT) => return Ok(Outcome::Symlinked(Owned::ByCaller)),
        Err(errno) => return Err(failed("fstatat", Side::Source)(errno)),
    };
    let owned = match to.born {
        Some(born) => apply_to_new(by, to, born, &like),
        None => apply_by_descriptor(by, to, &like),
    };
    owned.map(Outcome::Symlinked)
}

/// Applies owner and times, by name, to a symbolic link in a directory that no other process can enter yet.
fn apply_to_new(by: &Settings<'_>, to: Target<'_>, born: Ids, like: &FileStat) -> Result<Owned, CallError> {
    let chown = || {
        let (uid, gid) = (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid));
        fchownat(to.dir, to.name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
    };
    let owned = by.metadata.chown_if_needed(born, like, chown).map_err(failed("fchownat", Side::Dest))?;
    let (access, modification) = metadata::times(like);
    let nofollow = UtimensatFlags::NoFollowSymlink;
    ignore_no_times(utimensat(to.dir, to.name, &access, &modification, nofollow)).map(|()| owned)
}

/// Ignores errors that mean that the kernel (before 5.8) or the file system has no timestamps of symbolic links.
fn ignore_no_times(answer: nix::Result<()>) -> Result<(), CallError> {
    match answer {
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM) => Ok(()),
        answer => answer.map_err(failed("utimensat", Side::Dest)),
    }
}

/// Applies the metadata again to a symbolic link that exists, if it has the same text and belongs to the caller or to
/// the source's owner. This is done always, because the mode of a symbolic link cannot mark it as unfinished.
fn finish_existing(by: &Settings<'_>, from: Origin<'_, CStr>, to: Target<'_>) -> Result<Outcome, CallError> {
    let (Ok(text), Ok(like)) = (readlinkat(from.dir, from.name), from.stat()) else {
        return Ok(Outcome::Kept);
    };
    let there = Origin { dir: to.dir, name: to.name, follow: false };
    if readlinkat(to.dir, to.name) == Ok(text) && there.stat().is_ok_and(|st| by.metadata.is_ours(&st, &like))
    {
        apply_by_descriptor(by, to, &like)?;
    }
    Ok(Outcome::Kept)
}

/// Applies owner and times to a symbolic link by descriptor, after checking that it is a symbolic link and has one
/// name. So if another process has put another file there, the owner of that file does not change.
fn apply_by_descriptor(by: &Settings<'_>, to: Target<'_>, like: &FileStat) -> Result<Owned, CallError> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(to.dir, to.name, flags, Mode::empty()).map_err(failed("openat", Side::Dest))?;
    let st = fstat(&fd).map_err(failed("fstat", Side::Dest))?;
    if DirentKind::of_mode(st.st_mode) != DirentKind::Symlink || st.st_nlink != 1 {
        return Ok(Owned::ByCaller);
    }
    let chown = || {
        let (uid, gid) = (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid));
        fchownat(&fd, c"", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)
    };
    let owned = by
        .metadata
        .chown_if_needed(metadata::ids(&st), like, chown)
        .map_err(failed("fchownat", Side::Dest))?;
    let (access, modification) = metadata::times(like);
    ignore_no_times(set_times(fd.as_fd(), access, modification)).map(|()| owned)
}
