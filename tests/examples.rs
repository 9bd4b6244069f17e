//! The programs in `examples/`, run as their users run them. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{can, sandboxes};

/// The example `name`, which `cargo test` builds beside the tests; `None`, with a word, where only this test was
/// copied.
fn example(name: &str) -> Option<PathBuf> {
    let exe = std::env::current_exe().unwrap();
    let found = exe.parent()?.parent()?.join("examples").join(name);
    if !found.exists() {
        common::skip::skip(&["examples"], format!("no {}", found.display()));
        return None;
    }
    Some(found)
}

fn script(dir: &Path, text: &str) -> PathBuf {
    let file = dir.join("submission");
    std::fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    file
}

fn run(command: &mut Command, input: &str) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn judge_tells_accepted_wrong_slow_and_greedy_submissions_apart() {
    // Without a cgroup the judge refuses to run.
    if !can("cgroups") {
        return;
    }
    let Some(judge) = example("judge") else { return };
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    for (submission, verdict, printed) in [
        ("read x; echo $((x * 2))", "accepted", "42\n"),
        ("exit 3", "exit code 3", ""),
        ("kill -SEGV $$", "signal 11", ""),
        ("while :; do :; done", "time limit exceeded (2 s of CPU time)", ""),
        ("setsid sh -c 'while :; do :; done' & wait", "time limit exceeded (2 s of CPU time)", ""),
        ("sleep 600", "time limit exceeded (10 s)", ""),
        ("head -c 200m /dev/zero | tail", "memory limit exceeded (64 MiB)", ""),
    ] {
        let output = run(Command::new(&judge).arg(script(dir.path(), submission)), "21\n");
        let said = text(&output.stderr);
        assert!(said.starts_with(&format!("verdict: {verdict}\n")), "{submission}: {said}");
        assert_eq!(text(&output.stdout), printed, "{submission}");
        assert!(output.status.success(), "{submission}: {said}");
    }
}

#[test]
fn ci_runs_the_steps_in_one_workspace_until_one_fails() {
    if !sandboxes() {
        return;
    }
    let Some(ci) = example("ci") else { return };
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let workspace = dir.path().join("job");
    std::fs::create_dir(&workspace).unwrap();
    let steps = ["echo built >artifact; echo $HOME", "cat artifact", "exit 3", "echo never >late"];
    let output = run(Command::new(&ci).arg(&workspace).args(steps), "");
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{said}");
    let log = |number: usize| std::fs::read_to_string(dir.path().join(format!("job.{number}.log"))).unwrap();
    assert_eq!((log(0).as_str(), log(1).as_str()), ("/work\n", "built\n"), "{said}");
    assert!(said.contains("step 2: exit 3: exit status 3"), "{said}");
    assert!(!workspace.join("late").exists());
}

/// Calls of the driver example, each in a process of its own, on one state directory.
struct Calls {
    driver: PathBuf,
    dir: tempfile::TempDir,
    id: String,
}

impl Calls {
    fn new(name: &str) -> Option<Calls> {
        let id = format!("driver-{name}-{}", std::process::id());
        Some(Calls { driver: example("driver")?, dir: tempfile::tempdir().unwrap(), id })
    }

    /// Exit code, standard output and standard error of a call.
    fn call(&self, what: &str, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(&self.driver);
        command.arg(what).arg(&self.id).args(args);
        command.env("DRIVER_STATE", self.dir.path()).env("DRIVER_STDOUT", self.dir.path().join("stdout"));
        let output = run(&mut command, "");
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// Standard output of a call that succeeds.
    fn done(&self, what: &str, args: &[&str]) -> String {
        let (code, stdout, stderr) = self.call(what, args);
        assert_eq!(code, Some(0), "{what} {args:?}: {stdout}{stderr}");
        stdout
    }

    fn json(&self, what: &str) -> serde_json::Value {
        serde_json::from_str(&self.done(what, &[])).unwrap()
    }

    fn pid(&self) -> i32 {
        self.json("inspect")["pid"].as_i64().unwrap().try_into().unwrap()
    }

    fn stdout(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("stdout")).unwrap()
    }

