//! The steps of a plan: the operations of init as data, their wire format, and their text.
//!
//! A step of init is stored encoded, and decoded to be printed. So the printed plan is the plan that init gets. The
//! rooms that have controls (`rootfs`, `ns`, `caps` and others) create steps; `compile` puts them in order.
//!
//! This module makes no decisions (`compile` does) and runs no step (`spawn` and `init` do).

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::notation;
use crate::report::{Control, Effect, Report};

mod draft;
mod kernel;
mod render;
// Compiled into init as well. Each of the two programs uses one half of it.
#[allow(dead_code, unused_imports)]
pub mod wire;

pub(crate) use draft::Draft;
pub(crate) use kernel::Kernel;
pub(crate) use render::{call, namespaces, rlimit_name};
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

/// Encoded items, one after the other, from which [`list`](Encoded::list) makes a [`List`].
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

    /// Encodes strings. A string with a NUL is cut at the NUL; `compile` refuses specs that have one.
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

    /// The items as a list.
    pub fn list<'a, T: Field<'a>>(&'a self) -> List<'a, T> {
        List::from_encoded(self.count, &self.bytes)
    }
}

/// The message of a spec that passes more descriptors than init takes.
pub(crate) fn too_many() -> String {
    format!("more than {} files, directories and descriptors would be passed to init", wire::FDS)
}

/// A string field. A string with a NUL is cut at the NUL; `compile` refuses specs that have one.
pub(crate) fn text(bytes: &[u8]) -> Str<'_> {
    let front = bytes.split(|b| *b == 0).next().unwrap_or_default();
    Str::new(front).unwrap_or_default()
}

/// A path as a string field, without trailing slashes and `.` components, so that its last component is a name to
/// create.
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

/// The phase of a step: how often it runs, by the lifetime of what it creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Once per sandbox. The step does not depend on the task, no task can write to what it creates, and none of its
    /// mounts propagates.
    Prepare,
    /// Once per task.
    Build,
    /// Once per process that runs in the task's enclosure, the first process included.
    Enter(Enter),
}

/// The point at which a process that joins a running enclosure makes a step of the phase [`Enter`](Phase::Enter).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Enter {
    /// Before it joins the namespaces.
    Outside,
    /// In the namespaces.
    Inside,
    /// In the namespaces, after everything except the exec.
    Last,
}

/// The consequence of a refused step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum OnRefusal {
    /// The spawn fails.
    Fail,
    /// The spawn fails: this host cannot enforce the control. The error gives this reason, then the kernel's.
    Unsupported(Control, String),
    /// The refusal is ignored: no control depends on the step.
    Skip,
    /// The spawn continues. Each effect is added to the report: a control that is missing or weakened, or only a note,
    /// with the reason. The kernel's error is appended to the reason of the first effect.
    Degrade(Vec<Effect>),
}

impl OnRefusal {
    /// Handles a refusal. A step that must succeed returns an error; for others, the effects are applied to `report`.
    ///
    /// # Errors
    /// `refused` if the step must succeed, or if the error is not a refusal by the kernel. [`Error::Unsupported`] for
    /// [`OnRefusal::Unsupported`].
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

    /// Handles a step that is known to fail before it is tried, for the reason `cause`. The consequences are those of
    /// [`take`](Self::take).
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the step must succeed.
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

/// A step of a plan: an operation, the control that it serves, the consequence of a refusal, and its phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step<O> {
    pub op: O,
    pub control: Control,
    pub on_refusal: OnRefusal,
    pub phase: Phase,
}

impl<O> Step<O> {
    /// A step of the phase [`Build`](Phase::Build) whose refusal fails the spawn.
    pub(crate) fn of(control: Control, op: O) -> Self {
        Step { op, control, on_refusal: OnRefusal::Fail, phase: Phase::Build }
    }

    /// The same step with another consequence of a refusal.
    pub(crate) fn on_refusal(self, on_refusal: OnRefusal) -> Self {
        Step { on_refusal, ..self }
    }

    /// The same step. If it is refused, the report loses the step's control and the spawn continues.
    pub(crate) fn optional(self) -> Self {
        let lost = Effect::lost(self.control, "");
        self.on_refusal(OnRefusal::Degrade(vec![lost]))
    }

