//! Golden tests: the cgroups of a task on each kind of host, as text.

#![allow(clippy::arithmetic_side_effects)]

use std::collections::{BTreeMap, BTreeSet};

use super::super::fs::{DirOwner, NewDir};
use super::*;
use crate::report::Control;

fn tree(mount: &str, top: &str, controllers: &str, enabled: &str) -> Unified {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>();
    Unified {
        mount: mount.into(),
        own: Some(top.into()),
        top: Some(top.into()),
        controllers: words(controllers),
        enabled: words(enabled),
        why: None,
    }
}

pub(super) fn hierarchies(mounts: &[(&str, &str)]) -> BTreeMap<String, Hierarchy> {
    let one =
        |&(name, mount): &(&str, &str)| (name.to_owned(), Hierarchy { mount: mount.into(), writable: true });
    mounts.iter().map(one).collect()
}

pub(super) fn host(mode: Mode) -> Detection {
    let v1 = hierarchies(&[
        ("cpu", "/cg/cpu,cpuacct"),
        ("cpuacct", "/cg/cpu,cpuacct"),
        ("cpuset", "/cg/cpuset"),
        ("freezer", "/cg/freezer"),
        ("memory", "/cg/memory"),
        ("pids", "/cg/pids"),
    ]);
    let off = Detection {
        mode,
        limits_on: Version::V2,
        v2: None,
        v1: BTreeMap::new(),
        controllers: Vec::new(),
        required: RequiredControllers::Minimal,
        asked: Control::empty(),
        missing: Vec::new(),
        reason: None,
        online: CpuSet::parse("0-3").unwrap(),
        swap: Swap { active: false, accounted: Some(true) },
    };
    match mode {
        Mode::Off => Detection { reason: Some("no cgroup hierarchy is mounted".into()), ..off },
        Mode::V1 => Detection { limits_on: Version::V1, v1, ..off },
        Mode::V2 => Detection { v2: Some(tree("/cg", "/", "cpu cpuset io memory pids", "memory")), ..off },
        Mode::Hybrid => {
            Detection { limits_on: Version::V1, v1, v2: Some(tree("/cg/unified", "/", "", "")), ..off }
        }
    }
}

fn all() -> Limits {
    Limits {
        cpu_shares: Some(512),
        cores: "1-2".parse().unwrap(),
        exclusive: false,
        memory: Some(64 * MB),
        memory_max: Some(MemoryMax::Bytes(128 * MB)),
        pids_max: Some(10),
        ..Limits::default()
    }
}

pub(super) fn lowered(limits: &Limits, host: &Detection, parent: &str) -> (Cgroups, Report) {
    let (parent, name) = (CgroupPath::new(parent).unwrap(), CgroupName::new("x").unwrap());
    let mut report = Report::default();
    let request = Request { extra_pids: 1, ..Request::new(limits, host, &parent, &name) };
    (lower(&request, &mut report).unwrap(), report)
}

/// One step in short: `mkdir path`, `path = value`, `hold path`.
fn step(op: &CgroupOp) -> Vec<String> {
    match op {
        CgroupOp::RemoveStale(_) => Vec::new(),
        CgroupOp::Make(dirs) => dirs.iter().map(|dir| format!("mkdir {}", dir.path.display())).collect(),
        CgroupOp::Reserve(reserve) => {
            let dirs = reserve.parents.iter().map(|dir| format!("mkdir {}", dir.path.display()));
            let enable = reserve.enable.iter().map(|dir| format!("{} hands cpuset down", dir.display()));
            let leaf = format!("{} reserves {}", reserve.leaf.display(), reserve.reserved.text());
            dirs.chain(enable).chain([leaf]).collect()
        }
        CgroupOp::JoinShare(share) => vec![format!(
            "join {} if there is {}",
            share.site.share().display(),
            share.site.reserve().display()
        )],
        CgroupOp::Hold { unit: path, .. } => vec![format!("hold {}", path.display())],
        CgroupOp::HoldMemory(path) => vec![format!("hold memory {}", path.display())],
        CgroupOp::Inherit(file) => vec![format!("{} = inherit", file.display())],
        CgroupOp::Write { file, text } => vec![format!("{} = {text}", file.display())],
        CgroupOp::DeviceProgram { cgroup, .. } => vec![format!("device program on {}", cgroup.display())],
        CgroupOp::DeviceFiles { cgroup, .. } => vec![format!("device files of {}", cgroup.display())],
    }
}

