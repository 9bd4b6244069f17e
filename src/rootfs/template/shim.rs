//! SHIM, to be removed: stands in for `populate::fingerprint` and `Populated::fingerprint` until they are there.
//!
//! It walks by path and knows less: no other file systems, no order of two sources for one file.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::fnv;
use crate::rootfs::ChrootEnv;
use crate::{Error, Result};

pub(super) fn fingerprint(map: &ChrootEnv, skip: &[(u64, u64)]) -> Result<u64> {
    let mut sum = 0_u64;
    for source in map.keys() {
        let add = walk(source, skip).map_err(Error::prepare(format!("fingerprint({source:?})")))?;
        sum = sum.wrapping_add(add);
    }
    Ok(sum)
}

fn walk(source: &Path, skip: &[(u64, u64)]) -> io::Result<u64> {
    let mut sum = 0_u64;
    let mut todo = vec![(source.to_owned(), true)];
    while let Some((path, follow)) = todo.pop() {
        let st = match if follow { fs::metadata(&path) } else { fs::symlink_metadata(&path) } {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            st => st?,
        };
        if skip.contains(&(st.dev(), st.ino())) {
            continue;
        }
        let numbers = [u64::from(st.mode()), st.size(), st.ino(), st.mtime().cast_unsigned()];
        let numbers = numbers.into_iter().chain([st.mtime_nsec().cast_unsigned()]);
        let bytes = path.as_os_str().as_bytes().iter().copied().chain(numbers.flat_map(u64::to_ne_bytes));
        // A directory's size is its file system's own affair.
        sum = sum.wrapping_add(fnv(bytes));
        if st.is_dir() {
            for entry in fs::read_dir(&path)? {
                todo.push((entry?.path(), false));
            }
        }
    }
    Ok(sum)
}
