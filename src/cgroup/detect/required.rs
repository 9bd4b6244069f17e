//! Required controllers. Limits are all or nothing, and the operator chooses which controllers they require.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::controllers::{CONTROLLERS, name_v2};
use super::{Controller, Detection, Mode, V1_REQUIRED, V2_REQUIRED, Version, Where};
use crate::notation::InvalidValue;
use crate::report::Control;

/// Controllers that limits use on v1. If required, they must be usable and not only enabled.
const V1_USED: [&str; 6] = ["blkio", "cpu", "cpuset", "freezer", "memory", "pids"];

/// Controllers that are required before any limit is set. If one is missing, no limit is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RequiredControllers {
    /// The controllers that limits are made of: [`V1_REQUIRED`] where limits are set through v1, [`V2_REQUIRED`] where
    /// they are set through v2.
    #[default]
    Minimal,
    /// All of [`CONTROLLERS`], as the `exec` driver's documentation requires.
    ///
    /// That documentation requires only that `/proc/cgroups` shows them as *enabled*. That is not enough: an enabled
    /// controller may be unusable, and the task would then run with half of its limits. This variant requires that the
    /// controllers that limits use are usable, and that the others are enabled:
    ///
    /// | controller | on v1 | on v2 |
    /// | --- | --- | --- |
    /// | cpuset, cpu, memory, pids, blkio | its hierarchy is mounted and can be written | the controller (`io` for `blkio`) can be enabled for tasks |
    /// | freezer | the same | always: `cgroup.freeze` |
    /// | cpuacct | enabled | always: `cpu.stat` |
    /// | devices, perf_event, hugetlb | enabled | enabled |
    /// | net_cls, net_prio | enabled | enabled; v2 has no such controllers, and no limit uses them |
    ///
    /// Enabled means [`Controller::enabled`].
    Documented,
    /// The controllers of the limits that the task asks for. A user to whom systemd delegates memory, pids and cpu can
    /// then limit these three, although cpuset and io are missing.
    ///
    /// On a hybrid host, a task whose limits only the v2 tree has is limited there. It then is not kept off the CPUs that
    /// tasks reserve through v1.
    Asked,
}

/// The v2 controller that each control needs.
const OF_CONTROLS: [(Control, &str); 6] = [
    (Control::CPU.union(Control::CPU_MAX), "cpu"),
    (Control::CPUSET, "cpuset"),
    (Control::HUGETLB, "hugetlb"),
    (Control::IO, "io"),
    (Control::MEMORY.union(Control::SWAP).union(Control::OOM_GROUP), "memory"),
    (Control::PIDS, "pids"),
];

impl RequiredControllers {
    /// The names of the required controllers on this version, sorted. `asked` are the controls that the limits ask for;
    /// only [`Asked`](RequiredControllers::Asked) depends on it.
    pub fn names(self, on: Version, asked: Control) -> Vec<&'static str> {
        match (self, on) {
            (RequiredControllers::Minimal, Version::V1) => V1_REQUIRED.to_vec(),
            (RequiredControllers::Minimal, Version::V2) => V2_REQUIRED.to_vec(),
            (RequiredControllers::Asked, _) => {
                let named = |name| if on == Version::V1 && name == "io" { "blkio" } else { name };
                let used = OF_CONTROLS.into_iter().filter(|(controls, _)| asked.intersects(*controls));
                used.map(|(_, name)| named(name)).collect::<BTreeSet<_>>().into_iter().collect()
            }
            (RequiredControllers::Documented, _) => {
                let named = |name| if on == Version::V2 { name_v2(name) } else { name };
                CONTROLLERS.into_iter().map(named).collect::<BTreeSet<_>>().into_iter().collect()
            }
        }
    }
}

impl FromStr for RequiredControllers {
    type Err = InvalidValue;

    fn from_str(word: &str) -> Result<Self, InvalidValue> {
        match word {
            "minimal" => Ok(RequiredControllers::Minimal),
            "documented" => Ok(RequiredControllers::Documented),
            "asked" => Ok(RequiredControllers::Asked),
            _ => {
                let why = format!("{word:?} is not \"minimal\", \"documented\" or \"asked\"");
                Err(InvalidValue::new(why))
            }
        }
    }
}

impl fmt::Display for RequiredControllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RequiredControllers::Minimal => "minimal",
            RequiredControllers::Documented => "documented",
            RequiredControllers::Asked => "asked",
        })
    }
}

impl Detection {
    /// Returns the same host with another required set. Only [`required`](Self::required), [`asked`](Self::asked),
    /// [`missing`](Self::missing), [`reason`](Self::reason), [`can_limit`](Self::can_limit) and, with
    /// [`RequiredControllers::Asked`], [`limits_on`](Self::limits_on) change. `asked` is
    /// [`Limits::asked`](crate::Limits::asked).
    pub fn requiring(&self, required: RequiredControllers, asked: Control) -> Detection {
        let mut found = self.clone();
        (found.required, found.asked) = (required, asked);
        found.shut();
        found
    }

    /// Returns the same host as if its kernel lacked a controller, named as on v1 or on v2 (`io` is `blkio`). This
    /// shows the plan for a host with fewer controllers.
    ///
    /// ```
    /// # use cofferdam::{Host, Sandbox, cgroup::Limits};
    /// # fn main() -> Result<(), cofferdam::Error> {
    /// let mut host = Host::probe()?;
    /// host.cgroups = host.cgroups.without("memory");
    /// let limits = Limits { pids_max: Some(9), ..Limits::default() };
    /// if let Ok(plan) = Sandbox::command("true").limits(limits).host(&host).plan() {
    ///     println!("{}", plan.report); // missing   pids: the reason names the controller memory
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn without(&self, controller: &str) -> Detection {
        let mut found = self.clone();
        for name in names_of(controller) {
            found.v1.remove(name);
            if let Some(v2) = &mut found.v2 {
                v2.controllers.remove(name);
                v2.enabled.remove(name);
            }
            for row in found.controllers.iter_mut().filter(|row| row.name == name) {
                *row = Controller {
                    name: name.to_owned(),
                    place: Where::Nowhere,
                    available: false,
                    enabled: false,
                    active: false,
                    delegated: false,
                    why: Some("excluded by the caller".to_owned()),
                };
            }
        }
        found.shut();
        found
    }

