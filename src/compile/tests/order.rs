//! What is true of every plan, whatever the spec and the host: the order of its steps, its report and its wire format.

use super::*;
use crate::step::wire::{Field, Program};
use crate::step::{InitStep, Phase, StreamSource};

/// Asserts everything that this module checks.
#[track_caller]
pub(super) fn holds(case: &Case, plan: &Plan) {
    report(case, plan);
    gated(plan);
    in_order(plan);
    mounts_in_order(plan);
    descriptors(plan);
    parent_in_order(plan);
    survives_the_wire(plan);
    joins_in_order(plan);
    prepare::holds(case, plan);
    assert_eq!(has_maps(plan), clone_flags(plan) & libc::CLONE_NEWUSER.cast_unsigned() != 0);
    // The command is PID 1 of a namespace that the process outside makes.
    let made = clone_flags(plan) & libc::CLONE_NEWPID.cast_unsigned() != 0;
    assert!(!has_outside(plan) || !made);
    assert_eq!(plan.outside, has_outside(plan));
}

/// Asserts the same of the plan with a gate, which has every step of the other one.
fn gated(plan: &Plan) {
    let gated = plan.clone().gated().unwrap();
    in_order(&gated);
    descriptors(&gated);
    parent_in_order(&gated);
    survives_the_wire(&gated);
    let gates = gated.init.iter().filter_map(|step| match op(step) {
        Op::Fork { gate, .. } | Op::ForkOutside { gate, .. } | Op::Gate { caller: gate } => Some(gate),
        _ => None,
    });
    let gates: Vec<u32> = gates.collect();
    let of_caller = gates.iter().filter(|fd| **fd != u32::MAX).count();
    assert_eq!(of_caller, 1, "one process watches the caller: {gates:?}");
}

pub(super) fn op(step: &InitStep) -> Op<'_> {
    step.op().unwrap()
}

/// Whether the parent writes the id maps of a user namespace.
pub(super) fn has_maps(plan: &Plan) -> bool {
    plan.parent.iter().any(|step| matches!(step.op, ParentOp::IdMaps(_)))
}

/// Whether a process of init stays as PID 1.
pub(super) fn has_pid_1(plan: &Plan) -> bool {
    plan.init.iter().any(|step| matches!(op(step), Op::Fork { .. }))
}

/// Whether a process of init stays outside of the task's PID namespace.
fn has_outside(plan: &Plan) -> bool {
    plan.init.iter().any(|step| matches!(op(step), Op::ForkOutside { .. }))
}

pub(super) fn clone_flags(plan: &Plan) -> u32 {
    let flags = |step: &ParentStep| match step.op {
        ParentOp::Clone { namespaces, .. } => Some(namespaces),
        _ => None,
    };
    plan.parent.iter().find_map(flags).unwrap()
}

fn report(case: &Case, plan: &Plan) {
    let r = &plan.report;
    assert_eq!(r.asked, r.enforced | r.weakened | r.missing, "{r}");
    for (a, b) in [(r.enforced, r.weakened), (r.enforced, r.missing), (r.weakened, r.missing)] {
        assert!(!a.intersects(b), "two of the three have {}:\n{r}", a & b);
    }
    for control in (r.weakened | r.missing).iter() {
        assert!(!r.why(control).is_empty(), "no reason for {control}:\n{r}");
    }
    for reason in &r.reasons {
        assert!(!reason.control.is_empty() && !reason.why.is_empty(), "{reason:?}");
    }
    let always = Control::MOUNT_NS | Control::ROOT_SWITCH | Control::HOST_FILES | Control::MASKED_PATHS;
    let always =
        always | Control::DEVICES | Control::IDS | Control::CAPS | Control::OOM_SCORE | Control::KILL;
    assert!(r.asked.contains(always), "{r}");
    assert!(r.asked.contains(case.spec.limits.asked()), "{r}");
    // The control of a step that may be refused must be in the report.
    for step in plan.init.iter().filter(|step| step.may_be_refused()) {
        assert!(!step.control.is_empty() && r.asked.contains(step.control), "{}", step.op.title());
    }
}

