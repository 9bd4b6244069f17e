//! Creates mounts and attaches them.

use crate::call::{At, CallFailed, Done, NextCall};
use crate::paths::{ANCHORS, open_mount_point, open_unless_link};
use crate::state::Init;
use crate::sys::{self, Errno, Z};
use crate::uapi::{
    AT_FDCWD, CLONE_NEWNS, EBUSY, EINVAL, ELOOP, ENOENT, ESTALE, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, O_DIRECTORY, O_PATH,
};
use crate::wire::{FileType, List, Str};

/// Mount attributes of a mask: the mount that covers a path the task must not see.
pub const MASK_ATTRS: u64 = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
/// Mount attributes of the file system that overlays write to.
pub const UPPER_ATTRS: u64 = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;

/// Mounts the empty directory of which masks of directories are copies. The procfs is mounted over it.
pub fn mount_mask_source(init: &mut Init) -> Done {
    let mut next = NextCall::from(0);
    let tree = new_mount(&mut next, c"tmpfs", MASK_ATTRS, List::from_encoded(0, &[]))?;
    // The literal includes its NUL, as decoded strings do.
    let path = b"/proc\0".get(..5).and_then(Str::new).unwrap_or_default();
    let at = open_mount_point(init, path, FileType::Dir, sys::IN_ROOT_NO_LINKS).at(next.index())?;
    let attached = sys::move_mount(tree, at);
    sys::close(at);
    init.mask = tree;
    attached.at(next.index())
}

/// Enters a copy of the prepared mount namespace, and opens its root and the mounts in it that later steps refer to. No
/// task runs in the prepared namespace itself.
pub fn enter_prepared(init: &mut Init, fd: u32) -> Done {
    let prepared = init.take_fd(fd);
    sys::setns(prepared, CLONE_NEWNS).at(0)?;
    sys::close(prepared);
    sys::unshare(CLONE_NEWNS).at(1)?;
    let root = sys::openat(AT_FDCWD, c"/", O_PATH | O_DIRECTORY, 0).at(2)?;
    init.root = root;
    let open = |path: Z| sys::openat2(root, path, O_PATH | O_DIRECTORY, sys::IN_ROOT_NO_LINKS);
    let dev = open(c"/dev".into()).at(3)?;
    init.mask = open(c"/proc".into()).at(4)?;
    let sysfs = open(c"/sys".into()).at(5)?;
    init.anchors = [dev, -1, sysfs, -1];
    Ok(())
}

/// Creates a detached mount: fsopen, one fsconfig for each option, create, fsmount. An option with an empty value is a
/// flag.
pub fn new_mount(
    next: &mut NextCall,
    fs: impl Into<Z>,
    attrs: u64,
    options: List<'static, Str<'static>>,
) -> Result<i32, CallFailed> {
    let context = sys::fsopen(fs).at(next.index())?;
    let mut items = options.iter();
    while let (Some(key), Some(value)) = (items.next(), items.next()) {
        match value.bytes() {
            [] => sys::fsconfig_flag(context, key),
            _ => sys::fsconfig_set(context, key, value),
        }
        .at(next.index())?;
    }
    sys::fsconfig_create(context).at(next.index())?;
    let tree = sys::fsmount(context, attrs).at(next.index())?;
    sys::close(context);
    Ok(tree)
}

/// Attaches a detached mount at `at`, and closes both descriptors.
pub fn attach(tree: i32, at: i32) -> Result<(), Errno> {
    let attached = sys::move_mount(tree, at);
    sys::close(tree);
    sys::close(at);
    attached
}

/// Attaches a detached mount, as [`attach`]. If `target` is one of [`ANCHORS`], the mount's descriptor stays open in
/// `Init::anchors`.
pub fn attach_anchor(init: &mut Init, tree: i32, at: i32, target: Str<'static>) -> Result<(), Errno> {
    let index = ANCHORS.iter().position(|path| *path == target.bytes());
    let Some(fd) = index.and_then(|i| init.anchors.get_mut(i)) else { return attach(tree, at) };
    sys::close(core::mem::replace(fd, tree));
    let attached = sys::move_mount(tree, at);
    sys::close(at);
    attached
}

/// Clones the mount tree at a path of the host, and puts it in the place of the descriptor `fd` in the table. Fails
/// with ESTALE unless the path leads to the same object as `fd`: a directory on the way may have been replaced since
/// the caller opened it.
pub fn clone_held_tree(init: &mut Init, fd: u32, source: Str<'static>, recursive: bool) -> Done {
    let held = init.take_fd(fd);
    let again = sys::openat2(AT_FDCWD, source, O_PATH, sys::NO_LINKS).at(0)?;
    if !sys::same_object(held, again).at(1)? {
        return Err(ESTALE).at(1);
    }
    let tree = sys::open_tree(again, c"", recursive).at(2)?;
    sys::close(again);
    sys::close(held);
    // An index outside the table has no descriptor: `same_object` has failed with EBADF above.
    if let Some(slot) = init.fds.get_mut(fd as usize) {
        *slot = tree;
    }
    Ok(())
}

