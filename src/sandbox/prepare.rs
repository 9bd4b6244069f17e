//! Spawns that enter prepared mounts, and the plans that are kept for them.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use super::{Sandbox, random_id};
use crate::cgroup::{Group, KeptParents};
use crate::compile::compile;
use crate::error::{Error, Result};
use crate::host::{Host, Survey};
use crate::ns::Network;
use crate::plan::Plan;
use crate::rootfs::lower::Part;
use crate::rootfs::prepared::{MountTable, NetworkNamespace, Prepared};
use crate::rootfs::probe::Look;
use crate::rootfs::source::{HostFile, cached_identity};
use crate::rootfs::{names, private};
use crate::spawn::{self, Ready};
use crate::step::wire::{FNV, fnv};
use crate::sys::fs::{FileId, identify};

/// Maximum number of prepared mount namespaces that the sandboxes of one family keep. The oldest is dropped.
const KEPT: usize = 8;

/// How long a user that was looked up is not looked up again: that takes longer than all other checks of a kept plan.
const USER_HOLDS: Duration = Duration::from_secs(1);

/// Maximum number of keys that are remembered as used once. With more, all are forgotten.
const SEEN: usize = 64;

/// What a sandbox keeps for its next spawns. The prepared mounts are shared by all clones, changed ones too; a plan is
/// shared by equal ones only.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    mounts: Arc<Mutex<Mounts>>,
    /// Not in `mounts`, which is locked while mounts are prepared.
    parents: Arc<Mutex<Parents>>,
    plan: Arc<PlanSlot>,
}

/// The kept plan of a sandbox and its equal clones.
type PlanSlot = Mutex<Option<Arc<KeptPlan>>>;

/// The parents of the cgroups of tasks that entered the mounts.
#[derive(Debug, Default)]
struct Parents {
    kept: KeptParents,
    /// How often they were released.
    releases: u64,
}

#[derive(Debug, Default)]
struct Mounts {
    prepared: Vec<Arc<Prepared>>,
    /// Hashes of the keys of plans that were spawned without prepared mounts.
    seen: BTreeSet<u64>,
    /// Where the plans that enter the mounts are kept.
    plans: Vec<Weak<PlanSlot>>,
}

/// A plan that enters prepared mounts, with the facts that it depends on.
#[derive(Debug)]
pub(super) struct KeptPlan {
    pub plan: Plan,
    pub survey: Survey,
    prepared: Arc<Prepared>,
    /// The paths of the host that the plan depends on. `None` for one that does not exist.
    paths: Vec<(PathBuf, Option<FileId>)>,
    /// The host's mounts at and around these paths. A file system can be mounted anew with the identity of the old one.
    table: Mutex<MountTable>,
    /// When the user was looked up last.
    asked: Mutex<Instant>,
}

impl KeptPlan {
    pub(super) fn ready(&self) -> Ready<'_> {
        Ready { mounts: self.prepared.namespace(), init: self.prepared.init() }
    }

    /// Whether nothing that the plan depends on has changed.
    fn holds(&self, sandbox: &Sandbox, begun: Instant) -> bool {
        let Sandbox { spec, .. } = sandbox;
        self.prepared.is_current()
            && lock(&self.table).is_unchanged()
            && self.prepared.is_of_this_network()
            && self.paths.iter().all(|(path, id)| cached_identity(path).is_ok_and(|now| now == *id))
            && self.survey.streams == crate::host::streams(spec)
            && self.survey.real_time == crate::host::may_use_real_time()
            && self.has_its_user(sandbox, begun)
    }

    /// Whether the user is the one of the plan, as of [`USER_HOLDS`] ago.
    fn has_its_user(&self, sandbox: &Sandbox, begun: Instant) -> bool {
        let asked = *lock(&self.asked);
        if begun.saturating_duration_since(asked) < USER_HOLDS {
            return true;
        }
        let same = sandbox.identity(begun).is_ok_and(|now| now == self.survey.identity);
        if same {
            *lock(&self.asked) = begun;
        }
        same
    }
}

