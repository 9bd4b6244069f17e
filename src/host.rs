//! Facts about this host, asked once and passed as a value.
//!
//! A driver probes at its start and hands the value to every sandbox; tests make one up. What `doctor`
//! prints comes from here. What depends on a spec (its user, its paths) is a [`Survey`], in `host/survey.rs`.
//!
//! It decides nothing: whether a missing fact matters is for `compile` to say.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::caps::{self, CapSet};
use crate::cgroup::Detection;
use crate::error::{Error, Result};
use crate::ids::IdMap;
use crate::ns;
use crate::rootfs::{self, FileKind};
use crate::sys;

mod survey;

#[cfg(test)]
pub(crate) use survey::Skip;
pub(crate) use survey::{Stream, Survey, chroot_env, nodes, temp_dir};

/// What this kernel offers and what the caller may do with it.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Host {
    /// The kernel's version, the first two numbers.
    pub kernel: (u32, u32),
    /// The caller's effective user id.
    pub uid: u32,
    /// The caller's effective group id.
    pub gid: u32,
    /// The caller's supplementary groups.
    pub groups: Vec<u32>,
    /// All capabilities of this kernel.
    pub supported: CapSet,
    /// The capabilities that the caller can pass on to a task: permitted, and in its bounding set.
    pub held: CapSet,
    /// Whether the caller is in a user namespace: its ids and capabilities are those of that namespace, and no more than
    /// its user's outside.
    pub nested: bool,
    /// The user ids that the caller's user namespace has, and what they are outside of it.
    pub uid_map: IdMap,
    /// The group ids, likewise.
    pub gid_map: IdMap,
    /// Whether `setgroups(2)` is allowed in it (`user_namespaces(7)`).
    pub set_groups: bool,
    /// The cgroup hierarchies and their controllers.
    pub cgroups: Detection,
    /// Why a user namespace cannot be made without privileges; `None` when nothing is known against it.
    pub user_ns_forbidden: Option<String>,
    /// The Landlock ABI (`landlock(7)`); 0 where there is none.
    pub landlock_abi: u32,
    /// The caller's `oom_score_adj`.
    pub oom_score_adj: i32,
    /// Whether the caller has `no_new_privs` set, which every task then inherits.
    pub no_new_privs: bool,
    /// Whether the caller denies itself memory that is both writable and executable (`PR_SET_MDWE`, Linux 6.3), which no
    /// process can take back, and every task then inherits.
    pub mdwe: bool,
    /// Whether the kernel has the overlay file system, or a module of it that the caller may load.
    pub overlay: bool,
    /// Sensitive files of this kernel that a sandbox covers.
    pub masked: Vec<(PathBuf, FileKind)>,
    /// Files and directories below `/etc` that other users may not read: covered where `/etc` comes from the default
    /// `chroot_env`.
    pub private: Vec<(PathBuf, FileKind)>,
    /// Options of the host's `/proc` that hide processes: a sandbox in the host's PID namespace has them too.
    pub proc_options: Vec<(String, String)>,
    /// Files and directories of this kernel that a sandbox makes read-only.
    pub read_only: Vec<(PathBuf, FileKind)>,
}

/// An id map of the caller's; all ids where it cannot be read.
fn id_map(kind: &str) -> IdMap {
    let text = std::fs::read_to_string(format!("/proc/self/{kind}_map"));
    text.ok().and_then(|text| IdMap::parse(&text)).unwrap_or_else(IdMap::identity)
}

/// What making namespaces and changing ids needs, in the caller's own user namespace.
const PRIVILEGES: [&str; 4] = ["sys_admin", "setuid", "setgid", "setpcap"];

impl Host {
    /// Asks the kernel. Reads `/proc`, `/sys` and the cgroup file systems; changes nothing, but that it makes
    /// and removes a cgroup where one was delegated to the caller ([`Detection::probe`]).
    ///
    /// # Errors
    /// [`Error::Prepare`] when `/proc` cannot be read.
    pub fn probe() -> Result<Host> {
        let read =
            |path: &str| std::fs::read_to_string(path).map_err(Error::prepare(format!("read({path:?})")));
        let release = read("/proc/sys/kernel/osrelease")?;
        let adj = read("/proc/self/oom_score_adj")?;
        let groups = nix::unistd::getgroups().map_err(Error::prepare("getgroups()"))?;
        Ok(Host {
            kernel: parse_release(&release),
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
            supported: caps::supported()?,
            held: caps::own()?.grantable(),
            nested: ns::probe::nested(),
            uid_map: id_map("uid"),
            gid_map: id_map("gid"),
            set_groups: std::fs::read_to_string("/proc/self/setgroups")
                .is_ok_and(|text| text.trim() != "deny"),
            cgroups: Detection::probe(),
            user_ns_forbidden: ns::probe::user_ns(),
            landlock_abi: sys::probe::landlock_abi().unwrap_or(0),
            oom_score_adj: adj.trim().parse().unwrap_or(0),
            no_new_privs: sys::probe::no_new_privs(),
            mdwe: sys::probe::mdwe(),
            overlay: rootfs::probe::overlay(&read("/proc/filesystems")?),
            masked: rootfs::probe::present(&rootfs::probe::MASKED),
            private: rootfs::probe::private(Path::new("/etc")),
            proc_options: rootfs::probe::proc_options(
                &std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default(),
            ),
            read_only: rootfs::probe::present(&rootfs::probe::READ_ONLY),
        })
    }

