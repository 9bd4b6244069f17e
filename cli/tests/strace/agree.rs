//! Compares a line of a plan with a system call that strace shows.
//!
//! `agrees` has an arm for every call that a plan prints. A call without an arm is a fault.

use std::collections::BTreeSet;

use crate::trace::{Call, split, text};

/// Capabilities in the order of their numbers.
const CAPS: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Number of calls that a line stands for.
#[derive(Debug, PartialEq)]
pub enum Many {
    One,
    Exactly(usize),
    /// At least one, in consecutive calls.
    Some,
}

/// The number of calls that the line stands for.
pub fn many(line: &Call) -> Many {
    let bits = |text: &str| number(text.rsplit(' ').next().unwrap_or_default()).map(u64::count_ones);
    match (line.name.as_str(), line.arg(0), line.arg(line.args.len().saturating_sub(1))) {
        ("rt_sigaction", ..) => Many::Exactly(64),
        ("fcntl", "F_DUPFD_CLOEXEC", _) | ("close_range", ..) => Many::Some,
        ("dup3", ..) => Many::Exactly(line.args.len()),
        ("prctl", _, each) if each.starts_with("each of ") => {
            Many::Exactly(bits(each).map_or(0, |n| n as usize))
        }
        ("prctl", "PR_CAPBSET_DROP", keep) => {
            Many::Exactly(capabilities() - bits(keep).map_or(0, |n| n as usize))
        }
        _ => Many::One,
    }
}

fn capabilities() -> usize {
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap();
    last.trim().parse::<usize>().unwrap() + 1
}

/// Parses a number in C notation, or a product of two.
fn number(text: &str) -> Option<u64> {
    if let Some((a, b)) = text.split_once('*') {
        return Some(number(a)? * number(b)?);
    }
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None if text.starts_with('0') => u64::from_str_radix(text, 8).ok(),
        None => text.parse().ok(),
    }
}

fn same_number(one: &str, other: &str) -> bool {
    number(one).is_some_and(|n| number(other) == Some(n))
}

/// Compares permission bits, which are octal with or without a leading zero.
fn same_mode(line: &str, call: &str) -> bool {
    let mode = |text: &str| u32::from_str_radix(text.trim_start_matches("0o"), 8).ok();
    mode(line).is_some_and(|mode_of| mode(call) == Some(mode_of))
}

fn flags(text: &str) -> BTreeSet<&str> {
    // strace appends a comment to a number that it cannot name.
    let text = text.split(" /*").next().unwrap_or_default();
    text.split('|').map(str::trim).filter(|flag| !matches!(*flag, "" | "0")).collect()
}

/// Compares flags. The call may have some of `more` in addition, which the plan leaves out.
fn same_flags(line: &str, call: &str, more: &[&str]) -> bool {
    let (line, call) = (flags(line), flags(call));
    line.is_subset(&call) && call.difference(&line).all(|flag| more.contains(flag))
}

/// The value of a field in `{name=value, ...}`.
fn field<'a>(arg: &'a str, name: &str) -> &'a str {
    let inside = arg.trim_start_matches('{');
    let from = |at: usize| {
        let value = inside[at..].strip_prefix(name)?.strip_prefix('=')?;
        let first = split(value, ',').first()?.len();
        Some(value[..first].trim_end_matches('}'))
    };
    let starts = inside.match_indices(name).map(|(at, _)| at);
    starts.filter(|at| *at == 0 || inside[..*at].ends_with([' ', '{'])).find_map(from).unwrap_or_default()
}

/// The quoted strings in a line's arguments.
fn strings(line: &Call) -> Vec<&str> {
    line.args.iter().flat_map(|arg| arg.split('"').skip(1).step_by(2)).collect()
}

fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// Mount points for which init has a descriptor, from which it resolves the paths below.
const ANCHORS: [&str; 4] = ["/dev", "/proc", "/sys", "/secrets"];

/// Whether the call got the path: from the root, from one of the anchors, or as the last component in its directory.
fn given(path: &str, call: &Call, arg: usize) -> bool {
    let Some(given) = call.text(arg) else { return false };
    let plain = |path: &str| path.trim_matches('/').to_owned();
    let from_dir = |dir: &str| plain(&format!("{}/{}", plain(dir), plain(given))) == plain(path);
    let in_some_dir = || path.ends_with(given) || given == "/" && ANCHORS.contains(&path);
    // A directory of the path may be a symbolic link.
    let name = !given.contains('/') && given == last(path);
    given == path || name || call.object(arg - 1).map_or_else(in_some_dir, from_dir)
}

/// Whether the descriptor argument refers to the path, directly or by symbolic links. True if strace does not show the
/// descriptor's object.
fn refers(path: &str, call: &Call, arg: usize) -> bool {
    call.object(arg).is_none_or(|object| {
        let real = || std::fs::canonicalize(path).is_ok_and(|real| real.as_os_str() == object);
        object.trim_start_matches('/') == path.trim_start_matches('/') || real()
    })
}

