//! A task's cgroups: limits hold, a kill ends every process at once, and no cgroup stays, even if a caller was killed.
//! One test at a time: some take all CPUs, some count what belongs to the whole process. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;
#[path = "../benches/birth/tiny.rs"]
mod tiny;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cofferdam::cgroup::{
    CgroupName, CgroupPath, Group, Limits, MEMORY_MIN, MemoryMax, Request, SwapMax, lower,
};
use cofferdam::{Control, Error, Host, IsolationMode, Policy, Report, Sandbox, Task, Volume};
use common::tops::{top, tops};
use common::{asked, can, emulated, probe, run_probe, say_facts, shell, status};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

const MB: u64 = 1 << 20;

type Set = fn(Sandbox) -> Sandbox;

fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Entry point of this binary inside a sandbox; does nothing elsewhere.
#[test]
fn probe_entry() {
    let Some((what, mut say)) = asked() else { return };
    match what.as_str() {
        "facts" => say_facts(&mut say),
        "bomb" => bomb(),
        "forks" => {
            let threads = fs::read_dir("/proc/self/task").unwrap().count();
            let (mut children, refused) = (Vec::new(), loop_forks());
            children.extend(refused.0);
            say.fact("processes", threads + children.len());
            say.fact("errno", format!("{:?}", refused.1));
            children.iter().for_each(|pid| nix::sys::signal::kill(*pid, Signal::SIGKILL).unwrap());
        }
        "eat" => {
            let size: usize = std::env::var("BYTES").unwrap().parse().unwrap();
            let eaten = vec![1u8; size];
            say.fact("eaten", std::hint::black_box(&eaten).iter().map(|b| usize::from(*b)).sum::<usize>());
        }
        other => panic!("no probe {other}"),
    }
}

/// Forks until the kernel refuses; returns the children, which only wait, and the errno.
fn loop_forks() -> (Vec<Pid>, nix::errno::Errno) {
    let mut children = Vec::new();
    loop {
        // SAFETY: the child makes system calls only.
        match unsafe { nix::unistd::fork() } {
            Ok(nix::unistd::ForkResult::Parent { child }) => children.push(child),
            Ok(nix::unistd::ForkResult::Child) => loop {
                nix::unistd::pause();
            },
            Err(errno) => return (children, errno),
        }
        assert!(children.len() < 1000, "nothing stops it");
    }
}

/// Forks up to the limit, and ignores every signal that can be ignored. Half of the processes fork and exit at once, so
/// that killing the pids of a list comes too late.
fn bomb() -> ! {
    for signal in Signal::iterator() {
        // SAFETY: SIG_IGN is a valid disposition.
        let _ = unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigIgn) };
    }
    // In the host's PID namespace, the orphans are reparented to this process.
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let mut first = true;
    loop {
        // SAFETY: the child makes system calls only.
        match unsafe { nix::unistd::fork() } {
            Ok(nix::unistd::ForkResult::Child) => {
                first = false;
                let _ = nix::unistd::setsid();
            }
            // SAFETY: _exit(2) takes a number.
            Ok(_) if !first && Pid::this().as_raw() % 2 == 0 => unsafe { libc::_exit(0) },
            _ => {}
        }
    }
}

// ---- observations ----------------------------------------------------------------------------------------------

/// Every cgroup whose name begins with `id`, in all hierarchies.
fn groups(id: &str) -> Vec<PathBuf> {
    let own = |dir: PathBuf| ["", "share.slice", "reserve.slice", "reserve"].map(|below| dir.join(below));
    let parents = tops().into_iter().flat_map(|top| [top.join("cofferdam"), top.join("cofferdam.slice")]);
    let entries = parents.flat_map(own).filter_map(|parent| fs::read_dir(parent).ok()).flatten().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().starts_with(id)).map(|e| e.path()).collect()
}

/// `/proc/PID/stat` of each process in a cgroup of that name, even if the cgroup is removed. Zombies are left out.
fn processes(id: &str) -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().flatten().map(|e| e.path());
    let read = |path: &Path, file: &str| fs::read_to_string(path.join(file)).unwrap_or_default();
    let ours = all.filter(|path| read(path, "cgroup").contains(id));
    ours.map(|path| read(&path, "stat")).filter(|stat| !stat.is_empty() && !stat.contains(") Z ")).collect()
}

