//! Tests of tasks without a reservation: what is created while no CPU is reserved, and the effect of the first
//! reservation.

use super::*;
use crate::cgroup::detect::Hierarchy;
use crate::cgroup::tests::stubborn::light;

/// A shell that forks continually, in a group of its own.
struct Forker {
    group: Group,
    shell: Child,
}

impl Forker {
    fn new(at: &Parent, name: &str) -> Forker {
        let group = at.group(name, "", false).unwrap();
        let script = "read go; while :; do sh -c ':' & sh -c ':'; done";
        let mut shell = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
        group.add(shell.id()).unwrap();
        drop(shell.stdin.take());
        let start = Instant::now();
        while group.pids().unwrap().len() < 2 {
            assert!(start.elapsed() < Duration::from_secs(30), "the shell does not fork");
        }
        Forker { group, shell }
    }

    fn remove(mut self) {
        self.group.kill().unwrap();
        self.shell.wait().unwrap();
        self.group.remove().unwrap();
    }
}

/// The CPUs that the living threads of a group may run on: one set for each thread. A thread that is being created is
/// listed right before the kernel sets its CPUs, so a thread with others than `expected` is looked at again.
fn allowed(group: &Group, expected: &CpuSet) -> Vec<CpuSet> {
    let mut found = Vec::new();
    for pid in group.pids().unwrap() {
        for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let look = || {
                let status = fs::read_to_string(thread.path().join("status")).ok()?;
                let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
                let lives = !field("State:").starts_with(['Z', 'X']);
                lives.then(|| CpuSet::parse_lenient(field("Cpus_allowed_list:")))
            };
            let mut seen = look();
            if seen.as_ref().is_some_and(|cores| cores != expected) {
                std::thread::sleep(Duration::from_millis(5));
                seen = look();
            }
            found.extend(seen);
        }
    }
    found
}

/// A parent with a name of its own on each host configuration that this host can emulate.
fn parents(name: &str, processors: u64) -> Vec<Parent> {
    let parents = hosts().into_iter().enumerate();
    parents.filter_map(|(n, host)| Parent::on(host, &format!("{name}.{n}"), processors)).collect()
}

#[test]
fn without_reservations_a_task_creates_and_locks_nothing_for_them() {
    for at in parents("nothing", 1) {
        let v1 = at.site.version == Version::V1;
        if v1 {
            fs::create_dir(&at.site.parent).unwrap();
        }
        let first = at.group("first", "", false).unwrap();
        // An attempt to take the lock again would time out.
        let locked = Reservations::open(&Kernel::real(), &at.site).unwrap().unwrap();
        let start = Instant::now();
        let mut task = at.group("task", "", false).unwrap();
        assert!(task.paths.share_tasks().is_none_or(|tasks| !tasks.exists()));
        assert_eq!(task.paths.share_tasks().is_some(), v1);
        let sleeper = Sleeper::new(&task);
        task.check_reservations(&at.cgroups("task", "", false).share.unwrap()).unwrap();
        assert_eq!(sleeper.cores(), at.usable);
        if v1 {
            assert_eq!(children(&at.site.parent).unwrap(), Some(vec![]));
        } else {
            assert!(!at.site.reserve().exists());
        }
        drop(sleeper);
        task.remove().unwrap();
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        drop((locked, first));
        at.assert_gone();
    }
}

#[test]
fn the_first_reservation_confines_every_process_of_the_running_tasks() {
    for at in parents("first", 2) {
        let tasks = ["a", "b", "c"].map(|name| Forker::new(&at, name));
        let last = at.nth(1);
        assert!(tasks.iter().all(|task| allowed(&task.group, &at.usable).contains(&at.usable)));
        let holder = at.group("holder", &last.to_string(), true).unwrap();
        for _ in 0..20 {
            for task in &tasks {
                let free = at.without(&[last]);
                let found = allowed(&task.group, &free);
                assert!(!found.is_empty() && found.iter().all(|cores| *cores == free), "{found:?}");
            }
        }
        drop(holder);
        assert!(!at.site.reserve().exists());
        for task in tasks {
            let found = allowed(&task.group, &at.usable);
            assert!(found.iter().all(|cores| *cores == at.usable), "{found:?}");
            task.remove();
        }
        assert!(!at.site.share().exists());
        at.assert_gone();
    }
}

