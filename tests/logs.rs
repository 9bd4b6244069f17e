//! The log of a task: complete, bounded, out of the task's reach, and independent of the caller.
//! (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use cofferdam::{
    DieWith, Error, ExecSpec, IsolationMode, Log, LogStream, Policy, Sandbox, Stdio, Task, TaskHandle,
};
use common::{sandboxes, shell};

/// More than any of these tests takes on a loaded machine.
const LONG: Duration = Duration::from_secs(120);

/// A shell command whose standard output and standard error go to the log, in a directory that the caller made.
fn logged(dir: &Path, script: &str) -> Sandbox {
    shell(script).policy(&policy(dir)).stdout(Stdio::Log).stderr(Stdio::Log)
}

fn policy(dir: &Path) -> Policy {
    Policy { state_dir: Some(dir.into()), log_size: 64 << 10, ..Policy::default() }
}

/// All that the log has now, of one stream.
fn text(log: &mut Log, of: LogStream) -> String {
    let entries = log.map(Result::unwrap).filter(|entry| entry.stream == of);
    String::from_utf8(entries.flat_map(|entry| entry.bytes).collect()).unwrap()
}

#[test]
fn a_log_has_both_streams_in_order_with_the_time() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let start = SystemTime::now() - Duration::from_secs(1);
    let script = "for i in 1 2 3; do echo out $i; sleep 0.2; echo err $i >&2; sleep 0.2; done";
    let task = logged(dir.path(), script).spawn().unwrap();
    assert!(task.take_stdout().is_none());
    assert!(task.wait_end(Some(LONG)).unwrap().unwrap().success());
    let mut log = task.log().unwrap();
    let entries: Vec<_> = log.by_ref().map(Result::unwrap).collect();
    let lines: Vec<_> = entries.iter().map(|e| String::from_utf8_lossy(&e.bytes).into_owned()).collect();
    assert_eq!(lines, ["out 1\n", "err 1\n", "out 2\n", "err 2\n", "out 3\n", "err 3\n"]);
    assert!(entries.iter().all(|e| (e.stream == LogStream::Stderr) == e.bytes.starts_with(b"err")));
    let times: Vec<_> = entries.iter().map(|e| e.time).collect();
    assert!(times.is_sorted() && times[0] > start && times[5] <= SystemTime::now(), "{times:?}");
    assert_eq!((log.overwritten(), log.next().is_none()), (0, true));
    // The whole is removed with the task.
    task.release().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(task.log().is_err());
}

#[test]
fn one_stream_may_go_to_the_log_and_the_other_one_elsewhere() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let task = logged(dir.path(), "echo out; echo err >&2").stdout(Stdio::Piped).spawn().unwrap();
    let mut seen = String::new();
    std::io::Read::read_to_string(&mut task.take_stdout().unwrap(), &mut seen).unwrap();
    task.wait_end(Some(LONG)).unwrap().unwrap();
    assert_eq!(
        (seen.as_str(), text(&mut task.log().unwrap(), LogStream::Stderr).as_str()),
        ("out\n", "err\n")
    );
}

/// What a task writes last is in the log, however much it is, and the file does not grow.
#[test]
fn a_log_keeps_the_newest_bytes_and_its_size() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; echo last";
    let task = logged(dir.path(), script).id("newest").spawn().unwrap();
    assert!(task.wait_end(Some(LONG)).unwrap().unwrap().success());
    let mut log = task.log().unwrap();
    let kept = text(&mut log, LogStream::Stdout);
    assert!(kept.ends_with("line 19998\nline 19999\nlast\n"), "{kept}");
    let numbers = kept.lines().skip(1).filter_map(|line| line.strip_prefix("line ")?.parse::<u32>().ok());
    let numbers: Vec<u32> = numbers.collect();
    assert!(numbers.is_sorted() && numbers[numbers.len() - 1] - numbers[0] + 1 == numbers.len() as u32);
    assert!(log.overwritten() > 0 && kept.len() > 16 << 10, "{} {}", log.overwritten(), kept.len());
    let size = std::fs::metadata(dir.path().join("newest.log")).unwrap().len();
    assert_eq!(size, (64 << 10) + 32);
}

