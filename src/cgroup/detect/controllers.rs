//! Table of the controllers: where each one is, whether the kernel has it enabled, and whether a task can have it.
//!
//! Sources of the table:
//!
//! | fact | source |
//! | --- | --- |
//! | the kernel has the controller and did not disable it at boot | `/proc/cgroups` (`cgroups(7)`); a v2 `cgroup.controllers` |
//! | its v1 hierarchy and where that is mounted | `/proc/self/cgroup`, `/proc/self/mountinfo`, `statfs(2)` |
//! | v2 has it | `cgroup.controllers` at the mount point and in [`Unified::top`](super::Unified::top) |
//! | it is enabled below `top` | `cgroup.subtree_control` of `top` |
//! | the cgroup above `top` that does not enable it | `cgroup.subtree_control` from the mount point down to `top` |
//! | a task can have it | `access(2)` on directories and `cgroup.procs`, and making a cgroup in `top` |
//!
//! `/proc/cgroups` describes v1. Since Linux 6.12 it omits controllers that are built without v1 support (`memory`
//! without `CONFIG_MEMCG_V1`, `cpuset` without `CONFIG_CPUSETS_V1`). It does not show that v2 provides `freezer`,
//! `cpuacct` and `devices` without controllers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::facts::Facts;
use super::{Hierarchy, Unified};

/// The controllers that the `exec` driver's documentation requires, in the order of its table and of `/proc/cgroups`.
pub const CONTROLLERS: [&str; 12] = [
    "cpuset",
    "cpu",
    "cpuacct",
    "blkio",
    "memory",
    "devices",
    "freezer",
    "net_cls",
    "perf_event",
    "net_prio",
    "hugetlb",
    "pids",
];

/// A controller of this host: one row of [`Detection::controllers`](super::Detection::controllers).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Controller {
    /// Name in `/proc/cgroups`.
    pub name: String,
    /// Hierarchy that has the controller.
    pub place: Where,
    /// Whether the kernel has the controller, in v1 or v2 or as a v2 core feature.
    pub available: bool,
    /// Whether the kernel has the controller enabled: the last column of `/proc/cgroups` or, if that file does not list
    /// it, whether v2 has it.
    pub enabled: bool,
    /// Whether the controller is active already: bound to a mounted v1 hierarchy, in the `cgroup.subtree_control` of
    /// the highest v2 cgroup that the caller may manage, or a v2 core feature.
    pub active: bool,
    /// Whether a task can have the controller: its v1 hierarchy is writable, or it can be enabled for v2 cgroups that
    /// the caller makes. A v2 core feature needs only a cgroup that the caller may manage; `devices` also needs root.
    pub delegated: bool,
    /// Why the controller is not [`delegated`](Self::delegated).
    pub why: Option<String>,
}

/// Hierarchy that has a controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Where {
    /// A v1 hierarchy.
    V1 {
        /// Mount point of the hierarchy.
        mount: PathBuf,
    },
    /// The v2 tree, as a controller that can be enabled.
    V2 {
        /// Name of the controller on v2: `io` for `blkio`.
        name: String,
    },
    /// The v2 tree, as a core feature: no controller has to be enabled.
    V2Core {
        /// The feature: `cgroup.freeze` (Linux 5.2) for `freezer`, `cpu.stat` (4.15) for `cpuacct`, an eBPF program
        /// (4.15) for `devices`, `implicit` for `perf_event`, since `perf_event_open(2)` accepts any v2 cgroup.
        by: String,
    },
    /// No visible hierarchy.
    Nowhere,
}

/// v1 controllers that v2 replaces with core features, and the name of each feature.
const CORE: [(&str, &str); 4] =
    [("cpuacct", "cpu.stat"), ("devices", "eBPF"), ("freezer", "cgroup.freeze"), ("perf_event", "implicit")];

/// Returns the v2 name of a v1 controller.
pub(super) fn name_v2(name: &str) -> &str {
    if name == "blkio" { "io" } else { name }
}

/// A line of `/proc/cgroups`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    /// ID of the v1 hierarchy. 0 if the controller is not in a v1 hierarchy, whether or not it is on v2.
    pub hierarchy: u32,
    /// False if `cgroup_disable=` on the kernel's command line disables the controller.
    pub enabled: bool,
}

impl Listed {
    /// Finds the line of one controller. `None` if it is absent or malformed.
    pub fn find(proc_cgroups: &str, name: &str) -> Option<Listed> {
        let mut lines = proc_cgroups.lines().map(str::split_whitespace);
        let mut fields = lines.find_map(|mut f| (f.next() == Some(name)).then_some(f))?;
        let hierarchy = fields.next()?.parse().ok()?;
        let enabled = fields.nth(1)? != "0";
        Some(Listed { hierarchy, enabled })
    }
}

/// Makes the table: one row for each of [`CONTROLLERS`].
pub(super) fn table(
    facts: &Facts<'_>,
    v1: &BTreeMap<String, Hierarchy>,
    v2: Option<&Unified>,
) -> Vec<Controller> {
    CONTROLLERS.iter().map(|name| TableRow { name, facts, v1, v2 }.fill()).collect()
}

struct TableRow<'a> {
    name: &'a str,
    facts: &'a Facts<'a>,
    v1: &'a BTreeMap<String, Hierarchy>,
    v2: Option<&'a Unified>,
}

