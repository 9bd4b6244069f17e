//! An overlay file system over a directory of the host, and the tmpfs that such are written to.
//!
//! The layers are named to the kernel by descriptor, through `/proc/self/fd`: a path of the host would have to
//! escape colons and backslashes, kernels before 6.5 take no comma at all, and the task could read it in its
//! mountinfo. Every layer must be mounted in this namespace, so the tmpfs stands over `/`, where the root
//! covers it at once and `pivot_root` takes both away; the overlays keep it.

use crate::State;
use crate::place::{exists_is_fine, mount_point};
use crate::step::{At, Done, attach, new_mount};
use crate::sys::{self, Errno, Z};
use crate::wire::{KIND_DIR, List, Op, Str};

/// Mounts the tmpfs.
pub fn upper(state: &mut State, options: List<'static, Str<'static>>) -> Done {
    let (tree, calls) = new_mount(c"tmpfs", 0x6 /* NOSUID|NODEV */, options)?;
    state.upper = tree;
    sys::move_mount_over_root(tree).at(calls)
}

/// Mounts an overlay.
pub fn mount(state: &State, op: &Op<'static>) -> Done {
    let Op::Overlay { source, target, upper, name, mode, uid, gid, userxattr, attrs } = *op else {
        return Err(sys::EINVAL).at(0);
    };
    let (base, calls) = match upper.bytes() {
        [] => (state.upper, 0),
        _ => (sys::openat(sys::CWD, upper, sys::O_PATH | sys::O_DIRECTORY, 0).at(0)?, 1),
    };
    exists_is_fine(sys::mkdirat(base, name, 0o700)).at(calls)?;
    let flags = sys::O_PATH | sys::O_DIRECTORY | sys::O_NOFOLLOW;
    let layer = sys::openat(base, name, flags, 0).at(calls + 1)?;
    if base != state.upper {
        sys::close(base);
    }
    // One that is there is that of an earlier sandbox, and keeps what it has.
    match sys::mkdirat(layer, c"upper", 0o700) {
        Err(sys::EEXIST) => {}
        made => {
            made.at(calls + 2)?;
            sys::fchownat(layer, c"upper", uid, gid).at(calls + 3)?;
            sys::fchmodat(layer, c"upper", mode).at(calls + 4)?;
        }
    }
    exists_is_fine(sys::mkdirat(layer, c"work", 0o700)).at(calls + 5)?;
    let lower = sys::openat(sys::CWD, source, sys::O_PATH | sys::O_DIRECTORY, 0).at(calls + 6)?;
    let mut calls = calls + 7;
    let context = sys::fsopen(c"overlay").at(calls)?;
    for (key, fd, below) in
        [(c"lowerdir", lower, &b""[..]), (c"upperdir", layer, b"/upper"), (c"workdir", layer, b"/work")]
    {
        calls += 1;
        let path = FdPath::new(fd, below);
        sys::fsconfig_set(context, key, path.z()).at(calls)?;
    }
    if userxattr != 0 {
        calls += 1;
        sys::fsconfig_flag(context, c"userxattr").at(calls)?;
    }
    sys::fsconfig_create(context).at(calls + 1)?;
    let tree = sys::fsmount(context, attrs).at(calls + 2)?;
    for fd in [context, lower, layer] {
        sys::close(fd);
    }
    let at = mount_point(state, target, KIND_DIR, sys::IN_ROOT).at(calls + 3)?;
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
