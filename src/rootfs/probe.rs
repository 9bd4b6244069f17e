//! Probes paths of the host: which sensitive ones exist, and the type and owner of a source.

use std::io;
use std::path::{Path, PathBuf};

use nix::sys::stat::FileStat;

use super::FileKind;
use crate::sys::fs::FileId;

/// Files and directories of the kernel that are masked in every sandbox, if the host has them.
pub(crate) const MASKED: [&str; 14] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel/debug",
    "/sys/kernel/tracing",
];

/// Files and directories of the kernel that are read-only in every sandbox, if the host has them.
pub(crate) const READ_ONLY: [&str; 6] =
    ["/proc/bus", "/proc/dynamic_debug", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Whether the kernel supports overlay file systems. `filesystems` is the text of `/proc/filesystems`, which lists only
/// file systems that are built in or loaded. If overlay is not listed, `fsopen(2)` is tried, which loads the module.
pub(crate) fn overlay(filesystems: &str) -> bool {
    let listed = filesystems.lines().any(|line| line.split_whitespace().last() == Some("overlay"));
    listed || crate::sys::probe::file_system(c"overlay").is_ok()
}

/// The device that a node refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub block: bool,
    pub major: u32,
    pub minor: u32,
}

/// Mode, user and group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Type, owner and device of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub kind: FileKind,
    pub owner: Owner,
    /// `None` unless the file is a device.
    pub node: Option<Node>,
}

/// The type of the file at `path`, symbolic links followed. `None` if it does not exist or cannot be accessed.
pub(crate) fn kind(path: &Path) -> Option<FileKind> {
    look(path).ok().flatten().map(|found| found.kind)
}

/// Type, owner and device of the file at `path`, symbolic links followed. `None` if it does not exist.
pub(crate) fn look(path: &Path) -> io::Result<Option<Look>> {
    use std::os::unix::fs::MetadataExt;
    let st = match std::fs::metadata(path) {
        Ok(st) => st,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(None),
        Err(e) => return Err(e),
    };
    Ok(Some(look_at(st.mode(), (st.uid(), st.gid()), st.rdev())))
}

impl Look {
    pub(crate) fn of(st: &FileStat) -> Look {
        look_at(st.st_mode, (st.st_uid, st.st_gid), st.st_rdev)
    }

    pub(crate) fn of_id(id: &FileId) -> Look {
        let (major, minor) = id.node;
        look_at(id.mode, id.owner, libc::makedev(major, minor))
    }
}

/// Converts the fields of a `struct stat`.
fn look_at(mode: u32, (uid, gid): (u32, u32), rdev: u64) -> Look {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => FileKind::Dir,
        libc::S_IFCHR | libc::S_IFBLK => FileKind::Device,
        libc::S_IFREG => FileKind::File,
        _ => FileKind::Other,
    };
    let owner = Owner { mode: mode & 0o7777, uid, gid };
    let block = mode & libc::S_IFMT == libc::S_IFBLK;
    let node = Node { block, major: libc::major(rdev), minor: libc::minor(rdev) };
    Look { kind, owner, node: (kind == FileKind::Device).then_some(node) }
}

/// Options of `/proc` that hide processes of other users: `hidepid`, and `gid`, whose members see all processes
/// (`proc(5)`). `mountinfo` is the text of the mount table; the last mount at `/proc` counts.
pub(crate) fn proc_options(mountinfo: &str) -> Vec<(String, String)> {
    let options = |line: &str| {
        let (mount, fs) = line.split_once(" - ")?;
        let mut fs = fs.split(' ');
        let proc = mount.split(' ').nth(4) == Some("/proc") && fs.next() == Some("proc");
        proc.then(|| fs.nth(1).unwrap_or_default().to_owned())
    };
    let last = mountinfo.lines().filter_map(options).next_back().unwrap_or_default();
    let pairs = last.split(',').filter_map(|option| option.split_once('='));
    let hides = |(name, value): &(&str, &str)| {
        (*name == "hidepid" && !matches!(*value, "0" | "off")) || *name == "gid"
    };
    pairs.filter(hides).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Each of `paths` that exists, with its type.
pub(crate) fn present(paths: &[&str]) -> Vec<(PathBuf, FileKind)> {
    paths.iter().filter_map(|p| kind(Path::new(p)).map(|k| (PathBuf::from(p), k))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidepid_and_gid_are_read_from_the_last_mount_at_proc() {
        let line = |point: &str, fs: &str| format!("22 1 0:20 / {point} rw,nosuid shared:5 - {fs}\n");
        let options = |lines: &[(&str, &str)]| {
            let text: String = lines.iter().map(|(point, fs)| line(point, fs)).collect();
            proc_options(&text).into_iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(options(&[("/proc", "proc proc rw")]), "");
        assert_eq!(options(&[("/proc", "proc proc rw,hidepid=invisible,gid=7")]), "hidepid=invisible gid=7");
        assert_eq!(options(&[("/proc", "proc proc rw,hidepid=2"), ("/proc", "proc p rw,hidepid=off")]), "");
        assert_eq!(options(&[("/x/proc", "proc proc rw,hidepid=2"), ("/proc", "tmpfs t rw,gid=5")]), "");
        assert_eq!(options(&[]), "");
    }
}
