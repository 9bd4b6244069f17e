//! Attacks from inside a sandbox: on init, the kernel's files, devices, mounts and namespaces.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod attack_tools;
mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use attack_tools::*;
use cofferdam::{Control, Device, Error, Limits, Method, Network, Policy, Root};
use common::{asked, can, probe, run_probe, sandboxes};

/// Entry point of this binary inside a sandbox.
#[test]
fn probe_entry() {
    let Some((what, mut say)) = asked() else { return };
    let mut attack = Attack::default();
    match what.as_str() {
        "init" => init(&mut attack),
        "descriptors" => descriptors(&mut attack),
        "devices" => devices(&mut attack),
        "node" => node(&mut attack, Path::new(&std::env::var("NODE").unwrap())),
        "null" => (0..3).for_each(|fd| node(&mut attack, Path::new(&format!("/proc/self/fd/{fd}")))),
        "mounts" => mounts(&mut attack),
        "user-namespace" => user_namespace(&mut attack),
        "cgroups" => cgroups(&mut attack),
        "chroot" => chroot(&mut attack),
        "kernel" => kernel(&mut attack),
        "handle" => handle(&mut attack),
        "keyring" => keyring(&mut attack),
        "ids" => common::say_facts(&mut say),
        other => panic!("no probe {other}"),
    }
    attack.tell(&mut say);
    if what == "init" {
        // PID 1 must report this exit status, whatever the attack did to PID 1.
        drop(say);
        std::process::exit(42);
    }
}

/// Tries to overwrite, enter, trace, read and end PID 1.
fn init(attack: &mut Attack) {
    for file in ["exe", "root", "cwd", "ns/mnt"] {
        attack.attempt_io(file, fs::read_link(format!("/proc/1/{file}")));
    }
    for file in ["exe", "mem", "maps", "environ", "root/etc", "cwd/etc", "stack", "syscall", "auxv", "io"] {
        attack.attempt_io(file, File::open(format!("/proc/1/{file}")).and_then(|mut f| f.read(&mut [0; 1])));
    }
    for file in ["exe", "mem"] {
        attack.attempt_io(file, OpenOptions::new().write(true).open(format!("/proc/1/{file}")));
    }
    for fd in 0..64 {
        attack.attempt_io(format!("fd {fd}"), File::open(format!("/proc/1/fd/{fd}")));
    }
    const PTRACE_ATTACH: i32 = 16;
    const PTRACE_SEIZE: i32 = 0x4206;
    for request in [PTRACE_ATTACH, PTRACE_SEIZE] {
        attack.attempt(format!("ptrace {request:#x}"), call!(libc::SYS_ptrace, request, 1, 0, 0));
    }
    let mut buffer = [0u8; 16];
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: 16 };
    let remote = libc::iovec { iov_base: 0x40_0000 as *mut _, iov_len: 16 };
    for number in [libc::SYS_process_vm_readv, libc::SYS_process_vm_writev] {
        attack.attempt("process_vm", call!(number, 1, &raw const local, 1, &raw const remote, 1, 0));
    }
    if let Ok(pidfd) = call!(libc::SYS_pidfd_open, 1, 0) {
        for fd in 0..64 {
            attack.attempt(format!("pidfd_getfd {fd}"), call!(libc::SYS_pidfd_getfd, pidfd, fd, 0));
        }
        for kind in [libc::CLONE_NEWNS, libc::CLONE_NEWPID, libc::CLONE_NEWUSER] {
            attack.attempt(format!("setns {kind:#x}"), call!(libc::SYS_setns, pidfd, kind));
        }
    }
    // These calls may succeed, but must have no effect on PID 1.
    for signal in 1..=64 {
        let _ = call!(libc::SYS_kill, 1, signal);
    }
    for resource in 0..16 {
        if resource != libc::RLIMIT_CPU as i32 {
            let none = [0u64; 2];
            let _ = call!(libc::SYS_prlimit64, 1, resource, none.as_ptr(), 0);
        }
    }
    let _ = call!(libc::SYS_setpriority, 0, 1, 19);
    let _ = fs::write("/proc/1/oom_score_adj", "1000");
}

