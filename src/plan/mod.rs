//! The plan of a sandbox: the steps of the parent, the steps of init, and the report, as data.
//!
//! Compiling a spec into a plan changes nothing on the host. A plan prints like strace; `cofferdam explain` shows that
//! text and the golden tests compare it. The steps of the parent and of init have one form: an operation, the control
//! that it serves, the consequence of a refusal, and a phase. The parent runs its steps with an undo list. The undo
//! list is the rollback of a failed spawn and the teardown of a task.
//!
//! This module makes no decisions (`compile` does) and runs no step (`spawn` and `init` do).

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::caps::CapSet;
use crate::cgroup::{CgroupOp, Cgroups};
use crate::error::{Error, Result};
use crate::ids::IdRanges;
use crate::report::{Control, Report, Require};
use crate::rootfs::changes::RootRecord;
use crate::step::wire::{self, Field, List, Op};
use crate::step::{Encoded, InitStep, Phase, call, rlimit_name};

mod gate;
mod parent;
mod prepared;

pub(crate) use parent::{EXECUTE_INIT, ParentOp, ParentStep, map_call};

/// A compiled sandbox: the steps of the parent and of init in order, and the report of the controls that will hold. Its
/// `Display` output lists the steps with their system calls in strace's format.
///
/// ```no_run
/// use cofferdam::{Control, Network, Sandbox};
///
/// let plan = Sandbox::command("make").id("job-7").network(Network::None).plan()?;
/// assert_eq!(plan.id, "job-7");
/// assert!(plan.report.enforced.contains(Control::NET_NS));
/// print!("{plan}");
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Plan {
    /// The sandbox's name, which is also in the names of its cgroup and its temporary root.
    pub id: String,
    /// The controls that hold if every step succeeds.
    pub report: Report,
    /// Why every task of the sandbox makes all of its mounts. `None` if those that are the same for every task can be
    /// prepared.
    pub(crate) cold: Option<&'static str>,
    /// Whether it masks the files of `/etc` that were private when it was made. A later task may need other masks.
    pub(crate) masks_private: bool,
    /// Steps of the parent, before the clone and while init runs.
    pub(crate) parent: Vec<ParentStep>,
    /// Steps of init.
    pub(crate) init: Vec<InitStep>,
    /// The cgroups that the parent's steps create.
    pub(crate) cgroups: Cgroups,
    /// The namespaces that the task does not share with the caller: `CLONE_NEW*` bits.
    pub(crate) namespaces: u32,
    /// Whether the process of init that stays is outside of the task's PID namespace.
    pub(crate) outside: bool,
    /// The steps by which a process that joins the task forks into its PID namespace: `setns(2)` puts only children of
    /// that process into the namespace. Empty if the task is in the caller's PID namespace.
    pub(crate) fork_inside: Vec<InitStep>,
    /// The environment variables that describe the user.
    pub(crate) environment: Vec<(String, String)>,
    /// The users that an additional command may run as. `None` in a user namespace, which maps only the task's user.
    pub(crate) other_users: Option<OtherUsers>,
    /// The controls that must be enforced.
    pub(crate) must_hold: MustHold,
    /// Record for comparing the root with its sources after the end of the task.
    pub(crate) root: Arc<RootRecord>,
    /// The command, as the spec names it.
    pub(crate) command: OsString,
    /// Paths in the root at which the command is looked for, in order.
    pub(crate) candidates: Vec<PathBuf>,
}

/// The part of a plan that a process needs to join the running task. It holds no content of files, and so no secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Enclosure {
    /// The sandbox's name.
    pub id: String,
    /// The controls that hold for the task.
    pub report: Report,
    /// Init's steps of the phase [`Enter`](Phase::Enter), in order.
    pub steps: Vec<InitStep>,
    /// The task's cgroups.
    pub cgroups: Cgroups,
    /// The namespaces that the task does not share with the caller: `CLONE_NEW*` bits.
    pub namespaces: u32,
    /// See [`Plan::outside`].
    pub outside: bool,
    /// See [`Plan::fork_inside`].
    pub fork_inside: Vec<InitStep>,
    /// See [`Plan::environment`].
    pub environment: Vec<(String, String)>,
    /// See [`Plan::other_users`].
    pub other_users: Option<OtherUsers>,
    /// See [`Plan::must_hold`].
    pub must_hold: MustHold,
    /// See [`Plan::root`].
    pub root: Arc<RootRecord>,
}

