//! Detection on all kinds of hosts, from the texts of their kernel files.

use std::path::PathBuf;

use super::controllers::Listed;
use super::fixtures::*;
use super::*;

const NO_ROOT: &str = "not enough privileges: cgroup v1 needs root";

/// Parts of a [`Top`]: its name, `cgroup.controllers`, `cgroup.subtree_control`, and why it is closed.
type TopText = (&'static str, &'static str, &'static str, Option<&'static str>);

#[derive(Clone, Copy)]
struct Case {
    mounts: &'static str,
    cgroup: &'static str,
    proc_cgroups: &'static str,
    root: bool,
    top: Option<TopText>,
    /// The cgroups above the top: name and `cgroup.subtree_control`.
    above: &'static [(&'static str, &'static str)],
    /// Text of `cgroup.controllers` at the mount point. If blank, that of the top.
    offered: &'static str,
    v1_writable: bool,
}

const HYBRID: Case = Case {
    mounts: HYBRID_MOUNTS,
    cgroup: HYBRID_SELF,
    proc_cgroups: HYBRID_PROC_CGROUPS,
    root: true,
    top: Some(("/", "hugetlb\n", "", None)),
    above: &[],
    offered: "",
    v1_writable: true,
};
const V1: Case =
    Case { mounts: V1_MOUNTS, cgroup: V1_SELF, proc_cgroups: V1_PROC_CGROUPS, top: None, ..HYBRID };
const V2: Case = Case {
    mounts: V2_MOUNTS,
    cgroup: "0::/system.slice/ssh.service\n",
    proc_cgroups: PROC_CGROUPS,
    top: Some(("/", ALL_V2, "cpu io memory pids\n", None)),
    v1_writable: false,
    ..HYBRID
};
/// A container whose cgroup namespace shows its own cgroup as the root.
const CONTAINER: Case =
    Case { cgroup: "0::/\n", top: Some(("/", ALL_V2, "", Some("it has processes"))), ..V2 };
const USER: &str = "/user.slice/user-1000.slice/user@1000.service";

fn facts(case: Case) -> Facts<'static> {
    let located = locate(case.mounts, case.cgroup);
    let top = case.top.map(|(name, controllers, enabled, closed)| Top {
        name: name.into(),
        dir: PathBuf::new(),
        controllers: controllers.into(),
        enabled: enabled.into(),
        above: case.above.iter().map(|(name, control)| (name.to_string(), control.to_string())).collect(),
        closed: closed.map(str::to_owned),
        refused: None,
    });
    let offered = case.top.map_or("", |(_, controllers, ..)| controllers);
    Facts {
        root: case.root,
        proc: true,
        v1_writable: located.v1.keys().filter(|_| case.v1_writable).cloned().collect(),
        located,
        proc_cgroups: case.proc_cgroups,
        offered: if case.offered.is_empty() { offered } else { case.offered },
        part: case.cgroup == CONTAINER.cgroup,
        swaps: SWAPS_NONE,
        online: "0-3\n",
        usable: "",
        top,
        accounted: None,
    }
}

/// Formats each row as `name enabled place`, then `!` and the reason why a task cannot have the controller.
fn rows(found: &Detection) -> Vec<String> {
    let row = |row: &Controller| {
        let place = match &row.place {
            Where::V1 { mount } => format!("v1 {}", mount.display()),
            Where::V2 { name } => format!("v2 {name}"),
            Where::V2Core { by } => format!("core {by}"),
            Where::Nowhere => "nowhere".to_owned(),
        };
        let enabled = if row.enabled { "yes" } else { "no" };
        let why = row.why.iter().map(|why| format!(" ! {why}")).collect::<String>();
        assert_eq!(row.delegated, row.why.is_none(), "{row:?}");
        assert!(row.available || !row.enabled, "{row:?}");
        format!("{} {enabled} {place}{why}", row.name)
    };
    let names: Vec<&str> = found.controllers.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, CONTROLLERS);
    found.controllers.iter().map(row).collect()
}

#[track_caller]
fn table(case: Case, expected: &str) {
    let expected: Vec<&str> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(rows(&judge(&facts(case))), expected);
}

