//! Fourier-feature networks: random sines and cosines of the coordinates, then a ReLU network; with CAM's grids if asked for.
//!
//! Papers: Tancik et al. 2020, "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains", arXiv 2006.10739; CAM's
//! baseline and its image network follow maincold2/CAM, the smaller one gmum/FreSh.
//!
//! ```text
//! coords [N,D] → sin, cos of random frequencies [N,2m] → layers × (Linear → CAM → ReLU) [N,C] → Linear → (sigmoid) → values [N,K]
//! ```
//!
//! | preset | sizes | parameters | MACs per point |
//! | --- | --- | ---: | ---: |
//! | `ffn-image` | 512 features, 3 × 256, 3 values, sigmoid | 263,683 | 262,912 |
//! | `cam-image` | the same with three grids of 2 × 32 × 32 | 269,827 | 262,912 |
//! | `ffn-fresh` | 256 features, 3 × 256, 3 values | 198,147 | 197,376 |
//!
//! The published table gives CAM's network 266K parameters; the released code's has 269,827.

use densely_core::nn::{self, Linear};
use densely_core::{Model, Result, Tensors, check};
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{Module, Path};

use crate::cam::{CamConfig, ModulatedLinear, check_cam, check_coords, named, relu_network};
use crate::encodings::{FourierConfig, FourierForm, GaussianFourier};
use crate::sizes::check_weights;

/// Sizes of a Fourier-feature network. Defaults are those of `ffn-image`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FfnConfig {
    /// Coordinates of a point, D.
    pub inputs: i64,
    /// Random frequencies, m.
    pub frequencies: i64,
    /// Standard deviation of the frequencies, in periods per unit of the coordinates.
    pub sigma: f64,
    /// Convention of the features; the names of the parameters follow it too.
    pub form: FourierForm,
    /// Hidden width, C.
    pub hidden: i64,
    /// Layers of that width.
    pub layers: i64,
    /// Values of a point, K.
    pub outputs: i64,
    /// Whether the values are squashed to 0..1.
    pub sigmoid: bool,
    /// The grid of each hidden layer.
    pub cam: Option<CamConfig>,
}

impl Default for FfnConfig {
    fn default() -> Self {
        Self::ffn_image()
    }
}

impl FfnConfig {
    /// Preset `ffn-image`: CAM's baseline, coordinates (row, column) in 0..1.
    pub const fn ffn_image() -> Self {
        Self {
            inputs: 2,
            frequencies: 256,
            sigma: 10.0,
            form: FourierForm::Cam,
            hidden: 256,
            layers: 3,
            outputs: 3,
            sigmoid: true,
            cam: None,
        }
    }

    /// Preset `cam-image`.
    pub const fn cam_image() -> Self {
        Self {
            cam: Some(CamConfig::image()),
            ..Self::ffn_image()
        }
    }

    /// Preset `ffn-fresh`: `FreSh`'s Fourier network, coordinates in ±1; it searches `sigma` in 1 to 20.
    pub const fn ffn_fresh() -> Self {
        Self {
            frequencies: 128,
            sigma: 1.0,
            form: FourierForm::Package,
            sigmoid: false,
            ..Self::ffn_image()
        }
    }

    const fn encoding(&self) -> FourierConfig {
        FourierConfig {
            inputs: self.inputs,
            frequencies: self.frequencies,
            sigma: self.sigma,
            form: self.form,
        }
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        for (field, size) in [
            ("hidden", self.hidden),
            ("layers", self.layers),
            ("outputs", self.outputs),
        ] {
            check::positive(field, size)?;
        }
        self.encoding().validate()?;
        let widest = self.hidden.max(self.frequencies.saturating_mul(2));
        check_weights("hidden", &[self.layers, self.hidden, widest])?;
        check_weights("hidden", &[self.hidden, self.outputs])?;
        check_cam(self.cam.as_ref(), self.inputs, self.layers)
    }

    /// Creates the parameters under `vs`, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<Ffn> {
        self.validate()?;
        let encoding = self.encoding().build(&self.encoding_path(vs))?;
        let mut width = 2 * self.frequencies;
        let mut layers = Vec::new();
        for i in 0..self.layers {
            let [grid, linear] = self.layer_paths(vs, i);
            let linear = nn::linear(&linear, width, self.hidden);
            layers.push(ModulatedLinear::new(&grid, linear, self.cam.as_ref())?);
            width = self.hidden;
        }
        let [_, last] = self.layer_paths(vs, self.layers);
        Ok(Ffn {
            encoding,
            layers,
            last: nn::linear(&last, width, self.outputs),
            config: self.clone(),
        })
    }

    fn encoding_path<'a>(&self, vs: &Path<'a>) -> Path<'a> {
        match self.form {
            FourierForm::Cam => vs / "pos_enc",
            FourierForm::Package => vs / "_net" / 0,
        }
    }

    /// Where a layer's grid and its weights are; the last layer is that after the hidden ones.
    fn layer_paths<'a>(&self, vs: &Path<'a>, layer: i64) -> [Path<'a>; 2] {
        match self.form {
            FourierForm::Cam => {
                let name = if layer < self.layers {
                    format!("FC_{layer}")
                } else {
                    "FC_final".to_owned()
                };
                let part = vs / name;
                let linear = &part / "linear";
                [part, linear]
            }
            FourierForm::Package => {
                // ReLUs stand in between and have numbers, too.
                let part = vs / "_net" / (1 + 2 * layer);
                [part.clone(), part]
            }
        }
    }

    /// Multiply-accumulates of the layers for one point; the encoding, `inputs · frequencies` more, is not counted.
    pub const fn macs(&self) -> u64 {
        let hidden = 2 * self.frequencies + (self.layers - 1) * self.hidden;
        ((hidden + self.outputs) * self.hidden) as u64
    }
}

/// A built Fourier-feature network.
#[derive(Debug)]
pub struct Ffn {
    encoding: GaussianFourier,
    layers: Vec<ModulatedLinear>,
    last: Linear,
    config: FfnConfig,
}

impl Ffn {
    /// The config that it was built from.
    pub const fn config(&self) -> &FfnConfig {
        &self.config
    }

    /// Values of points: `coords` `[points, inputs]` → `[points, outputs]`.
    ///
    /// # Errors
    /// [`densely_core::Error::Shape`] when `coords` does not fit the config.
    pub fn forward(&self, coords: &Tensor) -> Result<Tensor> {
        check_coords(coords, self.config.inputs, self.last.weight.kind())?;
        let xs = self.encoding.forward(coords);
        let values = relu_network(&self.layers, &self.last, &xs, coords)?;
        Ok(if self.config.sigmoid {
            values.sigmoid()
        } else {
            values
        })
    }
}

impl Model for Ffn {
    fn forward_named(&self, inputs: &Tensors, _train: bool) -> Result<Tensors> {
        named(inputs, |coords| self.forward(coords))
    }
}
