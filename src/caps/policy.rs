//! Calculates a task's capabilities from three lists of names.

use std::collections::BTreeSet;

use super::CapSet;
use super::set::normalise;
use crate::error::Error;

/// The capabilities of a task: `((default ∩ allow) \ drop) ∪ add`, if `add` is within `allow`.
///
/// * `allow` is the operator's list (`allow_caps`); `None` stands for [`CapSet::DEFAULT`]. It bounds what may be added
///   and shrinks the default. It grants nothing by itself. If it is empty, the task gets no capabilities.
/// * `add` and `drop` are the task's (`cap_add`, `cap_drop`). A capability in both is added, so that dropping `all` and
///   adding one gives that one. Dropping a capability that the task does not have is not an error.
/// * `supported` is the set of capabilities that the kernel has: see [`supported`](super::supported).
///
/// [`parse`] reads the names.
///
/// # Errors
/// [`Error::Spec`] for the first list with names that the kernel does not know. [`Error::Denied`] if the task adds
/// capabilities that the operator does not allow; the message names all of them.
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

/// Parses a list of names, which is the value of the field `key`.
///
/// The names are those that [`CapSet`] describes. In addition `all` stands for every supported capability, and an empty
/// name is ignored.
///
/// # Errors
/// [`Error::Spec`] for `key`, with every name that is unknown or not in `supported`.
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

/// The requested capabilities that the caller cannot grant, because it does not hold them itself.
///
/// `held` is [`grantable`](super::Sets::grantable) of the caller's [`own`](super::own) sets, or every supported
/// capability if the task gets a user namespace of its own.
pub fn withheld(requested: CapSet, held: CapSet) -> CapSet {
    requested.difference(held)
}

#[cfg(test)]
mod tests {
    //! There are no tests of the Docker driver's variant of the calculation, whose result is a difference to Docker's
    //! default. This crate has no counterpart of it.

    use super::*;

    const SUPPORTED: CapSet = CapSet::up_to(40);
    const DEFAULT_13: &str = "CAP_AUDIT_WRITE CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_KILL CAP_MKNOD \
                              CAP_NET_BIND_SERVICE CAP_SETFCAP CAP_SETGID CAP_SETPCAP CAP_SETUID CAP_SYS_CHROOT";

    #[test]
    fn the_lists_are_combined() {
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

    /// Nomad's message begins with `driver` instead of `policy`.
    #[test]
    fn additions_outside_the_allow_list_are_denied() {
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
    fn unsupported_names_are_refused() {
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
    fn capabilities_that_the_caller_lacks_are_withheld() {
        let held = CapSet::DEFAULT.difference(CapSet::from_name("mknod").unwrap());
        assert_eq!(withheld(CapSet::DEFAULT, held).to_string(), "mknod");
        assert_eq!(withheld(CapSet::DEFAULT, SUPPORTED), CapSet::EMPTY);
    }
}
