//! Directories in the root, found and made by descriptor, never outside of it.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, fchmod, fchmodat, fstat, mkdirat, stat};
use nix::unistd::{Gid, Uid, fchown, geteuid};

use crate::{Error, Result};

/// How a directory is opened that is about to be read or filled.
pub(super) const DIR: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// What the caller can give away.
#[derive(Clone, Copy, Debug)]
pub(super) struct Giver {
    root: bool,
}

/// Whether an entry has the owner of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owned {
    AsSource,
    ByCaller,
}

impl Giver {
    pub(super) fn new() -> Self {
        Giver { root: geteuid().is_root() }
    }

    /// Gives the owner of `source` to what `fd`, which was just made, refers to. Owner before mode, always:
    /// giving away clears mode bits.
    pub(super) fn give<F: AsFd>(self, fd: &F, source: &FileStat) -> nix::Result<Owned> {
        self.give_by(&fstat(fd)?, source, || {
            fchown(fd, Some(Uid::from_raw(source.st_uid)), Some(Gid::from_raw(source.st_gid)))
        })
    }

    /// The same for what `now` says and `chown` reaches.
    pub(super) fn give_by(
        self,
        now: &FileStat,
        source: &FileStat,
        chown: impl FnOnce() -> nix::Result<()>,
    ) -> nix::Result<Owned> {
        if (now.st_uid, now.st_gid) == (source.st_uid, source.st_gid) {
            return Ok(Owned::AsSource);
        }
        if !self.root {
            return Ok(Owned::ByCaller);
        }
        match chown() {
            Ok(()) => Ok(Owned::AsSource),
            // No CAP_CHOWN, or a user namespace that does not map the owner.
            Err(Errno::EPERM | Errno::EINVAL) => Ok(Owned::ByCaller),
            Err(errno) => Err(errno),
        }
    }

    /// Owner and mode of `source`, all twelve bits, for a directory that was just made.
    pub(super) fn finish_dir<F: AsFd>(self, fd: &F, source: &FileStat) -> nix::Result<Owned> {
        let owned = self.give(fd, source)?;
        fchmod(fd, Mode::from_bits_truncate(source.st_mode))?;
        Ok(owned)
    }
}

/// Makes the directory `name`, closed to all but its owner until it is filled. `false` if the name is taken.
pub(super) fn make<P: ?Sized + NixPath>(dir: BorrowedFd<'_>, name: &P) -> nix::Result<bool> {
    match mkdirat(dir, name, Mode::S_IRWXU) {
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
        answer => return answer,
    }
    let path = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(dir, name, path, Mode::empty())?;
    // No name is looked up but that of our own descriptor, which `fchmod` would refuse.
    let itself = format!("/proc/self/fd/{}", fd.as_raw_fd());
    fchmodat(AT_FDCWD, itself.as_str(), Mode::S_IRWXU, FchmodatFlags::FollowSymlink)?;
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

/// Opens the directory that `dest` is to be made in, making what is missing on the way.
/// Returns it with the number of directories made and of those whose owner was not kept.
pub(super) fn parent(
    root: BorrowedFd<'_>,
    dest: &Path,
    source: &Path,
    giver: Giver,
) -> Result<(OwnedFd, u64, u64)> {
    let refused =
        |call: &str, at: &Path, errno: Errno| Error::prepare(format!("{call}({})", shown(at)))(errno);
    let (mut made, mut disowned) = (0_u64, 0_u64);
    let mut at = PathBuf::new();
    let mut fd = open_dir(root, &at).map_err(|e| refused("openat", &at, e))?;
    for name in dest.parent().into_iter().flatten() {
        at.push(name);
        fd = match open_dir(root, &at) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => {
                mkdirat(&fd, name, Mode::S_IRWXU).map_err(|e| refused("mkdirat", &at, e))?;
                let fd = open_made(fd.as_fd(), name).map_err(|e| refused("openat", &at, e))?;
                let owned = dress(&fd, counterpart(&at, dest, source), giver)
                    .map_err(|e| refused("fchmod", &at, e))?;
                made = made.saturating_add(1);
                disowned = disowned.saturating_add(u64::from(owned == Owned::ByCaller));
                fd
            }
            Err(errno) => return Err(refused("openat2", &at, errno)),
        };
    }
    Ok((fd, made, disowned))
}

/// Owner and mode of a parent that was just made. More is made in it later, so who is not root keeps
/// being able to write it.
fn dress(fd: &OwnedFd, model: Option<&Path>, giver: Giver) -> nix::Result<Owned> {
    let Some(model) = model.and_then(|path| stat(path).ok()) else {
        fchmod(fd, Mode::from_bits_truncate(0o755))?;
        return Ok(Owned::AsSource);
    };
    let owned = giver.give(fd, &model)?;
    let own = if giver.root { Mode::empty() } else { Mode::S_IRWXU };
    fchmod(fd, Mode::from_bits_truncate(model.st_mode) | own)?;
    Ok(owned)
}

/// The parent of `source` that `at`, a parent of `dest`, corresponds to: as many levels up, as long as all
/// the names between agree.
fn counterpart<'a>(at: &Path, dest: &Path, source: &'a Path) -> Option<&'a Path> {
    let (mut d, mut s) = (dest.parent()?, source.parent()?);
    while d.file_name().is_some() && d.file_name() == s.file_name() {
        if d == at {
            return Some(s);
        }
        (d, s) = (d.parent()?, s.parent()?);
    }
    None
}

/// Whether `name` is in `dir`, be it a dangling link.
pub(super) fn exists(dir: BorrowedFd<'_>, name: &CStr) -> nix::Result<bool> {
    match nix::sys::stat::fstatat(dir, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
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
