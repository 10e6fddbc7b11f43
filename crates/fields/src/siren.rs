//! SIREN: networks whose nonlinearity is a sine.
//!
//! Paper: Sitzmann, Martel, Bergman, Lindell, Wetzstein 2020, "Implicit Neural Representations with Periodic Activation Functions",
//! arXiv 2006.09661. Follows vsitzmann/siren, with the names of package `siren-pytorch`; the second form follows gmum/FreSh.
//!
//! ```text
//! siren   sin(ω (W x + b));  W of the first layer ~ U(±1/D), of the others ~ U(±√(6/in)/ω);  b ~ U(±1/√in);  then Linear
//! fresh   sin(W (ω x) + b);  the same, the first layer's W may be drawn from Beta(β, β) over ±1/D;  then a Linear of 30 x
//! ```
//!
//! | preset | sizes | parameters | MACs per point |
//! | --- | --- | ---: | ---: |
//! | `siren` | 2 → 256, 3 × 256, 3 values | 198,915 | 197,888 |
//! | `siren-fresh` | the same | 198,915 | 197,888 |
//!
//! `siren-pytorch` has ω = 1 in hidden layers unless told otherwise, and draws biases from the weights' range; with `w0 = 30` its networks and
//! these give the same values for the same weights.

use densely_core::nn::{self, Linear};
use densely_core::{Error, Model, Result, Tensors, check};
use densely_torch_ext::sine;
use serde::{Deserialize, Serialize};
use tch::nn::{Module, Path};
use tch::{Device, Kind, Tensor};

use crate::cam::{CamConfig, ModulatedLinear, check_cam, check_coords, modulate, named};
use crate::sizes::check_weights;

/// Where the frequency ω stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SirenForm {
    /// It multiplies the linear layer's output, bias included; the last layer has none.
    Siren,
    /// It multiplies the input and so leaves the bias alone; the last layer has it, too.
    Fresh,
}

/// Sizes of a SIREN. Defaults are those of `siren`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SirenConfig {
    /// Coordinates of a point, D.
    pub inputs: i64,
    /// Hidden width.
    pub hidden: i64,
    /// Sine layers after the first.
    pub layers: i64,
    /// Values of a point, K.
    pub outputs: i64,
    /// ω of the first layer, which sets the band of frequencies that the network starts with.
    pub first_omega: f64,
    /// ω of the other layers.
    pub omega: f64,
    /// Where ω stands.
    pub form: SirenForm,
    /// Parameter β of the first layer's weights, for the form `fresh`: 1 draws them evenly, larger ones nearer to 0.
    pub beta: f64,
    /// The grid of each sine layer.
    pub cam: Option<CamConfig>,
}

impl Default for SirenConfig {
    fn default() -> Self {
        Self::siren()
    }
}

impl SirenConfig {
    /// Preset `siren`, coordinates in ±1.
    pub const fn siren() -> Self {
        Self {
            inputs: 2,
            hidden: 256,
            layers: 3,
            outputs: 3,
            first_omega: 30.0,
            omega: 30.0,
            form: SirenForm::Siren,
            beta: 1.0,
            cam: None,
        }
    }

    /// Preset `siren-fresh`, coordinates in ±1; `FreSh` searches `first_omega` in 10 to 200.
    pub const fn siren_fresh() -> Self {
        Self {
            form: SirenForm::Fresh,
            ..Self::siren()
        }
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        check_sizes(self.inputs, self.hidden, self.layers, self.outputs)?;
        for (field, value) in [
            ("first_omega", self.first_omega),
            ("omega", self.omega),
            ("beta", self.beta),
        ] {
            check::above_zero(field, value)?;
        }
        if self.form == SirenForm::Siren && self.beta.total_cmp(&1.0).is_ne() {
            let reason = format!("is 1 for the form `siren`, got {}", self.beta);
            return Err(Error::config("beta", reason));
        }
        check_cam(self.cam.as_ref(), self.inputs, self.layers)
    }

