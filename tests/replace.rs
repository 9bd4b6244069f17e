//! A spawn that replaces the task of its id kills that task, also if another process owns it. The old owner removes nothing
//! of the new task. Drivers are processes of their own. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam::{DieWith, Error, Method, Policy, Require, Root, Sandbox, Task, Volume};
use common::{can, sandboxes, shell, skip::skip};

/// More than any of these tests takes on a loaded machine.
const LONG: Duration = Duration::from_secs(60);

/// The temporary directory and the state directory of one test.
struct Places(tempfile::TempDir);

impl Places {
    fn new() -> Places {
        Places(common::places::dirs())
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    /// The files of a task of the test, which are there as long as it was not removed.
    fn files(&self) -> [PathBuf; 2] {
        let id = id(self.dir());
        [self.dir().join(format!("state/{id}.exit")), self.dir().join(format!("temp/cofferdam-{id}/root"))]
    }

    /// Asserts that a task runs, and that all of it is there.
    fn is_whole(&self, task: &Task) {
        assert_eq!(task.status().unwrap(), None);
        self.files().iter().for_each(|file| assert!(file.exists(), "{file:?}"));
        let groups = task.pid().map(common::cgroups_of).unwrap_or_default();
        groups.iter().for_each(|group| assert!(group.exists(), "{group:?}"));
    }

    /// Asserts that nothing is left of any task.
    fn are_empty(&self) {
        for name in ["temp", "state"] {
            let left: Vec<_> = std::fs::read_dir(self.dir().join(name)).unwrap().collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

/// The id of the tasks of a test.
fn id(dir: &Path) -> String {
    format!("replace-{}", dir.file_name().unwrap().to_str().unwrap().trim_start_matches('.'))
}

/// A sandbox with a temporary root, an exit record and, where it can have one, a cgroup.
fn sandbox(dir: &Path) -> Sandbox {
    std::fs::write(dir.join("file"), "content").unwrap();
    let policy =
        Policy { temp_dir: Some(dir.join("temp")), state_dir: Some(dir.join("state")), ..Policy::default() };
    let chroot_env = [(dir.join("file"), "/file".into())].into();
    let programs = ["/bin", "/lib", "/lib64", "/usr"].into_iter().filter(|path| Path::new(path).exists());
    let sandbox = shell("exec sleep 600").policy(&policy).id(id(dir)).require(Require::BestEffort);
    let sandbox = sandbox.root(Root { populate: Method::Copy, chroot_env, ..Root::default() });
    programs
        .fold(sandbox, |sandbox, path| sandbox.volume(Volume { read_only: true, ..Volume::new(path, path) }))
}

fn cause(error: &Error) -> String {
    std::error::Error::source(error).unwrap().to_string()
}

/// Entry point of a driver: spawns a task, and waits for it or keeps it. Does nothing elsewhere.
#[test]
fn driver_entry() {
    let Some(dir) = std::env::var_os("COFFERDAM_DRIVER") else { return };
    let does = std::env::var("COFFERDAM_DOES").unwrap();
    let die = if does == "survives" { DieWith::Survive } else { DieWith::Driver };
    let task = sandbox(Path::new(&dir)).die_with(die).spawn().unwrap();
    println!("\nspawned {}", task.pid().unwrap_or(0));
    if does == "waits" {
        println!("\nended {}", task.wait().unwrap());
        std::io::stdin().read_line(&mut String::new()).unwrap();
        task.release().unwrap();
    } else {
        std::io::stdin().read_line(&mut String::new()).unwrap();
    }
    drop(task);
    println!("\ndropped");
}

struct Driver(std::process::Child, BufReader<std::process::ChildStdout>);

impl Driver {
    fn start(dir: &Path, does: &str) -> Driver {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "driver_entry", "--nocapture", "--test-threads=1"]);
        command.env("COFFERDAM_DRIVER", dir).env("COFFERDAM_DOES", does);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Driver(child, lines)
    }

    /// Waits for a line that begins so, and returns the rest.
    fn says(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.1.read_line(&mut line).unwrap(), 0, "no line {word:?}");
            if let Some(rest) = line.trim().strip_prefix(word) {
                return rest.trim().to_owned();
            }
        }
    }

