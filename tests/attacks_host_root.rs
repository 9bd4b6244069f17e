//! The host's `/` as a source: the sandbox shows the host's root, and never a second view of the sandbox's own root.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod attack_tools;
mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use attack_tools::*;
use cofferdam::{
    Control, Host, IsolationMode, Method, Network, Policy, Propagation, Root, Sandbox, Stdio, TaskDirs,
    Volume,
};
use common::{asked, can, probe, run_probe, sandboxes};

/// Entry point of this binary inside a sandbox. `PLACE` is where the host's root should be.
#[test]
fn probe_entry() {
    let Some((what, mut say)) = asked() else { return };
    if what == "reach" {
        say.fact("reached", fs::write(std::env::var("TARGET").unwrap(), "by the task").is_ok());
        return;
    }
    if what == "init" {
        say.fact("init", Path::new("/proc/1").exists());
        return;
    }
    if what == "private" {
        let paths = std::env::var("PATHS").unwrap();
        let shown = |path: &&str| match fs::metadata(path) {
            Ok(st) if st.is_dir() => fs::read_dir(path).is_ok_and(|mut dir| dir.next().is_some()),
            Ok(_) => fs::read(path).is_ok_and(|bytes| !bytes.is_empty()),
            Err(_) => false,
        };
        let shown: Vec<&str> = paths.split(':').filter(shown).collect();
        say.fact("shown", shown.join(" "));
        return;
    }
    assert_eq!(what, "look");
    let place = std::env::var("PLACE").unwrap();
    say.fact("names", names(Path::new(&place)));
    say.fact("inode", fs::metadata(&place).unwrap().ino());
    let mut attack = Attack::default();
    // A second view of the sandbox's own root would show its /dev without the read-only seal.
    for own in ["dev", "proc", "dev/shm"] {
        let of = |top: &str| fs::metadata(Path::new(top).join(own)).map(|st| (st.dev(), st.ino())).ok();
        attack.never(format!("the sandbox's own {own}"), of("/").is_some() && of("/") == of(&place));
    }
    let node = z(Path::new(&place).join("dev/cofferdam-attack"));
    let made = call!(libc::SYS_mknodat, libc::AT_FDCWD, node.as_ptr(), 0o020666, 0x103);
    let opened = made.and_then(|_| call!(libc::SYS_openat, libc::AT_FDCWD, node.as_ptr(), libc::O_RDWR));
    let _ = call!(libc::SYS_unlinkat, libc::AT_FDCWD, node.as_ptr(), 0);
    attack.attempt("a node made in the second view", opened);
    attack.tell(&mut say);
}

fn names(dir: &Path) -> String {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names.join(" ")
}

#[track_caller]
fn shows_the_host(what: &str, place: &str, sandbox: Sandbox) {
    let seen = run_probe(sandbox.env("PLACE", place)).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(seen.get("names"), names(Path::new("/")), "{what}");
    // An overlay has its own inode numbers.
    if what != "overlay" {
        assert_eq!(seen.get("inode"), fs::metadata("/").unwrap().ino().to_string(), "{what}");
    }
    beaten(&seen, 4);
}

fn host_root(source: &Path, read_only: bool, propagation: Propagation) -> Volume {
    Volume { source: source.into(), target: "/host".into(), read_only, propagation }
}

#[test]
fn volume_of_slash_shows_the_hosts_root() {
    if !sandboxes() {
        return;
    }
    let site = tempfile::tempdir().unwrap();
    let link = site.path().join("link");
    std::os::unix::fs::symlink("/", &link).unwrap();
    for source in [Path::new("/"), Path::new("/./"), &link] {
        for read_only in [true, false] {
            for propagation in [Propagation::Private, Propagation::HostToTask] {
                let volume = host_root(source, read_only, propagation);
                shows_the_host(&format!("{volume:?}"), "/host", probe("look").volume(volume));
            }
        }
    }
    let chroot = Policy { no_pivot_root: true, ..Policy::default() };
    let volume = host_root(Path::new("/"), true, Propagation::Private);
    shows_the_host("chroot", "/host", probe("look").policy(&chroot).volume(volume));
    let dirs = TaskDirs { alloc: Some("/".into()), ..TaskDirs::default() };
    shows_the_host("alloc", "/alloc", probe("look").with(|s| s.task_dirs = dirs.clone()));
}

