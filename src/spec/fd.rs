//! Descriptors of the caller that a task gets.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};

/// A descriptor of the caller, owned by the spec and all its clones.
///
/// From deserialised data it is a number, which must be open in the caller from when the spec is read until
/// [`spawn`](crate::Sandbox::spawn) returns: the caller then answers for what is open there. Only a number can be serialised.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// use cofferdam::{CallerFd, Stdio};
///
/// let log: Stdio = std::fs::File::open("/dev/null")?.into();
/// let mine = CallerFd::duplicate(std::io::stderr())?;
/// # let _ = (log, mine);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct CallerFd(Source);

#[derive(Clone, Debug)]
enum Source {
    Owned(Arc<OwnedFd>),
    Number(RawFd),
}

impl CallerFd {
    /// A duplicate of `fd` (`F_DUPFD_CLOEXEC`), for a descriptor that the caller only borrows.
    ///
    /// # Errors
    /// As `fcntl(2)`: `EMFILE`.
    pub fn duplicate(fd: impl AsFd) -> io::Result<CallerFd> {
        Ok(fd.as_fd().try_clone_to_owned()?.into())
    }

    /// Its number in the caller.
    pub(crate) fn number(&self) -> RawFd {
        match &self.0 {
            Source::Owned(fd) => fd.as_raw_fd(),
            Source::Number(number) => *number,
        }
    }
}

impl From<OwnedFd> for CallerFd {
    fn from(fd: OwnedFd) -> CallerFd {
        CallerFd(Source::Owned(Arc::new(fd)))
    }
}

impl From<File> for CallerFd {
    fn from(file: File) -> CallerFd {
        OwnedFd::from(file).into()
    }
}

impl PartialEq for CallerFd {
    fn eq(&self, other: &CallerFd) -> bool {
        self.number() == other.number()
    }
}

impl Eq for CallerFd {}

impl Serialize for CallerFd {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Source::Number(number) => s.serialize_i32(*number),
            Source::Owned(_) => Err(ser::Error::custom("an owned file descriptor cannot be serialised")),
        }
    }
}

impl<'de> Deserialize<'de> for CallerFd {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        RawFd::deserialize(d).map(|number| CallerFd(Source::Number(number)))
    }
}

/// Where one of the task's standard streams goes.
///
/// ```no_run
/// use cofferdam::{Sandbox, Stdio};
///
/// let log = std::fs::File::create("/var/log/task").map_err(|e| e.to_string())?;
/// let task = Sandbox::command("make").stdin(Stdio::Null).stdout(log).stderr(Stdio::Piped).spawn();
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stdio {
    /// The caller's stream of the same number. Of a regular file the task can also open the inode anew, through
    /// `/proc/self/fd`, for reading and writing, and change its mode and owner if it may: the report weakens
    /// `host_files`. A pipe gives nothing away.
    Inherit,
    /// `/dev/null`.
    #[default]
    Null,
    /// A pipe to the caller, in the [`Task`](crate::Task).
    Piped,
    /// A descriptor of the caller.
    Fd(CallerFd),
}

impl Stdio {
    /// The number of the caller's descriptor for the stream `own`, if it is one of the caller's.
    pub(crate) fn of_caller(&self, own: RawFd) -> Option<RawFd> {
        match self {
            Stdio::Inherit => Some(own),
            Stdio::Fd(fd) => Some(fd.number()),
            Stdio::Null | Stdio::Piped => None,
        }
    }
}

impl<T: Into<CallerFd>> From<T> for Stdio {
    fn from(fd: T) -> Stdio {
        Stdio::Fd(fd.into())
    }
}

/// A descriptor that the task gets beside its standard streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Fd {
    /// The caller's descriptor.
    pub from: CallerFd,
    /// Its number in the task, 3 to 1023.
    pub to: u32,
}

impl Fd {
    /// The caller's descriptor `from` as the task's descriptor `to`.
    pub fn new(from: impl Into<CallerFd>, to: u32) -> Fd {
        Fd { from: from.into(), to }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_number_is_serialised() {
        let number: Stdio = serde_json::from_str(r#"{"fd": 7}"#).unwrap();
        assert_eq!(number.of_caller(0), Some(7));
        assert_eq!(serde_json::to_string(&number).unwrap(), r#"{"fd":7}"#);
        let owned = Stdio::from(File::open("/dev/null").unwrap());
        assert_eq!(owned, owned.clone());
        let refused = serde_json::to_string(&owned).unwrap_err().to_string();
        assert!(refused.contains("cannot be serialised"), "{refused}");
    }
}
