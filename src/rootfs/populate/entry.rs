//! The entries of a map, one after the other, those with the shorter destination first.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::FileStat;

use super::copy::Copier;
use super::file::{self, Origin, Target};
use super::fingerprint::Trail;
use super::host::{self, Found, Part};
use super::late::Late;
use super::refused::{Refused, Side, refused};
use super::walk::{self, Settings, count, meter};
use super::{ChrootEnv, Method, Options, Populated, Source};
use crate::Result;
use crate::rootfs::source::HeldSources;

/// Brings all sources of the map into the root.
pub(super) fn all(
    root: BorrowedFd<'_>,
    map: &ChrootEnv,
    held: &HeldSources,
    options: &Options<'_>,
) -> Result<Populated> {
    let by = Settings::new(root, options)?;
    let mut done = Populated::begin(&by);
    let mut late = Late::default();
    let parts = host::parts(map, held, &by.avoid, |source, why, st| {
        if let (true, Some(st)) = (by.fingerprint, st) {
            done.mix(Trail::of(source).ends_with(&st));
        }
        done.skip(source.into(), why);
    })?;
    for part in &parts {
        let mut one = Populated::begin(&by);
        if bring(&by, part, held, &mut late, &mut one)? {
            let method = used(by.method, &one);
            done.sources.push(Source {
                path: part.source.into(),
                target: Path::new("/").join(&part.to),
                method,
            });
        }
        done.merge(one);
    }
    late.finish(&by, &mut done)?;
    by.meter.tell();
    Ok(done)
}

/// Brings one of them; `false` if it is left out after all.
fn bring(
    by: &Settings<'_>,
    part: &Part<'_>,
    held: &HeldSources,
    late: &mut Late,
    done: &mut Populated,
) -> Result<bool> {
    match host::look(part.source, held, &by.avoid)? {
        Found::Dir(dir, st) => walk::tree(by, part, (dir, st), late, done),
        Found::File(file, st) => single(by, part, (file, &st), late, done).map(|()| true),
        Found::Out(why, _) => {
            done.skip(part.source.into(), why);
            Ok(false)
        }
    }
}

/// A source that is a file.
fn single(
    by: &Settings<'_>,
    part: &Part<'_>,
    (file, st): (BorrowedFd<'_>, &FileStat),
    late: &mut Late,
    done: &mut Populated,
) -> Result<()> {
    let (source, to) = (part.source, part.to.as_path());
    let fail = |r: Refused| r.about(source, to);
    let Some(name) = to.file_name().and_then(|n| CString::new(n.as_bytes()).ok()) else {
        return Err(fail(refused("linkat", Side::Both)(Errno::EISDIR)));
    };
    if by.fingerprint {
        done.mix(Trail::of(source).ends_with(st));
    }
    let dir = late.parent(by, source, to, done)?;
    // The link of procfs leads to what is held, whatever its path has become.
    let held = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let from = Origin { dir: AT_FDCWD, name: held.as_path(), follow: true };
    let target = Target { dir: dir.as_fd(), name: &name, born: None };
    let size = u64::try_from(st.st_size).ok();
    let placed = file::place(by, from, target, size, &mut Copier::new(None)).map_err(fail)?;
    meter(&by.meter, placed).map_err(fail)?;
    count(done, placed, || source.into());
    Ok(())
}

/// The method that brought a source: the one that was asked for, if it did for any of its files.
fn used(asked: Method, one: &Populated) -> Method {
    match asked {
        Method::Link | Method::Reflink if one.linked > 0 => asked,
        Method::Link | Method::Reflink if one.copied > 0 && (asked == Method::Link || one.cloned == 0) => {
            Method::Copy
        }
        Method::Link if one.cloned > 0 => Method::Reflink,
        asked => asked,
    }
}
