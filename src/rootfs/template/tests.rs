use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use super::*;

/// A source with a few files, and a path for a directory of templates. It is in /dev/shm if that exists, because
/// filling a template writes its file system to disk (`syncfs(2)`).
struct Site(tempfile::TempDir);

impl Site {
    fn new() -> Site {
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.into() } else { std::env::temp_dir() };
        let site = Site(tempfile::TempDir::with_prefix_in("cofferdam-template-", base).unwrap());
        fs::create_dir_all(site.src("lib/deep")).unwrap();
        for i in 0..30 {
            fs::write(site.src(&format!("lib/deep/file-{i}")), format!("content {i}")).unwrap();
        }
        fs::write(site.src("lib/one"), "one").unwrap();
        symlink("one", site.src("lib/link")).unwrap();
        site
    }

    fn src(&self, path: &str) -> PathBuf {
        self.0.path().join("src").join(path)
    }

    fn dir(&self) -> PathBuf {
        self.0.path().join("templates")
    }

    fn map(&self) -> ChrootEnv {
        [(self.src("lib"), "/usr/lib".into())].into()
    }

    fn open(&self) -> Template {
        Template::open(&self.dir(), &self.map(), &copy()).unwrap()
    }

    /// Names in the directory of templates, without the lock files and `newest` links, which stay.
    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> =
            names.filter(|n| !n.starts_with("lock-") && !n.starts_with("newest-")).collect();
        names.sort();
        names
    }
}

fn copy() -> Options<'static> {
    Options { method: Method::Copy, ..Options::default() }
}

