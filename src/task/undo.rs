//! The undo list: everything that a spawn made on the host, removed in reverse order. It is the rollback of a failed
//! spawn and the teardown of a task.

use crate::cgroup::Group;
use crate::cgroup::stats::Stats;
use crate::cgroup::{Oom, Paths};
use crate::error::{Error, Result};
use crate::rootfs::populate::TempRoot;
use crate::step::Kernel;

/// One entry of the undo list.
#[derive(Debug)]
enum Made {
    TempRoot(TempRoot),
    Cgroups(Box<Group>),
}

/// The undo list. Dropping it undoes everything.
#[derive(Debug, Default)]
pub(crate) struct Undo {
    made: Vec<Made>,
    /// The OOM kills, as last read before the cgroups were removed.
    oom: Option<Oom>,
    /// The resource usage, read after the last process had ended.
    used: Option<Result<Stats>>,
}

impl Undo {
    /// Adds a temporary root that was made.
    pub(crate) fn temp_root(&mut self, root: TempRoot) {
        self.made.push(Made::TempRoot(root));
    }

    /// Adds cgroups, which may not all exist yet.
    pub(crate) fn cgroups(&mut self, group: Group) {
        self.made.push(Made::Cgroups(Box::new(group)));
    }

    /// The cgroups; `None` if there are none or they were removed.
    pub(crate) fn group(&self) -> Option<&Group> {
        self.made.iter().find_map(|made| match made {
            Made::Cgroups(group) => Some(&**group),
            Made::TempRoot(_) => None,
        })
    }

    /// Like [`group`](Self::group), for changes.
    pub(crate) fn group_mut(&mut self) -> Option<&mut Group> {
        self.made.iter_mut().find_map(|made| match made {
            Made::Cgroups(group) => Some(&mut **group),
            Made::TempRoot(_) => None,
        })
    }

    /// The temporary root; `None` if there is none or it was removed.
    pub(crate) fn root(&self) -> Option<&TempRoot> {
        self.made.iter().find_map(|made| match made {
            Made::TempRoot(root) => Some(root),
            Made::Cgroups(_) => None,
        })
    }

    /// The OOM kills in the task: current, or as last read.
    pub(crate) fn oom(&self) -> Option<Oom> {
        self.group().and_then(Group::oom).or_else(|| self.oom.clone())
    }

    /// The resource usage of the task: current, or as read after its end.
    pub(crate) fn stats(&mut self) -> Result<Stats> {
        if let Some(failed) = self.used.take_if(|used| used.is_err()) {
            return failed;
        }
        match (&self.used, self.group()) {
            (Some(Ok(used)), _) => Ok(used.clone()),
            (_, Some(group)) => group.stats(),
            (_, None) => Err(Error::task("read the cgroup's counters")(nix::errno::Errno::ENODEV)),
        }
    }

    /// Undoes all entries, the last one first. An entry that cannot be undone stays in the list, and the others are
    /// undone nevertheless.
    ///
    /// # Errors
    /// [`Error::Task`] with every call that was refused.
    pub(crate) fn run(&mut self) -> Result<()> {
        self.run_from(0)
    }

    /// Like [`run`](Self::run), but takes the temporary root out of the list and returns it.
    ///
    /// # Errors
    /// As [`run`](Self::run). The root then stays in the list.
    pub(crate) fn run_but_root(&mut self) -> Result<Option<TempRoot>> {
        let first = usize::from(self.root().is_some());
        self.run_from(first)?;
        Ok(self.made.pop().and_then(|made| match made {
            Made::TempRoot(root) => Some(root),
            Made::Cgroups(_) => None,
        }))
    }

    /// Undoes all entries except the first `first`.
    fn run_from(&mut self, first: usize) -> Result<()> {
        let mut failed: Result<()> = Ok(());
        let mut left = Vec::new();
        while self.made.len() > first
            && let Some(mut made) = self.made.pop()
        {
            let undone = match &mut made {
                Made::TempRoot(root) => root.close(),
                Made::Cgroups(group) => {
                    group.kill_and_wait(&Kernel::real());
                    self.oom = group.oom().or(self.oom.take());
                    self.used.get_or_insert_with(|| group.stats());
                    group.remove()
                }
            };
            if undone.is_err() {
                left.insert(0, made);
            }
            failed = both(failed, undone);
        }
        self.made.extend(left);
        failed
    }

    /// Empties the list without undoing anything. Returns the paths of the cgroups.
    pub(crate) fn forget(&mut self) -> Option<Paths> {
        let mut paths = None;
        for made in self.made.drain(..) {
            match made {
                Made::TempRoot(root) => drop(root.into_path()),
                Made::Cgroups(group) => paths = Some(group.into_paths()),
            }
        }
        paths
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        // In the same order as `run`. Dropping an entry undoes it and ignores failures.
        while let Some(made) = self.made.pop() {
            drop(made);
        }
    }
}

/// Merges two results. The error has the source of the first one and the steps of both.
fn both(one: Result<()>, other: Result<()>) -> Result<()> {
    match (one, other) {
        (Err(Error::Task { step, source }), Err(Error::Task { step: then, source: why })) => {
            Err(Error::Task { step: format!("{then} = {why}, {step}"), source })
        }
        (one, other) => one.and(other),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::io;

    use super::*;

    #[test]
    fn two_errors_are_merged_into_one_that_names_both_steps() {
        let fail = |step: &str, errno| Err(Error::task::<nix::errno::Errno>(step)(errno));
        let (group, root) = (nix::errno::Errno::EBUSY, nix::errno::Errno::EPERM);
        let error = both(fail("rmdir(\"/g\")", group), fail("unlinkat(\"/r\")", root)).unwrap_err();
        assert!(error.to_string().starts_with("unlinkat(\"/r\") = Operation not permitted"), "{error}");
        assert!(error.to_string().ends_with(", rmdir(\"/g\")"), "{error}");
        assert_eq!(error.source().unwrap().to_string(), io::Error::from(group).to_string());
        assert_eq!(both(Ok(()), fail("r", root)).unwrap_err().to_string(), "r");
        assert_eq!(both(fail("g", group), Ok(())).unwrap_err().to_string(), "g");
    }
}
