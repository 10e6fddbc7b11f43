//! Triangle meshes: files, what is wrong with them, signed distances and samples to fit a distance field to.
//!
//! Fields of signed distances are trained on points with their distance to a surface, negative inside. [`Mesh::read`] takes OBJ and PLY files and believes
//! nothing that they say; [`Mesh::report`] tells whether the surface is closed; [`Mesh::normalise`] brings it into the cube from -1 to 1;
//! [`SignedDistance`] measures; [`SdfSampler`] draws points for training.

mod distance;
mod obj;
mod ply;
mod read;
mod sample;
mod topology;
mod tree;
mod triangle;
pub(crate) mod vectors;
mod winding;
mod write;

use std::path::Path;

use densely_core::{Error, Result, check};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

pub use distance::{Sign, SignedDistance};
pub use read::ReadOptions;
pub use sample::{SdfBatch, SdfSampler, SurfaceSampler};
use topology::Topology;
pub(crate) use tree::Tree;
use vectors::{V3, cross, dot, length, sub};

/// Largest coordinate, either way: products of three of them stay far from the largest f64.
const MOST: f64 = 1e30;

/// A surface of triangles.
#[derive(Debug, Clone, PartialEq)]
pub struct Mesh {
    vertices: Vec<[f64; 3]>,
    faces: Vec<[u32; 3]>,
}

/// What a mesh is like.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MeshReport {
    /// Vertices, used or not.
    pub vertices: usize,
    /// Triangles.
    pub faces: usize,
    /// Edges of one triangle only.
    pub boundary_edges: usize,
    /// Edges of more than two triangles.
    pub non_manifold_edges: usize,
    /// Edges whose two triangles run along them in the same direction: one of the two faces the wrong way.
    pub misoriented_edges: usize,
    /// Vertices whose triangles form more than one fan.
    pub pinched_vertices: usize,
    /// Triangles without area. Those with a vertex twice count for nothing else here.
    pub degenerate_faces: usize,
    /// Vertices in use − edges + triangles: 2 for a sphere, 0 for a torus.
    pub euler: i64,
    /// Total area.
    pub area: f64,
    /// Volume by the divergence theorem: positive when closed and facing outwards, and without meaning for an open surface.
    pub volume: f64,
}

impl MeshReport {
    fn new(mesh: &Mesh, topology: &Topology) -> Self {
        Self {
            vertices: mesh.vertices.len(),
            faces: mesh.faces.len(),
            boundary_edges: topology.boundary_edges,
            non_manifold_edges: topology.non_manifold_edges,
            misoriented_edges: topology.misoriented_edges,
            pinched_vertices: topology.pinched_vertices,
            degenerate_faces: topology.degenerate_faces,
            euler: topology.euler,
            area: mesh.area(),
            volume: mesh.volume(),
        }
    }

    /// Whether the surface is a closed 2-manifold whose triangles all face one way, so that it has an inside.
    pub const fn is_watertight(&self) -> bool {
        self.boundary_edges == 0
            && self.non_manifold_edges == 0
            && self.misoriented_edges == 0
            && self.pinched_vertices == 0
    }
}

/// What was done to a mesh: `new = (old - centre) · scale`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalisation {
    /// Middle of the bounding box.
    pub centre: [f64; 3],
    /// Factor.
    pub scale: f64,
}

impl Mesh {
    /// A mesh of `vertices` and triangles of their numbers.
    ///
    /// # Errors
    /// [`Error::Data`] without a triangle, for a coordinate that is not finite or beyond ±10³⁰, and a number that no vertex has.
    pub fn new(vertices: Vec<[f64; 3]>, faces: Vec<[u32; 3]>) -> Result<Self> {
        Self::checked(Path::new(""), vertices, faces)
    }

    /// As [`new`](Self::new), of the file `path`.
    fn checked(path: &Path, vertices: Vec<[f64; 3]>, faces: Vec<[u32; 3]>) -> Result<Self> {
        let fail = |reason: String| Err(Error::data(path, reason));
        if faces.is_empty() {
            return fail(format!("has no face, and {} vertices", vertices.len()));
        }
        let fits = |x: &f64| x.abs() <= MOST;
        if let Some(at) = vertices.iter().position(|v| !v.iter().all(fits)) {
            let vertex = vertices[at];
            return fail(format!(
                "vertex {at}, counted from 0, is {vertex:?}; expected numbers from -{MOST:e} to {MOST:e}"
            ));
        }
        let count = vertices.len();
        let inside = |i: &u32| (*i as usize) < count;
        if let Some(at) = faces.iter().position(|f| !f.iter().all(inside)) {
            let face = faces[at];
            return fail(format!(
                "triangle {at}, counted from 0, is of the vertices {face:?}, of which there are {count}"
            ));
        }
        Ok(Self { vertices, faces })
    }

    /// Positions.
    pub fn vertices(&self) -> &[[f64; 3]] {
        &self.vertices
    }

    /// Numbers of the vertices of each triangle, anticlockwise seen from outside.
    pub fn faces(&self) -> &[[u32; 3]] {
        &self.faces
    }

