//! Contests: rows that take turns, and a table of their medians.

use std::path::Path;
use std::time::{Duration, Instant};

type Work<'a> = Box<dyn Fn(&Path) + 'a>;

/// One contestant. `run` gets an empty directory, or the directory that the contest's `before` prepared.
pub struct Row<'a> {
    name: String,
    run: Result<Work<'a>, String>,
    bar: Option<Bar>,
    times: Vec<Duration>,
}

/// A target for the time of a row.
#[derive(Clone, Copy)]
pub enum Bar {
    /// At most this many times the floor's time.
    OfFloor(f64),
    /// At least this many times the first row's time.
    OfFirst(f64),
}

impl<'a> Row<'a> {
    pub fn new(name: impl Into<String>, run: impl Fn(&Path) + 'a) -> Row<'a> {
        Row { name: name.into(), run: Ok(Box::new(run)), bar: None, times: Vec::new() }
    }

    /// A row that is skipped if there is a reason.
    pub fn unless(why: Option<String>, name: impl Into<String>, run: impl Fn(&Path) + 'a) -> Row<'a> {
        let row = Row::new(name, run);
        match why {
            Some(why) => Row { run: Err(why), ..row },
            None => row,
        }
    }

    pub fn bar(self, bar: Bar) -> Row<'a> {
        Row { bar: Some(bar), ..self }
    }
}

/// Rows that do the same work in turn. The first row is the crate, the second is the floor.
pub struct Contest<'a> {
    pub title: String,
    pub rows: Vec<Row<'a>>,
    /// Directory in which each turn's directory is created.
    pub base: &'a Path,
    /// Prepares the directory of a turn; not timed.
    pub before: &'a dyn Fn(&Path),
    /// Checks the result in the first round; not timed.
    pub check: &'a dyn Fn(&str, &Path),
    /// Removes the directory; not timed.
    pub after: &'a dyn Fn(&Path),
}

impl Contest<'_> {
    /// Runs every row once in each round. Each round starts with another row, so that no row always follows the one
    /// that leaves the most to be written.
    pub fn run(&mut self, rounds: usize) {
        for round in 0..rounds {
            for i in 0..self.rows.len() {
                let i = (i + round) % self.rows.len();
                let to = self.base.join(format!("to-{round}-{i}"));
                let Row { name, run: Ok(run), times, .. } = &mut self.rows[i] else { continue };
                std::fs::create_dir(&to).unwrap();
                (self.before)(&to);
                let began = Instant::now();
                run(&to);
                times.push(began.elapsed());
                if round == 0 {
                    (self.check)(name, &to);
                }
                (self.after)(&to);
            }
        }
    }

    pub fn print(&self) {
        let of = |i: usize| self.rows.get(i).map(|r| median(&r.times)).filter(|t| !t.is_zero());
        let (first, floor) = (of(0), of(1));
        println!("\n{}", self.title);
        println!("  {:36} {:>10} {:>10} {:>9} {:>9}", "", "median ms", "least ms", "to floor", "to ours");
        for row in &self.rows {
            if let Err(why) = &row.run {
                println!("  {:36} skipped: {why}", row.name);
                continue;
            }
            let time = median(&row.times);
            let ratio = |to: Option<Duration>| to.map(|to| time.as_secs_f64() / to.as_secs_f64());
            let shown = |r: Option<f64>| r.map_or_else(|| "-".to_string(), |r| format!("{r:.2}"));
            let (to_floor, to_first) = (ratio(floor), ratio(first));
            let least = row.times.iter().min().copied().unwrap_or_default();
            println!(
                "  {:36} {:>10.2} {:>10.2} {:>9} {:>9}{}",
                row.name,
                millis(time),
                millis(least),
                shown(to_floor),
                shown(to_first),
                // A single turn is no measurement.
                if row.times.len() > 1 { verdict(row.bar, to_floor, to_first) } else { String::new() },
            );
        }
    }

    /// Median time of the row with this index.
    pub fn median(&self, row: usize) -> Duration {
        median(&self.rows[row].times)
    }
}

fn verdict(bar: Option<Bar>, to_floor: Option<f64>, to_first: Option<f64>) -> String {
    let (text, holds) = match (bar, to_floor, to_first) {
        (Some(Bar::OfFloor(most)), Some(is), _) => (format!("<= {most} of the floor"), is <= most),
        (Some(Bar::OfFirst(least)), _, Some(is)) => (format!(">= {least} of ours"), is >= least),
        _ => return String::new(),
    };
    format!("  {text}: {}", if holds { "met" } else { "MISSED" })
}

pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
