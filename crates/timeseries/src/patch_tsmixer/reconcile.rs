//! The paper's two online reconciliation heads, which `transformers` left out: they refine a forecast and start by changing nothing.
//!
//! Sums of future patches (H): the features also give the sum of each patch of the future, and the forecast is corrected by those sums. The paper
//! appends them to the features of every patch before the last linear layer; a linear layer of their own is the same map without the
//! repeated columns, and leaves the layer of a saved model as it is. [`hierarchical_loss`] is what the paper minimises then.
//!
//! Channels (CC): a forecast step and its neighbours of all channels, through a gate and a linear layer, are added to the forecast; the last past
//! steps stand before it and zeros behind, as in `granite-tsfm`. Here all of them are on the scaled level.

use densely_core::nn::{Linear, parameter};
use densely_core::{Error, Result, check};
use tch::nn::{Module, Path};
use tch::{Kind, Tensor};

use super::blocks::{Gate, Sizes, gated};
use super::config::PatchTsMixerConfig;

/// A linear layer of zeros.
fn zero_linear(vs: &Path, inputs: i64, outputs: i64) -> Linear {
    let zeros = |size: &[i64]| Tensor::zeros(size, tch::kind::FLOAT_CPU);
    Linear {
        weight: parameter(vs, "weight", &zeros(&[outputs, inputs])),
        bias: Some(parameter(vs, "bias", &zeros(&[outputs]))),
    }
}

/// Sums of the future's patches, and the correction that follows from them.
#[derive(Debug)]
pub(super) struct Hierarchy {
    sums: Linear,
    refine: Linear,
}

impl Hierarchy {
    /// With `inputs` features of a channel.
    pub(super) fn new(vs: &Path, config: &PatchTsMixerConfig, sizes: &Sizes) -> Self {
        let patches = config.prediction_length / config.hierarchy_patch_length;
        let inputs = sizes.patches * sizes.d_model;
        Self {
            sums: sizes.linear(&(vs / "sums"), inputs, patches),
            refine: zero_linear(&(vs / "refine"), patches, config.prediction_length),
        }
    }

    /// Features `[batch, channels, patches · d]` → scaled sums `[batch, channels, future patches]` and correction
    /// `[batch, channels, prediction_length]`.
    pub(super) fn forward(&self, xs: &Tensor) -> (Tensor, Tensor) {
        let sums = self.sums.forward(xs);
        let correction = self.refine.forward(&sums);
        (sums, correction)
    }

    pub(super) fn macs(config: &PatchTsMixerConfig, sizes: &Sizes) -> i64 {
        let patches = config.prediction_length / config.hierarchy_patch_length;
        sizes.channels * patches * (sizes.patches * sizes.d_model + config.prediction_length)
    }
}

/// Each step's correction from its neighbours in all channels.
#[derive(Debug)]
pub(super) struct CrossChannel {
    gate: Option<Gate>,
    out: Linear,
    around: i64,
}

impl CrossChannel {
    /// For `channels` that are forecast.
    pub(super) fn new(vs: &Path, around: i64, channels: i64, sizes: &Sizes) -> Self {
        let width = channels * (2 * around + 1);
        Self {
            gate: Gate::named(&(vs / "fcm_gating_block"), width, sizes),
            out: zero_linear(&(vs / "mlp"), width, channels),
            around,
        }
    }

    /// `forecast [batch, steps, channels]` → the same size; `before [batch, around, channels]` are the last past steps.
    pub(super) fn forward(&self, forecast: &Tensor, before: &Tensor) -> Tensor {
        let after = before.zeros_like();
        let xs = Tensor::cat(&[before, forecast, &after], 1).unfold(1, 2 * self.around + 1, 1); // [batch, steps, channels, window]
        self.out
            .forward(&gated(self.gate.as_ref(), xs.flatten(2, 3)))
            + forecast
    }

    pub(super) fn macs(around: i64, channels: i64, steps: i64, sizes: &Sizes) -> i64 {
        let width = channels * (2 * around + 1);
        steps * width * (i64::from(sizes.gates) * width + channels)
    }
}

/// What the paper minimises with sums of future patches: MSE of the forecast, plus the MSE of the sums, and of the forecast's own sums against
/// them, each over the squared length of a patch.
///
/// # Shapes
/// `forecast`, `target`: `[batch, steps, channels]`; `patch_sums`: `[batch, future patches, channels]`, all in the unit of the series.
/// # Errors
/// [`Error::Shape`] for sizes that do not fit.
pub fn hierarchical_loss(
    forecast: &Tensor,
    patch_sums: &Tensor,
    target: &Tensor,
) -> Result<Tensor> {
    check::shape("target", target, &[None; 3])?;
    let [batch, steps, channels] = target.size()[..] else {
        return Err(Error::config("target", "must have three axes"));
    };
    check::shape("forecast", forecast, &[batch, steps, channels].map(Some))?;
    check::shape(
        "patch_sums",
        patch_sums,
        &[Some(batch), None, Some(channels)],
    )?;
    let patches = patch_sums.size()[1];
    if patches == 0 || steps % patches != 0 {
        return Err(Error::Shape {
            what: "patch_sums".to_owned(),
            expected: format!("a number of patches that divides {steps} steps"),
            got: patches.to_string(),
        });
    }
    let length = steps / patches;
    let summed = |xs: &Tensor| {
        xs.reshape([batch, patches, length, channels])
            .sum_dim_intlist([2].as_slice(), false, None::<Kind>)
    };
    let mse = |a: &Tensor, b: &Tensor| (a - b).square().mean(None::<Kind>);
    let weight = 1.0 / (length as f64).powi(2);
    Ok(mse(forecast, target)
        + mse(patch_sums, &summed(target)) * weight
        + mse(&summed(forecast), patch_sums) * weight)
}
