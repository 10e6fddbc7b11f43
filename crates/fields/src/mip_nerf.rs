//! mip-NeRF: a NeRF that sees cones instead of rays, so that one network serves all distances.
//!
//! Paper: Barron et al. 2021, arXiv 2103.13415. Follows the released code (google/mipnerf), with CAM's grids by the direction of the ray (Lee et
//! al. 2024; the headline results of that paper) where there is a `cam`. Parameters have the names of nerfacc's network of the same layout,
//! for the released one's are numbers of flax.
//!
//! ```text
//! cone:   a ray's piece [t₀, t₁] is a frustum; the Gaussian of its mean and variance takes its place (§3.1, in the stable form)
//! h     = IPE(μ, v): exp(-4^i v/2) sin(2^i μ), and cos, for i < 16
//! trunk, σ and rgb as of NeRF;  σ = softplus(raw - 1);  rgb = 1.002 sigmoid(raw) - 0.001
//! level 0: 128 even pieces;  level 1: 128 pieces drawn by ½(max(w_{k-1}, w_k) + max(w_k, w_{k+1})) + 0.01;  both by the same network
//! loss  = 0.1 |rgb₀ - pixel|² + |rgb₁ - pixel|²
//! ```
//!
//! | preset | sizes | parameters | MACs per sample |
//! | --- | --- | ---: | ---: |
//! | `mip-nerf` | 8 × 256 | 612,740 | 610,304 |
//! | `mip-nerf+cam` | grids of 2 × 10 × 3 by the direction | 613,220 | 610,304 |

use densely_core::{Error, Model, Result, Tensors, check, registry};
use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Kind, Tensor};

use crate::cam::{CamConfig, Grid};
use crate::encodings::{integrated, sinusoidal};
use crate::nerf::{MlpSizes, NerfMlp, TrunkSizes, check_degrees};
use crate::render::rays::Rays;
use crate::render::{Background, Rendered, dense, sampling};

/// Added to the raw density, so that a fresh network is thin.
const DENSITY_SHIFT: f64 = -1.0;
/// By how much colours can lie outside of 0..1, so that 0 and 1 are within reach.
const RGB_PADDING: f64 = 1e-3;
/// Factor on the loss of all levels but the last.
const COARSE_LOSS: f64 = 0.1;

/// Sizes of a mip-NeRF. Defaults are those of the preset `mip-nerf`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MipNerfConfig {
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
    /// Pieces of a ray at each level.
    pub samples: i64,
    /// Rounds of sampling.
    pub levels: i64,
    /// Weight that every piece has at least when the next level is drawn.
    pub resample_padding: f64,
    /// Grids that modulate the trunk, of the kind [`Grid::Directions`].
    pub cam: Option<CamConfig>,
}

impl Default for MipNerfConfig {
    fn default() -> Self {
        Self::mip_nerf()
    }
}

impl MipNerfConfig {
    /// Preset `mip-nerf`.
    pub const fn mip_nerf() -> Self {
        Self {
            depth: 8,
            width: 256,
            skip: 4,
            colour_width: 128,
            place_degrees: 16,
            direction_degrees: 4,
            samples: 128,
            levels: 2,
            resample_padding: 0.01,
            cam: None,
        }
    }

    /// Preset `mip-nerf+cam`.
    pub const fn mip_nerf_cam() -> Self {
        Self {
            cam: Some(CamConfig::directions()),
            ..Self::mip_nerf()
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
        check::positive("samples", self.samples)?;
        check::positive("levels", self.levels)?;
        if !(self.resample_padding >= 0.0 && self.resample_padding.is_finite()) {
            let reason = format!("must be 0 or above, got {}", self.resample_padding);
            return Err(Error::config("resample_padding", reason));
        }
        let Some(cam) = &self.cam else {
            return Ok(());
        };
        cam.validate()?;
        if matches!(cam.grid, Grid::Directions { .. }) {
            return Ok(());
        }
        Err(Error::config(
            "cam.grid",
            format!("must be `directions`, got {:?}", cam.grid),
        ))
    }

    /// Creates the parameters under `vs`, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<MipNerf> {
        self.validate()?;
        Ok(MipNerf {
            mlp: self.mlp().build(&(vs / "mlp"), self.cam.as_ref())?,
            config: self.clone(),
        })
    }

    /// Multiply-accumulates of all matrix products for one sample. Only for a config that `validate` takes.
    pub const fn macs(&self) -> u64 {
        self.mlp().macs() as u64
    }

