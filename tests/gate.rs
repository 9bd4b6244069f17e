//! A driver that is killed while it stores the handle of a task loses no command that was executed: the command waits at a
//! gate. Drivers are processes of their own, which the tests kill. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use cofferdam::{
    DieWith, Error, ExitKind, Host, IsolationMode, Lost, Policy, Require, Sandbox, StaleSandbox, Task,
    TaskHandle, Volume,
};
use common::places::{self, below, cgroups, policy};
use common::{sandboxes, shell};

/// More than any of these tests takes on a loaded machine.
const LONG: Duration = Duration::from_secs(60);

/// Where the process of init stays that watches the caller, and where none does.
const SHAPES: [&str; 6] = ["pid1", "outside", "beside", "alone", "alone-beside", "prepared"];

/// Whether the shape has an exit record.
fn records(shape: &str) -> bool {
    !shape.starts_with("alone")
}

/// The shapes that this machine has.
fn shapes() -> Vec<&'static str> {
    let root = Host::probe().unwrap().lacking().is_empty();
    SHAPES.into_iter().filter(|shape| root || *shape != "prepared").collect()
}

/// The places of one test.
struct Places(tempfile::TempDir);

impl Places {
    fn new() -> Places {
        let places = Places(places::dirs());
        std::fs::set_permissions(places.0.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for (name, mode) in [("handles", 0o700), ("out", 0o777)] {
            std::fs::DirBuilder::new().mode(mode).create(places.0.path().join(name)).unwrap();
        }
        std::fs::set_permissions(places.0.path().join("out"), std::fs::Permissions::from_mode(0o777))
            .unwrap();
        places
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    /// The handles that drivers have stored.
    fn handles(&self) -> Vec<TaskHandle> {
        let complete = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
        let files = below(&self.dir().join("handles")).into_iter().filter(complete);
        files.map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()).collect()
    }

    /// Whether the command of this task was executed.
    fn ran(&self, id: &str) -> bool {
        self.dir().join("out").join(id).exists()
    }

    /// Removes what killed drivers have left, and asserts that nothing is left then.
    fn prune(&self) {
        let start = Instant::now();
        loop {
            let found =
                StaleSandbox::find(&policy(self.dir()), &Host::probe().unwrap(), Duration::ZERO, |_| false);
            let found = found.unwrap();
            found.iter().for_each(|stale| drop(stale.remove()));
            let left = self.left();
            if found.is_empty() && left.is_empty() {
                return;
            }
            assert!(start.elapsed() < LONG, "left: {left:?}, {found:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Files, cgroups and processes that are left.
    fn left(&self) -> Vec<PathBuf> {
        let mut left = below(&self.dir().join("temp"));
        left.extend(below(&self.dir().join("state")));
        for parent in cgroups(self.dir()) {
            remove_empty(&parent);
            left.extend(Some(parent).filter(|parent| parent.exists()));
        }
        left
    }
}

/// Removes the cgroup and those below it that have no process: what a pruned sandbox leaves are its empty parents.
fn remove_empty(dir: &Path) {
    let is_dir = |path: &PathBuf| path.is_dir();
    let below = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    below
        .filter(is_dir)
        .filter(|dir| !dir.to_string_lossy().contains("gate-"))
        .for_each(|dir| remove_empty(&dir));
    let _ = std::fs::remove_dir(dir);
}

/// A task that survives its driver, unless the shape says that it dies. Its command first makes a file of the task's name.
fn survivor(dir: &Path, shape: &str, id: &str) -> Sandbox {
    let out = Volume { source: dir.join("out"), target: "/out".into(), ..Volume::default() };
    let sandbox = shell(&format!("echo >/out/{id}; exec sleep 600"))
        .policy(&policy(dir))
        .id(id)
        .volume(out)
        .require(Require::BestEffort)
        .die_with(DieWith::Survive);
    let unrecorded = Policy { state_dir: None, ..policy(dir) };
    match shape {
        "outside" => sandbox.init(false),
        "beside" => sandbox.pid_mode(IsolationMode::Host),
        "alone" => sandbox.init(false).policy(&unrecorded),
        "alone-beside" => sandbox.pid_mode(IsolationMode::Host).policy(&unrecorded),
        "dies" => sandbox.die_with(DieWith::Driver),
        "dies-outside" => sandbox.init(false).die_with(DieWith::Driver),
        "prepared" => {
            let sandbox = sandbox.host(&Host::probe().unwrap());
            assert!(sandbox.prepare().unwrap(), "nothing is prepared");
            sandbox
        }
        _ => sandbox,
    }
}

fn store(dir: &Path, handle: &TaskHandle) -> io::Result<()> {
    let file = dir.join("handles").join(handle.sandbox_id()).with_extension("json");
    std::fs::write(file.with_extension("new"), serde_json::to_string(handle).unwrap())?;
    std::fs::rename(file.with_extension("new"), file)
}

fn say(line: &str) {
    println!("\n{line}");
    io::stdout().flush().unwrap();
}

fn kill_this_process() -> ! {
    // SAFETY: kill(2) takes numbers.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    unreachable!("SIGKILL returned")
}

/// Entry point of a driver: spawns one task, and is killed at the moment that the environment names. Does nothing
/// elsewhere.
#[test]
fn driver_entry() {
    let Some(dir) = std::env::var_os("COFFERDAM_GATE_DRIVER") else { return };
    let dir = Path::new(&dir);
    let asked = std::env::var("COFFERDAM_GATE_ASKED").unwrap();
    let [shape, id, moment] = asked.split(' ').collect::<Vec<_>>()[..] else { panic!("{asked}") };
    let sandbox = survivor(dir, shape, id);
    say("starting");
    let task = sandbox.spawn_with(|handle| {
        store(dir, &handle)?;
        match moment {
            "in" => kill_this_process(),
            "waits" => {
                say("stored");
                std::thread::sleep(LONG);
            }
            "forked" => {
                // SAFETY: the child makes system calls only.
                let fork = unsafe { libc::fork() };
                if fork == 0 {
                    // It has the driver's socket to init.
                    // SAFETY: the calls take numbers.
                    unsafe {
                        libc::alarm(120);
                        libc::pause();
                        libc::_exit(0);
                    }
                }
                std::fs::write(dir.join("fork"), fork.to_string())?;
                kill_this_process()
            }
            // Another thread kills the process at about the time at which the command is let go: before it in most drivers,
            // after it in some.
            "races" => {
                drop(std::thread::spawn(|| kill_this_process()));
                std::thread::sleep(Duration::from_micros(u64::from(std::process::id() % 4) * 150));
            }
            _ => {}
        }
        Ok(())
    });
    let _task = task.unwrap();
    if moment == "after" {
        kill_this_process();
    }
    say("spawned");
    std::thread::sleep(LONG);
}

/// Starts a driver, and returns when it is about to spawn.
fn driver(places: &Places, shape: &str, id: &str, moment: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "driver_entry", "--nocapture", "--test-threads=1"]);
    command.env("COFFERDAM_GATE_DRIVER", places.dir());
    command.env("COFFERDAM_GATE_ASKED", format!("{shape} {id} {moment}"));
    command.stdout(std::process::Stdio::piped()).spawn().unwrap()
}

/// Waits until the driver has written this line.
fn until(driver: &mut Child, line: &str) {
    let lines = BufReader::new(driver.stdout.as_mut().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|seen| seen == line), "no line {line:?}");
}

/// Whether a process has ended.
fn ended(pid: i64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['Z', 'X']))
}

