//! NeRF: colour and density of a place, seen from a direction; and T-NeRF, in which time bends the place first.
//!
//! Papers: Mildenhall et al. 2020, arXiv 2003.08934 (NeRF); Pumarola et al. 2021, arXiv 2011.13961 (D-NeRF, whose baseline T-NeRF is). Follows
//! the vanilla fields of nerfacc's examples (Li et al. 2023, arXiv 2305.04966), whose state dicts load, with the grids of CAM (Lee et al.
//! 2024) where there is a `cam`.
//!
//! ```text
//! h = γ₁₀(x)                                       γ_L: x, sin 2^i x, cos 2^i x for i < L
//! h = relu(CAM(Linear(h)))   8 times, 256 wide; behind the fifth γ₁₀(x) is joined on again
//! σ = relu(Linear(h))
//! rgb = sigmoid(Linear(relu(Linear(Linear(h), γ₄(d)))))
//! T-NeRF:  x ← x + warp(γ₄(x), γ₄(t)), four layers of 64; behind the third its input is joined on again
//! ```
//!
//! | preset | sizes | parameters | MACs per point |
//! | --- | --- | ---: | ---: |
//! | `nerf` | 8 × 256 | 595,844 | 593,408 |
//! | `t-nerf` | and a warp of 4 × 64 | 613,191 | 610,496 |
//! | `nerf+cam` | `nerf`, grids of 6 × 512 × 512 by the place | 13,178,756 | 593,408 |
//! | `t-nerf+cam` | `t-nerf`, grids of 2 × 5 by the time | 613,271 | 610,496 |
//!
//! Differs from NeRF's paper, as nerfacc does: there is no factor π, the density reads the trunk's output itself, and the bottleneck is
//! linear.

use densely_core::nn::{Linear, buffer, linear_glorot, parameter};
use densely_core::{Error, Model, Result, Tensors, check, registry};
use serde::{Deserialize, Serialize};
use tch::kind::FLOAT_CPU;
use tch::nn::{Module, Path};
use tch::{Kind, Tensor};

use crate::cam::{CamConfig, Grid, Modulation, check_cam};
use crate::encodings::sinusoidal;
use crate::sizes::check_weights;

/// Sizes of a NeRF. Defaults are those of the preset `nerf`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NerfConfig {
    /// Layers of the trunk.
    pub depth: i64,
    /// Width of the trunk and of the bottleneck.
    pub width: i64,
    /// The encoded place is joined on behind the layers with these multiples for a number, counted from 0; not behind the first.
    pub skip: i64,
    /// Hidden width of the colour's MLP.
    pub colour_width: i64,
    /// Octaves of the place.
    pub place_degrees: i64,
    /// Octaves of the direction.
    pub direction_degrees: i64,
    /// How time bends places; without it the scene stands still.
    pub warp: Option<WarpConfig>,
    /// Grids that modulate the trunk: by the (bent) place when they are [`Grid::TriPlane`], by the time when they are [`Grid::Line`].
    pub cam: Option<CamConfig>,
}

/// Sizes of the MLP that bends places. Defaults are those of T-NeRF in nerfacc.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WarpConfig {
    /// Layers.
    pub depth: i64,
    /// Their width.
    pub width: i64,
    /// As [`NerfConfig::skip`].
    pub skip: i64,
    /// Octaves of the place and of the time.
    pub degrees: i64,
}

impl Default for WarpConfig {
    fn default() -> Self {
        Self {
            depth: 4,
            width: 64,
            skip: 2,
            degrees: 4,
        }
    }
}

impl Default for NerfConfig {
    fn default() -> Self {
        Self::nerf()
    }
}

impl NerfConfig {
    /// Preset `nerf`.
    pub const fn nerf() -> Self {
        Self {
            depth: 8,
            width: 256,
            skip: 4,
            colour_width: 128,
            place_degrees: 10,
            direction_degrees: 4,
            warp: None,
            cam: None,
        }
    }

    /// Preset `t-nerf`.
    pub fn t_nerf() -> Self {
        Self {
            warp: Some(WarpConfig::default()),
            ..Self::nerf()
        }
    }

    /// Preset `nerf+cam`.
    pub const fn nerf_cam() -> Self {
        Self {
            cam: Some(CamConfig::tri_plane()),
            ..Self::nerf()
        }
    }

