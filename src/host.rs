//! Facts about this host, probed once and passed as a value.
//!
//! A driver probes when it starts and passes the value to every sandbox; tests change fields of one. `doctor` prints
//! it. Facts that depend on a spec (its user, its paths) are in a [`Survey`], in `host/survey.rs`.
//!
//! This module decides nothing: `compile` decides whether a missing feature matters.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::caps::{self, CapSet};
use crate::cgroup::Detection;
use crate::error::{Error, Result};
use crate::ids::IdMap;
use crate::ns;
use crate::rootfs::private::Private;
use crate::rootfs::{self, FileKind};
use crate::sys;

mod survey;

#[cfg(test)]
pub(crate) use survey::Skip;
pub(crate) use survey::{Stream, Survey, chroot_env, inherited, may_use_real_time, nodes, streams, temp_dir};

/// Facts about this host: what the kernel supports, and which privileges the caller has.
///
/// A value is plain data and does not change. Probe once and share it, and probe again if the caller's privileges or
/// cgroups have changed.
///
/// ```no_run
/// use cofferdam::{Health, Host, Sandbox};
///
/// let host = Host::probe()?; // once
/// if let Health::Unhealthy(why) | Health::Undetected(why) = host.health() {
///     eprintln!("{why}");
/// }
/// for job in ["one", "two"] {
///     println!("{}", Sandbox::command("echo").arg(job).host(&host).spawn()?.wait()?);
/// }
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Host {
    /// The kernel's version: major and minor number.
    pub kernel: (u32, u32),
    /// The caller's effective user id.
    pub uid: u32,
    /// The caller's effective group id.
    pub gid: u32,
    /// The caller's supplementary groups.
    pub groups: Vec<u32>,
    /// All capabilities that this kernel supports.
    pub supported: CapSet,
    /// The capabilities that the caller can pass on to a task: permitted, and in its bounding set.
    pub held: CapSet,
    /// Whether the caller is in a user namespace other than the initial one. Its ids and capabilities are then valid
    /// only in that namespace.
    pub nested: bool,
    /// The user ids that are mapped in the caller's user namespace, and what they are outside of it.
    pub uid_map: IdMap,
    /// The group ids that are mapped in the caller's user namespace, and what they are outside of it.
    pub gid_map: IdMap,
    /// Whether `setgroups(2)` is allowed in the caller's user namespace (`user_namespaces(7)`).
    pub set_groups: bool,
    /// The cgroup hierarchies and their controllers.
    pub cgroups: Detection,
    /// The sysctl that forbids unprivileged user namespaces; `None` if none does.
    pub user_ns_forbidden: Option<String>,
    /// The Landlock ABI version (`landlock(7)`); 0 without Landlock.
    pub landlock_abi: u32,
    /// Whether the caller has `no_new_privs` set. Every task inherits it.
    pub no_new_privs: bool,
    /// Whether the caller has `PR_SET_MDWE` set (Linux 6.3), which forbids memory that is both writable and executable.
    /// No process can clear it, and every task inherits it.
    pub mdwe: bool,
    /// Whether the kernel has the overlay file system, or has it as a module that the caller may load.
    pub overlay: bool,
    /// Sensitive files and directories of this kernel that a sandbox masks.
    pub masked: Vec<(PathBuf, FileKind)>,
    #[serde(rename = "idmapped_etc")]
    pub(crate) private: Private,
    /// Options of the host's `/proc` that hide processes. A sandbox in the host's PID namespace gets them too.
    pub proc_options: Vec<(String, String)>,
    /// Files and directories of this kernel that a sandbox makes read-only.
    pub read_only: Vec<(PathBuf, FileKind)>,
}

/// The caller's id map; the identity map if it cannot be read.
fn id_map(kind: &str) -> IdMap {
    let text = std::fs::read_to_string(format!("/proc/self/{kind}_map"));
    text.ok().and_then(|text| IdMap::parse(&text)).unwrap_or_else(IdMap::identity)
}

/// The capabilities that are needed to make namespaces and change ids, in the caller's own user namespace.
const PRIVILEGES: [&str; 4] = ["sys_admin", "setuid", "setgid", "setpcap"];

