//! The host's side of a population: opens sources, and decides which directories are left empty and which entry of the
//! map provides each path of the root.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::openat;
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::sys::statfs::{self, FsType, fstatfs};

use super::ChrootEnv;
use super::dest;
use super::error::{CallError, Side, failed};
use crate::rootfs::directory::{DIR, DIR_NOFOLLOW};
use crate::rootfs::source::HeldSources;
use crate::sys::fs::{Batch, DirentKind, Dirents};
use crate::{Error, Result};

pub(super) const AVOIDED: &str = "is the root itself, or is excluded by chroot_skip";
pub(super) const KERNEL_FS: &str = "is on a file system of the kernel (proc, sysfs, cgroup, ...)";
pub(super) const CHANGED: &str = "was removed or replaced while it was read";

/// What was found at a source of the map.
pub(super) enum Found<'h> {
    Dir(OwnedFd, FileStat),
    File(BorrowedFd<'h>, FileStat),
    /// It is skipped, for this reason.
    Skip(String, Option<FileStat>),
}

/// Opens a source of the map through the descriptor in `held`.
pub(super) fn open_source<'h>(
    source: &Path,
    held: &'h HeldSources,
    avoid: &[(u64, u64)],
) -> Result<Found<'h>> {
    let fail = |call: &str| Error::prepare::<Errno>(format!("{call}({source:?})"));
    let Some(found) = held.get(source) else { return Ok(Found::Skip(Errno::ENOENT.desc().into(), None)) };
    let st = fstat(found.fd()).map_err(fail("fstat"))?;
    let skip = |why: &str| Ok(Found::Skip(why.into(), Some(st)));
    match DirentKind::of_mode(st.st_mode) {
        DirentKind::File => return Ok(Found::File(found.fd(), st)),
        DirentKind::Dir if avoid.contains(&(st.st_dev, st.st_ino)) => return skip(AVOIDED),
        DirentKind::Dir => {}
        kind => return skip(kind.name()),
    }
    let dir = openat(found.fd(), c".", DIR, Mode::empty()).map_err(fail("openat"))?;
    if is_kernel_fs(dir.as_fd()) { skip(KERNEL_FS) } else { Ok(Found::Dir(dir, st)) }
}

/// An opened directory below a source.
pub(super) enum Opened {
    Dir(OwnedFd, FileStat),
    /// Its content is skipped, for this reason.
    Emptied(OwnedFd, FileStat, &'static str),
    /// The directory was removed, or replaced by something else.
    Gone,
}

/// Opens the directory `name` in `parent`, a directory of the host on the device `dev`.
pub(super) fn open_subdir(
    parent: BorrowedFd<'_>,
    dev: u64,
    name: &OsStr,
    avoid: &[(u64, u64)],
) -> Result<Opened, CallError> {
    let fd = match openat(parent, name, DIR_NOFOLLOW, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(Opened::Gone),
        Err(errno) => return Err(failed("openat", Side::Source)(errno)),
    };
    let st = fstat(&fd).map_err(failed("fstat", Side::Source))?;
    if avoid.contains(&(st.st_dev, st.st_ino)) {
        return Ok(Opened::Emptied(fd, st, AVOIDED));
    }
    if st.st_dev != dev && is_kernel_fs(fd.as_fd()) {
        return Ok(Opened::Emptied(fd, st, KERNEL_FS));
    }
    Ok(Opened::Dir(fd, st))
}

/// Whether a directory is on a file system whose files the kernel generates. Reading some of them never ends, or
/// blocks for ever.
fn is_kernel_fs(dir: BorrowedFd<'_>) -> bool {
    const KERNEL: [FsType; 11] = [
        statfs::PROC_SUPER_MAGIC,
        statfs::SYSFS_MAGIC,
        statfs::CGROUP_SUPER_MAGIC,
        statfs::CGROUP2_SUPER_MAGIC,
        statfs::DEBUGFS_MAGIC,
        statfs::TRACEFS_MAGIC,
        statfs::SECURITYFS_MAGIC,
        statfs::SELINUX_MAGIC,
        statfs::BPF_FS_MAGIC,
        statfs::DEVPTS_SUPER_MAGIC,
        statfs::NSFS_MAGIC,
    ];
    fstatfs(dir).is_ok_and(|fs| KERNEL.contains(&fs.filesystem_type()))
}

/// One entry of the map: a source and its destination.
pub(super) struct Part<'m> {
    pub(super) source: &'m Path,
    /// Its destination, relative to the root.
    pub(super) to: PathBuf,
    pub(super) others: Others,
}