/// Binds a mount tree at a path of the sandbox. `own` says that source and target are the same path. If that path is
/// one of [`ANCHORS`], the mount becomes the anchor: the host's `/proc`, for example, is bound if no new procfs can be
/// mounted. A tree from another path is a volume and never an anchor.
pub fn bind(
    init: &mut Init,
    (tree, own): (i32, bool),
    target: Str<'static>,
    attrs: u64,
    propagation: u64,
    file_type: FileType,
) -> Done {
    sys::mount_setattr(tree, attrs, propagation, true).at(0)?;
    let at = open_mount_point(init, target, file_type, sys::IN_ROOT).at(1)?;
    let attached = if own { attach_anchor(init, tree, at, target) } else { attach(tree, at) };
    attached.at(2)
}

/// Binds a path on itself with more mount attributes.
///
/// If `must`, symbolic links are followed. A dangling link is refused with ENOENT. A link to the root is refused with
/// ELOOP: the task's `/` is the root's own mount, so a mount over it would have no effect.
///
/// Otherwise an absent path or a symbolic link is skipped. A link may lead to `/proc`, for example, and a second mount
/// of `/proc` would show what is masked in the first.
pub fn bind_on_itself(init: &Init, path: Str<'static>, attrs: u64, must: bool) -> Done {
    let at = if must {
        let at = sys::openat2(init.root, path, O_PATH, sys::IN_ROOT).at(0)?;
        if sys::same_place(at, init.root).at(0)? {
            return Err(ELOOP).at(0);
        }
        at
    } else {
        let Some(at) = open_unless_link(init, path).at(0)? else { return Ok(()) };
        at
    };
    let tree = sys::open_tree(at, c"", true).at(1)?;
    sys::mount_setattr(tree, attrs, 0, true).at(2)?;
    attach(tree, at).at(3)
}

/// Makes the sandbox's root `/` (`pivot_root(2)`), and detaches the host's root.
pub fn pivot_into_root(init: &Init) -> Done {
    sys::fchdir(init.root).at(0)?;
    sys::pivot_root().at(1)?;
    detach_over_root(init)?;
    sys::chdir(c"/").at(4)?;
    close_roots(init);
    Ok(())
}

/// Changes to the root of the prepared mounts, which is `/` already.
pub fn enter_root(init: &Init) -> Done {
    sys::chdir(c"/").at(0)?;
    close_roots(init);
    Ok(())
}

/// Makes the sandbox's root `/` by chroot(2). The host's root stays mounted below it.
pub fn move_into_root(init: &Init) -> Done {
    sys::fchdir(init.root).at(0)?;
    // Otherwise the host's own proc and sysfs would stay mounted below the root. EINVAL, ENOENT: nothing is mounted
    // there, or the caller's user namespace has locked the mount.
    for (index, path) in [(1, c"/proc"), (2, c"/sys")] {
        match sys::unmount(path) {
            Err(EINVAL | ENOENT) => {}
            done => done.at(index)?,
        }
    }
    sys::chroot(c".").at(3)?;
    sys::chdir(c"/").at(4)?;
    close_roots(init);
    Ok(())
}

/// Detaches every mount that covers the sandbox's root after `pivot_root(2)`: the host's root, and mounts over it that
/// init made or that the caller's namespace had. Each umount2(2) detaches the topmost one. `/..` leads to the topmost
/// mount, so when it leads to the sandbox's root, none remains.
fn detach_over_root(init: &Init) -> Done {
    let root = sys::mount_id(init.root, c"").at(3)?;
    for _ in 0..MOST_OVER_ROOT {
        sys::unmount(c".").at(2)?;
        if sys::mount_id(AT_FDCWD, c"/..").at(3)? == root {
            return Ok(());
        }
    }
    Err(EBUSY).at(3)
}

/// Maximum number of mounts over the root that are detached. With more, the step fails with EBUSY.
const MOST_OVER_ROOT: u32 = 64;

/// Closes the descriptors of the root, of the upper file system and of the anchors.
fn close_roots(init: &Init) {
    sys::close(init.root);
    sys::close(init.upper);
    sys::close(init.mask);
    for fd in init.anchors {
        sys::close(fd);
    }
}