impl Enclosure {
    /// Whether the end of the cloned process ends every process of the task: it is PID 1 of the task's PID namespace.
    pub(crate) fn ends_with_init(&self) -> bool {
        self.namespaces & libc::CLONE_NEWPID.cast_unsigned() != 0 && !self.outside
    }
}

/// The users that an additional command may run as in place of the task's user.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OtherUsers {
    /// User ids that the operator's policy denies.
    pub denied_uids: IdRanges,
    /// Group ids that the operator's policy denies.
    pub denied_gids: IdRanges,
    /// The capabilities of another user than the task's: those that the spec asks for and the caller can grant.
    pub capabilities: CapSet,
    /// The user id of PID 1.
    pub pid1: u32,
}

/// The controls that must be enforced, by the spec and by the policy.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct MustHold {
    /// The requirement of the spec's author. If author and operator have none, [`Require::default`] applies.
    pub author: Option<Require>,
    /// The requirement of the operator's policy.
    pub operator: Option<Require>,
    /// Controls that may be missing unless a requirement names them.
    pub forgiven: Control,
}

impl MustHold {
    /// The requirements of author and operator. If neither has one, the default requirement.
    fn all(&self) -> impl Iterator<Item = Require> + use<> {
        let default = (self.author.is_none() && self.operator.is_none()).then_some(Require::default());
        [self.author, self.operator, default].into_iter().flatten()
    }

    /// Whether `control`, if it is asked for, must be enforced and not only weakened.
    pub(crate) fn names(&self, control: Control) -> bool {
        self.all().any(|require| require.names(control))
    }

    /// Whether every control that was asked for may be missing.
    pub(crate) fn is_best_effort(&self) -> bool {
        self.all().all(|require| require == Require::BestEffort)
    }

    /// Checks a report against the required controls.
    ///
    /// # Errors
    /// [`Error::Spec`] for a required control that the spec does not ask for. [`Error::Unsupported`] with the controls
    /// that are not enforced, and the reasons.
    pub(crate) fn check(&self, report: &Report) -> Result<()> {
        let unmet = self.all().fold(Control::empty(), |set, by| set | by.unmet(report, self.forgiven));
        if unmet.is_empty() {
            return Ok(());
        }
        let unasked = unmet.difference(report.asked);
        if !unasked.is_empty() {
            let why = format!("{unasked} must be enforced, but the spec does not ask for it");
            return Err(Error::spec("require", why));
        }
        Err(Error::Unsupported { control: unmet, reason: report.why(unmet) })
    }
}

impl Plan {
    /// The descriptors that the parent hands to init, by index.
    pub(crate) fn handed(&self) -> impl Iterator<Item = &crate::step::Handed> {
        self.parent.iter().filter_map(|step| match &step.op {
            ParentOp::Hand(handed) => Some(handed),
            _ => None,
        })
    }

    /// Encodes the program for init: the number of the socket, the numbers of the descriptors, and the steps. A
    /// descriptor is `None` if the parent found that it is not needed. Init then skips the step that refers to it.
    pub(crate) fn encode(&self, status: u32, fds: &[Option<u32>]) -> Vec<u8> {
        let mut steps = Vec::new();
        for step in &self.init {
            steps.push(u8::from(step.may_be_refused()));
            steps.extend_from_slice(step.op.wire());
        }
        let count = u32::try_from(self.init.len()).unwrap_or(u32::MAX);
        let fds = Encoded::of(fds.iter().map(|fd| fd.unwrap_or(u32::MAX)));
        let program = wire::Program { status, fds: fds.list(), steps: List::from_encoded(count, &steps) };
        let mut bytes = Vec::new();
        program.encode(&mut bytes);
        bytes
    }

    /// The part of the plan that is kept after the spawn. `report` is the report at the end of the spawn.
    pub(crate) fn enclosure(&self, report: Report) -> Enclosure {
        let steps = self.init.iter().filter(|step| matches!(step.phase, Phase::Enter(_))).cloned().collect();
        let cgroups = Cgroups { steps: Vec::new(), ..self.cgroups.clone() };
        Enclosure {
            id: self.id.clone(),
            report,
            steps,
            cgroups,
            namespaces: self.namespaces,
            outside: self.outside,
            fork_inside: self.fork_inside.clone(),
            environment: self.environment.clone(),
            other_users: self.other_users.clone(),
            must_hold: self.must_hold,
            root: Arc::clone(&self.root),
        }
    }

