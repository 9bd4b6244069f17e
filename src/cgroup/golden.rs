//! Layouts for hosts of every kind, as text.

#![allow(clippy::arithmetic_side_effects)]

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::report::{Control, Report};

mod calls;

const MB: u64 = 1 << 20;

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

fn hierarchies(mounts: &[(&str, &str)]) -> BTreeMap<String, Hierarchy> {
    let one =
        |&(name, mount): &(&str, &str)| (name.to_owned(), Hierarchy { mount: mount.into(), writable: true });
    mounts.iter().map(one).collect()
}

fn host(mode: Mode) -> Detection {
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
        required: Required::Minimal,
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
        cores: "1-2".into(),
        exclusive: false,
        memory: Some(64 * MB),
        memory_max: Some(MemoryMax::Bytes(128 * MB)),
        pids_max: Some(10),
        ..Limits::default()
    }
}

fn lowered(limits: &Limits, host: &Detection, parent: &str) -> Layout {
    let (parent, name) = (CgroupPath::new(parent).unwrap(), CgroupName::new("x").unwrap());
    lower(&Request { extra_pids: 1, ..Request::new(limits, host, &parent, &name) })
}

/// The layout without the noise: `mkdir path`, `path = value`, `enter path`, `missing control: why`.
fn text(layout: &Layout) -> Vec<String> {
    let seat = layout.cores.iter().flat_map(|seat| {
        let dirs = seat.parents.iter().map(|d| format!("mkdir {}", d.path.display()));
        let enable = seat.enable.iter().map(|d| format!("{} hands cpuset down", d.display()));
        let what = seat.reserved.as_ref().map_or("shares".into(), |r| format!("reserves {}", r.record()));
        dirs.chain([format!("book {}", seat.site.parent.display())])
            .chain(enable)
            .chain([format!("{} {what}", seat.place().display())])
    });
    let dirs = layout.dirs.iter().map(|d| format!("mkdir {}", d.path.display())).chain(seat);
    let writes = layout.writes.iter().map(|w| match &w.value {
        Value::Text(text) => format!("{} = {text}", w.path.display()),
        Value::Inherit => format!("{} = inherit", w.path.display()),
    });
    let into = layout.into.iter().map(|path| format!("into {}", path.display()));
    let enter = layout.enter.iter().map(|path| format!("enter {}", path.display()));
    let reasons = [("weakened", &layout.weakened), ("missing", &layout.missing)];
    let reasons = reasons
        .into_iter()
        .flat_map(|(what, list)| list.iter().map(move |r| format!("{what} {}: {}", r.control, r.why)));
    dirs.chain(writes).chain(into).chain(enter).chain(reasons).collect()
}

#[track_caller]
fn check(limits: &Limits, host: &Detection, parent: &str, expected: &str) -> Layout {
    let layout = lowered(limits, host, parent);
    assert_eq!(text(&layout).join("\n"), expected.trim());
    layout
}

