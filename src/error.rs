//! The crate's error type, whose variants say who must act.
//!
//! The message is the refused step as the plan prints it. The errno is the [`source`](std::error::Error::source), and
//! is not repeated in the message. `Spec` and `Denied` mean that nothing on the host was changed. After `Task`
//! the task is as it was, unless the method says otherwise. Any other error means that everything made before the
//! refused step was removed.

use std::io;
use std::path::{Path, PathBuf};

use crate::report::Control;

/// The reason why a sandbox could not be planned or spawned, or why a method of a task failed.
///
/// The variants say who must act: the author of the spec, the operator of the host, or the caller. The message does not
/// contain the [`source`](std::error::Error::source).
///
/// ```no_run
/// use cofferdam::{Error, Sandbox};
/// use std::error::Error as _;
///
/// let Err(error) = Sandbox::command("make").spawn() else { return };
/// match &error {
///     Error::Spec { field, .. } => eprintln!("correct {field} in the job: {error}"),
///     Error::Denied { .. } | Error::Unsupported { .. } => eprintln!("ask the operator: {error}"),
///     Error::Exec { program, .. } => eprintln!("cannot execute {program:?}: {:?}", error.source()),
///     _ => eprintln!("{error}: {:?}; {}", error.source(), error.remedy().unwrap_or("no remedy known")),
/// }
/// std::process::exit(error.exit_code().into());
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of the spec or the policy is wrong. Its author must act. Nothing was changed.
    #[error("{}", named(field, message))]
    Spec {
        /// Name of the field as in the serialised form (`pid_mode`, `denied_host_uids`).
        field: &'static str,
        /// The wrong value, and what is accepted.
        message: String,
    },
    /// The spec asks for something that the operator's policy forbids. Nothing was changed.
    #[error("{message}")]
    Denied {
        /// What was asked for, and which field of the policy forbids it.
        message: String,
    },
    /// This host cannot enforce a required control. The operator must act. Nothing was changed, unless the kernel
    /// refused the control during the spawn; then everything made before was removed.
    #[error("this host cannot enforce {control}: {reason}")]
    Unsupported {
        /// The required controls that do not hold.
        control: Control,
        /// The cause, by name: a missing controller, system call, capability or sysctl.
        reason: String,
    },
    /// The kernel refused a step of the caller's process. Everything made before was removed. The exception is a
    /// directory of the author's own (`root.path`, `upper`, and the root of [`populate`](crate::rootfs::populate)):
    /// what was populated in it stays.
    #[error("{step}")]
    Prepare {
        /// The step as the plan prints it.
        step: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// The caller cancelled the population of the root: [`Sandbox::cancel`](crate::Sandbox::cancel), or a `Break` of the
    /// [`progress`](crate::Sandbox::progress) callback. A spawn has removed everything that it made.
    #[error("cancelled while the root was populated")]
    Cancelled,
    /// The kernel refused a step of init, inside the new namespaces. Init was reaped, and everything made before was
    /// removed.
    #[error("{step}")]
    Setup {
        /// The step as the plan prints it.
        step: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// The command does not exist in the root, or the kernel cannot execute it. Everything made before was removed.
    ///
    /// [`Error::exit_code`] distinguishes the two cases.
    #[error("execve({program:?}){}", places(program, tried))]
    Exec {
        /// The path at which the command was found. If it was not found, the command as the spec names it.
        program: PathBuf,
        /// The paths in the root at which the command was looked up, in order. Empty if it was found.
        tried: Vec<PathBuf>,
        /// `NotFound` if the root has no such file, or the file's interpreter does not exist. `IsADirectory` if only a
        /// directory was found. Otherwise the errno of `execve(2)`.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a step on a running or ended task.
    #[error("{step}")]
    Task {
        /// The step, as strace prints it.
        step: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
}

/// The paths at which a command was looked up, as the end of a message. Empty if the command itself is the only one.
fn places(program: &Path, tried: &[PathBuf]) -> String {
    let places: Vec<String> = tried.iter().map(|path| format!("{path:?}")).collect();
    match tried {
        [] => String::new(),
        [only] if only == program => String::new(),
        _ => format!(", looked up at {}", places.join(", ")),
    }
}

/// A remedy for controls that cannot be enforced. Every sandbox needs a mount namespace, so `MOUNT_NS` is alone only if
/// the caller cannot create any namespace.
fn unsupported(control: Control, reason: &str) -> Option<&'static str> {
    if control == Control::MOUNT_NS {
        return Some(
            "run as root, or allow user namespaces (user.max_user_namespaces, kernel.unprivileged_userns_clone, \
             kernel.apparmor_restrict_unprivileged_userns)",
        );
    }
    if control == Control::MOUNT_NS | Control::HOST_FILES {
        return Some("use Linux 5.12 or later");
    }
    // The words of `cgroup/detect`. Other resources are missing for other reasons.
    let missing =
        ["controllers not available", "is not delegated", "cgroup v1 needs root", "cannot be written"];
    let controllers = missing.iter().any(|words| reason.contains(words));
    (controllers && control.intersects(Control::RESOURCES)).then_some(
        "delegate the controllers to the caller (systemd: Delegate=yes), require fewer (required_controllers: asked), \
         or go without (require: best_effort)",
    )
}

/// A remedy for a system call that the kernel refused.
fn refused(step: &str, source: &io::Error) -> Option<&'static str> {
    let names = |word: &str| step.contains(word) || source.to_string().contains(word);
    match (source.kind(), source.raw_os_error()) {
        _ if names("rlimits: ") => Some("raise this limit"),
        (_, Some(libc::EPERM)) if step.contains("RLIMIT_NOFILE") => {
            Some("give a hard limit that is at most the caller's and at most fs.nr_open")
        }
        (_, Some(libc::EPERM)) if step.starts_with("prlimit64(") => {
            Some("give a hard limit that is at most the caller's, or run with CAP_SYS_RESOURCE")
        }
        (_, Some(libc::EACCES)) if step.contains("oom_score_adj") => {
            Some("give a score that is not below the caller's, or run with CAP_SYS_RESOURCE")
        }
        (_, Some(libc::EACCES)) if step.starts_with("openat(") && step.contains("O_DIRECTORY") => {
            Some("give the driver's user access to the directory")
        }
        (_, Some(libc::EACCES)) if step.starts_with("openat(") && !step.contains("/sys/fs/cgroup") => {
            Some("leave the file out of the root, or populate by bind or overlay")
        }
        (_, Some(libc::E2BIG)) => Some("shorten args and env"),
        (io::ErrorKind::ResourceBusy, _) if names("frozen") => Some("thaw what is frozen"),
        (io::ErrorKind::ResourceBusy, _) if step.contains("memory.") => {
            Some("give at least as much memory as the task uses")
        }
        (io::ErrorKind::ResourceBusy, _) if step.starts_with("unlinkat(") => {
            Some("unmount what was mounted there")
        }
        (io::ErrorKind::ResourceBusy, _) if names("the id is in use") => {
            Some("release or recover that task, give another id, or ask for replace")
        }
        (io::ErrorKind::ResourceBusy, _) => {
            Some("wait until the other task has ended, or ask for something else")
        }
        _ if names("init was killed by signal 9") => {
            Some("look who killed it: the host's OOM killer, or a spawn that replaces this task (replace)")
        }
        (io::ErrorKind::TimedOut, _) if step.starts_with("wait for the command") => {
            Some("continue or thaw the task, or give more time (spawn_deadline, the deadline of an exec)")
        }
        (io::ErrorKind::TimedOut, _) if step.starts_with("look up the user") => {
            Some("give the user as two ids (UID:GID), which are not looked up")
        }
        (io::ErrorKind::TimedOut, _) if names("spawn_deadline") => Some("give more time (spawn_deadline)"),
        (_, Some(libc::EROFS)) => Some("use a directory that is not on a read-only file system"),
        (_, Some(libc::EFBIG)) => Some("raise the caller's limit of file sizes (RLIMIT_FSIZE)"),
        (io::ErrorKind::OutOfMemory, _) => Some("free memory on the host"),
        (_, Some(libc::EMFILE)) => Some("raise the caller's limit of open files (RLIMIT_NOFILE)"),
        (_, Some(libc::ENFILE)) => Some("raise the host's limit of open files (fs.file-max)"),
        (_, Some(libc::EAGAIN)) if step.starts_with("execve(") => Some(
            "raise the task's limit of processes (nproc), or give the task a user that runs nothing else",
        ),
        (_, Some(libc::EEXIST)) if step.contains(".exit\"") => {
            Some("remove the file of this name, which is no exit record that the driver's user has made")
        }
        _ if names("every user may write") => {
            Some("give a directory that only the driver's user may write to (chmod o-w)")
        }
        (_, Some(libc::EAGAIN)) => {
            Some("raise the limit of processes (RLIMIT_NPROC, pids.max of the caller's cgroup)")
        }
        (_, Some(libc::ENOSPC)) => Some(no_space(step)),
        (_, Some(libc::EXDEV)) => {
            Some("choose a temp_dir on the file system of the sources, or populate by copy")
        }
        (_, Some(libc::ENOSYS)) => {
            Some("use a newer kernel, or a container engine whose filter knows the call")
        }
        _ => None,
    }
}

/// A remedy for `ENOSPC`, which each kind of call has its own reason for.
fn no_space(step: &str) -> &'static str {
    match step.split('(').next().unwrap_or_default() {
        "clone3" | "clone" | "unshare" | "setns" => "raise the limits of namespaces (user.max_*_namespaces)",
        "move_mount" | "open_tree" | "mount" | "fsmount" => {
            "raise the limit of mounts in a namespace (fs.mount-max), or use fewer"
        }
        "mkdir" | "mkdirat" if step.contains("/sys/fs/cgroup") => {
            "remove cgroups that nothing uses: the kernel has at most 65535 with memory accounting"
        }
        _ => "free space or inodes on the file system of this path",
    }
}

