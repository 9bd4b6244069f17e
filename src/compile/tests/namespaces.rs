//! The namespaces that a task gets, joins or shares, as root and in a user namespace.

use super::*;

const CLONE: &str = "clone3(CLONE_VM|CLONE_VFORK|CLONE_PIDFD|CLONE_CLEAR_SIGHAND|";

fn clone_line(plan: &Plan) -> String {
    let step = plan.parent.iter().find(|step| matches!(step.op, ParentOp::Clone { .. })).unwrap();
    let line = step.op.call();
    line.strip_prefix(CLONE).unwrap().trim_end_matches(')').trim_end_matches("|CLONE_INTO_CGROUP").to_owned()
}

#[test]
fn pid_and_ipc_modes_choose_the_clone_flags() {
    for (pid, ipc, namespaces, expected) in [
        ("", "", "CLONE_NEWNS|CLONE_NEWPID|CLONE_NEWIPC", "enforced  mount_ns,pid_ns,ipc_ns,root_switch..."),
        ("private", "host", "CLONE_NEWNS|CLONE_NEWPID", "enforced  mount_ns,pid_ns,root_switch..."),
        ("host", "private", "CLONE_NEWNS|CLONE_NEWIPC", "enforced  mount_ns,ipc_ns,ids..."),
        ("host", "host", "CLONE_NEWNS", "enforced  mount_ns,ids..."),
    ] {
        let case = case(|c| (c.spec.pid_mode, c.spec.ipc_mode) = (mode(pid), mode(ipc)));
        let plan = check(&case, expected);
        assert_eq!(clone_line(&plan), namespaces, "{pid} {ipc}");
        // Init stays as PID 1 only in a private PID namespace.
        assert_eq!(order::has_pid_1(&plan), pid != "host", "{pid} {ipc}");
    }
}

#[test]
fn the_policy_sets_default_modes_and_may_forbid_host() {
    let default = |pid: &str, ipc: &str, allow: bool| {
        case(|c| {
            (c.policy.default_pid_mode, c.policy.default_ipc_mode) =
                (pid.parse().unwrap(), ipc.parse().unwrap());
            (c.policy.allow_host_pid, c.policy.allow_host_ipc) = (allow, allow);
        })
    };
    assert_eq!(clone_line(&check(&default("host", "host", true), "")), "CLONE_NEWNS");
    let above = |field: &str| {
        let flag = field.trim_end_matches("_mode");
        format!("denied: {field} \"host\" is not allowed by this host's policy (allow_host_{flag} is off)")
    };
    for (case, name) in
        [(default("host", "private", false), "pid"), (default("private", "host", false), "ipc")]
    {
        let field = format!("default_{name}_mode");
        let why = format!("{field} is \"host\", allow_host_{name} is off");
        let error = compiled(&case).unwrap_err();
        assert!(error.starts_with("denied: ") && error.contains(&why), "{error}");
    }
    for (pid, ipc, field) in [("host", "private", "pid_mode"), ("", "host", "ipc_mode")] {
        let mut case = default("private", "private", false);
        (case.spec.pid_mode, case.spec.ipc_mode) = (mode(pid), mode(ipc));
        refused(&case, &above(field));
    }
    // A task may choose `private` if the operator's default is `host`.
    let mut below = default("host", "host", false);
    (below.spec.pid_mode, below.spec.ipc_mode) = (mode("private"), mode("private"));
    assert_eq!(clone_line(&check(&below, "")), "CLONE_NEWNS|CLONE_NEWPID|CLONE_NEWIPC");
}

