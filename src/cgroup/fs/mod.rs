//! Files and directories of the cgroup file systems: open, read, write, make and remove.
//!
//! Calls that belong to a step of a plan go through a [`Kernel`], which makes or records them. The other calls are made
//! at once. A cgroup whose directory is open is accessed through that descriptor. So a cgroup that is made later under
//! the same name is never affected.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
use nix::sys::stat::Mode;

use crate::error::{Error, Result};
use crate::step::Kernel;
use crate::sys::fs::{fgetxattr, fsetxattr, read_file, read_text};

pub(super) mod call;
mod dirs;
mod tree;

pub(super) use dirs::{DirOwner, NewDir};
pub(super) use tree::{Backoff, pids, populated, remove_dir, remove_tree, subtree};

/// Mode of a directory that the crate makes. Other users cannot open it, because a process that can open it can hold its
/// lock. They can read the files in it, if they know its path.
const PRIVATE: u32 = 0o711;

/// Makes a task's own cgroup with `mkdir(2)`.
pub(super) fn make_leaf(kernel: &Kernel, path: &Path) -> Result<()> {
    kernel.call(|| call::mkdir(path), (), || mkdir(path, PRIVATE))
}

/// Makes a parent cgroup with `mkdir(2)`. Returns false if it exists already.
pub(super) fn make_parent(kernel: &Kernel, path: &Path) -> Result<bool> {
    kernel.call(
        || call::mkdir(path),
        true,
        || match mkdir(path, PRIVATE) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            made => made.map(|()| true),
        },
    )
}

/// Extended attribute of a cgroup that the crate has made for a parent path that the operator named.
const MADE: &CStr = c"user.cofferdam.made";

/// If `new`, marks the parent cgroup at `path` as made by the crate, with the attribute [`MADE`]. The last task below a
/// marked cgroup removes it. Before Linux 5.7 cgroups have no extended attributes, and only the task that made the
/// cgroup removes it.
pub(super) fn mark_made(kernel: &Kernel, path: &Path, new: bool) -> Result<()> {
    kernel.only_if("it did not exist", new, || {
        let dir = hold(kernel, path)?;
        let mark = || match dir.map_or(Ok(()), |dir| fsetxattr(dir.as_fd(), MADE, b"")) {
            Err(nix::errno::Errno::EOPNOTSUPP) => Ok(()),
            marked => marked,
        };
        kernel.call(|| call::mark_made(path), (), mark)
    })
}

/// Whether a parent cgroup has the mark of [`mark_made`].
pub(super) fn was_made(path: &Path) -> bool {
    open_dir(path).is_ok_and(|dir| fgetxattr(dir.as_fd(), MADE, &mut []).is_ok())
}

/// Whether the directory exists and the caller's user owns it.
pub(crate) fn is_own(dir: &Path) -> bool {
    std::fs::symlink_metadata(dir).is_ok_and(|st| st.is_dir() && st.uid() == nix::unistd::geteuid().as_raw())
}

/// Makes the cgroup of a task with a reservation, with `mkdir(2)`. Other users cannot open it (see [`PRIVATE`]).
pub(super) fn make_private_leaf(kernel: &Kernel, path: &Path) -> Result<()> {
    kernel.call(|| call::mkdir(path), (), || mkdir(path, PRIVATE))
}

fn mkdir(path: &Path, mode: u32) -> io::Result<()> {
    Ok(nix::unistd::mkdir(path, Mode::from_bits_truncate(mode))?)
}

/// Opens a cgroup's directory through `kernel`. A recorder returns `None`.
pub(super) fn hold(kernel: &Kernel, path: &Path) -> Result<Option<OwnedFd>> {
    kernel.call(|| call::open_dir(path), None, || open_dir(path).map(Some))
}

/// Like [`hold`], but returns `None` if the directory does not exist. A recorder assumes that it does not exist.
pub(super) fn hold_existing(kernel: &Kernel, path: &Path) -> Result<Option<OwnedFd>> {
    kernel.call(|| call::open_dir(path), None, || existing(open_dir(path)))
}

/// Reads a file through `kernel`. Returns `None` if the file does not exist. A recorder returns `assumed`.
pub(super) fn read_existing(kernel: &Kernel, file: &Path, assumed: Option<String>) -> Result<Option<String>> {
    kernel.call(|| call::open_read(file), assumed, || existing(read_file(file)))
}

/// Writes a file through `kernel`, without reading it back.
pub(super) fn write(kernel: &Kernel, file: &Path, text: &str) -> Result<()> {
    let opened = || std::fs::OpenOptions::new().write(true).open(file).map(Some);
    let opened = kernel.call(|| call::open_write(file), None, opened)?;
    kernel.call(
        || call::write(file, text),
        (),
        || opened.map_or(Ok(()), |mut file| file.write_all(text.as_bytes())),
    )
}

/// Copies the parent cgroup's value to `file` of a v1 cpuset if `file` is blank. No process can enter a cpuset without
/// CPUs or memory nodes.
pub(super) fn inherit(kernel: &Kernel, file: &Path) -> Result<()> {
    let read =
        |file: &Path, assumed: String| kernel.call(|| call::open_read(file), assumed, || read_file(file));
    let blank = read(file, String::new())?.trim().is_empty();
    let name = file.file_name().unwrap_or_default();
    let above = file.parent().and_then(Path::parent).unwrap_or(Path::new("/")).join(name);
    kernel.only_if("the file is empty", blank, || {
        let text = read(&above, format!("<content of {above:?}>"))?.trim().to_owned();
        if text.is_empty() {
            let source = io::Error::new(io::ErrorKind::InvalidData, "the file of the parent cgroup is empty");
            return Err(Error::Prepare { step: call::open_read(&above), source });
        }
        write(kernel, file, &text)
    })
}

