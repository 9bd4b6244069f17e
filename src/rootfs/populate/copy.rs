//! Clones or copies the content of one open file into another.
//!
//! The new file shares the blocks of its source if the method is a clone and the file system supports it. Otherwise the
//! data is copied without the holes, by the kernel if possible.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::sys::stat::{FileStat, fstat};
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{Whence, ftruncate, lseek, read, write};

use super::add;
use super::error::{CallError, Side, failed};
use super::settings::Meter;
use crate::sys::fs::clone_file;

/// Bytes that are copied between two checks of the limit and of a cancel, and two calls of the progress callback. A disk
/// with 80 MB/s writes them in 100 ms.
const CHUNK: u64 = 8 << 20;

/// Maximum number of bytes read from a file whose size is 0. Files that the kernel generates report size 0 although
/// they have content, and some never end.
const MAX_UNSIZED: u64 = 64 << 20;

/// State that one thread keeps between copies.
#[derive(Default)]
pub(super) struct Copier {
    buf: Vec<u8>,
    /// Pairs of devices between which no file can be cloned.
    no_clones: Vec<(u64, u64)>,
}

impl Copier {
    /// Makes `file` share the blocks of `source`. Returns `false` if the content must be copied. `devices` are the
    /// devices of the two files. A pair of devices that was refused once is not tried again.
    pub(super) fn clone(
        &mut self,
        source: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        devices: (u64, u64),
    ) -> Result<bool, CallError> {
        if self.no_clones.contains(&devices) {
            return Ok(false);
        }
        match retry_on_eintr(|| clone_file(source, file)) {
            Ok(()) => Ok(true),
            Err(Errno::EOPNOTSUPP | Errno::EXDEV | Errno::ENOTTY | Errno::ENOSYS) => {
                self.no_clones.push(devices);
                Ok(false)
            }
            // Concerns this file only, for example a swap file, or one with other flags than the new file.
            Err(Errno::EINVAL | Errno::EPERM | Errno::EACCES | Errno::ETXTBSY | Errno::EBADF) => Ok(false),
            Err(errno) => Err(failed("ioctl FICLONE", Side::Both)(errno)),
        }
    }

    /// Copies the content that `source` had at `st`, so that copying a growing file ends. Returns the number of bytes
    /// copied.
    pub(super) fn copy(
        &mut self,
        source: BorrowedFd<'_>,
        st: &FileStat,
        file: BorrowedFd<'_>,
        meter: &Meter<'_>,
    ) -> Result<u64, CallError> {
        match st.st_size {
            0 => self.stream(source, file, meter),
            // st_blocks counts units of 512 bytes on every file system.
            size if st.st_blocks.saturating_mul(512) < size => self.extents(source, file, size, meter),
            size => self.range(source, file, 0, size, meter),
        }
    }

    /// Copies the data between the holes.
    fn extents(
        &mut self,
        source: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        size: i64,
        meter: &Meter<'_>,
    ) -> Result<u64, CallError> {
        let (mut at, mut total) = (0, 0);
        while at < size {
            let data = match lseek(source, at, Whence::SeekData) {
                Ok(data) => data,
                // Only a hole follows.
                Err(Errno::ENXIO) => break,
                Err(_) => {
                    add(&mut total, self.range(source, file, at, size, meter)?);
                    return Ok(total);
                }
            };
            let end = lseek(source, data, Whence::SeekHole).map_or(size, |end| end.min(size));
            if end <= data {
                break;
            }
            add(&mut total, self.range(source, file, data, end, meter)?);
            at = end;
        }
        // If the source was truncated in the meantime, the copy must not end in zeros instead.
        let now = fstat(source).map_err(failed("fstat", Side::Source))?.st_size;
        ftruncate(file, size.min(now)).map_err(failed("ftruncate", Side::Dest))?;
        Ok(total)
    }

