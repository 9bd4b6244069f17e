//! A caller inside a tokio runtime, with children of `tokio::process` beside the sandboxes.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use cofferdam::{Require, Sandbox};
use tokio::process::Command;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use crate::{every_outcome, untouched};

/// The runtime reaps its children on SIGCHLD, by a handler of its own.
pub fn many_threads() {
    in_runtime(Builder::new_multi_thread().worker_threads(2));
}

pub fn one_thread() {
    in_runtime(&mut Builder::new_current_thread());
}

fn in_runtime(builder: &mut Builder) {
    // Threads that do not end: the snapshot counts them.
    let builder = builder.enable_all().max_blocking_threads(8).thread_keep_alive(Duration::from_secs(3600));
    let runtime = builder.build().unwrap();
    // A child that runs all the time. The handler of SIGCHLD reaps the children that nobody waits for.
    let (mut beside, mut ended) = runtime.block_on(async {
        let beside = Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
        (beside, signal(SignalKind::child()).unwrap())
    });
    warm(&runtime);
    // On a thread that polls tasks; `block_on` alone polls on this one.
    runtime.block_on(async { tokio::spawn(async { every_outcome() }).await.unwrap() });
    runtime.block_on(async { tokio::task::spawn_blocking(every_outcome).await.unwrap() });
    runtime.block_on(async {
        every_outcome();
        assert!(beside.try_wait().unwrap().is_none(), "it runs");
    });
    untouched("statuses", || runtime.block_on(statuses()));
    runtime.block_on(async {
        beside.start_kill().unwrap();
        let status = beside.wait().await.unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
        ended.recv().await.unwrap();
    });
}

/// Starts all blocking threads.
fn warm(runtime: &Runtime) {
    let barrier = std::sync::Arc::new(std::sync::Barrier::new(9));
    for _ in 0..8 {
        let barrier = barrier.clone();
        runtime.spawn_blocking(move || barrier.wait());
    }
    barrier.wait();
}

fn exits(code: i32) -> Sandbox {
    Sandbox::command("/bin/sh").args(["-c", &format!("exit {code}")]).require(Require::BestEffort)
}

/// Children of the runtime and sandboxes end at the same time. Each status is its own, and nobody takes the other's.
async fn statuses() {
    for round in 0..4 {
        let pairs = (0..8).map(|number| {
            let code = round * 8 + number + 1;
            let sandbox = tokio::task::spawn_blocking(move || exits(code).spawn()?.wait());
            let child = tokio::spawn(async move {
                Command::new("/bin/sh").args(["-c", &format!("exit {}", code + 100)]).status().await
            });
            // Nobody waits for this one but the runtime.
            drop(Command::new("/bin/sh").args(["-c", "exit 99"]).spawn().unwrap());
            (code, sandbox, child)
        });
        for (code, sandbox, child) in pairs.collect::<Vec<_>>() {
            assert_eq!(sandbox.await.unwrap().unwrap().code, Some(code));
            assert_eq!(child.await.unwrap().unwrap().code(), Some(code + 100));
        }
        // On a thread that polls, while a child ends.
        let mut child = Command::new("/bin/sh").args(["-c", "exit 98"]).spawn().unwrap();
        assert_eq!(exits(7).spawn().and_then(|task| task.wait()).unwrap().code, Some(7));
        assert_eq!(child.wait().await.unwrap().code(), Some(98));
    }
    // The dropped ones are reaped when another child ends.
    let own = || std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while zombies(&own()) > 0 {
        assert!(std::time::Instant::now() < end, "zombies among {}", own());
        let _ = Command::new("true").status().await;
    }
}

/// How many of these processes have ended, and are not reaped.
fn zombies(children: &str) -> usize {
    let stat = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    children.split_whitespace().filter(|pid| stat(pid).contains(") Z ")).count()
}
