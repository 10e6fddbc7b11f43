//! Fitting radiance fields to posed photographs: a step's loss, views of what was learnt, and a turn around it.
//!
//! ```text
//! nerf, ngp, gnf:  points of unit rays in occupied cells, those alone that light reaches;  loss: smooth L1 (β 1), of gnf (·)²
//! mip-nerf:        cones, both levels, everywhere between near and far;                    loss: see `mip_nerf::loss`
//! ```
//!
//! Follows nerfacc's examples (Li et al. 2023, arXiv 2305.04966) for networks of points: the occupancy grid is updated as training goes on, [`RadianceField::prepare`],
//! and says where to look. Differs in what bounds the cost of a step: nerfacc changes the number of rays from step to step so that about as many samples come out
//! as are wanted; here the first rays of a batch are taken until there are [`RayConfig::samples`], which needs no state, so that a resumed run gives the same bits.

mod points;
mod settings;
mod turntable;

use std::cell::RefCell;

use densely_core::registry::{find, parse_config};
use densely_core::{Error, Result, check};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tch::nn::Path;
use tch::{Device, Kind, Tensor};

use super::resolve::{fitting_grid, merge};
use crate::gnf::{GnfConfig, GnfRadiance};
use crate::hashgrid::NgpConfig;
use crate::mip_nerf::{self, MipNerf, MipNerfConfig};
use crate::models::PRESETS;
use crate::nerf::NerfConfig;
use crate::occupancy::OccupancyConfig;
use crate::render::rays::Rays;
use crate::render::{Background, Rendered};
use crate::scene::{Pixels, View, composite};
use points::{Look, Network, Points};

pub use settings::SceneSettings;
pub use turntable::turntable;

/// Presets that are radiance fields.
pub const RADIANCE_FIELDS: [&str; 8] = [
    "ngp",
    "gnf-radiance",
    "nerf",
    "nerf+cam",
    "t-nerf",
    "t-nerf+cam",
    "mip-nerf",
    "mip-nerf+cam",
];

/// Samples that are rendered together where no gradient is kept.
const RENDERED: i64 = 1 << 17;

/// Most samples of a ray.
const MOST_STEPS: f64 = 1e5;

/// How rays are rendered. Defaults are those of nerfacc's examples for Blender's scenes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RayConfig {
    /// Where rays begin, in units of space along the ray; of mip-NeRF, in units of directions that have -1 along the camera's z.
    pub near: f64,
    /// Where they end.
    pub far: f64,
    /// What lies behind everything; photographs with transparency are put upon it.
    pub background: Background,
    /// Most samples of a training step. The rays of a batch are looked along in order, and those with which there would be more are left out; one stays whatever
    /// it has. Cones do not look at it: they have equally many each.
    pub samples: i64,
    /// Opacity below which a sample is left out, never more than the mean value of the grid.
    pub alpha_threshold: f64,
    /// Training steps before which that does not hold. Evaluation does not look at it.
    pub alpha_from: u64,
    /// Which part of space is looked at; cones do not use it.
    pub occupancy: OccupancyConfig,
}

impl Default for RayConfig {
    fn default() -> Self {
        Self {
            near: 2.0,
            far: 6.0,
            background: Background::White,
            samples: 1 << 16,
            alpha_threshold: 0.0,
            alpha_from: 0,
            occupancy: OccupancyConfig::default(),
        }
    }
}

impl RayConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let Self { near, far, .. } = *self;
        if !(near >= 0.0 && far > near && far.is_finite()) {
            let reason = format!("must be 0 or above, and `far` beyond it, got {near} and {far}");
            return Err(Error::config("near", reason));
        }
        check::positive("samples", self.samples)?;
        if !(0.0..1.0).contains(&self.alpha_threshold) {
            let reason = format!("must lie in [0, 1), got {}", self.alpha_threshold);
            return Err(Error::config("alpha_threshold", reason));
        }
        self.occupancy.validate()?;
        let steps = (far - near) / self.occupancy.step;
        if steps.is_nan() || steps > MOST_STEPS {
            let reason =
                format!("makes {steps:e} samples of a ray; at most {MOST_STEPS} are taken");
            return Err(Error::config("occupancy.step", reason));
        }
        Ok(())
    }

    fn alpha_threshold_at(&self, step: u64) -> f64 {
        if step < self.alpha_from {
            0.0
        } else {
            self.alpha_threshold
        }
    }
}

