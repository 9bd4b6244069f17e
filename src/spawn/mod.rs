//! Runs the parent's steps of a plan, with their undo, and reads init's records.
//!
//! A step adds what it creates on the host to the undo list at once. All other resources are owned by values that
//! release them when they are dropped. So an early return is a rollback.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::Mode;

use crate::cgroup::Group;
use crate::error::{Error, Result};
use crate::host::{Host, Survey};
use crate::plan::{EXECUTE_INIT, ParentOp, ParentStep, Plan, map_call};
use crate::report::Report;
use crate::rootfs::prepared::Made;
use crate::rootfs::source::HostFile;
use crate::rootfs::{Populated, Watch};
use crate::spec::Policy;
use crate::step::{Handed, IdMaps, Kernel, StreamSource, map_ids_call};
use crate::sys;
use crate::sys::lock::{Lock, Locked};
use crate::task::{self, Child, RecordFile, Spawned, Streams, Undo};

mod callers;
mod clone;
mod expected;
mod left;
mod listen;
mod reach;

pub(crate) use callers::{check_declared, check_streams, streams};
pub(crate) use listen::joined_too_late;
use listen::{DIED, Heard, Listening, let_continue, listen, was_killed};
pub(crate) use reach::answers;

/// The static program init.
static INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

/// Name of its memfd, which a task sees in `/proc/1/exe`.
const INIT_NAME: &std::ffi::CStr = c"cofferdam-init";

/// Inputs of the steps.
#[derive(Clone, Copy, Default)]
pub(crate) struct Given<'a> {
    /// The descriptors of the caller that the spec names for standard input, output and error. `None` for a stream
    /// without a named descriptor.
    pub streams: [Option<RawFd>; 3],
    /// Users and opened paths of the host that the spec names.
    pub survey: Option<&'a Survey>,
    /// How the caller follows and cancels the population of a root.
    pub watch: Watch<'a>,
    /// What was prepared for the task.
    pub ready: Option<Ready<'a>>,
    /// The task to join: the pidfd of its first process. `None` for a new task.
    pub running: Option<BorrowedFd<'a>>,
    /// Where the task that is to be replaced has its cgroups and its files. `None` if none is replaced.
    pub places: Option<(&'a Policy, &'a Host)>,
    /// What is called when the command waits at the gate, if the plan has one.
    pub at_gate: Option<&'a PassGate<'a>>,
    /// How long the process may take to execute its command, without the time in which the root is populated and the
    /// caller stores the handle.
    pub start: Option<Duration>,
}

/// What is called when the command waits at the gate. On an error, the spawn fails.
pub(crate) type PassGate<'a> = dyn Fn(AtGate<'_>) -> Result<()> + 'a;

/// A task whose command waits at the gate.
pub(crate) struct AtGate<'a> {
    pub child: &'a Child,
    pub undo: &'a mut Undo,
    pub report: &'a Report,
    pub populated: Option<&'a Populated>,
}

/// What is kept for all tasks of a sandbox.
#[derive(Clone, Copy)]
pub(crate) struct Ready<'a> {
    /// The prepared mount namespace that the task enters a copy of.
    pub mounts: BorrowedFd<'a>,
    /// The program init in a sealed memfd, if the host can execute one. Tasks share it, so no process may ever write to it.
    pub init: Option<BorrowedFd<'a>>,
}

/// Maximum number of retries after the kernel killed init right after the clone.
const KILLS: u32 = 16;

/// Runs a plan, until the command has been executed.
///
/// # Errors
/// The refused step. Everything created is removed.
pub(crate) fn spawn(plan: &Plan, given: Given<'_>) -> Result<Spawned> {
    let mut run = Run::new(plan, given);
    let first = plan.parent.iter().position(|step| matches!(step.op, ParentOp::Hand(_)));
    let (before, clone) = plan.parent.split_at(first.unwrap_or(plan.parent.len()));
    before.iter().try_for_each(|step| run.step(step))?;
    if let Some(group) = run.own_group() {
        group.start_counting();
    }
    run.attempt(clone)?;
    let Run { undo, report, populated, attempt, .. } = run;
    let Attempt { streams, child, .. } = attempt;
    let child = child.ok_or_else(|| Error::prepare(EXECUTE_INIT)(Errno::ECHILD))?;
    Ok(Spawned { child, streams, undo, report, populated })
}

