//! A task's cgroups: made by the steps of a plan, held by descriptor, killed and removed.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::fs::{
    self, Backoff, Dir, DirOwner, NewDir, call, is_gone, open_dir, pids, populated, remove_dir, remove_tree,
};
use super::limits::Limits;
use super::limits::row::Terms;
use super::reserve::{JoinShare, OwnerLock, Reserve, Site, hold_locked, leave, look_again};
use crate::error::{Error, Result};
use crate::report::{Control, Reason, Report};
use crate::step::{Kernel, Step};
use crate::sys::lock::Locked;
use baseline::{Baseline, Counters, Tally};
use kill::kill_all;

pub(super) mod baseline;
pub(super) mod freeze;
pub(super) mod kill;
mod op;
mod update;

pub(crate) use op::CgroupOp;

/// How long killing and removing may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// The same after a first failure.
const TIMEOUT_AGAIN: Duration = Duration::from_millis(500);

/// Minimum share of the timeout for each leaf when several are removed.
const LEAST: Duration = Duration::from_millis(20);

/// How often directories are made anew because another task removed the parent in between.
const RACES: u32 = 1000;

/// The cgroups of one task as data: the steps that make them, and the record to find them again by.
///
/// [`lower`](super::lower) makes it, [`Group::create`] carries it out. A host without usable cgroups gets one
/// without steps.
#[derive(Clone, Debug, Default)]
pub struct Cgroups {
    pub(crate) steps: Vec<Step<CgroupOp>>,
    pub(crate) paths: Paths,
    /// v1: what a task without a reservation does about those of others.
    pub(crate) share: Option<JoinShare>,
}

impl Cgroups {
    /// Whether there is nothing to make.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Every directory that is the task's own.
    pub fn leaves(&self) -> impl Iterator<Item = &Path> {
        self.steps.iter().flat_map(|step| match &step.op {
            CgroupOp::Make(dirs) => dirs
                .iter()
                .filter(|dir| dir.owner == DirOwner::Task)
                .map(|dir| dir.path.as_path())
                .collect::<Vec<_>>(),
            CgroupOp::Reserve(reserve) => vec![reserve.leaf.as_path()],
            _ => Vec::new(),
        })
    }

    /// The system calls that undo them, as those of [`calls`](Self::calls).
    pub(crate) fn undo_calls(steps: &[&CgroupOp], paths: &Paths) -> Vec<String> {
        let mut group = Group::recorded(paths.clone());
        for op in steps {
            // A recorder is refused nothing.
            let _ = op.run(Control::empty(), &Kernel::recorder(), &mut group, &mut Report::default());
        }
        let kernel = Kernel::recorder();
        group.kill_and_wait(&kernel);
        let _ = group.remove_with(&kernel);
        kernel.into_lines()
    }

    /// The system calls of [`Group::create`], in order and as strace spells them, on a host where no task has run yet.
    /// A line with `# if` is made only then.
    pub fn calls(&self) -> Vec<String> {
        self.steps.iter().flat_map(|step| step.op.calls()).collect()
    }
}

/// The cgroups of one task.
///
/// Dropping it kills every process in them and removes them; that can take some milliseconds, and at most a few seconds
/// if processes do not die. [`remove`](Self::remove) returns a result, and kills nothing: see [`kill`](Self::kill).
#[derive(Debug)]
pub struct Group {
    pub(super) paths: Paths,
    unit: Option<Locked>,
    /// If it is not the unit.
    memory: Option<OwnedFd>,
    /// Outlives the counters.
    killed: Tally,
    /// Held on the cgroup with the reservation, or on the shared cpuset of v1 that the task enters.
    owner: Option<OwnerLock>,
    keep: bool,
    timeout: Duration,
}