    /// Preset `t-nerf+cam`.
    pub fn t_nerf_cam() -> Self {
        Self {
            cam: Some(CamConfig::time()),
            ..Self::t_nerf()
        }
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        self.mlp().validate()?;
        check_degrees("place_degrees", self.place_degrees)?;
        check_degrees("direction_degrees", self.direction_degrees)?;
        if let Some(warp) = &self.warp {
            for (field, size) in [
                ("warp.depth", warp.depth),
                ("warp.width", warp.width),
                ("warp.skip", warp.skip),
            ] {
                check::positive(field, size)?;
            }
            check_weights("warp.width", &[warp.depth, warp.width, warp.width])?;
            check_degrees("warp.degrees", warp.degrees)?;
        }
        check_cam(self.cam.as_ref(), 3, self.mlp().trunk.depth)?;
        match self.cam.map(|cam| cam.grid) {
            None | Some(Grid::TriPlane { .. }) => Ok(()),
            Some(Grid::Line { .. }) if self.warp.is_some() => Ok(()),
            Some(grid) => Err(Error::config(
                "cam.grid",
                format!(
                    "must be `tri_plane`, or `line` in a network with time (`warp`), got {grid:?}"
                ),
            )),
        }
    }

    /// Creates the parameters under `vs`, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<Nerf> {
        self.validate()?;
        let warp = self.warp.as_ref().map(|warp| Warp::new(vs, warp));
        let field = if warp.is_some() { &(vs / "nerf") } else { vs };
        encoder(field, "posi_encoder", self.place_degrees);
        encoder(field, "view_encoder", self.direction_degrees);
        Ok(Nerf {
            warp: warp.transpose()?,
            mlp: self.mlp().build(&(field / "mlp"), self.cam.as_ref())?,
            config: self.clone(),
        })
    }

    /// Multiply-accumulates of all matrix products for one point. Only for a config that `validate` takes.
    pub fn macs(&self) -> u64 {
        let warp = self.warp.as_ref().map_or(0, |warp| {
            let (inputs, trunk) = warp.trunk();
            trunk.macs(inputs) + trunk.outputs(inputs) * 3
        });
        (self.mlp().macs() + warp) as u64
    }

    fn mlp(&self) -> MlpSizes {
        MlpSizes {
            inputs: 3 * (1 + 2 * self.place_degrees),
            directions: 3 * (1 + 2 * self.direction_degrees),
            trunk: TrunkSizes {
                depth: self.depth,
                width: self.width,
                skip: self.skip,
            },
            colour_width: self.colour_width,
        }
    }
}

impl WarpConfig {
    /// Width of the encoded place and time, and the layers.
    const fn trunk(&self) -> (i64, TrunkSizes) {
        let trunk = TrunkSizes {
            depth: self.depth,
            width: self.width,
            skip: self.skip,
        };
        (4 * (1 + 2 * self.degrees), trunk)
    }
}

/// Fails unless f32 can tell the phases of the last octave apart.
pub(crate) fn check_degrees(field: &str, degrees: i64) -> Result<()> {
    if (1..=24).contains(&degrees) {
        return Ok(());
    }
    Err(Error::config(
        field,
        format!("must lie in 1 to 24, got {degrees}"),
    ))
}

/// The factors of an encoding, which nerfacc's state dicts hold.
fn encoder(vs: &Path, name: &str, degrees: i64) {
    let scales: Vec<i64> = (0..degrees).map(|i| 1 << i).collect();
    let _ = buffer(&(vs / name), "scales", &Tensor::from_slice(&scales));
}

/// A built NeRF, with time or without.
#[derive(Debug)]
pub struct Nerf {
    warp: Option<Warp>,
    mlp: NerfMlp,
    config: NerfConfig,
}

impl Nerf {
    /// What it was made from.
    pub const fn config(&self) -> &NerfConfig {
        &self.config
    }

    /// Red, green, blue and density, `[points, 4]`.
    ///
    /// # Shapes
    /// `coords`, `dirs`: `[points, 3]`, directions of length 1; `time`: `[points, 1]` in 0..1 when the network has a warp, else absent.
    /// # Errors
    /// [`Error::Shape`] naming the input that does not fit.
    pub fn forward(&self, coords: &Tensor, dirs: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let h = self.features(coords, time)?;
        check::shape("dirs", dirs, &[Some(coords.size()[0]), Some(3)])?;
        check::kind("dirs", dirs, coords.kind())?;
        let dirs = sinusoidal(dirs, 0..self.config.direction_degrees as i32)?;
        let rgb = self.mlp.colour(&h, &dirs).sigmoid();
        Ok(Tensor::cat(&[rgb, self.mlp.density(&h).relu()], -1))
    }

