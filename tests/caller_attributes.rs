//! The scheduling and process attributes of the caller's thread are not inherited by the task.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod attack_tools;
mod common;

use std::sync::{Mutex, MutexGuard, PoisonError};

use cofferdam::cgroup::CpuSet;
use cofferdam::{Control, Limits};
use common::{asked, can, probe, run_probe, sandboxes};

const PR_SET_IO_FLUSHER: i32 = 57;
const PR_GET_IO_FLUSHER: i32 = 58;
const PR_SET_MDWE: i32 = 65;
const PR_GET_MDWE: i32 = 66;
const TIMERSLACK: i32 = libc::PR_GET_TIMERSLACK;

/// Attributes of this thread: policy, nice, I/O priority, timer slack, personality, securebits and others, and its
/// number of CPUs.
fn state() -> Vec<(&'static str, i64)> {
    let mut mask = [0_u64; 128];
    let _ = call!(libc::SYS_sched_getaffinity, 0, 1024, mask.as_mut_ptr());
    vec![
        ("policy", call!(libc::SYS_sched_getscheduler, 0).unwrap()),
        // The system call returns 20 minus the nice value.
        ("nice", 20 - call!(libc::SYS_getpriority, 0, 0).unwrap()),
        ("ioprio", call!(libc::SYS_ioprio_get, 1, 0).unwrap() >> 13),
        ("slack", call!(libc::SYS_prctl, TIMERSLACK).unwrap()),
        ("personality", call!(libc::SYS_personality, 0xffff_ffff_u32).unwrap()),
        ("securebits", call!(libc::SYS_prctl, libc::PR_GET_SECUREBITS).unwrap()),
        ("thp", call!(libc::SYS_prctl, libc::PR_GET_THP_DISABLE, 0, 0, 0, 0).unwrap()),
        ("ksm", call!(libc::SYS_prctl, libc::PR_GET_MEMORY_MERGE, 0, 0, 0, 0).unwrap_or(0)),
        ("flusher", call!(libc::SYS_prctl, PR_GET_IO_FLUSHER, 0, 0, 0, 0).unwrap_or(0)),
        ("processors", mask.iter().map(|word| i64::from(word.count_ones())).sum()),
    ]
}

/// Entry point of this binary inside a sandbox.
#[test]
fn probe_entry() {
    let Some((_, mut say)) = asked() else { return };
    for (name, value) in state() {
        say.fact(name, value);
    }
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    say.fact("allowed", allowed.trim());
    say.fact("oom", std::fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim());
    say.fact("mdwe", call!(libc::SYS_prctl, PR_GET_MDWE, 0, 0, 0, 0).unwrap_or(0));
}

/// One test at a time, because a CPU that one task reserves is not available to the others.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set(what: &str) {
    let one = [1_u64];
    let priority = [1_i32];
    let done = match what {
        "policy" => call!(libc::SYS_sched_setscheduler, 0, libc::SCHED_BATCH, [0_i32].as_ptr()),
        "real-time" => call!(libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO, priority.as_ptr()),
        "nice" => call!(libc::SYS_setpriority, 0, 0, 7),
        // IOPRIO_CLASS_IDLE.
        "ioprio" => call!(libc::SYS_ioprio_set, 1, 0, 3 << 13),
        "slack" => call!(libc::SYS_prctl, libc::PR_SET_TIMERSLACK, 1_000_000),
        "personality" => call!(libc::SYS_personality, libc::ADDR_NO_RANDOMIZE),
        // SECBIT_NOROOT.
        "securebits" => call!(libc::SYS_prctl, libc::PR_SET_SECUREBITS, 1),
        "processors" => call!(libc::SYS_sched_setaffinity, 0, 8, one.as_ptr()),
        other => panic!("{other}"),
    };
    if let Err(errno) = done {
        assert!(!attack_tools::privileged() || what == "real-time", "{what}: {errno}");
    }
}

