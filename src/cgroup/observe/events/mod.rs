//! Events of a group: OOM kills, pressure above a threshold, and the exit of the last process.
//!
//! The kernel only signals that something changed. The events come from counters, compared with the previous event. So
//! no event comes twice, and OOM kills that happened before the caller listened are reported too.
//!
//! On v2 the files `memory.events` and `cgroup.events` are polled. That costs one descriptor each, and a change stays
//! pending until the file is read. inotify is not used, because it is limited to 128 instances for each user. On v1 an
//! eventfd signals that memory ran out. Nothing signals that a v1 cgroup is empty, so its processes are listed at
//! growing intervals, beginning when the group's first process ends.
//!
//! v2 is checked at intervals as well. The kernel signals a file at most every 10 milliseconds, and drops a pending
//! signal when the cgroup is removed. In that case the last count comes from [`Tally`], which is shared with the
//! [`Group`] that removes the cgroup.
//!
//! What does not come from the cgroup is in `life`.
//!
//! All sources are in one `epoll(7)` descriptor. There is no thread, and the group can be removed meanwhile.

use std::fs::File;
use std::io;
use std::iter::FusedIterator;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use serde::{Deserialize, Serialize};

use crate::cgroup::fs::{Dir, call, field, populated};
use crate::cgroup::group::Group;
use crate::cgroup::group::baseline::{Counters, Tally};
use crate::error::{Error, Result};
use crate::report::{Control, Report};
use crate::status::ExitStatus;

mod life;
mod pressure;

use life::Follower;
pub(crate) use life::{Life, Subject};
use pressure::Gauge;
pub use pressure::{PressureResource, PressureThreshold};

/// The longest pause between two checks.
const PAUSE: Duration = Duration::from_millis(100);

/// How long to look for a victim after v1 signals that memory ran out. v1 signals before it kills.
const AFTERMATH: Duration = Duration::from_secs(2);

/// The optional events. All others are always reported.
///
/// ```no_run
/// use cofferdam::cgroup::{EventOptions, PressureResource, PressureThreshold};
/// use std::time::Duration;
///
/// let task = cofferdam::Sandbox::command("make").spawn()?;
/// let (stall, window) = (Duration::from_millis(500), Duration::from_secs(2));
/// let memory = PressureThreshold { resource: PressureResource::Memory, full: true, stall, window };
/// for event in task.events(&EventOptions { pressure: vec![memory] })? {
///     println!("{:?}", event?);
/// }
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct EventOptions {
    /// The pressure thresholds to watch.
    pub pressure: Vec<PressureThreshold>,
}

/// An event in the life of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The command runs. The first event of every value, also of one that is made later. Not reported by
    /// [`Group::events`].
    Started,
    /// Controls that were asked for hold in part or not at all ([`Task::report`](crate::Task::report)). At most one such
    /// event, after [`Started`](Self::Started). Not reported by [`Group::events`].
    Degraded {
        /// The controls that hold in part.
        weakened: Control,
        /// The controls that do not hold.
        missing: Control,
        /// The reasons, joined by `; `.
        why: String,
    },
    /// The limits were changed by [`Task::update`](crate::Task::update) of the same value. Changes before a
    /// [recovery](crate::Sandbox::recover) are not known. Not reported by [`Group::events`].
    LimitsUpdated {
        /// Number of changes since the last such event.
        updates: u64,
        /// The report of the last change.
        report: Report,
    },
    /// The main process has ended. Other processes of the task may still run; OOM kills before its end come first.
    ///
    /// Not reported if the [`Task`](crate::Task) was dropped or detached before it knew the status, and by
    /// [`Group::events`].
    Exited {
        /// The exit status, as [`Task::status`](crate::Task::status) returns it.
        status: ExitStatus,
    },
    /// The kernel's OOM killer killed processes of the task. [`Task::oom`](crate::Task::oom) says which limit was
    /// exceeded.
    ///
    /// On v1, a kill because the host ran out of memory is only reported together with the next event or at the end.
    Oom {
        /// Number of OOM kills since the last such event.
        kills: u64,
    },
    /// The last process has exited. No event follows.
    Empty,
    /// Processes were stalled for longer than a threshold allows.
    #[non_exhaustive]
    Pressure {
        /// The resource that they waited for.
        resource: PressureResource,
        /// Whether all processes waited at once, as the threshold requested.
        full: bool,
        /// The stall time in the threshold's window.
        stalled: Duration,
    },
}

