//! Events of a task, and freezing. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cofferdam::cgroup::{Mode, PressureResource, PressureThreshold};
use cofferdam::{
    DieWith, Error, Event, EventOptions, Events, ExitStatus, Host, Limits, OomLimit, Sandbox, Signal, Stdio,
    Task,
};
use common::{Start as _, can, emulated, probe, shell};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const LONG: Duration = Duration::from_secs(60);
/// Shorter than the timeout of any step that could wait in vain.
const SOON: Duration = Duration::from_secs(4);

#[test]
fn probe_entry() {
    let Ok(what) = std::env::var("COFFERDAM_PROBE") else { return };
    match what.as_str() {
        "hog" => {
            let mut kept: Vec<Vec<u8>> = Vec::new();
            loop {
                kept.push(vec![1u8; 1 << 20]);
            }
        }
        // For every byte of input, a child exceeds the memory limit and is killed.
        "parent" => {
            while std::io::stdin().read_exact(&mut [0]).is_ok() {
                let entry = ["--exact", "probe_entry", "--test-threads=1"];
                let mut child =
                    Command::new("/probe").args(entry).env("COFFERDAM_PROBE", "hog").spawn().unwrap();
                assert!(!child.wait().unwrap().success());
                // Past libtest's capture.
                writeln!(std::io::stdout(), "killed").unwrap();
            }
        }
        other => panic!("no probe {other}"),
    }
}

fn small(sandbox: Sandbox) -> Sandbox {
    sandbox.limits(Limits { memory: Some(32 << 20), ..Limits::default() }).stderr(Stdio::Null)
}

fn events(task: &Task) -> Events {
    task.events(&EventOptions::default()).unwrap()
}

/// Waits by poll(2) on the descriptor only, as an event loop does.
fn polled(events: &mut Events) -> Option<Event> {
    let deadline = Instant::now() + LONG;
    while !events.is_over() {
        let left = deadline.checked_duration_since(Instant::now()).unwrap();
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(left).unwrap()).unwrap();
        if let Some(event) = events.try_next().unwrap().filter(is_of_cgroup) {
            return Some(event);
        }
    }
    None
}

/// Whether an event comes from the cgroup. The tests of the others filter nothing.
fn is_of_cgroup(event: &Event) -> bool {
    matches!(event, Event::Oom { .. } | Event::Pressure { .. } | Event::Empty)
}

/// The next event of the cgroup that is there now.
fn present(events: &mut Events) -> Option<Event> {
    while let Some(event) = events.try_next().unwrap() {
        if is_of_cgroup(&event) {
            return Some(event);
        }
    }
    None
}

