//! The ids that the task runs with, and denied ids.

use super::*;

/// A task with the ids `asked`, under a policy with these denied ranges.
fn denied(asked: Identity, uids: &str, gids: &str) -> Case {
    case(|c| {
        (c.policy.denied_host_uids, c.policy.denied_host_gids) =
            (uids.parse().unwrap(), gids.parse().unwrap());
        c.survey.identity = asked;
    })
}

#[test]
fn init_sets_groups_then_gid_then_uid() {
    check(
        &denied(who(1000, &[100, 27]), "", ""),
        "# set uid, gid and groups
         prctl(PR_SET_KEEPCAPS, 1)
         setgroups(2, [100, 27])
         setresgid(100, 100, 100)
         setresuid(1000, 1000, 1000)
         # capabilities
         weakened  none",
    );
    let none = Identity { groups: Vec::new(), ..who(1000, &[100]) };
    check(&denied(none, "", ""), "setgroups(0, [])");
}

#[test]
fn denied_ids_are_refused() {
    let uid =
        |n: u32| format!("denied: user: running as uid {n} is disallowed by the policy\'s denied_host_uids");
    let gid =
        |n: u32| format!("denied: user: running as gid {n} is disallowed by the policy\'s denied_host_gids");
    refused(&denied(who(0, &[0]), "0", ""), &uid(0));
    refused(&denied(who(1005, &[100]), "0,1000-1010", ""), &uid(1005));
    refused(&denied(who(1000, &[27]), "", "27"), &gid(27));
    refused(&denied(who(1000, &[100, 27]), "", "20-30"), &gid(27));
    // The user is checked before the groups.
    refused(&denied(who(7, &[7]), "7", "7"), &uid(7));
    let mut allowed = denied(who(1000, &[100, 27]), "0-999,1001-4294967295", "0-26,28-99,101-4294967295");
    check(
        &allowed,
        "weakened  ids
         ids: the task has CAP_SETUID or CAP_SETGID: it can become any user or group, including denied ones",
    );
    allowed.spec.cap_drop = strings(&["setuid", "setgid"]);
    check(&allowed, "weakened  none");
}

/// In a user namespace the task has one user id inside and the caller's outside. Both are compared with the ranges.
#[test]
fn in_a_user_namespace_the_callers_ids_must_not_be_denied_either() {
    let inside = |asked: Identity, host: Host, uids: &str, gids: &str| {
        let mut case = denied(asked, uids, gids);
        case.host = host;
        case
    };
    let caller = || Host { uid: 1000, gid: 100, groups: vec![27, 100], ..rootless() };
    let task = || who(0, &[0]);
    refused(
        &inside(task(), caller(), "0", ""),
        "denied: user: running as uid 0 is disallowed by the policy\'s denied_host_uids",
    );
    refused(
        &inside(task(), caller(), "1000", ""),
        "denied: user: running as uid 1000 is disallowed by the policy\'s denied_host_uids",
    );
    refused(
        &inside(task(), caller(), "", "100"),
        "denied: user: running as gid 100 is disallowed by the policy\'s denied_host_gids",
    );
    // The task keeps the caller's supplementary groups.
    refused(
        &inside(task(), caller(), "", "27"),
        "denied: user: running as gid 27 is disallowed by the policy\'s denied_host_gids",
    );
    check(&inside(task(), caller(), "1-999,1001-5000", "1-26,28-99,101-200"), "");
    // Without a user namespace the task has none of the caller's ids.
    check(&inside(who(7, &[7]), Host { uid: 0, gid: 0, groups: vec![0, 27], ..host() }, "0", "0,27"), "");
}

