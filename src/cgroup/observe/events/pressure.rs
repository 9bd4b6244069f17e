//! Pressure thresholds: how long processes of a group waited for a resource (PSI, the `*.pressure` files, Linux 4.20).
//!
//! The totals are sampled. The kernel can also watch a threshold itself and wake a process that polls the file (Linux
//! 5.2). That is not used, for three reasons:
//!
//! - Polling the file consumes the kernel's event. [`Events`](super::Events) has an epoll descriptor, which the caller
//!   may poll in turn. That poll would consume the event before it is read.
//! - The kernel refuses short windows without `CAP_SYS_RESOURCE`.
//! - Before Linux 6.2 the kernel has a use-after-free when a cgroup is removed while its pressure is polled.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use crate::cgroup::fs::{Dir, call};
use crate::error::{Error, Result};

/// Number of samples in a window.
const SAMPLES: u32 = 4;

/// The shortest and the longest window, as for the kernel's own triggers.
const WINDOWS: std::ops::RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(10);

/// A resource that processes may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PressureResource {
    /// A CPU.
    Cpu,
    /// A block device.
    Io,
    /// Memory: pages are read back after reclaim or swap-out, or other pages are reclaimed first.
    Memory,
}

impl fmt::Display for PressureResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PressureResource::Cpu => "cpu",
            PressureResource::Io => "io",
            PressureResource::Memory => "memory",
        })
    }
}

/// A limit on the time for which processes are stalled; exceeding it is an event.
///
/// An event is reported if processes were stalled for `stall` or longer within a `window`. This needs a v2 cgroup,
/// which a hybrid host has too, and a kernel with PSI. PSI needs `CONFIG_PSI`, and on some kernels also the boot
/// parameter `psi=1`. See `Documentation/accounting/psi.rst`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct PressureThreshold {
    /// The resource that processes wait for.
    pub resource: PressureResource,
    /// Whether to count only the time in which all non-idle processes waited at once (`full`; for the CPU since Linux
    /// 5.13), instead of the time in which at least one waited (`some`).
    pub full: bool,
    /// The stall time that triggers an event: more than zero and at most `window`.
    pub stall: Duration,
    /// The length of the window, 0.5 to 10 seconds. At most one event is reported in each window.
    pub window: Duration,
}

impl PressureThreshold {
    fn line(&self) -> &'static str {
        if self.full { "full" } else { "some" }
    }

    fn check(&self) -> Result<()> {
        let PressureThreshold { stall, window, .. } = *self;
        let wrong = |why: String| Err(Error::spec("pressure", why));
        if !WINDOWS.contains(&window) {
            return wrong(format!("window {window:?} is out of range: must be in {WINDOWS:?}"));
        }
        if stall.is_zero() || stall > window {
            return wrong(format!(
                "stall {stall:?} is out of range: must be greater than 0 and at most the window ({window:?})"
            ));
        }
        Ok(())
    }
}

/// A threshold that is being watched.
#[derive(Debug)]
pub(super) struct Gauge {
    pub threshold: PressureThreshold,
    file: File,
    window: Window,
    /// When the next sample is due; `None` once the cgroup has been removed.
    pub due: Option<Instant>,
}

impl Gauge {
    pub fn open(tree: &Dir<'_>, threshold: &PressureThreshold, now: Instant) -> Result<Gauge> {
        threshold.check()?;
        let name = format!("{}.pressure", threshold.resource);
        let step = call::open_read(&tree.path().join(&name));
        let none = |e: io::Error| match e.raw_os_error() {
            Some(libc::ENOENT | libc::EOPNOTSUPP) => io::Error::new(
                io::ErrorKind::Unsupported,
                "PSI is not enabled in the kernel (needs CONFIG_PSI, and psi=1 on the kernel command line)",
            ),
            _ => e,
        };
        let sample = || {
            let file = File::from(tree.open(&name, OFlag::O_RDONLY)?);
            let first = read(&file)?;
            Ok((file, total(&first, threshold.line())))
        };
        let (file, first) = sample().map_err(none).map_err(Error::task(step.as_str()))?;
        let Some(first) = first else {
            let why = format!("the kernel does not report the line `{}` in this file", threshold.line());
            return Err(Error::task(step)(io::Error::new(io::ErrorKind::Unsupported, why)));
        };
        let window = Window::new(threshold.stall, threshold.window, now, first);
        let mut gauge = Gauge { threshold: *threshold, file, window, due: None };
        gauge.wait(now);
        Ok(gauge)
    }

    fn wait(&mut self, now: Instant) {
        self.due = now.checked_add(self.threshold.window.checked_div(SAMPLES).unwrap_or_default());
    }

