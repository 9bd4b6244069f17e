//! What `explain` prints is what `run` does: every line of the plan is a system call that strace sees,
//! in the plan's order.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::io::Write;
use std::process::{Command, Stdio};

/// The program. The run-time variable comes first: CI runs this test from a copy of the tree.
fn binary() -> std::ffi::OsString {
    std::env::var_os("CARGO_BIN_EXE_cofferdam").unwrap_or_else(|| env!("CARGO_BIN_EXE_cofferdam").into())
}

fn strace() -> bool {
    let there = Command::new("strace").arg("-V").output().is_ok();
    let must = std::env::var("COFFERDAM_MUST_HAVE").unwrap_or_default();
    assert!(there || !must.contains("strace"), "this machine must have strace");
    if !there {
        let _ = writeln!(std::io::stderr(), "skipped: needs strace");
    }
    there
}

/// The calls of a trace, `name(arguments)`: those of the front and of its threads, and those of init. Between
/// the two there is no order where they wait for nothing of each other.
fn calls(trace: &str) -> (Vec<String>, Vec<String>) {
    let lines: Vec<(&str, &str)> = trace.lines().filter_map(|line| line.split_once(' ')).collect();
    let clone = lines.iter().position(|(_, call)| name(call) == "clone3").unwrap();
    let front: Vec<&str> = lines[..=clone].iter().map(|(pid, _)| *pid).collect();
    let calls = |ours: bool| {
        let of = lines.iter().filter(|(pid, call)| front.contains(pid) == ours && call.contains('('));
        of.map(|(_, call)| call.trim().to_string()).collect()
    };
    (calls(true), calls(false))
}

/// The strings in double quotes of a call.
fn quoted(call: &str) -> Vec<&str> {
    call.split('"').skip(1).step_by(2).collect()
}

fn name(call: &str) -> &str {
    call.trim().split('(').next().unwrap_or_default()
}

/// Objects that strace shows by their own text; elsewhere it shows descriptors.
const SHOWN: [&str; 11] = [
    "fsopen",
    "fsconfig",
    "symlinkat",
    "mkdir",
    "openat",
    "sethostname",
    "chdir",
    "pivot_root",
    "memfd_create",
    "umount2",
    "rmdir",
];

/// Whether `given` to a call can be `path`, from the root or from one of the three trees in it.
fn below(path: &str, given: &str) -> bool {
    let front = ["/dev", "/proc", "/sys"].into_iter().find_map(|tree| path.strip_prefix(tree));
    given == path
        || given == path.trim_start_matches("dev/")
        || front.is_some_and(|rest| given == if rest.is_empty() { "/" } else { rest })
}

fn shows(call: &str, line: &str) -> bool {
    if name(call) != name(line) {
        return false;
    }
    let objects = quoted(line);
    match name(line) {
        // The first is the file system, which strace shows as a descriptor.
        "fsconfig" => objects.iter().skip(1).all(|o| quoted(call).contains(o)),
        "open_tree" if line.contains("open_tree(\"") => quoted(call).contains(&objects[0]),
        // What lies below /dev, /proc and /sys is opened from the descriptor of what was mounted there.
        "openat2" => {
            // What may be a link is looked up in its directory.
            let last = objects[0].rsplit('/').next().filter(|_| line.contains("RESOLVE_NO_SYMLINKS"));
            quoted(call).iter().any(|q| below(objects[0], q) || last == Some(*q))
        }
        // Of what is made in the root the last name is shown.
        "openat" if line.starts_with("openat(root, ") => quoted(call).iter().any(|q| objects[0].ends_with(q)),
        "mkdirat" | "mknodat" => objects.last().is_none_or(|o| quoted(call).iter().any(|q| o.ends_with(q))),
        "symlinkat" => quoted(call).contains(&objects[0]),
        "capset" | "setgroups" | "setresuid" | "setresgid" | "prlimit64" => true,
        n if SHOWN.contains(&n) => objects.iter().all(|o| quoted(call).contains(o)),
        _ => true,
    }
}

fn compare(flags: &[&str]) {
    let explain = Command::new(binary()).arg("explain").args(flags).output().unwrap();
    assert!(explain.status.success(), "{}", String::from_utf8_lossy(&explain.stderr));
    let plan = String::from_utf8(explain.stdout).unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let run = Command::new("strace")
        .args(["-f", "-s", "4096", "-o"])
        .arg(log.path())
        .arg(binary())
        .arg("run")
        .args(flags)
        .stdout(Stdio::null())
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let (front, init) = calls(&std::fs::read_to_string(log.path()).unwrap());
    let (parents, inits) = plan.split_once("# init\n").unwrap();
    // Init is executed by the clone itself, while the front waits.
    let (execute, parents): (Vec<&str>, Vec<&str>) = parents.lines().partition(|l| l.starts_with("execveat"));
    let inits = format!("{}\n{inits}", execute.join("\n"));
    let lines = in_order(&parents.join("\n"), &front) + in_order(&inits, &init);
    assert!(lines > 60, "{plan}");
}

/// How many lines of the plan were found in the trace, in its order. What is made `# if` something else is so need
/// not be there: a write then is right behind the call that opened its file.
fn in_order(plan: &str, trace: &[String]) -> usize {
    let mut at = 0;
    let mut lines = 0;
    let mut skipped = false;
    for line in plan.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let (line, remark) = line.split_once(" # ").unwrap_or((line, ""));
        if remark.starts_with("if ") && name(line) == "write" && skipped {
            continue;
        }
        skipped = false;
        match trace[at..].iter().position(|call| shows(call, line)) {
            Some(found) => at += found + 1,
            None if remark.starts_with("if ") => skipped = true,
            None => {
                panic!("{line:?} of the plan is not in the trace after {:?}", trace.get(at.saturating_sub(1)))
            }
        }
        lines += 1;
    }
    lines
}

#[test]
fn every_line_of_the_plan_is_in_the_trace() {
    if !strace() {
        return;
    }
    compare(&["--id", "explained", "--", "true"]);
    compare(&["--id", "explained", "--net", "none", "--hostname", "dam", "--workdir", "/w", "--", "true"]);
    compare(&["--id", "explained", "--no-pivot-root", "--no-init", "--user", "root", "--", "true"]);
    compare(&[
        "--id",
        "explained",
        "--populate",
        "link",
        "--chroot-env",
        "/bin/true",
        "--chroot-env",
        "/lib64",
        "--chroot-env",
        "/lib/x86_64-linux-gnu/libc.so.6",
        "--chroot-env",
        "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        "--",
        "true",
    ]);
    compare(&[
        "--id",
        "explained",
        "--populate",
        "overlay",
        "--secrets",
        "64k",
        "--tmp",
        "1m",
        "--dns",
        "192.0.2.1",
        "--add-host",
        "db:192.0.2.7",
        "--",
        "true",
    ]);
    compare(&[
        "--id",
        "explained",
        "--volume",
        "/tmp:/t:ro",
        "--memory",
        "64m",
        "--pids-max",
        "20",
        "--cpu-shares",
        "512",
        "--",
        "true",
    ]);
}
