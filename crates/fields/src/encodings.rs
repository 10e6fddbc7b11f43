//! What a network reads instead of coordinates.
//!
//! | encoding | features of `D` numbers | source |
//! | --- | --- | --- |
//! | [`sinusoidal`] | `D (1 + 2 (hi - lo))` | NeRF: Mildenhall et al. 2020, arXiv 2003.08934 |
//! | [`integrated`] | `2 D (hi - lo)` | mip-NeRF: Barron et al. 2021, arXiv 2103.13415 |
//! | [`GaussianFourier`] | `2 frequencies` | Tancik et al. 2020, arXiv 2006.10739 |
//! | [`spherical_harmonics`] | `degree²` of three | instant-NGP: Müller et al. 2022, arXiv 2201.05989 |
//!
//! Phases need more digits than half precision has: numbers of 16 bits are encoded in single precision.

use std::f64::consts::{PI, TAU};
use std::ops::Range;

use densely_core::{Error, Result, check, nn};
use serde::{Deserialize, Serialize};
use tch::nn::{Module, Path};
use tch::{Device, Kind, Tensor};

use crate::sizes::check_weights;

/// As `xs`, in single precision if it has less.
pub(crate) fn at_least_single(xs: &Tensor) -> Tensor {
    match xs.kind() {
        Kind::Half | Kind::BFloat16 => xs.to_kind(Kind::Float),
        _ => xs.shallow_clone(),
    }
}

/// `2^i` for each degree, times `xs` `[…, D]`: `[…, degrees · D]`, the degree slower.
fn octaves(xs: &Tensor, degrees: &Range<i32>, base: f64) -> Tensor {
    let scales: Vec<f64> = degrees.clone().map(|i| base.powi(i)).collect();
    let scales = Tensor::from_slice(&scales)
        .to_kind(xs.kind())
        .to_device(xs.device());
    (xs.unsqueeze(-2) * scales.unsqueeze(-1)).flatten(-2, -1)
}

/// NeRF's encoding: the numbers themselves, then the sines and then the cosines of `2^i x` for each degree `i` (no factor π). Cosines are taken
/// as sin(· + π/2), as in nerfacc.
///
/// # Shapes
/// `[…, D]` → `[…, D (1 + 2 degrees)]`.
/// # Errors
/// [`Error::Shape`] for a tensor without an axis.
pub fn sinusoidal(xs: &Tensor, degrees: Range<i32>) -> Result<Tensor> {
    has_axis("xs", xs)?;
    if degrees.is_empty() {
        return Ok(xs.shallow_clone());
    }
    let phases = octaves(&at_least_single(xs), &degrees, 2.0);
    let waves = Tensor::cat(&[&phases, &(&phases + PI / 2.0)], -1).sin();
    Ok(Tensor::cat(
        &[xs.shallow_clone(), waves.to_kind(xs.kind())],
        -1,
    ))
}

fn has_axis(what: &str, xs: &Tensor) -> Result<()> {
    if xs.dim() > 0 {
        return Ok(());
    }
    Err(Error::Shape {
        what: what.to_owned(),
        expected: "[…, D]".to_owned(),
        got: "[]".to_owned(),
    })
}

/// mip-NeRF's encoding of a Gaussian with a diagonal covariance: the expected sines, then cosines, of `2^i x`, which fade as
/// `exp(-4^i v / 2)`.
///
/// # Shapes
/// `mean`, `variance` `[…, D]` → `[…, 2 D degrees]`; the published degrees are `0..16`.
/// # Errors
/// [`Error::Shape`] when the two differ in shape or kind, or have no axis.
pub fn integrated(mean: &Tensor, variance: &Tensor, degrees: Range<i32>) -> Result<Tensor> {
    has_axis("mean", mean)?;
    check::same_shape("variance", variance, mean)?;
    check::kind("variance", variance, mean.kind())?;
    let phases = octaves(&at_least_single(mean), &degrees, 2.0);
    let fading = (octaves(&at_least_single(variance), &degrees, 4.0) * -0.5).exp();
    let waves = Tensor::cat(&[&phases, &(&phases + PI / 2.0)], -1).sin();
    Ok((waves * Tensor::cat(&[&fading, &fading], -1)).to_kind(mean.kind()))
}

