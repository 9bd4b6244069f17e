use std::os::unix::fs::FileExt;

use super::*;
use crate::step::Kernel;

#[test]
fn link_reflink_and_copy_make_the_same_tree() {
    let site = Site::new();
    one_of_everything(&site);
    let expect = tree(&site.src("t"));
    let sizes: u64 =
        ["dir/file", "large", "suid"].iter().map(|f| expect[Path::new(f)].content.len() as u64).sum();
    for method in WALKS {
        let to = method.to_string();
        let done = site.populate(method, &[("t", &to)]).unwrap();
        let mut made = tree(&site.root(&to));
        for facts in made.values_mut() {
            // A hard link has all attributes of the host's file.
            facts.attributes.remove("trusted.secret");
        }
        assert_same(&made, &without_secret(expect.clone()), &to);
        assert_eq!((done.linked + done.cloned + done.copied, done.disowned), (68, 0), "{method}");
        assert_eq!(done.dirs + 68 + done.symlinks, expect.len() as u64);
        assert_eq!((done.attributes_lost, done.skipped.len()), (0, 0));
        let same = |p: &str| {
            fs::metadata(site.root(&to).join(p)).unwrap().ino()
                == fs::metadata(site.src("t").join(p)).unwrap().ino()
        };
        assert_eq!(same("large"), method == Method::Link);
        if method == Method::Copy {
            assert_eq!((done.linked, done.cloned), (0, 0));
            // Holes are neither counted nor filled, however large they are.
            assert!(done.bytes_copied >= sizes && done.bytes_copied < sizes + (1 << 20));
        }
    }
    assert_eq!(mode(&site.src("t/suid")), 0o4755);
}

fn without_secret(mut all: BTreeMap<PathBuf, Facts>) -> BTreeMap<PathBuf, Facts> {
    for facts in all.values_mut() {
        facts.attributes.remove("trusted.secret");
    }
    all
}

#[test]
fn copies_keep_setuid_bits_and_capabilities_on_request_and_links_always() {
    if lacks_root() {
        return;
    }
    let site = Site::new();
    one_of_everything(&site);
    let set = |p: &str, m| fs::set_permissions(site.src(p), fs::Permissions::from_mode(m)).unwrap();
    site.write("t/sgid", "sgid");
    set("t/sgid", 0o2755);
    site.write("t/sticky-file", "sticky");
    set("t/sticky-file", 0o1644);
    let expect = without_secret(all_facts(&site.src("t")));
    for (method, setuid, keeps) in [
        (Method::Link, false, true),
        (Method::Link, true, true),
        (Method::Copy, false, false),
        (Method::Copy, true, true),
        (Method::Reflink, false, false),
        (Method::Reflink, true, true),
    ] {
        let to = format!("{method}-{setuid}");
        let done = site.with(&[("t", &to)], &Options { method, setuid, ..Options::default() }).unwrap();
        assert_eq!((done.attributes_lost, done.disowned), (0, 0), "{to}");
        let made = without_secret(all_facts(&site.root(&to)));
        if keeps {
            assert_same(&made, &expect, &to);
            continue;
        }
        for (path, bits) in [("suid", 0o755), ("sgid", 0o755), ("sticky-file", 0o644)] {
            assert_eq!(made[Path::new(path)].mode & 0o7777, bits, "{to} {path}");
        }
        assert!(made.values().all(|facts| !facts.attributes.contains_key("security.capability")), "{to}");
        assert_same(&tree(&site.root(&to)), &without_secret(tree(&site.src("t"))), &to);
    }
}

