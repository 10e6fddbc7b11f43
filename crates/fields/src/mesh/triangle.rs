//! One triangle: the closest point of it, where a ray meets it, and the angle it fills.

use super::tree::Closest;
use super::vectors::{V3, add, cross, dot, length, scaled, sub};

/// Double area in squares of the longest side below which a triangle is flat: the rounding of its corners.
const FLAT: f64 = 1e-14;

/// A triangle of a mesh.
#[derive(Debug, Clone, Copy)]
pub(super) struct Triangle {
    pub(super) corners: [V3; 3],
    /// Its number in the mesh.
    pub(super) face: u32,
    /// Whether it has no area, and is the line of its sides.
    pub(super) flat: bool,
}

/// The part of a triangle that a point is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Corner(usize),
    /// The side from corner k to corner k + 1.
    Side(usize),
    Inside,
}

impl Triangle {
    pub(super) fn new(corners: [V3; 3], face: u32) -> Self {
        let [a, b, c] = corners;
        let sides = [sub(b, a), sub(c, b), sub(a, c)];
        let longest = sides
            .iter()
            .map(|side| dot(*side, *side))
            .fold(0.0, f64::max);
        Self {
            corners,
            face,
            flat: length(cross(sides[0], sides[1])) <= FLAT * longest,
        }
    }

    /// The point of the triangle that is closest to `p` (Ericson, Real-Time Collision Detection, 2005, section 5.1.5), by regions of Voronoi.
    pub(super) fn closest(&self, p: V3) -> (V3, Part) {
        if self.flat {
            return self.closest_of_sides(p);
        }
        let [a, b, c] = self.corners;
        let (ab, ac, ap) = (sub(b, a), sub(c, a), sub(p, a));
        let (d1, d2) = (dot(ab, ap), dot(ac, ap));
        if d1 <= 0.0 && d2 <= 0.0 {
            return (a, Part::Corner(0));
        }
        let bp = sub(p, b);
        let (d3, d4) = (dot(ab, bp), dot(ac, bp));
        if d3 >= 0.0 && d4 <= d3 {
            return (b, Part::Corner(1));
        }
        let vc = d1 * d4 - d3 * d2;
        if vc <= 0.0 && d1 >= 0.0 && d3 <= 0.0 {
            return (add(a, scaled(ab, d1 / (d1 - d3))), Part::Side(0));
        }
        let cp = sub(p, c);
        let (d5, d6) = (dot(ab, cp), dot(ac, cp));
        if d6 >= 0.0 && d5 <= d6 {
            return (c, Part::Corner(2));
        }
        let vb = d5 * d2 - d1 * d6;
        if vb <= 0.0 && d2 >= 0.0 && d6 <= 0.0 {
            return (add(a, scaled(ac, d2 / (d2 - d6))), Part::Side(2));
        }
        let va = d3 * d6 - d5 * d4;
        if va <= 0.0 && d4 >= d3 && d5 >= d6 {
            let along = (d4 - d3) / ((d4 - d3) + (d5 - d6));
            return (add(b, scaled(sub(c, b), along)), Part::Side(1));
        }
        let sum = va + vb + vc;
        let point = add(a, add(scaled(ab, vb / sum), scaled(ac, vc / sum)));
        (point, Part::Inside)
    }

    /// The closest point of the three sides.
    fn closest_of_sides(&self, p: V3) -> (V3, Part) {
        let of_side = |k: usize| {
            let (start, end) = (self.corners[k], self.corners[(k + 1) % 3]);
            let side = sub(end, start);
            let square = dot(side, side);
            let along = dot(sub(p, start), side) / square;
            // A side without length is its start.
            let along = if square > 0.0 {
                along.clamp(0.0, 1.0)
            } else {
                0.0
            };
            let point = add(start, scaled(side, along));
            let d = sub(p, point);
            (dot(d, d), point, Part::Side(k))
        };
        let shorter = |a: (f64, V3, Part), b: (f64, V3, Part)| if b.0 < a.0 { b } else { a };
        let (_, point, part) = shorter(shorter(of_side(0), of_side(1)), of_side(2));
        (point, part)
    }

    /// Twice the area times the normal.
    pub(super) fn cross(&self) -> V3 {
        let [a, b, c] = self.corners;
        cross(sub(b, a), sub(c, a))
    }

    /// Whether the ray from `origin` along `direction` passes through (Möller and Trumbore 1997).
    pub(super) fn is_met(&self, origin: V3, direction: V3) -> bool {
        let [a, b, c] = self.corners;
        let (ab, ac) = (sub(b, a), sub(c, a));
        let across = cross(direction, ac);
        let volume = dot(ab, across);
        if volume == 0.0 {
            return false;
        }
        let from = sub(origin, a);
        let u = dot(from, across) / volume;
        let other = cross(from, ab);
        let v = dot(direction, other) / volume;
        u >= 0.0 && v >= 0.0 && u + v <= 1.0 && dot(ac, other) / volume > 0.0
    }

    /// Share of the full sphere around `p` that the triangle fills, positive when it faces away from it (van Oosterom and Strackee 1983).
    pub(super) fn solid_angle(&self, p: V3) -> f64 {
        let [a, b, c] = self.corners.map(|corner| sub(corner, p));
        let (la, lb, lc) = (length(a), length(b), length(c));
        let volume = dot(a, cross(b, c));
        let base = la * lb * lc + dot(a, b) * lc + dot(b, c) * la + dot(c, a) * lb;
        2.0 * volume.atan2(base) / (4.0 * std::f64::consts::PI)
    }
}

impl Closest for Triangle {
    fn bounds(&self) -> [V3; 2] {
        let [a, b, c] = self.corners;
        [
            std::array::from_fn(|i| a[i].min(b[i]).min(c[i])),
            std::array::from_fn(|i| a[i].max(b[i]).max(c[i])),
        ]
    }

    fn distance_squared(&self, point: V3) -> f64 {
        let d = sub(point, self.closest(point).0);
        dot(d, d)
    }
}
