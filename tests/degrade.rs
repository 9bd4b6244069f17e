//! An old or hostile kernel, simulated by a seccomp filter on the test's own thread. (CONTRIBUTING.md, ring 3.)
//!
//! The filter makes one system call fail. The child inherits it, so it affects both the caller's half of a spawn and
//! init. Each case asserts the kind of the error, that its message is a line of the plan, and that its source is the
//! kernel's errno. It also asserts that no process, descriptor, cgroup or directory stays.
//!
//! Descriptors and children belong to the whole process, so one test runs at a time.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::panic
)]

mod common;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cofferdam::{
    Control, Error, Host, Method, Network, Policy, Require, Resource, Rlimit, Sandbox, Signal, Task,
};
use common::{can, descriptors, sandboxes};
use libc::{EACCES, EINVAL, ENOSYS, EPERM};

/// A system call to refuse, always or if one argument has a value.
#[derive(Clone, Copy)]
struct Refuse {
    call: libc::c_long,
    /// Index of the argument, and the low 32 bits of its value.
    argument: Option<(u32, u32)>,
    errno: i32,
}

const fn all(call: libc::c_long) -> Refuse {
    Refuse { call, argument: None, errno: ENOSYS }
}

const fn only(call: libc::c_long, index: u32, value: i32) -> Refuse {
    Refuse { argument: Some((index, value.cast_unsigned())), ..all(call) }
}

impl Refuse {
    fn with(self, errno: i32) -> Refuse {
        Refuse { errno, ..self }
    }

    /// The classic BPF program. A comparison that fails jumps to the last instruction, which allows the call.
    fn program(self) -> Vec<libc::sock_filter> {
        const ARCH: u32 = 4;
        const ARCH_X86_64: u32 = 0xc000_003e;
        const RET_ERRNO: u32 = 0x0005_0000;
        const RET_ALLOW: u32 = 0x7fff_0000;
        let word = |k| libc::sock_filter { code: 0x20, jt: 0, jf: 0, k };
        let number = u32::try_from(self.call).unwrap();
        let mut tests = vec![(ARCH, ARCH_X86_64), (0, number)];
        tests.extend(self.argument.map(|(index, value)| (16 + 8 * index, value)));
        let mut program = Vec::new();
        for (i, (offset, value)) in tests.iter().enumerate() {
            let jf = u8::try_from(2 * (tests.len() - 1 - i) + 1).unwrap();
            program.push(word(*offset));
            program.push(libc::sock_filter { code: 0x15, jt: 0, jf, k: *value });
        }
        program.push(libc::sock_filter { code: 6, jt: 0, jf: 0, k: RET_ERRNO | self.errno.cast_unsigned() });
        program.push(libc::sock_filter { code: 6, jt: 0, jf: 0, k: RET_ALLOW });
        program
    }

    /// Loads the filter on the calling thread, whose children inherit it. It cannot be removed.
    fn install(self) {
        let mut program = self.program();
        let program =
            libc::sock_fprog { len: u16::try_from(program.len()).unwrap(), filter: program.as_mut_ptr() };
        // SAFETY: the program outlives the call, and the kernel checks it.
        let install = || unsafe {
            libc::syscall(libc::SYS_seccomp, 1 /* SET_MODE_FILTER */, 0, &raw const program)
        };
        if install() == 0 {
            return;
        }
        // Without CAP_SYS_ADMIN the kernel requires no_new_privs.
        // SAFETY: PR_SET_NO_NEW_PRIVS takes numbers only.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
        assert_eq!(install(), 0, "{}", io::Error::last_os_error());
    }

    /// Runs `work` on a new thread with the filter.
    fn during<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                self.install();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

#[test]
fn test_filter_refuses_only_the_given_call() {
    let _alone = alone();
    let umask = |mask: libc::mode_t| {
        // SAFETY: umask(2) takes a number. The process's umask is restored at the end.
        let ret = unsafe { libc::syscall(libc::SYS_umask, mask) };
        if ret < 0 { Err(io::Error::last_os_error().raw_os_error().unwrap()) } else { Ok(ret) }
    };
    let before = umask(0o22).unwrap();
    assert_eq!(all(libc::SYS_umask).during(|| umask(0)), Err(ENOSYS));
    assert_eq!(all(libc::SYS_umask).with(EPERM).during(|| umask(0)), Err(EPERM));
    let one = only(libc::SYS_umask, 0, 0o77);
    assert_eq!(one.during(|| (umask(0o77), umask(0o22))), (Err(ENOSYS), Ok(0o22)));
    assert_eq!(umask(libc::mode_t::try_from(before).unwrap()), Ok(0o22));
}

fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a failed spawn could leave behind.
struct Traces {
    id: String,
    temp: tempfile::TempDir,
    descriptors: BTreeMap<i32, String>,
}

impl Traces {
    fn before() -> Traces {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        assert_no_children();
        let temp = tempfile::tempdir().unwrap();
        Traces { id: format!("degrade-{}-{count}", std::process::id()), temp, descriptors: descriptors() }
    }

