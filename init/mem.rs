//! Memory functions that the compiler emits calls to. Init links no C library that would provide them.

use core::arch::asm;

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller of memcpy promises n readable and n writable bytes that do not overlap.
    unsafe {
        asm!("rep movsb", inout("rcx") n => _, inout("rdi") to => _, inout("rsi") from => _,
             options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= n {
        // SAFETY: a forward copy is correct, since `to` does not lie inside the source; the caller promises n bytes on
        // both sides.
        return unsafe { memcpy(to, from, n) };
    }
    let mut i = n;
    while i != 0 {
        i = i.wrapping_sub(1);
        // SAFETY: i < n, and the caller promises n bytes on both sides.
        unsafe { core::ptr::write_volatile(to.add(i), core::ptr::read_volatile(from.add(i))) };
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
    // SAFETY: the caller of memset promises n writable bytes.
    unsafe {
        asm!("rep stosb", inout("rcx") n => _, inout("rdi") to => _, in("al") byte as u8,
             options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    let mut i = 0;
    while i < n {
        // SAFETY: i < n, and the caller promises n bytes on both sides.
        let (x, y) = unsafe { (core::ptr::read_volatile(a.add(i)), core::ptr::read_volatile(b.add(i))) };
        if x != y {
            return i32::from(x).wrapping_sub(i32::from(y));
        }
        i = i.wrapping_add(1);
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the contract is that of memcmp.
    unsafe { memcmp(a, b, n) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut n = 0;
    // SAFETY: the caller promises a NUL-terminated string, and the loop stops at the NUL.
    while unsafe { core::ptr::read_volatile(text.add(n)) } != 0 {
        n = n.wrapping_add(1);
    }
    n
}

/// The unwind tables of the precompiled core library refer to this symbol. Init aborts on panic and never unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
