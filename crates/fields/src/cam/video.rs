//! CAM for videos: a scale and a shift per channel and time.

use densely_core::{Result, check, nn};
use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Device, Kind, Tensor};

/// Sizes of the temporal modulation that CAM puts behind each convolution of FFNeRV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TemporalConfig {
    /// Cells along time.
    pub steps: i64,
    /// Channels, each with a scale and a shift of its own.
    pub channels: i64,
}

impl Default for TemporalConfig {
    /// The published setting for representation, which has 96 channels where it is narrowest.
    fn default() -> Self {
        Self {
            steps: 60,
            channels: 96,
        }
    }
}

impl TemporalConfig {
    /// Checks the sizes.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        check::positive("steps", self.steps)?;
        check::positive("channels", self.channels)
    }

    /// Creates the grids under `vs`: `mod_grid.0`, the scale, starts at 1 and `mod_grid.1`, the shift, at 0.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<TemporalModulation> {
        self.validate()?;
        let size = [self.steps, self.channels, 1, 1];
        let cpu = (Kind::Float, Device::Cpu);
        let grids = vs / "mod_grid";
        Ok(TemporalModulation {
            scale: nn::parameter(&grids, "0", &Tensor::ones(size, cpu)),
            shift: nn::parameter(&grids, "1", &Tensor::zeros(size, cpu)),
            config: *self,
        })
    }
}

/// The temporal modulation of one layer: each channel of a frame is normalised over the frame, then scaled and shifted by what lies at its time
/// in two grids, interpolated linearly.
#[derive(Debug)]
pub struct TemporalModulation {
    /// `[steps, channels, 1, 1]`.
    pub scale: Tensor,
    /// `[steps, channels, 1, 1]`.
    pub shift: Tensor,
    config: TemporalConfig,
}

impl TemporalModulation {
    /// Added to the variance.
    const EPS: f64 = 1e-5;
    /// The released code adds this before it rounds down, so that a time that falls on a cell is not counted to the one before.
    const NUDGE: f64 = 1e-6;

    /// Modulated features.
    ///
    /// # Shapes
    /// `xs` `[frames, channels, height, width]`, `times` `[frames]` in 0..1 (others read the nearest end) → as `xs`.
    /// # Errors
    /// [`densely_core::Error::Shape`] when they do not fit; [`densely_core::Error::Torch`].
    pub fn forward(&self, xs: &Tensor, times: &Tensor) -> Result<Tensor> {
        let TemporalConfig { steps, channels } = self.config;
        check::shape("xs", xs, &[None, Some(channels), None, None])?;
        check::shape("times", times, &[Some(xs.size()[0])])?;
        check::kind("times", times, self.scale.kind())?;
        let last = steps - 1;
        let place = (times * last as f64).clamp(0.0, last as f64);
        let left = (&place + Self::NUDGE).floor();
        let share = (place - &left).view([-1, 1, 1, 1]);
        let left = left.to_kind(Kind::Int64);
        let right = (&left + 1).clamp_max(last);
        let at_time = |grid: &Tensor| -> Result<Tensor> {
            let (left, right) = (
                grid.f_index_select(0, &left)?,
                grid.f_index_select(0, &right)?,
            );
            Ok(left * (1.0 - &share) + right * &share)
        };
        let normalised =
            xs.f_group_norm(channels, None::<&Tensor>, None::<&Tensor>, Self::EPS, true)?;
        Ok(normalised * at_time(&self.scale)? + at_time(&self.shift)?)
    }
}
