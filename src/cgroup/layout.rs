//! A task's cgroups while they are laid out: the steps so far, by kind, and the record.

use std::path::{Path, PathBuf};

use super::detect::Detection;
use super::detect::place::TreeParent;
use super::devices::DeviceRule;
use super::fs::{DirOwner, NewDir};
use super::group::{CgroupOp, Cgroups, Paths};
use super::limits::row::{Row, Terms};
use super::limits::table::{remarks, rows};
use super::name::{CgroupName, CgroupPath};
use super::reserve::{JoinShare, Reserved};
use super::set::CpuSet;
use super::{Limits, Version};
use crate::report::{Control, Reason, Report};
use crate::step::{OnRefusal, Step};

/// What [`lower`](super::lower) is asked for.
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
    /// The devices that the task may use; all others are refused. Empty, the default: no device is refused. The devices
    /// controller of v1 enforces it where root may write it, and an eBPF program on the v2 leaf elsewhere.
    pub devices: &'a [DeviceRule],
    /// What it means if the kernel refuses the list.
    pub(crate) without_devices: &'a OnRefusal,
    /// Whether the task has a PID namespace of its own, whose end kills it too. Off by default.
    pub own_pid: bool,
    /// Whether other tasks keep off the processors that a task reserves. On by default. Off, on v1, [`Limits::cores`]
    /// confines the task that asks for it and no other; on v2 others are always kept off.
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
        Request {
            limits,
            detection,
            parent,
            name,
            extra_pids: 0,
            devices: &[],
            without_devices: &OnRefusal::Fail,
            own_pid: false,
            partition: true,
        }
    }
}

/// The controllers of v2 that limits use, in the order in which they are enabled.
const TREE_CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "io", "hugetlb"];

/// A place in the v2 tree.
pub(super) struct Tree<'a> {
    pub parent: TreeParent<'a>,
    /// The parent of the leaf, `share.slice` or `reserve.slice`.
    pub slice: PathBuf,
    pub leaf: PathBuf,
}

impl Tree<'_> {
    /// The cgroups that hand controllers down to the leaf.
    pub fn levels(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.parent.top).chain(&self.parent.levels).chain([&self.slice])
    }
}

/// What is laid out so far.
pub(super) struct Layout<'a> {
    pub request: &'a Request<'a>,
    pub report: &'a mut Report,
    pub paths: Paths,
    stale: Vec<PathBuf>,
    make: Vec<Vec<NewDir>>,
    /// What divides the processors; once the other directories exist.
    processors: Option<Step<CgroupOp>>,
    share: Option<JoinShare>,
    writes: Vec<Step<CgroupOp>>,
    pub devices: Option<Step<CgroupOp>>,
}

impl<'a> Layout<'a> {
    pub fn new(request: &'a Request<'a>, report: &'a mut Report) -> Layout<'a> {
        let limits = request.limits;
        let unlimited = request.detection.can_limit().err().map(str::to_owned);
        let paths = Paths { limits: limits.clone(), born: limits.clone(), unlimited, ..Paths::default() };
        report.enforce(limits.asked());
        let (stale, make, writes) = (Vec::new(), Vec::new(), Vec::new());
        Layout { request, report, paths, stale, make, processors: None, share: None, writes, devices: None }
    }

    pub fn limits(&self) -> &'a Limits {
        self.request.limits
    }