/// Each process forks and exits at once, so every list of its processes is outdated when it is read.
#[test]
fn the_first_reservation_confines_a_fork_bomb() {
    for at in parents("bomb", 2) {
        let name = CgroupName::new("bomb").unwrap();
        let limits = Limits { pids_max: Some(64), ..Limits::default() };
        let request = Request::new(&limits, &at.host, &at.parent, &name);
        let cgroups = lower(&request, &mut Report::default()).unwrap();
        let mut bomb = Group::create(&cgroups, &mut Report::default()).unwrap();
        let mut child = light(&bomb);
        let start = Instant::now();
        let holder = at.group("holder", &at.nth(1).to_string(), true).unwrap();
        eprintln!("moved within {:?}", start.elapsed());
        for _ in 0..20 {
            let free = at.without(&[at.nth(1)]);
            let found = allowed(&bomb, &free);
            assert!(found.iter().all(|cores| *cores == free), "{found:?}");
        }
        bomb.kill().unwrap();
        child.wait().unwrap();
        bomb.remove().unwrap();
        drop(holder);
        at.assert_gone();
    }
}

/// Each process starts the next one and exits, so a listed process is gone when it is moved.
#[test]
fn the_first_reservation_confines_chains_of_processes() {
    for at in parents("chain", 2) {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        fs::write(&link, "#!/bin/sh\nsh \"$0\" &\n").unwrap();
        let groups: Vec<Group> =
            (0..3).map(|n| at.group(&format!("chain.{n}"), "", false).unwrap()).collect();
        for group in &groups {
            let mut shell = Command::new("sh");
            let shell = shell.args(["-c", "read go; sh \"$0\" &"]).arg(&link).stdin(Stdio::piped());
            let mut shell = shell.spawn().unwrap();
            group.add(shell.id()).unwrap();
            drop(shell.stdin.take());
            shell.wait().unwrap();
        }
        let start = Instant::now();
        let holder = at.group("holder", &at.nth(1).to_string(), true).unwrap();
        eprintln!("moved within {:?}", start.elapsed());
        for group in &groups {
            let free = at.without(&[at.nth(1)]);
            let found: Vec<CpuSet> = (0..50).flat_map(|_| allowed(group, &free)).collect();
            assert!(found.iter().all(|cores| *cores == free), "{found:?}");
            assert!(!found.is_empty());
        }
        drop(groups);
        drop(holder);
        at.assert_gone();
    }
}

#[test]
fn a_process_that_enters_after_the_reservation_is_confined() {
    for at in parents("late", 2) {
        let (early, share) = (at.group("early", "", false).unwrap(), at.cgroups("early", "", false).share);
        let holder = at.group("holder", &at.nth(1).to_string(), true).unwrap();
        let free = at.without(&[at.nth(1)]);
        assert_eq!(Sleeper::new(&early).cores(), free, "by `add`");
        // Simulates `CLONE_INTO_CGROUP`, which enters no cpuset.
        let born = Sleeper(Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap());
        let unit = early.paths().unit.as_ref().unwrap();
        fs::write(unit.join("cgroup.procs"), born.0.id().to_string()).unwrap();
        early.check_reservations(&share.unwrap()).unwrap();
        assert_eq!(born.cores(), free, "by `check_reservations`");
        drop((born, early, holder));
        at.assert_gone();
    }
}

#[test]
fn the_last_unreserved_cpu_cannot_be_reserved_while_a_task_uses_it() {
    for at in parents("last", 1) {
        let all = at.usable.to_string();
        let task = at.group("task", "", false).unwrap();
        let why = at.refused("all", &all, true);
        assert!(why.contains(&format!("need the last unreserved CPUs {all} (1, such as \"task\")")), "{why}");
        let sleeper = Sleeper::new(&task);
        assert!(at.refused("all", &all, false).contains("need the last unreserved CPUs"));
        assert_eq!(sleeper.cores(), at.usable);
        assert!(!at.site.reserve().exists(), "a refusal leaves nothing");
        drop((sleeper, task));
        let holder = at.group("all", &all, true).unwrap();
        assert!(at.refused("task", "", false).starts_with("no unreserved CPU is left: "));
        drop(holder);
        at.assert_gone();
    }
}

