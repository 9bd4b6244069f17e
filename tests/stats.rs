//! Resource usage of a task, while it runs and after its end. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::io::Read as _;
use std::time::{Duration, Instant};

use cofferdam::cgroup::stats::Stats;
use cofferdam::cgroup::{Detection, Mode, Version};
use cofferdam::{DieWith, Error, Limits, Sandbox, Stdio, Task};
use common::{can, sandboxes, shell};

const MB: u64 = 1 << 20;

/// Long, because an emulated machine is slow, and a busy one stalls.
const LONG: Duration = Duration::from_secs(120);

fn limited(script: &str) -> Sandbox {
    let limits =
        Limits { cpu_shares: Some(1024), memory: Some(256 * MB), pids_max: Some(40), ..Limits::default() };
    shell(script).limits(limits)
}

/// Samples until `what` is true for a sample.
fn until(task: &Task, what: impl Fn(&Stats) -> bool) -> Stats {
    let start = Instant::now();
    loop {
        let stats = task.stats().unwrap();
        if what(&stats) {
            return stats;
        }
        assert!(start.elapsed() < LONG, "{stats:#?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether CPU time is counted: by the v2 tree, or by a cpuacct that is mounted with cpu.
fn counts_time() -> bool {
    let host = Detection::probe();
    let mount = |name| host.v1.get(name).map(|h| &h.mount);
    host.mode != Mode::V1 || mount("cpuacct").is_some() && mount("cpuacct") == mount("cpu")
}

const BURN: &str = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";

#[test]
fn stats_of_a_running_task_count_cpu_memory_and_processes() {
    if !can("root") || !can("cgroups") {
        return;
    }
    let begun = Instant::now();
    let task = limited("sleep 1000 & while :; do :; done").spawn().unwrap();
    let first = until(&task, |stats| stats.pids.current == Some(3));
    assert_eq!(first.pids.limit, Some(41), "one more for init");
    assert_eq!(first.memory.limit, Some(256 * MB));
    assert!(first.memory.usage > Some(0) && first.memory.rss <= first.memory.usage, "{first:#?}");
    if counts_time() {
        let enough = first.cpu.total.unwrap() + Duration::from_millis(200);
        let last = until(&task, |stats| stats.cpu.total >= Some(enough));
        // An upper bound holds for the total only, because a CPU adds the time that it ran at its next tick.
        assert!(last.cpu_percent(&first).unwrap() > 0.0, "{last:#?}");
        assert!(last.cpu.total < Some(begun.elapsed().mul_f64(1.2) + Duration::from_millis(50)), "{last:#?}");
    }
    let start = Instant::now();
    // Between fork and exec, the child has the name of the shell.
    let processes = loop {
        let processes = task.processes().unwrap();
        if processes.iter().any(|p| p.name == "sleep") {
            break processes;
        }
        assert!(start.elapsed() < LONG, "{processes:#?}");
    };
    assert_eq!(processes.len(), 3, "{processes:#?}");
    let main = processes.iter().find(|p| Some(p.pid) == task.pid()).unwrap();
    assert_eq!((main.name.as_str(), main.threads), ("sh", 1));
    let sleeper = processes.iter().find(|p| p.name == "sleep").unwrap();
    assert_eq!(sleeper.parent, main.pid);
    let init = processes.iter().find(|p| p.pid != main.pid && p.pid != sleeper.pid).unwrap();
    assert!(init.rss < MB, "{init:#?}");
    task.kill().unwrap();
    task.wait().unwrap();
    assert_eq!(task.processes().unwrap(), []);
}

#[test]
fn stats_stay_available_after_the_end() {
    if !can("root") || !can("cgroups") {
        return;
    }
    let script = format!(
        "x=0123456789abcdef; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do x=$x$x; done; {BURN}"
    );
    let task = limited(&script).spawn().unwrap();
    let start = task.stats().unwrap();
    assert!(task.wait().unwrap().success());
    let end = task.stats().unwrap();
    assert_eq!(end.cpu.total.is_some(), counts_time());
    if let Some(total) = end.cpu.total {
        assert!(total > Duration::from_millis(10) && Some(total) >= start.cpu.total, "{end:#?}");
        let (user, system) = (end.cpu.user.unwrap(), end.cpu.system.unwrap());
        assert!((user + system).abs_diff(total) < Duration::from_millis(100), "{end:#?}");
    }
    if let Some(peak) = end.memory.peak {
        assert!((MB..=256 * MB).contains(&peak), "{peak}");
    }
    assert!(end.memory.faults > Some(256) && end.memory.rss < Some(MB), "{end:#?}");
    assert!(end.taken >= start.taken);
    assert_eq!(task.stats().unwrap(), end, "it stays");
    assert_eq!(task.wait().unwrap().code, Some(0));
    assert_eq!(task.stats().unwrap(), end);
}

#[test]
fn one_thread_may_sample_while_another_waits() {
    if !can("root") || !can("cgroups") {
        return;
    }
    let task = limited("read go; exit 3").stdin(Stdio::Piped).spawn().unwrap();
    let stdin = task.take_stdin();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| task.wait().unwrap());
        for _ in 0..50 {
            assert!(task.stats().unwrap().memory.usage.is_some());
        }
        drop(stdin);
        // Samples from before and after the end.
        let start = Instant::now();
        while !waiting.is_finished() && start.elapsed() < LONG {
            assert!(task.stats().unwrap().memory.usage.is_some());
        }
        assert_eq!(waiting.join().unwrap().code, Some(3));
    });
}

