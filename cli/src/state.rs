//! The handles of detached tasks, in files. There is no daemon: every call recovers the task by its handle.
//!
//! The state directory is `$COFFERDAM_STATE`, `/run/cofferdam` for root, or `$XDG_RUNTIME_DIR/cofferdam`. It contains
//! `tasks` (one JSON file per task) and `exits` (exit records). The temporary roots are in `$COFFERDAM_STATE/roots`,
//! `/var/lib/cofferdam/roots` for root, or `$XDG_STATE_HOME/cofferdam/roots`: a runtime directory may be mounted `noexec`,
//! and is in memory.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cofferdam::{Error, Policy, Sandbox, SandboxSpec, Task, TaskHandle};
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Failure;

/// How long a call waits for another process that has the task.
const BUSY: Duration = Duration::from_secs(60);

/// The state directory, and that of the temporary roots.
pub(crate) struct Store {
    dir: PathBuf,
    roots: PathBuf,
}

/// What the command line stores of a task beside its handle.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct About {
    pub name: String,
    /// The command and its arguments. Bytes that are not UTF-8 are replaced.
    pub command: Vec<String>,
    /// Seconds from the epoch to the spawn.
    pub created: u64,
}

/// A name that no other process can take. Dropping it gives the name back, unless a handle was stored.
pub(crate) struct Reservation {
    /// The new file, locked.
    lock: Flock<File>,
    new: PathBuf,
    file: PathBuf,
    stored: bool,
}

impl Store {
    /// Opens the state directory. Creates it if it does not exist.
    pub(crate) fn open() -> Result<Store, Failure> {
        let why = "XDG_RUNTIME_DIR is not set: set COFFERDAM_STATE to a directory that only you can write";
        let Places { dir, roots } =
            places().ok_or_else(|| Failure::new(format!("no state directory: {why}")))?;
        let make = |dir: &Path| {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(|e| refused(dir, format_args!("{e}: set COFFERDAM_STATE to another directory")))
        };
        // Without symbolic links, which another user could change after the checks.
        let made = |dir: &Path| {
            make(dir)?;
            let dir = dir.canonicalize().map_err(|e| refused(dir, e))?;
            check(&dir)?;
            check_ancestors(&dir)?;
            Ok::<PathBuf, Failure>(dir)
        };
        let (dir, roots) = (made(&dir)?, made(&roots)?);
        for part in ["tasks", "exits"].map(|part| dir.join(part)) {
            make(&part)?;
            check(&part)?;
        }
        Ok(Store { dir, roots })
    }

    /// Opens the state directory. `None` if there is nothing of any task, also not of those from before a reboot, which has
    /// emptied the runtime directory.
    pub(crate) fn existing() -> Result<Option<Store>, Failure> {
        let exists =
            places().is_some_and(|Places { dir, roots }| dir.join("tasks").exists() || roots.exists());
        exists.then(Store::open).transpose()
    }

    /// Sets the directories of a detached task, unless the operator names others.
    pub(crate) fn places(&self, policy: &mut Policy) {
        policy.state_dir.get_or_insert_with(|| self.dir.join("exits"));
        policy.temp_dir.get_or_insert_with(|| self.roots.clone());
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join("tasks").join(format!("{name}.json"))
    }

    /// The names of all tasks, in order.
    pub(crate) fn names(&self) -> Result<Vec<String>, Failure> {
        let dir = self.dir.join("tasks");
        let wrong = |e: io::Error| refused(&dir, e);
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).map_err(wrong)? {
            let entry = entry.map_err(wrong)?.file_name();
            names.extend(entry.to_str().and_then(|file| file.strip_suffix(".json")).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// Whether a task has the name.
    pub(crate) fn has(&self, name: &str) -> bool {
        check_name(name).is_ok() && self.file(name).exists()
    }

    /// Reads a handle. `None` if no task has the name.
    fn read(&self, name: &str) -> Result<Option<TaskHandle>, Failure> {
        if check_name(name).is_err() {
            return Ok(None);
        }
        let file = self.file(name);
        let wrong = |e: io::Error| Failure::new(format!("task {name}: cannot read {file:?}: {e}"));
        // Opening a named pipe would wait for a writer.
        let mut open = match File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&file) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            open => open.map_err(wrong)?,
        };
        if !open.metadata().map_err(wrong)?.is_file() {
            return Err(self.damaged(name, "it is not a regular file"));
        }
        let mut text = Vec::new();
        open.read_to_end(&mut text).map_err(wrong)?;
        serde_json::from_slice(&text).map(Some).map_err(|e| self.damaged(name, e))
    }