#[test]
fn a_network_is_shared_new_or_joined() {
    let plan = check(
        &case(|_| ()),
        "! setns(
         ! SIOCSIFFLAGS
         enforced  mount_ns,pid_ns,ipc_ns,root_switch...
         net_ns: the task shares the host's network namespace
         net_ns: the task shares a network namespace: it can connect to the abstract unix sockets of other processes in it",
    );
    assert!(!plan.handed().any(|handed| matches!(handed, Handed::Namespace(_))));
    let plan = check(
        &case(|c| c.spec.network = Network::None),
        "# bring up the loopback interface
         socket(AF_INET, SOCK_DGRAM)
         ioctl(\"lo\", SIOCSIFFLAGS, IFF_UP)
         enforced  mount_ns,pid_ns,ipc_ns,net_ns,root_switch...
         ! abstract unix sockets",
    );
    assert!(clone_line(&plan).contains("CLONE_NEWNET"));
    let joined = case(|c| c.spec.network = Network::Path("/run/netns/web".into()));
    let plan = check(
        &joined,
        "# join \"/run/netns/web\"
         setns(\"/run/netns/web\", CLONE_NEWNET)
         mount(NULL, \"/\", MS_REC|MS_SLAVE)
         enforced  mount_ns,pid_ns,ipc_ns,net_ns,root_switch...
         ! SIOCSIFFLAGS",
    );
    assert!(!clone_line(&plan).contains("CLONE_NEWNET"));
    assert_eq!(*plan.handed().nth(1).unwrap(), Handed::Namespace("/run/netns/web".into()));
}

#[test]
fn a_network_to_join_must_be_a_namespace() {
    let joined = |path: &str, found| {
        case(|c| {
            c.spec.network = Network::Path(path.into());
            c.survey.network = found;
        })
    };
    refused(&joined("/etc/passwd", Ok(false)), "spec network: network: \"/etc/passwd\" is not a namespace");
    refused(
        &joined("/run/netns/x", Err("entity not found".into())),
        "spec network: network: \"/run/netns/x\": entity not found",
    );
    refused(
        &joined("run/netns/x", Ok(true)),
        "spec network: network must be absolute but got relative path \"run/netns/x\"",
    );
    let mut rootless_case = joined("/run/netns/x", Ok(true));
    rootless_case.host = rootless();
    refused(
        &rootless_case,
        "unsupported: this host cannot enforce net_ns: \"/run/netns/x\" cannot be joined: the task would run in a \
         user namespace, because the caller lacks CAP_SETGID, CAP_SETPCAP, CAP_SETUID, CAP_SYS_ADMIN",
    );
}

#[test]
fn host_names_have_1_to_64_bytes() {
    let named = |name: &str| case(|c| c.spec.hostname = Some(name.into()));
    let plan = check(
        &named("web-1"),
        "sethostname(\"web-1\")
         mount(NULL, \"/\", MS_REC|MS_SLAVE)
         enforced  mount_ns,pid_ns,ipc_ns,uts_ns,root_switch...",
    );
    assert!(clone_line(&plan).ends_with("|CLONE_NEWUTS"));
    check(&case(|_| ()), "! CLONE_NEWUTS\n! sethostname\n! uts_ns");
    let long = "x".repeat(65);
    refused(&named(""), "spec hostname: hostname: \"\" is not 1 to 64 bytes long");
    refused(&named(&long), &format!("spec hostname: hostname: {long:?} is not 1 to 64 bytes long"));
    refused(&named("a\0b"), "spec hostname: hostname: \"a\\0b\" contains a NUL byte");
    check(&named(&long[1..]), "sethostname...");
}

/// A cgroup namespace hides the path of the task's cgroup. It is made if the task can see a cgroup file system.
#[test]
fn a_cgroup_namespace_is_made_if_the_task_can_see_cgroups() {
    let volume = |source: &str| {
        case(|c| {
            c.spec.volumes = vec![Volume { source: source.into(), target: "/x".into(), ..Volume::default() }]
        })
    };
    let env = |source: &str, populate| {
        case(|c| {
            c.spec.root.chroot_env = [(PathBuf::from(source), PathBuf::from("/x"))].into();
            c.spec.root.populate = populate;
        })
    };
    let bare_sys = case(|c| c.host = rootless());
    let own_sys = case(|c| (c.host, c.spec.network) = (rootless(), Network::None));
    let forced = |value, source| {
        let mut case = volume(source);
        case.spec.cgroup_namespace = Some(value);
        case
    };
    let on_v1 = |source: &str| {
        let mut case = volume(source);
        case.host.cgroups = v1();
        case
    };
    for (case, made) in [
        (case(|_| ()), false),
        (volume("/sys/fs/cgroup"), true),
        (volume("/sys/fs/cgroup/memory"), true),
        (volume("/sys"), true),
        (volume("/"), true),
        (volume("/sys/fs/cgroups"), false),
        (volume("/srv/a"), false),
        (env("/sys", Method::Bind), true),
        // Links and copies leave out the kernel's own file systems.
        (env("/sys", Method::Link), false),
        (env("/sys", Method::Copy), false),
        // Mounting a new sysfs needs a network namespace of the task's own. Otherwise the host's /sys is bound
        // recursively.
        (bare_sys, true),
        (own_sys, false),
        (forced(true, "/srv/a"), true),
        (forced(false, "/sys/fs/cgroup"), false),
        (on_v1("/sys/fs/cgroup/memory"), true),
        (on_v1("/srv/a"), false),
    ] {
        let plan = compiled(&case).unwrap();
        let text = text(&plan);
        assert_eq!(text.contains("unshare(CLONE_NEWCGROUP)"), made, "{text}");
        assert_eq!(plan.report.enforced.contains(Control::CGROUP_NS), made, "{text}");
        // The clone does not make it, as init enters the task's cgroups later.
        assert!(!clone_line(&plan).contains("CGROUP"));
    }
}

#[test]
fn in_a_user_namespace_the_parent_writes_the_maps() {
    let case = case(|c| {
        c.host = Host { gid: 100, groups: vec![100, 27], ..rootless() };
        c.survey.identity = who(0, &[0]);
    });
    let plan = check(
        &case,
        "clone3(CLONE_VM|CLONE_VFORK|CLONE_PIDFD|CLONE_CLEAR_SIGHAND|CLONE_NEWNS|CLONE_NEWPID|CLONE_NEWIPC|CLONE_NEWUSER)
         execveat(memfd \"cofferdam-init\")
         write(\"/proc/PID/setgroups\", \"deny\")
         write(\"/proc/PID/uid_map\", \"0 1000 1\\n\")
         write(\"/proc/PID/gid_map\", \"0 100 1\\n\")
         # wait for the id maps
         recvfrom(status)
         # bind the file \"/dev/null\" at \"/dev/null\", read-only
         fsconfig(\"devpts\", FSCONFIG_SET_STRING, \"mode\", \"0620\")
         setresgid(0, 0, 0)
         setresuid(0, 0, 0)
         weakened  ids
         ids: uid 0 and gid 0 in the sandbox are uid 1000 and gid 100 outside
         ids: the task keeps the caller's supplementary groups: setgroups(2) is denied in its user namespace
         ! setgroups(0
         ! setgroups(1
         ! mknodat
         ! \"gid\", \"5\"",
    );
    let maps = IdMaps { uid: "0 1000 1\n".into(), gid: "0 100 1\n".into(), set_groups: false };
    assert!(plan.parent.iter().any(|step| step.op == ParentOp::IdMaps(maps.clone())));
}

#[test]
fn in_a_user_namespace_only_one_group_is_mapped() {
    let groups = |groups: &[u32], own: Vec<u32>| {
        case(|c| {
            c.host = Host { groups: own, ..rootless() };
            c.survey.identity = who(1000, groups);
        })
    };
    check(&groups(&[100], vec![1000]), "weakened  none");
    // getgroups(2) lists the primary group on some hosts only.
    check(&groups(&[100], vec![]), "weakened  none");
    check(
        &groups(&[100, 27], vec![1000]),
        "weakened  ids
         ids: the user's supplementary groups are left out: only one group is mapped in the task's user namespace
         ! the caller's supplementary groups",
    );
    check(
        &groups(&[100, 27], vec![27, 1000]),
        "weakened  ids
         ids: the task keeps the caller's supplementary groups...
         ids: the user's supplementary groups are left out...",
    );
}

/// File systems that a user namespace cannot mount are bound from the host.
#[test]
fn in_a_user_namespace_file_systems_of_shared_namespaces_are_bound() {
    let modes = |pid: &str, ipc: &str, network| {
        case(|c| {
            c.host = rootless();
            (c.spec.pid_mode, c.spec.ipc_mode) = (mode(pid), mode(ipc));
            c.spec.network = network;
        })
    };
    check(
        &modes("private", "private", Network::None),
        "fsopen(\"mqueue\")
         fsopen(\"proc\")
         fsopen(\"sysfs\")
         ! open_tree(opened \"/proc\"
         ! open_tree(opened \"/sys\"",
    );
    check(
        &modes("host", "host", Network::Host),
        "open_tree(opened \"/proc\", OPEN_TREE_CLONE|AT_RECURSIVE)
         open_tree(opened \"/sys\", OPEN_TREE_CLONE|AT_RECURSIVE)
         # stop mount propagation to the host
         mount_setattr(\"/proc\", AT_RECURSIVE, MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV|MOUNT_ATTR_NOEXEC, MS_PRIVATE)
         mount_setattr(\"/sys\", AT_RECURSIVE, MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV|MOUNT_ATTR_NOEXEC, MS_PRIVATE)
         ipc_ns: /dev/mqueue is not mounted: in the host's IPC namespace that needs CAP_SYS_ADMIN on the host
         ! mqueue\")
         ! fsopen(\"proc\")
         ! fsopen(\"sysfs\")",
    );
    // Root can mount them.
    let case = case(|c| (c.spec.pid_mode, c.spec.ipc_mode) = (mode("host"), mode("host")));
    check(&case, "fsopen(\"mqueue\")\nfsopen(\"proc\")\nfsopen(\"sysfs\")");
}

#[test]
fn without_one_of_four_capabilities_a_user_namespace_is_made() {
    for name in ["sys_admin", "setuid", "setgid", "setpcap"] {
        let plan = check(&case(|c| c.host.held = CapSet::up_to(40).difference(capabilities(&[name]))), "");
        assert!(clone_line(&plan).ends_with("|CLONE_NEWUSER"), "{name}");
    }
    let plan =
        check(&case(|c| c.host.held = capabilities(&["sys_admin", "setuid", "setgid", "setpcap"])), "");
    assert!(!clone_line(&plan).contains("CLONE_NEWUSER"));
}

#[test]
fn forbidden_user_namespaces_are_unsupported_without_privileges() {
    let forbidden = |host| {
        case(|c| c.host = Host { user_ns_forbidden: Some("user.max_user_namespaces is 0".into()), ..host })
    };
    refused(
        &forbidden(rootless()),
        "unsupported: this host cannot enforce mount_ns: the caller lacks CAP_SETGID, CAP_SETPCAP, CAP_SETUID, CAP_SYS_ADMIN \
         and cannot make a user namespace: user.max_user_namespaces is 0",
    );
    // Root does not need a user namespace.
    let plan = check(&forbidden(host()), "");
    assert!(!clone_line(&plan).contains("CLONE_NEWUSER"));
}

#[test]
fn kernels_before_5_12_are_unsupported() {
    let on = |kernel| case(|c| c.host.kernel = kernel);
    let needs = "unsupported: this host cannot enforce mount_ns,host_files: mount_setattr(2) needs Linux 5.12, this is";
    for (kernel, name) in [((5, 10), "5.10"), ((4, 19), "4.19"), ((5, 11), "5.11"), ((0, 0), "0.0")] {
        refused(&on(kernel), &format!("{needs} {name}"));
    }
    for kernel in [(5, 12), (6, 1), (7, 0)] {
        check(&on(kernel), "");
    }
    // Best effort does not make it run on an older kernel.
    refused(
        &case(|c| (c.host.kernel, c.spec.require) = ((5, 10), Some(Require::BestEffort))),
        &format!("{needs} 5.10"),
    );
}

#[test]
fn a_shared_pid_namespace_keeps_hidepid() {
    let hidden = |pid: &str| {
        case(|c| {
            c.host.proc_options = vec![("hidepid".into(), "invisible".into())];
            c.spec.pid_mode = mode(pid);
        })
    };
    let option = "fsconfig(\"proc\", FSCONFIG_SET_STRING, \"hidepid\", \"invisible\")";
    check(&hidden("host"), option);
    check(&hidden("private"), &format!("! {option}"));
}

#[test]
fn the_callers_own_network_namespace_is_no_other_one() {
    let path = crate::ns::Network::Path("/run/netns/n".into());
    let mut joined = case(|c| c.spec.network = path);
    assert!(compiled(&joined).unwrap().report.enforced.contains(Control::NET_NS));
    joined.survey.own_network = true;
    joined.spec.require = Some(crate::report::Require::BestEffort);
    assert!(compiled(&joined).unwrap().report.weakened.contains(Control::NET_NS));
}

/// A file handle of nsfs leads to a namespace of the host (Linux 6.18), and `CAP_SYS_ADMIN` is enough to join it.
#[test]
fn setns_by_file_handle_weakens_the_namespaces() {
    let joins = |filter| {
        let mut case = case(|c| c.spec.filter = filter);
        case.spec.cap_add = vec!["sys_admin".into()];
        case.policy.allow_caps = Some(strings(&["all"]));
        compiled(&case).unwrap().report.weakened.contains(Control::PID_NS | Control::IPC_NS)
    };
    assert!(joins(crate::filter::Filter::None));
    assert!(!joins(crate::filter::Filter::Default));
}
