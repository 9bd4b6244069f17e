//! Published incidents of this field, each tried on a sandbox. Others have their name in the file of their kind: `grep cve_`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod attack_tools;
mod common;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use attack_tools::{USERS, beaten, open_dir, writable};
use cofferdam::{Control, Error, Host, Sandbox, Stdio};
use common::{asked, can, output, probe, run_probe, sandboxes, shell};

/// What runs inside.
#[test]
fn probe_entry() {
    let Some((what, mut say)) = asked() else { return };
    match what.as_str() {
        "socket" => {
            let name = std::env::var("SOCKET").unwrap();
            let address = SocketAddr::from_abstract_name(name).unwrap();
            say.fact("connected", UnixStream::connect_addr(&address).is_ok());
        }
        "facts" => common::say_facts(&mut say),
        "others" => {
            let mut attack = attack_tools::Attack::default();
            // Whatever there is of processes is the task's own.
            let own = ["/proc/1".to_string(), format!("/proc/{}", std::process::id())];
            for entry in fs::read_dir("/proc").unwrap().flatten() {
                let path = entry.path().display().to_string();
                let process = path.trim_start_matches("/proc/").parse::<u32>().is_ok();
                attack.never(&path, process && !own.contains(&path));
            }
            attack.attempt_io("the environment of PID 1", fs::read("/proc/1/environ"));
            // With CAP_DAC_OVERRIDE the numbers are seen, and nothing of what they are.
            for entry in fs::read_dir("/proc/1/fd").into_iter().flatten().flatten() {
                attack.attempt_io(entry.path().display(), fs::read_link(entry.path()));
                attack.attempt_io(entry.path().display(), fs::File::open(entry.path()));
            }
            attack.tell(&mut say);
        }
        other => panic!("no probe {other}"),
    }
}

/// A script whose interpreter is `/proc/self/exe`: what executes it is init, whose program would then be at hand to be
/// overwritten for whoever is next. Init is a sealed memfd, and nothing of it can be written.
#[test]
fn cve_2019_5736_the_program_that_executes_the_command_is_not_written() {
    if !sandboxes() {
        return;
    }
    for user in USERS {
        let dir = open_dir();
        let script = dir.path().join("script");
        fs::write(&script, "#!/proc/self/exe\n").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        // While it is executed over and over, somebody else tries to write what executes it.
        let writer = shell(
            "n=0; while [ $n -lt 300 ]; do n=$((n+1)); for exe in /proc/[0-9]*/exe; do \
             case $(readlink $exe) in *cofferdam*) { echo x >$exe; } 2>/dev/null && echo written;; esac; done; done",
        );
        let (command, shared) = ("/work/script", writable(dir.path(), "/work"));
        let written = std::thread::scope(|scope| {
            let written = scope.spawn(|| output(writer.user(user)));
            for _ in 0..10 {
                let task =
                    Sandbox::command(command).user(user).volume(shared.clone()).stderr(Stdio::Null).spawn();
                assert!(!task.is_ok_and(|task| task.wait().unwrap().success()), "{user}");
            }
            written.join().unwrap()
        });
        assert_eq!(written, "", "{user}");
        assert_eq!(output(shell("echo next").user(user)), "next");
    }
}

/// A working directory, a command or an argument that leads through a descriptor that the runtime forgot.
#[test]
fn cve_2024_21626_no_descriptor_leads_to_the_host() {
    if !sandboxes() {
        return;
    }
    // What could be forgotten: a directory of the host, inheritable.
    let dir = open_dir();
    fs::write(dir.path().join("host"), "").unwrap();
    let held = fs::File::open(dir.path()).unwrap();
    let inheritable = nix::fcntl::FdFlag::empty();
    nix::fcntl::fcntl(&held, nix::fcntl::FcntlArg::F_SETFD(inheritable)).unwrap();
    for fd in (3..20).chain([held.as_raw_fd()]) {
        for user in USERS {
            let at = format!("/proc/self/fd/{fd}");
            let seen = shell("ls -a . .. 2>/dev/null").user(user).work_dir(&at).stdout(Stdio::Piped).spawn();
            if let Ok(mut task) = seen {
                let text = std::io::read_to_string(task.stdout.take().unwrap()).unwrap();
                assert!(!text.lines().any(|line| line == "host"), "{at}: {text}");
                task.wait().unwrap();
            }
            let run =
                Sandbox::command(format!("{at}/../../../bin/sh")).user(user).args(["-c", "exit 0"]).spawn();
            assert!(matches!(run, Err(Error::Exec { .. } | Error::Setup { .. })), "{at}");
        }
    }
    // The attack is a real one: a plain child has the descriptor.
    let plain = std::process::Command::new("ls")
        .arg(format!("/proc/self/fd/{}/", held.as_raw_fd()))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&plain.stdout), "host\n");
}

