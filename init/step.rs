//! The operations, one function each. The index given to `at` is the index of the line that the plan prints for the
//! call: `src/step/render.rs` prints the calls in the same order.

use crate::call::{At, Done, NextCall};
use crate::clock::Clock;
use crate::credentials::{become_user, enter_landlock_domain, limit_bounding, set_caps, set_ids};
use crate::log::Log;
use crate::mount::{attach, attach_anchor, new_mount};
use crate::paths::{
    allow_existing, close_parent, open_if_present, open_mount_point, open_parent, split_at_anchor,
};
use crate::reap::{Left, Watched};
use crate::state::Init;
use crate::sys::{self, Errno, PollFd};
use crate::uapi::{
    AT_FDCWD, EACCES, EINTR, EINVAL, EISDIR, ENODEV, ENOENT, ENOSPC, ENOSYS, ENOTDIR, EPERM, ETXTBSY,
    MS_PRIVATE, O_DIRECTORY, O_PATH, O_RDONLY, O_RDWR, O_WRONLY, POLLIN, PR_GET_SECUREBITS, PR_SET_DUMPABLE,
    PR_SET_IO_FLUSHER, PR_SET_MEMORY_MERGE, PR_SET_NO_NEW_PRIVS, PR_SET_SECUREBITS, PR_SET_THP_DISABLE,
    PR_SET_TIMERSLACK, S_IFDIR, S_IFREG,
};
use crate::wire::{Dup, FAILED, FileType, List, Op, Record, Str};
use crate::{files, mount, overlay, reap, terminal};

