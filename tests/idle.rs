//! A driver whose tasks do nothing makes no system call, and neither does PID 1 of such a task. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam::{
    DieWith, EventOptions, ExecSpec, Host, Policy, PruneOptions, Pruner, Require, Sandbox, Task,
};
use common::{can, sandboxes};

/// More than any of these tests takes on a loaded machine.
const LONG: Duration = Duration::from_secs(60);

/// How long the driver is watched.
const IDLE: Duration = Duration::from_secs(5);

fn sleeper(dir: &Path, name: &str) -> Sandbox {
    let policy = Policy { state_dir: Some(dir.into()), ..Policy::default() };
    let id = format!("idle-{name}-{}", std::process::id());
    let sandbox = Sandbox::command("/bin/sleep").arg("600").policy(&policy).id(id);
    sandbox.require(Require::BestEffort)
}

/// Entry point of the driver: has tasks of all kinds, says so, and does nothing more. Does nothing elsewhere.
#[test]
fn driver_entry() {
    let Some(dir) = std::env::var_os("COFFERDAM_DRIVER") else { return };
    let dir = Path::new(&dir);
    let plain = sleeper(dir, "plain").spawn().unwrap();
    let outside = sleeper(dir, "outside").init(false).spawn().unwrap();
    let alone = sleeper(dir, "alone").policy(&Policy::default()).init(false).spawn().unwrap();
    let recovered = {
        let task = sleeper(dir, "recovered").die_with(DieWith::Survive).spawn().unwrap();
        let handle = task.handle().unwrap();
        drop(task);
        Sandbox::recover(&handle).unwrap()
    };
    let watched = sleeper(dir, "watched").spawn().unwrap();
    let entered = sleeper(dir, "entered").spawn().unwrap();
    let command = entered.exec(&ExecSpec::command("/bin/sleep").args(["600"])).unwrap();
    let mut samples = watched.stats_every(Duration::from_secs(1));
    samples.next().unwrap().unwrap();
    let options = PruneOptions { interval: 10 * LONG, ..PruneOptions::default() };
    let pruner = Pruner::start(
        &Policy { temp_dir: Some(dir.into()), ..Policy::default() },
        &Host::probe().unwrap(),
        options,
        |_| true,
        |pruned| panic!("{pruned:?}"),
    );
    let pruner = pruner.unwrap();
    std::thread::scope(|scope| {
        for task in [&plain, &outside, &recovered, &command] {
            scope.spawn(move || task.wait_end(None).unwrap());
        }
        let events = watched.events(&EventOptions::default()).unwrap();
        scope.spawn(move || events.for_each(drop));
        let tasks = [&plain, &outside, &alone, &recovered, &watched, &entered];
        let inits = tasks.map(init_of);
        println!("\nidle {}", inits.map(|pid| pid.to_string()).join(" "));
        std::io::stdin().read_line(&mut String::new()).unwrap();
        recovered.kill().unwrap();
        tasks.iter().for_each(|task| drop(task.kill()));
    });
    recovered.release().unwrap();
    drop(pruner);
}

/// The first process of a task.
fn init_of(task: &Task) -> i32 {
    use std::os::fd::AsRawFd;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", task.pidfd().as_raw_fd())).unwrap();
    info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok()).unwrap()
}

/// The processes that strace watches, until it is dropped.
struct Strace(Child);

impl Drop for Strace {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
        let _ = self.0.wait();
    }
}

#[test]
fn idle_driver_and_its_tasks_make_no_system_call() {
    if !sandboxes() || !can("root") || !can("strace") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "driver_entry", "--nocapture", "--test-threads=1"]);
    command.env("COFFERDAM_DRIVER", dir.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut driver = command.spawn().unwrap();
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines().map_while(Result::ok);
    let inits = lines.find_map(|line| line.strip_prefix("idle ").map(str::to_owned)).unwrap();
    // Every thread has reached its wait.
    std::thread::sleep(Duration::from_secs(2));
    let trace = dir.path().join("trace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o"]).arg(&trace).args(["-p", &driver.id().to_string()]);
    strace.args(inits.split(' ').flat_map(|pid| ["-p", pid]));
    let mut strace = Strace(strace.stderr(Stdio::piped()).spawn().unwrap());
    let threads: usize = std::iter::once(driver.id().to_string())
        .chain(inits.split(' ').map(str::to_owned))
        .map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count())
        .sum();
    let begun = Instant::now();
    // Each thread that is attached has a line.
    let text = || std::fs::read_to_string(&trace).unwrap_or_default();
    let attached = || {
        let status = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        inits.split(' ').all(|pid| !status(pid).contains("TracerPid:\t0"))
    };
    while !attached() {
        assert!(begun.elapsed() < LONG && strace.0.try_wait().unwrap().is_none(), "{}", text());
        std::thread::sleep(Duration::from_millis(10));
    }
    // A call that was interrupted by the attachment is made again.
    std::thread::sleep(Duration::from_secs(1));
    std::thread::sleep(IDLE);
    drop(strace);
    let trace = text();
    drop(driver.stdin.take());
    driver.wait().unwrap();
    let mut calls: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in trace.lines() {
        let (pid, call) = line.split_once(' ').unwrap();
        calls.entry(pid).or_default().push(call.trim());
    }
    assert!(calls.len() > 6 && calls.len() <= threads, "{threads} threads:\n{trace}");
    for (pid, calls) in &calls {
        // The call in which the thread waits, and its end at the detachment.
        let new = calls.iter().filter(|call| !call.contains("<detached ...>"));
        let waits = new.clone().filter(|call| call.ends_with("<unfinished ...>")).count();
        assert!(waits <= 1 && new.count() == waits, "thread {pid} makes calls: {calls:?}\n{trace}");
    }
}
