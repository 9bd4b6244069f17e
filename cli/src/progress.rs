//! How far the population of a root is, on a terminal.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cofferdam::Progress;

/// One line that is written over and over; gone when the value is dropped.
pub(crate) struct Bar(Arc<Mutex<Line>>);

struct Line {
    began: Instant,
    shown: Option<Instant>,
}

/// What takes less time than this shows nothing.
const SOON: Duration = Duration::from_millis(300);
/// The line is not written more often.
const PAUSE: Duration = Duration::from_millis(100);

impl Bar {
    /// A bar on standard error, if that is a terminal.
    pub(crate) fn on_terminal() -> Option<Bar> {
        let line = Line { began: Instant::now(), shown: None };
        std::io::stderr().is_terminal().then(|| Bar(Arc::new(Mutex::new(line))))
    }

    /// What is to be told.
    pub(crate) fn teller(&self) -> impl Fn(Progress) + Send + Sync + use<> {
        let line = Arc::clone(&self.0);
        move |progress| line.lock().unwrap_or_else(PoisonError::into_inner).tell(progress)
    }
}

impl Line {
    fn tell(&mut self, progress: Progress) {
        let due = self.shown.map_or(self.began.elapsed() >= SOON, |shown| shown.elapsed() >= PAUSE);
        if due {
            self.shown = Some(Instant::now());
            let _ = write!(std::io::stderr(), "\r\x1b[K{}", text(progress, self.began.elapsed()));
        }
    }
}

fn text(Progress { entries, bytes }: Progress, elapsed: Duration) -> String {
    let mib = bytes >> 20;
    let seconds = elapsed.as_secs_f64();
    format!("populating the root: {entries} entries, {mib} MiB, {seconds:.1} s")
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).shown.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_was_done() {
        let progress = Progress { entries: 12, bytes: 5 << 20 };
        let said = text(progress, Duration::from_millis(1500));
        assert_eq!(said, "populating the root: 12 entries, 5 MiB, 1.5 s");
    }

    #[test]
    fn what_is_done_soon_shows_nothing() {
        let mut line = Line { began: Instant::now(), shown: None };
        line.tell(Progress::default());
        assert!(line.shown.is_none());
    }
}
