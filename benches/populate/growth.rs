//! Growth of the time with the number of entries, as a table and a plot.

use std::fmt::Write;
use std::path::Path;

use cofferdam::Method;

use crate::floor::{self, Content};
use crate::place::Place;
use crate::table::{Contest, Row, millis};
use crate::tree::{self, Shape};
use crate::{Call, clear, ours, ours_remove};

/// One work's points: entries, milliseconds of the crate, milliseconds of the floor.
struct Curve {
    name: &'static str,
    points: Vec<(f64, f64, f64)>,
}

pub fn table(call: &Call, place: &Place) {
    if !call.wants("growth") {
        return;
    }
    let sizes = if call.test { [100, 300, 1000] } else { [1000, 10_000, 100_000] };
    let mut curves = ["copy", "link", "teardown"].map(|name| Curve { name, points: Vec::new() });
    let base = &*place.tmpfs;
    let source = base.join("source");
    for entries in sizes {
        let rounds = if call.test { 1 } else { (300_000 / entries).clamp(call.rounds.min(7), 50) };
        tree::build(&source, Shape::of(entries));
        for curve in &mut curves {
            curve.points.push(point(curve.name, entries, rounds, base, &source));
        }
        clear(&source);
    }
    println!("\ngrowth, tmpfs, files of 1 KB: microseconds per entry, and the exponent over the whole range");
    println!("  {:36} {}   exponent", "", sizes.map(|n| format!("{n:>9}")).join(" "));
    for curve in &curves {
        for (whose, pick) in [("ours", 1), ("floor", 2)] {
            let of = |p: &(f64, f64, f64)| if pick == 1 { p.1 } else { p.2 };
            let each = curve.points.iter().map(|p| format!("{:>9.2}", of(p) * 1e3 / p.0));
            let (first, last) = (&curve.points[0], &curve.points[curve.points.len() - 1]);
            let exponent = (of(last) / of(first)).ln() / (last.0 / first.0).ln();
            let name = format!("{}, {whose}", curve.name);
            println!("  {name:36} {}   {exponent:>8.2}", each.collect::<Vec<_>>().join(" "));
        }
    }
    if let Some(file) = std::env::var_os("COFFERDAM_BENCH_PLOT") {
        std::fs::write(&file, svg(&curves)).unwrap();
        println!("  drawn in {}", Path::new(&file).display());
    }
}

