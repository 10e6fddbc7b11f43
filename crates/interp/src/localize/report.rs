//! What a study says: tables, a picture for each task, and whether the paper's finding holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Method, Outcome, Point, Variant};
use crate::average::Estimate;
use crate::heatmap::{Heatmap, Line, lines};
use crate::regress::{Correlation, Design, Fit, Nested, correlation, fit};

/// The finding holds where the tracing effect adds less than this to what the layer explains.
const ADDS: f64 = 0.05;
/// It does not where it adds more and the nested test's p is below this.
const CHANCE: f64 = 0.05;
/// Mean score that some layer must reach: where no edit works there is nothing to explain.
const WORKS: f64 = 0.05;
/// Facts below which a verdict is weak.
const FEW: usize = 30;

/// One layer of a pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerFound {
    /// The layer.
    pub layer: usize,
    /// Mean rewrite score with its 95 % interval.
    pub rewrite: Estimate,
    /// Mean tracing effect with its 95 % interval.
    pub fraction: Estimate,
    /// Correlation of the two over facts; `None` where one does not vary.
    pub correlation: Option<Correlation>,
}

/// What one method did for one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The task.
    pub variant: Variant,
    /// The method.
    pub method: Method,
    /// Edits with a score.
    pub points: usize,
    /// Edits without one.
    pub failed: usize,
    /// Facts that they are of.
    pub facts: usize,
    /// Mean scores: rewrite, paraphrase, neighbourhood, overall; `None` was not measured.
    pub means: [Option<f64>; 4],
    /// Rewrite score by layer.
    pub layer: Fit,
    /// Rewrite score by tracing effect.
    pub trace: Fit,
    /// Rewrite score by both, with a slope for each layer.
    pub both: Fit,
    /// Whether both explain more than the layer.
    pub nested: Option<Nested>,
    /// By layer.
    pub layers: Vec<LayerFound>,
}

impl Pair {
    /// How much the tracing effect adds to the layer.
    pub fn adds(&self) -> Option<f64> {
        Some(self.both.r2? - self.layer.r2?)
    }

    /// Whether the paper's finding holds here; `None` where it cannot be said.
    pub fn holds(&self) -> Option<bool> {
        let means = self.layers.iter().map(|layer| layer.rewrite.mean);
        if self.layers.len() < 2 || means.fold(0.0, f64::max) < WORKS {
            return None;
        }
        if self.adds()? < ADDS {
            return Some(true);
        }
        (self.nested.as_ref()?.p < CHANCE).then_some(false)
    }
}

/// All pairs of a study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// In the order of tasks, then methods.
    pub pairs: Vec<Pair>,
}