/// The steps, the cgroups that the task is born in and enters, and the limits that do not hold: `missing control: why`.
pub(super) fn text((cgroups, report): &(Cgroups, Report)) -> Vec<String> {
    let paths = &cgroups.paths;
    let steps = cgroups.steps.iter().flat_map(|s| step(&s.op));
    let into = paths.unit.iter().filter(|_| paths.into).map(|path| format!("into {}", path.display()));
    let enter = paths.enter.iter().map(|path| format!("enter {}", path.display()));
    let held = |control| report.enforced.contains(control);
    let reasons = report.reasons.iter().filter(|r| !held(r.control)).map(|r| {
        let extent = if report.missing.contains(r.control) { "missing" } else { "weakened" };
        format!("{extent} {}: {}", r.control, r.why)
    });
    steps.chain(into).chain(enter).chain(reasons).collect()
}

#[track_caller]
fn check(limits: &Limits, host: &Detection, parent: &str, expected: &str) -> (Cgroups, Report) {
    let lowered = lowered(limits, host, parent);
    assert_eq!(text(&lowered).join("\n"), expected.trim());
    lowered
}

#[test]
fn v2_writes_every_limit() {
    let (_, report) = check(
        &all(),
        &host(Mode::V2),
        "",
        "
mkdir /cg/cofferdam.slice
/cg hands cpuset down
/cg/cofferdam.slice hands cpuset down
/cg/cofferdam.slice/reserve.slice/x.scope reserves 1-2
hold /cg/cofferdam.slice/reserve.slice/x.scope
/cg/cgroup.subtree_control = +cpu
/cg/cgroup.subtree_control = +pids
/cg/cofferdam.slice/cgroup.subtree_control = +cpu
/cg/cofferdam.slice/cgroup.subtree_control = +memory
/cg/cofferdam.slice/cgroup.subtree_control = +pids
/cg/cofferdam.slice/reserve.slice/cgroup.subtree_control = +cpu
/cg/cofferdam.slice/reserve.slice/cgroup.subtree_control = +memory
/cg/cofferdam.slice/reserve.slice/cgroup.subtree_control = +pids
/cg/cofferdam.slice/reserve.slice/x.scope/cpu.weight = 59
/cg/cofferdam.slice/reserve.slice/x.scope/memory.swap.max = 0
/cg/cofferdam.slice/reserve.slice/x.scope/memory.max = 134217728
/cg/cofferdam.slice/reserve.slice/x.scope/memory.low = 67108864
/cg/cofferdam.slice/reserve.slice/x.scope/pids.max = 11
into /cg/cofferdam.slice/reserve.slice/x.scope",
    );
    assert_eq!(report.enforced, all().asked() | Control::KILL);
}

#[test]
fn v1_writes_every_limit() {
    let (cgroups, report) = check(
        &all(),
        &host(Mode::V1),
        "",
        "
mkdir /cg/freezer/cofferdam
mkdir /cg/freezer/cofferdam/x
hold /cg/freezer/cofferdam/x
mkdir /cg/cpu,cpuacct/cofferdam
mkdir /cg/cpu,cpuacct/cofferdam/x
mkdir /cg/memory/cofferdam
mkdir /cg/memory/cofferdam/x
mkdir /cg/pids/cofferdam
mkdir /cg/pids/cofferdam/x
mkdir /cg/cpuset/cofferdam
/cg/cpuset/cofferdam/reserve/x reserves 1-2
hold memory /cg/memory/cofferdam/x
/cg/cpu,cpuacct/cofferdam/x/cpu.shares = 512
/cg/memory/cofferdam/x/memory.limit_in_bytes = 134217728
/cg/memory/cofferdam/x/memory.soft_limit_in_bytes = 67108864
/cg/memory/cofferdam/x/memory.kmem.tcp.limit_in_bytes = 134217728
/cg/memory/cofferdam/x/memory.memsw.limit_in_bytes = 134217728
/cg/memory/cofferdam/x/memory.swappiness = 0
/cg/pids/cofferdam/x/pids.max = 11
enter /cg/cpuset/cofferdam/reserve/x/tasks
enter /cg/cpu,cpuacct/cofferdam/x/tasks
enter /cg/memory/cofferdam/x/tasks
enter /cg/pids/cofferdam/x/tasks
enter /cg/freezer/cofferdam/x/tasks",
    );
    assert_eq!(report.enforced, all().asked() | Control::KILL);
    assert_eq!(cgroups.paths.unit.as_deref(), Some("/cg/freezer/cofferdam/x".as_ref()));
}

