//! Attacks on the host's files by mounts that another process makes in a task's temporary root.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod attack_tools;
mod common;

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;

use attack_tools::*;
use cofferdam::{Error, Method, Policy, Root, Sandbox, Stdio};
use common::can;

/// Runs `attack` on a thread with a private mount namespace, so that the host does not see its mounts.
fn with_own_mounts(attack: impl FnOnce() + Send) {
    let alone = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount("", "/", "", libc::MS_REC | libc::MS_PRIVATE, "").unwrap();
        attack();
    };
    std::thread::scope(|scope| scope.spawn(alone).join().unwrap());
}

/// A task with a temporary root in `base`, which waits for a line of input; and the path of that root.
fn waits_in(base: &Path) -> (cofferdam::Task, PathBuf) {
    let policy = Policy { temp_dir: Some(base.into()), ..Policy::default() };
    let chroot_env = ["/bin/sh", "/lib64"].map(|p| (PathBuf::from(p), PathBuf::from(p)));
    let chroot_env = chroot_env.into_iter().chain(libraries()).collect();
    let root = Root { populate: Method::Copy, chroot_env, ..Root::default() };
    let task = Sandbox::command("/bin/sh").args(["-c", "read line; exit 7"]).policy(&policy).root(root);
    let task = task.user("root").stdin(Stdio::Piped).spawn().unwrap();
    let around = fs::read_dir(base).unwrap().next().unwrap().unwrap().path();
    (task, around.join("root"))
}

fn unmount(at: &Path) {
    call!(libc::SYS_umount2, z(at).as_ptr(), libc::UMOUNT_NOFOLLOW).unwrap();
}

/// Another process bind-mounts a directory of the host in the root of a running task. The directory and its content
/// survive the task. `wait` names the mount points, and nothing of the root is removed until they are unmounted.
#[test]
fn foreign_mount_in_a_temporary_root_survives_its_removal() {
    if !can("root") {
        return;
    }
    let canary = Canary::new();
    let base = open_dir();
    with_own_mounts(|| {
        let (task, root) = waits_in(base.path());
        let count = || fs::read_dir(&root).unwrap().count();
        let (one, other) = (root.join("planted"), root.join("lib64/planted"));
        // On another thread of the same mount namespace.
        let plant = |at: &Path| {
            fs::create_dir_all(at).unwrap();
            mount(canary.path().to_str().unwrap(), at.to_str().unwrap(), "", libc::MS_BIND, "").unwrap();
        };
        std::thread::scope(|scope| scope.spawn(|| [&one, &other].map(|at| plant(at))).join().unwrap());
        let before = count();
        task.take_stdin().unwrap().write_all(b"\n").unwrap();
        for left in [vec![&other, &one], vec![&one]] {
            for _ in 0..2 {
                let error = task.wait().unwrap_err();
                let Error::Task { step, source } = &error else { panic!("{error:?}") };
                let calls: Vec<String> = left.iter().map(|at| format!("unlinkat({at:?})")).collect();
                assert_eq!(*step, calls.join(", "));
                assert_eq!(source.raw_os_error(), Some(libc::EBUSY));
                assert_eq!(task.status().unwrap().unwrap().code, Some(7));
                assert_eq!(count(), before);
                assert!(fs::read(one.join("sub/file")).is_ok_and(|text| text == b"alive"));
                canary.alive();
            }
            unmount(left[0]);
        }
        assert_eq!(task.wait().unwrap().code, Some(7));
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
        assert_eq!(task.wait().unwrap().code, Some(7));
        canary.alive();
    });
}

/// The caller drops the task instead of waiting. `remove_tree` can remove the root later.
#[test]
fn foreign_mount_in_a_temporary_root_survives_a_dropped_task() {
    if !can("root") {
        return;
    }
    let canary = Canary::new();
    let base = open_dir();
    with_own_mounts(|| {
        let (task, root) = waits_in(base.path());
        let planted = root.join("planted");
        fs::create_dir(&planted).unwrap();
        mount(canary.path().to_str().unwrap(), planted.to_str().unwrap(), "", libc::MS_BIND, "").unwrap();
        let before = fs::read_dir(&root).unwrap().count();
        drop(task);
        assert_eq!(fs::read_dir(&root).unwrap().count(), before);
        canary.alive();
        let around = root.parent().unwrap().file_name().unwrap();
        let parent = fs::File::open(base.path()).unwrap();
        let left = cofferdam::rootfs::remove_tree(parent.as_fd(), around).unwrap_err();
        let told: Vec<_> = left.iter().map(|(at, why)| (base.path().join(at), why.raw_os_error())).collect();
        assert_eq!(told, [(planted.clone(), Some(libc::EBUSY))]);
        unmount(&planted);
        cofferdam::rootfs::remove_tree(parent.as_fd(), around).unwrap();
        canary.alive();
    });
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
}

/// The mount is not visible here, and does not prevent the removal: the kernel detaches it, and its content stays.
#[test]
fn mount_in_another_namespace_survives_and_does_not_block_removal() {
    if !can("root") {
        return;
    }
    let canary = Canary::new();
    let base = open_dir();
    let (task, root) = waits_in(base.path());
    let planted = root.join("planted");
    fs::create_dir(&planted).unwrap();
    std::thread::scope(|scope| {
        let (say, mounted) = channel();
        let (over, wait) = channel::<()>();
        let (from, to) = (canary.path().to_str().unwrap(), planted.to_str().unwrap());
        scope.spawn(move || {
            with_own_mounts(move || {
                mount(from, to, "", libc::MS_BIND, "").unwrap();
                assert!(Path::new(to).join("sub/file").exists());
                say.send(()).unwrap();
                // Waits until the root is removed.
                let _ = wait.recv();
            });
        });
        mounted.recv().unwrap();
        task.take_stdin().unwrap().write_all(b"\n").unwrap();
        assert_eq!(task.wait().unwrap().code, Some(7));
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
        drop(over);
    });
    canary.alive();
}
