//! `explain` prints what `run` does. Every line of the plan is a system call in strace's output, with the same
//! arguments and in the same order, and init makes no other call that changes anything.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod agree;
mod trace;

use std::process::{Command, Stdio};

use agree::{Many, agrees, many};
use trace::Call;

#[path = "../../../tests/common/skip.rs"]
mod skip;

/// The program. The run-time variable has precedence, because CI runs this test from a copy of the tree.
fn binary() -> std::ffi::OsString {
    std::env::var_os("CARGO_BIN_EXE_cofferdam").unwrap_or_else(|| env!("CARGO_BIN_EXE_cofferdam").into())
}

fn strace() -> bool {
    let there = Command::new("strace").arg("-V").output().is_ok();
    if !there {
        skip::skip(&["strace"], "not installed");
    }
    there
}

/// Splits a trace into the calls of the caller (all its threads), and those of init and the task. The two run
/// concurrently, so their order relative to each other is not fixed.
fn halves(calls: Vec<Call>) -> (Vec<Call>, Vec<Call>) {
    let clone = calls.iter().position(|call| call.name == "clone3").unwrap();
    let mut front: Vec<u32> = calls[..=clone].iter().map(|call| call.pid).collect();
    // Includes threads that the caller starts later, for the teardown.
    for call in &calls[clone + 1..] {
        let thread =
            call.name.starts_with("clone") && call.args.iter().any(|arg| arg.contains("CLONE_THREAD"));
        if thread && front.contains(&call.pid) {
            front.extend(call.result.split(' ').next().and_then(|pid| pid.parse::<u32>().ok()));
        }
    }
    calls.into_iter().partition(|call| front.contains(&call.pid))
}

/// The calls up to the exec of the command, one process after another. From its fork on, the process that stays and its
/// child run at the same time.
fn by_process(mut init: Vec<Call>) -> Vec<Call> {
    let exec = init.iter().position(|call| call.name == "execve" && call.result == "0");
    init.truncate(exec.map_or(init.len(), |at| at + 1));
    let mut pids: Vec<_> = init.iter().map(|call| call.pid).collect();
    let mut known = std::collections::BTreeSet::new();
    pids.retain(|pid| known.insert(*pid));
    init.sort_by_key(|call| pids.iter().position(|pid| *pid == call.pid));
    init
}

/// The plan of init with the lines of the child behind those of the process that stays.
fn child_last(plan: &str) -> String {
    let (mut lines, mut held) = (Vec::new(), Vec::new());
    for line in plan.lines() {
        if line.ends_with("# in the child") {
            held.push(line);
            continue;
        }
        lines.push(line);
        if line.trim().starts_with("sendto(the child") {
            lines.append(&mut held);
        }
    }
    lines.join("\n")
}

/// The lines of a plan that are calls, each with its remark.
fn lines(plan: &str) -> impl Iterator<Item = (Call, &str)> {
    plan.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let (text, remark) = line.split_once(" # ").unwrap_or((line, ""));
        (Call::parse(0, text).unwrap_or_else(|| panic!("{line:?} is no call")), remark)
    })
}

fn compare(flags: &[&str]) {
    let explain = Command::new(binary()).arg("explain").args(flags).output().unwrap();
    assert!(explain.status.success(), "{}", String::from_utf8_lossy(&explain.stderr));
    let plan = String::from_utf8(explain.stdout).unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let run = Command::new("strace")
        .args(["-f", "-y", "-s", "4096", "-o"])
        .arg(log.path())
        .arg(binary())
        .arg("run")
        .args(flags)
        .stdout(Stdio::null())
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let (front, init) = halves(trace::calls(&std::fs::read_to_string(log.path()).unwrap()));
    let init = by_process(init);
    let (parents, inits) = plan.split_once("# init\n").unwrap();
    let (inits, release) = inits.split_once("# release\n").unwrap();
    // The child executes init while the caller waits for the clone, so the trace has the exec among init's calls.
    let (execute, parents): (Vec<&str>, Vec<&str>) =
        parents.lines().map(str::trim).partition(|line| line.starts_with("execveat"));
    let inits = format!("{}\n{}", execute.join("\n"), child_last(inits));
    let (of_front, of_init) = (in_order(&parents.join("\n"), &front), in_order(&inits, &init));
    assert!(of_front.len() + of_init.len() > 60, "{plan}");
    nothing_else(&init, &of_init);
    // After the end of the task, everything created is removed. A plan may create nothing that must be removed.
    let released = in_order(release, &front[of_front[of_front.len() - 1]..]);
    assert_eq!(released.is_empty(), lines(release).next().is_none(), "{release}");
}

