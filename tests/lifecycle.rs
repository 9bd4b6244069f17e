//! How a task starts and ends, and what its caller can do meanwhile. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam::cgroup::CgroupPath;
use cofferdam::{Error, Limits, Method, Policy, Root, Sandbox, Signal, Stdio, Volume};
use common::tops::{top, tops};
use common::{can, remove_cgroup, sandboxes, shell, status};

#[test]
fn limits_can_be_updated_while_the_task_runs() {
    if !can("cgroups") {
        return;
    }
    let limits = |memory| Limits { memory: Some(memory), ..Limits::default() };
    let task = shell("sleep 60").limits(limits(32 << 20)).spawn().unwrap();
    assert_eq!(task.stats().unwrap().memory.limit, Some(32 << 20));
    let updated = task.update(&limits(64 << 20)).unwrap();
    assert!((updated.missing | updated.weakened).is_empty(), "{updated}");
    assert_eq!(task.stats().unwrap().memory.limit, Some(64 << 20));
    task.kill().unwrap();
    task.wait().unwrap();
    assert!(task.update(&limits(32 << 20)).is_err());
}

#[test]
fn exit_codes_and_signals_are_reported() {
    if !sandboxes() {
        return;
    }
    for init in [true, false] {
        let run = |script: &str| status(shell(script).with(|s| s.init = init));
        assert_eq!(run("exit 3").code, Some(3));
        assert_eq!(run("true").shell_code(), 0);
    }
    assert_eq!(status(shell("kill -TERM $$")).signal, Some(15));
    assert_eq!(status(shell("kill -ABRT $$")).signal, Some(6));
    assert_eq!(status(shell("kill -KILL $$")).shell_code(), 137);
    assert_eq!(status(shell("(sleep 60 &); exec sleep 0.1")).code, Some(0));
}

#[test]
fn task_can_be_signalled_waited_for_and_killed() {
    if !sandboxes() {
        return;
    }
    let task = shell("sleep 60").spawn().unwrap();
    assert_eq!(task.try_wait().unwrap(), None);
    assert_eq!(task.wait_timeout(Duration::from_millis(30)).unwrap(), None);
    assert!(task.pid().unwrap() > 1);
    task.signal(Signal::TERM).unwrap();
    assert_eq!(task.wait().unwrap().signal, Some(15));
    assert_eq!(task.wait().unwrap().signal, Some(15), "the status stays");
    task.signal(Signal::TERM).unwrap();
    task.kill().unwrap();

    let task = shell("trap '' TERM; sleep 60 & wait").spawn().unwrap();
    task.kill().unwrap();
    assert_eq!(task.wait().unwrap().signal, Some(9));
}

#[test]
fn one_thread_may_wait_while_another_signals() {
    if !sandboxes() {
        return;
    }
    let task = shell("sleep 60").spawn().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| task.wait().unwrap());
        std::thread::sleep(Duration::from_millis(20));
        task.signal(Signal::KILL).unwrap();
        assert_eq!(waiting.join().unwrap().signal, Some(9));
    });
}

#[test]
fn dropping_a_task_kills_it_and_detaching_does_not() {
    if !sandboxes() {
        return;
    }
    let alive = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    };
    let task = shell("sleep 60").spawn().unwrap();
    let pid = task.pid().unwrap();
    drop(task);
    assert!(!alive(pid));

    let task = shell("sleep 60").spawn().unwrap();
    let pid = task.pid().unwrap();
    let groups = common::cgroups_of(pid);
    task.detach().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(alive(pid), "a detached task lives on");
    // Its init was detached as well. It ends with the task, and this process reaps it.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while Path::new(&format!("/proc/{pid}")).exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!alive(pid));
    remove_groups(&groups);
}

#[test]
fn piped_standard_streams_reach_the_task() {
    if !sandboxes() {
        return;
    }
    let sandbox = shell("cat; echo err >&2").stdin(Stdio::Piped).stdout(Stdio::Piped).stderr(Stdio::Piped);
    let task = sandbox.spawn().unwrap();
    task.take_stdin().unwrap().write_all(b"through").unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    task.take_stdout().unwrap().read_to_string(&mut out).unwrap();
    task.take_stderr().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("through", "err\n"));
    assert!(task.wait().unwrap().success());
}

