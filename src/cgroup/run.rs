//! The live group: made from a layout, held by descriptors, killed and removed.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkdir;
use serde::{Deserialize, Serialize};

use super::cores::{Pin, Seat, Site, admit, leave};
use super::kill::{Backoff, field, is_gone, kill_all, open_dir, pids, populated, remove_dir, remove_tree};
use super::layout::{Dir, Kind, Layout, Need, Value, Write, call};
use super::place::Place;
use crate::error::{Error, Result};
use crate::report::Reason;

/// How long killing and removing may take before they are given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often making a directory begins anew because somebody removed the parent in between.
const RACES: u32 = 1000;

/// The cgroups of one task.
///
/// Dropping it kills every process in them and removes them, unless the layout says to keep them; that can
/// take some milliseconds, and at most a few seconds if processes do not die. [`remove`](Self::remove) does
/// the same with a result, after [`kill`](Self::kill).
#[derive(Debug)]
pub struct Group {
    paths: Paths,
    unit: Option<OwnedFd>,
    /// When it is not the unit.
    memory: Option<OwnedFd>,
    /// Says that the task is about to enter the processors that all share.
    pin: Option<Pin>,
    shortfalls: Vec<Reason>,
    keep: bool,
}

/// What it takes to find a group again, in another process or after a restart: its serialised form is a record
/// that can be stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    leaves: Vec<PathBuf>,
    /// To be removed when empty; children after their parents.
    parents: Vec<PathBuf>,
    unit: Option<PathBuf>,
    into: bool,
    enter: Vec<PathBuf>,
    v1: BTreeMap<String, PathBuf>,
    /// The book of processors that the task is in.
    #[serde(default)]
    book: Option<Site>,
}

impl Paths {
    /// Whether there is a cgroup that holds every process of the task.
    pub fn is_unit(&self) -> bool {
        self.unit.is_some()
    }
}

impl Group {
    /// Makes the directories of `layout` and writes its limits.
    ///
    /// Any number of groups may be made and removed at once below one parent, by any number of processes. A leaf
    /// of the same name is taken for what an earlier task left behind: its processes are killed and it
    /// is removed. So names must be unique among living tasks.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the call as [`Layout::calls`] prints it. Everything is taken back.
    pub fn create(layout: &Layout) -> Result<Group> {
        let paths = Paths {
            leaves: Vec::new(),
            parents: Vec::new(),
            unit: layout.unit.clone(),
            into: layout.into.is_some(),
            enter: layout.enter.clone(),
            v1: layout.v1.clone(),
            book: None,
        };
        // From here on a failure drops the group, which takes back what it has made.
        let mut group =
            Group { paths, unit: None, memory: None, pin: None, shortfalls: Vec::new(), keep: false };
        layout.former.iter().try_for_each(|path| reclaim(path))?;
        group.make_dirs(&layout.dirs)?;
        layout.cores.iter().try_for_each(|seat| group.sit(seat))?;
        group.unit = layout.unit.as_deref().map(hold).transpose()?;
        group.memory = layout.memory_apart().map(hold).transpose()?;
        for write in &layout.writes {
            group.write(write)?;
        }
        group.keep = layout.keep;
        Ok(group)
    }

    /// Finds a group again that [`into_paths`](Self::into_paths) let go of.
    ///
    /// # Errors
    /// [`Error::Task`] if it is not there any more.
    pub fn reopen(paths: Paths) -> Result<Group> {
        let open = |path: &PathBuf| open_dir(path).map_err(Error::task(call::open_dir(path)));
        let unit = paths.unit.as_ref().map(open).transpose()?;
        let apart = paths.v1.get("memory").filter(|path| Some(*path) != paths.unit.as_ref());
        let memory = apart.map(open).transpose()?;
        Ok(Group { unit, memory, pin: None, shortfalls: Vec::new(), keep: false, paths })
    }

    /// Lets go of the group: nothing is killed or removed when the handle is gone.
    pub fn into_paths(mut self) -> Paths {
        self.keep = true;
        std::mem::take(&mut self.paths)
    }

