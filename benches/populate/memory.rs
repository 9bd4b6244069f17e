//! Peak resident memory (VmHWM) of a process that populates a root and does nothing else.

use std::path::Path;
use std::process::Command;

use cofferdam::Method;

use crate::place::Place;
use crate::tree::{self, Shape};
use crate::{Call, clear, fill, floor};

const VARIABLE: &str = "COFFERDAM_BENCH_MEMORY";
const BAR: u64 = 64 << 10;

/// Does the work of a measured child process, if the variable asks for it. The variable holds `METHOD:SOURCE:TO`;
/// without a source, the default list is populated. Prints the peak.
pub fn child() -> bool {
    let Ok(work) = std::env::var(VARIABLE) else { return false };
    let [method, source, to] = work.split(':').collect::<Vec<_>>()[..] else { panic!("{work}") };
    let map = match source {
        "" => cofferdam::rootfs::default_chroot_env(),
        source => [(source.into(), "/tree".into())].into(),
    };
    fill(method.parse::<Method>().unwrap(), &map, Path::new(to));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap().trim());
    true
}

fn peak(method: Method, source: &str, to: &Path) -> u64 {
    std::fs::create_dir(to).unwrap();
    let work = format!("{method}:{source}:{}", to.display());
    let out = Command::new(std::env::current_exe().unwrap()).env(VARIABLE, work).output().unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    said.split_whitespace().next().unwrap().parse().unwrap()
}

pub fn table(call: &Call, place: &Place) {
    if !call.wants("memory") {
        return;
    }
    println!("\nmemory, the most of a process that populates, bar {} MiB", BAR >> 10);
    let say = |name: String, kib: u64| {
        let verdict = if kib <= BAR { "met" } else { "MISSED" };
        println!("  {name:36} {:>10.1} MiB  {verdict}", kib as f64 / 1024.0);
    };
    let (source, to) = (place.tmpfs.join("source"), place.tmpfs.join("to"));
    for entries in if call.test { [100, 1000] } else { [1000, 100_000] } {
        tree::build(&source, Shape::of(entries));
        for method in [Method::Link, Method::Copy] {
            let kib = peak(method, source.to_str().unwrap(), &to);
            say(format!("{method}, {entries} entries"), kib);
            clear(&to);
        }
        clear(&source);
    }
    if call.host {
        let dir = tempfile::TempDir::with_prefix_in("cofferdam-bench-", "/var/tmp").unwrap();
        let kib = peak(Method::Link, "", &dir.path().join("to"));
        say("link, the host's default list".into(), kib);
        floor::remove(floor::threads(), &dir.path().join("to"));
    }
}