/// Entry point of a child process: the attributes that it changes belong to the whole process.
#[test]
fn process_entry() {
    if std::env::var_os("COFFERDAM_ORDINARY").is_none() {
        return;
    }
    let usual = state();
    for option in [libc::PR_SET_THP_DISABLE, libc::PR_SET_MEMORY_MERGE, PR_SET_IO_FLUSHER] {
        // Older kernels lack some of these, and some need privileges.
        let _ = call!(libc::SYS_prctl, option, 1, 0, 0, 0);
    }
    assert_ne!(state(), usual);
    let mdwe = call!(libc::SYS_prctl, PR_SET_MDWE, 1, 0, 0, 0).is_ok();
    // The caller changes its score after the host was probed.
    let host = cofferdam::Host::probe().unwrap();
    std::fs::write("/proc/self/oom_score_adj", "321").unwrap();
    for init in [true, false] {
        let seen = run_probe(probe("state").host(&host).with(|s| s.init = init)).unwrap();
        assert_eq!(seen.get("oom"), "0");
        for (name, value) in usual.iter().filter(|(name, _)| ["thp", "ksm", "flusher"].contains(name)) {
            assert_eq!(seen.get(name), value.to_string(), "{name}");
        }
        assert_eq!(seen.get("mdwe"), i32::from(mdwe).to_string());
        let told = seen.report.why(Control::NO_NEW_PRIVS);
        assert_eq!(told.contains("PR_SET_MDWE"), mdwe, "{told}");
    }
    println!("ordinary: all holds");
}

#[test]
fn process_attributes_of_the_caller_are_not_inherited() {
    if !sandboxes() {
        return;
    }
    let exe = std::env::current_exe().unwrap();
    let mut command = std::process::Command::new(exe);
    command.args(["--exact", "process_entry", "--nocapture", "--test-threads=1"]);
    let ran = command.env("COFFERDAM_ORDINARY", "1").output().unwrap();
    let text = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && text.contains("ordinary: all holds"), "{text}");
}

#[test]
fn thread_attributes_of_the_caller_are_not_inherited() {
    if !sandboxes() {
        return;
    }
    let _alone = alone();
    let usual = state();
    let all = ["policy", "real-time", "nice", "ioprio", "slack", "personality", "securebits", "processors"];
    for what in all {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                set(what);
                let changed = state();
                for init in [true, false] {
                    let limits = Limits { cpu_max: None, ..Limits::default() };
                    let seen = run_probe(probe("state").limits(limits).with(|s| s.init = init)).unwrap();
                    for (name, value) in &usual {
                        // Lowering the nice value again needs CAP_SYS_NICE.
                        if *name == "nice" && !attack_tools::privileged() {
                            continue;
                        }
                        let expected = match *name {
                            "slack" => 50_000,
                            "nice" => 0,
                            _ => *value,
                        };
                        assert_eq!(
                            seen.get(name),
                            expected.to_string(),
                            "{name}, after {what} of the caller"
                        );
                    }
                }
                assert_eq!(state(), changed, "the caller is touched: {what}");
            });
        });
    }
}

/// A caller under `taskset -c 0` does not restrict its task to CPU 0.
#[test]
fn cpu_affinity_of_the_caller_does_not_restrict_the_task() {
    if !can("cgroups") || !sandboxes() {
        return;
    }
    let _alone = alone();
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let online = CpuSet::parse(online.trim()).unwrap();
    let (first, last) = (online.iter().next().unwrap(), online.iter().last().unwrap());
    let all = online.to_string();
    for (caller, given, exclusive) in [(first, last, true), (last, first, true), (first, last, false)] {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mask = [1_u64 << caller];
                call!(libc::SYS_sched_setaffinity, 0, 8, mask.as_ptr()).unwrap();
                let limits = Limits { cores: [given].into_iter().collect(), exclusive, ..Limits::default() };
                let seen = run_probe(probe("state").limits(limits)).unwrap();
                assert!(seen.report.enforced.contains(Control::CPUSET), "{}", seen.report);
                let expected = if exclusive { given.to_string() } else { all.clone() };
                assert_eq!(seen.get("allowed"), expected, "the caller is on {caller}");
            });
        });
    }
}
