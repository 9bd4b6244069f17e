//! Source trees, identical on every machine and in every run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Number of entries by kind, and the total size of the files.
#[derive(Clone, Copy)]
pub struct Shape {
    pub files: usize,
    pub dirs: usize,
    pub links: usize,
    pub bytes: u64,
}

impl Shape {
    /// Size of Debian's essential packages.
    pub const DEBIAN: Shape = Shape { files: 5731, dirs: 800, links: 757, bytes: 100_000_000 };
    /// A twentieth of it, for a run that only shows that everything works.
    pub const SMALL: Shape = Shape { files: 280, dirs: 40, links: 37, bytes: 1_000_000 };

    /// `entries` in the proportions of [`DEBIAN`](Shape::DEBIAN), with files of 1 KB on average.
    pub fn of(entries: usize) -> Shape {
        let (dirs, links) = (entries * 11 / 100, entries * 10 / 100);
        let files = entries - dirs - links;
        Shape { files, dirs, links, bytes: files as u64 * 1000 }
    }

    pub fn entries(self) -> usize {
        self.files + self.dirs + self.links
    }
}

/// A xorshift64* generator. Written here so that the numbers do not change with a dependency.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number below `n`. Small numbers are more probable, so that a few directories hold most of the files.
    fn skewed(&mut self, n: usize) -> usize {
        ((self.unit() * self.unit() * n as f64) as usize).min(n - 1)
    }

    /// A log-normal number with median 1.
    fn size(&mut self) -> f64 {
        let normal: f64 = (0..12).map(|_| self.unit()).sum::<f64>() - 6.0;
        (1.9 * normal).exp()
    }
}

/// Creates the tree at `at`, which must not exist. `shape.dirs` counts `at` itself.
pub fn build(at: &Path, shape: Shape) {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let dirs = directories(at, shape.dirs, &mut random);
    let weights: Vec<f64> = (0..shape.files).map(|_| random.size()).collect();
    let scale = shape.bytes as f64 / weights.iter().sum::<f64>();
    let sizes: Vec<u64> = weights.iter().map(|w| (w * scale) as u64).collect();
    let largest = sizes.iter().enumerate().max_by_key(|(_, size)| **size).map_or(0, |(i, _)| i);
    let rest = shape.bytes - sizes.iter().sum::<u64>();
    let noise: Vec<u8> =
        (0..sizes[largest] + rest).map(|i| if i % 61 == 60 { b'\n' } else { random.next() as u8 }).collect();
    for (i, size) in sizes.iter().enumerate() {
        let size = size + if i == largest { rest } else { 0 };
        let path = dirs[random.skewed(dirs.len())].join(format!("file-{i}"));
        fs::write(&path, &noise[..size as usize]).unwrap();
        let mode = if i % 7 == 0 { 0o755 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    for i in 0..shape.links {
        let path = dirs[random.skewed(dirs.len())].join(format!("link-{i}"));
        std::os::unix::fs::symlink(format!("../file-{}", i * 3), path).unwrap();
    }
}

/// Creates a dozen directories at the top, like `/usr` and `/etc`, and the rest below them, at most seven levels deep.
fn directories(at: &Path, count: usize, random: &mut Random) -> Vec<PathBuf> {
    fs::create_dir(at).unwrap();
    let mut dirs = vec![at.to_owned()];
    let mut depths = vec![0];
    for i in 1..count {
        let parent = if i <= 12 { 0 } else { 1 + random.skewed(dirs.len() - 1) };
        let parent = if depths[parent] < 7 { parent } else { 1 };
        let dir = dirs[parent].join(format!("directory-{i}"));
        fs::create_dir(&dir).unwrap();
        dirs.push(dir);
        depths.push(depths[parent] + 1);
    }
    dirs
}

/// Number of entries of a tree, the top included.
pub fn count(at: &Path) -> usize {
    let below = |e: std::io::Result<fs::DirEntry>| {
        let e = e.unwrap();
        if e.file_type().unwrap().is_dir() { count(&e.path()) } else { 1 }
    };
    1 + fs::read_dir(at).unwrap().map(below).sum::<usize>()
}
