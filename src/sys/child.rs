//! Children that run a function of this program on the caller's stack, or on a copy of it.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use nix::sys::signal::{SigSet, SigmaskHow};

use super::arch::clone3_vfork;

/// `CLONE_CLEAR_SIGHAND` (Linux 5.5), which is not in libc.
pub(crate) const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// Arguments of [`clone`] with these flags. The child sends no signal at its end.
pub(crate) fn arguments(flags: u64) -> libc::clone_args {
    // SAFETY: clone_args is plain data for which all zeroes are a valid value.
    libc::clone_args { flags, ..unsafe { std::mem::zeroed() } }
}

/// Clones a child that calls `child(argument)`. Returns its pidfd, and the error if the caller's signal mask could not be
/// restored. All signals are blocked meanwhile, so no signal handler of the caller runs in the child, on the shared stack.
///
/// # Safety
/// As for [`clone3_vfork`], except that the signals need not be blocked.
pub(crate) unsafe fn clone(
    mut args: libc::clone_args,
    child: unsafe extern "C" fn(*mut libc::c_void) -> !,
    argument: *mut libc::c_void,
) -> io::Result<(OwnedFd, nix::Result<()>)> {
    let mut pidfd: RawFd = -1;
    args.flags |= u64::from(libc::CLONE_PIDFD.cast_unsigned());
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    // SAFETY: the contract of this function, and all signals are blocked. `pidfd` outlives the call.
    let pid = unsafe { clone3_vfork(&args, child, argument) };
    let restored = mask.thread_set_mask();
    if pid < 0 {
        return Err(error(pid));
    }
    // SAFETY: the clone succeeded, so the kernel stored a new descriptor there, which has no other owner.
    Ok((unsafe { OwnedFd::from_raw_fd(pidfd) }, restored))
}

/// The error of a system call that has returned a negative errno.
pub(crate) fn error(ret: isize) -> io::Error {
    io::Error::from_raw_os_error(i32::try_from(ret.unsigned_abs()).unwrap_or(libc::EINVAL))
}
