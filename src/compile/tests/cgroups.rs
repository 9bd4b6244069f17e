//! Resource limits on every kind of host, the required controllers, and the required controls.

use super::*;
use crate::cgroup::{Limits, MemoryMax};

const MB: u64 = 1 << 20;

fn limits() -> Limits {
    Limits {
        cpu_shares: Some(512),
        cores: "0-1".parse().unwrap(),
        memory: Some(64 * MB),
        pids_max: Some(9),
        ..Limits::default()
    }
}

/// Limits on a host, with best effort: limits that cannot be set are missing in the report.
fn limited(cgroups: Detection) -> Case {
    case(|c| {
        (c.host.cgroups, c.spec.limits) = (cgroups, limits());
        c.spec.require = Some(Require::BestEffort);
    })
}

#[test]
fn on_cgroup_v2_the_task_is_cloned_into_its_cgroup() {
    let plan = check(
        &limited(host().cgroups),
        "mkdir(\"/sys/fs/cgroup/cofferdam.slice\", 0711)
         flock(\"/sys/fs/cgroup/cofferdam.slice\", LOCK_EX|LOCK_NB)
         write(\"/sys/fs/cgroup/cgroup.subtree_control\", \"+cpuset\")...
         mkdir(\"/sys/fs/cgroup/cofferdam.slice/reserve.slice\", 0711)
         write(\"/sys/fs/cgroup/cofferdam.slice/share.slice/cpuset.cpus\", <unreserved CPUs>)...
         mkdir(\"/sys/fs/cgroup/cofferdam.slice/reserve.slice/box.scope\", 0711)
         write(\"/sys/fs/cgroup/cofferdam.slice/reserve.slice/box.scope/cpuset.cpus\", <CPUs 0-1 and unreserved CPUs>)
         write(\"/sys/fs/cgroup/cofferdam.slice/cgroup.subtree_control\", \"+memory\")
         write(\"/sys/fs/cgroup/cofferdam.slice/reserve.slice/cgroup.subtree_control\", \"+memory\")
         write(\"/sys/fs/cgroup/cofferdam.slice/reserve.slice/box.scope/cpu.weight\", \"59\")
         write(\"/sys/fs/cgroup/cofferdam.slice/reserve.slice/box.scope/memory.swap.max\", \"0\")
         write(\"/sys/fs/cgroup/cofferdam.slice/reserve.slice/box.scope/memory.max\", \"67108864\")
         write(\"/sys/fs/cgroup/cofferdam.slice/reserve.slice/box.scope/pids.max\", \"10\")
         memfd_create(\"cofferdam-plan\")
         clone3(CLONE_VM|CLONE_VFORK|CLONE_PIDFD|CLONE_CLEAR_SIGHAND|CLONE_NEWNS|CLONE_NEWPID|CLONE_NEWIPC|CLONE_INTO_CGROUP)
         missing   none
         ! # enter the cgroup",
    );
    assert!(plan.report.enforced.contains(limits().asked() | Control::KILL), "{}", plan.report);
}

#[test]
fn on_cgroup_v1_init_enters_each_cgroup() {
    let plan = check(
        &limited(v1()),
        "mkdir(\"/sys/fs/cgroup/memory/cofferdam/box\", 0711)
         write(\"/sys/fs/cgroup/memory/cofferdam/box/memory.limit_in_bytes\", \"67108864\")
         clone3(CLONE_VM|CLONE_VFORK|CLONE_PIDFD|CLONE_CLEAR_SIGHAND|CLONE_NEWNS|CLONE_NEWPID|CLONE_NEWIPC)
         # close all descriptors except the declared ones
         # enter the cgroup of \"/sys/fs/cgroup/cpuset/cofferdam/reserve/box/tasks\"
         write(\"/sys/fs/cgroup/cpuset/cofferdam/reserve/box/tasks\", \"0\")
         # enter the cgroup of \"/sys/fs/cgroup/cpu/cofferdam/box/tasks\"
         # enter the cgroup of \"/sys/fs/cgroup/memory/cofferdam/box/tasks\"
         # enter the cgroup of \"/sys/fs/cgroup/pids/cofferdam/box/tasks\"
         # enter the cgroup of \"/sys/fs/cgroup/devices/cofferdam/box/tasks\"
         # enter the cgroup of \"/sys/fs/cgroup/freezer/cofferdam/box/tasks\"
         # stop mount propagation to the host
         missing   none
         ! CLONE_INTO_CGROUP",
    );
    let tasks = |h: &&Handed| matches!(h, Handed::Tasks(_));
    assert_eq!(plan.handed().filter(tasks).count(), 6);
    // A cgroup namespace is made after all cgroups are entered.
    let mut hidden = limited(v1());
    hidden.spec.cgroup_namespace = Some(true);
    check(&hidden, "# enter the cgroup of \"/sys/fs/cgroup/freezer...\nwrite(...\nunshare(CLONE_NEWCGROUP)");
    // Without limits and a device cgroup there is one cgroup, which is used to kill the task.
    let unlimited = case(|c| (c.host.cgroups, c.spec.device_cgroup) = (v1(), Some(false)));
    check(
        &unlimited,
        "# enter the cgroup of \"/sys/fs/cgroup/cpuset/cofferdam/share/tasks\"\nwrite(...\n# enter the cgroup of \"/sys/fs/cgroup/freezer...\n! /memory/\n! /cpu/\n! /pids/\n! /devices/",
    );
}

#[test]
fn a_hybrid_host_uses_both_cgroup_versions() {
    check(
        &limited(hybrid()),
        "mkdir(\"/sys/fs/cgroup/unified/cofferdam.slice/reserve.slice/box.scope\", 0711)
         mkdir(\"/sys/fs/cgroup/memory/cofferdam/box\", 0711)
         clone3(CLONE_VM|CLONE_VFORK|CLONE_PIDFD|CLONE_CLEAR_SIGHAND|CLONE_NEWNS|CLONE_NEWPID|CLONE_NEWIPC|CLONE_INTO_CGROUP)
         # enter the cgroup of \"/sys/fs/cgroup/memory/cofferdam/box/tasks\"
         missing   none
         ! freezer",
    );
}

/// The v2 leaf counts CPU time without a controller. A host without a v2 tree needs `cpuacct`.
#[test]
fn cpu_time_is_counted_in_the_v2_leaf_or_by_cpuacct() {
    let timed = |cgroups| {
        case(|c| {
            (c.host.cgroups, c.spec.cpu_deadline) = (cgroups, Some(std::time::Duration::from_millis(1500)))
        })
    };
    for (cgroups, counter) in [
        (hybrid(), "/sys/fs/cgroup/unified/cofferdam.slice/share.slice/box.scope/cpu.stat"),
        (v2(""), "/sys/fs/cgroup/cofferdam.slice/share.slice/box.scope/cpu.stat"),
    ] {
        let plan = check(
            &timed(cgroups),
            &format!(
                "openat(AT_FDCWD, {counter:?}, O_RDONLY|O_CLOEXEC)
                 # deadline of the task's CPU time
                 pread64({counter:?})
                 timerfd_settime(timer, 0, what is left of 1.5s on 4 CPUs)
                 # stay as PID 1..."
            ),
        );
        assert!(plan.report.enforced.contains(Control::CPU_DEADLINE), "{}", plan.report);
    }
    let mut cpuacct = v1();
    let cpu = cpuacct.v1["cpu"].clone();
    cpuacct.v1.insert("cpuacct".into(), cpu);
    let counter = "/sys/fs/cgroup/cpu/cofferdam/box/cpuacct.usage";
    check(
        &timed(cpuacct),
        &format!("openat(AT_FDCWD, {counter:?}, O_RDONLY|O_CLOEXEC)\npread64({counter:?})"),
    );
    let refused = compiled(&timed(v1())).unwrap_err();
    assert!(refused.contains("the cpuacct controller of cgroup v1 is not available"), "{refused}");
}

/// If one required controller is missing, no limit is set at all, and the report names the controller.
#[test]
fn limits_are_all_or_nothing() {
    for (controllers, lacking) in [
        ("cpuset io memory pids", "cpu"),
        ("cpu io memory pids", "cpuset"),
        ("cpu cpuset memory pids", "io"),
        ("cpu cpuset io pids", "memory"),
        ("cpu cpuset io memory", "pids"),
        ("memory pids", "cpu, cpuset, io"),
    ] {
        let plan = check(
            &limited(v2(controllers)),
            &format!(
                "mkdir(\"/sys/fs/cgroup/cofferdam.slice/share.slice/box.scope\", 0711)
                 missing   memory,swap,cpu,cpuset,pids
                 memory,swap,cpu,cpuset,pids: cgroup v2 controllers not available: {lacking}
                 ! write(\"/sys/fs/cgroup
                 ! weakened  kill"
            ),
        );
        // The task still has a cgroup, which is used to kill it.
        assert!(plan.report.enforced.contains(Control::KILL));
        let strict = |require: Option<Require>| {
            let mut case = limited(v2(controllers));
            case.spec.require = require;
            case
        };
        let why = format!("cgroup v2 controllers not available: {lacking}");
        let all = format!("unsupported: this host cannot enforce memory,swap,cpu,cpuset,pids: {why}");
        let named = [Control::PIDS, Control::CAPS | Control::KILL].map(|set| Some(set.into()));
        for require in [None, Some(Require::Asked), Some(Require::Full)].into_iter().chain(named) {
            refused(&strict(require), &all);
        }
        check(&strict(Some(Require::BestEffort)), "missing   memory,swap,cpu,cpuset,pids");
        let mut lenient = strict(None);
        lenient.policy.require = Some(Require::BestEffort);
        check(&lenient, "missing   memory,swap,cpu,cpuset,pids");
        // Best effort of the policy does not weaken what the spec requires.
        lenient.spec.require = Some(Require::Asked);
        refused(&lenient, &all);
        // A limit that was not asked for is not missing.
        let mut unlimited = strict(Some(Require::Full));
        unlimited.spec.limits = Limits::default();
        check(&unlimited, "missing   none");
    }
}

/// On every kind of host, the report names a controller that is hidden, and no limit is set.
#[test]
fn hiding_a_required_controller_turns_limits_off() {
    for (host, version, names) in [
        (v1 as fn() -> Detection, "v1", &["cpu", "cpuset", "freezer", "memory"][..]),
        (hybrid, "v1", &["cpu", "cpuset", "freezer", "memory"]),
        (|| host().cgroups, "v2", &["cpu", "cpuset", "io", "blkio", "memory", "pids"]),
    ] {
        for name in names {
            let lacking = if *name == "blkio" { "io" } else { name };
            let plan = check(
                &limited(host().without(name)),
                &format!(
                    "missing   memory,swap,cpu,cpuset,pids
                     memory,swap,cpu,cpuset,pids: cgroup {version} controllers not available: {lacking}
                     ! subtree_control
                     ! memory.
                     ! cpuset.
                     ! pids.max"
                ),
            );
            assert!(plan.report.enforced.contains(Control::KILL), "{}", plan.report);
        }
        // Controllers that no limit needs, and unknown ones, can be hidden without effect.
        for name in ["net_prio", "devices", "nonsense"] {
            check(&limited(host().without(name)), "missing   none");
        }
    }
    check(
        &limited(off().without("memory")),
        "missing   memory...\nmemory,swap,cpu,cpuset,pids: no cgroup...",
    );
}

/// The operator requires all twelve documented controllers.
#[test]
fn the_policy_may_require_all_documented_controllers() {
    use crate::cgroup::{CONTROLLERS, Controller, Where};
    // A host whose kernel has all controllers enabled.
    let with = |mut found: Detection| {
        let enabled = |name: &str| Controller {
            name: name.to_owned(),
            place: Where::Nowhere,
            available: true,
            enabled: true,
            active: false,
            delegated: false,
            why: None,
        };
        found.controllers = CONTROLLERS.map(enabled).into();
        found
    };
    let documented = |found: Detection| {
        let mut case = limited(found);
        case.policy.required_controllers = RequiredControllers::Documented;
        case
    };
    let whole = || with(host().cgroups);
    check(&documented(whole()), "missing   none");
    check(
        &documented(whole().without("net_cls").without("hugetlb")),
        "
        missing   memory,swap,cpu,cpuset,pids
        memory,swap,cpu,cpuset,pids: cgroup v2 controllers not available: hugetlb, net_cls (excluded by the caller)
        ! write(\"/sys/fs/cgroup",
    );
    // On cgroup v1 blkio must be mounted; here it is not.
    check(&documented(with(v1())), "memory,swap,cpu,cpuset,pids: cgroup v1 controllers not available: blkio");
    check(&limited(whole().without("net_cls")), "missing   none");
    let mut case = documented(whole().without("net_cls"));
    case.spec.require = Some(Control::MEMORY.into());
    let all = "unsupported: this host cannot enforce memory,swap,cpu,cpuset,pids: cgroup v2 controllers not available: net_cls (excluded by the caller)";
    refused(&case, all);
    // The policy requires another set of controllers than the one that the host was probed with.
    let case =
        limited(whole().without("net_cls").requiring(RequiredControllers::Documented, Control::empty()));
    check(&case, "missing   none");
}

#[test]
fn without_cgroups_no_limit_is_set() {
    check(
        &limited(off()),
        "missing   memory,swap,cpu,cpuset,pids
         memory,swap,cpu,cpuset,pids: no cgroup hierarchy is mounted
         ! mkdir(
         ! CLONE_INTO_CGROUP
         ! # enter the cgroup",
    );
    // The kernel kills all processes of a PID namespace.
    let mut private = case(|c| c.host.cgroups = off());
    check(&private, "weakened  none\nmissing   none");
    private.spec.pid_mode = mode("host");
    check(
        &private,
        "weakened  root_switch,host_files,masked_paths,devices,kill
         kill: only the main process is killed, because the task has neither a PID namespace nor a cgroup: cgroup v2 is not mounted, and the freezer controller of cgroup v1 is not available",
    );
    private.spec.require = Some(Control::KILL.into());
    let error = compiled(&private).unwrap_err();
    assert!(
        error.starts_with("unsupported: this host cannot enforce kill: only the main process"),
        "{error}"
    );
    // With a cgroup all processes of the task are killed. KILL is still weakened by access to `/proc/PID/root`.
    let shared = case(|c| c.spec.pid_mode = mode("host"));
    let report = check(&shared, "! only the main process").report;
    assert!(report.why(Control::KILL).contains("/proc/PID/root"), "{report}");
}

#[test]
fn without_delegation_no_limit_is_set() {
    let mut case = limited(rootless().cgroups);
    case.host = rootless();
    let why = "cgroup /user.slice is not delegated: its cgroup.procs cannot be written";
    let expected =
        format!("missing   memory,swap,cpu,cpuset,pids\nmemory,swap,cpu,cpuset,pids: {why}\n! mkdir(");
    check(&case, &expected);
}

#[test]
fn cgroups_are_made_below_the_configured_parent() {
    let below = |parent: &str, id: &str| {
        case(|c| {
            c.policy.cgroup_parent = CgroupPath::new(parent).unwrap();
            c.spec.id = Some(id.into());
        })
    };
    check(
        &below("/ops/jobs", "a"),
        "mkdir(\"/sys/fs/cgroup/ops/jobs/share.slice/a.scope\", 0711)\n! cofferdam.slice",
    );
    let error = compiled(&below("", "tasks")).unwrap_err();
    assert!(error.starts_with("spec id: "), "{error}");
}

#[test]
fn invalid_limits_are_refused_on_every_host() {
    for (limits, field) in [
        (Limits { memory: Some(1), ..Limits::default() }, "memory"),
        (
            Limits { memory: Some(8 * MB), memory_max: Some(MemoryMax::Bytes(4 * MB)), ..Limits::default() },
            "memory_max",
        ),
        (Limits { pids_max: Some(0), ..Limits::default() }, "pids_max"),
    ] {
        // The limits are checked on a host without cgroups too.
        for cgroups in [host().cgroups, off()] {
            let mut case = limited(cgroups);
            case.spec.limits = limits.clone();
            let error = compiled(&case).unwrap_err();
            assert!(error.starts_with(&format!("spec limits.{field}: ")), "{error}");
        }
    }
}

#[test]
fn reserved_cpus_that_are_offline_weaken_cpuset() {
    let mut case = limited(host().cgroups);
    case.spec.limits.cores = "2-7".parse().unwrap();
    check(&case, "weakened  cpuset\ncpuset: only CPUs 2-3 of 2-7 are available on this host");
    case.spec.require = Some(Control::CPUSET.into());
    refused(
        &case,
        "unsupported: this host cannot enforce cpuset: only CPUs 2-3 of 2-7 are available on this host",
    );
    case.spec.require = Some(Control::MEMORY.into());
    check(&case, "weakened  cpuset");
    case.spec.require = Some(Require::BestEffort);
    case.spec.limits.cores = "8".parse().unwrap();
    check(&case, "missing   cpuset\ncpuset: CPUs 8 are not available on this host (available: 0-3)");
}

#[test]
fn without_core_partitions_cpuset_is_weakened() {
    let case = case(|c| {
        (c.host.cgroups, c.spec.limits) = (v1(), limits());
        c.policy.core_partitions = false;
    });
    check(
        &case,
        "write(\"/sys/fs/cgroup/cpuset/cofferdam/box/cpuset.cpus\", \"0-1\")
         weakened  cpuset
         cpuset: other tasks may use these CPUs: the policy does not reserve CPUs (core_partitions is false)
         ! cofferdam/share\n! cofferdam\", LOCK_EX",
    );
}

#[test]
fn a_required_control_must_be_asked_for() {
    let requires = |require: Require| case(|c| c.spec.require = Some(require));
    let unasked = "must be enforced, but the spec does not ask for it";
    for control in [Control::UTS_NS, Control::MEMORY, Control::RLIMITS, Control::CGROUP_NS, Control::NET_NS] {
        let expected = format!("spec require: require: {control} {unasked}");
        refused(&requires(control.into()), &expected);
    }
    // A remark about a shared namespace is not the reason given.
    let shared = case(|c| (c.spec.require, c.spec.pid_mode) = (Some(Control::PID_NS.into()), mode("host")));
    refused(&shared, &format!("spec require: require: pid_ns {unasked}"));
    // `Full` requires everything that the spec asks for.
    check(&requires(Require::Full), "weakened  none\nmissing   none");
    check(&requires(Require::BestEffort), "");
    check(&requires((Control::PID_NS | Control::CAPS | Control::ROOT_SWITCH | Control::KILL).into()), "");
}
