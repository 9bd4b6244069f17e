//! A task outlives its driver, is found again by its handle, and its exit status is known afterwards. Drivers are
//! processes of their own, which the tests kill. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cofferdam::{
    Control, DieWith, EventOptions, ExecSpec, ExitKind, IsolationMode, Limits, Lost, Method, Policy, Require,
    Root, Sandbox, Signal, SignalTarget, Stdio, Task, TaskHandle, Volume,
};
use common::{sandboxes, shell};
use serde_json::Value;

/// More than any of these tests takes on a loaded machine.
const LONG: Duration = Duration::from_secs(60);

fn policy(dir: &Path) -> Policy {
    Policy { state_dir: Some(dir.into()), ..Policy::default() }
}

/// The id of the only task of a test, which has a directory of its own.
fn id(dir: &Path) -> String {
    format!("recover-{}", dir.file_name().unwrap().to_str().unwrap().trim_start_matches('.'))
}

/// A task that survives its driver.
fn survivor(dir: &Path, script: &str) -> Sandbox {
    shell(script).policy(&policy(dir)).id(id(dir)).die_with(DieWith::Survive)
}

fn stored(dir: &Path) -> TaskHandle {
    serde_json::from_str(&std::fs::read_to_string(dir.join("handle")).unwrap()).unwrap()
}

fn store(dir: &Path, handle: &TaskHandle) {
    let new = dir.join("handle.new");
    std::fs::write(&new, serde_json::to_string(handle).unwrap()).unwrap();
    std::fs::rename(new, dir.join("handle")).unwrap();
}

/// Changes a handle as its serialised form.
fn changed(handle: &TaskHandle, change: impl FnOnce(&mut Value)) -> TaskHandle {
    let mut value = serde_json::to_value(handle).unwrap();
    change(&mut value);
    serde_json::from_value(value).unwrap()
}

fn record(dir: &Path) -> PathBuf {
    dir.join(format!("{}.exit", id(dir)))
}

fn source(error: &cofferdam::Error) -> String {
    std::error::Error::source(error).unwrap().to_string()
}

/// As [`survivor`], with the pids controller for a later change of the limits, where it can be.
fn limited(dir: &Path, script: &str) -> Sandbox {
    let limits = cofferdam::Host::probe().unwrap().cgroups.can_limit().is_ok();
    let limits = Limits { pids_max: limits.then_some(128), ..Limits::default() };
    survivor(dir, script).limits(limits)
}

/// Entry point of a driver that a test kills: spawns the script of the environment and stores its handle. Does nothing
/// elsewhere.
#[test]
fn driver_entry() {
    let Some(dir) = std::env::var_os("COFFERDAM_DRIVER") else { return };
    let dir = Path::new(&dir);
    let script = std::env::var("COFFERDAM_SCRIPT").unwrap();
    println!("\nstarting");
    let task = limited(dir, &script).spawn().unwrap();
    store(dir, &task.handle().unwrap().with_data(b"mine\0\xff".to_vec()));
    println!("\nspawned");
    std::thread::sleep(LONG);
}

/// Starts a driver, and returns when it has written this line.
fn driver(dir: &Path, script: &str, until: &str) -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "driver_entry", "--nocapture", "--test-threads=1"]);
    command.env("COFFERDAM_DRIVER", dir).env("COFFERDAM_SCRIPT", script);
    let mut driver = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(driver.stdout.as_mut().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == until), "no line {until:?}");
    driver
}

fn kill(mut driver: std::process::Child) {
    driver.kill().unwrap();
    driver.wait().unwrap();
}

/// Entry point of a third process: recovers the task, prints its status, and releases it.
#[test]
fn third_entry() {
    let Some(dir) = std::env::var_os("COFFERDAM_THIRD") else { return };
    let task = Sandbox::recover(&stored(Path::new(&dir))).unwrap();
    if let Some(script) = std::env::var_os("COFFERDAM_EXEC") {
        let spec = ExecSpec::command("/bin/sh").args(["-c".into(), script]).stdout(Stdio::Piped);
        let output = task.exec(&spec).unwrap().wait_with_output(1 << 16, Some(LONG)).unwrap();
        println!("\nkind {}", String::from_utf8_lossy(&output.stdout).trim());
        return;
    }
    println!("\nkind {:?}", task.wait_end(Some(LONG)).unwrap().unwrap().kind());
    task.release().unwrap();
}

