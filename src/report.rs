//! What a sandbox enforces, and why it does not enforce the rest.
//!
//! Every plan and every running [`Task`](crate::Task) carries a [`Report`]: it is the crate's promise
//! that nothing is enforced, weakened or dropped in silence. It is data, not a log.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

use crate::notation::InvalidValue;

bitflags::bitflags! {
    /// One thing that can be enforced around a task. A set of them says what a spec requires.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Control: u32 {
        /// A mount namespace of its own (`mount_namespaces(7)`). Always asked for.
        const MOUNT_NS = 1 << 0;
        /// A PID namespace of its own (`pid_namespaces(7)`): the task sees no process of the host.
        const PID_NS = 1 << 1;
        /// An IPC namespace of its own (`ipc_namespaces(7)`): no System V object or POSIX queue is shared.
        const IPC_NS = 1 << 2;
        /// A network namespace that is not the caller's, joined by path or new (`network_namespaces(7)`).
        const NET_NS = 1 << 3;
        /// A UTS namespace of its own (`uts_namespaces(7)`).
        const UTS_NS = 1 << 4;
        /// A cgroup namespace of its own (`cgroup_namespaces(7)`).
        const CGROUP_NS = 1 << 5;
        /// `/` is the sandbox's root and the host's is out of reach (`pivot_root(2)`).
        const ROOT_SWITCH = 1 << 6;
        /// No file of the host can be changed through the root that was populated from it.
        const HOST_FILES = 1 << 7;
        /// The kernel's sensitive files below `/proc` and `/sys` are masked or read-only.
        const MASKED_PATHS = 1 << 8;
        /// Only the declared device nodes can be opened: by `nodev` mounts and a sealed `/dev`, and where there is one
        /// by a device cgroup. A remark says whether there is.
        const DEVICES = 1 << 9;
        /// User, primary group and supplementary groups are the requested ones.
        const IDS = 1 << 10;
        /// All five capability sets are exactly the calculated ones (`capabilities(7)`).
        const CAPS = 1 << 11;
        /// No program can gain privileges by execve (`PR_SET_NO_NEW_PRIVS`).
        const NO_NEW_PRIVS = 1 << 12;
        /// The requested resource limits of `setrlimit(2)` hold.
        const RLIMITS = 1 << 13;
        /// `oom_score_adj` is the requested value (`proc(5)`), not the caller's.
        const OOM_SCORE = 1 << 14;
        /// All of the task's processes can be killed together, forkers included.
        const KILL = 1 << 15;
        /// The memory limit of the task's cgroup.
        const MEMORY = 1 << 16;
        /// The task cannot use swap, or no more of it than it was given.
        const SWAP = 1 << 17;
        /// The task's share of the processors.
        const CPU = 1 << 18;
        /// The processors that the task may run on.
        const CPUSET = 1 << 19;
        /// The number of the task's processes.
        const PIDS = 1 << 20;
        /// The task can make no user namespace, in which it would have every capability (`user_namespaces(7)`).
        const NO_USER_NS = 1 << 21;
        /// The most processor time that the task may use, contended or not.
        const CPU_MAX = 1 << 22;
        /// The task's weight or its limits at block devices.
        const IO = 1 << 23;
        /// The huge pages that the task may use.
        const HUGETLB = 1 << 24;
        /// When memory runs out, all of the task is killed and not one process of it.
        const OOM_GROUP = 1 << 25;
        /// The task makes no system call that its filter refuses (`seccomp(2)`): by default those that moby's profile
        /// refuses, and more. See [`filter`](crate::filter).
        const SYSCALLS = 1 << 26;
    }
}

impl Control {
    /// The controls that limit resources and need a cgroup controller. They degrade together.
    pub const RESOURCES: Control = Control::MEMORY
        .union(Control::SWAP)
        .union(Control::OOM_GROUP)
        .union(Control::CPU)
        .union(Control::CPU_MAX)
        .union(Control::CPUSET)
        .union(Control::PIDS)
        .union(Control::IO)
        .union(Control::HUGETLB);

    /// Reads a list as the command line and the serialised form spell it: `all`, `none`, or names
    /// separated by commas, `pid_ns,caps`. Upper and lower case are the same.
    ///
    /// # Errors
    /// The first name that is no control.
    pub fn parse(list: &str) -> Result<Control, InvalidValue> {
        match list {
            "all" => return Ok(Control::all()),
            "none" | "" => return Ok(Control::empty()),
            _ => {}
        }
        list.split(',').try_fold(Control::empty(), |set, name| {
            let upper = name.trim().to_ascii_uppercase();
            Control::from_name(&upper)
                .map(|c| set | c)
                .ok_or_else(|| InvalidValue::new(format!("{name:?} is no control")))
        })
    }