    /// Creates the parameters under `vs`, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<Siren> {
        self.validate()?;
        let form = match self.form {
            SirenForm::Siren => Sine::Siren,
            SirenForm::Fresh => Sine::Fresh,
        };
        let mut layers = Vec::new();
        for i in 0..=self.layers {
            let first = i == 0;
            let [grid, path] = self.layer_paths(vs, i);
            let width = if first { self.inputs } else { self.hidden };
            let linear = nn::linear(&path, width, self.hidden);
            let weights = match (first, self.form) {
                (false, _) => sine_weights(&linear, self.omega),
                (true, SirenForm::Siren) => nn::uniform(&linear.weight.size(), 1.0 / width as f64),
                (true, SirenForm::Fresh) => beta_weights(&linear, self.beta)?,
            };
            redraw(&linear.weight, &weights);
            layers.push(SineLayer {
                layer: ModulatedLinear::new(&grid, linear, self.cam.as_ref())?,
                omega: if first { self.first_omega } else { self.omega },
                form,
            });
        }
        let [_, path] = self.layer_paths(vs, self.layers + 1);
        let last = nn::linear(&path, self.hidden, self.outputs);
        redraw(&last.weight, &sine_weights(&last, self.omega));
        Ok(Siren {
            layers,
            last,
            config: self.clone(),
        })
    }

    /// Where a layer's grid and its weights are; the last layer is that after the sines.
    fn layer_paths<'a>(&self, vs: &Path<'a>, layer: i64) -> [Path<'a>; 2] {
        match self.form {
            SirenForm::Siren => {
                let part = if layer <= self.layers {
                    vs / "layers" / layer
                } else {
                    vs / "last_layer"
                };
                [part.clone(), part]
            }
            SirenForm::Fresh => {
                let part = vs / "_net" / layer;
                let linear = &part / "linear";
                [part, linear]
            }
        }
    }

    /// Multiply-accumulates of all matrix products for one point.
    pub const fn macs(&self) -> u64 {
        sine_macs(self.inputs, self.hidden, self.layers, self.outputs)
    }
}

/// A built SIREN.
#[derive(Debug)]
pub struct Siren {
    layers: Vec<SineLayer>,
    last: Linear,
    config: SirenConfig,
}

impl Siren {
    /// The config that it was built from.
    pub const fn config(&self) -> &SirenConfig {
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

impl Model for Siren {
    fn forward_named(&self, inputs: &Tensors, _train: bool) -> Result<Tensors> {
        named(inputs, |coords| self.forward(coords))
    }
}

/// What a sine layer computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sine {
    /// sin(ω z) of z = W x + b.
    Siren,
    /// sin(W (ω x) + b).
    Fresh,
    /// sin(ω (|z| + 1) z) of z = W x + b; gradients take |z| + 1 for a constant.
    Finer,
}

impl Sine {
    /// What is modulated where there is a grid.
    fn linear(self, xs: &Tensor, linear: &Linear, omega: f64) -> Tensor {
        match self {
            Self::Siren | Self::Finer => linear.forward(xs),
            Self::Fresh => linear.forward(&(xs * omega)),
        }
    }