fn procs(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap();
    let mut pids: Vec<i32> = text.lines().map(|l| l.parse().unwrap()).collect();
    pids.sort_unstable();
    pids
}

/// Asserts, without waiting, that no cgroup and no process of `id` exists.
fn assert_gone(id: &str) {
    assert_eq!(groups(id), Vec::<PathBuf>::new(), "cgroups were left behind");
    assert_eq!(processes(id), Vec::<String>::new(), "processes were left behind");
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn named(sandbox: Sandbox, id: &str) -> Sandbox {
    sandbox.id(id)
}

/// A sandbox for a program of `tiny`, and the directory that holds the program.
fn program(code: &[u8]) -> (tempfile::TempDir, Sandbox) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("program");
    tiny::write(&file, code);
    let volume = Volume { source: file, target: "/program".into(), read_only: true, ..Volume::default() };
    (dir, Sandbox::command("/program").volume(volume))
}

// ---- kill ------------------------------------------------------------------------------------------------------

/// Time in which a fork bomb of 64 processes must be gone. It takes about 20 ms. Emulated, 25 to 400 ms were measured;
/// but before the first kill the bomb starves the caller too, for 12 s on a loaded host.
fn quick() -> Duration {
    Duration::from_secs(if emulated() { 15 } else { 1 })
}

fn lit(id: &str, set: impl FnOnce(Sandbox) -> Sandbox) -> Task {
    let limits = Limits { pids_max: Some(64), ..Limits::default() };
    let bomb = named(probe("bomb").limits(limits), id).with(|s| s.fds.clear());
    let task = set(bomb).spawn().unwrap();
    let report = task.report();
    // Through /proc/PID/root of its user's processes a task may leave its cgroup; not from a user namespace or
    // Landlock.
    let host = Host::probe().unwrap();
    let outside = !report.asked.contains(Control::PID_NS) && host.privileged() && host.landlock_abi < 2;
    let held = if outside { report.weakened } else { report.enforced };
    assert!(held.contains(Control::PIDS | Control::KILL), "{report}");
    let current = groups(id).into_iter().map(|g| g.join("pids.current")).find(|f| f.exists()).unwrap();
    let count = || fs::read_to_string(&current).unwrap().trim().parse::<u32>().unwrap();
    eventually("the bomb does not fill its limit", || count() >= 64);
    task
}

#[test]
fn fork_bomb_that_ignores_every_signal_is_killed_within_a_second() {
    let _alone = alone();
    if !can("cgroups") {
        return;
    }
    let ways: [(&str, Set); 3] = [
        ("init", |s| s),
        ("alone", |s| s.with(|s| s.init = false)),
        ("host", |s| s.pid_mode(IsolationMode::Host)),
    ];
    for (way, set) in ways {
        let id = format!("bomb-{}-{way}", std::process::id());
        let task = lit(&id, set);
        let start = Instant::now();
        task.kill().unwrap();
        assert_eq!(task.wait().unwrap().signal, Some(9), "{way}");
        let took = start.elapsed();
        assert!(took < quick(), "{way}: kill and wait took {took:?}");
        assert_gone(&id);

        let task = lit(&id, set);
        let start = Instant::now();
        drop(task);
        let took2 = start.elapsed();
        assert!(took2 < quick(), "{way}: the drop took {took2:?}");
        assert_gone(&id);
    }
}

/// Descriptors and children of this process, which a thousand tasks might leave behind.
fn own_traces() -> (BTreeMap<i32, String>, String) {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let children = tasks.map(|t| fs::read_to_string(t.path().join("children")).unwrap_or_default()).collect();
    (common::descriptors(), children)
}

