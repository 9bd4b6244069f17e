//! The least that gives a process the same namespaces and mounts: a list of raw system calls that a child makes in the
//! caller's memory, without checks of what they found.
//!
//! The list, with all strings, is made once. A run is a clone, the calls, the exec and the reaping.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use cofferdam::caps::{CapSet, supported};
use cofferdam::filter::{Grants, Profile, compile};
use cofferdam::rootfs::default_chroot_env;
use cofferdam::{FileKind, Host};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

#[path = "../../src/sys/x86_64.rs"]
mod arch;

const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
const NO_EXEC: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// A system call with its arguments.
enum Call {
    Mount {
        source: CString,
        target: CString,
        kind: CString,
        flags: libc::c_ulong,
        data: CString,
    },
    SetAttr {
        path: CString,
        flags: libc::c_int,
        attr: libc::mount_attr,
    },
    Mkdir(CString, libc::mode_t),
    Create(CString),
    Mknod(CString, libc::dev_t),
    Symlink(CString, CString),
    Chdir(CString),
    PivotRoot,
    UmountOldRoot,
    /// Enters the mount namespace that the descriptor refers to.
    Setns(RawFd),
    /// Copies the mount namespace.
    Unshare,
    /// Any call, by its number. What its arguments point to is in [`Calls`].
    Other(libc::c_long, [usize; 5]),
}

/// The calls of a child, and the program that it executes.
pub struct Calls {
    calls: Vec<Call>,
    program: CString,
    /// The namespaces that the child is cloned into.
    namespaces: libc::c_int,
    /// The mount namespace that the calls copy.
    _prepared: Option<File>,
    /// What arguments of the calls point to.
    _pointed: Vec<Box<[u8]>>,
}

/// What the child of a run on prepared mounts does beside the mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    Nothing,
    /// It executes a program that executes the other one, so that it does not change its ids in the caller's memory; and takes
    /// the default user and capabilities.
    Privileges,
    /// The same, and it loads the default filter, and the first program stays as PID 1.
    Pid1,
}

/// What the child reads, and the call that was refused, which it writes: both are in the memory that it shares.
struct Child<'a> {
    calls: &'a Calls,
    refused: usize,
    errno: isize,
}

fn c(text: impl AsRef<Path>) -> CString {
    CString::new(text.as_ref().as_os_str().as_bytes()).unwrap()
}

/// # Safety
/// `argument` points to a `Child` that outlives the call.
unsafe extern "C" fn child(argument: *mut libc::c_void) -> ! {
    let child = argument.cast::<Child<'_>>();
    // SAFETY: the caller vouches for `argument`. Only raw system calls follow, on strings that outlive them. The only
    // memory written is this frame and the two numbers of `Child`, while the caller is suspended.
    unsafe {
        for (i, call) in (*child).calls.calls.iter().enumerate() {
            let result = make(call);
            if result < 0 {
                (*child).refused = i;
                (*child).errno = -result;
                exit(1);
            }
        }
        let program = (*child).calls.program.as_ptr();
        let argv = [program, std::ptr::null()];
        let at = [program as usize, argv.as_ptr() as usize, argv[1..].as_ptr() as usize, 0, 0];
        (*child).refused = (*child).calls.calls.len();
        (*child).errno = -arch::syscall(libc::SYS_execve, at);
        exit(1)
    }
}

/// # Safety
/// The child of a clone calls this, in memory that it shares with its suspended caller.
unsafe fn exit(code: usize) -> ! {
    loop {
        // SAFETY: ends this process.
        unsafe { arch::syscall(libc::SYS_exit_group, [code, 0, 0, 0, 0]) };
    }
}

