//! Freezing and thawing all processes of a group.
//!
//! The group's unit cgroup, which contains all of its processes, is frozen: on v2 through `cgroup.freeze` (Linux 5.2),
//! on v1 through `freezer.state`. On v2 a frozen process can be killed like any other. On v1 it dies of SIGKILL only
//! after it is thawed, so [`Group::kill`] thaws it. Reference: `Documentation/admin-guide/cgroup-v2.rst` and
//! `cgroup-v1/freezer-subsystem.rst`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::Pid;

use super::Group;
use crate::cgroup::fs::{Backoff, call, field, is_gone, pids, read_at, subtree, write_at};
use crate::error::{Error, Result};

/// How long to wait for a cgroup to freeze before it is killed. After that, processes that have not frozen are killed
/// too.
const FREEZE: Duration = Duration::from_millis(200);

/// The control files of one freezer version, and the text to write to them.
struct Interface {
    file: &'static str,
    freeze: &'static str,
    thaw: &'static str,
    state: &'static str,
    is_frozen: fn(&str) -> bool,
}

static V2: Interface = Interface {
    file: "cgroup.freeze",
    freeze: "1",
    thaw: "0",
    state: "cgroup.events",
    is_frozen: |text| field(text, "frozen") == Some(1),
};

static V1: Interface = Interface {
    file: "freezer.state",
    freeze: "FROZEN",
    thaw: "THAWED",
    state: "freezer.state",
    is_frozen: |text| text.trim() == "FROZEN",
};

