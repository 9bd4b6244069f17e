//! The life of a task as a driver sees it: many waiters, the cause of an end, stopping, output, and what is removed when.
//! (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use cofferdam::{
    Control, Deadline, Error, EventOptions, ExitKind, IsolationMode, Method, Policy, Require, Root, Sandbox,
    Signal, SignalTarget, Stdio, Task, Volume,
};
use common::{Start as _, sandboxes, shell};
use nix::poll::{PollFd, PollFlags, poll};

/// More than any of these tests takes on a loaded machine.
const LONG: Duration = Duration::from_secs(60);

/// A sandbox whose root is a copy of one file, in a temporary directory below `dir`.
fn copied(dir: &Path, script: &str) -> Sandbox {
    std::fs::write(dir.join("file"), "content").unwrap();
    let policy = Policy { temp_dir: Some(dir.into()), ..Policy::default() };
    let chroot_env = [(dir.join("file"), "/file".into())].into();
    let programs = ["/bin", "/lib", "/lib64", "/usr"].into_iter().filter(|path| Path::new(path).exists());
    let sandbox =
        shell(script).policy(&policy).root(Root { populate: Method::Copy, chroot_env, ..Root::default() });
    programs
        .fold(sandbox, |sandbox, path| sandbox.volume(Volume { read_only: true, ..Volume::new(path, path) }))
}

/// Whether the temporary root of the only sandbox below `dir` is there.
fn has_root(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().count() > 1
}

/// Reads one line of the task's standard output.
fn line(stdout: &mut impl Read) -> String {
    let (mut text, mut byte) = (Vec::new(), [0u8]);
    while stdout.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

/// Spawns a script that prints `ready` when it may be signalled.
fn ready(sandbox: &Sandbox) -> (Task, std::process::ChildStdout) {
    let task = sandbox.clone().stdout(Stdio::Piped).start().unwrap();
    let mut stdout = task.take_stdout().unwrap();
    assert_eq!(line(&mut stdout), "ready");
    (task, stdout)
}

/// Entry point of a driver that a test kills: spawns a task with a copied root, says so, and waits. Does nothing
/// elsewhere.
#[test]
fn driver_entry() {
    let Some(dir) = std::env::var_os("COFFERDAM_DRIVER") else { return };
    let sandbox = copied(Path::new(&dir), "sleep 600").id(id(Path::new(&dir)));
    let task = sandbox.start().unwrap();
    println!("\nspawned {}", task.pid().unwrap());
    task.wait().unwrap();
}

/// Starts such a driver. Returns it with the pid of its task.
fn driver(dir: &Path) -> (std::process::Child, i32) {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "driver_entry", "--nocapture", "--test-threads=1"]);
    let mut driver =
        command.env("COFFERDAM_DRIVER", dir).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let stdout = driver.stdout.as_mut().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stdout)).map_while(Result::ok);
    let pid = lines.find_map(|line| line.strip_prefix("spawned ")?.parse().ok());
    (driver, pid.unwrap())
}

/// The id of the driver's task.
fn id(dir: &Path) -> String {
    format!("life-{}", dir.file_name().unwrap().to_str().unwrap().trim_start_matches('.'))
}

fn source(error: &cofferdam::Error) -> String {
    std::error::Error::source(error).unwrap().to_string()
}

/// A killed driver can remove nothing. The same id must start again without hands.
#[test]
fn id_of_a_killed_driver_starts_again_in_a_new_root() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut first, _) = driver(dir.path());
    let again = copied(dir.path(), "cat /file").id(id(dir.path())).stdout(Stdio::Piped);
    let busy = again.start().unwrap_err();
    assert_eq!(source(&busy), "the id is in use: its owner is alive", "{busy}");
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(has_root(dir.path()));
    let start = Instant::now();
    let task = loop {
        // Init ends with its driver, and its processes a moment later.
        match again.start() {
            Ok(task) => break task,
            Err(error) => assert!(start.elapsed() < LONG, "{error}: {}", source(&error)),
        }
    };
    let output = task.wait_with_output(100, None).unwrap();
    assert_eq!((output.status.code, output.stdout.as_slice()), (Some(0), &b"content"[..]));
    assert!(!has_root(dir.path()));
}

