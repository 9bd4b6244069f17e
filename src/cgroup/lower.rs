//! Limits and a detection become a [`Layout`]. Nothing is touched here.

use std::path::{Path, PathBuf};

use super::Limits;
use super::devices::{self, Rule};
use super::layout::{Dir, Kind, Layout, Need, Value, Write};
use super::name::{CgroupName, CgroupPath, levels};
use super::probe::{Detection, Hierarchy, Unified, Version};
use super::settings::{Held, Remark, Setting, Terms, remarks, settings};
use crate::report::{Control, Reason};

/// The crate's own parents.
const OWN_PARENT_V2: &str = "cofferdam.slice";
const OWN_PARENT_V1: &str = "cofferdam";

/// The controllers of v2 that limits use, in the order in which they are enabled.
const CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "memory", "pids", "io", "hugetlb"];

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
    lowering.layout.limits = limits.clone();
    lowering.layout.gate = detection.gate().err().map(str::to_owned);
    match (detection.gate(), detection.limits_on, &tree) {
        (Err(why), ..) => lowering.miss(limits.asked(), why),
        (Ok(()), Version::V1, tree) => lowering.v1(tree.as_ref().ok()),
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
        self.layout.levels = std::iter::once(&top_dir).chain(&parents).cloned().collect();
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
        let cpus = self.cpus();
        let terms = self.terms(Version::V2);
        let mut used = self.settings(&terms);
        let lacks: Vec<Setting> =
            used.extract_if(.., |s| !tree.v2.controllers.contains(s.controller)).collect();
        // The gate has seen to those that every host should have.
        for lack in lacks {
            self.miss(lack.control, format!("cgroup v2 lacks {}", lack.controller));
        }
        let mut controllers: Vec<&str> = used.iter().map(|s| s.controller).collect();
        if self.limits.accounting {
            // What the kernel lacks is not missed: it only counts.
            let has = |name: &&str| tree.v2.controllers.contains(*name);
            controllers.extend(["cpu", "memory", "io", "pids"].into_iter().filter(has));
        }
        controllers.extend(cpus.is_some().then_some("cpuset"));
        self.enable(tree, &controllers);
        if let Some(cpus) = cpus {
            self.write(&tree.leaf, "cpuset.cpus", cpus);
        }
        self.set(&tree.leaf, &used);
        self.remark(&terms);
    }

    /// Hands controllers down from the highest manageable cgroup to the leaf, one write for each and level, so
    /// that a refusal names both.
    fn enable(&mut self, tree: &Tree<'_>, controllers: &[&str]) {
        for (level, dir) in std::iter::once(&tree.top).chain(&tree.parents).enumerate() {
            for name in CONTROLLERS.iter().filter(|name| controllers.contains(name)) {
                if level > 0 || !tree.v2.enabled.contains(*name) {
                    self.write(dir, "cgroup.subtree_control", format!("+{name}"));
                }
            }
        }
    }

    /// How the limits are spelled in files.
    fn terms(&mut self, version: Version) -> Terms {
        let hugetlb = match version {
            Version::V1 if self.detection.v1.contains_key("hugetlb") => Version::V1,
            _ => Version::V2,
        };
        let terms = Terms { version, hugetlb, swap: self.detection.swap, extra_pids: self.extra_pids };
        self.layout.terms = Some(terms);
        terms
    }

    /// What is written for a task that is not there yet: only what limits something.
    fn settings(&self, terms: &Terms) -> Vec<Setting> {
        settings(self.limits, terms).into_iter().filter(|s| s.limits).collect()
    }

    fn set(&mut self, leaf: &Path, used: &[Setting]) {
        for s in used {
            self.push(leaf, &s.file, Value::Text(s.line()), s.need.clone());
        }
    }

    /// Says what of the limits no file can hold.
    fn remark(&mut self, terms: &Terms) {
        for Remark { held, reason } in remarks(self.limits, terms) {
            match held {
                Held::Whole => self.note(reason.control, reason.why),
                Held::Partly => self.weaken(reason.control, reason.why),
                Held::Not => self.miss(reason.control, reason.why),
            }
        }
    }

    fn v1(&mut self, tree: Option<&Tree<'_>>) {
        if let Some(cpus) = self.cpus() {
            self.leaf_v1("cpuset", Control::CPUSET, |this, leaf| this.write(leaf, "cpuset.cpus", cpus));
        }
        let terms = self.terms(Version::V1);
        let used = self.settings(&terms);
        for controller in ["cpu", "memory", "blkio", "pids", "hugetlb"] {
            let own: Vec<Setting> = used.iter().filter(|s| s.controller == controller).cloned().collect();
            let asked = own.iter().fold(Control::empty(), |set, s| set | s.control);
            let on_v2 = tree.filter(|t| t.v2.controllers.contains(controller));
            match on_v2.filter(|_| !self.detection.v1.contains_key(controller)) {
                _ if own.is_empty() => {}
                Some(tree) => {
                    self.enable(tree, &[controller]);
                    self.set(&tree.leaf, &own);
                }
                None => self.leaf_v1(controller, asked, |this, leaf| this.set(leaf, &own)),
            }
        }
        if self.limits.accounting {
            for controller in ["memory", "cpu", "cpuacct", "pids", "blkio"] {
                if self.detection.v1.get(controller).is_some_and(|h| h.writable) {
                    self.leaf_v1(controller, Control::empty(), |_, _| {});
                }
            }
        }
        self.remark(&terms);
    }

    /// Uses the v1 hierarchy of `controller`, or says that it is missing.
    fn leaf_v1(&mut self, controller: &str, asked: Control, limit: impl FnOnce(&mut Self, &Path)) {
        let hierarchy = self.detection.v1.get(controller).filter(|h| h.writable);
        match hierarchy {
            Some(hierarchy) => {
                let leaf = self.place_v1(controller, hierarchy);
                limit(self, &leaf);
            }
            // The gate has seen to those that every host should have.
            None => self.miss(asked, format!("cgroup v1 lacks {controller}")),
        }
    }

    /// The leaf in one v1 hierarchy, which several controllers may share; `controller` is the first to use it.
    fn place_v1(&mut self, controller: &str, hierarchy: &Hierarchy) -> PathBuf {
        let parent = if self.parent.is_default() { OWN_PARENT_V1 } else { self.parent.as_ref() };
        let parents = levels(&hierarchy.mount, parent);
        let leaf = parents.last().unwrap_or(&hierarchy.mount).join(self.name.as_ref());
        let together = self.detection.v1.iter().filter(|(_, other)| other.mount == hierarchy.mount);
        self.layout.v1.extend(together.map(|(name, _)| (name.clone(), leaf.clone())));
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
