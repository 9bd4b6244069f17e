//! Groups on the kernel that the tests run on. Each test makes and removes cgroups of its own only.

#![allow(clippy::arithmetic_side_effects)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;
use crate::error::Error;
use crate::report::Control;

const MB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(10);

/// The host, if the tests can run on it. If not it says so, or fails where CI says that it must:
/// `COFFERDAM_MUST_HAVE` is a list that may have `root`, `cgroup_v1` (limits are set through v1) and `cgroup_v2`.
pub(super) fn detected() -> Option<Detection> {
    let found = Detection::probe();
    let on = |version| found.gate().is_ok() && found.limits_on == version;
    let must = std::env::var("COFFERDAM_MUST_HAVE").unwrap_or_default();
    let root = nix::unistd::geteuid().is_root();
    for (what, yes) in [("root", root), ("cgroup_v1", on(Version::V1)), ("cgroup_v2", on(Version::V2))] {
        let listed = must.split(',').any(|name| name.trim() == what);
        assert!(yes || !listed, "this machine must have {what}: {found:#?}");
    }
    if let Err(why) = found.gate() {
        eprintln!("skipped: no cgroups: {why}");
        return None;
    }
    Some(found)
}

fn layout(host: &Detection, limits: &Limits, parent: &str, name: &str) -> Layout {
    let name = format!("test.{}.{name}", std::process::id());
    lower(limits, host, &CgroupPath::new(parent).unwrap(), &CgroupName::new(&name).unwrap(), 0, false)
}

/// A program in the group; the test itself must never be.
fn sleeper(group: &Group) -> Child {
    let child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    group.add(child.id()).unwrap();
    child
}

/// The cgroup that an operator's parent must be below.
pub(super) fn top(host: &Detection) -> &str {
    host.v2.as_ref().and_then(|v2| v2.top.as_deref()).unwrap_or("/").trim_end_matches('/')
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap().trim().to_owned()
}

fn assert_gone(layout: &Layout) {
    for leaf in layout.leaves() {
        assert!(!leaf.exists(), "{leaf:?} was left behind");
    }
}

#[test]
fn every_limit_is_there_and_all_is_removed() {
    let Some(host) = detected() else { return };
    let limits = Limits {
        cpu_shares: Some(512),
        cores: "0".into(),
        exclusive: true,
        memory: Some(32 * MB),
        memory_max: Some(MemoryMax::Bytes(64 * MB)),
        pids_max: Some(7),
        swap: false,
    };
    // Below a parent of its own: who else runs tests here may have the processor.
    let parent = format!("{}/cofferdam-limits-{}", top(&host), std::process::id());
    let layout = layout(&host, &limits, &parent, "limits");
    assert_eq!(layout.missing, [], "{layout:#?}");
    let mut group = Group::create(&layout).unwrap();
    assert_eq!(group.shortfalls(), []);
    for write in layout.writes.iter().filter(|w| w.need == Need::Must) {
        let Value::Text(text) = &write.value else { continue };
        if !write.path.ends_with("cgroup.subtree_control") {
            assert_eq!(&read(&write.path), text, "{:?}", write.path);
        }
    }
    assert_eq!(read(&layout.cores.as_ref().unwrap().place().join("cpuset.cpus")), "0");
    let mut child = sleeper(&group);
    assert_eq!(group.pids().unwrap(), [i32::try_from(child.id()).unwrap()]);
    for leaf in layout.leaves() {
        assert_eq!(read(&leaf.join("cgroup.procs")), child.id().to_string());
    }
    assert!(group.populated().unwrap());
    assert!(group.memory_current().is_some());
    assert_eq!(group.oom_kills(), 0);
    assert!(!group.wait_empty(Duration::from_millis(5)).unwrap());
    group.kill().unwrap();
    child.wait().unwrap();
    assert!(group.wait_empty(LONG).unwrap());
    group.remove().unwrap();
    assert_gone(&layout);
}

#[test]
fn dropping_kills_and_removes() {
    let Some(host) = detected() else { return };
    let layout = layout(&host, &Limits { memory: Some(16 * MB), ..Limits::default() }, "", "drop");
    let group = Group::create(&layout).unwrap();
    let mut child = sleeper(&group);
    // Reaped by another thread, as init's death would be: a zombie is not in the way of an rmdir on v2, but is on v1.
    let waiter = std::thread::spawn(move || child.wait().unwrap());
    let start = Instant::now();
    drop(group);
    assert!(!waiter.join().unwrap().success());
    assert!(start.elapsed() < LONG);
    assert_gone(&layout);
}

#[test]
fn without_cgroup_kill_each_is_killed() {
    let Some(host) = detected() else { return };
    let layout = layout(&host, &Limits::default(), "", "each");
    let mut group = Group::create(&layout).unwrap();
    let children: Vec<Child> = (0..5).map(|_| sleeper(&group)).collect();
    let waiter = std::thread::spawn(|| {
        children.into_iter().for_each(|mut child| assert!(!child.wait().unwrap().success()));
    });
    let dir = kill::open_dir(layout.unit.as_ref().unwrap()).unwrap();
    kill::kill_each(std::os::fd::AsFd::as_fd(&dir), LONG).unwrap();
    waiter.join().unwrap();
    assert!(!group.populated().unwrap());
    group.remove().unwrap();
    assert_gone(&layout);
}