#[test]
fn hybrid_uses_the_v2_tree_for_birth_and_kill_and_v1_for_limits() {
    let limits = Limits { memory: Some(MB), ..Limits::default() };
    let (cgroups, _) = check(
        &limits,
        &host(Mode::Hybrid),
        "/ops/jobs",
        "
mkdir /cg/unified/ops
mkdir /cg/unified/ops/jobs
mkdir /cg/unified/ops/jobs/share.slice
mkdir /cg/unified/ops/jobs/share.slice/x.scope
hold /cg/unified/ops/jobs/share.slice/x.scope
mkdir /cg/memory/ops
mkdir /cg/memory/ops/jobs
mkdir /cg/memory/ops/jobs/x
join /cg/cpuset/ops/jobs/share if there is /cg/cpuset/ops/jobs/reserve
hold memory /cg/memory/ops/jobs/x
/cg/memory/ops/jobs/x/memory.limit_in_bytes = 1048576
/cg/memory/ops/jobs/x/memory.kmem.tcp.limit_in_bytes = 1048576
/cg/memory/ops/jobs/x/memory.memsw.limit_in_bytes = 1048576
/cg/memory/ops/jobs/x/memory.swappiness = 0
into /cg/unified/ops/jobs/share.slice/x.scope
enter /cg/memory/ops/jobs/x/tasks",
    );
    let dirs = cgroups.steps.iter().flat_map(|step| match &step.op {
        CgroupOp::Make(dirs) => dirs.as_slice(),
        _ => &[],
    });
    let own: Vec<&NewDir> = dirs.filter(|dir| dir.owner == DirOwner::Crate).collect();
    assert!(matches!(own[..], [dir] if dir.path.ends_with("share.slice")), "{own:?}");
    assert_eq!(cgroups.paths.v1, [("memory".into(), "/cg/memory/ops/jobs/x".into())].into());
    assert_eq!(cgroups.paths.share_tasks(), Some("/cg/cpuset/ops/jobs/share/tasks".into()));
}

#[test]
fn without_limits_one_cgroup_is_created_for_killing() {
    let none = Limits::default();
    for (mode, expected) in [
        (
            Mode::V2,
            "
mkdir /cg/cofferdam.slice
mkdir /cg/cofferdam.slice/share.slice
mkdir /cg/cofferdam.slice/share.slice/x.scope
hold /cg/cofferdam.slice/share.slice/x.scope
join /cg/cofferdam.slice/share.slice if there is /cg/cofferdam.slice/reserve.slice
into /cg/cofferdam.slice/share.slice/x.scope",
        ),
        (
            Mode::Hybrid,
            "
mkdir /cg/unified/cofferdam.slice
mkdir /cg/unified/cofferdam.slice/share.slice
mkdir /cg/unified/cofferdam.slice/share.slice/x.scope
hold /cg/unified/cofferdam.slice/share.slice/x.scope
join /cg/cpuset/cofferdam/share if there is /cg/cpuset/cofferdam/reserve
into /cg/unified/cofferdam.slice/share.slice/x.scope",
        ),
        (
            Mode::V1,
            "
mkdir /cg/freezer/cofferdam
mkdir /cg/freezer/cofferdam/x
hold /cg/freezer/cofferdam/x
join /cg/cpuset/cofferdam/share if there is /cg/cpuset/cofferdam/reserve
enter /cg/freezer/cofferdam/x/tasks",
        ),
    ] {
        let (_, report) = check(&none, &host(mode), "", expected);
        assert_eq!(report.enforced, Control::KILL);
    }
    let (cgroups, report) = check(
        &none,
        &host(Mode::Off),
        "",
        "weakened kill: only the main process is killed, because the task has neither a PID namespace nor a cgroup: cgroup v2 is not mounted, and the freezer controller of cgroup v1 is not available",
    );
    assert!(cgroups.is_empty() && report.enforced.is_empty() && report.weakened == Control::KILL);
}

