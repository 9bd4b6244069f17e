//! Tests of the system calls of a task's cgroups as a plan prints them.

#![allow(clippy::arithmetic_side_effects)]

use super::golden::{hierarchies, host, lowered, text};
use super::*;
use crate::report::{Control, Effect};
use crate::step::OnRefusal;

/// The calls of the steps that `pick` selects.
fn calls(limits: &Limits, mode: Mode, pick: fn(&CgroupOp) -> bool) -> String {
    let (cgroups, _) = lowered(limits, &host(mode), "");
    let steps = cgroups.steps.iter().filter(|step| pick(&step.op));
    steps.flat_map(|step| step.op.calls()).collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn check(limits: &Limits, mode: Mode, pick: fn(&CgroupOp) -> bool, expected: &str) {
    assert_eq!(calls(limits, mode, pick), expected.trim());
}

#[test]
fn recorded_calls_have_the_format_of_strace() {
    let limits = Limits { cores: "0".parse().unwrap(), ..Limits::default() };
    check(
        &limits,
        Mode::Hybrid,
        |_| true,
        r#"
openat(AT_FDCWD, "/cg/unified/cofferdam.slice/share.slice/x.scope", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve/x", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
mkdir("/cg/unified/cofferdam.slice", 0711)
mkdir("/cg/unified/cofferdam.slice/reserve.slice", 0711)
mkdir("/cg/unified/cofferdam.slice/reserve.slice/x.scope", 0711)
openat(AT_FDCWD, "/cg/unified/cofferdam.slice/reserve.slice/x.scope", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
flock("/cg/unified/cofferdam.slice/reserve.slice/x.scope", LOCK_EX|LOCK_NB)
flock("/cg/unified/cofferdam.slice/reserve.slice/x.scope", LOCK_SH|LOCK_NB)
mkdir("/cg/cpuset/cofferdam", 0711)
openat(AT_FDCWD, "/cg/cpuset/cofferdam", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
flock("/cg/cpuset/cofferdam", LOCK_EX|LOCK_NB)
openat(AT_FDCWD, "/cg/cpuset/cofferdam/cpuset.mems", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cpuset/cpuset.mems", O_RDONLY|O_CLOEXEC) # if the file is empty
openat(AT_FDCWD, "/cg/cpuset/cofferdam/cpuset.mems", O_WRONLY|O_CLOEXEC) # if the file is empty
write("/cg/cpuset/cofferdam/cpuset.mems", <content of "/cg/cpuset/cpuset.mems">) # if the file is empty
openat(AT_FDCWD, "/cg/cpuset/cofferdam/cpuset.cpus", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cpuset/cpuset.cpus", O_RDONLY|O_CLOEXEC) # if the file is empty
openat(AT_FDCWD, "/cg/cpuset/cofferdam/cpuset.cpus", O_WRONLY|O_CLOEXEC) # if the file is empty
write("/cg/cpuset/cofferdam/cpuset.cpus", <content of "/cg/cpuset/cpuset.cpus">) # if the file is empty
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
mkdir("/cg/cpuset/cofferdam/reserve", 0711)
openat(AT_FDCWD, "/cg/cpuset/cofferdam/cpuset.effective_cpus", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve/cpuset.mems", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cpuset/cofferdam/cpuset.mems", O_RDONLY|O_CLOEXEC) # if the file is empty
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve/cpuset.mems", O_WRONLY|O_CLOEXEC) # if the file is empty
write("/cg/cpuset/cofferdam/reserve/cpuset.mems", <content of "/cg/cpuset/cofferdam/cpuset.mems">) # if the file is empty
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve/cpuset.cpus", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve/cpuset.cpus", O_WRONLY|O_CLOEXEC) # if the file lists other CPUs
write("/cg/cpuset/cofferdam/reserve/cpuset.cpus", <usable CPUs>) # if the file lists other CPUs
openat(AT_FDCWD, "/cg/cpuset/cofferdam/share/cpuset.cpus", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cpuset/cofferdam/share/cpuset.cpus", O_WRONLY|O_CLOEXEC) # if the file lists other CPUs
write("/cg/cpuset/cofferdam/share/cpuset.cpus", <unreserved CPUs>) # if the file lists other CPUs
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve/x/cpuset.cpus", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve/x/cpuset.cpus", O_WRONLY|O_CLOEXEC) # if the file lists other CPUs
write("/cg/cpuset/cofferdam/reserve/x/cpuset.cpus", <CPUs 0 and unreserved CPUs>) # if the file lists other CPUs
mkdir("/cg/cpuset/cofferdam/reserve/x", 0711)
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve/x", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
flock("/cg/cpuset/cofferdam/reserve/x", LOCK_SH|LOCK_NB)
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve/x", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
fsetxattr("/cg/cpuset/cofferdam/reserve/x", "user.cofferdam.cores", "0")
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve/x/cpuset.mems", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve/cpuset.mems", O_RDONLY|O_CLOEXEC) # if the file is empty
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve/x/cpuset.mems", O_WRONLY|O_CLOEXEC) # if the file is empty
write("/cg/cpuset/cofferdam/reserve/x/cpuset.mems", <content of "/cg/cpuset/cofferdam/reserve/cpuset.mems">) # if the file is empty
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve/x/cpuset.cpus", O_WRONLY|O_CLOEXEC)
write("/cg/cpuset/cofferdam/reserve/x/cpuset.cpus", <CPUs 0 and unreserved CPUs>)"#,
    );
}

#[test]
fn recorded_calls_of_a_reservation_have_the_format_of_strace() {
    let limits = Limits { cores: "1-2".parse().unwrap(), exclusive: true, ..Limits::default() };
    check(
        &limits,
        Mode::V2,
        |op| matches!(op, CgroupOp::Reserve(_)),
        r#"
mkdir("/cg/cofferdam.slice", 0711)
openat(AT_FDCWD, "/cg/cofferdam.slice", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
flock("/cg/cofferdam.slice", LOCK_EX|LOCK_NB)
openat(AT_FDCWD, "/cg/cgroup.subtree_control", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cgroup.subtree_control", O_WRONLY|O_CLOEXEC) # if the controller is not enabled yet
write("/cg/cgroup.subtree_control", "+cpuset") # if the controller is not enabled yet
openat(AT_FDCWD, "/cg/cofferdam.slice/cgroup.subtree_control", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cofferdam.slice/cgroup.subtree_control", O_WRONLY|O_CLOEXEC) # if the controller is not enabled yet
write("/cg/cofferdam.slice/cgroup.subtree_control", "+cpuset") # if the controller is not enabled yet
openat(AT_FDCWD, "/cg/cofferdam.slice/reserve.slice", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
mkdir("/cg/cofferdam.slice/reserve.slice", 0711)
openat(AT_FDCWD, "/cg/cofferdam.slice/cpuset.cpus.effective", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cofferdam.slice/reserve.slice/cgroup.subtree_control", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cofferdam.slice/reserve.slice/cgroup.subtree_control", O_WRONLY|O_CLOEXEC) # if the controller is not enabled yet
write("/cg/cofferdam.slice/reserve.slice/cgroup.subtree_control", "+cpuset") # if the controller is not enabled yet
openat(AT_FDCWD, "/cg/cofferdam.slice/share.slice/cpuset.cpus", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cofferdam.slice/share.slice/cpuset.cpus", O_WRONLY|O_CLOEXEC) # if the file lists other CPUs
write("/cg/cofferdam.slice/share.slice/cpuset.cpus", <unreserved CPUs>) # if the file lists other CPUs
openat(AT_FDCWD, "/cg/cofferdam.slice/reserve.slice/x.scope/cpuset.cpus", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cofferdam.slice/reserve.slice/x.scope/cpuset.cpus", O_WRONLY|O_CLOEXEC) # if the file lists other CPUs
write("/cg/cofferdam.slice/reserve.slice/x.scope/cpuset.cpus", "1-2") # if the file lists other CPUs
mkdir("/cg/cofferdam.slice/reserve.slice/x.scope", 0711)
openat(AT_FDCWD, "/cg/cofferdam.slice/reserve.slice/x.scope", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
flock("/cg/cofferdam.slice/reserve.slice/x.scope", LOCK_SH|LOCK_NB)
openat(AT_FDCWD, "/cg/cofferdam.slice/reserve.slice/x.scope", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
fsetxattr("/cg/cofferdam.slice/reserve.slice/x.scope", "user.cofferdam.cores", "1-2 exclusive")
openat(AT_FDCWD, "/cg/cofferdam.slice/reserve.slice/x.scope/cpuset.cpus", O_WRONLY|O_CLOEXEC)
write("/cg/cofferdam.slice/reserve.slice/x.scope/cpuset.cpus", "1-2")"#,
    );
}

#[test]
fn a_task_without_a_reservation_only_checks_for_reservations() {
    let join = |op: &CgroupOp| matches!(op, CgroupOp::JoinShare(_));
    check(
        &Limits::default(),
        Mode::V2,
        join,
        r#"
openat(AT_FDCWD, "/cg/cofferdam.slice/reserve.slice", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
openat(AT_FDCWD, "/cg/cofferdam.slice/share.slice/cpuset.cpus", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cofferdam.slice", O_RDONLY|O_CLOEXEC|O_DIRECTORY) # if a CPU is reserved
flock("/cg/cofferdam.slice", LOCK_EX|LOCK_NB) # if a CPU is reserved"#,
    );
    check(
        &Limits::default(),
        Mode::V1,
        join,
        r#"
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
openat(AT_FDCWD, "/cg/cpuset/cofferdam/share/cpuset.cpus", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cpuset/cofferdam", O_RDONLY|O_CLOEXEC|O_DIRECTORY) # if a CPU is reserved
flock("/cg/cpuset/cofferdam", LOCK_EX|LOCK_NB) # if a CPU is reserved"#,
    );
}

#[test]
fn devices_are_restricted_even_if_no_limits_can_be_set() {
    let list = devices::rules([]);
    let lost = OnRefusal::Degrade(vec![Effect::lost(Control::DEVICES, "")]);
    let lowered = |host: &Detection| {
        let (parent, name) = (CgroupPath::default(), CgroupName::new("x").unwrap());
        let limits = Limits::default();
        let request =
            Request { devices: &list, without_devices: &lost, ..Request::new(&limits, host, &parent, &name) };
        let mut report = Report::default();
        (lower(&request, &mut report).unwrap(), report)
    };
    /// The device rules in the steps, and whether they are enforced by an eBPF program.
    fn held(cgroups: &Cgroups) -> Vec<(&[devices::DeviceRule], bool)> {
        let held = cgroups.steps.iter().filter_map(|step| match &step.op {
            CgroupOp::DeviceProgram { rules, .. } => Some((rules.as_slice(), true)),
            CgroupOp::DeviceFiles { rules, .. } => Some((rules.as_slice(), false)),
            _ => None,
        });
        held.collect()
    }
    let with_v1 = |mode| {
        let mut host = host(mode);
        host.v1.extend(hierarchies(&[("devices", "/cg/devices")]));
        host
    };
    let shut = |host| Detection { reason: Some("cgroup lacks io".into()), ..host };
    for host in [host(Mode::V2), host(Mode::Hybrid), shut(host(Mode::V2)), shut(host(Mode::Hybrid))] {
        let (cgroups, report) = lowered(&host);
        assert_eq!(held(&cgroups), [(list.as_slice(), true)]);
        assert_eq!(report.enforced, Control::DEVICES | Control::KILL);
        assert_eq!(writes(&cgroups).count(), 0);
        let calls = cgroups.calls();
        let leaf = cgroups.paths.unit.as_ref().unwrap();
        let open = format!("openat(AT_FDCWD, {leaf:?}, O_RDONLY|O_CLOEXEC|O_DIRECTORY)");
        assert!(cgroups.paths.into && calls.contains(&open), "{calls:?}");
        let [load, attach] = calls.get(calls.len() - 2..).unwrap() else { panic!("{calls:?}") };
        assert!(load.starts_with("bpf(BPF_PROG_LOAD, "), "{calls:?}");
        assert_eq!(*attach, format!("bpf(BPF_PROG_ATTACH, {leaf:?}, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI)"));
    }
    for host in [with_v1(Mode::V1), with_v1(Mode::Hybrid), shut(with_v1(Mode::V1))] {
        let (cgroups, report) = lowered(&host);
        assert_eq!(report.enforced, Control::DEVICES | Control::KILL);
        assert_eq!(held(&cgroups), [(list.as_slice(), false)]);
        let writes = cgroups.calls().into_iter().filter(|call| call.starts_with("write("));
        assert_eq!(writes.count(), list.len() + 1);
        assert!(cgroups.paths.enter.contains(&"/cg/devices/cofferdam/x/tasks".into()));
    }
    let calls = lowered(&with_v1(Mode::V1)).0.calls().join("\n");
    // Each file is opened only once.
    let expected = r#"
openat(AT_FDCWD, "/cg/devices/cofferdam/x/devices.deny", O_WRONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/devices/cofferdam/x/devices.allow", O_WRONLY|O_CLOEXEC)
write("/cg/devices/cofferdam/x/devices.deny", "a")
write("/cg/devices/cofferdam/x/devices.allow", "c *:* m")
write("/cg/devices/cofferdam/x/devices.allow", "b *:* m")
write("/cg/devices/cofferdam/x/devices.allow", "c 1:3 rwm")
"#;
    assert!(calls.contains(expected), "{calls}");
    // A read-only devices hierarchy is not used, and the program on the v2 cgroup is used instead.
    let mut closed = with_v1(Mode::Hybrid);
    closed.v1.get_mut("devices").unwrap().writable = false;
    assert_eq!(held(&lowered(&closed).0), [(list.as_slice(), true)]);
    closed.v2 = None;
    let why =
        "missing devices: cgroup v2 is not mounted, and the devices controller of cgroup v1 is not available";
    let without = lowered(&closed);
    assert!(text(&without).contains(&why.to_owned()), "{without:#?}");
    assert_eq!(without.1.enforced, Control::KILL);
}

/// This also holds if the devices controller is the first to use the leaf.
#[test]
fn controllers_that_are_mounted_together_have_one_leaf_for_devices() {
    let list: Vec<devices::DeviceRule> = devices::rules([]).into_iter().take(1).collect();
    let mut host = host(Mode::V1);
    host.v1 =
        hierarchies(&["cpu", "cpuset", "devices", "freezer", "memory", "pids"].map(|name| (name, "/one")));
    let (parent, name) = (CgroupPath::default(), CgroupName::new("x").unwrap());
    let limits = Limits::default();
    let request = Request { devices: &list, ..Request::new(&limits, &host, &parent, &name) };
    let mut report = Report::default();
    let cgroups = lower(&request, &mut report).unwrap();
    let expected = "
mkdir /one/cofferdam
mkdir /one/cofferdam/x
hold /one/cofferdam/x
/one/cofferdam/cpuset.mems = inherit
/one/cofferdam/cpuset.cpus = inherit
/one/cofferdam/x/cpuset.mems = inherit
/one/cofferdam/x/cpuset.cpus = inherit
device files of /one/cofferdam/x
enter /one/cofferdam/x/tasks";
    let lowered = (cgroups, report);
    assert_eq!(text(&lowered).join("\n"), expected.trim());
    let calls = lowered.0.calls().join("\n");
    assert!(calls.contains("write(\"/one/cofferdam/x/devices.allow\", \"c *:* m\")"), "{calls}");
}
