//! Text of the system calls on cgroups, as plans and errors print them.

use std::ffi::OsStr;
use std::path::Path;

pub fn mkdir(path: &Path) -> String {
    format!("mkdir({path:?}, 0711)")
}

pub fn rmdir(path: &Path) -> String {
    format!("rmdir({path:?})")
}

pub fn open_dir(path: &Path) -> String {
    format!("openat(AT_FDCWD, {path:?}, O_RDONLY|O_CLOEXEC|O_DIRECTORY)")
}

pub fn lock(path: &Path) -> String {
    format!("flock({path:?}, LOCK_EX|LOCK_NB)")
}

pub fn lock_shared(path: &Path) -> String {
    format!("flock({path:?}, LOCK_SH|LOCK_NB)")
}

pub fn get_record(path: &Path) -> String {
    format!("fgetxattr({path:?}, \"user.cofferdam.cores\")")
}

pub fn mark_made(path: &Path) -> String {
    format!("fsetxattr({path:?}, \"user.cofferdam.made\", \"\")")
}

pub fn set_record(path: &Path, text: &str) -> String {
    format!("fsetxattr({path:?}, \"user.cofferdam.cores\", {text:?})")
}

pub fn open_read(path: &Path) -> String {
    format!("openat(AT_FDCWD, {path:?}, O_RDONLY|O_CLOEXEC)")
}

/// `openat(2)` to set a control file. A file that holds a value is opened for reading too, because it is read back
/// after the write.
pub fn open_set(path: &Path) -> String {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let mode = if holds_a_value(name) { "O_RDWR" } else { "O_WRONLY" };
    format!("openat(AT_FDCWD, {path:?}, {mode}|O_CLOEXEC)")
}

pub fn open_write(path: &Path) -> String {
    format!("openat(AT_FDCWD, {path:?}, O_WRONLY|O_CLOEXEC)")
}

/// `write(2)`, with the path of the file in place of the descriptor. Text in angle brackets stands for a value that is
/// known only when it is written.
pub fn write(path: &Path, text: &str) -> String {
    match text.starts_with('<') {
        true => format!("write({path:?}, {text})"),
        false => format!("write({path:?}, {text:?})"),
    }
}

/// Whether a control file holds a value that can be read back. The others (`cgroup.*`, `devices.*`) take commands.
pub fn holds_a_value(file: &str) -> bool {
    !file.starts_with("cgroup.") && !file.starts_with("devices.")
}
