//! The pseudo-terminal of a task (`pty(7)`).

use crate::call::{At, Done};
use crate::state::Init;
use crate::sys;
use crate::uapi::{AT_FDCWD, EPERM, O_NOCTTY, O_RDWR, TIOCGPTPEER, TIOCSCTTY, TIOCSPTLCK, TIOCSWINSZ};
use crate::wire::Record;

/// Opens a pseudo-terminal as the standard streams. It belongs to the task's user, because the task's ids are set.
pub fn open(init: &Init, rows: u32, columns: u32) -> Done {
    let ours = sys::openat2(AT_FDCWD, c"/dev/ptmx", O_RDWR | O_NOCTTY, 0).at(0)?;
    sys::ioctl(ours, TIOCSPTLCK, &0i32).at(1)?;
    let peer = sys::ioctl_number(ours, TIOCGPTPEER, O_RDWR | O_NOCTTY).at(2)?;
    // struct winsize: rows, columns, and a size in pixels.
    sys::ioctl(peer, TIOCSWINSZ, &[rows as u16, columns as u16, 0, 0]).at(3)?;
    for stream in 0..3 {
        sys::dup3(peer, stream).at(4)?;
    }
    sys::close(peer);
    sys::send_fd(init.status, &Record::Terminal.encode(), ours).at(5)?;
    sys::close(ours);
    Ok(())
}

/// Starts a session, and makes standard input its controlling terminal.
pub fn control() -> Done {
    match sys::setsid() {
        // The process leads a session already.
        Err(EPERM) => {}
        started => started.at(0)?,
    }
    sys::ioctl_number(0, TIOCSCTTY, 0).at(1).map(drop)
}
