//! Device lists on the running kernel. Root makes the nodes, in a directory that is not mounted `nodev`.

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

/// The host, if this user can make device nodes there.
fn host() -> Option<Detection> {
    let host = detected()?;
    if nix::unistd::geteuid().is_root() {
        return Some(host);
    }
    crate::skip::note("needs root, to make device nodes");
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

/// A temporary directory with device nodes. The devices null, zero and full exist on every host, and opening them
/// requires only permission.
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

/// Runs `tries` in a shell that is in `group`: redirections `< name`, `> name` or `<> name`. Returns for each `ok`,
/// `EPERM`, or the shell's message.
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

/// The group, if this kernel accepts the device list. In CI it must.
fn filtered(cgroups: &Cgroups) -> Option<Group> {
    let (group, report) = created(cgroups);
    if report.missing.is_empty() {
        return Some(group);
    }
    crate::skip::skip(&["device_cgroup"], report);
    None
}

#[test]
fn task_opens_only_the_devices_of_its_list() {
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
    // Without a list these are allowed. kmsg and loop are left out: they may need privileges, or not exist.
    assert_eq!(tries(None, dir.path(), all.get(..7).unwrap()), ["ok"; 7]);
    let empty = create(&cgroups(&host, &[], "devices.none"));
    assert_eq!(tries(Some(&empty), dir.path(), all.get(..7).unwrap()), ["ok"; 7]);
    let Some(group) = filtered(&cgroups(&host, &list, "devices.list")) else { return };
    let no = "EPERM";
    assert_eq!(tries(Some(&group), dir.path(), &all), ["ok", "ok", "ok", no, no, no, no, no, no, no]);
    // The list applies to this group only.
    assert_eq!(tries(Some(&empty), dir.path(), all.get(..7).unwrap()), ["ok"; 7]);
}

#[test]
fn default_list_opens_dev_and_refuses_other_devices() {
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
    // The default list allows mknod of any device; only capabilities restrict it.
    let made = tries(Some(&group), dir.path(), &["< null; mknod made b 7 1", "< null; mknod made.too c 1 1"]);
    assert_eq!(made, ["ok"; 2]);
    assert_eq!(tries(Some(&group), dir.path(), &["< made", "< made.too"]), ["EPERM"; 2]);
}

#[test]
fn list_without_mknod_refuses_mknod() {
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

/// On v1 `devices.list` has the same rules. On v2 the leaf has a program, which is removed with it.
#[test]
fn list_is_in_the_v1_controller_or_in_a_v2_program() {
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

/// v1 refuses a cgroup a device that its parent lacks. v2 refuses nothing, and the programs of both cgroups apply.
#[test]
fn device_that_the_v1_parent_lacks_is_noted_in_the_report() {
    let Some(host) = host() else { return };
    if !host.v1.get("devices").is_some_and(|h| h.writable) {
        crate::skip::note("no devices controller of v1");
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
        why.starts_with("device access \"c 1:5 rw\" is denied: write(") && why.contains("os error 1"),
        "{why}"
    );
}

#[test]
fn refused_device_list_is_reported_as_missing_without_an_error() {
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
