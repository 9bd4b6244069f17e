//! Operations on CPU reservations: reserve CPUs, join the shared set, exchange a reservation, give it back.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::lock::OwnerLock;
use super::locked::{Division, Holding, Reservations, has_processes};
use super::record::{self, Reserved, read_set, write_set};
use super::site::Site;
use crate::cgroup::detect::Version;
use crate::cgroup::fs::{
    NewDir, call, hold_existing, inherit, is_gone, make_parent, make_private_leaf, remove_dir, remove_tree,
};
use crate::cgroup::limits::write::enable;
use crate::cgroup::v1::cpuset::{make_share, move_tasks};
use crate::error::{Error, Result};
use crate::report::Reason;
use crate::step::Kernel;

/// Reserves CPUs and creates the cgroup that has the reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reserve {
    pub site: Site,
    /// The directories down to the site's parent, created before it is locked.
    pub parents: Vec<NewDir>,
    /// v2: the cgroups that need cpuset in `cgroup.subtree_control`, the highest first.
    pub enable: Vec<PathBuf>,
    /// v1: the cpuset files of the parents that must have a value before a process may enter.
    pub inherit: Vec<PathBuf>,
    /// The task's cgroup.
    pub leaf: PathBuf,
    pub reserved: Reserved,
}

/// Keeps a task without a reservation off the reserved CPUs. Does nothing while no CPU is reserved.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct JoinShare {
    pub site: Site,
    /// As in [`Reserve`].
    pub inherit: Vec<PathBuf>,
}

/// The result of a reservation.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub owner: OwnerLock,
    /// Why some of the reserved CPUs cannot be used now, or are not the task's alone.
    pub shortfalls: Vec<Reason>,
}

impl Reserve {
    /// Reserves the CPUs and creates the leaf, which is pushed to `leaves` as soon as it exists. Returns `None` if the
    /// parent's directory does not exist or was removed meanwhile.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the call; `ResourceBusy` if the CPUs cannot be reserved; `AlreadyExists` if a leaf of
    /// that name exists.
    pub fn run(&self, kernel: &Kernel, leaves: &mut Vec<PathBuf>) -> Result<Option<Admitted>> {
        let Some(locked) = Reservations::open(kernel, &self.site)? else { return Ok(None) };
        let Reserve { leaf, reserved, .. } = self;
        self.inherit.iter().try_for_each(|file| inherit(kernel, file))?;
        self.enable.iter().try_for_each(|dir| enable(kernel, dir, "cpuset"))?;
        let division = locked.division(kernel)?;
        if division.holdings.iter().any(|holding| holding.leaf == *leaf) {
            let source = io::ErrorKind::AlreadyExists.into();
            return Err(Error::Prepare { step: call::mkdir(leaf), source });
        }
        // Created before the search for tasks without a reservation: a task that the search misses will see this
        // directory.
        let slice = self.site.reserve();
        make_parent(kernel, &slice)?;
        let after = locked.with(kernel, division.holdings, leaf, reserved)?;
        match self.site.version {
            Version::V1 => inherit(kernel, &slice.join("cpuset.mems"))?,
            Version::V2 => enable(kernel, &slice, "cpuset")?,
        }
        locked.write_cpusets(kernel, &after)?;
        let unmoved = match self.site.version {
            Version::V1 => move_tasks(kernel, &locked, &after)?,
            Version::V2 => None,
        };
        make_private_leaf(kernel, leaf)?;
        leaves.push(leaf.clone());
        let owner = OwnerLock::take(kernel, leaf)?;
        record::set(kernel, leaf, reserved)?;
        if self.site.version == Version::V1 {
            inherit(kernel, &leaf.join("cpuset.mems"))?;
        }
        let cores = after.cores(reserved).unwrap_or_default();
        write_set(kernel, &leaf.join("cpuset.cpus"), &cores, &after.text(reserved))?;
        Ok(Some(Admitted {
            owner,
            shortfalls: after.unusable(reserved).into_iter().chain(unmoved).collect(),
        }))
    }
}

impl JoinShare {
    /// Checks whether any CPU is reserved. If so, rewrites the shared cpuset to match the reservations. On v1 the
    /// task's first process then enters that cpuset, and the owner lock on it is returned.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the call; `ResourceBusy` if no CPU is unreserved.
    pub fn run(&self, kernel: &Kernel) -> Result<Option<OwnerLock>> {
        let mut owner = None;
        let reserved = hold_existing(kernel, &self.site.reserve())?.is_some();
        // Without a reservation too: the kernel does not add a CPU that comes online to a `cpuset.cpus` that was
        // written once, so the file is rewritten below.
        let share = self.site.share().join("cpuset.cpus");
        let listed = read_set(kernel, &share, None)?.is_some_and(|now| !now.is_empty());
        kernel.only_if("a CPU is reserved", reserved || listed, || {
            let Some(locked) = Reservations::open(kernel, &self.site)? else { return Ok(()) };
            // The writes from here on depend on the reservations and cannot be recorded.
            if kernel.records() {
                return Ok(());
            }
            let mut division = locked.with_room(kernel)?;
            if self.site.version == Version::V1 {
                make_share(kernel, &locked, &division, &self.inherit)?;
                owner = Some(OwnerLock::take(kernel, &self.site.share())?);
            } else {
                division.usable = locked.usable(kernel)?;
                locked.write_cpusets(kernel, &division)?;
                if division.holdings.is_empty() {
                    // Stale after a crash. While the directory exists, every new task takes the lock.
                    let _ = remove_dir(&self.site.reserve());
                }
            }
            Ok(())
        })?;
        Ok(owner)
    }
}

