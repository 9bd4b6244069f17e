//! The parent's work on a root, as the operations of a plan: make a temporary directory, and populate it.

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::populate::{TempRoot, populate_held};
use super::source::{HeldSources, HostFile};
use super::{ChrootEnv, Method, Options, Populated, Progress, Skipped, Source};
use crate::error::{Error, Result};
use crate::step::Kernel;

/// Makes the temporary directory that becomes the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MakeTempRoot {
    /// Where it is made.
    pub base: PathBuf,
    /// The sandbox's name.
    pub id: String,
}

impl MakeTempRoot {
    /// The directory that becomes the root.
    pub(crate) fn path(&self) -> PathBuf {
        TempRoot::path_in(&self.base, &self.id)
    }

    /// How it is removed.
    pub(crate) fn undo_call(&self) -> String {
        let around = self.path();
        let around = around.parent().and_then(Path::file_name).unwrap_or_default();
        format!("unlinkat({:?}, {around:?}, AT_REMOVEDIR) # after everything in it", self.base)
    }

    /// Makes it; `None` where calls are recorded.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the call.
    pub(crate) fn run(&self, kernel: &Kernel) -> Result<Option<TempRoot>> {
        TempRoot::create(kernel, &self.base, &self.id)
    }
}

/// Populates the root, as far as it is not mounted, and lists what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BuildRoot {
    /// The directory that becomes the root; `None` for a tmpfs.
    pub dir: Option<PathBuf>,
    /// How it is populated: never `auto`.
    pub method: Method,
    /// What is linked or copied into it, if that is the method.
    pub env: ChrootEnv,
    /// What is mounted in it, if that is the method.
    pub mounted: Vec<Source>,
    /// What the compiler left out.
    pub skipped: Vec<Skipped>,
    /// Directories to be left empty, by device and inode.
    pub skip: Vec<(u64, u64)>,
    /// See [`Options`].
    pub setuid: bool,
    /// See [`Options`].
    pub max_entries: Option<u64>,
    /// See [`Options`].
    pub max_bytes: Option<u64>,
}

impl BuildRoot {
    /// Fills the directory that becomes the root, if it is to be filled, and lists what is in the root.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the call.
    pub(crate) fn run(
        &self,
        held: &HeldSources,
        temp: Option<&TempRoot>,
        progress: Option<&(dyn Fn(Progress) + Sync)>,
    ) -> Result<Option<Populated>> {
        if self.method == Method::None {
            return Ok(None);
        }
        let mut done = match &self.dir {
            Some(dir) if self.method.walks() => self.fill(dir, held, temp, progress)?,
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
        progress: Option<&(dyn Fn(Progress) + Sync)>,
    ) -> Result<Populated> {
        let gone = || Error::prepare(format!("openat2({dir:?}, O_PATH)"))(Errno::ENOENT);
        let given = || held.get(dir).map(HostFile::fd).ok_or_else(gone);
        let root = temp.map_or_else(given, |temp| Ok(temp.fd()))?;
        let BuildRoot { method, ref skip, setuid, max_entries, max_bytes, .. } = *self;
        let options = Options { method, setuid, skip, max_entries, max_bytes, progress, fingerprint: false };
        populate_held(root, &self.env, held, &options)
    }
}