#[test]
fn controllers_that_are_mounted_together_share_one_leaf() {
    let mut host = host(Mode::V1);
    host.v1 = hierarchies(&["cpu", "cpuset", "freezer", "memory", "pids"].map(|name| (name, "/one")));
    check(
        &Limits {
            cores: "1".parse().unwrap(),
            memory: Some(MB),
            swap: SwapMax::Unlimited,
            ..Limits::default()
        },
        &host,
        "",
        "
mkdir /one/cofferdam
mkdir /one/cofferdam/x
hold /one/cofferdam/x
/one/cofferdam/cpuset.mems = inherit
/one/cofferdam/cpuset.cpus = inherit
/one/cofferdam/x/cpuset.mems = inherit
/one/cofferdam/x/cpuset.cpus = 1
/one/cofferdam/x/memory.limit_in_bytes = 1048576
/one/cofferdam/x/memory.kmem.tcp.limit_in_bytes = 1048576
enter /one/cofferdam/x/tasks
weakened cpuset: other tasks may use these CPUs: cpuset is mounted together with cpu, freezer, memory, pids, so CPUs cannot be reserved",
    );
    check(
        &Limits { memory: Some(MB), swap: SwapMax::Unlimited, ..Limits::default() },
        &host,
        "",
        "
mkdir /one/cofferdam
mkdir /one/cofferdam/x
hold /one/cofferdam/x
/one/cofferdam/cpuset.mems = inherit
/one/cofferdam/cpuset.cpus = inherit
/one/cofferdam/x/cpuset.mems = inherit
/one/cofferdam/x/cpuset.cpus = inherit
/one/cofferdam/x/memory.limit_in_bytes = 1048576
/one/cofferdam/x/memory.kmem.tcp.limit_in_bytes = 1048576
enter /one/cofferdam/x/tasks",
    );
}

#[test]
fn one_missing_required_controller_disables_all_limits_but_not_the_kill() {
    let why = "cgroup v2 controllers not available: cpuset, io";
    let host = Detection { reason: Some(why.into()), ..host(Mode::V2) };
    let (_, report) = check(
        &all(),
        &host,
        "",
        "
mkdir /cg/cofferdam.slice
mkdir /cg/cofferdam.slice/share.slice
mkdir /cg/cofferdam.slice/share.slice/x.scope
hold /cg/cofferdam.slice/share.slice/x.scope
into /cg/cofferdam.slice/share.slice/x.scope
missing memory,swap,cpu,cpuset,pids: cgroup v2 controllers not available: cpuset, io",
    );
    assert_eq!((report.enforced, report.missing), (Control::KILL, all().asked()));
    assert_eq!(report.why(Control::MEMORY), why);
}

#[test]
fn the_parent_is_below_the_delegated_cgroup() {
    let mut host = host(Mode::V2);
    let all_v2 = "cpu cpuset io memory pids";
    host.v2 = Some(tree("/cg", "/user.slice/u.service", all_v2, all_v2));
    let limits = Limits { pids_max: Some(3), ..Limits::default() };
    check(
        &limits,
        &host,
        "",
        "
mkdir /cg/user.slice/u.service/cofferdam.slice
mkdir /cg/user.slice/u.service/cofferdam.slice/share.slice
mkdir /cg/user.slice/u.service/cofferdam.slice/share.slice/x.scope
hold /cg/user.slice/u.service/cofferdam.slice/share.slice/x.scope
join /cg/user.slice/u.service/cofferdam.slice/share.slice if there is /cg/user.slice/u.service/cofferdam.slice/reserve.slice
/cg/user.slice/u.service/cofferdam.slice/cgroup.subtree_control = +pids
/cg/user.slice/u.service/cofferdam.slice/share.slice/cgroup.subtree_control = +pids
/cg/user.slice/u.service/cofferdam.slice/share.slice/x.scope/pids.max = 4
into /cg/user.slice/u.service/cofferdam.slice/share.slice/x.scope",
    );
    check(
        &limits,
        &host,
        "/user.slice/u.service",
        "
mkdir /cg/user.slice/u.service/share.slice
mkdir /cg/user.slice/u.service/share.slice/x.scope
hold /cg/user.slice/u.service/share.slice/x.scope
join /cg/user.slice/u.service/share.slice if there is /cg/user.slice/u.service/reserve.slice
/cg/user.slice/u.service/share.slice/cgroup.subtree_control = +pids
/cg/user.slice/u.service/share.slice/x.scope/pids.max = 4
into /cg/user.slice/u.service/share.slice/x.scope",
    );
    check(
        &limits,
        &host,
        "/user.slice/u.services",
        "
missing pids: cgroup /user.slice/u.services is not delegated: it is not below /user.slice/u.service, the highest cgroup that is writable
weakened kill: only the main process is killed, because the task has neither a PID namespace nor a cgroup: cgroup /user.slice/u.services is not delegated: it is not below /user.slice/u.service, the highest cgroup that is writable, and the freezer controller of cgroup v1 is not available",
    );
}

