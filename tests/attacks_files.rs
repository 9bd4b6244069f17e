//! Attacks on the host's files through the root, its mount points, and the files that a task leaves in it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod attack_tools;
mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use attack_tools::*;
use cofferdam::{CallerFd, Control, Error, Method, Policy, Root, Sandbox, Stdio};
use common::{asked, can, probe, run_probe, sandboxes};

/// Entry point of this binary inside a sandbox.
#[test]
fn probe_entry() {
    let Some((what, mut say)) = asked() else { return };
    let mut attack = Attack::default();
    match what.as_str() {
        "spoil" => {
            let top = std::env::var("TOP").unwrap();
            spoil_all(Path::new(&top));
            // Again from a user namespace, where the task has all capabilities.
            forked(|| {
                let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS;
                if call!(libc::SYS_unshare, flags).is_ok() {
                    let _ = mount("", "/", "", libc::MS_REMOUNT | libc::MS_BIND, "");
                    let _ = mount("", &top, "", libc::MS_REMOUNT | libc::MS_BIND, "");
                    let _ = call!(libc::SYS_umount2, z(&top).as_ptr(), libc::MNT_DETACH);
                    let _ = mount("/", "/tmp", "", libc::MS_BIND, "");
                    spoil_all(&Path::new("/tmp").join(top.trim_start_matches('/')));
                    spoil_all(Path::new(&top));
                }
                0
            });
            attack.never("nothing", false);
        }
        "look" => look(&mut attack),
        "litter" => litter(),
        "wait" => std::thread::sleep(Duration::from_millis(500)),
        "late" => late(&mut attack),
        other => panic!("no probe {other}"),
    }
    attack.tell(&mut say);
}

/// Inside: tries every change of a file on everything below `top`.
fn spoil_all(top: &Path) {
    let mut todo = vec![top.to_path_buf()];
    let mut paths = Vec::new();
    while let Some(path) = todo.pop() {
        if fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
            let below = fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path());
            let others = ["/usr", "/lib", "/lib64", "/proc", "/sys"].map(Path::new);
            todo.extend(below.filter(|p| !others.contains(&p.as_path())));
        }
        paths.push(path);
    }
    // Children first: a directory that was removed or renamed hides its content.
    for path in paths.iter().rev() {
        spoil(path);
    }
}

fn spoil(path: &Path) {
    let p = z(path);
    let at = libc::AT_FDCWD;
    if path.is_dir() {
        let _ = fs::write(path.join("planted"), "x");
        let _ = fs::create_dir(path.join("planted-dir"));
        let _ = symlink("/", path.join("planted-link"));
        let _ = call!(libc::SYS_mknodat, at, z(path.join("planted-node")).as_ptr(), 0o020666, 0x103);
        let _ = call!(libc::SYS_open, p.as_ptr(), libc::O_TMPFILE | libc::O_RDWR, 0o666);
    }
    let open = |options: &mut fs::OpenOptions| options.open(path).and_then(|mut f| f.write_all(b"spoiled"));
    let _ = open(fs::OpenOptions::new().append(true));
    if let Ok(file) = fs::File::open(path) {
        // Reopens a read-only descriptor for writing.
        let again = format!("/proc/self/fd/{}", file.as_raw_fd());
        let _ = fs::OpenOptions::new().write(true).open(&again).and_then(|mut f| f.write_all(b"s"));
        let _ = file.set_permissions(fs::Permissions::from_mode(0o4757));
        let flags: libc::c_long = 0x40; // FS_NODUMP_FL by FS_IOC_SETFLAGS
        let _ = call!(libc::SYS_ioctl, file.as_raw_fd(), 0x4008_6602u64, &flags);
        let _ = call!(libc::SYS_fallocate, file.as_raw_fd(), 0, 0, 100);
    }
    let hard = format!("/tmp/hard-{}", std::process::id());
    if fs::hard_link(path, &hard).is_ok() {
        let _ = fs::write(&hard, "spoiled");
        let _ = fs::remove_file(&hard);
    }
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o757));
    let _ = std::os::unix::fs::lchown(path, Some(12), Some(12));
    let value = b"x";
    for name in [c"user.spoiled", c"trusted.spoiled", c"security.capability"] {
        let _ = call!(libc::SYS_lsetxattr, p.as_ptr(), name.as_ptr(), value.as_ptr(), 1, 0);
    }
    let times = [libc::timespec { tv_sec: 1, tv_nsec: 1 }; 2];
    let _ = call!(libc::SYS_utimensat, at, p.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW);
    let _ = call!(libc::SYS_truncate, p.as_ptr(), 1);
    let _ = fs::rename("/tmp/no-such", path);
    let _ = fs::write("/tmp/over", "spoiled").and_then(|()| fs::rename("/tmp/over", path));
    let _ = open(fs::OpenOptions::new().write(true).truncate(true));
    let _ = fs::rename(path, path.with_extension("moved"));
    let _ = fs::remove_file(path);
    let _ = fs::remove_dir(path);
}

