//! The crate's one error type, sorted by who must act on it.
//!
//! The message of an error is the step as the plan prints it; the kernel's answer is its
//! [`source`](std::error::Error::source), and never both in one string. An error of the first three
//! kinds means that nothing on the machine was touched; one of the others that everything made so
//! far was taken back before the error was returned.

use std::io;
use std::path::PathBuf;

use crate::report::Control;

/// Why a sandbox could not be planned, spawned or handled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The author of the spec or the policy must act: this field is wrong. Nothing was touched.
    #[error("{}", named(field, message))]
    Spec {
        /// The field, as it is spelled in the serialised form (`pid_mode`, `denied_host_uids`).
        field: &'static str,
        /// What is wrong with it, with the offending value.
        message: String,
    },
    /// The task asked for something that the operator's policy forbids. Nothing was touched.
    #[error("{message}")]
    Denied {
        /// What was asked for and what forbids it.
        message: String,
    },
    /// The operator must act: this host cannot enforce a control that is required. Nothing was touched.
    #[error("this host cannot enforce {control}: {reason}")]
    Unsupported {
        /// The controls that are required and would not hold.
        control: Control,
        /// Why not, by name: the missing controller, system call, capability or sysctl.
        reason: String,
    },
    /// A step on the caller's side was refused. It was rolled back, but for what was populated in a directory of
    /// the author's own (`root.path`, `upper`, and by [`populate`](crate::rootfs::populate)): that stays.
    #[error("{step}")]
    Prepare {
        /// The step as the plan prints it.
        step: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A step of init, inside the new namespaces, was refused. Init was reaped and all was rolled back.
    #[error("{step}")]
    Setup {
        /// The step as the plan prints it.
        step: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The command was not found in the root, or cannot be executed. All was rolled back.
    ///
    /// [`Error::exit_code`] tells the two apart in the way that shells do.
    #[error("execve({program:?})")]
    Exec {
        /// The command as the spec names it, or the path that it was found at.
        program: PathBuf,
        /// `NotFound` when there is no such regular file in the root (or its interpreter is missing),
        /// else why the kernel would not execute it.
        #[source]
        source: io::Error,
    },
    /// A step on a running or ended task was refused.
    #[error("{step}")]
    Task {
        /// The step, strace-like.
        step: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// The message of a `Spec` error, with the field in front where it does not begin with it.
fn named(field: &str, message: &str) -> String {
    if message.starts_with(field) { message.to_string() } else { format!("{field}: {message}") }
}

/// A text that is not a value of the type that was asked for. The message says what was found and what is accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(String);

impl InvalidValue {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        InvalidValue(message.into())
    }
}

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A `Spec` error for `field`.
    pub(crate) fn spec(field: &'static str, message: impl Into<String>) -> Self {
        Error::Spec { field, message: message.into() }
    }

    /// A `Denied` error.
    pub(crate) fn denied(message: impl Into<String>) -> Self {
        Error::Denied { message: message.into() }
    }

    /// A `Prepare` error; the closure form for `map_err`.
    pub(crate) fn prepare<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> Self {
        let step = step.into();
        move |source| Error::Prepare { step, source: source.into() }
    }

    /// A `Task` error; the closure form for `map_err`.
    pub(crate) fn task<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> Self {
        let step = step.into();
        move |source| Error::Task { step, source: source.into() }
    }

    /// The same while the task runs: nothing is being prepared any more.
    pub(crate) fn of_task(self) -> Self {
        match self {
            Error::Prepare { step, source } => Error::Task { step, source },
            other => other,
        }
    }

    /// The exit status that a command-line front should end with, as `docker run` and `env` do:
    /// 127 when the command was not found, 126 when it was found but is not executable, and 125 for
    /// everything that the sandbox itself refused or failed at.
    ///
    /// ```
    /// # use cofferdam::Error;
    /// let e = Error::Exec { program: "nope".into(), source: std::io::ErrorKind::NotFound.into() };
    /// assert_eq!(e.exit_code(), 127);
    /// ```
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Exec { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Error::Exec { .. } => 126,
            _ => 125,
        }
    }
}
