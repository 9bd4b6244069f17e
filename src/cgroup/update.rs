//! Other limits for a task that runs.

use super::cores::{Reserved, exchange};
use super::layout::Need;
use super::limits::Limits;
use super::place::Place;
use super::run::Group;
use super::settings::{Held, Setting, Terms, changes, remarks, settings};
use super::write::set;
use crate::error::{Error, Result};
use crate::report::{Control, Reason};

/// What came of an update.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Updated {
    /// Values that the kernel changed, and remarks on what holds.
    pub notes: Vec<Reason>,
    /// Limits that do not hold, or only in part, and why.
    pub shortfalls: Vec<Reason>,
}

impl Group {
    /// Sets other limits on the processes that are in the group and those that will be.
    ///
    /// What is different is written, what gives room first and what takes it away last, so that no state in between
    /// is tighter than both. `limits` says all: what it leaves unset is no longer limited. Memory that is in use
    /// beyond a new limit is reclaimed; where that is not enough, v1 refuses the limit (`EBUSY`) and v2 sets it, and
    /// its OOM killer makes room.
    ///
    /// Reserved processors can be exchanged for others, and be made exclusive or not; on the way the task has the old and
    /// the new ones, so that nobody else is on any of them.
    ///
    /// On v2 controllers that were not in use before are enabled on the way. A hierarchy of v1 is entered at birth
    /// only, so there a limit of a controller that the task is not in is refused;
    /// [`Limits::accounting`] puts a task in all of them.
    ///
    /// # Errors
    /// [`Error::Spec`] for limits that [`Limits::validate`] refuses; [`Error::Unsupported`] where no limits can be
    /// set, and for what a running task cannot be given; [`Error::Task`] with the write that the kernel refused,
    /// after which the limits are as before.
    pub fn update(&mut self, limits: &Limits) -> Result<Updated> {
        limits.validate()?;
        let Some(terms) = self.paths.terms else {
            return self.unlimited(limits);
        };
        let old = &self.paths.limits;
        let changes = changes(&settings(old, &terms), &settings(limits, &terms));
        let mut updated = told(limits, &terms);
        self.check_places(&changes, &terms)?;
        updated.shortfalls.extend(self.exchange_cores(limits)?);
        let mut done: Vec<&Setting> = Vec::new();
        for (was, now) in &changes {
            match (self.change(now, &terms), &now.need) {
                (Ok(note), _) => updated.notes.extend(note),
                (Err(_), Need::Try) => {}
                (Err(Error::Prepare { step, source }), Need::Else(reason)) if now.limits => {
                    let why = format!("{}: {step}: {source}", reason.why);
                    updated.shortfalls.push(Reason { control: reason.control, why });
                }
                // A limit that could not be set need not be lifted.
                (Err(_), Need::Else(_)) => {}
                (Err(e), Need::Must) => {
                    for was in done.iter().rev() {
                        let _ = self.change(was, &terms);
                    }
                    let _ = self.exchange(&self.paths.limits);
                    return Err(as_task(e));
                }
            }
            done.push(was);
        }
        self.paths.limits = limits.clone();
        Ok(updated)
    }

    /// Other reserved processors, where they are others.
    fn exchange_cores(&self, limits: &Limits) -> Result<Option<Reason>> {
        let old = &self.paths.limits;
        if (&old.cores, old.exclusive) == (&limits.cores, limits.exclusive) {
            return Ok(None);
        }
        let why = if self.paths.book.is_none() {
            "processors are not divided among the tasks here"
        } else if old.cores.is_empty() || limits.cores.is_empty() {
            "reserved and shared processors are cgroups of their own, and a task stays where it was born"
        } else {
            return self.exchange(limits).map_err(as_task);
        };
        Err(Error::Unsupported { control: Control::CPUSET, reason: why.to_owned() })
    }

    fn exchange(&self, limits: &Limits) -> Result<Option<Reason>> {
        let cores = limits.cpuset().map_err(|why| Error::spec("cores", why))?;
        let leaf = self.v1("cpuset").or_else(|| self.tree()).map(|place| place.path());
        match (&self.paths.book, leaf, cores) {
            (Some(site), Some(leaf), Some(cores)) => {
                exchange(site, leaf, &Reserved { cores, exclusive: limits.exclusive })
            }
            _ => Ok(None),
        }
    }

    /// On a host without limits only what asks for none can be had.
    fn unlimited(&self, limits: &Limits) -> Result<Updated> {
        if limits.asked().is_empty() {
            return Ok(Updated::default());
        }
        let reason = self.paths.gate.clone().unwrap_or_else(|| "the task has no cgroup".to_owned());
        Err(Error::Unsupported { control: limits.asked(), reason })
    }

    /// Finds out before anything is written whether every change has a file.
    fn check_places(&self, changes: &[(Setting, Setting)], terms: &Terms) -> Result<()> {
        for (_, now) in changes.iter().filter(|(_, now)| now.limits && now.need == Need::Must) {
            if self.place(now.controller, terms).is_none() {
                let reason = format!(
                    "the task is in no {} hierarchy, which can be entered at birth only (Limits::accounting does it)",
                    now.controller
                );
                return Err(Error::Unsupported { control: now.control, reason });
            }
        }
        Ok(())
    }

    /// Where a controller's files are. On v2 the controllers are enabled when they are first needed.
    fn place(&self, controller: &str, terms: &Terms) -> Option<Place<'_>> {
        use super::probe::Version;
        let version = if controller == "hugetlb" { terms.hugetlb } else { terms.version };
        match version {
            Version::V1 => self.v1(controller),
            Version::V2 => self.tree(),
        }
    }

    fn change(&self, to: &Setting, terms: &Terms) -> Result<Option<Reason>> {
        let Some(place) = self.place(to.controller, terms) else {
            return if to.limits { Err(absent(to)) } else { Ok(None) };
        };
        let file = place.path().join(&to.file);
        // What no controller limits yet may have no file at all.
        if self.v1(to.controller).is_none() && !file.exists() {
            if !to.limits {
                return Ok(None);
            }
            for level in &self.paths.levels {
                set(&level.join("cgroup.subtree_control"), &format!("+{}", to.controller))?;
            }
        }
        set(&file, &to.line())
    }
}

/// The task is in no hierarchy that has the file.
fn absent(setting: &Setting) -> Error {
    Error::Prepare { step: setting.file.clone(), source: std::io::ErrorKind::NotFound.into() }
}

/// What the limits cannot be, whatever is written.
fn told(limits: &Limits, terms: &Terms) -> Updated {
    let (notes, shortfalls) =
        remarks(limits, terms).into_iter().partition::<Vec<_>, _>(|r| r.held == Held::Whole);
    let reasons = |list: Vec<super::settings::Remark>| list.into_iter().map(|r| r.reason).collect();
    Updated { notes: reasons(notes), shortfalls: reasons(shortfalls) }
}

/// The task runs: nothing is being prepared any more.
fn as_task(e: Error) -> Error {
    match e {
        Error::Prepare { step, source } => Error::Task { step, source },
        other => other,
    }
}
