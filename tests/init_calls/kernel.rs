//! A simulated kernel to compile init against. It records the calls, gives plausible results, and refuses one call.
//!
//! It replaces `init/x86_64.rs`, so everything of init above the system call instruction is the real code. Calls are
//! named by libc's numbers, not init's, so a wrong number in init is found as well.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CStr;

#[path = "../../init/x86_64_nr.rs"]
pub mod nr;

pub use nr::AUDIT_ARCH;

use crate::wire::{LOG_HEADER, LogHeader, Record};

/// The errno of a refused call. No operation tolerates it.
pub const REFUSAL: i32 = libc::EIO;
/// The pid that clone(2) returns.
const CHILD: i32 = 42;

/// A call that init made.
#[derive(Clone, Debug)]
pub struct Call {
    pub name: &'static str,
    /// What the plan's line for this call must contain: options, commands, and the last component of each path with its
    /// closing quote.
    pub shows: Vec<String>,
}

/// How a run of init ended.
pub enum Ended {
    Exited,
    Executed,
}

/// State of the simulated kernel, which differs between the samples of an operation.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Paths that openat2(2) does not find until their last component is created.
    pub absent: Vec<&'static str>,
    /// Names for which mkdirat(2) fails with EEXIST.
    pub taken: Vec<&'static str>,
    /// The path of the object that the inherited descriptors refer to.
    pub held: &'static str,
    pub securebits: bool,
    /// Whether clone(2) returns as in the child.
    pub child: bool,
    /// Number of mounts stacked at the root.
    pub over_root: usize,
    /// Whether the working directory is outside of the root.
    pub unreachable: bool,
    /// Whether statx(2) fails with ENOENT.
    pub missing: bool,
    /// How often sched_setaffinity(2) fails because the cpuset changes.
    pub cpuset_changes: usize,
}

#[derive(Default)]
pub struct Kernel {
    pub facts: Facts,
    pub calls: Vec<Call>,
    /// Index of the call to refuse.
    pub refuse: Option<usize>,
    /// Records that init sent to the parent.
    pub records: Vec<Record>,
    /// Paths by opened descriptor.
    opened: HashMap<usize, String>,
    forked: bool,
}

thread_local! {
    pub static KERNEL: RefCell<Kernel> = RefCell::default();
}

/// The socket to the parent. Duplicating it gives the same number.
pub const STATUS: i32 = 200;

/// The simulated system call.
///
/// # Safety
/// As for the real one: pointers among the arguments are valid for what the call reads and writes.
pub unsafe fn syscall(number: usize, a: [usize; 6]) -> isize {
    // SAFETY: the caller vouches for the pointers.
    let answer = KERNEL.with_borrow_mut(|kernel| unsafe { kernel.answer(number, a) });
    match answer {
        Ok(value) => value,
        // `resume_unwind` prints no panic message.
        Err(ended) => std::panic::resume_unwind(Box::new(ended)),
    }
}

pub fn fault() -> ! {
    panic!("exit_group returned")
}

macro_rules! names {
    ($($number:ident $name:literal,)*) => {
        fn name(number: usize) -> &'static str {
            match number as i64 {
                $( libc::$number => $name, )*
                other => panic!("no name for system call {other}"),
            }
        }
    };
}