#[test]
fn exec_waits_until_the_program_is_no_longer_open_for_writing() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("true");
    std::fs::copy("/bin/true", &program).unwrap();
    for path in [dir.path(), program.as_path()] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let volume = Volume { source: dir.path().into(), target: "/s".into(), ..Volume::default() };
    let writer = std::fs::OpenOptions::new().append(true).open(&program).unwrap();
    let closer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        drop(writer);
    });
    assert!(status(Sandbox::command("/s/true").volume(volume)).success());
    closer.join().unwrap();
}

#[test]
fn missing_script_interpreter_is_named_in_the_error() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    for (path, mode) in [(dir.path(), 0o755), (script.as_path(), 0o755)] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
    let volume = Volume { source: dir.path().into(), target: "/s".into(), ..Volume::default() };
    let error = Sandbox::command("/s/script").volume(volume).spawn().unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("interpreter"), "{cause}");
}

#[test]
fn missing_command_is_127_and_non_executable_command_is_126() {
    if !sandboxes() {
        return;
    }
    for (command, code, kind) in [
        ("no-such-command", 127, std::io::ErrorKind::NotFound),
        ("/no/such/command", 127, std::io::ErrorKind::NotFound),
        ("/etc/passwd", 126, std::io::ErrorKind::PermissionDenied),
        ("/etc", 126, std::io::ErrorKind::IsADirectory),
    ] {
        match Sandbox::command(command).spawn() {
            Err(error @ Error::Exec { .. }) => {
                assert_eq!(error.exit_code(), code, "{command}");
                let Error::Exec { source, .. } = error else { unreachable!() };
                assert_eq!(source.kind(), kind, "{command}");
            }
            other => panic!("{command}: {other:?}"),
        }
    }
}

fn remove_groups(groups: &[std::path::PathBuf]) {
    let deadline = Instant::now() + Duration::from_secs(30);
    // The shared v1 cgroup is used by other tests, and is removed with the last task.
    for group in groups.iter().filter(|group| !group.ends_with("cofferdam/share")) {
        while std::fs::remove_dir(group).is_err() && group.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!group.exists(), "{group:?} was left behind");
        remove_cgroup(group);
    }
}