#[test]
fn hybrid_host_takes_each_controller_from_v1_or_else_v2() {
    table(
        HYBRID,
        "cpuset yes v1 /sys/fs/cgroup/cpuset
         cpu yes v1 /sys/fs/cgroup/cpu
         cpuacct yes v1 /sys/fs/cgroup/cpuacct
         blkio yes v1 /sys/fs/cgroup/blkio
         memory yes v1 /sys/fs/cgroup/memory
         devices yes v1 /sys/fs/cgroup/devices
         freezer yes v1 /sys/fs/cgroup/freezer
         net_cls yes nowhere ! not mounted in a cgroup v1 hierarchy, and cgroup v2 has no such controller
         perf_event yes core implicit
         net_prio yes nowhere ! not mounted in a cgroup v1 hierarchy, and cgroup v2 has no such controller
         hugetlb yes v2 hugetlb
         pids yes v1 /sys/fs/cgroup/pids",
    );
}

#[test]
fn v1_host_says_why_a_controller_cannot_be_used() {
    table(
        V1,
        "cpuset yes v1 /sys/fs/cgroup/cpuset
         cpu yes v1 /sys/fs/cgroup/cpu,cpuacct
         cpuacct yes v1 /sys/fs/cgroup/cpu,cpuacct
         blkio yes nowhere ! not mounted in any cgroup hierarchy
         memory yes v1 /sys/fs/cgroup/memory
         devices yes nowhere ! not mounted in any cgroup hierarchy
         freezer yes v1 /sys/fs/cgroup/freezer
         net_cls yes v1 /sys/fs/cgroup/net_cls,net_prio
         perf_event yes nowhere ! in cgroup v1 hierarchy 8, which is not mounted
         net_prio yes v1 /sys/fs/cgroup/net_cls,net_prio
         hugetlb no nowhere ! the kernel does not have this controller
         pids yes v1 /sys/fs/cgroup/pids",
    );
    let closed = "cpuset yes v1 /sys/fs/cgroup/cpuset ! ";
    let first = |case| rows(&judge(&facts(case))).first().cloned().unwrap();
    assert_eq!(first(Case { root: false, ..V1 }), format!("{closed}{NO_ROOT}"));
    let why = "/sys/fs/cgroup/cpuset cannot be written";
    assert_eq!(first(Case { v1_writable: false, ..V1 }), format!("{closed}{why}"));
}

#[test]
fn v2_host_has_controllers_and_core_features() {
    let all = "cpuset yes v2 cpuset
         cpu yes v2 cpu
         cpuacct yes core cpu.stat
         blkio yes v2 io
         memory yes v2 memory
         devices yes core eBPF
         freezer yes core cgroup.freeze
         net_cls yes nowhere ! not mounted in a cgroup v1 hierarchy, and cgroup v2 has no such controller
         perf_event yes core implicit
         net_prio yes nowhere ! not mounted in a cgroup v1 hierarchy, and cgroup v2 has no such controller
         hugetlb yes v2 hugetlb
         pids yes v2 pids";
    table(V2, all);
    // The same for cgroup_no_v1=all, which leaves a named v1 hierarchy mounted beside the v2 tree.
    table(Case { mounts: NO_V1_MOUNTS, cgroup: NO_V1_SELF, ..V2 }, all);
    let active: Vec<String> = judge(&facts(V2))
        .controllers
        .into_iter()
        .filter_map(|row| (row.active && matches!(row.place, Where::V2 { .. })).then_some(row.name))
        .collect();
    assert_eq!(active, ["cpu", "blkio", "memory", "pids"], "what cgroup.subtree_control has");
}

