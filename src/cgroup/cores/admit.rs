//! How a task comes into the book and leaves it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::kill::{is_gone, open_dir, remove_dir, remove_tree};
use super::super::layout::call;
use super::super::probe::Version;
use super::super::run::hold;
use super::super::set::CpuSet;
use super::super::write::{enable, obey};
use super::book::{Book, Entry, State, has_processes, is_pinned, unlock};
use super::files::{children, ensure_dir, inherit_mems, make_dir, read_set, set_record, there, write_set};
use super::{Reserved, Seat, Site};
use crate::error::{Error, Result};
use crate::report::Reason;
use crate::sys::lock::{Lock, flock};

/// What a task got.
#[derive(Debug, Default)]
pub(in super::super) struct Admitted {
    /// Held as long as the task's owner lives: so that nobody takes its own cgroup for left behind, or the share of
    /// v1, which it may be about to enter, for empty.
    pub pin: Option<Pin>,
    /// What is reserved but cannot be used now.
    pub shortfall: Option<Reason>,
}

/// A shared lock on the task's own cgroup below the book's parent, or on the share of v1.
#[derive(Debug)]
pub(in super::super) struct Pin(OwnedFd);

impl Pin {
    /// # Errors
    /// [`Error::Prepare`] with the call.
    fn new(dir: &Path) -> Result<Pin> {
        let pin = hold(dir)?;
        flock(pin.as_fd(), Lock::SharedNow).map_err(Error::prepare(call::pin(dir)))?;
        Ok(Pin(pin))
    }

    /// For who found `leaves` again, whose book is at `site`. `None` when there is nothing to hold, or not any more.
    ///
    /// # Errors
    /// As [`admit`].
    pub(in super::super) fn again(site: &Site, leaves: &[PathBuf]) -> Result<Option<Pin>> {
        // Nobody looks for pins meanwhile.
        let Some(_book) = Book::open(site)? else { return Ok(None) };
        let share = site.share();
        let own = leaves.iter().find(|leaf| leaf.starts_with(&site.parent));
        match Pin::new(own.unwrap_or(&share)) {
            Err(Error::Prepare { source, .. }) if is_gone(&source) => Ok(None),
            pin => pin.map(Some),
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        unlock(&self.0);
    }
}

/// Takes the seat: makes the task's directories and divides the processors anew. `leaves` gets the task's own
/// as soon as it is there, and `sat` the book as soon as there may be something to take back in it. `None` if
/// the parent is not there, or not any more.
///
/// # Errors
/// [`Error::Prepare`] with the call; `ResourceBusy` when the processors are not to be had. `AlreadyExists` when
/// there is a leaf of that name.
pub(in super::super) fn admit(
    seat: &Seat,
    leaves: &mut Vec<PathBuf>,
    sat: &mut Option<Site>,
) -> Result<Option<Admitted>> {
    let Some(book) = Book::open(&seat.site)? else { return Ok(None) };
    *sat = Some(seat.site.clone());
    match (&seat.reserved, &seat.leaf) {
        (Some(reserved), Some(leaf)) => book.reserve(seat, leaf, reserved, leaves),
        (_, leaf) => book.seat_guest(seat, leaf.as_deref(), leaves),
    }
    .map(Some)
}

/// Gives the task of `leaf`, which has a reservation, another one; what of it cannot be used now.
///
/// # Errors
/// As [`admit`]. The kind is `ResourceBusy` also where the old and the new processors together would be the last
/// unreserved ones. A failure half way is made good by the next who opens the book.
pub(in super::super) fn exchange(site: &Site, leaf: &Path, reserved: &Reserved) -> Result<Option<Reason>> {
    match Book::open(site)? {
        Some(book) => book.exchange(leaf, reserved),
        None => {
            Err(Error::prepare::<io::Error>(call::open_dir(&site.parent))(io::ErrorKind::NotFound.into()))
        }
    }
}

/// Gives back what a task had whose own directory is gone, and removes those that nobody needs any more:
/// the book's own, and `parents` as far as the book is in them, children after their parents.
///
/// # Errors
/// [`Error::Task`] with the call.
pub(in super::super) fn leave(site: &Site, parents: &mut Vec<PathBuf>) -> Result<()> {
    let done = Book::open(site).and_then(|book| book.map_or(Ok(()), |book| book.close_down(parents)));
    if done.is_ok() {
        // Never without the lock: somebody may have made it anew and be at work in it.
        parents.retain(|dir| *dir != site.parent);
    }
    done.map_err(Error::of_task)
}

impl Book<'_> {
    /// A task without reserved processors.
    fn seat_guest(&self, seat: &Seat, leaf: Option<&Path>, leaves: &mut Vec<PathBuf>) -> Result<Admitted> {
        let share = self.site.share();
        let mut state = self.state()?;
        if state.is_taken() {
            state.entries.retain(|entry| !self.reap(entry));
            if state.is_taken() {
                let why = format!("no unreserved processor is left: {}", self.holders(state.entries.iter()));
                return Err(busy(call::mkdir_private(&share), why));
            }
        }
        let Some(leaf) = leaf else { return self.seat_in_share(seat, &share, state) };
        ensure_dir(&share)?;
        if state.divided {
            self.settle(&state)?;
        } else if read_set(&share.join("cpuset.cpus"))?.is_some_and(|now| !now.is_empty()) {
            // Something was reserved once. A list does not grow by itself when a processor comes online.
            state.usable = self.usable()?;
            self.settle(&state)?;
        }
        make_dir(leaf, 0o755).map_err(Error::prepare::<io::Error>(call::mkdir(leaf)))?;
        leaves.push(leaf.to_owned());
        Ok(Admitted { pin: Some(Pin::new(leaf)?), shortfall: None })
    }