/// Runs one operation.
pub fn run_op(init: &mut Init, op: &Op<'static>) -> Done {
    match *op {
        Op::AwaitIdMaps {} => await_byte(init, 0),
        Op::Session {} => start_session(),
        Op::ResetScheduling {} => reset_scheduling(),
        Op::Become { uid, gid } => set_ids(uid, gid, &mut NextCall::from(0)),
        Op::Affinity {} => reset_affinity().at(0),
        Op::Fds { map } => arrange_fds(init, map),
        Op::Join { fd, kind, .. } => {
            let fd = init.take_fd(fd);
            let joined = sys::setns(fd, kind).at(0);
            sys::close(fd);
            joined
        }
        Op::Unshare { flags } => sys::unshare(flags).at(0),
        Op::Enter { fd, may_be_absent, .. } => {
            let fd = init.take_fd(fd);
            if fd < 0 && may_be_absent {
                return Ok(());
            }
            let entered = sys::write(fd, b"0");
            sys::close(fd);
            match entered {
                // ENODEV: the cgroup was removed after it was opened. ENOSPC: its cpuset has no CPUs yet.
                Err(ENODEV | ENOSPC) if may_be_absent => Ok(()),
                entered => entered.at(0),
            }
        }
        Op::CloneInto { fd, .. } => continue_in_cgroup(init, fd),
        Op::OomScore { value } => write_oom_score(value),
        Op::Loopback {} => {
            let socket = sys::open_inet_socket().at(0)?;
            let up = sys::bring_up_loopback(socket).at(1);
            sys::close(socket);
            up
        }
        Op::Hostname { name } => sys::sethostname(name.bytes()).at(0),
        Op::Propagation { flags } => sys::set_propagation(flags).at(0),
        Op::Tree { fd, source, recursive } => mount::clone_held_tree(init, fd, source, recursive),
        Op::RootTmpfs { attrs, options } => {
            let mut next = NextCall::from(0);
            init.root = new_mount(&mut next, c"tmpfs", attrs, options)?;
            sys::move_mount_over_root(init.root).at(next.index())
        }
        Op::RootBind { fd, attrs, .. } => {
            let tree = init.take_fd(fd);
            init.root = tree;
            sys::mount_setattr(tree, attrs, MS_PRIVATE, true).at(0)?;
            sys::move_mount_over_root(tree).at(1)
        }
        Op::Dir { path, mode } => {
            let (parent, name) = open_parent(init.root, path).at(0)?;
            let made = allow_existing(sys::mkdirat(parent, name, mode));
            close_parent(init.root, parent);
            made.at(0)
        }
        Op::Bind { source, target, attrs, propagation, file_type, fd } => {
            let tree = init.take_fd(fd);
            mount::bind(init, (tree, source == target), target, attrs, propagation, file_type)
        }
        Op::Mount { fs, target, attrs, options } => {
            let mut next = NextCall::from(0);
            let tree = new_mount(&mut next, fs, attrs, options)?;
            let at = open_mount_point(init, target, FileType::Dir, sys::IN_ROOT_NO_LINKS).at(next.index())?;
            attach_anchor(init, tree, at, target).at(next.index())
        }
        Op::Symlink { text, path } => {
            let (base, path) = split_at_anchor(init, path);
            let (parent, name) = open_parent(base, path).at(0)?;
            let made = allow_existing(sys::symlinkat(text, parent, name));
            close_parent(base, parent);
            made.at(0)
        }
        Op::Node { path, major, minor } => {
            let (base, path) = split_at_anchor(init, path);
            let (parent, name) = open_parent(base, path).at(0)?;
            let made = sys::mknodat(parent, name, major, minor);
            close_parent(base, parent);
            made.at(0)
        }
        Op::MaskFile { path } => {
            let Some(at) = open_if_present(init, path).at(0)? else { return Ok(()) };
            let tree = sys::open_tree(init.dev(), c"null", false).at(1)?;
            attach(tree, at).at(2)
        }
        Op::MaskSource {} => mount::mount_mask_source(init),
        Op::MaskDir { path } => {
            let Some(at) = open_if_present(init, path).at(0)? else { return Ok(()) };
            let tree = sys::open_tree(init.mask, c"", false).at(1)?;
            attach(tree, at).at(2)
        }
        Op::Restrict { path, attrs, must } => mount::bind_on_itself(init, path, attrs, must),
        Op::Seal { path, attrs } => {
            let (base, path) = split_at_anchor(init, path);
            let at = sys::openat2(base, path, O_PATH, sys::IN_ROOT).at(0)?;
            let sealed = sys::mount_setattr(at, attrs, 0, false).at(1);
            sys::close(at);
            sealed
        }
        Op::Null { streams } => {
            let null = match init.dev() {
                // The process has joined a running task, and is in its root.
                -1 => sys::openat2(AT_FDCWD, c"/dev/null", O_RDWR, 0),
                dev => sys::openat2(dev, c"null", O_RDWR, sys::IN_ROOT),
            };
            let null = null.at(0)?;
            for stream in (0..3).filter(|n| streams & (1 << n) != 0) {
                sys::dup3(null, stream).at(1)?;
            }
            sys::close(null);
            Ok(())
        }
        Op::Empty { path } => {
            let (parent, name) = open_parent(init.root, path).at(0)?;
            let made = sys::openat(parent, name, sys::O_NEW, 0o644).map(sys::close);
            close_parent(init.root, parent);
            allow_existing(made).at(0)
        }
        Op::Share { source, target } => {
            let from = sys::openat2(init.root, source, O_PATH | O_DIRECTORY, sys::IN_ROOT).at(0)?;
            let tree = sys::open_tree(from, c"", true).at(1)?;
            sys::close(from);
            let at = open_mount_point(init, target, FileType::Dir, sys::IN_ROOT).at(2)?;
            attach(tree, at).at(3)
        }
        Op::Upper { options } => overlay::mount_upper_tmpfs(init, options),
        Op::UpperBind { fd, .. } => overlay::mount_upper_dir(init, fd),
        Op::Overlay { fd, target, name, mode, uid, gid, userxattr, attrs, .. } => {
            let owner = (mode, uid, gid);
            let overlay = overlay::Overlay { lower: fd, target, name, owner, userxattr, attrs };
            overlay::mount_overlay(init, overlay)
        }
        Op::File { path, content } => files::mount_file_over(init, path, content),
        Op::Write { path, mode, uid, gid, content } => {
            files::write_new_file(init, path, mode, (uid, gid), content)
        }
        Op::EnterPrepared { fd } => mount::enter_prepared(init, fd),
        Op::OpenPrepared {} => {
            let namespace = sys::openat(AT_FDCWD, c"/proc/self/ns/mnt", O_RDONLY, 0).at(0)?;
            init.prepared = [namespace, sys::openat(AT_FDCWD, c"/proc/self/mountinfo", O_RDONLY, 0).at(1)?];
            Ok(())
        }
        Op::SendPrepared {} => {
            let [namespace, table] = init.prepared;
            sys::send_fd(init.status, &Record::Prepared.encode(), namespace).at(0)?;
            sys::send_fd(init.status, &Record::Prepared.encode(), table).at(1)
        }
        Op::EnterRoot {} => mount::enter_root(init),
        Op::PivotRoot {} => mount::pivot_into_root(init),
        Op::MoveRoot {} => mount::move_into_root(init),
        Op::Rlimit { resource, soft, hard } => sys::set_rlimit(resource, soft, hard).at(0),
        Op::Deadline { nanoseconds } => {
            init.timer = sys::create_timer().at(0)?;
            init.deadline = nanoseconds;
            sys::start_timer(init.timer, nanoseconds).at(1)
        }
        Op::CpuDeadline { nanoseconds, processors, unit, fd, .. } => {
            start_clock(init, (nanoseconds, unit.into(), processors.into()), fd)
        }
        Op::ExitRecord { fd, .. } => {
            init.record = init.take_fd(fd);
            sys::lock_first_byte(init.record).at(0)
        }
        Op::Log { fd, stdout, stderr, .. } => {
            let (file, pipes) = (init.take_fd(fd), [stdout, stderr].map(|pipe| init.take_fd(pipe)));
            init.log = Log::open(file, pipes).at(0)?;
            Ok(())
        }
        Op::Fork { uid, gid, set_groups, bounding, caller, gate } => {
            let (watched, left) = (Watched { caller, gate }, Left { uid, gid, set_groups, bounding });
            reap::fork_and_reap(init, watched, left)
        }
        Op::ForkOutside { uid, gid, set_groups, bounding, caller, gate } => {
            let (watched, left) = (Watched { caller, gate }, Left { uid, gid, set_groups, bounding });
            reap::fork_outside(init, watched, left)
        }
        Op::ForkInside { caller } => reap::fork_inside(init, caller),
        Op::Bounding { keep, last } => limit_bounding(keep, last),
        Op::Ids { uid, gid, set_groups, groups } => become_user(uid, gid, set_groups, groups),
        Op::Caps { permitted, inheritable, ambient } => set_caps(permitted, inheritable, ambient),
        Op::CommonFilter { program } | Op::Filter { program } => sys::seccomp(program.0).at(0),
        Op::NoNewPrivs {} => sys::prctl(PR_SET_NO_NEW_PRIVS, 1, 0).at(0).map(drop),
        Op::Cwd { path } => {
            sys::chdir(path).at(0)?;
            sys::check_cwd().at(1)
        }
        Op::Umask { mask } => {
            sys::umask(mask);
            Ok(())
        }
        Op::Landlock { fs, scoped } => enter_landlock_domain(fs, scoped),
        Op::Terminal { rows, columns } => terminal::open(init, rows, columns),
        Op::ControllingTerminal {} => terminal::control(),
        Op::Name { name } => sys::set_name(name).at(0),
        Op::Find { candidates } => find_command(init, candidates),
        Op::AwaitPid1 { tied } => reap::await_parent(init, tied),
        Op::Gate { caller } => await_let_go(init, caller),
        Op::Exec { .. } => exec_command(init),
    }
}

