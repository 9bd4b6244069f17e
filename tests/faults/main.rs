//! Every system call of every step of a spawn, and of a preparation of mounts, fails in turn, and every process of it is
//! killed between any two calls.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

#[path = "../caller_tools/mod.rs"]
#[macro_use]
mod caller_tools;
#[path = "../common/mod.rs"]
mod common;
mod coverage;
mod driver;
mod judge;
mod names;
mod session;
mod specs;
mod tracer;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cofferdam::Host;
use common::sandboxes;
use judge::{Expected, Verdict};
use session::{Caller, Ran, Session};
use tracer::{Aim, Call, Fault, Role};

/// Entry point of the program under test; does nothing elsewhere.
#[test]
fn driver_entry() {
    if let Some(dir) = std::env::var_os("COFFERDAM_FAULTS_DRIVER") {
        driver::run(dir.as_ref());
    }
}

/// One fault at one call of one spec.
#[derive(Clone, Debug)]
struct Cell {
    spec: usize,
    call: Call,
    fault: Fault,
}

const ERRNOS: [i32; 7] =
    [libc::ENOSYS, libc::EPERM, libc::EMFILE, libc::ENOMEM, libc::ENOSPC, libc::EAGAIN, libc::EINTR];

/// How many programs run at the same time. They mostly wait for the kernel.
const SESSIONS: usize = 4;

/// Whether every cell runs. By default a sample does.
fn whole() -> bool {
    std::env::var("COFFERDAM_FAULTS").is_ok_and(|what| what == "all")
}

/// The sessions of one test use all CPUs.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The specs, what is expected of each, and the calls without a fault.
struct Matrix {
    names: Vec<&'static str>,
    plans: Vec<String>,
    expected: Vec<Expected>,
    calls: Vec<Vec<Call>>,
}

impl Matrix {
    fn record() -> Matrix {
        let dir = tempfile::tempdir().unwrap();
        specs::make_dirs(dir.path());
        let specs = specs::all(dir.path(), &Host::probe().unwrap());
        let (mut session, plans) = Session::start(Caller::GetsOrphans, specs.len());
        let (mut expected, mut calls) = (Vec::new(), Vec::new());
        for (number, spec) in specs.iter().enumerate() {
            let ran = session.run(number, None);
            let outcome = judge::clean(&ran).unwrap_or_else(|why| panic!("{}: {why}", spec.name)).clone();
            assert_eq!((outcome.kind.as_str(), outcome.status.as_str()), ("", "signal 9"), "{outcome:?}");
            expected.push(Expected::new(&plans[number], outcome, &spec.act));
            calls.push(session.calls());
        }
        Matrix { names: specs.iter().map(|spec| spec.name).collect(), plans, expected, calls }
    }

    /// Every call of every spec for which `wanted` is true, with its number within the spec.
    fn calls(&self, wanted: impl Fn(&Call) -> bool) -> impl Iterator<Item = (usize, usize, &Call)> {
        let of_spec = self.calls.iter().enumerate();
        of_spec
            .flat_map(|(spec, calls)| calls.iter().enumerate().map(move |(n, call)| (spec, n, call)))
            .filter(move |(_, _, call)| wanted(call))
    }

    /// Whether the call that met the fault is the one of the cell. Another one can have its number in another run.
    fn met(&self, cell: &Cell, ran: &Ran) -> bool {
        let kind = |call| kind(self, cell.spec, call);
        ran.hit.as_ref().is_some_and(|hit| kind(hit) == kind(&cell.call))
    }

    fn describe(&self, cell: &Cell, ran: &Ran) -> String {
        let Call { role, index, name, text, object, .. } = ran.hit.as_ref().unwrap_or(&cell.call);
        let of = |what: &Option<String>| what.clone().unwrap_or_default();
        format!(
            "{} {role:?} {index} {name}({} {}) {:?}",
            self.names[cell.spec],
            of(object),
            of(text),
            cell.fault
        )
    }