    /// A sandbox with this id and temporary directory.
    fn sandbox(&self) -> Sandbox {
        let policy = Policy { temp_dir: Some(self.temp.path().into()), ..Policy::default() };
        Sandbox::command("/bin/true").policy(&policy).id(&self.id)
    }

    #[track_caller]
    fn are_gone(&self, what: &str) {
        assert_no_children();
        assert_eq!(descriptors(), self.descriptors, "{what}");
        let left: Vec<_> = std::fs::read_dir(self.temp.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(left.is_empty(), "{what}: {left:?}");
        let left = find(Path::new("/sys/fs/cgroup"), &self.id);
        assert_eq!(left, None, "{what}");
    }
}

#[track_caller]
fn assert_no_children() {
    // SAFETY: all zeroes is a valid siginfo_t. It outlives the call, and WNOWAIT reaps nothing.
    let (ret, info) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        (libc::waitid(libc::P_ALL, 0, &raw mut info, options), info)
    };
    let errno = io::Error::last_os_error().raw_os_error();
    assert_eq!((ret, errno), (-1, Some(libc::ECHILD)), "there is a child, perhaps {info:?}");
}

fn find(dir: &Path, name: &str) -> Option<std::path::PathBuf> {
    // Other cgroups may appear and disappear meanwhile.
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let mut dirs = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path());
    dirs.find_map(|path| {
        let is_it = path.file_name().is_some_and(|n| n.to_string_lossy().contains(name));
        if is_it { Some(path) } else { find(&path, name) }
    })
}

/// The expected kind of error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Prepare,
    Setup,
    Exec,
    Other,
}

fn kind(error: &Error) -> Kind {
    match error {
        Error::Prepare { .. } => Kind::Prepare,
        Error::Setup { .. } => Kind::Setup,
        Error::Exec { .. } => Kind::Exec,
        _ => Kind::Other,
    }
}

type Set = fn(Sandbox) -> Sandbox;

/// Spawns under the filter, with ENOSYS and with EPERM, and checks the error against the plan. `message` is the start
/// of its text.
#[track_caller]
fn refused(expected: Kind, message: &str, refuse: Refuse, set: Set) {
    for errno in [ENOSYS, EPERM] {
        let traces = Traces::before();
        let sandbox = set(traces.sandbox());
        let plan = sandbox.plan().unwrap().to_string();
        let error = refuse.with(errno).during(|| sandbox.spawn().map(drop)).expect_err(message);
        assert_eq!(kind(&error), expected, "{error}: {:?}", error.source());
        let text = error.to_string();
        assert!(text.starts_with(message), "{text:?} is not {message:?}");
        assert!(plan.lines().any(|line| line.trim() == text), "{text:?} is not in\n{plan}");
        let source = error.source().and_then(|s| s.downcast_ref::<io::Error>()).unwrap();
        assert_eq!(source.raw_os_error(), Some(errno), "{text}: {source}");
        traces.are_gone(&text);
    }
}

fn as_it_is(sandbox: Sandbox) -> Sandbox {
    sandbox
}

/// A copied root, in a directory that must be removed again.
fn copied(sandbox: Sandbox) -> Sandbox {
    sandbox.with(|s| {
        s.root.populate = Method::Copy;
        s.root.chroot_env = [("/etc/passwd".into(), "/etc/passwd".into())].into();
    })
}

#[test]
fn refused_calls_of_the_caller_are_reported_and_rolled_back() {
    let _alone = alone();
    if !sandboxes() {
        return;
    }
    use Kind::Prepare;
    for set in [as_it_is, copied] {
        refused(Prepare, "socketpair(AF_UNIX", all(libc::SYS_socketpair), set);
        refused(Prepare, "memfd_create(\"cofferdam-plan\"", all(libc::SYS_memfd_create), set);
        // MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC.
        refused(Prepare, "memfd_create(\"cofferdam-init\"", only(libc::SYS_memfd_create, 1, 0x13), set);
        refused(Prepare, "clone3(", all(libc::SYS_clone3), set);
        refused(Prepare, "execveat(", all(libc::SYS_execveat), set);
    }
}

