//! An occupancy grid: which cells of a box hold anything, so that rays are sampled only there.
//!
//! Paper: Müller et al. 2022, arXiv 2201.05989 (§E.2). Follows nerfacc 0.5's `OccGridEstimator` with one level (Li et al. 2023, arXiv
//! 2305.04966), whose state dicts load.
//!
//! ```text
//! update (every 16 steps):  v_c = max(0.95 v_c, σ(x) · step) at a random point x of the cell, for all cells in the first 256 steps, later
//!                           for N/4 cells at random and the occupied ones (N/4 of them at most)
//!                           occupied_c = v_c > min(mean v, 0.01)
//! march:                    of the pieces [near + k·step, near + (k+1)·step) of a ray those whose middle lies in an occupied cell
//! sample:                   of those the ones that light reaches (T ≥ 1e-4) and that stop some of it
//!                           (1 - exp(-τ) ≥ min(alpha threshold, mean v))
//! ```
//!
//! Differs from nerfacc: a cell that is drawn twice takes the larger of both values, where nerfacc keeps either; and pieces are
//! counted from `near` in f64, where nerfacc adds up steps in f32, so that its last samples of long rays may lie a little aside.

use densely_core::nn::buffer;
use densely_core::{Error, Result, check};
use serde::{Deserialize, Serialize};
use tch::nn::Path;
use tch::{Device, Kind, Tensor};

use crate::parallel;
use crate::render::packed::Samples;
use crate::render::rays::{Aabb, Rays};

/// Sizes and rules of an occupancy grid. Defaults are those of nerfacc's NeRF examples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OccupancyConfig {
    /// The box that is divided into cells; outside of it nothing is sampled.
    pub aabb: Aabb,
    /// Cells along each axis.
    pub resolution: i64,
    /// Length of a sample, in units of space.
    pub step: f64,
    /// Training steps between updates.
    pub every: u64,
    /// Training steps in which updates go over all cells.
    pub warmup: u64,
    /// What an update leaves of a cell's old value.
    pub decay: f64,
    /// Largest value at which a cell counts as empty.
    pub threshold: f64,
}

impl Default for OccupancyConfig {
    fn default() -> Self {
        Self {
            aabb: Aabb::centred(1.5),
            resolution: 128,
            step: 5e-3,
            every: 16,
            warmup: 256,
            decay: 0.95,
            threshold: 1e-2,
        }
    }
}

/// Most cells along an axis: 4 GiB of values.
const MOST_SIDE: i64 = 1024;

/// Most steps along a ray; beyond, a piece's number may not be a whole number of f64 any more.
const MOST_STEPS: f64 = 1e12;

/// Rays that are marched together, by one thread.
const RAYS: usize = 64;

impl OccupancyConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        self.aabb.validate()?;
        if !(1..=MOST_SIDE).contains(&self.resolution) {
            let reason = format!("must lie in 1 to {MOST_SIDE}, got {}", self.resolution);
            return Err(Error::config("resolution", reason));
        }
        check::positive("every", self.every as i64)?;
        for (field, value) in [("step", self.step), ("threshold", self.threshold)] {
            check::above_zero(field, value)?;
        }
        if (0.0..=1.0).contains(&self.decay) {
            return Ok(());
        }
        Err(Error::config(
            "decay",
            format!("must lie in [0, 1], got {}", self.decay),
        ))
    }

    /// Creates the grid under `vs`, as buffers; all cells are empty.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<OccupancyGrid> {
        self.validate()?;
        let side = self.resolution;
        let corners = Tensor::from_slice(&[self.aabb.min, self.aabb.max].concat());
        let _ = buffer(vs, "resolution", &Tensor::from_slice(&[side as i32; 3]));
        let empty = |size: &[i64], kind| Tensor::zeros(size, (kind, Device::Cpu));
        Ok(OccupancyGrid {
            corners: buffer(vs, "aabbs", &corners.to_kind(Kind::Float).view([1, 6])),
            values: buffer(vs, "occs", &empty(&[self.cells()], Kind::Float)),
            occupied: buffer(vs, "binaries", &empty(&[1, side, side, side], Kind::Bool)),
            config: self.clone(),
        })
    }

    /// Number of cells, N.
    pub const fn cells(&self) -> i64 {
        self.resolution * self.resolution * self.resolution
    }
}

/// An occupancy grid.
#[derive(Debug)]
pub struct OccupancyGrid {
    corners: Tensor,
    values: Tensor,
    occupied: Tensor,
    config: OccupancyConfig,
}

impl OccupancyGrid {
    /// What it was made from.
    pub const fn config(&self) -> &OccupancyConfig {
        &self.config
    }

