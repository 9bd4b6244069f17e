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
use crate::notation::InvalidValue;

pub(crate) mod lower;
pub(crate) mod probe;

/// Whether a task has a namespace of its own or shares the caller's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IsolationMode {
    /// A new namespace.
    #[default]
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
    type Err = InvalidValue;

    /// Exactly `private` or `host`; upper case is refused.
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        match text {
            "private" => Ok(IsolationMode::Private),
            "host" => Ok(IsolationMode::Host),
            _ => Err(InvalidValue::new(format!("{text:?} is neither \"private\" nor \"host\""))),
        }
    }
}

/// The mode that a task gets: its own choice, else the operator's default; never `host` above the
/// ceiling.
pub(crate) fn resolve_mode(
    (field, task): (&'static str, Option<IsolationMode>),
    default: IsolationMode,
    allow_host: bool,
) -> Result<IsolationMode> {
    let mode = task.unwrap_or(default);
    if mode == IsolationMode::Host && !allow_host {
        return Err(Error::denied(format!("{field} \"host\" is above the ceiling of this host's policy")));
    }
    Ok(mode)
}

/// The network that a task sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
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

    fn resolve(default: IsolationMode, task: Option<IsolationMode>, allow: bool) -> String {
        match resolve_mode(("pid_mode", task), default, allow) {
            Ok(mode) => mode.to_string(),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn a_task_chooses_its_mode_below_the_ceiling() {
        use IsolationMode::{Host, Private};
        let above = "pid_mode \"host\" is above the ceiling of this host's policy";
        for (default, task, allow, expect) in [
            (Private, Some(Private), true, "private"),
            (Private, Some(Host), true, "host"),
            (Private, None, true, "private"),
            (Host, Some(Host), true, "host"),
            (Host, None, true, "host"),
            (Host, Some(Private), false, "private"),
            (Private, Some(Host), false, above),
            (Host, None, false, above),
        ] {
            assert_eq!(resolve(default, task, allow), expect, "{default} {task:?} {allow}");
        }
    }

    #[test]
    fn a_mode_is_spelled_exactly() {
        for text in ["Host", "other", "", " host"] {
            let refused = text.parse::<IsolationMode>().unwrap_err().to_string();
            assert_eq!(refused, format!("{text:?} is neither \"private\" nor \"host\""));
        }
    }
}
