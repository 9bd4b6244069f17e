//! Tests of groups on the running kernel. Each test creates and removes cgroups of its own only.

#![allow(clippy::arithmetic_side_effects)]

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::super::fs::{Dir, children, open_dir};
use super::super::group::kill::kill_each;
use super::super::v1::oom::stalls;
use super::*;
use crate::error::Error;
use crate::report::{Control, Effect, Reason};
use crate::step::{OnRefusal, Step};

#[test]
fn every_limit_is_written_and_every_cgroup_is_removed() {
    let Some(host) = detected() else { return };
    let limits = Limits {
        cpu_shares: Some(512),
        cores: "0".parse().unwrap(),
        exclusive: true,
        memory: Some(32 * MB),
        memory_max: Some(MemoryMax::Bytes(64 * MB)),
        pids_max: Some(7),
        ..Limits::default()
    };
    // Below a parent of its own: other tests may have reserved the CPU below theirs.
    let parent = format!("{}/cofferdam-limits-{}", top(&host), std::process::id());
    let (cgroups, lowered) = lowered(&host, &limits, &parent, "limits");
    assert_eq!(lowered.missing, Control::empty(), "{lowered}");
    let (mut group, made) = created(&cgroups);
    assert_eq!(made.missing | made.weakened, Control::empty(), "{made}");
    let mut compared = 0;
    for step in cgroups.steps.iter().filter(|step| step.on_refusal == OnRefusal::Fail) {
        let CgroupOp::Write { file, text } = &step.op else { continue };
        if !file.ends_with("cgroup.subtree_control") {
            assert_eq!(&read(file), text, "{file:?}");
            compared += 1;
        }
    }
    assert!(compared >= 3, "{cgroups:#?}");
    let reserved = cgroups.steps.iter().find_map(|step| match &step.op {
        CgroupOp::Reserve(reserve) => Some(reserve.leaf.join("cpuset.cpus")),
        _ => None,
    });
    assert_eq!(read(&reserved.unwrap()), "0");
    let mut child = sleeper(&group);
    assert_eq!(group.pids().unwrap(), [i32::try_from(child.id()).unwrap()]);
    for leaf in cgroups.leaves() {
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
    assert_gone(&cgroups);
}

/// The current values of the control files that an update writes.
fn values(group: &Group) -> Vec<String> {
    let read = |dir: Option<Dir<'_>>, file: &str| dir.and_then(|dir| dir.read(file).ok());
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
fn an_update_changes_limits_and_reverts_them_after_a_refusal() {
    let Some(host) = detected() else { return };
    let first = Limits {
        memory: Some(32 * MB),
        cpu_max: Some(CpuMax { burst: 10_000, ..CpuMax::new(50_000) }),
        pids_max: Some(7),
        ..Limits::default()
    };
    let cgroups = super::cgroups(&host, &first, "", "update");
    let mut group = create(&cgroups);
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
        assert_eq!(updated.enforced, other.asked(), "{updated}");
        let quota = quota(&(memory * 1000).to_string());
        assert_eq!(values(&group), [(memory * MB).to_string(), quota, memory.to_string()]);
    }
    group.update(&first).unwrap();
    assert_eq!(values(&group), before);
    // A device that does not exist.
    let io_max = vec![IoMax { device: "999999:9".into(), read_bps: Some(1), ..IoMax::default() }];
    let wrong = Limits { io_max, memory: Some(64 * MB), ..first.clone() };
    // The refusal is reported by every update, not only when the limit changes.
    for _ in 0..2 {
        let updated = group.update(&wrong).unwrap();
        let refused = |r: &Reason| r.control == Control::IO && r.why.contains("I/O limit not set (");
        assert!(updated.reasons.iter().any(refused), "{updated}");
        assert_eq!(updated.missing | updated.weakened, Control::IO, "{updated}");
    }
    // The kernel has no pages of this size, so the memory limit that was written before is reverted. If no hierarchy
    // has the controller, nothing is written.
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
    assert_eq!(lifted, Report::default());
    let none = values(&group);
    assert!(none[0] == "max" || none[0].parse::<u64>().is_ok_and(|n| n > 1 << 60), "{none:?}");
    assert!(none[1] == "-1" || none[1] == "max 100000", "{none:?}");
    assert_eq!(none[2], "max");
    group.kill().unwrap();
    child.wait().unwrap();
    group.remove().unwrap();
    assert_gone(&cgroups);
}

#[test]
fn the_report_notes_a_value_that_the_kernel_changed() {
    let Some(host) = detected() else { return };
    let limits = Limits { memory: Some(16 * MB + 5), ..Limits::default() };
    let (_group, report) = created(&cgroups(&host, &limits, "", "changed"));
    assert_eq!(report.missing | report.weakened, Control::empty(), "{report}");
    assert!(report.why(Control::MEMORY).contains("16777216"), "{report}");
}

#[test]
fn an_update_enables_a_v2_controller_and_is_refused_without_the_v1_hierarchy() {
    let Some(host) = detected() else { return };
    let cgroups = super::cgroups(&host, &Limits { memory: Some(16 * MB), ..Limits::default() }, "", "late");
    let mut group = create(&cgroups);
    let with_pids = Limits { pids_max: Some(5), memory: Some(16 * MB), ..Limits::default() };
    match (host.limits_on, group.update(&with_pids)) {
        (Version::V1, Err(Error::Unsupported { control, reason })) => {
            assert_eq!(control, Control::PIDS);
            assert!(reason.contains("pids") && reason.contains("accounting"), "{reason}");
        }
        (Version::V2, Ok(updated)) => {
            assert_eq!(updated.enforced, with_pids.asked(), "{updated}");
            assert_eq!(values(&group)[2], "5");
            // Memory that was in use before is not counted, and the report says so.
            let mut group = create(&super::cgroups(&host, &Limits::default(), "", "uncounted"));
            let late = group.update(&Limits { memory: Some(16 * MB), ..Limits::default() }).unwrap();
            assert_eq!(late.weakened, Control::MEMORY, "{late}");
        }
        (_, other) => panic!("{other:?}"),
    }
    drop(group);
    let all = Limits { accounting: true, ..Limits::default() };
    let cgroups = super::cgroups(&host, &all, "", "counted");
    let mut group = create(&cgroups);
    group.update(&Limits { accounting: true, ..with_pids }).unwrap();
    assert_eq!((values(&group)[0].as_str(), values(&group)[2].as_str()), ("16777216", "5"));
    drop(group);
    assert_gone(&cgroups);
}

#[test]
fn dropping_a_group_kills_its_processes_and_removes_it() {
    let Some(host) = detected() else { return };
    let cgroups = super::cgroups(&host, &Limits { memory: Some(16 * MB), ..Limits::default() }, "", "drop");
    let group = create(&cgroups);
    let mut child = sleeper(&group);
    // Reaped by another thread, as init would be: a zombie does not prevent rmdir on v2, but it does on v1.
    let waiter = std::thread::spawn(move || child.wait().unwrap());
    let start = Instant::now();
    drop(group);
    assert!(!waiter.join().unwrap().success());
    assert!(start.elapsed() < LONG);
    assert_gone(&cgroups);
}

#[test]
fn every_process_is_killed_without_cgroup_kill() {
    let Some(host) = detected() else { return };
    let cgroups = super::cgroups(&host, &Limits::default(), "", "each");
    let mut group = create(&cgroups);
    let children: Vec<Child> = (0..5).map(|_| sleeper(&group)).collect();
    let waiter = std::thread::spawn(|| {
        children.into_iter().for_each(|mut child| assert!(!child.wait().unwrap().success()));
    });
    let dir = open_dir(cgroups.paths.unit.as_ref().unwrap()).unwrap();
    kill_each(dir.as_fd(), LONG).unwrap();
    waiter.join().unwrap();
    assert!(!group.populated().unwrap());
    group.remove().unwrap();
    assert_gone(&cgroups);
}

#[test]
fn a_released_group_can_be_reopened() {
    let Some(host) = detected() else { return };
    let cgroups = super::cgroups(&host, &Limits { pids_max: Some(5), ..Limits::default() }, "", "reopen");
    let group = create(&cgroups);
    let mut child = sleeper(&group);
    let record = serde_json::to_string(&group.into_paths()).unwrap();
    assert!(cgroups.leaves().all(Path::exists));
    let mut group = Group::reopen(serde_json::from_str(&record).unwrap()).unwrap();
    // One more while another test reserves CPUs: the shared cpuset.
    let more = group.enter_fds().unwrap().len().checked_sub(cgroups.paths.enter.len()).unwrap();
    assert!(more <= usize::from(cgroups.paths.share_tasks().is_some()), "{more}");
    assert_eq!(group.into_fd().is_some(), cgroups.paths.into);
    group.kill().unwrap();
    child.wait().unwrap();
    group.remove().unwrap();
    assert_gone(&cgroups);
    let gone = Group::reopen(serde_json::from_str(&record).unwrap()).unwrap_err();
    assert!(matches!(gone, Error::Task { .. }), "{gone:?}");
}

#[test]
fn a_stale_group_of_the_same_name_is_removed() {
    let Some(host) = detected() else { return };
    let cgroups = super::cgroups(&host, &Limits { memory: Some(16 * MB), ..Limits::default() }, "", "again");
    let first = create(&cgroups);
    let mut child = sleeper(&first);
    for leaf in cgroups.leaves() {
        fs::create_dir_all(leaf.join("nested/deep")).unwrap();
    }
    let _ = first.into_paths();
    let waiter = std::thread::spawn(move || child.wait().unwrap());
    let second = create(&cgroups);
    assert!(!waiter.join().unwrap().success());
    assert!(!second.populated().unwrap());
    drop(second);
    assert_gone(&cgroups);
}

#[test]
fn a_refused_write_is_named_and_everything_is_removed() {
    let Some(host) = detected() else { return };
    let mut cgroups =
        super::cgroups(&host, &Limits { memory: Some(16 * MB), ..Limits::default() }, "", "refused");
    let required = cgroups.steps.iter_mut().filter(|step| step.on_refusal == OnRefusal::Fail);
    let last = required.rev().find_map(|step| match &mut step.op {
        CgroupOp::Write { file, text } => Some((file, text)),
        _ => None,
    });
    let (path, text) = last.unwrap();
    let path = path.clone();
    *text = "nonsense".into();
    match Group::create(&cgroups, &mut Report::default()) {
        Err(Error::Prepare { step, source }) => {
            assert_eq!(step, format!("write({path:?}, \"nonsense\")"));
            assert_eq!(source.raw_os_error(), Some(libc::EINVAL));
        }
        other => panic!("{other:?}"),
    }
    assert_gone(&cgroups);
}

#[test]
fn a_refused_step_is_skipped_or_degraded_as_its_plan_says() {
    let Some(host) = detected() else { return };
    let mut cgroups = super::cgroups(&host, &Limits::default(), "", "optional");
    let file = cgroups.paths.unit.as_ref().unwrap().join("no.such.file");
    let lost = OnRefusal::Degrade(vec![Effect::lost(Control::SWAP, "no such file")]);
    for on_refusal in [OnRefusal::Skip, lost] {
        let op = CgroupOp::Write { file: file.clone(), text: "0".into() };
        cgroups.steps.push(Step::of(Control::SWAP, op).on_refusal(on_refusal));
    }
    let (_group, report) = created(&cgroups);
    let [lost] = report.reasons.as_slice() else { panic!("{report}") };
    assert_eq!((lost.control, report.missing), (Control::SWAP, Control::SWAP));
    assert!(lost.why.starts_with("no such file: openat(AT_FDCWD, "), "{}", lost.why);
}

#[test]
fn a_parent_that_groups_have_created_is_removed_by_the_last_and_an_operators_own_stays() {
    let Some(host) = detected() else { return };
    let parent = format!("{}/cofferdam-test-{}/jobs", top(&host), std::process::id());
    let limits = Limits { memory: Some(16 * MB), ..Limits::default() };
    let (one, two) = (cgroups(&host, &limits, &parent, "one"), cgroups(&host, &limits, &parent, "two"));
    let dirs: Vec<&Path> = one
        .steps
        .iter()
        .flat_map(|step| match &step.op {
            CgroupOp::Make(dirs) => dirs.as_slice(),
            _ => &[],
        })
        .map(|dir| dir.path.as_path())
        .collect();
    for first_ends_first in [false, true] {
        let (first, second) = (create(&one), create(&two));
        let (mut earlier, mut later) = if first_ends_first { (first, second) } else { (second, first) };
        earlier.remove().unwrap();
        let parents =
            || dirs.iter().filter(|dir| !dir.ends_with("test") && !one.leaves().any(|leaf| leaf == **dir));
        assert!(dirs.len() > 3 && parents().all(|dir| dir.exists()), "{dirs:?}");
        later.remove().unwrap();
        assert!(!dirs.iter().any(|dir| dir.exists()), "{dirs:?}");
    }
    // The operator made the upper one.
    let own =
        dirs.iter().find(|dir| dir.ends_with(format!("cofferdam-test-{}", std::process::id()))).unwrap();
    fs::create_dir(own).unwrap();
    create(&one).remove().unwrap();
    assert!(own.exists());
    fs::remove_dir(own).unwrap();
}

#[test]
fn concurrent_groups_leave_nothing() {
    let Some(host) = detected() else { return };
    let limits = Limits { memory: Some(16 * MB), ..Limits::default() };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (host, limits) = (&host, &limits);
            scope.spawn(move || {
                for round in 0..50 {
                    let cgroups = cgroups(host, limits, "", &format!("many.{thread}.{round}"));
                    let mut group = create(&cgroups);
                    group.remove().unwrap();
                    assert_gone(&cgroups);
                }
            });
        }
    });
}

