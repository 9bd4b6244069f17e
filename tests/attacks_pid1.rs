//! Attacks on PID 1 by a task that may trace it: PID 1 has nothing that the task does not have.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod attack_tools;
mod common;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;

use attack_tools::*;
use cofferdam::filter::Filter;
use cofferdam::{
    Control, Deadline, DieWith, ExitKind, Host, Limits, Lost, Policy, Require, Sandbox, Secrets, TaskDirs,
};
use common::{asked, can, emulated, probe, run_probe, sandboxes};

/// In the plan of every sandbox here, and so at first in the memory of init.
const SECRET: &str = "a-secret-that-stays-with-the-task";

/// Entry point of this binary inside a sandbox.
#[test]
fn probe_entry() {
    let Some((what, mut say)) = asked() else { return };
    let mut attack = Attack::default();
    if what == "limit" {
        limit_pid_1(&mut attack);
        return attack.tell(&mut say);
    }
    if what == "flood" {
        return flood();
    }
    if what == "stop" {
        return stop();
    }
    if what == "pipe" {
        return hold_pipe();
    }
    assert_eq!(what, "take-over");
    take_over(&mut attack);
    say.fact("traced", call!(libc::SYS_ptrace, 0x4206 /* PTRACE_SEIZE */, 1, 0, 0).is_ok());
    attack.tell(&mut say);
}

/// Checks PID 1's capabilities, ids, descriptors and memory, from the start of the task on.
fn take_over(attack: &mut Attack) {
    let status = fs::read_to_string("/proc/1/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim_start_matches(':').trim().to_owned()
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let bits = u64::from_str_radix(&field(set), 16).unwrap();
        attack.never(format!("{set} {bits:#x}"), bits != 0);
    }
    // Uid 0 in a user namespace is the uid that the map gives outside.
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    let host_root = map.split_whitespace().take(2).all(|id| id == "0");
    let uid = field("Uid");
    attack.never(format!("uid {uid}"), uid.split_whitespace().any(|id| id == "0") && host_root);
    attack.never("new privileges", field("NoNewPrivs") != "1");
    attack.never("no filter", field("Seccomp") != "2");
    let fds = fs::read_dir("/proc/1/fd").map(|dir| dir.flatten().collect::<Vec<_>>()).unwrap_or_default();
    for fd in fds {
        // PID 1 closes two descriptors after the exec, perhaps after the directory was read.
        let target = match fs::read_link(fd.path()) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            target => target.unwrap_or_else(|e| e.to_string().into()),
        };
        let text = target.to_string_lossy().into_owned();
        attack.never(&text, !text.starts_with("socket:") && !text.starts_with("anon_inode:"));
    }
    let maps = fs::read_to_string("/proc/1/maps").unwrap_or_default();
    attack.never("the plan is mapped", maps.contains("cofferdam-plan"));
    let Ok(memory) = File::open("/proc/1/mem") else { return };
    for line in maps.lines() {
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|n| u64::from_str_radix(n, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(end.saturating_sub(start).min(1 << 22)).unwrap()];
        let n = memory.read_at(&mut bytes, start).unwrap_or(0);
        let found = bytes[..n].windows(SECRET.len()).any(|w| w == SECRET.as_bytes());
        attack.never(format!("the secret at {range}"), found);
    }
}

