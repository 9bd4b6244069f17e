//! Ring 3: an old or a hostile kernel, played by a seccomp filter on the test's own thread.
//!
//! The filter makes one system call fail; the child inherits it, so it reaches the caller's half of a
//! spawn and init's alike. Each row then asserts that the error is of the right kind, that its message is
//! the line of the plan, its source what the kernel said, and that nothing is left behind: no process, no
//! descriptor, no cgroup, no directory.
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

use cofferdam::{Control, Error, Host, Method, Network, Policy, Rlimit, Sandbox, Signal, Task};
use common::{can, descriptors, sandboxes};
use libc::{EACCES, EINVAL, ENOSYS, EPERM};

/// One system call that fails, if one of its arguments has a value.
#[derive(Clone, Copy)]
struct Refuse {
    call: libc::c_long,
    /// Index and lower half.
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

    /// The classic BPF program: every test that fails jumps to the last instruction.
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

    /// On the calling thread and all that it starts, for good.
    fn install(self) {
        let mut program = self.program();
        let program =
            libc::sock_fprog { len: u16::try_from(program.len()).unwrap(), filter: program.as_mut_ptr() };
        // SAFETY: the program outlives the calls, and the kernel checks it.
        let install = || unsafe {
            libc::syscall(libc::SYS_seccomp, 1 /* SET_MODE_FILTER */, 0, &raw const program)
        };
        if install() == 0 {
            return;
        }
        // Without CAP_SYS_ADMIN the thread must have given up on privileges.
        // SAFETY: PR_SET_NO_NEW_PRIVS takes numbers only.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
        assert_eq!(install(), 0, "{}", io::Error::last_os_error());
    }

