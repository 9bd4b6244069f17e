//! Runs shell commands in a running task.
#![allow(clippy::unwrap_used, dead_code)]

use std::time::{Duration, Instant};

use cofferdam::{ExecSpec, Output, Sandbox, Stdio, Task};

use super::common::{self, shell};

/// More than any of these tests takes on a loaded machine.
pub const LONG: Duration = Duration::from_secs(60);

/// Longer than a command takes to start.
pub fn soon() -> Duration {
    if common::emulated() { Duration::from_secs(20) } else { Duration::from_secs(1) }
}

/// A shell command, with its standard output in a pipe.
pub fn sh(script: &str) -> ExecSpec {
    ExecSpec::command("/bin/sh").args(["-c", script]).env("PATH", "/usr/bin:/bin").stdout(Stdio::Piped)
}

/// Runs a shell command in the task.
pub fn output(task: &Task, script: &str) -> Output {
    task.exec(&sh(script)).unwrap().wait_with_output(1 << 20, Some(LONG)).unwrap()
}

/// The standard output as text.
pub fn text(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

/// A task that sleeps until it is killed.
pub fn sleeper() -> Sandbox {
    shell("exec sleep 1000")
}

/// Waits until `holds` returns true.
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether all processes of a task can be found, and counted, by a cgroup.
pub fn counted(task: &Task) -> bool {
    if task.processes().is_err() {
        common::skip::skip(&["cgroups"], "the task has no cgroup");
        return false;
    }
    true
}