impl Kept {
    /// How often the parents of cgroups were released.
    pub(super) fn releases(&self) -> u64 {
        lock(&self.parents).releases
    }

    /// Keeps the parents of the task's cgroups for the next task, unless they were released since there were this many
    /// releases.
    pub(super) fn keep_parents(&self, cgroups: &Group, releases: u64) {
        let mut parents = lock(&self.parents);
        if parents.releases == releases {
            cgroups.keep_parents(&mut parents.kept);
        }
    }

    /// The same prepared mounts, without a plan.
    pub(super) fn without_plan(&self) -> Kept {
        Kept { plan: Arc::default(), ..self.clone() }
    }

    /// Keeps a plan, unless its mounts were released meanwhile, or another thread prepares mounts now.
    fn keep_plan(&self, plan: &Arc<KeptPlan>) {
        let mut mounts = match self.mounts.try_lock() {
            Ok(mounts) => mounts,
            Err(TryLockError::Poisoned(mounts)) => mounts.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if mounts.prepared.iter().any(|prepared| Arc::ptr_eq(prepared, &plan.prepared)) {
            mounts.plans.retain(|slot| slot.strong_count() > 0 && !slot.ptr_eq(&Arc::downgrade(&self.plan)));
            mounts.plans.push(Arc::downgrade(&self.plan));
            *lock(&self.plan) = Some(Arc::clone(plan));
        }
    }
}

impl Sandbox {
    /// Prepares the mounts that are the same for every task of this sandbox: the root, its sources, `/dev`, the masks,
    /// and `/sys` with the host's network. Each task then enters a copy of them and makes only what it needs of its
    /// own: `/proc`, `/tmp`, `/dev/pts`, `/dev/shm`, `/dev/mqueue`, its directories and volumes. So the mounts of a
    /// spawn cost about half, and hardly depend on the number of mounts of the host: see `docs/benchmarks/spawn.md`.
    ///
    /// The parents of the tasks' cgroups that the crate has made stay too, for the next task. If the driver is killed, the
    /// last task that another driver runs below them removes them.
    ///
    /// The second spawn of a sandbox calls it by itself. A sandbox that is used once does not pay for it.
    ///
    /// The prepared mounts are shared by all clones of the sandbox, also by those that a builder method has changed since,
    /// as far as they need the same mounts. They are made again when a mount of the host at or below a source has changed,
    /// or a source leads to another file, and for a thread in another network namespace, since `/sys` shows it. A fork of the
    /// driver makes its own. The user is looked up once a second. They are dropped with the last clone, or by
    /// [`release_prepared`](Self::release_prepared). Until then the file systems of the sources and the network namespace stay
    /// in use: a disk that the host unmounts is free only after that.
    ///
    /// Returns false if this sandbox cannot have prepared mounts, because a task could change them for the next one or
    /// because they belong to one task: without privileges, with `CAP_SYS_ADMIN`, with a volume that propagates mounts,
    /// with `chroot(2)`, with a root that is a directory, given or temporary, or has overlays, with a source at `/`, and with
    /// `init: false` and a `state_dir`. The text of the [`Plan`] says why. Also if the host replaces a masked file
    /// meanwhile.
    ///
    /// ```no_run
    /// use cofferdam::{Host, Sandbox};
    ///
    /// let sandbox = Sandbox::command("true").host(&Host::probe()?);
    /// sandbox.prepare()?;
    /// for _ in 0..1000 {
    ///     sandbox.spawn()?.wait()?;
    /// }
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`plan`](Self::plan), and [`Error::Prepare`] or [`Error::Setup`] with the refused step.
    pub fn prepare(&self) -> Result<bool> {
        let begun = Instant::now();
        if self.kept_plan(begun).is_some() {
            return Ok(true);
        }
        self.on_host(|host| {
            let survey = self.survey(host, begun)?;
            let plan = self.compile_with(host, &survey)?;
            let prepared = self.prepared_for(&plan, host, &survey, (true, begun))?;
            Ok(prepared.is_some())
        })
    }