impl Host {
    /// Probes the kernel. Reads `/proc`, `/sys` and the cgroup file systems. Changes nothing, except that it creates
    /// and removes a cgroup if one was delegated to the caller ([`Detection::probe`]).
    ///
    /// # Errors
    /// [`Error::Prepare`] if `/proc` cannot be read.
    pub fn probe() -> Result<Host> {
        let read =
            |path: &str| std::fs::read_to_string(path).map_err(Error::prepare(format!("read({path:?})")));
        let release = read("/proc/sys/kernel/osrelease")?;
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
            no_new_privs: sys::probe::no_new_privs(),
            mdwe: sys::probe::mdwe(),
            overlay: rootfs::probe::overlay(&read("/proc/filesystems")?),
            masked: rootfs::probe::present(&rootfs::probe::MASKED),
            private: Private::probe()?,
            proc_options: rootfs::probe::proc_options(
                &std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default(),
            ),
            read_only: rootfs::probe::present(&rootfs::probe::READ_ONLY),
        })
    }

    /// Whether `/etc` can be an idmapped mount in which no file has an owner (`mount_setattr(2)`, `MOUNT_ATTR_IDMAP`). The
    /// probe then holds a descriptor of a user namespace, which its clones share. A root with the default `/etc` hides the
    /// files that other users cannot read by such a mount, and otherwise by masks.
    pub fn idmapped_etc(&self) -> bool {
        self.private.is_idmapped()
    }

    /// Lists the files and directories below `/etc` that other users cannot read, each with its type.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the refused call.
    pub fn private_etc(&self) -> Result<Vec<(PathBuf, FileKind)>> {
        self.private.list()
    }

    /// Whether the caller may make every kind of namespace directly, mount the host's file systems and become any user.
    /// Otherwise tasks run in a user namespace. Root of a user namespace is not privileged.
    pub fn privileged(&self) -> bool {
        !self.nested && self.lacking().is_empty()
    }

    /// Whether the caller may map ids of its user namespace other than its own.
    pub(crate) fn maps_ids(&self) -> bool {
        self.held.has("setuid") && self.held.has("setgid") && self.set_groups
    }

    /// The reason why the caller is not [privileged](Host::privileged), as the end of a sentence about the caller:
    /// `lacks CAP_SYS_ADMIN`.
    pub fn hindrance(&self) -> String {
        let lacking = self.lacking().names_upper();
        match (self.nested, lacking.is_empty()) {
            (true, true) => "is in a user namespace".to_string(),
            (true, false) => format!("is in a user namespace and lacks {}", lacking.join(", ")),
            (false, _) => format!("lacks {}", lacking.join(", ")),
        }
    }

    /// The reason why this kernel is too old; `None` if it is not.
    pub(crate) fn too_old(&self) -> Option<String> {
        let (major, minor) = self.kernel;
        (self.kernel < OLDEST_KERNEL)
            .then(|| format!("mount_setattr(2) needs Linux 5.12, this is {major}.{minor}"))
    }

    /// The mount points of the cgroup file systems.
    pub(crate) fn cgroup_mounts(&self) -> Vec<PathBuf> {
        let v1 = self.cgroups.v1.values().map(|h| h.mount.clone());
        v1.chain(self.cgroups.v2.iter().map(|v2| v2.mount.clone())).collect()
    }

    /// The capabilities that the caller lacks to be [privileged](Host::privileged).
    pub fn lacking(&self) -> CapSet {
        let needed = CapSet::from_names(PRIVILEGES).unwrap_or(self.supported);
        needed.difference(self.held)
    }
}

/// Whether a driver can offer this host, in the terms of Nomad's fingerprints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "status", content = "reason", rename_all = "lowercase")]
pub enum Health {
    /// The caller is privileged and can set resource limits.
    Healthy,
    /// Sandboxes run, but only in a user namespace, or without resource limits. The text says why.
    Unhealthy(String),
    /// This host can run no sandbox. The text says why.
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

/// The oldest kernel with every required system call. `mount_setattr(2)` is the newest of them.
const OLDEST_KERNEL: (u32, u32) = (5, 12);

impl Host {
    /// The overall result of the probe: [`Health::Undetected`] if the kernel is too old or the caller cannot create
    /// namespaces, [`Health::Unhealthy`] if sandboxes need a user namespace or have no resource limits.
    pub fn health(&self) -> Health {
        if let Some(why) = self.too_old() {
            return Health::Undetected(why);
        }
        if let (false, Some(why)) = (self.privileged(), &self.user_ns_forbidden) {
            return Health::Undetected(format!("the caller {}, and {why}", self.hindrance()));
        }
        let mut reasons = Vec::new();
        if !self.privileged() {
            let who = if self.maps_ids() { "" } else { ", with the caller's ids" };
            reasons.push(format!("the caller {}: tasks run in a user namespace{who}", self.hindrance()));
        }
        reasons.extend(self.cgroups.can_limit().err().map(|why| format!("no resource limits: {why}")));
        if reasons.is_empty() { Health::Healthy } else { Health::Unhealthy(reasons.join("; ")) }
    }
}

/// Parses the first two numbers of `uname -r`; a missing number is 0.
fn parse_release(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_parsed() {
        for (text, expect) in
            [("6.18.44-fc-v595\n", (6, 18)), ("5.10.0-28-amd64", (5, 10)), ("4.4", (4, 4)), ("x", (0, 0))]
        {
            assert_eq!(parse_release(text), expect, "{text}");
        }
    }
}
