//! Any forecaster behind one door, with as many forecasts per step as there are quantiles.

use densely_core::registry::parse_config;
use densely_core::{Result, tch};
use serde_json::Value;
use tch::nn::Path;
use tch::{Kind, Tensor};

use super::windows::Batch;
use crate::fit::{self, Forecaster};
use crate::tsmixer_ext::{Inputs, TsMixerExt, TsMixerExtConfig};

/// A network that forecasts windows.
#[derive(Debug)]
pub struct Network {
    body: Body,
    outputs: i64,
}

#[derive(Debug)]
enum Body {
    /// From the past alone.
    Plain(Box<dyn Forecaster>),
    /// With covariates.
    Ext(Box<TsMixerExt>),
}

impl Network {
    /// Builds `preset` from its whole config, whose head gives `outputs` values per step and channel.
    ///
    /// # Errors
    /// [`Error::Config`](densely_core::Error::Config) naming the field that is out of range.
    pub fn build(preset: &str, config: &Value, outputs: i64, vs: &Path) -> Result<Self> {
        let body = if preset == "tsmixer-ext" {
            Body::Ext(Box::new(
                parse_config::<TsMixerExtConfig>(config)?.build(vs)?,
            ))
        } else {
            Body::Plain(fit::build(preset, config, vs)?)
        };
        Ok(Self { body, outputs })
    }

    /// Forecasts on the standardised scale, `[batch, horizon, outputs, channels]`; in evaluation the outputs ascend, since quantiles do.
    ///
    /// # Errors
    /// [`Error::Shape`](densely_core::Error::Shape) for windows of another size than the model's.
    pub fn forecast(&self, batch: &Batch, train: bool) -> Result<Tensor> {
        let ys = match &self.body {
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
        let ys = ys.reshape([size[0], size[1] / self.outputs, self.outputs, size[2]]);
        Ok(if train || self.outputs == 1 {
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
