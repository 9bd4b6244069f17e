use std::sync::Mutex;

use super::*;

#[test]
fn a_method_is_parsed_from_its_printed_name() {
    for (method, name) in
        [(Method::Bind, "bind"), (Method::Link, "link"), (Method::Copy, "copy"), (Method::None, "none")]
    {
        assert_eq!(method.to_string(), name);
        assert_eq!(name.parse::<Method>().unwrap(), method);
        assert_eq!(serde_json::to_value(method).unwrap(), name);
    }
    assert!("Link".parse::<Method>().is_err());
}

#[test]
fn methods_that_do_not_walk_are_refused() {
    let site = Site::new();
    site.write("a", "");
    for method in [Method::Auto, Method::Bind, Method::Overlay, Method::None] {
        let refused = site.populate(method, &[("a", "b")]);
        assert!(matches!(refused, Err(Error::Spec { field: "populate", .. })), "{method}");
    }
    assert_eq!(fs::read_dir(site.root("")).unwrap().count(), 0);
}

#[test]
fn a_result_with_names_that_are_not_utf8_can_be_serialised() {
    let mut done = Populated::default();
    done.skip(PathBuf::from(std::ffi::OsStr::from_bytes(b"/a\xff")), "a fifo");
    let json = serde_json::to_value(&done).unwrap();
    assert_eq!(json["skipped"][0]["path"], "/a\u{fffd}");
}

#[test]
fn the_last_progress_report_counts_everything() {
    let site = Site::in_dir(tempdir_in("/dev/shm").unwrap());
    for i in 0..60 {
        site.write(&format!("t/{i}/file"), vec![b'x'; 1000]);
    }
    site.write("large", vec![b'x'; 50 << 20]);
    for method in WALKS {
        let told = Mutex::new(Vec::new());
        let tell = |progress: Progress| {
            told.lock().unwrap().push(progress);
            ControlFlow::Continue(())
        };
        let options = Options { method, progress: Some(&tell), ..Options::default() };
        let done = site.with(&[("t", "to"), ("large", "large")], &options).unwrap();
        let told = told.into_inner().unwrap();
        let bytes = done.bytes_copied + done.bytes_shared + done.bytes_linked.unwrap();
        let entries = done.dirs + done.linked + done.cloned + done.copied + done.symlinks;
        assert_eq!(*told.last().unwrap(), Progress { entries, bytes }, "{method}");
        assert_eq!((entries, bytes), (122, 60_000 + (50 << 20)));
        // One call for each directory, and several within the large file.
        assert!(told.len() >= 61, "{}", told.len());
        let within = told.iter().filter(|p| p.bytes > 60_000 && p.bytes < 50 << 20).count();
        assert!(method == Method::Link || within >= 2, "{method}: {within}");
        remove(&site.root(""), "to");
        fs::remove_file(site.root("large")).unwrap();
    }
}

/// A cancel by the callback or by the handle, in a tree of many files and within a large one.
#[test]
fn a_cancelled_population_stops_at_once() {
    let site = Site::in_dir(tempdir_in("/dev/shm").unwrap());
    for i in 0..2000 {
        site.write(&format!("t/{i}/file"), vec![b'x'; 1000]);
    }
    site.write("large", vec![b'x'; 100 << 20]);
    for (source, enough) in [("t", 20_000), ("large", 8 << 20)] {
        for by_handle in [false, true] {
            let (cancel, made) = (Cancel::new(), Mutex::new(0));
            let tell = |now: Progress| {
                // Two threads may report at the same time, so the last report need not be the highest.
                let mut made = made.lock().unwrap();
                *made = now.bytes.max(*made);
                drop(made);
                match (now.bytes >= enough, by_handle) {
                    (true, true) => cancel.cancel(),
                    (true, false) => return ControlFlow::Break(()),
                    (false, _) => {}
                }
                ControlFlow::Continue(())
            };
            let options = Options { progress: Some(&tell), cancel: Some(&cancel), ..Options::default() };
            let refused = site.with(&[(source, "to")], &options);
            assert!(matches!(refused, Err(Error::Cancelled)), "{refused:?}");
            let made = *made.lock().unwrap();
            assert!((enough..=enough * 4).contains(&made), "{source}: {made}");
            let _ = fs::remove_file(site.root("to"));
            if site.root("to").exists() {
                remove(&site.root(""), "to");
            }
            // A handle that is cancelled stays so.
            let again = Options { cancel: Some(&cancel), ..Options::default() };
            assert_eq!(site.with(&[("t/1", "again")], &again).is_err(), by_handle);
            if site.root("again").exists() {
                remove(&site.root(""), "again");
            }
        }
    }
}