/// What a stored handle leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    Runs,
    NeverExecuted,
}

/// Recovers the task of a stored handle whose driver is dead.
fn recover(handle: &TaskHandle) -> Task {
    let start = Instant::now();
    loop {
        match Sandbox::recover(handle) {
            // The kernel has not closed all descriptors of the driver.
            Err(Error::Task { source, .. }) if source.kind() == io::ErrorKind::ResourceBusy => {
                assert!(start.elapsed() < LONG, "{}: {source}", handle.sandbox_id());
                std::thread::sleep(Duration::from_millis(5));
            }
            recovered => return recovered.unwrap(),
        }
    }
}

/// Recovers a stored handle of a dead driver, and releases the task.
fn recovered(places: &Places, shape: &str, handle: &TaskHandle) -> Found {
    let id = handle.sandbox_id();
    let task = recover(handle);
    let start = Instant::now();
    let found = loop {
        match task.status().unwrap().map(|status| status.kind()) {
            None if places.ran(id) => break Found::Runs,
            None => assert!(start.elapsed() < LONG, "{shape} {id}: it neither runs nor ends"),
            Some(ExitKind::Lost(Lost::NotExecuted)) if records(shape) => break Found::NeverExecuted,
            Some(ExitKind::Lost(Lost::Unrecorded)) if !records(shape) => break Found::NeverExecuted,
            Some(other) => panic!("{shape} {id}: {other:?}, ran: {}", places.ran(id)),
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert_eq!(places.ran(id), found == Found::Runs, "{shape} {id}");
    task.release().unwrap();
    found
}

/// Recovers all stored handles. Asserts that the commands that were executed are those of found tasks.
fn recover_all(places: &Places, shape: &str) -> BTreeMap<Found, usize> {
    let mut found = BTreeMap::new();
    let handles = places.handles();
    for handle in &handles {
        *found.entry(recovered(places, shape, handle)).or_default() += 1;
    }
    let stored: Vec<&str> = handles.iter().map(TaskHandle::sandbox_id).collect();
    for file in below(&places.dir().join("out")) {
        let id = file.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(stored.contains(&id.as_str()), "{shape} {id} was executed without a stored handle");
    }
    places.prune();
    found
}

#[test]
fn command_of_a_driver_that_dies_while_it_stores_the_handle_is_never_executed() {
    if !sandboxes() {
        return;
    }
    for shape in shapes() {
        for moment in ["in", "waits", "forked"] {
            let places = Places::new();
            let mut driver = driver(&places, shape, "gate-1", moment);
            if moment == "waits" {
                until(&mut driver, "stored");
                assert!(!places.ran("gate-1"));
                let busy = Sandbox::recover(&places.handles()[0]);
                if records(shape) {
                    let busy = busy.unwrap_err();
                    let cause = std::error::Error::source(&busy).unwrap().to_string();
                    assert!(cause.ends_with(&format!("process {} has its task", driver.id())), "{cause}");
                }
                driver.kill().unwrap();
            }
            driver.wait().unwrap();
            if moment == "forked" {
                // Init notices the end of its caller, although a fork has the socket open.
                let handle = serde_json::to_value(&places.handles()[0]).unwrap();
                let init = handle["identity"]["init"]["pid"].as_i64().unwrap();
                let start = Instant::now();
                while !ended(init) {
                    assert!(start.elapsed() < LONG, "{shape}: init waits for a dead caller");
                    std::thread::sleep(Duration::from_millis(5));
                }
                let fork = std::fs::read_to_string(places.dir().join("fork")).unwrap().parse().unwrap();
                // SAFETY: kill(2) takes numbers; the fork ends by this signal only, so its PID is its own.
                assert_eq!(unsafe { libc::kill(fork, libc::SIGKILL) }, 0);
            }
            assert_eq!(recover_all(&places, shape), [(Found::NeverExecuted, 1)].into(), "{shape} {moment}");
        }
    }
}

#[test]
fn task_of_a_driver_that_dies_after_the_spawn_runs_on() {
    if !sandboxes() {
        return;
    }
    for shape in shapes() {
        let places = Places::new();
        driver(&places, shape, "gate-1", "after").wait().unwrap();
        assert_eq!(recover_all(&places, shape), [(Found::Runs, 1)].into(), "{shape}");
    }
}

#[test]
fn record_of_a_task_that_died_with_its_driver_says_that_it_was_killed() {
    if !sandboxes() {
        return;
    }
    for shape in ["dies", "dies-outside"] {
        let places = Places::new();
        driver(&places, shape, "gate-1", "after").wait().unwrap();
        let task = recover(&places.handles()[0]);
        assert_eq!(task.wait().unwrap().kind(), ExitKind::Killed, "{shape}");
        task.release().unwrap();
        places.prune();
    }
}

#[test]
fn every_stored_handle_of_drivers_killed_at_random_is_a_running_task_or_one_never_executed() {
    if !sandboxes() {
        return;
    }
    let rounds = if common::emulated() { 4 } else { 25 };
    let mut all: BTreeMap<Found, usize> = BTreeMap::new();
    let mut random = std::process::id();
    for shape in shapes() {
        let places = Places::new();
        for round in 0..rounds {
            driver(&places, shape, &format!("gate-race-{round}"), "races").wait().unwrap();
            let mut driver = driver(&places, shape, &format!("gate-{round}"), "no");
            until(&mut driver, "starting");
            // A linear congruential generator: up to 20 ms.
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let most = if common::emulated() { 400_000 } else { 20_000 };
            std::thread::sleep(Duration::from_micros(u64::from(random >> 8) % most));
            driver.kill().unwrap();
            driver.wait().unwrap();
        }
        let found = recover_all(&places, shape);
        println!("{shape}: {found:?}");
        found.into_iter().for_each(|(found, count)| *all.entry(found).or_default() += count);
    }
    assert!(common::emulated() || all.len() == 2, "not both outcomes: {all:?}");
}

#[test]
fn deadline_of_the_task_counts_from_the_gate() {
    if !sandboxes() {
        return;
    }
    let time = Duration::from_millis(if common::emulated() { 8000 } else { 2000 });
    for shape in ["pid1", "outside"].into_iter().filter(|shape| shapes().contains(shape)) {
        let places = Places::new();
        let sandbox = survivor(places.dir(), shape, "gate-1").with(|spec| {
            spec.args = vec!["-c".into(), "sleep 0.2; exit 7".into()];
            spec.deadline = Some(time);
        });
        let task = sandbox.spawn_with(|_| {
            std::thread::sleep(time + Duration::from_millis(200));
            Ok(())
        });
        let task = task.unwrap();
        assert_eq!(task.wait().unwrap().kind(), ExitKind::Exited(7), "{shape}");
        places.prune();
    }
}

#[test]
fn refused_or_panicking_store_fails_the_spawn_and_leaves_nothing() {
    if !sandboxes() {
        return;
    }
    for shape in shapes() {
        for die in [DieWith::Survive, DieWith::Driver] {
            let places = Places::new();
            let sandbox = survivor(places.dir(), shape, "gate-1").die_with(die);
            let mut stored = None;
            let error = sandbox.spawn_with(|handle| {
                stored = Some(handle);
                Err(io::Error::from_raw_os_error(libc::ENOSPC))
            });
            let error = error.unwrap_err();
            assert_eq!(error.to_string(), "store the handle", "{shape}");
            assert!(
                matches!(&error, Error::Prepare { source, .. } if source.raw_os_error() == Some(libc::ENOSPC))
            );
            assert_eq!(places.left(), Vec::<PathBuf>::new(), "{shape}");
            let ended = Sandbox::recover(&stored.unwrap()).unwrap().status().unwrap().unwrap();
            assert!(matches!(ended.kind(), ExitKind::Lost(_)), "{shape}: {ended}");

            let panicked = catch_unwind(AssertUnwindSafe(|| {
                sandbox.spawn_with(|_| std::panic::resume_unwind(Box::new("the driver's bug")))
            }));
            assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"the driver's bug"));
            assert_eq!(places.left(), Vec::<PathBuf>::new(), "{shape}");
            assert!(!places.ran("gate-1"));
            places.prune();
        }
    }
}

