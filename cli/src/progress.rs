//! Shows the progress of populating a root, on a terminal.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cofferdam::Progress;

/// One line that is overwritten repeatedly, and erased when the value is dropped.
pub(crate) struct Bar(Arc<Mutex<Line>>);

struct Line {
    began: Instant,
    shown: Option<Instant>,
}

/// Time before the line is first shown.
const SOON: Duration = Duration::from_millis(300);
/// Minimum time between updates.
const PAUSE: Duration = Duration::from_millis(100);

impl Bar {
    /// A bar on standard error, if that is a terminal.
    pub(crate) fn on_terminal() -> Option<Bar> {
        let line = Line { began: Instant::now(), shown: None };
        std::io::stderr().is_terminal().then(|| Bar(Arc::new(Mutex::new(line))))
    }

    /// Returns the callback that updates the line.
    pub(crate) fn teller(&self) -> impl Fn(Progress) -> ControlFlow<()> + Send + Sync + use<> {
        let line = Arc::clone(&self.0);
        move |progress| {
            line.lock().unwrap_or_else(PoisonError::into_inner).tell(progress);
            ControlFlow::Continue(())
        }
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
    fn the_line_shows_entries_bytes_and_time() {
        let progress = Progress { entries: 12, bytes: 5 << 20 };
        let said = text(progress, Duration::from_millis(1500));
        assert_eq!(said, "populating the root: 12 entries, 5 MiB, 1.5 s");
    }

    #[test]
    fn nothing_is_shown_before_300_ms() {
        let mut line = Line { began: Instant::now(), shown: None };
        line.tell(Progress::default());
        assert!(line.shown.is_none());
    }
}
