//! `densely interp transcoder compare`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use densely_core::{Error, Result};
use densely_interp::dictionary::evaluate::{Evaluation, InPlace, evaluate};
use densely_train::plot::{self, Axes, Series};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::model_name;
use super::train::{Job, Kind, Sparse, Training, say_corpus};
use super::{Judging, Storing, Texts, evaluate_options, saved_bar};
use crate::Common;
use crate::commands::lm::Source;
use crate::commands::train::interp::Found;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely interp transcoder compare gpt2 --text pile.jsonl --layer 8 --ks 8,16,32,64,128 --store activations --out runs/compare\n\
                  What is finished is not trained again with --resume."
)]
pub(crate) struct Compare {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    texts: Texts,
    #[command(flatten)]
    judging: Judging,
    #[command(flatten)]
    storing: Storing,
    /// What is trained.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["sae", "transcoder"])]
    kinds: Vec<Kind>,
    /// Features of a token, as in 8,16,32.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "LIST",
        conflicts_with = "coefficients"
    )]
    ks: Vec<f64>,
    /// Prices of features instead, as in 4e-5,1e-4.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    coefficients: Vec<f64>,
    #[command(flatten)]
    training: Training,
    /// Folder of the runs; `runs/compare` when left out.
    #[arg(long, value_name = "DIR", default_value = "runs/compare")]
    out: PathBuf,
    /// Go on with a comparison that was begun in the same folder.
    #[arg(long)]
    resume: bool,
}

/// One dictionary of a comparison.
#[derive(Debug, Serialize, Deserialize)]
struct Point {
    kind: String,
    sparsity: f64,
    l0: f64,
    explained: f64,
    silent: f64,
    ce_clean: f64,
    ce_replaced: f64,
    ce_ablated: f64,
    recovered: f64,
    kl: f64,
}

impl Point {
    fn new(kind: Kind, sparsity: f64, found: &Evaluation) -> Result<Self> {
        let layer = found
            .dictionaries
            .first()
            .ok_or_else(|| Error::config("dictionaries", "are none"))?;
        Ok(Self {
            kind: kind.name().to_owned(),
            sparsity,
            l0: layer.l0,
            explained: layer.explained,
            silent: layer.silent,
            ce_clean: found.ce_clean,
            ce_replaced: found.ce_replaced,
            ce_ablated: found.ce_ablated,
            recovered: found.recovered,
            kl: found.kl,
        })
    }
}

/// A comparison that was made.
struct Made {
    points: Vec<Point>,
    table: String,
    plots: Vec<PathBuf>,
    parameters: u64,
}

pub(super) fn run(arguments: &Compare, common: &Common) -> Result<()> {
    let made = make(arguments, common)?;
    if common.json {
        println!("{}", json!({ "points": made.points, "plots": made.plots }));
    } else {
        println!("{}", made.table.trim_end());
        for plot in &made.plots {
            println!("{}", plot.display());
        }
    }
    Ok(())
}

/// The study of a recipe.
pub(crate) fn study(arguments: &Compare, common: &Common) -> Result<Found> {
    let made = make(arguments, common)?;
    let mut figures = BTreeMap::new();
    for point in &made.points {
        let name = format!("{}.{}", point.kind.replace(' ', "-"), point.sparsity);
        figures.insert(format!("{name}.ce"), point.ce_replaced);
        figures.insert(format!("{name}.l0"), point.l0);
        figures.insert(format!("{name}.recovered"), point.recovered);
    }
    Ok(Found {
        figures,
        report: made.table,
        plots: made.plots,
        parameters: made.parameters,
    })
}

