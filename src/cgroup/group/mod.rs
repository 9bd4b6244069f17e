//! A task's cgroups: created by the steps of a plan, held by descriptor, killed and removed.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::AT_FDCWD;
use serde::{Deserialize, Serialize};

use super::fs::{
    Backoff, Dir, DirOwner, NewDir, call, is_gone, open_dir, pids, populated, remove_dir, remove_tree,
};
use super::limits::Limits;
use super::limits::row::Terms;
use super::reserve::{JoinShare, OwnerLock, Site, hold_locked, leave, look_again};
use crate::error::{Error, Result};
use crate::report::{Control, Reason, Report};
use crate::step::{Kernel, Step};
use crate::sys::fs::is_at;
use crate::sys::lock::Locked;
use baseline::{Baseline, Counters, Joined, Tally};
use kill::kill_all;

pub(super) mod baseline;
mod create;
pub(super) mod freeze;
pub(super) mod kill;
mod op;
mod parents;
mod rename;
mod stale;
mod update;

pub(crate) use op::CgroupOp;
pub(crate) use parents::KeptParents;

/// How long killing and removing may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// How long another attempt to remove may take after one has failed.
const TIMEOUT_AGAIN: Duration = Duration::from_millis(500);

/// Minimum share of the timeout for each leaf when several are removed.
const LEAST: Duration = Duration::from_millis(20);

/// The cgroups of one task as data: the steps that create them, and the record to find them again.
///
/// [`lower`](super::lower) makes this value and [`Group::create`] runs its steps. On a host without usable cgroups it
/// has no steps.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cgroups {
    #[serde(skip)]
    pub(crate) steps: Vec<Step<CgroupOp>>,
    pub(crate) paths: Paths,
    /// For a task without a reservation: keeps it off the CPUs that other tasks have reserved. The reservations are
    /// checked again after the start of the task ([`Group::check_reservations`]); on v2 that check does nothing.
    pub(crate) share: Option<JoinShare>,
    /// The counter of the task's CPU time, if [`Request::cpu_time`](super::Request::cpu_time) asks for it.
    pub(crate) cpu_time: Option<CpuCounter>,
}

/// A file that counts the CPU time of all processes of a cgroup. The first number in it is the CPU time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CpuCounter {
    pub file: PathBuf,
    /// Nanoseconds for each unit of the counter.
    pub unit: u32,
    /// Number of online CPUs.
    pub processors: u32,
}

impl Cgroups {
    /// Whether there are no steps.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The directories that belong to this task alone.
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

    /// A cgroup of its own for a process that joins the task, below the unit. It has no limits: those of the task apply
    /// to it too. Without a unit there are no steps.
    pub(crate) fn below(&self, name: &str) -> Cgroups {
        let unlimited = Some("the limits belong to the task that the process has joined".into());
        let joined = match self.paths.v1.get("memory") {
            Some(v1) => Some(Joined::V1(v1.clone())),
            None => self.paths.unit.clone().filter(|_| self.paths.into).map(Joined::V2),
        };
        let own = Paths { enter: self.paths.enter.clone(), unlimited, joined, ..Paths::default() };
        let Some(unit) = &self.paths.unit else {
            return Cgroups { steps: Vec::new(), paths: own, share: self.share.clone(), cpu_time: None };
        };
        let leaf = unit.join(name);
        let moved = |tasks: PathBuf| if tasks.starts_with(unit) { leaf.join("tasks") } else { tasks };
        let enter = own.enter.into_iter().map(moved).collect();
        let dirs = vec![NewDir { path: leaf.clone(), owner: DirOwner::Task }];
        let steps = [CgroupOp::Make(dirs), CgroupOp::Hold { unit: leaf.clone(), reserved: false }];
        Cgroups {
            steps: steps.map(|op| Step::of(Control::KILL, op)).into(),
            paths: Paths { unit: Some(leaf), into: self.paths.into, enter, ..own },
            share: self.share.clone(),
            cpu_time: None,
        }
    }

