//! Posed photographs: pictures of a scene with the places and lenses of their cameras.
//!
//! Radiance fields are fitted to rays with the colours that photographs show. A [`Scene`] holds the pictures with 8 bits for a value and transparency, and makes
//! rays and colours for the pixels that are asked for. It is read from Blender's `transforms*.json` ([`Transforms`]), from COLMAP's models ([`Colmap`]) or from
//! an NPZ file ([`Scene::read_npz`]).
//!
//! Poses lead from the camera to the world, in the axes of OpenGL and Blender: the camera looks along its -z, x goes right and y up. Pixel (0, 0) is the upper
//! left one, and rays pass through the middles of pixels.

mod colmap;
mod lens;
mod npz;
#[cfg(feature = "image")]
mod pictures;
mod pose;
mod transforms;

use std::path::Path;

use densely_core::{Error, Result, check};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::mesh::vectors::length;
use crate::render::rays::{Aabb, Camera, Rays};

pub use colmap::Colmap;
pub use lens::{Lens, Optics};
pub use pose::Pose;
pub use transforms::Transforms;

/// A photograph that is not yet read.
#[derive(Debug, Clone, PartialEq)]
pub struct Shot {
    /// Path of the picture, as the file of poses has it.
    pub file: String,
    /// Where the camera is.
    pub pose: Pose,
    /// When, from 0 to 1; of moving scenes.
    pub time: Option<f64>,
    /// What is known of the lens.
    pub optics: Optics,
}

/// A camera and its moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct View {
    /// What to call it in front of people: the picture's path.
    pub name: String,
    /// How directions become pixels.
    pub lens: Lens,
    /// Where the camera is.
    pub pose: Pose,
    /// When, from 0 to 1; of moving scenes.
    pub time: Option<f64>,
}

/// Pictures with 4 channels and their cameras; there is at least one, and all are of one size.
#[derive(Debug, Clone)]
pub struct Scene {
    views: Vec<View>,
    height: usize,
    width: usize,
    /// Red, green, blue and opacity of every pixel of every view.
    pixels: Vec<u8>,
    points: Vec<[f64; 3]>,
}

/// Some pixels of a scene, with what is seen through them.
#[derive(Debug)]
pub struct Pixels {
    /// f32; directions have -1 along the camera's z.
    pub rays: Rays,
    /// Red, green, blue and opacity from 0 to 1: f32 `[n, 4]`.
    pub rgba: Tensor,
    /// f32 `[n]`, where the views have times.
    pub times: Option<Tensor>,
}

impl Scene {
    /// A scene of `views` with pictures, u8 `[n, height, width, 4]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the pictures are of another shape or kind, or of another size than a lens; those of [`Lens::validate`]; [`Error::Data`] without a
    /// view, for a time that is not in 0..1 and for times beside views that have none.
    pub fn new(views: Vec<View>, pictures: &Tensor) -> Result<Self> {
        check::kind("pictures", pictures, tch::Kind::Uint8)?;
        let count = views.len() as i64;
        check::shape("pictures", pictures, &[Some(count), None, None, Some(4)])?;
        let size = pictures.size();
        let flat = pictures.to_device(tch::Device::Cpu).flatten(0, -1);
        let pixels = Vec::try_from(flat)?;
        let size = [size[1] as usize, size[2] as usize];
        Self::from_parts(Path::new(""), views, size, pixels)
    }

