//! The Landlock domain of a task (`landlock(7)`): where it shares something with the host that nothing else keeps apart.
//!
//! A process in a domain may not trace one outside, nor follow its `/proc/PID/root`, `cwd`, `fd` and `exe`, whatever its
//! user and its capabilities are. A domain can also be made to keep signals and abstract unix sockets within (ABI 6, Linux
//! 6.12). A domain is not joined: whoever enters the sandbox later is as much outside. So only who needs one gets one.

use crate::caps::Sets;
use crate::host::Host;
use crate::ns::{IsolationMode, Namespaces, Network};
use crate::report::Control;
use crate::spec::SandboxSpec;
use crate::step::wire::Op;
use crate::step::{Enter, InitStep};

/// What a domain keeps within.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Domain {
    fs: u64,
    scoped: u64,
}

const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1;
const SCOPE_SIGNAL: u64 = 2;
const ACCESS_FS_MAKE_BLOCK: u64 = 1 << 11;
/// Renaming and linking across directories (ABI 2, Linux 5.19). It is refused in every domain that does not allow it.
const ACCESS_FS_REFER: u64 = 1 << 13;

impl Domain {
    pub(super) fn of(host: &Host, spec: &SandboxSpec, ns: &Namespaces, sets: Sets) -> Domain {
        let processes = ns.pid == IsolationMode::Host;
        let traces = processes || sets.bounding.has("sys_ptrace");
        let sockets = ns.network != Network::None;
        if host.landlock_abi >= 6 {
            let scoped = if processes { SCOPE_SIGNAL } else { 0 };
            // A domain must handle something. In an empty network the scope of abstract sockets costs nothing.
            let scoped = scoped | if sockets || traces { SCOPE_ABSTRACT_UNIX_SOCKET } else { 0 };
            return Domain { fs: 0, scoped };
        }
        // A domain that handles files: its members can mount nothing.
        let mounts = spec.user_namespaces || sets.bounding.has("sys_admin");
        if host.landlock_abi >= 2 && traces && !mounts {
            return Domain { fs: ACCESS_FS_MAKE_BLOCK | ACCESS_FS_REFER, scoped: 0 };
        }
        Domain::default()
    }

    /// Whether no process outside can be traced, nor its files be reached through `/proc`.
    pub(super) fn keeps_traces(self) -> bool {
        self != Domain::default()
    }

    /// Whether no process outside can be signalled.
    pub(super) fn keeps_signals(self) -> bool {
        self.scoped & SCOPE_SIGNAL != 0
    }

    /// Whether no abstract socket outside can be reached.
    pub(super) fn keeps_sockets(self) -> bool {
        self.scoped & SCOPE_ABSTRACT_UNIX_SOCKET != 0
    }

    /// The step that enters it.
    pub(super) fn step(self) -> Option<InitStep> {
        let Domain { fs, scoped } = self;
        self.keeps_traces()
            .then(|| InitStep::new(Control::PID_NS, Op::Landlock { fs, scoped }).entering(Enter::Inside))
    }
}
