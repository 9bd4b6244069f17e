//! Opens sources, the files and directories of the host that a spec names, once.
//!
//! A user with write permission for a directory of a path can change what the path leads to. So each path is resolved
//! once, to an `O_PATH` descriptor, before anything of the sandbox is made. Everything later uses the descriptor.
//!
//! A symbolic link in a path is followed only if no user but root and the caller can have made it: root or the caller
//! owns the link and its directory, and no other user may replace the link there. Links in procfs are made by the
//! kernel and always followed. The owner of `/` counts as root, because a user namespace may not map root.
//!
//! This module does not decide which sources a task may have.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::unistd::geteuid;

use super::FileKind;
use super::reach::Reach;
use crate::Error;
use crate::sys::fs::{FileId, look};

/// An open file or directory of the host.
#[derive(Clone, Debug)]
pub(crate) struct HostFile {
    fd: Arc<OwnedFd>,
    /// Its path without symbolic links, as of when it was opened.
    pub real: PathBuf,
    /// Its type, owner and device number.
    pub look: super::probe::Look,
}

impl HostFile {
    /// The `O_PATH` descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Why a source cannot be opened.
#[derive(Debug)]
pub(crate) enum SourceError {
    /// Another user may have made a symbolic link in the path.
    Planted {
        /// The link.
        link: PathBuf,
        /// The user that may have made it.
        by: String,
    },
    /// The kernel refused a call.
    Io(io::Error),
}

impl From<io::Error> for SourceError {
    fn from(error: io::Error) -> Self {
        SourceError::Io(error)
    }
}

impl From<Errno> for SourceError {
    fn from(errno: Errno) -> Self {
        SourceError::Io(errno.into())
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceError::Planted { link, by } => {
                write!(f, "the symbolic link {link:?} in this path is not followed: {by} may have created it")
            }
            SourceError::Io(error) => error.fmt(f),
        }
    }
}

/// Opens the file at the absolute path `path`. `None` if it does not exist.
///
/// # Errors
/// The refused call; `TimedOut` if `path` leads to a file system that does not answer.
pub(crate) fn open(path: &Path, reach: &Reach<'_>) -> Result<Option<HostFile>, SourceError> {
    let how = OpenHow::new().flags(PATH);
    let no_links = ResolveFlag::RESOLVE_NO_SYMLINKS;
    let found = match openat2(AT_FDCWD, path, how.resolve(no_links | cached())) {
        // Something of the path is not in the kernel's cache, or the kernel does not know the flag.
        Err(Errno::EAGAIN | Errno::EINVAL) => {
            reach.before(path)?;
            openat2(AT_FDCWD, path, how.resolve(no_links))
        }
        opened => opened,
    };
    let found = match found {
        Ok(fd) => Ok((fd, path.components().collect())),
        // A symbolic link (EACCES with fs.protected_symlinks), or a container's seccomp filter without openat2.
        Err(Errno::ELOOP | Errno::EACCES | Errno::ENOSYS | Errno::EPERM) => resolve(path, reach),
        Err(errno) => Err(errno.into()),
    };
    match found {
        Ok((fd, real)) => {
            let look = reach.look(fd.as_fd(), path)?;
            Ok(Some(HostFile { fd: Arc::new(fd), real, look }))
        }
        Err(SourceError::Io(e)) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(refused) => Err(refused),
    }
}

/// The type of the file at `path`, symbolic links followed. `None` if it does not exist.
///
/// # Errors
/// The refused call; `TimedOut` if `path` leads to a file system that does not answer.
pub(crate) fn kind(path: &Path, reach: &Reach<'_>) -> io::Result<Option<FileKind>> {
    let opened = match open_cached(path) {
        Err(Errno::EAGAIN | Errno::EINVAL | Errno::ENOSYS | Errno::EPERM) => {
            reach.before_links(path)?;
            openat(AT_FDCWD, path, PATH, Mode::empty())
        }
        opened => opened,
    };
    match opened {
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        opened => Ok(Some(reach.look(opened?.as_fd(), path)?.kind)),
    }
}

