//! The log of a task: complete, bounded, out of the task's reach, and independent of the caller.
//! (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use cofferdam::{DieWith, Error, ExecSpec, Log, LogStream, Policy, Sandbox, Stdio, Task, TaskHandle};
use common::{Start as _, sandboxes, shell};

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
    let task = logged(dir.path(), script).start().unwrap();
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
    let task = logged(dir.path(), "echo out; echo err >&2").stdout(Stdio::Piped).start().unwrap();
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
    let task = logged(dir.path(), script).id("newest").start().unwrap();
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
    let task = logged(dir.path(), &script).start().unwrap();
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
    let task = logged(dir.path(), script).die_with(DieWith::Survive).id("left").start();
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
    let task = logged(dir.path(), script).start().unwrap();
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
    let task = logged(dir.path(), script).start().unwrap();
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
    let why = |sandbox: Sandbox| sandbox.start().unwrap_err().to_string();
    let refused = why(shell("true").stdout(Stdio::Log));
    assert!(refused.contains("stdout") && refused.contains("state_dir"), "{refused}");
    let refused = why(logged(dir.path(), "true").stdin(Stdio::Log));
    assert!(refused.contains("stdin"), "{refused}");
    let small = Policy { log_size: 1000, ..policy(dir.path()) };
    assert!(why(shell("true").policy(&small)).contains("log_size"));
    let task = logged(dir.path(), "exec sleep 1000").start().unwrap();
    let refused = task.exec(&ExecSpec::command("true").stdout(Stdio::Log)).unwrap_err().to_string();
    assert!(refused.contains("stdout") && refused.contains("log"), "{refused}");
    let other = dir.path().join("other");
    std::fs::write(&other, [0; 100]).unwrap();
    let refused = Log::open(&other).unwrap_err();
    assert!(refused.to_string().contains("other"), "{refused}");
    std::fs::remove_file(other).unwrap();
}

/// A pipe that the task has enlarged may hold 1 MiB when the task ends. PID 1 is stopped until then.
#[test]
fn what_is_left_in_an_enlarged_pipe_is_in_the_log() {
    if !sandboxes() || !common::can("python3") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = "import fcntl, os\nfcntl.fcntl(1, 1031, 1 << 20)\nos.write(2, b'r')\nos.read(0, 1)\n\
                  os.write(1, b'x' * 1000000 + b'last')\n";
    let task = Sandbox::command("/usr/bin/python3").args(["-c", script]).stdin(Stdio::Piped);
    let policy = Policy { log_size: 2 << 20, ..policy(dir.path()) };
    let task = task.stdout(Stdio::Log).stderr(Stdio::Piped).policy(&policy).spawn().unwrap();
    std::io::Read::read_exact(&mut task.take_stderr().unwrap(), &mut [0]).unwrap();
    let main = task.pid().unwrap();
    let field = |name: &str| {
        let status = std::fs::read_to_string(format!("/proc/{main}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        line.split_whitespace().next().unwrap().to_owned()
    };
    let pid_1 = nix::unistd::Pid::from_raw(field("PPid:").parse().unwrap());
    nix::sys::signal::kill(pid_1, nix::sys::signal::SIGSTOP).unwrap();
    std::io::Write::write_all(&mut task.take_stdin().unwrap(), b"g").unwrap();
    let start = Instant::now();
    while field("State:") != "Z" && start.elapsed() < LONG {
        std::thread::sleep(Duration::from_millis(5));
    }
    nix::sys::signal::kill(pid_1, nix::sys::signal::SIGCONT).unwrap();
    assert!(task.wait_end(Some(LONG)).unwrap().unwrap().success());
    let kept = text(&mut task.log().unwrap(), LogStream::Stdout);
    assert_eq!((kept.len(), kept.ends_with("last")), (1_000_004, true));
}

/// A reader of a file that something else has written returns an error, and neither waits nor takes much memory.
#[test]
fn a_log_that_is_forged_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::create_dir(at("dir")).unwrap();
    let header = |size: u64, start: u64, end: u64| {
        let fields = [size, start, end].into_iter().flat_map(u64::to_le_bytes);
        b"cfd-log\x01".iter().copied().chain(fields).collect::<Vec<u8>>()
    };
    std::fs::write(at("real"), header(1 << 20, 0, 0)).unwrap();
    std::os::unix::fs::symlink(at("real"), at("link")).unwrap();
    assert!(Log::open(at("real")).unwrap().next().is_none());
    for name in ["fifo", "dir", "link", "absent"] {
        assert!(Log::open(at(name)).is_err(), "{name}");
    }
    std::fs::write(at("short"), &header(9, 0, 0)[..7]).unwrap();
    std::fs::write(at("backwards"), header(1 << 20, 2, 1)).unwrap();
    std::fs::write(at("outside"), header(16, 0, 17)).unwrap();
    for name in ["short", "backwards", "outside"] {
        assert!(Log::open(at(name)).is_err(), "{name}");
    }
    let most = u64::MAX;
    let headers =
        [(0, 0, 0), (most, 0, most), (most, most - 1, most), (1 << 63, 1 << 62, 3 << 61), (4, 0, 4)];
    for (size, start, end) in headers {
        for entries in [vec![], vec![0xff; 100_000], vec![1; 100_000], [1, 0, 0, 16].repeat(20_000)] {
            let mut bytes = header(size, start, end);
            bytes.extend(entries);
            std::fs::write(at("forged"), bytes).unwrap();
            let mut log = Log::open(at("forged")).unwrap();
            // No more entries than the file can hold, then the end or an error.
            let read = std::iter::from_fn(|| log.read().ok().flatten()).count();
            assert!(read <= 80_000 / 16, "{size} {start} {end}: {read}");
        }
    }
}

#[test]
fn a_name_that_cannot_be_replaced_by_a_log_fails_the_spawn_which_leaves_nothing_else() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("taken.log")).unwrap();
    let refused = logged(dir.path(), "true").id("taken").spawn().unwrap_err().to_string();
    assert!(refused.contains("taken.log"), "{refused}");
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["taken.log"]);
}
