//! Any forecaster behind one door, with as many forecasts per step as there are quantiles.

use densely_core::registry::parse_config;
use densely_core::{Error, Result, tch};
use serde_json::Value;
use tch::nn::Path;
use tch::{Kind, Tensor};

use super::law::Law;
use super::windows::Batch;
use crate::distributions::Distribution;
use crate::fit::{self, Forecaster};
use crate::patch_tsmixer::{PatchTsMixer, PatchTsMixerConfig};
use crate::tsmixer_ext::{Inputs, TsMixerExt, TsMixerExtConfig};

/// A network that forecasts windows.
#[derive(Debug)]
pub struct Network {
    body: Body,
    quantiles: Vec<f64>,
}

#[derive(Debug)]
enum Body {
    /// From the past alone.
    Plain(Box<dyn Forecaster>),
    /// With covariates.
    Ext(Box<TsMixerExt>),
    /// Parameters of a distribution.
    Law(Box<PatchTsMixer>, Distribution),
}

impl Network {
    /// Builds `preset` from its whole config, whose head gives the parameters of a distribution, the quantiles, or with neither a value, for
    /// each step and channel.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(
        preset: &str,
        config: &Value,
        distribution: Option<Distribution>,
        quantiles: &[f64],
        vs: &Path,
    ) -> Result<Self> {
        let body = if let Some(distribution) = distribution {
            let config = parse_config::<PatchTsMixerConfig>(config)?;
            Body::Law(Box::new(config.build(vs)?), distribution)
        } else if preset == "tsmixer-ext" {
            Body::Ext(Box::new(
                parse_config::<TsMixerExtConfig>(config)?.build(vs)?,
            ))
        } else {
            Body::Plain(fit::build(preset, config, vs)?)
        };
        Ok(Self {
            body,
            quantiles: quantiles.to_vec(),
        })
    }

    /// What the distribution head says; `None` of a network without one.
    pub(super) fn law(&self, batch: &Batch, train: bool) -> Result<Option<Law>> {
        let Body::Law(model, distribution) = &self.body else {
            return Ok(None);
        };
        let outputs = model.forward(&distribution.past(batch), None, None, train)?;
        Law::new(*distribution, outputs).map(Some)
    }

    /// Forecasts on the standardised scale, `[batch, horizon, outputs, channels]`: the quantiles, and behind them the mean of a distribution;
    /// with neither a value. In evaluation quantiles ascend.
    ///
    /// # Errors
    /// [`Error::Shape`] for windows of another size than the model's.
    pub fn forecast(&self, batch: &Batch, train: bool) -> Result<Tensor> {
        let ys = match &self.body {
            Body::Law(..) => {
                let law = self.law(batch, train)?;
                return law
                    .map(|law| law.outputs(&self.quantiles, batch))
                    .ok_or_else(|| Error::config("distribution", "is not of the network"));
            }
            Body::Plain(model) => model.forecast(&batch.past, train)?,
            Body::Ext(model) => {
                let past = match &batch.covariates {
                    Some(covariates) => Tensor::cat(&[&batch.past, covariates], 2),
                    None => batch.past.shallow_clone(),
                };
                let inputs = Inputs {
                    past: &past,
                    past_known: batch.past_known.as_ref(),
                    future: batch.future.as_ref(),
                    statics: batch.statics.as_ref(),
                };
                model.forward(inputs, train)?
            }
        };
        let size = ys.size(); // [batch, horizon · outputs, channels]
        let outputs = self.quantiles.len().max(1) as i64;
        let ys = ys.reshape([size[0], size[1] / outputs, outputs, size[2]]);
        Ok(if train || outputs == 1 {
            ys
        } else {
            ys.sort(2, false).0
        })
    }
}

/// Pinball loss of quantiles, the mean over all values; its minimum is where a share `q` of the targets lies below the forecast of `q`.
///
/// `ys [batch, horizon, quantiles, channels]`, `targets [batch, horizon, channels]`.
pub fn pinball(ys: &Tensor, targets: &Tensor, quantiles: &[f64]) -> Tensor {
    let qs = Tensor::from_slice(quantiles)
        .to_kind(ys.kind())
        .to_device(ys.device())
        .view([1, 1, -1, 1]);
    let above = targets.unsqueeze(2) - ys;
    (&above * &qs)
        .maximum(&(&above * (qs - 1.0)))
        .mean(None::<Kind>)
}