    /// The names in this set, lower-case, in the order of declaration.
    pub fn names(self) -> impl Iterator<Item = String> {
        self.iter_names().map(|(name, _)| name.to_ascii_lowercase())
    }
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (i, name) in self.names().enumerate() {
            write!(f, "{}{name}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Serialize for Control {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.names())
    }
}

impl<'de> Deserialize<'de> for Control {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let names = Vec::<String>::deserialize(d)?;
        names.iter().try_fold(Control::empty(), |set, name| {
            Control::parse(name).map(|c| set | c).map_err(serde::de::Error::custom)
        })
    }
}

/// What must hold, or the sandbox is refused with [`Error::Unsupported`](crate::Error::Unsupported). Both the author of a
/// spec and its operator may choose; the sandbox must satisfy both.
///
/// Serialised: `"best_effort"`, `"asked"`, `"full"`, or a list of controls (`["memory", "pids"]`).
///
/// ```
/// use cofferdam::{Control, Limits, Require, Sandbox};
///
/// let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
/// let sandbox = Sandbox::command("make").limits(limits);
/// // Refused where memory cannot be limited.
/// let strict = sandbox.clone();
/// // Runs without the limit there, and the report says so.
/// let lenient = sandbox.clone().require(Require::BestEffort);
/// // Refused also where swap, which the memory limit comes with, is limited in part only.
/// let stricter = sandbox.require(Control::MEMORY | Control::SWAP);
/// # let _ = (strict, lenient, stricter);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Require {
    /// Nothing: the host enforces what it can, and the report says what it does not.
    BestEffort,
    /// Nothing that was asked for is missing. It may be weakened, with the reason in the report. The default.
    #[default]
    Asked,
    /// All that was asked for holds without reservation: nothing is missing or weakened.
    Full,
    /// As [`Asked`](Require::Asked), and these hold without reservation. A control that the spec does not ask for does not
    /// hold.
    These(Control),
}

impl Require {
    /// Whether `control` must hold without reservation, if it is asked for.
    pub(crate) fn names(self, control: Control) -> bool {
        match self {
            Require::BestEffort | Require::Asked => false,
            Require::Full => true,
            Require::These(controls) => controls.contains(control),
        }
    }

    /// What of it `report` does not hold. `forgiven` may be missing where it is not named.
    pub(crate) fn unmet(self, report: &Report, forgiven: Control) -> Control {
        let missing = report.missing.difference(forgiven);
        match self {
            Require::BestEffort => Control::empty(),
            Require::Asked => missing,
            Require::Full => report.unmet(report.asked),
            Require::These(controls) => missing | report.unmet(controls),
        }
    }
}

impl From<Control> for Require {
    fn from(controls: Control) -> Self {
        Require::These(controls)
    }
}

impl FromStr for Require {
    type Err = InvalidValue;

    /// A word of the serialised form, or names of controls separated by commas.
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        match text {
            "best_effort" => Ok(Require::BestEffort),
            "asked" => Ok(Require::Asked),
            "full" => Ok(Require::Full),
            list => Control::parse(list).map(Require::These).map_err(|e| {
                InvalidValue::new(format!("{e}, nor one of \"best_effort\", \"asked\" and \"full\""))
            }),
        }
    }
}

impl Serialize for Require {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Require::BestEffort => s.serialize_str("best_effort"),
            Require::Asked => s.serialize_str("asked"),
            Require::Full => s.serialize_str("full"),
            Require::These(controls) => controls.serialize(s),
        }
    }
}

impl<'de> Deserialize<'de> for Require {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> de::Visitor<'de> for Form {
            type Value = Require;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"best_effort\", \"asked\", \"full\" or a list of controls")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Require, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<Require, A::Error> {
                Control::deserialize(de::value::SeqAccessDeserializer::new(seq)).map(Require::These)
            }
        }
        d.deserialize_any(Form)
    }
}

/// Why a control is weakened or missing, or something that the author should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Reason {
    /// The control that it is about.
    pub control: Control,
    /// The cause, by name: a controller, a capability, a system call and its errno.
    pub why: String,
}

/// What becomes of a control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// It holds; the reason is a remark.
    Noted,
    /// It holds in part.
    Weakened,
    /// It does not hold.
    Lost,
}

/// What becomes of a control if a step is refused, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Effect {
    pub control: Control,
    pub extent: Extent,
    pub why: String,
}

impl Effect {
    /// `control` does not hold.
    pub(crate) fn lost(control: Control, why: impl Into<String>) -> Effect {
        Effect { control, extent: Extent::Lost, why: why.into() }
    }

