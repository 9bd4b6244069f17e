//! Limits and a detection become a [`Layout`]. Nothing is touched here.

use std::path::{Path, PathBuf};

use super::Limits;
use super::cores::{RESERVE_V2, Reserved, SHARE_V2, Seat, Site};
use super::devices::{self, Rule};
use super::layout::{Dir, Kind, Layout, Need, Value, Write};
use super::name::{CgroupName, CgroupPath, levels};
use super::probe::{Detection, Hierarchy, Unified, Version};
use super::set::CpuSet;
use super::settings::{Held, Remark, Setting, Terms, remarks, settings};
use crate::report::{Control, Reason};

/// The crate's own parents.
const OWN_PARENT_V2: &str = "cofferdam.slice";
const OWN_PARENT_V1: &str = "cofferdam";

/// The controllers of v2 that limits use, in the order in which they are enabled.
const CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "io", "hugetlb"];

/// What [`lower`] is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What the task may use.
    pub limits: &'a Limits,
    /// The host.
    pub detection: &'a Detection,
    /// The cgroup above the task's.
    pub parent: &'a CgroupPath,
    /// The name of the task's own.
    pub name: &'a CgroupName,
    /// How many processes of the sandbox itself are allowed for beyond [`Limits::pids_max`]; 0 unless set.
    pub extra_pids: u64,
    /// The devices that the task may use, all others being refused; with none, as it is unless set, nothing is. They
    /// are held by the devices controller of v1 where it is mounted and root may write it, and by a program on the
    /// leaf in the v2 tree elsewhere.
    pub devices: &'a [Rule],
    /// Whether tasks keep off the processors that others reserve, true unless set. On v1 each task must enter a cpuset
    /// for that; without it [`Limits::cores`] holds the task that asks for it, and nobody else. On v2 it changes
    /// nothing: others are always kept off.
    pub partition: bool,
}

impl<'a> Request<'a> {
    /// A request for a task without devices.
    pub fn new(
        limits: &'a Limits,
        detection: &'a Detection,
        parent: &'a CgroupPath,
        name: &'a CgroupName,
    ) -> Request<'a> {
        Request { limits, detection, parent, name, extra_pids: 0, devices: &[], partition: true }
    }
}

/// Lays out the cgroups of one task.
///
/// The leaf is `<parent>/share.slice/<name>.scope` in the v2 tree, or `<parent>/reserve.slice/<name>.scope` for a
/// task with reserved processors, and `<parent>/<name>` in a v1 hierarchy; in that of cpuset
/// it is `<parent>/reserve/<name>`, or the one `<parent>/share` for all tasks without.
///
/// The tree is always used when it may be, for birth, killing and events; a v1 hierarchy only if its controller is
/// to limit something, cpuset always, and the freezer only where there is no tree to kill in.
///
/// What cannot hold is said in the layout: a host without any cgroups gets an empty layout, and not an error.
///
/// Where the operator named a parent, it and the levels above it must not have processes of their own on v2.
pub fn lower(request: &Request<'_>) -> Layout {
    let Request { limits, detection, devices: rules, .. } = *request;
    let layout = Layout { enforced: limits.asked(), ..Layout::default() };
    let mut lowering = Lowering { limits, detection, request, layout };
    let reserved = lowering.reserved();
    let tree = lowering.tree(reserved);
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

/// The highest cgroup of the v2 tree that may be managed, and everything below it down to `parent`.
pub(super) fn tree_parents<'a>(
    detection: &'a Detection,
    parent: &CgroupPath,
) -> Result<(&'a Unified, PathBuf, Vec<PathBuf>), String> {
    let v2 = detection.v2.as_ref().ok_or("there is no cgroup v2 tree")?;
    let Some(top) = &v2.top else {
        return Err(v2.why.clone().unwrap_or_else(|| "no cgroup is delegated".to_owned()));
    };
    let top_dir = levels(&v2.mount, top).pop().unwrap_or_else(|| v2.mount.clone());
    if parent.is_default() {
        let parents = levels(&top_dir, OWN_PARENT_V2);
        return Ok((v2, top_dir, parents));
    }
    let all = levels(&v2.mount, parent.as_ref());
    if !all.last().is_some_and(|parent| parent.starts_with(&top_dir)) {
        return Err(format!("cgroup /{parent} is not below {top}, the highest that may be written"));
    }
    let parents = all.into_iter().filter(|dir| *dir != top_dir && dir.starts_with(&top_dir)).collect();
    Ok((v2, top_dir, parents))
}

