#![allow(clippy::arithmetic_side_effects)]

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, mknod, umask};
use nix::unistd::{Uid, geteuid, mkfifo, setfsuid};
use tempfile::{TempDir, tempdir, tempdir_in};

use super::*;

/// Says so when a test cannot run; a failure where `COFFERDAM_MUST_HAVE` lists `root`.
pub(crate) fn lacks_root() -> bool {
    let lacks = !geteuid().is_root();
    if lacks {
        let must = std::env::var("COFFERDAM_MUST_HAVE").unwrap_or_default();
        assert!(!must.split(',').any(|have| have == "root"), "must not be skipped: needs root");
        eprintln!("skipped: needs root");
    }
    lacks
}

/// Runs `f` on a thread of its own, with a mount table of its own.
pub(crate) fn in_own_mount_ns(f: impl FnOnce() + Send) {
    on_thread(|| {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        f();
    });
}

fn on_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|s| s.spawn(f).join().unwrap())
}

/// A directory of the host's and a root, side by side.
struct Site {
    dir: TempDir,
}

impl Site {
    fn new() -> Site {
        Site::in_dir(tempdir().unwrap())
    }

    fn in_dir(dir: TempDir) -> Site {
        fs::create_dir(dir.path().join("src")).unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        Site { dir }
    }

    /// What is to be filled is on another file system than the source; `None` if there is none.
    fn elsewhere() -> Option<TempDir> {
        let dir = tempdir_in("/dev/shm").unwrap();
        let here = fs::metadata(std::env::temp_dir()).unwrap().dev();
        let other = fs::metadata(dir.path()).unwrap().dev() != here;
        if !other {
            eprintln!("skipped: /dev/shm is the file system of the temporary directory");
        }
        other.then_some(dir)
    }

    fn src(&self, path: &str) -> PathBuf {
        self.dir.path().join("src").join(path)
    }

    fn root(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path)
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        fs::create_dir_all(self.src(path).parent().unwrap()).unwrap();
        fs::write(self.src(path), content).unwrap();
    }

    fn populate(&self, method: Method, map: &[(&str, &str)]) -> Result<Populated> {
        let map = map.iter().map(|(s, d)| (self.src(s), PathBuf::from(d))).collect();
        fill(&self.root(""), &map, method)
    }
}

/// As who is not root, the standard library cannot remove directories that are not writable.
impl Drop for Site {
    fn drop(&mut self) {
        remove(self.dir.path(), "src");
        remove(self.dir.path(), "root");
    }
}

fn remove(dir: &Path, name: &str) {
    crate::rootfs::teardown::remove_tree(File::open(dir).unwrap().as_fd(), name.as_ref()).unwrap();
}

fn fill(root: &Path, map: &ChrootEnv, method: Method) -> Result<Populated> {
    populate(File::open(root).unwrap().as_fd(), map, &Options { method, ..Options::default() })
}

fn whys(done: &Populated) -> Vec<(&str, &str)> {
    let name = |s: &Skipped| s.path.file_name().unwrap().to_str().unwrap().to_owned();
    done.skipped.iter().map(|s| (&*name(s).leak(), s.why.as_str())).collect()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// Everything about the entries of a tree that must not depend on the method: type and mode (a file's
/// permission bits), owner, a file's time and content, a link's text.
fn tree(top: &Path) -> BTreeMap<PathBuf, (u32, u32, u32, i64, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut todo = vec![top.to_owned()];
    while let Some(path) = todo.pop() {
        let st = fs::symlink_metadata(&path).unwrap();
        let (mut time, mut mode) = (0, st.mode());
        let content = if st.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            Vec::new()
        } else if st.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            time = st.mtime() * 1_000_000_000 + st.mtime_nsec();
            mode &= !0o7000;
            fs::read(&path).unwrap()
        };
        let key = path.strip_prefix(top).unwrap().to_owned();
        all.insert(key, (mode, st.uid(), st.gid(), time, content));
    }
    all
}