/// Regresses the points of each task and method.
///
/// # Errors
/// [`Error::Config`] when there is no edit with a score.
pub fn summarise(points: &[Point]) -> Result<Summary> {
    let mut groups: BTreeMap<(Variant, Method), Vec<&Point>> = BTreeMap::new();
    for point in points {
        groups
            .entry((point.variant, point.method))
            .or_default()
            .push(point);
    }
    let mut pairs = Vec::new();
    for ((variant, method), points) in groups {
        let failed = points.iter().filter(|p| p.rewrite.is_none()).count();
        let scored: Vec<(&Point, f64)> = points
            .iter()
            .filter_map(|point| Some((*point, point.rewrite?)))
            .collect();
        if scored.is_empty() {
            continue;
        }
        let layers: Vec<usize> = scored.iter().map(|(p, _)| p.layer).collect();
        let effects: Vec<f64> = scored.iter().map(|(p, _)| p.fraction).collect();
        let scores: Vec<f64> = scored.iter().map(|(_, score)| *score).collect();
        let of = |design: Design| fit(design, &layers, &effects, &scores);
        let (layer, trace, both) = (of(Design::Layer)?, of(Design::Trace)?, of(Design::Product)?);
        let facts: BTreeSet<&str> = scored.iter().map(|(p, _)| p.id.as_str()).collect();
        let average = |of: fn(&Point) -> Option<f64>| {
            let values: Vec<f64> = scored.iter().filter_map(|(point, _)| of(point)).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        let means = [
            average(|point| point.rewrite),
            average(|point| point.paraphrase),
            average(|point| point.neighbourhood),
            average(|point| point.overall),
        ];
        let levels: BTreeSet<usize> = layers.iter().copied().collect();
        let found = levels
            .into_iter()
            .map(|level| {
                let own = scored.iter().filter(|(point, _)| point.layer == level);
                let (effects, scores): (Vec<f64>, Vec<f64>) =
                    own.map(|(point, score)| (point.fraction, *score)).unzip();
                LayerFound {
                    layer: level,
                    rewrite: estimate(&scores),
                    fraction: estimate(&effects),
                    correlation: correlation(&effects, &scores),
                }
            })
            .collect();
        pairs.push(Pair {
            variant,
            method,
            points: scored.len(),
            failed,
            facts: facts.len(),
            means,
            nested: both.over(&layer)?,
            layer,
            trace,
            both,
            layers: found,
        });
    }
    if pairs.is_empty() {
        return Err(Error::config("facts", "no edit of any has a score"));
    }
    Ok(Summary { pairs })
}

/// A mean with 1.96 standard errors to each side.
fn estimate(values: &[f64]) -> Estimate {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    if values.len() < 2 {
        return Estimate {
            mean,
            low: mean,
            high: mean,
        };
    }
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let half = 1.96 * (squares / (n - 1.0) / n).sqrt();
    Estimate {
        mean,
        low: mean - half,
        high: mean + half,
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"))
}

/// A probability that a test gives, which may be far too small for three digits.
fn probability(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(p) if p < 1e-3 => format!("{p:.1e}"),
        Some(p) => format!("{p:.3}"),
    }
}

impl Summary {
    /// The table of shares explained, as in the paper.
    pub fn markdown(&self) -> String {
        let mut out = String::from(
            "| task | method | points | R² layer | R² trace | R² both | both − layer | F, p of the addition | finding |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        );
        for pair in &self.pairs {
            let test = pair.nested.map_or_else(
                || "–".to_owned(),
                |test| format!("{:.2}, {}", test.f, probability(Some(test.p))),
            );
            let finding = match pair.holds() {
                Some(true) => "holds",
                Some(false) => "does not hold",
                None => "cannot be said",
            };
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} | {test} | {finding} |",
                pair.variant,
                pair.method,
                pair.points,
                number(pair.layer.r2),
                number(pair.trace.r2),
                number(pair.both.r2),
                number(pair.adds()),
            );
        }
        out
    }

    /// Rewrite score and tracing effect by layer, each with its 95 % interval, and how they go together.
    pub fn layers_markdown(&self) -> String {
        let mut out = String::new();
        for pair in &self.pairs {
            layers_of_pair(&mut out, pair);
        }
        out
    }

    /// Whether the finding holds, in words with the rule behind it.
    pub fn verdict(&self) -> String {
        let said: Vec<bool> = self.pairs.iter().filter_map(Pair::holds).collect();
        let rule = format!(
            "The rule: it holds where the tracing effect adds less than {ADDS} to the R² of the layer, and does not where it adds more than chance would (p below {CHANCE}). Edits of one fact are not independent of each other, so that p is a guide, not exact."
        );
        if said.is_empty() {
            return format!(
                "Whether the paper's finding holds cannot be said: that takes at least two layers, edits that work and scores that vary, and more facts where an addition may be chance. {rule}"
            );
        }
        let holding = said.iter().filter(|holds| **holds).count();
        let facts = self.pairs.iter().map(|pair| pair.facts).min().unwrap_or(0);
        let whole = if holding == said.len() {
            "The paper's finding, that where tracing finds a fact says next to nothing about where to edit it, holds here"
        } else if holding == 0 {
            "The paper's finding, that where tracing finds a fact says next to nothing about where to edit it, does not hold here"
        } else {
            "The paper's finding, that where tracing finds a fact says next to nothing about where to edit it, holds here in part"
        };
        let caution = if facts < FEW {
            format!(
                " With {facts} facts in the smallest of them this is weak: a slope for each layer explains something by chance alone, which the p of the addition allows for and R² does not."
            )
        } else {
            String::new()
        };
        format!(
            "{whole}: in {holding} of {} pairs of task and method. {rule}{caution}",
            said.len()
        )
    }
}

