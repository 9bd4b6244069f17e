//! Attacks for which the caller is a process of its own: it is killed, has few descriptors, or is careless. This test
//! binary runs as that process.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod attack_tools;
mod common;

use std::fs;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio as Std};
use std::time::{Duration, Instant};

use cofferdam::{CallerFd, Control, Error, Sandbox, Stdio};
use common::{emulated, remove_cgroup, sandboxes};

/// Entry point of this binary inside a sandbox; does nothing elsewhere.
#[test]
fn probe_entry() {
    let Some((what, mut say)) = common::asked() else { return };
    assert_eq!(what, "terminal");
    let mut attack = attack_tools::Attack::default();
    let byte = b'x';
    // TIOCSTI needs a controlling terminal, so the task first tries to acquire one.
    let _ = call!(libc::SYS_setsid);
    attack.attempt("TIOCSCTTY", call!(libc::SYS_ioctl, 0, libc::TIOCSCTTY, 1));
    attack.attempt("TIOCSTI", call!(libc::SYS_ioctl, 0, libc::TIOCSTI, &raw const byte));
    attack.attempt("TIOCLINUX", call!(libc::SYS_ioctl, 0, libc::TIOCLINUX, &raw const byte));
    attack.attempt("/dev/tty", call!(libc::SYS_open, c"/dev/tty".as_ptr(), libc::O_RDWR));
    let group = 1;
    attack.attempt("TIOCSPGRP", call!(libc::SYS_ioctl, 0, libc::TIOCSPGRP, &raw const group));
    attack.tell(&mut say);
}

fn sleeper(id: &str) -> Sandbox {
    let id = id.to_string();
    Sandbox::command("/bin/sleep").arg("1000").id(id)
}

/// Entry point of this binary as a caller; does nothing elsewhere.
#[test]
fn caller_entry() {
    let Ok(what) = std::env::var("COFFERDAM_CALLER") else { return };
    let id = std::env::var("ID").unwrap_or_default();
    match what.as_str() {
        // Is killed at an arbitrary moment.
        "spawning" => {
            for i in 0.. {
                drop(sleeper(&format!("{id}-{i}")).spawn());
            }
        }
        "running" => {
            let task = sleeper(&id).spawn().unwrap();
            println!("pid {}", task.pid().unwrap());
            task.wait().unwrap();
        }
        // A forked child of the caller has copies of all its descriptors, and outlives it.
        "forked" => {
            let task = sleeper(&id).spawn().unwrap();
            // SAFETY: the child sleeps and ends, by system calls only.
            let copy = unsafe { libc::fork() };
            if copy == 0 {
                let nap = libc::timespec { tv_sec: 60, tv_nsec: 0 };
                let _ = call!(libc::SYS_nanosleep, &raw const nap, 0);
                // SAFETY: _exit(2) takes a number.
                unsafe { libc::_exit(0) };
            }
            println!("copy {copy}");
            println!("pid {}", task.pid().unwrap());
            task.wait().unwrap();
        }
        "descriptors" => few_descriptors(),
        "closed" => {
            for fd in 0..3 {
                call!(libc::SYS_close, fd).unwrap();
            }
            let ok = (0..3).all(|_| {
                let run = Sandbox::command("/bin/sh").args(["-c", "echo x; echo y >&2; read z; exit 7"]);
                run.spawn().and_then(|task| task.wait()).is_ok_and(|status| status.code == Some(7))
            });
            let piped = Sandbox::command("/bin/echo").arg("through").stdout(Stdio::Piped).spawn();
            let text = piped.map(|task| std::io::read_to_string(task.take_stdout().unwrap()).unwrap());
            let through = text.is_ok_and(|t| t == "through\n");
            // Descriptors 0 to 2 are closed, so files opened for the sandbox get these numbers. `Inherit` must not pass
            // those to the task.
            let leaks = [0, 1, 2].map(|fd| {
                let run = Sandbox::command("/bin/sh").args(["-c", &format!("cd -P /proc/self/fd/{fd}/")]);
                let how = |n| if n == fd { Stdio::Inherit } else { Stdio::Null };
                run.stdin(how(0)).stdout(how(1)).stderr(how(2)).spawn()
            });
            let refused = leaks.iter().all(|run| matches!(run, Err(Error::Spec { .. })));
            let leaked = leaks.into_iter().flatten().any(|task| task.wait().unwrap().success());
            std::process::exit(
                i32::from(!ok) | i32::from(!through) << 1 | i32::from(!refused) << 2 | i32::from(leaked) << 3,
            );
        }
        "no-sigchld" => {
            // SAFETY: SIG_IGN is a valid disposition.
            unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
            let task = Sandbox::command("/bin/sh").args(["-c", "sleep 0.1 & wait; exit 7"]).spawn().unwrap();
            assert_eq!(task.wait().unwrap().code, Some(7));
            let task = Sandbox::command("/bin/sh").args(["-c", "exit 7"]).with(|s| s.init = false);
            let status = task.spawn().unwrap().wait().unwrap();
            assert!(status.lost.is_some() || status.code == Some(7), "{status}");
            // The kernel keeps no status for such a caller. That of a task that it killed itself is known.
            for init in [true, false] {
                let task = Sandbox::command("sleep").arg("600").init(init).spawn().unwrap();
                task.kill().unwrap();
                assert_eq!(task.wait().unwrap().signal, Some(9), "init {init}");
            }
            drop(sleeper(&id).spawn().unwrap());
        }
        "forking" => forking(),
        "terminal" => {
            let path = std::env::var("PTY").unwrap();
            nix::unistd::setsid().unwrap();
            // A session leader without a controlling terminal acquires the first one that it opens.
            let tty = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
            let _ = call!(libc::SYS_ioctl, tty.as_raw_fd(), libc::TIOCSCTTY, 0);
            assert!(fs::File::open("/dev/tty").is_ok(), "the caller has a terminal");
            for user in attack_tools::USERS {
                let sandbox = common::probe("terminal").user(user).stdin(CallerFd::duplicate(&tty).unwrap());
                attack_tools::beaten(&common::run_probe(sandbox).unwrap(), 5);
            }
        }
        other => panic!("no caller {other}"),
    }
}

