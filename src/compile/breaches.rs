//! Capabilities and shared namespaces that let a task bypass enforced controls.

use std::path::Path;

use super::filter::Filters;
use super::landlock::Domain;
use super::stays::Stays;
use crate::caps::Sets;
use crate::filter::{OF_PID, PTRACE_TRACEME, SENDFILE_OFFSET, SETLEASE};
use crate::host::Host;
use crate::ids::Identity;
use crate::ns::{IsolationMode, Namespaces, Network};
use crate::report::Control;
use crate::spec::{Policy, Resource, SandboxSpec, Stdio};
use crate::step::Draft;

/// Capability, the controls that it defeats outside of a user namespace, and the reason for the report.
const BREACHES: [(&str, Control, &str); 12] = [
    (
        "sys_admin",
        FILES
            .union(Control::MASKED_PATHS)
            .union(Control::DEVICES)
            .union(Control::DEADLINES)
            .union(Control::EXIT_RECORD),
        "the task has CAP_SYS_ADMIN: it can make read-only mounts writable and mount the host's block devices",
    ),
    (
        "dac_read_search",
        FILES.union(Control::EXIT_RECORD),
        "the task has CAP_DAC_READ_SEARCH: it can open files outside its root with open_by_handle_at(2), and write to them through a writable mount of their file system",
    ),
    (
        "dac_override",
        Control::empty(),
        "the task has CAP_DAC_OVERRIDE: it can read every file in its root and volumes, and write every file in writable volumes, whatever their owner and mode",
    ),
    ("sys_module", Control::all(), "the task has CAP_SYS_MODULE: it can load kernel modules"),
    (
        "sys_rawio",
        Control::DEVICES.union(FILES).union(Control::EXIT_RECORD),
        "the task has CAP_SYS_RAWIO: it can access I/O ports, and send raw commands to disks that it can open",
    ),
    (
        "sys_ptrace",
        Control::PID_NS.union(BY_PID1),
        "the task has CAP_SYS_PTRACE: it can trace and control any process that it sees",
    ),
    (
        "perfmon",
        Control::PID_NS.union(Control::MASKED_PATHS),
        "the task has CAP_PERFMON: it can observe the kernel and every process of the host with perf_event_open(2)",
    ),
    (
        "bpf",
        Control::MASKED_PATHS,
        "the task has CAP_BPF: it can load BPF programs into the kernel, which with CAP_PERFMON can read all kernel memory",
    ),
    (
        "syslog",
        Control::MASKED_PATHS,
        "the task has CAP_SYSLOG: it can read and clear the kernel log (dmesg), and sees kernel addresses",
    ),
    (
        "sys_resource",
        Control::RLIMITS.union(Control::OOM_SCORE),
        "the task has CAP_SYS_RESOURCE: it can raise its resource limits and lower its oom_score_adj",
    ),
    ("net_admin", Control::NET_NS, "the task has CAP_NET_ADMIN: it can reconfigure its network namespace"),
    (
        "net_raw",
        Control::NET_NS,
        "the task has CAP_NET_RAW: it can read and forge packets in its network namespace",
    ),
];

/// The controls that PID 1 serves.
const BY_PID1: Control = Control::DEADLINES.union(Control::EXIT_RECORD);

const FILES: Control = Control::HOST_FILES.union(Control::ROOT_SWITCH);

/// Capabilities that affect the whole machine and for which there is no control in the report, with what they permit.
const MACHINE: [(&str, &str); 10] = [
    ("sys_time", "set the system clock"),
    ("mac_admin", "change the host's LSM policy (Smack, AppArmor)"),
    ("mac_override", "override the host's LSM policy (Smack)"),
    ("audit_control", "change the host's audit rules, in the host's PID namespace"),
    ("audit_write", "write records to the host's audit log"),
    ("audit_read", "read the host's audit log"),
    ("sys_pacct", "turn process accounting on and off"),
    ("wake_alarm", "wake the machine from suspend"),
    ("block_suspend", "prevent the machine from suspending"),
    (
        "linux_immutable",
        "set the immutable flag of files in writable volumes, which remains after the task has ended",
    ),
];