fn caps(set: &str) -> Option<u64> {
    if let Some(number) = number(set) {
        return Some(number);
    }
    let bits = set.split('|').map(|cap| {
        let name = cap.strip_prefix("1<<CAP_")?;
        CAPS.iter().position(|known| *known == name).map(|bit| 1 << bit)
    });
    bits.sum()
}

/// The bit of one capability.
fn cap(name: &str) -> u64 {
    caps(&format!("1<<{name}")).unwrap_or_default()
}

/// Whether the call in the trace is the one that the plan prints as `line`.
pub fn agrees(line: &Call, call: &Call) -> bool {
    if line.name != call.name {
        return false;
    }
    let objects = strings(line);
    let first = objects.first().copied().unwrap_or_default();
    let end = line.args.last().map_or("", String::as_str);
    match line.name.as_str() {
        // ---- files
        "openat" => {
            let how = line.args.iter().find(|arg| arg.starts_with("O_")).map_or("", String::as_str);
            let mode = !how.contains("O_CREAT") || same_mode(end, call.arg(3));
            // The call opens a new file for writing.
            let more = ["O_CLOEXEC", "O_NONBLOCK", "O_WRONLY", "O_RDONLY"];
            let access = !how.contains("O_WRONLY") || call.arg(2).contains("O_WRONLY");
            given(first, call, 1) && same_flags(how, call.arg(2), &more) && access && mode
        }
        "openat2" => {
            let printed = |prefix: &str| {
                let of = line.args.iter().filter(|arg| arg.starts_with(prefix)).map(String::as_str);
                of.collect::<Vec<_>>().join("|")
            };
            let (how, resolve) = (printed("O_"), printed("RESOLVE_"));
            let more = ["O_RDONLY", "O_CLOEXEC", "O_PATH", "O_DIRECTORY", "O_NOFOLLOW"];
            let path = if first == "dev/null" { "/dev/null" } else { first };
            given(path, call, 1)
                && same_flags(&how, field(call.arg(2), "flags"), &more)
                && (resolve.is_empty()
                    || same_flags(&resolve, field(call.arg(2), "resolve"), &["RESOLVE_NO_MAGICLINKS"]))
        }
        "mkdir" => call.text(0) == Some(first) && same_mode(end, call.arg(1)),
        "rmdir" => call.text(0) == Some(first),
        "mkdirat" => {
            let (path, dir) = (objects.last().unwrap_or(&""), text(line.arg(0)));
            let inside = dir
                .is_none_or(|dir| call.object(0).is_none_or(|object| object == dir || last(object) == dir));
            inside && given(path, call, 1) && same_mode(end, call.arg(2))
        }
        "mknodat" => {
            let device = |call: &Call| {
                let numbers = call.arg(3).trim_start_matches("makedev(").trim_end_matches(')').to_owned();
                split(&numbers, ',').iter().map(|n| number(n)).collect::<Option<Vec<u64>>>()
            };
            given(first, call, 1)
                && line.arg(2) == call.arg(2)
                && device(line) == device(call)
                && device(line).is_some()
        }
        "symlinkat" => call.text(0) == Some(first) && given(objects.get(1).unwrap_or(&""), call, 2),
        "unlinkat" if end == "AT_REMOVEDIR" => {
            refers(first, call, 0) && call.text(1) == objects.get(1).copied() && call.arg(2) == end
        }
        "unlinkat" => given(first, call, 1) && call.arg(2) == "0",
        "fchownat" => {
            let [uid, gid] = [1, 2].map(|back| line.arg(line.args.len() - (3 - back)));
            let of = if line.arg(0) == "it" {
                call.text(1) == Some("")
            } else {
                call.text(1) == text(line.arg(1))
            };
            of && uid == call.arg(2) && gid == call.arg(3)
        }
        "fchmodat" => call.text(1) == text(line.arg(1)) && same_mode(end, call.arg(2)),
        "timerfd_create" => line.args[..] == call.args[..],
        // The time depends on the CPU time that init itself has used.
        "timerfd_settime" if end.starts_with("what is left of ") => call.arg(2).contains("it_value={tv_sec="),
        "pread64" => refers(first, call, 0),
        "timerfd_settime" => call.arg(2).ends_with(&format!("it_value={end}}}")),
        "flock" => refers(first, call, 0) && same_flags(end, call.arg(1), &[]),
        "fgetxattr" => refers(first, call, 0) && call.text(1) == objects.get(1).copied(),
        "fsetxattr" => {
            refers(first, call, 0)
                && call.text(1) == objects.get(1).copied()
                && call.text(2) == text(line.arg(2))
        }
        "write" => {
            let size = end.strip_suffix(" bytes");
            let value =
                size.map_or_else(|| end.starts_with('<') || call.arg(1) == end, |size| call.arg(2) == size);
            // A number that the plan prints without quotes.
            let value = value || end.chars().all(|c| c.is_ascii_digit()) && call.text(1) == Some(end);
            let own = first.starts_with("/proc/self/") || first.starts_with("/proc/PID/");
            let named = || call.object(0).is_some_and(|object| last(object) == last(first));
            let target = || refers(first, call, 0) || own && named();
            value && (line.arg(0) == "it" || target())
        }
        "bpf" => line.arg(0) == call.arg(0),
        "memfd_create" => call.text(0) == Some(first) && call.arg(1).contains("MFD_ALLOW_SEALING"),
        // ---- mounts
        "open_tree" => {
            let more = ["OPEN_TREE_CLOEXEC", "AT_EMPTY_PATH"];
            let plain = first == ".file" || first == "dev/null";
            let what = if plain { call.text(1) == Some(last(first)) } else { refers(first, call, 0) };
            what && same_flags(end, call.arg(2), &more)
        }
        "fsopen" => call.text(0) == Some(first),
        "fsconfig" => {
            let value = match line.arg(3) {
                "" => true,
                "below /proc/self/fd" => call.text(3).is_some_and(|path| path.starts_with("/proc/self/fd/")),
                value => call.arg(3) == value,
            };
            let key = line.args.len() < 3 || call.arg(2) == line.arg(2);
            line.arg(1) == call.arg(1) && key && value
        }
        "fsmount" => same_flags(end, call.arg(2), &[]),
        "move_mount" if line.arg(1) == "\"/\"" => call.text(3) == Some("/"),
        "move_mount" => {
            let target = objects.last().copied().unwrap_or_default();
            // The target may lead elsewhere by symbolic links in the sandbox.
            refers(target, call, 2) || call.object(2).is_some_and(|object| last(object) == last(target))
        }
        "mount_setattr" => {
            let named = |prefix: &str| {
                line.args.iter().find(|arg| arg.starts_with(prefix)).map_or("", String::as_str)
            };
            let recursive = line.args.iter().any(|arg| arg == "AT_RECURSIVE");
            let propagation = field(call.arg(3), "propagation");
            same_flags(named("MOUNT_ATTR_"), field(call.arg(3), "attr_set"), &[])
                && recursive == call.arg(2).contains("AT_RECURSIVE")
                && same_flags(named("MS_"), propagation, &["MS_UNSPECIFIED"])
        }
        "mount" => line.args[..2] == [call.arg(0), call.arg(1)] && same_flags(end, call.arg(3), &[]),
        "umount2" if line.arg(0).starts_with("below ") => {
            call.text(0).is_some_and(|path| path.starts_with("/proc/self/fd/")) && line.arg(1) == call.arg(1)
        }
        "umount2" | "pivot_root" | "chroot" | "chdir" => line.args == call.args,
        "fchdir" => call.args.len() == 1,
        "getcwd" => call.text(0).is_some_and(|path| path.starts_with('/')),
        "statx" => match end {
            "STATX_INO" => refers(first, call, 0) && call.arg(3).contains("STATX_INO"),
            "STATX_MNT_ID" => call.text(1) == Some(first) && call.arg(3).contains("STATX_MNT_ID"),
            _ => call.text(1).is_some_and(|path| objects.contains(&path)) && !call.failed(),
        },
        // ---- processes and descriptors
        "clone3" => same_flags(line.arg(0), field(call.arg(0), "flags"), &[]),
        "clone" => call.args.iter().any(|arg| flags(field(arg, "flags")).contains(line.arg(0))),
        "execveat" => call.object(0).is_none_or(|object| object.contains(first)),
        "execve" => {
            let list = call.arg(1).trim_matches(['[', ']']);
            line.arg(1).split(' ').next() == Some(&(split(list, ',').len() - 1).to_string())
        }
        "setns" => refers(first, call, 0) && same_flags(end, call.arg(1), &[]),
        "unshare" => same_flags(end, call.arg(0), &[]),
        "setsid" => true,
        "socketpair" => line.arg(0) == call.arg(0) && same_flags(line.arg(1), call.arg(1), &["SOCK_CLOEXEC"]),
        "socket" => line.arg(0) == call.arg(0) && same_flags(line.arg(1), call.arg(1), &["SOCK_CLOEXEC"]),
        "ioctl" => {
            line.arg(1) == call.arg(1) && call.arg(2).contains(line.arg(0)) && call.arg(2).contains(end)
        }
        "recvfrom" => is_socket(call),
        "sendto" => is_socket(call) && call.arg(1) == end,
        "signalfd4" => call.arg(1) == format!("[{}]", end.trim_start_matches("SIG")),
        "fcntl" => end == call.arg(1) && (first.is_empty() || refers(first, call, 0)),
        "pidfd_open" => call.arg(1) == "0" && call.arg(0).parse::<u32>().is_ok(),
        "pipe2" => line.arg(0) == call.arg(1),
        "dup3" => {
            let to =
                |arg: &str| arg.trim_start_matches("to ").split('<').next().unwrap_or_default().to_owned();
            line.args.iter().any(|arg| to(arg) == to(call.arg(1)))
        }
        "close_range" => call.arg(2) == "0",
        "sethostname" => line.arg(0) == call.arg(0),
        "umask" => same_mode(line.arg(0), call.arg(0)),
        "rt_sigaction" => call.arg(1).contains("SIG_DFL"),
        "prlimit64" => {
            let limits = split(line.arg(2).trim_matches(['{', '}']), ',');
            let same = |index: usize, name: &str| {
                let (line, call) = (limits.get(index).map_or("", String::as_str), field(call.arg(2), name));
                line == call || same_number(line, call)
            };
            call.arg(1) == line.arg(1) && same(0, "rlim_cur") && same(1, "rlim_max")
        }
        // ---- scheduling
        "sched_setscheduler" | "setpriority" => line.args[..] == call.args[..line.args.len()],
        "ioprio_set" => line.args[..2] == call.args[..2] && call.arg(2).contains("IOPRIO_CLASS_NONE, 0"),
        "set_mempolicy" | "keyctl" => line.arg(0) == call.arg(0),
        "personality" => matches!(call.arg(0), "PER_LINUX" | "0"),
        "sched_setaffinity" => line.arg(0) == call.arg(0) && call.arg(1) == "1024",
        // ---- credentials
        "setresuid" | "setresgid" | "setgroups" => {
            let empty =
                |call: &Call| call.args.iter().map(|arg| arg.replace("NULL", "[]")).collect::<Vec<_>>();
            empty(line) == empty(call)
        }
        "capset" => ["effective", "permitted", "inheritable"].into_iter().all(|set| {
            let wanted =
                line.args.iter().find_map(|arg| arg.strip_prefix(set)?.strip_prefix('=')).and_then(number);
            wanted.is_some() && wanted == caps(field(call.arg(1), set))
        }),
        "prctl" => prctl(line, call),
        "seccomp" => {
            let length = field(call.arg(2), "len");
            let size = line.arg(1).split(' ').next().unwrap_or_default();
            line.arg(0) == call.arg(0) && (size == "calls" || size == length)
        }
        "landlock_create_ruleset" => {
            // strace 6.1 does not show the scopes.
            let handled = field(call.arg(0), "handled_access_fs");
            let bit = |name: &str| match name {
                "0" => Some(0),
                "LANDLOCK_ACCESS_FS_MAKE_BLOCK" => Some(1 << 11),
                "LANDLOCK_ACCESS_FS_REFER" => Some(1 << 13),
                _ => None,
            };
            let handled: Option<u64> = handled.split('|').map(bit).sum();
            let planned = line.arg(0).strip_prefix("fs=").and_then(number);
            handled.is_some() && handled == planned && call.arg(2) == "0"
        }
        "landlock_add_rule" => call.arg(1) == "LANDLOCK_RULE_PATH_BENEATH" && call.arg(2).contains(end),
        "landlock_restrict_self" => call.object(0).is_none_or(|object| object.contains("landlock-ruleset")),
        name => panic!("{name} is printed by a plan, and this test does not say what of it must agree"),
    }
}

