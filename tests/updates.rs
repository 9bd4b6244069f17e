//! Updates of the limits of a running task.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use cofferdam::{Control, DieWith, Limits, Policy, Sandbox, TaskHandle};

/// Ends the task also if an assertion fails, since it outlives this process.
struct Ended(TaskHandle);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Ok(task) = Sandbox::recover(&self.0) {
            let _ = task.kill().and_then(|()| task.wait().map(drop));
        }
    }
}

/// The driver was killed after an update, before it stored the new handle.
#[test]
fn an_update_after_a_recovery_with_an_older_handle_sets_what_it_reports() {
    if !common::can("cgroups") {
        return;
    }
    let memory = |mib: u64| Limits { memory: Some(mib << 20), pids_max: Some(50 + mib), ..Limits::default() };
    let dir = tempfile::tempdir().unwrap();
    let policy = Policy { state_dir: Some(dir.path().into()), ..Policy::default() };
    let sleep = Sandbox::command("sleep").arg("600").policy(&policy).die_with(DieWith::Survive);
    let task = sleep.limits(memory(64)).spawn().unwrap();
    let groups = common::cgroups_of(task.pid().unwrap());
    let limit = || {
        let files = groups.iter().flat_map(|g| [g.join("memory.limit_in_bytes"), g.join("memory.max")]);
        let read: Vec<String> = files.filter_map(|file| std::fs::read_to_string(file).ok()).collect();
        let pids = groups.iter().filter_map(|g| std::fs::read_to_string(g.join("pids.max")).ok());
        (read.join(" ").trim().to_owned(), pids.collect::<String>().trim().to_owned())
    };
    let stored = Ended(task.handle().unwrap());
    // Dropped first: a task has one owner.
    let mut task = task;
    for (before, now) in [(128, 64), (128, 100), (32, 48), (128, 128)] {
        task.update(&memory(before)).unwrap();
        task.detach().unwrap();
        task = Sandbox::recover(&stored.0).unwrap();
        let report = task.update(&memory(now)).unwrap();
        assert!(report.enforced.contains(Control::MEMORY | Control::PIDS), "{report}");
        let (memory, pids) = limit();
        assert!(memory.contains(&(now << 20).to_string()), "{before} {now}: {memory}");
        assert!(
            pids.lines().any(|line| line.parse::<u64>().is_ok_and(|n| n.abs_diff(50 + now) <= 1)),
            "{pids}"
        );
    }
    drop(task.detach().unwrap());
}