#[test]
fn only_cores_of_this_host_are_reserved() {
    let cores = |list: &str| Limits { cores: list.parse().unwrap(), ..Limits::default() };
    for (list, reserves, enforced, said) in [
        ("0", Some("0"), Control::CPUSET, None),
        ("2-9", Some("2-3"), Control::empty(), Some("only CPUs 2-3 of 2-9 are available on this host")),
        ("7", None, Control::empty(), Some("CPUs 7 are not available on this host (available: 0-3)")),
    ] {
        for mode in [Mode::V1, Mode::V2, Mode::Hybrid] {
            let (cgroups, report) = lowered(&cores(list), &host(mode), "");
            let divided = cgroups.steps.iter().filter_map(|step| match &step.op {
                CgroupOp::Reserve(reserve) => Some(Some(reserve.reserved.text())),
                CgroupOp::JoinShare(_) => Some(None),
                _ => None,
            });
            assert_eq!(divided.collect::<Vec<_>>(), [reserves.map(str::to_owned)], "{list}");
            assert_eq!(report.enforced - Control::KILL, enforced, "{list}");
            assert_eq!(report.reasons.first().map(|r| r.why.as_str()), said);
        }
    }
}

#[test]
fn swap_limits_are_written_where_swap_is_accounted() {
    let limits = Limits { memory: Some(MB), ..Limits::default() };
    let open = Limits { memory_max: Some(MemoryMax::Unlimited), ..limits.clone() };
    let (held, part, not) = (Some("enforced"), Some("weakened"), Some("missing"));
    for (limits, mode, active, accounted, expected, written) in [
        (&limits, Mode::V2, true, Some(true), held, true),
        (&limits, Mode::V2, false, Some(true), held, true),
        (&limits, Mode::V2, true, Some(false), not, false),
        (&limits, Mode::V2, false, Some(false), held, false),
        (&limits, Mode::V2, true, None, held, true),
        (&open, Mode::V2, true, Some(true), held, true),
        (&limits, Mode::V1, true, Some(true), held, true),
        (&limits, Mode::V1, true, Some(false), part, false),
        (&limits, Mode::V1, false, Some(false), held, false),
        (&open, Mode::V1, true, Some(true), part, false),
        (&open, Mode::V1, false, Some(true), held, false),
    ] {
        let host = Detection { swap: Swap { active, accounted }, ..host(mode) };
        let (cgroups, report) = lowered(limits, &host, "");
        let sets =
            [("enforced", report.enforced), ("weakened", report.weakened), ("missing", report.missing)];
        let found = sets.iter().find(|(_, set)| set.contains(Control::SWAP)).map(|(name, _)| *name);
        let limit = |(file, _): (&Path, &str)| {
            file.ends_with("memory.swap.max") || file.ends_with("memory.memsw.limit_in_bytes")
        };
        assert_eq!(found, expected, "{mode:?} {active} {accounted:?}");
        assert_eq!(writes(&cgroups).any(limit), written, "{mode:?} {active} {accounted:?}");
    }
}

