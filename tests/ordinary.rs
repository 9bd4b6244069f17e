//! How the caller's thread is scheduled and treated does not become the task's.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod attack_tools;
mod common;

use cofferdam::Limits;
use common::{asked, probe, run_probe, sandboxes};

const TIMERSLACK: i32 = libc::PR_GET_TIMERSLACK;

/// What this thread is: policy, nice, I/O priority, timer slack, personality, securebits, processors.
fn state() -> Vec<(&'static str, i64)> {
    let mut mask = [0_u64; 128];
    let _ = call!(libc::SYS_sched_getaffinity, 0, 1024, mask.as_mut_ptr());
    vec![
        ("policy", call!(libc::SYS_sched_getscheduler, 0).unwrap()),
        // The system call gives 20 less it.
        ("nice", 20 - call!(libc::SYS_getpriority, 0, 0).unwrap()),
        ("ioprio", call!(libc::SYS_ioprio_get, 1, 0).unwrap() >> 13),
        ("slack", call!(libc::SYS_prctl, TIMERSLACK).unwrap()),
        ("personality", call!(libc::SYS_personality, 0xffff_ffff_u32).unwrap()),
        ("securebits", call!(libc::SYS_prctl, libc::PR_GET_SECUREBITS).unwrap()),
        ("thp", call!(libc::SYS_prctl, libc::PR_GET_THP_DISABLE, 0, 0, 0, 0).unwrap()),
        ("processors", mask.iter().map(|word| i64::from(word.count_ones())).sum()),
    ]
}

/// What runs inside.
#[test]
fn probe_entry() {
    let Some((_, mut say)) = asked() else { return };
    for (name, value) in state() {
        say.fact(name, value);
    }
}

fn set(what: &str) {
    let one = [1_u64];
    let priority = [1_i32];
    let done = match what {
        "policy" => call!(libc::SYS_sched_setscheduler, 0, libc::SCHED_BATCH, [0_i32].as_ptr()),
        "real-time" => call!(libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO, priority.as_ptr()),
        "nice" => call!(libc::SYS_setpriority, 0, 0, 7),
        // Idle.
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

#[test]
fn the_callers_thread_does_not_lend_its_state_to_the_task() {
    if !sandboxes() {
        return;
    }
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
                        // To raise it again takes CAP_SYS_NICE.
                        if *name == "nice" && !attack_tools::privileged() {
                            continue;
                        }
                        let expected = if *name == "slack" { 50_000 } else { *value };
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
