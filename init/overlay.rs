//! An overlay file system over a directory of the host, and the tmpfs that such are written to.
//!
//! The layers are named to the kernel by descriptor, through `/proc/self/fd`: a path of the host would have to
//! escape colons and backslashes, kernels before 6.5 take no comma at all, and the task could read it in its
//! mountinfo. Every layer must be mounted in this namespace, so the tmpfs stands over `/`, where the root
//! covers it at once and `pivot_root` takes both away; the overlays keep it.

use crate::call::{At, Done};
use crate::mount::{UPPER_ATTRS, attach, new_mount};
use crate::paths::{allow_existing, open_mount_point};
use crate::state::Init;
use crate::sys::{self, Z};
use crate::uapi::{EEXIST, EINVAL, MS_PRIVATE, O_DIRECTORY, O_NOFOLLOW, O_PATH};
use crate::wire::{FileType, List, Op, Str};

/// Mounts the tmpfs.
pub fn mount_upper_tmpfs(init: &mut Init, options: List<'static, Str<'static>>) -> Done {
    let (tree, calls) = new_mount(c"tmpfs", UPPER_ATTRS, options)?;
    init.upper = tree;
    sys::move_mount_over_root(tree).at(calls)
}

/// Mounts a directory of the host instead.
pub fn mount_upper_dir(init: &mut Init, fd: u32) -> Done {
    init.upper = init.take_fd(fd);
    sys::mount_setattr(init.upper, UPPER_ATTRS, MS_PRIVATE, false).at(0)?;
    sys::move_mount_over_root(init.upper).at(1)
}

/// Mounts an overlay. Its lower layer is attached where the overlay comes to lie, and detached once the overlay has it:
/// most kernels take no layer that is mounted nowhere.
pub fn mount_overlay(init: &mut Init, op: &Op<'static>) -> Done {
    let Op::Overlay { fd, target, name, mode, uid, gid, userxattr, attrs, .. } = *op else {
        return Err(EINVAL).at(0);
    };
    let lower = init.take_fd(fd);
    allow_existing(sys::mkdirat(init.upper, name, 0o700)).at(0)?;
    let flags = O_PATH | O_DIRECTORY | O_NOFOLLOW;
    let layer = sys::openat(init.upper, name, flags, 0).at(1)?;
    // One that is there is that of an earlier sandbox, and keeps what it has.
    match sys::mkdirat(layer, c"upper", 0o700) {
        Err(EEXIST) => {}
        made => {
            made.at(2)?;
            sys::fchownat(layer, c"upper", uid, gid).at(3)?;
            sys::fchmodat(layer, c"upper", mode).at(4)?;
        }
    }
    allow_existing(sys::mkdirat(layer, c"work", 0o700)).at(5)?;
    sys::mount_setattr(lower, 0, MS_PRIVATE, false).at(6)?;
    let at = open_mount_point(init, target, FileType::Dir, sys::IN_ROOT).at(7)?;
    sys::move_mount(lower, at).at(8)?;
    let context = sys::fsopen(c"overlay").at(9)?;
    let mut calls = 9;
    for (key, fd, below) in
        [(c"lowerdir", lower, &b""[..]), (c"upperdir", layer, b"/upper"), (c"workdir", layer, b"/work")]
    {
        calls += 1;
        let path = FdPath::new(fd, below);
        sys::fsconfig_set(context, key, path.z()).at(calls)?;
    }
    if userxattr {
        calls += 1;
        sys::fsconfig_flag(context, c"userxattr").at(calls)?;
    }
    sys::fsconfig_create(context).at(calls + 1)?;
    let tree = sys::fsmount(context, attrs).at(calls + 2)?;
    sys::unmount(FdPath::new(lower, b"").z()).at(calls + 3)?;
    for fd in [context, lower, layer] {
        sys::close(fd);
    }
    attach(tree, at).at(calls + 4)
}

/// `/proc/self/fd/N` and what follows.
struct FdPath([u8; 40]);

impl FdPath {
    fn new(fd: i32, below: &[u8]) -> FdPath {
        let mut digits = [0u8; 10];
        let mut at = digits.len();
        let mut n = fd as u32;
        loop {
            at -= 1;
            digits[at] = b'0' + (n % 10) as u8;
            n /= 10;
            if n == 0 {
                break;
            }
        }
        let mut path = [0u8; 40];
        // 14, at most 10, and at most 6 bytes: a NUL is left.
        let bytes = b"/proc/self/fd/".iter().chain(&digits[at..]).chain(below);
        for (to, from) in path.iter_mut().zip(bytes) {
            *to = *from;
        }
        FdPath(path)
    }

    fn z(&self) -> Z {
        core::ffi::CStr::from_bytes_until_nul(&self.0).unwrap_or(c"").into()
    }
}
