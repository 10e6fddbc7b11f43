//! Volume rendering: what a ray sees of densities and colours along it.
//!
//! Papers: Max 1995 (Optical Models for Direct Volume Rendering); Mildenhall et al. 2020, arXiv 2003.08934 (NeRF).
//!
//! ```text
//! sample i is the piece of its ray from t_i to t_{i+1}, of density σ_i and colour c_i
//! τ_i = σ_i (t_{i+1} - t_i) |d|         optical thickness
//! T_i = exp(-Σ_{j<i} τ_j)               light that comes as far as the sample
//! w_i = T_i (1 - exp(-τ_i))             its share; Σ w_i + T_end = 1
//! rgb = Σ w_i c_i + (1 - Σ w_i) background,  opacity = Σ w_i,  depth = Σ w_i (t_i + t_{i+1}) / 2 / opacity
//! ```
//!
//! T is a sum in log space as in nerfacc; 1 - exp(-τ) keeps its digits where τ is small, which nerfacc's loses in f32. NeRF's first code
//! multiplies factors 1 - α + 1e-10 and gives the last sample a thickness of its own; [`classic`] is that variant, for parity with what was
//! trained by it.
//!
//! [`dense`] takes rays of equally many samples, [`packed`] rays of any number: see there for which is faster.

pub mod packed;
pub mod rays;
pub mod sampling;

use densely_core::{Error, Model, Result, Tensors, check, registry};
use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Kind, Tensor};

/// What lies behind everything, where a ray comes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Background {
    /// Nothing is added: the colour stays as it is, premultiplied by the opacity.
    None,
    /// 0, which adds nothing either.
    Black,
    /// 1.
    White,
}

impl Background {
    /// The value of each channel.
    pub const fn level(self) -> f64 {
        match self {
            Self::None | Self::Black => 0.0,
            Self::White => 1.0,
        }
    }
}

/// What rays see.
#[derive(Debug)]
pub struct Rendered {
    /// Σ w c, without a background: `[rays, 3]`.
    pub rgb: Tensor,
    /// Share of each sample: `[rays, samples]`, or `[samples]` of packed rays.
    pub weights: Tensor,
    /// Σ w: `[rays]`.
    pub opacity: Tensor,
    /// Mean distance of what is seen, in units of t: `[rays]`; 0 where nothing is.
    pub depth: Tensor,
}

impl Rendered {
    /// Colours over a background that is the same everywhere: `[rays, 3]`.
    pub fn over(&self, background: Background) -> Tensor {
        &self.rgb + (-self.opacity.unsqueeze(-1) + 1.0) * background.level()
    }

    /// Colours over backgrounds `[3]` or `[rays, 3]`, such as random ones in training: `[rays, 3]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for another size.
    pub fn over_colour(&self, background: &Tensor) -> Result<Tensor> {
        if background.size() != [3] {
            check::same_shape("background", background, &self.rgb)?;
        }
        Ok(&self.rgb + (-self.opacity.unsqueeze(-1) + 1.0) * background)
    }
}

/// Σ w x / Σ w, where the divisor is at least the kind's rounding, as in nerfacc.
fn mean_depth(weighted: &Tensor, opacity: &Tensor) -> Tensor {
    let least = match opacity.kind() {
        Kind::Double => f64::EPSILON,
        _ => f64::from(f32::EPSILON),
    };
    weighted / opacity.clamp_min(least)
}

/// w of optical thicknesses τ: both `[rays, samples]`.
fn weights(thickness: &Tensor) -> Tensor {
    // Not cumsum - τ: after a thickness of 1e10 nothing would be left of the others.
    let before = thickness.constant_pad_nd([1, -1]).cumsum(-1, None);
    (-before).exp() * -(-thickness).expm1()
}

/// Renders rays of equally many samples.
///
/// # Shapes
/// `sigma`: `[rays, samples]`, not negative; `rgb`: `[rays, samples, 3]`; `t`: `[rays, samples + 1]`, ascending; `lengths`: `[rays]`, of the
/// directions in whose units `t` counts, absent when they are 1.
/// # Errors
/// [`Error::Shape`] naming the tensor that does not fit.
/// # Examples
/// ```
/// # use tch::Tensor;
/// // Half of the light passes the first piece, and then nothing the second.
/// let sigma = Tensor::from_slice(&[2f64.ln(), 1e9]).view([1, 2]);
/// let rgb = Tensor::from_slice(&[1.0, 0.0, 0.0, 0.0, 0.0, 1.0]).view([1, 2, 3]);
/// let t = Tensor::from_slice(&[2.0, 3.0, 4.0]).view([1, 3]);
/// let seen = densely_fields::render::dense(&sigma, &rgb, &t, None)?;
/// let rgb: Vec<f64> = seen.rgb.view(-1).try_into()?;
/// assert!((rgb[0] - 0.5).abs() < 1e-12 && (rgb[2] - 0.5).abs() < 1e-12);
/// assert!((seen.depth.double_value(&[0]) - 3.0).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn dense(
    sigma: &Tensor,
    rgb: &Tensor,
    t: &Tensor,
    lengths: Option<&Tensor>,
) -> Result<Rendered> {
    let samples = check_samples(sigma, rgb)?;
    check_distances(sigma, t, samples + 1, "one more than")?;
    let (start, end) = (t.narrow(1, 0, samples), t.narrow(1, 1, samples));
    let weights = weights(&(sigma * along(&end - &start, lengths, sigma)?));
    let seen = sum_up(weights, rgb, &((start + end) / 2.0));
    let depth = mean_depth(&seen.depth, &seen.opacity);
    Ok(Rendered { depth, ..seen })
}

