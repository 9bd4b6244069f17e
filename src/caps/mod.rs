//! The capabilities of a task (`capabilities(7)`).
//!
//! The operator's allow-list bounds the capabilities that a task may add. The task adds to, and drops from, a default
//! of thirteen. [`calculate`] turns the three lists into one [`CapSet`], and [`Sets`] says which of the kernel's five
//! sets get it. Everything is calculated before anything is made; init only sets the result.
//!
//! The list of capabilities depends on the kernel, which may have more than this crate has names for. So "all" means
//! what [`supported`] reads from the running kernel, and a capability without a name is handled by its number, as
//! [`CapSet`] describes.
//!
//! This module sets no capabilities, and does not read those of files.
//!
//! ```
//! use cofferdam::caps::{self, CapSet, Sets};
//!
//! let supported = CapSet::up_to(40);
//! let only_low_ports = caps::calculate(None, &["net_bind_service"], &["all"], supported)?;
//! assert_eq!(format!("{only_low_ports:x}"), "400");
//!
//! let sets = Sets::for_uid(65534, only_low_ports);
//! assert_eq!(sets.ambient, only_low_ports);
//!
//! let refused = caps::calculate(None, &["net_admin", "SYS_TIME"], &[], supported).unwrap_err();
//! assert_eq!(refused.to_string(), "policy does not allow the following capabilities: net_admin, sys_time");
//! # Ok::<(), cofferdam::Error>(())
//! ```

#![forbid(unsafe_code)]

mod policy;
mod probe;
mod set;

use serde::{Deserialize, Serialize};

pub use policy::{calculate, parse, withheld};
pub use probe::{own, parse_last_cap, parse_status, supported};
pub use set::CapSet;

/// The five capability sets of a thread, as `/proc/PID/status` shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sets {
    /// The most that any program executed later can get, set-user-ID ones included.
    pub bounding: CapSet,
    /// The capabilities that the thread may make effective.
    pub permitted: CapSet,
    /// The capabilities that the kernel checks.
    pub effective: CapSet,
    /// The capabilities that are kept across `execve(2)` if the file's inheritable set has them too.
    pub inheritable: CapSet,
    /// The capabilities that are kept across `execve(2)` of an ordinary file (Linux 4.3).
    pub ambient: CapSet,
}

impl Sets {
    /// The sets with which a task of user `uid` holds exactly `calculated`, before and after `execve(2)`.
    ///
    /// `uid` is the user id inside the task's user namespace. An ordinary user keeps capabilities across `execve(2)`
    /// through the ambient set, whose capabilities must be inheritable too: all five sets are the same. Root (0)
    /// regains its inheritable and bounding sets at every `execve(2)`, so its inheritable and ambient sets are empty.
    /// With `PR_SET_NO_NEW_PRIVS` root regains only what is already permitted, so its permitted set is full as well.
    ///
    /// ```
    /// # use cofferdam::caps::{CapSet, Sets};
    /// let root = Sets::for_uid(0, CapSet::DEFAULT);
    /// assert_eq!((root.bounding, root.inheritable), (CapSet::DEFAULT, CapSet::EMPTY));
    /// ```
    pub fn for_uid(uid: u32, calculated: CapSet) -> Sets {
        let kept = if uid == 0 { CapSet::EMPTY } else { calculated };
        Sets {
            bounding: calculated,
            permitted: calculated,
            effective: calculated,
            inheritable: kept,
            ambient: kept,
        }
    }

    /// The sets for jobs that rely on root having the first 38 capabilities whatever its lists say. Limited to
    /// `supported`. Used only if the operator's policy asks for it.
    ///
    /// It is far more than the default ([`CapSet::LEGACY_ROOT`] has `sys_admin` and `sys_module`), and ignores the
    /// operator's allow-list.
    pub fn legacy_root(supported: CapSet) -> Sets {
        Sets::for_uid(0, supported.intersection(CapSet::LEGACY_ROOT))
    }

    /// The capabilities that a thread with these sets can pass on to a child: permitted, and in the bounding set. See
    /// [`withheld`].
    pub fn grantable(&self) -> CapSet {
        self.permitted.intersection(self.bounding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(sets: Sets) -> [String; 5] {
        [sets.inheritable, sets.permitted, sets.effective, sets.bounding, sets.ambient]
            .map(|s| format!("{s:x}"))
    }

    /// Inheritable, permitted, effective, bounding and ambient, as `/proc/PID/status` prints them.
    #[test]
    fn root_has_no_inheritable_and_ambient_set() {
        let supported = CapSet::up_to(40);
        let default = calculate(None, &[] as &[&str], &[], supported).unwrap();
        let single = calculate(None, &["net_bind_service"], &["all"], supported).unwrap();
        assert_eq!(hex(Sets::for_uid(65534, default)), ["a80405fb"; 5]);
        assert_eq!(hex(Sets::for_uid(65534, single)), ["400"; 5]);
        let legacy = "3fffffffff";
        assert_eq!(hex(Sets::legacy_root(supported)), ["0", legacy, legacy, legacy, "0"]);
        assert_eq!(hex(Sets::legacy_root(CapSet::up_to(36)))[1], "1fffffffff");
        // Nomad always gives root the legacy set and ignores the lists. This crate honours them.
        assert_eq!(hex(Sets::for_uid(0, single)), ["0", "400", "400", "400", "0"]);
        assert_eq!(hex(Sets::for_uid(65534, CapSet::EMPTY)), ["0"; 5]);
    }

    #[test]
    fn only_what_is_permitted_and_bounded_can_be_passed_on() {
        let sets = Sets {
            permitted: CapSet::from_bits(0b011),
            bounding: CapSet::from_bits(0b110),
            ..Sets::default()
        };
        assert_eq!(sets.grantable(), CapSet::from_bits(0b010));
    }
}
