//! A task's cgroups as data: what will be made and written, and what that amounts to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::cores::Seat;
use super::devices::{Rule, bpf};
use super::limits::Limits;
use super::settings::Terms;
use crate::report::{Control, Reason, Report};

/// Directories and writes, in order, for one task. [`lower`](super::lower) makes it, and
/// [`Group::create`](super::Group::create) obeys it.
///
/// An empty layout, without directories, is what a host without usable cgroups gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// Leaves of other places that a task of this name would have had, with and without reserved processors;
    /// what is found there was left behind.
    pub former: Vec<PathBuf>,
    /// The directories to make, parents before their children.
    pub dirs: Vec<Dir>,
    /// The directories and writes that divide the processors, made under a lock once the others are there.
    pub cores: Option<Seat>,
    /// The files to write once all directories are there.
    pub writes: Vec<Write>,
    /// The v2 cgroup to start init into, with `CLONE_INTO_CGROUP` (Linux 5.7).
    pub into: Option<PathBuf>,
    /// The v1 `tasks` files that init, while it has a single thread, writes `0` to.
    pub enter: Vec<PathBuf>,
    /// The cgroup in which all processes are found and killed: the v2 one, else the v1 freezer's.
    pub unit: Option<PathBuf>,
    /// The v2 cgroups that hand controllers down to the task's: from the highest that may be managed to the parent.
    pub levels: Vec<PathBuf>,
    /// What the limits meant in files; `None` where none could be set.
    pub(crate) terms: Option<Terms>,
    /// The limits that all this is for.
    pub limits: Limits,
    /// Why no limits can be set on this host.
    pub gate: Option<String>,
    /// Where the controllers of v1 that the task is in are; co-mounted ones have the same directory.
    pub v1: BTreeMap<String, PathBuf>,
    /// The devices that the eBPF program on [`into`](Self::into) allows; without any there is no program. Where the
    /// devices controller of v1 does it, its rules are among the writes.
    pub devices: Vec<Rule>,
    /// What will hold.
    pub enforced: Control,
    /// What will hold in part, and in which.
    pub weakened: Vec<Reason>,
    /// What will not hold, and why.
    pub missing: Vec<Reason>,
    /// Remarks on what holds.
    pub notes: Vec<Reason>,
}

/// One directory of a layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dir {
    /// Its absolute path.
    pub path: PathBuf,
    /// Whose it is.
    pub kind: Kind,
}

impl Dir {
    /// How it is made.
    pub(super) fn call(&self) -> String {
        if self.kind == Kind::Leaf { call::mkdir(&self.path) } else { call::mkdir_private(&self.path) }
    }
}

/// Whose a directory is, and so who removes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The operator's: made if it is not there, removed by the group that made it, when empty.
    Parent,
    /// The crate's own parent: made if it is not there, removed when empty by whoever is last.
    OwnParent,
    /// The task's: must be new, is removed with the task.
    Leaf,
}

/// One write to a control file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Write {
    /// The file.
    pub path: PathBuf,
    /// What is written.
    pub value: Value,
    /// What it means if the kernel refuses it.
    pub need: Need,
}

/// What is written to a control file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// This text.
    Text(String),
    /// What the parent directory's file of the same name says, if this file is blank: new
    /// cpusets of v1 are, and nothing may enter them so. It is known only when it is written.
    Inherit,
}

/// What a refused write means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// The group cannot be made.
    Must,
    /// Nothing: it was extra.
    Try,
    /// The task has less than it was to have; [`Group::changed`](super::Group::changed) has the reason.
    Less(Reason),
    /// The control is weakened; [`Group::shortfalls`](super::Group::shortfalls) has the reason.
    Else(Reason),
}

impl Layout {
    /// Whether there is nothing to make.
    pub fn is_empty(&self) -> bool {
        self.dirs.is_empty() && self.cores.is_none()
    }

    /// Every path that is the task's own.
    pub fn leaves(&self) -> impl Iterator<Item = &Path> {
        let dirs = self.dirs.iter().filter(|d| d.kind == Kind::Leaf).map(|d| d.path.as_path());
        dirs.chain(self.cores.iter().filter_map(|seat| seat.leaf.as_deref()))
    }

    /// Adds what will hold, and what not, to a report.
    pub(crate) fn tell(&self, report: &mut Report) {
        report.enforce(self.enforced);
        for r in &self.weakened {
            report.weaken(r.control, r.why.clone());
        }
        for r in &self.missing {
            report.miss(r.control, r.why.clone());
        }
        for r in &self.notes {
            report.note(r.control, r.why.clone());
        }
    }

