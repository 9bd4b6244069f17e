//! What a program that links the crate sees of it: names, lookup of the command, environment, streams, and what must
//! hold. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

use cofferdam::{Control, Error, Host, IsolationMode, Limits, Method, Require, Root, Sandbox, Stdio, Volume};
use common::{can, run_probe, sandboxes, shell, status};

/// Entry point of this binary inside a sandbox; does nothing elsewhere.
#[test]
fn probe_entry() {
    if let Some((_, mut say)) = common::asked() {
        common::say_facts(&mut say);
    }
}

#[test]
fn name_of_a_running_sandbox_is_refused_and_the_sandbox_goes_on() {
    if !can("cgroups") {
        return;
    }
    let id = format!("front-{}", std::process::id());
    let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
    for limits in [Limits::default(), limits] {
        let sandbox = shell("read line; exit 7").stdin(Stdio::Piped).id(&id).limits(limits);
        let first = sandbox.spawn().unwrap();
        let error = sandbox.spawn().unwrap_err();
        let why = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(why, format!("a running task has the name {id}"), "{error}");
        assert!(error.remedy().is_some());
        assert_eq!(first.try_wait().unwrap(), None);
        assert_eq!(first.sandbox_id(), id);
        // The first is as it was: its standard input is closed by the wait, and it ends by itself.
        assert_eq!(first.wait().unwrap().code, Some(7));
        assert!(sandbox.spawn().unwrap().wait().unwrap().code == Some(7));
    }
}

#[test]
fn wait_closes_a_piped_standard_input() {
    if !sandboxes() {
        return;
    }
    let task = Sandbox::command("cat").stdin(Stdio::Piped).spawn().unwrap();
    assert!(task.wait().unwrap().success());
    assert!(task.take_stdin().is_none());
}

#[test]
fn command_arguments_and_environment_need_not_be_utf8() {
    if !sandboxes() {
        return;
    }
    let odd = OsStr::from_bytes(b"\xff\xfe");
    let task = shell("printf %s \"$1$ODD\"").arg("sh").arg(odd).env("ODD", odd).stdout(Stdio::Piped).spawn();
    let task = task.unwrap();
    let mut text = Vec::new();
    task.take_stdout().unwrap().read_to_end(&mut text).unwrap();
    assert_eq!(text, b"\xff\xfe\xff\xfe");
    assert!(task.wait().unwrap().success());
}

/// A directory with the scripts `tool` (exits with 3) and `bin/tool` (exits with 4), as a volume at `/work`.
fn tools() -> (tempfile::TempDir, Volume) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("bin")).unwrap();
    for (name, code) in [("tool", 3), ("bin/tool", 4)] {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\nexit {code}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    for dir in [dir.path().to_owned(), dir.path().join("bin")] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let volume =
        Volume { source: dir.path().into(), target: "/work".into(), read_only: true, ..Volume::default() };
    (dir, volume)
}

#[test]
fn command_is_looked_up_as_by_a_shell() {
    if !sandboxes() {
        return;
    }
    let (_dir, volume) = tools();
    let run = |command: &str, work_dir: &str, path: Option<&str>| {
        let mut sandbox = Sandbox::command(command).volume(volume.clone()).work_dir(work_dir);
        if let Some(path) = path {
            sandbox = sandbox.env("PATH", path);
        }
        sandbox.spawn().map(|task| task.wait().unwrap().code)
    };
    for (command, work_dir, path, code) in [
        ("./tool", "/work", None, 3),
        ("bin/tool", "/work", None, 4),
        ("../tool", "/work/bin", None, 3),
        ("/work/tool", "/", None, 3),
        ("work/bin/tool", "/usr", None, 4),
        ("tool", "/", Some("/nowhere:/work/bin:/work"), 4),
        ("tool", "/", Some("/work:/work/bin"), 3),
        ("tool", "/work", Some("bin"), 4),
        ("tool", "/work", Some("/nowhere::/usr"), 3),
        ("true", "/work", None, 0),
    ] {
        assert_eq!(run(command, work_dir, path).unwrap(), Some(code), "{command} {work_dir} {path:?}");
    }
    for (command, path, places) in [
        ("tool", Some("/usr/sbin:/sbin"), &["/local/tool", "/tool", "/usr/sbin/tool", "/sbin/tool"][..]),
        ("./none", None, &["/work/./none", "/local/./none", "/./none"]),
        ("/none", None, &["/none"]),
    ] {
        let error = run(command, "/work", path).unwrap_err();
        assert_eq!(error.exit_code(), 127);
        let text = error.to_string();
        let Error::Exec { tried, .. } = error else { panic!("{error:?}") };
        assert_eq!(tried, places.iter().map(std::path::PathBuf::from).collect::<Vec<_>>());
        assert!(places.iter().all(|place| text.contains(place)), "{text}");
    }
    for (command, path, kind) in [
        ("/usr", None, io::ErrorKind::IsADirectory),
        ("./bin", None, io::ErrorKind::IsADirectory),
        ("bin", Some("/work"), io::ErrorKind::IsADirectory),
        ("/dev/null", None, io::ErrorKind::PermissionDenied),
    ] {
        let error = run(command, "/work", path).unwrap_err();
        assert_eq!(error.exit_code(), 126, "{error}");
        assert!(error.remedy().is_some());
        let Error::Exec { source, .. } = error else { panic!("{error:?}") };
        assert_eq!(source.kind(), kind, "{command}");
    }
    // Found, but not executable.
    let file = Volume { source: "/etc/passwd".into(), target: "/srv/file".into(), ..Volume::default() };
    let error = Sandbox::command("/srv/file").volume(file).spawn().unwrap_err();
    assert_eq!(error.exit_code(), 126, "{error}");
}