    fn damaged(&self, name: &str, why: impl std::fmt::Display) -> Failure {
        let file = self.file(name);
        let remedy = "remove the file, then run cofferdam prune to kill and remove the task";
        Failure::new(format!("task {name}: the state file {file:?} is damaged: {why} ({remedy})"))
    }

    /// Recovers a task. Waits while another process has it. `None` if no task has the name.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Task>, Failure> {
        let start = Instant::now();
        loop {
            let Some(handle) = self.read(name)? else { return Ok(None) };
            match Sandbox::recover(&handle) {
                Err(Error::Task { source, .. })
                    if source.kind() == ErrorKind::ResourceBusy && start.elapsed() < BUSY =>
                {
                    std::thread::sleep(Duration::from_millis(10));
                }
                recovered => return recovered.map(Some).map_err(|e| Failure::of(name, e)),
            }
        }
    }

    /// Recovers a task.
    ///
    /// # Errors
    /// Also if no task has the name.
    pub(crate) fn recover(&self, name: &str) -> Result<Task, Failure> {
        self.find(name)?
            .ok_or_else(|| Failure::new(format!("no task {name} (cofferdam ps -a lists all tasks)")))
    }

    /// What the command line has stored of the task.
    pub(crate) fn about(&self, name: &str, task: &Task) -> Result<About, Failure> {
        serde_json::from_slice(task.data()).map_err(|e| self.damaged(name, e))
    }

    /// Refuses a name that a task has.
    pub(crate) fn check_free(&self, name: &str) -> Result<(), Failure> {
        let Some(task) = self.find(name)? else { return Ok(()) };
        let message = match task.status().map_err(|e| Failure::of(name, e))? {
            None => format!(
                "the name {name} is in use by a running task: choose another name, or remove the task with \
                 cofferdam rm -f {name}"
            ),
            Some(_) => {
                format!("the name {name} is in use by an ended task: remove it with cofferdam rm {name}")
            }
        };
        Err(Failure::new(message))
    }

    /// Reserves the name of a task that is to be [replaced](Self::make_room).
    pub(crate) fn reserve_used(&self, name: &str) -> Result<Reservation, Failure> {
        check_name(name)?;
        self.lock(name)
    }

    /// Kills and removes the task that has the name of the sandbox, unless the sandbox cannot be planned.
    pub(crate) fn make_room(&self, name: &str, sandbox: &Sandbox) -> Result<(), Failure> {
        let Some(task) = self.find(name)? else { return Ok(()) };
        sandbox.plan()?;
        self.remove(name, &task)
    }

    /// Reserves a name for a new task.
    pub(crate) fn reserve(&self, name: &str) -> Result<Reservation, Failure> {
        check_name(name)?;
        let reserved = self.lock(name)?;
        self.check_free(name)?;
        Ok(reserved)
    }

    /// Replaces the handle of a task. No other process can meanwhile, because this one has the task.
    pub(crate) fn replace(&self, name: &str, task: &Task) -> Result<(), Failure> {
        let handle = task.handle().map_err(|e| Failure::of(name, e))?;
        let (file, new) = (self.file(name), self.file(name).with_file_name(format!("{name}.next")));
        let opened = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new);
        opened.and_then(|opened| store(&handle, &opened, &new, &file)).map_err(|e| {
            let _ = fs::remove_file(&new);
            refused(&new, e)
        })
    }

    /// What distinguishes the task from another one that gets its name later: the random mark of its exit record.
    pub(crate) fn identity(&self, name: &str, task: &Task) -> Result<Value, Failure> {
        let handle = task.handle().map_err(|e| Failure::of(name, e))?;
        let handle = serde_json::to_value(handle).map_err(|e| self.damaged(name, e))?;
        Ok(handle.get("record").cloned().unwrap_or_default())
    }

    /// Creates and locks the file that becomes the task's file.
    fn lock(&self, name: &str) -> Result<Reservation, Failure> {
        let file = self.file(name);
        let new = file.with_file_name(format!("{name}.new"));
        loop {
            let opened = File::options().write(true).create(true).truncate(false).mode(0o600).open(&new);
            let opened = opened.map_err(|e| refused(&new, e))?;
            let lock = Flock::lock(opened, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
                nix::errno::Errno::EAGAIN => {
                    let remedy = "choose another name, or try again";
                    Failure::new(format!(
                        "the name {name} is in use by a task that is being started: {remedy}"
                    ))
                }
                e => refused(&new, e),
            })?;
            // Another process may have renamed or removed the file before it was locked.
            let inode = lock.metadata().map_err(|e| refused(&new, e))?.ino();
            if fs::metadata(&new).is_ok_and(|now| now.ino() == inode) {
                return Ok(Reservation { lock, new, file, stored: false });
            }
        }
    }

    /// Removes the file of a task that was stored and then not started.
    pub(crate) fn forget(&self, name: &str) {
        let _ = fs::remove_file(self.file(name));
    }

    /// Kills what is left of the task, and removes it and its file.
    pub(crate) fn remove(&self, name: &str, task: &Task) -> Result<(), Failure> {
        // Once the task is released, another one may get the name, and a file.
        let (file, old) = (self.file(name), self.file(name).with_file_name(format!("{name}.old")));
        match fs::rename(&file, &old) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(refused(&file, e)),
            _ => {}
        }
        if let Err(e) = task.release() {
            let _ = fs::hard_link(&old, &file);
            let _ = fs::remove_file(&old);
            return Err(Failure::of(name, e));
        }
        match fs::remove_file(&old) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(refused(&old, e)),
            _ => Ok(()),
        }
    }
}

