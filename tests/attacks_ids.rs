//! A task's identity on the host, if the caller is uid 0 without the privileges of the initial user namespace.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod attack_tools;
mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use cofferdam::caps::CapSet;
use cofferdam::{Control, Host, Method, Root, Sandbox, Volume};
use common::{asked, can, probe, run_probe, sandboxes};
use nix::fcntl::OFlag;

/// Entry point of this binary inside a sandbox: tries what only root of the host may do to root's file.
#[test]
fn probe_entry() {
    let Some((what, mut say)) = asked() else { return };
    assert_eq!(what, "ids");
    say.attempt("read", fs::read("/v/secret").map_err(errno));
    say.attempt("write", fs::write("/v/open/planted", "").map_err(errno));
    say.attempt("chmod", fs::set_permissions("/v/mine", fs::Permissions::from_mode(0o4755)).map_err(errno));
    say.attempt("setuid", nix::unistd::setresuid(0.into(), 0.into(), 0.into()));
    common::say_facts(&mut say);
}

fn errno(e: std::io::Error) -> nix::errno::Errno {
    nix::errno::Errno::from_raw(e.raw_os_error().unwrap())
}

/// Files owned by root, and a sandbox of user nobody that has them as a volume.
fn site() -> (tempfile::TempDir, Sandbox) {
    let site = tempfile::tempdir().unwrap();
    let top = site.path();
    fs::create_dir(top.join("open")).unwrap();
    for (file, mode) in [("secret", 0o600), ("mine", 0o644)] {
        fs::write(top.join(file), "root's").unwrap();
        fs::set_permissions(top.join(file), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(top, fs::Permissions::from_mode(0o755)).unwrap();
    let volume = Volume { source: top.into(), target: "/v".into(), ..Volume::default() };
    (site, probe("ids").user("65534:65534").volume(volume))
}

/// Drops a capability of this thread, as a container runtime drops it for its root.
fn without(name: &str) {
    let capability = name.parse::<caps::Capability>().unwrap();
    for set in
        [caps::CapSet::Ambient, caps::CapSet::Inheritable, caps::CapSet::Effective, caps::CapSet::Permitted]
    {
        caps::drop(None, set, capability).unwrap();
    }
}

/// Root without CAP_SYS_ADMIN needs a user namespace. In it, user nobody must have no rights of root to the host's
/// files. If it has, the report says which outside uid it is.
#[test]
fn user_nobody_lacks_rights_of_host_root_in_a_user_namespace() {
    if !can("root") || !sandboxes() || Host::probe().unwrap().user_ns_forbidden.is_some() {
        return;
    }
    let (site, sandbox) = site();
    let in_thread = |sandbox: Sandbox| {
        std::thread::spawn(move || {
            without("CAP_SYS_ADMIN");
            run_probe(sandbox).unwrap()
        })
        .join()
        .unwrap()
    };
    // With the default capabilities, and with none.
    for drop in [Vec::new(), vec!["all".to_string()]] {
        let seen = in_thread(sandbox.clone().with(|s| s.cap_drop = drop));
        for deed in ["read", "write"] {
            assert_eq!(seen.get(deed), "EACCES", "{deed}");
        }
        assert_eq!((seen.get("chmod"), seen.get("setuid")), ("EPERM", "EINVAL"));
        assert_eq!(seen.get("Uid"), "65534 65534 65534 65534");
        assert_eq!(seen.get("Groups"), "65534");
        assert!(seen.report.enforced.contains(Control::IDS), "{}", seen.report);
    }
    // The caller writes a populated root, and the task's user is mapped to the caller. The same attack succeeds, and
    // the report says so.
    let root = Root {
        populate: Method::Copy,
        chroot_env: [(site.path().join("open"), "/copied".into())].into(),
        ..Root::default()
    };
    let libraries = ["/bin", "/lib", "/lib64", "/usr"].into_iter().filter(|path| Path::new(path).is_dir());
    let copied = libraries.fold(sandbox.root(root), |sandbox, path| {
        let volume =
            Volume { source: path.into(), target: path.into(), read_only: true, ..Volume::default() };
        sandbox.volume(volume)
    });
    let seen = in_thread(copied);
    assert_eq!((seen.get("read"), seen.get("write"), seen.get("chmod")), ("ok", "ok", "ok"));
    assert!(seen.report.weakened.contains(Control::IDS), "{}", seen.report);
    assert!(seen.report.why(Control::IDS).contains("in the sandbox is uid 0 outside"), "{}", seen.report);
}

/// Entry point of this binary as root of a user namespace. The probe must notice that the capabilities apply to that
/// namespace only. `COFFERDAM_NESTED` has the outside uids of root and nobody, the latter empty if only root is mapped.
#[test]
fn nested_entry() {
    let Ok(expected) = std::env::var("COFFERDAM_NESTED") else { return };
    let (root, nobody) = expected.split_once(' ').unwrap();
    let host = Host::probe().unwrap();
    assert!(host.nested && !host.privileged());
    assert_eq!(host.uid_map.outside(0).unwrap().to_string(), root);
    assert!(host.lacking().is_empty(), "{}", host.lacking());
    assert!(host.held.contains(CapSet::DEFAULT));
    let outside = [("root", "0", root), ("nobody", "65534", nobody)];
    for (user, inside, outside) in outside.into_iter().filter(|(.., outside)| !outside.is_empty()) {
        let seen = run_probe(probe("ids").user(user)).unwrap();
        assert_eq!(seen.get("Uid"), [inside; 4].join(" "));
        let why = seen.report.why(Control::IDS);
        assert!(why.contains(&format!("outside of it the task has uid {outside}")), "{why}");
        assert!(seen.report.enforced.contains(Control::IDS), "{}", seen.report);
    }
    println!("nested: all holds");
}

#[test]
fn root_of_a_user_namespace_counts_as_unprivileged() {
    if !sandboxes() || Host::probe().unwrap().user_ns_forbidden.is_some() {
        return;
    }
    // The build directory may be closed to other users.
    let site = tempfile::tempdir().unwrap();
    fs::set_permissions(site.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let exe = site.path().join("exe");
    fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    // Root may map other ids than its own, as a container runtime does.
    let me = nix::unistd::geteuid();
    let (map, expected) = match me.is_root() && attack_tools::privileged() {
        true => ("0 100000 65536\n".to_string(), "100000 165534".to_string()),
        false => (format!("0 {me} 1\n"), format!("{me} ")),
    };
    let [ready, go] = [0, 1].map(|_| nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap());
    let (told, heard) = (ready.1.as_raw_fd(), go.0.as_raw_fd());
    let alone = me.is_root();
    let enter = move || {
        let errno = |n: i64| if n < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) };
        let mut byte = 0_u8;
        // SAFETY: runs between fork and exec, and makes system calls only, on memory of this frame.
        unsafe {
            errno(libc::unshare(libc::CLONE_NEWUSER).into())?;
            let pid = libc::getpid();
            errno(libc::write(told, (&raw const pid).cast(), 4) as i64)?;
            errno(libc::read(heard, (&raw mut byte).cast(), 1) as i64)?;
            if alone {
                errno(libc::setgroups(0, std::ptr::null()).into())?;
            }
            errno(libc::setgid(0).into())?;
            errno(libc::setuid(0).into())
        }
    };
    let maps = std::thread::spawn(move || {
        let mut pid = [0; 4];
        fs::File::from(ready.0).read_exact(&mut pid).unwrap();
        let file = |name: &str| format!("/proc/{}/{name}", i32::from_ne_bytes(pid));
        if !alone {
            fs::write(file("setgroups"), "deny").unwrap();
        }
        fs::write(file("uid_map"), &map).unwrap();
        fs::write(file("gid_map"), map).unwrap();
        fs::File::from(go.1).write_all(b"g").unwrap();
    });
    let mut command = Command::new(exe);
    command
        .args(["--exact", "nested_entry", "--nocapture", "--test-threads=1"])
        .env("COFFERDAM_NESTED", expected);
    // SAFETY: the closure makes system calls only.
    let ran = unsafe { command.pre_exec(enter) }.output().unwrap();
    maps.join().unwrap();
    let text = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && text.contains("nested: all holds"), "{text}");
    // In a new PID namespace that still has the old /proc, where every pid belongs to another process.
    if !can("unshare") {
        return;
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["-r", "-m", "-p", "-f"]).arg(site.path().join("exe")).args([
        "--exact",
        "nested_entry",
        "--nocapture",
    ]);
    let ran = unshare.env("COFFERDAM_NESTED", format!("{me} ")).output().unwrap();
    let text = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && text.contains("nested: all holds"), "{text}");
}
