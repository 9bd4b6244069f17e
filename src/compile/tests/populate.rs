//! How the root is populated: overlays, the choice of `auto`, what is left out, and the task's directories and
//! generated files.

use super::*;
use crate::rootfs::probe::Owner;
use crate::rootfs::{Dns, HostsEntry, Secrets, TaskDirs};

fn overlay(set: impl FnOnce(&mut Case)) -> Case {
    case(|c| {
        c.spec.root.populate = Method::Overlay;
        c.spec.root.chroot_env =
            [("/usr", "/usr"), ("/srv/a", "/opt/a%b")].map(|(a, b)| (a.into(), b.into())).into();
        c.survey.owners.insert("/srv/a".into(), Owner { mode: 0o2750, uid: 7, gid: 8 });
        c.survey.owners.insert("/usr".into(), Owner { mode: 0o755, uid: 0, gid: 0 });
        set(c);
    })
}

/// They are opened before there is a plan, so before the files of the task are made.
#[test]
fn sources_are_opened_before_all_other_steps() {
    let plan = compiled(&case(|c| {
        c.spec.root.populate = Method::Copy;
        c.spec.root.chroot_env = [("/srv/a".into(), "/a".into())].into();
        (c.spec.id, c.spec.replace) = (Some("box".into()), true);
        c.policy.state_dir = Some("/var/lib/driver".into());
    }));
    let text = plan.unwrap().to_string();
    let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} is not in {text}"));
    assert!(at("# open the sources of the root") < at("/var/lib/driver"), "{text}");
}

