//! What the parent does for a task's cgroups, one operation a step.

use std::path::PathBuf;

use super::{Group, Paths};
use crate::cgroup::devices::{DeviceRule, bpf};
use crate::cgroup::fs::{NewDir, inherit};
use crate::cgroup::limits::write::set;
use crate::cgroup::reserve::{JoinShare, Reserve};
use crate::cgroup::v1;
use crate::error::Result;
use crate::report::{Control, Report};
use crate::step::{Kernel, Step};

/// An operation on the group that it belongs to. What it makes is undone by [`Group::remove`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CgroupOp {
    /// Removes what an earlier task of the same name has left in another place.
    RemoveStale(PathBuf),
    /// Makes the directories of one hierarchy, parents before their children.
    Make(Vec<NewDir>),
    /// Makes the cgroup of a task with reserved processors.
    Reserve(Reserve),
    /// Keeps a task without reserved processors off those of others.
    JoinShare(JoinShare),
    /// Opens the cgroup in which all processes are found and killed, and locks it for its owner.
    Hold(PathBuf),
    /// Opens the memory cgroup of v1, whose counters are read to the end.
    HoldMemory(PathBuf),
    /// Gives a file of a v1 cpuset its parent's value, if it is blank.
    Inherit(PathBuf),
    /// Writes a control file.
    Write {
        /// The file.
        file: PathBuf,
        /// The line.
        text: String,
    },
    /// Lets the task use these devices only, by an eBPF program on its v2 cgroup.
    DeviceProgram {
        /// The cgroup.
        cgroup: PathBuf,
        /// What it allows.
        rules: Vec<DeviceRule>,
    },
    /// The same, by the files of the v1 controller.
    DeviceFiles {
        /// The cgroup.
        cgroup: PathBuf,
        /// What it allows.
        rules: Vec<DeviceRule>,
    },
}

impl CgroupOp {
    /// What a user would name it.
    pub(crate) fn title(&self) -> String {
        match self {
            CgroupOp::RemoveStale(path) => format!("nothing is left of an earlier task at {path:?}"),
            CgroupOp::Make(dirs) => {
                format!("cgroup {:?}", dirs.last().map(|dir| dir.path.as_path()).unwrap_or("".as_ref()))
            }
            CgroupOp::Reserve(reserve) => format!("reserve processors {}", reserve.reserved.text()),
            CgroupOp::JoinShare(_) => "keep off the processors that are reserved".into(),
            CgroupOp::Hold(path) | CgroupOp::HoldMemory(path) => format!("hold {path:?}"),
            CgroupOp::Inherit(file) => format!("{file:?} has a value"),
            CgroupOp::Write { file, text } => {
                format!("{} = {text}", file.file_name().unwrap_or_default().display())
            }
            CgroupOp::DeviceProgram { .. } | CgroupOp::DeviceFiles { .. } => {
                "only the declared devices".into()
            }
        }
    }

    pub(crate) fn run(
        &self,
        control: Control,
        kernel: &Kernel,
        group: &mut Group,
        report: &mut Report,
    ) -> Result<()> {
        match self {
            CgroupOp::RemoveStale(path) => group.remove_stale(kernel, path),
            CgroupOp::Make(dirs) => group.make_dirs(kernel, dirs),
            CgroupOp::Reserve(reserve) => {
                let unusable = group.reserve(kernel, reserve)?;
                unusable.into_iter().for_each(|r| report.weaken(r.control, r.why));
                Ok(())
            }
            CgroupOp::JoinShare(share) => group.join_share(kernel, share),
            CgroupOp::Hold(path) => group.hold_unit(kernel, path),
            CgroupOp::HoldMemory(path) => group.hold_memory(kernel, path),
            CgroupOp::Inherit(file) => inherit(kernel, file),
            CgroupOp::Write { file, text } => {
                set(kernel, file, text, control, report).inspect_err(|_| group.note_refused(file, text))
            }
            CgroupOp::DeviceProgram { cgroup, rules } => {
                bpf::attach(kernel, group.unit().ok(), cgroup, rules)
            }
            CgroupOp::DeviceFiles { cgroup, rules } => v1::devices::set(kernel, cgroup, rules, report),
        }
    }

    /// Its system calls, in order, on a host where no task has run yet. A line with `# if` is made only then. What is
    /// found in the place of an earlier task takes more calls to remove.
    pub(crate) fn calls(&self) -> Vec<String> {
        let kernel = Kernel::recorder();
        // A recorder is refused nothing.
        let _ = self.run(
            Control::empty(),
            &kernel,
            &mut Group::recorded(Paths::default()),
            &mut Report::default(),
        );
        kernel.into_lines()
    }
}

impl Step<CgroupOp> {
    /// Does it, or records its calls; a refusal means what the step says.
    ///
    /// # Errors
    /// [`Error::Prepare`](crate::Error::Prepare) with the call.
    pub(crate) fn run(&self, kernel: &Kernel, group: &mut Group, report: &mut Report) -> Result<()> {
        let done = self.op.run(self.control, kernel, group, report);
        done.or_else(|refused| self.on_refusal.take(refused, report))
    }
}
