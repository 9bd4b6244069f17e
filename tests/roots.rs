//! Roots by every population method, and the files and directories that a sandbox adds. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;
mod roots_tools;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use cofferdam::{
    Cancel, Control, Dns, Error, HostsEntry, Method, Policy, Populated, Progress, Root, Sandbox, Secrets,
    TaskDirs, Volume,
};
use common::{Start as _, asked, can, output, probe, run_probe, sandboxes, shell};
use roots_tools::{describe, one_of_everything};

const ALL: [Method; 5] = [Method::Bind, Method::Overlay, Method::Reflink, Method::Copy, Method::Link];

/// Entry point of this binary inside a sandbox.
#[test]
fn probe_entry() {
    let Some((what, mut say)) = asked() else { return };
    match what.as_str() {
        "describe" => {
            for top in std::env::var("TOPS").unwrap().split(':') {
                for (path, entry) in describe(Path::new(top)) {
                    say.fact(&path.replace('=', "%"), entry);
                }
            }
        }
        "root" => {
            let id = |path: &str| fs::metadata(path).map(|m| (m.dev(), m.ino())).unwrap();
            say.fact("up", id("/") == id("/.."));
            say.fact("out", Path::new("/..").join(std::env::var("OUTSIDE").unwrap()).exists());
            say.fact("mode", format!("{:o}", fs::metadata("/").unwrap().mode()));
        }
        other => panic!("no probe {other}"),
    }
}

