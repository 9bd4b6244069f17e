use super::*;

#[test]
fn symlinks_in_the_root_do_not_lead_out_of_it() {
    let site = Site::new();
    site.write("t/sub/file", "from the host");
    site.write("t/name", "from the host");
    let outside = site.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("name"), "canary").unwrap();
    for (method, to) in [(Method::Link, "l"), (Method::Copy, "c")] {
        fs::create_dir(site.root(to)).unwrap();
        symlink(&outside, site.root(to).join("sub")).unwrap();
        symlink(outside.join("name"), site.root(to).join("name")).unwrap();
        let done = site.populate(method, &[("t", to)]).unwrap();
        assert_eq!(whys(&done), [("sub", "the destination exists and is not a directory")]);
        assert_eq!(done.kept, 3);
        // A symbolic link on the way to a destination is resolved inside the root, as the task would see it.
        let _ = fs::remove_file(site.root("up"));
        let _ = fs::remove_file(site.root("in"));
        symlink("../../../../../../..", site.root("up")).unwrap();
        symlink("/l", site.root("in")).unwrap();
        site.populate(method, &[("t", &format!("up/x{to}")), ("t/name", &format!("in/{to}"))]).unwrap();
        assert!(site.root(&format!("x{to}/name")).is_file());
        assert!(site.root("l").join(to).is_file());
        // A symbolic link that dangles inside the root is neither followed nor replaced.
        let absolute = site.root("abs");
        let _ = fs::remove_file(&absolute);
        symlink(&outside, &absolute).unwrap();
        let error = site.populate(method, &[("t", "abs/y")]).unwrap_err();
        assert_eq!(error.to_string(), "mkdirat(ROOT \"/abs\")");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(outside.join("name")).unwrap(), "canary");
}

#[test]
fn existing_entries_stay() {
    let site = Site::new();
    site.write("1/file", "of the host");
    site.write("1/both", "of the host");
    site.write("1/sub/file", "of the host");
    fs::create_dir_all(site.root("d/sub")).unwrap();
    fs::write(site.root("d/file"), "before").unwrap();
    fs::write(site.root("d/sub/mine"), "before").unwrap();
    fs::set_permissions(site.root("d"), fs::Permissions::from_mode(0o711)).unwrap();
    for method in WALKS {
        let done = site.populate(method, &[("1", "d"), ("1/both", "e")]).unwrap();
        assert!(done.kept >= 3, "{done:?}");
        let read = |p: &str| fs::read_to_string(site.root(p)).unwrap();
        assert_eq!((&*read("d/file"), &*read("d/both")), ("before", "of the host"));
        assert_eq!((&*read("d/sub/file"), &*read("d/sub/mine")), ("of the host", "before"));
        assert_eq!(mode(&site.root("d")), 0o711);
        for made in ["d/both", "d/sub/file", "e"] {
            fs::remove_file(site.root(made)).unwrap();
        }
    }
}

/// A map in which other entries have their destinations inside the first source.
fn overlapping(site: &Site) -> Vec<(&'static str, &'static str)> {
    site.write("a/own", "of a");
    site.write("a/sub/of-a", "of a");
    site.write("a/sub/deep/of-a", "of a");
    site.write("a/file", "of a");
    site.write("a/kept/of-a", "of a");
    site.write("a/other/x/of-a", "of a");
    site.write("b/of-b", "of b");
    site.write("b/deep/of-b", "of b");
    site.write("c", "of c");
    fs::set_permissions(site.src("a/other"), fs::Permissions::from_mode(0o550)).unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for dir in ["a", "a/sub", "a/other", "a/kept", "b"] {
        File::open(site.src(dir)).unwrap().set_modified(old).unwrap();
    }
    // In no order, and with additional slashes.
    vec![("c", "/to/other/x/y/z"), ("b", "to/sub/"), ("c", "to//file"), ("a", "/to"), ("gone", "to/kept")]
}

#[test]
fn the_more_specific_destination_wins_completely() {
    let site = Site::new();
    let map = overlapping(&site);
    // A map can have each source only once.
    site.write("c2", "of c");
    let map: Vec<_> = map.into_iter().map(|(s, d)| (if d == "to//file" { "c2" } else { s }, d)).collect();
    for method in WALKS {
        let done = site.populate(method, &map).unwrap();
        let names: Vec<_> =
            tree(&site.root("to")).into_keys().map(|p| p.to_str().unwrap().to_owned()).collect();
        let expect = [
            "",
            "file",
            "kept",
            "kept/of-a",
            "other",
            "other/x",
            "other/x/of-a",
            "other/x/y",
            "other/x/y/z",
            "own",
            "sub",
            "sub/deep",
            "sub/deep/of-b",
            "sub/of-b",
        ];
        assert_eq!(names, expect, "{method}");
        for (path, content) in
            [("file", "of c"), ("own", "of a"), ("other/x/y/z", "of c"), ("kept/of-a", "of a")]
        {
            assert_eq!(fs::read_to_string(site.root("to").join(path)).unwrap(), content, "{method} {path}");
        }
        // Entries that other sources made in a directory changed neither its times nor its mode.
        for (path, source) in [("", "a"), ("sub", "b"), ("other", "a/other"), ("kept", "a/kept")] {
            assert_eq!(facts(&site.root("to").join(path)), facts(&site.src(source)), "{method} {path}");
        }
        let sources: Vec<_> =
            done.sources.iter().map(|s| (s.path.clone(), s.target.to_str().unwrap(), s.method)).collect();
        let expect = [("a", "/to"), ("b", "/to/sub"), ("c", "/to/other/x/y/z"), ("c2", "/to/file")];
        let used = if method == Method::Link { Method::Link } else { done.sources[0].method };
        assert_eq!(sources, expect.map(|(s, d)| (site.src(s), d, used)));
        assert_eq!(whys(&done), [("gone", "No such file or directory")]);
        remove(&site.root(""), "to");
    }
}

#[test]
fn a_skipped_source_hides_nothing_of_another_source() {
    let site = Site::new();
    site.write("a/sub/of-a", "of a");
    mkfifo(&site.src("fifo"), Mode::S_IRWXU).unwrap();
    site.write("avoid/file", "");
    let st = fs::metadata(site.src("avoid")).unwrap();
    let skip = [(st.dev(), st.ino())];
    for (i, other) in ["fifo", "avoid", "nowhere"].into_iter().enumerate() {
        let to = format!("{i}");
        let options = Options { method: Method::Copy, skip: &skip, ..Options::default() };
        let done = site.with(&[("a", &to), (other, &format!("{to}/sub"))], &options).unwrap();
        assert_eq!((done.sources.len(), done.skipped.len()), (1, 1));
        assert!(site.root(&to).join("sub/of-a").exists());
    }
}
