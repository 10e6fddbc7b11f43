//! CAM: coordinate-aware modulation. After a linear layer of a coordinate network the features are normalised, then scaled and shifted by two
//! scalars per point that are interpolated from a small trained grid.
//!
//! Paper: Lee, Rho, Nam, Ko, Park 2024, "Coordinate-Aware Modulation for Neural Fields" (ICLR). Follows the released code (maincold2/CAM).
//!
//! ```text
//! x' = act(γ(c) · Norm(W x + b) + β(c))      γ, β: linear interpolation in a grid that starts at γ = 1, β = 0
//! ```
//!
//! | signal | grid | indexed by | normalised | outside the grid |
//! | --- | --- | --- | --- | --- |
//! | [image](CamConfig::image) | 2 × 32 × 32 | row, column | each point over its channels | the border's value |
//! | [1-D](CamConfig::signal) | 2 × 64 | place | nothing | fades to 0 |
//! | [moving scene](CamConfig::time) | 2 × 5 | time | nothing | fades to 0 |
//! | [scene by direction](CamConfig::directions) | 2 × 10 × 3 | direction of the ray | each ray over samples and channels | the border's value |
//! | [scene by place](CamConfig::tri_plane) | 2 × 3 × 512 × 512 | three planes, multiplied | nothing | fades to 0 |
//! | [video](TemporalConfig) | 2 × 60 × channels | time | each channel over the frame | the border's value |
//!
//! Differs from the released code: the gradient with respect to a place in three planes is not cut off; the shift of the three planes, which can
//! never leave 0 there, has a setting under which it learns ([`Grid::TriPlane`]). The released grid of directions lacks the line that declares
//! its method; what stands here is what its copy for mip-NeRF 360 does.

pub mod compress;
mod network;
mod video;

pub(crate) use network::{ModulatedLinear, check_cam, check_coords, modulate, named, relu_network};
pub use video::{TemporalConfig, TemporalModulation};

use densely_core::{Error, Model, Result, Tensors, check, nn, registry};
use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Device, Kind, Tensor};

use crate::encodings::at_least_single;
use crate::sizes::check_weights;

/// Most cells along an axis.
const MOST_CELLS: i64 = 1 << 16;

/// The grid of one layer, and what indexes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Grid {
    /// Parameter `[1, 2, columns, rows]`, bilinear: the first coordinate runs along the last axis, as in the released code.
    Plane {
        /// Cells along the first coordinate, which is an image's row.
        rows: i64,
        /// Cells along the second coordinate, which is an image's column.
        columns: i64,
    },
    /// Parameter `[1, 2, cells, 1]`, linear in one coordinate.
    Line {
        /// Cells along the coordinate.
        cells: i64,
    },
    /// Parameter `[1, 2, azimuths, elevations]`, bilinear in the angles of a direction `(x, y, z)`: azimuth atan2(y, x) / 2π + 1/2 spans the
    /// first axis; elevation -2/π · atan2(z, √(x² + y²)) spans the second from 0, the horizon, to 1, straight down, and all that points
    /// upwards reads the horizon's row.
    Directions {
        /// Cells of the azimuth.
        azimuths: i64,
        /// Cells of the elevation.
        elevations: i64,
    },
    /// Parameter `[6, 1, side, side]`: planes xy, xz, yz of the scale, then of the shift; each is the product of its three.
    TriPlane {
        /// Cells of each axis.
        side: i64,
        /// Whether the shift can learn. In the released code all three planes of the shift start at 0, so that the gradient of their product
        /// is 0 for ever; here two of them start at 1 if this is set. Either way the shift starts at 0.
        live_shift: bool,
    },
}

impl Grid {
    /// Numbers that index the grid: of a direction or a place three, else one per axis.
    pub const fn dims(self) -> i64 {
        match self {
            Self::Line { .. } => 1,
            Self::Plane { .. } => 2,
            Self::Directions { .. } | Self::TriPlane { .. } => 3,
        }
    }

    /// Trained values of one layer.
    pub fn values(self) -> i64 {
        self.size().iter().product()
    }

    const fn size(self) -> [i64; 4] {
        match self {
            Self::Plane { rows, columns } => [1, 2, columns, rows],
            Self::Line { cells } => [1, 2, cells, 1],
            Self::Directions {
                azimuths,
                elevations,
            } => [1, 2, azimuths, elevations],
            Self::TriPlane { side, .. } => [6, 1, side, side],
        }
    }

    /// Scale 1 and shift 0.
    fn initial(self) -> Tensor {
        let size = self.size();
        // The axis along which the shift follows the scale.
        let axis = usize::from(size[1] == 2);
        let values = Tensor::ones(size, (Kind::Float, Device::Cpu));
        let half = size[axis] / 2;
        let _ = values.narrow(axis as i64, half, half).fill_(0.0);
        if let Self::TriPlane {
            live_shift: true, ..
        } = self
        {
            let _ = values.narrow(0, 4, 2).fill_(1.0);
        }
        values
    }
}

/// What a point beyond the last cell reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// The nearest cell's value.
    Border,
    /// 0, faded to over the width of one cell.
    Zeros,
}