#[test]
fn id_of_a_detached_task_is_in_use_by_its_process() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let sandbox = copied(dir.path(), "sleep 600").id(format!("life-detached-{}", std::process::id()));
    let task = sandbox.start().unwrap();
    let (pid, init) = (task.pid().unwrap(), task.pidfd().try_clone_to_owned().unwrap());
    let groups = common::cgroups_of(pid);
    task.detach().unwrap();
    if !groups.is_empty() {
        assert!(source(&task.stats().unwrap_err()).contains("was detached"));
    }
    let busy = source(&sandbox.start().unwrap_err());
    assert!(busy.starts_with("the id is in use: a detached task runs in it, with process "), "{busy}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let mut ended = [PollFd::new(init.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut ended, 60_000u16).unwrap(), 1);
    // The next task of that name removes what is left.
    sandbox.with(|spec| spec.args = vec!["-c".into(), "true".into()]).start().unwrap().wait().unwrap();
    assert!(!has_root(dir.path()));
    // The shared v1 cgroup is used by other tests, and is removed with the last task.
    let own = groups.iter().filter(|group| !group.ends_with("cofferdam/share"));
    own.for_each(|group| assert!(!group.exists(), "{group:?}"));
}

#[test]
fn status_of_an_ended_task_is_known_before_anything_is_removed() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let task = copied(dir.path(), "exit 7").start().unwrap();
    assert_eq!(task.wait_end(None).unwrap().unwrap().kind(), ExitKind::Exited(7));
    assert_eq!(task.status().unwrap().unwrap().code, Some(7));
    assert!(has_root(dir.path()), "wait_end and status remove nothing");
    task.release().unwrap();
    assert!(!has_root(dir.path()));
    task.release().unwrap();
    assert_eq!(task.status().unwrap().unwrap().code, Some(7), "the status stays");
    assert_eq!(task.wait().unwrap().code, Some(7));
}

#[test]
fn release_of_a_running_task_kills_it_and_removes_its_root() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let task = copied(dir.path(), "sleep 600").start().unwrap();
    assert_eq!(task.status().unwrap(), None);
    assert_eq!(task.wait_end(Some(Duration::from_millis(20))).unwrap(), None);
    task.release().unwrap();
    assert!(!has_root(dir.path()));
    assert_eq!(task.status().unwrap().unwrap().kind(), ExitKind::Killed);
}

#[test]
fn status_stats_and_events_do_not_wait_for_the_removal() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let task = copied(dir.path(), "exit 3").start().unwrap();
    let (looking, looked) = std::sync::mpsc::channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let task = &task;
        let removing = scope.spawn(move || {
            task.wait_with_root(|_| {
                looking.send(()).unwrap();
                wait.recv().unwrap();
            })
        });
        // The other thread is in the middle of the removal until the last line.
        looked.recv().unwrap();
        assert_eq!(task.status().unwrap().unwrap().code, Some(3));
        assert_eq!(task.wait_end(None).unwrap().unwrap().code, Some(3));
        let _ = (task.stats(), task.oom(), task.processes(), task.rusage());
        if let Ok(events) = task.events(&EventOptions::default()) {
            events.map(|event| event.unwrap()).for_each(drop);
        }
        task.kill().unwrap();
        go_on.send(()).unwrap();
        assert_eq!(removing.join().unwrap().unwrap().0.code, Some(3));
    });
}

#[test]
fn any_number_of_threads_may_wait_and_all_get_one_status() {
    if !sandboxes() {
        return;
    }
    for init in [true, false] {
        let task = shell("read line; exit 5").stdin(Stdio::Piped).init(init).start().unwrap();
        let stdin = task.take_stdin();
        std::thread::scope(|scope| {
            let task = &task;
            let ends: Vec<_> = (0..8)
                .map(|n| {
                    scope.spawn(move || match n % 2 {
                        0 => task.wait_end(Some(LONG)).unwrap().unwrap(),
                        _ => task.wait().unwrap(),
                    })
                })
                .collect();
            drop(stdin);
            for end in ends {
                assert_eq!(end.join().unwrap().kind(), ExitKind::Exited(5));
            }
        });
    }
}