/// Looks for a way to the host through descriptors, working directory, environment and executable.
fn descriptors(attack: &mut Attack) {
    let open = (0..1024).filter(|fd| call!(libc::SYS_fcntl, *fd, libc::F_GETFD).is_ok());
    for fd in open.collect::<Vec<i32>>() {
        let link = format!("/proc/self/fd/{fd}");
        attack.attempt(format!("{fd} is open"), if fd < 4 { Err(nix::errno::Errno::EPERM) } else { Ok(()) });
        attack.never(format!("{fd} is a directory"), fs::metadata(&link).is_ok_and(|m| m.is_dir()));
        attack.attempt_io(
            format!("{fd}/.."),
            fs::read_dir(format!("{link}/../../..")).and(fs::read_dir(&link)),
        );
    }
    let cwd = std::env::current_dir();
    attack.never("the cwd is outside", cwd.is_err() || !cwd.unwrap().starts_with("/"));
    fs::write("/tmp/climb", "x").unwrap();
    std::env::set_current_dir("/proc/self/cwd/../../../../../..").unwrap();
    attack.never("climbed out", !Path::new("tmp/climb").exists());
    let leak = std::env::vars().any(|(key, _)| key.contains("LEAK"));
    let environ = fs::read("/proc/self/environ").unwrap_or_default();
    let found = environ.windows(10).any(|w| w == b"CANARYLEAK");
    attack.never("the caller's environment", leak || found);
    let exe = fs::read_link("/proc/self/exe").unwrap();
    attack.attempt_io("own program", OpenOptions::new().write(true).open("/proc/self/exe"));
    attack.attempt_io("own program by name", OpenOptions::new().append(true).open(exe));
}

/// Creates device nodes wherever that is possible, and opens them.
fn devices(attack: &mut Attack) {
    let disk = fs::metadata("/usr").or_else(|_| fs::metadata("/")).unwrap().dev();
    let (block, char) = (0o060666, 0o020666);
    let nodes = [("disk", block, disk), ("mem", char, 0x101), ("null", char, 0x103), ("kmsg", char, 0x10b)];
    let info = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut dirs: Vec<&str> = info.lines().filter_map(|l| l.split(' ').nth(4)).collect();
    dirs.extend(["/tmp", "/local", "/dev", "/dev/shm", "/volume", "/usr", "/var", "/run"]);
    for dir in dirs {
        for (name, mode, device) in nodes {
            let path = format!("{dir}/{name}.{}", std::process::id());
            let made = call!(libc::SYS_mknodat, libc::AT_FDCWD, z(&path).as_ptr(), mode, device);
            for flags in [libc::O_RDONLY, libc::O_RDWR] {
                let opened = call!(libc::SYS_open, z(&path).as_ptr(), flags | libc::O_NONBLOCK);
                attack.attempt(&path, made.and(opened));
            }
        }
    }
}

/// Changes the metadata of a device node.
fn node(attack: &mut Attack, path: &Path) {
    // Sets the values that it has already, so that a success does no harm.
    let m = fs::metadata(path).unwrap();
    attack.attempt_io(format!("chmod {path:?}"), fs::set_permissions(path, m.permissions()));
    attack
        .attempt_io(format!("chown {path:?}"), std::os::unix::fs::chown(path, Some(m.uid()), Some(m.gid())));
    let name = c"trusted.canary";
    let set = call!(libc::SYS_setxattr, z(path).as_ptr(), name.as_ptr(), b"x".as_ptr(), 1, 0);
    attack.attempt(format!("setxattr {path:?}"), set);
}

