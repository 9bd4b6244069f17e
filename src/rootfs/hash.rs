//! Hashes of paths and of file metadata.
//!
//! Names on disk contain these hashes, so they must not depend on the release of a library, as the hashers of the
//! standard library do.

use std::ffi::CStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::stat::FileStat;

use crate::step::wire::{FNV, fnv};

/// 64-bit FNV-1a.
#[derive(Clone, Copy)]
pub(super) struct Fnv(u64);

impl Fnv {
    pub(super) fn new() -> Fnv {
        Fnv(FNV)
    }

    pub(super) fn bytes(self, bytes: &[u8]) -> Fnv {
        Fnv(bytes.iter().fold(self.0, fnv))
    }

    pub(super) fn value(self) -> u64 {
        self.0
    }
}

/// Hash of the path of an entry below a source. [`entry`](PathHash::entry) adds the metadata of the entry.
#[derive(Clone, Copy)]
pub(super) struct PathHash(Fnv);

impl PathHash {
    pub(super) fn of_source(source: &Path) -> PathHash {
        PathHash(Fnv::new().bytes(source.as_os_str().as_bytes()).bytes(&[0]))
    }

    /// Appends the relative path `at`, which may be empty.
    pub(super) fn join(self, at: &Path) -> PathHash {
        if at.as_os_str().is_empty() { self } else { self.append(at.as_os_str().as_bytes()) }
    }

    /// Appends one name.
    pub(super) fn join_name(self, name: &CStr) -> PathHash {
        self.append(name.to_bytes())
    }

    /// Hash of the entry at the path: type and mode, owner, size, modification time and inode.
    pub(super) fn entry(self, st: &FileStat) -> u64 {
        let mut hash = self.0.bytes(&[0]);
        for ids in [st.st_mode, st.st_uid, st.st_gid] {
            hash = hash.bytes(&ids.to_ne_bytes());
        }
        for number in [st.st_size, st.st_mtime, st.st_mtime_nsec] {
            hash = hash.bytes(&number.to_ne_bytes());
        }
        avalanche(hash.bytes(&st.st_ino.to_ne_bytes()).value())
    }

    /// Hash of a directory that is left empty in the root. Its size and modification time do not count, because its
    /// content does not matter.
    pub(super) fn emptied_dir(self, st: &FileStat) -> u64 {
        let mut st = *st;
        (st.st_size, st.st_mtime, st.st_mtime_nsec) = (0, 0, 0);
        self.entry(&st)
    }

    fn append(self, name: &[u8]) -> PathHash {
        PathHash(self.0.bytes(b"/").bytes(name))
    }
}

/// Spreads each bit over all others (the finalizer of MurmurHash3), because these hashes are summed.
fn avalanche(mut h: u64) -> u64 {
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        h = (h ^ h >> 33).wrapping_mul(factor);
    }
    h ^ h >> 33
}
