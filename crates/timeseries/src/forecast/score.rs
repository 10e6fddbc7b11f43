//! Errors of forecasts, summed window by window in f64.

use densely_core::{Error, Result};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::fitted::Pipeline;
use super::network::pinball;
use super::windows::Batch;
use crate::linear::seasonal_naive;

/// Sums over windows, by step and channel.
#[derive(Debug)]
pub struct Scores {
    targets: Vec<String>,
    quantiles: Vec<f64>,
    season: i64,
    /// Which of the outputs is the point forecast.
    point: i64,
    /// Windows so far.
    pub windows: i64,
    /// Absolute and squared errors, of the model and of the naive forecast; `[horizon, channels]` each, in the targets' units.
    raw: [Tensor; 4],
    /// The same on the standardised scale.
    scaled: [Tensor; 4],
    /// Targets at or below each quantile's forecast.
    below: Vec<f64>,
    pinball: f64,
    /// Of a distribution, the negative log-likelihood.
    nll: Option<f64>,
}

/// Means over windows and steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Means {
    /// Mean absolute error.
    pub mae: f64,
    /// Mean squared error.
    pub mse: f64,
    /// Mean absolute error of the last season again.
    pub naive_mae: f64,
    /// Mean squared error of the last season again.
    pub naive_mse: f64,
}

impl Scores {
    pub(super) fn new(pipeline: &Pipeline) -> Self {
        let targets = &pipeline.data.target;
        let size = [pipeline.horizon, targets.len() as i64];
        let zeros = || Tensor::zeros(size, (Kind::Double, Device::Cpu));
        Self {
            targets: targets.clone(),
            quantiles: pipeline.quantiles.clone(),
            season: pipeline.season,
            point: pipeline.point(),
            windows: 0,
            raw: std::array::from_fn(|_| zeros()),
            scaled: std::array::from_fn(|_| zeros()),
            below: vec![0.0; pipeline.quantiles.len()],
            pinball: 0.0,
            nll: pipeline.distribution.map(|_| 0.0),
        }
    }

    /// Adds the windows of `other`, which are of the same pipeline.
    pub(super) fn join(&mut self, other: &Self) {
        for (own, others) in [
            (&mut self.raw, &other.raw),
            (&mut self.scaled, &other.scaled),
        ] {
            own.iter_mut()
                .zip(others)
                .for_each(|(own, other)| *own += other);
        }
        let below = self.below.iter_mut().zip(&other.below);
        below.for_each(|(own, other)| *own += other);
        self.pinball += other.pinball;
        self.nll = self.nll.zip(other.nll).map(|(own, other)| own + other);
        self.windows += other.windows;
    }

    /// Adds the windows of a batch with their forecasts `[batch, horizon, outputs, channels]` and their negative log-likelihood.
    pub(super) fn add(&mut self, batch: &Batch, ys: &Tensor, nll: Option<f64>) -> Result<()> {
        let horizon = batch.target.size()[1];
        let target = batch.target.to_kind(Kind::Double);
        let point = ys.select(2, self.point).to_kind(Kind::Double);
        let naive = seasonal_naive(&batch.past, self.season, horizon)?.to_kind(Kind::Double);
        let (error, naive) = ((point - &target).abs(), (naive - &target).abs());
        for (at, error) in [&error, &error.square(), &naive, &naive.square()]
            .into_iter()
            .enumerate()
        {
            let unit = if at % 2 == 0 {
                batch.std.shallow_clone()
            } else {
                batch.std.square()
            };
            let sum = |xs: &Tensor| {
                xs.sum_dim_intlist([0].as_slice(), false, None::<Kind>)
                    .to_device(Device::Cpu)
            };
            self.scaled[at] += sum(error);
            self.raw[at] += sum(&(error * unit));
        }
        let count = target.size()[0];
        if !self.quantiles.is_empty() {
            let ys = ys
                .narrow(2, 0, self.quantiles.len() as i64)
                .to_kind(Kind::Double);
            self.pinball += pinball(&ys, &target, &self.quantiles).double_value(&[]) * count as f64;
            for (at, below) in self.below.iter_mut().enumerate() {
                *below += target
                    .le_tensor(&ys.select(2, at as i64))
                    .sum(Kind::Double)
                    .double_value(&[]);
            }
        }
        self.nll = self.nll.zip(nll).map(|(sum, nll)| sum + nll * count as f64);
        self.windows += count;
        Ok(())
    }

