use super::*;

#[test]
fn an_unreadable_source_is_an_error_with_its_path() {
    if lacks_root() {
        return;
    }
    let site = Site::new();
    fs::set_permissions(site.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    site.write("t/secret", "");
    site.write("u/sub/file", "");
    site.write("v/file", "");
    fs::set_permissions(site.src("t/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(site.src("u/sub"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(site.root(""), fs::Permissions::from_mode(0o777)).unwrap();
    on_thread(|| {
        setfsuid(Uid::from_raw(65534));
        for method in [Method::Copy, Method::Link] {
            let error = |from, to: &str| {
                let error = site.populate(method, &[(from, &format!("{to}{method}"))]).unwrap_err();
                let cause = std::error::Error::source(&error).unwrap().to_string();
                assert_eq!(cause, "Permission denied (os error 13)");
                error.to_string()
            };
            assert_eq!(error("t", "a"), format!("openat({:?})", site.src("t/secret")));
            assert_eq!(error("u", "b"), format!("openat({:?})", site.src("u/sub")));
            // A caller that cannot change owners reports it.
            let done = site.populate(method, &[("v", &format!("c{method}"))]).unwrap();
            assert_eq!((done.dirs, done.copied + done.linked), (1, 1));
            assert_eq!(done.disowned, 1 + done.copied);
        }
    });
}

#[test]
fn a_full_file_system_is_an_error_and_leaves_no_partial_file() {
    if lacks_root() {
        return;
    }
    // Within one file system `copy_file_range(2)` copies, across file systems `pwrite64(2)`.
    for within in [true, false] {
        let outer = tempdir().unwrap();
        let path = outer.path().join("at");
        fs::create_dir(&path).unwrap();
        in_own_mount_ns(|| {
            let full = |at: &Path, size: &str| {
                mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(size)).unwrap();
            };
            if within {
                full(&path, "size=1400k");
            }
            let site = Site::in_dir(tempdir_in(&path).unwrap());
            site.write("t/a/large", vec![7; 1 << 20]);
            for i in 0..20 {
                site.write(&format!("t/small/{i}"), vec![i; 5000]);
            }
            if !within {
                full(&site.root(""), "size=256k");
            }
            for method in WALKS.into_iter().filter(|m| !within || *m != Method::Link) {
                let error = site.populate(method, &[("t", "to")]).unwrap_err();
                // The error is that of the large file, or of a small file that another thread wrote when the large file
                // had filled the file system.
                let call = if within { "copy_file_range(" } else { "pwrite64(" };
                assert!(error.to_string().starts_with(call), "{error}");
                assert!(error.to_string().contains("ROOT \"/to/"), "{error}");
                assert_eq!(cause(&error), "No space left on device (os error 28)");
                let files = tree(&site.root(""));
                assert!(!files.contains_key(Path::new("to/a/large")));
                for (path, facts) in files.iter().filter(|(p, _)| p.parent() == Some(Path::new("to/small"))) {
                    assert_eq!(facts.content.len(), 5000, "{path:?} is truncated");
                }
                remove(&site.root(""), "to");
            }
            if !within {
                unmount(&site.root(""));
            }
            drop(site);
            if within {
                unmount(&path);
            }
        });
    }
}

/// Runs in a process of its own, because the limit is per process.
#[test]
fn a_file_size_limit_is_an_error_and_no_signal() {
    const TOLD: &str = "COFFERDAM_TEST_POPULATE_LIMITED";
    if let Some(dir) = std::env::var_os(TOLD).map(PathBuf::from) {
        let map = ChrootEnv::from([(dir.join("src"), "to".into())]);
        let error = fill(&dir.join("root"), &map, Method::Copy).unwrap_err();
        assert_eq!(cause(&error), "File too large (os error 27)");
        assert!(!dir.join("root/to/large").exists());
        return;
    }
    let site = Site::new();
    site.write("large", vec![7; 1 << 20]);
    let this = "rootfs::populate::tests::refused::a_file_size_limit_is_an_error_and_no_signal";
    let status = Command::new("sh")
        .args(["-c", "ulimit -f 64 && exec \"$0\" --exact \"$1\""])
        .args([std::env::current_exe().unwrap().as_os_str(), this.as_ref()])
        .env(TOLD, site.dir.path())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    assert!(site.root("to").exists(), "the child did nothing");
}

fn cause(error: &Error) -> String {
    std::error::Error::source(error).unwrap().to_string()
}

/// Lists calls that a kernel may refuse, and the result of each refusal.
#[test]
fn a_refused_call_is_worked_around_or_named_with_its_path() {
    use nix::errno::Errno;
    use nix::libc::{
        SYS_copy_file_range, SYS_fchown, SYS_flistxattr, SYS_fsetxattr, SYS_ioctl, SYS_linkat, SYS_openat2,
        SYS_utimensat,
    };
    enum Then {
        Copied,
        Linked,
        Ends(&'static str),
        Lost(u64),
        Disowned,
    }
    use Then::*;
    let root = geteuid().is_root();
    let rows = [
        (Method::Link, SYS_linkat, Errno::EMLINK, Copied),
        (Method::Link, SYS_linkat, Errno::EPERM, Copied),
        (Method::Link, SYS_linkat, Errno::EXDEV, Copied),
        (Method::Link, SYS_linkat, Errno::EOPNOTSUPP, Copied),
        (Method::Link, SYS_linkat, Errno::ENOSPC, Ends("linkat(SOURCE, ROOT \"/to/file\")")),
        (Method::Link, SYS_openat2, Errno::ENOSYS, Linked),
        (Method::Copy, SYS_openat2, Errno::EPERM, Copied),
        (Method::Reflink, SYS_ioctl, Errno::EOPNOTSUPP, Copied),
        (Method::Reflink, SYS_ioctl, Errno::EINVAL, Copied),
        (Method::Reflink, SYS_ioctl, Errno::ENOTTY, Copied),
        (Method::Reflink, SYS_ioctl, Errno::ENOSPC, Ends("ioctl FICLONE(SOURCE, ROOT \"/to/file\")")),
        (Method::Copy, SYS_copy_file_range, Errno::ENOSYS, Copied),
        (Method::Copy, SYS_copy_file_range, Errno::EIO, Ends("copy_file_range(SOURCE, ROOT \"/to/file\")")),
        (Method::Copy, SYS_flistxattr, Errno::EOPNOTSUPP, Copied),
        (Method::Copy, SYS_fsetxattr, Errno::EOPNOTSUPP, Lost(1)),
        (Method::Copy, SYS_fsetxattr, Errno::EPERM, Lost(1)),
        (Method::Copy, SYS_fsetxattr, Errno::ENOSPC, Ends("fsetxattr(ROOT \"/to/file\")")),
        (Method::Copy, SYS_fchown, Errno::EPERM, Disowned),
        (Method::Copy, SYS_utimensat, Errno::EIO, Ends("futimens(ROOT \"/to/file\")")),
    ];
    for (method, call, errno, then) in rows {
        let site = Site::in_dir(tempdir_in("/dev/shm").unwrap());
        site.write("t/file", "content");
        fs::set_permissions(site.src("t/file"), fs::Permissions::from_mode(0o4640)).unwrap();
        let note = (c"user.note", b"noted");
        let noted = fsetxattr(File::open(site.src("t/file")).unwrap().as_fd(), note.0, note.1).is_ok();
        if root {
            std::os::unix::fs::chown(site.src("t/file"), Some(1234), Some(4321)).unwrap();
            fs::set_permissions(site.src("t/file"), fs::Permissions::from_mode(0o4640)).unwrap();
        }
        let options = Options { method, setuid: true, ..Options::default() };
        let done = on_thread(|| {
            crate::sys::refuse::refuse(call, errno);
            site.with(&[("t", "to")], &options)
        });
        let row = format!("{method} {call} {errno}");
        let source = format!("{:?}", site.src("t/file"));
        match then {
            Ends(_) if call == SYS_fsetxattr && !noted => {
                crate::skip::note(format_args!("{row}: no attributes here"))
            }
            Ends(step) => {
                let error = done.unwrap_err();
                assert_eq!(error.to_string(), step.replace("SOURCE", &source), "{row}");
                assert_eq!(cause(&error), std::io::Error::from(errno).to_string(), "{row}");
                assert!(!site.root("to/file").exists(), "{row}");
                continue;
            }
            then => {
                let done = done.unwrap();
                let files = (done.linked, done.copied);
                assert_eq!(files, if matches!(then, Linked) { (1, 0) } else { (0, 1) }, "{row}");
                let used = if matches!(then, Linked) { Method::Link } else { Method::Copy };
                assert_eq!(done.sources[0].method, used, "{row}");
                assert_eq!(fs::read_to_string(site.root("to/file")).unwrap(), "content");
                let lost = if let Lost(n) = then { n * u64::from(noted) } else { 0 };
                assert_eq!(done.attributes_lost, lost, "{row}");
                // A setuid program must not run as the caller because its owner could not be set.
                let disowned = root && matches!(then, Disowned);
                assert_eq!(done.disowned, u64::from(disowned), "{row}");
                assert_eq!(mode(&site.root("to/file")), if disowned { 0o640 } else { 0o4640 }, "{row}");
            }
        }
    }
}

#[test]
fn a_file_with_too_many_links_is_copied() {
    if lacks_root() {
        return;
    }
    let base = tempdir_in("/dev/shm").unwrap();
    let image = base.path().join("image");
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let made = Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&image).status();
    if !made.as_ref().is_ok_and(std::process::ExitStatus::success) {
        return crate::skip::note(format_args!("mke2fs: {made:?}"));
    }
    in_own_mount_ns(|| {
        let at = base.path().join("at");
        fs::create_dir(&at).unwrap();
        if !Command::new("mount").args(["-o", "loop"]).args([&image, &at]).status().unwrap().success() {
            return crate::skip::note("no loop device");
        }
        let site = Site::in_dir(tempdir_in(&at).unwrap());
        site.write("t/file", "content");
        site.write("t/other", "content");
        fs::create_dir(site.src("links")).unwrap();
        let (mut n, mut error) = (0, None);
        while error.is_none() {
            error = fs::hard_link(site.src("t/file"), site.src(&format!("links/{n}"))).err();
            n += 1;
        }
        assert_eq!(error.unwrap().raw_os_error(), Some(nix::libc::EMLINK));
        let done = site.populate(Method::Link, &[("t", "to")]).unwrap();
        assert_eq!((done.linked, done.copied, done.sources[0].method), (1, 1, Method::Link));
        assert_eq!(fs::read_to_string(site.root("to/file")).unwrap(), "content");
        drop(site);
        unmount(&at);
    });
}

#[test]
fn an_immutable_file_is_copied() {
    if lacks_root() {
        return;
    }
    let site = Site::new();
    site.write("t/file", "content");
    site.write("t/other", "content");
    let chattr = |flag| Command::new("chattr").arg(flag).arg(site.src("t/file")).status();
    if !chattr("+i").as_ref().is_ok_and(std::process::ExitStatus::success) {
        return crate::skip::note("chattr +i is refused");
    }
    let done = site.populate(Method::Link, &[("t", "to")]);
    chattr("-i").unwrap();
    let done = done.unwrap();
    assert_eq!((done.linked, done.copied), (1, 1));
    assert_eq!(fs::read_to_string(site.root("to/file")).unwrap(), "content");
}

#[test]
fn files_behind_a_mount_are_copied() {
    if lacks_root() {
        return;
    }
    let site = Site::new();
    site.write("t/sub/file", "content");
    site.write("t/file", "content");
    in_own_mount_ns(|| {
        // The file system is the same, but no hard link crosses the mount.
        let (sub, none) = (site.src("t/sub"), None::<&str>);
        mount(Some(&sub), &sub, none, MsFlags::MS_BIND, none).unwrap();
        let done = site.populate(Method::Link, &[("t", "to")]).unwrap();
        assert_eq!((done.linked, done.copied, done.sources[0].method), (1, 1, Method::Link));
        unmount(&sub);
    });
}

#[test]
fn max_entries_and_max_bytes_are_exact() {
    let site = Site::in_dir(tempdir_in("/dev/shm").unwrap());
    for i in 0..100 {
        site.write(&format!("t/{}/{i}", i % 10), vec![b'x'; 100]);
    }
    symlink("nowhere", site.src("t/link")).unwrap();
    site.write("large", vec![b'x'; 40 << 20]);
    // t and its ten directories, a parent, 100 files and a symbolic link.
    let (entries, bytes) = (1 + 11 + 100 + 1, 10_000);
    for method in WALKS {
        let with = |max_entries, max_bytes| {
            let options = Options { method, max_entries, max_bytes, ..Options::default() };
            let done = site.with(&[("t", "up/to")], &options);
            remove(&site.root(""), "up");
            done
        };
        let done = with(Some(entries), Some(bytes)).unwrap();
        assert_eq!(done.dirs + done.linked + done.copied + done.symlinks, entries);
        assert_eq!(done.bytes_linked, Some(if method == Method::Link { bytes } else { 0 }));
        for (max_entries, max_bytes, why) in [
            (Some(entries - 1), None, "more than 112 entries (max_entries)"),
            (Some(0), None, "more than 0 entries (max_entries)"),
            (None, Some(bytes - 1), "more than 9999 bytes (max_bytes)"),
        ] {
            let error = with(max_entries, max_bytes).unwrap_err();
            let Error::Prepare { step, source } = error else { panic!("{error:?}") };
            assert_eq!(
                (source.to_string().as_str(), source.kind()),
                (why, std::io::ErrorKind::QuotaExceeded)
            );
            assert!(step.contains("(ROOT \"/up") || step.contains(", ROOT \"/up"), "{step}");
        }
        // Entries that exist already do not count.
        let map = [("t", "up/to")];
        site.populate(method, &map).unwrap();
        let none = Options { method, max_entries: Some(0), max_bytes: Some(0), ..Options::default() };
        assert_eq!(site.with(&map, &none).unwrap().kept, 112);
        remove(&site.root(""), "up");
        // A large file is refused before any of it is written.
        let options = Options { method, max_bytes: Some(1 << 20), ..Options::default() };
        let error = site.with(&[("large", "large")], &options).unwrap_err();
        assert_eq!(cause(&error), "more than 1048576 bytes (max_bytes)");
        assert_eq!(site.root("large").exists(), method == Method::Link);
        let _ = fs::remove_file(site.root("large"));
    }
}

#[test]
fn invalid_maps_are_refused_before_anything_is_made() {
    let site = Site::new();
    site.write("a", "");
    let check = |source: PathBuf, dest: &str| {
        let map = ChrootEnv::from([(site.src("a"), "/a".into()), (source, dest.into())]);
        match fill(&site.root(""), &map, Method::Link).unwrap_err() {
            Error::Spec { field: "chroot_env", message } => message,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(check("etc".into(), "/etc"), r#""etc" -> "/etc": the source is not an absolute path"#);
    assert_eq!(check("/etc".into(), "/../etc"), r#""/etc" -> "/../etc": a path must not contain "..""#);
    assert_eq!(check("/a/../etc".into(), "etc"), r#""/a/../etc" -> "etc": a path must not contain "..""#);
    assert!(check("/a\0b".into(), "etc").ends_with("a path must not contain a NUL byte"));
    let both = format!("{:?} and {:?} have the same destination \"/a\"", site.src("a"), "/zzz");
    assert_eq!(check("/zzz".into(), "a/."), both);
    assert_eq!(fs::read_dir(site.root("")).unwrap().count(), 0);
    validate(&default_chroot_env()).unwrap();
    assert_eq!(default_chroot_env().len(), 9);
}
