//! Shared by the tests of the verbs for tasks: the program, a state directory, and waiting.
#![allow(dead_code, clippy::unwrap_used, clippy::panic, clippy::arithmetic_side_effects)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[path = "../../../tests/common/skip.rs"]
pub mod skip;

/// The program. The run-time variable has precedence, because CI runs this test from a copy of the tree.
pub fn binary() -> std::ffi::OsString {
    std::env::var_os("CARGO_BIN_EXE_cofferdam").unwrap_or_else(|| env!("CARGO_BIN_EXE_cofferdam").into())
}

/// A state directory of its own. Its tasks are removed with it.
pub struct State {
    dir: tempfile::TempDir,
    /// Part of the names of its tasks, which no other test has.
    unique: String,
}

impl State {
    /// `None` if sandboxes cannot be created. Then the test prints that it is skipped.
    pub fn new(test: &str) -> Option<State> {
        let unique = format!("{test}-{}", std::process::id());
        let state = State { dir: tempfile::tempdir().unwrap(), unique };
        let doctor = state.call(&["doctor"]);
        if doctor.status.code() == Some(2) {
            let said = text(&doctor.stdout);
            skip::skip(&["userns", "root"], said.lines().next().unwrap_or_default());
            return None;
        }
        Some(state)
    }

    /// A name that no other test uses.
    pub fn name(&self, part: &str) -> String {
        format!("{}-{part}", self.unique)
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(args).env("COFFERDAM_STATE", self.path()).stdin(Stdio::null());
        command
    }

    pub fn call(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The standard output of a call that succeeds.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.call(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        text(&output.stdout)
    }

    /// The message of a call that cofferdam refuses.
    pub fn refused(&self, args: &[&str]) -> String {
        let output = self.call(args);
        assert_eq!(output.status.code(), Some(125), "{args:?}: {output:?}");
        text(&output.stderr)
    }

    /// Starts a shell script as a detached task.
    pub fn start(&self, name: &str, script: &str) {
        let args = ["run", "-d", "--name", name, "--require", "best_effort", "sh", "-c", script];
        assert_eq!(self.ok(&args), name);
    }

    /// Waits until a task has written `ready`, after it has set its traps.
    pub fn await_ready(&self, name: &str) {
        until("ready", || self.ok(&["logs", name]).contains("ready"));
    }

    /// The status of a task in the output of `ps`.
    pub fn status(&self, name: &str) -> String {
        let all: serde_json::Value =
            serde_json::from_str(&self.ok(&["ps", "-a", "--format", "json"])).unwrap();
        let task = all.as_array().unwrap().iter().find(|task| task["name"] == name);
        task.unwrap_or_else(|| panic!("no {name} in {all}"))["status"].as_str().unwrap().to_string()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let names = text(&self.call(&["ps", "-a", "-q"]).stdout);
        for name in names.lines() {
            let removed = self.call(&["rm", "-f", name]);
            assert!(removed.status.success() || std::thread::panicking(), "{removed:?}");
        }
        if !std::thread::panicking() {
            assert_eq!(found(&self.path(), &self.unique), Vec::<PathBuf>::new());
            assert_eq!(found(Path::new("/sys/fs/cgroup"), &self.unique), Vec::<PathBuf>::new());
        }
    }
}

/// The files and directories below `dir` whose name contains `part`.
fn found(dir: &Path, part: &str) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().contains(part) {
            all.push(entry.path());
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(found(&entry.path(), part));
        }
    }
    all
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_string()
}

/// Waits up to a minute until a condition holds.
pub fn until(what: &str, holds: impl FnMut() -> bool) {
    until_or(|| what.to_owned(), holds);
}

/// As [`until`]. `what` also says what is the case instead.
pub fn until_or(mut what: impl FnMut() -> String, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "{}: not within a minute", what());
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

/// The state of a process in `/proc/PID/stat`. `None` if it has ended.
pub fn process_state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}
