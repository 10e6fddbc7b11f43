//! K-Planes: features of points as products of bilinear samples from a plane for each pair of axes; and a radiance field upon them.
//!
//! Paper: Fridovich-Keil, Meanti, Warburg, Recht, Kanazawa 2023, arXiv 2301.10241. Follows sarafridov/K-Planes; planes have its names,
//! `grids.<scale>.<plane>`, and its layout.
//!
//! ```text
//! features of a scale = Π over pairs of axes i < j of bilinear(plane_ij, (x_i, x_j));  features = concat over scales
//! pairs: xy, xz, yz, or with time xy, xz, xt, yz, yt, zt;  plane_ij: [1, F, resolution of j, resolution of i]
//! ```
//!
//! Coordinates lie in [-1, 1], time too: at the ends are the planes' outermost values, and beyond them the same. Only
//! resolutions of space grow with the scales. Planes of space start at U(0.1, 0.5), and those with time at 1: the scene starts without motion.
//!
//! Differs from the released code: the head is that of instant-ngp (see [`NgpHead`]), whose density is the first of its
//! outputs and whose colour reads them all before the direction; there the density is the last, and the colour reads the direction and then the others.

use densely_core::{Error, Result, check, nn};
use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Device, Kind, Tensor};

use crate::hashgrid::{NgpHead, NgpHeadConfig};
use crate::sizes::check_weights;

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// The axis of time.
const TIME: usize = 3;

/// Sizes of planes. Defaults are those of the paper's synthetic scenes with motion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlanesConfig {
    /// Values along each axis at multiplier 1: of x, y and z, and of time if there is one (half as many as frames).
    pub resolution: Vec<i64>,
    /// What the resolutions of space are multiplied with, for each scale.
    pub multipliers: Vec<i64>,
    /// Features of each scale.
    pub features: Vec<i64>,
}

impl Default for PlanesConfig {
    fn default() -> Self {
        Self {
            resolution: vec![64, 64, 64, 25],
            multipliers: vec![1, 2, 4, 8],
            features: vec![32; 4],
        }
    }
}

impl PlanesConfig {
    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        if ![TIME, TIME + 1].contains(&self.resolution.len()) {
            let reason = format!("needs 3 or 4 axes, got {}", self.resolution.len());
            return Err(Error::config("resolution", reason));
        }
        if self.multipliers.is_empty() {
            return Err(Error::config("multipliers", "needs at least one scale"));
        }
        if self.features.len() != self.multipliers.len() {
            let (scales, features) = (self.multipliers.len(), self.features.len());
            let reason = format!("needs one number for each of {scales} scales, got {features}");
            return Err(Error::config("features", reason));
        }
        for (field, sizes) in [
            ("resolution", &self.resolution),
            ("multipliers", &self.multipliers),
            ("features", &self.features),
        ] {
            for size in sizes {
                check::positive(field, *size)?;
            }
        }
        let longest = self.resolution.iter().copied().max().unwrap_or(1);
        for (multiplier, features) in self.multipliers.iter().zip(&self.features) {
            let side = longest.saturating_mul(*multiplier);
            check_weights("resolution", &[side, side, *features])?;
        }
        Ok(())
    }

    /// Coordinates of a point.
    pub fn inputs(&self) -> i64 {
        self.resolution.len() as i64
    }

    /// Features of a point over all scales.
    pub fn width(&self) -> i64 {
        self.features.iter().sum()
    }

    /// Pairs of axes, in the order of the planes of a scale.
    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        let axes = self.resolution.len();
        (0..axes).flat_map(move |i| (i + 1..axes).map(move |j| (i, j)))
    }

    /// Creates the planes under `vs`, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<Planes> {
        self.validate()?;
        let scales = self.multipliers.iter().zip(&self.features).enumerate();
        let scale = |(number, (multiplier, features)): (usize, (&i64, &i64))| {
            let vs = vs / "grids" / number;
            let size = |axis: usize| match axis {
                TIME => self.resolution[TIME],
                _ => self.resolution[axis] * multiplier,
            };
            let plane = |(number, (i, j)): (usize, (usize, usize))| {
                let size = [1, *features, size(j), size(i)];
                let values = if j == TIME {
                    Tensor::ones(size, CPU)
                } else {
                    Tensor::empty(size, CPU).uniform_(0.1, 0.5)
                };
                nn::parameter(&vs, &number.to_string(), &values)
            };
            self.pairs().enumerate().map(plane).collect()
        };
        Ok(Planes {
            grids: scales.map(scale).collect(),
            config: self.clone(),
        })
    }
}

/// Planes of several scales: the bare features, for any network.
#[derive(Debug)]
pub struct Planes {
    /// Of each scale the planes `[1, features, values along j, values along i]`.
    grids: Vec<Vec<Tensor>>,
    config: PlanesConfig,
}

