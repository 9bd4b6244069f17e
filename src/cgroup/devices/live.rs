//! Filters on the kernel that the tests run on, against nodes that root made where nodes can be opened.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::*;
use crate::cgroup::tests::{create, created, detected, name_of};
use crate::cgroup::{CgroupOp, CgroupPath, Cgroups, Detection, Group, Limits, Request, lower};
use crate::report::{Control, Effect, Report};
use crate::step::OnRefusal;

/// The host, if a list can be held there.
fn host() -> Option<Detection> {
    let host = detected()?;
    if nix::unistd::geteuid().is_root() {
        return Some(host);
    }
    eprintln!("skipped: needs root, to make device nodes");
    None
}

fn cgroups(host: &Detection, rules: &[DeviceRule], name: &str) -> Cgroups {
    let (limits, parent, name) = (Limits::default(), CgroupPath::default(), name_of(name));
    let lost = OnRefusal::Degrade(vec![Effect::lost(Control::DEVICES, "")]);
    let request =
        Request { devices: rules, without_devices: &lost, ..Request::new(&limits, host, &parent, &name) };
    lower(&request, &mut Report::default()).unwrap()
}

fn rule(kind: DeviceKind, major: u32, minor: u32, access: &str) -> DeviceRule {
    let access = Access::parse(access).unwrap();
    DeviceRule { kind, major: Some(major), minor: Some(minor), access }
}

/// A directory with device nodes. Those of null, zero and full are on every host, and opening them needs
/// nothing but the right to.
fn nodes() -> tempfile::TempDir {
    let nodev = |path: &Path| statvfs(path).unwrap().flags().contains(FsFlags::ST_NODEV);
    let places = [std::env::temp_dir(), "/root".into(), "/".into()];
    let place = places.iter().find(|path| path.is_dir() && !nodev(path)).unwrap();
    let dir = tempfile::tempdir_in(place).unwrap();
    let (char, block) = (SFlag::S_IFCHR, SFlag::S_IFBLK);
    for (name, kind, major, minor) in [
        ("null", char, 1, 3),
        ("zero", char, 1, 5),
        ("full", char, 1, 7),
        ("kmsg", char, 1, 11),
        ("loop", block, 7, 0),
    ] {
        mknod(&dir.path().join(name), kind, Mode::from_bits_truncate(0o666), makedev(major, minor)).unwrap();
    }
    dir
}

/// What a shell says to each of `tries`, `< name`, `> name` or `<> name`: `ok`, `EPERM`, or its own words.
fn tries(group: Option<&Group>, dir: &Path, tries: &[&str]) -> Vec<String> {
    let one = |t: &&str| format!("said=$( (: {t}) 2>&1) && echo ok || echo \"$said\"\n");
    let script = format!("read go\n{}", tries.iter().map(one).collect::<String>());
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).current_dir(dir).env("LC_ALL", "C");
    let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    group.inspect(|group| group.add(child.id()).unwrap());
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let words =
        |line: &str| if line.contains("Operation not permitted") { "EPERM".into() } else { line.to_owned() };
    said.lines().map(words).collect()
}

/// The group, if this kernel takes the list; CI's must.
fn filtered(cgroups: &Cgroups) -> Option<Group> {
    let (group, report) = created(cgroups);
    if report.missing.is_empty() {
        return Some(group);
    }
    crate::skip::skip(&["device_cgroup"], report);
    None
}

#[test]
fn a_task_opens_what_its_list_has() {
    let Some(host) = host() else { return };
    let dir = nodes();
    let all = [
        "< null", "<> null", "< zero", "> zero", "<> zero", "< full", "> full", "< kmsg", "< loop", "> loop",
    ];
    let list = [
        rule(DeviceKind::Char, 1, 3, "rw"),
        rule(DeviceKind::Char, 1, 5, "r"),
        rule(DeviceKind::Char, 7, 0, "rwm"),
        rule(DeviceKind::Block, 1, 7, "rwm"),
    ];
    // Without a filter nothing is in the way; who may read the log or has a loop device is not asked.
    assert_eq!(tries(None, dir.path(), all.get(..7).unwrap()), ["ok"; 7]);
    let empty = create(&cgroups(&host, &[], "devices.none"));
    assert_eq!(tries(Some(&empty), dir.path(), all.get(..7).unwrap()), ["ok"; 7]);
    let Some(group) = filtered(&cgroups(&host, &list, "devices.list")) else { return };
    let no = "EPERM";
    assert_eq!(tries(Some(&group), dir.path(), &all), ["ok", "ok", "ok", no, no, no, no, no, no, no]);
    // It is this group's alone.
    assert_eq!(tries(Some(&empty), dir.path(), all.get(..7).unwrap()), ["ok"; 7]);
}

