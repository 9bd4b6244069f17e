//! A parser for the lines of `/proc/PID/mountinfo` (`proc_pid_mountinfo(5)`).
//!
//! [`Mount::parse`] makes no system call. Paths are returned byte for byte, in any encoding. procfs's parser takes
//! UTF-8 text, so every byte is passed to it as the character of the same number (Latin-1), and converted back.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use procfs::process::MountInfo;

/// A mount. Only the fields that the crate uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) id: i32,
    /// Id of the parent mount.
    pub(crate) parent: i32,
    /// `MAJOR:MINOR` of the file system.
    pub(crate) device: String,
    /// The directory or file of that file system which is the root of this mount.
    pub(crate) root: PathBuf,
    /// Path of the mount point, relative to the root of the process whose mountinfo it is.
    pub(crate) point: PathBuf,
    pub(crate) read_only: bool,
    pub(crate) fs_type: String,
    /// Names of the file system's options (per superblock).
    pub(crate) super_options: Vec<String>,
}

impl Mount {
    /// The file of the calling thread's mount namespace.
    pub(crate) const TABLE: &str = "/proc/thread-self/mountinfo";

    /// The mounts of the calling thread's mount namespace, without lines that cannot be parsed.
    pub(crate) fn table() -> std::io::Result<Vec<Mount>> {
        let text = std::fs::read(Mount::TABLE)?;
        Ok(text.split(|byte| *byte == b'\n').filter_map(Mount::parse).collect())
    }

    /// Those of the [table](Self::table) whose file system has one of these types. The other lines are not parsed.
    pub(crate) fn of_types(types: &[&str]) -> std::io::Result<Vec<Mount>> {
        let text = std::fs::read(Mount::TABLE)?;
        let is_one = |line: &&[u8]| {
            let mut fields = line.split(|byte| *byte == b' ').skip_while(|field| *field != b"-");
            fields.nth(1).is_some_and(|found| types.iter().any(|name| name.as_bytes() == found))
        };
        Ok(text.split(|byte| *byte == b'\n').filter(is_one).filter_map(Mount::parse).collect())
    }

    /// Parses a line without its newline. `None` if it is malformed.
    pub(crate) fn parse(line: &[u8]) -> Option<Mount> {
        let line: String = line.iter().copied().map(char::from).collect();
        let info = MountInfo::from_line(&line).ok()?;
        let read_only = info.mount_options.contains_key("ro") || info.super_options.contains_key("ro");
        Some(Mount {
            id: info.mnt_id,
            parent: info.pid,
            device: text(&info.majmin),
            root: path(&info.root),
            point: path(info.mount_point.to_str()?),
            read_only,
            fs_type: text(&info.fs_type),
            super_options: info.super_options.keys().map(|name| text(name)).collect(),
        })
    }
}

/// Converts the characters back to bytes.
fn bytes(field: &str) -> Vec<u8> {
    field.chars().filter_map(|c| u8::try_from(c).ok()).collect()
}

fn text(field: &str) -> String {
    String::from_utf8_lossy(&bytes(field)).into_owned()
}

fn path(field: &str) -> PathBuf {
    OsString::from_vec(unescape(&bytes(field))).into()
}

/// Decodes octal escapes. The kernel writes `\040` for a space, `\011`, `\012` and `\134`, and never escapes a byte
/// above 127.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = match after {
            [a @ b'0'..=b'1', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if byte == b'\\' => {
                let digit = |d: &u8| d & 7;
                Some(digit(a) << 6 | digit(b) << 3 | digit(c))
            }
            _ => None,
        };
        out.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn unescape_decodes_only_complete_octal_escapes() {
        for (field, expected) in [
            (&b"a\\040b"[..], &b"a b"[..]),
            (b"\\134\\011\\012", b"\\\t\n"),
            (b"\\134040", b"\\040"),
            (b"\\9", b"\\9"),
            (b"\\+12", b"\\+12"),
            (b"\\377", b"\\377"),
            (b"\\", b"\\"),
            (b"\\04", b"\\04"),
            ("é\\04é".as_bytes(), "é\\04é".as_bytes()),
        ] {
            assert_eq!(unescape(field), expected);
        }
    }

    #[test]
    fn parse_keeps_path_bytes_and_refuses_incomplete_lines() {
        let line =
            b"50 20 0:40 /a\\040b /mnt/\xff\xc3\xa9\\134 rw,nosuid shared:1 master:2 - tmpfs x ro,size=1k";
        let mount = Mount::parse(line).unwrap();
        assert_eq!((mount.id, mount.parent, &*mount.device, &*mount.fs_type), (50, 20, "0:40", "tmpfs"));
        assert_eq!(mount.root, PathBuf::from("/a b"));
        assert_eq!(mount.point.as_os_str().as_bytes(), b"/mnt/\xff\xc3\xa9\\");
        assert!(mount.read_only && mount.super_options.iter().any(|o| o == "size"));
        for line in [&b""[..], b"31 23", b"31 23 0:28 / /x rw - ", b"x 23 0:28 / /x rw - t s rw"] {
            assert_eq!(Mount::parse(line), None);
        }
    }
}
