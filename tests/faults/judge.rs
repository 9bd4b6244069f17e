//! What must become of a cell.

use crate::driver::Outcome;
use crate::session::Ran;
use crate::specs::Act;
use crate::tracer::{Call, Role};

/// What the judge knows of a spec: its plan, and the outcome without a fault.
pub struct Expected {
    lines: Vec<Line>,
    outcome: Outcome,
    /// Whether the spec is another command in a running task, for which there is no plan to print.
    pub exec: bool,
    /// Whether mounts are prepared.
    prepares: bool,
    /// Whether a kept plan is used.
    keeps: bool,
    /// Whether the caller links or copies files. The plan has no line for each of them.
    populates: bool,
}

/// A line of a plan without its remark.
struct Line {
    text: String,
    /// Whether the plan says that the step may be refused.
    optional: bool,
    /// Index of its step.
    step: usize,
}

impl Expected {
    pub fn new(plan: &str, outcome: Outcome, act: &Act) -> Expected {
        let (mut lines, mut optional, mut step) = (Vec::new(), false, 0);
        for line in plan.lines() {
            match line.strip_prefix("# ") {
                Some(title) => (optional, step) = (title.ends_with("(may be refused)"), step + 1),
                None => lines.push(Line { text: without_remark(line.trim()).to_owned(), optional, step }),
            }
        }
        Expected {
            lines,
            outcome,
            exec: matches!(act, Act::Exec(_)),
            prepares: matches!(act, Act::Prepare),
            keeps: matches!(act, Act::SpawnPrepared),
            populates: plan.contains("# populate the root by "),
        }
    }

    /// The step of a line, at `from` or after it. A descriptor of the caller has another number each time.
    pub fn position(&self, message: &str, from: usize) -> Option<usize> {
        let message = without_remark(message);
        let number = |text: &str| {
            text.strip_prefix("fcntl(").and_then(|rest| rest.split(',').next()?.parse::<u32>().ok()).is_some()
        };
        let is = |line: &Line| line.text == message || number(&line.text) && number(message);
        self.lines.iter().filter(|line| line.step >= from).find(|line| is(line)).map(|line| line.step)
    }

    /// Whether the plan says that a call on this file may be refused.
    fn may_be_refused(&self, name: &str, file: &str) -> bool {
        let is = |line: &&Line| {
            line.text.starts_with(&format!("{name}(")) && line.text.contains(&format!("{file}\""))
        };
        !file.is_empty() && self.lines.iter().find(is).is_some_and(|line| line.optional)
    }
}

fn without_remark(line: &str) -> &str {
    line.split(" # ").next().unwrap_or_default()
}

/// What a cell came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The spawn failed with this error.
    Refused { message: String, kind: String },
    /// The spawn succeeded, and the report says that something does not hold.
    Degraded,
    /// The spawn succeeded, for this reason.
    Passed(&'static str),
    /// The call was not made this time.
    Missed,
}

/// Judges one cell whose call returned an errno.
pub fn judge(expected: &Expected, errno: i32, ran: &Ran) -> Result<Verdict, String> {
    let Some(call) = &ran.hit else {
        clean(ran)?;
        return Ok(Verdict::Missed);
    };
    let outcome = clean(ran)?;
    if outcome.kind.is_empty() {
        passed(expected, call, errno, outcome)
    } else {
        refused(expected, call, errno, outcome)
    }
}

/// Checks that nothing is left, and nothing changed in the caller.
pub fn clean(ran: &Ran) -> Result<&Outcome, String> {
    if ran.hung {
        return Err("the spawn hangs".into());
    }
    let Some(outcome) = &ran.outcome else { return Err("the caller ended".into()) };
    if ran.processes > 0 {
        return Err(format!("{} processes are left: {outcome:?}", ran.processes));
    }
    if !outcome.left.is_empty() {
        return Err(format!("left: {:?}, with {} {:?}", outcome.left, outcome.kind, outcome.message));
    }
    // Prepared mounts that were made anew have new descriptors, at the same numbers.
    let anew = |change: &str| ["mnt:[", "/mountinfo ["].iter().any(|kept| change.matches(kept).count() == 2);
    if !outcome.touched.iter().all(|change| anew(change)) {
        return Err(format!(
            "the caller is touched: {:?}, with {} {:?}",
            outcome.touched, outcome.kind, outcome.message
        ));
    }
    Ok(outcome)
}