#[test]
fn v2_with_everything() {
    let layout = check(
        &all(),
        &host(Mode::V2),
        "",
        "
mkdir /cg/cofferdam.slice
book /cg/cofferdam.slice
/cg hands cpuset down
/cg/cofferdam.slice hands cpuset down
/cg/cofferdam.slice/reserve.slice/x.scope reserves 1-2
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
    assert_eq!(layout.enforced, all().asked() | Control::KILL);
}

#[test]
fn v1_with_everything() {
    let layout = check(
        &all(),
        &host(Mode::V1),
        "",
        "
mkdir /cg/cpu,cpuacct/cofferdam
mkdir /cg/cpu,cpuacct/cofferdam/x
mkdir /cg/memory/cofferdam
mkdir /cg/memory/cofferdam/x
mkdir /cg/pids/cofferdam
mkdir /cg/pids/cofferdam/x
mkdir /cg/freezer/cofferdam
mkdir /cg/freezer/cofferdam/x
mkdir /cg/cpuset/cofferdam
book /cg/cpuset/cofferdam
/cg/cpuset/cofferdam/reserve/x reserves 1-2
/cg/cpu,cpuacct/cofferdam/x/cpu.shares = 512
/cg/memory/cofferdam/x/memory.limit_in_bytes = 134217728
/cg/memory/cofferdam/x/memory.soft_limit_in_bytes = 67108864
/cg/memory/cofferdam/x/memory.memsw.limit_in_bytes = 134217728
/cg/memory/cofferdam/x/memory.swappiness = 0
/cg/pids/cofferdam/x/pids.max = 11
enter /cg/cpuset/cofferdam/reserve/x/tasks
enter /cg/cpu,cpuacct/cofferdam/x/tasks
enter /cg/memory/cofferdam/x/tasks
enter /cg/pids/cofferdam/x/tasks
enter /cg/freezer/cofferdam/x/tasks",
    );
    assert_eq!(layout.enforced, all().asked() | Control::KILL);
    assert_eq!(layout.unit.as_deref(), Some("/cg/freezer/cofferdam/x".as_ref()));
}

#[test]
fn hybrid_takes_the_tree_for_birth_and_kill_and_v1_for_what_is_asked() {
    let limits = Limits { memory: Some(MB), ..Limits::default() };
    let layout = check(
        &limits,
        &host(Mode::Hybrid),
        "/ops/jobs",
        "
mkdir /cg/unified/ops
mkdir /cg/unified/ops/jobs
mkdir /cg/unified/ops/jobs/share.slice
mkdir /cg/unified/ops/jobs/share.slice/x.scope
mkdir /cg/memory/ops
mkdir /cg/memory/ops/jobs
mkdir /cg/memory/ops/jobs/x
mkdir /cg/cpuset/ops
mkdir /cg/cpuset/ops/jobs
book /cg/cpuset/ops/jobs
/cg/cpuset/ops/jobs/share shares
/cg/memory/ops/jobs/x/memory.limit_in_bytes = 1048576
/cg/memory/ops/jobs/x/memory.memsw.limit_in_bytes = 1048576
/cg/memory/ops/jobs/x/memory.swappiness = 0
into /cg/unified/ops/jobs/share.slice/x.scope
enter /cg/cpuset/ops/jobs/share/tasks
enter /cg/memory/ops/jobs/x/tasks",
    );
    let own = |d: &&Dir| d.kind == Kind::OwnParent;
    let own: Vec<&Dir> = layout.dirs.iter().filter(own).collect();
    assert!(matches!(own[..], [dir] if dir.path.ends_with("share.slice")), "{own:?}");
    let v1 = [("cpuset", "/cg/cpuset/ops/jobs/share"), ("memory", "/cg/memory/ops/jobs/x")];
    assert_eq!(layout.v1, v1.map(|(name, path)| (name.into(), path.into())).into());
}

#[test]
fn nothing_asked_is_one_directory_to_kill_in() {
    let none = Limits::default();
    for (mode, expected) in [
        (
            Mode::V2,
            "
mkdir /cg/cofferdam.slice
book /cg/cofferdam.slice
/cg/cofferdam.slice/share.slice/x.scope shares
into /cg/cofferdam.slice/share.slice/x.scope",
        ),
        (
            Mode::Hybrid,
            "
mkdir /cg/unified/cofferdam.slice
mkdir /cg/unified/cofferdam.slice/share.slice
mkdir /cg/unified/cofferdam.slice/share.slice/x.scope
mkdir /cg/cpuset/cofferdam
book /cg/cpuset/cofferdam
/cg/cpuset/cofferdam/share shares
into /cg/unified/cofferdam.slice/share.slice/x.scope
enter /cg/cpuset/cofferdam/share/tasks",
        ),
        (
            Mode::V1,
            "
mkdir /cg/freezer/cofferdam
mkdir /cg/freezer/cofferdam/x
mkdir /cg/cpuset/cofferdam
book /cg/cpuset/cofferdam
/cg/cpuset/cofferdam/share shares
enter /cg/cpuset/cofferdam/share/tasks
enter /cg/freezer/cofferdam/x/tasks",
        ),
    ] {
        let layout = check(&none, &host(mode), "", expected);
        assert_eq!(layout.enforced, Control::KILL);
    }
    let layout = check(
        &none,
        &host(Mode::Off),
        "",
        "missing kill: there is no cgroup v2 tree, and no freezer of cgroup v1 that may be used",
    );
    assert!(layout.is_empty() && layout.enforced.is_empty());
}

#[test]
fn all_controllers_in_one_mount_make_one_leaf() {
    let mut host = host(Mode::V1);
    host.v1 = hierarchies(&["cpu", "cpuset", "freezer", "memory", "pids"].map(|name| (name, "/one")));
    check(
        &Limits { cores: "1".into(), memory: Some(MB), swap: SwapMax::Unlimited, ..Limits::default() },
        &host,
        "",
        "
mkdir /one/cofferdam
mkdir /one/cofferdam/x
/one/cofferdam/cpuset.mems = inherit
/one/cofferdam/cpuset.cpus = inherit
/one/cofferdam/x/cpuset.mems = inherit
/one/cofferdam/x/cpuset.cpus = 1
/one/cofferdam/x/memory.limit_in_bytes = 1048576
enter /one/cofferdam/x/tasks
weakened cpuset: cpuset is mounted together with cpu, freezer, memory, pids, so other tasks are not kept off",
    );
    check(
        &Limits { memory: Some(MB), swap: SwapMax::Unlimited, ..Limits::default() },
        &host,
        "",
        "
mkdir /one/cofferdam
mkdir /one/cofferdam/x
/one/cofferdam/cpuset.mems = inherit
/one/cofferdam/cpuset.cpus = inherit
/one/cofferdam/x/cpuset.mems = inherit
/one/cofferdam/x/cpuset.cpus = inherit
/one/cofferdam/x/memory.limit_in_bytes = 1048576
enter /one/cofferdam/x/tasks",
    );
}

#[test]
fn one_missing_controller_turns_all_limits_off_but_not_the_kill() {
    let why = "cgroup v2 lacks cpuset, io";
    let host = Detection { reason: Some(why.into()), ..host(Mode::V2) };
    let layout = check(
        &all(),
        &host,
        "",
        "
mkdir /cg/cofferdam.slice
mkdir /cg/cofferdam.slice/share.slice
mkdir /cg/cofferdam.slice/share.slice/x.scope
into /cg/cofferdam.slice/share.slice/x.scope
missing memory,swap,cpu,cpuset,pids: cgroup v2 lacks cpuset, io",
    );
    let mut report = Report::default();
    layout.tell(&mut report);
    assert_eq!((report.enforced, report.missing), (Control::KILL, all().asked()));
    assert_eq!(report.why(Control::MEMORY), why);
}

#[test]
fn delegation() {
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
book /cg/user.slice/u.service/cofferdam.slice
/cg/user.slice/u.service/cofferdam.slice/share.slice/x.scope shares
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
book /cg/user.slice/u.service
/cg/user.slice/u.service/share.slice/x.scope shares
/cg/user.slice/u.service/share.slice/cgroup.subtree_control = +pids
/cg/user.slice/u.service/share.slice/x.scope/pids.max = 4
into /cg/user.slice/u.service/share.slice/x.scope",
    );
    check(
        &limits,
        &host,
        "/user.slice/u.services",
        "
missing pids: cgroup /user.slice/u.services is not below /user.slice/u.service, the highest that may be written
missing kill: cgroup /user.slice/u.services is not below /user.slice/u.service, the highest that may be written, \
and no freezer of cgroup v1 that may be used",
    );
}

