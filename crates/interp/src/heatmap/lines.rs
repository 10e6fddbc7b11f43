//! Lines with bands.

use std::fmt::Write;
use std::path::Path;

use densely_core::{Error, Result};
use densely_train::svg::head;

use super::{escaped, text};
use crate::average::Estimate;

/// A line with an interval at each point; the points stand at 0, 1, ….
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// Means and ends of intervals.
    pub points: Vec<Estimate>,
}

/// Okabe and Ito's colours, which colour-blind people can tell apart.
const INKS: [&str; 7] = [
    "#0072b2", "#e69f00", "#d55e00", "#009e73", "#56b4e9", "#cc79a7", "#333333",
];
const LEFT: f64 = 70.0;
const TOP: f64 = 44.0;
const WIDE: f64 = 520.0;
const HIGH: f64 = 300.0;

/// Writes a plot of lines over bands of their intervals, with a legend on its right.
///
/// # Errors
/// [`Error::Config`] when there is no finite point; [`Error::Io`].
pub fn lines(path: &Path, title: &str, x: &str, y: &str, lines: &[Line]) -> Result<()> {
    densely_core::fs::write(path, svg(title, x, y, lines)?.as_bytes())
}

fn svg(title: &str, x: &str, y: &str, lines: &[Line]) -> Result<String> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let values = points()
        .flat_map(|p| [p.mean, p.low, p.high])
        .filter(|value| value.is_finite());
    let (low, high) = values.fold((0.0f64, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let count = lines
        .iter()
        .map(|line| line.points.len())
        .max()
        .unwrap_or(0);
    if count == 0 || !high.is_finite() {
        return Err(Error::config("lines", "have no finite point"));
    }
    let step = step(high.max(low + 1e-9) - low);
    let (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
    let range = (high - low).max(step);
    let across = |place: usize| LEFT + WIDE * place as f64 / (count.max(2) - 1) as f64;
    let up = |value: f64| TOP + HIGH * (1.0 - (value - low) / range);
    let mut svg = head(830, 420);
    text(&mut svg, 330, 24, "middle", 15, title);
    for tick in 0..=(range / step).round() as usize {
        let value = low + step * tick as f64;
        let y = up(value);
        let _ = write!(
            svg,
            "<path d=\"M{LEFT} {y:.1}H{:.1}\" stroke=\"#e5e5e5\"/>",
            LEFT + WIDE
        );
        text(
            &mut svg,
            LEFT as usize - 8,
            y as usize + 4,
            "end",
            11,
            &tidy(value, step),
        );
    }
    for place in (0..count).step_by(if count > 8 { 5 } else { 1 }) {
        let at = across(place) as usize;
        text(
            &mut svg,
            at,
            (TOP + HIGH) as usize + 18,
            "middle",
            11,
            &place.to_string(),
        );
    }
    text(&mut svg, 330, (TOP + HIGH) as usize + 42, "middle", 12, x);
    let _ = write!(
        svg,
        "<text transform=\"translate(18 {}) rotate(-90)\" text-anchor=\"middle\" font-size=\"12\">{}</text>",
        TOP + HIGH / 2.0,
        escaped(y)
    );
    for (number, line) in lines.iter().enumerate() {
        let ink = INKS[number % INKS.len()];
        let is_finite = |p: &Estimate| {
            let ends = [p.mean, p.low, p.high];
            ends.iter().all(|value| value.is_finite())
        };
        let kept: Vec<(usize, &Estimate)> = line
            .points
            .iter()
            .enumerate()
            .filter(|(_, point)| is_finite(point))
            .collect();
        let upper = kept.iter().map(|(place, p)| (across(*place), up(p.high)));
        let lower = kept
            .iter()
            .rev()
            .map(|(place, p)| (across(*place), up(p.low)));
        let _ = write!(
            svg,
            "<path d=\"{}Z\" fill=\"{ink}\" fill-opacity=\"0.18\"/>",
            joined(upper.chain(lower))
        );
        let middle = kept.iter().map(|(place, p)| (across(*place), up(p.mean)));
        let _ = write!(
            svg,
            "<path d=\"{}\" fill=\"none\" stroke=\"{ink}\" stroke-width=\"2\"/>",
            joined(middle)
        );
        let (at, y) = ((LEFT + WIDE) as usize + 16, 60 + 22 * number);
        let _ = write!(
            svg,
            "<path d=\"M{at} {y}h20\" stroke=\"{ink}\" stroke-width=\"2\"/>"
        );
        text(&mut svg, at + 26, y + 4, "start", 12, &line.name);
    }
    svg += "</svg>\n";
    Ok(svg)
}

/// Points as a path.
fn joined(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (place, (x, y)) in points.enumerate() {
        let _ = write!(path, "{}{x:.1} {y:.1}", if place == 0 { 'M' } else { 'L' });
    }
    path
}

/// A round distance of four to ten ticks.
fn step(range: f64) -> f64 {
    let power = 10f64.powf((range / 4.0).log10().floor());
    let share = range / 4.0 / power;
    power
        * if share >= 5.0 {
            5.0
        } else if share >= 2.0 {
            2.0
        } else {
            1.0
        }
}

/// A tick with as many digits as its step needs.
fn tidy(value: f64, step: f64) -> String {
    let digits = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_bands_and_a_legend() -> Result<()> {
        let point = |mean: f64| Estimate {
            mean,
            low: mean - 0.01,
            high: mean + 0.01,
        };
        let line = |name: &str| Line {
            name: name.to_owned(),
            points: (0..12).map(|i| point(0.01 * f64::from(i))).collect(),
        };
        let svg = svg("AIE", "layer", "effect", &[line("a < b"), line("c")])?;
        assert_eq!(svg.matches("fill-opacity").count(), 2);
        assert!(svg.contains("a &lt; b") && svg.contains(">0.10<"), "{svg}");
        assert!(super::svg("none", "x", "y", &[]).is_err());
        assert!((step(0.13) - 0.02).abs() < 1e-12);
        assert_eq!(tidy(0.04, 0.02), "0.04");
        Ok(())
    }
}