fn passed(expected: &Expected, call: &Call, errno: i32, outcome: &Outcome) -> Result<Verdict, String> {
    if outcome.status != expected.outcome.status {
        return Err(format!("the spawn succeeded, but the task did not run: {}", outcome.status));
    }
    let known = |line: &&str| expected.outcome.report.lines().any(|other| other == *line);
    let news: Vec<&str> = outcome.report.lines().filter(|line| !known(line)).collect();
    if !news.is_empty() {
        // A control that is not enforced, or a note, with the call that was refused.
        let text = call.text.as_deref().or(call.object.as_deref()).unwrap_or_default();
        let named = |line: &&str| line.contains(&format!("{}(", call.name)) || line.contains(last(text));
        return if news.iter().any(named) {
            Ok(Verdict::Degraded)
        } else {
            Err(format!("the report does not name the call: {news:?}"))
        };
    }
    let object = call.text.as_deref().or(call.object.as_deref()).unwrap_or_default();
    if expected.may_be_refused(call.name, last(object)) {
        return Ok(Verdict::Passed("the plan says that the step may be refused"));
    }
    tolerated(expected, call, errno)
        .map(Verdict::Passed)
        .ok_or_else(|| "the spawn succeeded, and says nothing".to_owned())
}

fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// Why a parent cgroup that cannot be examined is not removed.
const LEFT: &str = "a parent cgroup that may be the operator's is left to the task that has made it";

