//! The names at the top of a template, each of which a sandbox gets as a mount, or as a source, of its own.
//!
//! What a map names is found from the host's `/`, links followed. That is right for `bin -> usr/bin` in a template
//! and wrong for `bin -> /usr/bin`, which would be the host's. So when a template is filled, each link at its top that
//! says what it means in a roundabout way, from `/` or over other links, is made to say it plainly: relative, and
//! over no link. From `/` both are the same. What points to nothing within the template is not listed,
//! as outside of it there may be something.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::symlinkat;

use crate::sys::fs::{Dirents, Kind};
use crate::{Error, Result};

/// A name that no template has at its top. It is only there for a moment, while a template has no name itself.
const TEMPORARY: &CStr = c".cofferdam.top";

/// Makes the links at the top of a template that is being filled at `path` plain.
pub(super) fn settle(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    for (name, kind) in names(root, path)? {
        if kind != Kind::Symlink {
            continue;
        }
        let Some(plain) = meant(root, &name) else { continue };
        if readlinkat(root, &*name).is_ok_and(|text| text == plain) {
            continue;
        }
        let at = path.join(OsStr::from_bytes(name.to_bytes()));
        symlinkat(plain.as_os_str(), root, TEMPORARY)
            .map_err(Error::prepare(format!("symlinkat({plain:?}, {at:?})")))?;
        renameat(root, TEMPORARY, root, &*name).map_err(Error::prepare(format!("renameat({at:?})")))?;
    }
    Ok(())
}

/// All that the host finds at the same place as a sandbox does.
pub(super) fn list(root: BorrowedFd<'_>, path: &Path) -> Result<Vec<OsString>> {
    let plain = |name: &CString| match readlinkat(root, &**name) {
        Ok(text) => meant(root, name).is_some_and(|plain| plain == text),
        Err(_) => false,
    };
    let kept = names(root, path)?.into_iter().filter(|(name, kind)| *kind != Kind::Symlink || plain(name));
    let mut list: Vec<OsString> =
        kept.map(|(name, _)| OsStr::from_bytes(name.to_bytes()).to_owned()).collect();
    list.sort_unstable();
    Ok(list)
}

/// What `name` comes to with `root` as `/`, relative to it; `None` if that is nothing, or the root itself.
fn meant(root: BorrowedFd<'_>, name: &CStr) -> Option<OsString> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
    let found = openat2(root, name, how).ok()?;
    let (top, found) = (shown(root)?, shown(found.as_fd())?);
    let rest = found.strip_prefix(top).ok()?;
    (!rest.as_os_str().is_empty()).then(|| rest.into())
}

/// Where the kernel says that `fd` is.
fn shown(fd: BorrowedFd<'_>) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()
}

fn names(root: BorrowedFd<'_>, path: &Path) -> Result<Vec<(CString, Kind)>> {
    let fail = |call: &str| Error::prepare::<Errno>(format!("{call}({path:?})"));
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let dir: OwnedFd = openat(root, c".", flags, Mode::empty()).map_err(fail("openat"))?;
    let (mut dirents, mut names) = (Dirents::new(), Vec::new());
    while let Some(batch) = dirents.read(dir.as_fd()).map_err(fail("getdents64"))? {
        names.extend(batch.map(|entry| (entry.name.to_owned(), entry.kind)));
    }
    Ok(names)
}
