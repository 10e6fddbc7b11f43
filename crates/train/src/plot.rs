//! SVG plots: the course of a training, and predictions against the truth.
//!
//! Text is set in the viewer's sans-serif font. Files are whole or absent.

use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use plotters::prelude::*;
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::run::read_log;

pub mod grid;

/// Title and axis names; give units in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Axes {
    /// Above the plot.
    pub title: String,
    /// Below it.
    pub x: String,
    /// Left of it.
    pub y: String,
}

impl Axes {
    /// Axes with these texts.
    pub fn new(title: impl Into<String>, x: impl Into<String>, y: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            x: x.into(),
            y: y.into(),
        }
    }
}

/// One line of a plot.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Points in the order in which they are joined; those that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

const SIZE: (u32, u32) = (760, 460);
/// Okabe and Ito's colours, which colour-blind people can tell apart.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];
const INK: RGBColor = RGBColor(51, 51, 51);
const GRID: RGBColor = RGBColor(229, 229, 229);
/// More dots than this make a big file and no better picture.
const DOTS: usize = 4000;

/// An area between two lines, such as where most forecasts lie.
#[derive(Debug, Clone, PartialEq)]
pub struct Band {
    /// Its name in the legend.
    pub name: String,
    /// `x`, lower and upper end, in the order of `x`; those that are not finite are left out.
    pub points: Vec<(f64, f64, f64)>,
}

/// Draws lines; short ones with dots.
///
/// # Errors
/// [`Error::Config`] when there is no finite point; [`Error::Io`].
pub fn line(path: &Path, axes: &Axes, series: &[Series]) -> Result<()> {
    line_over(path, axes, series, &[])
}

/// Draws lines over bands, the first of which lies lowest; the last line's colour is theirs.
///
/// # Errors
/// [`Error::Config`] when there is no finite point; [`Error::Io`].
pub fn line_over(path: &Path, axes: &Axes, series: &[Series], bands: &[Band]) -> Result<()> {
    let series: Vec<Series> = series
        .iter()
        .map(finite)
        .filter(|s| !s.points.is_empty())
        .collect();
    let all: Vec<(f64, f64)> = series
        .iter()
        .flat_map(|s| s.points.iter().copied())
        .collect();
    let (x, y) = (
        range(path, all.iter().map(|p| p.0))?,
        range(
            path,
            all.iter().map(|p| p.1).chain(
                bands
                    .iter()
                    .flat_map(|band| band.points.iter().flat_map(|p| [p.1, p.2]))
                    .filter(|y| y.is_finite()),
            ),
        )?,
    );
    let names = series.iter().map(|s| &s.name);
    let names: Vec<&String> = names.chain(bands.iter().map(|band| &band.name)).collect();
    let ends = bands.iter().flat_map(|band| {
        let points = band.points.iter();
        points.flat_map(|p| [(p.0, p.1), (p.0, p.2)])
    });
    let lines = series.iter().flat_map(|s| between(&s.points));
    let drawn: Vec<(f64, f64)> = lines.chain(ends).collect();
    let (legend, y) = legend_place(&drawn, x, y, &names);
    draw(path, axes, (x.0..x.1, padded(y)), legend, |chart| {
        let tint = COLOURS[series.len().saturating_sub(1) % COLOURS.len()].mix(0.18);
        for band in bands {
            let points = band
                .points
                .iter()
                .filter(|p| [p.0, p.1, p.2].iter().all(|value| value.is_finite()));
            let upper = points.clone().map(|(x, _, high)| (*x, *high));
            let lower = points.rev().map(|(x, low, _)| (*x, *low));
            chart
                .draw_series(std::iter::once(Polygon::new(
                    upper.chain(lower).collect::<Vec<_>>(),
                    tint.filled(),
                )))?
                .label(band.name.clone())
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 18, y + 5)], tint.filled()));
        }
        for (i, series) in series.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let points = || series.points.iter().copied();
            chart
                .draw_series(LineSeries::new(points(), colour.stroke_width(2)))?
                .label(series.name.clone())
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
            if series.points.len() <= 40 {
                chart.draw_series(points().map(|point| Circle::new(point, 3, colour.filled())))?;
            }
        }
        Ok(())
    })
}

