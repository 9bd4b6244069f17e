//! The CPU reservations below one parent cgroup, under its lock: read from the cgroup tree and written to the cpuset
//! files.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::stat::{fstat, stat};

use super::lock::OwnerLock;
use super::record::{self, Reserved, change_set, read_set};
use super::{CpuHolder, CpuReservations, Partition, Site};
use crate::cgroup::detect::{Detection, Version};
use crate::cgroup::fs::{Backoff, call, children, existing, hold_existing, open_dir, populated};
use crate::cgroup::set::CpuSet;
use crate::error::{Error, Result};
use crate::report::{Control, Reason};
use crate::step::Kernel;
use crate::sys::lock::{self, Lock};

/// How long to wait for the lock. The first reservation on v1 holds it longest: it moves every running process, which
/// takes some milliseconds each.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The longest pause between two attempts to lock.
const PAUSE: Duration = Duration::from_millis(1);

/// How a plan prints the shared set. Its value is known only when the step runs.
const UNRESERVED: &str = "<unreserved CPUs>";

/// The usable CPUs that a recording [`Kernel`] assumes.
const ALL: &str = "0-65535";

/// The reservations of a site. While this value exists, no other process that takes the lock can change them.
pub(in crate::cgroup) struct Reservations<'a> {
    pub site: &'a Site,
    /// `None` if calls are only recorded.
    lock: Option<lock::Locked>,
}

/// A cgroup that has a reservation.
#[derive(Clone, Debug)]
pub(in crate::cgroup) struct Holding {
    pub leaf: PathBuf,
    pub reserved: Reserved,
}

/// How the CPUs of a parent cgroup are divided between reservations and the shared set.
#[derive(Clone, Debug, Default)]
pub(in crate::cgroup) struct Division {
    /// Whether the directory of reservations exists. It is created before a CPU is taken from the shared set and
    /// removed after the last reservation has ended. Without it, the shared set contains all usable CPUs.
    pub exists: bool,
    /// The CPUs that the parent may use. Empty if the directory of reservations does not exist, because it is not read
    /// then.
    pub usable: CpuSet,
    pub holdings: Vec<Holding>,
}

impl<'a> Reservations<'a> {
    /// Locks the parent's directory. Returns `None` if that directory does not exist.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the call; `TimedOut` if another process holds the lock for 60 seconds.
    pub fn open(kernel: &Kernel, site: &'a Site) -> Result<Option<Reservations<'a>>> {
        Reservations::open_within(kernel, site, TIMEOUT)
    }

    pub(super) fn open_within(
        kernel: &Kernel,
        site: &'a Site,
        timeout: Duration,
    ) -> Result<Option<Reservations<'a>>> {
        let parent = &site.parent;
        let mut backoff = Backoff::new(timeout).at_most(PAUSE);
        loop {
            let dir = hold_existing(kernel, parent)?;
            if dir.is_none() && !kernel.records() {
                return Ok(None);
            }
            let lock = || dir.map(|dir| lock_exclusive(dir, &mut backoff)).transpose();
            let locked = Reservations { site, lock: kernel.call(|| call::lock(parent), None, lock)? };
            // The last task may have removed the directory while this process waited for the lock, and the next task
            // may have created a new one.
            if locked.is_at_its_path()? {
                return Ok(Some(locked));
            }
        }
    }

    /// Whether the locked directory is still the one at the parent's path.
    fn is_at_its_path(&self) -> Result<bool> {
        let Some(lock) = &self.lock else { return Ok(true) };
        let parent = &self.site.parent;
        let locked = fstat(lock.as_fd()).map_err(Error::prepare(format!("fstat({parent:?})")))?;
        match stat(parent.as_path()) {
            Ok(found) => Ok((found.st_dev, found.st_ino) == (locked.st_dev, locked.st_ino)),
            Err(Errno::ENOENT | Errno::ENODEV) => Ok(false),
            Err(e) => Err(Error::prepare(format!("stat({parent:?})"))(e)),
        }
    }