/// Everything below the mount point of a v1 hierarchy down to `parent`.
pub(super) fn v1_parents(hierarchy: &Hierarchy, parent: &CgroupPath) -> Vec<PathBuf> {
    levels(&hierarchy.mount, if parent.is_default() { OWN_PARENT_V1 } else { parent.as_ref() })
}

/// The hierarchy of v1 in which the processors can be divided, or why there is none: a task is in one cgroup of a
/// hierarchy, so one that limits something else as well cannot have the one share for all.
pub(super) fn own_cpuset(detection: &Detection) -> Result<&Hierarchy, String> {
    let hierarchy = detection.v1.get("cpuset").filter(|h| h.writable).ok_or("cgroup v1 lacks cpuset")?;
    let beside = |(name, h): &(&String, &Hierarchy)| *name != "cpuset" && h.mount == hierarchy.mount;
    let others: Vec<&str> = detection.v1.iter().filter(beside).map(|(name, _)| name.as_str()).collect();
    if others.is_empty() {
        return Ok(hierarchy);
    }
    Err(format!("cpuset is mounted together with {}, so other tasks are not kept off", others.join(", ")))
}

struct Lowering<'a> {
    limits: &'a Limits,
    detection: &'a Detection,
    request: &'a Request<'a>,
    layout: Layout,
}

/// A place in the v2 tree.
struct Tree<'a> {
    v2: &'a Unified,
    /// The highest cgroup that may be managed.
    top: PathBuf,
    /// Everything below it down to the leaf's parent.
    parents: Vec<PathBuf>,
    /// The parent of the leaf, `share.slice` or `reserve.slice`.
    slice: PathBuf,
    leaf: PathBuf,
}

impl Tree<'_> {
    /// What hands controllers down to the leaf.
    fn levels(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.top).chain(&self.parents).chain([&self.slice])
    }
}

impl<'a> Lowering<'a> {
    /// Whether processors will be reserved: some of those that are asked for are there.
    fn reserved(&self) -> bool {
        let asked = self.limits.cpuset().ok().flatten().unwrap_or_default();
        self.detection.gate().is_ok() && !asked.intersection(&self.detection.online).is_empty()
    }

