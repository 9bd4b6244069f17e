//! Prints an operation as the system calls that init makes for it, in strace's format.
//!
//! The order of the lines is the order of init's calls (`init/step.rs`), because init reports a refused call as the
//! index of its line. `tests/init_calls` compares the two, call by call.

use super::wire::{Blob, FileType, List, Op, Str};

/// Mount attributes of the tmpfs that covers a masked directory, as in `init/mount.rs`.
const MASK_ATTRS: u64 =
    libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
/// Mount attributes of the file system that overlays write to, as in `init/mount.rs`.
const UPPER_ATTRS: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

fn filter(program: &Blob<'_>) -> String {
    format!("seccomp(SECCOMP_SET_MODE_FILTER, {} instructions)", program.0.len() / 8)
}

/// The system calls of `op`, one per line.
pub(crate) fn calls(op: &Op<'_>) -> Vec<String> {
    let one = |line: String| vec![line];
    match *op {
        Op::AwaitIdMaps {} => one("recvfrom(status)".into()),
        Op::Session {} => vec![
            "prctl(PR_SET_DUMPABLE, 0)".into(),
            "setsid()".into(),
            "keyctl(KEYCTL_JOIN_SESSION_KEYRING)".into(),
            "rt_sigaction(SIGHUP..SIGRTMAX, SIG_DFL)".into(),
            "umask(000)".into(),
        ],
        Op::ResetScheduling {} => vec![
            "sched_setscheduler(0, SCHED_OTHER)".into(),
            "setpriority(PRIO_PROCESS, 0, 0) # EACCES without CAP_SYS_NICE: stays lower".into(),
            "ioprio_set(IOPRIO_WHO_PROCESS, 0, 0)".into(),
            "prctl(PR_SET_TIMERSLACK, 50000)".into(),
            "set_mempolicy(MPOL_DEFAULT)".into(),
            "personality(0)".into(),
            "prctl(PR_SET_THP_DISABLE, 0)".into(),
            "prctl(PR_SET_MEMORY_MERGE, 0)".into(),
            "prctl(PR_SET_IO_FLUSHER, 0)".into(),
            "prctl(PR_GET_SECUREBITS)".into(),
        ],
        Op::Become { uid, gid } => vec![
            format!("setresgid({gid}, {gid}, {gid})"),
            format!("setresuid({uid}, {uid}, {uid})"),
            "prctl(PR_SET_DUMPABLE, 0)".into(),
        ],
        Op::Affinity {} => one("sched_setaffinity(0, all)".into()),
        Op::Fds { map } => {
            let targets: Vec<String> = map.iter().map(|d| d.to.to_string()).collect();
            vec![
                "fcntl(F_DUPFD_CLOEXEC)".into(),
                format!("dup3(to {})", targets.join(", ")),
                "close_range(all others)".into(),
            ]
        }
        Op::Join { kind, path, .. } => one(format!("setns({path:?}, {})", namespaces(kind))),
        Op::Unshare { flags } => one(format!("unshare({})", namespaces(flags))),
        Op::Enter { path, may_be_absent, .. } => {
            let remark = if may_be_absent { " # if a CPU is reserved" } else { "" };
            one(format!("write({path:?}, \"0\"){remark}"))
        }
        Op::CloneInto { path, .. } => vec![
            format!("clone3(CLONE_PARENT|CLONE_PIDFD|CLONE_INTO_CGROUP, {path:?})"),
            "sendmsg(the parent, its pidfd)".into(),
            "recvfrom(status) # in the copy".into(),
        ],
        Op::OomScore { value } => vec![
            "openat(\"/proc/self/oom_score_adj\", O_WRONLY)".into(),
            format!("write(\"/proc/self/oom_score_adj\", {value:?})"),
        ],
        Op::Loopback {} => {
            vec!["socket(AF_INET, SOCK_DGRAM)".into(), "ioctl(\"lo\", SIOCSIFFLAGS, IFF_UP)".into()]
        }
        Op::Hostname { name } => one(format!("sethostname({name:?})")),
        Op::Propagation { flags } => one(format!("mount(NULL, \"/\", MS_REC|{})", propagation_name(flags))),
        Op::Tree { source, recursive, .. } => vec![
            format!("openat2({source:?}, O_PATH, RESOLVE_NO_SYMLINKS)"),
            format!("statx(opened {source:?}, STATX_INO)"),
            format!(
                "open_tree(opened {source:?}, OPEN_TREE_CLONE{})",
                if recursive { "|AT_RECURSIVE" } else { "" }
            ),
        ],
        Op::RootTmpfs { attrs, options } => {
            let mut lines = new_mount("\"tmpfs\"", attrs, options);
            lines.push("move_mount(tmpfs, \"/\")".into());
            lines
        }
        Op::RootBind { source, attrs, .. } => {
            vec![mount_setattr(source, attrs, "MS_PRIVATE", true), format!("move_mount({source:?}, \"/\")")]
        }
        Op::Dir { path, mode } => one(format!("mkdirat(root, {path:?}, {mode:04o})")),
        Op::Bind { source, target, attrs, propagation, .. } => vec![
            mount_setattr(source, attrs, propagation_name(propagation), true),
            format!("openat2(root, {target:?}, RESOLVE_IN_ROOT)"),
            format!("move_mount({source:?}, root {target:?})"),
        ],
        Op::Mount { fs, target, attrs, options } => {
            let mut lines = new_mount(&format!("{fs:?}"), attrs, options);
            lines.push(format!("openat2(root, {target:?}, RESOLVE_IN_ROOT|RESOLVE_NO_SYMLINKS)"));
            lines.push(format!("move_mount({fs:?}, root {target:?})"));
            lines
        }
        Op::Symlink { text, path } => one(format!("symlinkat({text:?}, root, {path:?})")),
        Op::Node { path, major, minor } => {
            one(format!("mknodat(root, {path:?}, S_IFCHR|0666, makedev({major}, {minor}))"))
        }
        Op::MaskFile { path } => vec![
            format!("openat2(root, {path:?}, RESOLVE_IN_ROOT)"),
            "open_tree(root \"dev/null\", OPEN_TREE_CLONE)".into(),
            format!("move_mount(\"dev/null\", root {path:?})"),
        ],
        Op::MaskSource {} => {
            let mut lines = new_mount("\"tmpfs\"", MASK_ATTRS, List::from_encoded(0, &[]));
            lines.push("openat2(root, \"/proc\", RESOLVE_IN_ROOT|RESOLVE_NO_SYMLINKS)".into());
            lines.push("move_mount(tmpfs, root \"/proc\")".into());
            lines
        }
        Op::MaskDir { path } => vec![
            format!("openat2(root, {path:?}, RESOLVE_IN_ROOT)"),
            "open_tree(root \"/proc\", OPEN_TREE_CLONE) # the mount below the procfs".into(),
            format!("move_mount(\"/proc\", root {path:?})"),
        ],
        Op::Restrict { path, attrs, must } => vec![
            format!(
                "openat2(root, {path:?}, RESOLVE_IN_ROOT{})",
                if must { "" } else { "|RESOLVE_NO_SYMLINKS" }
            ),
            format!("open_tree(root {path:?}, OPEN_TREE_CLONE|AT_RECURSIVE)"),
            mount_setattr(path, attrs, "", true),
            format!("move_mount({path:?}, root {path:?})"),
        ],
        Op::Seal { path, attrs } => {
            vec![format!("openat2(root, {path:?}, RESOLVE_IN_ROOT)"), mount_setattr(path, attrs, "", false)]
        }
        Op::Null { streams } => {
            let streams: Vec<String> =
                (0..3).filter(|n| streams & (1 << n) != 0).map(|n: u8| n.to_string()).collect();
            vec!["openat2(root, \"dev/null\", O_RDWR)".into(), format!("dup3(to {})", streams.join(", "))]
        }
        Op::Upper { options } => {
            let mut lines = new_mount("\"tmpfs\"", UPPER_ATTRS, options);
            lines.push("move_mount(tmpfs, \"/\")".into());
            lines
        }
        Op::UpperBind { source, .. } => {
            vec![
                mount_setattr(source, UPPER_ATTRS, "MS_PRIVATE", false),
                format!("move_mount({source:?}, \"/\")"),
            ]
        }
        Op::Overlay { .. } => overlay(op),
        Op::Share { source, target } => vec![
            format!("openat2(root, {source:?}, RESOLVE_IN_ROOT)"),
            format!("open_tree(root {source:?}, OPEN_TREE_CLONE|AT_RECURSIVE)"),
            format!("openat2(root, {target:?}, RESOLVE_IN_ROOT)"),
            format!("move_mount(root {source:?}, root {target:?})"),
        ],
        Op::Empty { path } => one(format!("openat(root, {path:?}, O_CREAT|O_EXCL|O_NOFOLLOW, 0644)")),
        Op::File { path, content } => vec![
            with_object("openat(/dev, \".file\", O_CREAT|O_EXCL|O_NOFOLLOW, 0644)", path),
            with_object(&format!("write(it, {content:?})"), path),
            with_object("open_tree(/dev \".file\", OPEN_TREE_CLONE)", path),
            with_object(
                "mount_setattr(it, MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV|MOUNT_ATTR_NOEXEC)",
                path,
            ),
            format!("openat2(root, {path:?}, RESOLVE_IN_ROOT)"),
            format!("move_mount(it, root {path:?})"),
            with_object("unlinkat(/dev, \".file\")", path),
        ],
        Op::Write { path, mode, uid, gid, content } => vec![
            format!("openat(root, {path:?}, O_CREAT|O_EXCL|O_NOFOLLOW, {mode:04o})"),
            with_object(&format!("write(it, {content:?})"), path),
            with_object(&format!("fchownat(it, {uid}, {gid})"), path),
        ],
        Op::EnterPrepared { .. } => vec![
            "setns(prepared mounts, CLONE_NEWNS)".into(),
            "unshare(CLONE_NEWNS)".into(),
            "openat(\"/\", O_PATH)".into(),
            "openat2(root, \"/dev\", RESOLVE_IN_ROOT|RESOLVE_NO_SYMLINKS)".into(),
            "openat2(root, \"/proc\", RESOLVE_IN_ROOT|RESOLVE_NO_SYMLINKS)".into(),
            "openat2(root, \"/sys\", RESOLVE_IN_ROOT|RESOLVE_NO_SYMLINKS)".into(),
        ],
        Op::OpenPrepared {} => vec![
            "openat(\"/proc/self/ns/mnt\", O_RDONLY)".into(),
            "openat(\"/proc/self/mountinfo\", O_RDONLY)".into(),
        ],
        Op::SendPrepared {} => vec![
            "sendmsg(the parent, the mount namespace)".into(),
            "sendmsg(the parent, its table of mounts)".into(),
        ],
        Op::EnterRoot {} => one("chdir(\"/\")".into()),
        Op::PivotRoot {} => vec![
            "fchdir(root)".into(),
            "pivot_root(\".\", \".\")".into(),
            "umount2(\".\", MNT_DETACH)".into(),
            "statx(\"/..\", STATX_MNT_ID) # umount2 and statx are repeated until this is the root".into(),
            "chdir(\"/\")".into(),
        ],
        Op::MoveRoot {} => vec![
            "fchdir(root)".into(),
            "umount2(\"/proc\", MNT_DETACH)".into(),
            "umount2(\"/sys\", MNT_DETACH)".into(),
            "chroot(\".\")".into(),
            "chdir(\"/\")".into(),
        ],
        Op::Rlimit { resource, soft, hard } => {
            let name = rlimit_name(resource).to_ascii_uppercase();
            one(format!("prlimit64(0, RLIMIT_{name}, {{{}, {}}})", limit(soft), limit(hard)))
        }
        Op::Deadline { nanoseconds } => {
            let time = std::time::Duration::from_nanos(nanoseconds);
            let (seconds, rest) = (time.as_secs(), time.subsec_nanos());
            vec![
                "timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC)".into(),
                format!("timerfd_settime(timer, 0, {{tv_sec={seconds}, tv_nsec={rest}}})"),
            ]
        }
        Op::CpuDeadline { nanoseconds, processors, path, .. } => vec![
            "timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC)".into(),
            format!("pread64({path:?})"),
            format!(
                "timerfd_settime(timer, 0, what is left of {:?} on {processors} CPUs)",
                std::time::Duration::from_nanos(nanoseconds)
            ),
        ],
        Op::ExitRecord { path, .. } => one(format!("fcntl({path:?}, F_SETLK, first byte)")),
        Op::Log { path, .. } => one(format!("pread64({path:?})")),
        Op::Fork { uid, gid, set_groups, bounding, .. } => fork(uid, gid, set_groups, bounding),
        Op::ForkOutside { uid, gid, set_groups, bounding, .. } => {
            fork_outside(uid, gid, set_groups, bounding)
        }
        Op::ForkInside { .. } => [
            "signalfd4(SIGCHLD)",
            "socketpair(AF_UNIX, SOCK_SEQPACKET)",
            "clone(CLONE_PIDFD)",
            "setsid() # in the child",
            "prctl(PR_SET_PDEATHSIG, SIGKILL) # in the child",
            "close_range(all others)",
            "prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)",
            "capset(effective=0, permitted=0, inheritable=0)",
            "prctl(PR_SET_NO_NEW_PRIVS, 1)",
            "seccomp(SECCOMP_SET_MODE_FILTER, calls for reaping)",
            "sendto(the child, \"g\")",
        ]
        .map(String::from)
        .into(),
        Op::Bounding { keep, .. } => one(format!("prctl(PR_CAPBSET_DROP, all but {keep:#x})")),
        Op::Ids { uid, gid, set_groups, groups } => {
            let mut lines = vec!["prctl(PR_SET_KEEPCAPS, 1)".into()];
            if set_groups {
                let list: Vec<String> = groups.iter().map(|g| g.to_string()).collect();
                lines.push(format!("setgroups({}, [{}])", groups.len(), list.join(", ")));
            }
            lines.push(format!("setresgid({gid}, {gid}, {gid})"));
            lines.push(format!("setresuid({uid}, {uid}, {uid})"));
            lines.push("prctl(PR_SET_DUMPABLE, 0)".into());
            lines
        }
        Op::Caps { permitted, inheritable, ambient } => {
            let mut lines = vec![
                format!(
                    "capset(effective={permitted:#x}, permitted={permitted:#x}, inheritable={inheritable:#x})"
                ),
                "prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)".into(),
            ];
            if ambient != 0 {
                lines.push(format!("prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, each of {ambient:#x})"));
            }
            lines
        }
        Op::CommonFilter { program } | Op::Filter { program } => one(filter(&program)),
        Op::Landlock { fs, scoped } => {
            let mut lines = vec![format!("landlock_create_ruleset(fs={fs:#x}, scoped={scoped:#x})")];
            if fs != 0 {
                lines.push("landlock_add_rule(\"/\", LANDLOCK_ACCESS_FS_REFER)".into());
            }
            lines.push("landlock_restrict_self(the ruleset)".into());
            lines
        }
        Op::Name { name } => one(format!("prctl(PR_SET_NAME, {name:?})")),
        Op::Find { candidates } => {
            let names: Vec<String> = candidates.iter().map(|c| format!("{c:?}")).collect();
            one(format!("statx(first regular file of {})", names.join(" ")))
        }
        Op::AwaitPid1 { tied } => {
            let tie = tied.then(|| "prctl(PR_SET_PDEATHSIG, SIGKILL)".into());
            tie.into_iter().chain(["recvfrom(PID 1, \"g\")".into()]).collect()
        }
        Op::Gate { .. } => vec![
            "sendto(status) # by way of the process of init that stays, if there is one".into(),
            "ppoll(status, pidfd of the caller)".into(),
            "recvfrom(status)".into(),
        ],
        Op::NoNewPrivs {} => one("prctl(PR_SET_NO_NEW_PRIVS, 1)".into()),
        Op::Cwd { path } => vec![format!("chdir({path:?})"), "getcwd()".into()],
        Op::Umask { mask } => one(format!("umask({mask:03o})")),
        Op::Terminal { rows, columns } => vec![
            "openat2(\"/dev/ptmx\", O_RDWR|O_NOCTTY)".into(),
            "ioctl(\"/dev/ptmx\", TIOCSPTLCK, 0)".into(),
            "ioctl(\"/dev/ptmx\", TIOCGPTPEER, O_RDWR|O_NOCTTY)".into(),
            format!("ioctl(peer, TIOCSWINSZ, {{{rows}, {columns}}})"),
            "dup3(peer to 0, 1, 2)".into(),
            "sendmsg(the parent, the terminal)".into(),
        ],
        Op::ControllingTerminal {} => {
            vec!["setsid() # if this is not the leader".into(), "ioctl(0, TIOCSCTTY, 0)".into()]
        }
        Op::Exec { args, .. } => one(format!("execve(it, {} more arguments)", args.len())),
    }
}

