//! Many sandboxes one after another and side by side, with every kind of end: what the caller and the kernel hold does
//! not grow with their number. Usually a few hundred; `just soak` runs as many as it is told.
//!
//! - `COFFERDAM_SOAK` is the number of sandboxes, `COFFERDAM_SOAK_THREADS` the number of threads.
//! - `COFFERDAM_SOAK_KINDS` selects the kinds whose names contain it.
//!
//! One test, in a binary of its own, because it counts what belongs to the whole process.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

#[path = "../common/mod.rs"]
mod common;
mod held;
mod kinds;

use std::sync::Barrier;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::{Duration, Instant};

use common::{can, emulated, sandboxes};
use held::Held;
use kinds::{Kind, Spawner};

/// The first sandboxes of a long run fill caches and pools of the C library and the kernel.
const WARM_UP: usize = 1000;
/// Most that resident memory may grow after the warm-up.
const RSS_KIB: i64 = 1 << 10;
/// Most that the allocated memory may grow: each thread keeps plans, which differ in length.
const ALLOCATED: i64 = 64 << 10;
/// Most that unreclaimable slab memory of a machine without other work may grow after the warm-up.
const SLAB_KIB: i64 = 4 << 10;

struct Size {
    count: usize,
    warm_up: usize,
    threads: usize,
}

impl Size {
    fn of_environment() -> Size {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<usize>().unwrap());
        let count = number("COFFERDAM_SOAK").unwrap_or(if emulated() { 160 } else { 800 });
        let threads = number("COFFERDAM_SOAK_THREADS").unwrap_or(8);
        Size { count, warm_up: WARM_UP.min(count / 2), threads }
    }
}

/// How long each spawn took, from the call to its return, in microseconds.
type Times = Vec<(Kind, u32)>;

/// Runs the kinds in turn on one thread, until `next` has reached `end`.
fn run(spawner: &mut Spawner, kinds: &[Kind], (next, end): (&AtomicUsize, usize), times: &mut Times) {
    loop {
        let number = next.fetch_add(1, Relaxed);
        if number >= end {
            return;
        }
        let kind = kinds[number % kinds.len()];
        let took = spawner.one(kind, number);
        times.push((kind, u32::try_from(took.as_micros()).unwrap()));
    }
}

/// Waits until what the kernel frees later is freed too: the removal of namespaces and cgroups is asynchronous.
fn settled(grown: impl Fn(&Held) -> bool) -> Held {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let held = Held::now();
        if !grown(&held) || Instant::now() > end {
            return held;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Prints how memory grows, until all sandboxes were begun.
fn watch(next: &AtomicUsize, size: &Size, before: &Held) {
    for tenth in 1..=10 {
        let until = size.warm_up + (size.count - size.warm_up) * tenth / 10;
        while next.load(Relaxed) < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("{until}: {}", Held::now().grown_since(before));
    }
}

fn median_and_p99(mut times: Vec<u32>) -> (u32, u32) {
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

fn print_times(kinds: &[Kind], times: &[Times]) {
    println!("{:24} {:>7} {:>9} {:>9} {:>11}", "spawn", "runs", "median", "p99", "p99/median");
    let first = kinds.iter().enumerate().filter(|(at, kind)| !kinds[..*at].contains(kind));
    for (_, kind) in first {
        let all = times.iter().flatten().filter(|(of, _)| of == kind).map(|(_, took)| *took);
        let all: Vec<u32> = all.collect();
        if all.is_empty() {
            continue;
        }
        let (runs, (median, p99)) = (all.len(), median_and_p99(all));
        let ratio = f64::from(p99) / f64::from(median.max(1));
        println!("{:24} {runs:>7} {median:>6} us {p99:>6} us {ratio:>11.1}", kind.name());
    }
}

#[test]
fn nothing_that_caller_and_kernel_hold_grows_with_the_number_of_sandboxes() {
    if !sandboxes() {
        return;
    }
    let (size, began) = (Size::of_environment(), Instant::now());
    let dir = tempfile::tempdir().unwrap();
    let kinds = Kind::selected();
    println!("{} sandboxes on {} threads", size.count, size.threads);
    // The first detached task starts a thread that stays.
    Spawner::new(dir.path(), size.threads).one(Kind::Recovered, 0);
    let first = settled(|held| !held.objects.children.is_empty());
    let (next, warm) = (AtomicUsize::new(0), Barrier::new(size.threads + 1));
    let (go, done, failed) =
        (Barrier::new(size.threads + 1), Barrier::new(size.threads + 1), AtomicBool::new(false));
    let end = Barrier::new(size.threads + 1);
    let (before, after, times) = std::thread::scope(|scope| {
        let spawning = (0..size.threads).map(|thread| {
            let (next, warm, go, done, end, failed, dir, kinds, size) =
                (&next, &warm, &go, &done, &end, &failed, dir.path(), &kinds, &size);
            scope.spawn(move || {
                // Written to, so that it is resident from the beginning.
                let mut times: Times = vec![(kinds[0], 1); size.count];
                times.clear();
                let phase = |spawner: &mut Spawner, to: usize, times: &mut Times| {
                    let run = std::panic::AssertUnwindSafe(|| run(spawner, kinds, (next, to), times));
                    failed.fetch_or(std::panic::catch_unwind(run).is_err(), Relaxed);
                };
                let mut spawner = Spawner::new(dir, thread);
                phase(&mut spawner, size.warm_up, &mut times);
                warm.wait();
                go.wait();
                times.clear();
                phase(&mut spawner, size.count, &mut times);
                done.wait();
                end.wait();
                times
            })
        });
        let spawning: Vec<_> = spawning.collect();
        warm.wait();
        let before = settled(|held| !held.same_objects(&first, size.threads));
        next.store(size.warm_up, Relaxed);
        go.wait();
        watch(&next, &size, &before);
        done.wait();
        let after = settled(|held| {
            let grown = held.grown_since(&before);
            !held.same_objects(&before, 0) || grown.rss > RSS_KIB || grown.slab > SLAB_KIB
        });
        end.wait();
        let times: Vec<Times> = spawning.into_iter().map(|thread| thread.join().unwrap()).collect();
        (before, after, times)
    });
    let last = settled(|held| !held.same_objects(&first, 0));
    print_times(&kinds, &times);
    let grown = after.grown_since(&before);
    println!("after the first {}: {grown}; {} s", size.warm_up, began.elapsed().as_secs());
    println!("{}", after.slabs_grown_since(&before));
    assert!(!failed.load(Relaxed), "a spawn had another outcome than it should");
    assert_eq!(first.objects, last.objects);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "state and temporary files");
    assert!(grown.allocated <= ALLOCATED, "allocated memory: {grown}");
    assert!(grown.rss <= RSS_KIB, "resident memory: {grown}");
    // Elsewhere other programs have a part in it.
    if emulated() && can("machine") {
        assert!(grown.slab <= SLAB_KIB, "slab: {grown}\n{}", after.slabs_grown_since(&before));
    }
}
