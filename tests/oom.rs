//! OOM kills: whether a task was killed, and which memory limit was exceeded. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use cofferdam::cgroup::{CgroupPath, Detection, Version};
use cofferdam::{Control, Host, Limits, Oom, OomLimit, Policy, Sandbox, Signal, Stdio};
use common::{asked, can, probe, run_probe, shell};

const MB: u64 = 1 << 20;

#[test]
fn probe_entry() {
    let Ok(what) = std::env::var("COFFERDAM_PROBE") else { return };
    match what.as_str() {
        "hog" => hog(),
        // A small process and a large child, so that the child is the victim.
        "parent" => {
            let mut child = again("hog");
            let status = child.wait().unwrap();
            let (_, mut say) = asked().unwrap();
            say.fact("child", std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0));
        }
        "family" => {
            std::io::stdin().read_exact(&mut [0]).unwrap();
            let mut child = again("hog");
            child.wait().unwrap();
            // The group kill ends this process too. If it does not, this exit code tells the test.
            std::process::exit(3);
        }
        other => panic!("no probe {other}"),
    }
}

fn again(what: &str) -> std::process::Child {
    let entry = ["--exact", "probe_entry", "--test-threads=1"];
    Command::new("/probe").args(entry).env("COFFERDAM_PROBE", what).spawn().unwrap()
}

fn hog() {
    let mut kept: Vec<Vec<u8>> = Vec::new();
    loop {
        kept.push(vec![1u8; 1 << 20]);
    }
}

fn limits(memory: u64) -> Limits {
    Limits { memory: Some(memory), ..Limits::default() }
}

/// A probe without standard error.
fn quiet(what: &str) -> Sandbox {
    probe(what).stderr(Stdio::Null)
}

/// Number of direct reclaims on this machine (`allocstall_*` in /proc/vmstat).
fn stalls() -> String {
    let vmstat = std::fs::read_to_string("/proc/vmstat").unwrap();
    vmstat.lines().filter(|line| line.starts_with("allocstall")).collect()
}

/// Runs a task that must be OOM-killed, checks whose limit was exceeded, and returns the details.
#[track_caller]
fn killed(sandbox: &Sandbox, host: &Detection, expected: &OomLimit) -> Oom {
    let before = stalls();
    let task = sandbox.spawn().unwrap();
    let status = task.wait().unwrap();
    let oom = task.oom().unwrap();
    assert_eq!((status.signal, status.oom_killed), (Some(9), true), "{status}");
    assert!(oom.kills > 0);
    // v1 cannot tell if the host was short of memory as well.
    let told = host.limits_on == Version::V2 || before == stalls();
    assert!(oom.limit == *expected || (!told && oom.limit == OomLimit::Unknown), "{oom}");
    assert_eq!(task.wait().unwrap(), status, "it is said again");
    assert_eq!(task.oom().as_ref(), Some(&oom));
    oom
}

fn detection() -> Detection {
    Host::probe().unwrap().cgroups
}

/// Write-locked by the test that exhausts the host's memory, so that the task of no other test is the victim.
static MACHINE: RwLock<()> = RwLock::new(());

fn calm() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

/// A parent cgroup with a memory limit.
struct Parent {
    name: String,
    dir: PathBuf,
}

impl Parent {
    fn new(host: &Detection, name: &str, limit: u64) -> Parent {
        let name = format!("cofferdam-test-{}-{name}", std::process::id());
        let (mount, file) = match host.limits_on {
            Version::V1 => (&host.v1["memory"].mount, "memory.limit_in_bytes"),
            Version::V2 => (&host.v2.as_ref().unwrap().mount, "memory.max"),
        };
        if host.limits_on == Version::V2 {
            std::fs::write(mount.join("cgroup.subtree_control"), "+memory").unwrap();
        }
        let dir = mount.join(&name);
        std::fs::create_dir(&dir).unwrap();
        let parent = Parent { name, dir };
        std::fs::write(parent.dir.join(file), limit.to_string()).unwrap();
        // Swap would only delay the kill. The files exist only if swap accounting is enabled.
        let _ = std::fs::write(parent.dir.join("memory.swap.max"), "0");
        let _ = std::fs::write(parent.dir.join("memory.memsw.limit_in_bytes"), limit.to_string());
        parent
    }

    fn policy(&self) -> Policy {
        Policy { cgroup_parent: CgroupPath::new(&self.name).unwrap(), ..Policy::default() }
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.dir).unwrap();
    }
}

#[test]
fn oom_kill_by_the_tasks_limit_is_attributed_to_that_limit() {
    if !can("cgroups") {
        return;
    }
    let _calm = calm();
    let oom = killed(&quiet("hog").limits(limits(32 * MB)), &detection(), &OomLimit::Own);
    assert_eq!(oom.kills, 1);
}

#[test]
fn oom_killed_child_does_not_end_the_task() {
    if !can("cgroups") {
        return;
    }
    let _calm = calm();
    let seen = run_probe(quiet("parent").limits(limits(32 * MB))).unwrap();
    assert_eq!(seen.get("child"), "9");
    assert_eq!((seen.status.code, seen.status.oom_killed), (Some(0), true), "{}", seen.status);
    assert!(seen.status.success());
}

