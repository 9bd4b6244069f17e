//! Prepared mounts: a mount namespace that holds what is the same for every task of a sandbox.
//!
//! It is kept by descriptor and contains no process. Its bind mounts are copies of mounts of the host, so they are valid
//! as long as the host's mount table shows the same mounts at the sources, and each source leads to the same file.
//!
//! This module does not make the mounts (`spawn` and init do), and does not decide which can be prepared (`compile`
//! does).

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;

use crate::error::{Error, Result};
use crate::sys::fs::{FileId, identify};
use crate::sys::mountinfo::Mount;

/// What init has made, and the program for the tasks that enter it.
#[derive(Debug)]
pub(crate) struct Made {
    pub namespace: OwnedFd,
    /// `/proc/PID/mountinfo` of the namespace.
    pub table: File,
    /// The program init, if it is in a sealed memfd.
    pub init: Option<OwnedFd>,
}

/// A prepared mount namespace, and what it was made of.
#[derive(Debug)]
pub(crate) struct Prepared {
    made: Made,
    /// The process that polls the tables. A child of a fork has the same open files, and the kernel reports a change of one
    /// only once.
    process: u32,
    key: Vec<u8>,
    sources: Vec<FileId>,
    network: NetworkNamespace,
    watched: Mutex<Watched>,
}

/// The network namespace of a thread, which `/sys` shows. While it is open, no other one gets its number.
#[derive(Debug)]
pub(crate) struct NetworkNamespace {
    id: FileId,
    _open: OwnedFd,
}

impl NetworkNamespace {
    const PATH: &CStr = c"/proc/thread-self/ns/net";

    /// Opens the namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the refused call.
    pub(crate) fn of_this_thread() -> Result<NetworkNamespace> {
        let open = open(NetworkNamespace::PATH, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        let open = open.map_err(Error::prepare("openat(\"/proc/thread-self/ns/net\")"))?;
        let id =
            identify(open.as_fd(), c"").map_err(Error::prepare("statx(\"/proc/thread-self/ns/net\")"))?;
        Ok(NetworkNamespace { id, _open: open })
    }

    fn is_of_this_thread(&self) -> bool {
        identify(AT_FDCWD, NetworkNamespace::PATH).is_ok_and(|id| id == self.id)
    }
}

/// What a prepared namespace depends on.
#[derive(Debug)]
struct Watched {
    /// The host's table of mounts.
    host: MountTable,
    /// Whether a mount of the namespace was detached since it was made.
    broken: bool,
}

impl Prepared {
    /// Keeps a namespace. `key` and `sources` are those of the plan that made it, and `network` is that of the thread. `table`
    /// is the host's table of mounts, which was read before.
    pub(crate) fn new(
        made: Made,
        key: Vec<u8>,
        sources: Vec<FileId>,
        table: MountTable,
        network: NetworkNamespace,
    ) -> Prepared {
        // The first poll reports the mounts that init has made.
        has_changed(&made.table);
        let watched = Watched { host: table, broken: false };
        Prepared { made, process: std::process::id(), key, sources, network, watched: Mutex::new(watched) }
    }

    /// The mount namespace.
    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.made.namespace.as_fd()
    }

    /// The program init, if it is in a sealed memfd.
    pub(crate) fn init(&self) -> Option<BorrowedFd<'_>> {
        self.made.init.as_ref().map(AsFd::as_fd)
    }

    /// Whether a plan with this key and these sources would make the same mounts in this thread.
    pub(crate) fn is_of(&self, key: &[u8], sources: &[FileId]) -> bool {
        self.has_key(key) && self.sources == sources && self.is_of_this_network()
    }

    /// Whether the calling thread is in the network namespace that `/sys` shows.
    pub(crate) fn is_of_this_network(&self) -> bool {
        self.network.is_of_this_thread()
    }

    /// Whether a plan with this key made the mounts, of whatever sources.
    pub(crate) fn has_key(&self, key: &[u8]) -> bool {
        self.key == key
    }

    /// Whether the host's mounts at and around the sources are as they were, and so are the prepared ones. Once they have
    /// changed, this stays false. False in a fork of the process that has prepared them.
    ///
    /// The kernel detaches a mount from a file or a directory that is removed, or that another one is renamed to, in every
    /// mount namespace but that of the process that does it (`rename(2)`). So the host removes the mask of `/etc/shadow`
    /// when it replaces that file.
    pub(crate) fn is_current(&self) -> bool {
        if self.process != std::process::id() {
            return false;
        }
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.broken |= has_changed(&self.made.table);
        !watched.broken && watched.host.is_unchanged()
    }
}

/// The host's mount table, as the mounts at and around the sources of a sandbox. The kernel says when the table changes
/// (`poll(2)` on `/proc/PID/mountinfo`), so it is read again only then.
#[derive(Debug)]
pub(crate) struct MountTable {
    file: File,
    sources: Vec<PathBuf>,
    /// The lines of mountinfo that matter to the sources. `None` if they have changed since they were read.
    lines: Option<Vec<Vec<u8>>>,
}

impl MountTable {
    /// Reads the table of the calling thread's mount namespace. `sources` are without symbolic links.
    pub(crate) fn read(sources: Vec<PathBuf>) -> io::Result<MountTable> {
        let file = File::open("/proc/thread-self/mountinfo")?;
        // A change after this call is noticed by the next poll.
        let lines = Some(relevant(&file, &sources)?);
        Ok(MountTable { file, sources, lines })
    }

    /// Whether the mounts at and around the sources are as they were read. On an error they count as changed.
    pub(crate) fn is_unchanged(&mut self) -> bool {
        if has_changed(&self.file) {
            let now = self.file.rewind().and_then(|()| relevant(&self.file, &self.sources));
            self.lines = self.lines.take().filter(|lines| now.is_ok_and(|now| now == *lines));
        }
        self.lines.is_some()
    }
}

/// Whether a table of mounts has changed since the last call for it. True if the kernel refuses to say.
fn has_changed(table: &File) -> bool {
    // The first poll after a change reports it, and no later one does.
    let mut polled = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
    loop {
        match poll(&mut polled, PollTimeout::ZERO) {
            // A signal interrupts also a poll that does not wait.
            Err(Errno::EINTR) => {}
            quiet => return quiet != Ok(0),
        }
    }
}

/// The lines of the mounts that contain a source or lie below one.
fn relevant(mut file: &File, sources: &[PathBuf]) -> io::Result<Vec<Vec<u8>>> {
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let touches = |point: &Path| sources.iter().any(|s| s.starts_with(point) || point.starts_with(s));
    let lines = text.split(|byte| *byte == b'\n');
    let kept = lines.filter(|line| Mount::parse(line).is_some_and(|mount| touches(&mount.point)));
    Ok(kept.map(<[u8]>::to_vec).collect())
}