    /// Takes a sample if one is due. Returns the stall time if it reached the threshold.
    pub fn look(&mut self, now: Instant) -> Option<Duration> {
        self.due.filter(|due| *due <= now)?;
        self.due = None;
        let total = total(&read(&self.file).ok()?, self.threshold.line())?;
        self.wait(now);
        self.window.sample(now, total)
    }
}

/// The samples of about one window.
#[derive(Debug)]
struct Window {
    stall: Duration,
    length: Duration,
    samples: VecDeque<(Instant, Duration)>,
}

impl Window {
    fn new(stall: Duration, length: Duration, now: Instant, total: Duration) -> Window {
        Window { stall, length, samples: VecDeque::from([(now, total)]) }
    }

    /// Adds a sample. If the stall time in the last window reached the threshold, returns it and starts a new window.
    fn sample(&mut self, now: Instant, total: Duration) -> Option<Duration> {
        let old = |at: &Instant| now.saturating_duration_since(*at) >= self.length;
        while self.samples.get(1).is_some_and(|(at, _)| old(at)) {
            self.samples.pop_front();
        }
        let (start, before) = *self.samples.front()?;
        self.samples.push_back((now, total));
        let stalled = total.saturating_sub(before);
        let elapsed = now.saturating_duration_since(start);
        // A late sample covers more than one window.
        let stalled = match elapsed.max(self.length).as_secs_f64() {
            longest if longest > 0.0 => stalled.mul_f64(self.length.as_secs_f64() / longest),
            _ => stalled,
        };
        if stalled < self.stall {
            return None;
        }
        self.samples.clear();
        self.samples.push_back((now, total));
        Some(stalled)
    }
}

fn read(file: &File) -> io::Result<String> {
    let mut buffer = [0u8; 512];
    let n = file.read_at(&mut buffer, 0)?;
    Ok(String::from_utf8_lossy(buffer.get(..n).unwrap_or_default()).into_owned())
}

/// The value of `total=`, in microseconds, in the line that begins with `line`.
fn total(text: &str, line: &str) -> Option<Duration> {
    let rest = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '))?;
    let total = rest.split(' ').find_map(|word| word.strip_prefix("total="))?;
    total.parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_psi_total_of_a_line_is_parsed_as_microseconds() {
        let text = "some avg10=0.00 avg60=0.28 avg300=0.66 total=303969340\n\
                    full avg10=0.00 avg60=0.25 avg300=0.53 total=145435161\n";
        assert_eq!(total(text, "some"), Some(Duration::from_micros(303_969_340)));
        assert_eq!(total(text, "full"), Some(Duration::from_micros(145_435_161)));
        assert_eq!(total("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n", "full"), None);
        assert_eq!(total("some avg10=0.00\n", "some"), None);
        assert_eq!(total("", "some"), None);
    }

    /// Checks samples of (milliseconds, total in milliseconds) against a threshold of 150 ms in 1 s.
    #[track_caller]
    fn check(samples: &[(u32, u32)], expected: &[Option<u32>]) {
        let start = Instant::now();
        let mut window = Window::new(150 * MS, 1000 * MS, start, Duration::ZERO);
        let said: Vec<_> =
            samples.iter().map(|(at, total)| window.sample(start + MS * *at, MS * *total)).collect();
        assert_eq!(said, expected.iter().map(|ms| ms.map(|ms| MS * ms)).collect::<Vec<_>>());
    }

    #[test]
    fn a_pressure_event_needs_the_threshold_within_one_window() {
        // Reports at once when the threshold is reached, and does not count the same time twice.
        check(&[(250, 149), (500, 150), (750, 299)], &[None, Some(150), None]);
        check(&[(250, 200), (500, 400)], &[Some(200), Some(200)]);
        // Stalls that are more than a window apart are not added up.
        check(&[(250, 100), (500, 100), (750, 100), (1000, 100), (1250, 100), (1500, 200)], &[None; 6]);
        // The stall time of a late sample is spread over the time that it covers.
        check(&[(10_000, 1000)], &[None]);
        check(&[(10_000, 2000)], &[Some(200)]);
        check(&[(250, 0), (250, 0)], &[None, None]);
    }

    #[test]
    fn invalid_pressure_thresholds_are_refused() {
        let good = PressureThreshold {
            resource: PressureResource::Memory,
            full: false,
            stall: 150 * MS,
            window: 1000 * MS,
        };
        good.check().unwrap();
        for (stall, window, why) in [
            (0, 1000, "stall 0ns"),
            (1001, 1000, "stall 1.001s"),
            (1, 499, "window 499ms"),
            (1, 10_001, "window 10.001s"),
        ] {
            let wrong = PressureThreshold { stall: stall * MS, window: window * MS, ..good };
            let error = wrong.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("pressure: {why}")), "{error}");
        }
    }
}

crate::notation::from_maps! { PressureThreshold: "an object with resource, full, stall and window" }
