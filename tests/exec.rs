//! Another command in a running task: what it shares with the task, and what it must not give the task.
//! (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;
mod exec_tools;

use std::io::{Read, Write};
use std::time::Duration;

use cofferdam::filter::{Action, Filter, Profile, Rule};
use cofferdam::{
    Control, Error, ExecSpec, ExitKind, IsolationMode, Limits, Network, Policy, Sandbox, Stdio, Task,
    Terminal, WindowSize,
};
use common::{Start as _, sandboxes, shell};
use exec_tools::{LONG, output, sh, sleeper, text};

#[test]
fn an_additional_command_has_its_own_streams_environment_directory_and_exit_code() {
    if !sandboxes() {
        return;
    }
    let task = sleeper().env("SECRET", "of the task").start().unwrap();
    let spec = sh("cat; echo $X $HOME ${SECRET-none}; pwd; echo err >&2; exit 43");
    let spec = spec
        .env("X", "own")
        .env("HOME", "/home/of/exec")
        .work_dir("/tmp")
        .stdin(Stdio::Piped)
        .stderr(Stdio::Piped);
    let command = task.exec(&spec).unwrap();
    command.take_stdin().unwrap().write_all(b"in\n").unwrap();
    let output = command.wait_with_output(1 << 20, Some(LONG)).unwrap();
    assert_eq!(text(&output), "in\nown /home/of/exec none\n/tmp\n");
    assert_eq!(output.stderr, b"err\n");
    assert_eq!(output.status.kind(), ExitKind::Exited(43));
    assert_eq!(command.status().unwrap(), Some(output.status));
    assert!(task.status().unwrap().is_none());
}

#[test]
fn an_additional_command_sees_and_signals_the_processes_of_the_task() {
    if !sandboxes() {
        return;
    }
    // The end of the main process kills the additional command, so it waits until that one has ended.
    let task = shell("trap 'read line; exit 7' USR1; echo ready; while :; do sleep 0.05; done");
    let task = task.stdin(Stdio::Piped).stdout(Stdio::Piped).start().unwrap();
    let stdin = task.take_stdin().unwrap();
    let mut ready = [0; 6];
    task.take_stdout().unwrap().read_exact(&mut ready).unwrap();
    // PID 1 is init, PID 2 the main process.
    let seen = output(&task, "tr '\\0' ' ' </proc/2/cmdline; kill -USR1 2");
    assert!(text(&seen).starts_with("/bin/sh -c trap"), "{}", text(&seen));
    assert_eq!(seen.status.kind(), ExitKind::Exited(0));
    drop(stdin);
    assert_eq!(task.wait().unwrap().kind(), ExitKind::Exited(7));
}

#[test]
fn a_wrong_value_is_refused_with_its_field_and_the_task_is_as_it_was() {
    if !sandboxes() {
        return;
    }
    let task = sleeper().start().unwrap();
    let wrong = [
        (ExecSpec::command(""), "command"),
        (ExecSpec::command("a\0b"), "command"),
        (sh("true").args(["\0"]), "args"),
        (sh("true").env("A=B", "c"), "env"),
        (sh("true").env("", "c"), "env"),
        (sh("true").work_dir(""), "work_dir"),
        (sh("true").work_dir("tmp"), "work_dir"),
        (sh("true").deadline(Duration::ZERO), "deadline"),
        (sh("true").stdin(Stdio::Fd(serde_json::from_str("1000000").unwrap())), "stdin"),
    ];
    for (spec, name) in wrong {
        match task.exec(&spec).unwrap_err() {
            Error::Spec { field, .. } => assert_eq!(field, name),
            other => panic!("{other:?} for a wrong {name}"),
        }
    }
    let refused = task.exec(&ExecSpec::command("nothing").env("PATH", "/usr/bin")).unwrap_err();
    assert!(matches!(refused, Error::Exec { .. }), "{refused:?}");
    let command = task.exec(&sh("sleep 1008")).unwrap();
    for refused in [
        command.detach().map(drop),
        command.handle().map(drop),
        command.update(&Limits { pids_max: Some(9), ..Limits::default() }).map(drop),
    ] {
        assert!(refused.is_err());
    }
    assert!(command.status().unwrap().is_none());
    // The value's pidfd is that of a process in the caller's PID namespace.
    let refused = command.exec(&sh("readlink /proc/self/ns/pid")).unwrap_err();
    assert!(matches!(refused, Error::Task { .. }), "{refused:?}");
    drop(command);
    let refused = task.exec(&sh("true").work_dir("/nowhere")).unwrap_err();
    assert!(refused.to_string().contains("chdir(\"/nowhere\")"), "{refused}");
    if task.processes().is_ok() {
        assert_eq!(task.processes().unwrap().len(), 2, "{:?}", task.processes());
    }
}

