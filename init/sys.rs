//! System calls, named as their manual pages. Each returns the kernel's errno on refusal.
//!
//! Unsafe code is here, in `x86_64.rs` and in `mem.rs`. Every block relies on one of two things: the arguments are
//! numbers, or they are references and slices that outlive the call.

use core::ops::Range;

use crate::arch::{nr, syscall};
use crate::uapi::*;
pub use crate::uapi::{IN_ROOT, IN_ROOT_NO_LINKS, NO_LINKS, O_NEW};
use crate::wire::Str;
pub use mounts::*;

#[path = "sys_mounts.rs"]
mod mounts;

/// errno, as a positive number.
pub type Errno = i32;

fn check(ret: isize) -> Result<usize, Errno> {
    if ret < 0 { Err(ret.wrapping_neg() as Errno) } else { Ok(ret as usize) }
}

fn call(number: usize, args: [usize; 6]) -> Result<usize, Errno> {
    // SAFETY: this function is private to the file; every caller passes numbers, or addresses of live references.
    check(unsafe { syscall(number, args) })
}

fn addr<T: ?Sized>(value: &T) -> usize {
    core::ptr::from_ref(value).cast::<u8>() as usize
}

fn addr_mut<T: ?Sized>(value: &mut T) -> usize {
    core::ptr::from_mut(value).cast::<u8>() as usize
}

/// Address of a NUL-terminated string: decoded from the plan, a literal, or a buffer that outlives the call.
#[derive(Clone, Copy)]
pub struct Z(usize);

impl Z {
    /// The string without its first `n` bytes. `n` must not be more than its length.
    pub fn skip(self, n: usize) -> Z {
        Z(self.0.wrapping_add(n))
    }
}

impl From<Str<'static>> for Z {
    /// Decoded strings are followed by a NUL: the decoder refuses others.
    fn from(text: Str<'static>) -> Z {
        Z(text.bytes().as_ptr() as usize)
    }
}

impl From<&core::ffi::CStr> for Z {
    fn from(text: &core::ffi::CStr) -> Z {
        Z(text.as_ptr() as usize)
    }
}

/// exit_group(2).
pub fn exit(code: i32) -> ! {
    // The task's seccomp filter may refuse either call.
    let _ = call(nr::EXIT_GROUP, [code as usize, 0, 0, 0, 0, 0]);
    let _ = call(nr::EXIT, [code as usize, 0, 0, 0, 0, 0]);
    crate::arch::fault()
}

/// Maps the whole of `fd` for reading, until [`unmap`].
pub fn map(fd: i32) -> Result<&'static [u8], Errno> {
    let mut stat = [0u64; 18];
    call(nr::FSTAT, [fd as usize, addr_mut(&mut stat), 0, 0, 0, 0])?;
    // st_size is the seventh word of struct stat on x86_64.
    let len = stat[6] as usize;
    let base = call(nr::MMAP, [0, len, PROT_READ, MAP_PRIVATE, fd as usize, 0])?;
    // SAFETY: the kernel mapped len readable bytes at base. The memfd is sealed against writing and shrinking, and the
    // caller of `unmap` promises not to read the bytes afterwards.
    Ok(unsafe { core::slice::from_raw_parts(base as *const u8, len) })
}

/// Unmaps a mapping that `map` returned.
///
/// # Safety
/// The mapping must not be read afterwards.
pub unsafe fn unmap(bytes: &'static [u8]) {
    let _ = call(nr::MUNMAP, [bytes.as_ptr() as usize, bytes.len(), 0, 0, 0, 0]);
}

/// Maps at least `words` machine words of anonymous, zeroed memory, which is never unmapped.
pub fn map_words(words: usize) -> Result<&'static mut [usize], Errno> {
    let len = words.saturating_mul(8).max(8);
    let base = call(nr::MMAP, [0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, usize::MAX, 0])?;
    // SAFETY: a fresh anonymous mapping of len bytes, page-aligned; no other reference to it exists.
    Ok(unsafe { core::slice::from_raw_parts_mut(base as *mut usize, words) })
}

/// close(2).
pub fn close(fd: i32) {
    let _ = call(nr::CLOSE, [fd as usize, 0, 0, 0, 0, 0]);
}