    /// As [`new`](Self::new), of the file `path`.
    fn from_parts(
        path: &Path,
        views: Vec<View>,
        [height, width]: [usize; 2],
        pixels: Vec<u8>,
    ) -> Result<Self> {
        if views.is_empty() {
            return Err(Error::data(path, "has no frames"));
        }
        for view in &views {
            view.lens.validate()?;
            if [view.lens.height, view.lens.width] != [height, width] {
                return Err(Error::Shape {
                    what: format!("picture of `{}`", view.name),
                    expected: format!("{} × {} pixels", view.lens.height, view.lens.width),
                    got: format!("{height} × {width}"),
                });
            }
            if let Some(time) = view.time
                && !(0.0..=1.0).contains(&time)
            {
                let reason = format!("the time of `{}` must lie in [0, 1], got {time}", view.name);
                return Err(Error::data(path, reason));
            }
            if view.time.is_some() != views[0].time.is_some() {
                let (with, without) = if view.time.is_some() {
                    (view, &views[0])
                } else {
                    (&views[0], view)
                };
                let reason = format!(
                    "`{}` has a time and `{}` has none; give all frames one, or none",
                    with.name, without.name
                );
                return Err(Error::data(path, reason));
            }
        }
        Ok(Self {
            views,
            height,
            width,
            pixels,
            points: Vec::new(),
        })
    }

    /// Puts the views of another scene behind its own; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Data`] when its pictures have another size, or one of both has times and the other has not.
    pub fn append(&mut self, other: Self, path: &Path) -> Result<()> {
        if [other.height, other.width] != [self.height, self.width] {
            let reason = format!(
                "has pictures of {} × {} pixels, and the others have {} × {}",
                other.height, other.width, self.height, self.width
            );
            return Err(Error::data(path, reason));
        }
        if other.views[0].time.is_some() != self.views[0].time.is_some() {
            let reason = "has times where the others have none, or none where they have";
            return Err(Error::data(path, reason));
        }
        self.views.extend(other.views);
        self.pixels.extend(other.pixels);
        self.points.extend(other.points);
        Ok(())
    }

    /// The cameras.
    pub fn views(&self) -> &[View] {
        &self.views
    }

    /// Rows of each picture.
    pub const fn height(&self) -> usize {
        self.height
    }

    /// Pixels in a row.
    pub const fn width(&self) -> usize {
        self.width
    }

    /// Points of the scene's surfaces that structure from motion found; none of other scenes.
    pub fn points(&self) -> &[[f64; 3]] {
        &self.points
    }

    /// The picture of a view, u8 `[height, width, 4]`.
    ///
    /// # Errors
    /// [`Error::Config`] when there is no such view.
    pub fn picture(&self, view: usize) -> Result<Tensor> {
        let size = self.height * self.width * 4;
        let pixels = self.pixels.chunks_exact(size).nth(view);
        let pixels = pixels.ok_or_else(|| self.no_such("view", view, self.views.len()))?;
        let shape = [self.height as i64, self.width as i64, 4];
        Ok(Tensor::from_slice(pixels).view(shape))
    }

    fn no_such(&self, what: &str, got: usize, count: usize) -> Error {
        let views = self.views.len();
        let reason = format!(
            "must be below {count}, got {got}: there are {views} views of {} × {} pixels",
            self.height, self.width
        );
        Error::config(what, reason)
    }

    /// Rays and colours of pixels, each `[view, row, column]`.
    ///
    /// # Errors
    /// [`Error::Config`] for a view or pixel that is not there; [`Error::Data`] for a pixel that the lens shows nothing in.
    pub fn pixels(&self, places: &[[usize; 3]]) -> Result<Pixels> {
        let (mut origins, mut dirs) = (Vec::new(), Vec::new());
        let (mut rgba, mut times) = (Vec::new(), Vec::new());
        let limits = [
            ("view", self.views.len()),
            ("row", self.height),
            ("column", self.width),
        ];
        for place in places {
            for ((what, limit), got) in limits.iter().zip(place) {
                if got >= limit {
                    return Err(self.no_such(what, *got, *limit));
                }
            }
            let [view, row, column] = *place;
            let at = ((view * self.height + row) * self.width + column) * 4;
            let view = &self.views[view];
            origins.push(view.pose.origin().map(|x| x as f32));
            dirs.push(view.direction(row, column)?.map(|x| x as f32));
            rgba.extend(
                self.pixels[at..at + 4]
                    .iter()
                    .map(|v| f32::from(*v) / 255.0),
            );
            times.extend(view.time.map(|time| time as f32));
        }
        let n = places.len() as i64;
        let table = |rows: &[[f32; 3]]| Tensor::from_slice(rows.as_flattened()).view([n, 3]);
        Ok(Pixels {
            rays: Rays::new(table(&origins), table(&dirs))?,
            rgba: Tensor::from_slice(&rgba).view([n, 4]),
            times: (n > 0 && times.len() == places.len()).then(|| Tensor::from_slice(&times)),
        })
    }

