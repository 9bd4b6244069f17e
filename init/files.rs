//! Files of the sandbox's own, with what the plan says is in them.

use crate::State;
use crate::place::{drop_parent, mount_point, parent, place};
use crate::step::{At, Done, MASK_ATTRS, attach};
use crate::sys;
use crate::wire::{Blob, FileType, Str};

/// A file in the sandbox's own `/dev`, bound over `path`. It loses its name there only then: what has none
/// cannot be mounted.
pub fn cover(state: &State, path: Str<'static>, content: Blob<'static>) -> Done {
    let dev = state.anchors[0];
    let fd = sys::openat(dev, c".file", sys::O_NEW, 0o644).at(0)?;
    sys::write_all(fd, content.0).at(1)?;
    sys::close(fd);
    let tree = sys::open_tree(dev, c".file", true).at(2)?;
    sys::mount_setattr(tree, MASK_ATTRS, 0, false).at(3)?;
    let at = match mount_point(state, path, FileType::File, sys::IN_ROOT) {
        // A link that leads nowhere in this root, as resolv.conf often is: the link itself is covered.
        Err(sys::ENOENT) => sys::openat2(state.root, path, sys::O_PATH | sys::O_NOFOLLOW, sys::IN_ROOT),
        other => other,
    };
    attach(tree, at.at(4)?).at(5)?;
    sys::unlinkat(dev, c".file").at(6)
}

/// A new file in a directory of the sandbox's own.
pub fn new(
    state: &State,
    path: Str<'static>,
    mode: u32,
    (uid, gid): (u32, u32),
    content: Blob<'static>,
) -> Done {
    let (base, path) = place(state, path);
    let (parent, name) = parent(base, path).at(0)?;
    let made = sys::openat(parent, name, sys::O_NEW, mode);
    drop_parent(base, parent);
    let fd = made.at(0)?;
    sys::write_all(fd, content.0).at(1)?;
    let given = sys::fchown(fd, uid, gid).at(2);
    sys::close(fd);
    given
}