/// Inside: checks that the enclosure is complete, whatever happened to the root while it was built. Mounts are
/// identified by their ids, because paths may change meanwhile.
fn look(attack: &mut Attack) {
    struct Seen<'a> {
        id: &'a str,
        parent: &'a str,
        root: &'a str,
        read_only: bool,
        fs: &'a str,
    }
    let info = fs::read_to_string("/proc/self/mountinfo")
        .or_else(|_| fs::read_to_string("/proc.x/self/mountinfo"))
        .or_else(|_| fs::read_to_string("/proc/self/mountinfo"))
        .unwrap_or_default();
    let mounts = info.lines().map(|line| {
        let f: Vec<&str> = line.split(' ').collect();
        let fs = line.split(" - ").nth(1).unwrap().split(' ').next().unwrap();
        Seen { id: f[0], parent: f[1], root: f[3], read_only: f[5].starts_with("ro"), fs }
    });
    let mounts: Vec<Seen<'_>> = mounts.collect();
    let masks: usize = std::env::var("MASKS").unwrap().parse().unwrap();
    for proc in mounts.iter().filter(|m| (m.root, m.fs) == ("/", "proc")) {
        let on = || mounts.iter().filter(|m| m.parent == proc.id);
        attack.never("/proc/sys can be written", !on().any(|m| m.root == "/sys" && m.read_only));
        let covered = on().filter(|m| m.root == "/null").count();
        attack.never(format!("{covered} files of /proc are covered, not {masks}"), covered < masks);
        attack.never(
            "a file of the host is on /proc",
            on().any(|m| !["proc", "tmpfs", "devtmpfs"].contains(&m.fs)),
        );
    }
    attack.never("there is no /proc", !info.is_empty() && mounts.iter().all(|m| m.fs != "proc"));
    let file = std::env::var("CANARY").unwrap_or_default();
    attack.never("the host's directory is there", !file.is_empty() && Path::new(&file).exists());
}

/// Number of files of this host's `/proc` that are to be masked with `/dev/null`.
fn masks() -> String {
    let names = ["interrupts", "kcore", "keys", "latency_stats", "sched_debug", "timer_list", "timer_stats"];
    names.iter().filter(|name| Path::new("/proc").join(name).is_file()).count().to_string()
}

/// Inside: leaves files that are hard to remove: deep, unreadable, oddly named, immutable.
fn litter() {
    std::env::set_current_dir("/tmp").unwrap();
    for i in 0..3000 {
        let name = if i % 2 == 0 { "d" } else { "..." };
        fs::create_dir(name).unwrap();
        std::env::set_current_dir(name).unwrap();
    }
    std::env::set_current_dir("/tmp").unwrap();
    use std::os::unix::ffi::OsStrExt;
    for name in [&b"-rf"[..], b"a\nb", b"\xff\xfe", b"*", b" ", b"..a", &[b'n'; 255]] {
        fs::write(std::ffi::OsStr::from_bytes(name), "x").unwrap();
    }
    symlink("/", "root").unwrap();
    symlink("self", "self").unwrap();
    fs::create_dir("closed").unwrap();
    fs::create_dir("closed/inner").unwrap();
    fs::write("closed/inner/file", "x").unwrap();
    for name in ["closed/inner", "closed"] {
        fs::set_permissions(name, fs::Permissions::from_mode(0o0)).unwrap();
    }
    let _ = call!(libc::SYS_mknodat, libc::AT_FDCWD, c"fifo".as_ptr(), 0o010666, 0);
    let _ = std::os::unix::net::UnixListener::bind("socket");
    if let Ok(file) = fs::File::create("immutable") {
        let flags: libc::c_long = 0x10;
        let _ = call!(libc::SYS_ioctl, file.as_raw_fd(), 0x4008_6602u64, &flags);
    }
}

