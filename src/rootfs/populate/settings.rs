//! State that all threads of a population share: its settings, and the counters for limits and progress.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::stat::fstat;

use super::cancel::Cancel;
use super::error::{Cause, in_root};
use super::metadata::Metadata;
use super::{Method, Options, Populated, Progress, Watch};
use crate::{Error, Result};

/// Settings of one population.
pub(super) struct Settings<'a> {
    pub(super) root: BorrowedFd<'a>,
    pub(super) method: Method,
    pub(super) metadata: Metadata,
    pub(super) meter: Meter<'a>,
    pub(super) fingerprint: bool,
    /// Directories of the host that are left empty, by device and inode: the root itself and `Options::skip`.
    pub(super) avoid: Vec<(u64, u64)>,
}

impl<'a> Settings<'a> {
    pub(super) fn new(root: BorrowedFd<'a>, options: &Options<'a>) -> Result<Self> {
        let st = fstat(root).map_err(Error::prepare(format!("fstat({})", in_root(Path::new("")))))?;
        let avoid = options.skip.iter().copied().chain([(st.st_dev, st.st_ino)]).collect();
        let Options { method, setuid, fingerprint, .. } = *options;
        let (metadata, meter) = (Metadata::new(setuid), Meter::new(options));
        Ok(Settings { root, method, metadata, meter, fingerprint, avoid })
    }

    /// A result in which nothing is counted yet. Fields that are not requested are `None`.
    pub(super) fn nothing_done(&self) -> Populated {
        Populated {
            bytes_linked: self.meter.needs_sizes().then_some(0),
            fingerprint: self.fingerprint.then_some(0),
            ..Populated::default()
        }
    }
}

/// Counts entries and bytes if there is a limit or a progress callback. Otherwise each call costs one branch.
pub(super) struct Meter<'a> {
    entries: AtomicU64,
    bytes: AtomicU64,
    max_entries: Option<u64>,
    max_bytes: Option<u64>,
    watch: Watch<'a>,
    /// Whether the progress callback has cancelled the population.
    cancelled: AtomicBool,
}

impl<'a> Meter<'a> {
    pub(super) fn new(options: &Options<'a>) -> Self {
        let Options { max_entries, max_bytes, progress, cancel, .. } = *options;
        let (entries, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let (watch, cancelled) = (Watch { progress, cancel }, AtomicBool::new(false));
        Meter { entries, bytes, max_entries, max_bytes, watch, cancelled }
    }

    /// Whether the size of every file is needed.
    pub(super) fn needs_sizes(&self) -> bool {
        self.max_bytes.is_some() || self.watch.progress.is_some()
    }

    /// Counts an entry that was made. Called after the call that makes the entry, because an entry that exists already
    /// must not count. A thread that exceeds the limit has made one entry too many; the population then fails.
    pub(super) fn add_entry(&self) -> Result<(), Cause> {
        self.go_on()?;
        if self.max_entries.is_none() && self.watch.progress.is_none() {
            return Ok(());
        }
        let before = self.entries.fetch_add(1, Ordering::Relaxed);
        match self.max_entries {
            Some(max) if before >= max => Err(Cause::Entries(max)),
            _ => Ok(()),
        }
    }

    /// Counts `n` bytes that were added to the files of the root.
    pub(super) fn add_bytes(&self, n: u64) -> Result<(), Cause> {
        self.go_on()?;
        if n == 0 || !self.needs_sizes() {
            return Ok(());
        }
        let before = self.bytes.fetch_add(n, Ordering::Relaxed);
        self.check_bytes(before, n)
    }

    /// Checks the limit for a file of `size` bytes before any of it is written.
    pub(super) fn check_size(&self, size: u64) -> Result<(), Cause> {
        self.check_bytes(self.bytes.load(Ordering::Relaxed), size)
    }

    fn check_bytes(&self, before: u64, n: u64) -> Result<(), Cause> {
        match self.max_bytes {
            Some(max) if before.saturating_add(n) > max => Err(Cause::Bytes(max)),
            _ => Ok(()),
        }
    }

    /// Whether the population may go on: neither the handle nor the progress callback has cancelled it.
    fn go_on(&self) -> Result<(), Cause> {
        let cancelled = self.watch.cancel.is_some_and(Cancel::is_cancelled)
            || self.watch.progress.is_some() && self.cancelled.load(Ordering::Relaxed);
        if cancelled { Err(Cause::Cancelled) } else { Ok(()) }
    }

    /// Calls the progress callback.
    pub(super) fn report_progress(&self) {
        if let Some(progress) = self.watch.progress {
            let (entries, bytes) = (self.entries.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
            if progress(Progress { entries, bytes }).is_break() {
                self.cancelled.store(true, Ordering::Relaxed);
            }
        }
    }
}
