//! A task that enters prepared mounts has the same enclosure as one that makes all of its mounts, and finds nothing of the
//! tasks before it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam::cgroup::CgroupPath;
use cofferdam::{Host, Method, Network, Policy, Propagation, Root, Sandbox, Stdio, Volume};
use common::can;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// The sandbox with a shell script as its command.
fn script(sandbox: &Sandbox, script: &str) -> Sandbox {
    let sandbox =
        sandbox.clone().with(|s| s.args = vec!["-c".into(), format!("{{ {script}; }} 2>&1").into()]);
    sandbox.stdout(Stdio::Piped)
}

/// Spawns the sandbox, with the plan that it keeps. Returns the output.
fn spawned(sandbox: &Sandbox) -> String {
    let done = sandbox.spawn().unwrap().wait_with_output(1 << 20, None).unwrap();
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Runs a shell script in a changed clone, which shares only the prepared mounts.
fn output(sandbox: &Sandbox, text: &str) -> String {
    spawned(&script(sandbox, text))
}

fn shell(host: &Host) -> Sandbox {
    Sandbox::command("/bin/sh").host(host).arg("-c").arg("true")
}

/// The sandbox with the programs of the host, and `source` at `/data`.
fn with_data(sandbox: Sandbox, source: PathBuf) -> Sandbox {
    sandbox.with(|s| {
        let usual = ["/bin", "/lib", "/lib64", "/usr"].map(|at| (at.into(), at.into()));
        s.root.chroot_env = usual.into();
        s.root.chroot_env.insert(source, "/data".into());
    })
}

/// Runs `work` in a thread with a mount namespace of its own.
fn in_own_mounts(work: impl FnOnce() + Send) {
    let run = || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        work();
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
}

fn bind(source: &Path, target: &Path) {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

/// The mounts that a task sees: mount point, options, and what is mounted. Ids and device numbers differ between tasks.
const MOUNTS: &str = r#"while read -r id parent device root point options rest; do
    echo "$point $options $rest"; done < /proc/self/mountinfo"#;

#[test]
fn a_prepared_task_sees_the_mounts_that_it_would_have_made() {
    if !can("root") {
        return;
    }
    let host = Host::probe().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let volume = Volume::new(dir.path(), "/work");
    let plain = shell(&host);
    for sandbox in [
        plain.clone(),
        plain.clone().network(Network::None).work_dir("/a/b"),
        plain.clone().volume(volume).work_dir("/work/inner").user("0:0"),
        plain.clone().with(|s| {
            s.dns = Path::new("/etc/resolv.conf").exists().then(cofferdam::Dns::default);
            s.task_dirs.secrets = Some(cofferdam::Secrets::default());
            s.task_dirs.local = Some(dir.path().into());
        }),
    ] {
        let look = format!(
            "{MOUNTS}; echo; ls -lan / /dev /tmp; pwd; cat /proc/self/status | grep -E 'Cap|Seccomp|NoNew'"
        );
        let cold = output(&sandbox, &look);
        assert!(sandbox.prepare().unwrap(), "{:?}", sandbox.plan().unwrap().to_string());
        let prepared = output(&sandbox, &look);
        let lines = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(without_times).collect();
            lines.sort();
            lines
        };
        assert_eq!(lines(&cold), lines(&prepared));
    }
}

/// A line of `ls` without its time.
fn without_times(line: &str) -> String {
    let words = line.split_whitespace();
    words.filter(|word| !word.contains(':') && word.parse::<u32>().is_err()).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_task_finds_nothing_that_an_earlier_one_has_written() {
    if !can("root") {
        return;
    }
    let host = Host::probe().unwrap();
    // Capabilities of more than a container's root, but not the one that makes the sandbox cold.
    let all = Policy { allow_caps: Some(vec!["all".into()]), ..Policy::default() };
    let strong = shell(&host).policy(&all).user("0:0").with(|s| {
        let more =
            ["dac_read_search", "linux_immutable", "net_admin", "sys_ptrace", "sys_rawio", "sys_tty_config"];
        s.cap_add = more.map(String::from).into();
    });
    let admin = strong.clone().with(|s| s.cap_add.push("sys_admin".into()));
    let of_admin = shell(&host);
    for (sandbox, next) in
        [(shell(&host), None), (shell(&host).user("0:0"), None), (strong, None), (admin, Some(of_admin))]
    {
        let next = next.as_ref().unwrap_or(&sandbox);
        assert!(next.prepare().unwrap());
        let write = r#"for dir in / /dev /dev/pts /dev/shm /dev/mqueue /tmp /proc /sys /bin /usr /etc /run /work; do
            echo secret > $dir/left-behind; mkdir $dir/left-dir; mknod $dir/left-node c 1 3; done
            chmod 0 /dev/null /proc/keys /proc/timer_list /etc/shadow /etc/gshadow; chown 7 /dev/zero; rm -f /dev/full; ln -s / /left-link; touch -d 2001-01-01 /dev /;
            mount -o remount,rw / ; mount -o remount,rw /dev; umount /proc; umount /sys/firmware; hostname x;
            for i in 1 2 3; do echo > /proc/sys/kernel/hostname; done; ls -R /tmp /dev/shm"#;
        let wrote = output(&sandbox, write);
        assert!(wrote.contains("left-behind"), "the task could write nothing at all: {wrote}");
        let look = r#"find / /dev /tmp -xdev -name 'left-*'; find /dev/shm /dev/mqueue -name 'left-*';
            stat -c '%a %u %n' /dev/null /dev/zero /dev/full; stat -c %Y /dev /"#;
        // Otherwise the first look of a sandbox that nobody has spawned makes mounts of its own.
        let look = script(next, look);
        assert!(look.prepare().unwrap());
        let (first, second) = (spawned(&look), spawned(&look));
        assert_eq!(first, second);
        assert!(!first.contains("left-"), "{first}");
        for node in ["666 0 /dev/null", "666 0 /dev/zero", "666 0 /dev/full"] {
            assert!(first.contains(node), "{first}");
        }
        assert!(!first.contains("978307200"), "{first}");
    }
}

#[test]
fn what_a_task_could_change_for_the_next_one_is_not_prepared() {
    if !can("root") {
        return;
    }
    let host = Host::probe().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let all = Policy { allow_caps: Some(vec!["all".into()]), ..Policy::default() };
    let slave = Volume { propagation: Propagation::HostToTask, ..Volume::new(dir.path(), "/work") };
    let root = Root { path: Some(dir.path().into()), populate: Method::None, ..Root::default() };
    for (sandbox, why) in [
        (shell(&host).policy(&all).with(|s| s.cap_add = vec!["sys_admin".into()]), "CAP_SYS_ADMIN"),
        (shell(&host).policy(&Policy { no_pivot_root: true, ..Policy::default() }), "chroot"),
        (shell(&host).volume(slave), "propagates"),
        (shell(&host).root(root), "the root is a directory"),
    ] {
        assert!(!sandbox.prepare().unwrap(), "{why}");
        let text = sandbox.plan().unwrap().to_string();
        assert!(text.contains("# nothing is prepared: ") && text.contains(why), "{text}");
    }
}

#[test]
fn without_privileges_nothing_is_prepared() {
    if can("root") || !can("userns") {
        return;
    }
    let sandbox = shell(&Host::probe().unwrap());
    assert!(!sandbox.prepare().unwrap());
    assert!(sandbox.plan().unwrap().to_string().contains("the task's user namespace"));
    assert_eq!(output(&sandbox, "echo works"), "works\n");
}

#[test]
fn prepared_mounts_follow_the_mounts_of_the_host() {
    if !can("root") {
        return;
    }
    in_own_mounts(|| {
        let host = Host::probe().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["source", "source/below", "other", "third"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::write(path("source/name"), "source").unwrap();
        fs::write(path("other/name"), "other").unwrap();
        fs::write(path("third/name"), "third").unwrap();
        let sandbox = with_data(shell(&host), path("source"));
        assert!(sandbox.prepare().unwrap());
        let look = script(&sandbox, "cat /data/name; cat /data/below/name");
        // A plan is kept from the second spawn on.
        assert_eq!(spawned(&look), spawned(&look));
        assert!(spawned(&look).starts_with("sourcecat:"));
        // A mount below a source.
        bind(&path("other"), &path("source/below"));
        assert_eq!(spawned(&look), "sourceother");
        assert!(output(&sandbox, "echo x > /data/below/new; echo done").contains("Read-only"));
        // Another mount at the same place.
        bind(&path("third"), &path("source/below"));
        assert_eq!(spawned(&look), "sourcethird");
        umount2(&path("source/below"), MntFlags::MNT_DETACH).unwrap();
        assert_eq!(spawned(&look), "sourceother");
        // Another directory in the place of the source.
        umount2(&path("source/below"), MntFlags::MNT_DETACH).unwrap();
        fs::rename(path("source"), path("moved")).unwrap();
        fs::rename(path("third"), path("source")).unwrap();
        assert!(spawned(&look).starts_with("third"));
        // A mount over the source.
        bind(&path("other"), &path("source"));
        assert!(spawned(&look).starts_with("other"));
        fs::remove_file(path("other/name")).unwrap();
        assert!(spawned(&look).starts_with("cat:"));
        umount2(&path("source"), MntFlags::MNT_DETACH).unwrap();
        // The source is gone.
        fs::rename(path("source"), path("gone")).unwrap();
        assert!(output(&sandbox, "ls -d /data").contains("No such file"));
    });
}

#[test]
fn threads_prepare_once_and_spawn_at_the_same_time() {
    if !can("root") {
        return;
    }
    let sandbox = shell(&Host::probe().unwrap());
    let work = || {
        for _ in 0..20 {
            assert_eq!(output(&sandbox, "echo $$"), output(&sandbox, "echo $$"));
            assert!(sandbox.spawn().unwrap().wait().unwrap().success());
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(work))));
}

/// The mount namespaces of other processes or of none that this process has open: the descriptors, and the links that name
/// the namespaces.
fn open_namespaces() -> Vec<(PathBuf, PathBuf)> {
    let open = fs::read_dir("/proc/self/fd").unwrap().map(|fd| fd.unwrap().path());
    open.filter_map(|fd| Some((fd.clone(), fs::read_link(fd).ok()?)))
        .filter(|(_, link)| link.to_string_lossy().starts_with("mnt:"))
        .collect()
}

/// Whether this is a process of the named test alone, which no other test opens descriptors or makes threads in. Otherwise
/// the test has now passed in one.
fn is_alone(test: &str) -> bool {
    if std::env::var_os("COFFERDAM_ALONE").is_some() {
        return true;
    }
    let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
    let output = alone.args(["--exact", test]).env("COFFERDAM_ALONE", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    false
}

#[test]
fn released_mounts_are_kept_by_no_clone() {
    if !can("root") || !is_alone("released_mounts_are_kept_by_no_clone") {
        return;
    }
    let sandbox = shell(&Host::probe().unwrap());
    let changed = sandbox.clone().env("A", "1");
    for sandbox in [&sandbox, &changed, &changed] {
        assert!(sandbox.prepare().unwrap());
        assert!(sandbox.spawn().unwrap().wait().unwrap().success());
    }
    assert_ne!(open_namespaces(), []);
    sandbox.release_prepared();
    assert_eq!(open_namespaces(), []);
    assert!(changed.spawn().unwrap().wait().unwrap().success());
    assert_eq!(open_namespaces(), [], "the first spawn after that is cold");
}

/// The mounts that are prepared for a sandbox serve its clones that change what no mount depends on.
#[test]
fn mounts_are_prepared_for_clones_with_other_streams_too() {
    if !can("root") || !is_alone("mounts_are_prepared_for_clones_with_other_streams_too") {
        return;
    }
    let sandbox = shell(&Host::probe().unwrap());
    assert!(sandbox.prepare().unwrap());
    let prepared = open_namespaces();
    assert_eq!(prepared.len(), 1, "{prepared:?}");
    let file = tempfile::tempfile().unwrap();
    for clone in [
        sandbox.clone().stdout(Stdio::Piped),
        sandbox.clone().stdin(Stdio::Null).stderr(Stdio::from(file.try_clone().unwrap())),
        sandbox.clone().stdin(Stdio::Piped).stdout(Stdio::from(file)).stderr(Stdio::Piped),
        sandbox.clone().env("A", "1").hostname("other"),
    ] {
        assert!(clone.prepare().unwrap());
        assert_eq!(open_namespaces(), prepared);
        assert!(clone.spawn().unwrap().wait().unwrap().success());
        assert_eq!(open_namespaces(), prepared);
    }
}

/// The child of a fork has the same open files as its parent. What one of them is told about the host's mounts, the other
/// does not hear.
#[test]
fn mounts_that_a_process_has_prepared_are_not_used_in_its_fork() {
    if !can("root") || !is_alone("mounts_that_a_process_has_prepared_are_not_used_in_its_fork") {
        return;
    }
    in_own_mounts(|| {
        let host = Host::probe().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("etc");
        ["inner/place", "below", "other"].iter().for_each(|at| fs::create_dir_all(etc.join(at)).unwrap());
        let replace = |text: &str| {
            fs::write(etc.join("new"), text).unwrap();
            fs::set_permissions(etc.join("new"), fs::Permissions::from_mode(0o600)).unwrap();
            fs::rename(etc.join("new"), etc.join("shadow")).unwrap();
        };
        replace("secret");
        fs::write(etc.join("below/name"), "below").unwrap();
        fs::write(etc.join("other/name"), "other").unwrap();
        fs::write(etc.join("passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        bind(&etc, Path::new("/etc"));
        // The volume keeps `/etc` from being mapped, so its secrets have masks.
        let masks = shell(&host).user("0:0").volume(Volume::new("/etc/inner", "/etc/inner/place"));
        in_fork(&script(&masks, "cat /etc/shadow"), ["", ""], || replace("new secret"));
        let source = with_data(shell(&host), etc.clone());
        let change = || bind(&etc.join("other"), &etc.join("below"));
        in_fork(&script(&source, "cat /data/below/name"), ["below", "other"], change);
        // Otherwise the directory stays.
        umount2(&etc.join("below"), MntFlags::MNT_DETACH).unwrap();
    });
}

/// Asserts what the task says before and after the change of the host: in this process, and then in a fork that was made
/// before the change.
#[track_caller]
fn in_fork(sandbox: &Sandbox, [before, after]: [&str; 2], change: impl Fn()) {
    assert!(sandbox.prepare().unwrap());
    for _ in 0..2 {
        assert_eq!(spawned(sandbox), before);
    }
    let (read, write) = nix::unistd::pipe().unwrap();
    // SAFETY: no other thread of this process is in the crate or in the allocator, since the test is alone in it.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            let told = nix::unistd::read(&read, &mut [0; 1]);
            let found = [(); 2].map(|()| spawned(sandbox));
            println!("in the fork: {found:?}");
            let right = told == Ok(1) && found == [after; 2];
            // SAFETY: ends this process without the destructors and the other tests of its parent.
            unsafe { libc::_exit(i32::from(!right)) }
        }
        nix::unistd::ForkResult::Parent { child } => {
            change();
            assert_eq!(spawned(sandbox), after);
            nix::unistd::write(&write, b"x").unwrap();
            let ended = nix::sys::wait::waitpid(child, None).unwrap();
            assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(child, 0));
        }
    }
}

/// A thread may have another network namespace than the one in which the mounts were prepared.
#[test]
fn sys_is_of_the_network_namespace_that_the_task_is_in() {
    if !can("root") {
        return;
    }
    let sandbox = shell(&Host::probe().unwrap());
    let look = script(
        &sandbox,
        "echo /sys/class/net/*; while IFS=' :' read -r name rest; do echo $name; done </proc/net/dev",
    );
    assert!(sandbox.prepare().unwrap());
    let here = spawned(&look);
    assert_eq!(spawned(&look), here);
    let in_other = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        [(); 3].map(|()| spawned(&look))
    };
    for found in std::thread::scope(|scope| scope.spawn(in_other).join()).unwrap() {
        let lines: Vec<_> = found.lines().filter(|line| !["Inter-|", "face"].contains(line)).collect();
        assert_eq!(lines, ["/sys/class/net/lo", "lo"], "{found}");
    }
    assert_eq!(spawned(&look), here);
}

/// A signal interrupts a poll. That is no news of the host's mounts.
#[test]
fn signals_to_the_caller_do_not_make_it_prepare_again() {
    if !can("root") || !is_alone("signals_to_the_caller_do_not_make_it_prepare_again") {
        return;
    }
    extern "C" fn nothing(_: libc::c_int) {}
    let sandbox = shell(&Host::probe().unwrap());
    assert!(sandbox.prepare().unwrap());
    let namespaces =
        || open_namespaces().into_iter().map(|(_, link)| link).collect::<std::collections::BTreeSet<_>>();
    let prepared = namespaces();
    // No other namespace gets its number as long as it is open.
    let _open: Vec<_> = open_namespaces().iter().map(|(fd, _)| fs::File::open(fd).unwrap()).collect();
    // SAFETY: the handler does nothing. `pthread_self` has no precondition.
    let this = unsafe {
        libc::signal(libc::SIGUSR1, nothing as extern "C" fn(libc::c_int) as libc::sighandler_t);
        libc::pthread_self()
    };
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                // SAFETY: the thread waits for this one.
                unsafe { libc::pthread_kill(this, libc::SIGUSR1) };
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        let same = (0..500).all(|_| {
            assert!(sandbox.spawn().unwrap().wait().unwrap().success());
            namespaces() == prepared
        });
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(same);
    });
}

