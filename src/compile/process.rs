//! The task as a process: its descriptors, OOM score, resource limits, credentials, and the command.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::identity::{self, Mapping};
use crate::caps::Sets;
use crate::cgroup::Cgroups;
use crate::error::{Error, Result};
use crate::host::{Host, Survey};
use crate::ids::Identity;
use crate::plan::MustHold;
use crate::report::Control;
use crate::spec::{Policy, Resource, SandboxSpec, Stdio, WindowSize};
use crate::step::wire::{Dup, Op, UNEXECUTED};
use crate::step::{self, Draft, Encoded, Enter, Handed, InitStep, StreamSource};

pub(super) fn oom_score(spec: &SandboxSpec, must_hold: &MustHold, draft: &mut Draft) -> Result<()> {
    let value = spec.oom_score_adj.unwrap_or(0);
    if !(-1000..=1000).contains(&value) {
        return Err(Error::spec("oom_score_adj", format!("{value} is not within -1000 to 1000")));
    }
    draft.report.enforce(Control::OOM_SCORE);
    let text = value.to_string();
    let op = Op::OomScore { value: step::text(text.as_bytes()) };
    let step = InitStep::new(Control::OOM_SCORE, op).entering(Enter::Outside);
    // Writing a value below the caller's minimum needs CAP_SYS_RESOURCE. No file shows that minimum.
    let must =
        must_hold.names(Control::OOM_SCORE) || spec.oom_score_adj.is_some() && !must_hold.is_best_effort();
    draft.init.push(if must { step } else { step.optional() });
    Ok(())
}

/// The task's descriptors: the standard streams, then the declared ones.
pub(super) fn descriptors(spec: &SandboxSpec, draft: &mut Draft) -> Result<()> {
    let mut map: BTreeMap<u32, u32> = streams(spec.streams(), draft).collect();
    if spec.fds.len() > 197 {
        return Err(Error::spec("fds", "more than 197 descriptors"));
    }
    for fd in &spec.fds {
        if !(3..1024).contains(&fd.to) {
            return Err(Error::spec("fds", format!("{} is not within 3 to 1023", fd.to)));
        }
        if map.insert(fd.to, draft.hand(Handed::Caller(fd.from.number()))).is_some() {
            return Err(Error::spec("fds", format!("two descriptors are given for number {}", fd.to)));
        }
    }
    are_descriptors(spec.streams())?;
    let map = Encoded::of(map.into_iter().map(|(to, from)| Dup { from, to }));
    draft.enter(Enter::Outside, Control::MOUNT_NS, Op::Fds { map: map.list() });
    Ok(())
}

/// Hands the standard streams to init. Returns their numbers, with the index of what init duplicates to each: the same one
/// for all that are `/dev/null`.
pub(super) fn streams(
    streams: [(&str, &Stdio); 3],
    draft: &mut Draft,
) -> impl Iterator<Item = (u32, u32)> + use<> {
    let mut null = None;
    let indices = streams.map(|(_, stdio)| stream_source(stdio)).into_iter().zip(0..);
    let mut hand = |(from, number)| match (from, null) {
        (StreamSource::Null, Some(index)) => index,
        (StreamSource::Null, None) => *null.insert(draft.hand(Handed::Stream(number, from))),
        _ => draft.hand(Handed::Stream(number, from)),
    };
    let indices: Vec<u32> = indices.map(&mut hand).collect();
    (0..).zip(indices)
}

/// Where a standard stream comes from.
fn stream_source(stdio: &Stdio) -> StreamSource {
    match stdio {
        Stdio::Inherit | Stdio::Fd(_) => StreamSource::Caller,
        Stdio::Null => StreamSource::Null,
        Stdio::Piped => StreamSource::Pipe,
        Stdio::Log => StreamSource::Log,
    }
}

/// Bit mask of the standard streams that are `/dev/null`: bit n stands for descriptor n.
pub(super) fn null_streams(streams: [(&str, &Stdio); 3]) -> u8 {
    streams
        .into_iter()
        .zip([1, 2, 4])
        .filter(|((_, stdio), _)| **stdio == Stdio::Null)
        .map(|(_, bit)| bit)
        .sum()
}