    /// The same step in another phase.
    pub(crate) fn in_phase(self, phase: Phase) -> Self {
        Step { phase, ..self }
    }

    /// Whether the spawn continues after a refusal.
    pub(crate) fn may_be_refused(&self) -> bool {
        matches!(self.on_refusal, OnRefusal::Skip | OnRefusal::Degrade(_))
    }
}

/// An encoded operation of init. Shared by the copies of a plan: each task has one.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InitOp(#[serde(with = "notation::hex")] Arc<[u8]>);

/// A step of init.
pub(crate) type InitStep = Step<InitOp>;

impl InitOp {
    pub(crate) fn new(op: Op<'_>) -> Self {
        let mut wire = Vec::new();
        op.encode(&mut wire);
        InitOp(wire.into())
    }

    /// The encoded bytes, as they are in a program.
    pub(crate) fn wire(&self) -> &[u8] {
        &self.0
    }

    /// Decodes the operation. `None` if the bytes are malformed.
    pub(crate) fn decode(&self) -> Option<Op<'_>> {
        Op::decode(&mut &*self.0).ok()
    }

    /// The system calls of the operation in order, one per line, in strace's format.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.decode().map(|op| render::calls(&op)).unwrap_or_default()
    }

    /// A short title of the operation for users.
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
    /// A step of the phase [`Build`](Phase::Build) whose refusal fails the spawn.
    pub(crate) fn new(control: Control, op: Op<'_>) -> Self {
        Step::of(control, InitOp::new(op))
    }

    /// Decodes the operation.
    pub(crate) fn op(&self) -> Option<Op<'_>> {
        self.op.decode()
    }

    /// The same step in the phase [`Enter`](Phase::Enter).
    pub(crate) fn entering(self, at: Enter) -> Self {
        self.in_phase(Phase::Enter(at))
    }
}

/// Source of a standard stream of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamSource {
    /// A descriptor of the caller.
    Caller,
    /// `/dev/null`.
    Null,
    /// A pipe. The caller gets the other end.
    Pipe,
    /// A pipe. Init gets the other end, and copies it to the log.
    Log,
}

/// A descriptor that the parent opens and hands to init.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Handed {
    /// The task's descriptor 0, 1 or 2.
    Stream(u32, StreamSource),
    /// A descriptor of the caller.
    Caller(i32),
    /// A pidfd of the caller (`pidfd_open(2)`, Linux 5.3).
    CallerPidfd,
    /// A pidfd of the first process of a running task.
    Task,
    /// The prepared mount namespace of the sandbox.
    Prepared,
    /// Nothing: the step that refers to it has run once for all tasks of the sandbox.
    Nothing,
    /// The v2 cgroup of a process that joins a task.
    Cgroup(PathBuf),
    /// The file of the exit record, opened once more for writing.
    ExitRecord(PathBuf),
    /// The file of the task's log, open for reading and writing.
    Log(PathBuf),
    /// The pipe by which the task's descriptor 1 or 2 reaches the log.
    LogPipe(u32),
    /// A namespace file.
    Namespace(PathBuf),
    /// A detached copy of the mount tree at a source, cloned in the caller's mount namespace.
    Tree {
        /// The source, as the spec names it.
        source: PathBuf,
        /// Whether the mounts below it are cloned too.
        recursive: bool,
        /// Whether it becomes an idmapped mount in which no file has an owner.
        unowned: bool,
    },
    /// An `O_PATH` descriptor of a source. Init opens the path again, and checks that it is the same file.
    Source(PathBuf),
    /// The counter of CPU time of the task's cgroup, open for reading.
    CpuTime(PathBuf),
    /// The `tasks` file of a version 1 cgroup.
    Tasks(PathBuf),
    /// The `tasks` file of the shared cpuset of version 1. The shared cpuset is created when CPUs are reserved. If it
    /// does not exist, init skips the step that refers to this file.
    Share(PathBuf),
}

