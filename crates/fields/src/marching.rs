//! Marching cubes: the surface where a field on a grid crosses a level (Lorensen and Cline 1987).
//!
//! A cell of the grid has 8 corners, each inside or outside; the surface passes through those of its 12 edges whose ends differ, at the place where the field
//! would cross the level if it were linear between them. How the places are joined to triangles is derived from the corners, not looked up in the published
//! table of 256 cases. Two rules make every result a surface without cracks, folds or double edges:
//!
//! - on a face of the cell where inside and outside corners lie crosswise, the inside corners are kept apart. The rule sees that face alone, so both its cells
//!   draw the same lines on it;
//! - a polygon is cut into triangles along diagonals that lie on no face of the cell, where the neighbouring cell could draw the same one.
//!
//! Vertices on an edge are shared by its cells, and triangles are anticlockwise seen from outside. The field is taken layer by layer, so memory is that of two
//! layers and of the result. Where the inside reaches the border of the grid, the surface has a rim there.

mod cases;

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::mesh::Mesh;

/// Which side of the level is inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Inside {
    /// Values up to the level: signed distances.
    #[default]
    Below,
    /// Values from the level on: densities, occupancies.
    Above,
}

/// Where the grid lies, and what is looked for. The default is the surface of a signed distance in the cube from -0.9 to 0.9.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MarchingConfig {
    /// Position of the first point of the grid.
    pub lower: [f64; 3],
    /// Position of the last point.
    pub upper: [f64; 3],
    /// Value on the surface.
    pub level: f64,
    /// Which side of it is inside.
    pub inside: Inside,
}

impl Default for MarchingConfig {
    fn default() -> Self {
        Self {
            lower: [-0.9; 3],
            upper: [0.9; 3],
            level: 0.0,
            inside: Inside::Below,
        }
    }
}

impl MarchingConfig {
    /// # Errors
    /// [`Error::Config`] naming the first field that is out of its range.
    pub fn validate(&self) -> Result<()> {
        for (low, high) in self.lower.into_iter().zip(self.upper) {
            if !(low < high && (high - low).is_finite()) {
                let reason = format!("must be above `lower` on each axis, got {high} and {low}");
                return Err(Error::config("upper", reason));
            }
        }
        if !self.level.is_finite() {
            let reason = format!("must be finite, got {}", self.level);
            return Err(Error::config("level", reason));
        }
        Ok(())
    }

    /// The surface in `values` `[x, y, z]`, of any float kind and device, with at least 2 points on each axis.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate); [`Error::Shape`] for another shape and values that are not finite; [`Error::Data`] when there is no surface.
    pub fn surface(&self, values: &Tensor) -> Result<Mesh> {
        densely_core::check::shape("values", values, &[None, None, None])?;
        let size = values.size();
        let mut layers = Layers::new(self, [0, 1, 2].map(|axis| size[axis] as usize))?;
        for x in 0..size[0] {
            let layer = values.detach().get(x).to_device(Device::Cpu);
            layers.push(Vec::try_from(layer.to_kind(Kind::Double).flatten(0, -1))?)?;
        }
        layers.finish()
    }

    /// The surface of `field` on a grid of `points` along each axis. `field` gets positions `[n, 3]`, f32 on the CPU, `batch` at a time, and answers with `[n]` or
    /// `[n, 1]` values; no gradients are kept.
    ///
    /// # Errors
    /// As [`surface`](Self::surface), those of `field`, and [`Error::Config`] when `batch` is 0.
    pub fn surface_of(
        &self,
        points: [usize; 3],
        batch: usize,
        mut field: impl FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Mesh> {
        if batch == 0 {
            return Err(Error::config("batch", "must be at least 1, got 0"));
        }
        let mut layers = Layers::new(self, points)?;
        let [_, ny, nz] = points;
        let count = (points.iter())
            .try_fold(1usize, |all, n| all.checked_mul(*n))
            .ok_or_else(|| Error::config("points", "are more than this machine can count"))?;
        let layer = ny * nz;
        let _no_grad = tch::no_grad_guard();
        let mut waiting: Vec<f64> = Vec::new();
        for start in (0..count).step_by(batch) {
            let end = count.min(start + batch);
            let positions: Vec<[f32; 3]> = (start..end)
                .map(|i| {
                    let place = [i / layer, i / nz % ny, i % nz];
                    layers.position(place.map(|i| i as f64)).map(|x| x as f32)
                })
                .collect();
            let n = (end - start) as i64;
            let values = field(&Tensor::from_slice(positions.as_flattened()).view([n, 3]))?;
            let size = values.size();
            if size != [n] && size != [n, 1] {
                return Err(Error::Shape {
                    what: "values of the field".to_owned(),
                    expected: format!("[{n}] or [{n}, 1]"),
                    got: format!("{size:?}"),
                });
            }
            let values = values.to_device(Device::Cpu).to_kind(Kind::Double);
            waiting.extend(Vec::<f64>::try_from(values.flatten(0, -1))?);
            let whole = waiting.len() / layer * layer;
            for values in waiting.drain(..whole).as_slice().chunks_exact(layer) {
                layers.push(values.to_vec())?;
            }
        }
        layers.finish()
    }
}

/// No vertex.
const NONE: u32 = u32::MAX;

/// Values of one layer, less the level and negative inside, and the vertices on its edges along y and z.
#[derive(Default)]
struct Layer {
    values: Vec<f64>,
    along: [Vec<u32>; 2],
}

/// A grid that is seen layer by layer along x.
struct Layers<'a> {
    config: &'a MarchingConfig,
    points: [usize; 3],
    /// Layers so far.
    seen: usize,
    last: Layer,
    /// Lowest and highest value so far, to explain where there is no surface.
    range: [f64; 2],
    vertices: Vec<[f64; 3]>,
    faces: Vec<[u32; 3]>,
}

