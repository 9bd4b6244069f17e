//! What the tests that attack share: attempts that are counted, raw calls, and fingerprints of what the
//! attacks are after.
#![allow(dead_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt::Display;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cofferdam::{ChrootEnv, Sandbox, Volume};
use nix::errno::Errno;

use crate::common::{Say, Seen};

/// A system call by number: what the attack wants is the kernel's answer, not a wrapper's.
#[macro_export]
macro_rules! call {
    ($number:expr $(, $argument:expr)* $(,)?) => {
        $crate::attack_tools::system_call($number, &[$($crate::attack_tools::Word::from($argument).0),*])
    };
}

/// An argument of a system call: a number, or a pointer to what outlives the call.
pub struct Word(pub libc::c_long);

macro_rules! word {
    ($($t:ty),*) => {$(
        impl From<$t> for Word {
            fn from(number: $t) -> Word {
                Word(number as libc::c_long)
            }
        }
    )*};
}
word!(i32, u32, i64, u64, usize, bool);

impl<T> From<*const T> for Word {
    fn from(pointer: *const T) -> Word {
        Word(pointer as libc::c_long)
    }
}

impl<T> From<*mut T> for Word {
    fn from(pointer: *mut T) -> Word {
        Word(pointer as libc::c_long)
    }
}

impl<T> From<&T> for Word {
    fn from(value: &T) -> Word {
        Word(std::ptr::from_ref(value) as libc::c_long)
    }
}

pub fn system_call(number: libc::c_long, arguments: &[libc::c_long]) -> nix::Result<libc::c_long> {
    let a = |i: usize| arguments.get(i).copied().unwrap_or(0);
    // SAFETY: the arguments are numbers, or pointers to values that outlive the call: `call!` takes references.
    Errno::result(unsafe { libc::syscall(number, a(0), a(1), a(2), a(3), a(4), a(5)) })
}

/// Whom the tasks run as: the caller's root, if it is that, and nobody. Both have the 13 default capabilities.
pub const USERS: [&str; 2] = ["root", "nobody"];

/// Inside: counts what was tried and keeps what succeeded.
#[derive(Default)]
pub struct Attack {
    tried: u32,
    won: Vec<String>,
}

impl Attack {
    pub fn attempt<T>(&mut self, what: impl Display, result: nix::Result<T>) {
        self.tried += 1;
        if result.is_ok() {
            self.won.push(what.to_string());
        }
    }
    pub fn attempt_io<T>(&mut self, what: impl Display, result: std::io::Result<T>) {
        self.attempt(what, result.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))));
    }
    /// What must not be so.
    pub fn never(&mut self, what: impl Display, is: bool) {
        self.attempt(what, if is { Ok(()) } else { Err(Errno::EPERM) });
    }
    pub fn tell(self, say: &mut Say) {
        say.fact("tried", self.tried);
        say.fact("won", self.won.join(", "));
    }
}

/// Nothing succeeded, and at least so much was tried.
#[track_caller]
pub fn beaten(seen: &Seen, least: u32) {
    assert_eq!(seen.get("won"), "", "of {} attacks", seen.get("tried"));
    assert!(seen.get("tried").parse::<u32>().unwrap() >= least, "only {}", seen.get("tried"));
}

/// `path` as the kernel wants it.
pub fn z(path: impl AsRef<Path>) -> std::ffi::CString {
    std::ffi::CString::new(path.as_ref().as_os_str().as_bytes()).unwrap()
}

/// `mount(2)`; empty strings are null.
pub fn mount(source: &str, target: &str, fs: &str, flags: u64, data: &str) -> nix::Result<()> {
    let [source, target, fs, data] = [source, target, fs, data].map(z);
    let or_null = |text: &std::ffi::CString| if text.is_empty() { std::ptr::null() } else { text.as_ptr() };
    call!(libc::SYS_mount, or_null(&source), target.as_ptr(), or_null(&fs), flags, or_null(&data)).map(drop)
}