    /// The system calls that kill and remove what `steps` have created, in the format of [`calls`](Self::calls).
    pub(crate) fn undo_calls(steps: &[&CgroupOp], paths: &Paths) -> Vec<String> {
        let mut group = Group::recorded(paths.clone());
        for op in steps {
            // A recording kernel refuses no call.
            let _ = op.run(Control::empty(), &Kernel::recorder(), &mut group, &mut Report::default());
        }
        let kernel = Kernel::recorder();
        group.kill_and_wait(&kernel);
        let _ = group.remove_with(&kernel);
        kernel.into_lines()
    }

    /// The system calls of [`Group::create`], in order and in strace's format, on a host where no task has run yet. A
    /// line with `# if` is a call that is made only under that condition.
    pub fn calls(&self) -> Vec<String> {
        self.steps.iter().flat_map(|step| step.op.calls()).collect()
    }
}

/// The cgroups of one task.
///
/// Dropping a group kills every process in its cgroups and removes them. That can take some milliseconds, and at most a
/// few seconds if processes do not die. [`remove`](Self::remove) reports errors, but kills no process: call
/// [`kill`](Self::kill) first.
#[derive(Debug)]
pub struct Group {
    pub(super) paths: Paths,
    unit: Option<Locked>,
    /// The v1 memory cgroup, if it is not the unit.
    memory: Option<OwnedFd>,
    /// The OOM kill count, which remains after the cgroup is removed.
    killed: Tally,
    /// The owner lock on the cgroup with the reservation, or on the v1 shared cpuset that the task enters.
    owner: Option<OwnerLock>,
    keep: bool,
    timeout: Duration,
    /// Whether the record may have other limits than the kernel: it was opened again, and not updated since.
    reopened: bool,
}

/// A record to find a group again, in another process or after a restart. It can be serialised and stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    pub(super) leaves: Vec<PathBuf>,
    /// Directories to remove when they are empty; children after their parents.
    pub(super) parents: Vec<PathBuf>,
    /// The unit cgroup, in which all processes of the task are found and killed: the v2 cgroup, else that of the v1
    /// freezer.
    pub(crate) unit: Option<PathBuf>,
    /// Whether the unit is a v2 cgroup, in which the first process is created (`CLONE_INTO_CGROUP`, Linux 5.7).
    pub(crate) into: bool,
    /// The v1 `tasks` files. Init writes `0` to each while it has a single thread.
    pub(crate) enter: Vec<PathBuf>,
    /// The task's cgroup in the v1 hierarchy of each controller. Controllers that are mounted together have the same
    /// directory.
    pub(crate) v1: BTreeMap<String, PathBuf>,
    /// The v2 cgroups that enable controllers for the task's cgroup: from the highest that may be managed down to the
    /// parent.
    pub(super) levels: Vec<PathBuf>,
    /// The directories in each v1 hierarchy in which this task has no cgroup, parents before their children. An earlier
    /// task of that name may have left its cgroup there.
    #[serde(skip)]
    pub(super) elsewhere: Vec<Vec<NewDir>>,
    /// How limits are written to control files on this host; `None` if no limits can be set.
    pub(crate) terms: Option<Terms>,
    /// Why no limits can be set on this host.
    pub(super) unlimited: Option<String>,
    /// The limits that were last set.
    pub(super) limits: Limits,
    /// The limits that the task was started with.
    pub(super) born: Limits,
    /// The control files and lines that the kernel refused.
    pub(super) refused: Vec<(String, String)>,
    /// The limits that this host cannot set, and why.
    pub(super) missing: Vec<Reason>,
    /// The memory counters from before the task was started. The difference shows later which cgroup ran out of memory.
    pub(super) before: Baseline,
    /// The cgroup that accounts the memory, if it is that of a task that the process has joined.
    #[serde(default)]
    pub(super) joined: Option<Joined>,
    /// The directories ([`Site`]) of the task's reservation, if it has one.
    pub(super) reservation: Option<Site>,
    /// v1: the directories in which other tasks may have a reservation, if this task has none.
    pub(super) share: Option<Site>,
}