fn start_clock(init: &mut Init, (limit, unit, processors): (u64, u64, u64), fd: u32) -> Done {
    let counter = init.take_fd(fd);
    init.clock = Clock { timer: sys::create_timer().at(0)?, counter, limit, unit, processors };
    let left = init.clock.left().at(1)?;
    init.clock.start(left).at(2)
}

/// Allows this process all CPUs of its cpuset. The kernel refuses a mask with EINVAL if the cpuset changes meanwhile, for
/// example because another task reserves cores. The mask is of all CPUs, so there is no other reason.
fn reset_affinity() -> Result<(), Errno> {
    for _ in 0..TRIES {
        match sys::allow_all_processors() {
            Err(EINVAL) => {}
            done => return done,
        }
    }
    sys::allow_all_processors()
}

/// How often the affinity is set while cpusets change.
const TRIES: usize = 64;

/// Waits for a byte from the parent. `index` is the index of the call's line.
fn await_byte(init: &Init, index: u8) -> Done {
    match sys::recv(init.status, &mut [0u8; 1]).at(index)? {
        // The parent has closed its end of the socket: it has given up.
        0 => sys::exit(FAILED),
        _ => Ok(()),
    }
}

/// Continues in a copy of this process that is created in the cgroup, and exits. The copy waits until the parent has
/// its pidfd.
fn continue_in_cgroup(init: &mut Init, cgroup: u32) -> Done {
    let cgroup = init.take_fd(cgroup);
    let mut pidfd = -1;
    let pid = sys::clone_into(cgroup, &mut pidfd).at(0)?;
    if pid != 0 {
        let record = Record::Copied { pid }.encode();
        if sys::send_fd(init.status, &record, pidfd).is_err() {
            // Only the parent can reap the copy, so it must know of it.
            sys::send(init.status, &record).at(1)?;
        }
        sys::exit(0);
    }
    sys::close(cgroup);
    await_byte(init, 2)
}