/// The message of a `Spec` error. It begins with the name of the field.
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

    /// A `Prepare` error, as a closure for `map_err`.
    pub(crate) fn prepare<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> Self {
        let step = step.into();
        move |source| Error::Prepare { step, source: source.into() }
    }

    /// A `Task` error, as a closure for `map_err`.
    pub(crate) fn task<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> Self {
        let step = step.into();
        move |source| Error::Task { step, source: source.into() }
    }

    /// Turns a `Prepare` error into a `Task` error, for steps that also run on a running task.
    pub(crate) fn of_task(self) -> Self {
        match self {
            Error::Prepare { step, source } => Error::Task { step, source },
            other => other,
        }
    }

    /// What would help, as an imperative clause without a full stop. `None` if no remedy is known.
    ///
    /// ```
    /// # use cofferdam::Error;
    /// let e = Error::Exec { program: "nope".into(), tried: vec![], source: std::io::ErrorKind::NotFound.into() };
    /// assert!(e.remedy().is_some_and(|remedy| remedy.contains("PATH")));
    /// ```
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Error::Spec { .. } | Error::Cancelled => None,
            Error::Denied { .. } => Some("ask for less, or ask the operator to change the policy"),
            Error::Unsupported { control, reason } => unsupported(*control, reason),
            Error::Exec { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Some(
                    "give a path in the root or a PATH, and check that the root contains the program and its interpreter",
                ),
                io::ErrorKind::PermissionDenied => Some(
                    "give a regular file that the task's user may execute, on a file system that is not mounted noexec",
                ),
                io::ErrorKind::IsADirectory => Some("give the path of a program"),
                _ => refused("execve(", source),
            },
            Error::Prepare { step, source }
            | Error::Setup { step, source }
            | Error::Task { step, source } => refused(step, source),
        }
    }

    /// The exit status for a command-line program, as `docker run` and `env` use it: 127 if the command was not found,
    /// 126 if it was found but cannot be executed, and 125 for every other error.
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
            (Error::prepare("x")(io::Error::other("rlimits: nofile is too low to start the task")), "raise"),
            (Error::task("exec in a frozen task")(io::Error::from_raw_os_error(libc::EBUSY)), "thaw"),
            (prepare(libc::ENOSPC), "free space"),
            (prepare(libc::EROFS), "read-only"),
            (prepare(libc::EFBIG), "RLIMIT_FSIZE"),
            (Error::prepare("init")(io::Error::other("init was killed by signal 9")), "replace"),
            (Error::prepare("execve(\"/a\")")(io::Error::from_raw_os_error(libc::EAGAIN)), "nproc"),
            (Error::prepare("linkat(\"/s/a.exit\")")(io::Error::from_raw_os_error(libc::EEXIST)), "remove"),
            (
                Error::task("write(\"/g/memory.max\", \"1\")")(io::Error::from_raw_os_error(libc::EBUSY)),
                "memory",
            ),
            (Error::task("unlinkat(\"/t\")")(io::Error::from_raw_os_error(libc::EBUSY)), "unmount"),
            (
                Error::prepare("openat(\"/s\", O_DIRECTORY)")(io::Error::from_raw_os_error(libc::EACCES)),
                "directory",
            ),
            (
                Error::prepare("clone3(CLONE_NEWPID)")(io::Error::from_raw_os_error(libc::ENOSPC)),
                "namespaces",
            ),
            (
                Error::prepare("move_mount(\"/a\", root \"/a\")")(io::Error::from_raw_os_error(libc::ENOSPC)),
                "mount-max",
            ),
            (Error::denied("x"), "operator"),
            (
                Error::Unsupported {
                    control: Control::MEMORY,
                    reason: "cgroup v2 controllers not available: memory".into(),
                },
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
        let cores =
            Error::Unsupported { control: Control::CPUSET, reason: "CPUs 9 are not available".into() };
        assert_eq!(cores.remedy(), None, "no delegation makes a CPU");
        assert_eq!(prepare(libc::EPERM).remedy(), None);
        assert_eq!(Error::spec("id", "x").remedy(), None);
    }
}