/// Writes `report.md`, `regression.json` and a picture for each task into a folder. `about` are lines on model and settings, name and value.
///
/// # Errors
/// [`Error::Io`]; [`Error::Config`] when nothing can be drawn.
pub fn write_report(
    folder: &Path,
    about: &[(String, String)],
    outcome: &Outcome,
    summary: &Summary,
) -> Result<()> {
    let plots = folder.join("plots");
    std::fs::create_dir_all(&plots).map_err(Error::io(&plots))?;
    let mut out = String::from("# Localisation against editing\n\n| | |\n| --- | --- |\n");
    for (name, value) in about {
        let _ = writeln!(out, "| {name} | {} |", value.replace('|', "/"));
    }
    let _ = writeln!(
        out,
        "| facts | {} edited, {} left out |\n",
        outcome.edited,
        outcome.skipped.len()
    );
    let _ = writeln!(out, "{}\n\n{}", summary.verdict(), summary.markdown());
    out += "R² of the rewrite score on the layer (a factor), on the tracing effect at that layer, and on both with a slope for each layer; F and p of the last over the first.\n\n";
    out += "## Scores\n\n| task | method | edits | failed | rewrite | paraphrase | neighbourhood | overall |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n";
    for pair in &summary.pairs {
        let [rewrite, paraphrase, neighbour, overall] = pair.means.map(number);
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {rewrite} | {paraphrase} | {neighbour} | {overall} |",
            pair.variant, pair.method, pair.points, pair.failed
        );
    }
    out.push('\n');
    let unmeasured: Vec<&str> = [("paraphrase", 1), ("neighbourhood", 2)]
        .into_iter()
        .filter(|(_, at)| summary.pairs.iter().all(|pair| pair.means[*at].is_none()))
        .map(|(name, _)| name)
        .collect();
    if !unmeasured.is_empty() {
        let _ = writeln!(
            out,
            "Not measured, because the facts come without such prompts: {}. Overall is the mean of what is measured.\n",
            unmeasured.join(" and ")
        );
    }
    dropped(&mut out, summary);
    out += "## By layer\n\n";
    out += &summary.layers_markdown();
    let variants: BTreeSet<Variant> = summary.pairs.iter().map(|pair| pair.variant).collect();
    if let Some(averages) = &outcome.averages {
        let _ = writeln!(out, "## Tracing\n\n{}", averages.markdown());
    }
    out += "## Plots\n\n";
    if let Some(averages) = &outcome.averages {
        for kind in averages.kinds.keys() {
            let name = format!("tracing-{kind}.svg");
            Heatmap::of_averages(averages, *kind)?.write(&plots.join(&name))?;
            let _ = writeln!(out, "![tracing, {kind}](plots/{name})\n");
        }
    }
    for variant in variants {
        let name = format!("{variant}.svg");
        plot(&plots.join(&name), variant, summary)?;
        let _ = writeln!(out, "![{variant}](plots/{name})\n");
    }
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, reason) in &outcome.skipped {
        // Answers differ from fact to fact; that they are wrong is one reason.
        let kind = if reason.starts_with("the model gives") {
            "the model gives another answer"
        } else if reason.starts_with("its answer has probability") {
            "its answer is too improbable"
        } else {
            reason
        };
        *reasons.entry(kind).or_default() += 1;
    }
    if !reasons.is_empty() {
        out += "## Left out\n\n| because | facts |\n| --- | --- |\n";
        for (reason, count) in reasons.iter().take(20) {
            let _ = writeln!(out, "| {} | {count} |", reason.replace('|', "/"));
        }
    }
    densely_core::fs::write(&folder.join("report.md"), out.as_bytes())?;
    let path = folder.join("regression.json");
    let json = serde_json::to_string_pretty(summary)
        .map_err(|error| Error::data(&path, format!("cannot be written: {error}")))?;
    densely_core::fs::write(&path, format!("{json}\n").as_bytes())
}