#[test]
fn a_task_and_a_reservation_of_all_cpus_never_both_succeed() {
    for at in parents("both", 1) {
        let all = at.usable.to_string();
        // No other task keeps the parents alive, so both threads also race to create and remove them.
        let (mut tasks, mut reservations) = (0, 0);
        for round in 0..if emulated() { 20 } else { 100 } {
            std::thread::scope(|scope| {
                let task = scope.spawn(|| at.group(&format!("task.{round}"), "", false));
                let holder = scope.spawn(|| at.group(&format!("holder.{round}"), &all, true));
                let (task, holder) = (task.join().unwrap(), holder.join().unwrap());
                assert!(task.is_err() || holder.is_err(), "both began in round {round}");
                tasks += usize::from(task.is_ok());
                reservations += usize::from(holder.is_ok());
                for refused in [task.err(), holder.err()].into_iter().flatten() {
                    let busy = |e: &std::io::Error| e.kind() == std::io::ErrorKind::ResourceBusy;
                    assert!(matches!(&refused, Error::Prepare { source, .. } if busy(source)), "{refused:?}");
                }
            });
        }
        assert!(tasks + reservations > 0);
        at.assert_gone();
    }
}

#[test]
fn tasks_below_a_nested_parent_are_not_moved() {
    for at in parents("outer", 2) {
        let inner = Parent::at(&format!("{}/inner", at.parent), at.host.clone());
        let outer = at.group("plain", "", false).unwrap();
        let nested = inner.group("nested", &at.nth(1).to_string(), true).unwrap();
        let (outers, nesteds) = (Sleeper::new(&outer), Sleeper::new(&nested));
        let holder = at.group("holder", &at.nth(0).to_string(), true).unwrap();
        assert_eq!((outers.cores(), nesteds.cores()), (at.without(&[at.nth(0)]), set(&[at.nth(1)])));
        let inside = fs::read_to_string(inner.leaf("nested").join("cgroup.procs")).unwrap();
        assert_eq!(inside.trim(), nesteds.0.id().to_string(), "it was moved");
        drop((outers, nesteds, nested));
        inner.assert_gone();
        drop((outer, holder));
        at.assert_gone();
    }
}

/// The host's detection with every mount point replaced by a new cgroup of this test.
fn moved_into(host: &Detection, name: &str) -> (Detection, Vec<PathBuf>) {
    let (mut host, mut mounts) = (host.clone(), Vec::new());
    host.v1.retain(|controller, _| controller == "cpuset" || controller == "freezer");
    for (controller, Hierarchy { mount, .. }) in &mut host.v1 {
        let above = mount.clone();
        mount.push(name);
        fs::create_dir(&mount).unwrap();
        if controller == "cpuset" {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                fs::write(mount.join(file), fs::read_to_string(above.join(file)).unwrap()).unwrap();
            }
        }
        mounts.push(mount.clone());
    }
    if let Some(v2) = &mut host.v2 {
        v2.mount.push(name);
        fs::create_dir(&v2.mount).unwrap();
        mounts.push(v2.mount.clone());
    }
    (host, mounts)
}

#[test]
fn the_last_task_in_the_shared_cpuset_removes_it_and_the_crates_own_parents() {
    for (n, host) in hosts().iter().enumerate().filter(|(_, host)| host.limits_on == Version::V1) {
        let (host, mounts) = moved_into(host, &format!("cofferdam-own-{}-{n}", std::process::id()));
        let at = Parent::at("", host);
        if at.usable.len() < 2 {
            crate::skip::note("needs 2 CPUs");
            mounts.iter().for_each(|mount| fs::remove_dir(mount).unwrap());
            return;
        }
        for task_last in [true, false] {
            let task = at.group("task", "", false).unwrap();
            let sleeper = Sleeper::new(&task);
            let holder = at.group("holder", &at.nth(1).to_string(), true).unwrap();
            assert_eq!(sleeper.cores(), at.without(&[at.nth(1)]));
            assert!(at.site.share().exists());
            if task_last {
                drop(holder);
                assert!(at.site.share().exists() && !at.site.reserve().exists());
                drop((sleeper, task));
            } else {
                drop((sleeper, task));
                assert!(!at.site.share().exists() && at.site.reserve().exists());
                drop(holder);
            }
            for mount in &mounts {
                assert_eq!(children(mount).unwrap(), Some(vec![]), "{mount:?}, {task_last}");
            }
        }
        mounts.iter().for_each(|mount| fs::remove_dir(mount).unwrap());
    }
}

