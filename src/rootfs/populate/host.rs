//! The host's side: what a source is, what of it is left out, and which source has which part of the root.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::sys::statfs::{self, FsType, fstatfs};

use super::ChrootEnv;
use super::dest::{self, DIR};
use super::refused::{Refused, Side, refused};
use crate::rootfs::source::HeldSources;
use crate::sys::fs::{Batch, Dirents, Kind};
use crate::{Error, Result};

pub(super) const AVOIDED: &str = "is the root, or was to be left out";
pub(super) const KERNELS: &str = "is on a file system of the kernel's own";
pub(super) const CHANGED: &str = "went away while it was read";

/// What stands at a source of the map.
pub(super) enum Found<'h> {
    Dir(OwnedFd, FileStat),
    File(BorrowedFd<'h>, FileStat),
    /// It is left out, and why.
    Out(String, Option<FileStat>),
}

/// Looks at a source of the map, by the descriptor that is held for it.
pub(super) fn look<'h>(source: &Path, held: &'h HeldSources, avoid: &[(u64, u64)]) -> Result<Found<'h>> {
    let fail = |call: &str| Error::prepare::<Errno>(format!("{call}({source:?})"));
    let Some(found) = held.get(source) else { return Ok(Found::Out(Errno::ENOENT.desc().into(), None)) };
    let st = fstat(found.fd()).map_err(fail("fstat"))?;
    let out = |why: &str| Ok(Found::Out(why.into(), Some(st)));
    match Kind::of_mode(st.st_mode) {
        Kind::File => return Ok(Found::File(found.fd(), st)),
        Kind::Dir if avoid.contains(&(st.st_dev, st.st_ino)) => return out(AVOIDED),
        Kind::Dir => {}
        kind => return out(kind.name()),
    }
    let dir = openat(found.fd(), c".", DIR, Mode::empty()).map_err(fail("openat"))?;
    if kernels_own(dir.as_fd()) { out(KERNELS) } else { Ok(Found::Dir(dir, st)) }
}

/// An opened directory below a source.
pub(super) enum Opened {
    Dir(OwnedFd, FileStat),
    /// What is in it is left out, and why.
    Closed(OwnedFd, FileStat, &'static str),
    /// There is no such directory any more.
    Gone,
}

/// Opens the directory `name` of the host, in one of the device `dev`.
pub(super) fn enter(
    parent: BorrowedFd<'_>,
    dev: u64,
    name: &OsStr,
    avoid: &[(u64, u64)],
) -> Result<Opened, Refused> {
    let fd = match openat(parent, name, DIR | OFlag::O_NOFOLLOW, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(Opened::Gone),
        Err(errno) => return Err(refused("openat", Side::Source)(errno)),
    };
    let st = fstat(&fd).map_err(refused("fstat", Side::Source))?;
    if avoid.contains(&(st.st_dev, st.st_ino)) {
        return Ok(Opened::Closed(fd, st, AVOIDED));
    }
    if st.st_dev != dev && kernels_own(fd.as_fd()) {
        return Ok(Opened::Closed(fd, st, KERNELS));
    }
    Ok(Opened::Dir(fd, st))
}

/// Whether a directory is on a file system whose files are the kernel's answers: copied, some never end and
/// some wait for ever.
fn kernels_own(dir: BorrowedFd<'_>) -> bool {
    const OWN: [FsType; 11] = [
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
    fstatfs(dir).is_ok_and(|fs| OWN.contains(&fs.filesystem_type()))
}

/// A source and where it goes to.
pub(super) struct Part<'m> {
    pub(super) source: &'m Path,
    /// Relative, of plain names.
    pub(super) to: PathBuf,
    pub(super) others: Others,
}

/// What other entries of the map have below this one: the directories that lead there, from `to` on, and the
/// names in each that belong to another entry. Almost always empty.
#[derive(Default)]
pub(super) struct Others(BTreeMap<PathBuf, BTreeSet<OsString>>);

impl Others {
    /// The names that are another's in the directory `at`; `None` if nothing of another's is below it.
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

/// The entries of the map, parents before what is below them; `out` is told of those that are left out.
/// One that is left out has no part of the root: what another one would put there is put there.
pub(super) fn parts<'m>(
    map: &'m ChrootEnv,
    held: &HeldSources,
    avoid: &[(u64, u64)],
    mut out: impl FnMut(&Path, String, Option<FileStat>),
) -> Result<Vec<Part<'m>>> {
    let mut parts = Vec::with_capacity(map.len());
    for (source, to) in map {
        match look(source, held, avoid)? {
            Found::Out(why, st) => out(source, why, st),
            Found::Dir(..) | Found::File(..) => {
                parts.push(Part { source, to: dest::relative(to), others: Others::default() });
            }
        }
    }
    parts.sort_by(|a, b| a.to.cmp(&b.to));
    let all: Vec<PathBuf> = parts.iter().map(|part| part.to.clone()).collect();
    for (i, part) in parts.iter_mut().enumerate() {
        // Paths are ordered by their components, so what is below one follows it.
        for below in all.iter().skip(i.saturating_add(1)) {
            match below.strip_prefix(&part.to) {
                Ok(below) => part.others.insert(below),
                Err(_) => break,
            }
        }
    }
    Ok(parts)
}

/// The next entries of a directory of the host. One that was removed while it was read has no more.
pub(super) fn entries<'a>(
    dirents: &'a mut Dirents,
    dir: BorrowedFd<'_>,
) -> Result<Option<Batch<'a>>, Refused> {
    match dirents.read(dir) {
        Err(Errno::ENOENT) => Ok(None),
        answer => answer.map_err(refused("getdents64", Side::Source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_entry_knows_what_is_anothers() {
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
