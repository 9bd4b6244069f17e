//! What will not die or will not go, on the kernel that the tests run on.

#![allow(clippy::arithmetic_side_effects)]

use std::fs;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::live::{LONG, assert_gone, detected, emulated, layout, sleeper};
use super::run::PATIENCE;
use super::*;
use crate::error::Error;

#[path = "../../benches/birth/tiny.rs"]
mod tiny;

/// Fills the group with processes that ignore every signal that can be ignored, and fork for ever.
fn light(group: &Group) -> Child {
    let dir = tempfile::tempdir().unwrap();
    let bomb = dir.path().join("bomb");
    tiny::write(&bomb, tiny::BOMB);
    // What a program is started with ignored stays so. Ignoring SIGCHLD, it leaves no zombies.
    let script = "trap '' HUP INT QUIT USR1 USR2 PIPE ALRM TERM CHLD TSTP TTIN TTOU; read go; exec \"$0\"";
    let shell = Command::new("sh").args(["-c", script]).arg(&bomb).stdin(Stdio::piped()).spawn();
    let mut child = shell.unwrap();
    group.add(child.id()).unwrap();
    drop(child.stdin.take());
    let start = Instant::now();
    while group.pids().unwrap().len() < 60 {
        assert!(start.elapsed() < 6 * LONG, "the bomb does not fill its limit");
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

/// This host, and where it has both versions also one that seems to have v1 only.
fn hosts() -> Vec<Detection> {
    let Some(host) = detected() else { return Vec::new() };
    let only_v1 = Detection { v2: None, ..host.clone() };
    let both = host.v2.is_some() && host.limits_on == Version::V1;
    if both { vec![host, only_v1] } else { vec![host] }
}

#[test]
fn a_fork_bomb_dies_without_cgroup_kill() {
    for (n, host) in hosts().iter().enumerate() {
        let limits = Limits { pids_max: Some(64), ..Limits::default() };
        let layout = layout(host, &limits, "", &format!("bomb.{n}"));
        let mut group = Group::create(&layout).unwrap();
        let mut child = light(&group);
        let start = Instant::now();
        let dir = kill::open_dir(layout.unit.as_ref().unwrap()).unwrap();
        kill::kill_each(dir.as_fd(), LONG).unwrap();
        let took = start.elapsed();
        // Emulated machines took up to 0.3 s; they share the processors with others.
        let limit = if emulated() { 5 } else { 1 };
        assert!(took < Duration::from_secs(limit), "{took:?}");
        assert!(!group.populated().unwrap());
        child.wait().unwrap();
        group.remove().unwrap();
        assert_gone(&layout);
    }
}

/// A freezer below one that is thawed stays frozen, and who is frozen in v1 does not die.
#[test]
fn what_is_frozen_below_dies_too() {
    for (n, host) in hosts().iter().enumerate() {
        let layout = layout(host, &Limits::default(), "", &format!("frozen.{n}"));
        let group = Group::create(&layout).unwrap();
        let mut child = sleeper(&group);
        let below = layout.unit.as_ref().unwrap().join("below");
        fs::create_dir(&below).unwrap();
        fs::write(below.join("cgroup.procs"), child.id().to_string()).unwrap();
        for (file, how) in [("cgroup.freeze", "1"), ("freezer.state", "FROZEN")] {
            if below.join(file).exists() {
                fs::write(below.join(file), how).unwrap();
            }
        }
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(child.wait().unwrap()));
        let start = Instant::now();
        drop(group);
        assert!(start.elapsed() < PATIENCE, "it was given up");
        assert!(!told.recv_timeout(LONG).unwrap().success());
        assert_gone(&layout);
    }
}

/// The patience of five seconds is lost once: who asks again has an answer at once, and success as soon as there is
/// nothing in the way.
#[test]
fn what_is_busy_is_waited_for_once() {
    for (n, host) in hosts().iter().enumerate() {
        let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
        let layout = layout(host, &limits, "", &format!("busy.{n}"));
        let mut group = Group::create(&layout).unwrap();
        let mut child = sleeper(&group);
        let refused = |group: &mut Group| {
            let start = Instant::now();
            match group.remove() {
                Err(Error::Task { step, source }) => {
                    // All are named: each has the process in it.
                    let all = layout.leaves().all(|leaf| step.contains(&format!("rmdir({leaf:?})")));
                    assert!(all, "{step} does not name all of {layout:#?}");
                    assert_eq!(source.raw_os_error(), Some(libc::EBUSY));
                }
                other => panic!("{other:?}"),
            }
            start.elapsed()
        };
        let first = refused(&mut group);
        assert!((PATIENCE..2 * PATIENCE).contains(&first), "{first:?}");
        for _ in 0..3 {
            let again = refused(&mut group);
            assert!(again < Duration::from_secs(2), "{again:?}");
        }
        group.kill().unwrap();
        child.wait().unwrap();
        assert!(group.wait_empty(LONG).unwrap());
        group.remove().unwrap();
        assert_gone(&layout);
    }
}
