//! `densely tabular importance`: which columns the predictions depend on.

use std::path::PathBuf;

use densely_core::{Error, Result, fs};
use densely_data::{Dataset, Output, Table, write_columns};
use densely_tabular::fit::Fitted;
use densely_tabular::importance::permutation_importance;
use densely_tabular::settings::metrics_of;
use densely_train::metrics::Metric;
use densely_train::plot::{self, Axes, Dots};
use serde_json::json;
use tch::{Kind, Tensor};

use crate::Common;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: densely tabular importance runs/houses houses_2024.csv")]
pub(crate) struct Importance {
    /// Run folder of a fit.
    run: PathBuf,
    /// Table with the target; best one that the fit has not seen.
    table: PathBuf,
    /// The score that gets worse; the task's first when left out: rmse or accuracy.
    #[arg(long)]
    metric: Option<String>,
    /// How often each column is permuted.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    repeats: u64,
    /// Most rows to use, drawn at random.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(2..))]
    rows: u64,
    /// CSV or Parquet file to write.
    #[arg(long)]
    out: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Importance, common: &Common) -> Result<()> {
    if let Some(out) = &arguments.out {
        fs::refuse_overwriting("out", out, &[&arguments.table])?;
    }
    let fitted = Fitted::open(&arguments.run, common.device.open()?)?;
    let table = Table::open(&arguments.table)?;
    let data = fitted.transform(&table)?;
    let fitting = metrics_of(fitted.pipeline.task);
    let metric: Metric = match &arguments.metric {
        None => fitting[0],
        Some(name) => name.parse()?,
    };
    if !fitting.contains(&metric) {
        let names: Vec<&str> = fitting.iter().map(|metric| metric.name()).collect();
        let reason = format!(
            "`{}` does not fit; take one of: {}",
            metric.name(),
            names.join(", ")
        );
        return Err(Error::config("--metric", reason));
    }
    let seed = common.seed.unwrap_or(0);
    let data = sample(data, arguments.rows, seed);
    let found = permutation_importance(&fitted, &data, metric, arguments.repeats, seed)?;

    let plots = arguments.run.join("plots");
    std::fs::create_dir_all(&plots).map_err(Error::io(&plots))?;
    let picture = plots.join("importance.svg");
    let shown = &found[..found.len().min(40)];
    let labels: Vec<String> = shown.iter().map(|one| one.column.clone()).collect();
    let values = shown.iter().map(|one| (one.mean, one.sd)).collect();
    let axis = format!(
        "by how much {} gets worse [{}]",
        metric.name(),
        metric.unit()
    );
    let title = "Importance of columns, permuted one at a time";
    let dots = Dots {
        name: format!("mean and spread of {} repeats", arguments.repeats),
        values,
    };
    plot::dots(&picture, &Axes::new(title, axis, ""), &labels, &[dots])?;
    if let Some(out) = &arguments.out {
        let columns = [
            (
                "column",
                Output::Texts(found.iter().map(|one| one.column.clone()).collect()),
            ),
            (
                "mean",
                Output::Numbers(found.iter().map(|one| one.mean).collect()),
            ),
            (
                "sd",
                Output::Numbers(found.iter().map(|one| one.sd).collect()),
            ),
        ];
        write_columns(
            out,
            &columns.map(|(name, values)| (name.to_owned(), values)),
        )?;
    }
    if common.json {
        let summary = json!({
            "metric": metric.name(),
            "rows": data.len(),
            "columns": found,
            "plot": picture,
        });
        println!("{summary}");
        return Ok(());
    }
    println!(
        "by how much {} gets worse on {} rows when a column is permuted:",
        metric.name(),
        data.len()
    );
    let width = found
        .iter()
        .map(|one| one.column.chars().count())
        .max()
        .unwrap_or(0);
    for one in &found {
        println!("  {:<width$}  {:+.5} ± {:.5}", one.column, one.mean, one.sd);
    }
    println!("picture in {}", picture.display());
    Ok(())
}

/// At most `rows` rows, drawn at random.
fn sample(data: Dataset, rows: u64, seed: u64) -> Dataset {
    let all = data.len() as i64;
    if all <= rows as i64 {
        return data;
    }
    let order = densely_core::seeded(seed as i64, || {
        Tensor::randperm(all, (Kind::Int64, data.device()))
    });
    let chosen = order.narrow(0, 0, rows as i64);
    let pick = |xs: &Option<Tensor>| xs.as_ref().map(|xs| xs.index_select(0, &chosen));
    Dataset {
        x_num: pick(&data.x_num),
        x_cat: pick(&data.x_cat),
        y: data
            .y
            .as_ref()
            .map(|y| y.index_select(0, &chosen.to_device(y.device()))),
        weight: None,
    }
}
