//! Spawns with every outcome, from four threads, change nothing in the caller and leave nothing on the machine.
//!
//! One test, in a binary of its own, because it counts what belongs to the whole process.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use cofferdam::{
    Error, ExecSpec, Host, Limits, Method, Network, Policy, Require, Resource, Root, Sandbox, Stdio, Volume,
    WindowSize,
};
use common::{can, emulated};

/// State of this process and machine that a spawn could change or leave behind.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    fds: BTreeMap<i32, String>,
    mounts: usize,
    cgroups: Vec<String>,
    children: String,
    temporary: Vec<String>,
    dumpable: i32,
    cwd: std::path::PathBuf,
    umask: String,
    blocked: String,
    ignored: String,
    caught: String,
    oom_score_adj: String,
    capabilities: String,
    no_new_privs: String,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn named_ours(dir: &Path, depth: u32, found: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        if entry.file_name().to_string_lossy().contains("leak-test") {
            found.push(entry.path().display().to_string());
        } else if depth > 0 {
            named_ours(&entry.path(), depth - 1, found);
        }
    }
}

fn traces() -> Traces {
    let status = read("/proc/thread-self/status");
    let line = |key: &str| status.lines().find(|l| l.starts_with(key)).unwrap_or_default().to_string();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let children = tasks.map(|t| read(&format!("{}/children", t.path().display()))).collect();
    let (mut cgroups, mut temporary) = (Vec::new(), Vec::new());
    // The probe itself holds a descriptor.
    let tree = Host::probe().unwrap().cgroups;
    for mount in tree.v1.values().map(|h| &h.mount).chain(tree.v2.iter().map(|v| &v.mount)) {
        named_ours(mount, 2, &mut cgroups);
    }
    named_ours(&std::env::temp_dir(), 0, &mut temporary);
    Traces {
        fds: common::descriptors(),
        mounts: read("/proc/self/mountinfo").lines().count(),
        cgroups,
        children,
        temporary,
        // SAFETY: PR_GET_DUMPABLE takes and returns numbers.
        dumpable: unsafe { libc::prctl(libc::PR_GET_DUMPABLE) },
        cwd: std::env::current_dir().unwrap(),
        umask: line("Umask:"),
        blocked: line("SigBlk:"),
        ignored: line("SigIgn:"),
        caught: line("SigCgt:"),
        oom_score_adj: read("/proc/self/oom_score_adj"),
        capabilities: line("CapEff:") + &line("CapInh:") + &line("CapAmb:"),
        no_new_privs: line("NoNewPrivs:"),
    }
}

