//! A spawn whose process is killed after it has found the command and before it executes it fails: the command was never
//! started. (CONTRIBUTING.md, ring 3.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::error::Error as _;
use std::fs::OpenOptions;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use cofferdam::{Error, ExecSpec, IsolationMode, Policy, Require, Sandbox, Task, Volume};
use common::{can, shell};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// PIDs of the processes with these parents.
fn children(parents: &[i32]) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let parent = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    pids.filter(|pid| parent(pid).is_some_and(|parent| parents.contains(&parent))).collect()
}

/// Whether the process waits in ppoll(2) for no descriptor: init does so while execve(2) fails with ETXTBSY.
fn sleeps(pid: i32) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    call.starts_with(&format!("{} 0x0 0x0 ", libc::SYS_ppoll))
}

/// Runs `start`, and kills the process that is about to execute the command.
fn killed<T>(start: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let own = std::process::id().cast_signed();
            while !done.load(SeqCst) {
                let first = children(&[own]);
                let second = children(&first);
                if let Some(pid) = first.into_iter().chain(second).find(|pid| sleeps(*pid)) {
                    // A test that is late kills nothing: the process has ended then.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                    return;
                }
            }
        });
        let result = start();
        done.store(true, SeqCst);
        killer.join().unwrap();
        result
    })
}

/// A command that cannot be executed as long as the returned file is open.
fn busy(dir: &Path) -> (std::fs::File, Volume) {
    let path = dir.join("command");
    std::fs::copy("/bin/true", &path).unwrap();
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    let file = OpenOptions::new().append(true).mode(0o755).open(&path).unwrap();
    (file, Volume { read_only: true, ..Volume::new(dir, "/busy") })
}

/// Kills the process until it was killed in time: init tries for 100 ms to execute the command.
#[track_caller]
fn refused(start: impl Fn() -> Result<Task, Error>) {
    let error = loop {
        match killed(&start) {
            Ok(task) => panic!("taken for started: {:?}", task.wait()),
            Err(Error::Exec { source, .. }) if source.kind() == std::io::ErrorKind::ExecutableFileBusy => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Setup { .. }), "{error:?}");
    assert!(error.source().unwrap().to_string().contains("signal 9"), "{error:?}");
}

#[test]
fn command_that_was_never_executed_is_not_taken_for_a_started_one() {
    // The probe of another process's system call needs privileges.
    if !can("root") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let state = tempfile::tempdir().unwrap();
    let (_open, volume) = busy(dir.path());
    let policy = Policy { state_dir: Some(state.path().into()), ..Policy::default() };
    let command = || Sandbox::command("/busy/command").volume(volume.clone()).require(Require::BestEffort);
    let kinds = [
        ("PID 1", command()),
        ("alone", command().init(false)),
        ("with a process outside", command().init(false).policy(&policy)),
        ("in the host's PID namespace", command().pid_mode(IsolationMode::Host)),
        ("there, with a process beside it", command().pid_mode(IsolationMode::Host).policy(&policy)),
    ];
    for (kind, sandbox) in kinds {
        println!("{kind}");
        refused(|| sandbox.spawn());
    }
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0);
    for sandbox in [shell("sleep 1000"), shell("sleep 1000").pid_mode(IsolationMode::Host)] {
        let task = sandbox.volume(volume.clone()).require(Require::BestEffort).spawn().unwrap();
        refused(|| task.exec(&ExecSpec::command("/busy/command")));
        assert!(task.status().unwrap().is_none(), "the task itself goes on");
    }
}
