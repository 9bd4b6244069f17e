//! Sandboxes without an owner: found by their cgroups, temporary roots and exit records, and removed.
//!
//! Whether an owner lives is asked of the kernel's locks, never of a PID. The locks are held from the moment a sandbox
//! is found stale until everything of it is removed, so no process recovers it meanwhile.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::owned::Owned;
use super::record::{self, RecordFile, lock_cgroup};
use super::undo::both;
use super::writer;
use crate::cgroup::{CgroupName, Group, is_own};
use crate::error::{Error, Result};
use crate::host::{Host, temp_dir};
use crate::rootfs::populate::{OwnedRoot, StaleRoot};
use crate::spec::Policy;
use crate::step::Kernel;
use crate::sys;
use crate::sys::lock::Locked;

/// What a killed driver has left of a sandbox: cgroups, processes, temporary root, exit record and log.
///
/// A sandbox is stale if no process has it: the kernel's locks on its cgroup, its temporary root and its exit record are
/// free. **So a task that runs is stale too if its driver was killed or has [detached](crate::Task::detach) it, until a
/// process [recovers](crate::Sandbox::recover) it, and [`remove`](Self::remove) kills it.** A driver claims the ids of
/// all handles that it has stored.
///
/// Only the [`cgroup_parent`](Policy::cgroup_parent), the [`temp_dir`](Policy::temp_dir) and the
/// [`state_dir`](Policy::state_dir) of the policy are searched, for what the caller's user has made. Drivers that share
/// one of these directories must share the other two as well, and claim each other's ids.
///
/// Call this at the start of a driver, after it has recovered its tasks. A [`Pruner`](crate::Pruner) does it at an interval.
///
/// ```no_run
/// use cofferdam::cgroup::CgroupPath;
/// use cofferdam::{Host, Policy, StaleSandbox};
///
/// // Directories and a cgroup that no other driver has.
/// let policy = Policy {
///     state_dir: Some("/var/lib/driver/tasks".into()),
///     temp_dir: Some("/var/lib/driver/roots".into()),
///     cgroup_parent: CgroupPath::new("driver.slice")?,
///     ..Policy::default()
/// };
/// let stored = ["job-7", "job-8"];
/// let claimed = |id: &str| stored.contains(&id);
/// for stale in StaleSandbox::find(&policy, &Host::probe()?, StaleSandbox::GRACE, claimed)? {
///     println!("{stale}");
///     stale.remove()?; // a dry run leaves this out
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct StaleSandbox {
    id: String,
    places: Places,
    traces: Traces,
}

/// Where a policy has sandboxes.
#[derive(Clone)]
pub(super) struct Places {
    policy: Policy,
    host: Host,
    temp_dir: PathBuf,
    /// What was changed later is not stale.
    before: SystemTime,
}

/// What was found of one sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Traces {
    cgroups: Vec<PathBuf>,
    /// Inode number of the unit cgroup.
    unit: Option<u64>,
    root: Option<(PathBuf, (u64, u64))>,
    mounts: Vec<PathBuf>,
    record: Option<(PathBuf, super::record::Mark)>,
    made: SystemTime,
    processes: BTreeSet<i32>,
}

/// What is left of one sandbox, locked. Dropping it unlocks and removes nothing.
pub(super) struct Held {
    record: Option<RecordFile>,
    group: Option<Group>,
    root: Option<StaleRoot>,
    /// Keeps other processes from recovering a task that has no exit record.
    _claim: Option<Locked>,
}

impl StaleSandbox {
    /// The default grace of `cofferdam prune`.
    pub const GRACE: Duration = Duration::from_secs(30);

    /// The shortest grace: many times what a spawn needs from making a directory to locking it.
    const CREATION: Duration = Duration::from_secs(5);