/// A task with CAP_SYS_PTRACE may trace PID 1, but gains no capability (not even in the bounding set), no uid 0, no
/// descriptor of a file, no user namespace and no secret, however early it traces.
#[test]
fn tracing_pid_1_gains_no_privilege_and_no_secret() {
    if !sandboxes() {
        return;
    }
    let policy = Policy { allow_caps: Some(vec!["all".into()]), ..Policy::default() };
    let secrets = Secrets { files: [("s".into(), SECRET.into())].into(), ..Secrets::default() };
    let dirs = TaskDirs { secrets: Some(secrets), ..TaskDirs::default() };
    let host = Host::probe().unwrap();
    let bare = attack_tools::without_landlock();
    for user in USERS {
        for round in 0..20 {
            let run = |host: &Host| {
                let sandbox = probe("take-over").user(user).policy(&policy).host(host);
                run_probe(sandbox.with(|s| {
                    s.cap_add = vec!["sys_ptrace".into()];
                    s.task_dirs = dirs.clone();
                }))
                .unwrap()
            };
            // A Landlock domain forbids the trace.
            if host.landlock_abi >= 2 {
                let seen = run(&host);
                assert_eq!(seen.get("traced"), "false", "{user}, round {round}");
                assert!(seen.report.enforced.contains(Control::PID_NS), "{}", seen.report);
            }
            let seen = run(&bare);
            beaten(&seen, if privileged() { 12 } else { 9 });
            // The attack is real: the trace succeeds.
            if privileged() {
                assert_eq!(seen.get("traced"), "true", "{user}, round {round}");
                assert!(seen.report.weakened.contains(Control::PID_NS), "{}", seen.report);
            }
        }
    }
}

/// Lowers the limits of PID 1, as its own user and as the user of PID 1. Waits until the caller has closed descriptor 4.
fn limit_pid_1(attack: &mut Attack) {
    let _ = call!(libc::SYS_read, 4, [0u8; 1].as_mut_ptr(), 1);
    let status = fs::read_to_string("/proc/1/status").unwrap();
    let id = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u32>().unwrap()
    };
    let (uid, gid) = (id("Uid:"), id("Gid:"));
    let as_pid_1 = |attempt: &dyn Fn() -> i32| {
        forked(|| {
            let _ = call!(libc::SYS_setresgid, gid, gid, gid);
            let _ = call!(libc::SYS_setresuid, uid, uid, uid);
            attempt()
        })
    };
    let limits = [(libc::RLIMIT_NOFILE, 64u64), (libc::RLIMIT_FSIZE, 0)];
    let lower = |resource: u32, limit: u64| {
        call!(libc::SYS_prlimit64, 1, resource, [limit; 2].as_ptr(), 0).map_or(1, |_| 0)
    };
    for (resource, limit) in limits {
        attack.never(format!("limit {resource}"), lower(resource, limit) == 0);
        attack.never(format!("limit {resource} as user {uid}"), as_pid_1(&|| lower(resource, limit)) == 0);
    }
    // Lowers its priority: SCHED_IDLE, one CPU, nice 19 and the idle class, for PID 1, its process group and its user.
    let (idle, one) = ([0u64; 1], [1u64; 16]);
    let lowered = || {
        let of_user = [(libc::PRIO_PROCESS, 1), (libc::PRIO_PGRP, 1), (libc::PRIO_USER, uid)];
        let mut won = call!(libc::SYS_sched_setscheduler, 1, libc::SCHED_IDLE, idle.as_ptr()).is_ok();
        won |= call!(libc::SYS_sched_setaffinity, 1, 128, one.as_ptr()).is_ok();
        won |= of_user.iter().any(|(which, who)| call!(libc::SYS_setpriority, *which, *who, 19).is_ok());
        won |=
            (1..=3).any(|which| call!(libc::SYS_ioprio_set, which, [0, 1, 1, uid][which], 3 << 13).is_ok());
        i32::from(!won)
    };
    attack.never("lower the priority", forked(lowered) == 0);
    attack.never(format!("lower the priority as user {uid}"), as_pid_1(&lowered) == 0);
    // Makes it the first that the OOM killer ends.
    let as_root = forked(|| {
        let _ = call!(libc::SYS_setresuid, 0, 0, 0);
        let written = fs::File::options().write(true).open("/proc/1/oom_score_adj");
        i32::from(written.and_then(|mut file| std::io::Write::write_all(&mut file, b"1000")).is_err())
    });
    attack.never("raise the OOM score as user 0", as_root == 0);
}