/// The controls that access to `/proc/PID/root` and `/proc/PID/fd` of a process outside the sandbox defeats.
const BY_PROC: Control = FILES
    .union(Control::MASKED_PATHS)
    .union(Control::DEVICES)
    .union(Control::KILL)
    .union(Control::RESOURCES)
    .union(Control::EXIT_RECORD);

/// Adds to the report which controls are weakened because the task shares namespaces of the host. A task in a user
/// namespace cannot open `/proc/PID/root` of a process outside, as it lacks CAP_SYS_PTRACE in that process's user
/// namespace.
pub(super) fn shared(spec: &SandboxSpec, sets: Sets, ns: &Namespaces, domain: Domain, draft: &mut Draft) {
    let Namespaces { pid, ipc, user: user_ns, .. } = *ns;
    let network = &ns.network;
    let whose = match (user_ns, sets.bounding.has("setuid")) {
        (true, _) => "the caller's user",
        (false, true) => "any user (it has CAP_SETUID)",
        (false, false) => "its user",
    };
    if pid == IsolationMode::Host {
        let shares = "the task shares the host's PID namespace";
        if !user_ns && !domain.keeps_traces() {
            let why = format!(
                "{shares}: it can reach the host's files, devices and cgroups through /proc/PID/root of processes of its user that have no more capabilities"
            );
            draft.report.weaken(BY_PROC & draft.report.asked, why);
        }
        if !domain.keeps_signals() {
            draft.report.note(Control::PID_NS, format!("{shares}: it can signal every process of {whose}"));
        }
        let why = format!(
            "{shares}: it sees every process, and can change the priority and CPU affinity of processes of {whose}"
        );
        draft.report.note(Control::PID_NS, why);
        if spec.user_namespaces {
            let any = !user_ns && sets.bounding.has("dac_override");
            let whose = if any { "any user (it has CAP_DAC_OVERRIDE)" } else { whose };
            let why =
                format!("{shares}: it can write to writable files below /proc/PID of processes of {whose}");
            draft.report.note(Control::PID_NS, why);
        }
        if *network != Network::Host {
            let why =
                format!("{shares}: it can read the host's addresses, routes and sockets in /proc/PID/net");
            draft.report.weaken(Control::NET_NS & draft.report.asked, why);
        }
    }
    if *network != Network::None && !domain.keeps_sockets() {
        let why = "the task shares a network namespace: it can connect to the abstract unix sockets of other processes in it";
        draft.report.note(Control::NET_NS, why);
    }
    if ipc == IsolationMode::Host {
        let owner = !user_ns && sets.bounding.has("ipc_owner");
        let whose = if owner { "any user" } else { whose };
        let why = format!(
            "the task shares the host's IPC namespace: it can access System V IPC objects and POSIX message queues of {whose}, which remain after the task has ended"
        );
        draft.report.note(Control::IPC_NS, why);
    }
}

/// Adds to the report which controls are weakened because a source shows the processes of the host. A task in a private PID
/// namespace cannot signal them.
pub(super) fn shown(source: Option<&Path>, ns: &Namespaces, domain: Domain, draft: &mut Draft) {
    let Some(source) = source.filter(|_| ns.pid == IsolationMode::Private) else { return };
    let asked = draft.report.asked;
    draft
        .report
        .weaken(Control::PID_NS & asked, format!("{source:?} shows the task the processes of the host"));
    if !ns.user && !domain.keeps_traces() {
        let why = format!(
            "{source:?} shows the processes of the host: the task can reach the host's files, devices and cgroups through PID/root of processes of its user that have no more capabilities"
        );
        draft.report.weaken((BY_PROC | Control::DEADLINES) & asked, why);
    }
}

