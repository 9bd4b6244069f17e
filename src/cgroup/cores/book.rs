//! The book, open and locked: read from the tree, and the files of the tree made to say what it says.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::stat::{fstat, stat};

use super::super::kill::{is_gone, open_dir, populated};
use super::super::layout::call;
use super::super::probe::{Detection, Version};
use super::super::set::CpuSet;
use super::files::{children, read_set, record, settle_set, there};
use super::{CoreBook, Holder, Partition, Reserved, Site};
use crate::error::{Error, Result};
use crate::report::{Control, Reason};
use crate::sys::lock::{Lock, flock};

/// How long another holder of the lock may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest pause between two looks at the lock: nobody holds it for long.
const PAUSE: Duration = Duration::from_millis(1);

/// A book that nobody else can open meanwhile.
pub(super) struct Book<'a> {
    pub site: &'a Site,
    lock: OwnedFd,
}

impl Drop for Book<'_> {
    fn drop(&mut self) {
        unlock(&self.lock);
    }
}

/// One cgroup with a reservation.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub leaf: PathBuf,
    pub reserved: Reserved,
}

/// What the tree says.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// Whether the directory of reservations is there. It is made before anything is taken from the share, and
    /// removed after all has been given back: without it the share has all.
    pub divided: bool,
    /// Not looked up where nothing is divided.
    pub usable: CpuSet,
    pub entries: Vec<Entry>,
}

