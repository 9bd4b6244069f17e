//! A call that the kernel, or a limit of the caller's, refused, until the paths are known that it was about.

use std::io;
use std::path::Path;

use nix::errno::Errno;

use super::dest::shown;
use crate::Error;

/// What was refused, and on which side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused {
    pub(super) call: &'static str,
    pub(super) on: Side,
    pub(super) cause: Cause,
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
    /// `max_entries`.
    Entries(u64),
    /// `max_bytes`.
    Bytes(u64),
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
            Cause::Entries(max) => quota(format!("more than {max} entries: max_entries")),
            Cause::Bytes(max) => quota(format!("more than {max} bytes: max_bytes")),
        }
    }
}

/// For `map_err`.
pub(super) fn refused<C: Into<Cause>>(call: &'static str, on: Side) -> impl Fn(C) -> Refused {
    move |cause| Refused { call, on, cause: cause.into() }
}

impl Refused {
    /// The error, once it is known from where to where it was.
    pub(super) fn about(self, source: &Path, to: &Path) -> Error {
        let Refused { call, on, cause } = self;
        Error::prepare(match on {
            Side::Source => format!("{call}({source:?})"),
            Side::Dest => format!("{call}({})", shown(to)),
            Side::Both => format!("{call}({source:?}, {})", shown(to)),
        })(cause)
    }
}
