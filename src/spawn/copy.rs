//! Finds children of the caller in the cgroup of a failed spawn, of which the caller has no pidfd. The caller alone can reap
//! them.
//!
//! One is the copy in which init continues, if init was killed before it has sent its pidfd. Only the copy is in the new
//! cgroup: it waits for the caller before its next step. Another is the child of an init that was killed, if the caller gets
//! orphans.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::cgroup::Group;
use crate::sys;

/// A pidfd of a child in this cgroup, which the caller has not reaped. `None` if there is none.
pub(super) fn find(group: &Group) -> Option<OwnedFd> {
    let listed = group.pids().unwrap_or_default();
    let of_group = listed.into_iter().filter(|pid| *pid > 0).find_map(sys::own_child);
    of_group.or_else(|| ended_in(group.paths().unit.as_deref()?))
}

/// A child of the caller that has ended in the cgroup, which lists it no more. `/proc` names its cgroup until it is reaped
/// (`cgroups(7)`).
fn ended_in(unit: &Path) -> Option<OwnedFd> {
    let name = unit.file_name()?.to_str()?;
    let is_named = |pid: &i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        text.lines().any(|line| line.trim_end_matches(" (deleted)").ends_with(&format!("/{name}")))
    };
    let child = |pid| Some((pid, sys::own_child(pid)?));
    let mut children = sys::proc_pids().ok()?.into_iter().filter(is_named).filter_map(child);
    // A child has its PID until it is reaped.
    let same = |(pid, child): &(i32, OwnedFd)| sys::proc_pid(child.as_fd()) == Some(*pid) && is_named(pid);
    children.find(same).map(|(_, child)| child)
}