/// At each limit of descriptors the task runs, or spawn returns an error. No descriptor stays open.
fn few_descriptors() {
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    let mut ran = 0;
    for limit in (3..90u64).step_by(if emulated() { 6 } else { 1 }) {
        let limits = libc::rlimit { rlim_cur: limit, rlim_max: 1024 };
        // SAFETY: `limits` outlives the call.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limits) }, 0);
        let done = Sandbox::command("/bin/true").spawn().and_then(|task| task.wait());
        let limits = libc::rlimit { rlim_cur: 1024, rlim_max: 1024 };
        // SAFETY: `limits` outlives the call.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limits) }, 0);
        match done {
            Ok(status) => {
                assert!(status.success(), "{limit}: {status}");
                ran += 1;
            }
            Err(Error::Prepare { .. } | Error::Setup { .. } | Error::Unsupported { .. }) => {}
            Err(Error::Spec { field: "user", .. }) => {}
            Err(other) => panic!("{limit}: {other:?}"),
        }
        assert_eq!(open(), before, "{limit}");
    }
    assert!(ran > 0);
}

/// Spawns while another thread forks children. Each lives for 20 ms and holds copies of all descriptors.
fn forking() {
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // SAFETY: the child sleeps and ends, by system calls only.
                let pid = unsafe { libc::fork() };
                if pid == 0 {
                    let nap = libc::timespec { tv_sec: 0, tv_nsec: 20_000_000 };
                    let _ = call!(libc::SYS_nanosleep, &raw const nap, 0);
                    // SAFETY: _exit(2) takes a number.
                    unsafe { libc::_exit(0) };
                }
                // SAFETY: waitpid(2) accepts a null pointer.
                unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            }
        });
        for i in 0..if emulated() { 8 } else { 60 } {
            let run = Sandbox::command("/bin/sh").args(["-c", "exit 7"]).with(|s| s.init = i % 2 == 0);
            assert_eq!(run.spawn().unwrap().wait().unwrap().code, Some(7));
            assert!(Sandbox::command("/no/such").with(|s| s.init = i % 2 == 0).spawn().is_err());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

fn caller(what: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "caller_entry", "--nocapture", "--test-threads=1"]);
    command.env("COFFERDAM_CALLER", what).stdin(Std::null());
    command
}