#[test]
fn an_oom_kill_is_counted_and_ascribed_to_the_tasks_limit() {
    let Some(host) = detected() else { return };
    let cgroups = super::cgroups(&host, &Limits { memory: Some(4 * MB), ..Limits::default() }, "", "oom");
    let before = stalls();
    let group = create(&cgroups);
    // The shell waits for a line, so that it is in the group before it uses memory.
    let eat = "read go; x=0123456789abcdef; while :; do x=$x$x; done";
    let mut child = Command::new("sh").args(["-c", eat]).stdin(Stdio::piped()).spawn().unwrap();
    group.add(child.id()).unwrap();
    drop(child.stdin.take());
    let status = child.wait().unwrap();
    assert!(!status.success());
    assert!(group.wait_empty(LONG).unwrap());
    assert_eq!(group.oom_kills(), 1, "{status}");
    let oom = group.oom().unwrap();
    // If the host was short of memory as well, v1 cannot tell which limit was exceeded.
    let known = host.limits_on == Version::V2 || before == stalls();
    assert!(oom.limit == OomLimit::Own || (!known && oom.limit == OomLimit::Unknown), "{oom}");
    // The record contains the counters from before the task, so a reopened group gives the same answer.
    let record = serde_json::to_string(group.paths()).unwrap();
    let again = Group::reopen(serde_json::from_str(&record).unwrap()).unwrap();
    assert_eq!(again.oom(), Some(oom));
    let _ = again.into_paths();
    if let Some(peak) = group.stats().unwrap().memory.peak {
        assert!((MB..=4 * MB).contains(&peak), "{peak}");
    }
    drop(group);
    assert_gone(&cgroups);
}

