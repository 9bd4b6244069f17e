//! The controls that a sandbox enforces, and the reasons why others are weakened or missing.
//!
//! Every plan and every [`Task`](crate::Task) has a [`Report`]. It is data, not a log: every control that was asked for
//! is in it.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

use crate::notation::InvalidValue;

bitflags::bitflags! {
    /// A set of controls: properties of a sandbox that can be enforced or not.
    ///
    /// The [`Report`] of a task is made of such sets. Serialised as a list of lower-case names: `["pid_ns", "caps"]`.
    ///
    /// ```
    /// use cofferdam::Control;
    ///
    /// let wanted = Control::MEMORY | Control::PIDS;
    /// assert!(Control::RESOURCES.contains(wanted));
    /// assert_eq!(wanted.to_string(), "memory,pids");
    /// assert_eq!(Control::parse("memory,pids")?, wanted);
    /// # Ok::<(), cofferdam::InvalidValue>(())
    /// ```
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Control: u32 {
        /// A private mount namespace (`mount_namespaces(7)`). Always asked for.
        const MOUNT_NS = 1 << 0;
        /// A private PID namespace (`pid_namespaces(7)`): the task sees no process of the host.
        const PID_NS = 1 << 1;
        /// A private IPC namespace (`ipc_namespaces(7)`): the task shares no System V object or POSIX message queue.
        const IPC_NS = 1 << 2;
        /// A network namespace other than the caller's, new or joined by path (`network_namespaces(7)`).
        const NET_NS = 1 << 3;
        /// A private UTS namespace (`uts_namespaces(7)`).
        const UTS_NS = 1 << 4;
        /// A private cgroup namespace (`cgroup_namespaces(7)`, Linux 4.6).
        const CGROUP_NS = 1 << 5;
        /// `/` is the sandbox's root, and the task cannot reach the host's (`pivot_root(2)`).
        const ROOT_SWITCH = 1 << 6;
        /// The task cannot change files of the host through the root that is populated from them.
        const HOST_FILES = 1 << 7;
        /// Sensitive files below `/proc` and `/sys` are masked or read-only.
        const MASKED_PATHS = 1 << 8;
        /// The task can open only the declared device nodes. Enforced by `nodev` mounts and a read-only `/dev`, and by
        /// a device cgroup if there is one. A reason in the report says whether there is.
        const DEVICES = 1 << 9;
        /// User, primary group and supplementary groups are the requested ones.
        const IDS = 1 << 10;
        /// All five capability sets are the calculated ones (`capabilities(7)`).
        const CAPS = 1 << 11;
        /// No program gains privileges by `execve(2)` (`PR_SET_NO_NEW_PRIVS`, Linux 3.5).
        const NO_NEW_PRIVS = 1 << 12;
        /// The limits of `setrlimit(2)` are the requested ones.
        const RLIMITS = 1 << 13;
        /// `oom_score_adj` is the requested value, not the caller's (`proc_pid_oom_score_adj(5)`).
        const OOM_SCORE = 1 << 14;
        /// All processes of the task can be killed at once, even while they fork.
        const KILL = 1 << 15;
        /// Memory limit: `memory`, `memory_max` and `memory_high` of [`Limits`](crate::Limits).
        const MEMORY = 1 << 16;
        /// Swap limit: [`Limits::swap`](crate::Limits::swap).
        const SWAP = 1 << 17;
        /// CPU weight: [`Limits::cpu_shares`](crate::Limits::cpu_shares) and [`cpu_idle`](crate::Limits::cpu_idle).
        const CPU = 1 << 18;
        /// CPUs that the task may run on: [`Limits::cores`](crate::Limits::cores).
        const CPUSET = 1 << 19;
        /// Limit of processes and threads: [`Limits::pids_max`](crate::Limits::pids_max).
        const PIDS = 1 << 20;
        /// The task cannot create a user namespace, in which it would have every capability (`user_namespaces(7)`).
        const NO_USER_NS = 1 << 21;
        /// CPU time limit: [`Limits::cpu_max`](crate::Limits::cpu_max).
        const CPU_MAX = 1 << 22;
        /// Block I/O: [`Limits::io_weight`](crate::Limits::io_weight) and [`io_max`](crate::Limits::io_max).
        const IO = 1 << 23;
        /// Limits of huge pages: [`Limits::hugetlb`](crate::Limits::hugetlb).
        const HUGETLB = 1 << 24;
        /// The OOM killer kills the whole task: [`Limits::oom_group`](crate::Limits::oom_group).
        const OOM_GROUP = 1 << 25;
        /// The task makes no system call that its filter refuses (`seccomp(2)`). See [`filter`](crate::filter).
        const SYSCALLS = 1 << 26;
        /// The task is killed at its [`deadline`](crate::SandboxSpec::deadline), also without its caller.
        const DEADLINE = 1 << 27;
        /// The task is killed when it has used its [`cpu_deadline`](crate::SandboxSpec::cpu_deadline), also without its
        /// caller.
        const CPU_DEADLINE = 1 << 28;
        /// The exit status is written to a file of the operator's [`state_dir`](crate::Policy::state_dir), also without
        /// the caller, and the task can neither reach nor forge it.
        const EXIT_RECORD = 1 << 29;
    }
}

