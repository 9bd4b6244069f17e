//! Populating a root and removing it, each next to the least that it could cost (the floor), in the same run.
//!
//! `cargo bench --bench populate` prints a table for each method, file system and tree. The rows of a table take turns:
//! compare ratios, not milliseconds. A word after `--` selects the tables whose title contains it. criterion's groups
//! come first; they only keep a history. With `--test` everything runs once, on small trees. Environment variables ask
//! for the rest:
//!
//! - `COFFERDAM_BENCH_ROUNDS`: number of rounds, 15 if unset.
//! - `COFFERDAM_BENCH_B=1`: also links the host's own directories of the default list, below `/var/tmp`.
//! - `COFFERDAM_BENCH_PLOT=FILE`: writes an SVG plot of time against the number of entries.
//!
//! Root is needed to mount the file systems; a table whose file system cannot be mounted is reported as skipped.
//! Everything created is removed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam::rootfs::{Options, default_chroot_env, populate, remove_tree};
use cofferdam::{ChrootEnv, Method};
use criterion::Criterion;

#[path = "populate/floor.rs"]
mod floor;
#[path = "populate/growth.rs"]
mod growth;
#[path = "populate/memory.rs"]
mod memory;
#[path = "populate/others.rs"]
mod others;
#[path = "populate/place.rs"]
mod place;
#[path = "populate/roots.rs"]
mod roots;
#[path = "populate/table.rs"]
mod table;
#[path = "populate/tree.rs"]
mod tree;

use floor::Content;
use others::Way;
use place::Place;
use table::{Bar, Contest, Row};
use tree::Shape;

/// Command line and environment of the run.
struct Call {
    /// Runs everything once, on small trees.
    test: bool,
    rounds: usize,
    /// Selects the tables whose title contains this.
    filter: String,
    host: bool,
}

impl Call {
    fn parse() -> Call {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let test = !args.iter().any(|a| a == "--bench") || args.iter().any(|a| a == "--test");
        let rounds = std::env::var("COFFERDAM_BENCH_ROUNDS").ok().and_then(|n| n.parse().ok());
        Call {
            test,
            rounds: if test { 1 } else { rounds.unwrap_or(15) },
            filter: args.into_iter().find(|a| !a.starts_with('-')).unwrap_or_default(),
            host: std::env::var_os("COFFERDAM_BENCH_B").is_some_and(|v| v == "1"),
        }
    }

    fn wants(&self, title: &str) -> bool {
        title.contains(&self.filter)
    }

    fn shape(&self) -> Shape {
        if self.test { Shape::SMALL } else { Shape::DEBIAN }
    }
}

/// Populates `to`/tree with the crate, from one directory.
fn ours(method: Method, from: &Path, to: &Path) {
    fill(method, &[(from.to_owned(), "/tree".into())].into(), to);
}

fn fill(method: Method, map: &ChrootEnv, to: &Path) {
    let root = File::open(to).unwrap();
    let done = populate(root.as_fd(), map, &Options { method, ..Options::default() }).unwrap();
    assert_eq!(done.kept, 0);
}

fn ours_remove(parent: &Path, name: &str) {
    remove_tree(File::open(parent).unwrap().as_fd(), OsStr::new(name)).unwrap();
}

/// Removes the directory of a round.
fn clear(to: &Path) {
    floor::remove(floor::threads(), to);
}

fn complete(shape: Shape) -> impl Fn(&str, &Path) {
    move |name, to| {
        assert_eq!(tree::count(&to.join("tree")), shape.entries(), "{name} did not make the whole tree");
    }
}

fn linking(call: &Call, title: &str, base: &Path) {
    let (source, threads) = (base.join("source"), floor::threads());
    let from = &*source;
    let link_dest = format!("--link-dest={}", from.display());
    let rows = vec![
        Row::new("ours", |to| ours(Method::Link, from, to)).bar(Bar::OfFloor(1.15)),
        Row::new(format!("floor, {threads} threads"), |to| floor::link(threads, from, &to.join("tree"))),
        Row::new("floor, 1 thread", |to| floor::link(1, from, &to.join("tree"))),
        Row::new("cp -al", |to| others::run("cp", &["-al"], &[from, &to.join("tree")])),
        Row::unless(others::missing("rsync"), "rsync -a --link-dest", |to| {
            others::run("rsync", &["-a", &link_dest], &[&from.join(""), &to.join("tree")]);
        }),
        Row::new("naive original, linking", |to| {
            others::naive(to, &[(from.to_owned(), "/tree".into())], Way::Link);
        })
        .bar(Bar::OfFirst(4.0)),
    ];
    filling(call, title, base, rows);
}