/// Four threads with all limits set; 250 tasks each, or 15 where that takes minutes. One thread reserves a CPU.
#[test]
fn a_thousand_tasks_leave_no_cgroup_process_or_descriptor() {
    let _alone = alone();
    if !can("cgroups") {
        return;
    }
    let rounds = if emulated() { 15 } else { 250 };
    let limits = Limits {
        cpu_shares: Some(512),
        cpu_max: Some(cofferdam::cgroup::CpuMax::new(50_000)),
        memory: Some(16 * MB),
        memory_max: Some(MemoryMax::Bytes(32 * MB)),
        pids_max: Some(8),
        ..Limits::default()
    };
    let all = limits.asked() | Control::KILL;
    let (_dir, sandbox) = program(tiny::PAUSE);
    let sandbox = sandbox.host(&Host::probe().unwrap()).limits(limits);
    let id = format!("many-{}", std::process::id());
    let before = own_traces();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (mut sandbox, mut all, id) = (sandbox.clone(), all, &id);
            if thread == 0 {
                sandbox = sandbox.with(|s| s.limits.cores = "0".parse().unwrap());
                all |= Control::CPUSET;
            }
            scope.spawn(move || {
                for round in 0..rounds {
                    let id = format!("{id}-{thread}-{round}");
                    let task = named(sandbox.clone(), &id).with(|s| s.init = round % 2 == 0).spawn().unwrap();
                    assert!(task.report().enforced.contains(all), "{}", task.report());
                    assert_eq!(processes(&id).len(), if round % 2 == 0 { 2 } else { 1 });
                    if round % 3 == 0 {
                        drop(task);
                    } else {
                        task.kill().unwrap();
                        assert_eq!(task.wait().unwrap().signal, Some(9));
                    }
                }
            });
        }
    });
    assert_gone(&id);
    sandbox.release_prepared();
    assert_eq!(own_traces(), before);
}

// ---- limits ----------------------------------------------------------------------------------------------------

/// Runs a static program that exits at once, with a limit of `memory`; the error says how that failed.
fn nothing_within(memory: u64, init: bool) -> Result<(), String> {
    let (_dir, sandbox) = program(tiny::EXIT);
    let limits = Limits { memory: Some(memory), ..Limits::default() };
    let run = sandbox.limits(limits).with(|s| s.init = init).spawn().and_then(|task| task.wait());
    match run {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(status.to_string()),
        Err(e) => Err(format!("{e}: {:?}", std::error::Error::source(&e).map(ToString::to_string))),
    }
}

#[test]
fn trivial_program_runs_in_the_smallest_accepted_memory_limit() {
    let _alone = alone();
    if !can("cgroups") {
        return;
    }
    for memory in [4 * MB, MEMORY_MIN] {
        for round in 0..10 {
            let run = nothing_within(memory, round % 2 == 0);
            assert_eq!(run, Ok(()), "{memory} bytes, round {round}");
        }
    }
    let refused = shell("true").limits(Limits { memory: Some(MEMORY_MIN - 1), ..Limits::default() }).spawn();
    let Err(Error::Spec { field: "limits.memory", message }) = refused else { panic!("{refused:?}") };
    assert_eq!(message, "1048575 bytes is too small to start a process: must be at least 1048576");
}

#[test]
fn fork_fails_with_eagain_at_pids_max() {
    let _alone = alone();
    if !can("cgroups") {
        return;
    }
    for init in [true, false] {
        let limits = Limits { pids_max: Some(6), ..Limits::default() };
        let seen = run_probe(probe("forks").limits(limits).with(|s| s.init = init)).unwrap();
        assert!(seen.report.enforced.contains(Control::PIDS), "{}", seen.report);
        assert_eq!((seen.get("processes"), seen.get("errno")), ("6", "EAGAIN"), "init {init}");
    }
}

#[test]
fn task_may_run_on_its_requested_cpus() {
    let _alone = alone();
    if !can("cgroups") {
        return;
    }
    let last = Host::probe().unwrap().cgroups.online.to_string();
    let last = last.rsplit(['-', ',']).next().unwrap();
    let seen = run_probe(probe("facts").limits(Limits { cores: last.parse().unwrap(), ..Limits::default() }))
        .unwrap();
    assert!(seen.report.enforced.contains(Control::CPUSET), "{}", seen.report);
    let allowed = seen.get("Cpus_allowed_list");
    assert!(allowed.split([',', '-']).any(|cpu| cpu == last), "{last} is not in {allowed}");
}

