//! The files of the book: what a directory holds, its record, and a set of processors.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::super::kill::{is_gone, open_dir};
use super::super::layout::{Write, call};
use super::super::set::CpuSet;
use super::super::write::{obey, open_write};
use super::Reserved;
use crate::error::{Error, Result};
use crate::sys::fs::{fgetxattr, fsetxattr};

pub(super) const RECORD: &std::ffi::CStr = c"user.cofferdam.cores";

/// How often a write that the kernel says is busy is tried.
const TRIES: u32 = 10;

/// `Ok(None)` for what is not there.
pub(super) fn there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(e) if is_gone(&e) => Ok(None),
        found => found.map(Some),
    }
}

/// The directories in `dir`; `None` if it is not there.
pub(super) fn children(dir: &Path) -> Result<Option<Vec<PathBuf>>> {
    let list = || -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                found.push(entry.path());
            }
        }
        Ok(found)
    };
    there(list()).map_err(Error::prepare(call::open_dir(dir)))
}

/// What the record of a directory says; `None` without one, or without the directory.
pub(super) fn record(leaf: &Path) -> Result<Option<Reserved>> {
    let read = || -> io::Result<Vec<u8>> {
        let dir = open_dir(leaf)?;
        // Room for a set without two neighbours, of as many processors as a kernel can be built for.
        let mut bytes = vec![0; 64 * 1024];
        let length = fgetxattr(dir.as_fd(), RECORD, &mut bytes)?;
        bytes.truncate(length);
        Ok(bytes)
    };
    match read() {
        Err(e) if is_gone(&e) || e.raw_os_error() == Some(libc::ENODATA) => Ok(None),
        Err(e) => Err(Error::prepare::<io::Error>(call::get_record(leaf))(e)),
        Ok(bytes) => Ok(Some(Reserved::parse(&String::from_utf8_lossy(&bytes)))),
    }
}

pub(super) fn set_record(leaf: &Path, reserved: &Reserved) -> Result<()> {
    let text = reserved.record();
    open_dir(leaf)
        .and_then(|dir| Ok(fsetxattr(dir.as_fd(), RECORD, text.as_bytes())?))
        .map_err(Error::prepare(call::set_record(leaf, &text)))
}

impl Reserved {
    /// `2-3`, or `2-3 exclusive`.
    pub(in super::super) fn record(&self) -> String {
        format!("{}{}", self.cores, if self.exclusive { " exclusive" } else { "" })
    }

    fn parse(text: &str) -> Reserved {
        let (cores, word) = text.split_once(' ').unwrap_or((text, ""));
        Reserved { cores: CpuSet::parse_lenient(cores), exclusive: word == "exclusive" }
    }
}

/// The processors that a file lists; `None` if there is no such file.
pub(super) fn read_set(file: &Path) -> Result<Option<CpuSet>> {
    let text = there(fs::read_to_string(file)).map_err(Error::prepare(call::open_read(file)))?;
    Ok(text.map(|text| CpuSet::parse_lenient(&text)))
}

/// Writes a set to a file, if it is there and says something else.
pub(super) fn settle_set(file: &Path, set: &CpuSet) -> Result<()> {
    match read_set(file)? {
        Some(now) if now != *set => match write_set(file, set) {
            Err(Error::Prepare { source, .. }) if is_gone(&source) => Ok(()),
            done => done,
        },
        _ => Ok(()),
    }
}

/// Writes a set to a file. `EBUSY` is the answer while the kernel moves processes about.
pub(super) fn write_set(file: &Path, set: &CpuSet) -> Result<()> {
    use std::io::Write as _;
    let text = set.to_string();
    for left in (0..TRIES).rev() {
        let done = open_write(file)?.write_all(text.as_bytes());
        match done {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && left > 0 => {
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
            done => return done.map_err(Error::prepare(call::write(file, &text))),
        }
    }
    Ok(())
}

/// v1: gives a directory its parent's memory nodes, if it has none.
pub(super) fn inherit_mems(dir: &Path) -> Result<()> {
    obey(&Write::inherit(dir, "cpuset.mems"))
}

/// Makes a directory that may be there, and that nobody else may open.
pub(super) fn ensure_dir(dir: &Path) -> Result<()> {
    match make_dir(dir, 0o711) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done.map_err(Error::prepare(call::mkdir_private(dir))),
    }
}

pub(super) fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    Ok(nix::unistd::mkdir(dir, nix::sys::stat::Mode::from_bits_truncate(mode))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        for (text, cores, exclusive) in [
            ("2-3", "2-3", false),
            ("0,4-7 exclusive", "0,4-7", true),
            ("5 what", "5", false),
            ("", " ", false),
        ] {
            let found = Reserved::parse(text);
            assert_eq!((found.cores.to_string().as_str(), found.exclusive), (cores, exclusive), "{text:?}");
        }
        for exclusive in [false, true] {
            let given = Reserved { cores: CpuSet::parse("1,3-5").unwrap(), exclusive };
            assert_eq!(Reserved::parse(&given.record()), given);
        }
    }

    #[test]
    fn what_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let nothing = dir.path().join("nothing");
        assert_eq!(children(&nothing).unwrap(), None);
        assert_eq!(children(dir.path()).unwrap(), Some(vec![]));
        assert_eq!(record(&nothing).unwrap(), None);
        assert_eq!(read_set(&nothing).unwrap(), None);
        settle_set(&nothing, &CpuSet::parse("0").unwrap()).unwrap();
        assert!(!nothing.exists());
        let error = write_set(&nothing, &CpuSet::parse("0").unwrap()).unwrap_err();
        assert_eq!(error.to_string(), format!("openat(AT_FDCWD, {nothing:?}, O_WRONLY|O_CLOEXEC)"));
    }
}
