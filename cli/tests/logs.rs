//! `logs`: what detached tasks have written.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::process::Stdio;

mod common;
use common::{State, text, until};

#[test]
fn logs_prints_each_stream_of_a_running_and_of_an_ended_task() {
    let Some(state) = State::new("logs") else { return };
    let name = state.name("a");
    state.start(&name, "echo out; echo err >&2; while ! [ -e /tmp/go ]; do sleep 0.02; done; echo last");
    until("the first lines", || {
        let seen = state.call(&["logs", &name]);
        (text(&seen.stdout), text(&seen.stderr)) == ("out".into(), "err".into())
    });
    let follow = state.command(&["logs", "-f", &name]).stdout(Stdio::piped()).spawn().unwrap();
    state.ok(&["exec", &name, "sh", "-c", ": >/tmp/go"]);
    assert_eq!(state.ok(&["wait", &name]), "0");
    assert_eq!(text(&follow.wait_with_output().unwrap().stdout), "out\nlast");
    assert_eq!(state.ok(&["logs", "-f", &name]), "out\nlast");
    state.ok(&["rm", &name]);
    assert!(state.refused(&["logs", &name]).contains(&name));
    assert_eq!(std::fs::read_dir(state.path().join("exits")).unwrap().count(), 0);
}

/// PID 1 has the caller's limit of file sizes. The ring of the log fits into it.
#[test]
fn logs_has_the_newest_lines_under_a_limit_of_file_sizes() {
    let Some(state) = State::new("fsize") else { return };
    let name = state.name("a");
    // 100 or 200 KiB, by the shell: less than the task writes, and than the ring without a limit has.
    let limited = "ulimit -S -f 200; exec \"$@\"";
    let task = "i=0; while [ $i -lt 30000 ]; do echo line $i; i=$((i+1)); done; echo last";
    let run = ["run", "-d", "--name", &name, "--require", "best_effort", "sh", "-c", task];
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", limited, "sh"]).arg(common::binary()).args(run);
    let started = shell.env("COFFERDAM_STATE", state.path()).stdin(Stdio::null()).output().unwrap();
    assert!(started.status.success(), "{started:?}");
    state.ok(&["wait", &name]);
    let lines = state.ok(&["logs", &name]);
    assert!(lines.ends_with("\nline 29999\nlast"), "{:?}", lines.lines().last());
}

#[test]
fn logs_of_a_task_that_writes_without_end_can_be_read_and_closed() {
    let Some(state) = State::new("endless") else { return };
    let name = state.name("a");
    state.start(&name, "while :; do echo line; done");
    let mut follow = state.command(&["logs", "-f", &name]).stdout(Stdio::piped()).spawn().unwrap();
    let mut some = [0; 40_000];
    std::io::Read::read_exact(&mut follow.stdout.take().unwrap(), &mut some).unwrap();
    assert!(some.split(|byte| *byte == b'\n').skip(1).take(1000).all(|line| line == b"line"));
    // The reader is gone: writing to the closed pipe ends the program.
    assert!(follow.wait().unwrap().success());
    state.ok(&["rm", "-f", &name]);
}