#[test]
fn task_without_limits_has_no_memory_and_pids_stats() {
    if !sandboxes() {
        return;
    }
    let task = shell("exec sleep 1000").spawn().unwrap();
    let stats = task.stats().unwrap();
    let host = Detection::probe();
    // On v2 the limits of a sibling (another test's task) may enable a controller for all siblings.
    let alone = host.limits_on == Version::V1 || host.can_limit().is_err();
    if alone {
        assert_eq!((stats.memory.usage, stats.pids.current, &stats.io), (None, None, &None));
    }
    let tree = host.v2.is_some_and(|v2| v2.top.is_some());
    assert_eq!(stats.cpu.total.is_some(), tree, "{stats:#?}");
    match task.processes() {
        Ok(processes) => assert_eq!(processes.len(), 2, "{processes:#?}"),
        Err(Error::Task { source, .. }) => {
            assert!(!tree);
            assert_eq!(source.kind(), std::io::ErrorKind::Unsupported);
        }
        Err(e) => panic!("{e}"),
    }
    task.kill().unwrap();
    task.wait().unwrap();
    assert!(!alone || task.stats().unwrap().memory.usage.is_none());
}

/// Time that a test of percentages gives a busy machine to run a task that burns one CPU.
const BUSY: Duration = Duration::from_secs(30);

#[test]
fn first_sample_has_the_percentage_of_the_moment_also_after_a_recovery() {
    if !can("root") || !can("cgroups") || !counts_time() {
        return;
    }
    // A task that burns a CPU now and has slept before: its average since the start is far below.
    let limits = Limits { accounting: true, ..Limits::default() };
    let sandbox = shell("sleep 1; echo; while :; do :; done").limits(limits).stdout(Stdio::Piped);
    let task = sandbox.die_with(DieWith::Survive).spawn().unwrap();
    task.take_stdout().unwrap().read_exact(&mut [0]).unwrap();
    let percent = |task: &Task| {
        let start = Instant::now();
        let sample = task.stats_every(LONG).next().unwrap().unwrap();
        assert!(start.elapsed() < BUSY, "at once");
        assert!(sample.at.elapsed().unwrap() < BUSY && sample.stats.cpu.total.is_some());
        sample.cpu_percent.unwrap()
    };
    // On a busy machine, the task may get little of its CPU for once.
    let start = Instant::now();
    let mut seen = Vec::new();
    while !seen.last().is_some_and(|percent| (70.0..130.0).contains(percent)) {
        assert!(start.elapsed() < BUSY, "{seen:?}");
        seen.push(percent(&task));
    }
    let handle = task.handle().unwrap();
    drop(task);
    let task = Sandbox::recover(&handle).unwrap();
    assert!(percent(&task) > 0.0);
    task.release().unwrap();
}

#[test]
fn samples_come_at_the_interval_and_end_with_the_task() {
    if !can("root") || !can("cgroups") {
        return;
    }
    let interval = Duration::from_millis(200);
    let task = limited(&format!("read go; {BURN}")).stdin(Stdio::Piped).spawn().unwrap();
    let mut stdin = task.take_stdin();
    let mut samples = Vec::new();
    let start = task.stats().unwrap().taken;
    for sample in task.stats_every(interval) {
        samples.push(sample.unwrap());
        assert!(samples.len() < 1000);
        if samples.len() == 4 {
            stdin.take();
        }
    }
    assert!(samples.len() >= 5, "{samples:#?}");
    // A sample may be late, so two may be close together, but none is early. The first one takes up to 100 ms.
    let taken: Vec<_> = samples.iter().map(|sample| sample.stats.taken - start).collect();
    assert!(taken[3] >= interval * 2, "{taken:?}");
    let last = samples.last().unwrap();
    if counts_time() {
        // The kernel may add the last steps of an exit after it has notified the pidfd.
        let missed = task.stats().unwrap().cpu.total.unwrap() - last.stats.cpu.total.unwrap();
        assert!(missed < Duration::from_millis(20), "the last one has the whole usage: {missed:?}");
        assert!(last.stats.cpu.total > samples[2].stats.cpu.total, "{samples:#?}");
    }
    assert!(task.wait().unwrap().success());
    let after: Vec<_> = task.stats_every(interval).map(Result::unwrap).collect();
    assert_eq!((after.len(), after[0].cpu_percent), (1, None), "{after:#?}");
}