fn start_session() -> Done {
    sys::prctl(PR_SET_DUMPABLE, 0, 0).at(0)?;
    sys::setsid().at(1)?;
    // ENOSYS: a kernel without keyrings, so there is none to inherit. EPERM, EACCES: an outer seccomp filter forbids
    // the call, and forbids it to the task too.
    match sys::join_new_keyring() {
        Err(ENOSYS | EPERM | EACCES) => {}
        done => done.at(2)?,
    }
    sys::reset_signals();
    sys::umask(0);
    Ok(())
}

/// Resets the scheduling and process settings of the caller that execve(2) keeps. A setting is taken to have its
/// default value if this kernel lacks it or if an outer seccomp filter forbids the call.
fn reset_scheduling() -> Done {
    let lenient = |done: Result<(), Errno>| match done {
        Err(ENOSYS | EPERM | EACCES) => Ok(()),
        done => done,
    };
    lenient(sys::reset_scheduler()).at(0)?;
    // Raising the priority needs CAP_SYS_NICE. Without it, the task keeps the caller's nice value.
    lenient(sys::reset_nice()).at(1)?;
    lenient(sys::reset_io_priority()).at(2)?;
    sys::prctl(PR_SET_TIMERSLACK, 50_000, 0).at(3)?;
    lenient(sys::reset_memory_policy()).at(4)?;
    lenient(sys::personality(0)).at(5)?;
    lenient(sys::prctl(PR_SET_THP_DISABLE, 0, 0).map(drop)).at(6)?;
    // EINVAL: the kernel lacks the setting (PR_SET_MEMORY_MERGE: Linux 6.4, PR_SET_IO_FLUSHER: Linux 5.6).
    for (call, option) in [(7, PR_SET_MEMORY_MERGE), (8, PR_SET_IO_FLUSHER)] {
        let done = sys::prctl(option, 0, 0).map(drop);
        if done != Err(EINVAL) {
            lenient(done).at(call)?;
        }
    }
    if sys::prctl(PR_GET_SECUREBITS, 0, 0).at(9)? != 0 {
        sys::prctl(PR_SET_SECUREBITS, 0, 0).at(9)?;
    }
    Ok(())
}

/// Arranges the task's descriptors: moves init's own descriptors above the highest target, duplicates the sources onto
/// the targets, and closes all others.
fn arrange_fds(init: &mut Init, map: List<'static, Dup>) -> Done {
    let base = map.iter().map(|d| (d.to as i32).saturating_add(1)).max().unwrap_or(0).max(3);
    for fd in init.fds.iter_mut().filter(|fd| **fd >= 0) {
        *fd = sys::dup_above(*fd, base).at(0)?;
    }
    init.status = sys::dup_above(init.status, base).at(0)?;
    for dup in map.iter() {
        let from = init.fds.get(dup.from as usize).copied().unwrap_or(-1);
        sys::dup3(from, dup.to as i32).at(1)?;
    }
    for dup in map.iter() {
        init.take_fd(dup.from);
    }
    close_others(init, map)
}

/// Closes every descriptor that is neither a target nor init's, by closing the ranges between the kept descriptors in
/// ascending order.
fn close_others(init: &Init, map: List<'static, Dup>) -> Done {
    let ours = || init.fds.iter().copied().filter(|fd| *fd >= 0).chain([init.status]);
    let mut first = 0;
    loop {
        let kept = ours().chain(map.iter().map(|d| d.to as i32)).filter(|fd| *fd >= first).min();
        let Some(kept) = kept else { break };
        sys::close_range(first..kept).at(2)?;
        first = kept.saturating_add(1);
    }
    sys::close_from(first).at(2)
}

