//! The steps of a plan: the operations of init as data, their wire format, and their text.
//!
//! A step of init is kept encoded and is decoded to be printed, so what is shown is what is sent. The domains make
//! steps; `plan` puts them in order.
//!
//! What it does not do: decide (that is `compile`) or act (that is `spawn` and `init`).

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::report::{Control, Effect, Report};

mod draft;
mod kernel;
mod render;
// Compiled into init as well: each program uses one half of it.
#[allow(dead_code, unused_imports)]
pub mod wire;

pub(crate) use draft::Draft;
pub(crate) use kernel::Kernel;
pub(crate) use render::{call, namespaces};
use wire::{Field, List, Op, Sink, Str};

/// MOUNT_ATTR_RDONLY.
pub(crate) const ATTR_RDONLY: u64 = 0x1;
/// MOUNT_ATTR_NOSUID.
pub(crate) const ATTR_NOSUID: u64 = 0x2;
/// MOUNT_ATTR_NODEV.
pub(crate) const ATTR_NODEV: u64 = 0x4;
/// MOUNT_ATTR_NOEXEC.
pub(crate) const ATTR_NOEXEC: u64 = 0x8;
/// MOUNT_ATTR_STRICTATIME.
pub(crate) const ATTR_STRICTATIME: u64 = 0x20;
/// MS_PRIVATE.
pub(crate) const MS_PRIVATE: u64 = 1 << 18;
/// MS_SLAVE.
pub(crate) const MS_SLAVE: u64 = 1 << 19;
/// MS_SHARED.
pub(crate) const MS_SHARED: u64 = 1 << 20;

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Items encoded one behind the other, to build a [`List`] of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    count: u32,
    bytes: Vec<u8>,
}

impl Encoded {
    /// Encodes `items`.
    pub fn of<'a, T: Field<'a>>(items: impl IntoIterator<Item = T>) -> Self {
        items.into_iter().fold(Encoded::default(), |mut list, item| {
            list.push(&item);
            list
        })
    }

    /// Encodes strings. One with a NUL in it is cut there: specs that hold one never come this far.
    pub fn strings<S: AsRef<[u8]>>(items: impl IntoIterator<Item = S>) -> Self {
        items.into_iter().fold(Encoded::default(), |mut list, item| {
            list.push(&text(item.as_ref()));
            list
        })
    }

    fn push<'a, T: Field<'a>>(&mut self, item: &T) {
        self.count = self.count.saturating_add(1);
        item.encode(&mut self.bytes);
    }

    /// The list.
    pub fn list<'a, T: Field<'a>>(&'a self) -> List<'a, T> {
        List::from_encoded(self.count, &self.bytes)
    }
}

/// A string field; cut at a NUL, which `compile` has refused before.
pub(crate) fn text(bytes: &[u8]) -> Str<'_> {
    let front = bytes.split(|b| *b == 0).next().unwrap_or_default();
    Str::new(front).unwrap_or_default()
}

/// A path as a string field, without slashes and dots at its end: the last name is what is made.
pub(crate) fn path(path: &Path) -> Str<'_> {
    text(path.components().as_path().as_os_str().as_bytes())
}

/// The title and the calls of an operation, for the fuzzers.
#[cfg(fuzzing)]
pub fn printed(op: &Op<'_>) -> (String, Vec<String>) {
    (render::title(op), render::calls(op))
}

/// A string field as a path.
pub(crate) fn to_path(text: Str<'_>) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(text.bytes()))
}

/// When a step is done, by the lifetime of what it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Once a sandbox. It does not depend on the task, no task can write what it makes, and nothing of it propagates.
    Prepare,
    /// Once a task.
    Build,
    /// Once a process that runs in the task's enclosure, the first one among them.
    Enter(Enter),
}

/// Where a process that joins a running enclosure takes a step of the phase [`Enter`](Phase::Enter).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Enter {
    /// Before it joins the namespaces.
    Outside,
    /// In the namespaces.
    Inside,
    /// In the namespaces, after everything but the exec.
    Last,
}

/// What a refused step means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OnRefusal {
    /// The spawn fails.
    Fail,
    /// The spawn fails: this host cannot enforce the control. The error gives this reason, then the kernel's.
    Unsupported(Control, String),
    /// Nothing is lost.
    Skip,
    /// The report says what is lost, and why: the first effect's reason is followed by the kernel's.
    Degrade(Vec<Effect>),
}

impl OnRefusal {
    /// Takes a refusal: an error if the step must succeed, else its effects on `report`.
    ///
    /// # Errors
    /// `refused`, where the step must succeed, and where it is not the kernel that refused.
    pub(crate) fn take(&self, refused: Error, report: &mut Report) -> Result<()> {
        match (self, &refused) {
            (OnRefusal::Skip, Error::Prepare { .. }) => Ok(()),
            (OnRefusal::Degrade(effects), Error::Prepare { step, source }) => {
                let cause = format!("{step}: {source}");
                degrade(effects, &cause, report);
                Ok(())
            }
            (OnRefusal::Unsupported(control, why), Error::Prepare { step, source }) => {
                let reason = format!("{why}: {step}: {source}");
                Err(Error::Unsupported { control: *control, reason })
            }
            _ => Err(refused),
        }
    }