#[test]
fn refused_calls_of_init_before_the_root_are_reported_and_rolled_back() {
    let _alone = alone();
    if !sandboxes() {
        return;
    }
    use Kind::Setup;
    refused(Setup, "prctl(PR_SET_DUMPABLE", only(libc::SYS_prctl, 0, libc::PR_SET_DUMPABLE), as_it_is);
    refused(Setup, "setsid(", all(libc::SYS_setsid), as_it_is);
    refused(Setup, "dup3(", all(libc::SYS_dup3), as_it_is);
    refused(Setup, "close_range(", all(libc::SYS_close_range), as_it_is);
    let named: Set = |s| s.with(|s| s.hostname = Some("dam".into()));
    refused(Setup, "sethostname(\"dam\")", all(libc::SYS_sethostname), named);
    let hidden: Set = |s| s.with(|s| s.cgroup_namespace = Some(true));
    refused(Setup, "unshare(CLONE_NEWCGROUP)", all(libc::SYS_unshare), hidden);
    let apart: Set = |s| s.network(Network::None);
    refused(Setup, "socket(AF_INET", only(libc::SYS_socket, 0, libc::AF_INET), apart);
    refused(Setup, "ioctl(\"lo\"", only(libc::SYS_ioctl, 1, 0x8914), apart);
    refused(Setup, "mount(NULL, \"/\"", all(libc::SYS_mount), as_it_is);
}

#[test]
fn refused_calls_that_build_the_root_are_reported_and_rolled_back() {
    let _alone = alone();
    if !sandboxes() {
        return;
    }
    use Kind::{Prepare, Setup};
    refused(Setup, "fsopen(\"tmpfs\")", all(libc::SYS_fsopen), as_it_is);
    refused(Setup, "fsconfig(\"tmpfs\", FSCONFIG_SET_STRING, \"mode\"", all(libc::SYS_fsconfig), as_it_is);
    // FSCONFIG_CMD_CREATE.
    refused(Setup, "fsconfig(\"tmpfs\", FSCONFIG_CMD_CREATE)", only(libc::SYS_fsconfig, 1, 6), as_it_is);
    refused(Setup, "fsmount(\"tmpfs\"", all(libc::SYS_fsmount), as_it_is);
    refused(Setup, "symlinkat(", all(libc::SYS_symlinkat), as_it_is);
    refused(Setup, "umount2(\".\", MNT_DETACH)", all(libc::SYS_umount2), as_it_is);
    for set in [as_it_is, copied] {
        refused(Setup, "move_mount(", all(libc::SYS_move_mount), set);
        // A privileged caller clones the mount through its descriptor. Otherwise init opens the path again.
        match can("root") {
            true => refused(Prepare, "open_tree(held \"/", all(libc::SYS_open_tree), set),
            false => refused(Setup, "open_tree(opened \"/", all(libc::SYS_open_tree), set),
        }
        refused(Setup, "mount_setattr(\"/", all(libc::SYS_mount_setattr), set);
        refused(Setup, "pivot_root(\".\", \".\")", all(libc::SYS_pivot_root), set);
        // STATX_INO | STATX_MNT_ID. The caller's half uses another mask.
        refused(Setup, "statx(\"/..\", STATX_MNT_ID)", only(libc::SYS_statx, 3, 0x1100), set);
    }
    let first = if can("root") { "openat2(root, \"/" } else { "openat2(\"/" };
    refused(Setup, first, all(libc::SYS_openat2), as_it_is);
    let by_chroot: Set = |s| s.policy(&Policy { no_pivot_root: true, ..Policy::default() });
    refused(Setup, "chroot(\".\")", all(libc::SYS_chroot), by_chroot);
}