/// The line of call `index`. If there is no such line, the last line of the operation.
pub(crate) fn call(op: &Op<'_>, index: u8) -> String {
    let lines = calls(op);
    lines.get(usize::from(index)).or(lines.last()).cloned().unwrap_or_default()
}

/// A short title of the operation for users: `bind /usr at /usr, read-only`.
pub(crate) fn title(op: &Op<'_>) -> String {
    match *op {
        Op::AwaitIdMaps {} => "wait for the id maps".into(),
        Op::Session {} => "new session".into(),
        Op::ResetScheduling {} => "reset scheduling to the defaults".into(),
        Op::Become { uid, .. } => format!("switch to mapped uid {uid}"),
        Op::Affinity {} => "reset CPU affinity to the cpuset".into(),
        Op::Fds { .. } => "close all descriptors except the declared ones".into(),
        Op::Join { path, .. } => format!("join {path:?}"),
        Op::Unshare { flags } => format!("new {}", namespaces(flags)),
        Op::Enter { path, .. } => format!("enter the cgroup of {path:?}"),
        Op::CloneInto { path, .. } => format!("continue in a copy in cgroup {path:?}"),
        Op::OomScore { .. } => "oom_score_adj".into(),
        Op::Loopback {} => "bring up the loopback interface".into(),
        Op::Hostname { .. } => "host name".into(),
        Op::Propagation { .. } => "stop mount propagation to the host".into(),
        Op::Tree { source, .. } => {
            format!("open {source:?}, check that it is the file that the caller opened")
        }
        Op::RootTmpfs { .. } => "the root is a new tmpfs".into(),
        Op::RootBind { source, .. } => format!("the root is {source:?}"),
        Op::Dir { path, .. } => format!("directory {path:?}"),
        Op::Bind { source, target, attrs, file_type, .. } => format!(
            "bind {}{source:?} at {target:?}{}",
            if file_type == FileType::Dir { "" } else { "the file " },
            if attrs & libc::MOUNT_ATTR_RDONLY == 0 { "" } else { ", read-only" },
        ),
        Op::Mount { fs, target, .. } => format!("mount {fs:?} at {target:?}"),
        Op::Symlink { path, .. } => format!("symbolic link {path:?}"),
        Op::Node { path, .. } => format!("device {path:?}"),
        Op::MaskSource {} => "empty directory for masks".into(),
        Op::MaskFile { path } | Op::MaskDir { path } => format!("mask {path:?}"),
        Op::Restrict { path, .. } | Op::Seal { path, .. } => format!("{path:?} read-only"),
        Op::Null { .. } => "/dev/null for standard streams".into(),
        Op::Upper { .. } => "the upper layer of overlays is a new tmpfs".into(),
        Op::UpperBind { source, .. } => format!("the upper layer of overlays is {source:?}"),
        Op::Overlay { source, target, .. } => format!("overlay {source:?} at {target:?}"),
        Op::Share { source, target } => format!("bind {source:?} of the sandbox at {target:?}"),
        Op::File { path, content } => format!("file {path:?} of {content:?}, read-only"),
        Op::Empty { path } => format!("empty file {path:?}"),
        Op::Write { path, content, .. } => format!("new file {path:?} of {content:?}"),
        Op::EnterPrepared { .. } => "enter a copy of the prepared mounts".into(),
        Op::OpenPrepared {} => "open the mount namespace".into(),
        Op::SendPrepared {} => "send the mount namespace".into(),
        Op::EnterRoot {} => "enter the root".into(),
        Op::PivotRoot {} | Op::MoveRoot {} => "switch to the new root".into(),
        Op::Rlimit { .. } => "resource limit".into(),
        Op::Deadline { .. } => "deadline of the task".into(),
        Op::CpuDeadline { .. } => "deadline of the task's CPU time".into(),
        Op::ExitRecord { path, .. } => format!("exit record in {path:?}"),
        Op::Log { path, .. } => format!("copy the standard streams to the log {path:?}"),
        Op::Fork { .. } => "stay as PID 1, continue in a child process".into(),
        Op::ForkOutside { .. } => {
            "stay outside of a new PID namespace, continue in a child process as PID 1".into()
        }
        Op::ForkInside { .. } => "continue in a child process inside the task".into(),
        Op::Bounding { .. } => "capability bounding set".into(),
        Op::Ids { .. } => "set uid, gid and groups".into(),
        Op::Caps { .. } => "capabilities".into(),
        Op::CommonFilter { .. } => "filter of PID 1 and the task".into(),
        Op::Filter { .. } => "seccomp filter".into(),
        Op::Landlock { .. } => "Landlock domain".into(),
        Op::Name { .. } => "name of the thread until the exec".into(),
        Op::Find { .. } => "find the command".into(),
        Op::AwaitPid1 { .. } => "wait until PID 1 has given up its privileges".into(),
        Op::Gate { .. } => "wait until the caller lets the command go".into(),
        Op::NoNewPrivs {} => "no new privileges".into(),
        Op::Cwd { .. } => "working directory".into(),
        Op::Umask { .. } => "umask".into(),
        Op::Terminal { .. } => "pseudo-terminal".into(),
        Op::ControllingTerminal {} => "controlling terminal".into(),
        Op::Exec { .. } => "execute the command".into(),
    }
}