#[test]
fn v2_controllers_need_not_be_in_proc_cgroups() {
    // Since Linux 6.12 /proc/cgroups omits controllers without v1 support.
    table(
        Case { proc_cgroups: PROC_CGROUPS_6_12, ..V2 },
        "cpuset yes v2 cpuset
         cpu yes v2 cpu
         cpuacct yes core cpu.stat
         blkio yes v2 io
         memory yes v2 memory
         devices yes core eBPF
         freezer yes core cgroup.freeze
         net_cls no nowhere ! the kernel does not have this controller
         perf_event yes core implicit
         net_prio no nowhere ! the kernel does not have this controller
         hugetlb yes v2 hugetlb
         pids yes v2 pids",
    );
    let found = judge(&facts(Case { proc_cgroups: "", ..V2 }));
    assert_eq!(found.can_limit(), Ok(()));
    assert_eq!(rows(&found).get(7).unwrap(), "net_cls no nowhere ! /proc/cgroups cannot be read");
    assert_eq!(rows(&found).get(8).unwrap(), "perf_event no nowhere ! /proc/cgroups cannot be read");
}

#[test]
fn reason_names_the_cgroup_that_does_not_enable_a_controller() {
    // The reason names the highest cgroup that does not enable the controller.
    table(
        Case {
            root: false,
            top: Some((USER, "memory pids", "", None)),
            above: &[
                ("/", "cpu io memory pids"),
                ("/user.slice", "cpu memory pids"),
                ("/user.slice/user-1000.slice", "memory pids"),
            ],
            offered: ALL_V2,
            ..V2
        },
        "cpuset yes v2 cpuset ! not in cgroup.subtree_control of cgroup /
         cpu yes v2 cpu ! not in cgroup.subtree_control of cgroup /user.slice/user-1000.slice
         cpuacct yes core cpu.stat
         blkio yes v2 io ! not in cgroup.subtree_control of cgroup /user.slice
         memory yes v2 memory
         devices yes core eBPF ! not enough privileges: an eBPF program needs root
         freezer yes core cgroup.freeze
         net_cls yes nowhere ! not mounted in a cgroup v1 hierarchy, and cgroup v2 has no such controller
         perf_event yes core implicit
         net_prio yes nowhere ! not mounted in a cgroup v1 hierarchy, and cgroup v2 has no such controller
         hugetlb yes v2 hugetlb ! not in cgroup.subtree_control of cgroup /
         pids yes v2 pids",
    );
    let found = judge(&facts(Case { root: false, top: None, offered: ALL_V2, ..V2 }));
    let why = "cgroup /system.slice/ssh.service is not delegated: its cgroup.procs cannot be written";
    let said = rows(&found);
    assert_eq!(said.first().unwrap(), &format!("cpuset yes v2 cpuset ! {why}"));
    assert_eq!(said.get(6).unwrap(), &format!("freezer yes core cgroup.freeze ! {why}"));
    let found = judge(&facts(CONTAINER));
    let why = "cgroup / cannot enable more controllers: it has processes";
    assert_eq!(rows(&found).first().unwrap(), &format!("cpuset yes v2 cpuset ! {why}"));
    // The container's cgroup does not have the controller, so it cannot be enabled.
    let found = judge(&facts(Case { top: Some(("/", "memory pids", "memory pids", None)), ..CONTAINER }));
    let why = "not in /sys/fs/cgroup/cgroup.controllers: it must be enabled in a cgroup above, which is not visible here";
    assert_eq!(rows(&found).first().unwrap(), &format!("cpuset yes nowhere ! {why}"));
}

#[test]
fn failed_probe_is_the_reason_for_no_limits() {
    let mut facts = facts(Case { root: false, top: Some((USER, ALL_V2, ALL_V2, None)), ..V2 });
    facts.top.as_mut().unwrap().refused =
        Some("cgroup /x: cannot create a cgroup in it: mkdir: EAGAIN".into());
    let found = judge(&facts);
    assert_eq!(found.can_limit(), Err("cgroup /x: cannot create a cgroup in it: mkdir: EAGAIN"));
    assert_eq!(found.v2.unwrap().top, None);
}