/// The stages of init's steps, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Only in the plan of a process that joins a running task: it is in its cgroup before anything else.
    Copy,
    IdMaps,
    OomScore,
    Session,
    ResetScheduling,
    Descriptors,
    Namespaces,
    Cgroups,
    Affinity,
    /// Before any fork, so that the process that stays has little left to drop.
    Bounding,
    /// The process that stays outside of the PID namespace forks before anything is mounted: a proc file system shows the
    /// PID namespace of the process that mounts it.
    Outside(Watch),
    CgroupNamespace,
    Trees,
    User,
    /// Only in the plan that prepares mounts, as `SendPrepared`: the host's /proc is still there.
    OpenPrepared,
    Propagation,
    Upper,
    Root,
    Mounts,
    Seals,
    Streams,
    Switch,
    SendPrepared,
    SharedFilter,
    Pid1(Watch),
    Rlimits,
    /// Without no_new_privs, a Landlock domain and a filter need CAP_SYS_ADMIN, which is dropped later.
    PrivilegedLandlock,
    PrivilegedFilter,
    Ids,
    Capabilities,
    NoNewPrivs,
    Landlock,
    WorkDir,
    Umask,
    /// Owned by the task's user.
    Terminal,
    ControllingTerminal,
    Name,
    Lookup,
    AwaitPid1,
    /// The task's filter may refuse its calls.
    Gate,
    /// The last stage before the exec, as the filter may refuse calls of the earlier steps.
    Filter,
    Exec,
}

/// The stages of the process that stays, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Watch {
    Deadline,
    CpuDeadline,
    ExitRecord,
    Log,
    Fork,
}

/// The stage of an operation. Each new operation needs a stage here.
fn stage(op: &Op<'_>, (no_new_privs, outside): (bool, bool)) -> Stage {
    let watch = |watch| if outside { Stage::Outside(watch) } else { Stage::Pid1(watch) };
    match op {
        Op::CloneInto { .. } => Stage::Copy,
        Op::AwaitIdMaps {} => Stage::IdMaps,
        // Written to the host's /proc, as the caller.
        Op::OomScore { .. } => Stage::OomScore,
        Op::Session {} => Stage::Session,
        // A real-time process cannot enter a cgroup that has no real-time budget.
        Op::ResetScheduling {} => Stage::ResetScheduling,
        Op::Fds { .. } => Stage::Descriptors,
        Op::Join { .. } | Op::Loopback {} | Op::Hostname { .. } => Stage::Namespaces,
        Op::Enter { .. } => Stage::Cgroups,
        // Entering a cpuset narrows the process's CPU affinity.
        Op::Affinity {} => Stage::Affinity,
        // A cgroup namespace is rooted at the process's current cgroups.
        Op::Unshare { .. } => Stage::CgroupNamespace,
        // Before propagation is set to slave, or the copies would be slaves too.
        Op::Tree { .. } => Stage::Trees,
        Op::Become { .. } => Stage::User,
        Op::OpenPrepared {} => Stage::OpenPrepared,
        // It replaces the steps from here to the root.
        Op::Propagation { .. } | Op::EnterPrepared { .. } => Stage::Propagation,
        // The root is mounted over it.
        Op::Upper { .. } | Op::UpperBind { .. } => Stage::Upper,
        Op::RootTmpfs { .. } | Op::RootBind { .. } => Stage::Root,
        Op::Dir { .. }
        | Op::Bind { .. }
        | Op::Mount { .. }
        | Op::Symlink { .. }
        | Op::Node { .. }
        | Op::MaskSource {}
        | Op::MaskFile { .. }
        | Op::MaskDir { .. }
        | Op::Restrict { .. }
        | Op::Overlay { .. }
        | Op::Share { .. }
        | Op::Empty { .. }
        | Op::File { .. }
        | Op::Write { .. } => Stage::Mounts,
        Op::Seal { path, .. } if path.bytes() == b"/dev" => Stage::Mounts,
        Op::Seal { .. } => Stage::Seals,
        // The null device of the sealed /dev.
        Op::Null { .. } => Stage::Streams,
        Op::PivotRoot {} | Op::MoveRoot {} | Op::EnterRoot {} => Stage::Switch,
        Op::SendPrepared {} => Stage::SendPrepared,
        // The filter applies to both PID 1 and the task.
        Op::CommonFilter { .. } => Stage::SharedFilter,
        Op::Deadline { .. } => watch(Watch::Deadline),
        Op::ExitRecord { .. } => watch(Watch::ExitRecord),
        Op::Log { .. } => watch(Watch::Log),
        Op::CpuDeadline { .. } => watch(Watch::CpuDeadline),
        Op::ForkOutside { .. } => Stage::Outside(Watch::Fork),
        // The second one only in the plan of a process that joins a running task.
        Op::Fork { .. } | Op::ForkInside { .. } => Stage::Pid1(Watch::Fork),
        Op::Rlimit { .. } => Stage::Rlimits,
        Op::Landlock { .. } if no_new_privs => Stage::Landlock,
        Op::Landlock { .. } => Stage::PrivilegedLandlock,
        Op::Filter { .. } if no_new_privs => Stage::Filter,
        Op::Filter { .. } => Stage::PrivilegedFilter,
        // Dropping capabilities from the bounding set needs CAP_SETPCAP; changing ids needs CAP_SETUID and CAP_SETGID.
        Op::Bounding { .. } => Stage::Bounding,
        Op::Ids { .. } => Stage::Ids,
        Op::Caps { .. } => Stage::Capabilities,
        Op::NoNewPrivs {} => Stage::NoNewPrivs,
        Op::Cwd { .. } => Stage::WorkDir,
        Op::Umask { .. } => Stage::Umask,
        Op::Terminal { .. } => Stage::Terminal,
        Op::ControllingTerminal {} => Stage::ControllingTerminal,
        Op::Name { .. } => Stage::Name,
        Op::Find { .. } => Stage::Lookup,
        Op::AwaitPid1 { .. } => Stage::AwaitPid1,
        Op::Gate { .. } => Stage::Gate,
        Op::Exec { .. } => Stage::Exec,
    }
}

