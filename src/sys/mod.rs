//! System calls that nix lacks. The only unsafe code outside `spawn` and `init` is here.
//!
//! Each wrapper takes and returns owned or borrowed descriptors and plain values, so its callers need no unsafe code.
//! Every unsafe block relies on its arguments being numbers, or pointers to values that outlive the call; no wrapper
//! keeps a pointer. The wrappers have no policy: each does what the manual page of its call says.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use procfs::FromRead as _;

#[cfg(not(target_arch = "x86_64"))]
compile_error!(
    "cofferdam supports only x86_64: another architecture needs files next to src/sys/x86_64.rs and init/x86_64.rs"
);
#[cfg(target_arch = "x86_64")]
#[path = "x86_64.rs"]
pub(crate) mod arch;
pub(crate) mod bpf;
pub(crate) mod child;
pub(crate) mod fs;
pub(crate) mod lock;
pub(crate) mod mountinfo;
pub(crate) mod probe;
#[cfg(test)]
pub(crate) mod refuse;
pub(crate) mod thread;
pub(crate) mod user_ns;

/// Converts the return value of a libc call: `Ok`, or the thread's errno.
fn check(ret: libc::c_long) -> io::Result<libc::c_long> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

fn own(ret: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(check(ret)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Creates a memfd (`memfd_create(2)`, Linux 3.17) with the content `bytes`, sealed against writing, shrinking, growing
/// and further seals. `exec` requests an executable one (`MFD_EXEC`, Linux 6.3), whatever the default of
/// `vm.memfd_noexec` is. With `vm.memfd_noexec` = 2 the kernel refuses that with `EACCES`.
pub(crate) fn sealed_memfd(name: &std::ffi::CStr, bytes: &[u8], exec: bool) -> io::Result<OwnedFd> {
    const MFD_NOEXEC_SEAL: libc::c_uint = 0x8;
    const MFD_EXEC: libc::c_uint = 0x10;
    let base = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let wanted = base | if exec { MFD_EXEC } else { MFD_NOEXEC_SEAL };
    // SAFETY: `name` is a NUL-terminated string; the flags are numbers.
    let create =
        |flags: libc::c_uint| own(unsafe { libc::syscall(libc::SYS_memfd_create, name.as_ptr(), flags) });
    let fd = match create(wanted) {
        // Before Linux 6.3 the kernel knows neither flag.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => create(base)?,
        other => other?,
    };
    write_all(&fd, bytes)?;
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: fcntl on a descriptor that this function owns, with a number.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) }.into())?;
    Ok(fd)
}

/// Runs `work` with SIGXFSZ blocked in this thread. A write beyond the caller's file size limit (`RLIMIT_FSIZE`,
/// `setrlimit(2)`) then fails with `EFBIG`, and the signal that the kernel also sends does not end the caller.
pub(crate) fn without_sigxfsz<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    use nix::sys::signal::{SigSet, SigmaskHow, Signal};
    let mut only = SigSet::empty();
    only.add(Signal::SIGXFSZ);
    // A guard, so the signal mask is restored even if `work` panics: `work` may call a function of the caller.
    struct Blocked(SigSet, SigSet);
    impl Drop for Blocked {
        fn drop(&mut self) {
            let Blocked(only, mask) = self;
            if !mask.contains(Signal::SIGXFSZ) {
                let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
                let set: &libc::sigset_t = (*only).as_ref();
                // SAFETY: the set and the time outlive the call; the null pointer asks for no siginfo. The call removes
                // a pending SIGXFSZ from this thread, which blocks the signal, and does not wait.
                unsafe { libc::sigtimedwait(set, std::ptr::null_mut(), &raw const now) };
            }
            // It cannot fail: the mask is a former mask of this thread.
            let _ = mask.thread_set_mask();
        }
    }
    let mask = only.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let _blocked = Blocked(only, mask);
    work()
}

/// Writes all of `bytes` to a file, with SIGXFSZ blocked.
pub(crate) fn write_all(fd: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    without_sigxfsz(|| {
        let mut rest = bytes;
        while !rest.is_empty() {
            let n = nix::unistd::write(fd, rest)?;
            rest = rest.get(n..).unwrap_or_default();
        }
        Ok(())
    })
}

