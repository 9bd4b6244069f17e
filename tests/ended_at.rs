//! When a task ended, as its driver, a later one and a clock in the task say. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cofferdam::{DieWith, IsolationMode, Policy, Require, Sandbox, Stdio, Task};
use common::{sandboxes, shell};
use nix::poll::{PollFd, PollFlags, poll};

/// The seconds, and a later time whose nanoseconds follow a comma. The date(1) of busybox has no `%N`.
const CLOCK: &str = "date -u +%s; date -u -Ins";

fn policy(dir: &Path) -> Policy {
    Policy { state_dir: Some(dir.into()), ..Policy::default() }
}

/// Waits until the task has ended, without asking for its status. Returns the time.
fn after_the_end(task: &Task) -> SystemTime {
    let mut fds = [PollFd::new(task.pidfd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, 60_000u16).unwrap(), 1);
    SystemTime::now()
}

/// The time that the clock has printed.
fn printed(text: &[u8]) -> SystemTime {
    let text = std::str::from_utf8(text).unwrap();
    let (seconds, date) = text.split_once('\n').unwrap();
    let seconds: u64 = seconds.parse().unwrap();
    // 2026-11-28T13:14:15,123456789+00:00
    let (second, nanoseconds) = (date[17..19].parse::<u64>().unwrap(), date[20..29].parse().unwrap());
    let later = (60 + second - seconds % 60) % 60;
    UNIX_EPOCH + Duration::new(seconds + later, nanoseconds)
}

#[test]
fn process_that_stays_notes_the_end_and_not_the_caller_who_comes_later() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = |sandbox: Sandbox| sandbox.pid_mode(IsolationMode::Host).require(Require::BestEffort);
    let kinds = [
        shell(CLOCK),
        shell(CLOCK).policy(&policy(dir.path())),
        shell(CLOCK).policy(&policy(dir.path())).init(false),
        host(shell(CLOCK).policy(&policy(dir.path()))),
    ];
    for sandbox in kinds {
        let task = sandbox.stdout(Stdio::Piped).spawn().unwrap();
        assert_eq!(task.ended_at(), None);
        let after = after_the_end(&task);
        let output = task.wait_with_output(100, None).unwrap();
        let ended = task.ended_at().unwrap();
        assert!(printed(&output.stdout) <= ended && ended <= after, "{output:?} {ended:?} {after:?}");
        assert_eq!(task.ended_at(), Some(ended));
    }
    // Without a process that stays, the caller sees the end when it looks.
    let task = shell(CLOCK).init(false).stdout(Stdio::Piped).spawn().unwrap();
    let after = after_the_end(&task);
    let output = task.wait_with_output(100, None).unwrap();
    let ended = task.ended_at().unwrap();
    assert!(printed(&output.stdout) <= ended && after <= ended && ended <= SystemTime::now());
}

#[test]
fn later_driver_knows_when_the_task_ended() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let survivor = |script| shell(script).policy(&policy(dir.path())).die_with(DieWith::Survive);
    let start = SystemTime::now();
    let task = survivor("exit 3").spawn().unwrap();
    let handle = task.handle().unwrap();
    let after = after_the_end(&task);
    drop(task);
    let task = Sandbox::recover(&handle).unwrap();
    assert_eq!(task.status().unwrap().unwrap().code, Some(3));
    let ended = task.ended_at().unwrap();
    assert!(start <= ended && ended <= after, "{start:?} {ended:?} {after:?}");
    // The handle of an ended task keeps it, without the record.
    let handle = task.handle().unwrap();
    task.release().unwrap();
    drop(task);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_eq!(Sandbox::recover(&handle).unwrap().ended_at(), Some(ended));

    // The record of a killed task is the driver's.
    let task = survivor("sleep 1000").spawn().unwrap();
    let handle = task.handle().unwrap();
    let before = SystemTime::now();
    task.kill().unwrap();
    task.wait_end(None).unwrap();
    let killed = task.ended_at().unwrap();
    assert!(before <= killed && killed <= SystemTime::now());
    drop(task);
    let task = Sandbox::recover(&handle).unwrap();
    assert!(task.status().unwrap().unwrap().killed);
    assert_eq!(task.ended_at(), Some(killed));
    task.release().unwrap();
    drop(task);

    // Nothing knows when a lost task ended.
    let task = Sandbox::recover(&handle).unwrap();
    assert!(task.status().unwrap().unwrap().lost.is_some());
    assert_eq!(task.ended_at(), None);
}

/// PID 1 writes the record before it sends the status, and the disk may take long. A kill may hit it between the two.
#[test]
fn a_kill_does_not_replace_a_status_that_is_recorded_already() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = |id: &str| dir.path().join(format!("{id}.exit"));
    // What PID 1 writes begins behind the mark of the file.
    let record = |id: &str| std::fs::read(file(id)).unwrap().split_off(32);
    let ended = shell("exit 5").policy(&policy(dir.path())).id("ended").spawn().unwrap();
    after_the_end(&ended);
    let written = record("ended");
    assert_ne!(written, vec![0; written.len()]);
    let killed = shell("sleep 1000").policy(&policy(dir.path())).id("killed").spawn().unwrap();
    assert_eq!(record("killed"), vec![0; written.len()]);
    // As if PID 1 had written it, and then waits for the disk.
    let open = std::fs::OpenOptions::new().write(true).open(file("killed")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&open, &written, 32).unwrap();
    killed.kill().unwrap();
    after_the_end(&killed);
    let status = killed.status().unwrap().unwrap();
    assert_eq!((status.code, status.killed), (Some(5), false), "{status}");
    assert_eq!(record("killed"), written);
    killed.release().unwrap();
    ended.release().unwrap();
}