/// As NeRF's first code renders points on rays: piece i goes from `t_i` to `t_{i+1}`, the last one on for 1e10, and
/// `T_i = Π_{j<i} (exp(-τ_j) + 1e-10)`. Its depth is Σ w t, not divided by the opacity.
///
/// # Shapes
/// As of [`dense`], with `t` `[rays, samples]`.
/// # Errors
/// [`Error::Shape`] naming the tensor that does not fit.
pub fn classic(
    sigma: &Tensor,
    rgb: &Tensor,
    t: &Tensor,
    lengths: Option<&Tensor>,
) -> Result<Rendered> {
    let samples = check_samples(sigma, rgb)?;
    check_distances(sigma, t, samples, "as many as")?;
    let endless = t.narrow(1, 0, 1).full_like(1e10);
    let deltas = t.narrow(1, 1, samples - 1) - t.narrow(1, 0, samples - 1);
    let deltas = Tensor::cat(&[deltas, endless], 1);
    let kept = (-(sigma * along(deltas, lengths, sigma)?)).exp(); // 1 - α
    let alpha = -&kept + 1.0;
    let factors = Tensor::cat(
        &[
            kept.narrow(1, 0, 1).ones_like(),
            kept.narrow(1, 0, samples - 1) + 1e-10,
        ],
        1,
    );
    Ok(sum_up(alpha * factors.cumprod(1, None), rgb, t))
}

/// `[rays, samples]` with at least one sample, and its colours; gives the number of samples.
fn check_samples(sigma: &Tensor, rgb: &Tensor) -> Result<i64> {
    check::shape("sigma", sigma, &[None, None])?;
    let (size, kind) = (sigma.size(), sigma.kind());
    if !sigma.is_floating_point() || size[1] == 0 {
        return Err(Error::Shape {
            what: "sigma".to_owned(),
            expected: "floating-point numbers for one sample at least".to_owned(),
            got: format!("{size:?} of {kind:?}"),
        });
    }
    if rgb.size() != [size[0], size[1], 3] {
        return Err(Error::Shape {
            what: "rgb".to_owned(),
            expected: format!(
                "[{}, {}, 3], a colour for each of `sigma`",
                size[0], size[1]
            ),
            got: format!("{:?}", rgb.size()),
        });
    }
    check::kind("rgb", rgb, kind)?;
    Ok(size[1])
}

fn check_distances(sigma: &Tensor, t: &Tensor, count: i64, words: &str) -> Result<()> {
    let size = sigma.size();
    if t.size() != [size[0], count] {
        return Err(Error::Shape {
            what: "t".to_owned(),
            expected: format!(
                "[{}, {count}], for each ray {words} `sigma` {size:?}",
                size[0]
            ),
            got: format!("{:?}", t.size()),
        });
    }
    check::kind("t", t, sigma.kind())
}

/// Distances in space of distances `deltas` `[rays, samples]` in units of the directions.
fn along(deltas: Tensor, lengths: Option<&Tensor>, sigma: &Tensor) -> Result<Tensor> {
    let Some(lengths) = lengths else {
        return Ok(deltas);
    };
    check::shape("lengths", lengths, &[Some(deltas.size()[0])])?;
    check::kind("lengths", lengths, sigma.kind())?;
    Ok(deltas * lengths.unsqueeze(1))
}

/// Sums of `weights` `[rays, samples]`, and of them times colours and distances; the depth is not divided.
fn sum_up(weights: Tensor, rgb: &Tensor, distances: &Tensor) -> Rendered {
    let sum = |xs: Tensor| xs.sum_dim_intlist(1, false, None);
    Rendered {
        rgb: sum(weights.unsqueeze(-1) * rgb),
        opacity: sum(weights.shallow_clone()),
        depth: sum(&weights * distances),
        weights,
    }
}

/// Volume rendering as a model without parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VolumeRenderConfig {
    /// What lies behind the last sample.
    pub background: Background,
}

impl Default for VolumeRenderConfig {
    fn default() -> Self {
        Self {
            background: Background::None,
        }
    }
}

impl VolumeRenderConfig {
    /// Makes the model; it has no parameters.
    ///
    /// # Errors
    /// None today.
    pub fn build(&self, _vs: &Path) -> Result<VolumeRender> {
        Ok(VolumeRender {
            config: self.clone(),
        })
    }

    /// Multiply-accumulates of matrix products: none.
    pub const fn macs(&self) -> u64 {
        0
    }
}

/// [`dense`] with a background.
#[derive(Debug)]
pub struct VolumeRender {
    config: VolumeRenderConfig,
}

impl VolumeRender {
    /// Colours over the background, `[rays, 3]`, and weights, `[rays, samples]`.
    ///
    /// # Errors
    /// Those of [`dense`].
    pub fn forward(&self, sigma: &Tensor, rgb: &Tensor, t: &Tensor) -> Result<(Tensor, Tensor)> {
        let seen = dense(sigma, rgb, t, None)?;
        Ok((seen.over(self.config.background), seen.weights))
    }
}

impl Model for VolumeRender {
    fn forward_named(&self, inputs: &Tensors, _train: bool) -> Result<Tensors> {
        let [sigma, rgb, t] = registry::take_inputs(inputs, ["sigma", "rgb", "t"])?;
        let (rgb, weights) = self.forward(
            sigma.ok_or_else(|| check::absent("sigma"))?,
            rgb.ok_or_else(|| check::absent("rgb"))?,
            t.ok_or_else(|| check::absent("t"))?,
        )?;
        Ok(Tensors::from([
            ("rgb".to_owned(), rgb),
            ("weights".to_owned(), weights),
        ]))
    }
}
