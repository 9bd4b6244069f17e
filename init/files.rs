//! Files that init creates in the sandbox, with content from the plan.

use crate::call::{At, Done};
use crate::mount::{MASK_ATTRS, attach};
use crate::paths::{close_parent, open_mount_point, open_parent, split_at_anchor};
use crate::state::Init;
use crate::sys::{self, Errno};
use crate::uapi::{ENOENT, O_NOFOLLOW, O_PATH};
use crate::wire::{Blob, FileType, Str};

/// Creates a file in the sandbox's `/dev`, binds it read-only over `path`, and unlinks it. The unlink comes last
/// because the kernel cannot bind a file without a name.
pub fn mount_file_over(init: &Init, path: Str<'static>, content: Blob<'static>) -> Done {
    let dev = init.dev();
    let fd = sys::openat(dev, c".file", sys::O_NEW, 0o644).at(0)?;
    write_all(fd, content.0).at(1)?;
    sys::close(fd);
    let tree = sys::open_tree(dev, c".file", false).at(2)?;
    sys::mount_setattr(tree, MASK_ATTRS, 0, false).at(3)?;
    let at = match open_mount_point(init, path, FileType::File, sys::IN_ROOT) {
        // ENOENT: a dangling symbolic link, as resolv.conf often is. The file is mounted over the link itself.
        Err(ENOENT) => sys::openat2(init.root, path, O_PATH | O_NOFOLLOW, sys::IN_ROOT),
        other => other,
    };
    attach(tree, at.at(4)?).at(5)?;
    sys::unlinkat(dev, c".file").at(6)
}

/// Creates a file with mode, owner and content. Fails if the name exists.
pub fn write_new_file(
    init: &Init,
    path: Str<'static>,
    mode: u32,
    (uid, gid): (u32, u32),
    content: Blob<'static>,
) -> Done {
    let (base, path) = split_at_anchor(init, path);
    let (parent, name) = open_parent(base, path).at(0)?;
    let made = sys::openat(parent, name, sys::O_NEW, mode);
    close_parent(base, parent);
    let fd = made.at(0)?;
    write_all(fd, content.0).at(1)?;
    let given = sys::fchown(fd, uid, gid).at(2);
    sys::close(fd);
    given
}

/// Writes all of `bytes`.
fn write_all(fd: i32, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let written = sys::write_some(fd, bytes)?;
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}
