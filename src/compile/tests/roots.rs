//! What becomes `/`, how it is populated, and how init enters it.

use super::*;
use crate::rootfs::work::MakeTempRoot;

/// A root with this method, path and writability, populated with `/usr` and a file.
fn root(populate: Method, path: Option<&str>, writable: bool) -> Case {
    case(|c| {
        c.spec.root.populate = populate;
        c.spec.root.path = path.map(PathBuf::from);
        c.spec.root.writable = writable;
        c.spec.root.chroot_env =
            [("/usr", "/usr"), ("/etc/hosts", "etc/hosts")].map(|(a, b)| (a.into(), b.into())).into();
        c.policy.temp_dir = Some("/var/tmp".into());
        c.policy.allow_privileged = writable;
    })
}

#[test]
fn bind_mounts_entries_read_only_on_a_new_tmpfs() {
    let plan = check(
        &root(Method::Bind, None, false),
        "# the root is a new tmpfs
         fsconfig(\"tmpfs\", FSCONFIG_SET_STRING, \"size\", \"67108864\")
         # bind the file \"/etc/hosts\" at \"/etc/hosts\", read-only
         # bind \"/usr\" at \"/usr\", read-only
         mount_setattr(\"/usr\", AT_RECURSIVE, MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV, MS_PRIVATE)
         missing   none
         ! later linkat
         ! copy_file_range
         ! /var/tmp",
    );
    assert!(plan.report.enforced.contains(Control::HOST_FILES));
    let why = "populate \"bind\" cannot be writable: use overlay or auto";
    refused(&root(Method::Bind, None, true), &format!("spec root.writable: root.writable: {why}"));
    let sized = case(|c| c.spec.root.tmpfs_size = Some(4096));
    check(&sized, "fsconfig(\"tmpfs\", FSCONFIG_SET_STRING, \"size\", \"4096\")");
}

#[test]
fn bind_mounts_entries_on_the_given_directory() {
    check(
        &root(Method::Bind, Some("/srv/a"), false),
        "open_tree(held \"/srv/a\", OPEN_TREE_CLONE|AT_EMPTY_PATH|AT_RECURSIVE)
         # the root is \"/srv/a\"
         mount_setattr(\"/srv/a\", AT_RECURSIVE, MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV, MS_PRIVATE)
         move_mount(\"/srv/a\", \"/\")
         # bind \"/usr\" at \"/usr\", read-only
         ! new tmpfs",
    );
}

#[test]
fn link_populates_a_directory_and_makes_the_entries_read_only() {
    let fresh = "openat2(\"/etc/hosts\", O_PATH) # later linkat for each file of it
         openat2(\"/usr\", O_PATH) # later linkat for each file of it
         mkdirat(\"/var/tmp\", \"cofferdam-box\", 0700)
         mkdirat(\"/var/tmp/cofferdam-box\", \"root\", 0700)
         # the root is \"/var/tmp/cofferdam-box/root\"
         # \"/etc/hosts\" read-only
         open_tree(root \"/etc/hosts\", OPEN_TREE_CLONE|AT_RECURSIVE)
         mount_setattr(\"/etc/hosts\", AT_RECURSIVE, MOUNT_ATTR_RDONLY)
         # \"/usr\" read-only
         # directory \"/tmp\"
         missing   none
         ! bind \"/usr\"";
    let compiled = compiled(&root(Method::Link, None, false)).unwrap();
    let temp = MakeTempRoot { base: "/var/tmp".into(), id: "box".into() };
    assert!(compiled.parent.iter().any(|step| step.op == ParentOp::TempRoot(temp.clone())));
    let build = build(&compiled);
    assert_eq!(build.dir, Some("/var/tmp/cofferdam-box/root".into()));
    assert_eq!((build.method, build.env.len()), (Method::Link, 2));
    let plan = check(&root(Method::Link, None, false), fresh);
    assert!(plan.report.enforced.contains(Control::HOST_FILES));
    check(
        &root(Method::Link, Some("/srv/a"), false),
        "openat2(\"/usr\", O_PATH) # later linkat for each file of it
         # the root is \"/srv/a\"
         # \"/usr\" read-only
         ! mkdirat(\"/var/tmp\"",
    );
}

/// The only kind of sandbox that can write to the host's files. The author and the policy must both ask for it.
#[test]
fn a_writable_linked_root_does_not_protect_the_hosts_files() {
    let writable = root(Method::Link, None, true);
    check(
        &writable,
        "openat2(\"/usr\", O_PATH) # later linkat for each file of it
         missing   host_files
         host_files: the root is writable and consists of hard links: the task can change the host's own files
         ! \"/usr\" read-only",
    );
    let mut strict = writable;
    strict.spec.require = Some(Require::Full);
    refused(
        &strict,
        "unsupported: this host cannot enforce host_files: the root is writable and consists of hard links: the task can \
         change the host's own files",
    );
}

/// An entry linked into `/` cannot be bound over itself to make it read-only: the whole root becomes read-only at the
/// end.
#[test]
fn an_entry_linked_into_the_root_makes_the_whole_root_read_only() {
    let over = |populate, writable, target: &str| {
        let mut case = root(populate, None, writable);
        case.spec.root.chroot_env = [("/srv/a".into(), target.into())].into();
        case.spec.work_dir = Some("/w".into());
        case
    };
    for target in ["/", "", "/."] {
        check(
            &over(Method::Link, false, target),
            "# directory \"/w\"
             # \"/dev\" read-only
             # \"/\" read-only
             openat2(root, \"/\", RESOLVE_IN_ROOT)
             mount_setattr(\"/\", MOUNT_ATTR_RDONLY)
             # switch to the new root
             missing   none
             ! open_tree(root \"/\",\n! open_tree(root \"/.",
        );
        refused(
            &over(Method::Bind, false, target),
            "spec root.chroot_env: root.chroot_env: \"/srv/a\" cannot be mounted over the new root: use it as the path of the root",
        );
    }
    check(&over(Method::Link, true, "/"), "missing   host_files\n! \"/\" read-only");
    check(&over(Method::Copy, false, "/"), "missing   none\n! \"/\" read-only");
}

#[test]
fn copies_need_no_bind_mounts() {
    for path in [None, Some("/srv/a")] {
        let plan = check(
            &root(Method::Copy, path, false),
            "openat2(\"/etc/hosts\", O_PATH) # later copy_file_range for each file of it
             openat2(\"/usr\", O_PATH) # later copy_file_range for each file of it
             missing   none
             ! bind \"/usr\"
             ! \"/usr\" read-only",
        );
        assert!(plan.report.enforced.contains(Control::HOST_FILES));
        assert_eq!(plan.parent.iter().any(|step| matches!(step.op, ParentOp::TempRoot(_))), path.is_none());
    }
}

#[test]
fn populate_none_uses_the_given_directory_unchanged() {
    check(
        &root(Method::None, Some("/srv/a"), false),
        "# the root is \"/srv/a\"
         # directory \"/tmp\"
         ! \"/usr\"
         ! later linkat",
    );
    refused(
        &root(Method::None, None, false),
        "spec root.path: root.path: populate \"none\" needs the path of an existing root directory",
    );
}

#[test]
fn the_root_must_be_a_directory() {
    for (path, message) in [
        ("srv/a", "root.path must be absolute but got relative path \"srv/a\""),
        ("/srv/../etc", "root.path: \"/srv/../etc\" must not contain \"..\""),
        ("/srv/file", "root.path: \"/srv/file\" is not a directory"),
        ("/srv/nothing", "root.path: \"/srv/nothing\" does not exist on the host"),
        ("/srv/a\0b", "root.path: \"/srv/a\\0b\" must not contain a NUL byte"),
    ] {
        refused(&root(Method::Bind, Some(path), false), &format!("spec root.path: {message}"));
    }
}

#[test]
fn the_specs_list_takes_precedence_over_the_policys_and_the_default() {
    let env = |source: &str| crate::rootfs::ChrootEnv::from([(source.into(), "/x".into())]);
    let both = case(|c| (c.policy.chroot_env, c.spec.root.chroot_env) = (env("/srv/a"), env("/srv/b")));
    check(&both, "# bind \"/srv/b\" at \"/x\", read-only\n! /srv/a\n! /usr\"");
    let operators = case(|c| c.policy.chroot_env = env("/srv/a"));
    check(&operators, "# bind \"/srv/a\" at \"/x\", read-only\n! /usr\"");
    // The fake host has three paths of the default list.
    check(
        &case(|_| ()),
        "# bind \"/bin\"...\n# bind \"/etc\"...\n# bind \"/usr\"...\n! /lib32\n! resolvconf",
    );
    // An outer target is bound before the targets inside it, whatever the order of the sources.
    let nested = case(|c| {
        c.spec.root.chroot_env =
            [("/bin", "/a/b"), ("/usr", "/a"), ("/etc", "/a/b/c")].map(|(s, t)| (s.into(), t.into())).into();
        for path in ["/usr/b", "/bin/c"] {
            c.survey.kinds.insert(path.into(), Some(FileKind::Dir));
        }
    });
    check(
        &nested,
        "# bind \"/usr\" at \"/a\"...\n# bind \"/bin\" at \"/a/b\"...\n# bind \"/etc\" at \"/a/b/c\"...",
    );
    let wrong = case(|c| c.spec.root.chroot_env = [("usr".into(), "/x".into())].into());
    refused(
        &wrong,
        "spec root.chroot_env: root.chroot_env: \"usr\" -> \"/x\": the source is not an absolute path",
    );
    let climbs = case(|c| c.policy.chroot_env = [("/usr".into(), "/x/../..".into())].into());
    refused(&climbs, "spec chroot_env: chroot_env: \"/usr\" -> \"/x/../..\": a path must not contain \"..\"");
}

#[test]
fn the_root_is_entered_by_pivot_root_or_chroot() {
    let entered = |no_pivot_root, drop: &[&str]| {
        case(|c| {
            c.policy.no_pivot_root = no_pivot_root;
            c.spec.cap_drop = strings(drop);
        })
    };
    check(
        &entered(false, &[]),
        "fchdir(root)
         pivot_root(\".\", \".\")
         umount2(\".\", MNT_DETACH)
         chdir(\"/\")
         weakened  none
         ! chroot(
         ! no_pivot_root",
    );
    let by_chroot = "fchdir(root)
         umount2(\"/proc\", MNT_DETACH)
         umount2(\"/sys\", MNT_DETACH)
         chroot(\".\")
         chdir(\"/\")
         ! pivot_root(";
    // CAP_SYS_CHROOT is one of the thirteen default capabilities.
    check(
        &entered(true, &[]),
        &format!(
            "{by_chroot}
             weakened  root_switch
             root_switch: no_pivot_root keeps the host's mounts below the root, and with CAP_SYS_CHROOT the task can escape from the chroot"
        ),
    );
    check(
        &entered(true, &["sys_chroot"]),
        &format!(
            "{by_chroot}
             weakened  none
             root_switch: no_pivot_root keeps the host's mounts in the mount namespace, below the root"
        ),
    );
}

#[test]
fn kernel_files_that_the_host_has_are_masked() {
    check(
        &case(|_| ()),
        "# empty directory for masks
         fsmount(\"tmpfs\", MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV|MOUNT_ATTR_NOEXEC)
         move_mount(tmpfs, root \"/proc\")
         # mount \"proc\" at \"/proc\"
         # mount \"sysfs\" at \"/sys\"
         # \"/dev\" read-only
         # \"/proc/sys\" read-only
         # mask \"/proc/kcore\"
         open_tree(root \"dev/null\", OPEN_TREE_CLONE)
         move_mount(\"dev/null\", root \"/proc/kcore\")
         # mask \"/sys/firmware\"
         open_tree(root \"/proc\", OPEN_TREE_CLONE) # the mount below the procfs
         move_mount(\"/proc\", root \"/sys/firmware\")
         # \"/\" read-only",
    );
    let bare = case(|c| {
        (c.host.masked, c.host.read_only) = (Vec::new(), Vec::new());
        c.host.private = Private::listed(&[]);
    });
    let plan = check(&bare, "! # mask\n! \"/proc/sys\"");
    assert!(plan.report.enforced.contains(Control::MASKED_PATHS));
}

#[test]
fn mounts_allow_setuid_only_without_no_new_privs() {
    check(
        &case(|c| c.spec.no_new_privs = false),
        "fsmount(\"tmpfs\", MOUNT_ATTR_NODEV)
         mount_setattr(\"/usr\", AT_RECURSIVE, MOUNT_ATTR_RDONLY|MOUNT_ATTR_NODEV, MS_PRIVATE)
         ! # no new privileges
         ! no_new_privs",
    );
}

#[test]
fn the_working_directory_is_made_and_entered() {
    let dir = |dir: &str| case(|c| c.spec.work_dir = Some(dir.into()));
    check(
        &dir("/work/it"),
        "# directory \"/work/it\"
         mkdirat(root, \"/work/it\", 0755)
         pivot_root(\".\", \".\")
         chdir(\"/work/it\")
         getcwd()",
    );
    check(&case(|_| ()), "setresuid(65534, 65534, 65534)\nchdir(\"/\")\ngetcwd()");
    refused(&dir("work"), "spec work_dir: work_dir must be absolute but got relative path \"work\"");
    refused(&dir("/a/../.."), "spec work_dir: work_dir: \"/a/../..\" must not contain \"..\"");
    refused(&dir(""), "spec work_dir: work_dir: it must not be empty: leave it out for /");
    let long = format!("/{}", "x".repeat(4095));
    refused(&dir(&long), "spec work_dir: work_dir: a path must be shorter than 4096 bytes");
}

#[test]
fn missing_sources_of_an_explicit_list_are_reported() {
    let list = |c: &mut Case| {
        c.spec.root.chroot_env = [("/usr".into(), "/usr".into()), ("/nope".into(), "/x".into())].into();
        c.survey.kinds.insert("/nope".into(), None);
    };
    check(&case(list), "host_files: left out of the root: \"/nope\" does not exist\n! at \"/x\"");
    check(&case(|_| ()), "! left out");
}

#[test]
fn private_files_of_the_default_etc_are_masked() {
    let said = "masked until the host replaces them, because other users cannot read them there";
    check(
        &case(|_| ()),
        &format!(
            "# mask \"/etc/shadow\"
             # mask \"/etc/ssl/private\"
             masked_paths: {said}: /etc/shadow /etc/ssl/private"
        ),
    );
    // An explicit list is not masked, and neither is a volume.
    let written = case(|c| c.spec.root.chroot_env = [("/etc".into(), "/etc".into())].into());
    check(&written, "! # mask \"/etc\n! covered");
    let operators = case(|c| c.policy.chroot_env = [("/etc".into(), "/etc".into())].into());
    check(&operators, "! # mask \"/etc\n! covered");
    let given = case(|c| {
        c.spec.root.populate = Method::Overlay;
        c.spec.volumes =
            vec![Volume { source: "/srv/a".into(), target: "/etc/ssl/".into(), ..Volume::default() }];
    });
    check(&given, "# mask \"/etc/shadow\"\n! # mask \"/etc/ssl");
}

/// A task can move `/etc` of a copy. Its masks move along, and the next task in that root sees what they covered.
#[test]
fn a_root_that_stays_weakens_the_masks_of_copied_files() {
    for (method, path, upper, weakened) in [
        (Method::Copy, true, false, true),
        (Method::Reflink, true, false, true),
        (Method::Copy, false, false, false),
        (Method::Bind, true, false, false),
        (Method::Overlay, false, true, true),
        (Method::Overlay, false, false, false),
    ] {
        let mut case = case(|_| ());
        case.spec.root.populate = method;
        case.spec.root.path = path.then(|| "/srv/a".into());
        case.spec.root.upper = upper.then(|| "/srv/b".into());
        let report = compiled(&case).unwrap().report;
        assert_eq!(report.weakened.contains(Control::MASKED_PATHS), weakened, "{method:?}: {report}");
    }
}

/// The socket in that directory reaches the host's resolver, from any network namespace.
#[test]
fn a_task_without_a_network_does_not_get_the_hosts_resolver() {
    let mut case = case(|_| ());
    case.survey.kinds.insert("/run/systemd/resolve".into(), Some(FileKind::Dir));
    let bind = "# bind \"/run/systemd/resolve\" at \"/run/systemd/resolve\", read-only";
    assert!(!check(&case, bind).report.weakened.contains(Control::NET_NS));
    case.spec.network = Network::None;
    let plan = check(&case, "! systemd/resolve");
    assert!(plan.report.enforced.contains(Control::NET_NS), "{}", plan.report);
    case.spec.dns = Some(crate::Dns::default());
    assert!(check(&case, bind).report.weakened.contains(Control::NET_NS));
}

/// A read-only directory has no place for a mount point, so the directory itself is shown.
#[test]
fn a_mount_in_a_masked_directory_weakens_the_masks() {
    let mut case = case(|_| ());
    case.spec.root.populate = Method::Overlay;
    case.spec.volumes.push(Volume::new("/srv/file", "/etc/ssl/private/key"));
    let plan = check(&case, "# mask \"/etc/shadow\"\n! # mask \"/etc/ssl");
    assert!(plan.report.weakened.contains(Control::MASKED_PATHS), "{}", plan.report);
    assert!(
        plan.report.why(Control::MASKED_PATHS).contains("/etc/ssl/private is not masked"),
        "{}",
        plan.report
    );
}

/// A generated file covers the host's, so it needs no mask.
#[test]
fn a_generated_file_is_not_masked() {
    let mut case = case(|_| ());
    case.host.private = Private::listed(&[("/etc/hosts", FileKind::File)]);
    check(&case, "# mask \"/etc/hosts\"");
    case.spec.hosts = Some(Vec::new());
    check(&case, "! # mask \"/etc/hosts\"");
}

/// An idmapped mount hides every private file, also those that the host makes later, so it replaces the masks.
#[test]
fn no_file_of_an_idmapped_etc_has_an_owner() {
    let idmapped = |set: &dyn Fn(&mut Case)| {
        let null = std::fs::File::open("/dev/null").unwrap();
        let mut case = case(|c| c.survey.users = Some(std::sync::Arc::new(null.into())));
        set(&mut case);
        case
    };
    let plan = check(
        &idmapped(&|_| ()),
        "open_tree(held \"/etc\", OPEN_TREE_CLONE|AT_EMPTY_PATH|AT_RECURSIVE)
         mount_setattr(\"/etc\", AT_RECURSIVE, MOUNT_ATTR_IDMAP)
         mount_setattr(\"/etc\", AT_RECURSIVE, MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV, MS_PRIVATE)
         # mask \"/proc/kcore\"
         ! # mask \"/etc",
    );
    assert!(plan.report.enforced.contains(Control::MASKED_PATHS));
    assert!(plan.report.why(Control::MASKED_PATHS).contains("idmapped"), "{}", plan.report);
    assert_ne!(
        plan.prepare_key(),
        compiled(&case(|c| c.host.private = Private::listed(&[]))).unwrap().prepare_key()
    );
    // Nobody could enter a private directory in which something is mounted. An overlay would have to map the ids back.
    let inner = |c: &mut Case| {
        c.survey.kinds.insert("/etc/ssl/file".into(), Some(FileKind::File));
        c.spec.volumes.push(Volume::new("/srv/file", "/etc/ssl/file"));
    };
    for masked in [
        idmapped(&inner),
        idmapped(&|c| c.spec.root.populate = Method::Overlay),
        idmapped(&|c| c.host = rootless()),
    ] {
        check(&masked, "# mask \"/etc/shadow\"\n! MOUNT_ATTR_IDMAP");
    }
    let outer = idmapped(&|c| c.spec.volumes.push(Volume::new("/srv/file", "/etc/hosts")));
    check(&outer, "mount_setattr(\"/etc\", AT_RECURSIVE, MOUNT_ATTR_IDMAP)\n! # mask \"/etc");
    // A volume of the author's own, and a list of his own, show `/etc` as it is.
    let own = idmapped(&|c| c.spec.volumes.push(Volume::new("/etc", "/v")));
    let text = text(&compiled(&own).unwrap());
    assert_eq!(text.matches("MOUNT_ATTR_IDMAP").count(), 1, "{text}");
    assert_eq!(text.matches("open_tree(held \"/etc\"").count(), 2, "{text}");
    let listed = idmapped(&|c| c.spec.root.chroot_env = [("/etc".into(), "/etc".into())].into());
    check(&listed, "! MOUNT_ATTR_IDMAP\n! # mask \"/etc");
}