/// Every cgroup below `dir`, sorted.
fn below(dir: &Path) -> Vec<std::path::PathBuf> {
    let Some(children) = children(dir).unwrap() else { return Vec::new() };
    let mut found: Vec<_> =
        children.into_iter().flat_map(|dir| [vec![dir.clone()], below(&dir)].concat()).collect();
    found.sort();
    found
}

#[test]
fn printing_the_calls_makes_no_call() {
    let Some(host) = detected() else { return };
    let parent = format!("{}/cofferdam-print-{}", top(&host), std::process::id());
    let limits =
        Limits { memory: Some(16 * MB), pids_max: Some(9), cores: "0".parse().unwrap(), ..Limits::default() };
    let plain = Limits { memory: Some(16 * MB), ..Limits::default() };
    // The parent and cgroups of the same names exist.
    let (one, two) = (cgroups(&host, &limits, &parent, "one"), cgroups(&host, &plain, &parent, "two"));
    let before = [one.calls(), two.calls()];
    let (reserves, group) = (create(&one), create(&two));
    let places: Vec<&Path> =
        [&one, &two].into_iter().flat_map(|c| c.leaves()).filter_map(Path::parent).collect();
    let state =
        || places.iter().map(|place| (below(place), read(&place.join("cgroup.procs")))).collect::<Vec<_>>();
    let then = state();
    let printed = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // Refuses every call that creates, opens, removes or locks a cgroup. The thread cannot access anything any
            // more.
            for call in
                [libc::SYS_openat, libc::SYS_mkdir, libc::SYS_rmdir, libc::SYS_flock, libc::SYS_fsetxattr]
            {
                crate::sys::refuse::refuse(call, nix::errno::Errno::EIO);
            }
            assert!(fs::read_dir("/").is_err(), "the refusal holds");
            [one.calls(), two.calls()]
        });
        thread.join().unwrap()
    });
    assert_eq!(printed, before);
    assert_eq!(state(), then);
    // The group that created the parents is removed last.
    drop((group, reserves));
    assert_gone(&one);
    assert_gone(&two);
}

#[test]
fn without_cgroups_a_group_is_empty_and_its_operations_are_unsupported() {
    let mut group = create(&Cgroups::default());
    assert_eq!(group.kill().unwrap_err().kind(), std::io::ErrorKind::Unsupported);
    assert!(group.into_fd().is_none());
    assert!(group.enter_fds().unwrap().is_empty());
    assert_eq!((group.oom_kills(), group.oom()), (0, None));
    let error = group.events(None, &EventOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Task { source, .. } if source.kind() == std::io::ErrorKind::Unsupported));
    group.remove().unwrap();
}
