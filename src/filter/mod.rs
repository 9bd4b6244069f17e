//! System call filters (`seccomp(2)`).
//!
//! The spec chooses a [`Filter`]: the default profile, a [`Profile`] of its own, or none. The default profile refuses
//! the calls that moby's profile refuses for the task's capabilities, and more. [`GROUPS`] lists, with reasons, the
//! calls that are refused whatever their arguments. The parent [compiles](compile()) the profile into a program. Init
//! loads it last; without `no_new_privs`, before the capabilities are dropped.
//!
//! ```no_run
//! use cofferdam::Sandbox;
//! use cofferdam::filter::{Action, Filter, Profile, Rule};
//!
//! // The default profile, and no new sockets: socket(2) fails with errno 13, EACCES.
//! let rule = Rule { calls: vec!["socket".into()], action: Action::Errno(13), args: Vec::new() };
//! let filter = Filter::Profile(Profile { rules: vec![rule], i386: false, ..Profile::default() });
//! println!("{}", Sandbox::command("make").filter(filter).spawn()?.wait()?);
//! # Ok::<(), cofferdam::Error>(())
//! ```
//!
//! The kernel needs `CONFIG_SECCOMP_FILTER` (Linux 3.5). This module loads no filter.
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
mod table;
#[cfg(test)]
mod tests;
mod tree;

pub use bpf::Program;
pub(crate) use cache::{CompiledFilter, compiled};
pub use calls::{Arch, all, number};
pub use compile::{compile, decide};
pub use default::{CallGroup, GROUPS};
pub(crate) use default::{OF_PID, PTRACE_TRACEME, SENDFILE_OFFSET, SETLEASE};
pub use profile::{Action, Base, Call, Compare, Is, Profile, Rule};

/// The system call filter of a task. Serialised: `"default"`, `"none"` or `{"profile": {"rules": […]}}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Filter {
    /// The default profile.
    #[default]
    Default,
    /// No profile: every call is allowed, and the report says what that exposes. New user namespaces are still refused,
    /// unless the spec asks for them.
    None,
    /// A profile of the spec.
    Profile(Profile),
}

impl Filter {
    /// The profile of the filter. `None` for [`Filter::None`].
    pub fn profile(&self) -> Option<Profile> {
        match self {
            Filter::Default => Some(Profile::default()),
            Filter::None => None,
            Filter::Profile(profile) => Some(profile.clone()),
        }
    }
}

/// Properties of a task that make the default profile allow more calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Grants {
    /// The task's capabilities, by lower-case name without `CAP_`, such as `sys_admin`.
    pub capabilities: BTreeSet<String>,
    /// Whether the task may create user namespaces, in which it may mount.
    pub user_namespaces: bool,
    /// Whether the task is in the host's PID namespace.
    pub host_processes: bool,
    /// Whether PID 1 of the task's PID namespace is init, and not the command.
    pub init: bool,
}
