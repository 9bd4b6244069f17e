//! The task as a process: its command, descriptors, resource limits, OOM score, and PID 1.

use super::*;
use crate::filter::{Action, Filter, Profile, Rule};

#[test]
fn a_command_is_looked_up_in_order() {
    for (command, expected) in [
        ("tool", &["/local/tool", "/tool", "/usr/local/bin/tool", "/usr/bin/tool", "/bin/tool"][..]),
        ("/usr/bin/tool", &["/usr/bin/tool"]),
        ("bin/tool", &["/work/bin/tool", "/local/bin/tool", "/bin/tool"]),
        ("//tool", &["//tool"]),
        ("./tool", &["/work/./tool", "/local/./tool", "/./tool"]),
        ("../tool", &["/work/../tool", "/local/../tool", "/../tool"]),
    ] {
        let found = case(|c| (c.spec.command, c.spec.work_dir) = (command.into(), Some("/work".into())));
        let plan = check(&found, "");
        let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
        assert_eq!(plan.candidates, expected, "{command}");
        assert_eq!(plan.command, command);
        let found = plan.init.iter().filter_map(Step::op).find_map(|op| match op {
            Op::Find { candidates } => {
                Some(candidates.iter().map(|c| c.bytes().to_vec()).collect::<Vec<_>>())
            }
            _ => None,
        });
        assert_eq!(found.unwrap(), expected.iter().map(|c| c.as_os_str().as_bytes()).collect::<Vec<_>>());
    }
    let args = case(|c| c.spec.args = ["-v", "", "a b"].map(Into::into).into());
    check(&args, "execve(it, 3 more arguments)");
}

#[test]
fn invalid_strings_and_umasks_are_refused() {
    type Set = fn(&mut SandboxSpec);
    let table: [(Set, &str); 9] = [
        (|s| s.command.clear(), "spec command: command: no command is given"),
        (|s| s.command = "a\0b".into(), "spec command: command: \"a\\0b\" contains a NUL byte"),
        (|s| s.command = "x".repeat(4001).into(), "spec command: command: it is longer than 4000 bytes"),
        (|s| s.args = vec!["a\0".into()], "spec args: args: \"a\\0\" contains a NUL byte"),
        (|s| drop(s.env.insert("A".into(), "\0".into())), "spec env: env: \"\\0\" contains a NUL byte"),
        (|s| drop(s.env.insert("A\0".into(), "".into())), "spec env: env: \"A\\0\" contains a NUL byte"),
        (
            |s| drop(s.env.insert("".into(), "x".into())),
            "spec env: env: \"\" is not a valid name of an environment variable",
        ),
        (
            |s| drop(s.env.insert("A=B".into(), "x".into())),
            "spec env: env: \"A=B\" is not a valid name of an environment variable",
        ),
        (|s| s.umask = 0o1000, "spec umask: umask: 1000 is greater than 777"),
    ];
    for (set, expected) in table {
        refused(&case(|c| set(&mut c.spec)), expected);
    }
}

#[test]
fn the_id_must_be_a_single_safe_path_component() {
    let named = |id: &str| case(|c| c.spec.id = Some(id.into()));
    assert_eq!(check(&case(|_| ()), "").id, "box");
    let plan = check(
        &named("job-1_web.2"),
        "mkdir(\"/sys/fs/cgroup/cofferdam.slice/share.slice/job-1_web.2.scope\", 0711)",
    );
    assert_eq!(plan.id, "job-1_web.2");
    check(&named(&"x".repeat(128)), "");
    for id in ["../x", "a/b", ".", ".hidden", "a b", "a\n", "ü", &"x".repeat(129)] {
        let why =
            "is not a valid name: use 1 to 128 letters, digits, '.', '_' or '-', and no '.' at the start";
        refused(&named(id), &format!("spec id: id: {id:?} {why}"));
    }
}

