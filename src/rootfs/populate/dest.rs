//! Directories in the root, found and made by descriptor, never outside of it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat, fstat, mkdirat};
use nix::unistd::geteuid;

use super::dress::UNFINISHED_DIR;

/// How a directory is opened that is about to be read or filled.
pub(super) const DIR: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Makes the directory `name`, marked as unfinished. `false` if the name is taken.
pub(super) fn make<P: ?Sized + NixPath>(dir: BorrowedFd<'_>, name: &P) -> nix::Result<bool> {
    match mkdirat(dir, name, UNFINISHED_DIR) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Opens a directory that [`make`] made.
pub(super) fn open_made<P: ?Sized + NixPath>(dir: BorrowedFd<'_>, name: &P) -> nix::Result<OwnedFd> {
    let flags = DIR | OFlag::O_NOFOLLOW;
    match openat(dir, name, flags, Mode::empty()) {
        // Not root, and a umask that takes the owner's own bits.
        Err(Errno::EACCES) => {}
        Err(errno) => return Err(errno),
        Ok(fd) => {
            if !geteuid().is_root() && fstat(&fd)?.st_mode & 0o700 != 0o700 {
                fchmod(&fd, UNFINISHED_DIR)?;
            }
            return Ok(fd);
        }
    }
    let path = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(dir, name, path, Mode::empty())?;
    // No name is looked up but that of our own descriptor, which `fchmod` would refuse.
    let itself = format!("/proc/self/fd/{}", fd.as_raw_fd());
    fchmodat(AT_FDCWD, itself.as_str(), UNFINISHED_DIR, FchmodatFlags::FollowSymlink)?;
    openat(dir, name, flags, Mode::empty())
}

/// A destination as a relative path of plain names; empty for the root itself.
pub(super) fn relative(dest: &Path) -> PathBuf {
    dest.components().filter(|c| matches!(c, Component::Normal(_))).collect()
}

/// A path in the root as errors show it.
pub(super) fn shown(path: &Path) -> String {
    format!("ROOT {:?}", Path::new("/").join(path))
}

/// Opens the directory at the relative `path`, links on the way resolved as if `root` were `/`.
pub(super) fn open_dir(root: BorrowedFd<'_>, path: &Path) -> nix::Result<OwnedFd> {
    if path.as_os_str().is_empty() {
        return openat(root, c".", DIR, Mode::empty());
    }
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let mut tries = 64_u8;
    loop {
        match openat2(root, path, OpenHow::new().flags(DIR).resolve(resolve)) {
            // Something was renamed meanwhile, on a path with a `..` in a link.
            Err(Errno::EAGAIN) if tries > 0 => tries = tries.saturating_sub(1),
            // Older than 5.6, or a filter that does not know the call: then no links at all.
            Err(Errno::ENOSYS | Errno::EPERM) => return open_plain(root, path),
            answer => return answer,
        }
    }
}

/// Opens the directory at the relative `path`, however long that is, where no component is a link.
pub(super) fn open_plain(top: BorrowedFd<'_>, path: &Path) -> nix::Result<OwnedFd> {
    let mut fd = openat(top, c".", DIR, Mode::empty())?;
    let mut names = path.iter().peekable();
    while names.peek().is_some() {
        // As many names as one call takes.
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
        fd = openat(&fd, name, DIR | OFlag::O_NOFOLLOW, Mode::empty())?;
    }
    Ok(fd)
}

/// The parent of `source` that `at`, a parent of `dest`, corresponds to: as many levels up, as long as all
/// the names between agree.
pub(super) fn counterpart<'a>(at: &Path, dest: &Path, source: &'a Path) -> Option<&'a Path> {
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
    fn parents_correspond_while_their_names_agree() {
        let of = |at: &str, dest: &str, source: &'static str| {
            counterpart(Path::new(at), Path::new(dest), Path::new(source)).map(|p| p.to_str().unwrap())
        };
        assert_eq!(of("run", "run/systemd/resolve", "/run/systemd/resolve"), Some("/run"));
        assert_eq!(of("run/systemd", "run/systemd/resolve", "/run/systemd/resolve"), Some("/run/systemd"));
        assert_eq!(of("usr", "usr/lib", "/opt/x/usr/lib64"), Some("/opt/x/usr"));
        assert_eq!(of("a", "a/b", "/c/b"), None);
        assert_eq!(of("a", "a/b/c", "/a/x/c"), None);
        assert_eq!(of("a", "a", "/a"), None);
    }

    #[test]
    fn destinations_are_plain_names() {
        assert_eq!(relative(Path::new("/usr/./bin//x/")), Path::new("usr/bin/x"));
        assert_eq!(relative(Path::new("/")), Path::new(""));
    }
}