/// close_range(2) of the descriptors in `fds`. Does nothing for an empty range.
pub fn close_range(fds: Range<i32>) -> Result<(), Errno> {
    if fds.is_empty() {
        return Ok(());
    }
    call(nr::CLOSE_RANGE, [fds.start as usize, fds.end.wrapping_sub(1) as usize, 0, 0, 0, 0]).map(drop)
}

/// close_range(2) of all descriptors from `first` up.
pub fn close_from(first: i32) -> Result<(), Errno> {
    call(nr::CLOSE_RANGE, [first as usize, u32::MAX as usize, 0, 0, 0, 0]).map(drop)
}

/// write(2).
pub fn write(fd: i32, bytes: &[u8]) -> Result<(), Errno> {
    write_some(fd, bytes).map(drop)
}

/// write(2). Returns the number of written bytes.
pub fn write_some(fd: i32, bytes: &[u8]) -> Result<usize, Errno> {
    call(nr::WRITE, [fd as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0])
}

/// read(2).
pub fn read(fd: i32, buffer: &mut [u8]) -> Result<usize, Errno> {
    call(nr::READ, [fd as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0])
}

/// pread(2).
pub fn pread(fd: i32, buffer: &mut [u8], at: u64) -> Result<usize, Errno> {
    call(nr::PREAD64, [fd as usize, buffer.as_mut_ptr() as usize, buffer.len(), at as usize, 0, 0])
}

/// send(2) with MSG_NOSIGNAL.
pub fn send(fd: i32, bytes: &[u8]) -> Result<(), Errno> {
    call(nr::SENDTO, [fd as usize, bytes.as_ptr() as usize, bytes.len(), MSG_NOSIGNAL, 0, 0]).map(drop)
}

/// recv(2), repeated on EINTR. 0 is the end of the stream.
pub fn recv(fd: i32, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match call(nr::RECVFROM, [fd as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0]) {
            Err(EINTR) => {}
            done => return done,
        }
    }
}

