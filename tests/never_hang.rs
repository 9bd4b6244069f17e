//! A spawn ends by its deadline, whatever it waits for: an init that is stopped, or a source on a file system that does
//! not answer. Then everything is taken back. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;
mod dead_mount;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam::{Error, Host, IsolationMode, Method, Policy, Require, Sandbox, SandboxSpec, Volume};
use common::{can, sandboxes, shell, skip::skip};
use dead_mount::DeadMount;

/// The deadline of the spawns that hang.
const DEADLINE: Duration = Duration::from_secs(2);

/// How long a loaded machine may take to take a spawn back.
const SLACK: Duration = Duration::from_secs(20);

fn cause(error: &Error) -> String {
    std::error::Error::source(error).unwrap().to_string()
}

/// Asserts that the spawn fails at its deadline, with a step and a cause that contain these texts.
#[track_caller]
fn hangs(begun: Instant, done: Result<(), Error>, step: &str, why: &str) {
    let took = begun.elapsed();
    let error = done.unwrap_err();
    let Error::Prepare { source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.kind(), io::ErrorKind::TimedOut, "{error}: {source}");
    assert!(error.to_string().contains(step) && cause(&error).contains(why), "{error}: {}", cause(&error));
    assert!((DEADLINE..DEADLINE + SLACK).contains(&took), "{took:?}");
}

fn left(dir: &Path) -> Vec<PathBuf> {
    let entries = |name| std::fs::read_dir(dir.join(name)).unwrap().map(|entry| entry.unwrap().path());
    entries("temp").chain(entries("state")).collect()
}

fn policy(dir: &Path) -> Policy {
    for name in ["temp", "state"] {
        let _ = std::fs::create_dir(dir.join(name));
    }
    Policy { temp_dir: Some(dir.join("temp")), state_dir: Some(dir.join("state")), ..Policy::default() }
}

#[test]
fn spawn_whose_init_is_stopped_fails_at_its_deadline() {
    if !sandboxes() {
        return;
    }
    for shape in ["pid1", "beside", "alone"] {
        let dir = tempfile::tempdir().unwrap();
        let policy = policy(dir.path());
        let sandbox = shell("sleep 600").require(Require::BestEffort).spawn_deadline(DEADLINE);
        let sandbox = match shape {
            "beside" => sandbox.policy(&policy).pid_mode(IsolationMode::Host),
            "alone" => sandbox.policy(&Policy { state_dir: None, ..policy }).init(false),
            _ => sandbox.policy(&policy),
        };
        let (mut stopped, mut begun) = (0, Instant::now());
        let spawned = sandbox.spawn_with(|handle| {
            let handle = serde_json::to_value(handle).unwrap();
            stopped = handle["identity"]["init"]["pid"].as_i64().unwrap().try_into().unwrap();
            // SAFETY: kill(2) takes numbers.
            assert_eq!(unsafe { libc::kill(stopped, libc::SIGSTOP) }, 0);
            begun = Instant::now();
            Ok(())
        });
        let took = begun.elapsed();
        let error = spawned.map(drop).unwrap_err();
        assert!(error.to_string().contains("stopped or frozen"), "{shape}: {error}");
        let why = cause(&error);
        assert!(why.contains(&format!("process {stopped} is stopped by a signal")), "{shape}: {why}");
        assert!(took < DEADLINE + SLACK, "{shape}: {took:?}");
        assert!(!Path::new(&format!("/proc/{stopped}")).exists(), "{shape}");
        assert_eq!(left(dir.path()), Vec::<PathBuf>::new(), "{shape}");
    }
}

#[test]
fn time_in_which_the_caller_stores_the_handle_does_not_count() {
    if !sandboxes() {
        return;
    }
    let deadline = if common::emulated() { SLACK } else { DEADLINE };
    let sandbox = shell("exit 7").spawn_deadline(deadline);
    let task = sandbox.spawn_with(|_| {
        std::thread::sleep(deadline + Duration::from_millis(100));
        Ok(())
    });
    assert_eq!(task.unwrap().wait().unwrap().code, Some(7));
}

