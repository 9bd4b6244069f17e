//! The plan of an additional process in a running task. The process joins the task's namespaces and cgroups, takes the
//! same ids, capabilities and filters, and executes a command of its own.
//!
//! The plan consists of the steps that the task's own plan marks with [`Phase::Enter`], and of steps that join the
//! namespaces. The process becomes visible in the task with the fork into its PID namespace, where a task with
//! `CAP_SYS_PTRACE` can take control of it. So it takes its ids, capabilities, Landlock domain and filter before.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::{checks, identity, launch, process, sources};
use crate::caps::{CapSet, Sets};
use crate::cgroup::Cgroups;
use crate::error::{Error, Result};
use crate::host::Stream;
use crate::ids::{self, Identity};
use crate::plan::{Enclosure, ParentOp, Plan};
use crate::report::Control;
use crate::spec::{ExecSpec, Stdio};
use crate::step::wire::{Dup, Op};
use crate::step::{self, Draft, Encoded, Enter, Handed, InitStep, Phase};

/// Compiles the plan of the additional process. `user` is its user, if that is not the task's. `inherited` are its
/// descriptors that give access to the host, and `name` is the name of its cgroup below the task's.
///
/// # Errors
/// [`Error::Spec`] for an invalid field.
pub(crate) fn enter(
    enclosure: &Enclosure,
    run: &ExecSpec,
    user: Option<Identity>,
    inherited: &[(String, Stream)],
    name: &str,
) -> Result<Plan> {
    checks::command(&run.command, &run.args, &run.env)?;
    checks::work_dir(run.work_dir.as_deref())?;
    process::are_descriptors(run.streams())?;
    if let Some((field, _)) = run.streams().into_iter().find(|(_, stdio)| **stdio == Stdio::Log) {
        return Err(Error::spec(field, "only a task has a log: an additional command has none"));
    }
    let mut draft = Draft { report: enclosure.report.clone(), ..Draft::default() };
    sources::streams(inherited, &mut draft);
    let mut cgroups = enclosure.cgroups.below(name);
    let steps = |at| enclosure.steps.iter().filter(move |step| step.phase == Phase::Enter(at));
    if let Some(unit) = cgroups.paths.unit.as_ref().filter(|_| cgroups.paths.into) {
        let fd = draft.hand(Handed::Cgroup(unit.clone()));
        draft.build(Control::KILL, Op::CloneInto { fd, path: step::path(unit) });
    }
    let moves = Moves { from: &enclosure.cgroups, to: &cgroups };
    steps(Enter::Outside).for_each(|step| outside(step, run, &moves, &mut draft));
    let fd = draft.hand(Handed::Task);
    let join = Op::Join { fd, kind: enclosure.namespaces, path: step::text(b"the task") };
    draft.build(Control::MOUNT_NS, join);
    let user = user.map(|user| identity::other(enclosure.other_users.as_ref(), user)).transpose()?;
    let own_users = enclosure.namespaces & libc::CLONE_NEWUSER.cast_unsigned() != 0;
    if user.as_ref().is_some_and(|(who, _)| who.uid == 0) && !own_users && limits_processes(enclosure) {
        draft.report.weaken(Control::RLIMITS, "nproc does not limit user 0, as whom the command runs");
    }
    inside(enclosure, run, user.as_ref(), &mut draft)?;
    let work_dir = work_dir(enclosure, run);
    let path = run.env.get(OsStr::new("PATH")).map(OsString::as_os_str);
    let candidates = process::candidates(&run.command, &work_dir, path)?;
    // A process that has forked into the PID namespace is tied since then.
    let tied = (!enclosure.fork_inside.is_empty()).then_some(false);
    process::find(&candidates, tied, &mut draft);
    draft.init.extend(steps(Enter::Last).cloned());
    let environment = match &user {
        Some((who, _)) => ids::environment(who),
        None => enclosure.environment.clone(),
    };
    process::exec(&run.args, &environment, &run.env, &mut draft);
    if cgroups.is_empty() {
        let why = match enclosure.fork_inside.is_empty() {
            true => {
                "without a cgroup and a PID namespace, an additional command ends neither with the task nor with the caller"
            }
            false => {
                "without a cgroup, processes that an additional command leaves behind end with the task, and not with the command"
            }
        };
        draft.report.weaken(Control::KILL, why);
    } else if enclosure.fork_inside.is_empty() {
        let why = "in the host's PID namespace, an additional command does not end with the caller";
        draft.report.note(Control::KILL, why);
    }
    let clone = ParentOp::Clone { namespaces: 0, into_cgroup: false };
    let parent = launch(&mut cgroups, draft.handed, clone, None, ParentOp::AwaitCommand);
    let Enclosure { id, namespaces, must_hold, root, .. } = enclosure.clone();
    Ok(Plan {
        id,
        report: draft.report,
        cold: None,
        masks_private: false,
        parent,
        init: draft.init,
        cgroups,
        namespaces,
        outside: false,
        fork_inside: Vec::new(),
        environment,
        other_users: None,
        must_hold,
        root,
        command: run.command.clone(),
        candidates,
    })
}