#[test]
fn a_fingerprint_depends_on_the_sources_only() {
    let site = Site::in_dir(tempdir_in("/dev/shm").unwrap());
    one_of_everything(&site);
    mkfifo(&site.src("t/fifo"), Mode::S_IRWXU).unwrap();
    site.write("over/file", "");
    site.write("avoid/file", "");
    site.write("t/deeper/file", "");
    let st = fs::metadata(site.src("t/many")).unwrap();
    let skip = [(st.dev(), st.ino())];
    let map = [("t", "to"), ("over", "to/dir"), ("nowhere", "n"), ("t/large", "l"), ("t/fifo", "f")];
    let alone = || fingerprint(&site.map(&map), &skip).unwrap();
    let first = alone();
    for method in WALKS {
        let options = Options { method, skip: &skip, fingerprint: true, ..Options::default() };
        for _ in 0..2 {
            assert_eq!(site.with(&map, &options).unwrap().fingerprint, Some(first), "{method}");
        }
        assert_eq!(alone(), first);
        assert_eq!(site.populate(method, &[("t", "x")]).unwrap().fingerprint, None);
        for made in ["to", "x"] {
            remove(&site.root(""), made);
        }
        fs::remove_file(site.root("l")).unwrap();
    }
    // Changes below another entry's destination or in a skipped directory do not matter.
    site.write("t/dir/file", "changed");
    site.write("t/many/new", "");
    assert_eq!(alone(), {
        let st = fs::metadata(site.src("t/many")).unwrap();
        assert_eq!((st.dev(), st.ino()), skip[0]);
        alone()
    });
    let mut seen = vec![alone()];
    let mut differs = |what: &str| {
        let now = alone();
        assert!(!seen.contains(&now), "{what} changed nothing");
        seen.push(now);
    };
    let time = |path: &str, n| {
        let time = std::time::SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, n);
        File::open(site.src(path)).unwrap().set_modified(time).unwrap();
    };
    time("t/large", 1);
    differs("the time of a file");
    time("t/large", 2);
    differs("a nanosecond");
    time("t/deeper", 1);
    differs("the time of a directory");
    fs::set_permissions(site.src("t/fifo"), fs::Permissions::from_mode(0o600)).unwrap();
    differs("the mode of a fifo");
    fs::rename(site.src("t/empty-file"), site.src("t/empty-renamed")).unwrap();
    differs("a name");
    fs::remove_file(site.src("t/deeper/file")).unwrap();
    time("t/deeper", 1);
    differs("a file that went away");
    let before = fs::metadata(site.src("t/suid")).unwrap();
    fs::copy(site.src("t/suid"), site.src("replaced")).unwrap();
    File::open(site.src("replaced")).unwrap().set_modified(before.modified().unwrap()).unwrap();
    std::os::unix::fs::chown(site.src("replaced"), Some(before.uid()), Some(before.gid())).unwrap();
    fs::set_permissions(site.src("replaced"), before.permissions()).unwrap();
    fs::rename(site.src("replaced"), site.src("t/suid")).unwrap();
    differs("another file of the same looks");
    site.write("nowhere", "");
    differs("a source that came");
}