    /// Destroys the task, and checks that nothing of it is left.
    fn destroy(self, groups: &[PathBuf]) {
        self.done("destroy", &[]);
        for dir in ["tasks", "exits", "roots"] {
            let left = std::fs::read_dir(self.dir.path().join(dir)).unwrap();
            assert_eq!(left.map(|entry| entry.unwrap().path()).collect::<Vec<_>>(), [] as [PathBuf; 0]);
        }
        let left: Vec<_> =
            groups.iter().filter(|group| group.exists() && !group.ends_with("share")).collect();
        assert!(left.is_empty(), "{left:?}");
        self.done("destroy", &[]);
        let (code, _, why) = self.call("wait", &[]);
        assert_eq!((code, why.contains("unknown task")), (Some(1), true), "{why}");
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed().as_secs() < 60, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn driver_calls_control_a_task_that_outlives_each_of_them() {
    if !sandboxes() {
        return;
    }
    let Some(calls) = Calls::new("life") else { return };
    calls.done("stop", &["TERM", "5"]);
    let script = "trap 'echo usr' USR1; trap 'exit 7' TERM; echo up; while :; do sleep 0.02; done";
    calls.done("start", &["sh", "-c", script]);
    until("the task writes", || calls.stdout() == "up\n");
    let groups = common::cgroups_of(calls.pid());
    let (code, _, why) = calls.call("start", &["true"]);
    assert_eq!((code, why.contains("stop and destroy it first")), (Some(1), true), "{why}");
    let (code, told, why) = calls.call("exec", &["sh", "-c", "echo out; echo err >&2; exit 5"]);
    assert_eq!((code, told.as_str(), why.as_str()), (Some(5), "out\n", "err\n"));
    if can("cgroups") && can("root") {
        let sample = calls.json("stats");
        assert!(sample["cpu_percent"].as_f64().is_some_and(|percent| percent > 0.0), "{sample}");
        assert!(sample["stats"]["memory"]["usage"].as_u64() > Some(0), "{sample}");
    }
    calls.done("signal", &["SIGUSR1"]);
    until("the signal arrives", || calls.stdout() == "up\nusr\n");
    let (code, _, why) = calls.call("stop", &["NONSENSE", "5"]);
    assert_eq!((code, why.contains("is not a signal")), (Some(1), true), "{why}");
    assert_eq!(calls.json("inspect")["state"], "running");
    // A call that waits keeps no other call from the task.
    std::thread::scope(|scope| {
        let waits = [(); 2].map(|()| scope.spawn(|| calls.json("wait")));
        calls.done("stop", &["TERM", "60"]);
        waits.into_iter().for_each(|wait| assert_eq!(wait.join().unwrap()["code"], 7));
    });
    calls.done("stop", &["TERM", "5"]);
    assert_eq!(calls.json("inspect")["result"]["code"], 7);
    calls.destroy(&groups);
}

#[test]
fn driver_knows_the_result_of_a_task_that_ended_while_no_driver_ran() {
    if !sandboxes() {
        return;
    }
    let Some(calls) = Calls::new("late") else { return };
    calls.done("start", &["sh", "-c", "echo one; exit 43"]);
    until("the task ends", || calls.json("inspect")["state"] == "exited");
    assert_eq!(calls.json("wait")["code"], 43);
    // A start with the same id replaces what is left.
    calls.done("start", &["sh", "-c", "trap '' TERM; echo two; while :; do sleep 0.02; done"]);
    until("the second task writes", || calls.stdout() == "one\ntwo\n");
    let groups = common::cgroups_of(calls.pid());
    calls.done("stop", &["TERM", "0"]);
    let killed = calls.json("wait");
    assert_eq!((&killed["signal"], &killed["killed"]), (&9.into(), &true.into()), "{killed}");
    calls.destroy(&groups);
}
