//! Operations of the parent that prepare a root: making a temporary directory, and populating the root.

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::populate::Watch;
use super::populate::{TempRoot, populate_held};
use super::source::{HeldSources, HostFile};
use super::{ChrootEnv, Method, Options, Populated, Skipped, Source};
use crate::error::{Error, Result};
use crate::step::Kernel;

/// Makes the temporary directory that becomes the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MakeTempRoot {
    /// Directory in which it is made.
    pub base: PathBuf,
    /// Name of the sandbox.
    pub id: String,
}

impl MakeTempRoot {
    /// Path of the directory that becomes the root.
    pub(crate) fn path(&self) -> PathBuf {
        TempRoot::path_in(&self.base, &self.id)
    }

    /// The call that removes the directory, as the plan prints it.
    pub(crate) fn undo_call(&self) -> String {
        let around = self.path();
        let around = around.parent().and_then(Path::file_name).unwrap_or_default();
        format!("unlinkat({:?}, {around:?}, AT_REMOVEDIR) # after everything in it", self.base)
    }

    /// Makes the directory. `None` if `kernel` only records calls.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the refused call. [`Error::Cancelled`].
    pub(crate) fn run(&self, kernel: &Kernel) -> Result<Option<TempRoot>> {
        TempRoot::create(kernel, &self.base, &self.id)
    }
}

/// Populates the root if its method walks, and lists the sources in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BuildRoot {
    /// The directory that becomes the root; `None` for a tmpfs.
    pub dir: Option<PathBuf>,
    /// The chosen method, never `auto`.
    pub method: Method,
    /// Sources to link or copy; empty unless the method walks.
    pub env: ChrootEnv,
    /// Sources that init mounts; empty if the method walks.
    pub mounted: Vec<Source>,
    /// Sources that the compiler skipped.
    pub skipped: Vec<Skipped>,
    /// Directories that are left empty, by device and inode.
    pub skip: Vec<(u64, u64)>,
    /// See [`Options::setuid`].
    pub setuid: bool,
    /// See [`Options::max_entries`].
    pub max_entries: Option<u64>,
    /// See [`Options::max_bytes`].
    pub max_bytes: Option<u64>,
}

impl BuildRoot {
    /// Populates the directory that becomes the root if the method walks. Returns what is in the root; `None` for
    /// [`Method::None`].
    ///
    /// # Errors
    /// [`Error::Prepare`] with the refused call.
    pub(crate) fn run(
        &self,
        held: &HeldSources,
        temp: Option<&TempRoot>,
        watch: Watch<'_>,
    ) -> Result<Option<Populated>> {
        if self.method == Method::None {
            return Ok(None);
        }
        let mut done = match &self.dir {
            Some(dir) if self.method.walks() => self.fill(dir, held, temp, watch)?,
            _ => Populated { sources: self.mounted.clone(), ..Populated::default() },
        };
        done.skipped.extend(self.skipped.iter().cloned());
        done.skipped.sort();
        Ok(Some(done))
    }

    fn fill(
        &self,
        dir: &Path,
        held: &HeldSources,
        temp: Option<&TempRoot>,
        watch: Watch<'_>,
    ) -> Result<Populated> {
        let gone = || Error::prepare(format!("openat2({dir:?}, O_PATH)"))(Errno::ENOENT);
        let given = || held.get(dir).map(HostFile::fd).ok_or_else(gone);
        let root = temp.map_or_else(given, |temp| Ok(temp.fd()))?;
        let BuildRoot { method, ref skip, setuid, max_entries, max_bytes, .. } = *self;
        let Watch { progress, cancel } = watch;
        let options =
            Options { cancel, method, setuid, skip, max_entries, max_bytes, progress, fingerprint: false };
        populate_held(root, &self.env, held, &options)
    }
}
