//! A temporary root directory that exists as long as its sandbox.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::open;
use nix::sys::stat::{Mode, fchmod, mkdirat};

use crate::Result;
use crate::rootfs::directory::{DIR, make_private, open_made};
use crate::rootfs::teardown::remove_tree;
use crate::step::Kernel;

/// An empty directory for a root, at `BASE/cofferdam-NAME/root`.
///
/// The root has mode 0755, because every user of the sandbox must be able to enter `/`. The directory above it has mode
/// 0700, so that no other user of the host can access its content, for example setuid files or an incomplete root.
/// Dropping this value removes both directories and everything in them.
#[derive(Debug)]
pub(crate) struct TempRoot {
    base: OwnedFd,
    around: PathBuf,
    name: OsString,
    root: OwnedFd,
    gone: bool,
}

impl TempRoot {
    /// Makes a temporary root in `base`, at [`path_in`](TempRoot::path_in). Refuses a name that exists. Returns `None`
    /// if `kernel` only records calls.
    ///
    /// # Errors
    /// [`Error::Prepare`](crate::Error::Prepare) with the refused call.
    pub(crate) fn create(kernel: &Kernel, base: &Path, name: &str) -> Result<Option<TempRoot>> {
        let around = around(base, name);
        let name = around.file_name().map(OsString::from).unwrap_or_default();
        let opened = || open(base, DIR, Mode::empty()).map(Some);
        let opened = kernel.call(|| format!("openat({base:?}, O_DIRECTORY)"), None, opened)?;
        let step = || format!("mkdirat({base:?}, {name:?}, 0700)");
        let made = || opened.as_ref().map_or(Ok(()), |dir| mkdirat(dir, name.as_os_str(), Mode::S_IRWXU));
        kernel.call(step, (), made)?;
        let root = || opened.as_ref().map(|base| make_root(base.as_fd(), &name)).transpose();
        let root = kernel.call(|| format!("mkdirat({around:?}, \"root\", 0700)"), None, root);
        match (root, opened) {
            (Ok(Some(root)), Some(base)) => Ok(Some(TempRoot { base, around, name, root, gone: false })),
            (Err(refused), Some(base)) => {
                // Return the first error. If this fails, at most an empty directory stays.
                let _ = remove_tree(base.as_fd(), &name);
                Err(refused)
            }
            (root, _) => root.map(|_| None),
        }
    }

    /// Path of the root directory that [`create`](TempRoot::create) makes.
    pub(crate) fn path_in(base: &Path, name: &str) -> PathBuf {
        around(base, name).join("root")
    }

    /// The root directory.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Removes both directories now. May be called again: after success it does nothing, after a failure it tries
    /// again.
    ///
    /// # Errors
    /// [`Error::Task`](crate::Error::Task) with everything that could not be removed.
    pub(crate) fn close(&mut self) -> Result<()> {
        if !self.gone {
            remove_tree(self.base.as_fd(), &self.name)
                .map_err(|left| left.into_error(self.around.parent().unwrap_or(&self.around)))?;
            self.gone = true;
        }
        Ok(())
    }

    /// Keeps the directories, which then stay when this value is dropped. Returns the path of the root.
    pub(crate) fn into_path(mut self) -> PathBuf {
        self.gone = true;
        self.around.join("root")
    }
}

/// Path of the private directory above the root.
fn around(base: &Path, name: &str) -> PathBuf {
    base.join(format!("cofferdam-{name}"))
}

impl Drop for TempRoot {
    fn drop(&mut self) {
        if !self.gone {
            // Best effort: a caller that needs the error calls `close`.
            let _ = remove_tree(self.base.as_fd(), &self.name);
        }
    }
}

/// Opens the private directory and makes the root in it. Sets modes by descriptor, because the umask may remove any
/// bit.
fn make_root(base: BorrowedFd<'_>, name: &OsString) -> nix::Result<OwnedFd> {
    let around = open_made(base, name.as_os_str(), Mode::S_IRWXU)?;
    fchmod(&around, Mode::S_IRWXU)?;
    let root = make_private(around.as_fd(), c"root")?;
    fchmod(&root, Mode::from_bits_truncate(0o755))?;
    Ok(root)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::sync::Mutex;

    use tempfile::tempdir;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn create(base: &Path, name: &str) -> Result<TempRoot> {
        TempRoot::create(&Kernel::real(), base, name).map(Option::unwrap)
    }

    #[test]
    fn a_temporary_root_is_private_and_is_removed_with_its_content() {
        let base = tempdir().unwrap();
        let roots: Mutex<Vec<(&str, TempRoot)>> = Mutex::default();
        std::thread::scope(|s| {
            for name in ["a", "b", "c", "d"] {
                let (roots, base) = (&roots, base.path());
                s.spawn(move || roots.lock().unwrap().push((name, create(base, name).unwrap())));
            }
        });
        let roots = roots.into_inner().unwrap();
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 4);
        assert!(create(base.path(), "a").unwrap_err().to_string().starts_with("mkdirat("));
        for (i, (name, mut root)) in roots.into_iter().enumerate() {
            let path = TempRoot::path_in(base.path(), name);
            assert_eq!(mode(&path), 0o755);
            assert_eq!(mode(path.parent().unwrap()), 0o700);
            assert_eq!(nix::sys::stat::fstat(root.fd()).unwrap().st_ino, fs::metadata(&path).unwrap().ino());
            fs::create_dir_all(path.join("usr/lib")).unwrap();
            fs::write(path.join("usr/lib/x"), "").unwrap();
            if i % 2 == 0 {
                root.close().unwrap();
                // The name is free again. The closed root must not remove the next root of the same name.
                let next = create(base.path(), name).unwrap();
                root.close().unwrap();
                drop(root);
                assert_eq!(mode(&path), 0o755);
                drop(next);
            }
        }
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
        let error = create(&base.path().join("nowhere"), "x").unwrap_err();
        assert_eq!(error.to_string(), format!("openat({:?}, O_DIRECTORY)", base.path().join("nowhere")));
    }
}