/// Inside: waits for the host to mount something below `/x`, and tries to use it.
fn late(attack: &mut Attack) {
    std::io::stdin().read_exact(&mut [0]).unwrap();
    attack.attempt_io("write to a later mount", fs::write("/x/late/new", "x"));
    let node = z("/x/late/node");
    let _ = call!(libc::SYS_mknodat, libc::AT_FDCWD, node.as_ptr(), 0o020666, 0x103);
    attack.attempt_io("open a device on a later mount", fs::File::open("/x/late/node"));
    attack.never("a later mount of the host is there", Path::new("/x/late/mark").exists());
}

/// Tries every change of a file on what each method brings into the root, also from a user namespace of the task. The
/// host's files stay as they are.
#[test]
fn no_population_method_lets_a_task_change_the_hosts_files() {
    if !sandboxes() {
        return;
    }
    for method in [Method::Bind, Method::Overlay, Method::Reflink, Method::Copy, Method::Link] {
        for user in USERS {
            let canary = Canary::new();
            let mut chroot_env = libraries();
            chroot_env.insert(canary.path().into(), "/canary".into());
            chroot_env.insert(canary.path().join("sub/file"), "/one/file".into());
            for top in ["/canary", "/one"] {
                let root = Root { populate: method, chroot_env: chroot_env.clone(), ..Root::default() };
                let spoil = probe("spoil").env("TOP", top).user(user).with(|s| s.user_namespaces = true);
                let seen = run_probe(spoil.root(root)).unwrap();
                assert!(seen.report.enforced.contains(Control::HOST_FILES), "{method} {user}");
                canary.alive();
            }
        }
    }
}

/// The same attack succeeds on a linked root that the spec asks to be writable, and the report says so.
#[test]
fn writable_linked_root_exposes_the_hosts_files_and_is_reported() {
    if !can("root") {
        return;
    }
    let canary = Canary::new();
    let mut chroot_env = libraries();
    chroot_env.insert(canary.path().into(), "/canary".into());
    let root = Root { populate: Method::Link, chroot_env, writable: true, ..Root::default() };
    let sandbox = probe("spoil").env("TOP", "/canary").user("root").root(root);
    // The operator must allow it.
    assert!(matches!(sandbox.plan(), Err(Error::Denied { .. })));
    let policy = Policy { allow_privileged: true, ..Policy::default() };
    let seen = run_probe(sandbox.policy(&policy)).unwrap();
    assert!(seen.report.missing.contains(Control::HOST_FILES));
    assert_ne!(fs::read_to_string(canary.path().join("file")).unwrap(), "alive");
}

/// The task may change the given directory, but not the targets of its links.
#[test]
fn task_changes_only_the_given_root_and_not_its_link_targets() {
    if !sandboxes() {
        return;
    }
    for user in USERS {
        let canary = Canary::new();
        let dir = open_dir();
        symlink(canary.path(), dir.path().join("out")).unwrap();
        symlink(canary.path().join("file"), dir.path().join("file")).unwrap();
        let root = Root { path: Some(dir.path().into()), populate: Method::None, ..Root::default() };
        let sandbox = with_libraries(probe("spoil").env("TOP", "/").user(user).root(root));
        run_probe(sandbox.with(|s| s.cap_drop = vec!["kill".into()])).unwrap();
        canary.alive();
    }
}

/// A source for the whole root has no mount of its own that could be read-only. By links, the root itself is made
/// read-only; by bind mounts, it is refused.
#[test]
fn source_mapped_to_the_whole_root_is_read_only_or_refused() {
    if !sandboxes() {
        return;
    }
    for (method, to) in [(Method::Link, "/"), (Method::Link, ""), (Method::Link, "/./"), (Method::Bind, "/")]
    {
        let canary = Canary::new();
        let mut chroot_env = libraries();
        chroot_env.insert(canary.path().into(), to.into());
        let root = Root { populate: method, chroot_env, ..Root::default() };
        let done = run_probe(probe("spoil").env("TOP", "/").user("root").root(root));
        canary.alive();
        match method {
            Method::Link => assert!(done.unwrap().report.enforced.contains(Control::HOST_FILES), "{to:?}"),
            _ => assert!(matches!(done, Err(Error::Spec { field: "root.chroot_env", .. })), "{to:?}"),
        }
    }
}