/// Points along the lines that join `points`, close enough to tell what they cross.
fn between(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    const PIECES: usize = 10;
    let pairs = points.iter().zip(points.iter().skip(1));
    let along = pairs.flat_map(|(a, b)| {
        (0..PIECES).map(move |i| {
            let share = i as f64 / PIECES as f64;
            (a.0 + (b.0 - a.0) * share, a.1 + (b.1 - a.1) * share)
        })
    });
    along.chain(points.last().copied()).collect()
}

/// A corner for the legend where nothing is drawn, and the range of `y`, made larger upwards where every corner is taken.
fn legend_place(
    drawn: &[(f64, f64)],
    x: (f64, f64),
    y: (f64, f64),
    names: &[&String],
) -> (SeriesLabelPosition, (f64, f64)) {
    // Sizes of the legend in shares of the plotting area, by the font of `draw`, with some air.
    let letters = names.iter().map(|name| name.chars().count()).max();
    let width = (60.0 + 8.0 * letters.unwrap_or(0) as f64) / 650.0 * (x.1 - x.0);
    let share = ((22.0 + 20.0 * names.len() as f64) / 360.0).min(0.6);
    let height = share * (y.1 - y.0);
    let corners = [
        (SeriesLabelPosition::UpperRight, true, true),
        (SeriesLabelPosition::UpperLeft, false, true),
        (SeriesLabelPosition::LowerRight, true, false),
        (SeriesLabelPosition::LowerLeft, false, false),
    ];
    for (corner, right, upper) in corners {
        let inside = |p: &&(f64, f64)| {
            let across = if right {
                p.0 > x.1 - width
            } else {
                p.0 < x.0 + width
            };
            let along = if upper {
                p.1 > y.1 - height
            } else {
                p.1 < y.0 + height
            };
            across && along
        };
        if drawn.iter().find(inside).is_none() {
            return (corner, y);
        }
    }
    // The least room that lets the lines of the upper right corner pass below.
    let right = drawn.iter().filter(|p| p.0 > x.1 - width).map(|p| p.1);
    let top = right.fold(y.0, f64::max);
    let high = (top - share * y.0) / (1.0 - share);
    (SeriesLabelPosition::UpperRight, (y.0, high.max(y.1)))
}

/// Draws predictions (upwards) over targets (rightwards) with the diagonal of perfect ones.
/// # Shapes
/// Both `[n]`.
///
/// # Errors
/// [`Error::Config`] when there is no finite point; [`Error::Shape`] when the lengths differ; [`Error::Io`].
pub fn scatter(path: &Path, axes: &Axes, predictions: &Tensor, targets: &Tensor) -> Result<()> {
    let (ys, xs) = (values(predictions)?, values(targets)?);
    same_length(ys.len(), xs.len())?;
    let points: Vec<(f64, f64)> = xs.into_iter().zip(ys).collect();
    let points = finite(&Series {
        name: String::new(),
        points,
    })
    .points;
    let ends = padded(range(path, points.iter().flat_map(|p| [p.0, p.1]))?);
    let shown: Vec<(f64, f64)> = points
        .iter()
        .copied()
        .step_by(points.len().div_ceil(DOTS))
        .collect();
    let mut axes = axes.clone();
    if shown.len() < points.len() {
        axes.title = format!("{} ({} of {} rows)", axes.title, shown.len(), points.len());
    }
    draw(
        path,
        &axes,
        (ends.clone(), ends.clone()),
        SeriesLabelPosition::UpperLeft,
        |chart| {
            let dots = shown
                .iter()
                .map(|point| Circle::new(*point, 2, COLOURS[0].mix(0.35).filled()));
            chart
                .draw_series(dots)?
                .label("a row")
                .legend(|(x, y)| Circle::new((x + 9, y), 3, COLOURS[0].filled()));
            diagonal(chart, (ends.start, ends.end), "perfect")
        },
    )
}

