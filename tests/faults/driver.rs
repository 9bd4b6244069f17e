//! The program under test: this binary, started again. It spawns what it is told, and reports the outcome, what it finds
//! changed in itself, and what is left on the machine.

use std::error::Error as _;
use std::fs::{DirEntry, read_dir, read_link};
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use cofferdam::{Error, Host, Sandbox, Task};
use serde::{Deserialize, Serialize};

use crate::caller_tools::Snapshot;
use crate::specs::{self, Act, Spec};
use crate::tracer::{BEGIN, DONE, END};

/// The outcome of one spawn.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The variant of the error, empty if the spawn succeeded.
    pub kind: String,
    /// The message of the error.
    pub message: String,
    /// The cause of the error.
    pub cause: String,
    pub errno: Option<i32>,
    /// How the task ended.
    pub status: String,
    /// The report of the task.
    pub report: String,
    /// What differs in the caller.
    pub touched: Vec<String>,
    /// What is left on the machine.
    pub left: Vec<String>,
}

/// In the environment of a driver that gets orphans.
pub const ADOPTS: &str = "COFFERDAM_FAULTS_ADOPTS";

/// Prefix of the lines that are no output of the test harness.
pub const PREFIX: &str = "driver: ";

fn say(line: &str) {
    println!("\n{PREFIX}{line}");
    io::stdout().flush().unwrap();
}

fn mark(signal: i32) {
    // SAFETY: raise(3) takes a number.
    unsafe { libc::raise(signal) };
}

/// Reads commands until there are none: `plan N` prints the plan of spec N, `act N` spawns it, or does what else it says.
pub fn run(dir: &Path) {
    let host = Host::probe().unwrap();
    let specs = specs::all(dir, &host);
    start_reaper(&specs[0].sandbox());
    if std::env::var_os(ADOPTS).is_some() {
        adopt_orphans();
    }
    say("ready");
    let stdin = io::stdin();
    let mut line = String::new();
    loop {
        line.clear();
        if stdin.lock().read_line(&mut line).unwrap() == 0 {
            return;
        }
        let (what, number) = line.trim().split_once(' ').unwrap();
        let spec = &specs[number.parse::<usize>().unwrap()];
        match what {
            "plan" => {
                let plan = spec.sandbox().plan();
                let gated = matches!(spec.act, Act::Gate);
                let plan = if gated { plan.and_then(cofferdam::Plan::gated) } else { plan };
                let text =
                    plan.map_or_else(|e| format!("{e:?}"), |plan| format!("{plan}# report\n{}", plan.report));
                let more = spec.act.more_steps().trim_start();
                let text = text.replacen("# release\n", &format!("{more}# release\n"), 1);
                say(&serde_json::to_string(&text).unwrap());
            }
            "act" => {
                let outcome = attempt(dir, spec);
                say(&serde_json::to_string(&outcome).unwrap());
                mark(DONE);
            }
            other => panic!("no command {other}"),
        }
    }
}

/// Makes this process have the thread that reaps what no caller does. It stays, with its sockets. Waits until it has reaped
/// the task.
fn start_reaper(sandbox: &Sandbox) {
    let handle = sandbox.spawn().unwrap().detach().unwrap();
    Sandbox::recover(&handle).unwrap().release().unwrap();
    let is_pidfd = |link: io::Result<DirEntry>| {
        read_link(link.unwrap().path()).is_ok_and(|file| file.ends_with("[pidfd]"))
    };
    let end = Instant::now() + Duration::from_secs(10);
    while !Snapshot::take().get("children").is_empty() || read_dir("/proc/self/fd").unwrap().any(is_pidfd) {
        assert!(Instant::now() < end, "the task is not reaped");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Makes this process the parent of the orphans that it has (`PR_SET_CHILD_SUBREAPER`), as PID 1 of a container is, so that an
/// orphan that nobody reaps is found.
fn adopt_orphans() {
    nix::sys::prctl::set_child_subreaper(true).unwrap();
}

fn attempt(dir: &Path, spec: &Spec) -> Outcome {
    let mut outcome = Outcome::default();
    let sandbox = spec.sandbox();
    // Nothing is kept of an earlier spawn.
    sandbox.release_prepared();
    if matches!(spec.act, Act::SpawnPrepared) {
        assert!(sandbox.prepare().unwrap());
        sandbox.spawn().unwrap().kill().unwrap();
    }
    // The task that another command joins exists before.
    let running = matches!(spec.act, Act::Exec(_)).then(|| sandbox.spawn().unwrap());
    let files = specs::left(dir);
    let before = Snapshot::take();
    let mut prepared = true;
    mark(BEGIN);
    let done = match (&spec.act, &running) {
        (Act::Exec(exec), Some(task)) => task.exec(exec).map(Some),
        (Act::Gate, _) => sandbox.spawn_with(|_| Ok(())).map(Some),
        (Act::Prepare, _) => sandbox.prepare().map(|made| {
            prepared = made;
            None
        }),
        _ => sandbox.spawn().map(Some),
    };
    mark(END);
    match done {
        Ok(Some(task)) => succeeded(task, &mut outcome),
        Ok(None) => {
            succeeded(sandbox.spawn().unwrap(), &mut outcome);
            // What is kept would count as a change of the caller.
            sandbox.release_prepared();
        }
        Err(error) => failed(&error, &mut outcome),
    }
    if !prepared {
        outcome.status = "nothing is prepared".into();
    }
    outcome.touched = touched(&before);
    if let Some(task) = running {
        let mut now = specs::left(dir);
        now.retain(|path| !files.contains(path));
        outcome.left.extend(now);
        match task.status() {
            Ok(None) => {}
            other => outcome.left.push(format!("the task is not as it was: {other:?}")),
        }
        drop(task);
    }
    // With the mounts, the parents of the cgroups were kept.
    sandbox.release_prepared();
    outcome.left.extend(specs::left(dir));
    outcome
}

/// What differs in the caller. A worker thread that has done its work may still be about to end.
fn touched(before: &Snapshot) -> Vec<String> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let differences = before.differences(&Snapshot::take());
        if differences.is_empty() || Instant::now() > end {
            return differences;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn succeeded(task: Task, outcome: &mut Outcome) {
    outcome.report = task.report().to_string();
    outcome.status = match task.kill().and_then(|()| task.wait()) {
        Ok(status) => status.to_string(),
        Err(e) => format!("{e:?}"),
    };
}

fn failed(error: &Error, outcome: &mut Outcome) {
    let kind = format!("{error:?}");
    outcome.kind = kind.split([' ', '{', '(']).next().unwrap_or_default().to_owned();
    outcome.message = error.to_string();
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    outcome.cause = source.map(ToString::to_string).unwrap_or_default();
    outcome.errno = source.and_then(io::Error::raw_os_error);
}
