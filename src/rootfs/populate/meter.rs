//! What was made so far, by all threads: for the limits, and for who wants to know the progress.

use std::sync::atomic::{AtomicU64, Ordering};

use super::refused::Cause;
use super::{Options, Progress};

/// Counts entries and bytes where somebody asked for it; else it costs a branch.
pub(super) struct Meter<'a> {
    entries: AtomicU64,
    bytes: AtomicU64,
    max_entries: Option<u64>,
    max_bytes: Option<u64>,
    progress: Option<&'a (dyn Fn(Progress) + Sync)>,
}

impl<'a> Meter<'a> {
    pub(super) fn new(options: &Options<'a>) -> Self {
        let Options { max_entries, max_bytes, progress, .. } = *options;
        Meter { entries: AtomicU64::new(0), bytes: AtomicU64::new(0), max_entries, max_bytes, progress }
    }

    /// Whether the sizes of all files matter.
    pub(super) fn asks_bytes(&self) -> bool {
        self.max_bytes.is_some() || self.progress.is_some()
    }

    /// One more entry was made. Counted afterwards, as one that turns out to be there counts for nothing:
    /// a thread that goes over the limit has made one too many, in a root that is given up with that.
    pub(super) fn entry(&self) -> Result<(), Cause> {
        if self.max_entries.is_none() && self.progress.is_none() {
            return Ok(());
        }
        let before = self.entries.fetch_add(1, Ordering::Relaxed);
        match self.max_entries {
            Some(max) if before >= max => Err(Cause::Entries(max)),
            _ => Ok(()),
        }
    }

    /// So many bytes more are in the root's files.
    pub(super) fn bytes(&self, n: u64) -> Result<(), Cause> {
        if n == 0 || !self.asks_bytes() {
            return Ok(());
        }
        let before = self.bytes.fetch_add(n, Ordering::Relaxed);
        self.within(before, n)
    }

    /// Whether a file of that size may come, before any of it is written.
    pub(super) fn fits(&self, size: u64) -> Result<(), Cause> {
        self.within(self.bytes.load(Ordering::Relaxed), size)
    }

    fn within(&self, before: u64, n: u64) -> Result<(), Cause> {
        match self.max_bytes {
            Some(max) if before.saturating_add(n) > max => Err(Cause::Bytes(max)),
            _ => Ok(()),
        }
    }

    /// Tells how far it is.
    pub(super) fn tell(&self) {
        if let Some(progress) = self.progress {
            let (entries, bytes) = (self.entries.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
            progress(Progress { entries, bytes });
        }
    }
}
