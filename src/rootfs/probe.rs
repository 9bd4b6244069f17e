//! Asks the host about paths: which of the sensitive ones there are, and what a source is.

use std::io;
use std::path::{Path, PathBuf};

use super::Kind;
use super::lower::Owner;

/// Files and directories of the kernel that are covered in every sandbox, where the host has them.
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

/// Those that become read-only.
pub(crate) const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Whether there are overlays: `filesystems` is the text of `/proc/filesystems`, which lists what is built in
/// or loaded; what is a module can be loaded.
pub(crate) fn overlay(filesystems: &str) -> bool {
    let listed = filesystems.lines().any(|line| line.split_whitespace().last() == Some("overlay"));
    listed || crate::sys::probe::file_system(c"overlay").is_ok()
}

/// What a device node stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub block: bool,
    pub major: u32,
    pub minor: u32,
}

/// What is at a path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub kind: Kind,
    pub owner: Owner,
    /// For a device.
    pub node: Option<Node>,
}

/// What a path is, links followed; `None` when there is nothing, or nothing that may be seen.
pub(crate) fn kind(path: &Path) -> Option<Kind> {
    look(path).ok().flatten().map(|found| found.kind)
}

/// What a path is and whose, links followed; `None` when there is nothing.
pub(crate) fn look(path: &Path) -> io::Result<Option<Look>> {
    use std::os::unix::fs::MetadataExt;
    let st = match std::fs::metadata(path) {
        Ok(st) => st,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(None),
        Err(e) => return Err(e),
    };
    Ok(Some(look_at(st.mode(), (st.uid(), st.gid()), st.rdev())))
}

/// From the fields of a `struct stat`.
pub(crate) fn look_at(mode: u32, (uid, gid): (u32, u32), rdev: u64) -> Look {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => Kind::Dir,
        libc::S_IFCHR | libc::S_IFBLK => Kind::Device,
        libc::S_IFREG => Kind::File,
        _ => Kind::Other,
    };
    let owner = Owner { mode: mode & 0o7777, uid, gid };
    let block = mode & libc::S_IFMT == libc::S_IFBLK;
    let node = Node { block, major: libc::major(rdev), minor: libc::minor(rdev) };
    Look { kind, owner, node: (kind == Kind::Device).then_some(node) }
}

/// Files below `top` that other users may not read, and directories that they may not read or enter, without what is
/// in those. What cannot be looked at is left out: neither can the task.
pub(crate) fn private(top: &Path) -> Vec<(PathBuf, Kind)> {
    use std::os::unix::fs::MetadataExt;
    let (mut found, mut todo) = (Vec::new(), vec![top.to_path_buf()]);
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(st) = entry.metadata() else { continue };
            let (path, mode) = (entry.path(), st.mode());
            match mode & libc::S_IFMT {
                libc::S_IFDIR if mode & 0o005 == 0o005 => todo.push(path),
                libc::S_IFDIR => found.push((path, Kind::Dir)),
                libc::S_IFREG if mode & 0o004 == 0 => found.push((path, Kind::File)),
                _ => {}
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// Those of `paths` that the host has.
pub(crate) fn present(paths: &[&str]) -> Vec<(PathBuf, Kind)> {
    paths.iter().filter_map(|p| kind(Path::new(p)).map(|k| (PathBuf::from(p), k))).collect()
}