fn fork(uid: u32, gid: u32, set_groups: bool, bounding: u64) -> Vec<String> {
    let mut lines: Vec<String> = FORK.map(String::from).into();
    lines.push("close_range(all others)".into());
    lines.push(drop_bounding(bounding));
    lines.extend(ids_of_parent(uid, gid, set_groups));
    lines.extend(reaping("0"));
    lines
}

fn fork_outside(uid: u32, gid: u32, set_groups: bool, bounding: u64) -> Vec<String> {
    let mut lines = vec!["chdir(\"/\")".into(), "unshare(CLONE_NEWPID)".into()];
    lines.extend(FORK.map(String::from));
    lines.push("setsid() # in the child".into());
    lines.push("close_range(all others)".into());
    lines.push(drop_bounding(bounding));
    lines.push("prctl(PR_SET_KEEPCAPS, 1)".into());
    lines.extend(ids_of_parent(uid, gid, set_groups));
    lines.extend(reaping("1 << CAP_KILL"));
    lines
}

/// The call by which the parent of the task's main process drops what is left in its bounding set.
fn drop_bounding(bounding: u64) -> String {
    format!("prctl(PR_CAPBSET_DROP, each of {bounding:#x})")
}

/// The calls before the two processes part.
const FORK: [&str; 3] = ["signalfd4(SIGCHLD)", "socketpair(AF_UNIX, SOCK_SEQPACKET)", "clone(CLONE_PIDFD)"];

