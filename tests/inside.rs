//! Tests in which the sandbox runs this binary, which reports what it sees. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::path::Path;
use std::time::Duration;

use cofferdam::cgroup::LimitEnv;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::statvfs::{FsFlags, statvfs};

use cofferdam::cgroup::devices::Access;
use cofferdam::{
    Control, Device, Error, IsolationMode, Limits, Network, Policy, Require, Resource, Rlimit, Root, Sandbox,
    Volume,
};
use common::{asked, can, output, probe, run_probe, sandboxes, say_facts, shell, status};

/// Entry point of this binary inside a sandbox; does nothing elsewhere.
#[test]
fn probe_entry() {
    let Some((what, mut say)) = asked() else { return };
    match what.as_str() {
        "facts" => say_facts(&mut say),
        "write" => {
            let dir = std::env::var("DIR").unwrap();
            say.attempt("write", std::fs::write(format!("{dir}/new"), "x").map_err(errno));
        }
        "open" => {
            for name in ["r", "w", "rw"] {
                for (way, how) in [("read", OFlag::O_RDONLY), ("write", OFlag::O_WRONLY)] {
                    let path = format!("/dev/given.{name}");
                    let opened = nix::fcntl::open(path.as_str(), how, Mode::empty());
                    say.attempt(&format!("{way} {name}"), opened);
                }
            }
        }
        "hog" => {
            let mut kept: Vec<Vec<u8>> = Vec::new();
            loop {
                kept.push(vec![1u8; 1 << 20]);
            }
        }
        other => panic!("no probe {other}"),
    }
}

fn errno(e: std::io::Error) -> nix::errno::Errno {
    nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(0))
}

#[test]
fn user_nobody_has_exactly_the_13_default_capabilities() {
    if !sandboxes() {
        return;
    }
    let seen = run_probe(probe("facts")).unwrap();
    assert!(seen.status.success(), "{}", seen.status);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(seen.get(set), "00000000a80405fb", "{set}");
    }
    assert_eq!(seen.get("Uid"), "65534 65534 65534 65534");
    assert_eq!(seen.get("Gid"), "65534 65534 65534 65534");
    assert_eq!(seen.get("NoNewPrivs"), "1");
    assert_eq!(seen.get("SigBlk"), "0000000000000000");
    assert_eq!(seen.get("Umask"), "0022");
    assert_eq!(seen.get("oom_score_adj"), "0");
    assert_eq!(seen.get("cwd"), "/");
    assert!(seen.report.enforced.contains(Control::CAPS | Control::NO_NEW_PRIVS | Control::ROOT_SWITCH));
}

#[test]
fn task_has_only_the_groups_of_its_user() {
    if !can("root") {
        return;
    }
    assert_eq!(run_probe(probe("facts")).unwrap().get("Groups"), "65534");
    let seen = run_probe(probe("facts").user("12345:678")).unwrap();
    assert_eq!((seen.get("Uid"), seen.get("Gid")), ("12345 12345 12345 12345", "678 678 678 678"));
    assert_eq!(seen.get("Groups"), "678");
}

#[test]
fn cap_drop_all_with_one_cap_add_leaves_that_one() {
    if !sandboxes() {
        return;
    }
    let sandbox = probe("facts").with(|s| {
        s.cap_drop = vec!["all".into()];
        s.cap_add = vec!["net_bind_service".into()];
    });
    let seen = run_probe(sandbox).unwrap();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(seen.get(set), "0000000000000400", "{set}");
    }
}

#[test]
fn root_is_limited_by_the_cap_lists_unless_root_keeps_caps() {
    if !can("root") {
        return;
    }
    let seen = run_probe(probe("facts").user("root")).unwrap();
    for (set, mask) in [
        ("CapInh", "0"),
        ("CapPrm", "a80405fb"),
        ("CapEff", "a80405fb"),
        ("CapBnd", "a80405fb"),
        ("CapAmb", "0"),
    ] {
        assert_eq!(seen.get(set).trim_start_matches('0'), mask.trim_start_matches('0'), "{set}");
    }
    let policy = Policy { root_keeps_caps: true, ..Policy::default() };
    let seen = run_probe(probe("facts").user("root").policy(&policy)).unwrap();
    let held = cofferdam::Host::probe().unwrap().held.bits() & 0x3f_ffff_ffff;
    assert_eq!(u64::from_str_radix(seen.get("CapEff"), 16).unwrap(), held);
    assert_eq!(seen.get("CapAmb"), "0000000000000000");
}

