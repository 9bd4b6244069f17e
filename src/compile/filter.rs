//! The system call filters of a task: which ones are loaded, when, and what they leave open.

use std::sync::Arc;

use crate::caps::Sets;
use crate::error::{Error, Result};
use crate::filter::{
    Action, Arch, Base, Compare, CompiledFilter, Filter, Grants, Is, Profile, Rule, compiled, number,
};
use crate::ns::{IsolationMode, Namespaces, Network};
use crate::plan::MustHold;
use crate::report::Control;
use crate::spec::{Policy, SandboxSpec};
use crate::step::wire::{Blob, Op};
use crate::step::{Draft, Enter, InitStep};

/// The filters of a task.
pub(super) struct Filters {
    /// Whether the task can neither create nor join a user namespace.
    shut: bool,
    /// Whether the task can mount the cgroup file system.
    mounts_cgroups: bool,
    /// Refuses creating and joining user namespaces, if the task's own filter does not; or new cgroup namespaces, if the
    /// task may create user namespaces. PID 1 and the task both load it.
    common: Option<Arc<CompiledFilter>>,
    /// The filter that only the task loads. PID 1 has one of its own, which allows no more than reaping.
    own: Option<Arc<CompiledFilter>>,
    /// The task's own filter, which also allows what a process needs to enter the task's PID namespace.
    entry: Option<Arc<CompiledFilter>>,
}

/// Chooses and compiles the filters.
///
/// # Errors
/// [`Error::Denied`] if the policy allows only the default profile. [`Error::Spec`] for an invalid profile.
pub(super) fn choose(policy: &Policy, spec: &SandboxSpec, sets: Sets, pid: IsolationMode) -> Result<Filters> {
    if !policy.allow_filters && spec.filter != Filter::Default {
        return Err(Error::denied(
            "filter: this host's policy allows only the default profile (allow_filters is off)",
        ));
    }
    let capabilities = sets.bounding.names().into_iter().collect();
    let grants = Grants {
        capabilities,
        user_namespaces: spec.user_namespaces,
        host_processes: pid == IsolationMode::Host,
        init: pid == IsolationMode::Private && spec.init,
    };
    let mounts_cgroups = sets.bounding.has("sys_admin");
    let shut = !spec.user_namespaces && !mounts_cgroups;
    let profile = spec.filter.profile();
    let common = match (shut, mounts_cgroups) {
        (true, _) if profile.as_ref().is_some_and(refuses_user_namespaces) => None,
        (true, _) => Some(no_user_namespaces(&grants)),
        (false, true) => None,
        (false, false) => Some(no_cgroup_namespaces()),
    };
    let common = common.map(|profile| compiled(profile, grants.clone())).transpose()?;
    let own = profile.map(|profile| compiled(profile, grants.clone())).transpose()?;
    let entry = spec.filter.profile().filter(|_| spec.no_new_privs && pid == IsolationMode::Private);
    let entry = entry.map(|profile| compiled(with_entry(profile), grants)).transpose()?;
    let filters = Filters { shut, mounts_cgroups, common, own, entry };
    if !filters.allows("execve", None) {
        return Err(Error::spec("filter", "the profile refuses execve(2), so no command can be executed"));
    }
    Ok(filters)
}

/// Whether a profile refuses all that [`no_user_namespaces`] refuses, to a task without `CAP_SYS_ADMIN` that may not create
/// user namespaces: the default profile does, unless a rule before its own says something else of these calls.
fn refuses_user_namespaces(profile: &Profile) -> bool {
    let changed = |rule: &Rule| rule.calls.iter().any(|name| USER_NAMESPACES.contains(&name.as_str()));
    profile.base == Base::Default && !profile.rules.iter().any(changed)
}

/// The calls that create or join user namespaces.
const USER_NAMESPACES: [&str; 5] = ["clone", "unshare", "clone3", "setns", "open_by_handle_at"];

/// A profile that refuses creating and joining user namespaces, in which a process has every capability. A filter
/// cannot read the flags of `clone3`, which are behind a pointer: the call fails with ENOSYS, and C libraries fall back
/// to `clone`.
pub(super) fn no_user_namespaces(grants: &Grants) -> Profile {
    const CLONE_NEWUSER: u32 = 0x1000_0000;
    let mut joins = vec!["setns"];
    if !grants.capabilities.contains("dac_read_search") {
        joins.push("open_by_handle_at");
    }
    let rules = vec![
        Rule::new(&["clone", "unshare"], vec![Compare::any_of(0, CLONE_NEWUSER)], Action::Errno(1)),
        Rule::new(&joins, Vec::new(), Action::Errno(1)),
        Rule::new(&["clone3"], Vec::new(), Action::Errno(38)),
    ];
    Profile { base: Base::Action(Action::Allow), rules, i386: true }
}

