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