#[test]
fn the_environment_describes_the_user() {
    let named = Identity { name: Some("ann".into()), home: Some("/home/ann".into()), ..who(1000, &[100]) };
    let env = |identity: Identity, env: &[(&str, &str)]| {
        let mut case = denied(identity, "", "");
        case.spec.env = env.iter().map(|(k, v)| (k.into(), v.into())).collect();
        let plan = check(&case, "");
        let Some(Op::Exec { env, .. }) = plan.init.last().and_then(Step::op) else { panic!("no exec") };
        env.iter().map(|item| String::from_utf8(item.bytes().to_vec()).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(env(named.clone(), &[]), ["HOME=/home/ann", "LOGNAME=ann", "USER=ann"]);
    assert_eq!(env(who(5, &[5]), &[]), ["HOME=/"]);
    // The spec's variables override the others. The caller's environment is not passed on.
    let given = [("A", "=1="), ("HOME", "/x"), ("USER", "root"), ("Z", "")];
    assert_eq!(env(named, &given), ["A==1=", "HOME=/x", "LOGNAME=ann", "USER=root", "Z="]);
    assert_eq!(env(who(5, &[5]), &given), ["A==1=", "HOME=/x", "USER=root", "Z="]);
}

/// A caller that may map ids maps the task's ids to themselves. No id inside is then the caller's, so a root caller's
/// task is not root under another id.
#[test]
fn a_caller_that_may_map_ids_maps_the_tasks_own() {
    let without_sys_admin = |task: Identity, set: fn(&mut Case)| {
        case(|c| {
            c.host.held = CapSet::up_to(40).difference(CapSet::from_names(["sys_admin"]).unwrap());
            c.survey.identity = task;
            set(c);
        })
    };
    let mapped = "write(\"/proc/PID/uid_map\", \"1000 1000 1\\n65533 65533 1\\n\")
         write(\"/proc/PID/gid_map\", \"27 27 1\\n100 100 1\\n65533 65533 1\\n\")
         # wait for the id maps
         # switch to mapped uid 1000
         setresgid(100, 100, 100)
         setresuid(1000, 1000, 1000)
         # stop mount propagation to the host
         # stay as PID 1, continue in a child process
         setresuid(65533, 65533, 65533)
         # set uid, gid and groups
         setgroups(2, [100, 27])
         weakened  none
         ! \"deny\"";
    check(&without_sys_admin(who(1000, &[100, 27]), |_| ()), mapped);
    // Init makes mount points in a directory of the host as the caller, so the caller's ids are mapped.
    let weakened = "write(\"/proc/PID/setgroups\", \"deny\")
         write(\"/proc/PID/uid_map\", \"1000 0 1\\n\")
         weakened  ids
         ids: uid 1000 in the sandbox is uid 0 outside: the task can access files and processes like root without capabilities
         ! switch to mapped uid";
    check(
        &without_sys_admin(who(1000, &[100]), |c| {
            c.spec.root.populate = Method::Copy;
        }),
        weakened,
    );
    // An id that is not mapped in the caller's user namespace cannot be mapped.
    check(
        &without_sys_admin(who(1000, &[100]), |c| c.host.uid_map = IdMap::parse("0 5000 1").unwrap()),
        weakened,
    );
}

/// Root of a user namespace is not the host's root.
#[test]
fn root_of_a_user_namespace_is_not_privileged() {
    let nested = |task: Identity, map: &str| {
        case(|c| {
            c.host.nested = true;
            (c.host.uid_map, c.host.gid_map) = (IdMap::parse(map).unwrap(), IdMap::parse(map).unwrap());
            c.survey.identity = task;
        })
    };
    let whole = "0 100000 65536";
    let plan = check(
        &nested(who(1000, &[100]), whole),
        "write(\"/proc/PID/uid_map\", \"1000 1000 1\\n65533 65533 1\\n\")
         weakened  none
         ids: the caller itself is in a user namespace: outside of it the task has uid 101000 and gid 100100
         ! mknodat",
    );
    assert!(plan.namespaces & libc::CLONE_NEWUSER.cast_unsigned() != 0);
    // A group that the caller's user namespace does not map is left out.
    check(
        &nested(who(1000, &[100, 70_000]), whole),
        "setgroups(1, [100])
         weakened  ids
         ids: supplementary groups are left out...",
    );
    // Only the caller itself is mapped, for instance by `unshare -r`.
    check(
        &nested(who(1000, &[100]), "0 5000 1"),
        "write(\"/proc/PID/uid_map\", \"1000 0 1\\n\")
         ids: uid 1000 in the sandbox is uid 0 outside...
         ids: the caller itself is in a user namespace: outside of it the task has uid 5000 and gid 5000",
    );
    let mut case = nested(who(1000, &[100]), whole);
    case.host.user_ns_forbidden = Some("user.max_user_namespaces is 0".into());
    refused(
        &case,
        "unsupported: this host cannot enforce mount_ns: the caller is in a user namespace and cannot make a \
         user namespace: user.max_user_namespaces is 0",
    );
}
