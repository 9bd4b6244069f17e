//! Which mounts of a sandbox are prepared once, in a mount namespace of their own, and the plan that prepares them.
//!
//! A task then enters a copy of that namespace and makes only the mounts that it needs of its own. This is safe only if
//! no task can change what the others see.

use std::path::Path;
use std::sync::Arc;

use super::launch;
use super::stays::Stays;
use crate::caps::Sets;
use crate::cgroup::Cgroups;
use crate::ns::Namespaces;
use crate::plan::{MustHold, ParentOp, Plan};
use crate::rootfs::lower::{self, RootEntry, RootRequest};
use crate::rootfs::work::BuildRoot;
use crate::rootfs::{Method, Propagation};
use crate::spec::{Policy, SandboxSpec};
use crate::step::Draft;

/// Why the mounts of a spec cannot be prepared; `None` if they can.
pub(super) fn obstacle(
    policy: &Policy,
    spec: &SandboxSpec,
    (namespaces, stays): (&Namespaces, Stays),
    sets: Sets,
    (root, entries): (&BuildRoot, &[RootEntry]),
) -> Option<&'static str> {
    let propagates = spec.volumes.iter().any(|volume| volume.propagation != Propagation::Private);
    let covers = entries.iter().any(|entry| entry.target == Path::new("/"));
    if namespaces.user {
        Some("the mounts belong to the task's user namespace")
    } else if stays == Stays::Outside {
        Some("the process that stays outside of the PID namespace shares the mounts")
    } else if policy.no_pivot_root {
        Some("the root is entered by chroot")
    } else if sets.bounding.has("sys_admin") {
        Some("a task with CAP_SYS_ADMIN can change the mounts")
    } else if propagates {
        Some("a volume propagates mounts")
    } else if root.dir.is_some() {
        Some("the root is a directory, which tasks can write to")
    } else if root.method != Method::Bind {
        Some("the root has overlays that each task writes to")
    } else if covers {
        Some("a source is mounted at /")
    } else {
        None
    }
}

/// The plan that prepares the mounts.
pub(super) fn plan(request: &RootRequest<'_>, id: String) -> Plan {
    let mut draft = Draft::default();
    lower::lower(request, &mut draft);
    let mut cgroups = Cgroups::default();
    let clone = ParentOp::Clone { namespaces: libc::CLONE_NEWNS.cast_unsigned(), into_cgroup: false };
    let parent = launch(&mut cgroups, draft.handed, clone, None, ParentOp::AwaitPrepared);
    Plan {
        id,
        report: draft.report,
        cold: None,
        masks_private: false,
        parent,
        init: draft.init,
        cgroups,
        namespaces: libc::CLONE_NEWNS.cast_unsigned(),
        outside: false,
        fork_inside: Vec::new(),
        environment: Vec::new(),
        other_users: None,
        must_hold: MustHold::default(),
        root: Arc::default(),
        command: std::ffi::OsString::new(),
        candidates: Vec::new(),
    }
}