fn point(work: &str, entries: usize, rounds: usize, base: &Path, source: &Path) -> (f64, f64, f64) {
    let threads = floor::threads();
    let rows = match work {
        "link" => vec![
            Row::new("ours", |to| ours(Method::Link, source, to)),
            Row::new("floor", |to| floor::link(threads, source, &to.join("tree"))),
        ],
        "copy" => vec![
            Row::new("ours", |to| ours(Method::Copy, source, to)),
            Row::new("floor", |to| floor::copy(threads, Content::Copied, source, &to.join("tree"))),
        ],
        _ => vec![
            Row::new("ours", |to| ours_remove(to, "tree")),
            Row::new("floor", |to| floor::remove(threads, &to.join("tree"))),
        ],
    };
    let before = |to: &Path| {
        if work == "teardown" {
            floor::copy(threads, Content::Copied, source, &to.join("tree"));
        }
    };
    let title = String::new();
    let mut contest = Contest { title, rows, base, before: &before, check: &|_, _| {}, after: &clear };
    contest.run(rounds);
    let [ours, floor] = [0, 1].map(|row| millis(contest.median(row)));
    (entries as f64, ours, floor)
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 60.0;
const COLOURS: [&str; 3] = ["#b4491f", "#1f5fa8", "#2f7d4f"];

/// A logarithmic axis between two powers of ten.
struct Axis {
    from: i32,
    to: i32,
    start: f64,
    end: f64,
}

impl Axis {
    fn around(values: impl Iterator<Item = f64> + Clone, start: f64, end: f64) -> Axis {
        let least = values.clone().fold(f64::INFINITY, f64::min).log10().floor() as i32;
        let most = values.fold(0.0, f64::max).log10().ceil() as i32;
        Axis { from: least, to: most.max(least + 1), start, end }
    }

    fn at(&self, value: f64) -> f64 {
        let part = (value.log10() - f64::from(self.from)) / f64::from(self.to - self.from);
        self.start + part * (self.end - self.start)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        (self.from..=self.to).map(|e| 10_f64.powi(e))
    }
}

fn svg(curves: &[Curve]) -> String {
    let points = || curves.iter().flat_map(|c| c.points.iter());
    let x = Axis::around(points().map(|p| p.0), LEFT, WIDTH - RIGHT);
    let y = Axis::around(points().flat_map(|p| [p.1, p.2]), HEIGHT - BOTTOM, TOP);
    let mut out = String::new();
    let o = &mut out;
    writeln!(
        o,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fcfcfa\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"16\">Time against entries, tmpfs</text>\n\
         <text x=\"{LEFT}\" y=\"45\" fill=\"#555\">solid: cofferdam; dashed: the least that raw calls take, {} \
         threads</text>",
        floor::threads()
    )
    .unwrap();
    for tick in x.ticks() {
        let at = x.at(tick);
        line(o, (at, TOP), (at, HEIGHT - BOTTOM));
        label(o, (at, HEIGHT - BOTTOM + 20.0), "middle", &number(tick));
    }
    for tick in y.ticks() {
        let at = y.at(tick);
        line(o, (LEFT, at), (WIDTH - RIGHT, at));
        label(o, (LEFT - 8.0, at + 4.0), "end", &number(tick));
    }
    label(o, ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 16.0), "middle", "entries: files, directories, links");
    writeln!(
        o,
        "<text transform=\"translate(20 {}) rotate(-90)\" text-anchor=\"middle\">milliseconds</text>",
        (TOP + HEIGHT - BOTTOM) / 2.0
    )
    .unwrap();
    for (curve, colour) in curves.iter().zip(COLOURS) {
        draw(o, curve, colour, &x, &y);
    }
    name(o, curves, &x, &y);
    out + "</svg>\n"
}

fn draw(out: &mut String, curve: &Curve, colour: &str, x: &Axis, y: &Axis) {
    let path = |pick: fn(&(f64, f64, f64)) -> f64| {
        let place = |p: &(f64, f64, f64)| format!("{:.1},{:.1}", x.at(p.0), y.at(pick(p)));
        curve.points.iter().map(place).collect::<Vec<_>>().join(" ")
    };
    let style = format!("fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"");
    writeln!(out, "<polyline points=\"{}\" {style}/>", path(|p| p.1)).unwrap();
    writeln!(out, "<polyline points=\"{}\" {style} stroke-dasharray=\"5 4\"/>", path(|p| p.2)).unwrap();
    for p in &curve.points {
        let (cx, cy) = (x.at(p.0), y.at(p.1));
        writeln!(out, "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3.5\" fill=\"{colour}\"/>").unwrap();
    }
}

/// Labels the ends of the curves, from the top downwards, without overlaps.
fn name(out: &mut String, curves: &[Curve], x: &Axis, y: &Axis) {
    let end = |c: &Curve| c.points.last().map_or((1.0, 1.0), |p| (x.at(p.0), y.at(p.1)));
    let mut order: Vec<_> = curves.iter().zip(COLOURS).collect();
    order.sort_by(|a, b| end(a.0).1.total_cmp(&end(b.0).1));
    let mut lowest = 0.0_f64;
    for (curve, colour) in order {
        let (cx, cy) = end(curve);
        lowest = (cy + 4.0).max(lowest + 18.0);
        writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{lowest:.1}\" fill=\"{colour}\">{}</text>",
            cx + 12.0,
            curve.name
        )
        .unwrap();
    }
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64)) {
    let ((x1, y1), (x2, y2)) = (from, to);
    writeln!(out, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#ddd\"/>")
        .unwrap();
}

fn label(out: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>").unwrap();
}

/// Formats a number with thin spaces between thousands.
fn number(n: f64) -> String {
    if n < 1.0 {
        return n.to_string();
    }
    let digits = format!("{n:.0}");
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push('\u{2009}');
        }
        out.push(digit);
    }
    out
}
