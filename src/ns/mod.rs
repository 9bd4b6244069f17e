//! Namespaces: which ones are private to a task, which ones it joins, and which ones it shares with the host.
//!
//! The mount namespace is always the task's own. PID and IPC namespaces follow a mode, `private` or `host`, which a
//! task may choose within the operator's policy. The network is the host's, none, or joined by path. UTS and cgroup
//! namespaces are optional. A caller without privileges makes these namespaces in a user namespace.
//!
//! This module does not configure a network, beyond bringing `lo` up in an empty one, and does not make a user
//! namespace for a caller that does not need one.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::notation::InvalidValue;

pub(crate) mod lower;
pub(crate) mod probe;

/// Whether a task has a private namespace or shares the caller's. Serialised: `"private"` or `"host"`.
///
/// ```
/// use cofferdam::{IsolationMode, Policy, Sandbox};
///
/// // Tasks get private PID namespaces, and no task may ask for the host's.
/// let policy = Policy { default_pid_mode: IsolationMode::Private, allow_host_pid: false, ..Policy::default() };
/// // A debugger that shares only the IPC namespace with the host.
/// let sandbox = Sandbox::command("gdb").policy(&policy).ipc_mode(IsolationMode::Host);
/// # let _ = sandbox;
/// ```
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
            _ => Err(InvalidValue::new(format!("must be \"private\" or \"host\", got {text:?}"))),
        }
    }
}

/// The mode that a task gets: its own choice, else the operator's default. `host` is refused unless `allow_host` is
/// set.
pub(crate) fn resolve_mode(
    (field, task): (&'static str, Option<IsolationMode>),
    default: IsolationMode,
    allow_host: bool,
) -> Result<IsolationMode> {
    let mode = task.unwrap_or(default);
    if mode == IsolationMode::Host && !allow_host {
        let flag = format!("allow_host_{}", field.trim_end_matches("_mode"));
        return Err(Error::denied(match task {
            Some(_) => format!("{field} \"host\" is not allowed by this host's policy ({flag} is off)"),
            None => format!(
                "{field} is not given, and this host's policy contradicts itself (default_{field} is \"host\", {flag} is off)"
            ),
        }));
    }
    Ok(mode)
}

/// The network namespace of a task (`network_namespaces(7)`). Serialised: `"host"`, `"none"` or `{"path":
/// "/run/netns/x"}`.
///
/// ```
/// use cofferdam::{Network, Sandbox};
///
/// let offline = Sandbox::command("make").network(Network::None);
/// // Made before by `ip netns add jobs`.
/// let joined = Sandbox::command("curl").network(Network::Path("/run/netns/jobs".into()));
/// # let _ = (offline, joined);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Network {
    /// The caller's network namespace. The report notes that `net_ns` is not asked for.
    #[default]
    Host,
    /// A new network namespace that contains only the loopback interface `lo`, which is up.
    None,
    /// The network namespace that this absolute path refers to (`/run/netns/x`, `/proc/1/ns/net`). Another program has
    /// made and configured it. The task joins it by `setns(2)`, which needs `CAP_SYS_ADMIN` in its user namespace. A
    /// caller without privileges is refused ([`Error::Unsupported`](crate::Error::Unsupported)).
    Path(PathBuf),
}

/// The resolved namespaces of one sandbox.
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
    fn the_policy_may_forbid_host_mode() {
        use IsolationMode::{Host, Private};
        let above = "pid_mode \"host\" is not allowed by this host's policy (allow_host_pid is off)";
        let contradiction = "pid_mode is not given, and this host's policy contradicts itself (default_pid_mode is \"host\", \
                             allow_host_pid is off)";
        for (default, task, allow, expect) in [
            (Private, Some(Private), true, "private"),
            (Private, Some(Host), true, "host"),
            (Private, None, true, "private"),
            (Host, Some(Host), true, "host"),
            (Host, None, true, "host"),
            (Host, Some(Private), false, "private"),
            (Private, Some(Host), false, above),
            (Host, None, false, contradiction),
        ] {
            assert_eq!(resolve(default, task, allow), expect, "{default} {task:?} {allow}");
        }
    }

    #[test]
    fn a_mode_is_spelled_exactly() {
        for text in ["Host", "other", "", " host"] {
            let refused = text.parse::<IsolationMode>().unwrap_err().to_string();
            assert_eq!(refused, format!("must be \"private\" or \"host\", got {text:?}"));
        }
    }
}