impl<'a> Layers<'a> {
    fn new(config: &'a MarchingConfig, points: [usize; 3]) -> Result<Self> {
        config.validate()?;
        if points.iter().any(|n| *n < 2) {
            return Err(Error::Shape {
                what: "grid".to_owned(),
                expected: "at least 2 points on each axis".to_owned(),
                got: format!("{points:?}"),
            });
        }
        Ok(Self {
            config,
            points,
            seen: 0,
            last: Layer::default(),
            range: [f64::MAX, f64::MIN],
            vertices: Vec::new(),
            faces: Vec::new(),
        })
    }

    /// The position of a place of the grid, counted in its points.
    fn position(&self, place: [f64; 3]) -> [f64; 3] {
        std::array::from_fn(|axis| {
            let (low, high) = (self.config.lower[axis], self.config.upper[axis]);
            low + (high - low) * (place[axis] / (self.points[axis] - 1) as f64)
        })
    }

    /// Takes the next layer along x, `ny · nz` values, and adds the surface between it and the one before.
    fn push(&mut self, mut values: Vec<f64>) -> Result<()> {
        let [_, ny, nz] = self.points;
        let sign = match self.config.inside {
            Inside::Below => 1.0,
            Inside::Above => -1.0,
        };
        for (i, value) in values.iter_mut().enumerate() {
            if !value.is_finite() {
                return Err(Error::Shape {
                    what: "values".to_owned(),
                    expected: "finite numbers".to_owned(),
                    got: format!("{value} at {:?}", [self.seen, i / nz, i % nz]),
                });
            }
            self.range = [self.range[0].min(*value), self.range[1].max(*value)];
            *value = (*value - self.config.level) * sign;
        }
        let mut layer = Layer {
            values,
            along: [vec![NONE; ny * nz], vec![NONE; ny * nz]],
        };
        let mut between = vec![NONE; ny * nz];
        for y in 0..ny {
            for z in 0..nz {
                let at = y * nz + z;
                let value = layer.values[at];
                let place = [self.seen, y, z];
                if y + 1 < ny {
                    let next = layer.values[at + nz];
                    layer.along[0][at] = self.vertex(place, 1, value, next)?;
                }
                if z + 1 < nz {
                    let next = layer.values[at + 1];
                    layer.along[1][at] = self.vertex(place, 2, value, next)?;
                }
                if self.seen > 0 {
                    let before = self.last.values[at];
                    between[at] = self.vertex([self.seen - 1, y, z], 0, before, value)?;
                }
            }
        }
        if self.seen > 0 {
            self.join(&layer, &between);
        }
        self.seen += 1;
        self.last = layer;
        Ok(())
    }

    /// The vertex where the field crosses the level between `place`, with value `from`, and the next place along `axis`, with value `to`.
    fn vertex(&mut self, place: [usize; 3], axis: usize, from: f64, to: f64) -> Result<u32> {
        if (from <= 0.0) == (to <= 0.0) {
            return Ok(NONE);
        }
        let mut place = place.map(|i| i as f64);
        place[axis] += from / (from - to);
        let number = self.vertices.len() as u32;
        if number == NONE {
            let reason = "has more than 4 billion vertices; take a coarser grid";
            return Err(Error::data("", reason));
        }
        self.vertices.push(self.position(place));
        Ok(number)
    }

    /// Adds the triangles of the cells between the last layer and `layer`.
    fn join(&mut self, layer: &Layer, between: &[u32]) {
        let [_, ny, nz] = self.points;
        let sides = [&self.last, layer];
        for y in 0..ny - 1 {
            for z in 0..nz - 1 {
                let at = |corner: usize| (y + (corner >> 1 & 1)) * nz + z + (corner >> 2 & 1);
                let is_inside = |corner: usize| sides[corner & 1].values[at(corner)] <= 0.0;
                let case = (0..8).fold(0, |case, c| case | usize::from(is_inside(c)) << c);
                let vertex = |edge: u8| {
                    let (axis, corner) = cases::edge(edge);
                    match axis {
                        0 => between[at(corner)],
                        _ => sides[corner & 1].along[axis - 1][at(corner)],
                    }
                };
                let triangles = &cases::TRIANGLES[case];
                self.faces
                    .extend(triangles.iter().map(|edges| edges.map(vertex)));
            }
        }
    }

    fn finish(self) -> Result<Mesh> {
        if self.faces.is_empty() {
            let [low, high] = self.range;
            let reason = format!(
                "there is no surface: the values reach from {low} to {high}, and the level is {}",
                self.config.level
            );
            return Err(Error::data("", reason));
        }
        Mesh::new(self.vertices, self.faces)
    }
}