/// Duplicates a descriptor of the caller by its number. The copy is close-on-exec and not below 3.
pub(crate) fn dup_number(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC on any number returns a new descriptor or EBADF, and changes nothing else.
    own(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) }.into())
}

/// How a child ended, as reported by `waitid(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It exited with this code.
    Code(i32),
    /// It was killed by this signal.
    Signal {
        number: i32,
        /// Whether the kernel wrote a core dump.
        core_dumped: bool,
    },
}

/// Waits for the end of a child (`waitid(P_PIDFD)`, Linux 5.4). A stop is no end: the kernel reports one if the child has
/// made this process its tracer (`PTRACE_TRACEME`). Returns `None` if the child is running and `block` is
/// false. If `reap` is false, the child stays waitable. The resource usage is that of the child and of all processes
/// that it has reaped.
pub(crate) fn wait_pidfd(
    pidfd: BorrowedFd<'_>,
    block: bool,
    reap: bool,
) -> io::Result<Option<(Ended, libc::rusage)>> {
    let mut options = libc::WEXITED | libc::__WALL;
    if !block {
        options |= libc::WNOHANG;
    }
    if !reap {
        options |= libc::WNOWAIT;
    }
    loop {
        // SAFETY: siginfo_t and rusage are plain data for which all zeroes are a valid value.
        let (mut info, mut usage): (libc::siginfo_t, libc::rusage) = unsafe { std::mem::zeroed() };
        // The wrapper of the C library has no argument for the resource usage.
        // SAFETY: info and usage outlive the call.
        let waited = check(unsafe {
            let (number, fd) = (libc::SYS_waitid, pidfd.as_raw_fd());
            libc::syscall(number, libc::P_PIDFD, fd, &raw mut info, options, &raw mut usage)
        });
        match waited {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
            Ok(_) => {
                // SAFETY: waitid wrote the fields for SIGCHLD, or left them zero.
                let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
                let ended = match (pid, info.si_code) {
                    (0, _) => return Ok(None),
                    (_, libc::CLD_EXITED) => Ended::Code(status),
                    (_, code @ (libc::CLD_KILLED | libc::CLD_DUMPED)) => {
                        Ended::Signal { number: status, core_dumped: code == libc::CLD_DUMPED }
                    }
                    _ if !block => return Ok(None),
                    // It stays waitable, unless it was reaped.
                    _ => {
                        let _ = poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], PollTimeout::NONE);
                        continue;
                    }
                };
                return Ok(Some((ended, usage)));
            }
        }
    }
}

/// Whether the process has ended: its pidfd polls readable (Linux 5.3).
pub(crate) fn has_ended(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    is_readable(pidfd)
}

/// Whether a descriptor is readable now. False if a signal interrupts the call.
fn is_readable(fd: BorrowedFd<'_>) -> io::Result<bool> {
    match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO) {
        Err(Errno::EINTR) => Ok(false),
        polled => Ok(polled? > 0),
    }
}

/// Pid of a process in the PID namespace of the mounted `/proc`, whatever the caller's own PID namespace is. `None` if
/// the process has been reaped or is not visible in that namespace.
pub(crate) fn proc_pid(pidfd: BorrowedFd<'_>) -> Option<i32> {
    find_pid(pidfd).ok().flatten()
}

/// As [`proc_pid`]. `None` also if no `/proc` is mounted.
///
/// # Errors
/// The refused call.
pub(crate) fn find_pid(pidfd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    Ok(shown_pid(pidfd)?.filter(|pid| *pid > 0))
}

/// The PID that the mounted `/proc` shows for a pidfd: -1 for a process that was reaped, 0 for one that it does not show.
/// `None` if no `/proc` is mounted.
fn shown_pid(pidfd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let info = match fs::read_file(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        info => info?,
    };
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    Ok(Some(pid.unwrap_or(0)))
}