names! {
    SYS_read "read", SYS_pread64 "pread64", SYS_write "write", SYS_close "close", SYS_mmap "mmap", SYS_munmap "munmap",
    SYS_rt_sigaction "rt_sigaction", SYS_rt_sigprocmask "rt_sigprocmask", SYS_ioctl "ioctl", SYS_socket "socket",
    SYS_sendto "sendto", SYS_recvfrom "recvfrom", SYS_sendmsg "sendmsg", SYS_socketpair "socketpair",
    SYS_clone "clone", SYS_clone3 "clone3", SYS_kill "kill", SYS_execve "execve", SYS_wait4 "wait4", SYS_fcntl "fcntl", SYS_getcwd "getcwd",
    SYS_chdir "chdir", SYS_fchdir "fchdir", SYS_umask "umask", SYS_setsid "setsid", SYS_setgroups "setgroups",
    SYS_setresuid "setresuid", SYS_setresgid "setresgid", SYS_capset "capset", SYS_personality "personality",
    SYS_setpriority "setpriority", SYS_sched_setscheduler "sched_setscheduler", SYS_pivot_root "pivot_root",
    SYS_prctl "prctl", SYS_chroot "chroot", SYS_mount "mount", SYS_umount2 "umount2",
    SYS_sethostname "sethostname", SYS_sched_setaffinity "sched_setaffinity", SYS_set_mempolicy "set_mempolicy",
    SYS_keyctl "keyctl", SYS_ioprio_set "ioprio_set", SYS_openat "openat", SYS_mkdirat "mkdirat",
    SYS_mknodat "mknodat", SYS_fchownat "fchownat", SYS_unlinkat "unlinkat", SYS_symlinkat "symlinkat",
    SYS_fchmodat "fchmodat", SYS_ppoll "ppoll", SYS_unshare "unshare", SYS_signalfd4 "signalfd4",
    SYS_clock_gettime "clock_gettime", SYS_timerfd_create "timerfd_create", SYS_timerfd_settime "timerfd_settime",
    SYS_dup3 "dup3", SYS_prlimit64 "prlimit64", SYS_setns "setns", SYS_seccomp "seccomp", SYS_statx "statx",
    SYS_open_tree "open_tree", SYS_move_mount "move_mount", SYS_fsopen "fsopen", SYS_fsconfig "fsconfig",
    SYS_fsmount "fsmount", SYS_close_range "close_range", SYS_openat2 "openat2",
    SYS_mount_setattr "mount_setattr", SYS_landlock_create_ruleset "landlock_create_ruleset",
    SYS_landlock_add_rule "landlock_add_rule", SYS_landlock_restrict_self "landlock_restrict_self",
}

/// The options of prctl(2) that init uses.
fn prctl(option: usize) -> &'static str {
    match option as i32 {
        libc::PR_SET_NAME => "PR_SET_NAME",
        libc::PR_SET_DUMPABLE => "PR_SET_DUMPABLE",
        libc::PR_SET_PDEATHSIG => "PR_SET_PDEATHSIG",
        libc::PR_SET_KEEPCAPS => "PR_SET_KEEPCAPS",
        libc::PR_CAPBSET_DROP => "PR_CAPBSET_DROP",
        libc::PR_GET_SECUREBITS => "PR_GET_SECUREBITS",
        libc::PR_SET_SECUREBITS => "PR_SET_SECUREBITS",
        libc::PR_SET_TIMERSLACK => "PR_SET_TIMERSLACK",
        libc::PR_SET_NO_NEW_PRIVS => "PR_SET_NO_NEW_PRIVS",
        libc::PR_SET_THP_DISABLE => "PR_SET_THP_DISABLE",
        libc::PR_CAP_AMBIENT => "PR_CAP_AMBIENT",
        57 => "PR_SET_IO_FLUSHER",
        67 => "PR_SET_MEMORY_MERGE",
        other => panic!("no name for prctl({other})"),
    }
}

/// The requests of ioctl(2) that init uses.
fn ioctl(request: usize) -> &'static str {
    match request as u64 {
        libc::SIOCSIFFLAGS => "SIOCSIFFLAGS",
        libc::TIOCSPTLCK => "TIOCSPTLCK",
        libc::TIOCGPTPEER => "TIOCGPTPEER",
        libc::TIOCSWINSZ => "TIOCSWINSZ",
        libc::TIOCSCTTY => "TIOCSCTTY",
        other => panic!("no name for ioctl({other:#x})"),
    }
}

fn fsconfig(command: usize) -> &'static str {
    match command {
        0 => "FSCONFIG_SET_FLAG",
        1 => "FSCONFIG_SET_STRING",
        6 => "FSCONFIG_CMD_CREATE",
        other => panic!("no name for fsconfig({other})"),
    }
}

