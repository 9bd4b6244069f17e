//! The clone, whose child shares the caller's memory until it executes init.
//!
//! `CLONE_VM|CLONE_VFORK` makes the cost independent of the size of the caller's memory. The child does nothing that is
//! dangerous in shared memory: no uid changes, no oom scores, no locks, no allocation. It makes raw system calls only.
//! It clears close-on-exec flags and its securebits, keeps its capabilities across the exec if it is in a new user
//! namespace, and executes init.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::sys;
use crate::sys::arch::syscall;
use crate::sys::child::CLONE_CLEAR_SIGHAND;

/// Arguments of [`clone`].
pub(super) struct CloneRequest<'a> {
    /// `CLONE_NEW*` bits.
    pub namespaces: u32,
    /// The version 2 cgroup to create the child in (`CLONE_INTO_CGROUP`, Linux 5.7).
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The program to execute.
    pub program: BorrowedFd<'a>,
    /// The arguments of the program, its name first.
    pub argv: [CString; 3],
    /// Descriptors that the program inherits. It also inherits all other descriptors of the caller that are not
    /// close-on-exec, and closes them.
    pub inherit: Vec<RawFd>,
}

/// The call that failed: the clone, or the execution of init in the child.
pub(super) enum CloneError {
    Clone(io::Error),
    Execute(io::Error),
}

/// Data in the caller's memory that the child uses: it writes `errno`, and reads the other fields.
struct Shared {
    inherit: *const RawFd,
    inherit_len: usize,
    program: RawFd,
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
    new_user: bool,
    errno: isize,
}

/// Clones a child that executes the program. Returns the child's pidfd. The caller's signal mask is the same
/// afterwards.
pub(super) fn clone(request: &CloneRequest<'_>) -> Result<OwnedFd, CloneError> {
    let argv =
        [request.argv[0].as_ptr(), request.argv[1].as_ptr(), request.argv[2].as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null()];
    let mut shared = Shared {
        inherit: request.inherit.as_ptr(),
        inherit_len: request.inherit.len(),
        program: request.program.as_raw_fd(),
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        new_user: request.namespaces & libc::CLONE_NEWUSER.cast_unsigned() != 0,
        errno: 0,
    };
    // SAFETY: args have CLONE_VM|CLONE_VFORK and no stack. `child` makes raw system calls only and accesses `shared`
    // only, which outlives the child's use since this thread is suspended meanwhile.
    let cloned = unsafe { sys::child::clone(clone_args(request), child, (&raw mut shared).cast()) };
    let (pidfd, restored) = cloned.map_err(CloneError::Clone)?;
    // SAFETY: the child has executed init or ended, so no other process writes to `shared` any more. The read is
    // volatile because the compiler does not know of the child's write.
    let errno = unsafe { std::ptr::read_volatile(&raw const shared.errno) };
    let failed = match (errno, restored) {
        (0, Ok(())) => return Ok(pidfd),
        (0, Err(e)) => CloneError::Clone(e.into()),
        (errno, _) => CloneError::Execute(sys::child::error(errno)),
    };
    crate::task::end(pidfd.as_fd());
    Err(failed)
}

/// Starts a process that asks for the attributes of the file at `path` and ends (`statx(2)`). Returns its pidfd. It is a copy
/// of this process without its descriptors, and sends no signal at its end.
pub(super) fn ask(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let argument = path.as_ptr().cast_mut().cast();
    // SAFETY: without CLONE_VM the child has its own copy of the memory and the stack. `asker` makes raw system calls only,
    // and reads the path only.
    let (pidfd, restored) = unsafe { sys::child::clone(sys::child::arguments(0), asker, argument) }?;
    restored?;
    Ok(pidfd)
}

/// Entry point of the process of [`ask`].
///
/// # Safety
/// `path` must point to a NUL-terminated string.
unsafe extern "C" fn asker(path: *mut libc::c_void) -> ! {
    let mut answer = std::mem::MaybeUninit::<libc::statx>::uninit();
    let at = libc::AT_FDCWD as usize;
    let flags = (libc::AT_STATX_FORCE_SYNC | libc::AT_NO_AUTOMOUNT) as usize;
    // SAFETY: the calls take numbers, the path, and room for the struct that the kernel writes.
    unsafe {
        syscall(libc::SYS_close_range, [0, u32::MAX as usize, 0, 0, 0]);
        let (mask, to) = (libc::STATX_BASIC_STATS as usize, answer.as_mut_ptr() as usize);
        syscall(libc::SYS_statx, [at, path as usize, flags, mask, to]);
        loop {
            syscall(libc::SYS_exit_group, [0, 0, 0, 0, 0]);
        }
    }
}