    /// The system calls of [`Group::create`](super::Group::create) and
    /// [`Group::enter_fds`](super::Group::enter_fds) on this layout, in order and as strace spells the paths.
    ///
    /// The descriptor of a write is shown as the path that it was opened by; several in a row to one file share it. A line with `# if` behind it is a
    /// call that is made only then. What is found in the place of an earlier task takes more calls to remove.
    pub fn calls(&self) -> Vec<String> {
        let former = self
            .former
            .iter()
            .map(|path| format!("{} # nothing is there, else it is removed", call::open_dir(path)));
        let dirs = self.dirs.iter().map(Dir::call);
        let dirs = former.chain(dirs).chain(self.cores.iter().flat_map(Seat::calls));
        let held = self.unit.iter().chain(self.memory_apart()).map(|path| call::open_dir(path));
        let writes = self.writes.iter().scan(None, |last, write| {
            let open = last.replace(&write.path) == Some(&write.path);
            Some(write.calls(open))
        });
        let filter = self.unit.iter().filter(|_| !self.devices.is_empty());
        let filter = filter.flat_map(|unit| bpf::calls(unit, &self.devices));
        let enter = self.enter.iter().map(|path| call::open_write(path));
        dirs.chain(held).chain(writes.flatten()).chain(filter).chain(enter).collect()
    }

    /// The memory cgroup of v1, if it is not the unit itself.
    pub(super) fn memory_apart(&self) -> Option<&PathBuf> {
        self.v1.get("memory").filter(|path| Some(*path) != self.unit.as_ref())
    }
}

impl Write {
    /// What `dir` must have of its parent.
    pub(super) fn inherit(dir: &Path, file: &str) -> Write {
        Write { path: dir.join(file), value: Value::Inherit, need: Need::Must }
    }

    /// The file that an inherited value comes from.
    pub(super) fn source(&self) -> Option<PathBuf> {
        Some(self.path.parent()?.parent()?.join(self.path.file_name()?))
    }

    /// The file's name and what is written to it.
    pub(super) fn line(&self) -> Option<(String, String)> {
        let file = self.path.file_name()?.to_str()?.to_owned();
        match &self.value {
            Value::Text(text) => Some((file, text.clone())),
            Value::Inherit => None,
        }
    }

    /// Its calls, where the file is `open` from the write before it or is not.
    pub(super) fn calls(&self, open: bool) -> Vec<String> {
        match (&self.value, self.source()) {
            (Value::Text(text), _) if open => vec![call::write(&self.path, text)],
            (Value::Text(text), _) => vec![call::open_set(&self.path), call::write(&self.path, text)],
            (Value::Inherit, Some(source)) => vec![
                call::open_read(&self.path),
                format!("{} # if that was blank", call::open_read(&source)),
                format!("{} # if that was blank", call::open_set(&self.path)),
                format!("write({:?}, <what {:?} has>) # if that was blank", self.path, source),
            ],
            (Value::Inherit, None) => Vec::new(),
        }
    }
}

/// The spelling of system calls, for the plan and for errors alike.
pub(super) mod call {
    use std::path::Path;

    use super::super::readback::is_state;

    pub fn mkdir(path: &Path) -> String {
        format!("mkdir({path:?}, 0755)")
    }

    /// Nobody else may open it: who can could hold its lock.
    pub fn mkdir_private(path: &Path) -> String {
        format!("mkdir({path:?}, 0711)")
    }

    pub fn rmdir(path: &Path) -> String {
        format!("rmdir({path:?})")
    }

    pub fn open_dir(path: &Path) -> String {
        format!("openat(AT_FDCWD, {path:?}, O_RDONLY|O_CLOEXEC|O_DIRECTORY)")
    }

    pub fn lock(path: &Path) -> String {
        format!("flock({path:?}, LOCK_EX|LOCK_NB)")
    }

    pub fn pin(path: &Path) -> String {
        format!("flock({path:?}, LOCK_SH|LOCK_NB)")
    }

    pub fn get_record(path: &Path) -> String {
        format!("fgetxattr({path:?}, \"user.cofferdam.cores\")")
    }

    pub fn set_record(path: &Path, text: &str) -> String {
        format!("fsetxattr({path:?}, \"user.cofferdam.cores\", {text:?})")
    }

    pub fn open_read(path: &Path) -> String {
        format!("openat(AT_FDCWD, {path:?}, O_RDONLY|O_CLOEXEC)")
    }

    /// Values are read again after they were written.
    pub fn open_set(path: &Path) -> String {
        let name = path.file_name().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
        let how = if is_state(name) { "O_RDWR" } else { "O_WRONLY" };
        format!("openat(AT_FDCWD, {path:?}, {how}|O_CLOEXEC)")
    }

    pub fn open_write(path: &Path) -> String {
        format!("openat(AT_FDCWD, {path:?}, O_WRONLY|O_CLOEXEC)")
    }

    pub fn write(path: &Path, text: &str) -> String {
        format!("write({path:?}, {text:?})")
    }
}
