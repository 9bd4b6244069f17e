//! The attempts of the escape suite.

use std::fs::{self, OpenOptions};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;

use cofferdam::Control;
use nix::errno::Errno;

use super::attack_tools::{forked, mount, z};
use super::calls::{int80, x32};
use crate::call;

/// What exists outside of the sandbox: a process, an abstract socket and a file.
pub struct Outside {
    pid: i32,
    socket: String,
    file: String,
}

impl Outside {
    pub fn from_env() -> Outside {
        let var = |name: &str| std::env::var(name).unwrap();
        Outside {
            pid: var("OUTSIDE_PID").parse().unwrap(),
            socket: var("OUTSIDE_SOCKET"),
            file: var("OUTSIDE_FILE"),
        }
    }
}

/// Text of an attempt's result.
pub struct Answer;

impl Answer {
    const THROUGH: &str = "**through**";

    pub fn passed(text: &str) -> bool {
        text == Answer::THROUGH
    }

    /// Through if the call succeeded; otherwise the errno.
    pub fn of<T>(result: nix::Result<T>) -> String {
        match result {
            Ok(_) => Answer::THROUGH.into(),
            Err(errno) => format!("{errno:?}"),
        }
    }

    fn of_io<T>(result: std::io::Result<T>) -> String {
        Answer::of(result.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))))
    }

    /// Through if the kernel examined the arguments, which are invalid: any result but EPERM, ENOSYS, EACCES and
    /// EAFNOSUPPORT.
    pub fn reached(result: nix::Result<i64>) -> String {
        match result {
            Err(Errno::EPERM | Errno::ENOSYS | Errno::EACCES | Errno::EAFNOSUPPORT) => Answer::of(result),
            _ => Answer::THROUGH.into(),
        }
    }

    fn when(is: bool) -> String {
        Answer::of(if is { Ok(()) } else { Err(Errno::ENOENT) })
    }
}

/// An attempt to escape.
pub struct Attempt {
    pub name: &'static str,
    /// The incident that it is from: a CVE, or another name.
    from: &'static str,
    /// Controls that the report must not call enforced if the attempt succeeds.
    pub undoes: Control,
    /// For an attempt that no control covers: texts, separated by `|`, one of which the report must contain if the
    /// attempt succeeds.
    pub told: &'static str,
    pub run: fn(&Outside) -> String,
}

impl Attempt {
    pub fn source(&self) -> String {
        if self.from.is_empty() { String::new() } else { format!(" ({})", self.from) }
    }
}

const fn new(
    name: &'static str,
    from: &'static str,
    undoes: Control,
    run: fn(&Outside) -> String,
) -> Attempt {
    Attempt { name, from, undoes, told: "", run }
}

/// An attempt that no control covers. If it succeeds, the report must contain one of these texts.
const fn told(name: &'static str, told: &'static str, run: fn(&Outside) -> String) -> Attempt {
    Attempt { name, from: "", undoes: Control::empty(), told, run }
}

const NEWUSER: i32 = libc::CLONE_NEWUSER;
const FILES: Control = Control::HOST_FILES.union(Control::MASKED_PATHS);

fn writes(path: &str) -> String {
    Answer::of_io(OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path))
}

fn reads(path: &str) -> String {
    let mut byte = [0; 1];
    let read = fs::File::open(path).and_then(|mut file| std::io::Read::read(&mut file, &mut byte));
    match read {
        // An empty file masks it.
        Ok(0) => "empty".into(),
        read => Answer::of_io(read),
    }
}

/// Creates a device node and opens it.
fn device(kind: u32, major: u64, minor: u64) -> String {
    let node = z("/tmp/escape-node");
    let made = call!(libc::SYS_mknodat, libc::AT_FDCWD, node.as_ptr(), kind | 0o666, (major << 8) | minor);
    let opened = made.and_then(|_| call!(libc::SYS_openat, libc::AT_FDCWD, node.as_ptr(), libc::O_RDONLY));
    let _ = call!(libc::SYS_unlinkat, libc::AT_FDCWD, node.as_ptr(), 0);
    Answer::of(opened)
}

