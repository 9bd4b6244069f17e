//! Devices of the host: their nodes, and the rules of the device cgroup.

use super::*;
use crate::rootfs::probe::Node;

fn device(source: &str, target: &str, permissions: &str) -> Case {
    let access = if permissions.is_empty() { Access::empty() } else { Access::parse(permissions).unwrap() };
    case(|c| c.spec.devices = vec![Device { source: source.into(), target: target.into(), access }])
}

/// The same case on a host without a device cgroup.
fn without(mut case: Case) -> Case {
    case.host.cgroups = off();
    case
}

#[test]
fn declared_devices_are_bound_read_only() {
    for permissions in ["rw", "rwm", "mwr", "r", "w", "m", "rm"] {
        check(
            &device("/dev/fuse", "/dev/fuse", permissions),
            "# device \"/dev/null\"
             # bind the file \"/dev/fuse\" at \"/dev/fuse\", read-only
             mount_setattr(\"/dev/fuse\", AT_RECURSIVE, MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOSUID|MOUNT_ATTR_NOEXEC, MS_PRIVATE)
             # \"/dev\" read-only
             weakened  none",
        );
    }
}

#[test]
fn without_a_device_cgroup_narrow_access_is_weakened() {
    let none = "devices: enforced by nodev mounts and a read-only /dev only, without a device cgroup:";
    for permissions in ["rw", "rwm", "mwr"] {
        let expected =
            format!("weakened  none\n{none} cgroup v2 is not mounted, and the devices controller of...");
        check(&without(device("/dev/fuse", "/dev/fuse", permissions)), &expected);
    }
    for permissions in ["r", "w", "m", "rm"] {
        let wider = format!(
            "devices: \"/dev/other\" can be opened for more than {permissions:?}: there is no device cgroup"
        );
        let given = device("/dev/fuse", "/dev/other", permissions);
        check(&without(given.clone()), &format!("weakened  devices\n{none}...\n{wider}"));
        let mut turned_off = given.clone();
        turned_off.spec.device_cgroup = Some(false);
        check(
            &turned_off,
            &format!("weakened  devices\n{none} it is turned off in the spec\n{wider}\n! bpf("),
        );
        let mut user = given;
        user.host = rootless();
        check(
            &user,
            &format!(
                "weakened  devices\n{none} the caller needs CAP_SYS_ADMIN, or CAP_BPF and CAP_NET_ADMIN\n{wider}\n! bpf("
            ),
        );
    }
    let strict = |permissions| {
        let mut case = without(device("/dev/fuse", "/dev/fuse", permissions));
        case.spec.require = Some(Control::DEVICES.into());
        case
    };
    check(&strict("rw"), "");
    let error = compiled(&strict("r")).unwrap_err();
    assert!(
        error.starts_with("unsupported: this host cannot enforce devices: enforced by nodev mounts"),
        "{error}"
    );
    assert!(error.ends_with("can be opened for more than \"r\": there is no device cgroup"), "{error}");
}

/// The rules are the same on cgroup v1, v2 and hybrid hosts.
#[test]
fn the_device_cgroup_allows_the_declared_access() {
    for (permissions, rule) in [("rwm", "c 10:229 rwm"), ("r", "c 10:229 r"), ("wm", "c 10:229 wm")] {
        for cgroups in [v1(), hybrid()] {
            let mut case = device("/dev/fuse", "/dev/fuse", permissions);
            case.host.cgroups = cgroups;
            case.spec.require = Some(Control::DEVICES.into());
            let allow = "write(\"/sys/fs/cgroup/devices/cofferdam/box/devices.allow\"";
            let expected = format!(
                "mkdir(\"/sys/fs/cgroup/devices/cofferdam/box\", 0711)
                 write(\"/sys/fs/cgroup/devices/cofferdam/box/devices.deny\", \"a\")
                 {allow}, \"c *:* m\")
                 {allow}, \"b *:* m\")
                 {allow}, \"c 1:3 rwm\")
                 {allow}, \"c 136:* rwm\")
                 {allow}, \"{rule}\")
                 openat(AT_FDCWD, \"/sys/fs/cgroup/devices/cofferdam/box/tasks\", O_WRONLY|O_CLOEXEC)
                 # enter the cgroup of \"/sys/fs/cgroup/devices/cofferdam/box/tasks\"
                 weakened  none
                 ! bpf("
            );
            check(&case, &expected);
        }
        let attach =
            "\"/sys/fs/cgroup/cofferdam.slice/share.slice/box.scope\", BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI)";
        let compiled = compiled(&device("/dev/fuse", "/dev/fuse", permissions)).unwrap();
        assert_eq!(device_rules(&compiled).last().unwrap(), rule);
        check(
            &device("/dev/fuse", "/dev/fuse", permissions),
            &format!(
                "bpf(BPF_PROG_LOAD, BPF_PROG_TYPE_CGROUP_DEVICE...
                 bpf(BPF_PROG_ATTACH, {attach}"
            ),
        );
    }
}

/// Nomad's test vectors for devices.
#[test]
fn device_rules_match_nomads_vectors() {
    for (source, node, rule) in [
        ("/dev/null", Node { block: false, major: 1, minor: 3 }, "c 1:3 rwm"),
        ("/dev/fuse", Node { block: false, major: 10, minor: 229 }, "c 10:229 rwm"),
        ("/dev/loop0", Node { block: true, major: 7, minor: 0 }, "b 7:0 rwm"),
    ] {
        let mut case = device(source, "/task/dev", "rwm");
        case.survey.kinds.insert(source.into(), Some(FileKind::Device));
        case.survey.nodes.insert(source.into(), node);
        let rules = device_rules(&compiled(&case).unwrap());
        assert_eq!(rules.iter().filter(|found| *found == rule).count(), 1, "{rules:?}");
    }
}

/// The kernel checks device numbers, not names.
#[test]
fn a_device_allowed_by_two_rules_is_reported_as_wider() {
    let one = |permissions: &str| {
        let (target, access) = (format!("/dev/{permissions}").into(), Access::parse(permissions).unwrap());
        Device { source: "/dev/fuse".into(), target, access }
    };
    let both = case(|c| c.spec.devices = vec![one("r"), one("w")]);
    let more = "every task may use this device, or it is declared twice";
    check(
        &both,
        &format!(
            "weakened  devices
             devices: \"/dev/r\" can be opened for more than \"r\": {more}
             devices: \"/dev/w\" can be opened for more than \"w\": {more}"
        ),
    );
    let mut null = device("/dev/fuse", "/dev/nothing", "r");
    null.survey.nodes.insert("/dev/fuse".into(), Node { block: false, major: 1, minor: 3 });
    check(
        &null,
        &format!("weakened  devices\ndevices: \"/dev/nothing\" can be opened for more than \"r\": {more}"),
    );
}

#[test]
fn a_required_device_cgroup_that_cannot_be_made_is_refused() {
    let must = |set: &dyn Fn(&mut Case)| {
        let mut case = case(|c| c.spec.device_cgroup = Some(true));
        set(&mut case);
        case
    };
    check(&must(&|_| ()), "bpf(BPF_PROG_LOAD...\nweakened  none");
    check(
        &must(&|c| c.host.cgroups = v1()),
        "write(\"/sys/fs/cgroup/devices/cofferdam/box/devices.deny\", \"a\")",
    );
    // A device cgroup does not need the controllers that limits require.
    check(&must(&|c| c.host.cgroups = v2("memory")), "bpf(BPF_PROG_LOAD...\nweakened  none");
    let no = "unsupported: this host cannot enforce devices: there is no device cgroup: ";
    refused(
        &must(&|c| c.host.cgroups = off()),
        &format!("{no}cgroup v2 is not mounted, and the devices controller of cgroup v1 is not available"),
    );
    refused(
        &must(&|c| c.host = rootless()),
        &format!("{no}the caller needs CAP_SYS_ADMIN, or CAP_BPF and CAP_NET_ADMIN"),
    );
    let lesser = capabilities(&["bpf", "net_admin"]);
    check(&must(&|c| c.host.held = lesser), "bpf(BPF_PROG_LOAD...");
    refused(
        &must(&|c| c.host.held = capabilities(&["bpf"])),
        &format!("{no}the caller needs CAP_SYS_ADMIN, or CAP_BPF and CAP_NET_ADMIN"),
    );
}

/// The kernel may refuse a step that a plan contains.
#[test]
fn a_refused_device_program_weakens_devices_or_fails_if_required() {
    let refusal = |plan: &Plan| {
        let filter = plan.parent.iter().find(|step| step.control == Control::DEVICES).unwrap();
        let refused = Error::Prepare { step: "bpf(...)".into(), source: nix::errno::Errno::EPERM.into() };
        let mut report = plan.report.clone();
        filter.on_refusal.take(refused, &mut report).map(|()| report)
    };
    let mut case = device("/dev/fuse", "/dev/fuse", "r");
    let report = refusal(&check(&case, "weakened  none")).unwrap();
    assert_eq!(report.weakened, Control::DEVICES);
    let reasons: Vec<&str> =
        report.reasons.iter().filter(|r| r.control == Control::DEVICES).map(|r| r.why.as_str()).collect();
    let cause = "bpf(...): Operation not permitted (os error 1)";
    let expected = [
        format!("enforced by nodev mounts and a read-only /dev only, without a device cgroup: {cause}"),
        "\"/dev/fuse\" can be opened for more than \"r\": there is no device cgroup".to_owned(),
    ];
    assert_eq!(reasons, expected);
    case.spec.device_cgroup = Some(true);
    let error = refusal(&check(&case, "")).unwrap_err();
    let Error::Unsupported { control: Control::DEVICES, reason } = &error else { panic!("{error:?}") };
    assert_eq!(*reason, format!("there is no device cgroup: {cause}"));
}

#[test]
fn invalid_devices_are_refused() {
    for (source, target, permissions, message) in [
        (
            "dev/fuse",
            "/dev/fuse",
            "rw",
            "devices[0].source must be absolute but got relative path \"dev/fuse\"",
        ),
        ("/dev/fuse", "fuse", "rw", "devices[0].target must be absolute but got relative path \"fuse\""),
        ("/dev/fuse", "/dev/../fuse", "rw", "devices[0].target: \"/dev/../fuse\" must not contain \"..\""),
        (
            "/dev/fuse",
            "/proc/fuse",
            "rw",
            "devices[0].target: \"/proc/fuse\" cannot be a mount point: / and everything below /proc are reserved",
        ),
        ("/srv/file", "/dev/fuse", "rw", "devices: \"/srv/file\" is not a device"),
        ("/srv/a", "/dev/fuse", "rw", "devices: \"/srv/a\" is not a device"),
        ("/dev/none", "/dev/fuse", "rw", "devices: \"/dev/none\" does not exist on the host"),
        ("/dev/fuse", "/dev/fuse", "", "devices: \"/dev/fuse\": no access is given: use r, w or m"),
    ] {
        refused(&device(source, target, permissions), &format!("spec devices: {message}"));
    }
}

/// A caller that cannot make device nodes bind-mounts the host's.
#[test]
fn every_task_has_six_devices() {
    let mut made = String::new();
    let mut bound = String::new();
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        made.push_str(&format!("mknodat(root, \"/dev/{name}\"...\n"));
        bound.push_str(&format!("# bind the file \"/dev/{name}\" at \"/dev/{name}\", read-only\n"));
    }
    let after = "symlinkat(\"/proc/self/fd\", root, \"/dev/fd\")\n# \"/dev\" read-only";
    check(&case(|_| ()), &format!("{made}{after}\n! bind the file \"/dev"));
    let without = case(|c| c.host.held = CapSet::up_to(40).difference(capabilities(&["mknod"])));
    for case in [case(|c| c.host = rootless()), without] {
        check(&case, &format!("{bound}{after}\n! mknodat"));
    }
}
