//! What a distribution head says of the steps to come.

use densely_core::{Error, Result, Tensors};
use densely_data::table::Table;
use tch::{Kind, Tensor};

use super::panel::Panel;
use super::windows::Batch;
use crate::distributions::Distribution;

/// The distribution of every step and channel of a batch.
#[derive(Debug)]
pub(super) struct Law {
    distribution: Distribution,
    /// `[batch, horizon, channels]` each.
    parameters: Vec<Tensor>,
    /// Level and spread of each window, `[batch, 1, channels]` each.
    affine: Option<(Tensor, Tensor)>,
}

impl Distribution {
    /// Counts are not standardised: the distribution is one of whole numbers.
    const fn of_counts(self) -> bool {
        matches!(self, Self::NegativeBinomial)
    }

    /// The past as the network with this head sees it: standardised, or the counts themselves.
    pub(super) fn past(self, batch: &Batch) -> Tensor {
        if self.of_counts() {
            in_units(&batch.past, batch).to_kind(Kind::Float)
        } else {
            batch.past.shallow_clone()
        }
    }

    /// Refuses targets that the distribution cannot have.
    pub(super) fn check(self, panel: &Panel, table: &Table) -> Result<()> {
        if !self.of_counts() {
            return Ok(());
        }
        let width = panel.channels();
        for (number, series) in panel.series.iter().enumerate() {
            for row in 0..series.observed {
                for (channel, name) in panel.settings.target.iter().enumerate() {
                    let value = panel.values[(series.start + row) * width + channel];
                    if value < 0.0 || value.fract().abs() > 0.0 {
                        let reason = format!(
                            "{}{value} at {} is no count, and `negative_binomial` is for counts; take `--distribution normal` or `student_t`, or `--gaps last` where the value was filled in",
                            series.prefix(),
                            panel.time(number, row)
                        );
                        return Err(Error::column(table.path(), name, reason));
                    }
                }
            }
        }
        Ok(())
    }
}

impl Law {
    /// From the outputs of a PatchTSMixer with a distribution head.
    pub(super) fn new(distribution: Distribution, mut outputs: Tensors) -> Result<Self> {
        let mut take = |name: &str| outputs.remove(name);
        let affine = take("loc").zip(take("scale"));
        let parameters = distribution.parameters().iter().map(|name| {
            let name = format!("{}.{name}", distribution.name());
            take(&name).ok_or_else(|| Error::config("distribution_output", "is not of the network"))
        });
        Ok(Self {
            distribution,
            parameters: parameters.collect::<Result<_>>()?,
            affine,
        })
    }

    /// Negative log-likelihood of what came: nats per value, on the standardised scale; of counts as they are.
    pub(super) fn nll(&self, batch: &Batch) -> Tensor {
        // In double precision: the logarithms of factorials of large counts differ in their last digits only.
        let double = |xs: &Tensor| xs.to_kind(Kind::Double);
        let parameters: Vec<Tensor> = self.parameters.iter().map(double).collect();
        let affine = self.affine.as_ref();
        let affine = affine.map(|(level, spread)| (double(level), double(spread)));
        let came = if self.distribution.of_counts() {
            in_units(&batch.target, batch).round()
        } else {
            double(&batch.target)
        };
        let affine = affine.as_ref().map(|(level, spread)| (level, spread));
        -self
            .distribution
            .log_prob(&parameters, affine, &came)
            .mean(None::<Kind>)
    }

    /// The quantiles and behind them the mean on the standardised scale, `[batch, horizon, quantiles + 1, channels]`.
    pub(super) fn outputs(&self, quantiles: &[f64], batch: &Batch) -> Tensor {
        let affine = self.affine.as_ref().map(|(level, spread)| (level, spread));
        let of = |q: &f64| self.distribution.quantile(&self.parameters, affine, *q);
        let mut outputs: Vec<Tensor> = quantiles.iter().map(of).collect();
        let mean = self.distribution.mean(&self.parameters, affine);
        outputs.push(mean.to_kind(Kind::Double));
        if self.distribution.of_counts() {
            for output in &mut outputs {
                *output = (&*output - &batch.mean) / &batch.std;
            }
        }
        Tensor::stack(&outputs, 2).to_kind(Kind::Float)
    }
}

/// Standardised values in the units of the table, f64.
fn in_units(xs: &Tensor, batch: &Batch) -> Tensor {
    xs.to_kind(Kind::Double) * &batch.std + &batch.mean
}