/// What lets the task run real-time processes, which the kernel's fair scheduler does not control (`sched(7)`).
pub(super) fn real_time(
    spec: &SandboxSpec,
    sets: Sets,
    user_ns: bool,
    filters: &Filters,
) -> Option<&'static str> {
    let has = |name: &str| !user_ns && sets.bounding.has(name);
    if !filters.allows("sched_setscheduler", None) && !filters.allows("sched_setattr", None) {
        None
    } else if has("sys_nice") {
        Some("the task has CAP_SYS_NICE")
    } else if has("sys_resource") {
        Some("the task has CAP_SYS_RESOURCE, by which it can raise its limit of real-time priorities")
    } else {
        let allowed = spec.rlimits.get(&Resource::Rtprio).is_some_and(|limit| limit.hard != Some(0));
        allowed.then_some("the task has a limit of real-time priorities (rtprio) above 0")
    }
}

/// Adds to the report which limits of CPU time a task with real-time processes is not subject to. They apply to the
/// processes of the fair scheduler only (`cgroup-v2.rst`).
pub(super) fn outruns(real_time: Option<&str>, draft: &mut Draft) {
    if let Some(who) = real_time {
        let why = format!("{who}: its real-time processes are not subject to shares and quotas of CPU time");
        draft.report.weaken((Control::CPU | Control::CPU_MAX) & draft.report.asked, why);
    }
}

/// Adds to the report how the task can delay PID 1, which watches the deadlines. `same_user` says whether PID 1 has the
/// task's user, and `outside` whether the process that watches is outside of the task's PID namespace.
pub(super) fn delays(
    sets: Sets,
    real_time: Option<&str>,
    filters: &Filters,
    (same_user, outside): (bool, bool),
    draft: &mut Draft,
) {
    let deadlines = Control::DEADLINES & (draft.report.enforced | draft.report.weakened);
    if deadlines.is_empty() {
        return;
    }
    let may = !outside && (same_user || sets.bounding.has("setuid") || sets.bounding.has("sys_nice"));
    if let Some(who) = real_time {
        let why = format!(
            "{who}: with real-time processes it can keep PID 1, which watches the deadlines, from running"
        );
        draft.report.weaken(deadlines, why);
    } else if let Some(call) = OF_PID.into_iter().find(|call| may && filters.allows(call, Some((0, 1)))) {
        let why = format!(
            "{call}(2) for PID 1 is allowed: the task can lower the priority of PID 1, which watches the deadlines, and delay its end while the CPUs are busy"
        );
        draft.report.weaken(deadlines, why);
    }
}

/// Adds to the report what a task can do with an OOM score that it may lower again (`proc_pid_oom_score_adj(5)`): it may not
/// if a caller with CAP_SYS_RESOURCE has set it. The process of init that stays has the score too.
pub(super) fn scores(spec: &SandboxSpec, host: &Host, stays: Stays, draft: &mut Draft) {
    if spec.oom_score_adj.is_none_or(|score| score <= 0) || host.held.has("sys_resource") {
        return;
    }
    let lacks = "the caller lacks CAP_SYS_RESOURCE: the task can lower its OOM score again";
    draft.report.weaken(Control::OOM_SCORE & draft.report.asked, lacks);
    if stays.any() {
        let why = format!(
            "{lacks}, and the OOM killer then ends the process first that watches the deadlines and writes the exit status"
        );
        draft.report.weaken((Control::DEADLINES | Control::EXIT_RECORD) & draft.report.asked, why);
    }
}

/// Adds to the report how the task can keep the process that writes its exit record from writing it: by its resource limits,
/// and, in the host's PID namespace, by a signal or its OOM score. PID 1 of a namespace gets no signal from inside.
/// `same_user` says whether that process has the task's user.
pub(super) fn silences(
    spec: &SandboxSpec,
    sets: Sets,
    ns: &Namespaces,
    (filters, domain, outside): (&Filters, Domain, bool),
    (identity, same_user): (&Identity, bool),
    draft: &mut Draft,
) {
    let may_limit = same_user || sets.bounding.has("setuid") || sets.bounding.has("sys_resource");
    if may_limit && !outside && filters.limits_others(ns) {
        draft.report.weaken(
            Control::EXIT_RECORD & draft.report.asked,
            "prlimit64(2) for another process is allowed: the task can forbid the process that writes its exit status to write files, and the status is then lost",
        );
    }
    // Files of a process that is not dumpable belong to user 0.
    let owner = identity.uid == 0 || sets.bounding.has("setuid") || sets.bounding.has("dac_override");
    if ns.pid == IsolationMode::Host && spec.user_namespaces && !ns.user && owner {
        draft.report.weaken(
            Control::EXIT_RECORD & draft.report.asked,
            "/proc shows the host's processes and is writable (user_namespaces): the task can make the process that writes its exit status the first victim of the OOM killer, and the status is then lost",
        );
    }
    let may_signal = same_user || sets.bounding.has("kill") || sets.bounding.has("setuid");
    if ns.pid == IsolationMode::Host && may_signal && !domain.keeps_signals() {
        draft.report.weaken(
            Control::EXIT_RECORD & draft.report.asked,
            "the task shares the host's PID namespace: it can kill the process that writes its exit status, which is then lost",
        );
    }
}