    fn goes_on(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn task_of_another_living_process_is_killed_and_its_owner_removes_nothing_of_the_new_one() {
    if !sandboxes() {
        return;
    }
    let places = Places::new();
    let mut driver = Driver::start(places.dir(), "waits");
    driver.says("spawned");
    let busy = sandbox(places.dir()).spawn().unwrap_err();
    assert!(cause(&busy).starts_with("the id is in use: process "), "{}", cause(&busy));
    let new = sandbox(places.dir()).replace(true).spawn().unwrap();
    assert_eq!(driver.says("ended"), "signal 9");
    places.is_whole(&new);
    driver.goes_on();
    driver.says("dropped");
    driver.0.wait().unwrap();
    places.is_whole(&new);
    new.release().unwrap();
    places.are_empty();
}

#[test]
fn owner_that_releases_in_any_way_and_at_any_time_removes_nothing_of_the_new_task() {
    if !sandboxes() {
        return;
    }
    let places = Places::new();
    let rounds = if common::emulated() { 6 } else { 30 };
    let mut old = Arc::new(sandbox(places.dir()).spawn().unwrap());
    for round in 0..rounds {
        let owned = Arc::clone(&old);
        drop(old);
        let owner = std::thread::spawn(move || {
            let status = match round % 3 {
                0 => owned.wait().unwrap(),
                1 => owned.wait_end(None).unwrap().inspect(|_| owned.release().unwrap()).unwrap(),
                _ => owned.wait_end(None).unwrap().unwrap(),
            };
            assert_eq!(status.signal, Some(9));
            // Every call on the old value, while and after the new task is made.
            let _ = (owned.release(), owned.kill(), owned.stats(), owned.try_wait());
            drop(owned);
        });
        let new = sandbox(places.dir()).replace(true).spawn().unwrap();
        owner.join().unwrap();
        places.is_whole(&new);
        old = Arc::new(new);
    }
    old.release().unwrap();
    places.are_empty();
}

#[test]
fn owner_that_does_not_release_its_task_is_named_and_nothing_is_started() {
    if !sandboxes() {
        return;
    }
    let places = Places::new();
    let mut driver = Driver::start(places.dir(), "keeps");
    driver.says("spawned");
    let refused = sandbox(places.dir()).replace(true).spawn().unwrap_err();
    let named = format!("the id is in use: process {} has the task {}", driver.0.id(), id(places.dir()));
    assert!(cause(&refused).starts_with(&named), "{refused}: {}", cause(&refused));
    driver.goes_on();
    driver.says("dropped");
    places.are_empty();
    // The calling process may be the owner.
    let old = sandbox(places.dir()).spawn().unwrap();
    let refused = sandbox(places.dir()).replace(true).spawn().unwrap_err();
    assert!(cause(&refused).contains("release it, or drop its value"), "{}", cause(&refused));
    assert_eq!(old.status().unwrap().unwrap().signal, Some(9));
    old.release().unwrap();
    let new = sandbox(places.dir()).replace(true).spawn().unwrap();
    drop(old);
    places.is_whole(&new);
    new.release().unwrap();
    places.are_empty();
}

#[test]
fn task_without_an_owner_is_replaced() {
    if !sandboxes() {
        return;
    }
    let places = Places::new();
    let mut driver = Driver::start(places.dir(), "survives");
    let pid = driver.says("spawned");
    driver.kill();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    let busy = sandbox(places.dir()).spawn().unwrap_err();
    assert!(cause(&busy).contains("its task runs without an owner"), "{}", cause(&busy));
    let new = sandbox(places.dir()).replace(true).spawn().unwrap();
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    places.is_whole(&new);
    // A detached task of this process, by a sandbox of another shape: what only the old one had is removed too.
    new.detach().unwrap();
    let bare = sandbox(places.dir()).with(|spec| spec.root = Root::default()).replace(true);
    let new = bare.spawn().unwrap();
    assert!(!places.files()[1].exists() && places.files()[0].exists());
    new.release().unwrap();
    places.are_empty();
}

#[test]
fn task_of_another_user_is_not_touched() {
    if !sandboxes() || !can("root") {
        return;
    }
    let places = Places::new();
    let old = sandbox(places.dir()).spawn().unwrap();
    let id = id(places.dir());
    let mut owned = places.files().to_vec();
    owned.push(places.dir().join(format!("temp/cofferdam-{id}")));
    let groups = common::cgroups_of(old.pid().unwrap());
    owned.extend(groups.into_iter().filter(|group| group.to_string_lossy().contains(&id)));
    owned.iter().for_each(|path| chown(path, Some(65534), Some(65534)).unwrap());
    let refused = sandbox(places.dir()).replace(true).spawn().unwrap_err();
    assert_eq!(old.status().unwrap(), None, "{refused}: {}", cause(&refused));
    owned.iter().for_each(|path| chown(path, Some(0), Some(0)).unwrap());
    places.is_whole(&old);
    old.release().unwrap();
    places.are_empty();
}

#[test]
fn task_is_replaced_although_the_directory_of_temporary_roots_does_not_exist() {
    if !sandboxes() {
        return;
    }
    let places = Places::new();
    let policy = Policy {
        temp_dir: Some(places.dir().join("never-made")),
        state_dir: Some(places.dir().join("state")),
        ..Policy::default()
    };
    let sandbox = shell("exec sleep 600").policy(&policy).id(id(places.dir())).require(Require::BestEffort);
    let first = sandbox.clone().die_with(DieWith::Survive).spawn().unwrap();
    let pid = first.pid().unwrap();
    first.detach().unwrap();
    drop(first);
    let second = sandbox.replace(true).spawn().unwrap();
    assert_ne!(second.pid(), Some(pid));
    assert_eq!(second.status().unwrap(), None);
    second.release().unwrap();
    places.are_empty();
}

#[test]
fn of_concurrent_replacements_one_task_is_left() {
    if !sandboxes() {
        return;
    }
    let places = Places::new();
    for _ in 0..if common::emulated() { 1 } else { 4 } {
        let owned = |task: Task| {
            let (task, other) = {
                let task = Arc::new(task);
                (Arc::clone(&task), task)
            };
            // An owner that waits, as drivers do.
            (task, std::thread::spawn(move || other.wait().unwrap()))
        };
        let first = owned(sandbox(places.dir()).spawn().unwrap());
        let spawned = std::thread::scope(|scope| {
            let spawn = || sandbox(places.dir()).replace(true).spawn().map(owned);
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(spawn)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let errors: Vec<_> = spawned.iter().filter_map(|spawned| spawned.as_ref().err()).map(cause).collect();
        let tasks: Vec<_> = [Ok(first)].into_iter().chain(spawned).flatten().collect();
        let start = Instant::now();
        let alive = || tasks.iter().filter(|(task, _)| task.status().unwrap().is_none()).count();
        while alive() > 1 && start.elapsed() < LONG {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(alive(), 1, "{} spawned, {errors:?}", tasks.len());
        for (task, owner) in tasks {
            if task.status().unwrap().is_none() {
                places.is_whole(&task);
                task.kill().unwrap();
            }
            assert_eq!(owner.join().unwrap().signal, Some(9));
        }
        places.are_empty();
    }
}

#[test]
fn spawn_that_replaces_nothing_is_as_any_other_and_its_plan_says_what_it_would_replace() {
    if !sandboxes() {
        return;
    }
    let places = Places::new();
    let sandbox = sandbox(places.dir()).replace(true);
    let plan = sandbox.plan().unwrap().to_string();
    assert!(plan.contains(&format!("# replace the task {}, if there is one\n", id(places.dir()))), "{plan}");
    // Places that do not exist have no task.
    let task = sandbox.spawn().unwrap();
    places.is_whole(&task);
    task.release().unwrap();
    places.are_empty();
    match shell("true").replace(true).plan() {
        Err(Error::Spec { field, .. }) => assert_eq!(field, "replace"),
        other => panic!("{other:?}"),
    }
    if !can("root") {
        skip(&["root"], "prepared mounts need root");
    } else {
        // A plan that is kept replaces too.
        let host = cofferdam::Host::probe().unwrap();
        let kept = shell("exec sleep 600").id(id(places.dir())).host(&host).replace(true);
        for _ in 0..3 {
            kept.spawn().unwrap().detach().unwrap();
        }
        shell("true").id(id(places.dir())).replace(true).spawn().unwrap().wait().unwrap();
    }
}

/// Only the cgroups are there that two tasks of one id could share.
#[test]
fn one_of_two_spawns_of_one_id_at_the_same_time_gets_it() {
    if !sandboxes() || !can("cgroups") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let name = id(dir.path());
    let limits = cofferdam::Limits { memory: Some(64 << 20), pids_max: Some(64), ..Default::default() };
    let sandbox = shell("exec sleep 600").id(&name).limits(limits);
    let (mut busy, rounds) = (0, if common::emulated() { 20 } else { 150 });
    for _ in 0..rounds {
        let both = std::sync::Barrier::new(2);
        let spawn = || {
            both.wait();
            sandbox.spawn()
        };
        let done = std::thread::scope(|scope| {
            let threads = [scope.spawn(spawn), scope.spawn(spawn)];
            threads.map(|thread| thread.join().unwrap())
        });
        let (tasks, refused): (Vec<_>, Vec<_>) = done.into_iter().partition(Result::is_ok);
        assert_eq!(tasks.len(), 1, "{tasks:?} {refused:?}");
        for error in refused.into_iter().filter_map(Result::err) {
            let source = std::error::Error::source(&error).unwrap().downcast_ref::<std::io::Error>().unwrap();
            assert_eq!(source.kind(), std::io::ErrorKind::ResourceBusy, "{error}: {source}");
            busy += 1;
        }
        let task = tasks.into_iter().flatten().next().unwrap();
        assert_eq!(task.status().unwrap(), None);
        assert_eq!(task.stats().unwrap().memory.limit, Some(64 << 20));
        task.release().unwrap();
    }
    assert_eq!(busy, rounds);
    let groups: Vec<_> = common::tops::tops().into_iter().map(|top| top.join("cofferdam")).collect();
    let left = |group: &PathBuf| group.join(&name).exists();
    assert!(!groups.iter().any(left), "{groups:?}");
}
