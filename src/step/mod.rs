//! The steps of a plan: the operations of init as data, their wire format, and their text.
//!
//! A step of init is kept encoded and is decoded to be printed, so what is shown is what is sent. The domains make
//! steps; `plan` puts them in order.
//!
//! What it does not do: decide (that is `compile`) or act (that is `spawn` and `init`).

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::report::Control;

mod render;
// Compiled into init as well: each program uses one half of it.
#[allow(dead_code, unused_imports)]
pub mod wire;

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

/// One step of init: something that a user would name, made of fixed system calls.
#[derive(Clone, PartialEq, Eq)]
pub struct Step {
    wire: Vec<u8>,
    /// The control that is lost when the kernel refuses an optional step.
    pub control: Control,
    /// Whether init goes on after a refusal; the control is then taken out of the report.
    pub optional: bool,
}

impl Step {
    /// A step without which there is no sandbox.
    pub(crate) fn new(control: Control, op: Op<'_>) -> Self {
        let mut wire = Vec::new();
        op.encode(&mut wire);
        Step { wire, control, optional: false }
    }

    /// The same step, but its refusal only costs its control.
    pub(crate) fn optional(self) -> Self {
        Step { optional: true, ..self }
    }

    /// Its bytes in a program, without the flag before them.
    pub(crate) fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// The operation.
    pub(crate) fn op(&self) -> Option<Op<'_>> {
        Op::decode(&mut self.wire.as_slice()).ok()
    }

    /// The system calls of the step, in order, one a line, in the manner of strace.
    pub fn calls(&self) -> Vec<String> {
        self.op().map(|op| render::calls(&op)).unwrap_or_default()
    }

    /// What a user would name it.
    pub fn title(&self) -> String {
        self.op().map(|op| render::title(&op)).unwrap_or_default()
    }
}

/// A step as init reads it, to be printed. The wire does not say which control it serves.
impl From<wire::Step<'_>> for Step {
    fn from(step: wire::Step<'_>) -> Self {
        Step { optional: step.optional, ..Step::new(Control::empty(), step.op) }
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.op())
    }
}

/// A descriptor that the parent opens and hands to init.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handed {
    /// The task's descriptor 0, 1 or 2, as the spec's stdio says.
    Stdio(u32),
    /// A descriptor of the caller.
    Caller(i32),
    /// A pidfd of the caller (`pidfd_open(2)`, Linux 5.3).
    Driver,
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
}

/// The id maps of a new user namespace (`user_namespaces(7)`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMaps {
    /// Lines of `uid_map`.
    pub uid: String,
    /// Lines of `gid_map`.
    pub gid: String,
    /// Whether `setgroups(2)` stays allowed, which an unprivileged caller must deny before it writes `gid_map`.
    pub set_groups: bool,
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
        let encoded = Encoded::of(steps.map(|op| wire::Step { optional: true, op }));
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