/// Runs a plan that prepares mounts.
///
/// # Errors
/// The refused step. Everything created is removed.
pub(crate) fn prepare(plan: &Plan, survey: &Survey, start: Duration) -> Result<Made> {
    let mut run = Run::new(plan, Given { survey: Some(survey), start: Some(start), ..Given::default() });
    run.attempt(&plan.parent)?;
    let init = sys::sealed_memfd(INIT_NAME, INIT, true).ok();
    let (namespace, table) =
        run.attempt.prepared.take().ok_or_else(|| Error::prepare(EXECUTE_INIT)(Errno::ECHILD))?;
    Ok(Made { namespace, table: table.into(), init })
}

/// The state of a running plan.
struct Run<'a> {
    plan: &'a Plan,
    given: Given<'a>,
    attempt: Attempt,
    undo: Undo,
    report: Report,
    populated: Option<Populated>,
    /// The file of the task's log.
    log: Option<OwnedFd>,
    /// When the spawn fails if it is unfinished. `None` for an additional command, which has its time from the wait on.
    until: Option<Instant>,
}

/// Resources of one clone attempt. They are dropped after it, except the child and the caller's ends of the streams.
#[derive(Default)]
struct Attempt {
    /// Dropped first: the child is killed and reaped before its resources are released.
    child: Option<Child>,
    streams: Streams,
    /// The standard streams that go to the log, and the ends of their pipes that init reads.
    log_pipes: Vec<(u32, OwnedFd)>,
    /// Descriptors for init, by index; `None` for one that is not needed.
    handed: Vec<Option<OwnedFd>>,
    /// The parent's end of the socket, and init's end.
    channel: Option<(OwnedFd, OwnedFd)>,
    steps: Option<OwnedFd>,
    init: Option<OwnedFd>,
    /// The mount namespace that init has prepared, and its table of mounts.
    prepared: Option<(OwnedFd, OwnedFd)>,
    /// Whether the command was at the gate.
    gate_passed: bool,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan, given: Given<'a>) -> Run<'a> {
        Run {
            plan,
            given,
            undo: Undo::default(),
            report: plan.report.clone(),
            populated: None,
            log: None,
            until: given.start.filter(|_| given.running.is_none()).and_then(in_time),
            attempt: Attempt::default(),
        }
    }

    /// Runs the steps from the first descriptor for init on. Repeats them if the kernel kills init right after the
    /// clone.
    ///
    /// Since Linux 6.14, and in stable kernels since February 2025, `clone` compares the `cgroup.kill` count of the
    /// *caller's* cgroup with the count of the child's cgroup, and kills the child if they differ. The check is meant
    /// for forks within one cgroup. If the caller's cgroup was killed before the caller entered it, every child in
    /// another cgroup dies. Each retry here kills the child's empty cgroup once more, until the counts are equal.
    fn attempt(&mut self, steps: &[ParentStep]) -> Result<()> {
        let report = self.report.clone();
        let mut kills = 0u32;
        loop {
            let born = steps.iter().try_for_each(|step| self.step(step));
            let group = self.undo.group().filter(|group| group.into_fd().is_some());
            let again = match (&born, group) {
                // The caller has the handle of this attempt.
                _ if self.attempt.gate_passed => false,
                (Err(e), Some(group)) if was_killed(e).is_some_and(|e| e.first) && group.oom_kills() == 0 => {
                    kills < KILLS && group.kill().is_ok()
                }
                _ => false,
            };
            match born {
                Err(e) if !again => return Err(self.explained(e)),
                Err(_) => {}
                Ok(()) => return Ok(()),
            }
            kills = kills.saturating_add(1);
            self.attempt = Attempt::default();
            self.report = report.clone();
        }
    }

    /// Replaces the error if init was OOM-killed.
    fn explained(&self, e: Error) -> Error {
        if was_killed(&e).is_some() && self.undo.group().is_some_and(|group| group.oom_kills() > 0) {
            let why = "out of memory: init was OOM-killed, the memory limit is too small to start the task";
            return Error::Setup { step: DIED.into(), source: io::Error::other(why) };
        }
        e
    }