impl TableRow<'_> {
    fn fill(&self) -> Controller {
        let listed = Listed::find(self.facts.proc_cgroups, self.name);
        let place = self.place(listed);
        let has = |set: fn(&Unified) -> &std::collections::BTreeSet<String>| {
            self.v2.is_some_and(|v2| set(v2).contains(name_v2(self.name)))
        };
        let top = self.v2.is_some_and(|v2| v2.top.is_some());
        let (active, delegated) = match &place {
            Where::V1 { .. } => (true, self.v1.get(self.name).is_some_and(|h| h.writable)),
            Where::V2 { .. } => (has(|v2| &v2.enabled), has(|v2| &v2.controllers)),
            Where::V2Core { .. } => (true, top && (self.name != "devices" || self.facts.root)),
            Where::Nowhere => (false, false),
        };
        let there = place != Where::Nowhere;
        Controller {
            name: self.name.to_owned(),
            available: listed.is_some() || there,
            enabled: listed.map_or(there, |l| l.enabled),
            active,
            delegated,
            why: (!delegated).then(|| self.why(&place, listed)),
            place,
        }
    }

    fn place(&self, listed: Option<Listed>) -> Where {
        if let Some(v1) = self.v1.get(self.name) {
            return Where::V1 { mount: v1.mount.clone() };
        }
        let Some(v2) = self.v2 else { return Where::Nowhere };
        let name = name_v2(self.name);
        if self.is_offered() || v2.controllers.contains(name) {
            return Where::V2 { name: name.to_owned() };
        }
        // `perf_event` is a v2 controller without files, which `cgroup.controllers` does not list. It is on v2 if it is
        // enabled and in no v1 hierarchy. The other core features are always on v2.
        let implicit = listed.is_some_and(|l| l.enabled && l.hierarchy == 0);
        match CORE.iter().find(|(core, _)| *core == name) {
            Some((core, by)) if *core != "perf_event" || implicit => Where::V2Core { by: (*by).to_owned() },
            _ => Where::Nowhere,
        }
    }

    /// Whether the cgroup at the v2 mount point has the controller.
    fn is_offered(&self) -> bool {
        self.facts.offered.split_whitespace().any(|word| word == name_v2(self.name))
    }

    fn why(&self, place: &Where, listed: Option<Listed>) -> String {
        let no_top = || self.v2.filter(|v2| v2.top.is_none()).and_then(|v2| v2.why.clone());
        match place {
            Where::V1 { mount } => match self.facts.located.v1.get(self.name) {
                Some(m) if m.read_only => format!("{} is mounted read-only", mount.display()),
                _ if !self.facts.root => "not enough privileges: cgroup v1 needs root".to_owned(),
                _ => format!("{} cannot be written", mount.display()),
            },
            Where::V2 { .. } => no_top().unwrap_or_else(|| self.not_handed_down()),
            Where::V2Core { .. } => {
                no_top().unwrap_or_else(|| "not enough privileges: an eBPF program needs root".to_owned())
            }
            Where::Nowhere => self.nowhere(listed),
        }
    }

    /// Why the highest cgroup that the caller may manage cannot enable a controller that the cgroup at the mount point
    /// has.
    fn not_handed_down(&self) -> String {
        let name = name_v2(self.name);
        let has = |text: &str| text.split_whitespace().any(|word| word == name);
        let top = self.facts.top.as_ref();
        if top.is_some_and(|top| has(&top.controllers)) {
            return self.v2.and_then(|v2| v2.why.clone()).unwrap_or_default();
        }
        let mut above = top.iter().flat_map(|top| &top.above);
        match above.find(|(_, control)| !has(control)) {
            Some((level, _)) => format!("not in cgroup.subtree_control of cgroup {level}"),
            None => "not in cgroup.controllers".to_owned(),
        }
    }

    fn nowhere(&self, listed: Option<Listed>) -> String {
        let only_v1 = matches!(self.name, "net_cls" | "net_prio");
        match listed {
            Some(Listed { enabled: false, .. }) => "disabled at boot".to_owned(),
            Some(Listed { hierarchy: 0, .. }) => match (self.facts.located.v1.get(self.name), self.v2) {
                (Some(m), _) => {
                    format!(
                        "{} is mounted, but /proc/cgroups does not list the controller in a hierarchy",
                        m.path.display()
                    )
                }
                (None, Some(_)) if only_v1 => {
                    "not mounted in a cgroup v1 hierarchy, and cgroup v2 has no such controller".to_owned()
                }
                (None, Some(v2)) => {
                    let file = v2.mount.join("cgroup.controllers");
                    let above = if self.facts.part {
                        ": it must be enabled in a cgroup above, which is not visible here"
                    } else {
                        ""
                    };
                    format!("not in {}{above}", file.display())
                }
                (None, None) => "not mounted in any cgroup hierarchy".to_owned(),
            },
            Some(Listed { hierarchy, .. }) => {
                format!("in cgroup v1 hierarchy {hierarchy}, which is not mounted")
            }
            None if self.facts.proc_cgroups.is_empty() => "/proc/cgroups cannot be read".to_owned(),
            None => "the kernel does not have this controller".to_owned(),
        }
    }
}
