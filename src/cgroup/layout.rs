//! Builder of a task's cgroups: collects the steps by kind, and the record of the cgroups' paths.

use std::path::{Path, PathBuf};

use super::detect::Detection;
use super::detect::place::TreeParent;
use super::devices::DeviceRule;
use super::fs::{DirOwner, NewDir};
use super::group::{CgroupOp, Cgroups, CpuCounter, Paths};
use super::limits::row::{Row, Terms};
use super::limits::table::{remarks, rows};
use super::name::{CgroupName, CgroupPath};
use super::reserve::{JoinShare, Reserved};
use super::set::CpuSet;
use super::{Limits, Version};
use crate::report::{Control, Reason, Report};
use crate::step::{OnRefusal, Step};

/// Arguments of [`lower`](super::lower()).
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Limits of the task.
    pub limits: &'a Limits,
    /// What the host offers.
    pub detection: &'a Detection,
    /// Parent of the task's cgroups.
    pub parent: &'a CgroupPath,
    /// Name of the task's own cgroup.
    pub name: &'a CgroupName,
    /// Number of the sandbox's own processes. They are allowed in addition to [`Limits::pids_max`]. 0 by default.
    pub extra_pids: u64,
    /// Devices that the task may use; access to all others is refused. An empty list, the default, allows all devices.
    /// The list is enforced by the v1 `devices` controller if the caller may write to its hierarchy, otherwise by an
    /// eBPF program on the v2 leaf.
    pub devices: &'a [DeviceRule],
    /// What to do if the kernel refuses the device list.
    pub(crate) without_devices: &'a OnRefusal,
    /// Whether the task has its own PID namespace, whose end kills the whole task. Off by default.
    pub own_pid: bool,
    /// Whether the task's CPU time must be counted, for its deadline. Off by default.
    pub(crate) cpu_time: bool,
    /// Whether other tasks are kept off the CPUs that a task reserves. On by default. If off, [`Limits::cores`] on v1
    /// confines only the task that has it. On v2, other tasks are always kept off.
    pub partition: bool,
}

impl<'a> Request<'a> {
    /// Returns a request with defaults for all other fields: no device list, no extra processes, no PID namespace.
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
            cpu_time: false,
            partition: true,
        }
    }
}

/// v2 controllers that limits use, in the order in which they are enabled.
const TREE_CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "io", "hugetlb"];

/// A task's leaf in the v2 tree, and its parents.
pub(super) struct Tree<'a> {
    pub parent: TreeParent<'a>,
    /// The parent of the leaf, `share.slice` or `reserve.slice`.
    pub slice: PathBuf,
    pub leaf: PathBuf,
}

impl Tree<'_> {
    /// The cgroups whose `cgroup.subtree_control` enables controllers for the leaf, the highest first.
    pub fn levels(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.parent.top).chain(&self.parent.levels).chain([&self.slice])
    }
}