/// Whether the peer of a socket that has nothing to read has closed its end. Does not wait.
pub fn has_hung_up(fd: i32) -> Result<bool, Errno> {
    let mut byte = 0u8;
    let buffer = core::ptr::from_mut(&mut byte) as usize;
    loop {
        match call(nr::RECVFROM, [fd as usize, buffer, 1, MSG_PEEK | MSG_DONTWAIT, 0, 0]) {
            Ok(0) | Err(ECONNRESET) => return Ok(true),
            Ok(_) | Err(EAGAIN) => return Ok(false),
            Err(EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Sends `bytes` with one descriptor (SCM_RIGHTS, unix(7)).
pub fn send_fd(socket: i32, bytes: &[u8], fd: i32) -> Result<(), Errno> {
    let iov = [bytes.as_ptr() as usize, bytes.len()];
    // struct cmsghdr with one int: 20 bytes, then 4 bytes of padding.
    let control: [u32; 6] = [20, 0, SOL_SOCKET, SCM_RIGHTS, fd as u32, 0];
    let message: [usize; 7] = [0, 0, addr(&iov), 1, addr(&control), 24, 0];
    call(nr::SENDMSG, [socket as usize, addr(&message), MSG_NOSIGNAL, 0, 0, 0]).map(drop)
}

/// socketpair(AF_UNIX, SOCK_SEQPACKET), close-on-exec.
pub fn socketpair() -> Result<(i32, i32), Errno> {
    let mut pair = [-1i32; 2];
    call(nr::SOCKETPAIR, [AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, addr_mut(&mut pair), 0, 0])?;
    let [one, other] = pair;
    Ok((one, other))
}

/// clone(2) without shared memory, as fork(2), with a pidfd of the child. Returns 0 in the child. The child sends no
/// signal at its end until it executes a program: the kernel then sets SIGCHLD. So wait4(2) knows whether it has
/// executed one.
pub fn fork(pidfd: &mut i32) -> Result<i32, Errno> {
    call(nr::CLONE, [CLONE_PIDFD, 0, addr_mut(pidfd), 0, 0, 0]).map(|pid| pid as i32)
}

/// prctl(PR_SET_NAME).
pub fn set_name(name: impl Into<Z>) -> Result<(), Errno> {
    call(nr::PRCTL, [PR_SET_NAME, name.into().0, 0, 0, 0, 0]).map(drop)
}

/// clone3(2) without shared memory, into a version 2 cgroup, as another child of the parent. With a pidfd of it.
/// Returns 0 in the child.
pub fn clone_into(cgroup: i32, pidfd: &mut i32) -> Result<i32, Errno> {
    let flags = CLONE_PARENT | CLONE_PIDFD | CLONE_INTO_CGROUP;
    let args: [u64; 11] = [flags as u64, addr_mut(pidfd) as u64, 0, 0, 0, 0, 0, 0, 0, 0, cgroup as u64];
    call(nr::CLONE3, [addr(&args), size_of_val(&args), 0, 0, 0, 0]).map(|pid| pid as i32)
}

/// kill(2) with SIGKILL.
pub fn kill(pid: i32) -> Result<(), Errno> {
    call(nr::KILL, [pid as usize, SIGKILL, 0, 0, 0, 0]).map(drop)
}

/// fcntl(F_DUPFD_CLOEXEC).
pub fn dup_above(fd: i32, least: i32) -> Result<i32, Errno> {
    call(nr::FCNTL, [fd as usize, F_DUPFD_CLOEXEC, least as usize, 0, 0, 0]).map(|fd| fd as i32)
}

/// dup3(2) without O_CLOEXEC.
pub fn dup3(from: i32, to: i32) -> Result<(), Errno> {
    call(nr::DUP3, [from as usize, to as usize, 0, 0, 0, 0]).map(drop)
}

/// setsid(2).
pub fn setsid() -> Result<(), Errno> {
    call(nr::SETSID, [0; 6]).map(drop)
}

/// keyctl(KEYCTL_JOIN_SESSION_KEYRING) with no name: joins a new anonymous session keyring.
pub fn join_new_keyring() -> Result<(), Errno> {
    call(nr::KEYCTL, [KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0, 0]).map(drop)
}

/// umask(2).
pub fn umask(mask: u32) {
    let _ = call(nr::UMASK, [mask as usize, 0, 0, 0, 0, 0]);
}

/// rt_sigaction(2): sets the default disposition of every signal.
pub fn reset_signals() {
    let action = [0usize; 4];
    for signal in 1..=NSIG {
        let _ = call(nr::RT_SIGACTION, [signal, addr(&action), 0, 8, 0, 0]);
    }
}

/// rt_sigprocmask(2): unblocks every signal.
pub fn unblock_signals() -> Result<(), Errno> {
    let none = 0u64;
    call(nr::RT_SIGPROCMASK, [SIG_SETMASK, addr(&none), 0, 8, 0, 0]).map(drop)
}

/// signalfd4(2) for SIGCHLD, close-on-exec.
pub fn open_child_signals() -> Result<i32, Errno> {
    let mask = 1u64 << (SIGCHLD - 1);
    call(nr::SIGNALFD4, [usize::MAX, addr(&mask), 8, SFD_CLOEXEC, 0, 0]).map(|fd| fd as i32)
}

/// timerfd_create(2), close-on-exec.
pub fn create_timer() -> Result<i32, Errno> {
    call(nr::TIMERFD_CREATE, [CLOCK_MONOTONIC, TFD_CLOEXEC, 0, 0, 0, 0]).map(|fd| fd as i32)
}

/// timerfd_settime(2): expires once, after this time.
pub fn start_timer(timer: i32, nanoseconds: u64) -> Result<(), Errno> {
    const SECOND: u64 = 1_000_000_000;
    // struct itimerspec: the interval, and the time to the first expiry.
    let time = [0, 0, nanoseconds / SECOND, nanoseconds % SECOND];
    call(nr::TIMERFD_SETTIME, [timer as usize, 0, addr(&time), 0, 0, 0]).map(drop)
}

/// fcntl(2), F_SETLK: an exclusive lock on the first byte of a file. It belongs to this process, not to a child, and
/// ends when the process ends or closes a descriptor of the file. It shows the process's PID to others.
pub fn lock_first_byte(fd: i32) -> Result<(), Errno> {
    // struct flock: type and whence, start, length, pid.
    let lock = [F_WRLCK, 0, 1, 0];
    call(nr::FCNTL, [fd as usize, F_SETLK, addr(&lock), 0, 0, 0]).map(drop)
}

/// pwrite(2).
pub fn pwrite(fd: i32, bytes: &[u8], at: u64) -> Result<usize, Errno> {
    call(nr::PWRITE64, [fd as usize, bytes.as_ptr() as usize, bytes.len(), at as usize, 0, 0])
}

/// fsync(2).
pub fn fsync(fd: i32) -> Result<(), Errno> {
    call(nr::FSYNC, [fd as usize, 0, 0, 0, 0, 0]).map(drop)
}

/// clock_gettime(2) of the real-time clock: seconds and nanoseconds since the epoch. Zero if the call is refused.
pub fn now() -> (u64, u32) {
    let mut time = [0u64; 2];
    let _ = call(nr::CLOCK_GETTIME, [CLOCK_REALTIME, addr_mut(&mut time), 0, 0, 0, 0]);
    let [seconds, nanoseconds] = time;
    (seconds, nanoseconds as u32)
}

/// struct pollfd.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PollFd {
    /// The descriptor; ppoll(2) ignores a negative one.
    pub fd: i32,
    /// Requested events.
    pub events: i16,
    /// Returned events.
    pub revents: i16,
}

/// ppoll(2). Without `block` it does not wait.
pub fn poll<const N: usize>(fds: &mut [PollFd; N], block: bool) -> Result<(), Errno> {
    let now = [0usize; 2];
    call(nr::PPOLL, [addr_mut(fds), N, if block { 0 } else { addr(&now) }, 0, 0, 0]).map(drop)
}

/// Sleeps for a number of milliseconds, by ppoll(2) without descriptors.
pub fn sleep_ms(milliseconds: usize) {
    let time = [0usize, milliseconds.saturating_mul(1_000_000)];
    let _ = call(nr::PPOLL, [0, 0, addr(&time), 0, 0, 0]);
}

/// wait4(2): the pid, and the wait status. No status for a stop, which is no end: the kernel reports one of a child
/// that has made this process its tracer (`PTRACE_TRACEME`).
fn wait(pid: i32, options: usize) -> Result<(i32, Option<i32>), Errno> {
    let mut status = 0i32;
    let pid = call(nr::WAIT4, [pid as usize, addr_mut(&mut status), options, 0, 0, 0])?;
    Ok((pid as i32, (status & 0xff != 0x7f).then_some(status)))
}

/// As [`wait`], for any child. The pid is 0 if `block` is false and no child has ended.
pub fn wait_any(block: bool) -> Result<(i32, Option<i32>), Errno> {
    wait(-1, WALL | if block { 0 } else { WNOHANG })
}

/// The wait status of a child, if it has ended.
pub fn wait_ended(pid: i32) -> Option<i32> {
    let (found, status) = wait(pid, WALL | WNOHANG).ok()?;
    status.filter(|_| found != 0)
}

/// The wait status of a child of [`fork`] that has ended, or is about to, without having executed a program. `None` if
/// it has executed one.
pub fn wait_unexecuted(pid: i32) -> Option<i32> {
    wait(pid, WCLONE).ok()?.1
}

/// prctl(2).
pub fn prctl(option: usize, a: usize, b: usize) -> Result<usize, Errno> {
    call(nr::PRCTL, [option, a, b, 0, 0, 0])
}

/// sched_setscheduler(2): sets SCHED_OTHER.
pub fn reset_scheduler() -> Result<(), Errno> {
    let priority = 0i32;
    call(nr::SCHED_SETSCHEDULER, [0, SCHED_OTHER, addr(&priority), 0, 0, 0]).map(drop)
}

/// setpriority(2): sets the nice value of this process to 0.
pub fn reset_nice() -> Result<(), Errno> {
    call(nr::SETPRIORITY, [PRIO_PROCESS, 0, 0, 0, 0, 0]).map(drop)
}

/// ioprio_set(2) of this process to 0: the I/O priority follows the nice value.
pub fn reset_io_priority() -> Result<(), Errno> {
    call(nr::IOPRIO_SET, [IOPRIO_WHO_PROCESS, 0, 0, 0, 0, 0]).map(drop)
}

/// set_mempolicy(2): sets MPOL_DEFAULT.
pub fn reset_memory_policy() -> Result<(), Errno> {
    call(nr::SET_MEMPOLICY, [MPOL_DEFAULT, 0, 0, 0, 0, 0]).map(drop)
}

/// personality(2).
pub fn personality(value: usize) -> Result<(), Errno> {
    call(nr::PERSONALITY, [value, 0, 0, 0, 0, 0]).map(drop)
}

/// sched_setaffinity(2) to all CPUs. The kernel restricts the mask to the cpuset.
pub fn allow_all_processors() -> Result<(), Errno> {
    let all = [u64::MAX; 128];
    call(nr::SCHED_SETAFFINITY, [0, 1024, addr(&all), 0, 0, 0]).map(drop)
}

/// seccomp(SECCOMP_SET_MODE_FILTER) for this thread. SPEC_ALLOW: the filter turns on no speculation mitigation. The
/// filter is an array of `struct sock_filter`, eight bytes each.
pub fn seccomp(filter: &[u8]) -> Result<(), Errno> {
    let program = [filter.len() / 8, filter.as_ptr() as usize];
    call(nr::SECCOMP, [SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, addr(&program), 0, 0, 0])
        .map(drop)
}

/// landlock_create_ruleset(2), with `struct landlock_ruleset_attr` as of ABI 6. Kernels with an older ABI accept it if
/// the fields they do not know are zero.
pub fn landlock_create_ruleset(fs: u64, scoped: u64) -> Result<i32, Errno> {
    let attr = [fs, 0, scoped];
    call(nr::LANDLOCK_CREATE_RULESET, [addr(&attr), 24, 0, 0, 0, 0]).map(|fd| fd as i32)
}

/// landlock_add_rule(2): allows LANDLOCK_ACCESS_FS_REFER below a directory.
pub fn landlock_allow_refer(ruleset: i32, dir: i32) -> Result<(), Errno> {
    // struct landlock_path_beneath_attr is packed: the 64-bit access mask, then the descriptor.
    let attr = [LANDLOCK_ACCESS_FS_REFER, 0, dir as u32];
    call(nr::LANDLOCK_ADD_RULE, [ruleset as usize, LANDLOCK_RULE_PATH_BENEATH, addr(&attr), 0, 0, 0])
        .map(drop)
}

/// landlock_restrict_self(2).
pub fn landlock_restrict_self(ruleset: i32) -> Result<(), Errno> {
    call(nr::LANDLOCK_RESTRICT_SELF, [ruleset as usize, 0, 0, 0, 0, 0]).map(drop)
}

/// setns(2).
pub fn setns(fd: i32, kind: u32) -> Result<(), Errno> {
    call(nr::SETNS, [fd as usize, kind as usize, 0, 0, 0, 0]).map(drop)
}

/// unshare(2).
pub fn unshare(flags: u32) -> Result<(), Errno> {
    call(nr::UNSHARE, [flags as usize, 0, 0, 0, 0, 0]).map(drop)
}

/// sethostname(2).
pub fn sethostname(name: &[u8]) -> Result<(), Errno> {
    call(nr::SETHOSTNAME, [name.as_ptr() as usize, name.len(), 0, 0, 0, 0]).map(drop)
}

/// ioctl(2) with a pointer to its argument.
pub fn ioctl<T>(fd: i32, request: usize, arg: &T) -> Result<(), Errno> {
    call(nr::IOCTL, [fd as usize, request, addr(arg), 0, 0, 0]).map(drop)
}

/// ioctl(2) with a number as its argument.
pub fn ioctl_number(fd: i32, request: usize, arg: usize) -> Result<i32, Errno> {
    call(nr::IOCTL, [fd as usize, request, arg, 0, 0, 0]).map(|value| value as i32)
}

/// socket(AF_INET, SOCK_DGRAM|SOCK_CLOEXEC).
pub fn open_inet_socket() -> Result<i32, Errno> {
    call(nr::SOCKET, [AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0, 0, 0, 0]).map(|fd| fd as i32)
}

/// ioctl(SIOCSIFFLAGS): brings `lo` up (netdevice(7)).
pub fn bring_up_loopback(socket: i32) -> Result<(), Errno> {
    // struct ifreq: 16 bytes of name, then the flags.
    let mut request = [[0u8; 8]; 5];
    request[0] = *b"lo\0\0\0\0\0\0";
    request[2] = [IFF_UP | IFF_RUNNING, 0, 0, 0, 0, 0, 0, 0];
    ioctl(socket, SIOCSIFFLAGS, &request)
}

/// prlimit64(2) on this process.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limits = [soft, hard];
    call(nr::PRLIMIT64, [0, resource as usize, addr(&limits), 0, 0, 0]).map(drop)
}

/// setgroups(2).
pub fn setgroups(groups: &[usize], count: usize) -> Result<(), Errno> {
    call(nr::SETGROUPS, [count, groups.as_ptr() as usize, 0, 0, 0, 0]).map(drop)
}

/// setresgid(2) of the real, effective and saved group id.
pub fn setresgid(gid: u32) -> Result<(), Errno> {
    call(nr::SETRESGID, [gid as usize, gid as usize, gid as usize, 0, 0, 0]).map(drop)
}

/// setresuid(2) of the real, effective and saved user id.
pub fn setresuid(uid: u32) -> Result<(), Errno> {
    call(nr::SETRESUID, [uid as usize, uid as usize, uid as usize, 0, 0, 0]).map(drop)
}

/// capset(2). The effective set equals the permitted set.
pub fn capset(permitted: u64, inheritable: u64) -> Result<(), Errno> {
    let header = [LINUX_CAPABILITY_VERSION_3, 0];
    let (p, i) = (permitted, inheritable);
    let data = [p as u32, p as u32, i as u32, (p >> 32) as u32, (p >> 32) as u32, (i >> 32) as u32];
    call(nr::CAPSET, [addr(&header), addr(&data), 0, 0, 0, 0]).map(drop)
}

/// openat(2), close-on-exec.
pub fn openat(dir: i32, path: impl Into<Z>, flags: usize, mode: u32) -> Result<i32, Errno> {
    call(nr::OPENAT, [dir as usize, path.into().0, flags | O_CLOEXEC, mode as usize, 0, 0])
        .map(|fd| fd as i32)
}

/// openat2(2), close-on-exec.
pub fn openat2(dir: i32, path: impl Into<Z>, flags: usize, resolve: u64) -> Result<i32, Errno> {
    let how = [(flags | O_CLOEXEC) as u64, 0, resolve];
    call(nr::OPENAT2, [dir as usize, path.into().0, addr(&how), 24, 0, 0]).map(|fd| fd as i32)
}

/// unlinkat(2).
pub fn unlinkat(dir: i32, name: impl Into<Z>) -> Result<(), Errno> {
    call(nr::UNLINKAT, [dir as usize, name.into().0, 0, 0, 0, 0]).map(drop)
}

/// mkdirat(2).
pub fn mkdirat(dir: i32, name: impl Into<Z>, mode: u32) -> Result<(), Errno> {
    call(nr::MKDIRAT, [dir as usize, name.into().0, mode as usize, 0, 0, 0]).map(drop)
}

/// fchownat(2) of a name in `dir`. Does not follow a symbolic link.
pub fn fchownat(dir: i32, name: impl Into<Z>, uid: u32, gid: u32) -> Result<(), Errno> {
    let args = [dir as usize, name.into().0, uid as usize, gid as usize, AT_SYMLINK_NOFOLLOW, 0];
    call(nr::FCHOWNAT, args).map(drop)
}

/// fchownat(2) of the file that `fd` refers to.
pub fn fchown(fd: i32, uid: u32, gid: u32) -> Result<(), Errno> {
    let args = [fd as usize, Z::from(c"").0, uid as usize, gid as usize, AT_EMPTY_PATH, 0];
    call(nr::FCHOWNAT, args).map(drop)
}

/// fchmodat(2).
pub fn fchmodat(dir: i32, name: impl Into<Z>, mode: u32) -> Result<(), Errno> {
    call(nr::FCHMODAT, [dir as usize, name.into().0, mode as usize, 0, 0, 0]).map(drop)
}

/// mknodat(2) of a character device with mode 0666.
pub fn mknodat(dir: i32, name: impl Into<Z>, major: u32, minor: u32) -> Result<(), Errno> {
    let device = ((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)) as usize;
    call(nr::MKNODAT, [dir as usize, name.into().0, S_IFCHR | 0o666, device, 0, 0]).map(drop)
}

/// symlinkat(2).
pub fn symlinkat(text: impl Into<Z>, dir: i32, name: impl Into<Z>) -> Result<(), Errno> {
    call(nr::SYMLINKAT, [text.into().0, dir as usize, name.into().0, 0, 0, 0]).map(drop)
}

/// The type of the file at `path` (statx(2)).
pub fn file_type(path: impl Into<Z>) -> Result<u16, Errno> {
    let mut buffer = [0u16; 128];
    call(nr::STATX, [AT_FDCWD as usize, path.into().0, 0, STATX_TYPE, addr_mut(&mut buffer), 0])?;
    // stx_mode is the 16-bit word at 0x1c.
    Ok(buffer[14] & S_IFMT)
}

/// Id of the mount that a path is on (statx(2), Linux 5.8). An empty path is `dir` itself.
pub fn mount_id(dir: i32, path: impl Into<Z>) -> Result<u64, Errno> {
    mount_and_inode(dir, path).map(|(mount, _)| mount)
}

/// Whether two descriptors refer to the same file or directory, even through different mounts.
pub fn same_object(one: i32, other: i32) -> Result<bool, Errno> {
    let of = |fd: i32| {
        let mut buffer = [0u64; 32];
        let args = [fd as usize, Z::from(c"").0, AT_EMPTY_PATH, STATX_INO, addr_mut(&mut buffer), 0];
        // stx_ino is at 0x20; stx_dev_major and stx_dev_minor are at 0x88.
        call(nr::STATX, args).map(|_| (buffer[4], buffer[17]))
    };
    Ok(of(one)? == of(other)?)
}

/// Whether two descriptors refer to the same file or directory through the same mount.
pub fn same_place(one: i32, other: i32) -> Result<bool, Errno> {
    Ok(mount_and_inode(one, c"")? == mount_and_inode(other, c"")?)
}

fn mount_and_inode(dir: i32, path: impl Into<Z>) -> Result<(u64, u64), Errno> {
    let mut buffer = [0u64; 32];
    let args =
        [dir as usize, path.into().0, AT_EMPTY_PATH, STATX_INO | STATX_MNT_ID, addr_mut(&mut buffer), 0];
    call(nr::STATX, args)?;
    // stx_mask is the first half of the first word, stx_ino is at 0x20, stx_mnt_id is at 0x90.
    if buffer[0] as usize & STATX_MNT_ID == 0 { Err(ENOSYS) } else { Ok((buffer[18], buffer[4])) }
}

/// chdir(2).
pub fn chdir(path: impl Into<Z>) -> Result<(), Errno> {
    call(nr::CHDIR, [path.into().0, 0, 0, 0, 0, 0]).map(drop)
}

/// fchdir(2).
pub fn fchdir(fd: i32) -> Result<(), Errno> {
    call(nr::FCHDIR, [fd as usize, 0, 0, 0, 0, 0]).map(drop)
}

/// Fails with ENOENT unless getcwd(2) returns a path below the root. The kernel prefixes other paths with
/// "(unreachable)".
pub fn check_cwd() -> Result<(), Errno> {
    let mut buffer = [0u8; 4096];
    call(nr::GETCWD, [addr_mut(&mut buffer), 4096, 0, 0, 0, 0])?;
    if buffer[0] == b'/' { Ok(()) } else { Err(ENOENT) }
}

/// chroot(2).
pub fn chroot(path: impl Into<Z>) -> Result<(), Errno> {
    call(nr::CHROOT, [path.into().0, 0, 0, 0, 0, 0]).map(drop)
}

/// pivot_root(".", ".").
pub fn pivot_root() -> Result<(), Errno> {
    let dot = Z::from(c".").0;
    call(nr::PIVOT_ROOT, [dot, dot, 0, 0, 0, 0]).map(drop)
}

/// execve(2). Returns only on refusal.
pub fn execve(path: impl Into<Z>, argv: &[usize], envp: &[usize]) -> Errno {
    match call(nr::EXECVE, [path.into().0, argv.as_ptr() as usize, envp.as_ptr() as usize, 0, 0, 0]) {
        Err(errno) => errno,
        Ok(_) => 0,
    }
}