    const fn mlp(&self) -> MlpSizes {
        MlpSizes {
            inputs: 6 * self.place_degrees,
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

/// A built mip-NeRF.
#[derive(Debug)]
pub struct MipNerf {
    mlp: NerfMlp,
    config: MipNerfConfig,
}

impl MipNerf {
    /// What it was made from.
    pub const fn config(&self) -> &MipNerfConfig {
        &self.config
    }

    /// Red, green, blue and density of Gaussians: `[rays, samples, 4]`, or `[points, 4]`.
    ///
    /// # Shapes
    /// `coords`: means `[rays, samples, 3]` and `dirs` `[rays, 3]` of length 1; or `[points, 3]` both, when every ray has one sample. `vars`:
    /// variances along the axes, as `coords`; absent for points without extent.
    /// # Errors
    /// [`Error::Shape`] naming the input that does not fit.
    pub fn forward(&self, coords: &Tensor, vars: Option<&Tensor>, dirs: &Tensor) -> Result<Tensor> {
        check::shape("dirs", dirs, &[None, Some(3)])?;
        let (size, rays) = (coords.size(), dirs.size()[0]);
        if !matches!(size.as_slice(), [n, 3] | [n, _, 3] if *n == rays) {
            return Err(Error::Shape {
                what: "coords".to_owned(),
                expected: format!("[{rays}, 3] or [{rays}, samples, 3], for each ray of `dirs`"),
                got: format!("{size:?}"),
            });
        }
        check::kind("coords", coords, self.mlp.kind())?;
        check::kind("dirs", dirs, coords.kind())?;
        let none;
        let vars = if let Some(vars) = vars {
            check::same_shape("vars", vars, coords)?;
            check::kind("vars", vars, coords.kind())?;
            vars
        } else {
            none = coords.zeros_like();
            &none
        };
        let samples = if size.len() == 3 { size[1] } else { 1 };
        let encoded = integrated(coords, vars, 0..self.config.place_degrees as i32)?
            .view([rays, samples, -1]);
        let h = self.mlp.base.forward(&encoded, Some(dirs))?; // [rays, samples, width]
        let dirs = sinusoidal(dirs, 0..self.config.direction_degrees as i32)?;
        let dirs = dirs.unsqueeze(1).expand([rays, samples, -1], false);
        let rgb = self.mlp.colour(&h, &dirs).sigmoid() * (1.0 + 2.0 * RGB_PADDING) - RGB_PADDING;
        let sigma = (self.mlp.density(&h) + DENSITY_SHIFT).softplus();
        let mut size = size;
        if let Some(last) = size.last_mut() {
            *last = 4;
        }
        Ok(Tensor::cat(&[rgb, sigma], -1).view(size.as_slice()))
    }

    /// What rays see at each level, the last one being the result; distances are in units of the directions.
    ///
    /// # Shapes
    /// `radius`: of a pixel's cone at distance 1, `[rays]`; `near`, `far`: `[rays]`; `jitter`: in [0, 1), for each level `[rays, samples + 1]`,
    /// for training; absent for evaluation.
    /// # Errors
    /// [`Error::Shape`] naming the input that does not fit.
    pub fn render(
        &self,
        rays: &Rays,
        radius: &Tensor,
        [near, far]: [&Tensor; 2],
        jitter: Option<&[Tensor]>,
    ) -> Result<Vec<Rendered>> {
        let (levels, samples) = (self.config.levels as usize, self.config.samples);
        if let Some(jitter) = jitter
            && jitter.len() != levels
        {
            return Err(Error::Shape {
                what: "jitter".to_owned(),
                expected: format!("{levels} tensors, one for each level"),
                got: format!("{}", jitter.len()),
            });
        }
        let (lengths, unit) = (rays.lengths(), rays.unit());
        let mut seen: Vec<Rendered> = Vec::new();
        let mut t = sampling::steps(near, far, samples + 1)?;
        for level in 0..levels {
            let jitter = jitter.map(|jitter| &jitter[level]);
            t = match (seen.last(), jitter) {
                (Some(before), _) => {
                    resample(&t, &before.weights, jitter, self.config.resample_padding)?
                }
                (None, Some(jitter)) => sampling::stratified(&t, jitter)?,
                (None, None) => t,
            };
            let (means, vars) = cast(&t, rays, radius)?;
            let values = self.forward(&means, Some(&vars), unit.dirs())?;
            let found = dense(
                &values.select(2, 3),
                &values.narrow(2, 0, 3),
                &t,
                Some(&lengths),
            )?;
            let depth = found
                .depth
                .maximum(&t.select(1, 0))
                .minimum(&t.select(1, samples));
            seen.push(Rendered { depth, ..found });
        }
        Ok(seen)
    }
}

impl Model for MipNerf {
    fn forward_named(&self, inputs: &Tensors, _train: bool) -> Result<Tensors> {
        let [coords, vars, dirs] = registry::take_inputs(inputs, ["coords", "vars", "dirs"])?;
        let coords = coords.ok_or_else(|| check::absent("coords"))?;
        let dirs = dirs.ok_or_else(|| check::absent("dirs"))?;
        let values = self.forward(coords, vars, dirs)?;
        Ok(Tensors::from([("values".to_owned(), values)]))
    }
}

/// Means and variances along the axes of the Gaussians that stand for a cone's pieces.
///
/// # Shapes
/// `t`: `[rays, samples + 1]`; `radius`: `[rays]`, of the cone at distance 1 → `[rays, samples, 3]` both.
/// # Errors
/// [`Error::Shape`] for other sizes.
pub fn cast(t: &Tensor, rays: &Rays, radius: &Tensor) -> Result<(Tensor, Tensor)> {
    check::shape("t", t, &[Some(rays.count()), None])?;
    check::shape("radius", radius, &[Some(rays.count())])?;
    let samples = t.size()[1] - 1;
    check::positive("samples", samples)?;
    let (start, end) = (t.narrow(1, 0, samples), t.narrow(1, 1, samples));
    let (middle, half) = ((&start + &end) / 2.0, (end - start) / 2.0);
    let (middle2, half2) = (middle.square(), half.square());
    let denominator = &middle2 * 3.0 + &half2;
    let mean = &middle + &middle * &half2 * 2.0 / &denominator;
    let half4 = half2.square();
    let along =
        &half2 / 3.0 - &half4 * (&middle2 * 12.0 - &half2) / denominator.square() * (4.0 / 15.0);
    let across = radius.square().unsqueeze(1)
        * (&middle2 / 4.0 + &half2 * (5.0 / 12.0) - half4 / denominator * (4.0 / 15.0));
    let squares = rays.dirs().square(); // [rays, 3]
    let length2 = squares.sum_dim_intlist(1, true, None).clamp_min(1e-10);
    let other = -(&squares / length2) + 1.0; // of the axes' squares what is not along the ray
    let vars = along.unsqueeze(2) * squares.unsqueeze(1) + across.unsqueeze(2) * other.unsqueeze(1);
    Ok((rays.at(&mean)?, vars))
}

/// Borders of the next level's pieces, as many as there were, without gradient: drawn by the weights, each made as large as its larger
/// neighbours' mean, plus `padding`.
///
/// # Shapes
/// `t`: `[rays, samples + 1]`; `weights`: `[rays, samples]`; `jitter`: in [0, 1), `[rays, samples + 1]`, absent for even draws.
/// # Errors
/// [`Error::Shape`] for other sizes or kinds.
pub fn resample(
    t: &Tensor,
    weights: &Tensor,
    jitter: Option<&Tensor>,
    padding: f64,
) -> Result<Tensor> {
    const EPSILON: f64 = f32::EPSILON as f64; // whatever the kind, as in the released code
    check::shape("weights", weights, &[None, None])?;
    check::floating("weights", weights)?;
    let (rays, samples) = (weights.size()[0], weights.size()[1]);
    check::positive("samples", samples)?;
    check::shape("t", t, &[Some(rays), Some(samples + 1)])?;
    check::kind("t", t, weights.kind())?;
    let _no_grad = tch::no_grad_guard();
    let first = weights.narrow(1, 0, 1);
    let last = weights.narrow(1, samples - 1, 1);
    let padded = Tensor::cat(&[&first, weights, &last], 1);
    let larger = padded
        .narrow(1, 0, samples + 1)
        .maximum(&padded.narrow(1, 1, samples + 1));
    let blurred = (larger.narrow(1, 0, samples) + larger.narrow(1, 1, samples)) / 2.0 + padding;
    // A ray without weights is drawn from evenly.
    let sum = blurred.sum_dim_intlist(1, true, None);
    let lack = (-&sum + 1e-5).clamp_min(0.0);
    let shares = (blurred + &lack / samples as f64) / (sum + lack);
    let inner = shares
        .narrow(1, 0, samples - 1)
        .cumsum(1, None)
        .clamp_max(1.0);
    let ends = first.zeros_like();
    let cdf = Tensor::cat(&[&ends, &inner, &ends.ones_like()], 1);
    let count = samples + 1;
    let uniforms = match jitter {
        Some(jitter) => {
            check::same_shape("jitter", jitter, t)?;
            check::kind("jitter", jitter, t.kind())?;
            let part = 1.0 / count as f64;
            let starts = Tensor::arange(count, (t.kind(), t.device())) * part;
            (starts + jitter * (part - EPSILON)).clamp_max(1.0 - EPSILON)
        }
        None => sampling::even(rays, count, 1.0 - EPSILON, t.kind()).to_device(t.device()),
    };
    Ok(sampling::inverse(&cdf, t, &uniforms, 0.0))
}

/// What training minimises: Σ of squared differences of a pixel's channels, its mean over the rays; of the levels before the last one a tenth.
///
/// # Shapes
/// `pixels`: `[rays, 3]`.
/// # Errors
/// [`Error::Shape`] for other pixels, or no level.
pub fn loss(levels: &[Rendered], background: Background, pixels: &Tensor) -> Result<Tensor> {
    let mut total: Option<Tensor> = None;
    for (i, level) in levels.iter().enumerate() {
        let rgb = level.over(background);
        check::shape("pixels", pixels, &[Some(rgb.size()[0]), Some(3)])?;
        let error = (rgb - pixels).square().sum_dim_intlist(1, false, None);
        let share = if i + 1 == levels.len() {
            1.0
        } else {
            COARSE_LOSS
        };
        let term = error.mean(None::<Kind>) * share;
        total = Some(total.map_or_else(|| term.shallow_clone(), |sum| sum + &term));
    }
    total.ok_or_else(|| check::absent("levels"))
}