/// Finds the lines of the plan in the trace, in order, and returns the indices of their calls. A line with the remark
/// `if ...` may be absent, and so may a write that directly follows it.
fn in_order(plan: &str, trace: &[Call]) -> Vec<usize> {
    let mut found = Vec::new();
    let mut at = 0;
    let mut skipped = false;
    for (line, remark) in lines(plan) {
        if remark.starts_with("if ") && line.name == "write" && skipped {
            continue;
        }
        let many = many(&line);
        let mut count = 0;
        while let Some(next) = trace[at..].iter().position(|call| agrees(&line, call)) {
            // A run of calls ends when its process makes another call.
            let others = |call: &Call| found.last().is_some_and(|last: &usize| call.pid != trace[*last].pid);
            if count > 0 && many == Many::Some && !trace[at..at + next].iter().all(others) {
                break;
            }
            found.push(at + next);
            at += next + 1;
            count += 1;
            if many == Many::One || many == Many::Exactly(count) {
                break;
            }
        }
        skipped = count == 0 && remark.starts_with("if ");
        let enough = match many {
            Many::One | Many::Some => count > 0 || skipped,
            Many::Exactly(all) => count == all,
        };
        assert!(
            enough,
            "{line:?} of the plan is {count} times in the trace, not {many:?}, after {:#?}",
            &trace[found.last().map_or(0, |last| last.saturating_sub(1))..trace.len().min(at + 3)]
        );
    }
    found
}

/// Asserts that up to the exec init makes no call that the plan does not print, but for the list below. With those
/// calls init opens and creates the directories of a path, examines what it opened, and talks to the parent.
fn nothing_else(init: &[Call], found: &[usize]) {
    const BESIDES: [&str; 19] = [
        "close",
        "fstat",
        "mmap",
        "munmap",
        "openat2",
        "mkdirat",
        "openat",
        "statx",
        "umount2",
        "recvfrom",
        "sendto",
        "sendmsg",
        "ppoll",
        "poll",
        "read",
        "wait4",
        "rt_sigprocmask",
        "exit_group",
        "exit",
    ];
    let (first, last) = (found[0], found[found.len() - 1]);
    assert_eq!((init[first].name.as_str(), init[last].name.as_str()), ("execveat", "execve"));
    for (at, call) in init.iter().enumerate().take(last).skip(first).filter(|(at, _)| !found.contains(at)) {
        assert!(BESIDES.contains(&call.name.as_str()), "call {at} is on no line of the plan: {call:?}");
    }
}

