//! `bpf(2)`: programs that decide about devices, loaded and attached to a cgroup of v2.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
/// `BPF_PROG_TYPE_CGROUP_DEVICE`, Linux 4.15.
const CGROUP_DEVICE_PROGRAM: u32 = 15;
/// `BPF_CGROUP_DEVICE`, what such a program is attached to.
const CGROUP_DEVICE: u32 = 6;
/// `BPF_F_ALLOW_MULTI`, Linux 4.15: others may be attached beside it and below, and all must allow.
const ALLOW_MULTI: u32 = 2;

/// One instruction (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Insn {
    pub code: u8,
    /// The destination in the lower half, the source in the upper.
    pub registers: u8,
    pub off: i16,
    pub imm: u32,
}

impl Insn {
    pub(crate) const fn new(code: u8, dst: u8, src: u8, off: i16, imm: u32) -> Insn {
        Insn { code, registers: dst | src << 4, off, imm }
    }
}

/// The part of `union bpf_attr` for `BPF_PROG_LOAD` up to the name.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
}

/// That for `BPF_PROG_ATTACH` up to the flags.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads size_of::<T>() bytes at attr, and takes what it knows beyond them for zero. Attr is one
    // of the two structures above, without padding, and what it points to outlives the call.
    super::check(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) })
}

/// Loads a program for [`attach_device`]; the kernel keeps it as long as its descriptor, or what it is attached to.
pub(crate) fn load_device(program: &[Insn]) -> io::Result<OwnedFd> {
    // It uses no function that asks for another one.
    const LICENSE: &CStr = c"MIT";
    let mut name = [0; 16];
    name.iter_mut().zip(b"cofferdam").for_each(|(to, from)| *to = *from);
    let attr = Load {
        kind: CGROUP_DEVICE_PROGRAM,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr().expose_provenance() as u64,
        license: LICENSE.as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
        name,
    };
    // The verifier gives up when a signal comes.
    let mut tries = 0..5;
    loop {
        match bpf(PROG_LOAD, &attr) {
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) && tries.next().is_some() => {}
            done => return super::own(done?),
        }
    }
}

/// Attaches a program to a cgroup of v2, beside what may be there, for as long as the cgroup is there.
pub(crate) fn attach_device(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = Attach {
        target: cgroup.as_raw_fd().unsigned_abs(),
        program: program.as_raw_fd().unsigned_abs(),
        kind: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    bpf(PROG_ATTACH, &attr).map(drop)
}