    /// `count` random pixels of all views, with repetition: a function of `seed`. For step s of a run, give a seed that depends on s.
    ///
    /// # Errors
    /// As [`pixels`](Self::pixels).
    pub fn draw(&self, count: usize, seed: u64) -> Result<Pixels> {
        let all: Vec<usize> = (0..self.views.len()).collect();
        self.draw_of(&all, count, seed)
    }

    /// As [`draw`](Self::draw), of some views, such as those that are not held out.
    ///
    /// # Errors
    /// As [`pixels`](Self::pixels), and [`Error::Config`] without a view.
    pub fn draw_of(&self, views: &[usize], count: usize, seed: u64) -> Result<Pixels> {
        if views.is_empty() {
            return Err(Error::config("views", "must name a view to draw from"));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let sizes = [views.len(), self.height, self.width];
        let places: Vec<[usize; 3]> = (0..count)
            .map(|_| {
                let [place, row, column] = sizes.map(|size| rng.random_range(0..size));
                [views[place], row, column]
            })
            .collect();
        self.pixels(&places)
    }

    /// All pixels of a view, row by row.
    ///
    /// # Errors
    /// As [`pixels`](Self::pixels).
    pub fn view_pixels(&self, view: usize) -> Result<Pixels> {
        let columns = |row| (0..self.width).map(move |column| [view, row, column]);
        let places: Vec<[usize; 3]> = (0..self.height).flat_map(columns).collect();
        self.pixels(&places)
    }

    /// Checks that every camera sees `aabb`, the box in which the field lies, where rays are looked along: from `near` to `far`, in units of space. A camera whose
    /// rays all miss it has its pose in other axes or units, and trains the field to be empty.
    ///
    /// # Errors
    /// [`Error::Data`] naming the first view of which no ray meets the box between `near` and `far`; those of [`Aabb::validate`].
    pub fn check_aim(&self, aabb: &Aabb, [near, far]: [f64; 2]) -> Result<()> {
        aabb.validate()?;
        let mut views = self.views.iter();
        let blind = views.find(|view| !view.sees(aabb, [near, far]));
        let Some(view) = blind else {
            return Ok(());
        };
        let reason = format!(
            "`{}` does not see the scene: from {:?} none of its rays meets the box from {:?} to {:?} between near {near} and far {far}; are its poses in other axes or units?",
            view.name,
            view.pose.origin(),
            aabb.min,
            aabb.max
        );
        Err(Error::data("", reason))
    }
}

impl View {
    /// The direction of the ray through the middle of a pixel, in the world: -1 along the camera's z.
    ///
    /// # Errors
    /// [`Error::Data`] when the lens shows nothing there.
    pub fn direction(&self, row: usize, column: usize) -> Result<[f64; 3]> {
        let Some(direction) = self.lens.direction(row, column) else {
            let reason = format!(
                "the distortion of the lens of `{}` has no inverse at pixel ({row}, {column}); crop or undistort the pictures",
                self.name
            );
            return Err(Error::data("", reason));
        };
        Ok(self.pose.turn(direction))
    }