/// Why a spawn may succeed although this call failed, without a word in the report.
fn tolerated(expected: &Expected, call: &Call, errno: i32) -> Option<&'static str> {
    let text = call.text.as_deref().unwrap_or_default();
    let object = call.object.as_deref().unwrap_or_default();
    let file = last(if text.is_empty() { object } else { text });
    let caller = matches!(call.role, Role::Parent | Role::Worker);
    let lenient = matches!(errno, libc::ENOSYS | libc::EPERM | libc::EACCES);
    match (call.role, call.name) {
        (
            Role::Parent | Role::Worker,
            "read" | "write" | "openat" | "recvmsg" | "waitid" | "poll" | "statx" | "copy_file_range"
            | "flock" | "sendto",
        ) if errno == libc::EINTR => Some("repeated after a signal"),
        (_, "newfstatat") if caller && text == "/" => Some("the C library's user database"),
        (Role::Worker, "prctl" | "sigaltstack" | "sched_getaffinity") => Some(
            "the standard library's start of a thread: its name, and a stack for a message at an overflow",
        ),
        (_, "clone3") if caller => Some("without a thread of its own, the user is looked up in the caller's"),
        (_, "socket" | "connect") if caller => Some("no cache of the user database"),
        (_, "statx" | "openat" | "read")
            if caller && (text.ends_with("/ns/pid") || text.ends_with("/stat")) =>
        {
            Some("a handle without the namespace, or without the main process")
        }
        (_, "prlimit64") if caller => {
            Some("the task's limit of real-time priorities is 0, whatever the caller's is")
        }
        (_, "rt_sigtimedwait") => Some("there is no pending SIGXFSZ to remove"),
        (_, "lseek" | "statx") if caller && text.is_empty() => {
            Some("the standard library's guess of a file's size")
        }
        (_, "recvfrom" | "ppoll" | "wait4" | "sendto" | "sendmsg") if errno == libc::EINTR => {
            Some("repeated after a signal")
        }
        (_, "fstatfs") if caller => {
            Some("a link is taken for one that is not in /proc, and examined as such")
        }
        (_, "newfstatat" | "ioctl" | "fstat") if caller && text.is_empty() => {
            Some("the kind of a descriptor, of which the report has a note")
        }
        (_, "read") if caller && object.starts_with("/sys/fs/cgroup/") && object.contains("/faults-") => {
            Some("the value that was written is not compared with the one that the kernel stored")
        }
        (_, "openat2") if caller && errno == libc::EAGAIN => {
            Some("another process renames at the same time: asked again")
        }
        (_, "flock") if caller && call.args[1] == libc::LOCK_UN as u64 => {
            Some("closing the descriptor releases the lock too")
        }
        (_, "flock") if caller && object.contains("/temp/") && errno == libc::ENOSYS => {
            Some("a file system without locks")
        }
        (_, "flock" | "newfstatat" | "fchmod") if caller && errno == libc::EAGAIN => {
            Some("another process has the lock: tried again")
        }
        (_, "openat" | "read") if caller && file == "resolv.conf" => {
            Some("the host's file is taken for empty")
        }
        (_, "fcntl") if caller && object == "/dev/null" => {
            Some("the kind of a descriptor, of which the report has a note")
        }
        (_, "openat") if caller && object.starts_with("/sys/fs/cgroup/") && text == "." => {
            Some("a cgroup that cannot be examined is taken for not frozen")
        }
        (_, "copy_file_range") if caller && lenient => Some("read(2) and write(2) instead"),
        (_, "openat" | "read") if caller && file == "mountinfo" => {
            Some("without the mount table, every source is taken for one that answers")
        }
        (_, "fgetxattr") if caller && object.starts_with("/sys/fs/cgroup/") => Some(LEFT),
        (_, "openat")
            if caller && text.starts_with("/sys/fs/cgroup/") && file.starts_with("cofferdam-faults-") =>
        {
            Some(LEFT)
        }
        (Role::Child, "recvfrom") if errno == libc::EAGAIN => {
            Some("what a look at a socket says that is open and has nothing to read")
        }
        (_, "linkat") if caller && errno == libc::EPERM => Some("the file is copied instead"),
        (_, "flistxattr") if caller && lenient => {
            Some("the result of the population counts it as a lost attribute")
        }
        (_, "openat") if caller && expected.populates && !text.starts_with("/sys/") => {
            Some("a directory of the host that the caller may not read has no attributes to copy")
        }
        (_, "poll") if caller && expected.keeps && call.args[1] == 1 && call.args[2] == 0 => {
            Some("the host's mounts are taken for changed, and the mounts are prepared again or made anew")
        }
        (_, "waitid") if caller => Some("asked again"),
        (_, "sendmsg") if expected.exec => Some("the PID is sent instead"),
        (_, "openat2") if caller && expected.keeps && text.starts_with('/') => Some(
            "a path whose lookup in the kernel's caches fails is taken for changed, and the mounts are made anew",
        ),
        (_, "openat2") if caller && lenient => Some("a kernel without openat2(2): openat(2) instead"),
        (_, "statx") if caller => Some("a file that cannot be examined is taken for missing"),
        _ if caller && ["passwd", "group", "nsswitch.conf", "ngroups_max"].contains(&file) => {
            Some("the C library's user database has other sources")
        }
        (_, "openat" | "read")
            if caller
                && (file == "vmstat" || file.ends_with("failcnt") || file.starts_with("memory.events")) =>
        {
            Some("a counter of OOM kills before the spawn; none is attributed without it")
        }
        (_, "openat" | "read") if caller && ["cgroup.events", "freezer.state"].contains(&file) => {
            Some("a cgroup that cannot be examined is taken for not frozen")
        }
        (
            _,
            "sched_setscheduler" | "ioprio_set" | "personality" | "set_mempolicy" | "setpriority" | "keyctl",
        ) if !caller && lenient => {
            Some("a kernel without the setting, or a filter that forbids it to the task too")
        }
        (Role::Child, "setsid") if errno == libc::EPERM => Some("the process leads a session already"),
        (_, "prctl") if !caller && call.args[0] == libc::PR_SET_SECUREBITS as u64 => {
            Some("init sets the bits again")
        }
        (_, "prctl") if !caller && lenient => Some("a kernel without the setting"),
        (_, "signalfd4" | "seccomp") if expected.exec && call.role == Role::Child => Some("as PID 1"),
        (Role::Init, "signalfd4") => Some("PID 1 waits in wait4(2) instead"),
        (Role::Init, "seccomp") => Some("PID 1 has no privileges left"),
        (Role::Init | Role::Child, "ppoll" | "wait4") => Some("PID 1 asks again"),
        _ if caller && expected.prepares => while_preparing(call, text, object),
        _ => None,
    }
}