#[test]
fn refused_calls_that_restrict_the_process_are_reported_and_rolled_back() {
    let _alone = alone();
    if !sandboxes() {
        return;
    }
    use Kind::Setup;
    refused(Setup, "clone(CLONE_PIDFD)", all(libc::SYS_clone), as_it_is);
    let limited: Set = |s| {
        let none = Rlimit { soft: Some(0), hard: Some(0) };
        s.with(|s| s.rlimits = [(Resource::Core, none)].into())
    };
    refused(
        Setup,
        "prlimit64(0, RLIMIT_CORE, {0, 0})",
        only(libc::SYS_prlimit64, 1, libc::RLIMIT_CORE as i32),
        limited,
    );
    // With an init that stays as PID 1, and with the command as PID 1.
    let alone: Set = |s| s.with(|s| s.init = false);
    for set in [as_it_is, alone] {
        refused(Setup, "seccomp(SECCOMP_SET_MODE_FILTER", all(libc::SYS_seccomp), set);
        refused(Setup, "prctl(PR_CAPBSET_DROP", only(libc::SYS_prctl, 0, libc::PR_CAPBSET_DROP), set);
        refused(Setup, "setresgid(", all(libc::SYS_setresgid), set);
        refused(Setup, "setresuid(", all(libc::SYS_setresuid), set);
        refused(
            Setup,
            "prctl(PR_SET_NO_NEW_PRIVS, 1)",
            only(libc::SYS_prctl, 0, libc::PR_SET_NO_NEW_PRIVS),
            set,
        );
        refused(Setup, "getcwd()", all(libc::SYS_getcwd), set);
    }
}

/// Calls that are made differently, or not at all, in a user namespace.
#[test]
fn refused_calls_of_a_privileged_spawn_are_reported_and_rolled_back() {
    let _alone = alone();
    if !can("root") {
        return;
    }
    use Kind::{Prepare, Setup};
    let joined: Set = |s| s.network(Network::Path("/proc/self/ns/net".into()));
    refused(Setup, "setns(\"/proc/self/ns/net\", CLONE_NEWNET)", all(libc::SYS_setns), joined);
    refused(Setup, "mknodat(root, \"/dev/null\"", all(libc::SYS_mknodat), as_it_is);
    let alone: Set = |s| s.with(|s| s.init = false);
    for set in [as_it_is, alone] {
        refused(Setup, "setgroups(", all(libc::SYS_setgroups), set);
        refused(Setup, "capset(", all(libc::SYS_capset), set);
        refused(Setup, "prctl(PR_CAP_AMBIENT", only(libc::SYS_prctl, 0, libc::PR_CAP_AMBIENT), set);
    }
    // Every task has a cgroup if there are any, to be killed by it.
    if Host::probe().unwrap().cgroups.mode != cofferdam::cgroup::Mode::Off {
        refused(Prepare, "mkdir(\"/", all(libc::SYS_mkdir), as_it_is);
    }
}

#[test]
fn refused_lookup_or_exec_of_the_command_is_an_exec_error() {
    let _alone = alone();
    if !sandboxes() {
        return;
    }
    // Other uses of statx(2) have another mask.
    let looks = only(libc::SYS_statx, 3, libc::STATX_TYPE.cast_signed());
    for (call, program) in [(looks, "/bin/true"), (all(libc::SYS_execve), "/bin/true")] {
        for errno in [ENOSYS, EPERM] {
            let traces = Traces::before();
            let sandbox = traces.sandbox();
            let error = call.with(errno).during(|| sandbox.spawn().map(drop)).unwrap_err();
            assert_eq!(kind(&error), Kind::Exec, "{error}");
            assert_eq!(error.to_string(), format!("execve({program:?})"));
            let source = error.source().and_then(|s| s.downcast_ref::<io::Error>()).unwrap();
            // Not "not found" (127), because the search was refused.
            assert_eq!((source.raw_os_error(), error.exit_code()), (Some(errno), 126));
            traces.are_gone(program);
        }
    }
}

/// The caller and init talk over a socket, for which the plan has no lines.
#[test]
fn spawn_fails_if_init_cannot_report() {
    let _alone = alone();
    if !sandboxes() {
        return;
    }
    // An init that stays reports success by the pidfd that it sends once the command runs, so only one that does not
    // stay depends on this call.
    let alone: Set = |s| s.with(|s| s.init = false);
    for (call, set, steps) in [
        (libc::SYS_recvmsg, as_it_is as Set, &["recvmsg(status)"][..]),
        // With a user namespace, the caller sends first: the id maps are written.
        (libc::SYS_sendto, alone, &["init", "sendto(status)"]),
    ] {
        let traces = Traces::before();
        let sandbox = set(traces.sandbox());
        let error = all(call).during(|| sandbox.spawn().map(drop)).unwrap_err();
        assert!(matches!(kind(&error), Kind::Prepare | Kind::Setup), "{error}");
        assert!(steps.contains(&error.to_string().as_str()), "{error}");
        traces.are_gone(steps[0]);
    }
}