#[test]
fn each_kind_of_host_has_its_mode_version_and_reason() {
    let v2_with = |controllers| Case { top: Some(("/", controllers, "", None)), ..V2 };
    let off = Case { mounts: "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n", top: None, ..V2 };
    for (what, case, mode, on, reason) in [
        ("hybrid", HYBRID, Mode::Hybrid, Version::V1, None),
        ("v1", V1, Mode::V1, Version::V1, None),
        ("v2", V2, Mode::V2, Version::V2, None),
        ("v2 with the least", v2_with("cpuset cpu io memory pids"), Mode::V2, Version::V2, None),
        ("off", off, Mode::Off, Version::V2, Some("no cgroup hierarchy is mounted")),
        ("v1 and not root", Case { root: false, ..V1 }, Mode::V1, Version::V1, Some(NO_ROOT)),
        (
            "v1, but read-only",
            Case { v1_writable: false, ..V1 },
            Mode::V1,
            Version::V1,
            Some("/sys/fs/cgroup/cpu,cpuacct cannot be written"),
        ),
        (
            "no cpu",
            v2_with("cpuset io memory pids"),
            Mode::V2,
            Version::V2,
            Some("cgroup v2 controllers not available: cpu (not in /sys/fs/cgroup/cgroup.controllers)"),
        ),
        (
            "no io",
            v2_with("cpuset cpu memory pids"),
            Mode::V2,
            Version::V2,
            Some("cgroup v2 controllers not available: io (not in /sys/fs/cgroup/cgroup.controllers)"),
        ),
        (
            "no mem",
            v2_with("cpuset cpu io pids"),
            Mode::V2,
            Version::V2,
            Some("cgroup v2 controllers not available: memory (not in /sys/fs/cgroup/cgroup.controllers)"),
        ),
        (
            "no pids",
            v2_with("cpuset cpu io memory"),
            Mode::V2,
            Version::V2,
            Some("cgroup v2 controllers not available: pids (not in /sys/fs/cgroup/cgroup.controllers)"),
        ),
        (
            "two",
            v2_with("pids cpu io"),
            Mode::V2,
            Version::V2,
            Some(
                "cgroup v2 controllers not available: cpuset, memory (not in /sys/fs/cgroup/cgroup.controllers)",
            ),
        ),
        (
            "docker",
            Case { mounts: CGROUPNS_MOUNTS, cgroup: "0::/\n", ..V2 },
            Mode::V2,
            Version::V2,
            Some("/sys/fs/cgroup is mounted read-only"),
        ),
        (
            "docker --privileged",
            CONTAINER,
            Mode::V2,
            Version::V2,
            Some(
                "cgroup v2 controllers not available: cpu, cpuset, io, memory, pids \
                 (cgroup / cannot enable more controllers: it has processes)",
            ),
        ),
        (
            "a user with nothing",
            Case { root: false, top: None, cgroup: "0::/user.slice/session-3.scope\n", ..V2 },
            Mode::V2,
            Version::V2,
            Some("cgroup /user.slice/session-3.scope is not delegated: its cgroup.procs cannot be written"),
        ),
        (
            "a user with systemd's delegation",
            Case { root: false, top: Some((USER, ALL_V2, ALL_V2, None)), ..V2 },
            Mode::V2,
            Version::V2,
            None,
        ),
        (
            "a user with systemd's default delegation",
            Case {
                root: false,
                top: Some((USER, "memory pids", "memory pids", None)),
                above: &[("/", ALL_V2), ("/user.slice", "memory pids")],
                offered: ALL_V2,
                ..V2
            },
            Mode::V2,
            Version::V2,
            Some(
                "cgroup v2 controllers not available: cpu, cpuset, io (not in cgroup.subtree_control of cgroup /user.slice)",
            ),
        ),
    ] {
        let found = judge(&facts(case));
        assert_eq!((found.mode, found.limits_on), (mode, on), "{what}");
        assert_eq!(found.can_limit().err(), reason, "{what}");
    }
}

