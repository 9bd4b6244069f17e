//! From three lists of names to one set.

use std::collections::BTreeSet;

use super::CapSet;
use super::set::normalise;
use crate::error::Error;

/// What a task gets: `((default ∩ allow) \ drop) ∪ add`, if `add` is within `allow`.
///
/// * `allow` is the operator's list (`allow_caps`); none stands for [`CapSet::DEFAULT`]. It bounds what may
///   be added and shrinks the default. It grants nothing by itself, and an empty list leaves nothing.
/// * `add` and `drop` are the task's (`cap_add`, `cap_drop`). A capability in both is added, so that dropping
///   `all` and adding one gives that one. Dropping what is not there is no error.
/// * `supported` is what the kernel knows: see [`supported`](super::supported).
///
/// The names are read by [`parse`].
///
/// # Errors
/// [`Error::Spec`] for the first list with names that the kernel does not know. [`Error::Denied`] if the task
/// adds what the operator does not allow, with all of it.
///
/// ```
/// # use cofferdam::caps::{CapSet, calculate};
/// let supported = CapSet::up_to(40);
/// let none: &[&str] = &[];
/// assert_eq!(calculate(None, none, none, supported)?, CapSet::DEFAULT);
/// assert_eq!(calculate(Some(&["chown", "sys_time"]), none, none, supported)?.to_string(), "chown");
/// assert_eq!(calculate(Some(&["all"]), &["sys_time"], &["all"], supported)?.to_string(), "sys_time");
/// # Ok::<(), cofferdam::Error>(())
/// ```
pub fn calculate<S: AsRef<str>>(
    allow: Option<&[S]>,
    add: &[S],
    drop: &[S],
    supported: CapSet,
) -> Result<CapSet, Error> {
    let default = CapSet::DEFAULT.intersection(supported);
    let allow = allow.map_or(Ok(default), |allow| parse("allow_caps", allow, supported))?;
    let add = parse("cap_add", add, supported)?;
    let drop = parse("cap_drop", drop, supported)?;
    let excess = add.difference(allow);
    if !excess.is_empty() {
        let names = excess.names().join(", ");
        return Err(Error::denied(format!("policy does not allow the following capabilities: {names}")));
    }
    Ok(default.intersection(allow).difference(drop).union(add))
}

/// Reads a list of names, the value of the field `key`.
///
/// Names are taken as [`CapSet`] describes. In addition `all` stands for everything that is supported, and an
/// empty name for nothing.
///
/// # Errors
/// [`Error::Spec`] on `key` with every name that is unknown or not in `supported`.
pub fn parse<S: AsRef<str>>(key: &'static str, names: &[S], supported: CapSet) -> Result<CapSet, Error> {
    let mut set = CapSet::EMPTY;
    let mut unsupported = BTreeSet::new();
    for name in names {
        let name = normalise(name.as_ref());
        match name.as_str() {
            "" => {}
            "all" => set = set.union(supported),
            _ => match CapSet::from_normalised(&name) {
                Some(one) if supported.contains(one) => set = set.union(one),
                _ => {
                    unsupported.insert(name);
                }
            },
        }
    }
    if unsupported.is_empty() {
        return Ok(set);
    }
    let names = Vec::from_iter(unsupported).join(", ");
    Err(Error::spec(key, format!("{key} configured with capabilities not supported by system: {names}")))
}

/// What the caller cannot grant, because it does not hold it itself.
///
/// `held` is [`grantable`](super::Sets::grantable) of the caller's [`own`](super::own) sets, or everything
/// that is supported if the task gets a user namespace of its own.
pub fn withheld(requested: CapSet, held: CapSet) -> CapSet {
    requested.difference(held)
}

#[cfg(test)]
mod tests {
    //! The docker driver's variant of the calculation, which expresses the result as a difference to that
    //! engine's own default, has no counterpart here and no tests.

    use super::*;

    const SUPPORTED: CapSet = CapSet::up_to(40);
    const DEFAULT_13: &str = "CAP_AUDIT_WRITE CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_KILL CAP_MKNOD \
                              CAP_NET_BIND_SERVICE CAP_SETFCAP CAP_SETGID CAP_SETPCAP CAP_SETUID CAP_SYS_CHROOT";

