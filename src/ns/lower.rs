//! Turns namespaces into clone flags and steps.

use super::{IsolationMode, Namespaces, Network};
use crate::report::Control;
use crate::step::wire::Op;
use crate::step::{self, Draft, Handed};

const fn bit(flag: i32) -> u32 {
    flag.cast_unsigned()
}

/// Adds the steps that join and configure namespaces, before anything is mounted. Returns the `CLONE_NEW*` flags of the
/// clone.
pub(crate) fn join(ns: &Namespaces, draft: &mut Draft) -> u32 {
    let mut clone = bit(libc::CLONE_NEWNS);
    draft.report.enforce(Control::MOUNT_NS);
    if ns.user {
        clone |= bit(libc::CLONE_NEWUSER);
    }
    if ns.pid == IsolationMode::Private {
        clone |= bit(libc::CLONE_NEWPID);
        draft.report.enforce(Control::PID_NS);
    }
    if ns.ipc == IsolationMode::Private {
        clone |= bit(libc::CLONE_NEWIPC);
        draft.report.enforce(Control::IPC_NS);
    }
    clone |= network(ns, draft);
    if let Some(name) = &ns.uts {
        clone |= bit(libc::CLONE_NEWUTS);
        draft.build(Control::UTS_NS, Op::Hostname { name: step::text(name.as_bytes()) });
        draft.report.enforce(Control::UTS_NS);
    }
    clone
}

/// Adds the step that makes a cgroup namespace, after the task's cgroups are entered. The root of a namespace made by
/// the clone would be the caller's cgroup.
pub(crate) fn unshare(ns: &Namespaces, draft: &mut Draft) {
    if ns.cgroup {
        draft.build(Control::CGROUP_NS, Op::Unshare { flags: bit(libc::CLONE_NEWCGROUP) });
        draft.report.enforce(Control::CGROUP_NS);
    }
}

impl Namespaces {
    /// The namespaces that are not the caller's, as `CLONE_NEW*` flags.
    pub(crate) fn own(&self) -> u32 {
        [
            (true, libc::CLONE_NEWNS),
            (self.user, libc::CLONE_NEWUSER),
            (self.pid == IsolationMode::Private, libc::CLONE_NEWPID),
            (self.ipc == IsolationMode::Private, libc::CLONE_NEWIPC),
            (self.network != Network::Host, libc::CLONE_NEWNET),
            (self.uts.is_some(), libc::CLONE_NEWUTS),
            (self.cgroup, libc::CLONE_NEWCGROUP),
        ]
        .into_iter()
        .filter(|(own, _)| *own)
        .fold(0, |bits, (_, flag)| bits | bit(flag))
    }
}

fn network(ns: &Namespaces, draft: &mut Draft) -> u32 {
    match &ns.network {
        Network::Host => {
            draft.report.note(Control::NET_NS, "the task shares the host's network namespace");
            return 0;
        }
        Network::None => draft.build(Control::NET_NS, Op::Loopback {}),
        Network::Path(path) => {
            let fd = draft.hand(Handed::Namespace(path.clone()));
            let kind = bit(libc::CLONE_NEWNET);
            draft.build(Control::NET_NS, Op::Join { fd, kind, path: step::path(path) });
        }
    }
    draft.report.enforce(Control::NET_NS);
    if ns.network == Network::None { bit(libc::CLONE_NEWNET) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::namespaces;

    fn list(pid: IsolationMode, ipc: IsolationMode) -> String {
        let ns = Namespaces { pid, ipc, network: Network::Host, uts: None, cgroup: false, user: false };
        namespaces(join(&ns, &mut Draft::default()))
    }

    #[test]
    fn the_mount_namespace_is_always_new() {
        use IsolationMode::{Host, Private};
        assert_eq!(list(Host, Host), "CLONE_NEWNS");
        assert_eq!(list(Host, Private), "CLONE_NEWNS|CLONE_NEWIPC");
        assert_eq!(list(Private, Host), "CLONE_NEWNS|CLONE_NEWPID");
        assert_eq!(list(Private, Private), "CLONE_NEWNS|CLONE_NEWPID|CLONE_NEWIPC");
    }
}
