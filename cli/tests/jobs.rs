//! Signals to `run` and `exec`, and pseudo-terminals.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::tcgetattr;
use nix::unistd::{Pid, getsid};

mod common;
use common::{State, process_state, signal, skip, until, until_or};

/// Spawns a command, and counts the lines that it prints.
fn counted(command: &mut Command) -> (Child, Arc<AtomicUsize>) {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let lines = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&lines);
    std::thread::spawn(move || {
        for _ in out.lines().map_while(Result::ok) {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    (child, lines)
}

#[test]
fn sigtstp_stops_the_command_and_the_program_until_sigcont() {
    let Some(state) = State::new("tstp") else { return };
    let script = "trap 'exit 5' USR1; while :; do echo x; sleep 0.02; done";
    // With and without a cgroup.
    for flags in [&["run"][..], &["run", "--accounting", "--require", "best_effort"]] {
        let (mut child, lines) = counted(&mut state.command(&[flags, &["sh", "-c", script]].concat()));
        let grow = |lines: &AtomicUsize| {
            let before = lines.load(Ordering::SeqCst);
            until("output", || lines.load(Ordering::SeqCst) > before + 3);
        };
        // A second time as well.
        for _ in 0..2 {
            grow(&lines);
            signal(&child, Signal::SIGTSTP);
            until("stop", || process_state(child.id()) == Some('T'));
            std::thread::sleep(Duration::from_millis(100));
            let stopped = lines.load(Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(lines.load(Ordering::SeqCst), stopped);
            signal(&child, Signal::SIGCONT);
        }
        grow(&lines);
        // A signal that comes meanwhile is for the command.
        signal(&child, Signal::SIGTSTP);
        until("stop", || process_state(child.id()) == Some('T'));
        signal(&child, Signal::SIGUSR1);
        signal(&child, Signal::SIGCONT);
        assert_eq!(child.wait().unwrap().code(), Some(5));
    }
}

/// The shell runs its trap only after the end of `sleep`, which gets the signal too.
#[test]
fn sigint_and_sigquit_reach_the_process_group_of_the_command() {
    let Some(state) = State::new("int") else { return };
    // The inner shell becomes the sleep, and dies of the signal before that too.
    let script = "trap 'exit 9' INT QUIT; sh -c 'echo ready; exec sleep 100'; exit 1";
    let name = state.name("a");
    state.start(&name, "sleep 100");
    for sent in [Signal::SIGINT, Signal::SIGQUIT] {
        for args in [&["run"][..], &["exec", &name]] {
            let mut command = state.command(&[args, &["sh", "-c", script]].concat());
            let (mut child, lines) = counted(&mut command);
            until("ready", || lines.load(Ordering::SeqCst) == 1);
            if args.len() == 2 && state.call(&["pause", &name]).status.success() {
                state.ok(&["unpause", &name]);
            } else if args.len() == 2 {
                // The processes of an additional command are known only by a cgroup.
                signal(&child, Signal::SIGHUP);
                assert_eq!(child.wait().unwrap().code(), Some(129));
                continue;
            }
            signal(&child, sent);
            assert_eq!(child.wait().unwrap().code(), Some(9), "{args:?} {sent}");
        }
    }
}

/// A pseudo-terminal that stands for the caller's.
struct Tty {
    master: File,
    slave: OwnedFd,
}

impl Tty {
    fn new() -> Tty {
        let size = Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        // A program that holds the master end would keep the terminal open.
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        Tty { master: pty.master.into(), slave: pty.slave }
    }

    fn spawn(&self, command: &mut Command) -> Child {
        let end = || Stdio::from(self.slave.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap()
    }

    /// Reads until `text` was shown.
    fn shows(&mut self, text: &str) {
        self.shows_within(text, 20_000).unwrap_or_else(|seen| panic!("{text:?} is not in {seen:?}"));
    }

    /// Reads until `text` was shown, or until the end, or until nothing was shown for some milliseconds. Then returns what was
    /// shown.
    fn shows_within(&mut self, text: &str, milliseconds: u16) -> Result<(), String> {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            let mut fds = [nix::poll::PollFd::new(
                std::os::fd::AsFd::as_fd(&self.master),
                nix::poll::PollFlags::POLLIN,
            )];
            let mut buffer = [0; 4096];
            let n = match nix::poll::poll(&mut fds, nix::poll::PollTimeout::from(milliseconds)).unwrap() {
                0 => 0,
                // EIO: no process has the terminal open.
                _ => self.master.read(&mut buffer).unwrap_or(0),
            };
            if n == 0 {
                return Err(String::from_utf8_lossy(&seen).into_owned());
            }
            seen.extend_from_slice(&buffer[..n]);
        }
        Ok(())
    }
}

#[test]
fn tty_connects_a_pseudo_terminal_of_the_size_of_the_callers() {
    let Some(state) = State::new("tty") else { return };
    if !std::path::Path::new("/usr/bin/stty").exists() {
        return skip::note("there is no stty");
    }
    let name = state.name("a");
    state.start(&name, "sleep 100");
    for args in [&["run", "-it"][..], &["exec", "-it", &name]] {
        let mut tty = Tty::new();
        let before = tcgetattr(&tty.slave).unwrap();
        let mut child = tty.spawn(&mut state.command(&[args, &["sh", "-c", "stty size; exit 7"]].concat()));
        tty.shows("30 100\r\n");
        assert_eq!(child.wait().unwrap().code(), Some(7), "{args:?}");
        assert_eq!(tcgetattr(&tty.slave).unwrap(), before);

        let script = "trap 'stty size; exit 3' WINCH; echo ready; read line; echo got $line; \
                      while :; do sleep 0.02; done";
        let mut child = tty.spawn(&mut state.command(&[args, &["sh", "-c", script]].concat()));
        tty.shows("ready\r\n");
        tty.master.write_all(b"some words\r").unwrap();
        tty.shows("got some words\r\n");
        let size = rustix::termios::Winsize { ws_row: 50, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&tty.slave, size).unwrap();
        signal(&child, Signal::SIGWINCH);
        tty.shows("50 132\r\n");
        assert_eq!(child.wait().unwrap().code(), Some(3), "{args:?}");
        assert_eq!(tcgetattr(&tty.slave).unwrap(), before);
    }
}

#[test]
fn keys_of_the_terminal_reach_the_command_and_the_mode_is_restored() {
    let Some(state) = State::new("keys") else { return };
    let mut tty = Tty::new();
    let before = tcgetattr(&tty.slave).unwrap();
    let mut child = tty.spawn(&mut state.command(&[
        "run",
        "-it",
        "sh",
        "-c",
        "sh -c 'echo ready; exec sleep 100'; exit 1",
    ]));
    tty.shows("ready\r\n");
    signal(&child, Signal::SIGTSTP);
    until("stop", || process_state(child.id()) == Some('T'));
    assert_eq!(tcgetattr(&tty.slave).unwrap(), before);
    signal(&child, Signal::SIGCONT);
    until("raw mode", || tcgetattr(&tty.slave).unwrap() != before);
    // Ctrl-C
    tty.master.write_all(b"\x03").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(tcgetattr(&tty.slave).unwrap(), before);
    // The output before the end of the command is complete.
    let script = "i=0; while [ $i -lt 2000 ]; do echo line $i of many; i=$((i+1)); done; echo last";
    let mut child = tty.spawn(&mut state.command(&["run", "-it", "sh", "-c", script]));
    tty.shows("line 1999 of many\r\nlast\r\n");
    assert!(child.wait().unwrap().success());
    let mut child = tty.spawn(&mut state.command(&["run", "-it", "no-such-command"]));
    assert_eq!(child.wait().unwrap().code(), Some(127));
    assert_eq!(tcgetattr(&tty.slave).unwrap(), before);
}

/// Without `-i` the terminal of the caller is not the command's input, and keeps its mode.
#[test]
fn tty_without_interactive_reads_nothing_from_the_callers_terminal() {
    let Some(state) = State::new("shown") else { return };
    let name = state.name("a");
    state.start(&name, "sleep 100");
    let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done";
    for args in [&["run", "-t"][..], &["exec", "-t", &name]] {
        let mut tty = Tty::new();
        let before = tcgetattr(&tty.slave).unwrap();
        let mut child = tty.spawn(&mut state.command(&[args, &["sh", "-c", script]].concat()));
        tty.shows("ready\r");
        assert_eq!(tcgetattr(&tty.slave).unwrap(), before);
        tty.master.write_all(b"typed\n").unwrap();
        signal(&child, Signal::SIGTERM);
        assert_eq!(child.wait().unwrap().code(), Some(5), "{args:?}");
        // What was typed is still there.
        let mut line = [0; 6];
        let mut fds =
            [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&tty.slave), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).unwrap(), 1, "{args:?}");
        File::from(tty.slave.try_clone().unwrap()).read_exact(&mut line).unwrap();
        assert_eq!(&line, b"typed\n");
        // It needs no terminal of the caller.
        let command = "test -t 0 && test -t 1 && exec echo a terminal";
        assert_eq!(state.ok(&[args, &["sh", "-c", command]].concat()), "a terminal");
    }
    for args in [&["run", "-it"][..], &["exec", "-it", &name]] {
        assert!(state.refused(&[args, &["true"]].concat()).contains("standard input is not a terminal"));
    }
}

/// An interactive shell in a terminal of its own.
struct Shell {
    tty: Tty,
    child: Child,
}

impl Shell {
    /// `None` if it needs a tool that is missing. `wrapped`: the shell is not the leader of its session.
    fn start(state: &State, wrapped: bool) -> Option<Shell> {
        for tool in ["/usr/bin/setsid", "/bin/bash"] {
            if !std::path::Path::new(tool).exists() {
                skip::note(format!("there is no {tool}"));
                return None;
            }
        }
        let tty = Tty::new();
        let mut command = Command::new("/usr/bin/setsid");
        command.args(["--ctty", "--wait"]);
        if wrapped {
            command.args(["/bin/bash", "-c", "\"$@\"; read line", "leader"]);
        }
        command.args(["/bin/bash", "--norc", "--noprofile", "--noediting", "-i"]);
        let child = tty.spawn(command.env("PS1", "$ ").env("COFFERDAM_STATE", state.path()));
        Some(Shell { tty, child })
    }

    fn types(&mut self, text: &str, shown: &str) {
        self.tty.master.write_all(text.as_bytes()).unwrap();
        self.tty.shows(shown);
    }

    /// Waits until the shell knows that its job is stopped.
    fn awaits_stop(&mut self) {
        until("stop", || {
            self.tty.master.write_all(b"sleep 0.1; jobs\n").unwrap();
            self.tty.shows_within("Stopped", 1000).is_ok()
        });
    }

    /// The processes of the session, except its leader.
    fn others(&self) -> Vec<Pid> {
        let leader = Pid::from_raw(self.child.id().cast_signed());
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw));
        pids.filter(|pid| *pid != leader && getsid(Some(*pid)) == Ok(leader)).collect()
    }

    /// What the processes of the session do, and what the terminal has shown since it was read last.
    fn seen(&mut self) -> String {
        let read = |pid: &Pid, name: &str| {
            std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default().trim().to_owned()
        };
        let lines = self.others().into_iter().map(|pid| {
            let [stat, place, call] = ["stat", "wchan", "syscall"].map(|name| read(&pid, name));
            format!("{stat} in {place}, {call}")
        });
        let lines: Vec<String> = lines.collect();
        // No terminal shows this.
        let shown = self.tty.shows_within("\0", 100).unwrap_err();
        format!("{lines:#?}, {shown:?}")
    }

    /// The process of `cofferdam run`, unless it has ended.
    fn job(&self) -> Option<Pid> {
        let name = |pid: &Pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        self.others().into_iter().find(|pid| name(pid).trim() == "cofferdam" && !has_ended(*pid))
    }
}