    #[test]
    fn calculated_sets() {
        type Row =
            (Option<&'static [&'static str]>, &'static [&'static str], &'static [&'static str], &'static str);
        let three: &[&str] = &["cap_net_raw", "chown", "SYS_TIME"];
        let table: &[Row] = &[
            (None, &[], &[], DEFAULT_13),
            (Some(three), &[], &[], "CAP_CHOWN"),
            (Some(three), &["net_raw", "sys_time"], &[], "CAP_CHOWN CAP_NET_RAW CAP_SYS_TIME"),
            (None, &["chown", "KILL"], &[], DEFAULT_13),
            (None, &["chown", "fowner"], &["all"], "CAP_CHOWN CAP_FOWNER"),
            (None, &["chown"], &["chown"], DEFAULT_13),
            (Some(&[]), &[], &[], ""),
            (None, &[], &["net_raw"], DEFAULT_13),
            (Some(&["all"]), &[], &[], DEFAULT_13),
            (Some(&["all"]), &["sys_admin"], &["CAP_ALL"], "CAP_SYS_ADMIN"),
            (Some(&["", "chown"]), &[" "], &["cap_"], "CAP_CHOWN"),
        ];
        for (allow, add, drop, expect) in table {
            let set = calculate(*allow, add, drop, SUPPORTED).unwrap();
            assert_eq!(set.names_upper().join(" "), *expect, "{allow:?} {add:?} {drop:?}");
        }
    }

    #[test]
    fn all_is_what_the_kernel_has() {
        for last in [37, 40, 41, 63] {
            let supported = CapSet::up_to(last);
            assert_eq!(calculate(Some(&["all"]), &["all"], &[], supported).unwrap(), supported, "{last}");
            assert_eq!(calculate(Some(&["all"]), &[], &["all"], supported).unwrap(), CapSet::EMPTY, "{last}");
        }
    }

    /// The reference says `driver` where we say `policy`: a library has no driver to speak of.
    #[test]
    fn additions_that_are_denied() {
        let denied = |allow, add: &[&str]| match calculate(allow, add, &[], SUPPORTED) {
            Err(Error::Denied { message }) => message,
            other => panic!("{other:?}"),
        };
        let tail = "not allow the following capabilities: ";
        let two: &[&str] = &["fowner", "mknod"];
        let message = denied(Some(two), &["net_admin", "mknod", "CAP_SYS_TIME"]);
        assert!(message.ends_with(&format!("{tail}net_admin, sys_time")), "{message}");
        let rest = SUPPORTED.difference(CapSet::DEFAULT).names();
        assert_eq!(rest.len(), 28);
        let message = denied(None, &["all"]);
        assert!(message.ends_with(&format!("{tail}{}", rest.join(", "))), "{message}");
    }

    #[test]
    fn names_that_are_not_supported() {
        assert_eq!(parse("allow_caps", &["all"], SUPPORTED).unwrap(), SUPPORTED);
        let names = ["chown", "not_valid", "sys_time"];
        let message = |key: &str, names: &str| {
            format!("{key} configured with capabilities not supported by system: {names}")
        };
        for key in ["allow_caps", "cap_add", "cap_drop"] {
            assert_eq!(parse(key, &names, SUPPORTED).unwrap_err().to_string(), message(key, "not_valid"));
        }
        let many = ["Zeta", "bpf", "CAP_alpha", "zeta", "41"];
        let error = parse("cap_drop", &many, CapSet::up_to(37)).unwrap_err();
        assert_eq!(error.to_string(), message("cap_drop", "41, alpha, bpf, zeta"));
    }

    #[test]
    fn spelling_is_checked_before_policy_and_allow_caps_first() {
        let field = |allow: &[&str], add: &[&str], drop: &[&str]| match calculate(
            Some(allow),
            add,
            drop,
            SUPPORTED,
        ) {
            Err(Error::Spec { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(&["x"], &["y"], &["z"]), "allow_caps");
        assert_eq!(field(&[], &["y"], &["z"]), "cap_add");
        assert_eq!(field(&[], &["sys_admin"], &["z"]), "cap_drop");
    }

    #[test]
    fn what_the_caller_lacks() {
        let held = CapSet::DEFAULT.difference(CapSet::from_name("mknod").unwrap());
        assert_eq!(withheld(CapSet::DEFAULT, held).to_string(), "mknod");
        assert_eq!(withheld(CapSet::DEFAULT, SUPPORTED), CapSet::EMPTY);
    }
}
