//! A stream of a task's resource usage, at an interval.

use std::iter::FusedIterator;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::Task;
use crate::cgroup::stats::Stats;
use crate::error::Result;

/// The shortest interval, and the shortest time over which a CPU percentage is measured.
const SHORTEST: Duration = Duration::from_millis(10);

/// The longest time over which the CPU percentage of the first sample is measured.
const FIRST: Duration = Duration::from_millis(100);

/// One value of [`Task::stats_every`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Sample {
    /// When the sample was taken, by the wall clock (`CLOCK_REALTIME`).
    pub at: SystemTime,
    /// The resource usage until then.
    pub stats: Stats,
    /// CPU time used since the previous sample, in percent of one CPU ([`Stats::cpu_percent`]). `None` if CPU time is not
    /// counted, or if less than 10 ms have passed: the kernel adds CPU time in steps of its clock tick.
    pub cpu_percent: Option<f64>,
}

/// Samples of a task's resource usage, returned by [`Task::stats_every`]. As an iterator it blocks, and ends after the
/// sample that is taken at the end of the task.
#[derive(Debug)]
pub struct Samples<'a> {
    task: &'a Task,
    interval: Duration,
    /// When the next sample is due. `None` before the first one.
    due: Option<Instant>,
    last: Option<Stats>,
    over: bool,
}

impl Task {
    /// Samples of the resource usage: the first one at once, then one each `interval` (at least 10 ms), and the last one
    /// when the main process has ended. A task that has ended gives one sample.
    ///
    /// Each sample has the CPU time used since the previous sample, in percent. The first one measures it over 100 ms, or
    /// over the interval if that is shorter, and comes after that time. So its percentage is the present one, also for a
    /// task that was [recovered](crate::Sandbox::recover) and has run for days.
    ///
    /// Between two samples it waits for the pidfd (`poll(2)`), and makes no system call. If a sample is late, the next one
    /// is due an interval later.
    ///
    /// ```no_run
    /// use cofferdam::{Limits, Sandbox};
    /// use std::time::Duration;
    ///
    /// let limits = Limits { accounting: true, ..Limits::default() };
    /// let task = Sandbox::command("make").limits(limits).spawn()?;
    /// for sample in task.stats_every(Duration::from_secs(1)) {
    ///     let sample = sample?;
    ///     println!("{:?} % of a CPU, {:?} bytes", sample.cpu_percent, sample.stats.memory.usage);
    /// }
    /// println!("{}", task.wait()?);
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// Each item is an error where [`stats`](Task::stats) returns one, or if the kernel refuses to wait (`poll(2)`). The
    /// next item tries again after the interval.
    pub fn stats_every(&self, interval: Duration) -> Samples<'_> {
        Samples { task: self, interval: interval.max(SHORTEST), due: None, last: None, over: false }
    }
}

impl Samples<'_> {
    /// Waits until the next sample is due or the task has ended, and takes it.
    fn sample(&mut self) -> Result<Sample> {
        if self.due.is_none() {
            self.due = Some(Instant::now());
            self.last = Some(self.task.stats()?);
            self.over = self.task.ends_before(Instant::now().checked_add(self.interval.min(FIRST)))?;
        } else {
            self.over = self.task.ends_before(self.due)?;
        }
        // Late samples are not made up for.
        let now = Instant::now();
        let next = self.due.and_then(|due| due.checked_add(self.interval));
        self.due = next.filter(|next| *next > now).or_else(|| now.checked_add(self.interval));
        let stats = self.task.stats()?;
        let measurable = |last: &&Stats| stats.taken.saturating_sub(last.taken) >= SHORTEST;
        let cpu_percent = self.last.as_ref().filter(measurable).and_then(|last| stats.cpu_percent(last));
        self.last = Some(stats.clone());
        Ok(Sample { at: SystemTime::now(), stats, cpu_percent })
    }
}

impl Iterator for Samples<'_> {
    type Item = Result<Sample>;

    fn next(&mut self) -> Option<Result<Sample>> {
        (!self.over).then(|| self.sample())
    }
}

impl FusedIterator for Samples<'_> {}