/// Whether a file of a process in `/proc` could not be read because there is no such process (`proc(5)`).
pub(crate) fn is_no_process(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// The state of a process (`proc_pid_stat(5)`). procfs parses it, but reads it with errors that lack the errno.
///
/// # Errors
/// The refused call; `ENOENT` or `ESRCH` if there is no such process.
pub(crate) fn stat(pid: i32) -> io::Result<procfs::process::Stat> {
    let text = std::fs::read(format!("/proc/{pid}/stat"))?;
    procfs::process::Stat::from_read(text.as_slice()).map_err(|e| io::Error::other(e.to_string()))
}

/// The time since a process was forked (`proc_pid_stat(5)`), in steps of a clock tick.
pub(crate) fn age(pid: i32) -> io::Result<Duration> {
    let booted = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?;
    let ticks = stat(pid)?.starttime as f64 / procfs::ticks_per_second() as f64;
    let begun = Duration::try_from_secs_f64(ticks).map_err(io::Error::other)?;
    Ok(Duration::from(booted).saturating_sub(begun))
}

/// Whether a process has begun to exit, or was sent a SIGKILL (`proc_pid_stat(5)`, `proc_pid_status(5)`). `None` if the
/// mounted `/proc` does not show it.
pub(crate) fn is_ending(pidfd: BorrowedFd<'_>) -> Option<bool> {
    let pid = proc_pid(pidfd)?;
    let exits = is_exiting(&stat(pid).ok()?);
    let status = fs::read_file(format!("/proc/{pid}/status")).ok()?;
    let killed = |line: &str| {
        let pending = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"));
        let pending = pending.and_then(|pending| u64::from_str_radix(pending.trim(), 16).ok());
        pending.is_some_and(|pending| pending & 1 << (libc::SIGKILL - 1) != 0)
    };
    Some(exits || status.lines().any(killed))
}

/// Whether a process has begun to exit, or has ended.
pub(crate) fn is_exiting(stat: &procfs::process::Stat) -> bool {
    const PF_EXITING: u32 = 4;
    stat.flags & PF_EXITING != 0
}

/// Whether the pidfd refers to a child of another process, or to a process that was reaped. True also if no `/proc` is
/// mounted, or if it does not show the process.
///
/// # Errors
/// The refused call.
pub(crate) fn is_child(pidfd: BorrowedFd<'_>, parent: BorrowedFd<'_>) -> io::Result<bool> {
    let pid = match shown_pid(pidfd)? {
        None => return Ok(true),
        Some(pid @ 1..) => pid,
        Some(gone) => return Ok(gone == -1),
    };
    let is = match stat(pid) {
        Err(e) if is_no_process(&e) => true,
        stat => {
            let ppid = stat?.ppid;
            find_pid(parent)?.is_none_or(|parent| ppid == parent)
        }
    };
    // The process may have been reaped meanwhile, and another one have its PID.
    Ok(is || shown_pid(pidfd)? == Some(-1))
}

/// The processes that the mounted `/proc` shows.
pub(crate) fn proc_pids() -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(pids)
}

/// The PIDs of the process in the nested PID namespaces that it is in, from that of the mounted `/proc` on (`NSpid` in
/// `proc_pid_status(5)`). `None` if it is not shown.
pub(crate) fn pids(pid: i32) -> Option<Vec<i32>> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    pids.split_whitespace().map(|pid| pid.parse().ok()).collect()
}

/// The inode number of the PID namespace of a process (`pid_namespaces(7)`). `None` if it is not shown.
pub(crate) fn pid_namespace(pid: impl std::fmt::Display) -> Option<u64> {
    let namespace = std::fs::metadata(format!("/proc/{pid}/ns/pid")).ok()?;
    Some(std::os::unix::fs::MetadataExt::ino(&namespace))
}

/// A pidfd of the calling process (`pidfd_open(2)`, Linux 5.3).
pub(crate) fn own_pidfd() -> io::Result<OwnedFd> {
    pidfd_open(std::process::id().cast_signed())
}

/// `pidfd_open(2)` (Linux 5.3).
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the arguments are numbers.
    own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// A pidfd of a child of this process; `None` if there is no such child. The PID is not reused before the child is