    /// As [`take`](Self::take), where it is known before anything is tried that the step cannot be done, and why.
    ///
    /// # Errors
    /// [`Error::Unsupported`], where the step must succeed.
    pub(crate) fn give_up(&self, control: Control, cause: &str, report: &mut Report) -> Result<()> {
        let reason = match self {
            OnRefusal::Skip => return Ok(()),
            OnRefusal::Degrade(effects) => {
                degrade(effects, cause, report);
                return Ok(());
            }
            OnRefusal::Unsupported(_, why) => format!("{why}: {cause}"),
            OnRefusal::Fail => cause.to_owned(),
        };
        Err(Error::Unsupported { control, reason })
    }
}

fn degrade(effects: &[Effect], cause: &str, report: &mut Report) {
    let causes = std::iter::once(Some(cause)).chain(std::iter::repeat(None));
    effects.iter().zip(causes).for_each(|(effect, cause)| report.add(effect, cause));
}

/// One step of a plan: an operation, the control that it serves, and what its refusal means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step<O> {
    pub op: O,
    pub control: Control,
    pub on_refusal: OnRefusal,
    pub phase: Phase,
}

impl<O> Step<O> {
    /// A step of the phase [`Build`](Phase::Build), without which there is no sandbox.
    pub(crate) fn of(control: Control, op: O) -> Self {
        Step { op, control, on_refusal: OnRefusal::Fail, phase: Phase::Build }
    }

    /// The same step with another consequence of a refusal.
    pub(crate) fn on_refusal(self, on_refusal: OnRefusal) -> Self {
        Step { on_refusal, ..self }
    }

    /// The same step, whose refusal only costs its control.
    pub(crate) fn optional(self) -> Self {
        let lost = Effect::lost(self.control, "");
        self.on_refusal(OnRefusal::Degrade(vec![lost]))
    }

    /// The same step in another phase.
    pub(crate) fn in_phase(self, phase: Phase) -> Self {
        Step { phase, ..self }
    }

    /// Whether its refusal does not fail the spawn.
    pub(crate) fn may_be_refused(&self) -> bool {
        matches!(self.on_refusal, OnRefusal::Skip | OnRefusal::Degrade(_))
    }
}

/// An operation of init, encoded. Its system calls are fixed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct InitOp(Vec<u8>);

/// A step of init.
pub(crate) type InitStep = Step<InitOp>;

impl InitOp {
    pub(crate) fn new(op: Op<'_>) -> Self {
        let mut wire = Vec::new();
        op.encode(&mut wire);
        InitOp(wire)
    }

    /// Its bytes in a program.
    pub(crate) fn wire(&self) -> &[u8] {
        &self.0
    }

    /// The operation; `None` for bytes that are none.
    pub(crate) fn decode(&self) -> Option<Op<'_>> {
        Op::decode(&mut self.0.as_slice()).ok()
    }

    /// Its system calls, in order, one a line, in the manner of strace.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.decode().map(|op| render::calls(&op)).unwrap_or_default()
    }

    /// What a user would name it.
    pub(crate) fn title(&self) -> String {
        self.decode().map(|op| render::title(&op)).unwrap_or_default()
    }
}

impl fmt::Debug for InitOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.decode())
    }
}

impl InitStep {
    /// A step without which there is no sandbox.
    pub(crate) fn new(control: Control, op: Op<'_>) -> Self {
        Step::of(control, InitOp::new(op))
    }

    /// The operation.
    pub(crate) fn op(&self) -> Option<Op<'_>> {
        self.op.decode()
    }

    /// The same step in the phase [`Enter`](Phase::Enter).
    pub(crate) fn entering(self, at: Enter) -> Self {
        self.in_phase(Phase::Enter(at))
    }
}

/// Where a standard stream of the task comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamSource {
    /// A descriptor of the caller.
    Caller,
    /// `/dev/null`.
    Null,
    /// A pipe, whose other end the caller gets.
    Pipe,
}

/// A descriptor that the parent opens and hands to init.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Handed {
    /// The task's descriptor 0, 1 or 2.
    Stream(u32, StreamSource),
    /// A descriptor of the caller.
    Caller(i32),
    /// A pidfd of the caller (`pidfd_open(2)`, Linux 5.3).
    Driver,
    /// A pidfd of the first process of a running task.
    Task,
    /// A namespace file.
    Namespace(PathBuf),
    /// A detached copy of the mount tree at a source, made in the caller's mount namespace.
    Tree {
        /// The source, as the spec names it.
        source: PathBuf,
        /// Whether what is mounted below comes along.
        recursive: bool,
    },
    /// A source itself, by an `O_PATH` descriptor: init opens its path again and compares.
    Source(PathBuf),
    /// The `tasks` file of a version 1 cgroup.
    Tasks(PathBuf),
    /// The `tasks` file of the shared cpuset of version 1, if the task must enter it. The step that names it is left
    /// out otherwise.
    Share(PathBuf),
}