    /// The leaf in the v2 tree, or why there is none.
    fn tree(&mut self, reserved: bool) -> Result<Tree<'a>, String> {
        let (v2, top, parents) = tree_parents(self.detection, self.request.parent)?;
        let parent = parents.last().unwrap_or(&top);
        let (slice, other) = if reserved { (RESERVE_V2, SHARE_V2) } else { (SHARE_V2, RESERVE_V2) };
        let name = format!("{}.scope", self.request.name);
        self.layout.former.push(parent.join(other).join(&name));
        let slice = parent.join(slice);
        let leaf = slice.join(name);
        self.layout.into = Some(leaf.clone());
        self.layout.unit = Some(leaf.clone());
        let tree = Tree { v2, top, parents, slice, leaf };
        self.layout.levels = tree.levels().cloned().collect();
        if self.detection.gate().is_err() || self.detection.limits_on == Version::V1 {
            self.dirs(&tree.parents, None);
            let slice = Dir { path: tree.slice.clone(), kind: Kind::OwnParent };
            self.layout.dirs.push(slice);
            self.dirs(&[], Some(&tree.leaf));
        }
        Ok(tree)
    }

    fn dirs(&mut self, parents: &[PathBuf], leaf: Option<&Path>) {
        let parents = self.parent_dirs(parents);
        self.layout.dirs.extend(parents);
        self.layout.dirs.extend(leaf.map(|leaf| Dir { path: leaf.to_owned(), kind: Kind::Leaf }));
    }

    fn parent_dirs(&self, parents: &[PathBuf]) -> Vec<Dir> {
        let kind = if self.request.parent.is_default() { Kind::OwnParent } else { Kind::Parent };
        parents.iter().map(|path| Dir { path: path.clone(), kind }).collect()
    }

    /// The task's seat in the book of processors of `site`.
    fn seat(&mut self, site: Site, parents: &[PathBuf], leaf: Option<PathBuf>, cpus: Option<CpuSet>) -> Seat {
        let reserved = cpus.map(|cores| Reserved { cores, exclusive: self.limits.exclusive });
        self.layout.former.extend(leaf.clone());
        let parents = self.parent_dirs(parents);
        Seat { site, parents, enable: Vec::new(), inherit: Vec::new(), leaf, reserved }
    }

    fn v2(&mut self, tree: &Tree<'_>) {
        let cpus = self.cpus();
        let site = Site { version: Version::V2, parent: tree.parents.last().unwrap_or(&tree.top).clone() };
        let mut seat = self.seat(site, &tree.parents, Some(tree.leaf.clone()), cpus);
        if seat.reserved.is_some() {
            let top = usize::from(tree.v2.enabled.contains("cpuset"));
            seat.enable = std::iter::once(&tree.top).chain(&tree.parents).skip(top).cloned().collect();
        }
        self.layout.cores = Some(seat);
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
        self.enable(tree, &controllers);
        self.set(&tree.leaf, &used);
        self.remark(&terms);
    }

    /// Hands controllers down from the highest manageable cgroup to the leaf, one write for each and level, so
    /// that a refusal names both.
    fn enable(&mut self, tree: &Tree<'_>, controllers: &[&str]) {
        for (level, dir) in tree.levels().enumerate() {
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
        let terms =
            Terms { version, hugetlb, swap: self.detection.swap, extra_pids: self.request.extra_pids };
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
        self.cpuset_v1();
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
            for controller in ["memory", "cpu", "cpuacct", "pids", "blkio", "hugetlb"] {
                if self.detection.v1.get(controller).is_some_and(|h| h.writable) {
                    self.leaf_v1(controller, Control::empty(), |_, _| {});
                }
            }
        }
        self.remark(&terms);
    }

    fn cpuset_v1(&mut self) {
        let cpus = self.cpus();
        let book = match self.request.partition {
            true => own_cpuset(self.detection),
            false => {
                Err("the operator has no processors reserved, so other tasks are not kept off".to_owned())
            }
        };
        match book {
            Ok(hierarchy) => {
                let parents = v1_parents(hierarchy, self.request.parent);
                let parent = parents.last().unwrap_or(&hierarchy.mount).clone();
                let site = Site { version: Version::V1, parent };
                let leaf = site.reserve().join(self.request.name.as_ref());
                let leaf = if cpus.is_some() {
                    Some(leaf)
                } else {
                    self.layout.former.push(leaf);
                    None
                };
                let mut seat = self.seat(site, &parents, leaf, cpus);
                let files =
                    |dir: &PathBuf| ["cpuset.mems", "cpuset.cpus"].map(|file| Write::inherit(dir, file));
                seat.inherit = parents.iter().flat_map(files).collect();
                self.layout.v1.insert("cpuset".to_owned(), seat.place());
                self.layout.enter.push(seat.place().join("tasks"));
                self.layout.cores = Some(seat);
            }
            Err(why) => {
                if let Some(cpus) = cpus {
                    self.leaf_v1("cpuset", Control::CPUSET, |this, leaf| {
                        this.write(leaf, "cpuset.cpus", cpus.to_string())
                    });
                    self.weaken(Control::CPUSET, why);
                }
            }
        }
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
        let parents = v1_parents(hierarchy, self.request.parent);
        let leaf = parents.last().unwrap_or(&hierarchy.mount).join(self.request.name.as_ref());
        let together = self.detection.v1.iter().filter(|(_, other)| other.mount == hierarchy.mount);
        self.layout.v1.extend(together.map(|(name, _)| (name.clone(), leaf.clone())));
        if self.layout.leaves().any(|known| known == leaf) {
            return leaf;
        }
        self.dirs(&parents, Some(&leaf));
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
    fn cpus(&mut self) -> Option<CpuSet> {
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
        Some(cpus)
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