/// Writes 64 MiB with a limit of 32 MiB. Returns whether it succeeded, whether it was OOM-killed, and its output.
fn eats(swap: SwapMax) -> (bool, bool, Option<String>) {
    let limits = Limits { memory: Some(32 * MB), swap, ..Limits::default() };
    let sandbox = probe("eat").env("BYTES", (64 * MB).to_string()).limits(limits);
    let seen = run_probe(sandbox).unwrap();
    assert!(seen.report.enforced.contains(Control::MEMORY), "{}", seen.report);
    assert_eq!(seen.report.enforced.contains(Control::SWAP), swap == SwapMax::Off, "{}", seen.report);
    (seen.status.success(), seen.status.oom_killed, seen.facts.get("eaten").cloned())
}

#[test]
fn exceeding_the_memory_limit_is_an_oom_kill() {
    let _alone = alone();
    if can("cgroups") {
        assert_eq!(eats(SwapMax::Off), (false, true, None));
    }
}

#[test]
fn memory_beyond_the_limit_is_swapped_only_if_swap_is_allowed() {
    let _alone = alone();
    if !can("cgroups") || !can("swap") {
        return;
    }
    assert_eq!(eats(SwapMax::Unlimited), (true, false, Some((64 * MB).to_string())));
    assert_eq!(eats(SwapMax::Off), (false, true, None));
}

// ---- the caller ------------------------------------------------------------------------------------------------

/// The cgroups of every thread of this process.
fn own_cgroups() -> BTreeSet<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks.filter_map(|t| fs::read_to_string(t.path().join("cgroup")).ok()).collect()
}

#[test]
fn caller_never_enters_the_cgroups_of_a_task() {
    let _alone = alone();
    if !can("cgroups") {
        return;
    }
    let id = format!("caller-{}", std::process::id());
    let limits = Limits {
        cpu_shares: Some(100),
        cores: "0".parse().unwrap(),
        memory: Some(64 * MB),
        pids_max: Some(9),
        ..Limits::default()
    };
    let before = own_cgroups();
    let (_dir, sandbox) = program(tiny::PAUSE);
    let sandbox = named(sandbox, &id).limits(limits);
    for (init, mode, count) in [
        (true, IsolationMode::Private, 2),
        (false, IsolationMode::Private, 1),
        (true, IsolationMode::Host, 1),
    ] {
        let task = sandbox.clone().pid_mode(mode).with(|s| s.init = init).spawn().unwrap();
        assert_eq!(own_cgroups(), before);
        let leaves = groups(&id);
        assert!(!leaves.is_empty());
        for leaf in &leaves {
            let pids = procs(leaf);
            assert!(!pids.contains(&Pid::this().as_raw()), "{leaf:?}");
            assert!(pids.contains(&task.pid().unwrap()), "{leaf:?} has {pids:?}");
            assert_eq!(pids.len(), count, "{leaf:?} has {pids:?}");
            assert_eq!(pids, procs(&leaves[0]));
        }
        drop(task);
        assert_eq!(own_cgroups(), before);
        assert_gone(&id);
    }
    let failing: [(&str, Set); 3] = [
        ("exec", |s| s.with(|s| s.command = "/no/such".into())),
        ("setup", |s| s.work_dir("/sys/no/such")),
        ("spec", |s| s.user("no-such-user")),
    ];
    for (what, set) in failing {
        set(sandbox.clone()).spawn().map(drop).unwrap_err();
        assert_eq!(own_cgroups(), before, "{what}");
        assert_gone(&id);
    }
}

/// Entry point of this binary as the caller of the test below; does nothing elsewhere.
#[test]
fn caller_entry() {
    let Ok(group) = std::env::var("COFFERDAM_CALLER") else { return };
    if !group.is_empty() {
        fs::write(Path::new(&group).join("cgroup.procs"), "0").unwrap();
    }
    for init in [true, false] {
        assert!(status(shell("true").with(|s| s.init = init)).success(), "init {init}");
    }
}