/// An abstract socket of the host's is reached by who shares its network, unless a Landlock domain keeps him from it.
#[test]
fn cve_2020_15257_abstract_sockets_of_the_host_are_not_reached() {
    if !sandboxes() {
        return;
    }
    let name = format!("cofferdam-incident-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let ask = |host: &Host| run_probe(probe("socket").env("SOCKET", &name).host(host)).unwrap();
    let host = Host::probe().unwrap();
    let bare = ask(&attack_tools::without_landlock());
    assert_eq!(bare.get("connected"), "true", "the attack is none any more");
    assert!(bare.report.why(Control::NET_NS).contains("abstract unix sockets"), "{}", bare.report);
    if host.landlock_abi >= 6 {
        let kept = ask(&host);
        assert_eq!(kept.get("connected"), "false");
        assert!(!kept.report.why(Control::NET_NS).contains("abstract unix sockets"), "{}", kept.report);
    }
}

/// Inheritable capabilities that nobody asked for came back with a file's.
#[test]
fn cve_2022_29162_inheritable_capabilities_are_the_ambient_ones() {
    if !sandboxes() {
        return;
    }
    for user in USERS {
        for drop in [Vec::new(), vec!["all".to_string()], vec!["chown".into(), "kill".into()]] {
            let seen = run_probe(probe("facts").user(user).with(|s| s.cap_drop = drop.clone())).unwrap();
            assert_eq!(seen.get("CapInh"), seen.get("CapAmb"), "{user} without {drop:?}");
        }
    }
}

/// A user that is no user must not become another one, root least of all.
#[test]
fn cve_2026_30892_what_is_no_user_is_an_error() {
    if !sandboxes() {
        return;
    }
    for user in [
        "1000abc",
        "-1",
        "4294967295",
        "4294967296",
        ":",
        "0x0",
        " 0",
        "0 ",
        "no-such-user-here",
        ":0",
        "0:",
        "nobody:no-such",
    ] {
        let refused = Sandbox::command("/bin/true").user(user).spawn();
        assert!(
            matches!(refused, Err(Error::Spec { field: "user", .. })),
            "{user:?}: {:?}",
            refused.map(|_| ())
        );
    }
    // What is not said is nobody.
    let seen = run_probe(probe("facts").user("")).unwrap();
    assert_eq!(seen.get("Uid"), "65534 65534 65534 65534");
}

/// Tasks shared a PID namespace, and read each other's environment and descriptors.
#[test]
fn nomad_cve_2021_3283_a_task_sees_no_other() {
    if !sandboxes() {
        return;
    }
    let other = shell("sleep 100").env("SECRET", "of another task").spawn().unwrap();
    for user in USERS {
        beaten(&run_probe(probe("others").user(user)).unwrap(), 3);
    }
    other.kill().unwrap();
    other.wait().unwrap();
}

/// CAP_NET_RAW by default let a task forge what its neighbours believe.
#[test]
fn nomad_cve_2021_32575_no_raw_sockets_by_default() {
    if !sandboxes() || !can("root") {
        return;
    }
    let raw = "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)";
    if !can("python3") {
        return;
    }
    for user in USERS {
        let script = format!("/usr/bin/python3 -c '{raw}' 2>&1 | tail -n 1");
        assert!(output(shell(&script).user(user)).contains("PermissionError"), "{user}");
    }
}
