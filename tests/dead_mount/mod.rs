//! A mount whose server does not answer: a FUSE file system, served by this process through `/dev/fuse`.
#![allow(dead_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// A mount that does not answer, in a mount namespace of the calling thread.
pub struct DeadMount {
    dir: tempfile::TempDir,
    /// Closing the last descriptor ends the connection.
    server: Option<File>,
}

impl DeadMount {
    /// Mounts the file system. If `reads`, its server reads the requests: the kernel then does not let a killed process go
    /// before the file system is unmounted. `None` if this machine cannot mount it.
    pub fn new(reads: bool) -> Option<DeadMount> {
        unshare(CloneFlags::CLONE_NEWNS).ok()?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("dead");
        std::fs::create_dir(&point).unwrap();
        let mut server = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", server.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("dead"), &point, Some("fuse.dead"), flags, Some(options.as_str())).ok()?;
        answer_init(&mut server);
        if reads {
            let mut server = server.try_clone().unwrap();
            std::thread::spawn(move || while server.read(&mut [0; 1 << 16]).is_ok() {});
        }
        Some(DeadMount { dir, server: Some(server) })
    }

    /// The mount point.
    pub fn point(&self) -> PathBuf {
        self.dir.path().join("dead")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for DeadMount {
    fn drop(&mut self) {
        // It ends the connection, so that the processes that wait for an answer go on.
        let _ = umount2(&self.point(), MntFlags::MNT_FORCE);
        self.server = None;
        let _ = umount2(&self.point(), MntFlags::MNT_DETACH);
    }
}

/// Answers the first request, `FUSE_INIT` (`fuse(4)`).
fn answer_init(server: &mut File) {
    let mut request = [0u8; 1 << 16];
    let n = server.read(&mut request).unwrap();
    assert!(n >= 40, "{n}");
    assert_eq!(u32::from_ne_bytes(request[4..8].try_into().unwrap()), 26, "not FUSE_INIT");
    // struct fuse_out_header, struct fuse_init_out.
    let mut answer = Vec::new();
    answer.extend(80u32.to_ne_bytes());
    answer.extend(0i32.to_ne_bytes());
    answer.extend(&request[8..16]);
    for number in [7u32, 31, 0, 0, 12 | 9 << 16, 4096, 1] {
        answer.extend(number.to_ne_bytes());
    }
    answer.resize(80, 0);
    assert_eq!(server.write(&answer).unwrap(), 80);
}
