//! Shared by the tests that attack: counted attempts, raw system calls, and fingerprints of the files under attack.
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

/// A system call by number, so that the kernel answers and not a libc wrapper.
#[macro_export]
macro_rules! call {
    ($number:expr $(, $argument:expr)* $(,)?) => {
        $crate::attack_tools::system_call($number, &[$($crate::attack_tools::Word::from($argument).0),*])
    };
}

/// An argument of a system call: a number, or a pointer to a value that outlives the call.
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
    // SAFETY: each argument is a number, or a pointer to a value that outlives the call, because `call!` takes
    // references.
    Errno::result(unsafe { libc::syscall(number, a(0), a(1), a(2), a(3), a(4), a(5)) })
}

/// The users that tasks run as. Both have the 13 default capabilities.
pub const USERS: [&str; 2] = ["root", "nobody"];

/// Inside: counts the attempts, and keeps the names of those that succeeded.
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
    /// Counts as an attempt that succeeded if `is` is true.
    pub fn never(&mut self, what: impl Display, is: bool) {
        self.attempt(what, if is { Ok(()) } else { Err(Errno::EPERM) });
    }
    pub fn tell(self, say: &mut Say) {
        say.fact("tried", self.tried);
        say.fact("won", self.won.join(", "));
    }
}

/// Asserts that no attempt succeeded, and that at least `least` were made.
#[track_caller]
pub fn beaten(seen: &Seen, least: u32) {
    assert_eq!(seen.get("won"), "", "of {} attacks", seen.get("tried"));
    assert!(seen.get("tried").parse::<u32>().unwrap() >= least, "only {}", seen.get("tried"));
}

/// `path` as a NUL-terminated string.
pub fn z(path: impl AsRef<Path>) -> std::ffi::CString {
    std::ffi::CString::new(path.as_ref().as_os_str().as_bytes()).unwrap()
}

/// `mount(2)`. An empty string is passed as a null pointer.
pub fn mount(source: &str, target: &str, fs: &str, flags: u64, data: &str) -> nix::Result<()> {
    let [source, target, fs, data] = [source, target, fs, data].map(z);
    let or_null = |text: &std::ffi::CString| if text.is_empty() { std::ptr::null() } else { text.as_ptr() };
    call!(libc::SYS_mount, or_null(&source), target.as_ptr(), or_null(&fs), flags, or_null(&data)).map(drop)
}

/// Runs `child` in a forked process and returns its result, 0 to 255; 255 if the process died.
pub fn forked(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: called inside a probe, whose other threads hold nothing that the child needs. The child ends by _exit.
    match unsafe { libc::fork() } {
        0 => {
            let code = child();
            // SAFETY: _exit(2) takes a number.
            unsafe { libc::_exit(code) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: `status` outlives the call.
            unsafe { libc::waitpid(pid, &mut status, 0) };
            if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 255 }
        }
    }
}

/// Describes everything below `dir`: names, content, mode, owner, modification time and extended attributes. Access and
/// change times are left out, because populating a root changes them.
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

/// A directory of the host that must not change. Any user may write it, so that only the enclosure protects it.
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

/// The shared libraries of this test binary, as a map that lets the binary run in a linked or copied root.
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

/// Adds the host's libraries as volumes, for a root that is used as it is.
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

/// A temporary directory that any user may write.
pub fn open_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    dir
}

/// This host as if its kernel had no Landlock, for tests of what Landlock prevents.
pub fn without_landlock() -> cofferdam::Host {
    let mut host = cofferdam::Host::probe().unwrap();
    host.landlock_abi = 0;
    host
}

/// Whether this process is root of the initial user namespace, with the privileges to create namespaces.
pub fn privileged() -> bool {
    cofferdam::Host::probe().unwrap().privileged()
}
