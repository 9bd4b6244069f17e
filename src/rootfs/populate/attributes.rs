//! Extended attributes: which come along, and what becomes of those that are refused.
//!
//! Those of users (`user.*`) and the access control lists come along, file capabilities where the caller asked
//! for them. The others are a matter of the host: labels of its security module, and what only its root may
//! see (`trusted.*`).

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sys::stat::{fchmod, fstat};

use super::dress::{MARKED, UNFINISHED_FILE};
use super::refused::{Refused, Side, refused};
use crate::sys::fs::{Kind, fgetxattr, flistxattr, fsetxattr};

/// The longest value, and the longest list of names, that the kernel handles (`XATTR_SIZE_MAX`).
const LARGEST: usize = 64 * 1024;

const ACCESS_LIST: &CStr = c"system.posix_acl_access";

/// Whether all of them came along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attributes {
    Kept,
    Lost,
}

/// Where names and values are read to, once for many files.
pub(super) struct Buffers {
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Buffers {
    pub(super) fn new() -> Self {
        Buffers { names: vec![0; 1024], value: Vec::new() }
    }

    /// Gives `to`, which is unfinished, the attributes of `from`. Owner comes before, as a change of it takes
    /// the capabilities away; mode comes after, as an access control list changes it.
    pub(super) fn copy(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        capabilities: bool,
    ) -> Result<Attributes, Refused> {
        let Buffers { names, value } = self;
        let names = match list(from, names) {
            Ok(&[]) => return Ok(Attributes::Kept),
            Ok(names) => names,
            Err(errno) => return lost("flistxattr", Side::Source, errno),
        };
        let mut all = Attributes::Kept;
        for name in names.split_inclusive(|b| *b == 0).filter_map(|n| CStr::from_bytes_with_nul(n).ok()) {
            if wanted(name, capabilities) && one(name, from, to, value)? == Attributes::Lost {
                all = Attributes::Lost;
            }
        }
        Ok(all)
    }
}

fn wanted(name: &CStr, capabilities: bool) -> bool {
    let name = name.to_bytes();
    name.starts_with(b"user.")
        || name.starts_with(b"system.posix_acl_")
        || capabilities && name == b"security.capability"
}

fn list<'b>(from: BorrowedFd<'_>, names: &'b mut Vec<u8>) -> nix::Result<&'b [u8]> {
    let n = match flistxattr(from, names) {
        Err(Errno::ERANGE) if names.len() < LARGEST => {
            names.resize(LARGEST, 0);
            flistxattr(from, names)?
        }
        // No attributes on this file system.
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => 0,
        answer => answer?,
    };
    Ok(names.get(..n).unwrap_or_default())
}

fn one(
    name: &CStr,
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    value: &mut Vec<u8>,
) -> Result<Attributes, Refused> {
    value.resize(LARGEST, 0);
    let value = match fgetxattr(from, name, value) {
        Ok(n) => value.get(..n).unwrap_or_default(),
        // It went away, which is no loss.
        Err(Errno::ENODATA) => return Ok(Attributes::Kept),
        Err(errno) => return lost("fgetxattr", Side::Source, errno),
    };
    if name == ACCESS_LIST {
        // It replaces the lower nine bits of the mode, by which an unfinished directory is known.
        mark(to)?;
    }
    let answer = match fsetxattr(to, name, value) {
        // A umask may take the bit that this needs.
        Err(Errno::EACCES) => {
            mark(to)?;
            fsetxattr(to, name, value)
        }
        answer => answer,
    };
    answer.map_or_else(|errno| lost("fsetxattr", Side::Dest, errno), |()| Ok(Attributes::Kept))
}

/// Marks what is unfinished so that it stays known as that.
fn mark(to: BorrowedFd<'_>) -> Result<(), Refused> {
    let st = fstat(to).map_err(refused("fstat", Side::Dest))?;
    let mode = match Kind::of_mode(st.st_mode) {
        Kind::Dir => MARKED,
        // Known by its sticky bit alone.
        _ => UNFINISHED_FILE,
    };
    fchmod(to, mode).map_err(refused("fchmod", Side::Dest))
}

/// A refusal that means that the attribute cannot be had or kept here, or the error that it is.
fn lost(call: &'static str, on: Side, errno: Errno) -> Result<Attributes, Refused> {
    match errno {
        Errno::EOPNOTSUPP
        | Errno::EPERM
        | Errno::EACCES
        | Errno::EINVAL
        | Errno::EOVERFLOW
        | Errno::E2BIG
        | Errno::ERANGE
        | Errno::ENOSYS => Ok(Attributes::Lost),
        errno => Err(refused(call, on)(errno)),
    }
}
