//! System calls for mounts.

use super::{Errno, Z, addr, call};
use crate::arch::nr;
use crate::uapi::*;

/// umount2(2) with MNT_DETACH.
pub fn unmount(path: impl Into<Z>) -> Result<(), Errno> {
    call(nr::UMOUNT2, [path.into().0, MNT_DETACH, 0, 0, 0, 0]).map(drop)
}

/// mount(2): sets the propagation of `/` and of all mounts below it.
pub fn set_propagation(flags: u64) -> Result<(), Errno> {
    call(nr::MOUNT, [0, Z::from(c"/").0, 0, (flags | MS_REC) as usize, 0, 0]).map(drop)
}

/// open_tree(2) with OPEN_TREE_CLONE. An empty path is `dir` itself.
pub fn open_tree(dir: i32, path: impl Into<Z>, recursive: bool) -> Result<i32, Errno> {
    let flags = OPEN_TREE_CLONE | O_CLOEXEC | AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    call(nr::OPEN_TREE, [dir as usize, path.into().0, flags, 0, 0, 0]).map(|fd| fd as i32)
}

/// mount_setattr(2) on the mount that `fd` refers to. `propagation` 0 leaves the propagation unchanged.
pub fn mount_setattr(fd: i32, attrs: u64, propagation: u64, recursive: bool) -> Result<(), Errno> {
    let attr = [attrs, 0, propagation, 0];
    let flags = AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    call(nr::MOUNT_SETATTR, [fd as usize, Z::from(c"").0, flags, addr(&attr), 32, 0]).map(drop)
}

/// move_mount(2) of a detached mount tree onto the file or directory that `target` refers to.
pub fn move_mount(tree: i32, target: i32) -> Result<(), Errno> {
    let empty = Z::from(c"").0;
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    call(nr::MOVE_MOUNT, [tree as usize, empty, target as usize, empty, flags, 0]).map(drop)
}

/// move_mount(2) of a detached mount tree onto `/`.
pub fn move_mount_over_root(tree: i32) -> Result<(), Errno> {
    let (empty, root) = (Z::from(c"").0, Z::from(c"/").0);
    let args = [tree as usize, empty, AT_FDCWD as usize, root, MOVE_MOUNT_F_EMPTY_PATH, 0];
    call(nr::MOVE_MOUNT, args).map(drop)
}

/// fsopen(2), close-on-exec.
pub fn fsopen(fs: impl Into<Z>) -> Result<i32, Errno> {
    call(nr::FSOPEN, [fs.into().0, FSOPEN_CLOEXEC, 0, 0, 0, 0]).map(|fd| fd as i32)
}

/// fsconfig(FSCONFIG_SET_STRING).
pub fn fsconfig_set(fs: i32, key: impl Into<Z>, value: impl Into<Z>) -> Result<(), Errno> {
    call(nr::FSCONFIG, [fs as usize, FSCONFIG_SET_STRING, key.into().0, value.into().0, 0, 0]).map(drop)
}

/// fsconfig(FSCONFIG_SET_FLAG).
pub fn fsconfig_flag(fs: i32, key: impl Into<Z>) -> Result<(), Errno> {
    call(nr::FSCONFIG, [fs as usize, FSCONFIG_SET_FLAG, key.into().0, 0, 0, 0]).map(drop)
}

/// fsconfig(FSCONFIG_CMD_CREATE).
pub fn fsconfig_create(fs: i32) -> Result<(), Errno> {
    call(nr::FSCONFIG, [fs as usize, FSCONFIG_CMD_CREATE, 0, 0, 0, 0]).map(drop)
}

/// fsmount(2), close-on-exec.
pub fn fsmount(fs: i32, attrs: u64) -> Result<i32, Errno> {
    call(nr::FSMOUNT, [fs as usize, FSMOUNT_CLOEXEC, attrs as usize, 0, 0, 0]).map(|fd| fd as i32)
}
