//! A call that the kernel refuses is reported as the index of a line of the plan. Init and the text are written apart
//! (`init/` has no strings), so this test holds them together: it compiles init against a kernel that records, runs every
//! operation, refuses each of its calls in turn, and reads the line that is printed for the reported index.

#![allow(dead_code, unused_imports)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

#[path = "../../init/call.rs"]
mod call;
#[path = "../../init/credentials.rs"]
mod credentials;
#[path = "../../init/files.rs"]
mod files;
#[path = "../../init/mount.rs"]
mod mount;
#[path = "../../init/overlay.rs"]
mod overlay;
#[path = "../../init/paths.rs"]
mod paths;
#[path = "../../init/reap.rs"]
mod reap;
#[path = "../../init/run.rs"]
mod run;
#[path = "../../init/state.rs"]
mod state;
#[path = "../../init/step.rs"]
mod step;
#[path = "../../init/sys.rs"]
mod sys;
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

/// What came of an operation of which a call was refused.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// Init reported it.
    Reported { call: u8, errno: i32 },
    /// Init went on.
    Passed,
    /// Init ended without a record.
    Gone,
}

/// Runs init on the one operation, with this call refused. Gives the calls that were made, too.
fn run(sample: &Sample, refuse: Option<usize>, optional: bool) -> (Outcome, Vec<Call>) {
    KERNEL.set(Kernel::new(sample.facts.clone(), refuse));
    let (mut steps, mut fds) = (Vec::new(), Vec::new());
    ProgramStep { optional, op: sample.op }.encode(&mut steps);
    [210u32, 211, 212].iter().for_each(|fd| fd.encode(&mut fds));
    let steps = List::from_encoded(1, leak(steps));
    let program = Program { status: STATUS as u32, fds: List::from_encoded(3, leak(fds)), steps };
    let mut init = Init::new(STATUS, program, &[]);
    (init.root, init.upper, init.anchors) = (220, 221, [222, 223, 224, 225]);
    // Only the last operation relies on the one that found it.
    init.command = (matches!(sample.op, Op::Exec { .. }) && !sample.facts.missing)
        .then(|| (0, samples::text("/bin/true")));
    let ended = catch_unwind(AssertUnwindSafe(|| run::run_steps(&mut init))).unwrap_err();
    let ended = *ended.downcast::<Ended>().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let kernel = KERNEL.take();
    let outcome = match (ended, kernel.records.iter().find(|record| **record != Record::Ready)) {
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
        (Ended::Exited, None) => Outcome::Gone,
        (_, other) => panic!("{:?} with call {refuse:?} refused: {other:?}", sample.op),
    };
    (outcome, kernel.calls)
}

fn name(line: &str) -> &str {
    line.split('(').next().unwrap_or_default()
}

/// Whether the line prints this very call.
fn prints(line: &str, call: &Call) -> bool {
    // A line without a quote shows no path.
    let shown = |text: &String| line.contains(text.as_str()) || text.contains('"') && !line.contains('"');
    name(line) == call.name && call.shows.iter().all(shown)
}

/// The calls that a line stands for besides the one that it prints.
fn stands_for(op: &Op<'_>, line: &str, call: &Call) -> bool {
    match (op.code(), name(line), call.name) {
        // The directory that a name is made in is opened, and its parents are made.
        (
            OpCode::Dir | OpCode::Empty | OpCode::Symlink | OpCode::Node | OpCode::Write,
            "mkdirat" | "openat" | "symlinkat" | "mknodat",
            "openat2" | "mkdirat",
        ) => true,
        // A mount point is made when it is absent.
        (
            OpCode::Bind | OpCode::Mount | OpCode::Share | OpCode::File | OpCode::Overlay,
            "openat2",
            "openat2" | "mkdirat" | "openat",
        ) => true,
        // What may be a link is opened from its directory, and what must be there is compared with the root.
        (OpCode::Restrict, "openat2", "openat2" | "mkdirat" | "statx") => true,
        // The root is looked at before what lies over it is detached.
        (OpCode::PivotRoot, "statx", "statx") => true,
        // Memory for an array of arguments.
        (OpCode::Ids, "setgroups", "mmap") | (OpCode::Exec, "execve", "mmap") => true,
        (OpCode::Landlock, "landlock_add_rule", "openat2") => true,
        (OpCode::Find, "statx", "rt_sigprocmask") => true,
        (OpCode::Ordinary, "prctl", "prctl") => {
            line.contains("PR_GET_SECUREBITS") && call.shows == ["PR_SET_SECUREBITS"]
        }
        _ => false,
    }
}

/// Calls that no line prints, and whose refusal changes nothing.
fn silent(op: &Op<'_>, call: &Call) -> bool {
    match (op.code(), call.name) {
        (_, "close") => true,
        // The record that the command was found.
        (OpCode::Find, "sendto") => true,
        (OpCode::Fork, "munmap" | "ppoll" | "sendmsg" | "wait4") => true,
        _ => false,
    }
}

/// Checks one sample; the faults that were found.
fn faults(sample: &Sample) -> Vec<String> {
    let lines = render::calls(&sample.op);
    // The last line, however many come before it, has an index of its own.
    let line = |index: u8| if index == u8::MAX { lines.len() - 1 } else { usize::from(index) };
    let (outcome, calls) = run(sample, None, false);
    let mut faults = Vec::new();
    if outcome != Outcome::Passed {
        return vec![format!("{outcome:?} with nothing refused, after {calls:?}")];
    }
    // The line of every call, where one was reported or is printed.
    let mut at: Vec<Option<usize>> = Vec::new();
    let mut printed = vec![false; lines.len()];
    for (number, call) in calls.iter().enumerate() {
        let (outcome, _) = run(sample, Some(number), false);
        if let Outcome::Reported { .. } = outcome
            && sample.op.code() != OpCode::Fork
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
                // What is looked at again and again has no place of its own.
                (sample.op.code() != OpCode::PivotRoot || call.name != "statx").then_some(index)
            }
            Outcome::Passed if silent(&sample.op, call) => None,
            // PID 1 and its child lost each other: the parent sees that both are gone.
            Outcome::Gone if sample.op.code() == OpCode::Fork && call.name == "recvfrom" => None,
            Outcome::Gone => {
                faults.push(format!("{call:?} ends init without a record"));
                None
            }
            Outcome::Passed => {
                // The first line of these that comes after what was done before.
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
fn a_refusal_of_inits_own_names_the_call_that_showed_the_reason() {
    for (sample, errno, line) in samples::refused_by_init() {
        let (outcome, calls) = run(&sample, None, false);
        let Outcome::Reported { call, errno: reported } = outcome else {
            panic!("{:?}: {outcome:?}", sample.op)
        };
        assert_eq!(reported, errno, "{:?}", sample.op);
        let text = render::calls(&sample.op)[usize::from(call)].clone();
        assert_eq!(text, line, "{:?}", sample.op);
        // The same name as the last call that was made for it, but for what stands for several.
        let Some(last) = calls.iter().rfind(|call| call.name != "close") else { continue };
        assert!(prints(&text, last) || stands_for(&sample.op, &text, last), "{last:?} and {text:?}");
    }
}
