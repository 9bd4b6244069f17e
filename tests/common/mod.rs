//! Shared by the integration tests: what this machine is able to do, and the probe that runs inside a sandbox.
#![allow(dead_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::path::Path;
use std::process::Command;

use cofferdam::{Error, ExitStatus, Sandbox, Stdio, Task, Volume};

pub mod places;
pub mod skip;
pub mod tops;

/// Whether this machine has what a test needs. If not, the test prints so and passes; it fails if `COFFERDAM_MUST_HAVE`
/// names the ability.
pub fn can(ability: &str) -> bool {
    let lacks = match ability {
        "root" => {
            cofferdam::Host::probe().unwrap().lacking().is_empty().then_some(()).ok_or("no CAP_SYS_ADMIN")
        }
        "userns" => user_namespaces(),
        "strace" | "unshare" => on_path(ability),
        "python3" => Path::new("/usr/bin/python3").exists().then_some(()).ok_or("no /usr/bin/python3"),
        "cgroups" => cofferdam::Host::probe()
            .unwrap()
            .cgroups
            .can_limit()
            .map_err(|_| "no cgroup controllers")
            .map(drop),
        "cgroup_v2" => v2_limits(),
        "device_cgroup" => device_cgroup(),
        "swap" => swap(),
        "machine" => own_machine(),
        other => panic!("no such ability: {other}"),
    };
    let Err(why) = lacks else { return true };
    skip::skip(&[ability], why);
    false
}

/// A spawn. If `COFFERDAM_PREPARED` is set, the sandbox's mounts are prepared first, where that is possible: `.ci/run` runs
/// the suites both ways.
pub trait Start {
    fn start(&self) -> Result<Task, Error>;
}

impl Start for Sandbox {
    fn start(&self) -> Result<Task, Error> {
        if std::env::var_os("COFFERDAM_PREPARED").is_some() {
            // The spawn reports the error, if there is one.
            let _ = self.prepare();
        }
        self.spawn()
    }
}

fn on_path(tool: &str) -> Result<(), &'static str> {
    Command::new(tool).arg("-V").output().map(drop).map_err(|_| "not installed")
}

fn user_namespaces() -> Result<(), &'static str> {
    let host = cofferdam::Host::probe().unwrap();
    if host.lacking().is_empty() || host.user_ns_forbidden.is_none() {
        Ok(())
    } else {
        Err("forbidden by a sysctl")
    }
}

/// Loads the rules to find out, because only the kernel can tell.
fn device_cgroup() -> Result<(), &'static str> {
    let task = Sandbox::command("/bin/true").with(|s| s.device_cgroup = Some(true)).start();
    task.and_then(|task| task.wait()).map(drop).map_err(|_| "no device cgroup")
}

fn v2_limits() -> Result<(), &'static str> {
    match cofferdam::Host::probe().unwrap().cgroups.mode {
        cofferdam::cgroup::Mode::V2 => Ok(()),
        _ => Err("the controllers are not on version 2"),
    }
}

/// Whether the tests may change this machine: it was started by `tools/vm-run`.
fn own_machine() -> Result<(), &'static str> {
    let made = Path::new("/vm/guest").exists() && nix::unistd::geteuid().is_root();
    if made { Ok(()) } else { Err("not a machine of tools/vm-run") }
}

fn swap() -> Result<(), &'static str> {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().count() > 1 { Ok(()) } else { Err("the host has none") }
}

/// Whether this machine is emulated, where everything takes about 20 times as long.
pub fn emulated() -> bool {
    std::env::var_os("COFFERDAM_EMULATED").is_some()
}

/// Removes a cgroup that a killed or detached caller left, and its parents if they are empty.
pub fn remove_cgroup(group: &Path) {
    for dir in group.ancestors().take_while(|dir| dir.to_string_lossy().contains("cofferdam")) {
        let _ = std::fs::remove_dir(dir);
    }
    // On cgroup v1 the next task that ends as the last one removes the shared cgroup.
    status(Sandbox::command("/bin/true"));
}

/// Whether sandboxes can be created at all, by root or in a user namespace.
pub fn sandboxes() -> bool {
    can("userns")
}

/// What the probe reported, how it ended, and the sandbox's report.
pub struct Seen {
    pub facts: BTreeMap<String, String>,
    pub status: ExitStatus,
    pub report: cofferdam::Report,
}

impl Seen {
    pub fn get(&self, key: &str) -> &str {
        self.facts.get(key).map_or_else(|| panic!("no {key} in {:?}", self.facts), String::as_str)
    }
}

/// A sandbox whose command is this test binary, which runs `probe_entry` inside.
pub fn probe(what: &str) -> Sandbox {
    let exe = std::env::current_exe().unwrap();
    let volume = Volume { source: exe, target: "/probe".into(), read_only: true, ..Volume::default() };
    Sandbox::command("/probe")
        .args(["--exact", "probe_entry", "--test-threads=1"])
        .env("COFFERDAM_PROBE", what)
        .volume(volume)
}