/// A directory that any user can enter, where nothing is cleaned up while the tests run.
fn site() -> common::places::Overlays {
    let dir = common::places::Overlays::new();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// Adds the host's libraries as volumes, so that the probe runs whatever the root is populated with.
fn libraries(sandbox: Sandbox) -> Sandbox {
    ["/lib", "/lib64", "/usr/lib"].into_iter().filter(|p| Path::new(p).exists()).fold(
        sandbox,
        |sandbox, path| {
            sandbox.volume(Volume {
                source: path.into(),
                target: path.into(),
                read_only: true,
                ..Volume::default()
            })
        },
    )
}

/// Adds the host's libraries, shell and tools as volumes.
fn programs(sandbox: Sandbox) -> Sandbox {
    ["/bin", "/usr/bin"].into_iter().filter(|p| Path::new(p).exists()).fold(
        libraries(sandbox),
        |sandbox, path| {
            sandbox.volume(Volume {
                source: path.into(),
                target: path.into(),
                read_only: true,
                ..Volume::default()
            })
        },
    )
}

fn root(populate: Method, map: &[(&Path, &str)]) -> Root {
    let chroot_env = map.iter().map(|(source, to)| (source.to_path_buf(), PathBuf::from(to))).collect();
    Root { populate, chroot_env, ..Root::default() }
}

/// The tree inside equals the host's, entry by entry.
#[test]
fn every_population_method_gives_the_same_tree() {
    if !can("root") || !sandboxes() {
        return;
    }
    let site = site();
    let tree = site.path().join("tree");
    one_of_everything(&tree);
    let mut map = vec![(tree.as_path(), "/tree")];
    let real = ["/etc", "/usr/bin"].map(Path::new);
    map.extend(real.into_iter().filter(|path| path.is_dir()).map(|path| (path, path.to_str().unwrap())));
    // Links need the file system of their source. Everything else may be in memory.
    let tops: Vec<&str> = map.iter().map(|(_, to)| *to).collect();
    let mut expect = BTreeMap::new();
    for (source, to) in &map {
        let below = |path: String| {
            format!("{to}{}", path.strip_prefix(source.to_str().unwrap()).unwrap()).replace('=', "%")
        };
        expect.extend(describe(source).into_iter().map(|(path, entry)| (below(path), entry)));
    }
    for method in ALL {
        let base = if method == Method::Link { site.path().to_path_buf() } else { "/dev/shm".into() };
        let policy = Policy { temp_dir: Some(base), ..Policy::default() };
        let tmpfs_size = (!method.walks()).then_some(1 << 30);
        let root = Root { setuid: true, tmpfs_size, ..root(method, &map) };
        let sandbox = libraries(probe("describe")).policy(&policy).user("root").root(root);
        let seen = run_probe(sandbox.env("TOPS", tops.join(":"))).unwrap();
        assert!(seen.status.success(), "{method}: {}", seen.status);
        let differ: Vec<String> = expect
            .keys()
            .chain(seen.facts.keys())
            .filter(|path| expect.get(*path) != seen.facts.get(*path))
            .map(|path| {
                format!("{path}\n  host   {:?}\n  inside {:?}", expect.get(path), seen.facts.get(path))
            })
            .collect();
        assert!(
            differ.is_empty(),
            "{method}: {} differ\n{}",
            differ.len(),
            differ[..differ.len().min(10)].join("\n")
        );
    }
}

#[test]
fn copied_files_lose_setuid_and_file_capabilities_by_default() {
    if !can("root") {
        return;
    }
    let site = site();
    let tree = site.path().join("tree");
    one_of_everything(&tree);
    for (setuid, mode) in [(false, "755"), (true, "4755")] {
        let root = Root { setuid, ..root(Method::Copy, &[(&tree, "/tree")]) };
        let sandbox = libraries(probe("describe")).root(root).env("TOPS", "/tree").user("root");
        let seen = run_probe(sandbox).unwrap();
        assert!(seen.get("/tree/suid").starts_with(&format!("file {mode} ")), "{}", seen.get("/tree/suid"));
        assert_eq!(seen.get("/tree/capable").contains("security.capability"), setuid);
    }
}

#[test]
fn upper_directory_of_a_running_sandbox_is_refused() {
    if !sandboxes() || !overlay() {
        return;
    }
    let site = site();
    let (tree, upper) = (site.path().join("tree"), site.path().join("upper"));
    for path in [&tree, &upper] {
        fs::create_dir(path).unwrap();
    }
    let root = Root { upper: Some(upper.clone()), ..root(Method::Overlay, &[(&tree, "/tree")]) };
    let sandbox = programs(shell("read line; exit 3").stdin(cofferdam::Stdio::Piped)).root(root);
    let first = sandbox.start().unwrap();
    let refused = sandbox.start().unwrap_err();
    let source = std::error::Error::source(&refused).unwrap().to_string();
    assert_eq!(source, "another running sandbox writes to it", "{refused}");
    assert_eq!(refused.to_string(), format!("flock({upper:?}, LOCK_EX|LOCK_NB)"));
    assert_eq!(first.wait().unwrap().code, Some(3));
    // The lock ends with the removal, not with the value.
    assert_eq!(sandbox.start().unwrap().wait().unwrap().code, Some(3));
    drop(first);
}

/// Neither the host nor the next sandbox sees what was written, unless the overlay has an upper directory to keep it.
#[test]
fn writes_to_an_overlay_do_not_reach_the_host() {
    if !sandboxes() || !overlay() {
        return;
    }
    let site = site();
    let (tree, upper) = (site.path().join("tree"), site.path().join("upper"));
    fs::create_dir(&tree).unwrap();
    fs::create_dir(&upper).unwrap();
    fs::write(tree.join("file"), "before").unwrap();
    for path in [&tree, &upper, &tree.join("file")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let canary = describe(&tree);
    let script = "cd /tree && (cat file 2>/dev/null || echo gone) && test -e file && echo && echo after > file && echo new > new && mkdir dir && rm -f file && ls";
    let run = |upper: Option<&Path>| {
        let root = Root { upper: upper.map(PathBuf::from), ..root(Method::Overlay, &[(&tree, "/tree")]) };
        output(programs(shell(&format!("({script}) 2>&1"))).root(root))
    };
    assert_eq!(run(None), "before\ndir\nnew");
    assert_eq!(run(None), "before\ndir\nnew");
    assert_eq!(run(Some(&upper)), "before\ndir\nnew");
    assert_eq!(run(Some(&upper)), "gone");
    assert_eq!(describe(&tree), canary);
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(&upper.join("tree")), mode(&upper.join("tree/upper"))), (0o700, 0o777));
}