fn succeeds(mut command: Command) {
    let done = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{}\n{out}{err}", done.status);
}

/// The cgroups whose name begins with `id`. A killed caller cannot remove them.
fn groups(id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((dir, depth)) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if !entry.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            let name = name.to_string_lossy().to_string();
            if name.starts_with(id) {
                found.push(path);
            } else if depth < 2 || path.to_string_lossy().contains("cofferdam") {
                todo.push((path, depth + 1));
            }
        }
    }
    found
}

fn processes_in(group: &std::path::Path) -> usize {
    fs::read_to_string(group.join("cgroup.procs")).map_or(0, |text| text.lines().count())
}

/// Waits until `done` returns true, for at most ten seconds.
#[track_caller]
fn eventually(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A caller is killed at arbitrary moments. PID 1 notices its death while it waits for the id maps, while it gives up
/// its rights, or later. The empty cgroup stays.
#[test]
fn no_process_survives_a_caller_killed_during_spawn() {
    if !sandboxes() {
        return;
    }
    let id = format!("killed-{}", std::process::id());
    for round in (0..25u64).step_by(if emulated() { 3 } else { 1 }) {
        let mut child =
            caller("spawning").env("ID", &id).stdout(Std::null()).stderr(Std::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(20_000 + round * 1_717));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let found = groups(&id);
    eventually("a process outlives its caller", || found.iter().all(|dir| processes_in(dir) == 0));
    for dir in found {
        remove_cgroup(&dir);
    }
}

/// While caller and task run, PID 1 has three descriptors, under 200 KiB of memory and no capabilities.
#[test]
fn task_dies_with_its_caller_and_pid_1_is_small() {
    if !sandboxes() {
        return;
    }
    use std::io::BufRead;
    let id = format!("ends-{}", std::process::id());
    let mut child = caller("running").env("ID", &id).stdout(Std::piped()).spawn().unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let pid: i32 = lines
        .filter_map(|line| line.split_once("pid ").and_then(|(_, pid)| pid.trim().parse().ok()))
        .next()
        .unwrap();
    let field = |pid: i32, key: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default().to_string();
        line.split_whitespace().next().and_then(|n| n.parse::<i32>().ok()).unwrap_or(-1)
    };
    let init = field(pid, "PPid:");
    assert_ne!(init, child.id().cast_signed(), "the task's parent is its init");
    // PID 1 closes its last descriptors shortly after the command has started.
    if attack_tools::privileged() {
        let fds = || fs::read_dir(format!("/proc/{init}/fd")).map_or(0, Iterator::count);
        eventually("init holds more than its socket, its signals and the caller's pidfd", || fds() == 3);
        assert!(field(init, "VmRSS:") < 200, "{} KiB", field(init, "VmRSS:"));
        let caps = fs::read_to_string(format!("/proc/{init}/status")).unwrap();
        for set in ["CapInh:\t0", "CapPrm:\t0", "CapEff:\t0", "CapAmb:\t0", "NoNewPrivs:\t1"] {
            assert!(caps.contains(set), "{set} in {caps}");
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the task outlives its caller", || field(pid, "PPid:") == -1 || field(pid, "VmRSS:") == -1);
    for dir in groups(&id) {
        eventually("the cgroup does not empty", || processes_in(&dir) == 0);
        remove_cgroup(&dir);
    }
}

/// The forked process has a copy of the socket to PID 1, so the end of that socket does not show the caller's death.
#[test]
fn task_dies_with_its_caller_even_if_a_fork_of_the_caller_lives() {
    if !sandboxes() {
        return;
    }
    use std::io::BufRead;
    let id = format!("forked-{}", std::process::id());
    let mut child = caller("forked").env("ID", &id).stdout(Std::piped()).spawn().unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut number = |name: &str| -> i32 {
        let found = |line: String| line.split_once(name).and_then(|(_, pid)| pid.trim().parse().ok());
        lines.by_ref().find_map(found).unwrap()
    };
    let (copy, pid) = (number("copy "), number("pid "));
    let runs =
        |pid: i32| fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|s| s.contains("VmRSS"));
    assert!(runs(copy) && runs(pid));
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the task outlives its caller", || !runs(pid));
    assert!(runs(copy), "the copy was to hold the socket meanwhile");
    call!(libc::SYS_kill, copy, libc::SIGKILL).unwrap();
    for dir in groups(&id) {
        eventually("the cgroup does not empty", || processes_in(&dir) == 0);
        remove_cgroup(&dir);
    }
}

#[test]
fn spawn_without_free_descriptors_fails_and_leaks_none() {
    if sandboxes() {
        succeeds(caller("descriptors"));
    }
}

/// The task gets the standard streams that the spec asks for.
#[test]
fn spawn_works_with_descriptors_0_to_2_closed() {
    if sandboxes() {
        succeeds(caller("closed"));
    }
}

/// Init reports the exit status through its socket. Without init the status may be lost, and `wait` says so.
#[test]
fn wait_works_while_the_caller_ignores_sigchld() {
    if sandboxes() {
        let id = format!("sigchld-{}", std::process::id());
        let mut command = caller("no-sigchld");
        command.env("ID", id);
        succeeds(command);
    }
}

/// Forked copies of the caller hold all of its descriptors. They neither block a spawn nor change its result.
#[test]
fn spawn_works_while_another_thread_forks() {
    if sandboxes() {
        succeeds(caller("forking"));
    }
}

/// A device of the host is used through a descriptor of it, whatever the device cgroup says. `null` and its like are in
/// every sandbox.
#[test]
fn report_names_a_device_that_is_passed_as_a_stream() {
    if !sandboxes() {
        return;
    }
    // Any user may open the last three where they exist.
    let of_the_host = ["/dev/loop-control", "/dev/kmsg", "/dev/fuse", "/dev/net/tun"];
    let mut opened = of_the_host.iter().filter_map(|path| fs::File::options().read(true).open(path).ok());
    let Some(device) = opened.next() else {
        return common::skip::skip(&["root"], "no device of the host can be opened");
    };
    let report = Sandbox::command("true").stdin(device).plan().unwrap().report;
    assert!(report.weakened.contains(Control::DEVICES), "{report}");
    assert!(report.why(Control::DEVICES).contains("stdin is a device of the host"), "{report}");
    let null = fs::File::open("/dev/zero").unwrap();
    let report = Sandbox::command("true").stdin(null).plan().unwrap().report;
    assert!(!report.weakened.contains(Control::DEVICES), "{report}");
}

/// A task that has a terminal as its standard input cannot push characters into the terminal's input queue.
#[test]
fn cve_2017_5226_task_cannot_push_input_into_the_callers_terminal() {
    if !sandboxes() {
        return;
    }
    // SAFETY: posix_openpt(3) takes numbers, and the buffer outlives the calls.
    let (master, name) = unsafe {
        let master = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        let mut name = [0u8; 64];
        let ok = master >= 0
            && libc::grantpt(master) == 0
            && libc::unlockpt(master) == 0
            && libc::ptsname_r(master, name.as_mut_ptr().cast(), name.len()) == 0;
        (master, ok.then(|| std::ffi::CStr::from_bytes_until_nul(&name).unwrap().to_owned()))
    };
    let Some(name) = name else {
        common::skip::note("needs a pty: posix_openpt(3) is refused");
        return;
    };
    let mut command = caller("terminal");
    command.env("PTY", name.to_str().unwrap());
    succeeds(command);
    let _ = call!(libc::SYS_close, master);
}