/// The caller is like a service that was killed by its cgroup and restarted in the same cgroup.
#[test]
fn spawn_works_in_a_cgroup_that_was_killed_earlier() {
    let _alone = alone();
    if !can("cgroups") {
        return;
    }
    let tree = Host::probe().unwrap().cgroups.v2;
    let group = tree.map(|v2| v2.mount.join(top()).join(format!("killed-{}", std::process::id())));
    if let Some(group) = &group {
        fs::create_dir(group).unwrap();
        for _ in 0..3 {
            fs::write(group.join("cgroup.kill"), "1").unwrap();
        }
    }
    let mut caller = std::process::Command::new(std::env::current_exe().unwrap());
    caller.args(["--exact", "caller_entry", "--test-threads=1"]);
    // Without a v2 tree it is an ordinary caller.
    let done = caller.env("COFFERDAM_CALLER", group.as_deref().unwrap_or(Path::new(""))).output().unwrap();
    if let Some(group) = &group {
        eventually("the caller's cgroup stays", || fs::remove_dir(group).is_ok());
    }
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}

/// The operator limits the parent cgroup to less than a spec may ask for.
#[test]
fn oom_kill_during_setup_is_reported_as_oom_killed() {
    let _alone = alone();
    if !can("cgroups") {
        return;
    }
    let host = Host::probe().unwrap();
    let parent = format!("{}/small-{}", top(), std::process::id());
    let limits = Limits { memory: Some(MEMORY_MIN), ..Limits::default() };
    let path = CgroupPath::new(&parent).unwrap();
    let (name, mut report) = (CgroupName::new("holds").unwrap(), Report::default());
    let cgroups = lower(&Request::new(&limits, &host.cgroups, &path, &name), &mut report).unwrap();
    let holder = Group::create(&cgroups, &mut report).unwrap();
    let limit = |leaf: &Path| ["memory.max", "memory.limit_in_bytes"].map(|f| leaf.with_file_name(f));
    let file = cgroups.leaves().flat_map(limit).find(|f| f.exists()).unwrap();
    // EBUSY: v1 refuses a limit below the current usage. That is the cgroups' own memory, and charges cached per CPU,
    // until memory.force_empty reclaims it.
    eventually("nothing can be started in 128 KiB", || {
        let _ = fs::write(file.with_file_name("memory.force_empty"), "0");
        [65536, 131_072].iter().any(|bytes| fs::write(&file, bytes.to_string()).is_ok())
    });
    let policy = Policy { cgroup_parent: CgroupPath::new(&parent).unwrap(), ..Policy::default() };
    let error = shell("true").limits(limits).policy(&policy).spawn().unwrap_err();
    drop(holder);
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(matches!(error, Error::Setup { .. }) && cause.contains("OOM-killed"), "{error}: {cause}");
}

// ---- stale cgroups ---------------------------------------------------------------------------------------------

/// Reaps the processes that a detached task left to this process.
fn reap(pids: &[i32]) {
    for pid in pids {
        let _ = nix::sys::wait::waitpid(Pid::from_raw(*pid), None);
    }
}

fn freeze(group: &Path) {
    for (file, how) in [("cgroup.freeze", "1"), ("freezer.state", "FROZEN")] {
        if group.join(file).exists() {
            fs::write(group.join(file), how).unwrap();
        }
    }
}

/// Moves a process into a cgroup two levels below `leaf`.
fn nest(leaf: &Path, pid: i32) -> PathBuf {
    let below = leaf.join("a/b");
    for dir in [leaf.join("a"), below.clone(), leaf.join("c")] {
        fs::create_dir(&dir).unwrap();
        // A v1 cpuset without CPUs or memory nodes admits no process.
        for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|file| dir.join(file).exists()) {
            fs::copy(leaf.join(file), dir.join(file)).unwrap();
        }
    }
    fs::write(below.join("cgroup.procs"), pid.to_string()).unwrap();
    below
}