#[test]
fn an_additional_command_gets_no_descriptor_and_no_device_of_the_host() {
    if !sandboxes() {
        return;
    }
    let task = sleeper().start().unwrap();
    let spec =
        sh("ls /proc/self/fd | tr '\\n' ' '; stat -L -c %d:%i /proc/self/fd/0 /proc/self/fd/2 /dev/null");
    let seen = task.exec(&spec).unwrap().wait_with_output(1 << 20, Some(LONG)).unwrap();
    let lines: Vec<&str> = text(&seen).lines().collect();
    // `ls` has the directory open.
    assert!(lines[0].starts_with("0 1 2 3 "), "{lines:?}");
    assert!(lines[0].split(' ').filter(|name| !name.is_empty()).count() <= 4 + 1, "{lines:?}");
    let host = std::fs::metadata("/dev/null").unwrap();
    let host = format!("{}:{}", std::os::linux::fs::MetadataExt::st_dev(&host), {
        std::os::linux::fs::MetadataExt::st_ino(&host)
    });
    let nodes: Vec<&str> =
        lines.iter().flat_map(|line| line.split(' ')).filter(|word| word.contains(':')).collect();
    assert_eq!(nodes.len(), 3, "{lines:?}");
    assert!(nodes[0] == nodes[2] && nodes[1] == nodes[2], "{lines:?}");
    if nodes[2] == host {
        common::skip::note("/dev/null of the sandbox is the host's: device nodes cannot be made here");
    }
}

#[test]
fn a_command_enters_tasks_of_every_kind() {
    if !sandboxes() {
        return;
    }
    let fork = Rule {
        calls: vec!["clone".into(), "fork".into(), "vfork".into()],
        action: Action::Errno(13),
        args: vec![],
    };
    let no_forks = Filter::Profile(Profile { rules: vec![fork], ..Profile::default() });
    let privileged = Policy { allow_caps: Some(vec!["all".into()]), ..Policy::default() };
    let kinds = [
        ("without init", sleeper().init(false)),
        ("in the host's PID namespace", sleeper().pid_mode(IsolationMode::Host)),
        ("in the host's IPC namespace", sleeper().ipc_mode(IsolationMode::Host)),
        ("without a network", sleeper().network(Network::None)),
        ("as root", sleeper().user("0")),
        ("without no_new_privs", sleeper().with(|s| s.no_new_privs = false)),
        ("in a chroot", sleeper().policy(&Policy { no_pivot_root: true, ..Policy::default() })),
        ("with sys_ptrace", sleeper().policy(&privileged).cap_add("sys_ptrace")),
        ("without a filter", sleeper().filter(Filter::None)),
        ("that may not fork", sleeper().filter(no_forks)),
    ];
    for (kind, sandbox) in kinds {
        let task = match sandbox.start() {
            Ok(task) => task,
            Err(e) => {
                common::skip::note(format!("a task {kind}: {e}"));
                continue;
            }
        };
        let confined = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/";
        let of = |pid: &str| {
            let command = format!("exec {confined}{pid}/status");
            let seen = task.exec(&sh(&command)).unwrap().wait_with_output(1 << 20, Some(LONG)).unwrap();
            assert!(seen.status.success(), "a task {kind}: {}", seen.status);
            text(&seen).to_owned()
        };
        let main = std::fs::read_to_string(format!("/proc/{}/status", task.pid().unwrap())).unwrap();
        let wanted = ["Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:", "Seccomp:"];
        let main: Vec<&str> =
            main.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name))).collect();
        let own = of("self");
        // In a user namespace the numbers of ids differ from those that the host sees.
        let compared = |line: &&str| {
            nix::unistd::geteuid().is_root() || !(line.contains("id:") || line.starts_with("Groups"))
        };
        let same = |lines: Vec<&str>| -> Vec<String> {
            lines.into_iter().filter(|l| compared(l)).map(|l| l.trim().into()).collect()
        };
        assert_eq!(same(own.lines().collect()), same(main), "a task {kind}");
        task.kill().unwrap();
        task.wait().unwrap();
    }
}