/// A directory of the host that two entries show, by two paths, is one overlay.
#[test]
fn overlay_of_a_directory_with_two_paths_is_coherent() {
    if !sandboxes() || !overlay() {
        return;
    }
    let site = site();
    let tree = site.path().join("usr");
    fs::create_dir_all(tree.join("bin")).unwrap();
    fs::write(tree.join("bin/file"), "host").unwrap();
    let link = site.path().join("bin");
    symlink("usr/bin", &link).unwrap();
    for path in [&tree, &tree.join("bin"), &tree.join("bin/file")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let root = root(Method::Overlay, &[(&link, "/x/bin"), (&tree, "/x/usr")]);
    let said = output(
        programs(shell("echo new > /x/bin/file; cat /x/usr/bin/file; rm /x/usr/bin/file; ls /x/bin"))
            .root(root),
    );
    assert_eq!(said, "new");
    assert_eq!(fs::read_to_string(tree.join("bin/file")).unwrap(), "host");
}

fn overlay() -> bool {
    let there = cofferdam::Host::probe().unwrap().overlay;
    if !there {
        common::skip::note("the kernel has no overlay file system");
    }
    there
}

/// No mount covers the root, and no path leads out of it, even if something is mounted over the caller's own root.
#[test]
fn no_path_leads_out_of_the_root() {
    if !sandboxes() {
        return;
    }
    let site = site();
    let tree = site.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let methods: Vec<Method> =
        ALL.into_iter().chain([Method::Auto]).filter(|m| *m != Method::Overlay || overlay()).collect();
    let check = |also: &str| {
        for method in &methods {
            let outside = site.path().strip_prefix("/").unwrap().to_str().unwrap();
            let sandbox = libraries(probe("root")).root(root(*method, &[(&tree, "/tree")]));
            let seen = run_probe(sandbox.env("OUTSIDE", outside)).unwrap();
            assert_eq!((seen.get("up"), seen.get("out")), ("true", "false"), "{method}{also}");
            assert_eq!(seen.get("mode"), "40755", "{method}{also}");
        }
    };
    check("");
    if !can("root") {
        return;
    }
    std::thread::scope(|s| {
        s.spawn(|| {
            use nix::mount::{MsFlags, mount};
            use nix::sched::{CloneFlags, unshare};
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            mount(None::<&str>, "/", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            check(", something over the caller's root");
        });
    });
}

#[test]
fn task_directories_have_their_content_modes_and_size_limits() {
    if !sandboxes() {
        return;
    }
    let site = site();
    let (alloc, local) = (site.path().join("alloc"), site.path().join("local"));
    fs::create_dir_all(alloc.join("logs")).unwrap();
    fs::create_dir(&local).unwrap();
    for path in [&alloc, &alloc.join("logs"), &local] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    fs::write(local.join("greet"), "#!/bin/sh\necho hello\n").unwrap();
    fs::set_permissions(local.join("greet"), fs::Permissions::from_mode(0o755)).unwrap();
    let dirs = TaskDirs {
        alloc: Some(alloc.clone()),
        local: Some(local.clone()),
        secrets: Some(Secrets { size: Some(8192), files: [("token".into(), "s3cr3t".into())].into() }),
        tmp: Some(4096),
    };
    let with = |sandbox: Sandbox| sandbox.with(|s| s.task_dirs = dirs.clone());
    assert_eq!(output(with(Sandbox::command("greet"))), "hello");
    let said = output(with(shell(
        "cat /secrets/token; echo; stat -c '%a %u %g' /secrets /secrets/token; \
         cp /local/greet /secrets/greet && chmod 700 /secrets/greet && /secrets/greet 2>/dev/null || echo noexec; \
         head -c 9000 /dev/zero 2>/dev/null > /secrets/full || echo full; \
         echo x > /alloc/x && echo alloc; (echo x > /alloc/logs/x) 2>/dev/null || echo logs; \
         echo x > /local/x && echo local; stat -c %a /tmp; (head -c 9000 /dev/zero > /tmp/x) 2>/dev/null || echo tmp",
    )));
    let expect = "s3cr3t\n700 65534 65534\n400 65534 65534\nnoexec\nfull\nalloc\nlogs\nlocal\n1777\ntmp";
    assert_eq!(said, expect);
    assert!(alloc.join("x").exists() && local.join("x").exists());
    // The host sees neither the mounts nor the files.
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mountinfo.contains("/secrets"));
}

/// `resolv.conf` is replaced whether it is a dangling link, a link to a file, a file, or absent.
#[test]
fn resolv_conf_and_hosts_are_the_sandboxs_own() {
    if !sandboxes() {
        return;
    }
    let dns = Dns {
        servers: vec!["192.0.2.1".into()],
        searches: vec!["a.example".into()],
        options: vec!["ndots:2".into()],
    };
    let hosts = vec![HostsEntry { address: "192.0.2.7".into(), names: vec!["db".into()] }];
    for kind in ["dangling", "linked", "file", "absent"] {
        let site = site();
        let etc = site.path().join("etc");
        fs::create_dir(&etc).unwrap();
        match kind {
            "dangling" => symlink("/run/systemd/resolve/stub-resolv.conf", etc.join("resolv.conf")).unwrap(),
            "linked" => symlink("real", etc.join("resolv.conf")).unwrap(),
            "file" => fs::write(etc.join("resolv.conf"), "host").unwrap(),
            _ => {}
        }
        fs::write(etc.join("real"), "host").unwrap();
        let before = describe(&etc);
        for method in ALL.into_iter().filter(|m| *m != Method::Overlay || overlay()) {
            // In a read-only bind mount, no missing file can be created.
            if kind == "absent" && method == Method::Bind {
                continue;
            }
            let sandbox = programs(shell(
                "cat /etc/resolv.conf; (echo x > /etc/resolv.conf) 2>/dev/null || echo read-only",
            ))
            .root(root(method, &[(&etc, "/etc")]))
            .with(|s| s.dns = Some(dns.clone()));
            let expect = "nameserver 192.0.2.1\nsearch a.example\noptions ndots:2\nread-only";
            assert_eq!(output(sandbox), expect, "{method} {kind}");
            assert_eq!(describe(&etc), before, "{method} {kind}");
        }
    }
    let sandbox = shell("cat /etc/hosts").with(|s| {
        s.hosts = Some(hosts);
        s.hostname = Some("box".into());
    });
    if Path::new("/etc/hosts").exists() {
        let expect =
            "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 box\n192.0.2.7 db";
        assert_eq!(output(sandbox), expect);
    }
}

#[test]
fn more_specific_chroot_env_entry_wins() {
    if !sandboxes() {
        return;
    }
    let site = site();
    let at = |path: &str| site.path().join(path);
    for (path, text) in [
        ("outer/file", "outer"),
        ("outer/dir/a", "outer a"),
        ("inner/b", "inner b"),
        ("alone", "alone"),
        ("z", "z"),
    ] {
        fs::create_dir_all(at(path).parent().unwrap()).unwrap();
        fs::write(at(path), text).unwrap();
    }
    let (outer, inner, alone) = (at("outer"), at("inner"), at("alone"));
    let map = [(outer.as_path(), "/tree"), (&inner, "/tree/dir"), (&alone, "/tree/file")];
    for method in ALL.into_iter().filter(|m| *m != Method::Overlay || overlay()) {
        let said =
            output(programs(shell("cd /tree && find . -type f | sort | xargs cat")).root(root(method, &map)));
        assert_eq!(said, "inner balone", "{method}");
    }
    let twice = root(Method::Copy, &[(&inner, "/tree"), (&outer, "/tree/")]);
    match shell("true").root(twice).start() {
        Err(Error::Spec { field: "root.chroot_env", .. }) => {}
        other => panic!("{other:?}"),
    }
}

fn populated(sandbox: Sandbox) -> Populated {
    let task = sandbox.start().unwrap();
    let populated = task.populated().unwrap().clone();
    let status = task.wait().unwrap();
    assert!(status.success(), "{status}: {populated:?}");
    populated
}

/// Another thread cancels while the host's programs are copied.
#[test]
fn cancelled_spawn_leaves_nothing() {
    if !sandboxes() {
        return;
    }
    let site = site();
    let policy = Policy { temp_dir: Some(site.path().into()), ..Policy::default() };
    let (cancel, (began, begins)) = (Cancel::new(), std::sync::mpsc::channel());
    let told = Arc::new(Mutex::new(Progress::default()));
    let listener = Arc::clone(&told);
    let sandbox = shell("true")
        .policy(&policy)
        .root(root(Method::Copy, &[(Path::new("/usr"), "/usr")]))
        .cancel(&cancel)
        .progress(move |now| {
            *listener.lock().unwrap() = now;
            let _ = began.send(());
            std::ops::ControlFlow::Continue(())
        });
    let refused = std::thread::scope(|scope| {
        let spawning = scope.spawn(|| sandbox.start());
        begins.recv().unwrap();
        cancel.cancel();
        spawning.join().unwrap().map(drop)
    });
    assert!(matches!(refused, Err(Error::Cancelled)), "{refused:?}");
    let made = *told.lock().unwrap();
    assert!(made.bytes < 512 << 20 && made.entries < 20_000, "{made:?}");
    assert_eq!(fs::read_dir(site.path()).unwrap().count(), 0, "the temporary root is removed");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(site.path().to_str().unwrap()), "{mounts}");
}

