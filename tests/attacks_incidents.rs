//! Published incidents, each tried on a sandbox. Others are in the file of their subject: `grep cve_ tests`.
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

/// Entry point of this binary inside a sandbox.
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
            // Every process that the task sees is its own.
            let own = ["/proc/1".to_string(), format!("/proc/{}", std::process::id())];
            for entry in fs::read_dir("/proc").unwrap().flatten() {
                let path = entry.path().display().to_string();
                let process = path.trim_start_matches("/proc/").parse::<u32>().is_ok();
                attack.never(&path, process && !own.contains(&path));
            }
            attack.attempt_io("the environment of PID 1", fs::read("/proc/1/environ"));
            // With CAP_DAC_OVERRIDE the task may list PID 1's descriptors, but not read or open them.
            for entry in fs::read_dir("/proc/1/fd").into_iter().flatten().flatten() {
                attack.attempt_io(entry.path().display(), fs::read_link(entry.path()));
                attack.attempt_io(entry.path().display(), fs::File::open(entry.path()));
            }
            attack.tell(&mut say);
        }
        other => panic!("no probe {other}"),
    }
}

/// A script has the interpreter `/proc/self/exe`, so init's own program would be executed and exposed for writing, for
/// the next task to run. Init is a sealed memfd, which cannot be written.
#[test]
fn cve_2019_5736_init_cannot_be_overwritten() {
    if !sandboxes() {
        return;
    }
    for user in USERS {
        let dir = open_dir();
        let script = dir.path().join("script");
        fs::write(&script, "#!/proc/self/exe\n").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        // While the script is executed again and again, another task tries to write every init that it sees.
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

/// A working directory, a command or an argument may name a descriptor that the runtime forgot to close.
#[test]
fn cve_2024_21626_no_inherited_descriptor_leads_to_the_host() {
    if !sandboxes() {
        return;
    }
    // A descriptor of the host that could be forgotten: inheritable, and of a directory.
    let dir = open_dir();
    fs::write(dir.path().join("host"), "").unwrap();
    let held = fs::File::open(dir.path()).unwrap();
    let inheritable = nix::fcntl::FdFlag::empty();
    nix::fcntl::fcntl(&held, nix::fcntl::FcntlArg::F_SETFD(inheritable)).unwrap();
    for fd in (3..20).chain([held.as_raw_fd()]) {
        for user in USERS {
            let at = format!("/proc/self/fd/{fd}");
            let seen = shell("ls -a . .. 2>/dev/null").user(user).work_dir(&at).stdout(Stdio::Piped).spawn();
            if let Ok(task) = seen {
                let text = std::io::read_to_string(task.take_stdout().unwrap()).unwrap();
                assert!(!text.lines().any(|line| line == "host"), "{at}: {text}");
                task.wait().unwrap();
            }
            let run =
                Sandbox::command(format!("{at}/../../../bin/sh")).user(user).args(["-c", "exit 0"]).spawn();
            assert!(matches!(run, Err(Error::Exec { .. } | Error::Setup { .. })), "{at}");
        }
    }
    // The attack works without a sandbox: a child of std has the descriptor.
    let plain = std::process::Command::new("ls")
        .arg(format!("/proc/self/fd/{}/", held.as_raw_fd()))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&plain.stdout), "host\n");
}

/// A task in the host's network namespace can connect to the host's abstract sockets, unless a Landlock domain (ABI 6)
/// prevents it.
#[test]
fn cve_2020_15257_landlock_blocks_abstract_sockets_of_the_host() {
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

/// In the incident, unrequested inheritable capabilities became permitted again with a program's file capabilities.
#[test]
fn cve_2022_29162_inheritable_capabilities_equal_the_ambient_set() {
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

/// A user that does not exist must not be taken for another, least of all for root.
#[test]
fn cve_2026_30892_unknown_and_malformed_users_are_refused() {
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
    // Without a user, the task runs as nobody. An empty one is refused.
    assert!(matches!(probe("facts").user("").spawn(), Err(Error::Spec { field: "user", .. })));
    let seen = run_probe(probe("facts")).unwrap();
    assert_eq!(seen.get("Uid"), "65534 65534 65534 65534");
}

/// In the incident, tasks shared a PID namespace, and read each other's environment and descriptors.
#[test]
fn nomad_cve_2021_3283_task_sees_no_processes_of_other_tasks() {
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

/// In the incident, CAP_NET_RAW was granted by default, so that a task could forge its neighbours' packets.
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