/// What it takes to find a group again, in another process or after a restart: its serialised form is a record
/// that can be stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    pub(super) leaves: Vec<PathBuf>,
    /// To be removed when empty; children after their parents.
    pub(super) parents: Vec<PathBuf>,
    /// The cgroup in which all processes are found and killed: the v2 one, else the v1 freezer's.
    pub(crate) unit: Option<PathBuf>,
    /// Whether that is the v2 cgroup that the task is born in, with `CLONE_INTO_CGROUP` (Linux 5.7).
    pub(crate) into: bool,
    /// The v1 `tasks` files that init, while it has a single thread, writes `0` to.
    pub(crate) enter: Vec<PathBuf>,
    /// Where the controllers of v1 that the task is in are; those that are mounted together have the same directory.
    pub(crate) v1: BTreeMap<String, PathBuf>,
    /// The v2 cgroups that hand controllers down to the task's: from the highest that may be managed to the parent.
    pub(super) levels: Vec<PathBuf>,
    /// How the limits are spelled in files; `None` where none can be set.
    pub(crate) terms: Option<Terms>,
    /// Why no limits can be set on this host.
    pub(super) unlimited: Option<String>,
    /// The limits that were last set.
    pub(super) limits: Limits,
    /// Those that the task was born with.
    pub(super) born: Limits,
    /// Files and lines that the kernel refused.
    pub(super) refused: Vec<(String, String)>,
    /// The limits that this host cannot set, and why.
    pub(super) missing: Vec<Reason>,
    /// What was counted before the task was born, to find out later whose memory ran out.
    pub(super) before: Baseline,
    /// Where the task has a reservation.
    pub(super) reservation: Option<Site>,
    /// v1: where other tasks may have one.
    pub(super) share: Option<Site>,
}

impl Paths {
    /// Whether there is a cgroup that holds every process of the task.
    pub fn has_unit(&self) -> bool {
        self.unit.is_some()
    }

    /// v1: the `tasks` file of the shared cpuset, which the task enters if processors are reserved.
    pub(crate) fn share_tasks(&self) -> Option<PathBuf> {
        Some(self.share.as_ref()?.share().join("tasks"))
    }
}

impl Group {
    /// Makes the cgroups and writes the limits. Adds to `report` what the kernel refused or changed of them.
    ///
    /// Any number of groups may be made and removed at once below one parent, by any number of processes. A leaf
    /// of the same name is taken for a stale one: its processes are killed and it is removed. So names must be unique
    /// among living tasks.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the call as [`Cgroups::calls`] prints it. Everything that was made is removed. The cause
    /// is `ResourceBusy` if processors cannot be had, and says who has them.
    pub fn create(cgroups: &Cgroups, report: &mut Report) -> Result<Group> {
        // A failure drops the group, which removes what it has made.
        let mut group = Group::new(cgroups);
        let kernel = Kernel::real();
        cgroups.steps.iter().try_for_each(|step| step.run(&kernel, &mut group, report))?;
        group.start_counting();
        Ok(group)
    }

    /// A group of which nothing is made yet.
    pub(crate) fn new(cgroups: &Cgroups) -> Group {
        Group::of(cgroups.paths.clone(), None, None)
    }

    /// A group to record calls with, which removes nothing.
    fn recorded(paths: Paths) -> Group {
        let mut group = Group::of(paths, None, None);
        group.keep = true;
        group
    }

    /// Remembers what the kernel has counted so far, once everything is made.
    pub(crate) fn start_counting(&mut self) {
        self.paths.before = Baseline::take(self.counters().as_ref());
    }

    fn of(paths: Paths, unit: Option<Locked>, memory: Option<OwnedFd>) -> Group {
        let (killed, timeout) = (Tally::default(), TIMEOUT);
        Group { paths, unit, memory, killed, owner: None, keep: false, timeout }
    }

    /// Finds a group again that [`into_paths`](Self::into_paths) let go of.
    ///
    /// # Errors
    /// [`Error::Task`] if it does not exist any more, or another process keeps the reservations locked.
    pub fn reopen(paths: Paths) -> Result<Group> {
        let open = |path: &PathBuf| open_dir(path).map_err(Error::task(call::open_dir(path)));
        let unit = paths.unit.as_ref().map(|path| hold_locked(&Kernel::real(), path)).transpose();
        let unit = unit.map_err(Error::of_task)?.flatten();
        let apart = paths.v1.get("memory").filter(|path| Some(*path) != paths.unit.as_ref());
        let memory = apart.map(open).transpose()?;
        let own = paths.reservation.as_ref().and_then(|site| {
            paths.leaves.iter().find(|leaf| leaf.starts_with(&site.parent)).map(|leaf| (site, leaf))
        });
        let owner = own.map(|(site, leaf)| super::reserve::own_again(site, leaf)).transpose();
        let owner = owner.map_err(Error::of_task)?.flatten();
        let mut group = Group::of(paths, unit, memory);
        group.owner = owner;
        Ok(group)
    }