/// Directories of all hierarchies with this name.
fn cgroups_named(name: &str) -> Vec<String> {
    let found = std::process::Command::new("find")
        .args(["/sys/fs/cgroup", "-type", "d", "-name", name])
        .output()
        .unwrap();
    String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn parents_of_cgroups_stay_for_the_next_task_until_the_mounts_are_released() {
    if !can("root") || !can("cgroups") {
        return;
    }
    let name = format!("cofferdam-kept-{}", std::process::id());
    let policy = Policy { cgroup_parent: CgroupPath::new(&name).unwrap(), ..Policy::default() };
    let host = Host::probe().unwrap();
    let sandbox = shell(&host).policy(&policy);
    let run = |sandbox: &Sandbox| assert!(sandbox.spawn().unwrap().wait().unwrap().success());
    run(&sandbox);
    assert_eq!(cgroups_named(&name), [""; 0], "a task with mounts of its own removes them");
    assert!(sandbox.prepare().unwrap());
    run(&sandbox);
    let kept = cgroups_named(&name);
    assert!(!kept.is_empty());
    let inode = |path: &String| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let inodes: Vec<u64> = kept.iter().map(inode).collect();
    let other = sandbox.clone();
    run(&other);
    assert_eq!(kept.iter().map(inode).collect::<Vec<_>>(), inodes, "the same cgroups");
    // Another sandbox of this process neither needs nor removes them.
    run(&shell(&host).policy(&policy));
    drop(sandbox);
    assert_eq!(kept.iter().map(inode).collect::<Vec<_>>(), inodes, "a clone lives");
    let running = other.clone().with(|s| s.args = vec!["-c".into(), "read x".into()]).stdin(Stdio::Piped);
    let task = running.spawn().unwrap();
    other.release_prepared();
    assert!(!cgroups_named(&name).is_empty(), "a task is in them");
    drop((running, other));
    task.kill().unwrap();
    task.wait().unwrap();
    drop(task);
    assert_eq!(cgroups_named(&name), [""; 0]);
    // They are released while a task starts.
    let sandbox = shell(&host).policy(&policy);
    for _ in 0..2 {
        run(&sandbox);
    }
    assert!(!cgroups_named(&name).is_empty());
    let released = |_| {
        sandbox.release_prepared();
        Ok(())
    };
    assert!(sandbox.spawn_with(released).unwrap().wait().unwrap().success());
    assert_eq!(cgroups_named(&name), [""; 0]);
}

/// The kernel detaches a mount from a file that another one is renamed to, in every mount namespace but that of the process
/// that renames it. So does `passwd` with the mask of `/etc/shadow`.
#[test]
fn what_covers_a_file_in_prepared_mounts_still_does_after_the_host_has_replaced_the_file() {
    if !can("root") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let replace = |name: &str, content: &str| {
        let new = dir.path().join("new");
        fs::write(&new, content).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&new, dir.path().join(name)).unwrap();
    };
    for name in ["shadow", "hosts"] {
        replace(name, "the first secret");
    }
    fs::write(dir.path().join("passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    in_own_mounts(|| {
        bind(dir.path(), Path::new("/etc"));
        let host = Host::probe().unwrap();
        let sandbox = shell(&host).user("0:0").with(|spec| spec.hosts = Some(Vec::new()));
        // With a volume in a directory of it, /etc is no idmapped mount, so the files are masked.
        fs::create_dir_all("/etc/inner/place").unwrap();
        let masked = sandbox.clone().volume(Volume::new("/etc/inner", "/etc/inner/place"));
        for sandbox in [sandbox, masked] {
            assert!(sandbox.prepare().unwrap());
            let look = script(&sandbox, "cat /etc/shadow; echo; cat /etc/hosts");
            for n in 0..3 {
                for name in ["shadow", "hosts"] {
                    replace(name, &format!("secret {n}"));
                }
                for _ in 0..3 {
                    let shown = spawned(&look);
                    assert!(shown.contains("localhost") && !shown.contains("secret"), "{shown}");
                }
            }
            // One that the host makes after it was probed.
            replace("new", "secret");
            let shown = spawned(&script(&sandbox, "cat /etc/new; cat /etc/passwd"));
            assert!(shown.contains("root:") && !shown.contains("secret"), "{shown}");
            fs::remove_file(dir.path().join("new")).unwrap();
        }
    });
}

#[test]
fn user_of_a_kept_plan_follows_the_hosts_database() {
    if !can("root") {
        return;
    }
    in_own_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        let passwd = dir.path().join("passwd");
        let write = |uid| fs::write(&passwd, format!("cofferdam-test:x:{uid}:{uid}::/:/bin/sh\n")).unwrap();
        write(4711);
        bind(&passwd, Path::new("/etc/passwd"));
        // Without /etc, whose masks keep a plan from being kept.
        let mut env = cofferdam::rootfs::default_chroot_env();
        env.retain(|source, _| source.exists() && source != Path::new("/etc"));
        let sandbox = shell(&Host::probe().unwrap()).user("cofferdam-test").with(|s| s.root.chroot_env = env);
        let sandbox = script(
            &sandbox,
            "while read -r name uid rest; do case $name in Uid:) echo $uid;; esac; done </proc/self/status",
        );
        assert!(sandbox.prepare().unwrap());
        // The first spawn keeps the plan.
        for _ in 0..2 {
            assert_eq!(spawned(&sandbox), "4711\n");
        }
        write(4712);
        std::thread::sleep(Duration::from_millis(1100));
        assert_eq!(spawned(&sandbox), "4712\n");
    });
}