/// Tries to change mounts, and other operations that need CAP_SYS_ADMIN.
fn mounts(attack: &mut Attack) {
    let remount = libc::MS_REMOUNT | libc::MS_BIND;
    attack.attempt("tmpfs", mount("t", "/tmp", "tmpfs", 0, ""));
    attack.attempt("proc", mount("p", "/tmp", "proc", 0, ""));
    attack.attempt("sysfs", mount("s", "/tmp", "sysfs", 0, ""));
    attack.attempt("bind", mount("/proc", "/tmp", "", libc::MS_BIND, ""));
    attack.attempt("shared", mount("", "/", "", libc::MS_SHARED, ""));
    let info = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for at in info.lines().filter_map(|l| l.split(' ').nth(4)) {
        attack.attempt(format!("remount {at}"), mount("", at, "", remount, ""));
        attack.attempt(format!("umount {at}"), call!(libc::SYS_umount2, z(at).as_ptr(), libc::MNT_DETACH));
        attack.attempt(format!("move {at}"), mount(at, "/tmp", "", libc::MS_MOVE, ""));
        let cleared = [0u64, 1 | 2 | 4 | 8, 0, 0];
        let path = z(at);
        attack.attempt(
            format!("mount_setattr {at}"),
            call!(libc::SYS_mount_setattr, libc::AT_FDCWD, path.as_ptr(), 0x8000, cleared.as_ptr(), 32),
        );
        attack
            .attempt(format!("open_tree {at}"), call!(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), 1));
    }
    attack.attempt("pivot_root", call!(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()));
    attack.attempt("fsopen", call!(libc::SYS_fsopen, c"tmpfs".as_ptr(), 0));
    attack.attempt("unshare", call!(libc::SYS_unshare, libc::CLONE_NEWNS));
    attack.attempt("sethostname", call!(libc::SYS_sethostname, c"x".as_ptr(), 1));
    attack.attempt("swapon", call!(libc::SYS_swapon, c"/tmp/x".as_ptr(), 0));
    attack.attempt("reboot", call!(libc::SYS_reboot, 0xfee1deadu32, 672274793, 0, 0));
    attack.attempt("init_module", call!(libc::SYS_init_module, 0, 0, c"".as_ptr()));
    attack.attempt("settimeofday", call!(libc::SYS_settimeofday, [1u64, 1].as_ptr(), 0));
}

/// As root of a user namespace, if one can be created: changes or uncovers the inherited mounts.
fn user_namespace(attack: &mut Attack) {
    // Each attempt runs in a process of its own, so that its effects do not hinder the next.
    let info = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lines: Vec<Vec<&str>> = info.lines().map(|l| l.split(' ').collect()).collect();
    let inside = |name: String, what: &dyn Fn() -> nix::Result<()>, attack: &mut Attack| {
        let won = forked(|| {
            let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID;
            let new = call!(libc::SYS_unshare, flags);
            if new.is_ok() { forked(|| i32::from(what().is_ok())) } else { 0 }
        });
        attack.never(name, won != 0);
    };
    for line in &lines {
        let (at, read_only) = (line[4], line[5].starts_with("ro"));
        if at != "/" {
            let umount = || call!(libc::SYS_umount2, z(at).as_ptr(), libc::MNT_DETACH).map(drop);
            inside(format!("umount {at}"), &umount, attack);
        }
        if read_only {
            let flags = libc::MS_REMOUNT | libc::MS_BIND;
            inside(format!("remount {at}"), &|| mount("", at, "", flags, ""), attack);
            let bind = || {
                mount(at, "/tmp", "", libc::MS_BIND | libc::MS_REC, "")?;
                mount("", "/tmp", "", flags, "")
            };
            inside(format!("bind and remount {at}"), &bind, attack);
        }
    }
    for at in ["/", "/proc", "/dev", "/sys"] {
        // Not recursive, so that the mounts that cover it are not bound along.
        inside(format!("bare bind of {at}"), &|| mount(at, "/tmp", "", libc::MS_BIND, ""), attack);
    }
    for (fs, options) in [("cgroup", "freezer"), ("cgroup2", "")] {
        let own = || call!(libc::SYS_unshare, libc::CLONE_NEWCGROUP).or(Ok(0));
        inside(format!("mount {fs}"), &|| own().and(mount("c", "/tmp", fs, 0, options)), attack);
    }
    inside("a proc without masks".into(), &|| mount("p", "/tmp", "proc", 0, ""), attack);
    let sysfs = || {
        call!(libc::SYS_unshare, libc::CLONE_NEWNET)?;
        mount("s", "/tmp", "sysfs", 0, "")
    };
    inside("a writable sysfs".into(), &sysfs, attack);
    let device = || {
        mount("t", "/tmp", "tmpfs", 0, "")?;
        call!(libc::SYS_mknodat, libc::AT_FDCWD, c"/tmp/n".as_ptr(), 0o020666, 0x103)?;
        call!(libc::SYS_open, c"/tmp/n".as_ptr(), libc::O_RDWR).map(drop)
    };
    inside("a device on a tmpfs of its own".into(), &device, attack);
}