impl<'a> Book<'a> {
    /// Opens and locks; `None` if the directory is not there.
    pub fn open(site: &'a Site) -> Result<Option<Book<'a>>> {
        Book::open_within(site, PATIENCE)
    }

    pub fn open_within(site: &'a Site, patience: Duration) -> Result<Option<Book<'a>>> {
        let parent = &site.parent;
        let start = Instant::now();
        loop {
            let dir = match open_dir(parent) {
                Err(e) if is_gone(&e) => return Ok(None),
                dir => dir.map_err(Error::prepare(call::open_dir(parent)))?,
            };
            lock(&dir, patience.saturating_sub(start.elapsed()))
                .map_err(Error::prepare(call::lock(parent)))?;
            let book = Book { site, lock: dir };
            // The last task removes the directory, and the next one makes another.
            if book.is_there()? {
                return Ok(Some(book));
            }
        }
    }

    /// Whether the directory that is locked is the one at the path.
    fn is_there(&self) -> Result<bool> {
        let parent = &self.site.parent;
        let ours = fstat(&self.lock).map_err(Error::prepare(format!("fstat({parent:?})")))?;
        match stat(parent.as_path()) {
            Ok(there) => Ok((there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)),
            Err(Errno::ENOENT | Errno::ENODEV) => Ok(false),
            Err(e) => Err(Error::prepare(format!("stat({parent:?})"))(e)),
        }
    }

    /// What the tree says.
    pub fn state(&self) -> Result<State> {
        let Some(leaves) = children(&self.site.reserve())? else { return Ok(State::default()) };
        let mut entries = Vec::new();
        for leaf in leaves {
            if let Some(reserved) = record(&leaf)? {
                entries.push(Entry { leaf, reserved });
            }
        }
        Ok(State { divided: true, usable: self.usable()?, entries })
    }

    /// Whether somebody needs the processors of a cgroup: an owner that lives, or a process. The owner is looked for
    /// first, since without one no process comes.
    ///
    /// v1 moves the processes of a cgroup whose processors are all offline to the one above it, and nobody knows
    /// then whose they are.
    pub fn is_held(&self, leaf: &Path) -> Result<bool> {
        let above = self.site.reserve().join("cgroup.procs");
        let strays = || -> io::Result<bool> {
            let text =
                if self.site.version == Version::V1 { there(std::fs::read_to_string(&above))? } else { None };
            Ok(text.is_some_and(|text| !text.is_empty()))
        };
        let held = open_dir(leaf).and_then(|dir| Ok(is_pinned(&dir) || populated(dir.as_fd())? || strays()?));
        there(held).map_err(Error::prepare(call::open_dir(leaf))).map(Option::unwrap_or_default)
    }

    /// What the parent may use; nothing on v2 before cpuset is enabled there.
    pub fn usable(&self) -> Result<CpuSet> {
        Ok(read_set(&self.site.effective())?.unwrap_or_default())
    }

    /// Makes the files say what `state` says: first what all others run on, then each reservation.
    ///
    /// Before a reservation this narrows, after one it widens, and after a crash it may do both. A file
    /// changes at once, so a task has always either what it had or what it is to have.
    pub fn settle(&self, state: &State) -> Result<()> {
        let share = self.site.share().join("cpuset.cpus");
        if self.site.version == Version::V2 && state.entries.is_empty() {
            // A blank file, as it is before the first reservation, is as good as one that lists all; but none can be
            // made blank with processes below it (ENOSPC, seen with Linux 6.1).
            if read_set(&share)?.is_none_or(|now| now.is_empty()) {
                return Ok(());
            }
        }
        if state.usable.is_empty() {
            return Ok(());
        }
        if self.site.version == Version::V1 {
            settle_set(&self.site.reserve().join("cpuset.cpus"), &state.usable)?;
        }
        // Those that run there have something still; and blank would mean all.
        if !state.share().is_empty() {
            settle_set(&share, &state.share())?;
        }
        for entry in &state.entries {
            if let Some(cores) = state.cores(&entry.reserved) {
                settle_set(&entry.leaf.join("cpuset.cpus"), &cores)?;
            }
        }
        Ok(())
    }

    /// As a scheduler wants to know it.
    pub fn told(&self, detection: &Detection) -> Result<CoreBook> {
        let mut state = self.state()?;
        if state.usable.is_empty() {
            let usable = self.usable()?;
            state.usable = if usable.is_empty() { detection.online.clone() } else { usable };
        }
        let mut held = Vec::new();
        for entry in std::mem::take(&mut state.entries) {
            // The next who asks for them has them.
            if self.is_held(&entry.leaf)? {
                held.push(entry);
            }
        }
        state.entries = held;
        let mut holders = Vec::new();
        for entry in &state.entries {
            let Reserved { cores, exclusive } = entry.reserved.clone();
            let populated = has_processes(&entry.leaf)?;
            holders.push(Holder { name: self.site.name(&entry.leaf), cores, exclusive, populated });
        }
        holders.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(CoreBook { share: state.share(), usable: state.usable, holders })
    }
}

impl State {
    /// What is unreserved.
    pub fn share(&self) -> CpuSet {
        let mut partition = Partition::new(self.usable.clone());
        for entry in &self.entries {
            partition.restore(&entry.reserved.cores);
        }
        partition.share
    }

    /// Whether reservations leave nothing for a task that has none.
    pub fn is_taken(&self) -> bool {
        !self.entries.is_empty() && self.share().is_empty()
    }

    /// What of a reservation cannot be used now.
    pub fn shortfall(&self, reserved: &Reserved) -> Option<Reason> {
        let Reserved { cores, .. } = reserved;
        let have = cores.intersection(&self.usable);
        let why = format!("of processors {cores} only {have} can be used now");
        (have != *cores).then_some(Reason { control: Control::CPUSET, why })
    }

    /// What a task with this reservation runs on; `None` while all that it has is offline, and the kernel lets it
    /// run elsewhere.
    pub fn cores(&self, reserved: &Reserved) -> Option<CpuSet> {
        let own = reserved.cores.intersection(&self.usable);
        if own.is_empty() {
            return None;
        }
        Some(if reserved.exclusive { own } else { own.union(&self.share()) })
    }
}

impl Site {
    /// The name of the task that a leaf belongs to.
    pub(super) fn name(&self, leaf: &Path) -> String {
        let name = leaf.file_name().unwrap_or_default().to_string_lossy();
        name.strip_suffix(".scope").filter(|_| self.version == Version::V2).unwrap_or(&name).to_owned()
    }
}

/// Whether there is a process in a cgroup or below; none is in one that is gone.
pub(super) fn has_processes(leaf: &Path) -> Result<bool> {
    let found = open_dir(leaf).and_then(|dir| populated(dir.as_fd()));
    let found = there(found).map_err(Error::prepare(call::open_dir(leaf)))?;
    Ok(found.unwrap_or_default())
}

/// Whether somebody holds a shared lock on a directory.
pub(super) fn is_pinned(dir: &OwnedFd) -> bool {
    let pinned = flock(dir.as_fd(), Lock::ExclusiveNow).is_err();
    unlock(dir);
    pinned
}

/// A child that another thread forks has copies of all descriptors until it executes something, so closing
/// alone is not enough.
pub(super) fn unlock(fd: &OwnedFd) {
    let _ = flock(fd.as_fd(), Lock::None);
}

/// Locks without waiting in the kernel, so that the wait can end.
fn lock(dir: &OwnedFd, patience: Duration) -> io::Result<()> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(20);
    loop {
        match flock(dir.as_fd(), Lock::ExclusiveNow) {
            Err(Errno::EWOULDBLOCK) if start.elapsed() < patience => sleep(pause),
            Err(Errno::EWOULDBLOCK) => {
                let why = "the book of processors stays locked by another";
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            answer => return Ok(answer?),
        }
        pause = pause.saturating_mul(2).min(PAUSE);
    }
}