/// A later mount would have none of the sandbox's flags (nosuid, nodev, read-only), so it must not propagate.
#[test]
fn later_mounts_of_the_host_do_not_propagate_into_the_sandbox() {
    if !can("root") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_path_buf();
    // In a mount namespace of this thread, so that the host does not see it.
    let attack = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount("", "/", "", libc::MS_REC | libc::MS_PRIVATE, "").unwrap();
        let source = path.to_str().unwrap();
        mount("t", source, "tmpfs", 0, "mode=755").unwrap();
        mount("", source, "", libc::MS_SHARED, "").unwrap();
        let late = path.join("late");
        fs::create_dir(&late).unwrap();
        let mut chroot_env = libraries();
        chroot_env.insert(path.clone(), "/x".into());
        let root = Root { chroot_env, ..Root::default() };
        std::thread::scope(|scope| {
            let (begun, out) = std::io::pipe().unwrap();
            let (input, go) = std::io::pipe().unwrap();
            let sandbox = probe("late").user("root").root(root).stdin(CallerFd::duplicate(&input).unwrap());
            let sandbox = sandbox.stdout(CallerFd::duplicate(&out).unwrap());
            let running = scope.spawn(|| run_probe(sandbox).unwrap());
            // The test harness prints as it starts; then the probe waits.
            (&begun).read_exact(&mut [0]).unwrap();
            // A scoped thread has this thread's mount namespace, because it was started after the unshare.
            mount("late", late.to_str().unwrap(), "tmpfs", 0, "mode=777").unwrap();
            fs::write(late.join("mark"), "x").unwrap();
            (&go).write_all(b"x").unwrap();
            let seen = running.join().unwrap();
            beaten(&seen, 3);
            assert_eq!(fs::read_dir(&late).unwrap().count(), 1);
        });
    };
    std::thread::spawn(attack).join().unwrap();
}

/// An attacker prepared the root: symbolic links to the host stand where /proc, /sys, /dev, /tmp, volumes and the
/// working directory are mounted.
#[test]
fn cve_2019_19921_2023_27561_2024_45310_2026_41579_links_in_a_given_root_do_not_redirect_mounts() {
    if !sandboxes() {
        return;
    }
    for name in ["proc", "sys", "dev", "tmp", "a", "work", "usr", "local", "probe"] {
        for user in USERS {
            let canary = Canary::new();
            let dir = open_dir();
            symlink(canary.path(), dir.path().join(name)).unwrap();
            let root = Root { path: Some(dir.path().into()), populate: Method::None, ..Root::default() };
            let volume = open_dir();
            let sandbox = with_libraries(probe("look").user(user).root(root))
                .volume(writable(volume.path(), "/a/b/vol/new/dir"))
                .work_dir("/work/b/new")
                .env("MASKS", masks())
                .env("CANARY", canary.path().join("file").to_str().unwrap());
            match run_probe(sandbox) {
                Ok(seen) => beaten(&seen, 1),
                Err(Error::Setup { .. } | Error::Exec { .. }) => {}
                Err(other) => panic!("{name}: {other:?}"),
            }
            canary.alive();
        }
    }
}

/// A mask is a bind mount of the sandbox's own null device, not of the file `null` that a volume puts at `/dev`.
#[test]
fn cve_2025_31133_volumes_at_dev_and_dev_null_are_refused() {
    if !sandboxes() {
        return;
    }
    for user in USERS {
        let canary = Canary::new();
        let dev = open_dir();
        symlink(canary.path().join("file"), dev.path().join("null")).unwrap();
        let file = canary.path().join("file");
        for (source, target) in [(dev.path(), "/dev"), (&file, "/dev/null")] {
            let sandbox = probe("spoil").user(user).env("TOP", "/proc/keys").volume(writable(source, target));
            assert!(matches!(run_probe(sandbox), Err(Error::Spec { field: "volumes", .. })), "{target}");
            canary.alive();
        }
    }
}