/// A child mounts cgroup hierarchies in a user namespace. The parent, outside of it, writes to them through the child's
/// /proc/PID/root, where its own uid and CAP_DAC_OVERRIDE apply.
fn cgroups(attack: &mut Attack) {
    use std::io::Write;
    let canary = std::env::var("CANARY").unwrap();
    let (mut up, mut down) = ([0; 2], [0; 2]);
    call!(libc::SYS_pipe2, up.as_mut_ptr(), 0).unwrap();
    call!(libc::SYS_pipe2, down.as_mut_ptr(), 0).unwrap();
    for dir in ["/tmp/freezer", "/tmp/pids", "/tmp/v2"] {
        fs::create_dir(dir).unwrap();
    }
    // SAFETY: the child makes system calls, and ends by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let uid = nix::unistd::getuid();
        if call!(libc::SYS_unshare, libc::CLONE_NEWUSER).is_ok() {
            let _ = fs::write("/proc/self/uid_map", format!("0 {uid} 1"));
            // New namespaces, so that the mounts do not change the existing hierarchies.
            if call!(libc::SYS_unshare, libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP).is_ok() {
                let _ = mount("c", "/tmp/freezer", "cgroup", 0, "freezer");
                let _ = mount("c", "/tmp/pids", "cgroup", 0, "pids");
                let _ = mount("c", "/tmp/v2", "cgroup2", 0, "");
            }
        }
        let _ = call!(libc::SYS_write, up[1], b"x".as_ptr(), 1);
        let mut byte = 0u8;
        let _ = call!(libc::SYS_read, down[0], &raw mut byte, 1);
        // SAFETY: _exit(2) takes a number.
        unsafe { libc::_exit(0) };
    }
    let mut byte = 0u8;
    call!(libc::SYS_read, up[0], &raw mut byte, 1).unwrap();
    let write = |path: String, text: &str| {
        OpenOptions::new().write(true).open(path).and_then(|mut f| f.write_all(text.as_bytes()))
    };
    let root = format!("/proc/{child}/root/tmp");
    attack.attempt_io("the host's cgroup", write(format!("{root}/freezer/{canary}/freezer.state"), "FROZEN"));
    for dir in ["pids", "v2"] {
        let max = format!("{root}/{dir}/pids.max");
        // Only the cgroup of this sandbox has this limit (22, and one for init).
        if fs::read_to_string(&max).is_ok_and(|text| text.starts_with("23")) {
            attack.attempt_io("its own limit", write(max, "max"));
        }
    }
    attack.never("nothing else", false);
    let _ = call!(libc::SYS_write, down[1], b"x".as_ptr(), 1);
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    unsafe { libc::waitpid(child, &mut status, 0) };
}

/// The classic chroot escape: chroots into a subdirectory, keeps the working directory outside of it, and climbs by
/// `..`.
fn chroot(attack: &mut Attack) {
    let canary = std::env::var("CANARY").unwrap();
    let inside = fs::metadata("/").unwrap();
    fs::create_dir("/tmp/jail").unwrap();
    if call!(libc::SYS_chroot, c"/tmp/jail".as_ptr()).is_err() {
        return attack.never("chroot", false);
    }
    for _ in 0..64 {
        let _ = call!(libc::SYS_chdir, c"..".as_ptr());
    }
    let out = fs::metadata(".").unwrap();
    attack.never("climbed to another root", (out.dev(), out.ino()) != (inside.dev(), inside.ino()));
    call!(libc::SYS_chroot, c".".as_ptr()).unwrap();
    attack.never("the host's files are there", Path::new(&canary).exists());
}

