//! The error of a call that the kernel refused, or of a limit that was exceeded.
//!
//! It becomes the crate's error where the paths are known.

use std::io;
use std::path::Path;

use nix::errno::Errno;

use crate::Error;

/// A refused call and the side whose path it was about.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallError {
    call: &'static str,
    on: Side,
    cause: Cause,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    Source,
    Dest,
    Both,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Cause {
    Errno(Errno),
    /// `max_entries` is exceeded.
    Entries(u64),
    /// `max_bytes` is exceeded.
    Bytes(u64),
    /// The caller has cancelled the population.
    Cancelled,
}

impl From<Errno> for Cause {
    fn from(errno: Errno) -> Self {
        Cause::Errno(errno)
    }
}

impl From<Cause> for io::Error {
    fn from(cause: Cause) -> Self {
        let quota = |what| io::Error::new(io::ErrorKind::QuotaExceeded, what);
        match cause {
            Cause::Errno(errno) => errno.into(),
            Cause::Entries(max) => quota(format!("more than {max} entries (max_entries)")),
            Cause::Cancelled => io::ErrorKind::Interrupted.into(),
            Cause::Bytes(max) => quota(format!("more than {max} bytes (max_bytes)")),
        }
    }
}

/// Makes the error of `call`, for `map_err`.
pub(super) fn failed<C: Into<Cause>>(call: &'static str, on: Side) -> impl Fn(C) -> CallError {
    move |cause| CallError { call, on, cause: cause.into() }
}

impl CallError {
    /// The crate's error, with the paths of the source and of the destination in the root.
    pub(super) fn about(self, source: &Path, to: &Path) -> Error {
        let CallError { call, on, cause } = self;
        if let Cause::Cancelled = cause {
            return Error::Cancelled;
        }
        Error::prepare(match on {
            Side::Source => format!("{call}({source:?})"),
            Side::Dest => format!("{call}({})", in_root(to)),
            Side::Both => format!("{call}({source:?}, {})", in_root(to)),
        })(cause)
    }
}

/// A path in the root as error messages show it.
pub(super) fn in_root(path: &Path) -> String {
    format!("ROOT {:?}", Path::new("/").join(path))
}