fn clone_args(request: &CloneRequest<'_>) -> libc::clone_args {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let base = (libc::CLONE_VM | libc::CLONE_VFORK).cast_unsigned();
    let mut args = sys::child::arguments(u64::from(base | request.namespaces) | CLONE_CLEAR_SIGHAND);
    args.exit_signal = libc::SIGCHLD.unsigned_abs().into();
    if let Some(cgroup) = request.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd().unsigned_abs().into();
    }
    args
}

/// Entry point of the child.
///
/// # Safety
/// `argument` must point to a `Shared` with valid pointers that no other thread or process accesses.
unsafe extern "C" fn child(argument: *mut libc::c_void) -> ! {
    let shared = argument.cast::<Shared>();
    // SAFETY: the contract of this function; every call below takes numbers, or pointers of `shared`.
    unsafe {
        let mut i = 0;
        while i < (*shared).inherit_len {
            let fd = *(*shared).inherit.wrapping_add(i);
            let kept = syscall(libc::SYS_fcntl, [fd as usize, libc::F_SETFD as usize, 0, 0, 0]);
            if kept < 0 {
                fail(shared, kept);
            }
            i = i.wrapping_add(1);
        }
        // Under SECBIT_NOROOT init would have no capability. The call is refused if the bits are locked; init then
        // reports that.
        syscall(libc::SYS_prctl, [libc::PR_SET_SECUREBITS as usize, 0, 0, 0, 0]);
        if (*shared).new_user {
            let kept = keep_capabilities();
            if kept < 0 {
                fail(shared, kept);
            }
        }
        let empty = c"".as_ptr() as usize;
        let (argv, envp) = ((*shared).argv as usize, (*shared).envp as usize);
        let at = libc::AT_EMPTY_PATH as usize;
        let error = syscall(libc::SYS_execveat, [(*shared).program as usize, empty, argv, envp, at]);
        fail(shared, error)
    }
}

/// Passes the error to the caller, and ends the child.
///
/// # Safety
/// As for [`child`].
unsafe fn fail(shared: *mut Shared, error: isize) -> ! {
    // SAFETY: the contract of this function; the call takes a number.
    unsafe {
        (*shared).errno = error;
        loop {
            syscall(libc::SYS_exit_group, [125, 0, 0, 0, 0]);
        }
    }
}

/// Makes all permitted capabilities ambient. In a user namespace whose maps are not written yet, a process is not uid
/// 0, so it would lose its capabilities at the exec. Returns a negative errno if a call is refused.
///
/// # Safety
/// Makes raw system calls only. Must run in the child, whose credentials are its own.
unsafe fn keep_capabilities() -> isize {
    #[repr(C)]
    struct Half {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const NONE: Half = Half { effective: 0, permitted: 0, inheritable: 0 };
    let header = [0x2008_0522u32, 0];
    let mut sets = [NONE; 2];
    // SAFETY: `header` and `sets` are the structs of capget(2) and capset(2), and outlive the calls. Each call gets a
    // new pointer, so the kernel's write is visible to the following code.
    unsafe {
        let h = header.as_ptr() as usize;
        let got = syscall(libc::SYS_capget, [h, sets.as_mut_ptr() as usize, 0, 0, 0]);
        if got < 0 {
            return got;
        }
        let sets = sets.map(|half| Half { inheritable: half.permitted, ..half });
        let set = syscall(libc::SYS_capset, [h, sets.as_ptr() as usize, 0, 0, 0]);
        if set < 0 {
            return set;
        }
        let (ambient, raise) = (libc::PR_CAP_AMBIENT as usize, libc::PR_CAP_AMBIENT_RAISE as usize);
        let [low, high] = sets.map(|half| half.permitted);
        let permitted = u64::from(low) | u64::from(high) << 32;
        let mut cap = 0;
        while cap < 64 {
            if permitted >> cap & 1 != 0 {
                let raised = syscall(libc::SYS_prctl, [ambient, raise, cap, 0, 0]);
                if raised < 0 {
                    return raised;
                }
            }
            cap = cap.wrapping_add(1);
        }
        0
    }
}
