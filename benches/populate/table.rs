//! Contests: rows that take turns, and their medians side by side.

use std::path::Path;
use std::time::{Duration, Instant};

type Work<'a> = Box<dyn Fn(&Path) + 'a>;

/// One contestant. What `run` is given is an empty directory, or what `before` of the contest made there.
pub struct Row<'a> {
    name: String,
    run: Result<Work<'a>, String>,
    bar: Option<Bar>,
    times: Vec<Duration>,
}

/// What is asked of a row.
#[derive(Clone, Copy)]
pub enum Bar {
    /// To take at most so many times what the floor takes.
    OfFloor(f64),
    /// To take at least so many times what the first row takes.
    OfFirst(f64),
}

impl<'a> Row<'a> {
    pub fn new(name: impl Into<String>, run: impl Fn(&Path) + 'a) -> Row<'a> {
        Row { name: name.into(), run: Ok(Box::new(run)), bar: None, times: Vec::new() }
    }

    /// A row that is skipped if there is a reason to.
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

/// Rows that do the same work in turn; the second is the floor.
pub struct Contest<'a> {
    pub title: String,
    pub rows: Vec<Row<'a>>,
    /// Where directories can be made.
    pub base: &'a Path,
    /// Prepares the directory of a round, untimed.
    pub before: &'a dyn Fn(&Path),
    /// Looks at what became of it in the first round, untimed.
    pub check: &'a dyn Fn(&str, &Path),
    /// Removes it, untimed.
    pub after: &'a dyn Fn(&Path),
}

impl Contest<'_> {
    /// Lets every row have its turn in each of the rounds. Each round begins with another row, so that none
    /// always comes after the one that leaves the most behind.
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

    /// Prints the table.
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
                // One turn is no measurement.
                if row.times.len() > 1 { verdict(row.bar, to_floor, to_first) } else { String::new() },
            );
        }
    }

    /// The median of a row, by its place.
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