#[test]
fn a_profile_that_refuses_forks_refuses_them_to_an_additional_command_too() {
    if !sandboxes() {
        return;
    }
    let calls = ["clone", "clone3", "fork", "vfork"].map(String::from).to_vec();
    let refuse = Rule { calls, action: Action::Errno(13), args: vec![] };
    let profile = Profile { rules: vec![refuse], ..Profile::default() };
    let task = sleeper().filter(Filter::Profile(profile)).start().unwrap();
    let seen = output(&task, "/bin/true; echo forked");
    assert_eq!(text(&seen), "", "{}", seen.status);
}

/// A task with `CAP_SYS_PTRACE` can take control of every process in its PID namespace. It looks at each new process
/// for what the task itself does not have.
#[test]
fn a_process_that_enters_has_no_privilege_from_the_moment_at_which_the_task_can_see_it() {
    if !sandboxes() {
        return;
    }
    let look = "while :; do for p in /proc/[0-9]*; do while read -r k v; do case $k in \
                Uid:|CapPrm:|CapBnd:|Seccomp:) echo $k $v;; esac; done <$p/status; done 2>/dev/null; done";
    let task = shell(look).stdout(Stdio::Piped).start().unwrap();
    let mut stdout = task.take_stdout().unwrap();
    let reader = std::thread::spawn(move || {
        let mut seen = std::collections::BTreeMap::<String, usize>::new();
        let mut printed = String::new();
        stdout.read_to_string(&mut printed).unwrap();
        printed.lines().for_each(|line| *seen.entry(line.to_owned()).or_default() += 1);
        seen
    });
    for _ in 0..if common::emulated() { 15 } else { 60 } {
        assert!(task.exec(&sh("true")).unwrap().wait().unwrap().success());
    }
    task.kill().unwrap();
    task.wait().unwrap();
    let seen = reader.join().unwrap();
    let of = |key: &str| seen.keys().filter(|line| line.starts_with(key)).cloned().collect::<Vec<_>>();
    // PID 1 has another user, and no capability. Its filter is the same mode.
    assert!(of("Uid:").len() <= 2, "{seen:?}");
    assert!(of("CapPrm:").len() <= 2 && of("CapBnd:").len() <= 2, "{seen:?}");
    assert_eq!(of("Seccomp:"), ["Seccomp: 2"], "{seen:?}");
}

#[test]
fn many_threads_run_commands_in_one_task_at_once() {
    if !sandboxes() {
        return;
    }
    let task = sleeper().start().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let task = &task;
            scope.spawn(move || {
                for round in 0..5 {
                    let code = thread * 8 + round;
                    let status = task.exec(&sh(&format!("exit {code}"))).unwrap().wait().unwrap();
                    assert_eq!(status.kind(), ExitKind::Exited(code));
                }
            });
        }
    });
    assert!(task.status().unwrap().is_none());
}

