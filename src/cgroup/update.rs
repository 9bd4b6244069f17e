//! Other limits for a task that runs.

use super::cores::{Reserved, exchange};
use super::layout::Need;
use super::limits::Limits;
use super::place::Place;
use super::probe::Version;
use super::run::Group;
use super::settings::{Held, Remark, Setting, Terms, changes, remarks, settings};
use super::write::{enable, set, shortfall};
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
    /// What is different is written, what gives room first and what takes it away last. `limits` says all: what it
    /// leaves unset is no longer limited. Memory that is in use beyond a new limit is reclaimed, which may take long;
    /// where that is not enough, v1 refuses the limit (`EBUSY`) and v2 sets it, and its OOM killer makes room.
    ///
    /// Reserved processors can be exchanged for others, and be made exclusive or not; on the way the task has the old and
    /// the new ones, so that nobody else is on any of them.
    ///
    /// On v2 controllers that were not in use before are enabled on the way; memory that the task has by then counts as
    /// its parent's, which [`Updated::shortfalls`] says. A hierarchy of v1 is entered at birth only, so there a limit
    /// of a controller that the task is not in is refused. [`Limits::accounting`] puts a task in all of them.
    ///
    /// # Errors
    /// [`Error::Spec`] for limits that [`Limits::validate`] refuses; [`Error::Unsupported`] where no limits can be
    /// set, and for what a running task cannot be given; [`Error::Task`] with the write that the kernel refused. What was
    /// written is taken back then; what cannot be is named too, and written anew by the next update.
    pub fn update(&mut self, limits: &Limits) -> Result<Updated> {
        limits.validate()?;
        let Some(terms) = self.paths.terms else {
            return self.unlimited(limits);
        };
        let mut old = settings(&self.paths.limits, &terms);
        // What was refused is not there.
        old.retain(|s| !self.paths.refused.contains(&(s.file.clone(), s.line())));
        let mut changes = changes(&old, &settings(limits, &terms));
        let mut updated = self.told(limits, &terms);
        let missing = self.paths.missing.iter().fold(Control::empty(), |set, r| set | r.control);
        changes.retain(|(_, now)| !missing.contains(now.control));
        self.check_places(&changes, &terms)?;
        let mut done: Vec<&Setting> = Vec::new();
        let mut refused = Vec::new();
        for (was, now) in &changes {
            match (self.change(now, &terms), &now.need) {
                (Ok(note), _) => updated.notes.extend(note),
                (Err(Error::Prepare { step, source }), Need::Else(reason)) if now.limits => {
                    updated.shortfalls.push(shortfall(reason, &step, &source));
                    refused.push((now.file.clone(), now.line()));
                }
                (Err(_), Need::Try) => refused.push((now.file.clone(), now.line())),
                // A limit that could not be set need not be lifted.
                (Err(_), Need::Else(_) | Need::Less(_)) => {}
                (Err(e), Need::Must) => return Err(self.take_back(&done, &terms, e)),
            }
            done.push(was);
        }
        match self.exchange_cores(limits) {
            Ok(shortfall) => updated.shortfalls.extend(shortfall),
            Err(e) => return Err(self.take_back(&done, &terms, e)),
        }
        self.paths.refused = refused;
        self.paths.limits = limits.clone();
        Ok(updated)
    }

    /// Undoes what was done, the last first.
    fn take_back(&mut self, done: &[&Setting], terms: &Terms, e: Error) -> Error {
        let mut left = Vec::new();
        for was in done.iter().rev() {
            if self.change(was, terms).is_err() && was.need == Need::Must {
                left.push(was.file.clone());
                self.paths.refused.push((was.file.clone(), was.line()));
            }
        }
        match e.of_task() {
            Error::Task { step, source } if !left.is_empty() => {
                let step = format!("{step}, and taking back {}", left.join(", "));
                Error::Task { step, source }
            }
            other => other,
        }
    }

    /// What the limits cannot be, whatever is written.
    fn told(&self, limits: &Limits, terms: &Terms) -> Updated {
        let born = &self.paths.born;
        let (notes, shortfalls) =
            remarks(limits, terms).into_iter().partition::<Vec<_>, _>(|r| r.held == Held::Whole);
        let reasons = |list: Vec<Remark>| list.into_iter().map(|r| r.reason).collect::<Vec<_>>();
        let (mut notes, mut shortfalls) = (reasons(notes), reasons(shortfalls));
        let asked = limits.asked();
        let missing = self.paths.missing.iter().filter(|r| asked.contains(r.control));
        shortfalls.extend(missing.filter(|r| !shortfalls.contains(r)).cloned().collect::<Vec<_>>());
        let why = "what the task had before it was in the controller counts as its parent's";
        if terms.version == Version::V2 && asked.contains(Control::MEMORY) && !born.uses_memory() {
            shortfalls.push(Reason { control: Control::MEMORY, why: why.to_owned() });
        }
        if terms.hugetlb == Version::V2 && asked.contains(Control::HUGETLB) && born.hugetlb.is_empty() {
            shortfalls.push(Reason { control: Control::HUGETLB, why: why.to_owned() });
        }
        if limits.accounting && !born.accounting {
            let why = "what only counts is entered at birth, and not by an update";
            notes.push(Reason { control: Control::empty(), why: why.to_owned() });
        }
        Updated { notes, shortfalls }
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
            return self.exchange(limits).map_err(Error::of_task);
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
                enable(level, to.controller)?;
            }
        }
        set(&file, &to.line())
    }
}

/// The task is in no hierarchy that has the file.
fn absent(setting: &Setting) -> Error {
    Error::Prepare { step: setting.file.clone(), source: std::io::ErrorKind::NotFound.into() }
}
