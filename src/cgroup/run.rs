//! The live group: made from a layout, held by descriptors, killed and removed.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkdir;
use serde::{Deserialize, Serialize};

use super::cores::{Pin, Seat, Site, admit, leave};
use super::devices::bpf;
use super::kill::{Backoff, is_gone, kill_all, open_dir, pids, populated, remove_dir, remove_tree};
use super::layout::{Dir, Kind, Layout, Need, Write, call};
use super::limits::Limits;
use super::oom::{Baseline, Oom, Tally};
use super::place::Place;
use super::settings::Terms;
use super::write::{Last, apply, open_write, shortfall};
use crate::error::{Error, Result};
use crate::report::Reason;

/// How long killing and removing may take before they are given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// The same once they have been given up before.
const AGAIN: Duration = Duration::from_millis(500);

/// What each leaf has of it at least, of several.
const LEAST: Duration = Duration::from_millis(20);

/// How often making a directory begins anew because somebody removed the parent in between.
const RACES: u32 = 1000;

/// The cgroups of one task.
///
/// Dropping it kills every process in them and removes them, unless the layout says to keep them; that can
/// take some milliseconds, and at most a few seconds if processes do not die. [`remove`](Self::remove) does
/// the same with a result, after [`kill`](Self::kill).
#[derive(Debug)]
pub struct Group {
    pub(super) paths: Paths,
    unit: Option<OwnedFd>,
    /// When it is not the unit.
    memory: Option<OwnedFd>,
    /// Outlives the counters.
    killed: Tally,
    /// Says that the owner lives, whose task will enter the processors that are reserved, or that all share.
    pin: Option<Pin>,
    shortfalls: Vec<Reason>,
    changed: Vec<Reason>,
    keep: bool,
    patience: Duration,
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
    pub(super) levels: Vec<PathBuf>,
    pub(super) terms: Option<Terms>,
    pub(super) gate: Option<String>,
    /// The limits that were last set.
    pub(super) limits: Limits,
    /// Those that the task was born with.
    pub(super) born: Limits,
    /// What the kernel would not take of them: files and lines.
    pub(super) refused: Vec<(String, String)>,
    /// What this host cannot limit at all.
    pub(super) missing: Vec<Reason>,
    /// So that it can be said later whose memory ran out.
    before: Baseline,
    /// The book of processors that the task is in.
    pub(super) book: Option<Site>,
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
    /// [`Error::Prepare`] with the call as [`Layout::calls`] prints it. Everything is taken back. The cause is of
    /// the kind `ResourceBusy` when processors are not to be had, and says who has them.
    pub fn create(layout: &Layout) -> Result<Group> {
        let paths = Paths {
            leaves: Vec::new(),
            parents: Vec::new(),
            unit: layout.unit.clone(),
            into: layout.into.is_some(),
            enter: layout.enter.clone(),
            v1: layout.v1.clone(),
            levels: layout.levels.clone(),
            terms: layout.terms,
            gate: layout.gate.clone(),
            limits: layout.limits.clone(),
            born: layout.limits.clone(),
            refused: Vec::new(),
            missing: layout.missing.clone(),
            book: None,
            before: Baseline::default(),
        };
        // From here on a failure drops the group, which takes back what it has made.
        let mut group = Group::of(paths, None, None);
        layout.former.iter().try_for_each(|path| group.reclaim(path))?;
        group.make_dirs(&layout.dirs)?;
        layout.cores.iter().try_for_each(|seat| group.sit(seat))?;
        group.unit = layout.unit.as_deref().map(hold).transpose()?;
        group.memory = layout.memory_apart().map(hold).transpose()?;
        let mut last = None;
        for write in &layout.writes {
            group.write(write, &mut last)?;
        }
        if let (Some(unit), Some(path), false) = (&group.unit, &layout.unit, layout.devices.is_empty()) {
            group.shortfalls.extend(bpf::attach(unit.as_fd(), path, &layout.devices).err());
        }
        group.paths.before = Baseline::take(&group);
        Ok(group)
    }