/// The calls by which the parent of the task's main process changes its ids.
fn ids_of_parent(uid: u32, gid: u32, set_groups: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if set_groups {
        lines.push("setgroups(0, [])".into());
    }
    lines.extend([
        format!("setresgid({gid}, {gid}, {gid})"),
        format!("setresuid({uid}, {uid}, {uid})"),
        "prctl(PR_SET_DUMPABLE, 0)".into(),
    ]);
    lines
}

/// The calls after which a process can only reap. It keeps the capabilities `kept`.
fn reaping(kept: &str) -> [String; 5] {
    [
        "prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)".into(),
        format!("capset(effective={kept}, permitted={kept}, inheritable=0)"),
        "prctl(PR_SET_NO_NEW_PRIVS, 1)".into(),
        "seccomp(SECCOMP_SET_MODE_FILTER, calls for reaping)".into(),
        "sendto(the child, \"g\")".into(),
    ]
}

fn overlay(op: &Op<'_>) -> Vec<String> {
    let Op::Overlay { source, target, name, mode, uid, gid, userxattr, attrs, .. } = *op else {
        return Vec::new();
    };
    let set = |key: &str| format!("fsconfig(\"overlay\", FSCONFIG_SET_STRING, {key:?}, below /proc/self/fd)");
    let mut lines = vec![
        format!("mkdirat(upper, {name:?}, 0700)"),
        format!("openat(upper, {name:?}, O_PATH|O_DIRECTORY|O_NOFOLLOW)"),
        format!("mkdirat({name:?}, \"upper\", 0700)"),
        format!("fchownat({name:?}, \"upper\", {uid}, {gid})"),
        format!("fchmodat({name:?}, \"upper\", {mode:04o})"),
        format!("mkdirat({name:?}, \"work\", 0700)"),
        format!("mount_setattr({source:?}, MS_PRIVATE)"),
        format!("openat2(root, {target:?}, RESOLVE_IN_ROOT)"),
        format!("move_mount({source:?}, root {target:?})"),
        "fsopen(\"overlay\")".into(),
        set("lowerdir"),
        set("upperdir"),
        set("workdir"),
    ];
    if userxattr {
        lines.push("fsconfig(\"overlay\", FSCONFIG_SET_FLAG, \"userxattr\")".into());
    }
    lines.extend([
        "fsconfig(\"overlay\", FSCONFIG_CMD_CREATE)".into(),
        format!("fsmount(\"overlay\", {})", attr_names(attrs)),
        "umount2(below /proc/self/fd, MNT_DETACH)".into(),
        format!("move_mount(\"overlay\", root {target:?})"),
    ]);
    lines
}

