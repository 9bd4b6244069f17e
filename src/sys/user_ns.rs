//! A user namespace without users, for idmapped mounts.

use std::io;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd, RawFd};

use nix::unistd::{getegid, geteuid};

use super::arch::syscall;
use super::child::{self, CLONE_CLEAR_SIGHAND};

/// The id that is mapped, since the kernel refuses an empty map for an idmapped mount. It is the last valid one, and no
/// file should have it.
const MAPPED: u32 = u32::MAX - 1;

/// What the child reads, and where it writes its result.
struct Shared {
    uid_map: String,
    gid_map: String,
    /// The descriptor of the namespace, or a negative errno.
    result: isize,
}

/// Creates a user namespace that maps no id of a file (`user_namespaces(7)`). In an idmapped mount of it, no file has an
/// owner or a group, for any process: only what all users may do is allowed (`mount_setattr(2)`).
///
/// # Errors
/// The refused call. `NotFound` if no `/proc` of the caller's PID namespace is mounted.
pub(crate) fn without_users() -> io::Result<OwnedFd> {
    let mut shared = Shared {
        uid_map: format!("{MAPPED} {} 1", geteuid()),
        gid_map: format!("{MAPPED} {} 1", getegid()),
        result: -5, // EIO
    };
    let shares = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::CLONE_NEWUSER;
    let args = child::arguments(u64::from(shares.cast_unsigned()) | CLONE_CLEAR_SIGHAND);
    // SAFETY: args have CLONE_VM|CLONE_VFORK and no stack. `write_maps` makes raw system calls only and accesses `shared`
    // only, which outlives the child's use since this thread is suspended meanwhile.
    let (pidfd, restored) = unsafe { child::clone(args, write_maps, (&raw mut shared).cast()) }?;
    // SAFETY: the child has ended. The read is volatile because the compiler does not know of the child's write.
    let result = unsafe { std::ptr::read_volatile(&raw const shared.result) };
    let namespace = match RawFd::try_from(result) {
        // SAFETY: the child has just opened this descriptor in the shared table, so it has no other owner.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(child::error(result)),
    };
    let _ = super::wait_pidfd(pidfd.as_fd(), true, true);
    restored?;
    namespace
}

/// Entry point of the child: writes the maps of its own namespace, and opens it.
///
/// # Safety
/// `argument` must point to a `Shared` that no other thread or process accesses.
unsafe extern "C" fn write_maps(argument: *mut libc::c_void) -> ! {
    let shared = argument.cast::<Shared>();
    let path = |path: &'static std::ffi::CStr| path.as_ptr() as usize;
    // SAFETY: the contract of this function; every call takes numbers, constants, or bytes of `shared`.
    unsafe {
        let written = write(path(c"/proc/self/setgroups"), b"deny")
            .and_then(|()| write(path(c"/proc/self/uid_map"), (*shared).uid_map.as_bytes()))
            .and_then(|()| write(path(c"/proc/self/gid_map"), (*shared).gid_map.as_bytes()));
        (*shared).result = match written {
            Ok(()) => open(path(c"/proc/self/ns/user"), libc::O_RDONLY),
            Err(error) => error,
        };
        loop {
            syscall(libc::SYS_exit_group, [0, 0, 0, 0, 0]);
        }
    }
}

/// Opens a file of `/proc`. Returns the descriptor, or a negative errno.
///
/// # Safety
/// `path` must be the address of a NUL-terminated string.
unsafe fn open(path: usize, flags: i32) -> isize {
    let flags = (flags | libc::O_CLOEXEC).cast_unsigned() as usize;
    // SAFETY: the contract of this function.
    unsafe { syscall(libc::SYS_openat, [libc::AT_FDCWD as usize, path, flags, 0, 0]) }
}

/// Writes a file of `/proc`. The error is a negative errno.
///
/// # Safety
/// As for [`open`]; runs in the child, and makes raw system calls only.
unsafe fn write(path: usize, text: &[u8]) -> Result<(), isize> {
    // SAFETY: the contract of this function; `text` outlives the call.
    unsafe {
        let fd = open(path, libc::O_WRONLY);
        if fd < 0 {
            return Err(fd);
        }
        let number = fd.cast_unsigned();
        let written = syscall(libc::SYS_write, [number, text.as_ptr() as usize, text.len(), 0, 0]);
        syscall(libc::SYS_close, [number, 0, 0, 0, 0]);
        if written < 0 { Err(written) } else { Ok(()) }
    }
}
