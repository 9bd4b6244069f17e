#![allow(clippy::arithmetic_side_effects)]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;

use nix::fcntl::{OFlag, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, mkdirat};

use super::*;
use crate::rootfs::populate::tests::{in_own_mount_ns, lacks_root};

fn remove(dir: &Path, name: &str) -> Result<(), Leftovers> {
    remove_tree(fs::File::open(dir).unwrap().as_fd(), OsStr::new(name))
}

/// Makes directories inside each other, `width` at each level, deeper than PATH_MAX and recursion allow.
pub(crate) fn deep(dir: &Path, depth: usize, width: usize) {
    let mut fd = OwnedFd::from(fs::File::open(dir).unwrap());
    for _ in 0..depth {
        for i in 0..width {
            mkdirat(&fd, format!("directory-{i}").as_str(), Mode::S_IRWXU).unwrap();
        }
        fd = openat(&fd, "directory-0", OFlag::O_RDONLY, Mode::empty()).unwrap();
    }
    openat(&fd, "leaf", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRWXU).unwrap();
}

#[test]
fn a_tree_is_removed_and_its_symlinks_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("a/b/c")).unwrap();
    fs::create_dir(dir.path().join("outside")).unwrap();
    fs::write(dir.path().join("outside/canary"), "alive").unwrap();
    symlink("../outside", tree.join("out")).unwrap();
    symlink(dir.path().join("outside"), tree.join("a/b/out")).unwrap();
    for i in 0..3000 {
        fs::write(tree.join(format!("a/file-{i}")), "").unwrap();
    }
    remove(dir.path(), "tree").unwrap();
    assert!(!tree.exists());
    assert_eq!(fs::read_to_string(dir.path().join("outside/canary")).unwrap(), "alive");
    remove(dir.path(), "tree").unwrap();
}

#[test]
fn a_name_that_is_not_a_directory_is_unlinked() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("outside")).unwrap();
    symlink("outside", dir.path().join("link")).unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    remove(dir.path(), "link").unwrap();
    remove(dir.path(), "file").unwrap();
    assert!(dir.path().join("outside").is_dir());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn only_a_single_name_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["", ".", "..", "a/b", "/", "nul\0"] {
        let left = remove(dir.path(), name).unwrap_err();
        assert_eq!(left.0, [Left::stays(PathBuf::from(name), Errno::EINVAL)]);
    }
    assert!(dir.path().exists());
}

#[test]
fn a_deep_tree_needs_bounded_stack_and_descriptors() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    deep(&dir.path().join("tree"), 5000, 2);
    let small = std::thread::Builder::new().stack_size(64 * 1024);
    let path = dir.path().to_owned();
    small.spawn(move || remove(&path, "tree").unwrap()).unwrap().join().unwrap();
    assert!(!dir.path().join("tree").exists());
}

/// The paths that stayed, sorted. Panics unless all have the same errno.
fn all(left: Result<(), Leftovers>, errno: Errno) -> Vec<PathBuf> {
    let left = left.unwrap_err();
    assert!(left.iter().all(|(_, e)| e.raw_os_error() == Some(errno as i32)), "{left}");
    let mut paths: Vec<PathBuf> = left.iter().map(|(path, _)| path.into()).collect();
    paths.sort();
    paths
}

