use super::*;

#[test]
fn fifos_sockets_and_devices_are_skipped_and_listed() {
    let site = Site::new();
    site.write("t/file", "");
    mkfifo(&site.src("t/fifo"), Mode::S_IRWXU).unwrap();
    let _socket = UnixListener::bind(site.src("t/socket")).unwrap();
    let mut expect = vec![("fifo", "a fifo"), ("socket", "a socket")];
    if !lacks_root() {
        mknod(&site.src("t/device"), SFlag::S_IFCHR, Mode::S_IRWXU, nix::libc::makedev(1, 3)).unwrap();
        expect.insert(0, ("device", "a character device"));
    }
    for (method, to) in [(Method::Link, "l"), (Method::Copy, "c")] {
        let done = site.populate(method, &[("t", to)]).unwrap();
        assert_eq!(whys(&done), expect);
        assert_eq!(fs::read_dir(site.root(to)).unwrap().count(), 1);
        // If the map names a fifo or a socket, opening it must not wait for the other end.
        let done = site.populate(method, &[("t/fifo", "f"), ("t/socket", "s")]).unwrap();
        assert_eq!(whys(&done), [("fifo", "a fifo"), ("socket", "a socket")]);
        assert!(!site.root("f").exists());
    }
    assert!(fs::symlink_metadata(site.src("t/fifo")).unwrap().file_type().is_fifo());
}

#[test]
fn sources_that_do_not_exist_are_skipped_and_listed() {
    let site = Site::new();
    site.write("file", "");
    symlink("nowhere", site.src("dangling")).unwrap();
    let done =
        site.populate(Method::Link, &[("missing", "m"), ("dangling", "d"), ("file/below", "b")]).unwrap();
    let names: Vec<_> = whys(&done).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["dangling", "below", "missing"]);
    assert_eq!(fs::read_dir(site.root("")).unwrap().count(), 0);
}

#[test]
fn a_source_that_is_a_symlink_is_resolved() {
    let site = Site::new();
    site.write("real/dir/file", "content");
    symlink("real/dir", site.src("to-dir")).unwrap();
    symlink("to-dir/file", site.src("to-file")).unwrap();
    let Some(elsewhere) = Site::elsewhere() else { return };
    for method in [Method::Link, Method::Copy] {
        for root in [&site.root(&method.to_string()), &elsewhere.path().join(method.to_string())] {
            fs::create_dir(root).unwrap();
            let map = [("to-dir", "d"), ("to-file", "f"), ("to-dir/file", "sub/g")];
            let map = map.iter().map(|(s, d)| (site.src(s), PathBuf::from(d))).collect();
            let done = fill(root, &map, method).unwrap();
            assert_eq!(done.linked + done.copied, 3);
            assert!(fs::symlink_metadata(root.join("d")).unwrap().is_dir());
            for file in ["d/file", "f", "sub/g"] {
                assert!(fs::symlink_metadata(root.join(file)).unwrap().is_file());
                assert_eq!(fs::read_to_string(root.join(file)).unwrap(), "content");
            }
        }
    }
}

#[test]
fn a_root_below_its_own_source_is_left_empty() {
    let site = Site::new();
    site.write("a/file", "");
    site.write("avoid/file", "");
    fs::create_dir_all(site.src("b/root/old")).unwrap();
    fs::create_dir(site.src("inside")).unwrap();
    fs::set_permissions(site.src("avoid"), fs::Permissions::from_mode(0o710)).unwrap();
    let root = File::open(site.src("b/root")).unwrap();
    let avoid = fs::metadata(site.src("avoid")).unwrap();
    // The source with a trailing slash, by a symbolic link, and a directory above it.
    symlink(site.src(""), site.dir.path().join("alias")).unwrap();
    for (i, source) in
        [site.src(""), site.dir.path().join("alias/"), site.src("../src/..")].into_iter().enumerate()
    {
        let source = if i == 2 { site.dir.path().to_owned() } else { source };
        let map = ChrootEnv::from([(source, format!("to/{i}").into())]);
        let done = populate(
            root.as_fd(),
            &map,
            &Options { method: Method::Link, skip: &[(avoid.dev(), avoid.ino())], ..Options::default() },
        )
        .unwrap();
        let out: Vec<_> = whys(&done)
            .into_iter()
            .filter(|(_, why)| *why == "is the root itself, or is excluded by chroot_skip")
            .collect();
        assert_eq!(out.iter().map(|o| o.0).collect::<Vec<_>>(), ["avoid", "root"]);
        let made = site.src("b/root/to").join(i.to_string()).join(if i == 2 { "src" } else { "" });
        assert!(made.join("a/file").exists() && made.join("b").exists() && made.join("inside").exists());
        // The directories exist, are empty, and have the mode of their sources.
        for out in ["b/root", "avoid"] {
            assert_eq!(fs::read_dir(made.join(out)).unwrap().count(), 0);
            assert_eq!(mode(&made.join(out)), mode(&site.src(out)));
        }
    }
    // A source inside the root is not copied into itself.
    let map = ChrootEnv::from([(site.src("b/root/old"), "old/again".into())]);
    let done = populate(root.as_fd(), &map, &Options { method: Method::Copy, ..Options::default() }).unwrap();
    assert_eq!(whys(&done), [("again", "is the root itself, or is excluded by chroot_skip")]);
    let map = ChrootEnv::from([(site.src("b/root"), "/".into())]);
    assert_eq!(
        populate(root.as_fd(), &map, &Options { method: Method::Copy, ..Options::default() })
            .unwrap()
            .skipped
            .len(),
        1
    );
}

#[test]
fn mounts_are_entered_except_kernel_file_systems() {
    if lacks_root() {
        return;
    }
    let site = Site::new();
    for dir in ["t/tmp", "t/proc"] {
        fs::create_dir_all(site.src(dir)).unwrap();
    }
    in_own_mount_ns(|| {
        let new = |kind: &str| {
            mount(
                Some(kind),
                &site.src("t").join(kind.trim_end_matches("fs")),
                Some(kind),
                MsFlags::empty(),
                None::<&str>,
            )
            .unwrap();
        };
        new("tmpfs");
        new("proc");
        site.write("t/tmp/file", "");
        let done = site.populate(Method::Link, &[("t", "to")]).unwrap();
        assert_eq!(whys(&done), [("proc", "is on a file system of the kernel (proc, sysfs, cgroup, ...)")]);
        assert_eq!(fs::read_dir(site.root("to/proc")).unwrap().count(), 0);
        assert_eq!(mode(&site.root("to/proc")), 0o555);
        assert_eq!((done.linked, done.copied), (0, 1));
        let done =
            fill(&site.root(""), &ChrootEnv::from([("/proc".into(), "p".into())]), Method::Copy).unwrap();
        assert_eq!(done.skipped.len(), 1);
        for dir in ["t/tmp", "t/proc"] {
            unmount(&site.src(dir));
        }
    });
}
