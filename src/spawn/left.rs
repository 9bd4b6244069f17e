//! Finds what a failed spawn has left among the children of the caller, of which the caller has no pidfd. The caller alone can
//! reap them.
//!
//! One is the copy in which init continues, if init was killed before it has sent its pidfd. Only the copy is in the new
//! cgroup: it waits for the caller before its next step. Another is a process that init has forked, if init was killed and the
//! caller gets orphans.
//!
//! Such a child was started after init, and is in its cgroup, in its session, or in the PID namespace of the task that init
//! joins. `/proc` shows these of a process until it is reaped, also after its end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use procfs::process::Stat;

use crate::cgroup::Group;
use crate::sys;

/// Which children the processes of one spawn are.
pub(super) struct Marks<'a> {
    /// Init before its end. `None` if `/proc` does not show it.
    init: Option<Stat>,
    group: Option<&'a Group>,
    joined: Option<Joined>,
    /// Whether init has forked nothing yet except its copy.
    only_copy: bool,
}

/// The PID namespace of the task that init joins.
struct Joined {
    /// Its inode number, if the kernel shows it.
    inode: Option<u64>,
    /// How many PID namespaces it is nested in, itself included.
    depth: usize,
}

impl<'a> Marks<'a> {
    /// The marks of the processes of this init, which is not reaped yet. `task` is the first process of the task that it joins.
    pub(super) fn of(
        init: BorrowedFd<'_>,
        group: Option<&'a Group>,
        task: Option<BorrowedFd<'_>>,
        only_copy: bool,
    ) -> Marks<'a> {
        let init = sys::proc_pid(init).and_then(|pid| sys::stat(pid).ok());
        let joined = task.zip(init.as_ref()).and_then(|(task, init)| Joined::of(task, init.ppid));
        Marks { init, group, joined, only_copy }
    }

    /// A pidfd of such a child, which the caller has not reaped. `None` if there is none.
    pub(super) fn find(&self) -> Option<OwnedFd> {
        let listed = self.group.and_then(|group| group.pids().ok()).unwrap_or_default();
        let of_group = listed.into_iter().filter(|pid| *pid > 0).find_map(sys::own_child);
        of_group.or_else(|| {
            let child = |pid| Some((pid, sys::own_child(pid)?));
            let mut children = sys::proc_pids().ok()?.into_iter().filter_map(child);
            // `/proc` may be of another PID namespace than the caller, and have another process of this PID. A child has its PID
            // until it is reaped.
            let same =
                |(pid, child): &(i32, OwnedFd)| sys::proc_pid(child.as_fd()) == Some(*pid) && self.has(*pid);
            children.find(same).map(|(_, child)| child)
        })
    }

    fn has(&self, pid: i32) -> bool {
        let (Some(init), Ok(child)) = (&self.init, sys::stat(pid)) else { return false };
        // Not a process that the caller traces, nor one that it had before.
        if child.ppid != init.ppid || child.starttime < init.starttime {
            return false;
        }
        let forked =
            || child.session == init.pid || self.joined.as_ref().is_some_and(|joined| joined.has(&child));
        self.is_in_cgroup(pid) || !self.only_copy && forked()
    }

    /// Whether the process is in the version 2 cgroup, or was. `/proc` names the cgroup of a process that has ended too, but not
    /// that of a version 1 hierarchy (`cgroups(7)`).
    fn is_in_cgroup(&self, pid: i32) -> bool {
        let Some(unit) = self.group.and_then(|group| group.paths().unit.as_deref()) else { return false };
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let path = text.lines().find_map(|line| line.strip_prefix("0::"));
        path.is_some_and(|path| ends_alike(unit, path.trim_end_matches(" (deleted)")))
    }
}

/// Whether the path of a cgroup in `/proc` is that of the directory: a name of the task, below two that the policy gives. The
/// path begins at the root of the reader's cgroup namespace, and the directory at the mount point, so only their ends are alike.
fn ends_alike(unit: &Path, path: &str) -> bool {
    let names = Path::new(path).components().filter(|part| matches!(part, Component::Normal(_)));
    let count = names.clone().count();
    let end: PathBuf = names.skip(count.saturating_sub(3)).collect();
    count > 0 && unit.ends_with(end)
}

impl Joined {
    /// `None` if the task is in the PID namespace of the caller.
    fn of(task: BorrowedFd<'_>, caller: i32) -> Option<Joined> {
        let pid = sys::proc_pid(task)?;
        let (depth, own) = (sys::pids(pid)?.len(), sys::pids(caller)?.len());
        (depth > own).then(|| Joined { inode: sys::pid_namespace(pid), depth })
    }

    /// Whether the child is in the namespace. It leads a session, since that of init is outside. PID 1 is the task.
    ///
    /// To an ordinary user, the kernel does not show the namespaces of a process that was not dumpable and exits.
    fn has(&self, child: &Stat) -> bool {
        let pids = sys::pids(child.pid).unwrap_or_default();
        let is_here = match (self.inode, sys::pid_namespace(child.pid)) {
            (Some(inode), Some(its)) => inode == its,
            _ => sys::is_exiting(child) && pids.len() == self.depth,
        };
        is_here && child.session == child.pid && pids.last().is_some_and(|pid| *pid != 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_cgroup_is_compared_as_far_as_the_reader_sees_it() {
        let unit = Path::new("/sys/fs/cgroup/unified/jobs/share.slice/box.scope");
        for (path, alike) in [
            ("/jobs/share.slice/box.scope", true),
            ("/docker/1a/jobs/share.slice/box.scope", true),
            ("/box.scope", true),
            ("/", false),
            ("", false),
            ("/others/share.slice/box.scope", false),
            ("/system.slice/box.scope", false),
            ("/jobs/share.slice/box.scope/inside", false),
        ] {
            assert_eq!(ends_alike(unit, path), alike, "{path:?}");
        }
    }
}