    /// What it takes to find the group again.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Limits that the kernel would not take although the layout said they would hold.
    pub fn shortfalls(&self) -> &[Reason] {
        &self.shortfalls
    }

    /// The v2 cgroup for `CLONE_INTO_CGROUP`, if there is one.
    pub fn into_fd(&self) -> Option<BorrowedFd<'_>> {
        self.unit.as_ref().filter(|_| self.paths.into).map(AsFd::as_fd)
    }

    /// The v1 `tasks` files, opened for writing, close-on-exec. A process with a single thread enters by writing
    /// `0` to each.
    ///
    /// That is 20 times as fast as being put there by another process, for which the kernel waits until
    /// every processor has passed a quiet state.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the call.
    pub fn enter_fds(&self) -> Result<Vec<OwnedFd>> {
        self.paths.enter.iter().map(|path| open_write(path).map(OwnedFd::from)).collect()
    }

    /// Puts a running process into all of the group's cgroups. Slow, see [`enter_fds`](Self::enter_fds): for
    /// kernels without `CLONE_INTO_CGROUP`.
    ///
    /// # Errors
    /// [`Error::Task`] with the call.
    pub fn add(&self, pid: u32) -> Result<()> {
        let text = pid.to_string();
        for dir in self.paths.leaves.iter().chain(self.shared()) {
            let file = dir.join("cgroup.procs");
            let opened = OpenOptions::new().write(true).open(&file);
            let mut procs = opened.map_err(Error::task(call::open_write(&file)))?;
            procs.write_all(text.as_bytes()).map_err(Error::task(call::write(&file, &text)))?;
        }
        Ok(())
    }

    /// Sends SIGKILL to every process in the group, those included that are being forked. With `cgroup.kill` it
    /// returns at once; without, when all are gone or after 5 seconds.
    ///
    /// # Errors
    /// `Unsupported` if the group has no cgroup to find them in; `TimedOut`; the kernel's answer.
    pub fn kill(&self) -> io::Result<()> {
        kill_all(self.unit()?, PATIENCE)
    }

    /// The processes in the group, by the ids of the caller's PID namespace; 0 for what it cannot see.
    ///
    /// # Errors
    /// As [`kill`](Self::kill).
    pub fn pids(&self) -> io::Result<Vec<i32>> {
        Ok(pids(self.unit()?)?.into_iter().map(nix::unistd::Pid::as_raw).collect())
    }

    /// Whether there is any process in the group.
    ///
    /// # Errors
    /// As [`kill`](Self::kill).
    pub fn populated(&self) -> io::Result<bool> {
        populated(self.unit()?)
    }

    /// Waits until the last process has gone; false if that takes longer than `patience`. The counters are final
    /// then, and must be read before [`remove`](Self::remove).
    ///
    /// # Errors
    /// As [`kill`](Self::kill).
    pub fn wait_empty(&self, patience: Duration) -> io::Result<bool> {
        let mut backoff = Backoff::new(patience);
        while self.populated()? {
            if !backoff.pause() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// How many processes of the group were killed for want of memory, whoever's limit it was.
    ///
    /// v2 `memory.events` (nested cgroups counted), v1 `memory.oom_control` (Linux 4.13; not counted). 0 when
    /// the memory controller is not in use.
    pub fn oom_kills(&self) -> u64 {
        let text = self.memory_file("memory.oom_control", "memory.events");
        text.and_then(|text| field(&text, "oom_kill")).unwrap_or(0)
    }

    /// Bytes of memory charged now.
    pub fn memory_current(&self) -> Option<u64> {
        self.memory_file("memory.usage_in_bytes", "memory.current")?.trim().parse().ok()
    }

    /// The most bytes of memory that were ever charged. v2 has it since Linux 5.19.
    pub fn memory_peak(&self) -> Option<u64> {
        self.memory_file("memory.max_usage_in_bytes", "memory.peak")?.trim().parse().ok()
    }

    /// Removes the cgroups, and the parents if they are the crate's own or made by this group, and empty.
    ///
    /// Waits up to 5 seconds for processes to be gone, but kills none: see [`kill`](Self::kill). Calling
    /// it again after a failure goes on with what is left.
    ///
    /// # Errors
    /// [`Error::Task`] with the directory that could not be removed; `EBUSY` if processes live on.
    pub fn remove(&mut self) -> Result<()> {
        while let Some(leaf) = self.paths.leaves.last() {
            remove_tree(leaf, PATIENCE).map_err(Error::task(call::rmdir(leaf)))?;
            self.paths.leaves.pop();
        }
        self.pin = None;
        if let Some(site) = &self.paths.book {
            leave(site, &mut self.paths.parents)?;
            self.paths.book = None;
        }
        while let Some(parent) = self.paths.parents.pop() {
            // Most often somebody else is in it, and will remove it.
            let _ = remove_dir(&parent);
        }
        Ok(())
    }

    /// The cgroup that the task is in with others.
    fn shared(&self) -> Option<&PathBuf> {
        self.paths.v1.get("cpuset").filter(|dir| !self.paths.leaves.contains(dir))
    }

    fn unit(&self) -> io::Result<BorrowedFd<'_>> {
        self.unit.as_ref().map(AsFd::as_fd).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// The task's v2 cgroup.
    pub(super) fn tree(&self) -> Option<Place<'_>> {
        let path = self.paths.unit.as_ref().filter(|_| self.paths.into)?;
        Some(Place::new(path, self.unit.as_ref().map(AsFd::as_fd)))
    }

    /// The task's cgroup in the v1 hierarchy of `controller`, if it is in one.
    pub(super) fn v1(&self, controller: &str) -> Option<Place<'_>> {
        let path = self.paths.v1.get(controller)?;
        let unit = self.unit.as_ref().filter(|_| self.paths.unit.as_ref() == Some(path));
        let memory = self.memory.as_ref().filter(|_| self.paths.v1.get("memory") == Some(path));
        Some(Place::new(path, unit.or(memory).map(AsFd::as_fd)))
    }

    fn memory_file(&self, v1: &str, v2: &str) -> Option<String> {
        match self.v1("memory") {
            Some(place) => place.read(v1).ok(),
            None => self.tree()?.read(v2).ok(),
        }
    }

    /// Makes all directories. Whoever removes a shared parent at the same time makes it begin again; once the
    /// first leaf is there, its parents stay.
    fn make_dirs(&mut self, dirs: &[Dir]) -> Result<()> {
        let mut races = 0u32;
        let mut at = 0usize;
        while let Some(dir) = dirs.get(at) {
            match self.make_dir(dir) {
                Err(Error::Prepare { source, .. }) if at > 0 && is_gone(&source) && races < RACES => {
                    races = races.saturating_add(1);
                    at = 0;
                    std::thread::yield_now();
                }
                Err(e) => return Err(e),
                Ok(()) => at = at.saturating_add(1),
            }
        }
        Ok(())
    }

    /// Takes the task's seat in the book of processors.
    fn sit(&mut self, seat: &Seat) -> Result<()> {
        let mut races = 0u32;
        loop {
            self.make_dirs(&seat.parents)?;
            match admit(seat, &mut self.paths.leaves, &mut self.paths.book) {
                Ok(Some(admitted)) => {
                    self.pin = admitted.pin;
                    self.shortfalls.extend(admitted.shortfall);
                    return Ok(());
                }
                Ok(None) if races < RACES => {}
                Ok(None) => {
                    let step = call::open_dir(&seat.site.parent);
                    return Err(Error::prepare::<io::Error>(step)(io::ErrorKind::NotFound.into()));
                }
                Err(Error::Prepare { source, .. })
                    if source.kind() == io::ErrorKind::AlreadyExists && races < RACES =>
                {
                    seat.leaf.iter().try_for_each(|leaf| reclaim(leaf))?;
                }
                Err(Error::Prepare { source, .. }) if is_gone(&source) && races < RACES => {}
                Err(e) => {
                    if self.paths.book.is_none() {
                        // Never without the lock, and whoever holds it will do it.
                        self.paths.parents.retain(|dir| *dir != seat.site.parent);
                    }
                    return Err(e);
                }
            }
            races = races.saturating_add(1);
            std::thread::yield_now();
        }
    }

    fn make_dir(&mut self, dir: &Dir) -> Result<()> {
        let known = if dir.kind == Kind::Leaf { &self.paths.leaves } else { &self.paths.parents };
        let known = known.contains(&dir.path);
        if known && dir.kind == Kind::Leaf {
            return Ok(());
        }
        let mkdir = || mkdir(&dir.path, Mode::from_bits_truncate(0o755)).map_err(io::Error::from);
        let made = match (mkdir(), dir.kind) {
            (Err(e), Kind::Leaf) if e.kind() == io::ErrorKind::AlreadyExists => {
                reclaim(&dir.path)?;
                mkdir()
            }
            (Err(e), Kind::Parent) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            (Err(e), Kind::OwnParent) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            (made, _) => made,
        };
        made.map_err(Error::prepare::<io::Error>(call::mkdir(&dir.path)))?;
        match dir.kind {
            Kind::Leaf => self.paths.leaves.push(dir.path.clone()),
            _ if !known => self.paths.parents.push(dir.path.clone()),
            _ => {}
        }
        Ok(())
    }

    fn write(&mut self, write: &Write) -> Result<()> {
        match (apply(write), &write.need) {
            (Err(_), Need::Try) => Ok(()),
            (Err(Error::Prepare { step, source }), Need::Else(reason)) => {
                let why = format!("{}: {step}: {source}", reason.why);
                self.shortfalls.push(Reason { control: reason.control, why });
                Ok(())
            }
            (done, _) => done,
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Paths { leaves, parents, book, .. } = &self.paths;
        if self.keep || (leaves.is_empty() && parents.is_empty() && book.is_none()) {
            return;
        }
        // There is nobody to tell; what is busy after all this is left behind.
        if self.unit.is_some() && !self.paths.leaves.is_empty() {
            let _ = self.kill();
        }
        let _ = self.remove();
    }
}