/// Makes one call. Returns the negative errno if it is refused.
///
/// # Safety
/// The strings of `call` are valid for the kernel's reads.
#[inline(always)]
unsafe fn make(call: &Call) -> isize {
    let at = |text: &CString| text.as_ptr() as usize;
    let (number, args) = match call {
        Call::Mount { source, target, kind, flags, data } => {
            (libc::SYS_mount, [at(source), at(target), at(kind), *flags as usize, at(data)])
        }
        Call::SetAttr { path, flags, attr } => {
            let attr = std::ptr::from_ref(attr) as usize;
            let args =
                [libc::AT_FDCWD as usize, at(path), *flags as usize, attr, size_of::<libc::mount_attr>()];
            (libc::SYS_mount_setattr, args)
        }
        Call::Mkdir(path, mode) => (libc::SYS_mkdir, [at(path), *mode as usize, 0, 0, 0]),
        Call::Create(path) => (libc::SYS_mknod, [at(path), libc::S_IFREG as usize | 0o444, 0, 0, 0]),
        Call::Mknod(path, device) => {
            (libc::SYS_mknod, [at(path), libc::S_IFCHR as usize | 0o666, *device as usize, 0, 0])
        }
        Call::Symlink(to, path) => (libc::SYS_symlink, [at(to), at(path), 0, 0, 0]),
        Call::Chdir(path) => (libc::SYS_chdir, [at(path), 0, 0, 0, 0]),
        Call::PivotRoot => (libc::SYS_pivot_root, [c".".as_ptr() as usize, c".".as_ptr() as usize, 0, 0, 0]),
        Call::UmountOldRoot => {
            (libc::SYS_umount2, [c".".as_ptr() as usize, libc::MNT_DETACH as usize, 0, 0, 0])
        }
        Call::Setns(namespace) => {
            (libc::SYS_setns, [*namespace as usize, libc::CLONE_NEWNS as usize, 0, 0, 0])
        }
        Call::Unshare => (libc::SYS_unshare, [libc::CLONE_NEWNS as usize, 0, 0, 0, 0]),
        Call::Other(number, args) => (*number, *args),
    };
    // SAFETY: the caller vouches for the strings and for what other pointers lead to; the other arguments are numbers and a
    // `mount_attr`.
    unsafe { arch::syscall(number, args) }
}

impl Calls {
    fn new(program: &str) -> Calls {
        let namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC;
        let program = c(program);
        let mut calls =
            Calls { calls: Vec::new(), program, namespaces, _prepared: None, _pointed: Vec::new() };
        calls.mount("", "/", "", libc::MS_REC | libc::MS_PRIVATE, "");
        calls
    }

    fn mount(&mut self, source: impl AsRef<Path>, to: impl AsRef<Path>, kind: &str, flags: u64, data: &str) {
        let [source, target, kind, data] = [c(source), c(to), c(kind), c(data)];
        self.calls.push(Call::Mount { source, target, kind, flags, data });
    }

    fn set_attr(&mut self, path: impl AsRef<Path>, flags: libc::c_int, set: u64) {
        let attr = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
        self.calls.push(Call::SetAttr { path: c(path), flags, attr });
    }

    fn mkdir(&mut self, path: &str) {
        self.calls.push(Call::Mkdir(c(path), 0o755));
    }

    fn switch(&mut self) {
        self.calls.extend([Call::PivotRoot, Call::UmountOldRoot]);
    }

    /// The floor: `root` bind-mounted, `/proc`, `pivot_root(2)`. `root` has the program and `proc`.
    pub fn floor(root: &Path) -> Calls {
        let mut calls = Calls::new("/exit");
        calls.mount(root, root, "", libc::MS_BIND | libc::MS_REC, "");
        calls.mount("proc", root.join("proc"), "proc", 0, "");
        calls.calls.push(Call::Chdir(c(root)));
        calls.switch();
        calls
    }

    /// Every mount of the default plan of this host, and `program` bind-mounted at `/exit`. `root` is an empty
    /// directory.
    pub fn default_plan(root: &Path, program: &Path, host: &Host) -> Calls {
        let mut calls = Calls::common(root, &[("exit", program)]);
        calls.own(host, &mut None, |_| true);
        calls.set_attr("dev", 0, libc::MOUNT_ATTR_RDONLY);
        calls.switch();
        calls
    }