/// A tree with one of everything that is brought along.
fn one_of_everything(site: &Site) {
    use std::ffi::OsStr;
    site.write("t/dir/file", "content");
    site.write("t/dir/deeper/still/file", "more");
    site.write("t/empty-file", "");
    site.write("t/large", vec![7; 700_000]);
    site.write("t/suid", "suid");
    site.write("t/private/closed", "closed");
    fs::create_dir(site.src("t/empty-dir")).unwrap();
    fs::create_dir(site.src("t/sticky")).unwrap();
    fs::create_dir(site.src("t/setgid")).unwrap();
    File::create(site.src("t/holes")).unwrap().set_len(1 << 20).unwrap();
    fs::write(site.src("t").join(OsStr::from_bytes(b"no\xffutf8\n")), "odd").unwrap();
    symlink("dir/file", site.src("t/relative")).unwrap();
    symlink("/etc/passwd", site.src("t/absolute")).unwrap();
    symlink("../../nowhere", site.src("t/dangling")).unwrap();
    for i in 0..60 {
        site.write(&format!("t/many/{}/{}/f", i % 8, i), format!("{i}"));
    }
    let old = std::time::SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    File::open(site.src("t/dir/file")).unwrap().set_modified(old).unwrap();
    if geteuid().is_root() {
        std::os::unix::fs::chown(site.src("t/dir/deeper"), Some(1234), Some(4321)).unwrap();
        std::os::unix::fs::chown(site.src("t/suid"), Some(1234), Some(4321)).unwrap();
        std::os::unix::fs::lchown(site.src("t/relative"), Some(1234), Some(4321)).unwrap();
    }
    let set = |p: &str, m| fs::set_permissions(site.src(p), fs::Permissions::from_mode(m)).unwrap();
    set("t/suid", 0o4755);
    set("t/private/closed", 0o400);
    set("t/sticky", 0o1777);
    set("t/setgid", 0o2775);
    set("t/private", 0o500);
}

#[test]
fn link_and_copy_give_the_same_tree() {
    let site = Site::new();
    one_of_everything(&site);
    let expect = tree(&site.src("t"));
    let link = site.populate(Method::Link, &[("t", "/link")]).unwrap();
    let copy = site.populate(Method::Copy, &[("t", "/copy")]).unwrap();
    assert_eq!(tree(&site.root("link")), expect);
    assert_eq!(tree(&site.root("copy")), expect);
    assert_eq!((link.linked, link.copied, link.disowned), (68, 0, 0));
    assert_eq!((copy.linked, copy.copied, copy.disowned), (0, 68, 0));
    assert_eq!((link.dirs, link.symlinks), (copy.dirs, copy.symlinks));
    assert_eq!(link.dirs + link.linked + link.symlinks, expect.len() as u64);
    assert_eq!(
        copy.bytes_copied,
        expect.values().filter(|e| e.3 != 0).map(|e| e.4.len() as u64).sum::<u64>()
    );
    assert!(link.skipped.is_empty() && copy.skipped.is_empty());
    let ino = |p: PathBuf| fs::metadata(p).unwrap().ino();
    assert_eq!(ino(site.root("link/large")), ino(site.src("t/large")));
    assert_ne!(ino(site.root("copy/large")), ino(site.src("t/large")));
    assert_eq!(mode(&site.root("copy/suid")), 0o755);
    assert_eq!(mode(&site.root("link/suid")), 0o4755);
    assert_eq!(mode(&site.src("t/suid")), 0o4755);
}

#[test]
fn the_umask_neither_matters_nor_changes() {
    let site = Site::new();
    one_of_everything(&site);
    on_thread(|| {
        unshare(CloneFlags::CLONE_FS).unwrap();
        umask(Mode::from_bits_truncate(0o777));
        site.populate(Method::Link, &[("t", "/a/link")]).unwrap();
        site.populate(Method::Copy, &[("t", "/a/copy")]).unwrap();
        let temp = TempRoot::create(site.dir.path(), "umask").unwrap();
        assert_eq!(nix::sys::stat::fstat(temp.fd()).unwrap().st_mode & 0o7777, 0o755);
        assert_eq!(umask(Mode::empty()).bits(), 0o777);
    });
    assert_eq!(mode(&site.root("a")), 0o755);
    assert_eq!(tree(&site.root("a/link")), tree(&site.src("t")));
    assert_eq!(tree(&site.root("a/copy")), tree(&site.src("t")));
}

#[test]
fn real_directories_of_the_host_come_out_alike() {
    if lacks_root() {
        return;
    }
    let site = Site::new();
    let map = |to: &str| ChrootEnv::from([("/etc".into(), to.into())]);
    let link = fill(&site.root(""), &map("link"), Method::Link).unwrap();
    let copy = fill(&site.root(""), &map("copy"), Method::Copy).unwrap();
    assert_eq!(tree(&site.root("link")), tree(&site.root("copy")));
    assert_eq!(tree(&site.root("link")), tree(Path::new("/etc")));
    assert_eq!(link.linked + link.copied, copy.copied);
}

#[test]
fn what_is_no_file_is_skipped_and_listed() {
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
        // The map may name one, and nothing waits for its other end.
        let done = site.populate(method, &[("t/fifo", "f"), ("t/socket", "s")]).unwrap();
        assert_eq!(whys(&done), [("fifo", "a fifo"), ("socket", "a socket")]);
        assert!(!site.root("f").exists());
    }
    assert!(fs::symlink_metadata(site.src("t/fifo")).unwrap().file_type().is_fifo());
}

