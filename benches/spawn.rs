//! Time from spawn to the reaped exit of a static program that exits at once, next to a floor in the same run.
//!
//! The floor is the least that any implementation does for the same namespaces: a clone on shared memory, a
//! bind-mounted root, `/proc`, `pivot_root` and the exec, by raw calls without checks. Compare ratios, not
//! microseconds: `cargo bench --bench spawn`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ffi::CString;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam::filter::Filter;
use cofferdam::{Host, Method, Policy, Root, Sandbox};
use criterion::{Criterion, criterion_group, criterion_main};

/// Builds `exit(0)`: 400 bytes of code and headers, without a C library.
fn payload(dir: &Path) -> PathBuf {
    let source = dir.join("exit.s");
    let program = dir.join("exit");
    std::fs::write(&source, ".globl _start\n_start: mov $60,%eax\n xor %edi,%edi\n syscall\n").unwrap();
    let built = Command::new("cc").args(["-static", "-nostdlib", "-o"]).arg(&program).arg(&source).status();
    assert!(built.unwrap().success(), "cc could not build the payload");
    program
}

/// The floor: private mount, PID and IPC namespaces, a bind-mounted root with `/proc`, and the exec.
mod floor {
    use super::CString;

    pub struct Args {
        pub root: CString,
        pub proc_dir: CString,
        pub program: CString,
    }

    extern "C" fn child(args: *mut libc::c_void) -> libc::c_int {
        let none = std::ptr::null::<libc::c_char>();
        // SAFETY: the caller's Args outlive the child, because CLONE_VFORK suspends the caller. Only raw calls are
        // made.
        unsafe {
            let args = &*args.cast::<Args>();
            libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast());
            libc::mount(
                args.root.as_ptr(),
                args.root.as_ptr(),
                none,
                libc::MS_BIND | libc::MS_REC,
                none.cast(),
            );
            libc::mount(c"proc".as_ptr(), args.proc_dir.as_ptr(), c"proc".as_ptr(), 0, none.cast());
            libc::chdir(args.root.as_ptr());
            libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr());
            libc::umount2(c".".as_ptr(), libc::MNT_DETACH);
            let argv = [args.program.as_ptr(), std::ptr::null()];
            libc::execve(args.program.as_ptr(), argv.as_ptr(), argv[1..].as_ptr());
            libc::_exit(1)
        }
    }

    pub fn run(args: &mut Args, stack: &mut [u128]) -> i32 {
        let flags =
            libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC;
        // SAFETY: the caller owns the stack, and CLONE_VFORK suspends the caller while the child uses it.
        let pid = unsafe {
            let top = stack.as_mut_ptr_range().end.cast();
            libc::clone(child, top, flags | libc::SIGCHLD, std::ptr::from_mut(args).cast())
        };
        let mut status = 0;
        // SAFETY: waits for the child that was just created; `status` outlives the call.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        status
    }
}

fn spawn(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    payload(dir.path());
    std::fs::create_dir(dir.path().join("proc")).unwrap();
    let host = Host::probe().unwrap();
    let privileged = host.lacking().is_empty();
    let mut group = c.benchmark_group("spawn");

    let path = |name: &str| CString::new(dir.path().join(name).to_str().unwrap()).unwrap();
    let mut args = floor::Args { root: path(""), proc_dir: path("proc"), program: c"/exit".into() };
    let mut stack = vec![0u128; 4096];
    if privileged {
        assert_eq!(floor::run(&mut args, &mut stack), 0);
        group.bench_function("floor: raw clone, bind root, proc, pivot_root", |b| {
            b.iter(|| floor::run(&mut args, &mut stack))
        });
    }
    group.bench_function("std::process::Command, no isolation", |b| {
        let program = dir.path().join("exit");
        b.iter(|| Command::new(&program).status().unwrap())
    });

    let root = Root { path: Some(dir.path().into()), populate: Method::None, ..Root::default() };
    let base = Sandbox::command("/exit").user("65534:65534").host(&host);
    let given = base.clone().root(root);
    let check = |s: &Sandbox| assert!(s.spawn().unwrap().wait().unwrap().success());
    let bound = base.with(|s| {
        s.root.chroot_env = [("/usr".into(), "/usr".into())].into();
        let source = dir.path().join("exit");
        s.volumes.push(cofferdam::Volume {
            source,
            target: "/exit".into(),
            read_only: true,
            ..Default::default()
        });
    });
    // Without device cgroup and core partitions, whose cost is largest on cgroup v1.
    let undivided = Policy { core_partitions: false, ..Policy::default() };
    let plain = given.clone().policy(&undivided).with(|s| s.device_cgroup = Some(false));
    let unfiltered = given.clone().with(|s| s.filter = Filter::None);
    let mut without_landlock = host.clone();
    without_landlock.landlock_abi = 0;
    let bare = unfiltered.clone().host(&without_landlock);
    for (name, sandbox) in [
        ("a directory as root, init stays", given.clone()),
        ("the same without the task's filter", unfiltered),
        ("the same without the task's filter and Landlock", bare),
        ("a directory as root, no init", given.clone().with(|s| s.init = false)),
        ("the same without core partitions and device cgroup", plain),
        ("tmpfs root with one bind, init stays", bound),
    ] {
        check(&sandbox);
        group.bench_function(name, |b| b.iter(|| sandbox.spawn().unwrap().wait().unwrap()));
    }
    group.bench_function("plan only", |b| b.iter(|| given.plan().unwrap()));
    group.bench_function("probe of the host", |b| b.iter(|| Host::probe().unwrap()));

    // The caller holds 1 GiB of touched memory: the cost must not depend on the caller's memory.
    let held = vec![1u8; 1 << 30];
    group.bench_function("a directory as root, caller holds 1 GiB", |b| {
        b.iter(|| given.spawn().unwrap().wait().unwrap())
    });
    black_box(&held);
    drop(held);
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(50);
    targets = spawn
}
criterion_main!(benches);
