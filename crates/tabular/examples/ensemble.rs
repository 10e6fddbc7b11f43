//! Ensembles: five runs that differ by their seed, alone and averaged, for an MLP and for TabM, which is an ensemble by itself.
//!
//! Run with `cargo run --example ensemble`. A recipe with five seeds or more prints the scores of its ensembles
//! without being asked.
#![expect(clippy::print_stdout, reason = "an example talks")]

use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, RecordBatch};
use densely_core::tch::{self, Kind, Tensor};
use densely_core::{Error, Result, seeded};
use densely_data::Table;
use densely_tabular::task::Task;
use densely_tabular::{Options, Tabular, ensemble};
use densely_train::metrics;
use serde_json::json;

/// A noisy sum of bumps of three numbers, and the targets without the noise.
fn made_table(rows: i64, seed: i64) -> Result<(Table, Tensor)> {
    let double = (Kind::Double, tch::Device::Cpu);
    let (x, noise) = seeded(seed, || {
        (
            Tensor::randn([rows, 3], double),
            Tensor::randn([rows], double),
        )
    });
    let clean = (&x * 1.5).sin().sum_dim_intlist(1, false, Kind::Double);
    let noisy = &clean + noise;
    let mut columns: Vec<(String, ArrayRef)> = Vec::new();
    for (name, xs) in (0..3)
        .map(|i| (format!("x{i}"), x.select(1, i)))
        .chain([("y".to_owned(), noisy)])
    {
        let values: Vec<f64> = Vec::try_from(xs)?;
        columns.push((name, Arc::new(Float64Array::from(values))));
    }
    let batch = RecordBatch::try_from_iter(columns).map_err(|e| Error::data("", e.to_string()))?;
    Ok((Table::from_batches([batch])?, clean))
}

fn main() -> Result<()> {
    let (table, _) = made_table(1000, 1)?;
    let (unseen, targets) = made_table(2000, 2)?;
    println!(
        "{:<6} {:>22}  {:>8}",
        "model", "one run (worst, best)", "averaged"
    );
    for preset in ["mlp", "tabm"] {
        let mut runs = Vec::new();
        for seed in 0..ensemble::GROUP as u64 {
            let mut options = Options::new("y");
            options.seed = seed;
            options.settings.model = serde_json::from_value(json!({
                "preset": preset, "config": { "n_blocks": 2, "d_block": 32 },
            }))
            .map_err(|e| Error::config("model", e.to_string()))?;
            options.settings.train.epochs = 15;
            options.settings.train.batch_size = 64;
            let predictions = Tabular::fit(&table, &options)?.predict(&unseen)?;
            runs.push(Tensor::from_slice(&predictions.values));
        }
        let mut alone = Vec::new();
        for run in &runs {
            alone.push(metrics::rmse(run, &targets)?);
        }
        let (best, worst) = alone
            .iter()
            .fold((f64::INFINITY, 0.0f64), |(low, high), x| {
                (low.min(*x), high.max(*x))
            });
        let runs: Vec<&Tensor> = runs.iter().collect();
        // One group of five; its first score is the RMSE.
        let averaged = ensemble::scores(Task::Regression, &runs, &targets)?[0][0].1;
        println!(
            "{preset:<6} {:>22}  {averaged:>8.3}",
            format!("{worst:.3}, {best:.3}")
        );
    }
    Ok(())
}