/// Reads from a terminal until `end` has been printed.
fn shown(terminal: &mut Terminal, end: &str) -> String {
    let (mut text, mut byte) = (Vec::new(), [0u8]);
    while !String::from_utf8_lossy(&text).contains(end) {
        if terminal.read(&mut byte).unwrap() == 0 {
            break;
        }
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

const SIZE: WindowSize = WindowSize { rows: 17, columns: 93 };

/// An interactive shell in a terminal: its size, a new size, job control, and its exit code.
fn converse(task: &Task) {
    let mut terminal = task.take_terminal().unwrap();
    terminal.write_all(b"stty -echo; PS1=; stty size; tty; echo A-$?-A\n").unwrap();
    let text = shown(&mut terminal, "A-0-A");
    assert!(text.contains("17 93\r\n") && text.contains("/dev/pts/"), "{text}");
    terminal.resize(WindowSize { rows: 50, columns: 132 }).unwrap();
    terminal
        .write_all(b"stty size; (exec 3</dev/tty) && echo tty-opened; stat -c %u /dev/pts/0; id -u\n")
        .unwrap();
    terminal.write_all(b"echo B-$?-B\n").unwrap();
    let text = shown(&mut terminal, "B-0-B");
    assert!(text.contains("50 132\r\n") && text.contains("tty-opened"), "{text}");
    // The terminal belongs to the task's user.
    let ids: Vec<&str> = text.lines().filter(|line| line.trim().parse::<u32>().is_ok()).collect();
    assert!(ids.len() == 2 && ids[0] == ids[1], "{text}");
    // Ctrl-C reaches the foreground group only.
    terminal.write_all(b"sleep 1007\n").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    terminal.write_all(b"\x03").unwrap();
    terminal.write_all(b"echo C-$?-C\n").unwrap();
    let text = shown(&mut terminal, "C-130-C");
    assert!(text.contains("C-130-C"), "{text}");
    terminal.write_all(b"exit 43\n").unwrap();
    shown(&mut terminal, "never");
    assert_eq!(task.wait().unwrap().kind(), ExitKind::Exited(43));
}

#[test]
fn an_interactive_shell_runs_in_a_terminal_of_the_sandbox() {
    if !sandboxes() {
        return;
    }
    for init in [true, false] {
        converse(&Sandbox::command("/bin/sh").args(["-i"]).init(init).terminal(SIZE).start().unwrap());
    }
    let task = sleeper().start().unwrap();
    let spec = ExecSpec::command("/bin/sh").args(["-i"]).env("PATH", "/usr/bin:/bin").terminal(SIZE);
    converse(&task.exec(&spec).unwrap());
    assert!(task.status().unwrap().is_none());
}

#[test]
fn a_terminal_and_a_stream_are_refused_together() {
    let sandbox = Sandbox::command("true").terminal(SIZE).stdout(Stdio::Piped);
    assert!(matches!(sandbox.start(), Err(Error::Spec { field: "terminal", .. })));
    if !sandboxes() {
        return;
    }
    let task = sleeper().start().unwrap();
    let refused = task.exec(&sh("true").terminal(SIZE)).unwrap_err();
    assert!(matches!(refused, Error::Spec { field: "terminal", .. }), "{refused:?}");
}

/// CVE-2017-5226 and its kind: input that a program inserts into its terminal must not reach the caller's shell. The
/// terminal of a sandbox is another one than the caller's, and TIOCSTI is refused.
#[test]
fn a_command_cannot_insert_input_into_its_terminal() {
    if !sandboxes() || !std::path::Path::new("/usr/bin/python3").exists() {
        return;
    }
    let script = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSTI, b'x')";
    let spec = ExecSpec::command("/usr/bin/python3").args(["-c", script]).terminal(SIZE);
    let task = sleeper().start().unwrap();
    let command = task.exec(&spec).unwrap();
    let mut text = String::new();
    command.take_terminal().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("PermissionError"), "{text}");
    assert!(!command.wait().unwrap().success());
}