/// Columns that a regression could not use.
fn dropped(out: &mut String, summary: &Summary) {
    for pair in &summary.pairs {
        let names: BTreeSet<&str> = [&pair.trace, &pair.both]
            .into_iter()
            .flat_map(|fit| fit.dropped.iter().map(String::as_str))
            .collect();
        if !names.is_empty() {
            let names: Vec<&str> = names.into_iter().collect();
            let _ = writeln!(
                out,
                "{}, {}: the columns {} do not vary beside the others, and were left out of the regression.\n",
                pair.variant,
                pair.method,
                names.join(", ")
            );
        }
    }
}

fn with_interval(estimate: &Estimate) -> String {
    format!(
        "{:.3} ({:.3} to {:.3})",
        estimate.mean, estimate.low, estimate.high
    )
}

fn layers_of_pair(out: &mut String, pair: &Pair) {
    let _ = write!(
        out,
        "### {}, {}\n\n| layer | rewrite score (95 % interval) | tracing effect (95 % interval) | correlation (95 % interval) |\n| --- | --- | --- | --- |\n",
        pair.variant, pair.method
    );
    for found in &pair.layers {
        let correlation = found.correlation.map_or_else(
            || "–".to_owned(),
            |c| format!("{:.3} ({:.3} to {:.3})", c.r, c.low, c.high),
        );
        let _ = writeln!(
            out,
            "| {} | {} | {} | {correlation} |",
            found.layer,
            with_interval(&found.rewrite),
            with_interval(&found.fraction)
        );
    }
    out.push('\n');
}

/// Rewrite score by layer, a line for each method, and the tracing effect. Layers that were not edited are left open.
fn plot(path: &Path, variant: Variant, summary: &Summary) -> Result<()> {
    let own: Vec<&Pair> = summary
        .pairs
        .iter()
        .filter(|pair| pair.variant == variant)
        .collect();
    let deepest = own
        .iter()
        .flat_map(|pair| pair.layers.iter().map(|found| found.layer))
        .max()
        .unwrap_or(0);
    let line = |name: String, found: &[LayerFound], of: fn(&LayerFound) -> Estimate| {
        // Between two edited layers the line is straight.
        let points = (0..=deepest)
            .map(|layer| between(found, layer, of))
            .collect();
        Line { name, points }
    };
    let mut drawn: Vec<Line> = own
        .iter()
        .map(|pair| line(pair.method.to_string(), &pair.layers, |found| found.rewrite))
        .collect();
    if let Some(pair) = own.first() {
        let name = "tracing effect".to_owned();
        drawn.push(line(name, &pair.layers, |found| found.fraction));
    }
    lines(
        path,
        &format!("{variant}: success of edits and tracing effect"),
        "layer",
        "rewrite score, share restored",
        &drawn,
    )
}

/// The value at a layer, on the straight line between the layers that were edited; not a number outside of them.
fn between(found: &[LayerFound], layer: usize, of: fn(&LayerFound) -> Estimate) -> Estimate {
    let below = found.iter().rev().find(|found| found.layer <= layer);
    let above = found.iter().find(|found| found.layer >= layer);
    let nothing = Estimate {
        mean: f64::NAN,
        low: f64::NAN,
        high: f64::NAN,
    };
    let (Some(below), Some(above)) = (below, above) else {
        return nothing;
    };
    let (a, b) = (of(below), of(above));
    if above.layer == below.layer {
        return a;
    }
    let share = (layer - below.layer) as f64 / (above.layer - below.layer) as f64;
    let mix = |a: f64, b: f64| a + (b - a) * share;
    Estimate {
        mean: mix(a.mean, b.mean),
        low: mix(a.low, b.low),
        high: mix(a.high, b.high),
    }
}
