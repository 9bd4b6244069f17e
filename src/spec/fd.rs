//! Descriptors of the caller that are passed to a task.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};

/// A descriptor of the caller, owned by the spec and all its clones.
///
/// Deserialised data holds a bare number instead. The caller must keep that descriptor open from the time at which it
/// reads the spec until [`spawn`](crate::Sandbox::spawn) returns, and is responsible for what is open there. Only a
/// number can be serialised.
///
/// A [`Sandbox`](crate::Sandbox) keeps the descriptor open, for further spawns. The reader of a pipe gets no end of
/// file before the sandbox, its clones and the task have closed the write end. Drop the sandbox after the spawn.
///
/// ```
/// use cofferdam::{CallerFd, Sandbox};
/// use std::fs::File;
///
/// let log = CallerFd::duplicate(std::io::stderr())?;
/// let sandbox = Sandbox::command("make").stdin(File::open("/dev/null")?).stderr(log);
/// # let _ = sandbox;
/// # Ok::<(), std::io::Error>(())
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
    /// `EMFILE` if the caller has too many open files (`fcntl(2)`).
    pub fn duplicate(fd: impl AsFd) -> io::Result<CallerFd> {
        Ok(fd.as_fd().try_clone_to_owned()?.into())
    }

    /// The number of the descriptor in the caller.
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

/// Source or destination of one of the task's standard streams. Serialised: `"inherit"`, `"null"`, `"piped"`, `"log"` or
/// `{"fd": 7}`.
///
/// ```no_run
/// use cofferdam::{Sandbox, Stdio};
/// use std::{fs::File, io::Read};
///
/// let log = File::create("/var/log/make.log")?;
/// let task = Sandbox::command("make").stdin(Stdio::Null).stdout(log).stderr(Stdio::Piped).spawn()?;
/// let mut errors = String::new();
/// if let Some(mut stderr) = task.take_stderr() {
///     stderr.read_to_string(&mut errors)?;
/// }
/// println!("{}: {errors}", task.wait()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stdio {
    /// The caller's stream of the same number.
    ///
    /// If it is a regular file, the task can open that file again through `/proc/self/fd`, for reading and writing, and
    /// can change its mode and owner if it has the privileges. The report then lists `host_files` as weakened. A pipe
    /// gives no such access.
    Inherit,
    /// `/dev/null`.
    #[default]
    Null,
    /// A pipe, whose other end the caller takes from the [`Task`](crate::Task), for example with
    /// [`take_stdout`](crate::Task::take_stdout).
    Piped,
    /// The log of the task: the file `ID.log` in the operator's [`state_dir`](crate::Policy::state_dir), which the task
    /// cannot reach. PID 1, or the process that stays in its place, copies the stream to it. So the log needs no caller,
    /// and survives it. It keeps the newest [`log_size`](crate::Policy::log_size) bytes, and what arrives when it cannot
    /// be written is lost: the task does not wait for the disk to have room. [`Log`](crate::Log) reads it. Removing the
    /// task removes it. A task that could forge its exit record, as the report then says, can change the log too.
    ///
    /// Each entry of the log has at most 4096 bytes and takes 16 bytes more.
    ///
    /// For standard output and standard error of a task. [`Error::Spec`](crate::Error::Spec) for an additional command
    /// ([`Task::exec`](crate::Task::exec)), without a `state_dir`, and with `init: false` in a private PID namespace if the
    /// caller lacks `CAP_KILL`.
    Log,
    /// A descriptor of the caller. A regular file gives the same access as with [`Inherit`](Self::Inherit).
    Fd(CallerFd),
}

impl Stdio {
    /// The number of the caller's descriptor that becomes stream `own`; `None` if no descriptor of the caller does.
    pub(crate) fn of_caller(&self, own: RawFd) -> Option<RawFd> {
        match self {
            Stdio::Inherit => Some(own),
            Stdio::Fd(fd) => Some(fd.number()),
            Stdio::Null | Stdio::Piped | Stdio::Log => None,
        }
    }
}

impl<T: Into<CallerFd>> From<T> for Stdio {
    fn from(fd: T) -> Stdio {
        Stdio::Fd(fd.into())
    }
}

/// A descriptor that the task gets in addition to its standard streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
#[non_exhaustive]
pub struct Fd {
    /// The caller's descriptor.
    pub from: CallerFd,
    /// The number of the descriptor in the task, 3 to 1023.
    pub to: u32,
}

impl Fd {
    /// The caller's descriptor `from` as the task's descriptor `to`.
    pub fn new(from: impl Into<CallerFd>, to: u32) -> Fd {
        Fd { from: from.into(), to }
    }
}

crate::notation::from_maps! { Fd: "an object with from and to" }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_number_is_serialised_and_an_owned_descriptor_is_refused() {
        let number: Stdio = serde_json::from_str(r#"{"fd": 7}"#).unwrap();
        assert_eq!(number.of_caller(0), Some(7));
        assert_eq!(serde_json::to_string(&number).unwrap(), r#"{"fd":7}"#);
        let owned = Stdio::from(File::open("/dev/null").unwrap());
        assert_eq!(owned, owned.clone());
        let refused = serde_json::to_string(&owned).unwrap_err().to_string();
        assert!(refused.contains("cannot be serialised"), "{refused}");
    }
}
