#![allow(clippy::arithmetic_side_effects)]

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use nix::fcntl::AT_FDCWD;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, umask, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Uid, geteuid, mkfifo, setfsuid};
use tempfile::{TempDir, tempdir, tempdir_in};

use super::*;
use crate::sys::fs::{fgetxattr, flistxattr, fsetxattr};

mod alike;
mod killed;
mod left_out;
mod overlap;
mod refused;
mod told;
mod twins;

const WALKS: [Method; 3] = [Method::Link, Method::Reflink, Method::Copy];

/// Whether the caller is not root; reports the skipped test. Fails where `COFFERDAM_MUST_HAVE` lists `root`.
pub(crate) fn lacks_root() -> bool {
    let lacks = !geteuid().is_root();
    if lacks {
        crate::skip::skip(&["root"], "the caller is not");
    }
    lacks
}

/// Runs `f` on a thread with its own mount namespace.
pub(crate) fn in_own_mount_ns(f: impl FnOnce() + Send) {
    on_thread(|| {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        f();
    });
}

/// Detaches a mount. A plain unmount may fail with EBUSY, because a child that another test has just forked holds
/// copies of all descriptors.
fn unmount(path: &Path) {
    nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

fn on_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|s| s.spawn(f).join().unwrap())
}

/// A source directory of the host and a root, side by side.
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

    /// A directory on another file system than the source. `None` if there is no such file system.
    fn elsewhere() -> Option<TempDir> {
        let dir = tempdir_in("/dev/shm").unwrap();
        let here = fs::metadata(std::env::temp_dir()).unwrap().dev();
        let other = fs::metadata(dir.path()).unwrap().dev() != here;
        if !other {
            crate::skip::note("/dev/shm is the file system of the temporary directory");
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

    fn map(&self, map: &[(&str, &str)]) -> ChrootEnv {
        map.iter().map(|(s, d)| (self.src(s), PathBuf::from(d))).collect()
    }

    fn populate(&self, method: Method, map: &[(&str, &str)]) -> Result<Populated> {
        fill(&self.root(""), &self.map(map), method)
    }

    fn with(&self, map: &[(&str, &str)], options: &Options<'_>) -> Result<Populated> {
        populate(File::open(self.root("")).unwrap().as_fd(), &self.map(map), options)
    }
}

/// Removes the directories by `remove_tree`: without root, the standard library cannot remove directories that are not
/// writable.
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

/// Everything that is compared of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    /// Type and permissions, all twelve bits.
    mode: u32,
    ids: (u32, u32),
    /// Modification time in nanoseconds.
    time: i64,
    /// Content of a file, or text of a symbolic link.
    content: Vec<u8>,
    attributes: BTreeMap<String, Vec<u8>>,
}

fn facts(path: &Path) -> Facts {
    let st = fs::symlink_metadata(path).unwrap();
    let content = match () {
        () if st.is_dir() => Vec::new(),
        () if st.is_symlink() => fs::read_link(path).unwrap().into_os_string().into_encoded_bytes(),
        () => {
            let mut content = Vec::with_capacity(usize::try_from(st.len()).unwrap());
            File::open(path).unwrap().read_to_end(&mut content).unwrap();
            content
        }
    };
    let attributes = if st.is_symlink() { BTreeMap::new() } else { attributes(path) };
    let time = st.mtime() * 1_000_000_000 + st.mtime_nsec();
    Facts { mode: st.mode(), ids: (st.uid(), st.gid()), time, content, attributes }
}

fn attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let fd = File::open(path).unwrap();
    let (mut names, mut value) = ([0; 256], [0; 4096]);
    let n = flistxattr(fd.as_fd(), &mut names).unwrap_or(0);
    let names = names[..n].split_inclusive(|b| *b == 0);
    names
        .map(|name| {
            let name = std::ffi::CStr::from_bytes_with_nul(name).unwrap();
            let n = fgetxattr(fd.as_fd(), name, &mut value).unwrap();
            (name.to_str().unwrap().into(), value[..n].into())
        })
        .collect()
}

