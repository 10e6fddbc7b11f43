//! The analysis splits by their rule: windows that slide over time, and the same rows at random.
//!
//! The random ones are those of the benchmark's scripts: one generator of NumPy's legacy kind with seed 0
//! (`np.random.seed(0)`) shuffles the rows of the three windows in turn.

use densely_core::{Error, Result};
use densely_data::split::Split;

/// Windows that the benchmark has.
pub const WINDOWS: usize = 3;

/// Window `index` of [`WINDOWS`] over `order` (rows from the oldest to the newest): `size` rows validate, the next
/// `size` test, and as many rows before them train as every window has.
///
/// # Errors
/// [`Error::Config`] when there is no such window or the rows do not suffice.
pub fn sliding_window(order: &[u32], index: usize, size: usize) -> Result<Split> {
    let train = train_rows(order, index, size)?;
    let start = index * size;
    Ok(cut(&order[start..start + train + 2 * size], train, size))
}

/// The rows of window `index`, shuffled and cut into parts of the same sizes.
///
/// # Errors
/// Those of [`sliding_window`].
pub fn random(order: &[u32], index: usize, size: usize) -> Result<Split> {
    let train = train_rows(order, index, size)?;
    let mut generator = Mt19937::new(0);
    let mut rows = Vec::new();
    // The windows before this one use up their numbers.
    for window in 0..=index {
        let start = window * size;
        rows = order[start..start + train + 2 * size].to_vec();
        generator.shuffle(&mut rows);
    }
    Ok(cut(&rows, train, size))
}

fn train_rows(order: &[u32], index: usize, size: usize) -> Result<usize> {
    let taken = size.checked_mul(WINDOWS + 1);
    let train = taken.and_then(|taken| order.len().checked_sub(taken));
    match train {
        Some(train) if train > 0 && size > 0 && index < WINDOWS => Ok(train),
        _ => {
            let reason = format!(
                "window {index} of {WINDOWS} with {size} rows for validation does not fit {} rows",
                order.len()
            );
            Err(Error::config("split", reason))
        }
    }
}

fn cut(rows: &[u32], train: usize, size: usize) -> Split {
    Split {
        train: rows[..train].to_vec(),
        valid: rows[train..train + size].to_vec(),
        test: rows[train + size..].to_vec(),
    }
}

const N: usize = 624;
const M: usize = 397;

/// The Mersenne Twister as NumPy's `RandomState` seeds and reads it.
/// Makoto Matsumoto and Takuji Nishimura 1998, ACM TOMACS 8(1).
struct Mt19937 {
    key: [u32; N],
    at: usize,
}

impl Mt19937 {
    fn new(seed: u32) -> Self {
        let mut key = [seed; N];
        for i in 1..N {
            let previous = key[i - 1];
            key[i] = 1_812_433_253_u32
                .wrapping_mul(previous ^ previous >> 30)
                .wrapping_add(i as u32);
        }
        Self { key, at: N }
    }

    fn next(&mut self) -> u32 {
        if self.at == N {
            for i in 0..N {
                let y = self.key[i] & 0x8000_0000 | self.key[(i + 1) % N] & 0x7fff_ffff;
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.key[i] = self.key[(i + M) % N] ^ y >> 1 ^ odd;
            }
            self.at = 0;
        }
        let mut y = self.key[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c_5680;
        y ^= y << 15 & 0xefc6_0000;
        y ^ y >> 18
    }

    /// A number from 0 to `max`, both included: draws are masked and repeated until one fits.
    fn interval(&mut self, max: u32) -> u32 {
        let mask = u32::MAX.checked_shr(max.leading_zeros()).unwrap_or(0);
        loop {
            let value = self.next() & mask;
            if value <= max {
                return value;
            }
        }
    }

    /// `RandomState.shuffle` of a one-dimensional array.
    fn shuffle<T>(&mut self, values: &mut [T]) {
        for i in (1..values.len()).rev() {
            values.swap(i, self.interval(i as u32) as usize);
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_generator_gives_the_numbers_of_its_authors() {
        // The standard's check: the 10,000th number of seed 5489 is 4123659995.
        let mut generator = Mt19937::new(5489);
        let last = (0..10_000).map(|_| generator.next()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn windows_slide_and_random_splits_cover_the_same_rows() {
        let order: Vec<u32> = (0..100).map(|row| (row * 37 + 5) % 100).collect();
        let mut tested = Vec::new();
        for index in 0..WINDOWS {
            let window = sliding_window(&order, index, 10).unwrap();
            assert_eq!(
                (window.train.len(), window.valid.len(), window.test.len()),
                (60, 10, 10)
            );
            assert_eq!(window.train[0], order[10 * index]);
            tested.extend(window.test.clone());
            let random = random(&order, index, 10).unwrap();
            assert_eq!((random.train.len(), random.valid.len()), (60, 10));
            let sorted = |split: &Split| {
                let mut rows =
                    [split.train.clone(), split.valid.clone(), split.test.clone()].concat();
                rows.sort_unstable();
                rows
            };
            assert_eq!(sorted(&window), sorted(&random));
            assert_ne!(window.train, random.train);
        }
        // Test parts follow each other in time, and end with the newest row.
        assert_eq!(tested, order[70..]);
    }

    #[test]
    fn windows_that_do_not_fit_are_refused() {
        let order: Vec<u32> = (0..40).collect();
        for (index, size) in [(3, 5), (0, 10), (0, 0), (0, usize::MAX), (usize::MAX, 1)] {
            assert!(sliding_window(&order, index, size).is_err());
            assert!(random(&order, index, size).is_err());
        }
    }
}