#[test]
fn pid_and_ipc_namespaces_follow_pid_mode_and_ipc_mode() {
    if !sandboxes() {
        return;
    }
    let own = |ns: &str| std::fs::read_link(format!("/proc/self/ns/{ns}")).unwrap().display().to_string();
    for pid in [IsolationMode::Private, IsolationMode::Host] {
        for ipc in [IsolationMode::Private, IsolationMode::Host] {
            let seen = run_probe(probe("facts").pid_mode(pid).ipc_mode(ipc)).unwrap();
            assert_eq!(seen.get("ns.pid") == own("pid"), pid == IsolationMode::Host, "{pid} {ipc}");
            assert_eq!(seen.get("ns.ipc") == own("ipc"), ipc == IsolationMode::Host, "{pid} {ipc}");
            assert_ne!(seen.get("ns.mnt"), own("mnt"));
            assert_eq!(seen.get("ns.net"), own("net"));
        }
    }
}

#[test]
fn task_is_pid_1_only_without_init() {
    if !sandboxes() {
        return;
    }
    assert_eq!(run_probe(probe("facts")).unwrap().get("pid"), "2");
    assert_eq!(run_probe(probe("facts").with(|s| s.init = false)).unwrap().get("pid"), "1");
}

#[test]
fn private_network_has_only_lo_and_a_given_one_is_joined() {
    if !sandboxes() {
        return;
    }
    let devices = output(shell("cat /proc/net/dev").network(Network::None));
    let names: Vec<&str> = devices.lines().skip(2).map(|l| l.split(':').next().unwrap().trim()).collect();
    assert_eq!(names, ["lo"]);
    if !can("root") {
        return;
    }
    let mut holder = std::process::Command::new("unshare").args(["-n", "sleep", "60"]).spawn().unwrap();
    let path = format!("/proc/{}/ns/net", holder.id());
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    while std::fs::read_link(&path).unwrap() == host {
        std::thread::sleep(Duration::from_millis(1));
    }
    let expect = std::fs::read_link(&path).unwrap().display().to_string();
    let seen = run_probe(probe("facts").network(Network::Path(path.into())));
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(seen.unwrap().get("ns.net"), expect);
}

#[test]
fn task_has_the_given_hostname() {
    if !sandboxes() {
        return;
    }
    assert_eq!(
        output(shell("hostname || cat /proc/sys/kernel/hostname").with(|s| s.hostname = Some("dam".into()))),
        "dam"
    );
}

#[test]
fn task_has_only_the_declared_descriptors() {
    if !sandboxes() {
        return;
    }
    // A descriptor that is not close-on-exec, as a careless caller leaves it.
    let leaky = nix::unistd::dup(std::io::stderr()).unwrap();
    let seen = run_probe(probe("facts")).unwrap();
    drop(leaky);
    assert_eq!(seen.get("fds"), "[0, 1, 2, 3]");
    assert_eq!(seen.get("sid"), if seen.get("pid") == "2" { "1" } else { seen.get("pid") });
}

#[test]
fn environment_is_from_the_spec_with_home_and_name_of_the_user() {
    if !sandboxes() {
        return;
    }
    // SAFETY: no other thread of this test binary reads or writes this variable.
    unsafe { std::env::set_var("COFFERDAM_LEAK", "secret") };
    let seen = run_probe(probe("facts").env("HOME", "/elsewhere").env("A", "b=c")).unwrap();
    assert_eq!(seen.get("env.A"), "b=c");
    assert_eq!(seen.get("env.USER"), "nobody");
    assert_eq!(seen.get("env.LOGNAME"), "nobody");
    assert_eq!(seen.get("env.HOME"), "/elsewhere");
    let seen = run_probe(probe("facts")).unwrap();
    assert_ne!(seen.get("env.HOME"), "", "HOME of the user database");
    assert!(!seen.facts.contains_key("env.COFFERDAM_LEAK"));
    assert_eq!(seen.get("args"), "/probe");
}

