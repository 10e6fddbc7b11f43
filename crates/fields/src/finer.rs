//! FINER: sine networks whose frequency grows with the magnitude of what goes in, so that the first layer's bias chooses the band.
//!
//! Paper: Liu, Zhu, Zhang, Fu, Deng, Ma, Guo, Cao 2024, "FINER: Flexible spectral-bias tuning in Implicit NEural Representation by Variable-periodic
//! Activation Functions", arXiv 2312.02434. Follows gmum/FreSh, whose names it has.
//!
//! ```text
//! x' = sin(ω (|z| + 1) z)  of  z = W x + b;   gradients take |z| + 1 for a constant;   then Linear
//! W ~ U(±1/D), U(±√(6/in)/ω);   first b ~ U(±k) where k is given, else as every other U(±1/√in)
//! ```
//!
//! | preset | sizes | parameters | MACs per point |
//! | --- | --- | ---: | ---: |
//! | `finer` | 2 → 256, 3 × 256, 3 values | 198,915 | 197,888 |

use densely_core::nn::{self, Linear};
use densely_core::{Error, Model, Result, Tensors, check};
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::Path;

use crate::cam::{CamConfig, ModulatedLinear, check_cam, check_coords, named};
use crate::siren::{Sine, SineLayer, check_sizes, redraw, sine_macs, sine_network, sine_weights};

/// Sizes of a FINER. Defaults are those of `finer`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinerConfig {
    /// Coordinates of a point, D.
    pub inputs: i64,
    /// Hidden width.
    pub hidden: i64,
    /// Sine layers after the first.
    pub layers: i64,
    /// Values of a point, K.
    pub outputs: i64,
    /// ω of the first layer.
    pub first_omega: f64,
    /// ω of the other layers.
    pub omega: f64,
    /// Largest magnitude k of the first layer's bias at the start; `None` draws it as every other. `FreSh` searches 0 to 3.
    pub first_bias: Option<f64>,
    /// The grid of each sine layer.
    pub cam: Option<CamConfig>,
}

impl Default for FinerConfig {
    fn default() -> Self {
        Self::finer()
    }
}

impl FinerConfig {
    /// Preset `finer`, coordinates in ±1.
    pub const fn finer() -> Self {
        Self {
            inputs: 2,
            hidden: 256,
            layers: 3,
            outputs: 3,
            first_omega: 30.0,
            omega: 30.0,
            first_bias: None,
            cam: None,
        }
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        check_sizes(self.inputs, self.hidden, self.layers, self.outputs)?;
        check::above_zero("first_omega", self.first_omega)?;
        check::above_zero("omega", self.omega)?;
        match self.first_bias {
            Some(k) if !(k.is_finite() && k >= 0.0) => {
                let reason = format!("must be at least 0, got {k}");
                Err(Error::config("first_bias", reason))
            }
            _ => check_cam(self.cam.as_ref(), self.inputs, self.layers),
        }
    }

    /// Creates the parameters under `vs`, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<Finer> {
        self.validate()?;
        let net = vs / "_net";
        let mut layers = Vec::new();
        for i in 0..=self.layers {
            let part = &net / i;
            let path = &part / "linear";
            let (linear, omega) = if i == 0 {
                let linear = nn::linear(&path, self.inputs, self.hidden);
                let size = linear.weight.size();
                redraw(
                    &linear.weight,
                    &nn::uniform(&size, 1.0 / self.inputs as f64),
                );
                if let (Some(k), Some(bias)) = (self.first_bias, &linear.bias) {
                    redraw(bias, &nn::uniform(&[self.hidden], k));
                }
                (linear, self.first_omega)
            } else {
                let linear = nn::linear(&path, self.hidden, self.hidden);
                redraw(&linear.weight, &sine_weights(&linear, self.omega));
                (linear, self.omega)
            };
            layers.push(SineLayer {
                layer: ModulatedLinear::new(&part, linear, self.cam.as_ref())?,
                omega,
                form: Sine::Finer,
            });
        }
        let last = nn::linear(&(&net / (self.layers + 1)), self.hidden, self.outputs);
        redraw(&last.weight, &sine_weights(&last, self.omega));
        Ok(Finer {
            layers,
            last,
            config: self.clone(),
        })
    }

    /// Multiply-accumulates of all matrix products for one point.
    pub const fn macs(&self) -> u64 {
        sine_macs(self.inputs, self.hidden, self.layers, self.outputs)
    }
}

/// A built FINER.
#[derive(Debug)]
pub struct Finer {
    layers: Vec<SineLayer>,
    last: Linear,
    config: FinerConfig,
}

impl Finer {
    /// The config that it was built from.
    pub const fn config(&self) -> &FinerConfig {
        &self.config
    }

    /// Values of points: `coords` `[points, inputs]` → `[points, outputs]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `coords` does not fit the config.
    pub fn forward(&self, coords: &Tensor) -> Result<Tensor> {
        check_coords(coords, self.config.inputs, self.last.weight.kind())?;
        sine_network(&self.layers, &self.last, self.config.omega, coords)
    }
}

impl Model for Finer {
    fn forward_named(&self, inputs: &Tensors, _train: bool) -> Result<Tensors> {
        named(inputs, |coords| self.forward(coords))
    }
}
