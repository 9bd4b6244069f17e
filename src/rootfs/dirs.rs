//! The directories that a driver gives a task in addition to its root: `/alloc`, `/local`, `/secrets` and `/tmp`.
//!
//! They are mounted in the task's own mount namespace and not on the host, so the host has nothing to unmount. A secret
//! is never on a disk: `/secrets` is a tmpfs of the task, and init writes its files before the task runs.
//!
//! This module does not make or remove directories of the host.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{FileKind, check_path};
use crate::error::{Error, Result};
use crate::notation;

/// The directories of a task in addition to its root. Each is mounted only if it is set.
///
/// ```
/// use cofferdam::{Sandbox, Secrets, TaskDirs};
///
/// let secrets = Secrets { files: [("token".into(), "s3cr3t".into())].into(), ..Secrets::default() };
/// let dirs = TaskDirs {
///     local: Some("/srv/job/7".into()), // mounted at /local
///     secrets: Some(secrets),           // the file /secrets/token
///     tmp: Some(64 << 20),              // a tmpfs of 64 MiB at /tmp
///     ..TaskDirs::default()
/// };
/// assert!(!format!("{dirs:?}").contains("s3cr3t"));
/// # let _ = Sandbox::command("make").task_dirs(dirs);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct TaskDirs {
    /// A directory of the host that several tasks share, mounted at `/alloc`. Its file modes decide who may write. A
    /// directory `logs` in it is read-only.
    pub alloc: Option<PathBuf>,
    /// A directory of the host for this task, mounted at `/local`. Its file modes decide who may write. A
    /// command with a relative path is looked up there after `work_dir`, a bare name before `PATH`.
    pub local: Option<PathBuf>,
    /// A tmpfs at `/secrets`.
    pub secrets: Option<Secrets>,
    /// Size limit in bytes of a tmpfs at `/tmp`, mode 1777, which covers the root's own `/tmp`. It must not be 0. Its
    /// pages count as the task's memory.
    #[serde(deserialize_with = "notation::optional_size_from")]
    pub tmp: Option<u64>,
}

/// A tmpfs for one task, mode 0700, `noexec`, `nodev`, `nosuid`. It is never written to swap if the kernel supports
/// `noswap` (`tmpfs(5)`, Linux 6.4) and the sandbox has no user namespace; otherwise the report says so. Before the
/// spawn, a secret is in the caller's memory; during the spawn, it is also in a sealed memfd.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct Secrets {
    /// Size limit in bytes. If absent, 1 MiB. Its pages count as the task's memory.
    #[serde(deserialize_with = "notation::optional_size_from")]
    pub size: Option<u64>,
    /// Files that it contains when the task starts, by name: mode 0400, owned by the task's user and group. Neither a
    /// plan nor `Debug` prints their content.
    pub files: BTreeMap<String, String>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.files.keys().collect();
        f.debug_struct("Secrets").field("size", &self.size).field("files", &names).finish()
    }
}

const SECRETS_DEFAULT: u64 = 1 << 20;

impl Secrets {
    pub(super) fn bytes(&self) -> u64 {
        self.size.unwrap_or(SECRETS_DEFAULT)
    }
}

impl TaskDirs {
    /// Each directory of the host, with its mount point in the sandbox.
    pub(crate) fn binds(&self) -> impl Iterator<Item = (&Path, &'static Path)> {
        [(&self.alloc, "/alloc"), (&self.local, "/local")]
            .into_iter()
            .filter_map(|(source, target)| source.as_deref().map(|s| (s, Path::new(target))))
    }

    /// The mount points in the sandbox.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &'static str> {
        [
            (self.alloc.is_some(), "/alloc"),
            (self.local.is_some(), "/local"),
            (self.secrets.is_some(), "/secrets"),
            (self.tmp.is_some(), "/tmp"),
        ]
        .into_iter()
        .filter_map(|(there, target)| there.then_some(target))
    }

    /// Checks paths and names. `kind` returns the type of a file of the host.
    ///
    /// # Errors
    /// [`Error::Spec`] for an invalid path or name, and the errors of `kind`.
    pub(crate) fn validate(&self, kind: impl Fn(&Path) -> Result<FileKind>) -> Result<()> {
        const FIELD: &str = "task_dirs";
        for (source, target) in self.binds() {
            check_path(FIELD, source)?;
            if kind(source)? != FileKind::Dir {
                let why = format!("{source:?} is not a directory, so it cannot be mounted at {target:?}");
                return Err(Error::spec(FIELD, why));
            }
        }
        let Some(secrets) = &self.secrets else { return Ok(()) };
        for (name, text) in &secrets.files {
            if name.is_empty()
                || name.len() > 255
                || name.contains(['/', '\0'])
                || name == "."
                || name == ".."
            {
                return Err(Error::spec(FIELD, format!("{name:?} is not a valid file name in /secrets")));
            }
            if u64::try_from(text.len()).is_ok_and(|n| n > secrets.bytes()) {
                let why =
                    format!("the secret {name:?} is larger than the {} bytes of /secrets", secrets.bytes());
                return Err(Error::spec(FIELD, why));
            }
        }
        Ok(())
    }
}

crate::notation::from_maps! {
    TaskDirs: "an object with alloc, local, secrets and tmp",
    Secrets: "an object with size and files",
}
