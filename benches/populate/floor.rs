//! The floor: the least work that gives the same result. Raw calls by directory descriptor, no allocation per file, no
//! checks, and a panic on any error.
//!
//! Directories are jobs in a queue that all threads share, last in, first out. A job holds its parent open, and its
//! directory is opened only when the job runs. The number of open descriptors therefore follows the depth of the tree,
//! not its width.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

const DIR: i32 = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;

/// Number of processors, at most 4.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(4))
}

fn ok(result: i32, call: &str, name: &CStr) -> i32 {
    assert!(result >= 0, "{call}({name:?}): {}", io::Error::last_os_error());
    result
}

fn cstring(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn open(dir: RawFd, name: &CStr, flags: i32) -> OwnedFd {
    // SAFETY: the name is NUL-terminated. The kernel returned the descriptor just now, so nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(ok(libc::openat(dir, name.as_ptr(), flags), "openat", name)) }
}

fn mkdir(dir: RawFd, name: &CStr) {
    // SAFETY: the name is NUL-terminated and only read.
    ok(unsafe { libc::mkdirat(dir, name.as_ptr(), 0o755) }, "mkdirat", name);
}

/// A buffer for getdents64(2), aligned as `struct linux_dirent64` requires.
type Buffer = Vec<u64>;

fn entries(dir: RawFd, buffer: &mut Buffer, mut each: impl FnMut(&CStr, u8)) {
    loop {
        // SAFETY: the kernel writes at most the length of the buffer.
        let n = unsafe {
            libc::syscall(libc::SYS_getdents64, dir, buffer.as_mut_ptr(), std::mem::size_of_val(&buffer[..]))
        };
        let end = usize::try_from(n).unwrap_or_else(|_| panic!("getdents64: {}", io::Error::last_os_error()));
        if end == 0 {
            return;
        }
        let mut at = 0;
        while at < end {
            // SAFETY: the kernel wrote consecutive records: inode (8 bytes), offset (8), length (2), type (1), and a
            // NUL-terminated name.
            let (kind, name) = unsafe {
                let record = buffer.as_ptr().cast::<u8>().add(at);
                at += usize::from(record.add(16).cast::<u16>().read());
                (record.add(18).read(), CStr::from_ptr(record.add(19).cast()))
            };
            if !matches!(name.to_bytes(), b"." | b"..") {
                each(name, kind);
            }
        }
    }
}

/// Pending jobs, and the number of jobs in progress.
struct Queue<J> {
    state: Mutex<(Vec<J>, usize)>,
    wake: Condvar,
}

impl<J: Send> Queue<J> {
    /// Runs until no job is left. `work` gets a job and a list for the jobs that follow from it.
    fn run(threads: usize, first: J, work: impl Fn(J, &mut Buffer, &mut Vec<J>) + Sync) {
        let queue = Queue { state: Mutex::new((vec![first], 0)), wake: Condvar::new() };
        std::thread::scope(|s| {
            for _ in 1..threads {
                s.spawn(|| queue.worker(&work));
            }
            queue.worker(&work);
        });
    }

    fn worker(&self, work: &(impl Fn(J, &mut Buffer, &mut Vec<J>) + Sync)) {
        let (mut buffer, mut more) = (vec![0; 8 * 1024], Vec::new());
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(job) = state.0.pop() {
                state.1 += 1;
                drop(state);
                work(job, &mut buffer, &mut more);
                state = self.state.lock().unwrap();
                state.1 -= 1;
                let wake = more.len() > 1 || state.0.is_empty() && state.1 == 0;
                state.0.append(&mut more);
                if wake {
                    self.wake.notify_all();
                }
            } else if state.1 == 0 {
                return;
            } else {
                state = self.wake.wait(state).unwrap();
            }
        }
    }
}

/// A source and destination directory, and the name of the subdirectory to process in them; without a name, the pair
/// itself.
struct Job {
    pair: Arc<(OwnedFd, OwnedFd)>,
    name: Option<CString>,
}

/// Replicates `from` at `to`: directories by mkdirat(2), everything else by `place`.
fn walk(threads: usize, from: &Path, to: &Path, place: impl Fn(RawFd, RawFd, &CStr, u8) + Sync) {
    let (from, to) = (cstring(from), cstring(to));
    mkdir(libc::AT_FDCWD, &to);
    let top = (open(libc::AT_FDCWD, &from, DIR), open(libc::AT_FDCWD, &to, DIR));
    Queue::run(threads, Job { pair: Arc::new(top), name: None }, |job, buffer, more| {
        let pair = match &job.name {
            None => job.pair,
            Some(name) => {
                let (from, to) = (job.pair.0.as_raw_fd(), job.pair.1.as_raw_fd());
                mkdir(to, name);
                Arc::new((open(from, name, DIR), open(to, name, DIR | libc::O_PATH)))
            }
        };
        let (from, to) = (pair.0.as_raw_fd(), pair.1.as_raw_fd());
        entries(from, buffer, |name, kind| match kind {
            libc::DT_DIR => more.push(Job { pair: Arc::clone(&pair), name: Some(name.to_owned()) }),
            kind => place(from, to, name, kind),
        });
    });
}

