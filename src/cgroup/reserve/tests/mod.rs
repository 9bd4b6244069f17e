//! Tests of reservations on the running kernel. Each test has a parent cgroup of its own.

#![allow(clippy::arithmetic_side_effects)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::locked::Reservations;
use super::record::{self, read_set};
use super::{CpuReservations, CpuSet, Reserved, Site};
use crate::cgroup::fs::children;
use crate::cgroup::tests::{detected, emulated, hosts, top};
use crate::cgroup::{
    CgroupName, CgroupPath, Cgroups, Detection, Group, Limits, Paths, Request, Version, lower,
};
use crate::error::Error;
use crate::report::{Control, Report};
use crate::step::Kernel;

mod lost;
mod share;

/// A parent cgroup, on a host with enough CPUs.
struct Parent {
    host: Detection,
    parent: CgroupPath,
    site: Site,
    /// The CPUs that can be divided.
    usable: CpuSet,
}

impl Parent {
    fn new(name: &str, processors: u64) -> Option<Parent> {
        Parent::on(detected()?, name, processors)
    }

    fn on(host: Detection, name: &str, processors: u64) -> Option<Parent> {
        if host.online.len() < processors {
            crate::skip::note(format_args!("needs {processors} CPUs, there are {}", host.online));
            return None;
        }
        let parent = format!("{}/cofferdam-cores-{}-{name}", top(&host), std::process::id());
        Some(Parent::at(&parent, host))
    }

    fn at(parent: &str, host: Detection) -> Parent {
        let parent = CgroupPath::new(parent).unwrap();
        let site = Site::find(&host, &parent).unwrap();
        Parent { parent, site, usable: host.online.clone(), host }
    }

    fn cgroups(&self, name: &str, cores: &str, exclusive: bool) -> Cgroups {
        let limits = Limits { cores: CpuSet::parse_lenient(cores), exclusive, ..Limits::default() };
        let name = CgroupName::new(name).unwrap();
        lower(&Request::new(&limits, &self.host, &self.parent, &name), &mut Report::default()).unwrap()
    }

    fn group(&self, name: &str, cores: &str, exclusive: bool) -> Result<Group, Error> {
        Group::create(&self.cgroups(name, cores, exclusive), &mut Report::default())
    }

    fn reservations(&self) -> CpuReservations {
        CpuReservations::read(&self.host, &self.parent).unwrap()
    }

    fn refused(&self, name: &str, cores: &str, exclusive: bool) -> String {
        match self.group(name, cores, exclusive) {
            Err(Error::Prepare { step, source }) => {
                assert_eq!(source.kind(), std::io::ErrorKind::ResourceBusy, "{step}: {source}");
                source.to_string()
            }
            other => panic!("{other:?}"),
        }
    }

    fn file(&self, dir: &Path, file: &str) -> CpuSet {
        CpuSet::parse_lenient(fs::read_to_string(dir.join(file)).unwrap().trim())
    }

    /// The leaf in the hierarchy of the cpuset controller.
    fn leaf(&self, name: &str) -> PathBuf {
        let scope = if self.site.version == Version::V2 { ".scope" } else { "" };
        self.site.reserve().join(format!("{name}{scope}"))
    }

    fn nth(&self, n: usize) -> u32 {
        self.usable.iter().nth(n).unwrap()
    }

    fn without(&self, cores: &[u32]) -> CpuSet {
        self.usable.difference(&set(cores))
    }

    /// Asserts that the parent cgroup is empty in every hierarchy, and removes it. A parent named by the operator
    /// stays, unless the last group below it has created it.
    fn assert_gone(&self) {
        let v1 = self.host.v1.values().map(|hierarchy| &hierarchy.mount);
        let mounts = self.host.v2.iter().map(|v2| &v2.mount).chain(v1);
        for parent in mounts.map(|mount| mount.join(self.parent.as_ref())) {
            let parent = &parent;
            assert_eq!(children(parent).unwrap().unwrap_or_default(), Vec::<PathBuf>::new());
            let _ = fs::remove_dir(parent);
            assert!(!parent.exists());
        }
    }
}

fn set(cores: &[u32]) -> CpuSet {
    let list: Vec<String> = cores.iter().map(u32::to_string).collect();
    CpuSet::parse_lenient(&list.join(","))
}

/// A process in the group. Dropping it kills and reaps the process.
struct Sleeper(Child);