/// A line whose call does not get the path that it is for.
fn with_object(line: &str, path: Str<'_>) -> String {
    format!("{line} # for {path:?}")
}

fn mount_setattr(what: Str<'_>, attrs: u64, propagation: &str, recursive: bool) -> String {
    let recursive = if recursive { "AT_RECURSIVE, " } else { "" };
    let comma = if propagation.is_empty() { "" } else { ", " };
    format!("mount_setattr({what:?}, {recursive}{}{comma}{propagation})", attr_names(attrs))
}

fn new_mount(fs: &str, attrs: u64, options: List<'_, Str<'_>>) -> Vec<String> {
    let mut lines = vec![format!("fsopen({fs})")];
    let mut items = options.iter();
    while let (Some(key), Some(value)) = (items.next(), items.next()) {
        lines.push(match value.bytes() {
            [] => format!("fsconfig({fs}, FSCONFIG_SET_FLAG, {key:?})"),
            _ => format!("fsconfig({fs}, FSCONFIG_SET_STRING, {key:?}, {value:?})"),
        });
    }
    lines.push(format!("fsconfig({fs}, FSCONFIG_CMD_CREATE)"));
    lines.push(format!("fsmount({fs}, {})", attr_names(attrs)));
    lines
}

/// Name of a resource of `setrlimit(2)` by its number, without `RLIMIT_` and in lower case.
pub fn rlimit_name(resource: u32) -> &'static str {
    const NAMES: [&str; 16] = [
        "cpu",
        "fsize",
        "data",
        "stack",
        "core",
        "rss",
        "nproc",
        "nofile",
        "memlock",
        "as",
        "locks",
        "sigpending",
        "msgqueue",
        "nice",
        "rtprio",
        "rttime",
    ];
    usize::try_from(resource).ok().and_then(|number| NAMES.get(number)).copied().unwrap_or("?")
}

