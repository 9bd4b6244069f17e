//! Changing the limits of a running task.

use super::Group;
use crate::cgroup::detect::Version;
use crate::cgroup::fs::Dir;
use crate::cgroup::limits::Limits;
use crate::cgroup::limits::readback::is_no_limit;
use crate::cgroup::limits::row::{Row, Terms, changes, same};
use crate::cgroup::limits::table::{remarks, rows};
use crate::cgroup::limits::write::{enable, set};
use crate::cgroup::reserve::{Reserved, exchange};
use crate::error::{Error, Result};
use crate::report::{Control, Effect, Reason, Report};
use crate::step::{Kernel, OnRefusal};

impl Group {
    /// Sets new limits on the group's current and future processes. Returns a report of the limits that hold.
    ///
    /// `limits` is complete: a limit that it leaves unset is lifted. Only differences are written, wider limits first
    /// and narrower ones last. If the task uses more memory than a new limit allows, the kernel reclaims memory, which
    /// may take long. If that is not enough, v1 refuses the limit (`EBUSY`), and v2 sets it and invokes the OOM killer.
    ///
    /// Reserved CPUs can be exchanged for others, and `exclusive` can be changed. During the exchange the task has both
    /// its old and its new CPUs, so no other task runs on any of them.
    ///
    /// On v2, controllers that were not in use before are enabled. Memory that the task used before its controller was
    /// enabled stays charged to the parent cgroup, and the report says so. A task enters v1 hierarchies only when it is
    /// started. So on v1 a limit is refused if the task is not in its controller. [`Limits::accounting`] puts a task
    /// into all controllers from the start.
    ///
    /// # Errors
    /// [`Error::Spec`] if [`Limits::validate`] refuses the limits. [`Error::Unsupported`] if no limits can be set, or
    /// if a running task cannot be given these. [`Error::Task`] with the write that the kernel refused. Earlier writes
    /// are then reverted. A file that cannot be reverted is named too, and the next update writes it again.
    pub fn update(&mut self, limits: &Limits) -> Result<Report> {
        limits.validate()?;
        let Some(terms) = self.paths.terms else {
            return self.without_limits(limits);
        };
        // The kernel refused these rows before, so their files have other values.
        let is_unknown = |row: &Row| {
            let unread = self.reopened && !row.device.is_empty();
            unread || self.paths.refused.contains(&(row.file.clone(), row.line()))
        };
        let new = rows(limits, &terms);
        let mut changes = changes(&self.current(&new, &terms), &new, is_unknown);
        let mut report = self.expected(limits, &terms);
        let missing = self.paths.missing.iter().fold(Control::empty(), |set, r| set | r.control);
        changes.retain(|(_, now)| !missing.contains(now.control));
        self.check_dirs(&changes, &terms)?;
        let mut done: Vec<&Row> = Vec::new();
        let mut refused = Vec::new();
        for (was, now) in &changes {
            if let Err(e) = self.change(now, &terms, &mut report) {
                // Some kernels lack such a limit. If the kernel refuses to lift it, it was never set, so the refusal is
                // not reported.
                let lifted = OnRefusal::Skip;
                let degrades = matches!(now.on_refusal, OnRefusal::Degrade(_));
                let on_refusal = if degrades && !now.limits { &lifted } else { &now.on_refusal };
                if let Err(e) = on_refusal.take(e, &mut report) {
                    return Err(self.take_back(&done, &terms, e));
                }
                if now.limits || now.on_refusal == OnRefusal::Skip {
                    refused.push((now.file.clone(), now.line()));
                }
            }
            done.push(was);
        }
        match self.exchange_cores(limits) {
            Ok(unusable) => unusable.into_iter().for_each(|r| report.weaken(r.control, r.why)),
            Err(e) => return Err(self.take_back(&done, &terms, e)),
        }
        self.paths.refused = refused;
        self.paths.limits = limits.clone();
        self.reopened = false;
        Ok(report)
    }

    /// The rows of the limits that the task has now. The record of a group that was opened again may be older than its last
    /// update: who updated it may have been killed before storing a new record. So the files are read.
    fn current(&self, new: &[Row], terms: &Terms) -> Vec<Row> {
        let old = rows(&self.paths.limits, terms);
        if !self.reopened {
            return old;
        }
        let is_new = |row: &&Row| !old.iter().any(|was| same(was, row));
        let added = new.iter().filter(is_new).filter_map(|row| self.read(row, terms));
        let known = old.iter().map(|row| self.read(row, terms).unwrap_or_else(|| row.clone()));
        known.chain(added).collect()
    }

    /// The row with the value of its file. `None` if the file has no limit, is not there, or has several lines.
    fn read(&self, row: &Row, terms: &Terms) -> Option<Row> {
        let dir = self.dir_of(row.controller, terms).filter(|_| row.device.is_empty())?;
        let text = std::fs::read_to_string(dir.path().join(&row.file)).ok()?;
        let text = text.trim();
        if text.lines().count() != 1 || text.split(' ').next().is_some_and(is_no_limit) {
            return None;
        }
        let allows = text.parse().ok().filter(|_| row.allows != 0).unwrap_or(row.allows);
        Some(Row { text: text.to_owned(), limits: row.limits || text != row.text, allows, ..row.clone() })
    }

    /// Whether these limits have the CPUs that the task was started with.
    pub(crate) fn was_born_with_cores(&self, limits: &Limits) -> bool {
        let born = &self.paths.born;
        (&born.cores, born.exclusive) == (&limits.cores, limits.exclusive)
    }

