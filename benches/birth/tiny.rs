//! Executables of about a hundred bytes, written without a compiler: static, one page, no C library. They run under
//! every kernel and in every root, and a measurement of them shows only the cost of starting.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// `exit(0)`: mov $60, %eax; xor %edi, %edi; syscall
#[allow(dead_code)]
pub const EXIT: &[u8] = &[0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05];

/// `for (;;) pause()`: mov $34, %eax; syscall; jmp to the start
#[allow(dead_code)]
pub const PAUSE: &[u8] = &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];

/// `for (;;) fork()`: mov $57, %eax; syscall; jmp to the start
#[allow(dead_code)]
pub const BOMB: &[u8] = &[0xb8, 57, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];

/// `execve("/exit", ["/exit"], [])`: lea 14(%rip), %rdi; xor %edx, %edx; push %rdx; push %rdi; mov %rsp, %rsi; mov $59, %eax;
/// syscall, and the path
#[allow(dead_code)]
pub const EXEC: &[u8] = b"\x48\x8d\x3d\x0e\0\0\0\x31\xd2\x52\x57\x48\x89\xe6\xb8\x3b\0\0\0\x0f\x05/exit\0";

/// Forks; the child does as [`EXEC`]; the parent waits for it, and exits with 0 only if it did. mov $57, %eax; syscall; test
/// %eax, %eax; jz to the child; mov $-1, %edi; push $0; mov %rsp, %rsi; xor %edx, %edx; xor %r10, %r10; mov $61, %eax; syscall;
/// mov (%rsp), %edi; shr $8, %edi; or (%rsp), %edi; mov $60, %eax; syscall
#[allow(dead_code)]
pub const FORK: &[u8] =
    b"\xb8\x39\0\0\0\x0f\x05\x85\xc0\x74\x26\xbf\xff\xff\xff\xff\x6a\0\x48\x89\xe6\x31\xd2\x4d\x31\xd2\
    \xb8\x3d\0\0\0\x0f\x05\x8b\x3c\x24\xc1\xef\x08\x0b\x3c\x24\xb8\x3c\0\0\0\x0f\x05\
    \x48\x8d\x3d\x0e\0\0\0\x31\xd2\x52\x57\x48\x89\xe6\xb8\x3b\0\0\0\x0f\x05/exit\0";

/// Writes an x86_64 executable. Its one segment is the whole file, headers included.
pub fn write(path: &Path, code: &[u8]) {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |file: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    let word = |file: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    let long = |file: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    half(&mut file, &[2 /* ET_EXEC */, 62 /* EM_X86_64 */]);
    word(&mut file, &[1]);
    long(&mut file, &[BASE + HEADERS, 64, 0]); // entry, program headers, no section headers
    word(&mut file, &[0]);
    half(&mut file, &[64, 56, 1, 0, 0, 0]);
    word(&mut file, &[1 /* PT_LOAD */, 5 /* read and execute */]);
    long(&mut file, &[0, BASE, BASE, size, size, 4096]);
    file.extend_from_slice(code);
    std::fs::write(path, file).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