/// The steps that are collected so far, by kind.
pub(super) struct Layout<'a> {
    pub request: &'a Request<'a>,
    pub report: &'a mut Report,
    pub paths: Paths,
    stale: Vec<PathBuf>,
    make: Vec<Vec<NewDir>>,
    /// Reserves CPUs or joins the shared set. Runs after the directories in `make` are made.
    processors: Option<Step<CgroupOp>>,
    share: Option<JoinShare>,
    pub cpu_time: Option<CpuCounter>,
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
        Layout {
            request,
            report,
            paths,
            stale,
            make,
            processors: None,
            share: None,
            cpu_time: None,
            writes,
            devices: None,
        }
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

    /// Puts the steps in order, and returns them with the record.
    pub fn finish(self) -> Cgroups {
        let reserves_unit = self.paths.unit.as_ref().is_some_and(|unit| !self.makes(unit));
        let Layout { paths, stale, mut make, processors, share, cpu_time, writes, devices, .. } = self;
        let step = |op: CgroupOp| Step::of(Control::KILL, op);
        let mut steps: Vec<Step<CgroupOp>> = stale.into_iter().map(CgroupOp::RemoveStale).map(step).collect();
        // The unit comes first: of several tasks of one name, the one that locks it makes the others.
        let is_unit = |dirs: &Vec<NewDir>| dirs.last().map(|dir| &dir.path) == paths.unit.as_ref();
        make.sort_by_key(|dirs| !is_unit(dirs));
        let memory = paths.v1.get("memory").filter(|path| Some(*path) != paths.unit.as_ref()).cloned();
        // The `Hold` step takes the owner lock, so it precedes `JoinShare`, which looks for reservations. The `Reserve`
        // step of another task creates the directory of reservations before it looks for tasks with an owner. So at
        // least one of the two tasks sees the other. If this task's `Reserve` step creates the unit, `Hold` follows it.
        let mut hold = paths.unit.clone().map(|unit| CgroupOp::Hold { unit, reserved: reserves_unit });
        for dirs in make {
            let hold = hold.take_if(|_| is_unit(&dirs));
            steps.push(step(CgroupOp::Make(dirs)));
            steps.extend(hold.map(step));
        }
        steps.extend(processors);
        steps.extend(hold.map(step));
        steps.extend(memory.map(CgroupOp::HoldMemory).map(step));
        steps.extend(writes);
        steps.extend(devices);
        Cgroups { steps, paths, share, cpu_time }
    }

    /// Records that this host can set the limits of `control` neither now nor by a later update.
    pub fn miss(&mut self, control: Control, why: impl Into<String>) {
        let why = why.into();
        self.paths.missing.push(Reason { control, why: why.clone() });
        self.report.miss(control, why);
    }

    /// Adds a path where an earlier task of the same name may have left a stale cgroup. It is removed first.
    pub fn stale(&mut self, leaf: PathBuf) {
        self.stale.push(leaf);
    }

    /// Adds the directories of one hierarchy: `parents`, then the task's own `leaf`.
    pub fn make(&mut self, parents: Vec<NewDir>, leaf: &Path) {
        let leaf = NewDir { path: leaf.to_owned(), owner: DirOwner::Task };
        self.make.push(parents.into_iter().chain([leaf]).collect());
    }

    /// Whether a step that makes this directory was added.
    pub fn makes(&self, leaf: &Path) -> bool {
        self.make.iter().flatten().any(|dir| dir.path == leaf)
    }

    /// The directories at `paths` as parents of a leaf. They belong to the operator if it named the parent cgroup, else
    /// to the crate.
    pub fn parents(&self, paths: &[PathBuf]) -> Vec<NewDir> {
        let owner = if self.parent().is_default() { DirOwner::Crate } else { DirOwner::Operator };
        paths.iter().map(|path| NewDir { path: path.clone(), owner }).collect()
    }

    /// Sets the step that assigns CPUs: [`Reserve`](CgroupOp::Reserve) for a task with reserved CPUs, or
    /// [`JoinShare`](CgroupOp::JoinShare), which keeps a task without a reservation off the CPUs of other tasks.
    pub fn divide(&mut self, op: CgroupOp) {
        if let CgroupOp::JoinShare(share) = &op {
            self.share = Some(share.clone());
        }
        self.processors = Some(Step::of(Control::CPUSET, op));
    }

    /// The CPUs to reserve: those of the requested CPUs that are online. Adds to the report which of them do not exist.
    /// `None` if none is requested, or none exists.
    pub fn cores(&mut self) -> Option<Reserved> {
        let limits = self.limits();
        let asked = limits.cpuset()?;
        let online = &self.detection().online;
        let cores = asked.intersection(online);
        if cores.is_empty() {
            let why = format!("CPUs {asked} are not available on this host (available: {online})");
            self.miss(Control::CPUSET, why);
            return None;
        }
        if cores != *asked {
            let why = format!("only CPUs {cores} of {asked} are available on this host");
            self.report.weaken(Control::CPUSET, why);
        }
        Some(Reserved { cores, exclusive: limits.exclusive })
    }

    /// Whether the task will have reserved CPUs.
    pub fn reserves(&self) -> bool {
        let online = &self.detection().online;
        let asked = self.limits().cpuset().is_some_and(|asked| !asked.intersection(online).is_empty());
        asked && self.detection().can_limit().is_ok()
    }

    /// Enables `controllers` in `cgroup.subtree_control`, from the highest manageable cgroup down to the parent of the
    /// leaf. Each write enables one controller in one cgroup, so that an error names both.
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

    /// How the limits are written to control files. Also stored in the record, for updates.
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

    /// The rows to write for a new task: those that limit something.
    pub fn rows(&self, terms: &Terms) -> Vec<Row> {
        rows(self.limits(), terms).into_iter().filter(|row| row.limits).collect()
    }

    /// Adds to the report the limits that no control file can enforce.
    pub fn remark(&mut self, terms: &Terms) {
        remarks(self.limits(), terms, self.report);
    }

    /// Adds one write for each row to the control files of `leaf`.
    pub fn write(&mut self, leaf: &Path, rows: &[Row]) {
        for row in rows {
            let op = CgroupOp::Write { file: leaf.join(&row.file), text: row.line() };
            self.writes.push(Step::of(row.control, op).on_refusal(row.on_refusal.clone()));
        }
    }

    /// Adds the write of `cpuset.cpus` for a v1 task that is confined to `cores`, but does not reserve them.
    pub fn write_cores(&mut self, leaf: &Path, cores: &CpuSet) {
        let op = CgroupOp::Write { file: leaf.join("cpuset.cpus"), text: cores.to_string() };
        self.writes.push(Step::of(Control::CPUSET, op));
    }

    /// Adds the step that gives a blank file of a v1 cpuset its parent's value.
    pub fn inherit(&mut self, file: PathBuf) {
        self.writes.push(Step::of(Control::RESOURCES, CgroupOp::Inherit(file)));
    }
}