#[test]
fn missing_v1_hierarchy_prevents_all_limits() {
    let without =
        |name: &str| HYBRID_MOUNTS.lines().filter(|l| !l.ends_with(name)).collect::<Vec<_>>().join("\n");
    let mounts = without(",memory");
    let found = judge(&Facts { located: locate(&mounts, HYBRID_SELF), ..facts(HYBRID) });
    assert_eq!(found.missing, ["memory"]);
    let why = "cgroup v1 controllers not available: memory (in cgroup v1 hierarchy 4, which is not mounted)";
    assert_eq!(found.reason.as_deref(), Some(why));
    let disabled = HYBRID_PROC_CGROUPS.replace("memory\t4\t47\t1", "memory\t0\t1\t0");
    let located = || locate(&mounts, HYBRID_SELF);
    let found = judge(&Facts { located: located(), proc_cgroups: &disabled, ..facts(HYBRID) });
    assert_eq!(
        found.reason.as_deref(),
        Some("cgroup v1 controllers not available: memory (disabled at boot)")
    );
    assert_eq!(rows(&found).get(4).unwrap(), "memory no nowhere ! disabled at boot");
    // Two controllers are missing for two reasons.
    let mounts = HYBRID_MOUNTS
        .lines()
        .filter(|l| !l.ends_with(",memory") && !l.ends_with(",cpuset"))
        .collect::<Vec<_>>()
        .join("\n");
    let found =
        judge(&Facts { located: locate(&mounts, HYBRID_SELF), proc_cgroups: &disabled, ..facts(HYBRID) });
    let why = "cgroup v1 controllers not available: cpuset (in cgroup v1 hierarchy 3, which is not mounted); memory (disabled at boot)";
    assert_eq!(found.reason.as_deref(), Some(why));
}

#[test]
fn v1_mount_without_a_live_hierarchy_is_ignored() {
    let stale = HYBRID_PROC_CGROUPS.replace("memory\t4", "memory\t0");
    let found = judge(&Facts { proc_cgroups: &stale, ..facts(HYBRID) });
    let why =
        "/sys/fs/cgroup/memory is mounted, but /proc/cgroups does not list the controller in a hierarchy";
    assert_eq!(
        found.can_limit(),
        Err(format!("cgroup v1 controllers not available: memory ({why})").as_str())
    );
    assert_eq!(rows(&found).get(4).unwrap(), &format!("memory yes nowhere ! {why}"));
    // With cgroup_no_v1=memory the controller is on v2. Limits cannot be set through both versions.
    let top = Some(("/", "hugetlb memory", "", None));
    let found = judge(&Facts { proc_cgroups: &stale, ..facts(Case { top, ..HYBRID }) });
    assert_eq!(rows(&found).get(4).unwrap(), "memory yes v2 memory");
    let why = "cgroup v1 controllers not available: memory (mounted on cgroup v2, not on v1)";
    assert_eq!(found.can_limit(), Err(why));
}

#[test]
fn malformed_lines_of_proc_cgroups_are_skipped() {
    let find = |name| Listed::find(HYBRID_PROC_CGROUPS, name);
    assert_eq!(find("memory"), Some(Listed { hierarchy: 4, enabled: true }));
    assert_eq!(find("cpu"), Some(Listed { hierarchy: 1, enabled: true }));
    for (text, name) in [("", "cpu"), ("cpu", "cpu"), ("cpu x 1 1", "cpu"), ("cpu 1 1", "cpu"), ("# a", "a")]
    {
        assert_eq!(Listed::find(text, name), None, "{text}");
    }
    assert_eq!(find("rdma"), None);
}