/// What gets mean 0 and variance 1 (the biased one) before the modulation; nothing is trained in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// Nothing is normalised.
    None,
    /// Each point, over its channels.
    Point,
    /// Each ray, over its samples and their channels together.
    Ray,
}

/// A modulation: its grid, what indexes it and what is normalised before. Defaults are those of an image.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CamConfig {
    /// The grid of each layer.
    pub grid: Grid,
    /// Coordinates of the first and the last cell along every axis; directions do not look at it.
    pub domain: [f64; 2],
    /// What lies outside; directions always read the border.
    pub padding: Padding,
    /// What is normalised.
    pub norm: Norm,
    /// Added to the variance.
    pub eps: f64,
}

impl Default for CamConfig {
    fn default() -> Self {
        Self::image()
    }
}

impl CamConfig {
    /// For images with coordinates (row, column) in 0..1.
    pub const fn image() -> Self {
        Self {
            grid: Grid::Plane {
                rows: 32,
                columns: 32,
            },
            domain: [0.0, 1.0],
            padding: Padding::Border,
            norm: Norm::Point,
            eps: 1e-5,
        }
    }

    /// For signals of one coordinate in 0..1.
    pub const fn signal() -> Self {
        Self {
            grid: Grid::Line { cells: 64 },
            padding: Padding::Zeros,
            norm: Norm::None,
            ..Self::image()
        }
    }

    /// For moving scenes, by the time in 0..1.
    pub const fn time() -> Self {
        Self {
            grid: Grid::Line { cells: 5 },
            ..Self::signal()
        }
    }

    /// For scenes, by the direction of the ray.
    pub const fn directions() -> Self {
        Self {
            grid: Grid::Directions {
                azimuths: 10,
                elevations: 3,
            },
            norm: Norm::Ray,
            eps: 1e-6,
            ..Self::image()
        }
    }

    /// For scenes in the cube of ±1.5, by the place; the shift stays 0 as in the released code.
    pub const fn tri_plane() -> Self {
        Self {
            grid: Grid::TriPlane {
                side: 512,
                live_shift: false,
            },
            domain: [-1.5, 1.5],
            ..Self::signal()
        }
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let axes = match self.grid {
            Grid::Plane { rows, columns } => vec![("rows", rows), ("columns", columns)],
            Grid::Line { cells } => vec![("cells", cells)],
            Grid::Directions {
                azimuths,
                elevations,
            } => vec![("azimuths", azimuths), ("elevations", elevations)],
            Grid::TriPlane { side, .. } => vec![("side", side)],
        };
        for (axis, cells) in axes {
            if !(1..=MOST_CELLS).contains(&cells) {
                let reason = format!("must lie in 1 to {MOST_CELLS}, got {cells}");
                return Err(Error::config(format!("cam.grid.{axis}"), reason));
            }
        }
        let [low, high] = self.domain;
        if !(low.is_finite() && high.is_finite() && low < high) {
            let reason = format!("must be two rising numbers, got [{low}, {high}]");
            return Err(Error::config("cam.domain", reason));
        }
        check_weights("cam.grid", &[self.grid.values()])?;
        check::above_zero("cam.eps", self.eps)
    }

    /// Creates the grid of one layer under `vs`, as `affine`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<Modulation> {
        self.build_as(vs, "affine")
    }

    /// Creates the grid of one layer under `vs`, by the name that it has in a network.
    ///
    /// # Errors
    /// Those of [`build`](Self::build).
    pub(crate) fn build_as(&self, vs: &Path, name: &str) -> Result<Modulation> {
        self.validate()?;
        Ok(Modulation {
            affine: nn::parameter(vs, name, &self.grid.initial()),
            config: *self,
        })
    }
}

/// The modulation of one layer.
#[derive(Debug)]
pub struct Modulation {
    /// Scale and shift; sizes in [`Grid`].
    pub affine: Tensor,
    config: CamConfig,
}

impl Modulation {
    /// Features normalised, scaled and shifted.
    ///
    /// # Shapes
    /// `h` `[points, channels]` and `coords` `[points, dims]` → as `h`; or `h` `[rays, samples, channels]` and `coords`
    /// `[rays, samples, dims]`, or `[rays, dims]` when a ray's samples share theirs. `dims` is [`Grid::dims`].
    /// # Errors
    /// [`Error::Shape`] when they do not fit; [`Error::Torch`].
    pub fn forward(&self, h: &Tensor, coords: &Tensor) -> Result<Tensor> {
        let size = h.size();
        let per_ray = self.config.norm == Norm::Ray;
        if !(size.len() == 3 || size.len() == 2 && !per_ray) {
            return Err(Error::Shape {
                what: "h".to_owned(),
                expected: if per_ray {
                    "[rays, samples, channels]".to_owned()
                } else {
                    "[points, channels] or [rays, samples, channels]".to_owned()
                },
                got: format!("{size:?}"),
            });
        }
        let [scale, shift] = self.scale_and_shift(coords)?;
        let (points, places) = (&size[..size.len() - 1], coords.size());
        let places = &places[..places.len() - 1];
        let [scale, shift] = if places == points {
            [scale, shift]
        } else if size.len() == 3 && places == &points[..1] {
            [scale.unsqueeze(1), shift.unsqueeze(1)] // [rays, 1, 1]
        } else {
            return Err(Error::Shape {
                what: "coords".to_owned(),
                expected: format!("a place for each point of `h` {size:?}"),
                got: format!("{:?}", coords.size()),
            });
        };
        Ok(self.normalise(h)? * scale + shift)
    }

