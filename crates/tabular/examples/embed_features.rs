//! Embeddings of numerical features: the same MLP on raw numbers and behind each embedding, on a function that raw numbers make hard.
//!
//! Run with `cargo run --example embed_features`. In a recipe the embedding stands in `[model.embedding]`, on the
//! command line it is `densely tabular fit --embedding`.
#![expect(clippy::print_stdout, reason = "an example talks")]

use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, RecordBatch};
use densely_core::tch::{self, Kind, Tensor};
use densely_core::{Error, Result, seeded};
use densely_data::Table;
use densely_tabular::fit::Event;
use densely_tabular::{Options, Tabular};
use densely_train::metrics::Metric;
use serde_json::{Value, json};

const ROWS: i64 = 3000;

/// A wave, a step and a slope: smooth networks learn the slope at once, the step late and the wave hardly.
fn made_table() -> Result<Table> {
    let uniform = |seed| -> Result<Vec<f64>> {
        let xs = seeded(seed, || {
            Tensor::rand([ROWS], (Kind::Double, tch::Device::Cpu))
        });
        Ok(Vec::try_from(xs)?)
    };
    let (wave, step, slope) = (uniform(1)?, uniform(2)?, uniform(3)?);
    let target = (0..wave.len())
        .map(|i| (40.0 * wave[i]).sin() + f64::from(step[i] > 0.3) + slope[i])
        .collect();
    let columns = [
        ("wave", wave),
        ("step", step),
        ("slope", slope),
        ("y", target),
    ];
    let columns =
        columns.map(|(name, values)| (name, Arc::new(Float64Array::from(values)) as ArrayRef));
    let batch = RecordBatch::try_from_iter(columns).map_err(|e| Error::data("", e.to_string()))?;
    Table::from_batches([batch])
}

fn main() -> Result<()> {
    let table = made_table()?;
    let embeddings = [
        ("none", Value::Null),
        (
            "linear + ReLU",
            json!({"type": "linear_relu", "d_embedding": 16}),
        ),
        (
            "piecewise linear",
            json!({"type": "piecewise_linear", "n_bins": 32, "d_embedding": 16}),
        ),
        (
            "periodic",
            json!({"type": "periodic", "d_embedding": 16, "n_frequencies": 32, "frequency_init_scale": 1.0, "lite": false}),
        ),
    ];
    println!("{:<18} {:>10}  test RMSE", "embedding", "parameters");
    for (name, embedding) in embeddings {
        let mut options = Options::new("y");
        options.settings.model = serde_json::from_value(json!({
            "preset": "mlp", "config": { "n_blocks": 2, "d_block": 64, "dropout": 0.0 }, "embedding": embedding,
        }))
        .map_err(|e| Error::config("model", e.to_string()))?;
        options.settings.train.epochs = 25;
        options.settings.train.batch_size = 128;
        let mut size = 0;
        let model = Tabular::fit_observed(&table, &options, &mut |event| {
            if let Event::Started { parameters, .. } = event {
                size = *parameters;
            }
        })?;
        for (metric, value) in model.test() {
            if *metric == Metric::Rmse {
                println!("{name:<18} {size:>10}  {value:.3}");
            }
        }
    }
    Ok(())
}