/// Entry point of a process that may not open pidfds: recovers the task, and prints the error.
#[test]
fn forbidden_entry() {
    let Some(dir) = std::env::var_os("COFFERDAM_FORBIDDEN") else { return };
    let handle = stored(Path::new(&dir));
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let line = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut lines = [
        line(LOAD, 0, 0, 0),
        line(EQUAL, 0, 1, libc::SYS_pidfd_open as u32),
        line(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        line(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: lines.as_mut_ptr() };
    // SAFETY: the program and its lines outlive the calls.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program), 0);
    }
    println!("\nkind {}", Sandbox::recover(&handle).unwrap_err());
}

/// A recovery that fails has found nothing out, so it ends nothing.
#[test]
fn failed_recovery_leaves_the_task_as_it_was() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    kill(driver(dir.path(), "sleep 1000", "spawned"));
    let error = printed_by("forbidden_entry", &[("COFFERDAM_FORBIDDEN", dir.path().as_os_str())]);
    assert!(error.contains("pidfd_open("), "{error}");
    let task = Sandbox::recover(&stored(dir.path())).unwrap();
    assert_eq!(task.status().unwrap(), None);
    task.release().unwrap();
}

fn third(dir: &Path) -> String {
    third_that(dir, None)
}

/// A third process that runs a script in the task and prints what that prints, or waits for the task.
fn third_that(dir: &Path, exec: Option<&str>) -> String {
    let mut variables = vec![("COFFERDAM_THIRD", dir.as_os_str())];
    variables.extend(exec.map(|script| ("COFFERDAM_EXEC", script.as_ref())));
    printed_by("third_entry", &variables)
}

/// What an entry point prints after `kind `, in a process of its own. All of its output without such a line.
fn printed_by(entry: &str, variables: &[(&str, &OsStr)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", entry, "--nocapture", "--test-threads=1"]);
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix("kind ")).unwrap_or(&text).to_owned()
}

/// Waits until the record file has a record.
fn recorded(dir: &Path) {
    let start = Instant::now();
    while std::fs::read(record(dir)).unwrap()[32..].iter().all(|byte| *byte == 0) {
        assert!(start.elapsed() < LONG, "no record");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn status_of_a_task_that_ended_without_its_driver_is_known_to_a_third_process() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    kill(driver(dir.path(), "trap 'exit 43' TERM; while :; do sleep 0.05; done", "spawned"));
    // Another process runs a command in the task, and ends. The task ends while nobody watches.
    let in_task = third_that(dir.path(), Some("tr '\\0' ' ' </proc/2/cmdline; kill -TERM 2"));
    assert!(in_task.starts_with("/bin/sh -c trap"), "{in_task}");
    recorded(dir.path());
    assert_eq!(stored(dir.path()).data(), b"mine\0\xff");
    assert_eq!(third(dir.path()), "Exited(43)");
    assert!(!record(dir.path()).exists(), "release removes the record");
}

#[test]
fn recovered_task_is_controlled_like_the_spawned_one() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    kill(driver(dir.path(), "trap 'exit 7' USR1; while :; do sleep 0.02; done", "spawned"));
    let handle = stored(dir.path());
    let task = Sandbox::recover(&handle).unwrap();
    let busy = Sandbox::recover(&handle).unwrap_err();
    assert!(
        source(&busy).ends_with(&format!("process {} has its task", std::process::id())),
        "{}",
        source(&busy)
    );
    let respawn = survivor(dir.path(), "true").spawn().unwrap_err();
    assert!(source(&respawn).starts_with("the id is in use: "), "{}", source(&respawn));
    assert_eq!(task.sandbox_id(), id(dir.path()));
    assert!(task.report().enforced.contains(Control::EXIT_RECORD), "{}", task.report());
    let groups = common::cgroups_of(task.pid().unwrap());
    assert_eq!(task.try_wait().unwrap(), None);
    if !groups.is_empty() {
        assert!(task.processes().unwrap().len() >= 2);
        task.stats().unwrap();
        task.events(&EventOptions::default()).unwrap();
    }
    if common::can("cgroups") {
        task.update(&Limits { pids_max: Some(64), ..Limits::default() }).unwrap();
    }
    // It is dropped and recovered once more: nothing is killed by that.
    drop(task);
    let task = Sandbox::recover(&handle).unwrap();
    assert_eq!(task.wait_end(Some(Duration::from_millis(50))).unwrap(), None);
    task.signal_to(Signal::WINCH, SignalTarget::Group)
        .or_else(|e| if groups.is_empty() { Ok(()) } else { Err(e) })
        .unwrap();
    let status = task.stop(Signal::USR1, LONG, SignalTarget::Main).unwrap();
    assert_eq!(status.kind(), ExitKind::Exited(7));
    assert_eq!(task.wait().unwrap(), status);
    groups
        .iter()
        .filter(|group| !group.ends_with("cofferdam/share"))
        .for_each(|group| assert!(!group.exists(), "{group:?}"));
    assert!(!record(dir.path()).exists());
}