impl Planes {
    /// Features of points: `coords [N, 3 or 4]` in [-1, 1] → `[N, Σ features]`, scale by scale.
    ///
    /// # Errors
    /// [`Error::Shape`] when `coords` has another size or kind.
    pub fn forward(&self, coords: &Tensor) -> Result<Tensor> {
        check::shape("coords", coords, &[None, Some(self.config.inputs())])?;
        check::kind("coords", coords, self.grids[0][0].kind())?;
        let pairs: Vec<Tensor> = self
            .config
            .pairs()
            .map(|(i, j)| {
                let axes = [coords.select(1, i as i64), coords.select(1, j as i64)];
                Tensor::stack(&axes, 1).view([1, 1, -1, 2])
            })
            .collect();
        let scale = |planes: &Vec<Tensor>| {
            let samples = planes
                .iter()
                .zip(&pairs)
                .map(|(plane, at)| sample(plane, at));
            samples.reduce(|product, sample| product * sample)
        };
        let scales: Vec<Tensor> = self.grids.iter().filter_map(scale).collect();
        Ok(Tensor::cat(&scales, 1))
    }

    /// Total variation: of each plane twice the mean square of the differences along its rows, and that along its columns; planes of space count
    /// twice, as in the released code, whose weight is 1e-4.
    pub fn total_variation(&self) -> Tensor {
        self.sum(|plane, with_time| {
            let weight = if with_time { 2.0 } else { 4.0 };
            let [rows, columns] = [2, 3].map(|axis| mean_square(&differences(plane, axis)));
            (rows + columns) * weight
        })
    }

    /// Of each plane with time the mean square of the second differences along time; the released code's weight is 0.1.
    pub fn time_smoothness(&self) -> Tensor {
        self.sum_with_time(|plane| mean_square(&differences(&differences(plane, 2), 2)))
    }

    /// Of each plane with time the mean distance from 1, so that what does not move needs no time; the released code's weight is 1e-4.
    pub fn motion(&self) -> Tensor {
        self.sum_with_time(|plane| (plane - 1.0).abs().mean(plane.kind()))
    }

    fn sum_with_time(&self, of: impl Fn(&Tensor) -> Tensor) -> Tensor {
        self.sum(|plane, with_time| {
            if with_time {
                of(plane)
            } else {
                Tensor::zeros([], (plane.kind(), plane.device()))
            }
        })
    }

    /// Σ `of(plane, whether it has time)`.
    fn sum(&self, of: impl Fn(&Tensor, bool) -> Tensor) -> Tensor {
        let scales = self.grids.iter();
        let planes = scales.flat_map(|planes| planes.iter().zip(self.config.pairs()));
        planes.map(|(plane, (_, j))| of(plane, j == TIME)).sum()
    }

    /// The config they were built from.
    pub fn config(&self) -> &PlanesConfig {
        &self.config
    }
}

/// Bilinear samples of `plane [1, F, H, W]` at `at [1, 1, N, 2]`, of which the first number goes along W → `[N, F]`.
fn sample(plane: &Tensor, at: &Tensor) -> Tensor {
    const BILINEAR: i64 = 0;
    const BORDER: i64 = 1;
    let samples = plane.grid_sampler(at, BILINEAR, BORDER, true); // [1, F, 1, N]
    samples.squeeze_dim(2).squeeze_dim(0).transpose(0, 1)
}

/// `xs[k + 1] - xs[k]` along `axis`.
fn differences(xs: &Tensor, axis: i64) -> Tensor {
    let size = xs.size()[axis as usize];
    let steps = (size - 1).max(0);
    xs.narrow(axis, size - steps, steps) - xs.narrow(axis, 0, steps)
}

/// 0 where there is nothing: an axis of a single value has no differences.
fn mean_square(xs: &Tensor) -> Tensor {
    xs.square().sum(xs.kind()) / xs.numel().max(1) as f64
}

/// Sizes of a radiance field upon planes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KPlanesConfig {
    /// The planes.
    pub planes: PlanesConfig,
    /// What reads them.
    pub head: NgpHeadConfig,
}

impl KPlanesConfig {
    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        self.planes.validate()?;
        self.head.validate()
    }

    /// Creates the parameters under `vs`, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<KPlanes> {
        self.validate()?;
        Ok(KPlanes {
            planes: self.planes.build(vs)?,
            head: self.head.build(vs, self.planes.width())?,
        })
    }

    /// Multiply-accumulates of all matrix products for one point.
    pub fn macs(&self) -> u64 {
        self.head.macs(self.planes.width())
    }
}

/// A radiance field, with or without motion: planes and the head that reads them.
#[derive(Debug)]
pub struct KPlanes {
    planes: Planes,
    head: NgpHead,
}

impl KPlanes {
    /// Density of points: `coords [N, 3 or 4]` in [-1, 1] → `[N]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `coords` has another size or kind.
    pub fn density(&self, coords: &Tensor) -> Result<Tensor> {
        Ok(self.head.density(&self.planes.forward(coords)?)?.0)
    }

    /// Density `[N]` and colour `[N, 3]` of points `coords [N, 3 or 4]` seen along `dirs [N, 3]` of length 1.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not fit.
    pub fn forward(&self, coords: &Tensor, dirs: &Tensor) -> Result<(Tensor, Tensor)> {
        self.head.forward(&self.planes.forward(coords)?, dirs)
    }

    /// The planes, for their regularisers.
    pub fn planes(&self) -> &Planes {
        &self.planes
    }
}
