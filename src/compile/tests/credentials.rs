//! Capabilities: which are granted, which the caller cannot grant, and which controls they weaken.

use super::*;
use crate::filter::{Arch, Call, Filter, Grants, Profile};

/// A task of user `uid` that adds and drops capabilities under a policy that allows all.
fn task(uid: u32, add: &[&str], drop: &[&str]) -> Case {
    case(|c| {
        c.policy.allow_caps = Some(strings(&["all"]));
        c.spec.cap_add = strings(add);
        c.spec.cap_drop = strings(drop);
        c.survey.identity = who(uid, &[uid]);
    })
}

/// The default profile refuses every call that the filter for tasks without it refuses, so one of them is enough.
#[test]
fn the_default_profile_refuses_user_namespaces_as_the_common_filter_does() {
    let some = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let mut refused = 0;
    for capabilities in [some(&[]), some(&["dac_read_search"]), some(&["sys_chroot", "sys_ptrace"])] {
        for (init, host_processes) in [(true, false), (false, true)] {
            let grants = Grants {
                capabilities: Clone::clone(&capabilities),
                init,
                host_processes,
                ..Grants::default()
            };
            let programs = [super::super::filter::no_user_namespaces(&grants), Profile::default()];
            let [common, default] =
                programs.map(|profile| crate::filter::compile(&profile, &grants).unwrap());
            let calls = Arch::ALL.into_iter().flat_map(|arch| (0..600).map(move |number| (arch, number)));
            let flags = (0..64).map(|bit| 1 << bit).chain([0, 0x1002_0000, 0x7e02_0011, u64::MAX]);
            for ((arch, number), flags) in
                calls.flat_map(|call| flags.clone().map(move |flags| (call, flags)))
            {
                let call = Call { arch, number, args: [flags; 6] };
                if !common.decide(&call).executes() {
                    refused += 1;
                    assert!(!default.decide(&call).executes(), "{call:?}");
                }
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}

#[test]
fn the_five_capability_sets_follow_the_user_and_the_lists() {
    let sets = |permitted: &str, inheritable: &str, ambient: &str| {
        let raise = match ambient {
            "0x0" => "! PR_CAP_AMBIENT_RAISE".to_owned(),
            bits => format!("prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, each of {bits})"),
        };
        format!(
            "prctl(PR_CAPBSET_DROP, all but {permitted})
             capset(effective={permitted}, permitted={permitted}, inheritable={inheritable})
             prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
             {raise}
             weakened  none"
        )
    };
    let thirteen = "0xa80405fb";
    for (uid, add, drop, expected) in [
        (1000, &[][..], &[][..], sets(thirteen, thirteen, thirteen)),
        (1000, &["net_bind_service"], &["all"], sets("0x400", "0x400", "0x400")),
        (1000, &[], &["all"], sets("0x0", "0x0", "0x0")),
        (1000, &["CAP_NET_RAW"], &[], sets("0xa80425fb", "0xa80425fb", "0xa80425fb")),
        // Root gets its capabilities at execve(2), without inheritable and ambient sets.
        (0, &[], &[], sets(thirteen, "0x0", "0x0")),
        (0, &[], &["all"], sets("0x0", "0x0", "0x0")),
    ] {
        check(&task(uid, add, drop), &expected);
    }
}

#[test]
fn capabilities_must_be_allowed_by_the_policy_and_known_to_the_kernel() {
    let allowed = |allow: Option<&[&str]>, add: &[&str], drop: &[&str]| {
        case(|c| {
            c.policy.allow_caps = allow.map(strings);
            c.spec.cap_add = strings(add);
            c.spec.cap_drop = strings(drop);
        })
    };
    check(&allowed(Some(&["chown"]), &[], &[]), "prctl(PR_CAPBSET_DROP, all but 0x1)");
    check(&allowed(Some(&[]), &[], &[]), "prctl(PR_CAPBSET_DROP, all but 0x0)");
    let denied = "denied: policy does not allow the following capabilities";
    refused(&allowed(None, &["net_admin", "sys_time"], &[]), &format!("{denied}: net_admin, sys_time"));
    refused(&allowed(Some(&["chown"]), &["kill"], &[]), &format!("{denied}: kill"));
    let unknown = "configured with capabilities not supported by system";
    for (case, field) in [
        (allowed(Some(&["nope"]), &[], &[]), "allow_caps"),
        (allowed(None, &["nope"], &[]), "cap_add"),
        (allowed(None, &[], &["nope"]), "cap_drop"),
    ] {
        refused(&case, &format!("spec {field}: {field} {unknown}: nope"));
    }
    // A kernel with 38 capabilities: newer ones are neither granted nor dropped.
    let mut old = allowed(Some(&["all"]), &[], &[]);
    old.host.supported = CapSet::up_to(37);
    let plan = check(&old, "");
    let last = plan.init.iter().find_map(|step| match step.op().unwrap() {
        Op::Bounding { last, .. } => Some(last),
        _ => None,
    });
    assert_eq!(last, Some(37));
    old.spec.cap_add = strings(&["bpf"]);
    refused(&old, &format!("spec cap_add: cap_add {unknown}: bpf"));
}

#[test]
fn capabilities_that_the_caller_lacks_are_dropped_and_reported() {
    let without = |names: &[&str], host: Host| {
        case(|c| c.host = Host { held: host.held.difference(capabilities(names)), ..host })
    };
    let lacking = without(&["kill", "mknod"], host());
    check(
        &lacking,
        "prctl(PR_CAPBSET_DROP, all but 0xa00405db)
         capset(effective=0xa00405db, permitted=0xa00405db, inheritable=0xa00405db)
         prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, each of 0xa00405db)
         caps: the task does not get capabilities that the caller lacks: CAP_KILL, CAP_MKNOD",
    );
    // The report does not mention capabilities that were not asked for.
    check(&without(&["net_raw"], host()), "! that the caller lacks");
    // In a user namespace of its own a task can have every capability.
    check(
        &without(&["kill"], rootless()),
        "prctl(PR_CAPBSET_DROP, all but 0xa80405fb)\n! that the caller lacks",
    );
}

#[test]
fn root_keeps_capabilities_only_if_the_policy_says_so() {
    let keeps = |uid: u32| {
        let mut case = task(uid, &[], &["all"]);
        case.policy.root_keeps_caps = true;
        case
    };
    let said = "user 0 keeps capabilities 0 to 37 whatever cap_add and cap_drop say (root_keeps_caps is on in this host's policy)";
    check(
        &keeps(0),
        &format!(
            "prctl(PR_CAPBSET_DROP, all but 0x3fffffffff)
             capset(effective=0x3fffffffff, permitted=0x3fffffffff, inheritable=0x0)
             caps: {said}
             ! PR_CAP_AMBIENT_RAISE"
        ),
    );
    check(&keeps(1), &format!("prctl(PR_CAPBSET_DROP, all but 0x0)\n! {said}"));
    // They include capabilities that defeat every control.
    let plan = check(&keeps(0), "enforced  none");
    assert!(plan.report.weakened.contains(Control::all() & plan.report.asked));
    let mut held = keeps(0);
    held.host.held = CapSet::up_to(40).difference(capabilities(&["sys_module"]));
    check(&held, "prctl(PR_CAPBSET_DROP, all but 0x3ffffeffff)\n! can load kernel modules");
}

#[test]
fn capabilities_that_defeat_a_control_weaken_it() {
    let admin = "the task has CAP_SYS_ADMIN: it can make read-only mounts writable and mount the host's block devices";
    let read = "the task has CAP_DAC_READ_SEARCH: it can open files outside its root with \
                open_by_handle_at(2), and write to them through a writable mount of their file system";
    let module = "the task has CAP_SYS_MODULE: it can load kernel modules";
    let rawio = "the task has CAP_SYS_RAWIO: it can access I/O ports, and send raw commands to disks \
                 that it can open";
    let perfmon = "the task has CAP_PERFMON: it can observe the kernel and every process of the host with perf_event_open(2)";
    let bpf = "the task has CAP_BPF: it can load BPF programs into the kernel, which with CAP_PERFMON can read all kernel memory";
    let syslog =
        "the task has CAP_SYSLOG: it can read and clear the kernel log (dmesg), and sees kernel addresses";
    let resource =
        "the task has CAP_SYS_RESOURCE: it can raise its resource limits and lower its oom_score_adj";
    let admin_net = "the task has CAP_NET_ADMIN: it can reconfigure its network namespace";
    let raw = "the task has CAP_NET_RAW: it can read and forge packets in its network namespace";
    let time = "the task has CAP_SYS_TIME, which no namespace confines: it can set the system clock";
    let ptrace = "the task has CAP_SYS_PTRACE: it can trace and control any process that it sees";
    let all = "mount_ns,pid_ns,ipc_ns,root_switch,host_files,masked_paths,devices,ids,caps,no_new_privs,oom_score,kill,no_user_ns,syscalls";
    for (names, weakened, whys) in [
        (&["sys_admin"][..], "root_switch,host_files,masked_paths,devices", &[admin][..]),
        (&["dac_read_search"], "root_switch,host_files", &[read]),
        (&["sys_rawio"], "root_switch,host_files,devices", &[rawio]),
        (&["sys_ptrace"], "pid_ns", &[ptrace]),
        (&["sys_module"], all, &[module]),
        // Every capability's reason is in the report, even if another capability weakens the same control.
        (&["sys_rawio", "sys_admin"], "root_switch,host_files,masked_paths,devices", &[admin, rawio]),
        (&["perfmon"], "pid_ns,masked_paths", &[perfmon]),
        (&["bpf"], "masked_paths", &[bpf]),
        (&["syslog"], "masked_paths", &[syslog]),
        (&["sys_resource"], "oom_score", &[resource]),
        // There is no control for what these capabilities affect. The report names them nevertheless.
        (&["net_admin", "net_raw", "sys_time"], "none", &[admin_net, raw, time]),
    ] {
        let plan = check(&task(1000, names, &[]), &format!("weakened  {weakened}"));
        let said: Vec<&str> = plan.report.reasons.iter().map(|r| r.why.as_str()).collect();
        // Three remarks about default capabilities are always in the report.
        let named = said.iter().filter(|why| why.starts_with("the task has")).count();
        assert_eq!(named, whys.len().saturating_add(3), "{said:?}");
        assert!(whys.iter().all(|why| said.contains(why)), "{said:?}");
        // The task runs with best effort, and is refused if everything is required.
        let strict = |require| {
            let mut case = task(1000, names, &[]);
            case.spec.require = Some(require);
            compiled(&case).map(drop)
        };
        let [why, ..] = *whys else { continue };
        if weakened == "none" {
            continue;
        }
        let error = strict(Require::Full).unwrap_err();
        assert!(
            error.starts_with("unsupported: this host cannot enforce ") && error.contains(why),
            "{error}"
        );
        assert_eq!(strict(Require::BestEffort), Ok(()));
    }
}

/// A capability does not weaken a control if the default filter refuses the call that it permits.
#[test]
fn the_default_filter_makes_cap_sys_boot_harmless() {
    let boot = |filter: Filter, pid: &str| {
        let mut case = task(1000, &["sys_boot"], &[]);
        (case.spec.filter, case.spec.pid_mode) = (filter, mode(pid));
        case
    };
    check(&boot(Filter::Default, "private"), "weakened  none\n! CAP_SYS_BOOT");
    for (filter, pid, why) in [
        (Filter::Default, "host", "CAP_SYS_BOOT in the host's PID namespace: it can reboot the machine"),
        (Filter::None, "private", "CAP_SYS_BOOT: it can boot another kernel with kexec_load(2)"),
    ] {
        let report = compiled(&boot(filter, pid)).unwrap().report;
        assert!(report.why(Control::HOST_FILES).contains(why), "{report}");
        assert!(report.enforced.is_empty(), "{report}");
    }
}

#[test]
fn sys_ptrace_in_a_shared_pid_namespace_is_reported() {
    let mut shared = task(1000, &["sys_ptrace"], &[]);
    shared.spec.pid_mode = mode("host");
    check(
        &shared,
        "weakened  root_switch,host_files,masked_paths,devices,kill
         ...",
    );
    let said = "the task has CAP_SYS_PTRACE: it can trace and control any process that it sees";
    assert!(check(&shared, "").report.why(Control::CAPS).contains(said));
    // Network capabilities in an empty network namespace affect no other process.
    let mut alone = task(1000, &["net_admin", "net_raw"], &[]);
    alone.spec.network = crate::ns::Network::None;
    check(&alone, "weakened  none\n! CAP_NET_");
}

/// Sets both deadlines, on a host that counts CPU time.
fn deadlines(case: &mut Case) {
    let time = Some(std::time::Duration::from_secs(60));
    (case.spec.deadline, case.spec.cpu_deadline) = (time, time);
    case.host.cgroups = super::v2("");
}

/// A task that can trace PID 1 can stop it, and with it the timer.
#[test]
fn sys_ptrace_without_a_landlock_domain_weakens_the_deadline() {
    for host in [host(), rootless()] {
        let mut case = task(1000, &["sys_ptrace"], &[]);
        case.host = host;
        deadlines(&mut case);
        let report = compiled(&case).unwrap().report;
        assert!(report.weakened.contains(Control::DEADLINES), "{report}");
        case.host.landlock_abi = 7;
        let report = compiled(&case).unwrap().report;
        assert!(report.enforced.contains(Control::DEADLINES), "{report}");
    }
}

/// With a cgroup namespace of its own it could mount the cgroup file system, move PID 1 and freeze it.
#[test]
fn a_task_with_user_namespaces_gets_no_cgroup_namespace() {
    let mut case = task(1000, &[], &["all"]);
    case.spec.user_namespaces = true;
    deadlines(&mut case);
    let report = check(&case, "# filter of PID 1 and the task").report;
    assert!(report.enforced.contains(Control::DEADLINES | Control::KILL), "{report}");
    case.spec.cap_add = vec!["sys_admin".into()];
    case.policy.allow_caps = Some(strings(&["all"]));
    let report = check(&case, "! # filter of PID 1 and the task").report;
    assert!(report.why(Control::DEADLINE).contains("mount the cgroup file system"), "{report}");
    assert!(
        report.weakened.contains(Control::DEADLINE) && report.enforced.contains(Control::KILL),
        "{report}"
    );
    case.host.cgroups = v1();
    case.spec.cpu_deadline = None;
    let report = compiled(&case).unwrap().report;
    assert!(report.weakened.contains(Control::DEADLINE | Control::KILL), "{report}");
}

#[test]
fn a_task_that_can_delay_pid_1_is_told_in_the_report() {
    let timed = |add: &[&str], drop: &[&str]| {
        let mut case = task(1000, add, drop);
        deadlines(&mut case);
        compiled(&case).unwrap().report
    };
    let report = timed(&["sys_nice"], &[]);
    assert!(report.weakened.contains(Control::DEADLINES), "{report}");
    let report = timed(&["sys_resource"], &["all"]);
    assert!(report.weakened.contains(Control::DEADLINES), "{report}");
    // The default profile refuses what changes PID 1.
    for drop in [&[][..], &["all"][..]] {
        let report = timed(&[], drop);
        assert!(report.enforced.contains(Control::DEADLINES), "{report}");
    }
    for (drop, delays) in [(&[][..], true), (&["all"][..], false)] {
        let mut case = task(1000, &[], drop);
        deadlines(&mut case);
        case.spec.filter = Filter::None;
        let report = compiled(&case).unwrap().report;
        assert_eq!(report.weakened.contains(Control::DEADLINES), delays, "{report}");
        assert_eq!(report.why(Control::DEADLINE).contains("lower the priority of PID 1"), delays, "{report}");
    }
}

#[test]
fn a_task_that_can_hold_the_lock_of_a_pipe_is_told_in_the_report() {
    let piped = |filter: Filter, stdout: Stdio| {
        let mut case = task(1000, &[], &["all"]);
        deadlines(&mut case);
        case.policy.state_dir = Some("/var/lib/state".into());
        (case.spec.filter, case.spec.stdout) = (filter, stdout);
        compiled(&case).unwrap().report
    };
    let held = "waiting in the kernel, where no signal ends it";
    for stdout in [Stdio::Log, Stdio::Piped] {
        let report = piped(Filter::Default, stdout);
        assert!(!report.to_string().contains(held), "{report}");
    }
    let report = piped(Filter::None, Stdio::Log);
    assert!(report.weakened.contains(Control::DEADLINES | Control::KILL | Control::EXIT_RECORD), "{report}");
    assert!(report.why(Control::KILL).contains(held), "{report}");
    let report = piped(Filter::None, Stdio::Piped);
    assert!(report.enforced.contains(Control::KILL) && report.why(Control::KILL).contains(held), "{report}");
    assert!(!piped(Filter::None, Stdio::Null).to_string().contains(held));
}

/// The kernel applies shares and quotas to processes of the fair scheduler only.
#[test]
fn a_task_that_may_run_real_time_processes_weakens_its_limits_of_cpu_time() {
    let limited = |set: &dyn Fn(&mut Case)| {
        let mut case = task(1000, &[], &["all"]);
        case.spec.limits.cpu_shares = Some(1024);
        case.spec.limits.cpu_max = Some(crate::cgroup::CpuMax::new(10_000));
        set(&mut case);
        let report = compiled(&case).unwrap().report;
        let limits = Control::CPU | Control::CPU_MAX;
        assert!(report.asked.contains(limits), "{report}");
        (report.weakened.contains(limits), report.enforced.contains(limits))
    };
    let rtprio = |hard| Rlimit { soft: Some(0), hard: Some(hard) };
    assert_eq!(limited(&|_| ()), (false, true));
    assert_eq!(limited(&|case| case.spec.cap_add = vec!["sys_nice".into()]), (true, false));
    assert_eq!(limited(&|case| case.spec.cap_add = vec!["sys_resource".into()]), (true, false));
    assert_eq!(limited(&|case| case.spec.rlimits = [(Resource::Rtprio, rtprio(50))].into()), (true, false));
    assert_eq!(limited(&|case| case.spec.rlimits = [(Resource::Rtprio, rtprio(0))].into()), (false, true));
}

#[test]
fn a_limit_of_real_time_priorities_is_not_inherited() {
    let mut case = task(1000, &[], &["all"]);
    check(&case, "! RLIMIT_RTPRIO");
    case.survey.real_time = true;
    check(&case, "prlimit64(0, RLIMIT_RTPRIO, {0, 0})");
    case.spec.rlimits = [(Resource::Rtprio, Rlimit { soft: Some(5), hard: Some(5) })].into();
    check(&case, "prlimit64(0, RLIMIT_RTPRIO, {5, 5})\n! {0, 0}");
}

/// Without a pidfd of the caller, PID 1 outlives it. The order of the other steps is that of every plan.
#[test]
fn exit_record_is_written_by_pid_1_or_by_a_process_that_stays_in_its_place() {
    use crate::ns::IsolationMode::{Host, Private};
    use crate::spec::DieWith::{Driver, Survive};
    let mut case = task(1000, &[], &["all"]);
    case.policy.state_dir = Some("/var/lib/driver".into());
    for (die_with, pid, init, stays) in [
        (Driver, Private, true, true),
        (Survive, Private, true, true),
        (Driver, Host, true, true),
        (Survive, Host, false, true),
        (Driver, Private, false, true),
        (Survive, Private, false, true),
    ] {
        (case.spec.die_with, case.spec.pid_mode, case.spec.init) = (die_with, Some(pid), init);
        let plan = compiled(&case).unwrap();
        order::holds(&case, &plan);
        let text = plan.to_string();
        assert_eq!(text.contains("exit record \"/var/lib/driver/"), stays, "{text}");
        assert_eq!(text.contains("unlinkat(\"/var/lib/driver/"), stays, "{text}");
        let outside = pid == Private && !init;
        assert_eq!(text.contains("stay as PID 1"), stays && !outside, "{text}");
        assert_eq!(text.contains("stay outside of a new PID namespace"), stays && outside, "{text}");
        assert_eq!(plan.init.iter().any(|step| matches!(step.op(), Some(Op::ForkOutside { .. }))), outside);
        let dies = die_with == Driver && pid == Private;
        assert_eq!(text.contains("pidfd_open(this process)"), stays && dies, "{text}");
        assert_eq!(plan.report.missing.contains(Control::EXIT_RECORD), !stays, "{}", plan.report);
    }
    // Only CAP_KILL lets the process outside of the PID namespace kill the command, which may have any user.
    (case.spec.die_with, case.spec.pid_mode, case.spec.init) = (Driver, Some(Private), false);
    case.host.held = case.host.held.difference(CapSet::from_name("kill").unwrap());
    let plan = compiled(&case).unwrap();
    order::holds(&case, &plan);
    assert!(plan.report.missing.contains(Control::EXIT_RECORD), "{}", plan.report);
    assert!(plan.report.why(Control::EXIT_RECORD).contains("CAP_KILL"), "{}", plan.report);
    case.policy.state_dir = Some("driver".into());
    assert!(compiled(&case).is_err_and(|why| why.contains("state_dir")));
}

#[test]
fn sys_ptrace_without_a_landlock_domain_weakens_the_exit_record() {
    for host in [host(), rootless()] {
        let mut case = task(1000, &["sys_ptrace"], &[]);
        (case.host, case.policy.state_dir) = (host, Some("/var/lib/driver".into()));
        let report = compiled(&case).unwrap().report;
        assert!(report.weakened.contains(Control::EXIT_RECORD), "{report}");
        case.host.landlock_abi = 7;
        let report = compiled(&case).unwrap().report;
        assert!(report.enforced.contains(Control::EXIT_RECORD), "{report}");
    }
}

/// In a user namespace the task owns its mounts, and its other capabilities have no effect on the host.
#[test]
fn in_a_user_namespace_capabilities_weaken_only_the_tasks_own_mounts_and_processes() {
    let inside = |names: &[&str]| {
        let mut case = task(1000, names, &[]);
        case.host = rootless();
        case
    };
    check(
        &inside(&["sys_admin"]),
        "weakened  host_files,masked_paths
         host_files,masked_paths: the task has CAP_SYS_ADMIN in its user namespace: it can make read-only mounts \
         writable and unmount the masks",
    );
    check(&inside(&["sys_module", "sys_rawio", "dac_read_search"]), "weakened  none\n! the task has");
    check(
        &inside(&["sys_ptrace"]),
        "weakened  pid_ns
         pid_ns: the task has CAP_SYS_PTRACE in its user namespace: it can trace and control PID 1",
    );
}

/// A PID namespace ends with its PID 1, whatever cgroup its processes are in.
#[test]
fn sys_admin_weakens_the_kill_in_the_hosts_pid_namespace_only() {
    use crate::ns::IsolationMode::{Host, Private};
    for (pid, weak) in [(Private, false), (Host, true)] {
        let mut case = task(1000, &["sys_admin"], &[]);
        (case.host.landlock_abi, case.spec.pid_mode) = (7, Some(pid));
        let report = compiled(&case).unwrap().report;
        assert_eq!(report.weakened.contains(Control::KILL), weak, "{report}");
        assert_eq!(report.enforced.contains(Control::KILL), !weak, "{report}");
    }
}

/// Such a task could forbid PID 1 to write files.
#[test]
fn a_filter_that_allows_limits_for_pid_1_weakens_the_exit_record() {
    let mut case = task(1000, &["setuid"], &[]);
    case.policy.state_dir = Some("/var/lib/driver".into());
    let report = compiled(&case).unwrap().report;
    assert!(report.enforced.contains(Control::EXIT_RECORD), "{report}");
    (case.policy.allow_filters, case.spec.filter) = (true, crate::filter::Filter::None);
    let report = compiled(&case).unwrap().report;
    assert!(report.weakened.contains(Control::EXIT_RECORD), "{report}");
    assert!(report.why(Control::EXIT_RECORD).contains("prlimit64"), "{report}");
}

/// A task without privileges in the host's PID namespace, whose exit record a process beside it writes.
fn beside() -> Case {
    let mut case = task(1000, &[], &["all"]);
    case.policy.state_dir = Some("/var/lib/driver".into());
    (case.host.landlock_abi, case.spec.pid_mode) = (7, Some(crate::ns::IsolationMode::Host));
    case
}

/// The default profile with a rule before it.
fn own_filter(case: &mut Case, rule: &str) {
    let profile = format!(r#"{{"base": {{"action": "allow"}}, "rules": [{rule}]}}"#);
    case.policy.allow_filters = true;
    case.spec.filter = Filter::Profile(serde_json::from_str(&profile).unwrap());
}

/// The process beside the task has another PID than 1.
#[test]
fn a_filter_that_knows_pid_1_only_weakens_the_exit_record_in_the_hosts_pid_namespace() {
    let mut case = beside();
    let masked = r#"{"arg": 0, "is": "eq", "value": 1, "mask": 4294967295}"#;
    let refuse = format!(r#"{{"calls": ["prlimit64"], "args": [{masked}], "action": {{"errno": 1}}}}"#);
    own_filter(&mut case, &refuse);
    case.spec.cap_add = strings(&["setuid"]);
    let report = compiled(&case).unwrap().report;
    assert!(report.why(Control::EXIT_RECORD).contains("prlimit64"), "{report}");
    assert!(report.why(Control::KILL).contains("prlimit64"), "{report}");
    case.spec.pid_mode = None;
    let report = compiled(&case).unwrap().report;
    assert!(!report.why(Control::EXIT_RECORD).contains("prlimit64"), "{report}");
}

/// A command that joins such a task has no process of init beside it, which would reap a traced thread.
#[test]
fn allowed_tracing_weakens_the_kill_in_the_hosts_pid_namespace() {
    let mut case = beside();
    case.policy.allow_filters = true;
    assert!(!compiled(&case).unwrap().report.why(Control::KILL).contains("TRACEME"));
    case.spec.filter = Filter::None;
    let report = compiled(&case).unwrap().report;
    assert!(report.weakened.contains(Control::KILL), "{report}");
    assert!(report.why(Control::KILL).contains("an additional command (exec)"), "{report}");
}

/// /proc is writable then, and the file of a process that is not dumpable is user 0's.
#[test]
fn a_writable_proc_of_the_host_weakens_the_exit_record() {
    for (uid, add, weak) in [(1000, &[][..], false), (1000, &["dac_override"], true), (0, &[], true)] {
        let mut case = beside();
        case.survey.identity = who(uid, &[uid]);
        (case.spec.user_namespaces, case.spec.cap_add) = (true, strings(add));
        let report = compiled(&case).unwrap().report;
        assert_eq!(report.why(Control::EXIT_RECORD).contains("OOM killer"), weak, "{uid}: {report}");
        case.spec.user_namespaces = false;
        let report = compiled(&case).unwrap().report;
        assert!(!report.why(Control::EXIT_RECORD).contains("OOM killer"), "{uid}: {report}");
    }
}

/// The kernel remembers the score below which only CAP_SYS_RESOURCE leads, if a process with it has set the score.
#[test]
fn an_oom_score_of_a_caller_without_sys_resource_can_be_lowered_by_the_task() {
    let controls = Control::OOM_SCORE | Control::DEADLINES | Control::EXIT_RECORD;
    for (held, score, weak) in [
        (&[][..], Some(1000), false),
        (&["sys_resource"], Some(1000), true),
        (&["sys_resource"], None, false),
    ] {
        let mut case = task(1000, &[], &["all"]);
        case.policy.state_dir = Some("/var/lib/driver".into());
        case.host.held = CapSet::up_to(40).difference(capabilities(held));
        case.spec.oom_score_adj = score;
        case.spec.deadline = Some(std::time::Duration::from_secs(1));
        let report = compiled(&case).unwrap().report;
        let expected = if weak { controls } else { Control::empty() };
        assert_eq!(report.weakened & (controls | Control::DEADLINES), expected & report.asked, "{report}");
        assert!(report.asked.contains(Control::OOM_SCORE | Control::EXIT_RECORD));
    }
}