#[test]
fn kinds_of_an_end_are_told_apart() {
    if !sandboxes() {
        return;
    }
    for init in [true, false] {
        let signal = |signal| ExitKind::Signalled { signal, core_dumped: false };
        let kind = |script: &str| shell(script).init(init).start().unwrap().wait().unwrap().kind();
        assert_eq!(kind("exit 137"), ExitKind::Exited(137));
        // It had been killed by something else when it was stopped, the OOM killer for example.
        let (task, _stdout) =
            ready(&shell("echo ready; read line; kill -9 $$").init(true).stdin(Stdio::Piped));
        drop(task.take_stdin());
        let mut ended = [PollFd::new(task.pidfd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut ended, 60_000u16).unwrap(), 1);
        task.kill().unwrap();
        assert_eq!(task.wait().unwrap().kind(), signal(9));
        // Without init the shell is PID 1, which no signal from inside kills.
        if init {
            assert_eq!(kind("kill -9 $$"), signal(9), "a SIGKILL of the task's own is not ours");
            assert_eq!(kind("kill -TERM $$"), signal(15));
        }
        let task = shell("sleep 600").init(init).start().unwrap();
        task.kill().unwrap();
        assert_eq!(task.wait().unwrap().kind(), ExitKind::Killed);
        let task = shell("exit 4").init(init).start().unwrap();
        task.wait_end(None).unwrap();
        task.kill().unwrap();
        assert_eq!(task.wait().unwrap().kind(), ExitKind::Exited(4), "it had ended before the kill");
    }
}

#[test]
fn stop_signals_waits_and_kills_only_after_the_grace() {
    if !sandboxes() {
        return;
    }
    let graceful = shell("trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    let (task, _stdout) = ready(&graceful);
    let status = task.stop(Signal::TERM, LONG, SignalTarget::Main).unwrap();
    assert_eq!(status.kind(), ExitKind::Exited(3));
    assert_eq!(task.stop(Signal::TERM, LONG, SignalTarget::All).unwrap(), status, "it has ended");
    task.release().unwrap();
    assert_eq!(task.stop(Signal::TERM, LONG, SignalTarget::All).unwrap(), status, "it was removed");

    let stubborn = shell("trap '' TERM; echo ready; while :; do sleep 600; done");
    for target in [SignalTarget::Main, SignalTarget::Group, SignalTarget::All] {
        let (task, _stdout) = ready(&stubborn);
        let start = Instant::now();
        let status = task.stop(Signal::TERM, Duration::from_millis(150), target).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(150), "killed before the grace was over");
        assert_eq!(status.kind(), ExitKind::Killed);
        task.wait().unwrap();
    }
}

/// The time is watched by PID 1, so it also ends a task that nobody waits for, and wakes an event loop.
#[test]
fn deadline_ends_every_process_of_the_task() {
    if !sandboxes() {
        return;
    }
    let limit = Duration::from_secs(5);
    let stubborn =
        shell("trap '' TERM; setsid sleep 600 & echo ready; while :; do sleep 600; done").deadline(limit);
    let start = Instant::now();
    let (task, mut stdout) = ready(&stubborn);
    assert!(task.report().enforced.contains(Control::DEADLINE));
    // The pipe closes when the last process has ended.
    assert_eq!(stdout.read(&mut [0]).unwrap(), 0);
    assert!(start.elapsed() >= limit);
    let status = task.wait().unwrap();
    assert_eq!((status.kind(), status.signal), (ExitKind::Deadline(Deadline::Wall), Some(9)), "{status}");
    // A task that ends in time has its own status, and the next kill is no deadline.
    assert_eq!(shell("exit 3").deadline(LONG).start().unwrap().wait().unwrap().kind(), ExitKind::Exited(3));
    let task = shell("sleep 600").deadline(LONG).start().unwrap();
    task.kill().unwrap();
    assert_eq!(task.wait().unwrap().kind(), ExitKind::Killed);
}