    /// Runs the cells. Prints how many there were, and fails if any has a wrong outcome. Returns those whose
    /// call met the fault.
    fn run(
        &self,
        what: &str,
        (caller, sessions): (Caller, usize),
        cells: &[Cell],
        judge: impl Fn(&Cell, &Ran) -> Result<Verdict, String> + Sync,
    ) -> Vec<(Cell, Verdict)> {
        let only = std::env::var("COFFERDAM_FAULTS_ONLY").unwrap_or_default();
        let named = |cell: &&Cell| {
            let Call { role, index, .. } = cell.call;
            format!("{} {role:?} {index} ", self.names[cell.spec]).starts_with(&only)
        };
        let cells: Vec<Cell> = cells.iter().filter(named).cloned().collect();
        let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let slowest = Mutex::new((Duration::ZERO, String::new()));
        std::thread::scope(|scope| {
            for _ in 0..sessions {
                scope.spawn(|| {
                    let mut session = Session::start(caller, 0).0;
                    while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if session.spoilt {
                            drop(session);
                            session = Session::start(caller, 0).0;
                        }
                        let aim = Aim { role: cell.call.role, index: cell.call.index, fault: cell.fault };
                        let ran = session.run(cell.spec, Some(aim));
                        let verdict =
                            judge(cell, &ran).map_err(|why| format!("{}: {why}", self.describe(cell, &ran)));
                        found.lock().unwrap().push((cell.clone(), self.met(cell, &ran), verdict));
                        let mut slowest = slowest.lock().unwrap();
                        if ran.took > slowest.0 {
                            *slowest = (ran.took, self.describe(cell, &ran));
                        }
                    }
                });
            }
        });
        let found = found.into_inner().unwrap();
        let count = |is: &dyn Fn(&Verdict) -> bool| {
            found.iter().filter(|(.., verdict)| verdict.as_ref().is_ok_and(is)).count()
        };
        let missed = count(&|verdict| *verdict == Verdict::Missed);
        println!(
            "{what}: {} cells, {} refused, {} degraded, {} passed, {missed} not reached",
            found.len(),
            count(&|verdict| matches!(verdict, Verdict::Refused { .. })),
            count(&|verdict| *verdict == Verdict::Degraded),
            count(&|verdict| matches!(verdict, Verdict::Passed(_))),
        );
        let (took, cell) = slowest.into_inner().unwrap();
        println!("{what}: the slowest took {took:.0?}: {cell}");
        let wrong: Vec<&str> =
            found.iter().filter_map(|(.., verdict)| verdict.as_ref().err().map(String::as_str)).collect();
        assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), found.len(), wrong.join("\n"));
        assert!(missed * 20 <= found.len(), "{missed} of {} calls were not made again", found.len());
        let met = found.into_iter().filter(|(_, met, _)| *met);
        met.filter_map(|(cell, _, verdict)| Some((cell, verdict.ok()?))).collect()
    }
}

/// What a call does to what, whatever the spec is called.
fn kind(matrix: &Matrix, spec: usize, call: &Call) -> (Role, &'static str, String) {
    let text = format!("{:?} {:?}", call.object, call.text).replace(matrix.names[spec], "SPEC");
    let text: String = text.chars().filter(|c| !c.is_ascii_digit()).collect();
    (call.role, call.name, text)
}

