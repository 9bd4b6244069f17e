//! What a spawn has made, in order, to be undone in the opposite one: the rollback of a spawn that fails, and the
//! teardown of a task.

use crate::cgroup::Group;
use crate::cgroup::stats::Stats;
use crate::cgroup::{Oom, Paths};
use crate::error::{Error, Result};
use crate::rootfs::populate::TempRoot;
use crate::step::Kernel;

/// One thing that was made on the host.
#[derive(Debug)]
enum Made {
    TempRoot(TempRoot),
    Cgroups(Box<Group>),
}

/// The undo list. Dropped, it undoes everything.
#[derive(Debug, Default)]
pub(crate) struct Undo {
    made: Vec<Made>,
    /// What the kernel's OOM killer did, as it was last read.
    oom: Option<Oom>,
    /// What the task had used when its processes were gone.
    used: Option<Result<Stats>>,
}

impl Undo {
    /// The temporary root was made.
    pub(crate) fn temp_root(&mut self, root: TempRoot) {
        self.made.push(Made::TempRoot(root));
    }

    /// The cgroups are being made.
    pub(crate) fn cgroups(&mut self, group: Group) {
        self.made.push(Made::Cgroups(Box::new(group)));
    }

    /// The cgroups, as long as they are not undone.
    pub(crate) fn group(&self) -> Option<&Group> {
        self.made.iter().find_map(|made| match made {
            Made::Cgroups(group) => Some(&**group),
            Made::TempRoot(_) => None,
        })
    }

    /// As [`group`](Self::group).
    pub(crate) fn group_mut(&mut self) -> Option<&mut Group> {
        self.made.iter_mut().find_map(|made| match made {
            Made::Cgroups(group) => Some(&mut **group),
            Made::TempRoot(_) => None,
        })
    }

    /// The temporary root, as long as it is not undone.
    pub(crate) fn root(&self) -> Option<&TempRoot> {
        self.made.iter().find_map(|made| match made {
            Made::TempRoot(root) => Some(root),
            Made::Cgroups(_) => None,
        })
    }

    /// What the OOM killer did to the task, as far as it is known.
    pub(crate) fn oom(&self) -> Option<Oom> {
        self.group().and_then(Group::oom).or_else(|| self.oom.clone())
    }

    /// What the task uses, or had used when its processes were gone.
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

    /// Undoes everything, the last first. Everything is tried, and what could not be undone is kept to be tried again.
    ///
    /// # Errors
    /// [`Error::Task`] with every call that was refused.
    pub(crate) fn run(&mut self) -> Result<()> {
        self.run_from(0)
    }

    /// As [`run`](Self::run), and leaves the temporary root, which is returned.
    ///
    /// # Errors
    /// As [`run`](Self::run). The root is then kept.
    pub(crate) fn run_but_root(&mut self) -> Result<Option<TempRoot>> {
        let first = usize::from(self.root().is_some());
        self.run_from(first)?;
        Ok(self.made.pop().and_then(|made| match made {
            Made::TempRoot(root) => Some(root),
            Made::Cgroups(_) => None,
        }))
    }

    /// Undoes all but what was made first, so many things.
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

    /// Lets go of everything: nothing is undone. The record of the cgroups, to find them again by.
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
        // In the same order as `run`; each has its own way to undo itself, and nothing to return a failure to.
        while let Some(made) = self.made.pop() {
            drop(made);
        }
    }
}

/// The first error, with the step of the second one too.
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
    fn of_two_failures_both_are_named() {
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