    /// Finds the stale sandboxes of a policy, in the order of their ids. Changes nothing.
    ///
    /// A sandbox that `claimed` returns true for, by its id, is left out and is not even looked at. So is one that was
    /// made less than `grace` ago; a grace below 5 seconds counts as 5 seconds, because a sandbox that is being made has
    /// directories that are not locked yet. Without a temporary root and an exit record, a sandbox is found by its cgroup:
    /// in the v2 tree or, on a host without one, in the hierarchy of the v1 freezer, below a parent that the crate has made.
    /// Without a cgroup, the process that writes the exit record is known by its lock on that file, and killed with its
    /// descendants.
    ///
    /// A stale sandbox is locked while it is looked at. A recovery or a spawn of the same id at this moment fails with
    /// `ResourceBusy`, so claim an id before recovering it.
    ///
    /// # Errors
    /// [`Error::Spec`] if `temp_dir` or `state_dir` is not an absolute path. [`Error::Task`] if a directory of the policy
    /// cannot be read. One that does not exist has nothing stale.
    pub fn find(
        policy: &Policy,
        host: &Host,
        grace: Duration,
        claimed: impl Fn(&str) -> bool,
    ) -> Result<Vec<StaleSandbox>> {
        policy.check_dirs()?;
        let before =
            SystemTime::now().checked_sub(grace.max(Self::CREATION)).unwrap_or(SystemTime::UNIX_EPOCH);
        let places = Places::of(policy, host, before);
        let mut found = Vec::new();
        for id in places.names()?.into_iter().filter(|id| !claimed(id)) {
            // What cannot be looked at is not known to be stale.
            if let Ok(Some(held)) = places.hold(&id)
                && let Ok(traces) = held.traces()
            {
                found.push(StaleSandbox { id, places: places.clone(), traces });
            }
        }
        Ok(found)
    }

    /// The sandbox's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The cgroups that belong to it alone.
    pub fn cgroups(&self) -> &[PathBuf] {
        &self.traces.cgroups
    }

    /// The private directory with its temporary root.
    pub fn temp_root(&self) -> Option<&Path> {
        self.traces.root.as_ref().map(|(path, _)| path.as_path())
    }

    /// The file of its exit record.
    pub fn exit_record(&self) -> Option<&Path> {
        self.traces.record.as_ref().map(|(path, _)| path.as_path())
    }

    /// The mounts in the caller's mount namespace at the temporary root or below it. The crate makes none there, and
    /// [`remove`](Self::remove) refuses a sandbox with one.
    pub fn mounts(&self) -> &[PathBuf] {
        &self.traces.mounts
    }

    /// The number of its processes. They are killed with it.
    pub fn processes(&self) -> usize {
        self.traces.processes.len()
    }

    /// The time since its exit record or its temporary root was last changed, which [`find`](Self::find) judges by. Without
    /// both, the time since its cgroups were made, or less: the kernel may forget when that was.
    pub fn age(&self) -> Duration {
        self.traces.made.elapsed().unwrap_or_default()
    }

    /// Kills its processes, then removes its cgroups, its temporary root, its exit record and its log. Unmounts
    /// nothing. Succeeds if nothing of it exists any more.
    ///
    /// # Errors
    /// [`Error::Task`], and nothing is killed or removed, if something is mounted at its root (`EBUSY`), or if it is not
    /// the sandbox that was found any more (`ResourceBusy`): another process has recovered it or has made one of the same
    /// id. Otherwise with everything that could not be removed; another call tries the rest again.
    pub fn remove(&self) -> Result<()> {
        let busy = |why: &str| {
            let step = format!("remove the stale sandbox {:?}", self.id);
            Error::task::<io::Error>(step)(io::Error::new(io::ErrorKind::ResourceBusy, why))
        };
        let step = || format!("lock the stale sandbox {:?}", self.id);
        let Some(held) = self.places.hold(&self.id).map_err(Error::task(step()))? else {
            let gone = |path: &Path| !path.exists();
            let all =
                self.cgroups().iter().map(PathBuf::as_path).chain(self.temp_root()).chain(self.exit_record());
            return if all.into_iter().all(gone) {
                Ok(())
            } else {
                Err(busy("a process outside its cgroups uses it"))
            };
        };
        let now = held.traces().map_err(Error::task(step()))?;
        if let Some(mount) = now.mounts.first() {
            return Err(Error::task(format!("unlinkat({mount:?})"))(nix::errno::Errno::EBUSY));
        }
        if !now.is_of(&self.traces) {
            return Err(busy("another sandbox has its id"));
        }
        held.remove()
    }
}