/// The allowed number of steps of a stage.
fn count(stage: Stage) -> std::ops::RangeInclusive<usize> {
    match stage {
        Stage::Session
        | Stage::ResetScheduling
        | Stage::Descriptors
        | Stage::Affinity
        | Stage::Propagation
        | Stage::Root
        | Stage::Switch
        | Stage::Bounding
        | Stage::Ids
        | Stage::Capabilities
        | Stage::WorkDir
        | Stage::Umask
        | Stage::Lookup
        | Stage::Exec => 1..=1,
        Stage::Copy
        | Stage::IdMaps
        | Stage::OomScore
        | Stage::CgroupNamespace
        | Stage::User
        | Stage::Upper
        | Stage::Streams
        | Stage::SharedFilter
        | Stage::Outside(_)
        | Stage::Pid1(_)
        | Stage::PrivilegedLandlock
        | Stage::PrivilegedFilter
        | Stage::NoNewPrivs
        | Stage::Landlock
        | Stage::Terminal
        | Stage::ControllingTerminal
        | Stage::OpenPrepared
        | Stage::Seals
        | Stage::SendPrepared
        | Stage::Name
        | Stage::AwaitPid1
        | Stage::Gate
        | Stage::Filter => 0..=1,
        Stage::Namespaces => 0..=2,
        Stage::Mounts => 1..=usize::MAX,
        Stage::Cgroups | Stage::Trees | Stage::Rlimits => 0..=usize::MAX,
    }
}

/// What the stage of an operation depends on: whether no_new_privs is set, and whether a process stays outside of the PID
/// namespace.
fn kind(plan: &Plan) -> (bool, bool) {
    (plan.init.iter().any(|step| matches!(op(step), Op::NoNewPrivs {})), has_outside(plan))
}

fn stages(plan: &Plan) -> Vec<Stage> {
    plan.init.iter().map(|step| stage(&op(step), kind(plan))).collect()
}

/// Asserts the order of the steps that there are, and their number. Returns their stages.
fn sorted(plan: &Plan) -> Vec<Stage> {
    let stages = stages(plan);
    assert!(stages.is_sorted(), "{stages:?}");
    for at in &stages {
        let found = stages.iter().filter(|stage| *stage == at).count();
        assert!(count(*at).contains(&found), "{found} of {at:?} in {stages:?}");
    }
    stages
}

