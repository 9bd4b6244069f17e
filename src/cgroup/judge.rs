//! What the facts of a host amount to: which interface limits are set through, and if none, why.

use std::collections::{BTreeMap, BTreeSet};

use super::mounts::Located;
use super::probe::{Detection, Hierarchy, Mode, Swap, Top, Unified, V1_REQUIRED, V2_REQUIRED, Version};
use super::set::CpuSet;

/// All that [`judge`] looks at.
pub(super) struct Facts<'a> {
    pub root: bool,
    /// Whether `/proc/self/mountinfo` could be read.
    pub proc: bool,
    pub located: Located,
    pub proc_cgroups: &'a str,
    pub swaps: &'a str,
    pub online: &'a str,
    /// The processors that the hierarchy's root or the delegated cgroup may use; blank when unknown.
    pub usable: &'a str,
    pub top: Option<Top>,
    pub v1_writable: BTreeSet<String>,
    pub accounted: Option<bool>,
}

/// Decides what the facts amount to.
pub(super) fn judge(facts: &Facts<'_>) -> Detection {
    let hierarchies = facts.located.v1.iter().map(|(name, m)| {
        let writable = facts.root && facts.v1_writable.contains(name) && !m.read_only;
        (name.clone(), Hierarchy { mount: m.path.clone(), writable })
    });
    let v1: BTreeMap<String, Hierarchy> = hierarchies.collect();
    let v2 = unified(facts);
    let mode = match (v1.is_empty(), v2.is_some()) {
        (true, false) => Mode::Off,
        (true, true) => Mode::V2,
        (false, false) => Mode::V1,
        (false, true) => Mode::Hybrid,
    };
    let (limits_on, missing) = choose(&v1, v2.as_ref());
    let reason = match limits_on {
        _ if mode == Mode::Off && !facts.proc => Some("/proc/self/mountinfo cannot be read".to_owned()),
        _ if mode == Mode::Off => Some("no cgroup hierarchy is mounted".to_owned()),
        Version::V1 => v1_reason(facts, &v1, &missing),
        Version::V2 => v2_reason(facts, v2.as_ref(), &missing),
    };
    let mut online = CpuSet::parse_lenient(facts.online);
    if !facts.usable.trim().is_empty() {
        online = online.intersection(&CpuSet::parse_lenient(facts.usable));
    }
    let swap = Swap { active: facts.swaps.lines().nth(1).is_some(), accounted: facts.accounted };
    Detection { mode, limits_on, v2, v1, missing, reason, online, swap }
}

/// The v2 tree with the controllers that its highest manageable cgroup can hand down.
fn unified(facts: &Facts<'_>) -> Option<Unified> {
    let mounted = facts.located.v2.as_ref()?;
    let own = facts.located.own.clone();
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>();
    let mount = mounted.path.clone();
    let Some(top) = facts.top.as_ref().filter(|_| !mounted.read_only) else {
        let why = match &own {
            _ if mounted.read_only => format!("{} is mounted read-only", mount.display()),
            Some(own) => format!("cgroup {own} is not delegated: its cgroup.procs cannot be written"),
            None => format!("the caller's cgroup is not below {}", mount.display()),
        };
        let (controllers, enabled) = (BTreeSet::new(), BTreeSet::new());
        return Some(Unified { mount, own, top: None, controllers, enabled, why: Some(why) });
    };
    let enabled = words(&top.enabled);
    let all = words(&top.controllers);
    let (controllers, why) = match top.closed {
        Some(why) if all != enabled => {
            (enabled.clone(), Some(format!("cgroup {} can enable no more: {why}", top.name)))
        }
        _ => (all, None),
    };
    Some(Unified { mount, own, top: Some(top.name.clone()), controllers, enabled, why })
}

/// The interface to set limits through, and what it lacks: one that lacks nothing, else the one that has
/// some of it.
fn choose(v1: &BTreeMap<String, Hierarchy>, v2: Option<&Unified>) -> (Version, Vec<String>) {
    let lacking = |required: &[&str], has: &dyn Fn(&str) -> bool| -> Vec<String> {
        required.iter().filter(|name| !has(name)).map(|name| (*name).to_owned()).collect()
    };
    let v1_lacks = lacking(&V1_REQUIRED, &|name| v1.contains_key(name));
    let v2_lacks = lacking(&V2_REQUIRED, &|name| v2.is_some_and(|v2| v2.controllers.contains(name)));
    let v1_has_some = v1_lacks.len() < V1_REQUIRED.len();
    if v1_lacks.is_empty() || (v1_has_some && !v2_lacks.is_empty()) {
        (Version::V1, v1_lacks)
    } else {
        (Version::V2, v2_lacks)
    }
}