fn bind(from: &Path, to: &Path) {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

fn unbind(at: &Path) {
    umount2(at, MntFlags::UMOUNT_NOFOLLOW).unwrap();
}

/// A tree, and beside it a directory with canaries.
struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    /// The name of the directory contains characters that the mount table escapes.
    fn new() -> Site {
        let dir = tempfile::Builder::new().prefix("a \\040\tb").tempdir_in("/dev/shm").unwrap();
        let site = Site { dir };
        for d in ["tree/a/b/mnt", "tree/a/x/y", "tree/a/b/z", "tree/c/d", "tree-2/m", "outside/deep/er"] {
            fs::create_dir_all(site.at(d)).unwrap();
        }
        for f in ["outside/canary", "outside/deep/er/canary", "tree/a/b/file", "tree/c/plain"] {
            fs::write(site.at(f), "alive").unwrap();
        }
        site
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn remove(&self) -> Result<(), Leftovers> {
        remove(self.dir.path(), "tree")
    }

    fn entries(&self) -> usize {
        fn count(dir: &Path) -> usize {
            let below = fs::read_dir(dir).unwrap().map(|e| e.unwrap());
            below.map(|e| 1 + if e.file_type().unwrap().is_dir() { count(&e.path()) } else { 0 }).sum()
        }
        count(&self.at("tree"))
    }

    fn alive(&self) {
        for canary in ["outside/canary", "outside/deep/er/canary"] {
            assert_eq!(fs::read_to_string(self.at(canary)).unwrap(), "alive");
        }
    }
}

#[test]
fn nothing_is_removed_while_anything_is_mounted_in_the_tree() {
    if lacks_root() {
        return;
    }
    let site = Site::new();
    let before = site.entries();
    in_own_mount_ns(|| {
        // A directory whose name only begins like the tree is not part of it.
        bind(&site.at("outside"), &site.at("tree-2/m"));
        bind(&site.at("outside"), &site.at("tree/a/b/mnt"));
        bind(&site.at("outside"), &site.at("tree/a/b/mnt/deep"));
        bind(&site.at("outside/canary"), &site.at("tree/a/b/file"));
        bind(&site.at("outside"), &site.at("tree/c/d"));
        bind(&site.at("outside"), &site.at("tree/c/d"));
        let left = ["tree/a/b/file", "tree/a/b/mnt", "tree/c/d"].map(PathBuf::from);
        assert_eq!(all(site.remove(), Errno::EBUSY), left);
        assert!(site.at("tree/a/x/y").is_dir() && site.at("tree/c/plain").exists());
        assert_eq!(fs::read_to_string(site.at("tree/a/b/mnt/deep/deep/er/canary")).unwrap(), "alive");
        // A mount on the top of the tree.
        bind(&site.at("outside"), &site.at("tree"));
        assert_eq!(all(site.remove(), Errno::EBUSY), [PathBuf::from("tree")]);
        for at in ["tree", "tree/a/b/mnt/deep", "tree/a/b/mnt", "tree/a/b/file", "tree/c/d", "tree/c/d"] {
            unbind(&site.at(at));
        }
        assert_eq!(site.entries(), before);
        site.remove().unwrap();
        site.alive();
        assert!(!site.at("tree").exists());
        unbind(&site.at("tree-2/m"));
    });
}

/// A directory of the tree is busy although no mount point begins with its path.
#[test]
fn a_mount_seen_through_another_mount_is_found() {
    if lacks_root() {
        return;
    }
    let site = Site::new();
    let before = site.entries();
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    in_own_mount_ns(|| {
        let way = other.path().join("way");
        fs::create_dir(&way).unwrap();
        bind(&site.at("tree/a"), &way);
        bind(&site.at("outside"), &way.join("b/mnt"));
        assert_eq!(all(site.remove(), Errno::EBUSY), [way.join("b/mnt")]);
        assert_eq!(site.entries(), before);
        unbind(&way.join("b/mnt"));
        // A part of the tree that is mounted elsewhere does not prevent its removal.
        site.remove().unwrap();
        unbind(&way);
    });
    site.alive();
}

#[test]
fn a_mount_that_comes_after_the_proof_is_not_entered() {
    if lacks_root() {
        return;
    }
    let site = Site::new();
    in_own_mount_ns(|| {
        bind(&site.at("outside"), &site.at("tree/a/b/mnt"));
        bind(&site.at("outside/canary"), &site.at("tree/a/b/file"));
        let dir = fs::File::open(site.dir.path()).unwrap();
        let left = ["tree/a/b/file", "tree/a/b/mnt"].map(PathBuf::from);
        assert_eq!(all(remove_unproven(dir.as_fd(), c"tree"), Errno::EBUSY), left);
        site.alive();
        assert!(
            !site.at("tree/c").exists() && !site.at("tree/a/x").exists() && !site.at("tree/a/b/z").exists()
        );
        bind(&site.at("outside"), &site.at("tree"));
        assert_eq!(all(remove_unproven(dir.as_fd(), c"tree"), Errno::EBUSY), [PathBuf::from("tree")]);
        for at in ["tree", "tree/a/b/mnt", "tree/a/b/file"] {
            unbind(&site.at(at));
        }
        site.remove().unwrap();
        site.alive();
    });
}

/// The mount table of another namespace does not show what is mounted in the parent.
#[test]
fn nothing_is_removed_if_the_parent_is_in_another_mount_namespace() {
    if lacks_root() {
        return;
    }
    let site = Site::new();
    let before = site.entries();
    let dir = fs::File::open(site.dir.path()).unwrap();
    let table = [PathBuf::from("/proc/thread-self/mountinfo")];
    in_own_mount_ns(|| {
        // The parent's mount is in the other namespace, even though the path leads to a copy of it.
        assert_eq!(all(remove_tree(dir.as_fd(), OsStr::new("tree")), Errno::EXDEV), table);
        // A name that does not exist needs no proof.
        remove_tree(dir.as_fd(), OsStr::new("nothing")).unwrap();
    });
    assert_eq!(site.entries(), before);
    remove_tree(dir.as_fd(), OsStr::new("tree")).unwrap();
}

/// After `chroot(2)` to a directory that is not a mount point, the table lists the mounts on it but not the root
/// itself.
#[test]
fn after_chroot_mounts_are_found_and_trees_outside_are_refused() {
    if lacks_root() {
        return;
    }
    let (inside, outside) = (Site::new(), Site::new());
    in_own_mount_ns(|| {
        let far = fs::File::open(outside.dir.path()).unwrap();
        fs::create_dir(inside.at("proc")).unwrap();
        let none = None::<&str>;
        mount(Some("proc"), &inside.at("proc"), Some("proc"), MsFlags::empty(), none).unwrap();
        let (before, elsewhere) = (inside.entries(), outside.entries());
        bind(&inside.at("outside"), &inside.at("tree/a/b/mnt"));
        bind(&outside.at("outside"), &outside.at("tree/a/b/mnt"));
        std::os::unix::fs::chroot(inside.dir.path()).unwrap();
        let tree = Path::new("/");
        assert_eq!(all(remove(tree, "tree"), Errno::EBUSY), [PathBuf::from("tree/a/b/mnt")]);
        // The kernel shows a path of the directory outside, but inside the new root that path leads elsewhere.
        let table = [PathBuf::from("/proc/thread-self/mountinfo")];
        assert_eq!(all(remove_tree(far.as_fd(), OsStr::new("tree")), Errno::EXDEV), table);
        unbind(Path::new("/tree/a/b/mnt"));
        let count = |at: &Path| fs::read_dir(at).unwrap().count();
        assert!(before > 0 && elsewhere > 0 && count(Path::new("/tree")) == 2);
        remove(tree, "tree").unwrap();
        unbind(Path::new("/proc"));
    });
    inside.alive();
    outside.alive();
    assert!(!inside.at("tree").exists() && outside.at("tree/c/plain").exists());
}

#[test]
fn many_threads_can_remove_the_same_tree_at_once() {
    for round in 0..20 {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let tree = dir.path().join("tree");
        for i in 0..40 {
            let below = tree.join(format!("{}/{i}/x/y", i % 7));
            fs::create_dir_all(&below).unwrap();
            for f in 0..20 {
                fs::write(below.join(f.to_string()), "").unwrap();
            }
        }
        if round % 4 == 0 {
            deep(&tree, 100, 2);
        }
        std::thread::scope(|s| {
            let removals: Vec<_> = (0..3).map(|_| s.spawn(|| remove(dir.path(), "tree"))).collect();
            for removal in removals {
                removal.join().unwrap().unwrap();
            }
        });
        assert!(!tree.exists());
    }
}

#[test]
fn a_wide_directory_is_removed() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let fd = OwnedFd::from(fs::File::open(&tree).unwrap());
    let width = if std::env::var_os("COFFERDAM_EMULATED").is_some() { 20_000 } else { 200_000_u32 };
    for i in 0..width {
        match i % 4 {
            0 => mkdirat(&fd, format!("directory-{i}").as_str(), Mode::S_IRWXU).unwrap(),
            _ => nix::unistd::symlinkat("nowhere", &fd, format!("link-{i}").as_str()).unwrap(),
        }
    }
    drop(fd);
    remove(dir.path(), "tree").unwrap();
    assert!(!tree.exists());
}