#[test]
fn the_shared_cpuset_is_kept_while_a_living_task_may_enter_it() {
    for at in parents("stays", 2) {
        let early = at.group("early", "", false).unwrap();
        let sharer = at.group("sharer", "", false).unwrap();
        let sharers = Sleeper::new(&sharer);
        let holder = at.group("holder", &at.nth(1).to_string(), true).unwrap();
        drop((sharers, sharer, holder));
        assert!(at.site.share().exists(), "a birth in `early` may have opened it");
        for fd in early.enter_fds().unwrap() {
            drop(fd);
        }
        drop(early);
        assert!(!at.site.share().exists());
        at.assert_gone();
    }
}

/// Both the owner and the processes of the reservation are gone, as are those of a task without one.
#[test]
fn the_next_task_repairs_a_crash_during_the_first_reservation() {
    for at in parents("heals", 2) {
        let last = at.nth(1).to_string();
        let running = at.group("running", "", false).unwrap();
        let sleeper = Sleeper::new(&running);
        let _ = at.group("stale", &last, true).unwrap().into_paths();
        let _ = at.group("plain", "", false).unwrap().into_paths();
        assert_eq!(sleeper.cores(), at.without(&[at.nth(1)]));
        assert_eq!((at.reservations().share, at.reservations().holders), (at.usable.clone(), vec![]));
        // A stale reservation is removed for a task that needs its CPUs.
        let next = at.group("next", &last, true).unwrap();
        assert!(!at.leaf("stale").exists());
        assert_eq!(sleeper.cores(), at.without(&[at.nth(1)]));
        drop(next);
        assert_eq!(sleeper.cores(), at.usable);
        // A crash right after the directory of reservations was created.
        fs::create_dir(at.site.reserve()).unwrap();
        let healer = at.group("healer", "", false).unwrap();
        let healers = Sleeper::new(&healer);
        assert_eq!((healers.cores(), sleeper.cores()), (at.usable.clone(), at.usable.clone()));
        drop((healers, healer));
        assert!(!at.site.reserve().exists());
        // In the other hierarchies the leaves of both stale tasks stay until a task of the same name is created.
        for (name, cores) in [("stale", &*last), ("plain", "")] {
            drop(at.group(name, cores, false).unwrap());
        }
        drop((sleeper, running));
        at.assert_gone();
    }
}

/// In a v1 hierarchy `.scope` is part of a name. Only the v2 tree adds it.
#[test]
fn a_task_is_confined_although_its_name_is_a_reservations_without_the_suffix() {
    for at in parents("suffix", 2) {
        for (name, reserved) in [("web", "web.scope"), ("db.scope", "db")] {
            let task = at.group(name, "", false).unwrap();
            let sleeper = Sleeper::new(&task);
            let holder = at.group(reserved, &at.nth(1).to_string(), true).unwrap();
            assert_eq!(sleeper.cores(), at.without(&[at.nth(1)]), "{name}");
            drop((sleeper, task, holder));
        }
        at.assert_gone();
    }
}

#[test]
fn a_process_that_entered_by_descriptor_is_moved_off_cpus_that_were_reserved_meanwhile() {
    for at in parents("entered", 2) {
        let task = at.group("task", "", false).unwrap();
        let fds = task.enter_fds().unwrap();
        let holder = at.group("holder", &at.nth(1).to_string(), true).unwrap();
        let sleeper = Sleeper(Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap());
        for leaf in task.paths().leaves.iter().filter(|leaf| leaf.join("cgroup.procs").exists()) {
            fs::write(leaf.join("cgroup.procs"), sleeper.0.id().to_string()).unwrap();
        }
        task.entered().unwrap();
        assert_eq!(sleeper.cores(), at.without(&[at.nth(1)]));
        drop((fds, sleeper, task, holder));
        at.assert_gone();
    }
}
