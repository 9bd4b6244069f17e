//! Lowers a task's limits into steps for cgroups in the v1 hierarchies.

use std::path::PathBuf;

use crate::cgroup::detect::place::in_hierarchy;
use crate::cgroup::detect::{Hierarchy, Version};
use crate::cgroup::fs::{DirOwner, NewDir};
use crate::cgroup::group::CgroupOp;
use crate::cgroup::layout::{Layout, Tree};
use crate::cgroup::limits::row::Row;
use crate::cgroup::reserve::{JoinShare, Reserve, Site, own_cpuset};
use crate::report::Control;

/// Lays out each limit in the hierarchy of its controller, or in the v2 tree if only v2 has that controller.
pub(in crate::cgroup) fn lower(layout: &mut Layout<'_>, tree: Option<&Tree<'_>>) {
    cpuset(layout);
    let terms = layout.terms(Version::V1);
    let used = layout.rows(&terms);
    for controller in ["cpu", "memory", "blkio", "pids", "hugetlb"] {
        let own: Vec<Row> = used.iter().filter(|row| row.controller == controller).cloned().collect();
        if own.is_empty() {
            continue;
        }
        let in_v1 = layout.detection().v1.contains_key(controller);
        match (tree, writable(layout, controller)) {
            (Some(tree), _) if !in_v1 && tree.parent.v2.controllers.contains(controller) => {
                layout.enable(tree, &[controller]);
                layout.write(&tree.leaf, &own);
            }
            (_, Some(hierarchy)) => {
                let leaf = leaf(layout, controller, hierarchy);
                layout.write(&leaf, &own);
            }
            // Only an optional controller can be missing here: `can_limit()` has checked the required ones.
            (_, None) => {
                let asked = own.iter().fold(Control::empty(), |set, row| set | row.control);
                layout.miss(asked, format!("cgroup v1 controllers not available: {controller}"));
            }
        }
    }
    if layout.limits().accounting {
        for controller in ["memory", "cpu", "cpuacct", "pids", "blkio", "hugetlb"] {
            if let Some(hierarchy) = writable(layout, controller) {
                leaf(layout, controller, hierarchy);
            }
        }
    }
    layout.remark(&terms);
}

fn cpuset(layout: &mut Layout<'_>) {
    let cores = layout.cores();
    let cpuset = match layout.request.partition {
        true => own_cpuset(layout.detection()),
        false => {
            Err("other tasks may use these CPUs: the policy does not reserve CPUs (core_partitions is false)"
                .to_owned())
        }
    };
    let (hierarchy, reserved) = match (cpuset, cores) {
        (Ok(hierarchy), reserved) => (hierarchy, reserved),
        (Err(_), None) => return,
        (Err(why), Some(reserved)) => {
            match writable(layout, "cpuset") {
                Some(hierarchy) => {
                    let leaf = leaf(layout, "cpuset", hierarchy);
                    layout.write_cores(&leaf, &reserved.cores);
                    layout.report.weaken(Control::CPUSET, why);
                }
                None => layout.miss(Control::CPUSET, "the cpuset controller of cgroup v1 is not available"),
            }
            return;
        }
    };
    let levels = in_hierarchy(hierarchy, layout.parent());
    let site = Site::in_v1(layout.detection(), hierarchy, layout.parent());
    let leaf = site.reserve().join(layout.request.name.as_ref());
    layout.stale(leaf.clone());
    let files = |dir: &PathBuf| ["cpuset.mems", "cpuset.cpus"].map(|file| dir.join(file));
    let inherit = levels.iter().flat_map(files).collect();
    match reserved {
        Some(reserved) => {
            if site.tasks.is_none() {
                let why = "tasks that already run may use these CPUs: without cgroup v2 and the freezer controller they cannot be found";
                layout.report.weaken(Control::CPUSET, why);
            }
            layout.paths.v1.insert("cpuset".to_owned(), leaf.clone());
            layout.paths.enter.push(leaf.join("tasks"));
            let parents = layout.parents(&levels);
            layout.divide(CgroupOp::Reserve(Reserve {
                site,
                parents,
                enable: Vec::new(),
                inherit,
                leaf,
                reserved,
            }));
        }
        None => {
            layout.paths.share = Some(site.clone());
            layout.divide(CgroupOp::JoinShare(JoinShare { site, inherit }));
        }
    }
}

/// Notes where an earlier task of the name may have a cgroup and this one has none. In a parent that is not the crate's own
/// another program may have a cgroup of that name, and the v2 unit is what shows that there was such a task.
pub(in crate::cgroup) fn elsewhere(layout: &mut Layout<'_>) {
    if !layout.paths.into && !layout.parent().is_default() {
        return;
    }
    let name = layout.request.name.as_ref();
    for (controller, hierarchy) in layout.detection().v1.iter().filter(|(_, hierarchy)| hierarchy.writable) {
        let levels = in_hierarchy(hierarchy, layout.parent());
        let leaf = levels.last().unwrap_or(&hierarchy.mount).join(name);
        // Directories of the crate in the hierarchy of the cpuset.
        let of_site = controller == "cpuset" && ["share", "reserve"].contains(&name);
        if !of_site && !layout.makes(&leaf) {
            let mut dirs = layout.parents(&levels);
            dirs.push(NewDir { path: leaf, owner: DirOwner::Task });
            // Controllers that are mounted together have the same directories.
            if !layout.paths.elsewhere.contains(&dirs) {
                layout.paths.elsewhere.push(dirs);
            }
        }
    }
}

/// The hierarchy of `controller`, if it is writable.
pub(in crate::cgroup) fn writable<'a>(layout: &Layout<'a>, controller: &str) -> Option<&'a Hierarchy> {
    layout.detection().v1.get(controller).filter(|hierarchy| hierarchy.writable)
}

/// The task's leaf in the hierarchy of `controller`. Adds the steps that make it, unless they were added for another
/// controller of the same hierarchy.
pub(in crate::cgroup) fn leaf(layout: &mut Layout<'_>, controller: &str, hierarchy: &Hierarchy) -> PathBuf {
    let levels = in_hierarchy(hierarchy, layout.parent());
    let leaf = levels.last().unwrap_or(&hierarchy.mount).join(layout.request.name.as_ref());
    let together = layout.detection().v1.iter().filter(|(_, other)| other.mount == hierarchy.mount);
    let together: Vec<_> = together.map(|(name, _)| (name.clone(), leaf.clone())).collect();
    layout.paths.v1.extend(together);
    if layout.makes(&leaf) {
        return leaf;
    }
    let parents = layout.parents(&levels);
    layout.make(parents, &leaf);
    layout.paths.enter.push(leaf.join("tasks"));
    // A process cannot enter a cpuset without CPUs or memory nodes. This applies also if cpuset is merely mounted
    // together with the requested controller.
    if layout.detection().v1.get("cpuset").is_some_and(|h| h.mount == hierarchy.mount) {
        for dir in levels.iter().chain([&leaf]) {
            layout.inherit(dir.join("cpuset.mems"));
            if controller != "cpuset" || *dir != leaf {
                layout.inherit(dir.join("cpuset.cpus"));
            }
        }
    }
    leaf
}
