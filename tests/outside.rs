//! A task whose command is PID 1 of its PID namespace, and whose exit record, log, deadline and driver are watched by a
//! process outside of that namespace. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cofferdam::{
    Control, Deadline, DieWith, ExecSpec, ExitKind, LogStream, Lost, Policy, Sandbox, Signal, SignalTarget,
    Stdio, Task, TaskHandle,
};
use common::{can, emulated, sandboxes, shell};

/// More than any of these tests takes on a loaded machine.
const LONG: Duration = Duration::from_secs(60);

/// A task whose command is PID 1, and whose files are in `dir`.
fn alone(dir: &Path, script: &str) -> Sandbox {
    let policy =
        Policy { state_dir: Some(dir.into()), allow_caps: Some(vec!["all".into()]), ..Policy::default() };
    let name = dir.file_name().unwrap().to_str().unwrap().trim_start_matches('.');
    shell(script).policy(&policy).init(false).id(format!("outside-{name}"))
}

fn survivor(dir: &Path, script: &str) -> Sandbox {
    alone(dir, script).die_with(DieWith::Survive)
}

/// The state of a process; `None` without one.
fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn until_gone(pid: i32) {
    let start = Instant::now();
    while !matches!(state(pid), None | Some('Z' | 'X')) {
        assert!(start.elapsed() < LONG, "{pid} is {:?}", state(pid));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The PID of the process outside.
fn watcher(task: &Task) -> i32 {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", task.pidfd().as_raw_fd())).unwrap();
    info.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap().trim().parse().unwrap()
}

/// Standard output of a script in the task.
fn inside(task: &Task, script: &str) -> String {
    let spec = ExecSpec::command("/bin/sh").args(["-c", script]).stdout(Stdio::Piped);
    let output = task.exec(&spec).unwrap().wait_with_output(1 << 16, Some(LONG)).unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Entry point of a driver that a test kills. Does nothing elsewhere.
#[test]
fn driver_entry() {
    let Some(dir) = std::env::var_os("COFFERDAM_DRIVER") else { return };
    let dir = Path::new(&dir);
    let script = std::env::var("COFFERDAM_SCRIPT").unwrap();
    let task = match std::env::var_os("COFFERDAM_SURVIVES") {
        Some(_) => survivor(dir, &script).spawn().unwrap(),
        None => alone(dir, &script).user("0").cap_add("setuid").cap_add("kill").spawn().unwrap(),
    };
    let handle = task.handle().map(|handle| serde_json::to_string(&handle).unwrap());
    std::fs::write(dir.join("handle"), handle.unwrap_or_default()).unwrap();
    println!("\nspawned {}", task.pid().unwrap());
    std::thread::sleep(LONG);
}

/// Starts such a driver. Returns it with the PID of its task.
fn driver(dir: &Path, script: &str, survives: bool) -> (std::process::Child, i32) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "driver_entry", "--nocapture", "--test-threads=1"]);
    command.env("COFFERDAM_DRIVER", dir).env("COFFERDAM_SCRIPT", script);
    command.envs(survives.then_some(("COFFERDAM_SURVIVES", "1")));
    let mut driver = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(driver.stdout.as_mut().unwrap()).lines().map_while(Result::ok);
    let pid = lines.find_map(|line| line.strip_prefix("spawned ")?.parse().ok());
    (driver, pid.unwrap())
}

fn kill(mut driver: std::process::Child) {
    driver.kill().unwrap();
    driver.wait().unwrap();
}