/// Whether the task has a limit of processes for its user (`RLIMIT_NPROC`).
fn limits_processes(enclosure: &Enclosure) -> bool {
    let nproc = |step: &InitStep| matches!(step.op(), Some(Op::Rlimit { resource: libc::RLIMIT_NPROC, .. }));
    enclosure.steps.iter().any(nproc)
}

/// The cgroups of the task, and those that the additional process enters instead.
struct Moves<'a> {
    from: &'a Cgroups,
    to: &'a Cgroups,
}

impl Moves<'_> {
    /// The `tasks` file that the process writes to in place of the task's.
    fn tasks(&self, of_task: PathBuf) -> PathBuf {
        let mut pairs = self.from.paths.enter.iter().zip(&self.to.paths.enter);
        let moved = pairs.find(|(from, _)| **from == of_task).map(|(_, to)| to.clone());
        moved.unwrap_or(of_task)
    }
}

/// Adds a step that runs before the namespaces are joined. It gets the descriptors of the new process in place of the
/// task's.
fn outside(step: &InitStep, run: &ExecSpec, moves: &Moves<'_>, draft: &mut Draft) {
    match step.op() {
        Some(Op::Fds { .. }) => {
            let map = process::streams(run.streams(), draft).map(|(to, from)| Dup { from, to });
            let map = Encoded::of(map);
            draft.build(step.control, Op::Fds { map: map.list() });
        }
        Some(Op::Enter { path, may_be_absent, .. }) => {
            let tasks = step::to_path(path);
            let handed = if may_be_absent {
                Handed::Share(tasks.clone())
            } else {
                Handed::Tasks(moves.tasks(tasks.clone()))
            };
            process::enter_one(handed, &tasks, draft);
        }
        _ => draft.init.push(step.clone()),
    }
}

/// Adds the steps from the namespaces to the lookup of the command.
fn inside(
    enclosure: &Enclosure,
    run: &ExecSpec,
    user: Option<&(Identity, CapSet)>,
    draft: &mut Draft,
) -> Result<()> {
    for step in enclosure.steps.iter().filter(|step| step.phase == Phase::Enter(Enter::Inside)) {
        match (step.op(), &run.work_dir, user) {
            (Some(Op::Cwd { .. }), Some(dir), _) => {
                draft.build(step.control, Op::Cwd { path: step::path(dir) });
            }
            (Some(Op::Ids { set_groups, .. }), _, Some((who, _))) => {
                let groups = Encoded::of(who.groups.iter().copied());
                let (uid, gid, groups) = (who.uid, who.gid, groups.list());
                draft.build(step.control, Op::Ids { uid, gid, set_groups, groups });
            }
            (Some(Op::Caps { .. }), _, Some((who, capabilities))) => {
                let Sets { permitted, inheritable, ambient, .. } = Sets::for_uid(who.uid, *capabilities);
                let (permitted, inheritable, ambient) =
                    (permitted.bits(), inheritable.bits(), ambient.bits());
                draft.build(step.control, Op::Caps { permitted, inheritable, ambient });
            }
            (Some(Op::Bounding { last, .. }), _, Some((_, capabilities))) => {
                draft.build(step.control, Op::Bounding { keep: capabilities.bits(), last });
            }
            _ => draft.init.push(step.clone()),
        }
    }
    let null = process::null_streams(run.streams());
    let terminal = process::terminal(run.terminal, run.streams())?;
    let (open, controlling) =
        terminal.map_or((None, None), |[open, controlling]| (Some(open), Some(controlling)));
    draft.init.extend(open);
    if null != 0 && run.terminal.is_none() {
        draft.build(Control::DEVICES, Op::Null { streams: null });
    }
    let forks = !enclosure.fork_inside.is_empty();
    let deadline = process::deadline(run.deadline, forks, draft)?;
    draft.init.extend(deadline);
    if run.deadline.is_some() && forks {
        let why = "the deadline ends an additional command, and not the processes that it has started: the next wait kills them, if the task has a cgroup";
        draft.report.weaken(Control::DEADLINE, why);
    }
    for step in &enclosure.fork_inside {
        match step.op() {
            Some(Op::ForkInside { .. }) => {
                let caller = draft.hand(Handed::CallerPidfd);
                draft.build(step.control, Op::ForkInside { caller });
            }
            _ => draft.init.push(step.clone()),
        }
    }
    draft.init.extend(controlling);
    Ok(())
}

/// The working directory of the command, from which it is looked up.
fn work_dir(enclosure: &Enclosure, run: &ExecSpec) -> PathBuf {
    let of_task = enclosure.steps.iter().find_map(|step| match step.op()? {
        Op::Cwd { path } => Some(step::to_path(path)),
        _ => None,
    });
    run.work_dir.clone().or(of_task).unwrap_or_else(|| Path::new("/").into())
}