/// Panics with the first difference unless the two trees are the same.
fn assert_same(made: &BTreeMap<PathBuf, Facts>, expect: &BTreeMap<PathBuf, Facts>, what: &str) {
    for path in made.keys().chain(expect.keys()) {
        let (a, b) = (made.get(path), expect.get(path));
        let short = |facts: Option<&Facts>| {
            let facts = facts.cloned();
            facts.map(|f| Facts { content: f.content.into_iter().take(40).collect(), ..f })
        };
        assert!(a == b, "{what}: {path:?}\n is        {:?}\n should be {:?}", short(a), short(b));
    }
}

fn all_facts(top: &Path) -> BTreeMap<PathBuf, Facts> {
    all_by(top, facts)
}

fn all_by(top: &Path, facts: impl Fn(&Path) -> Facts) -> BTreeMap<PathBuf, Facts> {
    let (mut all, mut todo) = (BTreeMap::new(), vec![top.to_owned()]);
    while let Some(path) = todo.pop() {
        let facts = facts(&path);
        if SFlag::from_bits_truncate(facts.mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        all.insert(path.strip_prefix(top).unwrap().to_owned(), facts);
    }
    all
}

/// Facts that do not depend on the method without further options: a copied file has neither the upper three bits of
/// its mode nor its capabilities.
fn tree(top: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut all = all_facts(top);
    for facts in all.values_mut() {
        if facts.mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits() {
            facts.mode &= !0o7000;
            facts.attributes.remove("security.capability");
        }
    }
    all
}

/// Sets an extended attribute. Prints a message if the file system refuses it.
fn set_attribute(path: &Path, name: &std::ffi::CStr, value: &[u8]) {
    if let Err(errno) = fsetxattr(File::open(path).unwrap().as_fd(), name, value) {
        eprintln!("without {name:?} on {path:?}: {errno}");
    }
}

/// An access control list in the kernel's format: one additional user, and a mask.
fn access_list(user: u32, mask: u16) -> Vec<u8> {
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1_u16, 7_u16, u32::MAX), (2, 7, user), (4, 5, u32::MAX), (16, mask, u32::MAX), (32, 4, u32::MAX)]
    {
        list.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        list.extend(id.to_le_bytes());
    }
    list
}

/// `cap_net_raw=ep` in the kernel's format.
fn capability() -> Vec<u8> {
    [0x0200_0001_u32, 1 << 13, 0, 0, 0].map(u32::to_le_bytes).concat()
}

/// A tree with one of each kind of entry and metadata that is copied.
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
    set_attribute(&site.src("t/dir/file"), c"user.note", b"of a file");
    set_attribute(&site.src("t/dir"), c"user.note", b"of a directory");
    set_attribute(&site.src("t/empty-file"), c"user.long", &[b'x'; 2000]);
    set_attribute(&site.src("t/large"), c"system.posix_acl_access", &access_list(1234, 6));
    set_attribute(&site.src("t/empty-dir"), c"system.posix_acl_access", &access_list(1234, 7));
    set_attribute(&site.src("t/empty-dir"), c"system.posix_acl_default", &access_list(1234, 5));
    if geteuid().is_root() {
        set_attribute(&site.src("t/dir/deeper/still/file"), c"security.capability", &capability());
        set_attribute(&site.src("t/dir/deeper/still/file"), c"trusted.secret", b"");
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
    for dir in ["t", "t/dir", "t/many"] {
        File::open(site.src(dir)).unwrap().set_modified(old).unwrap();
    }
    let long_ago = TimeSpec::new(1_000_000_000, 5);
    let nofollow = UtimensatFlags::NoFollowSymlink;
    utimensat(AT_FDCWD, &site.src("t/dangling"), &long_ago, &long_ago, nofollow).unwrap();
}