/// A profile that refuses new cgroup namespaces. In one that its own user namespace owns, a task could mount the cgroup file
/// system. On cgroup v1 that shows the caller's cgroups of each hierarchy in which the task has none, and there the task
/// could freeze itself and the caller, so that no signal ends it. `clone3` fails as in [`no_user_namespaces`].
fn no_cgroup_namespaces() -> Profile {
    const CLONE_NEWCGROUP: u32 = 0x0200_0000;
    let rules = vec![
        Rule::new(&["clone", "unshare"], vec![Compare::any_of(0, CLONE_NEWCGROUP)], Action::Errno(1)),
        Rule::new(&["clone3"], Vec::new(), Action::Errno(38)),
    ];
    Profile { base: Base::Action(Action::Allow), rules, i386: true }
}

/// The calls that init makes between the filter of a process that joins a task, and the task's own filter, and those of the
/// process that stays beside the command. None of them gives a privilege.
const ENTRY: [&str; 26] = [
    "setsid",
    "rt_sigprocmask",
    "signalfd4",
    "socketpair",
    "close",
    "close_range",
    "prctl",
    "recvfrom",
    "sendto",
    "sendmsg",
    "capset",
    "seccomp",
    "munmap",
    "mmap",
    "ppoll",
    "wait4",
    "clock_gettime",
    "read",
    "statx",
    "dup3",
    "execve",
    "exit_group",
    "rt_sigreturn",
    "restart_syscall",
    "rt_sigaction",
    "nanosleep",
];

/// A profile that also allows the calls by which a process enters the task's PID namespace, a fork among them, and by which
/// the process that stays outside ends it.
fn with_entry(mut profile: Profile) -> Profile {
    /// `CLONE_NEW*` and `CLONE_PARENT`.
    const REFUSED: u64 = 0x7e02_8080;
    let fork = Compare { mask: REFUSED, ..Compare::int(0, Is::Eq, 0) };
    let controlling = Compare::int(1, Is::Eq, TIOCSCTTY);
    // Not its process group, which is outside at first.
    let ending = vec![Compare::int(0, Is::Ne, 0), Compare::int(1, Is::Eq, libc::SIGKILL.unsigned_abs())];
    let rules = [
        Rule::new(&["kill"], ending, Action::Allow),
        Rule::new(&["ioctl"], vec![controlling], Action::Allow),
        Rule::new(&["clone"], vec![fork], Action::Allow),
        Rule::new(&ENTRY, Vec::new(), Action::Allow),
    ];
    profile.rules.splice(0..0, rules);
    profile
}

impl Filters {
    /// The steps by which a process that has joined the task's namespaces forks into its PID namespace. From its fork on,
    /// a task with `CAP_SYS_PTRACE` can take control of the child. So the child has the task's ids, capabilities and
    /// filter already. Only the calls that it and its parent need to continue are allowed in addition. The child then loads
    /// the task's own filter. The index of the caller's pidfd is 0.
    pub(super) fn fork_inside(&self, must_hold: &MustHold) -> Vec<InitStep> {
        let program = self.entry.as_ref().map(|filter| filter.program.bytes());
        let load = program.map(|program| {
            step(must_hold, (Control::SYSCALLS, Enter::Inside), Op::Filter { program: Blob(&program) })
        });
        let fork = InitStep::new(Control::PID_NS, Op::ForkInside { caller: 0 });
        load.into_iter().chain([fork]).collect()
    }

    /// Adds the step that loads the common filter, before PID 1 forks, if the task's own filter does not serve. `freezer`
    /// is whether the caller can change the freezer of cgroup v1.
    pub(super) fn common(&self, must_hold: &MustHold, freezer: bool, draft: &mut Draft) {
        if self.mounts_cgroups {
            let limits = draft.report.enforced & (Control::RESOURCES | Control::DEADLINES);
            let why = "the task can mount the cgroup file system, and change limits there if it owns the files or has CAP_DAC_OVERRIDE";
            match limits.is_empty() {
                true => draft.report.note(Control::RESOURCES, why),
                false => draft.report.weaken(limits, why),
            }
            if freezer {
                let why = "the task can mount the freezer of cgroup v1, and no signal ends a process that is frozen there";
                let ends = Control::KILL | Control::DEADLINES | Control::EXIT_RECORD;
                draft.report.weaken(draft.report.asked & ends, why);
            }
            return;
        }
        if self.shut {
            draft.report.enforce(Control::NO_USER_NS);
        }
        let Some(filter) = &self.common else { return };
        let control = if self.shut { Control::NO_USER_NS } else { Control::KILL };
        let program = filter.program.bytes();
        let op = Op::CommonFilter { program: Blob(&program) };
        draft.init.push(step(must_hold, (control, Enter::Inside), op));
    }