    /// The box: that of the weights, if any were loaded.
    ///
    /// # Errors
    /// [`Error::Config`] when it is empty.
    pub fn aabb(&self) -> Result<Aabb> {
        let at = |i: i64| self.corners.double_value(&[0, i]);
        let aabb = Aabb {
            min: [0, 1, 2].map(at),
            max: [3, 4, 5].map(at),
        };
        aabb.validate()?;
        Ok(aabb)
    }

    /// v of each cell, z fastest: `[N]`.
    pub const fn values(&self) -> &Tensor {
        &self.values
    }

    /// Which cells are occupied: bool `[1, resolution, resolution, resolution]`, by x, y, z.
    pub const fn occupied(&self) -> &Tensor {
        &self.occupied
    }

    /// Updates the grid where `step` is a multiple of `every`; says whether it was. Draws cells and points from libtorch's global generator.
    ///
    /// `density` gives σ, `[points]`, of points `[points, 3]` in the box.
    /// # Errors
    /// What `density` refuses, and [`Error::Shape`] when it gives another size.
    pub fn update(
        &mut self,
        step: u64,
        density: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<bool> {
        if !step.is_multiple_of(self.config.every) {
            return Ok(false);
        }
        let cells = self.drawn_cells(step);
        let places = Tensor::rand([cells.size()[0], 3], (Kind::Float, self.values.device()));
        self.update_cells(&cells, &places, density)?;
        Ok(true)
    }

    /// All cells in the first steps, later a quarter at random and the occupied ones or, where these are more, a quarter of their own.
    fn drawn_cells(&self, step: u64) -> Tensor {
        let (all, options) = (self.config.cells(), (Kind::Int64, self.values.device()));
        if step < self.config.warmup {
            return Tensor::arange(all, options);
        }
        let quarter = all / 4;
        let random = Tensor::randint(all, [quarter], options);
        let mut occupied = self.occupied.flatten(0, -1).nonzero().squeeze_dim(1);
        let count = occupied.size()[0];
        if quarter < count {
            occupied = occupied.index_select(0, &Tensor::randint(count, [quarter], options));
        }
        Tensor::cat(&[random, occupied], 0)
    }

    /// Updates the values of some cells by the density at one point of each, and then which cells are occupied.
    ///
    /// # Shapes
    /// `cells`: i64 `[points]`; `places`: `[points, 3]`, each in its cell from 0 to 1.
    /// # Errors
    /// What `density` refuses, and [`Error::Shape`] when a size does not fit.
    pub fn update_cells(
        &mut self,
        cells: &Tensor,
        places: &Tensor,
        density: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        check::shape("cells", cells, &[None])?;
        check::kind("cells", cells, Kind::Int64)?;
        let count = cells.size()[0];
        let cells_are_there = count == 0
            || (cells.min().int64_value(&[]) >= 0
                && cells.max().int64_value(&[]) < self.config.cells());
        if !cells_are_there {
            return Err(Error::Shape {
                what: "cells".to_owned(),
                expected: format!("numbers from 0 to {}", self.config.cells() - 1),
                got: "others".to_owned(),
            });
        }
        check::shape("places", places, &[Some(count), Some(3)])?;
        let _no_grad = tch::no_grad_guard();
        let values = density(&self.points(cells, places)?)?;
        check::shape("density", &values, &[Some(count)])?;
        let values = values.to_kind(self.values.kind()) * self.config.step;
        let faded = self.values.index_select(0, cells) * self.config.decay;
        let faded = self.values.index_copy(0, cells, &faded);
        // Of a cell that was drawn twice the larger value. tch's name for libtorch's `scatter_reduce`.
        let updated = faded.f_internal_scatter_reduce(0, cells, &values, "amax", true)?;
        self.values.copy_(&updated);
        let threshold = self.mean().min(self.config.threshold);
        self.occupied
            .copy_(&updated.gt(threshold).view_as(&self.occupied));
        Ok(())
    }

    /// Mean of all values.
    fn mean(&self) -> f64 {
        self.values.mean(None).double_value(&[])
    }

    /// Points of the box: place `[points, 3]` from 0 to 1 in each of the cells.
    fn points(&self, cells: &Tensor, places: &Tensor) -> Result<Tensor> {
        let side = self.config.resolution;
        let divided = |by: i64| cells.divide_scalar_mode(by, "floor");
        let index = [
            divided(side * side),
            divided(side).remainder(side),
            cells.remainder(side),
        ];
        let share = (Tensor::stack(&index, 1).to_kind(places.kind()) + places) / side as f64;
        let Aabb { min, max } = self.aabb()?;
        let corner = |values: [f64; 3]| {
            Tensor::from_slice(&values)
                .to_kind(places.kind())
                .to_device(places.device())
        };
        Ok(corner(min) + share * (corner(max) - corner(min)))
    }

    /// The pieces of rays that have their middle in an occupied cell.
    ///
    /// # Shapes
    /// `jitter`: `[rays]`, in [0, 1): by how much of a step each ray's pieces are moved, for training; absent for evaluation. Directions of
    /// the rays have length 1.
    /// # Errors
    /// [`Error::Shape`] when a size or a length does not fit; [`Error::Config`] unless `near` is finite and `far` not before it.
    pub fn march(
        &self,
        rays: &Rays,
        near: f64,
        far: f64,
        jitter: Option<&Tensor>,
    ) -> Result<Samples> {
        if !(near.is_finite() && far >= near) {
            let reason = format!("must be finite and at most `far`, got {near} and {far}");
            return Err(Error::config("near", reason));
        }
        // Steps of a direction without length would go on for ever.
        let fits = (rays.lengths() - 1.0).abs().le(1e-3).all();
        if fits.int64_value(&[]) == 0 {
            return Err(Error::Shape {
                what: "dirs".to_owned(),
                expected: "directions of length 1".to_owned(),
                got: "others".to_owned(),
            });
        }
        finite("origins", rays.origins())?;
        if let Some(jitter) = jitter {
            check::shape("jitter", jitter, &[Some(rays.count())])?;
            finite("jitter", jitter)?;
        }
        let walk = Walk::new(self, rays, near, far, jitter)?;
        walk.check_steps()?;
        let count = rays.count() as usize;
        let firsts: Vec<usize> = (0..count).step_by(RAYS).collect();
        let found: Vec<Found> = parallel::map(&firsts, 1, |first| {
            let mut found = Found::default();
            for ray in (*first..count.min(first + RAYS)).filter(|ray| walk.hit[*ray]) {
                walk.ray(ray, &mut found);
            }
            found
        });
        let joined = |part: fn(&Found) -> &Vec<f64>| -> Vec<f64> {
            found.iter().flat_map(|f| part(f).iter().copied()).collect()
        };
        let (kind, device) = (rays.origins().kind(), rays.origins().device());
        let tensor = |values: Vec<f64>| Tensor::from_slice(&values).to_kind(kind).to_device(device);
        let numbers: Vec<i64> = found.iter().flat_map(|f| f.ray.iter().copied()).collect();
        Samples::new(
            Tensor::from_slice(&numbers).to_device(device),
            tensor(joined(|f| &f.start)),
            tensor(joined(|f| &f.end)),
            rays.count(),
        )
    }

    /// [`march`](Self::march), and of those samples the ones that are seen; `density` gives σ, `[samples]`.
    ///
    /// `alpha_threshold` is the opacity below which a sample is left out, never more than the mean value of the grid.
    /// # Errors
    /// Those of [`march`](Self::march), what `density` refuses, and [`Error::Shape`] when it gives another size.
    pub fn sample(
        &self,
        rays: &Rays,
        [near, far]: [f64; 2],
        jitter: Option<&Tensor>,
        alpha_threshold: f64,
        density: impl FnOnce(&Samples) -> Result<Tensor>,
    ) -> Result<Samples> {
        let samples = self.march(rays, near, far, jitter)?;
        self.seen(&samples, alpha_threshold, density)
    }

    /// The second half of [`sample`](Self::sample): of samples that [`march`](Self::march) found the ones that are seen.
    ///
    /// # Errors
    /// What `density` refuses, and [`Error::Shape`] when it gives another size.
    pub fn seen(
        &self,
        samples: &Samples,
        alpha_threshold: f64,
        density: impl FnOnce(&Samples) -> Result<Tensor>,
    ) -> Result<Samples> {
        const LEAST_LIGHT: f64 = 1e-4;
        let _no_grad = tch::no_grad_guard();
        let sigma = density(samples)?;
        let seen = samples.visible(&sigma, LEAST_LIGHT, alpha_threshold.min(self.mean()))?;
        samples.keep(&seen)
    }
}

/// Pieces of some rays.
#[derive(Default)]
struct Found {
    ray: Vec<i64>,
    start: Vec<f64>,
    end: Vec<f64>,
}

/// What marching reads, as plain numbers.
struct Walk {
    origins: Vec<f64>,
    dirs: Vec<f64>,
    enter: Vec<f64>,
    leave: Vec<f64>,
    hit: Vec<bool>,
    first: Vec<f64>,
    occupied: Vec<bool>,
    min: [f64; 3],
    cell: [f64; 3],
    side: i64,
    step: f64,
}

impl Walk {
    fn new(
        grid: &OccupancyGrid,
        rays: &Rays,
        near: f64,
        far: f64,
        jitter: Option<&Tensor>,
    ) -> Result<Self> {
        let OccupancyConfig {
            resolution, step, ..
        } = grid.config;
        let aabb = grid.aabb()?;
        let numbers = |xs: &Tensor| -> Result<Vec<f64>> {
            let xs = xs.detach().to_device(Device::Cpu).to_kind(Kind::Double);
            Ok(Vec::try_from(xs.contiguous().view(-1))?)
        };
        let bits = |xs: &Tensor| -> Result<Vec<bool>> {
            Ok(Vec::try_from(
                xs.to_device(Device::Cpu).contiguous().view(-1),
            )?)
        };
        let double = Rays::new(
            rays.origins().to_kind(Kind::Double),
            rays.dirs().to_kind(Kind::Double),
        )?;
        let crossing = double.meet(&aabb, near, far)?;
        let first = match jitter {
            Some(jitter) => numbers(jitter)?.iter().map(|u| near + u * step).collect(),
            None => vec![near; rays.count() as usize],
        };
        Ok(Self {
            origins: numbers(rays.origins())?,
            dirs: numbers(rays.dirs())?,
            enter: numbers(&crossing.enter)?,
            leave: numbers(&crossing.leave)?,
            hit: bits(&crossing.hit)?,
            first,
            occupied: bits(&grid.occupied)?,
            min: aabb.min,
            cell: [0, 1, 2].map(|axis| (aabb.max[axis] - aabb.min[axis]) / resolution as f64),
            side: resolution,
            step,
        })
    }