    /// `control` holds in part.
    pub(crate) fn weakened(control: Control, why: impl Into<String>) -> Effect {
        Effect { control, extent: Extent::Weakened, why: why.into() }
    }

    /// `control` holds.
    pub(crate) fn noted(control: Control, why: impl Into<String>) -> Effect {
        Effect { control, extent: Extent::Noted, why: why.into() }
    }
}

/// What was asked for, and what of it holds.
///
/// `asked` is the disjoint union of `enforced`, `weakened` and `missing`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// What the spec asks for, its defaults included.
    pub asked: Control,
    /// What holds without reservation.
    pub enforced: Control,
    /// What holds in part; `reasons` says in which.
    pub weakened: Control,
    /// What does not hold; `reasons` says why.
    pub missing: Control,
    /// One or more for each control in `weakened` and `missing`, and remarks on others.
    pub reasons: Vec<Reason>,
}

impl Report {
    /// Asks for `control` and records that it holds.
    pub(crate) fn enforce(&mut self, control: Control) {
        self.asked |= control;
        self.enforced |= control.difference(self.weakened | self.missing);
    }

    /// Records that `control`, which is asked for, holds only in part. Records nothing for no control.
    pub(crate) fn weaken(&mut self, control: Control, why: impl Into<String>) {
        if control.is_empty() {
            return;
        }
        self.asked |= control;
        self.enforced.remove(control);
        self.weakened |= control.difference(self.missing);
        self.reasons.push(Reason { control, why: why.into() });
    }

    /// Records that `control`, which is asked for, does not hold. Records nothing for no control.
    pub(crate) fn miss(&mut self, control: Control, why: impl Into<String>) {
        if control.is_empty() {
            return;
        }
        self.asked |= control;
        self.enforced.remove(control);
        self.weakened.remove(control);
        self.missing |= control;
        self.reasons.push(Reason { control, why: why.into() });
    }

    /// Adds a remark that changes nothing of what holds.
    pub(crate) fn note(&mut self, control: Control, why: impl Into<String>) {
        self.reasons.push(Reason { control, why: why.into() });
    }

    /// Records an effect. `cause`, the refusal that it comes of, stands behind its reason.
    pub(crate) fn add(&mut self, effect: &Effect, cause: Option<&str>) {
        let why = match (effect.why.as_str(), cause) {
            (why, None) => why.to_owned(),
            ("", Some(cause)) => cause.to_owned(),
            (why, Some(cause)) => format!("{why}: {cause}"),
        };
        match effect.extent {
            Extent::Noted => self.note(effect.control, why),
            Extent::Weakened => self.weaken(effect.control, why),
            Extent::Lost => self.miss(effect.control, why),
        }
    }

    /// What of `required` does not hold without reservation.
    pub(crate) fn unmet(&self, required: Control) -> Control {
        required.difference(self.enforced)
    }

    /// The reasons that concern any of `controls`, joined with semicolons.
    pub fn why(&self, controls: Control) -> String {
        let reasons: Vec<&str> =
            self.reasons.iter().filter(|r| r.control.intersects(controls)).map(|r| r.why.as_str()).collect();
        reasons.join("; ")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "enforced  {}", self.enforced)?;
        writeln!(f, "weakened  {}", self.weakened)?;
        writeln!(f, "missing   {}", self.missing)?;
        for r in &self.reasons {
            writeln!(f, "  {}: {}", r.control, r.why)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asked_is_the_disjoint_union() {
        let mut r = Report::default();
        r.enforce(Control::CAPS | Control::IDS);
        r.weaken(Control::IDS, "a");
        r.miss(Control::MEMORY, "b");
        r.miss(Control::IDS, "c");
        r.enforce(Control::MEMORY);
        assert_eq!(r.enforced, Control::CAPS);
        assert_eq!(r.weakened, Control::empty());
        assert_eq!(r.missing, Control::IDS | Control::MEMORY);
        assert_eq!(r.asked, r.enforced | r.weakened | r.missing);
        assert_eq!(r.why(Control::IDS), "a; c");
    }

    #[test]
    fn lists_are_read_and_printed_alike() {
        assert_eq!(Control::parse("all"), Ok(Control::all()));
        assert_eq!(Control::parse("none"), Ok(Control::empty()));
        assert_eq!(Control::parse("PID_NS,caps"), Ok(Control::PID_NS | Control::CAPS));
        assert_eq!((Control::PID_NS | Control::CAPS).to_string(), "pid_ns,caps");
        assert!(Control::parse("pidns").is_err());
        let json = serde_json::to_string(&Control::RESOURCES).unwrap();
        assert_eq!(serde_json::from_str::<Control>(&json).unwrap(), Control::RESOURCES);
    }
}
