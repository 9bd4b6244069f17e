//! Time from `Task::exec` to the reaped exit of a static program that exits at once, next to a floor in the same run.
//!
//! The floor is the least that any implementation does: `setns(2)` by the task's pidfd, a fork into the PID namespace,
//! and the exec, by raw calls without ids, capabilities, filter and cgroup. Compare ratios, not microseconds: `cargo
//! bench --bench exec`. `nsenter` of util-linux is shown if it is installed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam::{ExecSpec, Host, Method, Root, Sandbox, Task, WindowSize};
use criterion::{Criterion, criterion_group, criterion_main};

/// Builds a program without a C library from x86-64 assembly.
fn program(dir: &Path, name: &str, text: &str) -> PathBuf {
    let source = dir.join(format!("{name}.s"));
    let program = dir.join(name);
    std::fs::write(&source, text).unwrap();
    let built = Command::new("cc").args(["-static", "-nostdlib", "-o"]).arg(&program).arg(&source).status();
    assert!(built.unwrap().success(), "cc could not build {name}");
    program
}

/// The namespaces that the task of this bench does not share with the caller.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC;

/// Joins the task's namespaces, forks, executes `/exit`, and reaps.
fn floor(task: &Task) -> i32 {
    let pidfd = task.pidfd().as_raw_fd();
    // SAFETY: the child makes only raw calls after the fork, on strings that outlive it.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::setns(pidfd, NAMESPACES);
            let inside = libc::fork();
            if inside == 0 {
                let argv = [c"/exit".as_ptr(), std::ptr::null()];
                libc::execve(argv[0], argv.as_ptr(), argv[1..].as_ptr());
                libc::_exit(1);
            }
            let mut status = 0;
            libc::waitpid(inside, &raw mut status, 0);
            libc::_exit(if status == 0 { 0 } else { 1 });
        }
        let mut status = 0;
        libc::waitpid(pid, &raw mut status, 0);
        status
    }
}

fn exec(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    program(dir.path(), "exit", ".globl _start\n_start: mov $60,%eax\n xor %edi,%edi\n syscall\n");
    program(dir.path(), "pause", ".globl _start\n_start: mov $34,%eax\n syscall\n jmp _start\n");
    let host = Host::probe().unwrap();
    let root = Root { path: Some(dir.path().into()), populate: Method::None, ..Root::default() };
    let task = Sandbox::command("/pause").user("65534:65534").host(&host).root(root).spawn().unwrap();
    let mut group = c.benchmark_group("exec");
    if host.lacking().is_empty() {
        assert_eq!(floor(&task), 0);
        group.bench_function("floor: setns, fork, exec", |b| b.iter(|| floor(&task)));
    }
    let command = ExecSpec::command("/exit");
    let run = |command: &ExecSpec| assert!(task.exec(command).unwrap().wait().unwrap().success());
    group.bench_function("Task::exec", |b| b.iter(|| run(&command)));
    let terminal = command.clone().terminal(WindowSize { rows: 24, columns: 80 });
    group.bench_function("Task::exec in a terminal", |b| b.iter(|| run(&terminal)));
    let pid = task.pid().unwrap().to_string();
    let nsenter = || {
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "-m", "-p", "-i", "-S", "65534", "-G", "65534", "/exit"]);
        command
    };
    if host.lacking().is_empty() && nsenter().status().is_ok_and(|status| status.success()) {
        group.bench_function("nsenter: namespaces and ids only", |b| b.iter(|| nsenter().status().unwrap()));
    }
    group.finish();
    task.release().unwrap();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(50);
    targets = exec
}
criterion_main!(benches);
