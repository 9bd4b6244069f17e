//! Tests that change the machine: they take CPUs offline, reserve huge pages, and read the swap disk. They run in a
//! virtual machine only. (CONTRIBUTING.md, ring 4.)
//!
//! One test at a time, because each changes the machine and restores it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cofferdam::cgroup::devices::Access;
use cofferdam::cgroup::{
    CgroupName, CgroupPath, Cgroups, CpuReservations, CpuSet, Group, IoMax, Limits, Request, Version, lower,
};
use cofferdam::{Control, Device, Error, Host, Report, Require, Task};
use common::{asked, can, probe, run_probe, shell, status};

const MB: u64 = 1 << 20;

/// A lock on the machine; `None` if this machine must not be changed.
fn machine() -> Option<MutexGuard<'static, ()>> {
    static ONE: Mutex<()> = Mutex::new(());
    can("machine").then(|| ONE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A file of the machine with a temporary value. Dropping it restores the old one.
struct Set(PathBuf, String);

impl Set {
    fn to(path: impl Into<PathBuf>, now: &str) -> Set {
        let path = path.into();
        let then = fs::read_to_string(&path).unwrap();
        fs::write(&path, now).unwrap();
        Set(path, then)
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        fs::write(&self.0, &self.1).unwrap();
    }
}

/// Entry point of this binary inside a sandbox; does nothing elsewhere.
#[test]
fn probe_entry() {
    let Some((pages, mut say)) = asked() else { return };
    for page in 1..=pages.parse().unwrap() {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
        let (size, prot) = (usize::try_from(2 * MB).unwrap(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: an anonymous mapping at an address that the kernel chooses replaces no other mapping.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), size, prot, flags, -1, 0) };
        assert_ne!(map, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        // SAFETY: the mapping is writable. If no huge page is left, SIGBUS ends the process, as the test expects.
        unsafe { map.cast::<u8>().write_volatile(1) };
        say.fact("pages", page);
    }
}

#[test]
fn huge_page_beyond_the_limit_raises_sigbus() {
    let Some(_alone) = machine() else { return };
    let _pages = Set::to("/proc/sys/vm/nr_hugepages", "8");
    let limits = Limits { hugetlb: [("2MB".to_owned(), 4 * MB + 1)].into(), ..Limits::default() };
    for (pages, signal) in [("2", None), ("3", Some(libc::SIGBUS))] {
        let seen = run_probe(probe(pages).limits(limits.clone())).unwrap();
        assert!(seen.report.enforced.contains(Control::HUGETLB), "{}", seen.report);
        assert_eq!((seen.get("pages"), seen.status.signal), ("2", signal));
    }
}

/// Device number of the swap disk, which nothing else reads meanwhile.
fn disk() -> String {
    fs::read_to_string("/sys/block/vda/dev").unwrap().trim().to_owned()
}

#[test]
fn block_device_reads_are_throttled_to_read_bps() {
    let Some(_alone) = machine() else { return };
    let max = IoMax { device: disk(), read_bps: Some(MB / 2), ..IoMax::default() };
    let limits = Limits { io_max: vec![max], accounting: true, ..Limits::default() };
    let node = Device { access: Access::READ, ..Device::new("/dev/vda") };
    let read = shell("dd if=/dev/vda of=/dev/null bs=64k count=32");
    let task = read.limits(limits).with(|s| s.devices.push(node)).spawn().unwrap();
    let start = Instant::now();
    let report = task.report();
    assert!((report.enforced | report.weakened).contains(Control::IO), "{report}");
    assert!(task.wait().unwrap().success());
    // 2 MiB at 0.5 MiB/s take 4 s, less what the first interval lets through.
    assert!(start.elapsed() > Duration::from_secs(3), "{:?}", start.elapsed());
    let io = task.stats().unwrap().io.unwrap();
    let read: u64 =
        io.iter().filter(|io| format!("{}:{}", io.major, io.minor) == disk()).map(|io| io.read_bytes).sum();
    assert!(read >= 2 * MB, "{io:?}");
}

fn cgroups(limits: &Limits, report: &mut Report) -> Cgroups {
    let name = CgroupName::new("machine").unwrap();
    let (host, parent) = (Host::probe().unwrap(), CgroupPath::default());
    lower(&Request::new(limits, &host.cgroups, &parent, &name), report).unwrap()
}

#[test]
fn io_limits_can_be_set_changed_and_removed() {
    let Some(_alone) = machine() else { return };
    let on = Host::probe().unwrap().cgroups.limits_on;
    let limit = |read_bps, write_iops| Limits {
        io_max: vec![IoMax { device: disk(), read_bps, write_iops, ..IoMax::default() }],
        ..Limits::default()
    };
    let mut report = Report::default();
    let cgroups = cgroups(&limit(Some(MB), None), &mut report);
    let planned = report.clone();
    let mut group = Group::create(&cgroups, &mut report).unwrap();
    assert_eq!(report, planned);
    let files = ["io.max", "blkio.throttle.read_bps_device"];
    let home = cgroups.leaves().find(|leaf| files.iter().any(|file| leaf.join(file).exists())).unwrap();
    let text = |file: &str| fs::read_to_string(home.join(file)).unwrap().trim().to_owned();
    let both = || match on {
        Version::V1 => {
            let file = |what: &str| text(&format!("blkio.throttle.{what}_device")).replace(&disk(), "");
            format!("{}/{}", file("read_bps").trim(), file("write_iops").trim())
        }
        Version::V2 => {
            let line = text("io.max");
            let find = |key: &str| {
                let found = line.split(' ').find_map(|word| word.strip_prefix(key));
                found.filter(|value| *value != "max").unwrap_or_default().to_owned()
            };
            format!("{}/{}", find("rbps="), find("wiops="))
        }
    };
    assert_eq!(both(), "1048576/");
    // v1 throttles only some kinds of I/O, and each report says so.
    let mut update = |limits| {
        let some = on == Version::V1 && limits != Limits::default();
        let told = group.update(&limits).unwrap();
        assert_eq!(told.reasons.len(), usize::from(some), "{told}");
        assert!(told.reasons.iter().all(|r| r.why.starts_with("cgroup v1 throttles only direct")), "{told}");
    };
    update(limit(Some(2 * MB), Some(100)));
    assert_eq!(both(), "2097152/100");
    update(limit(None, Some(100)));
    assert_eq!(both(), "/100");
    update(Limits::default());
    assert_eq!(both(), "/");
    group.remove().unwrap();
    let unknown = IoMax { device: "259:7777".into(), read_bps: Some(MB), ..IoMax::default() };
    let sandbox = shell("true").limits(Limits { io_max: vec![unknown], ..Limits::default() });
    assert!(matches!(sandbox.spawn(), Err(Error::Unsupported { control: Control::IO, .. })));
    let task = sandbox.clone().require(Require::BestEffort).spawn().unwrap();
    assert!(task.report().missing.contains(Control::IO), "{}", task.report());
    let Err(Error::Unsupported { control, reason }) = sandbox.require(Control::IO).spawn() else {
        panic!("it is required");
    };
    // On v1 the requirement is refused earlier, because throttling is incomplete there.
    assert_eq!((control, reason.contains("(os error 19)")), (Control::IO, on == Version::V2), "{reason}");
}

/// The CPUs that a task may run on at present.
fn allowed(task: &Task) -> CpuSet {
    let text = fs::read_to_string(format!("/proc/{}/status", task.pid().unwrap())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    CpuSet::parse(line.trim()).unwrap()
}

#[test]
fn cpu_reservations_follow_cpu_hotplug() {
    let Some(_alone) = machine() else { return };
    let sleeper = |cores: &str| {
        shell("sleep 1000").limits(Limits {
            cores: CpuSet::parse_lenient(cores),
            exclusive: !cores.is_empty(),
            ..Limits::default()
        })
    };
    let before = Host::probe().unwrap();
    let all = &before.cgroups.online;
    let last = all.iter().max().unwrap();
    let (gone, one) = (last.to_string(), CpuSet::parse(&last.to_string()).unwrap());
    let rest = all.difference(&one);
    let reservations =
        || CpuReservations::read(&Host::probe().unwrap().cgroups, &CgroupPath::default()).unwrap();
    let guest = sleeper("").spawn().unwrap();
    let holder = sleeper(&gone).spawn().unwrap();
    assert_eq!((allowed(&guest), allowed(&holder)), (rest.clone(), one.clone()));

    let switch = format!("/sys/devices/system/cpu/cpu{last}/online");
    let off = Set::to(switch.as_str(), "0");
    assert_eq!((reservations().usable, reservations().share), (rest.clone(), rest.clone()));
    // The reservation stays, although the kernel meanwhile runs its task elsewhere.
    assert!(matches!(reservations().holders.as_slice(), [only] if only.cores == one), "{:?}", reservations());
    let late = sleeper("").spawn().unwrap();
    assert_eq!((allowed(&late), allowed(&guest)), (rest.clone(), rest.clone()));
    let none = format!("CPUs {gone} are not");
    let lenient = sleeper(&gone).require(Require::BestEffort);
    assert!(lenient.spawn().unwrap().report().to_string().contains(&none));
    assert!(sleeper(&gone).spawn().unwrap_err().to_string().contains(&none));
    let refused = sleeper(&gone).require(Control::CPUSET).spawn().unwrap_err().to_string();
    assert!(refused.contains(&none), "{refused}");
    let some = format!("{},{gone}", rest.iter().max().unwrap());
    drop(holder);
    // A caller that probed the host before the CPU went offline.
    let stale = sleeper(&gone).host(&before).spawn().unwrap_err();
    assert!(
        matches!(&stale, Error::Prepare { source, .. } if source.to_string().contains(&none)),
        "{stale:?}"
    );
    // Only some of the requested CPUs are online.
    if rest.len() < 2 {
        common::skip::note("a part of it: needs 3 CPUs");
    } else {
        let part = sleeper(&some).spawn().unwrap();
        let told = part.report().to_string();
        assert!(part.report().weakened.contains(Control::CPUSET), "{told}");
        let own = CpuSet::parse(&some).unwrap().intersection(&rest);
        assert_eq!((allowed(&part), allowed(&guest)), (own.clone(), rest.difference(&own)));
    }

    // Back online, the CPU returns to the shared set with the next task, and can be reserved.
    drop(off);
    if let Some(cpuset) = before.cgroups.v1.get("cpuset").filter(|_| before.cgroups.limits_on == Version::V1)
    {
        // The kernel removed the CPU from every v1 cpuset, and does not restore it.
        fs::write(cpuset.mount.join("cofferdam/cpuset.cpus"), all.to_string()).unwrap();
    }
    assert!(status(sleeper("").with(|s| s.args = vec!["-c".into(), "true".into()])).success());
    assert_eq!(reservations().usable, *all);
    assert_eq!((allowed(&guest), allowed(&late)), (all.clone(), all.clone()));
    let holder = sleeper(&gone).spawn().unwrap();
    assert_eq!((allowed(&guest), allowed(&holder)), (rest, one));
}
