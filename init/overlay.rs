//! Overlay file systems over directories of the host, and the tmpfs or directory that they write to.
//!
//! The layers are named to the kernel by descriptor, as `/proc/self/fd/N`. A path of the host would need its colons and
//! backslashes escaped, kernels before 6.5 accept no comma, and the task could read the path in its mountinfo. Every
//! layer must be mounted in this mount namespace. So the upper file system is mounted over `/`, where the root covers
//! it at once and `pivot_root` removes both. The overlays keep a reference to it.

use crate::call::{At, Done, NextCall};
use crate::mount::{UPPER_ATTRS, attach, new_mount};
use crate::paths::{allow_existing, open_mount_point};
use crate::state::Init;
use crate::sys::{self, Z};
use crate::uapi::{EEXIST, MS_PRIVATE, O_DIRECTORY, O_NOFOLLOW, O_PATH};
use crate::wire::{FileType, List, Str};

/// Mounts the tmpfs that overlays write to.
pub fn mount_upper_tmpfs(init: &mut Init, options: List<'static, Str<'static>>) -> Done {
    let mut next = NextCall::from(0);
    init.upper = new_mount(&mut next, c"tmpfs", UPPER_ATTRS, options)?;
    sys::move_mount_over_root(init.upper).at(next.index())
}

/// Mounts a directory of the host that overlays write to.
pub fn mount_upper_dir(init: &mut Init, fd: u32) -> Done {
    init.upper = init.take_fd(fd);
    sys::mount_setattr(init.upper, UPPER_ATTRS, MS_PRIVATE, false).at(0)?;
    sys::move_mount_over_root(init.upper).at(1)
}

/// The fields of `Op::Overlay`.
pub struct Overlay {
    /// Index of the lower layer in the table of descriptors.
    pub lower: u32,
    /// Path in the sandbox.
    pub target: Str<'static>,
    /// Name of this overlay's directory in the upper file system.
    pub name: Str<'static>,
    /// Mode, user and group of the top of the upper layer, if init creates it.
    pub owner: (u32, u32, u32),
    /// Whether overlayfs stores its metadata in `user.*` attributes (`userxattr`, Linux 5.11).
    pub userxattr: bool,
    /// `MOUNT_ATTR_*` bits.
    pub attrs: u64,
}

/// Mounts an overlay. The lower layer is attached at the target first, and detached once the overlay has a reference to
/// it: most kernels accept only layers that are mounted.
pub fn mount_overlay(init: &mut Init, overlay: Overlay) -> Done {
    let Overlay { lower, target, name, owner: (mode, uid, gid), userxattr, attrs } = overlay;
    let lower = init.take_fd(lower);
    allow_existing(sys::mkdirat(init.upper, name, 0o700)).at(0)?;
    let flags = O_PATH | O_DIRECTORY | O_NOFOLLOW;
    let layer = sys::openat(init.upper, name, flags, 0).at(1)?;
    // EEXIST: the upper layer of an earlier sandbox. It keeps its owner, mode and content.
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
    let mut next = NextCall::from(9);
    let context = sys::fsopen(c"overlay").at(next.index())?;
    for (key, fd, below) in
        [(c"lowerdir", lower, &b""[..]), (c"upperdir", layer, b"/upper"), (c"workdir", layer, b"/work")]
    {
        let path = FdPath::new(fd, below);
        sys::fsconfig_set(context, key, path.z()).at(next.index())?;
    }
    if userxattr {
        sys::fsconfig_flag(context, c"userxattr").at(next.index())?;
    }
    sys::fsconfig_create(context).at(next.index())?;
    let tree = sys::fsmount(context, attrs).at(next.index())?;
    sys::unmount(FdPath::new(lower, b"").z()).at(next.index())?;
    for fd in [context, lower, layer] {
        sys::close(fd);
    }
    attach(tree, at).at(next.index())
}

/// The path `/proc/self/fd/N`, followed by a path below that descriptor.
struct FdPath([u8; 40]);

impl FdPath {
    fn new(fd: i32, below: &[u8]) -> FdPath {
        let mut digits = [0u8; 10];
        let mut rest = fd as u32;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' | (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        let mut path = [0u8; 40];
        // At most 14 + 10 + 6 bytes, so a NUL remains at the end.
        let bytes =
            b"/proc/self/fd/".iter().chain(digits.iter().skip_while(|digit| **digit == 0)).chain(below);
        for (to, from) in path.iter_mut().zip(bytes) {
            *to = *from;
        }
        FdPath(path)
    }

    fn z(&self) -> Z {
        core::ffi::CStr::from_bytes_until_nul(&self.0).unwrap_or(c"").into()
    }
}
