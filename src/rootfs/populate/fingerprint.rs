//! A hash that shows whether the sources of a map have changed.
//!
//! The fingerprint is the sum of a hash of each entry that a walk meets, whether or not the entry is made in the root.
//! Each hash covers path, type, mode, owner, size, modification time and inode. Size and time of a directory that is
//! left empty do not count. Link counts and change times do not count, because a population changes them. A change that
//! leaves all of these as they were, of an extended attribute for example, is not noticed.

use std::path::Path;

use nix::sys::stat::FileStat;

use super::error::CallError;
use super::host::{self, Found};
use super::walk::{Met, NamedEntry, SourceTree, Visitor, WalkDir};
use super::{ChrootEnv, validate};
use crate::Result;
use crate::rootfs::hash::PathHash;
use crate::rootfs::{source, workers};
use crate::sys::fs::DirentKind;

/// Returns the [`Populated::fingerprint`](super::Populated::fingerprint) that a population would return now. Makes
/// nothing.
///
/// The root is not known here: if it is below a source, `skip` must name it.
///
/// # Errors
/// As `populate`, for the sources.
pub(crate) fn fingerprint(map: &ChrootEnv, skip: &[(u64, u64)]) -> Result<u64> {
    validate(map)?;
    let _permit = workers::wait_for_permit();
    let mut sum = 0_u64;
    let held = source::hold("chroot_env", map.keys())?;
    let parts = host::parts(map, &held, skip, |source, _, st| {
        if let Some(st) = st {
            sum = sum.wrapping_add(PathHash::of_source(source).entry(&st));
        }
    })?;
    for part in &parts {
        let more = match host::open_source(part.source, &held, skip)? {
            Found::Dir(top, _) => {
                let tree = SourceTree { part, top: &top, avoid: skip, sizes: false, fingerprint: true };
                tree.walk(&MakeNothing, ())?.0
            }
            Found::File(_, st) => PathHash::of_source(part.source).entry(&st),
            Found::Skip(..) => 0,
        };
        sum = sum.wrapping_add(more);
    }
    Ok(sum)
}

/// A visitor that walks all subdirectories and makes nothing.
struct MakeNothing;

impl Visitor for MakeNothing {
    type Counterpart = ();
    type Note = ();
    type Worker = ();

    fn worker(&self) {}

    fn open(&self, _: Option<&()>, _: &Met<'_, ()>, _: &mut ()) -> Result<Option<()>, CallError> {
        Ok(Some(()))
    }

    fn reopen(&self, _: &Path) -> Result<(), CallError> {
        Ok(())
    }

    fn entry(
        &self,
        _: &WalkDir<'_, ()>,
        entry: NamedEntry<'_>,
        _: &Path,
        _: &mut (),
    ) -> Result<Option<()>, CallError> {
        Ok((entry.kind == DirentKind::Dir).then_some(()))
    }

    fn vanished(&self, _: &Path, _: Option<(&(), &())>, _: &mut ()) {}

    fn batch_done(&self) {}

    fn leave(
        &self,
        _: &WalkDir<'_, ()>,
        _: (&Path, &FileStat),
        _: Option<&'static str>,
        _: &mut (),
    ) -> Result<(), CallError> {
        Ok(())
    }
}