impl Reservation {
    /// Stores the handle.
    pub(crate) fn store(mut self, handle: &TaskHandle) -> Result<(), Failure> {
        self.lock.set_len(0).map_err(|e| refused(&self.new, e))?;
        store(handle, &self.lock, &self.new, &self.file).map_err(|e| refused(&self.new, e))?;
        self.stored = true;
        Ok(())
    }
}

/// Writes the handle to the file at `new` and renames it, so that it is there completely or not at all.
fn store(handle: &TaskHandle, mut opened: &File, new: &Path, file: &Path) -> io::Result<()> {
    opened.write_all(&serde_json::to_vec(handle)?)?;
    opened.sync_all()?;
    fs::rename(new, file)
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.stored {
            let _ = fs::remove_file(&self.new);
        }
    }
}

impl About {
    /// The facts of a task that is spawned now.
    pub(crate) fn new(name: &str, spec: &SandboxSpec) -> About {
        let command = std::iter::once(&spec.command).chain(&spec.args);
        About {
            name: name.to_owned(),
            command: command.map(|word| word.to_string_lossy().into_owned()).collect(),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        }
    }

    /// The bytes for [`TaskHandle::with_data`].
    pub(crate) fn to_data(&self) -> Result<Vec<u8>, Failure> {
        serde_json::to_vec(self).map_err(|e| Failure::new(format!("task {}: {e}", self.name)))
    }
}

/// Checks a name: 1 to 128 letters, digits, `_`, `.` and `-`, with a letter or a digit first.
pub(crate) fn check_name(name: &str) -> Result<(), Failure> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.len() <= 128 && name.chars().all(fine) {
        return Ok(());
    }
    let wanted = "use 1 to 128 letters, digits, '_', '.' or '-', and begin with a letter or a digit";
    Err(Failure::new(format!("--name: {name:?} is not a valid name: {wanted}")))
}

/// The state directory, and that of the temporary roots.
#[derive(Debug, PartialEq)]
struct Places {
    dir: PathBuf,
    roots: PathBuf,
}

