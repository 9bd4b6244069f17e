//! The process of init that stays beside the command: which one stays, what it watches, and what it writes.

use std::path::PathBuf;

use super::identity::Mapping;
use super::process;
use crate::caps::CapSet;
use crate::cgroup::Cgroups;
use crate::error::Result;
use crate::host::Host;
use crate::ids::Identity;
use crate::ns::IsolationMode;
use crate::report::Control;
use crate::spec::{DieWith, Policy, SandboxSpec};
use crate::step::wire::Op;
use crate::step::{Draft, Handed, InitStep};

/// The process of init that stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stays {
    /// None: the cloned process executes the command.
    No,
    /// PID 1 of the task's PID namespace.
    Pid1,
    /// A process outside of the task's PID namespace, in which the command is PID 1.
    Outside,
    /// A process in the host's PID namespace, with the command.
    Beside,
}

impl Stays {
    /// Without [`init`](SandboxSpec::init), or in the host's PID namespace, a process stays only to write the files of the
    /// policy's `state_dir`.
    pub(super) fn of(policy: &Policy, spec: &SandboxSpec, host: &Host, pid: IsolationMode) -> Stays {
        let writes = policy.state_dir.is_some();
        // It kills the command, which may have any user. In a user namespace it has every capability.
        let may_kill = !host.privileged() || host.held.has("kill");
        match pid {
            IsolationMode::Private if spec.init => Stays::Pid1,
            IsolationMode::Private if writes && may_kill => Stays::Outside,
            IsolationMode::Host if writes => Stays::Beside,
            _ => Stays::No,
        }
    }

    /// Whether a process stays.
    pub(super) fn any(self) -> bool {
        self != Stays::No
    }

    /// Whether the end of the process ends every process of the task. In the host's PID namespace it does not.
    pub(super) fn ends_task(self) -> bool {
        matches!(self, Stays::Pid1 | Stays::Outside)
    }

    /// The timers of the task's deadlines. Adds the deadlines to the report.
    ///
    /// # Errors
    /// [`Error::Spec`](crate::Error::Spec) for a time out of range.
    pub(super) fn timers(
        self,
        spec: &SandboxSpec,
        cgroups: &Cgroups,
        draft: &mut Draft,
    ) -> Result<Vec<InitStep>> {
        let wall = process::deadline(spec.deadline, self.ends_task(), draft)?;
        let cpu = process::cpu_deadline(spec, self.ends_task(), cgroups, draft)?;
        Ok(wall.into_iter().chain(cpu).collect())
    }
}

/// The files that the process writes.
#[derive(Default)]
pub(super) struct Files {
    /// The exit record.
    pub exit_record: Option<PathBuf>,
    /// The log.
    pub log: Option<PathBuf>,
}

/// What the process that stays depends on.
pub(super) struct Stay<'a> {
    pub policy: &'a Policy,
    pub spec: &'a SandboxSpec,
    pub host: &'a Host,
    pub identity: &'a Identity,
    pub mapping: Mapping,
    /// The bounding set of the command.
    pub bounding: CapSet,
    pub id: &'a str,
    pub stays: Stays,
}

impl Stay<'_> {
    /// Adds the steps for the files and the fork, and the exit record to the report.
    ///
    /// # Errors
    /// [`Error::Spec`](crate::Error::Spec) if nothing could write the log.
    pub(super) fn lower(&self, draft: &mut Draft) -> Result<Files> {
        let Stay { policy, spec, id, stays, .. } = *self;
        let exit_record = process::exit_record(policy, id, stays.any(), draft);
        let log = process::log(spec, policy.state_dir.as_deref(), id, stays.any(), draft)?;
        if stays.any() {
            let dies = stays.ends_task() && spec.die_with == DieWith::Driver;
            let caller = if dies { draft.hand(Handed::CallerPidfd) } else { u32::MAX };
            draft.init.push(self.fork(caller));
        }
        Ok(Files { exit_record, log })
    }

    /// The step in which init forks. The parent stays, reaps processes and reports the exit status. The child continues
    /// with the next steps, after the parent has given up all privileges that reaping does not need. `caller` is the index
    /// of a pidfd of the caller.
    fn fork(&self, caller: u32) -> InitStep {
        let (uid, gid) = super::identity::pid1(self.host, self.identity, self.mapping);
        let (set_groups, bounding) = (self.mapping != Mapping::Caller, self.bounding.bits());
        let gate = u32::MAX;
        let op = match self.stays {
            Stays::Outside => Op::ForkOutside { uid, gid, set_groups, bounding, caller, gate },
            _ => Op::Fork { uid, gid, set_groups, bounding, caller, gate },
        };
        InitStep::new(Control::PID_NS, op)
    }
}