/// Adds the steps of a pseudo-terminal: those before a fork into the PID namespace, and the one after.
///
/// # Errors
/// [`Error::Spec`] if a standard stream is set too.
pub(super) fn terminal(
    size: Option<WindowSize>,
    streams: [(&'static str, &Stdio); 3],
) -> Result<Option<[InitStep; 2]>> {
    let Some(WindowSize { rows, columns }) = size else { return Ok(None) };
    if let Some((name, _)) = streams.into_iter().find(|(_, stdio)| **stdio != Stdio::Null) {
        return Err(Error::spec("terminal", format!("{name} is set too, and would be the terminal")));
    }
    let open = Op::Terminal { rows: rows.into(), columns: columns.into() };
    Ok(Some([open, Op::ControllingTerminal {}].map(|op| InitStep::new(Control::empty(), op))))
}

/// Refuses streams with a negative descriptor.
pub(super) fn are_descriptors(streams: [(&'static str, &Stdio); 3]) -> Result<()> {
    streams.into_iter().try_for_each(|(field, stdio)| match stdio.of_caller(0) {
        Some(fd @ ..0) => Err(Error::spec(field, format!("{fd} is not an open file descriptor"))),
        _ => Ok(()),
    })
}

/// Adds the steps that enter cgroups of version 1. Init enters them itself: it is single-threaded, so its write to its
/// own `tasks` file waits for no RCU grace period.
pub(super) fn enter(cgroups: &Cgroups, draft: &mut Draft) {
    if let Some(share) = cgroups.paths.share_tasks() {
        enter_one(Handed::Share(share.clone()), &share, draft);
    }
    for tasks in &cgroups.paths.enter {
        enter_one(Handed::Tasks(tasks.clone()), tasks, draft);
    }
}

/// Adds the step that enters one cgroup.
pub(super) fn enter_one(handed: Handed, tasks: &Path, draft: &mut Draft) {
    let may_be_absent = matches!(handed, Handed::Share(_));
    let fd = draft.hand(handed);
    draft.enter(Enter::Outside, Control::RESOURCES, Op::Enter { fd, path: step::path(tasks), may_be_absent });
}

/// The step that starts the timer of the task's deadline, which only an init that stays can watch. Adds the deadline to
/// the report.
pub(super) fn deadline(
    deadline: Option<Duration>,
    stays: bool,
    draft: &mut Draft,
) -> Result<Option<InitStep>> {
    let Some(deadline) = deadline else { return Ok(None) };
    let nanoseconds = nanoseconds("deadline", deadline)?;
    if !stays {
        draft.report.miss(Control::DEADLINE, "only an init that stays as PID 1 can watch the deadline");
        return Ok(None);
    }
    draft.report.enforce(Control::DEADLINE);
    Ok(Some(InitStep::new(Control::DEADLINE, Op::Deadline { nanoseconds })))
}

/// The step that starts the watch of the task's CPU time. Adds the deadline to the report, unless the cgroups have
/// reported already that nothing counts the CPU time.
pub(super) fn cpu_deadline(
    spec: &SandboxSpec,
    stays: bool,
    cgroups: &Cgroups,
    draft: &mut Draft,
) -> Result<Option<InitStep>> {
    let Some(deadline) = spec.cpu_deadline else { return Ok(None) };
    let nanoseconds = nanoseconds("cpu_deadline", deadline)?;
    if !stays {
        draft.report.miss(Control::CPU_DEADLINE, "only an init that stays as PID 1 can watch the CPU time");
        return Ok(None);
    }
    let Some(counter) = &cgroups.cpu_time else { return Ok(None) };
    draft.report.enforce(Control::CPU_DEADLINE);
    let fd = draft.hand(Handed::CpuTime(counter.file.clone()));
    let (processors, unit, path) = (counter.processors, counter.unit, step::path(&counter.file));
    let op = Op::CpuDeadline { nanoseconds, processors, unit, fd, path };
    Ok(Some(InitStep::new(Control::CPU_DEADLINE, op)))
}

/// A time in nanoseconds, for a timer.
fn nanoseconds(field: &'static str, time: Duration) -> Result<u64> {
    let nanoseconds = u64::try_from(time.as_nanos()).ok().filter(|n| *n > 0 && i64::try_from(*n).is_ok());
    let wrong = || Error::spec(field, format!("{time:?} is not more than 0 and less than 292 years"));
    nanoseconds.ok_or_else(wrong)
}

/// Adds the steps for the exit record to the draft, if the operator has a directory for it, and the record to the report.
/// Returns the path of its file. `stays` says whether a process of init stays.
pub(super) fn exit_record(policy: &Policy, id: &str, stays: bool, draft: &mut Draft) -> Option<PathBuf> {
    let dir = policy.state_dir.as_ref()?;
    if !stays {
        draft.report.miss(
            Control::EXIT_RECORD,
            "without init the command is PID 1, and the process that writes its exit status must have CAP_KILL, which the caller lacks",
        );
        return None;
    }
    draft.report.enforce(Control::EXIT_RECORD);
    let path = dir.join(format!("{id}.exit"));
    let fd = draft.hand(Handed::ExitRecord(path.clone()));
    draft.build(Control::EXIT_RECORD, Op::ExitRecord { fd, path: step::path(&path) });
    Some(path)
}

/// Adds the steps for the log to the draft, if a standard stream goes there. Returns the path of its file. `stays` says
/// whether a process of init stays, and `dir` is the operator's directory.
///
/// # Errors
/// [`Error::Spec`] if nothing could write the log, or for standard input.
pub(super) fn log(
    spec: &SandboxSpec,
    dir: Option<&Path>,
    id: &str,
    stays: bool,
    draft: &mut Draft,
) -> Result<Option<PathBuf>> {
    let Some((field, _)) = spec.streams().into_iter().find(|(_, stdio)| **stdio == Stdio::Log) else {
        return Ok(None);
    };
    if field == "stdin" {
        return Err(Error::spec(field, "standard input cannot be a log"));
    }
    let Some(dir) = dir else {
        return Err(Error::spec(field, "the log is a file in state_dir, and the policy has none"));
    };
    if !stays {
        return Err(Error::spec(field, "only an init that stays can write the log: set init"));
    }
    let path = dir.join(format!("{id}.log"));
    let fd = draft.hand(Handed::Log(path.clone()));
    let mut pipe = |number: u32, stdio: &Stdio| match stdio {
        Stdio::Log => draft.hand(Handed::LogPipe(number)),
        _ => u32::MAX,
    };
    let (stdout, stderr) = (pipe(1, &spec.stdout), pipe(2, &spec.stderr));
    draft.build(Control::empty(), Op::Log { fd, stdout, stderr, path: step::path(&path) });
    Ok(Some(path))
}

fn last_capability(host: &Host) -> u32 {
    host.supported.numbers().last().unwrap_or(63).into()
}

/// Adds the resource limits. The caller's limit of real-time priorities is not inherited, as no other scheduling attribute.
pub(super) fn rlimits(spec: &SandboxSpec, survey: &Survey, draft: &mut Draft) -> Result<()> {
    if survey.real_time && !spec.rlimits.contains_key(&Resource::Rtprio) {
        let resource = Resource::Rtprio.number();
        draft.enter(Enter::Inside, Control::empty(), Op::Rlimit { resource, soft: 0, hard: 0 });
    }
    for (name, limit) in &spec.rlimits {
        let resource = name.number();
        let (soft, hard) = (limit.soft.unwrap_or(u64::MAX), limit.hard.unwrap_or(u64::MAX));
        if soft > hard {
            return Err(Error::spec("rlimits", format!("{name}: the soft limit exceeds the hard limit")));
        }
        if *name == Resource::Cpu && hard == 0 {
            let why = "cpu: a hard limit of 0 seconds ends the task before its command is executed";
            return Err(Error::spec("rlimits", why));
        }
        draft.enter(Enter::Inside, Control::RLIMITS, Op::Rlimit { resource, soft, hard });
        draft.report.enforce(Control::RLIMITS);
    }
    Ok(())
}

/// Adds the step of the bounding set. It comes before the fork, so the process that stays has only these left to drop.
pub(super) fn bounding(host: &Host, sets: Sets, draft: &mut Draft) {
    let keep = sets.bounding.bits();
    draft.enter(Enter::Inside, Control::CAPS, Op::Bounding { keep, last: last_capability(host) });
}

pub(super) fn credentials(
    spec: &SandboxSpec,
    host: &Host,
    who: &Identity,
    sets: Sets,
    mapping: Mapping,
    draft: &mut Draft,
) {
    let groups = Encoded::of(identity::groups(host, who));
    let set_groups = mapping != Mapping::Caller;
    let ids = Op::Ids { uid: who.uid, gid: who.gid, set_groups, groups: groups.list() };
    draft.enter(Enter::Inside, Control::IDS, ids);
    identity::report(host, who, mapping, draft);
    let (permitted, inheritable, ambient) =
        (sets.permitted.bits(), sets.inheritable.bits(), sets.ambient.bits());
    draft.enter(Enter::Inside, Control::CAPS, Op::Caps { permitted, inheritable, ambient });
    if spec.no_new_privs {
        draft.enter(Enter::Inside, Control::NO_NEW_PRIVS, Op::NoNewPrivs {});
        draft.report.enforce(Control::NO_NEW_PRIVS);
    } else if host.no_new_privs {
        draft
            .report
            .note(Control::NO_NEW_PRIVS, "the caller has no_new_privs set, which cannot be cleared: setuid programs do not gain privileges");
    }
    if host.mdwe {
        draft.report.note(
            Control::NO_NEW_PRIVS,
            "the caller has PR_SET_MDWE set, which cannot be cleared: programs that generate code at run time (JIT compilers) fail",
        );
    }
}

/// The directories in which a name without a slash is looked up if the environment has no `PATH`.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Maximum number of paths in one lookup. Init reports the path that it found by its index, in one byte.
const PLACES: usize = 200;

/// The paths at which a command is looked up in the root, in order. A name or a relative path is looked up below
/// `/local` and `/`, as Nomad's `exec` driver does. Before that, a relative path is looked up in the working directory;
/// after that, a name is looked up in the directories of `path`.
///
/// # Errors
/// [`Error::Spec`] if `PATH` has too many directories.
pub(super) fn candidates(command: &OsStr, work_dir: &Path, path: Option<&OsStr>) -> Result<Vec<PathBuf>> {
    let command = Path::new(command);
    if command.is_absolute() {
        return Ok(vec![command.to_path_buf()]);
    }
    let mut places = Vec::new();
    if command.as_os_str().as_bytes().contains(&b'/') {
        places.push(work_dir.join(command));
    }
    places.extend(["/local", "/"].map(|dir| Path::new(dir).join(command)));
    if !command.as_os_str().as_bytes().contains(&b'/') {
        let dirs = path.unwrap_or(OsStr::new(PATH)).as_bytes().split(|byte| *byte == b':');
        places.extend(dirs.map(|dir| work_dir.join(OsStr::from_bytes(dir)).join(command)));
    }
    let mut known = BTreeSet::new();
    places.retain(|place| known.insert(place.clone()));
    if places.len() > PLACES {
        return Err(Error::spec("env", format!("PATH has more than {PLACES} directories")));
    }
    Ok(places)
}

/// Adds the steps that find the command, and wait for the process that stays. `tied` says whether the kernel is to kill the
/// command with it; `None` if no process stays, which would know whether the command was executed.
pub(super) fn find(candidates: &[PathBuf], tied: Option<bool>, draft: &mut Draft) {
    if tied.is_none() {
        draft.init.push(InitStep::new(Control::empty(), Op::Name { name: step::text(UNEXECUTED) }));
    }
    let candidates = Encoded::strings(candidates.iter().map(|path| path.as_os_str().as_bytes()));
    draft.build(Control::empty(), Op::Find { candidates: candidates.list() });
    draft.init.extend(tied.map(|tied| InitStep::new(Control::CAPS, Op::AwaitPid1 { tied })));
}

/// Adds the step that executes the command. Variables of `env` replace those of `user`, which describe the user.
pub(super) fn exec(
    args: &[OsString],
    user: &[(String, String)],
    env: &BTreeMap<OsString, OsString>,
    draft: &mut Draft,
) {
    let os = |(key, value): &(String, String)| (OsString::from(key), OsString::from(value));
    let mut all: BTreeMap<OsString, OsString> = user.iter().map(os).collect();
    all.extend(env.clone());
    let env = Encoded::strings(all.into_iter().map(|(mut variable, value)| {
        variable.push("=");
        variable.push(value);
        variable.into_vec()
    }));
    let args = Encoded::strings(args.iter().map(|arg| arg.as_bytes()));
    draft.build(Control::empty(), Op::Exec { args: args.list(), env: env.list() });
}