#[test]
fn deadline_is_read_from_json_and_must_not_be_zero() {
    let spec: SandboxSpec = serde_json::from_str(r#"{"command": "x", "spawn_deadline": "1.5s"}"#).unwrap();
    assert_eq!(spec.spawn_deadline, Some(Duration::from_millis(1500)));
    assert_eq!(Sandbox::command("x").spec().spawn_deadline, None);
    let refused = shell("true").spawn_deadline(Duration::ZERO).plan();
    assert!(matches!(refused, Err(Error::Spec { field: "spawn_deadline", .. })), "{refused:?}");
}

/// Runs a test in a thread that has a mount which does not answer, and a policy.
fn with_dead_mount(test: impl Fn(&Path, Sandbox) + Sync) {
    if !can("root") {
        return;
    }
    for reads in [false, true] {
        std::thread::scope(|scope| {
            let run = || {
                let Some(dead) = DeadMount::new(reads) else {
                    return skip(&[], "no FUSE file system can be mounted");
                };
                let sandbox = shell("true").policy(&policy(dead.dir())).spawn_deadline(DEADLINE);
                test(&dead.point(), sandbox.host(&Host::probe().unwrap()));
                assert_eq!(left(dead.dir()), Vec::<PathBuf>::new());
                drop(dead);
            };
            scope.spawn(run).join().unwrap();
        });
    }
}

#[test]
fn volume_on_a_mount_that_does_not_answer_is_an_error_that_names_it() {
    with_dead_mount(|point, sandbox| {
        for source in [point.to_owned(), point.join("below")] {
            let volume = Volume { source: source.clone(), target: "/v".into(), ..Volume::default() };
            let sandbox = sandbox.clone().volume(volume);
            let step = format!("openat2({source:?}, O_PATH)");
            let why = format!("the file system at {point:?} (fuse.dead) does not answer");
            let begun = Instant::now();
            hangs(begun, sandbox.spawn().map(drop), &step, &why);
            let begun = Instant::now();
            hangs(begun, sandbox.prepare().map(drop), &step, &why);
        }
    });
}

#[test]
fn link_to_a_mount_that_does_not_answer_is_an_error_that_names_it() {
    with_dead_mount(|point, sandbox| {
        let link = point.with_file_name("link");
        std::os::unix::fs::symlink(point.join("below"), &link).unwrap();
        let volume = Volume { source: link.clone(), target: "/v".into(), ..Volume::default() };
        let begun = Instant::now();
        hangs(begun, sandbox.volume(volume).spawn().map(drop), &format!("{link:?}"), "does not answer");
    });
}

/// The plan of such a spawn is kept, and what it was made of is looked at again.
#[test]
fn mount_that_stops_answering_between_two_spawns_is_an_error_that_names_it() {
    with_dead_mount(|point, sandbox| {
        let at = |name: &str| point.with_file_name(name);
        for name in ["data", "links", "more"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::os::unix::fs::symlink(at("links/second"), at("more/first")).unwrap();
        std::os::unix::fs::symlink(at("data"), at("links/second")).unwrap();
        let bind = |over: &Path| {
            let (none, flags) = (None::<&str>, nix::mount::MsFlags::MS_BIND);
            nix::mount::mount(Some(point), over, none, flags, none).unwrap();
        };
        for (over, source) in [("links", "more/first"), ("more", "more/first"), ("data", "data")] {
            let (over, source) = (at(over), at(source));
            let entry = sandbox.clone().populate(Method::Bind).with(|spec| {
                let usual = ["/bin", "/lib", "/lib64", "/usr"].map(PathBuf::from);
                spec.root.chroot_env = usual.map(|at| (at.clone(), at)).into();
                spec.root.chroot_env.insert(source.clone(), "/x".into());
            });
            let volume = sandbox.clone().volume(Volume::new(&source, "/v"));
            for sandbox in [entry, volume] {
                for _ in 0..3 {
                    assert!(sandbox.spawn().unwrap().wait().unwrap().success());
                }
                bind(&over);
                let begun = Instant::now();
                hangs(begun, sandbox.spawn().map(drop), &format!("{source:?}"), "does not answer");
                nix::mount::umount2(&over, nix::mount::MntFlags::MNT_DETACH).unwrap();
                assert!(sandbox.spawn().unwrap().wait().unwrap().success());
            }
        }
        // A link that now leads to the mount.
        let link = at("link");
        std::os::unix::fs::symlink(at("data"), &link).unwrap();
        let sandbox = sandbox.volume(Volume::new(&link, "/v"));
        for _ in 0..3 {
            assert!(sandbox.spawn().unwrap().wait().unwrap().success());
        }
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(point.join("below"), &link).unwrap();
        let begun = Instant::now();
        hangs(begun, sandbox.spawn().map(drop), &format!("{link:?}"), "does not answer");
    });
}

#[test]
fn root_from_a_mount_that_does_not_answer_is_an_error_that_names_it() {
    with_dead_mount(|point, sandbox| {
        for method in [Method::Bind, Method::Copy, Method::Link, Method::Overlay] {
            let source = point.join("below");
            let populated = sandbox.clone().populate(method).with(|spec| {
                spec.root.chroot_env.insert(source.clone(), "/x".into());
            });
            let begun = Instant::now();
            hangs(begun, populated.spawn().map(drop), &format!("{source:?}"), "does not answer");
        }
        let own =
            sandbox.with(|spec| (spec.root.path, spec.root.populate) = (Some(point.into()), Method::None));
        let begun = Instant::now();
        hangs(begun, own.spawn().map(drop), &format!("{point:?}"), "does not answer");
    });
}

#[test]
fn work_dir_on_a_mount_below_a_source_that_does_not_answer_is_an_error_that_names_it() {
    with_dead_mount(|point, sandbox| {
        let source = point.parent().unwrap().to_owned();
        let sandbox = sandbox.populate(Method::Bind).work_dir("/srv/dead/x").with(|spec| {
            spec.root.chroot_env.insert(source, "/srv".into());
        });
        let begun = Instant::now();
        let step = format!("openat2({:?}, O_PATH)", point.join("x"));
        hangs(begun, sandbox.spawn().map(drop), &step, "does not answer");
    });
}

#[test]
fn other_sources_are_used_while_a_mount_does_not_answer() {
    with_dead_mount(|_, sandbox| {
        let sandbox = sandbox.spawn_deadline(SLACK);
        for _ in 0..3 {
            assert!(sandbox.spawn().unwrap().wait().unwrap().success());
        }
    });
}

/// Entry point of a process in which `/etc` does not answer. Does nothing elsewhere: the C library has a lock while it
/// waits, and other tests look up users too.
#[test]
fn mute_database_entry() {
    if std::env::var_os("COFFERDAM_MUTE_DATABASE").is_none() {
        return;
    }
    with_dead_mount(|point, sandbox| {
        let none = None::<&str>;
        nix::mount::mount(Some(point), "/etc", none, nix::mount::MsFlags::MS_BIND, none).unwrap();
        let named = sandbox.clone().user("daemon");
        for (sandbox, user) in [(&sandbox, "nobody"), (&named, "daemon")] {
            let step = format!("look up the user {user:?}");
            let begun = Instant::now();
            hangs(begun, sandbox.spawn().map(drop), &step, "the user database does not answer");
            let begun = Instant::now();
            hangs(begun, sandbox.prepare().map(drop), &step, "the user database does not answer");
        }
        // Two ids are not looked up.
        let ids = sandbox.user("1:1");
        let begun = Instant::now();
        hangs(begun, ids.spawn().map(drop), "openat2(\"/etc\", O_PATH)", "does not answer");
        println!("asked");
    });
}

#[test]
fn user_database_that_does_not_answer_is_an_error_that_names_the_user() {
    if !can("root") {
        return;
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "mute_database_entry", "--nocapture", "--test-threads=1"]);
    let output = command.env("COFFERDAM_MUTE_DATABASE", "").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    if text.matches("asked").count() < 2 {
        skip(&[], "no FUSE file system can be mounted");
    }
}