/// Checks again whether CPUs are reserved, after a process has entered the cgroups of a task without a reservation. If
/// so, moves the processes of all such tasks into the shared cpuset: another task may have reserved CPUs before the
/// process entered, and not have found it. Does nothing on v2, where the shared cpuset is an ancestor of the task's
/// cgroup and applies whenever it is narrowed.
///
/// # Errors
/// As [`JoinShare::run`].
pub(in crate::cgroup) fn look_again(site: &Site) -> Result<()> {
    let kernel = Kernel::real();
    if site.version == Version::V2 || hold_existing(&kernel, &site.reserve())?.is_none() {
        return Ok(());
    }
    let Some(locked) = Reservations::open(&kernel, site)? else { return Ok(()) };
    let division = locked.with_room(&kernel)?;
    move_tasks(&kernel, &locked, &division).map(drop)
}

/// Replaces the reservation of the task at `leaf`. Returns why some of the new CPUs cannot be used now.
///
/// # Errors
/// As [`Reserve::run`]. Also `ResourceBusy` if the old and the new CPUs together would leave no CPU for a running task
/// without a reservation. If a write fails, the next operation completes or reverts the exchange.
pub(in crate::cgroup) fn exchange(site: &Site, leaf: &Path, reserved: &Reserved) -> Result<Option<Reason>> {
    match Reservations::open(&Kernel::real(), site)? {
        Some(locked) => locked.exchange(leaf, reserved),
        None => {
            Err(Error::prepare::<io::Error>(call::open_dir(&site.parent))(io::ErrorKind::NotFound.into()))
        }
    }
}

/// Takes the owner lock on a reservation's cgroup again. Returns `None` if that cgroup does not exist any more.
///
/// # Errors
/// [`Error::Prepare`] with the call.
pub(in crate::cgroup) fn own_again(site: &Site, leaf: &Path) -> Result<Option<OwnerLock>> {
    let kernel = Kernel::real();
    // Other processes check for owners under this lock, so they see the cgroup either before or after this call.
    let Some(_locked) = Reservations::open(&kernel, site)? else { return Ok(None) };
    match OwnerLock::take(&kernel, leaf) {
        Err(Error::Prepare { source, .. }) if is_gone(&source) => Ok(None),
        owner => owner.map(Some),
    }
}

/// Gives back the CPUs of a task whose own cgroup has been removed. Then removes the directories that no task needs any
/// more: those of the reservations, and the `parents` that are the site's parent or above it. In `parents`, children
/// come after their parents.
///
/// # Errors
/// [`Error::Task`] with the call.
pub(in crate::cgroup) fn leave(kernel: &Kernel, site: &Site, parents: &mut Vec<PathBuf>) -> Result<()> {
    let done = Reservations::open(kernel, site)
        .and_then(|locked| locked.map_or(Ok(()), |locked| locked.close_down(kernel, parents)));
    if done.is_ok() {
        // The caller must not remove this directory without the lock: another process may have created it again.
        parents.retain(|dir| *dir != site.parent);
    }
    done.map_err(Error::of_task)
}