/// Kernels before 6.3 do not know MFD_EXEC. Others forbid executable memfds (`vm.memfd_noexec`). A spawn needs none of
/// the features in this list.
#[test]
fn spawn_works_without_optional_kernel_features() {
    let _alone = alone();
    if !sandboxes() {
        return;
    }
    for (what, refuse) in [
        ("MFD_EXEC", only(libc::SYS_memfd_create, 1, 0x13).with(EINVAL)),
        ("MFD_NOEXEC_SEAL", only(libc::SYS_memfd_create, 1, 0x0b).with(EINVAL)),
        ("executable memfds", only(libc::SYS_memfd_create, 1, 0x13).with(EACCES)),
        ("keyrings", all(libc::SYS_keyctl)),
        ("the right to keyrings", all(libc::SYS_keyctl).with(EPERM)),
        ("signalfd", all(libc::SYS_signalfd4)),
        ("landlock", all(libc::SYS_landlock_create_ruleset)),
    ] {
        for set in [as_it_is, copied_shell] {
            let traces = Traces::before();
            let sandbox = set(traces.sandbox());
            let status = refuse.during(|| sandbox.spawn().and_then(|task| task.wait())).unwrap();
            assert!(status.success(), "without {what}: {status}");
            traces.are_gone(what);
        }
    }
}

/// A copied root, and the host's program directories as read-only volumes.
fn copied_shell(sandbox: Sandbox) -> Sandbox {
    copied(sandbox).with(|s| {
        for dir in ["/bin", "/lib", "/lib64", "/usr"].into_iter().filter(|dir| Path::new(dir).exists()) {
            let (source, target, read_only) = (dir.into(), dir.into(), true);
            s.volumes.push(cofferdam::Volume { source, target, read_only, ..Default::default() });
        }
    })
}

