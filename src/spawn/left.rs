//! Finds what a failed spawn has left among the children of the caller, of which the caller has no pidfd. The caller alone can
//! reap them.
//!
//! One is the copy in which init continues, if init was killed before it has sent its pidfd. Only the copy is in the new
//! cgroup: it waits for the caller before its next step. Another is a process that init has forked, if init was killed and the
//! caller gets orphans.
//!
//! A child is one of them by what no other child of the caller has: its cgroup, the session of init, or the PID namespace of
//! the task that init joins. `/proc` shows these of a process until it is reaped, also after its end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use procfs::process::Stat;

use crate::cgroup::Group;
use crate::sys;

/// What the processes of one spawn have, and no other child of the caller.
pub(super) struct Marks<'a> {
    group: Option<&'a Group>,
    /// Init, which leads the session of what it forks. A process that it forks into a PID namespace leaves the session.
    init: Option<Stat>,
    joined: Option<Joined>,
}

/// The PID namespace that a process joins.
struct Joined {
    inode: u64,
    /// How many PID namespaces it is nested in, itself included.
    depth: usize,
}

impl<'a> Marks<'a> {
    /// The marks of the processes of this init, which is not reaped yet. `task` is the first process of the task that it joins.
    pub(super) fn of(
        init: BorrowedFd<'_>,
        group: Option<&'a Group>,
        task: Option<BorrowedFd<'_>>,
    ) -> Marks<'a> {
        let init = sys::proc_pid(init).and_then(|pid| sys::stat(pid).ok());
        Marks { group, init, joined: task.and_then(Joined::of) }
    }

    /// A pidfd of a child with one of the marks, which the caller has not reaped. `None` if there is none.
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
        let stat = sys::stat(pid).ok();
        let of_session = match (&self.init, &stat) {
            (Some(init), Some(stat)) => stat.session == init.pid,
            _ => false,
        };
        let joined = || {
            let (joined, init, stat) = (self.joined.as_ref()?, self.init.as_ref()?, stat.as_ref()?);
            Some(joined.has(init, stat))
        };
        self.in_cgroup(pid) || of_session || joined().unwrap_or(false)
    }

    /// Whether the process is in the version 2 cgroup, or was. `/proc` names the cgroup of a process that has ended too
    /// (`cgroups(7)`); that of a version 1 hierarchy it does not.
    fn in_cgroup(&self, pid: i32) -> bool {
        let unit = self.group.and_then(|group| group.paths().unit.as_deref()?.file_name()?.to_str());
        let Some(name) = unit else { return false };
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        text.lines().any(|line| line.trim_end_matches(" (deleted)").ends_with(&format!("/{name}")))
    }
}

impl Joined {
    /// `None` if the task is in the caller's own PID namespace.
    fn of(task: BorrowedFd<'_>) -> Option<Joined> {
        let pid = sys::proc_pid(task)?;
        let inode = pid_namespace(&pid.to_string()).filter(|inode| Some(*inode) != pid_namespace("self"))?;
        Some(Joined { inode, depth: sys::pids(pid)?.len() })
    }

    /// Whether init has forked a child of the caller into the namespace. All that are there have lost their init, and are to end,
    /// except PID 1, which is the task.
    ///
    /// To an ordinary user, the kernel does not show the namespaces of a process that exits and was not dumpable. Then it is
    /// one that was started after init, and is nested as deeply.
    fn has(&self, init: &Stat, child: &Stat) -> bool {
        let pids = sys::pids(child.pid).unwrap_or_default();
        let is_task = pids.last().is_none_or(|pid| *pid == 1);
        let is_here = match pid_namespace(&child.pid.to_string()) {
            Some(inode) => inode == self.inode,
            None => {
                sys::is_exiting(child)
                    && pids.len() == self.depth
                    && child.session == child.pid
                    && child.starttime >= init.starttime
            }
        };
        is_here && !is_task
    }
}

/// The inode number of the PID namespace of a process (`pid_namespaces(7)`).
fn pid_namespace(process: &str) -> Option<u64> {
    std::fs::metadata(format!("/proc/{process}/ns/pid")).ok().map(|namespace| namespace.ino())
}