/// Indices of the arguments that are paths, or other strings that the call's line shows.
fn strings(name: &str) -> &'static [usize] {
    match name {
        "chdir" | "chroot" | "umount2" | "fsopen" => &[0],
        "openat" | "openat2" | "mkdirat" | "mknodat" | "unlinkat" | "fchownat" | "fchmodat" | "statx" => &[1],
        "open_tree" | "mount" => &[1],
        "fsconfig" => &[2],
        "symlinkat" => &[0, 2],
        "pivot_root" => &[0, 1],
        "move_mount" => &[3],
        _ => &[],
    }
}

/// The string at `address`; empty for a null pointer.
unsafe fn string(address: usize) -> String {
    if address == 0 {
        return String::new();
    }
    // SAFETY: the caller passes arguments that are NUL-terminated strings for this call.
    unsafe { CStr::from_ptr(address as *const libc::c_char) }.to_str().unwrap().to_owned()
}

fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

impl Kernel {
    pub fn new(facts: Facts, refuse: Option<usize>) -> Kernel {
        Kernel { facts, refuse, ..Kernel::default() }
    }

    unsafe fn answer(&mut self, number: usize, a: [usize; 6]) -> Result<isize, Ended> {
        if [libc::SYS_exit_group, libc::SYS_exit].contains(&(number as i64)) {
            return Err(Ended::Exited);
        }
        let name = name(number);
        if name == "sendto" {
            // SAFETY: send(2) reads `a[2]` bytes at `a[1]`.
            let bytes = unsafe { std::slice::from_raw_parts(a[1] as *const u8, a[2]) };
            if let Ok(record) = Record::decode(bytes) {
                self.records.push(record);
                // A record on how the run of steps ended is not a call of the operation.
                if !matches!(record, Record::Ready | Record::AtGate) {
                    return Ok(bytes.len() as isize);
                }
            }
        }
        // SAFETY: the arguments that `strings` names are NUL-terminated strings.
        let texts: Vec<String> = strings(name).iter().map(|i| unsafe { string(a[*i]) }).collect();
        let mut shows: Vec<String> =
            texts.iter().filter(|text| !text.is_empty()).map(|text| format!("{}\"", last(text))).collect();
        match name {
            "prctl" => shows.push(prctl(a[0]).into()),
            "ioctl" => shows.push(ioctl(a[1]).into()),
            "fsconfig" => shows.push(fsconfig(a[1]).into()),
            _ => {}
        }
        self.calls.push(Call { name, shows });
        if self.refuse == Some(self.calls.len() - 1) {
            return Ok(-(REFUSAL as isize));
        }
        let path = texts.first().map_or("", String::as_str);
        // SAFETY: the pointers are those of this call.
        unsafe { self.done(name, path, a) }
    }

