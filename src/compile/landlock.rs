//! The Landlock domain of a task (`landlock(7)`). A task gets one if it shares with the host something that no
//! namespace isolates.
//!
//! A process in a domain cannot trace a process outside of it, nor follow that process's `/proc/PID/root`, `cwd`, `fd`
//! and `exe`, whatever its user and capabilities. A domain can also block signals and abstract unix sockets to the
//! outside (ABI 6, Linux 6.12). A domain cannot be joined: a process that enters the sandbox later gets a domain of its
//! own, and cannot trace the task either. So only tasks that need a domain get one.

use crate::caps::Sets;
use crate::host::Host;
use crate::ns::{IsolationMode, Namespaces, Network};
use crate::report::Control;
use crate::spec::SandboxSpec;
use crate::step::wire::Op;
use crate::step::{Enter, InitStep};

/// The ruleset of a domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Domain {
    fs: u64,
    scoped: u64,
}

const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1;
const SCOPE_SIGNAL: u64 = 2;
const ACCESS_FS_MAKE_BLOCK: u64 = 1 << 11;
/// Renaming and linking across directories (ABI 2, Linux 5.19). Every domain refuses it unless it is allowed
/// explicitly.
const ACCESS_FS_REFER: u64 = 1 << 13;

impl Domain {
    /// `shown` says whether a source shows the processes of the host.
    pub(super) fn of(host: &Host, spec: &SandboxSpec, ns: &Namespaces, sets: Sets, shown: bool) -> Domain {
        let processes = ns.pid == IsolationMode::Host;
        let traces = processes || shown || sets.bounding.has("sys_ptrace");
        let sockets = ns.network != Network::None;
        if host.landlock_abi >= 6 {
            let scoped = if processes { SCOPE_SIGNAL } else { 0 };
            // The kernel refuses an empty ruleset. If only traces must be blocked, the scope of abstract sockets makes
            // it non-empty: in a network namespace of its own, that scope restricts nothing.
            let scoped = scoped | if sockets || traces { SCOPE_ABSTRACT_UNIX_SOCKET } else { 0 };
            return Domain { fs: 0, scoped };
        }
        // Processes in a domain that handles file access cannot mount.
        let mounts = spec.user_namespaces || sets.bounding.has("sys_admin");
        if host.landlock_abi >= 2 && traces && !mounts {
            return Domain { fs: ACCESS_FS_MAKE_BLOCK | ACCESS_FS_REFER, scoped: 0 };
        }
        Domain::default()
    }

    /// Whether the domain blocks tracing of processes outside, and access to their files through `/proc`.
    pub(super) fn keeps_traces(self) -> bool {
        self != Domain::default()
    }

    /// Whether the domain blocks signals to processes outside.
    pub(super) fn keeps_signals(self) -> bool {
        self.scoped & SCOPE_SIGNAL != 0
    }

    /// Whether the domain blocks connections to abstract unix sockets outside.
    pub(super) fn keeps_sockets(self) -> bool {
        self.scoped & SCOPE_ABSTRACT_UNIX_SOCKET != 0
    }

    /// The step that enters the domain; `None` if the task needs no domain.
    pub(super) fn step(self) -> Option<InitStep> {
        let Domain { fs, scoped } = self;
        self.keeps_traces()
            .then(|| InitStep::new(Control::PID_NS, Op::Landlock { fs, scoped }).entering(Enter::Inside))
    }
}