    /// Runs one step. Handles a refusal as the step says, then checks the required controls again.
    fn step(&mut self, step: &ParentStep) -> Result<()> {
        let plan = self.plan;
        let begun = Instant::now();
        match self.run(step) {
            Ok(()) => Ok(()),
            Err(refused) => step.on_refusal.take(refused, &mut self.report),
        }
        .and_then(|()| plan.must_hold.check(&self.report))?;
        match step.op {
            ParentOp::BuildRoot(_) | ParentOp::LetGo => {
                self.until = self.until.and_then(|until| until.checked_add(begun.elapsed()));
            }
            // The wait has ended in time, or has failed.
            ParentOp::AwaitGate | ParentOp::AwaitCommand | ParentOp::AwaitPrepared => {}
            _ if self.until.is_some_and(|until| Instant::now() > until) => {
                return Err(too_late(step.op.call()));
            }
            _ => {}
        }
        Ok(())
    }

    fn run(&mut self, step: &ParentStep) -> Result<()> {
        let refused = |e: io::Error| Error::Prepare { step: step.op.call(), source: e };
        let refused_at = |(call, source): (usize, io::Error)| {
            let step = step.op.calls().into_iter().nth(call).unwrap_or_default();
            Error::Prepare { step, source }
        };
        match &step.op {
            ParentOp::Replace { id, .. } => {
                let (policy, host) = self.given.places.ok_or_else(|| refused(Errno::EINVAL.into()))?;
                task::replace(policy, host, id, self.until).map_err(refused)?;
            }
            ParentOp::ExitRecord(path) => {
                self.undo.record(RecordFile::create(path).map_err(refused_at)?);
            }
            ParentOp::Log { size, .. } => {
                let record = self.undo.exit_record().ok_or_else(|| refused(Errno::ENOENT.into()))?;
                self.log = Some(record.make_log(*size).map_err(refused_at)?);
            }
            // The sources were opened while the plan was compiled.
            ParentOp::HoldSources { .. } => {}
            ParentOp::TempRoot(make) => {
                make.run(&Kernel::real())?.into_iter().for_each(|root| self.undo.temp_root(root));
            }
            ParentOp::LockUpper(path) => {
                // The owner of a task that was replaced unlocks it last.
                let until = self.given.places.and_then(|_| Instant::now().checked_add(UNLOCKING));
                let lock = lock_upper(self.source(path)?, until).map_err(refused_at)?;
                self.undo.upper(lock);
            }
            ParentOp::BuildRoot(build) => {
                let survey = self.given.survey.ok_or_else(|| refused(Errno::ENOENT.into()))?;
                self.populated = build.run(&survey.sources, self.undo.root(), self.given.watch)?;
            }
            ParentOp::Cgroup(op) => {
                let mut report = std::mem::take(&mut self.report);
                let group = self.own_group();
                let done = group.map(|group| op.run(step.control, &Kernel::real(), group, &mut report));
                self.report = report;
                done.transpose()?;
            }
            ParentOp::Hand(handed) => {
                let fd = self.open(handed)?;
                self.attempt.handed.push(fd);
            }
            ParentOp::Channel => {
                let flags = SockFlag::SOCK_CLOEXEC;
                let ends = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags);
                self.attempt.channel = Some(ends.map_err(|e| refused(e.into()))?);
            }
            ParentOp::SealSteps => {
                let number = |fd: &OwnedFd| fd.as_raw_fd().unsigned_abs();
                let fds: Vec<_> = self.attempt.handed.iter().map(|fd| fd.as_ref().map(number)).collect();
                let status = self.attempt.channel.as_ref().map_or(0, |(_, theirs)| number(theirs));
                let program = self.plan.encode(status, &fds);
                let sealed = sys::sealed_memfd(c"cofferdam-plan", &program, false);
                self.attempt.steps = Some(sealed.map_err(refused)?);
            }
            // It was sealed when the mounts were prepared.
            ParentOp::SealInit if self.kept_init().is_some() => {}
            ParentOp::SealInit => self.attempt.init = Some(init_program(&step.op.call())?),
            ParentOp::Clone { namespaces, into_cgroup } => self.clone(*namespaces, *into_cgroup, &step.op)?,
            ParentOp::IdMaps(maps) => {
                let written = self.write_maps(maps);
                if let (Err(_), Some(child)) = (&written, &mut self.attempt.child)
                    && sys::is_ending(child.pidfd()) == Some(true)
                {
                    // The kernel refuses the maps of a process that ends. The cause is the end of init.
                    let listening = Listening { until: self.until, ..Listening::default() };
                    listen(self.plan, child, &mut self.report, listening)?;
                }
                written?;
            }
            ParentOp::LetGo => self.let_go()?,
            ParentOp::AwaitGate | ParentOp::AwaitCommand | ParentOp::AwaitPrepared => {
                let kept = self.kept_init();
                let Attempt { child, streams, prepared, gate_passed, init, .. } = &mut self.attempt;
                if let Some(child) = child {
                    let listening = Listening {
                        until: self.until.or_else(|| self.given.start.and_then(in_time)),
                        group: self.undo.group(),
                        task: self.given.running,
                        program: init.as_ref().map(AsFd::as_fd).or(kept),
                        gate_passed: *gate_passed,
                    };
                    match listen(self.plan, child, &mut self.report, listening)? {
                        Heard::Runs(_) if *gate_passed => {}
                        Heard::Runs(terminal) | Heard::AtGate(terminal) => streams.terminal = terminal,
                        Heard::Prepared(namespace, table) => *prepared = Some((namespace, table)),
                    }
                }
            }
            ParentOp::CheckShare(share) => {
                if let Some(group) = self.undo.group() {
                    group.check_reservations(share)?;
                }
            }
        }
        Ok(())
    }

    /// Calls the caller's function, and lets the command at the gate go.
    fn let_go(&mut self) -> Result<()> {
        let Some(child) = &self.attempt.child else { return Ok(()) };
        self.attempt.gate_passed = true;
        if let Some(at_gate) = self.given.at_gate {
            let (undo, populated) = (&mut self.undo, self.populated.as_ref());
            at_gate(AtGate { child, undo, report: &self.report, populated })?;
        }
        let_continue(child)
    }

    /// The cgroups of the new process. They are added to the undo list after the root, so they are removed before it:
    /// their processes use the root.
    fn own_group(&mut self) -> Option<&mut Group> {
        if self.undo.group().is_none() {
            self.undo.cgroups(Group::new(&self.plan.cgroups));
        }
        self.undo.group_mut()
    }

    /// Clones, and drops the descriptors of which init has its own copies.
    ///
    /// # Errors
    /// The refused call; `ResourceBusy` if a cgroup above the task's is frozen. The child would not run, and this thread
    /// would wait in the kernel for its exec.
    fn clone(&mut self, namespaces: u32, into_cgroup: bool, op: &ParentOp) -> Result<()> {
        let group = self.undo.group().filter(|_| self.given.running.is_none());
        if group.is_some_and(Group::is_frozen) {
            let why = "a cgroup above that of the task is frozen: thaw it, or use another cgroup_parent";
            let source = io::Error::new(io::ErrorKind::ResourceBusy, why);
            return Err(Error::Prepare { step: op.call(), source });
        }
        let Attempt { handed, channel, steps, .. } = &mut self.attempt;
        let (handed, channel, steps) = (std::mem::take(handed), channel.take(), steps.take());
        let missing = || Error::Prepare { step: op.call(), source: Errno::EBADF.into() };
        let kept = self.kept_init();
        let (Some((ours, theirs)), Some(steps)) = (channel, steps) else { return Err(missing()) };
        let program = self.attempt.init.as_ref().map(AsFd::as_fd).or(kept).ok_or_else(missing)?;
        let number = |fd: &OwnedFd| CString::new(fd.as_raw_fd().to_string()).unwrap_or_default();
        let mut inherit: Vec<RawFd> = handed.iter().flatten().map(AsRawFd::as_raw_fd).collect();
        inherit.extend([steps.as_raw_fd(), theirs.as_raw_fd()]);
        let request = clone::CloneRequest {
            namespaces,
            cgroup: self.undo.group().filter(|_| into_cgroup).and_then(Group::into_fd),
            program,
            argv: [c"cofferdam-init".into(), number(&steps), number(&theirs)],
            inherit,
        };
        let child = clone::clone(&request).map_err(|refused| match refused {
            clone::CloneError::Clone(source) => Error::Prepare { step: op.call(), source },
            clone::CloneError::Execute(source) => Error::Prepare { step: EXECUTE_INIT.into(), source },
        })?;
        self.attempt.child = Some(Child::new(child, ours, self.given.running.is_some()));
        Ok(())
    }

    /// Writes the maps of the child's user namespace, then lets init continue. `setgroups` must be denied before
    /// `gid_map` is written if the caller has no `CAP_SETGID` over the namespace (`user_namespaces(7)`).
    fn write_maps(&self, maps: &IdMaps) -> Result<()> {
        let Some(child) = &self.attempt.child else { return Ok(()) };
        // The mounted /proc may belong to another PID namespace than the caller's, in which the child has another pid.
        let pid = sys::find_pid(child.pidfd()).and_then(|pid| {
            let why = "/proc is not mounted, or is mounted for another PID namespace than the caller's";
            pid.ok_or_else(|| io::Error::other(why))
        });
        let pid = pid.map_err(Error::prepare("read(\"/proc/self/fdinfo/PIDFD\")"))?;
        for (file, text) in maps.files() {
            std::fs::write(format!("/proc/{pid}/{file}"), text)
                .map_err(Error::prepare(map_call(file, text)))?;
        }
        let_continue(child)
    }

    /// The program init, if it was kept for all tasks of the sandbox.
    fn kept_init(&self) -> Option<BorrowedFd<'a>> {
        self.given.ready.and_then(|ready| ready.init)
    }

    /// Opens a descriptor for init. `None` if it is not needed.
    fn open(&mut self, handed: &Handed) -> Result<Option<OwnedFd>> {
        let refused = |e: io::Error| Error::Prepare { step: handed.call(), source: e };
        let duplicate = |held: Option<BorrowedFd<'_>>| {
            let held = held.ok_or(io::ErrorKind::NotFound.into());
            held.and_then(|fd| fd.try_clone_to_owned()).map_err(refused)
        };
        let fd = match handed {
            Handed::Stream(number, source) => self.stream(*number, *source).map_err(refused)?,
            Handed::Caller(number) => callers::duplicate(*number)?,
            Handed::CallerPidfd => sys::own_pidfd().map_err(refused)?,
            Handed::Task => duplicate(self.given.running)?,
            Handed::Prepared => duplicate(self.given.ready.map(|ready| ready.mounts))?,
            Handed::Nothing => return Ok(None),
            Handed::Cgroup(_) => duplicate(self.undo.group().and_then(Group::into_fd))?,
            Handed::ExitRecord(_) => {
                let record = self.undo.exit_record().ok_or(io::ErrorKind::NotFound.into());
                record.and_then(RecordFile::writer).map_err(refused)?
            }
            Handed::Log(_) => duplicate(self.log.as_ref().map(AsFd::as_fd))?,
            Handed::LogPipe(number) => self.log_pipe(*number).map_err(refused)?,
            Handed::Namespace(_) => {
                duplicate(self.given.survey.and_then(|survey| survey.namespace.as_ref()).map(AsFd::as_fd))?
            }
            Handed::Tree { source, recursive, unowned } => {
                let tree =
                    sys::fs::clone_tree(self.source(source)?, *recursive).map_err(|e| refused(e.into()))?;
                if *unowned {
                    self.without_owners(source, &tree)?;
                }
                tree
            }
            Handed::Source(path) => duplicate(self.source(path).ok())?,
            Handed::CpuTime(path) => open_read(path).map_err(|e| refused(e.into()))?,
            Handed::Tasks(path) => open_write(path).map_err(|e| refused(e.into()))?,
            Handed::Share(path) => match open_write(path) {
                // No CPU is reserved.
                Err(Errno::ENOENT | Errno::ENODEV) => return Ok(None),
                opened => opened.map_err(|e| refused(e.into()))?,
            },
        };
        Ok(Some(fd))
    }

    /// Makes a mount tree an idmapped mount in which no file has an owner.
    fn without_owners(&self, source: &Path, tree: &OwnedFd) -> Result<()> {
        let users = self.given.survey.and_then(|survey| survey.users.as_ref()).ok_or(Errno::ENOENT);
        let mapped = users.and_then(|users| sys::fs::map_ids(tree.as_fd(), users.as_fd()));
        mapped.map_err(Error::prepare(map_ids_call(source)))
    }

    /// The descriptor of a source: the temporary root, or a path of the spec.
    fn source(&self, path: &Path) -> Result<BorrowedFd<'_>> {
        let is_root =
            |step: &ParentStep| matches!(&step.op, ParentOp::TempRoot(make) if make.path() == *path);
        let root = self.undo.root().filter(|_| self.plan.parent.iter().any(is_root)).map(|root| root.fd());
        let held = || self.given.survey?.sources.get(path).map(HostFile::fd);
        root.or_else(held).ok_or_else(|| Error::prepare(format!("openat2({path:?}, O_PATH)"))(Errno::ENOENT))
    }

    /// The end of a standard stream's pipe that init reads. A read of it does not block.
    fn log_pipe(&mut self, number: u32) -> io::Result<OwnedFd> {
        let pipes = &mut self.attempt.log_pipes;
        let at = pipes.iter().position(|(of, _)| *of == number).ok_or(io::ErrorKind::NotFound)?;
        let (_, pipe) = pipes.swap_remove(at);
        nix::fcntl::fcntl(&pipe, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(pipe)
    }

    fn stream(&mut self, number: u32, source: StreamSource) -> io::Result<OwnedFd> {
        match source {
            StreamSource::Caller => {
                let named = usize::try_from(number).ok().and_then(|n| self.given.streams.get(n).copied()?);
                sys::dup_number(named.unwrap_or(number.cast_signed()))
            }
            StreamSource::Null => {
                let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
                Ok(nix::fcntl::open("/dev/null", flags, Mode::empty())?)
            }
            StreamSource::Pipe => {
                let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
                Ok(self.attempt.streams.keep(number, read, write))
            }
            StreamSource::Log => {
                let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
                self.attempt.log_pipes.push((number, read));
                Ok(write)
            }
        }
    }
}