/// Runs a probe and reads what it writes to descriptor 3: `key=value`, each followed by a NUL.
pub fn run_probe(sandbox: Sandbox) -> Result<Seen, Error> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let task = sandbox.fd(write, 3).start()?;
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    let status = task.wait()?;
    let facts = text
        .split('\0')
        .filter_map(|item| item.split_once('='))
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect();
    Ok(Seen { facts, status, report: task.report().clone() })
}

/// Number and target of every descriptor of this process. Left out are two that are open only briefly: the one that
/// reads the list, and one that the C library's allocator opens on another thread.
pub fn descriptors() -> BTreeMap<i32, String> {
    let dir = std::fs::read_dir("/proc/self/fd").unwrap();
    let entry = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let number = path.file_name()?.to_str()?.parse().ok()?;
        let target = std::fs::read_link(&path).ok()?.display().to_string();
        let passing = target.ends_with("/fd") || target == "/proc/sys/vm/overcommit_memory";
        (!passing).then_some((number, target))
    };
    dir.filter_map(entry).collect()
}

/// Inside: writes facts to descriptor 3.
pub struct Say(File);

impl Say {
    pub fn fact(&mut self, key: &str, value: impl std::fmt::Display) {
        write!(self.0, "{key}={value}\0").unwrap();
    }
    /// Writes the result of an attempt: `ok`, or the name of the errno.
    pub fn attempt<T>(&mut self, key: &str, result: nix::Result<T>) {
        match result {
            Ok(_) => self.fact(key, "ok"),
            Err(e) => self.fact(key, format!("{e:?}")),
        }
    }
}

/// Inside: the name of the requested probe; `None` outside a sandbox.
pub fn asked() -> Option<(String, Say)> {
    let what = std::env::var("COFFERDAM_PROBE").ok()?;
    // SAFETY: `probe` declared descriptor 3, and nothing else takes it.
    Some((what, Say(unsafe { File::from_raw_fd(3) })))
}

/// Inside: writes what the process can see of itself.
pub fn say_facts(say: &mut Say) {
    // Of this thread, because the C library blocks all signals of the main thread while it creates another.
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    for line in status.lines() {
        if let Some((key, value)) = line.split_once(':') {
            say.fact(key, value.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    say.fact("mountinfo", std::fs::read_to_string("/proc/self/mountinfo").unwrap());
    say.fact("cwd", std::env::current_dir().unwrap().display());
    say.fact("oom_score_adj", std::fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim());
    say.fact("cgroup", std::fs::read_to_string("/proc/self/cgroup").unwrap().trim());
    say.fact("limits", std::fs::read_to_string("/proc/self/limits").unwrap());
    for (key, value) in std::env::vars() {
        say.fact(&format!("env.{key}"), value);
    }
    let mut root: Vec<String> =
        std::fs::read_dir("/").unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    root.sort();
    say.fact("root", root.join(" "));
    for ns in ["pid", "ipc", "net", "uts", "cgroup", "mnt", "user"] {
        say.fact(&format!("ns.{ns}"), std::fs::read_link(format!("/proc/self/ns/{ns}")).unwrap().display());
    }
    let mut fds: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|e| e.unwrap().file_name().to_str().unwrap().parse().ok())
        .filter(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok_and(|l| !l.ends_with("fd")))
        .collect();
    fds.sort();
    say.fact("fds", format!("{fds:?}"));
    say.fact("sid", nix::unistd::getsid(None).unwrap());
    say.fact("pid", nix::unistd::getpid());
    say.fact("args", std::env::args().next().unwrap());
}

/// A sandbox that runs a shell script.
pub fn shell(script: &str) -> Sandbox {
    Sandbox::command("/bin/sh").args(["-c", script]).env("PATH", "/usr/bin:/bin")
}

/// Runs the sandbox and returns its exit status.
pub fn status(sandbox: Sandbox) -> ExitStatus {
    sandbox.start().unwrap().wait().unwrap()
}

/// Runs the sandbox and returns its standard output, trimmed.
pub fn output(sandbox: Sandbox) -> String {
    let task = sandbox.stdout(Stdio::Piped).start().unwrap();
    let mut text = String::new();
    task.take_stdout().unwrap().read_to_string(&mut text).unwrap();
    task.wait().unwrap();
    text.trim().to_string()
}

/// Directories of a process's cgroups in all hierarchies, if this crate created them.
pub fn cgroups_of(pid: i32) -> Vec<std::path::PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let host = cofferdam::Host::probe().unwrap().cgroups;
    let group = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(":/")?;
        let v1 = controllers.split(',').find_map(|name| Some(&host.v1.get(name)?.mount));
        let mount = v1.or(host.v2.as_ref().filter(|_| controllers.is_empty()).map(|v2| &v2.mount))?;
        path.contains("cofferdam").then(|| mount.join(path))
    };
    text.lines().filter_map(group).collect()
}
