//! `densely forecast`: fit, evaluate and apply forecasters on one's own table, and test them from many origins.

mod backtest;
pub(crate) mod fit;
mod predict;

use std::path::PathBuf;

use densely_core::Result;
use densely_data::Table;
use densely_timeseries::forecast::{Fitted, Scores};
use serde_json::json;

use crate::Common;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Train a forecaster on a table and write a run folder with report, plots and forecasts of the test steps.
    Fit(Box<fit::Fit>),
    /// Print the errors of a run on a table.
    Evaluate(Evaluate),
    /// Forecast what comes after the last row of each series.
    Predict(predict::Predict),
    /// Print the errors of a run from many origins, by origin and by step.
    Backtest(backtest::Backtest),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: densely forecast evaluate runs/load newer_load.csv")]
pub(crate) struct Evaluate {
    /// Run folder of a fit.
    run: PathBuf,
    /// Table with the columns of the fit.
    table: PathBuf,
}

pub(crate) fn run(command: &Command, common: &Common) -> Result<()> {
    match command {
        Command::Fit(arguments) => fit::run(arguments, common),
        Command::Evaluate(arguments) => evaluate(arguments, common),
        Command::Predict(arguments) => predict::run(arguments, common),
        Command::Backtest(arguments) => backtest::run(arguments, common),
    }
}

fn evaluate(arguments: &Evaluate, common: &Common) -> Result<()> {
    let fitted = Fitted::open(&arguments.run, common.device.open()?)?;
    let (scores, notes) = fitted.evaluate(&Table::open(&arguments.table)?)?;
    say(&notes, common);
    if common.json {
        let mut summary = scores.json();
        summary["notes"] = json!(notes);
        println!("{summary}");
    } else {
        println!(
            "{} windows of {}",
            scores.windows,
            arguments.table.display()
        );
        print_scores(&scores);
    }
    Ok(())
}

/// Tells what was found and done.
pub(crate) fn say(notes: &[String], common: &Common) {
    if !common.quiet {
        for note in notes {
            eprintln!("  {note}");
        }
    }
}

/// Most targets that are listed on a terminal; the report lists all.
const LISTED: usize = 20;

/// Prints the errors of each target with those of the naive forecast beside.
fn print_scores(scores: &Scores) {
    let all = scores.standardised();
    println!(
        "  standardised: mse {:.4}, mae {:.4} (naive {:.4}, {:.4})",
        all.mse, all.mae, all.naive_mse, all.naive_mae
    );
    let targets = scores.by_target();
    for (name, means) in targets.iter().take(LISTED) {
        println!(
            "  {name}: mae {:.6}, rmse {:.6} (naive {:.6}, {:.6})",
            means.mae,
            means.mse.sqrt(),
            means.naive_mae,
            means.naive_mse.sqrt()
        );
    }
    if targets.len() > LISTED {
        println!("  … and {} more", targets.len() - LISTED);
    }
    if let Some(pinball) = scores.pinball() {
        let shares: Vec<String> = scores
            .coverage()
            .iter()
            .map(|(q, share)| format!("{:.1} % below q{q}", 100.0 * share))
            .collect();
        println!("  pinball loss {pinball:.4}; {}", shares.join(", "));
    }
    if let Some(nll) = scores.nll() {
        println!("  negative log-likelihood {nll:.4} nats per value");
    }
    if all.mae > all.naive_mae {
        println!(
            "  the naive forecast has the smaller error: more history, another `--lookback` or covariates may help"
        );
    }
}
