//! Directories whose metadata is applied at the end, because other entries of the map make something in them.
//!
//! They stay unfinished until then. So creating entries in them does not change their final times, and works even if
//! their final mode forbids it. If this population is killed, the next one finds them unfinished.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::open;
use nix::sys::stat::{FileStat, Mode, fstat, stat};

use super::attributes::Buffers;
use super::dest;
use super::error::{CallError, Side, failed, in_root};
use super::metadata::Applied;
use super::settings::Settings;
use super::{Populated, add};
use crate::rootfs::directory::DIR;
use crate::{Error, Result};

/// Each directory by its path in the root, with the directory of the host whose metadata it gets, if there is one.
#[derive(Default)]
pub(super) struct Deferred(BTreeMap<PathBuf, Option<PathBuf>>);

impl Deferred {
    pub(super) fn extend(&mut self, more: Vec<(PathBuf, PathBuf)>) {
        self.0.extend(more.into_iter().map(|(at, like)| (at, Some(like))));
    }

    /// Opens the parent directory of `to`. Makes the directories of its path that do not exist.
    pub(super) fn make_parent(
        &mut self,
        by: &Settings<'_>,
        source: &Path,
        to: &Path,
        done: &mut Populated,
    ) -> Result<OwnedFd> {
        let mut at = PathBuf::new();
        let root = Path::new("");
        let mut fd =
            dest::open_dir(by.root, root).map_err(|e| failed("openat", Side::Dest)(e).about(source, root))?;
        for name in to.parent().into_iter().flatten() {
            at.push(name);
            let fail = |r: CallError| r.about(source, &at);
            fd = match dest::open_dir(by.root, &at) {
                Ok(fd) => self
                    .defer_if_unfinished(by, fd, &at, dest::parent_of_source(&at, to, source))
                    .map_err(fail)?,
                Err(Errno::ENOENT) => {
                    let made = dest::make(fd.as_fd(), name).map_err(failed("mkdirat", Side::Dest));
                    if !made.map_err(fail)? {
                        // A dangling symbolic link.
                        return Err(fail(failed("mkdirat", Side::Dest)(Errno::EEXIST)));
                    }
                    add(&mut done.dirs, 1);
                    by.meter.add_entry().map_err(failed("mkdirat", Side::Dest)).map_err(fail)?;
                    self.0.insert(at.clone(), dest::parent_of_source(&at, to, source).map(Into::into));
                    dest::open_made(fd.as_fd(), name).map_err(failed("openat", Side::Dest)).map_err(fail)?
                }
                Err(errno) => return Err(fail(failed("openat2", Side::Dest)(errno))),
            };
        }
        Ok(fd)
    }

    /// Defers a parent that a killed population left unfinished.
    fn defer_if_unfinished(
        &mut self,
        by: &Settings<'_>,
        fd: OwnedFd,
        at: &Path,
        like: Option<&Path>,
    ) -> Result<OwnedFd, CallError> {
        if !self.0.contains_key(at) {
            let st = fstat(&fd).map_err(failed("fstat", Side::Dest))?;
            let like_st = like.and_then(|path| stat(path).ok());
            if by.metadata.is_unfinished(&st, like_st.as_ref().unwrap_or(&st)) {
                self.0.insert(at.into(), like.map(Into::into));
            }
        }
        Ok(fd)
    }

    /// Applies the metadata of all directories, the deepest first, because a final mode may forbid entering a
    /// directory.
    pub(super) fn apply_all(self, by: &Settings<'_>, done: &mut Populated) -> Result<()> {
        let mut buffers = Buffers::new();
        for (at, like) in self.0.iter().rev() {
            let fail = |call| move |e| Error::prepare(format!("{call}({})", in_root(at)))(e);
            let fd = dest::open_dir(by.root, at).map_err(fail("openat2"))?;
            let st = fstat(&fd).map_err(fail("fstat"))?;
            let like = like.as_deref().and_then(open_like);
            // The directory is finished already if a symbolic link in the root leads to it by another path too.
            if by.metadata.is_unfinished(&st, like.as_ref().map_or(&st, |(_, st)| st)) {
                let applied = apply(by, fd.as_fd(), like.as_ref(), &mut buffers)
                    .map_err(|r| r.about(Path::new(""), at))?;
                applied.count(done);
            }
        }
        Ok(())
    }
}

fn apply(
    by: &Settings<'_>,
    fd: BorrowedFd<'_>,
    like: Option<&(Option<OwnedFd>, FileStat)>,
    buffers: &mut Buffers,
) -> Result<Applied, CallError> {
    match like {
        Some((source, st)) => {
            by.metadata.apply_to_dir(fd, None, source.as_ref().map(AsFd::as_fd), st, buffers)
        }
        None => by.metadata.apply_default(fd),
    }
}

/// Metadata of a directory of the host, and its descriptor if the caller may read the directory.
fn open_like(path: &Path) -> Option<(Option<OwnedFd>, FileStat)> {
    let fd = open(path, DIR, Mode::empty()).ok();
    let st = match &fd {
        Some(fd) => fstat(fd).ok()?,
        None => stat(path).ok()?,
    };
    Some((fd, st))
}
