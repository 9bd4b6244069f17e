//! The operations of the parent on a task's cgroups, one for each step.

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

/// An operation on one group. [`Group::remove`] undoes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CgroupOp {
    /// Removes a stale cgroup of an earlier task of the same name, if one exists at this path.
    RemoveStale(PathBuf),
    /// Creates the directories of one hierarchy, parents before their children.
    Make(Vec<NewDir>),
    /// Creates the cgroup of a task with reserved CPUs.
    Reserve(Reserve),
    /// Keeps a task without reserved CPUs off the CPUs that other tasks have reserved.
    JoinShare(JoinShare),
    /// Opens the unit cgroup, in which all processes are found and killed, and takes the owner lock on it.
    Hold {
        unit: PathBuf,
        /// Whether the unit was made with a reservation of CPUs.
        reserved: bool,
    },
    /// Opens the v1 memory cgroup. Its counters stay readable until the group is removed.
    HoldMemory(PathBuf),
    /// Copies the parent's value to a blank file of a v1 cpuset.
    Inherit(PathBuf),
    /// Writes a control file.
    Write {
        file: PathBuf,
        /// The text to write.
        text: String,
    },
    /// Restricts the task to these devices with an eBPF program on its v2 cgroup.
    DeviceProgram {
        cgroup: PathBuf,
        /// The allowed devices.
        rules: Vec<DeviceRule>,
    },
    /// Restricts the task to these devices with the files of the v1 devices controller.
    DeviceFiles {
        cgroup: PathBuf,
        /// The allowed devices.
        rules: Vec<DeviceRule>,
    },
}

impl CgroupOp {
    /// A short description for users.
    pub(crate) fn title(&self) -> String {
        match self {
            CgroupOp::RemoveStale(path) => format!("remove the cgroup {path:?} if it is stale"),
            CgroupOp::Make(dirs) => {
                format!("cgroup {:?}", dirs.last().map(|dir| dir.path.as_path()).unwrap_or("".as_ref()))
            }
            CgroupOp::Reserve(reserve) => format!("reserve CPUs {}", reserve.reserved.text()),
            CgroupOp::JoinShare(_) => "keep the task off reserved CPUs".into(),
            CgroupOp::Hold { unit: path, .. } | CgroupOp::HoldMemory(path) => format!("open cgroup {path:?}"),
            CgroupOp::Inherit(file) => format!("inherit {file:?} from the parent cgroup"),
            CgroupOp::Write { file, text } => {
                format!("{} = {text}", file.file_name().unwrap_or_default().display())
            }
            CgroupOp::DeviceProgram { .. } | CgroupOp::DeviceFiles { .. } => {
                "restrict the task to the declared devices".into()
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
                let shortfalls = group.reserve(kernel, reserve)?;
                shortfalls.into_iter().for_each(|r| report.weaken(r.control, r.why));
                Ok(())
            }
            CgroupOp::JoinShare(share) => group.join_share(kernel, share),
            CgroupOp::Hold { unit, reserved } => group.hold_unit(kernel, unit, *reserved),
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

    /// The system calls of the operation, in order, on a host where no task has run yet. A line with `# if` is a call
    /// that is made only under that condition. Removing a stale cgroup takes more calls.
    pub(crate) fn calls(&self) -> Vec<String> {
        let kernel = Kernel::recorder();
        // A recording kernel refuses no call.
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
    /// Runs the operation, or records its calls. A refused call is handled as the step says: fail, skip or degrade.
    ///
    /// # Errors
    /// [`Error::Prepare`](crate::Error::Prepare) with the call.
    pub(crate) fn run(&self, kernel: &Kernel, group: &mut Group, report: &mut Report) -> Result<()> {
        let done = self.op.run(self.control, kernel, group, report);
        done.or_else(|refused| self.on_refusal.take(refused, report))
    }
}