/// Opens a cgroup's directory.
pub(super) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY, Mode::empty())?)
}

/// Reads a file in or below `dir`.
pub(super) fn read_at(dir: BorrowedFd<'_>, file: impl AsRef<Path>) -> io::Result<String> {
    let fd = openat(dir, file.as_ref(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    read_text(&File::from(fd))
}

/// Writes a file in or below `dir`, with a single `write(2)` unless the kernel accepts only part of the text.
pub(super) fn write_at(dir: BorrowedFd<'_>, file: impl AsRef<Path>, text: &str) -> io::Result<()> {
    let fd = openat(dir, file.as_ref(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    File::from(fd).write_all(text.as_bytes())
}

/// The number after `key` in a file of `key value` lines (`memory.events`, `cgroup.events`).
pub(super) fn field(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value?.trim().parse().ok()
}

/// Whether an error means that the cgroup no longer exists: `ENOENT` for its path, `ENODEV` for files of a removed
/// cgroup whose directory is still open.
pub(super) fn is_gone(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// Turns an error that means "does not exist" ([`is_gone`]) into `Ok(None)`.
pub(super) fn existing<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(e) if is_gone(&e) => Ok(None),
        found => found.map(Some),
    }
}

/// The child directories of `dir`. `None` if `dir` does not exist.
pub(super) fn children(dir: &Path) -> Result<Option<Vec<PathBuf>>> {
    let list = || -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                found.push(entry.path());
            }
        }
        Ok(found)
    };
    existing(list()).map_err(Error::prepare(call::open_dir(dir)))
}

/// Directory of one cgroup, accessed by its open descriptor if there is one, otherwise by path.
///
/// Through a descriptor the same cgroup is reached even after its directory is renamed or replaced. By path, a cgroup
/// that was made later under the same name would be reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dir<'a> {
    path: &'a Path,
    held: Option<BorrowedFd<'a>>,
}

impl<'a> Dir<'a> {
    pub fn new(path: &'a Path, held: Option<BorrowedFd<'a>>) -> Dir<'a> {
        Dir { path, held }
    }

    pub fn path(&self) -> &'a Path {
        self.path
    }

    /// Reads a file in the directory.
    pub fn read(&self, file: &str) -> io::Result<String> {
        match self.held {
            Some(dir) => read_at(dir, file),
            None => read_at(AT_FDCWD, self.path.join(file)),
        }
    }

    /// Writes a file in the directory, with a single `write(2)` unless the kernel accepts only part of the text.
    pub fn write(&self, file: &str, text: &str) -> io::Result<()> {
        match self.held {
            Some(dir) => write_at(dir, file, text),
            None => write_at(AT_FDCWD, self.path.join(file), text),
        }
    }

    /// Opens a file in the directory. Adds `O_CLOEXEC` to `flags`.
    pub fn open(&self, file: &str, flags: OFlag) -> io::Result<OwnedFd> {
        let flags = flags | OFlag::O_CLOEXEC;
        Ok(match self.held {
            Some(dir) => openat(dir, file, flags, Mode::empty())?,
            None => openat(AT_FDCWD, &self.path.join(file), flags, Mode::empty())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_matches_only_the_whole_key() {
        let events = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(field(events, "oom_kill"), Some(2));
        assert_eq!(field(events, "oom"), Some(3));
        assert_eq!(field("oom_kill_disable 0\nunder_oom 0\noom_kill 9\n", "oom_kill"), Some(9));
        assert_eq!(field("oom_kill_disable 0\nunder_oom 0\n", "oom_kill"), None);
        assert_eq!(field("oom_kill max\n", "oom_kill"), None);
        assert_eq!(field("", "oom_kill"), None);
    }

    #[test]
    fn missing_files_read_as_none_but_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let nothing = dir.path().join("nothing");
        assert_eq!(children(&nothing).unwrap(), None);
        assert_eq!(children(dir.path()).unwrap(), Some(vec![]));
        let kernel = Kernel::real();
        assert!(hold_existing(&kernel, &nothing).unwrap().is_none());
        assert_eq!(read_existing(&kernel, &nothing, None).unwrap(), None);
        let error = write(&kernel, &nothing, "0").unwrap_err();
        assert_eq!(error.to_string(), format!("openat(AT_FDCWD, {nothing:?}, O_WRONLY|O_CLOEXEC)"));
    }

    #[test]
    fn blank_cpuset_file_inherits_the_parents_value() {
        let top = tempfile::tempdir().unwrap();
        let below = top.path().join("below");
        std::fs::create_dir(&below).unwrap();
        let file = below.join("cpuset.mems");
        let lines = Kernel::recorder();
        inherit(&lines, &file).unwrap();
        assert_eq!(lines.into_lines().len(), 4);
        for (above, own, expected) in [("0-1\n", "\n", "0-1"), ("0-1\n", "0\n", "0\n")] {
            std::fs::write(top.path().join("cpuset.mems"), above).unwrap();
            std::fs::write(&file, own).unwrap();
            inherit(&Kernel::real(), &file).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), expected);
        }
        std::fs::write(top.path().join("cpuset.mems"), "\n").unwrap();
        std::fs::write(&file, "").unwrap();
        assert!(inherit(&Kernel::real(), &file).is_err());
    }
}