    /// Whether the caller may make every namespace by itself, mount the host's file systems and become any user.
    /// Otherwise a user namespace is made. Root of a user namespace is not privileged.
    pub fn privileged(&self) -> bool {
        !self.nested && self.lacking().is_empty()
    }

    /// Whether the caller may map ids of its user namespace that are not its own.
    pub(crate) fn maps_ids(&self) -> bool {
        self.held.has("setuid") && self.held.has("setgid") && self.set_groups
    }

    /// What keeps the caller from being [privileged](Host::privileged), as the end of a sentence about it: `lacks sys_admin`.
    pub fn hindrance(&self) -> String {
        let lacking = self.lacking();
        match (self.nested, lacking.is_empty()) {
            (true, true) => "is in a user namespace".to_string(),
            (true, false) => format!("is in a user namespace and lacks {lacking}"),
            (false, _) => format!("lacks {lacking}"),
        }
    }

    /// Why this kernel lacks what is built on; `None` when it does not.
    pub(crate) fn too_old(&self) -> Option<String> {
        let (major, minor) = self.kernel;
        (self.kernel < OLDEST_KERNEL)
            .then(|| format!("mount_setattr(2) needs Linux 5.12, this is {major}.{minor}"))
    }

    /// Where cgroup file systems are mounted.
    pub(crate) fn cgroup_mounts(&self) -> Vec<PathBuf> {
        let v1 = self.cgroups.v1.values().map(|h| h.mount.clone());
        v1.chain(self.cgroups.v2.iter().map(|v2| v2.mount.clone())).collect()
    }

    /// The capabilities that stand between the caller and being [privileged](Host::privileged).
    pub fn lacking(&self) -> CapSet {
        let needed = CapSet::from_names(PRIVILEGES).unwrap_or(self.supported);
        needed.difference(self.held)
    }
}

/// Whether a driver can offer this host, as a fingerprint wants it said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "status", content = "reason", rename_all = "lowercase")]
pub enum Health {
    /// Everything can be enforced.
    Healthy,
    /// Sandboxes run, but something that a driver promises cannot be enforced.
    Unhealthy(String),
    /// No sandbox can be made here.
    Undetected(String),
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Health::Healthy => f.write_str("healthy"),
            Health::Unhealthy(why) => write!(f, "unhealthy: {why}"),
            Health::Undetected(why) => write!(f, "undetected: {why}"),
        }
    }
}

/// The oldest kernel that has all that is built on: `mount_setattr(2)` came last.
const OLDEST_KERNEL: (u32, u32) = (5, 12);

impl Host {
    /// The verdict over all that was found.
    pub fn health(&self) -> Health {
        if let Some(why) = self.too_old() {
            return Health::Undetected(why);
        }
        if let (false, Some(why)) = (self.privileged(), &self.user_ns_forbidden) {
            return Health::Undetected(format!("the caller {}, and {why}", self.hindrance()));
        }
        let mut reasons = Vec::new();
        if !self.privileged() {
            let who = if self.maps_ids() { "" } else { ", as the caller" };
            reasons.push(format!("the caller {}: tasks run in a user namespace{who}", self.hindrance()));
        }
        reasons.extend(self.cgroups.can_limit().err().map(|why| format!("no resource limits: {why}")));
        if reasons.is_empty() { Health::Healthy } else { Health::Unhealthy(reasons.join("; ")) }
    }
}

/// The first two numbers of `uname -r`; zeroes where it has none.
fn parse_release(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        for (text, expect) in
            [("6.18.44-fc-v595\n", (6, 18)), ("5.10.0-28-amd64", (5, 10)), ("4.4", (4, 4)), ("x", (0, 0))]
        {
            assert_eq!(parse_release(text), expect, "{text}");
        }
    }
}