#[test]
fn init_stays_as_pid_1_in_a_private_pid_namespace() {
    let staying = |init, pid: &str| case(|c| (c.spec.init, c.spec.pid_mode) = (init, mode(pid)));
    let plan = check(
        &staying(true, "private"),
        "chdir(\"/\")
         # stay as PID 1, continue in a child process
         signalfd4(SIGCHLD)
         socketpair(AF_UNIX, SOCK_SEQPACKET)
         clone(CLONE_PIDFD)
         close_range(all others)
         prctl(PR_CAPBSET_DROP, each of 0xa80405fb)
         setgroups(0, [])
         setresgid(65533, 65533, 65533)
         setresuid(65533, 65533, 65533)
         prctl(PR_SET_DUMPABLE, 0)
         prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
         capset(effective=0, permitted=0, inheritable=0)
         prctl(PR_SET_NO_NEW_PRIVS, 1)
         seccomp(...
         sendto(the child, \"g\")
         # find the command
         # wait until PID 1 has given up its privileges
         recvfrom(PID 1, \"g\")
         # seccomp filter
         seccomp(...
         # execute the command",
    );
    // Without a filter that refuses them to the task, both processes load one that refuses new user namespaces.
    let mut open = staying(true, "private");
    open.spec.filter = Filter::None;
    check(
        &open,
        "# filter of PID 1 and the task\n seccomp(...\n # stay as PID 1, continue in a child process",
    );
    let unshare = Rule::new(&["unshare"], Vec::new(), Action::Allow);
    open.spec.filter = Filter::Profile(Profile { rules: vec![unshare], ..Profile::default() });
    check(
        &open,
        "# filter of PID 1 and the task\n seccomp(...\n # stay as PID 1, continue in a child process",
    );
    let other = Rule::new(&["ptrace"], Vec::new(), Action::Kill);
    open.spec.filter = Filter::Profile(Profile { rules: vec![other], ..Profile::default() });
    check(&open, "! filter of PID 1 and the task");
    assert!(order::has_pid_1(&plan));
    // PID 1 has another user than the task, so that it does not count as one of that user's processes.
    let same = case(|c| c.survey.identity.uid = 65533);
    check(
        &same,
        "setresgid(65533, 65533, 65533)\n setresuid(65532, 65532, 65532)\n prctl(PR_SET_DUMPABLE, 0)",
    );
    for case in [staying(false, "private"), staying(true, "host"), staying(false, "host")] {
        assert!(!order::has_pid_1(&check(&case, "! PID 1")));
    }
    // PID 1 is in the task's cgroup, but does not count against the task's limit.
    let limited = |init| {
        let mut case = staying(init, "private");
        case.spec.limits.pids_max = Some(5);
        case
    };
    let file = "/sys/fs/cgroup/cofferdam.slice/share.slice/box.scope/pids.max";
    check(&limited(true), &format!("write({file:?}, \"6\")"));
    check(&limited(false), &format!("write({file:?}, \"5\")"));
}

#[test]
fn resource_limits_are_set_before_capabilities_are_dropped() {
    let limited = |limits: &[(&str, Option<u64>, Option<u64>)]| {
        case(|c| {
            c.spec.rlimits = limits
                .iter()
                .map(|(n, soft, hard)| (n.parse().unwrap(), Rlimit { soft: *soft, hard: *hard }))
                .collect();
        })
    };
    check(
        &limited(&[("nofile", Some(64), Some(128)), ("core", Some(0), None), ("memlock", None, None)]),
        "sendto(the child, \"g\")
         # resource limit
         prlimit64(0, RLIMIT_CORE, {0, RLIM64_INFINITY})
         prlimit64(0, RLIMIT_MEMLOCK, {RLIM64_INFINITY, RLIM64_INFINITY})
         prlimit64(0, RLIMIT_NOFILE, {64, 128})
         # capabilities
         enforced  mount_ns,pid_ns,ipc_ns,root_switch,host_files,masked_paths,devices,ids,caps,no_new_privs,rlimits,...",
    );
    check(&case(|_| ()), "! prlimit64\n! rlimits");
    // The kernel counts no processes of user 0, which a task with CAP_SETUID can become.
    let weakened = |names: &[&str]| {
        let mut case = limited(&[("nproc", Some(5), Some(5))]);
        case.spec.cap_drop = strings(names);
        compiled(&case).unwrap().report.weakened.contains(Control::RLIMITS)
    };
    assert_eq!((weakened(&[]), weakened(&["setuid"])), (true, false));
    for resource in Resource::ALL {
        check(&limited(&[(&resource.to_string(), Some(1), Some(1))]), "prlimit64...");
    }
    for (soft, hard) in [(Some(2), Some(1)), (None, Some(1))] {
        refused(
            &limited(&[("cpu", soft, hard)]),
            "spec rlimits: rlimits: cpu: the soft limit exceeds the hard limit",
        );
    }
    refused(
        &limited(&[("cpu", Some(0), Some(0))]),
        "spec rlimits: rlimits: cpu: a hard limit of 0 seconds ends the task before its command is executed",
    );
}

#[test]
fn the_oom_score_does_not_depend_on_the_callers() {
    let score = |wanted| case(|c| c.spec.oom_score_adj = Some(wanted));
    // The kernel may refuse to lower the score. The spec asks for none, so the spawn continues.
    check(
        &case(|_| ()),
        "# oom_score_adj (may be refused)
         openat(\"/proc/self/oom_score_adj\", O_WRONLY)
         write(\"/proc/self/oom_score_adj\", \"0\")
         # new session",
    );
    check(&score(-1000), "write(\"/proc/self/oom_score_adj\", \"-1000\")");
    for (require, optional) in [
        (None, true),
        (Some(Require::BestEffort), true),
        (Some(Require::Asked), true),
        (Some(Require::These(Control::CAPS)), true),
        (Some(Require::These(Control::OOM_SCORE)), false),
        (Some(Require::Full), false),
    ] {
        let case = case(|c| c.spec.require = require);
        let plan = check(&case, "write(\"/proc/self/oom_score_adj\", \"0\")");
        let step = plan.init.iter().find(|step| step.control == Control::OOM_SCORE);
        assert_eq!(step.unwrap().may_be_refused(), optional, "{require:?}");
    }
    // A score that the spec asks for must be set.
    let asked = check(&score(0), "");
    let step = asked.init.iter().find(|step| step.control == Control::OOM_SCORE);
    assert!(!step.unwrap().may_be_refused());
    for wrong in [1001, -1001] {
        let why = format!("spec oom_score_adj: oom_score_adj: {wrong} is not within -1000 to 1000");
        refused(&score(wrong), &why);
    }
}

#[test]
fn the_umask_is_set_just_before_the_exec() {
    check(&case(|_| ()), "umask(000)\nchdir(\"/\")\ngetcwd()\numask(022)\n# execute the command");
    check(&case(|c| c.spec.umask = 0o077), "umask(077)");
    check(&case(|c| c.spec.umask = 0o777), "umask(777)");
}

#[test]
fn descriptors_are_numbered_and_limited() {
    let given = |fds: &[(i32, u32)]| {
        case(|c| c.spec.fds = fds.iter().map(|(from, to)| Fd::new(caller_fd(*from), *to)).collect())
    };
    let plan = check(&given(&[(40, 9), (41, 3), (40, 1023)]), "dup3(to 0, 1, 2, 3, 9, 1023)");
    let caller = |plan: &Plan| plan.handed().filter(|h| matches!(h, Handed::Caller(_))).count();
    assert_eq!(
        plan.handed().skip(1).take(3).cloned().collect::<Vec<_>>(),
        [Handed::Caller(40), Handed::Caller(41), Handed::Caller(40)]
    );
    for wrong in [0, 2, 1024, u32::MAX] {
        refused(&given(&[(40, wrong)]), &format!("spec fds: fds: {wrong} is not within 3 to 1023"));
    }
    refused(&given(&[(40, 9), (41, 9)]), "spec fds: fds: two descriptors are given for number 9");
    let many = |n: u32| given(&(0..n).map(|i| (3, 3 + i)).collect::<Vec<_>>());
    assert_eq!(caller(&check(&many(197), "")), 197);
    refused(&many(198), "spec fds: fds: more than 197 descriptors");
    // The most descriptors that a plan can hand over are no more than init accepts.
    let mut most = many(197);
    most.host.cgroups = v1();
    most.spec.network = Network::Path("/run/netns/x".into());
    most.spec.limits = everything_limited();
    assert!(check(&most, "").handed().count() <= step::wire::FDS as usize);
}

fn everything_limited() -> cgroup::Limits {
    let (cpu_shares, memory, pids_max) = (Some(512), Some(64 << 20), Some(10));
    cgroup::Limits {
        cpu_shares,
        cores: "0-1".parse().unwrap(),
        memory,
        pids_max,
        ..cgroup::Limits::default()
    }
}

#[test]
fn every_kind_of_standard_stream_is_handed_over() {
    type Set = fn(&mut SandboxSpec, Stdio);
    let table: [(Set, &str); 3] =
        [(|s, v| s.stdin = v, "stdin"), (|s, v| s.stdout = v, "stdout"), (|s, v| s.stderr = v, "stderr")];
    for (set, field) in table {
        let fd = |number| Stdio::Fd(caller_fd(number));
        for stdio in [Stdio::Null, Stdio::Inherit, Stdio::Piped, fd(0), fd(9)] {
            check(&case(|c| set(&mut c.spec, stdio)), "dup3(to 0, 1, 2)");
        }
        let wrong = case(|c| set(&mut c.spec, fd(-1)));
        refused(&wrong, &format!("spec {field}: {field}: -1 is not an open file descriptor"));
    }
}

#[test]
fn gate_is_right_before_the_task_s_filter_and_the_exec() {
    let gate = "# wait until the caller lets the command go
  sendto(status) # by way of the process of init that stays, if there is one
  ppoll(status, pidfd of the caller)
  recvfrom(status)
# seccomp filter";
    for init in [true, false] {
        let plan = check(&case(|c| (c.spec.command, c.spec.init) = ("/usr/bin/tool".into(), init)), "");
        assert!(!plan.to_string().contains("lets the command go"));
        let text = plan.gated().unwrap().to_string();
        assert!(text.contains(gate), "{text}");
        let parent = "# wait until the command can be executed
# check again whether CPUs are reserved
# let the command go, when the caller has stored the handle
  sendto(status)
# wait until the command runs
";
        assert!(text.contains(parent), "{text}");
    }
}

#[test]
fn plan_with_as_many_descriptors_as_init_takes_has_no_gate() {
    let mut plan = check(&case(|_| ()), "");
    let hand = plan.parent.iter().position(|step| matches!(step.op, ParentOp::Hand(_))).unwrap();
    while plan.handed().count() < step::wire::FDS as usize {
        plan.parent.insert(hand, Step::of(Control::MOUNT_NS, ParentOp::Hand(Handed::Nothing)));
    }
    assert!(matches!(plan.gated(), Err(Error::Spec { .. })));
}
