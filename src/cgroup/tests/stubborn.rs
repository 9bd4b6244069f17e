//! Tests of processes and cgroups that resist being killed or removed, on the running kernel.

#![allow(clippy::arithmetic_side_effects)]

use std::fs;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::super::fs::open_dir;
use super::super::group::TIMEOUT;
use super::super::group::kill::kill_each;
use super::*;
use crate::error::Error;

#[path = "../../../benches/birth/tiny.rs"]
mod tiny;

/// Fills the group with processes that ignore every signal that can be ignored, and fork forever.
pub(in crate::cgroup) fn light(group: &Group) -> Child {
    let dir = tempfile::tempdir().unwrap();
    let bomb = dir.path().join("bomb");
    tiny::write(&bomb, tiny::BOMB);
    // Ignored signals stay ignored after an exec. Ignoring SIGCHLD prevents zombies.
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

#[test]
fn a_fork_bomb_dies_without_cgroup_kill() {
    for (n, host) in hosts().iter().enumerate() {
        let limits = Limits { pids_max: Some(64), ..Limits::default() };
        let cgroups = super::cgroups(host, &limits, "", &format!("bomb.{n}"));
        let mut group = create(&cgroups);
        let mut child = light(&group);
        let start = Instant::now();
        let dir = open_dir(cgroups.paths.unit.as_ref().unwrap()).unwrap();
        kill_each(dir.as_fd(), LONG).unwrap();
        let took = start.elapsed();
        // Emulated machines took up to 0.3 s, and they share their CPUs with others.
        let limit = if emulated() { 5 } else { 1 };
        assert!(took < Duration::from_secs(limit), "{took:?}");
        assert!(!group.populated().unwrap());
        child.wait().unwrap();
        group.remove().unwrap();
        assert_gone(&cgroups);
    }
}

/// On v1, thawing a cgroup does not thaw a frozen cgroup below it, and a frozen process does not die.
#[test]
fn a_process_in_a_frozen_cgroup_below_the_unit_is_killed() {
    for (n, host) in hosts().iter().enumerate() {
        let cgroups = super::cgroups(host, &Limits::default(), "", &format!("frozen.{n}"));
        let group = create(&cgroups);
        let mut child = sleeper(&group);
        let below = cgroups.paths.unit.as_ref().unwrap().join("below");
        fs::create_dir(&below).unwrap();
        fs::write(below.join("cgroup.procs"), child.id().to_string()).unwrap();
        for (file, how) in [("cgroup.freeze", "1"), ("freezer.state", "FROZEN")] {
            if below.join(file).exists() {
                fs::write(below.join(file), how).unwrap();
            }
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(child.wait().unwrap()));
        let start = Instant::now();
        drop(group);
        assert!(start.elapsed() < TIMEOUT, "removing it timed out");
        assert!(!receiver.recv_timeout(LONG).unwrap().success());
        assert_gone(&cgroups);
    }
}

/// The first attempt waits for the timeout of five seconds. Later attempts fail sooner, and succeed once no process is
/// left.
#[test]
fn removing_a_busy_cgroup_waits_the_full_timeout_only_once() {
    for (n, host) in hosts().iter().enumerate() {
        let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
        let cgroups = super::cgroups(host, &limits, "", &format!("busy.{n}"));
        let mut group = create(&cgroups);
        let mut child = sleeper(&group);
        let refused = |group: &mut Group| {
            let start = Instant::now();
            match group.remove() {
                Err(Error::Task { step, source }) => {
                    // Every leaf is named, because each has the process in it.
                    let all = cgroups.leaves().all(|leaf| step.contains(&format!("rmdir({leaf:?})")));
                    assert!(all, "{step} does not name all of {cgroups:#?}");
                    assert_eq!(source.raw_os_error(), Some(libc::EBUSY));
                }
                other => panic!("{other:?}"),
            }
            start.elapsed()
        };
        let first = refused(&mut group);
        assert!((TIMEOUT..2 * TIMEOUT).contains(&first), "{first:?}");
        for _ in 0..3 {
            let again = refused(&mut group);
            assert!(again < Duration::from_secs(2), "{again:?}");
        }
        group.kill().unwrap();
        child.wait().unwrap();
        assert!(group.wait_empty(LONG).unwrap());
        group.remove().unwrap();
        assert_gone(&cgroups);
    }
}