#[test]
fn killed_recovered_task_has_the_status_of_a_kill() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let task = survivor(dir.path(), "sleep 600").spawn().unwrap();
    let handle = task.detach().unwrap();
    assert!(task.kill().is_err() && task.release().is_err() && task.detach().is_err(), "it was given up");
    for refused in [
        task.signal(Signal::TERM),
        task.signal_to(Signal::TERM, SignalTarget::All),
        task.stop(Signal::TERM, Duration::ZERO, SignalTarget::Main).map(drop),
        task.exec(&ExecSpec::command("true")).map(drop),
        task.update(&Limits::default()).map(drop),
        task.freeze(),
        task.thaw(),
        task.log().map(drop),
    ] {
        let error = std::error::Error::source(&refused.unwrap_err()).unwrap().to_string();
        assert_eq!(error, "the task was detached: recover it by its handle");
    }
    drop(task);
    let task = Sandbox::recover(&handle).unwrap();
    task.release().unwrap();
    assert_eq!(task.wait().unwrap().kind(), ExitKind::Killed);

    // A later process knows it too, although PID 1 could write no record.
    let task = survivor(dir.path(), "sleep 600").spawn().unwrap();
    let handle = task.handle().unwrap();
    task.kill().unwrap();
    assert_eq!(task.wait_end(Some(LONG)).unwrap().unwrap().kind(), ExitKind::Killed);
    drop(task);
    let task = Sandbox::recover(&handle).unwrap();
    assert_eq!(task.wait().unwrap().kind(), ExitKind::Killed);
}

#[test]
fn task_of_another_identity_is_lost_and_gets_no_signal() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let task = survivor(dir.path(), "sleep 600").spawn().unwrap();
    let pidfd = task.pidfd().try_clone_to_owned().unwrap();
    let handle = task.detach().unwrap();
    drop(task);
    let lost = |handle: &TaskHandle, why: Lost| {
        let task = Sandbox::recover(handle).unwrap();
        assert_eq!(task.status().unwrap().unwrap().kind(), ExitKind::Lost(why));
        for target in [SignalTarget::Main, SignalTarget::Group, SignalTarget::All] {
            task.signal_to(Signal::KILL, target).unwrap();
        }
        assert_eq!(task.pid(), None);
    };
    let init = |value: &mut Value, key: &str, to: Value| value["identity"]["init"][key] = to;
    lost(&changed(&handle, |value| init(value, "start", 1.into())), Lost::PidReused);
    lost(&changed(&handle, |value| init(value, "pid_namespace", 1.into())), Lost::PidReused);
    lost(&changed(&handle, |value| init(value, "pid", i32::MAX.into())), Lost::Unrecorded);
    // The PID is a stranger's, which must live on.
    let mut stranger = Command::new("sleep").arg("600").spawn().unwrap();
    lost(&changed(&handle, |value| init(value, "pid", stranger.id().into())), Lost::PidReused);
    lost(&changed(&handle, |value| value["boot"] = "another".into()), Lost::Rebooted);
    if !handle_group(&handle).is_null() {
        lost(&changed(&handle, |value| value["cgroup"] = 1.into()), Lost::CgroupRemoved);
    }
    assert_eq!(stranger.try_wait().unwrap(), None);
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    let mut ended = [nix::poll::PollFd::new(pidfd.as_fd(), nix::poll::PollFlags::POLLIN)];
    assert_eq!(nix::poll::poll(&mut ended, 0u16).unwrap(), 0, "the task itself lives");
    let version = changed(&handle, |value| value["version"] = 2.into());
    assert!(source(&Sandbox::recover(&version).unwrap_err()).contains("version 2"));
    Sandbox::recover(&handle).unwrap().release().unwrap();
}