impl Paths {
    /// Whether the task has a unit cgroup, in which all its processes are found.
    pub fn has_unit(&self) -> bool {
        self.unit.is_some()
    }

    /// v1: the `tasks` file of the shared cpuset, which the task enters if any CPU is reserved.
    pub(crate) fn share_tasks(&self) -> Option<PathBuf> {
        Some(self.share.as_ref()?.share().join("tasks"))
    }
}

impl Group {
    /// Creates the cgroups and writes the limits. Adds to `report` each limit that the kernel refused or changed.
    ///
    /// Any number of processes may create and remove groups below one parent at the same time. An existing leaf of the
    /// same name whose owner lives is refused. Without an owner it is stale: its processes are killed and it is
    /// removed.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the call as [`Cgroups::calls`] prints it. Everything that was created is removed. The
    /// cause is `ResourceBusy` if the owner of a leaf of that name lives, or if CPUs cannot be reserved or shared; its
    /// message names the tasks that hold or need them.
    pub fn create(cgroups: &Cgroups, report: &mut Report) -> Result<Group> {
        // On failure the group is dropped, which removes everything that it has created.
        let mut group = Group::new(cgroups);
        let kernel = Kernel::real();
        cgroups.steps.iter().try_for_each(|step| step.run(&kernel, &mut group, report))?;
        group.start_counting();
        Ok(group)
    }

    /// A group before its first step.
    pub(crate) fn new(cgroups: &Cgroups) -> Group {
        Group::of(cgroups.paths.clone(), None, None)
    }

    /// A group for recording calls. Dropping it removes nothing.
    fn recorded(paths: Paths) -> Group {
        let mut group = Group::of(paths, None, None);
        group.keep = true;
        group
    }

    /// Reads the memory counters as the baseline, after all steps have run.
    pub(crate) fn start_counting(&mut self) {
        self.paths.before = Baseline::take(self.counters().as_ref(), self.paths.joined.is_some());
    }

    fn of(paths: Paths, unit: Option<Locked>, memory: Option<OwnedFd>) -> Group {
        let (killed, timeout) = (Tally::default(), TIMEOUT);
        Group { paths, unit, memory, killed, owner: None, keep: false, timeout, reopened: false }
    }

    /// Opens a group again from the record that [`into_paths`](Self::into_paths) returned.
    ///
    /// # Errors
    /// [`Error::Task`] if the group does not exist any more, or another process keeps the CPU reservations locked.
    pub fn reopen(paths: Paths) -> Result<Group> {
        let open = |path: &PathBuf| open_dir(path).map_err(Error::task(call::open_dir(path)));
        let unit = paths.unit.as_ref().map(|path| hold_locked(&Kernel::real(), path)).transpose();
        let unit = unit.map_err(Error::of_task)?.flatten();
        if let (Some(unit), Some(path)) = (&unit, &paths.unit)
            && !is_at(unit.as_fd(), AT_FDCWD, path).map_err(Error::task(call::open_dir(path)))?
        {
            // It was removed before it was locked. Another task may have its name.
            return Err(Error::task(call::open_dir(path))(io::Error::from(io::ErrorKind::NotFound)));
        }
        let apart = paths.v1.get("memory").filter(|path| Some(*path) != paths.unit.as_ref());
        let memory = match apart.map(open).transpose() {
            // A removal of the group was interrupted: the unit is removed last.
            Err(Error::Task { source, .. }) if unit.is_some() && is_gone(&source) => None,
            opened => opened?,
        };
        let own = paths.reservation.as_ref().and_then(|site| {
            paths.leaves.iter().find(|leaf| leaf.starts_with(&site.parent)).map(|leaf| (site, leaf))
        });
        let owner = own.map(|(site, leaf)| super::reserve::own_again(site, leaf)).transpose();
        let owner = owner.map_err(Error::of_task)?.flatten();
        let mut group = Group::of(paths, unit, memory);
        group.owner = owner;
        group.reopened = true;
        Ok(group)
    }

