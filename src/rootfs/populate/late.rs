//! Directories that are finished at the very end: those that other entries of the map have something to make in.
//!
//! They stay unfinished until then, so that what is made in them neither changes their times nor needs a
//! permission that their mode does not give, and so that the next run finds them where this one was killed.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::open;
use nix::sys::stat::{FileStat, Mode, fstat, stat};

use super::attributes::Buffers;
use super::dest::{self, DIR};
use super::dress::Dressed;
use super::refused::{Refused, Side, refused};
use super::walk::{Settings, count_dressed};
use super::{Populated, add};
use crate::{Error, Result};

/// Path in the root to the directory of the host that it is like, if there is one.
#[derive(Default)]
pub(super) struct Late(BTreeMap<PathBuf, Option<PathBuf>>);

impl Late {
    pub(super) fn extend(&mut self, more: Vec<(PathBuf, PathBuf)>) {
        self.0.extend(more.into_iter().map(|(at, like)| (at, Some(like))));
    }

    /// Opens the directory that `to` is to be made in, making what is missing on the way.
    pub(super) fn parent(
        &mut self,
        by: &Settings<'_>,
        source: &Path,
        to: &Path,
        done: &mut Populated,
    ) -> Result<OwnedFd> {
        let mut at = PathBuf::new();
        let root = Path::new("");
        let mut fd = dest::open_dir(by.root, root)
            .map_err(|e| refused("openat", Side::Dest)(e).about(source, root))?;
        for name in to.parent().into_iter().flatten() {
            at.push(name);
            let fail = |r: Refused| r.about(source, &at);
            fd = match dest::open_dir(by.root, &at) {
                Ok(fd) => self.found(by, fd, &at, dest::counterpart(&at, to, source)).map_err(fail)?,
                Err(Errno::ENOENT) => {
                    let made = dest::make(fd.as_fd(), name).map_err(refused("mkdirat", Side::Dest));
                    if !made.map_err(fail)? {
                        // A link that leads nowhere.
                        return Err(fail(refused("mkdirat", Side::Dest)(Errno::EEXIST)));
                    }
                    add(&mut done.dirs, 1);
                    by.meter.entry().map_err(refused("mkdirat", Side::Dest)).map_err(fail)?;
                    self.0.insert(at.clone(), dest::counterpart(&at, to, source).map(Into::into));
                    dest::open_made(fd.as_fd(), name).map_err(refused("openat", Side::Dest)).map_err(fail)?
                }
                Err(errno) => return Err(fail(refused("openat2", Side::Dest)(errno))),
            };
        }
        Ok(fd)
    }

    /// Takes up a parent that was left unfinished by somebody who was killed.
    fn found(
        &mut self,
        by: &Settings<'_>,
        fd: OwnedFd,
        at: &Path,
        like: Option<&Path>,
    ) -> Result<OwnedFd, Refused> {
        if !self.0.contains_key(at) {
            let st = fstat(&fd).map_err(refused("fstat", Side::Dest))?;
            let like_st = like.and_then(|path| stat(path).ok());
            if by.dresser.unfinished(&st, like_st.as_ref().unwrap_or(&st)) {
                self.0.insert(at.into(), like.map(Into::into));
            }
        }
        Ok(fd)
    }

    /// Finishes them all, the deepest first, as a mode may close the way to what is below.
    pub(super) fn finish(self, by: &Settings<'_>, done: &mut Populated) -> Result<()> {
        let mut buffers = Buffers::new();
        for (at, like) in self.0.iter().rev() {
            let fail = |call| move |e| Error::prepare(format!("{call}({})", dest::shown(at)))(e);
            let fd = dest::open_dir(by.root, at).map_err(fail("openat2"))?;
            let st = fstat(&fd).map_err(fail("fstat"))?;
            let like = like.as_deref().and_then(model);
            // It may be one that has another path too, through a link in the root.
            if by.dresser.unfinished(&st, like.as_ref().map_or(&st, |(_, st)| st)) {
                let dressed = dress(by, fd.as_fd(), like.as_ref(), &mut buffers)
                    .map_err(|r| r.about(Path::new(""), at))?;
                count_dressed(done, dressed);
            }
        }
        Ok(())
    }
}

fn dress(
    by: &Settings<'_>,
    fd: BorrowedFd<'_>,
    like: Option<&(Option<OwnedFd>, FileStat)>,
    buffers: &mut Buffers,
) -> Result<Dressed, Refused> {
    match like {
        Some((source, st)) => by.dresser.dir(fd, None, source.as_ref().map(AsFd::as_fd), st, buffers),
        None => by.dresser.plain(fd),
    }
}

/// The directory to be like, open where the caller may read it.
fn model(path: &Path) -> Option<(Option<OwnedFd>, FileStat)> {
    let fd = open(path, DIR, Mode::empty()).ok();
    let st = match &fd {
        Some(fd) => fstat(fd).ok()?,
        None => stat(path).ok()?,
    };
    Some((fd, st))
}