    pub fn detection(&self) -> &'a Detection {
        self.request.detection
    }

    pub fn parent(&self) -> &'a CgroupPath {
        self.request.parent
    }

    /// The steps in order, and the record.
    pub fn finish(self) -> Cgroups {
        let reserves_unit = self.paths.unit.as_ref().is_some_and(|unit| !self.makes(unit));
        let Layout { paths, stale, make, processors, share, writes, devices, .. } = self;
        let step = |op: CgroupOp| Step::of(Control::KILL, op);
        let mut steps: Vec<Step<CgroupOp>> = stale.into_iter().map(CgroupOp::RemoveStale).map(step).collect();
        steps.extend(make.into_iter().map(CgroupOp::Make).map(step));
        let memory = paths.v1.get("memory").filter(|path| Some(*path) != paths.unit.as_ref()).cloned();
        let hold = paths.unit.clone().map(CgroupOp::Hold).map(step);
        // The task takes its owner lock before it looks for reservations. A reservation makes its directory before it
        // looks for tasks. So one of the two sees the other.
        match reserves_unit {
            true => steps.extend(processors.into_iter().chain(hold)),
            false => steps.extend(hold.into_iter().chain(processors)),
        }
        steps.extend(memory.map(CgroupOp::HoldMemory).map(step));
        steps.extend(writes);
        steps.extend(devices);
        Cgroups { steps, paths, share }
    }

    /// Records that this host cannot set the limits of `control`, now or by an update.
    pub fn miss(&mut self, control: Control, why: impl Into<String>) {
        let why = why.into();
        self.paths.missing.push(Reason { control, why: why.clone() });
        self.report.miss(control, why);
    }

    /// Another place in which an earlier task of this name may have left something.
    pub fn stale(&mut self, leaf: PathBuf) {
        self.stale.push(leaf);
    }

    /// The directories of one hierarchy.
    pub fn make(&mut self, parents: Vec<NewDir>, leaf: &Path) {
        let leaf = NewDir { path: leaf.to_owned(), owner: DirOwner::Task };
        self.make.push(parents.into_iter().chain([leaf]).collect());
    }

    /// Whether the directory is made already.
    pub fn makes(&self, leaf: &Path) -> bool {
        self.make.iter().flatten().any(|dir| dir.path == leaf)
    }

    /// Parents, which are the operator's if it named one.
    pub fn parents(&self, paths: &[PathBuf]) -> Vec<NewDir> {
        let owner = if self.parent().is_default() { DirOwner::Crate } else { DirOwner::Operator };
        paths.iter().map(|path| NewDir { path: path.clone(), owner }).collect()
    }

    /// What divides the processors: a reservation, or what keeps a task without one off those of others.
    pub fn divide(&mut self, op: CgroupOp) {
        if let CgroupOp::JoinShare(share) = &op {
            self.share = Some(share.clone());
        }
        self.processors = Some(Step::of(Control::CPUSET, op));
    }

    /// The processors to reserve, if any of those that were asked for exist.
    pub fn cores(&mut self) -> Option<Reserved> {
        let limits = self.limits();
        let asked = match limits.cpuset() {
            Ok(asked) => asked?,
            Err(why) => {
                self.miss(Control::CPUSET, why);
                return None;
            }
        };
        let online = &self.detection().online;
        let cores = asked.intersection(online);
        if cores.is_empty() {
            let why = format!("none of processors {asked} is among those of this host, {online}");
            self.miss(Control::CPUSET, why);
            return None;
        }
        if cores != asked {
            let why = format!("of processors {asked} this host has only {cores}");
            self.report.weaken(Control::CPUSET, why);
        }
        Some(Reserved { cores, exclusive: limits.exclusive })
    }

    /// Whether processors will be reserved.
    pub fn reserves(&self) -> bool {
        let asked: CpuSet = self.limits().cpuset().ok().flatten().unwrap_or_default();
        self.detection().can_limit().is_ok() && !asked.intersection(&self.detection().online).is_empty()
    }

    /// Hands controllers down from the highest manageable cgroup to the leaf, one write for each and level, so
    /// that a refusal names both.
    pub fn enable(&mut self, tree: &Tree<'_>, controllers: &[&str]) {
        for (level, dir) in tree.levels().enumerate() {
            for name in TREE_CONTROLLERS.iter().filter(|name| controllers.contains(name)) {
                if level > 0 || !tree.parent.v2.enabled.contains(*name) {
                    let file = dir.join("cgroup.subtree_control");
                    let op = CgroupOp::Write { file, text: format!("+{name}") };
                    self.writes.push(Step::of(Control::RESOURCES, op));
                }
            }
        }
    }

    /// How the limits are spelled in files.
    pub fn terms(&mut self, version: Version) -> Terms {
        let hugetlb = match version {
            Version::V1 if self.detection().v1.contains_key("hugetlb") => Version::V1,
            _ => Version::V2,
        };
        let swap = self.detection().swap;
        let terms = Terms { version, hugetlb, swap, extra_pids: self.request.extra_pids };
        self.paths.terms = Some(terms);
        terms
    }

    /// The rows to write for a new task: only those that limit something.
    pub fn rows(&self, terms: &Terms) -> Vec<Row> {
        rows(self.limits(), terms).into_iter().filter(|row| row.limits).collect()
    }

    /// Adds to the report what no file can hold.
    pub fn remark(&mut self, terms: &Terms) {
        remarks(self.limits(), terms, self.report);
    }

    /// Writes the rows in `leaf`.
    pub fn write(&mut self, leaf: &Path, rows: &[Row]) {
        for row in rows {
            let op = CgroupOp::Write { file: leaf.join(&row.file), text: row.line() };
            self.writes.push(Step::of(row.control, op).on_refusal(row.on_refusal.clone()));
        }
    }

    /// Writes the processors of a cpuset that no reservations are recorded in.
    pub fn write_cores(&mut self, leaf: &Path, cores: &CpuSet) {
        let op = CgroupOp::Write { file: leaf.join("cpuset.cpus"), text: cores.to_string() };
        self.writes.push(Step::of(Control::CPUSET, op));
    }

    /// Gives a file of a v1 cpuset its parent's value.
    pub fn inherit(&mut self, file: PathBuf) {
        self.writes.push(Step::of(Control::RESOURCES, CgroupOp::Inherit(file)));
    }
}
