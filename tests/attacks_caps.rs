//! What each capability weakens: every row of the report's table is tried from inside, with and without the capability.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod attack_tools;
mod common;

use std::os::unix::fs::PermissionsExt;

use cofferdam::filter::Filter;
use cofferdam::{Control, Host, IsolationMode, Policy};
use common::{asked, can, probe, run_probe, sandboxes};
use nix::errno::Errno;

/// A call that the kernel refuses with EPERM without the capability. With it the call changes nothing: its arguments
/// are invalid, or it sets a value that is set already.
type Attack = fn() -> nix::Result<libc::c_long>;

/// Capability, the controls that it weakens (if none, the report only names it), and the attack.
const ROWS: [(&str, Control, Attack); 20] = [
    ("sys_admin", Control::HOST_FILES.union(Control::ROOT_SWITCH), || {
        attack_tools::mount("none", "/tmp", "tmpfs", 0, "").map(|()| 0)
    }),
    ("sys_module", Control::all(), || call!(libc::SYS_delete_module, c"cofferdam_none".as_ptr(), 0)),
    ("sys_boot", Control::all(), || call!(libc::SYS_kexec_load, 0, 0, 0, u64::MAX)),
    ("sys_rawio", Control::DEVICES, || call!(libc::SYS_ioperm, 0x80, 1, 1)),
    ("sys_ptrace", Control::PID_NS, || {
        const PTRACE_SEIZE: i32 = 0x4206;
        call!(libc::SYS_ptrace, PTRACE_SEIZE, 1, 0, 0)
    }),
    ("perfmon", Control::PID_NS.union(Control::MASKED_PATHS), || {
        // struct perf_event_attr: a software clock, for all processes on processor 0, in the kernel too.
        let mut attr = [0_u32; 28];
        attr[0] = 1;
        attr[1] = 112;
        call!(libc::SYS_perf_event_open, attr.as_ptr(), -1, 0, -1, 0)
    }),
    ("bpf", Control::MASKED_PATHS, || {
        // Zero bytes of BTF.
        const BPF_BTF_LOAD: i32 = 18;
        let attr = [0_u32; 8];
        call!(libc::SYS_bpf, BPF_BTF_LOAD, attr.as_ptr(), 28)
    }),
    ("syslog", Control::MASKED_PATHS, || {
        // SYSLOG_ACTION_CONSOLE_LEVEL with an invalid level.
        call!(libc::SYS_syslog, 8, 0, 99)
    }),
    ("sys_resource", Control::OOM_SCORE, || {
        let mut limits = [0_u64; 2];
        call!(libc::SYS_prlimit64, 0, libc::RLIMIT_CORE, 0, limits.as_mut_ptr())?;
        limits[1] = limits[1].saturating_sub(1);
        limits[0] = limits[0].min(limits[1]);
        call!(libc::SYS_prlimit64, 0, libc::RLIMIT_CORE, limits.as_ptr(), 0)?;
        limits[1] += 1;
        call!(libc::SYS_prlimit64, 0, libc::RLIMIT_CORE, limits.as_ptr(), 0)
    }),
    ("net_admin", Control::empty(), || {
        // SO_MARK of a socket of the task.
        let socket = call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        let mark = 1_u32;
        call!(libc::SYS_setsockopt, socket, libc::SOL_SOCKET, libc::SO_MARK, &raw const mark, 4)
    }),
    ("net_raw", Control::empty(), || {
        call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)
    }),
    ("sys_time", Control::empty(), || {
        // ADJ_TICK with a value out of range.
        let mut timex = [0_u64; 32];
        timex[0] = 0x4000;
        call!(libc::SYS_adjtimex, timex.as_mut_ptr())
    }),
    ("dac_override", Control::empty(), || {
        std::fs::write("/tmp/mine", "").unwrap();
        std::fs::set_permissions("/tmp/mine", PermissionsExt::from_mode(0o000)).unwrap();
        call!(libc::SYS_open, c"/tmp/mine".as_ptr(), libc::O_RDWR)
    }),
    ("linux_immutable", Control::empty(), || {
        const FS_IOC_SETFLAGS: u64 = 0x4008_6602;
        // FS_IMMUTABLE_FL
        let immutable = 0x10_i64;
        std::fs::write("/tmp/fixed", "").unwrap();
        let file = call!(libc::SYS_open, c"/tmp/fixed".as_ptr(), libc::O_RDONLY)?;
        call!(libc::SYS_ioctl, file, FS_IOC_SETFLAGS, &raw const immutable)
    }),
    // audit_read joins a multicast group; the others send a message.
    ("audit_read", Control::empty(), || audit(1).map(|_| 0)),
    ("audit_write", Control::empty(), || ask_audit(audit(0)?, 1005 /* AUDIT_USER */)),
    ("audit_control", Control::empty(), || ask_audit(audit(0)?, 1000 /* AUDIT_GET */)),
    ("block_suspend", Control::empty(), || {
        // Without the capability the kernel silently drops the flag.
        const EPOLLWAKEUP: u32 = 1 << 29;
        std::fs::exists("/sys/power/wakeup_count").ok().filter(|there| *there).ok_or(Errno::ENOSYS)?;
        let (epoll, timer) = (call!(libc::SYS_epoll_create1, 0)?, call!(libc::SYS_timerfd_create, 1, 0)?);
        let mut event = libc::epoll_event { events: EPOLLWAKEUP | 1, u64: 0 };
        call!(libc::SYS_epoll_ctl, epoll, libc::EPOLL_CTL_ADD, timer, &raw mut event)?;
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{epoll}")).unwrap();
        if info.contains("events: 2") { Ok(0) } else { Err(Errno::EPERM) }
    }),
    ("sys_pacct", Control::empty(), || call!(libc::SYS_acct, c"/no/such/file".as_ptr())),
    ("wake_alarm", Control::empty(), || {
        const CLOCK_BOOTTIME_ALARM: i32 = 9;
        call!(libc::SYS_timerfd_create, CLOCK_BOOTTIME_ALARM, 0)
    }),
];