    /// The step that loads the task's own filter, if the spec has one.
    pub(super) fn own(
        &self,
        must_hold: &MustHold,
        spec: &SandboxSpec,
        draft: &mut Draft,
    ) -> Option<InitStep> {
        let filter = self.own.as_ref()?;
        draft.report.enforce(Control::SYSCALLS);
        // Without no_new_privs, loading a filter needs CAP_SYS_ADMIN, which is dropped before the `Last` steps.
        let at = if spec.no_new_privs { Enter::Last } else { Enter::Inside };
        let program = filter.program.bytes();
        let op = Op::Filter { program: Blob(&program) };
        let alone = self.shut && self.common.is_none();
        let control = if alone { Control::SYSCALLS | Control::NO_USER_NS } else { Control::SYSCALLS };
        Some(step(must_hold, (control, at), op))
    }

    /// Whether the filters allow the call for at least some arguments. If one argument is known, `known` is its index
    /// and its lower 32 bits.
    pub(super) fn allows(&self, name: &str, known: Option<(u8, u32)>) -> bool {
        let filters = [&self.common, &self.own];
        let made = |arch| {
            number(arch, name).is_some()
                && filters.into_iter().flatten().all(|filter| filter.may_execute(arch, name, known))
        };
        Arch::ALL.into_iter().any(made)
    }

    /// Whether the task may change the limits of a process of init. That is PID 1 in a PID namespace of the task's own, and
    /// any number in the host's: some are asked for, since a filter may know one only.
    pub(super) fn limits_others(&self, ns: &Namespaces) -> bool {
        let pids: &[u32] = match ns.pid {
            IsolationMode::Private => &[1],
            IsolationMode::Host => &[1, 2, 300, 32_767, 4_194_303],
        };
        pids.iter().any(|pid| self.allows("prlimit64", Some((0, *pid))))
    }

    /// Adds to the report what the filters leave open.
    pub(super) fn leave_open(&self, ns: &Namespaces, draft: &mut Draft) {
        if self.own.is_none() {
            draft.report.note(Control::SYSCALLS, "no system call filter is loaded: the spec turns it off");
        }
        let keys = ["add_key", "keyctl", "request_key"];
        if let Some(name) = keys.into_iter().find(|name| self.allows(name, None)) {
            let why = format!(
                "{name}(2) is allowed: the keyrings of the task's user are shared with the host and with other tasks"
            );
            draft.report.note(Control::SYSCALLS, why);
        }
        // socketcall(2) of 32-bit programs has the address family behind a pointer, which a filter cannot read.
        let vsock =
            self.allows("socket", Some((0, AF_VSOCK))) || self.allows("socketcall", Some((0, SYS_SOCKET)));
        if ns.network != Network::Host && vsock {
            draft.report.weaken(
                Control::NET_NS & draft.report.asked,
                "AF_VSOCK sockets are allowed: they are not confined by the network namespace",
            );
        }
        if self.mounts_cgroups && self.allows("setns", None) && self.allows("open_by_handle_at", None) {
            let joined = Control::PID_NS | Control::IPC_NS | Control::NET_NS | Control::UTS_NS;
            draft.report.weaken(
                joined & draft.report.enforced,
                "setns(2) and open_by_handle_at(2) are allowed: with CAP_SYS_ADMIN the task can join the host's namespaces (Linux 6.18)",
            );
        }
        if ns.pid == IsolationMode::Host && self.limits_others(ns) {
            draft.report.weaken(
                Control::KILL & draft.report.asked,
                "prlimit64(2) for other processes is allowed: in the host's PID namespace the task can lower its caller's limits of open files and CPU time",
            );
        }
        for (name, why) in OPEN {
            if self.allows(name, None) {
                draft.report.note(Control::SYSCALLS, format!("{name}(2) is allowed: {why}"));
            }
        }
        if self.allows("ioctl", Some((1, TIOCSTI))) {
            draft.report.note(
                Control::SYSCALLS,
                "ioctl(TIOCSTI) is allowed: the task can insert input into a terminal that it shares with the caller",
            );
        }
    }
}

const AF_VSOCK: u32 = 40;
const SYS_SOCKET: u32 = 1;
const TIOCSTI: u32 = 0x5412;
const TIOCSCTTY: u32 = 0x540e;

/// System calls that the default profile refuses to every task, and that other profiles may allow: name and reason.
const OPEN: [(&str, &str); 2] = [
    ("io_uring_setup", "seccomp filters do not see the operations that are requested through it"),
    ("userfaultfd", "it makes race conditions in the kernel exploitable"),
];

/// The step that loads a filter. A kernel without seccomp filters refuses it. The spawn then fails, unless best effort
/// was chosen.
fn step(must_hold: &MustHold, (control, at): (Control, Enter), op: Op<'_>) -> InitStep {
    let must = !must_hold.is_best_effort();
    let step = InitStep::new(control, op).entering(at);
    if must { step } else { step.optional() }
}