/// Asserts the order of the steps that prepare mounts.
pub(super) fn prepares_in_order(common: &Plan) {
    let stages = sorted(common);
    for must in [Stage::OpenPrepared, Stage::Root, Stage::Mounts, Stage::Seals, Stage::Switch] {
        assert!(stages.contains(&must), "no {must:?} in {stages:?}");
    }
    assert_eq!(stages.last(), Some(&Stage::SendPrepared));
}

fn in_order(plan: &Plan) {
    let stages = sorted(plan);
    for must in [Stage::Session, Stage::Descriptors, Stage::Root, Stage::Mounts, Stage::Switch] {
        assert!(stages.contains(&must), "no {must:?} in {stages:?}");
    }
    for must in [Stage::Bounding, Stage::Ids, Stage::Capabilities, Stage::WorkDir, Stage::Exec] {
        assert!(stages.contains(&must), "no {must:?} in {stages:?}");
    }
    assert_eq!(stages.first() == Some(&Stage::IdMaps), has_maps(plan));
    let stays = stages.iter().any(|at| matches!(at, Stage::Pid1(Watch::Fork) | Stage::Outside(Watch::Fork)));
    assert_eq!(stages.contains(&Stage::AwaitPid1), stays, "the command waits for the process that stays");
    // A process that joins the sandbox later repeats no step that mounts or makes a file.
    for (step, at) in plan.init.iter().zip(stages) {
        let inside = (Stage::Trees..=Stage::Switch).contains(&at) && at != Stage::User;
        assert!(!inside || !matches!(step.phase, Phase::Enter(_)), "{}", step.op.title());
    }
}