/// A socket to the kernel's audit subsystem, in these multicast groups.
fn audit(groups: u32) -> nix::Result<libc::c_long> {
    const NETLINK_AUDIT: i32 = 9;
    let socket = call!(libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_AUDIT);
    let socket = socket.map_err(|_| Errno::ENOSYS)?;
    // struct sockaddr_nl: family, padding, port, groups.
    let address = [u32::try_from(libc::AF_NETLINK).unwrap(), 0, groups];
    call!(libc::SYS_bind, socket, address.as_ptr(), 12).map(|_| socket)
}

/// The errno with which the audit subsystem acknowledges a message of this type.
fn ask_audit(socket: libc::c_long, kind: u32) -> nix::Result<libc::c_long> {
    // struct nlmsghdr: length, type and flags (request, acknowledge), sequence, port; then the text.
    let message = [24, kind | (5 << 16), 1, 0, u32::from_ne_bytes(*b"test"), 0];
    call!(libc::SYS_write, socket, message.as_ptr(), 24)?;
    let mut answer = [0_i32; 64];
    call!(libc::SYS_read, socket, answer.as_mut_ptr(), 256)?;
    // NLMSG_ERROR carries a negative errno, or zero.
    match answer[1] & 0xffff {
        2 if answer[4] != 0 => Err(Errno::from_raw(-answer[4])),
        _ => Ok(0),
    }
}

/// Entry point of this binary inside a sandbox.
#[test]
fn probe_entry() {
    let Some((what, mut say)) = asked() else { return };
    let (.., attack) = ROWS.into_iter().find(|(name, ..)| *name == what).unwrap();
    let answer = attack();
    // With a level above 2, which Debian's kernel adds, only CAP_SYS_ADMIN may open perf events.
    let paranoid = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
    let closed = what == "perfmon" && paranoid.trim().parse::<i32>().is_ok_and(|level| level > 2);
    let lacks = closed
        || matches!(answer, Err(Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::ECONNREFUSED));
    say.fact("lacks", lacks);
    say.fact("passed", !lacks && !matches!(answer, Err(Errno::EPERM | Errno::EACCES)));
    say.fact("answer", answer.map_or_else(|e| e.to_string(), |n| n.to_string()));
}