#[test]
fn what_is_not_there_is_skipped_and_listed() {
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
fn a_source_that_is_a_link_stands_for_its_target() {
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
fn the_root_is_left_out_of_its_own_source() {
    let site = Site::new();
    site.write("a/file", "");
    site.write("avoid/file", "");
    fs::create_dir_all(site.src("b/root/old")).unwrap();
    fs::create_dir(site.src("inside")).unwrap();
    let root = File::open(site.src("b/root")).unwrap();
    let avoid = fs::metadata(site.src("avoid")).unwrap();
    // Spelled with a trailing slash, through a link, from above.
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
        let out: Vec<_> =
            whys(&done).into_iter().filter(|(_, why)| *why == "is the root, or was to be left out").collect();
        assert_eq!(out.iter().map(|o| o.0).collect::<Vec<_>>(), ["avoid", "root"]);
        let made = site.src("b/root/to").join(i.to_string()).join(if i == 2 { "src" } else { "" });
        assert!(made.join("a/file").exists() && made.join("b").exists() && made.join("inside").exists());
        assert!(!made.join("b/root").exists() && !made.join("avoid").exists());
    }
    // A source that is in the root does not grow into itself.
    let map = ChrootEnv::from([(site.src("b/root/old"), "old/again".into())]);
    let done = populate(root.as_fd(), &map, &Options { method: Method::Copy, ..Options::default() }).unwrap();
    assert_eq!(whys(&done), [("again", "is the root, or was to be left out")]);
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
fn links_in_the_root_lead_nowhere_outside() {
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
        assert_eq!(whys(&done), [("sub", "the root has something there that is no directory")]);
        assert_eq!(done.kept, 3);
        // On the way to a destination a link is followed, as the task would see it.
        let _ = fs::remove_file(site.root("up"));
        let _ = fs::remove_file(site.root("in"));
        symlink("../../../../../../..", site.root("up")).unwrap();
        symlink("/l", site.root("in")).unwrap();
        site.populate(method, &[("t", &format!("up/x{to}")), ("t/name", &format!("in/{to}"))]).unwrap();
        assert!(site.root(&format!("x{to}/name")).is_file());
        assert!(site.root("l").join(to).is_file());
        // One that dangles inside is neither created through nor replaced.
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
fn what_is_there_stays_and_the_first_source_wins() {
    let site = Site::new();
    site.write("1/file", "first");
    site.write("1/both", "first");
    site.write("2/both", "second");
    site.write("2/sub/file", "second");
    fs::create_dir(site.root("d")).unwrap();
    fs::write(site.root("d/file"), "before").unwrap();
    fs::set_permissions(site.root("d"), fs::Permissions::from_mode(0o711)).unwrap();
    for method in [Method::Link, Method::Copy] {
        let done = site.populate(method, &[("1", "d"), ("2", "d"), ("2/both", "d/file")]).unwrap();
        assert!(done.kept >= 4, "{done:?}");
        let read = |p: &str| fs::read_to_string(site.root(p)).unwrap();
        assert_eq!((&*read("d/file"), &*read("d/both"), &*read("d/sub/file")), ("before", "first", "second"));
        assert_eq!(mode(&site.root("d")), 0o711);
    }
}

#[test]
fn files_that_cannot_be_linked_are_copied() {
    let site = Site::new();
    one_of_everything(&site);
    let Some(elsewhere) = Site::elsewhere() else { return };
    let map = ChrootEnv::from([(site.src("t"), "to".into())]);
    let done = fill(elsewhere.path(), &map, Method::Link).unwrap();
    assert_eq!((done.linked, done.copied), (0, 68));
    assert_eq!(tree(&elsewhere.path().join("to")), tree(&site.src("t")));
    remove(elsewhere.path(), "to");
}

#[test]
fn parents_are_like_those_of_the_source() {
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
            // Who may not give files away says so.
            let done = site.populate(method, &[("v", &format!("c{method}"))]).unwrap();
            assert_eq!((done.dirs, done.copied + done.linked), (1, 1));
            assert_eq!(done.disowned, 1 + done.copied);
        }
    });
}

#[test]
fn a_full_file_system_ends_it_without_half_a_file() {
    if lacks_root() {
        return;
    }
    let site = Site::new();
    site.write("t/a/large", vec![7; 1 << 20]);
    in_own_mount_ns(|| {
        mount(Some("tmpfs"), &site.root(""), Some("tmpfs"), MsFlags::empty(), Some("size=128k")).unwrap();
        let error = site.populate(Method::Link, &[("t", "to")]).unwrap_err();
        let expect = format!("copy_file_range({:?}, ROOT \"/to/a/large\")", site.src("t/a/large"));
        assert_eq!(error.to_string(), expect);
        assert_eq!(fs::read_dir(site.root("to/a")).unwrap().count(), 0);
        nix::mount::umount(&site.root("")).unwrap();
    });
}