/// Draws how often class 1 came true (upwards) where its probability was so high (rightwards), in `bins` equal bins.
/// # Shapes
/// Both `[n]`; probabilities in [0, 1], labels 0 or 1.
///
/// # Errors
/// As [`scatter`].
pub fn calibration(
    path: &Path,
    axes: &Axes,
    probabilities: &Tensor,
    labels: &Tensor,
    bins: usize,
) -> Result<()> {
    let (p, t) = (values(probabilities)?, values(labels)?);
    same_length(p.len(), t.len())?;
    let bins = bins.max(1);
    let mut sums = vec![(0.0, 0.0, 0.0); bins];
    for (p, t) in p.iter().zip(&t).filter(|(p, _)| (0.0..=1.0).contains(*p)) {
        let sum = &mut sums[((p * bins as f64) as usize).min(bins - 1)];
        *sum = (sum.0 + p, sum.1 + t, sum.2 + 1.0);
    }
    let total: f64 = sums.iter().map(|sum| sum.2).sum();
    let full = sums.iter().filter(|sum| sum.2 > 0.0);
    let points: Vec<(f64, f64, f64)> = full
        .map(|(p, t, n)| (p / n, t / n, (n / total).sqrt()))
        .collect();
    range(path, points.iter().map(|p| p.0))?;
    draw(
        path,
        axes,
        (0.0..1.0, 0.0..1.0),
        SeriesLabelPosition::UpperLeft,
        |chart| {
            diagonal(chart, (0.0, 1.0), "perfect")?;
            let colour = COLOURS[0];
            let joined = points.iter().map(|(x, y, _)| (*x, *y));
            chart
                .draw_series(LineSeries::new(joined, colour.stroke_width(2)))?
                .label("model (dots: share of rows)")
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
            chart.draw_series(points.iter().map(|(x, y, share)| {
                Circle::new(
                    (*x, *y),
                    2 + (10.0 * share) as i32,
                    colour.mix(0.6).filled(),
                )
            }))?;
            Ok(())
        },
    )
}

/// Values with a spread, for [`dots`].
#[derive(Debug, Clone, PartialEq)]
pub struct Dots {
    /// The name in the legend.
    pub name: String,
    /// Mean and standard deviation, one per label; those that are not finite are left out.
    pub values: Vec<(f64, f64)>,
}

/// Draws a row per label, the first one on top, with a dot at the mean and a bar of one standard deviation to each side.
///
/// # Errors
/// [`Error::Config`] when there is no finite mean; [`Error::Shape`] when a series has another length; [`Error::Io`].
pub fn dots(path: &Path, axes: &Axes, labels: &[String], series: &[Dots]) -> Result<()> {
    for series in series {
        same_length(series.values.len(), labels.len())?;
    }
    let all = series.iter().flat_map(|series| &series.values);
    let shown = all.filter(|(mean, _)| mean.is_finite());
    let spread = |sd: f64| if sd.is_finite() { sd } else { 0.0 };
    let x = range(
        path,
        shown.flat_map(|(mean, sd)| [mean - spread(*sd), mean + spread(*sd)]),
    )?;
    let names: Vec<String> = labels.iter().rev().cloned().collect();
    let y = -0.5..labels.len() as f64 - 0.5;
    let middle = (series.len() as f64 - 1.0) / 2.0;
    let legend = SeriesLabelPosition::LowerRight;
    draw_named(path, axes, &names, (padded(x), y), legend, |chart| {
        for (i, series) in series.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            // Series of one label stand close above each other.
            let shift = 0.2 * (i as f64 - middle);
            let rows = series.values.iter().enumerate();
            let placed: Vec<(f64, f64, f64)> = rows
                .filter(|(_, (mean, _))| mean.is_finite())
                .map(|(row, (mean, sd))| {
                    let y = (labels.len() - 1 - row) as f64 - shift;
                    (*mean, spread(*sd), y)
                })
                .collect();
            chart.draw_series(placed.iter().map(|(mean, sd, y)| {
                PathElement::new([(mean - sd, *y), (mean + sd, *y)], colour.stroke_width(2))
            }))?;
            chart
                .draw_series(
                    placed
                        .iter()
                        .map(|(x, _, y)| Circle::new((*x, *y), 4, colour.filled())),
                )?
                .label(series.name.clone())
                .legend(move |(x, y)| Circle::new((x + 9, y), 4, colour.filled()));
        }
        Ok(())
    })
}