/// Which network a radiance field is.
#[derive(Debug, Clone, PartialEq)]
pub enum RadianceConfig {
    /// NeRF, with time or without.
    Nerf(NerfConfig),
    /// mip-NeRF.
    MipNerf(MipNerfConfig),
    /// A hash grid with instant-ngp's head.
    Ngp(NgpConfig),
    /// A Gaussian RBF network of 3 coordinates and 49 outputs.
    Gnf(GnfConfig),
}

impl RadianceConfig {
    /// The whole config of the preset `name` as JSON, as it suits photographs whose longer side has `side` pixels and which have `values` values in all: a hash
    /// grid has cells of half a pixel about where the box is as wide as a picture, and no more values than the photographs; a Gaussian RBF network starts as
    /// [`GnfConfig::quick_to_learn`] says. Then with `changes` in place of its settings, table by table.
    ///
    /// # Errors
    /// [`Error::UnknownPreset`]; [`Error::Config`] for a setting that is not there, and those of [`of_preset`](Self::of_preset).
    pub fn resolve(
        name: &str,
        changes: &Map<String, Value>,
        side: usize,
        values: usize,
    ) -> Result<Value> {
        let preset = find(PRESETS, name)?;
        let mut config = (preset.config)();
        match Self::of_preset(name, &config)? {
            Self::Ngp(mut ngp) => {
                ngp.grid = fitting_grid(3, 2 * side, values);
                config = json!(ngp);
            }
            Self::Gnf(gnf) => config = json!(gnf.quick_to_learn()),
            Self::Nerf(_) | Self::MipNerf(_) => {}
        }
        merge(&mut config, &Value::Object(changes.clone()))?;
        Self::of_preset(name, &config)?;
        Ok(config)
    }

    /// The network of the whole `config` of the preset `name`, as JSON.
    ///
    /// # Errors
    /// [`Error::Config`]: `model.preset` for a preset that is no radiance field, and with serde's words for a config that does not fit.
    pub fn of_preset(name: &str, config: &Value) -> Result<Self> {
        match name {
            "nerf" | "nerf+cam" | "t-nerf" | "t-nerf+cam" => Ok(Self::Nerf(parse_config(config)?)),
            "mip-nerf" | "mip-nerf+cam" => Ok(Self::MipNerf(parse_config(config)?)),
            "ngp" => Ok(Self::Ngp(parse_config(config)?)),
            "gnf-radiance" => Ok(Self::Gnf(parse_config(config)?)),
            _ => {
                let known = RADIANCE_FIELDS.join(", ");
                let reason = format!("`{name}` is no radiance field; take {known}");
                Err(Error::config("model.preset", reason))
            }
        }
    }
}

/// What rays see, over the background.
#[derive(Debug)]
pub struct Seen {
    /// Red, green and blue from 0 to 1: `[rays, 3]`.
    pub rgb: Tensor,
    /// How much of the background is hidden, from 0 to 1: `[rays]`.
    pub opacity: Tensor,
    /// Mean distance of what is seen, in units of space: `[rays]`; 0 where nothing is.
    pub depth: Tensor,
}

impl Seen {
    fn over(background: Background, rendered: Rendered) -> Self {
        Self {
            rgb: rendered.over(background).clamp(0.0, 1.0),
            opacity: rendered.opacity,
            depth: rendered.depth,
        }
    }

    /// Rays of several parts, of which there is at least one.
    fn joined(parts: &[Self]) -> Self {
        let all = |part: fn(&Self) -> &Tensor| {
            let parts: Vec<&Tensor> = parts.iter().map(part).collect();
            Tensor::cat(&parts, 0)
        };
        Self {
            rgb: all(|seen| &seen.rgb),
            opacity: all(|seen| &seen.opacity),
            depth: all(|seen| &seen.depth),
        }
    }
}

/// A radiance field that can be trained and looked at.
///
/// Parameters lie under `field`, with the names of the network's own; those that look at points have their occupancy grid under `occupancy`, as buffers, so that it is
/// saved and loaded with the weights.
#[derive(Debug)]
pub struct RadianceField {
    kind: Field,
    rays: RayConfig,
    pixel_radius: Option<f64>,
    device: Device,
}

#[derive(Debug)]
enum Field {
    Points(Box<Points>),
    Cones(Box<MipNerf>),
}