/// The attack succeeds only with the capability. If the capability is granted, the report names it and what it weakens.
#[test]
fn capability_that_weakens_a_control_is_in_the_report() {
    if !can("root") || !sandboxes() {
        return;
    }
    let host = Host::probe().unwrap();
    let held = host.held;
    let policy = Policy { allow_caps: Some(vec!["all".into()]), ..Policy::default() };
    for (name, weakened, _) in ROWS {
        let ask = |cap_add: Vec<String>| {
            // A Landlock domain forbids the trace.
            let host = if name == "sys_ptrace" { attack_tools::without_landlock() } else { host.clone() };
            let sandbox = probe(name).user("nobody").policy(&policy).host(&host).with(|s| {
                (s.cap_drop, s.cap_add) = (vec!["all".into()], cap_add);
                // The default profile refuses kexec_load(2) whatever the capabilities are.
                s.filter = if name == "sys_boot" { Filter::None } else { Filter::Default };
                // The audit subsystem accepts control messages from the initial PID namespace only.
                s.pid_mode = (name == "audit_control").then_some(IsolationMode::Host);
            });
            run_probe(sandbox).unwrap()
        };
        let without = ask(Vec::new());
        assert_eq!(without.get("passed"), "false", "{name}: {}", without.get("answer"));
        let said = format!("CAP_{}", name.to_ascii_uppercase());
        let told = |seen: &common::Seen| seen.report.reasons.iter().any(|r| r.why.contains(&said));
        assert!(!told(&without), "{name}: {}", without.report);
        if !held.names().iter().any(|held| held == name) {
            // Root of this machine does not have the capability.
            continue;
        }
        let with = ask(vec![name.into()]);
        // The kernel may lack the feature (loadable modules, say).
        if with.get("lacks") != "true" {
            assert_eq!(with.get("passed"), "true", "{name}: {}", with.get("answer"));
        }
        assert!(told(&with), "{name}: {}", with.report);
        assert!(with.report.weakened.contains(weakened & with.report.asked), "{name}: {}", with.report);
    }
}

/// Inside, in the host's PID namespace: a process leaves all cgroups, by mounts of the task's own. It prints its PID. It mounts
/// only hierarchies that the machine has: a new one would take its controller out of the v2 tree of the machine.
fn leave() -> String {
    let hierarchies: Vec<_> = Host::probe().unwrap().cgroups.v1.into_keys().collect();
    format!(
        "setsid sh -c 'for h in {}; do mkdir -p /tmp/$h; mount -t cgroup -o $h none /tmp/$h && \
         echo 0 >/tmp/$h/cgroup.procs; done; mkdir -p /tmp/v2; mount -t cgroup2 none /tmp/v2 && \
         echo 0 >/tmp/v2/cgroup.procs; echo $$; exec sleep 1000 >/dev/null' 2>/dev/null & sleep 1000",
        hierarchies.join(" ")
    )
}

/// Kills the process that has printed its PID, once it has executed `sleep`.
fn end_of_what_has_left(pid: i32) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        match std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default() {
            command if command.starts_with(b"sleep\x001000") => {
                let pid = nix::unistd::Pid::from_raw(pid);
                return nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
            }
            command if !command.is_empty() && std::time::Instant::now() < end => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            _ => return common::skip::note("the process did not leave its cgroups"),
        }
    }
}

/// The end of a PID namespace kills what has left its cgroups. In the host's PID namespace nothing does.
#[test]
fn a_process_that_leaves_its_cgroups_is_killed_unless_the_report_says_that_it_is_not() {
    if !can("root") || !can("cgroups") {
        return;
    }
    let policy = Policy { allow_caps: Some(vec!["all".into()]), ..Policy::default() };
    for pid_mode in [IsolationMode::Private, IsolationMode::Host] {
        let sandbox = common::shell(&leave()).user("root").policy(&policy).cap_add("sys_admin");
        let sandbox = sandbox.pid_mode(pid_mode).require(cofferdam::Require::BestEffort);
        let task =
            sandbox.with(|s| s.limits.accounting = true).stdout(cofferdam::Stdio::Piped).spawn().unwrap();
        let mut printed = std::io::BufReader::new(task.take_stdout().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut printed, &mut line).unwrap();
        let report = task.report().clone();
        task.kill().unwrap();
        task.wait_end(None).unwrap();
        if pid_mode == IsolationMode::Host {
            end_of_what_has_left(line.trim().parse().unwrap());
        }
        // A process that has left the unit only is in other cgroups of the task until it ends: it cannot mount a
        // hierarchy of several controllers by the name of one.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while let Err(e) = task.release() {
            assert!(pid_mode == IsolationMode::Host && std::time::Instant::now() < end, "{e:?}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let weak = report.weakened.contains(Control::KILL);
        // It could also mount the freezer of cgroup v1, and freeze itself.
        let freezer = Host::probe().unwrap().cgroups.v1.contains_key("freezer");
        assert_eq!(weak, pid_mode == IsolationMode::Host || freezer, "{report}");
    }
}