impl Handed {
    /// A short title of the descriptor for users.
    pub(crate) fn title(&self) -> String {
        match self {
            Handed::Stream(_, StreamSource::Null) => "\"/dev/null\" for standard streams".into(),
            Handed::Stream(number, _) => format!("standard stream {number}"),
            Handed::Caller(number) => format!("descriptor {number} of the caller"),
            Handed::CallerPidfd => "a pidfd of the caller".into(),
            Handed::Task => "a pidfd of the task".into(),
            Handed::Prepared => "the prepared mount namespace".into(),
            Handed::Nothing => "nothing".into(),
            Handed::Cgroup(path) => format!("cgroup {path:?}"),
            Handed::ExitRecord(path) => format!("exit record {path:?}"),
            Handed::Log(path) => format!("log {path:?}"),
            Handed::LogPipe(number) => format!("a pipe from standard stream {number}"),
            Handed::Namespace(path) => format!("namespace {path:?}"),
            Handed::Tree { source, .. } => format!("a mount tree of {source:?}"),
            Handed::Source(path) => format!("{path:?}"),
            Handed::CpuTime(path) => format!("{path:?}"),
            Handed::Tasks(path) | Handed::Share(path) => {
                format!("cgroup {:?}", path.parent().unwrap_or(path))
            }
        }
    }

    /// The call that opens it, in strace's format.
    pub(crate) fn call(&self) -> String {
        match self {
            Handed::Stream(number, StreamSource::Caller) => {
                format!("fcntl(stream {number}, F_DUPFD_CLOEXEC)")
            }
            Handed::Stream(_, StreamSource::Null) => "openat(\"/dev/null\", O_RDWR)".into(),
            Handed::Stream(_, StreamSource::Pipe | StreamSource::Log) => "pipe2(O_CLOEXEC)".into(),
            Handed::Caller(number) => format!("fcntl({number}, F_DUPFD_CLOEXEC)"),
            Handed::CallerPidfd => "pidfd_open(this process)".into(),
            Handed::Task => "fcntl(pidfd, F_DUPFD_CLOEXEC)".into(),
            Handed::Prepared => "fcntl(prepared mounts, F_DUPFD_CLOEXEC)".into(),
            Handed::Nothing => String::new(),
            Handed::Cgroup(path) => format!("fcntl({path:?}, F_DUPFD_CLOEXEC)"),
            Handed::ExitRecord(path) => format!("openat({path:?}, O_WRONLY|O_NOFOLLOW)"),
            Handed::Log(path) => format!("fcntl({path:?}, F_DUPFD_CLOEXEC)"),
            Handed::LogPipe(_) => "fcntl(the pipe, F_SETFL, O_NONBLOCK)".into(),
            Handed::Namespace(path) | Handed::Source(path) => format!("fcntl({path:?}, F_DUPFD_CLOEXEC)"),
            Handed::Tree { source, recursive, .. } => {
                let recursive = if *recursive { "|AT_RECURSIVE" } else { "" };
                format!("open_tree(held {source:?}, OPEN_TREE_CLONE|AT_EMPTY_PATH{recursive})")
            }
            Handed::CpuTime(path) => format!("openat(AT_FDCWD, {path:?}, O_RDONLY|O_CLOEXEC)"),
            Handed::Tasks(path) => format!("openat(AT_FDCWD, {path:?}, O_WRONLY|O_CLOEXEC)"),
            Handed::Share(path) => {
                format!("openat(AT_FDCWD, {path:?}, O_WRONLY|O_CLOEXEC) # if a CPU is reserved")
            }
        }
    }

    /// All calls that it takes.
    pub(crate) fn calls(&self) -> Vec<String> {
        let map = match self {
            Handed::Tree { source, unowned: true, .. } => Some(map_ids_call(source)),
            _ => None,
        };
        std::iter::once(self.call()).chain(map).collect()
    }
}

/// The call that makes an idmapped mount, in strace's format.
pub(crate) fn map_ids_call(source: &Path) -> String {
    format!("mount_setattr({source:?}, AT_RECURSIVE, MOUNT_ATTR_IDMAP)")
}

