//! Attacks on the host's files by mounts that somebody else makes in a task's temporary root.
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

/// Runs `attack` on a thread with a mount table of its own, so that the host sees nothing of it.
fn with_own_mounts(attack: impl FnOnce() + Send) {
    let alone = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount("", "/", "", libc::MS_REC | libc::MS_PRIVATE, "").unwrap();
        attack();
    };
    std::thread::scope(|scope| scope.spawn(alone).join().unwrap());
}

/// A task with a temporary root in `base` that waits for a line; with the directory of that root.
fn waits_in(base: &Path) -> (cofferdam::Task, PathBuf) {
    let policy = Policy { temp_dir: base.into(), ..Policy::default() };
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

/// Somebody mounts a directory of the host's in the root of a task that runs: it survives the task, with all that is
/// in it. The one who waits is told where, and nothing of the root is gone until that is unmounted.
#[test]
fn what_somebody_mounts_in_a_temporary_root_survives_it() {
    if !can("root") {
        return;
    }
    let canary = Canary::new();
    let base = open_dir();
    with_own_mounts(|| {
        let (mut task, root) = waits_in(base.path());
        let count = || fs::read_dir(&root).unwrap().count();
        let (one, other) = (root.join("planted"), root.join("lib64/planted"));
        // From another thread, which shares the mounts of this one.
        let plant = |at: &Path| {
            fs::create_dir_all(at).unwrap();
            mount(canary.path().to_str().unwrap(), at.to_str().unwrap(), "", libc::MS_BIND, "").unwrap();
        };
        std::thread::scope(|scope| scope.spawn(|| [&one, &other].map(|at| plant(at))).join().unwrap());
        let before = count();
        task.stdin.take().unwrap().write_all(b"\n").unwrap();
        for left in [vec![&other, &one], vec![&one]] {
            for _ in 0..2 {
                let error = task.wait().unwrap_err();
                let Error::Task { step, source } = &error else { panic!("{error:?}") };
                let calls: Vec<String> = left.iter().map(|at| format!("unlinkat({at:?})")).collect();
                assert_eq!(*step, calls.join(", "));
                assert_eq!(source.raw_os_error(), Some(libc::EBUSY));
                assert_eq!(task.status().unwrap().code, Some(7));
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

/// The same for who does not wait but drops the task. It can be taken away by hand later.
#[test]
fn what_somebody_mounts_survives_a_task_that_is_dropped() {
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

/// Mounted in a namespace of somebody's own it does not show, and does not hold up the removal: the kernel takes it
/// off, and its content stays.
#[test]
fn what_is_mounted_in_another_namespace_survives_a_temporary_root() {
    if !can("root") {
        return;
    }
    let canary = Canary::new();
    let base = open_dir();
    let (mut task, root) = waits_in(base.path());
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
                // Until the removal is over.
                let _ = wait.recv();
            });
        });
        mounted.recv().unwrap();
        task.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert_eq!(task.wait().unwrap().code, Some(7));
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
        drop(over);
    });
    canary.alive();
}
