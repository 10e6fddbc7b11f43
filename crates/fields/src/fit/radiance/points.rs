//! Radiance fields that are looked at in points, and the grid that says in which.

use std::cell::{Cell, RefCell};

use densely_core::{Result, check};
use tch::{Kind, Reduction, Tensor};

use super::some;
use crate::gnf::{DISTANCE_SCALE, GnfRadiance, Radiance};
use crate::hashgrid::Ngp;
use crate::nerf::Nerf;
use crate::occupancy::OccupancyGrid;
use crate::render::Rendered;
use crate::render::packed::Samples;
use crate::render::rays::{Aabb, Rays};

/// Points that the network looks at together where no gradient is kept.
const POINTS: i64 = 1 << 16;
/// Rays that are marched together at least: reading the grid costs more than marching fewer.
const LEAST_RAYS: i64 = 64;
/// Rays that are marched together at most: all samples of a full grid are held at once.
const MOST_RAYS: i64 = 8192;

/// A network that gives density and colour at points.
#[derive(Debug)]
pub(super) enum Network {
    Nerf(Box<Nerf>),
    Ngp(Box<Ngp>),
    Gnf(Box<GnfRadiance>),
}

/// A network and its grid.
#[derive(Debug)]
pub(super) struct Points {
    network: Network,
    grid: RefCell<OccupancyGrid>,
    /// Samples that a ray had when rays were last marched. How many are marched at once depends on it, and no result.
    per_ray: Cell<f64>,
}

/// How rays are looked along.
#[derive(Debug)]
pub(super) struct Look<'a> {
    /// From where to where.
    pub(super) span: [f64; 2],
    /// By how much of a step each ray's pieces are moved: `[rays]`.
    pub(super) jitter: Option<&'a Tensor>,
    /// Opacity below which a sample is left out.
    pub(super) alpha_threshold: f64,
    /// Samples of all rays at most, but for those of a single one.
    pub(super) most: i64,
}

impl Network {
    fn has_time(&self) -> bool {
        matches!(self, Self::Nerf(nerf) if nerf.config().warp.is_some())
    }

    /// Density per unit of space, `[points]`, of places in the world; `times`: `[points, 1]`.
    fn density(&self, places: &Tensor, times: Option<&Tensor>, aabb: &Aabb) -> Result<Tensor> {
        match self {
            Self::Nerf(nerf) => nerf.density(places, times),
            Self::Ngp(ngp) => ngp.density(&in_unit_cube(places, aabb)),
            Self::Gnf(gnf) => Ok(gnf.density(&in_cube(places, aabb))? * DISTANCE_SCALE),
        }
    }

    /// Density per unit of space, `[points]`, and colour, `[points, 3]`, seen along `dirs`, `[points, 3]` of length 1.
    fn radiance(
        &self,
        places: &Tensor,
        dirs: &Tensor,
        times: Option<&Tensor>,
        aabb: &Aabb,
    ) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Nerf(nerf) => {
                let values = nerf.forward(places, dirs, times)?;
                Ok((values.select(1, 3), values.narrow(1, 0, 3)))
            }
            Self::Ngp(ngp) => ngp.forward(&in_unit_cube(places, aabb), dirs),
            Self::Gnf(gnf) => {
                let Radiance { density, colour } = gnf.forward(&in_cube(places, aabb), dirs)?;
                Ok((density * DISTANCE_SCALE, colour))
            }
        }
    }
}

impl Points {
    pub(super) fn new(network: Network, grid: RefCell<OccupancyGrid>) -> Self {
        Self {
            network,
            grid,
            per_ray: Cell::new(1e3),
        }
    }

    pub(super) fn has_time(&self) -> bool {
        self.network.has_time()
    }

    /// Updates the grid where it is due; at random moments, where there is time.
    pub(super) fn prepare(&self, step: u64) -> Result<()> {
        let mut grid = self.grid.borrow_mut();
        let aabb = grid.aabb()?;
        grid.update(step, |places| {
            let size = [places.size()[0], 1];
            let drawn = || Tensor::rand(size, (places.kind(), places.device()));
            let times = self.has_time().then(drawn);
            self.density(places, times.as_ref(), &aabb)
        })?;
        Ok(())
    }

    /// What the first rays see that have at most `look.most` samples together. Rays have directions of length 1; `times`: `[rays, 1]`.
    pub(super) fn see(&self, rays: &Rays, times: Option<&Tensor>, look: &Look) -> Result<Rendered> {
        let aabb = self.grid.borrow().aabb()?;
        let samples = self.march(rays, look)?;
        let rays = some(rays, 0, samples.rays())?;
        let times_of = |samples: &Samples| times.map(|times| times.index_select(0, samples.ray()));
        let kept = self
            .grid
            .borrow()
            .seen(&samples, look.alpha_threshold, |samples| {
                let (places, _) = samples.points(&rays)?;
                self.density(&places, times_of(samples).as_ref(), &aabb)
            })?;
        if kept.count() == 0 {
            return self.nothing(&rays, times, &aabb);
        }
        let (places, dirs) = kept.points(&rays)?;
        let times = times_of(&kept);
        let (density, colour) = self
            .network
            .radiance(&places, &dirs, times.as_ref(), &aabb)?;
        kept.render(&density, &colour)
    }