/// Runs `child` in a forked process and gives what it returns, 0 to 255; 255 when it died.
pub fn forked(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: inside a probe, which runs one thread of interest; the child ends by _exit.
    match unsafe { libc::fork() } {
        0 => {
            let code = child();
            // SAFETY: a number.
            unsafe { libc::_exit(code) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: status outlives the call.
            unsafe { libc::waitpid(pid, &mut status, 0) };
            if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 255 }
        }
    }
}

/// All but times of access and change, which population itself moves: content, mode, owner, time of
/// modification, extended attributes and names of everything below `dir`.
pub fn fingerprint(dir: &Path) -> String {
    let mut lines = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(path) = todo.pop() {
        let m = fs::symlink_metadata(&path).unwrap();
        let content = match m.file_type() {
            t if t.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
            t if t.is_file() => fs::read_to_string(&path).unwrap(),
            _ => String::new(),
        };
        let mut names = [0u8; 256];
        let xattrs = call!(libc::SYS_llistxattr, z(&path).as_ptr(), names.as_mut_ptr(), names.len());
        let (mode, mtime) = (m.mode(), (m.mtime(), m.mtime_nsec()));
        lines.push(format!("{path:?} {mode:o} {}:{} {mtime:?} {xattrs:?} {content}", m.uid(), m.gid()));
        if m.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    lines.sort();
    lines.join("\n")
}

/// A directory of the host that nothing may change: open to everybody, so that only the enclosure protects it.
pub struct Canary {
    pub dir: tempfile::TempDir,
    before: String,
}

impl Canary {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("canary-").tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["b", "b/vol", "sub"] {
            fs::create_dir(at(name)).unwrap();
        }
        for name in ["file", "sub/file", "null", "kcore"] {
            fs::write(at(name), "alive").unwrap();
        }
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        for name in ["", "b", "b/vol", "sub"] {
            fs::set_permissions(at(name), fs::Permissions::from_mode(0o777)).unwrap();
        }
        for name in ["file", "sub/file"] {
            fs::set_permissions(at(name), fs::Permissions::from_mode(0o666)).unwrap();
        }
        let before = fingerprint(dir.path());
        Canary { dir, before }
    }
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
    #[track_caller]
    pub fn alive(&self) {
        assert_eq!(fingerprint(self.dir.path()), self.before);
    }
}

/// The shared libraries of this test binary, as a map that lets it run in a root that was linked or copied.
pub fn libraries() -> ChrootEnv {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = maps.lines().filter_map(|l| l.split_whitespace().nth(5)).filter(|p| p.contains(".so"));
    let mut env = ChrootEnv::new();
    for path in mapped {
        env.insert(path.into(), path.into());
        if let Some(short) = path.strip_prefix("/usr").filter(|short| Path::new(short).exists()) {
            env.insert(short.into(), short.into());
        }
    }
    if Path::new("/lib64").exists() {
        env.insert("/lib64".into(), "/lib64".into());
    }
    env
}

/// The host's libraries as volumes, for roots that are used as they are.
pub fn with_libraries(sandbox: Sandbox) -> Sandbox {
    ["/usr", "/lib", "/lib64"]
        .into_iter()
        .filter(|p| Path::new(p).exists())
        .fold(sandbox, |sandbox, path| sandbox.volume(read_only(path, path)))
}

pub fn read_only(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Volume {
    Volume { source: source.into(), target: target.into(), read_only: true, ..Volume::default() }
}

pub fn writable(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Volume {
    Volume { read_only: false, ..read_only(source, target) }
}

/// A temporary directory that everybody may write.
pub fn open_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    dir
}

/// This host as if its kernel had no Landlock: the protection off.
pub fn without_landlock() -> cofferdam::Host {
    let mut host = cofferdam::Host::probe().unwrap();
    host.landlock_abi = 0;
    host
}

/// Whether this process is the host's root, with what making namespaces needs.
pub fn privileged() -> bool {
    cofferdam::Host::probe().unwrap().privileged()
}