#[test]
fn a_copy_has_the_holes_and_the_data_of_its_source() {
    let site = Site::in_dir(tempdir_in("/dev/shm").unwrap());
    let page = 4096_u64;
    let file = |name: &str, size: u64, data: &[(u64, &[u8])]| {
        site.write(name, "");
        let file = File::options().write(true).open(site.src(name)).unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in data {
            file.write_all_at(bytes, *at).unwrap();
        }
    };
    file("t/hole", 1 << 30, &[]);
    file("t/end", 64 * page, &[(60 * page + 5, b"at the end")]);
    file("t/begin", 64 * page + 7, &[(0, b"at the beginning")]);
    file("t/between", 100 * page, &[(10 * page, &[1; 8192]), (50 * page, &[2; 5000]), (99 * page, b"x")]);
    for method in [Method::Copy, Method::Reflink] {
        let done = site.populate(method, &[("t", &method.to_string())]).unwrap();
        assert_eq!(done.copied, 4);
        assert!(done.bytes_copied < 16 * page, "{}", done.bytes_copied);
        for name in ["hole", "end", "begin", "between"] {
            let (from, to) = (site.src("t").join(name), site.root(&method.to_string()).join(name));
            let (a, b) = (fs::metadata(&from).unwrap(), fs::metadata(&to).unwrap());
            assert_eq!((a.len(), a.blocks()), (b.len(), b.blocks()), "{name}");
            assert!(a.len() > 1 << 29 || fs::read(from).unwrap() == fs::read(to).unwrap(), "{name}");
        }
    }
}

#[test]
fn a_kernel_file_of_size_zero_is_copied_with_its_content() {
    let site = Site::new();
    let map = ChrootEnv::from([("/proc/version".into(), "version".into())]);
    assert_eq!(fs::metadata("/proc/version").unwrap().len(), 0);
    for method in WALKS {
        let _ = fs::remove_file(site.root("version"));
        let done = fill(&site.root(""), &map, method).unwrap();
        assert_eq!((done.copied, done.sources[0].method), (1, Method::Copy));
        assert_eq!(fs::read(site.root("version")).unwrap(), fs::read("/proc/version").unwrap());
    }
}

#[test]
fn copying_a_file_that_grows_ends() {
    let site = Site::in_dir(tempdir_in("/dev/shm").unwrap());
    site.write("t/log", vec![b'x'; 20 << 20]);
    let log = std::sync::Mutex::new(File::options().append(true).open(site.src("t/log")).unwrap());
    let grow = |_: Progress| {
        std::io::Write::write_all(&mut *log.lock().unwrap(), &[b'y'; 1 << 20]).unwrap();
        ControlFlow::Continue(())
    };
    let options = Options { method: Method::Copy, progress: Some(&grow), ..Options::default() };
    let done = site.with(&[("t", "to")], &options).unwrap();
    assert_eq!(done.bytes_copied, 20 << 20);
    assert!(fs::read(site.root("to/log")).unwrap() == vec![b'x'; 20 << 20]);
    assert!(fs::metadata(site.src("t/log")).unwrap().len() > 20 << 20);
}

/// Uses btrfs on a loop device, because cloning needs support by the file system.
#[test]
fn clones_share_blocks_with_their_source() {
    if lacks_root() {
        return;
    }
    let base = tempdir_in("/dev/shm").unwrap();
    let image = base.path().join("image");
    File::create(&image).unwrap().set_len(256 << 20).unwrap();
    let made = Command::new("mkfs.btrfs").arg("-q").arg(&image).stdout(Stdio::null()).status();
    if !made.as_ref().is_ok_and(std::process::ExitStatus::success) {
        return crate::skip::note(format_args!("mkfs.btrfs: {made:?}"));
    }
    in_own_mount_ns(|| {
        let at = base.path().join("at");
        fs::create_dir(&at).unwrap();
        let mounted = Command::new("mount").args(["-o", "loop"]).args([&image, &at]).status().unwrap();
        if !mounted.success() {
            return crate::skip::note("no loop device, or no btrfs");
        }
        let site = Site::in_dir(tempdir_in(&at).unwrap());
        one_of_everything(&site);
        site.write("t/larger", vec![b'x'; 4 << 20]);
        let done = site.populate(Method::Reflink, &[("t", "to")]).unwrap();
        assert_eq!((done.cloned, done.copied, done.bytes_copied), (69, 0, 0));
        assert!(done.bytes_shared > 4 << 20);
        assert_eq!(done.sources[0].method, Method::Reflink);
        assert_same(&without_secret(tree(&site.root("to"))), &without_secret(tree(&site.src("t"))), "clones");
        // Files of another file system cannot be cloned. Each pair of devices is tried once.
        let elsewhere = Site::in_dir(tempdir_in("/dev/shm").unwrap());
        elsewhere.write("t/file", "content");
        let map = elsewhere.map(&[("t", "from-elsewhere")]);
        let done = fill(&site.root(""), &map, Method::Reflink).unwrap();
        assert_eq!((done.cloned, done.copied, done.sources[0].method), (0, 1, Method::Copy));
        drop(site);
        unmount(&at);
    });
}