    /// Reads the division from the cgroup tree.
    pub fn division(&self, kernel: &Kernel) -> Result<Division> {
        let reserve = self.site.reserve();
        if hold_existing(kernel, &reserve)?.is_none() {
            return Ok(Division::default());
        }
        let mut holdings = Vec::new();
        for leaf in children(&reserve)?.unwrap_or_default() {
            if let Some(reserved) = record::get(&leaf)? {
                holdings.push(Holding { leaf, reserved });
            }
        }
        Ok(Division { exists: true, usable: self.usable(kernel)?, holdings })
    }

    /// The CPUs that the parent may use. Empty on v2 while the cpuset controller is not enabled for the parent.
    pub fn usable(&self, kernel: &Kernel) -> Result<CpuSet> {
        Ok(read_set(kernel, &self.site.effective(), Some(ALL))?.unwrap_or_default())
    }

    /// Whether a cgroup has an owner or a process. Checks for the owner first: without an owner no process can enter.
    ///
    /// On v1, if all CPUs of a reservation are offline, the kernel moves its processes to the directory of
    /// reservations. It is then unknown which reservation they belong to, so every cgroup counts as in use.
    pub fn is_in_use(&self, leaf: &Path) -> Result<bool> {
        let above = self.site.reserve().join("cgroup.procs");
        let strays = || -> io::Result<bool> {
            let v1 = self.site.version == Version::V1;
            let text = if v1 { existing(std::fs::read_to_string(&above))? } else { None };
            Ok(text.is_some_and(|text| !text.is_empty()))
        };
        let in_use = || -> io::Result<bool> {
            let Some(dir) = existing(open_dir(leaf))? else { return Ok(false) };
            Ok(OwnerLock::is_held(leaf)? || existing(populated(dir.as_fd()))?.unwrap_or(false) || strays()?)
        };
        in_use().map_err(Error::prepare(call::open_dir(leaf)))
    }

    /// The cgroups of tasks without a reservation that have an owner or a process. These tasks need shared CPUs, now or
    /// once they start.
    pub fn sharing(&self, division: &Division) -> Result<Vec<PathBuf>> {
        let dir = self.site.tasks.clone().unwrap_or_else(|| self.site.share());
        let reserves =
            |leaf: &Path| division.holdings.iter().any(|h| Site::name(&h.leaf) == Site::name(leaf));
        let mut tasks = children(&dir)?.unwrap_or_default();
        tasks.retain(|leaf| !reserves(leaf) && self.is_in_use(leaf).unwrap_or(true) && !is_parent(leaf));
        Ok(tasks)
    }

    /// Writes the `cpuset.cpus` files that differ from `division`: first the shared set, then each reservation.
    ///
    /// This narrows cpusets before a reservation, widens them after one, and may do both after a crash. The kernel
    /// applies each write at once, so a task has either its old CPUs or its new ones.
    pub fn write_cpusets(&self, kernel: &Kernel, division: &Division) -> Result<()> {
        let share = self.site.share().join("cpuset.cpus");
        if self.site.version == Version::V2 && division.holdings.is_empty() {
            // An empty `cpuset.cpus`, as before the first reservation, means all CPUs. The file cannot be emptied again
            // while there are processes below it (`ENOSPC`, Linux 6.1).
            if read_set(kernel, &share, Some(""))?.is_none_or(|now| now.is_empty()) {
                return Ok(());
            }
        }
        if division.usable.is_empty() {
            return Ok(());
        }
        if self.site.version == Version::V1 {
            let reserve = self.site.reserve().join("cpuset.cpus");
            change_set(kernel, &reserve, &division.usable, "<usable CPUs>")?;
        }
        // An empty file would mean all CPUs. If no CPU is unreserved, the shared set keeps its old value, because the
        // tasks that use it still need a CPU.
        if !division.share().is_empty() {
            change_set(kernel, &share, &division.share(), UNRESERVED)?;
        }
        for holding in &division.holdings {
            if let Some(cores) = division.cores(&holding.reserved) {
                let text = division.text(&holding.reserved);
                change_set(kernel, &holding.leaf.join("cpuset.cpus"), &cores, &text)?;
            }
        }
        Ok(())
    }