fn make(arguments: &Compare, common: &Common) -> Result<Made> {
    let opened = arguments.source.open(common)?;
    let (train, test) = arguments.texts.parts(&opened, &arguments.judging)?;
    say_corpus(&train, &test);
    let mut jobs = Vec::new();
    let mut names = Vec::new();
    let by_k = arguments.coefficients.is_empty();
    let defaults = [8.0, 16.0, 32.0, 64.0, 128.0];
    let sparsities: &[f64] = match (by_k, arguments.ks.as_slice()) {
        (false, _) => &arguments.coefficients,
        (true, []) => &defaults,
        (true, ks) => ks,
    };
    for kind in &arguments.kinds {
        let [(read, write)] = &arguments.training.points(*kind, &opened)?[..] else {
            let reason = "must be one for a comparison";
            return Err(Error::config("--layer", reason));
        };
        names.extend([read.clone(), write.clone()]);
        for (at, sparsity) in sparsities.iter().enumerate() {
            if sparsities
                .iter()
                .take(at)
                .any(|other| other.total_cmp(sparsity).is_eq())
            {
                let reason = format!("{sparsity} is named twice");
                return Err(Error::config("--ks or --coefficients", reason));
            }
            jobs.push((*kind, *sparsity, read.clone(), write.clone()));
        }
    }
    let seed = common.seed.unwrap_or(0);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let options = arguments.storing.options(&names, &arguments.texts, seed);
    let (train_on, judge_by) = arguments
        .storing
        .activations(&opened, (&train, &test), options)?;
    if arguments.storing.store.is_none() {
        tracing::warn!(
            "without --store each of {} dictionaries asks the model for the same activations again",
            jobs.len()
        );
    }
    let tokens: usize = (0..train_on.buffers()).map(|i| train_on.tokens(i)).sum();
    // All settings are looked at before the first training.
    let mut planned = Vec::new();
    for (kind, sparsity, read, write) in &jobs {
        let sparse = Sparse {
            k: by_k.then_some(*sparsity),
            coefficient: (!by_k).then_some(*sparsity),
        };
        planned.push(
            arguments
                .training
                .settings(*kind, sparse, (read, write), &opened, tokens)?,
        );
    }
    let mut points = Vec::new();
    let mut parameters = 0;
    for (place, ((kind, sparsity, read, write), settings)) in jobs.iter().zip(&planned).enumerate()
    {
        let folder = arguments
            .out
            .join(format!("{}-{sparsity}", kind.name().replace(' ', "-")));
        tracing::info!(
            "{} of {}: {} of {sparsity}",
            place + 1,
            jobs.len(),
            kind.name()
        );
        let job = Job {
            opened: &opened,
            model: arguments.source.path(),
            texts: &arguments.texts.text,
            train: &train_on,
            judged: &judge_by,
            folder: &folder,
            resume: arguments.resume && folder.exists(),
        };
        let fitted = job.fit(settings, common)?;
        parameters = densely_core::nn::parameter_count(&fitted.vs);
        let places = [InPlace {
            dictionary: &fitted.dictionary,
            read,
            write,
        }];
        let options = evaluate_options(&arguments.texts, arguments.judging.ablation);
        let mut bar = saved_bar(common.quiet, &folder);
        let found = evaluate(&opened.model, &test, &places, &options, &mut bar)?;
        points.push(Point::new(*kind, *sparsity, &found)?);
        let path = arguments.out.join("compare.json");
        let text = json!({ "model": model_name(arguments.source.path()), "points": points });
        densely_core::fs::write(&path, format!("{text:#}\n").as_bytes())?;
    }
    let plots = draw(arguments, &points)?;
    Ok(Made {
        table: table(&points),
        points,
        plots,
        parameters,
    })
}

fn table(points: &[Point]) -> String {
    let mut text = String::from(
        "| | sparsity | L0 | variance explained | CE | CE recovered | KL | silent |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for point in points {
        let _ = writeln!(
            text,
            "| {} | {} | {:.2} | {:.4} | {:.4} | {:.4} | {:.4} | {:.1} % |",
            point.kind,
            point.sparsity,
            point.l0,
            point.explained,
            point.ce_replaced,
            point.recovered,
            point.kl,
            100.0 * point.silent
        );
    }
    if let Some(first) = points.first() {
        let _ = writeln!(
            text,
            "\nThe model itself has a cross-entropy of {:.4}, and {:.4} with the layer ablated.",
            first.ce_clean, first.ce_ablated
        );
    }
    text
}

fn draw(arguments: &Compare, points: &[Point]) -> Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    for (name, title, y, of) in [
        (
            "ce.svg",
            "Cross-entropy with the dictionary in the layer's place",
            "cross-entropy of the next token, nats (lower is better)",
            (|point: &Point| point.ce_replaced) as fn(&Point) -> f64,
        ),
        (
            "explained.svg",
            "Variance explained",
            "share of the output's variance (higher is better)",
            |point: &Point| point.explained,
        ),
    ] {
        let series: Vec<Series> = arguments
            .kinds
            .iter()
            .map(|kind| {
                let own = points.iter().filter(|point| point.kind == kind.name());
                let mut points: Vec<(f64, f64)> =
                    own.map(|point| (point.l0.log2(), of(point))).collect();
                points.sort_by(|a, b| a.0.total_cmp(&b.0));
                Series {
                    name: kind.name().to_owned(),
                    points,
                }
            })
            .collect();
        let path = arguments.out.join(name);
        let axes = Axes::new(title, "features of a token (L0), as a power of two", y);
        plot::line(&path, &axes, &series)?;
        made.push(path);
    }
    Ok(made)
}