/// Real spherical harmonics of the degrees below `degree`, with the order and signs of tiny-cuda-nn: number `l² + l + m` is that of degree `l`
/// and order `m` with the Condon-Shortley phase.
///
/// Directions are taken as they are, of length 1; tiny-cuda-nn's input `u` in 0..1 is `2u - 1` here.
///
/// # Shapes
/// `[…, 3]` → `[…, degree²]`.
/// # Errors
/// [`Error::Shape`] for another last axis; [`Error::Config`] unless `degree` is 1 to 4.
pub fn spherical_harmonics(directions: &Tensor, degree: i64) -> Result<Tensor> {
    if !(1..=4).contains(&degree) {
        let reason = format!("must lie in 1 to 4, got {degree}");
        return Err(Error::config("degree", reason));
    }
    let size = directions.size();
    if size.last() != Some(&3) {
        return Err(Error::Shape {
            what: "directions".to_owned(),
            expected: "[…, 3]".to_owned(),
            got: format!("{size:?}"),
        });
    }
    let xs = at_least_single(directions);
    let [x, y, z] = [0, 1, 2].map(|axis| xs.select(-1, axis));
    let mut values = vec![Tensor::full_like(&x, 0.5 / PI.sqrt())];
    if degree > 1 {
        let c = (3.0 / PI).sqrt() / 2.0;
        values.extend([&y * -c, &z * c, &x * -c]);
    }
    let [xx, yy, zz] = [&x, &y, &z].map(Tensor::square);
    let (xy, across) = (&x * &y, &xx - &yy);
    if degree > 2 {
        let c = (15.0 / PI).sqrt() / 2.0;
        values.extend([
            &xy * c,
            &y * &z * -c,
            (&zz * 3.0 - 1.0) * ((5.0 / PI).sqrt() / 4.0),
            &x * &z * -c,
            &across * (c / 2.0),
        ]);
    }
    if degree > 3 {
        let [c1, c2, c3] = [42.0, 105.0, 70.0].map(|n: f64| (n / PI).sqrt() / 8.0);
        let c0 = (7.0 / PI).sqrt() / 4.0;
        values.extend([
            &y * (&yy - &xx * 3.0) * c3,
            &xy * &z * (4.0 * c2),
            &y * (1.0 - &zz * 5.0) * c1,
            &z * (&zz * 5.0 - 3.0) * c0,
            &x * (1.0 - &zz * 5.0) * c1,
            &z * &across * (2.0 * c2),
            &x * (&yy * 3.0 - &xx) * c3,
        ]);
    }
    Ok(Tensor::stack(&values, -1).to_kind(directions.kind()))
}

/// Which of two conventions Gaussian Fourier features follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FourierForm {
    /// CAM's image networks: buffer `proj` `[inputs, frequencies]` of 2π N(0, 1); features sin(σ x P), then cos(σ x P).
    Cam,
    /// Package `random-fourier-features-pytorch`, which FreSh uses: buffer `b` `[frequencies, inputs]` of σ N(0, 1); features cos(2π x Bᵀ),
    /// then sin(2π x Bᵀ).
    Package,
}

/// Sizes of Gaussian Fourier features.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FourierConfig {
    /// Numbers that are encoded.
    pub inputs: i64,
    /// Random frequencies; there are twice as many features.
    pub frequencies: i64,
    /// Standard deviation of the frequencies, in periods per unit of the input.
    pub sigma: f64,
    /// The convention.
    pub form: FourierForm,
}

impl FourierConfig {
    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        check::positive("inputs", self.inputs)?;
        check::positive("frequencies", self.frequencies)?;
        check_weights("frequencies", &[self.inputs, self.frequencies])?;
        check::above_zero("sigma", self.sigma)
    }

    /// Draws the frequencies from libtorch's global generator and creates the buffer under `vs`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<GaussianFourier> {
        self.validate()?;
        let Self {
            inputs,
            frequencies,
            sigma,
            form,
        } = *self;
        let drawn = |size: [i64; 2]| Tensor::randn(size, (Kind::Float, Device::Cpu));
        let matrix = match form {
            FourierForm::Cam => nn::buffer(vs, "proj", &(drawn([inputs, frequencies]) * TAU)),
            FourierForm::Package => nn::buffer(vs, "b", &(drawn([frequencies, inputs]) * sigma)),
        };
        Ok(GaussianFourier {
            matrix,
            sigma,
            form,
        })
    }
}

/// Sines and cosines of random frequencies, which are never trained: `[points, inputs]` → `[points, 2 frequencies]`.
#[derive(Debug)]
pub struct GaussianFourier {
    /// The frequencies, as the [`FourierForm`] has them.
    pub matrix: Tensor,
    sigma: f64,
    form: FourierForm,
}

impl Module for GaussianFourier {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let (points, matrix) = (at_least_single(xs), at_least_single(&self.matrix));
        let features = match self.form {
            FourierForm::Cam => {
                let phases = points.matmul(&(matrix * self.sigma));
                [phases.sin(), phases.cos()]
            }
            FourierForm::Package => {
                let phases = (points * TAU).matmul(&matrix.tr());
                [phases.cos(), phases.sin()]
            }
        };
        Tensor::cat(&features, -1).to_kind(xs.kind())
    }
}