fn copying(call: &Call, title: &str, base: &Path) {
    let (source, threads) = (base.join("source"), floor::threads());
    let from = &*source;
    let rows = vec![
        Row::new("ours", |to| ours(Method::Copy, from, to)).bar(Bar::OfFloor(1.15)),
        Row::new(format!("floor, {threads} threads"), |to| {
            floor::copy(threads, Content::Copied, from, &to.join("tree"));
        }),
        Row::new("floor, 1 thread", |to| floor::copy(1, Content::Copied, from, &to.join("tree"))),
        Row::new("cp -a", |to| others::run("cp", &["-a"], &[from, &to.join("tree")])),
        Row::new("naive original, copying", |to| {
            others::naive(to, &[(from.to_owned(), "/tree".into())], Way::Copy);
        }),
    ];
    filling(call, title, base, rows);
}

fn cloning(call: &Call, title: &str, base: &Path) {
    let (source, threads) = (base.join("source"), floor::threads());
    let from = &*source;
    let rows = vec![
        Row::new("ours", |to| ours(Method::Reflink, from, to)),
        Row::new(format!("floor, {threads} threads"), |to| {
            floor::copy(threads, Content::Cloned, from, &to.join("tree"));
        }),
        Row::new("cp -a --reflink=always", |to| {
            others::run("cp", &["-a", "--reflink=always"], &[from, &to.join("tree")]);
        }),
        Row::new("cp -a --reflink=never", |to| {
            others::run("cp", &["-a", "--reflink=never"], &[from, &to.join("tree")]);
        }),
    ];
    filling(call, title, base, rows);
}

fn filling(call: &Call, title: &str, base: &Path, rows: Vec<Row<'_>>) {
    let check = complete(call.shape());
    let before = |_: &Path| settle(base);
    let title = title.to_string();
    let mut contest = Contest { title, rows, base, before: &before, check: &check, after: &clear };
    contest.run(call.rounds);
    contest.print();
}

fn removing(call: &Call, title: &str, base: &Path) {
    let (source, threads) = (base.join("source"), floor::threads());
    let before = |to: &Path| {
        floor::copy(threads, Content::Copied, &source, &to.join("tree"));
        settle(base);
    };
    let rows = vec![
        Row::new("ours", |to| ours_remove(to, "tree")).bar(Bar::OfFloor(1.1)),
        Row::new(format!("floor, {threads} threads"), |to| floor::remove(threads, &to.join("tree"))),
        Row::new("floor, 1 thread", |to| floor::remove(1, &to.join("tree"))),
        Row::new("rm -rf", |to| others::run("rm", &["-rf"], &[&to.join("tree")])),
    ];
    let check = |name: &str, to: &Path| {
        assert_eq!(std::fs::read_dir(to).unwrap().count(), 0, "{name} left something");
    };
    let title = title.to_string();
    let mut contest = Contest { title, rows, base, before: &before, check: &check, after: &clear };
    contest.run(call.rounds);
    contest.print();
}

/// Flushes what earlier rounds left to be written, so that it does not slow a row's turn.
fn settle(base: &Path) {
    nix::unistd::syncfs(File::open(base).unwrap()).unwrap();
}

/// Links the default list of this host. The destination must be on the same file system.
fn host_lists(call: &Call) {
    let dir = tempfile::TempDir::with_prefix_in("cofferdam-bench-", "/var/tmp").unwrap();
    let map: ChrootEnv = default_chroot_env().into_iter().filter(|(s, _)| s.exists()).collect();
    let pairs: Vec<(PathBuf, PathBuf)> = map.clone().into_iter().collect();
    let each = |to: &Path, place: &dyn Fn(&Path, &Path)| {
        for (source, dest) in &pairs {
            let dest = to.join(dest.strip_prefix("/").unwrap());
            std::fs::create_dir_all(dest.parent().unwrap()).unwrap();
            place(source, &dest);
        }
    };
    let threads = floor::threads();
    let rows = vec![
        Row::new("ours", |to| fill(Method::Link, &map, to)).bar(Bar::OfFloor(1.15)),
        Row::new(format!("floor, {threads} threads"), |to| each(to, &|s, d| floor::link(threads, s, d))),
        Row::new("floor, 1 thread", |to| each(to, &|s, d| floor::link(1, s, d))),
        Row::new("cp -al", |to| each(to, &|s, d| others::run("cp", &["-alHT"], &[s, d]))),
        Row::new("naive original, linking", |to| others::naive(to, &pairs, Way::Link)).bar(Bar::OfFirst(4.0)),
    ];
    let check = |name: &str, to: &Path| println!("{name}: {} entries", tree::count(to));
    let before = |_: &Path| settle(dir.path());
    let mut contest = Contest {
        title: "link, the host's default list, /var/tmp".into(),
        rows,
        base: dir.path(),
        before: &before,
        check: &check,
        after: &clear,
    };
    contest.run(if call.test { 1 } else { 3 });
    contest.print();
}

