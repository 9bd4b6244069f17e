//! `bpf(2)`: loads device programs and attaches them to v2 cgroups.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
/// `BPF_PROG_TYPE_CGROUP_DEVICE` (Linux 4.15).
const CGROUP_DEVICE_PROGRAM: u32 = 15;
/// `BPF_CGROUP_DEVICE`, the attach type of device programs.
const CGROUP_DEVICE: u32 = 6;
/// `BPF_F_ALLOW_MULTI` (Linux 4.15): the cgroup and its descendants may have more programs. An access must be allowed
/// by all of them.
const ALLOW_MULTI: u32 = 2;

/// One instruction (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Insn {
    pub code: u8,
    /// Destination register in the low four bits, source register in the high four.
    pub registers: u8,
    pub off: i16,
    pub imm: u32,
}

impl Insn {
    pub(crate) const fn new(code: u8, dst: u8, src: u8, off: i16, imm: u32) -> Insn {
        Insn { code, registers: dst | src << 4, off, imm }
    }
}

/// The fields of `union bpf_attr` for `BPF_PROG_LOAD`, up to `prog_name`.
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

/// The fields of `union bpf_attr` for `BPF_PROG_ATTACH`, up to `attach_flags`.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads size_of::<T>() bytes at attr and treats the fields after them as zero. Attr is one of
    // the two structures above, without padding; the memory that it points to outlives the call.
    super::check(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) })
}

/// Loads a program for [`attach_device`]. The kernel keeps the program as long as its descriptor is open or it is
/// attached.
pub(crate) fn load_device(program: &[Insn]) -> io::Result<OwnedFd> {
    // The program calls no helper function, so no GPL-compatible license is needed.
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
    // EAGAIN: a signal interrupted the verifier.
    let mut tries = 0..5;
    loop {
        match bpf(PROG_LOAD, &attr) {
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) && tries.next().is_some() => {}
            done => return super::own(done?),
        }
    }
}

/// Attaches a program to a v2 cgroup, in addition to programs that are attached already. The program stays attached
/// until the cgroup is removed.
pub(crate) fn attach_device(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = Attach {
        target: cgroup.as_raw_fd().unsigned_abs(),
        program: program.as_raw_fd().unsigned_abs(),
        kind: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    bpf(PROG_ATTACH, &attr).map(drop)
}