fn handle_group(handle: &TaskHandle) -> Value {
    serde_json::to_value(handle).unwrap()["cgroup"].clone()
}

#[test]
fn damaged_record_is_lost_and_says_so() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let task = survivor(dir.path(), "exit 3").spawn().unwrap();
    task.wait_end(None).unwrap();
    let handle = changed(&task.detach().unwrap(), |value| value["status"] = Value::Null);
    drop(task);
    let whole = std::fs::read(record(dir.path())).unwrap();
    assert_eq!(whole.len(), 64);
    let status = |bytes: &[u8]| {
        std::fs::write(record(dir.path()), bytes).unwrap();
        Sandbox::recover(&handle).unwrap().status().unwrap().unwrap().kind()
    };
    assert_eq!(status(&whole), ExitKind::Exited(3));
    let mut torn = whole.clone();
    torn[45] ^= 1;
    assert_eq!(status(&torn), ExitKind::Lost(Lost::Torn));
    assert_eq!(status(&whole[..50]), ExitKind::Lost(Lost::Torn));
    assert_eq!(status(&[&whole[..32], &[0; 32]].concat()), ExitKind::Lost(Lost::Unrecorded));
    // The file of a later task of the same name is not this task's.
    let mut other = whole.clone();
    other[20] ^= 1;
    assert_eq!(status(&other), ExitKind::Lost(Lost::Unrecorded));
    assert_eq!(status(&whole), ExitKind::Exited(3));
    Sandbox::recover(&handle).unwrap().release().unwrap();
    assert!(!record(dir.path()).exists());
}

#[test]
fn one_of_several_concurrent_recoveries_gets_the_task() {
    if !sandboxes() {
        return;
    }
    for with_record in [true, false] {
        if !with_record && !common::can("cgroups") {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut sandbox = survivor(dir.path(), "sleep 600");
        if !with_record {
            sandbox = sandbox.policy(&Policy::default());
        }
        let task = sandbox.spawn().unwrap();
        let handle = task.handle().unwrap();
        let busy = source(&Sandbox::recover(&handle).unwrap_err());
        assert!(busy.contains(&format!("process {} has", std::process::id())), "{busy}");
        drop(task);
        let recovered: Vec<_> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(|| Sandbox::recover(&handle))).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(recovered.iter().flatten().count(), 1, "{recovered:?}");
        recovered.into_iter().flatten().for_each(|task| task.release().unwrap());
    }
}

/// The state letter of a process; `None` if there is none.
fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[test]
fn detached_task_of_a_living_caller_becomes_no_zombie() {
    if !sandboxes() {
        return;
    }
    let dirs: Vec<_> = (0..6).map(|_| tempfile::tempdir().unwrap()).collect();
    let other = Command::new("true").spawn().unwrap();
    let handles: Vec<_> = dirs
        .iter()
        .enumerate()
        .map(|(n, dir)| {
            let task = survivor(dir.path(), "sleep 0.1; exit 5").spawn().unwrap();
            let init = nix::unistd::Pid::from_raw(init_of(&task));
            let handle = if n % 2 == 0 { task.detach().unwrap() } else { task.handle().unwrap() };
            drop(task);
            (handle, init)
        })
        .collect();
    for (handle, init) in handles {
        let start = Instant::now();
        while state(init.as_raw()).is_some() {
            assert!(start.elapsed() < LONG, "{init} is {:?}", state(init.as_raw()));
            std::thread::sleep(Duration::from_millis(5));
        }
        let task = Sandbox::recover(&handle).unwrap();
        assert_eq!(task.wait().unwrap().kind(), ExitKind::Exited(5));
    }
    // Another child of the caller is not reaped by the crate.
    let mut other = other;
    assert!(other.wait().unwrap().success());
}

