//! Cost of starting a process in its cgroups. Each way is timed from the clone to the reaped exit of a program that
//! exits at once, next to a bare clone and exec of the same program in the same run.
//!
//! Each start follows a pause. On a kernel without `favordynmods` the first write to `cgroup.procs` after a pause waits
//! for an RCU grace period, which is the cost of interest; a run of writes without pauses would hide it. Compare
//! ratios, not milliseconds: `cargo bench --bench birth`. With `--test` there are few rounds. The bench needs no
//! compiler and no other file, so a static build runs in `tools/vm-run`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use cofferdam::Report;
use cofferdam::cgroup::{CgroupName, CgroupPath, Detection, Group, Limits, Request, lower};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

#[path = "../src/sys/x86_64.rs"]
mod arch;
#[path = "birth/tiny.rs"]
mod tiny;

const QUIET: Duration = Duration::from_millis(50);
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What the child needs, read from its parent's memory.
struct Child {
    program: CString,
    enter: Vec<RawFd>,
    /// A pipe that the child reads before the exec, so that its parent can move it first.
    gate: Option<RawFd>,
}

/// # Safety
/// `argument` points to a `Child` that outlives the call.
unsafe extern "C" fn child(argument: *mut libc::c_void) -> ! {
    let child = argument.cast::<Child>();
    let (mut byte, none) = ([0u8; 1], [0usize; 1]);
    // SAFETY: the caller vouches for `argument`. Only raw system calls follow, and the only memory written is this
    // frame.
    unsafe {
        for fd in &(*child).enter {
            arch::syscall(libc::SYS_write, [*fd as usize, c"0".as_ptr() as usize, 1, 0, 0]);
        }
        if let Some(fd) = (*child).gate {
            arch::syscall(libc::SYS_read, [fd as usize, byte.as_mut_ptr() as usize, 1, 0, 0]);
        }
        let program = (*child).program.as_ptr() as usize;
        arch::syscall(libc::SYS_execve, [program, none.as_ptr() as usize, none.as_ptr() as usize, 0, 0]);
        loop {
            arch::syscall(libc::SYS_exit_group, [1, 0, 0, 0, 0]);
        }
    }
}

fn clone_args(flags: u64, into: Option<BorrowedFd<'_>>) -> libc::clone_args {
    // SAFETY: `clone_args` is plain data, and all zeroes is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(fd) = into {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    args
}

fn reap(pid: isize) {
    assert!(pid > 0, "clone3: {}", std::io::Error::from_raw_os_error(-pid as i32));
    let ended = waitpid(Pid::from_raw(pid as i32), None).unwrap();
    assert!(matches!(ended, nix::sys::wait::WaitStatus::Exited(_, 0)), "{ended:?}");
}

/// Starts the process as the crate does: a clone with shared memory, whose child enters the cgroups and executes.
fn born(spec: &mut Child, into: Option<BorrowedFd<'_>>) {
    let args = clone_args((libc::CLONE_VM | libc::CLONE_VFORK) as u64, into);
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).unwrap();
    // SAFETY: CLONE_VM and CLONE_VFORK without a stack: the caller is suspended while the child uses its frame. The
    // child makes raw system calls only, and all signals are blocked.
    let pid = unsafe { arch::clone3_vfork(&args, child, std::ptr::from_mut(spec).cast()) };
    mask.thread_set_mask().unwrap();
    reap(pid);
}

/// Starts a process that waits while its parent moves it. This is the way without CLONE_INTO_CGROUP and without a child
/// that enters by itself.
fn moved(spec: &mut Child, group: &Group) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    spec.gate = Some(read.as_raw_fd());
    let args = clone_args(0, None);
    // SAFETY: without CLONE_VM this is a fork. The child has a copy of the stack, and only calls `child`.
    let pid = unsafe {
        let pid = arch::syscall(
            libc::SYS_clone3,
            [std::ptr::from_ref(&args) as usize, size_of_val(&args), 0, 0, 0],
        );
        if pid == 0 {
            child(std::ptr::from_mut(spec).cast());
        }
        pid
    };
    group.add(pid as u32).unwrap();
    std::fs::File::from(write).write_all(b"g").unwrap();
    reap(pid);
    spec.gate = None;
}

fn median(rounds: usize, mut birth: impl FnMut()) -> Duration {
    birth();
    let mut times: Vec<Duration> = (0..rounds)
        .map(|_| {
            std::thread::sleep(QUIET);
            let start = Instant::now();
            birth();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

fn main() {
    let host = Detection::probe();
    if let Err(why) = host.can_limit() {
        println!("skipped: no cgroups: {why}");
        return;
    }
    let rounds = if std::env::args().any(|arg| arg == "--test") { 5 } else { 25 };
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("exit");
    tiny::write(&program, tiny::EXIT);
    let program = CString::new(program.as_os_str().as_bytes()).unwrap();

    let limits =
        Limits { cpu_shares: Some(512), memory: Some(64 << 20), pids_max: Some(64), ..Limits::default() };
    let name = CgroupName::new(&format!("birth-{}", std::process::id())).unwrap();
    let (parent, mut report) = (CgroupPath::default(), Report::default());
    let cgroups = lower(&Request::new(&limits, &host, &parent, &name), &mut report).unwrap();
    let mut group = Group::create(&cgroups, &mut report).unwrap();
    let fds: Vec<OwnedFd> = group.enter_fds().unwrap();
    let enter: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let spec = |enter: &[RawFd]| Child { program: program.clone(), enter: enter.to_vec(), gate: None };

    let floor = median(rounds, || born(&mut spec(&[]), None));
    let mut table = vec![("a bare clone and exec".to_owned(), floor)];
    if group.into_fd().is_some() {
        let into = median(rounds, || born(&mut spec(&[]), group.into_fd()));
        table.push(("born in the v2 cgroup: CLONE_INTO_CGROUP".to_owned(), into));
    }
    if !enter.is_empty() {
        let entered = median(rounds, || born(&mut spec(&enter), None));
        table.push((format!("enters {} v1 cgroups: writes 0 to tasks", enter.len()), entered));
    }
    if group.into_fd().is_some() && !enter.is_empty() {
        let both = median(rounds, || born(&mut spec(&enter), group.into_fd()));
        table.push(("both, as a spawn here does it".to_owned(), both));
    }
    let count = cgroups.leaves().count();
    let by_parent = median(rounds, || moved(&mut spec(&[]), &group));
    table.push((format!("the parent writes its pid to {count} cgroup.procs"), by_parent));

    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    println!(
        "Linux {}, cgroups {:?}: medians of {rounds}, each after {QUIET:?} of quiet",
        kernel.trim(),
        host.mode
    );
    for (way, time) in table {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (more, ratio) = (ms(time) - ms(floor), ms(time) / ms(floor));
        println!("  {way:<48} {:>8.2} ms {more:>+8.2}  {ratio:>6.1}", ms(time));
    }
    group.remove().unwrap();
}