    fn mean(&self, sums: &[Tensor; 4], of: impl Fn(&Tensor) -> Tensor) -> Means {
        let mean =
            |at: usize| of(&sums[at]).mean(Kind::Double).double_value(&[]) / self.windows as f64;
        Means {
            mae: mean(0),
            mse: mean(1),
            naive_mae: mean(2),
            naive_mse: mean(3),
        }
    }

    /// Over all targets, on the standardised scale.
    pub fn standardised(&self) -> Means {
        self.mean(&self.scaled, Tensor::shallow_clone)
    }

    /// Of each target, in its units.
    pub fn by_target(&self) -> Vec<(String, Means)> {
        let of = |(at, name): (usize, &String)| {
            (
                name.clone(),
                self.mean(&self.raw, |xs| xs.select(1, at as i64)),
            )
        };
        self.targets.iter().enumerate().map(of).collect()
    }

    /// Of each step, over all targets, on the standardised scale.
    pub fn by_step(&self) -> Vec<Means> {
        let steps = self.scaled[0].size()[0];
        (0..steps)
            .map(|step| self.mean(&self.scaled, |xs| xs.select(0, step)))
            .collect()
    }

    /// Each quantile with the share of targets at or below its forecast; a good one is its share.
    pub fn coverage(&self) -> Vec<(f64, f64)> {
        let values = self.windows as f64 * self.scaled[0].numel() as f64;
        self.quantiles
            .iter()
            .zip(&self.below)
            .map(|(q, below)| (*q, below / values))
            .collect()
    }

    /// Mean pinball loss on the standardised scale, where quantiles are forecast.
    pub fn pinball(&self) -> Option<f64> {
        (!self.quantiles.is_empty()).then(|| self.pinball / self.windows as f64)
    }

    /// Negative log-likelihood of a distribution, nats per value on the standardised scale; of counts as they are.
    pub fn nll(&self) -> Option<f64> {
        Some(self.nll? / self.windows as f64)
    }

    /// What a fit chooses its epoch by: the likelihood, the pinball loss, else the mean squared or absolute error.
    pub(super) fn score(&self, mae: bool) -> f64 {
        let means = self.standardised();
        self.nll()
            .or_else(|| self.pinball())
            .unwrap_or(if mae { means.mae } else { means.mse })
    }

    /// # Errors
    /// [`Error::Config`] when there is no window.
    pub(super) fn checked(self, what: &str) -> Result<Self> {
        if self.windows == 0 {
            return Err(Error::config(what, "there is no window to evaluate"));
        }
        Ok(self)
    }

    /// For machines.
    pub fn json(&self) -> Value {
        let numbers = |means: &Means| {
            json!({
                "mae": means.mae, "rmse": means.mse.sqrt(), "naive_mae": means.naive_mae, "naive_rmse": means.naive_mse.sqrt(),
            })
        };
        let all = self.standardised();
        let targets: serde_json::Map<String, Value> = self
            .by_target()
            .iter()
            .map(|(name, means)| (name.clone(), numbers(means)))
            .collect();
        let coverage: Vec<Value> = self
            .coverage()
            .iter()
            .map(|(q, share)| json!({ "quantile": q, "below": share }))
            .collect();
        json!({
            "windows": self.windows,
            "standardised": { "mse": all.mse, "mae": all.mae, "naive_mse": all.naive_mse, "naive_mae": all.naive_mae },
            "targets": targets,
            "pinball": self.pinball(),
            "nll": self.nll(),
            "coverage": coverage,
        })
    }
}