    fn of(paths: Paths, unit: Option<OwnedFd>, memory: Option<OwnedFd>) -> Group {
        let (shortfalls, changed) = (Vec::new(), Vec::new());
        let (killed, patience) = (Tally::default(), PATIENCE);
        Group { paths, unit, memory, killed, pin: None, shortfalls, changed, keep: false, patience }
    }

    /// Finds a group again that [`into_paths`](Self::into_paths) let go of.
    ///
    /// # Errors
    /// [`Error::Task`] if it is not there any more, or the book of processors stays locked by another process.
    pub fn reopen(paths: Paths) -> Result<Group> {
        let open = |path: &PathBuf| open_dir(path).map_err(Error::task(call::open_dir(path)));
        let unit = paths.unit.as_ref().map(open).transpose()?;
        let apart = paths.v1.get("memory").filter(|path| Some(*path) != paths.unit.as_ref());
        let memory = apart.map(open).transpose()?;
        let pin = paths.book.as_ref().map(|site| Pin::again(site, &paths.leaves)).transpose();
        let pin = pin.map_err(Error::of_task)?.flatten();
        let mut group = Group::of(paths, unit, memory);
        group.pin = pin;
        Ok(group)
    }

    /// Lets go of the group: nothing is killed or removed when the handle is gone. If processors are
    /// reserved for it, and no process is in it, the next who needs them removes it: who hands over a group without
    /// processes reopens it first.
    pub fn into_paths(mut self) -> Paths {
        self.keep = true;
        std::mem::take(&mut self.paths)
    }

    /// What it takes to find the group again.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// What the kernel would not take although the layout said that it would hold: limits, and the device filter.
    pub fn shortfalls(&self) -> &[Reason] {
        &self.shortfalls
    }

