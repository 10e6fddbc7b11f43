//! The triangles of a cell for each of the 256 ways in which its corners lie inside and outside.
//!
//! Corner c of a cell lies at (c & 1, c >> 1 & 1, c >> 2 & 1). Edge 4 · axis + k runs along its axis from the k-th corner that has 0 there.
//!
//! Go around a face of the cell, anticlockwise seen from outside the cell. Each run of inside corners is entered over one edge and left over another: a line of
//! the surface leads from the first to the second. Every cut edge lies on two faces, which pass it in opposite directions, so it ends one line and starts
//! another, and the lines close to polygons.

use std::sync::LazyLock;

/// The triangles of each case, by their edges; bit c of a case is set when corner c is inside.
pub(super) static TRIANGLES: LazyLock<Vec<Vec<[u8; 3]>>> = LazyLock::new(|| {
    let faces = faces();
    let triangles = |case| {
        polygons(case, &faces)
            .into_iter()
            .flat_map(|polygon| triangles(&polygon))
    };
    (0..256).map(|case| triangles(case).collect()).collect()
});

/// Axis and lower corner of an edge.
pub(super) const fn edge(edge: u8) -> (usize, usize) {
    let (axis, k) = (edge as usize / 4, edge as usize % 4);
    // Bits of k around a 0 in the place of the axis.
    let below = k & ((1 << axis) - 1);
    (axis, (k - below) << 1 | below)
}

/// The edge between two neighbouring corners.
fn edge_between(a: usize, b: usize) -> u8 {
    let (axis, corner) = ((a ^ b).trailing_zeros() as usize, a & b);
    let below = corner & ((1 << axis) - 1);
    (4 * axis + ((corner - below) >> 1 | below)) as u8
}

/// Corners of the six faces, anticlockwise seen from outside the cell.
fn faces() -> [[usize; 4]; 6] {
    std::array::from_fn(|face| {
        let (axis, far) = (face / 2, face % 2 == 1);
        let (u, v) = (1 << ((axis + 1) % 3), 1 << ((axis + 2) % 3));
        if far {
            [0, u, u | v, v].map(|corner| corner | 1 << axis)
        } else {
            [v, u | v, u, 0]
        }
    })
}

/// The polygons of a case, as rings of edges.
fn polygons(case: usize, faces: &[[usize; 4]; 6]) -> Vec<Vec<u8>> {
    let is_inside = |corner: usize| case >> corner & 1 == 1;
    let mut next = [None; 12];
    for face in faces {
        for k in 0..4 {
            let (before, first) = (face[(k + 3) % 4], face[k]);
            if is_inside(before) || !is_inside(first) {
                continue;
            }
            // There is an outside corner, `before`, so the run ends.
            let mut end = k;
            while is_inside(face[(end + 1) % 4]) {
                end += 1;
            }
            let leave = edge_between(face[end % 4], face[(end + 1) % 4]);
            next[edge_between(before, first) as usize] = Some(leave);
        }
    }
    let mut polygons = Vec::new();
    for start in 0..12 {
        let mut polygon = Vec::new();
        let mut at = start;
        while let Some(following) = next[at].take() {
            polygon.push(at as u8);
            at = following as usize;
        }
        if !polygon.is_empty() {
            polygons.push(polygon);
        }
    }
    polygons
}

/// Whether two edges lie on one face of the cell.
fn share_a_face(a: u8, b: u8) -> bool {
    let sides = |edge_number: u8| {
        let (axis, corner) = edge(edge_number);
        [0, 1, 2].map(|other| (other != axis).then_some(corner >> other & 1))
    };
    let (a, b) = (sides(a), sides(b));
    (0..3).any(|axis| a[axis].is_some() && a[axis] == b[axis])
}

/// A polygon cut along diagonals that lie on no face of the cell.
fn triangles(polygon: &[u8]) -> Vec<[u8; 3]> {
    /// The part from corner `i` to corner `j`, closed by the line between them.
    fn cut(polygon: &[u8], i: usize, j: usize) -> Option<Vec<[u8; 3]>> {
        if j == i + 1 {
            return Some(Vec::new());
        }
        let may_join = |a: usize, b: usize| b == a + 1 || !share_a_face(polygon[a], polygon[b]);
        (i + 1..j).find_map(|k| {
            if !(may_join(i, k) && may_join(k, j)) {
                return None;
            }
            let mut parts = vec![[polygon[i], polygon[k], polygon[j]]];
            parts.extend(cut(polygon, i, k)?);
            parts.extend(cut(polygon, k, j)?);
            Some(parts)
        })
    }
    // A test below sees that every polygon can be cut.
    cut(polygon, 0, polygon.len() - 1).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_numbered_both_ways() {
        for number in 0..12 {
            let (axis, corner) = edge(number);
            assert_eq!(corner >> axis & 1, 0);
            assert_eq!(edge_between(corner, corner | 1 << axis), number);
            assert_eq!(edge_between(corner | 1 << axis, corner), number);
        }
    }

    /// Each cut edge is in one polygon, and each polygon of n edges is n - 2 triangles.
    #[test]
    fn every_case_is_cut_whole() {
        let faces = faces();
        for case in 0..256usize {
            let cut: Vec<u8> = (0..12)
                .filter(|number| {
                    let (axis, corner) = edge(*number);
                    ((case >> corner) ^ (case >> (corner | 1 << axis))) & 1 == 1
                })
                .collect();
            let polygons = polygons(case, &faces);
            let mut used: Vec<u8> = polygons.concat();
            used.sort_unstable();
            assert_eq!(used, cut, "case {case}");
            let expected: usize = polygons.iter().map(|polygon| polygon.len() - 2).sum();
            assert_eq!(TRIANGLES[case].len(), expected, "case {case}");
        }
    }

    /// One inside corner: the triangle faces away from it.
    #[test]
    fn a_corner_is_cut_off_facing_outwards() {
        assert_eq!(TRIANGLES[1].len(), 1);
        let mut ring = TRIANGLES[1][0];
        let first = ring
            .iter()
            .position(|edge| *edge == 0)
            .expect("edge along x");
        ring.rotate_left(first);
        assert_eq!(ring, [0, 4, 8], "x, y, z");
    }
}