#[test]
fn plan_line_agrees_only_with_its_own_call() {
    for (line, call, yes) in [
        ("mkdir(\"/a\", 0711)", "mkdir(\"/a\", 0711)", true),
        ("mkdir(\"/a\", 0711)", "mkdir(\"/a\", 0755)", false),
        ("mkdir(\"/a\", 0711)", "mkdir(\"/b\", 0711)", false),
        ("prctl(PR_SET_DUMPABLE, 0)", "prctl(PR_SET_DUMPABLE, SUID_DUMP_DISABLE)", true),
        ("prctl(PR_SET_DUMPABLE, 0)", "prctl(PR_SET_KEEPCAPS, 0)", false),
        ("prctl(PR_CAPBSET_DROP, all but 0x1)", "prctl(PR_CAPBSET_DROP, CAP_CHOWN)", false),
        ("prctl(PR_CAPBSET_DROP, all but 0x1)", "prctl(PR_CAPBSET_DROP, CAP_KILL)", true),
        ("prctl(PR_CAPBSET_DROP, each of 0x1)", "prctl(PR_CAPBSET_DROP, CAP_CHOWN)", true),
        ("prctl(PR_CAPBSET_DROP, each of 0x1)", "prctl(PR_CAPBSET_DROP, CAP_KILL)", false),
        ("setresuid(1, 1, 1)", "setresuid(1, 1, 0)", false),
        ("setgroups(0, [])", "setgroups(0, [])", true),
        ("write(\"/cg/x\", \"1\")", "write(3</cg/x>, \"1\", 1)", true),
        ("write(\"/cg/x\", \"1\")", "write(3</cg/y>, \"1\", 1)", false),
        ("write(\"/cg/x\", \"1\")", "write(3</cg/x>, \"2\", 1)", false),
        ("write(it, 5 bytes)", "write(3</dev/.file>, \"hello\", 5)", true),
        ("write(it, 5 bytes)", "write(3</dev/.file>, \"help\", 4)", false),
        (
            "move_mount(\"/s\", root \"/d/e\")",
            "move_mount(3</>, \"\", 4</d/e>, \"\", MOVE_MOUNT_F_EMPTY_PATH)",
            true,
        ),
        (
            "move_mount(\"/s\", root \"/d/e\")",
            "move_mount(3</>, \"\", 4</d/f>, \"\", MOVE_MOUNT_F_EMPTY_PATH)",
            false,
        ),
        (
            "mount_setattr(\"/s\", AT_RECURSIVE, MOUNT_ATTR_RDONLY, MS_PRIVATE)",
            "mount_setattr(3</>, \"\", AT_EMPTY_PATH|AT_RECURSIVE, {attr_set=MOUNT_ATTR_RDONLY, attr_clr=0, propagation=MS_PRIVATE, userns_fd=0}, 32)",
            true,
        ),
        (
            "mount_setattr(\"/s\", AT_RECURSIVE, MOUNT_ATTR_RDONLY, MS_PRIVATE)",
            "mount_setattr(3</>, \"\", AT_EMPTY_PATH|AT_RECURSIVE, {attr_set=MOUNT_ATTR_NODEV, attr_clr=0, propagation=MS_PRIVATE, userns_fd=0}, 32)",
            false,
        ),
        (
            "mount_setattr(\"/s\", AT_RECURSIVE, MOUNT_ATTR_RDONLY, MS_PRIVATE)",
            "mount_setattr(3</>, \"\", AT_EMPTY_PATH|AT_RECURSIVE, {attr_set=MOUNT_ATTR_RDONLY, attr_clr=0, propagation=MS_SLAVE, userns_fd=0}, 32)",
            false,
        ),
        (
            "openat2(root, \"/dev/x\", RESOLVE_IN_ROOT)",
            "openat2(5</dev>, \"/x\", {flags=O_RDONLY|O_PATH, resolve=RESOLVE_NO_MAGICLINKS|RESOLVE_IN_ROOT}, 24)",
            true,
        ),
        (
            "openat2(root, \"/dev/x\", RESOLVE_IN_ROOT)",
            "openat2(5</dev>, \"/x\", {flags=O_RDONLY|O_PATH, resolve=RESOLVE_NO_MAGICLINKS}, 24)",
            false,
        ),
        (
            "capset(effective=0x21, permitted=0x21, inheritable=0x0)",
            "capset({version=3, pid=0}, {effective=1<<CAP_CHOWN|1<<CAP_KILL, permitted=1<<CAP_CHOWN|1<<CAP_KILL, inheritable=0})",
            true,
        ),
        (
            "capset(effective=0x21, permitted=0x21, inheritable=0x0)",
            "capset({version=3, pid=0}, {effective=1<<CAP_CHOWN, permitted=1<<CAP_CHOWN|1<<CAP_KILL, inheritable=0})",
            false,
        ),
        (
            "prlimit64(0, RLIMIT_NOFILE, {1024, RLIM64_INFINITY})",
            "prlimit64(0, RLIMIT_NOFILE, {rlim_cur=1024, rlim_max=RLIM64_INFINITY}, NULL)",
            true,
        ),
        (
            "prlimit64(0, RLIMIT_NOFILE, {1048576, 9})",
            "prlimit64(0, RLIMIT_NOFILE, {rlim_cur=1024*1024, rlim_max=9}, NULL)",
            true,
        ),
        (
            "prlimit64(0, RLIMIT_NOFILE, {1024, 9})",
            "prlimit64(0, RLIMIT_CORE, {rlim_cur=1024, rlim_max=9}, NULL)",
            false,
        ),
        (
            "seccomp(SECCOMP_SET_MODE_FILTER, 7 instructions)",
            "seccomp(SECCOMP_SET_MODE_FILTER, 0, {len=8, filter=0x1})",
            false,
        ),
        (
            "mknodat(root, \"/dev/null\", S_IFCHR|0666, makedev(1, 3))",
            "mknodat(5</dev>, \"null\", S_IFCHR|0666, makedev(0x1, 0x3))",
            true,
        ),
        (
            "mknodat(root, \"/dev/null\", S_IFCHR|0666, makedev(1, 3))",
            "mknodat(5</dev>, \"null\", S_IFCHR|0666, makedev(0x1, 0x5))",
            false,
        ),
        ("clone3(CLONE_VM|CLONE_NEWPID)", "clone3({flags=CLONE_VM|CLONE_NEWPID, pidfd=0x7f}, 88)", true),
        ("clone3(CLONE_VM|CLONE_NEWPID)", "clone3({flags=CLONE_VM, pidfd=0x7f}, 88)", false),
    ] {
        let [line, call] = [line, call].map(|text| Call::parse(1, text).unwrap());
        assert_eq!(agrees(&line, &call), yes, "{line:?} and {call:?}");
    }
}

#[test]
fn every_plan_line_is_a_traced_call_in_order() {
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
        "--require",
        "best_effort",
        "--",
        "true",
    ]);
    compare(&["--id", "explained", "--pid", "host", "--ipc", "host", "--cap-drop", "all", "--", "true"]);
    compare(&["--id", "explained", "--allow-new-privs", "--device", "/dev/null:/dev/sink", "--", "true"]);
    let spec = tempfile::NamedTempFile::new().unwrap();
    let text = r#"{
        "command": "true",
        "rlimits": { "nofile": { "soft": 1024, "hard": 4096 }, "core": { "soft": 0, "hard": 0 } },
        "oom_score_adj": 500,
        "deadline": "90s",
        "cpu_deadline": "80s",
        "require": "best_effort",
        "task_dirs": { "secrets": { "files": { "key": "value" } } }
    }"#;
    std::fs::write(spec.path(), text).unwrap();
    compare(&["--id", "explained", "--spec", spec.path().to_str().unwrap()]);
}