impl std::fmt::Debug for StaleSandbox {
    /// Without the policy and the host.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("StaleSandbox");
        shown.field("id", &self.id).field("traces", &self.traces).finish_non_exhaustive()
    }
}

impl std::fmt::Display for StaleSandbox {
    /// One line: id, age, processes, and what there is of it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (age, n) = (self.age().as_secs(), self.processes());
        write!(f, "{}: {age}s old, {n} process{}", self.id, if n == 1 { "" } else { "es" })?;
        let kinds = [("cgroup", self.cgroups()), ("mounted", self.mounts())];
        for (kind, path) in kinds.iter().flat_map(|(kind, paths)| paths.iter().map(move |path| (kind, path)))
        {
            write!(f, ", {kind} {}", path.display())?;
        }
        let kinds = [("root", self.temp_root()), ("record", self.exit_record())];
        for (kind, path) in kinds.iter().filter_map(|(kind, path)| path.map(|path| (kind, path))) {
            write!(f, ", {kind} {}", path.display())?;
        }
        Ok(())
    }
}

impl Places {
    /// The places of a policy, without what was changed after `before`.
    pub(super) fn of(policy: &Policy, host: &Host, before: SystemTime) -> Places {
        Places { policy: policy.clone(), host: host.clone(), temp_dir: temp_dir(policy), before }
    }

    /// Opens what there is of a sandbox that may have an owner. Locks nothing.
    ///
    /// # Errors
    /// The refused call.
    pub(super) fn look(&self, id: &str) -> io::Result<Owned> {
        let record = self.policy.state_dir.as_ref().map(|dir| record::look(&dir.join(format!("{id}.exit"))));
        let record = record.transpose()?.flatten();
        let root = OwnedRoot::look(&self.temp_dir, id)?;
        let known = record.is_some() || root.is_some();
        let group = Group::owned(&self.host.cgroups, &self.policy.cgroup_parent, id, known)?;
        Ok(Owned { record, group, root })
    }

    /// Every id that has anything in these places, with an owner or without.
    fn names(&self) -> Result<BTreeSet<String>> {
        let refused = |dir: &Path| Error::task::<io::Error>(format!("read the directory {dir:?}"));
        let mut names = BTreeSet::new();
        let parent = &self.policy.cgroup_parent;
        names
            .extend(Group::names(&self.host.cgroups, parent).map_err(Error::task("read the parent cgroup"))?);
        names.extend(StaleRoot::names(&self.temp_dir).map_err(refused(&self.temp_dir))?);
        if let Some(dir) = &self.policy.state_dir {
            let found = sys::fs::names(dir).map_err(refused(dir))?;
            names.extend(found.iter().filter_map(|name| name.strip_suffix(".exit")).map(str::to_owned));
        }
        // No sandbox has another name.
        names.retain(|name| CgroupName::new(name).is_ok());
        Ok(names)
    }

    /// Locks everything that there is of a sandbox. `None` if there is nothing, or if a process that is not in its
    /// cgroups uses it: then it belongs to a parent cgroup that is not the policy's.
    ///
    /// # Errors
    /// `ResourceBusy` if it has an owner or is too young; otherwise the refused call.
    pub(super) fn hold(&self, id: &str) -> io::Result<Option<Held>> {
        let mut held = Held { record: None, group: None, root: None, _claim: None };
        if let Some(dir) = &self.policy.state_dir {
            held.record = RecordFile::claim_any(&dir.join(format!("{id}.exit")), self.before)?;
        }
        let known = held.record.is_some();
        held.root = StaleRoot::open(&self.temp_dir, id, known, self.before)?;
        let known = known || held.root.is_some();
        let parent = &self.policy.cgroup_parent;
        held.group = Group::stale(&self.host.cgroups, parent, id, known, self.before)?;
        if held.root.is_none() && held.group.is_some() {
            held.root = StaleRoot::open(&self.temp_dir, id, true, self.before)?;
        }
        if held.group.is_none() && held.root.is_none() && held.record.is_none() {
            return Ok(None);
        }
        held._claim = held.group.as_ref().map(lock_cgroup).transpose()?.flatten();
        let own = held.members()?;
        if own.contains(&std::process::id().cast_signed())
            || held.is_used_outside(id, &own, &self.host.cgroup_mounts())?
        {
            return Ok(None);
        }
        Ok(Some(held))
    }
}