#[test]
fn chroot_env_entry_of_slash_shows_the_hosts_root() {
    if !sandboxes() {
        return;
    }
    let mut map = cofferdam::rootfs::default_chroot_env();
    map.insert("/".into(), "/host".into());
    let mut methods = vec![Method::Bind];
    // An unprivileged overlay is not possible for a directory that has mounts in it.
    if can("root") && Host::probe().unwrap().overlay {
        methods.push(Method::Overlay);
    }
    for populate in methods {
        let root = Root { populate, chroot_env: map.clone(), ..Root::default() };
        shows_the_host(&populate.to_string(), "/host", probe("look").root(root));
    }
}

/// A process of the host with the user nobody, and a file that only root may write.
struct Plain {
    process: std::process::Child,
    site: tempfile::TempDir,
}

impl Plain {
    fn start() -> Plain {
        let site = tempfile::tempdir().unwrap();
        fs::write(site.path().join("roots"), "").unwrap();
        let process = std::process::Command::new("sleep").arg("60").uid(65534).gid(65534).spawn().unwrap();
        Plain { process, site }
    }

    /// The path of the file in a procfs, by the root of the process.
    fn path_to_file(&self) -> String {
        format!("{}/root{}", self.process.id(), self.site.path().join("roots").display())
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// In the host's PID namespace, `/proc/PID/root` of an ordinary process of the same user is the host's root. The task
/// (nobody, with CAP_DAC_OVERRIDE) can write a file there that only root may write. A Landlock domain prevents that;
/// without one the report must not call enforced what the write undoes.
#[test]
fn shared_pid_namespace_reaches_the_host_only_if_reported() {
    if !can("root") || !sandboxes() {
        return;
    }
    let plain = Plain::start();
    let target = format!("/proc/{}", plain.path_to_file());
    let host = Host::probe().unwrap();
    let reach = |mode, host: &Host| {
        run_probe(probe("reach").env("TARGET", &target).user("nobody").pid_mode(mode).host(host)).unwrap()
    };
    let shared = reach(IsolationMode::Host, &without_landlock());
    let kept = [reach(IsolationMode::Private, &host), reach(IsolationMode::Host, &host)];
    drop(plain);
    assert_eq!(shared.get("reached"), "true", "the attack is none any more");
    let undone = Control::HOST_FILES | Control::ROOT_SWITCH | Control::MASKED_PATHS | Control::KILL;
    assert!(shared.report.weakened.contains(undone | Control::DEVICES), "{}", shared.report);
    for kept in kept.into_iter().take(if host.landlock_abi >= 2 { 2 } else { 1 }) {
        assert_eq!(kept.get("reached"), "false");
        assert!(kept.report.enforced.contains(undone), "{}", kept.report);
    }
}

/// The same file by a volume of `/proc`. The link leads to the mounts of the other process, so it does not matter that the
/// volume is read-only.
#[test]
fn volume_of_the_hosts_proc_reaches_the_host_only_if_reported() {
    if !can("root") || !sandboxes() {
        return;
    }
    let plain = Plain::start();
    let target = format!("/host/{}", plain.path_to_file());
    let reach = |host: &Host| {
        let proc = Volume { read_only: true, ..Volume::new("/proc", "/host") };
        // A shared network would be another reason for a domain.
        let sandbox = probe("reach").env("TARGET", &target).user("nobody").network(Network::None);
        run_probe(sandbox.volume(proc).host(host)).unwrap()
    };
    let host = Host::probe().unwrap();
    let (open, kept) = (reach(&without_landlock()), reach(&host));
    drop(plain);
    assert_eq!(open.get("reached"), "true", "the attack is none any more");
    let undone = Control::HOST_FILES | Control::ROOT_SWITCH | Control::KILL | Control::DEVICES;
    assert!(open.report.weakened.contains(undone | Control::PID_NS), "{}", open.report);
    assert!(kept.report.weakened.contains(Control::PID_NS), "{}", kept.report);
    if host.landlock_abi >= 2 {
        assert_eq!(kept.get("reached"), "false");
        assert!(kept.report.enforced.contains(undone), "{}", kept.report);
    }
}

/// With the default root, neither root nor nobody (with CAP_DAC_OVERRIDE, a default capability) can read files of the
/// real `/etc` that other users may not read.
#[test]
fn default_root_hides_files_that_other_users_may_not_read() {
    if !can("root") || !sandboxes() {
        return;
    }
    let host = Host::probe().unwrap();
    let mut todo = vec![std::path::PathBuf::from("/etc")];
    let mut private = Vec::new();
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let st = fs::symlink_metadata(&path).unwrap();
            let wanted = if st.is_dir() { 0o005 } else { 0o004 };
            if !st.is_symlink() && st.mode() & wanted != wanted {
                private.push(path.display().to_string());
            }
            if st.is_dir() {
                todo.push(path);
            }
        }
    }
    if private.is_empty() {
        let _ = std::io::Write::write_all(
            &mut std::io::stderr(),
            b"skipped: everybody may read all of /etc here\n",
        );
        return;
    }
    let ask = |sandbox: Sandbox| run_probe(sandbox.host(&host).env("PATHS", private.join(":"))).unwrap();
    for user in USERS {
        for populate in [Method::Bind, Method::Overlay] {
            let root = Root { populate, ..Root::default() };
            let seen = ask(probe("private").user(user).root(root));
            assert_eq!(seen.get("shown"), "", "{user} {populate}");
            let idmapped = populate == Method::Bind && host.idmapped_etc();
            let named = if idmapped { "idmapped mount" } else { &private[0] };
            assert!(seen.report.why(Control::MASKED_PATHS).contains(named), "{}", seen.report);
        }
        // The check is meaningful: with the list written out as a map, the paths are shown.
        let written = cofferdam::rootfs::default_chroot_env();
        let root = Root { chroot_env: written, ..Root::default() };
        assert!(ask(probe("private").user(user).root(root)).get("shown").contains(&private[0]), "{user}");
    }
}