/// The identity of the file that the absolute path `path` leads to, symbolic links followed, without asking a file system
/// that others serve: by what the kernel has cached, and by lookups in the kernel's own file systems. `None` if there is no
/// such file.
///
/// # Errors
/// `EAGAIN` if such a file system must be asked, `EINVAL` or `ENOSYS` before Linux 5.12, or the refused call.
pub(crate) fn cached_identity(path: &Path) -> nix::Result<Option<FileId>> {
    let mut found = Err(Errno::EAGAIN);
    for _ in 0..LOOKUPS {
        found = match open_cached(path) {
            Err(Errno::EAGAIN) => local_identity(path),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            opened => Ok(Some(look(opened?.as_fd())?.0)),
        };
        if found != Err(Errno::EAGAIN) {
            break;
        }
    }
    found
}

/// How often a path is looked up in the kernel's cache. A lookup also fails if any mount of the machine changes meanwhile.
const LOOKUPS: u32 = 8;

/// As [`cached_identity`], component by component. A tmpfs does not keep in mind which names it does not have, so it is asked.
fn local_identity(path: &Path) -> nix::Result<Option<FileId>> {
    let mut at = openat(AT_FDCWD, "/", PATH | OFlag::O_DIRECTORY, Mode::empty())?;
    let (mut id, mut local) = look(at.as_fd())?;
    for part in path.components().filter(|part| *part != Component::RootDir) {
        let Component::Normal(name) = part else { return Err(Errno::EAGAIN) };
        let flags = PATH | OFlag::O_NOFOLLOW;
        let next = match openat2(&at, name, OpenHow::new().flags(flags).resolve(cached())) {
            Err(Errno::EAGAIN) if local => openat(&at, name, flags, Mode::empty()),
            next => next,
        };
        at = match next {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
            next => next?,
        };
        (id, local) = look(at.as_fd())?;
        if id.mode & libc::S_IFMT == libc::S_IFLNK {
            return Err(Errno::EAGAIN);
        }
    }
    Ok(Some(id))
}

/// Open sources, by the path that the spec names.
pub(crate) type HeldSources = BTreeMap<PathBuf, HostFile>;

/// Opens each of `paths` that exists.
///
/// # Errors
/// `Error::Spec` for `field` if another user may have made a symbolic link in a path, else `Error::Prepare` with the
/// path.
pub(crate) fn hold<'a>(
    field: &'static str,
    paths: impl IntoIterator<Item = &'a PathBuf>,
) -> crate::Result<HeldSources> {
    let one = |path: &PathBuf| match open(path, &Reach::unasked()) {
        Ok(found) => Ok(found.map(|found| (path.clone(), found))),
        Err(SourceError::Io(error)) => Err(Error::prepare(format!("openat2({path:?}, O_PATH)"))(error)),
        Err(planted) => Err(Error::spec(field, format!("{path:?}: {planted}"))),
    };
    paths.into_iter().filter_map(|path| one(path).transpose()).collect()
}

const PATH: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// Maximum number of symbolic links in a path, as in the kernel.
const MAX_LINKS: u32 = 40;