    /// What training minimises: of colours `[rays, 3]`, the mean over rays and channels.
    pub(super) fn loss(&self, rgb: &Tensor, target: &Tensor) -> Tensor {
        match &self.network {
            Network::Gnf(_) => rgb.mse_loss(target, Reduction::Mean),
            Network::Nerf(_) | Network::Ngp(_) => rgb.smooth_l1_loss(target, Reduction::Mean, 1.0),
        }
    }

    /// Density without gradient, part by part.
    fn density(&self, places: &Tensor, times: Option<&Tensor>, aabb: &Aabb) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let count = places.size()[0];
        let mut parts = Vec::new();
        let mut first = 0;
        while first < count {
            let part = POINTS.min(count - first);
            let of = |xs: &Tensor| xs.narrow(0, first, part);
            let times = times.map(of);
            parts.push(self.network.density(&of(places), times.as_ref(), aabb)?);
            first += part;
        }
        if parts.is_empty() {
            return Ok(Tensor::zeros([0], (places.kind(), places.device())));
        }
        Ok(Tensor::cat(&parts, 0))
    }

    /// The samples in occupied cells of the first rays that have at most `look.most` of them together; one ray is taken at least.
    fn march(&self, rays: &Rays, look: &Look) -> Result<Samples> {
        check::positive("rays", rays.count())?;
        let grid = self.grid.borrow();
        let [near, far] = look.span;
        let (mut ray, mut start, mut end) = (Vec::new(), Vec::new(), Vec::new());
        let (mut taken, mut samples) = (0, 0);
        while taken < rays.count() && samples < look.most {
            let left = look.most - samples;
            // A few more than should do, so that one round mostly is enough.
            let due = (1.1 * left as f64 / self.per_ray.get()) as i64;
            let block = due.clamp(LEAST_RAYS, MOST_RAYS).min(rays.count() - taken);
            let jitter = look.jitter.map(|jitter| jitter.narrow(0, taken, block));
            let found = grid.march(&some(rays, taken, block)?, near, far, jitter.as_ref())?;
            self.per_ray.set(found.count() as f64 / block as f64);
            // Offsets ascend: the rays that begin before the budget is used up and end within it, however they are cut into blocks.
            let ends = found.offsets();
            let begins = ends.narrow(0, 0, block).lt(left);
            let fits = begins.logical_and(&ends.narrow(0, 1, block).le(left));
            let fitting = fits.sum(Kind::Int64).int64_value(&[]);
            let kept = if taken == 0 { fitting.max(1) } else { fitting };
            let count = ends.int64_value(&[kept]);
            ray.push(found.ray().narrow(0, 0, count) + taken);
            start.push(found.start().narrow(0, 0, count));
            end.push(found.end().narrow(0, 0, count));
            taken += kept;
            samples += count;
            if kept < block {
                break;
            }
        }
        let joined = |parts: &[Tensor]| Tensor::cat(parts, 0);
        Samples::new(joined(&ray), joined(&start), joined(&end), taken)
    }

    /// What rays without a sample see. It depends on the parameters with a gradient of 0, so that a training step takes it as any other.
    fn nothing(&self, rays: &Rays, times: Option<&Tensor>, aabb: &Aabb) -> Result<Rendered> {
        let (count, options) = (rays.count(), (rays.dirs().kind(), rays.dirs().device()));
        let middle = [0, 1, 2].map(|axis| f64::midpoint(aabb.min[axis], aabb.max[axis]));
        let place = Tensor::from_slice(&middle)
            .to_kind(options.0)
            .to_device(options.1)
            .unsqueeze(0);
        let of = |xs: &Tensor| xs.narrow(0, 0, 1);
        let time = times.map(of);
        let (density, colour) =
            self.network
                .radiance(&place, &of(rays.dirs()), time.as_ref(), aabb)?;
        let zero = (density.sum(None) + colour.sum(None)) * 0.0;
        Ok(Rendered {
            rgb: Tensor::zeros([count, 3], options) + &zero,
            weights: Tensor::zeros([0], options),
            opacity: Tensor::zeros([count], options) + zero,
            depth: Tensor::zeros([count], options),
        })
    }
}

/// Places in 0..1, where the box has its corners.
fn in_unit_cube(places: &Tensor, aabb: &Aabb) -> Tensor {
    let corner = |values: [f64; 3]| {
        Tensor::from_slice(&values)
            .to_kind(places.kind())
            .to_device(places.device())
    };
    let (min, max) = (corner(aabb.min), corner(aabb.max));
    (places - &min) / (max - min)
}

/// Places in -1..1.
fn in_cube(places: &Tensor, aabb: &Aabb) -> Tensor {
    in_unit_cube(places, aabb) * 2.0 - 1.0
}