#[test]
fn an_additional_command_runs_as_another_user_that_the_policy_allows() {
    if !sandboxes() {
        return;
    }
    let policy = Policy { denied_host_uids: "0".parse().unwrap(), ..Policy::default() };
    let task = sleeper().policy(&policy).start().unwrap();
    let as_user =
        |user: &str| task.exec(&sh("id -u; id -G; grep ^Cap /proc/self/status; echo $HOME").user(user));
    if !nix::unistd::geteuid().is_root() {
        let refused = as_user("1").unwrap_err();
        assert!(
            matches!(refused, Error::Unsupported { control, .. } if control == Control::IDS),
            "{refused:?}"
        );
        return;
    }
    let own = output(&task, "grep ^Cap /proc/self/status");
    let other = as_user("12345:100").unwrap().wait_with_output(1 << 20, Some(LONG)).unwrap();
    assert_eq!(text(&other), format!("12345\n100\n{}/\n", text(&own)));
    assert!(matches!(as_user("0").unwrap_err(), Error::Denied { .. }));
    for wrong in ["no-such-user", "65533"] {
        assert!(matches!(as_user(wrong).unwrap_err(), Error::Spec { field: "user", .. }), "{wrong}");
    }
    // Root has the capabilities of the lists, and no others.
    let task = sleeper().with(|s| s.cap_drop = vec!["all".into()]).start().unwrap();
    let root = task.exec(&sh("id -u; grep ^Cap /proc/self/status").user("0")).unwrap();
    let root = root.wait_with_output(1 << 20, Some(LONG)).unwrap();
    assert!(text(&root).starts_with("0\n"), "{}", text(&root));
    assert!(text(&root).lines().skip(1).all(|line| line.ends_with("\t0000000000000000")), "{}", text(&root));
}

#[test]
fn a_thread_with_a_small_stack_may_run_a_command_in_a_task() {
    if !sandboxes() {
        return;
    }
    let task = sleeper().start().unwrap();
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(64 << 10);
        let run = || task.exec(&sh("exit 6")).unwrap().wait().unwrap().kind();
        assert_eq!(thread.spawn_scoped(scope, run).unwrap().join().unwrap(), ExitKind::Exited(6));
    });
}

#[test]
fn the_report_says_what_the_streams_of_a_command_give_access_to() {
    if !sandboxes() {
        return;
    }
    let task = sleeper().start().unwrap();
    assert!(task.report().enforced.contains(Control::HOST_FILES));
    let file = tempfile::tempfile().unwrap();
    let command = task.exec(&sh("true").stdout(file)).unwrap();
    assert!(command.report().weakened.contains(Control::HOST_FILES), "{}", command.report());
    assert!(command.report().why(Control::HOST_FILES).contains("stdout is a file of the host"));
    let piped = task.exec(&sh("true")).unwrap();
    assert!(piped.report().enforced.contains(Control::HOST_FILES));
}

#[test]
fn the_report_of_a_command_as_user_0_says_that_nproc_does_not_limit_it() {
    if !common::can("root") {
        return;
    }
    // A user that no other test has: the kernel counts all processes of a user.
    let limited = sleeper().user("61234:61234").with(|spec| {
        spec.cap_drop = vec!["all".into()];
        spec.rlimits.insert(cofferdam::Resource::Nproc, cofferdam::Rlimit { soft: Some(9), hard: Some(9) });
    });
    let task = limited.spawn().unwrap();
    assert!(task.report().enforced.contains(Control::RLIMITS), "{}", task.report());
    let root = task.exec(&sh("true").user("0")).unwrap();
    assert!(root.report().weakened.contains(Control::RLIMITS), "{}", root.report());
    assert!(root.wait().unwrap().success());
}