fn is_socket(call: &Call) -> bool {
    call.object(0).is_none_or(|object| object.starts_with("socket:"))
}

fn prctl(line: &Call, call: &Call) -> bool {
    // Options that strace does not know by name.
    let option = match call.arg(0).split(' ').next().unwrap_or_default() {
        "0x43" => "PR_SET_MEMORY_MERGE",
        "0x39" => "PR_SET_IO_FLUSHER",
        option => option,
    };
    let value = line.args.last().map_or("", String::as_str);
    let set = |text: &str| number(text.rsplit(' ').next().unwrap_or_default()).unwrap_or_default();
    line.arg(0) == option
        && match (option, line.arg(1)) {
            ("PR_GET_SECUREBITS", _) => true,
            ("PR_CAPBSET_DROP", each) if each.starts_with("each of ") => set(each) & cap(call.arg(1)) != 0,
            ("PR_CAPBSET_DROP", keep) => set(keep) & cap(call.arg(1)) == 0,
            ("PR_CAP_AMBIENT", "PR_CAP_AMBIENT_RAISE") => {
                call.arg(1) == line.arg(1) && set(value) & cap(call.arg(2)) != 0
            }
            (_, "0") => matches!(call.arg(1), "0" | "SUID_DUMP_DISABLE"),
            (_, argument) => call.arg(1) == argument,
        }
}