#[test]
fn deadline_needs_an_init_that_stays() {
    if !sandboxes() {
        return;
    }
    for sandbox in [shell("true").init(false), shell("true").pid_mode(IsolationMode::Host)] {
        let refused = sandbox.clone().deadline(LONG).plan();
        assert!(matches!(refused, Err(Error::Unsupported { control: Control::DEADLINE, .. })), "{refused:?}");
        let plan = sandbox.deadline(LONG).require(Require::BestEffort).plan().unwrap();
        assert!(plan.report.missing.contains(Control::DEADLINE), "{}", plan.report);
    }
    for wrong in [Duration::ZERO, Duration::MAX] {
        assert!(matches!(shell("true").deadline(wrong).plan(), Err(Error::Spec { field: "deadline", .. })));
    }
}

/// A sandbox whose CPU time is limited. `None`, and a note, on a host that does not count the CPU time of a task.
fn limited_by_cpu_time(script: &str, limit: Duration) -> Option<Sandbox> {
    let sandbox = shell(script).cpu_deadline(limit);
    let report = sandbox.clone().require(Require::BestEffort).plan().unwrap().report;
    if report.missing.contains(Control::CPU_DEADLINE) {
        common::skip::note(report.why(Control::CPU_DEADLINE));
        return None;
    }
    Some(sandbox)
}

/// The processes that spin are not the main process, are in sessions of their own, and have lost their parents.
#[test]
fn cpu_deadline_counts_every_process_of_the_task() {
    if !sandboxes() {
        return;
    }
    let limit = Duration::from_secs(1);
    let script = "spin='while :; do :; done'
        sh -c \"$spin\" & setsid sh -c \"$spin\" & (setsid sh -c \"($spin) &\" &)
        while :; do (i=0; while [ $i -lt 10000 ]; do i=$((i + 1)); done); done";
    let Some(sandbox) = limited_by_cpu_time(script, limit) else { return };
    let task = sandbox.start().unwrap();
    assert!(task.report().enforced.contains(Control::CPU_DEADLINE), "{}", task.report());
    let start = Instant::now();
    let status = task.wait_timeout(LONG).unwrap().unwrap();
    assert_eq!((status.kind(), status.signal), (ExitKind::Deadline(Deadline::Cpu), Some(9)), "{status}");
    let used = task.stats().unwrap().cpu.total.unwrap();
    // The bound that is documented is much lower, but a busy machine may delay PID 1.
    assert!((limit..limit * 5).contains(&used), "{used:?} in {:?}", start.elapsed());
}

/// Only CPU time counts, and the end of a task in time is its own.
#[test]
fn cpu_deadline_does_not_end_a_task_that_sleeps() {
    if !sandboxes() {
        return;
    }
    let Some(sandbox) = limited_by_cpu_time("sleep 4; exit 3", Duration::from_secs(3)) else { return };
    assert_eq!(sandbox.start().unwrap().wait().unwrap().kind(), ExitKind::Exited(3));
    // Both deadlines are watched at once.
    let status = sandbox.deadline(Duration::from_secs(1)).start().unwrap().wait().unwrap();
    assert_eq!(status.kind(), ExitKind::Deadline(Deadline::Wall), "{status}");
}

/// The counter's descriptor is PID 1's alone.
#[test]
fn task_gets_no_descriptor_of_its_cpu_time_counter() {
    if !sandboxes() {
        return;
    }
    let list = "for fd in /proc/self/fd/*; do readlink $fd; done | grep -c -e cpu -e timerfd";
    let Some(sandbox) = limited_by_cpu_time(list, LONG) else { return };
    let output = sandbox.stdout(Stdio::Piped).start().unwrap().wait_with_output(1000, None).unwrap();
    assert_eq!((output.stdout.as_slice(), output.status.code), (&b"0\n"[..], Some(1)));
}

#[test]
fn cpu_deadline_needs_an_init_that_stays() {
    if !sandboxes() {
        return;
    }
    for sandbox in [shell("true").init(false), shell("true").pid_mode(IsolationMode::Host)] {
        let refused = sandbox.cpu_deadline(LONG).plan();
        let control = Control::CPU_DEADLINE;
        assert!(matches!(refused, Err(Error::Unsupported { control: c, .. }) if c == control), "{refused:?}");
    }
    for wrong in [Duration::ZERO, Duration::MAX] {
        let refused = shell("true").cpu_deadline(wrong).plan();
        assert!(matches!(refused, Err(Error::Spec { field: "cpu_deadline", .. })), "{refused:?}");
    }
}

