//! Finds a task again by its handle, also after the process that spawned it has ended.
//!
//! A process is opened by pidfd first and compared with the handle then: start time, PID namespace and boot. While the
//! pidfd shows the PID, that PID is no other process's. Nothing is signalled, and no cgroup is used, before both are
//! verified.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, RwLock};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::handle::{Process, boot_id, build};
use super::shared::Shared;
use super::{Child, Ending, Lost, RecordFile, Streams, Task, TaskHandle, Undo};
use crate::cgroup::Group;
use crate::error::{Error, Result};
use crate::rootfs::populate::TempRoot;
use crate::sys;

/// The processes of a task that was found: the first one, and the main process if it is another one.
struct Found {
    init: OwnedFd,
    main: Option<OwnedFd>,
}

impl Task {
    /// The task of the handle.
    ///
    /// # Errors
    /// As [`Sandbox::recover`](crate::Sandbox::recover).
    pub(crate) fn recover(handle: &TaskHandle) -> Result<Self> {
        if handle.version != TaskHandle::VERSION {
            let why = format!(
                "the handle has version {}, this build reads {}",
                handle.version,
                TaskHandle::VERSION
            );
            return Err(Error::task("read the handle")(io::Error::new(io::ErrorKind::Unsupported, why)));
        }
        // On an error, what the undo list has so far is left, not removed.
        let mut undo = Left(Undo::default());
        claim_record(handle)?.into_iter().for_each(|record| undo.0.record(record));
        let this_boot = is_this_boot(handle)?;
        cgroups(handle, this_boot)?.into_iter().for_each(|group| undo.0.cgroups(group));
        match undo.0.claim_cgroup() {
            // Its owner has removed it meanwhile.
            Err(Error::Prepare { source, .. }) if is_absent(&source) => undo.0.lose_cgroups(),
            claimed => claimed.map_err(Error::of_task)?,
        }
        let has_unit = |group: &&Group| group.paths().has_unit();
        if undo.0.group().filter(has_unit).is_some_and(|group| !group.is_there().unwrap_or(true)) {
            // It had, before this process got the lock.
            undo.0.lose_cgroups();
        }
        let moved = undo.0.group().is_none() && handle.groups.as_ref().is_some_and(|paths| paths.has_unit());
        let found = match find(handle, this_boot)? {
            // The process lives, but not in the task's cgroup.
            Ok(_) if moved => Err(Lost::CgroupRemoved),
            found => found,
        };
        if let Some(place) = &handle.root {
            let alone = undo.0.exit_record().is_none() && undo.0.group().filter(has_unit).is_none();
            let root = TempRoot::reopen(&place.base, &handle.enclosure.id, place.id, alone);
            let root = root.map_err(Error::task(format!("flock(temporary root in {:?})", place.base)))?;
            root.into_iter().for_each(|root| undo.0.temp_root(root));
        }
        Task::found(handle, found, undo)
    }

    fn found(handle: &TaskHandle, found: Result<Found, Lost>, undo: Left) -> Result<Self> {
        let gone = found.is_err();
        let lost = found.as_ref().err().copied().unwrap_or(Lost::Unrecorded);
        let Found { init, main } = match found {
            Ok(found) => found,
            Err(_) => Found { init: ended().map_err(Error::task("openat(\"/dev/null\")"))?, main: None },
        };
        let dup = |fd: &OwnedFd| fd.try_clone().map_err(Error::task("fcntl(pidfd, F_DUPFD_CLOEXEC)"));
        let (own_init, own_main) = (dup(&init)?, dup(main.as_ref().unwrap_or(&init))?);
        let child = Child::recovered(init, main, lost);
        let status = handle.status;
        let other_build = Some(handle.build.clone()).filter(|other| *other != build());
        let undo = undo.keep();
        let kills_main = !handle.enclosure.ends_with_init();
        let ending = Ending {
            child,
            status,
            ended: handle.ended,
            usage: None,
            killed: false,
            kills_main,
            detached: false,
        };
        Ok(Task {
            init: own_init,
            main: own_main,
            temporary: undo.root().is_some(),
            shared: Shared::new(ending, undo, &handle.enclosure.report),
            teardown: RwLock::new(()),
            streams: Mutex::new(Streams::default()),
            populated: handle.populated.clone(),
            enclosure: handle.enclosure.clone(),
            other_build,
            joined: false,
            // Another process may have entered the task.
            entered: AtomicBool::new(true),
            survives: true,
            gone,
            data: handle.data.clone(),
        })
    }
}