impl Control {
    /// The controls that need a cgroup controller. They degrade together: see
    /// [`Policy::required_controllers`](crate::Policy::required_controllers).
    pub const RESOURCES: Control = Control::MEMORY
        .union(Control::SWAP)
        .union(Control::OOM_GROUP)
        .union(Control::CPU)
        .union(Control::CPU_MAX)
        .union(Control::CPUSET)
        .union(Control::PIDS)
        .union(Control::IO)
        .union(Control::HUGETLB);

    /// The deadlines, which PID 1 watches.
    pub(crate) const DEADLINES: Control = Control::DEADLINE.union(Control::CPU_DEADLINE);

    /// Parses a list as on the command line: `all`, `none`, or names separated by commas (`pid_ns,caps`). Case does not
    /// matter.
    ///
    /// # Errors
    /// [`InvalidValue`] with the first unknown name.
    pub fn parse(list: &str) -> Result<Control, InvalidValue> {
        match list.trim().to_ascii_lowercase().as_str() {
            "all" => return Ok(Control::all()),
            "none" | "" => return Ok(Control::empty()),
            _ => {}
        }
        list.split(',').try_fold(Control::empty(), |set, name| {
            let upper = name.trim().to_ascii_uppercase();
            Control::from_name(&upper).map(|c| set | c).ok_or_else(|| {
                let known: Vec<String> = Control::all().names().collect();
                InvalidValue::new(format!("{name:?} is none of the controls {}", known.join(", ")))
            })
        })
    }

    /// The names of the controls in this set, in lower case, in the order of declaration.
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

impl FromStr for Control {
    type Err = InvalidValue;

    /// As [`parse`](Control::parse).
    fn from_str(list: &str) -> Result<Self, InvalidValue> {
        Control::parse(list)
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

/// The controls that must hold, or the spawn fails with [`Error::Unsupported`](crate::Error::Unsupported). Spec and
/// policy each have one, and a sandbox must satisfy both.
///
/// Serialised: `"best_effort"`, `"asked"`, `"full"`, or a list of controls (`["memory", "pids"]`).
///
/// ```
/// use cofferdam::{Control, Limits, Require, Sandbox};
///
/// let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
/// let asked = Sandbox::command("make").limits(limits);
/// // On a host where memory cannot be limited, `asked` fails. This one runs, and the report says so.
/// let lenient = asked.clone().require(Require::BestEffort);
/// // This one also fails if the memory or swap limit is only weakened.
/// let strict = asked.clone().require(Control::MEMORY | Control::SWAP);
/// # let _ = (asked, lenient, strict);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Require {
    /// No control must hold. The report says which do not.
    BestEffort,
    /// No control that was asked for may be missing. It may be weakened. This is the default.
    ///
    /// Three controls may be missing nevertheless: `OOM_SCORE` if the spec sets no `oom_score_adj`, `HOST_FILES` if
    /// the spec makes the root [`writable`](crate::Root::writable), and `EXIT_RECORD` if the spec turns
    /// [`init`](crate::SandboxSpec::init) off and the caller lacks `CAP_KILL`.
    #[default]
    Asked,
    /// Every control that was asked for must be enforced. None may be missing or weakened.
    Full,
    /// Like [`Asked`](Require::Asked), and these controls must be enforced. A control that the spec does not ask for is
    /// not enforced, so the spawn fails.
    These(Control),
}

impl Require {
    /// Whether `control` must be enforced if it is asked for.
    pub(crate) fn names(self, control: Control) -> bool {
        match self {
            Require::BestEffort | Require::Asked => false,
            Require::Full => true,
            Require::These(controls) => controls.contains(control),
        }
    }

    /// The required controls that `report` does not satisfy. Controls in `forgiven` may be missing unless `self` names
    /// them.
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

