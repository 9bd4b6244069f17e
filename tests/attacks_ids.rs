//! Who a task is on the host, where the caller is root by name but not by right.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod attack_tools;
mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use cofferdam::caps::CapSet;
use cofferdam::{Control, Host, Method, Root, Sandbox, Volume};
use common::{asked, can, probe, run_probe, sandboxes};

/// What runs inside: what only root of the host may do to a file of root's.
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

/// Files of root's, and a sandbox that shows them to nobody.
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

/// Gives up a capability of this thread, as a container gives none to its root.
fn without(name: &str) {
    let capability = name.parse::<caps::Capability>().unwrap();
    for set in
        [caps::CapSet::Ambient, caps::CapSet::Inheritable, caps::CapSet::Effective, caps::CapSet::Permitted]
    {
        caps::drop(None, set, capability).unwrap();
    }
}

/// Root without CAP_SYS_ADMIN needs a user namespace. In it nobody is nobody, also for the host's files, or the report
/// says what he is instead.
#[test]
fn nobody_is_not_root_of_the_host() {
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
    // A populated root is written by the caller, who is the task's user then: the same attack succeeds, and is told.
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
    assert!(seen.report.why(Control::IDS).contains("inside is 0 outside"), "{}", seen.report);
}

/// In a user namespace root's capabilities are good for that namespace, and the probe knows. Told is what root and nobody
/// are outside; nothing for nobody where only root is mapped.
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
        assert!(why.contains(&format!("outside of that one the task has uid {outside}")), "{why}");
        assert!(seen.report.enforced.contains(Control::IDS), "{}", seen.report);
    }
    println!("nested: all holds");
}

#[test]
fn root_of_a_user_namespace_is_not_privileged() {
    if !sandboxes() || !can("unshare") || Host::probe().unwrap().user_ns_forbidden.is_some() {
        return;
    }
    // The build may lie where no other user can go.
    let site = tempfile::tempdir().unwrap();
    fs::set_permissions(site.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let exe = site.path().join("exe");
    fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    let own = |command: &mut Command| {
        command
            .arg(&exe)
            .args(["--exact", "nested_entry", "--nocapture", "--test-threads=1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let holds = |mut child: Child| {
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(child.wait().unwrap().success() && text.contains("nested: all holds"), "{text}");
    };
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user"]);
    let mine = format!("{} ", nix::unistd::geteuid());
    holds(own(unshare.env("COFFERDAM_NESTED", mine)));
    if !attack_tools::privileged() {
        return;
    }
    // As a container runtime maps it: somebody else must write the maps.
    let mut unshare = Command::new("unshare");
    let script = "echo ready; read -r go; exec setpriv --reuid 0 --regid 0 --clear-groups \"$0\" \"$@\"";
    unshare.args(["--user", "--keep-caps", "sh", "-c", script]);
    let mut child = own(unshare.env("COFFERDAM_NESTED", "100000 165534"));
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{map}", child.id()), "0 100000 65536\n").unwrap();
    }
    writeln!(child.stdin.take().unwrap(), "go").unwrap();
    holds(child);
}
