//! Groups on the kernel that the tests run on. Each test makes and removes cgroups of its own only.

#![allow(clippy::arithmetic_side_effects)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;
use crate::error::Error;
use crate::report::{Control, Reason};

const MB: u64 = 1 << 20;
pub(super) const LONG: Duration = Duration::from_secs(10);

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

/// Whether this is an emulated machine, on which everything takes 20 times as long.
pub(super) fn emulated() -> bool {
    std::env::var_os("COFFERDAM_EMULATED").is_some()
}

/// A name that no other process's tests use.
pub(super) fn name_of(name: &str) -> CgroupName {
    CgroupName::new(&format!("test.{}.{name}", std::process::id())).unwrap()
}

pub(super) fn layout(host: &Detection, limits: &Limits, parent: &str, name: &str) -> Layout {
    lower(&Request::new(limits, host, &CgroupPath::new(parent).unwrap(), &name_of(name)))
}

/// A program in the group; the test itself must never be.
pub(super) fn sleeper(group: &Group) -> Child {
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

pub(super) fn assert_gone(layout: &Layout) {
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
        ..Limits::default()
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
    assert!(group.stats().unwrap().memory.usage.is_some());
    assert_eq!(group.oom_kills(), 0);
    assert!(!group.wait_empty(Duration::from_millis(5)).unwrap());
    group.kill().unwrap();
    child.wait().unwrap();
    assert!(group.wait_empty(LONG).unwrap());
    group.remove().unwrap();
    assert_gone(&layout);
}

/// What the files of the group say now, of those that an update writes.
fn values(group: &Group) -> Vec<String> {
    let read = |place: Option<place::Place<'_>>, file: &str| place.and_then(|p| p.read(file).ok());
    let (v1, tree) = (|controller: &str| group.v1(controller), || group.tree());
    [
        read(v1("memory"), "memory.limit_in_bytes").or_else(|| read(tree(), "memory.max")),
        read(v1("cpu"), "cpu.cfs_quota_us").or_else(|| read(tree(), "cpu.max")),
        read(v1("pids").or_else(tree), "pids.max"),
    ]
    .map(|text| text.unwrap_or_else(|| "no file".into()).trim().to_owned())
    .into()
}

#[test]
fn limits_change_while_the_task_runs_and_are_as_before_after_a_refusal() {
    let Some(host) = detected() else { return };
    let first = Limits {
        memory: Some(32 * MB),
        cpu_max: Some(CpuMax { burst: 10_000, ..CpuMax::new(50_000) }),
        pids_max: Some(7),
        ..Limits::default()
    };
    let layout = layout(&host, &first, "", "update");
    let mut group = Group::create(&layout).unwrap();
    let mut child = sleeper(&group);
    let quota =
        |text: &str| if host.limits_on == Version::V1 { text.into() } else { format!("{text} 100000") };
    let before = [(32 * MB).to_string(), quota("50000"), "7".to_owned()];
    assert_eq!(values(&group), before);
    for memory in [64, 16] {
        let other = Limits {
            memory: Some(memory * MB),
            cpu_max: Some(CpuMax { burst: 4000, ..CpuMax::new(memory * 1000) }),
            pids_max: Some(memory),
            ..Limits::default()
        };
        let updated = group.update(&other).unwrap();
        assert_eq!(updated.shortfalls, [], "{updated:?}");
        let quota = quota(&(memory * 1000).to_string());
        assert_eq!(values(&group), [(memory * MB).to_string(), quota, memory.to_string()]);
    }
    group.update(&first).unwrap();
    assert_eq!(values(&group), before);
    // A device that is not there.
    let io_max = vec![IoMax { device: "999999:9".into(), read_bps: Some(1), ..IoMax::default() }];
    let wrong = Limits { io_max, memory: Some(64 * MB), ..first.clone() };
    // Said as often as it is asked for, and not only when it changes.
    for _ in 0..2 {
        let updated = group.update(&wrong).unwrap();
        let refused = |r: &Reason| r.control == Control::IO && r.why.contains("throttles no block devices: ");
        assert!(updated.shortfalls.iter().any(refused), "{updated:?}");
        assert!(updated.shortfalls.iter().all(|r| r.control == Control::IO), "{updated:?}");
    }
    // No such pages: the memory that was given first is taken back. Where no hierarchy has the controller, nothing is.
    let hugetlb = [("3MB".to_owned(), 0)].into();
    let refused = Limits { memory: Some(128 * MB), hugetlb, ..first.clone() };
    match group.update(&refused) {
        Err(Error::Task { step, source }) => {
            assert!(step.contains("hugetlb.3MB"), "{step}");
            assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
        }
        Err(Error::Unsupported { control, .. }) => assert_eq!(control, Control::HUGETLB),
        other => panic!("{other:?}"),
    }
    assert_eq!(values(&group)[..2], [(64 * MB).to_string(), quota("50000")]);
    let lifted = group.update(&Limits::default()).unwrap();
    assert_eq!(lifted.shortfalls, []);
    let none = values(&group);
    assert!(none[0] == "max" || none[0].parse::<u64>().is_ok_and(|n| n > 1 << 60), "{none:?}");
    assert!(none[1] == "-1" || none[1] == "max 100000", "{none:?}");
    assert_eq!(none[2], "max");
    group.kill().unwrap();
    child.wait().unwrap();
    group.remove().unwrap();
    assert_gone(&layout);
}

#[test]
fn what_the_kernel_makes_of_a_value_is_told() {
    let Some(host) = detected() else { return };
    let layout = layout(&host, &Limits { memory: Some(16 * MB + 5), ..Limits::default() }, "", "changed");
    let group = Group::create(&layout).unwrap();
    assert_eq!(group.shortfalls(), []);
    let told = group.changed();
    assert!(told.iter().any(|r| r.control == Control::MEMORY && r.why.contains("16777216")), "{told:?}");
}

#[test]
fn an_update_needs_the_hierarchy_or_enables_the_controller() {
    let Some(host) = detected() else { return };
    let layout = layout(&host, &Limits { memory: Some(16 * MB), ..Limits::default() }, "", "late");
    let mut group = Group::create(&layout).unwrap();
    let with_pids = Limits { pids_max: Some(5), memory: Some(16 * MB), ..Limits::default() };
    match (host.limits_on, group.update(&with_pids)) {
        (Version::V1, Err(Error::Unsupported { control, reason })) => {
            assert_eq!(control, Control::PIDS);
            assert!(reason.contains("pids") && reason.contains("accounting"), "{reason}");
        }
        (Version::V2, Ok(updated)) => {
            assert_eq!(updated.shortfalls, []);
            assert_eq!(values(&group)[2], "5");
            // Memory that is in use before is not counted, and that is said.
            let unlimited = super::live::layout(&host, &Limits::default(), "", "uncounted");
            let mut group = Group::create(&unlimited).unwrap();
            let late = group.update(&Limits { memory: Some(16 * MB), ..Limits::default() }).unwrap();
            assert!(late.shortfalls.iter().any(|r| r.control == Control::MEMORY), "{late:?}");
        }
        (_, other) => panic!("{other:?}"),
    }
    drop(group);
    let all = Limits { accounting: true, ..Limits::default() };
    let layout = super::live::layout(&host, &all, "", "counted");
    let mut group = Group::create(&layout).unwrap();
    group.update(&Limits { accounting: true, ..with_pids }).unwrap();
    assert_eq!((values(&group)[0].as_str(), values(&group)[2].as_str()), ("16777216", "5"));
    drop(group);
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
    let stalls = oom::stalls();
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
    let oom = group.oom().unwrap();
    // Where the host was short of memory as well, v1 does not know.
    let told = host.limits_on == Version::V2 || stalls == oom::stalls();
    assert!(oom.limit == OomLimit::Own || (!told && oom.limit == OomLimit::Unknown), "{oom}");
    // The record has what was counted above before, so that the answer is the same later.
    let record = serde_json::to_string(group.paths()).unwrap();
    let again = Group::reopen(serde_json::from_str(&record).unwrap()).unwrap();
    assert_eq!(again.oom(), Some(oom));
    let _ = again.into_paths();
    if let Some(peak) = group.stats().unwrap().memory.peak {
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
    assert_eq!((group.oom_kills(), group.oom()), (0, None));
    let error = group.events(None, &EventOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Task { source, .. } if source.kind() == std::io::ErrorKind::Unsupported));
    group.remove().unwrap();
}