/// A root that is used as it is, and a volume: which names are found there, and where.
#[test]
fn command_is_looked_up_inside_the_root() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    let place = |path: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "no program, but executable").unwrap();
        open(&path, 0o755);
    };
    open(dir.path(), 0o755);
    for file in ["root/usr/local/bin/tmp0.txt", "root/foo/tmp1.txt", "root/local/tmp2.txt", "vol/tmp4.txt"] {
        place(file);
    }
    let found = |command: &str| {
        let root = Root { path: Some(dir.path().join("root")), populate: Method::None, ..Root::default() };
        let volume = Volume { source: dir.path().join("vol"), target: "/srv".into(), ..Volume::default() };
        match Sandbox::command(command).root(root).volume(volume).spawn() {
            // Found, but refused by the kernel as not executable (ENOEXEC). The error has the path at which it was
            // found.
            Err(Error::Exec { program, source, .. }) if source.raw_os_error() == Some(libc::ENOEXEC) => {
                Some(program.display().to_string())
            }
            Err(Error::Exec { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
            other => panic!("{command}: {other:?}"),
        }
    };
    for (command, expect) in [
        ("tmp0.txt", Some("/usr/local/bin/tmp0.txt")),
        ("/foo/tmp1.txt", Some("/foo/tmp1.txt")),
        ("local/tmp2.txt", Some("/local/tmp2.txt")),
        ("tmp2.txt", Some("/local/tmp2.txt")),
        ("/srv/tmp4.txt", Some("/srv/tmp4.txt")),
        ("/bin/sh", None),
        ("tmp4.txt", None),
        ("../../../bin/sh", None),
    ] {
        assert_eq!(found(command).as_deref(), expect, "{command}");
    }
}

/// Under this filter the exec fails, and the process can neither report that nor exit. It ends by an invalid
/// instruction (SIGILL). The caller does not hang, and does not see a success.
#[test]
fn filter_that_refuses_every_call_does_not_hang_the_spawn() {
    use cofferdam::filter::{Action, Base, Compare, Filter, Is, Profile, Rule};
    if !sandboxes() {
        return;
    }
    let never = vec![Compare { arg: 0, is: Is::Eq, value: 1, mask: u64::MAX }];
    let rule = Rule { calls: vec!["execve".into()], action: Action::Allow, args: never };
    let profile = Profile { base: Base::Action(Action::Errno(1)), rules: vec![rule], i386: false };
    for init in [true, false] {
        let filter = Filter::Profile(profile.clone());
        let task = Sandbox::command("/bin/true").filter(filter).with(|s| s.init = init).spawn();
        assert!(!task.is_ok_and(|task| task.wait().unwrap().success()), "init: {init}");
    }
}

/// A server with many threads may keep their stacks small. The test runs itself as a child process, because a stack
/// overflow ends the process.
#[test]
fn a_thread_with_64_kib_of_stack_spawns_a_sandbox() {
    const MARK: &str = "COFFERDAM_TEST_SMALL_STACK";
    if !sandboxes() {
        return;
    }
    if std::env::var_os(MARK).is_some() {
        let spawn = || shell("exit 7").spawn().unwrap().wait().unwrap();
        let thread = std::thread::Builder::new().stack_size(64 << 10).spawn(spawn).unwrap();
        std::process::exit(thread.join().unwrap().shell_code());
    }
    let name = "a_thread_with_64_kib_of_stack_spawns_a_sandbox";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(MARK, "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A cgroup in every hierarchy in which tasks get cgroups. Removed when it is dropped.
struct Outer(Vec<PathBuf>);

impl Outer {
    fn new(name: &str) -> Outer {
        let dirs: Vec<PathBuf> = tops().into_iter().map(|top| top.join(name)).collect();
        for dir in &dirs {
            fs::create_dir(dir).unwrap();
        }
        Outer(dirs)
    }

    fn set(&self, v2: &str, v1: &str) {
        for dir in &self.0 {
            for (file, text) in [("cgroup.freeze", v2), ("freezer.state", v1)] {
                if dir.join(file).exists() {
                    fs::write(dir.join(file), text).unwrap();
                }
            }
        }
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        self.set("0", "THAWED");
        self.0.iter().for_each(|dir| fs::remove_dir(dir).unwrap());
    }
}

#[test]
fn a_spawn_below_a_frozen_cgroup_is_refused_at_once_and_leaves_nothing() {
    if !can("cgroups") {
        return;
    }
    let name = format!("cofferdam-frozen-{}", std::process::id());
    let outer = Outer::new(&name);
    let parent = format!("{}/{name}", top());
    let policy = Policy { cgroup_parent: CgroupPath::new(&parent).unwrap(), ..Policy::default() };
    let spawn = || shell("true").id("below-frozen").policy(&policy).spawn();
    assert!(spawn().unwrap().wait().unwrap().success());
    outer.set("1", "FROZEN");
    let refused = spawn().unwrap_err();
    let cause = std::error::Error::source(&refused).unwrap().to_string();
    assert!(cause.contains("frozen"), "{refused}: {cause}");
    outer.set("0", "THAWED");
    assert!(spawn().unwrap().wait().unwrap().success());
}

#[test]
fn state_directory_that_every_user_may_write_to_is_refused_unless_it_is_sticky() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let set_mode = |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
    let policy = Policy { state_dir: Some(dir.path().to_owned()), ..Policy::default() };
    let sandbox = shell("exit 3").policy(&policy);
    set_mode(0o777);
    let error = sandbox.spawn().unwrap_err();
    assert!(matches!(error, Error::Prepare { .. }), "{error:?}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        error.to_string().starts_with("openat(") && cause.contains("every user may write"),
        "{error}: {cause}"
    );
    assert!(error.remedy().unwrap().contains("chmod"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    for mode in [0o1777, 0o775] {
        set_mode(mode);
        assert_eq!(sandbox.spawn().unwrap().wait().unwrap().code, Some(3), "{mode:o}");
    }
}
