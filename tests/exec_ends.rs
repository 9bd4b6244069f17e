//! Another command in a running task: what ends it, and what it does not outlive. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;
mod exec_tools;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::ChildStdout;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use cofferdam::filter::{Action, Filter, Profile, Rule};
use cofferdam::{
    Control, Deadline, Error, Event, EventOptions, ExecSpec, ExitKind, Limits, Signal, SignalTarget, Stdio,
    Task,
};
use common::{Start as _, sandboxes, shell};
use exec_tools::{LONG, counted, output, sh, sleeper, soon, until};

#[test]
fn dropping_killing_and_stopping_an_additional_command_end_its_daemons_and_not_the_task() {
    if !sandboxes() {
        return;
    }
    let task = sleeper().start().unwrap();
    if !counted(&task) {
        return;
    }
    let before = task.processes().unwrap().len();
    let daemon = sh("setsid sleep 1001 & setsid sh -c 'sleep 1002 & sleep 1003' & echo ready; sleep 1004");
    let start = || {
        let command = task.exec(&daemon).unwrap();
        command.take_stdout().unwrap().read_exact(&mut [0; 6]).unwrap();
        // The process outside, four that sleep, and the shells that have not become one of these.
        until("the daemons have started", || command.processes().unwrap().len() >= 5);
        assert!(task.processes().unwrap().len() >= before + 5);
        command
    };
    let end: [fn(Task); 3] = [
        drop,
        |command| {
            command.kill().unwrap();
            assert_eq!(command.wait().unwrap().kind(), ExitKind::Killed);
        },
        |command| {
            let status = command.stop(Signal::new(15).unwrap(), LONG, SignalTarget::All).unwrap();
            assert!(!status.success(), "{status}");
            command.release().unwrap();
        },
    ];
    for end in end {
        end(start());
        until("the daemons have ended", || task.processes().unwrap().len() == before);
    }
    assert!(task.status().unwrap().is_none());
    // The cgroups of the commands are gone too.
    let pid = task.pid().unwrap();
    for group in common::cgroups_of(pid) {
        let below = std::fs::read_dir(&group).unwrap().flatten().filter(|entry| entry.path().is_dir());
        assert_eq!(below.count(), 0, "{group:?}");
    }
}

#[test]
fn an_additional_command_ends_with_the_task() {
    if !sandboxes() {
        return;
    }
    let task = sleeper().start().unwrap();
    let command = task.exec(&sh("sleep 1005")).unwrap();
    task.kill().unwrap();
    assert!(!command.wait().unwrap().success());
    task.wait().unwrap();
    let refused = task.exec(&sh("true")).unwrap_err();
    assert!(
        matches!(&refused, Error::Task { source, .. } if source.raw_os_error() == Some(libc::ESRCH)),
        "{refused:?}"
    );
    assert!(refused.to_string().contains("has ended: signal 9"), "{refused}");
}

#[test]
fn a_command_in_a_frozen_task_is_refused_at_once() {
    if !sandboxes() {
        return;
    }
    let task = sleeper().start().unwrap();
    if let Err(e) = task.freeze() {
        return common::skip::skip(&["cgroups"], e);
    }
    let refused = task.exec(&sh("true")).unwrap_err();
    assert!(refused.to_string().contains("frozen"), "{refused}");
    task.thaw().unwrap();
    assert!(output(&task, "true").status.success());
}

/// Entry point of this binary inside a sandbox: what it does there.
#[test]
fn probe_entry() {
    let ready = || std::io::stdout().write_all(b"ready\n").unwrap();
    match std::env::var("COFFERDAM_PROBE").as_deref() {
        Ok("sleep") => std::thread::sleep(Duration::from_secs(1000)),
        Ok("outlive") => {
            // SAFETY: the arguments are numbers.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) }, 0);
            ready();
            std::thread::sleep(Duration::from_secs(1000));
        }
        Ok("eat") => {
            let eaten: Vec<Vec<u8>> = (0..1024).map(|i| vec![i as u8 | 1; 1 << 20]).collect();
            panic!("{} MiB", eaten.len());
        }
        _ => {}
    }
}

