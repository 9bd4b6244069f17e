//! What a Landlock domain blocks, by the shared namespaces and the kernel's ABI.

use super::*;
use crate::ns::Network;

fn on(abi: u32, pid: &str, caps: &[&str], network: Network) -> Case {
    case(|c| {
        c.host.landlock_abi = abi;
        c.policy.allow_caps = Some(vec!["all".into()]);
        (c.spec.pid_mode, c.spec.network) = (mode(pid), network);
        c.spec.cap_add = strings(caps);
    })
}

const SIGNALS: &str = "it can signal every process of";
const SOCKETS: &str = "it can connect to the abstract unix sockets of other processes in it";
const FILES: &str = "through /proc/PID/root of processes of its user";
const TRACES: &str = "CAP_SYS_PTRACE";

#[test]
fn tasks_that_share_a_namespace_are_in_a_landlock_domain() {
    let domain = |scoped: &str| format!("landlock_create_ruleset(fs=0x0, scoped={scoped})");
    let by_files = "landlock_create_ruleset(fs=0x2800, scoped=0x0)".to_string();
    let none = String::new();
    let joined = || Network::Path("/run/netns/a".into());
    for (abi, pid, caps, network, ruleset, told) in [
        // Linux 6.12 and later.
        (7, "private", &[][..], Network::None, &none, &[][..]),
        (7, "private", &[], Network::Host, &domain("0x1"), &[]),
        (6, "private", &[], joined(), &domain("0x1"), &[]),
        (6, "host", &[], Network::Host, &domain("0x3"), &[]),
        (6, "host", &["sys_ptrace"], Network::None, &domain("0x3"), &[]),
        (6, "private", &["sys_ptrace"], Network::None, &domain("0x1"), &[]),
        (6, "host", &["sys_admin"], Network::None, &domain("0x3"), &[]),
        // Before Linux 6.12 a domain must handle file access. Its members cannot mount.
        (5, "private", &[], Network::Host, &none, &[SOCKETS]),
        (5, "host", &[], Network::Host, &by_files, &[SIGNALS, SOCKETS]),
        (2, "private", &["sys_ptrace"], Network::None, &by_files, &[]),
        (2, "host", &["sys_admin"], Network::None, &none, &[FILES, SIGNALS]),
        // ABI 1 refuses every rename across directories, so it is not used.
        (1, "host", &["sys_ptrace"], Network::None, &none, &[FILES, SIGNALS, TRACES]),
        (0, "private", &["sys_ptrace"], Network::Host, &none, &[SOCKETS, TRACES]),
    ] {
        let case = on(abi, pid, caps, network);
        let plan = compiled(&case).unwrap();
        let (text, report) = (text(&plan), &plan.report);
        match ruleset.as_str() {
            "" => assert!(!text.contains("landlock_"), "{abi} {pid} {caps:?}\n{text}"),
            ruleset => assert!(text.contains(ruleset), "{abi} {pid} {caps:?}\n{text}"),
        }
        assert_eq!(text.contains("LANDLOCK_ACCESS_FS_REFER"), *ruleset == by_files);
        for what in [SIGNALS, SOCKETS, FILES, TRACES] {
            let said = report.reasons.iter().any(|reason| reason.why.contains(what));
            assert_eq!(said, told.contains(&what), "{abi} {pid} {caps:?}: {what}\n{report}");
        }
        // If `/proc/PID/root` leads to the host's files, these controls are not enforced. With CAP_SYS_ADMIN the task
        // can mount devices, and leave its cgroups.
        let files = Control::HOST_FILES | Control::ROOT_SWITCH | Control::KILL;
        assert_eq!(
            report.enforced.intersects(files),
            !told.contains(&FILES) && !caps.contains(&"sys_admin"),
            "{abi} {pid} {caps:?}\n{report}"
        );
    }
}

#[test]
fn without_no_new_privs_the_domain_is_entered_before_capabilities_are_dropped() {
    let mut case = on(7, "host", &[], Network::Host);
    case.spec.no_new_privs = false;
    check(
        &case,
        "# Landlock domain
         # seccomp filter
         # capabilities
         # execute the command",
    );
    case.spec.no_new_privs = true;
    check(
        &case,
        "# no new privileges
         # Landlock domain
         # find the command
         # seccomp filter
         # execute the command",
    );
}