/// The events of a task, returned by [`Task::events`](crate::Task::events).
///
/// As an iterator it blocks, and ends after [`Event::Empty`] or an error. In an event loop, poll its descriptor
/// ([`AsFd`]): it is readable when there may be an event. Then call [`try_next`](Self::try_next) until it returns
/// `None`, which the first call may do. After the end the descriptor stays readable.
///
/// It keeps neither the task nor its cgroup alive. Dropping it closes all of its descriptors.
///
/// ```no_run
/// use cofferdam::{Event, EventOptions, Sandbox};
/// use std::time::Duration;
///
/// let task = Sandbox::command("make").spawn()?;
/// let mut events = task.events(&EventOptions::default())?;
/// while !events.is_over() {
///     match events.next_timeout(Duration::from_secs(10))? {
///         Some(Event::Oom { kills }) => println!("{kills} processes OOM-killed"),
///         Some(event) => println!("{event:?}"),
///         None => println!("still running"),
///     }
/// }
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Debug)]
pub struct Events {
    epoll: Epoll,
    timer: TimerFd,
    /// A pidfd of the first process, until that process has ended.
    first: Option<OwnedFd>,
    unit: Option<Unit>,
    memory: Option<Memory>,
    gauges: Vec<Gauge>,
    search: Option<Search>,
    tally: Tally,
    /// The OOM kills in the cgroup from before the group.
    before: u64,
    reported: u64,
    over: bool,
    life: Option<Follower>,
}

/// How to see that the group has no processes.
#[derive(Debug)]
enum Unit {
    /// `cgroup.events`.
    V2(File),
    /// The cgroup's directory, to list its processes.
    V1(OwnedFd),
}

/// How to see that memory has run out.
#[derive(Debug)]
enum Memory {
    /// `memory.events`.
    V2(File),
    /// `memory.oom_control`, and the eventfd that the kernel signals.
    V1(File, EventFd),
}

/// Repeated checks at growing intervals.
#[derive(Clone, Copy, Debug)]
struct Search {
    due: Instant,
    pause: Duration,
    /// When the checks stop; `None` if they continue until the events are over.
    end: Option<Instant>,
}

/// The `epoll_event` data of each source.
mod token {
    pub const TIMER: u64 = 0;
    pub const FIRST: u64 = 1;
    pub const UNIT: u64 = 2;
    pub const MEMORY: u64 = 3;
    pub const LIFE: u64 = 4;
}

impl Group {
    /// The events of the group from now on, and the OOM kills that have happened before.
    ///
    /// `first` is a pidfd (`pidfd_open(2)`) of the process that is expected to end last. From its end on, the group is
    /// checked at intervals for being empty. Without `first` it is checked all the time, ten times a second.
    ///
    /// # Errors
    /// [`Error::Spec`] for an invalid threshold. [`Error::Task`] with the call that was refused. Its cause is
    /// `Unsupported` if the task has no cgroup to watch, or if a pressure cannot be measured: the kernel has no PSI, or
    /// there is no v2 cgroup.
    pub fn events(&self, first: Option<BorrowedFd<'_>>, options: &EventOptions) -> Result<Events> {
        let Some(unit) = self.unit_dir() else { return Err(unsupported("the task has no cgroup to watch")) };
        let mut events = Events::new(self.tally().clone())?;
        [events.before, ..] = self.before().own;
        for threshold in &options.pressure {
            let Some(tree) = self.tree() else {
                return Err(unsupported("cgroup v1 does not support pressure (PSI), which needs cgroup v2"));
            };
            events.gauges.push(Gauge::open(&tree, threshold, Instant::now())?);
        }
        events.watch_first(first)?;
        events.watch_unit(&unit, self.tree().is_some())?;
        if let Some(counters) = self.counters() {
            events.watch_memory(&counters)?;
        }
        Ok(events)
    }
}

