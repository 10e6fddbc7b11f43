//! The work that is measured, shared by the criterion benchmarks and by the comparison with Python.
//!
//! Run with `cargo xtask bench`; the same work in Python is in `benches/peers`.

mod fields;
mod interp;
mod lm;
mod recsys;
mod tabular;
mod timeseries;
mod vision;

use densely_core::{Error, Result, nn};
use densely_torch_ext::Autocast;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

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

/// How a workload is known.
#[derive(Debug, Clone, Copy)]
pub struct About {
    /// Name in tables and on the command line.
    pub name: &'static str,
    /// Preset.
    pub model: &'static str,
    /// The script in `peers` that does the same work.
    pub peer: &'static str,
    /// The phases and batch sizes that are measured.
    pub cases: &'static [(Phase, i64)],
}

/// A model of a size, as both sides measure it.
pub trait Workload: std::fmt::Debug + Sync {
    /// How it is known.
    fn about(&self) -> About;
    /// Builds the model and `rows` rows on `device`, all from one seed; `bf16` runs under autocast.
    ///
    /// # Errors
    /// Those of the model's config.
    fn build(&self, rows: i64, device: Device, bf16: bool) -> Result<Box<dyn Work>>;
    /// The matrix products that a case must do, as `[batches, m, k, n]` each.
    fn products(&self, phase: Phase, rows: i64) -> Vec<[i64; 4]>;
    /// How often a case does all of its products.
    fn passes(&self) -> f64 {
        1.0
    }
    /// The convolutions of a forward pass.
    fn convolutions(&self, _rows: i64) -> Vec<Convolution> {
        Vec::new()
    }
}

/// Convolutions of one size over `rows` square maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Convolution {
    /// Maps.
    pub rows: i64,
    /// Side of a map.
    pub side: i64,
    /// Channels that come.
    pub inputs: i64,
    /// Channels that go.
    pub outputs: i64,
    /// Side of the window.
    pub window: i64,
    /// Pixels from window to window.
    pub stride: i64,
    /// How many of them there are.
    pub times: i64,
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
    /// The loss on all rows; dropout in training only.
    ///
    /// # Errors
    /// Those of the model.
    fn loss(&self, train: bool) -> Result<Tensor>;
    /// The parameters.
    fn store(&self) -> &VarStore;

    /// Loss and norm of all gradients without dropout, for a check that both sides compute the same function.
    ///
    /// # Errors
    /// Those of the model and of libtorch.
    fn loss_and_gradient_norm(&self) -> Result<(f64, f64)> {
        let loss = self.loss(false)?;
        loss.f_backward()?;
        let mut squares = 0.0;
        for mut param in self.store().trainable_variables() {
            let grad = param.grad();
            if grad.defined() {
                let grad = if grad.is_sparse() {
                    grad.f_coalesce()?.f_values()?
                } else {
                    grad
                };
                squares += grad.square().sum(Kind::Double).double_value(&[]);
            }
            param.zero_grad();
        }
        Ok((loss.double_value(&[]), squares.sqrt()))
    }

    /// Bytes of all trainable parameters.
    fn parameter_bytes(&self) -> u64 {
        4 * nn::parameter_count(self.store())
    }
}

/// Autocast to bf16 where it is asked for.
fn autocast(bf16: bool, device: Device) -> Result<Option<Autocast>> {
    let on = || Autocast::new(device, Kind::BFloat16).map_err(Error::torch);
    bf16.then(on).transpose()
}

/// Everything that is measured.
pub fn workloads() -> impl Iterator<Item = &'static dyn Workload> {
    let tabular = tabular::WORKLOADS.iter().map(|w| w as &dyn Workload);
    let timeseries = timeseries::WORKLOADS.iter().map(|w| w as &dyn Workload);
    let recsys = recsys::WORKLOADS.iter().map(|w| w as &dyn Workload);
    let vision = vision::WORKLOADS.iter().map(|w| w as &dyn Workload);
    let fields = fields::WORKLOADS.iter().map(|w| w as &dyn Workload);
    let rendering = std::iter::once(&fields::RENDERING as &dyn Workload);
    let fields = fields.chain(rendering);
    let lm = lm::WORKLOADS.iter().map(|w| w as &dyn Workload);
    let interp = interp::WORKLOADS.iter().map(|w| w as &dyn Workload);
    tabular
        .chain(timeseries)
        .chain(recsys)
        .chain(vision)
        .chain(fields)
        .chain(lm)
        .chain(interp)
}
