//! The ids of the task: which are denied, which can be mapped, and what they are outside of the task's user namespace.

use crate::caps::{CapSet, Sets};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::ids::{self, IdRanges, Identity};
use crate::plan::OtherUsers;
use crate::report::Control;
use crate::spec::Policy;
use crate::step::{Draft, IdMaps};

/// How the task's ids map to the caller's user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// The task has no user namespace of its own, so its ids are unchanged.
    None,
    /// Each id is mapped to itself. The caller may map every id of its own user namespace.
    Same,
    /// The task's user and group are mapped to the caller's. Without privileges only these two ids can be mapped.
    Caller,
}

impl Mapping {
    /// Chooses the mapping. `dir` says whether init creates mount points or overlay layers in a directory of the host.
    /// It does so as the caller, whose ids are not mapped with [`Mapping::Same`].
    pub(super) fn of(host: &Host, who: &Identity, user_ns: bool, dir: bool) -> Mapping {
        let has = host.uid_map.has(who.uid) && host.gid_map.has(who.gid);
        match user_ns {
            false => Mapping::None,
            true if host.maps_ids() && has && !dir => Mapping::Same,
            true => Mapping::Caller,
        }
    }
}

/// User and group id of PID 1. It is one less than 65534 (`nobody`), and Debian, Fedora and systemd assign it to no
/// user.
const PID1_ID: u32 = 65533;

/// The user and group of PID 1. They differ from the task's, so that PID 1 does not count as a process of the task's
/// user, and from root's, so that PID 1 does not own root's files. PID 1 has the task's ids where no others are mapped.
pub(super) fn pid1(host: &Host, identity: &Identity, mapping: Mapping) -> (u32, u32) {
    let id = |task: u32, map: &ids::IdMap| {
        let own = if task == PID1_ID { PID1_ID.saturating_sub(1) } else { PID1_ID };
        if mapping == Mapping::Caller || !map.has(own) { task } else { own }
    };
    (id(identity.uid, &host.uid_map), id(identity.gid, &host.gid_map))
}

/// The users that an additional command may run as, in the caller's user namespace. They have the capabilities that both
/// the lists of the spec and the task's sets allow.
pub(super) fn others(policy: &Policy, host: &Host, task: &Identity, sets: Sets) -> OtherUsers {
    let legacy = policy.root_keeps_caps && task.uid == 0;
    let capabilities = if legacy { CapSet::EMPTY } else { sets.grantable() };
    OtherUsers {
        denied_uids: policy.denied_host_uids.clone(),
        denied_gids: policy.denied_host_gids.clone(),
        capabilities,
        pid1: pid1(host, task, Mapping::None).0,
    }
}

/// The user of an additional command, and its capabilities.
///
/// # Errors
/// [`Error::Spec`] for the user of PID 1. [`Error::Denied`] for a user that the policy denies.
/// [`Error::Unsupported`] in a user namespace.
pub(super) fn other(others: Option<&OtherUsers>, who: Identity) -> Result<(Identity, CapSet)> {
    let Some(others) = others else {
        let reason = "the user namespace of the task maps only the task's user".into();
        return Err(Error::Unsupported { control: Control::IDS, reason });
    };
    let none = IdRanges::default();
    denied_by(&who, &others.denied_uids, &none, "denied_host_uids")?;
    denied_by(&who, &none, &others.denied_gids, "denied_host_gids")?;
    if who.uid == others.pid1 {
        return Err(Error::spec("user", format!("uid {} is that of PID 1", who.uid)));
    }
    Ok((who, others.capabilities))
}

fn denied_by(who: &Identity, uids: &IdRanges, gids: &IdRanges, field: &str) -> Result<()> {
    ids::check(who, uids, gids).map_err(|e| Error::denied(format!("user: {e} by the policy's {field}")))
}

