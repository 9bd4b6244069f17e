//! Init reports a refused call as the index of a line of the plan. Init has no strings and does not share code with the
//! lines, so these tests check that both agree. They compile init against a simulated kernel, run every operation,
//! refuse each of its calls in turn, and compare the call with the line at the reported index.

#![allow(dead_code, unused_imports)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

#[path = "../../init/call.rs"]
mod call;
#[path = "../../init/clock.rs"]
mod clock;
#[path = "../../init/credentials.rs"]
mod credentials;
#[path = "../../init/files.rs"]
mod files;
#[path = "../../init/log.rs"]
mod log;
#[path = "../../init/mount.rs"]
mod mount;
#[path = "../../init/overlay.rs"]
mod overlay;
#[path = "../../init/paths.rs"]
mod paths;
#[path = "../../init/reap.rs"]
mod reap;
#[path = "../../init/reap_filter.rs"]
mod reap_filter;
#[path = "../../init/run.rs"]
mod run;
#[path = "../../init/state.rs"]
mod state;
#[path = "../../init/step.rs"]
mod step;
#[path = "../../init/sys.rs"]
mod sys;
#[path = "../../init/terminal.rs"]
mod terminal;
#[path = "../../init/uapi.rs"]
mod uapi;

#[path = "../../src/step/render.rs"]
mod render;
#[path = "../../src/step/wire.rs"]
mod wire;

#[path = "kernel.rs"]
mod arch;
mod samples;

use std::panic::{AssertUnwindSafe, catch_unwind};

use arch::{Call, Ended, KERNEL, Kernel, REFUSAL, STATUS};
use samples::{Sample, leak, samples};
use state::Init;
use wire::{Field, List, NO_STEP, Op, OpCode, Program, ProgramStep, Record, Sink};

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// What became of an operation one of whose calls was refused.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// Init reported the refused call.
    Reported { call: u8, errno: i32 },
    /// Init continued.
    Passed,
    /// Init ended without a record.
    Gone,
}

/// Runs init on one operation, with one call refused. Returns the outcome and all calls that were made.
fn run(sample: &Sample, refuse: Option<usize>, optional: bool) -> (Outcome, Vec<Call>) {
    KERNEL.set(Kernel::new(sample.facts.clone(), refuse));
    let (mut steps, mut fds) = (Vec::new(), Vec::new());
    ProgramStep { optional, op: sample.op }.encode(&mut steps);
    [210u32, 211, 212].iter().for_each(|fd| fd.encode(&mut fds));
    let steps = List::from_encoded(1, leak(steps));
    let program = Program { status: STATUS as u32, fds: List::from_encoded(3, leak(fds)), steps };
    let mut init = Init::new(STATUS, program, &[]);
    (init.root, init.upper, init.anchors) = (220, 221, [222, 223, 224, 225]);
    // Exec uses the command that Find found and laid out, which did not run here.
    init.words = Some((&[0, 0], &[0]));
    init.command = (matches!(sample.op, Op::Exec { .. }) && !sample.facts.missing)
        .then(|| (0, samples::text("/bin/true")));
    let ended = catch_unwind(AssertUnwindSafe(|| run::run_steps(&mut init))).unwrap_err();
    let ended = *ended.downcast::<Ended>().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let kernel = KERNEL.take();
    let outcome =
        match (ended, kernel.records.iter().find(|record| !matches!(record, Record::Ready | Record::AtGate)))
        {
            (Ended::Exited, Some(Record::Failed { step: 0, call, errno })) if !optional => {
                Outcome::Reported { call: *call, errno: *errno }
            }
            (Ended::Exited, Some(Record::Degraded { step: 0, call, errno })) if optional => {
                Outcome::Reported { call: *call, errno: *errno }
            }
            (Ended::Exited, Some(Record::Failed { step: NO_STEP, .. } | Record::Exited { .. })) => {
                Outcome::Passed
            }
            (Ended::Executed, None) => Outcome::Passed,
            // A copy continues in place of this process.
            (Ended::Exited, None | Some(Record::Copied { .. }))
                if sample.op.code() == OpCode::CloneInto && !sample.facts.child =>
            {
                Outcome::Passed
            }
            // The parent has what it waits for.
            (Ended::Exited, None) if sample.op.code() == OpCode::SendPrepared => Outcome::Passed,
            (Ended::Exited, None) => Outcome::Gone,
            (_, other) => panic!("{:?} with call {refuse:?} refused: {other:?}", sample.op),
        };
    (outcome, kernel.calls)
}

fn name(line: &str) -> &str {
    line.split('(').next().unwrap_or_default()
}

/// Whether the line prints exactly this call.
fn prints(line: &str, call: &Call) -> bool {
    // A line without quotes shows no path.
    let shown = |text: &String| line.contains(text.as_str()) || text.contains('"') && !line.contains('"');
    name(line) == call.name && call.shows.iter().all(shown)
}