impl RadianceField {
    /// Creates the parameters under `vs`, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field of a config that is out of range.
    pub fn build(vs: &Path, config: &RadianceConfig, rays: &RayConfig) -> Result<Self> {
        rays.validate()?;
        let field = &(vs / "field");
        let points = |network| -> Result<Field> {
            let grid = rays.occupancy.build(&(vs / "occupancy"))?;
            Ok(Field::Points(Box::new(Points::new(
                network,
                RefCell::new(grid),
            ))))
        };
        let kind = match config {
            RadianceConfig::Nerf(config) => points(Network::Nerf(Box::new(config.build(field)?)))?,
            RadianceConfig::MipNerf(config) => Field::Cones(Box::new(config.build(field)?)),
            RadianceConfig::Ngp(config) => {
                if config.grid.inputs != 3 {
                    let reason =
                        format!("must be 3 in a radiance field, got {}", config.grid.inputs);
                    return Err(Error::config("grid.inputs", reason));
                }
                points(Network::Ngp(Box::new(config.build(field)?)))?
            }
            RadianceConfig::Gnf(config) => {
                points(Network::Gnf(Box::new(GnfRadiance::build(field, config)?)))?
            }
        };
        Ok(Self {
            kind,
            rays: rays.clone(),
            pixel_radius: None,
            device: vs.device(),
        })
    }

    /// With the radius of the cones of the pixels that it is trained on, [`View::pixel_radius`]; mip-NeRF needs it, others do not look at it.
    #[must_use]
    pub fn with_pixel_radius(mut self, radius: f64) -> Self {
        self.pixel_radius = Some(radius);
        self
    }

    /// How rays are rendered.
    pub const fn rays(&self) -> &RayConfig {
        &self.rays
    }

    /// Whether the scene moves, so that rays need moments.
    pub fn has_time(&self) -> bool {
        match &self.kind {
            Field::Points(points) => points.has_time(),
            Field::Cones(_) => false,
        }
    }

    /// What comes before training step `step`: updates the occupancy grid where it is due, drawing cells, points and moments from libtorch's global generator.
    ///
    /// # Errors
    /// Those of the network.
    pub fn prepare(&self, step: u64) -> Result<()> {
        match &self.kind {
            Field::Points(points) => points.prepare(step),
            Field::Cones(_) => Ok(()),
        }
    }

    /// What training step `step` minimises, a number. Where rays begin within a piece is drawn from libtorch's global generator. Pixels may lie on another device.
    ///
    /// Where nothing is seen, as in an empty grid, it has a gradient of 0 all the same.
    /// # Errors
    /// [`Error::Config`] without a pixel, or without the radius that cones need; [`Error::Shape`] when moments are needed and absent.
    pub fn loss(&self, pixels: &Pixels, step: u64) -> Result<Tensor> {
        let count = pixels.rays.count();
        check::positive("pixels", count)?;
        let options = (Kind::Float, self.device);
        let background = self.rays.background;
        let behind = Tensor::full([3], background.level(), options);
        let target = composite(&self.here(&pixels.rgba), &behind)?;
        let rays = self.rays_here(&pixels.rays)?;
        match &self.kind {
            Field::Points(points) => {
                let times = self.times(pixels.times.as_ref(), count)?;
                let jitter = Tensor::rand([count], options);
                let look = Look {
                    span: [self.rays.near, self.rays.far],
                    jitter: Some(&jitter),
                    alpha_threshold: self.rays.alpha_threshold_at(step),
                    most: self.rays.samples,
                };
                let seen = points.see(&rays.unit(), times.as_ref(), &look)?;
                let rgb = seen.over(background);
                Ok(points.loss(&rgb, &target.narrow(0, 0, rgb.size()[0])))
            }
            Field::Cones(network) => {
                let config = network.config();
                let size = [count, config.samples + 1];
                let jitter: Vec<Tensor> = (0..config.levels)
                    .map(|_| Tensor::rand(size, options))
                    .collect();
                let levels = self.cones(network, &rays, self.radius()?, Some(&jitter))?;
                mip_nerf::loss(&levels, background, &target)
            }
        }
    }