    /// The public form of the division, without stale reservations.
    pub fn to_public(&self, detection: &Detection) -> Result<CpuReservations> {
        let kernel = Kernel::real();
        let mut division = self.division(&kernel)?;
        if division.usable.is_empty() {
            let usable = self.usable(&kernel)?;
            division.usable = if usable.is_empty() { detection.online.clone() } else { usable };
        }
        let mut in_use = Vec::new();
        for holding in std::mem::take(&mut division.holdings) {
            // The CPUs of a stale reservation count as unreserved.
            if self.is_in_use(&holding.leaf)? {
                in_use.push(holding);
            }
        }
        division.holdings = in_use;
        let mut holders = Vec::new();
        for holding in &division.holdings {
            let Reserved { cores, exclusive } = holding.reserved.clone();
            let populated = has_processes(&holding.leaf)?;
            holders.push(CpuHolder { name: Site::name(&holding.leaf), cores, exclusive, populated });
        }
        holders.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(CpuReservations { share: division.share(), usable: division.usable, holders })
    }
}

impl Division {
    /// The shared set: the usable CPUs that are not reserved.
    pub fn share(&self) -> CpuSet {
        let mut partition = Partition::new(self.usable.clone());
        for holding in &self.holdings {
            partition.restore(&holding.reserved.cores);
        }
        partition.share
    }

    /// Whether the reservations leave no CPU for a task without one.
    pub fn is_exhausted(&self) -> bool {
        !self.holdings.is_empty() && self.share().is_empty()
    }

    /// Why some of the reserved CPUs cannot be used now; `None` if all are usable.
    pub fn unusable(&self, reserved: &Reserved) -> Option<Reason> {
        let Reserved { cores, .. } = reserved;
        let have = cores.intersection(&self.usable);
        let why = format!("only CPUs {have} of {cores} are usable now");
        (have != *cores).then_some(Reason { control: Control::CPUSET, why })
    }

    /// The CPUs that a task with this reservation runs on. `None` while all its reserved CPUs are offline; the kernel
    /// then runs the task on other CPUs.
    pub fn cores(&self, reserved: &Reserved) -> Option<CpuSet> {
        let own = reserved.cores.intersection(&self.usable);
        if own.is_empty() {
            return None;
        }
        Some(if reserved.exclusive { own } else { own.union(&self.share()) })
    }

    /// How a plan prints the result of [`cores`](Self::cores).
    pub fn text(&self, reserved: &Reserved) -> String {
        match reserved.exclusive {
            true => reserved.cores.to_string(),
            false => format!("<CPUs {} and unreserved CPUs>", reserved.cores),
        }
    }
}

/// Whether a v1 freezer cgroup is the parent of other tasks instead of a task: it has neither an owner nor a process of
/// its own. The operator may have named a parent below another parent, so such a cgroup can be a sibling of tasks.
fn is_parent(dir: &Path) -> bool {
    let own = |file: &str| std::fs::read_to_string(dir.join(file));
    own("freezer.state").is_ok()
        && own("cgroup.procs").is_ok_and(|pids| pids.is_empty())
        && !OwnerLock::is_held(dir).unwrap_or(true)
}

/// Whether there is a process in a cgroup or below it. False if the cgroup does not exist.
pub(super) fn has_processes(leaf: &Path) -> Result<bool> {
    let found = open_dir(leaf).and_then(|dir| populated(dir.as_fd()));
    let found = existing(found).map_err(Error::prepare(call::open_dir(leaf)))?;
    Ok(found.unwrap_or_default())
}

/// Takes an exclusive lock by repeated `LOCK_NB` attempts, because a blocking `flock(2)` has no timeout.
fn lock_exclusive(dir: OwnedFd, backoff: &mut Backoff) -> io::Result<lock::Locked> {
    loop {
        match lock::flock(dir.as_fd(), Lock::ExclusiveNow) {
            Err(Errno::EWOULDBLOCK) if backoff.pause() => {}
            Err(Errno::EWOULDBLOCK) => {
                let why = "another process holds the lock (flock) on the CPU reservations";
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            answer => {
                answer?;
                return Ok(lock::Locked::held(dir));
            }
        }
    }
}
