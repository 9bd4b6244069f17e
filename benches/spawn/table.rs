//! The measurements as tables: printed, and as Markdown.

use std::fmt::Write;
use std::time::Duration;

use crate::caller::Ready;
use crate::ours::NOT_MEASURED;
use crate::rows::{self, FLOOR, Key, Row};

/// The tables, in their order.
const SECTIONS: [&str; 7] =
    [rows::ALONE, rows::MEMORY, rows::MOUNTS, rows::BUSY, rows::PROCESSES, rows::THREADS, rows::IN_TURN];
const COLUMNS: [&str; 6] = ["row", "median", "p99", "to the floor", "bar", "result"];
const WIDTHS: [usize; 6] = [62, 11, 11, 12, 30, 0];

pub struct Measured {
    pub row: Row,
    pub ready: Ready,
    /// Time of each run. With a batch, the time of the batch, divided by its runs.
    pub times: Vec<Duration>,
}

impl Measured {
    pub fn median(&self) -> Option<Duration> {
        self.at(50)
    }

    /// The time that this percentage of the runs did not exceed.
    fn at(&self, percent: usize) -> Option<Duration> {
        let mut times = self.times.clone();
        times.sort();
        times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied()
    }

    /// Name of the row, with what the title of its table does not say.
    fn name(&self) -> String {
        let (name, key) = (self.row.key.work.name(), self.row.key);
        match key.batch {
            Some(batch) if self.row.section == rows::THREADS => format!("{name}, threads: {}", batch.threads),
            _ if self.row.section == rows::MOUNTS => format!("{name}, mounts: {}", key.caller.mounts()),
            _ => name,
        }
    }

    /// A time of one run as the tables show it: spawns per second if threads share the runs.
    fn shown(&self, time: Option<Duration>) -> String {
        let Some(seconds) = time.map(|time| time.as_secs_f64()) else { return "-".into() };
        match self.row.key.batch {
            Some(_) if self.row.section == rows::THREADS => format!("{:.0} /s", 1.0 / seconds),
            Some(batch) => format!("{:.0} ms", seconds * 1e3 * batch.runs as f64),
            None => format!("{:.3} ms", seconds * 1e3),
        }
    }
}

pub struct Tables {
    /// The machine and the run, a line each.
    pub about: Vec<String>,
    pub rows: Vec<Measured>,
}

impl Tables {
    pub fn find(&self, key: Key) -> Option<&Measured> {
        self.rows.iter().find(|measured| measured.row.key == key)
    }

    /// Median of a row as a multiple of another row's.
    pub fn ratio(&self, measured: &Measured, to: Key) -> Option<f64> {
        Some(measured.median()?.as_secs_f64() / self.find(to)?.median()?.as_secs_f64())
    }

    /// The cells of a row.
    fn cells(&self, measured: &Measured) -> [String; 6] {
        let (bar, met) = self.bar(measured);
        let result = match &measured.ready {
            Ready::Yes => met,
            Ready::No(why) if why == NOT_MEASURED => why.clone(),
            Ready::No(why) => format!("skipped: {why}"),
            Ready::Failed(why) => format!("failed: {why}"),
        };
        let ratio = self.ratio(measured, FLOOR).map_or("-".into(), |ratio| format!("{ratio:.2}"));
        let [median, p99] = [50, 99].map(|percent| measured.shown(measured.at(percent)));
        [measured.name(), median, p99, ratio, bar, result]
    }

    /// The bar, and whether the row meets it. A single run is no measurement.
    fn bar(&self, measured: &Measured) -> (String, String) {
        let Some(bar) = measured.row.bar else { return Default::default() };
        let ratio = self.ratio(measured, bar.of).filter(|_| measured.times.len() > 1);
        let met = ratio.map(|ratio| ratio <= bar.most);
        // More spawns per second are less time for each.
        let (text, ratio) = if measured.row.key.batch.is_some() {
            (format!(">= {:.1} of {}", 1.0 / bar.most, bar.name), ratio.map(|ratio| 1.0 / ratio))
        } else {
            (format!("<= {:.1} of {}", bar.most, bar.name), ratio)
        };
        let result = match (met, ratio) {
            (Some(true), Some(ratio)) => format!("met ({ratio:.2})"),
            (Some(false), Some(ratio)) => format!("missed ({ratio:.2})"),
            _ => NOT_MEASURED.into(),
        };
        (text, result)
    }

    fn section(&self, title: &str) -> Vec<[String; 6]> {
        let rows = self.rows.iter().filter(|measured| measured.row.section == title);
        rows.map(|measured| self.cells(measured)).collect()
    }

    pub fn print(&self) {
        for line in &self.about {
            println!("{line}");
        }
        for title in SECTIONS {
            let rows = self.section(title);
            if rows.is_empty() {
                continue;
            }
            let columns = [vec![COLUMNS.map(String::from)], rows].concat();
            println!("\n{title}");
            for cells in columns {
                let [name, rest @ ..] = &cells;
                let [width, widths @ ..] = WIDTHS;
                print!("  {name:width$}");
                for (i, (cell, width)) in rest.iter().zip(widths).enumerate() {
                    if i < 3 { print!(" {cell:>width$}") } else { print!("  {cell:width$}") }
                }
                println!();
            }
        }
    }

    pub fn markdown(&self) -> String {
        let mut out = String::from("# Spawn\n\nWritten by `cargo bench --bench spawn`.\n\n");
        for line in &self.about {
            writeln!(out, "- {line}").unwrap();
        }
        out.push_str("\n![Spawn compared with the floor](spawn.svg)\n");
        for title in SECTIONS {
            let rows = self.section(title);
            if rows.is_empty() {
                continue;
            }
            writeln!(out, "\n## {title}\n\n| {} |", COLUMNS.join(" | ")).unwrap();
            out.push_str("| --- | ---: | ---: | ---: | --- | --- |\n");
            for cells in rows {
                writeln!(out, "| {} |", cells.join(" | ").replace("<=", "≤").replace(">=", "≥")).unwrap();
            }
        }
        out
    }
}
