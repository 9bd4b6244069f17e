//! The operations of the parent, before the clone and while init runs.

use std::path::PathBuf;

use crate::cgroup::{CgroupOp, JoinShare};
use crate::rootfs::work::{BuildRoot, MakeTempRoot};
use crate::step::{Handed, IdMaps, Kernel, Step, namespaces};

/// An operation of the parent. `spawn` runs it. The task's undo list removes what it creates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ParentOp {
    /// Kills the task that has the id, waits until its owner has released it, and removes what is left. Nothing undoes
    /// that.
    Replace {
        /// The id.
        id: String,
        /// The cgroup in which a task of that id has its processes, if tasks have one here.
        unit: Option<PathBuf>,
    },
    /// Creates and locks the file for the exit record of the task. Refused while another task of that name has it. Undone
    /// by removing it.
    ExitRecord(PathBuf),
    /// Creates the file of the task's log. One of an earlier task of that name is removed. Undone by removing it.
    Log {
        /// Path of the file.
        path: PathBuf,
        /// Maximum number of bytes that it keeps.
        size: u64,
    },
    /// Opens the sources that are linked or copied into the root. They are opened while the plan is compiled, since the
    /// plan depends on their types. `spawn` does nothing for this step.
    HoldSources {
        /// Paths of the sources, as the spec names them.
        sources: Vec<PathBuf>,
        /// The call that is made later for each file of the sources.
        then: &'static str,
    },
    /// Creates the temporary directory that becomes the root. Undone by removing it with its content.
    TempRoot(MakeTempRoot),
    /// Locks the directory that overlays write to, so that no other sandbox uses it. The lock ends with the task.
    LockUpper(PathBuf),
    /// Populates the root with links or copies. They are removed with a temporary root. In a directory that the spec
    /// names as the root, they stay.
    BuildRoot(Box<BuildRoot>),
    /// One operation on the task's cgroups. Undone by killing their processes and removing them.
    Cgroup(CgroupOp),
    /// Opens a descriptor for init. The parent closes it after the clone.
    Hand(Handed),
    /// Creates the socket between the parent and init.
    Channel,
    /// Writes the steps of init to a sealed memfd.
    SealSteps,
    /// Writes the program of init to a sealed memfd.
    SealInit,
    /// Clones, and executes init in the child. Undone by killing and reaping the child.
    Clone {
        /// `CLONE_NEW*` bits.
        namespaces: u32,
        /// Whether the child is created in the task's v2 cgroup (`CLONE_INTO_CGROUP`, Linux 5.7).
        into_cgroup: bool,
    },
    /// Writes the id maps of the child's user namespace, and lets init continue.
    IdMaps(IdMaps),
    /// Waits until init could execute the command, or a step of init was refused. Init waits too.
    AwaitGate,
    /// Calls the caller's function with the handle of the task, then lets init execute the command.
    LetGo,
    /// Waits until init has executed the command or a step of init was refused.
    AwaitCommand,
    /// Waits until init has sent the prepared mount namespace or a step of init was refused.
    AwaitPrepared,
    /// Checks again whether another task reserved CPUs while this task was being created.
    CheckShare(JoinShare),
}

impl ParentOp {
    /// A short title of the operation for users.
    pub(crate) fn title(&self) -> String {
        match self {
            ParentOp::Replace { id, .. } => format!("replace the task {id}, if there is one"),
            ParentOp::ExitRecord(path) => format!("exit record {path:?}"),
            ParentOp::Log { path, .. } => format!("log {path:?}"),
            ParentOp::HoldSources { .. } => "open the sources of the root".into(),
            ParentOp::TempRoot(make) => format!("temporary root {:?}", make.path()),
            ParentOp::LockUpper(path) => format!("lock the upper directory {path:?}"),
            ParentOp::BuildRoot(build) => format!("populate the root by {}", build.method),
            ParentOp::Cgroup(op) => op.title(),
            ParentOp::Hand(handed) => format!("pass {} to init", handed.title()),
            ParentOp::Channel => "create a socket to init".into(),
            ParentOp::SealSteps => "write the steps of init to a sealed memfd".into(),
            ParentOp::SealInit => "write the program of init to a sealed memfd".into(),
            ParentOp::Clone { .. } => "clone, and execute init".into(),
            ParentOp::IdMaps(_) => "write the id maps".into(),
            ParentOp::AwaitGate => "wait until the command can be executed".into(),
            ParentOp::LetGo => "let the command go, when the caller has stored the handle".into(),
            ParentOp::AwaitCommand => "wait until the command runs".into(),
            ParentOp::AwaitPrepared => "wait for the prepared mount namespace".into(),
            ParentOp::CheckShare(_) => "check again whether CPUs are reserved".into(),
        }
    }

