//! A profile: filter rules as data.

use serde::{Deserialize, Serialize};

use super::calls::{self, Arch};
use crate::error::{Error, Result};

/// The system calls that a task may make. Rules are tried in order, and the first rule that matches decides.
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
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct Profile {
    /// The decision for calls that no rule of this profile matches.
    pub base: Base,
    /// The rules, at most 1024.
    pub rules: Vec<Rule>,
    /// Whether i386 calls are allowed: 32-bit programs, and `int 0x80` in 64-bit programs. True by default. If false,
    /// each such call fails with `ENOSYS`.
    pub i386: bool,
}

impl Default for Profile {
    fn default() -> Self {
        Profile { base: Base::Default, rules: Vec::new(), i386: true }
    }
}

/// The decision for calls that no rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Base {
    /// The default profile, for the task's capabilities.
    #[default]
    Default,
    /// This action. Choose `Errno(1)` if the rules list the allowed calls, and `Allow` if they list the refused ones.
    Action(Action),
}

/// A rule: an action for these calls if all comparisons hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Rule {
    /// Names as in the kernel's system call tables: `openat`, `socketcall`. A name that only one architecture has is
    /// ignored for the other. A name that neither has is an error.
    pub calls: Vec<String>,
    /// The action for matching calls.
    pub action: Action,
    /// Comparisons of arguments, at most 32. Without any, the rule matches all arguments.
    #[serde(default)]
    pub args: Vec<Compare>,
}

impl Rule {
    /// A rule from names that must be known.
    pub(crate) fn new(calls: &[&str], args: Vec<Compare>, action: Action) -> Rule {
        Rule { calls: calls.iter().map(|name| (*name).to_string()).collect(), action, args }
    }
}

/// The kernel's action for a system call (`seccomp(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Action {
    /// Executes the call.
    Allow,
    /// Executes the call, and writes it to the audit log.
    Log,
    /// Fails the call with this errno, 1 to 4095.
    Errno(u16),
    /// Sends SIGSYS to the thread.
    Trap,
    /// Kills the thread.
    KillThread,
    /// Kills the process.
    Kill,
}

impl Action {
    /// The action as a `SECCOMP_RET_*` value.
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

    /// The action of a `SECCOMP_RET_*` value. The kernel kills the process for an unknown value.
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

    /// Whether the kernel executes the call.
    pub fn executes(self) -> bool {
        matches!(self, Action::Allow | Action::Log)
    }
}

/// A comparison of one argument, as an unsigned number, with a constant.
///
/// The kernel reads many arguments as `int`. A filter that compares all 64 bits of such an argument can be bypassed by
/// setting one of the upper 32 bits. `mask` selects the bits that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Compare {
    /// Index of the argument, 0 to 5.
    pub arg: u8,
    /// The comparison operator.
    pub is: Is,
    /// The constant.
    pub value: u64,
    /// Bits of the argument that are compared; all by default. The other bits of the argument count as zero.
    #[serde(default = "all_bits")]
    pub mask: u64,
}

const fn all_bits() -> u64 {
    u64::MAX
}

/// A comparison operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Is {
    /// The argument equals the constant.
    Eq,
    /// The argument does not equal the constant.
    Ne,
    /// The argument is less than the constant.
    Lt,
    /// The argument is less than or equal to the constant.
    Le,
    /// The argument is greater than the constant.
    Gt,
    /// The argument is greater than or equal to the constant.
    Ge,
}

impl Compare {
    /// Compares the lower 32 bits of an argument, which the kernel reads as `int`.
    pub const fn int(arg: u8, is: Is, value: u32) -> Compare {
        Compare { arg, is, value: value as u64, mask: 0xffff_ffff }
    }

    /// Holds if any of `bits` is set in the lower 32 bits of an argument.
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

/// A system call as a filter sees it: `struct seccomp_data` without the instruction pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The system call table.
    pub arch: Arch,
    /// Number of the call in that table. x32 calls have bit 30 set.
    pub number: u32,
    /// Arguments. Those of i386 calls have 32 bits.
    pub args: [u64; 6],
}

/// Maximum number of comparisons in a rule, so that a jump reaches the end of the rule (the jump offsets of `struct
/// sock_filter` are one byte).
pub(super) const MOST_COMPARES: usize = 32;
const MOST_RULES: usize = 1024;

impl Profile {
    /// Checks that the profile can be compiled, except for the length of the program.
    ///
    /// # Errors
    /// [`Error::Spec`] for `filter`: a name that no table has, an argument index above 5, an errno outside 1 to 4095,
    /// more than 1024 rules, or more than 32 comparisons in a rule.
    pub fn validate(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::spec("filter", why));
        if self.rules.len() > MOST_RULES {
            return wrong(format!("{} rules exceed the limit of {MOST_RULES}", self.rules.len()));
        }
        let actions = self.rules.iter().map(|rule| rule.action);
        let base = match self.base {
            Base::Default => None,
            Base::Action(action) => Some(action),
        };
        for action in actions.chain(base) {
            if let Action::Errno(0 | 4096..) = action {
                return wrong(format!("{action:?} is not an error number from 1 to 4095"));
            }
        }
        for rule in &self.rules {
            if let Some(name) = rule.calls.iter().find(|name| !calls::known(name)) {
                return wrong(format!("{name:?} is not a system call of x86_64 or i386"));
            }
            if rule.args.len() > MOST_COMPARES {
                return wrong(format!(
                    "{} comparisons in a rule exceed the limit of {MOST_COMPARES}",
                    rule.args.len()
                ));
            }
            if let Some(compare) = rule.args.iter().find(|compare| compare.arg > 5) {
                return wrong(format!(
                    "system calls have arguments 0 to 5, but a comparison uses argument {}",
                    compare.arg
                ));
            }
        }
        Ok(())
    }
}

crate::notation::from_maps! {
    Profile: "an object with the fields of a profile",
    Rule: "an object with calls, action and args",
    Compare: "an object with arg, mask, is and value",
}