    /// Values that the kernel changed: each file was read again after it was written. Memory, for one, is rounded down
    /// to whole pages. Also devices that the cgroup above the task's does not have.
    pub fn changed(&self) -> &[Reason] {
        &self.changed
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
    /// The group is of no use afterwards: kernels since 6.14, and stable ones since February 2025, kill what is born by
    /// `CLONE_INTO_CGROUP` in a cgroup that was killed another number of times than the caller's own.
    ///
    /// # Errors
    /// `Unsupported` if the group has no cgroup to find them in; `TimedOut`; the kernel's answer.
    pub fn kill(&self) -> io::Result<()> {
        kill_all(self.unit()?, self.patience)
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

    /// Removes the cgroups, and the parents if they are the crate's own or made by this group, and empty.
    ///
    /// Waits up to 5 seconds for processes to be gone, but kills none: see [`kill`](Self::kill). Everything is
    /// tried. Calling it again after a failure goes on with what is left, and that waits half a second only.
    ///
    /// # Errors
    /// [`Error::Task`] with every directory that could not be removed; `EBUSY` if processes live on.
    pub fn remove(&mut self) -> Result<()> {
        let (mut steps, mut cause) = (Vec::new(), None);
        let (start, leaves) = (Instant::now(), std::mem::take(&mut self.paths.leaves));
        for leaf in leaves.into_iter().rev() {
            let left = self.patience.saturating_sub(start.elapsed()).max(LEAST);
            if let Err(e) = remove_tree(&leaf, left) {
                steps.push(call::rmdir(&leaf));
                cause.get_or_insert(e);
                self.paths.leaves.insert(0, leaf);
            }
        }
        if let Some(e) = cause {
            self.patience = AGAIN;
            return Err(Error::task::<io::Error>(steps.join(", "))(e));
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

    /// Kills what is left, waits until it is gone, and reads for the last time how many were killed for want of
    /// memory. For the way to [`remove`](Self::remove): what cannot be killed shows there.
    pub(crate) fn settle(&self) -> Option<Oom> {
        if self.unit.is_some() {
            let _ = self.kill().and_then(|()| self.wait_empty(self.patience));
        }
        self.oom()
    }

    /// The cgroup that the task is in with others.
    fn shared(&self) -> Option<&PathBuf> {
        self.paths.v1.get("cpuset").filter(|dir| !self.paths.leaves.contains(dir))
    }

    fn unit(&self) -> io::Result<BorrowedFd<'_>> {
        self.unit.as_ref().map(AsFd::as_fd).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// The cgroup that has all processes.
    pub(super) fn held_unit(&self) -> Option<Place<'_>> {
        let path = self.paths.unit.as_ref()?;
        Some(Place::new(path, Some(self.unit.as_ref()?.as_fd())))
    }

    /// The counters of the parents from before the task.
    pub(super) fn before(&self) -> &Baseline {
        &self.paths.before
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.killed
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

    /// The task's cgroups in all v1 hierarchies; one of several controllers that are mounted together comes once for
    /// each.
    pub(super) fn v1_places(&self) -> impl Iterator<Item = Place<'_>> {
        self.paths.v1.keys().filter_map(|controller| self.v1(controller))
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
                    seat.leaf.iter().try_for_each(|leaf| self.reclaim(leaf))?;
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
        let mode = Mode::from_bits_truncate(if dir.kind == Kind::Leaf { 0o755 } else { 0o711 });
        let mkdir = || mkdir(&dir.path, mode).map_err(io::Error::from);
        let made = match (mkdir(), dir.kind) {
            (Err(e), Kind::Leaf) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.reclaim(&dir.path)?;
                mkdir()
            }
            (Err(e), Kind::Parent) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            (Err(e), Kind::OwnParent) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            (made, _) => made,
        };
        made.map_err(Error::prepare::<io::Error>(dir.call()))?;
        match dir.kind {
            Kind::Leaf => self.paths.leaves.push(dir.path.clone()),
            _ if !known => self.paths.parents.push(dir.path.clone()),
            _ => {}
        }
        Ok(())
    }

    /// Takes away what an earlier task of the same name has left behind. Its processes are killed in the unit first:
    /// in another hierarchy of v1 nothing stops them from forking, or thaws them. A unit of our own is spared, since
    /// some kernels let nothing be born where there was a kill, see [`kill`](Self::kill).
    fn reclaim(&self, leaf: &Path) -> Result<()> {
        let unit = self.paths.unit.as_deref();
        let unit = unit.filter(|unit| *unit != leaf && !self.paths.leaves.iter().any(|made| made == unit));
        for path in unit.into_iter().chain([leaf]) {
            let dir = match open_dir(path) {
                Err(e) if is_gone(&e) => continue,
                dir => dir.map_err(Error::prepare(call::open_dir(path)))?,
            };
            kill_all(dir.as_fd(), PATIENCE).map_err(Error::prepare(call::rmdir(path)))?;
        }
        remove_tree(leaf, PATIENCE).map_err(Error::prepare(call::rmdir(leaf)))
    }

    fn write<'a>(&mut self, write: &'a Write, last: &mut Last<'a>) -> Result<()> {
        match (apply(write, last), &write.need) {
            (Ok(changed), _) => {
                self.changed.extend(changed);
                Ok(())
            }
            (Err(_), Need::Try) => {
                self.paths.refused.extend(write.line());
                Ok(())
            }
            (Err(Error::Prepare { step, source }), Need::Less(reason)) => {
                self.changed.push(shortfall(reason, &step, &source));
                Ok(())
            }
            (Err(Error::Prepare { step, source }), Need::Else(reason)) => {
                self.paths.refused.extend(write.line());
                self.shortfalls.push(shortfall(reason, &step, &source));
                Ok(())
            }
            (Err(e), _) => Err(e),
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
        if !self.paths.leaves.is_empty() {
            self.settle();
        }
        let _ = self.remove();
    }
}

pub(super) fn hold(path: impl AsRef<Path>) -> Result<OwnedFd> {
    let path = path.as_ref();
    open_dir(path).map_err(Error::prepare(call::open_dir(path)))
}
