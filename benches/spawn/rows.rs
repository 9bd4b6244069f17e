//! The rows of the tables: what is measured, in which caller, and its bar.

use crate::caller::Caller;
use crate::floor::Beside;
use crate::ours::{Extent, Way};

/// What one measurement does, from its start to the reaped exit of a program that exits at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Floor,
    ByHand,
    ByHandPrepared(Beside),
    Std,
    Ours(Way, Extent),
    Plan,
    Probe,
    /// `cofferdam run` with its defaults.
    RunDefault,
    /// `cofferdam run` with the default plan's mounts, without filter and device cgroup.
    RunBare,
    Bubblewrap,
    Unshare,
    Crun,
    Runc,
    /// A library that `benches/peers` links.
    Library(&'static str),
}

impl Work {
    pub fn name(self) -> String {
        match self {
            Work::Floor => "floor: raw clone, bind root, proc, pivot_root".into(),
            Work::ByHand => "by hand: every mount of the default plan".into(),
            Work::ByHandPrepared(beside) => match beside {
                Beside::Nothing => "by hand: the same, on prepared mounts".into(),
                Beside::Privileges => "by hand: + an exec for init, ids and capabilities".into(),
                Beside::Pid1 => "by hand: + PID 1 and one filter".into(),
            },
            Work::Std => "std::process::Command, no isolation".into(),
            Work::Ours(Way::Cold, extent) => format!("ours cold: {}", extent.name()),
            Work::Ours(Way::Prepared, extent) => format!("ours prepared: {}", extent.name()),
            Work::Plan => "ours: the plan alone".into(),
            Work::Probe => "ours: probe of the host".into(),
            Work::RunDefault => "cofferdam run".into(),
            Work::RunBare => "cofferdam run, no cgroup, no filter".into(),
            Work::Bubblewrap => "bubblewrap, the same mounts".into(),
            Work::Unshare => "unshare, a directory as root, proc".into(),
            Work::Crun => "crun, the same mounts, a cgroup, no filter".into(),
            Work::Runc => "runc, the same mounts, a cgroup, no filter".into(),
            Work::Library("hakoniwa") => "hakoniwa, the same binds, in a user namespace, no cgroup".into(),
            Work::Library(name) => format!("{name}, the same mounts, a cgroup, no filter"),
        }
    }

    /// Whether a caller with all privileges must be able to do it. If it then fails, the bench fails.
    pub fn required(self) -> bool {
        matches!(
            self,
            Work::Floor
                | Work::ByHand
                | Work::ByHandPrepared(_)
                | Work::Std
                | Work::Ours(..)
                | Work::Plan
                | Work::Probe
        )
    }
}

/// One measurement, of many runs of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    pub threads: usize,
    pub runs: usize,
}

/// A row without its bar. No two rows have the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub caller: Caller,
    pub work: Work,
    pub batch: Option<Batch>,
}

/// The most that a row may take, as a multiple of another row.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    pub most: f64,
    pub of: Key,
    /// The other row's name in the table.
    pub name: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub section: &'static str,
    pub key: Key,
    pub bar: Option<Bar>,
    /// The row is only measured this many times.
    pub rounds: usize,
}

const fn key(caller: Caller, work: Work) -> Key {
    Key { caller, work, batch: None }
}

/// The row that all ratios refer to.
pub const FLOOR: Key = key(Caller::Small, Work::Floor);
const DEFAULT: Extent = Extent::Cgroup;

pub const ALONE: &str = "In process";
pub const MEMORY: &str = "Caller's memory: 1 GiB";
pub const MOUNTS: &str = "Mounts on the host: 500, 3000";
pub const BUSY: &str = "Ten unrelated mounts a second on the host";
pub const PROCESSES: &str = "As a process";
pub const THREADS: &str = "Threads";
pub const IN_TURN: &str = "1000 one after another";

impl Row {
    fn new(section: &'static str, caller: Caller, work: Work) -> Row {
        Row { section, key: key(caller, work), bar: None, rounds: usize::MAX }
    }

    /// At most `most` times the floor.
    fn bar(self, most: f64) -> Row {
        self.bar_of(most, FLOOR, "the floor")
    }

    fn bar_of(self, most: f64, of: Key, name: &'static str) -> Row {
        Row { bar: Some(Bar { most, of, name }), ..self }
    }

    fn batch(self, threads: usize, runs: usize) -> Row {
        Row { key: Key { batch: Some(Batch { threads, runs }), ..self.key }, ..self }
    }
}

