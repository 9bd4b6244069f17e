//! Which host paths a task may name, and what the report says about writable ones.

use super::*;
use crate::rootfs::{Propagation, TaskDirs};

fn volume(source: &str, read_only: bool) -> Case {
    case(|c| {
        c.survey.kinds.insert(source.into(), Some(FileKind::Dir));
        c.spec.volumes = vec![Volume {
            source: source.into(),
            target: "/v".into(),
            read_only,
            propagation: Propagation::Private,
        }];
        c.policy.temp_dir = Some("/var/tmp".into());
    })
}

#[test]
fn sources_must_be_below_an_allowed_source_root() {
    let allowed = |mut case: Case| {
        case.policy.allowed_source_roots = vec!["/srv".into(), "/data/shared".into()];
        case.survey.real.insert("/data/shared".into(), "/mnt/disk".into());
        case
    };
    check(&allowed(volume("/srv/a", false)), "");
    check(&allowed(volume("/mnt/disk/x", false)), "");
    let none = "is not below one of the policy's allowed_source_roots";
    refused(&allowed(volume("/etc", true)), &format!("denied: volumes: \"/etc\" {none}"));
    // Neither a path with a common prefix nor a symbolic link out of an allowed root is allowed.
    refused(&allowed(volume("/srvx", true)), &format!("denied: volumes: \"/srvx\" {none}"));
    let mut linked = allowed(volume("/srv/a", true));
    linked.survey.real.insert("/srv/a".into(), "/etc/shadow.d".into());
    refused(&linked, &format!("denied: volumes: \"/srv/a\" (which is \"/etc/shadow.d\") {none}"));
    for (field, set) in [
        ("root.path", (|s| s.root.path = Some("/usr".into())) as fn(&mut SandboxSpec)),
        ("root.chroot_env", |s| drop(s.root.chroot_env.insert("/usr".into(), "/usr".into()))),
        ("task_dirs", |s| s.task_dirs = TaskDirs { local: Some("/usr".into()), ..TaskDirs::default() }),
    ] {
        let mut case = allowed(case(|_| ()));
        set(&mut case.spec);
        refused(&case, &format!("denied: {field}: \"/usr\" {none}"));
    }
    // The operator's own list is not restricted.
    let mut own = allowed(case(|_| ()));
    own.policy.chroot_env = [("/usr".into(), "/usr".into())].into();
    check(&own, "# bind \"/usr\" at \"/usr\", read-only");
}

#[test]
fn the_policy_must_allow_volumes_and_bidirectional_propagation() {
    let mut none = volume("/srv/a", true);
    none.policy.volumes_enabled = false;
    refused(
        &none,
        "denied: volumes: \"/srv/a\" is not allowed: volumes_enabled is off in this host's policy",
    );
    let mut both = volume("/srv/a", true);
    both.spec.volumes[0].propagation = Propagation::Bidirectional;
    refused(
        &both,
        "denied: volumes: with bidirectional propagation, mounts of the task at \"/v\" would appear on the host: \
         allow_privileged is off in this host's policy",
    );
    both.policy.allow_privileged = true;
    check(&both, "");
}

#[test]
fn writable_sources_that_give_access_to_the_host_are_reported() {
    let roots = "the directory of other sandboxes' temporary roots";
    for source in ["/var/tmp", "/var", "/"] {
        let report = check(&volume(source, false), "").report;
        assert!(report.weakened.contains(Control::HOST_FILES), "{source}: {report}");
        assert!(report.why(Control::HOST_FILES).contains(roots), "{report}");
        let report = check(&volume(source, true), "").report;
        // `/` shows the host's processes too.
        assert_eq!(report.enforced.contains(Control::HOST_FILES), source != "/", "{source}: {report}");
    }
    refused(
        &volume("/var/tmp/cofferdam-x/root/usr", false),
        "spec volumes: volumes: \"/var/tmp/cofferdam-x/root/usr\" is in the temporary root of another sandbox",
    );
    for source in ["/sys/fs/cgroup/cofferdam.slice", "/sys/fs", "/"] {
        let report = check(&volume(source, false), "").report;
        assert!(report.weakened.contains(Control::KILL), "{source}: {report}");
        let report = check(&volume(source, true), "").report;
        assert_eq!(report.enforced.contains(Control::KILL), source != "/", "{source}: {report}");
        assert!(report.weakened.contains(Control::MASKED_PATHS), "{source}: {report}");
    }
    let report = check(&volume("/proc/sys", true), "").report;
    assert!(report.why(Control::MASKED_PATHS).contains("exposes the host's /proc"), "{report}");
    check(&volume("/srv/a", false), "weakened  none");
}