#[test]
fn a_limit_that_cannot_be_set_does_not_affect_the_others() {
    // A v1 kernel without a pids controller: the other limits hold.
    let mut host = host(Mode::V1);
    host.v1.remove("pids");
    let lowered_all = lowered(&all(), &host, "");
    assert!(
        text(&lowered_all).contains(&"missing pids: cgroup v1 controllers not available: pids".to_owned())
    );
    assert!(lowered_all.1.enforced.contains(Control::MEMORY));
    // A limit above the kernel's maximum number of processes is reduced to that maximum.
    let limits = Limits { pids_max: Some(u64::MAX), ..Limits::default() };
    let (cgroups, _) = lowered(&limits, &super::golden::host(Mode::V2), "");
    assert_eq!(writes(&cgroups).last().unwrap().1, "4194304");
    // Without a hard limit, `memory` is only a reservation, which the report calls weakened.
    let limits = Limits { memory_max: Some(MemoryMax::Unlimited), ..all() };
    let (cgroups, report) = lowered(&limits, &super::golden::host(Mode::V2), "");
    assert!(report.weakened.contains(Control::MEMORY));
    assert!(!writes(&cgroups).any(|(file, _)| file.ends_with("memory.max")));
}

#[test]
fn huge_pages_are_limited_in_the_hierarchy_that_has_hugetlb() {
    let limits = Limits { hugetlb: [("2MB".to_owned(), 2 * MB)].into(), ..Limits::default() };
    let mut host = host(Mode::Hybrid);
    let (_, report) = check(
        &limits,
        &host,
        "",
        "
mkdir /cg/unified/cofferdam.slice
mkdir /cg/unified/cofferdam.slice/share.slice
mkdir /cg/unified/cofferdam.slice/share.slice/x.scope
hold /cg/unified/cofferdam.slice/share.slice/x.scope
join /cg/cpuset/cofferdam/share if there is /cg/cpuset/cofferdam/reserve
into /cg/unified/cofferdam.slice/share.slice/x.scope
missing hugetlb: cgroup v1 controllers not available: hugetlb",
    );
    assert_eq!(report.missing, Control::HUGETLB);
    host.v2 = Some(tree("/cg/unified", "/", "hugetlb", ""));
    check(
        &limits,
        &host,
        "",
        "
mkdir /cg/unified/cofferdam.slice
mkdir /cg/unified/cofferdam.slice/share.slice
mkdir /cg/unified/cofferdam.slice/share.slice/x.scope
hold /cg/unified/cofferdam.slice/share.slice/x.scope
join /cg/cpuset/cofferdam/share if there is /cg/cpuset/cofferdam/reserve
/cg/unified/cgroup.subtree_control = +hugetlb
/cg/unified/cofferdam.slice/cgroup.subtree_control = +hugetlb
/cg/unified/cofferdam.slice/share.slice/cgroup.subtree_control = +hugetlb
/cg/unified/cofferdam.slice/share.slice/x.scope/hugetlb.2MB.max = 2097152
into /cg/unified/cofferdam.slice/share.slice/x.scope",
    );
    let lacking = lowered(&limits, &super::golden::host(Mode::V2), "");
    assert_eq!(
        text(&lacking).last().unwrap(),
        "missing hugetlb: cgroup v2 controllers not available: hugetlb"
    );
}

#[test]
fn accounting_uses_every_controller_that_the_host_has() {
    let limits = Limits { accounting: true, ..Limits::default() };
    let (cgroups, _) = lowered(&limits, &host(Mode::V2), "");
    let enabled = |name: &str| writes(&cgroups).filter(|(_, text)| *text == format!("+{name}")).count();
    assert_eq!(["cpu", "memory", "io", "pids", "cpuset"].map(enabled), [3, 2, 3, 3, 0]);
    let (cgroups, report) = lowered(&limits, &host(Mode::V1), "");
    let entered: Vec<&str> = cgroups.paths.v1.keys().map(String::as_str).collect();
    assert_eq!(entered, ["cpu", "cpuacct", "freezer", "memory", "pids"]);
    assert_eq!(report.enforced, Control::KILL);
}

#[test]
fn memory_oom_group_needs_v2() {
    let limits = Limits { memory: Some(MB), oom_group: true, ..Limits::default() };
    let (_, report) = lowered(&limits, &host(Mode::V1), "");
    assert_eq!(report.missing, Control::OOM_GROUP);
    assert_eq!(
        report.why(Control::OOM_GROUP),
        "cgroup v1 OOM-kills one process, not the whole task (memory.oom.group needs cgroup v2)"
    );
    let (cgroups, report) = lowered(&limits, &host(Mode::V2), "");
    assert!(report.enforced.contains(Control::OOM_GROUP));
    assert!(writes(&cgroups).any(|(file, _)| file.ends_with("memory.oom.group")));
}
