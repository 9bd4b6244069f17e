//! The thread that removes stale sandboxes at an interval. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cofferdam::{Error, Host, Method, Policy, PruneOptions, Pruned, Pruner, Require, Sandbox, StaleSandbox};
use common::{sandboxes, shell};

/// More than any of these tests takes on a loaded machine.
const LONG: Duration = Duration::from_secs(60);

fn places() -> (tempfile::TempDir, Policy) {
    let dir = common::places::dirs();
    let [temp, state] = ["temp", "state"].map(|name| dir.path().join(name));
    let policy = Policy { temp_dir: Some(temp), state_dir: Some(state), ..Policy::default() };
    (dir, policy)
}

fn options(interval: Duration) -> PruneOptions {
    PruneOptions { interval, grace: Duration::ZERO }
}

/// A pruner that sends what it has done, with the thread that did it.
fn start(
    policy: &Policy,
    interval: Duration,
    claimed: impl Fn(&str) -> bool + Send + 'static,
) -> (Pruner, Receiver<(Pruned, i32)>) {
    let (said, heard) = channel();
    let tell = move |pruned| drop(said.send((pruned, nix::unistd::gettid().as_raw())));
    let pruner = Pruner::start(policy, &Host::probe().unwrap(), options(interval), claimed, tell).unwrap();
    (pruner, heard)
}

fn lives(thread: i32) -> bool {
    Path::new(&format!("/proc/self/task/{thread}")).exists()
}

/// Waits until a thread is gone. One that was joined is listed until the kernel has removed it.
fn await_end(thread: i32, within: Duration) {
    let begun = Instant::now();
    while lives(thread) {
        assert!(begun.elapsed() < within, "thread {thread} lives");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn first_pass_removes_what_is_stale_and_leaves_what_is_claimed() {
    if !sandboxes() {
        return;
    }
    let (dir, policy) = places();
    let unique = dir.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_owned();
    let [mine, lost] = ["mine", "lost"].map(|name| format!("pruner-{name}-{unique}"));
    let handles = [&mine, &lost].map(|id| {
        let sandbox = shell("exit 3").policy(&policy).id(id).require(Require::BestEffort);
        let task = sandbox.populate(Method::Bind).spawn().unwrap();
        // Without a cgroup, a process that runs keeps its owner.
        task.wait_end(None).unwrap();
        task.detach().unwrap()
    });
    std::thread::sleep(Duration::from_secs(6));
    let (claim, others) = (mine.clone(), unique.clone());
    // Other tests have sandboxes below the same parent cgroup.
    let claimed = move |id: &str| id == claim || !id.contains(&others);
    let (pruner, heard) = start(&policy, 10 * LONG, claimed);
    let (pruned, thread) = heard.recv_timeout(LONG).unwrap();
    match pruned {
        Pruned::Removed(stale) => assert_eq!(stale.id(), lost),
        other => panic!("{other:?}"),
    }
    let record = |id: &str| dir.path().join(format!("state/{id}.exit"));
    assert!(record(&mine).exists() && !record(&lost).exists());
    let begun = Instant::now();
    drop(pruner);
    await_end(thread, Duration::from_secs(5));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(heard.recv().is_err(), "it has removed only one, and has dropped its closures");
    let task = Sandbox::recover(&handles[0]).unwrap();
    assert_eq!(task.wait_end(None).unwrap().unwrap().code, Some(3));
    task.release().unwrap();
}

#[test]
fn a_search_that_fails_is_said_at_every_interval_in_a_thread_that_blocks_signals() {
    let (dir, policy) = places();
    // It cannot be searched.
    std::fs::remove_dir(dir.path().join("temp")).unwrap();
    std::fs::write(dir.path().join("temp"), "").unwrap();
    let begun = Instant::now();
    // An interval below a second counts as a second.
    let (pruner, heard) = start(&policy, Duration::ZERO, |_| true);
    let mut said = 0;
    let mut thread = 0;
    for _ in 0..3 {
        let (pruned, of) = heard.recv_timeout(LONG).unwrap();
        assert!(
            matches!(&pruned, Pruned::Unsearched(error) if error.to_string().contains("temp")),
            "{pruned:?}"
        );
        (said, thread) = (said + 1, of);
    }
    assert!(begun.elapsed() >= Duration::from_secs(2), "{said} in {:?}", begun.elapsed());
    let status = std::fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
    let blocked = u64::from_str_radix(blocked.trim(), 16).unwrap();
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGUSR1, libc::SIGTERM, libc::SIGCHLD, libc::SIGALRM] {
        assert!(blocked & 1 << (signal - 1) != 0, "signal {signal} of {blocked:x}");
    }
    let own = nix::sys::signal::SigSet::thread_get_mask().unwrap();
    assert!(!own.contains(nix::sys::signal::Signal::SIGTERM), "the caller's mask is as it was");
    drop(pruner);
    await_end(thread, Duration::from_secs(5));
}

#[test]
fn a_panic_in_a_closure_ends_the_pass_only() {
    let (dir, policy) = places();
    std::fs::remove_dir(dir.path().join("temp")).unwrap();
    std::fs::write(dir.path().join("temp"), "").unwrap();
    let (said, heard) = channel();
    let tell = move |pruned: Pruned| {
        said.send(pruned.to_string()).unwrap();
        panic!("the first of at least two");
    };
    let host = Host::probe().unwrap();
    let pruner = Pruner::start(&policy, &host, options(Duration::ZERO), |_| true, tell).unwrap();
    for _ in 0..2 {
        let text = heard.recv_timeout(LONG).unwrap();
        let (start, cause) = ("cannot search for stale sandboxes: read the directory", "Not a directory");
        assert!(text.starts_with(start) && text.contains(cause), "{text}");
    }
    drop(pruner);
}

#[test]
fn directories_that_do_not_exist_have_nothing_stale() {
    let (dir, policy) = places();
    for name in ["temp", "state"] {
        std::fs::remove_dir(dir.path().join(name)).unwrap();
    }
    let host = Host::probe().unwrap();
    let unique = dir.path().display().to_string();
    let found = StaleSandbox::find(&policy, &host, Duration::ZERO, |id| !id.contains(&unique)).unwrap();
    assert!(found.is_empty(), "{found:?}");
    // Of a relative path, nothing is known.
    for relative in ["", "state"] {
        let policy = Policy { state_dir: Some(relative.into()), ..policy.clone() };
        let error = StaleSandbox::find(&policy, &host, Duration::ZERO, |_| true).unwrap_err();
        assert!(matches!(error, Error::Spec { field: "state_dir", .. }), "{error:?}");
    }
}

#[test]
fn a_pruner_that_is_dropped_by_its_own_closure_ends() {
    let (dir, policy) = places();
    // It cannot be searched.
    std::fs::remove_dir(dir.path().join("temp")).unwrap();
    std::fs::write(dir.path().join("temp"), "").unwrap();
    let own: Arc<Mutex<Option<Pruner>>> = Arc::default();
    let (said, heard) = channel();
    let mut held = own.lock().unwrap();
    let inside = Arc::clone(&own);
    let tell = move |_| {
        drop(inside.lock().unwrap().take());
        said.send(nix::unistd::gettid().as_raw()).unwrap();
    };
    let host = Host::probe().unwrap();
    *held = Some(Pruner::start(&policy, &host, options(Duration::ZERO), |_| true, tell).unwrap());
    drop(held);
    let thread = heard.recv_timeout(LONG).unwrap();
    await_end(thread, LONG);
    let defaults = PruneOptions::default();
    assert_eq!((defaults.grace, defaults.interval), (StaleSandbox::GRACE, LONG));
}