/// Opens for writing the files of that name below a directory, until one succeeds.
fn writes_any(top: &str, name: &str) -> String {
    let mut todo = vec![Path::new(top).to_owned()];
    let mut last = "ENOENT".to_string();
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(dir) else { continue };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                todo.push(entry.path());
            } else if entry.file_name() == name {
                last = writes(&entry.path().display().to_string());
                if Answer::passed(&last) {
                    return last;
                }
            }
        }
    }
    last
}

fn socket(family: i32) -> String {
    Answer::of(call!(libc::SYS_socket, family, libc::SOCK_STREAM, 0))
}

/// A buffer below 4 GiB, for the 32-bit arguments of i386.
fn low(words: [u32; 3]) -> u32 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
    let at = call!(libc::SYS_mmap, 0, 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0).unwrap();
    // SAFETY: the mapping is new, writable, and larger than the array.
    unsafe { (at as *mut [u32; 3]).write(words) };
    u32::try_from(at).unwrap()
}

/// Follows `/proc/PID/NAME` of the process outside.
fn by_proc(outside: &Outside, name: &str) -> String {
    Answer::of_io(fs::metadata(format!("/proc/{}/{name}/", outside.pid)))
}

/// Creates a child of the caller's parent (CLONE_PARENT).
fn clone_parent() -> String {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    match call!(libc::SYS_clone, flags, 0, 0, 0, 0) {
        Ok(0) => {
            let _ = call!(libc::SYS_exit_group, 0);
            String::new()
        }
        answer => Answer::of(answer),
    }
}

/// Tries to reach the host's root by chroot(2) and `..`.
fn chroots() -> String {
    let code = forked(|| {
        let _ = call!(libc::SYS_mkdirat, libc::AT_FDCWD, c"/tmp/jail".as_ptr(), 0o755);
        if call!(libc::SYS_chroot, c"/tmp/jail".as_ptr()).is_err() {
            return 1;
        }
        let mut last = (0, 0);
        loop {
            let here = fs::metadata(".").map(|st| (st.dev(), st.ino())).unwrap_or_default();
            if here == last {
                break;
            }
            last = here;
            let _ = call!(libc::SYS_chdir, c"..".as_ptr());
        }
        // Every sandbox has `/probe`, and no host.
        if fs::metadata("probe").is_ok() { 1 } else { 0 }
    });
    Answer::when(code == 0)
}