/// Why mounts may be prepared although a call of the caller failed.
fn while_preparing(call: &Call, text: &str, object: &str) -> Option<&'static str> {
    match call.name {
        "poll" | "pidfd_send_signal" => {
            Some("the process that has prepared the mounts ends by itself, and is reaped then")
        }
        "memfd_create" | "write" | "fcntl" if [text, object].concat().contains("cofferdam-init") => {
            Some("the tasks on prepared mounts get the program of init in a memfd of their own")
        }
        "openat2" if text.starts_with("/etc/") => {
            Some("a file whose lookup in the kernel's caches fails is looked up as any other")
        }
        _ => None,
    }
}

/// Steps of the caller that no line of a plan prints, beside the sources that are opened while the plan is compiled.
const OUTSIDE: [&str; 13] = [
    "openat(\"/proc/thread-self/ns/net\")",
    "statx(\"/proc/thread-self/ns/net\")",
    "recvmsg(status)",
    "sendto(status)",
    "read(\"/proc/self/fdinfo/PIDFD\")",
    "read(\"/proc/PID/comm\")",
    "poll(pidfd)",
    "wait for the command, which may be stopped or frozen",
    "fstat(cgroup)",
    "fstat(temporary root)",
    "flock(cgroup.procs)",
    "decode the plan",
    "fcntl(pidfd, F_DUPFD_CLOEXEC)",
];

fn refused(expected: &Expected, call: &Call, errno: i32, outcome: &Outcome) -> Result<Verdict, String> {
    let Outcome { kind, message, cause, .. } = outcome;
    let says = format!("{kind} {message:?}: {cause:?}");
    let caller = matches!(call.role, Role::Parent | Role::Worker);
    let allowed: &[&str] = match call.role {
        Role::Parent | Role::Worker if expected.exec => &["Prepare", "Task"],
        Role::Parent | Role::Worker => &["Prepare", "Spec", "Unsupported"],
        _ => &["Setup", "Exec", "Unsupported", "Prepare"],
    };
    // A rule that the parent cgroup does not allow is only noted. Without its own devices init cannot go on.
    let of_device = call.object.as_deref().is_some_and(|object| object.ends_with("devices.allow"));
    if of_device && errno == libc::EPERM && kind == "Setup" {
        return Ok(Verdict::Passed("the task lacks a device that its parent cgroup forbids"));
    }
    if !allowed.contains(&kind.as_str()) {
        return Err(format!("the wrong kind of error: {says}"));
    }
    let busy = call.name == "flock" && errno == libc::EAGAIN && message.starts_with("flock(");
    // A link of /proc leads to no path, if it is not recognised as one.
    if call.name == "fstatfs" && message.ends_with("it does not exist on the host") {
        return Ok(Verdict::Refused { message: message.clone(), kind: kind.clone() });
    }
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    let named = nix::errno::Errno::from_raw(errno);
    let whole = format!("{message}: {cause}");
    if !busy
        && outcome.errno != Some(errno)
        && !whole.contains(&text)
        && !whole.contains(&format!("{named:?}"))
    {
        return Err(format!("the error does not have the errno: {says}"));
    }
    let in_plan = expected.position(message, 0).is_some();
    let outside = OUTSIDE.contains(&message.as_str());
    // The plan has the sources, but not the files in them. It does not have what depends on other tasks.
    let of_root = expected.populates && (message.contains("ROOT \"") || same_name(call, message));
    let of_others = call
        .object
        .as_deref()
        .or(call.text.as_deref())
        .is_some_and(|file| file.contains("/cpuset/") || file.ends_with(".slice"));
    let outside = outside || caller && (of_root || of_others);
    let of_path = message.starts_with("openat2(\"")
        || message.starts_with("read(\"")
        || message.starts_with("openat(opened ");
    // The user is looked up before the plan is compiled.
    let of_path = of_path || ["getpwnam_r(", "getgrouplist("].iter().any(|call| message.starts_with(call));
    let before = caller && (kind == "Spec" || of_path);
    if kind != "Exec" && kind != "Unsupported" && !in_plan && !outside && !before && !expected.exec {
        return Err(format!("the step is in no plan: {says}"));
    }
    if kind == "Setup" || kind == "Prepare" && !before {
        let same = same_name(call, message) || stands_for(call, message);
        if !same {
            return Err(format!("the error names another call: {says}"));
        }
    }
    Ok(Verdict::Refused { message: message.clone(), kind: kind.clone() })
}

