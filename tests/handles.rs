//! A handle names one task. What another task of the same id has is not touched by it, and what an interrupted removal has
//! left of its own task is removed. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::path::{Path, PathBuf};

use cofferdam::{DieWith, ExitKind, Limits, Lost, Method, Policy, Root, Sandbox, Stdio, Volume};
use common::places::{below, cgroups, dirs, policy};
use common::{can, sandboxes, shell};

/// A task with a temporary root that survives its driver.
fn survivor(policy: &Policy, id: &str, script: &str) -> Sandbox {
    let programs = ["/bin", "/lib", "/lib64", "/usr"].into_iter().filter(|path| Path::new(path).exists());
    let chroot_env = [("/etc/passwd".into(), "/file".into())].into();
    let root = Root { populate: Method::Copy, chroot_env, ..Root::default() };
    let sandbox = shell(script).policy(policy).id(id).die_with(DieWith::Survive).root(root).user("root");
    programs
        .fold(sandbox, |sandbox, path| sandbox.volume(Volume { read_only: true, ..Volume::new(path, path) }))
}

fn id(dir: &Path) -> String {
    format!("handles-{}", dir.file_name().unwrap().to_str().unwrap().trim_start_matches('.'))
}

/// Everything of the test's tasks.
fn all(dir: &Path) -> Vec<PathBuf> {
    let mut all = below(&dir.join("temp"));
    all.extend(below(&dir.join("state")));
    all.extend(cgroups(dir).into_iter().filter(|dir| dir.exists()));
    all
}

/// A file system gives the number of a removed directory to a new one.
#[test]
fn handle_of_an_earlier_task_does_not_take_what_a_newer_one_of_its_id_has() {
    if !sandboxes() {
        return;
    }
    for has_record in [true, false] {
        let dir = dirs();
        let mut policy = policy(dir.path());
        if !has_record {
            policy.state_dir = None;
        }
        let id = id(dir.path());
        let first = survivor(&policy, &id, "exit 3").spawn().unwrap();
        let old = first.handle().unwrap();
        assert_eq!(first.wait().unwrap().code, Some(3));
        first.release().unwrap();
        // Its driver is gone: nothing of it is locked.
        let second =
            survivor(&policy, &id, "read line; test -e /file && exit 43; exit 44").stdin(Stdio::Piped);
        let second = second.spawn().unwrap();
        let stdin = second.take_stdin();
        let handle = second.detach().unwrap();
        let root = dir.path().join(format!("temp/cofferdam-{id}/root"));
        let stranger = Sandbox::recover(&old).unwrap();
        // It has ended as its handle says, or nobody knows how.
        let status = stranger.wait().unwrap();
        assert!(matches!(status.kind(), ExitKind::Exited(3) | ExitKind::Lost(Lost::Unrecorded)), "{status}");
        stranger.release().unwrap();
        assert!(root.join("file").exists());
        let own = Sandbox::recover(&handle).unwrap();
        drop(stdin);
        let status = own.wait().unwrap();
        // Without a record, nobody knows the status of a task that was detached.
        let known = if has_record { ExitKind::Exited(43) } else { ExitKind::Lost(Lost::Unrecorded) };
        assert_eq!(status.kind(), known);
        own.release().unwrap();
        assert_eq!(all(dir.path()), Vec::<PathBuf>::new());
    }
}

/// A driver that is killed while it releases a task has removed some of the cgroups.
#[test]
fn cgroups_that_an_interrupted_release_has_left_are_removed_by_the_next_one() {
    // The parent cgroup of the test is not in one that is delegated to a user.
    if !can("root") || !can("cgroups") {
        return;
    }
    let dir = dirs();
    let policy = policy(dir.path());
    let limits = Limits { accounting: true, cpu_shares: Some(512), pids_max: Some(100), ..Limits::default() };
    let sandbox = || shell("exit 3").policy(&policy).limits(limits.clone()).die_with(DieWith::Survive);
    // Every cgroup of the task but the last is removed, in turn.
    for removed in 1.. {
        let task = sandbox().id(id(dir.path())).spawn().unwrap();
        let handle = task.detach().unwrap();
        let value = serde_json::to_value(&handle).unwrap();
        let leaves: Vec<PathBuf> = serde_json::from_value(value["groups"]["leaves"].clone()).unwrap();
        let removed = leaves.iter().skip(1).rev().take(removed).collect::<Vec<_>>();
        while leaves.iter().any(|leaf| !std::fs::read(leaf.join("cgroup.procs")).unwrap().is_empty()) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        removed.iter().for_each(|leaf| std::fs::remove_dir(leaf).unwrap());
        let again = Sandbox::recover(&handle).unwrap();
        assert_eq!(again.wait().unwrap().code, Some(3));
        again.release().unwrap();
        assert_eq!(all(dir.path()), Vec::<PathBuf>::new(), "{removed:?} of {leaves:?}");
        if removed.len() + 1 >= leaves.len() {
            break;
        }
    }
}
