//! Turns limits and a detection into the steps of a task's cgroups. Changes nothing on the host.

use super::detect::Version;
use super::detect::place::in_tree;
use super::fs::{DirOwner, NewDir};
use super::group::{CgroupOp, Cgroups, CpuCounter};
use super::layout::{Layout, Request, Tree};
use super::limits::row::Row;
use super::reserve::{JoinShare, RESERVE_V2, Reserve, SHARE_V2, Site};
use super::v1::lower as v1;
use crate::error::Result;
use crate::report::{Control, Report};
use crate::step::Step;

/// Plans the cgroups of one task.
///
/// In the v2 tree the leaf is `<parent>/reserve.slice/<name>.scope` for a task with reserved CPUs, and
/// `<parent>/share.slice/<name>.scope` for any other task. In a v1 hierarchy it is `<parent>/<name>`. In the cpuset
/// hierarchy of v1 it is `<parent>/reserve/<name>` for a task with reserved CPUs. Other tasks have no cpuset while no
/// CPUs are reserved.
///
/// The v2 tree is used wherever possible: to start the task in its cgroup, to kill it, and for its events. A v1
/// hierarchy is used only if its controller has to limit or count something. The v1 freezer is used only where there is
/// no v2 tree to kill the task in.
///
/// Limits that cannot be enforced are added to `report`. A host without any cgroups is not an error.
///
/// On v2, a parent cgroup that the operator named must not have processes of its own, and neither must the cgroups
/// between it and the root: the kernel refuses to enable controllers in a cgroup with processes.
///
/// # Errors
/// [`Error::Unsupported`](crate::Error::Unsupported) if the device list must be enforced and this host cannot enforce
/// it.
pub fn lower(request: &Request<'_>, report: &mut Report) -> Result<Cgroups> {
    let mut layout = Layout::new(request, report);
    let (limits, detection) = (request.limits, request.detection);
    let tree = tree(&mut layout);
    match (detection.can_limit(), detection.limits_on, &tree) {
        (Err(why), ..) => layout.miss(limits.asked(), why),
        (Ok(()), Version::V1, tree) => v1::lower(&mut layout, tree.as_ref().ok()),
        (Ok(()), Version::V2, Ok(tree)) => v2(&mut layout, tree),
        (Ok(()), Version::V2, Err(why)) => layout.miss(limits.asked(), why.clone()),
    }
    let no_tree = tree.as_ref().err();
    devices(&mut layout, no_tree)?;
    cpu_time(&mut layout, no_tree);
    kill(&mut layout, no_tree);
    v1::elsewhere(&mut layout);
    Ok(layout.finish())
}

/// Plans the leaf in the v2 tree. The error says why there is no v2 tree to use.
fn tree<'a>(layout: &mut Layout<'a>) -> Result<Tree<'a>, String> {
    let parent = in_tree(layout.detection(), layout.parent())?;
    let reserves = layout.reserves();
    let (slice, other) = if reserves { (RESERVE_V2, SHARE_V2) } else { (SHARE_V2, RESERVE_V2) };
    let name = format!("{}.scope", layout.request.name);
    layout.stale(parent.dir().join(other).join(&name));
    let slice = parent.dir().join(slice);
    let leaf = slice.join(name);
    layout.paths.unit = Some(leaf.clone());
    layout.paths.into = true;
    let tree = Tree { parent, slice, leaf };
    layout.paths.levels = tree.levels().cloned().collect();
    let on_v2 = layout.detection().can_limit().is_ok() && layout.detection().limits_on == Version::V2;
    if on_v2 && reserves {
        // The `Reserve` step makes the leaf.
        layout.stale(tree.leaf.clone());
    } else {
        let mut parents = layout.parents(&tree.parent.levels);
        parents.push(NewDir { path: tree.slice.clone(), owner: DirOwner::Crate });
        layout.make(parents, &tree.leaf);
    }
    Ok(tree)
}

