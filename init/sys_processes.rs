//! System calls for processes: forks, their names, and their ends.

use super::{Errno, Z, addr, addr_mut, call};
use crate::arch::nr;
use crate::uapi::*;

/// clone(2) without shared memory, as fork(2), with a pidfd of the child. Returns 0 in the child. The child sends no
/// signal at its end until it executes a program: the kernel then sets SIGCHLD. So wait4(2) knows whether it has
/// executed one. Writes the child's own PID to `own` in the child.
pub fn fork(pidfd: &mut i32, own: &mut i32) -> Result<i32, Errno> {
    let flags = CLONE_PIDFD | CLONE_CHILD_SETTID;
    call(nr::CLONE, [flags, 0, addr_mut(pidfd), addr_mut(own), 0, 0]).map(|pid| pid as i32)
}

/// fcntl(F_SETOWN): makes the process the owner of an open file.
pub fn set_owner(file: i32, pid: i32) -> Result<(), Errno> {
    call(nr::FCNTL, [file as usize, F_SETOWN, pid as usize, 0, 0, 0]).map(drop)
}

/// prctl(PR_SET_NAME).
pub fn set_name(name: impl Into<Z>) -> Result<(), Errno> {
    call(nr::PRCTL, [PR_SET_NAME, name.into().0, 0, 0, 0, 0]).map(drop)
}

/// clone3(2) without shared memory, into a version 2 cgroup, as another child of the parent. With a pidfd of it.
/// Returns 0 in the child. Writes the child's own PID to `own` in the child.
pub fn clone_into(cgroup: i32, pidfd: &mut i32, own: &mut i32) -> Result<i32, Errno> {
    let flags = CLONE_PARENT | CLONE_PIDFD | CLONE_CHILD_SETTID | CLONE_INTO_CGROUP;
    let (pidfd, own) = (addr_mut(pidfd) as u64, addr_mut(own) as u64);
    let args: [u64; 11] = [flags as u64, pidfd, own, 0, 0, 0, 0, 0, 0, 0, cgroup as u64];
    call(nr::CLONE3, [addr(&args), size_of_val(&args), 0, 0, 0, 0]).map(|pid| pid as i32)
}

/// kill(2) with SIGKILL.
pub fn kill(pid: i32) -> Result<(), Errno> {
    call(nr::KILL, [pid as usize, SIGKILL, 0, 0, 0, 0]).map(drop)
}

/// setsid(2).
pub fn setsid() -> Result<(), Errno> {
    call(nr::SETSID, [0; 6]).map(drop)
}

/// signalfd4(2) for SIGCHLD, close-on-exec.
pub fn open_child_signals() -> Result<i32, Errno> {
    let mask = 1u64 << (SIGCHLD - 1);
    call(nr::SIGNALFD4, [usize::MAX, addr(&mask), 8, SFD_CLOEXEC, 0, 0]).map(|fd| fd as i32)
}

/// wait4(2): the pid, and the wait status. No status for a stop, which is no end: the kernel reports one of a child
/// that has made this process its tracer (`PTRACE_TRACEME`).
fn wait(pid: i32, options: usize) -> Result<(i32, Option<i32>), Errno> {
    let mut status = 0i32;
    let pid = call(nr::WAIT4, [pid as usize, addr_mut(&mut status), options, 0, 0, 0])?;
    Ok((pid as i32, (status & 0xff != 0x7f).then_some(status)))
}

/// As [`wait`], for any child. The pid is 0 if `block` is false and no child has ended.
pub fn wait_any(block: bool) -> Result<(i32, Option<i32>), Errno> {
    wait(-1, WALL | if block { 0 } else { WNOHANG })
}

/// The wait status of a child, if it has ended.
pub fn wait_ended(pid: i32) -> Option<i32> {
    let (found, status) = wait(pid, WALL | WNOHANG).ok()?;
    status.filter(|_| found != 0)
}

/// The wait status of a child of [`fork`] that has ended, or is about to, without having executed a program. `None` if
/// it has executed one.
pub fn wait_unexecuted(pid: i32) -> Option<i32> {
    wait(pid, WCLONE).ok()?.1
}