    /// Rays through the middles of all pixels, row by row: f32; directions have -1 along the camera's z.
    ///
    /// # Errors
    /// Those of [`direction`](Self::direction).
    pub fn rays(&self) -> Result<Rays> {
        let Lens { width, height, .. } = self.lens;
        let mut dirs: Vec<f32> = Vec::with_capacity(3 * width * height);
        for place in 0..width * height {
            let direction = self.direction(place / width, place % width)?;
            dirs.extend(direction.map(|x| x as f32));
        }
        let origin = Tensor::from_slice(&self.pose.origin().map(|x| x as f32));
        let dirs = Tensor::from_slice(&dirs).view([-1, 3]);
        Rays::new(origin.expand_as(&dirs).contiguous(), dirs)
    }

    /// Radius at distance 1 of the cone that stands for a pixel, in units of [`rays`](Self::rays)' directions; see [`Camera::radius`].
    pub fn pixel_radius(&self) -> f64 {
        let camera = Camera {
            width: self.lens.width as i64,
            height: self.lens.height as i64,
            focal: self.lens.focal[0],
        };
        camera.radius()
    }

    /// The same camera with pictures of another size that show all that its own do: where the sides' ratio differs, they show more along one of them.
    ///
    /// # Errors
    /// [`Error::Config`] for a size of 0.
    pub fn resized(&self, height: usize, width: usize) -> Result<Self> {
        let old = self.lens;
        let scale = (height as f64 / old.height as f64).min(width as f64 / old.width as f64);
        let moved = |centre: f64, old: usize, new: usize| {
            (centre - old as f64 / 2.0) * scale + new as f64 / 2.0
        };
        let lens = Lens {
            width,
            height,
            focal: old.focal.map(|focal| focal * scale),
            centre: [
                moved(old.centre[0], old.width, width),
                moved(old.centre[1], old.height, height),
            ],
            ..old
        };
        lens.validate()?;
        Ok(Self {
            lens,
            ..self.clone()
        })
    }

    /// Whether a ray meets the box within `span`, in units of space, starting with that of the middle pixel.
    fn sees(&self, aabb: &Aabb, span: [f64; 2]) -> bool {
        let Lens { width, height, .. } = self.lens;
        let origin = self.pose.origin();
        let count = width * height;
        let middle = height / 2 * width + width / 2;
        (0..count).any(|i| {
            let at = (middle + i) % count;
            let direction = self.lens.direction(at / width, at % width);
            direction.is_some_and(|direction| {
                let stretch = length(direction);
                let span = span.map(|distance| distance / stretch);
                meets(origin, self.pose.turn(direction), aabb, span)
            })
        })
    }
}

/// Whether the ray from `origin` is in the box somewhere within the span, in units of the direction.
fn meets(
    origin: [f64; 3],
    direction: [f64; 3],
    aabb: &Aabb,
    [mut enter, mut leave]: [f64; 2],
) -> bool {
    for axis in 0..3 {
        let to = |plane: f64| (plane - origin[axis]) / direction[axis];
        let (a, b) = (to(aabb.min[axis]), to(aabb.max[axis]));
        // Where the ray lies in a plane, 0 / 0, min and max take the other one.
        (enter, leave) = (enter.max(a.min(b)), leave.min(a.max(b)));
    }
    enter < leave
}

/// Colours over a background: `rgb · a + background · (1 - a)`.
///
/// # Shapes
/// `rgba`: `[n, 4]`, colours not yet multiplied by the opacity; `background`: `[3]` or `[n, 3]`, of the same kind; gives `[n, 3]`.
/// # Errors
/// [`Error::Shape`] for other sizes.
pub fn composite(rgba: &Tensor, background: &Tensor) -> Result<Tensor> {
    check::shape("rgba", rgba, &[None, Some(4)])?;
    if background.size() != [3] {
        check::shape("background", background, &[Some(rgba.size()[0]), Some(3)])?;
    }
    let (rgb, opacity) = (rgba.narrow(1, 0, 3), rgba.narrow(1, 3, 1));
    Ok(rgb * &opacity + background * (1.0 - opacity))
}