/// Runs in a process of its own, because the limit is per process. Ten descriptors are enough for one thread. The
/// number of descriptors of all threads together is bounded.
#[test]
fn a_tree_is_removed_under_a_low_descriptor_limit() {
    const ASKED: &str = "COFFERDAM_TEARDOWN_DIR";
    if let Some(dir) = std::env::var_os(ASKED) {
        let fast = std::env::var_os("COFFERDAM_TEARDOWN_THREADS").is_some();
        let parent = fs::File::open(&dir).unwrap();
        assert!(!fast || threads::remove(parent.as_fd(), c"tree", geteuid().as_raw()));
        return remove(Path::new(&dir), "tree").unwrap();
    }
    for (limit, fast) in [("10", None), ("340", Some("COFFERDAM_TEARDOWN_THREADS"))] {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let tree = dir.path().join("tree");
        for i in 0..100 {
            fs::create_dir_all(tree.join(format!("{}/{i}/x/y/z", i % 3))).unwrap();
        }
        deep(&tree, 800, 2);
        let test = "rootfs::teardown::tests::a_tree_is_removed_under_a_low_descriptor_limit";
        let run = std::process::Command::new("sh")
            .args(["-c", "ulimit -n $2 && exec \"$0\" --exact \"$1\""])
            .args([std::env::current_exe().unwrap().as_os_str(), OsStr::new(test), OsStr::new(limit)])
            .env(ASKED, dir.path())
            .envs(fast.map(|name| (name, "1")))
            .output()
            .unwrap();
        assert!(run.status.success(), "{limit}: {}", String::from_utf8_lossy(&run.stdout));
        assert!(!tree.exists());
    }
}

#[test]
fn the_error_names_at_most_64_paths_and_counts_the_rest() {
    let one = |p: &str, errno| Left::stays(p.into(), errno);
    let left =
        Leftovers(vec![one("t/a", Errno::EBUSY), one("t/b", Errno::EACCES), one("/m/c", Errno::EBUSY)]);
    assert_eq!(
        left.to_string(),
        "\"t/a\": Device or resource busy; \"t/b\": Permission denied; \"/m/c\": Device or resource busy"
    );
    let error = left.into_error(Path::new("/base"));
    assert_eq!(
        error.to_string(),
        "unlinkat(\"/base/t/a\"), unlinkat(\"/base/t/b\") = EACCES, unlinkat(\"/m/c\")"
    );
    let many = Leftovers((0..70).map(|i| one(&format!("t/{i}"), Errno::EPERM)).collect());
    let error = many.into_error(Path::new("/base")).to_string();
    assert!(
        error.starts_with("unlinkat(\"/base/t/0\"), ") && error.ends_with("t/63\") and 6 more"),
        "{error}"
    );
}
