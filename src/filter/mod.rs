//! Which system calls a task can make.
//!
//! A [`Filter`] is chosen by the spec: the default profile, a [`Profile`] of its own, or none. The default profile refuses
//! what moby's does at the capabilities that the task has, and more (`default.rs` has every group with its reason). The
//! parent [compiles](compile) it into a program; init loads that last of all.
//!
//! This room decides and compiles. It loads nothing.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

mod bpf;
mod cache;
mod calls;
mod compile;
mod default;
mod multiplex;
mod profile;
#[cfg(test)]
mod tests;

pub use bpf::Program;
pub(crate) use cache::{CompiledFilter, compiled};
pub use calls::{Arch, all, number};
pub use compile::{compile, decide};
pub use default::{GROUPS, Group};
pub use profile::{Action, Base, Call, Compare, Is, Profile, Rule};

/// Which system calls a task can make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Those of the default profile.
    #[default]
    Default,
    /// All. The report says what that opens. New user namespaces are refused all the same, unless the spec asks for them.
    None,
    /// Those of this profile.
    Profile(Profile),
}

impl Filter {
    /// The profile, where there is one.
    pub fn profile(&self) -> Option<Profile> {
        match self {
            Filter::Default => Some(Profile::default()),
            Filter::None => None,
            Filter::Profile(profile) => Some(profile.clone()),
        }
    }
}

/// What of a task opens calls in the default profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Grants {
    /// Its capabilities, by name: `sys_admin`.
    pub capabilities: BTreeSet<String>,
    /// Whether it may make user namespaces, in which it mounts what it likes.
    pub user_namespaces: bool,
    /// Whether it shares the host's PID namespace.
    pub host_processes: bool,
}