    /// Density alone, `[points]`: what an occupancy grid and the choice of samples need.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn density(&self, coords: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let h = self.features(coords, time)?;
        Ok(self.mlp.density(&h).relu().squeeze_dim(-1))
    }

    /// The trunk's output at checked inputs.
    fn features(&self, coords: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        check::shape("coords", coords, &[None, Some(3)])?;
        check::kind("coords", coords, self.mlp.kind())?;
        let place = match (&self.warp, time) {
            (None, None) => coords.shallow_clone(),
            (Some(warp), Some(time)) => {
                check::shape("time", time, &[Some(coords.size()[0]), Some(1)])?;
                check::kind("time", time, coords.kind())?;
                coords + warp.forward(coords, time)?
            }
            (Some(_), None) => return Err(check::absent("time")),
            (None, Some(_)) => {
                return Err(Error::Shape {
                    what: "time".to_owned(),
                    expected: "nothing: this network has no time".to_owned(),
                    got: "a tensor".to_owned(),
                });
            }
        };
        let modulated_by = match self.config.cam.map(|cam| cam.grid) {
            Some(Grid::Line { .. }) => time,
            _ => Some(&place),
        };
        let encoded = sinusoidal(&place, 0..self.config.place_degrees as i32)?;
        self.mlp.base.forward(&encoded, modulated_by)
    }
}

impl Model for Nerf {
    fn forward_named(&self, inputs: &Tensors, _train: bool) -> Result<Tensors> {
        let [coords, dirs, time] = if self.warp.is_some() {
            registry::take_inputs(inputs, ["coords", "dirs", "time"])?
        } else {
            let [coords, dirs] = registry::take_inputs(inputs, ["coords", "dirs"])?;
            [coords, dirs, None]
        };
        let coords = coords.ok_or_else(|| check::absent("coords"))?;
        let dirs = dirs.ok_or_else(|| check::absent("dirs"))?;
        let values = self.forward(coords, dirs, time)?;
        Ok(Tensors::from([("values".to_owned(), values)]))
    }
}

/// Where time moves a place, relative to where it is.
#[derive(Debug)]
struct Warp {
    base: Trunk,
    output: Linear,
    degrees: i32,
}

impl Warp {
    fn new(vs: &Path, config: &WarpConfig) -> Result<Self> {
        encoder(vs, "posi_encoder", config.degrees);
        encoder(vs, "time_encoder", config.degrees);
        let (inputs, sizes) = config.trunk();
        let vs = &(vs / "warp");
        let output = &(vs / "output_layer");
        let size = [3, sizes.outputs(inputs)];
        let weight = Tensor::empty(size, FLOAT_CPU).uniform_(0.0, 1e-4);
        Ok(Self {
            base: sizes.build(vs, inputs, None)?,
            output: Linear {
                weight: parameter(output, "weight", &weight),
                bias: Some(parameter(output, "bias", &Tensor::zeros([3], FLOAT_CPU))),
            },
            degrees: config.degrees as i32,
        })
    }

    fn forward(&self, coords: &Tensor, time: &Tensor) -> Result<Tensor> {
        let place = sinusoidal(coords, 0..self.degrees)?;
        let encoded = Tensor::cat(&[place, sinusoidal(time, 0..self.degrees)?], -1);
        let h = self.base.forward(&encoded, None)?;
        Ok(self.output.forward(&h))
    }
}

/// Sizes of the network behind the encodings, which NeRF and mip-NeRF share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MlpSizes {
    /// Numbers of an encoded place.
    pub(crate) inputs: i64,
    /// Numbers of an encoded direction.
    pub(crate) directions: i64,
    pub(crate) trunk: TrunkSizes,
    pub(crate) colour_width: i64,
}

impl MlpSizes {
    pub(crate) fn validate(&self) -> Result<()> {
        for (field, size) in [
            ("depth", self.trunk.depth),
            ("width", self.trunk.width),
            ("skip", self.trunk.skip),
            ("colour_width", self.colour_width),
        ] {
            check::positive(field, size)?;
        }
        let width = self.trunk.width;
        check_weights("width", &[self.trunk.depth, width, width])?;
        check_weights("colour_width", &[self.colour_width, width])
    }