    /// v1: the share is made from above, its own processors last; where it has all there is nothing to do.
    fn seat_in_share(&self, seat: &Seat, share: &Path, mut state: State) -> Result<Admitted> {
        let now = read_set(&share.join("cpuset.cpus"))?.unwrap_or_default();
        if state.divided || now.is_empty() || now != self.usable()? {
            seat.inherit.iter().try_for_each(obey)?;
            ensure_dir(share)?;
            inherit_mems(share)?;
            state.usable = self.usable()?;
            self.settle(&state)?;
        }
        Ok(Admitted { pin: Some(Pin::new(share)?), shortfall: None })
    }

    fn reserve(
        &self,
        seat: &Seat,
        leaf: &Path,
        reserved: &Reserved,
        leaves: &mut Vec<PathBuf>,
    ) -> Result<Admitted> {
        seat.inherit.iter().try_for_each(obey)?;
        seat.enable.iter().try_for_each(|dir| enable(dir, "cpuset"))?;
        let state = self.state()?;
        if state.entries.iter().any(|e| e.leaf == leaf) {
            return Err(Error::prepare::<io::Error>(call::mkdir_private(leaf))(
                io::ErrorKind::AlreadyExists.into(),
            ));
        }
        let (after, cores) = self.with(state.entries, leaf, reserved)?;
        let slice = self.site.reserve();
        ensure_dir(&slice)?;
        match self.site.version {
            Version::V1 => inherit_mems(&slice)?,
            Version::V2 => enable(&slice, "cpuset")?,
        }
        self.settle(&after)?;
        make_dir(leaf, 0o711).map_err(Error::prepare::<io::Error>(call::mkdir_private(leaf)))?;
        leaves.push(leaf.to_owned());
        let pin = Pin::new(leaf)?;
        set_record(leaf, reserved)?;
        if self.site.version == Version::V1 {
            inherit_mems(leaf)?;
        }
        write_set(&leaf.join("cpuset.cpus"), &cores)?;
        Ok(Admitted { pin: Some(pin), shortfall: after.shortfall(reserved) })
    }

    /// What the book says with one more reservation, and what that task runs on, if the others leave room for it.
    fn with(&self, entries: Vec<Entry>, leaf: &Path, reserved: &Reserved) -> Result<(State, CpuSet)> {
        let step = || call::set_record(leaf, &reserved.record());
        let taken = |e: &&Entry| !e.reserved.cores.intersection(&reserved.cores).is_empty();
        let mut after = State { divided: true, usable: self.usable()?, entries };
        // Before anything is removed for it.
        if after.cores(reserved).is_none() {
            let why =
                format!("none of processors {} is among the usable ones, {}", reserved.cores, after.usable);
            return Err(busy(step(), why));
        }
        after.entries.retain(|e| !taken(&e) || !self.reap(e));
        if after.entries.iter().any(|e| taken(&e)) {
            return Err(busy(step(), self.holders(after.entries.iter().filter(taken))));
        }
        after.entries.push(Entry { leaf: leaf.to_owned(), reserved: reserved.clone() });
        if after.is_taken()
            && let Some(guests) = self.guests()?
        {
            after.entries.retain(|e| e.leaf == leaf || !self.reap(e));
            if after.is_taken() {
                let why = format!("processors {} are the last unreserved ones, and {guests}", reserved.cores);
                return Err(busy(step(), why));
            }
        }
        let cores = after.cores(reserved).unwrap_or_default();
        Ok((after, cores))
    }