fn v1_reason(facts: &Facts<'_>, v1: &BTreeMap<String, Hierarchy>, missing: &[String]) -> Option<String> {
    if !missing.is_empty() {
        return Some(format!("cgroup v1 lacks {}", named(missing, facts.proc_cgroups)));
    }
    if !facts.root {
        return Some("the controllers are on cgroup v1, which needs root".to_owned());
    }
    let closed = V1_REQUIRED.iter().filter_map(|name| v1.get(*name)).find(|h| !h.writable)?;
    Some(format!("{} cannot be written", closed.mount.display()))
}

fn v2_reason(facts: &Facts<'_>, v2: Option<&Unified>, missing: &[String]) -> Option<String> {
    if missing.is_empty() {
        return None;
    }
    match v2.and_then(|v2| v2.why.as_deref()) {
        // Without a top nothing is known of controllers: then that is the reason, and not what they lack.
        Some(why) if facts.top.is_none() || facts.located.v2.as_ref().is_some_and(|m| m.read_only) => {
            Some(why.to_owned())
        }
        Some(why) => Some(format!("cgroup v2 lacks {} ({why})", named(missing, facts.proc_cgroups))),
        None => Some(format!("cgroup v2 lacks {}", named(missing, facts.proc_cgroups))),
    }
}

