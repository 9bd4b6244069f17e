//! A profile: rules as data, and what they say of a call.

use serde::{Deserialize, Serialize};

use super::calls::{self, Arch};
use crate::error::{Error, Result};

/// What a process may ask of the kernel. Rules are tried in order, and the first that fits decides.
///
/// ```
/// use cofferdam::filter::{Action, Arch, Base, Call, Profile, Rule};
///
/// // The default profile, but no process may open a socket.
/// let rule = Rule { calls: vec!["socket".into()], action: Action::Errno(13), args: Vec::new() };
/// let profile = Profile { rules: vec![rule], ..Profile::default() };
/// let filter = cofferdam::filter::compile(&profile, &Default::default())?;
/// let call = Call { arch: Arch::X86_64, number: libc::SYS_socket as u32, args: [2, 1, 0, 0, 0, 0] };
/// assert_eq!(filter.decide(&call), Action::Errno(13));
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Profile {
    /// What decides where no rule of this profile fits.
    pub base: Base,
    /// The rules.
    pub rules: Vec<Rule>,
    /// Whether programs of 32 bits run, and `int 0x80` of those of 64. True by default. Turned off, each such call is
    /// `ENOSYS`.
    pub i386: bool,
}

impl Default for Profile {
    fn default() -> Self {
        Profile { base: Base::Default, rules: Vec::new(), i386: true }
    }
}

/// What decides where no rule fits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// The default profile, at the capabilities that the task has.
    #[default]
    Default,
    /// This action: of a list of what is allowed `Errno(1)`, of one of what is refused `Allow`.
    Action(Action),
}

/// A rule: these calls, where all comparisons hold, get this action.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Names as in the kernel's tables: `openat`, `socketcall`. A name that only one architecture has is of no concern
    /// to the other; one that neither has is an error.
    pub calls: Vec<String>,
    /// What the kernel does.
    pub action: Action,
    /// Comparisons of arguments.
    #[serde(default)]
    pub args: Vec<Compare>,
}

impl Rule {
    /// From names that are known here.
    pub(crate) fn new(calls: &[&str], args: Vec<Compare>, action: Action) -> Rule {
        Rule { calls: calls.iter().map(|name| (*name).to_string()).collect(), action, args }
    }
}

/// What the kernel does about a call (`seccomp(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Executes it.
    Allow,
    /// Executes it, and writes it to the audit log.
    Log,
    /// Returns this error number, 1 to 4095.
    Errno(u16),
    /// Sends the thread SIGSYS.
    Trap,
    /// Kills the thread.
    KillThread,
    /// Kills the process.
    Kill,
}

impl Action {
    /// `SECCOMP_RET_*`.
    pub(super) const fn word(self) -> u32 {
        match self {
            Action::Allow => 0x7fff_0000,
            Action::Log => 0x7ffc_0000,
            Action::Errno(errno) => 0x0005_0000 | errno as u32,
            Action::Trap => 0x0003_0000,
            Action::KillThread => 0,
            Action::Kill => 0x8000_0000,
        }
    }

    /// The action of such a word; the kernel kills the process for one that it does not know.
    pub(super) const fn of(word: u32) -> Action {
        match word & 0xffff_0000 {
            0x7fff_0000 => Action::Allow,
            0x7ffc_0000 => Action::Log,
            0x0005_0000 => Action::Errno((word & 0xffff) as u16),
            0x0003_0000 => Action::Trap,
            0 => Action::KillThread,
            _ => Action::Kill,
        }
    }

    /// Whether the call is executed.
    pub fn executes(self) -> bool {
        matches!(self, Action::Allow | Action::Log)
    }
}

/// A comparison of one argument, as an unsigned number, with a constant.
///
/// The kernel takes many arguments as `int`, and of those a filter that compares all 64 bits is slipped past by setting
/// one of the upper 32. `mask` says which bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compare {
    /// Which argument, from 0 to 5.
    pub arg: u8,
    /// How.
    pub is: Is,
    /// With what.
    pub value: u64,
    /// The bits of the argument that are looked at; all by default.
    #[serde(default = "all_bits")]
    pub mask: u64,
}

const fn all_bits() -> u64 {
    u64::MAX
}

/// How an argument compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Is {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
}

impl Compare {
    /// Of the lower half of an argument: what the kernel takes as `int`.
    pub const fn int(arg: u8, is: Is, value: u32) -> Compare {
        Compare { arg, is, value: value as u64, mask: 0xffff_ffff }
    }

    /// Whether any of these bits is set in the lower half of an argument.
    pub const fn any_of(arg: u8, bits: u32) -> Compare {
        Compare { arg, is: Is::Ne, value: 0, mask: bits as u64 }
    }

    pub(super) fn holds(&self, args: &[u64; 6]) -> bool {
        let arg = args.get(usize::from(self.arg)).copied().unwrap_or_default() & self.mask;
        match self.is {
            Is::Eq => arg == self.value,
            Is::Ne => arg != self.value,
            Is::Lt => arg < self.value,
            Is::Le => arg <= self.value,
            Is::Gt => arg > self.value,
            Is::Ge => arg >= self.value,
        }
    }
}

/// A call as a filter sees it: `struct seccomp_data`, without the instruction pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// By which table.
    pub arch: Arch,
    /// Its number there; that of x32 has the bit 30.
    pub number: u32,
    /// Its arguments. Those of i386 have 32 bits.
    pub args: [u64; 6],
}

/// So many that the end of a rule is reached by a jump (`struct sock_filter` has a byte for it).
pub(super) const MOST_COMPARES: usize = 32;
const MOST_RULES: usize = 1024;

impl Profile {
    /// Refuses what no filter can be made of.
    ///
    /// # Errors
    /// [`Error::Spec`] for `filter`: a name that no table has, an argument beyond the sixth, an error number beyond 4095, more
    /// than 1024 rules, or than 32 comparisons in one.
    pub fn validate(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::spec("filter", why));
        if self.rules.len() > MOST_RULES {
            return wrong(format!("{} rules are more than {MOST_RULES}", self.rules.len()));
        }
        let actions = self.rules.iter().map(|rule| rule.action);
        let base = match self.base {
            Base::Default => None,
            Base::Action(action) => Some(action),
        };
        for action in actions.chain(base) {
            if let Action::Errno(0 | 4096..) = action {
                return wrong(format!("{action:?} is no error number: 1 to 4095"));
            }
        }
        for rule in &self.rules {
            if let Some(name) = rule.calls.iter().find(|name| !calls::known(name)) {
                return wrong(format!("{name:?} is no system call of x86_64 or i386"));
            }
            if rule.args.len() > MOST_COMPARES {
                return wrong(format!(
                    "{} comparisons in a rule are more than {MOST_COMPARES}",
                    rule.args.len()
                ));
            }
            if let Some(compare) = rule.args.iter().find(|compare| compare.arg > 5) {
                return wrong(format!("a system call has the arguments 0 to 5, and no {}", compare.arg));
            }
        }
        Ok(())
    }
}