#[test]
fn command_is_pid_1_of_its_namespace_and_leads_its_session() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = "echo $$ $(cut -d' ' -f4,5,6 /proc/self/stat) $(ls /proc | grep -c '^[0-9]')";
    let task = alone(dir.path(), &format!("{script}; kill -TERM $$; exit 5")).stdout(Stdio::Piped);
    let task = task.spawn().unwrap();
    assert!(task.report().enforced.contains(Control::EXIT_RECORD | Control::PID_NS), "{}", task.report());
    let output = task.wait_with_output(1 << 10, Some(LONG)).unwrap();
    // PID 1 gets no signal that it does not handle.
    assert_eq!(output.status.kind(), ExitKind::Exited(5));
    // The shell, its subshell, ls and grep, with `cut` gone; its parent, group and session are PID 1.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let fields: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(fields[0], "1", "{text}");
    assert_eq!(&fields[2..4], ["1", "1"], "group and session: {text}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn process_outside_has_only_the_capability_and_the_calls_that_it_needs() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let task = survivor(dir.path(), "sleep 1000").spawn().unwrap();
    let pid = watcher(&task);
    assert_ne!(Some(pid), task.pid());
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap().trim().to_owned()
    };
    for set in ["CapPrm", "CapEff"] {
        assert_eq!(u64::from_str_radix(&field(set), 16).unwrap(), 1 << 5, "CAP_KILL in {set}");
    }
    for set in ["CapInh", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&field(set), 16).unwrap(), 0, "{set}");
    }
    assert_eq!((field("Seccomp").as_str(), field("NoNewPrivs").as_str()), ("2", "1"));
    if can("root") {
        assert!(!field("Uid").split_whitespace().any(|uid| uid == "0"), "{}", field("Uid"));
        assert_eq!(field("Groups"), "");
        // Its root is the sandbox's: it holds no mount of the host.
        let mounts = |pid| std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        assert_eq!(mounts(pid), mounts(task.pid().unwrap()));
        for link in ["root", "cwd"] {
            let target = std::fs::read_link(format!("/proc/{pid}/{link}")).unwrap();
            assert_eq!(target, Path::new("/"), "{link}");
        }
    }
    // No process of the task sees it.
    assert_eq!(
        inside(&task, "cat /proc/[0-9]*/comm | sort -u | grep -vx 'cat\\|sh\\|sleep\\|sort\\|grep\\|exe'"),
        ""
    );
    task.release().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn status_is_known_after_the_driver_was_killed() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (driver, pid) =
        driver(dir.path(), "while [ ! -e /tmp/go ]; do sleep 0.01; done; sleep 1; exit 43", true);
    kill(driver);
    let text = std::fs::read_to_string(dir.path().join("handle")).unwrap();
    let handle: TaskHandle = serde_json::from_str(&text).unwrap();
    let task = Sandbox::recover(&handle).unwrap();
    assert_eq!(task.pid(), Some(pid));
    // An additional command is in the task's PID namespace, whose PID 1 is the command.
    let namespace = std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    assert_eq!(inside(&task, "readlink /proc/self/ns/pid"), namespace.to_str().unwrap());
    assert_eq!(inside(&task, "tr '\\0' ' ' </proc/1/cmdline | cut -c1-14"), "/bin/sh -c whi");
    drop(task);
    let task = Sandbox::recover(&handle).unwrap();
    assert_eq!(inside(&task, "touch /tmp/go; echo done"), "done");
    drop(task);
    until_gone(pid);
    // Nobody watches: the record has the status.
    let task = loop {
        let task = Sandbox::recover(&handle).unwrap();
        if task.status().unwrap().is_some() {
            break task;
        }
    };
    assert_eq!(task.wait().unwrap().kind(), ExitKind::Exited(43));
    let refused = task.exec(&ExecSpec::command("true")).unwrap_err();
    assert!(refused.to_string().contains("ended"), "{refused}");
    std::fs::remove_file(dir.path().join("handle")).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// The command may have changed to a user whom another user may not signal.
