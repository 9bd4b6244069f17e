//! Namespaces: which of them a task gets for itself, joins, or shares with its host.
//!
//! The mount namespace is always the task's own. PID and IPC follow a mode, `private` or `host`, that
//! a task may choose below the operator's ceiling; the network is the host's, none, or joined by
//! path; UTS and cgroup namespaces are options. Where the caller has no privileges, a user namespace
//! makes the rest possible.
//!
//! What it does not do: configure a network (beyond bringing `lo` up in an empty one), or user
//! namespaces for a caller that does not need one.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub(crate) mod lower;
pub(crate) mod probe;

/// Whether a task has a namespace of its own or shares the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IsolationMode {
    /// A new namespace.
    Private,
    /// The caller's namespace.
    Host,
}

impl fmt::Display for IsolationMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IsolationMode::Private => "private",
            IsolationMode::Host => "host",
        })
    }
}

impl FromStr for IsolationMode {
    type Err = ();

    /// Exactly `private` or `host`; upper case is refused.
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "private" => Ok(IsolationMode::Private),
            "host" => Ok(IsolationMode::Host),
            _ => Err(()),
        }
    }
}

/// Reads the value of `field`.
///
/// # Errors
/// [`Error::Spec`] for anything but `private` and `host`, the empty string included.
pub(crate) fn parse_mode(field: &'static str, value: &str) -> Result<IsolationMode> {
    value
        .parse()
        .map_err(|()| Error::spec(field, format!("{field} must be \"private\" or \"host\", got {value:?}")))
}

/// The mode that a task gets: its own choice, else the operator's default; never `host` above the
/// ceiling.
pub(crate) fn resolve_mode(
    task: (&'static str, &str),
    default: (&'static str, &str),
    allow_host: bool,
) -> Result<IsolationMode> {
    let default = parse_mode(default.0, default.1)?;
    let mode = if task.1.is_empty() { default } else { parse_mode(task.0, task.1)? };
    if mode == IsolationMode::Host && !allow_host {
        return Err(Error::denied(format!("{} \"host\" is above the ceiling of this host's policy", task.0)));
    }
    Ok(mode)
}

/// The network that a task sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// The caller's network namespace.
    #[default]
    Host,
    /// A new network namespace with nothing but `lo`, which is up.
    None,
    /// The namespace that this file refers to (`/run/netns/x`, `/proc/1/ns/net`): made and configured
    /// by somebody else, joined by `setns(2)`. Needs `CAP_SYS_ADMIN` over it.
    Path(PathBuf),
}

/// The namespaces of one sandbox, decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Namespaces {
    pub pid: IsolationMode,
    pub ipc: IsolationMode,
    pub network: Network,
    pub uts: Option<String>,
    pub cgroup: bool,
    pub user: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(plugin: &str, task: &str, allow: bool) -> String {
        match resolve_mode(("pid_mode", task), ("default_pid_mode", plugin), allow) {
            Ok(mode) => mode.to_string(),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn the_task_chooses_below_the_ceiling() {
        for (plugin, task, allow, expect) in [
            ("private", "private", true, "private"),
            ("private", "host", true, "host"),
            ("private", "", true, "private"),
            ("host", "host", true, "host"),
            ("host", "", true, "host"),
            ("host", "private", false, "private"),
            ("private", "host", false, "pid_mode \"host\" is above the ceiling of this host's policy"),
            ("host", "", false, "pid_mode \"host\" is above the ceiling of this host's policy"),
            ("private", "Host", true, "pid_mode must be \"private\" or \"host\", got \"Host\""),
            ("private", "other", true, "pid_mode must be \"private\" or \"host\", got \"other\""),
            ("other", "", true, "default_pid_mode must be \"private\" or \"host\", got \"other\""),
            ("", "private", true, "default_pid_mode must be \"private\" or \"host\", got \"\""),
        ] {
            assert_eq!(resolve(plugin, task, allow), expect, "{plugin:?} {task:?} {allow}");
        }
    }
}