#[test]
fn processors() {
    let cores = |list: &str| Limits { cores: list.into(), ..Limits::default() };
    for (list, reserves, enforced, said) in [
        ("0", Some("0"), Control::CPUSET, None),
        ("2-9", Some("2-3"), Control::empty(), Some("of processors 2-9 this host has only 2-3")),
        ("7", None, Control::empty(), Some("none of processors 7 is among those of this host, 0-3")),
        ("x", None, Control::empty(), Some("\"x\" is no processor number or range")),
    ] {
        for mode in [Mode::V1, Mode::V2, Mode::Hybrid] {
            let layout = lowered(&cores(list), &host(mode), "");
            let reserved = layout.cores.as_ref().unwrap().reserved.as_ref().map(|r| r.record());
            assert_eq!(reserved.as_deref(), reserves, "{list}");
            assert_eq!(layout.enforced - Control::KILL, enforced, "{list}");
            let found = layout.weakened.iter().chain(&layout.missing).map(|r| r.why.as_str()).next();
            assert_eq!(found, said);
        }
    }
}

#[test]
fn swap() {
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
        let layout = lowered(limits, &host, "");
        let mut report = Report::default();
        layout.tell(&mut report);
        let sets =
            [("enforced", report.enforced), ("weakened", report.weakened), ("missing", report.missing)];
        let found = sets.iter().find(|(_, set)| set.contains(Control::SWAP)).map(|(name, _)| *name);
        let limit = |w: &Write| {
            w.path.ends_with("memory.swap.max") || w.path.ends_with("memory.memsw.limit_in_bytes")
        };
        assert_eq!(found, expected, "{mode:?} {active} {accounted:?}");
        assert_eq!(layout.writes.iter().any(limit), written, "{mode:?} {active} {accounted:?}");
    }
}

