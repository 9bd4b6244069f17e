//! A spawn changes nothing that the caller can observe of itself, whatever the caller is like and however the spawn ends.
//! Each kind of caller is a process of its own: this test binary, started again.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

#[macro_use]
mod caller_tools;
mod common;
#[path = "caller_tools/tokio.rs"]
mod runtime;

use std::os::fd::AsRawFd;
use std::process::{Command, Stdio as Std};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use caller_tools::Snapshot;
use cofferdam::{
    Error, ExecSpec, Method, Network, Policy, Require, Root, Sandbox, Stdio, Volume, WindowSize,
};
use common::{Start, emulated, sandboxes};

const CALLERS: [&str; 11] = [
    "plain",
    "ignores SIGCHLD",
    "SA_NOCLDWAIT",
    "closed streams",
    "inherited descriptors",
    "few descriptors",
    "another cwd",
    "timers",
    "settings",
    "tokio",
    "tokio on one thread",
];

/// Entry point of this binary as a caller; does nothing elsewhere.
#[test]
fn caller_entry() {
    let Ok(what) = std::env::var("COFFERDAM_UNTOUCHED") else { return };
    match what.as_str() {
        "plain" => every_outcome(),
        "ignores SIGCHLD" => {
            action(libc::SIGCHLD, libc::SIG_IGN, 0);
            every_outcome();
        }
        "SA_NOCLDWAIT" => {
            action(libc::SIGCHLD, libc::SIG_DFL, libc::SA_NOCLDWAIT);
            every_outcome();
        }
        "closed streams" => {
            for fd in 0..3 {
                call!(libc::SYS_close, fd).unwrap();
            }
            // Nothing can be printed.
            std::process::exit(i32::from(std::panic::catch_unwind(every_outcome).is_err()));
        }
        "inherited descriptors" => {
            let null = std::fs::File::open("/dev/null").unwrap();
            for _ in 0..1000 {
                // Without O_CLOEXEC.
                call!(libc::SYS_dup, null.as_raw_fd()).unwrap();
            }
            every_outcome();
        }
        "few descriptors" => few_descriptors(),
        "another cwd" => {
            // Before the thread takes its own.
            let before = Snapshot::take();
            // Of a thread with a working directory, a root and a umask of its own.
            let thread = std::thread::spawn(|| {
                call!(libc::SYS_unshare, libc::CLONE_FS).unwrap();
                call!(libc::SYS_chdir, c"/proc/self".as_ptr()).unwrap();
                call!(libc::SYS_umask, 0o77).unwrap();
                every_outcome();
            });
            thread.join().unwrap();
            let after = Snapshot::take();
            assert_eq!(
                (before.get("cwd"), before.get("status Umask")),
                (after.get("cwd"), after.get("status Umask"))
            );
        }
        "timers" => timers(),
        "settings" => {
            settings();
            every_outcome();
        }
        "tokio" => runtime::many_threads(),
        "tokio on one thread" => runtime::one_thread(),
        other => panic!("no caller {other}"),
    }
    println!("untouched: all holds");
}

/// Sets the disposition of a signal.
fn action(signal: i32, handler: usize, flags: i32) {
    // SAFETY: all zeroes is a valid sigaction; the handler is one of the constants, or a function that only adds.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        (action.sa_sigaction, action.sa_flags) = (handler, flags);
        assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
    }
}