fn places() -> Option<Places> {
    places_by(geteuid().is_root(), |name| {
        std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    })
}

/// The places of root or of another user, who has these variables.
fn places_by(root: bool, variable: impl Fn(&str) -> Option<PathBuf>) -> Option<Places> {
    if let Some(dir) = variable("COFFERDAM_STATE") {
        return Some(Places { roots: dir.join("roots"), dir });
    }
    if root {
        return Some(Places { dir: "/run/cofferdam".into(), roots: "/var/lib/cofferdam/roots".into() });
    }
    let dir = variable("XDG_RUNTIME_DIR")?.join("cofferdam");
    let state = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")));
    let roots = state.map_or_else(|| dir.clone(), |state| state.join("cofferdam")).join("roots");
    Some(Places { dir, roots })
}

/// Refuses a directory in which another user can create or replace files.
fn check(dir: &Path) -> Result<(), Failure> {
    let found = fs::metadata(dir).map_err(|e| refused(dir, e))?;
    let (owner, own, mode) = (found.uid(), geteuid().as_raw(), found.mode() & 0o7777);
    if owner != own {
        let why = format!("user {owner} owns it, not {own}: set COFFERDAM_STATE to a directory of your own");
        return Err(refused(dir, why));
    }
    if mode & 0o022 != 0 {
        return Err(refused(dir, format_args!("other users can write to it (mode {mode:04o}): chmod 0700")));
    }
    Ok(())
}

/// Refuses a directory that another user can replace: one whose path leads through a directory of another user, or through
/// one that other users can write to and whose entries they can rename.
fn check_ancestors(dir: &Path) -> Result<(), Failure> {
    // The owner of the root is not user 0 in a user namespace that does not map the host's root.
    let root = fs::metadata("/").map_err(|e| refused(dir, e))?.uid();
    for above in dir.ancestors().skip(1) {
        let found = fs::metadata(above).map_err(|e| refused(above, e))?;
        let (owner, mode) = (found.uid(), found.mode() & 0o7777);
        let other = ![0, root, geteuid().as_raw()].contains(&owner);
        if other || mode & 0o022 != 0 && mode & 0o1000 == 0 {
            return Err(refused(
                dir,
                format_args!(
                    "other users can replace it: user {owner} owns {above:?} (mode {mode:04o}): set COFFERDAM_STATE to another directory"
                ),
            ));
        }
    }
    Ok(())
}

fn refused(path: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::new(format!("state in {path:?}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_not_in_a_runtime_directory_unless_there_is_no_other() {
        let set = [
            ("COFFERDAM_STATE", "/c"),
            ("XDG_RUNTIME_DIR", "/run/user/7"),
            ("XDG_STATE_HOME", "/s"),
            ("HOME", "/h"),
        ];
        for (root, without, dir, roots) in [
            (true, 0, "/c", "/c/roots"),
            (false, 0, "/c", "/c/roots"),
            (true, 1, "/run/cofferdam", "/var/lib/cofferdam/roots"),
            (true, 4, "/run/cofferdam", "/var/lib/cofferdam/roots"),
            (false, 1, "/run/user/7/cofferdam", "/s/cofferdam/roots"),
        ] {
            let variable = |name: &str| {
                let found = set.iter().skip(without).find(|(variable, _)| *variable == name);
                found.map(|(_, value)| value.into())
            };
            let places = Places { dir: dir.into(), roots: roots.into() };
            assert_eq!(places_by(root, variable), Some(places), "without {without}");
        }
        let only =
            |names: &'static [&str]| move |name: &str| names.contains(&name).then(|| PathBuf::from("/only"));
        let roots = |names| places_by(false, only(names)).map(|places| places.roots);
        assert_eq!(roots(&["XDG_RUNTIME_DIR", "HOME"]), Some("/only/.local/state/cofferdam/roots".into()));
        assert_eq!(roots(&["XDG_RUNTIME_DIR"]), Some("/only/cofferdam/roots".into()));
        assert_eq!(roots(&["HOME"]), None);
    }
}