impl Held {
    /// The processes: those in the cgroups or, without a cgroup, the one that writes the exit record and its descendants.
    fn members(&self) -> io::Result<BTreeSet<i32>> {
        match (&self.group, &self.record) {
            (Some(group), _) => group.members(),
            (None, Some(record)) => writer::members(record.file()),
            (None, None) => Ok(BTreeSet::new()),
        }
    }

    /// Whether a process that is not in `own` runs in the root or, if the cgroups of the sandbox were not found, in a cgroup
    /// of its name below one of the `mounts` that this user has made: below another parent than the policy's.
    fn is_used_outside(&self, id: &str, own: &BTreeSet<i32>, mounts: &[PathBuf]) -> io::Result<bool> {
        let root = self.root.as_ref().map(StaleRoot::process).transpose()?.flatten();
        if root.is_some_and(|pid| !own.contains(&pid)) {
            return Ok(true);
        }
        let writer = self.record.as_ref().map_or(Ok(None), RecordFile::writer_pid)?;
        if own.is_empty() && writer.is_some() {
            return Ok(true);
        }
        if self.group.is_some() {
            return Ok(false);
        }
        // With the parents that such a cgroup has, since the host has cgroups with names of its own (`/init.scope`).
        let names =
            [format!("/share.slice/{id}.scope"), format!("/reserve.slice/{id}.scope"), format!("/{id}")];
        let is_named = |pid: &i32| {
            // A process that has ended meanwhile has no file.
            let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let mut paths = text.lines().flat_map(|line| line.splitn(3, ':').nth(2));
            paths.any(|path| {
                let below_root =
                    |name: &String| format!("{path}/").find(&format!("{name}/")).is_some_and(|at| at > 0);
                let is_own = || mounts.iter().any(|mount| is_own(&mount.join(path.trim_start_matches('/'))));
                names.iter().any(below_root) && is_own()
            })
        };
        Ok(sys::proc_pids()?.iter().filter(|pid| !own.contains(pid)).any(is_named))
    }

    fn traces(&self) -> io::Result<Traces> {
        let root = self.root.as_ref().map(|root| Ok((root.path().to_owned(), root.id()?)));
        let files = [
            self.record.as_ref().map(RecordFile::made).transpose()?,
            self.root.as_ref().map(StaleRoot::made).transpose()?,
        ];
        let made = match files.into_iter().flatten().max() {
            None => self.group.as_ref().map(Group::made).transpose()?.flatten(),
            made => made,
        };
        Ok(Traces {
            cgroups: self.group.as_ref().map_or(Vec::new(), |group| group.leaves().to_vec()),
            unit: self.group.as_ref().map(Group::identity).transpose()?.flatten(),
            root: root.transpose().map_err(|e: io::Error| e)?,
            mounts: self.root.as_ref().map_or(Vec::new(), StaleRoot::mounts),
            record: self.record.as_ref().map(|record| (record.path().to_owned(), record.mark())),
            made: made.unwrap_or(SystemTime::UNIX_EPOCH),
            processes: self.members()?,
        })
    }

    /// Kills and removes everything. The record is removed last, and only if nothing else is left.
    pub(super) fn remove(mut self) -> Result<()> {
        let mut done = Ok(());
        if let Some(mut group) = self.group.take() {
            group.kill_and_wait(&Kernel::real());
            done = group.remove();
        } else if let Some(record) = &self.record {
            done = writer::kill(record.file());
        }
        // A process that could not be killed may use the root.
        if let (Ok(()), Some(root)) = (&done, &self.root) {
            done = both(done, root.remove());
        }
        if let (Ok(()), Some(record)) = (&done, &mut self.record) {
            done = record.remove();
        }
        done
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Else dropping it would remove the file.
        if let Some(record) = self.record.take() {
            record.leave();
        }
    }
}

impl Traces {
    /// Whether this is what is left of the sandbox that `before` was found of.
    fn is_of(&self, before: &Traces) -> bool {
        let same = |now: bool, equal: bool| !now || equal;
        same(self.unit.is_some(), self.unit == before.unit)
            && same(self.root.is_some(), self.root == before.root)
            && same(self.record.is_some(), self.record == before.record)
    }
}