    /// Drops the prepared mounts of this sandbox and its clones. Running tasks keep their copies. The next spawn makes all
    /// mounts itself, and the one after it prepares them again.
    pub fn release_prepared(&self) {
        let mut mounts = lock(&self.kept.mounts);
        mounts.plans.drain(..).filter_map(|slot| slot.upgrade()).for_each(|slot| *lock(&slot) = None);
        *mounts = Mounts::default();
        drop(mounts);
        let mut parents = lock(&self.kept.parents);
        *parents = Parents { releases: parents.releases.wrapping_add(1), ..Parents::default() };
    }

    /// The kept plan, if everything that it depends on is as it was.
    pub(super) fn kept_plan(&self, begun: Instant) -> Option<Arc<KeptPlan>> {
        let kept = lock(&self.kept.plan).clone()?;
        if kept.holds(self, begun) {
            return Some(kept);
        }
        *lock(&self.kept.plan) = None;
        None
    }

    /// Keeps `plan` for the next spawn, as a plan that enters prepared mounts. `None` if it enters none, or if it depends on
    /// what cannot be checked quickly.
    ///
    /// # Errors
    /// `TimedOut` if the deadline of the spawn, which began at `begun`, is over.
    pub(super) fn keep(
        &self,
        plan: &Plan,
        host: &Host,
        survey: &Survey,
        begun: Instant,
    ) -> Result<Option<Arc<KeptPlan>>> {
        let prepared = match self.prepared_for(plan, host, survey, (false, begun)) {
            Ok(Some(prepared)) => prepared,
            Err(e) if self.left(begun).is_zero() => return Err(e),
            Ok(None) | Err(_) => return Ok(None),
        };
        let spec = &self.spec;
        let quick = !plan.masks_private
            && survey.unseen.is_empty()
            && survey.skip.is_empty()
            && spec.dns.is_none()
            && !matches!(spec.network, Network::Path(_))
            && !survey.served
            && self.host.is_some();
        // The table is read first, so the next check notices a mount that is made while the paths are examined.
        let reals = looked(survey).map(|path| survey.real(path).to_owned()).collect();
        let Ok(table) = host_mounts(reals) else { return Ok(None) };
        let paths = if quick { surveyed(survey) } else { None };
        let holds = paths.is_some();
        let (plan, paths) = (plan.clone().on_prepared(), paths.unwrap_or_default());
        let (survey, table, asked) = (survey.clone(), Mutex::new(table), Mutex::new(begun));
        let kept = Arc::new(KeptPlan { plan, survey, prepared, paths, table, asked });
        if holds {
            self.kept.keep_plan(&kept);
        }
        Ok(Some(kept))
    }

    /// The prepared mounts for a plan. They are made unless this is the first use of such a plan, or in any case if `now`. The
    /// call began at `begun`.
    fn prepared_for(
        &self,
        plan: &Plan,
        host: &Host,
        survey: &Survey,
        (now, begun): (bool, Instant),
    ) -> Result<Option<Arc<Prepared>>> {
        if plan.cold.is_some() {
            return Ok(None);
        }
        let key = plan.prepare_key();
        if !now && self.is_first_use(&key, begun)? {
            return Ok(None);
        }
        let held = plan.prepare_sources().filter_map(|path| survey.sources.get(path));
        let held: Vec<&HostFile> = held.collect();
        let sources = held.iter().map(|source| identify(source.fd(), c"")).collect::<nix::Result<Vec<_>>>();
        let sources = sources.map_err(Error::prepare("statx(sources)"))?;
        let mut mounts = self.lock_mounts(begun)?;
        let found = mounts.prepared.iter().find(|prepared| prepared.is_of(&key, &sources));
        if let Some(found) = found.filter(|found| found.is_current()) {
            return Ok(Some(Arc::clone(found)));
        }
        mounts.prepared.retain(|prepared| !prepared.is_of(&key, &sources));
        let reals = held.iter().map(|source| source.real.clone()).collect();
        let table = host_mounts(reals)?;
        let network = NetworkNamespace::of_this_thread()?;
        let common = compile(&self.policy, &self.spec, host, survey, &random_id(), Part::Common)?;
        let covered = covered(plan);
        let made = spawn::prepare(&common, survey, self.left(begun))?;
        let prepared = Arc::new(Prepared::new(made, key, sources, table, network));
        if covered != self::covered(plan) {
            // The host has replaced a file that may have been covered before.
            return Ok(None);
        }
        if mounts.prepared.len() >= KEPT {
            mounts.prepared.remove(0);
        }
        mounts.prepared.push(Arc::clone(&prepared));
        Ok(Some(prepared))
    }