/// Adds to the report what a task can do through the calls that its filter allows: keep itself from ending, if no process
/// of init is the parent of its command or of an additional one, and hold up processes of the host, also those that have its
/// `streams`.
pub(super) fn calls(filters: &Filters, stays: Stays, streams: [&Stdio; 3], draft: &mut Draft) {
    let holds_pipes = filters.allows("splice", None)
        || ["sendfile", "sendfile64"].iter().any(|call| filters.allows(call, Some((SENDFILE_OFFSET, 0))));
    if holds_pipes && streams.contains(&&Stdio::Log) {
        draft.report.weaken(
            (Control::DEADLINES | Control::KILL | Control::EXIT_RECORD) & draft.report.asked,
            "splice(2) or sendfile(2) is allowed: with them the task can keep the process that copies its log waiting in the kernel, where no signal ends it",
        );
    } else if holds_pipes && streams.contains(&&Stdio::Piped) {
        draft.report.note(
            Control::KILL & draft.report.asked,
            "splice(2) or sendfile(2) is allowed: with them the task can keep a process that reads or writes one of its pipes waiting in the kernel, where no signal ends it",
        );
    }
    // An additional command in the host's PID namespace has no process of init beside it.
    let child_of_caller = match stays {
        Stays::No => Some("the command"),
        Stays::Beside => Some("an additional command (exec)"),
        Stays::Pid1 | Stays::Outside => None,
    };
    if let Some(command) = child_of_caller
        && filters.allows("ptrace", Some((0, PTRACE_TRACEME)))
    {
        let why = format!(
            "ptrace(PTRACE_TRACEME) is allowed, and {command} is a child of the caller: a traced thread that has ended keeps the command from ending"
        );
        draft.report.weaken(Control::KILL & draft.report.asked, why);
    }
    if filters.allows("fcntl", Some((1, SETLEASE))) {
        draft.report.note(
            Control::HOST_FILES,
            "the task can take leases of files (fcntl(2), F_SETLEASE): another process that opens such a file waits for up to 45 seconds",
        );
    }
}

/// Adds to the report for which processes of the task the kernel does not apply its resource limits. `root` says whether the
/// task is, or can become, the host's user 0.
pub(super) fn unlimited(spec: &SandboxSpec, sets: Sets, (user_ns, root): (bool, bool), draft: &mut Draft) {
    if user_ns {
        return;
    }
    let any = |names: &[&str]| names.iter().any(|name| sets.bounding.has(name));
    for (resource, exempt, why) in [
        (
            Resource::Nproc,
            root || any(&["sys_admin", "sys_resource"]),
            "user 0 and processes with CAP_SYS_ADMIN or CAP_SYS_RESOURCE",
        ),
        (Resource::Memlock, any(&["ipc_lock"]), "processes with CAP_IPC_LOCK"),
        (Resource::Nice, any(&["sys_nice"]), "processes with CAP_SYS_NICE"),
        (Resource::Rtprio, any(&["sys_nice"]), "processes with CAP_SYS_NICE"),
    ] {
        if exempt && spec.rlimits.contains_key(&resource) {
            draft.report.weaken(
                Control::RLIMITS,
                format!("{resource} does not limit {why}, and the task can have some"),
            );
        }
    }
}

