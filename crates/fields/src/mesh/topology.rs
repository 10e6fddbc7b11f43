//! Which triangles meet, and where the surface is torn, folded or pinched.

use super::Mesh;
use super::triangle::Triangle;

/// No triangle.
pub(super) const NONE: u32 = u32::MAX;

/// Counts of [`MeshReport`](super::MeshReport), and neighbours.
#[derive(Debug)]
pub(super) struct Topology {
    /// The triangle across side k, from corner k to corner k + 1, where exactly one other is there and runs along it the other way; else [`NONE`].
    pub(super) across: Vec<[u32; 3]>,
    pub(super) boundary_edges: usize,
    pub(super) non_manifold_edges: usize,
    pub(super) misoriented_edges: usize,
    pub(super) pinched_vertices: usize,
    /// All without area.
    pub(super) degenerate_faces: usize,
    /// Those of them with three vertices, which hold the surface together.
    pub(super) flat_faces: usize,
    /// Edges of an odd number of triangles.
    pub(super) odd_edges: usize,
    pub(super) euler: i64,
}

/// A side of a triangle; sorted, the sides of an edge stand together.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Side {
    low: u32,
    high: u32,
    /// Corner of the triangle where the side starts: face · 3 + k.
    corner: usize,
    /// Whether it starts at the lower vertex.
    up: bool,
}

pub(super) fn has_vertex_twice([a, b, c]: [u32; 3]) -> bool {
    a == b || b == c || c == a
}

impl Topology {
    pub(super) fn new(mesh: &Mesh) -> Self {
        let mut this = Self {
            across: vec![[NONE; 3]; mesh.faces().len()],
            boundary_edges: 0,
            non_manifold_edges: 0,
            misoriented_edges: 0,
            pinched_vertices: 0,
            degenerate_faces: 0,
            flat_faces: 0,
            odd_edges: 0,
            euler: 0,
        };
        let mut sides = Vec::new();
        for (f, face) in mesh.faces().iter().enumerate() {
            if has_vertex_twice(*face) {
                this.degenerate_faces += 1;
                continue;
            }
            let flat = Triangle::new(mesh.corners(*face), f as u32).flat;
            this.degenerate_faces += usize::from(flat);
            this.flat_faces += usize::from(flat);
            for k in 0..3 {
                let (from, to) = (face[k], face[(k + 1) % 3]);
                sides.push(Side {
                    low: from.min(to),
                    high: from.max(to),
                    corner: 3 * f + k,
                    up: from < to,
                });
            }
        }
        sides.sort_unstable();
        // Corners of one fan are joined.
        let mut fans = Fans((0..3 * mesh.faces().len()).collect());
        let mut edges = 0i64;
        for edge in sides.chunk_by(|a, b| (a.low, a.high) == (b.low, b.high)) {
            edges += 1;
            this.odd_edges += edge.len() % 2;
            match edge {
                [_] => this.boundary_edges += 1,
                [a, b] => {
                    if a.up == b.up {
                        this.misoriented_edges += 1;
                    } else {
                        this.across[a.corner / 3][a.corner % 3] = (b.corner / 3) as u32;
                        this.across[b.corner / 3][b.corner % 3] = (a.corner / 3) as u32;
                    }
                    let ends = |side: &Side| {
                        let (start, end) = (side.corner, next(side.corner));
                        if side.up { [start, end] } else { [end, start] }
                    };
                    let ([low, high], [other_low, other_high]) = (ends(a), ends(b));
                    fans.join(low, other_low);
                    fans.join(high, other_high);
                }
                _ => this.non_manifold_edges += 1,
            }
        }
        // Fans of each vertex.
        let mut count = vec![0u32; mesh.vertices().len()];
        let mut faces = 0i64;
        for (f, face) in mesh.faces().iter().enumerate() {
            if has_vertex_twice(*face) {
                continue;
            }
            faces += 1;
            for k in 0..3 {
                let corner = 3 * f + k;
                count[face[k] as usize] += u32::from(fans.root(corner) == corner);
            }
        }
        this.pinched_vertices = count.iter().filter(|fans| **fans > 1).count();
        let used = count.iter().filter(|fans| **fans > 0).count() as i64;
        this.euler = used - edges + faces;
        this
    }
}

/// The next corner of the same triangle.
const fn next(corner: usize) -> usize {
    corner / 3 * 3 + (corner + 1) % 3
}

/// Sets of corners (union-find with halving of paths).
struct Fans(Vec<usize>);

impl Fans {
    fn root(&mut self, mut i: usize) -> usize {
        while self.0[i] != i {
            self.0[i] = self.0[self.0[i]];
            i = self.0[i];
        }
        i
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }
}