fn write_oom_score(value: Str<'static>) -> Done {
    let fd = sys::openat(AT_FDCWD, c"/proc/self/oom_score_adj", O_WRONLY, 0).at(0)?;
    let written = sys::write(fd, value.bytes()).at(1);
    sys::close(fd);
    written
}

/// Finds the command, with the task's credentials. If no process stays, reports to the parent that only the filter and
/// execve(2) are left.
fn find_command(init: &mut Init, candidates: List<'static, Str<'static>>) -> Done {
    let mut errno = ENOENT;
    for (index, path) in candidates.iter().enumerate() {
        match sys::file_type(path) {
            Ok(S_IFREG) => {
                init.command = Some((index as u8, path));
                break;
            }
            Ok(S_IFDIR) => errno = EISDIR,
            Ok(_) => errno = EACCES,
            Err(ENOENT | ENOTDIR) => {}
            Err(refused) => errno = refused,
        }
    }
    let Some((_, path)) = init.command else { return Err(errno).at(0) };
    init.words = lay_out(init, path).at(0)?;
    sys::unblock_signals().at(0)?;
    if init.pid1 >= 0 {
        return Ok(());
    }
    // Without this record the parent takes the exec of a command without a PID 1 for the end of init.
    sys::send(init.status, &Record::Ready.encode()).at(0)
}

/// Reports that the command can be executed, and waits until the caller lets it go. Exits if the caller ends before.
fn await_let_go(init: &mut Init, caller: u32) -> Done {
    let caller = init.take_fd(caller);
    if init.pid1 >= 0 {
        return reap::await_let_go(init);
    }
    sys::send(init.status, &Record::AtGate.encode()).at(0)?;
    // A fork of the caller may hold the socket open, so its end is not the only sign of the caller's end.
    let mut fds = [init.status, caller].map(|fd| PollFd { fd, events: POLLIN, revents: 0 });
    let status = loop {
        match sys::poll(&mut fds, true) {
            Err(EINTR) => {}
            polled => polled.at(1)?,
        }
        let [status, caller] = fds;
        // Once more if only the caller's end was seen: it may have sent the byte right before.
        if status.revents != 0 || caller.revents != 0 && sys::poll(&mut fds, true).is_ok() {
            break fds.first().is_some_and(|status| status.revents != 0);
        }
    };
    if !status || sys::recv(init.status, &mut [0u8; 1]).at(2)? == 0 {
        sys::exit(FAILED);
    }
    sys::close(caller);
    Ok(())
}

/// The words of `execve(2)`: pointers to the arguments, and to the environment.
type Words = (&'static [usize], &'static [usize]);

/// Lays out the arguments and the environment of the command, if the program executes one. That takes memory, which the
/// task's filter may forbid.
fn lay_out(init: &Init, path: Str<'static>) -> Result<Option<Words>, Errno> {
    let last = init.program.steps.iter().find_map(|step| match step.op {
        Op::Exec { args, env } => Some((args, env)),
        _ => None,
    });
    let Some((args, env)) = last else { return Ok(None) };
    let argv = sys::map_words(args.len().saturating_add(2))?;
    let envp = sys::map_words(env.len().saturating_add(1))?;
    for (word, text) in argv.iter_mut().zip([path].into_iter().chain(args.iter())) {
        *word = text.bytes().as_ptr() as usize;
    }
    for (word, text) in envp.iter_mut().zip(env.iter()) {
        *word = text.bytes().as_ptr() as usize;
    }
    Ok(Some((argv, envp)))
}

/// Executes the command. A refusal is reported with the index of the candidate that `find_command` found.
fn exec_command(init: &Init) -> Done {
    let (Some((index, path)), Some((argv, envp))) = (init.command, init.words) else {
        return Err(ENOENT).at(0);
    };
    let mut errno = sys::execve(path, argv, envp);
    // ETXTBSY: another process holds the file open for writing between its own fork and exec. In a multi-threaded
    // program, a forked child inherits descriptors that other threads have open.
    for _ in 0..TEXT_BUSY_TRIES {
        if errno != ETXTBSY {
            break;
        }
        sys::sleep_ms(1);
        errno = sys::execve(path, argv, envp);
    }
    Err(errno).at(index)
}

/// Number of retries, 1 ms apart, while execve(2) fails with ETXTBSY.
const TEXT_BUSY_TRIES: u32 = 100;
