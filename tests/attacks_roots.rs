//! Attacks on the construction of a root: links and exchanges at its mount points, and traces of its secrets.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cofferdam::{Method, Policy, Root, Sandbox, Secrets, TaskDirs, Volume};
use common::{asked, can, probe, run_probe, sandboxes};

/// Entry point of this binary inside a sandbox.
#[test]
fn probe_entry() {
    let Some((what, mut say)) = asked() else { return };
    match what.as_str() {
        "masks" => {
            let length = |path: &&str| fs::read(path).map_or(0, |bytes| bytes.len());
            say.fact(
                "shown",
                ["/proc/keys", "/proc/timer_list", "/proc/interrupts"].iter().map(length).sum::<usize>(),
            );
            say.fact("local", fs::write("/local/new", "x").is_ok());
            say.fact("logs", fs::write("/alloc/logs/new", "x").is_ok());
        }
        "spoil" => {
            let places = std::env::var("PLACES").unwrap();
            let spoil = |path: &str| {
                fs::OpenOptions::new().write(true).open(path).and_then(|mut f| f.write_all(b"spoiled"))
            };
            say.fact("seen", places.split(':').filter(|p| Path::new(p).exists()).count());
            say.fact("spoiled", places.split(':').filter(|p| spoil(p).is_ok()).count());
        }
        "count" => {
            let count = |path: &str| fs::read_dir(path).map_or(99, Iterator::count);
            let places = std::env::var("PLACES").unwrap();
            say.fact("count", places.split(':').map(count).sum::<usize>());
        }
        other => panic!("no probe {other}"),
    }
}

/// A directory that any user can enter.
fn site() -> tempfile::TempDir {
    let dir = tempfile::tempdir_in(std::env::temp_dir()).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn dir(path: PathBuf) -> PathBuf {
    fs::create_dir_all(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    path
}

/// Adds the host's libraries as volumes, so that the probe runs whatever the root is populated with.
fn libraries(sandbox: Sandbox) -> Sandbox {
    let there = ["/lib", "/lib64", "/usr/lib"].into_iter().filter(|p| Path::new(p).exists());
    there.fold(sandbox, |sandbox, path| {
        let (source, target) = (path.into(), path.into());
        sandbox.volume(Volume { source, target, read_only: true, ..Volume::default() })
    })
}

/// Another process with write access to the root exchanges `/secrets` for a link while the tmpfs is mounted there.
#[test]
fn secrets_are_written_only_to_their_tmpfs() {
    if !sandboxes() {
        return;
    }
    let site = site();
    let root = dir(site.path().join("root"));
    let (secrets, loot) = (dir(root.join("secrets")), dir(root.join("loot")));
    let link = root.join("link");
    symlink("/loot", &link).unwrap();
    let files = (0..30).map(|i| (format!("token{i}"), "s3cr3t".to_string())).collect();
    let dirs = TaskDirs { secrets: Some(Secrets { files, ..Secrets::default() }), ..TaskDirs::default() };
    let given = Root { path: Some(root), populate: Method::None, ..Root::default() };
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let at = nix::fcntl::AT_FDCWD;
                let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                let _ = nix::fcntl::renameat2(at, &secrets, at, &link, flags);
            }
        });
        for _ in 0..50 {
            // By the time the missing command is reported, everything is mounted and written.
            let _ =
                Sandbox::command("/none").root(given.clone()).with(|s| s.task_dirs = dirs.clone()).spawn();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let found: Vec<_> = fs::read_dir(loot).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(found, [""; 0]);
}

/// The plan contains the secrets, and its memory may be swapped to disk.
#[test]
fn pid_1_does_not_keep_the_plan_in_memory() {
    if !can("root") || !sandboxes() {
        return;
    }
    let task = Sandbox::command("/bin/sleep").arg("600").spawn().unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", task.pid().unwrap())).unwrap();
    let init = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim();
    let maps = || fs::read_to_string(format!("/proc/{init}/maps")).unwrap();
    assert!(maps().contains("cofferdam-init"));
    let deadline = Instant::now() + Duration::from_secs(30);
    while maps().contains("cofferdam-plan") {
        assert!(Instant::now() < deadline, "{}", maps());
        std::thread::sleep(Duration::from_millis(10));
    }
    task.kill().unwrap();
    task.wait().unwrap();
}