/// reaped.
pub(crate) fn own_child(pid: i32) -> Option<OwnedFd> {
    pidfd_open(pid).ok().filter(|pidfd| wait_pidfd(pidfd.as_fd(), false, false).is_ok())
}

/// Whether the kernel makes orphans below this process its children: it is PID 1 of its PID namespace, or has asked for that
/// (`PR_SET_CHILD_SUBREAPER`).
pub(crate) fn adopts_orphans() -> bool {
    std::process::id() == 1 || nix::sys::prctl::get_child_subreaper().unwrap_or(false)
}

/// Shuts down the sending half of a socket (`shutdown(2)`): the peer reads the end of the stream.
pub(crate) fn shut_down_sending(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Write)?)
}

/// Sets the window size of a terminal (`TIOCSWINSZ`, `ioctl_tty(2)`).
pub(crate) fn set_window_size(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads one `winsize`, which outlives the call.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into()).map(drop)
}

/// The `CLONE_NEW*` flag of a namespace (`ioctl_ns(2)`, Linux 4.11).
pub(crate) fn namespace_type(namespace: BorrowedFd<'_>) -> io::Result<i32> {
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the request takes no argument.
    let kind = check(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_NSTYPE) }.into())?;
    i32::try_from(kind).map_err(io::Error::other)
}

/// `pidfd_send_signal(2)` (Linux 5.1).
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the arguments are numbers, and a null siginfo, which means a plain signal.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, null, 0) }).map(drop)
}

/// Sends one record, without raising SIGPIPE.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    let flags = nix::sys::socket::MsgFlags::MSG_NOSIGNAL;
    nix::sys::socket::send(socket.as_raw_fd(), bytes, flags)?;
    Ok(())
}

/// Waits until a descriptor is readable.
///
/// # Errors
/// `TimedOut` at `until`.
pub(crate) fn poll_until(fd: BorrowedFd<'_>, until: Instant) -> io::Result<()> {
    poll_either(fd, None, until).map(drop)
}

/// Waits until a descriptor is readable, or `other`, the pidfd of the process that writes to it. Returns whether the first
/// one is.
///
/// # Errors
/// `TimedOut` at `until`.
pub(crate) fn poll_either(
    fd: BorrowedFd<'_>,
    other: Option<BorrowedFd<'_>>,
    until: Instant,
) -> io::Result<bool> {
    let mut fds = [fd, other.unwrap_or(fd)].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(0) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
            Ok(_) if fds[0].any().unwrap_or(true) => return Ok(true),
            // The kernel looks at one after the other: the process may have written before it ended.
            Ok(_) => return is_readable(fd),
        }
    }
}

/// Receives one record of at most `buffer.len()` bytes, and the descriptor that may come with it.
pub(crate) fn recv_with_fd(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    block: bool,
) -> io::Result<(usize, Option<OwnedFd>)> {
    // struct cmsghdr with one int, without its padding: there would be room for a second descriptor, which nothing owned.
    let mut control = [0u64; 3];
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain data for which all zeroes are a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of::<libc::cmsghdr>().saturating_add(size_of::<RawFd>());
    let flags = libc::MSG_CMSG_CLOEXEC | if block { 0 } else { libc::MSG_DONTWAIT };
    let mut reset = false;
    let received = loop {
        // SAFETY: `message` points to an iovec and a control buffer that outlive the call.
        match check(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) } as libc::c_long) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // The peer has ended without having read all. The kernel says so once, before the records that are left.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset && !reset => reset = true,
            other => break other?,
        }
    };
    // SAFETY: the kernel filled `message`; CMSG_FIRSTHDR returns null or a complete header in `control`.
    let fd = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if !header.is_null()
            && (*header).cmsg_level == libc::SOL_SOCKET
            && (*header).cmsg_type == libc::SCM_RIGHTS
        {
            // The kernel has installed one descriptor in this process, and it has no other owner. It drops those that find
            // no room.
            Some(OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()))
        } else {
            None
        }
    };
    Ok((usize::try_from(received).unwrap_or(0), fd))
}