    fn corners(&self, face: [u32; 3]) -> [V3; 3] {
        face.map(|i| self.vertices[i as usize])
    }

    fn triangles(&self) -> impl Iterator<Item = [V3; 3]> {
        self.faces.iter().map(|face| self.corners(*face))
    }

    /// Lowest and highest corner of the box around the triangles.
    pub fn bounds(&self) -> [[f64; 3]; 2] {
        let corners = self.triangles().flatten();
        corners.fold([[f64::MAX; 3], [f64::MIN; 3]], |[low, high], vertex| {
            [
                std::array::from_fn(|i| low[i].min(vertex[i])),
                std::array::from_fn(|i| high[i].max(vertex[i])),
            ]
        })
    }

    /// Total area.
    pub fn area(&self) -> f64 {
        let double = |[a, b, c]: [V3; 3]| length(cross(sub(b, a), sub(c, a)));
        self.triangles().map(double).sum::<f64>() / 2.0
    }

    /// Volume by the divergence theorem, as [`MeshReport::volume`].
    pub fn volume(&self) -> f64 {
        // Seen from the middle: far from the origin, large volumes would cancel.
        let [low, high] = self.bounds();
        let middle: V3 = std::array::from_fn(|i| f64::midpoint(low[i], high[i]));
        let six = |corners: [V3; 3]| {
            let [a, b, c] = corners.map(|corner| sub(corner, middle));
            dot(a, cross(b, c))
        };
        self.triangles().map(six).sum::<f64>() / 6.0
    }

    /// Counts what is wrong with the surface.
    pub fn report(&self) -> MeshReport {
        MeshReport::new(self, &Topology::new(self))
    }

    /// Merges vertices at the same position, which writers of normals and texture coordinates split, and drops those that no triangle uses.
    pub fn weld(&mut self) {
        // Adding zero makes -0 equal to 0 in its bits.
        let key = |vertex: &V3| vertex.map(|x| (x + 0.0).to_bits());
        let mut order: Vec<u32> = self.faces.iter().flatten().copied().collect();
        order.sort_unstable();
        order.dedup();
        order.sort_by_key(|i| key(&self.vertices[*i as usize]));
        // Of vertices at one place the lowest number stands for all; the sort is stable.
        let mut stands_for = vec![u32::MAX; self.vertices.len()];
        let mut first = None::<u32>;
        for i in order {
            let at = |j: u32| key(&self.vertices[j as usize]);
            let of = first.filter(|first| at(*first) == at(i)).unwrap_or(i);
            first = Some(of);
            stands_for[i as usize] = of;
        }
        let mut kept = 0;
        for i in 0..self.vertices.len() {
            // A lower number has its new one already.
            if stands_for[i] as usize == i {
                self.vertices[kept] = self.vertices[i];
                stands_for[i] = kept as u32;
                kept += 1;
            } else if stands_for[i] != u32::MAX {
                stands_for[i] = stands_for[stands_for[i] as usize];
            }
        }
        self.vertices.truncate(kept);
        for i in self.faces.iter_mut().flatten() {
            *i = stands_for[*i as usize];
        }
    }

    /// Moves the middle of the bounding box to the origin and scales, so that the box's diagonal is `diagonal`; 1.9 leaves room in the cube from -1 to 1.
    ///
    /// # Errors
    /// [`Error::Config`] unless `diagonal` is positive; [`Error::Data`] when all vertices lie in one place.
    pub fn normalise(&mut self, diagonal: f64) -> Result<Normalisation> {
        check::above_zero("diagonal", diagonal)?;
        let [low, high] = self.bounds();
        let centre: V3 = std::array::from_fn(|i| f64::midpoint(low[i], high[i]));
        let extent = length(sub(high, low));
        let scale = diagonal / extent;
        if !scale.is_finite() {
            let reason = format!("all vertices lie within {extent:e}, which cannot be scaled up");
            return Err(Error::data("", reason));
        }
        for vertex in &mut self.vertices {
            *vertex = sub(*vertex, centre).map(|x| x * scale);
        }
        Ok(Normalisation { centre, scale })
    }
}

/// Rows of a tensor `[n, 3]` of any float kind and device.
pub(crate) fn points_of(what: &str, points: &Tensor) -> Result<Vec<V3>> {
    check::shape(what, points, &[None, Some(3)])?;
    let flat: Vec<f64> = Vec::try_from(
        points
            .detach()
            .to_device(tch::Device::Cpu)
            .to_kind(Kind::Double)
            .flatten(0, -1),
    )?;
    let rows: Vec<V3> = flat.chunks_exact(3).map(|p| [p[0], p[1], p[2]]).collect();
    match rows.iter().position(|p| !p.iter().all(|x| x.abs() <= MOST)) {
        None => Ok(rows),
        Some(at) => Err(Error::Shape {
            what: what.to_owned(),
            expected: format!("numbers from -{MOST:e} to {MOST:e}"),
            got: format!("{:?} in row {at}", rows[at]),
        }),
    }
}
