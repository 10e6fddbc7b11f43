//! A random order of many samples that takes no memory.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const ROUNDS: usize = 6;

/// A permutation of `0..len`, a function of the seed.
///
/// A Feistel network permutes pairs of `half` bits, so all numbers below the next power of four; a number that leaves `0..len` is permuted again until it is
/// back (cycle walking, Black and Rogaway 2002), at most four times on average.
#[derive(Debug, Clone)]
pub(super) struct Permutation {
    len: u64,
    half: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    pub(super) fn new(len: usize, seed: u64) -> Self {
        let len = len as u64;
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Self {
            len,
            half: bits.div_ceil(2).max(1),
            keys: std::array::from_fn(|_| rng.random()),
        }
    }

    /// Where `i`, below `len`, goes.
    pub(super) fn at(&self, i: usize) -> usize {
        let mut x = self.mix(i as u64);
        while x >= self.len {
            x = self.mix(x);
        }
        x as usize
    }

    fn mix(&self, x: u64) -> u64 {
        let mask = (1 << self.half) - 1;
        let (mut left, mut right) = (x >> self.half, x & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (scramble(right ^ key) & mask));
        }
        left << self.half | right
    }
}

/// The finaliser of `SplitMix64`: every bit of the result depends on every bit of `x`.
fn scramble(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_comes_once_at_every_length() {
        for len in (1..70).chain([255, 256, 257, 4096, 10_007]) {
            for seed in 0..3 {
                let order = Permutation::new(len, seed);
                let mut seen = vec![false; len];
                for i in 0..len {
                    let at = order.at(i);
                    assert!(!seen[at], "{at} twice among {len}");
                    seen[at] = true;
                }
            }
        }
    }

    /// In a random order the numbers of a quarter of the places are those of any quarter: their mean is near the middle, and neighbours are far apart.
    #[test]
    fn the_order_looks_random() {
        let len = 100_000;
        let order = Permutation::new(len, 5);
        for quarter in 0..4 {
            let places = (quarter * len / 4..(quarter + 1) * len / 4).map(|i| order.at(i) as f64);
            let mean = places.sum::<f64>() / (len / 4) as f64 / len as f64;
            // Five standard errors of the mean of 25,000 uniform numbers.
            assert!((mean - 0.5).abs() < 5.0 * 0.2887 / 158.0, "{mean}");
        }
        let steps = (1..len).map(|i| order.at(i).abs_diff(order.at(i - 1)) as f64);
        let mean = steps.sum::<f64>() / len as f64 / len as f64;
        // Two uniform numbers are a third apart on average, with a standard deviation of 0.236; 0.258 for means, since neighbouring steps
        // share a number.
        assert!((mean - 1.0 / 3.0).abs() < 5.0 * 0.26 / 316.0, "{mean}");
    }
}