/// Resolves a path component by component, and checks each symbolic link before it is followed.
fn resolve(path: &Path, reach: &Reach<'_>) -> Result<(OwnedFd, PathBuf), SourceError> {
    let root = || openat(AT_FDCWD, "/", PATH | OFlag::O_DIRECTORY, Mode::empty());
    let (mut at, mut real) = (root()?, PathBuf::from("/"));
    let trusted = [0, geteuid().as_raw(), fstat(&at)?.st_uid];
    let mut rest: VecDeque<OsString> = names(path);
    let mut links = 0_u32;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            at = openat(&at, "..", PATH, Mode::empty())?;
            real.pop();
            continue;
        }
        let next = step(&at, &name, path, reach)?;
        // A file system that others serve is not asked here.
        let (st, _) = look(next.as_fd())?;
        if st.mode & libc::S_IFMT != libc::S_IFLNK {
            at = next;
            real.push(name);
            continue;
        }
        links = links.saturating_add(1);
        if links > MAX_LINKS {
            return Err(Errno::ELOOP.into());
        }
        if fstatfs(&next).is_ok_and(|fs| fs.filesystem_type() == PROC_SUPER_MAGIC) {
            at = openat(&at, name.as_os_str(), PATH, Mode::empty())?;
            real =
                std::fs::read_link(format!("/proc/self/fd/{}", at.as_raw_fd())).map_err(SourceError::Io)?;
            continue;
        }
        if let Some(by) = planted_by(&look(at.as_fd())?.0, &st, trusted) {
            return Err(SourceError::Planted { link: real.join(name), by });
        }
        let text = PathBuf::from(readlinkat(&next, "")?);
        if text.is_absolute() {
            (at, real) = (root()?, PathBuf::from("/"));
        }
        for name in names(&text).into_iter().rev() {
            rest.push_front(name);
        }
    }
    Ok((at, real))
}

/// Opens one component of `path`.
fn step(at: &OwnedFd, name: &OsString, path: &Path, reach: &Reach<'_>) -> Result<OwnedFd, SourceError> {
    let how = OpenHow::new().flags(PATH | OFlag::O_NOFOLLOW).resolve(cached());
    match openat2(at, name.as_os_str(), how) {
        Ok(next) => Ok(next),
        Err(Errno::EAGAIN | Errno::EINVAL | Errno::ENOSYS | Errno::EPERM) => {
            reach.before_links(path)?;
            Ok(openat(at, name.as_os_str(), PATH | OFlag::O_NOFOLLOW, Mode::empty())?)
        }
        Err(errno) => Err(errno.into()),
    }
}

fn open_cached(path: &Path) -> nix::Result<OwnedFd> {
    openat2(AT_FDCWD, path, OpenHow::new().flags(PATH).resolve(cached()))
}

/// The flag of `openat2(2)` by which a lookup fails with `EAGAIN` in place of waiting for a file system (Linux 5.12).
fn cached() -> ResolveFlag {
    ResolveFlag::from_bits_retain(libc::RESOLVE_CACHED)
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir))
        .map(|c| c.as_os_str().to_owned())
        .collect()
}