impl Reservations<'_> {
    /// The division, checked to leave a CPU for one more task without a reservation. Removes stale reservations only if
    /// no CPU is unreserved.
    fn with_room(&self, kernel: &Kernel) -> Result<Division> {
        let mut division = self.division(kernel)?;
        if division.is_exhausted() {
            division.holdings.retain(|holding| !self.reap(holding));
            if division.is_exhausted() {
                let why = format!("no unreserved CPU is left: {}", self.holders(division.holdings.iter()));
                return Err(busy(call::mkdir(&self.site.share()), why));
            }
        }
        Ok(division)
    }

    /// The division with one more reservation, if the other reservations leave room for it.
    fn with(
        &self,
        kernel: &Kernel,
        holdings: Vec<Holding>,
        leaf: &Path,
        reserved: &Reserved,
    ) -> Result<Division> {
        let step = || call::set_record(leaf, &reserved.text());
        let overlaps = |h: &&Holding| !h.reserved.cores.intersection(&reserved.cores).is_empty();
        let mut after = Division { exists: true, usable: self.usable(kernel)?, holdings };
        // Checked before any stale reservation is removed to make room.
        if after.cores(reserved).is_none() {
            let why = format!("CPUs {} are not usable (usable: {})", reserved.cores, after.usable);
            return Err(busy(step(), why));
        }
        after.holdings.retain(|h| !overlaps(&h) || !self.reap(h));
        if after.holdings.iter().any(|h| overlaps(&h)) {
            return Err(busy(step(), self.holders(after.holdings.iter().filter(overlaps))));
        }
        after.holdings.push(Holding { leaf: leaf.to_owned(), reserved: reserved.clone() });
        if after.is_exhausted() {
            let sharing = self.sharing(&after)?;
            if let Some(first) = sharing.first() {
                after.holdings.retain(|h| h.leaf == leaf || !self.reap(h));
                if after.is_exhausted() {
                    let (count, name) = (sharing.len(), Site::name(first));
                    let why = format!(
                        "tasks without a reservation need the last unreserved CPUs {} ({count}, such as {name:?})",
                        reserved.cores
                    );
                    return Err(busy(step(), why));
                }
            }
        }
        Ok(after)
    }

    /// Replaces the reservation of `leaf`. During the exchange the task has both its old and its new CPUs, so no other
    /// task runs on any of them.
    fn exchange(&self, leaf: &Path, reserved: &Reserved) -> Result<Option<Reason>> {
        let kernel = Kernel::real();
        let mut holdings = self.division(&kernel)?.holdings;
        let Some(old) = holdings.iter().position(|h| h.leaf == leaf).map(|at| holdings.swap_remove(at))
        else {
            return Err(Error::prepare::<io::Error>(call::get_record(leaf))(io::ErrorKind::NotFound.into()));
        };
        // Rewrites the cpusets, because a stale reservation may have been removed before the refusal.
        let restore =
            |_: &Error| drop(self.division(&kernel).and_then(|now| self.write_cpusets(&kernel, &now)));
        let after = self.with(&kernel, holdings.clone(), leaf, reserved).inspect_err(restore)?;
        let union = old.reserved.cores.union(&reserved.cores);
        let both = Reserved { cores: union, exclusive: reserved.exclusive };
        let both = self.with(&kernel, holdings, leaf, &both).inspect_err(restore)?;
        self.write_cpusets(&kernel, &both)?;
        record::set(&kernel, leaf, reserved)?;
        // The task gives up its old CPUs before other tasks get them.
        let cores = after.cores(reserved).unwrap_or_default();
        write_set(&kernel, &leaf.join("cpuset.cpus"), &cores, "").inspect_err(|_| {
            let _ = record::set(&kernel, leaf, &old.reserved);
        })?;
        self.write_cpusets(&kernel, &after)?;
        Ok(after.unusable(reserved))
    }

    /// Removes the cgroup of a stale reservation, and returns whether it did. The task's cgroups in other hierarchies
    /// stay; they hold no CPUs.
    fn reap(&self, holding: &Holding) -> bool {
        // The kernel refuses to remove a cgroup that has processes, even if they are invisible in this PID namespace.
        !self.is_in_use(&holding.leaf).unwrap_or(true) && remove_tree(&holding.leaf, Duration::ZERO).is_ok()
    }

    /// The holders and their CPUs, for an error message.
    fn holders<'h>(&self, holdings: impl Iterator<Item = &'h Holding>) -> String {
        let one = |holding: &Holding| {
            let Reserved { cores, .. } = &holding.reserved;
            let (what, are) = if cores.len() == 1 { ("CPU", "is") } else { ("CPUs", "are") };
            let idle =
                if has_processes(&holding.leaf).unwrap_or(true) { "" } else { ", which has no processes" };
            format!("{what} {cores} {are} reserved by {:?}{idle}", Site::name(&holding.leaf))
        };
        holdings.map(one).collect::<Vec<_>>().join("; ")
    }

    /// v1: whether the shared cpuset has processes or owners, or a task lives that may be about to enter it.
    fn is_needed(&self, share: &Path, division: &Division) -> bool {
        share.exists()
            && (has_processes(share).unwrap_or(true)
                || OwnerLock::is_held(share).unwrap_or(true)
                || self.sharing(division).map_or(true, |tasks| !tasks.is_empty()))
    }

    fn close_down(&self, kernel: &Kernel, parents: &mut Vec<PathBuf>) -> Result<()> {
        let division = self.division(kernel)?;
        if division.exists {
            self.write_cpusets(kernel, &division)?;
        }
        // Usually other tasks are still in these directories, and the last task removes them.
        let remove = |dir: &Path| {
            let line = || format!("{} # if no other task is in it", call::rmdir(dir));
            kernel.call(line, (), || remove_dir(dir))
        };
        if kernel.records() || division.exists && division.holdings.is_empty() {
            let _ = remove(&self.site.reserve());
        }
        let share = self.site.share();
        let v1 = self.site.version == Version::V1;
        if v1 && !kernel.records() && self.is_needed(&share, &division) {
            return Ok(());
        }
        if remove(&share).is_err() {
            return Ok(());
        }
        while let Some(parent) = parents.pop_if(|dir| self.site.parent.starts_with(dir)) {
            let _ = remove(&parent);
        }
        Ok(())
    }
}

fn busy(step: String, why: String) -> Error {
    Error::Prepare { step, source: io::Error::new(io::ErrorKind::ResourceBusy, why) }
}
