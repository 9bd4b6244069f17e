//! Where a path of the sandbox is: always by descriptor, below the root or below what was mounted in it, and
//! never out of there, whatever links say and whoever moves directories meanwhile.

use crate::state::Init;
use crate::sys::{self, Errno, Z};
use crate::uapi::{EEXIST, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, O_DIRECTORY, O_PATH};
use crate::wire::{FileType, Str};

/// Where the kernel's own file systems go and what nobody else may see, in the order of `Init::anchors`.
pub const ANCHORS: [&[u8]; 4] = [b"/dev", b"/proc", b"/sys", b"/secrets"];

/// The descriptor from which a path of the sandbox is resolved, and the path from there.
pub fn split_at_anchor(init: &Init, path: Str<'static>) -> (i32, Str<'static>) {
    for (front, fd) in ANCHORS.iter().zip(init.anchors).filter(|(_, fd)| *fd >= 0) {
        match path.bytes().strip_prefix(*front) {
            // A literal with its NUL behind it, as decoded strings have theirs.
            Some([]) => return (fd, Str::new(&b"/\0"[..1]).unwrap_or_default()),
            Some(rest @ [b'/', ..]) => return (fd, Str::new(rest).unwrap_or_default()),
            _ => {}
        }
    }
    (init.root, path)
}

/// Success where the name exists already.
pub fn allow_existing(made: Result<(), Errno>) -> Result<(), Errno> {
    match made {
        Err(EEXIST) => Ok(()),
        other => other,
    }
}

/// Opens a path of the sandbox, which may be absent.
pub fn open_if_present(init: &Init, path: Str<'static>) -> Result<Option<i32>, Errno> {
    let (base, path) = split_at_anchor(init, path);
    match sys::openat2(base, path, O_PATH, sys::IN_ROOT) {
        Ok(fd) => Ok(Some(fd)),
        Err(ENOENT | ENOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Opens a path of the sandbox. None where it is absent or a symbolic link.
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

/// A copy of the front of a path, for the calls that want it by itself.
struct Prefix([u8; 4096]);

impl Prefix {
    fn of(bytes: &[u8]) -> Result<Prefix, Errno> {
        let mut buffer = [0u8; 4096];
        match buffer.get_mut(..bytes.len()) {
            // One byte is left for the NUL.
            Some(front) if bytes.len() < 4095 => front.copy_from_slice(bytes),
            _ => return Err(ENAMETOOLONG),
        }
        Ok(Prefix(buffer))
    }
    fn z(&self) -> Z {
        core::ffi::CStr::from_bytes_until_nul(&self.0).unwrap_or(c"/").into()
    }
}

/// Opens the directory that holds the last component of `path`, made with its parents when it is absent.
/// Gives it and that component. Resolution never leaves the root.
pub fn open_parent(root: i32, path: Str<'static>) -> Result<(i32, Z), Errno> {
    let bytes = path.bytes();
    let Some(slash) = bytes.iter().rposition(|b| *b == b'/') else { return Ok((root, path.into())) };
    let name = Z::from(path).skip(slash.saturating_add(1));
    let dir = bytes.get(..slash).unwrap_or_default();
    if dir.is_empty() {
        return Ok((root, name));
    }
    match sys::openat2(root, Prefix::of(dir)?.z(), O_PATH | O_DIRECTORY, sys::IN_ROOT) {
        Ok(fd) => Ok((fd, name)),
        Err(ENOENT) => Ok((make_dirs(root, dir)?, name)),
        Err(errno) => Err(errno),
    }
}

/// mkdir -p in the root, each component by the descriptor of the one before it.
fn make_dirs(root: i32, path: &[u8]) -> Result<i32, Errno> {
    let mut dir = sys::openat2(root, c"/", O_PATH | O_DIRECTORY, sys::IN_ROOT)?;
    // A component ends where a slash follows, or nothing.
    for end in (1..=path.len()).filter(|end| path.get(*end).is_none_or(|b| *b == b'/')) {
        let front = path.get(..end).unwrap_or_default();
        let name = front.rsplit(|b| *b == b'/').next().unwrap_or_default();
        if name.is_empty() {
            continue;
        }
        let next = match sys::openat2(root, Prefix::of(front)?.z(), O_PATH | O_DIRECTORY, sys::IN_ROOT) {
            Err(ENOENT) => {
                let name = Prefix::of(name)?;
                allow_existing(sys::mkdirat(dir, name.z(), 0o755))?;
                sys::openat2(dir, name.z(), O_PATH | O_DIRECTORY, sys::IN_ROOT_NO_LINKS)
            }
            other => other,
        };
        sys::close(dir);
        dir = next?;
    }
    Ok(dir)
}

/// Closes what [`open_parent`] gave, unless that is the descriptor that it was given.
pub fn close_parent(base: i32, parent: i32) {
    if parent != base {
        sys::close(parent);
    }
}

/// Opens what to mount on, making an empty directory or file when it is absent.
pub fn open_mount_point(
    init: &Init,
    path: Str<'static>,
    file_type: FileType,
    resolve: u64,
) -> Result<i32, Errno> {
    // Only the kernel's own file systems are mounted without following a link, and those go to the anchors.
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