/// Draws the loss and each metric of a run by epoch into its `plots/`, from its log.
///
/// Metrics called `part.name` share the plot `name`, one line per part; those without a part are of the validation
/// rows. A metric called `loss` joins the plot of the training loss.
///
/// # Errors
/// [`Error::Io`]; [`Error::Corrupt`] when the log is not readable.
pub fn run_plots(dir: &Path) -> Result<Vec<PathBuf>> {
    let lines = read_log(dir)?;
    let epochs: Vec<&Value> = lines
        .iter()
        .filter(|line| line["kind"] == "epoch")
        .collect();
    let at = |line: &Value| line["epoch"].as_f64().map(|epoch| epoch + 1.0);
    let mut plots: Vec<(String, Vec<Series>)> = Vec::new();
    let mut add = |plot: &str, name: &str, x: f64, y: f64| {
        let place = plots
            .iter()
            .position(|(known, _)| known == plot)
            .unwrap_or(plots.len());
        if place == plots.len() {
            plots.push((plot.to_owned(), Vec::new()));
        }
        let lines = &mut plots[place].1;
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push((x, y)),
            None => lines.push(Series {
                name: name.to_owned(),
                points: vec![(x, y)],
            }),
        }
    };
    for line in &epochs {
        let Some(x) = at(line) else { continue };
        if let Some(loss) = line["train_loss"].as_f64() {
            add("loss", "training", x, loss);
        }
        for (name, value) in line["metrics"].as_object().into_iter().flatten() {
            let (part, metric) = name.split_once('.').unwrap_or(("validation", name));
            if let Some(value) = value.as_f64() {
                add(metric, part, x, value);
            }
        }
    }
    let folder = dir.join("plots");
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let mut paths = Vec::new();
    for (name, series) in plots {
        let metric: Option<crate::metrics::Metric> = name.parse().ok();
        let y = metric.map_or_else(
            || name.clone(),
            |metric| format!("{name} [{}]", metric.unit()),
        );
        let path = folder.join(format!("{}.svg", name.replace(['/', '\\'], "_")));
        let title = if name == "loss" {
            "Loss by epoch".to_owned()
        } else {
            format!("{name} by epoch")
        };
        if series
            .iter()
            .any(|series| !finite(series).points.is_empty())
        {
            line(&path, &Axes::new(title, "epoch", y), &series)?;
            paths.push(path);
        }
    }
    Ok(paths)
}

type Chart<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;
type Drawn = std::result::Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// The frame of all plots: white, light grid, title, axis names, legend.
fn draw(
    path: &Path,
    axes: &Axes,
    (x, y): (std::ops::Range<f64>, std::ops::Range<f64>),
    legend: SeriesLabelPosition,
    body: impl FnOnce(&mut Chart) -> Drawn,
) -> Result<()> {
    draw_named(path, axes, &[], (x, y), legend, body)
}

