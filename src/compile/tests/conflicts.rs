//! Conflicts of mounts: two at one path, one that hides another, a directory over a file.

use super::*;
use crate::rootfs::{Dns, Secrets, TaskDirs};

fn volumes(list: &[(&str, &str)]) -> Case {
    case(|c| {
        c.spec.root.populate = Method::Overlay;
        let volume = |(source, target): &(&str, &str)| Volume {
            source: source.into(),
            target: target.into(),
            ..Volume::default()
        };
        c.spec.volumes = list.iter().map(volume).collect();
    })
}

#[test]
fn a_mount_that_hides_another_is_refused() {
    refused(
        &volumes(&[("/srv/a", "/a/b"), ("/srv/b", "/a")]),
        "spec volumes: volumes: the volume \"/srv/b\" at \"/a\" would hide the volume \"/srv/a\" at \"/a/b\": list the \
         outer mount first",
    );
    check(
        &volumes(&[("/srv/b", "/a"), ("/srv/a", "/a/b")]),
        "# bind \"/srv/b\" at \"/a\"\n# bind \"/srv/a\" at \"/a/b\"",
    );
    check(&volumes(&[("/srv/b", "/a"), ("/srv/a", "/ab")]), "");
    refused(
        &volumes(&[("/srv/a", "/dev")]),
        "spec volumes: volumes: the sandbox's own /dev and the volume \"/srv/a\" are both mounted at \"/dev\"",
    );
    check(&volumes(&[("/srv/a", "/dev/mine")]), "# bind \"/srv/a\" at \"/dev/mine\"");
    let mut dirs = volumes(&[("/srv/a", "/secrets")]);
    dirs.spec.task_dirs = TaskDirs { secrets: Some(Secrets::default()), ..TaskDirs::default() };
    refused(
        &dirs,
        "spec volumes: volumes: /secrets of task_dirs and the volume \"/srv/a\" are both mounted at \"/secrets\"",
    );
    let mut device = volumes(&[("/srv/file", "/dev/fuse")]);
    device.spec.devices = vec![Device::new("/dev/fuse")];
    refused(
        &device,
        "spec devices: devices: the volume \"/srv/file\" and the device \"/dev/fuse\" are both mounted at \"/dev/fuse\"",
    );
    let mut names = volumes(&[("/srv/file", "/etc/resolv.conf")]);
    names.spec.dns = Some(Dns::default());
    refused(
        &names,
        "spec volumes: volumes: the volume \"/srv/file\" and the sandbox's own /etc/resolv.conf are both mounted at \
         \"/etc/resolv.conf\"",
    );
}

#[test]
fn an_entry_hidden_by_a_mount_is_refused_or_reported() {
    for (dest, by) in [
        ("/dev", "the sandbox's own /dev"),
        ("/dev/x", "the sandbox's own /dev"),
        ("/proc/x", "the sandbox's own /proc"),
        ("/sys", "the sandbox's own /sys"),
        ("/tmp/x", "/tmp of task_dirs"),
    ] {
        let hidden = case(|c| {
            c.spec.task_dirs.tmp = Some(4096);
            c.spec.root.chroot_env = [("/srv/a".into(), dest.into())].into();
        });
        refused(
            &hidden,
            &format!("spec chroot_env: chroot_env: \"/srv/a\" -> {dest:?} would be hidden by {by}"),
        );
    }
    // A volume may hide an entry; the report says so.
    let said = "host_files: the volume \"/srv/a\" at \"/usr\" hides \"/usr\" of chroot_env";
    check(&volumes(&[("/srv/a", "/usr")]), said);
}

#[test]
fn a_directory_is_not_mounted_over_a_file() {
    let shown = |source: &str, target: &str, kind: FileKind| {
        let mut case = volumes(&[(source, target)]);
        case.survey.kinds.insert(target.into(), Some(kind));
        case
    };
    refused(
        &shown("/srv/a", "/usr/file", FileKind::File),
        "spec volumes: volumes: \"/srv/a\" is a directory, and cannot be mounted over \"/usr/file\", which is a file \
         (\"/usr/file\" on the host)",
    );
    refused(
        &shown("/srv/file", "/usr/dir", FileKind::Dir),
        "spec volumes: volumes: \"/srv/file\" is a file, and cannot be mounted over \"/usr/dir\", which is a directory \
         (\"/usr/dir\" on the host)",
    );
    check(&shown("/srv/file", "/usr/file", FileKind::File), "");
    check(&shown("/srv/a", "/usr/dir", FileKind::Dir), "");
}

#[test]
fn a_root_on_a_noexec_file_system_is_refused() {
    let at = |populate| {
        case(|c| {
            c.policy.temp_dir = Some("/var/tmp".into());
            c.spec.root.populate = populate;
            c.survey.noexec = ["/var/tmp".into()].into();
        })
    };
    let why =
        "\"/var/tmp\" is on a file system that is mounted noexec: no program in a root there can be executed";
    refused(&at(Method::Copy), &format!("spec temp_dir: temp_dir: {why}"));
    check(&at(Method::Bind), "");
    check(&at(Method::Overlay), "");
}