/// The instant after this time. `None` if it is out of range.
fn in_time(time: Duration) -> Option<Instant> {
    Instant::now().checked_add(time)
}

/// The error of a spawn that is unfinished at its deadline.
pub(crate) fn too_late(step: impl Into<String>) -> Error {
    let why = "the deadline of the spawn is over (spawn_deadline)";
    Error::Prepare { step: step.into(), source: io::Error::new(io::ErrorKind::TimedOut, why) }
}

fn open_read(path: &Path) -> nix::Result<OwnedFd> {
    nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

fn open_write(path: &Path) -> nix::Result<OwnedFd> {
    nix::fcntl::open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
}

/// How long the owner of a task may take from removing the task's files to unlocking its upper directory.
const UNLOCKING: Duration = Duration::from_secs(1);

/// Opens and locks an upper directory. Waits for another lock until `until`, if that is given. The error has the index of
/// the refused call.
fn lock_upper(held: BorrowedFd<'_>, until: Option<Instant>) -> Result<Locked, (usize, io::Error)> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let opened = nix::fcntl::openat(held, ".", flags, Mode::empty()).map_err(|e| (0, e.into()))?;
    loop {
        match sys::lock::flock(opened.as_fd(), Lock::ExclusiveNow) {
            Ok(()) => return Ok(Locked::held(opened)),
            Err(Errno::EWOULDBLOCK) if until.is_some_and(|until| Instant::now() < until) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(Errno::EWOULDBLOCK) => {
                let why = "another running sandbox writes to it";
                return Err((1, io::Error::new(io::ErrorKind::ResourceBusy, why)));
            }
            Err(e) => return Err((1, e.into())),
        }
    }
}

/// Opens init for execution: a sealed memfd, or an unlinked file without a writable descriptor if memfds may not be
/// executed (`vm.memfd_noexec` = 2, Linux 6.3).
fn init_program(call: &str) -> Result<OwnedFd> {
    match sys::sealed_memfd(INIT_NAME, INIT, true) {
        Err(e) if e.raw_os_error() == Some(libc::EACCES) => unlinked_init().map_err(Error::prepare(
            "openat(temporary directory, O_TMPFILE), because vm.memfd_noexec=2 forbids executable memfds",
        )),
        other => other.map_err(Error::prepare(call)),
    }
}

fn unlinked_init() -> io::Result<OwnedFd> {
    let dir = std::env::temp_dir();
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let file = nix::fcntl::open(&dir, flags, Mode::S_IRWXU)?;
    sys::write_all(&file, INIT)?;
    // execve(2) of a file that is open for writing fails with ETXTBSY, so the file is opened again for reading.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(nix::fcntl::open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
}