    /// Lets go of the group: nothing is killed or removed when the handle is dropped. Without an owner and without
    /// processes the group is stale: another task may take its reserved processors. So a group without processes is
    /// handed over by reopening it before the first handle is let go of.
    pub fn into_paths(mut self) -> Paths {
        self.keep = true;
        std::mem::take(&mut self.paths)
    }

    /// What it takes to find the group again.
    pub fn paths(&self) -> &Paths {
        &self.paths
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
        let share = self.paths.share_tasks().filter(|tasks| tasks.exists());
        let files = self.paths.enter.iter().chain(&share);
        let open = |file: &PathBuf| {
            let opened = OpenOptions::new().write(true).open(file);
            opened.map(OwnedFd::from).map_err(Error::prepare(call::open_write(file)))
        };
        files.map(open).collect()
    }

    /// Puts a running process into all of the group's cgroups. Slow, see [`enter_fds`](Self::enter_fds): for
    /// kernels without `CLONE_INTO_CGROUP`.
    ///
    /// # Errors
    /// [`Error::Task`] with the call.
    pub fn add(&self, pid: u32) -> Result<()> {
        let text = pid.to_string();
        let share = self.paths.share.as_ref();
        let entered = share.filter(|_| self.owner.is_some()).map(Site::share);
        for dir in self.paths.leaves.iter().chain(&entered) {
            let file = dir.join("cgroup.procs");
            let opened = OpenOptions::new().write(true).open(&file);
            let mut procs = opened.map_err(Error::task(call::open_write(&file)))?;
            procs.write_all(text.as_bytes()).map_err(Error::task(call::write(&file, &text)))?;
        }
        // A reservation that came after the group was made has not seen this process.
        match share.filter(|_| entered.is_none()) {
            Some(site) => look_again(site).map_err(Error::of_task),
            None => Ok(()),
        }
    }

    /// Sends SIGKILL to every process in the group, those included that are being forked. With `cgroup.kill` it
    /// returns at once; without, when all are gone or after 5 seconds.
    ///
    /// No process can be born in the group afterwards: kernels since 6.14, and stable ones since February 2025, kill
    /// what is born by `CLONE_INTO_CGROUP` in a cgroup that was killed another number of times than the caller's own.
    ///
    /// # Errors
    /// `Unsupported` if the group has no cgroup to find them in; `TimedOut`; the kernel's answer.
    pub fn kill(&self) -> io::Result<()> {
        kill_all(self.unit()?, self.timeout)
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

    /// Waits until the last process has gone; false if that takes longer than `timeout`. The counters are final
    /// then, and must be read before [`remove`](Self::remove).
    ///
    /// # Errors
    /// As [`kill`](Self::kill).
    pub fn wait_empty(&self, timeout: Duration) -> io::Result<bool> {
        let mut backoff = Backoff::new(timeout);
        while self.populated()? {
            if !backoff.pause() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Kills every process and waits until all are gone. What cannot be killed shows when the group cannot be removed.
    pub(crate) fn kill_and_wait(&self, kernel: &Kernel) {
        let Some(unit) = &self.paths.unit else { return };
        let line = || format!("{} # and until it is empty", call::write(&unit.join("cgroup.kill"), "1"));
        let _ = kernel.call(line, (), || self.kill().and_then(|()| self.wait_empty(self.timeout)).map(drop));
    }

    /// Removes the cgroups, and the parents if they are the crate's own or made by this group, and empty.
    ///
    /// Waits up to 5 seconds for processes to be gone, but kills none: see [`kill`](Self::kill). Everything is
    /// tried. Calling it again after a failure goes on with what is left, and that waits half a second only.
    ///
    /// # Errors
    /// [`Error::Task`] with every directory that could not be removed; `EBUSY` if processes live on.
    pub fn remove(&mut self) -> Result<()> {
        self.remove_with(&Kernel::real())
    }

    /// As [`remove`](Self::remove), or records the calls.
    pub(crate) fn remove_with(&mut self, kernel: &Kernel) -> Result<()> {
        let (mut steps, mut cause) = (Vec::new(), None);
        let (start, leaves) = (Instant::now(), std::mem::take(&mut self.paths.leaves));
        for leaf in leaves.into_iter().rev() {
            let left = self.timeout.saturating_sub(start.elapsed()).max(LEAST);
            let removed = kernel.call(|| call::rmdir(&leaf), (), || remove_tree(&leaf, left));
            if let Err(Error::Prepare { step, source }) = removed {
                steps.push(step);
                cause.get_or_insert(source);
                self.paths.leaves.insert(0, leaf);
            }
        }
        if let Some(e) = cause {
            self.timeout = TIMEOUT_AGAIN;
            return Err(Error::task::<io::Error>(steps.join(", "))(e));
        }
        self.owner = None;
        if let Some(site) = &self.paths.reservation {
            leave(kernel, site, &mut self.paths.parents)?;
            self.paths.reservation = None;
        }
        // The task was moved there when another one reserved processors; the last one removes it.
        let shared = |site: &&Site| !kernel.records() && site.share().exists();
        if let Some(site) = self.paths.share.as_ref().filter(shared) {
            leave(kernel, site, &mut site.own.clone())?;
        }
        while let Some(parent) = self.paths.parents.pop() {
            // Most often another task is in it, and removes it later.
            let line = || format!("{} # if no other task is in it", call::rmdir(&parent));
            let _ = kernel.call(line, (), || remove_dir(&parent));
        }
        Ok(())
    }

    pub(super) fn unit(&self) -> io::Result<BorrowedFd<'_>> {
        self.unit.as_ref().map(AsFd::as_fd).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// The cgroup that has all processes.
    pub(super) fn unit_dir(&self) -> Option<Dir<'_>> {
        let path = self.paths.unit.as_ref()?;
        Some(Dir::new(path, Some(self.unit.as_ref()?.as_fd())))
    }

    /// The counters of the cgroups above from before the task.
    pub(super) fn before(&self) -> &Baseline {
        &self.paths.before
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.killed
    }

    /// Where the group's memory is accounted.
    pub(super) fn counters(&self) -> Option<Counters<'_>> {
        self.v1("memory").map(Counters::V1).or_else(|| self.tree().map(Counters::V2))
    }

    /// The task's v2 cgroup.
    pub(super) fn tree(&self) -> Option<Dir<'_>> {
        let path = self.paths.unit.as_ref().filter(|_| self.paths.into)?;
        Some(Dir::new(path, self.unit.as_ref().map(AsFd::as_fd)))
    }

