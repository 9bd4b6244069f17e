//! Resolves paths of the sandbox. Every path is resolved from a descriptor of the root or of a mount in it, and never
//! leaves that mount tree, whatever symbolic links say and whatever directories other processes move meanwhile.

use crate::state::Init;
use crate::sys::{self, Errno, Z};
use crate::uapi::{EEXIST, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, O_DIRECTORY, O_PATH};
use crate::wire::{FileType, Str};

/// Mount points of the kernel's file systems and of the secrets, in the order of `Init::anchors`.
pub const ANCHORS: [&[u8]; 4] = [b"/dev", b"/proc", b"/sys", b"/secrets"];

/// Returns the descriptor from which a path of the sandbox is resolved, and the path relative to it. The descriptor is
/// the anchor that contains the path, or else the root.
pub fn split_at_anchor(init: &Init, path: Str<'static>) -> (i32, Str<'static>) {
    for (front, fd) in ANCHORS.iter().zip(init.anchors).filter(|(_, fd)| *fd >= 0) {
        match path.bytes().strip_prefix(*front) {
            // The literal includes its NUL, as decoded strings do.
            Some([]) => return (fd, Str::new(&b"/\0"[..1]).unwrap_or_default()),
            Some(rest @ [b'/', ..]) => return (fd, Str::new(rest).unwrap_or_default()),
            _ => {}
        }
    }
    (init.root, path)
}

/// Treats EEXIST as success.
pub fn allow_existing(made: Result<(), Errno>) -> Result<(), Errno> {
    match made {
        Err(EEXIST) => Ok(()),
        other => other,
    }
}

/// Opens a path of the sandbox with O_PATH. `None` if it does not exist.
pub fn open_if_present(init: &Init, path: Str<'static>) -> Result<Option<i32>, Errno> {
    let (base, path) = split_at_anchor(init, path);
    match sys::openat2(base, path, O_PATH, sys::IN_ROOT) {
        Ok(fd) => Ok(Some(fd)),
        Err(ENOENT | ENOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Opens a path of the sandbox with O_PATH. `None` if it does not exist or is a symbolic link.
pub fn open_unless_link(init: &Init, path: Str<'static>) -> Result<Option<i32>, Errno> {
    let (base, path) = split_at_anchor(init, path);
    let (parent, name) = open_parent(base, path)?;
    let found = sys::openat2(parent, name, O_PATH, sys::IN_ROOT_NO_LINKS);
    close_parent(base, parent);
    match found {
        Ok(fd) => Ok(Some(fd)),
        Err(ENOENT | ELOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Copies a part of a path into the buffer, with a NUL at its end.
fn terminated(buffer: &mut [u8], part: &[u8]) -> Result<Z, Errno> {
    let end = part.len();
    match buffer.get_mut(..=end) {
        Some(copy) => {
            copy.get_mut(..end).unwrap_or_default().copy_from_slice(part);
            copy.get_mut(end..).unwrap_or_default().fill(0);
        }
        None => return Err(ENAMETOOLONG),
    }
    Ok(core::ffi::CStr::from_bytes_until_nul(buffer).unwrap_or(c"/").into())
}

/// Opens the directory at `front`, the leading components of a path. Not inlined: the buffer would be in the frame of each
/// function that may call this one, and the kernel clears each page of a frame.
#[inline(never)]
fn open_front(root: i32, front: &[u8]) -> Result<i32, Errno> {
    let mut buffer = [0u8; 4096];
    sys::openat2(root, terminated(&mut buffer, front)?, O_PATH | O_DIRECTORY, sys::IN_ROOT)
}

/// Opens the parent directory of `path`, and creates missing directories on the way. Returns the parent's descriptor
/// and the last component of `path`. Resolution never leaves the root.
pub fn open_parent(root: i32, path: Str<'static>) -> Result<(i32, Z), Errno> {
    let bytes = path.bytes();
    let Some(slash) = bytes.iter().rposition(|b| *b == b'/') else { return Ok((root, path.into())) };
    let name = Z::from(path).skip(slash.saturating_add(1));
    let dir = bytes.get(..slash).unwrap_or_default();
    if dir.is_empty() {
        return Ok((root, name));
    }
    match open_front(root, dir) {
        Ok(fd) => Ok((fd, name)),
        Err(ENOENT) => Ok((make_dirs(root, dir)?, name)),
        Err(errno) => Err(errno),
    }
}

/// Creates the directories of `path` below the root, as `mkdir -p`. Each component is created relative to the
/// descriptor of the component before it.
fn make_dirs(root: i32, path: &[u8]) -> Result<i32, Errno> {
    let mut dir = sys::openat2(root, c"/", O_PATH | O_DIRECTORY, sys::IN_ROOT)?;
    // A component ends before a slash or at the end of the path.
    for end in (1..=path.len()).filter(|end| path.get(*end).is_none_or(|b| *b == b'/')) {
        let front = path.get(..end).unwrap_or_default();
        let name = front.rsplit(|b| *b == b'/').next().unwrap_or_default();
        if name.is_empty() {
            continue;
        }
        let next = match open_front(root, front) {
            Err(ENOENT) => {
                let mut buffer = [0u8; 256];
                let name = terminated(&mut buffer, name)?;
                allow_existing(sys::mkdirat(dir, name, 0o755))?;
                sys::openat2(dir, name, O_PATH | O_DIRECTORY, sys::IN_ROOT_NO_LINKS)
            }
            other => other,
        };
        sys::close(dir);
        dir = next?;
    }
    Ok(dir)
}

/// Closes the descriptor that [`open_parent`] returned, unless it is `base` itself.
pub fn close_parent(base: i32, parent: i32) {
    if parent != base {
        sys::close(parent);
    }
}

/// Opens a mount point with O_PATH. Creates an empty directory or file if it does not exist.
pub fn open_mount_point(
    init: &Init,
    path: Str<'static>,
    file_type: FileType,
    resolve: u64,
) -> Result<i32, Errno> {
    // Only targets of new file systems (`Op::Mount`) are resolved without following links. They may lie below an
    // anchor, as /dev/pts does.
    let (base, path) =
        if resolve == sys::IN_ROOT_NO_LINKS { split_at_anchor(init, path) } else { (init.root, path) };
    match sys::openat2(base, path, O_PATH, resolve) {
        Err(ENOENT) => {}
        other => return other,
    }
    let (parent, name) = open_parent(base, path)?;
    let made = match file_type {
        FileType::Dir => sys::mkdirat(parent, name, 0o755),
        FileType::File => sys::openat(parent, name, sys::O_NEW, 0o644).map(sys::close),
    };
    close_parent(base, parent);
    allow_existing(made)?;
    sys::openat2(base, path, O_PATH, resolve)
}
