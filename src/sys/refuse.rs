//! For tests: makes a system call fail on this thread and on all threads and processes that it starts afterwards. It
//! cannot be undone.

use nix::errno::Errno;

/// Makes every call with that number fail with `errno` (a seccomp filter, `seccomp(2)`).
pub(crate) fn refuse(call: libc::c_long, errno: Errno) {
    const LOAD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ERRNO: u32 = 0x0005_0000;
    const ALLOW: u32 = 0x7fff_0000;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        step(LOAD, 0, 0, 0),
        step(JUMP_EQUAL, 0, 1, u32::try_from(call).unwrap()),
        step(RETURN, 0, 0, ERRNO | (errno as i32).cast_unsigned()),
        step(RETURN, 0, 0, ALLOW),
    ];
    let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
    // SAFETY: the arguments are numbers, and a program that outlives the calls; the kernel copies and verifies the
    // program.
    let ret = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter)
    };
    assert_eq!(ret, 0, "seccomp: {}", Errno::last());
}