    /// The system calls of the operation in order, one per line, in strace's format. An operation of several calls is
    /// run with [`Kernel::recorder`], which records their text. The text of an operation of one call is written here,
    /// and [`call`](Self::call) uses it for errors too.
    pub(crate) fn calls(&self) -> Vec<String> {
        match self {
            ParentOp::Replace { unit, .. } => {
                let then =
                    "# if a task has the id; then wait until its owner has released it, and remove the rest";
                let call = match unit {
                    Some(unit) => format!("write({:?}, \"1\")", unit.join("cgroup.kill")),
                    None => "pidfd_send_signal(the first process of the task, SIGKILL)".into(),
                };
                vec![format!("{call} {then}")]
            }
            ParentOp::ExitRecord(path) => vec![
                format!("openat({:?}, O_DIRECTORY)", path.parent().unwrap_or(path)),
                format!("openat({:?}, O_RDWR|O_TMPFILE, 0600)", path.parent().unwrap_or(path)),
                format!("flock(it, LOCK_EX|LOCK_NB) # for {path:?}"),
                format!("write(it, random name of the task) # for {path:?}"),
                format!("linkat(it, {path:?})"),
            ],
            ParentOp::Log { path, size } => vec![
                format!("unlinkat({path:?}) # if it exists"),
                format!("openat({path:?}, O_RDWR|O_CREAT|O_EXCL, 0600)"),
                format!("write(it, header of a ring of {size} bytes) # for {path:?}"),
            ],
            ParentOp::HoldSources { sources, then } => {
                let line = |source| format!("openat2({source:?}, O_PATH) # later {then} for each file of it");
                sources.iter().map(line).collect()
            }
            ParentOp::TempRoot(make) => {
                let kernel = Kernel::recorder();
                // A recorder makes no call, so there is no error.
                let _ = make.run(&kernel);
                kernel.into_lines()
            }
            ParentOp::LockUpper(path) => {
                vec![format!("openat({path:?}, O_DIRECTORY)"), format!("flock({path:?}, LOCK_EX|LOCK_NB)")]
            }
            ParentOp::BuildRoot(_)
            | ParentOp::AwaitGate
            | ParentOp::AwaitCommand
            | ParentOp::AwaitPrepared
            | ParentOp::CheckShare(_) => Vec::new(),
            ParentOp::Cgroup(op) => op.calls(),
            ParentOp::Hand(handed) => handed.calls(),
            ParentOp::Channel => vec!["socketpair(AF_UNIX, SOCK_SEQPACKET)".into()],
            ParentOp::SealSteps => vec!["memfd_create(\"cofferdam-plan\")".into()],
            ParentOp::SealInit => vec!["memfd_create(\"cofferdam-init\", MFD_EXEC)".into()],
            ParentOp::Clone { namespaces, into_cgroup } => {
                vec![clone_call(*namespaces, *into_cgroup), EXECUTE_INIT.into()]
            }
            ParentOp::LetGo => vec!["sendto(status)".into()],
            ParentOp::IdMaps(maps) => maps.files().map(|(file, text)| map_call(file, text)).collect(),
        }
    }

    /// The text of the first call, or the title if there are no calls.
    pub(crate) fn call(&self) -> String {
        self.calls().into_iter().next().unwrap_or_else(|| self.title())
    }
}

/// A step of the parent.
pub(crate) type ParentStep = Step<ParentOp>;

/// The call by which the cloned child executes init.
pub(crate) const EXECUTE_INIT: &str = "execveat(memfd \"cofferdam-init\")";

fn clone_call(flags: u32, into_cgroup: bool) -> String {
    let cgroup = if into_cgroup { "|CLONE_INTO_CGROUP" } else { "" };
    let namespaces = if flags == 0 { String::new() } else { format!("|{}", namespaces(flags)) };
    format!("clone3(CLONE_VM|CLONE_VFORK|CLONE_PIDFD|CLONE_CLEAR_SIGHAND{namespaces}{cgroup})")
}

/// The text of the call that writes an id map.
pub(crate) fn map_call(file: &str, text: &str) -> String {
    format!("write(\"/proc/PID/{file}\", {text:?})")
}