#[test]
fn refused_optional_step_is_missing_in_the_report() {
    let _alone = alone();
    if !sandboxes() {
        return;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_ne!(own.trim(), "-1000", "a score that no test should have");
    // No other call of a spawn without limits writes five bytes.
    let refuse = only(libc::SYS_write, 2, 5).with(EACCES);
    let lowered = |traces: &Traces| traces.sandbox().with(|s| s.oom_score_adj = Some(-1000));
    let line = "write(\"/proc/self/oom_score_adj\", \"-1000\")";

    let traces = Traces::before();
    let sandbox = lowered(&traces).require(Require::BestEffort);
    assert!(sandbox.plan().unwrap().report.enforced.contains(Control::OOM_SCORE));
    let (report, status) = refuse.during(|| {
        let task = sandbox.spawn().unwrap();
        (task.report().clone(), task.wait().unwrap())
    });
    assert!(status.success(), "{status}");
    assert_eq!(report.missing, Control::OOM_SCORE, "{report}");
    assert!(!report.enforced.contains(Control::OOM_SCORE));
    assert_eq!(report.asked, report.enforced | report.weakened | report.missing);
    let why = report.why(Control::OOM_SCORE);
    assert_eq!(why, format!("{line}: {}", io::Error::from_raw_os_error(EACCES)));
    traces.are_gone("optional");

    for require in [Require::Asked, Control::OOM_SCORE.into(), (Control::OOM_SCORE | Control::CAPS).into()] {
        let traces = Traces::before();
        let sandbox = lowered(&traces).require(require);
        let error = refuse.during(|| sandbox.spawn().map(drop)).unwrap_err();
        assert_eq!((kind(&error), error.to_string().as_str()), (Kind::Setup, line));
        traces.are_gone("required");
    }
}

/// The kernel lacks eBPF for cgroups, or the caller may not use it. The mounts (nodev, a sealed /dev) restrict devices
/// as well.
#[test]
fn device_filter_is_optional_unless_the_spec_requires_it() {
    let _alone = alone();
    if !can("root") {
        return;
    }
    let mut host = Host::probe().unwrap();
    if host.cgroups.v2.is_none() {
        return common::skip::note("cgroup v2 is not mounted");
    }
    // Uses the v2 device filter even if v1 has a devices hierarchy.
    host.cgroups.v1.remove("devices");
    // First argument of the refused bpf(2) call: BPF_PROG_LOAD or BPF_PROG_ATTACH.
    for (refuse, call) in [(5, "bpf(BPF_PROG_LOAD, "), (8, "bpf(BPF_PROG_ATTACH, ")] {
        for errno in [ENOSYS, EPERM, EINVAL] {
            let refuse = only(libc::SYS_bpf, 0, refuse).with(errno);
            let traces = Traces::before();
            let sandbox = traces.sandbox().host(&host);
            let (report, status) = refuse.during(|| {
                let task = sandbox.spawn().unwrap();
                (task.report().clone(), task.wait().unwrap())
            });
            assert!(status.success() && report.enforced.contains(Control::DEVICES), "{status} {report}");
            let why = report.why(Control::DEVICES);
            assert!(
                why.starts_with(
                    "enforced by nodev mounts and a read-only /dev only, without a device cgroup: bpf("
                ),
                "{why}"
            );
            assert!(why.ends_with(&io::Error::from_raw_os_error(errno).to_string()), "{why}");
            traces.are_gone("optional");

            let sandbox = traces.sandbox().host(&host).with(|s| s.device_cgroup = Some(true));
            let error = refuse.during(|| sandbox.spawn().map(drop)).unwrap_err();
            let Error::Unsupported { control: Control::DEVICES, reason } = &error else { panic!("{error}") };
            assert!(reason.starts_with("there is no device cgroup: ") && reason.contains(call), "{reason}");
            traces.are_gone("required");
        }
    }
}

/// Without seccomp filters the task runs only with best effort. The report calls the controls that they enforce
/// missing.
#[test]
fn seccomp_filters_may_be_missing_only_with_best_effort() {
    let _alone = alone();
    if !sandboxes() {
        return;
    }
    for errno in [ENOSYS, EINVAL] {
        let traces = Traces::before();
        let sandbox = traces.sandbox().require(Require::BestEffort);
        let (report, status) = all(libc::SYS_seccomp).with(errno).during(|| {
            let task = sandbox.spawn().unwrap();
            (task.report().clone(), task.wait().unwrap())
        });
        assert!(status.success(), "{status}");
        assert_eq!(report.missing, Control::NO_USER_NS | Control::SYSCALLS, "{report}");
        assert_eq!(report.asked, report.enforced | report.weakened | report.missing);
        let why = report.why(Control::NO_USER_NS);
        assert!(why.starts_with("seccomp(SECCOMP_SET_MODE_FILTER"), "{why}");
        assert!(why.ends_with(&io::Error::from_raw_os_error(errno).to_string()), "{why}");
        traces.are_gone("best effort");
        for require in [Require::Asked, Control::CAPS.into(), Control::NO_USER_NS.into()] {
            let traces = Traces::before();
            let sandbox = traces.sandbox().require(require);
            let error = all(libc::SYS_seccomp).with(errno).during(|| sandbox.spawn().map(drop)).unwrap_err();
            assert_eq!(kind(&error), Kind::Setup, "{error}");
            traces.are_gone("required");
        }
    }
}

/// A refused signal or wait is an error with the kernel's errno. A thread without the filter can still kill the task
/// and wait for it.
#[test]
fn refused_signal_or_wait_is_an_error_and_the_task_stays_usable() {
    let _alone = alone();
    if !sandboxes() {
        return;
    }
    let running = |traces: &Traces| -> Task {
        let task = traces.sandbox().with(|s| (s.command, s.args) = ("sleep".into(), vec!["1000".into()]));
        task.spawn().unwrap()
    };
    let told = |result: Result<(), Error>, message: &str, errno: i32| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Task { .. }), "{error:?}");
        assert_eq!(error.to_string(), message);
        let source = error.source().and_then(|s| s.downcast_ref::<io::Error>()).unwrap();
        assert_eq!(source.raw_os_error(), Some(errno));
    };
    for errno in [ENOSYS, EPERM] {
        let traces = Traces::before();
        let task = running(&traces);
        all(libc::SYS_pidfd_send_signal).with(errno).during(|| {
            told(task.signal(Signal::TERM), "pidfd_send_signal(SIGTERM)", errno);
            told(task.kill(), "pidfd_send_signal(SIGKILL)", errno);
        });
        all(libc::SYS_waitid).with(errno).during(|| {
            told(task.try_wait().map(drop), "waitid(P_PIDFD)", errno);
            told(task.wait().map(drop), "waitid(P_PIDFD)", errno);
        });
        assert_eq!(task.try_wait().unwrap(), None);
        task.kill().unwrap();
        assert_eq!(task.wait().unwrap().signal, Some(libc::SIGKILL));
        drop(task);
        traces.are_gone("task");
    }
}