/// `cpuset, memory (disabled at boot)`: with what `/proc/cgroups` knows of why.
fn named(missing: &[String], proc_cgroups: &str) -> String {
    let disabled = |name: &str| {
        proc_cgroups.lines().any(|line| {
            let mut fields = line.split_whitespace();
            fields.next() == Some(name) && fields.nth(2) == Some("0")
        })
    };
    let names = missing
        .iter()
        .map(|name| if disabled(name) { format!("{name} (disabled at boot)") } else { name.clone() });
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::fixtures::*;
    use super::super::mounts::locate;
    use super::*;

    #[derive(Clone, Copy)]
    struct Case {
        mounts: &'static str,
        cgroup: &'static str,
        root: bool,
        top: Option<(&'static str, &'static str, &'static str, Option<&'static str>)>,
        v1_writable: bool,
    }

    const HYBRID: Case = Case {
        mounts: HYBRID_MOUNTS,
        cgroup: HYBRID_SELF,
        root: true,
        top: Some(("/", "hugetlb\n", "", None)),
        v1_writable: true,
    };
    const V1: Case = Case { mounts: V1_MOUNTS, cgroup: V1_SELF, top: None, ..HYBRID };
    const V2: Case = Case {
        mounts: V2_MOUNTS,
        cgroup: "0::/system.slice/ssh.service\n",
        top: Some(("/", ALL_V2, "cpu io memory pids\n", None)),
        v1_writable: false,
        ..HYBRID
    };

    fn facts(case: Case) -> Facts<'static> {
        let located = locate(case.mounts, case.cgroup);
        Facts {
            root: case.root,
            proc: true,
            v1_writable: located.v1.keys().filter(|_| case.v1_writable).cloned().collect(),
            located,
            proc_cgroups: PROC_CGROUPS,
            swaps: SWAPS_NONE,
            online: "0-3\n",
            usable: "",
            top: case.top.map(|(name, controllers, enabled, closed)| Top {
                name: name.into(),
                dir: PathBuf::new(),
                controllers: controllers.into(),
                enabled: enabled.into(),
                closed,
            }),
            accounted: None,
        }
    }

    #[test]
    fn modes_and_reasons() {
        let v2_with = |controllers| Case { top: Some(("/", controllers, "", None)), ..V2 };
        let user = "/user.slice/user-1000.slice/user@1000.service";
        let off = Case { mounts: "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n", top: None, ..V2 };
        for (what, case, mode, on, reason) in [
            ("hybrid", HYBRID, Mode::Hybrid, Version::V1, None),
            ("v1", V1, Mode::V1, Version::V1, None),
            ("v2", V2, Mode::V2, Version::V2, None),
            ("v2 with the least", v2_with("cpuset cpu io memory pids"), Mode::V2, Version::V2, None),
            ("off", off, Mode::Off, Version::V2, Some("no cgroup hierarchy is mounted")),
            (
                "v1 and not root",
                Case { root: false, ..V1 },
                Mode::V1,
                Version::V1,
                Some("the controllers are on cgroup v1, which needs root"),
            ),
            (
                "v1, but read-only",
                Case { v1_writable: false, ..V1 },
                Mode::V1,
                Version::V1,
                Some("/sys/fs/cgroup/cpu,cpuacct cannot be written"),
            ),
            ("no cpu", v2_with("cpuset io memory pids"), Mode::V2, Version::V2, Some("cgroup v2 lacks cpu")),
            ("no io", v2_with("cpuset cpu memory pids"), Mode::V2, Version::V2, Some("cgroup v2 lacks io")),
            ("no mem", v2_with("cpuset cpu io pids"), Mode::V2, Version::V2, Some("cgroup v2 lacks memory")),
            ("no pids", v2_with("cpuset cpu io memory"), Mode::V2, Version::V2, Some("cgroup v2 lacks pids")),
            ("two", v2_with("pids cpu io"), Mode::V2, Version::V2, Some("cgroup v2 lacks cpuset, memory")),
            (
                "docker",
                Case { mounts: CGROUPNS_MOUNTS, cgroup: "0::/\n", ..V2 },
                Mode::V2,
                Version::V2,
                Some("/sys/fs/cgroup is mounted read-only"),
            ),
            (
                "docker --privileged",
                Case { cgroup: "0::/\n", top: Some(("/", ALL_V2, "", Some("it has processes"))), ..V2 },
                Mode::V2,
                Version::V2,
                Some(
                    "cgroup v2 lacks cpu, cpuset, io, memory, pids \
                     (cgroup / can enable no more: it has processes)",
                ),
            ),
            (
                "a user with nothing",
                Case { root: false, top: None, cgroup: "0::/user.slice/session-3.scope\n", ..V2 },
                Mode::V2,
                Version::V2,
                Some(
                    "cgroup /user.slice/session-3.scope is not delegated: its cgroup.procs cannot be written",
                ),
            ),
            (
                "a user with systemd's delegation",
                Case { root: false, top: Some((user, ALL_V2, ALL_V2, None)), ..V2 },
                Mode::V2,
                Version::V2,
                None,
            ),
            (
                "a user with systemd's default delegation",
                Case { root: false, top: Some((user, "memory pids", "memory pids", None)), ..V2 },
                Mode::V2,
                Version::V2,
                Some("cgroup v2 lacks cpu, cpuset, io"),
            ),
        ] {
            let found = judge(&facts(case));
            assert_eq!((found.mode, found.limits_on), (mode, on), "{what}");
            assert_eq!(found.gate().err(), reason, "{what}");
        }
    }

    #[test]
    fn what_is_half_on_v1_is_off() {
        let without =
            |name: &str| HYBRID_MOUNTS.lines().filter(|l| !l.ends_with(name)).collect::<Vec<_>>().join("\n");
        let mounts = without(",memory");
        let found = judge(&Facts { located: locate(&mounts, HYBRID_SELF), ..facts(HYBRID) });
        assert_eq!(found.missing, ["memory"]);
        assert_eq!(found.reason.as_deref(), Some("cgroup v1 lacks memory"));
        let disabled = PROC_CGROUPS.replace("memory\t0\t1\t1", "memory\t0\t1\t0");
        let facts = Facts { located: locate(&mounts, HYBRID_SELF), proc_cgroups: &disabled, ..facts(HYBRID) };
        assert_eq!(judge(&facts).reason.as_deref(), Some("cgroup v1 lacks memory (disabled at boot)"));
    }

    #[test]
    fn a_stray_v1_controller_leaves_v2_in_charge() {
        let mounts = format!("{V2_MOUNTS}50 22 0:60 / /mnt/net rw - cgroup net rw,net_cls\n");
        let located = locate(&mounts, "1:net_cls:/\n0::/\n");
        let found = judge(&Facts { located, ..facts(V2) });
        assert_eq!((found.mode, found.limits_on, found.reason), (Mode::Hybrid, Version::V2, None));
    }

    #[test]
    fn processors_and_swap() {
        let found = judge(&Facts { usable: "2-7\n", swaps: SWAPS_ONE, ..facts(V2) });
        assert_eq!(found.online.to_string(), "2-3");
        assert!(found.swap.active);
        let found = judge(&facts(V2));
        assert_eq!(found.online.to_string(), "0-3");
        assert!(!found.swap.active);
        assert!(!judge(&Facts { swaps: "", ..facts(V2) }).swap.active);
    }

    #[test]
    fn it_is_data() {
        let found = judge(&facts(HYBRID));
        assert_eq!(found.available().len(), 9);
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(json.pointer("/v1/memory/mount").unwrap(), "/sys/fs/cgroup/memory");
        assert_eq!(json.pointer("/online").unwrap(), "0-3");
    }
}