#[test]
fn odd_ends() {
    // A kernel whose v1 has no pids controller: the others hold.
    let mut host = host(Mode::V1);
    host.v1.remove("pids");
    let layout = lowered(&all(), &host, "");
    assert_eq!(text(&layout).last().unwrap(), "missing pids: cgroup v1 lacks pids");
    assert!(layout.enforced.contains(Control::MEMORY));
    // A number of processes that the kernel cannot count is one that it cannot have.
    let limits = Limits { pids_max: Some(u64::MAX), ..Limits::default() };
    let layout = lowered(&limits, &super::golden::host(Mode::V2), "");
    assert_eq!(layout.writes.last().unwrap().value, Value::Text("4194304".into()));
    // Only a reservation: there is no limit that could hold.
    let limits = Limits { memory_max: Some(MemoryMax::Unlimited), ..all() };
    let layout = lowered(&limits, &super::golden::host(Mode::V2), "");
    assert!(!layout.enforced.contains(Control::MEMORY));
    assert!(!layout.writes.iter().any(|w| w.path.ends_with("memory.max")));
}

#[test]
fn huge_pages_are_counted_where_their_controller_is() {
    let limits = Limits { hugetlb: [("2MB".to_owned(), 2 * MB)].into(), ..Limits::default() };
    let mut host = host(Mode::Hybrid);
    let layout = check(
        &limits,
        &host,
        "",
        "
mkdir /cg/unified/cofferdam.slice
mkdir /cg/unified/cofferdam.slice/share.slice
mkdir /cg/unified/cofferdam.slice/share.slice/x.scope
mkdir /cg/cpuset/cofferdam
book /cg/cpuset/cofferdam
/cg/cpuset/cofferdam/share shares
into /cg/unified/cofferdam.slice/share.slice/x.scope
enter /cg/cpuset/cofferdam/share/tasks
missing hugetlb: cgroup v1 lacks hugetlb",
    );
    assert!(!layout.enforced.contains(Control::HUGETLB));
    host.v2 = Some(tree("/cg/unified", "/", "hugetlb", ""));
    check(
        &limits,
        &host,
        "",
        "
mkdir /cg/unified/cofferdam.slice
mkdir /cg/unified/cofferdam.slice/share.slice
mkdir /cg/unified/cofferdam.slice/share.slice/x.scope
mkdir /cg/cpuset/cofferdam
book /cg/cpuset/cofferdam
/cg/cpuset/cofferdam/share shares
/cg/unified/cgroup.subtree_control = +hugetlb
/cg/unified/cofferdam.slice/cgroup.subtree_control = +hugetlb
/cg/unified/cofferdam.slice/share.slice/cgroup.subtree_control = +hugetlb
/cg/unified/cofferdam.slice/share.slice/x.scope/hugetlb.2MB.max = 2097152
into /cg/unified/cofferdam.slice/share.slice/x.scope
enter /cg/cpuset/cofferdam/share/tasks",
    );
    let layout = lowered(&limits, &super::golden::host(Mode::V2), "");
    assert_eq!(text(&layout).last().unwrap(), "missing hugetlb: cgroup v2 lacks hugetlb");
}

#[test]
fn what_only_counts_takes_what_there_is() {
    let limits = Limits { accounting: true, ..Limits::default() };
    let layout = lowered(&limits, &host(Mode::V2), "");
    let enabled =
        |name: &str| layout.writes.iter().filter(|w| w.value == Value::Text(format!("+{name}"))).count();
    assert_eq!(["cpu", "memory", "io", "pids", "cpuset"].map(enabled), [3, 2, 3, 3, 0]);
    let layout = lowered(&limits, &host(Mode::V1), "");
    let entered: Vec<&str> = layout.v1.keys().map(String::as_str).collect();
    assert_eq!(entered, ["cpu", "cpuacct", "cpuset", "freezer", "memory", "pids"]);
    assert_eq!(layout.enforced, Control::KILL);
}

#[test]
fn one_process_or_all() {
    let limits = Limits { memory: Some(MB), oom_group: true, ..Limits::default() };
    let layout = lowered(&limits, &host(Mode::V1), "");
    assert!(
        text(&layout).contains(
            &"missing oom_group: cgroup v1 kills one process (memory.oom.group is of v2)".to_owned()
        )
    );
    let layout = lowered(&limits, &host(Mode::V2), "");
    assert!(layout.enforced.contains(Control::OOM_GROUP));
    assert!(layout.writes.iter().any(|w| w.path.ends_with("memory.oom.group")));
}