/// The PID of the first process of the task.
fn init_of(task: &Task) -> i32 {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", task.pidfd().as_raw_fd())).unwrap();
    info.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap().trim().parse().unwrap()
}

#[test]
fn task_that_dies_with_its_driver_has_no_handle_and_leaves_a_record() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let task = shell("exit 9").policy(&policy(dir.path())).id(id(dir.path())).spawn().unwrap();
    assert!(source(&task.handle().unwrap_err()).contains("die_with"));
    task.wait_end(None).unwrap();
    recorded(dir.path());
    assert_eq!(task.wait().unwrap().code, Some(9));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn task_in_the_hosts_pid_namespace_has_a_monitor_that_writes_its_record() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = |script: &str| {
        survivor(dir.path(), script).pid_mode(IsolationMode::Host).require(Require::BestEffort)
    };
    let handle = {
        let task = host("sleep 0.2; exit 44").spawn().unwrap();
        assert!(!task.report().missing.contains(Control::EXIT_RECORD), "{}", task.report());
        changed(&task.handle().unwrap(), |_| ())
    };
    let task = Sandbox::recover(&handle).unwrap();
    assert_eq!(task.wait().unwrap().kind(), ExitKind::Exited(44));
    let task = host("sleep 600").spawn().unwrap();
    let main = task.pid().unwrap();
    task.release().unwrap();
    assert_eq!(task.status().unwrap().unwrap().signal, Some(9));
    assert!(matches!(state(main), None | Some('Z' | 'X')), "{:?}", state(main));
}