    /// The task's cgroup in the v1 hierarchy of `controller`, if it is in one.
    pub(super) fn v1(&self, controller: &str) -> Option<Dir<'_>> {
        let path = self.paths.v1.get(controller)?;
        let unit = self.unit.as_ref().filter(|_| self.paths.unit.as_ref() == Some(path));
        let memory = self.memory.as_ref().filter(|_| self.paths.v1.get("memory") == Some(path));
        Some(Dir::new(path, unit.map(AsFd::as_fd).or(memory.map(AsFd::as_fd))))
    }

    /// The task's cgroups in all v1 hierarchies; one of several controllers that are mounted together comes once for
    /// each.
    pub(super) fn v1_dirs(&self) -> impl Iterator<Item = Dir<'_>> {
        self.paths.v1.keys().filter_map(|controller| self.v1(controller))
    }

    /// Looks again, after the birth of the task, whether processors were reserved meanwhile.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the call; `ResourceBusy` if no unreserved processor is left.
    pub(crate) fn check_reservations(&self, share: &JoinShare) -> Result<()> {
        if self.owner.is_none() { look_again(&share.site) } else { Ok(()) }
    }

    /// Makes all directories of one hierarchy. A task that removes a shared parent at the same time makes it begin
    /// again; once the first leaf exists, its parents stay.
    fn make_dirs(&mut self, kernel: &Kernel, dirs: &[NewDir]) -> Result<()> {
        let mut races = 0u32;
        let mut at = 0usize;
        while let Some(dir) = dirs.get(at) {
            match self.make_dir(kernel, dir) {
                Err(Error::Prepare { source, .. }) if at > 0 && is_gone(&source) && races < RACES => {
                    races = races.saturating_add(1);
                    at = 0;
                    std::thread::yield_now();
                }
                made => {
                    made?;
                    at = at.saturating_add(1);
                }
            }
        }
        Ok(())
    }

    fn make_dir(&mut self, kernel: &Kernel, dir: &NewDir) -> Result<()> {
        let path = &dir.path;
        let known = self.paths.leaves.contains(path) || self.paths.parents.contains(path);
        match dir.owner {
            DirOwner::Task if known => {}
            DirOwner::Task => {
                match fs::make_leaf(kernel, path) {
                    Err(Error::Prepare { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                        self.clear(path)?;
                        fs::make_leaf(kernel, path)?;
                    }
                    made => made?,
                }
                self.paths.leaves.push(path.clone());
            }
            DirOwner::Operator | DirOwner::Crate => {
                let new = fs::make_parent(kernel, path)?;
                if !known && (new || dir.owner == DirOwner::Crate) {
                    self.paths.parents.push(path.clone());
                }
            }
        }
        Ok(())
    }

    /// Makes the cgroup of a task with reserved processors; what of them cannot be used now.
    fn reserve(&mut self, kernel: &Kernel, reserve: &Reserve) -> Result<Option<Reason>> {
        let mut races = 0u32;
        loop {
            self.make_dirs(kernel, &reserve.parents)?;
            // From here on there may be something to give back.
            self.paths.reservation = Some(reserve.site.clone());
            match reserve.run(kernel, &mut self.paths.leaves) {
                Ok(Some(admitted)) => {
                    self.owner = Some(admitted.owner);
                    return Ok(admitted.unusable);
                }
                Ok(None) if races < RACES => {}
                Ok(None) => {
                    let step = call::open_dir(&reserve.site.parent);
                    return Err(Error::prepare::<io::Error>(step)(io::ErrorKind::NotFound.into()));
                }
                Err(Error::Prepare { source, .. })
                    if source.kind() == io::ErrorKind::AlreadyExists && races < RACES =>
                {
                    self.clear(&reserve.leaf)?;
                }
                Err(Error::Prepare { source, .. }) if is_gone(&source) && races < RACES => {}
                Err(e) => return Err(e),
            }
            races = races.saturating_add(1);
            std::thread::yield_now();
        }
    }

    fn join_share(&mut self, kernel: &Kernel, share: &JoinShare) -> Result<()> {
        self.owner = share.run(kernel)?;
        Ok(())
    }

    fn hold_unit(&mut self, kernel: &Kernel, path: &Path) -> Result<()> {
        self.unit = hold_locked(kernel, path)?;
        Ok(())
    }

    fn hold_memory(&mut self, kernel: &Kernel, path: &Path) -> Result<()> {
        self.memory = fs::hold(kernel, path)?;
        Ok(())
    }

    /// Remembers a line that the kernel refused.
    fn note_refused(&mut self, file: &Path, text: &str) {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.paths.refused.push((name, text.to_owned()));
    }

    /// Removes what an earlier task of the same name has left at `leaf`, if it exists.
    fn remove_stale(&self, kernel: &Kernel, leaf: &Path) -> Result<()> {
        match fs::hold_existing(kernel, leaf)? {
            Some(_) => self.clear(leaf),
            None => Ok(()),
        }
    }

    /// Kills the processes of a stale task and removes its leaf. The processes are killed in the unit first: in another
    /// hierarchy of v1 nothing keeps them from forking, or thaws them. A unit that this group has made is spared, since
    /// some kernels let nothing be born where there was a kill, see [`kill`](Self::kill).
    fn clear(&self, leaf: &Path) -> Result<()> {
        let unit = self.paths.unit.as_deref();
        let unit = unit.filter(|unit| *unit != leaf && !self.paths.leaves.iter().any(|made| made == unit));
        for path in unit.into_iter().chain([leaf]) {
            let dir = match open_dir(path) {
                Err(e) if is_gone(&e) => continue,
                dir => dir.map_err(Error::prepare(call::open_dir(path)))?,
            };
            kill_all(dir.as_fd(), TIMEOUT).map_err(Error::prepare(call::rmdir(path)))?;
        }
        remove_tree(leaf, TIMEOUT).map_err(Error::prepare(call::rmdir(leaf)))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Paths { leaves, parents, reservation, .. } = &self.paths;
        if self.keep || (leaves.is_empty() && parents.is_empty() && reservation.is_none()) {
            return;
        }
        // A failure has no one to be returned to; what is busy stays behind.
        if !self.paths.leaves.is_empty() {
            self.kill_and_wait(&Kernel::real());
        }
        let _ = self.remove();
    }
}
