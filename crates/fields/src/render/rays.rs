//! Rays: those of a camera, and where they meet a box.

use densely_core::{Error, Result, check};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Rays from points in directions, which need not have length 1.
#[derive(Debug)]
pub struct Rays {
    origins: Tensor,
    dirs: Tensor,
}

impl Rays {
    /// Rays of points and directions, `[rays, 3]` each, of one floating-point kind.
    ///
    /// # Errors
    /// [`Error::Shape`] for other sizes or kinds.
    pub fn new(origins: Tensor, dirs: Tensor) -> Result<Self> {
        check::shape("origins", &origins, &[None, Some(3)])?;
        check::floating("origins", &origins)?;
        check::shape("dirs", &dirs, &[Some(origins.size()[0]), Some(3)])?;
        check::kind("dirs", &dirs, origins.kind())?;
        Ok(Self { origins, dirs })
    }

    /// Where they begin: `[rays, 3]`.
    pub const fn origins(&self) -> &Tensor {
        &self.origins
    }

    /// Where they go: `[rays, 3]`.
    pub const fn dirs(&self) -> &Tensor {
        &self.dirs
    }

    /// Number of rays.
    pub fn count(&self) -> i64 {
        self.origins.size()[0]
    }

    /// Lengths of the directions: `[rays]`.
    pub fn lengths(&self) -> Tensor {
        self.dirs.linalg_norm(2, [1].as_slice(), false, None)
    }

    /// The same rays with directions of length 1.
    #[must_use]
    pub fn unit(&self) -> Self {
        Self {
            origins: self.origins.shallow_clone(),
            dirs: &self.dirs / self.lengths().unsqueeze(1),
        }
    }

    /// Points at distances `t`, `[rays, samples]` in units of the directions: `[rays, samples, 3]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are not as many rays.
    pub fn at(&self, t: &Tensor) -> Result<Tensor> {
        check::shape("t", t, &[Some(self.count()), None])?;
        Ok(self.origins.unsqueeze(1) + t.unsqueeze(2) * self.dirs.unsqueeze(1))
    }

    /// Where the rays enter and leave an axis-aligned box, between `near` and `far`.
    ///
    /// Follows nerfacc. A ray that lies in a face of the box and along it counts as inside of that face.
    /// # Errors
    /// [`Error::Config`] when the box is empty.
    pub fn meet(&self, aabb: &Aabb, near: f64, far: f64) -> Result<Crossing> {
        aabb.validate()?;
        let kind_device = (self.origins.kind(), self.origins.device());
        let corner = |values: [f64; 3]| {
            Tensor::from_slice(&values)
                .to_kind(kind_device.0)
                .to_device(kind_device.1)
        };
        let to = |values| (corner(values) - &self.origins) / &self.dirs;
        let (low, high) = (to(aabb.min), to(aabb.max));
        // 0 / 0: along a face, in it for ever.
        let enter =
            low.minimum(&high)
                .nan_to_num(f64::NEG_INFINITY, f64::INFINITY, f64::NEG_INFINITY);
        let leave = low
            .maximum(&high)
            .nan_to_num(f64::INFINITY, f64::INFINITY, f64::NEG_INFINITY);
        let (enter, leave) = (enter.amax(1, false), leave.amin(1, false));
        let hit = leave.gt_tensor(&enter).logical_and(&leave.gt(0.0));
        Ok(Crossing {
            enter: enter.clamp(near, far),
            leave: leave.clamp(near, far),
            hit,
        })
    }
}

/// Where rays cross a box.
#[derive(Debug)]
pub struct Crossing {
    /// Distance in units of the direction at which each ray enters: `[rays]`.
    pub enter: Tensor,
    /// Distance at which it leaves: `[rays]`.
    pub leave: Tensor,
    /// Whether the box lies in the ray's way, limits aside: bool `[rays]`. Where not, the distances mean nothing.
    pub hit: Tensor,
}

/// An axis-aligned box.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aabb {
    /// Smallest x, y, z.
    pub min: [f64; 3],
    /// Largest x, y, z.
    pub max: [f64; 3],
}

impl Aabb {
    /// The box from `-half` to `half` on each axis.
    pub const fn centred(half: f64) -> Self {
        Self {
            min: [-half; 3],
            max: [half; 3],
        }
    }