    /// What rays see, without gradient, in parts that memory holds. On the field's device; rays may lie on another.
    ///
    /// # Shapes
    /// `times`: `[rays]` in 0..1; only scenes that move look at them.
    /// # Errors
    /// As [`loss`](Self::loss).
    pub fn render(&self, rays: &Rays, times: Option<&Tensor>) -> Result<Seen> {
        self.render_by(rays, times, || self.radius())
    }

    /// What a camera sees, row by row: also one that took no photograph, such as those of a [`turntable()`].
    ///
    /// # Errors
    /// As [`loss`](Self::loss), and those of [`View::rays`].
    pub fn render_view(&self, view: &View) -> Result<Seen> {
        let rays = view.rays()?;
        let times = view
            .time
            .map(|time| Tensor::full([rays.count()], time, tch::kind::FLOAT_CPU));
        self.render_by(&rays, times.as_ref(), || Ok(view.pixel_radius()))
    }

    fn render_by(
        &self,
        rays: &Rays,
        times: Option<&Tensor>,
        radius: impl FnOnce() -> Result<f64>,
    ) -> Result<Seen> {
        let count = rays.count();
        check::positive("rays", count)?;
        let _no_grad = tch::no_grad_guard();
        let rays = self.rays_here(rays)?;
        let mut parts = Vec::new();
        match &self.kind {
            Field::Points(points) => {
                let (rays, times) = (rays.unit(), self.times(times, count)?);
                let look = Look {
                    span: [self.rays.near, self.rays.far],
                    jitter: None,
                    alpha_threshold: self.rays.alpha_threshold,
                    most: RENDERED,
                };
                let mut first = 0;
                while first < count {
                    let rest = count - first;
                    let times = times.as_ref().map(|times| times.narrow(0, first, rest));
                    let seen = points.see(&some(&rays, first, rest)?, times.as_ref(), &look)?;
                    let seen = Seen::over(self.rays.background, seen);
                    first += seen.opacity.size()[0];
                    parts.push(seen);
                }
            }
            Field::Cones(network) => {
                let radius = radius()?;
                let together = (RENDERED / network.config().samples).max(1);
                let mut first = 0;
                while first < count {
                    let part = some(&rays, first, together.min(count - first))?;
                    let mut levels = self.cones(network, &part, radius, None)?;
                    let last = levels.pop().ok_or_else(|| check::absent("levels"))?;
                    let seen = Seen::over(self.rays.background, last);
                    first += part.count();
                    parts.push(Seen {
                        depth: &seen.depth * part.lengths(),
                        ..seen
                    });
                }
            }
        }
        Ok(Seen::joined(&parts))
    }

    /// All levels of cones.
    fn cones(
        &self,
        network: &MipNerf,
        rays: &Rays,
        radius: f64,
        jitter: Option<&[Tensor]>,
    ) -> Result<Vec<Rendered>> {
        let each = |value: f64| Tensor::full([rays.count()], value, (Kind::Float, self.device));
        let (near, far) = (each(self.rays.near), each(self.rays.far));
        network.render(rays, &each(radius), [&near, &far], jitter)
    }

    fn radius(&self) -> Result<f64> {
        let absent = "is needed by mip-NeRF: take that of a view of the photographs";
        self.pixel_radius
            .ok_or_else(|| Error::config("pixel_radius", absent))
    }

    /// Moments `[rays, 1]`, for networks that have time.
    fn times(&self, times: Option<&Tensor>, rays: i64) -> Result<Option<Tensor>> {
        if !self.has_time() {
            return Ok(None);
        }
        let Some(times) = times else {
            return Err(Error::Shape {
                what: "times".to_owned(),
                expected: "a moment for each ray, as the network has time".to_owned(),
                got: "none: the views of this scene have no times".to_owned(),
            });
        };
        check::shape("times", times, &[Some(rays)])?;
        Ok(Some(self.here(times).unsqueeze(1)))
    }

    fn rays_here(&self, rays: &Rays) -> Result<Rays> {
        Rays::new(self.here(rays.origins()), self.here(rays.dirs()))
    }

    fn here(&self, xs: &Tensor) -> Tensor {
        xs.to_device(self.device).to_kind(Kind::Float)
    }
}

/// `count` of the rays, from ray `first`.
fn some(rays: &Rays, first: i64, count: i64) -> Result<Rays> {
    let of = |xs: &Tensor| xs.narrow(0, first, count);
    Rays::new(of(rays.origins()), of(rays.dirs()))
}