    /// The same, of which the child makes only what no two tasks can share. It copies the other mounts from a namespace
    /// that is made now. `files` has the programs of [`tiny`](crate::tiny).
    ///
    /// # Errors
    /// The refused call, by its number, or what the thread that makes the namespace cannot do.
    pub fn on_prepared(root: &Path, files: &Path, host: &Host, beside: Beside) -> Result<Calls, String> {
        let [exit, exec, fork] = ["exit", "exec", "fork"].map(|name| (name, files.join(name)));
        let first = match beside {
            Beside::Nothing => None,
            Beside::Privileges => Some(exec),
            Beside::Pid1 => Some(fork),
        };
        let programs: Vec<_> =
            [&exit].into_iter().chain(&first).map(|(name, path)| (*name, &**path)).collect();
        let in_proc = |path: &str| path.starts_with("proc");
        let mut common = Calls::common(root, &programs);
        let mut empty = None;
        common.restrict(host, &mut empty, |path| !in_proc(path));
        common.set_attr("dev", 0, libc::MOUNT_ATTR_RDONLY);
        common.switch();
        common.set_attr("/", 0, libc::MOUNT_ATTR_RDONLY);
        let namespace = std::thread::spawn(move || common.namespace()).join();
        let namespace = namespace.map_err(|_| "the thread of the namespace has panicked")??;
        let mut calls = Calls {
            calls: vec![Call::Setns(namespace.as_raw_fd()), Call::Unshare],
            program: c(Path::new("/").join(programs[programs.len() - 1].0)),
            namespaces: libc::CLONE_NEWPID | libc::CLONE_NEWIPC,
            _prepared: Some(namespace),
            _pointed: Vec::new(),
        };
        calls.mount("tmpfs", "tmp", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=1777,size=67108864");
        calls.own(host, &mut empty, in_proc);
        if beside != Beside::Nothing {
            calls.privileges();
        }
        if beside == Beside::Pid1 {
            calls.filter()?;
        }
        Ok(calls)
    }

    /// The default user and capabilities, as the default plan takes them.
    fn privileges(&mut self) {
        let kept = CapSet::DEFAULT;
        let prctl = |option: libc::c_int, args: [usize; 2]| {
            Call::Other(libc::SYS_prctl, [option as usize, args[0], args[1], 0, 0])
        };
        let dropped = supported().unwrap_or(kept).difference(kept);
        self.calls.extend(dropped.numbers().map(|n| prctl(libc::PR_CAPBSET_DROP, [n.into(), 0])));
        self.calls.push(prctl(libc::PR_SET_KEEPCAPS, [1, 0]));
        self.calls.push(Call::Other(libc::SYS_setgroups, [0; 5]));
        for number in [libc::SYS_setresgid, libc::SYS_setresuid] {
            self.calls.push(Call::Other(number, [65534, 65534, 65534, 0, 0]));
        }
        let words = |set: CapSet| [set.bits() as u32, (set.bits() >> 32) as u32];
        let [low, high] = words(kept);
        // _LINUX_CAPABILITY_VERSION_3; then effective, permitted and inheritable.
        let header = self.pointed(&[0x2008_0522, 0]);
        let data = self.pointed(&[low, low, low, high, high, high]);
        self.calls.push(Call::Other(libc::SYS_capset, [header, data, 0, 0, 0]));
        let raise = libc::PR_CAP_AMBIENT_RAISE as usize;
        self.calls.extend(kept.numbers().map(|n| prctl(libc::PR_CAP_AMBIENT, [raise, n.into()])));
        self.calls.push(prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0]));
    }

    /// The default filter.
    fn filter(&mut self) -> Result<(), String> {
        let program = compile(&Profile::default(), &Grants::default()).map_err(|error| error.to_string())?;
        let bytes = program.bytes().into_boxed_slice();
        // struct sock_fprog: the number of instructions, and where they are.
        let at = bytes.as_ptr() as usize;
        let mut fprog = (program.len() as u64).to_ne_bytes().to_vec();
        fprog.extend(at.to_ne_bytes());
        let fprog = fprog.into_boxed_slice();
        let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as usize;
        let args = [libc::SECCOMP_SET_MODE_FILTER as usize, flags, fprog.as_ptr() as usize, 0, 0];
        self._pointed.extend([bytes, fprog]);
        self.calls.push(Call::Other(libc::SYS_seccomp, args));
        Ok(())
    }

    /// The address of these words, which live as long as the value.
    fn pointed(&mut self, words: &[u32]) -> usize {
        let bytes: Box<[u8]> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let at = bytes.as_ptr() as usize;
        self._pointed.push(bytes);
        at
    }

    /// What is the same for all tasks: the root with its sources, `/dev`, `/sys`, and the mount points. `programs` are
    /// bind-mounted at their names.
    fn common(root: &Path, programs: &[(&str, &Path)]) -> Calls {
        let mut calls = Calls::new("/exit");
        calls.mount("tmpfs", root, "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=0755,size=67108864");
        calls.calls.push(Call::Chdir(c(root)));
        for (source, target) in default_chroot_env().into_iter().filter(|(source, _)| source.exists()) {
            let target = inside(&target);
            calls.mkdir(&target);
            calls.mount(source, &target, "", libc::MS_BIND | libc::MS_REC, "");
            calls.set_attr(&target, libc::AT_RECURSIVE, READ_ONLY);
        }
        calls.calls.push(Call::Mkdir(c("tmp"), 0o1777));
        calls.devices();
        calls.mkdir("proc");
        calls.mkdir("sys");
        calls.mount("sysfs", "sys", "sysfs", NO_EXEC | libc::MS_RDONLY, "");
        for (name, program) in programs {
            calls.calls.push(Call::Create(c(name)));
            calls.mount(program, name, "", libc::MS_BIND, "");
            calls.set_attr(name, 0, READ_ONLY);
        }
        calls
    }

    /// `/dev` with its nodes, links and file systems.
    fn devices(&mut self) {
        self.mkdir("dev");
        self.mount("tmpfs", "dev", "tmpfs", libc::MS_NOSUID, "mode=0755");
        for (name, major, minor) in [
            ("null", 1, 3),
            ("zero", 1, 5),
            ("full", 1, 7),
            ("random", 1, 8),
            ("urandom", 1, 9),
            ("tty", 5, 0),
        ] {
            self.calls.push(Call::Mknod(c(format!("dev/{name}")), libc::makedev(major, minor)));
        }
        for (name, to) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
            ("core", "/proc/kcore"),
            ("ptmx", "pts/ptmx"),
        ] {
            self.calls.push(Call::Symlink(c(to), c(format!("dev/{name}"))));
        }
        for name in ["dev/pts", "dev/shm", "dev/mqueue"] {
            self.mkdir(name);
        }
    }

    /// What belongs to one task.
    fn own(&mut self, host: &Host, empty: &mut Option<String>, is_own: impl Fn(&str) -> bool) {
        self.mount("proc", "proc", "proc", NO_EXEC, "");
        let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
        self.mount("devpts", "dev/pts", "devpts", flags, "newinstance,ptmxmode=0666,mode=0620,gid=5");
        self.mount("tmpfs", "dev/shm", "tmpfs", NO_EXEC, "mode=1777,size=67108864");
        self.mount("mqueue", "dev/mqueue", "mqueue", NO_EXEC, "");
        self.restrict(host, empty, is_own);
    }

    /// The read-only paths and the masks of `/proc` and `/sys`, those with `is_own`. All masked directories get binds of
    /// one empty tmpfs,
    /// which the first of them gets unless it is mounted already.
    fn restrict(&mut self, host: &Host, empty: &mut Option<String>, is_own: impl Fn(&str) -> bool) {
        for path in host.read_only.iter().map(|(path, _)| inside(path)).filter(|path| is_own(path)) {
            self.mount(&path, &path, "", libc::MS_BIND | libc::MS_REC, "");
            self.set_attr(&path, libc::AT_RECURSIVE, libc::MOUNT_ATTR_RDONLY);
        }
        let all = masked(host).map(|(path, kind)| (inside(&path), kind));
        for (path, kind) in all.filter(|(path, _)| is_own(path)) {
            match (kind, &*empty) {
                (FileKind::Dir, Some(empty)) => self.mount(empty, &path, "", libc::MS_BIND, ""),
                (FileKind::Dir, None) => {
                    self.mount("tmpfs", &path, "tmpfs", NO_EXEC | libc::MS_RDONLY, "");
                    *empty = Some(path);
                }
                _ => self.mount("dev/null", &path, "", libc::MS_BIND, ""),
            }
        }
    }

    /// A mount namespace in which the calls were made. The caller is a thread that ends after it.
    fn namespace(&self) -> Result<File, String> {
        let own = File::open("/proc/thread-self/ns").map_err(|error| error.to_string())?;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
            .map_err(|errno| format!("unshare: {errno}"))?;
        for (i, call) in self.calls.iter().enumerate() {
            // SAFETY: the strings are those of `self`.
            let result = unsafe { make(call) };
            if result < 0 {
                let why = std::io::Error::from_raw_os_error(-result as i32);
                return Err(format!("raw call {i} of {} of the namespace: {why}", self.calls.len()));
            }
        }
        let opened = nix::fcntl::openat(&own, "mnt", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        opened.map(File::from).map_err(|errno| format!("mnt: {errno}"))
    }

    /// Makes a process with its own mount, PID and IPC namespaces, which makes the calls, executes the program and
    /// exits.
    ///
    /// # Errors
    /// The refused call, by its number, or the exit status.
    pub fn run(&self) -> Result<(), String> {
        let mut child_args = Child { calls: self, refused: 0, errno: 0 };
        // SAFETY: `clone_args` is plain data, and all zeroes is a valid value.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = (libc::CLONE_VM | libc::CLONE_VFORK | self.namespaces) as u64;
        args.exit_signal = libc::SIGCHLD as u64;
        // SAFETY: CLONE_VM and CLONE_VFORK without a stack: the caller is suspended while the child uses its frame. The
        // child makes raw system calls only. This program installs no signal handler, so none can run in the child.
        let pid = unsafe { arch::clone3_vfork(&args, child, (&raw mut child_args).cast()) };
        if pid < 0 {
            return Err(format!("clone3: {}", std::io::Error::from_raw_os_error(-pid as i32)));
        }
        // The change of its ids made this process, whose memory it shared, undumpable.
        // SAFETY: prctl(PR_SET_DUMPABLE) takes a number.
        unsafe { arch::syscall(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 1, 0, 0, 0]) };
        let mut status = 0;
        // SAFETY: waits for the child that was just created; `status` outlives the call.
        let reaped = unsafe { libc::waitpid(pid as i32, &raw mut status, 0) };
        if reaped == pid as i32 && status == 0 {
            return Ok(());
        }
        let why = std::io::Error::from_raw_os_error(child_args.errno as i32);
        Err(format!("raw call {} of {}: {why}", child_args.refused, self.calls.len()))
    }
}

/// The paths that the default plan masks: files of the kernel, and, unless an idmapped mount hides them, files of
/// `/etc` that other users cannot read.
pub fn masked(host: &Host) -> impl Iterator<Item = (std::path::PathBuf, FileKind)> {
    let private = if host.idmapped_etc() { Vec::new() } else { host.private_etc().unwrap_or_default() };
    host.masked.clone().into_iter().chain(private)
}

/// The path relative to the root.
fn inside(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}
