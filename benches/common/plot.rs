//! Parts of an SVG plot.

use std::fmt::Write;

pub const COLOURS: [&str; 3] = ["#b4491f", "#1f5fa8", "#2f7d4f"];

/// Begins a plot of this size with a title and a line below it.
pub fn start(out: &mut String, (width, height): (f64, f64), left: f64, title: &str, second: &str) {
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fcfcfa\"/>\n\
         <text x=\"{left}\" y=\"26\" font-size=\"16\">{title}</text>\n\
         <text x=\"{left}\" y=\"45\" fill=\"#555\">{second}</text>"
    )
    .unwrap();
}

/// A logarithmic axis between two powers of ten.
pub struct Axis {
    from: i32,
    to: i32,
    start: f64,
    end: f64,
}

impl Axis {
    pub fn around(values: impl Iterator<Item = f64> + Clone, start: f64, end: f64) -> Axis {
        let least = values.clone().fold(f64::INFINITY, f64::min).log10().floor() as i32;
        let most = values.fold(0.0, f64::max).log10().ceil() as i32;
        Axis { from: least, to: most.max(least + 1), start, end }
    }

    pub fn at(&self, value: f64) -> f64 {
        let part = (value.log10() - f64::from(self.from)) / f64::from(self.to - self.from);
        self.start + part * (self.end - self.start)
    }

    pub fn ticks(&self) -> impl Iterator<Item = f64> {
        (self.from..=self.to).map(|e| 10_f64.powi(e))
    }
}

pub fn line(out: &mut String, from: (f64, f64), to: (f64, f64)) {
    let ((x1, y1), (x2, y2)) = (from, to);
    writeln!(out, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#ddd\"/>")
        .unwrap();
}

pub fn label(out: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>").unwrap();
}

/// Formats a number with thin spaces between thousands.
pub fn number(n: f64) -> String {
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