/// Each case has the missing controllers and the reason.
#[test]
fn required_set_decides_which_missing_controllers_prevent_limits() {
    let documented = |case| judge(&facts(case)).requiring(RequiredControllers::Documented, Control::empty());
    for case in [HYBRID, V2] {
        assert_eq!(documented(case).can_limit(), Ok(()));
    }
    for (case, missing, why) in [
        (
            V1,
            "blkio,hugetlb",
            "cgroup v1 controllers not available: blkio (not mounted in any cgroup hierarchy); hugetlb (the kernel does not have this controller)",
        ),
        (
            Case { proc_cgroups: PROC_CGROUPS_6_12, ..V2 },
            "net_cls,net_prio",
            "cgroup v2 controllers not available: net_cls, net_prio (the kernel does not have this controller)",
        ),
        (
            Case { top: Some(("/", "cpuset cpu memory pids", "", None)), ..V2 },
            "io",
            "cgroup v2 controllers not available: io (not in /sys/fs/cgroup/cgroup.controllers)",
        ),
    ] {
        let found = documented(case);
        assert_eq!(found.missing.join(","), missing);
        assert_eq!(found.can_limit(), Err(why));
        assert_eq!(found.requiring(RequiredControllers::Minimal, Control::empty()), judge(&facts(case)));
    }
    // With either required set, a caller without permission gets a reason.
    for case in [Case { root: false, ..V1 }, Case { root: false, top: None, ..V2 }] {
        let minimal = judge(&facts(case)).reason.unwrap();
        let found = documented(Case { proc_cgroups: PROC_CGROUPS, ..case });
        assert!(!found.can_limit().unwrap_err().is_empty(), "{minimal}");
    }
    let off = Case { mounts: "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n", top: None, ..V2 };
    assert_eq!(documented(off).can_limit(), Err("no cgroup hierarchy is mounted"));
    for (word, set) in [
        ("minimal", Ok(RequiredControllers::Minimal)),
        ("documented", Ok(RequiredControllers::Documented)),
        ("asked", Ok(RequiredControllers::Asked)),
    ] {
        assert_eq!(word.parse(), set);
        assert_eq!(set.unwrap().to_string(), word);
    }
    for word in ["", "all", "Minimal", "minimal "] {
        let why = format!("{word:?} is not \"minimal\", \"documented\" or \"asked\"");
        assert_eq!(word.parse::<RequiredControllers>().unwrap_err().to_string(), why);
    }
    assert_eq!(RequiredControllers::Documented.names(Version::V1, Control::empty()).len(), 12);
    assert!(RequiredControllers::Documented.names(Version::V2, Control::empty()).contains(&"io"));
}

/// Removes each of the twelve controllers on each kind of host. Limits become impossible exactly if the controller is
/// in the required set, and the reason names it.
#[test]
fn removing_a_required_controller_prevents_limits_and_names_it() {
    for (case, on) in [(HYBRID, Version::V1), (V1, Version::V1), (V2, Version::V2)] {
        let nothing = judge(&facts(case)).requiring(RequiredControllers::Asked, Control::empty());
        assert_eq!(nothing.limits_on, on, "tasks that reserve CPUs, and those kept off them, are together");
        for set in [RequiredControllers::Minimal, RequiredControllers::Documented] {
            let whole = judge(&facts(case)).requiring(set, Control::empty());
            for name in CONTROLLERS {
                let lesser = whole.without(name);
                let named = if on == Version::V2 { controllers::name_v2(name) } else { name };
                let required = set.names(on, Control::empty()).contains(&named);
                assert_eq!(lesser.missing.iter().any(|m| m == named), required, "{name} {set} {on:?}");
                if required {
                    let why = lesser.can_limit().unwrap_err();
                    assert!(why.contains(named) && why.contains("excluded by the caller"), "{why}");
                } else {
                    assert_eq!(lesser.reason, whole.reason);
                }
                assert_eq!((lesser.mode, lesser.limits_on), (whole.mode, on));
                assert!(!lesser.available().contains(name));
                assert_eq!(lesser.without(name), lesser);
            }
            assert_eq!(whole.without("io"), whole.without("blkio"));
            assert_eq!(whole.without("name=systemd"), whole);
        }
    }
    let two = judge(&facts(V2)).without("memory").without("cpu");
    assert_eq!(
        two.can_limit(),
        Err("cgroup v2 controllers not available: cpu, memory (excluded by the caller)")
    );
    let two = judge(&facts(HYBRID)).without("memory").without("freezer");
    assert_eq!(
        two.can_limit(),
        Err("cgroup v1 controllers not available: freezer, memory (excluded by the caller)")
    );
}

/// The `exec` driver decides the same: on v1 it requires root, on v2 five controllers and, without root, a delegated
/// cgroup.
#[test]
fn detection_agrees_with_the_exec_driver() {
    for (controllers, on) in [
        ("cpuset cpu io memory pids", true),
        ("cpuset cpu io memory hugetlb pids rdma misc", true),
        ("cpuset io memory pids", false),
        ("cpuset cpu memory pids", false),
        ("cpuset cpu io pids", false),
        ("cpuset cpu io memory", false),
    ] {
        let case = Case { top: Some(("/", controllers, "", None)), ..V2 };
        assert_eq!(judge(&facts(case)).can_limit().is_ok(), on, "{controllers}");
    }
    let hybrid = judge(&facts(HYBRID));
    assert_eq!((hybrid.mode, hybrid.limits_on, hybrid.reason), (Mode::Hybrid, Version::V1, None));
    assert!(judge(&facts(Case { root: false, ..V1 })).can_limit().is_err());
    let slice = Case { root: false, top: Some(("/nomad.slice", ALL_V2, "", None)), ..V2 };
    assert_eq!(judge(&facts(slice)).can_limit(), Ok(()));
}