    /// Writes the call's output and returns its result.
    unsafe fn done(&mut self, name: &str, path: &str, a: [usize; 6]) -> Result<isize, Ended> {
        let fresh = (300 + self.calls.len()) as isize;
        Ok(match name {
            "execve" => return Err(Ended::Executed),
            "openat2" if self.facts.absent.contains(&path) => -(libc::ENOENT as isize),
            "mkdirat" if self.facts.taken.contains(&path) => -(libc::EEXIST as isize),
            "mkdirat" => {
                self.make(path);
                0
            }
            "openat" | "openat2" => {
                self.make(path);
                self.opened.insert(fresh as usize, path.to_owned());
                fresh
            }
            "socket" | "signalfd4" | "open_tree" | "fsopen" | "fsmount" | "landlock_create_ruleset" => fresh,
            "ioctl" if ioctl(a[1]) == "TIOCGPTPEER" => fresh,
            "fcntl" => a[0] as isize,
            "write" => a[2] as isize,
            "mmap" => Box::leak(vec![0u64; a[1].div_ceil(8)].into_boxed_slice()).as_ptr() as isize,
            "socketpair" => {
                // SAFETY: socketpair(2) writes two ints.
                unsafe { (a[3] as *mut [i32; 2]).write([fresh as i32, fresh as i32 + 1]) };
                0
            }
            "clone" => {
                self.forked = !self.facts.child;
                // SAFETY: CLONE_PIDFD writes an int there.
                unsafe { (a[2] as *mut i32).write(fresh as i32) };
                if self.facts.child { 0 } else { CHILD as isize }
            }
            "clone3" => {
                // SAFETY: the second field of struct clone_args is a pointer, where CLONE_PIDFD writes an int.
                unsafe { ((a[0] as *const [u64; 11]).read()[1] as *mut i32).write(fresh as i32) };
                if self.facts.child { 0 } else { CHILD as isize }
            }
            // PID 1 reads the end of the stream from its child; every other reader gets one byte.
            "recvfrom" => isize::from(!self.forked),
            "ppoll" if a[0] != 0 => {
                // SAFETY: ppoll(2) writes the last two bytes of each struct pollfd.
                unsafe { ((a[0] + 6) as *mut i16).write(1) };
                1
            }
            // The child has executed the command, so it is none that sends no signal at its end.
            "wait4" if a[2] & libc::__WCLONE.cast_unsigned() as usize != 0 => -(libc::ECHILD as isize),
            "wait4" => {
                // SAFETY: wait4(2) writes an int.
                unsafe { (a[1] as *mut i32).write(0) };
                CHILD as isize
            }
            "prctl" if prctl(a[0]) == "PR_GET_SECUREBITS" => isize::from(self.facts.securebits),
            "getcwd" => {
                // SAFETY: getcwd(2) writes a path, and the buffer has room for this one.
                unsafe { (a[0] as *mut u8).write(if self.facts.unreachable { b'(' } else { b'/' }) };
                1
            }
            "pread64" if a[2] == LOG_HEADER => {
                let header = LogHeader { size: 1 << 16, ..LogHeader::default() };
                // SAFETY: pread(2) writes at most `a[2]` bytes, and the header has as many.
                unsafe { (a[1] as *mut [u8; LOG_HEADER]).write(header.encode()) };
                LOG_HEADER as isize
            }
            "pread64" => {
                let text = *b"usage_usec 1500\nuser_usec 700\n";
                // SAFETY: pread(2) writes at most `a[2]` bytes, and the caller's buffer has room for this text.
                unsafe { (a[1] as *mut [u8; 30]).write(text) };
                text.len() as isize
            }
            "sched_setaffinity" if self.facts.cpuset_changes > 0 => {
                self.facts.cpuset_changes -= 1;
                -(libc::EINVAL as isize)
            }
            "statx" if self.facts.missing => -(libc::ENOENT as isize),
            "statx" => {
                // SAFETY: statx(2) writes a struct statx.
                unsafe { self.statx(path, a) };
                0
            }
            _ => 0,
        })
    }

    fn make(&mut self, path: &str) {
        self.facts.absent.retain(|absent| last(absent) != path);
    }

    /// Describes a regular file whose inode number is a hash of its path. All files are on one mount; `/..` is on
    /// another one while something is mounted over the root.
    unsafe fn statx(&mut self, path: &str, a: [usize; 6]) {
        let held = self.facts.held.to_owned();
        let object =
            if path.is_empty() { self.opened.get(&a[0]).cloned().unwrap_or(held) } else { path.to_owned() };
        let mut mount = 7;
        if path == "/.." && self.facts.over_root > 1 {
            self.facts.over_root -= 1;
            mount = 8;
        }
        // SAFETY: all zeroes is a valid struct statx.
        let mut answer: libc::statx = unsafe { std::mem::zeroed() };
        answer.stx_mask = libc::STATX_BASIC_STATS | libc::STATX_MNT_ID;
        answer.stx_mode = libc::S_IFREG as u16;
        answer.stx_ino = object.bytes().fold(1, |sum, byte| sum * 31 + u64::from(byte));
        answer.stx_mnt_id = mount;
        // SAFETY: the caller's buffer has room for a struct statx.
        unsafe { (a[4] as *mut libc::statx).write_unaligned(answer) };
    }
}