fn hold(path: impl AsRef<Path>) -> Result<OwnedFd> {
    let path = path.as_ref();
    open_dir(path).map_err(Error::prepare(call::open_dir(path)))
}

pub(super) fn open_write(path: &Path) -> Result<fs::File> {
    OpenOptions::new().write(true).open(path).map_err(Error::prepare(call::open_write(path)))
}

/// Takes away what an earlier task of the same name has left behind.
fn reclaim(leaf: &Path) -> Result<()> {
    let dir = match open_dir(leaf) {
        Err(e) if is_gone(&e) => return Ok(()),
        dir => dir.map_err(Error::prepare(call::open_dir(leaf)))?,
    };
    kill_all(dir.as_fd(), PATIENCE)
        .and_then(|()| remove_tree(leaf, PATIENCE))
        .map_err(Error::prepare(call::rmdir(leaf)))
}

pub(super) fn apply(write: &Write) -> Result<()> {
    let path = &write.path;
    let text = match &write.value {
        Value::Text(text) => text.clone(),
        Value::Inherit => match inherited(write)? {
            Some(text) => text,
            None => return Ok(()),
        },
    };
    open_write(path)?.write_all(text.as_bytes()).map_err(Error::prepare(call::write(path, &text)))
}

/// What the parent directory's file has; `None` if the file has something of its own already.
fn inherited(write: &Write) -> Result<Option<String>> {
    let read = |path: &Path| fs::read_to_string(path).map_err(Error::prepare(call::open_read(path)));
    if !read(&write.path)?.trim().is_empty() {
        return Ok(None);
    }
    let source = write.source().unwrap_or_default();
    let text = read(&source)?.trim().to_owned();
    if text.is_empty() {
        let blank = io::Error::new(io::ErrorKind::InvalidData, "the parent cgroup has none to give");
        return Err(Error::prepare::<io::Error>(call::open_read(&source))(blank));
    }
    Ok(Some(text))
}
