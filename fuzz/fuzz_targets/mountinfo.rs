//! Any mount table and any list of cgroups. Every hierarchy that is detected appears in them, once. A hierarchy that is
//! covered by another mount, or outside the tree, is not taken for the caller's.
//!
//! Half of the inputs are built from lines, since random text is rarely valid.

#![no_main]

use std::path::{Path, PathBuf};

use cofferdam::cgroup::{Detection, Mode};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    Texts(&'a str, &'a str),
    Lines { mounts: Vec<Mount<'a>>, cgroups: Vec<Cgroup<'a>>, noise: &'a str },
}

#[derive(Arbitrary, Debug)]
struct Mount<'a> {
    id: u8,
    parent: u8,
    root: Place<'a>,
    path: Place<'a>,
    fs: u8,
    controllers: u8,
    read_only: bool,
}

#[derive(Arbitrary, Debug)]
struct Cgroup<'a> {
    controllers: u8,
    path: Place<'a>,
}

/// A path; short, so that mounts cover each other.
#[derive(Arbitrary, Debug)]
enum Place<'a> {
    Root,
    Steps(Vec<u8>),
    Any(&'a str),
}

impl Place<'_> {
    fn text(&self) -> String {
        match self {
            Place::Root => "/".into(),
            Place::Steps(steps) => {
                steps.iter().take(4).map(|s| format!("/{}", NAMES[usize::from(*s) % 6])).collect()
            }
            Place::Any(text) => text.replace('\n', ""),
        }
    }
}

const NAMES: [&str; 6] = ["a", "b", "sys", "with\\040blank", "..", "é"];
const FS: [&str; 4] = ["cgroup2", "cgroup", "tmpfs", "ext4"];
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "memory", "freezer", "name=systemd"];

fn list(bits: u8) -> String {
    let set: Vec<&str> = (0..5).filter(|i| bits & (1 << i) != 0).map(|i| CONTROLLERS[i]).collect();
    set.join(",")
}

fn texts(input: &Input<'_>) -> (String, String) {
    let (mounts, cgroups, noise) = match input {
        Input::Texts(mounts, cgroups) => return ((*mounts).into(), (*cgroups).into()),
        Input::Lines { mounts, cgroups, noise } => (mounts, cgroups, noise),
    };
    let mount = |m: &Mount<'_>| {
        let (root, path) = (m.root.text(), m.path.text());
        let options = if m.read_only { "ro,nosuid" } else { "rw" };
        let (fs, id, parent) = (FS[usize::from(m.fs) % 4], m.id % 16, m.parent % 16);
        format!("{id} {parent} 0:1 {root} {path} {options} shared:1 - {fs} x rw,{}\n", list(m.controllers))
    };
    let cgroup = |c: &Cgroup<'_>| format!("1:{}:{}\n", list(c.controllers), c.path.text());
    let own = cgroups.first().map(|c| format!("0::{}\n", c.path.text())).unwrap_or_default();
    let mut text: String = mounts.iter().map(mount).collect();
    text.push_str(noise);
    (text, cgroups.iter().map(cgroup).collect::<String>() + &own)
}

/// Parent, mount point and file system type of a mountinfo line. Optional fields stand between the sixth field and a
/// dash.
fn fields(line: &str) -> Option<(&str, &str, &str)> {
    let fields: Vec<&str> = line.split(' ').collect();
    let dash = fields.iter().skip(6).position(|field| *field == "-")? + 6;
    Some((fields[1], fields[4], fields.get(dash + 1)?))
}

/// Mount points of all lines with this file system type: a naive parser to compare with.
fn mounted(text: &str, fs: &str) -> Vec<PathBuf> {
    text.lines().filter_map(fields).filter(|f| f.2 == fs).map(|f| plain(f.1)).collect()
}

/// Decodes `\040` and other octal escapes, byte by byte.
fn plain(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes
            .get(at + 1..at + 4)
            .filter(|d| bytes[at] == b'\\' && d.iter().all(|d| (b'0'..=b'7').contains(d)));
        let value = digits.map(|d| d.iter().fold(0u32, |n, d| n * 8 + u32::from(d - b'0')));
        match value.filter(|v| *v < 128) {
            Some(value) => (out.push(value as u8), at += 4).1,
            None => (out.push(bytes[at]), at += 1).1,
        }
    }
    String::from_utf8(out).unwrap().into()
}

fuzz_target!(|input: Input<'_>| {
    let (mountinfo, cgroup) = texts(&input);
    let found = Detection::parse(&mountinfo, &cgroup);
    // No kernel was probed, so no hierarchy may count as writable.
    assert!(found.can_limit().is_err() && found.available().is_empty());
    assert_eq!(found.v2.is_some(), matches!(found.mode, Mode::V2 | Mode::Hybrid));
    assert_eq!(found.v1.is_empty(), matches!(found.mode, Mode::V2 | Mode::Off));
    if let Some(v2) = &found.v2 {
        assert!(mounted(&mountinfo, "cgroup2").contains(&v2.mount), "{:?}", v2.mount);
        assert_eq!(v2.top, None);
        if let Some(own) = &v2.own {
            assert!(own.starts_with('/'), "{own:?}");
            assert!(Path::new(own).components().all(|c| c != std::path::Component::ParentDir), "{own:?}");
            // `own` is the path after `0::`, relative to the root of the mount.
            let said = cgroup.lines().filter_map(|line| line.strip_prefix("0::"));
            let tail = |said: &str| own == "/" || said.trim_end_matches(" (deleted)").ends_with(own.as_str());
            assert!(said.clone().any(tail), "{own:?}");
        }
    }
    for (name, hierarchy) in &found.v1 {
        assert!(!name.is_empty() && !name.contains([',', '=', ':', '\n']), "{name:?}");
        assert!(mounted(&mountinfo, "cgroup").contains(&hierarchy.mount), "{:?}", hierarchy.mount);
        assert!(cgroup.contains(name.as_str()) && mountinfo.contains(name.as_str()));
        assert!(!hierarchy.writable);
    }
    assert_covered(&mountinfo, &cgroup);
    // Blank lines are ignored. (Empty text stands for a file that cannot be read.)
    let spaced = Detection::parse(&format!("\n{mountinfo}\n\n"), &cgroup);
    assert!(mountinfo.is_empty() || spaced == found, "{spaced:?}");
});

/// With one more mount on top of each mount, no hierarchy is visible. A mount on `/` cannot cover the process's own
/// root.
fn assert_covered(mountinfo: &str, cgroup: &str) {
    const ID: &str = "2147483647";
    let cover = |line| {
        let (parent, path, _) = fields(line)?;
        Some(format!("{ID} {parent} 0:9 / {path} rw - tmpfs over rw\n"))
    };
    let covers: String = mountinfo.lines().filter_map(cover).collect();
    if mountinfo.contains(ID) {
        return;
    }
    let found = Detection::parse(&format!("{mountinfo}\n{covers}"), cgroup);
    for mount in found.v2.iter().map(|v2| &v2.mount).chain(found.v1.values().map(|h| &h.mount)) {
        assert_eq!(mount.parent(), None, "{mount:?} is covered");
    }
}