    /// Whether no plan with this key was spawned before, and no mounts are prepared for it. From now on, one was.
    ///
    /// # Errors
    /// As [`lock_mounts`](Self::lock_mounts).
    fn is_first_use(&self, key: &[u8], begun: Instant) -> Result<bool> {
        let mut mounts = self.lock_mounts(begun)?;
        let first = !mounts.prepared.iter().any(|prepared| prepared.has_key(key))
            && mounts.seen.insert(key.iter().fold(FNV, fnv));
        if first && mounts.seen.len() > SEEN {
            mounts.seen.clear();
        }
        Ok(first)
    }

    /// Locks the prepared mounts, which another thread may be making.
    ///
    /// # Errors
    /// `TimedOut` if the deadline of the spawn is over.
    fn lock_mounts(&self, begun: Instant) -> Result<MutexGuard<'_, Mounts>> {
        loop {
            match self.kept.mounts.try_lock() {
                Ok(mounts) => return Ok(mounts),
                Err(TryLockError::Poisoned(mounts)) => return Ok(mounts.into_inner()),
                Err(TryLockError::WouldBlock) if self.left(begun).is_zero() => {
                    return Err(spawn::too_late("wait for the mounts that another thread prepares"));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_micros(200)),
            }
        }
    }
}

/// The files of the host that may be covered in the prepared mounts of a plan. The default list shows `/etc` at its own path.
fn covered(plan: &Plan) -> Vec<Option<FileId>> {
    let generated = names::paths(true, true).map(PathBuf::from);
    let all = plan.prepare_masks(Path::new(private::TOP)).into_iter().chain(generated);
    all.map(|path| cached_identity(&path).or_else(|_| identity(&path)).ok().flatten()).collect()
}

fn host_mounts(around: Vec<PathBuf>) -> Result<MountTable> {
    MountTable::read(around).map_err(Error::prepare("read(\"/proc/thread-self/mountinfo\")"))
}

/// The paths that a survey has examined.
fn looked(survey: &Survey) -> impl Iterator<Item = &PathBuf> {
    survey.kinds.keys().chain(&survey.looked).collect::<BTreeSet<_>>().into_iter()
}

/// The paths that a survey has examined, with what they lead to. `None` if one of them has changed since, or a file system
/// that others serve must be asked.
fn surveyed(survey: &Survey) -> Option<Vec<(PathBuf, Option<FileId>)>> {
    let one = |path: &PathBuf| {
        let now = cached_identity(path).ok()?;
        let same = match survey.sources.get(path) {
            Some(source) => {
                let held = identify(source.fd(), c"").ok()?;
                now == Some(held) && Look::of_id(&held) == source.look
            }
            None => now.map(|id| Look::of_id(&id).kind) == survey.kind(path),
        };
        same.then(|| (path.clone(), now))
    };
    looked(survey).map(one).collect()
}

/// The identity of the file that `path` leads to, symbolic links followed. `None` if there is none. May wait for who serves
/// the file system.
fn identity(path: &Path) -> nix::Result<Option<FileId>> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| nix::errno::Errno::EINVAL)?;
    match identify(nix::fcntl::AT_FDCWD, &path) {
        Ok(id) => Ok(Some(id)),
        Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