#[test]
fn passed_handle_is_that_of_the_spawned_task() {
    if !sandboxes() {
        return;
    }
    for shape in shapes() {
        let places = Places::new();
        let mut stored = None;
        let sandbox = survivor(places.dir(), shape, "gate-1");
        let task = sandbox.spawn_with(|handle| {
            assert!(!places.ran("gate-1"));
            stored = Some(handle.with_data(b"mine".to_vec()));
            Ok(())
        });
        let task = task.unwrap();
        let json = |handle: &TaskHandle| serde_json::to_value(handle).unwrap();
        let (stored, now) = (stored.unwrap(), task.handle().unwrap().with_data(b"mine".to_vec()));
        assert_eq!(json(&stored), json(&now), "{shape}");
        drop(task);
        assert_eq!(recovered(&places, shape, &stored), Found::Runs, "{shape}");
        places.prune();
    }
}

#[test]
fn command_that_cannot_be_executed_after_the_gate_fails_the_spawn() {
    if !sandboxes() {
        return;
    }
    for shape in shapes() {
        let places = Places::new();
        std::fs::write(places.dir().join("out/script"), "#!/no/such/interpreter\n").unwrap();
        let script = places.dir().join("out/script");
        std::fs::set_permissions(script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let sandbox =
            survivor(places.dir(), shape, "gate-1").with(|spec| spec.command = "/out/script".into());
        let mut calls = 0;
        let error = sandbox.spawn_with(|_| {
            calls += 1;
            Ok(())
        });
        assert!(matches!(error, Err(Error::Exec { .. })), "{shape}: {error:?}");
        assert_eq!(calls, 1);
        // Not found: nothing was to be stored.
        let missing = survivor(places.dir(), shape, "gate-2").with(|spec| spec.command = "/none".into());
        let error = missing.spawn_with(|_| panic!("called without a command"));
        assert!(matches!(error, Err(Error::Exec { .. })), "{shape}: {error:?}");
        assert_eq!(places.left(), Vec::<PathBuf>::new(), "{shape}");
        places.prune();
    }
}
