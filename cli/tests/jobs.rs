//! Signals to `run` and `exec`, and pseudo-terminals.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::pty::{Winsize, openpty};
use nix::sys::signal::Signal;
use nix::sys::termios::tcgetattr;

mod common;
use common::{State, process_state, signal, skip, until};

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
    let script = "while :; do echo x; sleep 0.02; done";
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
        signal(&child, Signal::SIGTERM);
        assert_eq!(child.wait().unwrap().code(), Some(143));
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
        Tty { master: pty.master.into(), slave: pty.slave }
    }

    fn spawn(&self, command: &mut Command) -> Child {
        let end = || Stdio::from(self.slave.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap()
    }

    /// Reads until `text` was shown.
    fn shows(&mut self, text: &str) {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            let mut fds = [nix::poll::PollFd::new(
                std::os::fd::AsFd::as_fd(&self.master),
                nix::poll::PollFlags::POLLIN,
            )];
            let ready = nix::poll::poll(&mut fds, nix::poll::PollTimeout::from(20_000_u16)).unwrap();
            assert_eq!(ready, 1, "{text:?} is not in {:?}", String::from_utf8_lossy(&seen));
            let mut buffer = [0; 4096];
            let n = self.master.read(&mut buffer).unwrap();
            seen.extend_from_slice(&buffer[..n]);
        }
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
    for args in [&["exec", "-t", &name][..], &["run", "-t"], &["run", "-it"], &["exec", "-it", &name]] {
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
        "-t",
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
    let mut child = tty.spawn(&mut state.command(&["run", "-t", "sh", "-c", script]));
    tty.shows("line 1999 of many\r\nlast\r\n");
    assert!(child.wait().unwrap().success());
    let mut child = tty.spawn(&mut state.command(&["run", "-t", "no-such-command"]));
    assert_eq!(child.wait().unwrap().code(), Some(127));
    assert_eq!(tcgetattr(&tty.slave).unwrap(), before);
}