/// Checks the task's ids against the denied ranges. If a user namespace maps them to the caller's ids, the caller's ids
/// are checked too.
pub(super) fn denied(policy: &Policy, host: &Host, asked: &Identity, mapping: Mapping) -> Result<()> {
    let (uids, gids) = (&policy.denied_host_uids, &policy.denied_host_gids);
    let check = |who: &Identity| {
        let none = IdRanges::default();
        denied_by(who, uids, &none, "denied_host_uids")?;
        denied_by(who, &none, gids, "denied_host_gids")
    };
    check(asked)?;
    if mapping == Mapping::Caller {
        let mut outside = asked.clone();
        (outside.uid, outside.gid, outside.groups) = (host.uid, host.gid, host.groups.clone());
        check(&outside)?;
    }
    Ok(())
}

/// The supplementary groups that the task gets: those that are mapped, at most [`MOST_GROUPS`].
pub(super) fn groups(host: &Host, identity: &Identity) -> Vec<u32> {
    identity.groups.iter().copied().filter(|group| host.gid_map.has(*group)).take(MOST_GROUPS).collect()
}

/// Maximum number of groups in a map. A map is written by one write(2), which must be shorter than a page
/// (`user_namespaces(7)`).
const MOST_GROUPS: usize = 128;

/// The id maps of the task's user namespace; `None` if it has none.
pub(super) fn maps(host: &Host, identity: &Identity, mapping: Mapping) -> Option<IdMaps> {
    let (uid, gid) = (identity.uid, identity.gid);
    let line = |inside: u32, outside: u32| format!("{inside} {outside} 1\n");
    match mapping {
        Mapping::None => None,
        Mapping::Caller => {
            Some(IdMaps { uid: line(uid, host.uid), gid: line(gid, host.gid), set_groups: false })
        }
        Mapping::Same => {
            let (pid1_uid, pid1_gid) = pid1(host, identity, mapping);
            let mut gids = groups(host, identity);
            gids.extend([gid, pid1_gid]);
            let lines = |mut ids: Vec<u32>| {
                ids.sort_unstable();
                ids.dedup();
                ids.into_iter().map(|id| line(id, id)).collect()
            };
            Some(IdMaps { uid: lines(vec![uid, pid1_uid]), gid: lines(gids), set_groups: true })
        }
    }
}

/// Adds to the report the task's ids outside of its user namespace, and which groups it lacks or keeps.
pub(super) fn report(host: &Host, identity: &Identity, mapping: Mapping, draft: &mut Draft) {
    draft.report.enforce(Control::IDS);
    let (uid, gid) = (identity.uid, identity.gid);
    if mapping == Mapping::Caller {
        let why = format!(
            "uid {uid} and gid {gid} in the sandbox are uid {} and gid {} outside",
            host.uid, host.gid
        );
        draft.report.note(Control::IDS, why);
        if host.uid == 0 && uid != 0 {
            // Outside, the task's user is root of the caller's user namespace, and so the owner of root's files.
            let why = format!(
                "uid {uid} in the sandbox is uid 0 outside: the task can access files and processes like root without capabilities"
            );
            draft.report.weaken(Control::IDS, why);
        }
        if host.groups.iter().any(|group| *group != host.gid) {
            draft.report.weaken(
                Control::IDS,
                "the task keeps the caller's supplementary groups: setgroups(2) is denied in its user namespace",
            );
        }
        if identity.groups.iter().any(|group| *group != gid) {
            draft.report.weaken(
                Control::IDS,
                "the user's supplementary groups are left out: only one group is mapped in the task's user namespace",
            );
        }
    } else if groups(host, identity).len() < identity.groups.len() {
        draft.report.weaken(
            Control::IDS,
            "supplementary groups are left out: the caller's user namespace does not map them, or there are more than 128",
        );
    }
    let outer = match mapping {
        Mapping::Caller => (host.uid_map.outside(host.uid), host.gid_map.outside(host.gid)),
        _ => (host.uid_map.outside(uid), host.gid_map.outside(gid)),
    };
    if let (true, (Some(uid), Some(gid))) = (host.nested, outer) {
        let why = format!(
            "the caller itself is in a user namespace: outside of it the task has uid {uid} and gid {gid}"
        );
        draft.report.note(Control::IDS, why);
    }
}