#[test]
fn oom_kill_by_an_ancestors_limit_is_attributed_to_the_ancestor() {
    if !can("cgroups") || !can("root") {
        return;
    }
    let _calm = calm();
    let host = detection();
    let parent = Parent::new(&host, "above", 48 * MB);
    let sandbox = |memory| quiet("hog").policy(&parent.policy()).limits(limits(memory));
    // Kills that were counted in the parent earlier are not attributed to the second task.
    for _ in 0..2 {
        killed(&sandbox(512 * MB), &host, &OomLimit::Ancestor(parent.dir.clone()));
    }
    let own = match host.limits_on {
        Version::V2 => OomLimit::Own,
        // The parent has been at its limit before. Without a count of failures, v1 cannot rule it out.
        Version::V1 => return,
    };
    killed(&sandbox(24 * MB), &host, &own);
}

#[test]
fn oom_kill_below_an_unexhausted_ancestor_is_attributed_to_the_task() {
    if !can("cgroups") || !can("root") {
        return;
    }
    let _calm = calm();
    let host = detection();
    let parent = Parent::new(&host, "wide", 512 * MB);
    let sandbox = quiet("hog").policy(&parent.policy()).limits(limits(32 * MB));
    killed(&sandbox, &host, &OomLimit::Own);
}

#[test]
fn oom_group_kill_is_counted_as_a_group_kill() {
    if !can("cgroups") || !can("root") || !can("cgroup_v2") {
        return;
    }
    let _calm = calm();
    let host = detection();
    let parent = Parent::new(&host, "group", 512 * MB);
    let limits = Limits { oom_group: true, ..limits(32 * MB) };
    let task = quiet("family").policy(&parent.policy()).limits(limits).stdin(Stdio::Piped).spawn().unwrap();
    assert!(task.report().enforced.contains(Control::OOM_GROUP), "{}", task.report());
    task.take_stdin().unwrap().write_all(b"\n").unwrap();
    let status = task.wait().unwrap();
    assert_eq!((status.signal, status.oom_killed), (Some(9), true), "{status}");
    let Oom { kills, group_kills, limit, .. } = task.oom().unwrap();
    assert_eq!(limit, OomLimit::Own);
    assert!(kills >= 2, "{kills}");
    // The count exists since Linux 5.17.
    assert!(matches!(group_kills, None | Some(1)), "{group_kills:?}");
}

#[test]
fn sigkill_is_not_reported_as_an_oom_kill() {
    if !can("cgroups") {
        return;
    }
    let _calm = calm();
    let killed = |task: cofferdam::Task| {
        let status = task.wait().unwrap();
        assert_eq!((status.signal, status.oom_killed), (Some(9), false), "{status}");
        assert_eq!(task.oom(), None);
    };
    let sandbox = |script: &str| shell(script).limits(limits(32 * MB)).spawn().unwrap();
    killed(sandbox("kill -KILL $$"));
    let task = sandbox("sleep 60");
    task.signal(Signal::KILL).unwrap();
    killed(task);
    let task = sandbox("sleep 60");
    task.kill().unwrap();
    killed(task);
    // An exit code of 137, which a shell uses for SIGKILL, is no OOM kill either.
    let task = sandbox("exit 137");
    assert_eq!((task.wait().unwrap().code, task.oom()), (Some(137), None));
}

#[test]
fn oom_kill_of_an_unlimited_task_is_known_only_with_accounting() {
    if !can("cgroups") || !can("root") || !can("cgroup_v2") {
        return;
    }
    let _calm = calm();
    let host = detection();
    let parent = Parent::new(&host, "alone", 48 * MB);
    let sandbox = quiet("hog").policy(&parent.policy());
    // The memory controller is not enabled for the task's cgroup, so no kill is counted.
    let task = sandbox.spawn().unwrap();
    let status = task.wait().unwrap();
    assert_eq!((status.signal, status.oom_killed, task.oom()), (Some(9), false, None));
    // With `accounting` the kills are counted, although the task has no limit.
    let sandbox = sandbox.limits(Limits { accounting: true, ..Limits::default() });
    assert!(!sandbox.plan().unwrap().report.enforced.contains(Control::MEMORY));
    killed(&sandbox, &host, &OomLimit::Ancestor(parent.dir.clone()));
}

/// Reserves huge pages, which normal allocations cannot use, so that the remaining memory runs out sooner. The pages
/// need not be written.
struct Reserved;

impl Reserved {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";

    fn all_but(left: u64) -> Reserved {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
        let number = |key: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
        };
        let pages = number("MemAvailable:").saturating_sub(left) / number("Hugepagesize:");
        std::fs::write(Self::FILE, pages.to_string()).unwrap();
        Reserved
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        std::fs::write(Self::FILE, "0").unwrap();
    }
}

#[test]
fn oom_kill_by_the_host_is_attributed_to_the_host() {
    if !can("cgroups") || !can("machine") {
        return;
    }
    let _alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    let _few = Reserved::all_but(300 * MB);
    // With this score the task is the kernel's first victim.
    let sandbox = quiet("hog").limits(limits(1 << 40)).with(|s| s.oom_score_adj = Some(1000));
    killed(&sandbox, &detection(), &OomLimit::Host);
}