/// Whatever state the processes in it are in, a stale cgroup of the same name does not prevent a spawn, and none of its
/// processes survives.
#[test]
fn stale_cgroup_of_the_same_name_is_killed_and_replaced() {
    let _alone = alone();
    if !can("cgroups") {
        return;
    }
    let cores = "0".parse().unwrap();
    let limits = Limits { memory: Some(256 * MB), pids_max: Some(70), cores, ..Limits::default() };
    let (_dir, pausing) = program(tiny::PAUSE);
    type Leave = fn(&Path, i32);
    let ways: [(&str, Sandbox, Leave); 5] = [
        ("running", pausing.clone(), |_, _| {}),
        ("frozen", pausing.clone(), |leaf, _| freeze(leaf)),
        ("nested", pausing.clone(), |leaf, pid| drop(nest(leaf, pid))),
        ("frozen-below", pausing.clone(), |leaf, pid| freeze(&nest(leaf, pid))),
        ("forking", probe("bomb").with(|s| s.fds.clear()), |_, _| {}),
    ];
    for (way, sandbox, leave) in ways {
        let id = format!("left-{}-{}", std::process::id(), way);
        let task = named(sandbox, &id).limits(limits.clone()).spawn().unwrap();
        let pid = task.pid().unwrap();
        let left = procs(&groups(&id)[0]);
        task.detach().unwrap();
        groups(&id).iter().for_each(|leaf| leave(leaf, pid));

        let start = Instant::now();
        let next = named(pausing.clone(), &id).limits(limits.clone()).spawn().unwrap();
        let took = start.elapsed();
        assert!(took < quick() * 2, "{way}: it took {took:?}");
        let leaves = groups(&id);
        for leaf in &leaves {
            let pids = procs(leaf);
            assert!(pids.len() == 2 && pids.contains(&next.pid().unwrap()), "{way}: {leaf:?} has {pids:?}");
            assert!(!left.iter().any(|old| pids.contains(old)), "{way}: {leaf:?} has {pids:?}");
        }
        assert_eq!(processes(&id).len(), 2, "{way}");
        reap(&left);
        drop(next);
        assert_gone(&id);
    }
}

/// `wait` names the cgroup (EBUSY, here from a mount on it), retries for seconds only once, and removes the cgroup when
/// that is possible again.
#[test]
fn wait_names_a_cgroup_that_cannot_be_removed() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let _alone = alone();
    if !can("root") || !can("cgroups") {
        return;
    }
    let (_dir, pausing) = program(tiny::PAUSE);
    let id = format!("covered-{}", std::process::id());
    // In a mount namespace of this thread, so that the host does not see the mount.
    let covered = std::thread::spawn({
        let id = id.clone();
        move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let task = named(pausing, &id).spawn().unwrap();
            let leaf = groups(&id).remove(0);
            mount(Some("t"), &leaf, Some("tmpfs"), MsFlags::empty(), none).unwrap();
            task.kill().unwrap();
            let refused = || {
                let start = Instant::now();
                match task.wait() {
                    Err(Error::Task { step, source }) => {
                        // The unit stays too, if it is another one: by it another process finds what is left.
                        let left = groups(&id);
                        let unit = left.iter().filter(|left| **left != leaf);
                        let named = [&leaf].into_iter().chain(unit).map(|left| format!("rmdir({left:?})"));
                        assert_eq!(step, named.collect::<Vec<_>>().join(", "));
                        assert!(left.contains(&leaf) && left.len() <= 2, "{left:?}");
                        assert_eq!(source.raw_os_error(), Some(libc::EBUSY));
                    }
                    other => panic!("{other:?}"),
                }
                start.elapsed()
            };
            assert!(refused() >= Duration::from_secs(4), "it was given up too early");
            assert_eq!(task.status().unwrap().unwrap().signal, Some(9));
            (0..3).for_each(|_| assert!(refused() < Duration::from_secs(2)));
            umount2(&leaf, MntFlags::MNT_DETACH).unwrap();
            assert_eq!(task.wait().unwrap().signal, Some(9));
        }
    });
    covered.join().unwrap();
    assert_gone(&id);
}
