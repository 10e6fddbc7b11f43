//! DiF-Grid: features from a few dense grids, each laid over the domain several times.
//!
//! Paper: Chen, Xu, Wei, Tang, Su, Geiger 2023, "Factor Fields", arXiv 2302.01226; here without its coefficient grid, as GNF has it.
//!
//! ```text
//! level i tiles the extent 2 of the domain f_i times:  s = 2 / f_i,  u = ((x + 1) mod s) / (s / 2) - 1
//! features = concat over i of grid_i at u, interpolated linearly, the border repeated outside
//! ```
//!
//! The last axis of a grid runs along the first coordinate, as `grid_sample` has it.

use densely_core::nn::parameter;
use densely_core::{Error, Result, check};
use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Device, Kind, Tensor};

use crate::cam::check_coords;
use crate::encodings::at_least_single;
use crate::sizes::check_weights;

/// How often a level tiles the domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tiling {
    /// As often as its band says.
    Bands,
    /// As often as its grid has cells along an axis: what the released encoder of pictures and signed distances does, which passes
    /// resolutions for bands. Each cell of the grid then sees only 1 / resolution² of the picture per tile.
    Resolutions,
}

/// Sizes of a DiF-Grid. Defaults are the authors' for pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DifGridConfig {
    /// Coordinates of a point: 2 or 3.
    pub dim: i64,
    /// Features of each level.
    pub channels: Vec<i64>,
    /// Cells of each level along each axis.
    pub resolutions: Vec<i64>,
    /// How often each level tiles the domain.
    pub bands: Vec<f64>,
    /// Whether that is done.
    pub tiling: Tiling,
    /// Whether -1 and 1 are the middles of the outermost cells, or their outer borders.
    pub align_corners: bool,
    /// Standard deviation of fresh values; the released code has 1.
    pub deviation: f64,
}

impl Default for DifGridConfig {
    fn default() -> Self {
        Self {
            dim: 2,
            channels: vec![4, 4, 4, 2, 2, 2],
            resolutions: vec![32, 51, 70, 89, 108, 128],
            bands: vec![2.0, 3.2, 4.4, 5.6, 6.8, 8.0],
            tiling: Tiling::Bands,
            align_corners: false,
            deviation: 1.0,
        }
    }
}

impl DifGridConfig {
    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        if !matches!(self.dim, 2 | 3) {
            let reason = format!("must be 2 or 3, got {}", self.dim);
            return Err(Error::config("dim", reason));
        }
        let levels = self.channels.len();
        check::positive("channels", levels as i64)?;
        for (field, count) in [
            ("resolutions", self.resolutions.len()),
            ("bands", self.bands.len()),
        ] {
            if count != levels {
                let reason = format!("must have an entry for each of {levels} levels, got {count}");
                return Err(Error::config(field, reason));
            }
        }
        for (channels, resolution) in self.channels.iter().zip(&self.resolutions) {
            check::positive("channels", *channels)?;
            check::positive("resolutions", *resolution)?;
        }
        check_weights("resolutions", &[self.values()])?;
        check::above_zero("deviation", self.deviation)?;
        let mut bands = self.bands.iter();
        bands.try_for_each(|band| check::above_zero("bands", *band))
    }

    /// Features of a point.
    pub fn features(&self) -> i64 {
        self.channels.iter().sum()
    }

    /// Values of all grids.
    pub fn values(&self) -> i64 {
        let level = |(channels, resolution): (&i64, &i64)| {
            channels.saturating_mul(resolution.saturating_pow(self.dim as u32))
        };
        let values = self.channels.iter().zip(&self.resolutions).map(level);
        values.fold(0, i64::saturating_add)
    }

    /// The same levels with resolutions scaled so that the grids have about `values` values, as Factor Fields sizes them: by
    /// (values / Σ channels · resolution^dim)^(1 / dim), rounded to even halves.
    ///
    /// # Errors
    /// [`Error::Config`] when this is not valid or `values` is too small for one cell per level.
    pub fn sized(&self, values: i64) -> Result<Self> {
        self.validate()?;
        check::positive("values", values)?;
        let scale = (values as f64 / self.values() as f64).powf(1.0 / self.dim as f64);
        let scaled = |resolution: &i64| (*resolution as f64 * scale).round_ties_even() as i64;
        let sized = Self {
            resolutions: self.resolutions.iter().map(scaled).collect(),
            ..self.clone()
        };
        sized.validate()?;
        Ok(sized)
    }

    /// Creates the parameters under `vs`, drawing normal numbers from libtorch's global generator.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<DifGrid> {
        self.validate()?;
        let vs = vs / "basis_functions";
        let levels = self.channels.iter().zip(&self.resolutions).enumerate();
        let grid = |(i, (channels, resolution)): (usize, (&i64, &i64))| {
            let mut size = vec![*channels];
            size.extend(vec![*resolution; self.dim as usize]);
            let values = Tensor::randn(size.as_slice(), (Kind::Float, Device::Cpu));
            // Not multiplied by 1: the same bits as the released code.
            let values = if self.deviation.total_cmp(&1.0).is_eq() {
                values
            } else {
                values * self.deviation
            };
            parameter(&vs, &i.to_string(), &values)
        };
        let tiles: Vec<f64> = match self.tiling {
            Tiling::Bands => self.bands.clone(),
            Tiling::Resolutions => self.resolutions.iter().map(|r| *r as f64).collect(),
        };
        Ok(DifGrid {
            grids: levels.map(grid).collect(),
            tiles,
            config: self.clone(),
        })
    }
}