#[test]
fn population_reports_sources_skipped_paths_and_progress() {
    if !sandboxes() {
        return;
    }
    let site = site();
    let tree = site.path().join("tree");
    fs::create_dir_all(tree.join("out/below")).unwrap();
    fs::write(tree.join("file"), vec![b'x'; 5000]).unwrap();
    fs::write(tree.join("out/file"), "x").unwrap();
    let fifo = site.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("tree/out", site.path().join("spelled")).unwrap();
    let policy =
        Policy { chroot_skip: vec![site.path().join("spelled/"), "/no/such".into()], ..Policy::default() };
    let nowhere = site.path().join("nowhere");
    for method in ALL.into_iter().chain([Method::Auto]).filter(|m| *m != Method::Overlay || overlay()) {
        let told: Arc<Mutex<Vec<Progress>>> = Arc::default();
        let listener = Arc::clone(&told);
        let map = [(tree.as_path(), "/t"), (&fifo, "/f"), (&nowhere, "/n")];
        let sandbox = programs(shell("test -f /t/file && test -d /t/out && test -z \"$(ls -A /t/out)\""))
            .policy(&policy)
            .root(root(method, &map))
            .progress(move |p| {
                listener.lock().unwrap().push(p);
                std::ops::ControlFlow::Continue(())
            });
        let done = populated(sandbox.clone());
        let used = if method == Method::Auto { Method::Bind } else { method };
        let sources: Vec<(&Path, &Path)> = done.sources.iter().map(|s| (&*s.path, &*s.target)).collect();
        assert_eq!(sources, [(tree.as_path(), Path::new("/t"))], "{method}");
        let expected = if used == Method::Reflink { vec![Method::Reflink, Method::Copy] } else { vec![used] };
        assert!(expected.contains(&done.sources[0].method), "{method}: {:?}", done.sources);
        let skipped: Vec<&Path> = done.skipped.iter().map(|s| &*s.path).collect();
        assert!(
            skipped.contains(&fifo.as_path()) && skipped.contains(&nowhere.as_path()),
            "{method}: {skipped:?}"
        );
        let told = told.lock().unwrap();
        assert_eq!(told.last().is_some(), used.walks(), "{method}");
        if let Some(last) = told.last() {
            assert_eq!(
                (last.entries, last.bytes),
                (done.dirs + done.linked + done.cloned + done.copied, 5000)
            );
        }
        assert_eq!(
            sandbox.plan().unwrap().report.why(Control::HOST_FILES).contains("auto"),
            method == Method::Auto
        );
    }
}