/// Keeps its standard output full, and holds the lock of the pipe by calls that wait for a socket with it. Exits with 9
/// after much longer than its deadline.
fn hold_pipe() {
    let mut pair = [0i32; 2];
    call!(libc::SYS_socketpair, libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr()).unwrap();
    for holder in 0..8 {
        // SAFETY: the child makes system calls only, and never returns.
        if unsafe { libc::fork() } == 0 {
            loop {
                let done = match holder {
                    0..4 => call!(libc::SYS_write, 1, [b'x'; 4096].as_ptr(), 4096),
                    4 | 5 => call!(libc::SYS_sendfile, 1, pair[0], 0, 4096),
                    _ => call!(libc::SYS_splice, pair[0], 0, 1, 0, 4096, 0),
                };
                if done.is_err() {
                    // SAFETY: _exit(2) takes a number.
                    unsafe { libc::_exit(0) };
                }
            }
        }
    }
    std::thread::sleep(std::time::Duration::from_secs(20));
    std::process::exit(9);
}

/// A process that reads or writes a pipe, whose lock another process holds, waits in the kernel.
#[test]
fn a_task_cannot_keep_pid_1_waiting_for_a_pipe() {
    // Without a cgroup, nothing would end such a task.
    if !can("cgroups") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let policy = Policy { state_dir: Some(dir.path().into()), ..Policy::default() };
    let limits = Limits { pids_max: Some(100), ..Limits::default() };
    let sandbox = probe("pipe").policy(&policy).limits(limits).deadline(std::time::Duration::from_secs(1));
    let task = sandbox.stdout(cofferdam::Stdio::Log).require(Require::BestEffort).spawn().unwrap();
    assert!(task.report().enforced.contains(Control::DEADLINE), "{}", task.report());
    assert_eq!(task.wait().unwrap().kind(), ExitKind::Deadline(Deadline::Wall));
}

/// Orphans that end at once, from eight processes, until the deadline, or for much longer.
fn flood() {
    extern "C" fn end(_: *mut libc::c_void) -> libc::c_int {
        0
    }
    for _ in 0..8 {
        // SAFETY: called in a process with one thread that allocates nothing after the fork.
        if unsafe { libc::fork() } != 0 {
            continue;
        }
        let mut stack = [0u64; 1024];
        let top = stack.as_mut_ptr_range().end;
        loop {
            // SAFETY: as above. All clones run `end` on one stack, at the same time. Each writes the same words to it. The
            // stack lives as long as this process.
            unsafe {
                if libc::fork() == 0 {
                    for _ in 0..100 {
                        let shared = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES;
                        libc::clone(end, top.cast(), shared, std::ptr::null_mut());
                    }
                    libc::_exit(0);
                }
                while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
            }
        }
    }
    std::thread::sleep(std::time::Duration::from_secs(30));
    std::process::exit(7);
}

/// PID 1 reaps orphans. A task that makes them faster than PID 1 can reap them does not keep it from its other work.
#[test]
fn a_flood_of_orphans_does_not_outlive_the_deadlines() {
    // Elsewhere the flood would take all PIDs, or all the time of an emulated processor.
    if !can("cgroups") || emulated() {
        return;
    }
    let limits = Limits { pids_max: Some(8000), ..Limits::default() };
    let second = std::time::Duration::from_secs(1);
    let (wall, cpu) = (probe("flood").deadline(second), probe("flood").cpu_deadline(second));
    for (sandbox, deadline) in [(wall, Deadline::Wall), (cpu, Deadline::Cpu)] {
        let status = sandbox.limits(limits.clone()).spawn().unwrap().wait().unwrap();
        assert_eq!(status.kind(), ExitKind::Deadline(deadline), "{status}");
    }
}

/// Makes the parent the tracer, and stops: the parent is told so. Returns 9 if that is refused.
fn stop() {
    // The tracer may not have fewer capabilities: PID 1 has none.
    let none = [0u32; 6];
    call!(libc::SYS_capset, [0x2008_0522u32, 0].as_ptr(), none.as_ptr()).unwrap();
    // SAFETY: PTRACE_TRACEME takes no pointers.
    if unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } != 0 {
        std::process::exit(9);
    }
    // A traced process stops at an exec. This thread then is the only one of the process.
    let failed = std::os::unix::process::CommandExt::exec(
        std::process::Command::new("/bin/sh").args(["-c", "exit 8"]),
    );
    panic!("{failed}");
}