/// Opens files of /proc and /sys for writing, without writing, and reads files that must be masked.
fn kernel(attack: &mut Attack) {
    for file in ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger"] {
        attack.attempt_io(file, OpenOptions::new().write(true).open(file));
    }
    for file in ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts", "/proc/sched_debug"] {
        let read = File::open(file).and_then(|mut f| f.read(&mut [0; 16]));
        attack.never(file, read.is_ok_and(|n| n > 0));
    }
    for dir in ["/sys/firmware", "/sys/kernel/debug", "/sys/kernel/tracing", "/proc/acpi", "/proc/scsi"] {
        attack.never(dir, fs::read_dir(dir).is_ok_and(|mut d| d.next().is_some()));
    }
    let mut todo = vec!["/sys".to_string(), "/proc/sys".into(), "/proc/irq".into(), "/proc/fs".into()];
    while let Some(path) = todo.pop() {
        let Ok(m) = fs::symlink_metadata(&path) else { continue };
        if m.is_dir() {
            let below = fs::read_dir(&path).into_iter().flatten().flatten();
            todo.extend(below.filter_map(|e| e.path().to_str().map(str::to_string)));
        } else if m.is_file() {
            attack.attempt_io(&path, OpenOptions::new().write(true).open(&path));
            let mode = fs::Permissions::from_mode(m.mode());
            attack.attempt_io(&path, fs::set_permissions(&path, mode));
        }
    }
}

/// Opens a file by handle, which needs no path and no mount of the sandbox.
fn handle(attack: &mut Attack) {
    let mut handle = [128u32, 0].iter().copied().chain([0; 32]).collect::<Vec<u32>>();
    let (mut id, at) = (0, z("/usr"));
    call!(libc::SYS_name_to_handle_at, libc::AT_FDCWD, at.as_ptr(), handle.as_mut_ptr(), &raw mut id, 0)
        .unwrap();
    let dir = File::open("/usr").unwrap();
    attack.attempt(
        "open_by_handle_at",
        call!(libc::SYS_open_by_handle_at, dir.as_raw_fd(), handle.as_ptr(), libc::O_RDONLY),
    );
}

/// Searches the keyrings for a key of the caller's session.
fn keyring(attack: &mut Attack) {
    const SEARCH: i32 = 10;
    for keyring in [-1, -2, -3, -4, -5] {
        let (kind, name) = (c"user".as_ptr(), c"canary".as_ptr());
        let found = call!(libc::SYS_keyctl, SEARCH, keyring as libc::c_long, kind, name, 0);
        attack.attempt(format!("key in {keyring}"), found);
    }
}

fn say_won(sandbox: cofferdam::Sandbox, least: u32) -> common::Seen {
    let seen = run_probe(sandbox).unwrap();
    beaten(&seen, least);
    seen
}

/// PID 1 cannot be overwritten, entered, traced or ended, and reports the true exit status.
#[test]
fn task_cannot_read_trace_or_end_pid_1() {
    if !sandboxes() {
        return;
    }
    for user in USERS {
        let seen = say_won(probe("init").user(user), 100);
        assert_eq!(seen.status.code, Some(42), "{user}: {}", seen.status);
    }
}

