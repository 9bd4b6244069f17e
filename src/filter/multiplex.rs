//! Multiplexed i386 calls: `socketcall`, `ipc`, and calls with their arguments in memory. If a profile refuses
//! `connect`, `socketcall` for the operation `connect` is refused too.

use super::profile::{Compare, Is, Rule};

const SOCKETCALL: [&str; 20] = [
    "socket",
    "bind",
    "connect",
    "listen",
    "accept",
    "getsockname",
    "getpeername",
    "socketpair",
    "send",
    "recv",
    "sendto",
    "recvfrom",
    "shutdown",
    "setsockopt",
    "getsockopt",
    "sendmsg",
    "recvmsg",
    "accept4",
    "recvmmsg",
    "sendmmsg",
];

const IPC: [(&str, u32); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

/// Calls whose arguments are behind a pointer on i386.
const POINTERS: [&str; 2] = ["mmap", "select"];

/// Expands rules for i386. Before each rule that refuses a call, a rule is inserted that refuses the same operation of
/// the multiplexed call. The inserted rule ignores the comparisons of arguments, because a filter cannot read arguments
/// in memory.
pub(super) fn expanded(rules: &[Rule]) -> Vec<Rule> {
    let mut all = Vec::with_capacity(rules.len());
    for rule in rules {
        if !rule.action.executes() {
            let also = rule.calls.iter().filter_map(|name| one_of_many(name, !rule.args.is_empty()));
            all.extend(also.map(|(call, args)| Rule { calls: vec![call.into()], action: rule.action, args }));
        }
        all.push(rule.clone());
    }
    all
}

fn one_of_many(name: &str, compares: bool) -> Option<(&'static str, Vec<Compare>)> {
    if let Some(at) = SOCKETCALL.iter().position(|n| *n == name) {
        let number = u32::try_from(at).ok()?.saturating_add(1);
        return Some(("socketcall", vec![Compare::int(0, Is::Eq, number)]));
    }
    if let Some((_, number)) = IPC.iter().find(|(n, _)| *n == name) {
        // The upper half of the first argument is a version.
        let compare = Compare { arg: 0, is: Is::Eq, value: u64::from(*number), mask: 0xffff };
        return Some(("ipc", vec![compare]));
    }
    let pointer = POINTERS.iter().find(|n| **n == name).filter(|_| compares);
    pointer.map(|name| (*name, Vec::new()))
}