    /// The row of a controller, by its v1 or v2 name.
    pub(super) fn row(&self, name: &str) -> Option<&Controller> {
        self.controllers.iter().find(|row| row.name == name || name_v2(&row.name) == name)
    }

    /// Recomputes the version that limits are set through, its missing controllers, and the reason why no limits can be
    /// set.
    pub(super) fn shut(&mut self) {
        let lacking = |on| -> Vec<String> {
            let names = self.required.names(on, self.asked).into_iter();
            names.filter(|name| !self.has(on, name)).map(str::to_owned).collect()
        };
        let on = self.interface();
        let missing = lacking(on);
        let reason = match on {
            // judge() has set the reason.
            _ if self.mode == Mode::Off => self.reason.clone(),
            Version::V1 => self.reason_v1(&missing),
            Version::V2 => self.reason_v2(&missing),
        };
        (self.limits_on, self.missing, self.reason) = (on, missing, reason);
    }

    /// The version that limits are set through, if they can be set: the one that has all of its required controllers.
    /// v1 is tried first. If neither has all of them, it is v1 if v1 has any. With [`RequiredControllers::Asked`] it is
    /// the version that lacks fewer of the controllers of the limits asked for. If both lack the same number, it is the
    /// version of tasks with all limits: tasks that share CPUs, and those that reserve them, must be in the same hierarchy.
    fn interface(&self) -> Version {
        let lacks = |on, all: &[&str]| all.iter().filter(|name| !self.has(on, name)).count();
        if self.required == RequiredControllers::Asked {
            let [v1, v2] =
                [Version::V1, Version::V2].map(|on| lacks(on, &self.required.names(on, self.asked)));
            if v1 < v2 || self.v2.is_none() {
                return Version::V1;
            } else if v2 < v1 {
                return Version::V2;
            }
        }
        let v1 = lacks(Version::V1, &V1_REQUIRED);
        let v2 = lacks(Version::V2, &V2_REQUIRED);
        if v1 == 0 || (v1 < V1_REQUIRED.len() && v2 > 0) { Version::V1 } else { Version::V2 }
    }

    /// Whether a required controller is usable or enabled, as [`RequiredControllers`] defines it.
    fn has(&self, on: Version, name: &str) -> bool {
        let row = self.row(name);
        let enabled = row.is_some_and(|row| row.enabled);
        match (on, name) {
            (Version::V1, name) if V1_USED.contains(&name) => self.v1.contains_key(name),
            (Version::V2, "cpu" | "cpuset" | "io" | "memory" | "pids") => {
                self.v2.as_ref().is_some_and(|v2| v2.controllers.contains(name))
            }
            (Version::V2, "cpuacct" | "freezer") => {
                enabled || row.is_some_and(|row| matches!(row.place, Where::V2Core { .. }))
            }
            _ => enabled,
        }
    }

    fn reason_v1(&self, missing: &[String]) -> Option<String> {
        if !missing.is_empty() {
            return Some(format!(
                "cgroup v1 controllers not available: {}",
                self.named(Version::V1, missing)
            ));
        }
        let used =
            self.required.names(Version::V1, self.asked).into_iter().filter(|name| V1_USED.contains(name));
        let mut used = used.filter_map(|name| Some((name, self.v1.get(name)?)));
        let (name, closed) = used.find(|(_, hierarchy)| !hierarchy.writable)?;
        let why = self.row(name).and_then(|row| row.why.clone());
        Some(why.unwrap_or_else(|| format!("{} cannot be written", closed.mount.display())))
    }

    fn reason_v2(&self, missing: &[String]) -> Option<String> {
        if missing.is_empty() {
            return None;
        }
        match &self.v2 {
            // Without a `top` no controllers are known, so the reason is why there is no `top`.
            Some(v2) if v2.top.is_none() && v2.why.is_some() => v2.why.clone(),
            _ => Some(format!("cgroup v2 controllers not available: {}", self.named(Version::V2, missing))),
        }
    }

    /// Formats missing controllers as `cpuset, io (why); memory (disabled at boot)`, grouped by reason.
    fn named(&self, on: Version, missing: &[String]) -> String {
        let mut groups: Vec<(Option<&str>, Vec<&str>)> = Vec::new();
        for name in missing {
            let why = self.row(name).and_then(|row| match (&row.why, &row.place) {
                (None, Where::V2 { .. }) if on == Version::V1 => Some("mounted on cgroup v2, not on v1"),
                (why, _) => why.as_deref(),
            });
            match groups.iter_mut().find(|(known, _)| *known == why) {
                Some((_, names)) => names.push(name),
                None => groups.push((why, vec![name])),
            }
        }
        let said = groups.into_iter().map(|(why, names)| match why {
            Some(why) => format!("{} ({why})", names.join(", ")),
            None => names.join(", "),
        });
        said.collect::<Vec<_>>().join("; ")
    }
}

/// The v1 name of a controller and, if different, its v2 name.
fn names_of(controller: &str) -> Vec<&str> {
    match controller {
        "blkio" | "io" => vec!["blkio", "io"],
        name => vec![name],
    }
}