/// The error names the limit that was exceeded.
#[test]
fn population_over_a_limit_fails_and_leaves_nothing() {
    if !sandboxes() {
        return;
    }
    let site = site();
    let (tree, temp) = (site.path().join("tree"), site.path().join("temp"));
    fs::create_dir(&temp).unwrap();
    for i in 0..50 {
        fs::create_dir_all(tree.join(format!("{}", i % 7))).unwrap();
        fs::write(tree.join(format!("{}/{i}", i % 7)), vec![b'x'; 100]).unwrap();
    }
    let policy = Policy { temp_dir: Some(temp.clone()), max_entries: Some(40), ..Policy::default() };
    let bytes = Root { max_bytes: Some(2000), ..Root::default() };
    for method in [Method::Link, Method::Copy, Method::Reflink] {
        for (policy, root, limit) in [
            (&policy, root(method, &[(&tree, "/t")]), "max_entries"),
            (
                &Policy { max_entries: None, ..policy.clone() },
                Root { max_bytes: bytes.max_bytes, ..root(method, &[(&tree, "/t")]) },
                "max_bytes",
            ),
        ] {
            let error = shell("true").policy(policy).root(root).start().unwrap_err();
            let Error::Prepare { step, source } = &error else { panic!("{error:?}") };
            assert!(step.contains(tree.to_str().unwrap()) || step.contains("ROOT \"/t"), "{step}");
            assert!(source.to_string().contains(limit), "{source}");
            assert_eq!(fs::read_dir(&temp).unwrap().count(), 0);
        }
    }
}

