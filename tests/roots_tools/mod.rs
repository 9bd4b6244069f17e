//! Describes a tree as text, entry by entry; and creates a tree with one of everything.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

/// Describes each entry by all that must be equal for every population method. The top's time is left out, because the
/// top may be a mount point, or contain mount points that were created for the sandbox.
pub fn describe(top: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut todo = vec![top.to_owned()];
    while let Some(path) = todo.pop() {
        let st = fs::symlink_metadata(&path).unwrap();
        let mut time = (st.mtime(), st.mtime_nsec());
        let (kind, content) = if st.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            if path == top {
                time = (0, 0);
            }
            ("dir", String::new())
        } else if st.is_symlink() {
            ("link", fs::read_link(&path).unwrap().to_string_lossy().into_owned())
        } else if st.is_file() {
            ("file", format!("{} {:x}", st.size(), digest(&path)))
        } else {
            // No method brings fifos, sockets and devices.
            continue;
        };
        let text = format!(
            "{kind} {:o} {}:{} {}.{} {content} {}",
            st.mode() & 0o7777,
            st.uid(),
            st.gid(),
            time.0,
            time.1,
            attributes(&path)
        );
        all.insert(path.to_string_lossy().into_owned(), text);
    }
    all
}

/// Hash (FNV-1a) of the first and the last 8192 bytes.
fn digest(path: &Path) -> u64 {
    let mut file = File::open(path).unwrap();
    let mut bytes = Vec::new();
    file.by_ref().take(8192).read_to_end(&mut bytes).unwrap();
    let size = file.metadata().unwrap().len();
    file.seek(SeekFrom::Start(size.saturating_sub(8192))).unwrap();
    file.take(8192).read_to_end(&mut bytes).unwrap();
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Extended attributes: `user.*`, POSIX access lists and `security.capability`. Security labels and overlayfs's own
/// attributes are left out.
fn attributes(path: &Path) -> String {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut names = vec![0u8; 4096];
    // SAFETY: the kernel writes at most as many bytes as the buffer has.
    let n = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let mut found = Vec::new();
    for name in names[..usize::try_from(n).unwrap_or(0)].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let text = String::from_utf8_lossy(name).into_owned();
        if !["user.", "system.posix_acl", "security.capability"].iter().any(|p| text.starts_with(p)) {
            continue;
        }
        let mut value = vec![0u8; 4096];
        let key = CString::new(name).unwrap();
        // SAFETY: as above.
        let n =
            unsafe { libc::lgetxattr(path.as_ptr(), key.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        found.push(format!("{text}={:x?}", &value[..usize::try_from(n).unwrap_or(0)]));
    }
    found.sort();
    found.join(" ")
}

fn set(path: &Path, name: &str, value: &[u8]) {
    let (path, name) = (CString::new(path.as_os_str().as_bytes()).unwrap(), CString::new(name).unwrap());
    // SAFETY: the kernel reads as many bytes as the value has.
    let r = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    let error = std::io::Error::last_os_error();
    // tmpfs supports user.* since Linux 6.6.
    let lacks = error.raw_os_error() == Some(libc::ENOTSUP) && name.to_bytes().starts_with(b"user.");
    assert!(r == 0 || lacks, "{path:?} {name:?}: {error}");
}

/// Creates a tree with one of everything. Needs root, for owners and capabilities.
pub fn one_of_everything(top: &Path) {
    let at = |path: &str| top.join(path);
    let write = |path: &str, content: &[u8]| {
        fs::create_dir_all(at(path).parent().unwrap()).unwrap();
        fs::write(at(path), content).unwrap();
    };
    write("dir/file", b"content");
    write("dir/deeper/still/file", b"more");
    write("empty", b"");
    write("large", &vec![7; 3_000_000]);
    write("suid", b"suid");
    write("capable", b"capable");
    write("noted", b"noted");
    write("private/closed", b"closed");
    File::create(at("holes")).unwrap().set_len(1 << 24).unwrap();
    fs::write(top.join(OsStr::from_bytes(b"no\xffutf8\n")), "odd").unwrap();
    symlink("dir/file", at("relative")).unwrap();
    symlink("/etc/passwd", at("absolute")).unwrap();
    symlink("../../nowhere", at("dangling")).unwrap();
    fs::create_dir(at("sticky")).unwrap();
    for i in 0..200 {
        write(&format!("many/{}/{}/f", i % 8, i), format!("{i}").as_bytes());
    }
    for path in ["dir/deeper", "suid", "relative"] {
        std::os::unix::fs::lchown(at(path), Some(1234), Some(4321)).unwrap();
    }
    set(&at("noted"), "user.note", b"a note");
    set(&at("dir"), "user.note", b"a note");
    // A POSIX access list, version 2: the owner, user 7 and the group may read, as the mask permits; others may not.
    let entry = |tag: u16, perm: u16, id: u32| {
        [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    let list = [
        &2u32.to_le_bytes()[..],
        &entry(1, 6, none),
        &entry(2, 4, 7),
        &entry(4, 4, none),
        &entry(16, 4, none),
        &entry(32, 0, none),
    ];
    set(&at("noted"), "system.posix_acl_access", &list.concat());
    // File capabilities, version 2: CAP_NET_BIND_SERVICE permitted, with the effective bit.
    set(&at("capable"), "security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mode = |p: &str, m| fs::set_permissions(at(p), fs::Permissions::from_mode(m)).unwrap();
    mode("suid", 0o4755);
    mode("private/closed", 0o400);
    mode("sticky", 0o1777);
    mode("private", 0o500);
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    for path in ["dir/file", "dir", "many/3"] {
        File::open(at(path)).unwrap().set_modified(old).unwrap();
    }
}