    /// Reverts the changes in `done`, in reverse order.
    fn take_back(&mut self, done: &[&Row], terms: &Terms, e: Error) -> Error {
        let mut left = Vec::new();
        for was in done.iter().rev() {
            let undone = self.change(was, terms, &mut Report::default());
            if undone.is_err() && was.on_refusal == OnRefusal::Fail {
                left.push(was.file.clone());
                self.paths.refused.push((was.file.clone(), was.line()));
            }
        }
        match e.of_task() {
            Error::Task { step, source } if !left.is_empty() => {
                let step = format!("{step}; also failed to revert {}", left.join(", "));
                Error::Task { step, source }
            }
            other => other,
        }
    }

    /// The report if every write succeeds.
    fn expected(&self, limits: &Limits, terms: &Terms) -> Report {
        let born = &self.paths.born;
        let asked = limits.asked();
        let mut report = Report::default();
        report.enforce(asked);
        for reason in self.paths.missing.iter().filter(|r| asked.contains(r.control)) {
            report.miss(reason.control, reason.why.clone());
        }
        remarks(limits, terms, &mut report);
        let late = |control| {
            let why = "usage from before the controller was enabled stays charged to the parent cgroup";
            Effect::weakened(control, why)
        };
        if terms.version == Version::V2 && asked.contains(Control::MEMORY) && !born.uses_memory() {
            report.add(&late(Control::MEMORY), None);
        }
        if terms.hugetlb == Version::V2 && asked.contains(Control::HUGETLB) && born.hugetlb.is_empty() {
            report.add(&late(Control::HUGETLB), None);
        }
        if limits.accounting && !born.accounting {
            let why = "accounting cannot be enabled for a running task: set it when the task is started";
            report.note(Control::empty(), why);
        }
        report
    }

    /// Exchanges the reserved CPUs, if `limits` has other ones.
    fn exchange_cores(&self, limits: &Limits) -> Result<Option<Reason>> {
        let old = &self.paths.limits;
        let same = (&old.cores, old.exclusive) == (&limits.cores, limits.exclusive);
        // The cpuset of a group that was opened again may have other CPUs than its record.
        let is_known = !self.reopened || limits.cores.is_empty() || !self.divides();
        if same && is_known {
            return Ok(None);
        }
        let why = if !self.divides() {
            "CPUs of a running task cannot be changed: CPU reservations are not used here"
        } else if old.cores.is_empty() || limits.cores.is_empty() {
            "a running task cannot change between reserved and shared CPUs: they are different cgroups"
        } else {
            return self.exchange(limits).map_err(Error::of_task);
        };
        Err(Error::Unsupported { control: Control::CPUSET, reason: why.to_owned() })
    }

    /// Whether CPUs can be reserved below the parent cgroup of this task.
    fn divides(&self) -> bool {
        let on_v2 = self.paths.terms.is_some_and(|terms| terms.version == Version::V2);
        on_v2 || self.paths.reservation.is_some() || self.paths.share.is_some()
    }

    fn exchange(&self, limits: &Limits) -> Result<Option<Reason>> {
        let cores = limits.cpuset().cloned();
        let leaf = self.v1("cpuset").or_else(|| self.tree()).map(|dir| dir.path());
        match (&self.paths.reservation, leaf, cores) {
            (Some(site), Some(leaf), Some(cores)) => {
                exchange(site, leaf, &Reserved { cores, exclusive: limits.exclusive })
            }
            _ => Ok(None),
        }
    }

    /// The result on a host without limits: an error, unless no limit is requested.
    fn without_limits(&self, limits: &Limits) -> Result<Report> {
        if limits.asked().is_empty() {
            return Ok(Report::default());
        }
        let reason = self.paths.unlimited.clone().unwrap_or_else(|| "the task has no cgroup".to_owned());
        Err(Error::Unsupported { control: limits.asked(), reason })
    }

    /// Checks before the first write that the task is in the hierarchy of every changed limit that must hold.
    fn check_dirs(&self, changes: &[(Row, Row)], terms: &Terms) -> Result<()> {
        let must = changes.iter().filter(|(_, now)| now.limits && now.on_refusal == OnRefusal::Fail);
        for (_, now) in must {
            if self.dir_of(now.controller, terms).is_none() {
                let reason = format!(
                    "the task is not in the {} hierarchy, and a running task cannot join it (set Limits::accounting when it is started)",
                    now.controller
                );
                return Err(Error::Unsupported { control: now.control, reason });
            }
        }
        Ok(())
    }

    /// The directory with a controller's files. On v2 it exists even if the controller is not enabled yet. A hybrid host may
    /// have pids on v2 only.
    fn dir_of(&self, controller: &str, terms: &Terms) -> Option<Dir<'_>> {
        let version = if controller == "hugetlb" { terms.hugetlb } else { terms.version };
        match version {
            Version::V1 => self.v1(controller).or_else(|| {
                let counts = |tree: &Dir<'_>| controller == "pids" && tree.path().join("pids.max").exists();
                self.tree().filter(counts)
            }),
            Version::V2 => self.tree(),
        }
    }

    fn change(&self, to: &Row, terms: &Terms, report: &mut Report) -> Result<()> {
        let kernel = Kernel::real();
        let Some(dir) = self.dir_of(to.controller, terms) else {
            let source = std::io::ErrorKind::NotFound.into();
            return if to.limits { Err(Error::Prepare { step: to.file.clone(), source }) } else { Ok(()) };
        };
        let file = dir.path().join(&to.file);
        // On v2 the file does not exist if its controller is not enabled yet.
        if self.v1(to.controller).is_none() && !file.exists() {
            if !to.limits {
                return Ok(());
            }
            for level in &self.paths.levels {
                enable(&kernel, level, to.controller)?;
            }
        }
        set(&kernel, &file, &to.line(), to.control, report)
    }
}