/// Runs the tables of one file system.
fn on(call: &Call, place: Result<&Path, &str>, name: &str, tables: &[(&str, Table)]) {
    let shape = call.shape();
    let size = format!("{} files, {} directories, {} links", shape.files, shape.dirs, shape.links);
    let title = |what: &str| format!("{what}, {size}, {:.0} MB, {name}", shape.bytes as f64 / 1e6);
    let wanted: Vec<_> =
        tables.iter().map(|(what, f)| (title(what), f)).filter(|(t, _)| call.wants(t)).collect();
    match place {
        Ok(base) if !wanted.is_empty() => {
            tree::build(&base.join("source"), shape);
            for (title, table) in wanted {
                table(call, &title, base);
            }
            clear(&base.join("source"));
        }
        Ok(_) => {}
        Err(why) => wanted.iter().for_each(|(title, _)| println!("\n{title}\n  skipped: {why}")),
    }
}

type Table = fn(&Call, &str, &Path);

fn tables(call: &Call, place: &Place) {
    let all: [(&str, Table); 3] = [("link", linking), ("copy", copying), ("teardown", removing)];
    on(call, Ok(&place.tmpfs), "tmpfs", &all);
    let size = if call.test { 64 << 20 } else { 2 << 30 };
    let mkfs = ["mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
    let ext4 = place.image("ext4", &mkfs, size);
    on(call, ext4.as_deref().map_err(|e| &**e), "ext4 in a loop mount", &all);
    let clones: [(&str, Table); 1] = [("reflink", cloning)];
    let btrfs = place.image("btrfs", &["mkfs.btrfs", "-q"], size.max(256 << 20));
    match btrfs {
        Ok(at) => on(call, Ok(&at), "btrfs in a loop mount", &clones),
        Err(why) => {
            let xfs = place.image("xfs", &["mkfs.xfs", "-q"], size.max(512 << 20));
            let xfs = xfs.map_err(|e| format!("{why}; {e}"));
            on(call, xfs.as_deref().map_err(|e| &**e), "xfs in a loop mount", &clones);
        }
    }
    if call.wants("link, the host's default list, /var/tmp") {
        if call.host {
            host_lists(call);
        } else {
            println!("\nlink, the host's default list\n  skipped: COFFERDAM_BENCH_B=1 asks for it");
        }
    }
}

/// Time that `work` takes on `rounds` fresh directories. Their removal is not timed.
fn timed(base: &Path, rounds: u64, before: impl Fn(&Path), work: impl Fn(&Path)) -> Duration {
    let mut spent = Duration::ZERO;
    for _ in 0..rounds {
        let to = tempfile::tempdir_in(base).unwrap();
        before(to.path());
        let began = Instant::now();
        work(to.path());
        spent += began.elapsed();
    }
    spent
}

/// The crate and the floor on tmpfs, for criterion's history.
fn history(call: &Call, place: &Place) {
    let source = place.tmpfs.join("source");
    tree::build(&source, call.shape());
    let (base, threads) = (&*place.tmpfs, floor::threads());
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let nothing: fn(&Path) = |_| {};
    let filled = |to: &Path| floor::link(threads, &source, &to.join("tree"));
    type Work<'a> = (&'a str, &'a str, &'a dyn Fn(&Path), &'a dyn Fn(&Path));
    let works: [Work<'_>; 6] = [
        ("link", "ours", &nothing, &|to| ours(Method::Link, &source, to)),
        ("link", "floor", &nothing, &|to| floor::link(threads, &source, &to.join("tree"))),
        ("copy", "ours", &nothing, &|to| ours(Method::Copy, &source, to)),
        ("copy", "floor", &nothing, &|to| floor::copy(threads, Content::Copied, &source, &to.join("tree"))),
        ("teardown", "ours", &filled, &|to| ours_remove(to, "tree")),
        ("teardown", "floor", &filled, &|to| floor::remove(threads, &to.join("tree"))),
    ];
    for (group, name, before, work) in works {
        criterion
            .benchmark_group(group)
            .bench_function(name, |b| b.iter_custom(|n| timed(base, n, before, work)));
    }
    criterion.final_summary();
    clear(&source);
}

fn main() {
    if memory::child() {
        return;
    }
    let call = Call::parse();
    let place = Place::enter();
    history(&call, &place);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("\nload of this machine before: {}", load.trim());
    tables(&call, &place);
    roots::table(&call, &place);
    memory::table(&call, &place);
    growth::table(&call, &place);
}
