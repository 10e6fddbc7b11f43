//! Generalised winding numbers: how often a surface with holes surrounds a point.
//!
//! Jacobson, Kavan, Sorkine-Hornung 2013: the sum of the solid angles of all triangles over 4π, 1 inside a closed surface and 0 outside, and in between near
//! holes. Fast as in Barill, Dickson, Schmidt, Levin, Jacobson 2018: triangles of a node that is far away count as one dipole, `d · N / (4π |d|³)` with d
//! from the point to the node's centre and N the sum of its area vectors.

use std::f64::consts::PI;

use super::tree::{Node, Tree};
use super::triangle::Triangle;
use super::vectors::{V3, add, dot, length, scaled, sub};

/// Radii of a node from which on it counts as a dipole.
const FAR: f64 = 3.0;
/// Distance from 1/2 up to which the sum by dipoles does not decide about inside and outside.
pub(super) const UNSURE: f64 = 0.15;

/// Area, middle and radius of the triangles of each node of a tree.
#[derive(Debug)]
pub(super) struct Dipoles(Vec<Dipole>);

#[derive(Debug, Clone, Copy, Default)]
struct Dipole {
    /// Sum of the area vectors.
    vector: V3,
    area: f64,
    /// Mean position by area.
    centre: V3,
    /// All triangles lie within.
    radius: f64,
}

impl Dipoles {
    pub(super) fn new(tree: &Tree<Triangle>) -> Self {
        let mut dipoles = vec![Dipole::default(); tree.nodes().len()];
        // Children stand behind their parents.
        for (i, node) in tree.nodes().enumerate().rev() {
            dipoles[i] = match node {
                Node::Leaf(triangle) => {
                    let vector = scaled(triangle.cross(), 0.5);
                    let [a, b, c] = triangle.corners;
                    let centre = scaled(add(add(a, b), c), 1.0 / 3.0);
                    let reach = |corner| length(sub(corner, centre));
                    Dipole {
                        vector,
                        area: length(vector),
                        centre,
                        radius: reach(a).max(reach(b)).max(reach(c)),
                    }
                }
                Node::Pair([left, right]) => {
                    let (left, right) = (dipoles[left], dipoles[right]);
                    let area = left.area + right.area;
                    let share = if area > 0.0 { left.area / area } else { 0.5 };
                    let centre = add(
                        scaled(left.centre, share),
                        scaled(right.centre, 1.0 - share),
                    );
                    let reach = |part: Dipole| length(sub(part.centre, centre)) + part.radius;
                    Dipole {
                        vector: add(left.vector, right.vector),
                        area,
                        centre,
                        radius: reach(left).max(reach(right)),
                    }
                }
            };
        }
        Self(dipoles)
    }

    /// The winding number at `p`, to within a few hundredths.
    pub(super) fn fast(&self, nodes: &[Node<'_, Triangle>], p: V3) -> f64 {
        let (mut sum, mut stack) = (0.0, vec![0]);
        while let Some(i) = stack.pop() {
            let dipole: &Dipole = &self.0[i];
            let d = sub(dipole.centre, p);
            let distance = length(d);
            if distance > FAR * dipole.radius {
                sum += dot(d, dipole.vector) / (4.0 * PI * distance.powi(3));
                continue;
            }
            match &nodes[i] {
                Node::Leaf(triangle) => sum += triangle.solid_angle(p),
                Node::Pair(children) => stack.extend(children),
            }
        }
        sum
    }
}

/// The winding number at `p` by the solid angle of every triangle.
pub(super) fn exact(nodes: &[Node<'_, Triangle>], p: V3) -> f64 {
    let angles = nodes.iter().filter_map(|node| match node {
        Node::Leaf(triangle) => Some(triangle.solid_angle(p)),
        Node::Pair(_) => None,
    });
    angles.sum()
}
