//! The description of a task by which another process finds it again.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::ExitStatus;
use super::record::Mark;
use crate::cgroup::Paths;
use crate::notation;
use crate::plan::Enclosure;
use crate::rootfs::Populated;
use crate::rootfs::populate::RootId;
use crate::step::wire::{DECLARATIONS, FNV, fnv};
use crate::sys;

/// What another process needs to [recover](crate::Sandbox::recover) a task. [`Task::detach`](crate::Task::detach) and
/// [`Task::handle`](crate::Task::handle) return it, and [`Sandbox::spawn_with`](crate::Sandbox::spawn_with) passes it to the
/// driver. It is serde data. Its format has a version number, and `recover` refuses another one (`Unsupported`).
///
/// It has no secret of the task: no arguments, nothing of the spec's `env` and no content of files. It names
/// paths of the host and has the task's filters and credentials, by which a process joins the task. `recover` trusts
/// it: a changed handle names other things to kill and remove. Store it where only the driver can write.
///
/// ```no_run
/// use cofferdam::{DieWith, Sandbox, TaskHandle};
///
/// let task = Sandbox::command("daemon").die_with(DieWith::Survive).spawn()?;
/// let handle = task.handle()?.with_data(b"started by job 7".to_vec());
/// let text = serde_json::to_string(&handle).unwrap();
/// let again: TaskHandle = serde_json::from_str(&text).unwrap();
/// assert_eq!((again.sandbox_id(), again.data()), (task.sandbox_id(), handle.data()));
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Clone, Serialize, Deserialize)]
pub struct TaskHandle {
    /// The version of this format.
    pub(super) version: u32,
    /// The build of the library whose init understands the steps of `enclosure`.
    pub(super) build: String,
    /// The random name of the boot of the machine.
    pub(super) boot: String,
    /// The processes. `None` if the task had ended and was reaped.
    pub(super) identity: Option<Identity>,
    /// The exit status, if it was known.
    pub(super) status: Option<ExitStatus>,
    /// When the task ended, if that was known.
    pub(super) ended: Option<SystemTime>,
    /// The cgroups.
    pub(super) groups: Option<Paths>,
    /// Inode number of the task's cgroup.
    pub(super) cgroup: Option<u64>,
    /// The temporary root.
    pub(super) root: Option<RootPlace>,
    /// The file of the exit record, and its mark.
    pub(super) record: Option<(PathBuf, Mark)>,
    pub(super) populated: Option<Populated>,
    pub(super) enclosure: Enclosure,
    #[serde(with = "notation::hex")]
    pub(super) data: Vec<u8>,
}

/// The place of a temporary root.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RootPlace {
    /// The directory that it was made in.
    pub base: PathBuf,
    pub id: RootId,
}

/// What no two tasks of a boot have in common: PID, start time and PID namespace of the first process and of the main
/// process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub init: Process,
    pub main: Option<Process>,
}

/// A process, as text that no other process of this boot has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub pid: i32,
    /// Clock ticks from the boot to its start (`proc_pid_stat(5)`).
    pub start: u64,
    /// Inode number of its PID namespace. `None` if it cannot be read, as of a process that has ended.
    pub pid_namespace: Option<u64>,
}

impl Identity {
    /// The identity of a task whose first process is not reaped.
    ///
    /// # Errors
    /// The refused call.
    pub(super) fn of(init: BorrowedFd<'_>, main: BorrowedFd<'_>) -> io::Result<Self> {
        let pid = sys::find_pid(init)?.ok_or(io::ErrorKind::NotFound)?;
        let number = sys::find_pid(main)?.filter(|main| *main != pid);
        let seen = match number.map(Process::look).transpose() {
            // It has ended, and init has reaped it.
            Err(e) if sys::is_no_process(&e) => None,
            seen => seen?,
        };
        // If init has reaped it meanwhile, another process may have its PID.
        let still = number.is_some() && sys::find_pid(main)? == number;
        let main = seen.filter(|_| still);
        Ok(Identity { init: Process::look(pid)?, main })
    }
}

impl Process {
    /// Looks at the process with this PID.
    pub(super) fn look(pid: i32) -> io::Result<Self> {
        let start = sys::stat(pid)?.starttime;
        Ok(Process { pid, start, pid_namespace: sys::pid_namespace(pid) })
    }

    /// Whether the two are one process.
    pub(super) fn is(&self, other: &Process) -> bool {
        let namespaces = self.pid_namespace.zip(other.pid_namespace);
        (self.pid, self.start) == (other.pid, other.start)
            && namespaces.is_none_or(|(one, other)| one == other)
    }
}

/// The random name of this boot of the machine.
pub(super) fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The build of this library: its version, and a hash of the declarations of init's operations.
pub(super) fn build() -> String {
    let hash = DECLARATIONS.as_bytes().iter().fold(FNV, fnv);
    format!("{} {hash:016x}", env!("CARGO_PKG_VERSION"))
}

impl TaskHandle {
    pub(super) const VERSION: u32 = 1;

    /// The same handle, with bytes of the driver's own.
    pub fn with_data(self, data: Vec<u8>) -> Self {
        TaskHandle { data, ..self }
    }

    /// The driver's own bytes. Empty if none were set.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The sandbox's name: [`SandboxSpec::id`](crate::SandboxSpec::id) or a random name.
    pub fn sandbox_id(&self) -> &str {
        &self.enclosure.id
    }
}

impl fmt::Debug for TaskHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle")
            .field("id", &self.enclosure.id)
            .field("version", &self.version)
            .field("build", &self.build)
            .field("identity", &self.identity)
            .field("status", &self.status)
            .field("record", &self.record.as_ref().map(|(path, _)| path))
            .finish_non_exhaustive()
    }
}
