//! The names at the top of a template. A sandbox mounts or copies each of them separately.
//!
//! A sandbox resolves the sources of its map from the host's `/` and follows symbolic links. A link `bin -> usr/bin` at
//! the top leads to the template's directory, but `bin -> /usr/bin` would lead to the host's. So when a template is
//! filled, each symbolic link at its top is replaced by a relative link to the same file, whose path contains no other
//! link. A link that leads to nothing inside the template is not listed, because on the host it may lead to a file.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat, renameat};
use nix::unistd::symlinkat;

use crate::rootfs::directory;
use crate::sys::fs::DirentKind;
use crate::{Error, Result};

/// Temporary name of a new link, in a template that has no final name yet. No template has such a name at its top.
const TEMPORARY: &CStr = c".cofferdam.top";

/// Replaces the symbolic links at the top of a template by relative ones. The template is being filled at `path`.
pub(super) fn relink(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    for (name, kind) in directory::list(root, path)? {
        if kind != DirentKind::Symlink {
            continue;
        }
        let Some(plain) = target(root, &name) else { continue };
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

/// Lists the names at the top that lead to the same file from the host and from inside a sandbox.
pub(super) fn list(root: BorrowedFd<'_>, path: &Path) -> Result<Vec<OsString>> {
    let plain = |name: &CString| match readlinkat(root, &**name) {
        Ok(text) => target(root, name).is_some_and(|plain| plain == text),
        Err(_) => false,
    };
    let kept = directory::list(root, path)?
        .into_iter()
        .filter(|(name, kind)| *kind != DirentKind::Symlink || plain(name));
    let mut list: Vec<OsString> =
        kept.map(|(name, _)| OsStr::from_bytes(name.to_bytes()).to_owned()).collect();
    list.sort_unstable();
    Ok(list)
}

/// The path that `name` leads to with `root` as `/`, relative to `root`. `None` if it leads to nothing or to the root
/// itself.
fn target(root: BorrowedFd<'_>, name: &CStr) -> Option<OsString> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
    let found = openat2(root, name, how).ok()?;
    let (top, found) = (path_of(root)?, path_of(found.as_fd())?);
    let rest = found.strip_prefix(top).ok()?;
    (!rest.as_os_str().is_empty()).then(|| rest.into())
}

/// The path of `fd` as the kernel shows it.
fn path_of(fd: BorrowedFd<'_>) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()
}