    /// Other processors for a task that has some. On the way it has both, so that nobody else is on any of them.
    fn exchange(&self, leaf: &Path, reserved: &Reserved) -> Result<Option<Reason>> {
        let mut entries = self.state()?.entries;
        let Some(old) = entries.iter().position(|e| e.leaf == leaf).map(|at| entries.swap_remove(at)) else {
            return Err(Error::prepare::<io::Error>(call::get_record(leaf))(io::ErrorKind::NotFound.into()));
        };
        // What somebody had left behind may have been removed for nothing.
        let heal = |_: &Error| drop(self.state().and_then(|state| self.settle(&state)));
        let (after, cores) = self.with(entries.clone(), leaf, reserved).inspect_err(heal)?;
        let union = old.reserved.cores.union(&reserved.cores);
        let both = Reserved { cores: union, exclusive: reserved.exclusive };
        let (both, _) = self.with(entries, leaf, &both).inspect_err(heal)?;
        self.settle(&both)?;
        set_record(leaf, reserved)?;
        // The task lets go before the others take.
        write_set(&leaf.join("cpuset.cpus"), &cores).inspect_err(|_| {
            let _ = set_record(leaf, &old.reserved);
        })?;
        self.settle(&after)?;
        Ok(after.shortfall(reserved))
    }

    /// Removes the directory of a reservation that nobody holds any more; whether it did. What the task had in other
    /// hierarchies stays, and holds no processors.
    fn reap(&self, entry: &Entry) -> bool {
        // The kernel refuses where there are processes that cannot be seen from here.
        !self.is_held(&entry.leaf).unwrap_or(true) && remove_tree(&entry.leaf, Duration::ZERO).is_ok()
    }

    /// Who has what, for an error.
    fn holders<'e>(&self, entries: impl Iterator<Item = &'e Entry>) -> String {
        let one = |entry: &Entry| {
            let Reserved { cores, .. } = &entry.reserved;
            let (what, are) = if cores.len() == 1 { ("processor", "is") } else { ("processors", "are") };
            let idle =
                if has_processes(&entry.leaf).unwrap_or(true) { "" } else { ", which has no processes" };
            format!("{what} {cores} {are} reserved by {:?}{idle}", self.site.name(&entry.leaf))
        };
        entries.map(one).collect::<Vec<_>>().join("; ")
    }

    /// Who needs the share, or may be about to.
    fn guests(&self) -> Result<Option<String>> {
        let share = self.site.share();
        if self.site.version == Version::V2 {
            let mut guests = children(&share)?.unwrap_or_default();
            // What was left behind needs none.
            guests.retain(|leaf| self.is_held(leaf).unwrap_or(true));
            let name = guests.first().map(|leaf| self.site.name(leaf));
            return Ok(name.map(|name| format!("{} tasks need one, {name:?} for one", guests.len())));
        }
        let needed = self.is_pinned()? || has_processes(&share)?;
        Ok(needed.then(|| "tasks in the share need one".to_owned()))
    }

    /// v1: whether a task is about to enter the share.
    fn is_pinned(&self) -> Result<bool> {
        let share = self.site.share();
        let dir = there(open_dir(&share)).map_err(Error::prepare(call::open_dir(&share)))?;
        Ok(dir.is_some_and(|dir| is_pinned(&dir)))
    }

    fn close_down(&self, parents: &mut Vec<PathBuf>) -> Result<()> {
        let state = self.state()?;
        if state.divided {
            self.settle(&state)?;
        }
        // Most often somebody else is in what is removed here, and will do it.
        if state.divided && state.entries.is_empty() {
            let _ = remove_dir(&self.site.reserve());
        }
        let needed = self.site.version == Version::V1 && self.is_pinned()?;
        if needed || remove_dir(&self.site.share()).is_err() {
            return Ok(());
        }
        while let Some(parent) = parents.pop_if(|dir| self.site.parent.starts_with(dir)) {
            let _ = remove_dir(&parent);
        }
        Ok(())
    }
}

fn busy(step: String, why: String) -> Error {
    Error::Prepare { step, source: io::Error::new(io::ErrorKind::ResourceBusy, why) }
}
