//! `densely tabular prune`: a run with the members that serve best, and no others.

use std::path::PathBuf;

use densely_core::Result;
use densely_data::Table;
use densely_tabular::fit::Fitted;
use densely_tabular::prune::prune;
use densely_tabular::settings::Averaging;
use densely_tabular::task::scores;
use serde_json::json;

use crate::Common;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely tabular prune runs/houses valid.csv --out runs/houses-small"
)]
pub(crate) struct Prune {
    /// Run folder of a fit.
    run: PathBuf,
    /// Table with the target by which members are chosen: rows that the fit has not trained on.
    table: PathBuf,
    /// Folder for the smaller run.
    #[arg(long)]
    out: PathBuf,
    /// Which members stay: the best one, or the best and whoever improves the average, one after the other.
    #[arg(long, default_value = "greedy", value_parser = ["best", "greedy"])]
    rule: String,
}

pub(crate) fn run(arguments: &Prune, common: &Common) -> Result<()> {
    let fitted = Fitted::open(&arguments.run, common.device.open()?)?;
    let table = Table::open(&arguments.table)?;
    let rule = match arguments.rule.as_str() {
        "best" => Averaging::Best,
        _ => Averaging::Greedy,
    };
    let members = fitted.choose_members(&table, rule)?;
    prune(&arguments.run, &members, &arguments.out)?;
    let small = Fitted::open(&arguments.out, common.device.open()?)?;
    let of = |fitted: &Fitted| -> Result<_> {
        let (predictions, targets) = fitted.predict(&table, true)?;
        let targets = targets.unwrap_or_default();
        Ok(scores(fitted.pipeline.task, &predictions, &targets))
    };
    let (before, after) = (of(&fitted)?, of(&small)?);
    if common.json {
        let object = |scores: &[(densely_train::metrics::Metric, f64)]| {
            let values = scores
                .iter()
                .map(|(metric, value)| (metric.name().to_owned(), json!(value)));
            values.collect::<serde_json::Map<_, _>>()
        };
        let summary = json!({
            "members": members,
            "out": arguments.out,
            "before": object(&before),
            "after": object(&after),
        });
        println!("{summary}");
        return Ok(());
    }
    println!("{} members stay: {members:?}", members.len());
    for ((metric, before), (_, after)) in before.iter().zip(&after) {
        println!(
            "  {:<9} {before:.6} before, {after:.6} after",
            metric.name()
        );
    }
    println!("the smaller run is in {}", arguments.out.display());
    Ok(())
}
