//! Signed distances to a mesh.

use densely_core::{Error, Result};
use tch::Tensor;

use super::topology::{NONE, Topology, has_vertex_twice};
use super::tree::{Node, Tree};
use super::triangle::{Part, Triangle};
use super::vectors::{V3, add, dot, length, scaled, sub, unit};
use super::winding::{Dipoles, UNSURE, exact};
use super::{Mesh, MeshReport, points_of};
use crate::parallel::{self, POINTS};

/// How inside and outside are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// By the side of the nearest corner, edge or face: normals of corners are weighted by angles, those of edges are sums of two (Bærentzen and Aanæs 2005).
    /// Exact; for watertight surfaces. One that faces inwards throughout is turned.
    PseudoNormal,
    /// By the number of times that a ray leaves the surface: the majority of three rays. For surfaces without a rim whose triangles do not face one way.
    RayParity,
    /// By whether the generalised winding number is beyond 1/2 (either sign). For surfaces with holes.
    WindingNumber,
}

/// Directions of the rays of [`Sign::RayParity`]: along no axis, face or edge that people draw.
const RAYS: [V3; 3] = [
    [0.543_21, 0.271_83, 0.794_33],
    [-0.618_03, 0.707_31, 0.342_17],
    [0.141_59, -0.577_26, -0.804_21],
];

/// Distances to a surface, negative inside.
#[derive(Debug)]
pub struct SignedDistance {
    tree: Tree<Triangle>,
    inside: Inside,
    /// For winding numbers by request.
    dipoles: Dipoles,
}

/// What telling inside from outside takes.
#[derive(Debug)]
enum Inside {
    PseudoNormal(Normals),
    RayParity,
    WindingNumber,
}

impl SignedDistance {
    /// Of `mesh`, whose triangles should face outwards.
    ///
    /// # Errors
    /// [`Error::Data`] when every triangle has a vertex twice.
    pub fn new(mesh: &Mesh) -> Result<Self> {
        let whole = |face: &[u32; 3]| !has_vertex_twice(*face);
        let triangles: Vec<Triangle> = mesh
            .faces()
            .iter()
            .enumerate()
            .filter(|(_, face)| whole(face))
            .map(|(i, face)| Triangle::new(mesh.corners(*face), i as u32))
            .collect();
        if triangles.is_empty() {
            let reason = "every triangle has a vertex twice, so there is no surface";
            return Err(Error::data("", reason));
        }
        let topology = Topology::new(mesh);
        // A flat triangle has no side to be on, and hides the normal of its neighbour.
        let inside = if MeshReport::new(mesh, &topology).is_watertight() && topology.flat_faces == 0
        {
            Inside::PseudoNormal(Normals::new(mesh, topology.across))
        } else if topology.odd_edges == 0 {
            Inside::RayParity
        } else {
            Inside::WindingNumber
        };
        let tree = Tree::new(triangles);
        let dipoles = Dipoles::new(&tree);
        Ok(Self {
            tree,
            inside,
            dipoles,
        })
    }

    /// How inside and outside are told apart for this surface.
    pub const fn sign(&self) -> Sign {
        match self.inside {
            Inside::PseudoNormal(_) => Sign::PseudoNormal,
            Inside::RayParity => Sign::RayParity,
            Inside::WindingNumber => Sign::WindingNumber,
        }
    }

    /// Distances of `points` `[n, 3]` from the surface, `[n]`, negative inside; computed in double precision, and of the kind and device of `points`.
    ///
    /// # Errors
    /// [`Error::Shape`] for another shape, and values that are not finite.
    pub fn at(&self, points: &Tensor) -> Result<Tensor> {
        let distances = self.distances(&points_of("points", points)?);
        Ok(Tensor::from_slice(&distances)
            .to_kind(points.kind())
            .to_device(points.device()))
    }

    /// Generalised winding numbers of `points` `[n, 3]`, `[n]` as [`at`](Self::at): exact, by the angle of every triangle.
    ///
    /// # Errors
    /// As [`at`](Self::at).
    pub fn winding_numbers(&self, points: &Tensor) -> Result<Tensor> {
        let nodes = &self.nodes();
        let numbers = parallel::map(&points_of("points", points)?, POINTS, |p| exact(nodes, *p));
        Ok(Tensor::from_slice(&numbers)
            .to_kind(points.kind())
            .to_device(points.device()))
    }