/// A procfs or sysfs of the host that is mounted elsewhere.
#[test]
fn files_of_the_kernel_in_a_source_weaken_the_masks_and_writable_ones_the_root() {
    for read_only in [true, false] {
        let mut case = volume("/srv/a", read_only);
        case.survey.kernel = [("/srv/a".into(), "sysfs".to_owned())].into();
        let report = compiled(&case).unwrap().report;
        assert!(report.why(Control::MASKED_PATHS).contains("files of the kernel (sysfs)"), "{report}");
        let of_host = Control::HOST_FILES | Control::ROOT_SWITCH;
        let expected = if read_only { Control::empty() } else { of_host };
        assert_eq!(report.weakened & of_host, expected, "{report}");
    }
}

/// The attack: the files of a process of the host with the task's user, through `PID/root` in the volume.
#[test]
fn a_source_that_shows_the_hosts_processes_weakens_what_they_give_access_to() {
    let by_processes =
        Control::HOST_FILES | Control::ROOT_SWITCH | Control::MASKED_PATHS | Control::DEVICES | Control::KILL;
    for (source, abi) in [("/proc", 0), ("/proc", 7), ("/srv/a", 0), ("/srv/a", 7)] {
        let mut case = volume(source, true);
        // A procfs that is mounted at another place.
        case.survey.procfs = ["/srv/a".into()].into();
        case.host.landlock_abi = abi;
        case.spec.network = crate::ns::Network::None;
        let plan = compiled(&case).unwrap();
        let report = &plan.report;
        assert!(report.weakened.contains(Control::PID_NS), "{source} {abi}: {report}");
        // In a domain the task cannot follow these links.
        assert_eq!(plan.to_string().contains("# Landlock domain"), abi == 7, "{source} {abi}");
        let weakened = report.weakened & (by_processes - Control::MASKED_PATHS);
        let expected = if abi == 7 { Control::empty() } else { by_processes - Control::MASKED_PATHS };
        assert_eq!(weakened, expected, "{source} {abi}: {report}");
    }
}

#[test]
fn the_strict_policy_allows_no_network_and_no_capability_and_requires_everything() {
    let strict = |set: &dyn Fn(&mut Case)| {
        case(|c| {
            c.policy = Policy::strict();
            c.spec.network = crate::ns::Network::None;
            set(c);
        })
    };
    let plan = check(
        &strict(&|_| ()),
        "prctl(PR_CAPBSET_DROP, all but 0x0)
         capset(effective=0x0, permitted=0x0, inheritable=0x0)
         weakened  none
         missing   none",
    );
    assert!(plan.report.enforced.contains(Control::NET_NS | Control::CAPS | Control::PID_NS));
    let network =
        "denied: network: this host's policy does not allow a network (allow_network is off): use \"none\"";
    refused(&strict(&|c| c.spec.network = crate::ns::Network::Host), network);
    refused(&strict(&|c| c.spec.network = crate::ns::Network::Path("/run/netns/x".into())), network);
    let above = |what: &str| {
        let flag = what.trim_end_matches("_mode");
        format!("denied: {what} \"host\" is not allowed by this host's policy (allow_host_{flag} is off)")
    };
    refused(&strict(&|c| c.spec.pid_mode = mode("host")), &above("pid_mode"));
    refused(&strict(&|c| c.spec.ipc_mode = mode("host")), &above("ipc_mode"));
    refused(
        &strict(&|c| c.spec.cap_add = vec!["chown".into()]),
        "denied: policy does not allow the following capabilities: chown",
    );
    // A weakened control is refused, whatever the spec requires.
    for require in [None, Some(Require::BestEffort)] {
        let weak = strict(&|c| {
            c.spec.require = require;
            c.host.private = Private::listed(&[]);
            let (source, target) = ("/sys/fs".into(), "/v".into());
            c.survey.kinds.insert("/sys/fs".into(), Some(FileKind::Dir));
            c.spec.volumes = vec![Volume { source, target, read_only: true, ..Volume::default() }];
        });
        refused(
            &weak,
            "unsupported: this host cannot enforce masked_paths: \"/sys/fs\" exposes the host's /sys, where \
             sensitive files are not masked",
        );
    }
}

#[test]
fn inherited_files_directories_terminals_and_devices_are_reported() {
    use crate::host::Stream;
    let given = |stream| case(|c| c.survey.streams = vec![("stdout".into(), stream)]);
    let report = check(&given(Stream::File), "weakened  host_files").report;
    assert!(report.why(Control::HOST_FILES).contains("stdout is a file of the host"), "{report}");
    check(&given(Stream::Dir), "weakened  root_switch,host_files");
    let report = check(&given(Stream::Terminal), "weakened  none").report;
    assert!(report.why(Control::DEVICES).contains("stdout is a terminal"), "{report}");
    check(&given(Stream::Disk), "weakened  host_files,devices");
    check(&given(Stream::Device), "weakened  devices");
}
