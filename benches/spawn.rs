//! Time from spawn to the reaped exit of a static program that exits at once, next to a floor in the same run: the
//! crate in steps, other implementations, and how the time depends on the caller and on the host.
//!
//! The floor is the least that any implementation does for the same namespaces: a clone on shared memory, a
//! bind-mounted root, `/proc`, `pivot_root` and the exec, by raw calls without checks. Compare ratios, not
//! milliseconds: `cargo bench --bench spawn`.
//!
//! Every row is measured once in each round, in an order that changes from round to round, so that whatever else the
//! machine does affects all rows alike. A bar is the most that a row may take as a multiple of another one. It is
//! printed with `met` or `missed`; it is no assertion. A row that this machine cannot have is printed with the reason.
//! The tables and a plot are written to `docs/benchmarks/`.
//!
//! - A word after `--` selects the rows whose name or table contains it. Then nothing is written.
//! - `COFFERDAM_BENCH_SECONDS` is the time for all rounds, 200 if unset.
//! - A static build runs in `tools/vm-run`, where the host has cgroup v2 only. QEMU emulates the processor there, so
//!   select the first table: `tools/vm-run -t 900 -- PROGRAM --bench 'In process'`.
//! - With `--test` there is one round. The bench fails if a row fails that a privileged caller must be able to have.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use cofferdam::Host;
use cofferdam::cgroup::Mode;

#[path = "spawn/caller.rs"]
mod caller;
#[path = "spawn/drawing.rs"]
mod drawing;
#[path = "spawn/floor.rs"]
mod floor;
#[path = "spawn/library.rs"]
mod library;
#[path = "spawn/ours.rs"]
mod ours;
#[path = "spawn/peers.rs"]
mod peers;
#[allow(dead_code)] // shared with the bench of populating
#[path = "populate/place.rs"]
mod place;
#[path = "common/plot.rs"]
mod plot;
#[path = "spawn/rows.rs"]
mod rows;
#[path = "spawn/table.rs"]
mod table;
#[path = "birth/tiny.rs"]
mod tiny;

use caller::{Caller, Measurer, Ready};
use rows::{FLOOR, Row};
use table::{Measured, Tables};

/// Command line and environment of the run.
struct Call {
    test: bool,
    /// Selects rows.
    filter: String,
    time: Duration,
}

impl Call {
    fn parse() -> Call {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let test = !args.iter().any(|a| a == "--bench") || args.iter().any(|a| a == "--test");
        let seconds = std::env::var("COFFERDAM_BENCH_SECONDS").ok().and_then(|n| n.parse().ok());
        Call {
            test,
            filter: args.into_iter().find(|a| !a.starts_with('-')).unwrap_or_default(),
            time: Duration::from_secs(seconds.unwrap_or(200)),
        }
    }

    /// The selected rows, the rows that their bars refer to, and the floor.
    fn rows(&self, host: &Host) -> Vec<Row> {
        let all = rows::all(host.cgroups.mode != Mode::V2, self.test);
        let named =
            |row: &Row| row.section.contains(&self.filter) || row.key.work.name().contains(&self.filter);
        let wanted: Vec<_> = all.iter().filter(|row| named(row)).copied().collect();
        let refers = |to: &Row| wanted.iter().any(|row| row.bar.is_some_and(|bar| bar.of == to.key));
        all.iter().filter(|row| named(row) || refers(row) || row.key == FLOOR).copied().collect()
    }

    fn complete(&self) -> bool {
        !self.test && self.filter.is_empty()
    }
}

/// A xorshift64* generator. Written here so that the order does not change with a dependency.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// The rows of one caller.
fn rows_of(caller: Caller, rows: &[Row]) -> Vec<Row> {
    rows.iter().filter(|row| row.key.caller == caller).copied().collect()
}

/// Measures all rows in rounds, until the time is over.
fn measure(call: &Call, rows: &[Row]) -> (usize, Vec<Measured>) {
    let mut measurers = Vec::new();
    let mut measured = Vec::new();
    for caller in Caller::ALL {
        let own = rows_of(caller, rows);
        let Some((measurer, ready)) = Measurer::start(caller, own.len()) else { continue };
        let at = measurers.len();
        measurers.push(measurer);
        for (i, (row, ready)) in own.into_iter().zip(ready).enumerate() {
            measured.push((at, i, Measured { row, ready, times: Vec::new() }));
        }
    }
    let (began, mut round, mut random) = (Instant::now(), 0, Random(0x9E37_79B9_7F4A_7C15));
    while round == 0 || (!call.test && began.elapsed() < call.time) {
        let mut order: Vec<usize> = (0..measured.len()).collect();
        random.shuffle(&mut order);
        for i in order {
            let (at, row, Measured { row: Row { rounds, key, .. }, ready, times }) = &mut measured[i];
            if matches!(ready, Ready::Yes) && round < *rounds {
                let runs = key.batch.map_or(1, |batch| batch.runs as u32);
                match measurers[*at].measure(*row) {
                    Ok(took) => times.push(took / runs),
                    Err(why) if key.work.required() => *ready = Ready::Failed(why),
                    Err(why) => *ready = Ready::No(why),
                }
            }
        }
        round += 1;
    }
    measurers.into_iter().for_each(Measurer::end);
    let in_order = |row: &Row| measured.iter().position(|(.., m)| m.row.key == row.key);
    let order: Vec<usize> = rows.iter().filter_map(in_order).collect();
    let mut measured: Vec<_> = measured.into_iter().map(|(.., m)| Some(m)).collect();
    (round, order.into_iter().filter_map(|i| measured[i].take()).collect())
}

/// The machine, in the words of its kernel.
fn about(host: &Host, rounds: usize, load: &str) -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    vec![
        format!("Linux {}, {processors} processors", read("/proc/sys/kernel/osrelease")),
        format!("cgroups: {:?}", host.cgroups.mode),
        format!("load before the run: {load}"),
        format!("{rounds} rounds"),
    ]
}

/// Builds the command line program, as it is now.
fn build_program(call: &Call) {
    let Some(cargo) = std::env::var_os("CARGO").filter(|_| !call.test) else { return };
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/cli/Cargo.toml");
    let built =
        Command::new(cargo).args(["build", "--release", "--quiet", "--manifest-path", manifest]).status();
    if !built.is_ok_and(|status| status.success()) {
        println!("cofferdam-cli cannot be built");
    }
}

fn write(tables: &Tables) {
    let docs: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    if !docs.is_dir() {
        return;
    }
    let dir = docs.join("benchmarks");
    std::fs::create_dir_all(&dir).unwrap();
    for (name, text) in [("spawn.md", tables.markdown()), ("spawn.svg", drawing::svg(tables))] {
        std::fs::write(dir.join(name), text).unwrap();
        println!("written: {}", dir.join(name).display());
    }
}

fn main() -> ExitCode {
    let call = Call::parse();
    let host = Host::probe().unwrap();
    let rows = call.rows(&host);
    if let Some(caller) = caller::this_process() {
        caller::serve(caller, &rows_of(caller, &rows), call.test);
        return ExitCode::SUCCESS;
    }
    build_program(&call);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let (rounds, measured) = measure(&call, &rows);
    let tables = Tables { about: about(&host, rounds, load.trim()), rows: measured };
    tables.print();
    if call.complete() {
        write(&tables);
    }
    let failed = tables.rows.iter().any(|measured| matches!(measured.ready, Ready::Failed(_)));
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
