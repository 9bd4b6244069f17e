//! Descriptors of the caller that a spec names.

use std::os::fd::{OwnedFd, RawFd};

use crate::error::{Error, Result};
use crate::spec::{SandboxSpec, Stdio};
use crate::sys;

/// The descriptors of the caller that the spec names for standard input, output and error.
pub(crate) fn streams(streams: [(&str, &Stdio); 3]) -> [Option<RawFd>; 3] {
    streams.map(|(_, stdio)| match stdio {
        Stdio::Fd(fd) => Some(fd.number()),
        _ => None,
    })
}

/// Checks that the descriptors that the spec names are open now. Otherwise a descriptor that is opened later for the
/// sandbox, such as a directory of the host, could get that number, and the task would inherit it.
pub(crate) fn check_declared(spec: &SandboxSpec) -> Result<()> {
    check_streams(spec.streams())?;
    spec.fds.iter().try_for_each(|fd| check_open("fds", fd.from.number()))
}

/// As [`check_declared`], for standard streams.
pub(crate) fn check_streams(streams: [(&'static str, &Stdio); 3]) -> Result<()> {
    let of_caller = |((field, stdio), number): ((_, &Stdio), _)| Some((field, stdio.of_caller(number)?));
    streams.into_iter().zip(0..).filter_map(of_caller).try_for_each(|(field, fd)| check_open(field, fd))
}

/// Checks that a descriptor is open. A negative one is left to the compiler of the plan.
fn check_open(field: &'static str, fd: RawFd) -> Result<()> {
    match sys::dup_number(fd) {
        _ if fd < 0 => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::EBADF) => {
            Err(Error::spec(field, format!("{fd} is not an open file descriptor")))
        }
        opened => opened.map(drop).map_err(Error::prepare(format!("fcntl({fd}, F_DUPFD_CLOEXEC)"))),
    }
}

/// Duplicates a descriptor of the caller.
pub(super) fn duplicate(fd: RawFd) -> Result<OwnedFd> {
    sys::dup_number(fd).map_err(Error::prepare(format!("fcntl({fd}, F_DUPFD_CLOEXEC)")))
}