/// A main process that prints how its two children ended: one in its process group, one in a session of its own.
const FAMILY: &str = "trap : USR1
    sleep 600 & near=$!
    setsid sleep 600 & far=$!
    # Both have executed sleep when their names say so.
    until [ \"$(cat /proc/$near/comm /proc/$far/comm)\" = \"$(printf 'sleep\\nsleep')\" ]; do sleep 0.01; done
    echo ready
    until wait $near; [ $? != 138 ] || ! kill -0 $near 2>/dev/null; do :; done
    wait $near; echo near $?
    # The signal has reached everything that it will reach when this line comes.
    read go
    kill -0 $far 2>/dev/null && kill -KILL $far
    wait $far; echo far $?";

#[test]
fn signal_reaches_the_process_group_or_all_processes() {
    if !sandboxes() {
        return;
    }
    // The default action of SIGUSR1 kills the children: 128 + 10. What lives then is killed by the script: 128 + 9.
    for (target, far) in [(SignalTarget::Group, "far 137"), (SignalTarget::All, "far 138")] {
        let (task, mut stdout) = ready(&shell(FAMILY).stdin(Stdio::Piped));
        task.signal_to(Signal::USR1, target).unwrap();
        assert_eq!(line(&mut stdout), "near 138", "{target:?}");
        drop(task.take_stdin());
        assert_eq!(line(&mut stdout), far, "{target:?}");
        assert!(task.wait().unwrap().code.is_some(), "init and the main process go on");
    }
}

#[test]
fn signal_to_all_reaches_no_process_outside_of_the_task() {
    if !sandboxes() {
        return;
    }
    // In the host's PID namespace only the cgroup tells which processes are the task's.
    let mut neighbour = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let sandbox = shell("echo ready; sleep 600; :").pid_mode(IsolationMode::Host);
    let (task, _stdout) = ready(&sandbox);
    match task.signal_to(Signal::TERM, SignalTarget::All) {
        Ok(()) => assert_eq!(task.wait().unwrap().signal, Some(15)),
        Err(error) => {
            let source = std::error::Error::source(&error).unwrap();
            let source = source.downcast_ref::<std::io::Error>().unwrap();
            assert_eq!(source.kind(), std::io::ErrorKind::Unsupported, "{error}: {source}");
        }
    }
    assert!(neighbour.try_wait().unwrap().is_none());
    neighbour.kill().unwrap();
    neighbour.wait().unwrap();
}

#[test]
fn output_is_read_up_to_a_limit_and_the_task_never_blocks() {
    if !sandboxes() {
        return;
    }
    let script =
        "i=0; while [ $i -lt 20000 ]; do echo 0123456789; echo error >&2; i=$((i + 1)); done; exit 6";
    let task = shell(script).stdout(Stdio::Piped).stderr(Stdio::Piped).start().unwrap();
    let output = task.wait_with_output(1000, None).unwrap();
    assert_eq!((output.status.code, output.truncated), (Some(6), true));
    assert_eq!((output.stdout.len(), output.stderr.len()), (1000, 1000));
    assert!(output.stdout.starts_with(b"0123456789\n0123") && output.stderr.starts_with(b"error\nerror"));

    let output = shell("echo out; echo err >&2").stdout(Stdio::Piped).stderr(Stdio::Piped).start().unwrap();
    let output = output.wait_with_output(1000, None).unwrap();
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert!(!output.truncated && output.status.success());
    let nothing = shell("echo out").start().unwrap().wait_with_output(1000, None).unwrap();
    assert!(nothing.stdout.is_empty() && !nothing.truncated);
}

#[test]
fn task_is_killed_when_the_time_for_its_output_is_over() {
    if !sandboxes() {
        return;
    }
    let task = shell("echo early; sleep 600 & sleep 600").stdout(Stdio::Piped).start().unwrap();
    let output = task.wait_with_output(1000, Some(Duration::from_secs(5))).unwrap();
    assert_eq!((output.status.kind(), output.stdout.as_slice()), (ExitKind::Killed, &b"early\n"[..]));
}

#[test]
fn root_that_was_removed_cannot_be_looked_at() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let task = copied(dir.path(), "exit 1").start().unwrap();
    assert!(task.wait_with_root(|root| root.path().unwrap().join("file").exists()).unwrap().1);
    let error = task.wait_with_root(|_| ()).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("removed the root"), "{error}");
    // A root of mounts has nothing to remove, and can be looked at any time.
    let task = shell("exit 1").start().unwrap();
    task.wait().unwrap();
    assert!(task.wait_with_root(|root| root.path().is_none()).unwrap().1);
}