    fn check_steps(&self) -> Result<()> {
        let steps = self.hit.iter().zip(self.leave.iter().zip(&self.first));
        let most = steps
            .filter(|(hit, _)| **hit)
            .map(|(_, (leave, first))| (leave - first) / self.step)
            .fold(0.0, f64::max);
        if most <= MOST_STEPS {
            return Ok(());
        }
        let reason = format!("makes {most:e} steps of a ray; at most {MOST_STEPS:e} are taken");
        Err(Error::config("step", reason))
    }

    /// The pieces of one ray. Decided by the middle of each; what lies in the same empty cell is stepped over at once.
    fn ray(&self, ray: usize, found: &mut Found) {
        let line = self.line(ray);
        let (step, near) = (self.step, self.first[ray]);
        // Number of the first piece whose middle is not before t.
        let number = |t: f64| ((t - near) / step - 0.5).ceil().max(0.0);
        let mut k = number(self.enter[ray]);
        loop {
            let middle = near + (k + 0.5) * step;
            let goes_on = middle < self.leave[ray];
            if !goes_on {
                return;
            }
            let (cell, left) = line.at(middle, self.side);
            if self.occupied[cell] {
                found.ray.push(ray as i64);
                found.start.push(near + k * step);
                found.end.push(near + (k + 1.0) * step);
                k += 1.0;
            } else {
                // Where the cell ends is rounded: a piece that may lie in it is looked at.
                k = number(left - 1e-6 * step).max(k + 1.0);
            }
        }
    }