/// As [`draw`]; where `names` are given, they stand at 0, 1, 2 … of the axis upwards.
fn draw_named(
    path: &Path,
    axes: &Axes,
    names: &[String],
    (x, y): (std::ops::Range<f64>, std::ops::Range<f64>),
    legend: SeriesLabelPosition,
    body: impl FnOnce(&mut Chart) -> Drawn,
) -> Result<()> {
    let mut svg = String::new();
    let longest = names.iter().map(|name| name.chars().count()).max();
    let left = longest.map_or(76, |longest| 40 + 8 * longest.min(32) as u32);
    let height = SIZE.1.max(120 + 22 * names.len() as u32);
    let drawn = (|| -> Drawn {
        let root = SVGBackend::with_string(&mut svg, (SIZE.0, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let font = |size: i32| ("sans-serif", size).into_font().color(&INK);
        let mut chart = ChartBuilder::on(&root)
            .margin(14)
            .margin_right(24)
            .caption(&axes.title, font(20))
            .x_label_area_size(48)
            .y_label_area_size(left)
            .build_cartesian_2d(x.clone(), y.clone())?;
        let (fx, fy) = (digits(&x), digits(&y));
        let label = |value: &f64| {
            if names.is_empty() {
                return number(*value, fy);
            }
            let at = value.round();
            let whole = (value - at).abs() < 1e-6 && at >= 0.0;
            let name = whole.then(|| names.get(at as usize)).flatten();
            name.map_or_else(String::new, |name| name.chars().take(32).collect())
        };
        let ticks = if names.is_empty() {
            6
        } else {
            2 * names.len() + 1
        };
        chart
            .configure_mesh()
            .x_desc(&axes.x)
            .y_desc(&axes.y)
            .axis_desc_style(font(15))
            .label_style(font(13))
            .axis_style(INK.mix(0.5))
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .x_labels(8)
            .y_labels(ticks)
            .x_label_formatter(&|value| number(*value, fx))
            .y_label_formatter(&label)
            .draw()?;
        body(&mut chart)?;
        chart
            .configure_series_labels()
            .position(legend)
            .background_style(WHITE.mix(0.85))
            .border_style(GRID)
            .label_font(font(14))
            .draw()?;
        root.present()
    })();
    drawn.map_err(|e| Error::Unsupported {
        what: format!("drawing {}", path.display()),
        hint: e.to_string(),
    })?;
    densely_core::fs::write(path, svg.as_bytes())
}

fn diagonal(chart: &mut Chart, (from, to): (f64, f64), name: &str) -> Drawn {
    let style = INK.mix(0.6).stroke_width(1);
    chart
        .draw_series(DashedLineSeries::new([(from, from), (to, to)], 6, 4, style))?
        .label(name)
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    Ok(())
}

fn finite(series: &Series) -> Series {
    let points = series
        .points
        .iter()
        .copied()
        .filter(|p| p.0.is_finite() && p.1.is_finite());
    Series {
        name: series.name.clone(),
        points: points.collect(),
    }
}

fn range(path: &Path, values: impl Iterator<Item = f64>) -> Result<(f64, f64)> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low > high {
        let reason = format!("{}: there is no finite point to draw", path.display());
        return Err(Error::config("plot", reason));
    }
    // A single value still needs a range around it.
    let half = if low >= high {
        (low.abs() * 0.05).max(0.5)
    } else {
        0.0
    };
    Ok((low - half, high + half))
}

fn padded((low, high): (f64, f64)) -> std::ops::Range<f64> {
    let space = (high - low) * 0.04;
    low - space..high + space
}

/// Decimals that tell neighbouring labels apart.
fn digits(range: &std::ops::Range<f64>) -> usize {
    let step = (range.end - range.start) / 8.0;
    (1.0 - step.log10().floor()).clamp(0.0, 6.0) as usize
}

fn number(value: f64, digits: usize) -> String {
    if value != 0.0 && (value.abs() >= 1e6 || value.abs() < 1e-5) {
        return format!("{value:.1e}");
    }
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    // Rounding leaves a sign on nothing.
    if text == "-0" {
        "0".to_owned()
    } else {
        text.to_owned()
    }
}

fn values(xs: &Tensor) -> Result<Vec<f64>> {
    let xs = xs
        .f_detach()?
        .f_to_device(tch::Device::Cpu)?
        .f_to_kind(Kind::Double)?
        .f_flatten(0, -1)?;
    let mut values = vec![0.0; xs.numel()];
    let count = values.len();
    xs.f_copy_data(&mut values, count)?;
    Ok(values)
}

fn same_length(predictions: usize, targets: usize) -> Result<()> {
    if predictions == targets {
        return Ok(());
    }
    Err(Error::Shape {
        what: "predictions".to_owned(),
        expected: format!("{targets} values"),
        got: format!("{predictions}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_legend_covers_nothing() {
        let names = [&"forecast".to_owned(), &"naive".to_owned()];
        let place = |points: &[(f64, f64)]| {
            let (place, y) = legend_place(&between(points), (0.0, 10.0), (0.0, 1.0), &names);
            (format!("{place:?}"), y)
        };
        let free = |points: &[(f64, f64)], expected: &str| {
            assert_eq!(place(points), (expected.to_owned(), (0.0, 1.0)));
        };
        free(&[(0.0, 0.0), (10.0, 0.0)], "UpperRight");
        free(&[(0.0, 0.0), (10.0, 1.0)], "UpperLeft");
        free(&[(0.0, 1.0), (5.0, 0.9), (10.0, 1.0)], "LowerRight");
        // A line through every corner: room is made above its right end.
        let (corner, y) = place(&[(0.0, 0.0), (0.0, 1.0), (10.0, 0.0), (10.0, 0.95)]);
        assert_eq!((corner.as_str(), y.0), ("UpperRight", 0.0));
        let below = y.1 * (1.0 - (22.0 + 40.0) / 360.0);
        assert!((below - 0.95).abs() < 1e-9, "{y:?}");
    }

    #[test]
    fn labels_are_short_and_distinct() {
        for (value, range, text) in [
            (0.25, 0.0..1.0, "0.25"),
            (-0.0, -1.0..1.0, "0"),
            (1500.0, 0.0..4000.0, "1500"),
            (0.0003, 0.0..0.001, "0.0003"),
            (2e7, 0.0..3e7, "2.0e7"),
        ] {
            assert_eq!(number(value, digits(&range)), text);
        }
    }
}