/// Only init sees the content of a given root. The error says in words why the mount point cannot be used.
#[test]
fn unusable_mount_point_in_a_given_root_is_explained() {
    if !sandboxes() {
        return;
    }
    let site = site();
    let (root, source) = (site.path().join("root"), site.path().join("source"));
    for dir in [&root, &source, &root.join("dir")] {
        fs::create_dir(dir).unwrap();
    }
    fs::write(root.join("file"), "").unwrap();
    fs::write(site.path().join("text"), "").unwrap();
    symlink("/nowhere/at/all", root.join("link")).unwrap();
    let given = Root { path: Some(root), populate: Method::None, ..Root::default() };
    for (source, target, why) in [
        ("source", "/link", "is a dangling symbolic link in the root, or below one"),
        ("source", "/link/below", "is a dangling symbolic link in the root, or below one"),
        (
            "source",
            "/file",
            "source\" is a directory, but the mount point \"/file\" in the root is not a directory",
        ),
        ("text", "/dir", "text\" is a file, but the mount point \"/dir\" in the root is a directory"),
    ] {
        let volume = Volume { source: site.path().join(source), target: target.into(), ..Volume::default() };
        let error = shell("true").root(given.clone()).volume(volume).start().unwrap_err();
        let Error::Setup { step, source } = &error else { panic!("{target}: {error:?}") };
        assert!(step.contains(target), "{target}: {step}");
        assert!(source.to_string().contains(why), "{target}: {source}");
    }
}
