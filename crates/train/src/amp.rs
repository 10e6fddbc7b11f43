//! Loss scaling for training in half precision, whose gradients underflow below 6e-8. bf16 needs none.

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::optim::Optimizer;

/// `torch.amp.GradScaler` with its defaults: the loss is multiplied by a scale, gradients are divided by it, and a
/// step with an infinite gradient is skipped and halves the scale. 2000 steps without one double it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GradScaler {
    scale: f32,
    good_steps: u32,
    growth_interval: u32,
}

impl Default for GradScaler {
    fn default() -> Self {
        Self {
            scale: 65536.0,
            good_steps: 0,
            growth_interval: 2000,
        }
    }
}

impl GradScaler {
    /// A scaler that doubles after so many good steps instead of 2000.
    pub fn with_growth_interval(steps: u32) -> Self {
        Self {
            growth_interval: steps,
            ..Self::default()
        }
    }

    /// What the loss is multiplied by.
    pub const fn scale(&self) -> f32 {
        self.scale
    }

    /// The loss to call `backward` on.
    pub fn scale_loss(&self, loss: &Tensor) -> Tensor {
        loss * f64::from(self.scale)
    }

    /// Divides the gradients by the scale and adapts it. `false` when one was not finite: then the step must be
    /// skipped. Waits for the device.
    ///
    /// # Errors
    /// [`Error::Torch`]; [`Error::Diverged`] at `step` when the scale has shrunk to nothing.
    pub fn unscale(&mut self, optimizer: &mut Optimizer, step: u64) -> Result<bool> {
        let finite = optimizer.unscale(1.0 / f64::from(self.scale))?;
        if finite {
            self.good_steps += 1;
            if self.good_steps == self.growth_interval {
                let grown = self.scale * 2.0;
                self.scale = if grown.is_finite() { grown } else { self.scale };
                self.good_steps = 0;
            }
        } else {
            self.scale *= 0.5;
            self.good_steps = 0;
            if self.scale < f32::MIN_POSITIVE {
                return Err(Error::Diverged {
                    step,
                    loss: f64::INFINITY,
                });
            }
        }
        Ok(finite)
    }
}