    /// Does `work` on a thread of its own, under the filter.
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
fn the_filter_refuses_what_it_should_and_nothing_else() {
    let _alone = alone();
    let umask = |mask: libc::mode_t| {
        // SAFETY: umask takes a number. The whole process has one, which is put back.
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

/// What a spawn could leave behind.
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

    /// A sandbox that would leave them.
    fn sandbox(&self) -> Sandbox {
        let policy = Policy { temp_dir: self.temp.path().into(), ..Policy::default() };
        Sandbox::command("/bin/true").policy(&policy).with(|s| s.id.clone_from(&self.id))
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
    // SAFETY: all zeroes is a siginfo_t, and it outlives the call, which reaps nothing.
    let (ret, info) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        (libc::waitid(libc::P_ALL, 0, &raw mut info, options), info)
    };
    let errno = io::Error::last_os_error().raw_os_error();
    assert_eq!((ret, errno), (-1, Some(libc::ECHILD)), "there is a child, perhaps {info:?}");
}

fn find(dir: &Path, name: &str) -> Option<std::path::PathBuf> {
    // Other cgroups come and go meanwhile.
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let mut dirs = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path());
    dirs.find_map(|path| {
        let is_it = path.file_name().is_some_and(|n| n.to_string_lossy().contains(name));
        if is_it { Some(path) } else { find(&path, name) }
    })
}

/// What kind of error is expected.
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

/// Spawns under the filter, twice, and holds the error to what the plan says; `message` is how it begins.
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

/// A root in a directory that must be removed again.
fn copied(sandbox: Sandbox) -> Sandbox {
    sandbox.with(|s| {
        s.root.populate = Method::Copy;
        s.root.chroot_env = [("/etc/passwd".into(), "/etc/passwd".into())].into();
    })
}

#[test]
fn what_the_caller_does() {
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
fn what_init_does_before_it_has_a_root() {
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
fn what_init_does_to_the_root() {
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
        // Who may clones what is held; for others init does, of what is the same.
        match can("root") {
            true => refused(Prepare, "open_tree(held \"/", all(libc::SYS_open_tree), set),
            false => refused(Setup, "open_tree(opened \"/", all(libc::SYS_open_tree), set),
        }
        refused(Setup, "mount_setattr(\"/", all(libc::SYS_mount_setattr), set);
        refused(Setup, "pivot_root(\".\", \".\")", all(libc::SYS_pivot_root), set);
        // STATX_INO | STATX_MNT_ID; the parent asks for other things.
        refused(Setup, "statx(\"/..\", STATX_MNT_ID)", only(libc::SYS_statx, 3, 0x1100), set);
    }
    let first = if can("root") { "openat2(root, \"/" } else { "openat2(\"/" };
    refused(Setup, first, all(libc::SYS_openat2), as_it_is);
    let by_chroot: Set = |s| s.policy(&Policy { no_pivot_root: true, ..Policy::default() });
    refused(Setup, "chroot(\".\")", all(libc::SYS_chroot), by_chroot);
}

#[test]
fn what_init_does_to_itself() {
    let _alone = alone();
    if !sandboxes() {
        return;
    }
    use Kind::Setup;
    refused(Setup, "clone(CLONE_PIDFD)", all(libc::SYS_clone), as_it_is);
    let limited: Set = |s| {
        let none = Rlimit { soft: Some(0), hard: Some(0) };
        s.with(|s| s.rlimits = [("core".into(), none)].into())
    };
    refused(Setup, "prlimit64(0, 4, {0, 0})", all(libc::SYS_prlimit64), limited);
    // With init, and as PID 1 itself.
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

/// What is done otherwise, or not at all, in a user namespace.
#[test]
fn what_only_root_does() {
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
    // Wherever there is a cgroup to kill in.
    if Host::probe().unwrap().cgroups.mode != cofferdam::cgroup::Mode::Off {
        refused(Prepare, "mkdir(\"/", all(libc::SYS_mkdir), as_it_is);
    }
}

#[test]
fn what_looks_for_the_command_and_executes_it() {
    let _alone = alone();
    if !sandboxes() {
        return;
    }
    // The root asks for other things of statx.
    let looks = only(libc::SYS_statx, 3, libc::STATX_TYPE.cast_signed());
    for (call, program) in [(looks, "/bin/true"), (all(libc::SYS_execve), "/bin/true")] {
        for errno in [ENOSYS, EPERM] {
            let traces = Traces::before();
            let sandbox = traces.sandbox();
            let error = call.with(errno).during(|| sandbox.spawn().map(drop)).unwrap_err();
            assert_eq!(kind(&error), Kind::Exec, "{error}");
            assert_eq!(error.to_string(), format!("execve({program:?})"));
            let source = error.source().and_then(|s| s.downcast_ref::<io::Error>()).unwrap();
            // It is not "not found": nobody could look.
            assert_eq!((source.raw_os_error(), error.exit_code()), (Some(errno), 126));
            traces.are_gone(program);
        }
    }
}

/// The socket is how the two halves speak; the plan has no line for that.
#[test]
fn an_init_that_is_not_heard_is_no_running_task() {
    let _alone = alone();
    if !sandboxes() {
        return;
    }
    // One that stays has told by the descriptor that it sends once the command runs.
    let alone: Set = |s| s.with(|s| s.init = false);
    for (call, set, steps) in [
        (libc::SYS_recvmsg, as_it_is as Set, &["recvmsg(status)"][..]),
        // In a user namespace the caller speaks first.
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

/// Kernels before 6.3 know no MFD_EXEC; others forbid to execute memfds (`vm.memfd_noexec`); and there is
/// more that a spawn can do without.
#[test]
fn what_is_done_without() {
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

/// The host's programs, by copies of a directory for a root and binds for the rest.
fn copied_shell(sandbox: Sandbox) -> Sandbox {
    copied(sandbox).with(|s| {
        for dir in ["/bin", "/lib", "/lib64", "/usr"].into_iter().filter(|dir| Path::new(dir).exists()) {
            let (source, target, read_only) = (dir.into(), dir.into(), true);
            s.volumes.push(cofferdam::Volume { source, target, read_only, ..Default::default() });
        }
    })
}

#[test]
fn an_optional_step_degrades_into_the_report() {
    let _alone = alone();
    if !sandboxes() {
        return;
    }
    let own = Host::probe().unwrap().oom_score_adj;
    assert_ne!(own, -1000, "a score that no test should have");
    // Nothing else of a spawn without limits writes five bytes.
    let refuse = only(libc::SYS_write, 2, 5).with(EACCES);
    let lowered = |traces: &Traces| traces.sandbox().with(|s| s.oom_score_adj = -1000);
    let line = "write(\"/proc/self/oom_score_adj\", \"-1000\")";

    let traces = Traces::before();
    let sandbox = lowered(&traces);
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

    for require in [Control::OOM_SCORE, Control::OOM_SCORE | Control::CAPS] {
        let traces = Traces::before();
        let sandbox = lowered(&traces).require(require);
        let error = refuse.during(|| sandbox.spawn().map(drop)).unwrap_err();
        assert_eq!((kind(&error), error.to_string().as_str()), (Kind::Setup, line));
        traces.are_gone("required");
    }
}

/// A kernel without eBPF for cgroups, or a caller that may not use it: the mounts hold devices too.
#[test]
fn a_device_filter_is_required_if_the_spec_says_so() {
    let _alone = alone();
    if !can("root") {
        return;
    }
    let mut host = Host::probe().unwrap();
    if host.cgroups.v2.is_none() {
        return eprintln!("skipped: there is no cgroup v2 tree");
    }
    // On version 2 whatever else there is.
    host.cgroups.v1.remove("devices");
    // The command of bpf(2) that is refused: BPF_PROG_LOAD, BPF_PROG_ATTACH.
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
                why.starts_with("held by nodev mounts and a sealed /dev, by no device cgroup: bpf("),
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

/// A kernel without seccomp filters will do for an author who asks for best effort, or for other things.
#[test]
fn a_filter_is_required_unless_the_spec_says_otherwise() {
    let _alone = alone();
    if !sandboxes() {
        return;
    }
    for errno in [ENOSYS, EINVAL] {
        for require in [Control::empty(), Control::CAPS] {
            let traces = Traces::before();
            let sandbox = traces.sandbox().require(require);
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
        }
        let traces = Traces::before();
        let sandbox = traces.sandbox().require(Control::NO_USER_NS);
        let error = all(libc::SYS_seccomp).with(errno).during(|| sandbox.spawn().map(drop)).unwrap_err();
        assert_eq!(kind(&error), Kind::Setup, "{error}");
        traces.are_gone("required");
    }
}

/// A task is an ordinary value: who may not signal or wait for it gets told, and somebody else may.
#[test]
fn a_running_task_that_cannot_be_signalled_or_waited_for() {
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
