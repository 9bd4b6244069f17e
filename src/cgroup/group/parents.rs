//! Parent cgroups that this process keeps while no task is in them, because it will spawn more tasks there. To make and to
//! remove one takes longer than a fork.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::fs::remove_dir;

/// The kept parents, with the number of their owners.
static KEPT: Mutex<BTreeMap<PathBuf, usize>> = Mutex::new(BTreeMap::new());

/// Maximum number of parents that one owner keeps.
const MOST: usize = 64;

/// Parent cgroups that [`Group::remove`](super::Group::remove) leaves in place in this process. Dropping it removes those
/// that nobody else keeps and no task is in.
#[derive(Debug, Default)]
pub(crate) struct KeptParents(Vec<PathBuf>);

impl KeptParents {
    /// Keeps these parents too. The crate has made all of them; children come after their parents.
    pub(crate) fn keep(&mut self, parents: &[PathBuf]) {
        for path in parents {
            if self.0.len() < MOST && !self.0.contains(path) {
                let mut kept = kept();
                let owners = kept.entry(path.clone()).or_default();
                *owners = owners.saturating_add(1);
                self.0.push(path.clone());
            }
        }
    }
}

impl Drop for KeptParents {
    fn drop(&mut self) {
        while let Some(path) = self.0.pop() {
            let mut kept = kept();
            let owners = kept.get(&path).map_or(0, |owners| owners.saturating_sub(1));
            if owners > 0 {
                kept.insert(path, owners);
            } else {
                kept.remove(&path);
                // Fails if a task is in it, which removes it later.
                let _ = remove_dir(&path);
            }
        }
    }
}

/// Whether an owner in this process keeps the parent.
pub(super) fn is_kept(path: &Path) -> bool {
    kept().contains_key(path)
}

fn kept() -> MutexGuard<'static, BTreeMap<PathBuf, usize>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_stays_until_its_last_owner_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "a/b"].map(|name| dir.path().join(name));
        std::fs::create_dir_all(&b).unwrap();
        let parents = [a.clone(), b.clone()];
        let (mut first, mut second) = (KeptParents::default(), KeptParents::default());
        first.keep(&parents);
        first.keep(&parents);
        second.keep(&parents[..1]);
        assert!(is_kept(&a) && is_kept(&b));
        drop(first);
        assert!(is_kept(&a) && a.exists() && !is_kept(&b) && !b.exists());
        drop(second);
        assert!(!is_kept(&a) && !a.exists());
    }

    #[test]
    fn a_parent_with_a_task_stays() {
        let dir = tempfile::tempdir().unwrap();
        let parent = dir.path().join("parent");
        std::fs::create_dir_all(parent.join("task")).unwrap();
        let mut kept = KeptParents::default();
        kept.keep(std::slice::from_ref(&parent));
        drop(kept);
        assert!(parent.exists() && !is_kept(&parent));
    }
}