fn unsupported(why: &str) -> Error {
    Error::task("watch the cgroup")(io::Error::new(io::ErrorKind::Unsupported, why))
}

impl Events {
    fn new(tally: Tally) -> Result<Events> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(Error::task("epoll_create1"))?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(Error::task("timerfd_create"))?;
        let events = Events {
            epoll,
            timer,
            first: None,
            unit: None,
            memory: None,
            gauges: Vec::new(),
            search: None,
            tally,
            before: 0,
            reported: 0,
            over: false,
            life: None,
        };
        events.add(&events.timer, EpollFlags::EPOLLIN, token::TIMER)?;
        // The first check is due at once.
        events.wake()?;
        Ok(events)
    }

    /// The events of a removed group, whose OOM kill counter last had the value `kills`.
    pub(crate) fn gone(kills: u64) -> Result<Events> {
        Events::new(Tally::of(kills))
    }

    /// Adds the events of the task's life.
    pub(crate) fn of_task(mut self, life: &Arc<Life>, subject: Weak<dyn Subject>) -> Result<Events> {
        let follower = Follower::new(life, subject)?;
        self.add(follower.notice(), EpollFlags::EPOLLIN, token::LIFE)?;
        self.life = Some(follower);
        Ok(self)
    }

    fn watch_first(&mut self, first: Option<BorrowedFd<'_>>) -> Result<()> {
        let Some(first) = first else {
            self.search(Instant::now(), None);
            return Ok(());
        };
        let first = first.try_clone_to_owned().map_err(Error::task("fcntl(pidfd, F_DUPFD_CLOEXEC)"))?;
        self.add(&first, EpollFlags::EPOLLIN, token::FIRST)?;
        self.first = Some(first);
        Ok(())
    }

    fn watch_unit(&mut self, unit: &Dir<'_>, v2: bool) -> Result<()> {
        self.unit = Some(if v2 {
            let file = open(unit, "cgroup.events")?;
            self.add(&file, EpollFlags::EPOLLPRI, token::UNIT)?;
            Unit::V2(file)
        } else {
            let dir = unit.open(".", OFlag::O_RDONLY | OFlag::O_DIRECTORY);
            Unit::V1(dir.map_err(Error::task(call::open_dir(unit.path())))?)
        });
        Ok(())
    }

    fn watch_memory(&mut self, counters: &Counters<'_>) -> Result<()> {
        let leaf = match counters {
            Counters::V1(leaf) => leaf,
            Counters::V2(leaf) => {
                let file = match open(leaf, "memory.events") {
                    // Memory is not accounted.
                    Err(Error::Task { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                        return Ok(());
                    }
                    file => file?,
                };
                self.add(&file, EpollFlags::EPOLLPRI, token::MEMORY)?;
                self.memory = Some(Memory::V2(file));
                return Ok(());
            }
        };
        let file = open(leaf, "memory.oom_control")?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let notice = EventFd::from_flags(flags).map_err(Error::task("eventfd2"))?;
        let text = format!("{} {}", notice.as_fd().as_raw_fd(), file.as_raw_fd());
        let control = "cgroup.event_control";
        leaf.write(control, &text).map_err(Error::task(call::write(&leaf.path().join(control), &text)))?;
        self.add(&notice, EpollFlags::EPOLLIN, token::MEMORY)?;
        self.memory = Some(Memory::V1(file, notice));
        Ok(())
    }

    fn add(&self, fd: impl AsFd, flags: EpollFlags, token: u64) -> Result<()> {
        self.epoll.add(fd, EpollEvent::new(flags, token)).map_err(Error::task("epoll_ctl(EPOLL_CTL_ADD)"))
    }

    /// The next event, without waiting. `None` if there is none now, or if no more events will come.
    ///
    /// # Errors
    /// [`Error::Task`] with the call that was refused. No event follows an error.
    pub fn try_next(&mut self) -> Result<Option<Event>> {
        self.next_timeout(Duration::ZERO)
    }

    /// The next event, waiting for at most `timeout`. `None` if no event came in time, or if no more events will come
    /// ([`is_over`](Self::is_over)).
    ///
    /// # Errors
    /// As [`try_next`](Self::try_next).
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Event>> {
        self.next_until(Instant::now().checked_add(timeout))
    }

    /// Whether no more events will come, because [`Event::Empty`] or an error was returned.
    pub fn is_over(&self) -> bool {
        self.over
    }

    fn next_until(&mut self, deadline: Option<Instant>) -> Result<Option<Event>> {
        while !self.over {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let timeout = left.map_or(EpollTimeout::NONE, |left| {
                // Rounded up to a millisecond, so that the last wait does not spin.
                EpollTimeout::try_from(left.saturating_add(Duration::from_micros(999)))
                    .unwrap_or(EpollTimeout::MAX)
            });
            let timeout = if left.is_some_and(|left| left.is_zero()) { EpollTimeout::ZERO } else { timeout };
            let mut ready = [EpollEvent::empty(); 4];
            match self.epoll.wait(&mut ready, timeout) {
                Ok(0) if left.is_some_and(|left| left.is_zero()) => return Ok(None),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(n) => match self.look(ready.get(..n).unwrap_or_default()) {
                    Ok(None) => {}
                    found => {
                        self.over |= found.is_err();
                        return found;
                    }
                },
                Err(e) => {
                    self.over = true;
                    return Err(Error::task("epoll_wait")(e));
                }
            }
        }
        Ok(None)
    }

    /// Acknowledges the sources in `ready`, then checks all of them for an event.
    fn look(&mut self, ready: &[EpollEvent]) -> Result<Option<Event>> {
        let now = Instant::now();
        for event in ready {
            self.take(event.data(), now)?;
        }
        if let Some(event) = self.life.as_mut().and_then(Follower::next) {
            self.wake()?;
            return Ok(Some(event));
        }
        // Emptiness is checked first: the counters are final once the group is empty.
        let empty = self.is_empty()?;
        let kills = self.kills()?;
        let new = kills.saturating_sub(self.reported);
        if new > 0 {
            self.reported = kills;
            self.wake()?;
            return Ok(Some(Event::Oom { kills: new }));
        }
        let ended = self.first.is_none();
        if let Some(event) = self.life.as_mut().filter(|_| ended || empty).and_then(Follower::exit) {
            self.wake()?;
            return Ok(Some(event));
        }
        // The cgroup may be empty shortly before the pidfd of the last process polls readable.
        if empty && (ended || !self.life.as_ref().is_some_and(Follower::awaits_exit)) {
            self.over = true;
            self.wake()?;
            return Ok(Some(Event::Empty));
        }
        let pressure = self.gauges.iter_mut().find_map(|gauge| {
            let PressureThreshold { resource, full, .. } = gauge.threshold;
            gauge.look(now).map(|stalled| Event::Pressure { resource, full, stalled })
        });
        if pressure.is_some() {
            self.wake()?;
            return Ok(pressure);
        }
        self.sleep(now)?;
        Ok(None)
    }

    /// Acknowledges one source, so that it is not ready any more.
    fn take(&mut self, token: u64, now: Instant) -> Result<()> {
        match (token, &self.memory) {
            (token::TIMER, _) => match self.timer.wait() {
                Ok(()) | Err(Errno::EAGAIN) => {}
                Err(e) => return Err(Error::task("read(timerfd)")(e)),
            },
            (token::FIRST, _) => {
                if let Some(first) = self.first.take() {
                    self.epoll.delete(first).map_err(Error::task("epoll_ctl(EPOLL_CTL_DEL)"))?;
                }
                self.search(now, None);
            }
            (token::LIFE, _) => match self.life.as_ref().map(|life| life.notice().read()) {
                None | Some(Ok(_) | Err(Errno::EAGAIN)) => {}
                Some(Err(e)) => return Err(Error::task("read(eventfd)")(e)),
            },
            (token::MEMORY, Some(Memory::V1(_, notice))) => {
                match notice.read() {
                    Ok(_) | Err(Errno::EAGAIN) => {}
                    Err(e) => return Err(Error::task("read(eventfd)")(e)),
                }
                if self.first.is_some() {
                    self.search(now, now.checked_add(AFTERMATH));
                }
            }
            // The other sources are files, which `look` reads.
            _ => {}
        }
        Ok(())
    }

    fn search(&mut self, now: Instant, end: Option<Instant>) {
        self.search = Some(Search { due: now, pause: Duration::from_micros(500), end });
    }

    /// Whether the group has no processes. On v1 it is not checked before the first process has ended.
    fn is_empty(&mut self) -> Result<bool> {
        match &self.unit {
            None => Ok(true),
            Some(Unit::V2(file)) => {
                Ok(read(file, "read(cgroup.events)")?.is_none_or(|text| field(&text, "populated") == Some(0)))
            }
            // Listing the processes is expensive.
            Some(Unit::V1(_)) if self.first.is_some() => Ok(false),
            Some(Unit::V1(dir)) => {
                populated(dir.as_fd()).map(|populated| !populated).map_err(Error::task("read(cgroup.procs)"))
            }
        }
    }

    fn kills(&mut self) -> Result<u64> {
        let text = match &self.memory {
            None => None,
            Some(Memory::V2(file)) => read(file, "read(memory.events)")?,
            Some(Memory::V1(file, _)) => read(file, "read(memory.oom_control)")?,
        };
        if let (None, Some(Memory::V2(file))) = (&text, &self.memory) {
            // Either the controller was disabled for this cgroup, or the cgroup was removed. The file would stay ready
            // forever.
            self.epoll.delete(file).map_err(Error::task("epoll_ctl(EPOLL_CTL_DEL)"))?;
            self.memory = None;
        }
        Ok(self.tally.update(text.and_then(|text| field(&text, "oom_kill")?.checked_sub(self.before))))
    }

    /// Makes the descriptor readable again, because there may be more events.
    fn wake(&self) -> Result<()> {
        self.alarm(Duration::from_nanos(1))
    }

    /// Sets the timer to the next check or sample that is due.
    fn sleep(&mut self, now: Instant) -> Result<()> {
        if let Some(search) = &mut self.search
            && search.due <= now
        {
            search.pause = search.pause.saturating_mul(2).min(PAUSE);
            search.due = now.checked_add(search.pause).unwrap_or(now);
        }
        self.search.take_if(|search| search.end.is_some_and(|end| end <= now));
        let due = self.gauges.iter().filter_map(|gauge| gauge.due);
        let Some(due) = due.chain(self.search.map(|search| search.due)).min() else {
            return self.timer.unset().map_err(Error::task("timerfd_settime"));
        };
        self.alarm(due.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1)))
    }

    fn alarm(&self, after: Duration) -> Result<()> {
        let once = Expiration::OneShot(TimeSpec::from_duration(after));
        self.timer.set(once, TimerSetTimeFlags::empty()).map_err(Error::task("timerfd_settime"))
    }
}

impl Iterator for Events {
    type Item = Result<Event>;

    /// Waits for the next event without a timeout.
    fn next(&mut self) -> Option<Result<Event>> {
        self.next_until(None).transpose()
    }
}

impl FusedIterator for Events {}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

fn open(place: &Dir<'_>, file: &str) -> Result<File> {
    let opened = place.open(file, OFlag::O_RDONLY).map(File::from);
    opened.map_err(Error::task(call::open_read(&place.path().join(file))))
}

/// The first 1024 bytes of a file; `None` if its cgroup was removed.
fn read(file: &File, step: &str) -> Result<Option<String>> {
    let mut buffer = [0u8; 1024];
    match file.read_at(&mut buffer, 0) {
        Ok(n) => Ok(Some(String::from_utf8_lossy(buffer.get(..n).unwrap_or_default()).into_owned())),
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(e) => Err(Error::task(step)(e)),
    }
}

crate::notation::from_maps! { EventOptions: "an object with pressure" }
