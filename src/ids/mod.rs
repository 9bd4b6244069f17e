//! The ids that the task runs with: user, primary group, supplementary groups, and which of them are denied.
//!
//! A user is looked up once in the *host's* database (`passwd(5)`, or what `nsswitch.conf(5)` names), before anything
//! is made. Two ids, as `1000:1000`, need no lookup. The result is an [`Identity`]: numbers, which init can set without
//! any lookup. The database in the task's root is not consulted, because its author could give any name any id.
//!
//! [`IdRanges`] is the operator's list of ids that no task may run as. [`check`] compares an identity with the lists
//! for users and groups.
//!
//! This module sets no ids, and does not map them into a user namespace.
//!
//! ```
//! use cofferdam::ids;
//!
//! let denied_uids = ids::denied_uids("0-999")?;
//! let denied_gids = ids::denied_gids("0,27")?;
//!
//! let build = ids::lookup("12345:12345")?;
//! ids::check(&build, &denied_uids, &denied_gids)?;
//!
//! let root = ids::lookup("0:0")?;
//! let refused = ids::check(&root, &denied_uids, &denied_gids).unwrap_err();
//! assert_eq!(refused.to_string(), "running as uid 0 is disallowed");
//! # Ok::<(), cofferdam::Error>(())
//! ```

#![forbid(unsafe_code)]

mod bounded;
mod maps;
mod ranges;
mod users;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use bounded::lookup_until;
pub use maps::IdMap;
pub use ranges::{IdRanges, RangeError, RangeErrorKind, denied_gids, denied_uids};
pub use users::lookup;

use crate::error::Error;

/// The ids that a task runs with, and the user's name and home directory for the environment.
///
/// Plain data: [`lookup`] fills it from the host's database. All ids are those of the
/// host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Real, effective, saved and file system user id.
    pub uid: u32,
    /// Real, effective, saved and file system group id.
    pub gid: u32,
    /// The argument of `setgroups(2)`: sorted, without duplicates, the primary group included.
    ///
    /// The primary group is listed so that a program that changes its group keeps access to its files. Without
    /// privileges, the caller's own groups stay instead, and the report says so.
    pub groups: Vec<u32>,
    /// The user's name, if the host's database has one.
    pub name: Option<String>,
    /// The user's home directory in the host's database. It may not exist in the sandbox's root.
    pub home: Option<PathBuf>,
}

/// Refuses an identity that the operator denies. The user is checked first, then the primary group, then the
/// supplementary groups.
///
/// # Errors
/// [`Error::Denied`] with the first id that is in a denied range: `running as uid 0 is disallowed`,
/// `running as gid 27 is disallowed`.
pub fn check(identity: &Identity, denied_uids: &IdRanges, denied_gids: &IdRanges) -> Result<(), Error> {
    if denied_uids.contains(identity.uid) {
        return Err(Error::denied(format!("running as uid {} is disallowed", identity.uid)));
    }
    let mut gids = std::iter::once(&identity.gid).chain(&identity.groups);
    match gids.find(|&&gid| denied_gids.contains(gid)) {
        Some(gid) => Err(Error::denied(format!("running as gid {gid} is disallowed"))),
        None => Ok(()),
    }
}

/// The environment variables that describe the user: `USER` and `LOGNAME` if the name is known, and `HOME`.
///
/// `HOME` is `/` if the home directory is not known, not absolute or not UTF-8. See `environ(7)`.
///
/// ```
/// let who = cofferdam::ids::Identity { uid: 7, gid: 7, groups: vec![7], name: None, home: None };
/// assert_eq!(cofferdam::ids::environment(&who), [("HOME".to_string(), "/".to_string())]);
/// ```
pub fn environment(identity: &Identity) -> Vec<(String, String)> {
    let home = identity.home.as_deref().filter(|home| home.is_absolute());
    let home = home.and_then(|home| home.to_str()).unwrap_or("/");
    let mut variables = Vec::new();
    if let Some(name) = &identity.name {
        variables.push(("USER".to_owned(), name.clone()));
        variables.push(("LOGNAME".to_owned(), name.clone()));
    }
    variables.push(("HOME".to_owned(), home.to_owned()));
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(uid: u32, groups: &[u32]) -> Identity {
        Identity { uid, gid: groups[0], groups: groups.to_vec(), name: None, home: None }
    }

    /// Columns: uid, groups with the primary one first, denied uids, denied gids, and the expected error.
    #[test]
    fn denied_ids_are_refused() {
        type Row = (u32, &'static [u32], &'static str, &'static str, Option<&'static str>);
        let table: &[Row] = &[
            (1000, &[1000], "", "1000-1011", Some("running as gid 1000 is disallowed")),
            (1000, &[1000, 27], "", "27", Some("running as gid 27 is disallowed")),
            (1000, &[1000], "1000", "1000", Some("running as uid 1000 is disallowed")),
            // Nomad refuses this one: its list of groups begins with zeros that were not asked for.
            (1000, &[1000], "", "0", None),
            (1000, &[1000], "", "", None),
            (1000, &[1000], "0-999,1001-4294967295", "0-999,1001-4294967295", None),
            (0, &[0], "0", "", Some("running as uid 0 is disallowed")),
            (1000, &[0], "", "0", Some("running as gid 0 is disallowed")),
        ];
        for (uid, groups, uids, gids, expect) in table {
            let answer = check(&identity(*uid, groups), &uids.parse().unwrap(), &gids.parse().unwrap());
            assert_eq!(
                answer.err().map(|e| e.to_string()).as_deref(),
                *expect,
                "{uid} {groups:?} {uids} {gids}"
            );
        }
    }

    #[test]
    fn the_primary_group_is_checked_even_if_the_list_lacks_it() {
        let who = Identity { gid: 5, ..identity(1, &[6]) };
        let refused = check(&who, &IdRanges::default(), &"5".parse().unwrap()).unwrap_err();
        assert!(matches!(refused, Error::Denied { .. }));
    }

    #[test]
    fn the_environment_has_user_logname_and_home() {
        let named =
            Identity { name: Some("ann".into()), home: Some("/home/ann".into()), ..identity(1, &[1]) };
        let pairs = |who: &Identity| {
            environment(who).iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(pairs(&named), "USER=ann LOGNAME=ann HOME=/home/ann");
        assert_eq!(
            pairs(&Identity { home: Some("".into()), ..named.clone() }),
            "USER=ann LOGNAME=ann HOME=/"
        );
        assert_eq!(pairs(&Identity { home: Some("ann".into()), ..named }), "USER=ann LOGNAME=ann HOME=/");
        assert_eq!(pairs(&identity(1, &[1])), "HOME=/");
    }

    #[test]
    fn an_identity_survives_serialisation() {
        let who =
            Identity { name: Some("ann".into()), home: Some("/home/ann".into()), ..identity(1, &[1, 2]) };
        let json = serde_json::to_string(&who).unwrap();
        assert_eq!(serde_json::from_str::<Identity>(&json).unwrap(), who);
    }
}
