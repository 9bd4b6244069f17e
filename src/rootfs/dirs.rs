//! The directories that a driver gives a task beside its root: `/alloc`, `/local`, `/secrets` and `/tmp`.
//!
//! They are mounted in the task's own mount namespace and nowhere on the host, so that nothing of them is left
//! to be unmounted there, and a secret is never on a disk: `/secrets` is a tmpfs of the task's own, whose
//! files init writes before the task runs.
//!
//! What it does not do: make or remove the host's directories that are given here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{FileKind, check_path};
use crate::error::{Error, Result};

/// The directories that a task has beside its root. All are left out unless asked for.
///
/// ```
/// use cofferdam::{Secrets, TaskDirs};
/// let secrets = Secrets { files: [("token".into(), "s3cr3t".into())].into(), ..Secrets::default() };
/// let dirs = TaskDirs { local: Some("/srv/task/local".into()), secrets: Some(secrets), ..TaskDirs::default() };
/// assert!(!format!("{dirs:?}").contains("s3cr3t"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskDirs {
    /// A directory of the host that several tasks share, at `/alloc`, writable as its modes say. A directory
    /// `logs` in it is read-only.
    pub alloc: Option<PathBuf>,
    /// A directory of the host that is this task's, at `/local`, writable as its modes say. A command is looked
    /// for there first.
    pub local: Option<PathBuf>,
    /// A tmpfs at `/secrets`.
    pub secrets: Option<Secrets>,
    /// A tmpfs of so many bytes at `/tmp`, mode 1777, instead of the directory of that name in the root. Its
    /// pages count as the task's memory.
    pub tmp: Option<u64>,
}

/// A tmpfs of the task's own, mode 0700, `noexec`, `nodev`, `nosuid`, never written to swap where the kernel has
/// `noswap` (`tmpfs(5)`, Linux 6.4) and the caller needs no user namespace; else the report says so. On its way there
/// a secret is in the caller's memory, and for the time of the spawn in a sealed memfd.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Secrets {
    /// Its size limit in bytes; 1 MiB when 0. Its pages count as the task's memory.
    pub size: u64,
    /// Files that are in it when the task starts, by name: mode 0400, the task's user and group. They are
    /// printed nowhere, neither in a plan nor by `Debug`.
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
        if self.size == 0 { SECRETS_DEFAULT } else { self.size }
    }
}

impl TaskDirs {
    /// The directories of the host, each with its place in the sandbox.
    pub(crate) fn binds(&self) -> impl Iterator<Item = (&Path, &'static Path)> {
        [(&self.alloc, "/alloc"), (&self.local, "/local")]
            .into_iter()
            .filter_map(|(source, target)| source.as_deref().map(|s| (s, Path::new(target))))
    }

    /// Where something of these is mounted in the sandbox.
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

    /// # Errors
    /// A path or a name that cannot be; `kind` says what a path of the host is, or that nothing is there.
    pub(crate) fn validate(&self, kind: impl Fn(&Path) -> Result<FileKind>) -> Result<()> {
        const FIELD: &str = "task_dirs";
        for (source, target) in self.binds() {
            check_path(FIELD, source)?;
            if kind(source)? != FileKind::Dir {
                let why = format!("{target:?} needs a directory of the host, and {source:?} is none");
                return Err(Error::spec(FIELD, why));
            }
        }
        if self.tmp == Some(0) {
            return Err(Error::spec(FIELD, "/tmp has no bytes: leave tmp out for a directory of the root"));
        }
        let Some(secrets) = &self.secrets else { return Ok(()) };
        for (name, text) in &secrets.files {
            if name.is_empty()
                || name.len() > 255
                || name.contains(['/', '\0'])
                || name == "."
                || name == ".."
            {
                return Err(Error::spec(FIELD, format!("{name:?} is no name of a file in /secrets")));
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