#[test]
fn every_task_has_its_six_devices_and_terminals() {
    let Some(host) = host() else { return };
    let dir = nodes();
    let cgroups = cgroups(&host, &rules([rule(DeviceKind::Char, 1, 11, "w")]), "devices.default");
    let Some(group) = filtered(&cgroups) else { return };
    let said = tries(
        Some(&group),
        dir.path(),
        &["<> null", "<> zero", "<> full", "< kmsg", "> loop", "< /dev/ptmx"],
    );
    assert_eq!(said, ["ok", "ok", "ok", "EPERM", "EPERM", "ok"]);
    // Making nodes is up to capabilities.
    let made = tries(Some(&group), dir.path(), &["< null; mknod made b 7 1", "< null; mknod made.too c 1 1"]);
    assert_eq!(made, ["ok"; 2]);
    assert_eq!(tries(Some(&group), dir.path(), &["< made", "< made.too"]), ["EPERM"; 2]);
}

#[test]
fn a_list_without_mknod_makes_no_nodes() {
    let Some(host) = host() else { return };
    let dir = nodes();
    let Some(group) = filtered(&cgroups(&host, &[rule(DeviceKind::Char, 1, 3, "rwm")], "devices.mknod"))
    else {
        return;
    };
    let make = |numbers: &str| format!("< null; mknod made.{} {numbers}", numbers.replace(' ', "."));
    let (null, full) = (make("c 1 3"), make("c 1 7"));
    assert_eq!(tries(Some(&group), dir.path(), &[&null, &full]), ["ok", "EPERM"]);
}

/// The kernel's own list has the same lines on v1; on v2 a program is on the leaf, and goes with it.
#[test]
fn the_v1_controller_has_the_list_or_the_v2_leaf_a_program() {
    let Some(host) = host() else { return };
    let list = rules([rule(DeviceKind::Block, 7, 0, "r")]);
    let cgroups = cgroups(&host, &list, "devices.where");
    let Some(mut group) = filtered(&cgroups) else { return };
    let programs = cgroups.steps.iter().filter_map(|step| match &step.op {
        CgroupOp::DeviceProgram { rules, .. } => Some(rules.clone()),
        _ => None,
    });
    let programs: Vec<Vec<DeviceRule>> = programs.collect();
    match cgroups.paths.v1.get("devices") {
        Some(leaf) => {
            let text = fs::read_to_string(leaf.join("devices.list")).unwrap();
            let expected: Vec<String> = list.iter().map(DeviceRule::to_string).collect();
            assert_eq!(text.lines().collect::<Vec<_>>(), expected);
            assert!(programs.is_empty());
        }
        None => assert_eq!(programs, [list]),
    }
    group.remove().unwrap();
    assert!(cgroups.leaves().all(|leaf| !leaf.exists()));
}

/// v1 gives a cgroup no device that the one above it does not have; on v2 nothing is refused, and both filters hold.
#[test]
fn a_device_that_the_cgroup_above_lacks_is_a_remark() {
    let Some(host) = host() else { return };
    if !host.v1.get("devices").is_some_and(|h| h.writable) {
        eprintln!("skipped: no devices controller of v1");
        return;
    }
    let (null, zero) = (rule(DeviceKind::Char, 1, 3, "rw"), rule(DeviceKind::Char, 1, 5, "rw"));
    let parent = format!("cofferdam-devices-{}", std::process::id());
    let (limits, path) = (Limits::default(), CgroupPath::new(&parent).unwrap());
    let name = name_of("devices.less");
    let request = Request { devices: &[null, zero], ..Request::new(&limits, &host, &path, &name) };
    let cgroups = lower(&request, &mut Report::default()).unwrap();
    let above = cgroups.paths.v1.get("devices").unwrap().parent().unwrap();
    fs::create_dir(above).unwrap();
    fs::write(above.join("devices.deny"), "a").unwrap();
    fs::write(above.join("devices.allow"), null.to_string()).unwrap();
    let (group, report) = created(&cgroups);
    drop(group);
    let _ = fs::remove_dir(above);
    let [less] = report.reasons.as_slice() else { panic!("{report}") };
    assert_eq!((less.control, report.missing | report.weakened), (Control::DEVICES, Control::empty()));
    let why = &less.why;
    assert!(
        why.starts_with("the task is refused \"c 1:5 rw\": write(") && why.contains("os error 1"),
        "{why}"
    );
}

#[test]
fn a_refused_device_list_is_missing_in_the_report_and_no_error() {
    let Some(host) = host() else { return };
    let mut cgroups = cgroups(&host, &rules([]), "devices.refused");
    for step in &mut cgroups.steps {
        if let CgroupOp::DeviceFiles { cgroup, .. } = &mut step.op {
            cgroup.push("none");
        }
    }
    let made = std::thread::spawn(move || {
        crate::sys::refuse::refuse(libc::SYS_bpf, nix::errno::Errno::EPERM);
        created(&cgroups).1
    });
    let report = made.join().unwrap();
    let [lost] = report.reasons.as_slice() else { panic!("{report}") };
    assert_eq!((lost.control, report.missing), (Control::DEVICES, Control::DEVICES));
    let why = &lost.why;
    assert!(why.contains("none/devices.deny") || why.starts_with("bpf(BPF_PROG_LOAD, "), "{why}");
}