/// Each call of each step fails. By default each kind of call fails with one errno.
#[test]
fn refused_call_fails_the_spawn_with_its_step_or_is_reported_or_has_a_replacement() {
    let _alone = alone();
    if !sandboxes() {
        return;
    }
    let matrix = Matrix::record();
    let mut seen = BTreeSet::new();
    let mut cells = Vec::new();
    for (spec, n, call) in matrix.calls(|_| true) {
        if !whole() && !seen.insert(kind(&matrix, spec, call)) {
            continue;
        }
        for (e, errno) in ERRNOS.into_iter().enumerate() {
            if whole() || (n + spec) % ERRNOS.len() == e {
                cells.push(Cell { spec, call: call.clone(), fault: Fault::Errno(errno) });
            }
        }
    }
    let mut done = matrix.run("errno", (Caller::GetsOrphans, SESSIONS), &cells, |cell, ran| {
        let Fault::Errno(errno) = cell.fault else { return Err("no errno".into()) };
        judge::judge(&matrix.expected[cell.spec], errno, ran)
    });
    // The steps of the errors are in the order of the calls.
    done.sort_by_key(|(cell, _)| (cell.spec, cell.call.role, cell.call.index));
    let mut at = (usize::MAX, Role::Other, 0);
    let (mut before, mut ordered) = (BTreeSet::new(), 0);
    for (cell, verdict) in &done {
        if (at.0, at.1) != (cell.spec, cell.call.role) {
            at = (cell.spec, cell.call.role, 0);
            before.clear();
        }
        let Verdict::Refused { message, kind } = verdict else { continue };
        let expected = &matrix.expected[cell.spec];
        // The caller checks the spec's descriptors before it compiles the plan. Init repeats some calls.
        // Init has steps with the same lines; `tests/init_calls` compares its lines with its calls.
        // An additional command has no plan to print.
        let early = cell.call.role != Role::Parent
            || expected.exec
            || message.starts_with("fcntl(")
            || message.starts_with("umount2(\".\"");
        let other = !message.starts_with(&format!("{}(", cell.call.name));
        if early || other || kind == "Exec" || expected.position(message, 0).is_none() {
            continue;
        }
        ordered += 1;
        match expected.position(message, at.2) {
            Some(next) => at.2 = next,
            // A later step makes the same call: both lists of CPUs are read below the same cgroup.
            None if before.contains(message) => {}
            None => panic!("{cell:?} is reported as the earlier step {message:?}"),
        }
        before.insert(message);
    }
    println!("errno: {ordered} errors are in the order of the calls");
    assert!(ordered > 0 || std::env::var_os("COFFERDAM_FAULTS_ONLY").is_some());
}

/// Init is killed between any two of its calls, and so is the process that becomes the command.
#[test]
fn killed_init_fails_the_spawn_and_leaves_nothing() {
    let _alone = alone();
    if !sandboxes() {
        return;
    }
    let matrix = Matrix::record();
    let of_init = |call: &Call| matches!(call.role, Role::Init | Role::Child);
    // Init sends the pidfd of the process that it has created.
    let sends = |call: &Call| call.role == Role::Init && call.name == "sendmsg";
    let cells =
        matrix.calls(of_init).filter(|(spec, n, call)| whole() || (n + spec) % 12 == 0 || sends(call));
    let cells: Vec<Cell> =
        cells.map(|(spec, _, call)| Cell { spec, call: call.clone(), fault: Fault::Kill }).collect();
    for (what, caller) in [("kill", Caller::Ordinary), ("kill, caller gets orphans", Caller::GetsOrphans)] {
        let judge = |cell: &Cell, ran: &Ran| judge::judge_kill(&matrix.expected[cell.spec], ran);
        matrix.run(what, (caller, SESSIONS), &cells, judge);
    }
}

/// The caller is killed between any two of its calls.
#[test]
fn killed_caller_leaves_only_what_a_driver_finds_and_removes() {
    let _alone = alone();
    if !sandboxes() {
        return;
    }
    let matrix = Matrix::record();
    let of_caller = |call: &Call| call.role == Role::Parent;
    let cells = matrix.calls(of_caller).filter(|(spec, n, _)| whole() || (n + spec) % 40 == 0);
    let cells: Vec<Cell> =
        cells.map(|(spec, _, call)| Cell { spec, call: call.clone(), fault: Fault::KillProgram }).collect();
    matrix.run("death", (Caller::Ordinary, 6 * SESSIONS), &cells, |_, ran| judge::judge_death(ran));
}
