//! System calls that only ask what this kernel has.

use std::io;

/// The Landlock ABI (`landlock(7)`), or why there is none.
pub(crate) fn landlock_abi() -> io::Result<u32> {
    const VERSION: u32 = 1;
    let null = std::ptr::null::<libc::c_void>();
    // SAFETY: a null attribute of size zero with the VERSION flag asks for the ABI and makes nothing.
    let abi =
        super::check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, null, 0usize, VERSION) })?;
    u32::try_from(abi).map_err(io::Error::other)
}

/// Whether this thread has `no_new_privs` set.
pub(crate) fn no_new_privs() -> bool {
    // SAFETY: PR_GET_NO_NEW_PRIVS takes numbers only.
    unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 }
}
