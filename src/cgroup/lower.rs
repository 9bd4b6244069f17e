//! Limits and a detection become a [`Layout`]. Nothing is touched here.

use std::path::{Path, PathBuf};

use super::devices::{self, Rule};
use super::layout::{Dir, Kind, Layout, Need, Value, Write};
use super::limits::{Limits, PIDS_LIMIT};
use super::name::{CgroupName, CgroupPath, levels};
use super::probe::{Detection, Hierarchy, Swap, Unified, Version};
use super::{clamp_shares, shares_to_weight};
use crate::report::{Control, Reason};

/// The crate's own parents.
const OWN_PARENT_V2: &str = "cofferdam.slice";
const OWN_PARENT_V1: &str = "cofferdam";

/// Lays out the cgroups of one task.
///
/// The leaf is `<parent>/<name>.scope` in the v2 tree and `<parent>/<name>` in a v1 hierarchy. The tree is always
/// used when it may be, for birth, killing and events; a v1 hierarchy only if its controller is to limit
/// something, and the freezer only where there is no tree to kill in.
///
/// `extra_pids` processes of the sandbox itself are allowed for beyond [`Limits::pids_max`]. `keep` leaves
/// the cgroups behind when the group's handle is dropped. `rules` are the devices that the task may use, all others
/// being refused; when there are none nothing is refused. They are held by the devices controller of v1 where it is
/// mounted and root may write it, and by a program on the leaf in the v2 tree elsewhere. What cannot hold is said in the layout: a
/// host without any cgroups gets an empty layout, and not an error.
///
/// Where the operator named a parent, it and the levels above it must not have processes of their own on v2.
pub fn lower(
    limits: &Limits,
    detection: &Detection,
    parent: &CgroupPath,
    name: &CgroupName,
    extra_pids: u64,
    rules: &[Rule],
    keep: bool,
) -> Layout {
    let layout = Layout { keep, enforced: limits.asked(), ..Layout::default() };
    let mut lowering = Lowering { limits, detection, parent, name, extra_pids, layout };
    let tree = lowering.tree();
    match (detection.gate(), detection.limits_on, &tree) {
        (Err(why), ..) => lowering.miss(limits.asked(), why),
        (Ok(()), Version::V1, _) => lowering.v1(),
        (Ok(()), Version::V2, Ok(tree)) => lowering.v2(tree),
        (Ok(()), Version::V2, Err(why)) => lowering.miss(limits.asked(), why.clone()),
    }
    lowering.devices(rules, tree.as_ref().err());
    lowering.kill(tree.err());
    lowering.layout
}

struct Lowering<'a> {
    limits: &'a Limits,
    detection: &'a Detection,
    parent: &'a CgroupPath,
    name: &'a CgroupName,
    extra_pids: u64,
    layout: Layout,
}

/// A place in the v2 tree.
struct Tree<'a> {
    v2: &'a Unified,
    /// The highest cgroup that may be managed.
    top: PathBuf,
    /// Everything below it down to the leaf's parent.
    parents: Vec<PathBuf>,
    leaf: PathBuf,
}

