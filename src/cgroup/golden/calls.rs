//! What a layout's system calls look like, and the devices among them.

use super::*;

#[test]
fn calls_read_like_strace() {
    let limits = Limits { cores: "0".into(), ..Limits::default() };
    let calls = lowered(&limits, &host(Mode::Hybrid), "").calls();
    let expected = r#"
openat(AT_FDCWD, "/cg/unified/cofferdam.slice/share.slice/x.scope", O_RDONLY|O_CLOEXEC|O_DIRECTORY) # nothing is there, else it is removed
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve/x", O_RDONLY|O_CLOEXEC|O_DIRECTORY) # nothing is there, else it is removed
mkdir("/cg/unified/cofferdam.slice", 0711)
mkdir("/cg/unified/cofferdam.slice/reserve.slice", 0711)
mkdir("/cg/unified/cofferdam.slice/reserve.slice/x.scope", 0755)
mkdir("/cg/cpuset/cofferdam", 0711)
openat(AT_FDCWD, "/cg/cpuset/cofferdam", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
flock("/cg/cpuset/cofferdam", LOCK_EX|LOCK_NB)
openat(AT_FDCWD, "/cg/cpuset/cofferdam/cpuset.mems", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cpuset/cpuset.mems", O_RDONLY|O_CLOEXEC) # if that was blank
openat(AT_FDCWD, "/cg/cpuset/cofferdam/cpuset.mems", O_RDWR|O_CLOEXEC) # if that was blank
write("/cg/cpuset/cofferdam/cpuset.mems", <what "/cg/cpuset/cpuset.mems" has>) # if that was blank"#;
    assert_eq!(calls.get(..12).unwrap().join("\n"), expected.trim());
    let expected = r#"
fsetxattr("/cg/cpuset/cofferdam/reserve/x", "user.cofferdam.cores", "0")
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve/x/cpuset.mems", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve/cpuset.mems", O_RDONLY|O_CLOEXEC) # if that was blank
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve/x/cpuset.mems", O_RDWR|O_CLOEXEC) # if that was blank
write("/cg/cpuset/cofferdam/reserve/x/cpuset.mems", <what "/cg/cpuset/cofferdam/reserve/cpuset.mems" has>) # if that was blank
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve/x/cpuset.cpus", O_WRONLY|O_CLOEXEC)
write("/cg/cpuset/cofferdam/reserve/x/cpuset.cpus", <cores 0 and the unreserved ones>)
openat(AT_FDCWD, "/cg/unified/cofferdam.slice/reserve.slice/x.scope", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve/x/tasks", O_WRONLY|O_CLOEXEC)"#;
    assert_eq!(calls.get(calls.len() - 9..).unwrap().join("\n"), expected.trim());
}

#[test]
fn the_book_reads_like_strace() {
    let check = |limits: &Limits, mode, expected: &str| {
        let calls = lowered(limits, &host(mode), "").cores.unwrap().calls();
        assert_eq!(calls.join("\n"), expected.trim());
    };
    let limits = Limits { cores: "1-2".into(), exclusive: true, ..Limits::default() };
    let expected = r#"
mkdir("/cg/cofferdam.slice", 0711)
openat(AT_FDCWD, "/cg/cofferdam.slice", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
flock("/cg/cofferdam.slice", LOCK_EX|LOCK_NB)
openat(AT_FDCWD, "/cg/cgroup.subtree_control", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cgroup.subtree_control", O_WRONLY|O_CLOEXEC) # if it says otherwise
write("/cg/cgroup.subtree_control", "+cpuset") # if it says otherwise
openat(AT_FDCWD, "/cg/cofferdam.slice/cgroup.subtree_control", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cofferdam.slice/cgroup.subtree_control", O_WRONLY|O_CLOEXEC) # if it says otherwise
write("/cg/cofferdam.slice/cgroup.subtree_control", "+cpuset") # if it says otherwise
openat(AT_FDCWD, "/cg/cofferdam.slice/reserve.slice", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
openat(AT_FDCWD, "/cg/cofferdam.slice/cpuset.cpus.effective", O_RDONLY|O_CLOEXEC)
mkdir("/cg/cofferdam.slice/reserve.slice", 0711)
openat(AT_FDCWD, "/cg/cofferdam.slice/reserve.slice/cgroup.subtree_control", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cofferdam.slice/reserve.slice/cgroup.subtree_control", O_WRONLY|O_CLOEXEC) # if it says otherwise
write("/cg/cofferdam.slice/reserve.slice/cgroup.subtree_control", "+cpuset") # if it says otherwise
openat(AT_FDCWD, "/cg/cofferdam.slice/share.slice/cpuset.cpus", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cofferdam.slice/share.slice/cpuset.cpus", O_WRONLY|O_CLOEXEC) # if it says otherwise
write("/cg/cofferdam.slice/share.slice/cpuset.cpus", <the unreserved ones>) # if it says otherwise
mkdir("/cg/cofferdam.slice/reserve.slice/x.scope", 0711)
openat(AT_FDCWD, "/cg/cofferdam.slice/reserve.slice/x.scope", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
flock("/cg/cofferdam.slice/reserve.slice/x.scope", LOCK_SH|LOCK_NB)
openat(AT_FDCWD, "/cg/cofferdam.slice/reserve.slice/x.scope", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
fsetxattr("/cg/cofferdam.slice/reserve.slice/x.scope", "user.cofferdam.cores", "1-2 exclusive")
openat(AT_FDCWD, "/cg/cofferdam.slice/reserve.slice/x.scope/cpuset.cpus", O_WRONLY|O_CLOEXEC)
write("/cg/cofferdam.slice/reserve.slice/x.scope/cpuset.cpus", "1-2")"#;
    check(&limits, Mode::V2, expected);
    let expected = r#"
mkdir("/cg/cofferdam.slice", 0711)
openat(AT_FDCWD, "/cg/cofferdam.slice", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
flock("/cg/cofferdam.slice", LOCK_EX|LOCK_NB)
openat(AT_FDCWD, "/cg/cofferdam.slice/reserve.slice", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
mkdir("/cg/cofferdam.slice/share.slice", 0711)
openat(AT_FDCWD, "/cg/cofferdam.slice/share.slice/cpuset.cpus", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cofferdam.slice/cpuset.cpus.effective", O_RDONLY|O_CLOEXEC) # if that was not blank
openat(AT_FDCWD, "/cg/cofferdam.slice/share.slice/cpuset.cpus", O_WRONLY|O_CLOEXEC) # if it says otherwise
write("/cg/cofferdam.slice/share.slice/cpuset.cpus", <the unreserved ones>) # if it says otherwise
mkdir("/cg/cofferdam.slice/share.slice/x.scope", 0755)
openat(AT_FDCWD, "/cg/cofferdam.slice/share.slice/x.scope", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
flock("/cg/cofferdam.slice/share.slice/x.scope", LOCK_SH|LOCK_NB)"#;
    check(&Limits::default(), Mode::V2, expected);
    let expected = r#"
mkdir("/cg/cpuset/cofferdam", 0711)
openat(AT_FDCWD, "/cg/cpuset/cofferdam", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
flock("/cg/cpuset/cofferdam", LOCK_EX|LOCK_NB)
openat(AT_FDCWD, "/cg/cpuset/cofferdam/reserve", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
openat(AT_FDCWD, "/cg/cpuset/cofferdam/share/cpuset.cpus", O_RDONLY|O_CLOEXEC)
openat(AT_FDCWD, "/cg/cpuset/cofferdam/cpuset.effective_cpus", O_RDONLY|O_CLOEXEC) # if that was not blank
openat(AT_FDCWD, "/cg/cpuset/cofferdam/cpuset.mems", O_RDONLY|O_CLOEXEC) # if that was blank or is not all
openat(AT_FDCWD, "/cg/cpuset/cpuset.mems", O_RDONLY|O_CLOEXEC) # if that was blank"#;
    let calls = lowered(&Limits::default(), &host(Mode::V1), "").cores.unwrap().calls();
    assert_eq!(calls.get(..8).unwrap().join("\n"), expected.trim());
    let expected = r#"
mkdir("/cg/cpuset/cofferdam/share", 0711) # if that was blank or is not all
openat(AT_FDCWD, "/cg/cpuset/cofferdam/share/cpuset.mems", O_RDONLY|O_CLOEXEC) # if that was blank or is not all
openat(AT_FDCWD, "/cg/cpuset/cofferdam/cpuset.mems", O_RDONLY|O_CLOEXEC) # if that was blank
openat(AT_FDCWD, "/cg/cpuset/cofferdam/share/cpuset.mems", O_RDWR|O_CLOEXEC) # if that was blank
write("/cg/cpuset/cofferdam/share/cpuset.mems", <what "/cg/cpuset/cofferdam/cpuset.mems" has>) # if that was blank
openat(AT_FDCWD, "/cg/cpuset/cofferdam/share/cpuset.cpus", O_WRONLY|O_CLOEXEC) # if it says otherwise
write("/cg/cpuset/cofferdam/share/cpuset.cpus", <the unreserved ones>) # if it says otherwise
openat(AT_FDCWD, "/cg/cpuset/cofferdam/share", O_RDONLY|O_CLOEXEC|O_DIRECTORY)
flock("/cg/cpuset/cofferdam/share", LOCK_SH|LOCK_NB)"#;
    assert_eq!(calls.get(calls.len() - 9..).unwrap().join("\n"), expected.trim());
}

#[test]
fn devices_need_no_gate() {
    let list = devices::rules([]);
    let lowered = |host: &Detection| {
        let (parent, name) = (CgroupPath::default(), CgroupName::new("x").unwrap());
        lower(&Request { devices: &list, ..Request::new(&Limits::default(), host, &parent, &name) })
    };
    let with_v1 = |mode| {
        let mut host = host(mode);
        host.v1.extend(hierarchies(&[("devices", "/cg/devices")]));
        host
    };
    let shut = |host| Detection { reason: Some("cgroup lacks io".into()), ..host };
    for host in [host(Mode::V2), host(Mode::Hybrid), shut(host(Mode::V2)), shut(host(Mode::Hybrid))] {
        let layout = lowered(&host);
        assert_eq!((&layout.devices, layout.enforced), (&list, Control::DEVICES | Control::KILL));
        assert!(layout.writes.is_empty());
        let calls: Vec<String> = layout.calls().into_iter().filter(|c| !c.contains("/cpuset/")).collect();
        let [held, load, attach] = calls.get(calls.len() - 3..).unwrap() else { panic!("{calls:?}") };
        assert!(held.starts_with("openat(") && load.starts_with("bpf(BPF_PROG_LOAD, "), "{calls:?}");
        let leaf = layout.into.as_ref().unwrap();
        assert_eq!(*attach, format!("bpf(BPF_PROG_ATTACH, {leaf:?}, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI)"));
    }
    for host in [with_v1(Mode::V1), with_v1(Mode::Hybrid), shut(with_v1(Mode::V1))] {
        let layout = lowered(&host);
        assert_eq!(layout.enforced, Control::DEVICES | Control::KILL);
        assert!(layout.devices.is_empty());
        assert_eq!(layout.writes.len(), list.len() + 1);
        assert!(layout.enter.contains(&"/cg/devices/cofferdam/x/tasks".into()));
    }
    let calls = lowered(&with_v1(Mode::V1)).calls().join("\n");
    // One file is opened once.
    let expected = r#"
openat(AT_FDCWD, "/cg/devices/cofferdam/x/devices.deny", O_WRONLY|O_CLOEXEC)
write("/cg/devices/cofferdam/x/devices.deny", "a")
openat(AT_FDCWD, "/cg/devices/cofferdam/x/devices.allow", O_WRONLY|O_CLOEXEC)
write("/cg/devices/cofferdam/x/devices.allow", "c *:* m")
write("/cg/devices/cofferdam/x/devices.allow", "b *:* m")
write("/cg/devices/cofferdam/x/devices.allow", "c 1:3 rwm")
"#;
    assert!(calls.contains(expected), "{calls}");
    // One that cannot be written is as good as none, and the tree is not.
    let mut closed = with_v1(Mode::Hybrid);
    closed.v1.get_mut("devices").unwrap().writable = false;
    assert_eq!(lowered(&closed).devices, list);
    closed.v2 = None;
    let why = "missing devices: there is no cgroup v2 tree, and no devices controller of cgroup v1 that may be used";
    let layout = lowered(&closed);
    assert_eq!((text(&layout).last().unwrap().as_str(), layout.enforced), (why, Control::KILL));
}

/// All rules in the one leaf where controllers are mounted together; the controller may be the first to use it.
#[test]
fn devices_mounted_with_others() {
    let list: Vec<devices::Rule> = devices::rules([]).into_iter().take(1).collect();
    let mut host = host(Mode::V1);
    host.v1 =
        hierarchies(&["cpu", "cpuset", "devices", "freezer", "memory", "pids"].map(|name| (name, "/one")));
    let (parent, name) = (CgroupPath::default(), CgroupName::new("x").unwrap());
    let layout =
        lower(&Request { devices: &list, ..Request::new(&Limits::default(), &host, &parent, &name) });
    let expected = "
mkdir /one/cofferdam
mkdir /one/cofferdam/x
/one/cofferdam/cpuset.mems = inherit
/one/cofferdam/cpuset.cpus = inherit
/one/cofferdam/x/cpuset.mems = inherit
/one/cofferdam/x/cpuset.cpus = inherit
/one/cofferdam/x/devices.deny = a
/one/cofferdam/x/devices.allow = c *:* m
enter /one/cofferdam/x/tasks";
    assert_eq!(text(&layout).join("\n"), expected.trim());
}