#[test]
fn unusual_mount_layouts_are_detected() {
    // All controllers in one mount, at an unusual mount point.
    let mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                  30 22 0:30 / /mnt/cg rw - cgroup cgroup rw,cpuset,cpu,cpuacct,memory,freezer,pids\n";
    let own = "1:cpuset,cpu,cpuacct,memory,freezer,pids:/\n";
    let found = judge(&facts(Case { mounts, cgroup: own, proc_cgroups: "", ..V1 }));
    assert_eq!((found.mode, found.reason), (Mode::V1, None));
    assert!(found.v1.values().all(|h| h.mount == Path::new("/mnt/cg") && h.writable));
    // A named hierarchy has no controllers that could limit anything.
    let mounts = "26 22 0:23 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
    let found = judge(&facts(Case { mounts, cgroup: "1:name=systemd:/\n", top: None, ..V2 }));
    assert_eq!((found.mode, found.can_limit()), (Mode::Off, Err("no cgroup hierarchy is mounted")));
    // The tree bind-mounted over itself, read-only.
    let mounts = format!("{V2_MOUNTS}40 26 0:23 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n");
    let found = judge(&Facts { located: locate(&mounts, V2.cgroup), ..facts(V2) });
    assert_eq!(found.can_limit(), Err("/sys/fs/cgroup is mounted read-only"));
    // A tmpfs over the tree.
    let mounts = format!("{V2_MOUNTS}40 26 0:50 / /sys/fs/cgroup rw - tmpfs b rw\n");
    let found = judge(&Facts { located: locate(&mounts, V2.cgroup), ..facts(V2) });
    assert_eq!(found.mode, Mode::Off);
}

#[test]
fn stray_v1_controller_leaves_limits_on_v2() {
    let mounts = format!("{V2_MOUNTS}50 22 0:60 / /mnt/net rw - cgroup net rw,net_cls\n");
    let located = locate(&mounts, "1:net_cls:/\n0::/\n");
    let proc_cgroups = PROC_CGROUPS.replace("net_cls\t0", "net_cls\t1");
    let found = judge(&Facts { located, proc_cgroups: &proc_cgroups, ..facts(V2) });
    assert_eq!((found.mode, found.limits_on, found.reason), (Mode::Hybrid, Version::V2, None));
}

#[test]
fn usable_cpus_are_online_and_in_the_cpuset() {
    let found = judge(&Facts { usable: "2-7\n", swaps: SWAPS_ONE, ..facts(V2) });
    assert_eq!(found.online.to_string(), "2-3");
    assert!(found.swap.active);
    let found = judge(&facts(V2));
    assert_eq!(found.online.to_string(), "0-3");
    assert!(!found.swap.active);
    assert!(!judge(&Facts { swaps: "", ..facts(V2) }).swap.active);
}

#[test]
fn detection_serialises_to_json() {
    let found = judge(&facts(HYBRID));
    assert_eq!(found.available().len(), 9);
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json.pointer("/v1/memory/mount").unwrap(), "/sys/fs/cgroup/memory");
    assert_eq!(json.pointer("/online").unwrap(), "0-3");
    let row = json.pointer("/controllers/4").unwrap();
    let expected = serde_json::json!({
        "name": "memory",
        "place": {"v1": {"mount": "/sys/fs/cgroup/memory"}},
        "available": true,
        "enabled": true,
        "active": true,
        "delegated": true,
        "why": null,
    });
    assert_eq!(row, &expected);
    assert_eq!(json.pointer("/controllers/7/place").unwrap(), "nowhere");
    assert_eq!(
        json.pointer("/controllers/8/place").unwrap(),
        &serde_json::json!({"v2_core": {"by": "implicit"}})
    );
}