/// Links a tree: getdents64, mkdirat and linkat. Entries on another file system are left out.
pub fn link(threads: usize, from: &Path, to: &Path) {
    walk(threads, from, to, |from, to, name, _| {
        // SAFETY: the name is NUL-terminated and only read.
        let linked = unsafe { libc::linkat(from, name.as_ptr(), to, name.as_ptr(), 0) };
        if linked < 0 && io::Error::last_os_error().raw_os_error() != Some(libc::EXDEV) {
            ok(linked, "linkat", name);
        }
    });
}

/// How the content of a file is copied.
#[derive(Clone, Copy, PartialEq)]
pub enum Content {
    /// `copy_file_range`.
    Copied,
    /// `FICLONE`.
    Cloned,
}

/// Copies a tree: openat of both files, fstat, the content, fchmod, fchown if the owner differs, and futimens;
/// readlinkat and symlinkat for links.
pub fn copy(threads: usize, content: Content, from: &Path, to: &Path) {
    // SAFETY: geteuid(2) has no arguments.
    let me = unsafe { libc::geteuid() };
    walk(threads, from, to, move |from, to, name, kind| match kind {
        libc::DT_LNK => symlink(from, to, name),
        _ => file(content, me, from, to, name),
    });
}

fn symlink(from: RawFd, to: RawFd, name: &CStr) {
    let mut text = [0_u8; 4096];
    // SAFETY: the kernel writes at most one byte less than the buffer holds, so a NUL remains. Names are
    // NUL-terminated.
    unsafe {
        let n = libc::readlinkat(from, name.as_ptr(), text.as_mut_ptr().cast(), text.len() - 1);
        assert!(n >= 0, "readlinkat({name:?})");
        ok(libc::symlinkat(text.as_ptr().cast(), to, name.as_ptr()), "symlinkat", name);
    }
}

fn file(content: Content, me: u32, from: RawFd, to: RawFd, name: &CStr) {
    let source = open(from, name, libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NOFOLLOW);
    // SAFETY: O_CREAT comes with a mode. All zeroes is a valid `struct stat`, which the kernel fills. The descriptors
    // stay open throughout, and names and times are only read.
    unsafe {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
        let made = ok(libc::openat(to, name.as_ptr(), flags, 0o600), "openat", name);
        let made = OwnedFd::from_raw_fd(made);
        let (source, made) = (source.as_raw_fd(), made.as_raw_fd());
        let mut st: libc::stat = std::mem::zeroed();
        ok(libc::fstat(source, &raw mut st), "fstat", name);
        if content == Content::Cloned {
            ok(libc::ioctl(made, libc::FICLONE, source), "ioctl(FICLONE)", name);
        } else {
            let mut left = st.st_size as usize;
            let none = std::ptr::null_mut();
            while left > 0 {
                let n = libc::copy_file_range(source, none, made, none, left, 0);
                assert!(n > 0, "copy_file_range({name:?}): {}", io::Error::last_os_error());
                left -= n as usize;
            }
        }
        if (st.st_uid, st.st_gid) != (me, me) {
            ok(libc::fchown(made, st.st_uid, st.st_gid), "fchown", name);
        }
        ok(libc::fchmod(made, st.st_mode & 0o777), "fchmod", name);
        let time = |tv_sec, tv_nsec| libc::timespec { tv_sec, tv_nsec };
        let times = [time(st.st_atime, st.st_atime_nsec), time(st.st_mtime, st.st_mtime_nsec)];
        ok(libc::futimens(made, times.as_ptr()), "futimens", name);
    }
}

/// A directory being removed. `left` counts its remaining subdirectories, plus one while it is read.
struct Node {
    up: Option<Arc<Node>>,
    name: CString,
    dir: OwnedFd,
    left: AtomicUsize,
}

/// Removes a tree: getdents64, unlinkat, and rmdir once the last subdirectory is gone.
pub fn remove(threads: usize, top: &Path) {
    let top = cstring(top);
    Queue::run(threads, (None, top), |(up, name): (Option<Arc<Node>>, CString), buffer, more| {
        let dir = open(up.as_ref().map_or(libc::AT_FDCWD, |up| up.dir.as_raw_fd()), &name, DIR);
        let node = Arc::new(Node { up, name, dir, left: AtomicUsize::new(1) });
        let fd = node.dir.as_raw_fd();
        entries(fd, buffer, |name, kind| match kind {
            libc::DT_DIR => {
                node.left.fetch_add(1, Ordering::Relaxed);
                more.push((Some(Arc::clone(&node)), name.to_owned()));
            }
            _ => unlink(fd, name, 0),
        });
        let mut node = Some(node);
        while let Some(n) = node.take() {
            if n.left.fetch_sub(1, Ordering::AcqRel) > 1 {
                break;
            }
            let up = n.up.as_ref().map_or(libc::AT_FDCWD, |up| up.dir.as_raw_fd());
            unlink(up, &n.name, libc::AT_REMOVEDIR);
            node = n.up.clone();
        }
    });
}

fn unlink(dir: RawFd, name: &CStr, flags: i32) {
    // SAFETY: the name is NUL-terminated and only read.
    ok(unsafe { libc::unlinkat(dir, name.as_ptr(), flags) }, "unlinkat", name);
}