/// The kernel tells a tracer when its child stops, in the same way as when it ends.
#[test]
fn a_command_that_its_parent_traces_has_not_ended_when_it_stops() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let policy = Policy { state_dir: Some(dir.path().into()), ..Policy::default() };
    let moment = std::time::Duration::from_millis(500);
    let open = probe("stop").filter(Filter::None).require(Require::BestEffort);
    // With a process of init as the parent: PID 1, one outside of the namespace, one in the host's.
    let hosts = open.clone().pid_mode(cofferdam::IsolationMode::Host);
    for sandbox in [probe("stop"), open.clone().init(false), hosts] {
        let sandbox = sandbox.policy(&policy);
        let limited = sandbox.clone().deadline(moment).require(Require::BestEffort);
        let task = sandbox.spawn().unwrap();
        assert_eq!(task.wait_timeout(moment).unwrap(), None);
        task.kill().unwrap();
        assert!(task.wait().unwrap().killed);
        let task = limited.spawn().unwrap();
        if task.report().enforced.contains(Control::DEADLINE) {
            assert_eq!(task.wait().unwrap().kind(), ExitKind::Deadline(Deadline::Wall));
        }
    }
    // The driver itself is the parent.
    let task = open.clone().init(false).spawn().unwrap();
    assert!(task.report().weakened.contains(Control::KILL), "{}", task.report());
    assert_eq!(task.wait_timeout(moment).unwrap(), None);
    task.kill().unwrap();
    assert!(task.wait().unwrap().killed);
    // The default filter refuses it there.
    let task = probe("stop").init(false).spawn().unwrap();
    assert!(task.report().enforced.contains(Control::KILL), "{}", task.report());
    assert_eq!(task.wait().unwrap().code, Some(9));
}

/// PID 1 cannot write to a file with a limit of 0 bytes. A task that has its user, or can become it, may set that limit
/// unless the filter forbids it.
#[test]
fn a_task_cannot_keep_pid_1_from_writing_the_exit_record() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let policy = Policy { state_dir: Some(dir.path().into()), ..Policy::default() };
    for user in USERS {
        for filtered in [true, false] {
            let filter = if filtered { Filter::Default } else { Filter::None };
            let (mut facts, facts_end) =
                nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map(|(r, w)| (File::from(r), w)).unwrap();
            let (listens, listening) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
            let sandbox = probe("limit").user(user).policy(&policy).filter(filter).fd(facts_end, 3);
            let sandbox = sandbox.fd(listens, 4);
            let sandbox = sandbox.die_with(DieWith::Survive).require(Require::BestEffort);
            let task = sandbox.spawn().unwrap();
            drop(sandbox);
            let (report, handle) = (task.report().clone(), task.handle().unwrap());
            // Nobody listens to PID 1 from here on.
            drop(task);
            drop(listening);
            let mut text = String::new();
            facts.read_to_string(&mut text).unwrap();
            let task = Sandbox::recover(&handle).unwrap();
            let kind = task.wait().unwrap().kind();
            task.release().unwrap();
            assert!(text.contains("tried=7"), "{text}");
            if filtered {
                assert!(text.contains("won=\0"), "{user}: {text:?}");
                assert_eq!(kind, ExitKind::Exited(0), "{user}: {report}");
                assert!(report.enforced.contains(Control::EXIT_RECORD), "{report}");
            } else {
                // The attack is real.
                assert!(text.contains("as user"), "{user}: {text:?}");
                assert_eq!(kind, ExitKind::Lost(Lost::Unrecorded), "{user}: {report}");
                assert!(report.weakened.contains(Control::EXIT_RECORD), "{report}");
            }
        }
    }
}