fn limit(value: u64) -> String {
    if value == u64::MAX { "RLIM64_INFINITY".into() } else { value.to_string() }
}

fn propagation_name(flags: u64) -> &'static str {
    match flags {
        libc::MS_PRIVATE => "MS_PRIVATE",
        libc::MS_SLAVE => "MS_SLAVE",
        libc::MS_SHARED => "MS_SHARED",
        _ => "",
    }
}

fn join_names(bits: u64, names: &[(u64, &str)]) -> String {
    let set: Vec<&str> = names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, n)| *n).collect();
    if set.is_empty() { "0".into() } else { set.join("|") }
}

fn attr_names(attrs: u64) -> String {
    join_names(
        attrs,
        &[
            (libc::MOUNT_ATTR_RDONLY, "MOUNT_ATTR_RDONLY"),
            (libc::MOUNT_ATTR_NOSUID, "MOUNT_ATTR_NOSUID"),
            (libc::MOUNT_ATTR_NODEV, "MOUNT_ATTR_NODEV"),
            (libc::MOUNT_ATTR_NOEXEC, "MOUNT_ATTR_NOEXEC"),
            (libc::MOUNT_ATTR_STRICTATIME, "MOUNT_ATTR_STRICTATIME"),
        ],
    )
}

/// The names of `CLONE_NEW*` bits.
pub(crate) fn namespaces(flags: u32) -> String {
    let names = [
        (libc::CLONE_NEWNS, "CLONE_NEWNS"),
        (libc::CLONE_NEWPID, "CLONE_NEWPID"),
        (libc::CLONE_NEWIPC, "CLONE_NEWIPC"),
        (libc::CLONE_NEWNET, "CLONE_NEWNET"),
        (libc::CLONE_NEWUTS, "CLONE_NEWUTS"),
        (libc::CLONE_NEWCGROUP, "CLONE_NEWCGROUP"),
        (libc::CLONE_NEWUSER, "CLONE_NEWUSER"),
    ];
    join_names(u64::from(flags), &names.map(|(bit, name)| (u64::from(bit.cast_unsigned()), name)))
}
