//! Tests that compare the running kernel's counters with a known load.

#![allow(clippy::arithmetic_side_effects)]

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;
use crate::cgroup::tests::{cgroups, create, detected};
use crate::cgroup::{Cgroups, Limits, Mode, Version};
use crate::error::Error;

const MB: u64 = 1 << 20;

/// Long enough for emulated and for busy machines.
const LONG: Duration = Duration::from_secs(120);

/// A shell in the group that runs `script` after it was added.
fn shell(group: &Group, script: &str) -> Child {
    let script = format!("read go; {script}");
    let mut child = Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
    group.add(child.id()).unwrap();
    // Closing its input starts the script: `read` returns with a failure.
    drop(child.stdin.take());
    child
}

/// Takes samples until one satisfies `what`.
fn until(group: &Group, what: impl Fn(&Stats) -> bool) -> Stats {
    let start = Instant::now();
    loop {
        let stats = group.stats().unwrap();
        if what(&stats) {
            return stats;
        }
        assert!(start.elapsed() < LONG, "{stats:#?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Limits that need every controller with counters and that no test reaches.
fn limits() -> Limits {
    Limits { cpu_shares: Some(1024), memory: Some(256 * MB), pids_max: Some(40), ..Limits::default() }
}

#[test]
fn cpu_time_grows_with_a_busy_process() {
    let Some(host) = detected() else { return };
    let group = create(&cgroups(&host, &limits(), "", "stats.cpu"));
    let before = group.stats().unwrap();
    let counted = before.cpu.total;
    // CPU time is only counted in the v2 tree, or if cpuacct is mounted together with cpu.
    let expected = host.mode != Mode::V1 || {
        let mount = |name| host.v1.get(name).map(|h| &h.mount);
        mount("cpuacct").is_some() && mount("cpuacct") == mount("cpu")
    };
    assert_eq!(counted.is_some(), expected, "{before:#?}");
    if !expected {
        return;
    }
    assert_eq!(counted, Some(Duration::ZERO));
    let start = Instant::now();
    let mut child = shell(&group, "while :; do :; done");
    let busy = |stats: &Stats| stats.cpu.total >= Some(Duration::from_millis(300));
    let first = until(&group, busy);
    let last =
        until(&group, |stats| stats.cpu.total >= first.cpu.total.map(|t| t + Duration::from_millis(300)));
    let (total, user, system) = (last.cpu.total.unwrap(), last.cpu.user.unwrap(), last.cpu.system.unwrap());
    // One thread cannot use more than one CPU. The two clocks compared are not synchronous. Between two samples the
    // thread may seem to exceed one CPU: the kernel adds the run time at each tick, and an emulated CPU may stand
    // still.
    assert!(total < start.elapsed().mul_f64(1.1) + Duration::from_millis(20), "{last:#?}");
    assert!(last.taken > first.taken && first.taken > before.taken, "{first:#?} {last:#?}");
    assert!(last.cpu_percent(&first).unwrap() > 0.0);
    assert!(user > system, "{last:#?}");
    // On v1 the values are read one after another while the shell goes on running.
    let begun = Instant::now();
    let Cpu { total, user, system, .. } = group.stats().unwrap().cpu;
    let parts = (user.unwrap() + system.unwrap()).abs_diff(total.unwrap());
    assert!(parts < Duration::from_millis(100) + begun.elapsed(), "{parts:?}");
    let process = group.processes().unwrap().pop().unwrap();
    assert!(process.user + process.system >= Duration::from_millis(200), "{process:#?}");
    child.kill().unwrap();
    child.wait().unwrap();
    let end = group.stats().unwrap();
    assert!(end.cpu.total >= last.cpu.total, "{end:#?}");
}

#[test]
fn memory_counts_what_a_process_has_touched() {
    let Some(host) = detected() else { return };
    let group = create(&cgroups(&host, &limits(), "", "stats.memory"));
    // 16 MiB of the shell's own memory, by doubling a string.
    let script =
        "x=0123456789abcdef; i=0; while [ $i -lt 20 ]; do x=$x$x; i=$((i+1)); done; sleep 1000; true";
    let mut child = shell(&group, script);
    // While the shell doubles the string it has both copies. Before it runs sleep it frees the old copy.
    let asleep = |stats: &Stats| stats.pids.current == Some(2) && stats.memory.rss >= Some(16 * MB);
    let stats = until(&group, asleep);
    let memory = stats.memory;
    assert!(memory.rss <= memory.usage, "{memory:#?}");
    assert!(memory.usage.unwrap() < 200 * MB, "{memory:#?}");
    assert_eq!(memory.limit, Some(256 * MB));
    assert!(memory.faults >= Some(1000), "{memory:#?}");
    assert_eq!((memory.limit_hits, memory.oom_kills), (Some(0), Some(0)));
    assert!(memory.cache.is_some() && memory.mapped.is_some() && memory.inactive_file.is_some());
    assert!(memory.swap.is_none_or(|swap| swap < MB), "not a sum of memory and swap: {memory:#?}");
    if host.limits_on == Version::V1 {
        assert!(memory.peak >= memory.rss && memory.kernel > Some(0) && memory.kernel_peak > Some(0));
    }
    if let Some(peak) = memory.peak {
        assert!(peak >= memory.rss.unwrap(), "{memory:#?}");
    }
    // Selected by PID: until it calls exec, the forked process is as large as the shell.
    let pid = i32::try_from(child.id()).unwrap();
    let shell = group.processes().unwrap().into_iter().find(|p| p.pid == pid).unwrap();
    // The kernel adds the counts of each CPU to the total only now and then.
    assert!(shell.rss >= 15 * MB && shell.address_space >= shell.rss, "{shell:#?}");
    group.kill().unwrap();
    child.wait().unwrap();
    // The peak stays.
    let end = until(&group, |stats| stats.pids.current == Some(0));
    assert!(end.memory.rss < Some(8 * MB), "{end:#?}");
    assert!(end.memory.peak >= memory.peak, "{end:#?}");
}

#[test]
fn processes_are_counted_and_listed() {
    let Some(host) = detected() else { return };
    let group = create(&cgroups(&host, &limits(), "", "stats.pids"));
    assert_eq!(group.stats().unwrap().pids.current, Some(0));
    assert_eq!(group.processes().unwrap(), []);
    let mut child = shell(&group, "for i in 1 2 3 4 5; do sleep 1000 & done; wait");
    let pid = i32::try_from(child.id()).unwrap();
    let stats = until(&group, |stats| stats.pids.current == Some(6));
    assert!(stats.pids.peak.is_none_or(|peak| peak >= 6), "{stats:#?}");
    assert_eq!((stats.pids.limit, stats.pids.limit_hits), (Some(40), Some(0)));
    let start = Instant::now();
    let sleepers = loop {
        let mut sleepers = group.processes().unwrap();
        sleepers.retain(|p| p.name == "sleep");
        if sleepers.len() == 5 {
            break sleepers;
        }
        assert!(start.elapsed() < LONG, "{sleepers:#?}");
    };
    for process in sleepers {
        assert_eq!((process.parent, process.threads), (pid, 1));
        assert!(process.started > Duration::ZERO && process.pid != pid);
    }
    group.kill().unwrap();
    child.wait().unwrap();
    until(&group, |stats| stats.pids.current == Some(0));
    assert_eq!(group.processes().unwrap(), []);
}

#[test]
fn refused_forks_are_counted() {
    let Some(host) = detected() else { return };
    let limits = Limits { pids_max: Some(2), ..Limits::default() };
    let group = create(&cgroups(&host, &limits, "", "stats.forks"));
    let mut child = shell(&group, "sleep 1000 & (sleep 1000) & sleep 1000");
    let stats = until(&group, |stats| stats.pids.limit_hits > Some(0));
    assert_eq!(stats.pids.limit, Some(2));
    group.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn without_controllers_only_the_v2_tree_counts() {
    let Some(host) = detected() else { return };
    let group = create(&cgroups(&host, &Limits::default(), "", "stats.none"));
    let mut child = shell(&group, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done");
    assert!(child.wait().unwrap().success());
    let stats = group.stats().unwrap();
    // On v2 the limits of a sibling, from another test, may enable a controller for all siblings.
    if host.limits_on == Version::V1 {
        assert_eq!((stats.memory, stats.pids, &stats.io), (Memory::default(), Pids::default(), &None));
        assert_eq!(stats.cpu.periods, None);
    }
    if host.mode == Mode::V1 {
        assert_eq!(stats, Stats { taken: stats.taken, ..Stats::default() });
    } else {
        assert!(stats.cpu.total > Some(Duration::ZERO), "{stats:#?}");
        let psi = std::fs::read_to_string("/proc/pressure/cpu").is_ok();
        assert_eq!(stats.pressure.cpu.some.is_some(), psi, "{stats:#?}");
    }
}

#[test]
fn stats_of_no_cgroup_and_of_a_removed_group_are_empty() {
    let nowhere = create(&Cgroups::default());
    let stats = nowhere.stats().unwrap();
    assert!(stats.taken > Duration::ZERO);
    assert_eq!(stats, Stats { taken: stats.taken, ..Stats::default() });
    match nowhere.processes() {
        Err(Error::Task { source, .. }) => assert_eq!(source.kind(), std::io::ErrorKind::Unsupported),
        other => panic!("{other:?}"),
    }
    let Some(host) = detected() else { return };
    let mut group = create(&cgroups(&host, &limits(), "", "stats.gone"));
    assert!(group.stats().unwrap().memory.usage.is_some());
    group.remove().unwrap();
    let stats = group.stats().unwrap();
    assert_eq!(stats, Stats { taken: stats.taken, ..Stats::default() });
}