/// The user, other than `trusted`, that may have made `link` in `dir`. `None` if there is none.
fn planted_by(dir: &FileId, link: &FileId, trusted: [u32; 3]) -> Option<String> {
    if let Some(uid) = [link.owner.0, dir.owner.0].into_iter().find(|uid| !trusted.contains(uid)) {
        return Some(format!("user {uid}"));
    }
    // In a sticky directory, users cannot replace files of other users.
    let sticky = dir.mode & libc::S_ISVTX != 0;
    let others = dir.mode & (libc::S_IWGRP | libc::S_IWOTH);
    (others != 0 && !sticky)
        .then(|| format!("any user with write permission for its directory (mode {:04o})", dir.mode & 0o7777))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
    use std::time::{Duration, Instant};

    use super::*;

    fn opened(path: &Path) -> String {
        match open(path, &Reach::unasked()) {
            Ok(Some(source)) => source.real.display().to_string(),
            Ok(None) => "nothing".into(),
            Err(e) => e.to_string(),
        }
    }

    /// The identity, by a lookup during which no mount of the machine changes. Other tests change mounts.
    fn settled(
        identity: fn(&Path) -> nix::Result<Option<FileId>>,
        path: &Path,
    ) -> nix::Result<Option<FileId>> {
        let begun = Instant::now();
        loop {
            let found = identity(path);
            if found != Err(Errno::EAGAIN) || begun.elapsed() > Duration::from_secs(20) {
                return found;
            }
            // The file system is asked for a link until a later tick of the clock than that of its creation has set its
            // time of access.
            let _ = fs::metadata(path);
        }
    }

    #[test]
    fn identities_are_found_without_asking_who_serves_a_file_system() {
        for base in [std::env::temp_dir(), "/dev/shm".into()] {
            let dir = tempfile::tempdir_in(base).unwrap();
            let file = dir.path().join("file");
            fs::write(&file, "").unwrap();
            let known = look(fs::File::open(&file).unwrap().as_fd()).unwrap().0;
            for identity in [cached_identity, local_identity] {
                assert_eq!(settled(identity, &file), Ok(Some(known)));
                for missing in ["none", "none/below", "file/below"] {
                    assert_eq!(
                        settled(identity, &dir.path().join(missing)),
                        Ok(None),
                        "{missing} in {dir:?}"
                    );
                }
            }
            symlink(&file, dir.path().join("link")).unwrap();
            assert_eq!(settled(cached_identity, &dir.path().join("link")), Ok(Some(known)));
        }
    }

    #[test]
    fn symlinks_are_resolved_as_the_kernel_resolves_them() {
        let site = tempfile::tempdir().unwrap();
        let top = site.path().canonicalize().unwrap();
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("a/file"), "").unwrap();
        for (text, link) in
            [("a/b", "short"), ("../file", "a/b/up"), ("short/up", "long"), ("none", "dangling")]
        {
            symlink(text, top.join(link)).unwrap();
        }
        symlink(top.join("a"), top.join("absolute")).unwrap();
        symlink("loop", top.join("loop")).unwrap();
        for path in ["a/b", "a/./b/", "short", "long", "absolute/b/up", "short/../file", "absolute/b/../.."] {
            let path = top.join(path);
            assert_eq!(opened(&path), path.canonicalize().unwrap().display().to_string(), "{path:?}");
        }
        for path in ["none", "dangling", "a/file/x", "short/none"] {
            assert_eq!(opened(&top.join(path)), "nothing", "{path}");
        }
        assert!(opened(&top.join("loop")).contains("symbolic links"), "{}", opened(&top.join("loop")));
    }

    #[test]
    fn symlinks_of_procfs_are_followed() {
        let link = fs::read_link("/proc/self/cwd").unwrap();
        assert_eq!(opened(Path::new("/proc/self/cwd")), link.display().to_string());
        let site = tempfile::tempdir().unwrap();
        let dir = fs::File::open(site.path()).unwrap();
        let by_number = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        assert_eq!(opened(&by_number), site.path().display().to_string());
    }

    #[test]
    fn a_symlink_that_another_user_may_have_made_is_refused() {
        if crate::rootfs::populate::tests::lacks_root() {
            return;
        }
        let site = tempfile::tempdir().unwrap();
        let top = site.path().canonicalize().unwrap();
        fs::set_permissions(&top, fs::Permissions::from_mode(0o755)).unwrap();
        for (name, mode, dir_owner, link_owner, by) in [
            ("fine", 0o755, 0, 0, None),
            ("sticky", 0o1777, 0, 0, None),
            ("theirs-in-sticky", 0o1777, 0, 1234, Some("user 1234")),
            ("their-directory", 0o755, 1234, 0, Some("user 1234")),
            ("all-theirs", 0o755, 1234, 1234, Some("user 1234")),
            ("group", 0o775, 0, 0, Some("any user with write permission for its directory (mode 0775)")),
            ("world", 0o777, 0, 0, Some("any user with write permission for its directory (mode 0777)")),
        ] {
            let dir = top.join(name);
            fs::create_dir(&dir).unwrap();
            fs::create_dir(dir.join("real")).unwrap();
            symlink("/etc", dir.join("link")).unwrap();
            lchown(dir.join("link"), Some(link_owner), None).unwrap();
            chown(&dir, Some(dir_owner), None).unwrap();
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
            let link = dir.join("link");
            let expected = match by {
                None => "/etc".to_string(),
                Some(by) => {
                    format!(
                        "the symbolic link {link:?} in this path is not followed: {by} may have created it"
                    )
                }
            };
            assert_eq!(opened(&link), expected, "{name}");
            // A directory that is not a link is opened.
            assert_eq!(opened(&dir.join("real")), dir.join("real").display().to_string());
        }
    }
}