impl<'a> Lowering<'a> {
    /// The leaf in the v2 tree, or why there is none.
    fn tree(&mut self) -> Result<Tree<'a>, String> {
        let v2 = self.detection.v2.as_ref().ok_or("there is no cgroup v2 tree")?;
        let Some(top) = &v2.top else {
            return Err(v2.why.clone().unwrap_or_else(|| "no cgroup is delegated".to_owned()));
        };
        let top_dir = levels(&v2.mount, top).pop().unwrap_or_else(|| v2.mount.clone());
        let parents = if self.parent.is_default() {
            levels(&top_dir, OWN_PARENT_V2)
        } else {
            let all = levels(&v2.mount, self.parent.as_ref());
            if !all.last().is_some_and(|parent| parent.starts_with(&top_dir)) {
                let parent = self.parent;
                return Err(format!("cgroup /{parent} is not below {top}, the highest that may be written"));
            }
            all.into_iter().filter(|dir| *dir != top_dir && dir.starts_with(&top_dir)).collect()
        };
        let leaf = parents.last().unwrap_or(&top_dir).join(format!("{}.scope", self.name));
        self.dirs(&parents, &leaf);
        self.layout.into = Some(leaf.clone());
        self.layout.unit = Some(leaf.clone());
        Ok(Tree { v2, top: top_dir, parents, leaf })
    }

    fn dirs(&mut self, parents: &[PathBuf], leaf: &Path) {
        let kind = if self.parent.is_default() { Kind::OwnParent } else { Kind::Parent };
        let parents = parents.iter().map(|path| Dir { path: path.clone(), kind });
        self.layout.dirs.extend(parents);
        self.layout.dirs.push(Dir { path: leaf.to_owned(), kind: Kind::Leaf });
    }

    fn v2(&mut self, tree: &Tree<'_>) {
        let asked = self.limits.asked();
        let cpus = self.cpus();
        let controllers = [
            ("cpuset", cpus.is_some()),
            ("cpu", asked.contains(Control::CPU)),
            ("memory", asked.contains(Control::MEMORY)),
            ("pids", asked.contains(Control::PIDS)),
        ];
        for (level, dir) in std::iter::once(&tree.top).chain(&tree.parents).enumerate() {
            for (name, _) in controllers.iter().filter(|(_, used)| *used) {
                if level > 0 || !tree.v2.enabled.contains(*name) {
                    self.write(dir, "cgroup.subtree_control", format!("+{name}"));
                }
            }
        }
        let leaf = &tree.leaf;
        if let Some(cpus) = cpus {
            self.write(leaf, "cpuset.cpus", cpus);
        }
        if let Some(shares) = self.limits.cpu_shares {
            self.write(leaf, "cpu.weight", shares_to_weight(shares).to_string());
        }
        if asked.contains(Control::MEMORY) {
            self.memory_v2(leaf);
        }
        self.pids(leaf);
    }

    fn memory_v2(&mut self, leaf: &Path) {
        let memory = self.limits.memory_limits();
        if !self.limits.swap {
            self.swap_v2(leaf);
        }
        if let Some(hard) = memory.hard {
            self.write(leaf, "memory.max", hard.to_string());
        }
        if let Some(reserve) = memory.reserve {
            self.write(leaf, "memory.low", reserve.to_string());
            self.reservation("memory.low, which counts as far as that of the parents does", memory.hard);
        }
    }

    fn swap_v2(&mut self, leaf: &Path) {
        let Swap { active, accounted } = self.detection.swap;
        let unaccounted = "the kernel does not account swap (no memory.swap.max)";
        if accounted != Some(false) {
            let why = Reason { control: Control::SWAP, why: unaccounted.to_owned() };
            let need = match (accounted, active) {
                (Some(true), _) => Need::Must,
                (_, true) => Need::Else(why),
                (_, false) => Need::Try,
            };
            self.push(leaf, "memory.swap.max", Value::Text("0".to_owned()), need);
        } else if active {
            self.miss(Control::SWAP, unaccounted);
        } else {
            self.note(Control::SWAP, format!("{unaccounted}, but the host has none"));
        }
    }

    /// What is reserved is not guaranteed: without a hard limit nothing of the memory control is.
    fn reservation(&mut self, means: &str, hard: Option<u64>) {
        let why = format!("memory is reserved by {means}");
        if hard.is_some() { self.note(Control::MEMORY, why) } else { self.weaken(Control::MEMORY, why) }
    }

    fn v1(&mut self) {
        let asked = self.limits.asked();
        if let Some(cpus) = self.cpus() {
            self.leaf_v1("cpuset", |this, leaf| this.write(leaf, "cpuset.cpus", cpus));
        }
        if let Some(shares) = self.limits.cpu_shares {
            let shares = clamp_shares(shares, None).to_string();
            self.leaf_v1("cpu", |this, leaf| this.write(leaf, "cpu.shares", shares));
        }
        if asked.contains(Control::MEMORY) {
            self.leaf_v1("memory", Self::memory_v1);
        }
        if asked.contains(Control::PIDS) {
            self.leaf_v1("pids", Self::pids);
        }
    }

    /// Uses the v1 hierarchy of `controller`, or says that it is missing.
    fn leaf_v1(&mut self, controller: &str, limit: impl FnOnce(&mut Self, &Path)) {
        let hierarchy = self.detection.v1.get(controller).filter(|h| h.writable);
        match hierarchy {
            Some(hierarchy) => {
                let leaf = self.place_v1(controller, hierarchy);
                limit(self, &leaf);
            }
            // The gate has seen to all others.
            None => self.miss(Control::PIDS, format!("cgroup v1 lacks {controller}")),
        }
    }

    /// The leaf in one v1 hierarchy, which several controllers may share; `controller` is the first to use it.
    fn place_v1(&mut self, controller: &str, hierarchy: &Hierarchy) -> PathBuf {
        let parent = if self.parent.is_default() { OWN_PARENT_V1 } else { self.parent.as_ref() };
        let parents = levels(&hierarchy.mount, parent);
        let leaf = parents.last().unwrap_or(&hierarchy.mount).join(self.name.as_ref());
        self.layout.v1.insert(controller.to_owned(), leaf.clone());
        if self.layout.leaves().any(|known| known == leaf) {
            return leaf;
        }
        self.dirs(&parents, &leaf);
        self.layout.enter.push(leaf.join("tasks"));
        // Also where cpuset is only mounted together with the controller that is wanted.
        if self.detection.v1.get("cpuset").is_some_and(|h| h.mount == hierarchy.mount) {
            for dir in parents.iter().chain([&leaf]) {
                self.push(dir, "cpuset.mems", Value::Inherit, Need::Must);
                if controller != "cpuset" || *dir != leaf {
                    self.push(dir, "cpuset.cpus", Value::Inherit, Need::Must);
                }
            }
        }
        leaf
    }

    fn memory_v1(&mut self, leaf: &Path) {
        let memory = self.limits.memory_limits();
        if let Some(hard) = memory.hard {
            self.write(leaf, "memory.limit_in_bytes", hard.to_string());
        }
        if let Some(reserve) = memory.reserve {
            let why =
                "memory.soft_limit_in_bytes is refused by this kernel (PREEMPT_RT does that)".to_owned();
            let need = Need::Else(Reason { control: Control::MEMORY, why });
            self.push(leaf, "memory.soft_limit_in_bytes", Value::Text(reserve.to_string()), need);
            self.reservation("memory.soft_limit_in_bytes, which the kernel tries to honour", memory.hard);
        }
        if !self.limits.swap {
            self.swap_v1(leaf, memory.hard);
        }
    }

    /// Memory and swap together must not be more than memory alone. That limit comes after the other, since
    /// it may not be the lower one.
    fn swap_v1(&mut self, leaf: &Path, hard: Option<u64>) {
        let Swap { active, accounted } = self.detection.swap;
        match hard {
            Some(hard) if accounted == Some(true) => {
                self.write(leaf, "memory.memsw.limit_in_bytes", hard.to_string());
            }
            _ if active => self.weaken(
                Control::SWAP,
                "there is no limit that could be set on swap; memory.swappiness=0 makes the kernel avoid it",
            ),
            _ => self.note(Control::SWAP, "no limit could be set on swap, but the host has none"),
        }
        self.push(leaf, "memory.swappiness", Value::Text("0".to_owned()), Need::Try);
    }

    fn pids(&mut self, leaf: &Path) {
        if let Some(max) = self.limits.pids_max {
            let max = max.saturating_add(self.extra_pids).min(PIDS_LIMIT);
            self.write(leaf, "pids.max", max.to_string());
        }
    }

    /// The processors to write, if any of those that were asked for are there.
    fn cpus(&mut self) -> Option<String> {
        let asked = match self.limits.cpuset() {
            Ok(asked) => asked?,
            Err(why) => {
                self.miss(Control::CPUSET, why);
                return None;
            }
        };
        let online = &self.detection.online;
        let cpus = asked.intersection(online);
        if cpus.is_empty() {
            self.miss(
                Control::CPUSET,
                format!("none of processors {asked} is among those of this host, {online}"),
            );
            return None;
        }
        if cpus != asked {
            self.weaken(Control::CPUSET, format!("of processors {asked} this host has only {cpus}"));
        }
        Some(cpus.to_string())
    }

    /// Devices need no controller of v2, and of v1 no other one.
    fn devices(&mut self, rules: &[Rule], no_tree: Option<&String>) {
        if rules.is_empty() {
            return;
        }
        match (self.detection.v1.get("devices").filter(|h| h.writable), no_tree) {
            (Some(hierarchy), _) => {
                let leaf = self.place_v1("devices", hierarchy);
                self.layout.writes.extend(devices::v1::writes(&leaf, rules));
            }
            (None, None) => self.layout.devices = rules.to_vec(),
            (None, Some(no_tree)) => {
                let why = format!("{no_tree}, and no devices controller of cgroup v1 that may be used");
                return self.miss(Control::DEVICES, why);
            }
        }
        self.layout.enforced |= Control::DEVICES;
    }

    /// Killing needs one cgroup that has all processes; without the tree that is the freezer's.
    fn kill(&mut self, no_tree: Option<String>) {
        let Some(no_tree) = no_tree else {
            self.layout.enforced |= Control::KILL;
            return;
        };
        match self.detection.v1.get("freezer").filter(|h| h.writable) {
            Some(freezer) => {
                self.layout.unit = Some(self.place_v1("freezer", freezer));
                self.layout.enforced |= Control::KILL;
            }
            None => {
                self.miss(Control::KILL, format!("{no_tree}, and no freezer of cgroup v1 that may be used"))
            }
        }
    }

    fn write(&mut self, dir: &Path, file: &str, text: impl Into<String>) {
        self.push(dir, file, Value::Text(text.into()), Need::Must);
    }

    fn push(&mut self, dir: &Path, file: &str, value: Value, need: Need) {
        self.layout.writes.push(Write { path: dir.join(file), value, need });
    }

    fn miss(&mut self, control: Control, why: impl Into<String>) {
        if !control.is_empty() {
            self.layout.enforced.remove(control);
            self.layout.missing.push(Reason { control, why: why.into() });
        }
    }

    fn weaken(&mut self, control: Control, why: impl Into<String>) {
        self.layout.enforced.remove(control);
        self.layout.weakened.push(Reason { control, why: why.into() });
    }

    fn note(&mut self, control: Control, why: impl Into<String>) {
        self.layout.notes.push(Reason { control, why: why.into() });
    }
}
