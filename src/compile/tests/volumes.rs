//! Files, directories and devices of the host.

use super::*;
use crate::rootfs::{Device, Propagation};

fn volume(source: &str, target: &str, read_only: bool, propagation: Propagation) -> Case {
    let volume = Volume { source: source.into(), target: target.into(), read_only, propagation };
    case(|c| c.spec.volumes = vec![volume])
}

#[test]
fn propagation_and_read_only() {
    use Propagation::{Bidirectional, HostToTask, Private};
    let no = "MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV";
    for (read_only, propagation, attrs, flag) in [
        (false, Private, no, "MS_PRIVATE"),
        (true, Private, "MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV", "MS_PRIVATE"),
        (false, HostToTask, no, "MS_SLAVE"),
        (true, HostToTask, "MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV", "MS_SLAVE"),
        (false, Bidirectional, no, "MS_SHARED"),
        (true, Bidirectional, "MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV", "MS_SHARED"),
    ] {
        let said = if read_only { ", read-only" } else { "" };
        // What the host mounts there later comes with flags of its own.
        let weakened = if propagation == Private { "none" } else { "devices" };
        let open = "open_tree(\"/srv/a\", OPEN_TREE_CLONE|AT_RECURSIVE)";
        let propagated = "mount(NULL, \"/\", MS_REC|MS_SLAVE)";
        // A peer of the host's mount must be taken while it still is one.
        let begin = if propagation == Bidirectional {
            format!(
                "# take \"/srv/a\" with its peer group\n{open}\n{propagated}\n# bind \"/srv/a\" at \"/data\"{said}"
            )
        } else {
            format!("{propagated}\n# bind \"/srv/a\" at \"/data\"{said}\n{open}\n! peer group")
        };
        let plan = check(
            &volume("/srv/a", "/data", read_only, propagation),
            &format!(
                "{begin}
                 mount_setattr(\"/srv/a\", AT_RECURSIVE, {attrs}, {flag})
                 openat2(root, \"/data\", RESOLVE_IN_ROOT)
                 move_mount(\"/srv/a\", root \"/data\")
                 # mask \"/proc/kcore\"
                 weakened  {weakened}"
            ),
        );
        assert_eq!(text(&plan).matches(open).count(), 1, "{propagation:?}");
    }
}

#[test]
fn files_directories_and_setuid_bits() {
    let file = |populate| {
        let mut case = volume("/srv/file", "/etc/file", false, Propagation::Private);
        case.spec.root.populate = populate;
        case
    };
    let bound = "# bind the file \"/srv/file\" at \"/etc/file\"";
    check(&file(Method::Overlay), &format!("# overlay \"/etc\" at \"/etc\", written to the tmpfs\n{bound}"));
    // In a linked root the mount point is made before what was linked is sealed.
    check(&file(Method::Link), &format!("# empty file \"/etc/file\"\n# \"/etc\" read-only\n{bound}"));
    refused(
        &file(Method::Bind),
        "spec populate: populate: nothing can be mounted at \"/etc/file\": \"/etc\" is bound read-only and has no \
         such path; populate by overlay, or auto",
    );
    let mut there = file(Method::Bind);
    there.survey.kinds.insert("/etc/file".into(), Some(Kind::File));
    check(&there, bound);
    let mut honoured = volume("/srv/a", "/data", false, Propagation::Private);
    honoured.spec.no_new_privs = false;
    check(&honoured, "mount_setattr(\"/srv/a\", AT_RECURSIVE, MOUNT_ATTR_NODEV, MS_PRIVATE)");
}

#[test]
fn slots_are_the_indices_of_the_volumes() {
    let both = case(|c| {
        c.spec.volumes = ["/srv/a", "/srv/b", "/srv/a"]
            .iter()
            .zip(["/x", "/y", "/z"])
            .map(|(source, target)| {
                let propagation =
                    if target == "/y" { Propagation::Private } else { Propagation::Bidirectional };
                Volume { source: source.into(), target: target.into(), read_only: false, propagation }
            })
            .collect();
    });
    let plan = check(&both, "# take \"/srv/a\"...\n# take \"/srv/a\"...\n# bind \"/srv/a\" at \"/x\"");
    let taken = plan.init.iter().filter_map(|step| match step.op().unwrap() {
        Op::Tree { slot, .. } => Some(slot),
        _ => None,
    });
    assert_eq!(taken.collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn volumes_that_cannot_be() {
    for (source, target, message) in [
        ("srv", "/x", "volumes must be absolute but got relative path \"srv\""),
        ("/srv/a", "x", "volumes must be absolute but got relative path \"x\""),
        ("/srv/../etc", "/x", "volumes: \"/srv/../etc\" must not contain \"..\""),
        ("/srv/a", "/x/../../y", "volumes: \"/x/../../y\" must not contain \"..\""),
        ("/srv/a", "/", "volumes: nothing can be mounted at \"/\""),
        ("/srv/a", "/./", "volumes: nothing can be mounted at \"/./\""),
        ("/srv/a", "/proc", "volumes: nothing can be mounted at \"/proc\""),
        ("/srv/a", "/proc/sys", "volumes: nothing can be mounted at \"/proc/sys\""),
        ("/srv/a", "//proc/self", "volumes: nothing can be mounted at \"//proc/self\""),
        ("/srv/none", "/x", "volumes: there is no \"/srv/none\" on the host"),
        ("/srv/a\0", "/x", "volumes: \"/srv/a\\0\" must not contain a NUL byte"),
    ] {
        refused(&volume(source, target, false, Propagation::Private), &format!("spec volumes: {message}"));
    }
    check(&volume("/srv/a", "/process", false, Propagation::Private), "# bind \"/srv/a\" at \"/process\"");
    let many = |n| {
        let one = Volume { source: "/srv/a".into(), target: "/x".into(), ..Volume::default() };
        case(|c| c.spec.volumes = vec![one; n])
    };
    check(&many(64), "");
    refused(&many(65), "spec volumes: volumes: more than 64 volumes");
}

fn device(source: &str, target: &str, permissions: &str) -> Case {
    let permissions = permissions.to_owned();
    case(|c| c.spec.devices = vec![Device { source: source.into(), target: target.into(), permissions }])
}

#[test]
fn devices() {
    for permissions in ["rw", "rwm", "mwr"] {
        check(
            &device("/dev/fuse", "/dev/fuse", permissions),
            "# device \"/dev/null\"
             # bind the file \"/dev/fuse\" at \"/dev/fuse\", read-only
             mount_setattr(\"/dev/fuse\", AT_RECURSIVE, MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOSUID|MOUNT_ATTR_NOEXEC, MS_PRIVATE)
             # \"/dev\" read-only
             weakened  none",
        );
    }
    for permissions in ["r", "w", "m", "rm"] {
        check(
            &device("/dev/fuse", "/dev/other", permissions),
            &format!(
                "# bind the file \"/dev/fuse\" at \"/dev/other\", read-only
                 weakened  devices
                 devices: \"/dev/other\" can be opened for more than {permissions:?}: there is no device cgroup"
            ),
        );
    }
    let strict = |permissions| {
        let mut case = device("/dev/fuse", "/dev/fuse", permissions);
        case.spec.require = Some(Control::DEVICES);
        case
    };
    check(&strict("rw"), "");
    refused(
        &strict("r"),
        "unsupported: this host cannot enforce devices: \"/dev/fuse\" can be opened for more than \"r\": there is no \
         device cgroup",
    );
}

#[test]
fn devices_that_cannot_be() {
    for (source, target, permissions, message) in [
        ("dev/fuse", "/dev/fuse", "rw", "devices must be absolute but got relative path \"dev/fuse\""),
        ("/dev/fuse", "fuse", "rw", "devices must be absolute but got relative path \"fuse\""),
        ("/dev/fuse", "/dev/../fuse", "rw", "devices: \"/dev/../fuse\" must not contain \"..\""),
        ("/srv/file", "/dev/fuse", "rw", "devices: \"/srv/file\" is no device of the host"),
        ("/srv/a", "/dev/fuse", "rw", "devices: \"/srv/a\" is no device of the host"),
        ("/dev/none", "/dev/fuse", "rw", "devices: \"/dev/none\" is no device of the host"),
        ("/dev/fuse", "/dev/fuse", "", "devices: \"\" is not made of r, w and m"),
        ("/dev/fuse", "/dev/fuse", "rx", "devices: \"rx\" is not made of r, w and m"),
    ] {
        refused(&device(source, target, permissions), &format!("spec devices: {message}"));
    }
}

/// Who has no right to make nodes gets the host's.
#[test]
fn the_six_devices_of_every_task() {
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