fn v2(layout: &mut Layout<'_>, tree: &Tree<'_>) {
    let site =
        Site { version: Version::V2, parent: tree.parent.dir().to_owned(), own: Vec::new(), tasks: None };
    let op = match layout.cores() {
        Some(reserved) => {
            let skip = usize::from(tree.parent.v2.enabled.contains("cpuset"));
            let enable = std::iter::once(&tree.parent.top).chain(&tree.parent.levels).skip(skip);
            CgroupOp::Reserve(Reserve {
                site,
                parents: layout.parents(&tree.parent.levels),
                enable: enable.cloned().collect(),
                inherit: Vec::new(),
                leaf: tree.leaf.clone(),
                reserved,
            })
        }
        None => CgroupOp::JoinShare(JoinShare { site, inherit: Vec::new() }),
    };
    layout.divide(op);
    let terms = layout.terms(Version::V2);
    let mut used = layout.rows(&terms);
    let controllers = &tree.parent.v2.controllers;
    let lacking: Vec<Row> = used.extract_if(.., |row| !controllers.contains(row.controller)).collect();
    // Only optional controllers can be missing here: can_limit() has checked the required ones.
    for row in lacking {
        layout.miss(row.control, format!("cgroup v2 controllers not available: {}", row.controller));
    }
    let mut needed: Vec<&str> = used.iter().map(|row| row.controller).collect();
    if layout.limits().accounting {
        // Accounting limits nothing, so a missing controller is not reported.
        needed.extend(["cpu", "memory", "io", "pids"].into_iter().filter(|name| controllers.contains(*name)));
    }
    layout.enable(tree, &needed);
    layout.write(&tree.leaf, &used);
    layout.remark(&terms);
}

/// Plans the device list. v2 needs no controller for it, and v1 only `devices`.
fn devices(layout: &mut Layout<'_>, no_tree: Option<&String>) -> Result<()> {
    let request = layout.request;
    if request.devices.is_empty() {
        return Ok(());
    }
    let rules = request.devices.to_vec();
    let op = match (v1::writable(layout, "devices"), no_tree, layout.paths.unit.clone()) {
        (Some(hierarchy), ..) => {
            let cgroup = v1::leaf(layout, "devices", hierarchy);
            CgroupOp::DeviceFiles { cgroup, rules }
        }
        (None, None, Some(cgroup)) => CgroupOp::DeviceProgram { cgroup, rules },
        (None, no_tree, _) => {
            let no_tree = no_tree.map_or("the task has no cgroup", String::as_str);
            let why = format!("{no_tree}, and the devices controller of cgroup v1 is not available");
            return request.without_devices.give_up(Control::DEVICES, &why, layout.report);
        }
    };
    layout.report.enforce(Control::DEVICES);
    layout.devices = Some(Step::of(Control::DEVICES, op).on_refusal(request.without_devices.clone()));
    Ok(())
}

/// Plans how the task's CPU time is counted: in the v2 leaf, which counts it without any controller (Linux 4.15), or in
/// the hierarchy of the v1 controller `cpuacct`.
fn cpu_time(layout: &mut Layout<'_>, no_tree: Option<&String>) {
    if !layout.request.cpu_time {
        return;
    }
    let (file, unit) = match (no_tree, layout.paths.unit.clone(), v1::writable(layout, "cpuacct")) {
        (None, Some(leaf), _) => (leaf.join("cpu.stat"), 1000),
        (_, _, Some(hierarchy)) => (v1::leaf(layout, "cpuacct", hierarchy).join("cpuacct.usage"), 1),
        (no_tree, _, None) => {
            let no_tree = no_tree.map_or("the task has no cgroup", String::as_str);
            let why = format!(
                "the task's CPU time is not counted: {no_tree}, and the cpuacct controller of cgroup v1 is not available"
            );
            return layout.report.miss(Control::CPU_DEADLINE, why);
        }
    };
    let processors = u32::try_from(layout.detection().online.len()).unwrap_or(u32::MAX).max(1);
    layout.cpu_time = Some(CpuCounter { file, unit, processors });
}

/// Plans how the task is killed. That needs one cgroup with all of its processes: the v2 leaf or, without a v2 tree,
/// the one in the v1 freezer hierarchy.
fn kill(layout: &mut Layout<'_>, no_tree: Option<&String>) {
    layout.report.enforce(Control::KILL);
    let Some(no_tree) = no_tree else { return };
    match v1::writable(layout, "freezer") {
        Some(freezer) => layout.paths.unit = Some(v1::leaf(layout, "freezer", freezer)),
        None if layout.request.own_pid => {}
        None => layout.report.weaken(
            Control::KILL,
            format!(
                "only the main process is killed, because the task has neither a PID namespace nor a cgroup: {no_tree}, and the freezer controller of cgroup v1 is not available"
            ),
        ),
    }
}