/// Whether the line stands for this call, although it prints another one.
fn stands_for(op: &Op<'_>, line: &str, call: &Call) -> bool {
    match (op.code(), name(line), call.name) {
        // Opening the directory of the new name, and creating its parents.
        (
            OpCode::Dir | OpCode::Empty | OpCode::Symlink | OpCode::Node | OpCode::Write,
            "mkdirat" | "openat" | "symlinkat" | "mknodat",
            "openat2" | "mkdirat",
        ) => true,
        // Creating a missing mount point.
        (
            OpCode::Bind | OpCode::Mount | OpCode::Share | OpCode::File | OpCode::Overlay,
            "openat2",
            "openat2" | "mkdirat" | "openat",
        ) => true,
        // A path that may be a link is opened from its directory; one that must exist is compared with the root.
        (OpCode::Restrict, "openat2", "openat2" | "mkdirat" | "statx") => true,
        // Looking at the root before the mounts over it are detached.
        (OpCode::PivotRoot, "statx", "statx") => true,
        // Memory for an array of arguments.
        (OpCode::Ids, "setgroups", "mmap") => true,
        (OpCode::Landlock, "landlock_add_rule", "openat2") => true,
        (OpCode::Find, "statx", "rt_sigprocmask") => true,
        // The record that the command was found. The record that it runs, and the wait for PID 1.
        (OpCode::Find, "statx", "sendto") => true,
        (OpCode::Fork | OpCode::ForkOutside | OpCode::ForkInside, "sendto", "sendmsg" | "recvfrom") => true,
        (OpCode::ResetScheduling, "prctl", "prctl") => {
            line.contains("PR_GET_SECUREBITS") && call.shows == ["PR_SET_SECUREBITS"]
        }
        _ => false,
    }
}

/// Whether no line prints the call, and its refusal has no effect.
fn silent(op: &Op<'_>, call: &Call) -> bool {
    let forks = [OpCode::Fork, OpCode::ForkOutside, OpCode::ForkInside].contains(&op.code());
    let unprinted = ["munmap", "ppoll", "wait4", "kill", "clock_gettime"];
    call.name == "close" || forks && unprinted.contains(&call.name)
}

/// Whether the operation forks.
fn forks(op: &Op<'_>) -> bool {
    matches!(op.code(), OpCode::Fork | OpCode::ForkOutside | OpCode::ForkInside)
}

/// Checks one sample and returns the faults.
fn faults(sample: &Sample) -> Vec<String> {
    let lines = render::calls(&sample.op);
    // Index 255 stands for the last line, whatever the number of lines.
    let line = |index: u8| if index == u8::MAX { lines.len() - 1 } else { usize::from(index) };
    let (outcome, calls) = run(sample, None, false);
    let mut faults = Vec::new();
    if outcome != Outcome::Passed {
        return vec![format!("{outcome:?} with nothing refused, after {calls:?}")];
    }
    // For each call: the line that it was reported as, or that prints it.
    let mut at: Vec<Option<usize>> = Vec::new();
    let mut printed = vec![false; lines.len()];
    for (number, call) in calls.iter().enumerate() {
        let (outcome, _) = run(sample, Some(number), false);
        if let Outcome::Reported { .. } = outcome
            && !forks(&sample.op)
            && run(sample, Some(number), true).0 != outcome
        {
            faults.push(format!("{call:?} is reported otherwise when the step is optional"));
        }
        let index = match outcome {
            Outcome::Reported { call: index, errno } => {
                let index = line(index);
                let Some(text) = lines.get(index) else {
                    faults.push(format!("{call:?} is reported as line {index} of {}", lines.len()));
                    continue;
                };
                printed[index] |= prints(text, call);
                if errno != REFUSAL {
                    faults.push(format!("{call:?} is reported with errno {errno}"));
                }
                if !prints(text, call) && !stands_for(&sample.op, text, call) {
                    faults.push(format!("{call:?} is reported as {text:?}"));
                }
                // The repeated statx(2) has no fixed position.
                (sample.op.code() != OpCode::PivotRoot || call.name != "statx").then_some(index)
            }
            Outcome::Passed if silent(&sample.op, call) => None,
            // PID 1 and its child lost their connection. The parent sees both end.
            Outcome::Gone if forks(&sample.op) && call.name == "recvfrom" => None,
            Outcome::Gone => {
                faults.push(format!("{call:?} ends init without a record"));
                None
            }
            Outcome::Passed => {
                // The first line that prints the call, from the last line used so far.
                let after = at.iter().flatten().max().copied().unwrap_or(0);
                let index = (after..lines.len()).find(|index| prints(&lines[*index], call));
                match index {
                    Some(index) => printed[index] = true,
                    None => faults.push(format!("{call:?} is on no line")),
                }
                index
            }
        };
        at.push(index);
    }
    let order: Vec<usize> = at.into_iter().flatten().collect();
    if !order.is_sorted() {
        faults.push(format!("the lines are not in the order of the calls: {order:?}"));
    }
    for (index, text) in lines.iter().enumerate() {
        if !printed[index] && !sample.not_made.contains(&index) {
            faults.push(format!("no call is made for {text:?}"));
        }
    }
    faults
}

#[test]
fn every_refused_call_is_reported_as_the_line_that_prints_it() {
    let mut found = Vec::new();
    let mut calls = 0;
    for code in OpCode::ALL {
        let samples = samples(*code);
        assert!(!samples.is_empty(), "{code:?}");
        for sample in &samples {
            assert_eq!(sample.op.code(), *code);
            calls += run(sample, None, false).1.len();
            found.extend(faults(sample).into_iter().map(|fault| format!("{:?}: {fault}", sample.op)));
        }
    }
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
    assert!(calls > 300, "{calls}");
}

#[test]
fn error_found_by_init_is_reported_as_the_call_that_revealed_it() {
    for (sample, errno, line) in samples::refused_by_init() {
        let (outcome, calls) = run(&sample, None, false);
        let Outcome::Reported { call, errno: reported } = outcome else {
            panic!("{:?}: {outcome:?}", sample.op)
        };
        assert_eq!(reported, errno, "{:?}", sample.op);
        let text = render::calls(&sample.op)[usize::from(call)].clone();
        assert_eq!(text, line, "{:?}", sample.op);
        // The line prints the last call that was made, or stands for it.
        let Some(last) = calls.iter().rfind(|call| call.name != "close") else { continue };
        assert!(prints(&text, last) || stands_for(&sample.op, &text, last), "{last:?} and {text:?}");
    }
}
