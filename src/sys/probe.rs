//! System calls that query kernel features and change nothing.

use std::io;

/// The Landlock ABI version (`landlock(7)`).
///
/// # Errors
/// The kernel's error, if it does not support Landlock.
pub(crate) fn landlock_abi() -> io::Result<u32> {
    const VERSION: u32 = 1;
    let null = std::ptr::null::<libc::c_void>();
    // SAFETY: a null attribute of size zero with the VERSION flag queries the ABI and creates nothing.
    let abi =
        super::check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, null, 0usize, VERSION) })?;
    u32::try_from(abi).map_err(io::Error::other)
}

/// Checks that the kernel has the file system `name`, by `fsopen(2)` (Linux 5.2). Loads its module, as a mount would.
///
/// # Errors
/// `PermissionDenied` without `CAP_SYS_ADMIN`.
pub(crate) fn file_system(name: &std::ffi::CStr) -> io::Result<()> {
    const FSOPEN_CLOEXEC: libc::c_uint = 1;
    // SAFETY: the arguments are a NUL-terminated name and a number. The returned descriptor is owned, and closed when
    // it is dropped.
    super::own(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) }).map(drop)
}

/// Whether memory of this process cannot be both writable and executable (`PR_SET_MDWE`, Linux 6.3).
pub(crate) fn mdwe() -> bool {
    const PR_GET_MDWE: libc::c_int = 66;
    // SAFETY: PR_GET_MDWE takes numbers only.
    unsafe { libc::prctl(PR_GET_MDWE, 0, 0, 0, 0) > 0 }
}

/// Whether `no_new_privs` is set for this thread.
pub(crate) fn no_new_privs() -> bool {
    // SAFETY: PR_GET_NO_NEW_PRIVS takes numbers only.
    unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 }
}