#[test]
fn the_umask_has_no_effect_and_does_not_change() {
    let site = Site::new();
    one_of_everything(&site);
    on_thread(|| {
        unshare(CloneFlags::CLONE_FS).unwrap();
        umask(Mode::from_bits_truncate(0o222));
        site.populate(Method::Copy, &[("t", "/a/writes")]).unwrap();
        umask(Mode::from_bits_truncate(0o777));
        site.populate(Method::Link, &[("t", "/a/link")]).unwrap();
        site.populate(Method::Copy, &[("t", "/a/copy")]).unwrap();
        let temp = TempRoot::create(&Kernel::real(), site.dir.path(), "umask").unwrap().unwrap();
        assert_eq!(nix::sys::stat::fstat(temp.fd()).unwrap().st_mode & 0o7777, 0o755);
        assert_eq!(umask(Mode::empty()).bits(), 0o777);
    });
    assert_eq!(mode(&site.root("a")), 0o755);
    let expect = without_secret(tree(&site.src("t")));
    assert_same(&without_secret(tree(&site.root("a/link"))), &expect, "link");
    assert_same(&without_secret(tree(&site.root("a/writes"))), &expect, "copy, no bit to write");
    assert_same(&without_secret(tree(&site.root("a/copy"))), &expect, "copy");
}

#[test]
fn real_directories_of_the_host_are_made_alike_by_every_method() {
    if lacks_root() {
        return;
    }
    let site = Site::new();
    let map = |to: &str| ChrootEnv::from([("/etc".into(), to.into())]);
    let link = fill(&site.root(""), &map("link"), Method::Link).unwrap();
    let copy = fill(&site.root(""), &map("copy"), Method::Copy).unwrap();
    assert_same(&tree(&site.root("link")), &tree(&site.root("copy")), "link and copy");
    assert_same(&tree(&site.root("link")), &tree(Path::new("/etc")), "/etc");
    assert_eq!(link.linked + link.copied, copy.copied);
}

#[test]
fn files_that_cannot_be_linked_are_copied() {
    let site = Site::new();
    one_of_everything(&site);
    let Some(elsewhere) = Site::elsewhere() else { return };
    let map = ChrootEnv::from([(site.src("t"), "to".into())]);
    let done = fill(elsewhere.path(), &map, Method::Link).unwrap();
    assert_eq!((done.linked, done.copied, done.sources[0].method), (0, 68, Method::Copy));
    assert_same(
        &without_secret(tree(&elsewhere.path().join("to"))),
        &without_secret(tree(&site.src("t"))),
        "copies",
    );
    remove(elsewhere.path(), "to");
}

#[test]
fn parents_get_the_metadata_of_the_sources_parents() {
    let site = Site::new();
    site.write("p/q/t/file", "");
    fs::set_permissions(site.src("p/q"), fs::Permissions::from_mode(0o760)).unwrap();
    fs::set_permissions(site.src("p"), fs::Permissions::from_mode(0o1777)).unwrap();
    let done = site.populate(Method::Link, &[("p/q/t", "/x/p/q/t"), ("p/q/t/file", "y/file")]).unwrap();
    assert_eq!(mode(&site.root("x")), 0o755);
    assert_eq!(mode(&site.root("x/p")), 0o1777);
    assert_eq!(mode(&site.root("x/p/q")), 0o760);
    assert_eq!(mode(&site.root("y")), 0o755);
    assert_eq!((done.dirs, done.linked), (5, 2));
}

#[test]
fn deep_and_wide_trees_need_bounded_stack_and_descriptors() {
    let site = Site::in_dir(tempdir_in("/dev/shm").unwrap());
    crate::rootfs::teardown::tests::deep(&site.src(""), 1200, 3);
    let done = site.populate(Method::Link, &[("", "to")]).unwrap();
    assert_eq!((done.dirs, done.linked), (1 + 3 * 1200, 1));
}