/// Destinations of other entries below this one. The keys are the directories on the way to these destinations,
/// relative to `to`. The values are the names in that directory that are such a destination, if any. With the
/// destinations `/usr` and `/usr/share/doc`, the map of `/usr` has the keys `""` (no names) and `share` (`doc`). Almost
/// always empty.
#[derive(Default)]
pub(super) struct Others(BTreeMap<PathBuf, BTreeSet<OsString>>);

impl Others {
    /// The names in the directory `at` that belong to other entries. `None` if no other entry is below `at`.
    pub(super) fn at(&self, at: &Path) -> Option<&BTreeSet<OsString>> {
        if self.0.is_empty() { None } else { self.0.get(at) }
    }

    fn insert(&mut self, path: &Path) {
        let mut name = path.file_name();
        for dir in path.ancestors().skip(1) {
            self.0.entry(dir.into()).or_default().extend(name.take().map(OsString::from));
        }
    }
}

/// Returns the entries of the map, outer destinations before inner ones. Calls `skipped` for each source that is
/// skipped. At the destination of a skipped entry, the root shows what the entry above has there.
pub(super) fn parts<'m>(
    map: &'m ChrootEnv,
    held: &HeldSources,
    avoid: &[(u64, u64)],
    mut skipped: impl FnMut(&Path, String, Option<FileStat>),
) -> Result<Vec<Part<'m>>> {
    let mut parts = Vec::with_capacity(map.len());
    for (source, to) in map {
        match open_source(source, held, avoid)? {
            Found::Skip(why, st) => skipped(source, why, st),
            Found::Dir(..) | Found::File(..) => {
                parts.push(Part { source, to: dest::relative(to), others: Others::default() });
            }
        }
    }
    parts.sort_by(|a, b| a.to.cmp(&b.to));
    let all: Vec<PathBuf> = parts.iter().map(|part| part.to.clone()).collect();
    for (i, part) in parts.iter_mut().enumerate() {
        // Paths are sorted by component, so the paths below one follow it directly.
        for below in all.iter().skip(i.saturating_add(1)) {
            match below.strip_prefix(&part.to) {
                Ok(below) => part.others.insert(below),
                Err(_) => break,
            }
        }
    }
    Ok(parts)
}

/// The next entries of a directory of the host. `None` at its end, or if it was removed in the meantime.
pub(super) fn entries<'a>(
    dirents: &'a mut Dirents,
    dir: BorrowedFd<'_>,
) -> Result<Option<Batch<'a>>, CallError> {
    match dirents.read(dir) {
        Err(Errno::ENOENT) => Ok(None),
        answer => answer.map_err(failed("getdents64", Side::Source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_entry_lists_the_names_that_belong_to_other_entries() {
        let map = ChrootEnv::from([
            ("/".into(), "/a".into()),
            ("/dev".into(), "/a/b/c".into()),
            ("/etc".into(), "a/b/".into()),
            ("/tmp".into(), "/a-b".into()),
            ("/nowhere/at/all".into(), "/a/absent".into()),
        ]);
        let mut out = Vec::new();
        let held = crate::rootfs::source::hold("chroot_env", map.keys()).unwrap();
        let parts = parts(&map, &held, &[], |source, _, _| out.push(source.to_owned())).unwrap();
        assert_eq!(out, [Path::new("/nowhere/at/all")]);
        let to: Vec<_> = parts.iter().map(|p| p.to.to_str().unwrap()).collect();
        assert_eq!(to, ["a", "a/b", "a/b/c", "a-b"]);
        let names = |part: usize, at: &str| {
            parts[part].others.at(Path::new(at)).map(|set| set.iter().cloned().collect::<Vec<_>>())
        };
        assert_eq!(names(0, ""), Some(vec!["b".into()]));
        assert_eq!(names(0, "b"), Some(vec!["c".into()]));
        assert_eq!(names(0, "x"), None);
        assert_eq!(names(1, ""), Some(vec!["c".into()]));
        assert!(parts[2].others.0.is_empty() && parts[3].others.0.is_empty());
    }
}
