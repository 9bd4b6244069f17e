//! The plot: the ratio of each row to the floor as a bar, and below it the time against the mounts on the host.

use std::fmt::Write;

use crate::caller::Caller;
use crate::ours::{Extent, Way};
use crate::plot::{self, Axis, COLOURS, label, line, number};
use crate::rows::{self, FLOOR, Key, Work};
use crate::table::{Measured, Tables};

const WIDTH: f64 = 860.0;
/// Left edge of the bars and of the curves.
const LEFT: f64 = 350.0;
const RIGHT: f64 = 60.0;
const TOP: f64 = 84.0;
const STEP: f64 = 21.0;
const CURVES: f64 = 260.0;

/// The curves, with their colour and whether they are dashed.
const LINES: [(&str, Work, &str, bool); 4] = [
    ("floor", Work::Floor, "#555", true),
    ("ours cold", Work::Ours(Way::Cold, Extent::Cgroup), COLOURS[0], false),
    ("ours prepared", Work::Ours(Way::Prepared, Extent::Cgroup), COLOURS[1], false),
    ("bubblewrap", Work::Bubblewrap, COLOURS[2], true),
];

fn colour(work: Work) -> &'static str {
    match work {
        Work::Ours(Way::Prepared, _) => COLOURS[1],
        Work::Ours(..) | Work::RunDefault | Work::RunBare => COLOURS[0],
        _ => "#999",
    }
}

pub fn svg(tables: &Tables) -> String {
    let shown = |m: &&Measured| [rows::ALONE, rows::PROCESSES].contains(&m.row.section);
    let bars: Vec<(&Measured, f64)> = tables
        .rows
        .iter()
        .filter(shown)
        .filter(|m| !matches!(m.row.key.work, Work::Plan | Work::Probe))
        .filter_map(|m| Some((m, tables.ratio(m, FLOOR)?)))
        .collect();
    let end = TOP + STEP * bars.len() as f64;
    let height = end + CURVES + 100.0;
    let mut out = String::new();
    let o = &mut out;
    let second = "orange: cofferdam; blue: cofferdam, prepared; grey: others";
    plot::start(o, (WIDTH, height), 24.0, "Spawn to reaped exit, as a multiple of the floor", second);
    let x = Axis::around(bars.iter().map(|bar| bar.1), LEFT, WIDTH - RIGHT);
    for tick in x.ticks() {
        line(o, (x.at(tick), TOP), (x.at(tick), end));
        label(o, (x.at(tick), TOP - 8.0), "middle", &number(tick));
    }
    for (i, (measured, ratio)) in bars.iter().enumerate() {
        let y = TOP + STEP * i as f64;
        let (width, colour) = (x.at(*ratio) - LEFT, colour(measured.row.key.work));
        label(o, (LEFT - 8.0, y + 15.0), "end", &measured.row.key.work.name());
        writeln!(
            o,
            "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{}\" fill=\"{colour}\"/>",
            y + 3.0,
            STEP - 6.0
        )
        .unwrap();
        label(o, (LEFT + width + 6.0, y + 15.0), "start", &format!("{ratio:.1}"));
    }
    against_mounts(o, tables, end + 70.0);
    out + "</svg>\n"
}

/// Milliseconds of a spawn with 20, 500 and 3000 mounts on the host. `top` is the upper edge.
fn against_mounts(out: &mut String, tables: &Tables, top: f64) {
    // The program of the fewest mounts is the one without cgroups.
    let callers = |work| {
        let few = if work == Work::Bubblewrap { Caller::NoCgroups } else { Caller::Small };
        [few, Caller::Mounts500, Caller::Mounts3000]
    };
    let points = |work| {
        let points = callers(work).into_iter().filter_map(|caller| {
            let median = tables.find(Key { caller, work, batch: None })?.median()?;
            Some((caller.mounts() as f64, median.as_secs_f64() * 1e3))
        });
        points.collect::<Vec<(f64, f64)>>()
    };
    let lines: Vec<_> =
        LINES.iter().map(|(name, work, colour, dashed)| (name, points(*work), colour, dashed)).collect();
    let all = || lines.iter().flat_map(|(_, points, ..)| points.iter());
    if all().next().is_none() {
        return;
    }
    let bottom = top + CURVES - 20.0;
    let (left, right) = (70.0, WIDTH - 150.0);
    let x = Axis::around(all().map(|point| point.0), left, right);
    let y = Axis::around(all().map(|point| point.1), bottom, top);
    writeln!(
        out,
        "<text x=\"24\" y=\"{}\" font-size=\"16\">Milliseconds against mounts on the host</text>",
        top - 22.0
    )
    .unwrap();
    for tick in x.ticks() {
        line(out, (x.at(tick), top), (x.at(tick), bottom));
        label(out, (x.at(tick), bottom + 20.0), "middle", &number(tick));
    }
    for tick in y.ticks() {
        line(out, (left, y.at(tick)), (right, y.at(tick)));
        label(out, (left - 8.0, y.at(tick) + 4.0), "end", &number(tick));
    }
    let mut ends = Vec::new();
    for (name, points, colour, dashed) in &lines {
        let Some(last) = points.last() else { continue };
        let path: Vec<String> =
            points.iter().map(|(mounts, ms)| format!("{:.1},{:.1}", x.at(*mounts), y.at(*ms))).collect();
        let dash = if **dashed { " stroke-dasharray=\"5 4\"" } else { "" };
        writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
            path.join(" ")
        )
        .unwrap();
        ends.push((x.at(last.0) + 10.0, y.at(last.1) + 4.0, *name, *colour));
    }
    // From the top downwards, without overlaps.
    ends.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut lowest = 0.0_f64;
    for (x, y, name, colour) in ends {
        lowest = y.max(lowest + 18.0);
        writeln!(out, "<text x=\"{x:.1}\" y=\"{lowest:.1}\" fill=\"{colour}\">{name}</text>").unwrap();
    }
}
