//! The operations of the parent: before the clone, and beside init.

use std::path::PathBuf;

use crate::cgroup::{CgroupOp, JoinShare};
use crate::rootfs::work::{BuildRoot, MakeTempRoot};
use crate::step::{Handed, IdMaps, Kernel, Step, namespaces};

/// An operation of the parent. `spawn` carries it out; what it makes is undone by the task's undo list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ParentOp {
    /// Opens the sources that are linked or copied into the root. It is done before there is a plan, which depends on
    /// what is found.
    HoldSources {
        /// By the names of the spec.
        sources: Vec<PathBuf>,
        /// The call that is made later for each file of them.
        then: &'static str,
    },
    /// Makes the temporary directory that becomes the root. Undone by removing it with all in it.
    TempRoot(MakeTempRoot),
    /// Links or copies what populates the root. What stands in a temporary root is removed with it; what stands in a
    /// directory of the author's own stays.
    BuildRoot(Box<BuildRoot>),
    /// One operation on the task's cgroups. Undone by killing what is in them and removing them.
    Cgroup(CgroupOp),
    /// Opens a descriptor for init. Closed after the clone.
    Hand(Handed),
    /// Makes the socket between the parent and init.
    Channel,
    /// Seals the steps of init into a memfd.
    SealSteps,
    /// Seals the program of init into a memfd.
    SealInit,
    /// Clones, and executes init in the child. Undone by killing and reaping it.
    Clone {
        /// `CLONE_NEW*` bits.
        namespaces: u32,
        /// Whether the child is born in the task's v2 cgroup (`CLONE_INTO_CGROUP`, Linux 5.7).
        into_cgroup: bool,
    },
    /// Writes the id maps of the child's user namespace, and lets init go on.
    IdMaps(IdMaps),
    /// Waits until the command has been executed, or a step of init was refused.
    AwaitCommand,
    /// Looks again whether processors were reserved while the task was being born.
    CheckShare(JoinShare),
}

impl ParentOp {
    /// What a user would name it.
    pub(crate) fn title(&self) -> String {
        match self {
            ParentOp::HoldSources { .. } => "hold what populates the root".into(),
            ParentOp::TempRoot(make) => format!("temporary root {:?}", make.path()),
            ParentOp::BuildRoot(build) => format!("populate the root by {}", build.method),
            ParentOp::Cgroup(op) => op.title(),
            ParentOp::Hand(handed) => format!("hand over {}", handed.title()),
            ParentOp::Channel => "a socket to init".into(),
            ParentOp::SealSteps => "the steps of init, sealed".into(),
            ParentOp::SealInit => "the program of init, sealed".into(),
            ParentOp::Clone { .. } => "clone, and execute init".into(),
            ParentOp::IdMaps(_) => "write the id maps".into(),
            ParentOp::AwaitCommand => "wait until the command runs".into(),
            ParentOp::CheckShare(_) => "look again whether processors are reserved".into(),
        }
    }

    /// Its system calls, in order, one a line, in the manner of strace. An operation of several calls is run with a
    /// recorder; the text of a single call is that of its error.
    pub(crate) fn calls(&self) -> Vec<String> {
        match self {
            ParentOp::HoldSources { sources, then } => {
                let line = |source| format!("openat2({source:?}, O_PATH) # later {then} for each file of it");
                sources.iter().map(line).collect()
            }
            ParentOp::TempRoot(make) => {
                let kernel = Kernel::recorder();
                // A recorder is refused nothing.
                let _ = make.run(&kernel);
                kernel.into_lines()
            }
            ParentOp::BuildRoot(_) | ParentOp::AwaitCommand | ParentOp::CheckShare(_) => Vec::new(),
            ParentOp::Cgroup(op) => op.calls(),
            ParentOp::Hand(handed) => vec![handed.call()],
            ParentOp::Channel => vec!["socketpair(AF_UNIX, SOCK_SEQPACKET)".into()],
            ParentOp::SealSteps => vec!["memfd_create(\"cofferdam-plan\")".into()],
            ParentOp::SealInit => vec!["memfd_create(\"cofferdam-init\", MFD_EXEC)".into()],
            ParentOp::Clone { namespaces, into_cgroup } => {
                vec![clone_call(*namespaces, *into_cgroup), EXECUTE_INIT.into()]
            }
            ParentOp::IdMaps(maps) => maps.files().map(|(file, text)| map_call(file, text)).collect(),
        }
    }

    /// The text of its only call, or of its first.
    pub(crate) fn call(&self) -> String {
        self.calls().into_iter().next().unwrap_or_else(|| self.title())
    }
}

/// A step of the parent.
pub(crate) type ParentStep = Step<ParentOp>;

/// The call of the cloned child.
pub(crate) const EXECUTE_INIT: &str = "execveat(memfd \"cofferdam-init\")";

fn clone_call(flags: u32, into_cgroup: bool) -> String {
    let cgroup = if into_cgroup { "|CLONE_INTO_CGROUP" } else { "" };
    let namespaces = if flags == 0 { String::new() } else { format!("|{}", namespaces(flags)) };
    format!("clone3(CLONE_VM|CLONE_VFORK|CLONE_PIDFD|CLONE_CLEAR_SIGHAND{namespaces}{cgroup})")
}

/// The write of an id map.
pub(crate) fn map_call(file: &str, text: &str) -> String {
    format!("write(\"/proc/PID/{file}\", {text:?})")
}