/// Dense grids that tile the domain.
#[derive(Debug)]
pub struct DifGrid {
    /// Each `[channels, resolution, …]`.
    grids: Vec<Tensor>,
    tiles: Vec<f64>,
    config: DifGridConfig,
}

/// Extent of the domain [-1, 1].
const EXTENT: f64 = 2.0;

/// Linear interpolation and repeated borders, in the numbers of `grid_sample`.
const LINEAR: i64 = 0;
const BORDER: i64 = 1;

impl DifGrid {
    /// The sizes it was built with.
    pub const fn config(&self) -> &DifGridConfig {
        &self.config
    }

    /// Features of points: coordinates `[points, dim]` in [-1, 1] → `[points, features]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `coords` does not fit the config.
    pub fn forward(&self, coords: &Tensor) -> Result<Tensor> {
        let DifGridConfig {
            dim, align_corners, ..
        } = self.config;
        check_coords(coords, dim, self.grids[0].kind())?;
        let places = self.places(&at_least_single(coords)); // [levels, points, dim]
        let points = coords.size()[0];
        // One grid at all points, [1, points, 1, …, dim]: a grid per point would have a gradient per point.
        let size = [&[1, points][..], &[1, 1][..dim as usize - 1], &[dim]].concat();
        let features: Vec<Tensor> = (0..)
            .zip(&self.grids)
            .map(|(i, grid)| {
                let grid = at_least_single(grid).unsqueeze(0);
                let places = places.select(0, i).view(size.as_slice());
                let found = grid.grid_sampler(&places, LINEAR, BORDER, align_corners);
                found.view([grid.size()[1], points]) // [channels, points]
            })
            .collect();
        Ok(Tensor::cat(&features, 0)
            .transpose(0, 1)
            .to_kind(coords.kind()))
    }

    /// Where each level is read: coordinates `[points, dim]` → `[levels, points, dim]` in [-1, 1].
    fn places(&self, coords: &Tensor) -> Tensor {
        // Divided in the kind of the coordinates, as the reference does it, so that points on the seam of two tiles fall to the same side.
        let tiles = Tensor::from_slice(&self.tiles)
            .to_kind(coords.kind())
            .to_device(coords.device());
        let tile = (EXTENT / tiles).view([-1, 1, 1]);
        let along = (coords + 1.0).unsqueeze(0);
        let within = along.remainder_tensor(&tile);
        // A tile that spans the domain ends where it ends: 1 must not be taken for -1.
        let within = along
            .clamp(0.0, EXTENT)
            .where_self(&tile.ge(EXTENT), &within);
        (within / (tile * 0.5) - 1.0).clamp(-1.0, 1.0)
    }
}