/// Adds to the report which enforced controls the granted capabilities weaken. `outside` says whether the process that
/// watches the deadlines and writes the exit record is outside of the task's PID namespace.
pub(super) fn weaken(
    policy: &Policy,
    sets: Sets,
    ns: &Namespaces,
    (filters, domain, outside): (&Filters, Domain, bool),
    draft: &mut Draft,
) {
    let Namespaces { user: user_ns, pid, network, .. } = ns;
    let (user_ns, pid) = (*user_ns, *pid);
    let has = |name: &str| sets.bounding.has(name);
    if policy.no_pivot_root && has("sys_chroot") {
        draft.report.weaken(
            Control::ROOT_SWITCH,
            "no_pivot_root keeps the host's mounts below the root, and with CAP_SYS_CHROOT the task can escape from the chroot",
        );
    } else if policy.no_pivot_root {
        draft.report.note(
            Control::ROOT_SWITCH,
            "no_pivot_root keeps the host's mounts in the mount namespace, below the root",
        );
    }
    if pid == IsolationMode::Host && has("kill") && !user_ns && !domain.keeps_signals() {
        draft.report.note(Control::PID_NS, "the task has CAP_KILL: it can kill any process of the host");
    }
    if pid == IsolationMode::Host && has("sys_admin") && !user_ns {
        draft.report.weaken(
            Control::KILL & draft.report.asked,
            "the task has CAP_SYS_ADMIN in the host's PID namespace: it can mount the cgroup file system and leave its cgroups, and processes that have left them are not killed",
        );
    }
    if user_ns {
        // Capabilities have no effect outside of the task's user namespace. But the sandbox's mounts belong to that
        // namespace.
        if has("sys_admin") {
            draft.report.weaken(
                Control::HOST_FILES | Control::MASKED_PATHS | (Control::DEADLINES & draft.report.asked),
                "the task has CAP_SYS_ADMIN in its user namespace: it can make read-only mounts writable and unmount the masks",
            );
        }
        if has("sys_ptrace") && !domain.keeps_traces() {
            draft.report.weaken(
                (Control::PID_NS | if outside { Control::empty() } else { BY_PID1 }) & draft.report.asked,
                "the task has CAP_SYS_PTRACE in its user namespace: it can trace and control PID 1",
            );
        }
        return;
    }
    if has("setuid") || has("setgid") {
        let why = "the task has CAP_SETUID or CAP_SETGID: it can become any user or group";
        match policy.denied_host_uids.is_empty() && policy.denied_host_gids.is_empty() {
            true => draft.report.note(Control::IDS, why),
            false => draft.report.weaken(Control::IDS, format!("{why}, including denied ones")),
        }
    }
    for (name, does) in MACHINE.into_iter().filter(|(name, _)| has(name)) {
        let name = name.to_ascii_uppercase();
        draft.report.note(
            Control::CAPS,
            format!("the task has CAP_{name}, which no namespace confines: it can {does}"),
        );
    }
    if has("sys_boot") && (filters.allows("kexec_load", None) || filters.allows("kexec_file_load", None)) {
        draft.report.weaken(
            draft.report.asked,
            "the task has CAP_SYS_BOOT: it can boot another kernel with kexec_load(2)",
        );
    } else if has("sys_boot") && pid == IsolationMode::Host {
        draft.report.weaken(
            draft.report.asked,
            "the task has CAP_SYS_BOOT in the host's PID namespace: it can reboot the machine",
        );
    }
    // A task with an empty network namespace of its own can affect no other process's network.
    let alone = |name: &str| *network == Network::None && name.starts_with("net_");
    // In a Landlock domain the task can trace only its own processes.
    let alone = |name: &str| alone(name) || (name == "sys_ptrace" && domain.keeps_traces());
    for (name, controls, why) in BREACHES.into_iter().filter(|(name, ..)| has(name) && !alone(name)) {
        let unseen = if name == "sys_ptrace" && outside { BY_PID1 } else { Control::empty() };
        let controls = controls.difference(unseen) & draft.report.asked;
        if !controls.is_empty() {
            draft.report.weaken(controls, why);
        } else {
            draft.report.note(Control::CAPS, why);
        }
    }
}