/// Whether the process has ended. It may not be reaped yet.
fn has_ended(pid: Pid) -> bool {
    process_state(pid.as_raw().cast_unsigned()).is_none_or(|state| state == 'Z')
}

impl Drop for Shell {
    fn drop(&mut self) {
        // A job that is killed leaves its cgroup.
        if !std::thread::panicking() {
            until("the end of the job", || self.job().is_none());
        }
        for pid in self.others() {
            let _ = kill(pid, Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program(state: &State) -> String {
    state.command(&[]).get_program().to_str().unwrap().to_string()
}

/// The shell has the terminal then, and what is typed is the shell's.
#[test]
fn command_that_may_read_the_terminal_is_stopped_in_the_background() {
    let Some(state) = State::new("bg") else { return };
    let Some(mut shell) = Shell::start(&state, false) else { return };
    let program = program(&state);
    for flags in ["", "--accounting --require best_effort "] {
        let script = "echo rea\"\"dy; read line; echo got \"$line\"; read line; echo then \"$line\"";
        shell.types(&format!("{program} run {flags}sh -c '{script}'\n"), "ready\r\n");
        // Ctrl-Z
        shell.types("\x1a", "Stopped");
        shell.types("bg\n", "&\r\n");
        // The terminal is the shell's as long as the job is in the background, also after it was continued again.
        for n in 0..3 {
            shell.types(&format!("echo typed-$(({n} + 40))\n"), &format!("typed-4{n}\r\n"));
            std::thread::sleep(Duration::from_millis(100));
        }
        shell.awaits_stop();
        shell.types("bg\n", "&\r\n");
        shell.types("echo typed-$((50 + 1))\n", "typed-51\r\n");
        shell.types("fg\n", "sh -c");
        shell.types("some words\n", "got some words\r\n");
        shell.types("others\n", "then others\r\n");
    }
    shell.tty.master.write_all(b"exit\n").unwrap();
    assert!(shell.child.wait().unwrap().success());
}

/// The mode of the terminal is the shell's until the job is in the foreground.
#[test]
fn terminal_is_in_raw_mode_once_a_job_that_was_started_in_the_background_is_in_the_foreground() {
    let Some(state) = State::new("raw") else { return };
    let Some(mut shell) = Shell::start(&state, false) else { return };
    let raw = |shell: &Shell| {
        !tcgetattr(&shell.tty.slave).unwrap().local_flags.contains(nix::sys::termios::LocalFlags::ICANON)
    };
    let script = "echo rea\"\"dy; read line; echo got \"$line\"";
    shell
        .tty
        .master
        .write_all(format!("{} run -it sh -c '{script}' &\n", program(&state)).as_bytes())
        .unwrap();
    shell.awaits_stop();
    assert!(!raw(&shell));
    shell.types("fg\n", "ready\r\n");
    until("raw mode", || raw(&shell));
    shell.types("some words\r", "got some words\r\n");
    until("the shell's mode", || !raw(&shell));
}

/// The kernel then sends SIGHUP and SIGCONT to the stopped job, or the shell sends them. A shell that is not the leader
/// of its session leaves a terminal in which no job is in the foreground.
#[test]
fn stopped_command_ends_with_the_shell_of_its_terminal() {
    let Some(state) = State::new("hup") else { return };
    let program = program(&state);
    let flags = ["", "--accounting --require best_effort ", "-it "];
    for (flags, in_background, wrapped, end) in flags.into_iter().flat_map(|flags| {
        let ends = ["killed", "exits", "job killed", "terminal closed"];
        let ends = ends.into_iter().flat_map(|end| [(false, end), (true, end)]);
        let ends =
            ends.flat_map(move |(wrapped, end)| [(flags, false, wrapped, end), (flags, true, wrapped, end)]);
        ends.collect::<Vec<_>>()
    }) {
        let case = format!("{flags:?}, in the background {in_background}, wrapped {wrapped}, {end}");
        let Some(mut shell) = Shell::start(&state, wrapped) else { return };
        shell.types(
            &format!("{program} run {flags}sh -c 'echo rea\"\"dy; read line; sleep 100'\n"),
            "ready\r\n",
        );
        let stopped = shell.job().unwrap_or_else(|| panic!("no job: {case}"));
        // In raw mode, a Ctrl-Z is the command's.
        match flags {
            "-it " => kill(stopped, Signal::SIGTSTP).unwrap(),
            _ => shell.tty.master.write_all(b"\x1a").unwrap(),
        }
        shell.tty.shows("Stopped");
        if in_background {
            shell.types("bg\n", "&\r\n");
            shell.awaits_stop();
        }
        until("stop", || process_state(stopped.as_raw().cast_unsigned()) == Some('T'));
        match end {
            "killed" if wrapped => {
                let leaders =
                    std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", shell.child.id()));
                let inner = leaders.unwrap().trim().parse().unwrap();
                kill(Pid::from_raw(inner), Signal::SIGKILL).unwrap();
            }
            "killed" => shell.child.kill().unwrap(),
            // The first one may be answered by a warning about the job.
            "exits" => shell.tty.master.write_all(b"exit\nexit\n").unwrap(),
            "job killed" => shell.tty.master.write_all(b"kill %1\n").unwrap(),
            _ => shell.tty.master = File::open("/dev/null").unwrap(),
        }
        until_or(|| format!("{case}: {}", shell.seen()), || has_ended(stopped));
    }
}
