//! The default profile: the calls that it refuses, with reasons, and the capabilities that allow them.
//!
//! Calls in the tables and not listed here are allowed. Calls in no table fail with `ENOSYS`.

use super::Grants;
use super::profile::{Action, Compare, Is, Rule};

const EPERM: Action = Action::Errno(1);
const EINVAL: Action = Action::Errno(22);
const EPROTONOSUPPORT: Action = Action::Errno(93);
const AF_NETLINK: u32 = 16;
/// Netlink protocol of the proc connector, which reports process events of all PID namespaces.
const NETLINK_CONNECTOR: u32 = 11;
const EAFNOSUPPORT: Action = Action::Errno(97);
pub(super) const ENOSYS: Action = Action::Errno(38);

/// System calls that the default profile refuses for the same reason.
#[derive(Clone, Copy, Debug)]
pub struct CallGroup {
    /// Names; either architecture may have them.
    pub calls: &'static [&'static str],
    /// Capabilities, by name. With any of them, the calls are allowed.
    pub unless: &'static [&'static str],
    /// Whether the calls are also allowed for a task that may create user namespaces.
    pub namespaces: bool,
    /// The action for a refused call.
    pub action: Action,
    /// The reason.
    pub why: &'static str,
}

const fn group(
    calls: &'static [&'static str],
    unless: &'static [&'static str],
    why: &'static str,
) -> CallGroup {
    CallGroup { calls, unless, namespaces: false, action: EPERM, why }
}

/// Calls that the default profile refuses regardless of their arguments.
pub const GROUPS: &[CallGroup] = &[
    group(
        &["setns", "listns"],
        &[],
        "joins another namespace: a process has every capability in a user namespace that its user owns",
    ),
    group(
        &["open_by_handle_at"],
        &["dac_read_search"],
        "opens files outside the root by their handle; handles of nsfs need no capability",
    ),
    group(
        &["io_uring_setup", "io_uring_enter", "io_uring_register"],
        &[],
        "performs operations that seccomp filters do not see, and is a frequent source of kernel exploits",
    ),
    group(
        &["add_key", "keyctl", "request_key"],
        &[],
        "the keyrings of a user are shared with the host and with other tasks",
    ),
    group(
        &["userfaultfd"],
        &[],
        "pauses the kernel in the middle of a copy, which makes race conditions exploitable",
    ),
    group(
        &["perf_event_open"],
        &["perfmon", "sys_admin"],
        "observes the CPU and the other processes that run on it",
    ),
    group(&["bpf"], &["bpf", "sys_admin"], "loads BPF programs into the kernel"),
    CallGroup {
        action: EINVAL,
        ..group(
            &["splice", "vmsplice"],
            &[],
            "holds the lock of a pipe while it waits for data: a process of the host that reads the pipe or writes to it \
             waits in the kernel, where no signal ends it; programs copy by read and write instead",
        )
    },
    CallGroup {
        namespaces: true,
        ..group(
            &[
                "mount",
                "umount",
                "umount2",
                "mount_setattr",
                "move_mount",
                "open_tree",
                "open_tree_attr",
                "fsopen",
                "fsconfig",
                "fsmount",
                "fspick",
            ],
            &["sys_admin"],
            "changes mounts",
        )
    },
    CallGroup {
        namespaces: true,
        ..group(&["pivot_root"], &[], "changes the root directory; chroot(2) is enough inside a sandbox")
    },
    CallGroup {
        namespaces: true,
        ..group(&["sethostname", "setdomainname"], &["sys_admin"], "changes the host name")
    },
    group(&["chroot"], &["sys_chroot"], "changes the root directory"),
    group(
        &["init_module", "finit_module", "delete_module"],
        &["sys_module"],
        "loads and unloads kernel modules",
    ),
    group(&["kexec_load", "kexec_file_load"], &[], "boots another kernel"),
    group(&["reboot"], &["sys_boot"], "reboots the machine"),
    group(
        &["swapon", "swapoff", "quotactl_fd", "quotactl"],
        &["sys_admin"],
        "manages swap and disk quotas of the host",
    ),
    group(&["acct"], &["sys_pacct"], "turns process accounting on and off"),
    group(
        &["clock_settime", "clock_settime64", "settimeofday", "stime"],
        &["sys_time"],
        "sets the system clock, which is not namespaced",
    ),
    group(&["syslog"], &["syslog", "sys_admin"], "reads the kernel log (dmesg)"),
    group(&["iopl", "ioperm"], &["sys_rawio"], "accesses I/O ports"),
    group(
        &["kcmp", "pidfd_getfd", "process_madvise"],
        &["sys_ptrace"],
        "accesses other processes without ptrace(2)",
    ),
    group(
        &["get_mempolicy", "set_mempolicy", "set_mempolicy_home_node", "mbind"],
        &["sys_nice"],
        "sets the NUMA memory policy",
    ),
    group(&["migrate_pages", "move_pages"], &[], "moves memory of other processes between NUMA nodes"),
    group(
        &["fanotify_init", "lookup_dcookie", "lsm_get_self_attr", "lsm_set_self_attr", "lsm_list_modules"],
        &["sys_admin"],
        "monitors whole file systems, and reads and sets LSM attributes",
    ),
    group(&["vhangup"], &["sys_tty_config"], "hangs up a terminal"),
    group(&["vm86", "vm86old"], &[], "runs 16-bit code: rarely used, and often vulnerable"),
    CallGroup {
        action: ENOSYS,
        ..group(
            &[
                "_sysctl",
                "afs_syscall",
                "bdflush",
                "break",
                "create_module",
                "ftime",
                "get_kernel_syms",
                "getpmsg",
                "gtty",
                "idle",
                "lock",
                "mpx",
                "nfsservctl",
                "prof",
                "profil",
                "putpmsg",
                "query_module",
                "security",
                "stty",
                "sysfs",
                "tuxcall",
                "ulimit",
                "uselib",
                "ustat",
                "vserver",
            ],
            &[],
            "obsolete: no current program needs it",
        )
    },
];