    pub(crate) fn build(&self, vs: &Path, cam: Option<&CamConfig>) -> Result<NerfMlp> {
        let (width, outputs) = (self.trunk.width, self.trunk.outputs(self.inputs));
        let colour = &(vs / "rgb_layer");
        Ok(NerfMlp {
            base: self.trunk.build(&(vs / "base"), self.inputs, cam)?,
            sigma: linear_glorot(&(vs / "sigma_layer" / "output_layer"), outputs, 1),
            bottleneck: linear_glorot(&(vs / "bottleneck_layer" / "output_layer"), outputs, width),
            hidden: linear_glorot(
                &(colour / "hidden_layers" / 0),
                width + self.directions,
                self.colour_width,
            ),
            rgb: linear_glorot(&(colour / "output_layer"), self.colour_width, 3),
        })
    }

    pub(crate) const fn macs(&self) -> i64 {
        let outputs = self.trunk.outputs(self.inputs);
        let heads = outputs * (1 + self.trunk.width);
        let colour = (self.trunk.width + self.directions + 3) * self.colour_width;
        self.trunk.macs(self.inputs) + heads + colour
    }
}

/// The network behind the encodings, before the activations of its outputs.
#[derive(Debug)]
pub(crate) struct NerfMlp {
    pub(crate) base: Trunk,
    sigma: Linear,
    bottleneck: Linear,
    hidden: Linear,
    rgb: Linear,
}

impl NerfMlp {
    /// `[…, 1]` of the trunk's output.
    pub(crate) fn density(&self, h: &Tensor) -> Tensor {
        self.sigma.forward(h)
    }

    /// `[…, 3]` of the trunk's output and the encoded directions, one for each point.
    pub(crate) fn colour(&self, h: &Tensor, dirs: &Tensor) -> Tensor {
        let joined = Tensor::cat(&[&self.bottleneck.forward(h), dirs], -1);
        self.rgb.forward(&self.hidden.forward(&joined).relu())
    }

    pub(crate) fn kind(&self) -> Kind {
        self.sigma.weight.kind()
    }
}

/// Layers of one width.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TrunkSizes {
    pub(crate) depth: i64,
    pub(crate) width: i64,
    pub(crate) skip: i64,
}

impl TrunkSizes {
    /// Whether the input is joined on behind layer `layer`.
    const fn joins(&self, layer: i64) -> bool {
        layer > 0 && layer % self.skip == 0
    }

    /// Width of what layer `layer` reads; of what the trunk gives, for `layer` the depth.
    const fn reads(&self, layer: i64, inputs: i64) -> i64 {
        match layer {
            0 => inputs,
            _ if self.joins(layer - 1) => self.width + inputs,
            _ => self.width,
        }
    }

    const fn outputs(&self, inputs: i64) -> i64 {
        self.reads(self.depth, inputs)
    }

    const fn macs(&self, inputs: i64) -> i64 {
        let (mut macs, mut layer) = (0, 0);
        while layer < self.depth {
            macs += self.reads(layer, inputs) * self.width;
            layer += 1;
        }
        macs
    }

    fn build(self, vs: &Path, inputs: i64, cam: Option<&CamConfig>) -> Result<Trunk> {
        let (layers, grids) = (vs / "hidden_layers", vs / "affines");
        let layer = |i| linear_glorot(&(&layers / i), self.reads(i, inputs), self.width);
        let grid = |i: i64| cam.map(|cam| cam.build_as(&grids, &i.to_string()));
        Ok(Trunk {
            layers: (0..self.depth).map(layer).collect(),
            grids: (0..self.depth).filter_map(grid).collect::<Result<_>>()?,
            sizes: self,
        })
    }
}

/// ReLU layers, modulated by grids if it has any.
#[derive(Debug)]
pub(crate) struct Trunk {
    layers: Vec<Linear>,
    grids: Vec<Modulation>,
    sizes: TrunkSizes,
}

impl Trunk {
    /// `[…, inputs]` → `[…, outputs]`; `place` is what indexes the grids.
    pub(crate) fn forward(&self, inputs: &Tensor, place: Option<&Tensor>) -> Result<Tensor> {
        let mut xs = inputs.shallow_clone();
        for (i, layer) in self.layers.iter().enumerate() {
            xs = self.modulate(i, layer.forward(&xs), place)?.relu();
            if self.sizes.joins(i as i64) {
                xs = Tensor::cat(&[&xs, inputs], -1);
            }
        }
        Ok(xs)
    }

    /// What layer `i` gives, modulated by its grid.
    fn modulate(&self, i: usize, h: Tensor, place: Option<&Tensor>) -> Result<Tensor> {
        match (self.grids.get(i), place) {
            (Some(grid), Some(place)) => grid.forward(&h, place),
            _ => Ok(h),
        }
    }
}
