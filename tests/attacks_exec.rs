//! Attacks on a process that enters a running task, and on the caller that waits for its command.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod attack_tools;
mod common;
mod exec_tools;

use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use attack_tools::*;
use cofferdam::filter::Filter;
use cofferdam::{Policy, Task};
use common::{Say, asked, probe, sandboxes};
use exec_tools::{LONG, sh};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Entry point of this binary inside a sandbox.
#[test]
fn probe_entry() {
    let Some((what, mut say)) = asked() else { return };
    forge(&what, &mut say)
}

/// The number of the descriptor that the task sends in place of the one of init.
const FORGED: i32 = 5;

/// Stops each process that enters, takes its socket to the caller, and sends a record in its place.
fn forge(what: &str, say: &mut Say) -> ! {
    let mut record = [0u8; 9];
    record[0] = match what {
        "running" => 4,
        "terminal" => 8,
        "copied" => 9,
        "nonsense" => 99,
        other => panic!("{other}"),
    };
    say.fact("ready", "yes");
    // This thread is the newest one of the task.
    let mut last = nix::unistd::gettid().as_raw();
    loop {
        for pid in last + 1..last + 16 {
            if call!(libc::SYS_kill, pid, libc::SIGSTOP).is_err() {
                continue;
            }
            last = pid;
            let Ok(pidfd) = call!(libc::SYS_pidfd_open, pid, 0) else { continue };
            let mut sent = 0;
            for number in 3..32 {
                let Ok(fd) = call!(libc::SYS_pidfd_getfd, pidfd, number, 0) else { continue };
                // SAFETY: the call returned a new descriptor.
                let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) };
                let message = [FORGED; 12];
                let sends = sendmsg::<()>(
                    fd.as_raw_fd(),
                    &[IoSlice::new(&record)],
                    &[ControlMessage::ScmRights(&message)],
                    MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
                    None,
                );
                sent += u32::from(sends.is_ok());
            }
            if sent > 0 {
                say.fact("sent", sent);
            }
            let _ = call!(libc::SYS_close, pidfd);
            let _ = call!(libc::SYS_kill, pid, libc::SIGCONT);
        }
    }
}

/// A process outside of the sandbox. It is killed and reaped at the end.
struct Stranger(Child);

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

/// Whether the pipe has something to read.
fn readable(pipe: &File) -> bool {
    let mut polled = [nix::poll::PollFd::new(pipe.as_fd(), nix::poll::PollFlags::POLLIN)];
    nix::poll::poll(&mut polled, nix::poll::PollTimeout::ZERO).unwrap() == 1
}

/// Runs commands in the task until it has sent a record, or has had no chance to. Each call must return, and each value
/// is dropped.
fn enter(task: &Arc<Task>, facts: &mut File) -> Result<bool, &'static str> {
    let start = Instant::now();
    while start.elapsed() < LONG / 4 {
        let (done, returned) = mpsc::channel();
        let entered = Arc::clone(task);
        let thread = std::thread::spawn(move || {
            drop(entered.exec(&sh("true").deadline(Duration::from_secs(5))));
            drop(entered);
            let _ = done.send(());
        });
        if returned.recv_timeout(LONG).is_err() {
            return Err("the caller waits for ever");
        }
        thread.join().unwrap();
        if readable(facts) {
            let mut bytes = [0; 256];
            let n = facts.read(&mut bytes).unwrap();
            return Ok(String::from_utf8_lossy(&bytes[..n]).contains("sent="));
        }
    }
    Ok(false)
}

/// A task with CAP_SYS_PTRACE, on a kernel without Landlock, takes the socket of a process that enters it. It sends pidfds
/// of a process of the host, as it gets one by SO_PEERPIDFD (Linux 6.5) of a unix socket. The caller must neither signal
/// that process nor wait for ever.
#[test]
fn a_task_that_forges_records_of_init_has_no_power_over_strangers_and_does_not_block_the_caller() {
    if !sandboxes() {
        return;
    }
    if !privileged() {
        return common::skip::skip(&["root"], "a task in a user namespace cannot trace init");
    }
    let policy = Policy { allow_caps: Some(vec!["all".into()]), ..Policy::default() };
    let mut won = Vec::new();
    for what in ["running", "terminal", "copied", "nonsense"] {
        let mut stranger = Stranger(Command::new("sleep").arg("1000").spawn().unwrap());
        let id = stranger.0.id().cast_signed();
        let pidfd = call!(libc::SYS_pidfd_open, id, 0).unwrap();
        // SAFETY: the call returned a new descriptor.
        let pidfd = unsafe { OwnedFd::from_raw_fd(i32::try_from(pidfd).unwrap()) };
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let sandbox = probe(what).user("root").policy(&policy).cap_add("sys_ptrace");
        let sandbox = sandbox.host(&without_landlock()).filter(Filter::None);
        let task = Arc::new(sandbox.fd(write, 3).fd(pidfd, FORGED.unsigned_abs()).spawn().unwrap());
        let mut facts = File::from(read);
        let mut ready = [0; 10];
        facts.read_exact(&mut ready).unwrap();
        assert_eq!(&ready, b"ready=yes\0");
        let before = common::descriptors();
        let sent = enter(&task, &mut facts);
        let after = common::descriptors();
        if stranger.0.try_wait().unwrap().is_some() {
            won.push(format!("{what}: the caller has killed a stranger"));
        }
        match sent {
            Ok(true) => {}
            Ok(false) => common::skip::note(format!("{what}: the task was too slow")),
            Err(why) => {
                won.push(format!("{what}: {why}"));
                // The caller may wait for its end.
                stranger.0.kill().unwrap();
                stranger.0.wait().unwrap();
            }
        }
        task.kill().unwrap();
        task.wait().unwrap();
        if after != before {
            won.push(format!("{what}: the caller has {} descriptors, not {}", after.len(), before.len()));
        }
    }
    assert!(won.is_empty(), "{won:#?}");
}