const CLONE_PARENT: u32 = 0x8000;
/// `CLONE_NEW*` of mount, cgroup, UTS, IPC, user, PID and network namespaces.
const CLONE_NEW: u32 = 0x7e02_0000;
/// Time namespaces; for `unshare` only. In the flags of `clone` this bit belongs to the exit signal.
const CLONE_NEWTIME: u32 = 0x80;

/// Socket families that every task may open: unix, inet, inet6, netlink, packet. For packet sockets the kernel requires
/// `CAP_NET_RAW`. moby's profile allows all families except vsock. vsock is refused because it is not isolated by
/// network namespaces. The other families are code that few programs need and that has had vulnerabilities.
const FAMILIES: [u32; 5] = [1, 2, 10, 16, 17];
/// Socket families that need a capability.
const MORE_FAMILIES: [(u32, &str); 2] = [(15 /* key */, "net_admin"), (44 /* xdp */, "net_raw")];
/// Operations of `socketcall`: its first argument. The others are behind a pointer, which a filter cannot read.
const SYS_SOCKET: u32 = 1;
const SYS_SOCKETPAIR: u32 = 8;

const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;

/// `PER_LINUX`, `PER_LINUX32`, and the query for the current value.
const PERSONALITIES: [u32; 3] = [0, 8, 0xffff_ffff];

pub(crate) const PTRACE_TRACEME: u32 = 0;

/// `F_SETLEASE`.
pub(crate) const SETLEASE: u32 = 1024;
/// The bit by which `F_SETDELEG` of Linux 6.19 differs from it.
const DELEGATION: u64 = 16;

/// The argument of `sendfile` that points to the offset.
pub(crate) const SENDFILE_OFFSET: u8 = 2;

/// The calls that change how a process is scheduled, whose PID is their first argument.
pub(crate) const OF_PID: [&str; 4] =
    ["sched_setscheduler", "sched_setparam", "sched_setattr", "sched_setaffinity"];