/// Spawns with outcome number `n` and checks the outcome.
fn one(n: usize, thread: usize) {
    let id = format!("leak-test-{thread}-{n}");
    let base = |command: &str| Sandbox::command(command).id(&id);
    let succeeds = |s: Sandbox| assert!(s.spawn().unwrap().wait().unwrap().success(), "{n}");
    match n % 16 {
        0 => succeeds(base("true")),
        1 => succeeds(base("true").with(|s| s.init = false)),
        2 => drop(base("sleep").arg("100").spawn().unwrap()),
        3 => assert!(matches!(base("no-such-command").spawn(), Err(Error::Exec { .. }))),
        4 => assert!(matches!(base("/etc/passwd").spawn(), Err(Error::Exec { .. }))),
        5 => assert!(matches!(base("true").work_dir("/sys/no/such").spawn(), Err(Error::Setup { .. }))),
        6 => assert!(matches!(base("true").user("no-such-user").spawn(), Err(Error::Spec { .. }))),
        7 => assert!(matches!(
            base("true").with(|s| s.cap_add = vec!["net_admin".into()]).spawn(),
            Err(Error::Denied { .. })
        )),
        8 => {
            let task = base("cat").stdin(Stdio::Piped).stdout(Stdio::Piped).spawn().unwrap();
            drop(task.take_stdin());
            assert!(task.wait().unwrap().success());
        }
        9 => succeeds(base("true").network(Network::None)),
        10 => succeeds(base("true").policy(&Policy { no_pivot_root: true, ..Policy::default() })),
        11 => {
            let limits = Limits {
                memory: Some(64 << 20),
                pids_max: Some(32),
                cpu_shares: Some(100),
                ..Limits::default()
            };
            succeeds(base("true").limits(limits).require(Require::BestEffort));
        }
        12 => {
            // Fails at a mount point below a file, after the cgroup and the temporary root were created.
            let root = Root {
                populate: Method::Copy,
                chroot_env: [("/etc/passwd".into(), "/etc/passwd".into())].into(),
                ..Root::default()
            };
            let volume =
                Volume { source: "/etc".into(), target: "/etc/passwd/below".into(), ..Volume::default() };
            let failed = base("true")
                .root(root)
                .volume(volume)
                .limits(Limits { memory: Some(64 << 20), ..Limits::default() })
                .require(Require::BestEffort);
            assert!(matches!(failed.spawn(), Err(Error::Setup { .. })), "{n}");
        }
        13 => {
            let task = base("sleep").arg("100").spawn().unwrap();
            let command = |name: &str| task.exec(&ExecSpec::command(name).args(["100"]));
            assert!(command("true").unwrap().wait().unwrap().success());
            assert!(matches!(command("no-such-command"), Err(Error::Exec { .. })));
            drop(command("sleep").unwrap());
            task.kill().unwrap();
            // Refused, unless the kernel has not ended PID 1 yet.
            drop(command("true"));
        }
        14 => {
            let size = WindowSize { rows: 24, columns: 80 };
            let task = base("sleep").arg("100").terminal(size).spawn().unwrap();
            let command = task.exec(&ExecSpec::command("true").terminal(size)).unwrap();
            drop(command.take_terminal());
            command.wait().unwrap();
        }
        _ => {
            let unlikely = cofferdam::Rlimit { soft: Some(u64::MAX - 1), hard: Some(u64::MAX - 1) };
            let failed = base("true").with(|s| s.rlimits = [(Resource::Nofile, unlikely)].into());
            assert!(matches!(failed.spawn(), Err(Error::Setup { .. })), "{n}");
        }
    }
}

/// Spawns with prepared mounts, in each way by which they are dropped.
fn prepares() {
    let sandbox = Sandbox::command("true").host(&Host::probe().unwrap());
    let spawns = |s: &Sandbox| assert!(s.spawn().unwrap().wait().unwrap().success());
    (0..3).for_each(|_| spawns(&sandbox));
    let held = common::descriptors().len();
    let clone = sandbox.clone().arg("x");
    drop(sandbox);
    (0..3).for_each(|_| spawns(&clone));
    clone.release_prepared();
    if can("root") {
        assert!(common::descriptors().len() < held, "nothing was prepared, or it was not released");
    }
    (0..3).for_each(|_| spawns(&clone));
    let absent = Volume { source: "/no/such".into(), target: "/x".into(), ..Volume::default() };
    assert!(matches!(clone.clone().volume(absent).prepare(), Err(Error::Spec { .. })));
    // A directory that cannot be made.
    let refused = clone.clone().work_dir("/sys/no/such").prepare();
    assert!(matches!(refused, Err(Error::Setup { .. }) | Ok(false)), "{refused:?}");
}

#[test]
fn two_hundred_spawns_leave_caller_and_machine_unchanged() {
    if !can("userns") {
        return;
    }
    let before = traces();
    prepares();
    assert_eq!(before, traces());
    // Other threads allocate meanwhile, as in any program that uses this crate.
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut kept = Vec::new();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    kept.push(vec![0u8; 4096 + kept.len() % 8192]);
                    if kept.len() > 512 {
                        kept.clear();
                    }
                    std::thread::yield_now();
                }
            });
        }
        let before = traces();
        // On an emulated machine, each thread spawns with each outcome once.
        let rounds = if emulated() { 16 } else { 50 };
        let spawning: Vec<_> =
            (0..4).map(|t| scope.spawn(move || (0..rounds).for_each(|n| one(n, t)))).collect();
        let failed = spawning.into_iter().map(|s| s.join()).any(|r| r.is_err());
        let after = traces();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(!failed, "a spawn had another outcome than it should");
        assert_eq!(before, after);
    });
}