    /// Checks that it has a volume.
    ///
    /// # Errors
    /// [`Error::Config`] when a side is not positive.
    pub fn validate(&self) -> Result<()> {
        for axis in 0..3 {
            let (min, max) = (self.min[axis], self.max[axis]);
            if !(min < max && min.is_finite() && max.is_finite()) {
                return Err(Error::config(
                    "aabb",
                    format!("must have min < max on each axis, got {min} and {max} on axis {axis}"),
                ));
            }
        }
        Ok(())
    }
}

/// A pinhole camera as in Blender and OpenGL: it looks along its -z, x goes right and y up. Pixel (0, 0) is the upper left one; rays go
/// through the middles of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Camera {
    /// Pixels in a row.
    pub width: i64,
    /// Rows.
    pub height: i64,
    /// Focal length, pixels.
    pub focal: f64,
}

impl Camera {
    /// A camera with an angle of view of `angle_x` (radians, `camera_angle_x` of Blender's files) from left to right.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate).
    pub fn from_angle(width: i64, height: i64, angle_x: f64) -> Result<Self> {
        let focal = 0.5 * width as f64 / (0.5 * angle_x).tan();
        let camera = Self {
            width,
            height,
            focal,
        };
        camera.validate()?;
        Ok(camera)
    }

    /// Checks that there are pixels and a focal length.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        check::positive("width", self.width)?;
        check::positive("height", self.height)?;
        check::above_zero("focal", self.focal)
    }

    /// Rays through all pixels, row by row: directions have -1 along the camera's z.
    ///
    /// # Shapes
    /// `pose`: camera to world, `[3, 4]` or `[4, 4]`, of the kind that the rays are to have.
    /// # Errors
    /// Those of [`rays_through`](Self::rays_through).
    pub fn rays(&self, pose: &Tensor) -> Result<Rays> {
        self.validate()?;
        let places = Tensor::arange(self.width * self.height, (Kind::Int64, pose.device()));
        let row = places.divide_scalar_mode(self.width, "floor");
        let column = places.remainder(self.width);
        self.rays_through(pose, &row, &column)
    }

    /// Rays through some pixels.
    ///
    /// # Shapes
    /// `row`, `column`: i64 `[rays]`; `pose`: camera to world, `[3, 4]` or `[4, 4]` for all, or `[rays, 3, 4]` or `[rays, 4, 4]`.
    /// # Errors
    /// [`Error::Shape`] for other sizes; [`Error::Config`] naming a field of the camera.
    pub fn rays_through(&self, pose: &Tensor, row: &Tensor, column: &Tensor) -> Result<Rays> {
        self.validate()?;
        check::shape("row", row, &[None])?;
        let rays = row.size()[0];
        check::shape("column", column, &[Some(rays)])?;
        let each = if pose.dim() == 2 {
            pose.unsqueeze(0)
        } else {
            pose.shallow_clone()
        };
        let size = each.size();
        let fits = matches!(size.as_slice(), [count, 3 | 4, 4] if *count == 1 || *count == rays);
        if !fits || !pose.is_floating_point() {
            return Err(Error::Shape {
                what: "pose".to_owned(),
                expected: format!("floating-point numbers [3 or 4, 4] or [{rays}, 3 or 4, 4]"),
                got: format!("{:?} of {:?}", pose.size(), pose.kind()),
            });
        }
        let centred = |pixel: &Tensor, pixels: i64| {
            (pixel.to_kind(pose.kind()) + (0.5 - pixels as f64 / 2.0)) / self.focal
        };
        let (x, y) = (centred(column, self.width), -centred(row, self.height));
        let z = x.ones_like().neg();
        let local = Tensor::stack(&[x, y, z], 1); // [rays, 3], in the camera's axes
        let turn = each.narrow(1, 0, 3).narrow(2, 0, 3);
        let dirs = (turn * local.unsqueeze(1)).sum_dim_intlist(2, false, None);
        let origins = each.narrow(1, 0, 3).select(2, 3);
        Rays::new(origins.expand([rays, 3], false).contiguous(), dirs)
    }

    /// Radius of a pixel's cone at distance 1 (in units of the rays' directions): the disc of as much variance as the pixel's square, 2/√12
    /// of its side (mip-NeRF §3.1).
    pub fn radius(&self) -> f64 {
        2.0 / (12f64.sqrt() * self.focal)
    }
}
