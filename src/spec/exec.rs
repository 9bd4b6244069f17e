//! Another command in a running task.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Stdio;

/// Another command to run in a running task: [`Task::exec`](crate::Task::exec).
///
/// ```no_run
/// use cofferdam::{ExecSpec, Sandbox, Stdio};
///
/// let task = Sandbox::command("postgres").spawn()?;
/// let dump = ExecSpec::command("pg_dump").args(["jobs"]).stdout(Stdio::Piped).work_dir("/tmp");
/// let output = task.exec(&dump)?.wait_with_output(64 << 20, None)?;
/// println!("{}: {} bytes", output.status, output.stdout.len());
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExecSpec {
    /// The command, looked up as [`SandboxSpec::command`](crate::SandboxSpec::command), with this value's working
    /// directory and `PATH`. At most 4000 bytes.
    pub command: OsString,
    /// The arguments after `argv[0]`.
    pub args: Vec<OsString>,
    /// The environment, in addition to `HOME`, and `USER` and `LOGNAME` if the user has a name. The environment of the
    /// task is not inherited: it may have changed since, and the crate does not keep it.
    pub env: BTreeMap<OsString, OsString>,
    /// Another user than the task's, as in [`SandboxSpec::user`](crate::SandboxSpec::user). The policy's denied ids and
    /// the task's capabilities apply. By default, the user and groups of the task.
    ///
    /// [`Error::Denied`](crate::Error::Denied) for a denied id, [`Error::Unsupported`](crate::Error::Unsupported) in a user
    /// namespace, and [`Error::Spec`](crate::Error::Spec) for the uid of PID 1, which is usually 65533.
    pub user: Option<String>,
    /// The working directory, an existing absolute path in the root. By default, that of the task.
    pub work_dir: Option<PathBuf>,
    /// The standard input; `/dev/null` by default.
    pub stdin: Stdio,
    /// The standard output; `/dev/null` by default. Not [`Stdio::Log`].
    pub stdout: Stdio,
    /// The standard error; `/dev/null` by default. Not [`Stdio::Log`].
    pub stderr: Stdio,
    /// The longest time that the command may run. It is then killed, and its status is
    /// [`ExitKind::Deadline`](crate::ExitKind::Deadline). If the task has a cgroup, the processes that it has started are
    /// killed by the next wait. More than 0 and less than 292 years.
    ///
    /// [`Error::Unsupported`](crate::Error::Unsupported) in a task that has no PID namespace of its own.
    pub deadline: Option<Duration>,
    /// A pseudo-terminal of this size as the standard streams, which then must be left at their default. See
    /// [`SandboxSpec::terminal`](crate::SandboxSpec::terminal).
    pub terminal: Option<WindowSize>,
}

/// The size of a terminal's window, in characters (`TIOCSWINSZ`, `ioctl_tty(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

impl ExecSpec {
    /// A command without arguments.
    pub fn command(command: impl Into<OsString>) -> Self {
        ExecSpec { command: command.into(), ..ExecSpec::default() }
    }

    /// Adds arguments.
    pub fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.insert(key.into(), value.into());
        self
    }

    /// Sets another user than the task's.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Sets the working directory.
    pub fn work_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.work_dir = Some(dir.into());
        self
    }

    /// Sets the standard input.
    pub fn stdin(mut self, stdio: impl Into<Stdio>) -> Self {
        self.stdin = stdio.into();
        self
    }

    /// Sets the standard output.
    pub fn stdout(mut self, stdio: impl Into<Stdio>) -> Self {
        self.stdout = stdio.into();
        self
    }

    /// Sets the standard error.
    pub fn stderr(mut self, stdio: impl Into<Stdio>) -> Self {
        self.stderr = stdio.into();
        self
    }

    /// Sets the longest time that the command may run.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets a pseudo-terminal as the standard streams.
    pub fn terminal(mut self, size: WindowSize) -> Self {
        self.terminal = Some(size);
        self
    }

    /// The standard streams, by number.
    pub(crate) fn streams(&self) -> [(&'static str, &Stdio); 3] {
        [("stdin", &self.stdin), ("stdout", &self.stdout), ("stderr", &self.stderr)]
    }
}
