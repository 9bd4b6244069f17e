//! Other implementations: common tools, and the plain algorithm of a task driver.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs a program, which must succeed.
pub fn run(program: &str, args: &[&str], paths: &[&Path]) {
    let status = Command::new(program).args(args).args(paths).status();
    assert!(status.unwrap().success(), "{program} {args:?} {paths:?}");
}

/// Why a program cannot be run; `None` if it can.
pub fn missing(program: &str) -> Option<String> {
    let quiet = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    quiet.err().map(|e| format!("{program}: {e}"))
}

/// How the naive algorithm places a file.
#[derive(Clone, Copy, PartialEq)]
pub enum Way {
    Link,
    Copy,
}

/// The algorithm of a well-known task driver: breadth first, by path strings, on one thread. It creates every directory
/// component by component, with the mode and owner of the host's directory at the same path. It calls lstat(2) on every
/// entry twice: on the source, as its language's directory listing does, and on the destination.
pub fn naive(root: &Path, map: &[(PathBuf, PathBuf)], way: Way) {
    let mut todo: VecDeque<(PathBuf, PathBuf)> = map.iter().cloned().collect();
    while let Some((source, dest)) = todo.pop_front() {
        let Ok(info) = fs::metadata(&source) else { continue };
        if !info.is_dir() {
            make_dirs(root, dest.parent().unwrap());
            place(&source, &below(root, &dest), &info, way);
            continue;
        }
        make_dirs(root, &dest);
        for entry in fs::read_dir(&source).unwrap() {
            let host = source.join(entry.unwrap().file_name());
            let Ok(info) = fs::symlink_metadata(&host) else { continue };
            let name = host.file_name().unwrap();
            let task = below(root, &dest).join(name);
            if info.is_dir() {
                todo.push_back((host.clone(), dest.join(name)));
            } else if fs::symlink_metadata(&task).is_ok() {
            } else if info.is_symlink() {
                symlink(fs::read_link(&host).unwrap(), &task).unwrap();
            } else if info.is_file() {
                place(&host, &task, &info, way);
            }
        }
    }
}

fn below(root: &Path, dest: &Path) -> PathBuf {
    root.join(dest.strip_prefix("/").unwrap_or(dest))
}

fn make_dirs(root: &Path, dest: &Path) {
    let (mut host, mut task) = (PathBuf::from("/"), root.to_owned());
    for component in dest.components().filter(|c| matches!(c, Component::Normal(_))) {
        host.push(component);
        task.push(component);
        if fs::metadata(&task).is_ok() {
            continue;
        }
        let (mode, owner) = match fs::metadata(&host) {
            Ok(info) => (info.permissions().mode(), Some((info.uid(), info.gid()))),
            Err(_) => (0o777, None),
        };
        fs::create_dir(&task).unwrap();
        fs::set_permissions(&task, fs::Permissions::from_mode(mode & 0o777)).unwrap();
        if let Some((uid, gid)) = owner {
            chown(&task, Some(uid), Some(gid)).unwrap();
        }
    }
}

fn place(host: &Path, task: &Path, info: &fs::Metadata, way: Way) {
    if way == Way::Link && fs::hard_link(host, task).is_ok() {
        return;
    }
    copy(host, task).unwrap_or_else(|e| panic!("{host:?} -> {task:?}: {e}"));
    fs::set_permissions(task, fs::Permissions::from_mode(info.mode() & 0o777)).unwrap();
    chown(task, Some(info.uid()), Some(info.gid())).unwrap();
}

/// Copies by read(2) and write(2); `std::io::copy` would let the kernel copy.
fn copy(host: &Path, task: &Path) -> io::Result<()> {
    let (mut from, mut to, mut buffer) = (File::open(host)?, File::create(task)?, vec![0; 32 * 1024]);
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            n => to.write_all(&buffer[..n])?,
        }
    }
}