#[test]
fn task_ends_with_its_driver_whatever_its_user() {
    if !sandboxes() || !can("root") || !can("python3") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let become_other = "exec python3 -c 'import os,time
os.setresuid(12345, 12345, 12345)
os.fork()
open(\"/tmp/is\", \"w\")
time.sleep(1000)'";
    let (driver, pid) = driver(dir.path(), become_other, false);
    let is = || std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap().contains("\t12345\t12345");
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(driver);
    until_gone(pid);
    // The next task of that id takes what is left over.
    let task = alone(dir.path(), "exit 3").spawn().unwrap();
    assert_eq!(task.wait().unwrap().kind(), ExitKind::Exited(3));
    assert!(std::fs::read_dir(dir.path()).unwrap().count() <= 1);
}

#[test]
fn kill_stop_signal_and_deadline_end_every_process_and_say_how() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let ready = |sandbox: Sandbox| {
        let task = sandbox.stdout(Stdio::Piped).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(task.take_stdout().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        task
    };
    let sleeps = "sleep 1001 & sleep 1002 & echo ready; wait";
    let task = ready(alone(dir.path(), sleeps));
    let (main, watcher) = (task.pid().unwrap(), watcher(&task));
    task.kill().unwrap();
    assert_eq!(task.wait().unwrap().kind(), ExitKind::Killed);
    until_gone(main);
    until_gone(watcher);
    let task = ready(alone(dir.path(), &format!("trap 'exit 6' TERM; {sleeps}")));
    let status = task.stop(Signal::TERM, LONG, SignalTarget::Main).unwrap();
    assert_eq!(status.kind(), ExitKind::Exited(6));
    task.release().unwrap();
    let task = ready(alone(dir.path(), &format!("trap '' TERM; {sleeps}")));
    let status = task.stop(Signal::TERM, Duration::from_millis(50), SignalTarget::All).unwrap();
    assert_eq!(status.kind(), ExitKind::Killed);
    task.release().unwrap();
    let deadline = Duration::from_millis(if emulated() { 4000 } else { 100 });
    let task = alone(dir.path(), sleeps).deadline(deadline).spawn().unwrap();
    assert!(task.report().enforced.contains(Control::DEADLINE), "{}", task.report());
    let main = task.pid().unwrap();
    assert_eq!(task.wait().unwrap().kind(), ExitKind::Deadline(Deadline::Wall));
    until_gone(main);
    // A dropped value kills, if the task does not survive.
    let task = ready(alone(dir.path(), sleeps));
    let main = task.pid().unwrap();
    drop(task);
    until_gone(main);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn log_is_written_by_the_process_outside() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let task = survivor(dir.path(), "echo one; echo two >&2; exit 4");
    let task = task.stdout(Stdio::Log).stderr(Stdio::Log).spawn().unwrap();
    let handle = task.handle().unwrap();
    drop(task);
    let task = Sandbox::recover(&handle).unwrap();
    assert_eq!(task.wait_end(Some(LONG)).unwrap().unwrap().kind(), ExitKind::Exited(4));
    let entries: Vec<_> = task.log().unwrap().map(Result::unwrap).collect();
    let of = |stream| {
        let entries = entries.iter().filter(|entry| entry.stream == stream);
        entries.flat_map(|entry| entry.bytes.clone()).collect::<Vec<u8>>()
    };
    assert_eq!((&*of(LogStream::Stdout), &*of(LogStream::Stderr)), (&b"one\n"[..], &b"two\n"[..]));
    task.release().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// The command goes on without a status if the process outside was killed. It must not be taken for another one.
#[test]
fn killed_process_outside_costs_the_status_and_no_process_is_left() {
    if !sandboxes() || !can("cgroups") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let task = survivor(dir.path(), "sleep 1000").spawn().unwrap();
    let (main, handle) = (task.pid().unwrap(), task.handle().unwrap());
    let pid = nix::unistd::Pid::from_raw(watcher(&task));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    // The owner kills what it cannot wait for.
    assert_eq!(
        task.wait_end(Some(LONG)).unwrap().unwrap().kind(),
        ExitKind::Signalled { signal: 9, core_dumped: false }
    );
    until_gone(main);
    drop(task);
    let again = Sandbox::recover(&handle).unwrap();
    assert_eq!(again.wait().unwrap().lost, Some(Lost::Unrecorded));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
