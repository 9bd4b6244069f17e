//! Volumes: files and directories of the host in the task's root.

use super::*;
use crate::rootfs::Propagation;

fn volume(source: &str, target: &str, read_only: bool, propagation: Propagation) -> Case {
    let volume = Volume { source: source.into(), target: target.into(), read_only, propagation };
    case(|c| {
        c.policy.allow_privileged = true;
        c.spec.volumes = vec![volume];
    })
}

#[test]
fn volumes_have_their_propagation_and_mount_flags() {
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
        // A mount that the host makes there later has its own flags, without nodev.
        let weakened = match (propagation, read_only) {
            (Private, _) => "none",
            (_, false) => "devices",
            (_, true) => "host_files,devices",
        };
        let open = "open_tree(held \"/srv/a\", OPEN_TREE_CLONE|AT_EMPTY_PATH|AT_RECURSIVE)";
        // The tree is opened in the caller's mount namespace, where it is a peer of the host's mount.
        let begin = format!("{open}\nsocketpair...\n# bind \"/srv/a\" at \"/data\"{said}");
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
        assert_eq!(text(&plan).matches("open_tree(held \"/srv/a\"").count(), 1, "{propagation:?}");
    }
}

#[test]
fn a_file_volume_needs_a_mount_point_in_the_root() {
    let file = |populate| {
        let mut case = volume("/srv/file", "/etc/file", false, Propagation::Private);
        case.spec.root.populate = populate;
        case
    };
    let bound = "# bind the file \"/srv/file\" at \"/etc/file\"";
    check(&file(Method::Overlay), &format!("# overlay \"/etc\" at \"/etc\"\n{bound}"));
    // In a linked root the mount point is made before the linked entry becomes read-only.
    check(&file(Method::Link), &format!("# empty file \"/etc/file\"\n# \"/etc\" read-only\n{bound}"));
    refused(
        &file(Method::Bind),
        "spec volumes: volumes: \"/etc/file\" cannot be created in the root: \"/etc\" is bound read-only \
         and does not contain it; populate by overlay or auto",
    );
    let mut there = file(Method::Bind);
    there.survey.kinds.insert("/etc/file".into(), Some(FileKind::File));
    check(&there, bound);
    let mut honoured = volume("/srv/a", "/data", false, Propagation::Private);
    honoured.spec.no_new_privs = false;
    check(&honoured, "mount_setattr(\"/srv/a\", AT_RECURSIVE, MOUNT_ATTR_NODEV, MS_PRIVATE)");
}

/// A caller without privileges cannot clone a tree from what it holds. Init opens the source again and checks that it
/// is the same file.
#[test]
fn without_privileges_init_opens_each_source_again_and_compares() {
    let mut case = volume("/srv/a", "/data", false, Propagation::Private);
    case.host = rootless();
    case.survey.real.insert("/srv/a".into(), "/srv/real".into());
    let plan = check(
        &case,
        "# init
         # open \"/srv/real\", check that it is the file that the caller opened
         openat2(\"/srv/real\", O_PATH, RESOLVE_NO_SYMLINKS)
         statx(opened \"/srv/real\", STATX_INO)
         open_tree(opened \"/srv/real\", OPEN_TREE_CLONE|AT_RECURSIVE)
         # stop mount propagation to the host
         # bind \"/srv/a\" at \"/data\"
         ! open_tree(held",
    );
    assert!(plan.handed().any(|handed| *handed == Handed::Source("/srv/a".into())));
}

#[test]
fn invalid_volumes_are_refused() {
    for (source, target, message) in [
        ("srv", "/x", "volumes[0].source must be absolute but got relative path \"srv\""),
        ("/srv/a", "x", "volumes[0].target must be absolute but got relative path \"x\""),
        ("/srv/../etc", "/x", "volumes[0].source: \"/srv/../etc\" must not contain \"..\""),
        ("/srv/a", "/x/../../y", "volumes[0].target: \"/x/../../y\" must not contain \"..\""),
        (
            "/srv/a",
            "/",
            "volumes[0].target: \"/\" cannot be a mount point: / and everything below /proc are reserved",
        ),
        (
            "/srv/a",
            "/./",
            "volumes[0].target: \"/./\" cannot be a mount point: / and everything below /proc are reserved",
        ),
        (
            "/srv/a",
            "/proc",
            "volumes[0].target: \"/proc\" cannot be a mount point: / and everything below /proc are reserved",
        ),
        (
            "/srv/a",
            "/proc/sys",
            "volumes[0].target: \"/proc/sys\" cannot be a mount point: / and everything below /proc are reserved",
        ),
        (
            "/srv/a",
            "//proc/self",
            "volumes[0].target: \"//proc/self\" cannot be a mount point: / and everything below /proc are reserved",
        ),
        ("/srv/none", "/x", "volumes: \"/srv/none\" does not exist on the host"),
        ("/srv/a\0", "/x", "volumes[0].source: \"/srv/a\\0\" must not contain a NUL byte"),
    ] {
        refused(&volume(source, target, false, Propagation::Private), &format!("spec volumes: {message}"));
    }
    check(&volume("/srv/a", "/process", false, Propagation::Private), "# bind \"/srv/a\" at \"/process\"");
    let many = |n| {
        let one =
            |i| Volume { source: "/srv/a".into(), target: format!("/x{i}").into(), ..Volume::default() };
        case(|c| c.spec.volumes = (0..n).map(one).collect())
    };
    let same = |target: &str| {
        case(|c| {
            let volume = |source: &str, target: &str| Volume {
                source: source.into(),
                target: target.into(),
                ..Volume::default()
            };
            c.spec.volumes = vec![volume("/srv/a", "/x"), volume("/srv/b", target)];
        })
    };
    for target in ["/x", "/x/", "//x/."] {
        let both = "spec volumes: volumes: the volume \"/srv/a\" and the volume \"/srv/b\" are both mounted at \"/x\"";
        refused(&same(target), both);
    }
    check(&same("/x/y"), "");
    check(&many(400), "");
    refused(
        &many(600),
        "spec volumes: volumes: more than 512 files, directories and descriptors would be passed to init",
    );
}