    /// Parses a word of the serialised form, or names of controls separated by commas.
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

/// The reason why a control is weakened or missing, or a remark on a control that is enforced or was not asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Reason {
    /// The controls that the reason is about.
    pub control: Control,
    /// The cause, as a clause that follows the name of the control: `no controller "memory" on cgroup v2`.
    pub why: String,
}

/// The effect of a refused step on a control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Extent {
    /// The control is unaffected; the reason is a remark.
    Noted,
    /// The control is weakened.
    Weakened,
    /// The control is missing.
    Lost,
}

/// The effect of a refused step on a control, with the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Effect {
    pub control: Control,
    pub extent: Extent,
    pub why: String,
}

impl Effect {
    /// `control` is missing.
    pub(crate) fn lost(control: Control, why: impl Into<String>) -> Effect {
        Effect { control, extent: Extent::Lost, why: why.into() }
    }

    /// `control` is weakened.
    pub(crate) fn weakened(control: Control, why: impl Into<String>) -> Effect {
        Effect { control, extent: Extent::Weakened, why: why.into() }
    }

    /// `control` is unaffected.
    pub(crate) fn noted(control: Control, why: impl Into<String>) -> Effect {
        Effect { control, extent: Extent::Noted, why: why.into() }
    }
}

/// The controls that were asked for, and which of them hold.
///
/// `asked` is the disjoint union of `enforced`, `weakened` and `missing`. `Display` prints the last three and the
/// reasons.
///
/// ```no_run
/// use cofferdam::{Control, Limits, Require, Sandbox};
///
/// let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
/// let task = Sandbox::command("make").limits(limits).require(Require::BestEffort).spawn()?;
/// let report = task.report();
/// if !report.enforced.contains(Control::MEMORY) {
///     eprintln!("memory is not limited: {}", report.why(Control::MEMORY));
/// }
/// eprintln!("weakened: {}; missing: {}", report.weakened, report.missing);
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// The controls that the spec asks for, including its defaults.
    pub asked: Control,
    /// The controls that hold completely.
    pub enforced: Control,
    /// The controls that hold in part. `reasons` says what is not covered.
    pub weakened: Control,
    /// The controls that do not hold. `reasons` says why.
    pub missing: Control,
    /// At least one reason for each control in `weakened` and `missing`, and remarks on others.
    pub reasons: Vec<Reason>,
}

impl Report {
    /// Adds `control` to `asked`, and to `enforced` unless it is weakened or missing.
    pub(crate) fn enforce(&mut self, control: Control) {
        self.asked |= control;
        self.enforced |= control.difference(self.weakened | self.missing);
    }

    /// Adds `control` to `asked`, and to `weakened` unless it is missing. Does nothing for the empty set.
    pub(crate) fn weaken(&mut self, control: Control, why: impl Into<String>) {
        if control.is_empty() {
            return;
        }
        self.asked |= control;
        self.enforced.remove(control);
        self.weakened |= control.difference(self.missing);
        self.reasons.push(Reason { control, why: why.into() });
    }

    /// If `control` is weakened in `other`, weakens it for the same reasons.
    pub(crate) fn weaken_as(&mut self, other: &Report, control: Control) {
        let reasons = other.reasons.iter().filter(|_| other.weakened.contains(control));
        for reason in reasons.filter(|reason| reason.control.contains(control)) {
            self.weaken(control, reason.why.clone());
        }
    }

    /// Adds `control` to `asked` and to `missing`. Does nothing for the empty set.
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

    /// Adds a remark, which changes no set.
    pub(crate) fn note(&mut self, control: Control, why: impl Into<String>) {
        self.reasons.push(Reason { control, why: why.into() });
    }

    /// Records an effect. `cause`, the refusal that led to it, is appended to the reason.
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

    /// The controls of `required` that are not enforced.
    pub(crate) fn unmet(&self, required: Control) -> Control {
        required.difference(self.enforced)
    }

    /// The reasons about any of `controls`, joined by `; `. Empty if there is none.
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
    fn asked_is_the_disjoint_union_of_enforced_weakened_and_missing() {
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
    fn a_printed_or_serialised_list_of_controls_is_parsed_back() {
        assert_eq!(Control::parse("all"), Ok(Control::all()));
        assert_eq!("ALL".parse(), Ok(Control::all()));
        assert_eq!(Control::parse("none"), Ok(Control::empty()));
        assert_eq!(Control::parse("PID_NS,caps"), Ok(Control::PID_NS | Control::CAPS));
        assert_eq!((Control::PID_NS | Control::CAPS).to_string(), "pid_ns,caps");
        assert!(Control::parse("pidns").is_err());
        let json = serde_json::to_string(&Control::RESOURCES).unwrap();
        assert_eq!(serde_json::from_str::<Control>(&json).unwrap(), Control::RESOURCES);
    }
}
