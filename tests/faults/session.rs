//! One driver under the tracer, and the cells that run in it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::places::Overlays;
use crate::driver::{ADOPTS, Outcome, PREFIX};
use crate::specs;
use crate::tracer::{Aim, BEGIN, Call, DONE, END, Event, Fault, Tracer, kill};

/// A cell that takes longer hangs. This is many times what a loaded machine needs, and more than the driver waits for what
/// may still change in it. The time of the slowest traced part is printed.
const HANG: Duration = Duration::from_secs(20);

/// What became of a cell.
#[derive(Debug)]
pub struct Ran {
    /// The call that met the fault. `None` if the call was not made this time.
    pub hit: Option<Call>,
    /// `None` if the program ended.
    pub outcome: Option<Outcome>,
    /// Whether the program was killed because the cell hung.
    pub hung: bool,
    /// How long the traced part took, also if the program did not survive it. Zero if it did not begin.
    pub took: Duration,
    /// The number of processes that outlived the cell.
    pub processes: usize,
    /// What is left on the machine after the end of the program.
    pub left: Vec<String>,
}

/// A program under test that is traced by the thread that has made this value.
pub struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    tracer: Tracer,
    dir: Overlays,
    watchdog: Watchdog,
    ended: bool,
    /// Whether the last cell left something behind, so that the next one needs another session.
    pub spoilt: bool,
}

/// Who spawns.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    Ordinary,
    /// What a killed init has forked becomes a child of it.
    GetsOrphans,
}

impl Session {
    /// Starts the program, asks it for the plans of all specs, and traces it.
    pub fn start(caller: Caller, specs: usize) -> (Session, Vec<String>) {
        let dir = Overlays::new();
        specs::make_dirs(dir.path());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "driver_entry", "--nocapture", "--test-threads=1"]);
        if caller == Caller::GetsOrphans {
            command.env(ADOPTS, "");
        }
        command.env("COFFERDAM_FAULTS_DRIVER", dir.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        assert_eq!(line(&mut stdout), "ready");
        let plans = (0..specs)
            .map(|spec| {
                writeln!(stdin, "plan {spec}").unwrap();
                serde_json::from_str(&anonymous(dir.path(), line(&mut stdout))).unwrap()
            })
            .collect();
        let tracer = Tracer::seize(child.id().cast_signed());
        let watchdog = Watchdog::start(child.id().cast_signed());
        (
            Session { child, stdin: Some(stdin), stdout, tracer, dir, watchdog, ended: false, spoilt: false },
            plans,
        )
    }

    /// Acts on a spec with a fault, or without one. The calls are then in [`calls`](Self::calls).
    pub fn run(&mut self, spec: usize, aim: Option<Aim>) -> Ran {
        self.watchdog.watch();
        let mut took = Duration::ZERO;
        writeln!(self.stdin.as_mut().unwrap(), "act {spec}").unwrap();
        let outcome = self.follow(aim, &mut took);
        self.ended = outcome.is_none();
        let hung = self.watchdog.rest();
        let dir = self.dir.path();
        let processes = match aim.map(|aim| aim.fault) {
            Some(Fault::KillProgram) if self.ended => self.tracer.outlive(|| specs::bury(dir)),
            _ if self.ended => self.tracer.run_to_the_end(),
            _ => self.tracer.settle(),
        };
        let left = if self.ended { specs::left(dir) } else { Vec::new() };
        self.spoilt = self.ended || processes > 0 || outcome.as_ref().is_some_and(|o| !o.left.is_empty());
        let hit = self.tracer.hit.take().map(|call| self.anonymous_call(call));
        Ran { hit, outcome, hung, took, processes, left }
    }

    fn follow(&mut self, aim: Option<Aim>, took: &mut Duration) -> Option<Outcome> {
        let thread = self.until(BEGIN)?;
        self.tracer.start(thread, aim);
        let begun = Instant::now();
        self.tracer.resume(thread, 0);
        let end = self.until(END);
        *took = begun.elapsed();
        let thread = end?;
        self.tracer.stop();
        self.tracer.resume(thread, 0);
        let thread = self.until(DONE)?;
        let outcome = serde_json::from_str(&anonymous(self.dir.path(), line(&mut self.stdout))).unwrap();
        self.tracer.resume(thread, 0);
        Some(outcome)
    }

    /// Runs the program until it announces this. Returns the thread; `None` if the program has ended.
    fn until(&mut self, expected: i32) -> Option<i32> {
        match self.tracer.run() {
            Event::Marker { signal, thread } => {
                assert_eq!(signal, expected);
                Some(thread)
            }
            Event::Ended => None,
        }
    }

    pub fn calls(&self) -> Vec<Call> {
        self.tracer.calls.iter().cloned().map(|call| self.anonymous_call(call)).collect()
    }

    fn anonymous_call(&self, call: Call) -> Call {
        let name = |text: Option<String>| text.map(|text| anonymous(self.dir.path(), text));
        Call { text: name(call.text), object: name(call.object), ..call }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stdin = None;
        if !self.ended {
            self.tracer.run_to_the_end();
        }
        let _ = self.child.wait();
        if self.spoilt {
            specs::clean(self.dir.path());
        }
    }
}

/// The text with the same name for the directory of every session.
fn anonymous(dir: &std::path::Path, text: String) -> String {
    let name = dir.file_name().unwrap().to_str().unwrap();
    text.replace(name.trim_start_matches('.'), "DIR")
}

/// Reads the next line of the driver.
fn line(stdout: &mut BufReader<ChildStdout>) -> String {
    loop {
        let mut line = String::new();
        assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "the driver ended");
        if let Some(text) = line.strip_prefix(PREFIX) {
            return text.trim_end().to_owned();
        }
    }
}

/// Kills the program if a cell hangs, so that the tracer's wait ends.
struct Watchdog {
    since: Arc<Mutex<Option<Instant>>>,
    hung: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

impl Watchdog {
    fn start(pid: i32) -> Watchdog {
        let dog = Watchdog { since: Arc::default(), hung: Arc::default(), over: Arc::default() };
        let (since, hung, over) = (dog.since.clone(), dog.hung.clone(), dog.over.clone());
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                // The lock is held during the kill: the program is not reaped before the cell is over.
                let mut since = since.lock().unwrap();
                if since.is_some_and(|since| since.elapsed() > HANG) {
                    hung.store(true, Ordering::Relaxed);
                    show(pid);
                    kill(pid);
                    *since = None;
                }
            }
        });
        dog
    }

    fn watch(&self) {
        *self.since.lock().unwrap() = Some(Instant::now());
    }

    /// Stops watching. Whether the cell hung.
    fn rest(&self) -> bool {
        *self.since.lock().unwrap() = None;
        self.hung.swap(false, Ordering::Relaxed)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Prints where the threads of a program and its children wait.
fn show(pid: i32) {
    for entry in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let [comm, wchan, call, children, stack] =
            ["comm", "wchan", "syscall", "children", "stack"].map(read);
        eprintln!(
            "{} {} {wchan} {} {stack} children {children}",
            entry.path().display(),
            comm.trim(),
            call.trim()
        );
        children.split_whitespace().filter_map(|child| child.parse().ok()).for_each(show);
    }
}