    /// Winding numbers as they decide about inside and outside unless they are near 1/2: distant parts of the surface count as dipoles.
    ///
    /// # Errors
    /// As [`at`](Self::at).
    pub fn fast_winding_numbers(&self, points: &Tensor) -> Result<Tensor> {
        let nodes = &self.nodes();
        let number = |p: &V3| self.dipoles.fast(nodes, *p);
        let numbers = parallel::map(&points_of("points", points)?, POINTS, number);
        Ok(Tensor::from_slice(&numbers)
            .to_kind(points.kind())
            .to_device(points.device()))
    }

    /// Signed distances of finite points.
    pub(super) fn distances(&self, points: &[V3]) -> Vec<f64> {
        let nodes = &self.nodes();
        parallel::map(points, POINTS, |p| self.distance(nodes, *p))
    }

    fn nodes(&self) -> Vec<Node<'_, Triangle>> {
        self.tree.nodes().collect()
    }

    fn distance(&self, nodes: &[Node<'_, Triangle>], p: V3) -> f64 {
        // The tree is not empty.
        let Some((triangle, distance)) = self.tree.nearest(p) else {
            return f64::INFINITY;
        };
        let is_inside = match &self.inside {
            Inside::PseudoNormal(normals) => {
                let triangle = self.tree.thing(triangle);
                let (closest, part) = triangle.closest(p);
                dot(sub(p, closest), normals.at(triangle.face, part)) < 0.0
            }
            Inside::RayParity => {
                let odd = |ray: &&V3| {
                    let met = self.tree.along(p, **ray);
                    met.filter(|triangle| triangle.is_met(p, **ray)).count() % 2 == 1
                };
                RAYS.iter().filter(odd).count() >= 2
            }
            Inside::WindingNumber => {
                let fast = self.dipoles.fast(nodes, p).abs();
                let number = if (fast - 0.5).abs() < UNSURE {
                    exact(nodes, p).abs()
                } else {
                    fast
                };
                number > 0.5
            }
        };
        if is_inside { -distance } else { distance }
    }
}

/// Normals of the faces, edges and corners of a watertight surface.
#[derive(Debug)]
struct Normals {
    faces: Vec<V3>,
    /// By number of the vertex.
    corners: Vec<V3>,
    /// Numbers of the vertices of each triangle.
    vertices: Vec<[u32; 3]>,
    across: Vec<[u32; 3]>,
}

impl Normals {
    fn new(mesh: &Mesh, across: Vec<[u32; 3]>) -> Self {
        // Facing inwards, everything has the other sign.
        let outwards = if mesh.volume() < 0.0 { -1.0 } else { 1.0 };
        let mut corners = vec![[0.0; 3]; mesh.vertices().len()];
        let mut faces = Vec::with_capacity(mesh.faces().len());
        for (f, face) in mesh.faces().iter().enumerate() {
            let triangle = Triangle::new(mesh.corners(*face), f as u32);
            let normal = scaled(unit(triangle.cross()), outwards);
            for k in 0..3 {
                let [at, next, last] = [k, (k + 1) % 3, (k + 2) % 3].map(|k| triangle.corners[k]);
                let (next, last) = (unit(sub(next, at)), unit(sub(last, at)));
                // Half the angle by its tangent: exact for thin triangles too.
                let angle = 2.0 * length(sub(next, last)).atan2(length(add(next, last)));
                let corner = &mut corners[face[k] as usize];
                *corner = add(*corner, scaled(normal, angle));
            }
            faces.push(normal);
        }
        Self {
            faces,
            corners,
            vertices: mesh.faces().to_vec(),
            across,
        }
    }

    fn at(&self, face: u32, part: Part) -> V3 {
        let face = face as usize;
        match part {
            Part::Inside => self.faces[face],
            Part::Corner(k) => self.corners[self.vertices[face][k] as usize],
            Part::Side(k) => match self.across[face][k] {
                NONE => self.faces[face],
                other => add(self.faces[face], self.faces[other as usize]),
            },
        }
    }
}