    fn line(&self, ray: usize) -> Line {
        let of = |values: &[f64], axis: usize| values[3 * ray + axis];
        let pace = [0, 1, 2].map(|axis| of(&self.dirs, axis) / self.cell[axis]);
        Line {
            start: [0, 1, 2].map(|i| (of(&self.origins, i) - self.min[i]) / self.cell[i]),
            pace,
            time: pace.map(|pace| {
                if pace == 0.0 {
                    f64::INFINITY
                } else {
                    1.0 / pace
                }
            }),
        }
    }
}

/// Fails where a value is not a number, or infinite.
fn finite(what: &str, xs: &Tensor) -> Result<()> {
    if xs.isfinite().all().int64_value(&[]) == 1 {
        return Ok(());
    }
    Err(Error::Shape {
        what: what.to_owned(),
        expected: "finite numbers".to_owned(),
        got: "others".to_owned(),
    })
}

/// A ray in units of cells, from the box's corner.
struct Line {
    start: [f64; 3],
    /// Cells per unit of t.
    pace: [f64; 3],
    /// t per cell.
    time: [f64; 3],
}

impl Line {
    /// The cell in which the point at `t` lies, and where the ray leaves it.
    fn at(&self, t: f64, side: i64) -> (usize, f64) {
        let (mut cell, mut left) = (0, f64::INFINITY);
        for axis in 0..3 {
            let place = self.start[axis] + t * self.pace[axis];
            let index = (place as i64).clamp(0, side - 1);
            cell = cell * side + index;
            let border = index + i64::from(self.pace[axis] >= 0.0);
            left = left.min((border as f64 - self.start[axis]) * self.time[axis]);
        }
        (cell as usize, left)
    }
}
