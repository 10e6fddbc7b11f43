//! The work that is measured, shared by the criterion benchmarks and by the comparison with Python.
//!
//! Run with `cargo xtask bench`; the same work in Python is in `benches/peers`.

mod tabular;
mod timeseries;

use densely_core::{Error, Result};
use tch::{Device, Tensor};

/// What is done with the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A training step: forward with dropout, loss, backward, optimiser.
    Train,
    /// Predictions.
    Infer,
}

impl std::str::FromStr for Phase {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "train" => Ok(Self::Train),
            "infer" => Ok(Self::Infer),
            other => Err(Error::config(
                "phase",
                format!("`train` or `infer`, not `{other}`"),
            )),
        }
    }
}

/// A model of a size, as both sides measure it.
pub trait Workload: std::fmt::Debug + Sync {
    /// Name in tables and on the command line.
    fn name(&self) -> &'static str;
    /// Preset.
    fn model(&self) -> &'static str;
    /// The script in `peers` that does the same work.
    fn peer(&self) -> &'static str;
    /// The phases and batch sizes that are measured.
    fn cases(&self) -> &'static [(Phase, i64)];
    /// Builds the model and `rows` rows on `device`, all from one seed; `bf16` runs under autocast.
    ///
    /// # Errors
    /// Those of the model's config.
    fn build(&self, rows: i64, device: Device, bf16: bool) -> Result<Box<dyn Work>>;
    /// The matrix products that a case must do, as `[batches, m, k, n]` each.
    fn products(&self, phase: Phase, rows: i64) -> Vec<[i64; 4]>;
}

/// A model with its optimiser and rows to work on.
pub trait Work: std::fmt::Debug {
    /// One training step.
    ///
    /// # Errors
    /// Those of the model and of libtorch.
    fn train_step(&mut self) -> Result<()>;
    /// Predictions of all rows, flat, as both sides compare them.
    ///
    /// # Errors
    /// Those of the model.
    fn infer(&self) -> Result<Tensor>;
    /// Loss and norm of all gradients without dropout, for a check that both sides compute the same function.
    ///
    /// # Errors
    /// Those of the model and of libtorch.
    fn loss_and_gradient_norm(&mut self) -> Result<(f64, f64)>;
    /// Bytes of all trainable parameters.
    fn parameter_bytes(&self) -> u64;
}

/// Everything that is measured.
pub fn workloads() -> impl Iterator<Item = &'static dyn Workload> {
    let tabular = tabular::WORKLOADS.iter().map(|w| w as &dyn Workload);
    tabular.chain(timeseries::WORKLOADS.iter().map(|w| w as &dyn Workload))
}
