//! WIRE: networks of complex Gabor wavelets.
//!
//! Paper: Saragadam, LeJeune, Tan, Balakrishnan, Veeraraghavan, Baraniuk 2023, "WIRE: Wavelet Implicit Neural Representations", arXiv 2301.05187.
//! Follows vishwa91/wire as gmum/FreSh has it, whose names it has.
//!
//! ```text
//! x' = exp(i ω z - |s z|²)  of  z = W x + b;   real in the first layer, complex after it;   values = Re(Linear) / 2 + 1/2
//! ```
//!
//! | preset | sizes | real parameters | MACs per point |
//! | --- | --- | ---: | ---: |
//! | `wire` | 2 → 181, 3 × 181 complex, 3 values | 199,287 | 394,580 |
//!
//! Complex numbers are pairs of real ones in the last axis of a parameter, as `torch.view_as_real` has them, so that they are saved, cast and
//! optimised like all others; between layers the real parts stand before the imaginary ones. For CAM a layer of C complex features counts as 2C
//! real ones.

use std::f64::consts::SQRT_2;

use densely_core::nn::{self, Linear};
use densely_core::{Model, Result, Tensors, check};
use serde::{Deserialize, Serialize};
use tch::nn::{Module, Path};
use tch::{Device, Kind, Tensor};

use crate::cam::{CamConfig, Modulation, check_cam, check_coords, modulate, named};
use crate::siren::check_sizes;

/// Sizes of a WIRE. Defaults are those of `wire`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WireConfig {
    /// Coordinates of a point, D.
    pub inputs: i64,
    /// Width of a real network of about as many parameters; √2 times the number of complex features.
    pub hidden: i64,
    /// Wavelet layers after the first.
    pub layers: i64,
    /// Values of a point, K.
    pub outputs: i64,
    /// Frequency ω of the first layer.
    pub first_omega: f64,
    /// Frequency ω of the other layers.
    pub omega: f64,
    /// Inverse width s of the first layer's wavelets.
    pub first_scale: f64,
    /// Inverse width s of the other layers'.
    pub scale: f64,
    /// The grid of each wavelet layer.
    pub cam: Option<CamConfig>,
}

impl Default for WireConfig {
    fn default() -> Self {
        Self::wire()
    }
}

impl WireConfig {
    /// Preset `wire`, coordinates in ±1.
    pub const fn wire() -> Self {
        Self {
            inputs: 2,
            hidden: 256,
            layers: 3,
            outputs: 3,
            first_omega: 20.0,
            omega: 10.0,
            first_scale: 10.0,
            scale: 10.0,
            cam: None,
        }
    }

    /// Complex features of a layer: `hidden` / √2, rounded down.
    pub fn width(&self) -> i64 {
        (self.hidden as f64 / SQRT_2) as i64
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        check_sizes(self.inputs, self.width(), self.layers, self.outputs)?;
        for (field, value) in [
            ("first_omega", self.first_omega),
            ("omega", self.omega),
            ("first_scale", self.first_scale),
            ("scale", self.scale),
        ] {
            check::above_zero(field, value)?;
        }
        check_cam(self.cam.as_ref(), self.inputs, self.layers)
    }

    /// Creates the parameters under `vs`, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<Wire> {
        self.validate()?;
        let net = vs / "_net";
        let part = &net / 0;
        let first = Wavelets::new(&part, [self.first_omega, self.first_scale], self)?;
        let first = (
            nn::linear(&(&part / "linear"), self.inputs, self.width()),
            first,
        );
        let mut layers = Vec::new();
        for i in 1..=self.layers {
            let part = &net / i;
            let wavelets = Wavelets::new(&part, [self.omega, self.scale], self)?;
            let linear = ComplexLinear::new(&(&part / "linear"), self.width(), self.width());
            layers.push((linear, wavelets));
        }
        let last = ComplexLinear::new(&(&net / (self.layers + 1)), self.width(), self.outputs);
        Ok(Wire {
            first,
            layers,
            last,
            config: self.clone(),
        })
    }

    /// Multiply-accumulates of real numbers of all matrix products for one point: four per complex weight, two in the last layer, of which only
    /// the real part is used.
    pub fn macs(&self) -> u64 {
        let width = self.width();
        ((self.inputs + 4 * self.layers * width + 2 * self.outputs) * width) as u64
    }
}

/// A built WIRE.
#[derive(Debug)]
pub struct Wire {
    first: (Linear, Wavelets),
    layers: Vec<(ComplexLinear, Wavelets)>,
    last: ComplexLinear,
    config: WireConfig,
}

impl Wire {
    /// The config that it was built from.
    pub const fn config(&self) -> &WireConfig {
        &self.config
    }