    /// Releases the group: its cgroups and processes stay.
    ///
    /// Without an owner and without processes a group is stale, and another task may take its reserved CPUs. To hand
    /// over a group without processes, reopen it before releasing the first handle.
    pub fn into_paths(mut self) -> Paths {
        self.keep = true;
        std::mem::take(&mut self.paths)
    }

    /// The record to find the group again.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Inode number of the unit cgroup, which no later cgroup has until the next boot. `None` without a unit.
    pub(crate) fn identity(&self) -> io::Result<Option<u64>> {
        let inode = |unit: &Locked| nix::sys::stat::fstat(unit).map(|st| st.st_ino);
        Ok(self.unit.as_ref().map(inode).transpose()?)
    }

    /// The v2 cgroup for `CLONE_INTO_CGROUP`, if the task has one.
    pub fn into_fd(&self) -> Option<BorrowedFd<'_>> {
        self.unit.as_ref().filter(|_| self.paths.into).map(AsFd::as_fd)
    }

    /// The v1 `tasks` files, opened for writing and close-on-exec. A process with a single thread enters the cgroups by
    /// writing `0` to each.
    ///
    /// This is 20 times as fast as [`add`](Self::add): when another process writes the id, the kernel waits for an RCU
    /// grace period.
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

    /// Moves a running process into all cgroups of the group, for kernels without `CLONE_INTO_CGROUP`. Slow, see
    /// [`enter_fds`](Self::enter_fds).
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
        self.entered()
    }

    /// Checks whether another task has reserved CPUs since the group was created. If so, moves the processes of this
    /// group off them, into the shared cpuset. Call this after each process that enters through
    /// [`into_fd`](Self::into_fd) or [`enter_fds`](Self::enter_fds). On v2, and on v1 while no CPU is reserved, it does
    /// nothing.
    ///
    /// # Errors
    /// [`Error::Task`] with the call; `ResourceBusy` if all CPUs are reserved.
    pub fn entered(&self) -> Result<()> {
        match self.paths.share.as_ref().filter(|_| self.owner.is_none()) {
            Some(site) => look_again(site).map_err(Error::of_task),
            None => Ok(()),
        }
    }

    /// Sends SIGKILL to every process in the group, including processes that are being forked. With `cgroup.kill`
    /// (Linux 5.14) it returns at once. Without, it returns when all processes are gone, or after 5 seconds.
    ///
    /// Start no process in the group afterwards. Linux 6.14, and stable kernels since February 2025, kill a process
    /// created with `CLONE_INTO_CGROUP` if the target cgroup was killed a different number of times than the caller's
    /// cgroup.
    ///
    /// # Errors
    /// `Unsupported` if the group has no unit cgroup to find its processes in; `TimedOut` after 5 seconds; otherwise
    /// the kernel's error.
    pub fn kill(&self) -> io::Result<()> {
        kill_all(self.unit()?, self.timeout)
    }

    /// The processes in the group, as ids of the caller's PID namespace; 0 for a process outside that namespace.
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

    /// Waits until the group has no processes. Returns false if that takes longer than `timeout`. The counters are
    /// final then; read them before [`remove`](Self::remove).
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

    /// Kills every process and waits until all are gone. Errors are ignored: a group with processes left cannot be
    /// removed, and removing it reports that.
    pub(crate) fn kill_and_wait(&self, kernel: &Kernel) {
        let Some(unit) = &self.paths.unit else { return };
        let line = || {
            format!("{} # then wait until the cgroup is empty", call::write(&unit.join("cgroup.kill"), "1"))
        };
        let _ = kernel.call(line, (), || self.kill().and_then(|()| self.wait_empty(self.timeout)).map(drop));
    }

    /// Removes the cgroups. Also removes each parent that is empty and was created by the crate, unless a
    /// [`Sandbox`](crate::Sandbox) with prepared mounts keeps it for its next task. Before Linux 5.7, only
    /// the group that created a parent for the operator removes it.
    ///
    /// Waits up to 5 seconds for processes to exit, but kills none: see [`kill`](Self::kill). A failure does not stop
    /// the removal of the other cgroups, except that of the unit. Another call tries the remaining ones again, and waits up
    /// to half a second.
    ///
    /// # Errors
    /// [`Error::Task`] with every directory that could not be removed; `EBUSY` if processes are left.
    pub fn remove(&mut self) -> Result<()> {
        self.remove_with(&Kernel::real())
    }

    /// As [`remove`](Self::remove), or only records the calls.
    pub(crate) fn remove_with(&mut self, kernel: &Kernel) -> Result<()> {
        let (mut steps, mut cause) = (Vec::new(), None);
        let (start, leaves) = (Instant::now(), std::mem::take(&mut self.paths.leaves));
        for leaf in leaves.into_iter().rev() {
            if cause.is_some() && Some(&leaf) == self.paths.unit.as_ref() {
                // By the unit another process finds what is left.
                steps.push(call::rmdir(&leaf));
                self.paths.leaves.insert(0, leaf);
                continue;
            }
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
        // If another task had reserved CPUs, this task was in the shared cpuset. The last task removes it.
        let shared = |site: &&Site| !kernel.records() && site.share().exists();
        if let Some(site) = self.paths.share.as_ref().filter(shared) {
            leave(kernel, site, &mut site.own.clone())?;
        }
        while let Some(parent) = self.paths.parents.pop() {
            if !kernel.records() && parents::is_kept(&parent) {
                continue;
            }
            // Usually another task is still in this directory, and removes it later.
            let line = || format!("{} # if no other task is in it", call::rmdir(&parent));
            let _ = kernel.call(line, (), || remove_dir(&parent));
        }
        Ok(())
    }

    /// Keeps the parents of the task's cgroups when this group is removed, until `kept` is dropped.
    pub(crate) fn keep_parents(&self, kept: &mut KeptParents) {
        kept.keep(&self.paths.parents);
    }

    pub(super) fn unit(&self) -> io::Result<BorrowedFd<'_>> {
        let none =
            || io::Error::new(io::ErrorKind::Unsupported, "the task has no cgroup with all of its processes");
        self.unit.as_ref().map(AsFd::as_fd).ok_or_else(none)
    }

    /// The unit cgroup.
    pub(super) fn unit_dir(&self) -> Option<Dir<'_>> {
        let path = self.paths.unit.as_ref()?;
        Some(Dir::new(path, Some(self.unit.as_ref()?.as_fd())))
    }

    /// The memory counters from before the task was started.
    pub(super) fn before(&self) -> &Baseline {
        &self.paths.before
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.killed
    }

    /// The cgroup in which the group's memory is accounted.
    pub(super) fn counters(&self) -> Option<Counters<'_>> {
        if let Some(joined) = &self.paths.joined {
            return Some(joined.counters());
        }
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

    /// The task's cgroups in all v1 hierarchies. A hierarchy with several controllers appears once for each controller.
    pub(super) fn v1_dirs(&self) -> impl Iterator<Item = Dir<'_>> {
        self.paths.v1.keys().filter_map(|controller| self.v1(controller))
    }

    /// Checks, after the start of the task, whether CPUs were reserved meanwhile.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the call; `ResourceBusy` if no CPU is unreserved.
    pub(crate) fn check_reservations(&self, share: &JoinShare) -> Result<()> {
        if self.owner.is_none() { look_again(&share.site) } else { Ok(()) }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Paths { leaves, parents, reservation, .. } = &self.paths;
        if self.keep || (leaves.is_empty() && parents.is_empty() && reservation.is_none()) {
            return;
        }
        // There is no caller to return an error to. Busy cgroups are left in place.
        if !self.paths.leaves.is_empty() {
            self.kill_and_wait(&Kernel::real());
        }
        let _ = self.remove();
    }
}