impl Sleeper {
    fn new(group: &Group) -> Sleeper {
        let child = Sleeper(Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap());
        group.add(child.0.id()).unwrap();
        child
    }

    /// The CPUs that the process may run on.
    fn cores(&self) -> CpuSet {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        CpuSet::parse_lenient(line.trim())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_update_exchanges_the_reserved_cpus_of_a_running_task() {
    let Some(at) = Parent::new("exchange", 2) else { return };
    let (first, second) = (at.nth(0), at.nth(1));
    let limits = |cores: &str, exclusive| Limits {
        cores: CpuSet::parse_lenient(cores),
        exclusive,
        ..Limits::default()
    };
    let mut holder = at.group("holder", &first.to_string(), true).unwrap();
    let holders = Sleeper::new(&holder);
    assert_eq!(holders.cores(), set(&[first]));
    holder.update(&limits(&second.to_string(), true)).unwrap();
    assert_eq!((holders.cores(), at.reservations().share), (set(&[second]), at.without(&[second])));
    // Not exclusive: the task runs on the unreserved CPUs too.
    holder.update(&limits(&second.to_string(), false)).unwrap();
    assert_eq!(holders.cores(), at.usable);
    let moved = holder.update(&limits("", false)).unwrap_err();
    assert!(
        matches!(&moved, Error::Unsupported { reason, .. } if reason.contains("different cgroups")),
        "{moved:?}"
    );
    if at.usable.len() > 2 {
        let sharer = at.group("sharer", "", false).unwrap();
        let sharers = Sleeper::new(&sharer);
        let other = at.group("other", &first.to_string(), true).unwrap();
        let busy = holder.update(&limits(&first.to_string(), true)).unwrap_err();
        assert!(
            matches!(&busy, Error::Task { source, .. } if source.to_string().contains("other")),
            "{busy:?}"
        );
        assert_eq!(sharers.cores(), at.without(&[first, second]));
        // If a later limit is refused, the CPU exchange is reverted.
        let third = at.nth(2).to_string();
        let hugetlb = [("3MB".to_owned(), 0)].into();
        holder.update(&Limits { hugetlb, ..limits(&third, true) }).unwrap_err();
        assert_eq!(holders.cores(), at.without(&[first]));
        drop((sharers, sharer, other));
    } else {
        crate::skip::note("the half of it that needs 3 CPUs");
    }
    drop((holders, holder));
    at.assert_gone();
}

#[test]
fn without_partition_cores_confine_their_own_task_only() {
    let Some(at) = Parent::new("none", 2) else { return };
    if at.site.version == Version::V2 {
        crate::skip::note("version 2 always keeps the others off");
        return;
    }
    let name = CgroupName::new("alone").unwrap();
    let cores = at.nth(0).to_string();
    let lowered = |limits: &Limits| {
        let mut report = Report::default();
        let request = Request { partition: false, ..Request::new(limits, &at.host, &at.parent, &name) };
        (lower(&request, &mut report).unwrap(), report)
    };
    let (none, _) = lowered(&Limits::default());
    assert!(none.share.is_none() && none.paths.share.is_none(), "{none:#?}");
    assert!(!none.paths.v1.contains_key("cpuset"), "{none:#?}");
    let (asked, report) = lowered(&Limits { cores: CpuSet::parse_lenient(&cores), ..Limits::default() });
    assert_eq!(report.weakened, Control::CPUSET);
    assert!(report.why(Control::CPUSET).contains("other tasks may use these CPUs"), "{report}");
    let group = Group::create(&asked, &mut report.clone()).unwrap();
    let sleeper = Sleeper::new(&group);
    assert_eq!(sleeper.cores(), set(&[at.nth(0)]));
    drop((sleeper, group));
    let _ = fs::remove_dir(&at.site.parent);
    assert!(!at.site.parent.exists());
}

#[test]
fn a_reserved_cpu_is_taken_from_all_other_tasks() {
    let Some(at) = Parent::new("moves", 2) else { return };
    let (first, mut all) = (at.nth(0), at.usable.clone());
    let sharer = at.group("sharer", "", false).unwrap();
    let sharers = Sleeper::new(&sharer);
    assert_eq!(sharers.cores(), all);
    let last = at.nth(usize::try_from(all.len()).unwrap() - 1);

    let mut holder = at.group("holder", &last.to_string(), true).unwrap();
    let holders = Sleeper::new(&holder);
    assert_eq!((sharers.cores(), holders.cores()), (at.without(&[last]), set(&[last])));
    let found = at.reservations();
    assert_eq!((&found.usable, &found.share), (&all, &at.without(&[last])));
    let [one] = &found.holders[..] else { panic!("{found:?}") };
    assert_eq!((&*one.name, &one.cores, one.exclusive, one.populated), ("holder", &set(&[last]), true, true));

    if all.len() > 2 {
        // A task that is not exclusive loses a shared CPU when another task reserves it, and gets it back afterwards.
        let also = at.group("also", &first.to_string(), false).unwrap();
        let alsos = Sleeper::new(&also);
        assert_eq!(alsos.cores(), at.without(&[last]));
        assert_eq!(sharers.cores(), at.without(&[first, last]));
        if all.len() > 3 {
            let third = at.group("third", &at.nth(1).to_string(), false).unwrap();
            assert_eq!(alsos.cores(), at.without(&[at.nth(1), last]));
            assert_eq!(sharers.cores(), at.without(&[first, at.nth(1), last]));
            drop(third);
            assert_eq!(alsos.cores(), at.without(&[last]));
        }
        drop(alsos);
        drop(also);
        assert_eq!(sharers.cores(), at.without(&[last]));
    }
    drop(holders);
    holder.remove().unwrap();
    assert_eq!(sharers.cores(), all);
    let CpuReservations { share, holders, .. } = at.reservations();
    assert_eq!((share, holders), (all.clone(), vec![]));
    drop(sharers);
    drop(sharer);
    at.assert_gone();
    // A parent that does not exist has no reservations.
    all = at.reservations().share;
    assert_eq!(all, at.usable);
}

#[test]
fn reserving_cpus_that_another_task_holds_or_needs_is_refused() {
    let Some(at) = Parent::new("refused", 2) else { return };
    let (all, last) = (at.usable.to_string(), at.nth(1));
    let one = at.group("one", &last.to_string(), true).unwrap();
    let why = at.refused("two", &all, false);
    let reserved = format!("CPU {last} is reserved by \"one\"");
    assert_eq!(why, format!("{reserved}, which has no processes"));
    let ones = Sleeper::new(&one);
    assert_eq!(at.refused("two", &last.to_string(), true), reserved);

    // A task that is about to start needs a CPU, too.
    let sharer = at.group("sharer", "", false).unwrap();
    let rest = at.without(&[last]);
    let why = at.refused("two", &rest.to_string(), true);
    assert!(
        why.starts_with(&format!("tasks without a reservation need the last unreserved CPUs {rest} (")),
        "{why}"
    );
    let sharers = Sleeper::new(&sharer);
    assert!(at.refused("two", &rest.to_string(), false).contains(" the last unreserved CPUs"));
    assert_eq!(sharers.cores(), rest, "a refusal changes nothing");
    drop(sharers);
    drop(sharer);

    let two = at.group("two", &rest.to_string(), false).unwrap();
    assert_eq!(at.file(&at.leaf("two"), "cpuset.cpus"), rest);
    assert!(at.reservations().share.is_empty());
    let why = at.refused("sharer", "", false);
    assert!(why.starts_with("no unreserved CPU is left: "), "{why}");
    assert!(why.contains(&reserved) && why.contains(" reserved by \"two\""), "{why}");
    drop(two);
    let sharer = at.group("sharer", "", false).unwrap();
    assert_eq!(Sleeper::new(&sharer).cores(), rest);
    drop((sharer, ones, one));
    at.assert_gone();
}

/// A command that runs this same test in a new process, with `key` in its environment.
fn again(test: &str, key: &str, value: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([&format!("cgroup::reserve::tests::{test}"), "--exact", "--nocapture"]);
    command.env(key, value).stdin(Stdio::null());
    command
}

#[test]
fn another_process_finds_a_reservation_and_gives_it_back() {
    const KEY: &str = "COFFERDAM_TEST_CORES_PATHS";
    if let Ok(text) = std::env::var(KEY) {
        let (parent, paths): (String, Paths) = serde_json::from_str(&text).unwrap();
        let at = Parent::at(&parent, Detection::probe());
        assert_eq!(at.reservations().holders.len(), 1);
        let mut group = Group::reopen(paths).unwrap();
        group.kill().unwrap();
        group.remove().unwrap();
        assert_eq!((at.reservations().holders.len(), at.reservations().share), (0, at.usable.clone()));
        return;
    }
    let Some(at) = Parent::new("restart", 2) else { return };
    let sharer = at.group("sharer", "", false).unwrap();
    let sharers = Sleeper::new(&sharer);
    let held = at.group("held", &at.nth(1).to_string(), true).unwrap();
    let mut helds = Sleeper::new(&held);
    let waiter = std::thread::spawn(move || helds.0.wait().unwrap());
    assert_eq!(sharers.cores(), at.without(&[at.nth(1)]));
    let text = serde_json::to_string(&(at.parent.as_ref(), held.into_paths())).unwrap();
    let done = again("another_process_finds_a_reservation_and_gives_it_back", KEY, &text).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(!waiter.join().unwrap().success());
    assert_eq!(sharers.cores(), at.usable);
    drop((sharers, sharer));
    at.assert_gone();
}

/// Reads every complete reservation, without the lock: its inode, its directory, the reserved CPUs and its
/// `cpuset.cpus`.
fn entries(at: &Parent) -> Vec<(u64, PathBuf, CpuSet, CpuSet)> {
    let (mut found, kernel) = (Vec::new(), Kernel::real());
    for leaf in children(&at.site.reserve()).unwrap().unwrap_or_default() {
        let Ok(meta) = fs::metadata(&leaf) else { continue };
        let Ok(Some(reserved)) = record::get(&leaf) else { continue };
        let Ok(Some(cpus)) = read_set(&kernel, &leaf.join("cpuset.cpus"), None) else { continue };
        if !cpus.is_empty() {
            found.push((meta.ino(), leaf, reserved.cores, cpus));
        }
    }
    found
}

/// Reads without the lock. A reservation that exists before and after another read existed during that read, too.
/// Returns the number of reservations found.
fn check(at: &Parent, sharers: &Sleeper) -> usize {
    let before = entries(at);
    let (shared, between) = (sharers.cores(), entries(at));
    let after: Vec<u64> = entries(at).iter().map(|(ino, ..)| *ino).collect();
    assert!(!shared.is_empty() && shared.is_subset(&at.usable), "{shared}");
    for (ino, leaf, own, _) in before.iter().filter(|(ino, ..)| after.contains(ino)) {
        assert!(own.intersection(&shared).is_empty(), "{leaf:?} has {own}, and {shared} is shared");
        for (other, path, _, cpus) in between.iter().filter(|(other, ..)| other != ino) {
            assert!(
                own.intersection(cpus).is_empty(),
                "{leaf:?} ({ino}) has {own}, {path:?} ({other}) {cpus}"
            );
        }
    }
    before.len()
}

/// Reserves and gives back CPUs `rounds` times. Returns how often it was not refused.
fn churn(at: &Parent, who: &str, rounds: u32, seed: u32) -> usize {
    let count = u32::try_from(at.usable.len()).unwrap();
    let mut random = seed;
    let mut got = 0;
    for round in 0..rounds {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let pick = |n: u32| at.nth(usize::try_from((random >> 16).wrapping_add(n) % count).unwrap());
        let cores = if round % 3 == 0 && count > 2 { set(&[pick(0), pick(1)]) } else { set(&[pick(0)]) };
        let cores = if round % 4 == 3 { String::new() } else { cores.to_string() };
        let exclusive = !cores.is_empty() && round % 2 == 0;
        match at.group(&format!("{who}.{round}"), &cores, exclusive) {
            Ok(mut group) => {
                got += 1;
                // Time for the checker to see the reservation.
                std::thread::sleep(Duration::from_millis(2));
                group.remove().unwrap();
            }
            Err(Error::Prepare { source, .. }) if source.kind() == std::io::ErrorKind::ResourceBusy => {}
            Err(e) => panic!("{e:?}"),
        }
    }
    got
}

#[test]
fn concurrent_reservations_never_overlap() {
    const KEY: &str = "COFFERDAM_TEST_CORES_CHURN";
    let rounds = if emulated() { 40 } else { 150 };
    if let Ok(text) = std::env::var(KEY) {
        let at = Parent::at(&text, Detection::probe());
        assert!(churn(&at, &format!("p{}", std::process::id()), rounds, std::process::id()) > 0);
        return;
    }
    let Some(at) = Parent::new("churn", 2) else { return };
    let sharer = at.group("sharer", "", false).unwrap();
    let sharers = Sleeper::new(&sharer);
    let processes: Vec<Child> = (0..2)
        .map(|_| {
            let mut command = again("concurrent_reservations_never_overlap", KEY, at.parent.as_ref());
            command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap()
        })
        .collect();
    let (over, looks, seen) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let checker = scope.spawn(|| {
            while !over.load(SeqCst) {
                seen.fetch_add(check(&at, &sharers), SeqCst);
                let found = at.reservations();
                let mut all = found.share.clone();
                for holder in &found.holders {
                    assert!(holder.cores.intersection(&all).is_empty(), "{found:?}");
                    all = all.union(&holder.cores);
                }
                assert!(all == at.usable && !found.share.is_empty(), "{found:?}");
                looks.fetch_add(1, SeqCst);
            }
        });
        let threads: Vec<_> = (0..4u32)
            .map(|n| {
                scope.spawn({
                    let at = &at;
                    move || churn(at, &format!("t{n}"), rounds, n)
                })
            })
            .collect();
        let done: Vec<_> = threads.into_iter().map(|t| t.join()).collect();
        let ended: Vec<_> = processes.into_iter().map(|mut child| child.wait().unwrap()).collect();
        over.store(true, SeqCst);
        checker.join().unwrap();
        assert!(done.iter().all(|got| got.as_ref().is_ok_and(|got| *got > 0)), "{done:?}");
        assert!(ended.iter().all(|status| status.success()), "{ended:?}");
    });
    assert!(looks.into_inner() > 0 && seen.into_inner() > 0);
    assert_eq!(sharers.cores(), at.usable);
    drop((sharers, sharer));
    at.assert_gone();
}

