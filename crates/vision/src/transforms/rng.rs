//! Random numbers of one picture or one batch.

use densely_core::{Error, Result};
use rand::{Rng as _, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Beta, Distribution, StandardNormal};

/// Random numbers that depend on what they are for, not on who draws them.
///
/// A picture has its own numbers in each epoch, so that what is done to it depends neither on the number of workers nor on whether a run was
/// resumed. Numbers are those of `ChaCha8`.
#[derive(Debug, Clone)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// Numbers of picture `index` of the data set in epoch `epoch`.
    pub fn for_picture(seed: u64, epoch: u64, index: u64) -> Self {
        Self::keyed([seed, epoch, index, u64::from_le_bytes(*b"picture ")])
    }

    /// Numbers of the batch of optimiser step `step`.
    pub fn for_step(seed: u64, step: u64) -> Self {
        Self::keyed([seed, step, 0, u64::from_le_bytes(*b"step    ")])
    }

    fn keyed(words: [u64; 4]) -> Self {
        let mut key = [0; 32];
        for (bytes, word) in key.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// A number in [0, 1), a multiple of 2⁻⁵³.
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number between `low` and `high`; `low` when they are equal.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// A whole number below `count`; 0 when there is none.
    pub fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.0.next_u64()) * count as u128) >> 64) as usize
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// A number from the standard normal distribution.
    pub fn normal(&mut self) -> f64 {
        StandardNormal.sample(&mut self.0)
    }

    /// `count` numbers from the standard normal distribution.
    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| StandardNormal.sample(&mut self.0))
            .collect()
    }

    /// A number from the distribution Beta(`alpha`, `alpha`).
    ///
    /// # Errors
    /// [`Error::Config`] when `alpha` is not positive.
    pub fn beta(&mut self, alpha: f64) -> Result<f64> {
        let beta = Beta::new(alpha, alpha)
            .map_err(|_| Error::config("alpha", format!("must be positive, got {alpha}")))?;
        Ok(beta.sample(&mut self.0))
    }

    /// The numbers from 0 up to `N`, in random order.
    pub(crate) fn permutation<const N: usize>(&mut self) -> [usize; N] {
        let mut order = std::array::from_fn(|i| i);
        for i in (1..N).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}