/// All rows, in the order of the tables. `hybrid`: the host has v1 hierarchies beside the v2 tree. `test`: batches are
/// small.
pub fn all(hybrid: bool, test: bool) -> Vec<Row> {
    let (shared, in_turn) = if test { (8, 10) } else { (32, 1000) };
    let mut rows = alone(hybrid);
    rows.extend(axes());
    rows.extend(processes());
    for work in [Work::Floor, Work::Ours(Way::Cold, DEFAULT), Work::Ours(Way::Prepared, DEFAULT)] {
        rows.extend([1, 2, 4, 8].map(|threads| threads_row(work, threads, shared)));
    }
    rows.extend([Way::Cold, Way::Prepared].map(|way| {
        let row = Row::new(IN_TURN, Caller::Small, Work::Ours(way, DEFAULT));
        Row { rounds: 3, ..row.batch(1, in_turn) }
    }));
    rows
}

fn alone(hybrid: bool) -> Vec<Row> {
    use Extent::{Cgroup, Filter, Landlock, Mounts, Network, Pid1, Root};
    use Way::{Cold, Prepared};
    let row = |work| Row::new(ALONE, Caller::Small, work);
    vec![
        row(Work::Floor),
        row(Work::ByHand),
        row(Work::ByHandPrepared(Beside::Nothing)),
        row(Work::ByHandPrepared(Beside::Privileges)),
        row(Work::ByHandPrepared(Beside::Pid1)),
        row(Work::Std),
        row(Work::Ours(Cold, Root)),
        row(Work::Ours(Cold, Mounts)).bar(3.0),
        row(Work::Ours(Cold, Pid1)),
        row(Work::Ours(Cold, Filter)),
        row(Work::Ours(Cold, Landlock)),
        row(Work::Ours(Cold, Cgroup)),
        row(Work::Ours(Cold, Network)),
        row(Work::Ours(Prepared, Mounts)).bar(1.6),
        row(Work::Ours(Prepared, Pid1)),
        row(Work::Ours(Prepared, Filter)),
        row(Work::Ours(Prepared, Landlock)).bar(2.5),
        row(Work::Ours(Prepared, Cgroup)).bar(if hybrid { 3.5 } else { 2.8 }),
        row(Work::Ours(Prepared, Network)),
        row(Work::Plan),
        row(Work::Probe),
        row(Work::Library("hakoniwa")),
        Row::new(ALONE, Caller::NoUnified, Work::Library("libcontainer")),
    ]
}

/// The size of the caller, and the mounts of the host.
fn axes() -> Vec<Row> {
    use Way::{Cold, Prepared};
    let large = |work| Row::new(MEMORY, Caller::Large, work);
    let of_small = |work| large(work).bar_of(1.1, key(Caller::Small, work), "the same at 10 MiB");
    let busy = |work| Row::new(BUSY, Caller::Busy, work);
    let mut rows = vec![
        large(Work::Floor),
        large(Work::Std),
        of_small(Work::Ours(Cold, DEFAULT)),
        of_small(Work::Ours(Prepared, DEFAULT)),
    ];
    for caller in [Caller::Mounts500, Caller::Mounts3000] {
        let row = |work| Row::new(MOUNTS, caller, work);
        let prepared = row(Work::Ours(Prepared, Extent::Mounts));
        let prepared = if caller == Caller::Mounts3000 { prepared.bar(2.2) } else { prepared };
        rows.extend([
            row(Work::Floor),
            row(Work::ByHand),
            row(Work::ByHandPrepared(Beside::Nothing)),
            row(Work::Ours(Cold, Extent::Mounts)),
            row(Work::Ours(Cold, DEFAULT)),
            prepared,
            row(Work::Ours(Prepared, DEFAULT)),
            row(Work::Bubblewrap),
        ]);
    }
    rows.extend([
        busy(Work::Floor),
        busy(Work::Ours(Cold, DEFAULT)),
        busy(Work::Ours(Prepared, Extent::Mounts)),
        busy(Work::Ours(Prepared, DEFAULT)),
    ]);
    rows
}

fn processes() -> Vec<Row> {
    let row = |caller, work| Row::new(PROCESSES, caller, work);
    let bubblewrap = key(Caller::NoCgroups, Work::Bubblewrap);
    let runc = key(Caller::Small, Work::Runc);
    vec![
        row(Caller::NoCgroups, Work::RunBare).bar_of(1.0, bubblewrap, "bubblewrap"),
        row(Caller::NoCgroups, Work::Bubblewrap),
        row(Caller::Small, Work::RunDefault).bar_of(0.2, runc, "runc"),
        row(Caller::NoUnified, Work::Crun),
        row(Caller::Small, Work::Runc),
        row(Caller::Small, Work::Unshare),
    ]
}

/// 1.8 times as many spawns are at most 1/1.8 of the time of each.
fn threads_row(work: Work, threads: usize, runs: usize) -> Row {
    let row = Row::new(THREADS, Caller::Small, work);
    let one = row.batch(1, runs).key;
    let row = row.batch(threads, runs);
    let ours = matches!(work, Work::Ours(..));
    if threads == 2 && ours { row.bar_of(1.0 / 1.8, one, "1 thread") } else { row }
}