/// An undo list whose drop undoes nothing: another process has the task, or will recover it.
struct Left(Undo);

impl Left {
    fn keep(mut self) -> Undo {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        self.0.forget(None);
    }
}

/// Opens and locks the file of the exit record. `None` if there is none of this task.
fn claim_record(handle: &TaskHandle) -> Result<Option<RecordFile>> {
    let Some((path, mark)) = &handle.record else { return Ok(None) };
    RecordFile::claim(path, *mark).map_err(Error::task(format!("flock({path:?}, LOCK_EX|LOCK_NB)")))
}

/// Opens the cgroups. `None` if they were removed, or if others have their names.
fn cgroups(handle: &TaskHandle, this_boot: bool) -> Result<Option<Group>> {
    let Some(paths) = handle.groups.clone().filter(|_| this_boot) else { return Ok(None) };
    let group = match Group::reopen(paths) {
        Err(Error::Task { source, .. }) if is_absent(&source) => return Ok(None),
        reopened => reopened?,
    };
    let same = group.identity().is_ok_and(|inode| inode == handle.cgroup);
    if !same {
        group.into_paths();
        return Ok(None);
    }
    Ok(Some(group))
}

fn is_absent(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) || e.kind() == io::ErrorKind::NotFound
}

/// Whether the machine was not rebooted since. A handle without processes cannot tell; its task has ended.
fn is_this_boot(handle: &TaskHandle) -> Result<bool> {
    let now = boot_id().map_err(Error::task("read(\"/proc/sys/kernel/random/boot_id\")"))?;
    Ok(handle.boot == now)
}

/// Finds the processes, or says why there are none.
fn find(handle: &TaskHandle, this_boot: bool) -> Result<Result<Found, Lost>> {
    if !this_boot {
        return Ok(Err(Lost::Rebooted));
    }
    let Some(identity) = &handle.identity else { return Ok(Err(Lost::Unrecorded)) };
    Ok(match open_process(&identity.init)? {
        Err(lost) => Err(lost),
        Ok(init) => {
            let main = identity.main.as_ref().map(open_process).transpose()?;
            Ok(Found { init, main: main.and_then(Result::ok) })
        }
    })
}

/// Opens a process if it is the one of the handle.
fn open_process(process: &Process) -> Result<Result<OwnedFd, Lost>> {
    let pid = process.pid;
    let pidfd = match sys::pidfd_open(pid) {
        // EINVAL: the PID belongs to a thread now.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)) => {
            return Ok(Err(Lost::Unrecorded));
        }
        opened => opened.map_err(Error::task(format!("pidfd_open({pid})")))?,
    };
    let seen = Process::look(pid);
    let shown = sys::find_pid(pidfd.as_fd()).map_err(Error::task("read(\"/proc/self/fdinfo/PIDFD\")"))?;
    match seen {
        // Not reaped until now, so what was seen is of the process that the pidfd refers to.
        Ok(seen) if shown == Some(pid) && seen.is(process) => Ok(Ok(pidfd)),
        Ok(_) if shown == Some(pid) => Ok(Err(Lost::PidReused)),
        Err(e) if !sys::is_no_process(&e) => Err(Error::task(format!("read(\"/proc/{pid}/stat\")"))(e)),
        _ if sys::has_ended(pidfd.as_fd()).map_err(Error::task("poll(pidfd)"))? => Ok(Err(Lost::Unrecorded)),
        _ => {
            let why = "/proc does not show the process: it is mounted for another PID namespace, or hides it";
            Err(Error::task(format!("look at process {pid}"))(io::Error::new(
                io::ErrorKind::Unsupported,
                why,
            )))
        }
    }
}

/// A descriptor that polls readable, in place of the pidfd of a task that has ended.
fn ended() -> nix::Result<OwnedFd> {
    open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}