#[test]
fn overlays_are_written_to_a_tmpfs() {
    let plan = check(
        &overlay(|c| c.spec.root.tmpfs_size = Some(4096)),
        "# the upper layer of overlays is a new tmpfs
         fsconfig(\"tmpfs\", FSCONFIG_SET_STRING, \"size\", \"4096\")
         move_mount(tmpfs, \"/\")
         # the root is a new tmpfs
         # overlay \"/srv/a\" at \"/opt/a%b\"
         mkdirat(upper, \"opt%2Fa%25b\", 0700)
         openat(upper, \"opt%2Fa%25b\", O_PATH|O_DIRECTORY|O_NOFOLLOW)
         mkdirat(\"opt%2Fa%25b\", \"upper\", 0700)
         fchownat(\"opt%2Fa%25b\", \"upper\", 7, 8)
         fchmodat(\"opt%2Fa%25b\", \"upper\", 2750)
         mkdirat(\"opt%2Fa%25b\", \"work\", 0700)
         mount_setattr(\"/srv/a\", MS_PRIVATE)
         openat2(root, \"/opt/a%b\", RESOLVE_IN_ROOT)
         move_mount(\"/srv/a\", root \"/opt/a%b\")
         fsopen(\"overlay\")
         fsconfig(\"overlay\", FSCONFIG_SET_STRING, \"lowerdir\", below /proc/self/fd)
         fsconfig(\"overlay\", FSCONFIG_SET_STRING, \"upperdir\", below /proc/self/fd)
         fsconfig(\"overlay\", FSCONFIG_SET_STRING, \"workdir\", below /proc/self/fd)
         fsconfig(\"overlay\", FSCONFIG_CMD_CREATE)
         fsmount(\"overlay\", MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV)
         umount2(below /proc/self/fd, MNT_DETACH)
         move_mount(\"overlay\", root \"/opt/a%b\")
         # overlay \"/usr\" at \"/usr\"
         missing   none
         ! userxattr",
    );
    assert!(plan.report.enforced.contains(Control::HOST_FILES));
}

#[test]
fn overlays_are_written_to_a_directory_of_the_host() {
    let upper = |c: &mut Case| c.spec.root.upper = Some("/srv/b".into());
    check(
        &overlay(upper),
        "# the upper layer of overlays is \"/srv/b\"
         mount_setattr(\"/srv/b\", MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV, MS_PRIVATE)
         move_mount(\"/srv/b\", \"/\")
         # overlay \"/usr\" at \"/usr\"
         mkdirat(upper, \"usr\", 0700)
         ! the upper layer of overlays is a new tmpfs",
    );
    for (path, why) in [
        ("/nope", "root.upper: \"/nope\" does not exist on the host"),
        ("/srv/file", "root.upper: \"/srv/file\" is not a directory"),
        ("srv", "root.upper must be absolute but got relative path \"srv\""),
    ] {
        refused(&overlay(|c| c.spec.root.upper = Some(path.into())), &format!("spec root.upper: {why}"));
    }
    let other = case(|c| {
        upper(c);
        c.spec.root.populate = Method::Copy;
    });
    refused(
        &other,
        "spec root.upper: root.upper: it needs populate \"overlay\", but the root is populated by copy",
    );
}

/// A directory that two sources share on the host is shared in the sandbox too.
#[test]
fn a_directory_inside_another_overlay_is_shared_with_it() {
    let linked = |set: &dyn Fn(&mut Case)| {
        overlay(|c| {
            c.spec.root.chroot_env =
                [("/bin", "/bin"), ("/usr", "/usr")].map(|(a, b)| (a.into(), b.into())).into();
            c.survey.real.insert("/bin".into(), "/usr/bin".into());
            c.survey.kinds.insert("/usr/bin/x".into(), Some(FileKind::Dir));
            set(c);
        })
    };
    check(
        &linked(&|_| ()),
        "# overlay \"/usr\" at \"/usr\"
         # bind \"/usr/bin\" of the sandbox at \"/bin\"
         openat2(root, \"/usr/bin\", RESOLVE_IN_ROOT)
         open_tree(root \"/usr/bin\", OPEN_TREE_CLONE|AT_RECURSIVE)
         openat2(root, \"/bin\", RESOLVE_IN_ROOT)
         move_mount(root \"/usr/bin\", root \"/bin\")
         ! # overlay \"/bin\"",
    );
    // `/lib` is itself shared later, so `/lib/modules` cannot be taken from it.
    let chain = linked(&|c| {
        let map = [("/usr", "/usr"), ("/lib", "/lib"), ("/lib/modules", "/boot/modules")];
        c.spec.root.chroot_env = map.map(|(a, b)| (a.into(), b.into())).into();
        for (source, real) in [("/lib", "/usr/lib"), ("/lib/modules", "/usr/lib/modules")] {
            c.survey.kinds.insert(source.into(), Some(FileKind::Dir));
            c.survey.real.insert(source.into(), real.into());
        }
    });
    check(
        &chain,
        "# bind \"/usr/lib/modules\" of the sandbox at \"/boot/modules\"
         # bind \"/usr/lib\" of the sandbox at \"/lib\"",
    );
    let own = "# overlay \"/bin\" at \"/bin\"\n! of the sandbox at";
    let also = |source: &'static str, target: &'static str| {
        move |c: &mut Case| {
            c.spec.root.chroot_env.insert(source.into(), target.into());
        }
    };
    check(&linked(&also("/srv/a", "/usr/bin/x")), own);
    check(&linked(&also("/srv/a", "/bin/x")), own);
    let mount = |at: &'static str| move |c: &mut Case| c.survey.mounts.extend([(at.into(), FileKind::Dir)]);
    check(&linked(&mount("/usr/bin/x")), own);
    check(&linked(&mount("/usr/bin")), own);
}

/// Files, and mounts of the host below a source, have no overlay.
#[test]
fn files_and_submounts_are_bound_over_an_overlay() {
    let case = overlay(|c| {
        c.spec.root.chroot_env.insert("/etc/hosts".into(), "/etc/hosts".into());
        for (at, kind) in [
            ("/usr/local", FileKind::Dir),
            ("/usr/local/x", FileKind::Dir),
            ("/usr/f", FileKind::File),
            ("/usrx", FileKind::Dir),
        ] {
            c.survey.mounts.insert(at.into(), kind);
        }
    });
    check(
        &case,
        "# bind the file \"/etc/hosts\" at \"/etc/hosts\", read-only
         # overlay \"/usr\" at \"/usr\"
         # bind the file \"/usr/f\" at \"/usr/f\", read-only
         # bind \"/usr/local\" at \"/usr/local\", read-only
         host_files: \"/etc/hosts\" is read-only: only directories can have an overlay
         ! /usr/local/x\n! usrx",
    );
}

#[test]
fn unprivileged_overlays_use_userxattr_and_refuse_submounts() {
    let case = overlay(|c| c.host = rootless());
    check(
        &case,
        "fchownat(\"opt%2Fa%25b\", \"upper\", 65534, 65534)
         fsconfig(\"overlay\", FSCONFIG_SET_FLAG, \"userxattr\")
         fsconfig(\"overlay\", FSCONFIG_CMD_CREATE)",
    );
    let locked = overlay(|c| {
        c.host = rootless();
        c.survey.mounts.insert("/usr/local".into(), FileKind::Dir);
    });
    let why = "in a user namespace \"/usr\" cannot have an overlay, because other file systems are mounted inside it";
    refused(&locked, &format!("unsupported: this host cannot enforce host_files: {why}"));
    let mut auto = locked;
    (auto.spec.root.populate, auto.spec.root.writable) = (Method::Auto, true);
    assert_eq!(build(&compiled(&auto).unwrap()).method, Method::Reflink);
    let lacking = overlay(|c| c.host.overlay = false);
    refused(
        &lacking,
        "unsupported: this host cannot enforce host_files: the kernel has no overlay file system",
    );
}

#[test]
fn auto_chooses_the_cheapest_method_that_fits() {
    let auto = |set: &dyn Fn(&mut Case)| {
        case(|c| {
            c.spec.root.populate = Method::Auto;
            set(c);
        })
    };
    let nested = |c: &mut Case| {
        c.spec.root.chroot_env =
            [("/usr", "/usr"), ("/srv/a", "/usr/a")].map(|(a, b)| (a.into(), b.into())).into();
    };
    type Set<'a> = &'a dyn Fn(&mut Case);
    let table: [(Set<'_>, Method, &str); 7] = [
        (&|_| (), Method::Bind, "bind, because it need not be writable"),
        (&|c| c.spec.root.writable = true, Method::Overlay, "overlay, because it must be writable"),
        (
            &|c| c.spec.root.upper = Some("/srv/b".into()),
            Method::Overlay,
            "overlay, because the task's writes go to \"/srv/b\"",
        ),
        (&|c| nested(c), Method::Overlay, "overlay, because \"/usr/a\" must be created in it"),
        (
            &|c| c.spec.work_dir = Some("/etc/w".into()),
            Method::Overlay,
            "overlay, because \"/etc/w\" must be created in it",
        ),
        (
            &|c| (c.spec.root.writable, c.host.overlay) = (true, false),
            Method::Reflink,
            "reflink, because it must be writable, and the kernel has no overlay file system",
        ),
        (
            &|c| c.spec.root.chroot_env = [("/srv/a".into(), "/".into())].into(),
            Method::Reflink,
            "reflink, because \"/srv/a\" cannot be mounted over the root",
        ),
    ];
    for (set, method, why) in table {
        let case = auto(set);
        assert_eq!(build(&compiled(&case).unwrap()).method, method, "{why}");
        check(&case, &format!("host_files: auto: the root is populated by {why}"));
    }
    // If the source has the directory, `bind` is enough.
    let mut there = auto(&|c| nested(c));
    there.survey.kinds.insert("/usr/a".into(), Some(FileKind::Dir));
    assert_eq!(build(&compiled(&there).unwrap()).method, Method::Bind);
}

/// A mount point inside a volume or a task directory needs no place in an entry, and a source that is left out needs
/// none at all.
#[test]
fn bind_is_refused_only_if_a_mount_point_is_missing_in_an_entry() {
    let volume =
        |to: &str| crate::rootfs::Volume { source: "/srv/a".into(), target: to.into(), ..Default::default() };
    type Set<'a> = &'a dyn Fn(&mut Case);
    let table: [(Set<'_>, Option<&str>); 7] = [
        (&|c| c.spec.work_dir = Some("/usr/a/b".into()), Some("/usr/a/b")),
        (&|c| (c.spec.volumes, c.spec.work_dir) = (vec![volume("/usr/a")], Some("/usr/a/b".into())), None),
        (&|c| c.spec.volumes = vec![volume("/usr/a"), volume("/usr/a/b/c")], None),
        (&|c| drop(c.spec.root.chroot_env.insert("/gone".into(), "/usr/gone".into())), None),
        (&|c| drop(c.spec.root.chroot_env.insert("/srv/b".into(), "./usr/./a/".into())), None),
        (&|c| drop(c.spec.root.chroot_env.insert("/srv/b".into(), "./usr/b".into())), Some("/usr/b")),
        (
            &|c| (c.spec.dns, c.survey.kinds) = (Some(Dns::default()), absent(c, "/etc/resolv.conf")),
            Some("/etc/resolv.conf"),
        ),
    ];
    for (set, refusal) in table {
        let case = case(|c| {
            c.spec.root.chroot_env = ["/usr", "/etc"].map(|p| (p.into(), p.into())).into();
            c.survey.kinds.insert("/usr/a".into(), Some(FileKind::Dir));
            c.spec.work_dir = Some("/dev/shm/mine".into());
            set(c);
        });
        match refusal {
            None => assert_eq!(build(&compiled(&case).unwrap()).method, Method::Bind),
            Some(at) => {
                let error = compiled(&case).unwrap_err();
                assert!(error.contains(&format!("{at:?} cannot be created in the root")), "{error}");
                let mut auto = case;
                auto.spec.root.populate = Method::Auto;
                assert_eq!(build(&compiled(&auto).unwrap()).method, Method::Overlay, "{at}");
            }
        }
    }
}

fn absent(case: &Case, path: &str) -> BTreeMap<PathBuf, Option<FileKind>> {
    let mut kinds = case.survey.kinds.clone();
    kinds.insert(path.into(), None);
    kinds
}

#[test]
fn the_working_directory_is_made_without_trailing_dots() {
    for (work_dir, line) in [
        ("/", "! mkdirat(root, \"/\""),
        ("//.", "! mkdirat(root, \"/\""),
        ("/w/./", "mkdirat(root, \"/w\", 0755)"),
    ] {
        check(&case(|c| c.spec.work_dir = Some(work_dir.into())), line);
    }
}

#[test]
fn skipped_directories_are_masked_and_unusable_sources_reported() {
    let mut case = overlay(|c| {
        c.spec.root.chroot_env.insert("/dev/fuse".into(), "/x".into());
        let skip = |path: &str| crate::host::Skip { path: path.into(), id: (1, 2) };
        c.survey.skip = vec![skip("/usr/alloc"), skip("/real/a/b"), skip("/elsewhere")];
        c.survey.real.insert("/srv/a".into(), "/real/a".into());
    });
    let masked = "# mask \"/opt/a%b/b\"\n# mask \"/usr/alloc\"\n! elsewhere";
    let listed = "host_files: left out of the root: \"/dev/fuse\" is a device";
    check(&case, &format!("{masked}\n{listed}"));
    case.spec.root.populate = Method::Bind;
    check(&case, masked);
    // Copying identifies skipped directories by device and inode.
    case.spec.root.populate = Method::Copy;
    assert_eq!(build(&compiled(&case).unwrap()).skip, [(1, 2); 3]);
    check(&case, "! # mask \"/usr/alloc\"");
    case.survey.real.insert("/srv/a".into(), "/real/a/b".into());
    let work = build(&compiled(&case).unwrap());
    assert_eq!(work.env.keys().collect::<Vec<_>>(), [&PathBuf::from("/usr")]);
    assert_eq!(work.skipped.len(), 2);
}

#[test]
fn a_source_that_cannot_be_opened_is_an_error() {
    let case = overlay(|c| {
        c.survey.unseen.insert("/usr".into(), "Permission denied (os error 13)".into());
        c.survey.kinds.remove(Path::new("/usr"));
    });
    refused(&case, "spec root.chroot_env: root.chroot_env: \"/usr\": Permission denied (os error 13)");
}

/// `chroot_skip` covers a directory with a read-only one, in which no mount point can be made. Copying leaves an
/// ordinary empty directory.
#[test]
fn a_mount_point_inside_a_skipped_directory_is_refused() {
    let mut case = overlay(|c| {
        c.survey.skip = vec![crate::host::Skip { path: "/usr/alloc".into(), id: (1, 2) }];
        c.survey.kinds.insert("/usr/alloc/a".into(), Some(FileKind::Dir));
        c.spec.volumes =
            vec![Volume { source: "/srv/b".into(), target: "/usr/alloc/a".into(), ..Volume::default() }];
    });
    let why = "spec volumes: volumes: \"/usr/alloc/a\" cannot be created in the root: chroot_skip excludes it; \
               populate by copy or auto";
    refused(&case, why);
    case.spec.root.populate = Method::Bind;
    refused(&case, why);
    case.spec.root.populate = Method::Auto;
    assert_eq!(build(&compiled(&case).unwrap()).method, Method::Reflink);
}

#[test]
fn the_lower_of_two_population_limits_applies() {
    for (policy, spec, expect) in
        [(None, None, None), (Some(5), None, Some(5)), (None, Some(4), Some(4)), (Some(5), Some(9), Some(5))]
    {
        let case = case(|c| {
            c.spec.root.populate = Method::Copy;
            (c.policy.max_entries, c.policy.max_bytes) = (policy, policy);
            (c.spec.root.max_entries, c.spec.root.max_bytes) = (spec, spec);
        });
        let work = build(&compiled(&case).unwrap());
        assert_eq!((work.max_entries, work.max_bytes), (expect, expect));
    }
}

#[test]
fn task_directories_are_mounted() {
    let files = [("token".to_owned(), "s3cr3t".to_owned())].into();
    let mut case = case(|c| {
        c.spec.task_dirs = TaskDirs {
            alloc: Some("/srv/a".into()),
            local: Some("/srv/b".into()),
            secrets: Some(Secrets { size: None, files }),
            tmp: Some(4096),
        };
    });
    let old = "/secrets may be written to swap: the tmpfs option noswap needs Linux 6.4, this is 6.1";
    check(
        &case,
        &format!(
            "# bind \"/srv/a\" at \"/alloc\"
             mount_setattr(\"/srv/a\", AT_RECURSIVE, MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV, MS_PRIVATE)
             # bind \"/srv/b\" at \"/local\"
             # \"/alloc/logs\" read-only
             # mount \"tmpfs\" at \"/secrets\"
             fsconfig(\"tmpfs\", FSCONFIG_SET_STRING, \"mode\", \"0700\")
             fsconfig(\"tmpfs\", FSCONFIG_SET_STRING, \"uid\", \"65534\")
             fsconfig(\"tmpfs\", FSCONFIG_SET_STRING, \"gid\", \"65534\")
             fsconfig(\"tmpfs\", FSCONFIG_SET_STRING, \"size\", \"1048576\")
             fsmount(\"tmpfs\", MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV|MOUNT_ATTR_NOEXEC)
             # new file \"/secrets/token\" of 6 bytes
             openat(root, \"/secrets/token\", O_CREAT|O_EXCL|O_NOFOLLOW, 0400)
             write(it, 6 bytes) # for \"/secrets/token\"
             fchownat(it, 65534, 65534) # for \"/secrets/token\"
             # mount \"tmpfs\" at \"/tmp\"
             fsconfig(\"tmpfs\", FSCONFIG_SET_STRING, \"mode\", \"1777\")
             mount_ns: {old}
             ! s3cr3t
             ! noswap\")"
        ),
    );
    case.host.kernel = (6, 4);
    check(&case, "fsconfig(\"tmpfs\", FSCONFIG_SET_FLAG, \"noswap\")\n! to swap");
    case.host = Host { kernel: (6, 4), ..rootless() };
    check(
        &case,
        "mount_ns: /secrets may be written to swap: the tmpfs option noswap is not allowed in a user namespace",
    );
    assert!(!format!("{:?}", case.spec).contains("s3cr3t"));
}

#[test]
fn invalid_task_directories_are_refused() {
    let dirs = |dirs: TaskDirs| case(|c| c.spec.task_dirs = dirs);
    let secret = |name: &str, text: &str| {
        let files = [(name.to_owned(), text.to_owned())].into();
        dirs(TaskDirs { secrets: Some(Secrets { size: Some(4), files }), ..TaskDirs::default() })
    };
    for (case, why) in [
        (
            dirs(TaskDirs { alloc: Some("/srv/file".into()), ..TaskDirs::default() }),
            "\"/srv/file\" is not a directory, so it cannot be mounted at \"/alloc\"",
        ),
        (
            dirs(TaskDirs { local: Some("/nope".into()), ..TaskDirs::default() }),
            "\"/nope\" does not exist on the host",
        ),
        (secret("a/b", ""), "\"a/b\" is not a valid file name in /secrets"),
        (secret("..", ""), "\"..\" is not a valid file name in /secrets"),
        (secret("", ""), "\"\" is not a valid file name in /secrets"),
        (secret("a", "12345"), "the secret \"a\" is larger than the 4 bytes of /secrets"),
    ] {
        refused(&case, &format!("spec task_dirs: task_dirs: {why}"));
    }
}

/// For the kernel, both sizes are no limit.
#[test]
fn a_tmpfs_of_size_zero_or_of_2_to_the_63_bytes_is_refused() {
    type Set = fn(&mut SandboxSpec, u64);
    let sizes: [(&str, Set); 3] = [
        ("root.tmpfs_size", |s, n| s.root.tmpfs_size = Some(n)),
        ("task_dirs.tmp", |s, n| s.task_dirs.tmp = Some(n)),
        ("task_dirs.secrets.size", |s, n| {
            s.task_dirs.secrets = Some(Secrets { size: Some(n), ..Secrets::default() });
        }),
    ];
    for (field, set) in sizes {
        let sized = |n| case(|c| set(&mut c.spec, n));
        let why = "it must not be 0: leave it out for the default";
        refused(&sized(0), &format!("spec {field}: {field}: {why}"));
        for n in [1 << 63, u64::MAX] {
            refused(&sized(n), &format!("spec {field}: {field}: it must be less than 2^63 bytes"));
        }
        compiled(&sized((1 << 63) - 1)).unwrap();
    }
    let copied = case(|c| (c.spec.root.populate, c.spec.root.tmpfs_size) = (Method::Copy, Some(1)));
    let why = "populate \"copy\" has no tmpfs to limit";
    refused(&copied, &format!("spec root.tmpfs_size: root.tmpfs_size: {why}"));
}

#[test]
fn resolv_conf_and_hosts_are_generated() {
    let case = case(|c| {
        c.spec.dns = Some(Dns { searches: strings(&["example"]), ..Dns::default() });
        c.spec.hosts = Some(vec![HostsEntry { address: "10.0.0.7".into(), names: strings(&["db"]) }]);
    });
    let plan = check(
        &case,
        "# file \"/etc/resolv.conf\" of 35 bytes, read-only
         openat(/dev, \".file\", O_CREAT|O_EXCL|O_NOFOLLOW, 0644) # for \"/etc/resolv.conf\"
         write(it, 35 bytes) # for \"/etc/resolv.conf\"
         open_tree(/dev \".file\", OPEN_TREE_CLONE) # for \"/etc/resolv.conf\"
         mount_setattr(it, MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV|MOUNT_ATTR_NOEXEC) # for \"/etc/resolv.conf\"
         openat2(root, \"/etc/resolv.conf\", RESOLVE_IN_ROOT)
         move_mount(it, root \"/etc/resolv.conf\")
         unlinkat(/dev, \".file\") # for \"/etc/resolv.conf\"
         # file \"/etc/hosts\" of...
         # \"/dev\" read-only",
    );
    let text = plan.init.iter().find_map(|step| match step.op().unwrap() {
        Op::File { content, .. } => Some(String::from_utf8(content.0.to_vec()).unwrap()),
        _ => None,
    });
    assert_eq!(text.unwrap(), "nameserver 10.0.0.1\nsearch example\n");
    let mut wrong = case.clone();
    wrong.spec.dns = Some(Dns { servers: strings(&["x"]), ..Dns::default() });
    refused(&wrong, "spec dns: dns: \"x\" is not the IP address of a name server");
    let mut wrong = case;
    wrong.spec.hosts = Some(vec![HostsEntry { address: "x".into(), names: Vec::new() }]);
    refused(&wrong, "spec hosts: hosts: \"x\" is not an IP address");
}