/// The caller leaves a descriptor of the host's `/` inheritable; the task does not have it.
#[test]
fn no_descriptor_or_working_directory_leads_to_the_host() {
    if !sandboxes() {
        return;
    }
    // SAFETY: no other thread of this test binary reads or writes this variable.
    unsafe { std::env::set_var("CANARYLEAK", "CANARYLEAK") };
    // A directory of the host that is not close-on-exec.
    let leaky = call!(libc::SYS_open, c"/".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
    let exe = std::env::current_exe().unwrap();
    let before = fs::metadata(&exe).unwrap();
    for user in USERS {
        for init in [true, false] {
            say_won(probe("descriptors").user(user).with(|s| s.init = init), 12);
        }
    }
    call!(libc::SYS_close, leaky).unwrap();
    let after = fs::metadata(&exe).unwrap();
    assert_eq!((before.len(), before.mtime()), (after.len(), after.mtime()));
}

/// A task with CAP_MKNOD can create nodes, but every mount that it can write is nodev.
#[test]
fn device_nodes_created_by_a_task_cannot_be_opened() {
    if !sandboxes() {
        return;
    }
    let volume = open_dir();
    for method in [Method::Bind, Method::Overlay, Method::Copy, Method::Link] {
        for user in USERS {
            let mut chroot_env = libraries();
            chroot_env.insert("/usr/share/base-files".into(), "/usr/share/base-files".into());
            let root = Root { populate: method, chroot_env, ..Root::default() };
            say_won(probe("devices").user(user).root(root).volume(writable(volume.path(), "/volume")), 100);
        }
    }
    let dir = open_dir();
    let root = Root { path: Some(dir.path().into()), populate: Method::None, ..Root::default() };
    say_won(with_libraries(probe("devices").user("root").root(root)), 100);
}

/// The task cannot change mode, owner or attributes of the host's nodes that it has as streams or devices.
#[test]
fn task_cannot_change_metadata_of_the_hosts_device_nodes() {
    if !sandboxes() {
        return;
    }
    for user in USERS {
        say_won(probe("null").user(user), 9);
        for name in ["null", "tty"] {
            say_won(probe("node").user(user).env("NODE", format!("/dev/{name}")), 3);
        }
        let device = Device { target: "/dev/given".into(), ..Device::new("/dev/zero") };
        say_won(probe("node").user(user).env("NODE", "/dev/given").with(|s| s.devices = vec![device]), 3);
    }
}

#[test]
fn task_without_cap_sys_admin_cannot_change_mounts() {
    if !sandboxes() {
        return;
    }
    for user in USERS {
        say_won(probe("mounts").user(user), 100);
    }
}

#[test]
fn cve_2022_0185_a_user_namespace_gives_no_control_over_inherited_mounts() {
    if !sandboxes() {
        return;
    }
    for user in USERS {
        for allowed in [false, true] {
            let root = Root { populate: Method::Link, chroot_env: libraries(), ..Root::default() };
            let sandbox = probe("user-namespace").user(user).with(|s| s.user_namespaces = allowed);
            say_won(sandbox.clone(), 30);
            say_won(sandbox.root(root), 30);
        }
    }
}

/// The task can change neither the host's cgroups nor the limits of its own cgroup.
#[test]
fn cve_2022_0492_2023_25809_task_cannot_write_cgroup_files() {
    if !can("root") || !can("cgroups") {
        return;
    }
    let host = cofferdam::Host::probe().unwrap();
    let name = format!("cofferdam-canary-{}", std::process::id());
    let canary = host.cgroups.v1.get("freezer").map(|h| h.mount.join(&name));
    canary.iter().for_each(|dir| fs::create_dir(dir).unwrap());
    for user in USERS {
        let limits = Limits { pids_max: Some(22), ..Limits::default() };
        let seen = run_probe(probe("cgroups").user(user).env("CANARY", name.clone()).limits(limits));
        if let Some(dir) = &canary {
            let state = fs::read_to_string(dir.join("freezer.state")).unwrap();
            fs::write(dir.join("freezer.state"), "THAWED").unwrap();
            if user == USERS[1] || state.trim() != "THAWED" {
                fs::remove_dir(dir).unwrap();
            }
            assert_eq!(state.trim(), "THAWED");
        }
        beaten(&seen.unwrap(), 1);
    }
}

/// With `no_pivot_root` the escape may succeed, and the report must say so.
#[test]
fn nested_chroot_does_not_escape_the_root() {
    if !sandboxes() {
        return;
    }
    let canary = Canary::new();
    let file = canary.path().join("file");
    for user in USERS {
        for no_pivot_root in [false, true] {
            let policy = Policy { no_pivot_root, ..Policy::default() };
            let sandbox = probe("chroot").user(user).policy(&policy).env("CANARY", file.to_str().unwrap());
            let seen = run_probe(sandbox).unwrap();
            if no_pivot_root {
                assert!(seen.report.weakened.contains(Control::ROOT_SWITCH));
            } else {
                beaten(&seen, 2);
            }
        }
    }
}

#[test]
fn cve_2017_16539_proc_and_sys_are_read_only_and_masked() {
    if !sandboxes() {
        return;
    }
    for user in USERS {
        say_won(probe("kernel").user(user), 1000);
        say_won(probe("kernel").user(user).network(Network::None), 1000);
    }
}

/// CAP_DAC_READ_SEARCH is not a default capability. If it is granted, the report says what it weakens.
#[test]
fn open_by_handle_at_needs_a_capability_that_is_reported() {
    if !sandboxes() {
        return;
    }
    for user in USERS {
        say_won(probe("handle").user(user), 1);
    }
    if !can("root") {
        return;
    }
    let policy = Policy { allow_caps: Some(vec!["all".into()]), ..Policy::default() };
    let granted = probe("handle").policy(&policy).with(|s| s.cap_add = vec!["dac_read_search".into()]);
    assert!(run_probe(granted).unwrap().report.weakened.contains(Control::ROOT_SWITCH));
}

#[test]
fn task_cannot_find_keys_of_the_callers_session_keyring() {
    if !sandboxes() {
        return;
    }
    // A session keyring of this thread only.
    let join = call!(libc::SYS_keyctl, 1, 0);
    let (kind, name, secret) = (c"user".as_ptr(), c"canary".as_ptr(), b"secret".as_ptr());
    let add = call!(libc::SYS_add_key, kind, name, secret, 6, -3 as libc::c_long);
    if join.and(add).is_err() {
        common::skip::note("needs keys: add_key(2) is refused");
        return;
    }
    for user in USERS {
        for init in [true, false] {
            say_won(probe("keyring").user(user).with(|s| s.init = init), 5);
        }
    }
}

/// With `no_new_privs` the set-user-ID bit of a program in a volume has no effect; without it, the program gets no more
/// than the bounding set.
#[test]
fn nomad_cve_2019_14803_a_setuid_program_stays_within_the_bounding_set() {
    if !can("root") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("probe");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o6755)).unwrap();
    let run = |no_new_privs: bool| {
        let sandbox = probe("ids").volume(read_only(dir.path(), "/suid")).with(|s| {
            s.command = "/suid/probe".into();
            s.no_new_privs = no_new_privs;
            s.cap_drop = vec!["all".into()];
            s.cap_add = vec!["chown".into()];
        });
        run_probe(sandbox).unwrap()
    };
    let seen = run(true);
    assert_eq!((seen.get("Uid"), seen.get("Gid")), ("65534 65534 65534 65534", "65534 65534 65534 65534"));
    assert_eq!(seen.get("CapEff"), "0000000000000001");
    let seen = run(false);
    // Unless the file system is mounted nosuid on the host.
    let at = nix::sys::statfs::statfs(dir.path()).unwrap();
    if !at.flags().contains(nix::sys::statvfs::FsFlags::ST_NOSUID) {
        assert_eq!(seen.get("Uid"), "65534 0 0 0");
    }
    assert_eq!((seen.get("CapEff"), seen.get("CapBnd")), ("0000000000000001", "0000000000000001"));
}

#[test]
fn report_names_the_risks_of_sharing_with_the_host() {
    if !sandboxes() {
        return;
    }
    if privileged() {
        let shared = probe("ids").pid_mode(cofferdam::IsolationMode::Host).host(&without_landlock());
        assert!(shared.plan().unwrap().report.why(Control::PID_NS).contains("CAP_KILL"));
        let propagation = cofferdam::Propagation::HostToTask;
        let volume = cofferdam::Volume { propagation, ..writable("/tmp", "/volume") };
        assert!(probe("ids").volume(volume).plan().unwrap().report.weakened.contains(Control::DEVICES));
    }
    let bare = without_landlock();
    let plan = |network| probe("ids").network(network).host(&bare).plan().unwrap().report;
    assert!(plan(Network::Host).why(Control::NET_NS).contains("abstract unix sockets"));
    assert!(plan(Network::None).enforced.contains(Control::NET_NS));
    let strict = probe("ids").require(Control::NET_NS);
    assert!(matches!(strict.plan(), Err(Error::Spec { field: "require", .. })));
}