    fn activate(self, z: &Tensor, omega: f64) -> Tensor {
        match self {
            Self::Siren => (z * omega).sin(),
            Self::Fresh => z.sin(),
            Self::Finer => ((z.detach().abs() + 1.0) * omega * z).sin(),
        }
    }
}

/// A sine layer and its grid, if it has one.
#[derive(Debug)]
pub(crate) struct SineLayer {
    pub(crate) layer: ModulatedLinear,
    pub(crate) omega: f64,
    pub(crate) form: Sine,
}

/// All sine layers, then `last`, which in the form `Fresh` takes `last_omega` times what they give: `coords` `[points, inputs]` →
/// `[points, outputs]`. As one operation where there is one.
pub(crate) fn sine_network(
    layers: &[SineLayer],
    last: &Linear,
    last_omega: f64,
    coords: &Tensor,
) -> Result<Tensor> {
    if let Some(values) = fused_network(layers, last, last_omega, coords)? {
        return Ok(values);
    }
    let mut xs = coords.shallow_clone();
    for SineLayer { layer, omega, form } in layers {
        let z = form.linear(&xs, &layer.linear, *omega);
        xs = form.activate(&modulate(layer.cam.as_ref(), z, coords)?, *omega);
    }
    Ok(match layers.last() {
        Some(layer) => layer.form.linear(&xs, last, last_omega),
        None => last.forward(&xs),
    })
}

/// As one operation: without grids, in f32 on the CPU. Not where coordinates need a gradient, since the operation has no second derivatives,
/// and losses on a network's slope ask for them.
fn fused_network(
    layers: &[SineLayer],
    last: &Linear,
    last_omega: f64,
    coords: &Tensor,
) -> Result<Option<Tensor>> {
    let own: Option<Vec<sine::Layer>> = layers
        .iter()
        .map(|SineLayer { layer, omega, .. }| {
            let bias = layer.linear.bias.as_ref()?;
            layer.cam.is_none().then_some(sine::Layer {
                weight: &layer.linear.weight,
                bias,
                omega: *omega,
            })
        })
        .collect();
    let (Some(own), Some(bias), Some(first)) = (own, &last.bias, layers.first()) else {
        return Ok(None);
    };
    let (form, scale) = match first.form {
        Sine::Siren => (sine::Form::Classic, 1.0),
        Sine::Fresh => (sine::Form::Input, last_omega),
        Sine::Finer => (sine::Form::Finer, 1.0),
    };
    let head = sine::Head {
        weight: &last.weight,
        bias,
        scale,
    };
    if coords.requires_grad() || !sine::enabled(coords, &own, Some(head)) {
        return Ok(None);
    }
    let values = sine::layers(coords, &own, form, Some(head)).map_err(Error::torch)?;
    Ok(Some(values))
}

/// U(±√(6/in)/ω), under which sines of sines keep their spread.
pub(crate) fn sine_weights(linear: &Linear, omega: f64) -> Tensor {
    let size = linear.weight.size();
    nn::uniform(&size, (6.0 / size[1] as f64).sqrt() / omega)
}

/// Beta(β, β) over ±1/in, as `torch.distributions.Beta` draws it.
fn beta_weights(linear: &Linear, beta: f64) -> Result<Tensor> {
    let size = linear.weight.size();
    let concentration = Tensor::full([size[0], size[1], 2], beta, (Kind::Float, Device::Cpu));
    let drawn = concentration.f_internal_sample_dirichlet()?.select(-1, 0);
    Ok((drawn * 2.0 - 1.0) / size[1] as f64)
}

/// Puts fresh values in the place of those that a layer was made with. Those are drawn nevertheless, as in PyTorch, so that the generator goes on
/// from the same state.
pub(crate) fn redraw(param: &Tensor, values: &Tensor) {
    let _no_grad = tch::no_grad_guard();
    param.shallow_clone().copy_(values);
}

/// Checks the sizes that all networks of sines have.
pub(crate) fn check_sizes(inputs: i64, hidden: i64, layers: i64, outputs: i64) -> Result<()> {
    check::positive("inputs", inputs)?;
    check::positive("hidden", hidden)?;
    check::positive("layers", layers)?;
    check::positive("outputs", outputs)?;
    check_weights("hidden", &[layers, hidden, hidden])?;
    check_weights("hidden", &[hidden, inputs.max(outputs)])
}

/// Multiply-accumulates of a first layer, `layers` square ones and a last one.
pub(crate) const fn sine_macs(inputs: i64, hidden: i64, layers: i64, outputs: i64) -> u64 {
    ((inputs + layers * hidden + outputs) * hidden) as u64
}