/// Runs `spawn` and checks that the caller is the same before and after it.
fn untouched(what: &str, spawn: impl FnOnce()) {
    let before = Snapshot::take();
    assert!(before.len() > 150, "{}", before.len());
    spawn();
    // A worker thread that has done its work may still be about to end.
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let touched = before.differences(&Snapshot::take());
        if touched.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "{what}: {touched:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Spawns with success and with every kind of failure.
fn every_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let policy = Policy { temp_dir: Some(dir.path().into()), ..Policy::default() };
    let base = |command: &str| Sandbox::command(command).policy(&policy).require(Require::BestEffort);
    let ends = |sandbox: Sandbox| assert!(sandbox.start().unwrap().wait().is_ok());
    untouched("success", || ends(base("true")));
    untouched("without init", || ends(base("true").init(false)));
    untouched("network", || ends(base("true").network(Network::None).hostname("dam")));
    untouched("killed", || drop(base("sleep").arg("600").start().unwrap()));
    let size = WindowSize { rows: 24, columns: 80 };
    untouched("terminal", || ends(base("true").terminal(size)));
    untouched("overlay", || ends(base("true").populate(Method::Overlay)));
    let files =
        ["/bin/true", "/bin/busybox", "/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"];
    let there = files.into_iter().filter(|file| std::path::Path::new(file).exists());
    let env: cofferdam::ChrootEnv = there.map(|file| (file.into(), file.into())).collect();
    let root = Root { populate: Method::Copy, chroot_env: env, ..Root::default() };
    untouched("copy", || ends(base("/bin/true").root(root.clone())));
    untouched("streams", || {
        let task = base("cat").stdin(Stdio::Piped).stdout(Stdio::Piped).start().unwrap();
        drop(task.take_stdin());
        task.wait().unwrap();
    });
    untouched("exec", || {
        let task = base("sleep").arg("600").start().unwrap();
        task.exec(&ExecSpec::command("true")).unwrap().wait().unwrap();
        assert!(matches!(task.exec(&ExecSpec::command("no-such")), Err(Error::Exec { .. })));
        // Expires at any moment of the start.
        for micros in (0..40).map(|n| n * 250) {
            let _ = task
                .exec(&ExecSpec::command("sleep").args(["600"]).deadline(Duration::from_micros(micros + 1)));
        }
    });
    untouched("Exec", || assert!(matches!(base("no-such").start(), Err(Error::Exec { .. }))));
    untouched("Spec", || assert!(matches!(base("true").user("no-such").start(), Err(Error::Spec { .. }))));
    untouched("Denied", || {
        let denied = base("true").cap_add("sys_boot").start();
        assert!(matches!(denied, Err(Error::Denied { .. })), "{denied:?}");
    });
    untouched("Setup", || {
        let volume =
            Volume { source: "/etc".into(), target: "/etc/passwd/below".into(), ..Volume::default() };
        let failed = base("/bin/true")
            .root(root.clone())
            .volume(Volume {
                source: "/etc/passwd".into(),
                target: "/etc/passwd".into(),
                ..Volume::default()
            })
            .volume(volume)
            .start();
        assert!(failed.is_err(), "{failed:?}");
    });
    untouched("Prepare", || {
        let policy = Policy { temp_dir: Some("/proc".into()), ..Policy::default() };
        let failed = Sandbox::command("/bin/true").policy(&policy).root(root.clone()).start();
        // Spec if /proc is mounted noexec.
        assert!(matches!(failed, Err(Error::Prepare { .. } | Error::Spec { .. })), "{failed:?}");
    });
    untouched("Unsupported", || {
        let policy = Policy { no_pivot_root: true, require: Some(Require::Full), ..Policy::default() };
        let failed = Sandbox::command("true").policy(&policy).start();
        assert!(matches!(failed, Err(Error::Unsupported { .. })), "{failed:?}");
    });
}

/// With `RLIMIT_NOFILE` nearly spent, each spawn fails at another point, or succeeds.
fn few_descriptors() {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let usual = libc::rlimit { rlim_cur: 1024, rlim_max: 1024 };
    // SAFETY: `usual` outlives the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &usual) }, 0);
    let mut ran = 0;
    for limit in (open..open + 90).step_by(if emulated() { 6 } else { 1 }) {
        untouched("few descriptors", || {
            for rlim_cur in [limit, 1024] {
                let limits = libc::rlimit { rlim_cur, ..usual };
                // SAFETY: `limits` outlives the call.
                assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limits) }, 0);
                if rlim_cur == limit {
                    ran += u32::from(Sandbox::command("true").start().and_then(|task| task.wait()).is_ok());
                }
            }
        });
    }
    assert!((1..90).contains(&ran), "{ran}");
}

static ALARMS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: i32) {
    ALARMS.fetch_add(1, Ordering::Relaxed);
}