impl Handed {
    /// What a user would name it.
    pub(crate) fn title(&self) -> String {
        match self {
            Handed::Stream(number, _) => format!("standard stream {number}"),
            Handed::Caller(number) => format!("descriptor {number} of the caller"),
            Handed::Driver => "a pidfd of the caller".into(),
            Handed::Task => "a pidfd of the task".into(),
            Handed::Namespace(path) => format!("namespace {path:?}"),
            Handed::Tree { source, .. } => format!("a mount tree of {source:?}"),
            Handed::Source(path) => format!("{path:?}"),
            Handed::Tasks(path) | Handed::Share(path) => {
                format!("cgroup {:?}", path.parent().unwrap_or(path))
            }
        }
    }

    /// The call that opens it, in the manner of strace.
    pub(crate) fn call(&self) -> String {
        match self {
            Handed::Stream(number, StreamSource::Caller) => {
                format!("fcntl(stream {number}, F_DUPFD_CLOEXEC)")
            }
            Handed::Stream(_, StreamSource::Null) => "openat(\"/dev/null\", O_RDWR)".into(),
            Handed::Stream(_, StreamSource::Pipe) => "pipe2(O_CLOEXEC)".into(),
            Handed::Caller(number) => format!("fcntl({number}, F_DUPFD_CLOEXEC)"),
            Handed::Driver => "pidfd_open(this process)".into(),
            Handed::Task => "fcntl(pidfd, F_DUPFD_CLOEXEC)".into(),
            Handed::Namespace(path) | Handed::Source(path) => format!("fcntl({path:?}, F_DUPFD_CLOEXEC)"),
            Handed::Tree { source, recursive } => {
                let recursive = if *recursive { "|AT_RECURSIVE" } else { "" };
                format!("open_tree(held {source:?}, OPEN_TREE_CLONE|AT_EMPTY_PATH{recursive})")
            }
            Handed::Tasks(path) => format!("openat(AT_FDCWD, {path:?}, O_WRONLY|O_CLOEXEC)"),
            Handed::Share(path) => {
                format!("openat(AT_FDCWD, {path:?}, O_WRONLY|O_CLOEXEC) # if a processor is reserved")
            }
        }
    }
}

/// The id maps of a new user namespace (`user_namespaces(7)`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IdMaps {
    /// Lines of `uid_map`.
    pub uid: String,
    /// Lines of `gid_map`.
    pub gid: String,
    /// Whether `setgroups(2)` stays allowed, which an unprivileged caller must deny before it writes `gid_map`.
    pub set_groups: bool,
}

impl IdMaps {
    /// The files of `/proc/PID` and what is written to each, in order.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let files = [("setgroups", "deny"), ("uid_map", self.uid.as_str()), ("gid_map", self.gid.as_str())];
        files.into_iter().skip(usize::from(self.set_groups))
    }
}

#[cfg(test)]
mod tests {
    use super::wire::*;
    use super::*;

    #[test]
    fn a_program_survives_the_wire() {
        let options = Encoded::strings(["size", "1m"]);
        let args = Encoded::strings(["-c", ""]);
        let groups = Encoded::of([65534u32, 7]);
        let steps = [
            Op::RootTmpfs { attrs: 6, options: options.list() },
            Op::Ids { uid: 1, gid: 2, set_groups: true, groups: groups.list() },
            Op::Find { candidates: options.list() },
            Op::Exec { args: args.list(), env: args.list() },
        ];
        let encoded = Encoded::of(steps.map(|op| wire::ProgramStep { optional: true, op }));
        let fds = Encoded::of([3u32]);
        let program = Program { status: 5, fds: fds.list(), steps: encoded.list() };
        let mut bytes = Vec::new();
        program.encode(&mut bytes);
        let back = Program::decode(&mut bytes.as_slice()).unwrap();
        assert_eq!(back, program);
        assert_eq!(back.steps.iter().map(|s| s.op).collect::<Vec<_>>(), steps);
        for cut in 0..bytes.len() {
            assert_eq!(Program::decode(&mut &bytes[..cut]), Err(Malformed), "cut at {cut}");
        }
    }

    #[test]
    fn records_survive_the_wire() {
        for record in [
            Record::Failed { step: 70000, call: 3, errno: 13 },
            Record::Degraded { step: 0, call: 0, errno: 38 },
            Record::Ready,
            Record::Running,
            Record::Exited { status: -1 },
        ] {
            assert_eq!(Record::decode(&record.encode()), Ok(record));
        }
        assert_eq!(Record::decode(&[9; 9]), Err(Malformed));
        assert_eq!(Record::decode(&[1; 8]), Err(Malformed));
    }

    #[test]
    fn strings_with_a_nul_are_refused_by_the_decoder() {
        assert_eq!(Str::decode(&mut [3, 0, 0, 0, b'a', 0, b'b', 0].as_slice()), Err(Malformed));
        assert_eq!(Str::decode(&mut [1, 0, 0, 0, b'a', b'b'].as_slice()), Err(Malformed));
    }
}
