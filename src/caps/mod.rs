//! What the task may do beyond an ordinary process: its capabilities (`capabilities(7)`).
//!
//! The operator's allow-list bounds what a task may add; the task adds to, and drops from, a default of
//! thirteen. [`calculate`] turns the three lists into one [`CapSet`], and [`Sets`] says which of the five sets
//! of the kernel gets it. Everything is calculated before anything is made; init only sets what it is told.
//!
//! Linux has no list of capabilities that is true everywhere: a kernel may know more than this crate does.
//! So "all" means what [`supported`] reads from the running one, and a capability without a name is handled
//! by its number, as [`CapSet`] describes.
//!
//! This room sets no capabilities. It does not read those of files either.
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
    /// What the thread may make effective.
    pub permitted: CapSet,
    /// What the kernel checks.
    pub effective: CapSet,
    /// What survives `execve(2)` together with a file's own capabilities.
    pub inheritable: CapSet,
    /// What survives `execve(2)` of an ordinary file (Linux 4.3).
    pub ambient: CapSet,
}

impl Sets {
    /// How a task with the user id `uid` holds exactly `calculated`, before and after `execve(2)`.
    ///
    /// `uid` is the one inside the task's user namespace. An ordinary user keeps capabilities over
    /// `execve(2)` through the ambient set, which needs them inheritable too: all five sets are the same.
    /// Root (0) regains all that is inheritable or in its bounding set at every `execve(2)`: those are the
    /// sets that hold it, and the inheritable and ambient ones are empty. With `PR_SET_NO_NEW_PRIVS` it
    /// regains only what is permitted already, so permitted must be full as well.
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

    /// The exception for jobs written when a task of root had the first 38 capabilities, whatever its lists
    /// said: those that this kernel has. Nothing else leads here; the author must ask for it.
    ///
    /// It is far more than the default ([`CapSet::LEGACY_ROOT`] has `sys_admin` and `sys_module`), and the
    /// operator's allow-list has no say in it.
    pub fn legacy_root(supported: CapSet) -> Sets {
        Sets::for_uid(0, supported.intersection(CapSet::LEGACY_ROOT))
    }

    /// What a thread with these sets can pass on to a child: what is both permitted and in the bounding set.
    /// See [`withheld`].
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
    fn sets_of_a_task() {
        let supported = CapSet::up_to(40);
        let default = calculate(None, &[] as &[&str], &[], supported).unwrap();
        let single = calculate(None, &["net_bind_service"], &["all"], supported).unwrap();
        assert_eq!(hex(Sets::for_uid(65534, default)), ["a80405fb"; 5]);
        assert_eq!(hex(Sets::for_uid(65534, single)), ["400"; 5]);
        let legacy = "3fffffffff";
        assert_eq!(hex(Sets::legacy_root(supported)), ["0", legacy, legacy, legacy, "0"]);
        assert_eq!(hex(Sets::legacy_root(CapSet::up_to(36)))[1], "1fffffffff");
        // Nomad gives root the legacy set without being asked, and ignores the lists. We honour them.
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
