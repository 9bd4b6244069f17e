//! Methods of a task that give it up or describe it, for another process that recovers it.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use super::handle::{Identity, RootPlace, TaskHandle, boot_id, build};
use super::undo::DETACHED;
use super::{Child, Task, Undo, reaper};
use crate::cgroup::Group;
use crate::error::{Error, Result};
use crate::plan::Enclosure;
use crate::rootfs::Populated;
use crate::sys;

impl Task {
    /// Gives up ownership: the task runs on, also after the end of this process, and dropping the value kills and removes
    /// nothing. Returns the handle by which any process [recovers](crate::Sandbox::recover) the task.
    ///
    /// It works with either [`DieWith`](crate::DieWith). Afterwards this value can only be asked for the status and for
    /// what it has kept: signals, kills, changes and additional commands are refused. The process that recovers the task must
    /// [`release`](Task::release) it. The process that spawned it reaps it, so it does not become a
    /// zombie: a thread of the crate waits for detached tasks, and for no other child.
    ///
    /// ```no_run
    /// use cofferdam::{Policy, Sandbox};
    ///
    /// let policy = Policy { state_dir: Some("/var/lib/driver".into()), ..Policy::default() };
    /// let handle = Sandbox::command("daemon").policy(&policy).spawn()?.detach()?;
    /// let text = serde_json::to_string(&handle.with_data(b"my own bytes".to_vec()));
    /// // In this process or in another one:
    /// let task = Sandbox::recover(&serde_json::from_str(&text.unwrap_or_default()).unwrap())?;
    /// println!("{}", task.wait()?);
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Task`] if the task cannot be described or init cannot be notified. The task then stays as it was. With
    /// `Unsupported` for an additional command ([`Task::exec`]).
    pub fn detach(&self) -> Result<TaskHandle> {
        self.owned("detach")?;
        let handle = self.describe()?;
        let mut ending = self.ending();
        if ending.child.has_init()
            && let Ok(status) = ending.child.status()
        {
            match sys::send(status, b"d") {
                // Init has ended meanwhile.
                Err(e) if !matches!(e.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => {
                    return Err(Error::task("sendto(status)")(e));
                }
                _ => {}
            }
        }
        if !ending.child.has_left() {
            reaper::reap_later(ending.child.pidfd());
        }
        ending.child.leave();
        ending.detached = true;
        drop(ending);
        self.undo_mut().forget(sys::proc_pid(self.init.as_fd()));
        Ok(handle)
    }

    /// The handle of a task that survives this process, to be stored while the task is kept. Any process
    /// [recovers](crate::Sandbox::recover) the task by it when this one has ended, also by SIGKILL.
    ///
    /// It has the exit status, if the task has ended. For a recovered task, it keeps the driver's own bytes.
    ///
    /// ```no_run
    /// use cofferdam::{DieWith, Policy, Sandbox};
    ///
    /// let policy = Policy { state_dir: Some("/var/lib/driver".into()), ..Policy::default() };
    /// let task = Sandbox::command("daemon").policy(&policy).die_with(DieWith::Survive).spawn()?;
    /// let handle = task.handle()?; // store it, then go on
    /// println!("{handle:?}: {}", task.wait()?);
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Task`] with `Unsupported` for a task that ends with this process, or with the refused call.
    pub fn handle(&self) -> Result<TaskHandle> {
        self.owned("describe the task")?;
        if self.survives {
            return self.describe();
        }
        let why = "the task ends with this process (die_with): detach it, or let it survive";
        Err(Error::task("describe the task")(std::io::Error::new(std::io::ErrorKind::Unsupported, why)))
    }

    /// Refuses a step on a task that was detached.
    pub(crate) fn owned(&self, step: &str) -> Result<()> {
        if !self.ending().detached {
            return Ok(());
        }
        Err(Error::task(step)(std::io::Error::other(DETACHED)))
    }

    fn describe(&self) -> Result<TaskHandle> {
        if self.joined {
            let why = "an additional command ends with its caller: only the task itself can be recovered";
            let source = std::io::Error::new(std::io::ErrorKind::Unsupported, why);
            return Err(Error::task("describe the task")(source));
        }
        let mut ending = self.ending();
        // A child is not reaped while the lock is held, so it has its PID and its start time, even if it has ended.
        let status = self.reap_in(&mut ending)?;
        let identity =
            match status.is_none().then(|| identity(self.init.as_fd(), self.main.as_fd())).transpose() {
                // A recovered task is reaped by another process.
                Err(_) if sys::has_ended(self.init.as_fd()).unwrap_or(false) => None,
                identity => identity?,
            };
        let undo = self.undo();
        let (enclosure, populated) = (self.enclosure.clone(), self.populated.clone());
        let handle = describe(enclosure, &undo, identity, populated)?;
        Ok(TaskHandle { status, ended: ending.ended, data: self.data.clone(), ..handle })
    }
}

impl TaskHandle {
    /// The handle of a task whose command waits at the gate. From here on, no other process recovers the task while this
    /// one lives, if the task has an exit record or a cgroup.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the refused call.
    pub(crate) fn at_gate(
        enclosure: Enclosure,
        child: &Child,
        undo: &mut Undo,
        populated: Option<&Populated>,
    ) -> Result<Self> {
        undo.claim_cgroup()?;
        let identity = identity(child.pidfd(), child.main()).map(Some);
        identity.and_then(|identity| describe(enclosure, undo, identity, populated.cloned())).map_err(|e| {
            match e {
                Error::Task { step, source } => Error::Prepare { step, source },
                other => other,
            }
        })
    }
}

/// The identity of a task by pidfds of its first and its main process.
fn identity(init: BorrowedFd<'_>, main: BorrowedFd<'_>) -> Result<Identity> {
    Identity::of(init, main).map_err(Error::task("read(\"/proc/PID/stat\")"))
}

/// The handle of a task with this enclosure. `identity` is `None` if it has ended.
fn describe(
    enclosure: Enclosure,
    undo: &Undo,
    identity: Option<Identity>,
    populated: Option<Populated>,
) -> Result<TaskHandle> {
    let cgroup = undo.group().map(Group::identity).transpose().map_err(Error::task("fstat(cgroup)"))?;
    let root = match undo.root() {
        Some(root) => Some(RootPlace {
            base: temp_base(&enclosure).into(),
            id: root.id().map_err(Error::task("fstat(temporary root)"))?,
        }),
        None => None,
    };
    Ok(TaskHandle {
        version: TaskHandle::VERSION,
        build: build(),
        boot: boot_id().map_err(Error::task("read(\"/proc/sys/kernel/random/boot_id\")"))?,
        identity,
        status: None,
        ended: None,
        groups: undo.group().map(|group| group.paths().clone()),
        cgroup: cgroup.flatten(),
        root,
        record: undo.exit_record().map(|record| (record.path().into(), record.mark())),
        populated,
        enclosure,
        data: Vec::new(),
    })
}

/// The directory that contains the temporary root's directory.
fn temp_base(enclosure: &Enclosure) -> &Path {
    let root = enclosure.root.dir.as_deref().unwrap_or(Path::new("/"));
    root.parent().and_then(Path::parent).unwrap_or(root)
}