/// Asserts the order of the steps of a process that joins the task: before it forks into the PID namespace, where the
/// task can take control of it, it has everything that confines the task.
fn joins_in_order(plan: &Plan) {
    let size = crate::spec::WindowSize { rows: 1, columns: 2 };
    let command = crate::spec::ExecSpec::command("sh").terminal(size);
    let joined = enter::enter(&plan.enclosure(plan.report.clone()), &command, None, &[], "exec-1").unwrap();
    let (no_new_privs, _) = kind(plan);
    let ops: Vec<Op<'_>> = joined.init.iter().map(op).collect();
    let fork = ops.iter().position(|op| matches!(op, Op::ForkInside { .. }));
    let own = |stage: &Stage| {
        (Stage::Rlimits..Stage::Terminal).contains(stage)
            || matches!(stage, Stage::SharedFilter | Stage::Bounding)
    };
    // The same steps as the task's, in the same order.
    let of_task: Vec<Op<'_>> = plan.init.iter().map(op).filter(|op| own(&stage(op, kind(plan)))).collect();
    let before = &ops[..fork.unwrap_or(ops.len())];
    let confines: Vec<Op<'_>> = before.iter().copied().filter(|op| own(&stage(op, kind(plan)))).collect();
    assert_eq!(confines, of_task);
    let copies = |op: &Op<'_>| matches!(op, Op::CloneInto { .. });
    let unit = plan.cgroups.paths.unit.as_ref().filter(|_| plan.cgroups.paths.into);
    assert_eq!(ops.iter().position(copies), unit.map(|_| 0));
    assert!(!plan.init.iter().any(|step| copies(&op(step))));
    let in_pid_namespace = plan.namespaces & libc::CLONE_NEWPID.cast_unsigned() != 0;
    assert_eq!(fork.is_some(), in_pid_namespace);
    let awaits = |ops: &[Op<'_>]| ops.iter().any(|op| matches!(op, Op::AwaitPid1 { .. }));
    assert_eq!(awaits(&ops), fork.is_some(), "the command waits for the process that stays");
    let filtered = plan.init.iter().any(|step| matches!(op(step), Op::Filter { .. }));
    if let Some(fork) = fork {
        let has_filter = ops[..fork].iter().any(|op| matches!(op, Op::Filter { .. }));
        assert_eq!(has_filter, filtered, "the filter is loaded before the fork");
        for after in ops[fork..].iter().skip(1) {
            let late =
                [Stage::ControllingTerminal, Stage::Lookup, Stage::AwaitPid1, Stage::Filter, Stage::Exec];
            assert!(late.contains(&stage(after, kind(plan))), "{after:?}");
        }
    }
    let filters = |ops: &[Op<'_>]| ops.iter().filter(|op| matches!(op, Op::Filter { .. })).count();
    let entry = [filtered, filtered && no_new_privs && in_pid_namespace];
    assert_eq!(filters(&ops), entry.into_iter().filter(|is| *is).count());
    descriptors(&joined);
}

/// Asserts the order of the mount steps.
fn mounts_in_order(plan: &Plan) {
    let position = |wanted: fn(&Op<'_>) -> bool| plan.init.iter().position(|step| wanted(&op(step)));
    let seal = position(|op| matches!(op, Op::Seal { .. })).unwrap();
    let sealed: Vec<Vec<u8>> = plan
        .init
        .iter()
        .filter_map(|step| match op(step) {
            Op::Seal { path, .. } => Some(path.bytes().to_vec()),
            _ => None,
        })
        .collect();
    assert!(sealed == [b"/dev".to_vec()] || sealed == [b"/dev".to_vec(), b"/".to_vec()], "{sealed:?}");
    let mounted = |at: &'static [u8]| {
        plan.init.iter().position(|step| match op(step) {
            Op::Bind { target, .. } | Op::Mount { target, .. } => target.bytes() == at,
            _ => false,
        })
    };
    let (dev, proc) = (mounted(b"/dev").unwrap(), mounted(b"/proc").unwrap());
    for (i, step) in plan.init.iter().enumerate() {
        match op(step) {
            // Made in /dev, or in another file system that the sandbox mounts.
            Op::File { .. } | Op::Write { .. } | Op::Symlink { .. } | Op::Node { .. } => {
                assert!(dev < i, "{} before /dev", step.op.title());
            }
            // Paths of /proc and /sys are masked after those are mounted, paths of the root's entries right after the
            // entries.
            Op::MaskFile { path } | Op::MaskDir { path } => {
                // A mask of a file is a copy of a mount of /dev, with its attributes.
                let of_file = matches!(op(step), Op::MaskFile { .. });
                assert!(!of_file || seal < i, "{} before /dev is read-only", step.op.title());
                let kernels = path.bytes().starts_with(b"/proc/") || path.bytes().starts_with(b"/sys/");
                assert!(!kernels || proc < i, "{} before /proc", step.op.title());
            }
            // A device of the spec is bound into /dev before /dev becomes read-only.
            Op::Bind { target, .. } | Op::Mount { target, .. } => {
                assert!(!target.bytes().starts_with(b"/dev") || i < seal, "{}", step.op.title());
            }
            _ => {}
        }
    }
}

/// Asserts the order of the parent's steps: sources are held before they are used, and everything that the host can
/// refuse comes before the clone.
fn parent_in_order(plan: &Plan) {
    #[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
    enum Part {
        Sources,
        Replace,
        ExitRecord,
        Log,
        Upper,
        Root,
        Populate,
        Cgroups,
        Descriptors,
        Channel,
        Steps,
        Init,
        Clone,
        IdMaps,
        Command,
        Check,
        LetGo,
        Executed,
    }
    let gated = plan.parent.iter().any(|step| matches!(step.op, ParentOp::LetGo));
    let part = |step: &ParentStep| match &step.op {
        ParentOp::Replace { .. } => Part::Replace,
        // It is created if no other sandbox has its name, so before anything stale is removed.
        ParentOp::ExitRecord(_) => Part::ExitRecord,
        ParentOp::Log { .. } => Part::Log,
        ParentOp::HoldSources { .. } => Part::Sources,
        ParentOp::LockUpper(_) => Part::Upper,
        ParentOp::TempRoot(_) => Part::Root,
        ParentOp::BuildRoot(_) => Part::Populate,
        // The cgroups are undone before the root, because their processes use it.
        ParentOp::Cgroup(_) => Part::Cgroups,
        ParentOp::Hand(_) => Part::Descriptors,
        ParentOp::Channel => Part::Channel,
        ParentOp::SealSteps => Part::Steps,
        ParentOp::SealInit => Part::Init,
        ParentOp::Clone { .. } => Part::Clone,
        ParentOp::IdMaps(_) => Part::IdMaps,
        ParentOp::AwaitCommand if gated => Part::Executed,
        ParentOp::AwaitGate | ParentOp::AwaitCommand | ParentOp::AwaitPrepared => Part::Command,
        ParentOp::LetGo => Part::LetGo,
        ParentOp::CheckShare(_) => Part::Check,
    };
    let parts: Vec<Part> = plan.parent.iter().map(part).collect();
    assert!(parts.is_sorted(), "{parts:?}");
    for once in [Part::Channel, Part::Steps, Part::Init, Part::Clone, Part::Command] {
        assert_eq!(parts.iter().filter(|part| **part == once).count(), 1, "{once:?} in {parts:?}");
    }
}

/// Asserts that each descriptor that is handed over is used exactly once, and that each source is turned into a tree
/// before the sandbox mounts anything. Init does that if the parent may not.
fn descriptors(plan: &Plan) {
    let mut used = Vec::new();
    let mut trees = Vec::new();
    let mut mounting = false;
    let all: Vec<&Handed> = plan.handed().collect();
    let handed = |fd: u32| all[usize::try_from(fd).unwrap()];
    for step in &plan.init {
        match op(step) {
            Op::Fds { map } => {
                for dup in map.iter() {
                    let null = matches!(handed(dup.from), Handed::Stream(_, StreamSource::Null));
                    // All standard streams that are /dev/null have one.
                    if !null || !used.contains(&dup.from) {
                        used.push(dup.from);
                    }
                }
                let to: Vec<u32> = map.iter().map(|dup| dup.to).collect();
                assert!(to.starts_with(&[0, 1, 2]) && to.is_sorted_by(|a, b| a < b), "{to:?}");
            }
            Op::Join { fd, .. }
            | Op::Enter { fd, .. }
            | Op::CloneInto { fd, .. }
            | Op::CpuDeadline { fd, .. }
            | Op::ExitRecord { fd, .. }
            | Op::ForkInside { caller: fd } => used.push(fd),
            Op::Log { fd, stdout, stderr, .. } => {
                used.push(fd);
                used.extend([stdout, stderr].into_iter().filter(|fd| *fd != u32::MAX));
            }
            // Without a pidfd, PID 1 outlives the caller.
            Op::Fork { caller, gate, .. } | Op::ForkOutside { caller, gate, .. } => {
                used.extend([caller, gate].into_iter().filter(|fd| *fd != u32::MAX));
            }
            Op::Gate { caller } => used.extend(Some(caller).filter(|fd| *fd != u32::MAX)),
            Op::Tree { fd, .. } => {
                assert!(!mounting && matches!(handed(fd), Handed::Source(_)), "{}", step.op.title());
                trees.push(fd);
            }
            Op::Propagation { .. } => mounting = true,
            Op::Bind { fd, .. }
            | Op::RootBind { fd, .. }
            | Op::UpperBind { fd, .. }
            | Op::Overlay { fd, .. } => {
                let whole = match handed(fd) {
                    Handed::Tree { recursive, .. } => *recursive,
                    Handed::Source(_) => {
                        let tree = plan.init.iter().find_map(|step| match op(step) {
                            Op::Tree { fd: of, recursive, .. } if of == fd => Some(recursive),
                            _ => None,
                        });
                        assert!(trees.contains(&fd), "{}", step.op.title());
                        tree.unwrap()
                    }
                    other => panic!("{other:?} is no tree: {}", step.op.title()),
                };
                let layer = matches!(op(step), Op::UpperBind { .. } | Op::Overlay { .. });
                assert_eq!(whole, !layer, "{}", step.op.title());
                used.push(fd);
            }
            _ => {}
        }
    }
    used.sort_unstable();
    let every: Vec<u32> = (0..u32::try_from(all.len()).unwrap()).collect();
    assert_eq!(used, every, "{all:?}");
}

/// Asserts that init decodes the steps that were planned.
pub(super) fn survives_the_wire(plan: &Plan) {
    let handed = plan.handed().count();
    let numbers: Vec<Option<u32>> = (0..).take(handed).map(Some).collect();
    let bytes = plan.encode(77, &numbers);
    let program = Program::decode(&mut bytes.as_slice()).unwrap();
    assert_eq!((program.status, program.fds.len()), (77, handed));
    assert_eq!(program.steps.len(), plan.init.len());
    for (sent, planned) in program.steps.iter().zip(&plan.init) {
        assert_eq!((sent.optional, Some(sent.op)), (planned.may_be_refused(), planned.op()));
        assert!(!planned.op.title().is_empty() && planned.op.calls().iter().all(|line| !line.is_empty()));
    }
}