    /// The system calls that undo the parent's steps on the host. They are made after the end of the task. If a step of
    /// the spawn is refused, only the calls that undo the earlier steps are made.
    pub(crate) fn undo_calls(&self) -> Vec<String> {
        let ops: Vec<&CgroupOp> = self
            .parent
            .iter()
            .filter_map(|step| match &step.op {
                ParentOp::Cgroup(op) => Some(op),
                _ => None,
            })
            .collect();
        let mut lines = Cgroups::undo_calls(&ops, &self.cgroups.paths);
        lines.extend(self.parent.iter().filter_map(|step| match &step.op {
            ParentOp::TempRoot(make) => Some(make.undo_call()),
            _ => None,
        }));
        lines.extend(self.parent.iter().filter_map(|step| match &step.op {
            ParentOp::ExitRecord(path) | ParentOp::Log { path, .. } => Some(format!("unlinkat({path:?})")),
            _ => None,
        }));
        lines
    }

    /// The step of init with this index.
    pub(crate) fn init_step(&self, step: u32) -> Option<&InitStep> {
        self.init.get(usize::try_from(step).ok()?)
    }

    /// The printed line of a call of init, for an error.
    pub(crate) fn call(&self, step: u32, index: u8) -> String {
        let op = self.init_step(step).and_then(InitStep::op);
        op.map_or_else(|| "decode the plan".to_string(), |op| call(&op, index))
    }

    /// The resource limit of the task that causes this errno in init, if the spec sets one.
    fn low_rlimit(&self, errno: i32) -> Option<&'static str> {
        let resources: &[u32] = match errno {
            libc::EMFILE => &[libc::RLIMIT_NOFILE],
            libc::ENOMEM => &[libc::RLIMIT_AS, libc::RLIMIT_DATA, libc::RLIMIT_STACK],
            libc::EAGAIN => &[libc::RLIMIT_NPROC],
            _ => return None,
        };
        let limits = self.init.iter().filter_map(|step| match step.op()? {
            Op::Rlimit { resource, .. } => Some(resource),
            _ => None,
        });
        let limits: Vec<u32> = limits.collect();
        resources.iter().find(|number| limits.contains(number)).map(|number| rlimit_name(*number))
    }

    /// An explanation of a refused call of init, if the errno alone is ambiguous.
    pub(crate) fn meaning(&self, step: u32, index: u8, errno: i32) -> Option<String> {
        if let Some(name) = self.low_rlimit(errno) {
            return Some(format!("rlimits: {name} is too low to start the task"));
        }
        let op = self.init_step(step).and_then(InitStep::op)?;
        let Op::Bind { source, target, file_type, .. } = op else { return None };
        let moves = call(&op, index).starts_with("move_mount(");
        match errno {
            libc::ENOENT | libc::ELOOP if !moves => Some(format!(
                "the mount point {target:?} is a dangling symbolic link in the root, or below one"
            )),
            libc::ENOENT if moves => {
                Some(format!("the mount point {target:?} was removed or replaced during the spawn"))
            }
            libc::EINVAL | libc::ENOTDIR if moves => {
                let (is, other) = match file_type {
                    wire::FileType::Dir => ("a directory", "not a directory"),
                    wire::FileType::File => ("a file", "a directory"),
                };
                Some(format!("{source:?} is {is}, but the mount point {target:?} in the root is {other}"))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# parent")?;
        for step in &self.parent {
            print(f, step.phase, &step.op.title(), step.may_be_refused(), &step.op.calls())?;
        }
        writeln!(f, "# init")?;
        for step in &self.init {
            print(f, step.phase, &step.op.title(), step.may_be_refused(), &step.op.calls())?;
        }
        if let Some(why) = self.cold {
            writeln!(f, "# nothing is prepared: {why}")?;
        }
        writeln!(f, "# release")?;
        self.undo_calls().iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// Prints the title of a step with its phase unless it is [`Build`](Phase::Build), then its calls.
fn print(
    f: &mut fmt::Formatter<'_>,
    phase: Phase,
    title: &str,
    may_be_refused: bool,
    calls: &[String],
) -> fmt::Result {
    let phase = match phase {
        Phase::Build => "",
        Phase::Prepare => " (prepare)",
        Phase::Enter(_) => " (enter)",
    };
    let refused = if may_be_refused { " (may be refused)" } else { "" };
    writeln!(f, "# {title}{phase}{refused}")?;
    calls.iter().try_for_each(|line| writeln!(f, "  {line}"))
}
