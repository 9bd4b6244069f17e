//! The record of a reservation (an extended attribute), and the CPU lists in cpuset files.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use crate::cgroup::fs::{self, call, hold, is_gone, open_dir, read_existing};
use crate::cgroup::set::CpuSet;
use crate::error::{Error, Result};
use crate::step::Kernel;
use crate::sys::fs::{fgetxattr, fsetxattr};

const RECORD: &std::ffi::CStr = c"user.cofferdam.cores";

/// How many times a write is tried while the kernel migrates processes (`EBUSY`).
const TRIES: u32 = 10;

/// The CPUs that a task reserves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reserved {
    pub cores: CpuSet,
    pub exclusive: bool,
}

impl Reserved {
    /// The value of the extended attribute: `2-3`, or `2-3 exclusive`.
    pub fn text(&self) -> String {
        format!("{}{}", self.cores, if self.exclusive { " exclusive" } else { "" })
    }

    fn parse(text: &str) -> Reserved {
        let (cores, word) = text.split_once(' ').unwrap_or((text, ""));
        Reserved { cores: CpuSet::parse_lenient(cores), exclusive: word == "exclusive" }
    }
}

/// Reads the record of a cgroup. `None` if the cgroup has none or does not exist.
pub(super) fn get(leaf: &Path) -> Result<Option<Reserved>> {
    let read = || -> io::Result<Vec<u8>> {
        let dir = open_dir(leaf)?;
        // The longest list names every second CPU of 8192, the most that a kernel can be built for.
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

/// Writes the record of a cgroup.
pub(super) fn set(kernel: &Kernel, leaf: &Path, reserved: &Reserved) -> Result<()> {
    let text = reserved.text();
    let dir = hold(kernel, leaf)?;
    let write = || dir.map_or(Ok(()), |dir| fsetxattr(dir.as_fd(), RECORD, text.as_bytes()));
    kernel.call(|| call::set_record(leaf, &text), (), write)
}

/// Reads the CPU list in a file. `None` if the file does not exist. A recording [`Kernel`] returns `assumed`.
pub(super) fn read_set(kernel: &Kernel, file: &Path, assumed: Option<&str>) -> Result<Option<CpuSet>> {
    let text = read_existing(kernel, file, assumed.map(str::to_owned))?;
    Ok(text.map(|text| CpuSet::parse_lenient(&text)))
}

/// Writes a CPU list to a file, if the file exists and lists other CPUs. A plan prints the list as `text`.
pub(super) fn change_set(kernel: &Kernel, file: &Path, set: &CpuSet, text: &str) -> Result<()> {
    let now = read_set(kernel, file, Some(""))?;
    let differs = now.is_some_and(|now| now != *set);
    kernel.only_if("the file lists other CPUs", differs, || match write_set(kernel, file, set, text) {
        Err(Error::Prepare { source, .. }) if is_gone(&source) => Ok(()),
        done => done,
    })
}

/// Writes a CPU list to a file. A plan prints it as `text`.
pub(super) fn write_set(kernel: &Kernel, file: &Path, set: &CpuSet, text: &str) -> Result<()> {
    if kernel.records() {
        return fs::write(kernel, file, text);
    }
    for left in (0..TRIES).rev() {
        match fs::write(kernel, file, &set.to_string()) {
            Err(Error::Prepare { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) && left > 0 => {
                std::thread::sleep(Duration::from_micros(200));
            }
            done => return done,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_parsed_as_it_was_written() {
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
            assert_eq!(Reserved::parse(&given.text()), given);
        }
    }

    #[test]
    fn a_cgroup_that_does_not_exist_has_no_record() {
        let dir = tempfile::tempdir().unwrap();
        let nothing = dir.path().join("nothing");
        let kernel = Kernel::real();
        assert_eq!(get(&nothing).unwrap(), None);
        assert_eq!(read_set(&kernel, &nothing, None).unwrap(), None);
        change_set(&kernel, &nothing, &CpuSet::parse("0").unwrap(), "").unwrap();
        assert!(!nothing.exists());
        let error = write_set(&kernel, &nothing, &CpuSet::parse("0").unwrap(), "").unwrap_err();
        assert_eq!(error.to_string(), format!("openat(AT_FDCWD, {nothing:?}, O_WRONLY|O_CLOEXEC)"));
    }
}