/// Inside: looks for the record among the descriptors of every process that it sees, and tries to open each for writing.
const SEARCH: &str = r#"found=no
for fd in /proc/[0-9]*/fd/*; do
    case "$(readlink "$fd")" in *.exit) found="$fd" ;; esac
done
for fd in /proc/1/fd/*; do
    (: >>"$fd") 2>/dev/null && found="opened $fd"
done
echo $found"#;

#[test]
fn task_cannot_reach_its_exit_record() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let all = Policy { allow_caps: Some(vec!["all".into()]), ..policy(dir.path()) };
    for (user, tracer) in [("nobody", false), ("root", false), ("65533:65533", false), ("root", true)] {
        let mut sandbox = survivor(dir.path(), SEARCH).user(user).stdout(Stdio::Piped);
        if tracer {
            sandbox = sandbox.policy(&all).cap_add("sys_ptrace").require(Require::BestEffort);
        }
        let task = sandbox.spawn().unwrap();
        let mut text = String::new();
        task.take_stdout().unwrap().read_to_string(&mut text).unwrap();
        // With CAP_SYS_PTRACE, a Landlock domain keeps the task from PID 1, or the report says that nothing does.
        let enforced = task.report().enforced.contains(Control::EXIT_RECORD);
        assert_eq!(text.trim() == "no", enforced, "{user}: {text}{}", task.report());
        assert!(enforced || tracer, "{}", task.report());
        task.wait().unwrap();
    }
}

#[test]
fn what_lets_a_task_reach_its_record_weakens_the_control() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let weakened = |sandbox: Sandbox| {
        let report = sandbox.require(Require::BestEffort).plan().unwrap().report;
        assert!(report.weakened.contains(Control::EXIT_RECORD), "{report}");
    };
    let all = Policy { allow_caps: Some(vec!["all".into()]), ..policy(dir.path()) };
    // In a user namespace these have no effect on the host's files.
    let privileged = cofferdam::Host::probe().unwrap().lacking().is_empty();
    for capability in
        ["sys_admin", "sys_module", "sys_rawio", "dac_read_search"].into_iter().filter(|_| privileged)
    {
        weakened(survivor(dir.path(), "true").user("root").policy(&all).cap_add(capability));
    }
    weakened(survivor(dir.path(), "true").volume(Volume::new(dir.path(), "/state")));
    let read_only = Volume { read_only: true, ..Volume::new(dir.path(), "/state") };
    let plan = survivor(dir.path(), "true").volume(read_only).plan().unwrap();
    assert!(plan.report.enforced.contains(Control::EXIT_RECORD), "{}", plan.report);
}

#[test]
fn temporary_root_of_a_survivor_is_recovered_and_removed_with_it() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let temp = tempfile::tempdir().unwrap();
    let programs = ["/bin", "/lib", "/lib64", "/usr"].into_iter().filter(|path| Path::new(path).exists());
    let chroot_env = [("/etc/passwd".into(), "/file".into())].into();
    let root = Root { populate: Method::Copy, chroot_env, ..Root::default() };
    let policy = Policy { temp_dir: Some(temp.path().into()), ..policy(dir.path()) };
    let sandbox = survivor(dir.path(), "echo x > /tmp-file; exit 6").policy(&policy).root(root).user("root");
    let sandbox = programs
        .fold(sandbox, |sandbox, path| sandbox.volume(Volume { read_only: true, ..Volume::new(path, path) }));
    let handle = sandbox.spawn().unwrap().handle().unwrap();
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1, "the value was dropped, the root stays");
    let task = Sandbox::recover(&handle).unwrap();
    let (status, changes) = task.wait_with_root(|root| root.changes()).unwrap();
    assert_eq!(status.code, Some(6));
    let changes = changes.unwrap();
    let paths: Vec<_> = changes.iter().map(|change| change.path.to_str().unwrap()).collect();
    assert!(paths.contains(&"/tmp-file") && !paths.contains(&"/file"), "{changes:?}");
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
}

/// A driver is killed at any moment of a spawn. Its task is then found by its handle, or its id starts again.
#[test]
fn drivers_killed_at_random_moments_lose_nothing_and_leave_nothing() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let rounds = if common::emulated() { 10 } else { 100 };
    let mut found = 0;
    for round in 0..rounds {
        let _ = std::fs::remove_file(dir.path().join("handle"));
        let started = driver(dir.path(), "exit 43", "starting");
        std::thread::sleep(Duration::from_micros(u64::try_from(round * 7919 % 100_000).unwrap()));
        kill(started);
        if dir.path().join("handle").exists() {
            found += 1;
            let task = Sandbox::recover(&stored(dir.path())).unwrap();
            assert_eq!(task.wait_end(Some(LONG)).unwrap().unwrap().kind(), ExitKind::Exited(43));
            task.release().unwrap();
        } else {
            let start = Instant::now();
            let task = loop {
                // PID 1 of the killed driver may live a moment longer.
                match limited(dir.path(), "exit 44").spawn() {
                    Ok(task) => break task,
                    Err(error) => assert!(start.elapsed() < LONG, "{error}: {}", source(&error)),
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            assert_eq!(task.wait().unwrap().code, Some(44));
        }
        assert!(!record(dir.path()).exists(), "round {round}");
    }
    println!("{found} of {rounds} were recovered");
}

#[test]
fn command_in_a_task_of_another_build_is_refused_and_names_the_build() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let handle = survivor(dir.path(), "sleep 1000").spawn().unwrap().detach().unwrap();
    let handle = changed(&handle, |value| value["build"] = "0.0.7 feed".into());
    let task = Sandbox::recover(&handle).unwrap();
    let refused = task.exec(&ExecSpec::command("true")).unwrap_err();
    assert!(source(&refused).contains("another build of the library (0.0.7 feed)"), "{refused:?}");
    assert!(task.status().unwrap().is_none());
    task.release().unwrap();
}