pub static ATTEMPTS: [Attempt; 69] = [
    // Must be first, because other attempts open descriptors.
    new("the working directory of the caller", "CVE-2024-21626", Control::ROOT_SWITCH, |_| {
        let leaked = (3..64).any(|fd| fs::read_dir(format!("/proc/self/fd/{fd}/..")).is_ok());
        Answer::when(leaked)
    }),
    new("unshare a user namespace", "CVE-2022-0185", Control::NO_USER_NS, |_| {
        Answer::when(forked(|| i32::from(call!(libc::SYS_unshare, NEWUSER).is_err())) == 0)
    }),
    new("clone a user namespace", "", Control::NO_USER_NS, |_| {
        match call!(libc::SYS_clone, NEWUSER | libc::SIGCHLD, 0, 0, 0, 0) {
            Ok(0) => {
                let _ = call!(libc::SYS_exit_group, 0);
                String::new()
            }
            answer => Answer::of(answer),
        }
    }),
    new("clone3 a user namespace", "", Control::NO_USER_NS, |_| {
        let args = [0x1000_0000_u64, 0, 0, 0, 17, 0, 0, 0];
        match call!(libc::SYS_clone3, args.as_ptr(), 64) {
            Ok(0) => {
                let _ = call!(libc::SYS_exit_group, 0);
                String::new()
            }
            answer => Answer::of(answer),
        }
    }),
    new("unshare a user namespace by int 0x80", "", Control::NO_USER_NS, |_| {
        Answer::when(forked(|| i32::from(int80(310, [0x1000_0000, 0, 0, 0]).is_err())) == 0)
    }),
    new("unshare a user namespace by x32", "", Control::NO_USER_NS, |_| {
        Answer::when(forked(|| i32::from(x32(libc::SYS_unshare, [0x1000_0000, 0, 0]).is_err())) == 0)
    }),
    new("join a namespace", "holes 1", Control::NO_USER_NS, |_| {
        Answer::reached(call!(libc::SYS_setns, -1, NEWUSER))
    }),
    new("join a namespace by int 0x80", "holes 1", Control::NO_USER_NS, |_| {
        Answer::reached(int80(346, [u32::MAX, 0x1000_0000, 0, 0]))
    }),
    new("open by file handle", "shocker", Control::HOST_FILES, |_| {
        let handle = [8_u32, 1, 2, 0];
        Answer::reached(call!(libc::SYS_open_by_handle_at, -1, handle.as_ptr(), 0))
    }),
    new("open by file handle, by int 0x80", "", Control::HOST_FILES, |_| {
        Answer::reached(int80(342, [u32::MAX, low([8, 1, 2]), 0, 0]))
    }),
    new("mount a tmpfs", "", FILES, |_| Answer::of(mount("none", "/tmp", "tmpfs", 0, ""))),
    new("mount a cgroup hierarchy", "CVE-2022-0492", FILES, |_| {
        Answer::of(mount("none", "/tmp", "cgroup", 0, "memory"))
    }),
    new("make the root writable", "", FILES, |_| {
        Answer::of(mount("", "/", "", libc::MS_REMOUNT | libc::MS_BIND, ""))
    }),
    new("unmount a mask", "CVE-2017-16539", FILES, |_| {
        Answer::of(call!(libc::SYS_umount2, c"/proc/kcore".as_ptr(), libc::MNT_DETACH))
    }),
    new("open a file system", "CVE-2022-0185", FILES, |_| {
        Answer::of(call!(libc::SYS_fsopen, c"tmpfs".as_ptr(), 0))
    }),
    new("clone a mount tree", "", FILES, |_| {
        Answer::of(call!(libc::SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), 1))
    }),
    new("change the root twice", "", Control::ROOT_SWITCH, |_| chroots()),
    new("pivot_root", "", FILES, |_| {
        Answer::reached(call!(libc::SYS_pivot_root, c"/none".as_ptr(), c"/none".as_ptr()))
    }),
    new("write the host's file by its name", "", Control::HOST_FILES, |outside| writes(&outside.file)),
    new("the root of a process outside", "holes 5", Control::ROOT_SWITCH, |outside| by_proc(outside, "root")),
    new("the directory of a process outside", "", Control::ROOT_SWITCH, |outside| by_proc(outside, "cwd")),
    new("the environment of a process outside", "Nomad CVE-2021-3283", Control::ROOT_SWITCH, |outside| {
        reads(&format!("/proc/{}/environ", outside.pid))
    }),
    new("trace a process outside", "", Control::ROOT_SWITCH, |outside| {
        Answer::of(call!(libc::SYS_ptrace, 0x4206 /* PTRACE_SEIZE */, outside.pid, 0, 0))
    }),
    new("read the memory of a process outside", "", Control::ROOT_SWITCH, |outside| {
        let mut buffer = [0_u8; 8];
        let local = [buffer.as_mut_ptr() as usize, 8];
        // If nothing is mapped there, a reader with permission gets EFAULT, which counts as through.
        let remote = [0x40_0000_usize, 8];
        let read = call!(libc::SYS_process_vm_readv, outside.pid, local.as_ptr(), 1, remote.as_ptr(), 1, 0);
        if read == Err(Errno::ESRCH) { Answer::of(read) } else { Answer::reached(read) }
    }),
    told("signal a process outside", "PID namespace: it can signal|CAP_KILL", |outside| {
        Answer::of(call!(libc::SYS_kill, outside.pid, 0))
    }),
    new("limit the resources of a process outside", "", Control::KILL, |outside| {
        let mut limit = [0_u64; 2];
        Answer::of(call!(libc::SYS_prlimit64, outside.pid, libc::RLIMIT_NOFILE, 0, limit.as_mut_ptr()))
    }),
    new("the score of a process outside", "", Control::KILL, |outside| {
        writes(&format!("/proc/{}/oom_score_adj", outside.pid))
    }),
    told("process events of the host", "no system call filter", |_| {
        Answer::of(call!(libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 11))
    }),
    new("the files of PID 1", "", Control::PID_NS, |_| Answer::of_io(fs::read_link("/proc/1/exe"))),
    new("trace PID 1", "holes 4", Control::PID_NS, |_| Answer::of(call!(libc::SYS_ptrace, 0x4206, 1, 0, 0))),
    new("write the program of PID 1", "CVE-2019-5736", Control::PID_NS, |_| writes("/proc/1/exe")),
    told("a descriptor of PID 1", "CAP_SYS_PTRACE", |_| {
        let pidfd = call!(libc::SYS_pidfd_open, 1, 0).unwrap();
        Answer::of(call!(libc::SYS_pidfd_getfd, pidfd, 0, 0))
    }),
    new("connect to an abstract socket outside", "CVE-2020-15257", Control::NET_NS, |outside| {
        let address = SocketAddr::from_abstract_name(&outside.socket).unwrap();
        Answer::of_io(UnixStream::connect_addr(&address))
    }),
    told("a socket of vsock", "no system call filter", |_| socket(libc::AF_VSOCK)),
    told("a socket of vsock by int 0x80", "no system call filter", |_| Answer::of(int80(359, [40, 1, 0, 0]))),
    told("a socket of vsock by socketcall", "no system call filter", |_| {
        Answer::of(int80(102, [1, low([40, 1, 0]), 0, 0]))
    }),
    told("a socket of the kernel's cryptography", "no system call filter", |_| socket(libc::AF_ALG)),
    told("a raw socket", "CAP_NET_RAW", |_| {
        Answer::of(call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_RAW, 1))
    }),
    told("the keyring of the user", "keyrings of the task's user", |_| {
        // KEYCTL_GET_KEYRING_ID of KEY_SPEC_USER_KEYRING.
        Answer::of(call!(libc::SYS_keyctl, 0, -4, 1))
    }),
    told("the keyring of the user by int 0x80", "keyrings of the task's user", |_| {
        Answer::of(int80(288, [0, (-4_i32).cast_unsigned(), 1, 0]))
    }),
    told("add a key", "keyrings of the task's user", |_| {
        let (kind, name) = (c"user".as_ptr(), c"cofferdam-escape".as_ptr());
        Answer::of(call!(libc::SYS_add_key, kind, name, name, 4, -3 /* the session's */))
    }),
    told("io_uring", "io_uring", |_| Answer::reached(call!(libc::SYS_io_uring_setup, 1, 1))),
    told("userfaultfd", "userfaultfd", |_| Answer::reached(call!(libc::SYS_userfaultfd, 1))),
    told("perf_event_open", "CAP_PERFMON|CAP_SYS_ADMIN|no system call filter", |_| {
        let mut attr = [0_u32; 28];
        (attr[0], attr[1]) = (1, 112);
        Answer::of(call!(libc::SYS_perf_event_open, attr.as_ptr(), 0, -1, -1, 0))
    }),
    told("bpf", "CAP_BPF|CAP_SYS_ADMIN|no system call filter", |_| {
        let attr = [0_u32; 8];
        Answer::reached(call!(libc::SYS_bpf, 18, attr.as_ptr(), 28))
    }),
    told("load a module", "CAP_SYS_MODULE", |_| Answer::reached(call!(libc::SYS_finit_module, -1, 1, 0))),
    told("load a kernel", "CAP_SYS_BOOT", |_| {
        Answer::reached(call!(libc::SYS_kexec_load, 0, 0, 0, u64::MAX))
    }),
    told("read the kernel's log", "CAP_SYSLOG", |_| {
        let mut buffer = [0_u8; 16];
        Answer::of(call!(libc::SYS_syslog, 3, buffer.as_mut_ptr(), 16))
    }),
    told("the machine's ports", "CAP_SYS_RAWIO", |_| Answer::of(call!(libc::SYS_ioperm, 0x80, 1, 1))),
    told("set the clock", "CAP_SYS_TIME", |_| {
        let mut timex = [0_u64; 32];
        timex[0] = 0x4000;
        Answer::reached(call!(libc::SYS_adjtimex, timex.as_mut_ptr()))
    }),
    told("watch a whole file system", "CAP_SYS_ADMIN", |_| {
        let watch = call!(libc::SYS_fanotify_init, 0, 0);
        let mark =
            watch.and_then(|fd| call!(libc::SYS_fanotify_mark, fd, 0x101, 2, libc::AT_FDCWD, c"/".as_ptr()));
        Answer::of(mark)
    }),
    told("no random addresses", "no system call filter", |_| {
        Answer::of(call!(libc::SYS_personality, libc::ADDR_NO_RANDOMIZE))
    }),
    told("children of one's parent", "no system call filter", |_| clone_parent()),
    told("type into a terminal", "TIOCSTI", |_| {
        Answer::reached(call!(libc::SYS_ioctl, 0, 0x5412, c"x".as_ptr()))
    }),
    told("type into a terminal, with a high bit set", "TIOCSTI", |_| {
        Answer::reached(call!(libc::SYS_ioctl, 0, (1_u64 << 32) | 0x5412, c"x".as_ptr()))
    }),
    told("paste into a console", "no system call filter", |_| {
        Answer::reached(call!(libc::SYS_ioctl, 0, 0x541c, c"\x03".as_ptr()))
    }),
    new("the pattern of core dumps", "CVE-2025-52881", FILES, |_| writes("/proc/sys/kernel/core_pattern")),
    new("the magic key", "CVE-2025-52881", FILES, |_| writes("/proc/sysrq-trigger")),
    new("the helper of devices", "", FILES, |_| writes("/sys/kernel/uevent_helper")),
    new("a power state", "", FILES, |_| writes("/sys/power/state")),
    new("the kernel's memory", "CVE-2017-16539", Control::MASKED_PATHS, |_| reads("/proc/kcore")),
    new("the kernel's keys", "CVE-2017-16539", Control::MASKED_PATHS, |_| reads("/proc/keys")),
    new("the kernel's timers", "CVE-2017-16539", Control::MASKED_PATHS, |_| reads("/proc/timer_list")),
    new("the firmware", "", Control::MASKED_PATHS, |_| {
        match fs::read_dir("/sys/firmware").map(|mut dir| dir.next().is_some()) {
            Ok(false) => "empty".into(),
            found => Answer::of_io(found),
        }
    }),
    new("the machine's memory", "", Control::DEVICES, |_| device(0o020000, 1, 1)),
    new("a disk", "", Control::DEVICES, |_| device(0o060000, 254, 0)),
    new("the agent of a cgroup", "CVE-2022-0492", FILES, |_| writes_any("/sys/fs/cgroup", "release_agent")),
    new("leave the cgroup", "", Control::KILL, |_| writes_any("/sys/fs/cgroup", "cgroup.procs")),
    new("leave the cgroup by way of a process outside", "holes 5", Control::KILL, |outside| {
        writes_any(&format!("/proc/{}/root/sys/fs/cgroup", outside.pid), "cgroup.procs")
    }),
];
