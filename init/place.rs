//! Where a path of the sandbox is: always by descriptor, below the root or below what was mounted in it, and
//! never out of there, whatever links say and whoever moves directories meanwhile.

use crate::State;
use crate::sys::{self, Errno, Z};
use crate::wire::{FileType, Str};

/// Where the kernel's own file systems go and what nobody else may see, in the order of `State::anchors`.
pub const ANCHORS: [&[u8]; 4] = [b"/dev", b"/proc", b"/sys", b"/secrets"];

/// The descriptor from which a path of the sandbox is resolved, and the path from there.
pub fn place(state: &State, path: Str<'static>) -> (i32, Str<'static>) {
    for (front, fd) in ANCHORS.iter().zip(state.anchors).filter(|(_, fd)| *fd >= 0) {
        match path.bytes().strip_prefix(*front) {
            // A literal with its NUL behind it, as decoded strings have theirs.
            Some([]) => return (fd, Str::new(&b"/\0"[..1]).unwrap_or_default()),
            Some(rest @ [b'/', ..]) => return (fd, Str::new(rest).unwrap_or_default()),
            _ => {}
        }
    }
    (state.root, path)
}

pub fn exists_is_fine(made: Result<(), Errno>) -> Result<(), Errno> {
    match made {
        Err(sys::EEXIST) => Ok(()),
        other => other,
    }
}

/// A path of the sandbox that may be absent.
pub fn present(state: &State, path: Str<'static>) -> Result<Option<i32>, Errno> {
    let (base, path) = place(state, path);
    match sys::openat2(base, path, sys::O_PATH, sys::IN_ROOT) {
        Ok(fd) => Ok(Some(fd)),
        Err(sys::ENOENT | sys::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// A path of the sandbox that may be absent or a link, which is none.
pub fn own(state: &State, path: Str<'static>) -> Result<Option<i32>, Errno> {
    let (base, path) = place(state, path);
    let (parent, name) = parent(base, path)?;
    let found = sys::openat2(parent, name, sys::O_PATH, sys::NO_LINKS);
    drop_parent(base, parent);
    match found {
        Ok(fd) => Ok(Some(fd)),
        Err(sys::ENOENT | sys::ELOOP) => Ok(None),
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
            _ => return Err(36 /* ENAMETOOLONG */),
        }
        Ok(Prefix(buffer))
    }
    fn z(&self) -> Z {
        core::ffi::CStr::from_bytes_until_nul(&self.0).unwrap_or(c"/").into()
    }
}

/// The directory that holds the last component of `path`, made with its parents when it is absent,
/// and that component. Resolution never leaves the root.
pub fn parent(root: i32, path: Str<'static>) -> Result<(i32, Z), Errno> {
    let bytes = path.bytes();
    let Some(slash) = bytes.iter().rposition(|b| *b == b'/') else { return Ok((root, path.into())) };
    let name = Z::from(path).skip(slash + 1);
    if slash == 0 {
        return Ok((root, name));
    }
    let front = Prefix::of(&bytes[..slash.max(1)])?;
    match sys::openat2(root, front.z(), sys::O_PATH | sys::O_DIRECTORY, sys::IN_ROOT) {
        Ok(fd) => Ok((fd, name)),
        Err(sys::ENOENT) => Ok((make_dirs(root, &bytes[..slash])?, name)),
        Err(errno) => Err(errno),
    }
}

/// mkdir -p in the root, each component by the descriptor of the one before it.
fn make_dirs(root: i32, path: &[u8]) -> Result<i32, Errno> {
    let mut dir = sys::openat2(root, c"/", sys::O_PATH | sys::O_DIRECTORY, sys::IN_ROOT)?;
    let mut end = 0;
    while end < path.len() {
        let start = end + path[end..].iter().take_while(|b| **b == b'/').count();
        end = start + path[start..].iter().take_while(|b| **b != b'/').count();
        if start == end {
            break;
        }
        let front = Prefix::of(&path[..end])?;
        let next = match sys::openat2(root, front.z(), sys::O_PATH | sys::O_DIRECTORY, sys::IN_ROOT) {
            Err(sys::ENOENT) => {
                let name = Prefix::of(&path[start..end])?;
                exists_is_fine(sys::mkdirat(dir, name.z(), 0o755))?;
                sys::openat2(dir, name.z(), sys::O_PATH | sys::O_DIRECTORY, sys::NO_LINKS)
            }
            other => other,
        };
        sys::close(dir);
        dir = next?;
    }
    Ok(dir)
}

pub fn drop_parent(base: i32, parent: i32) {
    if parent != base {
        sys::close(parent);
    }
}

/// Opens what to mount on, making an empty directory or file when it is absent.
pub fn mount_point(state: &State, path: Str<'static>, file_type: FileType, resolve: u64) -> Result<i32, Errno> {
    // Only what is the enclosure's own goes where no link is followed.
    let (base, path) = if resolve == sys::NO_LINKS { place(state, path) } else { (state.root, path) };
    match sys::openat2(base, path, sys::O_PATH, resolve) {
        Err(sys::ENOENT) => {}
        other => return other,
    }
    let (parent, name) = parent(base, path)?;
    let made = match file_type {
        FileType::Dir => sys::mkdirat(parent, name, 0o755),
        FileType::File => sys::openat(parent, name, sys::O_NEW, 0o644).map(sys::close),
    };
    drop_parent(base, parent);
    exists_is_fine(made)?;
    sys::openat2(base, path, sys::O_PATH, resolve)
}