    /// Scale and shift at `coords` `[…, dims]`: `[…, 1]` each.
    ///
    /// # Errors
    /// [`Error::Shape`] when `coords` has another last axis or kind than the grid; [`Error::Torch`].
    pub fn scale_and_shift(&self, coords: &Tensor) -> Result<[Tensor; 2]> {
        let dims = self.config.grid.dims();
        let mut size = coords.size();
        if size.last() != Some(&dims) {
            return Err(Error::Shape {
                what: "coords".to_owned(),
                expected: format!("[…, {dims}]"),
                got: format!("{size:?}"),
            });
        }
        check::kind("coords", coords, self.affine.kind())?;
        let affine = at_least_single(&self.affine);
        let places = self.on_grid(&at_least_single(&coords.reshape([-1, dims])));
        let read = self.sample(&affine, &places)?; // [2, points]
        let read = read.to_kind(coords.kind());
        if let Some(last) = size.last_mut() {
            *last = 1;
        }
        Ok([0, 1].map(|i| read.select(0, i).reshape(&size)))
    }

    /// Whether it is that of an image: each point normalised, then a plane of cells with a border.
    fn is_image(&self) -> bool {
        let CamConfig {
            grid,
            padding,
            norm,
            ..
        } = self.config;
        matches!(grid, Grid::Plane { .. }) && padding == Padding::Border && norm == Norm::Point
    }

    fn normalise(&self, h: &Tensor) -> Result<Tensor> {
        let size = h.size();
        let axes = match self.config.norm {
            Norm::None => return Ok(h.shallow_clone()),
            Norm::Point => 1,
            Norm::Ray => 2,
        };
        let over = &size[size.len() - axes..];
        Ok(h.f_layer_norm(
            over,
            None::<&Tensor>,
            None::<&Tensor>,
            self.config.eps,
            true,
        )?)
    }

    /// Places as the sampler takes them: -1 the first cell, 1 the last; the number that runs along the last axis comes first.
    fn on_grid(&self, coords: &Tensor) -> Tensor {
        let [low, high] = self.config.domain;
        let within = || (coords - low) * (2.0 / (high - low)) - 1.0;
        match self.config.grid {
            Grid::Plane { .. } | Grid::TriPlane { .. } => within(),
            Grid::Line { .. } => {
                let along = within();
                Tensor::cat(&[along.zeros_like(), along], -1)
            }
            Grid::Directions { .. } => {
                let [x, y, z] = [0, 1, 2].map(|axis| coords.select(-1, axis));
                let azimuth = y.atan2(&x) / std::f64::consts::PI;
                let horizontal = (x.square() + y.square()).sqrt();
                let elevation = z.atan2(&horizontal) * (-4.0 / std::f64::consts::PI) - 1.0;
                Tensor::stack(&[elevation, azimuth], -1)
            }
        }
    }

    /// Interpolates at `places` `[points, 2 or 3]`: `[2, points]`.
    fn sample(&self, affine: &Tensor, places: &Tensor) -> Result<Tensor> {
        let padding = match (self.config.grid, self.config.padding) {
            (Grid::Directions { .. }, _) | (_, Padding::Border) => 1,
            (_, Padding::Zeros) => 0,
        };
        let read = |grids: &Tensor, places: &Tensor| grids.f_grid_sampler(places, 0, padding, true);
        let points = places.size()[0];
        let Grid::TriPlane { side, .. } = self.config.grid else {
            let read = read(affine, &places.view([1, points, 1, 2]))?; // [1, 2, points, 1]
            return Ok(read.reshape([2, points]));
        };
        let plane = |a: i64, b: i64| Tensor::stack(&[places.select(1, a), places.select(1, b)], -1);
        let pairs = Tensor::stack(&[plane(0, 1), plane(0, 2), plane(1, 2)], 0); // [3, points, 2]
        // A plane of the scale and its plane of the shift are read together.
        let planes = affine.view([2, 3, side, side]).transpose(0, 1);
        let read = read(&planes, &pairs.unsqueeze(2))?.squeeze_dim(3); // [3, 2, points]
        Ok(read.select(0, 0) * read.select(0, 1) * read.select(0, 2))
    }
}

impl Model for Modulation {
    fn forward_named(&self, inputs: &Tensors, _train: bool) -> Result<Tensors> {
        let [h, coords] = registry::take_inputs(inputs, ["h", "coords"])?;
        let h = h.ok_or_else(|| check::absent("h"))?;
        let coords = coords.ok_or_else(|| check::absent("coords"))?;
        check::kind("h", h, self.affine.kind())?;
        Ok(Tensors::from([("y".to_owned(), self.forward(h, coords)?)]))
    }
}
