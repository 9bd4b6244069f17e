//! Namespaces into clone flags and steps.

use super::{IsolationMode, Namespaces, Network};
use crate::report::{Control, Report};
use crate::step::wire::Op;
use crate::step::{self, Handed, Step};

/// What the namespaces come to.
pub(crate) struct Lowered {
    /// `CLONE_NEW*` bits of the clone.
    pub clone: u32,
    /// Steps before anything is mounted.
    pub before: Vec<Step>,
    /// Steps once the cgroup is entered and everything is mounted.
    pub after: Vec<Step>,
}

const fn bit(flag: i32) -> u32 {
    flag.cast_unsigned()
}

/// Lowers `ns`, asking for its controls in `report` and handing over what has to be joined.
pub(crate) fn lower(ns: &Namespaces, handed: &mut Vec<Handed>, report: &mut Report) -> Lowered {
    let mut low = Lowered { clone: bit(libc::CLONE_NEWNS), before: Vec::new(), after: Vec::new() };
    report.enforce(Control::MOUNT_NS);
    if ns.user {
        low.clone |= bit(libc::CLONE_NEWUSER);
    }
    if ns.pid == IsolationMode::Private {
        low.clone |= bit(libc::CLONE_NEWPID);
        report.enforce(Control::PID_NS);
    }
    if ns.ipc == IsolationMode::Private {
        low.clone |= bit(libc::CLONE_NEWIPC);
        report.enforce(Control::IPC_NS);
    }
    network(ns, handed, report, &mut low);
    if let Some(name) = &ns.uts {
        low.clone |= bit(libc::CLONE_NEWUTS);
        low.before.push(Step::new(Control::UTS_NS, Op::Hostname { name: step::text(name.as_bytes()) }));
        report.enforce(Control::UTS_NS);
    }
    if ns.cgroup {
        // Not by the clone: that would root the namespace at the caller's cgroup, not at the task's.
        low.after.push(Step::new(Control::CGROUP_NS, Op::Unshare { flags: bit(libc::CLONE_NEWCGROUP) }));
        report.enforce(Control::CGROUP_NS);
    }
    low
}

fn network(ns: &Namespaces, handed: &mut Vec<Handed>, report: &mut Report, low: &mut Lowered) {
    match &ns.network {
        Network::Host => report.note(Control::NET_NS, "the network is the host's"),
        Network::None => {
            low.clone |= bit(libc::CLONE_NEWNET);
            low.before.push(Step::new(Control::NET_NS, Op::Loopback {}));
            report.enforce(Control::NET_NS);
        }
        Network::Path(path) => {
            let fd = u32::try_from(handed.len()).unwrap_or(u32::MAX);
            handed.push(Handed::Namespace(path.clone()));
            let kind = bit(libc::CLONE_NEWNET);
            low.before.push(Step::new(Control::NET_NS, Op::Join { fd, kind, path: step::path(path) }));
            report.enforce(Control::NET_NS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::namespaces;

    fn list(pid: IsolationMode, ipc: IsolationMode) -> String {
        let ns = Namespaces { pid, ipc, network: Network::Host, uts: None, cgroup: false, user: false };
        namespaces(lower(&ns, &mut Vec::new(), &mut Report::default()).clone)
    }

    #[test]
    fn mount_always_and_the_others_by_mode() {
        use IsolationMode::{Host, Private};
        assert_eq!(list(Host, Host), "CLONE_NEWNS");
        assert_eq!(list(Host, Private), "CLONE_NEWNS|CLONE_NEWIPC");
        assert_eq!(list(Private, Host), "CLONE_NEWNS|CLONE_NEWPID");
        assert_eq!(list(Private, Private), "CLONE_NEWNS|CLONE_NEWPID|CLONE_NEWIPC");
    }
}
