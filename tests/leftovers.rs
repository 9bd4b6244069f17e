//! What killed drivers leave is found and removed whole, and nothing else is. Drivers are processes of their own, which
//! the tests kill. Each test has a parent cgroup, a temporary directory and a state directory of its own.
//! (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use cofferdam::{DieWith, Host, Limits, Method, Policy, Require, Sandbox, StaleSandbox};
use common::places::{self, below, cgroups, parent, policy};
use common::{sandboxes, skip::skip};

/// More than any of these tests takes on a loaded machine.
const LONG: Duration = Duration::from_secs(60);

/// Every method that populates a root.
const METHODS: [Method; 5] = [Method::Bind, Method::Overlay, Method::Reflink, Method::Copy, Method::Link];

/// The places of one test.
struct Places(tempfile::TempDir);

impl Places {
    fn new() -> Places {
        Places(places::dirs())
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    fn find(&self, claimed: impl Fn(&str) -> bool) -> Vec<StaleSandbox> {
        StaleSandbox::find(&policy(self.dir()), &Host::probe().unwrap(), Duration::ZERO, claimed).unwrap()
    }

    /// Everything in the three places.
    fn all(&self) -> Vec<PathBuf> {
        let mut all = below(&self.dir().join("temp"));
        all.extend(below(&self.dir().join("state")));
        all.extend(cgroups(self.dir()).iter().filter(|dir| dir.exists()).cloned());
        all
    }

    /// Waits until something is old enough to be stale, and returns it.
    fn wait(&self, claimed: impl Fn(&str) -> bool) -> Vec<StaleSandbox> {
        let start = Instant::now();
        loop {
            let found = self.find(&claimed);
            if !found.is_empty() || start.elapsed() > LONG {
                return found;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Whether sandboxes can be made below a parent cgroup of the test's own.
fn owns_parents() -> bool {
    if !sandboxes() {
        return false;
    }
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    skip(&["root"], "the parent cgroup of the test is not in the cgroup that is delegated to the caller");
    false
}

fn sleeper(dir: &Path, id: &str, method: Method, die: DieWith) -> Sandbox {
    let mut sandbox = Sandbox::command("/bin/sleep").arg("600").policy(&policy(dir)).id(id);
    if method != Method::Bind && method != Method::Overlay {
        // Little to copy: the command and its libraries.
        let files =
            ["/usr/bin/sleep:/bin/sleep", "/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"];
        let env = files.map(|file| file.split_once(':').unwrap_or((file, file)));
        sandbox = sandbox.with(|s| {
            s.root.chroot_env =
                env.into_iter().map(|(source, target)| (source.into(), target.into())).collect();
        });
    }
    sandbox.populate(method).die_with(die).require(Require::BestEffort)
}

/// Entry point of a driver that a test kills: makes sandboxes, one after the other or one that stays. Does nothing
/// elsewhere.
#[test]
fn driver_entry() {
    let Some(dir) = std::env::var_os("COFFERDAM_LEFT_DRIVER") else { return };
    let asked = std::env::var("COFFERDAM_LEFT_ASKED").unwrap();
    let mut asked = asked.split(' ');
    let (id, n, stays) = (asked.next().unwrap(), asked.next().unwrap(), asked.next().unwrap());
    let method = METHODS[n.parse::<usize>().unwrap()];
    let die = if stays == "survives" { DieWith::Survive } else { DieWith::Driver };
    println!("\nstarting");
    let start = Instant::now();
    for round in 0.. {
        let id = if stays == "loops" { format!("{id}-{round}") } else { id.to_owned() };
        let task = sleeper(Path::new(&dir), &id, method, die).spawn();
        match task {
            Ok(_task) if stays == "loops" => {}
            Ok(task) => {
                println!("\nspawned");
                std::thread::sleep(LONG);
                drop(task);
                return;
            }
            // Said to a test that waits for it; one that kills the driver does not.
            Err(error) => println!("\nrefused {error}: {:?}", std::error::Error::source(&error)),
        }
        if start.elapsed() > LONG {
            return;
        }
    }
}

struct Driver(Child, BufReader<std::process::ChildStdout>);

/// Starts a driver.
fn driver(dir: &Path, id: &str, method: usize, stays: &str) -> Driver {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "driver_entry", "--nocapture", "--test-threads=1"]);
    command.env("COFFERDAM_LEFT_DRIVER", dir).env("COFFERDAM_LEFT_ASKED", format!("{id} {method} {stays}"));
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    Driver(child, lines)
}

impl Driver {
    /// Waits for a line. False if the driver says that its spawn was refused.
    fn says(&mut self, line: &str) -> bool {
        let mut text = String::new();
        while self.1.read_line(&mut text).unwrap() > 0 {
            if text.trim() == line {
                return true;
            }
            assert!(!text.starts_with("refused"), "{text}");
            text.clear();
        }
        false
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn drivers_killed_at_random_moments_leave_nothing_that_is_not_found_and_removed() {
    if !sandboxes() {
        return;
    }
    let places = Places::new();
    let task = sleeper(places.dir(), "counted", METHODS[0], DieWith::Driver).spawn().unwrap();
    // A task that runs without a driver is found by its cgroup.
    let kinds = match task.processes() {
        Ok(_) => ["ends", "survives", "loops"],
        Err(e) => {
            common::skip::note(format!("tasks that survive their driver: {e}"));
            ["ends", "ends", "loops"]
        }
    };
    task.release().unwrap();
    let rounds = if common::emulated() { 9 } else { 30usize };
    for round in 0..10 * rounds {
        // More rounds, if every driver was killed before it had made anything.
        if round >= rounds && !places.all().is_empty() {
            break;
        }
        let stays = kinds[round % 3];
        let mut driver = driver(places.dir(), &format!("k{round}"), round % METHODS.len(), stays);
        assert!(driver.says("starting"));
        let random = std::fs::read("/proc/sys/kernel/random/uuid").unwrap();
        let nanoseconds = random.iter().fold(0u64, |sum, byte| sum * 31 % 60_000_007 + u64::from(*byte));
        let slower = if common::emulated() { 30 } else { 1 };
        std::thread::sleep(Duration::from_nanos(nanoseconds) * slower);
        driver.kill();
    }
    assert!(!places.all().is_empty());
    let start = Instant::now();
    while !places.all().is_empty() && start.elapsed() < LONG {
        for stale in places.find(|_| false) {
            stale.remove().unwrap_or_else(|e| panic!("{stale}: {e}: {:?}", std::error::Error::source(&e)));
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(places.all(), Vec::<PathBuf>::new());
}

#[test]
fn tasks_and_spawns_of_living_drivers_are_untouched() {
    if !sandboxes() {
        return;
    }
    let places = Places::new();
    let mut task = driver(places.dir(), "stays", 0, "ends");
    assert!(task.says("spawned"));
    let mut looping = [driver(places.dir(), "a", 0, "loops"), driver(places.dir(), "b", 3, "loops")];
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(9) {
        let found = places.find(|_| false);
        assert!(found.is_empty(), "{}", found[0]);
    }
    let cgroups = |dir: &Path| cgroups(dir).iter().any(|dir| dir.exists());
    assert!(places.dir().join("state/stays.exit").exists());
    assert!(cgroups(places.dir()) || !common::can("cgroups") || !nix::unistd::geteuid().is_root());
    assert!(task.0.try_wait().unwrap().is_none());
    for driver in &mut looping {
        assert!(driver.0.try_wait().unwrap().is_none(), "a spawn failed");
        driver.0.kill().unwrap();
        // No line of what it said until then is a refusal.
        while driver.says("x") {}
        driver.0.wait().unwrap();
    }
    task.kill();
    let start = Instant::now();
    while !places.all().is_empty() && start.elapsed() < LONG {
        places.wait(|_| false).iter().for_each(|stale| stale.remove().unwrap());
    }
    assert_eq!(places.all(), Vec::<PathBuf>::new());
}

#[test]
fn claimed_survivor_stays_and_an_unclaimed_one_is_killed() {
    if !owns_parents() {
        return;
    }
    let places = Places::new();
    for id in ["mine", "lost"] {
        let mut driver = driver(places.dir(), id, 3, "survives");
        assert!(driver.says("spawned"));
        driver.kill();
    }
    let found = places.wait(|id| id == "mine");
    assert_eq!(found.iter().map(StaleSandbox::id).collect::<Vec<_>>(), ["lost"]);
    let lost = &found[0];
    assert!(lost.processes() >= 1 && lost.age() >= Duration::from_secs(5), "{lost}");
    assert_eq!(lost.temp_root(), Some(&*places.dir().join("temp/cofferdam-lost")));
    assert_eq!(lost.exit_record(), Some(&*places.dir().join("state/lost.exit")));
    // Finding is the dry run.
    assert!(lost.cgroups().iter().all(|dir| dir.exists()) && lost.temp_root().unwrap().exists());
    assert_eq!(places.find(|id| id == "mine").len(), 1);
    let cgroups = lost.cgroups().to_vec();
    lost.remove().unwrap();
    lost.remove().unwrap();
    assert!(cgroups.iter().all(|dir| !dir.exists()) && !lost.temp_root().unwrap().exists());
    let mine = places.find(|_| false);
    assert_eq!(mine.len(), 1);
    assert!(mine[0].processes() >= 1, "{}", mine[0]);
    mine[0].remove().unwrap();
    assert_eq!(places.all(), Vec::<PathBuf>::new());
}

/// If the kernel has forgotten the inode of a cgroup's directory, its times are the present.
#[test]
fn a_sandbox_is_found_also_if_the_time_of_its_cgroups_is_the_present() {
    if !owns_parents() {
        return;
    }
    for has_record in [true, false] {
        let places = Places::new();
        let mut policy = policy(places.dir());
        policy.state_dir = policy.state_dir.filter(|_| has_record);
        let host = Host::probe().unwrap();
        let find = || StaleSandbox::find(&policy, &host, Duration::ZERO, |_| false).unwrap();
        let sandbox = sleeper(places.dir(), "old", Method::Bind, DieWith::Survive).policy(&policy);
        sandbox.spawn().unwrap().detach().unwrap();
        let start = Instant::now();
        while find().is_empty() && start.elapsed() < LONG {
            std::thread::sleep(Duration::from_millis(200));
        }
        // The processes are younger than the cgroups, by what a spawn takes.
        std::thread::sleep(Duration::from_secs(if common::emulated() { 10 } else { 1 }));
        let found = find();
        assert!(!found[0].cgroups().is_empty(), "{found:?}");
        for dir in found[0].cgroups() {
            std::fs::File::open(dir).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
        }
        let again = find();
        assert_eq!(again.iter().map(StaleSandbox::id).collect::<Vec<_>>(), ["old"], "{has_record}");
        assert!(!has_record || again[0].age() >= Duration::from_secs(5), "{}", again[0]);
        again[0].remove().unwrap();
        assert_eq!(places.all(), Vec::<PathBuf>::new());
    }
}

/// The v1 cgroups of a task, by their paths.
fn v1_cgroups(dir: &Path, id: &str) -> Vec<PathBuf> {
    let host = Host::probe().unwrap().cgroups;
    let all = host.v1.values().map(|v1| v1.mount.join(parent(dir)).join(id));
    let mut all: Vec<PathBuf> = all.filter(|dir| dir.exists()).collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn next_task_of_an_id_leaves_no_v1_cgroup_of_the_first_one_which_had_other_limits() {
    if !common::can("cgroups") || !common::can("root") {
        return;
    }
    let host = Host::probe().unwrap().cgroups;
    if !host.v1.is_empty() && host.v2.is_none() {
        // In a parent that the operator named, without a v2 cgroup that shows it, a cgroup of that name may be another
        // program's.
        return common::skip::note("pure v1");
    }
    let places = Places::new();
    let policy = Policy { state_dir: None, ..policy(places.dir()) };
    let sandbox = sleeper(places.dir(), "again", Method::Bind, DieWith::Survive).policy(&policy);
    let limits = Limits { memory: Some(64 << 20), pids_max: Some(20), ..Limits::default() };
    let first = sandbox.clone().limits(limits).spawn().unwrap();
    let before = v1_cgroups(places.dir(), "again");
    first.detach().unwrap();
    drop(first);
    let second = sandbox.spawn().unwrap();
    let own = v1_cgroups(places.dir(), "again");
    second.release().unwrap();
    // The second spawn may have prepared the mounts, and then keeps the parent.
    sandbox.release_prepared();
    assert_eq!(places.all(), Vec::<PathBuf>::new(), "{before:?}");
    assert!(own.len() < before.len() || before.is_empty(), "{own:?}");
}

/// A task without a temporary root and an exit record is found by the unit in the hierarchy of the freezer.
#[test]
fn without_a_v2_tree_a_stale_sandbox_is_found_by_its_v1_unit() {
    if !common::can("cgroups") || !common::can("root") {
        return;
    }
    let mut host = Host::probe().unwrap();
    if !host.cgroups.v1.get("freezer").is_some_and(|freezer| freezer.writable) {
        return skip(&["cgroup_v1"], "the host has no freezer of cgroup v1");
    }
    host.cgroups.v2 = None;
    let places = Places::new();
    let policy = Policy { state_dir: None, ..policy(places.dir()) };
    let find =
        |claimed: &str| StaleSandbox::find(&policy, &host, Duration::ZERO, |id| id == claimed).unwrap();
    let sandbox = sleeper(places.dir(), "v1", Method::Bind, DieWith::Survive).policy(&policy).host(&host);
    let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
    let owned = sandbox.clone().id("owned").spawn().unwrap();
    let lost = sandbox.limits(limits).spawn().unwrap();
    let pid = lost.pid().unwrap();
    lost.detach().unwrap();
    drop(lost);
    // Other cgroups of the same parent, which is the crate's own.
    let start = Instant::now();
    let found = loop {
        let found = find("");
        if !found.is_empty() || start.elapsed() > LONG {
            break found;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    assert_eq!(found.iter().map(StaleSandbox::id).collect::<Vec<_>>(), ["v1"]);
    assert!(found[0].processes() >= 1 && found[0].cgroups().len() >= 2, "{}", found[0]);
    assert!(find("v1").is_empty());
    found[0].remove().unwrap();
    assert!(!Path::new(&format!("/proc/{pid}/cmdline")).exists());
    assert!(owned.status().unwrap().is_none(), "the task with an owner goes on");
    owned.release().unwrap();
    assert_eq!(places.all(), Vec::<PathBuf>::new());
}

/// The caller may have no cgroups. The process that writes the exit record is known by its lock on the file.
#[test]
fn stale_task_without_a_cgroup_is_found_and_killed() {
    if !sandboxes() {
        return;
    }
    let mut host = Host::probe().unwrap();
    host.cgroups.v2 = None;
    host.cgroups.v1.clear();
    let places = Places::new();
    let find = |claimed: &[&str]| {
        let claimed = |id: &str| claimed.contains(&id);
        StaleSandbox::find(&policy(places.dir()), &host, Duration::ZERO, claimed).unwrap()
    };
    let sandbox = |id| sleeper(places.dir(), id, Method::Copy, DieWith::Survive).host(&host);
    let owned = sandbox("owned").spawn().unwrap();
    let mut mains = Vec::new();
    for (id, init) in [("first", true), ("outside", false), ("claimed", true)] {
        let task = sandbox(id).init(init).spawn().unwrap();
        mains.push((task.pid().unwrap(), task.pidfd().try_clone_to_owned().unwrap()));
        task.detach().unwrap();
    }
    let start = Instant::now();
    let found = loop {
        let found = find(&["claimed"]);
        if found.len() == 2 || start.elapsed() > LONG {
            break found;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    assert_eq!(found.iter().map(StaleSandbox::id).collect::<Vec<_>>(), ["first", "outside"]);
    for stale in &found {
        assert_eq!((stale.processes(), stale.cgroups().len()), (2, 0), "{stale}");
        stale.remove().unwrap();
        stale.remove().unwrap();
    }
    let ends = |pidfd: &std::os::fd::OwnedFd| {
        use std::os::fd::AsFd;
        let mut fds = [nix::poll::PollFd::new(pidfd.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).unwrap() == 1
    };
    assert_eq!(mains.iter().map(|(_, pidfd)| ends(pidfd)).collect::<Vec<_>>(), [true, true, false]);
    for (pid, _) in &mains[..2] {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
    }
    assert!(owned.status().unwrap().is_none());
    owned.release().unwrap();
    find(&[]).iter().for_each(|stale| stale.remove().unwrap());
    assert_eq!(places.all(), Vec::<PathBuf>::new());
}

#[test]
fn a_root_with_a_mount_is_reported_and_left() {
    if !sandboxes() {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        return skip(&["root"], "only root can mount");
    }
    let places = Places::new();
    let mut driver = driver(places.dir(), "m", 3, "survives");
    assert!(driver.says("spawned"));
    driver.kill();
    let at = places.dir().join("temp/cofferdam-m/root/bin");
    let none = None::<&str>;
    nix::mount::mount(Some("none"), &at, Some("tmpfs"), nix::mount::MsFlags::empty(), none).unwrap();
    let found = places.wait(|_| false);
    let removed = found[0].remove();
    nix::mount::umount(&at).unwrap();
    assert_eq!(found[0].mounts(), [at]);
    assert!(removed.is_err() && found[0].processes() >= 1);
    let again = places.find(|_| false);
    assert!(again[0].processes() >= 1 && again[0].mounts().is_empty(), "{}", again[0]);
    again[0].remove().unwrap();
    assert_eq!(places.all(), Vec::<PathBuf>::new());
}

#[test]
fn what_only_has_such_a_name_stays() {
    let places = Places::new();
    let (temp, state) = (places.dir().join("temp"), places.dir().join("state"));
    let private = |path: &Path| {
        std::fs::create_dir(path).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
    };
    private(&temp.join("cofferdam-x"));
    private(&temp.join("cofferdam-full"));
    std::fs::create_dir(temp.join("cofferdam-full/root")).unwrap();
    std::fs::write(temp.join("cofferdam-full/notes"), "").unwrap();
    std::fs::create_dir_all(temp.join("cofferdam-open/root")).unwrap();
    std::os::unix::fs::symlink("/", temp.join("cofferdam-link")).unwrap();
    std::fs::write(state.join("y.exit"), "cofferdam exit\n\x01 but nothing of ours").unwrap();
    std::fs::set_permissions(state.join("y.exit"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::create_dir(state.join("dir.exit")).unwrap();
    nix::unistd::mkfifo(&state.join("fifo.exit"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    // A cgroup beside the slices, and one in a slice that another program has made.
    let tree = Host::probe().unwrap().cgroups.v2.map(|v2| v2.mount.join(parent(places.dir())));
    let made: Vec<PathBuf> = tree
        .iter()
        .flat_map(|tree| {
            [tree.clone(), tree.join("z.scope"), tree.join("share.slice"), tree.join("share.slice/z.scope")]
        })
        .filter(|dir| std::fs::create_dir(dir).is_ok())
        .collect();
    let all = places.all();
    std::thread::sleep(Duration::from_secs(6));
    let found = places.find(|_| false);
    let after = (places.all(), made.iter().all(|dir| dir.exists()));
    made.iter().rev().for_each(|dir| std::fs::remove_dir(dir).unwrap());
    assert!(found.is_empty(), "{}", found[0]);
    assert_eq!(after, (all, true));
}