#[test]
fn a_group_is_let_go_of_and_found_again() {
    let Some(host) = detected() else { return };
    let layout = layout(&host, &Limits { pids_max: Some(5), ..Limits::default() }, "", "reopen");
    let group = Group::create(&layout).unwrap();
    let mut child = sleeper(&group);
    let record = serde_json::to_string(&group.into_paths()).unwrap();
    assert!(layout.leaves().all(Path::exists));
    let mut group = Group::reopen(serde_json::from_str(&record).unwrap()).unwrap();
    assert_eq!(group.enter_fds().unwrap().len(), layout.enter.len());
    assert_eq!(group.into_fd().is_some(), layout.into.is_some());
    group.kill().unwrap();
    child.wait().unwrap();
    group.remove().unwrap();
    assert_gone(&layout);
    let gone = Group::reopen(serde_json::from_str(&record).unwrap()).unwrap_err();
    assert!(matches!(gone, Error::Task { .. }), "{gone:?}");
}

#[test]
fn what_is_left_of_the_same_name_is_taken_away() {
    let Some(host) = detected() else { return };
    let layout = layout(&host, &Limits { memory: Some(16 * MB), ..Limits::default() }, "", "again");
    let first = Group::create(&layout).unwrap();
    let mut child = sleeper(&first);
    for leaf in layout.leaves() {
        fs::create_dir_all(leaf.join("nested/deep")).unwrap();
    }
    let _ = first.into_paths();
    let waiter = std::thread::spawn(move || child.wait().unwrap());
    let second = Group::create(&layout).unwrap();
    assert!(!waiter.join().unwrap().success());
    assert!(!second.populated().unwrap());
    drop(second);
    assert_gone(&layout);
}

#[test]
fn a_refused_write_is_named_and_taken_back() {
    let Some(host) = detected() else { return };
    let mut layout = layout(&host, &Limits { memory: Some(16 * MB), ..Limits::default() }, "", "refused");
    let write = layout.writes.iter_mut().rfind(|w| w.need == Need::Must).unwrap();
    write.value = Value::Text("nonsense".into());
    let path = write.path.clone();
    match Group::create(&layout) {
        Err(Error::Prepare { step, source }) => {
            assert_eq!(step, format!("write({path:?}, \"nonsense\")"));
            assert_eq!(source.raw_os_error(), Some(libc::EINVAL));
        }
        other => panic!("{other:?}"),
    }
    assert_gone(&layout);
}

#[test]
fn an_optional_write_only_shows() {
    let Some(host) = detected() else { return };
    let mut layout = layout(&host, &Limits::default(), "", "optional");
    let unit = layout.unit.clone().unwrap();
    let reason = crate::report::Reason { control: Control::SWAP, why: "no such file".into() };
    for need in [Need::Try, Need::Else(reason)] {
        layout.writes.push(Write { path: unit.join("no.such.file"), value: Value::Text("0".into()), need });
    }
    let group = Group::create(&layout).unwrap();
    let [shortfall] = group.shortfalls() else { panic!("{:?}", group.shortfalls()) };
    assert_eq!(shortfall.control, Control::SWAP);
    assert!(shortfall.why.starts_with("no such file: openat(AT_FDCWD, "), "{}", shortfall.why);
}

#[test]
fn an_operators_parent_goes_with_the_group_that_made_it() {
    let Some(host) = detected() else { return };
    let parent = format!("{}/cofferdam-test-{}/jobs", top(&host), std::process::id());
    let limits = Limits { memory: Some(16 * MB), ..Limits::default() };
    let (one, two) = (layout(&host, &limits, &parent, "one"), layout(&host, &limits, &parent, "two"));
    let mut first = Group::create(&one).unwrap();
    let mut second = Group::create(&two).unwrap();
    second.remove().unwrap();
    assert_gone(&two);
    assert!(one.dirs.iter().all(|d| d.path.exists()));
    first.remove().unwrap();
    assert!(!one.dirs.iter().any(|d| d.path.exists()));
}

#[test]
fn many_at_once_leave_nothing() {
    let Some(host) = detected() else { return };
    let limits = Limits { memory: Some(16 * MB), ..Limits::default() };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (host, limits) = (&host, &limits);
            scope.spawn(move || {
                for round in 0..50 {
                    let layout = layout(host, limits, "", &format!("many.{thread}.{round}"));
                    let mut group = Group::create(&layout).unwrap();
                    group.remove().unwrap();
                    assert_gone(&layout);
                }
            });
        }
    });
}

#[test]
fn too_much_memory_is_counted() {
    let Some(host) = detected() else { return };
    let layout = layout(&host, &Limits { memory: Some(4 * MB), ..Limits::default() }, "", "oom");
    let group = Group::create(&layout).unwrap();
    // It waits for a line, so that it is in the group before it starts to eat.
    let eat = "read go; x=0123456789abcdef; while :; do x=$x$x; done";
    let mut child = Command::new("sh").args(["-c", eat]).stdin(Stdio::piped()).spawn().unwrap();
    group.add(child.id()).unwrap();
    drop(child.stdin.take());
    let status = child.wait().unwrap();
    assert!(!status.success());
    assert!(group.wait_empty(LONG).unwrap());
    assert_eq!(group.oom_kills(), 1, "{status}");
    if let Some(peak) = group.memory_peak() {
        assert!((MB..=4 * MB).contains(&peak), "{peak}");
    }
    drop(group);
    assert_gone(&layout);
}

#[test]
fn a_host_without_cgroups_gets_a_group_that_says_so() {
    let mut group = Group::create(&Layout::default()).unwrap();
    assert_eq!(group.kill().unwrap_err().kind(), std::io::ErrorKind::Unsupported);
    assert!(group.into_fd().is_none());
    assert!(group.enter_fds().unwrap().is_empty());
    assert_eq!((group.oom_kills(), group.memory_current()), (0, None));
    group.remove().unwrap();
}
