//! `densely forecast backtest`: errors of a run from many origins.

use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use densely_data::{Output, Table, write_columns};
use densely_timeseries::forecast::{self, Fitted, Means};
use densely_train::plot::{self, Axes, Series};
use serde_json::{Value, json};

use super::{print_scores, say};
use crate::Common;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely forecast backtest runs/load load.csv --origins 12 --stride 24"
)]
pub(crate) struct Backtest {
    /// Run folder of a fit.
    run: PathBuf,
    /// Table with the columns of the fit.
    table: PathBuf,
    /// Origins to forecast from; the last one is a horizon before the end of the table.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(i64).range(1..=100_000))]
    origins: i64,
    /// Steps from one origin to the next; the horizon when left out.
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..))]
    stride: Option<i64>,
    /// Folder for table and plots; `backtest` in the run folder when left out.
    #[arg(long)]
    out: Option<PathBuf>,
}

pub(super) fn run(arguments: &Backtest, common: &Common) -> Result<()> {
    let fitted = Fitted::open(&arguments.run, common.device.open()?)?;
    let stride = arguments.stride.unwrap_or(fitted.pipeline.horizon);
    let found = fitted.backtest(&Table::open(&arguments.table)?, arguments.origins, stride)?;
    let folder = arguments
        .out
        .clone()
        .unwrap_or_else(|| arguments.run.join("backtest"));
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let origins: Vec<(&str, i64, Means)> = found
        .origins
        .iter()
        .map(|(time, scores)| (time.as_str(), scores.windows, scores.standardised()))
        .collect();
    let steps = found.by_step();
    write_tables(&folder, &origins, &steps)?;
    draw(&folder, &fitted, &origins, &steps)?;
    say(&found.notes, common);
    if common.json {
        println!("{}", summary(&found, &origins, &steps, &folder));
        return Ok(());
    }
    println!(
        "{:<26} {:>8} {:>10} {:>10} {:>10}",
        "origin", "windows", "mae", "rmse", "naive mae"
    );
    for (time, windows, means) in &origins {
        println!(
            "{time:<26} {windows:>8} {:>10.4} {:>10.4} {:>10.4}",
            means.mae,
            means.mse.sqrt(),
            means.naive_mae
        );
    }
    println!(
        "all {} origins, {} windows:",
        origins.len(),
        found.all.windows
    );
    print_scores(&found.all);
    println!(
        "tables and plots by origin and by step in {}",
        folder.display()
    );
    Ok(())
}

fn numbers(means: &Means) -> Value {
    json!({ "mae": means.mae, "mse": means.mse, "naive_mae": means.naive_mae, "naive_mse": means.naive_mse })
}

fn summary(
    found: &forecast::Backtest,
    origins: &[(&str, i64, Means)],
    steps: &[Means],
    folder: &Path,
) -> Value {
    let origins: Vec<Value> = origins
        .iter()
        .map(|(time, windows, means)| json!({ "origin": time, "windows": windows, "standardised": numbers(means) }))
        .collect();
    let mut summary = found.all.json();
    summary["origins"] = json!(origins);
    summary["steps"] = steps.iter().map(numbers).collect();
    summary["folder"] = json!(folder);
    summary["notes"] = json!(found.notes);
    summary
}

fn write_tables(folder: &Path, origins: &[(&str, i64, Means)], steps: &[Means]) -> Result<()> {
    let errors = |means: &[Means]| {
        let column = |name: &str, of: fn(&Means) -> f64| {
            (
                name.to_owned(),
                Output::Numbers(means.iter().map(of).collect()),
            )
        };
        vec![
            column("mae", |m| m.mae),
            column("mse", |m| m.mse),
            column("naive_mae", |m| m.naive_mae),
            column("naive_mse", |m| m.naive_mse),
        ]
    };
    let times = origins
        .iter()
        .map(|(time, ..)| (*time).to_owned())
        .collect();
    let windows = origins
        .iter()
        .map(|(_, windows, _)| *windows as f64)
        .collect();
    let means: Vec<Means> = origins.iter().map(|(.., means)| *means).collect();
    let mut columns = vec![
        ("origin".to_owned(), Output::Texts(times)),
        ("windows".to_owned(), Output::Numbers(windows)),
    ];
    columns.extend(errors(&means));
    write_columns(&folder.join("by_origin.csv"), &columns)?;
    let mut columns = vec![(
        "step".to_owned(),
        Output::Numbers((1..=steps.len()).map(|step| step as f64).collect()),
    )];
    columns.extend(errors(steps));
    write_columns(&folder.join("by_step.csv"), &columns)
}

fn draw(
    folder: &Path,
    fitted: &Fitted,
    origins: &[(&str, i64, Means)],
    steps: &[Means],
) -> Result<()> {
    let lines = |means: &[Means]| {
        let of = |name: &str, of: fn(&Means) -> f64| Series {
            name: name.to_owned(),
            points: means
                .iter()
                .enumerate()
                .map(|(i, means)| ((i + 1) as f64, of(means)))
                .collect(),
        };
        [
            of(&fitted.pipeline.preset, |m| m.mae),
            of("naive", |m| m.naive_mae),
        ]
    };
    let y = "mean absolute error [standard deviations]";
    let means: Vec<Means> = origins.iter().map(|(.., means)| *means).collect();
    let last = origins.len() - 1;
    let x = format!("origin, from {} to {}", origins[0].0, origins[last].0);
    plot::line(
        &folder.join("by_origin.svg"),
        &Axes::new("Error by origin", x, y),
        &lines(&means),
    )?;
    plot::line(
        &folder.join("by_step.svg"),
        &Axes::new("Error by step", "step of the forecast", y),
        &lines(steps),
    )
}
