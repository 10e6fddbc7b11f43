//! Grids of features at many scales behind hash tables. For f32 on the CPU.

use tch::Tensor;

use crate::bridge::ffi;
use crate::{address, owned};

/// A level of a hash grid: a table of entries, and which of them belongs to a corner of a cell.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// A point x lies in cell ⌊x scale + ½⌋.
    pub scale: f32,
    /// Entries of its table: at least 8, or a power of two.
    pub entries: i64,
    /// Whether the entry of corner i is ⊕ `i_d` · `factor_d`; else it is Σ `i_d` · `factor_d`. Both in 32 bits, and modulo the entries.
    pub hashed: bool,
    /// One for each coordinate.
    pub factors: Vec<u32>,
}

/// Whether [`encode`] has loops for points of so many coordinates and entries of so many features.
pub fn fits(inputs: i64, features: i64) -> bool {
    (2..=4).contains(&inputs) && matches!(features, 1 | 2 | 4 | 8)
}

/// Features of points at each level, interpolated between the corners of their cells: linear in each coordinate, or `smooth`, by the share
/// 3t² - 2t³ of the farther corner. Differentiable once, by the coordinates and the table, with the same bits for any number of threads.
///
/// # Shapes
/// `coords`: `[n, inputs]`; `table`: flat, level by level, entry by entry, `features` values each → `[n, levels · features]`.
/// # Errors
/// A sentence, when shapes or kinds do not fit.
pub fn encode(
    coords: &Tensor,
    table: &Tensor,
    levels: &[Level],
    features: i64,
    smooth: bool,
) -> Result<Tensor, String> {
    let numbers: Vec<i64> = levels
        .iter()
        .flat_map(|level| {
            let factors = level.factors.iter().map(|factor| i64::from(*factor));
            [level.entries, i64::from(level.hashed)]
                .into_iter()
                .chain(factors)
        })
        .collect();
    let scales: Vec<f64> = levels.iter().map(|level| f64::from(level.scale)).collect();
    // SAFETY: the addresses are those of tensors borrowed for the call.
    unsafe {
        owned(ffi::hash_grid(
            address(coords),
            address(table),
            &numbers,
            &scales,
            features,
            smooth,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(factors: &[u32]) -> Level {
        Level {
            scale: 1.0,
            entries: 16,
            hashed: false,
            factors: factors.to_vec(),
        }
    }

    #[test]
    fn a_point_between_two_corners_has_a_share_of_each() {
        // ¾ and 1 after the shift: cell (0, 1), at whose corner (0, 1) and its neighbour along x the point has ¼ and ¾.
        let coords = Tensor::from_slice(&[0.25f32, 0.5]).view([1, 2]);
        let table = Tensor::arange(16, (tch::Kind::Float, tch::Device::Cpu)).square();
        let ys = encode(&coords, &table, &[level(&[1, 4])], 1, false).expect("sizes fit");
        assert_eq!(ys.size(), [1, 1]);
        assert_eq!(ys.double_value(&[0, 0]), 0.25 * 16.0 + 0.75 * 25.0);
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let zeros = |size: &[i64]| Tensor::zeros(size, (tch::Kind::Float, tch::Device::Cpu));
        let refused = |coords: &[i64], table: i64, levels: &[Level], features: i64| {
            encode(&zeros(coords), &zeros(&[table]), levels, features, false).expect_err("no fit")
        };
        let level = level(&[1, 4]);
        let one = std::slice::from_ref(&level);
        let small = Level {
            entries: 7,
            ..level.clone()
        };
        assert!(refused(&[3, 2], 15, one, 1).contains("16 values"));
        assert!(refused(&[3, 2], 7, &[small], 1).contains("7 entries"));
        assert!(refused(&[3, 3], 16, one, 1).contains("a factor"));
        assert!(refused(&[3, 5], 16, one, 1).contains("2 to 4"));
        assert!(refused(&[3, 2], 48, one, 3).contains("1, 2, 4 or 8"));
        assert!(refused(&[3], 16, one, 1).contains("coordinates"));
        assert!(refused(&[3, 2], 0, &[], 1).contains("a level"));
    }
}