/// A host on which no limit can be set.
fn without_memory() -> Host {
    let mut host = Host::probe().unwrap();
    host.cgroups = host.cgroups.without("memory");
    host
}

#[test]
fn limit_that_cannot_be_set_fails_the_spawn_unless_best_effort_was_chosen() {
    if !sandboxes() {
        return;
    }
    let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
    let sandbox = Sandbox::command("true").limits(limits).host(&without_memory());
    for require in [None, Some(Require::Asked), Some(Require::Full), Some(Control::CAPS.into())] {
        let sandbox = sandbox.clone().with(|s| s.require = require);
        let Err(Error::Unsupported { control, reason }) = sandbox.spawn() else { panic!("{require:?}") };
        assert!(control.contains(Control::MEMORY) && !reason.is_empty(), "{control} {reason}");
    }
    let task = sandbox.require(Require::BestEffort).spawn().unwrap();
    assert!(task.report().missing.contains(Control::MEMORY), "{}", task.report());
    assert!(task.wait().unwrap().success());
}

#[test]
fn asked_controllers_are_enough_for_their_limits() {
    if !can("cgroups") {
        return;
    }
    let mut host = Host::probe().unwrap();
    // What systemd does not delegate to a user.
    for lacking in ["cpuset", "io"] {
        host.cgroups = host.cgroups.without(lacking);
    }
    let limits = Limits { memory: Some(64 << 20), pids_max: Some(50), ..Limits::default() };
    let sandbox = Sandbox::command("true").limits(limits).host(&host);
    assert!(matches!(sandbox.plan(), Err(Error::Unsupported { .. })));
    let required_controllers = cofferdam::RequiredControllers::Asked;
    let policy = cofferdam::Policy { required_controllers, ..cofferdam::Policy::default() };
    let task = sandbox.clone().policy(&policy).spawn().unwrap();
    assert!(task.report().enforced.contains(Control::MEMORY | Control::PIDS), "{}", task.report());
    assert_eq!(task.stats().unwrap().memory.limit, Some(64 << 20));
    assert!(task.wait().unwrap().success());
    // Still all or nothing.
    let limits = Limits { io_weight: Some(10), pids_max: Some(50), ..Limits::default() };
    let more = sandbox.policy(&policy).limits(limits).require(Require::BestEffort).plan().unwrap();
    assert_eq!(more.report.missing, Control::PIDS | Control::IO, "{}", more.report);
}

#[test]
fn weakened_control_fails_the_spawn_only_if_it_is_named() {
    if !sandboxes() {
        return;
    }
    let root = Root { populate: Method::Bind, ..Root::default() };
    let shared = Sandbox::command("true").root(root).pid_mode(IsolationMode::Host);
    let report = shared.plan().unwrap().report;
    assert!(report.missing.is_empty(), "{report}");
    if report.weakened.is_empty() {
        return common::skip::note("the host's PID namespace weakens nothing here");
    }
    assert!(status(shared.clone()).success());
    for require in [Require::Full, report.weakened.into()] {
        assert!(matches!(shared.clone().require(require).plan(), Err(Error::Unsupported { .. })));
    }
}

#[test]
fn deserialised_spec_is_what_the_builder_makes() {
    let json = r#"{"command": "make", "args": ["-j"], "env": {"A": "b"}, "user": "daemon", "pid_mode": "host",
        "umask": "0077", "limits": {"memory": "64m", "cores": "0-3", "swap": "off"}, "rlimits": {"core": {"soft": 0,
        "hard": 0}}, "require": ["pids"], "stdout": "piped", "devices": [{"source": "/dev/fuse", "access": "r"}]}"#;
    let spec: cofferdam::SandboxSpec = serde_json::from_str(json).unwrap();
    let limits = Limits { memory: Some(64 << 20), cores: (0..=3).into(), ..Limits::default() };
    let device = cofferdam::Device {
        access: cofferdam::cgroup::devices::Access::READ,
        ..cofferdam::Device::new("/dev/fuse")
    };
    let built = Sandbox::command("make")
        .arg("-j")
        .envs([("A", "b")])
        .user("daemon")
        .pid_mode(IsolationMode::Host)
        .umask(0o077)
        .limits(limits)
        .rlimit(cofferdam::Resource::Core, 0)
        .require(Control::PIDS)
        .stdout(Stdio::Piped)
        .device(device);
    assert_eq!(&spec, built.spec());
    let again = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<cofferdam::SandboxSpec>(&again).unwrap(), spec);
}

#[test]
fn given_home_and_user_win_over_the_user_database() {
    if !sandboxes() {
        return;
    }
    let seen = run_probe(common::probe("facts").env("HOME", "/work").env("USER", "me")).unwrap();
    assert_eq!((seen.get("env.HOME"), seen.get("env.USER")), ("/work", "me"));
    assert_ne!(seen.get("env.LOGNAME"), "me");
}