fn step(error: Error) -> (String, std::io::Error) {
    match error {
        Error::Task { step, source } => (step, source),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_oom_kill_is_one_event_and_the_end_is_the_last() {
    if !can("cgroups") {
        return;
    }
    let task = small(probe("parent")).stdin(Stdio::Piped).stdout(Stdio::Piped).start().unwrap();
    let (mut stdin, mut stdout) = (task.take_stdin().unwrap(), task.take_stdout().unwrap());
    let mut told = Vec::new();
    let mut early = events(&task);
    assert_eq!(present(&mut early), None);
    assert_eq!(early.next_timeout(Duration::from_millis(20)).unwrap(), None);
    for round in 1..=3 {
        stdin.write_all(b"\n").unwrap();
        assert_eq!(polled(&mut early), Some(Event::Oom { kills: 1 }), "{round}");
        // While the task runs.
        assert_eq!(task.oom().unwrap().kills, round);
        // Wait until the probe reports the kill, so that the next kill is another child's.
        while told.iter().filter(|line| **line == b'\n').count() < usize::try_from(round).unwrap() {
            let mut buffer = [0; 512];
            let n = stdout.read(&mut buffer).unwrap();
            assert!(n > 0);
            if let Some(at) = String::from_utf8_lossy(&buffer[..n]).find("killed") {
                told.extend_from_slice(&buffer[at..n]);
            }
        }
    }
    assert_eq!(present(&mut early), None);
    // A later subscriber gets all kills so far as one event.
    let mut late = events(&task);
    assert_eq!(polled(&mut late), Some(Event::Oom { kills: 3 }));
    assert_eq!(present(&mut late), None);
    drop(stdin);
    assert_eq!(polled(&mut early), Some(Event::Empty));
    assert_eq!(polled(&mut early), None);
    assert!(early.next().is_none());
    assert_eq!(polled(&mut late), Some(Event::Empty));
    assert!(task.wait().unwrap().success());
    assert_eq!(task.oom().unwrap().limit, OomLimit::Own);
    // A subscriber after the end gets them too.
    let gone: Vec<_> = events(&task).map(Result::unwrap).filter(is_of_cgroup).collect();
    assert_eq!(gone, [Event::Oom { kills: 3 }, Event::Empty]);
}

#[test]
fn events_survive_the_removal_of_the_cgroup() {
    if !can("cgroups") {
        return;
    }
    let rounds = if emulated() { 5 } else { 30 };
    for round in 0..rounds {
        let task = small(probe("hog")).start().unwrap();
        let told = events(&task);
        std::thread::scope(|scope| {
            let listening = scope.spawn(|| told.map(Result::unwrap).filter(is_of_cgroup).collect::<Vec<_>>());
            assert!(task.wait().unwrap().oom_killed, "{round}");
            assert_eq!(listening.join().unwrap(), [Event::Oom { kills: 1 }, Event::Empty], "{round}");
        });

        let task = small(shell("exit 0")).start().unwrap();
        let told = events(&task);
        task.wait().unwrap();
        assert_eq!(
            told.map(Result::unwrap).filter(is_of_cgroup).collect::<Vec<_>>(),
            [Event::Empty],
            "{round}"
        );

        let task = small(shell("sleep 60")).start().unwrap();
        let told = events(&task);
        drop(task);
        assert_eq!(
            told.map(Result::unwrap).filter(is_of_cgroup).collect::<Vec<_>>(),
            [Event::Empty],
            "{round}"
        );
    }
}

#[test]
fn empty_event_comes_after_the_last_process_ended() {
    if !can("cgroups") {
        return;
    }
    // Without a PID namespace and init, a child outlives the main process.
    let script = "sleep 1 & echo; exit 0";
    let sandbox = shell(script).stdout(Stdio::Null).with(|s| s.init = false);
    let task = sandbox.pid_mode(cofferdam::IsolationMode::Host);
    let task = task.with(|s| s.require = None).start();
    let Ok(task) = task else { panic!("{:?}", task.err()) };
    let start = Instant::now();
    let told: Vec<_> = events(&task).map(Result::unwrap).filter(is_of_cgroup).collect();
    assert_eq!(told, [Event::Empty]);
    assert!(start.elapsed() > Duration::from_millis(500), "{:?}", start.elapsed());
    assert!(task.wait().unwrap().success());
}

#[test]
fn cpu_contention_causes_pressure_events() {
    if !can("cgroups") {
        return;
    }
    let both = "(while :; do :; done) & while :; do :; done";
    let limits = Limits { cores: "0".parse().unwrap(), exclusive: true, ..Limits::default() };
    let task = shell(both).limits(limits).start().unwrap();
    let threshold = PressureThreshold {
        resource: PressureResource::Cpu,
        full: false,
        stall: Duration::from_millis(100),
        window: Duration::from_millis(1000),
    };
    let options = |threshold| EventOptions { pressure: vec![threshold] };
    let watched = task.events(&options(threshold));
    let host = Host::probe().unwrap().cgroups;
    if host.mode == Mode::V1 || !Path::new("/proc/pressure/cpu").exists() {
        let (_, why) = step(watched.unwrap_err());
        assert_eq!(why.kind(), std::io::ErrorKind::Unsupported, "{why}");
        let told = if host.mode == Mode::V1 {
            "cgroup v1 does not support pressure (PSI), which needs cgroup v2"
        } else {
            "psi=1"
        };
        assert!(why.to_string().contains(told), "{why}");
        return;
    }
    let mut watched = watched.unwrap();
    for _ in 0..2 {
        match polled(&mut watched) {
            Some(Event::Pressure { resource: PressureResource::Cpu, full: false, stalled, .. }) => {
                assert!(stalled >= threshold.stall && stalled <= threshold.window, "{stalled:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    for resource in [PressureResource::Io, PressureResource::Memory] {
        let mut calm =
            task.events(&options(PressureThreshold { resource, full: true, ..threshold })).unwrap();
        assert_eq!(present(&mut calm), None);
    }
    let wrong = options(PressureThreshold { window: Duration::from_millis(1), ..threshold });
    assert!(matches!(task.events(&wrong), Err(Error::Spec { field: "pressure", .. })));
    task.kill().unwrap();
    loop {
        match polled(&mut watched).unwrap() {
            Event::Empty => break,
            other => assert!(matches!(other, Event::Pressure { .. }), "{other:?}"),
        }
    }
}

#[test]
fn frozen_task_does_not_run_until_it_is_thawed() {
    if !can("cgroups") {
        return;
    }
    let task = shell("while :; do echo; done").stdout(Stdio::Piped).start().unwrap();
    let mut stdout = task.take_stdout().unwrap();
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(&stdout, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
    let drained = |stdout: &mut std::process::ChildStdout| {
        let mut buffer = [0; 65536];
        loop {
            match stdout.read(&mut buffer) {
                Ok(n) => assert!(n > 0),
                Err(e) => return assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
    };
    task.freeze().unwrap();
    assert!(task.frozen().unwrap());
    drained(&mut stdout);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(stdout.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    // Init is frozen as well, so it cannot report the end.
    task.signal(Signal::TERM).unwrap();
    assert_eq!(task.wait_timeout(Duration::from_millis(200)).unwrap(), None);
    task.thaw().unwrap();
    assert_eq!(task.wait().unwrap().signal, Some(15));
    // After the end.
    assert!(!task.frozen().unwrap());
    task.thaw().unwrap();
    let (_, why) = step(task.freeze().unwrap_err());
    assert_eq!(why.raw_os_error(), Some(libc::ESRCH));
}

#[test]
fn frozen_task_can_be_killed_and_dropped() {
    if !can("cgroups") {
        return;
    }
    for init in [true, false] {
        let frozen = || {
            let task = shell("sleep 60 & sleep 60").with(|s| s.init = init).start().unwrap();
            task.freeze().unwrap();
            (task, Instant::now())
        };
        let (task, start) = frozen();
        let told = events(&task);
        task.kill().unwrap();
        assert_eq!(task.wait().unwrap().signal, Some(9));
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
        assert_eq!(told.map(Result::unwrap).filter(is_of_cgroup).collect::<Vec<_>>(), [Event::Empty]);
        let (task, start) = frozen();
        drop(task);
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    }
}

#[test]
fn one_thread_may_wait_while_another_freezes() {
    if !can("cgroups") {
        return;
    }
    let task = shell("sleep 60").start().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| task.wait().unwrap());
        for _ in 0..20 {
            task.freeze().unwrap();
            assert!(task.frozen().unwrap());
            task.thaw().unwrap();
        }
        task.freeze().unwrap();
        task.kill().unwrap();
        assert_eq!(waiting.join().unwrap().signal, Some(9));
    });
}

/// All events that are left, of a task whose root or filter may be weakened on this machine.
fn life(events: Events) -> Vec<Event> {
    events.map(Result::unwrap).filter(|event| !matches!(event, Event::Degraded { .. })).collect()
}

fn exited(code: i32) -> Event {
    Event::Exited { status: ExitStatus::exited(code) }
}

#[test]
fn events_tell_a_life_from_the_start_to_the_exit_to_every_listener() {
    if !can("cgroups") {
        return;
    }
    let task = small(shell("read go; exit 3")).stdin(Stdio::Piped).start().unwrap();
    let (early, mut watched) = (events(&task), events(&task));
    assert_eq!(watched.try_next().unwrap(), Some(Event::Started));
    while watched.try_next().unwrap().is_some() {}
    let limits = |memory: u64| Limits { memory: Some(memory << 20), ..Limits::default() };
    let report = task.update(&limits(48)).unwrap();
    // A listener that polls is woken by a change of the limits.
    let told = watched.next_timeout(LONG).unwrap();
    assert_eq!(told, Some(Event::LimitsUpdated { updates: 1, report }));
    let report = task.update(&limits(56)).unwrap();
    drop(task.take_stdin());
    // The events alone find the end: nothing waits for the task.
    let updated = |updates| Event::LimitsUpdated { updates, report: report.clone() };
    assert_eq!(life(watched), [updated(1), exited(3), Event::Empty]);
    assert_eq!(life(early), [Event::Started, updated(2), exited(3), Event::Empty]);
    assert_eq!(task.status().unwrap().unwrap().code, Some(3));
    assert_eq!(life(events(&task)), [Event::Started, updated(2), exited(3), Event::Empty]);
    task.wait().unwrap();
    let late = events(&task);
    drop(task);
    assert_eq!(life(late), [Event::Started, updated(2), exited(3), Event::Empty]);
}

#[test]
fn events_have_the_status_of_a_task_that_a_drop_kills() {
    if !can("cgroups") {
        return;
    }
    let sleeping = || small(shell("sleep 600"));
    for sandbox in [sleeping(), sleeping().with(|s| s.init = false)] {
        let task = sandbox.start().unwrap();
        let told = events(&task);
        drop(task);
        let killed = ExitStatus::signalled(libc::SIGKILL).with_killed(true);
        assert_eq!(life(told), [Event::Started, Event::Exited { status: killed }, Event::Empty]);
    }
}

#[test]
fn main_process_exits_before_the_last_one() {
    if !can("cgroups") {
        return;
    }
    let sandbox =
        shell("sleep 600 & exit 4").with(|s| s.init = false).pid_mode(cofferdam::IsolationMode::Host);
    let task = sandbox.with(|s| s.require = None).start().unwrap();
    let mut told = events(&task);
    while told.next_timeout(LONG).unwrap() != Some(exited(4)) {}
    assert_eq!(told.try_next().unwrap(), None);
    task.kill().unwrap();
    assert_eq!(life(told), [Event::Empty]);
    task.wait().unwrap();
}

#[test]
fn control_that_does_not_hold_is_an_event_with_the_reason() {
    if !can("cgroups") {
        return;
    }
    let sandbox = shell("exit 0").pid_mode(cofferdam::IsolationMode::Host).deadline(LONG);
    let task = sandbox.with(|s| s.init = false).require(cofferdam::Require::BestEffort).start().unwrap();
    let report = task.report();
    assert!(!report.missing.is_empty(), "{report}");
    let expected = Event::Degraded {
        weakened: report.weakened,
        missing: report.missing,
        why: report.why(report.weakened | report.missing),
    };
    let told: Vec<_> = events(&task).map(Result::unwrap).collect();
    assert_eq!(told, [Event::Started, expected, exited(0), Event::Empty]);
}

#[test]
fn events_of_a_recovered_task_have_its_exit_also_if_it_ended_before() {
    if !can("cgroups") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let policy = cofferdam::Policy { state_dir: Some(dir.path().into()), ..cofferdam::Policy::default() };
    let survivor =
        |script| small(shell(script)).policy(&policy).die_with(DieWith::Survive).stdin(Stdio::Piped);
    let task = survivor("read go; exit 5").start().unwrap();
    let (handle, stdin) = (task.handle().unwrap(), task.take_stdin());
    let abandoned = events(&task);
    drop(task);
    let task = Sandbox::recover(&handle).unwrap();
    let told = events(&task);
    let pidfd = task.pidfd().try_clone_to_owned().unwrap();
    drop(stdin);
    assert_eq!(life(told), [Event::Started, exited(5), Event::Empty]);
    // A value whose task was dropped cannot know the status.
    assert_eq!(life(abandoned), [Event::Started, Event::Empty]);
    drop(task);
    // Until the process is reaped, by the crate's thread, a recovery finds it.
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
    let task = Sandbox::recover(&handle).unwrap();
    assert_eq!(life(events(&task)), [Event::Started, exited(5), Event::Empty]);
    drop(task);
    let start = Instant::now();
    while nix::sys::signal::kill(nix::unistd::Pid::from_raw(init_of(&handle)), None).is_ok() {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(5));
    }
    let task = Sandbox::recover(&handle).unwrap();
    assert_eq!(life(events(&task)), [Event::Started, exited(5), Event::Empty]);
    task.release().unwrap();
    assert_eq!(life(events(&task)), [Event::Started, exited(5), Event::Empty]);
}

fn init_of(handle: &cofferdam::TaskHandle) -> i32 {
    let pid = serde_json::to_value(handle).unwrap()["identity"]["init"]["pid"].as_i64().unwrap();
    pid.try_into().unwrap()
}