    /// Values of points: `coords` `[points, inputs]` → `[points, outputs]`.
    ///
    /// # Errors
    /// [`densely_core::Error::Shape`] when `coords` does not fit the config.
    pub fn forward(&self, coords: &Tensor) -> Result<Tensor> {
        let (linear, wavelets) = &self.first;
        check_coords(coords, self.config.inputs, linear.weight.kind())?;
        let z = modulate(wavelets.cam.as_ref(), linear.forward(coords), coords)?;
        let mut xs = wavelets.of_real(&z);
        for (linear, wavelets) in &self.layers {
            let z = modulate(wavelets.cam.as_ref(), linear.forward(&xs), coords)?;
            xs = wavelets.of_complex(&z);
        }
        Ok(self.last.real_part(&xs) / 2.0 + 0.5)
    }
}

impl Model for Wire {
    fn forward_named(&self, inputs: &Tensors, _train: bool) -> Result<Tensors> {
        named(inputs, |coords| self.forward(coords))
    }
}

/// The nonlinearity of a layer, and its grid, if it has one.
#[derive(Debug)]
struct Wavelets {
    /// ω, `[1]`; saved and not trained, as in the released code.
    omega: Tensor,
    /// s, `[1]`; as ω.
    scale: Tensor,
    cam: Option<Modulation>,
}

impl Wavelets {
    fn new(vs: &Path, [omega, scale]: [f64; 2], config: &WireConfig) -> Result<Self> {
        let number = |value: f64| Tensor::full([1], value, (Kind::Float, Device::Cpu));
        Ok(Self {
            omega: nn::buffer(vs, "omega_0", &number(omega)),
            scale: nn::buffer(vs, "scale_0", &number(scale)),
            cam: config.cam.as_ref().map(|cam| cam.build(vs)).transpose()?,
        })
    }

    /// exp(iωz - s²z²) of real `z` `[points, width]`: `[points, 2 width]`.
    fn of_real(&self, z: &Tensor) -> Tensor {
        let height = (-(z * &self.scale).square()).exp();
        self.wave(z, &height)
    }

    /// exp(iωz - s²|z|²) of complex `z` `[points, 2 width]`: the imaginary part of z makes ω change the height.
    fn of_complex(&self, z: &Tensor) -> Tensor {
        let [re, im] = halves(z);
        let squares = (re.square() + im.square()) * self.scale.square();
        let height = (-(im * &self.omega) - squares).exp();
        self.wave(&re, &height)
    }

    fn wave(&self, re: &Tensor, height: &Tensor) -> Tensor {
        let phase = re * &self.omega;
        Tensor::cat(&[phase.cos() * height, phase.sin() * height], -1)
    }
}

/// Real and imaginary parts of `[points, 2 width]`.
fn halves(z: &Tensor) -> [Tensor; 2] {
    let width = z.size()[1] / 2;
    [z.narrow(1, 0, width), z.narrow(1, width, width)]
}

/// `W x + b` of complex numbers.
#[derive(Debug)]
struct ComplexLinear {
    /// `[out, in, 2]`.
    weight: Tensor,
    /// `[out, 2]`.
    bias: Tensor,
}

impl ComplexLinear {
    /// As PyTorch starts a complex `Linear`: real and imaginary parts U(±1/√in) each.
    fn new(vs: &Path, inputs: i64, outputs: i64) -> Self {
        let bound = 1.0 / (inputs as f64).sqrt();
        Self {
            weight: nn::parameter(vs, "weight", &nn::uniform(&[outputs, inputs, 2], bound)),
            bias: nn::parameter(vs, "bias", &nn::uniform(&[outputs, 2], bound)),
        }
    }

    /// `[points, 2 in]` → the real parts of the output `[points, out]`.
    fn real_part(&self, xs: &Tensor) -> Tensor {
        xs.linear(&self.real_rows(), Some(self.bias.select(1, 0)))
    }

    /// `[out, 2 in]`: Re W beside -Im W.
    fn real_rows(&self) -> Tensor {
        let [re, im] = [0, 1].map(|part| self.weight.select(2, part));
        Tensor::cat(&[re, -im], 1)
    }
}

impl Module for ComplexLinear {
    /// `[points, 2 in]` → `[points, 2 out]`: one product with the real matrix `[[Re W, -Im W], [Im W, Re W]]`.
    fn forward(&self, xs: &Tensor) -> Tensor {
        let [re, im] = [0, 1].map(|part| self.weight.select(2, part));
        let imaginary_rows = Tensor::cat(&[im, re], 1);
        let weight = Tensor::cat(&[self.real_rows(), imaginary_rows], 0);
        xs.linear(&weight, Some(self.bias.tr().reshape([-1])))
    }
}