/// Removes the last task and creates the first one concurrently, while a CPU is reserved.
#[test]
fn the_shared_cpuset_is_not_removed_before_a_new_task_enters_it() {
    let Some(at) = Parent::new("comes", 2) else { return };
    let holder = at.group("holder", &at.nth(1).to_string(), true).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let at = &at;
            scope.spawn(move || {
                for round in 0..40 {
                    let group = at.group(&format!("{thread}.{round}"), "", false).unwrap();
                    for fd in group.enter_fds().unwrap() {
                        drop(fd);
                    }
                    let shared = at.site.share();
                    assert!(shared.exists(), "{shared:?} was removed under a task that is about to enter");
                }
            });
        }
    });
    drop(holder);
    at.assert_gone();
}

#[test]
fn waiting_for_the_reservation_lock_times_out() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site { version: Version::V2, parent: dir.path().to_owned(), own: Vec::new(), tasks: None };
    let held = Reservations::open(&Kernel::real(), &site).unwrap().unwrap();
    let start = Instant::now();
    match Reservations::open_within(&Kernel::real(), &site, Duration::from_millis(20)) {
        Err(Error::Prepare { step, source }) => {
            assert_eq!(step, format!("flock({:?}, LOCK_EX|LOCK_NB)", dir.path()));
            assert_eq!(source.to_string(), "another process holds the lock (flock) on the CPU reservations");
        }
        other => panic!("{:?}", other.map(|locked| locked.is_some())),
    }
    assert!(start.elapsed() >= Duration::from_millis(20));
    drop(held);
    assert!(Reservations::open_within(&Kernel::real(), &site, Duration::ZERO).unwrap().is_some());
}

#[test]
fn the_lock_is_taken_again_if_the_parent_was_removed_or_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site { version: Version::V2, parent: dir.path().join("parent"), own: Vec::new(), tasks: None };
    assert!(Reservations::open(&Kernel::real(), &site).unwrap().is_none());
    for anew in [false, true] {
        fs::create_dir(&site.parent).unwrap();
        let held = Reservations::open(&Kernel::real(), &site).unwrap().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let locked = Reservations::open(&Kernel::real(), &site).unwrap();
                // The directory that it has locked is at the path, so a second attempt finds it locked.
                let again = Reservations::open_within(&Kernel::real(), &site, Duration::ZERO);
                (locked.is_some(), again.is_err())
            });
            std::thread::sleep(Duration::from_millis(30));
            fs::remove_dir(&site.parent).unwrap();
            if anew {
                fs::create_dir(&site.parent).unwrap();
            }
            drop(held);
            assert_eq!(waiting.join().unwrap(), (anew, anew));
        });
    }
}
