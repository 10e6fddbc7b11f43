//! Trains TabM and a plain MLP on a made table and compares them: the whole loop in forty lines, with nothing hidden.
//!
//! Run with `cargo run --example train_tabm`. For tables of your own see `densely tabular fit`.
#![expect(clippy::print_stdout, reason = "an example talks")]

use densely_core::{Device, Result, nn, seeded, tch};
use densely_tabular::models::ModelConfig;
use densely_tabular::task::{Task, members_loss};
use densely_train::optim::{AdamWConfig, OptimConfig};
use densely_train::{metrics, step_seed};
use serde_json::json;
use tch::{Tensor, nn::VarStore};

const ROWS: i64 = 1500;
const BATCH: i64 = 100;
const SEED: u64 = 0;

/// A bumpy function of six numbers, with noise: easy to fit badly.
fn made_table() -> (Tensor, Tensor) {
    seeded(1, || {
        let x = Tensor::randn([ROWS, 6], tch::kind::FLOAT_CPU);
        let column = |i: i64| x.select(1, i);
        let y =
            (column(0) * 2.0).sin() + column(1) * column(2) + column(3).abs() - column(4).sign();
        let noise = Tensor::randn([ROWS], tch::kind::FLOAT_CPU) * 0.3;
        (x, y + noise)
    })
}

/// Trains `preset` on the first two thirds and returns the test RMSE of the averaged members, and the parameters.
fn train(preset: &str, device: tch::Device) -> Result<(f64, u64)> {
    let (x, y) = made_table();
    let (x, y) = (x.to_device(device), y.to_device(device));
    let rows = ROWS * 2 / 3;
    let config = json!({
        "n_num_features": 6, "cat_cardinalities": [], "d_out": 1, "n_blocks": 2, "d_block": 64,
    });
    let vs = VarStore::new(device);
    let config = ModelConfig::of(preset, &config)?;
    let model = seeded(SEED as i64, || config.build(&vs.root()))?;
    let adamw = AdamWConfig {
        lr: 2e-3,
        weight_decay: 3e-4,
        ..AdamWConfig::default()
    };
    let mut optimizer = OptimConfig::AdamW(adamw).build(&vs, &[])?;

    for step in 0..400u64 {
        let start = (step as i64 * BATCH) % rows;
        let (x, y) = (x.narrow(0, start, BATCH), y.narrow(0, start, BATCH));
        // Dropout is a function of seed and step: a run that is stopped and resumed draws the same.
        let ys = seeded(step_seed(SEED, step), || {
            model.forward_members(Some(&x), None, true)
        })?;
        let loss = members_loss(&ys, &y, None, Task::Regression);
        optimizer.zero_grad()?;
        loss.f_backward()?;
        let _norm = optimizer.clip_grad_norm(1.0)?;
        optimizer.step()?;
    }
    let _no_grad = tch::no_grad_guard();
    let (x, y) = (
        x.narrow(0, rows, ROWS - rows),
        y.narrow(0, rows, ROWS - rows),
    );
    let ys = model.forward_members(Some(&x), None, false)?; // [rows, members, 1]
    let averaged = ys.squeeze_dim(2).mean_dim(1, false, tch::Kind::Float);
    Ok((metrics::rmse(&averaged, &y)?, nn::parameter_count(&vs)))
}

fn main() -> Result<()> {
    let device = Device::Auto.open()?;
    println!(
        "{:<10} {:>10}  test RMSE (noise alone: 0.30)",
        "model", "parameters"
    );
    for preset in ["mlp", "tabm", "tabm-mini"] {
        let (rmse, parameters) = train(preset, device)?;
        println!("{preset:<10} {parameters:>10}  {rmse:.3}");
    }
    Ok(())
}