/// The id maps of a new user namespace (`user_namespaces(7)`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IdMaps {
    /// Lines of `uid_map`.
    pub uid: String,
    /// Lines of `gid_map`.
    pub gid: String,
    /// Whether `setgroups(2)` stays allowed in the namespace. If not, `deny` is written to `setgroups` before `gid_map`
    /// is written, as the kernel requires of an unprivileged caller.
    pub set_groups: bool,
}

impl IdMaps {
    /// The files of `/proc/PID` and the text that is written to each, in order.
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
    fn decoding_an_encoded_program_yields_the_same_program() {
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
    fn decoding_an_encoded_record_yields_the_same_record() {
        for record in [
            Record::Failed { step: 70000, call: 3, errno: 13 },
            Record::Degraded { step: 0, call: 0, errno: 38 },
            Record::Ready,
            Record::Running,
            Record::Exited { status: -1 },
            Record::Deadline,
            Record::CpuDeadline,
            Record::Terminal,
            Record::Prepared,
            Record::AtGate,
            Record::Copied { pid: 70000 },
            Record::EndedAt { nanoseconds: u64::MAX - 1 },
        ] {
            assert_eq!(Record::decode(&record.encode()), Ok(record));
        }
        assert_eq!(Record::decode(&[13; 9]), Err(Malformed));
        assert_eq!(Record::decode(&[1; 8]), Err(Malformed));
    }

    #[test]
    fn a_log_header_and_an_entry_head_are_decoded_as_encoded_and_other_bytes_are_refused() {
        let header = LogHeader { size: 1 << 20, start: 7 << 20, end: (8 << 20) - 1 };
        assert_eq!(LogHeader::decode(&header.encode()), Ok(header));
        for wrong in [LogHeader { end: 9 << 20, ..header }, LogHeader { start: 9 << 20, ..header }] {
            assert_eq!(LogHeader::decode(&wrong.encode()), Err(Malformed));
        }
        let mut other = header.encode();
        other[7] = 2;
        assert_eq!(LogHeader::decode(&other), Err(Malformed));
        let head = LogHead { stream: 2, len: 4096, time: (1 << 40, 999_999_999) };
        assert_eq!(LogHead::decode(head.encode()), Ok(head));
        for wrong in [LogHead { stream: 3, ..head }, LogHead { len: 4097, ..head }] {
            assert_eq!(LogHead::decode(wrong.encode()), Err(Malformed));
        }
    }

    #[test]
    fn the_ranges_of_a_ring_are_its_bytes_in_order() {
        let header = LogHeader { size: 10, ..LogHeader::default() };
        let first = LOG_HEADER as u64;
        assert_eq!(header.ranges(3, 4), Some([(first + 3, 4), (first, 0)]));
        assert_eq!(header.ranges(28, 4), Some([(first + 8, 2), (first, 2)]));
        assert_eq!(header.ranges(20, 10), Some([(first, 10), (first, 0)]));
        assert_eq!(header.ranges(0, 11), None);
        assert_eq!(LogHeader::default().ranges(0, 0), None);
    }

    #[test]
    fn exit_record_with_any_changed_byte_is_refused() {
        let ends = [End::Status(43 << 8), End::Status(9), End::Deadline, End::CpuDeadline];
        for end in ends.into_iter().chain([End::Killed, End::NotExecuted]) {
            let record = ExitRecord { end, time: (u64::MAX - 7, 999_999_999) };
            let bytes = record.encode();
            assert_eq!(ExitRecord::decode(&bytes), Ok(record));
            for at in 0..bytes.len() {
                let mut torn = bytes;
                torn[at] ^= 0x10;
                assert_eq!(ExitRecord::decode(&torn), Err(Malformed), "byte {at}");
            }
        }
        assert_eq!(ExitRecord::decode(&[0; EXIT_RECORD]), Err(Malformed));
    }

    #[test]
    fn decoder_refuses_strings_with_a_nul_inside_or_none_behind() {
        assert_eq!(Str::decode(&mut [3, 0, 0, 0, b'a', 0, b'b', 0].as_slice()), Err(Malformed));
        assert_eq!(Str::decode(&mut [1, 0, 0, 0, b'a', b'b'].as_slice()), Err(Malformed));
    }
}