/// Whether the line of a plan stands for a call that has no line of its own.
fn stands_for(call: &Call, message: &str) -> bool {
    let line = message.split('(').next().unwrap_or_default();
    let stands: &[&str] = match line {
        "memfd_create" => &["write", "fcntl"],
        "execveat" => &["fcntl", "capget", "capset", "prctl"],
        "decode the plan" => &["mmap", "fstat"],
        "wait for the command, which may be stopped or frozen" => &["poll"],
        "write" if message.starts_with("write(it, random name") => &["openat", "read", "fchmod", "fcntl"],
        "write" if message.starts_with("write(\"/proc/PID/") => &["openat"],
        // What a task of that id may have is looked for.
        "write" | "pidfd_send_signal" if message.contains("# if a task has the id") => {
            &["openat", "newfstatat", "fstat"]
        }
        "read" if message.starts_with("read(\"/proc/") => &["openat"],
        // A file is opened and read.
        "openat" | "openat2" if call.role == Role::Parent => &["read", "newfstatat", "fcntl", "openat"],
        // The new directory is opened and locked.
        "mkdirat" if call.role == Role::Parent => &["openat", "newfstatat", "flock", "fchmod"],
        "linkat" => &["openat", "flock", "newfstatat", "unlinkat"],
        "flock" => &["newfstatat", "openat"],
        "fsetxattr" => &["openat"],
        // EPERM: it is the leader already.
        "ioctl" => &["setsid"],
        "setgroups" => &["mmap"],
        // PID 1 tells the caller that the command runs. Its child waits for it.
        "sendto" if message.starts_with("sendto(the child") => &["sendmsg", "recvfrom"],
        // The directories and files of a path that are missing, and what is there.
        "mkdirat" | "symlinkat" | "mknodat" => &["openat2", "mkdirat"],
        "openat" => &["openat2", "mkdirat"],
        "openat2" => &["mkdirat", "openat", "statx"],
        "statx" => &["rt_sigprocmask", "sendto"],
        "landlock_add_rule" => &["openat2"],
        _ => &[],
    };
    stands.contains(&call.name)
}

/// Judges a cell whose process was killed: PID 1, or the process that becomes the command. The program is told that init
/// died, or it tries again, or the task is found killed.
pub fn judge_kill(expected: &Expected, ran: &Ran) -> Result<Verdict, String> {
    let outcome = clean(ran)?;
    match (outcome.kind.as_str(), outcome.message.as_str()) {
        ("", _) if outcome.status == expected.outcome.status => {
            Ok(Verdict::Passed("killed after the exec, or tried again"))
        }
        ("Setup", "init") if outcome.cause.contains("init was killed by signal 9") => {
            Ok(Verdict::Refused { message: outcome.message.clone(), kind: outcome.kind.clone() })
        }
        // PID 1 finds its child gone.
        ("Setup", message)
            if message.starts_with("sendto(the child")
                && matches!(outcome.errno, Some(libc::EPIPE | libc::ECONNRESET)) =>
        {
            Ok(Verdict::Refused { message: outcome.message.clone(), kind: outcome.kind.clone() })
        }
        (kind, message) => Err(format!("{kind} {message:?}: {:?} {}", outcome.cause, outcome.status)),
    }
}

/// Judges a cell whose program was killed: no process outlives it, and what it has left can be removed.
pub fn judge_death(ran: &Ran) -> Result<Verdict, String> {
    if ran.hit.is_none() {
        clean(ran)?;
        return Ok(Verdict::Missed);
    }
    if ran.outcome.is_some() {
        return Err("the program was not killed".into());
    }
    if ran.processes > 0 || !ran.left.is_empty() {
        return Err(format!("{} processes and {:?} cannot be removed", ran.processes, ran.left));
    }
    Ok(Verdict::Passed("everything is removed"))
}

/// Whether the line is of this call.
fn same_name(call: &Call, message: &str) -> bool {
    let step = message.split(['(', ' ']).next().unwrap_or_default();
    step == call.name || names(call.name).contains(&step)
}

/// The functions of the C library that make this call.
fn names(call: &str) -> &'static [&'static str] {
    match call {
        "newfstatat" => &["fstat", "fstatat", "stat"],
        "utimensat" => &["futimens"],
        _ => &[],
    }
}