/// Another process with write access to the root exchanges directories for links to the host, and mount points of
/// /proc, /sys and /dev for other directories, while sandboxes are built.
#[test]
fn cve_2021_30465_exchanging_mount_points_during_setup_does_not_escape() {
    if !sandboxes() {
        return;
    }
    let canary = Canary::new();
    let dir = open_dir();
    let volume = open_dir();
    for name in
        ["a", "a/b", "a/b/vol", "proc", "proc.x", "proc.x/sys", "sys", "sys.x", "dev", "dev.x", "work"]
    {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    symlink(canary.path().join("file"), dir.path().join("dev.x/null")).unwrap();
    for name in ["a.x", "work.x", "tmp.x"] {
        symlink(canary.path(), dir.path().join(name)).unwrap();
    }
    fs::create_dir(dir.path().join("tmp")).unwrap();
    let stop = AtomicBool::new(false);
    let at = |name: &str| z(dir.path().join(name));
    let swap = |names: &[&str]| {
        let pairs: Vec<_> = names.iter().map(|name| (at(name), at(&format!("{name}.x")))).collect();
        while !stop.load(Ordering::Relaxed) {
            for (one, other) in &pairs {
                let (cwd, exchange) = (libc::AT_FDCWD, 2);
                let _ = call!(libc::SYS_renameat2, cwd, one.as_ptr(), cwd, other.as_ptr(), exchange);
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| swap(&["a", "work", "tmp"]));
        scope.spawn(|| swap(&["proc", "dev", "sys"]));
        let end = Instant::now() + Duration::from_secs(4);
        let mut ran = 0;
        while Instant::now() < end {
            let root = Root { path: Some(dir.path().into()), populate: Method::None, ..Root::default() };
            let sandbox = with_libraries(probe("look").user("root").root(root))
                .volume(writable(volume.path(), "/a/b/vol/new"))
                .work_dir("/work/new")
                .env("MASKS", masks())
                .env("CANARY", canary.path().join("file").to_str().unwrap());
            if let Ok(seen) = run_probe(sandbox)
                && seen.facts.contains_key("won")
            {
                if !seen.get("won").is_empty() {
                    stop.store(true, Ordering::Relaxed);
                }
                beaten(&seen, 1);
                ran += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
        eprintln!("{ran} sandboxes ran in the race");
    });
    canary.alive();
    assert_eq!(fs::read_dir(volume.path()).unwrap().count(), 0);
}

/// Other users cannot enter the directory around a temporary root while the task runs. It is removed at the end,
/// whatever the task left in it.
#[test]
fn temporary_root_is_private_and_removed_with_all_its_files() {
    if !sandboxes() {
        return;
    }
    for user in USERS {
        let base = open_dir();
        let policy = Policy { temp_dir: Some(base.path().into()), ..Policy::default() };
        let root = || Root { populate: Method::Copy, chroot_env: libraries(), ..Root::default() };
        let task = probe("wait").policy(&policy).user(user).root(root()).stdout(Stdio::Null);
        let task = task.with(|s| s.fds.clear()).spawn().unwrap();
        let around: Vec<PathBuf> = fs::read_dir(base.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(around.len(), 1);
        assert_eq!(fs::metadata(&around[0]).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(fs::metadata(&around[0]).unwrap().uid(), nix::unistd::geteuid().as_raw());
        drop(task);
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
        let seen = run_probe(probe("litter").policy(&policy).user(user).root(root())).unwrap();
        assert!(seen.status.success(), "{user}: {}", seen.status);
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }
}

/// A link that names a program of the host finds nothing. No link leads the search out of the root.
#[test]
fn command_lookup_follows_no_link_out_of_the_root() {
    if !sandboxes() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy("/bin/true", outside.path().join("program")).unwrap();
    let inside = open_dir();
    symlink(outside.path().join("program"), inside.path().join("link-out")).unwrap();
    symlink(format!("../../../../..{}/program", outside.path().display()), inside.path().join("up")).unwrap();
    symlink("/proc/1/root/bin/sh", inside.path().join("magic")).unwrap();
    for command in
        ["/local/link-out", "link-out", "/local/up", "/local/magic", "/local/../../../../etc/../tmp/x"]
    {
        let sandbox = Sandbox::command(command).volume(writable(inside.path(), "/local"));
        assert!(matches!(sandbox.spawn(), Err(Error::Exec { .. })), "{command}");
    }
}