/// A reader that is slower than the writer sees no torn entry, and knows what it has missed.
#[test]
fn a_log_is_read_while_it_is_overwritten() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let line = "0123456789abcdef".repeat(8);
    let script = format!("while :; do echo {line}; done");
    let task = logged(dir.path(), &script).spawn().unwrap();
    let mut log = task.log().unwrap();
    let (start, mut read) = (Instant::now(), 0usize);
    while (read < 1 << 20 || log.overwritten() == 0) && start.elapsed() < LONG {
        match log.read().unwrap() {
            Some(entry) => {
                let mut bytes = entry.bytes.iter();
                assert!(bytes.all(|byte| line.as_bytes().contains(byte) || *byte == b'\n'), "{entry:?}");
                read += entry.bytes.len();
                if read % 7 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    assert!(read >= 1 << 20 && log.overwritten() > 0, "{read} {}", log.overwritten());
    task.kill().unwrap();
}

/// The log needs no caller: it is written after the caller has left, and another one reads and removes it.
#[test]
fn a_log_is_written_without_the_caller_and_removed_with_the_task() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = "echo one; while ! [ -e /tmp/go ]; do sleep 0.05; done; echo two";
    let task = logged(dir.path(), script).die_with(DieWith::Survive).id("left").spawn();
    let task = match task {
        Err(e @ Error::Unsupported { .. }) => return common::skip::skip(&["cgroups"], e),
        task => task.unwrap(),
    };
    let mut log = Log::open(dir.path().join("left.log")).unwrap();
    let go = |task: &Task| task.exec(&ExecSpec::command("/bin/sh").args(["-c", ">/tmp/go"])).unwrap().wait();
    let handle = serde_json::to_string(&task.handle().unwrap()).unwrap();
    drop(task);
    let handle: TaskHandle = serde_json::from_str(&handle).unwrap();
    let task = Sandbox::recover(&handle).unwrap();
    assert!(go(&task).unwrap().success());
    drop(task);
    let task = Sandbox::recover(&handle).unwrap();
    task.wait_end(Some(LONG)).unwrap().unwrap();
    assert_eq!(text(&mut log, LogStream::Stdout), "one\ntwo\n");
    assert_eq!(text(&mut task.log().unwrap(), LogStream::Stdout), "one\ntwo\n");
    task.release().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// The task has pipes, and no way to the file.
#[test]
fn a_task_cannot_reach_its_log() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = "for fd in 0 1 2 3 4 5 6 7 8 9; do readlink /proc/self/fd/$fd; done; \
                  for fd in /proc/1/fd/*; do echo tried; readlink $fd; cat $fd; done 2>/dev/null; \
                  : >/proc/self/fd/1 || echo refused; echo end";
    let task = logged(dir.path(), script).spawn().unwrap();
    task.wait_end(Some(LONG)).unwrap().unwrap();
    let seen = text(&mut task.log().unwrap(), LogStream::Stdout);
    assert!(seen.contains("pipe:[") && seen.contains("end"), "{seen}");
    assert!(!seen.contains(".log") && !seen.contains(&*dir.path().to_string_lossy()), "{seen}");
}

/// Unmounts when it is dropped.
struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        nix::mount::umount2(self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

/// A disk that is full does not stop the task.
#[test]
fn a_log_that_cannot_be_written_does_not_block_the_task() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = |path: &Path| {
        nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=40k"))
    };
    if let Err(e) = mount(dir.path()) {
        return common::skip::skip(&["root"], format!("a small tmpfs: {e}"));
    }
    let _mounted = Unmount(dir.path());
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; exit 5";
    let task = logged(dir.path(), script).spawn().unwrap();
    let code = task.wait_end(Some(LONG)).unwrap().unwrap().code;
    let kept = text(&mut task.log().unwrap(), LogStream::Stdout);
    task.release().unwrap();
    assert_eq!(code, Some(5));
    assert!(kept.starts_with("line 0\n"), "{kept}");
}

#[test]
fn a_log_without_a_place_or_a_writer_is_refused_with_its_field() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let why = |sandbox: Sandbox| sandbox.spawn().unwrap_err().to_string();
    let refused = why(shell("true").stdout(Stdio::Log));
    assert!(refused.contains("stdout") && refused.contains("state_dir"), "{refused}");
    let refused = why(logged(dir.path(), "true").stdin(Stdio::Log));
    assert!(refused.contains("stdin"), "{refused}");
    let refused = why(logged(dir.path(), "true").pid_mode(IsolationMode::Private).init(false));
    assert!(refused.contains("stdout") && refused.contains("init"), "{refused}");
    let small = Policy { log_size: 1000, ..policy(dir.path()) };
    assert!(why(shell("true").policy(&small)).contains("log_size"));
    let task = logged(dir.path(), "exec sleep 1000").spawn().unwrap();
    let refused = task.exec(&ExecSpec::command("true").stdout(Stdio::Log)).unwrap_err().to_string();
    assert!(refused.contains("stdout") && refused.contains("log"), "{refused}");
    let other = dir.path().join("other");
    std::fs::write(&other, [0; 100]).unwrap();
    let refused = Log::open(&other).unwrap_err();
    assert!(refused.to_string().contains("other"), "{refused}");
    std::fs::remove_file(other).unwrap();
}
