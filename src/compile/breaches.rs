//! What was granted that undoes what is enforced.

use crate::caps::Sets;
use crate::ns::IsolationMode;
use crate::report::{Control, Report};
use crate::spec::Policy;

/// What a capability lets a task do to the enclosure itself.
const BREACHES: [(&str, Control, &str); 5] = [
    (
        "sys_admin",
        Control::from_bits_truncate(
            Control::HOST_FILES.bits()
                | Control::MASKED_PATHS.bits()
                | Control::DEVICES.bits()
                | Control::ROOT_SWITCH.bits(),
        ),
        "the task has CAP_SYS_ADMIN: it can remount what is read-only and mount the host's devices",
    ),
    (
        "dac_read_search",
        Control::ROOT_SWITCH,
        "the task has CAP_DAC_READ_SEARCH: open_by_handle_at(2) reaches files outside its root",
    ),
    ("sys_module", Control::all(), "the task has CAP_SYS_MODULE: it can load code into the kernel"),
    ("sys_rawio", Control::DEVICES, "the task has CAP_SYS_RAWIO: it can use the machine's ports"),
    ("sys_ptrace", Control::PID_NS, "the task has CAP_SYS_PTRACE: it can take over any process that it sees"),
];

/// Says where the capabilities that were granted undo what is enforced.
pub(super) fn weaken(policy: &Policy, sets: Sets, user_ns: bool, pid: IsolationMode, report: &mut Report) {
    let has = |name: &str| sets.bounding.has(name);
    if policy.no_pivot_root && has("sys_chroot") {
        report.weaken(
            Control::ROOT_SWITCH,
            "no_pivot_root leaves the host's mounts below the root, and CAP_SYS_CHROOT lets the task out of a chroot",
        );
    } else if policy.no_pivot_root {
        report.note(
            Control::ROOT_SWITCH,
            "no_pivot_root leaves the host's mounts in the namespace, below the root",
        );
    }
    if pid == IsolationMode::Host && has("kill") && !user_ns {
        report.note(Control::PID_NS, "the task has CAP_KILL: it can end any process of the host");
    }
    if user_ns {
        // The mounts belong to the task's own user namespace; beyond it the capability is good for nothing.
        if has("sys_admin") {
            report.weaken(
                Control::HOST_FILES | Control::MASKED_PATHS,
                "the task has CAP_SYS_ADMIN in its user namespace: it can remount what is read-only and unmount what masks",
            );
        }
        return;
    }
    for (name, controls, why) in BREACHES.into_iter().filter(|(name, ..)| has(name)) {
        let controls = controls & report.asked;
        if !controls.is_empty() {
            report.weaken(controls, why);
        } else if name == "sys_ptrace" && pid == IsolationMode::Host {
            report.note(Control::PID_NS, why);
        }
    }
}