/// Panics unless the template has everything that the source of a new [`Site`] contains.
fn complete(template: &Template) {
    let lib = template.path().join("usr/lib");
    assert_eq!(fs::read_dir(lib.join("deep")).unwrap().count(), 30);
    for i in 0..30 {
        let content = fs::read_to_string(lib.join(format!("deep/file-{i}"))).unwrap();
        assert_eq!(content, format!("content {i}"));
    }
    assert_eq!(fs::read_to_string(lib.join("link")).unwrap(), "one");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn of_many_threads_that_open_a_template_one_fills_it() {
    let site = Site::new();
    let (start, built) = (Barrier::new(100), AtomicUsize::new(0));
    let mut all: Vec<Template> = std::thread::scope(|s| {
        let open = || {
            start.wait();
            let template = site.open();
            complete(&template);
            built.fetch_add(usize::from(template.built().is_some()), Ordering::Relaxed);
            template
        };
        let threads: Vec<_> = (0..100).map(|_| s.spawn(open)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(built.into_inner(), 1);
    let paths: BTreeSet<_> = all.iter().map(|t| t.path().to_owned()).collect();
    assert_eq!(paths.len(), 1);
    assert_eq!(site.names().len(), 1);
    let last = all.pop().unwrap();
    drop(all);
    assert_eq!((mode(&site.dir()), mode(last.path())), (0o700, 0o755));
    last.remove().unwrap();
    assert!(site.names().is_empty());
}

/// A fork in another thread copies every descriptor into a child, which keeps them until it executes a program.
#[test]
fn a_forked_child_with_a_copy_of_its_descriptor_does_not_keep_a_template_locked() {
    let site = Site::new();
    let (dropped, kept) = (site.open(), site.open());
    let copy = dropped.held.as_fd().try_clone_to_owned().unwrap();
    drop(dropped);
    kept.remove().unwrap();
    drop(copy);
    assert!(site.names().is_empty());
}

#[test]
fn of_many_processes_that_open_a_template_one_fills_it() {
    const SITE: &str = "COFFERDAM_TEST_TEMPLATE_SITE";
    const NAME: &str = "rootfs::template::tests::of_many_processes_that_open_a_template_one_fills_it";
    if let Some(base) = std::env::var_os(SITE) {
        let base = PathBuf::from(base);
        let map = [(base.join("src/lib"), "/usr/lib".into())].into();
        let template = Template::open(&base.join("templates"), &map, &copy()).unwrap();
        complete(&template);
        println!("it was {}", if template.built().is_some() { "filled" } else { "there" });
        return;
    }
    let site = Site::new();
    let child = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(SITE, site.0.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = (0..8).map(|_| child()).collect();
    let said: Vec<String> = children
        .into_iter()
        .map(|c| {
            let out = c.wait_with_output().unwrap();
            assert!(out.status.success());
            String::from_utf8(out.stdout).unwrap()
        })
        .collect();
    let count = |what: &str| said.iter().filter(|s| s.contains(what)).count();
    assert_eq!((count("it was filled"), count("it was there")), (1, 7));
    assert_eq!(site.names().len(), 1);
}

#[test]
fn stale_partial_templates_are_removed_and_a_complete_template_is_used() {
    let site = Site::new();
    let key = key(&site.map(), &copy());
    let left = [format!("partial-{key:016x}"), format!("removed-{key:016x}-{:016x}", 77)];
    // Belongs to another key and must stay.
    let other = format!("partial-{:016x}", key ^ 1);
    fs::create_dir(site.dir()).unwrap();
    fs::set_permissions(site.dir(), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("nowhere", site.dir().join(format!("newest-{key:016x}.new"))).unwrap();
    for name in left.iter().chain([&other]) {
        fs::create_dir_all(site.dir().join(name).join("usr/lib/deep")).unwrap();
        fs::write(site.dir().join(name).join("usr/lib/deep/file-1"), "cut o").unwrap();
        fs::write(site.dir().join(name).join("usr/lib/stale"), "").unwrap();
    }
    let template = site.open();
    complete(&template);
    assert!(template.built().is_some() && !template.path().join("usr/lib/stale").exists());
    assert_eq!(site.names(), [other, store::name(key, template.fingerprint())]);
    // An existing template is used even if no `newest` link points to it.
    fs::remove_file(site.dir().join(format!("newest-{key:016x}"))).unwrap();
    let again = site.open();
    assert!(again.built().is_none());
    assert_eq!((again.path(), again.fingerprint()), (template.path(), template.fingerprint()));
}

#[test]
fn a_failed_open_leaves_only_the_lock_file() {
    let site = Site::new();
    let map = ChrootEnv::from([(site.src("lib/one"), "/".into()), (site.src("lib/deep"), "/deep".into())]);
    let key = key(&map, &copy());
    Template::open(&site.dir(), &map, &copy()).unwrap_err();
    assert!(site.names().is_empty());
    assert!(site.dir().join(format!("lock-{key:016x}")).exists());
}

#[test]
fn a_template_is_refreshed_only_if_its_sources_have_changed() {
    type Act = fn(&Site);
    let cases: [(&str, bool, Act); 7] = [
        ("nothing", false, |_| {}),
        ("read", false, |s| drop(fs::read(s.src("lib/deep/file-3")).unwrap())),
        ("edit", true, |s| fs::write(s.src("lib/deep/file-3"), "other words").unwrap()),
        ("touch", true, |s| {
            let file = fs::File::options().append(true).open(s.src("lib/deep/file-4")).unwrap();
            file.set_modified(SystemTime::now() + Duration::from_secs(7)).unwrap();
        }),
        ("add", true, |s| fs::write(s.src("lib/deep/more"), "").unwrap()),
        ("remove", true, |s| fs::remove_file(s.src("lib/deep/file-5")).unwrap()),
        ("mode", true, |s| fs::set_permissions(s.src("lib/one"), fs::Permissions::from_mode(0o600)).unwrap()),
    ];
    for method in [Method::Copy, Method::Link] {
        for (name, changes, act) in cases {
            let site = Site::new();
            let options = Options { method, ..Options::default() };
            let old = Template::open(&site.dir(), &site.map(), &options).unwrap();
            act(&site);
            assert_eq!(old.changed().unwrap(), changes, "{method}, {name}");
            let new = old.refresh().unwrap();
            assert_eq!(new.is_some(), changes, "{method}, {name}");
            let Some(new) = new else { continue };
            assert!(!new.changed().unwrap() && new.built().is_some());
            assert!(old.path() != new.path() && old.path().join("usr/lib/one").exists());
            // `refresh` and `open` return the new template from now on.
            assert!(old.refresh().unwrap().is_some_and(|t| t.path() == new.path() && t.built().is_none()));
            assert_eq!(Template::open(&site.dir(), &site.map(), &options).unwrap().path(), new.path());
        }
    }
}

#[test]
fn sources_that_change_back_select_the_old_template() {
    let site = Site::new();
    let touch = |time| {
        fs::File::options().append(true).open(site.src("lib/one")).unwrap().set_modified(time).unwrap();
    };
    let was = fs::metadata(site.src("lib/one")).unwrap().modified().unwrap();
    let one = site.open();
    touch(was + Duration::from_secs(7));
    let two = one.refresh().unwrap().unwrap();
    assert_eq!(site.open().path(), two.path());
    touch(was);
    let three = two.refresh().unwrap().unwrap();
    assert!(three.built().is_none() && !one.changed().unwrap());
    assert_eq!(three.path(), one.path());
    assert_eq!(site.open().path(), one.path());
    assert_eq!(site.names().len(), 2);
}

#[test]
fn a_locked_template_is_not_removed() {
    let site = Site::new();
    let (first, second) = (site.open(), site.open());
    let path = first.path().to_owned();
    let Err(Error::Task { step, source }) = first.remove() else { panic!("it was removed") };
    assert_eq!(step, format!("flock({path:?}, LOCK_EX|LOCK_NB)"));
    assert_eq!(source.raw_os_error(), Some(libc::EWOULDBLOCK));
    complete(&second);
    fs::write(site.src("lib/one"), "1").unwrap();
    let newer = second.refresh().unwrap().unwrap();
    second.remove().unwrap();
    assert_eq!(site.names(), [newer.path().file_name().unwrap().to_str().unwrap()]);
    newer.remove().unwrap();
    assert!(site.names().is_empty());
}

#[test]
fn no_process_gets_an_unfinished_template() {
    let site = Site::new();
    std::thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| {
                for _ in 0..25 {
                    let template = site.open();
                    complete(&template);
                    match template.remove() {
                        Ok(()) => {}
                        Err(Error::Task { source, .. }) => {
                            assert_eq!(source.raw_os_error(), Some(libc::EWOULDBLOCK));
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
            });
        }
    });
    assert!(site.names().iter().all(|n| n.starts_with("template-")), "{:?}", site.names());
    site.open().remove().unwrap();
    assert!(site.names().is_empty());
}

#[test]
fn a_template_directory_below_a_source_is_left_empty() {
    let site = Site::new();
    let dir = site.src("lib/templates");
    let template = Template::open(&dir, &site.map(), &copy()).unwrap();
    complete(&template);
    let below = template.path().join("usr/lib/templates");
    assert!(fs::read_dir(below).map_or(0, Iterator::count) == 0);
    let another = Template::open(&dir, &site.map(), &Options { setuid: true, ..copy() }).unwrap();
    assert_ne!(another.path(), template.path());
    assert!(!template.changed().unwrap());
}

#[test]
fn the_key_depends_on_the_request_but_not_on_its_limits() {
    let map = |to: &str| ChrootEnv::from([("/a".into(), to.into())]);
    let skip = [(1, 2)];
    let of = |to: &str, options: Options<'_>| key(&map(to), &options);
    let base = of("b", copy());
    let others = [
        of("c", copy()),
        of("b", Options { method: Method::Link, ..copy() }),
        of("b", Options { setuid: true, ..copy() }),
        of("b", Options { skip: &skip, ..copy() }),
        key(&ChrootEnv::from([("/ab".into(), "".into())]), &copy()),
    ];
    let all: BTreeSet<u64> = others.into_iter().chain([base]).collect();
    assert_eq!(all.len(), 6);
    assert_eq!(of("b", Options { max_bytes: Some(1), max_entries: Some(1), ..copy() }), base);
    // Names on disk outlive the program, so the hash must not change.
    assert_eq!(format!("{base:016x}"), "b1b7f05f23827df1");
}

#[test]
fn a_template_directory_that_other_users_may_access_is_refused() {
    let site = Site::new();
    let refused = |dir: &Path, method, part: &str| {
        let options = Options { method, ..Options::default() };
        let error = Template::open(dir, &site.map(), &options).unwrap_err();
        assert!(matches!(error, Error::Spec { .. }), "{error:?}");
        assert!(error.to_string().contains(part), "{error}");
    };
    refused(Path::new("relative"), Method::Copy, "absolute");
    refused(&site.dir(), Method::Bind, "not by bind");
    refused(&site.dir(), Method::Auto, "not by auto");
    assert!(!site.dir().exists());
    for mode in [0o777, 0o1777, 0o770, 0o702, 0o755, 0o750] {
        let dir = site.0.path().join(format!("open-{mode:o}"));
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
        refused(&dir, Method::Copy, "other users can access");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    }
    let nowhere = site.0.path().join("no/where");
    let error = Template::open(&nowhere, &site.map(), &copy()).unwrap_err();
    assert_eq!(error.to_string(), format!("mkdir({nowhere:?})"));
}

#[test]
fn symlinks_at_the_top_stay_inside_the_template() {
    let site = Site::new();
    let links = [
        ("plain", "lib/deep", Some("lib/deep")),
        ("twin", "lib/deep", Some("lib/deep")),
        ("from-root", "/lib/deep", Some("lib/deep")),
        ("over-another", "from-root/file-1", Some("lib/deep/file-1")),
        ("climbing", "../../../../../lib/./one", Some("lib/one")),
        ("to-the-root", "/", None),
        ("dangling", "nowhere", None),
        ("of-the-host", "/proc/self", None),
        ("climbs-to-the-host", "../../../../../../../../proc/self", None),
    ];
    for (name, text, _) in links {
        symlink(text, site.src(name)).unwrap();
    }
    let map = ChrootEnv::from([(site.src(""), "/".into())]);
    let template = Template::open(&site.dir(), &map, &copy()).unwrap();
    let root = template.root(Method::Bind);
    assert_eq!(root.populate, Method::Bind);
    for (name, _, meant) in links {
        let source = template.path().join(name);
        let target = root.chroot_env.get(&source);
        assert_eq!(target, meant.map(|_| Path::new("/").join(name)).as_ref(), "{name}");
        if let Some(meant) = meant {
            assert_eq!(fs::canonicalize(&source).unwrap(), template.path().join(meant), "{name}");
        }
    }
    assert_eq!(root.chroot_env.get(&template.path().join("lib")), Some(&PathBuf::from("/lib")));
    assert_eq!(root.chroot_env.len(), 6);
}

#[test]
fn a_sandbox_runs_in_a_template() {
    let site = Site::new();
    let names = [
        "/bin/true",
        "/lib64",
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    ];
    let map = names.into_iter().map(|p| (p.into(), p.into())).collect();
    let template = Template::open(&site.dir(), &map, &copy()).unwrap();
    let policy = crate::Policy { temp_dir: Some(site.0.path().into()), ..crate::Policy::default() };
    for method in [Method::Bind, Method::Link, Method::Copy] {
        let root = template.root(method);
        match crate::Sandbox::command("true").policy(&policy).root(root).spawn() {
            Ok(task) => assert!(task.wait().unwrap().success(), "{method}"),
            Err(error) if nix::unistd::geteuid().is_root() => panic!("{method}: {error}"),
            Err(error) => crate::skip::note(format_args!("{error}")),
        }
    }
    assert!(!template.changed().unwrap());
}

/// A root with an empty map would be populated with the host's default map.
#[test]
fn a_template_without_any_existing_source_is_refused() {
    let site = Site::new();
    let map = ChrootEnv::from([(site.src("no/such"), "/usr".into())]);
    let error = Template::open(&site.dir(), &map, &copy()).unwrap_err();
    assert!(matches!(error, Error::Spec { field: "chroot_env", .. }), "{error:?}");
    assert!(site.names().is_empty(), "{:?}", site.names());
}