/// In the incidents, another task with the same `/alloc` put a link in place of the log directory.
#[test]
fn nomad_cve_2020_27195_2022_24683_a_link_in_place_of_the_logs_is_not_followed() {
    if !sandboxes() {
        return;
    }
    let site = site();
    let (alloc, local) = (dir(site.path().join("alloc")), dir(site.path().join("local")));
    let dirs = TaskDirs { alloc: Some(alloc.clone()), local: Some(local), ..TaskDirs::default() };
    let logs = alloc.join("logs");
    for link in ["/proc", "/", "/sys", "/local", "logs", "."] {
        symlink(link, &logs).unwrap();
        let seen = run_probe(probe("masks").with(|s| s.task_dirs = dirs.clone())).unwrap();
        assert_eq!((seen.get("shown"), seen.get("local")), ("0", "true"), "logs -> {link}");
        let _ = fs::remove_file(alloc.join("new"));
        fs::remove_file(&logs).unwrap();
    }
    dir(logs);
    let seen = run_probe(probe("masks").with(|s| s.task_dirs = dirs.clone())).unwrap();
    assert_eq!((seen.get("logs"), seen.get("local")), ("false", "true"));
}

/// The host's files that are linked into a root are read-only there, wherever links of the root led the population.
#[test]
fn linked_host_files_are_read_only_wherever_links_lead() {
    if !sandboxes() {
        return;
    }
    let site = site();
    let at = |path: &str| site.path().join(path);
    let (outer, inner, other) = (dir(at("a-outer")), dir(at("b-inner")), dir(at("0-other")));
    let file = inner.join("file");
    symlink("/loot", outer.join("sub")).unwrap();
    symlink("/", outer.join("up")).unwrap();
    fs::write(other.join("x"), "").unwrap();
    let policy = Policy { temp_dir: Some(dir(at("temp"))), ..Policy::default() };
    let map = |to: &str| {
        let map = [(&other, "/loot/0"), (&outer, "/a"), (&inner, to)];
        map.map(|(source, to)| (source.clone(), PathBuf::from(to))).into_iter().collect()
    };
    for (to, link, seen) in [
        ("/a/sub", None, "1"),
        ("/a/up", None, "1"),
        ("/a/sub", Some("/loot"), "2"),
        ("/b", Some("/loot"), "2"),
        ("/b", Some("/"), "refused"),
        ("/a/up", Some("/"), "refused"),
        ("/b", Some("../.."), "refused"),
    ] {
        fs::write(&file, "host").unwrap();
        let path = link.map(|link| {
            let root = dir(at("root"));
            dir(root.join("a"));
            dir(root.join("loot"));
            symlink(link, root.join(&to[1..])).unwrap();
            root
        });
        let root =
            Root { path: path.clone(), populate: Method::Link, chroot_env: map(to), ..Root::default() };
        let places = format!("/file:/loot/file:{to}/file");
        let sandbox = libraries(probe("spoil")).policy(&policy).user("root").root(root).env("PLACES", places);
        match run_probe(sandbox) {
            Ok(said) => assert_eq!((said.get("seen"), said.get("spoiled")), (seen, "0"), "{to} {link:?}"),
            Err(error) => {
                assert!(seen == "refused" && error.to_string().contains(to), "{to} {link:?}: {error}")
            }
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "host", "{to} {link:?}");
        path.iter().for_each(|path| fs::remove_dir_all(path).unwrap());
    }
}

/// A path that is excluded from every root is also excluded where a bind mount shows it, or a directory above it,
/// again.
#[test]
fn excluded_paths_are_excluded_under_other_mounts_too() {
    if !can("root") || !sandboxes() {
        return;
    }
    let site = site();
    let at = |path: &str| dir(site.path().join(path));
    let (tree, state) = (at("tree"), at("state"));
    fs::write(at("state/deep").join("secret"), "").unwrap();
    let (alias, around) = (at("tree/alias"), at("tree/around"));
    let policy = Policy { chroot_skip: vec![state.join("deep")], ..Policy::default() };
    std::thread::scope(|s| {
        s.spawn(|| {
            use nix::mount::{MsFlags, mount};
            use nix::sched::{CloneFlags, unshare};
            let none = None::<&str>;
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some(&state.join("deep")), &alias, none, MsFlags::MS_BIND, none).unwrap();
            mount(Some(&state), &around, none, MsFlags::MS_BIND, none).unwrap();
            for method in [Method::Bind, Method::Overlay, Method::Copy, Method::Link] {
                let map = [(tree.clone(), "/tree".into())].into();
                let root = Root { populate: method, chroot_env: map, ..Root::default() };
                let sandbox = libraries(probe("count")).policy(&policy).root(root);
                let seen = run_probe(sandbox.env("PLACES", "/tree/alias:/tree/around/deep")).unwrap();
                assert_eq!(seen.get("count"), "0", "{method}");
            }
        });
    });
}