    /// Copies the bytes from one offset to another, by the kernel if possible.
    fn range(
        &mut self,
        source: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        from: i64,
        to: i64,
        meter: &Meter<'_>,
    ) -> Result<u64, CallError> {
        let (mut read_at, mut write_at, mut total) = (from, from, 0);
        while read_at < to {
            let left = u64::try_from(to.saturating_sub(read_at)).unwrap_or(0);
            let len = usize::try_from(left.min(CHUNK)).unwrap_or(usize::MAX);
            match retry_on_eintr(|| {
                copy_file_range(source, Some(&mut read_at), file, Some(&mut write_at), len)
            }) {
                // The file was truncated, or this call cannot read files of its type.
                Ok(0) => break,
                Ok(n) => count(n, &mut total, meter)?,
                Err(
                    Errno::EXDEV
                    | Errno::EINVAL
                    | Errno::ENOSYS
                    | Errno::EOPNOTSUPP
                    | Errno::EPERM
                    | Errno::EBADF,
                ) => break,
                Err(errno) => return Err(failed("copy_file_range", Side::Both)(errno)),
            }
        }
        if read_at < to {
            add(&mut total, self.read_and_write(source, file, read_at, to, meter)?);
        }
        Ok(total)
    }

    /// Copies the bytes from one offset to another through a buffer.
    fn read_and_write(
        &mut self,
        source: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        mut at: i64,
        to: i64,
        meter: &Meter<'_>,
    ) -> Result<u64, CallError> {
        self.buf.resize(128 * 1024, 0);
        let mut total = 0;
        while at < to {
            let most = usize::try_from(to.saturating_sub(at)).unwrap_or(usize::MAX).min(self.buf.len());
            let buf = self.buf.get_mut(..most).unwrap_or_default();
            let n = retry_on_eintr(|| pread(source, buf, at)).map_err(failed("pread64", Side::Source))?;
            let mut rest = match buf.get(..n) {
                None | Some([]) => break,
                Some(bytes) => bytes,
            };
            while !rest.is_empty() {
                let n = retry_on_eintr(|| pwrite(file, rest, at)).map_err(failed("pwrite64", Side::Dest))?;
                rest = rest.get(n..).unwrap_or_default();
                at = at.saturating_add(i64::try_from(n).unwrap_or(i64::MAX));
                count(n, &mut total, meter)?;
            }
        }
        Ok(total)
    }

    /// Copies up to the end of the file. `EFBIG` if it does not end after [`MAX_UNSIZED`] bytes.
    fn stream(
        &mut self,
        source: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        meter: &Meter<'_>,
    ) -> Result<u64, CallError> {
        self.buf.resize(128 * 1024, 0);
        let mut total = 0;
        loop {
            let n = retry_on_eintr(|| read(source, &mut self.buf)).map_err(failed("read", Side::Source))?;
            let mut rest = match self.buf.get(..n) {
                None | Some([]) => return Ok(total),
                Some(bytes) => bytes,
            };
            if total >= MAX_UNSIZED {
                return Err(failed("read", Side::Source)(Errno::EFBIG));
            }
            while !rest.is_empty() {
                let n = retry_on_eintr(|| write(file, rest)).map_err(failed("write", Side::Dest))?;
                rest = rest.get(n..).unwrap_or_default();
                count(n, &mut total, meter)?;
            }
        }
    }
}

/// Counts `n` copied bytes.
fn count(n: usize, total: &mut u64, meter: &Meter<'_>) -> Result<(), CallError> {
    let n = u64::try_from(n).unwrap_or(u64::MAX);
    let chunks = |total: u64| total.checked_div(CHUNK);
    let before = chunks(*total);
    add(total, n);
    meter.add_bytes(n).map_err(failed("copy_file_range", Side::Both))?;
    if chunks(*total) != before {
        meter.report_progress();
    }
    Ok(())
}

/// Repeats a call that a signal handler of the caller interrupted.
pub(super) fn retry_on_eintr<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            answer => return answer,
        }
    }
}