/// A signal interrupts the caller every 100 microseconds, with a handler that does not restart system calls.
fn timers() {
    let handler: extern "C" fn(i32) = count;
    action(libc::SIGALRM, handler as usize, 0);
    let posix = [0u64; 8];
    let mut id = 0;
    // A null event means SIGALRM, from a timer that runs for a long time.
    call!(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, 0, &raw mut id).unwrap();
    call!(libc::SYS_timer_settime, id, 0, [0i64, 0, 10_000, 0].as_ptr(), posix.as_ptr().cast_mut()).unwrap();
    // Twenty times as long on an emulated machine, where it would leave no time for anything else.
    let every = if emulated() { 20_000 } else { 100 };
    call!(libc::SYS_setitimer, libc::ITIMER_REAL, [0i64, every, 0, every].as_ptr(), 0).unwrap();
    every_outcome();
    call!(libc::SYS_setitimer, libc::ITIMER_REAL, [0i64; 4].as_ptr(), 0).unwrap();
    assert!(ALARMS.load(Ordering::Relaxed) > 100);
}

/// Settings that are not the default, so that a spawn which resets them is found.
fn settings() {
    for (option, value) in [
        (libc::PR_SET_TIMERSLACK, 123_456),
        (libc::PR_SET_CHILD_SUBREAPER, 1),
        (libc::PR_SET_PDEATHSIG, libc::SIGHUP as u64),
        (libc::PR_SET_KEEPCAPS, 1),
        (libc::PR_SET_THP_DISABLE, 1),
    ] {
        call!(libc::SYS_prctl, option, value, 0, 0, 0).unwrap();
    }
    call!(libc::SYS_umask, 0o27).unwrap();
    call!(libc::SYS_setpriority, 0, 0, 3).unwrap();
    call!(libc::SYS_ioprio_set, 1, 0, 3 << 13).unwrap();
    call!(libc::SYS_personality, libc::ADDR_NO_RANDOMIZE).unwrap();
    call!(libc::SYS_sched_setaffinity, 0, 8, [1u64].as_ptr()).unwrap();
    call!(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, [1u64 << (libc::SIGUSR1 - 1)].as_ptr(), 0, 8).unwrap();
    // A blocked signal that is pending.
    // SAFETY: raise(3) takes a number.
    unsafe { libc::raise(libc::SIGUSR1) };
    std::fs::write("/proc/self/oom_score_adj", "321").unwrap();
    std::fs::write("/proc/self/coredump_filter", "0x11").unwrap();
    action(libc::SIGUSR2, libc::SIG_IGN, libc::SA_RESTART);
}

#[test]
fn spawn_with_any_outcome_leaves_every_kind_of_caller_as_it_was() {
    if !sandboxes() {
        return;
    }
    for what in CALLERS {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "caller_entry", "--nocapture", "--test-threads=1"]);
        let done = command.env("COFFERDAM_UNTOUCHED", what).stdin(Std::null()).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success(), "{what}: {}\n{out}{err}", done.status);
        assert!(what == "closed streams" || out.contains("untouched: all holds"), "{what}: {out}{err}");
    }
}

/// The comparison finds what it is for.
#[test]
fn snapshot_shows_a_change() {
    let thread = std::thread::spawn(|| {
        let before = Snapshot::take();
        // A number that the other tests of this process do not use.
        let null = std::fs::File::open("/dev/null").unwrap();
        let fd = call!(libc::SYS_fcntl, null.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 700).unwrap();
        call!(libc::SYS_prctl, libc::PR_SET_TIMERSLACK, 99_999).unwrap();
        call!(libc::SYS_unshare, libc::CLONE_FS).unwrap();
        call!(libc::SYS_umask, 0o123).unwrap();
        let found = before.differences(&Snapshot::take());
        for name in ["timer slack", "status Umask", &format!("fd {fd}")] {
            assert!(found.iter().any(|line| line.starts_with(&format!("{name}:"))), "{name}: {found:?}");
        }
        call!(libc::SYS_close, fd).unwrap();
    });
    thread.join().unwrap();
}
