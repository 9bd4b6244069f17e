//! Finds and makes directories in the root, by descriptor and never outside of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, mkdirat};

use super::unfinished::UNFINISHED_DIR;
use crate::rootfs::directory::{self, DIR, DIR_NOFOLLOW};

/// Makes the directory `name`, marked as unfinished. Returns `false` if the name exists.
pub(super) fn make<P: ?Sized + NixPath>(dir: BorrowedFd<'_>, name: &P) -> nix::Result<bool> {
    match mkdirat(dir, name, UNFINISHED_DIR) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Opens a directory that [`make`] made.
pub(super) fn open_made<P: ?Sized + NixPath>(dir: BorrowedFd<'_>, name: &P) -> nix::Result<OwnedFd> {
    directory::open_made(dir, name, UNFINISHED_DIR)
}

/// A destination of the map as a relative path without `.`; empty for the root itself.
pub(super) fn relative(dest: &Path) -> PathBuf {
    dest.components().filter(|c| matches!(c, Component::Normal(_))).collect()
}

/// Opens the directory at the relative `path`. Symbolic links are resolved as if `root` were `/`.
pub(super) fn open_dir(root: BorrowedFd<'_>, path: &Path) -> nix::Result<OwnedFd> {
    if path.as_os_str().is_empty() {
        return openat(root, c".", DIR, Mode::empty());
    }
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let mut tries = 64_u8;
    loop {
        match openat2(root, path, OpenHow::new().flags(DIR).resolve(resolve)) {
            // A directory was renamed while the kernel resolved a `..` of a symbolic link.
            Err(Errno::EAGAIN) if tries > 0 => tries = tries.saturating_sub(1),
            // Linux before 5.6, or a seccomp filter that does not know the call. Then no symbolic link is followed.
            Err(Errno::ENOSYS | Errno::EPERM) => return open_no_links(root, path),
            answer => return answer,
        }
    }
}

/// Opens the directory at the relative `path`, of any length. No component may be a symbolic link.
pub(super) fn open_no_links(top: BorrowedFd<'_>, path: &Path) -> nix::Result<OwnedFd> {
    let mut fd = openat(top, c".", DIR, Mode::empty())?;
    let mut names = path.iter().peekable();
    while names.peek().is_some() {
        // As many names as fit into one call (PATH_MAX).
        let mut piece = PathBuf::new();
        while let Some(name) = names.next_if(|n| piece.as_os_str().len().saturating_add(n.len()) < 4000) {
            piece.push(name);
        }
        fd = open_piece(fd.as_fd(), &piece)?;
    }
    Ok(fd)
}

fn open_piece(dir: BorrowedFd<'_>, path: &Path) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH;
    match openat2(dir, path, OpenHow::new().flags(DIR).resolve(resolve)) {
        Err(Errno::ENOSYS | Errno::EPERM) => {}
        answer => return answer,
    }
    let mut fd = openat(dir, c".", DIR, Mode::empty())?;
    for name in path {
        fd = openat(&fd, name, DIR_NOFOLLOW, Mode::empty())?;
    }
    Ok(fd)
}

/// Returns the directory of the host whose metadata the directory `at` gets. `at` is above the destination `dest`, and
/// the result is as many levels above `source`. `None` unless both have the same name, and all directories below them
/// on the two paths have the same names too.
pub(super) fn parent_of_source<'a>(at: &Path, dest: &Path, source: &'a Path) -> Option<&'a Path> {
    let (mut d, mut s) = (dest.parent()?, source.parent()?);
    while d.file_name().is_some() && d.file_name() == s.file_name() {
        if d == at {
            return Some(s);
        }
        (d, s) = (d.parent()?, s.parent()?);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_of_a_destination_maps_to_a_parent_of_the_source_only_while_their_names_match() {
        let of = |at: &str, dest: &str, source: &'static str| {
            parent_of_source(Path::new(at), Path::new(dest), Path::new(source)).map(|p| p.to_str().unwrap())
        };
        assert_eq!(of("run", "run/systemd/resolve", "/run/systemd/resolve"), Some("/run"));
        assert_eq!(of("run/systemd", "run/systemd/resolve", "/run/systemd/resolve"), Some("/run/systemd"));
        assert_eq!(of("usr", "usr/lib", "/opt/x/usr/lib64"), Some("/opt/x/usr"));
        assert_eq!(of("a", "a/b", "/c/b"), None);
        assert_eq!(of("a", "a/b/c", "/a/x/c"), None);
        assert_eq!(of("a", "a", "/a"), None);
    }

    #[test]
    fn a_relative_destination_has_no_dots_and_no_empty_names() {
        assert_eq!(relative(Path::new("/usr/./bin//x/")), Path::new("usr/bin/x"));
        assert_eq!(relative(Path::new("/")), Path::new(""));
    }
}
