//! Copies extended attributes from a source to its copy.
//!
//! User attributes (`user.*`) and access control lists are copied, file capabilities only if the caller asked for
//! them. All others belong to the host: labels of its security module, and `trusted.*`, which only root may see.
//! Attributes that the kernel or the file system refuses are reported as lost.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sys::stat::{fchmod, fstat};

use super::error::{CallError, Side, failed};
use super::unfinished::{UNFINISHED_DIR_WITH_ACL, UNFINISHED_FILE};
use crate::sys::fs::{DirentKind, fgetxattr, flistxattr, fsetxattr};

/// Maximum length of a value and of a list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const LARGEST: usize = 64 * 1024;

const ACCESS_LIST: &CStr = c"system.posix_acl_access";

/// Whether all attributes that are to be copied were copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attributes {
    Kept,
    Lost,
}

/// Buffers for names and values, allocated once for many files.
pub(super) struct Buffers {
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Buffers {
    pub(super) fn new() -> Self {
        Buffers { names: vec![0; 1024], value: Vec::new() }
    }

    /// Copies the attributes of `from` to `to`, which is unfinished. The owner must be set before, as `chown`
    /// removes file capabilities, and the mode after, as an access control list changes it.
    pub(super) fn copy(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        capabilities: bool,
    ) -> Result<Attributes, CallError> {
        let Buffers { names, value } = self;
        let names = match list_names(from, names) {
            Ok(&[]) => return Ok(Attributes::Kept),
            Ok(names) => names,
            Err(errno) => return lost_or_error("flistxattr", Side::Source, errno),
        };
        let mut all = Attributes::Kept;
        for name in names.split_inclusive(|b| *b == 0).filter_map(|n| CStr::from_bytes_with_nul(n).ok()) {
            if is_copied(name, capabilities) && copy_one(name, from, to, value)? == Attributes::Lost {
                all = Attributes::Lost;
            }
        }
        Ok(all)
    }
}

fn is_copied(name: &CStr, capabilities: bool) -> bool {
    let name = name.to_bytes();
    name.starts_with(b"user.")
        || name.starts_with(b"system.posix_acl_")
        || capabilities && name == b"security.capability"
}

fn list_names<'b>(from: BorrowedFd<'_>, names: &'b mut Vec<u8>) -> nix::Result<&'b [u8]> {
    let n = match flistxattr(from, names) {
        Err(Errno::ERANGE) if names.len() < LARGEST => {
            names.resize(LARGEST, 0);
            flistxattr(from, names)?
        }
        // The file system has no attributes.
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => 0,
        answer => answer?,
    };
    Ok(names.get(..n).unwrap_or_default())
}

fn copy_one(
    name: &CStr,
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    value: &mut Vec<u8>,
) -> Result<Attributes, CallError> {
    value.resize(LARGEST, 0);
    let value = match fgetxattr(from, name, value) {
        Ok(n) => value.get(..n).unwrap_or_default(),
        // Removed in the meantime: nothing is lost.
        Err(Errno::ENODATA) => return Ok(Attributes::Kept),
        Err(errno) => return lost_or_error("fgetxattr", Side::Source, errno),
    };
    if name == ACCESS_LIST {
        // An access control list replaces the permission bits, which mark an unfinished directory.
        keep_marked(to)?;
    }
    let answer = match fsetxattr(to, name, value) {
        // The umask may have removed the write bit that this needs.
        Err(Errno::EACCES) => {
            keep_marked(to)?;
            fsetxattr(to, name, value)
        }
        answer => answer,
    };
    answer.map_or_else(|errno| lost_or_error("fsetxattr", Side::Dest, errno), |()| Ok(Attributes::Kept))
}

/// Sets a mode that marks `to` as unfinished even if an access control list changes the permission bits.
fn keep_marked(to: BorrowedFd<'_>) -> Result<(), CallError> {
    let st = fstat(to).map_err(failed("fstat", Side::Dest))?;
    let mode = match DirentKind::of_mode(st.st_mode) {
        DirentKind::Dir => UNFINISHED_DIR_WITH_ACL,
        // The sticky bit alone marks a file.
        _ => UNFINISHED_FILE,
    };
    fchmod(to, mode).map_err(failed("fchmod", Side::Dest))
}

/// Returns `Lost` for an errno that says that the attribute cannot be read or stored here, else the error.
fn lost_or_error(call: &'static str, on: Side, errno: Errno) -> Result<Attributes, CallError> {
    match errno {
        Errno::EOPNOTSUPP
        | Errno::EPERM
        | Errno::EACCES
        | Errno::EINVAL
        | Errno::EOVERFLOW
        | Errno::E2BIG
        | Errno::ERANGE
        | Errno::ENOSYS => Ok(Attributes::Lost),
        errno => Err(failed(call, on)(errno)),
    }
}
