//! The file systems that hold the trees, in a private mount namespace.
//!
//! Everything, including the image files of the loop mounts, is in a tmpfs mounted over `/dev/shm` in that namespace.
//! The kernel removes it when this process ends, however it ends, and no other process sees it. Without the privilege
//! to mount, a directory in the host's `/dev/shm` is used, and removed when `Place` is dropped.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

pub struct Place {
    pub tmpfs: PathBuf,
    /// Why nothing can be mounted, if so.
    cannot: Option<String>,
    _dir: Option<TempDir>,
}

impl Place {
    /// Enters a new mount namespace. Must be called before any thread starts: threads would stay in the old namespace.
    pub fn enter() -> Place {
        match own_namespace() {
            Ok(()) => Place { tmpfs: "/dev/shm".into(), cannot: None, _dir: None },
            Err(errno) => {
                let dir = TempDir::with_prefix_in("cofferdam-bench-", "/dev/shm").unwrap();
                let cannot = Some(format!("no mounts of our own, {}", errno.desc()));
                Place { tmpfs: dir.path().into(), cannot, _dir: Some(dir) }
            }
        }
    }

    /// Mounts a new file system of `kind` on a sparse image of `size` bytes. The error says why it cannot.
    pub fn image(&self, kind: &str, mkfs: &[&str], size: u64) -> Result<PathBuf, String> {
        if let Some(why) = &self.cannot {
            return Err(why.clone());
        }
        let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        if !known.lines().any(|line| line.trim() == kind) {
            return Err(format!("this kernel has no {kind}"));
        }
        let image = self.tmpfs.join(format!("{kind}.img"));
        let at = self.tmpfs.join(kind);
        std::fs::create_dir(&at).unwrap();
        std::fs::File::create(&image).unwrap().set_len(size).unwrap();
        run(mkfs, &[&image])?;
        run(&["mount", "-o", "loop"], &[&image, &at])?;
        Ok(at)
    }
}

fn own_namespace() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("tmpfs"), "/dev/shm", Some("tmpfs"), MsFlags::empty(), Some("mode=0755,size=80%"))
}

fn run(command: &[&str], paths: &[&Path]) -> Result<(), String> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let out = Command::new(command[0]).args(&command[1..]).args(paths).env("PATH", path).output();
    let out = out.map_err(|e| format!("{}: {e}", command[0]))?;
    let said = String::from_utf8_lossy(&out.stderr);
    if out.status.success() { Ok(()) } else { Err(format!("{}: {}", command[0], said.trim())) }
}