impl Interface {
    /// Detects the version of `dir`, and returns it with the text of its state file.
    ///
    /// # Errors
    /// `Unsupported` on v2 before Linux 5.2.
    fn of(dir: BorrowedFd<'_>) -> io::Result<(&'static Interface, String)> {
        match read_at(dir, V1.state) {
            Ok(state) => return Ok((&V1, state)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let state = read_at(dir, V2.state)?;
        // Linux 5.2 added `cgroup.freeze` and the `frozen` line of `cgroup.events` together.
        if field(&state, "frozen").is_none() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok((&V2, state))
    }

    fn holds(&self, dir: BorrowedFd<'_>) -> io::Result<bool> {
        Ok((self.is_frozen)(&read_at(dir, self.state)?))
    }

    /// Freezes the cgroup and waits until all its processes are frozen. Returns false if that takes longer than
    /// `timeout`.
    fn freeze(&self, dir: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
        let mut backoff = Backoff::new(timeout);
        loop {
            // Written in each round: on v1 a process that was forked meanwhile is only frozen by another write.
            write_at(dir, self.file, self.freeze)?;
            if self.holds(dir)? {
                return Ok(true);
            }
            if !backoff.pause() {
                return Ok(false);
            }
        }
    }

    fn thaw(&self, dir: BorrowedFd<'_>) -> io::Result<()> {
        write_at(dir, self.file, self.thaw)
    }
}

/// Freezes and thaws a group's unit cgroup through a descriptor of its own, so it can be used without the [`Group`].
#[derive(Debug)]
pub(crate) struct Freezer {
    dir: OwnedFd,
    path: PathBuf,
}

impl Freezer {
    pub(crate) fn freeze(&self, timeout: Duration) -> Result<()> {
        let dir = self.dir.as_fd();
        let Some((interface, _)) = self.interface()? else {
            return Err(Error::task("freeze the cgroup")(Errno::ESRCH));
        };
        let frozen = match pids(dir) {
            Ok(pids) if pids.contains(&Pid::this()) => Err(Errno::EDEADLK.into()),
            Ok(_) => interface.freeze(dir, timeout),
            Err(e) => Err(e),
        };
        let why = match frozen {
            Ok(true) => return Ok(()),
            Ok(false) => {
                // A group is frozen as a whole or not at all.
                let _ = interface.thaw(dir);
                io::ErrorKind::TimedOut.into()
            }
            Err(e) if is_gone(&e) => Errno::ESRCH.into(),
            Err(e) => e,
        };
        Err(Error::task(self.write(interface, interface.freeze))(why))
    }

    pub(crate) fn thaw(&self) -> Result<()> {
        let Some((interface, _)) = self.interface()? else { return Ok(()) };
        match interface.thaw(self.dir.as_fd()) {
            Err(e) if !is_gone(&e) => Err(Error::task(self.write(interface, interface.thaw))(e)),
            _ => Ok(()),
        }
    }

    pub(crate) fn frozen(&self) -> Result<bool> {
        Ok(self.interface()?.is_some_and(|(interface, state)| (interface.is_frozen)(&state)))
    }

    fn write(&self, interface: &Interface, text: &str) -> String {
        call::write(&self.path.join(interface.file), text)
    }

    /// The freezer version of the cgroup and the text of its state file. `None` if the cgroup does not exist any more.
    fn interface(&self) -> Result<Option<(&'static Interface, String)>> {
        match Interface::of(self.dir.as_fd()) {
            Err(e) if is_gone(&e) => Ok(None),
            found => {
                let step = || call::open_read(&self.path.join(V2.state));
                found.map(Some).map_err(|e| Error::task(step())(e))
            }
        }
    }
}

impl Group {
    /// Freezes every process of the group (v2 `cgroup.freeze`, Linux 5.2; v1 `freezer.state`), and waits until all are
    /// frozen.
    ///
    /// Frozen processes use no CPU time and keep their memory. After thawing they can see only that time has passed. A
    /// process that is forked or that joins the group meanwhile is frozen too. A frozen group can be killed.
    ///
    /// # Errors
    /// [`Error::Task`] with the write. Its cause is `TimedOut` if freezing takes longer than `timeout`, because a
    /// process is in an uninterruptible wait; the group is then thawed again. It is `EDEADLK` if the caller itself is
    /// in the group, `ESRCH` if the cgroup does not exist any more, and `Unsupported` if there is no cgroup to freeze.
    pub fn freeze(&self, timeout: Duration) -> Result<()> {
        self.freezer()?.freeze(timeout)
    }

    /// Thaws the group. Succeeds without effect if the group is not frozen. The processes stay frozen while a cgroup
    /// above is frozen, which [`frozen`](Self::frozen) shows.
    ///
    /// # Errors
    /// [`Error::Task`] with the write; `Unsupported` if there is no cgroup to thaw.
    pub fn thaw(&self) -> Result<()> {
        self.freezer()?.thaw()
    }

    /// Whether every process of the group is frozen, through the group's own cgroup or one above.
    ///
    /// # Errors
    /// [`Error::Task`] with the read; `Unsupported` if there is no cgroup that can be frozen.
    pub fn frozen(&self) -> Result<bool> {
        self.freezer()?.frozen()
    }

    /// As [`frozen`](Self::frozen), through the descriptor that the group holds. False if that is not known.
    pub(crate) fn is_frozen(&self) -> bool {
        let found = self.unit().and_then(Interface::of);
        found.is_ok_and(|(interface, state)| (interface.is_frozen)(&state))
    }

    /// A handle that freezes and thaws without the group.
    pub(crate) fn freezer(&self) -> Result<Freezer> {
        let Some(unit) = self.unit_dir() else {
            let none =
                io::Error::new(io::ErrorKind::Unsupported, "the task has no cgroup that can be frozen");
            return Err(Error::task("freeze the cgroup")(none));
        };
        let dir = unit.open(".", OFlag::O_RDONLY | OFlag::O_DIRECTORY);
        let dir = dir.map_err(Error::task(call::open_dir(unit.path())))?;
        Ok(Freezer { dir, path: unit.path().to_owned() })
    }
}

/// Freezes a cgroup for as long as this value lives, if the kernel can. Failures are ignored.
pub(super) struct Frozen<'a> {
    dir: BorrowedFd<'a>,
    interface: Option<&'static Interface>,
}

impl<'a> Frozen<'a> {
    pub fn new(dir: BorrowedFd<'a>) -> Self {
        let interface = Interface::of(dir).ok().map(|(interface, _)| interface);
        if let Some(interface) = interface {
            let _ = interface.freeze(dir, FREEZE);
        }
        Frozen { dir, interface }
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let Some(interface) = self.interface else { return };
        let _ = interface.thaw(self.dir);
        if std::ptr::eq(interface, &V1) {
            // On v1, frozen processes do not die, and thawing a cgroup does not thaw the cgroups below that were frozen
            // themselves.
            for below in subtree(self.dir).unwrap_or_default() {
                let _ = write_at(self.dir, below.join(V1.file), V1.thaw);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, Write as _};
    use std::process::{Command, Stdio};
    use std::time::Instant;

    use super::*;
    use crate::cgroup::tests::{LONG, assert_gone, cgroups, create, detected, emulated, sleeper};
    use crate::cgroup::{Cgroups, Limits, Paths};

    /// Shorter than the timeout of every step that may wait.
    const SOON: Duration = Duration::from_secs(4);

    fn errno(error: Error) -> Option<i32> {
        match error {
            Error::Task { source, .. } => source.raw_os_error(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn v2_and_v1_state_files_tell_whether_a_cgroup_is_frozen() {
        for (interface, text, frozen) in [
            (&V2, "populated 1\nfrozen 1\n", true),
            (&V2, "populated 1\nfrozen 0\n", false),
            (&V2, "populated 1\n", false),
            (&V1, "FROZEN\n", true),
            (&V1, "FREEZING\n", false),
            (&V1, "THAWED\n", false),
        ] {
            assert_eq!((interface.is_frozen)(text), frozen, "{text:?}");
        }
    }

    #[test]
    fn a_group_is_frozen_thawed_and_killed_while_frozen() {
        let Some(host) = detected() else { return };
        let cgroups = cgroups(&host, &Limits::default(), "", "freeze");
        let mut group = create(&cgroups);
        let mut child = Command::new("sh")
            .args(["-c", "read go; i=0123456789abcdef; on=$i$i$i$i; while :; do echo $on; done"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        group.add(child.id()).unwrap();
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(!group.frozen().unwrap());
        let rounds = if emulated() { 5 } else { 20 };
        for _ in 0..rounds {
            lines.next().unwrap().unwrap();
            group.freeze(LONG).unwrap();
            assert!(group.frozen().unwrap());
            group.thaw().unwrap();
            // 2,000 lines are more than the 64 KiB that a pipe holds.
            (0..2_000).for_each(|_| drop(lines.next().unwrap().unwrap()));
            assert!(!group.frozen().unwrap());
        }
        group.freeze(LONG).unwrap();
        group.freeze(LONG).unwrap();
        // CPU times stay the same. A process that is not frozen would use CPU time until the pipe is full, and it is never
        // full here. The tick in which the process was frozen may be counted late.
        let stat = format!("/proc/{}/stat", child.id());
        let times = || {
            std::fs::read_to_string(&stat).unwrap().split(' ').skip(13).take(2).collect::<Vec<_>>().join(" ")
        };
        let waiter = std::thread::spawn(|| lines.count());
        let same = || {
            let then = times();
            std::thread::sleep(Duration::from_millis(100));
            times() == then
        };
        assert!(same() || same());
        let start = Instant::now();
        group.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(group.wait_empty(LONG).unwrap());
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
        waiter.join().unwrap();
        group.remove().unwrap();
        assert_gone(&cgroups);
        assert!(group.freeze(LONG).is_err());
    }

    #[test]
    fn a_frozen_stale_group_is_killed_and_removed() {
        let Some(host) = detected() else { return };
        let limits = Limits { memory: Some(16 << 20), cores: "0".parse().unwrap(), ..Limits::default() };
        let cgroups = cgroups(&host, &limits, "", "frozen");
        let first = create(&cgroups);
        let mut child = sleeper(&first);
        first.freeze(LONG).unwrap();
        let _ = first.into_paths();
        let waiter = std::thread::spawn(move || child.wait().unwrap());
        let start = Instant::now();
        let second = create(&cgroups);
        assert!(!waiter.join().unwrap().success());
        assert!(!second.frozen().unwrap());
        drop(second);
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
        assert_gone(&cgroups);
    }

    #[test]
    fn dropping_a_frozen_group_kills_it() {
        let Some(host) = detected() else { return };
        let cgroups = cgroups(&host, &Limits::default(), "", "frozen-drop");
        let group = create(&cgroups);
        let mut child = sleeper(&group);
        group.freeze(LONG).unwrap();
        let waiter = std::thread::spawn(move || child.wait().unwrap());
        let start = Instant::now();
        drop(group);
        assert!(!waiter.join().unwrap().success());
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
        assert_gone(&cgroups);
    }

    /// This test runs itself again as the process in the group, with the group's paths in its environment.
    #[test]
    fn a_process_cannot_freeze_its_own_group() {
        const PATHS: &str = "COFFERDAM_TEST_PATHS";
        if let Ok(paths) = std::env::var(PATHS) {
            std::io::stdin().lines().next().unwrap().unwrap();
            let group = Group::reopen(serde_json::from_str::<Paths>(&paths).unwrap()).unwrap();
            let refused = group.freeze(LONG).unwrap_err();
            // Dropping the group would kill this process.
            let _ = group.into_paths();
            assert_eq!(errno(refused), Some(libc::EDEADLK));
            return;
        }
        let Some(host) = detected() else { return };
        let cgroups = cgroups(&host, &Limits::default(), "", "own-group");
        let group = create(&cgroups);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cgroup::group::freeze::tests::a_process_cannot_freeze_its_own_group"])
            .env(PATHS, serde_json::to_string(group.paths()).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        group.add(child.id()).unwrap();
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert!(child.wait().unwrap().success());
        assert!(!group.frozen().unwrap());
        assert!(group.wait_empty(LONG).unwrap());
    }

    #[test]
    fn freezing_without_a_cgroup_is_unsupported() {
        let group = create(&Cgroups::default());
        for refused in [group.freeze(LONG), group.thaw(), group.frozen().map(drop)] {
            let Err(Error::Task { source, .. }) = refused else { panic!("{refused:?}") };
            assert_eq!(source.kind(), io::ErrorKind::Unsupported);
        }
    }
}
