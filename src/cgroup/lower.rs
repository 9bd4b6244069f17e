//! Limits and a detection become the steps of a task's cgroups. Nothing is touched here.

use super::detect::Version;
use super::detect::place::in_tree;
use super::fs::{DirOwner, NewDir};
use super::group::{CgroupOp, Cgroups};
use super::layout::{Layout, Request, Tree};
use super::limits::row::Row;
use super::reserve::{JoinShare, RESERVE_V2, Reserve, SHARE_V2, Site};
use super::v1::lower as v1;
use crate::error::Result;
use crate::report::{Control, Report};
use crate::step::Step;

/// Lays out the cgroups of one task.
///
/// The leaf is `<parent>/share.slice/<name>.scope` in the v2 tree, or `<parent>/reserve.slice/<name>.scope` for a
/// task with reserved processors, and `<parent>/<name>` in a v1 hierarchy. In that of cpuset it is
/// `<parent>/reserve/<name>` for a task with reserved processors; other tasks are in none while none is reserved.
///
/// The v2 tree is always used when it may be, for birth, killing and events; a v1 hierarchy only if its controller is
/// to limit something, and the freezer only where there is no tree to kill in.
///
/// What cannot hold is added to `report`: a host without any cgroups is no error.
///
/// Where the operator named a parent, it and the levels above it must not have processes of their own on v2.
///
/// # Errors
/// [`Error::Unsupported`](crate::Error::Unsupported) if a list of devices must be held and cannot be.
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
    kill(&mut layout, no_tree);
    Ok(layout.finish())
}

/// The leaf in the v2 tree, or why there is none.
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
        // The reservation makes it.
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
    // Those that every host should have are there: can_limit() has looked.
    for row in lacking {
        layout.miss(row.control, format!("cgroup v2 lacks {}", row.controller));
    }
    let mut needed: Vec<&str> = used.iter().map(|row| row.controller).collect();
    if layout.limits().accounting {
        // What the kernel lacks is not missed: it only counts.
        needed.extend(["cpu", "memory", "io", "pids"].into_iter().filter(|name| controllers.contains(*name)));
    }
    layout.enable(tree, &needed);
    layout.write(&tree.leaf, &used);
    layout.remark(&terms);
}

/// Devices need no controller of v2, and of v1 no other one.
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
            let no_tree = no_tree.map_or("there is no cgroup", String::as_str);
            let why = format!("{no_tree}, and no devices controller of cgroup v1 that may be used");
            return request.without_devices.give_up(Control::DEVICES, &why, layout.report);
        }
    };
    layout.report.enforce(Control::DEVICES);
    layout.devices = Some(Step::of(Control::DEVICES, op).on_refusal(request.without_devices.clone()));
    Ok(())
}

/// Killing needs one cgroup that has all processes; without the tree that is the freezer's.
fn kill(layout: &mut Layout<'_>, no_tree: Option<&String>) {
    layout.report.enforce(Control::KILL);
    let Some(no_tree) = no_tree else { return };
    match v1::writable(layout, "freezer") {
        Some(freezer) => layout.paths.unit = Some(v1::leaf(layout, "freezer", freezer)),
        None if layout.request.own_pid => {}
        None => layout.report.weaken(
            Control::KILL,
            format!(
                "only the main process is killed, it has no PID namespace and no cgroup: {no_tree}, and no freezer of cgroup v1 that may be used"
            ),
        ),
    }
}