#[test]
fn process_that_holds_the_pipe_does_not_delay_the_wait() {
    if !sandboxes() {
        return;
    }
    let start = Instant::now();
    let task = shell("setsid sleep 600 & echo $!; exit 2").stdout(Stdio::Piped).start().unwrap();
    let output = task.wait_with_output(1000, None).unwrap();
    assert_eq!(output.status.code, Some(2));
    assert!(!output.stdout.is_empty());
    // A process outside of the task holds the pipe too: this one.
    let (task, stdout) = ready(&shell("echo ready; read line; echo out; exit 4").stdin(Stdio::Piped));
    drop(stdout);
    assert!(task.wait_with_output(1000, None).unwrap().stdout.is_empty(), "its pipe was taken");
    let task = shell("read line; echo out; exit 4").stdin(Stdio::Piped).stdout(Stdio::Piped).start().unwrap();
    let pipe = format!("/proc/{}/fd/1", task.pid().unwrap());
    match std::fs::OpenOptions::new().write(true).open(&pipe) {
        Ok(mine) => {
            let output = task.wait_with_output(1000, None).unwrap();
            assert_eq!((output.stdout.as_slice(), output.status.code), (&b"out\n"[..], Some(4)));
            assert!(output.truncated, "it cannot know that no more comes");
            drop(mine);
        }
        Err(e) => common::skip::note(format_args!("{pipe}: {e}")),
    }
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
}

#[test]
fn resource_usage_covers_descendants() {
    if !sandboxes() {
        return;
    }
    let burn = "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done";
    for init in [true, false] {
        let task = shell(&format!("({burn}); exit 0")).init(init).start().unwrap();
        assert_eq!(task.rusage(), None, "it has not been reaped");
        task.wait().unwrap();
        let usage = task.rusage().unwrap();
        assert!(usage.user + usage.system > Duration::from_millis(5), "{usage:?}");
    }
}

/// PID 1 stays for the whole life of a task, so its memory counts once a task.
#[test]
fn pid_1_has_less_than_200_kib_of_its_own() {
    if !sandboxes() {
        return;
    }
    let task = shell("sleep 1000").start().unwrap();
    let ours = task.pid().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{ours}/status")).unwrap();
    let init = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned();
    let Ok(memory) = std::fs::read_to_string(format!("/proc/{init}/smaps_rollup")) else {
        return common::skip::note("PID 1 has other ids than this test, which may not read its memory map");
    };
    let private: u64 = memory
        .lines()
        .filter(|line| line.starts_with("Private_"))
        .map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap())
        .sum();
    assert!((1..200).contains(&private), "{private} KiB: {memory}");
}

/// Orphans become children of PID 1, which must reap each of them.
#[test]
fn ten_thousand_short_processes_leave_no_zombie() {
    if !sandboxes() {
        return;
    }
    let count = if common::emulated() { 300 } else { 10_000 };
    let script = format!(
        "i=0; while [ $i -lt {count} ]; do ( : & ); i=$((i+1)); done; \
         n=0; while grep -l '^State:.Z' /proc/[0-9]*/status >/dev/null 2>&1 && [ $n -lt 600 ]; do \
         sleep 0.1; n=$((n+1)); done; grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l"
    );
    assert_eq!(common::output(shell(&script)).trim(), "0");
}