/// The rules for a task with these grants.
pub(super) fn rules(grants: &Grants) -> Vec<Rule> {
    let rule = Rule::new;
    let is = |arg: u8, value: u32| vec![Compare::int(arg, Is::Eq, value)];
    let granted = |group: &CallGroup| {
        group.unless.iter().any(|name| grants.capabilities.contains(*name))
            || (group.namespaces && grants.user_namespaces)
    };
    let refused = GROUPS.iter().filter(|group| !granted(group));
    let mut rules: Vec<Rule> = refused.map(|group| rule(group.calls, Vec::new(), group.action)).collect();
    // The flags are behind a pointer. C libraries fall back to clone on ENOSYS.
    rules.push(rule(&["clone3"], Vec::new(), ENOSYS));
    // With CLONE_PARENT, a child of the task would become a child of the task's parent.
    rules.push(rule(&["clone"], vec![Compare::any_of(0, CLONE_PARENT)], EPERM));
    if !grants.user_namespaces && !grants.capabilities.contains("sys_admin") {
        rules.push(rule(&["clone"], vec![Compare::any_of(0, CLONE_NEW)], EPERM));
        rules.push(rule(&["unshare"], vec![Compare::any_of(0, CLONE_NEW | CLONE_NEWTIME)], EPERM));
    }
    // The proc connector reports forks, execs and exits of processes of the host.
    let connector = [Compare::int(0, Is::Eq, AF_NETLINK), Compare::int(2, Is::Eq, NETLINK_CONNECTOR)];
    rules.push(rule(&["socket"], connector.to_vec(), EPROTONOSUPPORT));
    // In the host's PID namespace, prlimit(2) on another process could lower its limits and so kill it. Only pid 0, the
    // caller, is allowed.
    if grants.host_processes {
        let other = Compare { is: Is::Ne, ..Compare::int(0, Is::Eq, 0) };
        rules.push(rule(&["prlimit64"], vec![other], EPERM));
    }
    // The parent is the caller, which does not expect to trace its child: a traced thread that has ended would keep the
    // process from ending.
    if !grants.init {
        rules.push(rule(&["ptrace"], is(0, PTRACE_TRACEME), EPERM));
    }
    // A lease on a file of the host stops every process that opens it, for up to 45 seconds.
    if !grants.capabilities.contains("lease") {
        let lease = Compare { mask: !DELEGATION & 0xffff_ffff, ..Compare::int(1, Is::Eq, SETLEASE) };
        rules.push(rule(&["fcntl", "fcntl64"], vec![lease], EPERM));
    }
    // As splice(2) does, it waits for data with the lock of a pipe. With an offset it fails for all that can be waited for:
    // sockets, pipes and terminals. The pointer to the offset is compared by its lower half, which no other pointer of a
    // program has as zero.
    rules.push(rule(&["sendfile", "sendfile64"], is(SENDFILE_OFFSET, 0), EINVAL));
    // PID 1 watches the deadlines, and writes the exit record and the log. A task with the user of PID 1 could lower its
    // limits of file sizes and CPU time, and its priority.
    if grants.init {
        rules.push(rule(&["prlimit64"], is(0, 1), EPERM));
        rules.push(rule(&OF_PID, is(0, 1), EPERM));
        for (call, process) in [("setpriority", 0), ("ioprio_set", 1)] {
            let pid1 = vec![Compare::int(0, Is::Eq, process), Compare::int(1, Is::Eq, 1)];
            // Greater numbers are process groups and users, to which PID 1 may belong.
            let others = vec![Compare::int(0, Is::Gt, process)];
            rules.extend([pid1, others].map(|which| rule(&[call], which, EPERM)));
        }
    }
    let more = MORE_FAMILIES.iter().filter(|(_, name)| grants.capabilities.contains(*name));
    let families = FAMILIES.iter().copied().chain(more.map(|(family, _)| *family));
    let sockets = ["socket", "socketpair"];
    rules.extend(families.map(|family| rule(&sockets, is(0, family), Action::Allow)));
    rules.push(rule(&sockets, Vec::new(), EAFNOSUPPORT));
    rules.extend([SYS_SOCKET, SYS_SOCKETPAIR].map(|call| rule(&["socketcall"], is(0, call), ENOSYS)));
    // TIOCSTI and TIOCLINUX put input into a terminal. A shell of the host that reads this terminal next executes it.
    rules.extend([TIOCSTI, TIOCLINUX].map(|request| rule(&["ioctl"], is(1, request), EPERM)));
    rules.extend(PERSONALITIES.map(|persona| rule(&["personality"], is(0, persona), Action::Allow)));
    rules.push(rule(&["personality"], Vec::new(), EPERM));
    rules
}
