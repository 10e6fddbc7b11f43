//! `densely ctr`: fit, evaluate and apply click models on one's own table, and rank candidates.

pub(crate) mod fit;
mod predict;
mod rank;

use std::path::PathBuf;

use densely_core::Result;
use densely_recsys::Fitted;
use densely_recsys::metrics::Scores;
use serde_json::{Map, Value, json};

use crate::Common;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Train a click model on a table and write a run folder with report, plots and predictions.
    Fit(Box<fit::Fit>),
    /// Print the metrics of a run on a table that has the label, or of a file of predictions.
    Evaluate(Evaluate),
    /// Write probabilities of a click for the rows of a table.
    Predict(predict::Predict),
    /// Write the best candidates for each user.
    Rank(rank::Rank),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: densely ctr evaluate runs/ads new_ads.csv\n\
                  Predictions of any program: densely ctr evaluate --predictions p.csv --label clk --probability p --group user")]
pub(crate) struct Evaluate {
    /// Run folder of a fit.
    #[arg(required_unless_present = "predictions")]
    run: Option<PathBuf>,
    /// Table with the label, and the group where the run has one.
    #[arg(required_unless_present = "predictions")]
    table: Option<PathBuf>,
    /// A file of predictions instead of a run.
    #[arg(long, conflicts_with_all = ["run", "table"], requires = "label")]
    predictions: Option<PathBuf>,
    /// Its column with the label, 0 or 1.
    #[arg(long, requires = "predictions")]
    label: Option<String>,
    /// Its column with the probability.
    #[arg(long, default_value = "probability")]
    probability: String,
    /// Its column with the group, for gAUC.
    #[arg(long, requires = "predictions")]
    group: Option<String>,
    /// Rows that are read at once.
    #[arg(long, default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    batch_rows: u32,
}

pub(crate) fn run(command: &Command, common: &Common) -> Result<()> {
    match command {
        Command::Fit(arguments) => fit::run(arguments, common),
        Command::Evaluate(arguments) => evaluate(arguments, common),
        Command::Predict(arguments) => predict::run(arguments, common),
        Command::Rank(arguments) => rank::run(arguments, common),
    }
}

fn evaluate(arguments: &Evaluate, common: &Common) -> Result<()> {
    let scores = match (arguments, &arguments.run, &arguments.table) {
        (
            Evaluate {
                predictions: Some(path),
                label: Some(label),
                probability,
                group,
                ..
            },
            ..,
        ) => Scores::read(path, label, probability, group.as_deref())?,
        (_, Some(run), Some(table)) => {
            let fitted = Fitted::open(run, common.device.open()?)?;
            fitted.evaluate(table, arguments.batch_rows as usize)?
        }
        // The parser asks for one of both.
        _ => return Ok(()),
    };
    if common.json {
        println!(
            "{}",
            json!({ "rows": scores.rows, "metrics": object(&scores), "groups": scores.groups })
        );
        return Ok(());
    }
    println!("{} rows, {} clicks", scores.rows, scores.clicks);
    for (metric, value) in scores.all() {
        println!("  {:<8} {value:.6}", metric.name());
    }
    if let Some(note) = scores.groups.and_then(|groups| groups.note()) {
        println!("{note}");
    }
    Ok(())
}

/// Metrics by name.
pub(crate) fn object(scores: &Scores) -> Map<String, Value> {
    let pairs = scores.all().into_iter();
    pairs
        .map(|(metric, value)| (metric.name().to_owned(), json!(value)))
        .collect()
}

/// Metrics in a line.
pub(crate) fn line(scores: &Scores) -> String {
    let words: Vec<String> = scores
        .all()
        .iter()
        .map(|(metric, value)| format!("{} {value:.4}", metric.name()))
        .collect();
    words.join(", ")
}