#[test]
fn working_directory_is_created_and_entered() {
    if !sandboxes() {
        return;
    }
    assert_eq!(output(shell("pwd").work_dir("/etc")), "/etc");
    assert_eq!(output(shell("pwd; stat -c %a .").work_dir("/deep/er")), "/deep/er\n755");
    match shell("pwd").work_dir("/etc/no/such/dir").spawn() {
        Err(Error::Spec { field: "work_dir", message }) => {
            assert!(
                message.starts_with("\"/etc/no/such/dir\" cannot be created in the root: \"/etc\" is bound"),
                "{message}"
            );
        }
        other => panic!("{other:?}"),
    }
    // A read-only volume: only the kernel's refusal reveals it.
    let volume = Volume { source: "/etc".into(), target: "/v".into(), read_only: true, ..Volume::default() };
    match shell("pwd").volume(volume).work_dir("/v/no/dir").spawn() {
        Err(Error::Setup { step, source }) => {
            assert_eq!(step, "mkdirat(root, \"/v/no/dir\", 0755)");
            assert_eq!(source.raw_os_error(), Some(libc::EROFS));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn root_has_its_directories_and_only_nosuid_nodev_private_mounts() {
    if !sandboxes() {
        return;
    }
    let seen = run_probe(probe("facts")).unwrap();
    for dir in ["dev", "etc", "probe", "proc", "sys", "tmp", "usr"] {
        assert!(seen.get("root").split(' ').any(|d| d == dir), "{dir} in {}", seen.get("root"));
    }
    for line in seen.get("mountinfo").lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (at, options) = (fields[4], fields[5]);
        if at.starts_with("/dev/") && !at.starts_with("/dev/pts") || at == "/dev" {
            continue;
        }
        let device_is_safe =
            options.split(',').any(|o| o == "nodev") || at == "/dev/pts" || line.contains("/null ");
        assert!(device_is_safe, "{line}");
        assert!(options.split(',').any(|o| o == "nosuid"), "{line}");
        assert!(!line.contains(" shared:"), "{line}");
    }
    let dev = seen.get("mountinfo").lines().find(|l| l.split(' ').nth(4) == Some("/dev")).unwrap();
    assert!(dev.split(' ').nth(5).unwrap().starts_with("ro,"), "{dev}");
}

#[test]
fn no_pivot_root_is_reported_as_weakened_by_cap_sys_chroot() {
    if !sandboxes() {
        return;
    }
    let policy = Policy { no_pivot_root: true, ..Policy::default() };
    let seen = run_probe(probe("facts").policy(&policy)).unwrap();
    assert!(seen.report.weakened.contains(Control::ROOT_SWITCH));
    assert!(seen.report.why(Control::ROOT_SWITCH).contains("CAP_SYS_CHROOT"));
    assert!(!seen.get("root").split(' ').any(|d| d == "root" || d == "home"), "{}", seen.get("root"));
    let without = probe("facts").policy(&policy).with(|s| s.cap_drop = vec!["sys_chroot".into()]);
    assert!(run_probe(without).unwrap().report.enforced.contains(Control::ROOT_SWITCH));
    let strict = probe("facts").policy(&policy).require(Control::ROOT_SWITCH);
    assert!(matches!(run_probe(strict), Err(Error::Unsupported { control: Control::ROOT_SWITCH, .. })));
}

#[test]
fn volumes_are_writable_unless_read_only() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let volume = |read_only| Volume {
        source: dir.path().into(),
        target: "/vol".into(),
        read_only,
        ..Volume::default()
    };
    let attempt =
        |v: Volume| run_probe(probe("write").env("DIR", "/vol").volume(v)).unwrap().get("write").to_string();
    assert_eq!(attempt(volume(true)), "EROFS");
    assert!(!dir.path().join("new").exists());
    assert_eq!(attempt(volume(false)), "ok");
    assert!(dir.path().join("new").exists());
}

#[test]
fn read_only_volume_includes_mounts_below_it() {
    if !can("root") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("below");
    std::fs::create_dir(&below).unwrap();
    // In a mount namespace of this thread, so that the host does not see the mount.
    std::thread::spawn({
        let (dir, below) = (dir.path().to_path_buf(), below.clone());
        move || {
            use nix::mount::{MsFlags, mount};
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            mount(Some("t"), &below, Some("tmpfs"), MsFlags::empty(), Some("mode=777")).unwrap();
            let volume = Volume { source: dir, target: "/vol".into(), read_only: true, ..Volume::default() };
            let seen = run_probe(probe("write").env("DIR", "/vol/below").volume(volume)).unwrap();
            assert_eq!(seen.get("write"), "EROFS");
        }
    })
    .join()
    .unwrap();
}

#[test]
fn limits_are_in_the_environment_under_the_callers_prefix() {
    if !sandboxes() {
        return;
    }
    let limits = Limits { cpu_shares: Some(500), memory: Some(64 << 20), ..Limits::default() };
    let sandbox = shell("echo $NOMAD_CPU_LIMIT $NOMAD_MEMORY_LIMIT ${NOMAD_MEMORY_MAX_LIMIT-none}")
        .limits(limits)
        .require(Require::BestEffort)
        .env("NOMAD_MEMORY_LIMIT", "what the caller says otherwise")
        .with(|s| s.limit_env = LimitEnv::with_prefix("NOMAD_"));
    assert_eq!(output(sandbox), "500 64 none");
}

#[test]
fn rlimits_of_the_spec_are_set() {
    if !sandboxes() {
        return;
    }
    let limit = Rlimit { soft: Some(37), hard: Some(38) };
    let sandbox = shell("ulimit -Sn; ulimit -Hn").with(|s| s.rlimits = [(Resource::Nofile, limit)].into());
    assert_eq!(output(sandbox), "37\n38");
}

/// The host's files cannot be changed wherever they are linked into the root, `/` included.
#[test]
fn linked_host_files_cannot_be_changed() {
    if !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir_in(std::env::temp_dir()).unwrap();
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    mode(dir.path(), 0o777);
    for target in ["/", "/in", "/in/here"] {
        let data = dir.path().join("data");
        std::fs::write(&data, "before").unwrap();
        mode(&data, 0o666);
        let chroot_env = [(dir.path().into(), target.into())].into();
        let root = Root { populate: cofferdam::Method::Link, chroot_env, ..Root::default() };
        let mut sandbox =
            shell(&format!("(echo after > {target}/data) 2>/dev/null || echo refused")).root(root);
        for path in ["/bin", "/lib", "/lib64", "/usr"].into_iter().filter(|p| Path::new(p).exists()) {
            let volume = Volume { source: path.into(), target: path.into(), ..Volume::default() };
            sandbox = sandbox.volume(Volume { read_only: true, ..volume });
        }
        assert_eq!(output(sandbox), "refused", "{target}");
        assert_eq!(std::fs::read_to_string(&data).unwrap(), "before", "{target}");
    }
}

#[test]
fn linked_and_copied_roots_run_the_hosts_programs() {
    if !sandboxes() || !can("python3") {
        return;
    }
    // Few files, because the test is about running the programs, not about copying many.
    let libs = [
        "ld-linux-x86-64.so.2",
        "libc.so.6",
        "libm.so.6",
        "libz.so.1",
        "libexpat.so.1",
        "libselinux.so.1",
        "libpcre2-8.so.0",
    ];
    let libs =
        libs.map(|l| format!("/lib/x86_64-linux-gnu/{l}")).into_iter().filter(|l| Path::new(l).exists());
    let chroot_env: cofferdam::ChrootEnv =
        ["/bin/sh", "/usr/bin/id", "/usr/bin/python3", "/usr/lib/python3.11", "/lib64"]
            .into_iter()
            .map(String::from)
            .chain(libs)
            .map(|p| (p.clone().into(), p.into()))
            .collect();
    for populate in [cofferdam::Method::Link, cofferdam::Method::Copy] {
        let root = Root { populate, chroot_env: chroot_env.clone(), ..Root::default() };
        let said = output(shell("echo shell; python3 -c 'print(6*7)'; id -u").root(root));
        assert_eq!(said, "shell\n42\n65534", "{populate}");
    }
}

#[test]
fn exit_status_of_a_task_over_its_memory_limit_says_oom_killed() {
    if !can("cgroups") {
        return;
    }
    let limits = Limits { memory: Some(32 << 20), ..Limits::default() };
    let sandbox = probe("hog").limits(limits);
    let report = sandbox.plan().unwrap().report;
    assert!(report.enforced.contains(Control::MEMORY), "{report}");
    let seen = run_probe(sandbox).unwrap();
    assert_eq!(seen.status.signal, Some(9), "{}", seen.status);
    assert!(seen.status.oom_killed);
    // A SIGKILL without a memory limit is not reported as an OOM kill.
    assert!(!status(shell("kill -KILL $$")).oom_killed);
}

#[test]
fn pids_max_does_not_count_init() {
    if !can("cgroups") {
        return;
    }
    let limited = |script: &str, pids| {
        let limits = Limits { pids_max: Some(pids), ..Limits::default() };
        output(shell(&format!("({script}) 2>&1")).limits(limits))
    };
    assert_eq!(limited("echo one", 2), "one");
    let refused = output(
        Sandbox::command("/bin/sh")
            .args(["-c", "exec echo alone"])
            .limits(Limits { pids_max: Some(1), ..Limits::default() }),
    );
    assert_eq!(refused, "alone");
}

/// The device number has no driver, so an open(2) that is permitted fails with ENXIO.
#[test]
fn devices_open_only_with_their_granted_permissions() {
    if !can("device_cgroup") {
        return;
    }
    let nodev = |path: &Path| statvfs(path).unwrap().flags().contains(FsFlags::ST_NODEV);
    let places = [std::env::temp_dir(), "/root".into(), "/".into()];
    let dir = tempfile::tempdir_in(places.iter().find(|p| p.is_dir() && !nodev(p)).unwrap()).unwrap();
    let mut sandbox = probe("open").user("root");
    for (minor, permissions) in [(1, "r"), (2, "w"), (3, "rw")] {
        let (source, target) = (dir.path().join(permissions), format!("/dev/given.{permissions}").into());
        // Major number 60 is reserved for experimental use.
        mknod(&source, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(60, minor)).unwrap();
        let access = Access::parse(permissions).unwrap();
        sandbox = sandbox.device(Device { source, target, access });
    }
    for (cgroup, refused) in [(None, "EPERM"), (Some(true), "EPERM"), (Some(false), "ENXIO")] {
        let seen = run_probe(sandbox.clone().with(|s| s.device_cgroup = cgroup)).unwrap();
        for may in ["read r", "write w", "read rw", "write rw"] {
            assert_eq!(seen.get(may), "ENXIO", "{may} {cgroup:?}");
        }
        for may_not in ["write r", "read w"] {
            assert_eq!(seen.get(may_not), refused, "{may_not} {cgroup:?}");
        }
        assert_eq!(seen.report.enforced.contains(Control::DEVICES), cgroup != Some(false), "{}", seen.report);
    }
}

#[test]
fn invalid_json_is_refused_with_the_path_of_its_field() {
    let of_spec = |text: &str| serde_json::from_str::<cofferdam::SandboxSpec>(text).unwrap_err().to_string();
    let of_policy = |text: &str| serde_json::from_str::<Policy>(text).unwrap_err().to_string();
    for (json, field) in [
        (r#"{"pid_mode": "Host"}"#, "pid_mode: "),
        (r#"{"ipc_mode": ""}"#, "ipc_mode: "),
        (r#"{"umask": 18}"#, "umask: "),
        (r#"{"umask": "0o22"}"#, "umask: "),
        (r#"{"limits": {"memory": "64q"}}"#, "limits.memory: "),
        (r#"{"limits": {"swap": "some"}}"#, "limits.swap: "),
        (r#"{"limits": {"cores": "3-1"}}"#, "limits.cores: "),
        (r#"{"rlimits": {"files": {}}}"#, "rlimits"),
        (r#"{"rlimits": {"nofile": {"soft": -1}}}"#, "rlimits.nofile.soft: "),
        (r#"{"root": {"populate": "move"}}"#, "root.populate: "),
        (r#"{"root": {"tmpfs_size": "x"}}"#, "root.tmpfs_size: "),
        (r#"{"volumes": [{}, {"read_only": 1}]}"#, "volumes[1].read_only: "),
        (r#"{"devices": [{"access": "x"}]}"#, "devices[0].access: "),
        (r#"{"stdin": {"fd": "x"}}"#, "stdin.fd: "),
        (r#"{"require": "everything"}"#, "require: "),
        (r#"{"require": ["hope"]}"#, "require: "),
        (r#"{"env": {"A": 1}}"#, "env.A: "),
        (r#"{"deadline": "soon"}"#, "deadline: "),
        (r#"{"deadline": -1}"#, "deadline: "),
        (r#"{"args": ["a", 1]}"#, "args[1]: "),
        // An array is no object: by position, a wrong field would not be noticed.
        (
            r#"{"limits": [100]}"#,
            "limits: invalid type: sequence, expected an object with the fields of limits",
        ),
        (
            r#"{"limits": {"cpu_max": 5}}"#,
            "limits.cpu_max: invalid type: integer `5`, expected an object with quota",
        ),
        (r#"{"volumes": [["/srv", "/x"]]}"#, "volumes[0]: "),
        (r#"{"rlimits": {"nofile": [1, 2]}}"#, "rlimits.nofile: "),
        (r#"{"command": ["sh", "-c"]}"#, "command[0]: "),
        ("[]", "invalid type: sequence"),
        (r#"{"command": "sh", "#, "EOF while parsing"),
    ] {
        let refused = of_spec(json);
        assert!(refused.starts_with(field), "{json}: {refused}");
    }
    for (json, field) in [
        (r#"{"default_pid_mode": "Host"}"#, "default_pid_mode: "),
        (r#"{"denied_host_uids": "1-2-3"}"#, "denied_host_uids: "),
        (r#"{"denied_host_gids": " 1"}"#, "denied_host_gids: "),
        (r#"{"cgroup_parent": "a/../b"}"#, "cgroup_parent: "),
        (r#"{"required_controllers": "all"}"#, "required_controllers: "),
        (r#"{"max_bytes": -1}"#, "max_bytes: "),
        (r#"{"require": {}}"#, "require: "),
    ] {
        let refused = of_policy(json);
        assert!(refused.starts_with(field), "{json}: {refused}");
    }
    assert!(of_spec(r#"{"memory": 1}"#).contains("unknown field `memory`"));
}

#[test]
fn invalid_input_is_a_spec_error_that_names_its_field() {
    let spec = |set: &dyn Fn(&mut cofferdam::SandboxSpec, &mut Policy)| {
        let mut policy = Policy::default();
        let mut spec = cofferdam::SandboxSpec { command: "true".into(), ..Default::default() };
        set(&mut spec, &mut policy);
        match Sandbox::new(&policy, spec).spawn() {
            Err(Error::Spec { field, .. }) => field.to_string(),
            Err(Error::Denied { .. }) => "denied".into(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(spec(&|s, _| s.cap_add = vec!["not_a_cap".into()]), "cap_add");
    assert_eq!(spec(&|_, p| p.allow_caps = Some(vec!["nope".into()])), "allow_caps");
    assert_eq!(spec(&|s, _| s.work_dir = Some("foo".into())), "work_dir");
    assert_eq!(spec(&|s, _| s.command.clear()), "command");
    assert_eq!(spec(&|s, _| s.args = vec!["a\0b".into()]), "args");
    assert_eq!(spec(&|s, _| drop(s.env.insert("A=B".into(), "c".into()))), "env");
    assert_eq!(spec(&|s, _| s.user = Some("no-such-user-xyz".into())), "user");
    assert_eq!(spec(&|s, _| s.id = Some("../x".into())), "id");
    assert_eq!(spec(&|s, _| s.network = Network::Path("/etc/passwd".into())), "network");
    assert_eq!(spec(&|s, _| s.root.path = Some("/no/such/root".into())), "root.path");
    assert_eq!(spec(&|s, _| s.root.populate = cofferdam::Method::None), "root.path");
    assert_eq!(spec(&|s, _| s.limits.pids_max = Some(0)), "limits.pids_max");
    assert_eq!(
        spec(&|s, _| s.volumes.push(Volume {
            source: "/no".into(),
            target: "/v".into(),
            ..Volume::default()
        })),
        "volumes"
    );
    assert_eq!(spec(&|s, p| (s.pid_mode, p.allow_host_pid) = (Some(IsolationMode::Host), false)), "denied");
    assert_eq!(spec(&|s, p| (s.ipc_mode, p.allow_host_ipc) = (Some(IsolationMode::Host), false)), "denied");
    assert_eq!(spec(&|s, _| s.cap_add = vec!["net_admin".into()]), "denied");
    assert_eq!(
        spec(&|s, p| (s.user, p.denied_host_gids) = (Some("5:27".into()), "27".parse().unwrap())),
        "denied"
    );
    assert_eq!(spec(&|_, p| p.denied_host_uids = "65534".parse().unwrap()), "denied");
}