/// A command that runs [`probe_entry`] in a task that was spawned by `probe`.
fn enter_probe(what: &str) -> ExecSpec {
    let args = ["--exact", "probe_entry", "--test-threads=1"];
    ExecSpec::command("/probe").args(args).env("COFFERDAM_PROBE", what).stdout(Stdio::Piped)
}

/// Waits until the command has written that it is ready. The test harness writes some lines before.
fn await_ready(command: &Task) -> ChildStdout {
    let mut lines = BufReader::new(command.take_stdout().unwrap());
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "{command:?}");
    }
    lines.into_inner()
}

/// The caller freezes, changes and thaws the task while other threads enter it. Each call returns, and what is frozen
/// before its exec has none of the caller's memory.
#[test]
fn freezing_a_task_while_commands_enter_it_blocks_neither() {
    if !sandboxes() {
        return;
    }
    let task = sleeper().start().unwrap();
    if let Err(e) = task.freeze() {
        return common::skip::skip(&["cgroups"], e);
    }
    task.thaw().unwrap();
    let own = std::fs::read_to_string("/proc/self/comm").unwrap();
    let (done, rounds) = (AtomicBool::new(false), if common::emulated() { 10 } else { 60 });
    // How often a command entered, and how often the task was frozen already.
    let (entered, refused) = (AtomicU32::new(0), AtomicU32::new(0));
    let odd = std::thread::scope(|scope| {
        let enter = || {
            let (mut odd, start) = (Vec::new(), Instant::now());
            for round in 0.. {
                let both = entered.load(SeqCst) > 0 && refused.load(SeqCst) > 0;
                if round >= rounds && (both || start.elapsed() > LONG) {
                    break;
                }
                match task.exec(&sh("true").deadline(Duration::from_secs(20))) {
                    Ok(command) => {
                        assert!(command.wait().unwrap().success());
                        entered.fetch_add(1, SeqCst);
                    }
                    Err(Error::Task { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
                        refused.fetch_add(1, SeqCst);
                    }
                    Err(e) => odd.push(e),
                }
            }
            odd
        };
        let threads = [scope.spawn(enter), scope.spawn(enter)];
        scope.spawn(|| {
            while !done.load(SeqCst) {
                if task.freeze().is_ok() {
                    std::thread::sleep(Duration::from_millis(30));
                    for process in task.processes().unwrap() {
                        assert_ne!(process.name, own.trim(), "a process with the caller's memory");
                    }
                    task.update(&Limits::default()).unwrap();
                }
                task.thaw().unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let odd = threads.map(|thread| thread.join());
        done.store(true, SeqCst);
        odd.map(Result::unwrap).into_iter().flatten().collect::<Vec<Error>>()
    });
    assert!(odd.is_empty(), "{odd:?}");
    assert!(entered.load(SeqCst) > 0 && refused.load(SeqCst) > 0, "{entered:?} {refused:?}");
    assert!(output(&task, "true").status.success());
}

/// A command that has cleared its parent-death signal.
#[test]
fn a_command_without_a_parent_death_signal_ends_at_its_deadline_and_when_it_is_killed() {
    if !sandboxes() {
        return;
    }
    let task = common::probe("sleep").start().unwrap();
    let outlive = enter_probe("outlive");
    let command = task.exec(&outlive).unwrap();
    let mut stdout = await_ready(&command);
    command.kill().unwrap();
    assert_eq!(stdout.read(&mut [0]).unwrap(), 0);
    assert_eq!(command.wait().unwrap().kind(), ExitKind::Killed);
    let command = task.exec(&outlive.clone().deadline(soon())).unwrap();
    let mut stdout = await_ready(&command);
    // The pipe closes with the command. Nothing waits for it.
    assert_eq!(stdout.read(&mut [0]).unwrap(), 0);
    assert_eq!(command.wait().unwrap().kind(), ExitKind::Deadline(Deadline::Wall));
    let command = task.exec(&outlive).unwrap();
    let mut stdout = await_ready(&command);
    drop(command);
    assert_eq!(stdout.read(&mut [0]).unwrap(), 0);
    assert!(task.status().unwrap().is_none());
}

#[test]
fn a_command_that_uses_too_much_memory_is_reported_as_oom_killed_and_the_next_one_is_not() {
    if !sandboxes() {
        return;
    }
    let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
    let task = match common::probe("sleep").limits(limits).start() {
        Err(e @ Error::Unsupported { .. }) => return common::skip::skip(&["cgroups"], e),
        task => task.unwrap(),
    };
    let command = task.exec(&enter_probe("eat")).unwrap();
    let status = command.wait_timeout(LONG).unwrap().unwrap();
    assert_eq!(status.kind(), ExitKind::OomKilled, "{status}");
    assert_eq!(command.oom().unwrap().kills, 1);
    let next = task.exec(&sh("kill -9 $$")).unwrap();
    assert_eq!(next.wait().unwrap().kind(), ExitKind::Signalled { signal: 9, core_dumped: false });
    assert_eq!(next.oom(), None);
    assert_eq!(task.oom().unwrap().kills, 1);
    // Nor do the events of a later command have the kills of an earlier one.
    let watched = task.exec(&sh("sleep 0.1; kill -9 $$")).unwrap();
    let mut events = watched.events(&EventOptions::default()).unwrap();
    loop {
        match events.next_timeout(LONG).unwrap() {
            Some(Event::Exited { status }) => {
                assert_eq!(status.kind(), ExitKind::Signalled { signal: 9, core_dumped: false });
                break;
            }
            Some(Event::Oom { .. }) => panic!("the command was not OOM-killed"),
            Some(_) => {}
            None => panic!("no event"),
        }
    }
    assert_eq!(watched.oom(), None);
}

/// Commands that enter a task while it is removed.
#[test]
fn a_command_that_enters_a_task_at_its_end_is_refused_because_the_task_has_ended() {
    if !sandboxes() {
        return;
    }
    let rounds = if common::emulated() { 5 } else { 30 };
    for round in 0..rounds {
        let task = sleeper().start().unwrap();
        std::thread::scope(|scope| {
            let enter = scope.spawn(|| {
                loop {
                    match task.exec(&sh("sleep 1000")) {
                        Ok(_) => {}
                        Err(e) => return e,
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(round));
            task.release().unwrap();
            let refused = enter.join().unwrap();
            let ended = |source: &std::io::Error| source.raw_os_error() == Some(libc::ESRCH);
            assert!(matches!(&refused, Error::Task { source, .. } if ended(source)), "{refused:?}");
        });
    }
}

/// The process that watches the deadline is in no process group that the command can signal.
#[test]
fn a_command_that_stops_its_process_group_ends_at_its_deadline() {
    if !sandboxes() {
        return;
    }
    let task = sleeper().start().unwrap();
    let command = task.exec(&sh("kill -STOP 0; sleep 1007").deadline(soon())).unwrap();
    let status = command.wait_end(Some(LONG)).unwrap();
    command.kill().unwrap();
    assert_eq!(status.map(|status| status.kind()), Some(ExitKind::Deadline(Deadline::Wall)));
    assert!(task.status().unwrap().is_none());
}

#[test]
fn the_deadline_of_a_command_ends_it_and_not_the_task() {
    if !sandboxes() {
        return;
    }
    let task = sleeper().start().unwrap();
    let command = task.exec(&sh("sleep 1006").deadline(soon())).unwrap();
    assert!(command.report().asked.contains(Control::DEADLINE));
    let status = command.wait_timeout(LONG).unwrap().unwrap();
    assert_eq!(status.kind(), ExitKind::Deadline(Deadline::Wall));
    assert!(task.status().unwrap().is_none());
    let in_time = task.exec(&sh("exit 5").deadline(LONG)).unwrap();
    assert_eq!(in_time.wait().unwrap().kind(), ExitKind::Exited(5));
}

/// The process of init that watches the deadline has the task's filter, with what it needs allowed.
#[test]
fn the_deadline_of_a_command_ends_it_whatever_the_filter_of_the_task_forbids() {
    if !sandboxes() {
        return;
    }
    for action in [Action::Kill, Action::Errno(1)] {
        let calls = ["kill", "clock_gettime"].map(String::from).to_vec();
        let forbid = Rule { calls, action, args: vec![] };
        let profile = Profile { rules: vec![forbid], ..Profile::default() };
        let task = sleeper().filter(Filter::Profile(profile)).start().unwrap();
        let command = task.exec(&ExecSpec::command("/bin/sleep").args(["1009"]).deadline(soon())).unwrap();
        let status = command.wait_end(Some(LONG)).unwrap().unwrap();
        assert_eq!(status.kind(), ExitKind::Deadline(Deadline::Wall), "{action:?}: {status}");
        assert!(task.status().unwrap().is_none());
    }
}

/// Many tasks at once, each with an additional command, each stopped.
#[test]
fn five_hundred_tasks_are_each_entered_and_stopped() {
    if !sandboxes() {
        return;
    }
    let (threads, each) = if common::emulated() { (4, 5) } else { (10, 50) };
    let sandbox =
        shell("trap 'exit 9' TERM; echo ready; while :; do sleep 1000 & wait; done").stdout(Stdio::Piped);
    let sandbox = sandbox.host(&cofferdam::Host::probe().unwrap());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let tasks: Vec<Task> = (0..each).map(|_| sandbox.start().unwrap()).collect();
                for task in &tasks {
                    task.take_stdout().unwrap().read_exact(&mut [0; 6]).unwrap();
                    assert_eq!(task.exec(&sh("exit 3")).unwrap().wait().unwrap().kind(), ExitKind::Exited(3));
                }
                for task in &tasks {
                    let status = task.stop(Signal::new(15).unwrap(), LONG, SignalTarget::Main).unwrap();
                    assert_eq!(status.kind(), ExitKind::Exited(9));
                    task.release().unwrap();
                }
            });
        }
    });
}

/// A task that stops every process that it can signal. `kill -STOP -1` reaches a process that enters before its exec.
#[test]
fn a_task_that_stops_what_enters_does_not_block_the_caller_for_ever() {
    if !sandboxes() {
        return;
    }
    let script = "echo ready; while :; do for p in /proc/[0-9]*; do case ${p#/proc/} in 1|2) ;; \
                  *) kill -STOP ${p#/proc/} 2>/dev/null;; esac; done; done";
    let task = shell(script).stdout(Stdio::Piped).start().unwrap();
    task.take_stdout().unwrap().read_exact(&mut [0; 6]).unwrap();
    let (mut blocked, start) = (0, Instant::now());
    while blocked == 0 && start.elapsed() < LONG / 2 {
        match task.exec(&sh("true").deadline(Duration::from_millis(500))) {
            Err(Error::Prepare { source, .. }) if source.kind() == std::io::ErrorKind::TimedOut => {
                blocked += 1
            }
            Err(e) => panic!("{e:?}"),
            // It was stopped after its exec, or not at all.
            Ok(command) => assert!(command.wait_timeout(LONG).unwrap().is_some()),
        }
    }
    if blocked == 0 {
        common::skip::note("no process was stopped before its exec");
    }
    assert!(task.status().unwrap().is_none());
    task.kill().unwrap();
}

#[test]
fn signal_to_all_processes_of_a_task_reaches_no_process_that_watches_an_additional_command() {
    if !sandboxes() {
        return;
    }
    let task = sleeper().start().unwrap();
    if !counted(&task) {
        return;
    }
    let mut spec = sh("sleep 600");
    spec.deadline = Some(Duration::from_millis(500));
    let command = task.exec(&spec).unwrap();
    task.signal_to(Signal::STOP, SignalTarget::All).unwrap();
    let status = command.wait_timeout(LONG).unwrap().expect("the deadline of the command is over");
    assert_eq!(status.deadline, Some(Deadline::Wall), "{status}");
    assert!(task.status().unwrap().is_none());
}

#[test]
fn commands_in_the_hosts_pid_namespace_end_at_once_when_they_are_dropped() {
    if !sandboxes() {
        return;
    }
    let Ok(task) = sleeper().with(|s| s.pid_mode = Some(cofferdam::IsolationMode::Host)).start() else {
        return common::skip::skip(&[], "no task in the host's PID namespace");
    };
    let begun = Instant::now();
    for _ in 0..20 {
        drop(task.exec(&sh("sleep 600")).unwrap());
    }
    // Each would otherwise wait for a second.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}
