//! Conclusions from the facts of a host: where the hierarchies are, and what the caller may write.

use std::collections::{BTreeMap, BTreeSet};

use super::controllers::{Listed, table};
use super::facts::Facts;
use super::{Detection, Hierarchy, Mode, RequiredControllers, Swap, Unified, Version};
use crate::cgroup::CpuSet;
use crate::report::Control;

/// Turns facts into a detection.
pub(super) fn judge(facts: &Facts<'_>) -> Detection {
    // mountinfo may list a controller for a v1 mount although the controller is no longer in that hierarchy.
    // `/proc/cgroups` then shows hierarchy 0 for it.
    let stale = |name: &str| Listed::find(facts.proc_cgroups, name).is_some_and(|l| l.hierarchy == 0);
    let hierarchies = facts.located.v1.iter().filter(|(name, _)| !stale(name)).map(|(name, m)| {
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
    let nothing =
        if facts.proc { "no cgroup hierarchy is mounted" } else { "/proc/self/mountinfo cannot be read" };
    let mut online = CpuSet::parse_lenient(facts.online);
    if !facts.usable.trim().is_empty() {
        online = online.intersection(&CpuSet::parse_lenient(facts.usable));
    }
    let mut found = Detection {
        mode,
        limits_on: Version::V2,
        controllers: table(facts, &v1, v2.as_ref()),
        v2,
        v1,
        required: RequiredControllers::Minimal,
        asked: Control::empty(),
        missing: Vec::new(),
        reason: (mode == Mode::Off).then(|| nothing.to_owned()),
        online,
        swap: Swap { active: facts.swaps.lines().nth(1).is_some(), accounted: facts.accounted },
    };
    found.shut();
    found
}

/// The v2 tree, with the controllers that its highest manageable cgroup can enable.
fn unified(facts: &Facts<'_>) -> Option<Unified> {
    let mounted = facts.located.v2.as_ref()?;
    let own = facts.located.own.clone();
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>();
    let mount = mounted.path.clone();
    let refused = match (&facts.top, &own) {
        _ if mounted.read_only => Some(format!("{} is mounted read-only", mount.display())),
        (Some(top), _) => top.refused.clone(),
        (None, Some(own)) => {
            Some(format!("cgroup {own} is not delegated: its cgroup.procs cannot be written"))
        }
        (None, None) => Some(format!("the caller's cgroup is not below {}", mount.display())),
    };
    let top = match (&facts.top, refused) {
        (Some(top), None) => top,
        (_, why) => {
            let (controllers, enabled) = (BTreeSet::new(), BTreeSet::new());
            return Some(Unified { mount, own, top: None, controllers, enabled, why });
        }
    };
    let enabled = words(&top.enabled);
    let all = words(&top.controllers);
    let (controllers, why) = match &top.closed {
        Some(why) if all != enabled => {
            (enabled.clone(), Some(format!("cgroup {} cannot enable more controllers: {why}", top.name)))
        }
        _ => (all, None),
    };
    Some(Unified { mount, own, top: Some(top.name.clone()), controllers, enabled, why })
}