#[test]
fn mounts_are_entered_but_for_the_kernels_own() {
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
        assert_eq!(whys(&done), [("proc", "is on a file system of the kernel's own")]);
        assert_eq!((done.linked, done.copied), (0, 1));
        let done =
            fill(&site.root(""), &ChrootEnv::from([("/proc".into(), "p".into())]), Method::Copy).unwrap();
        assert_eq!(done.skipped.len(), 1);
        for dir in ["t/tmp", "t/proc"] {
            nix::mount::umount(&site.src(dir)).unwrap();
        }
    });
}

#[test]
fn depth_and_width_cost_neither_stack_nor_descriptors() {
    let site = Site::in_dir(tempdir_in("/dev/shm").unwrap());
    crate::rootfs::teardown::tests::deep(&site.src(""), 1200, 3);
    let done = site.populate(Method::Link, &[("", "to")]).unwrap();
    assert_eq!((done.dirs, done.linked), (1 + 3 * 1200, 1));
}

/// The copying process is this test again, told so by its environment, and killed a little later each time.
#[test]
fn who_is_killed_leaves_no_truncated_file() {
    const TOLD: &str = "COFFERDAM_TEST_POPULATE_IN";
    if let Some(dir) = std::env::var_os(TOLD).map(PathBuf::from) {
        let map = ChrootEnv::from([(dir.join("src"), "to".into())]);
        fill(&dir.join("root"), &map, Method::Copy).unwrap();
        return;
    }
    let dir = tempdir_in("/dev/shm").unwrap();
    let (src, root) = (dir.path().join("src"), dir.path().join("root"));
    fs::create_dir(&src).unwrap();
    for i in 0..32_u8 {
        fs::create_dir(src.join(i.to_string())).unwrap();
        fs::write(src.join(i.to_string()).join("file"), vec![i; 1 << 20]).unwrap();
    }
    let mut halfway = 0;
    for round in 0..30 {
        fs::create_dir(&root).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "rootfs::populate::tests::who_is_killed_leaves_no_truncated_file"])
            .env(TOLD, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while !root.join("to").exists() && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_micros(50));
        }
        std::thread::sleep(Duration::from_micros(300 * round));
        let _ = child.kill();
        child.wait().unwrap();
        let mut complete = 0;
        for i in 0..32_u8 {
            let Ok(dir) = fs::read_dir(root.join("to").join(i.to_string())) else { continue };
            for entry in dir.map(|e| e.unwrap()) {
                if entry.file_name() == "file" {
                    assert!(fs::read(entry.path()).unwrap() == vec![i; 1 << 20], "{entry:?} is truncated");
                    complete += 1;
                } else {
                    assert!(entry.file_name().as_bytes().starts_with(b".cofferdam."), "{entry:?}");
                }
            }
        }
        halfway += u32::from(complete > 0 && complete < 32);
        remove(dir.path(), "root");
    }
    eprintln!("{halfway} of 30 rounds were killed halfway");
}

#[test]
fn maps_are_checked_before_anything_is_touched() {
    let site = Site::new();
    site.write("a", "");
    let check = |source: PathBuf, dest: &str| {
        let map = ChrootEnv::from([(site.src("a"), "/a".into()), (source, dest.into())]);
        match fill(&site.root(""), &map, Method::Link).unwrap_err() {
            Error::Spec { field: "chroot_env", message } => message,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(check("etc".into(), "/etc"), r#""etc" -> "/etc": the source is not absolute"#);
    assert_eq!(check("/etc".into(), "/../etc"), r#""/etc" -> "/../etc": a path has a .."#);
    assert_eq!(check("/a/../etc".into(), "etc"), r#""/a/../etc" -> "etc": a path has a .."#);
    assert!(check("/a\0b".into(), "etc").ends_with("a path has a NUL"));
    assert_eq!(fs::read_dir(site.root("")).unwrap().count(), 0);
    validate(&default_chroot_env()).unwrap();
    assert_eq!(default_chroot_env().len(), 9);
}

#[test]
fn methods_are_read_and_printed_alike() {
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
fn bind_and_none_write_nothing() {
    let site = Site::new();
    site.write("a", "");
    for method in [Method::Bind, Method::None] {
        let done = site.populate(method, &[("a", "b")]).unwrap();
        assert_eq!(Populated { elapsed: Duration::ZERO, ..done }, Populated::default());
    }
    assert_eq!(fs::read_dir(site.root("")).unwrap().count(), 0);
}

#[test]
fn a_summary_can_be_serialised_whatever_the_names() {
    let mut done = Populated::default();
    done.skip(PathBuf::from(std::ffi::OsStr::from_bytes(b"/a\xff")), "a fifo");
    let json = serde_json::to_value(&done).unwrap();
    assert_eq!(json["skipped"][0]["path"], "/a\u{fffd}");
}