/// A sysfs that the host has mounted elsewhere is not masked there, and the report says so.
#[test]
fn a_sysfs_of_the_host_elsewhere_is_reported() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    if !can("root") || !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let none = None::<&str>;
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let inner = dir.path().join("inner");
            fs::create_dir(&inner).unwrap();
            mount(Some("s"), &inner, Some("sysfs"), MsFlags::empty(), none).unwrap();
            for source in [dir.path(), &inner, &inner.join("kernel")] {
                let volume = Volume { read_only: true, ..Volume::new(source, "/v") };
                let task = Sandbox::command("true").volume(volume).spawn().unwrap();
                assert!(task.report().why(Control::MASKED_PATHS).contains("(sysfs)"), "{}", task.report());
                assert!(task.report().weakened.contains(Control::MASKED_PATHS));
                assert!(task.wait().unwrap().success());
            }
        });
    });
}

/// A running task cannot read a private file that the host makes or replaces meanwhile, if `/etc` is an idmapped mount.
#[test]
fn a_private_file_that_the_host_replaces_stays_hidden_from_a_running_task() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    use std::os::unix::fs::PermissionsExt;
    if !can("root") || !sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, mode: u32| {
        let new = dir.path().join("new");
        fs::write(&new, "secret of the host").unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(&new, dir.path().join(name)).unwrap();
    };
    put("shadow", 0o640);
    put("public", 0o644);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let none = None::<&str>;
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some(dir.path()), "/etc", none, MsFlags::MS_BIND, none).unwrap();
            let host = Host::probe().unwrap();
            if !host.idmapped_etc() {
                return;
            }
            for user in ["0:0", "65534:65534"] {
                let look = "read go; for f in shadow new public; do cat /etc/$f; echo; done; stat -c %u:%g /etc/public";
                let sandbox = Sandbox::command("/bin/sh").args(["-c", look]).user(user).host(&host);
                let sandbox = sandbox.stdin(Stdio::Piped).stdout(Stdio::Piped);
                let task = sandbox.spawn().unwrap();
                put("shadow", 0o640);
                put("new", 0o600);
                let mut stdin = task.take_stdin().unwrap();
                std::io::Write::write_all(&mut stdin, b"go\n").unwrap();
                let done = task.wait_with_output(1 << 16, None).unwrap();
                let shown = String::from_utf8_lossy(&done.stdout).into_owned();
                assert_eq!(shown, "\n\nsecret of the host\n65534:65534\n", "{user}");
                fs::remove_file(dir.path().join("new")).unwrap();
            }
        });
    });
}

/// If the host's `/proc` is mounted with hidepid, so is that of a task in the host's PID namespace.
#[test]
fn hidepid_of_the_host_applies_in_a_shared_pid_namespace() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    if !can("root") || !sandboxes() {
        return;
    }
    let seen = || run_probe(probe("init").user("nobody").pid_mode(IsolationMode::Host)).unwrap();
    assert_eq!(seen().get("init"), "true");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let none = None::<&str>;
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), Some("hidepid=2")).unwrap();
            assert_eq!(seen().get("init"), "false");
        });
    });
}
