//! The crate's one error type, sorted by who must act on it.
//!
//! The message of an error is the step as the plan prints it; the kernel's answer is its
//! [`source`](std::error::Error::source), and never both in one string. An error of the first three
//! kinds means that nothing on the machine was touched; one of the others that everything made so
//! far was taken back before the error was returned.

use std::io;
use std::path::{Path, PathBuf};

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
    #[error("execve({program:?}){}", places(program, tried))]
    Exec {
        /// The command as the spec names it, or the path that it was found at.
        program: PathBuf,
        /// The paths in the root where it was looked up, in order; empty if it was found.
        tried: Vec<PathBuf>,
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

/// Where a command was looked up, if not only as it stands.
fn places(program: &Path, tried: &[PathBuf]) -> String {
    let places: Vec<String> = tried.iter().map(|path| format!("{path:?}")).collect();
    match tried {
        [] => String::new(),
        [only] if only == program => String::new(),
        _ => format!(", looked up at {}", places.join(", ")),
    }
}

/// What would help where a control cannot be enforced. Without a mount namespace there is no sandbox, so that control
/// stands alone only where the caller can create none.
fn unsupported(control: Control) -> Option<&'static str> {
    if control == Control::MOUNT_NS {
        return Some(
            "run as root, or allow user namespaces (user.max_user_namespaces, kernel.unprivileged_userns_clone, \
             kernel.apparmor_restrict_unprivileged_userns)",
        );
    }
    if control == Control::MOUNT_NS | Control::HOST_FILES {
        return Some("use Linux 5.12 or later");
    }
    control.intersects(Control::RESOURCES).then_some(
        "delegate the controllers to the caller (systemd: Delegate=yes), require fewer (required_controllers: asked), \
         or go without (require: best_effort)",
    )
}

/// What would help where the kernel refused a call.
fn refused(source: &io::Error) -> Option<&'static str> {
    match (source.kind(), source.raw_os_error()) {
        (io::ErrorKind::ResourceBusy, _) => {
            Some("wait until the other task has ended, or ask for something else")
        }
        (io::ErrorKind::OutOfMemory, _) => Some("free memory on the host"),
        (_, Some(libc::EMFILE)) => Some("raise the caller's limit of open files (RLIMIT_NOFILE)"),
        (_, Some(libc::ENFILE)) => Some("raise the host's limit of open files (fs.file-max)"),
        (_, Some(libc::EAGAIN)) => {
            Some("raise the limit of processes (RLIMIT_NPROC, pids.max of the caller's cgroup)")
        }
        (_, Some(libc::ENOSPC)) => Some(
            "free space or inodes in the temporary directory, or raise the limits of namespaces (user.max_*_namespaces)",
        ),
        (_, Some(libc::EXDEV)) => {
            Some("choose a temp_dir on the file system of the sources, or populate by copy")
        }
        (_, Some(libc::ENOSYS)) => {
            Some("use a newer kernel, or a container engine whose filter knows the call")
        }
        _ => None,
    }
}

/// The message of a `Spec` error, with the field in front where it does not begin with it.
fn named(field: &str, message: &str) -> String {
    if message.starts_with(field) { message.to_string() } else { format!("{field}: {message}") }
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

    /// What would help, in a sentence, where that is known.
    ///
    /// ```
    /// # use cofferdam::Error;
    /// let e = Error::Exec { program: "nope".into(), tried: vec![], source: std::io::ErrorKind::NotFound.into() };
    /// assert!(e.remedy().unwrap().contains("PATH"));
    /// ```
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Error::Spec { .. } => None,
            Error::Denied { .. } => Some("ask for less, or ask the operator to change the policy"),
            Error::Unsupported { control, .. } => unsupported(*control),
            Error::Exec { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Some(
                    "give a path in the root or a PATH, and check that the root contains the program and its interpreter",
                ),
                io::ErrorKind::PermissionDenied => Some(
                    "make the file executable for the task's user, on a file system that is not mounted noexec",
                ),
                _ => None,
            },
            Error::Prepare { source, .. } | Error::Setup { source, .. } | Error::Task { source, .. } => {
                refused(source)
            }
        }
    }

    /// The exit status that a command-line front should end with, as `docker run` and `env` do:
    /// 127 when the command was not found, 126 when it was found but is not executable, and 125 for
    /// everything that the sandbox itself refused or failed at.
    ///
    /// ```
    /// # use cofferdam::Error;
    /// let e = Error::Exec { program: "nope".into(), tried: vec![], source: std::io::ErrorKind::NotFound.into() };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_causes_have_a_remedy() {
        let prepare = |errno| Error::prepare("x")(io::Error::from_raw_os_error(errno));
        for (error, word) in [
            (prepare(libc::EMFILE), "RLIMIT_NOFILE"),
            (prepare(libc::EAGAIN), "pids.max"),
            (prepare(libc::EXDEV), "temp_dir"),
            (prepare(libc::EBUSY), "other task"),
            (Error::denied("x"), "operator"),
            (
                Error::Unsupported { control: Control::MEMORY, reason: "memory is not available".into() },
                "best_effort",
            ),
            (
                Error::Unsupported {
                    control: Control::MOUNT_NS,
                    reason: "cannot make a user namespace".into(),
                },
                "max_user_namespaces",
            ),
        ] {
            assert!(error.remedy().unwrap().contains(word), "{error:?}");
        }
        assert_eq!(prepare(libc::EPERM).remedy(), None);
        assert_eq!(Error::spec("id", "x").remedy(), None);
    }
}
