//! What this process and the kernel hold at one time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use cofferdam::Host;

/// The system's allocator, which counts the bytes that are allocated and not freed. Resident memory also has what the
/// allocator keeps.
struct Counting;

static ALLOCATED: AtomicI64 = AtomicI64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(grown: usize, shrunk: usize) {
    ALLOCATED.fetch_add(grown.cast_signed() as i64 - shrunk.cast_signed() as i64, Relaxed);
}

// SAFETY: every method is the system allocator's, with the caller's arguments; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Names and numbers of objects, which must be the same in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objects {
    pub fds: BTreeMap<i32, String>,
    pub mounts: usize,
    pub cgroups: Vec<String>,
    pub children: Vec<String>,
    pub threads: usize,
    pub temporary: Vec<String>,
}

pub struct Held {
    pub objects: Objects,
    /// By name: KiB of `/proc/self/status` and `/proc/meminfo`, a number of `cgroup.stat`, and allocated bytes.
    amounts: BTreeMap<&'static str, i64>,
    /// Bytes in use of every slab cache, if this user may see them.
    slabs: BTreeMap<String, i64>,
}

pub struct Grown {
    /// KiB.
    pub rss: i64,
    /// KiB.
    pub slab: i64,
    /// Bytes.
    pub allocated: i64,
    all: BTreeMap<&'static str, i64>,
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Paths of the directories below `dir` whose names have `soak-`.
fn named_ours(dir: &Path, depth: u32, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().contains("soak-") {
            found.push(entry.path().display().to_string());
        } else if depth > 0 && entry.file_type().is_ok_and(|t| t.is_dir()) {
            named_ours(&entry.path(), depth - 1, found);
        }
    }
}

impl Objects {
    fn now() -> Objects {
        let (mut cgroups, mut temporary) = (Vec::new(), Vec::new());
        let host = Host::probe().unwrap().cgroups;
        for mount in host.v1.values().map(|h| &h.mount).chain(host.v2.iter().map(|v2| &v2.mount)) {
            named_ours(mount, 3, &mut cgroups);
        }
        named_ours(&std::env::temp_dir(), 0, &mut temporary);
        let tasks: Vec<_> = fs::read_dir("/proc/self/task").unwrap().flatten().map(|t| t.path()).collect();
        let children = tasks.iter().map(|task| read(task.join("children")));
        let children =
            children.flat_map(|list| list.split_whitespace().map(String::from).collect::<Vec<_>>());
        Objects {
            fds: crate::common::descriptors(),
            mounts: read("/proc/self/mountinfo").lines().count(),
            cgroups,
            children: children.collect(),
            threads: tasks.len(),
            temporary,
        }
    }
}

impl Held {
    pub fn now() -> Held {
        let allocated = ALLOCATED.load(Relaxed);
        let objects = Objects::now();
        let mut amounts = BTreeMap::from([("allocated", allocated)]);
        let mut lines = |text: &str, names: &[&'static str]| {
            for (name, rest) in text.lines().filter_map(|line| line.split_once([':', ' '])) {
                let number = rest.split_whitespace().next().and_then(|n| n.parse().ok());
                if let (Some(name), Some(number)) = (names.iter().find(|n| **n == name), number) {
                    amounts.insert(*name, number);
                }
            }
        };
        lines(&read("/proc/meminfo"), &["SUnreclaim", "Percpu", "KernelStack"]);
        let host = Host::probe().unwrap().cgroups;
        if let Some(v2) = host.v2 {
            lines(&read(v2.mount.join("cgroup.stat")), &["nr_dying_descendants"]);
        }
        // Last, because what is above allocates too.
        lines(&read("/proc/self/status"), &["VmRSS", "RssAnon", "VmSize"]);
        let slabs = read("/proc/slabinfo");
        let slab = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let number = |n: usize| fields.get(n)?.parse::<i64>().ok();
            Some(((*fields.first()?).to_owned(), number(1)? * number(3)?))
        };
        Held { objects, amounts, slabs: slabs.lines().skip(2).filter_map(slab).collect() }
    }

    /// Whether the objects are the same, with so many more threads. A thread that spawns holds prepared mounts.
    pub fn same_objects(&self, other: &Held, more_threads: usize) -> bool {
        if more_threads == 0 {
            return self.objects == other.objects;
        }
        (&self.objects.cgroups, &self.objects.children, self.objects.mounts)
            == (&other.objects.cgroups, &other.objects.children, other.objects.mounts)
    }

    pub fn grown_since(&self, before: &Held) -> Grown {
        let of = |name: &'static str| {
            let get = |held: &Held| held.amounts.get(name).copied().unwrap_or_default();
            get(self) - get(before)
        };
        let all = self.amounts.keys().map(|name| (*name, of(name))).collect();
        Grown { rss: of("VmRSS"), slab: of("SUnreclaim"), allocated: of("allocated"), all }
    }

    /// The slab caches that have grown most.
    pub fn slabs_grown_since(&self, before: &Held) -> String {
        let grown = |(name, bytes): (&String, &i64)| {
            (bytes - before.slabs.get(name).copied().unwrap_or_default(), name.clone())
        };
        let mut grown: Vec<_> = self.slabs.iter().map(grown).collect();
        grown.sort_unstable_by(|a, b| b.cmp(a));
        let shown = grown.iter().take(6).map(|(bytes, name)| format!("{name} {:+} KiB", bytes >> 10));
        format!("slab caches: {}", shown.collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Display for Grown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.all.iter().map(|(name, grown)| match *name {
            "nr_dying_descendants" => format!("{name} {grown:+}"),
            "allocated" => format!("{name} {grown:+} bytes"),
            _ => format!("{name} {grown:+} KiB"),
        });
        f.write_str(&all.collect::<Vec<_>>().join(", "))
    }
}
